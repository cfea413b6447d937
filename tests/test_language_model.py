"""A model to use, as its user sees it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import llmlab
from llmlab import runtime
from llmlab.checkpoints import llama2c
from llmlab.checkpoints.bundle import Bundle
from llmlab.checkpoints.native import save_model
from llmlab.compression.quantize import Int4, Int8, quantize_model, save_quantized
from llmlab.errors import InputError
from llmlab.inference import native
from llmlab.inference.beam import Beam
from llmlab.inference.caches import Rolling
from llmlab.inference.fast import FastModel
from llmlab.inference.sampling import Sampling
from llmlab.inference.text import text_of
from llmlab.language_model import LanguageModel, Ways
from llmlab.model.quantized import Int8Linear, QuantizedLinear
from llmlab.model.transformer import Architecture, Transformer
from llmlab.recipe import parse
from llmlab.tokenization.tokenizer import Tokenizer
from llmlab.tokenization.train import BPE, train_tokenizer

CONTEXT = 160
IDS = torch.randint(4, 260, (2, 30), generator=torch.Generator().manual_seed(1))
MESSAGES = [{"role": "user", "content": "hello"}]
TEXT = "三国演义 👩‍👩‍👧 says 😀, ok?"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Every byte a token, and ChatML."""
    return train_tokenizer(BPE(vocab_size=260), iter(["a"]))


def tiny(tokenizer: Tokenizer, **fields: Any) -> Bundle:
    sizes = {"layers": 2, "dim": 32, "context": CONTEXT, "initial_std": 0.3}
    architecture = Architecture.model_validate(sizes | fields)
    return Bundle(architecture.build(tokenizer.vocab_size, seed=5), tokenizer, architecture, "tiny")


@pytest.fixture
def lm(tokenizer: Tokenizer) -> LanguageModel:
    return LanguageModel(tiny(tokenizer))


def saying(bundle: Bundle, ids: list[int]) -> LanguageModel:
    """A model that says exactly these ids, whatever it is asked."""
    lm, script = LanguageModel(bundle), iter(ids)

    def logits(hidden: Tensor) -> Tensor:
        out = torch.zeros(*hidden.shape[:-1], bundle.model.vocab_size)
        out[..., next(script)] = 100.0
        return out

    lm.model.logits = logits  # type: ignore[method-assign]
    return lm


# ---------------------------------------------------------------- text


def test_the_same_seed_says_the_same_and_every_setting_matters(lm: LanguageModel) -> None:
    def say(**changed: Any) -> str:
        return lm.generate("hello hello", **{"max_new_tokens": 24, "seed": 1, **changed})

    plain = say()
    assert plain == say()
    changes: list[dict[str, Any]] = [
        {"seed": 2},
        {"temperature": 0},
        {"temperature": 3.0},
        {"top_k": 2},
        {"top_p": 0.1},
        {"repetition_penalty": 0.1},
        {"max_new_tokens": 4},
        {"stop": plain[3:5]},
    ]
    for change in changes:
        assert say(**change) != plain, change


def test_min_new_tokens_holds_the_stop_token_back(tokenizer: Tokenizer) -> None:
    bundle = tiny(tokenizer)
    with torch.no_grad():
        bundle.model.embedding.weight[tokenizer.eos_id] *= 30  # half of all logits are then largest for eos
    lm = LanguageModel(bundle)
    short = [lm.reply(lm.prompt("hello"), Sampling(max_new_tokens=20, seed=seed)) for seed in range(8)]
    ends = [seed for seed, reply in enumerate(short) if reply.read() is not None and len(reply.ids) < 10]
    assert ends
    reply = lm.reply(lm.prompt("hello"), Sampling(max_new_tokens=20, min_new_tokens=10, seed=ends[0]))
    reply.read()
    assert len(reply.ids) >= 10


@pytest.mark.parametrize("end", ["<|endoftext|>", "<|im_end|>"])
def test_chinese_and_emoji_stream_whole_and_the_answer_ends_at_the_stop_token(tokenizer: Tokenizer, end: str) -> None:
    stop = tokenizer.token_id(end)
    assert stop is not None
    ids = [*tokenizer.encode(TEXT), stop, *tokenizer.encode("never")]
    reply = saying(tiny(tokenizer), ids).stream(MESSAGES)
    pieces = list(reply)
    assert "".join(pieces) == reply.text == TEXT
    assert len(pieces) == len(TEXT)  # a piece a character: none is late, none is half
    assert reply.ids == ids[: ids.index(stop) + 1]
    assert reply.finish_reason == "stop"
    assert saying(tiny(tokenizer), ids).chat(MESSAGES) == TEXT
    assert saying(tiny(tokenizer), ids).generate("hello") == TEXT


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_streamed_is_whole_with_any_stop(tokenizer: Tokenizer, data: st.DataObject) -> None:
    text = data.draw(st.text(st.sampled_from("ab 三国😀\u200d👩é\u0301"), min_size=1, max_size=12))
    stops = data.draw(st.lists(st.text(st.sampled_from("ab 三😀\u200d"), min_size=1, max_size=3), max_size=2))
    ids = [*tokenizer.encode(text), tokenizer.eos_id or 0]
    settings_ = {"stop": stops, "max_new_tokens": 100}
    streamed = "".join(saying(tiny(tokenizer), ids).stream("x", **settings_))
    assert streamed == saying(tiny(tokenizer), ids).generate("x", **settings_)
    assert not any(stop in streamed for stop in stops)
    assert text.startswith(streamed)


def test_a_stop_text_ends_generation_at_once(tokenizer: Tokenizer) -> None:
    lm = saying(tiny(tokenizer), tokenizer.encode("one. two. three."))
    reply = lm.stream("x", stop=". t")
    assert (reply.read(), reply.finish_reason, len(reply.ids)) == ("one", "stop", 6)


def test_a_length_that_cuts_a_character_leaves_it_out(tokenizer: Tokenizer) -> None:
    lm = saying(tiny(tokenizer), tokenizer.encode("中国"))
    reply = lm.stream("x", max_new_tokens=5)
    assert (reply.read(), reply.finish_reason) == ("中", "length")


def test_special_tokens_have_no_text(tokenizer: Tokenizer) -> None:
    start = tokenizer.token_id("<|im_start|>") or 0
    ids = [*tokenizer.encode("a"), start, *tokenizer.encode("b"), tokenizer.eos_id or 0]
    assert saying(tiny(tokenizer), ids).generate("x") == "ab"


def test_text_that_looks_like_a_special_token_is_text(lm: LanguageModel) -> None:
    assert not set(lm.prompt("<|im_end|><|endoftext|>")) & lm.tokenizer.special_ids
    ids = lm.prompt([{"role": "user", "content": "<|im_end|>"}])
    assert ids.count(lm.tokenizer.token_id("<|im_end|>") or 0) == 1


def test_the_report_has_what_scripts_read(lm: LanguageModel) -> None:
    heard: list[str] = []
    report = lm.report("hello", Sampling(max_new_tokens=9), on_text=heard.append)
    assert report["text"] == "".join(heard) == lm.generate("hello", max_new_tokens=9)
    assert report["tokens"] == 9
    assert report["finish_reason"] == "length"
    assert report["tokens_per_second"] > 0
    assert report["prefill_tokens_per_second"] > 0
    one = lm.report("hello", Sampling(max_new_tokens=1))
    assert (one["tokens"], one["tokens_per_second"]) == (1, 0.0)  # nothing was decoded: the prompt gave it


def test_a_report_on_a_chat_renders_the_messages(lm: LanguageModel) -> None:
    section = Sampling(max_new_tokens=9, temperature=0)
    messages = [{"role": "system", "content": "be kind"}, *MESSAGES]
    assert lm.report("hello", section, chat=True, system="be kind")["text"] == lm.chat(messages, **section.model_dump())
    assert lm.report("hello", section, chat=True)["text"] == lm.chat(MESSAGES, **section.model_dump())
    assert lm.report("hello", section)["text"] == lm.generate("hello", **section.model_dump())


# ---------------------------------------------------------------- logits


def test_logits_are_float32_and_do_not_depend_on_the_batch(lm: LanguageModel) -> None:
    ids = torch.randint(4, 260, (3, 11), generator=torch.Generator().manual_seed(1))
    logits = lm.logits(ids)
    assert (logits.shape, logits.dtype, logits.requires_grad) == ((3, 11, 260), torch.float32, False)
    torch.testing.assert_close(lm.logits(ids[1:2]), logits[1:2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (torch.tensor([1, 2]), "shape"),
        (torch.tensor([[1.0]]), "float32"),
        (torch.zeros(1, 0, dtype=torch.int64), "at least one token"),
        (torch.tensor([[260]]), "260 is outside the vocabulary of 260"),
        (torch.tensor([[-1]]), "-1 is outside"),
    ],
)
def test_ids_that_are_none_are_refused(lm: LanguageModel, ids: Tensor, said: str) -> None:
    with pytest.raises(InputError, match=said):
        lm.logits(ids)


# ---------------------------------------------------------------- loading


@pytest.fixture
def folder(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    save_model(tmp_path / "model", tiny(tokenizer, attention="mha", dim=64).model, tokenizer)
    return tmp_path / "model"


def test_weights_of_each_kind(folder: Path) -> None:
    ids = torch.randint(4, 260, (2, 30), generator=torch.Generator().manual_seed(1))
    exact = llmlab.load(folder).logits(ids)
    assert torch.equal(exact, llmlab.load(str(folder), "fp32").logits(ids))
    errors = {}
    for kind in ("bf16", "int8", "int4"):
        lm = llmlab.load(folder, weights=kind)
        logits = lm.logits(ids)
        assert logits.dtype == torch.float32
        errors[kind] = float((logits - exact).norm() / exact.norm())
        assert len(lm.generate("hello", max_new_tokens=3, temperature=0)) <= 3
    assert 0 < errors["bf16"] < 0.05
    assert 0 < errors["int8"] < 0.1
    assert errors["int8"] < errors["int4"] < 0.5
    assert llmlab.load(folder, "auto").generate("a", max_new_tokens=2) is not None


def test_a_folder_of_quantised_weights_opens(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = llmlab.load(folder).model
    assert isinstance(model, Transformer)
    quantized = quantize_model(model, Int8())
    save_quantized(tmp_path / "int8", quantized, tokenizer, Int8())
    ids = torch.randint(4, 260, (2, 30), generator=torch.Generator().manual_seed(1))
    exact = quantized(ids)
    torch.testing.assert_close(llmlab.load(tmp_path / "int8").logits(ids), exact)
    assert float((llmlab.load(tmp_path / "int8", "int8").logits(ids) - exact).norm() / exact.norm()) < 0.05
    with pytest.raises(InputError, match="holds int8 weights, bf16 cannot be made of them"):
        llmlab.load(tmp_path / "int8", "bf16")


@pytest.fixture
def whole_tiles() -> Bundle:
    """A model that the native step takes."""
    tokenizer = train_tokenizer(BPE(vocab_size=272), iter(["the whale swims in the wide and silent sea"] * 4))
    sizes: dict[str, Any] = {"layers": 2, "dim": 128, "context": CONTEXT, "initial_std": 0.15}
    sizes |= {"attention": {"kind": "gqa", "heads": 4, "kv_heads": 2}, "feedforward": {"kind": "swiglu", "width": 256}}
    architecture = Architecture.model_validate(sizes)
    return Bundle(architecture.build(tokenizer.vocab_size, seed=5), tokenizer, architecture, "whole tiles")


only_native = pytest.mark.skipif(native.missing() is not None, reason=f"plain path only: {native.missing()}")


def test_a_model_opens_without_what_only_training_and_measuring_need(folder: Path) -> None:
    code = "import sys, llmlab; llmlab.load(sys.argv[1], 'auto'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], check=True, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert {"torch", "llmlab.inference.batching"} <= loaded
    apart = ("llmlab.adapters.part", "llmlab.stages", "llmlab.compression", "llmlab.evaluation", "llmlab.data", "rich")
    assert not loaded & set(apart)


@only_native
def test_the_plain_model_of_fast_weights_is_made_when_asked_for(whole_tiles: Bundle, tmp_path: Path) -> None:
    save_model(tmp_path / "model", whole_tiles.model, whole_tiles.tokenizer)
    exact = llmlab.load(tmp_path / "model").model.state_dict()
    for kind in ("bf16", "int8", "int4"):
        lm = llmlab.load(tmp_path / "model", kind)
        assert lm.why == f"{kind} weights, native step"
        assert isinstance(lm.bundle.made, FastModel)
        lm.generate("hello", max_new_tokens=2)
        assert isinstance(lm.bundle.made, FastModel)
        assert lm.logits(torch.tensor([[1, 2, 3]])).isfinite().all()
        assert lm.model is lm.bundle.model is lm.bundle.made
        if kind == "bf16":
            assert all(
                torch.equal(w, exact[n].bfloat16().float()) for n, w in lm.model.state_dict().items() if w.ndim > 1
            )


@only_native
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("embedding", ["int8", "keep"])
def test_a_folder_of_int4_weights_takes_the_native_step_exactly(
    whole_tiles: Bundle, tmp_path: Path, group: Any, embedding: Any
) -> None:
    kind = Int4(group=group)
    quantized = quantize_model(whole_tiles.model, kind, embedding)
    save_quantized(tmp_path / "int4", quantized, whole_tiles.tokenizer, kind)
    lm = llmlab.load(tmp_path / "int4", "auto")
    assert lm.why == "the folder's own int4 weights, native step"
    linears = {path: module for path, module in quantized.named_modules() if isinstance(module, QuantizedLinear)}
    assert len(linears) == 2 * 7 + 1  # the head too
    for path, module in linears.items():
        assert torch.equal(lm.model.get_parameter(f"{path}.weight"), module.weight), path
    ids = torch.randint(4, 260, (2, 30), generator=torch.Generator().manual_seed(1))
    exact = quantized(ids)
    assert float((lm.logits(ids) - exact).norm() / exact.norm()) < 0.04  # the table is int8 groups now
    assert llmlab.load(tmp_path / "int4").logits(ids).sub(exact).abs().max() < 1e-4
    assert lm.generate("hello", max_new_tokens=4, temperature=0)


@only_native
def test_int8_rows_take_the_native_step_where_their_scales_are_halves(whole_tiles: Bundle, tmp_path: Path) -> None:
    quantized = quantize_model(whole_tiles.model, Int8())
    save_quantized(tmp_path / "fine", quantized, whole_tiles.tokenizer, Int8())
    fine = llmlab.load(tmp_path / "fine", "auto")
    assert "PyTorch's kernels: their scales of 16 bits are finer" in fine.why
    assert any("PyTorch: their scales" in line for line in fine.explain())
    linears = {path: module for path, module in quantized.named_modules() if isinstance(module, Int8Linear)}
    for module in linears.values():
        module.scale.copy_(module.scale.half().float())
    save_quantized(tmp_path / "halves", quantized, whole_tiles.tokenizer, Int8())
    halves = llmlab.load(tmp_path / "halves", "auto")
    assert halves.why == "the folder's own int8 weights, native step"
    for path, module in linears.items():
        assert torch.equal(halves.model.get_parameter(f"{path}.weight"), module.weight), path


@only_native
def test_the_native_step_can_be_switched_off(
    whole_tiles: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / "model", whole_tiles.model, whole_tiles.tokenizer)
    monkeypatch.setenv("LLMLAB_NATIVE", "0")
    lm = llmlab.load(tmp_path / "model", "int8")
    assert lm._native is None
    assert lm.why == "int8 weights, plain path: switched off by LLMLAB_NATIVE=0"
    assert "who is answered beside it" in lm.explain()[-1]
    monkeypatch.delenv("LLMLAB_NATIVE")
    assert not any("beside it" in line for line in llmlab.load(tmp_path / "model", "int8").explain())
    monkeypatch.setenv("LLMLAB_NATIVE", "0")
    assert lm.generate("hello", max_new_tokens=2) is not None


def test_a_device_that_is_not_there_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(InputError, match=r"device: unknown value 'tpu'.*cpu, cuda, mps"):
        llmlab.load(folder, device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="device: 'cuda:1' is not available on this machine"):
            llmlab.load(folder, "int8", "cuda:1")
    assert torch.equal(llmlab.load(folder, device="cpu").logits(IDS), llmlab.load(folder).logits(IDS))


@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8", "int4", "auto"])
def test_another_device_gets_the_model_and_what_is_asked_of_it(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`meta` stands for one: it computes shapes, and takes no tensor of another device."""
    monkeypatch.setattr(runtime, "device", torch.device)
    monkeypatch.setattr(Tensor, "to", _told(Tensor.to))
    lm = llmlab.load(folder, kind, "meta")
    assert lm._native is None
    tensors = [*lm.model.parameters(), *lm.model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert "computes on meta" in lm.why
    assert lm.logits(IDS).shape == (2, 30, 260)


def _told(really: Any) -> Any:
    """A meta tensor has no values to bring back."""

    def to(self: Tensor, *given: Any, **named: Any) -> Tensor:
        back = self.is_meta and given == (torch.device("cpu"),)
        return torch.zeros(self.shape) if back else really(self, *given, **named)

    return to


def test_bad_names_and_kinds_are_refused_in_one_line(folder: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'bf16'"):
        llmlab.load(folder, weights="bf61")
    with pytest.raises(InputError, match="did you mean 'smollm2'"):
        llmlab.load("smolm2")


def test_bad_settings_and_prompts_are_refused(lm: LanguageModel, tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="temperature: got -1"):
        lm.generate("hello", temperature=-1)
    with pytest.raises(InputError, match="did you mean 'top_k'"):
        lm.generate("hello", topk=1)
    with pytest.raises(InputError, match="prompt: is empty"):
        lm.generate("")
    with pytest.raises(InputError, match=f"prompt: has 400 tokens, .* the context of {CONTEXT}"):
        lm.generate("a" * 400)
    with pytest.raises(InputError, match="add --chat"):
        lm.report("hello", Sampling(), system="x")
    with pytest.raises(InputError, match="without a tokenizer"):
        LanguageModel(Bundle(lm.model, None, lm.bundle.architecture, "tiny")).generate("a")
    tokenizer = Tokenizer(tokenizer._marking, eos="<|endoftext|>")
    with pytest.raises(InputError, match="no chat template"):
        LanguageModel(Bundle(lm.model, tokenizer, lm.bundle.architecture, "tiny")).chat(MESSAGES)


# ---------------------------------------------------------------- searches and caches

SEARCHED: list[dict[str, Any]] = [
    {"kind": "beam", "beams": 3},
    {"kind": "beam", "beams": 4, "groups": 2, "diversity_penalty": 1.0},
    {"kind": "contrastive"},
    {"kind": "best_of", "n": 3},
]


@pytest.mark.parametrize("search", SEARCHED, ids=lambda search: "-".join(map(str, search.values())))
def test_what_is_searched_for_is_the_best_of_what_is_found(lm: LanguageModel, search: dict[str, Any]) -> None:
    found = lm.hypotheses("hello", search, max_new_tokens=20)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert [one.text for one in found] == [
        text_of(lm.tokenizer, one.ids, start=lm.tokenizer.spells_space) for one in found
    ]
    assert lm.generate("hello", search=search, max_new_tokens=20) == found[0].text
    said: list[str] = []
    report = lm.report("hello", Sampling(max_new_tokens=20), on_text=said.append, ways=parse(Ways, {"search": search}))
    assert (report["text"], report["score"], report["tokens"]) == (found[0].text, found[0].score, len(found[0].ids))
    assert said == [found[0].text]
    assert (
        lm.chat(MESSAGES, search=search, max_new_tokens=5) == lm.hypotheses(MESSAGES, search, max_new_tokens=5)[0].text
    )


@pytest.mark.parametrize("search", SEARCHED, ids=lambda search: "-".join(map(str, search.values())))
def test_a_stop_text_ends_what_is_searched_for(lm: LanguageModel, search: dict[str, Any]) -> None:
    free = lm.hypotheses("hello", search, max_new_tokens=20)[0]
    stop = free.text[3:5]
    found = lm.hypotheses("hello", search, max_new_tokens=20, stop=stop)
    if search["kind"] != "beam":  # a beam may prefer other texts to one that ends so early
        assert free.text[: free.text.index(stop)] in [one.text for one in found if one.finish_reason == "stop"]
    for one in found:
        whole = text_of(lm.tokenizer, one.ids, start=lm.tokenizer.spells_space)
        assert stop not in one.text
        assert (stop in whole) == (whole != one.text)
        assert stop not in text_of(lm.tokenizer, one.ids[:-1], start=lm.tokenizer.spells_space)
        assert one.finish_reason == ("stop" if stop in whole or one.ids[-1] in lm.stop_ids else "length")


def test_names_of_searches_and_caches_are_kinds(lm: LanguageModel) -> None:
    greedy = {"temperature": 0, "max_new_tokens": 20}
    plain = lm.generate("hello", **greedy)
    assert lm.generate("hello", search={"kind": "contrastive", "penalty_alpha": 0}, max_new_tokens=20) == plain
    assert lm.generate("hello", search=Beam(beams=1), max_new_tokens=20) == plain
    assert lm.generate("hello", search="beam", max_new_tokens=20) == lm.generate(
        "hello", search=Beam(), max_new_tokens=20
    )
    for cache in ("dense", "rolling", Rolling(), {"kind": "int8"}):
        assert lm.generate("hello", cache=cache, **greedy) == plain
        assert lm.stream("hello", cache=cache, **greedy).read() == plain
    far = lm.stream("hello", cache={"kind": "rolling", "window": 20}, temperature=0, max_new_tokens=2 * CONTEXT)
    far.read()
    assert len(far.ids) == 2 * CONTEXT or far.finish_reason == "stop"


def test_searches_that_mean_nothing_are_refused(lm: LanguageModel) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"search": "bema"}, "did you mean 'beam'"),
        ({"search": {"kind": "beam", "beam": 3}}, "did you mean 'beams'"),
        ({"search": {"kind": "beam", "beams": 3, "groups": 2}}, "2 groups do not divide 3 beams"),
        ({"search": {"kind": "beam", "groups": 2}}, "without a diversity_penalty would all say the same"),
        ({"search": {"kind": "beam", "diversity_penalty": 0.5}}, "between groups only"),
        ({"search": "beam", "temperature": 0.5}, "cannot go with beam search"),
        ({"cache": "roling"}, "did you mean 'rolling'"),
    ]
    for settings_, says in wrong:
        with pytest.raises(InputError, match=says):
            lm.generate("hello", **settings_)
    with pytest.raises(InputError, match="search: beam search knows its text at the end only"):
        lm.stream("hello", search="beam")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="search: is missing"):
        lm.hypotheses("hello", None)


# ---------------------------------------------------------------- real weights


def test_the_storyteller_tells_its_published_story(shared: Path) -> None:
    """From bos alone, which its tokenizer puts before raw text: the text of 256 tokens that llama2.c prints."""
    stories = shared / "stories260k"
    lm = LanguageModel(llama2c.read(stories / "stories260K.bin", stories / "tok512.bin"))
    published = (stories / "greedy_reference.txt").read_text(encoding="utf-8")
    assert lm.generate("", temperature=0, max_new_tokens=256).strip() == published.strip()
    assert lm.generate("Once upon a time", temperature=0, max_new_tokens=8).startswith(", there was a")


def test_smollm2_knows_a_capital_and_a_chat(smollm2: Path) -> None:
    lm = llmlab.load(smollm2)
    assert "Paris" in lm.generate("The capital of France is", temperature=0, max_new_tokens=6)
    assert "Paris" in lm.chat([{"role": "user", "content": "What is the capital of France?"}], temperature=0)


# ---------------------------------------------------------------- guesses


def test_guesses_change_no_text_and_go_with_what_makes_one(folder: Path) -> None:
    """On the plain path, which has no pages until somebody needs them."""
    plain, guessed = llmlab.load(folder), llmlab.load(folder)
    for how in ("lookup", {"kind": "draft", "model": str(folder), "weights": "fp32", "tokens": 3}):
        guessed.speculate(how)
        settings = {"max_new_tokens": 30, "temperature": 0.7, "seed": 4}
        assert guessed.generate("hello hello", **settings) == plain.generate("hello hello", **settings)
        assert guessed.batching is not None
        assert guessed.batching.counts.steps > 0
        assert guessed.batching.counts.accepted > 0 or how == "lookup"
    with pytest.raises(InputError, match="speculate: cannot go with search beam"):
        guessed.generate("hello", search="beam")
    with pytest.raises(InputError, match="speculate: cannot go with cache int8"):
        guessed.generate("hello", cache="int8")


def test_a_draft_of_other_tokens_is_refused(folder: Path, smollm2: Path) -> None:
    with pytest.raises(InputError, match="reads and writes other tokens"):
        llmlab.load(folder).speculate({"kind": "draft", "model": str(smollm2)})


def test_guesses_need_keys(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(BPE(vocab_size=260), iter(["hello there"]))
    model = parse(Architecture, {"layers": 1, "dim": 16, "attention": "lstm", "position": "none"}).build(260)
    save_model(tmp_path / "lstm", model, tokenizer)
    lm = llmlab.load(tmp_path / "lstm")
    assert lm.batching is None
    with pytest.raises(InputError, match="lstm keeps a state and no keys"):
        lm.speculate("lookup")
