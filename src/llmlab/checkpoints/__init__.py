"""Reading and writing weights: every format ends in a `Bundle`, and `where` finds them by name or path."""
