"""Every kind of adapter, each by the same questions: what it changes, what learns, what it costs, what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from llmlab.adapters.count import trained_bytes, trained_parameters
from llmlab.adapters.kinds import Adapter, RoleAdapter
from llmlab.adapters.merging import merge, settle, unmerge
from llmlab.adapters.part import AdapterPart, adapter_names, adapter_parameters, add_adapter, train_only
from llmlab.adapters.peft_format import load_peft, save_adapter
from llmlab.adapters.roles import Role, RoleModel, counted_bytes, static_bytes
from llmlab.checkpoints.native import plain_state
from llmlab.data.batch import Batch
from llmlab.errors import InputError, LlmlabError, Stopped
from llmlab.inference.engine import generate
from llmlab.inference.sampling import Sampling
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture, Transformer
from llmlab.objectives.language import NextToken
from llmlab.recipe import Section, parse
from llmlab.runtime import generator
from llmlab.stages import Session
from llmlab.training.loop import Training, train

VOCABULARY = 40
D, F, L, G, K, R = 32, 96, 2, 2, 8, 3  # width, feed-forward, layers, key heads, head width, rank
SMALL: dict[str, Any] = {"layers": L, "dim": D, "context": 32, "initial_std": 0.2}
SMALL |= {"attention": {"kind": "gqa", "heads": 4, "kv_heads": G}, "feedforward": {"kind": "swiglu", "width": F}}
BIASED: dict[str, Any] = {
    "norm": "layernorm",
    "attention": {"kind": "mha", "heads": 4, "bias": True},
    "feedforward": {"kind": "gelu", "bias": True, "width": F},
}


class Holding(Section):
    adapter: Adapter


class Sharing(Section):
    adapter: RoleAdapter


KINDS = [str(member.model_fields["kind"].default) for member in get_args(get_args(Adapter)[0])]
SETTINGS: list[dict[str, Any]] = [
    *({"kind": kind} for kind in KINDS),
    {"kind": "lora", "rank": R, "scaling": "root_rank", "targets": ["query", "down"]},
    {"kind": "dora", "rank": R, "targets": ["key", "up"]},
    {"kind": "prefix", "tokens": 5, "hidden": 6},
    {"kind": "prompt", "tokens": 5, "start": "normal"},
    {"kind": "bottleneck", "width": 4, "after": "pfeiffer", "activation": "relu"},
    {"kind": "freeze", "first": 2, "embedding": False},
]
APART = [one for one in SETTINGS if one["kind"] not in ("bitfit", "freeze")]
VIRTUAL = [one for one in APART if one["kind"] in ("prefix", "prompt", "ptuning")]
LINEAR = [one for one in APART if one not in VIRTUAL]
MERGED = [one for one in LINEAR if one["kind"] != "bottleneck"]


def name_of(settings: dict[str, Any]) -> str:
    return "-".join(str(value) for value in settings.values())


every = pytest.mark.parametrize("settings", SETTINGS, ids=name_of)
apart = pytest.mark.parametrize("settings", APART, ids=name_of)
virtual = pytest.mark.parametrize("settings", VIRTUAL, ids=name_of)
merged = pytest.mark.parametrize("settings", MERGED, ids=name_of)


def section_of(settings: dict[str, Any]) -> AdapterPart:
    return parse(Holding, {"adapter": settings}).adapter


def build(settings: dict[str, Any], seed: int = 0, **parts: Any) -> Transformer:
    """A base that goes with the kind: BitFit asks for biases."""
    more = BIASED if settings["kind"] == "bitfit" else {}
    return parse(Architecture, SMALL | more | parts).build(VOCABULARY, seed).eval()


def put(model: Transformer, settings: dict[str, Any], name: str = "a") -> Transformer:
    add_adapter(model, name, section_of(settings), seed=0)
    return model


@torch.no_grad()
def stir(model: Transformer, name: str = "a", seed: int = 1) -> Transformer:
    """Other numbers than the fresh ones, so that everything of it does something."""
    for key, parameter in adapter_parameters(model, name).items():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(seed, name, key)))
    return model


def ids_of(rows: int = 3, length: int = 7) -> Tensor:
    return torch.randint(VOCABULARY, (rows, length), generator=generator(0, "ids"))


def logits(model: Transformer, role: Any = None, ids: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return model(ids_of() if ids is None else ids, role=role)


# ---------------------------------------------------------------- what it changes


@every
def test_a_fresh_one_changes_nothing_but_virtual_tokens_which_are_text(settings: dict[str, Any]) -> None:
    before = logits(build(settings))
    model = put(build(settings), settings)
    assert torch.equal(logits(model), before)
    assert torch.equal(logits(model, "nobody"), before)
    assert torch.equal(logits(model, "a"), before) == (settings not in VIRTUAL)


@apart
def test_rows_of_several_roles_are_each_as_if_alone(settings: dict[str, Any]) -> None:
    model = stir(put(stir(put(build(settings), settings, "a"), "a"), settings, "b"), "b", 2)
    roles = ("b", None, "a", "a", "nobody", "b")
    ids = ids_of(len(roles))
    mixed = logits(model, roles, ids)
    for row, role in enumerate(roles):
        assert torch.allclose(mixed[row], logits(model, role, ids[row : row + 1])[0], atol=1e-5)
    assert not torch.allclose(logits(model, "a"), logits(model, "b"), atol=1e-3)
    with pytest.raises(ValueError, match="2 roles for 3 rows"):
        logits(model, ("a", "b"))


@apart
def test_cached_decoding_is_the_uncached_pass(settings: dict[str, Any]) -> None:
    """Trap 17: the cache holds the text alone; what an adapter brings is there in every step."""
    model = stir(put(build(settings), settings))
    prompts, roles = [[1, 2, 3], [4, 5], [6, 7, 8, 9]], ("a", None, "a")
    done = generate(model, prompts, Sampling(max_new_tokens=6), [], [7, 8, 9], role=roles)
    for prompt, role, completion in zip(prompts, roles, done, strict=True):
        said = torch.tensor([prompt + completion.ids])
        logprobs = logits(model, role, said).log_softmax(-1)[0, len(prompt) - 1 : -1]
        mine = logprobs.gather(-1, torch.tensor(completion.ids)[:, None])[:, 0]
        assert torch.allclose(mine, torch.tensor(completion.logprobs), atol=1e-4)


@apart
def test_packed_documents_are_each_as_if_alone(settings: dict[str, Any]) -> None:
    """Traps 15 and 16: each document sees what the adapter brings, and nothing of the other."""
    model = stir(put(build(settings), settings))
    ids, sizes = ids_of(1, 9), (4, 5)
    line = torch.cat([torch.arange(size) for size in sizes])[None]
    document = torch.tensor([[0] * sizes[0] + [1] * sizes[1]])
    with torch.no_grad():
        packed = model(ids, Places(line, line, document), role="a")
    alone = torch.cat([logits(model, "a", part) for part in ids.split(sizes, 1)], 1)
    assert torch.allclose(packed, alone, atol=1e-5)


@apart
def test_padding_on_either_side_changes_nothing(settings: dict[str, Any]) -> None:
    """Trap 14."""
    model = stir(put(build(settings), settings))
    ids, lengths = ids_of(2, 6), [4, 6]
    right = Places.of_lengths(lengths, 6)
    left = Places.of_lengths(lengths, 6, "left")
    moved = torch.stack([ids[0].roll(2), ids[1]])
    with torch.no_grad():
        a, b = model(ids, right, role="a"), model(moved, left, role="a")
    assert torch.allclose(a[0, :4], b[0, 2:], atol=1e-5)
    assert torch.allclose(a[0, :4], logits(model, "a", ids[:1, :4])[0], atol=1e-5)


@apart
def test_dropout_is_never_in_scoring(settings: dict[str, Any]) -> None:
    """Trap 30. The base is itself in training too, and scoring has no noise."""
    drops = "dropout" in type(section_of(settings)).model_fields
    base = logits(build(settings))
    model = stir(put(build(settings), settings | ({"dropout": 0.5} if drops else {}))).train()
    assert torch.equal(logits(model), base)
    assert torch.equal(logits(model, "a"), logits(model, "a")) != drops
    model.eval()
    assert torch.equal(logits(model, "a"), logits(model, "a"))


# ---------------------------------------------------------------- what learns, and what it costs


@every
def test_it_alone_learns_and_all_of_it(settings: dict[str, Any]) -> None:
    model = put(build(settings), settings)
    if settings in APART:
        stir(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.5)
    for _ in range(2):
        model(ids_of(), role="a").square().mean().backward()
        optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved <= learning
    # A key's bias moves all scores of a query alike, so nothing.
    assert all(name.endswith("key.bias") for name in learning - moved)
    if settings in APART:
        assert learning == {name for name in before if ".adapters.a." in name}


def formula(settings: dict[str, Any]) -> int:
    """The number of trained weights, by hand, over the small base."""
    linears = {"query": (D, D), "key": (D, G * K), "value": (D, G * K), "output": (D, D)}
    linears |= {"gate": (D, F), "up": (D, F), "down": (F, D)}
    chosen = settings.get("targets", list(linears))
    rank, tokens, width = settings.get("rank", 8), settings.get("tokens", 20), settings.get("width", 32)
    low_rank = L * sum(rank * sum(linears[name]) for name in chosen)
    block = sum(a * b for a, b in linears.values()) + 2 * D
    inner = settings.get("hidden")
    match settings["kind"]:
        case "lora":
            return low_rank
        case "dora":
            return low_rank + L * sum(linears[name][1] for name in chosen)
        case "ia3":
            return L * (2 * G * K + F)
        case "prefix" if inner is None:
            return tokens * 2 * L * G * K
        case "prefix":
            return tokens * G * K + inner * G * K + inner + 2 * L * G * K * (inner + 1)
        case "prompt":
            return tokens * D
        case "ptuning":
            inner = 128
            return tokens * D + (D + 1) * inner + (inner + 1) * inner + (inner + 1) * D
        case "bottleneck":
            return L * (1 if settings.get("after") == "pfeiffer" else 2) * (2 * D * width + width + D)
        case "bitfit":  # its base has mha, two linears in the feed-forward, LayerNorms
            return L * (4 * D + F + D + 2 * D) + D
        case "freeze":
            rest = (L - settings.get("first", 1)) * block + D
            return rest if settings.get("embedding", True) else rest + VOCABULARY * D
    raise AssertionError(settings)


@every
def test_the_count_before_is_the_count_after_and_the_formula(settings: dict[str, Any]) -> None:
    section, model = section_of(settings), put(build(settings), settings)
    built = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained_parameters(section, model.architecture, VOCABULARY) == built == formula(settings)
    assert trained_bytes(section, model.architecture, VOCABULARY) == 4 * built


@apart
def test_a_table_of_roles_counts_it(settings: dict[str, Any]) -> None:
    critic = Role(adapter="critic", head="scalar", trained=True)
    table = {"policy": Role(adapter="policy", trained=True), "critic": critic}
    section, base = section_of(settings), build(settings)
    told = static_bytes(base.architecture, VOCABULARY, table, dict.fromkeys(("policy", "critic"), section))
    model = RoleModel(base, table, section, seed=0)
    at = Places.causal(3, 7)
    (model.logits("policy", ids_of(), at).square().mean() + model.values("critic", ids_of(), at).sum()).backward()
    counted = counted_bytes(model)
    assert {cause: told[cause] for cause in ("base", "adapters", "heads")} == {
        cause: counted[cause] for cause in ("base", "adapters", "heads")
    }


# ---------------------------------------------------------------- files


@apart
@pytest.mark.parametrize("parts", [{}, {"position": "learned"}], ids=["rope", "learned"])
def test_what_is_saved_is_opened_with_the_same_logits(
    settings: dict[str, Any], parts: dict[str, Any], tmp_path: Path
) -> None:
    model = stir(put(build(settings, **parts), settings))
    save_adapter(tmp_path / "a", model, "a", base="base")
    fresh = build(settings, **parts)
    load_peft(tmp_path / "a", fresh, "b")
    assert torch.equal(logits(fresh, "b"), logits(model, "a"))
    save_adapter(tmp_path / "again", fresh, "b", base="base")
    written = (tmp_path / "a" / "adapter_model.safetensors").read_bytes()
    assert (tmp_path / "again" / "adapter_model.safetensors").read_bytes() == written
    with pytest.raises(InputError):
        load_peft(tmp_path / "a", build(settings, dim=64, **parts), "b")


@merged
@pytest.mark.parametrize("parts", [{}, BIASED], ids=["plain", "biased"])
def test_merged_and_out_again(settings: dict[str, Any], parts: dict[str, Any]) -> None:
    if parts and "up" in settings.get("targets", ()):
        settings = settings | {"targets": ["key", "down"]}
    model = stir(put(build(settings, **parts), settings))
    with torch.no_grad():  # biases of zero would hide what is done with them
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.add_(0.3)
    base, adapted = logits(model), logits(model, "a")
    plain = {name: p.detach().clone() for name, p in model.named_parameters() if ".adapters." not in name}
    done = merge(model, "a")
    assert done.difference < 1e-3
    assert adapter_names(model) == []
    assert torch.allclose(logits(model), adapted, atol=1e-4)
    plain_state(model)
    assert unmerge(model, done) < 1e-3
    assert torch.allclose(logits(model), base, atol=1e-4)
    assert torch.allclose(logits(model, "a"), adapted, atol=1e-4)
    for name, parameter in model.named_parameters():
        if name in plain:
            assert torch.allclose(parameter, plain[name], atol=1e-5)


def test_what_cannot_be_unmerged_is_put_back() -> None:
    """A factor of zero forgets the weight: the way back is refused, and the merged model stays what it was."""
    model = put(build({"kind": "ia3"}), {"kind": "ia3"})
    with torch.no_grad():
        adapter_parameters(model, "a")["blocks.0.attention.value.l"][0] = 0.0
    done = merge(model, "a")
    said = logits(model)
    with pytest.raises(LlmlabError, match="unmerging changes logits by nan"):
        unmerge(model, done)
    assert torch.equal(logits(model), said)
    assert adapter_names(model) == []


@pytest.mark.parametrize("settings", [one for one in APART if one not in MERGED], ids=name_of)
def test_what_no_weights_can_say_is_kept(settings: dict[str, Any]) -> None:
    model = stir(put(build(settings), settings))
    expected = logits(model, "a")
    with pytest.raises(InputError, match="is more than weights"):
        merge(model, "a")
    assert settle(model, "a") < 1e-4
    assert adapter_names(model) == []
    assert torch.allclose(logits(model), expected, atol=1e-5)
    assert torch.allclose(logits(model, "whoever"), expected, atol=1e-5)
    with pytest.raises(InputError, match="keeps an adapter that is no weights"):
        plain_state(model)


@pytest.mark.parametrize("below", [*VIRTUAL, {"kind": "bottleneck"}], ids=name_of)
@apart
def test_any_goes_on_top_of_what_is_kept(settings: dict[str, Any], below: dict[str, Any]) -> None:
    """A base that keeps an adapter is a base: it is the reference, and what is trained on it settles too."""
    model = stir(put(build(settings), below, "first"), "first")
    settle(model, "first")
    base = logits(model)
    stir(put(model, settings, "second"), "second", 2)
    assert torch.equal(logits(model), base)
    expected = logits(model, "second")
    assert not torch.allclose(expected, base, atol=1e-3)
    settle(model, "second")
    assert torch.allclose(logits(model), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"kind": "prefix"}, "its texts begin with virtual tokens"), ({"kind": "bottleneck"}, "keeps an adapter")],
)
def test_the_native_step_refuses_what_is_kept(settings: dict[str, Any], reason: str) -> None:
    from llmlab.inference.fast import unfit

    fits = {"dim": 64, "attention": {"kind": "mha", "heads": 2}, "feedforward": {"kind": "swiglu", "width": 128}}
    model = parse(Architecture, SMALL | fits).build(48, 0)
    assert unfit(model) is None
    settle(put(model, settings), "a")
    assert reason in str(unfit(model))


# ---------------------------------------------------------------- going on


class Rows:
    """Rows of random ids, five steps of them."""

    def __init__(self) -> None:
        self.taken = 0

    def next(self, model: Any) -> list[Batch]:
        ids = torch.randint(VOCABULARY, (2, 8), generator=generator(0, "rows", self.taken))
        self.taken += 1
        return [Batch(ids[:, :-1], ids[:, 1:], Places.causal(2, 7))]

    def state(self) -> Any:
        from llmlab.data.state import State

        return State({}, {"taken": self.taken})

    def load(self, state: Any) -> None:
        self.taken = int(state.values["taken"])


class Seen(nn.Module):
    def __init__(self, base: Transformer) -> None:
        super().__init__()
        self.base, self.architecture = base, base.architecture

    def hidden(self, ids: Tensor, at: Places, *rest: Any, **more: Any) -> Tensor:
        return self.base.hidden(ids, at, role="a")

    def logits(self, hidden: Tensor) -> Tensor:
        return self.base.logits(hidden)


@every
def test_stopped_and_resumed_it_is_the_unbroken_run(settings: dict[str, Any], tmp_path: Path) -> None:
    """Traps 38 to 40: bitwise, dropout on where there is one."""
    fields = type(section_of(settings)).model_fields
    noisy = settings | ({"dropout": 0.3} if "dropout" in fields else {})

    def run(out: Path, stop: bool) -> dict[str, Tensor]:
        model, session = put(build(settings), noisy), Session()
        rows = Rows()
        while True:
            session.stop.requested = stop and rows.taken > 1
            model, rows = put(build(settings), noisy), Rows()
            if stop:
                rows.next = _asking(rows.next, session, 2)  # type: ignore[method-assign]
            try:
                train(Seen(model), NextToken(), rows, Training(steps=4, log_every=2), out, session)
            except Stopped:
                stop = False
                session = Session()
                continue
            return {name: p.detach().clone() for name, p in model.named_parameters()}

    whole, cut = run(tmp_path / "whole", False), run(tmp_path / "cut", True)
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    fresh = dict(put(build(settings), noisy).named_parameters())
    assert any(not torch.equal(whole[name], fresh[name]) for name in whole)


def _asking(plain: Any, session: Session, after: int) -> Any:
    calls = [0]

    def ask(model: Any) -> list[Batch]:
        calls[0] += 1
        session.stop.requested = calls[0] == after
        found: list[Batch] = plain(model)
        return found

    return ask


# ---------------------------------------------------------------- recipes


def test_a_section_without_a_kind_is_lora_and_a_name_is_a_kind() -> None:
    assert section_of({"rank": 3}).kind == "lora"  # type: ignore[comparison-overlap]
    assert parse(Holding, {"adapter": "ia3"}).adapter.kind == "ia3"
    with pytest.raises(InputError, match=r"unknown kind 'dara'.*did you mean 'dora'"):
        parse(Holding, {"adapter": "dara"})
    with pytest.raises(InputError, match="no field 'tokens' here"):
        parse(Holding, {"adapter": {"kind": "lora", "tokens": 3}})


@every
def test_what_trains_the_base_is_no_role(settings: dict[str, Any]) -> None:
    if settings in APART:
        assert parse(Sharing, {"adapter": settings}).adapter == section_of(settings)
        return
    with pytest.raises(InputError, match=f"{settings['kind']} trains the base itself, which other roles share"):
        parse(Sharing, {"adapter": settings})


@virtual
@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ({"attention": "gru", "position": "none"}, "has no keys"),
        ({"encoder_layers": 1, "position": "t5"}, "with an encoder"),
        ({"streams": 2, "mask": "bidirectional"}, "second stream"),
        ({"mask": "bidirectional"}, "would see the text"),
    ],
)
def test_models_that_virtual_tokens_cannot_go_with_are_refused(
    settings: dict[str, Any], parts: dict[str, Any], problem: str
) -> None:
    if settings["kind"] == "prefix" and parts == {"mask": "bidirectional"}:
        base = build(settings, **parts)
        before = logits(base)
        assert not torch.allclose(logits(put(base, settings), "a"), before)
        return
    with pytest.raises(InputError, match=problem):
        put(build(settings, **parts), settings)


def test_a_model_without_biases_has_no_bitfit() -> None:
    with pytest.raises(InputError, match="no bias to train"):
        put(build({"kind": "lora"}), {"kind": "bitfit"})
    with pytest.raises(InputError, match="the model has 2"):
        put(build({"kind": "lora"}), {"kind": "freeze", "first": 3})


@virtual
def test_a_rolling_cache_is_refused(settings: dict[str, Any]) -> None:
    from llmlab.inference.caches import Rolling

    model = stir(put(build(settings), settings))
    with pytest.raises(InputError, match="rolling cache cannot go with virtual tokens"):
        generate(model, [[1, 2]], Sampling(max_new_tokens=3), [], [1], role="a", cache=Rolling(window=8, sinks=1))


@virtual
@pytest.mark.parametrize("position", ["none", "learned", "sinusoidal", "alibi", "t5", "shaw", "xl", "rope_interleaved"])
def test_virtual_tokens_before_every_encoding(settings: dict[str, Any], position: str) -> None:
    """Packed, padded or in pieces: every text of every encoding has them before it, through a window too."""
    attention = {"kind": "mha", "heads": 4, "window": 3}
    model = stir(put(build(settings, position=position, attention=attention), settings))
    ids = ids_of(1, 9)
    line = torch.cat([torch.arange(4), torch.arange(5)])[None]
    with torch.no_grad():
        packed = model(ids, Places(line, line, torch.tensor([[0] * 4 + [1] * 5])), role="a")
    alone = torch.cat([logits(model, "a", part) for part in ids.split((4, 5), 1)], 1)
    assert torch.allclose(packed, alone, atol=1e-5)
    assert not torch.allclose(alone[:, 3], logits(model, None, ids[:, :4])[:, 3], atol=1e-3)


def test_training_only_one_of_two() -> None:
    model = put(put(build({"kind": "lora"}), {"kind": "prompt"}, "a"), {"kind": "dora"}, "b")
    train_only(model, ["a"])
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"beginning.adapters.a.vectors"}
