"""Races that several questions read, one a file: a preset and arms, each a few fields that differ."""
