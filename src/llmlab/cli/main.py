"""The command itself: its verbs, and what becomes of an error."""

import errno
import io
import os
import sys
import traceback
from collections.abc import Callable
from functools import cache
from typing import Any

import typer
from typer.core import TyperGroup

from llmlab.cli import learning, measuring, reading, recipes, talking, weights
from llmlab.errors import InputError, LlmlabError
from llmlab.world import World


class _InOrder(TyperGroup):
    """Verbs are listed in the order of a model's life."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)


# What the disk or its owner refuses. Any other error of the operating system is a defect and keeps its traceback.
OF_THE_MACHINE = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR,
    errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip

app = typer.Typer(
    name="llmlab",
    help="A language model's whole life on one recipe: pretrain, fine-tune, align, compress, evaluate, talk.",
    cls=_InOrder,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

VERBS = (
    *(recipes.run, recipes.plan, recipes.compare, recipes.search, recipes.recipe),
    *(weights.pull, weights.convert, weights.families),
    *(talking.generate, talking.chat, talking.serve),
    *(reading.read, reading.summarize, reading.continue_),
    *(measuring.evaluate, measuring.diagnose, measuring.runs, measuring.xray, measuring.tokenizers),
    learning.handbook,
)
for verb in VERBS:
    app.command(verb.__name__.rstrip("_"))(verb)  # `continue` is a word of Python's own


def main() -> None:
    """Run the command line; errors meant for a person are one line on standard error."""
    _open_streams()
    # An idle OpenMP thread spins for a moment and then sleeps. Left to spin, it made training ten times slower beside
    # one other busy process; never spinning costs a fifth on an idle machine (LOG.md, 2026-11-23). libgomp reads this
    # when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    world = World.of_environment()
    if world.alone:
        sys.exit(_code(_fail))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost connection is told once, by us
    speaks = cache(world.speaks)  # of several processes that fail together, one says why
    code = 1
    try:
        code = _code(lambda line, code: _fail(line, code) if speaks() else code)
    except Exception:
        if speaks():
            traceback.print_exc()
    world.leave(code)


def _code(fail: Callable[[str, int], int]) -> int:
    """Run the verb; the exit code. `fail(line, code)` says what went wrong."""
    code = 0
    try:
        left = app(_arguments() or ["--help"], standalone_mode=False)
        sys.stdout.flush()
        if left == 130:  # how typer answers where Ctrl-C was pressed
            code = fail("stopped", 130)
    except LlmlabError as error:
        code = fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = fail("stopped", 130)
    except typer.Exit as leave:
        code = leave.exit_code
    except (BrokenPipeError, SystemExit):  # typer leaves by SystemExit where the pipe broke below it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read us has left
    except OSError as error:
        if error.errno not in OF_THE_MACHINE:
            raise
        code = fail(
            f"{error.filename or 'writing'}: {os.strerror(error.errno)}; what was written before is unharmed", 2
        )
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise  # a defect: its traceback is for us
        code = fail(error.format_message(), 2)
    return code


def _arguments() -> list[str]:
    """What was given on the command line. It must be UTF-8: safetensors opens no file of another name."""
    for argument in sys.argv[1:]:
        try:
            argument.encode("utf-8")
        except UnicodeEncodeError:
            raise InputError(repr(argument), "this argument is not UTF-8", "rename the file") from None
    return sys.argv[1:]


def _open_streams() -> None:
    """Standard streams that take whatever is written: a closed one is empty, a letter that a terminal does not have,
    or that is no Unicode (of a file's name), is written as its escape."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _fail(line: str, code: int) -> int:
    print(f"llmlab: {' '.join(line.split())}", file=sys.stderr)
    return code
