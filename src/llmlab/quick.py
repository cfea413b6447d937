"""Quick starts: what a command does while it imports and loads."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """For imports and models: none of the many objects that they begin with is garbage, and looking for some among
    them took a third of a second of a chat's start."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()
