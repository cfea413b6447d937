"""Models that read a text for a label: small ones trained here by one objective or another, and pulled ones.

A reader gives vectors: of a word in its text (its last token's), or of a whole text (the mean of its tokens). Labels
are learnt on top of them (a probe), or with the whole model (tuned). B rows, T tokens, D width, N examples.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.data.shards import Documents
from llmlab.handbook.label_tasks import Example, log, replies
from llmlab.language_model import LanguageModel, load
from llmlab.model.attention import MultiHead
from llmlab.model.masks import Bidirectional
from llmlab.model.masks import Causal as CausalMask
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture, Transformer
from llmlab.objectives.hiding import Masked
from llmlab.objectives.kind import Setting
from llmlab.objectives.pretraining import Causal
from llmlab.runtime import derive, generator
from llmlab.tokenization.special import MASK
from llmlab.tokenization.tokenizer import Tokenizer
from llmlab.tokenization.train import BPE, train_tokenizer
from llmlab.training.muon import Muon

VOCABULARY, LAYERS, DIM, HEADS, LENGTH = 1024, 2, 64, 4, 128
ROW, ROWS = 64, 12  # tokens of a row, rows of a step
TUNED, BATCH, RATE = 120, 16, 2e-3  # steps of tuning, examples of a step, learning rate
HIDDEN = 0.3  # of the tokens, from which an encoder this small learns more than from 0.15 (Wettig et al. 2022)
RIDGE = 0.1  # of a probe, on vectors of unit variance, times the examples
Ids = list[int]


@dataclass(frozen=True)
class Reader:
    """A model and how a text is laid before it."""

    model: Transformer
    tokenizer: Tokenizer

    def row(self, example: Example) -> tuple[Ids, int | None]:
        """The ids, and where the last token of the word stands."""
        if not example.word:
            return self._framed(self.tokenizer.encode(example.before)), None
        before = self.tokenizer.encode(example.before)
        word = self.tokenizer.encode(f" {example.word}" if example.before else example.word)
        after = self.tokenizer.encode(example.after)
        room = (self.model.architecture.context - 2 - len(word)) // 2
        before, after = before[-room:], after[:room]
        ids = self._framed([*before, *word, *after])
        return ids, self._frame + len(before) + len(word) - 1

    @property
    def _frame(self) -> int:
        """Special tokens that this tokenizer puts before a text."""
        return self.tokenizer.pair([0])[0].index(0) if len(self.tokenizer.pair([])[0]) else 0

    def _framed(self, ids: Ids) -> Ids:
        return self.tokenizer.pair(ids[: self.model.architecture.context - 2])[0]

    def vectors(self, examples: Sequence[Example]) -> Tensor:
        """[N, D], with gradient where it is enabled."""
        rows = [self.row(example) for example in examples]
        sizes = [len(ids) for ids, _ in rows]
        ids_BT = torch.tensor([[*ids, *[0] * (max(sizes) - len(ids))] for ids, _ in rows])
        at = Places.of_lengths(sizes, max(sizes))
        at = at if self.model.architecture.mask.one_way else at.bidirectional()
        hidden_BTD = self.model.hidden(ids_BT, at)
        real_BT1 = at.real[..., None]
        mean_BD = (hidden_BTD * real_BT1).sum(1) / real_BT1.sum(1)
        if all(place is None for _, place in rows):
            return mean_BD
        places = torch.tensor([0 if place is None else place for _, place in rows])
        return hidden_BTD[torch.arange(len(rows)), places]

    @torch.no_grad()
    def read(self, examples: Sequence[Example], together: int = 32) -> Tensor:
        """float64 [N, D], without gradient."""
        parts = [self.vectors(examples[start : start + together]) for start in range(0, len(examples), together)]
        return torch.cat(parts).double()

    def tokens(self, examples: Sequence[Example]) -> float:
        """The mean of tokens that the model reads for one."""
        return sum(len(self.row(one)[0]) for one in examples) / len(examples)

    def weights_met(self) -> int:
        """Weights that each token is multiplied with: those of the blocks."""
        tables = {"embedding.weight", "head.weight", "segment"}
        named = [
            (name, p) for name, p in self.model.named_parameters() if name not in tables and "position" not in name
        ]
        return sum(parameter.numel() for _, parameter in named)


# ---------------------------------------------------------------- readers


@cache
def _text() -> tuple[Tokenizer, Documents]:
    """What both kinds are pretrained on, and the vocabulary of both."""
    texts = [" ".join(part) for part in _grouped(log())] + replies()
    tokenizer = train_tokenizer(BPE(vocab_size=VOCABULARY), iter(texts)).extended([MASK])
    end = tokenizer.eos_id
    assert end is not None
    size = sum(len(text.encode()) for text in texts)
    return tokenizer, Documents([[*ids, end] for ids in tokenizer.encode_batch(texts)], size, end, end)


def _grouped(lines: list[str], size: int = 8) -> list[list[str]]:
    return [lines[start : start + size] for start in range(0, len(lines), size)]


def trained_here(kind: str, steps: int, seed: int) -> Reader:
    """An `encoder` by masked tokens or a `decoder` by next tokens: as many weights, the same start, the same rows."""
    tokenizer, corpus = _text()
    objective = Masked(rate=HIDDEN) if kind == "encoder" else Causal()
    mask = Bidirectional() if kind == "encoder" else CausalMask()
    architecture = Architecture(layers=LAYERS, dim=DIM, context=LENGTH, mask=mask, attention=MultiHead(heads=HEADS))
    model = architecture.build(tokenizer.vocab_size, derive(seed, "handbook", "readers"))
    if steps:
        batches = objective.batches(corpus, Setting(architecture, tokenizer, ROW), ROWS, ROWS, seed)
        predictor, optimizer = objective.predictor(), Muon(lr=0.02, adamw_lr=0.005).build(model)
        for step in range(steps):
            optimizer.set_scale(1 - step / steps)
            for batch in batches.next(model):
                sums = predictor(model, batch).sums["cross_entropy"]
                (sums / max(1, batch.learnt)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
    return Reader(model.eval(), tokenizer)


def pulled(name: str) -> tuple[Reader, LanguageModel]:
    """`minilm` or `smollm2`. InputError where they were not pulled."""
    lm = load(name)
    return Reader(lm.model, lm.tokenizer), lm


# ---------------------------------------------------------------- labels


def balanced(said_N: Tensor, examples: Sequence[Example]) -> float:
    """The mean over classes of the share of theirs that are told."""
    labels_N = torch.tensor([one.label for one in examples])
    return float(
        np.mean([float((said_N[labels_N == c] == c).double().mean()) for c in sorted({one.label for one in examples})])
    )


def probe(train_ND: Tensor, examples: Sequence[Example], test_ND: Tensor, classes: int) -> Tensor:
    """int64 [N] classes of what is tested, by ridge regression on the labels of what was trained on."""
    mean_D, std_D = train_ND.mean(0), train_ND.std(0, unbiased=False) + 1e-6
    x_ND, test_ND = (train_ND - mean_D) / std_D, (test_ND - mean_D) / std_D
    y_NC = F.one_hot(torch.tensor([one.label for one in examples]), classes).double()
    y_NC = y_NC / y_NC.sum(0)  # rare classes weigh as much
    gram_NN = x_ND @ x_ND.T + RIDGE * x_ND.shape[1] * torch.eye(len(x_ND), dtype=torch.float64)
    weights_DC = x_ND.T @ torch.linalg.solve(gram_NN, y_NC - y_NC.mean(0))
    said_N: Tensor = (test_ND @ weights_DC).argmax(-1)
    return said_N


def tuned(reader: Reader, examples: Sequence[Example], test: Sequence[Example], classes: int, seed: int) -> Tensor:
    """int64 [N] classes of what is tested, the whole model and a linear head learnt."""
    own = Reader(copy.deepcopy(reader.model).train(), reader.tokenizer)
    head = nn.Linear(own.model.architecture.dim, classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)

    def loss(some: Sequence[Example]) -> Tensor:
        return F.cross_entropy(head(own.vectors(some)), torch.tensor([one.label for one in some]))

    _learn([*own.model.parameters(), *head.parameters()], loss, examples, TUNED, BATCH, seed)
    own.model.eval()
    with torch.no_grad():
        parts = [head(own.vectors(test[start : start + 32])).argmax(-1) for start in range(0, len(test), 32)]
    return torch.cat(parts)


def _learn(
    parameters: list[nn.Parameter],
    loss: Callable[..., Tensor],
    items: Sequence[object],
    steps: int,
    batch: int,
    seed: int,
) -> None:
    """AdamW with a falling rate, the items in new orders until the steps are done."""
    optimizer = torch.optim.AdamW(parameters, RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    source, order = generator(seed, "handbook", "readers", "order"), list[int]()
    for _ in range(steps):
        while len(order) < min(batch, len(items)):
            order += torch.randperm(len(items), generator=source).tolist()
        taken, order = order[:batch], order[batch:]
        optimizer.zero_grad()
        loss([items[place] for place in taken]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


SETTINGS = {"readers": [VOCABULARY, LAYERS, DIM, HEADS, ROW, ROWS, TUNED, BATCH, RATE, RIDGE]}
