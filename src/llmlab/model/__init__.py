"""The model from named parts: positions, norms, attentions, feed-forwards, and the block that wires them."""
