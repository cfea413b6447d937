"""Answers to a few fixed prompts, to be read side by side. The figure is how much they repeat themselves."""

from typing import Literal

from pydantic import Field

from llmlab.evaluation import statistics
from llmlab.evaluation.asking import Asker, user
from llmlab.evaluation.repetition import distinct, repetition
from llmlab.evaluation.tasks import base
from llmlab.evaluation.tasks.base import Result, Subject

PROMPTS = (
    "Hello! Who are you?",
    "What is the capital of France?",
    "Spell the word whale.",
    "Tell me about the sea.",
)


class Task(base.Task):
    """Greedy answers to fixed prompts; rep-4 of each (Welleck et al. 2020), distinct-2 of all."""

    kind: Literal["samples"] = "samples"
    prompts: tuple[str, ...] = Field(PROMPTS, min_length=1, description="what the model is asked")
    max_new_tokens: int = Field(64, gt=0, description="longest answer in tokens")

    def run(self, subject: Subject) -> list[Result]:
        prompts = self.prompts[: self.limit]
        answers = Asker(subject.bundle).answers([user(prompt) for prompt in prompts], self.max_new_tokens)
        repeats = [repetition(answer.ids) for answer in answers]
        shown = [
            {"prompt": prompt, "answer": answer.text, "finished": answer.finished}
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        details = {"distinct_2": distinct([answer.ids for answer in answers]), "samples": shown}
        return [Result("samples", "repetition", statistics.mean(repeats), "lower", repeats, details=details)]
