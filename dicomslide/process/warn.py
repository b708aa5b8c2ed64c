"""Warnings at the caller's line, and arguments that have another name now."""

from __future__ import annotations

import functools
import sys
import warnings
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["renamed_argument", "warn"]

P = ParamSpec("P")
R = TypeVar("R")

BETWEEN = frozenset(
    {
        "dicomslide",
        "xarray",
        "dask",
        "asyncio",
        "concurrent",
        "contextlib",
        "functools",
        "threading",
    }
)
"""Packages whose frames stand between what warns and the line of the caller that led there."""


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the line of the caller, whichever way led here.

    That is the nearest one outside of this package and of those through which it is called. A
    thread that has none of it, a worker of dask's, warns at the line of this package.

    Parameters
    ----------
    message : str
        What was found.
    category : type of Warning
        Its kind.

    """
    here = frame = sys._getframe(1)
    while _package_of(frame) in BETWEEN:
        if frame.f_back is None:
            frame = here
            break
        frame = frame.f_back
    warnings.warn_explicit(
        message,
        category,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=frame.f_globals.get("__name__", "<string>"),
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )


def _package_of(frame: Any) -> str:
    # by name rather than by file: methods that dataclasses generate have no file
    name: str = frame.f_globals.get("__name__") or ""
    return name.partition(".")[0]


def renamed_argument(
    old: str, new: str, values: Mapping[str, str]
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator for functions that take an argument by its old name too, for a release.

    Parameters
    ----------
    old, new : str
        Names of the argument, which is given by name only.
    values : mapping
        New values by the old ones; others are taken as they are.

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
                    f"{old}={given!r} is called {new}={value!r} now; the next release knows only"
                    " the latter",
                    FutureWarning,
                )
                kwargs[new] = value
            return function(*args, **kwargs)

        return renamed

    return decorate
