"""The baselines: the n-gram model is a distribution and equal to a slow one written from the paper."""

from __future__ import annotations

import gzip
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.errors import InputError
from llmlab.evaluation.baselines import ByteNgram, baselines

TEXT = b"the whale and the sea and the ship, the whale again; and then the sea. " * 3 + "白鲸与海".encode()
SHORT = st.binary(max_size=40) | st.text("ab ", max_size=60).map(str.encode)


class Slow:
    """Interpolated modified Kneser-Ney with dictionaries, one byte at a time."""

    def __init__(self, text: bytes, order: int) -> None:
        self.order = min(order, len(text))
        self.counts: dict[int, dict[bytes, int]] = {}
        for n in range(1, self.order + 1):
            found: dict[bytes, int] = defaultdict(int)
            if n == self.order:
                for at in range(len(text) - n + 1):
                    found[text[at : at + n]] += 1
            else:
                for longer in {text[at : at + n + 1] for at in range(len(text) - n)}:
                    found[longer[1:]] += 1
            self.counts[n] = dict(found)

    def discount(self, n: int, count: int) -> float:
        of = [sum(c == k for c in self.counts[n].values()) for k in (1, 2, 3, 4)]
        if 0 not in of:
            y = of[0] / (of[0] + 2 * of[1])
            d = [1 - 2 * y * of[1] / of[0], 2 - 3 * y * of[2] / of[1], 3 - 4 * y * of[3] / of[2]]
            if min(d) > 0:
                return d[min(count, 3) - 1]
        return 0.5

    def p(self, context: bytes, byte: int) -> float:
        """Of `byte` after `context`, which is cut to the order."""
        context = context[max(0, len(context) - self.order + 1) :] if self.order else b""
        shorter = self.p(context[1:], byte) if context else 1 / 256
        n = len(context) + 1
        after = {gram[-1]: count for gram, count in self.counts.get(n, {}).items() if gram[:-1] == context}
        if not after:
            return shorter
        back = sum(self.discount(n, count) for count in after.values())
        kept = after[byte] - self.discount(n, after[byte]) if byte in after else 0.0
        return (kept + back * shorter) / sum(after.values())


@settings(deadline=None, max_examples=40)
@given(train=SHORT.filter(bool), text=SHORT, order=st.integers(1, 7))
def test_equal_to_the_slow_model(train: bytes, text: bytes, order: int) -> None:
    slow, fast = Slow(train, order), ByteNgram(train, order)
    expected = [slow.p(text[:at], text[at]) for at in range(len(text))]
    np.testing.assert_allclose(fast.probabilities(text), expected, rtol=1e-9)


@pytest.mark.parametrize("order", [1, 3, 6])
def test_equal_to_the_slow_model_with_fitted_discounts(order: int) -> None:
    slow, fast, text = Slow(TEXT, order), ByteNgram(TEXT, order), b"the white whale and a sea of ships"
    expected = [slow.p(text[:at], text[at]) for at in range(len(text))]
    np.testing.assert_allclose(fast.probabilities(text), expected, rtol=1e-9)


@settings(deadline=None, max_examples=20)
@given(train=SHORT.filter(bool) | st.just(TEXT), context=SHORT, order=st.integers(1, 7))
def test_probabilities_sum_to_one(train: bytes, context: bytes, order: int) -> None:
    fast = ByteNgram(train, order)
    each = [fast.probabilities(context + bytes([byte]))[-1] for byte in range(256)]
    assert math.fsum(each) == pytest.approx(1, abs=1e-9)
    assert min(each) > 0


def test_the_first_bytes_have_a_shorter_context() -> None:
    fast = ByteNgram(TEXT)
    text = b"the whale"
    np.testing.assert_array_equal(fast.probabilities(text)[:4], fast.probabilities(text[:4]))


def test_a_text_like_the_training_text_costs_less() -> None:
    fast = ByteNgram(TEXT)
    assert fast.bits_per_byte(b"and the sea and the whale") < 2 < 6 < fast.bits_per_byte(bytes(range(128, 200)))


def test_the_four_figures() -> None:
    train, held = TEXT * 4, TEXT
    found = baselines(train, held)
    assert list(found) == ["gzip", "xz", "xz_after_training_text", "byte_6gram"]
    assert found["gzip"] == 8 * len(gzip.compress(held, 9)) / len(held)
    assert found["xz_after_training_text"] < 0.2 < found["xz"]  # the held-out text stands in the training text
    assert found["byte_6gram"] == ByteNgram(train, 6).bits_per_byte(held)


def test_incompressible_bytes_cost_eight_bits() -> None:
    noise = np.random.default_rng(0).bytes(20_000)
    found = baselines(noise[:10_000], noise[10_000:])
    assert all(7.9 < bits < 8.6 for bits in found.values())


@pytest.mark.parametrize(("train", "held"), [(b"", b"a"), (b"a", b"")])
def test_an_empty_text_is_refused(train: bytes, held: bytes) -> None:
    with pytest.raises(InputError, match="text is empty"):
        baselines(train, held)


def test_moby_dick(shared: Path) -> None:
    """The order of the figures on a real book: more context costs less, and compressors lie above."""
    text = (shared / "moby_dick.txt").read_bytes()[:300_000]
    train, held = text[:280_000], text[280_000:]
    by_order = [ByteNgram(train, order).bits_per_byte(held) for order in (1, 2, 3, 4)]
    assert by_order == sorted(by_order, reverse=True)
    found = baselines(train, held)
    assert 2.2 < found["byte_6gram"] < min(by_order[-1], found["xz_after_training_text"])
    assert found["xz_after_training_text"] < found["xz"] < found["gzip"] < 4
