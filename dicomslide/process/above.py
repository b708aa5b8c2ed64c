"""Functions of rooms above, by which methods of lower ones are served.

A lower room names what it calls; the package's ``__init__``, which knows all rooms, says where that
is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["register", "served_by"]

_IMPORTS: dict[str, Callable[[], Callable[..., Any]]] = {}


def register(name: str, imported: Callable[[], Callable[..., Any]]) -> None:
    """Say what imports and returns the function that is called by a name."""
    _IMPORTS[name] = imported


def served_by(name: str) -> Callable[..., Any]:
    """Return the function that is called by a name; it is imported now."""
    return _IMPORTS[name]()
