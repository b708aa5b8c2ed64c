"""Which bytes are read together: ranges that lie next to each other are one read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dicomslide.header.blobs import Span
    from dicomslide.pixels.pixel_format import Buffer

__all__ = ["joined", "place", "read_joined"]

GAP = 4096
"""Bytes that are read in vain rather than read separately."""
LONGEST = 4 * 2**20
"""Bytes of several ranges that are read at once."""


def joined(
    spans: Sequence[Span], *, gap: int = GAP, waste: float = math.inf
) -> Iterator[tuple[int, int, list[int]]]:
    """Yield which ranges of bytes are read at once, in the order of the file.

    Parameters
    ----------
    spans : sequence of Span
        The ranges, in any order.
    gap : int
        Bytes between two ranges that are read too rather than read separately.
    waste : float
        Most bytes of a read that nobody asked for, as a share of those that somebody did.

    Yields
    ------
    start, stop : int
        First byte, and the one behind the last.
    members : list of int
        Which of the ranges lie there.

    """
    order = sorted(range(len(spans)), key=spans.__getitem__)
    at = 0
    while at < len(order):
        start, stop = spans[order[at]]
        behind = at + 1
        wasted = 0
        while behind < len(order):
            following, end = spans[order[behind]]
            longer = max(stop, end) - start
            between = max(0, following - stop)
            if (
                between > gap
                or longer > LONGEST
                or wasted + between > waste * (longer - wasted - between)
            ):
                break
            wasted += between
            stop = max(stop, end)
            behind += 1
        yield start, stop, order[at:behind]
        at = behind


def read_joined(read: Callable[[int, int], bytes], spans: Sequence[Span]) -> list[Buffer]:
    """Read ranges of bytes in the order of the file, neighbours at once.

    Parameters
    ----------
    read : callable
        Reads from an offset so many bytes, fewer at the end.
    spans : sequence of Span
        The ranges, in any order.

    Returns
    -------
    list of bytes-like
        Of each range, in the order given; shorter where the file ends.

    """
    found: list[Buffer] = [b""] * len(spans)
    for start, stop, members in joined(spans):
        place(read(start, stop - start), start, members, spans, found)
    return found


def place(
    data: bytes, start: int, members: Sequence[int], spans: Sequence[Span], found: list[Buffer]
) -> None:
    """Cut what was read at once into its ranges."""
    if len(members) == 1:
        found[members[0]] = data
        return
    view = memoryview(data)
    for one in members:
        first, last = spans[one]
        found[one] = view[first - start : last - start]
