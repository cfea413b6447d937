"""Figures out: the progress that a person sees, and writers that keep the rows."""
