"""Which bytes are read together: ranges that lie next to each other are one read."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dicomslide.codec.pixel_format import Buffer

__all__ = ["Span", "read_joined"]

Span: TypeAlias = tuple[int, int]
"""First byte, and the one behind the last."""

GAP = 4096
"""Bytes that are read in vain rather than read separately."""
LONGEST = 4 * 2**20
"""Bytes of several ranges that are read at once."""


def read_joined(
    read: Callable[[int, int], bytes], spans: Sequence[Span], *, gap: int = GAP
) -> list[Buffer]:
    """Read ranges of bytes in the order of the file, neighbours at once.

    Parameters
    ----------
    read : callable
        Reads from an offset so many bytes, fewer at the end.
    spans : sequence of Span
        The ranges, in any order.
    gap : int
        Bytes between two ranges that are read too rather than read separately.

    Returns
    -------
    list of bytes-like
        Of each range, in the order given; shorter where the file ends.

    """
    found: list[Buffer] = [b""] * len(spans)
    order = sorted(range(len(spans)), key=spans.__getitem__)
    at = 0
    while at < len(order):
        start, stop = spans[order[at]]
        behind = at + 1
        while behind < len(order):
            following, end = spans[order[behind]]
            if following > stop + gap or max(stop, end) - start > LONGEST:
                break
            stop = max(stop, end)
            behind += 1
        data = read(start, stop - start)
        if behind == at + 1:
            found[order[at]] = data
        else:
            view = memoryview(data)
            for one in order[at:behind]:
                first, last = spans[one]
                found[one] = view[first - start : last - start]
        at = behind
    return found
