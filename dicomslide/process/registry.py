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
    from collections.abc import Callable, Hashable, Iterable

    import numpy as np

__all__ = ["FrameCache", "Registry", "cached_bytes", "clear_all", "forget", "set_budget"]

K = TypeVar("K", bound="Hashable")
V = TypeVar("V")
F = TypeVar("F", "np.ndarray", bytes)


KINDS = frozenset({
    "ICC profiles", "bytes of objects read ahead", "colour tables", "colour transforms",
    "decoded frames", "decoding threads", "exported stores", "file systems", "folders of clients",
    "headers", "heads of objects", "layouts", "objects", "open files", "parsed files",
    "places in archives", "received frames", "request batchers", "requesting threads",
    "tiles of OpenSlide", "versions of objects", "warnings of JPEG headers",
    "warnings of empty frames", "whole instances",
})  # fmt: skip
"""Kinds of values that the package caches."""


class _Budget:
    """Upper bound on the bytes of all cached values, and the lock for looking them up.

    No value is read, made or freed under the lock.
    """

    def __init__(self) -> None:
        self.members: weakref.WeakSet[_Member[Any, Any]] = weakref.WeakSet()
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


_budget = _Budget()


def set_budget(limit: Callable[[], int]) -> None:
    """Bound the bytes of all cached values of the process.

    Parameters
    ----------
    limit : callable
        Returns the current bound in bytes.

    """
    _budget.limit = limit
    _budget.trim()


def clear_all(*kinds: str) -> None:
    """Forget the cached values of this process, and close the files that nobody else uses.

    Frames, headers and the places of frames are read again when they are next wanted. Slides and
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
    unknown = set(kinds) - KINDS - {member.kind for member in list(_budget.members)}
    if unknown:
        raise ValueError(f"no kind of cached values {sorted(unknown)}; there are {sorted(KINDS)}")
    for member in list(_budget.members):
        if not kinds or member.kind in kinds:
            member.clear()


def cached_bytes() -> dict[str, int]:
    """Return the bytes of the cached values of this process, of each kind."""
    found: dict[str, int] = {}
    with _budget.lock:
        for member in list(_budget.members):
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
    with _budget.lock:
        _budget.forgotten.add(part)
    for member in list(_budget.members):
        member.forget(part)


def _has(key: object, part: str) -> bool:
    return any(_has(each, part) for each in key) if isinstance(key, tuple) else key == part


def _is_forgotten(key: object) -> bool:
    return any(_has(key, part) for part in _budget.forgotten)


class _Entry(Generic[V]):
    """A cached value."""

    __slots__ = ("nbytes", "used", "value")

    def __init__(self, value: V, nbytes: int) -> None:
        self.value = value
        self.nbytes = nbytes
        self.used = _budget.clock()


class _Member(Generic[K, V]):
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
        _budget.members.add(self)

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
        _budget.total += nbytes

    def _oldest(self) -> int:
        return next(iter(self._entries.values())).used

    def _drop_oldest(self) -> V:
        return self._drop(next(iter(self._entries)))

    def _trim(self, dropped: list[Any]) -> None:
        """Drop the values that exceed a bound of the subclass."""

    def _matches(self, key: K, part: str) -> bool:
        return _has(key, part)

    def forget(self, part: str) -> None:
        """Forget the values whose keys have a text among their parts."""
        with _budget.lock:
            found = [key for key in self._entries if self._matches(key, part)]
            dropped = [self._drop(key) for key in found]
        del dropped  # values are freed without the lock

    def clear(self) -> None:
        """Forget all values."""
        with _budget.lock:
            dropped = [self._drop(key) for key in list(self._entries)]
        del dropped

    def __len__(self) -> int:
        return len(self._entries)


class _Making:
    """The making of a value by one thread, and the threads that wait for it."""

    __slots__ = ("lock", "threads")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.threads = 0
        """Number of threads that make the value or wait for it."""


class Registry(_Member[K, V]):
    """LRU cache that makes a missing value once, whatever the number of threads.

    Parameters
    ----------
    size : int
        Largest number of values; the least recently used one is dropped first.
    kind : str
        Kind of the values, in the plural.
    weigh : callable, optional
        Returns the bytes of a value, which count towards the budget of the process. Without it,
        values are bounded by their number alone: files, connections, threads.

    """

    def __init__(self, size: int, kind: str, weigh: Callable[[V], int] | None = None) -> None:
        self._size = size
        self._weigh = weigh
        super().__init__(kind)

    def _start(self) -> None:
        super()._start()
        self._making: dict[K, _Making] = {}

    def get(self, key: K, make: Callable[[], V]) -> V:
        """Return the value of a key, made by `make` when there is none.

        Other threads that ask for it wait; those that ask for other keys don't. When `make` fails,
        the next one of them makes the value. A value whose key is forgotten while it is made is
        returned but not cached; threads that wait for it have it made anew.
        """
        while True:
            with _budget.lock:
                entry = self._entries.get(key)
                if entry is not None:
                    self._use(key, entry, _budget.clock())
                    return entry.value
                making = self._making.setdefault(key, _Making())
                making.threads += 1
            try:
                with making.lock:
                    with _budget.lock:
                        entry = self._entries.get(key)
                        if entry is not None:
                            return entry.value
                        is_current = self._making.get(key) is making
                    if is_current:
                        value = make()
                        self.put(key, value, making)  # before others may make it again
                        return value
            finally:
                with _budget.lock:
                    making.threads -= 1
                    if not making.threads and self._making.get(key) is making:
                        del self._making[key]

    def put(self, key: K, value: V, making: _Making | None = None) -> None:
        """Cache a value in place of another one; not where it is larger than the budget.

        Parameters
        ----------
        key : hashable
            Name of the value.
        value : object
            The value.
        making : _Making, optional
            Where the value was made by :meth:`get`; it isn't cached if its key was forgotten since.

        """
        nbytes = 0 if self._weigh is None else self._weigh(value)
        dropped: list[Any] = []
        with _budget.lock:
            if making is not None and self._making.get(key) is not making:
                return
            if key in self._entries:
                dropped.append(self._drop(key))
            if nbytes <= _budget.limit() and not _is_forgotten(key):
                self._add(key, value, nbytes)
                while len(self._entries) > self._size:
                    dropped.append(self._drop_oldest())
                _budget.make_room(dropped)

    def reweigh(self, key: K, value: V) -> None:
        """Count the bytes of a value that has become larger, if it is still cached."""
        entry = self._entries.get(key)
        if entry is not None and entry.value is value:
            self.put(key, value)

    def discard(self, key: K) -> None:
        """Forget the value of a key, if there is one or one is being made."""
        with _budget.lock:
            self._making.pop(key, None)
            dropped = self._drop(key) if key in self._entries else None
        del dropped

    def clear(self) -> None:
        """Forget all values, and those that are being made."""
        with _budget.lock:
            self._making.clear()
        super().clear()

    def __contains__(self, key: K) -> bool:
        return key in self._entries


class FrameCache(_Member[tuple["Hashable", int], F]):
    """LRU cache of frames, decoded or as received, bounded in bytes and in frames per image.

    Parameters
    ----------
    max_bytes : callable
        Returns the current bound in bytes, which applies in addition to the budget.
    kind : str
        Kind of the frames, in the plural.

    """

    def __init__(self, max_bytes: Callable[[], int], kind: str) -> None:
        self._max_bytes = max_bytes
        super().__init__(kind)

    def _start(self) -> None:
        super()._start()
        self._images: dict[Hashable, OrderedDict[int, None]] = {}

    @property
    def max_bytes(self) -> int:
        """Upper bound in bytes at this moment."""
        return min(self._max_bytes(), _budget.limit())

    def get(self, image: Hashable, frames: Iterable[int]) -> dict[int, F]:
        """Return the cached ones among frames of an image."""
        with _budget.lock:
            order = self._images.get(image)
            if order is None:
                return {}
            now = _budget.clock()
            found: dict[int, F] = {}
            for frame in frames:
                if frame in order:
                    entry = self._entries[image, frame]
                    self._use((image, frame), entry, now)
                    order.move_to_end(frame)
                    found[frame] = entry.value
            return found

    def put(self, image: Hashable, frame: int, data: F, max_frames: int | None = None) -> None:
        """Cache a frame, unless it is cached already.

        Parameters
        ----------
        image : hashable
            Key of the image.
        frame : int
            Zero-based frame.
        data : numpy.ndarray or bytes
            The frame; an array that is a view, or isn't writeable, is copied.
        max_frames : int, optional
            Upper bound on cached frames of the image.

        """
        nbytes = _nbytes(data)
        if max_frames == 0 or nbytes > self.max_bytes:
            return
        if not isinstance(data, bytes):
            base = data.base
            is_view = base is not None and getattr(base, "nbytes", -1) != nbytes
            if is_view or not data.flags.writeable:  # views of received bytes, maybe of many frames
                data = data.copy()  # a view would keep more bytes alive than are counted
        dropped: list[Any] = []
        with _budget.lock:
            if (image, frame) in self._entries or _is_forgotten(image):
                return
            self._add((image, frame), data, nbytes)
            order = self._images.setdefault(image, OrderedDict())
            order[frame] = None
            while max_frames is not None and len(order) > max_frames:
                dropped.append(self._drop((image, next(iter(order)))))
            self._trim(dropped)
            _budget.make_room(dropped)

    def _after_drop(self, key: tuple[Hashable, int]) -> None:
        image, frame = key
        frames = self._images[image]
        del frames[frame]
        if not frames:
            del self._images[image]

    def _trim(self, dropped: list[Any]) -> None:
        limit = self._max_bytes()  # the option may have changed
        while self.nbytes > limit:
            dropped.append(self._drop_oldest())

    def _matches(self, key: tuple[Hashable, int], part: str) -> bool:
        return _has(key[0], part)

    def discard(self, image: Hashable, frames: Iterable[int]) -> None:
        """Forget some frames of an image."""
        with _budget.lock:
            found = [(image, frame) for frame in frames if (image, frame) in self._entries]
            dropped = [self._drop(key) for key in dict.fromkeys(found)]
        del dropped


def _nbytes(data: np.ndarray | bytes) -> int:
    return len(data) if isinstance(data, bytes) else data.nbytes
