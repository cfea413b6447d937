"""The handbook's formulas to the letter, as parts that a recipe may name (`llmlab.handbook.literal.norms:NoGain`).

They are arms of races and nothing else: what is wrong here is wrong on purpose, so that "wrong and harmless" and
"wrong and harmful" can be told apart. Each says which question it is of.
"""
