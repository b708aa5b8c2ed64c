"""Functions that are called when the options of the process change."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["after_changes", "tell_of_changes"]

_watching: list[Callable[[], None]] = []


def after_changes(function: Callable[[], None]) -> None:
    """Call a function whenever options were set, for as long as the process lives."""
    _watching.append(function)


def tell_of_changes() -> None:
    """Call all functions that were registered."""
    for function in tuple(_watching):
        function()
