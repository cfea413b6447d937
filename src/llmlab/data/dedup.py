"""Exact duplicates: texts, or paragraphs, that are equal up to white space."""

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


class Paragraphs:
    """Takes out of each text the paragraphs that stood in an earlier one, or earlier in itself.

    Only those of `least` characters count: a short one ("* * *", a name, "Yes.") comes back without being a copy."""

    def __init__(self, least: int) -> None:
        self._least, self._seen = least, Seen()

    def fresh(self, text: str) -> str:
        """The text without them; empty where nothing is left."""
        parts = text.split("\n\n")
        kept = [part for part in parts if len(part) < self._least or self._seen.new(key(part))]
        return text if len(kept) == len(parts) else "\n\n".join(kept).strip("\n")
