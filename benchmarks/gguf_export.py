"""GGUF files as llama.cpp opens them: models trained here and SmolLM2, each type written by `llmlab convert`.

Held to, else the exit code is 1:
- equal ids for every text; ggml's own quantisers give our bytes;
- greedy text equal to llmlab's for F32 and F16, after each prompt on whose way no choice hangs on less than TIE;
- the mean loss on held-out text within BOUNDS of the original's, for each type;
- SmolLM2 written again is what shipped, tensor by tensor, and goes on from each prompt as that does.
A claim's ratio is the original's loss by llmlab over the file's by llama.cpp, window by window; 1 is nothing lost.
(Not called gguf.py: that would hide the package of this name.)
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import torch
import torch.nn.functional as F
import yaml
from paired import report
from torch import Tensor

from llmlab.checkpoints.convert import convert
from llmlab.checkpoints.gguf import TYPES
from llmlab.checkpoints.gguf_file import GGUF, encoded
from llmlab.checkpoints.pull import pull
from llmlab.data.shards import TokenShards
from llmlab.language_model import LanguageModel, load

STEPS, CONTEXT, WINDOWS = 200, 128, 48
PROMPT_TOKENS, NEW_TOKENS = 16, 48
# The most that a type may add to the mean loss, in nats a token.
BOUNDS = {"f32": 0.0001, "f16": 0.001, "q8_0": 0.002, "q4_0": 0.03, "q4_1": 0.03}
# Two logits nearer than this are a tie. llama.cpp rounds activations to halves before it multiplies F16 weights, and
# looks the GELU of a GPT-2 up in a table of halves, whatever the weights are.
HALVES = 0.003
TIE = {"f32": 0.0001, "f16": HALVES}

MODELS: dict[str, dict[str, Any]] = {
    "llama": {"attention": {"kind": "gqa", "heads": 4, "kv_heads": 2}},
    "qwen2": {"attention": {"kind": "gqa", "heads": 4, "kv_heads": 2, "bias": True, "output_bias": False}},
    "gpt2": {
        "position": "learned",
        "norm": "layernorm",
        "attention": {"kind": "mha", "heads": 4, "bias": True},
        "feedforward": {"kind": "gelu_tanh", "bias": True},
    },
}
TEXTS = (
    "Call me Ishmael. Some years ago — never mind how long precisely — I'd $3.50; it's 1,234,567.",
    "滚滚长江东逝水,浪花淘尽英雄。是非成败转头空:青山依旧在,几度夕阳红。",
    "def f(x: int) -> dict[str, int]:\n\treturn {'a': x ** 2}  # no\n\n\nif __name__ == \"__main__\":\n    f(0xF)\n",
    "  two  three   four    \t\ttabs \n \n\n  \r\n end  \u00a0no-break\u2003em\u3000wide ",
    "naïve cafe\u0301 Ünïcödé ﬁ ½ ① ٣٤ 👩\u200d👩\u200d👧 🇨🇭 \u200bzero\ufeff end",
    "<|im_start|>user\nno control token<|im_end|> <|endoftext|>",
    "don't DON'T we'LL 'tis 12345 1a2b3c ___ --- ... !!!???",
)
SMOLLM2_PROMPTS = ("The capital of France is", "def fibonacci(n):", "Once upon a time", "1, 2, 3, 4,", "北京是")


def train(name: str, folder: Path) -> Path:
    recipe = {
        "name": name,
        "dtype": "fp32",
        "text": {"sources": [{"kind": "bundled", "name": book} for book in ("moby_dick", "sanguo_yanyi")]},
        "tokenizer": {"vocab_size": 2048},
        "model": {"layers": 4, "dim": 128, "context": CONTEXT, **MODELS[name]},
        "pretrain": {
            "batch_size": 16,
            "training": {"steps": STEPS, "optimizer": {"kind": "muon"}, "evaluate_every": STEPS},
        },
    }
    written = folder.with_suffix(".yaml")
    written.write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "llmlab", "run", str(written), "--out", str(folder), "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def opened(path: Path, context: int = CONTEXT) -> llama_cpp.Llama:
    """By llama.cpp, keys and values in F32: their rounding to F16, its default, is not the file's."""
    return llama_cpp.Llama(
        str(path), n_ctx=context, n_batch=context, logits_all=True, type_k=0, type_v=0, n_threads=2, verbose=False
    )


def same_ids(theirs: llama_cpp.Llama, ours: LanguageModel, texts: Sequence[str]) -> bool:
    return all(
        theirs.tokenize(text.encode(), add_bos=False, special=False) == ours.tokenizer.encode(text) for text in texts
    )


def goes_on(theirs: llama_cpp.Llama, prompt: str) -> str:
    done = theirs.create_completion(prompt, max_tokens=NEW_TOKENS, temperature=0.0, repeat_penalty=1.0)
    return str(done["choices"][0]["text"])


def greedy(ours: LanguageModel, prompts: Sequence[str]) -> list[tuple[str, str, float]]:
    """Each prompt, how it goes on, and the least lead of a chosen token over the next."""
    rows = []
    for prompt in prompts:
        text = ours.generate(prompt, max_new_tokens=NEW_TOKENS, temperature=0)
        begin = ours.tokenizer.encode(prompt)
        ids = torch.tensor([begin + ours.tokenizer.encode(text, "text")])
        best = ours.logits(ids)[0, len(begin) - 1 : -1].topk(2).values
        rows.append((prompt, text, float((best[:, 0] - best[:, 1]).min())))
    return rows


def their_losses(theirs: llama_cpp.Llama, windows: Tensor) -> list[float]:
    losses = []
    for row in windows.tolist():
        theirs.reset()
        theirs.eval(row)
        logits = torch.from_numpy(np.array(theirs.scores[: len(row)]))
        losses.append(float(F.cross_entropy(logits[:-1].double(), torch.tensor(row[1:]))))
    return losses


def our_losses(ours: LanguageModel, windows: Tensor) -> list[float]:
    return [float(F.cross_entropy(ours.logits(row[None])[0, :-1].double(), row[1:])) for row in windows]


def of_trained(name: str, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A model trained here, in each type: claims, and figures by type."""
    root = train(name, folder / name)
    ours = load(root / "pretrain")
    held = TokenShards(root / "tokenizer" / "held_out").take(np.arange(WINDOWS * CONTEXT))
    windows = torch.from_numpy(held).view(WINDOWS, CONTEXT)
    base = our_losses(ours, windows)
    rows = greedy(ours, [ours.tokenizer.decode(row[:PROMPT_TOKENS].tolist()).strip("\ufffd") for row in windows])
    claims, figures = {}, {}
    for kind in TYPES:
        path = folder / f"{name}-{kind}.gguf"
        done = convert(ours.bundle, path, "gguf", kind)
        theirs = opened(path)
        losses = their_losses(theirs, windows)
        change = float(np.mean(losses) - np.mean(base))
        ids = same_ids(theirs, ours, [*TEXTS, *(text for _, text, _ in rows)])
        figures[kind] = {
            "bytes": path.stat().st_size,
            "parity": done["parity"],
            "loss_change": round(change, 6),
            "bound": BOUNDS[kind],
            "same_ids": ids,
            "holds": ids and change <= BOUNDS[kind],
        }
        if kind in TIE:
            tie = HALVES if name == "gpt2" else TIE[kind]
            equal = [goes_on(theirs, prompt) == text for prompt, text, _ in rows]
            wrong = sum(not same and lead > tie for same, (_, _, lead) in zip(equal, rows, strict=True))
            figures[kind] |= {"prompts": len(rows), "equal": sum(equal), "unequal_without_a_tie": wrong, "tie": tie}
            figures[kind]["holds"] &= wrong == 0
        theirs.close()
        claims[f"{name}_{kind}"] = {"ours": base, "peer": losses}
    return claims, figures


def of_smollm2(folder: Path) -> dict[str, Any]:
    """SmolLM2's shipped Q4_1 file, and the one that we write of its dequantised weights."""
    shipped = pull("smollm2")
    ours, path = load(shipped), folder / "smollm2.gguf"
    convert(ours.bundle, path, "gguf", "q4_1")
    there, here = GGUF(shipped), GGUF(path)
    same = sum(here.tensors[name].quantization is entry.quantization and raw(here, name) == raw(there, name)
               for name, entry in there.tensors.items())  # fmt: skip
    first, second = opened(shipped), opened(path)
    equal = sum(goes_on(first, prompt) == goes_on(second, prompt) for prompt in SMOLLM2_PROMPTS)
    ids = same_ids(second, ours, TEXTS)
    tensors = len(there.tensors.keys() | here.tensors.keys())
    holds = ids and same == tensors and equal == len(SMOLLM2_PROMPTS)
    return {
        "tensors": tensors,
        "same_bytes": same,
        "prompts": len(SMOLLM2_PROMPTS),
        "equal": equal,
        "same_ids": ids,
        "holds": holds,
    }


def raw(file: GGUF, name: str) -> bytes:
    entry = file.tensors[name]
    with file.path.open("rb") as data:
        data.seek(entry.offset)
        return data.read(entry.size)


def same_quantisers() -> dict[str, bool]:
    """Whether our bytes are those of the library that llama.cpp computes with."""
    quantize = llama_cpp.llama_cpp._lib.ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    quantize.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
    weights = torch.randn(4096, 256, generator=torch.Generator().manual_seed(0))
    weights[0] = 0
    weights[1, 1:] = 0
    weights[2] *= 1e-7  # scales below the least half
    weights[3:1000] *= torch.logspace(-4, 3, 997)[:, None]
    same = {}
    for kind in ("q8_0", "q4_0", "q4_1"):
        ours = b"".join(encoded(weights, TYPES[kind][0]))
        theirs = ctypes.create_string_buffer(len(ours))
        quantize(int(TYPES[kind][0]), weights.data_ptr(), theirs, 0, *weights.shape, None)
        same[kind] = theirs.raw == ours
    return same


def main() -> None:
    claims: dict[str, Any] = {}
    models: dict[str, Any] = {}
    quantisers = same_quantisers()
    with tempfile.TemporaryDirectory() as work:
        for name in MODELS:
            found, models[name] = of_trained(name, Path(work))
            claims |= found
        smollm2 = of_smollm2(Path(work))
    more = {"same_quantisers": quantisers, "models": models, "smollm2": smollm2}
    report("gguf_export", "mean loss, nats a token", claims, ("llama-cpp-python", "gguf", "torch"), more)
    rows = [(name, kind, figures) for name, types in models.items() for kind, figures in types.items()]
    broken = [f"{name} {kind}: {figures}" for name, kind, figures in rows if not figures["holds"]]
    if not smollm2["holds"]:
        broken.append(f"smollm2: {smollm2}")
    broken += [f"{kind} is quantised otherwise than by ggml" for kind, same in quantisers.items() if not same]
    if broken:
        sys.exit("\n".join(broken))


if __name__ == "__main__":
    main()
