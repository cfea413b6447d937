"""What a stage came to: answers to held-out prompts, judged, before against after on the same prompts and noise."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from llmlab.checkpoints.bundle import Bundle
from llmlab.data.heldout import is_held_out
from llmlab.data.prompts import EncodedPrompt
from llmlab.data.tasks import Task, exact, gold
from llmlab.errors import InputError
from llmlab.evaluation import statistics
from llmlab.evaluation.statistics import Estimate
from llmlab.evaluation.tasks.exercises import SHARE
from llmlab.inference.engine import Completion, Decoder, generate
from llmlab.inference.sampling import Sampling
from llmlab.inference.text import text_of
from llmlab.model.linear import Role
from llmlab.runtime import derive
from llmlab.stages import Figures
from llmlab.tokenization.chat import Renderer
from llmlab.tokenization.tokenizer import Tokenizer

X = TypeVar("X")

HELD_OUT = 0.1  # share of prompts that no stage learns from; equal in all stages, so that all hold out the same
SMALLEST = SHARE  # the evaluation asks these, whatever a stage holds out beside them
TOGETHER = 64  # answers decoded side by side


def renderer_of(bundle: Bundle) -> Renderer:
    """The renderer of a model that is to be talked to; text prompts without a template would be another language."""
    if bundle.tokenizer is None:
        raise InputError(bundle.origin, "has no tokenizer", "put tokenizer.json beside the weights")
    return Renderer(bundle.tokenizer)


def reference_to(bundle: Bundle) -> Path | str:
    """How an adapter names this model as its base: by its path, or by its name."""
    path = Path(bundle.origin)
    return path if path.exists() else bundle.origin


def spread(items: Sequence[X], limit: int) -> list[X]:
    """At most `limit` of the items, evenly from all of them."""
    count = min(limit, len(items))
    return [items[place * len(items) // count] for place in range(count)]


def held_out_tasks(tasks: Sequence[Task], share: float, seed: int) -> list[Task]:
    """Those of the exercises that a stage with this share and seed does not learn from."""
    return [task for task in tasks if is_held_out(task.prompt, share, seed)]


# ---------------------------------------------------------------- answers


def ask(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_ids: frozenset[int],
    seed: int,
    role: Role = None,
) -> list[Completion]:
    """An answer to each prompt; the noise of prompt i is that of (seed, i), whoever answers."""
    done: list[Completion] = []
    for start in range(0, len(prompts), TOGETHER):
        group = prompts[start : start + TOGETHER]
        seeds = [derive(seed, "ask", start + row) for row in range(len(group))]
        done += generate(model, group, sampling, stop_ids, seeds, role)
    return done


def exact_match(model: Decoder, renderer: Renderer, tasks: Sequence[Task], max_new_tokens: int) -> Figures:
    """Greedy answers to exercises: the share that is right to the letter, with Wilson's interval, and by kind."""
    rendered = [renderer.render([{"role": "user", "content": task.prompt}], reply=True).ids for task in tasks]
    done = ask(model, rendered, Sampling(temperature=0, max_new_tokens=max_new_tokens), renderer.stop_ids, 0)
    right = [exact(task, text_of(renderer.tokenizer, one.ids)) for task, one in zip(tasks, done, strict=True)]
    by_kind = {
        kind: sum(hits) / len(hits)
        for kind in sorted({task.kind for task in tasks})
        if (hits := [hit for hit, task in zip(right, tasks, strict=True) if task.kind == kind])
    }
    return {**told(statistics.wilson(sum(right), len(right))), "by_kind": by_kind}


class GoldJudge:
    """The program's opinion of answers to exercises; a prompt without an exercise has none. Only ever looked at."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, prompts: Sequence[EncodedPrompt], done: Sequence[Completion]) -> dict[str, list[float]]:
        known = [
            gold(task, text_of(self._tokenizer, one.ids))
            for prompt, one in zip(prompts, done, strict=True)
            if (task := prompt.prompt.task) is not None
        ]
        if not known:
            return {}
        return {
            "gold_reward": [one.score for one in known],
            "gold_correct": [one.correct for one in known],
            "gold_manner": [one.manner for one in known],
        }


# ---------------------------------------------------------------- figures


def told(estimate: Estimate) -> dict[str, Any]:
    """An estimate as figures are written."""
    return {"value": estimate.value, "interval": estimate.interval, "n": estimate.n}


def before_and_after(
    before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]], seed: int
) -> dict[str, Any]:
    """`NAME_before`, `NAME_after` and `NAME_change` of each measure that both have, one value a prompt: means with
    Student's interval, and the paired difference with a bootstrap interval, 95 % each."""
    figures: dict[str, Any] = {}
    for name in before:
        if name in after and len(before[name]) > 1:
            figures[f"{name}_before"] = told(statistics.mean(before[name]))
            figures[f"{name}_after"] = told(statistics.mean(after[name]))
            change = statistics.paired_bootstrap(after[name], before[name], derive(seed, "change", name))
            figures[f"{name}_change"] = told(change)
    return figures
