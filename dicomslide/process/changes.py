"""Functions that are called after the options of the process have changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["after_changes", "tell_of_changes"]

_watching: list[Callable[[], None]] = []


def after_changes(function: Callable[[], None]) -> None:
    """Call a function after each change of options, for the life of the process."""
    _watching.append(function)


def tell_of_changes() -> None:
    """Call all functions that :func:`after_changes` registered."""
    for function in tuple(_watching):
        function()
