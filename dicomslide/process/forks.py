"""Forks: what a child starts anew, and what a fork waits for.

A forked child has one thread. A lock that another thread of the parent held never opens there,
and what it guarded may be half done.
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
"""Seconds that a fork waits for a module that another thread imports; once for each module."""
STEP = 0.001
"""Seconds after which it looks again, at first."""

_started: weakref.WeakKeyDictionary[object, str] = weakref.WeakKeyDictionary()


def after_fork_in_child(instance: object, method: str) -> None:
    """Call a method in every forked child, for as long as the instance lives."""
    _started[instance] = method


def _start_anew() -> None:
    for instance, method in list(_started.items()):
        getattr(instance, method)()


class ForkLock:
    """A lock that is open in a forked child, whoever held it in the parent.

    The thread that holds it may take it again.
    """

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
    """A lock that a fork waits for: for libraries whose own locks a child would inherit held.

    It is one for the whole process, and lives as long.
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
        if self._waits:  # else it was made while this fork waited for the module that makes it
            self._waits = False
            self._lock.release()


class _Imports:
    """Lets a fork wait for modules that other threads import: a child could never import them.

    Python has a lock for each of them that it doesn't renew in a child, and a first read imports
    what it needs. All of it is Python's own, and the same in all its versions so far.
    """

    def __init__(self) -> None:
        self._given_up: set[tuple[str, int]] = set()

    def before(self) -> None:
        """Wait until no other thread imports anything, and let none begin."""
        began = time.monotonic()
        share = STEP
        while True:
            # logging's first, as threads have it that import while they hold it; Python takes it
            # before each fork, when that would be too late
            logging._lock.acquire()  # type: ignore[attr-defined]
            _imp.acquire_lock()
            until = time.monotonic() + share
            while under_way := _under_way() - self._given_up:  # what imports nothing else ends
                if time.monotonic() > until:
                    break
                time.sleep(STEP)
            else:
                return
            self.after_in_parent()
            if time.monotonic() > began + PATIENCE:
                self._given_up |= under_way
            time.sleep(share)  # what imports something else goes on
            share *= 2

    def after_in_parent(self) -> None:
        """Let others import."""
        _imp.release_lock()
        logging._lock.release()  # type: ignore[attr-defined]

    def after_in_child(self) -> None:
        """Do the same where logging has renewed its lock already."""
        _imp.release_lock()


def _under_way() -> set[tuple[str, int]]:
    """Return the modules that other threads import at this moment, with the threads."""
    locks = sys.modules["_frozen_importlib"]._module_locks
    if not locks:
        return set()
    others = sys._current_frames().keys() - {threading.get_ident()}
    owners = {(name, getattr(lock(), "owner", None)) for name, lock in list(locks.items())}
    return {(name, owner) for name, owner in owners if owner in others}


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_start_anew)
    if sys.implementation.name == "cpython":
        _imports = _Imports()
        os.register_at_fork(
            before=_imports.before,
            after_in_parent=_imports.after_in_parent,
            after_in_child=_imports.after_in_child,
        )
