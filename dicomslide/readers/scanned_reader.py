"""Mask of the pixels that were scanned: those whose tiles have frames."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.options import allocated
from dicomslide.readers.indexing import Axis
from dicomslide.readers.resampled_reader import ResampledReader
from dicomslide.readers.stacked_reader import StackedReader, turned

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dicomslide.readers.stacked_reader import PlaneReader

__all__ = ["ScannedReader", "tiles_scanned"]


class ScannedReader(StackedReader):
    """Reader of a mask on the grid of a :class:`StackedReader`, by its tiles; decodes nothing.

    A pixel is True if its tile has a frame. A pixel that was computed from several stored pixels is
    True if each of them that lies within the matrix was scanned, and at least one is.
    """

    def __dask_tokenize__(self) -> Any:
        return ("dicomslide.ScannedReader", super().__dask_tokenize__())

    def read(
        self,
        key: Sequence[Any],
        *,
        threads: int | None = None,
        keep: bool = True,
        contiguous: bool = False,
    ) -> NDArray[np.bool_]:
        """Return the mask of the pixels that a key for each dim selects; see the base class."""
        keys = list(key)
        stack = [
            Axis.of(keys.pop(0) if kept else 0, length)
            for kept, length in zip(self.kept[:2], self.stack_shape, strict=True)
        ]
        flips = (self.orientation.flip_y, self.orientation.flip_x)
        plane = [
            Axis.of(turned(each, length, flip), length)
            for each, length, flip in zip(keys, self.plane_shape, flips, strict=True)
        ]
        channels, planes, *upright = (_indices(axis) for axis in (*stack, *plane))
        rows, columns = upright[::-1] if self.orientation.transpose else upright
        shape = (len(channels), len(planes), *(len(each) for each in upright))
        out = allocated(shape, np.dtype(np.bool_), "a mask of what was scanned")
        for i, j in itertools.product(range(shape[0]), range(shape[1])):
            reader = self.reader(int(channels[i]), int(planes[j]))
            mask = np.zeros((1, 1), bool) if reader is None else _scanned(reader, rows, columns)
            out[i, j] = mask.T if self.orientation.transpose else mask
        dropped = tuple(i for i, axis in enumerate((*stack, *plane)) if axis.drop)
        return out.squeeze(dropped)


def tiles_scanned(reader: PlaneReader | None) -> bytes:
    """Return which tiles of a matrix have frames, one byte each; empty if all of them have.

    Parameters
    ----------
    reader : MatrixReader, ResampledReader or None
        Reader of one channel and focal plane; None without pixels.

    """
    if reader is None:
        return b"\0"
    source = reader.source if isinstance(reader, ResampledReader) else reader
    layout = source.layout
    expected = len(layout.channels) * len(layout.planes) * layout.grid.num_tiles
    if layout.shares_frames or layout.num_frames >= expected:
        return b""
    present = source.frames_of(np.arange(layout.grid.num_tiles)) >= 0
    return b"" if present.all() else present.tobytes()


def _scanned(
    reader: PlaneReader, rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return whether the pixels at rows and columns were scanned, shape (rows, columns)."""
    source = reader.source if isinstance(reader, ResampledReader) else reader
    layout = source.layout
    down, across = layout.grid.shape
    sizes = (layout.grid.tile_rows, layout.grid.tile_columns)
    if isinstance(reader, ResampledReader):
        firsts, ends = [], []
        for windows, indices, size in zip(
            (reader.rows, reader.columns), (rows, columns), sizes, strict=True
        ):
            low, high = windows.edges(indices)
            firsts.append((low // size).astype(np.int64))
            # nothing is covered outside the matrix: no tile from the first to the end
            ends.append(np.where(high > low, -(-high // size), low // size).astype(np.int64))
    else:
        firsts = [index // size for index, size in zip((rows, columns), sizes, strict=True)]
        ends = [first + 1 for first in firsts]
    if not len(rows) or not len(columns):
        return np.zeros((len(rows), len(columns)), bool)
    top, left = (int(each.min()) for each in firsts)
    bottom, right = min(int(ends[0].max()), down), min(int(ends[1].max()), across)
    tiles = np.add.outer(np.arange(top, bottom) * across, np.arange(left, right))
    absent = source.frames_of(tiles.ravel()).reshape(tiles.shape) < 0
    # sums of the absent tiles above and to the left of each corner
    counts = np.zeros((absent.shape[0] + 1, absent.shape[1] + 1), np.int64)
    counts[1:, 1:] = absent.cumsum(0).cumsum(1)
    (a, c), (b, d) = (
        [each.clip(None, limit) - start for each, start, limit in of]
        for of in (
            ((firsts[0], top, bottom), (firsts[1], left, right)),
            ((ends[0], top, bottom), (ends[1], left, right)),
        )
    )
    missing = (
        counts[np.ix_(b, d)] - counts[np.ix_(a, d)] - counts[np.ix_(b, c)] + counts[np.ix_(a, c)]
    )
    covered = np.logical_and.outer(b > a, d > c)
    mask: NDArray[np.bool_] = covered & (missing == 0)
    return mask


def _indices(axis: Axis) -> NDArray[np.int64]:
    found = np.asarray(axis.indices, np.int64)
    return found[::-1] if axis.reverse else found
