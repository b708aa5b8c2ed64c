"""Which frames will be wanted next: guessed from those that were."""

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
"""Tiles between which frames are neighbours, or as many as a square is high."""
REMEMBERED = 16
"""Frames that were wanted last."""
TALLEST = 8
"""Tiles from top to bottom of the largest squares; what is larger is wider only, for frames that
follow each other are one range of bytes."""
ENOUGH = 0.2
"""Share of guesses that have to be right before others are guessed."""
MOST = 0.75
"""Share of guesses that have to be right for squares to grow though they are far apart."""
MOST_GUESSES = 4096


class ReadAhead:
    """Guesses the frames around those that somebody wants who goes on to their neighbours.

    At first nothing is guessed. Once neighbours are wanted one after the other, all frames of the
    squares of tiles in which they lie are, and of larger squares while guesses turn out to be
    right. If what is wanted lies elsewhere before they do, squares become smaller. Their edges are
    powers of two, which is how dask goes through the chunks of an array that it reduces. Where
    a square is half as wide as the matrix or more, whole rows are guessed if they aren't too many.

    Parameters
    ----------
    layout : ImageLayout
        Where the frames lie.

    """

    def __init__(self, layout: ImageLayout) -> None:
        self._columns = layout.grid.shape[1]
        self._rows = layout.grid.shape[0]
        self._frames = layout.frames
        self._lock = ForkLock()
        self._last: deque[int] = deque(maxlen=REMEMBERED)
        self._waiting: OrderedDict[int, None] = OrderedDict()
        """Guesses that nobody has wanted yet."""
        self._begin_anew()

    @classmethod
    def of(cls, source: FrameSource) -> ReadAhead | None:
        """Return what guesses frames of a source; None for part of an image, which has no place."""
        try:
            return cls(layout_of(source))
        except (MetadataError, FrameError):
            return None

    @property
    def nbytes(self) -> int:
        """Bytes of the map of frames, which stays in memory with this."""
        return self._frames.nbytes

    def _begin_anew(self) -> None:
        self._edge = 1
        self._guessed = self._right = 0

    def note(self, frames: Iterable[int]) -> None:
        """Learn that frames were wanted that needn't be asked for."""
        if not self._waiting:
            return
        with self._lock:
            for frame in frames:
                self._last.append(frame)
                if self._waiting.pop(frame, 0) is None:
                    self._right += 1

    def guess(self, wanted: Collection[int], most: int) -> set[int]:
        """Return the frames that will be wanted, from those that are and aren't here.

        Parameters
        ----------
        wanted : collection of int
            Zero-based frames, not many.
        most : int
            Largest number of frames to ask for, those wanted among them.

        """
        with self._lock:
            try:
                places, last = self._places(wanted), self._places(self._last)
            except IndexError:  # frames that the header doesn't have: who asks will be told
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
        """Learn that a request with guesses failed, perhaps because of them."""
        with self._lock:
            self._begin_anew()
            self._waiting.clear()

    def _places(self, frames: Collection[int]) -> list[Place]:
        channels, planes, tiles = self._frames.places(np.array(list(frames), np.int64))
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
    """Return the first tile of the square, or what is made of it, in which a tile lies."""
    channel, plane, row, column = place
    return channel, plane, row - row % height, column - column % width


def _are_near(one: Place, other: Place, near: int) -> bool:
    return one[:2] == other[:2] and max(abs(one[2] - other[2]), abs(one[3] - other[3])) <= near
