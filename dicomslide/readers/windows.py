"""Windows of stored pixels, one for each pixel of another grid, and sums over windows."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

__all__ = ["Taps", "WindowPiece", "Windows", "summed"]

NOISE = 1e-6
"""Tolerance in stored pixels, over the whole axis, within which windows hold whole pixels."""
MOST_SLICES = 16
"""Length in pixels up to which windows are summed slice by slice; longer ones along an axis."""

Taps: TypeAlias = "int | tuple[NDArray[np.intp], NDArray[np.float64]]"
"""Pixels of each window: their number, if windows are adjacent and hold whole pixels; else indices
and weights, each of shape (pixels, windows)."""


@dataclasses.dataclass(frozen=True, slots=True)
class WindowPiece:
    """Part of consecutive windows that lies in one tile."""

    tile: int
    """Index of the tile along the axis."""
    source: slice
    """Pixels of the tile that the windows cover."""
    target: slice
    """Positions of the windows among the requested ones."""
    taps: Taps
    """Pixels of each window, relative to the first of `source`."""

    @property
    def lengths(self) -> NDArray[np.float64]:
        """Length of each window within the tile, in stored pixels."""
        if isinstance(self.taps, int):
            return np.full(self.target.stop - self.target.start, float(self.taps))
        lengths: NDArray[np.float64] = self.taps[1].sum(axis=0)
        return lengths


@dataclasses.dataclass(frozen=True, slots=True)
class Windows:
    """Adjacent windows of equal length along one axis, one for each pixel of another grid.

    Positions are in stored pixels from the outer edge of the first stored pixel.
    """

    start: float
    """Start of the first window; negative outside the matrix."""
    step: float
    """Length of a window."""
    count: int
    """Number of windows."""
    extent: int
    """Number of stored pixels."""

    @classmethod
    def of(cls, start: float, step: float, count: int, extent: int) -> Windows:
        """Return windows, rounded to whole pixels where the difference is within tolerance."""
        if abs(step - round(step)) * count < NOISE and round(step) > 0:
            step = float(round(step))
        if abs(start - round(start)) < NOISE:
            start = float(round(start))
        return cls(start, step, count, extent)

    def halved(self, times: int) -> Windows:
        """Return the same windows in pixels of an axis halved `times` times, rounded up."""
        edge = 1 << times
        return Windows.of(self.start / edge, self.step / edge, self.count, -(-self.extent >> times))

    @property
    def are_whole(self) -> bool:
        """Whether each window holds whole pixels only."""
        return self.start.is_integer() and self.step.is_integer()

    def stored(self, indices: NDArray[np.int64]) -> tuple[range, int] | None:
        """Return the stored pixels that consecutive windows are, and the first such window.

        Parameters
        ----------
        indices : numpy.ndarray
            Windows, ascending, without repetition; those outside of the matrix are left out.

        Returns
        -------
        pixels : range
            The stored pixels.
        first : int
            Index into `indices` of the window that is the first of them.
        None
            If windows are of another size, lie between pixels, or aren't consecutive.

        """
        if not (self.step == 1 and self.start.is_integer() and len(indices)):
            return None
        begin, end = int(indices[0]), int(indices[-1]) + 1
        if end - begin != len(indices):
            return None
        shift = int(self.start)
        low = min(max(begin + shift, 0), self.extent)
        high = max(min(end + shift, self.extent), low)
        return range(low, high), low - begin - shift if high > low else 0

    def edges(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return start and end of windows, clipped to the matrix."""
        low: NDArray[Any] = (self.start + self.step * indices).clip(0, self.extent)
        high: NDArray[Any] = (self.start + self.step * (indices + 1)).clip(0, self.extent)
        high[high - low < NOISE] = low[high - low < NOISE]  # a remainder of rounding is empty
        return low, high

    def covered(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the length of each window within the matrix, in stored pixels."""
        low, high = self.edges(indices)
        return high - low

    def unit(self, tile_size: int, least: int) -> int:
        """Return the number of windows of a chunk: at least `least`, whole tiles if possible."""
        per_tile = tile_size / self.step
        for tiles in range(1, 65):
            windows = tiles * per_tile
            if tiles > 1 and windows > 4 * least:
                break
            if windows >= least and abs(windows - round(windows)) < NOISE:
                return round(windows)
        return max(1, round(math.ceil(least / per_tile) * per_tile))  # chunks share tiles

    def tiles(self, indices: NDArray[np.int64], tile_size: int) -> range:
        """Return the tiles of the axis from the first to the last that windows overlap."""
        low, high = self.edges(indices)
        inside = np.flatnonzero(high > low)
        if not len(inside):
            return range(0)
        first, last = low[inside[0]], high[inside[-1]]
        return range(int(first // tile_size), int(-(-last // tile_size)))

    def pieces(
        self, indices: NDArray[np.int64], tile_size: int, tiles: Iterable[int]
    ) -> Iterator[WindowPiece]:
        """Split windows at the borders of tiles.

        Parameters
        ----------
        indices : numpy.ndarray
            Indices of windows, ascending and unique.
        tile_size : int
            Pixels of a tile along the axis.
        tiles : iterable of int
            Tiles of which pieces are returned.

        """
        low, high = self.edges(indices)
        in_runs = self.are_whole and bool((np.diff(indices) == 1).all())
        for tile in tiles:
            here = tile * tile_size
            begin = int(np.searchsorted(high, here, side="right"))
            end = int(np.searchsorted(low, min(here + tile_size, self.extent), side="left"))
            if begin >= end:  # in a gap between the windows
                continue
            starts = (low[begin:end] - here).clip(0)
            stops = (high[begin:end] - here).clip(None, tile_size)
            if in_runs:
                yield from _runs(tile, begin, starts.astype(np.intp), stops.astype(np.intp))
                continue
            offset = int(starts[0])
            stop = int(-(-stops[-1] // 1))
            taps = _taps(starts - offset, stops - offset, stop - offset)
            yield WindowPiece(tile, slice(offset, stop), slice(begin, end), taps)


def _runs(
    tile: int, begin: int, starts: NDArray[np.intp], stops: NDArray[np.intp]
) -> Iterator[WindowPiece]:
    """Yield adjacent windows, grouped by length."""
    lengths = stops - starts
    borders = [0, *(np.flatnonzero(np.diff(lengths)) + 1).tolist(), len(lengths)]
    for a, b in itertools.pairwise(borders):
        source = slice(int(starts[a]), int(stops[b - 1]))
        yield WindowPiece(tile, source, slice(begin + a, begin + b), int(lengths[a]))


def _taps(starts: NDArray[np.float64], stops: NDArray[np.float64], length: int) -> Taps:
    """Return indices of the pixels that windows overlap, and the length of each overlap."""
    first = np.floor(starts).astype(np.intp)
    count = int((np.ceil(stops).astype(np.intp) - first).max())
    pixels = first + np.arange(count)[:, None]
    weights = np.minimum(stops, pixels + 1) - np.maximum(starts, pixels)
    return pixels.clip(0, length - 1), weights.clip(0, 1)


def summed(pixels: NDArray[Any], rows: Taps, columns: Taps) -> NDArray[Any]:
    """Return sums over windows of pixels, weighted by area within the window.

    Parameters
    ----------
    pixels : numpy.ndarray
        Shape (rows, columns, samples), without NaN.
    rows, columns : Taps
        The windows of each axis.

    Returns
    -------
    numpy.ndarray
        Shape (windows, windows, samples): integers of 64 bits or fewer for whole windows of
        integers, else float64.

    """
    return _along(_along(pixels, 0, rows), 1, columns)


def _along(pixels: NDArray[Any], axis: int, taps: Taps) -> NDArray[Any]:
    if not isinstance(taps, int):
        return _weighted(pixels, axis, *taps)
    if taps == 1:
        return pixels
    length = pixels.shape[axis]
    if taps == length or taps > MOST_SLICES:
        shape = (*pixels.shape[:axis], length // taps, taps, *pixels.shape[axis + 1 :])
        return pixels.reshape(shape).sum(axis + 1, dtype=_sum_type(pixels.dtype, taps))
    every = [slice(None)] * axis
    total = pixels[(*every, slice(0, None, taps))].astype(_sum_type(pixels.dtype, taps))
    for at in range(1, taps):
        total += pixels[(*every, slice(at, None, taps))]
    return total


def _sum_type(dtype: np.dtype[Any], count: int) -> np.dtype[Any]:
    """Return a type that holds the sum of `count` values."""
    if dtype.kind == "f":
        return np.dtype(np.float64)
    if dtype.kind == "b":
        dtype = np.dtype(np.uint8)
    bits = 8 * dtype.itemsize + (count - 1).bit_length()
    size = next((size for size in (2, 4) if bits <= 8 * size), 8)
    return np.dtype(f"{dtype.kind}{size}")


def _weighted(
    pixels: NDArray[Any], axis: int, indices: NDArray[np.intp], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return weighted sums, computed tap by tap."""
    shape = [1] * pixels.ndim
    shape[axis] = indices.shape[1]
    total: NDArray[np.float64] | None = None
    for tap, weight in zip(indices, weights.reshape(-1, *shape), strict=True):
        values = pixels.take(tap, axis=axis)
        if pixels.dtype.kind == "f":  # 0 · ∞ would be NaN
            values = np.where(weight > 0, values, 0)
        values = values * weight
        total = values if total is None else np.add(total, values, out=total)
    assert total is not None  # each window has at least one pixel
    return total
