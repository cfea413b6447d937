"""llmlab's command line, cut short once: `python cut.py stop|kill AT llmlab's arguments...`, for tests/test_ranks.py.

`stop`: the last rank is asked to stop (SIGTERM) in its step AT of the first training it does. `kill`: the first rank
dies (SIGKILL) at its call AT of fsync in the second save of the first training. A process that torchrun started again
lives on without a cut.
"""

import os
import signal
import sys
from typing import Any

from llmlab.cli import main
from llmlab.training import step as steps
from llmlab.training.state import Checkpoints
from llmlab.world import World


def stop(at: int) -> None:
    plain = steps.Gradients.of

    def asked(self: Any, batches: Any, step: int) -> Any:
        if step + 1 == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, batches, step)

    steps.Gradients.of = asked  # type: ignore[method-assign]


def kill(at: int) -> None:
    plain, fsync, left = Checkpoints.save, os.fsync, [at, 2]

    def dying(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    def save(self: Any, saved: Any) -> None:
        left[1] -= 1
        if not left[1]:
            os.fsync = dying
        plain(self, saved)
        os.fsync = fsync

    Checkpoints.save = save  # type: ignore[method-assign]


if __name__ == "__main__":
    way, at, sys.argv = sys.argv[1], int(sys.argv[2]), sys.argv[:1] + sys.argv[3:]
    world = World.of_environment()
    if world.rank == {"stop": world.size - 1, "kill": 0}[way] and not world.restarts:
        {"stop": stop, "kill": kill}[way](at)
    main()
