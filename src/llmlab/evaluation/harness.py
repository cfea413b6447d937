"""Tasks times models: one model by name on the command line, or every policy of a run on the same items."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from pydantic import Field

from llmlab.checkpoints.bundle import Bundle
from llmlab.data.batch import Ids
from llmlab.data.files import TEXTS, ending
from llmlab.data.rows import rows
from llmlab.data.shards import TokenShards
from llmlab.data.text import joined
from llmlab.errors import InputError, Stopped
from llmlab.evaluation import tasks
from llmlab.evaluation.baselines import MOST, baselines
from llmlab.evaluation.perplexity import held_out_documents
from llmlab.evaluation.statistics import paired_bootstrap, verdict
from llmlab.evaluation.tasks import AnyTask
from llmlab.evaluation.tasks.base import Result, Subject, Task
from llmlab.recipe import Section, parse, read_yaml
from llmlab.runtime import derive
from llmlab.stages import Figures, Session
from llmlab.tokenization.tokenizer import Tokenizer

STANDARD = ("bits_per_byte", "exercises", "samples")


class Evaluate(Section):
    """What every policy of a run is measured by."""

    tasks: tuple[AnyTask, ...] = Field(
        default_factory=lambda: tuple(tasks.read(name) for name in STANDARD),
        min_length=1,
        description="tasks by name, or with their settings; bits_per_byte is left out where nothing was held out",
    )

    def files(self) -> list[Path]:
        """The user's own files that the tasks read."""
        return [path for task in self.tasks for path in task.files()]


# ---------------------------------------------------------------- one model


def evaluate_model(
    bundle: Bundle,
    names: Sequence[str | Task] = (),
    data: Path | None = None,
    limit: int | None = None,
    seed: int | None = None,
) -> dict[str, Any]:
    """`{"tasks": [{name, metric, value, interval, n, ...}]}`.

    Without names: the task that `data` is for, else all that can run on what is there. Of a model that a run made, the
    run's own held-out text and seed are taken, so nothing it was trained on is asked. Errors: InputError for an unknown
    task, and for a task without its file.
    """
    held_out = held_out_beside(bundle)
    seed = seed_beside(bundle) if seed is None else seed
    chosen = names or _standard(bundle, data, held_out)
    results: list[Result] = []
    for name in chosen:
        task = name if isinstance(name, Task) else tasks.read(name)
        changes: dict[str, Any] = {} if limit is None else {"limit": limit}
        if data is not None and (task.needs_file or len(chosen) == 1):
            changes["path"] = str(data)
        task = parse(type(task), task.model_dump() | changes, f"task {task.kind}")
        _require_answers(task, bundle)
        results += task.run(Subject(bundle, seed, held_out))
    return {"tasks": [result.json() for result in results]}


def _standard(bundle: Bundle, data: Path | None, held_out: Sequence[Ids] | None) -> list[str]:
    """What a model is measured by where nothing is named."""
    if not bundle.architecture.mask.one_way or bundle.architecture.encoder_layers:
        return ["held_out"]
    return [_task_for(data)] if data is not None else [name for name in STANDARD if _can(name, held_out)]


def _require_answers(task: Task, bundle: Bundle) -> None:
    """InputError where a task asks for the next token, and the model sees all of a text at once."""
    if task.needs_next_token and not bundle.architecture.mask.one_way:
        problem = f"asks for the next token, which a model with mask {bundle.architecture.mask.kind} does not give"
        raise InputError(f"task {task.kind}", problem, "use the task held_out")


def _can(name: str, held_out: Sequence[Ids] | None) -> bool:
    return name != "bits_per_byte" or held_out is not None


def _task_for(data: Path) -> str:
    """The task that a file is for, by its ending and the fields of its first row."""
    if not data.exists():
        raise InputError("data", f"{str(data)!r} does not exist")
    if data.is_dir() or ending(data) in TEXTS:
        return "bits_per_byte"
    first = next((row for _, row in rows(data, "utf-8", ()) if isinstance(row, dict)), {})
    if "text" in first:
        return "bits_per_byte"
    return "pairs" if "chosen" in first else "multiple_choice"


def held_out_beside(bundle: Bundle) -> list[Ids] | None:
    """The held-out text of the run whose stage this model was read from, if it was and the tokenizer is the same."""
    if bundle.tokenizer is None:
        return None
    for parent in around(bundle):
        folder = parent / "tokenizer" / "held_out"
        if (folder / "index.json").is_file():
            shards = TokenShards(folder)
            try:
                shards.require(bundle.tokenizer)
            except InputError:
                return None
            return held_out_documents(shards)
    return None


def seed_beside(bundle: Bundle) -> int:
    """The seed of the run that this model comes from, else 0. What is held out depends on it."""
    for parent in around(bundle):
        if (parent / "recipe.yaml").is_file():
            seed = read_yaml(parent / "recipe.yaml").get("seed")
            return seed if isinstance(seed, int) else 0
    return 0


def around(bundle: Bundle) -> list[Path]:
    """Where a run's folder may be, seen from its stage's model."""
    origin = Path(bundle.origin)
    return [origin, *origin.parents][:4]


# ---------------------------------------------------------------- every policy of a run


def evaluate(
    section: Evaluate,
    policies: Mapping[str, Bundle],
    held_out: TokenShards | None,
    out: Path,
    session: Session,
) -> Figures:
    """Every policy on the same items.

    Figures: `policies` {name: [task results]}; `comparisons` of each two policies on each figure, paired by item, with
    a verdict on the later one; `samples` [{prompt, answers {policy: text}}]; `baselines` in bits per byte.
    """
    documents = None if held_out is None else held_out_documents(held_out)
    todo = [task for task in section.tasks if task.kind != "bits_per_byte" or task.path or documents is not None]
    found: dict[str, list[Result]] = {name: [] for name in policies}
    meter = session.meter(out, "evaluate", len(todo) * len(policies))
    try:
        for step, (name, task) in enumerate(((n, t) for n in policies for t in todo), 1):
            if session.stop.requested:
                raise Stopped("evaluate: stopped; --resume measures again from its start")
            bundle = policies[name]
            bundle.model.to(session.device)
            _require_answers(task, bundle)
            found[name] += task.run(Subject(bundle, session.seed, documents))
            meter.step(step, {})
    finally:
        meter.close()
    figures: Figures = {
        "policies": {name: [_without_samples(result) for result in results] for name, results in found.items()},
        "comparisons": [
            row
            for a, b in combinations(policies, 2)
            for first, second in zip(found[a], found[b], strict=True)
            for row in _compared(a, b, first, second, session.seed)
        ],
        "samples": _side_by_side(found),
    }
    tokenizer = next((bundle.tokenizer for bundle in policies.values()), None)
    if held_out is not None and tokenizer is not None:
        figures["baselines"] = _baselines(held_out, tokenizer)
    return figures


def _without_samples(result: Result) -> dict[str, Any]:
    return {name: value for name, value in result.json().items() if name != "samples"}


def _compared(a: str, b: str, first: Result, second: Result, seed: int) -> list[dict[str, Any]]:
    """How the later policy differs from the earlier one, item by item."""
    if (first.name, first.metric, len(first.items)) != (second.name, second.metric, len(second.items)):
        return []
    purpose = derive(seed, "compare", first.name, first.metric)
    difference = paired_bootstrap(second.items, first.items, purpose, second.weights)
    told = verdict(difference, second.better)
    row = {"a": a, "b": b, "name": first.name, "metric": first.metric, "difference": difference.value}
    return [row | {"interval": difference.interval, "verdict": told, "n": difference.n}]


def _side_by_side(found: Mapping[str, Sequence[Result]]) -> list[dict[str, Any]]:
    """What each policy said to the same prompts."""
    rows: dict[str, dict[str, str]] = {}
    for policy, results in found.items():
        for result in results:
            for sample in result.details.get("samples", ()):
                rows.setdefault(sample["prompt"], {})[policy] = sample["answer"]
    return [{"prompt": prompt, "answers": answers} for prompt, answers in rows.items()]


def _baselines(held_out: TokenShards, tokenizer: Tokenizer) -> dict[str, float]:
    """gzip, xz and a byte n-gram of the same text, at most the first MBs of either side; the training split lies beside
    the held-out one."""
    folder = held_out.folder.with_name("train")
    if not (folder / "index.json").is_file():
        return {}
    return baselines(_text(TokenShards(folder), tokenizer), _text(held_out, tokenizer))


def _text(shards: TokenShards, tokenizer: Tokenizer) -> bytes:
    return joined(_first(tokenizer.decode(ids, skip_special=True) for ids in held_out_documents(shards)))


def _first(texts: Iterator[str]) -> Iterator[str]:
    """The first texts, the last one cut: `MOST` bytes or hardly more."""
    left = MOST
    for text in texts:
        yield text[:left]
        left -= len(text.encode())
        if left <= 0:
            return
