"""Thread pools of a process: one that decodes frames, and one that sends requests."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dicomslide.process.registry import Registry
from dicomslide.process.warn import carried

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

__all__ = ["Shared", "collect", "helped", "submit_decoding", "submit_request"]

T = TypeVar("T")

MOST_REQUESTS = 8
"""Number of threads of the pool of requests."""

DECODING, REQUESTING = "dicomslide-decode", "dicomslide-fetch"
"""Prefixes of the names of the threads."""

_decoding: Registry[int, ThreadPoolExecutor] = Registry(1, "decoding threads")
"""The pool, by its number of threads."""
_requesting: Registry[int, ThreadPoolExecutor] = Registry(1, "requesting threads")
"""The pool, by its number of threads."""


class Shared(Generic[T]):
    """Iterator from which several threads take items, each item once."""

    def __init__(self, items: Iterator[T]) -> None:
        self._items: Iterator[T] = items
        self._lock = threading.Lock()

    def take(self) -> T | None:
        """Return the next item; None at the end."""
        with self._lock:
            return next(self._items, None)

    def close(self) -> None:
        """End the iteration for all threads, without waiting for a call of :meth:`take`."""
        self._items = iter(())


def submit_decoding(
    function: Callable[..., None], *args: Any, calls: int, pool_size: int
) -> list[Future[None]]:
    """Call a function in several threads of the decoding pool.

    Parameters
    ----------
    function : callable
        Called `calls` times.
    *args
        Its arguments.
    calls : int
        Number of calls; fewer if the pool refuses more.
    pool_size : int
        Number of threads of the pool.

    """
    calling: list[Future[None]] = []
    while len(calling) < calls:
        future = _submitted(_decoding, DECODING, pool_size, function, *args)
        if future is None:
            break
        calling.append(future)
    return calling


def collect(calling: list[Future[None]]) -> None:
    """Cancel calls that haven't begun, wait for the others, and raise the first error, if any."""
    # the pool is busy with other reads, and no batch is left; `wait` would wait for those that are
    # cancelled, too, until a thread takes them from the queue
    begun = [future for future in calling if not future.cancel()]
    wait(begun)
    for future in begun:
        future.result()


@contextlib.contextmanager
def helped(function: Callable[..., None], *args: Any, calls: int, pool_size: int) -> Iterator[None]:
    """Call a function in other threads while the block does the same; both share the work.

    At the end of the block, the other threads have ended. The first error is raised.

    Parameters
    ----------
    function, *args, calls, pool_size
        See :func:`submit_decoding`.

    """
    calling = submit_decoding(function, *args, calls=calls, pool_size=pool_size)
    try:
        yield
    except Exception:
        with contextlib.suppress(Exception):  # the first error is raised, not one of these
            collect(calling)
        raise
    collect(calling)  # not after a KeyboardInterrupt: the threads may wait for a server


def submit_request(function: Callable[..., T], *args: Any) -> Future[T] | None:
    """Call a function in a thread of the pool of requests; None if the pool refuses it."""
    return _submitted(_requesting, REQUESTING, MOST_REQUESTS, function, *args)


def _submitted(
    pools: Registry[int, ThreadPoolExecutor],
    prefix: str,
    threads: int,
    function: Callable[..., T],
    *args: Any,
) -> Future[T] | None:
    pool = pools.get(threads, lambda: ThreadPoolExecutor(threads, thread_name_prefix=prefix))
    try:
        return pool.submit(carried(function), *args)
    except RuntimeError:  # the main thread has ended, or the system has no more threads
        return None
    except BaseException:
        # Ctrl-C while a thread starts: the pool may not have listed the thread. On exit, the
        # interpreter waits for all threads of pools, but ends listed ones only. A pool that is shut
        # down ends every thread, after the calls that it has accepted.
        pools.discard(threads)
        pool.shutdown(wait=False)
        raise
