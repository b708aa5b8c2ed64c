"""Boxes of a matrix that are read one after the other in equal steps, and those that follow.

Rows of tiles are such boxes, and a window that moves. Their frames can be decoded ahead, as
operating systems read files ahead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dicomslide.process.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Hashable

    from numpy.typing import NDArray

    from dicomslide.header.tiling import TileGrid

__all__ = ["Trail", "trail_of"]

NONE = np.empty(0, np.int64)
"""No tiles."""


class Trail:
    """Boxes that are read one after the other, and the step from one to the next.

    Threads that read the same matrix share a trail. It goes on where their boxes do.
    """

    def __init__(self) -> None:
        self._first = self._size = self._step = (0, 0)
        """The last box, and the rows and columns from the one before."""
        self._window = self._foreseen = 0
        """Number of boxes to foresee, and of next boxes whose tiles were returned."""

    def follow(
        self, rows: range, columns: range, steps: int, grid: TileGrid
    ) -> NDArray[np.int64] | None:
        """Note a box that is read, and return tiles of those that will follow.

        After two equal steps one box is foreseen; the number doubles as long as they come.

        Parameters
        ----------
        rows, columns : range
            The box, which isn't empty, and may extend beyond the matrix.
        steps : int
            Upper bound on the boxes to foresee.
        grid : TileGrid
            Tiles of the matrix.

        Returns
        -------
        numpy.ndarray or None
            The tiles, in the order of the boxes, without those of boxes that were returned before.
            An empty array after a box that wasn't foreseen. None if there is nothing new.

        """
        if abs(rows.step) > grid.tile_rows or abs(columns.step) > grid.tile_columns:
            return None  # tiles are left out
        (top, height), (left, width) = _extent(rows), _extent(columns)
        first, size = (top, left), (height, width)
        if (first, size) == (self._first, self._size):
            return None
        step = top - self._first[0], left - self._first[1]
        goes_on = size == self._size and step == self._step and _touch(step, size)
        self._first, self._size, self._step = first, size, step
        if not goes_on:
            self._window = self._foreseen = 0
            return NONE
        self._foreseen = max(0, self._foreseen - 1)
        if self._foreseen > self._window // 2:
            return None
        self._window = min(max(1, 2 * self._window), steps)
        began, self._foreseen = self._foreseen + 1, self._window
        if began > self._window:
            return None
        down, right = (
            _tiles(at + began * by, at + self._window * by, length, of_tile, whole)
            for at, length, by, of_tile, whole in (
                (top, height, step[0], grid.tile_rows, grid.rows),
                (left, width, step[1], grid.tile_columns, grid.columns),
            )
        )
        tiles = np.add.outer(down * grid.shape[1], right)
        return (tiles if step[0] else tiles.T).ravel() if tiles.size else None


def _extent(indices: range) -> tuple[int, int]:
    """Return the least of some indices, and how far they reach."""
    first, last = sorted((indices[0], indices[-1]))
    return first, last - first + 1


def _touch(step: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether two boxes, a step apart along one axis, overlap or are neighbours."""
    is_along_axis = (step[0] == 0) != (step[1] == 0)
    return is_along_axis and abs(step[0]) <= size[0] and abs(step[1]) <= size[1]


def _tiles(begin: int, end: int, length: int, of_tile: int, whole: int) -> NDArray[np.int64]:
    """Return the tiles along an axis under boxes of a length that begin from `begin` to `end`."""
    first, last = max(0, min(begin, end)), min(max(begin, end) + length, whole) - 1
    tiles = np.arange(first // of_tile, last // of_tile + 1 if first <= last else 0)
    return tiles[::-1] if end < begin else tiles


_trails: Registry[Hashable, Trail] = Registry(256, "trails of boxes")


def trail_of(key: Hashable) -> Trail:
    """Return the trail of a matrix in this process."""
    return _trails.get(key, Trail)
