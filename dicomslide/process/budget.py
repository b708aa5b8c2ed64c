"""Cached values of a process: made once, bounded in bytes by one budget, and never pickled.

Readers are pickled as names. A value that is expensive to make from a name (an open file, a parsed
header, a colour transform, a thread pool) is made once in each process and cached here.

All registries and frame caches share one budget. When the sum of their values exceeds it, the least
recently used ones are dropped, of whichever registry. A dropped value that is still referenced
elsewhere stays alive without being counted.
"""

from __future__ import annotations

import itertools
import sys
import threading
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dicomslide.process.changes import after_changes
from dicomslide.process.forks import after_fork_in_child

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ["BUDGET", "KINDS", "Member", "cached_bytes", "clear_all", "forget", "has_part",
           "is_forgotten", "set_budget"]  # fmt: skip

K = TypeVar("K", bound="Hashable")
V = TypeVar("V")


KINDS = frozenset({
    "ICC profiles", "arranged slides", "bytes of objects read ahead", "colour tables",
    "colour transforms", "decoded frames", "decoded frames of tiles", "decoding threads",
    "exported stores", "file systems", "filters of servers", "folders of clients",
    "frames decoded ahead", "headers", "heads of objects", "indices of cohorts", "layouts",
    "objects", "open files", "open slides", "parsed files", "places in archives",
    "received frames", "request batchers", "requesting threads", "row groups of indices",
    "tiles of OpenSlide", "trails of boxes", "versions of objects", "warnings of JPEG headers",
    "warnings of empty frames", "whole instances",
})  # fmt: skip
"""Kinds of values that the package caches."""


class _Budget:
    """Upper bound on the bytes of all cached values, and the lock for looking them up.

    No value is read, made or freed under the lock.
    """

    def __init__(self) -> None:
        self.members: weakref.WeakSet[Member[Any, Any]] = weakref.WeakSet()
        self.limit: Callable[[], int] = lambda: sys.maxsize
        self.forgotten: set[str] = set()
        """Texts that no key of a cached value has among its parts."""
        self._start()
        after_fork_in_child(self, "_start")
        after_changes(self.trim)

    def _start(self) -> None:
        self.lock = threading.Lock()
        self.clock = itertools.count().__next__
        """Counts uses: the larger number is the later use."""
        self.total = 0
        """Bytes of all values, and of members that were freed since the last count."""
        for member in list(self.members):
            member._start()

    def trim(self) -> None:
        """Drop the values that exceed the bounds as they are now."""
        dropped: list[Any] = []
        with self.lock:
            for member in list(self.members):
                member._trim(dropped)
            self.make_room(dropped)

    def make_room(self, dropped: list[Any]) -> None:
        """Drop the least recently used values; called under the lock.

        Parameters
        ----------
        dropped : list
            List to which the values are added; the caller frees them after releasing the lock.

        """
        limit = self.limit()
        if self.total <= limit:
            return
        self.total = sum(member.nbytes for member in self.members)
        while self.total > limit:
            weighed = [member for member in self.members if member.nbytes]
            dropped.append(min(weighed, key=lambda member: member._oldest())._drop_oldest())


BUDGET = _Budget()
"""The budget of this process."""


def set_budget(limit: Callable[[], int]) -> None:
    """Bound the bytes of all cached values of the process.

    Parameters
    ----------
    limit : callable
        Returns the current bound in bytes.

    """
    BUDGET.limit = limit
    BUDGET.trim()


def clear_all(*kinds: str) -> None:
    """Forget the cached values of this process, and close the files that nobody else uses.

    Frames, headers and the positions of frames are read again when they are needed. Slides and
    arrays remain valid. Options, credentials and files of `frame_folder` and `index_folder` stay.

    Parameters
    ----------
    *kinds : str
        Kinds of values, such as ``"decoded frames"`` or ``"headers"``; all by default. The message
        of the error lists them.

    Raises
    ------
    ValueError
        When there is no such kind.

    """
    unknown = set(kinds) - KINDS - {member.kind for member in list(BUDGET.members)}
    if unknown:
        raise ValueError(f"no kind of cached values {sorted(unknown)}; there are {sorted(KINDS)}")
    for member in list(BUDGET.members):
        if not kinds or member.kind in kinds:
            member.clear()


def cached_bytes() -> dict[str, int]:
    """Return the bytes of the cached values of this process, of each kind."""
    found: dict[str, int] = {}
    with BUDGET.lock:
        for member in list(BUDGET.members):
            found[member.kind] = found.get(member.kind, 0) + member.nbytes
    return found


def forget(part: str) -> None:
    """Forget all values whose key has a text among its parts, at any depth, for good.

    Values of such keys that are being made or read meanwhile aren't cached either.

    Parameters
    ----------
    part : str
        Text that is not used again, such as a random name of one user's connection.

    """
    with BUDGET.lock:
        BUDGET.forgotten.add(part)
    for member in list(BUDGET.members):
        member.forget(part)


def has_part(key: object, part: str) -> bool:
    """Whether a key has a text among its parts, at any depth."""
    return any(has_part(each, part) for each in key) if isinstance(key, tuple) else key == part


def is_forgotten(key: object) -> bool:
    """Whether a key has a forgotten text among its parts; called under the lock of the budget."""
    return any(has_part(key, part) for part in BUDGET.forgotten)


class _Entry(Generic[V]):
    """A cached value."""

    __slots__ = ("nbytes", "used", "value")

    def __init__(self, value: V, nbytes: int) -> None:
        self.value = value
        self.nbytes = nbytes
        self.used = BUDGET.clock()


class Member(Generic[K, V]):
    """Values in the order of their last use, as part of the budget.

    Its methods that begin with an underscore are called under the lock.

    Parameters
    ----------
    kind : str
        Kind of the values, in the plural.

    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._start()
        BUDGET.members.add(self)

    def _start(self) -> None:
        self._entries: OrderedDict[K, _Entry[V]] = OrderedDict()
        self.nbytes = 0
        """Bytes of all values."""

    def _use(self, key: K, entry: _Entry[V], now: int) -> None:
        entry.used = now
        self._entries.move_to_end(key)

    def _add(self, key: K, value: V, nbytes: int) -> None:
        self._entries[key] = _Entry(value, nbytes)
        self._weigh_more(nbytes)

    def _drop(self, key: K) -> V:
        entry = self._entries.pop(key)
        self._weigh_more(-entry.nbytes)
        self._after_drop(key)
        return entry.value

    def _after_drop(self, key: K) -> None:
        """Update what a subclass stores beside the values; called under the lock."""

    def _weigh_more(self, nbytes: int) -> None:
        self.nbytes += nbytes
        BUDGET.total += nbytes

    def _oldest(self) -> int:
        return next(iter(self._entries.values())).used

    def _drop_oldest(self) -> V:
        return self._drop(next(iter(self._entries)))

    def _trim(self, dropped: list[Any]) -> None:
        """Drop the values that exceed a bound of the subclass."""

    def forget(self, part: str) -> None:
        """Forget the values whose keys have a text among their parts."""
        with BUDGET.lock:
            found = [key for key in self._entries if has_part(key, part)]
            dropped = [self._drop(key) for key in found]
        del dropped  # values are freed without the lock

    def clear(self) -> None:
        """Forget all values."""
        with BUDGET.lock:
            dropped = [self._drop(key) for key in list(self._entries)]
        del dropped

    def __len__(self) -> int:
        return len(self._entries)
