"""Batches of files, series or slides: processed in threads, or by the workers of a cluster."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from typing import TYPE_CHECKING, Generic, TypeVar

from dicomslide.process.parallel import together
from dicomslide.slide.calls import bare, cluster_client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["Batch", "Failures", "attempt", "in_threads", "on_cluster"]

MAX_THREADS = 16
"""Upper bound on files, series or slides that threads of this process open at once."""
MIN_WAIT = 0.05
"""Seconds that items are processed one by one before threads are considered."""

Failures = dict[str, Exception]
T = TypeVar("T")
F = TypeVar("F")
R = TypeVar("R")


@dataclasses.dataclass(frozen=True, slots=True)
class Batch(Generic[F]):
    """Results and errors of a batch of items."""

    found: F
    failures: Failures

    @property
    def has_unreached(self) -> bool:
        """Whether an error is an OSError, which this process may not have."""
        return any(isinstance(error, OSError) for error in self.failures.values())


@contextlib.contextmanager
def attempt(failures: Failures, what: str) -> Iterator[None]:
    """Add an error of a ``with`` block to the failures, by a name."""
    try:
        yield
    except Exception as error:
        failures[what] = bare(error)


def on_cluster(
    function: Callable[[list[T]], Batch[F]], items: Sequence[T], *, size: int
) -> list[Batch[F]]:
    """Apply a function to batches of items on the dask cluster, if any, else in threads."""
    client = cluster_client() if len(items) > size else None
    if client is None:
        return in_threads(function, items)
    batches = [list(items[i : i + size]) for i in range(0, len(items), size)]
    done: list[Batch[F] | None] = []
    for future in client.map(function, batches, pure=False):
        try:
            batch = future.result()
        except Exception:  # an error of the cluster; errors of files are in the batch
            done.append(None)
        else:  # files that a worker can't reach are tried again in this process
            done.append(None if batch.has_unreached else batch)
    missed = [each for b, d in zip(batches, done, strict=True) if d is None for each in b]
    here = iter(in_threads(function, missed))
    return [
        each
        for batch, there in zip(batches, done, strict=True)
        for each in ([there] if there is not None else itertools.islice(here, len(batch)))
    ]


def in_threads(
    function: Callable[[list[T]], R], items: Sequence[T], *, may_share: bool = True
) -> list[R]:
    """Apply a function to each item; in threads, once processing turns out to be I/O-bound.

    Threads speed up waiting for a server or a disk, and slow down the parsing of headers. Items
    are processed one by one until more than half of the elapsed time was spent waiting; all of them
    if `may_share` is False.
    """
    done: list[R] = []
    began, worked = time.perf_counter(), time.thread_time()
    for at, item in enumerate(items):
        elapsed = time.perf_counter() - began
        if may_share and elapsed > max(MIN_WAIT, 2 * (time.thread_time() - worked)):
            return done + together(lambda each: function([each]), items[at:], MAX_THREADS)
        done.append(function([item]))
    return done
