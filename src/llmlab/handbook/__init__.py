"""The executable handbook: 54 questions, each with the claim, the correction, an experiment and a computed verdict."""
