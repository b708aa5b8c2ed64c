"""Who is told when the options of the process change."""

from __future__ import annotations

import weakref

__all__ = ["after_changes", "tell_of_changes"]

_watching: weakref.WeakKeyDictionary[object, str] = weakref.WeakKeyDictionary()


def after_changes(instance: object, method: str) -> None:
    """Call a method whenever options were set, for as long as the instance lives."""
    _watching[instance] = method


def tell_of_changes() -> None:
    """Call the methods of all that watch."""
    for instance, method in list(_watching.items()):
        getattr(instance, method)()
