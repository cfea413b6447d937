"""Smaller weights: quantisation, and what it costs."""
