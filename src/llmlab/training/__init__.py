"""The one loop, and what it is made of: optimizers, schedules, the state on disk, and the pretraining stage."""
