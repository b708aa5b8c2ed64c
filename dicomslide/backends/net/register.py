"""Values by the beginning of URLs: credentials and options, as one process was told them."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

from dicomslide.process.forks import ForkLock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Register"]

V = TypeVar("V")

MOST_REGISTERED = 2**16
"""Upper bound on beginnings: each is a short text, and a data set of signed URLs takes many."""


class Register(Generic[V]):
    """Values by the beginning of URLs; a URL has the value of the longest one.

    A forked child starts with those of its parent.

    Parameters
    ----------
    beginnings : callable
        Returns the beginnings of a URL that values may be registered for, the longest first. The
        first one is the URL itself, written in one way.

    """

    def __init__(self, beginnings: Callable[[str], Sequence[str]]) -> None:
        self._beginnings = beginnings
        self._lock = ForkLock()
        self._values: OrderedDict[str, V] = OrderedDict()

    def put(self, url: str, value: V) -> V | None:
        """Register a value for URLs that begin with `url`; return the one before."""
        key = self._beginnings(url)[0]
        with self._lock:
            before = self._values.pop(key, None)
            self._values[key] = value
            while len(self._values) > MOST_REGISTERED:
                self._values.popitem(last=False)
        return before

    def own(self, url: str) -> V | None:
        """Return the value that was registered for exactly this URL."""
        with self._lock:
            return self._values.get(self._beginnings(url)[0])

    def of(self, url: str) -> V | None:
        """Return the value for a URL: that of its longest beginning."""
        keys = self._beginnings(url)
        with self._lock:
            return next((self._values[key] for key in keys if key in self._values), None)

    def discard(self, url: str) -> None:
        """Remove the value of exactly this URL, if there is one."""
        with self._lock:
            self._values.pop(self._beginnings(url)[0], None)

    def drop(self, url: str) -> list[V]:
        """Remove and return the values for a URL and for those that begin with it."""
        start = self._beginnings(url)[0]
        with self._lock:
            keys = [key for key in self._values if start in self._beginnings(key)]
            return [self._values.pop(key) for key in keys]

    def clear(self) -> None:
        """Remove all values."""
        with self._lock:
            self._values.clear()
