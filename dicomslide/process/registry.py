"""What a process keeps: bounded, guarded, and never part of a pickle.

Readers travel between processes as names. What is expensive to make from a name
(an open file, a parsed header, a colour transform, a thread pool) is made once in
each process and kept here.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dicomslide.process.changes import after_changes
from dicomslide.process.forks import after_fork_in_child

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    import numpy as np

__all__ = ["FrameCache", "Registry", "forget"]

K = TypeVar("K", bound="Hashable")
V = TypeVar("V")
F = TypeVar("F", "np.ndarray", bytes)


def forget(part: str) -> None:
    """Forget whatever is kept under a key that has a text among its parts, at any depth."""
    for each in list(_kept):
        each.forget(part)


def _has(key: object, part: str) -> bool:
    return any(_has(each, part) for each in key) if isinstance(key, tuple) else key == part


class Registry(Generic[K, V]):
    """A bounded mapping that makes a missing value once, whatever the number of threads.

    The least recently used value is forgotten first; whoever holds it keeps it alive.

    Parameters
    ----------
    size : int
        Number of values that are kept.

    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._start()
        _kept.add(self)
        after_fork_in_child(self, "_start")

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._making: dict[K, threading.Lock] = {}
        self._values: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K, make: Callable[[], V]) -> V:
        """Return the value for `key`, made by `make` when there is none."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
            making = self._making.setdefault(key, threading.Lock())
        with making:  # other keys go on meanwhile
            with self._lock:
                if key in self._values:
                    return self._values[key]
            try:
                value = make()
                with self._lock:  # before others may make it again
                    self._values[key] = value
                    while len(self._values) > self._size:
                        self._values.popitem(last=False)
            finally:
                with self._lock:
                    self._making.pop(key, None)
            return value

    def discard(self, key: K) -> None:
        """Forget the value for a key, if there is one."""
        with self._lock:
            self._values.pop(key, None)

    def forget(self, part: str) -> None:
        """Forget the values under keys that have a text among their parts."""
        with self._lock:
            for key in [key for key in self._values if _has(key, part)]:
                del self._values[key]

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: K) -> bool:
        return key in self._values

    def clear(self) -> None:
        """Forget all values."""
        with self._lock:
            self._values.clear()


class FrameCache(Generic[F]):
    """Frames, least recently used last to stay: bounded in bytes, and per image in frames.

    They are arrays, or bytes as they were received.

    Parameters
    ----------
    max_bytes : callable
        Gives the bound in bytes, which follows the options.

    """

    def __init__(self, max_bytes: Callable[[], int]) -> None:
        self._max_bytes = max_bytes
        self._start()
        _kept.add(self)
        after_fork_in_child(self, "_start")
        after_changes(self, "trim")

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._frames: OrderedDict[tuple[Hashable, int], F] = OrderedDict()
        self._images: dict[Hashable, OrderedDict[int, None]] = {}
        self._nbytes = 0

    @property
    def max_bytes(self) -> int:
        """The bound in bytes, now."""
        return self._max_bytes()

    @property
    def nbytes(self) -> int:
        """Number of bytes held."""
        return self._nbytes

    def get(self, image: Hashable, frames: Iterable[int]) -> dict[int, F]:
        """Return those of an image's frames that are here."""
        with self._lock:
            order = self._images.get(image)
            if order is None:
                return {}
            found = [frame for frame in frames if frame in order]
            for frame in found:
                self._frames.move_to_end((image, frame))
                order.move_to_end(frame)
            return {frame: self._frames[image, frame] for frame in found}

    def put(self, image: Hashable, frame: int, data: F, max_frames: int | None = None) -> None:
        """Keep a frame, and at most `max_frames` of its image, if given."""
        limit = self._max_bytes()
        nbytes = _nbytes(data)
        if max_frames == 0 or nbytes > limit:
            return
        if not isinstance(data, bytes):
            base = data.base
            is_view = base is not None and getattr(base, "nbytes", -1) != nbytes
            if is_view or not data.flags.writeable:  # of bytes that were read: maybe of many frames
                data = data.copy()  # a view would keep alive more than is counted
        with self._lock:
            if (image, frame) in self._frames:
                return
            self._frames[image, frame] = data
            self._images.setdefault(image, OrderedDict())[frame] = None
            self._nbytes += nbytes
            while max_frames is not None and len(self._images[image]) > max_frames:
                self._forget(image, next(iter(self._images[image])))
            self._trim(self._max_bytes())  # which may have been set meanwhile

    def trim(self) -> None:
        """Forget what the bound, as it is now, doesn't leave room for."""
        with self._lock:
            self._trim(self._max_bytes())

    def _trim(self, limit: int) -> None:
        while self._nbytes > limit:
            self._forget(*next(iter(self._frames)))

    def _forget(self, image: Hashable, frame: int) -> None:
        self._nbytes -= _nbytes(self._frames.pop((image, frame)))
        frames = self._images[image]
        del frames[frame]
        if not frames:
            del self._images[image]

    def forget(self, part: str) -> None:
        """Forget the frames of images that have a text among the parts of their names."""
        with self._lock:
            for image in [image for image in self._images if _has(image, part)]:
                for frame in list(self._images[image]):
                    self._forget(image, frame)

    def discard(self, image: Hashable, frames: Iterable[int]) -> None:
        """Forget some frames of an image."""
        with self._lock:
            for frame in frames:
                if (image, frame) in self._frames:
                    self._forget(image, frame)

    def clear(self) -> None:
        """Forget all frames."""
        with self._lock:
            self._frames.clear()
            self._images.clear()
            self._nbytes = 0


_kept: weakref.WeakSet[Registry[Any, Any] | FrameCache[Any]] = weakref.WeakSet()
"""All there are."""


def _nbytes(data: np.ndarray | bytes) -> int:
    return len(data) if isinstance(data, bytes) else data.nbytes
