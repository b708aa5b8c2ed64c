"""Headers of the next slides, which are fetched while the caller works with one."""

from __future__ import annotations

import collections
import contextlib
from typing import TYPE_CHECKING

from dicomslide.backends.base import HEADERS_AT_ONCE, fetch_header, unread_headers
from dicomslide.process.forks import ForkLock
from dicomslide.process.parallel import start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from dicomslide.backends.base import FrameSource

__all__ = ["fetching_ahead"]


class _Fetcher:
    """Fetches headers in threads, in the order in which they are added.

    Nobody waits for it: who needs a header that is under way gets it from the registry, and who
    needs one that hasn't begun fetches it. Threads end when nothing is left.
    """

    def __init__(self) -> None:
        self._lock = ForkLock()
        self._waiting: collections.deque[FrameSource] = collections.deque()
        self._threads = 0

    def add(self, sources: Iterable[FrameSource]) -> None:
        """Fetch the headers of sources, after those that were added before."""
        unread = unread_headers(sources)
        with self._lock:
            self._waiting.extend(unread)
            missing = min(len(self._waiting), HEADERS_AT_ONCE - self._threads)
            self._threads += missing
        for _ in range(missing):
            if start(self._work, "dicomslide") is None:
                with self._lock:
                    self._threads -= 1

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads -= 1
                    return
                source = self._waiting.popleft()
            fetch_header(source)

    def close(self) -> None:
        """Begin no more."""
        with self._lock:
            self._waiting.clear()


@contextlib.contextmanager
def fetching_ahead(
    slides: Iterable[Sequence[FrameSource]], ahead: int
) -> Iterator[Callable[[], None]]:
    """Yield a function that is called before each slide is opened.

    Parameters
    ----------
    slides : iterable of sequence of FrameSource
        Sources of each slide whose headers are needed, in the order in which slides are opened.
    ahead : int
        Number of slides, after the one that is opened, whose headers are fetched meanwhile.

    """
    fetcher = _Fetcher()
    coming = iter(slides)
    under_way = 0

    def fetch() -> None:
        nonlocal under_way
        while under_way <= ahead and (sources := next(coming, None)) is not None:
            under_way += 1
            if ahead:
                fetcher.add(sources)
        under_way -= 1

    try:
        yield fetch
    finally:
        fetcher.close()
