"""llmlab: a language model's whole life on one recipe.

>>> import llmlab
>>> lm = llmlab.load("smollm2")
>>> lm.generate("The capital of France is", max_new_tokens=5, temperature=0)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmlab.errors import InputError
    from llmlab.language_model import LanguageModel, load
    from llmlab.run import Run

__version__ = "0.1.0"

# Where each public name lives. They are imported when first used: `llmlab --help` must not wait for torch.
_HOMES = {"InputError": "errors", "LanguageModel": "language_model", "Run": "run", "load": "language_model"}

__all__ = ["InputError", "LanguageModel", "Run", "load"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"llmlab.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'llmlab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
