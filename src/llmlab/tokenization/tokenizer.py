"""One tokenizer for everything: Hugging Face `tokenizers` underneath, special tokens never made from text."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from llmlab.errors import InputError
from llmlab.runtime import atomic_json, atomic_text
from llmlab.tokenization.folder import read_folder
from llmlab.tokenization.frame import Frame
from llmlab.tokenization.pieces import SPACE, Pieces, bpe_backend, sentencepiece_backend
from llmlab.tokenization.variants import never_special, no_prefix
from llmlab.tokenization.wordpiece import from_phantom_spaces, wordpiece_backend

# What stands before a piece of text: nothing, a special token, or other text. Tokenizers of the SentencePiece kind
# put a space before text that stands alone and none before text that goes on.
After = Literal["start", "special", "text"]

# A tokenizer whose ids keep every text gives each of these back: spaces, case, accents, composed and compatibility
# characters, what no vocabulary holds. (U+2581, SentencePiece's own mark of a space, is not asked for.)
PROBES = (
    "  A b\n\n\tC ",
    "it 's . , don't !",
    "\u00c9\u00e9 e\u0301 \ufb01 \uff21 \u2126 \u1e9b",
    "\u9cb8\u9c7c \U0001f469\u200d\U0001f467 \ue000\x07\u2028",
)

# Characters from which on a text is encoded in a call that lets Python's other threads run: a megabyte in the plain
# call would stop a server for a second or two.
LONG = 10_000


class Tokenizer:
    """Text to ids and back.

    `encode` adds no special token and makes none from the text, whatever is written there (but for `unk`, where the
    vocabulary lacks a character); `scaffold` recognises them and is for templates only, `pair` frames one or two texts
    for an encoder. `bos_id`, `eos_id`, `pad_id`, `cls_id`, `sep_id`, `mask_id` are ids or None; `pad_id` is None where
    a file gives the pad token the same id as eos, since a mask by id would then hide eos too.
    """

    def __init__(
        self,
        backend: Backend,
        bos: str | None = None,
        eos: str | None = None,
        pad: str | None = None,
        unk: str | None = None,
        chat_template: str | None = None,
        cls: str | None = None,
        sep: str | None = None,
        mask: str | None = None,
    ) -> None:
        roles = {"bos": bos, "eos": eos, "pad": pad, "cls": cls, "sep": sep, "mask": mask}
        for role, token in roles.items():
            if token is not None and backend.token_to_id(token) is None:
                raise InputError("tokenizer", f"the {role} token {token!r} is not in the vocabulary")
        ids = {token: backend.token_to_id(token) for token in roles.values() if token is not None}
        added = backend.get_added_tokens_decoder()
        plain = [token for token, id in ids.items() if id not in added or not added[id].special]
        if plain:  # tokens with such a role are special, whatever the file says
            backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in plain])
        backend.no_truncation()  # a limit stored in a file would cut text in silence
        backend.no_padding()
        if getattr(backend.model, "dropout", None):
            backend.model.dropout = None
        self._marking = backend
        self.bos_token, self.eos_token, self.unk_token = bos, eos, unk
        self.cls_token, self.sep_token, self.mask_token = cls, sep, mask
        of_role: dict[str, int | None] = {role: ids.get(token) for role, token in roles.items() if token is not None}
        self.bos_id, self.eos_id, pad_id = of_role.get("bos"), of_role.get("eos"), of_role.get("pad")
        self.cls_id, self.sep_id, self.mask_id = of_role.get("cls"), of_role.get("sep"), of_role.get("mask")
        self.pad_id: int | None = None if pad_id in (self.bos_id, self.eos_id) else pad_id
        self.pad_token = None if self.pad_id is None else pad
        self.chat_template = chat_template
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(id for id, token in added.items() if token.special)
        self.vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
        self._plain = never_special(backend, {added[id].content: id for id in self.special_ids}, unk)
        self._inside = no_prefix(self._plain)
        self._marking_inside = no_prefix(self._marking)
        self._after_special = self._prefixes_after_special()

    # ------------------------------------------------------------ text to ids

    def encode(self, text: str, after: After = "start") -> list[int]:
        """The ids of `text`, none of them special. `after`: what the text goes on from."""
        try:
            if len(text) > LONG:
                (found,) = self._content(after).encode_batch_fast([text], add_special_tokens=False)
                return list(found.ids)
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

    def pair(self, ids_a: Sequence[int], ids_b: Sequence[int] | None = None) -> tuple[list[int], list[int]]:
        """One text or two as an encoder reads them: `(ids, segments)` with the special tokens that the tokenizer's own
        files put around them (BERT: CLS a SEP b SEP, segments 0 and 1; XLNet: a SEP b SEP CLS, the last of segment 2).

        InputError for two texts where the files say nothing of two.
        """
        if ids_b is None:
            return self._frame_of_one.fill(ids_a)
        if not self._frame_of_two.special:
            raise InputError("tokenizer", "its files do not say how two texts are put together")
        return self._frame_of_two.fill(ids_a, ids_b)

    @cached_property
    def _frame_of_one(self) -> Frame:
        return Frame.of(self._marking, two=False)

    @cached_property
    def _frame_of_two(self) -> Frame:
        return Frame.of(self._marking, two=True)

    def _content(self, after: After) -> Backend:
        return self._plain if after == "start" or (after == "special" and self._after_special) else self._inside

    # ------------------------------------------------------------ ids to text

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """The text of `ids`. Bytes that are no UTF-8 become U+FFFD. If `lossless`: `decode(encode(text)) == text`."""
        return str(self._marking.decode(list(ids), skip_special_tokens=skip_special))

    def token_bytes(self, id: int) -> bytes:
        """The bytes that one id stands for; a special token's are its name. Unknown ids: InputError."""
        if not 0 <= id < self.vocab_size:
            raise InputError("token id", f"{id} is outside the vocabulary", f"0 to {self.vocab_size - 1}")
        if (known := self._added.get(id)) is not None:
            return known
        token = self._marking.id_to_token(id)
        return b"" if token is None else self._pieces.bytes_of(token)

    @cached_property
    def _pieces(self) -> Pieces:
        return Pieces.of(self._marking)

    @cached_property
    def _added(self) -> dict[int, bytes]:
        return {id: token.content.encode() for id, token in self._marking.get_added_tokens_decoder().items()}

    # ------------------------------------------------------------ what it knows

    def token_id(self, token: str) -> int | None:
        """The id of a token by name, None if there is none."""
        id = self._marking.token_to_id(token)
        return None if id is None else int(id)

    def token(self, id: int) -> str | None:
        """A token's name in the vocabulary (not its text: see `token_bytes`)."""
        return self._marking.id_to_token(id)

    def spec(self) -> dict[str, Any]:
        """The parts as tokenizer.json holds them, for formats that take a tokenizer apart."""
        parts: dict[str, Any] = json.loads(self._marking.to_str())
        return parts

    @cached_property
    def adds_bos(self) -> bool:
        """Whether raw text is to begin with bos, as the file's post-processor says."""
        return self.bos_id is not None and list(self._marking.encode("").ids[:1]) == [self.bos_id]

    @cached_property
    def lossless(self) -> bool:
        """Whether ids keep every text, so that `decode(encode(text)) == text`, or one that Unicode holds to be the same
        (Qwen2 composes characters). WordPiece does not, nor does a tokenizer that knows no bytes, or folds case,
        widths or spaces."""
        return all(_composed(self.decode(self.encode(text))) == _composed(text) for text in PROBES)

    def require_lossless(self, what: str) -> None:
        """InputError where ids do not keep the text, so that `what` would be a figure of another, easier text."""
        if not self.lossless:
            problem = f"its ids do not keep the text (case, spaces or unknown words are lost): no {what}"
            raise InputError("tokenizer", problem, "a bpe or unigram tokenizer keeps every byte")

    @cached_property
    def spells_space(self) -> bool:
        """Whether text at a start is spelt with a space that is not there, as SentencePiece and WordPiece do."""
        return self._pieces.kind == "wordpiece" or self.encode("a") != self.encode("a", "text")

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
        roles = {role: getattr(self, f"{role}_token") for role in ("bos", "eos", "pad", "unk", "cls", "sep", "mask")}
        return Tokenizer(backend, chat_template=self.chat_template, **roles)

    # ------------------------------------------------------------ files

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, as Hugging Face's fast tokenizers read them."""
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "pad_token": self.pad_token,
            "unk_token": self.unk_token,
            "cls_token": self.cls_token,
            "sep_token": self.sep_token,
            "mask_token": self.mask_token,
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
        """Read a folder of Hugging Face's: `tokenizer.json`, or else a SentencePiece model or BERT's `vocab.txt`."""
        parts = read_folder(folder)
        return Tokenizer(parts.backend, chat_template=parts.chat_template, **parts.names)

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
        return Tokenizer(backend, chat_template=chat_template, **_named(tokens, bos=bos, eos=eos, pad=pad, unk=unk))

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
        pieces = [token.replace(" ", SPACE) for token in tokens]
        control = {id for id in (bos, eos, pad) if id is not None}
        for id in control & set(range(len(pieces))):  # llama2.c pads these with line breaks
            pieces[id] = pieces[id].strip("\n")
        backend = sentencepiece_backend(pieces, scores, types, control, unk, bos if add_bos else None, add_space_prefix)
        return Tokenizer(backend, chat_template=chat_template, **_named(pieces, bos=bos, eos=eos, pad=pad, unk=unk))

    @staticmethod
    def from_wordpiece(
        tokens: Sequence[str],
        lowercase: bool | None = None,
        strip_accents: bool | None = None,
        cls: int | None = None,
        sep: int | None = None,
        pad: int | None = None,
        unk: int | None = None,
        mask: int | None = None,
        eos: int | None = None,
    ) -> Tokenizer:
        """BERT's WordPiece from GGUF's list, in which U+2581 begins a word and nothing marks what goes on.

        `lowercase` None: as the vocabulary itself is written; `strip_accents` None: as `lowercase`.
        """
        pieces = from_phantom_spaces(tokens)
        names = _named(pieces, cls=cls, sep=sep, pad=pad, unk=unk, mask=mask, eos=eos)
        backend = wordpiece_backend(pieces, names["unk"], names["cls"], names["sep"], lowercase, strip_accents)
        return Tokenizer(backend, **names)


def _named(tokens: Sequence[str], **ids: int | None) -> dict[str, str | None]:
    """The names of the tokens that have a role."""
    for role, id in ids.items():
        if id is not None and not 0 <= id < len(tokens):
            raise InputError("tokenizer", f"the {role} token has the id {id}, the vocabulary ends at {len(tokens) - 1}")
    return {role: None if id is None else tokens[id] for role, id in ids.items()}


# ---------------------------------------------------------------- text that is none


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _utf8(text: Any) -> bool:
    return isinstance(text, str) and not any("\ud800" <= character <= "\udfff" for character in text)


def _surrogate(text: Any) -> InputError:
    if not isinstance(text, str):
        return InputError("text", f"is a {type(text).__name__}, not text")
    at = next((at for at, character in enumerate(text) if "\ud800" <= character <= "\udfff"), 0)
    return InputError("text", f"character {at} is half of a surrogate pair, which is no Unicode text")
