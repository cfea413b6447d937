"""The same vocabulary read in other ways: special tokens taken for plain text, and no space put before the text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import models


def _variant(backend: Backend, normalizer: Any, pre_tokenizer: Any) -> Backend:
    """Another backend around the same model object, with these two parts instead."""
    other = Backend(backend.model)
    if normalizer is not None:
        other.normalizer = normalizer
    if pre_tokenizer is not None:
        other.pre_tokenizer = pre_tokenizer
    for _, token in sorted(backend.get_added_tokens_decoder().items()):
        other.add_special_tokens([token]) if token.special else other.add_tokens([token])
    other.encode_special_tokens = backend.encode_special_tokens
    return other


def never_special(backend: Backend, special: Mapping[str, int], unk: str | None) -> Backend:
    """The backend for content: it takes the names of special tokens for plain text. `unk` is what the model itself
    gives for what it does not know; only Unigram, which knows it by its id, can do so under another name.

    `encode_special_tokens` is enough for most. A model that holds such a name as an ordinary piece (Unigram, BPE with
    whole words first) would still find it, so there the names are replaced by ones that no text holds.
    """
    special = {name: id for name, id in special.items() if name != unk or isinstance(backend.model, models.Unigram)}
    plain = _variant(backend, backend.normalizer, backend.pre_tokenizer)
    plain.encode_special_tokens = True
    probes = [text for name in special for text in (name, f"a{name}")]
    found = plain.encode_batch_fast(probes, add_special_tokens=False)
    if all(id not in encoding.ids for encoding in found for id in special.values()):
        return plain
    names = {name: f"\U0010fffe{id}\U0010fffe" for name, id in special.items()}
    spec = json.loads(backend.to_str())
    model = spec["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(token, token): id for token, id in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(token, token), score] for token, score in model["vocab"]]
    if "merges" in model:
        model["merges"] = [m for m in model["merges"] if "".join(m) not in names and names.keys().isdisjoint(m)]
    for token in spec["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    plain = Backend.from_str(json.dumps(spec | {"post_processor": None}))
    plain.encode_special_tokens = True
    return plain


def no_prefix(backend: Backend) -> Backend:
    """The same backend putting no space before the text; the very same object where it puts none anyway."""

    def strip(part: Any) -> Any:
        match part and part["type"]:
            case "Sequence":
                key = "normalizers" if "normalizers" in part else "pretokenizers"
                if any(item["type"] == "WhitespaceSplit" for item in part[key]):
                    return part  # the mark is all that is left of any space: taken away, words would run together
                return part | {key: [kept for item in part[key] if (kept := strip(item)) is not None]}
            case "Prepend":
                return None
            case "Metaspace":
                return part | {"prepend_scheme": "never"}
            case "ByteLevel":
                return part | {"add_prefix_space": False}
        return part

    parts = {name: getattr(backend, name) for name in ("normalizer", "pre_tokenizer")}
    spec = {name: json.loads(part.__getstate__()) if part is not None else None for name, part in parts.items()}
    changed = {name: strip(part) for name, part in spec.items()}
    if changed == spec:
        return backend
    bare = json.loads(Backend(models.BPE()).to_str()) | changed
    built = Backend.from_str(json.dumps(bare))
    return _variant(backend, built.normalizer, built.pre_tokenizer)
