"""Encoder-decoders through the engine, against transformers' own generate."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from llmlab.errors import InputError
from llmlab.families import mapping
from llmlab.inference import engine
from llmlab.inference.engine import generate, stream
from llmlab.inference.sampling import Sampling
from llmlab.model.transformer import Architecture, Transformer
from llmlab.recipe import parse

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers", reason="the reference implementation is a test dependency")

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15, 16], [30, 31]]
GREEDY = Sampling(temperature=0.0, max_new_tokens=12)


@pytest.fixture(scope="module", params=["relu", "gated-gelu"])
def pair(request: pytest.FixtureRequest) -> tuple[Any, Transformer]:
    """A tiny T5 of transformers, and ours with its weights."""
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=40, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, feed_forward_proj=request.param,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, initializer_factor=3.0,
    )  # fmt: skip
    theirs = transformers.T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in theirs.decoder.block.named_parameters():  # a tied head says its last token again,
            parameter.mul_(1.0 if "norm" in name else 3.0)  # where the blocks add little to it
    family = mapping.family("t5")
    architecture, vocab_size = family.read_config(config.to_dict())
    ours = architecture.build(vocab_size).eval()
    ours.load_state_dict(mapping.from_hf(family, ours, theirs.state_dict()))
    return theirs, ours


def expected(theirs: Any, prompts: list[list[int]], stop: int) -> list[list[int]]:
    width = max(map(len, prompts))
    ids = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in prompts])
    out = theirs.generate(ids, attention_mask=(ids > 0).long(), do_sample=False, max_new_tokens=12, eos_token_id=stop)
    rows = out[:, 1:].tolist()
    return [row[: row.index(stop) + 1] if stop in row else row for row in rows]


def test_greedy_answers_are_the_reference_s(pair: tuple[Any, Transformer]) -> None:
    """A ragged batch, whose rows end at different lengths, and each row alone."""
    theirs, ours = pair
    free = generate(ours, PROMPTS, GREEDY, (), [0] * 4)
    assert len({tuple(row.ids) for row in free}) > 1
    assert max(len(set(row.ids)) for row in free) > 3
    stop = free[0].ids[4]  # a token that is really said
    for stop_id in (stop, 39):
        said = expected(theirs, PROMPTS, stop_id)
        assert [row.ids for row in generate(ours, PROMPTS, GREEDY, (stop_id,), [0] * 4)] == said
        for prompt, row in zip(PROMPTS, said, strict=True):
            assert [token.id for token in stream(ours, prompt, GREEDY, (stop_id,), 0)] == row


def test_sampled_answers_do_not_depend_on_the_rows_beside(pair: tuple[Any, Transformer]) -> None:
    _, ours = pair
    warm = Sampling(max_new_tokens=8)
    together = generate(ours, PROMPTS, warm, (3,), [1, 2, 3, 4])
    alone = [
        generate(ours, [prompt], warm, (3,), [seed])[0] for prompt, seed in zip(PROMPTS, (1, 2, 3, 4), strict=True)
    ]
    assert [row.ids for row in together] == [row.ids for row in alone]


def test_the_encoder_reads_once_and_cross_keys_are_made_once(
    pair: tuple[Any, Transformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, ours = pair
    calls = {"encode": 0, "cross": 0}
    encode, cross = ours.encode, ours.blocks[0].cross.keys
    monkeypatch.setattr(ours, "encode", lambda *a, **k: calls.update(encode=calls["encode"] + 1) or encode(*a, **k))
    monkeypatch.setattr(ours.blocks[0].cross, "keys", lambda *a: calls.update(cross=calls["cross"] + 1) or cross(*a))
    generate(ours, PROMPTS, GREEDY, (), [0] * 4)
    assert calls == {"encode": 1, "cross": 1}


def test_what_cannot_answer_says_so(pair: tuple[Any, Transformer]) -> None:
    _, ours = pair
    with pytest.raises(InputError, match="prompt 2: is empty"):
        generate(ours, [[4], []], GREEDY, (), [0, 0])
    with pytest.raises(InputError, match="prompt: has 600 tokens, more than the context of 512"):
        generate(ours, [[4] * 600], GREEDY, (), [0])
    small = {"layers": 1, "dim": 16, "context": 16, "position": "t5"}
    unset = parse(Architecture, {**small, "encoder_layers": 1}).build(20)
    with pytest.raises(InputError, match=r"model\.start_id: is not set"):
        generate(unset, [[4]], GREEDY, (), [0])
    encoder = parse(Architecture, {**small, "mask": "bidirectional"}).build(20)
    with pytest.raises(InputError, match=r"bidirectional: fills blanks, does not continue"):
        generate(encoder, [[4]], GREEDY, (), [0])
    with pytest.raises(InputError, match="several roles"):
        generate(_Wrapped(ours), [[4]], GREEDY, (), [0])  # type: ignore[arg-type]
    assert engine.generate(ours, [], GREEDY, (), []) == []


class _Wrapped:
    """Something around a model, as roles have it."""

    def __init__(self, model: Transformer) -> None:
        self.architecture = model.architecture
