"""Learning the pieces of a Unigram tokenizer by expectation maximisation, the same from the same text (Kudo 2018).

Frequent substrings of the words are the first pieces. Each round counts how often the lattice of a word is expected to
take each piece (forward-backward), sets the probabilities to that (by the digamma of SentencePiece, which leaves rare
pieces to die), and throws out those whose uses cost least when spelt by other pieces. The trainer that comes with
`tokenizers` goes through words in the order of a hash that differs from process to process, so its pieces do too.

Left out of SentencePiece's trainer: the second-best cut of each piece is scored with its pieces as they are, not with
the probabilities they would have without it; characters beyond the coverage stay in the lattice and are never written.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

LONGEST = 16  # characters of a piece
CHUNK = 128  # characters of a word: longer ones (text without spaces) are cut
COVERAGE = 0.9995  # of all characters are pieces themselves; the others fall back on bytes
SEEDS = 16  # pieces to begin with for each that is asked for
SHRINK = 0.75  # of the pieces that a round keeps
EM_STEPS = 2  # a round


def learn_pieces(
    words: Mapping[str, int], size: int, required: str, banned: Collection[str] = ()
) -> list[tuple[str, float]]:
    """At most `size` pieces with natural log-probabilities, best first, from `words` and how often each stands there.

    Every character of `required` is among them, none of `banned`. `size` is at least `len(required)`. There are fewer
    where the words have no more substrings worth a piece.
    """
    chunks: dict[str, int] = {}
    for word, count in words.items():
        for at in range(0, len(word), CHUNK):
            chunks[word[at : at + CHUNK]] = chunks.get(word[at : at + CHUNK], 0) + count
    counts = np.array(list(chunks.values()), np.float64)
    grams = _grams(list(chunks), counts)
    single = np.array([len(gram) == 1 for gram in grams.names])
    letters = _covered(grams, single, size, required)
    room = size - len(letters)
    alive = single | _seeds(grams, single, room, letters, banned)

    longer = np.flatnonzero(alive & ~single)
    text = Lattice.of(grams, alive)
    names = [grams.names[piece] for piece in longer]
    again = _grams(list(chunks) + names, np.concatenate([counts, np.zeros(len(names))]))  # the same grams, in order
    spelling = Lattice.of(again, alive, since=len(chunks), proper=True)

    score = np.log(np.maximum(grams.counts, 0.5) / grams.counts[alive].sum())
    while True:
        for _ in range(EM_STEPS):
            expected = text.expected(score, counts)
            left = np.flatnonzero(alive & ~single)
            used = max(room, int((expected[left] >= 0.5).sum()))
            alive[left[np.argsort(-expected[left], kind="stable")[used:]]] = False
            seen = np.where(alive, np.maximum(expected, 0.5), 0.0)
            score = torch.digamma(torch.from_numpy(np.append(np.maximum(seen, 0.5), seen.sum()))).numpy()
            score = score[:-1] - score[-1]
            text = text.only(alive)
        left = np.flatnonzero(alive & ~single)
        if len(left) <= room:
            break
        spelling = spelling.only(alive)
        instead = np.full(len(score), -np.inf)
        instead[longer] = spelling.best(score)
        loss = expected[left] * (score[left] - instead[left])
        alive[left[np.argsort(-loss, kind="stable")[max(room, int(SHRINK * len(left))) :]]] = False
        text = text.only(alive)

    found = {grams.names[piece]: float(score[piece]) for piece in np.flatnonzero(alive)}
    worst = min(found.values())
    kept = {name: score for name, score in found.items() if len(name) > 1 or name in letters}
    kept |= {letter: worst for letter in letters if letter not in found}
    return sorted(kept.items(), key=lambda item: (-item[1], item[0]))


# ---------------------------------------------------------------- substrings


@dataclass(frozen=True)
class Grams:
    """Substrings of words that stand there twice or more, and every single character.

    `names`, `counts`: of each, shorter ones first. Occurrence k is of `gram[k]`, from character `start[k]` (of all
    words joined) on. `bounds`: where each word begins in the joined words, and where the last ends.
    """

    names: list[str]
    counts: Floats
    start: Ints
    gram: Ints
    bounds: Ints


def _grams(words: Sequence[str], counts: Floats) -> Grams:
    joined = "".join(words)
    codes = np.frombuffer(joined.encode("utf-32-le"), "<u4").astype(np.int64)
    lengths = np.array([len(word) for word in words])
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    word = np.repeat(np.arange(len(words)), lengths)
    left = bounds[word + 1] - np.arange(len(codes))  # characters from here to the word's end
    alphabet, letter = np.unique(codes, return_inverse=True)

    names = [chr(code) for code in alphabet]
    totals = [np.bincount(letter, counts[word], len(alphabet))]
    starts, grams = [np.arange(len(codes))], [letter]
    here = letter  # the gram of the last length that begins at each character, -1 where there is none
    for length in range(2, LONGEST + 1):
        at = np.flatnonzero((left >= length) & (here >= 0))
        at = at[here[at + 1] >= 0]
        if not len(at):
            break
        keys = here[at] * len(alphabet) + letter[at + length - 1]
        _, first, gram = np.unique(keys, return_index=True, return_inverse=True)
        total = np.bincount(gram, counts[word[at]], len(first))
        kept = total >= 2
        number = np.where(kept, len(names) + np.cumsum(kept) - 1, -1)
        names += [joined[begin : begin + length] for begin in at[first[kept]].tolist()]
        here = np.full(len(codes), -1)
        here[at] = number[gram]
        totals.append(total[kept])
        starts.append(at[here[at] >= 0])
        grams.append(here[starts[-1]])
    return Grams(names, np.concatenate(totals), np.concatenate(starts), np.concatenate(grams), bounds)


def _covered(grams: Grams, single: npt.NDArray[np.bool_], size: int, required: str) -> set[str]:
    """The characters that become pieces: those required, then the most frequent up to the coverage."""
    letters = set(required)
    order = sorted(np.flatnonzero(single).tolist(), key=lambda gram: (-grams.counts[gram], gram))
    total, seen = float(grams.counts[single].sum()), 0.0
    for gram in order:
        if seen >= COVERAGE * total or len(letters) >= size:
            break
        seen += grams.counts[gram]
        letters.add(grams.names[gram])
    return letters


def _seeds(
    grams: Grams, single: npt.NDArray[np.bool_], room: int, letters: set[str], banned: Collection[str]
) -> npt.NDArray[np.bool_]:
    """The longer pieces to begin with: those that cover most characters."""
    fit = [len(name) > 1 and name not in banned and letters.issuperset(name) for name in grams.names]
    worth = np.where(fit, grams.counts * [len(name) for name in grams.names], 0.0)
    chosen = np.argsort(-worth, kind="stable")[: SEEDS * room]
    seeds = np.zeros(len(single), bool)
    seeds[chosen] = worth[chosen] > 0
    return seeds


# ---------------------------------------------------------------- lattices


@dataclass(frozen=True)
class Sweep:
    """One direction through all lattices at once, edges sorted by how far along their target lies."""

    source: Ints
    target: Ints
    piece: Ints
    order: Ints  # of the edges in the lattice's own order
    depth: Ints

    @staticmethod
    def of(source: Ints, target: Ints, piece: Ints, depth: Ints) -> Sweep:
        order = np.lexsort((target, depth))
        return Sweep(source[order], target[order], piece[order], order, depth[order])

    def run(self, nodes: Floats, score: Floats, best: bool) -> None:
        """Fill `nodes` with the log of the summed (or the best) probability of all ways to each, from those at 0."""
        weight = score[self.piece]
        fresh = np.flatnonzero(np.diff(self.target, prepend=-1))  # where the edges of each target begin
        steps = np.flatnonzero(np.diff(self.depth[fresh], prepend=-1))
        for a, b in zip(steps, [*steps[1:], len(fresh)], strict=True):
            cuts = fresh[a:b]
            end = fresh[b] if b < len(fresh) else len(self.target)
            ways = nodes[self.source[cuts[0] : end]] + weight[cuts[0] : end]
            inner = cuts - cuts[0]
            top = np.maximum.reduceat(ways, inner)
            if not best:
                sizes = np.diff(inner, append=len(ways))
                top = top + np.log(np.add.reduceat(np.exp(ways - np.repeat(top, sizes)), inner))
            nodes[self.target[cuts]] = top


@dataclass(frozen=True)
class Lattice:
    """Every way to cut each of many words: nodes between characters, an edge for each place where a piece stands."""

    begin: Ints
    end: Ints
    piece: Ints
    word: Ints
    first: Ints  # node of each word, and one past the last of all
    nodes: int

    @staticmethod
    def of(grams: Grams, alive: npt.NDArray[np.bool_], since: int = 0, proper: bool = False) -> Lattice:
        """Of the words from number `since` on; `proper` leaves out edges that are a whole word."""
        lengths = np.array([len(name) for name in grams.names])[grams.gram]
        word = np.searchsorted(grams.bounds, grams.start, side="right") - 1
        keep = alive[grams.gram] & (word >= since)
        if proper:
            keep &= lengths < np.diff(grams.bounds)[word]
        begin = (grams.start + word)[keep] - grams.bounds[since] - since
        first = (grams.bounds + np.arange(len(grams.bounds)))[since:] - grams.bounds[since] - since
        return Lattice(begin, begin + lengths[keep], grams.gram[keep], word[keep] - since, first, int(first[-1]))

    def only(self, alive: npt.NDArray[np.bool_]) -> Lattice:
        """The edges of these pieces."""
        keep = alive[self.piece]
        return Lattice(self.begin[keep], self.end[keep], self.piece[keep], self.word[keep], self.first, self.nodes)

    def best(self, score: Floats) -> Floats:
        """The log-probability of each word's best cut. [words]."""
        return self._forward(score, best=True)[self.first[1:] - 1]

    def expected(self, score: Floats, counts: Floats) -> Floats:
        """How often each piece is expected in words that stand there `counts` times. [pieces]."""
        forward = self._forward(score, best=False)
        backward = np.full(self.nodes, -np.inf)
        backward[self.first[1:] - 1] = 0.0
        depth = self.first[1:][self.word] - 1 - self.begin
        Sweep.of(self.end, self.begin, self.piece, depth).run(backward, score, best=False)
        total = forward[self.first[1:] - 1]
        share = np.exp(forward[self.begin] + score[self.piece] + backward[self.end] - total[self.word])
        uses: Floats = np.bincount(self.piece, share * counts[self.word], len(score)).astype(np.float64)
        return uses

    def _forward(self, score: Floats, best: bool) -> Floats:
        nodes = np.full(self.nodes, -np.inf)
        nodes[self.first[:-1]] = 0.0
        depth = self.end - self.first[self.word]
        Sweep.of(self.begin, self.end, self.piece, depth).run(nodes, score, best)
        return nodes
