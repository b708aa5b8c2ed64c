"""Pools of threads that decode frames and send requests: one of each for all reads of a process."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dicomslide.process.registry import Registry
from dicomslide.process.warn import carried

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

__all__ = ["Shared", "collect", "submit_decoding", "submit_request"]

T = TypeVar("T")

MOST_REQUESTS = 8
"""Threads of the pool of requests."""

_decoding: Registry[int, ThreadPoolExecutor] = Registry(1, "decoding threads")
"""The pool by its number of threads."""
_requesting: Registry[int, ThreadPoolExecutor] = Registry(1, "requesting threads")
"""The pool by its number of threads."""


class Shared(Generic[T]):
    """An iterator from which several threads take items."""

    def __init__(self, items: Iterator[T]) -> None:
        self._items: Iterator[T] = items
        self._lock = threading.Lock()

    def take(self) -> T | None:
        """Take the next item; None at the end."""
        with self._lock:
            return next(self._items, None)

    def close(self) -> None:
        """End the iteration for all threads, without waiting for one that takes an item now."""
        self._items = iter(())


def submit_decoding(
    function: Callable[..., None], *args: Any, calls: int, pool_size: int
) -> list[Future[None]]:
    """Call a function in several threads of the decoding pool.

    Parameters
    ----------
    function : callable
        Called once in each thread.
    *args
        Its arguments.
    calls : int
        Number of calls; fewer are made where the pool accepts no more.
    pool_size : int
        Number of threads of the pool.

    """
    calling: list[Future[None]] = []
    while len(calling) < calls:
        future = _submitted(_decoding, pool_size, function, *args)
        if future is None:
            break
        calling.append(future)
    return calling


def collect(calling: list[Future[None]]) -> None:
    """Cancel calls that haven't begun, wait for the others, and raise the first of their errors."""
    for future in calling:
        future.cancel()  # what hasn't begun finds nothing to do: other reads keep the pool busy
    wait(calling)
    for future in calling:
        if not future.cancelled():
            future.result()


def submit_request(function: Callable[..., T], *args: Any) -> Future[T] | None:
    """Call a function in a thread of the pool of requests; None where the pool accepts no more."""
    return _submitted(_requesting, MOST_REQUESTS, function, *args)


def _submitted(
    pools: Registry[int, ThreadPoolExecutor],
    threads: int,
    function: Callable[..., T],
    *args: Any,
) -> Future[T] | None:
    pool = pools.get(threads, lambda: ThreadPoolExecutor(threads, thread_name_prefix="dicomslide"))
    try:
        return pool.submit(carried(function), *args)
    except RuntimeError:  # the main thread has ended, or the system has no more threads
        return None
    except BaseException:
        # Ctrl-C while a thread starts: the pool may not have listed it, and the interpreter, when
        # it exits, waits for all threads but ends listed ones only. A pool that is shut down ends
        # every thread, after the calls that it has accepted.
        pools.discard(threads)
        pool.shutdown(wait=False)
        raise
