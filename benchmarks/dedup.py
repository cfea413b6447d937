"""Documents a second through near-duplicate removal: ours against datasketch's MinHash LSH, on one core each.

The corpus is books cut into documents of web length, and of every fourth one a copy with up to 4 % of its words
replaced. Both read the same texts, cut them into runs of five words, and say which documents repeat an earlier one;
what a pair truly is, its sets of word runs say. Recall and precision of both are measured in the same run. Ours is
counted from texts to decision; so is datasketch's, whose texts are cut by a plain `split`, hashed by its own default
(SHA-1) and added to each MinHash in one call (`update_batch`). `datasketch_xxhash` gives it a faster hash.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from paired import measure, report

from llmlab.data import bundled
from llmlab.data.near import Near, earlier, shingles, signatures
from llmlab.data.rules.view import strings

SEED, ORIGINALS, WORDS, COPIES, EDITS = 0, 2000, (80, 600), 0.25, 0.04
TOGETHER = 512  # texts in a batch, as the text stage has them
SECTION = Near()


def corpus() -> list[str]:
    rng = random.Random(SEED)
    words = bundled.path("moby_dick").read_text(encoding="utf-8").split()
    vocabulary = sorted(set(words))
    texts = list[str]()
    for _ in range(ORIGINALS):
        at = rng.randrange(len(words) - WORDS[1])
        # Every word changed by chance of one in three: pieces that overlap in the book are other documents then.
        text = [rng.choice(vocabulary) if rng.random() < 0.33 else w for w in words[at : at + rng.randint(*WORDS)]]
        texts.append(" ".join(text))
        if rng.random() < COPIES:
            share = rng.uniform(0, EDITS)
            texts.append(" ".join(rng.choice(vocabulary) if rng.random() < share else word for word in text))
    rng.shuffle(texts)
    return texts


def by_ours(texts: list[str]) -> list[bool]:
    parts = [signatures(SECTION, texts[at : at + TOGETHER]) for at in range(0, len(texts), TOGETHER)]
    return list(earlier(SECTION, np.concatenate(parts)) >= 0)


def by_datasketch(texts: list[str], hashed: Callable[[bytes], int] | None = None) -> list[bool]:
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=SECTION.similarity, num_perm=SECTION.hashes)
    options = {"hashfunc": hashed} if hashed else {}
    found = []
    for number, text in enumerate(texts):
        words = "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()
        runs = {" ".join(words[at : at + SECTION.words]) for at in range(max(1, len(words) - SECTION.words + 1))}
        sketch: Any = MinHash(num_perm=SECTION.hashes, **options)
        sketch.update_batch([run.encode() for run in runs])
        found.append(bool(index.query(sketch)))
        index.insert(number, sketch)
    return found


def true_pairs(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """bool [texts]: which have an earlier document of the wanted similarity; which have none that is even close."""
    text, key = shingles(SECTION, strings(texts))
    order = np.argsort(key, kind="stable")
    shared: dict[tuple[int, int], int] = {}
    edges = np.flatnonzero(np.diff(key[order], prepend=~key[order[:1]]))
    for begin, end in zip(edges, [*edges[1:], len(order)], strict=True):
        group = sorted(set(text[order[begin:end]].tolist()))
        for at, one in enumerate(group):
            for other in group[at + 1 :]:
                shared[one, other] = shared.get((one, other), 0) + 1
    size = [len(set(key[text == number].tolist())) for number in range(len(texts))]
    best = np.zeros(len(texts))
    for (one, other), count in shared.items():
        best[other] = max(best[other], count / (size[one] + size[other] - count))
    return best >= SECTION.similarity, best < SECTION.similarity - 0.1


def quality(found: list[bool], near: np.ndarray, far: np.ndarray) -> dict[str, float]:
    said = np.asarray(found)
    return {"recall": float((said & near).sum() / near.sum()), "precision": float(1 - (said & far).sum() / said.sum())}


def rate(function: Callable[[], list[bool]], count: int) -> Callable[[], float]:
    def run() -> float:
        began = time.perf_counter()
        function()
        return count / (time.perf_counter() - began)

    return run


def _peers() -> Iterator[tuple[str, Callable[[bytes], int] | None]]:
    yield "dedup_over_datasketch", None
    try:
        from xxhash import xxh32_intdigest
    except ImportError:
        return
    yield "dedup_over_datasketch_xxhash", xxh32_intdigest


def main() -> None:
    torch.set_num_threads(1)
    texts = corpus()
    near, far = true_pairs(texts)
    claims, found = {}, {"ours": quality(by_ours(texts), near, far)}
    for claim, hashed in _peers():
        found[claim.removeprefix("dedup_over_")] = quality(by_datasketch(texts, hashed), near, far)
        claims[claim] = measure(
            rate(lambda: by_ours(texts), len(texts)),
            rate(lambda hashed=hashed: by_datasketch(texts, hashed), len(texts)),  # type: ignore[misc]
        )
    more = {"documents": len(texts), "near": int(near.sum()), "found": found}
    report("dedup", "documents/s", claims, ("numpy", "datasketch", "xxhash"), more)


if __name__ == "__main__":
    main()
