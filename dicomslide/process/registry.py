"""Values that are made once, whatever the number of threads, and cached within the budget."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, TypeVar

from dicomslide.process.budget import BUDGET, Member, is_forgotten

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ["Registry"]

K = TypeVar("K", bound="Hashable")
V = TypeVar("V")


class _Making:
    """The making of a value by one thread, and the threads that wait for it."""

    __slots__ = ("lock", "threads")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.threads = 0
        """Number of threads that make the value or wait for it."""


class Registry(Member[K, V]):
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
            with BUDGET.lock:
                entry = self._entries.get(key)
                if entry is not None:
                    self._use(key, entry, BUDGET.clock())
                    return entry.value
                making = self._making.setdefault(key, _Making())
                making.threads += 1
            try:
                with making.lock:
                    with BUDGET.lock:
                        entry = self._entries.get(key)
                        if entry is not None:
                            return entry.value
                        is_current = self._making.get(key) is making
                    if is_current:
                        value = make()
                        self.put(key, value, making)  # before others may make it again
                        return value
            finally:
                with BUDGET.lock:
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
        with BUDGET.lock:
            if making is not None and self._making.get(key) is not making:
                return
            if key in self._entries:
                dropped.append(self._drop(key))
            if nbytes <= BUDGET.limit() and not is_forgotten(key):
                self._add(key, value, nbytes)
                while len(self._entries) > self._size:
                    dropped.append(self._drop_oldest())
                BUDGET.make_room(dropped)

    def reweigh(self, key: K, value: V) -> None:
        """Count the bytes of a value that has become larger, if it is still cached."""
        entry = self._entries.get(key)
        if entry is not None and entry.value is value:
            self.put(key, value)

    def discard(self, key: K) -> None:
        """Forget the value of a key, if there is one or one is being made."""
        with BUDGET.lock:
            self._making.pop(key, None)
            dropped = self._drop(key) if key in self._entries else None
        del dropped

    def clear(self) -> None:
        """Forget all values, and those that are being made."""
        with BUDGET.lock:
            self._making.clear()
        super().clear()

    def __contains__(self, key: K) -> bool:
        return key in self._entries
