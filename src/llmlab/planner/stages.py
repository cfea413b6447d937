"""What each stage of a life will take: the fullest moment of its process and its seconds.

A model of more than `WHOLE` equal blocks is watched with two blocks and with three, and what it takes with all of them
is extrapolated: bytes by cause in the first block, in the last one and around them, arithmetic, seconds. All of that is
linear in the number of blocks. A model whose blocks differ, or one that trains some of them, is watched whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from llmlab.adapters.base import BaseWeights
from llmlab.adapters.count import base_bytes
from llmlab.adapters.part import add_adapter
from llmlab.adapters.roles import Actor, RoleModel
from llmlab.alignment.outcome import TOGETHER
from llmlab.alignment.ppo_objective import PPOBatch, PPOObjective
from llmlab.alignment.preference import DPOObjective, ReferredPairs, reference_logprobs
from llmlab.alignment.reward import TABLE, PreferenceObjective
from llmlab.alignment.rollout import Answers, Rollout, score
from llmlab.checkpoints.bundle import Stored
from llmlab.data.batch import Batch
from llmlab.data.chats import ChatBatches
from llmlab.data.pairs import PairBatches
from llmlab.data.prompts import PromptSampler
from llmlab.evaluation.baselines import MOST
from llmlab.evaluation.perplexity import LOGITS, TOKENS
from llmlab.evaluation.tasks.loss_by_position import LONGEST
from llmlab.inference.cache import DenseCache
from llmlab.model.places import Places
from llmlab.model.transformer import Transformer
from llmlab.objectives.kind import Setting
from llmlab.objectives.language import NextToken, token_logprobs
from llmlab.planner.census import Watch, watched
from llmlab.planner.machine import Machine
from llmlab.planner.material import Material, sampled
from llmlab.planner.observe import Moment, Pass, Step, Stepped, made, moment_of, pass_of, step_of
from llmlab.training.loop import Training

STAGES = ("rope", "pretrain", "sft", "reward", "dpo", "ppo", "quantize", "evaluate")
WHOLE = 5  # blocks; more are extrapolated
SEEN = 48  # micro-batches of the sample that are looked at for the widest


X = TypeVar("X", Step, Pass)


@dataclass(frozen=True)
class Taken:
    """What a stage was found to take. `shapes` counts the shapes of bf16 products that stay in oneDNN's cache."""

    name: str
    moments: Sequence[Moment]
    seconds: float
    flops: float = 0.0
    shapes: int = 0
    parameters: int = 0
    trained: int = 0
    rough: bool = False  # whether the seconds are a guess by rate, not by operations
    rows: float = 0  # conversations that it makes ready


@dataclass
class Planner:
    """Plans the stages of one life on one machine, in order."""

    material: Material
    machine: Machine
    dtype: torch.dtype | None
    fuse: bool = True  # whether training may take fused kernels
    depth: int | None = None  # blocks of the model that is watched; None: all

    def names(self) -> list[str]:
        """The stages that this life has, in order."""
        life = self.material.life
        there = {"text": life.text, "tokenizer": life.text} | {name: getattr(life, name) for name in STAGES}
        return [name for name in ("text", "rope", "tokenizer", *STAGES[1:]) if there[name] is not None]

    def stage(self, name: str) -> Taken:
        taken: Taken = getattr(self, name)()
        return taken

    # ------------------------------------------------------------ text and tokenizer: by rate

    def text(self) -> Taken:
        size = self.material.corpus.text_bytes
        held = self.machine.text_bytes + min(size, 64 << 20)
        return Taken("text", [Moment({"text": held})], size / self.machine.text_rate, rough=True)

    def tokenizer(self) -> Taken:
        corpus, machine = self.material.corpus, self.machine
        size, trains, wide = corpus.text_bytes, self.material.base is None, corpus.wide
        seconds = size / machine.encode_rate + ((1 + wide) * size / machine.train_rate if trains else 0.0)
        # Words and their counts where it is trained, and few words are alike in a script that sets no spaces; ids of a
        # shard as Python has them where text is encoded. Bytes a byte, as Moby-Dick and a Chinese novel took them.
        held = round((42 + 70 * wide if trains else 24) * min(size, 64 << 20))
        return Taken("tokenizer", [Moment({"text": machine.text_bytes + held})], seconds, rough=True)

    def rope(self) -> Taken:
        weights = 4 * self.numbers
        moment = self._opened(Moment({"weights": weights}))
        return Taken("rope", [moment], 2 * self._loading() + self._writing(weights))

    # ------------------------------------------------------------ trained

    def pretrain(self) -> Taken:
        section, m = self.material.life.pretrain, self.material
        length = section.row(m.architecture)
        setting = Setting(m.architecture, m.tokenizer, length, section.packing)
        objective = section.objective
        corpus = m.rows_of(objective.reading(length))
        rows = objective.batches(corpus, setting, section.batch_size, section.micro_batch, m.life.seed)
        first = rows.next(None)[0]

        def build() -> Any:
            predictor = objective.predictor(section.z_loss)
            predictor.at_once = section.logits_at_once
            return self._model(), predictor

        stage = Stepped(
            build, first, first, section.batch_size / min(section.micro_batch, section.batch_size),
            section.training, m.vocabulary,
        )  # fmt: skip
        standard = objective.standard.predictor()
        probe = self._pass(stage, lambda model, _: standard(model, first))
        asked = m.corpus.held_tokens / max(1, first.ids_BT.numel()) * (1.5 if objective.kind == "causal" else 1.0)
        return self._trained("pretrain", stage, [probe], math.ceil(asked) * probe.seconds, widths=1)

    def sft(self) -> Taken:
        section, m = self.material.life.sft, self.material
        sample = sampled(section.data, "chats", m.life.seed)
        micro = min(section.micro_batch, section.batch_size)
        rows = ChatBatches(
            sample.rows, m.renderer, m.architecture.context, section.batch_size, micro, m.life.seed, section.cut_away
        )
        seen = [part for _ in range(-(-SEEN * micro // section.batch_size)) for part in rows.next()]

        def build() -> Any:
            model = self._model()
            if section.adapter is not None:
                add_adapter(model, "sft", section.adapter, 0)
            return Actor(model, "sft"), NextToken()

        stage = self._stepped(build, seen, section.batch_size / micro, section.training)
        probe = self._pass(stage, lambda model, objective: objective(model, stage.typical))
        watched = min(section.watched, section.held_out * sample.total)
        exercises = [source for source in section.data if hasattr(source, "n")]
        asks, answers = 0.0, []
        if exercises:
            asked = min(section.watched, section.held_out * sum(source.n for source in exercises))
            answer = self._answering(build, asked, section.max_new_tokens)
            asks, answers = answer.seconds, [answer]
        return self._trained(
            "sft", stage, [probe, *answers], watched / micro * probe.seconds, asks, _widths(seen),
            sample.total,
        )  # fmt: skip

    def reward(self) -> Taken:
        section = self.material.life.reward
        seen, total = self._pairs(section)

        def build() -> Any:
            return RoleModel(self._model(), TABLE, section.adapter, 0), PreferenceObjective()

        micro = min(section.micro_batch, section.batch_size)
        stage = self._stepped(build, seen, section.batch_size / micro, section.training)
        probe = self._pass(stage, lambda model, objective: objective(model, stage.typical))
        held = section.held_out * total / micro * probe.seconds
        watched = min(section.watched, section.held_out * total) / micro * probe.seconds
        return self._trained("reward", stage, [probe], watched, held, _widths(seen), 2 * total)

    def dpo(self) -> Taken:
        section = self.material.life.dpo
        seen, total = self._pairs(section)
        referred = [ReferredPairs(batch, torch.zeros(len(batch.ids_BT))) for batch in seen]

        def build() -> Any:
            model = self._model()
            if section.adapter is not None:
                add_adapter(model, "dpo", section.adapter, 0)
            return Actor(model, "dpo"), DPOObjective(section.beta)

        micro = min(section.micro_batch, section.batch_size)
        stage = self._stepped(build, referred, section.batch_size / micro, section.training)
        typical, widest = stage.typical.batch, stage.widest.batch
        probe = self._pass(stage, lambda model, objective: objective(model, stage.typical))
        reference = self._pass(stage, lambda model, _: reference_logprobs(model, [widest]), self.dtype)
        once = self._pass(stage, lambda model, _: reference_logprobs(model, [typical]), self.dtype)
        held = section.held_out * total
        before = (total - held) / micro * once.seconds + (min(section.watched, held) + held) / micro * probe.seconds
        watched = min(section.watched, held) / micro * probe.seconds
        after = before + held / micro * probe.seconds
        return self._trained("dpo", stage, [probe, reference], watched, after, _widths(seen), 2 * total)

    def ppo(self) -> Taken:
        section, m = self.material.life.ppo, self.material
        sample = sampled(section.data, "prompts", m.life.seed)
        new, r = section.sampling.max_new_tokens, section.rolling
        longest = m.architecture.context - new
        prompts = PromptSampler(sample.rows, m.renderer, longest, m.life.seed, section.too_long)
        taken = [len(one.ids) for one in prompts.take(r.answers)]
        rows = -(-r.answers // r.minibatches)
        micro = min(r.micro_batch, rows)
        reward = m.life.reward.adapter

        def build() -> Any:
            model, table = self._model(), section.roles.table()
            add_adapter(model, str(table["reward"].adapter), reward, 0)
            critic = table["critic"].adapter
            if section.critic_start == "reward" and critic not in (None, table["policy"].adapter):
                add_adapter(model, str(critic), reward, 0)
            return RoleModel(model, table, section.adapter, 0), PPOObjective(section.clipping)

        batch = PPOBatch(_rollout(taken[:micro], new))
        stage = Stepped(build, batch, batch, rows / micro, section.training, m.vocabulary)
        most, few = min(TOGETHER, section.measured), min(r.micro_batch, r.answers)
        rows_scored = max(most, few)
        scored = self._pass(
            stage, lambda model, _: score(model, _answers(_cycled(taken, rows_scored), new), rows_scored, _plain),
            self.dtype,
        )  # fmt: skip
        rolling = self._answering(build, r.answers, new, taken, together=r.answers, role=section.roles.policy.adapter)
        measured = min(section.measured, section.held_out * sample.total)
        looking = rolling.times(measured / r.answers)
        each = rolling.seconds + r.answers / rows_scored * scored.seconds
        rollouts = -(-section.training.steps // (r.epochs * r.minibatches))
        after = 2 * (looking.seconds + measured / rows_scored * scored.seconds)
        passes = [scored, rolling, looking]
        return self._trained("ppo", stage, passes, 0.0, after + rollouts * each, min(24, rollouts + 2), sample.total)

    # ------------------------------------------------------------ measured

    def quantize(self) -> Taken:
        section, m = self.material.life.quantize, self.material
        documents = 0 if m.life.text is None else m.corpus.held_tokens
        if section.documents is not None and documents:
            sample = m.corpus.sample
            documents = min(documents, section.documents * sample.tokens // max(sample.documents, 1))
        scored = self._scored(documents)
        kinds = len(section.kinds)
        token = self._answering(self._bare, 1, section.new_tokens, [16])
        seconds = (1 + kinds) * (scored.seconds + 3 * token.seconds) + kinds * self._writing(2 * self.numbers)
        moments = [p.moment.with_more(weights=2 * self.numbers) for p in (scored, token)]
        return Taken("quantize", moments, self._loading() + seconds, scored.flops * (1 + kinds), 8)

    def evaluate(self) -> Taken:
        life, m = self.material.life, self.material
        named = [name for name in ("rope", "pretrain", "sft", "dpo", "ppo") if getattr(life, name) is not None]
        models = len(named) + (life.base is not None)
        passes, seconds, rough = list[Pass](), 0.0, False
        for task in life.evaluate.tasks:
            match task.kind:
                case "bits_per_byte" | "held_out":
                    found = self._scored(0 if life.text is None else m.corpus.held_tokens)
                case "loss_by_position":
                    found = self._scored((task.limit or 4) * (task.length or min(m.architecture.context, LONGEST)))
                case "exercises":
                    found = self._answering(self._bare, task.limit or 200, task.max_new_tokens)
                case "samples":
                    found = self._answering(self._bare, len(task.prompts), task.max_new_tokens)
                case _:
                    rough = True
                    continue
            passes.append(found)
            seconds += models * found.seconds
        held = 4 * self.numbers * (models - 1)
        # n-grams of the text, as baselines; what answers took stays.
        read = 0 if life.text is None else min(m.corpus.text_bytes, MOST)
        grams, seconds = 100 * read, seconds + read / self.machine.baseline_rate
        moments = [one.moment.with_more(weights=held, text=grams) for one in passes] or [Moment({"weights": held})]
        flops = models * sum(one.flops for one in passes)
        return Taken("evaluate", moments, models * self._loading() + seconds, flops, 0, rough=rough)

    # ------------------------------------------------------------ what they share

    @property
    def numbers(self) -> int:
        """Parameters of the model."""
        with torch.device("meta"):
            return sum(
                p.numel() for p in Transformer(self.material.architecture, self.material.vocabulary).parameters()
            )

    def _model(self) -> Transformer:
        a = self.material.architecture
        if self.depth is not None:
            a = a.model_copy(update={"layers": self.depth})
        return Transformer(a, self.material.vocabulary)

    def _deep(self, watch: Callable[[], X], adapter: Any = None) -> X:
        """What is watched, of the model with all its blocks."""
        a = self.material.architecture
        alike = not (a.local or a.shared or a.encoder_layers or getattr(adapter, "kind", "") == "freeze")
        if a.layers <= WHOLE or not alike:
            return watch()
        found = list[X]()
        for self.depth in (2, 3):
            found.append(watch())
        self.depth = None
        return found[0].deeper(found[1], a.layers)

    def _pass(
        self, stage: Stepped, run: Callable[[Any, Any], object], dtype: torch.dtype | None = None, adapter: Any = None
    ) -> Pass:
        return self._deep(lambda: pass_of(stage, self.machine, run, dtype), adapter)

    def _bare(self) -> Any:
        return self._model(), NextToken()

    def _stepped(self, build: Any, seen: Sequence[Any], micro_batches: float, training: Training) -> Stepped:
        """Of the micro-batches seen, the widest and the middle one."""
        ordered = sorted(seen, key=_size)
        return Stepped(
            build, ordered[-1], ordered[len(ordered) // 2], micro_batches, training, self.material.vocabulary
        )

    def _pairs(self, section: Any) -> tuple[list[Any], int]:
        m = self.material
        sample = sampled(section.data, "pairs", m.life.seed)
        micro = min(section.micro_batch, section.batch_size)
        rows = PairBatches(
            sample.rows, m.renderer, m.architecture.context, section.batch_size, micro, m.life.seed, section.too_long
        )
        return [part for _ in range(-(-SEEN * micro // section.batch_size)) for part in rows.next()], sample.total

    def _trained(
        self,
        name: str,
        stage: Stepped,
        passes: Sequence[Pass],
        probe: float,
        beside: float = 0.0,
        widths: int = 1,
        rows: float = 0,
    ) -> Taken:
        """A stage that is `train` and what stands around it. `probe` is the seconds of one evaluation, `beside` of what
        is done once, `widths` how many different batches come, `rows` how many conversations are made ready."""
        adapter, training = getattr(getattr(self.material.life, name), "adapter", None), stage.training
        step = self._deep(lambda: step_of(stage, self.machine, self.dtype, self.fuse), adapter)
        looks = 1 + -(-training.steps // training.evaluate_every) if passes else 0
        saves = -(-training.steps // training.checkpoint_every)
        seconds = (
            training.steps * step.seconds
            + looks * (probe + self._writing(step.trained_bytes))
            + saves * (2 * self._writing(0) + self._writing(step.trained_bytes) + self._writing(step.optimizer_bytes))
            + beside + rows * self.machine.row_seconds + self._loading()
            + self._writing(step.stays.by_cause.get("weights", 0) + step.trained_bytes)
        )  # fmt: skip
        held = step.stays.by_cause.get("optimizer", 0)
        moments = [step.moment, *(one.moment.with_more(optimizer=held) for one in passes)]
        shapes = len(step.moment.shapes) * min(widths, training.steps)
        less = self._held_smaller(name)
        held_so = [self._opened(moment).with_more(weights=-less) for moment in moments]
        flops = training.steps * step.flops
        return Taken(name, held_so, seconds, flops, shapes, step.parameters, step.trained, rows=rows)

    def _held_smaller(self, name: str) -> int:
        """Bytes that a frozen base takes less than in float32; of one held as stored, all is in the mapped file."""
        held: BaseWeights = getattr(getattr(self.material.life, name), "base_weights", "fp32")
        if held == "fp32":
            return 0
        m = self.material
        whole = base_bytes(m.architecture, m.vocabulary)
        if held != "stored" or m.base is None or not isinstance(m.base.made, Stored):
            return whole - base_bytes(m.architecture, m.vocabulary, "int8" if held == "stored" else held)
        return min(whole, whole - base_bytes(m.architecture, m.vocabulary, held, m.base.made) + self._mapped())

    def _mapped(self) -> int:
        return self._opened(Moment({})).by_cause.get("files", 0)

    def _opened(self, moment: Moment) -> Moment:
        """With the mapped file that a base's weights were read from."""
        base = self.material.base
        if base is None:
            return moment
        from llmlab.checkpoints.where import find

        path = find(str(self.material.life.base))
        files = [path] if path.is_file() else [*path.glob("*.safetensors"), *path.glob("*.gguf")]
        return moment.with_more(files=sum(file.stat().st_size for file in files))

    def _scored(self, tokens: int) -> Pass:
        """The likelihood of so many tokens, window by window, in float32."""
        architecture, vocabulary = self.material.architecture, self.material.vocabulary
        together = max(1, min(TOKENS, LOGITS // vocabulary, max(2, tokens)))
        length = min(architecture.context, together, 1024)
        rows = max(1, together // length)
        ids = torch.zeros(rows, length, dtype=torch.int64)
        batch = Batch(ids, ids, Places.causal(rows, length))
        stage = Stepped(self._bare, None, None, 1, Training(steps=1), vocabulary)
        one = self._pass(stage, lambda model, _: token_logprobs(model, batch).double())
        times = tokens / (rows * length)
        return Pass(one.moment, one.seconds * times, one.flops * times)

    def _answering(
        self,
        build: Any,
        count: float,
        new: int,
        prompts: Sequence[int] = (),
        together: int = TOGETHER,
        role: str | None = None,
    ) -> Pass:
        """Answers of `new` tokens to so many prompts, `together` at a time, by the plain engine: prompts read once,
        then a token at a time with a cache."""
        count = max(1, math.ceil(count))
        rows, width = min(together, count), max([*prompts, 0]) or 48
        width = min(width, max(1, self.material.architecture.context - new))
        stage = Stepped(build, None, None, 1, Training(steps=1), self.material.vocabulary)

        def run(model: Any, watch: Watch) -> None:
            base = model.base if hasattr(model, "base") else model
            cache = DenseCache(width + new)
            ids = torch.zeros(rows, width, dtype=torch.int64)
            base.logits(base.hidden(ids, Places.causal(rows, width), cache, role)[:, -1])
            watch.mark()
            for at in (width, width + (new - 1) // 2):  # the second is as long as all are in the middle
                cache.length = at
                hidden = base.hidden(ids[:, :1], Places.causal(rows, 1, start=at), cache, role)
                torch.log_softmax(base.logits(hidden[:, -1]).float(), -1)

        def watch_it() -> Pass:
            with watched() as watch:
                model, _ = made(stage, watch)
                model.eval()
                with torch.no_grad():
                    run(model, watch)
            census, groups = watch.census, count / rows
            works = [work._replace(called=True) for work in census.works]
            reading, telling = works[: watch.marks[0]], works[watch.marks[0] :]
            token = self.machine.seconds(telling) / 2
            seconds = groups * (self.machine.seconds(reading) + (new - 1) * token)
            flops = sum(work.flops for work in reading) + (new - 1) * sum(work.flops for work in telling) / 2
            return Pass(moment_of(census), seconds, groups * flops)

        whole = self._deep(watch_it)
        return Pass(whole.moment, whole.seconds + count * new * self.machine.token_seconds, whole.flops)

    def _loading(self) -> float:
        """Seconds to read the weights into memory: they are moved twice."""
        return 8 * self.numbers / 2e9

    def _writing(self, size: int) -> float:
        return self.machine.write_seconds + size / self.machine.write_rate


def _plain() -> Any:
    from contextlib import nullcontext

    return nullcontext()


def _size(batch: Any) -> int:
    inner = getattr(batch, "batch", batch)
    return int(inner.ids_BT.numel())


def _widths(seen: Sequence[Any]) -> int:
    """How many different sizes the micro-batches have."""
    return len({_size(batch) for batch in seen})


def _cycled(lengths: Sequence[int], count: int) -> list[int]:
    return [lengths[at % len(lengths)] for at in range(count)]


def _answers(prompts: Sequence[int], new: int) -> Answers:
    """Answers of full length to prompts of these lengths."""
    prompt_B = torch.tensor(prompts)
    length_B = prompt_B + new
    width = int(max(prompts)) + new
    rows = len(prompts)
    return Answers(
        torch.zeros(rows, width, dtype=torch.int64), prompt_B, length_B, torch.ones(rows, dtype=torch.bool),
        torch.zeros(rows, width),
    )  # fmt: skip


def _rollout(prompts: Sequence[int], new: int) -> Rollout:
    answers = _answers(prompts, new)
    cells = {
        name: torch.zeros(answers.ids_BT.shape)
        for name in ("sampler_BT", "old_BT", "reference_BT", "values_BT", "advantages_BT", "returns_BT")
    }
    return Rollout(
        ids_BT=answers.ids_BT, prompt_B=answers.prompt_B, length_B=answers.length_B,
        scores_B=torch.zeros(len(prompts)), **cells,
    )  # fmt: skip
