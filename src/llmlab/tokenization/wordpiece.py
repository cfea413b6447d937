"""WordPiece: the longest piece of a word first, as BERT cuts text (Schuster and Nakajima 2012; Devlin et al. 2018)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from llmlab.errors import InputError
from llmlab.tokenization.pieces import SPACE

MARK = "##"  # before a piece that goes on in a word
PAD, UNKNOWN, CLS, SEP, MASK = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_NAME = re.compile(r"\[.*\]", re.DOTALL)  # special and unused tokens; a bracket in text stands alone


def wordpiece_backend(
    pieces: Sequence[str],
    unk: str | None,
    cls: str | None,
    sep: str | None,
    lowercase: bool | None = None,
    strip_accents: bool | None = None,
    chinese: bool = True,
) -> Backend:
    """BERT's tokenizer of this vocabulary, which frames texts as CLS a SEP b SEP where it has both.

    `lowercase` None: unless a piece has a capital letter. `strip_accents` None: as `lowercase`. `chinese`: each
    ideograph is a word. InputError without a token for unknown words.
    """
    if unk is None or unk not in pieces:
        raise InputError("tokenizer", f"the vocabulary has no token {unk or UNKNOWN} for words it does not know")
    vocab = {piece: id for id, piece in enumerate(pieces)}
    lower = not any(_capital(piece) for piece in pieces) if lowercase is None else lowercase
    backend = Backend(models.WordPiece(vocab, unk_token=unk, max_input_chars_per_word=100))
    dress(backend, lower, strip_accents, chinese)
    marked = [token for token in (*SPECIAL, unk, cls, sep) if token in vocab]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in dict.fromkeys(marked)])
    if cls is not None and sep is not None:
        backend.post_processor = framing(cls, vocab[cls], sep, vocab[sep])
    return backend


def dress(backend: Backend, lowercase: bool, strip_accents: bool | None = None, chinese: bool = True) -> None:
    """Give a WordPiece model BERT's normalizer, pre-tokenizer and decoder."""
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese, strip_accents=strip_accents, lowercase=lowercase
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix=MARK, cleanup=False)


def framing(cls: str, cls_id: int, sep: str, sep_id: int) -> Any:
    """BERT's post-processor: CLS a SEP, CLS a SEP b SEP with the second text as segment 1."""
    return processors.TemplateProcessing(
        single=[f"{cls}:0", "$A:0", f"{sep}:0"],
        pair=[f"{cls}:0", "$A:0", f"{sep}:0", "$B:1", f"{sep}:1"],
        special_tokens=[(cls, cls_id), (sep, sep_id)],
    )


def from_phantom_spaces(tokens: Sequence[str]) -> list[str]:
    """GGUF's spelling turned back: there U+2581 begins a word, and what goes on in one has no mark."""
    return [
        token[1:] if token.startswith(SPACE) else token if _NAME.fullmatch(token) else MARK + token for token in tokens
    ]


def _capital(piece: str) -> bool:
    return not _NAME.fullmatch(piece) and any("A" <= letter <= "Z" for letter in piece)
