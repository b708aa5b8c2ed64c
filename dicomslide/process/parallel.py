"""Threads for concurrent calls, and whether the interpreter is exiting."""

from __future__ import annotations

import collections
import queue
import sys
import threading
from typing import TYPE_CHECKING, TypeVar

from dicomslide.process.warn import carried

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["as_done", "is_exiting", "is_of_a_pool", "start", "together"]

T = TypeVar("T")
R = TypeVar("R")


def together(function: Callable[[T], R], items: Sequence[T], most: int) -> list[R]:
    """Return the results of a function for each item, in order.

    Parameters
    ----------
    function : callable
        Called with each item.
    items : sequence
        Its arguments.
    most : int
        Upper bound on concurrent calls.

    Raises
    ------
    BaseException
        The first error of a call, as soon as it occurs; items that haven't begun are left out.

    """
    found = dict(as_done(function, items, most))
    return [found[at] for at in range(len(items))]


def as_done(function: Callable[[T], R], items: Sequence[T], most: int) -> Iterator[tuple[int, R]]:
    """Yield the index of each item and the result of a function for it, as soon as it is there.

    Parameters are those of :func:`together`. Items that haven't begun when the iterator is closed
    are left out; those that have are not waited for.

    Raises
    ------
    BaseException
        The first error of a call, as soon as it occurs.

    """
    waiting = collections.deque(enumerate(items))
    done: queue.SimpleQueue[tuple[int, R | None, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        while True:
            try:
                at, item = waiting.popleft()
            except IndexError:
                return
            try:
                done.put((at, function(item), None))
            except BaseException as error:
                done.put((at, None, error))

    # daemon threads rather than a pool's: Ctrl-C and the exit of the process don't wait for them
    if not all(start(work, "dicomslide") for _ in range(min(most, len(items)))):
        work()
    try:
        for _ in range(len(items)):
            at, result, error = done.get()
            if error is not None:
                raise error
            yield at, result  # type: ignore[misc]
    finally:
        waiting.clear()


def start(function: Callable[[], None], name: str) -> threading.Thread | None:
    """Call a function in a new daemon thread; None where no thread can be started.

    From Python 3.12 on, none can be once the main thread has ended.
    """
    thread = threading.Thread(target=carried(function), name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return None
    return thread


def is_exiting() -> bool:
    """Whether the main thread has ended: pools accept no more calls, threads may still read."""
    return bool(getattr(sys.modules.get("concurrent.futures.thread"), "_shutdown", False))


def is_of_a_pool() -> bool:
    """Whether this is a thread of a pool, such as dask's: the interpreter waits for it.

    A pool lists its threads only after it has started them, and never those whose start Ctrl-C
    interrupted. So the function that the thread runs decides.
    """
    worker = getattr(sys.modules.get("concurrent.futures.thread"), "_worker", None)
    # Thread._target: there is no public attribute for it
    return worker is not None and getattr(threading.current_thread(), "_target", None) is worker
