"""Question 17 in figures: the ledger counted, and what each of the handbook's methods does and does not save."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from llmlab.adapters.adapted import adapted_linears
from llmlab.adapters.count import base_bytes, trained_parameters
from llmlab.adapters.lora import LoRA
from llmlab.adapters.merging import merge
from llmlab.data.batch import IGNORE, Batch
from llmlab.handbook import distilling, rank_bytes
from llmlab.handbook.question import Figures
from llmlab.handbook.raced import Told
from llmlab.handbook.smollm2_shape import SMOLLM2, VOCABULARY
from llmlab.handbook.training_ledger import (
    ADAPTER,
    FIRST,
    TextRows,
    V,
    counted,
    learner,
    predicted,
    setup,
    take_steps,
)
from llmlab.handbook.training_rows import BY_NAME, LEDGER
from llmlab.model.transformer import Architecture, Transformer
from llmlab.objectives.language import NextToken, token_logprobs
from llmlab.runtime import generator
from llmlab.stages import Session
from llmlab.training.adafactor import Adafactor
from llmlab.training.adamw import AdamW
from llmlab.training.checkpointing import checkpointed
from llmlab.training.eight_bit import AdamW8bit
from llmlab.training.memory import Load, on_paper
from llmlab.training.optimizer import trained
from llmlab.training.parallel.ranks import Alone
from llmlab.training.step import Gradients

LONG = {"layers": 3, "dim": 64, "context": 48}  # activations are the peak
BROAD = {"layers": 2, "dim": 256, "context": 4}  # weights, gradients and moments are
LENGTHS = (3, 40, 17, 9)  # learnt tokens of rows that are accumulated
MATRIX = (256, 512)  # that is pruned
FREE = ("checkpointing, full", "checkpointing, selective", "accumulation of 4", "chunked loss", "in backward")


def ledger() -> Figures:
    """Each row foretold and counted, and over what it is held against; scratch rows in the broad shape too."""
    found: Figures = {}
    for row in LEDGER:
        made = setup(row, LONG)
        said = predicted(made)
        found |= {f"{row.name}: foretold": said.peak, f"{row.name}: counted": counted(made)}
        found |= {f"{row.name}: {cause}": getattr(said, cause) for cause in ("weights", "activations")}
        if row.group == "scratch":
            found[f"{row.name}: broad"] = counted(setup(row, BROAD))
    for row in LEDGER:
        for shape in ("counted", "broad"):
            if f"{row.name}: {shape}" in found:
                over = found[f"{row.name}: {shape}"] / found[f"{row.against}: {shape}"]
                found[f"{row.name}: {shape} over"] = over
    gaps = [abs(found[f"{row.name}: foretold"] / found[f"{row.name}: counted"] - 1) for row in LEDGER]
    fused, plain = (predicted(setup(BY_NAME[name], BROAD)) for name in ("in backward", "not clipped"))
    pieces, whole = (predicted(setup(BY_NAME[name], LONG)) for name in ("accumulation of 4", "adamw"))
    found["fused_gradients"] = fused.gradients / plain.gradients
    found["accumulation_weights_gap"] = abs(pieces.weights + pieces.optimizer - whole.weights - whole.optimizer)
    changes = [abs(found[f"not clipped: {shape} over"] - 1) for shape in ("counted", "broad")]
    return found | {"worst_gap": max(gaps), "clipping_change": max(changes)}


# ---------------------------------------------------------------- accumulation, checkpointing, sharing


def _model(seed: int, *diff: str) -> Transformer:
    made = setup(BY_NAME["shared layers"] if diff else BY_NAME["adamw"], LONG)
    return made.architecture.build(V, seed)


def _gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def ragged(seed: int) -> Batch:
    """Rows of text of which unequal beginnings are learnt."""
    (batch,) = TextRows(FIRST, Load(len(LENGTHS), 48, 0), seed).next(None)
    beyond = torch.arange(48) >= torch.tensor(LENGTHS)[:, None]
    return Batch(batch.ids_BT, batch.targets_BT.masked_fill(beyond, IGNORE), batch.at)


def cut(batch: Batch) -> list[Batch]:
    """Its rows, one a micro-batch."""
    rows = range(len(batch.ids_BT))
    return [Batch(batch.ids_BT[r : r + 1], batch.targets_BT[r : r + 1], batch.at[r : r + 1, :]) for r in rows]


def accumulation(seed: int) -> Figures:
    """Gradients in float64 of a batch of unequal rows: at once, row by row, and as a mean of the rows' means."""
    model, batch = _model(seed).double(), ragged(seed)
    made = Gradients(Alone(model), NextToken(), None, Session(seed=seed))

    def gradient(batches: Sequence[Batch]) -> Tensor:
        model.zero_grad()
        made.of(batches, 0)
        return _gradient(model)

    whole, summed = gradient([batch]), gradient(cut(batch))
    means = torch.stack([gradient([row]) for row in cut(batch)]).mean(0)
    model.zero_grad()
    with checkpointed(model, "full"):
        again = gradient([batch])
    return {
        "accumulated_gap": _apart(summed, whole),
        "mean_of_means_gap": _apart(means, whole),
        "checkpointed_gap": _apart(again, whole),
    }


def sharing(seed: int, found: Mapping[str, float]) -> Figures:
    """One block at all depths, over blocks of their own; the same of the embedding as head."""

    def flops(*diff: str) -> float:
        model, batch = _model(seed, *diff), ragged(seed)
        with FlopCounterMode(display=False) as counter:
            token_logprobs(model, batch).sum().backward()  # type: ignore[no-untyped-call]
        return float(counter.get_total_flops())

    def over(cause: str) -> float:
        return found[f"shared layers: {cause}"] / found[f"adamw: {cause}"]

    return {
        "shared_weights": over("weights"),
        "shared_activations": over("activations"),
        "shared_flops": flops("model.shared=true") / flops(),
        "tied_weights": found["adamw: weights"] / found["untied head: weights"],
    }


def chunking(seed: int) -> Figures:
    """The loss some positions at a time, against all at once, in nats a token."""
    model, batch = _model(seed), ragged(seed)
    losses = [NextToken(at_once=at_once)(model, batch).sums["cross_entropy"].item() for at_once in (16, None)]
    return {"chunked_loss_gap": abs(losses[0] - losses[1]) / batch.learnt}


# ---------------------------------------------------------------- pruning


def csr_bytes(weight: Tensor, sparsity: float, dtype: torch.dtype) -> int:
    """Of the matrix with so large a share of its smallest numbers gone, as torch keeps it with int32 indices."""
    kept = round(weight.numel() * (1 - sparsity))
    least = weight.abs().flatten().kthvalue(weight.numel() - kept + 1).values
    mask = weight.abs() >= least
    counts = torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)])
    columns = mask.nonzero()[:, 1]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        sparse = torch.sparse_csr_tensor(
            counts.int(), columns.int(), weight[mask].to(dtype), weight.shape, check_invariants=True
        )
    return sum(int(part.nbytes) for part in (sparse.values(), sparse.crow_indices(), sparse.col_indices()))


def pruning(seed: int) -> Figures:
    """Zeros in a dense tensor, as CSR, and whole rows and columns gone."""
    weight = torch.randn(MATRIX, generator=generator(seed, "handbook", "pruned"))
    zeros = weight.masked_fill(weight.abs() < weight.abs().median(), 0.0)
    found: Figures = {"zeros": float((zeros == 0).float().mean()), "dense_saved": float(weight.nbytes - zeros.nbytes)}
    for name, dtype, size in (("fp32", torch.float32, 4), ("fp16", torch.float16, 2)):
        dense, rows = size * weight.numel(), len(weight)
        for percent in (45, 55, 60, 75):
            found[f"csr_{name}_{percent}"] = csr_bytes(weight, percent / 100, dtype) / dense
        found[f"csr_{name}_even"] = 1 - (dense - 4 * (rows + 1)) / (size + 4) / weight.numel()
    whole, half = (on_paper(_narrowed(part), V) for part in (1, 2))
    inner = [sum(p.nbytes for name, p in m.named_parameters() if ".feedforward." in name) for m in (whole, half)]
    return found | {"structured_share": inner[1] / inner[0]}


def _narrowed(part: int) -> Architecture:
    a = setup(BY_NAME["adamw"], BROAD).architecture
    width = a.feedforward.hidden_width(a.dim) // part
    return a.model_copy(update={"feedforward": a.feedforward.model_copy(update={"width": width})})


# ---------------------------------------------------------------- few bits, few numbers, ranks, two models


def few_bits() -> Figures:
    """SmolLM2's frozen base, and what optimizers keep of it, over float32 and AdamW."""
    bits = {kind: base_bytes(SMOLLM2, VOCABULARY, kind) for kind in ("fp32", "int8", "int4")}
    shapes = {name: tuple(p.shape) for name, p in trained(on_paper(SMOLLM2, VOCABULARY)).items()}
    blocks = {name: shape for name, shape in shapes.items() if name.startswith("blocks.")}
    plain, small = AdamW(), AdamW8bit()
    return {
        "int8_share": bits["int8"] / bits["fp32"],
        "int4_share": bits["int4"] / bits["fp32"],
        "fp32_base": float(bits["fp32"]),
        "int4_base": float(bits["int4"]),
        "adamw8bit_share": small.state_bytes(blocks) / plain.state_bytes(blocks),
        "adamw8bit_all": small.state_bytes(shapes) / plain.state_bytes(shapes),
        "adafactor_share": Adafactor().state_bytes(shapes) / plain.state_bytes(shapes),
    }


def lora(seed: int) -> Figures:
    """How many numbers learn, against r (d_in + d_out) of each matrix, and what merging changes in logits."""
    made = setup(BY_NAME["lora"], LONG)
    model = made.architecture.build(V, seed)
    take_steps(learner(model, made, seed), made, 3, seed)
    sizes = [sum(linear.base.weight.shape) for _, linear in adapted_linears(model)]
    assert isinstance(made.adapter, LoRA)
    formula = made.adapter.rank * sum(sizes)
    counted_ = trained_parameters(made.adapter, made.architecture, V)
    full = trained_parameters(LoRA(rank=8), SMOLLM2, VOCABULARY) / trained_parameters(None, SMOLLM2, VOCABULARY)
    return {
        "lora_formula_gap": float(abs(counted_ - formula)),
        "lora_trained_share": full,
        "lora_merged_gap": merge(model, ADAPTER).difference,
    }


def ranks() -> Figures:
    """What one of two ranks holds over one process alone, foretold from shapes."""
    alone = rank_bytes.foretold("ddp", 1)
    found: Figures = {}
    for way in rank_bytes.WAYS:
        held = rank_bytes.foretold(way, rank_bytes.RANKS)
        found |= {f"{way}: {kind}": held[kind] / alone[kind] for kind in alone}
        found[f"{way}: all"] = sum(held.values()) / sum(alone.values())
    return found


def distillation() -> Figures:
    """Bytes of training with a teacher over training without, and of the student over the teacher."""
    alone = {size: distilling.training_bytes(size) for size in distilling.SIZES}
    taught = {
        "small": distilling.training_bytes("small", "large"),
        "large": distilling.training_bytes("large", "small"),
    }
    large = distilling.weight_bytes("large")
    return {
        "student_share": distilling.weight_bytes("small") / large,
        "taught_over_alone": taught["small"] / alone["small"],
        "reversed_over_alone": taught["large"] / alone["large"],
        "more_over_teacher": (taught["small"] - alone["small"]) / large,
    }


def figures(session: Session) -> Figures:
    found = ledger()
    found |= accumulation(session.seed) | sharing(session.seed, found) | chunking(session.seed)
    found |= pruning(session.seed) | few_bits() | lora(session.seed) | ranks() | distillation()
    return {name: float(value) for name, value in found.items()}


# ---------------------------------------------------------------- raced


def raced(told: Mapping[str, Told]) -> Figures:
    """Bytes of two processes against their formula, losses of the ledger's rows, and distillation both ways."""
    return _ranks(told["rank_bytes"]) | _losses(told["memory_savers"]) | _taught(told["distillation"])


def _ranks(race: Told) -> Figures:
    gaps, found = [], Figures()
    for arm, ranks in (("alone", 1), *((way, rank_bytes.RANKS) for way in rank_bytes.WAYS)):
        said = rank_bytes.foretold("ddp" if arm == "alone" else arm, ranks)
        gaps += [abs(race.mean(arm, kind) - said[kind]) for kind in rank_bytes.MEASURES]
        measured, alone = (sum(race.mean(name, kind) for kind in rank_bytes.MEASURES) for name in (arm, "alone"))
        found[f"{arm}: measured"] = measured / alone
    return found | {"ranks_gap": max(gaps)}


def _losses(race: Told) -> Figures:
    found: Figures = {"ledger_seeds": float(len(race.record["seeds"]))}
    for row in LEDGER:
        found[f"{row.name}: loss"] = race.mean(row.name, "loss")
        if row.name != row.against:
            found |= race.bounds(f"{row.name}: loss change", row.name, row.against, "loss")
    moved = [(name, "not clipped" if name == "in backward" else "adamw") for name in FREE]
    pairs = [(race.values(name, "loss"), race.values(against, "loss")) for name, against in moved]
    return found | {"moved_loss_gap": max(abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=True))}


def _taught(race: Told) -> Figures:
    arm = "same text"
    found: Figures = {
        f"{name}: nats": race.mean(arm, name) for name in ("large", "small", "large to small", "small to large")
    }
    found |= race.bounds("taught", arm, arm, "large to small", "small")
    return (
        found
        | race.bounds("reversed", arm, arm, "small to large", "large")
        | {"taught_seeds": float(len(race.record["seeds"]))}
    )
