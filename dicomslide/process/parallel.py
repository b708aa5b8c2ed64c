"""Waiting for several things at once, and until the interpreter exits."""

from __future__ import annotations

import collections
import queue
import sys
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from dicomslide.process.warn import carried

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["is_exiting", "is_of_a_pool", "start", "together"]

T = TypeVar("T")
R = TypeVar("R")


def together(function: Callable[[T], R], items: Sequence[T], most: int) -> list[R]:
    """Return what a function gives for each item, at most so many at once.

    The first error is raised as soon as it is there.
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

    # not those of a pool, which neither Ctrl-C nor the end of the process leaves behind
    if not all(start(work, "dicomslide") for _ in range(min(most, len(items)))):
        work()
    found: dict[int, Any] = {}
    try:
        while len(found) < len(items):
            at, result, error = done.get()
            if error is not None:
                raise error
            found[at] = result
    finally:
        waiting.clear()
    return [found[at] for at in range(len(items))]


def start(function: Callable[[], None], name: str) -> threading.Thread | None:
    """Call a function in a thread of its own; None where there can be no more threads.

    So it is on Python 3.12 once the main thread has ended.
    """
    thread = threading.Thread(target=carried(function), name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return None
    return thread


def is_exiting() -> bool:
    """Whether the main thread has ended: no pool takes anything more, others may still read."""
    return bool(getattr(sys.modules.get("concurrent.futures.thread"), "_shutdown", False))


def is_of_a_pool() -> bool:
    """Whether this thread is one of a pool's, dask's among them: the interpreter waits for it."""
    pools = sys.modules.get("concurrent.futures.thread")
    return threading.current_thread() in getattr(pools, "_threads_queues", ())
