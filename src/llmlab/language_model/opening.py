"""From a name or a path to a model that can be used, in the weights that are asked for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llmlab import runtime
from llmlab.adapters.opening import open_policy
from llmlab.checkpoints.bundle import Stored, rescaled
from llmlab.checkpoints.native import CONFIG, read_json
from llmlab.checkpoints.where import QUANTIZED
from llmlab.errors import InputError, unknown
from llmlab.inference.batching import Batching
from llmlab.inference.choice import Choice, choose
from llmlab.language_model.model import LanguageModel
from llmlab.model.quantized import Int4Linear, use_kernels
from llmlab.model.rescaling import Rescaling, read_rescaling
from llmlab.model.transformer import Transformer

WEIGHTS = ("fp32", "bf16", "int8", "int4", "auto")


def load(
    name_or_path: str | Path, weights: str | None = None, device: str | None = None, rope: Any = None
) -> LanguageModel:
    """The model of a pulled name, a run, stage or model folder, or a .gguf file.

    `weights`: None or `fp32` are exact; `bf16` is a cast; `int8` and `int4` quantise in groups; `auto` takes int4, or
    else int8, where the weights are as few bits wide already, so that nothing is lost, else bf16 where the machine
    multiplies in it, else fp32. Everything but fp32 is for speed and moves the figures a little: texts are made by the
    native step where it can run the model (`why` says, `explain` more). `logits` speaks of the weights as they then
    are. A folder of quantised weights stays what it is: fp32 computes with exactly the stored weights, `auto` and its
    own kind by the native step or PyTorch's kernels.
    `device`: cpu by default; cuda, mps or auto put the model there, where PyTorch computes.
    `rope`: rotary angles rescaled for longer texts, as `yarn`, `yarn factor=4`, `{"kind": "yarn", "factor": 4}` or a
    `model.rescaling.Rescaling`; the context grows by the factor.
    Errors: InputError for a name that is not known, files that are not sound, other `weights`, a device that is not
    there, or a model whose angles cannot be rescaled.
    """
    kind = weights or "fp32"
    if kind not in WEIGHTS:  # before a long read
        raise unknown("weights", kind, WEIGHTS)
    on, longer = runtime.device(device or "cpu"), None if rope is None else read_rescaling(rope)
    folder = Path(name_or_path).expanduser()
    if (folder / CONFIG).is_file() and read_json(folder / CONFIG).get("format") == QUANTIZED:
        return _quantized(folder, kind, on, longer)
    bundle = open_policy(name_or_path) if longer is None else rescaled(open_policy(name_or_path), longer)
    if kind == "fp32" and on.type == "cpu":
        return LanguageModel(bundle)
    if on.type == "cpu":
        stored = bundle.made if isinstance(bundle.made, Stored) else Stored.of(bundle.model)
        choice = choose(stored.skeleton, kind, stored.read)
        if (fast := choice.model) is not None:
            why = f"{fast.kind} weights, native step"
            return LanguageModel(replace(bundle, made=fast), Batching(fast), why, choice)
    else:
        choice = Choice(None, f"computes on {on}")
    if kind == "auto":
        kind = "fp32" if runtime.autocast_dtype("auto", on) is None else "bf16"
    made = _converted(bundle.model, kind, on)
    return LanguageModel(replace(bundle, made=made), why=f"{kind} weights, plain path: {choice.reason}", choice=choice)


def _converted(model: Transformer, kind: str, on: torch.device) -> Transformer:
    if kind == "bf16":
        model = model.to(torch.bfloat16)
    elif kind in ("int8", "int4"):
        from llmlab.compression.quantize import Int4, Int8, quantize_model

        model = quantize_model(model, Int8() if kind == "int8" else Int4())
        if on.type == "cpu":
            use_kernels(model)
    return model.to(on)


def _quantized(folder: Path, kind: str, on: torch.device, longer: Rescaling | None) -> LanguageModel:
    """The model of a folder of quantised weights."""
    from llmlab.compression.quantize import for_native, load_quantized

    bundle = load_quantized(folder) if longer is None else rescaled(load_quantized(folder), longer)
    held = "int4" if any(isinstance(module, Int4Linear) for module in bundle.model.modules()) else "int8"
    if kind not in ("fp32", "auto", held):
        raise InputError(
            "weights", f"{folder} holds {held} weights, {kind} cannot be made of them", "open the original"
        )
    why = f"the folder's own {held} weights"
    if kind == "fp32" or on.type != "cpu":
        bundle.model.to(on)
        return LanguageModel(bundle, why=f"{why}, exact")
    stored = for_native(bundle.model)
    choice = Choice(None, stored) if isinstance(stored, str) else choose(stored.skeleton, held, stored.read)
    if choice.model is not None:
        fast = replace(bundle, made=choice.model)
        return LanguageModel(fast, Batching(choice.model), f"{why}, native step", choice)
    use_kernels(bundle.model)
    return LanguageModel(bundle, why=f"{why}, PyTorch's kernels: {choice.reason}", choice=choice)
