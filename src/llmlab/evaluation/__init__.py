"""How well a model does: tasks with intervals, bits per byte, comparisons, and the report of a run."""
