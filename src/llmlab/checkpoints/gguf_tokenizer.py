"""The tokenizer of a GGUF file: byte-level BPE (`gpt2`) and SentencePiece's BPE (`llama`) read and written, WordPiece
(`bert`) read.

llama.cpp cuts text by a name (`tokenizer.ggml.pre`), not by the rules themselves, so what is written is a tokenizer
whose rules are those of a name. Anything else would be opened there and give other ids, and is refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import normalizers

from llmlab.checkpoints.gguf_file import GGUF
from llmlab.errors import InputError, unknown
from llmlab.tokenization.pieces import (
    BYTE,
    BYTE_PIECE,
    CONTROL,
    NORMAL,
    PRE,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    merges_of_scores,
    pre_tokenizer,
)
from llmlab.tokenization.tokenizer import Tokenizer

PREFIX = "tokenizer.ggml"
TEMPLATE = "tokenizer.chat_template"
SPECIAL = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}  # ours -> in GGUF's keys
KINDS = ("gpt2", "llama", "bert")
NONE = ("none", "no_vocab")


def _spare(id: int) -> str:
    """The name of an id without a token: llama.cpp wants as many tokens as the embedding has rows."""
    return f"[PAD{id}]"


# ---------------------------------------------------------------- reading


def read_tokenizer(file: GGUF) -> Tokenizer | None:
    """The tokenizer of the file, None where it has none."""
    place = str(file.path)
    if file.fields.get(f"{PREFIX}.model", NONE[0]) in NONE:
        return None
    kind = file.field(f"{PREFIX}.model", str)
    if kind not in KINDS:
        raise unknown(f"{place}: {PREFIX}.model", kind[:80], KINDS)
    tokens = _strings(file, "tokens")
    types = _numbers(file, "token_type", len(tokens))
    count = len(tokens)
    while types and count and types[count - 1] == UNUSED and tokens[count - 1] == _spare(count - 1):
        count -= 1
    special: dict[str, Any] = {role: _token_id(file, theirs, count) for role, theirs in SPECIAL.items()}
    special["chat_template"] = file.field(TEMPLATE, str, "") or None
    special["add_bos"] = file.field(f"{PREFIX}.add_bos_token", bool, kind == "llama")
    tokens, types = tokens[:count], types and types[:count]
    if kind == "gpt2":
        pre = file.field(f"{PREFIX}.pre", str, "default")
        return Tokenizer.from_bpe(tokens, _strings(file, "merges"), pre=pre, types=types, **special)
    if kind == "bert":
        return _wordpiece(file, tokens, special)
    if (scores := _numbers(file, "scores", None)) is None:
        raise InputError(place, f"the field {PREFIX}.scores is missing")
    blank = file.field(f"{PREFIX}.add_space_prefix", bool, True)
    return Tokenizer.from_sentencepiece(tokens, scores[:count], types, add_space_prefix=blank, **special)


def _wordpiece(file: GGUF, tokens: list[str], special: dict[str, Any]) -> Tokenizer:
    def flag(name: str) -> bool | None:
        key = f"{PREFIX}.{name}"
        return file.field(key, bool) if key in file.fields else None

    cls = _token_id(file, "cls", len(tokens))
    sep = _token_id(file, "seperator", len(tokens))  # llama.cpp's spelling of the key
    return Tokenizer.from_wordpiece(
        tokens,
        lowercase=flag("normalizer.lowercase"),
        strip_accents=flag("normalizer.strip_accents"),
        cls=special["bos"] if cls is None else cls,
        sep=special["eos"] if sep is None else sep,
        mask=_token_id(file, "mask", len(tokens)),
        **{role: special[role] for role in ("pad", "unk", "eos")},
    )


def _strings(file: GGUF, name: str) -> list[str]:
    value: list[str] = file.field(f"{PREFIX}.{name}", list)
    if not all(isinstance(item, str) for item in value):
        raise InputError(str(file.path), f"the field {PREFIX}.{name} is no list of strings")
    return value


def _numbers(file: GGUF, name: str, count: int | None) -> list[Any] | None:
    value = file.fields.get(f"{PREFIX}.{name}")
    if value is None:
        return None
    if not isinstance(value, np.ndarray) or (count is not None and len(value) != count):
        raise InputError(str(file.path), f"the field {PREFIX}.{name} is no number for each of {count} tokens")
    numbers: list[Any] = value.tolist()
    return numbers


def _token_id(file: GGUF, name: str, count: int) -> int | None:
    if (key := f"{PREFIX}.{name}_token_id") not in file.fields:
        return None
    value: int = file.field(key, int)
    if not 0 <= value < count:
        raise InputError(str(file.path), f"the field {key} is {value}, of {count} tokens")
    return value


# ---------------------------------------------------------------- writing


def tokenizer_fields(tokenizer: Tokenizer | None, vocab_size: int) -> dict[str, Any]:
    """The fields from which llama.cpp makes the same tokenizer; spare rows of the embedding get names of no text.

    Errors: InputError naming the part that llama.cpp does not have.
    """
    if tokenizer is None:
        return {f"{PREFIX}.model": NONE[0]}
    spec = tokenizer.spec()
    if (kind := spec["model"]["type"]) != "BPE":
        raise _refused(f"a {kind} model", "byte-level and SentencePiece BPE are written to gguf; convert to hf instead")
    for part in ("continuing_subword_prefix", "end_of_word_suffix"):
        if spec["model"].get(part):
            raise _refused(f"{part} {spec['model'][part]!r}")
    for token in spec["added_tokens"]:
        for flag in ("lstrip", "rstrip", "single_word"):
            if token[flag] and not token["special"]:
                raise _refused(f"the added token {token['content']!r} with {flag}")
    byte_level = (spec["decoder"] or {}).get("type") == "ByteLevel"
    kind_fields = _byte_level(spec) if byte_level else _sentencepiece(spec, tokenizer)
    tokens, types = _tokens(spec, tokenizer, vocab_size, byte_level)
    if not byte_level:
        kind_fields[f"{PREFIX}.scores"] = _scores(spec["model"]["merges"], tokens, types)
    fields = kind_fields | {
        f"{PREFIX}.tokens": tokens,
        f"{PREFIX}.token_type": np.array(types, np.int32),
        f"{PREFIX}.add_bos_token": tokenizer.adds_bos,
        f"{PREFIX}.add_eos_token": False,
    }
    return fields | _special(tokenizer)


def _refused(what: str, hint: str = "convert to hf instead") -> InputError:
    return InputError("tokenizer", f"has {what}, and llama.cpp would cut text otherwise", hint)


def _special(tokenizer: Tokenizer) -> dict[str, Any]:
    if tokenizer.eos_id is None:
        raise InputError("tokenizer", "has no eos token, and llama.cpp would take some ordinary token for it")
    ids = {
        # Without one llama.cpp takes id 11 or 1 for bos, whatever that is. Whether text begins with it is said apart.
        "bos": tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id,
        "eos": tokenizer.eos_id,
        "pad": tokenizer.pad_id,
        "unk": None if tokenizer.unk_token is None else tokenizer.token_id(tokenizer.unk_token),
    }
    fields: dict[str, Any] = {f"{PREFIX}.{SPECIAL[role]}_token_id": id for role, id in ids.items() if id is not None}
    return fields | ({} if tokenizer.chat_template is None else {TEMPLATE: tokenizer.chat_template})


def _tokens(spec: dict[str, Any], tokenizer: Tokenizer, rows: int, byte_level: bool) -> tuple[list[str], list[int]]:
    """Name and type of each row of the embedding."""
    own = {token["id"] for token in spec["added_tokens"] if not token["special"]}
    unk = None if tokenizer.unk_token is None or byte_level else tokenizer.token_id(tokenizer.unk_token)
    tokens, types = [], []
    for id in range(rows):
        name = tokenizer.token(id)
        tokens.append(_spare(id) if name is None else name)
        if name is None:
            types.append(UNUSED)
        elif id == unk:
            types.append(UNKNOWN)
        elif id in tokenizer.special_ids:
            types.append(CONTROL)
        elif id in own:
            types.append(USER_DEFINED)
        else:
            types.append(BYTE if not byte_level and BYTE_PIECE.fullmatch(name) else NORMAL)
    return tokens, types


def _byte_level(spec: dict[str, Any]) -> dict[str, Any]:
    cut = _rules(spec["pre_tokenizer"])
    pre = next((pre for pre in PRE if _rules(json.loads(pre_tokenizer(pre).__getstate__())) == cut), None)
    if pre is None:
        raise _refused("a way to cut text into words", f"it knows by name: {', '.join(PRE)}; convert to hf instead")
    normalizer = spec["normalizer"]
    if normalizer is not None and (pre, normalizer) != ("qwen2", {"type": "NFC"}):
        raise _refused(f"the normalizer {normalizer['type']}")
    if bool(spec["model"].get("ignore_merges")) != (pre == "llama-bpe"):
        raise _refused(f"ignore_merges {spec['model'].get('ignore_merges')} with the splitting of {pre}")
    return {
        f"{PREFIX}.model": "gpt2",
        f"{PREFIX}.pre": pre,
        f"{PREFIX}.add_space_prefix": False,
        f"{PREFIX}.merges": [f"{left} {right}" for left, right in spec["model"]["merges"]],
    }


def _rules(part: Any) -> Any:
    """A pre-tokenizer's rules, without what only moves offsets."""
    if isinstance(part, list):
        return [_rules(item) for item in part]
    if isinstance(part, dict):
        return {key: _rules(value) for key, value in part.items() if key != "trim_offsets"}
    return part


def _sentencepiece(spec: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    if not spec["model"].get("byte_fallback"):
        raise _refused("a BPE that is neither on bytes nor falls back on them")
    bare = normalizers.Replace(" ", SPACE)
    known = {
        (_state(normalizers.Sequence([normalizers.Prepend(SPACE), bare])), "null"): True,
        (_state(normalizers.Sequence([bare])), "null"): False,
        (_state(bare), "null"): False,
    }
    for scheme, prefix in {"first": True, "always": True, "never": False}.items():
        cut = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False}
        known["null", json.dumps(cut, sort_keys=True)] = prefix
    rules = tuple(json.dumps(spec[part], sort_keys=True) for part in ("normalizer", "pre_tokenizer"))
    if rules not in known:
        raise _refused("a way to mark spaces that is not SentencePiece's")
    return {f"{PREFIX}.model": "llama", f"{PREFIX}.pre": "default", f"{PREFIX}.add_space_prefix": known[rules]}


def _state(normalizer: Any) -> str:
    return json.dumps(json.loads(normalizer.__getstate__()), sort_keys=True)


def _scores(merges: Sequence[Sequence[str]], tokens: list[str], types: list[int]) -> Any:
    """Scores that make SentencePiece join in the order of `merges`: the earlier a piece is made, the better."""
    made = dict.fromkeys(left + right for left, right in merges)
    rank = {piece: place for place, piece in enumerate(made)}
    scores = np.array([-float(rank.get(token, len(rank))) for token in tokens], np.float32)
    ranks = [rank[left + right] for left, right in merges]
    same = {(left, right) for left, right in merges} == set(merges_of_scores(tokens, scores.tolist(), types))
    if ranks != sorted(ranks) or not same:
        raise _refused("merges that no scores of pieces give")
    return scores
