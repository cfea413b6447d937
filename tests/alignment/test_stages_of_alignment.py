"""SFT, reward, DPO and PPO as stages on a tiny model: what they leave, what they report, and going on bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llmlab.adapters.base import hold
from llmlab.adapters.lora import LoRA
from llmlab.adapters.opening import open_policy
from llmlab.adapters.part import adapter_parameters
from llmlab.adapters.peft_format import load_peft, save_adapter
from llmlab.alignment.ppo import PPO, ppo, roles_of
from llmlab.alignment.preference import DPO, dpo
from llmlab.alignment.reward import Reward, reward
from llmlab.alignment.sft import SFT, sft
from llmlab.checkpoints.bundle import Bundle
from llmlab.checkpoints.native import save_model
from llmlab.data import tasks
from llmlab.errors import InputError, Stopped
from llmlab.language_model.opening import load
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture
from llmlab.recipe import parse
from llmlab.runtime import StopFlag
from llmlab.stages import Figures, Session
from llmlab.tokenization.train import BPE, train_tokenizer

STEPS = 5
FAST: dict[str, Any] = {
    "steps": STEPS,
    "optimizer": {"kind": "adamw", "lr": 0.01},
    "log_every": 1,
    "evaluate_every": 2,
    "checkpoint_every": 1,
}
TASKS = [{"kind": "tasks", "n": 60, "kinds": ["copy", "compare"]}]
SMALL: dict[str, Any] = {"batch_size": 6, "micro_batch": 4, "watched": 4, "training": FAST}
RL: dict[str, Any] = {
    "data": TASKS,
    "sampling": {"max_new_tokens": 4},
    "rolling": {"answers": 6, "epochs": 2, "minibatches": 2, "micro_batch": 4},
    "kl": {"kind": "adaptive", "beta": 0.1, "target": 0.5, "horizon": 30},
    "measured": 4,
    "training": FAST,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose `sft` holds whole weights and whose `reward` is trained on them."""
    root = tmp_path_factory.mktemp("run")
    texts = [f"{t.prompt} {t.say(True)}" for t in tasks.generate(0, 200)]
    tokenizer = train_tokenizer(BPE(vocab_size=300), iter(texts))
    architecture = parse(Architecture, {"layers": 1, "dim": 16, "context": 96, "initial_std": 0.1})
    save_model(root / "sft" / "model", architecture.build(tokenizer.vocab_size, 0), tokenizer)
    reward(parse(Reward, {"data": TASKS, **SMALL}), open_policy(root / "sft"), root / "reward", Session())
    return root


Stage = Callable[[Bundle, Path, Session], Figures]


def stages(run: Path) -> dict[str, Stage]:
    tuned = parse(SFT, {"data": TASKS, "max_new_tokens": 4, **SMALL})
    lora = parse(SFT, {"data": TASKS, "max_new_tokens": 4, "adapter": {"rank": 2, "dropout": 0.3}, **SMALL})
    judge = parse(Reward, {"data": TASKS, "adapter": {"rank": 2, "dropout": 0.3}, **SMALL})
    direct = parse(DPO, {"data": TASKS, **SMALL})
    whole = parse(DPO, {"data": TASKS, "adapter": None, **SMALL})
    few = {"adapter": "ptuning", "base_weights": "int8"}
    encoded = parse(SFT, {"data": TASKS, "max_new_tokens": 4, **few, **SMALL})
    frozen = parse(SFT, {"data": TASKS, "max_new_tokens": 4, "adapter": "freeze", **SMALL})
    narrow = parse(DPO, {"data": TASKS, "adapter": {"kind": "bottleneck", "dropout": 0.3}, **SMALL})
    rl = parse(PPO, RL)
    return {
        "sft-ptuning-int8": lambda base, out, session: sft(encoded, base, out, session),
        "sft-freeze": lambda base, out, session: sft(frozen, base, out, session),
        "dpo-bottleneck": lambda base, out, session: dpo(narrow, base, out, session),
        "sft": lambda base, out, session: sft(tuned, base, out, session),
        "sft-lora": lambda base, out, session: sft(lora, base, out, session),
        "reward": lambda base, out, session: reward(judge, base, out, session),
        "dpo": lambda base, out, session: dpo(direct, base, out, session),
        "dpo-whole": lambda base, out, session: dpo(whole, base, out, session),
        "ppo": lambda base, out, session: ppo(rl, base, run / "reward", out, session),
    }


class StopAfter(StopFlag):
    """Asks to stop at the n-th look: the loop looks once before each step."""

    def __init__(self, looks: int) -> None:
        self.left = looks

    @property
    def requested(self) -> bool:  # type: ignore[override]
        self.left -= 1
        return self.left < 0


RESUMED = ["sft", "sft-lora", "reward", "dpo", "dpo-whole", "ppo", "ppo bf16"]


@pytest.mark.parametrize("name", [*RESUMED, "sft-ptuning-int8", "sft-freeze", "dpo-bottleneck"])
def test_stopped_at_every_step_it_is_the_unbroken_run(run: Path, name: str) -> None:
    """Traps 36 to 40: files and figures of a stage stopped after each step equal those of one that ran through."""
    stage = stages(run)[name.split()[0]]
    session = Session(seed=3, dtype=torch.bfloat16 if "bf16" in name else None)
    whole = stage(open_policy(run / "sft"), run / f"{name}-whole", session)
    cut = run / f"{name}-cut"
    for _ in range(STEPS - 1):
        with pytest.raises(Stopped):
            stage(open_policy(run / "sft"), cut, replace(session, stop=StopAfter(1)))
    figures = stage(open_policy(run / "sft"), cut, session)
    assert figures.pop("resumed_from_step") == STEPS - 1
    assert whole.pop("resumed_from_step") == 0
    assert figures == whole
    for file in sorted(path for path in (run / f"{name}-whole").rglob("*.safetensors")):
        assert file.read_bytes() == (cut / file.relative_to(run / f"{name}-whole")).read_bytes(), file
    json.dumps(figures, allow_nan=False)


def test_sft_learns_answers_and_their_end(run: Path, tmp_path: Path) -> None:
    section = parse(SFT, {"data": TASKS, "max_new_tokens": 8, **SMALL, "training": FAST | {"steps": 30}})
    figures = sft(section, open_policy(run / "sft"), tmp_path / "out", Session())
    rows = [json.loads(line) for line in (tmp_path / "out" / "figures.jsonl").read_text().splitlines()]
    assert figures["held_out"]["held_out_loss"] < 0.8 * rows[0]["held_out_loss"]
    assert figures["held_out_exact_match"]["n"] == 4
    assert set(figures["held_out_exact_match"]["by_kind"]) <= {"copy", "compare"}
    assert figures["data"]["held_out"] + figures["data"]["rows"] == 60
    # Answers only: a third of the tokens of these chats at most.
    assert 0 < figures["learnt_tokens"] < 0.6 * figures["tokens"]
    assert open_policy(tmp_path / "out").tokenizer is not None


def test_lora_sft_leaves_the_base_and_opens_merged(run: Path, tmp_path: Path) -> None:
    base = open_policy(run / "sft")
    before = {name: p.clone() for name, p in base.model.state_dict().items()}
    ids = torch.arange(9)[None]
    section = parse(SFT, {"data": TASKS, "adapter": {"rank": 2}, "max_new_tokens": 4, **SMALL})
    sft(section, base, run / "lora", Session())
    after = base.model.state_dict()
    for name, weight in before.items():
        path, _, last = name.rpartition(".")
        assert torch.equal(after[name if name in after else f"{path}.base.{last}"], weight)
    opened = open_policy(run / "lora").model
    with torch.no_grad():
        assert torch.allclose(opened(ids), base.model(ids, role="sft"), atol=1e-4)
        assert not torch.allclose(opened(ids), base.model(ids), atol=1e-3)


def test_what_cannot_be_merged_is_opened_as_it_was_trained(run: Path, tmp_path: Path) -> None:
    """Virtual tokens over an int8 base: the folder opens to what the stage measured, and goes on from there."""
    settings = {"adapter": {"kind": "prefix", "tokens": 3}, "base_weights": "int8", "max_new_tokens": 4}
    base = open_policy(run / "sft")
    sft(parse(SFT, {"data": TASKS, **settings, **SMALL}), base, run / "prefix", Session())
    trained = hold(open_policy(run / "sft"), "int8").model
    load_peft(run / "prefix" / "adapter", trained, "a")
    opened, ids = open_policy(run / "prefix"), torch.arange(9)[None]
    with torch.no_grad():
        assert torch.allclose(opened.model(ids), trained(ids, role="a"), atol=1e-5)
        assert not torch.allclose(opened.model(ids), base.model(ids), atol=1e-3)
    assert "plain path" in load(run / "prefix", "auto").why
    with pytest.raises(InputError, match="keeps an adapter that is no weights"):
        sft(parse(SFT, {"data": TASKS, **SMALL}), open_policy(run / "prefix"), tmp_path / "whole", Session())
    on_top = parse(DPO, {"data": TASKS, "adapter": {"rank": 2}, **SMALL})
    dpo(on_top, open_policy(run / "prefix"), run / "on-top", Session())
    with torch.no_grad():
        assert open_policy(run / "on-top").model(ids).shape == (1, 9, opened.model.vocab_size)
    said = load(run / "on-top").generate("copy", max_new_tokens=3, temperature=0)
    assert said == load(run / "on-top").generate("copy", max_new_tokens=3, temperature=0)


@pytest.mark.parametrize("kind", ["dora", "prompt"])
def test_ppo_with_other_adapters_on_an_int8_base(run: Path, kind: str) -> None:
    """Sampler and scorer agree at the first step, so every role sees the same model in both."""
    few = {"adapter": kind, "base_weights": "int8"}
    judge = parse(Reward, {"data": TASKS, **few, **SMALL})
    reward(judge, open_policy(run / "sft"), run / f"reward-{kind}", Session())
    section = parse(PPO, RL | few | {"training": FAST | {"steps": 4}})
    ppo(section, open_policy(run / "sft"), run / f"reward-{kind}", run / f"ppo-{kind}", Session())
    first = json.loads((run / f"ppo-{kind}" / "figures.jsonl").read_text().splitlines()[0])
    assert first["clip_fraction"] == 0
    assert first["sampler_mismatch_max"] < 1e-4
    open_policy(run / f"ppo-{kind}")
    with pytest.raises(InputError, match=r"trained on a base in int8, the policy's is in fp32.*base_weights=int8"):
        ppo(parse(PPO, RL), open_policy(run / "sft"), run / f"reward-{kind}", run / "never", Session())


def test_codes_do_not_learn() -> None:
    for section in (SFT, DPO):
        for adapter in (None, "bitfit", "freeze"):
            with pytest.raises(InputError, match="base_weights int4: codes cannot learn"):
                parse(section, {"adapter": adapter, "base_weights": "int4"})
    for role in (Reward, PPO):
        with pytest.raises(InputError, match="bitfit trains the base itself"):
            parse(role, {"adapter": "bitfit"})


def test_the_reward_stage_reports_accuracy_with_interval_and_by_tag(run: Path, tmp_path: Path) -> None:
    section = parse(Reward, {"data": TASKS, **SMALL, "training": FAST | {"steps": 2}})
    figures = reward(section, open_policy(run / "sft"), tmp_path / "out", Session())
    accuracy = figures["held_out_accuracy"]
    low, high = accuracy["interval"]
    assert 0 <= low <= accuracy["value"] <= high <= 1
    assert sum(part["n"] for part in figures["by_tag"].values()) == accuracy["n"]
    assert set(figures["by_tag"]) == {"correct", "manner"}
    with pytest.raises(InputError, match="reward model, not a language model"):
        open_policy(tmp_path / "out")


def test_ppo_reports_before_and_after_and_leaves_an_adapter(run: Path) -> None:
    folder = run / "ppo-again"
    figures = ppo(parse(PPO, RL), open_policy(run / "sft"), run / "reward", folder, Session())
    for name in (
        "gold_reward",
        "gold_correct",
        "gold_manner",
        "proxy_reward",
        "repetition",
        "answer_tokens",
        "stopped",
    ):
        for part in ("before", "after", "change"):
            assert figures[f"{name}_{part}"]["n"] == 4
        gap = figures[f"{name}_after"]["value"] - figures[f"{name}_before"]["value"]
        assert figures[f"{name}_change"]["value"] == pytest.approx(gap, abs=1e-9)
    assert figures["kl_before"]["value"] == 0
    assert figures["rollouts"] == 2
    assert sum(figures["static_bytes"].values()) < sum(figures["separate_bytes"].values())
    rows = [json.loads(line) for line in (folder / "figures.jsonl").read_text().splitlines()]
    first = rows[0]
    assert first["clip_fraction"] == 0
    assert abs(first["kl_to_old"]) < 1e-6
    assert first["sampler_mismatch_max"] < 1e-4
    assert {"proxy_reward", "gold_reward", "kl", "kl_k3", "repetition", "answer_tokens", "value_explained"} <= set(
        first
    )
    opened = open_policy(folder).model
    assert opened(torch.arange(4)[None]).shape == (1, 4, opened.vocab_size)


def test_the_critic_starts_where_it_is_told_to(run: Path) -> None:
    ids = torch.arange(8)[None]
    for start in ("reward", "zero"):
        model = roles_of(parse(PPO, RL | {"critic_start": start}), open_policy(run / "sft"), run / "reward", Session())
        at = Places.causal(1, 8)
        scores, values = model.values("reward", ids, at), model.values("critic", ids, at)
        assert scores.any()
        assert torch.equal(values, scores) if start == "reward" else not values.any()
        assert torch.equal(model.hidden("policy", ids, at), model.hidden("reference", ids, at))
        assert all(not p.requires_grad for p in adapter_parameters(model.base, "reward").values())
        assert not model.head("reward").weight.requires_grad
        assert model.head("critic").weight.requires_grad


def test_a_reward_model_on_another_base_is_refused(run: Path, tmp_path: Path) -> None:
    base = open_policy(run / "sft")
    save_model(tmp_path / "other" / "model", base.model, base.tokenizer)
    with pytest.raises(InputError, match=r"is a reward model on .*sft, the policy starts from .*other"):
        ppo(parse(PPO, RL), open_policy(tmp_path / "other"), run / "reward", tmp_path / "ppo", Session())
    with pytest.raises(InputError, match=r"no such file|cannot be read"):
        ppo(parse(PPO, RL), base, tmp_path / "nowhere", tmp_path / "ppo", Session())
    assert not (tmp_path / "ppo").exists()


def test_a_plain_adapter_is_no_reward_model(run: Path, tmp_path: Path) -> None:
    from llmlab.adapters.part import add_adapter

    base = open_policy(run / "sft")
    add_adapter(base.model, "x", LoRA(rank=2), 0)
    save_adapter(run / "plain" / "adapter", base.model, "x", run / "sft")
    with pytest.raises(InputError, match="only reward models have a scalar head"):
        ppo(parse(PPO, RL), open_policy(run / "sft"), run / "plain", tmp_path / "ppo", Session())


@pytest.mark.parametrize(
    ("section", "values", "problem"),
    [
        (PPO, {"sampling": {"temperature": 0.7}}, r"sampling\.temperature.*would bend"),
        (PPO, {"rolling": {"answers": 2, "minibatches": 4}}, "2 answers do not make 4 minibatches"),
        (PPO, {"roles": {"policy": {"adapter": None}}}, "policy needs an adapter"),
        (PPO, {"kl": "adaptiv"}, "did you mean 'adaptive'"),
        (SFT, {"data": []}, "data"),
        (SFT, {"held_out": 0}, "held_out"),
        (DPO, {"beta": 0}, "beta"),
        (Reward, {"adapter": {"rank": 0}}, "rank"),
    ],
)
def test_impossible_settings(section: Any, values: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        parse(section, values)


def test_a_model_that_cannot_be_talked_to_is_refused(run: Path, tmp_path: Path) -> None:
    """Trap 32: no template, no prompts; never plain text in its place."""
    base = open_policy(run / "sft")
    mute = Bundle(base.model, None, base.architecture, base.origin)
    for name, stage in stages(run).items():
        with pytest.raises(InputError, match="has no tokenizer"):
            stage(mute, tmp_path / name, Session())
