"""Tiles of one length along an axis, and what they give of a coarser result."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Tiling", "Window"]


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """The pixels of some tiles with their halo."""

    inside: slice
    """Those of the image."""
    pad: tuple[int, int]
    """How many, before and after these, repeat its edge."""


@dataclasses.dataclass(frozen=True, slots=True)
class Tiling:
    """Tiles of one length along an axis; the first and the last may extend beyond the image."""

    tile: int
    """Pixels of a tile."""
    length: int
    """Pixels of the image."""
    before: int
    """Pixels of the first tile before the first pixel of the image."""
    count: int
    """Number of tiles."""

    @classmethod
    def of_length(cls, length: int, tile: int) -> Tiling:
        """Return tiles from the first pixel on."""
        return cls(tile, length, 0, -(-length // tile))

    @classmethod
    def of_chunks(cls, chunks: tuple[int, ...]) -> Tiling:
        """Return a tile for each chunk.

        Raises
        ------
        ValueError
            When chunks other than the first and the last are smaller than others.

        """
        tile = max(chunks)
        if any(n != tile for n in chunks[1:-1]):
            raise ValueError(
                f"chunks are {chunks}; expected equal ones (the first and the last may be smaller),"
                " since tiles are chunks: give the size of tiles, such as tile=1024"
            )
        return cls(tile, sum(chunks), (tile - chunks[0]) if len(chunks) > 1 else 0, len(chunks))

    def ends(self) -> NDArray[np.intp]:
        """Return the first and the last pixel's index in each tile, shape (tiles, 2)."""
        starts = np.arange(self.count) * self.tile - self.before
        return np.stack([starts, starts + self.tile - 1], axis=1).clip(0, self.length - 1)

    def window(self, first: int, stop: int, halo: int) -> Window:
        """Return the pixels of tiles from `first` up to `stop`, with a halo on each side."""
        start = first * self.tile - self.before - halo
        end = stop * self.tile - self.before + halo
        inside = slice(max(start, 0), min(end, self.length))
        return Window(inside, (inside.start - start, end - inside.stop))

    def first_of(self, step: int) -> int:
        """Return the index, counted from the first tile, of the result's first pixel.

        It is the first that covers any of the image.

        Parameters
        ----------
        step : int
            Pixels of the image per pixel of the result.

        """
        return self.before // step

    def count_of(self, step: int) -> int:
        """Return the number of pixels of a result, each of `step` pixels of the image."""
        return -(-(self.before + self.length) // step) - self.first_of(step)

    def span(self, first: int, stop: int, step: int) -> tuple[int, int]:
        """Return where, in the result, the pixels of tiles from `first` up to `stop` lie."""
        of_tile, offset = self.tile // step, self.first_of(step)
        start, end = first * of_tile - offset, stop * of_tile - offset
        return max(start, 0), min(end, self.count_of(step))

    def chunks(self, step: int, tiles: int) -> tuple[int, ...]:
        """Return the lengths of a result's chunks, each of so many tiles."""
        return tuple(
            end - start
            for start, end in (
                self.span(first, min(first + tiles, self.count), step)
                for first in range(0, self.count, tiles)
            )
        )
