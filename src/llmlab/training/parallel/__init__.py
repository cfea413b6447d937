"""A training on several processes: ways to lie on them, and checkpoints in pieces."""
