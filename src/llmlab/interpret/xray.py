"""What a model is made of, found by probing function and weights: nothing here reads a config or a name.

Each probe does what a reader of a formula would: scale the residual stream by 10 and see what carries it, add a
constant to a norm's input, silence a part, speak for a linear, move a token or a position. Each finding carries the
numbers that tell it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from llmlab.errors import InputError
from llmlab.interpret.hooks import Call, Patient, apart, noise, saying, size, watching
from llmlab.interpret.mask_kind import Window, windows_of
from llmlab.interpret.norm_kind import NormKind, examine, is_norm
from llmlab.interpret.position_kind import FAR, PositionKind, absolute_of, places, relative_of
from llmlab.interpret.stack import Stack, told
from llmlab.model.attention import Sight
from llmlab.model.places import Places
from llmlab.model.transformer import Transformer

MOST_SEGMENTS = 16


@dataclass(frozen=True)
class Finding:
    """What was found of one trait, and the numbers that tell it."""

    name: str
    found: Any
    evidence: dict[str, float] = field(default_factory=dict)


@torch.no_grad()
def xray(model: Transformer) -> list[Finding]:
    """What this model is made of. It is run some hundreds of times on a few tokens, and left as it was.

    Errors: InputError for a model whose blocks lack a mixer or a feed-forward.
    """
    was_training = model.training
    model.eval()
    try:
        patient = Patient(model)
        stack = Stack(patient)
        found = [*_embedding(patient, stack), *_wiring(patient, stack), *_attention(stack), *_positions(patient, stack)]
        found += [*_feedforward(stack), *_head(patient), *_whole(patient, stack)]
        if model.encoder is not None:
            encoder = Stack(patient, encoder=True)
            inner = [*_wiring(patient, encoder), *_attention(encoder), *_positions(patient, encoder)]
            found += [Finding(f"encoder {f.name}", f.found, f.evidence) for f in [*inner, *_feedforward(encoder)]]
        return found
    finally:
        model.train(was_training)


def table(findings: Sequence[Finding]) -> str:
    """One line a finding: what it is, what was found, and by which numbers."""
    rows = [(f.name, _plain(f.found), "; ".join(f"{k} {v:.4g}" for k, v in f.evidence.items())) for f in findings]
    wide = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{name:<{wide[0]}}  {found:<{min(wide[1], 40)}}  {why}".rstrip() for name, found, why in rows)


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """{name: {found, evidence}}."""
    return {f.name: {"found": f.found, "evidence": f.evidence} for f in findings}


def _plain(found: Any) -> str:
    if isinstance(found, bool):
        return "yes" if found else "no"
    if isinstance(found, dict):
        return ", ".join(f"{key} {_plain(value)}" for key, value in found.items())
    if isinstance(found, list):
        return ", ".join(map(_plain, found))
    return f"{found:.6g}" if isinstance(found, float) else "none" if found is None else str(found)


# ---------------------------------------------------------------- embeddings and norms


def _outer_norms(patient: Patient) -> tuple[list[Call], list[Call]]:
    """Calls of norms that stand before the first and after the last block."""
    model = patient.model
    blocks = list(model.blocks)
    outer = [child for child in model.children() if not any(block in set(child.modules()) for block in blocks)]
    with watching([*outer, *blocks]) as calls:
        patient.layers(patient.ids)
    seen = [i for i, call in enumerate(calls) if call.module in blocks]
    norms = [
        (i, call)
        for i, call in enumerate(calls)
        if call.module not in blocks and isinstance(call.output, Tensor) and call.args[0].is_floating_point()
        if not torch.equal(call.output, call.args[0]) and is_norm(call.again, call.args[0])
    ]
    return [call for i, call in norms if i < seen[0]], [call for i, call in norms if i > seen[-1]]


def _embedding(patient: Patient, stack: Stack) -> list[Finding]:
    model, at = patient.model, stack.layers[0].sight.at
    rows = model.embedding(patient.ids)
    held = [patient.embedded(patient.ids, at, change) for change in (torch.zeros_like, lambda y: y)]
    scale = float(((held[1] - held[0]) * rows).sum() / rows.square().sum())
    grown = []
    for factor in (1e3, 1e4):
        with saying({model.embedding: lambda y, factor=factor: factor * y}):  # type: ignore[misc]
            grown.append(size(patient.layers(patient.ids)[0].x))
    before, _ = _outer_norms(patient)
    segments, apart_by = _segment_vectors(patient, at)
    return [
        Finding("vocabulary", int(model.embedding.weight.shape[0])),
        Finding("width", int(stack.layers[0].x.shape[-1])),
        Finding("embedding width", int(rows.shape[-1])),
        Finding("embedding scale", round(scale, 5)),
        Finding("embedding norm", bool(before), {"stream when the table grows tenfold": grown[1] / grown[0]}),
        Finding("segments in embedding", segments, {"moved by a segment": apart_by}),
    ]


def _segment_vectors(patient: Patient, at: Places) -> tuple[int, float]:
    """How many texts of a pair have a vector of their own, and how far the second's lies from the first's."""

    def added(segment: int) -> Tensor:
        there = Places(at.position, at.order, at.document, torch.full_like(at.order, segment))
        return patient.embedded(patient.ids, there, torch.zeros_like)

    first, apart_by = added(0), 0.0
    for segment in range(1, MOST_SEGMENTS):
        try:
            moved = size(added(segment) - first)
        except IndexError:  # the table ends
            return segment, apart_by
        if not moved:
            return 0, 0.0
        apart_by = apart_by or moved
    return MOST_SEGMENTS, apart_by


def _wiring(patient: Patient, stack: Stack) -> list[Finding]:
    first = stack.taken[0].wired
    probes = {
        "stream tenfold, block's answer": first.stream,
        "stream tenfold, part's input": first.before,
        "part's answer tenfold, branch": first.after,
        "attention replaced, feed-forward's input moved": first.parallel,
    }
    width = stack.layers[0].x.shape[-1]
    before, after = ([], []) if stack.encoder else _outer_norms(patient)
    modules = [*stack.norms, *(call.module for call in [*before, *after])]
    kinds: list[NormKind] = [
        examine(module, width if module in stack.norms else call_width(module, width)) for module in modules
    ]
    found = [
        Finding("layers", len(stack.layers)),
        Finding("layers with weights of their own", len({layer.block for layer in stack.layers})),
        Finding("wiring", stack.each(lambda taken: taken.wired.kind), probes),
        Finding("alpha", stack.each(lambda taken: round(taken.wired.alpha, 4))),
        Finding("norms a block", stack.each(lambda taken: len(taken.parts.norms))),
    ]
    if kinds:
        shift = max(kind.shift for kind in kinds) if kinds[0].kind == "layernorm" else min(k.shift for k in kinds)
        found += [
            Finding("norm", told([kind.kind for kind in kinds]), {"moved when 3 is added to all": shift}),
            Finding("norm epsilon", float(f"{kinds[0].eps:.3g}")),
            Finding("norm bias", told([kind.bias for kind in kinds])),
            Finding("norm gain offset", told([kind.offset for kind in kinds])),
            Finding("norm share measured", told([round(kind.partial, 3) for kind in kinds])),
        ]
    if not stack.encoder:
        ratio = {}
        if after:
            x = after[0].args[0]
            ratio = {
                "answer when the stream grows tenfold": size(after[0].again(1e4 * x)) / size(after[0].again(1e3 * x))
            }
        found.append(Finding("final norm", bool(after), ratio))
    return found


def call_width(module: nn.Module, width: int) -> int:
    """The width of a norm that may stand on narrower vectors than the stream (ALBERT's embeddings)."""
    return next((parameter.numel() for parameter in module.parameters()), width)


# ---------------------------------------------------------------- attention and positions


def _attention(stack: Stack) -> list[Finding]:
    heads = [taken.heads for taken in stack.taken]
    found = [
        Finding("mask", stack.mask.kind, {"cells ahead seen": stack.mask.ahead, "tokens": stack.mask.tokens}),
        Finding("mixer", told([h.kind for h in heads]), {"log-odds when the query doubles": heads[0].doubling}),
        Finding("biases of query, key and value", told([h.biases[0] for h in heads])),
        Finding("bias of attention's output", told([h.biases[1] for h in heads])),
    ]
    if stack.mask.kind in ("prefix", "blank"):
        found.insert(1, Finding("prefix", stack.mask.prefix))
    if any(h.kind not in ("softmax", "linear") for h in heads):
        return found
    return [
        *found,
        Finding("heads", told([h.heads for h in heads])),
        Finding(
            "key/value heads", told([h.key_heads for h in heads]), {"heads that share the first": heads[0].sharing}
        ),
        Finding("head width", told([h.head_dim for h in heads])),
        Finding("score scale", told([round(h.scale, 6) for h in heads])),
        Finding("query and key norm", told([h.qk_norm for h in heads])),
        Finding("cross-attention", any(taken.parts.cross for taken in stack.taken)),
    ]


def _positions(patient: Patient, stack: Stack) -> list[Finding]:
    absolute = absolute_of(patient, stack.axes, stack.encoder)
    if any(taken.mixing.recurrent for taken in stack.taken):
        return [Finding("position", absolute.kind, absolute.evidence), Finding("position settings", absolute.settings)]
    windows = _windows(patient, stack)
    kinds: list[PositionKind] = []
    same: dict[bytes, PositionKind] = {}
    reach = absolute.settings.get("positions", FAR)
    for depth, mixing in enumerate(taken.mixing for taken in stack.taken):

        def sights(at: Places, depth: int = depth) -> Sight:
            return stack.sight(at, depth)

        kinds.append(relative_of(mixing, sights, stack.axes, stack.in_order, reach, same))
    both = sorted({absolute.kind, *(kind.kind for kind in kinds)} - {"none"}) or ["none"]
    local = _local(windows)
    first = kinds[next((depth for depth in range(len(kinds)) if depth not in local), 0)]
    settings = {**absolute.settings, **(_settings(kinds, local) if first.kind != "none" else {})}
    found = [
        Finding("position", "+".join(both), {**absolute.evidence, **first.evidence}),
        Finding("position settings", settings),
        Finding("window", told([w.window for w in windows]) if not local else windows[local[0]].window),
        Finding("sinks", told([w.sinks for w in windows])),
        Finding("local layers", local),
    ]
    if local and kinds[local[0]].settings != first.settings:
        found.append(Finding("local position settings", kinds[local[0]].settings))
    segments = _segments(stack)
    return [*found, Finding("segments in attention", segments > 1e-12, {"moved by a segment": segments})]


def _windows(patient: Patient, stack: Stack) -> list[Window]:
    if stack.encoder or any(taken.heads.kind != "softmax" for taken in stack.taken):
        return [Window(None, 0)] * len(stack.layers)
    return windows_of(patient, [taken.mixing for taken in stack.taken], stack.axes)


def _local(windows: list[Window]) -> list[int]:
    """Layers that see a shorter window than others."""
    if len({w.window for w in windows}) == 1:
        return []
    shortest = min(w.window for w in windows if w.window is not None)
    return [depth for depth, w in enumerate(windows) if w.window == shortest]


def _settings(kinds: list[PositionKind], local: list[int]) -> dict[str, Any]:
    rest = [kind for depth, kind in enumerate(kinds) if depth not in local] or kinds
    return rest[0].settings if len({str(kind.settings) for kind in rest}) == 1 else dict(enumerate(map(str, rest)))  # type: ignore[arg-type]


def _segments(stack: Stack) -> float:
    """How far attention weights move when every second token becomes of another text."""
    at = places(torch.zeros(6, dtype=torch.long), stack.axes, stack.in_order)
    mixing = stack.taken[0].mixing
    q, k = (noise(1, 6, mixing.head_dim, name=name) for name in "qk")
    read = []
    for segment in (torch.zeros(1, 6, dtype=torch.long), torch.arange(6)[None] % 2):
        there = Places(at.position, at.order, at.document, segment)
        try:
            read.append(mixing.weights(q, k, stack.sight(there, 0)))
        except IndexError:  # there is one segment only
            return 0.0
    return apart(read[0], read[1])


# ---------------------------------------------------------------- feed-forward, head, the whole


def _feedforward(stack: Stack) -> list[Finding]:
    kinds = [taken.feedforward for taken in stack.taken]
    worst = max(kind.error for kind in kinds)
    found = [
        Finding("activation", told([kind.activation for kind in kinds]), {"largest difference on [-6, 6]": worst}),
        Finding("gate", told([kind.gated for kind in kinds])),
        Finding("feed-forward width", told([kind.width for kind in kinds])),
        Finding("feed-forward biases", told([any(kind.biases) for kind in kinds])),
    ]
    if kinds[0].beta is not None:
        found.insert(1, Finding("swish beta", told([kind.beta for kind in kinds])))
    return found


def _head(patient: Patient) -> list[Finding]:
    model = patient.model
    hidden = patient.hidden(patient.ids)
    try:
        rest = model.logits(hidden)
    except InputError:
        return [Finding("head", "none")]
    other = noise(*hidden.shape, name="head").to(hidden.dtype)
    zero = model.logits(torch.zeros_like(hidden))
    sums = apart(rest + model.logits(other) - zero, model.logits(hidden + other))
    weight = model.embedding.weight
    moved = _moved(weight, 0, lambda: model.logits(hidden) - rest)
    tied = float(moved[..., 0].abs().max())
    vocabulary = weight.shape[0]
    biases = [p for p in model.parameters() if p.ndim == 1 and p.numel() == vocabulary]
    shifts = [float(_moved(p, 0, lambda: model.logits(hidden) - rest)[..., 0].mean()) for p in biases]
    found = [
        Finding("head", "linear" if sums < 1e-4 else "transformed", {"off additivity by": sums}),
        Finding("head bias", any(abs(shift - 1) < 1e-3 for shift in shifts)),
        Finding("tied", tied > 0, {"logit moved with its token's vector": tied}),
    ]
    if tied and sums < 1e-4:
        plain = hidden @ weight.T
        scale = float(((rest - zero) * plain).sum() / plain.square().sum())
        found.append(Finding("head scale", round(scale, 5)))
    return found


def _moved(parameter: Tensor, row: int, ask: Callable[[], Tensor]) -> Tensor:
    """What `ask` answers while 1 is added to a row of a parameter, which is then put back bit by bit."""
    kept = copy.deepcopy(parameter.data[row])
    try:
        parameter.data[row] += 1
        return ask()
    finally:
        parameter.data[row] = kept


def _whole(patient: Patient, stack: Stack) -> list[Finding]:
    model = patient.model
    streams = 2
    try:
        model.queries(patient.ids, stack.layers[0].sight.at)
    except InputError:
        streams = 1
    shared = len({layer.block for layer in stack.layers}) < len(stack.layers)
    encoder = 0 if model.encoder is None else len(patient.layers(patient.ids, encoder=True))
    return [
        Finding("shared layers", shared),
        Finding("streams", streams),
        Finding("encoder layers", encoder),
        Finding("parameters", sum(parameter.numel() for parameter in model.parameters())),
    ]
