"""Forks: locks and state that a child renews, and locks for which a fork waits.

A forked child has one thread. A lock that another thread of the parent held is never released
there, and the state that it guarded may be inconsistent.
"""

from __future__ import annotations

import _imp
import concurrent.futures.thread  # noqa: F401 - its hook is registered before ours, and logging's
import logging
import os
import sys
import threading
import time
import weakref

__all__ = ["ForkBarrier", "ForkLock", "after_fork_in_child"]

PATIENCE = 5.0
"""Seconds that a fork waits for another thread's import, once for each module."""
STEP = 0.001
"""First polling interval in seconds; it doubles."""

_started: weakref.WeakKeyDictionary[object, str] = weakref.WeakKeyDictionary()


def after_fork_in_child(instance: object, method: str) -> None:
    """Call a method in every forked child, for the life of the instance."""
    _started[instance] = method


def _restart_all() -> None:
    for instance, method in list(_started.items()):
        getattr(instance, method)()


class ForkLock:
    """A re-entrant lock that is released in a forked child, whichever thread held it."""

    def __init__(self) -> None:
        self._start()
        after_fork_in_child(self, "_start")

    def _start(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()


class ForkBarrier(ForkLock):
    """A lock for which a fork waits, around libraries whose own locks a child would inherit held.

    An instance belongs to a module and is never freed.
    """

    def __init__(self) -> None:
        super().__init__()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self._before, after_in_parent=self._after_in_parent)

    def _start(self) -> None:
        super()._start()
        self._waits = False

    def _before(self) -> None:
        self._lock.acquire()
        self._waits = True

    def _after_in_parent(self) -> None:
        if self._waits:  # False where this object was made after `_before` ran, by an import
            self._waits = False
            self._lock.release()


class _Imports:
    """Delays a fork until no other thread imports a module: a child could never import it.

    Python has a lock per module, which it doesn't renew in a child; reading the first slide imports
    several modules. This uses private names of Python, which are the same in all its versions so
    far.
    """

    def __init__(self) -> None:
        self._given_up: set[tuple[str, int]] = set()

    def before(self) -> None:
        """Wait until no other thread imports a module, and keep others from beginning."""
        began = time.monotonic()
        share = STEP
        while True:
            # logging's lock first: a thread that holds it may import, and Python itself acquires
            # it before each fork, but after this function
            logging._lock.acquire()  # type: ignore[attr-defined]
            _imp.acquire_lock()
            until = time.monotonic() + share
            while under_way := _under_way() - self._given_up:  # imports of single modules end
                if time.monotonic() > until:
                    break
                time.sleep(STEP)
            else:
                return
            self.after_in_parent()
            if time.monotonic() > began + PATIENCE:
                self._given_up |= under_way
            time.sleep(share)  # nested imports go on
            share *= 2

    def after_in_parent(self) -> None:
        """Let other threads import again."""
        _imp.release_lock()
        logging._lock.release()  # type: ignore[attr-defined]

    def after_in_child(self) -> None:
        """Release the import lock; logging has renewed its own."""
        _imp.release_lock()


def _under_way() -> set[tuple[str, int]]:
    """Return the (name, thread) of each module that another thread is importing."""
    locks = sys.modules["_frozen_importlib"]._module_locks
    if not locks:
        return set()
    others = sys._current_frames().keys() - {threading.get_ident()}
    owners = {(name, getattr(lock(), "owner", None)) for name, lock in list(locks.items())}
    return {(name, owner) for name, owner in owners if owner in others}


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_restart_all)
    if sys.implementation.name == "cpython":
        _imports = _Imports()
        os.register_at_fork(
            before=_imports.before,
            after_in_parent=_imports.after_in_parent,
            after_in_child=_imports.after_in_child,
        )
