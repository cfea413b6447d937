"""Attention read from outside: who is query, key and value among a mixer's linears, how many heads there are, and the
weights for any queries and keys one cares to ask about.

B rows, T tokens, S keys, H heads, K head width, W all heads' width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmlab.errors import InputError
from llmlab.interpret.hooks import Call, Layer, leaves, noise, saying, size, watching
from llmlab.interpret.norm_kind import is_norm
from llmlab.model.attention import Sight

GATES = {1: "rnn", 3: "gru", 4: "lstm"}


@dataclass(frozen=True)
class HeadKind:
    """What mixes the tokens: `softmax`, `linear`, or a recurrent net. `sharing` is how many heads one key/value head
    serves, `doubling` how much the log-odds of two keys grow when the query doubles (2 for a softmax), `scale` what
    scores are multiplied by. Biases: of queries, keys and values; of the output."""

    kind: str
    heads: int
    key_heads: int
    head_dim: int
    sharing: int
    doubling: float
    scale: float
    qk_norm: bool
    biases: tuple[bool, bool]


class Mixing:
    """A mixer of a layer in float64. Queries, keys and values are told apart by what moves when they are moved: a
    query moves its own token's answer, a key and a value those of all tokens that see it, the value proportionally."""

    def __init__(self, layer: Layer, mixer: nn.Module) -> None:
        self.layer, self.mixer = layer, mixer
        with watching([mixer, *leaves(mixer)]) as calls:
            layer.run()
        own = next(call for call in calls if call.module is mixer)
        self.x: Tensor = own.args[0]
        parts = [call for call in calls if call.module is not mixer and isinstance(call.output, Tensor)]
        last = next((call for call in parts if call.output is own.output), None)
        if last is None:
            raise InputError("model", "a mixer has no output projection", "what it mixes cannot be read")
        self.output = last.module
        self.query: list[Call] = []
        self.key: list[Call] = []
        self.value: list[Call] = []
        for call in parts:
            if call is not last:
                self._role(call).append(call)
        self.width = int(last.args[0].shape[-1])
        self.heads = self.head_dim = self.key_heads = self.sharing = 0
        if self.recurrent:
            return
        self.heads = self._count_heads()
        self.head_dim = self.width // self.heads
        self.key_heads = int(self.value[-1].output.shape[-1]) // self.head_dim
        self.sharing = self._served_by_the_first()

    @property
    def recurrent(self) -> bool:
        return not (self.query and self.key and self.value)

    # ------------------------------------------------------------ what its parts do

    def mixed(self, x: Tensor, sight: Sight, says: dict[nn.Module, Callable[[Tensor], Tensor]]) -> Tensor:
        """[B, T, W]: what the output projection is given."""
        with saying(says), watching([self.output]) as calls:
            self.mixer(x, sight, self.layer.depth)
        inner: Tensor = calls[0].args[0]
        return inner

    def _role(self, call: Call) -> list[Call]:
        axis = 2 if call.output.ndim == 4 else 1
        middle = max(0, call.output.shape[axis] // 2 - 1)
        step = torch.zeros_like(call.output)
        step.select(axis, middle).copy_(noise(*step.select(axis, middle).shape, name="role"))
        rest = self.mixed(self.x, self.layer.sight, {})
        once = self.mixed(self.x, self.layer.sight, {call.module: lambda y: y + step}) - rest
        twice = self.mixed(self.x, self.layer.sight, {call.module: lambda y: y + 2 * step}) - rest
        elsewhere = torch.cat([once[:, :middle], once[:, middle + 1 :]], 1)
        if not bool(elsewhere.abs().max() > 1e-12):
            return self.query
        return self.value if size(twice - 2 * once) < 1e-9 * size(once) else self.key

    def _count_heads(self) -> int:
        """Columns that share their attention weights are one head."""
        silent = self.mixed(self.x, self.layer.sight, {self.value[-1].module: torch.zeros_like})
        seen = []
        for key in range(self.x.shape[1]):

            def only(y: Tensor, key: int = key) -> Tensor:
                spoken = torch.zeros_like(y)
                spoken[:, key] = 1
                return spoken

            seen.append(self.mixed(self.x, self.layer.sight, {self.value[-1].module: only}) - silent)
        by_column = torch.stack(seen).flatten(0, 2).T  # [W, S T]
        heads = 1 + int(((by_column[1:] - by_column[:-1]).abs().amax(1) > 1e-9).sum())
        if self.width % heads:
            raise InputError(
                "model", f"{heads} attention patterns in {self.width} columns", "heads of one width are read"
            )
        return heads

    def _served_by_the_first(self) -> int:
        def first(y: Tensor) -> Tensor:
            spoken = torch.zeros_like(y)
            spoken[..., : self.head_dim] = 1
            return spoken

        silent = self.mixed(self.x, self.layer.sight, {self.value[-1].module: torch.zeros_like})
        heard = self.mixed(self.x, self.layer.sight, {self.value[-1].module: first}) - silent
        by_head = heard.view(*heard.shape[:2], self.heads, self.head_dim).abs().amax((0, 1, 3))
        return int((by_head > 1e-12).sum())

    # ------------------------------------------------------------ questions

    def weights(self, q_BTK: Tensor, k_BTK: Tensor, sight: Sight) -> Tensor:
        """[B, H, T, S]: what each token takes from each where all heads have these queries and keys. As many keys are
        read at once as a head has columns: the value of each is 1 in a column of its own."""
        rows, length, width = q_BTK.shape
        x = self.x.new_zeros(rows, length, self.x.shape[-1])
        says = {self.query[-1].module: _spoken(q_BTK), self.key[-1].module: _spoken(k_BTK)}
        value = self.value[-1].module
        silent = self.mixed(x, sight, {**says, value: torch.zeros_like})
        pieces = []
        for start in range(0, length, width):
            v_BTK = torch.zeros_like(k_BTK)
            count = min(width, length - start)
            v_BTK[:, range(start, start + count), range(count)] = 1
            heard = self.mixed(x, sight, {**says, value: _spoken(v_BTK)}) - silent
            pieces.append(heard.view(rows, length, self.heads, width).transpose(1, 2)[..., :count])
        return torch.cat(pieces, -1)

    def unweighed(self, sight: Sight, length: int) -> float:
        """The size of what is mixed where all values are zero: Shaw's own values."""
        q = noise(1, length, self.head_dim, name="q")
        says = {self.query[-1].module: _spoken(q), self.value[-1].module: torch.zeros_like}
        return size(self.mixed(self.x.new_zeros(1, length, self.x.shape[-1]), sight, says))

    def kind(self, still: Sight) -> HeadKind:
        """`still`: sight of two tokens at the same position, the second of which sees both."""
        into = [part for part in leaves(self.mixer) if part is not self.output]
        if not self.recurrent:
            into = [call.module for call in self.query[:1] + self.key[:1] + self.value[:1]]
        biases = _biased(into), _biased([self.output])
        if self.recurrent:
            matrices = [parameter for parameter in self.mixer.parameters() if parameter.ndim == 2]
            gates = max(len(matrix) // self.width for matrix in matrices if matrix.shape[1] == self.width)
            return HeadKind(GATES.get(gates, "unknown"), 1, 1, self.width, 1, 0.0, 0.0, False, biases)
        k = torch.zeros(1, 2, self.head_dim, dtype=torch.float64)
        k[0, 0] = noise(self.head_dim, name="k")
        q = k[:, :1].expand_as(k)
        odds = []
        for factor in (0.0, 0.5, 1.0):  # against no query at all: keys may have a score of their own
            weights = self.weights(factor * q, k, still)[0, 0, 1]
            odds.append(float((weights[0] / weights[1]).log()))
        doubling = (odds[2] - odds[0]) / (odds[1] - odds[0])
        softmax = abs(doubling - 2) < 1e-6
        normed = any(is_norm(call.again, call.args[0]) for call in self.query + self.key)
        scale = (odds[2] - odds[0]) / float(k[0, 0].square().sum()) if softmax else 0.0
        name = "softmax" if softmax else "linear"
        return HeadKind(name, self.heads, self.key_heads, self.head_dim, self.sharing, doubling, scale, normed, biases)


def _biased(modules: list[nn.Module]) -> bool:
    return any(parameter.ndim == 1 for module in modules for parameter in module.parameters(recurse=False))


def _spoken(value_BTK: Tensor) -> Callable[[Tensor], Tensor]:
    """The same for every head, in the layout of the answer that it replaces."""

    def say(y: Tensor) -> Tensor:
        if y.ndim == 4:
            return value_BTK[:, None].expand_as(y)
        return value_BTK.repeat(1, 1, y.shape[-1] // value_BTK.shape[-1])

    return say
