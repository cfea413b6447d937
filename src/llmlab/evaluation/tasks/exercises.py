"""The generated exercises that no stage trains on, judged by the program that knows their answers."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from llmlab.data.heldout import is_held_out
from llmlab.data.tasks import KINDS, Kind, Language, exact, generate, gold
from llmlab.data.tasks import Task as Exercise
from llmlab.evaluation import statistics
from llmlab.evaluation.asking import Asker, user
from llmlab.evaluation.tasks import base
from llmlab.evaluation.tasks.base import Result, Subject, proportion

# Whoever trains on exercises holds out at least this share of prompts, by the same hash: then these are among them.
SHARE = 0.05


def held_out_exercises(
    seed: int, count: int, kinds: Sequence[Kind] = KINDS, language: Language = "en"
) -> list[Exercise]:
    """The first `count` exercises whose prompts are held out under this seed."""
    asked = round(count / SHARE)
    while True:
        made = generate(seed, asked, kinds, language)
        found = [exercise for exercise in made if is_held_out(exercise.prompt, SHARE, seed)]
        if len(found) >= count:
            return found[:count]
        asked += round((count - len(found)) / SHARE) + 20


class Task(base.Task):
    """Exact match and gold reward of greedy answers to held-out exercises."""

    kind: Literal["exercises"] = "exercises"
    limit: int | None = Field(200, gt=0, description="how many exercises")
    kinds: tuple[Kind, ...] = Field(KINDS, min_length=1, description="which kinds of exercises")
    language: Language = Field("en", description="the language that they are in")
    max_new_tokens: int = Field(48, gt=0, description="longest answer in tokens")

    def run(self, subject: Subject) -> list[Result]:
        exercises = held_out_exercises(subject.seed, self.limit or 200, self.kinds, self.language)
        asked = [user(exercise.prompt) for exercise in exercises]
        answers = Asker(subject.bundle).answers(asked, self.max_new_tokens)
        right = [exact(exercise, answer.text) for exercise, answer in zip(exercises, answers, strict=True)]
        judged = [gold(exercise, answer.text) for exercise, answer in zip(exercises, answers, strict=True)]
        scores = [one.score for one in judged]
        by_kind = {
            kind: sum(hits) / len(hits)
            for kind in self.kinds
            if (hits := [hit for hit, one in zip(right, exercises, strict=True) if one.kind == kind])
        }
        return [
            proportion("exercises", "exact_match", right, by_kind=by_kind),
            Result("exercises", "gold_reward", statistics.mean(scores), "higher", scores),
            proportion("exercises", "courteous", [one.manner == 1 for one in judged]),
        ]
