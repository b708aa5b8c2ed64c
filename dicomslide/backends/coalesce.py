"""Joining of neighbouring ranges of bytes to one read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dicomslide.header.blobs import Span
    from dicomslide.pixels.pixel_format import Buffer

__all__ = ["divide", "joined", "read_joined"]

GAP = 4096
"""Largest gap between two ranges of one read; reading it is faster than another read."""
LONGEST = 4 * 2**20
"""Upper bound on the bytes of a read of several ranges."""


def joined(
    spans: Sequence[Span], *, gap: int = GAP, waste: float = math.inf
) -> Iterator[tuple[int, int, list[int]]]:
    """Yield the reads that cover ranges of bytes, in the order of the file.

    Parameters
    ----------
    spans : sequence of Span
        The ranges, in any order.
    gap : int
        Largest gap in bytes between two ranges of one read.
    waste : float
        Upper bound on the bytes of gaps in a read, as a fraction of the bytes of its ranges.

    Yields
    ------
    start, stop : int
        First byte of the read, and the byte after its last.
    members : list of int
        Indices of its ranges.

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
    """Read ranges of bytes, in the order of the file and neighbours together.

    Parameters
    ----------
    read : callable
        Given an offset and a number of bytes, reads them; fewer at the end of the file.
    spans : sequence of Span
        The ranges, in any order.

    Returns
    -------
    list of bytes-like
        Bytes of each range, in the given order; shorter at the end of the file.

    """
    found: list[Buffer] = [b""] * len(spans)
    for start, stop, members in joined(spans):
        divide(read(start, stop - start), start, members, spans, found)
    return found


def divide(
    data: bytes, start: int, members: Sequence[int], spans: Sequence[Span], found: list[Buffer]
) -> None:
    """Divide the bytes of one read into its ranges."""
    if len(members) == 1:
        found[members[0]] = data
        return
    view = memoryview(data)
    for one in members:
        first, last = spans[one]
        found[one] = view[first - start : last - start]
