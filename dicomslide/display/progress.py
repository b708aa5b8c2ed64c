"""Progress of long operations: a line of text, or calls of the caller's function."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Progress", "Report", "duration", "report_of"]

Report: TypeAlias = "Callable[[int, int], object]"
"""Called with the number of items that are done, and the number of all."""

STEP = 0.2
"""Seconds between two states of the line on a terminal or in a notebook."""
LINE = 10.0
"""Seconds between two lines where lines can't be replaced, as in a log file."""


def report_of(progress: bool | Report, what: str) -> Report:
    """Return the function to call with the state of an operation.

    Parameters
    ----------
    progress : bool or callable
        Whether a line of text says it; or the function itself.
    what : str
        Name of the items, in the plural.

    Raises
    ------
    TypeError
        When `progress` is neither.

    """
    if callable(progress):
        return progress
    if not isinstance(progress, (bool, np.bool_)):
        raise TypeError(f"progress {progress!r}: expected True, False or a function")
    return Progress(what) if progress else _nothing


def _nothing(done: int, total: int) -> None:
    pass


class Progress:
    """Text on standard error: how many items are done, and how long the others will take.

    On a terminal and in a notebook one line is replaced. Elsewhere there is a line each ten
    seconds.

    Parameters
    ----------
    what : str
        Name of the items, in the plural.
    clock : callable, optional
        Returns seconds.

    """

    def __init__(self, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._clock = clock
        self._began = self._said = clock()
        self._width = 0

    def __call__(self, done: int, total: int) -> None:
        """Say that so many items are done."""
        now = self._clock()
        replaces = _replaces_lines()
        if done < total and now - self._said < (STEP if replaces else LINE):
            return
        self._said = now
        text = f"{done:,} of {total:,} {self._what}"
        passed = now - self._began
        if done < total:
            text += f", {100 * done // total} %"
            text += f", about {duration(passed * (total - done) / done)} left" if done else ""
        else:
            text += f" in {duration(passed)}"
        if replaces:
            text, self._width = "\r" + text.ljust(self._width), len(text)
        end = "" if replaces and done < total else "\n"
        print(text, end=end, file=sys.stderr, flush=True)


def _replaces_lines() -> bool:
    """Whether a carriage return goes back to the start of the line."""
    return sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel")


def duration(seconds: float) -> str:
    """Return a duration as text: ``4.2 s``, ``3 min``, ``2.5 h``."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
