"""What is learnt: pure functions on tensors, and the objectives that the one loop trains with."""
