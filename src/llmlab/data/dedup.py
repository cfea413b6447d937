"""Exact duplicates: texts that are equal up to white space."""

import hashlib


def key(text: str) -> int:
    """64 bits of a hash of the text with white space runs as one space: equal for equal content, on any machine.

    At a million texts the chance that any two different ones share a key is below 1 in 30 million.
    """
    digest = hashlib.blake2b(" ".join(text.split()).encode(), digest_size=8, person=b"llmlab text")
    return int.from_bytes(digest.digest(), "big")


class Seen:
    """Remembers keys, not texts: memory grows with the number of documents, not with their length."""

    def __init__(self) -> None:
        self._keys: set[int] = set()

    def new(self, key: int) -> bool:
        """Whether this key was not asked for before."""
        before = len(self._keys)
        self._keys.add(key)
        return len(self._keys) > before
