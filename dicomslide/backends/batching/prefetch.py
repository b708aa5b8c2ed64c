"""Prefetch: the frames that will probably be wanted next, judged by those that were."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from dicomslide.backends.base import layout_of
from dicomslide.errors import FrameError, MetadataError
from dicomslide.process.forks import ForkLock

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from dicomslide.backends.base import FrameSource
    from dicomslide.header.layout import ImageLayout

__all__ = ["ReadAhead"]

Place: TypeAlias = tuple[int, int, int, int]
"""Channel, focal plane, and row and column in the tile grid."""

NEAR = 2
"""Largest distance in tiles of neighbours; in larger squares, their height."""
REMEMBERED = 16
"""Number of the latest wanted frames that are remembered."""
TALLEST = 8
"""Largest height of a square in tiles. Larger areas are only wider, since frames of a row that
follow each other are one range of bytes."""
ENOUGH = 0.2
"""Fraction of guesses that have to be right before more are made."""
MOST = 0.75
"""Fraction of guesses that have to be right for squares to grow between distant reads."""
MOST_GUESSES = 4096


class ReadAhead:
    """Guesses frames around the wanted ones, for reads that move on to neighbouring tiles.

    At first nothing is guessed. Once neighbours are wanted one after the other, the guess is all
    frames of the square of tiles around each, and of larger squares while guesses are right. When
    reads move elsewhere before guesses were right, squares become smaller. Their edges are powers
    of two, the order in which dask processes the chunks of an array that it reduces. Where a square
    is at least half as wide as the matrix, whole rows are guessed, within the bound on frames.

    Parameters
    ----------
    layout : ImageLayout
        Gives the places of frames.

    """

    def __init__(self, layout: ImageLayout) -> None:
        self._columns = layout.grid.shape[1]
        self._rows = layout.grid.shape[0]
        self._frames = layout.frames
        self._lock = ForkLock()
        self._last: deque[int] = deque(maxlen=REMEMBERED)
        self._waiting: OrderedDict[int, None] = OrderedDict()
        """Guessed frames that weren't wanted yet."""
        self._begin_anew()

    @classmethod
    def of(cls, source: FrameSource) -> ReadAhead | None:
        """Return the prefetcher of a source; None for part of an image, which has no places."""
        try:
            return cls(layout_of(source))
        except (MetadataError, FrameError):
            return None

    @property
    def nbytes(self) -> int:
        """Bytes of the map of frames, to which this holds a reference."""
        return self._frames.nbytes

    def _begin_anew(self) -> None:
        self._edge = 1
        self._guessed = self._right = 0

    def note(self, frames: Iterable[int]) -> None:
        """Record wanted frames that didn't have to be requested."""
        if not self._waiting:
            return
        with self._lock:
            for frame in frames:
                self._last.append(frame)
                if self._waiting.pop(frame, 0) is None:
                    self._right += 1

    def guess(self, wanted: Collection[int], most: int) -> set[int]:
        """Return frames to prefetch together with wanted ones that have to be requested.

        Parameters
        ----------
        wanted : collection of int
            Zero-based frames, few.
        most : int
            Upper bound on frames of the request, including the wanted ones.

        """
        with self._lock:
            try:
                places, last = self._places(wanted), self._places(self._last)
            except IndexError:  # frames that the header doesn't have: the request raises the error
                return set()
            is_enough = self._right >= ENOUGH * self._guessed
            near = max(NEAR, min(self._edge, TALLEST))
            if not any(_are_near(place, other, near) for place in places for other in last):
                if not is_enough:
                    self._edge = max(1, self._edge // 2)
                elif self._edge >= TALLEST and self._right >= MOST * self._guessed:
                    self._edge *= 2
                self._guessed = self._right = 0
            elif is_enough:
                self._edge *= 2
            most = min(most, MOST_GUESSES)
            while self._edge > 1 and self._edge**2 > most:
                self._edge //= 2
            guesses: set[int] = set()
            if self._edge > 1:
                height = min(self._edge, TALLEST)
                is_wide = 2 * self._edge >= self._columns and height * self._columns <= most
                width = self._columns if is_wide else self._edge
                for square in dict.fromkeys(_first_of(place, height, width) for place in places):
                    more = guesses.union(self._frames_of(square, height, width))
                    if len(more.union(wanted)) <= most:
                        guesses = more
                guesses.difference_update(wanted, self._last)
            self._last.extend(wanted)
            self._guessed += len(guesses)
            self._waiting.update(dict.fromkeys(guesses))
            while len(self._waiting) > MOST_GUESSES:
                self._waiting.popitem(last=False)
            return guesses

    def give_up(self) -> None:
        """Record that a request with guessed frames failed, perhaps because of them."""
        with self._lock:
            self._begin_anew()
            self._waiting.clear()

    def _places(self, frames: Collection[int]) -> list[Place]:
        channels, planes, tiles = self._frames.locate(np.array(list(frames), np.int64))
        rows, columns = np.divmod(tiles, self._columns)
        return list(
            zip(*(each.tolist() for each in (channels, planes, rows, columns)), strict=True)
        )

    def _frames_of(self, square: Place, height: int, width: int) -> list[int]:
        channel, plane, top, left = square
        rows = np.arange(top, min(top + height, self._rows))
        columns = np.arange(left, min(left + width, self._columns))
        tiles = np.add.outer(rows * self._columns, columns).ravel()
        return [
            frame for frame in self._frames.frames(channel, plane, tiles).tolist() if frame >= 0
        ]


def _first_of(place: Place, height: int, width: int) -> Place:
    """Return the first tile of the area of this height and width in which a tile lies."""
    channel, plane, row, column = place
    return channel, plane, row - row % height, column - column % width


def _are_near(one: Place, other: Place, near: int) -> bool:
    return one[:2] == other[:2] and max(abs(one[2] - other[2]), abs(one[3] - other[3])) <= near
