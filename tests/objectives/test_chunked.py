"""Cross entropy some positions at a time against all at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.objectives.chunked import LOGITS_BYTES, cross_entropy, positions_at_once
from llmlab.runtime import generator


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(2, 70), st.integers(0, 99))
def test_any_chunk_gives_the_same(positions: int, at_once: int, vocabulary: int, seed: int) -> None:
    draw = generator(seed, "chunked")
    hidden = torch.randn(positions, 8, generator=draw, dtype=torch.float64, requires_grad=True)
    head = torch.randn(vocabulary, 8, generator=draw, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(vocabulary, (positions,), generator=draw)
    logits = hidden @ head.t()
    wanted = F.cross_entropy(logits, targets, reduction="sum")
    (2.5 * wanted).backward()  # type: ignore[no-untyped-call]
    exact = [part.grad for part in (hidden, head)]
    hidden.grad = head.grad = None
    nats, hits = cross_entropy(hidden, head, targets, at_once, half=False)
    (2.5 * nats).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(nats.double(), wanted, rtol=1e-5, atol=1e-5)
    assert int(hits) == int((logits.argmax(-1) == targets).sum())
    for found, right in zip((hidden.grad, head.grad), exact, strict=True):
        assert found is not None
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("learns", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("half", [False, True])
def test_only_what_learns_has_a_gradient(learns: tuple[bool, bool], half: bool) -> None:
    draw = generator(0, "chunked")
    hidden, head = (
        torch.randn(n, 16, generator=draw).requires_grad_(want) for n, want in zip((30, 64), learns, strict=True)
    )
    targets = torch.randint(64, (30,), generator=draw)
    nats, _ = cross_entropy(hidden, head, targets, 16, half)
    nats.backward()  # type: ignore[no-untyped-call]
    exact = torch.autograd.grad(
        F.cross_entropy(hidden @ head.t(), targets, reduction="sum"), [p for p in (hidden, head) if p.requires_grad]
    )
    found = [p.grad for p in (hidden, head) if p.requires_grad]
    for one, other in zip(found, exact, strict=True):
        assert one is not None
        assert float((one - other).norm() / other.norm()) < (0.02 if half else 1e-5)
    assert [hidden.grad is not None, head.grad is not None] == [*learns]


@pytest.mark.parametrize("vocabulary", [10, 49_152, 10**6, 10**9])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_logits_at_once_fit(vocabulary: int, itemsize: int) -> None:
    count = positions_at_once(vocabulary, itemsize)
    assert count == 16 or count * vocabulary * itemsize <= LOGITS_BYTES


def test_no_logits_of_all_positions_are_ever_there() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            for one in out if isinstance(out, tuple | list) else [out]:
                if isinstance(one, torch.Tensor) and one.shape[-1:] == (500,):
                    self.seen = max(self.seen, one.shape[0] if one.ndim == 2 else 0)
            return out

    hidden, head = torch.randn(200, 8, requires_grad=True), torch.randn(500, 8, requires_grad=True)
    targets = torch.randint(500, (200,))
    with Largest() as mode:
        nats, _ = cross_entropy(hidden, head, targets, 32, False)
        nats.backward()  # type: ignore[no-untyped-call]
    assert mode.seen == 32
