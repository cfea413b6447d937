"""Going on with a text file: its end as far as it fits, or all of it through a window; the new text may be endless."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmlab.errors import InputError
from llmlab.inference.caches import Rolling
from llmlab.inference.sampling import Sampling
from llmlab.language_model import LanguageModel, Ways

BYTES_A_TOKEN = 16  # of a file's end, looked at for each token that there is room for: few texts have longer ones
MOST = 8 << 20  # bytes of a file that is read as a whole: about two million tokens
_WORD = 100  # characters after which a text that was cut begins wherever it was cut


@dataclass(frozen=True)
class Ending:
    """The last part of a file: its text, the byte of the file where it begins, and how many bytes the file has."""

    text: str
    start: int
    size: int

    def cut(self, characters: int) -> Ending:
        """No more than its last `characters`, from the beginning of a word on if one begins soon."""
        if characters >= len(self.text):
            return self
        left = self.text[len(self.text) - characters :]
        gap = next((place for place, letter in enumerate(left[:_WORD]) if letter.isspace()), None)
        left = left if gap is None else left[gap:].lstrip() or left
        before = self.text[: len(self.text) - len(left)]
        return Ending(left, self.start + len(before.encode("utf-8")), self.size)


def ending(path: Path, most: int) -> Ending:
    """The last `most` bytes of a UTF-8 file, from a whole character on; the rest is not read. The line break that ends
    a file is no part of its text.

    Errors: InputError for a file that is not there, no file, empty, binary, or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = max(0, size - most)
            file.seek(start)
            content = file.read(most)
    except (OSError, ValueError) as error:
        raise InputError(str(path), f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if (zero := content.find(0)) >= 0:
        raise InputError(str(path), f"byte {start + zero} is 0: this is no text", "give a file of UTF-8 text")
    if start:  # a character has three such bytes at most
        skipped = next((place for place, byte in enumerate(content[:4]) if byte & 0xC0 != 0x80), 0)
        start, content = start + skipped, content[skipped:]
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(str(path), f"byte {start + error.start} is not UTF-8", "save it as UTF-8") from None
    if text.startswith("\ufeff"):  # the mark of some editors
        text, start = text[1:], start + 3
    text = text.removesuffix("\n").removesuffix("\r")
    if not text.strip():
        raise InputError(
            str(path), "is empty" if start == 0 else "ends in nothing but white space", "write a beginning"
        )
    return Ending(text, start, size)


def go_on(
    lm: LanguageModel,
    path: Path,
    sampling: Sampling,
    window: int | None = None,
    sinks: int = 4,
    whole: bool = False,
    on_text: Callable[[str], object] | None = None,
) -> dict[str, Any]:
    """How the text of a file goes on, and how that went: the fields of `LanguageModel.report`, and

    - read_tokens, read_from_byte, file_bytes: what was read, from which byte of how many,
    - peak_cache_bytes: what is set aside for keys and values, all of the new text included.

    What fits the context with its continuation is read and answered as any prompt. Else, or where a `window` is given,
    the window and the first `sinks` tokens are kept, so that nothing ends at the context; `whole` reads all of the file
    through them, not only what they hold. The file is not changed.

    Errors: InputError for a file as `ending` has it or too long to be read as a whole, a model that cannot go on or
    whose positions cannot roll, a window below 1, or window and sinks beyond the context.
    """
    a = lm.bundle.architecture
    if a.encoder_layers:
        raise InputError("model", "reads with an encoder and answers; it does not go on with a text", "use a decoder")
    reserved = min(sampling.max_new_tokens, lm.context // 2)
    room = lm.context - reserved if window is None else window + sinks
    roll = Rolling(window=_positive(window), sinks=_not_negative(sinks))
    if window is not None or whole:
        roll.build(0, a)
    found = ending(path, MOST + 1 if whole else BYTES_A_TOKEN * room)
    if whole and found.size > MOST:
        problem = f"has {found.size:,} bytes; {MOST:,} can be read as a whole"
        raise InputError(str(path), problem, "leave out --whole: its end is read")
    found = found if whole else _fitting(lm, found, room)
    tokens = len(lm.prompt(found.text))
    fits = window is None and tokens + sampling.max_new_tokens <= lm.context
    ways = Ways() if fits else Ways(cache=roll)
    done = lm.report(found.text, sampling, on_text=on_text, ways=ways)
    return done | {
        "read_tokens": done["prefill_tokens"],
        "read_from_byte": found.start,
        "file_bytes": found.size,
        "peak_cache_bytes": lm.cache_bytes(tokens + sampling.max_new_tokens, ways.cache),
    }


def _fitting(lm: LanguageModel, found: Ending, room: int) -> Ending:
    """The last part of an ending that is no longer than `room` tokens."""
    while (tokens := len(lm.prompt(found.text))) > room:
        fewer = found.cut(min(len(found.text) - 1, int(len(found.text) * room / tokens)))
        if not fewer.text.strip():
            raise InputError("window", f"of {room} tokens has no room for a word of this text", "take a wider one")
        found = fewer
    return found


def _positive(window: int | None) -> int | None:
    if window is not None and window < 1:
        raise InputError("--window", f"{window} keeps nothing", "a number of tokens, 1 or more")
    return window


def _not_negative(sinks: int) -> int:
    if sinks < 0:
        raise InputError("--sinks", f"{sinks} is below 0", "0 keeps none; 4 is what StreamingLLM takes")
    return sinks
