"""Several threads that ask for a few frames each: one request for all of them."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["Gatherer"]

SHORTEST_WINDOW, LONGEST_WINDOW = 0.003, 0.05
"""Seconds between which the first who asks waits for others."""
SHARE = 0.1
"""How long that is, of what the last request took."""
LONG = 32
"""So much is enough for a request of its own: who asks for it waits for nobody."""

T = TypeVar("T")


class _Batch:
    """What is asked for together."""

    def __init__(self) -> None:
        self.wanted: set[int] = set()
        self.readers = 0
        self.is_full = threading.Event()
        self.is_done = threading.Event()
        self.found: Mapping[int, object] | None = None


class Gatherer:
    """Joins what several threads ask for within a few milliseconds.

    Parameters
    ----------
    longest : float
        Seconds within which a request has ended, one way or the other.

    """

    def __init__(self, *, longest: float) -> None:
        self._longest = longest
        self._lock = threading.Lock()
        self._open: _Batch | None = None
        self._window = SHORTEST_WINDOW

    def read(
        self, indices: Sequence[int], fetch: Callable[[list[int]], Mapping[int, T]], *, most: int
    ) -> Mapping[int, T]:
        """Return what `fetch` gives, perhaps with what others asked for.

        Parameters
        ----------
        indices : sequence of int
            What is wanted.
        fetch : callable
            Gets all that is wanted, sorted. An error is that of who asked alone; of several,
            each asks again by itself.
        most : int
            Most that is asked for at once.

        """
        with self._lock:
            batch = self._open
            leads = batch is None or len(batch.wanted.union(indices)) > most
            if batch is None or leads:
                batch = self._open = _Batch()
            batch.wanted.update(indices)
            batch.readers += 1
            if len(batch.wanted) >= most:
                batch.is_full.set()
        if leads:
            self._lead(batch, indices, fetch)
        elif not batch.is_done.wait(self._longest):
            raise TimeoutError(f"no answer within {self._longest:g} s to who asked for more")
        if batch.found is None:  # what is wrong may be wrong with what others want
            return fetch(sorted(indices))
        return batch.found  # type: ignore[return-value]

    def _lead(
        self,
        batch: _Batch,
        indices: Sequence[int],
        fetch: Callable[[list[int]], Mapping[int, T]],
    ) -> None:
        try:
            if len(indices) < LONG:
                batch.is_full.wait(self._window)
            with self._lock:
                if self._open is batch:
                    self._open = None
                alone = batch.readers == 1
            began = time.monotonic()
            try:
                batch.found = fetch(sorted(batch.wanted))
                took = SHARE * (time.monotonic() - began)
                self._window = min(LONGEST_WINDOW, max(SHORTEST_WINDOW, took))
            except Exception:
                if alone:
                    raise
        finally:
            with self._lock:
                if self._open is batch:
                    self._open = None
            batch.is_done.set()
