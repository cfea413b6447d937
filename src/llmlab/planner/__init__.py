"""What a recipe will cost before it is run: memory by cause, time, arithmetic; and what would make it fit."""
