"""Waiting for several things at once."""

from __future__ import annotations

import collections
import queue
import threading
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["together"]

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
    for _ in range(min(most, len(items))):
        threading.Thread(target=work, name="dicomslide", daemon=True).start()
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
