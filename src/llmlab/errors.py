"""The errors that reach a person. Everything else that is raised is a defect and keeps its traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LlmlabError(Exception):
    """An error meant to be read: the command line prints it as one line and leaves with `exit_code`."""

    exit_code = 1


class InputError(LlmlabError):
    """Bad input. `place` is where it lies (a field, a file with its line), `hint` what would be right."""

    exit_code = 2

    def __init__(self, place: str, problem: str, hint: str = "") -> None:
        self.place, self.problem, self.hint = place, problem, hint
        line = f"{place}: {problem}" + (f" ({hint})" if hint else "")
        # Names out of files may hold anything; what is printed stays one line.
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line))

    def __reduce__(self) -> tuple[object, ...]:
        """It may travel from one process to another."""
        return type(self), (self.place, self.problem, self.hint)


class Diverged(InputError):
    """A training whose numbers left the finite. To a race this is a result of that arm, not a reason to end."""


class Stopped(LlmlabError):
    """Ctrl-C or SIGTERM, after the state was saved. The message says how to go on."""

    exit_code = 130


def unknown(place: str, value: object, allowed: Iterable[object]) -> InputError:
    """An `InputError` for a value outside a known set: it names the near one and all that are allowed."""
    names = [str(name) for name in allowed]
    near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    guess = f"did you mean {near[0]!r}? " if near else ""
    return InputError(place, f"unknown value {str(value)!r}", f"{guess}allowed: {', '.join(names) or 'none'}")
