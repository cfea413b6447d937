"""`Run`: the one recipe of a model's life. `stages`: that life in order. `run`: live it.

text -> tokenizer -> pretrain -> sft -> reward -> dpo, ppo -> quantize -> evaluate -> report
base -> rope -> (text -> its tokenizer -> pretrain) -> sft -> ...
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import Field, model_validator

from llmlab.adapters.opening import open_policy
from llmlab.adapters.prompt import Prompt, PTuning
from llmlab.alignment.ppo import PPO, ppo
from llmlab.alignment.preference import DPO, dpo
from llmlab.alignment.reward import Reward, reward
from llmlab.alignment.sft import SFT, sft
from llmlab.checkpoints.bundle import rescaled
from llmlab.checkpoints.native import save_model
from llmlab.compression.quantize import Quantize, quantize
from llmlab.data.chats import chat_files
from llmlab.data.pairs import pair_files
from llmlab.data.prompts import prompt_files
from llmlab.data.shards import TokenShards
from llmlab.data.text import Text, input_files, prepare_text
from llmlab.data.tokens import encode, tokenize
from llmlab.errors import InputError, Stopped, unknown
from llmlab.evaluation.harness import Evaluate, evaluate
from llmlab.evaluation.measures import Compare
from llmlab.evaluation.report import write_report
from llmlab.meters.writers import Tracker, require
from llmlab.model.rescaling import Rescaling
from llmlab.model.transformer import Architecture
from llmlab.recipe import Section, override, parse, read_yaml
from llmlab.region import keep_freed_memory
from llmlab.runtime import (
    atomic_text,
    autocast_dtype,
    device,
    disk_full,
    interruptible,
    keep_few_kernels,
    lock,
    make_deterministic,
)
from llmlab.stages import Figures, Session, Stage, run_stages
from llmlab.tokenization.tokenizer import Tokenizer
from llmlab.tokenization.train import TokenizerRecipe
from llmlab.training.in_backward import refuse_ranks
from llmlab.training.parallel.kinds import DDP, FSDP, Parallel, TensorParallel, Zero1
from llmlab.training.parallel.replica import check_elementwise
from llmlab.training.pretrain import Pretrain, go_on, pretrain
from llmlab.world import World


class Run(Section):
    """A model's whole life. A stage set to null is left out; `base` starts from existing weights instead of text."""

    name: str = Field("run", min_length=1, pattern=r"^[\w.-]+$", description="names the folder below runs/")
    seed: int = Field(0, ge=0, description="of everything random; equal seeds give equal bytes")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="auto: cuda, mps, cpu. Only cpu is tested"
    )
    dtype: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="of matrix products in training; auto: bf16 where the hardware has it. Weights stay fp32"
    )
    kernels: Literal["auto", "plain"] = Field(
        "auto", description="of training in bf16 on a CPU; auto: fused where they compute the architecture"
    )
    base: str | None = Field(None, description="weights to start from: a pulled name, hf:owner/name, a folder, a .gguf")
    rope: Rescaling | None = Field(
        None, description="rotary angles of the base rescaled for longer texts, as yarn or {kind: yarn, factor: 4}"
    )
    text: Text | None = Field(None, description="the documents to pretrain on")
    tokenizer: TokenizerRecipe | None = Field(None, description="trained on those documents")
    model: Architecture | None = Field(None, description="the architecture, from named parts")
    pretrain: Pretrain | None = Field(
        None, description="next-token training on the documents; of a base, it goes on training"
    )
    sft: SFT | None = Field(None, description="supervised fine-tuning on conversations")
    reward: Reward | None = Field(None, description="a reward model from preference pairs")
    dpo: DPO | None = Field(None, description="direct preference optimisation")
    ppo: PPO | None = Field(None, description="reinforcement learning against the reward model")
    quantize: Quantize | None = Field(None, description="int8 and int4 weights of the last policy")
    evaluate: Evaluate | None = Field(None, description="every policy on the same tasks")
    compare: Compare | None = Field(None, description="what llmlab compare measures; no stage reads it")
    track: tuple[Tracker, ...] = Field((), description="who is given the figures too: tensorboard, wandb (offline)")
    parallel: Parallel | None = Field(
        None, description="how training lies on the processes of torchrun; null: ddp where there are several"
    )

    @model_validator(mode="after")
    def _whole(self) -> "Run":
        scratch = {name: getattr(self, name) for name in ("text", "tokenizer", "model", "pretrain")}
        if self.base is not None:
            extra = [name for name in ("tokenizer", "model") if scratch[name] is not None]
            if extra:
                own = {"tokenizer": "tokenizer", "model": "architecture"}[extra[0]]
                raise ValueError(f"base and {extra[0]} exclude each other: weights come with their {own}")
            if self.pretrain is not None and self.text is None:
                raise ValueError("text is missing: pretrain goes on training the base on documents")
        elif missing := [name for name, section in scratch.items() if section is None]:
            raise ValueError(
                f"{missing[0]} is missing: a life starts from text, tokenizer, model and pretrain, or from base"
            )
        if self.rope is not None and self.base is None:
            raise ValueError("rope rescales the angles of a base; those of a new model are model.position.scaling")
        in_bytes = self.pretrain is not None and self.pretrain.objective.in_bytes
        if self.tokenizer is not None and not self.tokenizer.lossless and in_bytes:
            problem = f"a {self.tokenizer.kind} tokenizer does not keep the text, so there are no bits per byte"
            raise ValueError(f"{problem}; bpe and unigram keep it")
        if self.pretrain is not None:
            _check_pretraining(self.pretrain, self)
        if self.ppo is not None and self.reward is None:
            raise ValueError("ppo needs the reward section: it is what the policy is trained against")
        return self


def _check_pretraining(pretrain: Pretrain, recipe: Run) -> None:
    """ValueError where the architecture lacks what the objective needs, or a later stage what the objective gives. What
    a base lacks is found when it is opened."""
    if recipe.model is not None:
        try:
            pretrain.check(recipe.model)
        except InputError as error:
            raise ValueError(str(error)) from None
    objective = pretrain.objective
    if objective.next_token:
        return
    kind = objective.kind
    for name in ("sft", "reward", "dpo", "ppo", "quantize"):
        if getattr(recipe, name) is not None:
            raise ValueError(
                f"{name} needs a model that goes on with a text, which {kind} does not train (set it to null)"
            )
    for task in recipe.evaluate.tasks if recipe.evaluate is not None else ():
        if task.needs_next_token:
            problem = f"evaluate.tasks: {task.kind} asks for the next token, which {kind} does not train"
            raise ValueError(f"{problem} (use evaluate.tasks=[held_out])")


# ---------------------------------------------------------------- recipes


def presets() -> list[str]:
    return sorted(file.name.removesuffix(".yaml") for file in _shipped().iterdir() if file.name.endswith(".yaml"))


def preset_text(name: str) -> str:
    """A preset as it is written, comments included."""
    if name not in presets():
        raise unknown("recipe", name, presets())
    return str((_shipped() / f"{name}.yaml").read_text(encoding="utf-8"))


def _shipped() -> Any:
    return resources.files("llmlab") / "presets"


def read_recipe(source: str, assignments: Sequence[str] = ()) -> Run:
    """A preset's name or a YAML file, with `path=value` overrides."""
    path = Path(source)
    named = source in presets()
    if path.suffix in (".yaml", ".yml") or path.is_file() or (path.exists() and not named):
        if path.is_dir() and (path / "recipe.yaml").is_file():
            raise InputError(source, "is a folder", f"its recipe is {path / 'recipe.yaml'}")
        values = read_yaml(path)
        values.setdefault("name", path.stem)
    else:
        values = yaml.safe_load(preset_text(source))
    return parse(Run, override(Run, values, assignments), trusted=True)


# ---------------------------------------------------------------- the life in order

TRAINED = ("pretrain", "sft", "reward", "dpo", "ppo")
POLICIES = ("rope", "pretrain", "sft", "dpo", "ppo")  # stages that leave a model one can talk to


def stages(recipe: Run, root: Path) -> list[Stage]:
    """The stages that this recipe has, each with what it reads and where its inputs lie."""
    return list(_stages(recipe, root))


def _stages(recipe: Run, root: Path) -> Iterator[Stage]:
    here = [name for name in POLICIES if getattr(recipe, name) is not None]

    def before(stage: str) -> tuple[str, ...]:
        """The policy that a stage starts from: dpo and ppo both start from sft."""
        end = POLICIES.index(stage) if stage in POLICIES[:3] else 3
        return tuple([name for name in here if name in POLICIES[:end]][-1:])

    def policy(names: Sequence[str]) -> Any:
        return open_policy(str(root / names[-1]) if names else str(recipe.base))

    def held_out() -> TokenShards | None:
        folder = root / "tokenizer" / "held_out"
        return TokenShards(folder) if folder.is_dir() else None

    def stage(
        name: str,
        parents: tuple[str, ...],
        work: Callable[[Path, Session], Figures],
        *others: str,
        files: Sequence[Path] = (),
        draws: bool = True,
        trains: bool = False,
    ) -> Stage:
        sections = {other: getattr(recipe, other) for other in (name, *others)}
        key = {other: section.model_dump(mode="json") if section else None for other, section in sections.items()}
        asked = {"special": special} if name == "tokenizer" and special else {}
        return Stage(name, key | {"base": recipe.base} | asked, parents, files, work, draws, trains)

    special: tuple[str, ...] = ()
    if recipe.pretrain is not None and recipe.model is not None:
        special = recipe.pretrain.special(recipe.model)

    if (text := recipe.text) is not None:
        yield stage(
            "text", (), lambda out, session: prepare_text(text, out, session), files=input_files(text), draws=False
        )
    if (longer := recipe.rope) is not None:

        def with_rope(out: Path, session: Session) -> Figures:
            bundle = rescaled(policy(()), longer)
            save_model(out / "model", bundle.model, bundle.tokenizer)
            return {"context": bundle.architecture.context}

        yield stage("rope", (), with_rope, draws=False)
    if (tokens := recipe.tokenizer) is not None:
        yield stage(
            "tokenizer",
            ("text",),
            lambda out, session: tokenize(tokens, root / "text", out, session, special),
            draws=False,
        )
    if (first := recipe.pretrain) is not None and (model := recipe.model) is not None:

        def from_text(out: Path, session: Session) -> Figures:
            folder = root / "tokenizer"
            train, held = TokenShards(folder / "train"), TokenShards(folder / "held_out")
            return pretrain(first, model, Tokenizer.load(folder), train, held, out, session)

        yield stage("pretrain", ("tokenizer",), from_text, "model", trains=True)
    elif first is not None and recipe.base is not None:

        def with_its_tokens(out: Path, session: Session) -> Figures:
            bundle = policy(())
            if bundle.tokenizer is None:
                raise InputError(bundle.origin, "has no tokenizer", "put tokenizer.json beside the weights")
            return encode(bundle.tokenizer, root / "text", out, session)

        def from_base(out: Path, session: Session) -> Figures:
            folder = root / "tokenizer"
            train, held = TokenShards(folder / "train"), TokenShards(folder / "held_out")
            return go_on(first, policy(before("pretrain")), train, held, out, session)

        yield stage("tokenizer", ("text",), with_its_tokens, draws=False)
        yield stage("pretrain", ("tokenizer", *before("pretrain")), from_base, trains=True)
    if (tuning := recipe.sft) is not None:
        start = before("sft")
        yield stage(
            "sft",
            start,
            lambda out, session: sft(tuning, policy(start), out, session),
            files=chat_files(tuning.data),
            trains=True,
        )
    tuned = before("")
    if (judge := recipe.reward) is not None:
        yield stage(
            "reward",
            tuned,
            lambda out, session: reward(judge, policy(tuned), out, session),
            files=pair_files(judge.data),
            trains=True,
        )
    if (direct := recipe.dpo) is not None:
        yield stage(
            "dpo",
            tuned,
            lambda out, session: dpo(direct, policy(tuned), out, session),
            files=pair_files(direct.data),
            trains=True,
        )
    if (rl := recipe.ppo) is not None:

        def against_reward(out: Path, session: Session) -> Figures:
            return ppo(rl, policy(tuned), root / "reward", out, session)

        yield stage("ppo", (*tuned, "reward"), against_reward, files=prompt_files(rl.data), trains=True)
    last = tuple(here[-1:])
    if (smaller := recipe.quantize) is not None:
        yield stage("quantize", last, lambda out, session: quantize(smaller, policy(last), held_out(), out, session))
    if (measure := recipe.evaluate) is not None:

        def all_policies(out: Path, session: Session) -> Figures:
            paths = {name: str(root / name) for name in here}
            if recipe.base is not None:
                paths = {"base": recipe.base, **paths}
            return evaluate(
                measure, {name: open_policy(path) for name, path in paths.items()}, held_out(), out, session
            )

        yield stage("evaluate", tuple(here), all_policies, files=measure.files())


# ---------------------------------------------------------------- living it


def changes(recipe: Run) -> Callable[[Sequence[str]], "Run"]:
    """The recipe with other values at some paths, as the planner asks for it."""
    values = recipe.model_dump(mode="json")
    return lambda assignments: parse(Run, override(Run, values, assignments), trusted=True)


def run(
    recipe: Run,
    out: Path,
    resume: bool = False,
    quiet: bool = False,
    world: World | None = None,
    planned: bool = False,
    memory: int | None = None,
) -> dict[str, Any]:
    """Live the recipe in the folder `out`: `{out, stages, report}`.

    An existing folder is refused without `resume`; with it, finished stages are skipped and a cut one goes on. With
    `planned`, a life that cannot fit into `memory` bytes (this machine's, unless told) is refused with what would, and
    the prediction lies beside the measurements in `plan.json`. Where `world` has several ranks, each calls this; the
    first one writes. A job that torchrun began anew goes on.
    """
    world = world or World()
    check_ranks(recipe, world)
    require(recipe.track)
    make_deterministic()
    keep_freed_memory()
    keep_few_kernels()
    where = _place(recipe, world)
    with world.joined(where.type):
        world.told(lambda: _check_out(out, resume or world.restarts > 0))
        try:
            return _live(recipe, out, quiet, where, world, planned, memory)
        except OSError as error:
            if not disk_full(error):
                raise
            go_on = _go_on(out, world)
            problem = f"what is finished there is whole; free some space. {go_on}"
            raise InputError(str(out), "no space left on the disk", problem) from None


def _check_out(out: Path, resume: bool) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(str(out), "is a file", "--out names a folder")
    if out.exists() and not resume and any(out.iterdir()):
        raise InputError(str(out), "exists already", "--resume goes on with it; --out names another folder")


def _place(recipe: Run, world: World) -> torch.device:
    """Where this rank computes: of several GPUs of a machine, each has its own."""
    where = device(recipe.device)
    if where.type != "cuda" or world.alone:
        return where
    torch.cuda.set_device(world.local_rank)
    return device(f"cuda:{world.local_rank}")


def check_ranks(recipe: Run, world: World) -> None:
    """InputError, before any work, for a recipe that these ranks cannot share out."""
    if world.alone:
        if recipe.parallel is not None:
            kind = recipe.parallel.kind
            hint = "torchrun --nproc-per-node 2 -m llmlab run ..., or parallel=null for one process"
            raise InputError("parallel", f"{kind} is for several processes, and this is one", hint)
        return
    way = recipe.parallel or DDP()
    readers = way.readers(world.size)
    for field, rows, micro in _steps(recipe):
        if math.ceil(rows / micro) < readers:
            problem = f"world size larger than the batch: {micro} at once of {rows} rows a step feed"
            count = math.ceil(rows / micro)
            hint = f"lower micro_batch to {rows // readers}" if rows >= readers else f"{readers} rows a step at least"
            raise InputError(field, f"{problem} {count} of {readers} ranks", hint)
    for name in TRAINED:
        section = getattr(recipe, name)
        if section is not None:
            _check_cut(name, section, way)


def _check_cut(name: str, section: Any, way: DDP | Zero1 | FSDP | TensorParallel) -> None:
    """InputError for a stage that trains what ranks cannot lie so, or by a rule that they cannot follow."""
    adapter = getattr(section, "adapter", None)
    if adapter is not None and (isinstance(way, TensorParallel) or getattr(way, "tensor", 1) > 1):
        problem = "tensor cuts plain linears, and this stage trains an adapter"
        raise InputError(name, problem, f"use ddp, zero1 or fsdp, or leave it out: {name}=null")
    if isinstance(adapter, Prompt | PTuning) and isinstance(way, FSDP):
        problem = (
            f"fsdp lets a block go through once a pass, and what {adapter.kind} trains goes through beside the text"
        )
        raise InputError(f"{name}.adapter", problem, "use ddp, or prefix in its place")
    if section.training.in_backward:
        refuse_ranks(f"{name}.training.in_backward")
    if isinstance(way, FSDP | TensorParallel):
        check_elementwise(section.training.optimizer.kind, way.kind, f"{name}.training.optimizer")


def _steps(recipe: Run) -> Iterator[tuple[str, int, int]]:
    """Of each stage that trains: the field of its micro-batch, rows a step, rows at once."""
    for name in ("pretrain", "sft", "reward", "dpo"):
        if (section := getattr(recipe, name)) is not None:
            yield f"{name}.micro_batch", section.batch_size, section.micro_batch
    if recipe.ppo is not None:
        rolling = recipe.ppo.rolling
        yield "ppo.rolling.micro_batch", rolling.answers // rolling.minibatches, rolling.micro_batch


def _live(
    recipe: Run, out: Path, quiet: bool, where: torch.device, world: World, planned: bool, memory: int | None
) -> dict[str, Any]:
    def say(line: str) -> None:
        if not quiet and world.first:
            print(line, file=sys.stderr)

    with ExitStack() as stack:
        world.told(lambda: stack.enter_context(lock(out)))
        stop = stack.enter_context(interruptible())
        session = Session(
            recipe.seed,
            where,
            autocast_dtype(recipe.dtype, where),
            stop,
            quiet or not world.first,
            fuse=recipe.kernels == "auto",
            track=recipe.track,
            world=world,
            parallel=recipe.parallel,
        )
        if planned and where.type == "cpu" and world.alone:
            _foresee(recipe, out, memory, say)
        try:
            answers = live(recipe, out, session, say)
        except KeyboardInterrupt:
            kept = f"stopped at once; finished stages and checkpoints are kept. {_go_on(out, world)}"
            raise Stopped(kept) from None
        except Stopped as stopped:
            raise Stopped(f"{stopped}. {_go_on(out, world)}") from None
        report = world.told(lambda: write_report(out))
    return {"out": str(out), "stages": answers, "report": str(report)}


def _foresee(recipe: Run, out: Path, memory: int | None, say: Callable[[str], None]) -> None:
    """Plan before anything is done, once a folder. A recipe that cannot be planned is run all the same: what is wrong
    with it, if anything is, its stages say better."""
    from llmlab.planner import foresee

    if (out / foresee.NAME).is_file():
        return
    try:
        found = foresee.foreseen(changes(recipe), memory)
    except foresee.TooLarge as error:
        raise InputError(error.place, error.problem, error.hint) from None
    except Exception as error:
        say(f"plan: none, since {type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason'}")
        return
    foresee.keep(found, out)
    time = "" if found["seconds"] is None else f", about {found['seconds']:.0f} s"
    say(f"plan: {foresee.gib(found['peak_bytes'])} at most{time}")


def live(recipe: Run, out: Path, session: Session, say: Callable[[str], None]) -> list[Figures]:
    """Every stage of the recipe in the folder `out`, in a session that the caller opened; the answers of `run_stages`.

    The caller holds the lock of the folder, or of one above it.
    """
    recipe_yaml = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    session.world.told(lambda: atomic_text(out / "recipe.yaml", recipe_yaml))
    return run_stages(stages(recipe, out), out, session, say)


def _go_on(out: Path, world: World) -> str:
    start = "llmlab" if world.alone else f"torchrun --nproc-per-node {world.size} -m llmlab"
    return f"Go on with: {start} run {out / 'recipe.yaml'} --out {out} --resume"
