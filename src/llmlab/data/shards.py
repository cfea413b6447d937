"""Token shards: a corpus as memory-mapped arrays of ids, written once and read at random.

Each document ends with the eos token and lies in one shard. Beside `tokens-N.bin` (uint16 or uint32, by vocabulary)
lies `ends-N.bin` (int64, where in the shard each document ends); `index.json` holds counts, sha256 of every file,
and which vocabulary the ids belong to. All numbers are little-endian.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from llmlab.errors import InputError
from llmlab.runtime import atomic_folder, file_hash
from llmlab.tokenization.tokenizer import Tokenizer

Array = npt.NDArray[Any]
Int64 = npt.NDArray[np.int64]

SHARD_TOKENS = 1 << 24
TOGETHER = 256  # documents encoded at a time


class Corpus(Protocol):
    """Documents end to end: `starts` int64 [documents + 1] says where each begins, `take` gives the ids anywhere."""

    starts: Int64
    tokens: int
    documents: int
    text_bytes: int
    begin_id: int
    end_id: int
    fingerprint: str

    def take(self, at: Int64) -> Int64: ...


class Documents:
    """A `Corpus` in memory, of documents that end with eos each; `text_bytes` of UTF-8 they stand for."""

    def __init__(self, documents: Sequence[Any], text_bytes: int, begin_id: int, end_id: int) -> None:
        rows = [np.asarray(ids, np.int64) for ids in documents]
        self.starts: Int64 = np.cumsum([0, *map(len, rows)])
        self._ids = np.concatenate([np.empty(0, np.int64), *rows])
        self.tokens, self.documents, self.text_bytes = len(self._ids), len(rows), text_bytes
        self.begin_id, self.end_id = begin_id, end_id
        self.fingerprint = hashlib.sha256(self._ids.tobytes() + self.starts.tobytes()).hexdigest()

    def take(self, at: Int64) -> Int64:
        return np.asarray(self._ids[at], np.int64)


def vocabulary_hash(tokenizer: Tokenizer) -> str:
    """Of every token's name by id, and of which of them begin and end a text."""
    names = [tokenizer.token(id) for id in range(tokenizer.vocab_size)]
    return hashlib.sha256(json.dumps([names, tokenizer.bos_id, tokenizer.eos_id]).encode()).hexdigest()


def write_shards(
    texts: Iterable[str], tokenizer: Tokenizer, folder: Path, shard_tokens: int = SHARD_TOKENS
) -> "TokenShards":
    """Encode `texts`, one document each, into `folder`, which is whole or unchanged afterwards.

    A shard is closed by the document that fills it to `shard_tokens`. Raises `InputError` without any text, or
    without an eos token to end a document.
    """
    end = tokenizer.eos_id
    if end is None:
        raise InputError("tokenizer", "has no eos token, which ends every document of a corpus")
    dtype = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"
    with atomic_folder(folder) as work:
        written = [
            _write(work, number, documents, sizes, dtype)
            for number, (documents, sizes) in enumerate(_shards(texts, tokenizer, end, dtype, shard_tokens))
        ]
        if not written:
            raise InputError("corpus", "holds no document")
        index = {
            "layout": 1,
            "dtype": dtype,
            "vocab_size": tokenizer.vocab_size,
            "vocabulary": vocabulary_hash(tokenizer),
            "begin_id": end if tokenizer.bos_id is None else tokenizer.bos_id,
            "end_id": end,
            "shards": written,
        }
        (work / "index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return TokenShards(folder)


def _shards(
    texts: Iterable[str], tokenizer: Tokenizer, end: int, dtype: str, shard_tokens: int
) -> Iterator[tuple[list[Array], int]]:
    """The documents of one shard after the other, with the UTF-8 bytes of their texts."""
    documents, tokens, size = list[Array](), 0, 0
    filled = (text for text in texts if text)
    while group := list(islice(filled, TOGETHER)):
        for text, ids in zip(group, tokenizer.encode_batch(group), strict=True):
            documents.append(np.asarray([*ids, end], dtype))
            tokens += len(ids) + 1
            size += len(text.encode())
            if tokens >= shard_tokens:
                yield documents, size
                documents, tokens, size = [], 0, 0
    if documents:
        yield documents, size


def _write(work: Path, number: int, documents: list[Array], text_bytes: int, dtype: str) -> dict[str, Any]:
    """One shard's two files; its entry in the index."""
    arrays = {
        "tokens": np.concatenate(documents).astype(dtype, copy=False),
        "ends": np.cumsum([len(document) for document in documents]).astype("<i8"),
    }
    for name, array in arrays.items():
        # Not array.tofile, which says of a full disk only how many items it wrote.
        (work / f"{name}-{number:05}.bin").write_bytes(array.data)
    hashes = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()}
    return {
        "tokens": len(arrays["tokens"]),
        "documents": len(documents),
        "text_bytes": text_bytes,
        "sha256": hashes,
    }


class TokenShards:
    """A written corpus. Ids stay on disk until they are taken; where each document lies is held in memory.

    `tokens` counts eos too; `starts` is int64 [documents + 1], the last being `tokens`. `begin_id` is what a
    document's first token is predicted from: bos, or eos where the tokenizer has no bos. Raises `InputError` where a
    file is missing, cut, or not the one that was written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = _index(folder)
        try:
            self.vocab_size, self.vocabulary = int(index["vocab_size"]), str(index["vocabulary"])
            self.begin_id, self.end_id = int(index["begin_id"]), int(index["end_id"])
            shards = list(enumerate(index["shards"]))
            self._ids = [_open(folder, "tokens", n, index["dtype"], entry["tokens"], entry) for n, entry in shards]
            ends = [_open(folder, "ends", n, "<i8", entry["documents"], entry) for n, entry in shards]
            self.text_bytes = sum(int(entry["text_bytes"]) for _, entry in shards)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(str(folder / "index.json"), f"is no index of token shards: {error!r}") from None
        self._edges: Int64 = np.cumsum([0, *map(len, self._ids)])
        self.starts: Int64 = np.concatenate([[0], *(ends[n] + self._edges[n] for n in range(len(ends)))])
        if (np.diff(self.starts) < 1).any() or self.starts[-1] != self._edges[-1]:
            raise InputError(str(folder), "its documents do not cover its tokens")
        self.tokens, self.documents = int(self.starts[-1]), len(self.starts) - 1
        self.fingerprint = hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()

    def take(self, at: Int64) -> Int64:
        """The ids at these places of the whole corpus, in the shape of `at`."""
        if at.size and not 0 <= int(at.min()) <= int(at.max()) < self.tokens:
            raise IndexError(f"places {at.min()} to {at.max()} of a corpus of {self.tokens} tokens")
        if len(self._ids) == 1:
            return self._ids[0][at].astype(np.int64)
        out = np.empty(at.shape, np.int64)
        shard = np.searchsorted(self._edges, at, side="right") - 1
        for n in np.unique(shard):
            here = shard == n
            out[here] = self._ids[n][at[here] - self._edges[n]]
        return out

    def document(self, number: int) -> Int64:
        """The ids of one document, eos last."""
        return self.take(np.arange(self.starts[number], self.starts[number + 1]))

    def require(self, tokenizer: Tokenizer | None = None, vocab_size: int | None = None) -> None:
        """Raises `InputError` unless the ids belong to this tokenizer, and to a model of so many embeddings."""
        if tokenizer is not None and vocabulary_hash(tokenizer) != self.vocabulary:
            problem = f"was encoded by another tokenizer, of {self.vocab_size} ids; this one has {tokenizer.vocab_size}"
            raise InputError(str(self.folder), problem, "encode the text again with the model's own tokenizer")
        if vocab_size is not None and vocab_size < self.vocab_size:
            problem = f"holds ids up to {self.vocab_size - 1}, the model has {vocab_size} embeddings"
            raise InputError(str(self.folder), problem, "tokenizer and model must have the same vocabulary")


def _index(folder: Path) -> dict[str, Any]:
    path = folder / "index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(str(folder), "holds no token shards", "index.json is missing") from None
    except ValueError as error:
        raise InputError(str(path), f"is not JSON: {error}") from None
    if not isinstance(index, dict) or index.get("layout") != 1 or index.get("dtype") not in ("<u2", "<u4"):
        raise InputError(str(path), "is no index of token shards that this version reads")
    if not index.get("shards"):
        raise InputError(str(path), "names no shard")
    return index


def _open(folder: Path, name: str, number: int, dtype: str, length: int, entry: dict[str, Any]) -> Array:
    """Map one file, after its size and its hash were checked."""
    path = folder / f"{name}-{number:05}.bin"
    wanted = int(length) * np.dtype(dtype).itemsize
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        raise InputError(str(path), "is missing", "encode the text again") from None
    if found != wanted:
        raise InputError(str(path), f"has {found} bytes, its index says {wanted}", "encode the text again")
    if file_hash(path) != entry["sha256"][name]:
        raise InputError(str(path), "is not the file that was written: its sha256 differs", "encode the text again")
    return np.memmap(path, dtype, mode="r")
