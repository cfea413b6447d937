"""How many bytes of tensors are alive while something is computed, and the most there ever were.

Counted are the storages that operations hand out; what a kernel takes for itself and gives back is not seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """`with LiveBytes(known) as live:` counts every storage made inside, those of the tensors in `known` left out."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = [tensor.untyped_storage() for tensor in known]  # kept, so that no address is used again
        self._ignored = {storage._cdata for storage in self._known}
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0
        self.largest = 0  # of one tensor
        self.operations = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        made = False
        for tensor in tree_leaves(out):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage._cdata not in self._ignored and storage._cdata not in self._held:
                weak = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                self._held[storage._cdata] = weak, storage.nbytes()
                self.largest = max(self.largest, storage.nbytes())
                made = True
        self.operations += made
        self.peak = max(self.peak, self.bytes)
        return out

    @property
    def bytes(self) -> int:
        """Alive now."""
        for at in [at for at, (weak, _) in self._held.items() if weak.expired()]:  # type: ignore[no-untyped-call]
            del self._held[at]
        return sum(size for _, size in self._held.values())
