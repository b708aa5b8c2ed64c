"""Frames of remote sources: from the cache, or requested for several threads together."""

from __future__ import annotations

import functools
import threading
import time
from typing import TYPE_CHECKING

from dicomslide.backends.batching import encoded_frames

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
    from typing import TypeAlias

    from dicomslide.backends.batching.prefetch import ReadAhead
    from dicomslide.pixels.pixel_format import Buffer

    Fetch: TypeAlias = Callable[[list[int]], Mapping[int, bytes]]
    Since: TypeAlias = float | None

__all__ = ["Gatherer", "read_frames"]

SHORTEST_WINDOW, LONGEST_WINDOW = 0.003, 0.05
"""Bounds in seconds of the time that a batch stays open for other threads, if there are any."""
SHARE = 0.1
"""That time as a fraction of the duration of the last request."""
LONG = 32
"""Number of frames from which a request is sent at once, without waiting for other threads."""
STEP = 0.5
"""Polling interval in seconds of a waiting thread, so that Ctrl-C works on any system."""


def read_frames(
    gatherer: Gatherer,
    image: tuple[Hashable, ...],
    indices: Sequence[int],
    fetch: Callable[[list[int], Since], Sequence[bytes]],
    *,
    begin: Callable[[], Since],
    most: int,
    most_ahead: int,
    keeps: bool = True,
    scope: str = "",
    may_see: Callable[[], bool] = lambda: True,
) -> list[Buffer]:
    """Return frames of an image, from the cache and otherwise in few requests.

    Parameters
    ----------
    gatherer : Gatherer
        Joins the requests of the threads of this process for the image.
    image : tuple
        Identity of the source.
    indices : sequence of int
        Zero-based frames.
    fetch : callable
        Requests sorted frames and returns their bytes in order; the second argument is the result
        of `begin`.
    begin : callable
        Called when a thread begins to wait for a request. Its result is passed to all attempts,
        with prefetched frames and without, which share one deadline.
    most : int
        Upper bound on frames per request.
    most_ahead : int
        Upper bound on frames per request with prefetched ones.
    keeps : bool, default: True
        Whether frames are cached; False where the bytes of the source may change.
    scope : str, optional
        Name of the user's connection to a server: see :func:`encoded_frames.kept`.
    may_see : callable, optional
        Returns whether the server has given this user access to the image; without it, frames that
        others cached on disk aren't returned.

    """

    def recall(wanted: list[int]) -> dict[int, bytes]:
        return encoded_frames.kept(image, wanted, scope=scope, on_disk=may_see()) if keeps else {}

    def fetch_missing(since: Since, wanted: list[int]) -> dict[int, bytes]:
        found = recall(wanted)  # cached meanwhile by another thread, or prefetched
        missing = [index for index in wanted if index not in found]
        if missing:
            fetched = dict(zip(missing, fetch(missing, since), strict=True))
            if keeps:
                encoded_frames.keep(image, fetched, scope=scope)
            found |= fetched
        return found

    wanted = sorted({int(index) for index in indices})
    found = recall(wanted)
    gatherer.note(found)
    missing = [index for index in wanted if index not in found]
    for start in range(0, len(missing), most):
        batch = missing[start : start + most]
        found |= gatherer.read(
            batch,
            functools.partial(fetch_missing, begin()),
            most=most,
            most_ahead=most_ahead if keeps else 0,
        )
    return [found[index] for index in indices]


class _Batch:
    """Frames that are requested together."""

    def __init__(self) -> None:
        self.wanted: frozenset[int] = frozenset()
        self.readers = 0
        self.is_full = threading.Event()
        self.is_done = threading.Event()
        self.found: Mapping[int, bytes] | None = None


class Gatherer:
    """Joins requests of several threads within a few milliseconds, and adds prefetched frames.

    Parameters
    ----------
    ahead : ReadAhead, optional
        Chooses the frames to prefetch; none by default.

    """

    def __init__(self, ahead: ReadAhead | None) -> None:
        self._ahead = ahead
        self._lock = threading.Lock()
        self._open: _Batch | None = None
        self._sent: list[_Batch] = []
        self._window = SHORTEST_WINDOW
        self._latest: int | None = None
        """Identifier of the thread that asked last."""

    @property
    def nbytes(self) -> int:
        """Bytes in memory, approximately: those of the prefetcher."""
        return 0 if self._ahead is None else self._ahead.nbytes

    def note(self, indices: Iterable[int]) -> None:
        """Tell the prefetcher about frames that were wanted and didn't have to be requested."""
        if self._ahead is not None:
            self._ahead.note(indices)

    def read(
        self, indices: Sequence[int], fetch: Fetch, *, most: int, most_ahead: int
    ) -> Mapping[int, bytes]:
        """Return frames, requested together with those that other threads want.

        Frames of a request under way aren't requested again: the thread waits for that request.

        Parameters
        ----------
        indices : sequence of int
            Zero-based frames.
        fetch : callable
            Requests sorted frames. Its error is raised where the request was for one thread alone;
            otherwise each thread requests its own frames again.
        most : int
            Upper bound on frames per request.
        most_ahead : int
            Upper bound on frames per request with prefetched ones; for short reads.

        """
        found: dict[int, bytes] = {}
        while missing := sorted({index for index in indices if index not in found}):
            mine = _Batch()
            try:  # after an interrupt at any place, no other thread waits for this batch
                batch, has_company = self._join(mine, missing, most)
                if batch is mine:
                    is_long = len(missing) >= LONG
                    if has_company and not is_long:
                        batch.is_full.wait(self._window)
                    self._send(batch, fetch, 0 if is_long else most_ahead)
                else:
                    self.note(batch.wanted.intersection(missing))
                    while not batch.is_done.wait(STEP):
                        pass
            finally:
                self._end(mine)
            if batch.found is None:  # the frames of other threads may be the cause
                return {**found, **fetch(missing)}
            found.update((index, batch.found[index]) for index in missing if index in batch.found)
        return found

    def _join(self, mine: _Batch, missing: list[int], most: int) -> tuple[_Batch, bool]:
        """Return a batch with some of these frames, else `mine`, and whether others may join."""
        me = threading.get_ident()
        with self._lock:
            has_company = self._latest not in (None, me)
            self._latest = me
            for batch in self._sent:
                if not batch.wanted.isdisjoint(missing):
                    batch.readers += 1
                    return batch, True
            joined = self._open
            if joined is None or len(joined.wanted.union(missing)) > most:
                if joined is not None:  # the thread that began it is about to send it
                    self._close(joined)
                    if not joined.wanted.isdisjoint(missing):
                        joined.readers += 1
                        return joined, True
                joined = self._open = mine
            joined.wanted = joined.wanted.union(missing)
            joined.readers += 1
            if len(joined.wanted) >= most:
                joined.is_full.set()
            return joined, has_company

    def _send(self, batch: _Batch, fetch: Fetch, most_ahead: int) -> None:
        with self._lock:
            self._close(batch)
        guesses: set[int] = set()
        if self._ahead is not None and most_ahead:  # no thread joins a closed batch
            guesses = self._ahead.guess(batch.wanted, most_ahead)
        with self._lock:
            opened = () if self._open is None else (self._open,)
            under_way = frozenset().union(*(other.wanted for other in (*self._sent, *opened)))
            batch.wanted = batch.wanted.union(guesses - under_way)
        began = time.monotonic()
        try:
            batch.found = fetch(sorted(batch.wanted))
            took = SHARE * (time.monotonic() - began)
            self._window = min(LONGEST_WINDOW, max(SHORTEST_WINDOW, took))
        except Exception:
            if self._ahead is not None:
                self._ahead.give_up()
            with self._lock:
                if batch.readers == 1 and not guesses:
                    raise

    def _close(self, batch: _Batch) -> None:
        """Close a batch that is about to be sent: no thread adds frames to it any more."""
        if self._open is batch:
            self._open = None
            self._sent.append(batch)

    def _end(self, batch: _Batch) -> None:
        with self._lock:
            self._close(batch)
            if batch in self._sent:
                self._sent.remove(batch)
        batch.is_done.set()
