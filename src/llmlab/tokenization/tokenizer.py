"""One tokenizer for everything: Hugging Face `tokenizers` underneath, special tokens never made from text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, models
from tokenizers import Tokenizer as Backend

from llmlab.errors import InputError
from llmlab.runtime import atomic_json, atomic_text
from llmlab.tokenization.pieces import Pieces, bpe_backend, sentencepiece_backend

# What stands before a piece of text: nothing, a special token, or other text. Tokenizers of the SentencePiece kind
# put a space before text that stands alone and none before text that goes on.
After = Literal["start", "special", "text"]

FLAGS = ("lstrip", "rstrip", "normalized", "single_word", "special")  # of an added token, in files


class Tokenizer:
    """Text to ids and back.

    `encode` adds no special token and makes none from the text, whatever is written there; `scaffold` recognises
    them and is for templates only. `bos_id`, `eos_id`, `pad_id` are ids or None; `pad_id` is None where a file gives
    the pad token the same id as eos, since a mask by id would then hide eos too.
    """

    def __init__(
        self,
        backend: Backend,
        bos: str | None = None,
        eos: str | None = None,
        pad: str | None = None,
        unk: str | None = None,
        chat_template: str | None = None,
    ) -> None:
        for role, token in {"bos": bos, "eos": eos, "pad": pad}.items():
            if token is not None and backend.token_to_id(token) is None:
                raise InputError("tokenizer", f"the {role} token {token!r} is not in the vocabulary")
        ids = {token: backend.token_to_id(token) for token in (bos, eos, pad) if token is not None}
        added = backend.get_added_tokens_decoder()
        plain = [token for token, id in ids.items() if id not in added or not added[id].special]
        if plain:  # bos, eos and pad are special, whatever the file says
            backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in plain])
        backend.no_truncation()  # a limit stored in a file would cut text in silence
        backend.no_padding()
        if getattr(backend.model, "dropout", None):
            backend.model.dropout = None
        self._marking = backend
        self.bos_token, self.eos_token, self.unk_token = bos, eos, unk
        self.bos_id: int | None = ids[bos] if bos is not None else None
        self.eos_id: int | None = ids[eos] if eos is not None else None
        pad_id = ids[pad] if pad is not None else None
        self.pad_id: int | None = None if pad_id in (self.bos_id, self.eos_id) else pad_id
        self.pad_token = None if self.pad_id is None else pad
        self.chat_template = chat_template
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(id for id, token in added.items() if token.special)
        self.vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
        self._plain = _never_special(
            backend, {added[id].content: id for id in self.special_ids if added[id].content != unk}
        )
        self._inside = _no_prefix(self._plain)
        self._marking_inside = _no_prefix(self._marking)
        self._after_special = self._prefixes_after_special()

    # ------------------------------------------------------------ text to ids

    def encode(self, text: str, after: After = "start") -> list[int]:
        """The ids of `text`, none of them special. `after`: what the text goes on from."""
        try:
            return list(self._content(after).encode(text, add_special_tokens=False).ids)
        except TypeError:
            raise _surrogate(text) from None

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all threads."""
        try:
            return [list(e.ids) for e in self._plain.encode_batch_fast(list(texts), add_special_tokens=False)]
        except TypeError:
            raise next(
                (_surrogate(text) for text in texts if not _utf8(text)), InputError("text", "is no text")
            ) from None

    def scaffold(self, text: str, after: After = "start") -> list[int]:
        """The ids of a template's own text: special tokens are recognised. Never give it what a user wrote."""
        if after == "start" or (after == "special" and self._after_special):
            return list(self._marking.encode(text, add_special_tokens=False).ids)
        if not self._after_special:
            return list(self._marking_inside.encode(text, add_special_tokens=False).ids)
        cut = min((at for token in self._special_tokens if (at := text.find(token)) >= 0), default=len(text))
        return self.encode(text[:cut], "text") + list(self._marking.encode(text[cut:], add_special_tokens=False).ids)

    def prompt(self, text: str) -> list[int]:
        """`encode`, behind the bos token where this tokenizer's model expects one before raw text."""
        return [self.bos_id, *self.encode(text)] if self.adds_bos and self.bos_id is not None else self.encode(text)

    def _content(self, after: After) -> Backend:
        return self._plain if after == "start" or (after == "special" and self._after_special) else self._inside

    # ------------------------------------------------------------ ids to text

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """The text of `ids`. Bytes that are no UTF-8 become U+FFFD. Byte-level: `decode(encode(text)) == text`."""
        return str(self._marking.decode(list(ids), skip_special_tokens=skip_special))

    def token_bytes(self, id: int) -> bytes:
        """The bytes that one id stands for; a special token's are its name. Unknown ids: InputError."""
        if not 0 <= id < len(self._bytes):
            raise InputError("token id", f"{id} is outside the vocabulary", f"0 to {len(self._bytes) - 1}")
        return self._bytes[id]

    @cached_property
    def _bytes(self) -> list[bytes]:
        pieces = Pieces.of(self._marking)
        added = self._marking.get_added_tokens_decoder()
        table = [b""] * self.vocab_size
        for token, id in self._marking.get_vocab(with_added_tokens=True).items():
            table[id] = added[id].content.encode() if id in added else pieces.bytes_of(token)
        return table

    # ------------------------------------------------------------ what it knows

    def token_id(self, token: str) -> int | None:
        """The id of a token by name, None if there is none."""
        id = self._marking.token_to_id(token)
        return None if id is None else int(id)

    def token(self, id: int) -> str | None:
        """A token's name in the vocabulary (not its text: see `token_bytes`)."""
        return self._marking.id_to_token(id)

    @cached_property
    def adds_bos(self) -> bool:
        """Whether raw text is to begin with bos, as the file's post-processor says."""
        return self.bos_id is not None and list(self._marking.encode("").ids[:1]) == [self.bos_id]

    @cached_property
    def _special_tokens(self) -> list[str]:
        added = self._marking.get_added_tokens_decoder()
        return [added[id].content for id in sorted(self.special_ids)]

    def _prefixes_after_special(self) -> bool:
        """Whether text right behind a special token gets a space put before it, as text at the start does."""
        if not self.special_ids or self.encode("a") == list(self._inside.encode("a", add_special_tokens=False).ids):
            return False
        after = list(self._marking.encode(self._special_tokens[0] + "a", add_special_tokens=False).ids)
        return after[1:] == self.encode("a")

    def extended(self, tokens: Sequence[str]) -> Tokenizer:
        """The same tokenizer with those of these special tokens that it lacks, after its last id: text is cut as
        before."""
        backend = Backend.from_str(self._marking.to_str())
        missing = [token for token in tokens if self.token_id(token) is None]
        backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in missing])
        return Tokenizer(backend, self.bos_token, self.eos_token, self.pad_token, self.unk_token, self.chat_template)

    # ------------------------------------------------------------ files

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, as Hugging Face's fast tokenizers read them."""
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "pad_token": self.pad_token,
            "unk_token": self.unk_token,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 10**30,  # transformers' own way to say: the model knows, not the tokenizer
        }
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        atomic_text(folder / "tokenizer.json", self._marking.to_str(pretty=True) + "\n")
        atomic_json(
            folder / "tokenizer_config.json", {key: value for key, value in config.items() if value is not None}
        )

    @staticmethod
    def load(folder: Path) -> Tokenizer:
        """Read a folder that holds `tokenizer.json`, as we or Hugging Face write it."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            hint = "slow tokenizers (tokenizer.model) are not read: save the fast one from transformers"
            raise InputError(str(folder), "holds no tokenizer.json", hint if folder.is_dir() else "no such folder")
        backend = _backend(path)
        config = _json_file(folder / "tokenizer_config.json")
        special = _json_file(folder / "special_tokens_map.json") | config
        _add_missing(backend, folder, config)
        names = {role: _content(special.get(f"{role}_token")) for role in ("bos", "eos", "pad", "unk")}
        for role in ("bos", "pad", "unk"):  # a name that is in no table is a leftover; a missing eos is a defect
            name = names[role]
            if name is not None and backend.token_to_id(name) is None:
                names[role] = None
        template = _template(config.get("chat_template"))
        beside = folder / "chat_template.jinja"
        if beside.is_file():
            template = beside.read_text(encoding="utf-8")
        return Tokenizer(backend, chat_template=template, **names)

    # ------------------------------------------------------------ from the parts of a GGUF file

    @staticmethod
    def from_bpe(
        tokens: Sequence[str],
        merges: Sequence[str],
        pre: str = "default",
        types: Sequence[int] | None = None,
        bos: int | None = None,
        eos: int | None = None,
        pad: int | None = None,
        unk: int | None = None,
        chat_template: str | None = None,
        add_bos: bool = False,
    ) -> Tokenizer:
        """A byte-level BPE from GGUF's lists. `merges` are "left right", `pre` is llama.cpp's name of the splitting."""
        backend = bpe_backend(tokens, merges, pre, types, bos if add_bos else None)
        return _named(backend, tokens, bos, eos, pad, unk, chat_template)

    @staticmethod
    def from_sentencepiece(
        tokens: Sequence[str],
        scores: Sequence[float],
        types: Sequence[int] | None = None,
        bos: int | None = 1,
        eos: int | None = 2,
        pad: int | None = None,
        unk: int | None = 0,
        chat_template: str | None = None,
        add_bos: bool = True,
        add_space_prefix: bool = True,
    ) -> Tokenizer:
        """A SentencePiece BPE with byte fallback, from pieces and scores (GGUF's `llama`, llama2.c's files).

        Spaces in pieces may be written as such or as U+2581. Without `types` pieces like <0x0A> are taken for bytes
        and bos, eos and unk for control tokens.
        """
        pieces = [token.replace(" ", "\u2581") for token in tokens]
        control = {id for id in (bos, eos, pad) if id is not None}
        for id in control & set(range(len(pieces))):  # llama2.c pads these with line breaks
            pieces[id] = pieces[id].strip("\n")
        backend = sentencepiece_backend(pieces, scores, types, control, unk, bos if add_bos else None, add_space_prefix)
        return _named(backend, pieces, bos, eos, pad, unk, chat_template)


def _named(
    backend: Backend,
    tokens: Sequence[str],
    bos: int | None,
    eos: int | None,
    pad: int | None,
    unk: int | None,
    chat_template: str | None,
) -> Tokenizer:
    def name(role: str, id: int | None) -> str | None:
        if id is not None and not 0 <= id < len(tokens):
            raise InputError("tokenizer", f"the {role} token has the id {id}, the vocabulary ends at {len(tokens) - 1}")
        return None if id is None else tokens[id]

    return Tokenizer(backend, name("bos", bos), name("eos", eos), name("pad", pad), name("unk", unk), chat_template)


# ---------------------------------------------------------------- variants of a backend


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


def _never_special(backend: Backend, special: Mapping[str, int]) -> Backend:
    """The backend for content: it takes the names of special tokens for plain text.

    `encode_special_tokens` is enough for most. A model that holds such a name as an ordinary piece (Unigram, BPE with
    whole words first) would still find it, so there the names are replaced by ones that no text holds.
    """
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


def _no_prefix(backend: Backend) -> Backend:
    """The same backend putting no space before the text; the very same object where it puts none anyway."""

    def strip(part: Any) -> Any:
        match part and part["type"]:
            case "Sequence":
                key = "normalizers" if "normalizers" in part else "pretokenizers"
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


# ---------------------------------------------------------------- reading Hugging Face folders


def _backend(path: Path) -> Backend:
    try:
        return Backend.from_str(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise InputError(str(path), "is not UTF-8 text") from None
    except Exception as error:  # the library raises bare Exception
        raise InputError(str(path), f"is no tokenizer: {error}") from None


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


# ---------------------------------------------------------------- text that is none


def _utf8(text: Any) -> bool:
    return isinstance(text, str) and not any("\ud800" <= character <= "\udfff" for character in text)


def _surrogate(text: Any) -> InputError:
    if not isinstance(text, str):
        return InputError("text", f"is a {type(text).__name__}, not text")
    at = next((at for at, character in enumerate(text) if "\ud800" <= character <= "\udfff"), 0)
    return InputError("text", f"character {at} is half of a surrogate pair, which is no Unicode text")
