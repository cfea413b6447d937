"""Small trained parts in a frozen model, the table of who uses which, and what a stage folder opens to."""
