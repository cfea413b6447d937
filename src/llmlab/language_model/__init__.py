"""A language model to use: text in, text out.

>>> lm = load("smollm2")
>>> lm.generate("The capital of France is", max_new_tokens=8, temperature=0)
"""

from llmlab.language_model.model import LanguageModel
from llmlab.language_model.opening import load
from llmlab.language_model.reply import Reply, conversation
from llmlab.language_model.ways import Speculating, Ways

__all__ = ["LanguageModel", "Reply", "Speculating", "Ways", "conversation", "load"]
