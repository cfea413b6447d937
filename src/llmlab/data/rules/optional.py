"""What needs a package of the extra `data`: repair of broken Unicode by ftfy, language by py3langid."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from typing import Any

from llmlab.errors import InputError

LOOKED_AT = 2000  # characters of a text by which its language is told


def package(name: str, field: str) -> Any:
    """The module `name`; `InputError` that names the extra where it is not installed."""
    try:
        return import_module(name)
    except ImportError:
        raise InputError(field, f"needs the package {name}", "pip install 'llmlab[data]'") from None


@cache
def repairer() -> Callable[[str], str]:
    """What mends text that was decoded wrongly ("donâ€™t") and leaves the rest alone: widths, quotes and ligatures are
    the writer's, and wide punctuation is how Chinese is written."""
    ftfy = package("ftfy", "text.clean.repair")
    config = ftfy.TextFixerConfig(
        unescape_html=False,
        remove_terminal_escapes=True,
        fix_encoding=True,
        restore_byte_a0=True,
        replace_lossy_sequences=True,
        decode_inconsistent_utf8=True,
        fix_c1_controls=True,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        fix_line_breaks=False,
        fix_surrogates=True,
        remove_control_chars=False,
        normalization=None,
        explain=False,
    )
    return lambda text: str(ftfy.fix_text(text, config))


@cache
def identifier() -> Any:
    langid = package("py3langid.langid", "text.clean.languages")
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)


def languages(texts: Iterable[str]) -> list[str]:
    """ISO 639-1 of each text, by its beginning."""
    return [str(identifier().classify(text[:LOOKED_AT])[0]) for text in texts]


def check_languages(wanted: Iterable[str]) -> None:
    """`InputError` for a language that is not told apart."""
    known = sorted(set(identifier().nb_classes))
    for language in wanted:
        if language not in known:
            raise InputError("text.clean.languages", f"unknown language {language!r}", f"allowed: {', '.join(known)}")
