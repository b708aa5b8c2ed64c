"""Warnings at the caller's line, each once; and arguments that were renamed."""

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

__all__ = ["carried", "heard", "once", "renamed_argument", "silent", "warn"]

P = ParamSpec("P")
R = TypeVar("R")

BETWEEN = frozenset(
    {
        "dicomslide", "xarray", "dask", "asyncio", "collections", "concurrent", "contextlib",
        "functools", "threading",
    }
)  # fmt: skip
"""Packages whose stack frames are skipped in the search for the caller's line."""


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
    """State of the warnings of a thread."""

    caller: _Line | None = None
    """Line of the caller in the thread that started this one; None for other threads."""
    said: tuple[set[str], ...] = ()
    """Messages that were given and aren't repeated, one set per block of :func:`once`."""
    heard: tuple[list[tuple[str, type[Warning]]], ...] = ()
    """Lists of warnings, one per block of :func:`heard`."""
    is_silent: bool = False


_thread = _Thread()


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the line of the caller.

    It is the innermost line outside of this package and of the packages in ``BETWEEN``; in a thread
    that this package started, the line of the thread that started it. In a thread without such a
    line, such as one of dask's workers, it is the line of this package.

    Parameters
    ----------
    message : str
        Text of the warning.
    category : type of Warning
        Category of the warning.

    """
    for heard in _thread.heard:
        heard.append((message, category))
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
    """Give each warning once, in this block or in all blocks that share a set of messages.

    Parameters
    ----------
    said : set of str, optional
        Messages that were given; those of this block are added. A new set by default.

    Yields
    ------
    set of str
        The messages that were given.

    """
    before = _thread.said
    said = set() if said is None else said
    _thread.said = (*before, said)
    try:
        yield said
    finally:
        _thread.said = before


@contextlib.contextmanager
def heard() -> Iterator[list[tuple[str, type[Warning]]]]:
    """List the warnings of this block, whether they are given or not.

    Yields
    ------
    list of tuple
        Text and category of each warning, in order.

    """
    before, found = _thread.heard, list[tuple[str, type[Warning]]]()
    _thread.heard = (*before, found)
    try:
        yield found
    finally:
        _thread.heard = before


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Give no warnings in this block: they were given before, perhaps by another process."""
    before, _thread.is_silent = _thread.is_silent, True
    try:
        yield
    finally:
        _thread.is_silent = before


def carried(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function for another thread, where it warns at this thread's line and as often."""
    its: dict[str, Any] = {"caller": _caller()}
    its |= {name: getattr(_thread, name) for name in ("said", "heard", "is_silent")}

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
    """Return a decorator for functions that still accept an argument by its old name.

    Parameters
    ----------
    old, new : str
        Names of the argument, which is keyword-only.
    values : mapping
        Old values to new values; other values are passed on unchanged.
    until : str
        Version that removes the old name.

    Returns
    -------
    callable
        The function warns with a FutureWarning where the old name is used, and raises a TypeError
        where both are.

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
                    f"{old}={given!r} is deprecated and will be removed in dicomslide {until}; use"
                    f" {new}={value!r}",
                    FutureWarning,
                )
                kwargs[new] = value
            return function(*args, **kwargs)

        return renamed

    return decorate
