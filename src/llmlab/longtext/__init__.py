"""Texts longer than a model reads at once: found in, summed up, gone on with, streamed."""
