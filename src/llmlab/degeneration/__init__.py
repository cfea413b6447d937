"""Why a model repeats itself, and what helps against it."""
