"""The held-out split: by content, near the share, neither side empty."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.data.split import held_out
from llmlab.errors import InputError

CORPORA = st.lists(st.tuples(st.integers(0, 2**64 - 1) | st.integers(0, 3), st.integers(1, 1000)), min_size=1)


@given(CORPORA, st.floats(0.01, 0.5), st.randoms())
def test_the_split_is_by_content(corpus: list[tuple[int, int]], share: float, random: object) -> None:
    sizes = dict(corpus)
    keys = [of for of, _ in corpus]
    if len(sizes) < 2:
        with pytest.raises(InputError, match="too short to hold anything out"):
            held_out(keys, [sizes[of] for of in keys], share)
        return
    out = held_out(keys, [sizes[of] for of in keys], share)
    assert out.any()
    assert not out.all()
    side = dict(zip(keys, out.tolist(), strict=True))
    assert [side[of] for of in keys] == out.tolist()  # equal texts on one side
    random.shuffle(keys)  # type: ignore[attr-defined]
    again = held_out(keys, [sizes[of] for of in keys], share)
    assert [side[of] for of in keys] == again.tolist()  # whatever the order


@given(st.integers(0, 2**32), st.floats(0.01, 0.5))
def test_the_share_is_kept_up_to_one_document(seed: int, share: float) -> None:
    random = np.random.default_rng(seed)
    keys, sizes = random.integers(0, 2**63, 200).tolist(), random.integers(1, 5000, 200)
    out = held_out(keys, sizes.tolist(), share)
    held = sizes[out].sum()
    assert share * sizes.sum() <= held < share * sizes.sum() + sizes.max()


def test_no_document_at_all() -> None:
    with pytest.raises(InputError, match="too short"):
        held_out([], [], 0.1)
