"""A model with its tokenizer: what may be asked of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from llmlab.checkpoints.bundle import Bundle
from llmlab.errors import InputError
from llmlab.inference.batching import Batching
from llmlab.inference.cache import PromptCache
from llmlab.inference.caches import CacheKind
from llmlab.inference.choice import Choice
from llmlab.inference.constrain import Constrainer, Guide
from llmlab.inference.embedding import embed
from llmlab.inference.engine import require_continuing
from llmlab.inference.front import DecoderFront, Front, TimedFront
from llmlab.inference.paged_front import PagedFront
from llmlab.inference.pages import PAGE
from llmlab.inference.plain_step import PlainModel, unpaged
from llmlab.inference.sampling import Sampling
from llmlab.inference.search import Found, Search, found
from llmlab.inference.speculative import Draft, Guesser, Lookup, PromptLookup
from llmlab.language_model.reply import Reply, conversation
from llmlab.language_model.ways import Speculating, Ways
from llmlab.model.places import Places
from llmlab.model.pooling import Pooling
from llmlab.model.transformer import Transformer
from llmlab.recipe import parse
from llmlab.tokenization.chat import Message, Renderer
from llmlab.tokenization.tokenizer import Tokenizer

# Special tokens by which published models end a text. A file names one of them as eos, and models write the others too.
ENDS = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
    "</s>",
)


class LanguageModel:
    """A model with its tokenizer. Settings of `Sampling` may be given by name to whatever generates."""

    def __init__(
        self,
        bundle: Bundle,
        batching: Batching | None = None,
        why: str = "fp32 weights, exact",
        choice: Choice | None = None,
    ) -> None:
        self.bundle = bundle
        self._choice = choice
        self._native = batching
        self._guesses = False
        self.why = why

    @cached_property
    def batching(self) -> Batching | None:
        """Many texts at once: by the native step where it makes texts, else by the plain one. None for a model whose
        past is no keys in pages, which makes one text or one padded batch at a time."""
        if self._native is not None:
            return self._native
        if unpaged(self.model) is not None:
            return None
        return Batching(PlainModel(self.model, 2 * -(-self.context // PAGE)))

    def speculate(self, how: Any) -> None:
        """From now on let guesses save steps (a kind of `inference.speculative`, as a section, a mapping or a name);
        they change no byte of what the native step says. Errors: InputError for a model that makes one text at a time,
        and for a draft model of another vocabulary."""
        chosen = parse(Speculating, {"speculate": how}, "generate").speculate
        if self.batching is None:
            problem = f"cannot go with a model of which {unpaged(self.model)}"
            raise InputError("speculate", problem, "leave it out")
        if isinstance(chosen, Lookup):
            guesser: Guesser = PromptLookup(chosen.tokens, chosen.ngram)
        else:
            from llmlab.language_model.opening import load  # which makes what this file defines

            draft = load(chosen.model, chosen.weights)
            if draft.batching is None or not self._same_tokens(draft):
                problem = "keeps no keys" if draft.batching is None else "reads and writes other tokens than the model"
                raise InputError("speculate.model", f"{chosen.model} {problem}", "the model's own in int4 would do")
            guesser = Draft(draft.batching.model, chosen.tokens, self.batching.model.vocab_size)
        self.batching.guesser, self._guesses = guesser, True

    def _same_tokens(self, other: LanguageModel) -> bool:
        a, b = self.tokenizer, other.tokenizer
        return a.vocab_size == b.vocab_size and all(
            a.token_bytes(id) == b.token_bytes(id) for id in range(a.vocab_size)
        )

    def alone(self, ways: Ways) -> Batching | None:
        """What makes a single text, where that is not the plain engine. Errors: InputError for ways that guesses cannot
        go with."""
        chosen = [f"{way} {part.kind}" for way, part in (("search", ways.search), ("cache", ways.cache)) if part]
        if chosen and self._guesses:
            raise InputError("speculate", f"cannot go with {chosen[0]}", "leave one of them out")
        return None if chosen or not (self._native or self._guesses) else self.batching

    def explain(self) -> list[str]:
        """Why texts are made the way they are, for a person: weights, path, and what was measured on this machine."""
        told = [self.why, *(self._choice.explain() if self._choice is not None else ())]
        if self._native is None:
            told.append("computed by PyTorch: the last bits of an answer may depend on who is answered beside it")
        return told

    @cached_property
    def model(self) -> Transformer:
        """The plain path, with the very weights that texts are made of. Where the native step makes them, this model
        is made when it is first asked for."""
        return self.bundle.model.eval()

    @property
    def tokenizer(self) -> Tokenizer:
        """InputError where the model's files had none."""
        if self.bundle.tokenizer is None:
            raise InputError(self.bundle.origin, "came without a tokenizer", "logits(ids) works without one")
        return self.bundle.tokenizer

    @cached_property
    def renderer(self) -> Renderer:
        """InputError where there is no chat template."""
        return Renderer(self.tokenizer)

    @property
    def context(self) -> int:
        """The longest text in tokens."""
        return self.bundle.architecture.context

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Tokens after which nothing more is meant: eos, what the chat template waits for, other models' ends."""
        tokenizer = self.tokenizer
        ids = {tokenizer.eos_id, *map(tokenizer.token_id, ENDS)} & tokenizer.special_ids
        chat = self.renderer.stop_ids if tokenizer.chat_template is not None else frozenset[int]()
        return chat.union(id for id in ids if id is not None)

    @cached_property
    def constrainer(self) -> Constrainer:
        """What makes guides for this tokenizer. InputError where llguidance is not installed."""
        return Constrainer(self.tokenizer)

    def guide(self, sampling: Sampling) -> Guide | None:
        """What holds one answer to `sampling.constraint`; None where there is none.

        Errors: InputError for a form that is not sound, too large, or that no text has.
        """
        return None if sampling.constraint is None else self.constrainer.guide(sampling.constraint, self.stop_ids)

    def logits(self, ids: Tensor, decoder_ids: Tensor | None = None) -> Tensor:
        """int64 [B, T] -> float32 [B, T, V], each row one text from its first position, whole and without padding, seen
        as the model's mask has it. An encoder-decoder takes the answers so far as `decoder_ids` [B, U]: [B, U, V].

        Errors: InputError for ids outside the vocabulary, and for a model that has no head.
        """
        self._check_ids("ids", ids)
        memory = None
        if self.bundle.architecture.encoder_layers:
            if decoder_ids is None:
                start = self.bundle.architecture.start_id
                raise InputError(
                    "decoder_ids", "are missing", f"an encoder-decoder's answer so far, at least [[{start}]]"
                )
            self._check_ids("decoder_ids", decoder_ids)
            if len(decoder_ids) != len(ids):
                raise InputError("decoder_ids", f"have {len(decoder_ids)} rows", f"one for each of {len(ids)} texts")
        elif decoder_ids is not None:
            raise InputError("decoder_ids", "this model has no encoder, so all ids are one text", "leave them out")
        back, ids = ids.device, ids.to(self._device)
        with torch.no_grad():
            if decoder_ids is not None:
                at = Places.causal(len(ids), ids.shape[1], ids.device)
                memory, ids = self.model.encode(ids, at), decoder_ids.to(ids.device)
            out: Tensor = self.model(ids, memory=memory).float().to(back)
        return out

    def _check_ids(self, place: str, ids: Tensor) -> None:
        if ids.ndim != 2 or ids.dtype != torch.int64 or not ids.numel():
            raise InputError(
                place, f"are {ids.dtype} of shape {list(ids.shape)}", "int64 [rows, tokens], at least one token"
            )
        lowest, highest = int(ids.min()), int(ids.max())
        if lowest < 0 or highest >= self.model.vocab_size:
            wrong = lowest if lowest < 0 else highest
            raise InputError(place, f"{wrong} is outside the vocabulary of {self.model.vocab_size}")

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def embed(self, texts: Sequence[str], pooling: Pooling | None = None) -> Tensor:
        """float32 [N, D], one vector a text, by the published pooling or the one given. Of a text that is longer than
        the published length (MiniLM: 256 tokens) the beginning is taken, as its authors do.

        Errors: InputError where the model's files name no pooling and none is given.
        """
        if isinstance(texts, str):
            raise InputError("texts", "is one text, not a list of them", "write [text]")
        pooling = pooling or self.bundle.pooling
        if pooling is None:
            hint = "give one: pooling=Pooling(kind='mean'), or 'first'"
            raise InputError(self.bundle.origin, "does not say how the tokens of a text become one vector", hint)
        frame = len(self.tokenizer.pair([])[0])
        room = min(pooling.max_tokens or self.context, self.context) - frame
        ids = [self.tokenizer.pair(text[:room])[0] for text in self.tokenizer.encode_batch(texts)]
        if not all(ids):
            raise InputError(f"text {ids.index([]) + 1}", "is empty", "this tokenizer puts no token around a text")
        return embed(self.model, ids, pooling)

    # ------------------------------------------------------------ text

    def generate(self, text: str, search: Any = None, cache: Any = None, **settings: Any) -> str:
        """How `text` goes on: the continuation only. Settings are the fields of `Sampling`. `search` and `cache` are
        kinds of `inference.search` and `inference.caches`, as sections, mappings or names; both take the plain path.
        """
        if search is not None:
            return self.hypotheses(text, search, cache, **settings)[0].text
        return self.reply(self.prompt(text), _sampling(settings), ways=_ways(cache=cache)).read()

    def chat(self, messages: Sequence[Message], search: Any = None, cache: Any = None, **settings: Any) -> str:
        """The assistant's answer to messages `{"role": ..., "content": ...}`, by the model's chat template; the rest as
        in `generate`."""
        if search is not None:
            return self.hypotheses(messages, search, cache, **settings)[0].text
        return self.reply(self.prompt(messages), _sampling(settings), ways=_ways(cache=cache)).read()

    def stream(self, prompt: str | Sequence[Message], search: None = None, cache: Any = None, **settings: Any) -> Reply:
        """Pieces of what `generate` (for a text) or `chat` (for messages) answers, as they come. What is searched for
        is not known before the end: InputError."""
        return self.reply(self.prompt(prompt), _sampling(settings), ways=_ways(search=search, cache=cache))

    def hypotheses(
        self, prompt: str | Sequence[Message], search: Any, cache: Any = None, **settings: Any
    ) -> list[Found]:
        """All that a search ends with, best first: of a beam search the ended texts, at most as many as beams; of
        best_of all that was drawn. Errors: InputError for settings that the search cannot mind."""
        ways = _ways(search=search, cache=cache)
        if ways.search is None:
            raise InputError("search", "is missing", "beam, contrastive or best_of")
        self.alone(ways)
        with self._front(ways.search, ways.cache) as front:
            return self._found(self.prompt(prompt), _sampling(settings), ways.search, front)

    @contextmanager
    def _front(self, search: Search, cache: CacheKind | None) -> Iterator[Front]:
        """What a search asks: the native step, where it makes texts and can tell what is wanted."""
        if self._native is None or cache is not None or search.states:
            yield DecoderFront(self.model, cache)
            return
        with PagedFront(self._native.model, self._native.pages).held() as front:
            yield front

    def _found(self, ids: Sequence[int], sampling: Sampling, search: Search, front: Front) -> list[Found]:
        guide = self.guide(sampling)
        return found(search, front, ids, sampling, self.stop_ids, self.tokenizer, self.starts(ids, guide), guide)

    def starts(self, prompt: Sequence[int], guide: Guide | None) -> bool:
        """Whether an answer to this prompt is a text from its beginning. A guide counts every byte, a space of spelling
        too, and lets none come that its form does not have."""
        first = bool(self.bundle.architecture.encoder_layers) or self.tokenizer.special_ids.issuperset(prompt)
        return first and self.tokenizer.spells_space and guide is None

    def prompt(self, prompt: str | Sequence[Message]) -> list[int]:
        """The ids the model starts from. Raw text begins with bos if and only if the tokenizer's file says that this
        model wants it (`Tokenizer.prompt`); what an encoder reads stands in the frame of its special tokens. Messages
        are rendered by the chat template.

        Errors: InputError for a bidirectional model, which fills blanks and does not continue.
        """
        require_continuing(self.bundle.architecture)
        if isinstance(prompt, str) and self.bundle.architecture.encoder_layers:
            return self.tokenizer.pair(self.tokenizer.encode(prompt))[0]
        if isinstance(prompt, str):
            return self.tokenizer.prompt(prompt)
        return self.renderer.render(prompt, reply=True).ids

    def reply(
        self, ids: Sequence[int], sampling: Sampling, memory: PromptCache | None = None, ways: Ways | None = None
    ) -> Reply:
        """The answer to a prompt of ids; `memory` holds what was computed for an earlier one of the same model."""
        return Reply(self, ids, sampling, memory, ways or Ways())

    def report(
        self,
        text: str,
        sampling: Sampling,
        chat: bool = False,
        system: str | None = None,
        on_text: Callable[[str], object] | None = None,
        ways: Ways | None = None,
    ) -> dict[str, Any]:
        """Generate, and say how it went: text, tokens, tokens_per_second (of decoding only: the first token belongs to
        the prompt), prefill_tokens_per_second, finish_reason, and the weights used. `chat`: `text` is a user's message,
        after `system`. What is searched for comes at once, with its score."""
        if system is not None and not chat:
            raise InputError("system", "a system prompt means something in a chat only", "add --chat")
        if chat and not text.strip():
            raise InputError("prompt", "is empty")
        ids = self.prompt(conversation(text, system) if chat else text)
        if ways is not None and ways.search is not None:
            self.alone(ways)
            return self._searched(ids, sampling, ways.search, ways.cache, on_text)
        reply = self.reply(ids, sampling, ways=ways)
        for piece in reply:
            if on_text is not None:
                on_text(piece)
        return {
            "text": reply.text,
            "tokens": len(reply.ids),
            "tokens_per_second": _rate(len(reply.ids) - 1, reply.decode_seconds),
            "prefill_tokens": len(reply.prompt),
            "prefill_tokens_per_second": _rate(len(reply.prompt), reply.prefill_seconds),
            "finish_reason": reply.finish_reason,
            "weights": self.why if ways is None or ways.cache is None else self._plainly,
        }

    @property
    def _plainly(self) -> str:
        """`why`, for what the native step is not asked to do."""
        return self.why if self._native is None else f"{self.why.partition(',')[0]}, plain path"

    def _searched(
        self,
        ids: Sequence[int],
        sampling: Sampling,
        search: Search,
        cache: CacheKind | None,
        on_text: Callable[[str], object] | None,
    ) -> dict[str, Any]:
        with self._front(search, cache) as untimed:
            front, began = TimedFront(untimed), time.perf_counter()
            best = self._found(ids, sampling, search, front)[0]
            seconds = time.perf_counter() - began
        if on_text is not None:
            on_text(best.text)
        return {
            "text": best.text,
            "score": best.score,
            "tokens": len(best.ids),
            "tokens_per_second": _rate(len(best.ids) - 1, seconds - front.start_seconds),
            "prefill_tokens": len(ids),
            "prefill_tokens_per_second": _rate(len(ids), front.start_seconds),
            "finish_reason": best.finish_reason,
            "weights": self.why if isinstance(untimed, PagedFront) else self._plainly,
        }


def _sampling(settings: Mapping[str, Any]) -> Sampling:
    return parse(Sampling, settings, "sampling")


def _ways(**values: Any) -> Ways:
    return parse(Ways, values, "generate")


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, 2) if seconds > 0 else 0.0
