"""Tokenizers as Hugging Face folders hold them: `tokenizer.json`, or only what the slow tokenizers read."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, normalizers, processors
from tokenizers import Tokenizer as Backend

from llmlab.errors import InputError
from llmlab.tokenization import wordpiece
from llmlab.tokenization.sentencepiece import SentencePieceFile
from llmlab.tokenization.unigram import check_charsmap

ROLES = ("bos", "eos", "pad", "unk", "cls", "sep", "mask")
SPIECE = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
VOCAB = "vocab.txt"
FILES = ("tokenizer.json", *SPIECE, VOCAB)


@dataclass(frozen=True)
class FolderParts:
    """A tokenizer's backend, the names of its tokens by role, and its chat template."""

    backend: Backend
    names: dict[str, str | None]
    chat_template: str | None


def read_folder(folder: Path) -> FolderParts:
    """Read the first of `FILES` there is, and the configs beside it. InputError for a folder without any."""
    path = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if path is None:
        hint = f"nor {', '.join(FILES[1:])}" if folder.is_dir() else "no such folder"
        raise InputError(str(folder), f"holds no {FILES[0]}", hint)
    config = _json_file(folder / "tokenizer_config.json")
    special = _json_file(folder / "special_tokens_map.json") | config
    names = {role: _content(special.get(f"{role}_token")) for role in ROLES}
    if path.name == "tokenizer.json":
        backend = _backend(path)
        _add_missing(backend, folder, config)
        names["unk"] = names["unk"] or _unknown(path)
    elif path.name == VOCAB:
        backend = _bert(path, config, names)
        _add_missing(backend, folder, config)
    else:
        backend = _sentencepiece(path, folder, config, names)
    for role, name in names.items():  # a name that is in no table is a leftover; a missing eos is a defect
        if role != "eos" and name is not None and backend.token_to_id(name) is None:
            names[role] = None
    template = _template(config.get("chat_template"))
    beside = folder / "chat_template.jinja"
    if beside.is_file():
        template = beside.read_text(encoding="utf-8")
    return FolderParts(backend, names, template)


# ---------------------------------------------------------------- tokenizer.json


def _backend(path: Path) -> Backend:
    try:
        backend = Backend.from_str(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise InputError(str(path), "is not UTF-8 text") from None
    except Exception as error:  # the library raises bare Exception
        raise InputError(str(path), f"is no tokenizer: {error}") from None
    if backend.normalizer is not None:
        for part in _parts(json.loads(backend.normalizer.__getstate__())):
            if isinstance(charsmap := part.get("precompiled_charsmap"), str):
                check_charsmap(base64.b64decode(charsmap))
    return backend


def _parts(part: Any) -> Iterator[dict[str, Any]]:
    """A normalizer and those within it."""
    yield part
    for inner in part.get("normalizers", ()):
        yield from _parts(inner)


def _unknown(path: Path) -> str | None:
    """The token that the model itself gives for what it does not know."""
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    match model:
        case {"unk_id": int(id), "vocab": list(pieces)}:
            return str(pieces[id][0])
        case {"unk_token": str(token)}:
            return token
    return None


# ---------------------------------------------------------------- vocab.txt


def _bert(path: Path, config: Mapping[str, Any], names: dict[str, str | None]) -> Backend:
    """BERT's vocabulary, one piece a line. Names that the configs leave out are BERT's."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError:
        raise InputError(str(path), "is not UTF-8 text") from None
    pieces = [line.removesuffix("\r") for line in (lines[:-1] if not lines[-1] else lines)]
    for role, name in zip(("pad", "unk", "cls", "sep", "mask"), wordpiece.SPECIAL, strict=True):
        names[role] = names[role] or (name if name in pieces else None)
    options = {key: config.get(key) for key in ("do_lower_case", "strip_accents", "tokenize_chinese_chars")}
    for key, value in options.items():
        if not isinstance(value, bool | None):
            raise InputError(str(path.with_name("tokenizer_config.json")), f"{key} is {value!r}, not true or false")
    cls, sep = (name if name in pieces else None for name in (names["cls"], names["sep"]))
    return wordpiece.wordpiece_backend(
        pieces,
        names["unk"],
        cls,
        sep,
        lowercase=options["do_lower_case"],
        strip_accents=options["strip_accents"],
        chinese=options["tokenize_chinese_chars"] is not False,
    )


# ---------------------------------------------------------------- SentencePiece's own files


@dataclass(frozen=True)
class Known:
    """What a slow tokenizer's code knows that its file does not say: token names, framing, and how it prepares text."""

    names: Mapping[str, str]
    single: tuple[str, ...]
    pair: tuple[str, ...]
    sentinels: int = 0  # T5's <extra_id_0> and so on, behind the vocabulary, the last of them first
    prepares: bool = False  # XLNet and ALBERT: LaTeX quotes made plain, accents stripped
    lowercase: bool = False


_ENDS = {"eos": "</s>", "unk": "<unk>"}
KNOWN = {
    "t5": Known(_ENDS | {"pad": "<pad>"}, ("$A:0", "</s>:0"), ("$A:0", "</s>:0", "$B:0", "</s>:0"), 100),
    "xlnet": Known(
        _ENDS | {"bos": "<s>", "pad": "<pad>", "cls": "<cls>", "sep": "<sep>", "mask": "<mask>"},
        ("$A:0", "<sep>:0", "<cls>:2"),
        ("$A:0", "<sep>:0", "$B:1", "<sep>:1", "<cls>:2"),
        prepares=True,
    ),
    "albert": Known(
        {"bos": "[CLS]", "eos": "[SEP]", "unk": "<unk>", "pad": "<pad>"}
        | {"cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
        ("[CLS]:0", "$A:0", "[SEP]:0"),
        ("[CLS]:0", "$A:0", "[SEP]:0", "$B:1", "[SEP]:1"),
        prepares=True,
        lowercase=True,
    ),
    "llama": Known(_ENDS | {"bos": "<s>"}, ("<s>:0", "$A:0"), ("<s>:0", "$A:0", "<s>:1", "$B:1")),
}


def _sentencepiece(path: Path, folder: Path, config: Mapping[str, Any], names: dict[str, str | None]) -> Backend:
    file = SentencePieceFile.read(path)
    stated = [config.get("tokenizer_class"), _json_file(folder / "config.json").get("model_type")]
    said = [str(name).lower().removesuffix("fast").removesuffix("tokenizer").removeprefix("m") for name in stated]
    known = next((KNOWN[name] for name in said if name in KNOWN), None)
    backend = file.backend(*(_prepared(config, known) if known is not None else ()))
    for role, name in (known.names if known is not None else {}).items():
        names[role] = names[role] or name
    for role, id in {"bos": file.bos, "eos": file.eos, "pad": file.pad, "unk": file.unk}.items():
        if names[role] is None and id is not None and known is None:
            names[role] = file.pieces[id]
    _add_missing(backend, folder, config)
    if known is None:
        return backend
    count = config.get("extra_ids", known.sentinels)
    if not isinstance(count, int) or not 0 <= count <= 10_000:
        raise InputError(str(folder / "tokenizer_config.json"), f"extra_ids is {count!r}, not a small count")
    sentinels = [f"<extra_id_{number}>" for number in reversed(range(count))]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in sentinels])
    marks = {slot[:-2] for slot in (*known.single, *known.pair) if not slot.startswith("$")}
    ids = [(mark, backend.token_to_id(mark)) for mark in sorted(marks)]
    if all(id is not None for _, id in ids) and (marks != {"<s>"} or config.get("add_bos_token", True)):
        backend.post_processor = processors.TemplateProcessing(
            single=list(known.single), pair=list(known.pair), special_tokens=ids
        )
    return backend


def _prepared(config: Mapping[str, Any], known: Known) -> Iterator[normalizers.Normalizer]:
    if known.prepares:
        yield normalizers.Replace("``", '"')
        yield normalizers.Replace("''", '"')
        if not config.get("keep_accents", False):
            yield normalizers.NFKD()
            yield normalizers.StripAccents()
        if config.get("do_lower_case", known.lowercase):
            yield normalizers.Lowercase()


# ---------------------------------------------------------------- the files beside


def _json_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(str(path), f"is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(str(path), "holds no mapping")
    return value


def _content(token: Any) -> str | None:
    """A token as old and new configs give it: a string, or a mapping with its content."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _template(value: Any) -> str | None:
    """A config's chat template: one string, or a list of named ones of which `default` counts."""
    if isinstance(value, list):
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None


def _declared(folder: Path, config: Mapping[str, Any]) -> Iterator[tuple[int, AddedToken]]:
    for text, id in _json_file(folder / "added_tokens.json").items():
        yield int(id), AddedToken(text, special=False, normalized=False)
    for id, token in (config.get("added_tokens_decoder") or {}).items():
        known = {
            key: token[key] for key in ("lstrip", "rstrip", "normalized", "single_word", "special") if key in token
        }
        yield int(id), AddedToken(token["content"], **known)


def _add_missing(backend: Backend, folder: Path, config: Mapping[str, Any]) -> None:
    """Tokens that only the files beside tokenizer.json name, at the ids that they name."""
    try:
        declared = dict(_declared(folder, config))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(str(folder), "its list of added tokens cannot be read") from None
    for id, token in sorted(declared.items()):
        if backend.token_to_id(token.content) is None:
            backend.add_special_tokens([token]) if token.special else backend.add_tokens([token])
        if backend.token_to_id(token.content) != id:
            raise InputError(str(folder), f"token {token.content!r} is said to be {id}, its place is elsewhere")
