"""The processes of one job, as torchrun started them: who this one is, and how they come to one answer.

Every collective here is guarded: what one rank raises, all raise, so none is left waiting for another. With one process
nothing of `torch.distributed` is imported, and each call is the plain thing.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

from llmlab.errors import LlmlabError

A = TypeVar("A")

# A rank may wait for as long as the first prepares text or evaluates. One that died is noticed at once all the same:
# its connections close, and torchrun ends the others.
PATIENCE = timedelta(days=7)
MEETING = timedelta(minutes=30)  # for all ranks to come
FAREWELL = 3.0  # seconds that the first rank waits for others to find their errors too


@dataclass(frozen=True)
class World:
    """`rank` of `size` processes, the `local_rank`th of its machine; `restarts` is how often torchrun began anew."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    restarts: int = 0

    @staticmethod
    def of_environment() -> World:
        """As torchrun tells it; one process where nothing is told."""
        rank, size, local, restarts = (
            int(os.environ.get(name, default))
            for name, default in (
                ("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0), ("TORCHELASTIC_RESTART_COUNT", 0)
            )
        )  # fmt: skip
        return World(rank, size, local, restarts)

    @property
    def alone(self) -> bool:
        return self.size == 1

    @property
    def first(self) -> bool:
        """Whether this rank writes files and speaks."""
        return self.rank == 0

    # ------------------------------------------------------------ coming and going

    @contextlib.contextmanager
    def joined(self, device: str = "cpu") -> Iterator[None]:
        """The processes know each other inside. Tensors of a CPU go by gloo, those of a GPU by NCCL (untested here)."""
        if self.alone:
            yield
            return
        import torch.distributed as dist

        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        store, *_ = next(rendezvous("env://", self.rank, self.size, timeout=MEETING))
        apart = PrefixStore(met(store, self.rank, self.size), store)
        dist.init_process_group(backend, timeout=PATIENCE, store=apart, rank=self.rank, world_size=self.size)
        yield  # whoever leaves by an error leaves at once: the others may not be where a farewell would find them
        dist.barrier()
        dist.destroy_process_group()

    def speaks(self) -> bool:
        """Whether it falls to this rank to print an error: to whoever comes first once the ranks know each other, to
        the first of each machine before."""
        if self.alone:
            return True
        dist = sys.modules.get("torch.distributed")
        if dist is None or not dist.is_initialized():
            return self.local_rank == 0
        try:
            store = dist.distributed_c10d._get_default_store()
            turn = store.add("errors", 1)
            # The store may live in the first rank: it stays until the others have asked, for a while.
            until = time.monotonic() + FAREWELL
            while self.first and store.add("errors", 0) < self.size and time.monotonic() < until:
                time.sleep(0.05)
        except RuntimeError:  # whoever kept the count has left, and said why
            return False
        return bool(turn == 1)

    @staticmethod
    def leave(code: int) -> NoReturn:
        """End this process at once: threads of gloo abort a closing interpreter now and then."""
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    # ------------------------------------------------------------ one answer

    def all(self, action: Callable[[], A]) -> list[A]:
        """What every rank answers, by rank; the error of the lowest rank that raised, on all of them."""
        if self.alone:
            return [action()]
        import torch.distributed as dist

        answer, error = _tried(action)
        heard: list[Any] = [None] * self.size
        dist.all_gather_object(heard, (answer, error))
        if raised := next((other for _, other in heard if other is not None), None):
            raise raised
        return [answer for answer, _ in heard]

    def told(self, action: Callable[[], A]) -> A:
        """What the first rank answers, or its error; the others do nothing and wait. Answers are plain values."""
        if self.alone:
            return action()
        import torch.distributed as dist

        said: list[Any] = [_tried(action) if self.first else None]
        dist.broadcast_object_list(said, src=0)
        answer, error = said[0]
        if error is not None:
            raise error
        return answer  # type: ignore[no-any-return]

    def any(self, flag: bool) -> bool:
        """Whether it is true on any rank."""
        return flag if self.alone else any(self.all(lambda: flag))


def met(store: Any, rank: int, size: int) -> str:
    """A name that the first rank gave to these processes and to none before them.

    torchrun keeps its store when it starts all ranks anew (PyTorch 2.13 puts no attempt before the keys), so the
    addresses of the dead are still in it, and who reads first calls them. Here each rank asks under a name of its own,
    which only a first rank that lives can answer.
    """
    own = uuid.uuid4().hex
    if rank:
        store.set(f"here/{rank}", own)
        store.wait([f"job/{own}"], MEETING)
        job: str = store.get(f"job/{own}").decode()
        store.set(f"{job}/{rank}", "")
        return job
    absent, until = set(range(1, size)), time.monotonic() + MEETING.total_seconds()
    while absent:
        for other in sorted(absent):
            if store.check([f"{own}/{other}"]):
                absent.remove(other)
            elif store.check([f"here/{other}"]):
                store.set(f"job/{store.get(f'here/{other}').decode()}", own)
        if time.monotonic() > until:
            raise LlmlabError(f"ranks {sorted(absent)} of {size} have not come in {MEETING}")
        time.sleep(0.02)
    return own


def _tried(action: Callable[[], A]) -> tuple[A | None, Exception | None]:
    try:
        return action(), None
    except (LlmlabError, OSError) as error:  # meant for a person, and whole after a journey
        return None, error
    except Exception as error:
        told = RuntimeError(f"{type(error).__name__}: {error}")
        told.__cause__ = error
        return None, told
