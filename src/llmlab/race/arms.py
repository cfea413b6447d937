"""Arms: the recipes of a race, one for each combination of the varied values, all checked before any work."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import yaml
from pydantic import BaseModel

from llmlab.errors import InputError
from llmlab.evaluation.measures import Measure
from llmlab.model.transformer import Architecture, Transformer
from llmlab.recipe import override, parse
from llmlab.run import Run

# What no measure of a race depends on. A race measures its arms itself, so evaluate and quantize are not run.
ASIDE = ("name", "seed", "compare", "track", "evaluate", "quantize")


@dataclass(frozen=True)
class Arm:
    """One recipe of a race. `values` are the varied fields; `changed` says what was adjusted to make budgets equal."""

    name: str
    recipe: Run
    values: Mapping[str, Any] = field(default_factory=dict)
    changed: Sequence[Mapping[str, Any]] = ()

    def of_seed(self, seed: int) -> Run:
        """The life that is run: this recipe without what a race leaves out."""
        return self.recipe.model_copy(update={"seed": seed, "evaluate": None, "quantize": None, "compare": None})

    @property
    def content(self) -> dict[str, Any]:
        """The resolved recipe, as far as it decides a figure."""
        return self.recipe.model_dump(mode="json", exclude=set(ASIDE))

    def key(self, seed: int) -> str:
        """Hash of the resolved recipe and the seed: names the folder in which this life is kept."""
        return hashed({"recipe": self.content, "seed": seed})

    @property
    def length(self) -> int | None:
        """Tokens of a training row; None where nothing is pretrained."""
        recipe = self.recipe
        if recipe.pretrain is None or recipe.model is None:
            return None
        return recipe.pretrain.length or recipe.model.context


def hashed(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_vary(texts: Sequence[str]) -> dict[str, list[Any]]:
    """`path=a,b` of the command line as {path: values}. The values are YAML: `{kind: rope, base: 50000}` is one."""
    found: dict[str, list[Any]] = {}
    for text in texts:
        path, equals, values = text.partition("=")
        if not path or not equals:
            raise InputError("--vary", f"{text!r} names no values", "write path=a,b as in model.position=rope,alibi")
        if path in found:
            raise InputError("--vary", f"{path} is there twice", f"write all its values in one: {path}=a,b")
        try:
            found[path] = yaml.safe_load(f"[{values}]")
        except yaml.YAMLError:
            raise InputError(f"--vary {path}", f"{values!r} are no YAML values with commas between them") from None
    return found


def arms(recipe: Run, vary: Mapping[str, Sequence[Any]]) -> list[Arm]:
    """The product of the varied values, the first path outermost. `{path: values}`; a bare kind means {kind: that}.

    Errors: InputError for an unknown path, a value that does not fit, one that is there twice, no values.
    """
    for path, several in vary.items():
        if not several:
            raise InputError(f"--vary {path}", "has no values", f"write {path}=a,b")
        if path in ASIDE or path.split(".")[0] in ASIDE:
            hint = "--seeds says how many" if path == "seed" else "a race runs training stages and measures them itself"
            raise InputError(f"--vary {path}", "changes nothing that a race measures", hint)
    found = []
    for chosen in itertools.product(*vary.values()):
        values: dict[str, Any] = dict(zip(vary, chosen, strict=True))
        found.append(Arm(_name(values), changed(recipe, values), values))
    return found


def changed(recipe: Run, values: Mapping[str, Any]) -> Run:
    """The recipe with these fields set. A new kind keeps what was written for the old one where it has that field too,
    and none of the old one's defaults."""
    assignments = [f"{path}={json.dumps(value)}" for path, value in values.items()]
    return parse(Run, override(Run, _written(recipe), assignments), trusted=True)


def _written(value: Any) -> Any:
    """A recipe as it was written: fields that were given, and each kind."""
    if isinstance(value, BaseModel):
        names = value.model_fields_set | ({"kind"} & set(type(value).model_fields))
        return {name: _written(getattr(value, name)) for name in type(value).model_fields if name in names}
    return [_written(item) for item in value] if isinstance(value, tuple) else value


def _name(values: Mapping[str, Any]) -> str:
    """`rope`, where one field varies and its value is a word or a kind; else `layers=2, position=rope`."""
    if len(values) == 1 and isinstance(value := next(iter(values.values())), str | dict):
        return _short(value)
    last = [path.split(".")[-1] for path in values]
    paths = last if len(set(last)) == len(last) else list(values)
    return ", ".join(f"{path}={_short(value)}" for path, value in zip(paths, values.values(), strict=True)) or "recipe"


def _short(value: Any) -> str:
    if isinstance(value, dict) and "kind" in value:
        others = [f"{name}={inner}" for name, inner in value.items() if name != "kind"]
        return f"{value['kind']}({', '.join(others)})" if others else str(value["kind"])
    return value if isinstance(value, str) else json.dumps(value)


# ---------------------------------------------------------------- checks


def check(arms: Sequence[Arm], seeds: Sequence[int], measures: Sequence[Measure]) -> None:
    """Everything that can be known before any work. Errors: InputError naming the arm, the field or the measure."""
    if len(arms) < 2:
        raise InputError("--vary", f"makes {len(arms)} arm", "a race needs two: --vary path=a,b")
    if len(seeds) < 2:
        raise InputError("--seeds", f"{len(seeds)} gives no interval", "take 2 at least, 5 to order arms")
    if len(set(seeds)) < len(seeds):
        raise InputError("--seeds", "a seed is there twice")
    names = [arm.name for arm in arms]
    seen: dict[str, str] = {}
    for arm in arms:
        if names.count(arm.name) > 1:
            raise InputError("--vary", f"{arm.name!r} is there twice")
        other = seen.setdefault(arm.key(0), arm.name)
        if other != arm.name:
            raise InputError("--vary", f"{other} and {arm.name} are one and the same recipe")
        buildable(arm)
    for measure in measures:
        comparable(arms, measure)


def buildable(arm: Arm) -> None:
    """InputError, naming the arm, where its model cannot be."""
    recipe, length = arm.recipe, arm.length
    if recipe.model is None or recipe.tokenizer is None:
        return
    try:
        on_meta(recipe.model, recipe.tokenizer.vocab_size)
    except InputError as error:
        raise InputError(f"arm {arm.name}: {error.place}", error.problem, error.hint) from None
    except (RuntimeError, OverflowError, TypeError):
        raise InputError(f"arm {arm.name}", "cannot be built: its sizes are beyond any memory") from None
    if length is not None and length > recipe.model.context:
        problem = f"{length} is beyond the model's context of {recipe.model.context}"
        raise InputError(f"arm {arm.name}: pretrain.length", problem)


def comparable(arms: Sequence[Arm], measure: Measure) -> None:
    """Refuse to set figures beside each other that are of different things (trap 48)."""
    if measure.compares and any(arm.recipe.tokenizer is None for arm in arms):
        hint = "seconds, peak_bytes and parameters need none"
        raise InputError(f"--measure {measure.name}", "needs held-out text, and a recipe with a base has none", hint)
    for arm in arms:
        objective = arm.recipe.pretrain.objective if arm.recipe.pretrain is not None else None
        if measure.family in ("length", "rescaled", "context") and objective is not None and not objective.next_token:
            problem = f"{measure.name} asks for the next token, which {objective.kind} does not train"
            raise InputError(f"arm {arm.name}: pretrain.objective", problem, "measure parameters or seconds")
    problems = {
        "text": ("the arms differ in their text, so no figure of one is of what the other reads", "vary no text"),
        "tokenizer": ("the arms differ in their tokenizer", "only bits_per_byte compares tokenizers"),
        "length": ("the arms differ in their trained length", "bits_per_byte compares them"),
        "context": ("the arms differ in the context that they are read in", "bits_per_byte compares them"),
    }
    for what in measure.compares:
        if any(_part(arm, what) != _part(arms[0], what) for arm in arms):
            raise InputError(f"--measure {measure.name}", *problems[what])


def _part(arm: Arm, what: str) -> Any:
    if what == "context":
        return None if arm.recipe.model is None else arm.recipe.model.context
    return arm.length if what == "length" else getattr(arm.recipe, what)


def on_meta(architecture: Architecture, vocab_size: int) -> Transformer:
    """The model without memory: its names and shapes."""
    with torch.device("meta"):
        return Transformer(architecture, vocab_size)
