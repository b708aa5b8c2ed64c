"""Frames of sources that answer requests: kept, or asked for by all threads together."""

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
"""Seconds between which the first who asks waits for others, if there are any."""
SHARE = 0.1
"""How long that is, of what the last request took."""
LONG = 32
"""So much is enough for a request of its own: who asks for it waits for nobody."""
STEP = 0.5
"""Seconds after which who waits can be interrupted, on any system."""


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
    """Return frames of an image: those that are kept, and others in few requests.

    Parameters
    ----------
    gatherer : Gatherer
        Joins what the threads of this process ask of the image.
    image : tuple
        Identity of the source.
    indices : sequence of int
        Zero-based frames.
    fetch : callable
        Gets frames, sorted, in their order; the second argument is what `begin` gave.
    begin : callable
        Called when a request begins to be waited for. What it gives goes to all that is tried then,
        with guesses and without: together they have the time that one has.
    most : int
        Most frames that are asked for at once.
    most_ahead : int
        The same, where some are asked for before they are wanted.
    keeps : bool, default: True
        Whether frames that came before, or are kept from now on, are those that are there now.
    scope : str, optional
        Who reads, where not all may see the same.
    may_see : callable, optional
        Whether who reads has been let see the image: else what others have kept is not for it.

    """

    def recall(wanted: list[int]) -> dict[int, bytes]:
        return encoded_frames.kept(image, wanted, scope=scope, on_disk=may_see()) if keeps else {}

    def fetch_missing(since: Since, wanted: list[int]) -> dict[int, bytes]:
        found = recall(wanted)  # since others asked for it, or guesses
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
    """What is asked for together."""

    def __init__(self) -> None:
        self.wanted: frozenset[int] = frozenset()
        self.readers = 0
        self.is_full = threading.Event()
        self.is_done = threading.Event()
        self.found: Mapping[int, bytes] | None = None


class Gatherer:
    """Joins what several threads ask for within a few milliseconds, and what they will ask for.

    Parameters
    ----------
    ahead : ReadAhead, optional
        Guesses what may as well be asked for.

    """

    def __init__(self, ahead: ReadAhead | None) -> None:
        self._ahead = ahead
        self._lock = threading.Lock()
        self._open: _Batch | None = None
        self._sent: list[_Batch] = []
        self._window = SHORTEST_WINDOW
        self._latest: int | None = None
        """Thread that has asked last."""

    @property
    def nbytes(self) -> int:
        """Bytes in memory, approximately: those of what guesses need."""
        return 0 if self._ahead is None else self._ahead.nbytes

    def note(self, indices: Iterable[int]) -> None:
        """Learn of what was wanted, and needn't be asked for."""
        if self._ahead is not None:
            self._ahead.note(indices)

    def read(
        self, indices: Sequence[int], fetch: Fetch, *, most: int, most_ahead: int
    ) -> Mapping[int, bytes]:
        """Return what `fetch` gives, perhaps with what others asked for.

        What has been asked for isn't asked for again, but waited for: as long as who has asked
        waits for it.

        Parameters
        ----------
        indices : sequence of int
            What is wanted.
        fetch : callable
            Gets all that is wanted, sorted. An error is that of who asked alone; else each asks
            again for what it wants itself.
        most : int
            Most that is asked for at once.
        most_ahead : int
            The same, for who wants little, where guesses are part of it.

        """
        found: dict[int, bytes] = {}
        while missing := sorted({index for index in indices if index not in found}):
            mine = _Batch()
            try:  # wherever an interrupt ends this, nobody waits for it
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
            if batch.found is None:  # what is wrong may be wrong with what others want
                return {**found, **fetch(missing)}
            found.update((index, batch.found[index]) for index in missing if index in batch.found)
        return found

    def _join(self, mine: _Batch, missing: list[int], most: int) -> tuple[_Batch, bool]:
        """Return a batch that has some of it, mine if no other has, and if others may join."""
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
                if joined is not None:  # who began it is about to send it
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
        if self._ahead is not None and most_ahead:  # by now nobody adds to what is wanted
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
        """Let nobody add to what is being sent; who wants the same, waits for it."""
        if self._open is batch:
            self._open = None
            self._sent.append(batch)

    def _end(self, batch: _Batch) -> None:
        with self._lock:
            self._close(batch)
            if batch in self._sent:
                self._sent.remove(batch)
        batch.is_done.set()
