"""Warnings at the caller's line, each once; and arguments that have another name now."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import FrameType

__all__ = ["carried", "once", "renamed_argument", "silent", "warn"]

P = ParamSpec("P")
R = TypeVar("R")

BETWEEN = frozenset(
    {
        "dicomslide", "xarray", "dask", "asyncio", "collections", "concurrent", "contextlib",
        "functools", "threading",
    }
)  # fmt: skip
"""Packages whose frames stand between what warns and the line of the caller that led there."""


class _Line(NamedTuple):
    """A line of a module, as :func:`warnings.warn_explicit` takes it."""

    file: str
    number: int
    module: str
    registry: dict[Any, Any]

    @classmethod
    def of(cls, frame: FrameType) -> _Line:
        names = frame.f_globals
        registry = names.setdefault("__warningregistry__", {})
        return cls(frame.f_code.co_filename, frame.f_lineno, names.get("__name__", ""), registry)


class _Thread(threading.local):
    """What holds for the warnings of a thread."""

    caller: _Line | None = None
    """Line that started what the thread does, where that is another thread's."""
    said: tuple[set[str], ...] = ()
    """Messages that aren't given again."""
    is_silent: bool = False


_thread = _Thread()


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the line of the caller, whichever way led here.

    That is the nearest one outside of this package and of those through which it is called; in a
    thread of this package's, that of who started it. A thread that has no such line, a worker of
    dask's, warns at the line of this package.

    Parameters
    ----------
    message : str
        What was found.
    category : type of Warning
        Its kind.

    """
    if _thread.is_silent or any(message in said for said in _thread.said):
        return
    line = _caller() or _Line.of(sys._getframe(1))
    warnings.warn_explicit(
        message, category, line.file, line.number, module=line.module, registry=line.registry
    )
    for said in _thread.said:
        said.add(message)


def _caller() -> _Line | None:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _is_between(frame):
        frame = frame.f_back
    return _thread.caller if frame is None else _Line.of(frame)


def _is_between(frame: FrameType) -> bool:
    # by name rather than by file: methods that dataclasses generate have no file
    name = frame.f_globals.get("__name__") or ""
    return name.partition(".")[0] in BETWEEN


@contextlib.contextmanager
def once(said: set[str] | None = None) -> Iterator[set[str]]:
    """Give each warning once, in this block or in all that share a set of messages.

    Parameters
    ----------
    said : set of str, optional
        Messages that were given; those of this block are added. One of the block's own if not
        given.

    Yields
    ------
    set of str
        The messages.

    """
    before = _thread.said
    said = set() if said is None else said
    _thread.said = (*before, said)
    try:
        yield said
    finally:
        _thread.said = before


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Give no warning: they were given before, perhaps by another process."""
    before, _thread.is_silent = _thread.is_silent, True
    try:
        yield
    finally:
        _thread.is_silent = before


def carried(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function that, called in another thread, warns as this one would."""
    its = {"caller": _caller(), "said": _thread.said, "is_silent": _thread.is_silent}

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        before = {name: getattr(_thread, name) for name in its}
        vars(_thread).update(its)
        try:
            return function(*args, **kwargs)
        finally:
            vars(_thread).update(before)

    return call


def renamed_argument(
    old: str, new: str, values: Mapping[str, str], *, until: str
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator for functions that take an argument by its old name too, for a while.

    Parameters
    ----------
    old, new : str
        Names of the argument, which is given by name only.
    values : mapping
        New values by the old ones; others are taken as they are.
    until : str
        Version that no longer takes the old name.

    Returns
    -------
    callable
        Gives the function a FutureWarning where the old name is used, and a TypeError where both
        are.

    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def renamed(*args: P.args, **kwargs: P.kwargs) -> R:
            if old in kwargs:
                if new in kwargs:
                    raise TypeError(f"{old} is the old name of {new}: give {new} only")
                given = kwargs.pop(old)
                value = values.get(given, given) if isinstance(given, str) else given
                warn(
                    f"{old}={given!r} is deprecated, and goes with dicomslide {until}: write"
                    f" {new}={value!r}",
                    FutureWarning,
                )
                kwargs[new] = value
            return function(*args, **kwargs)

        return renamed

    return decorate
