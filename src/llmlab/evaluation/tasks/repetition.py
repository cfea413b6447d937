"""How a model goes on with open-ended text, and whether it falls to repeating itself, beside how people went on."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from llmlab.errors import InputError
from llmlab.evaluation import statistics
from llmlab.evaluation.openings import Opening, fitting, human_openings
from llmlab.evaluation.repetition import copied, distinct_parts, repetition, self_bleus
from llmlab.evaluation.statistics import Estimate
from llmlab.evaluation.tasks import base
from llmlab.evaluation.tasks.base import Result, Subject
from llmlab.inference.engine import generate
from llmlab.inference.loops import loop_in
from llmlab.inference.sampling import Sampling, never
from llmlab.runtime import derive

_TOGETHER = 16  # prompts decoded side by side


class Task(base.Task):
    """Greedy continuations of open-ended text (Holtzman et al. 2020): rep-4, share of texts that end in a loop,
    distinct-2, self-BLEU and what is copied from the prompt, each beside the same of the human continuation."""

    kind: Literal["repetition"] = "repetition"
    prompts: tuple[str, ...] = Field(
        (), description="what is gone on with; none: openings of the file, the held-out text, or else Moby-Dick"
    )
    texts: int = Field(24, gt=1, description="how many openings are taken of a text")
    prompt_tokens: int = Field(32, gt=0, description="length of an opening; at most a quarter of the context")
    new_tokens: int = Field(128, gt=3, description="length of a continuation, as far as the context holds it")
    ends: Literal["suppressed", "allowed"] = Field(
        "suppressed", description="whether a model may end its text before that; texts that end early repeat less"
    )

    def run(self, subject: Subject) -> list[Result]:
        prompt_tokens, new = fitting(subject.bundle.architecture.context, self.prompt_tokens, self.new_tokens)
        if new < 4:
            context = subject.bundle.architecture.context
            raise InputError(f"task {self.kind}", f"a context of {context} tokens holds no continuation of 4")
        if self.prompts:
            ids = [subject.tokenizer.prompt(prompt) for prompt in self.prompts[: self.limit]]
            asked, human = ids, None
        else:
            most = min(self.texts, self.limit or self.texts)
            found = human_openings(subject.tokenizer, subject.held_out, self.path, prompt_tokens, new, most)
            asked, human = [one.prompt for one in found], found
        said = self._said(subject, asked, new)
        return _results(said, asked, human, subject.seed)

    def _said(self, subject: Subject, prompts: Sequence[Sequence[int]], new: int) -> list[list[int]]:
        stops = subject.tokenizer.special_ids
        suppress = self.ends == "suppressed"
        sampling = Sampling(
            temperature=0,
            max_new_tokens=new,
            logit_bias=never(stops) if suppress else {},
        )
        said = []
        for start in range(0, len(prompts), _TOGETHER):
            group = prompts[start : start + _TOGETHER]
            done = generate(subject.bundle.model, group, sampling, () if suppress else stops, [0] * len(group))
            said += [[id for id in one.ids if suppress or id not in stops] for one in done]
        return said


def _results(
    said: list[list[int]], prompts: Sequence[Sequence[int]], human: Sequence[Opening] | None, seed: int
) -> list[Result]:
    theirs = None if human is None else [one.human for one in human]

    def beside(metric: str, ours: Sequence[float], other: Sequence[float] | None) -> dict[str, Any]:
        if other is None:
            return {}
        difference = statistics.paired_bootstrap(ours, other, derive(seed, "repetition", metric))
        told = {"human": float(np.mean(other)), "difference": difference.value}
        return told | {"difference_interval": difference.interval}

    results = []
    for metric, of in (
        ("rep_4", lambda texts: [repetition(ids) for ids in texts]),
        ("loops", lambda texts: [float(loop_in(ids) is not None) for ids in texts]),
        ("self_bleu", self_bleus),
        ("copied", lambda texts: [copied(ids, prompt) for ids, prompt in zip(texts, prompts, strict=True)]),
    ):
        items = of(said)
        value = statistics.wilson(round(sum(items)), len(items)) if metric == "loops" else statistics.mean(items)
        details = beside(metric, items, None if theirs is None else of(theirs))
        results.append(Result("repetition", metric, value, "lower", items, details=details))
    results.insert(2, _distinct(said, theirs, seed))
    return results


def _distinct(said: Sequence[list[int]], theirs: Sequence[list[int]] | None, seed: int) -> Result:
    """Bigrams of each text that none before it had, over all its bigrams."""
    new, all_ = distinct_parts(said, 2)
    purpose, details = derive(seed, "repetition", "distinct_2"), dict[str, Any]()
    if not sum(all_):
        return Result("repetition", "distinct_2", Estimate(0.0, 0.0, 1.0, len(said)), "higher", new)
    if theirs is not None:
        of, total = distinct_parts(theirs, 2)
        details["human"] = sum(of) / sum(total)
    return Result("repetition", "distinct_2", statistics.ratio(new, all_, purpose), "higher", new, all_, details)
