"""Reduction of stored pixels to windows: means by area, and labels of the largest area."""

from __future__ import annotations

import dataclasses
import itertools
import math
import threading
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from dicomslide.options import check_memory
from dicomslide.readers.matrix_reader import pixel_assignment
from dicomslide.readers.windows import Taps, WindowPiece, Windows, summed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels: TypeAlias = NDArray[Any]

__all__ = ["Gathered", "Labels", "Means", "Sums", "gathered", "means_of", "modes_of"]

Labels = Literal["majority", "any"]
"""Rule for the label of a pixel, from the labels that it covers."""
LARGE = 3 * 96**2
"""Number of samples above which Pillow is faster than NumPy."""
NOISE = 1e-9
"""Relative tolerance of areas."""


class Means:
    """Means of windows, each within one tile."""

    def __init__(self, out: Pixels) -> None:
        self._out = out
        self._assign = pixel_assignment(out)

    def add(self, row: WindowPiece, column: WindowPiece, part: Pixels) -> None:
        """Add pixels of a tile, those that the windows of a piece of rows and columns cover."""
        self._assign((row.target, column.target), _means(part, row.taps, column.taps))

    def finish(self) -> None:
        """Complete the result after all tiles have been added."""


class Sums(Means):
    """Means of windows that lie in several tiles, from sums to which threads add.

    Parameters
    ----------
    out : numpy.ndarray
        Array for the means; it holds background, which remains where windows cover nothing.
    covered : tuple of numpy.ndarray
        Length of each window within the matrix, for rows and for columns.
    background : tuple of float
        Value of tiles that aren't added.
    labels : {"majority", "any"}
        For boolean pixels, whether at least half or any part of a window must be True.
    has_gaps : bool
        Whether tiles may be absent, and so not be added.

    """

    def __init__(
        self,
        out: Pixels,
        covered: tuple[NDArray[np.float64], NDArray[np.float64]],
        background: tuple[float, ...],
        labels: Labels,
        *,
        has_gaps: bool,
    ) -> None:
        super().__init__(out)
        check_memory(8 * out.size, "sums of the pixels of a region")
        self._covered = covered
        self._background = np.asarray(background, np.float64)
        self._labels = labels
        self._sums = np.zeros(out.shape, np.float64)
        self._added = np.zeros((*out.shape[:2], 1)) if has_gaps else None
        """Area of each window that has been added."""
        self._nan: NDArray[np.float64] | None = None
        """Area of NaN in each window."""
        self._lock = threading.Lock()

    def add(self, row: WindowPiece, column: WindowPiece, part: Pixels) -> None:
        """Add pixels of a tile: see :meth:`Means.add`."""
        nan: NDArray[np.float64] | None = None
        if part.dtype.kind == "f" and (is_nan := np.isnan(part)).any():
            part = np.where(is_nan, 0, part)
            nan = summed(is_nan, row.taps, column.taps).astype(np.float64)
        sums = summed(part, row.taps, column.taps)
        target = row.target, column.target
        with self._lock:
            self._sums[target] += sums
            if self._added is not None:
                self._added[target] += np.multiply.outer(row.lengths, column.lengths)[..., None]
            if nan is not None:
                if self._nan is None:
                    self._nan = np.zeros(self._out.shape, np.float64)
                self._nan[target] += nan

    def finish(self) -> None:
        """Write the means of windows that cover any part of the matrix."""
        whole = area = np.multiply.outer(*self._covered)[..., None]
        reached = whole > 0
        sums = self._sums
        if self._added is not None and np.isnan(self._background).any():
            area = self._added
        elif self._added is not None:
            sums = sums + (area - self._added) * self._background
        if self._nan is not None:
            area = area - self._nan
        kind = self._out.dtype.kind
        means: Pixels
        with np.errstate(divide="ignore", invalid="ignore"):
            if kind == "b":
                least = area * (0.5 - NOISE) if self._labels == "majority" else area * NOISE
                means = sums >= least
            else:
                means = np.where(area > NOISE * whole, sums / area, math.nan)  # NaN if all is NaN
                if kind in "ui":
                    means = np.floor(means + 0.5)
        np.copyto(self._out, means, where=reached, casting="unsafe")


def _means(part: Pixels, down: Taps, across: Taps) -> Pixels:
    """Return means of boxes of whole pixels, rounded half up."""
    assert isinstance(down, int)
    assert isinstance(across, int)
    if down == across == 1:
        return part
    is_large = part.size > LARGE
    if part.dtype == np.uint8 and is_large and (down * across).bit_count() == 1:
        # Pillow is exact if the area is a power of two, and takes half the time
        from PIL import Image

        samples = part.shape[2]
        image = Image.fromarray(part if samples > 1 else part[:, :, 0])
        return np.asarray(image.reduce((across, down))).reshape(
            part.shape[0] // down, part.shape[1] // across, samples
        )
    sums, area = summed(part, down, across), down * across
    return (sums + area // 2) // area


@dataclasses.dataclass(frozen=True, slots=True)
class Gathered:
    """Stored pixels and weights of some windows of one axis."""

    wanted: NDArray[np.intp]
    """Positions of the windows that cover any stored pixel."""
    pixels: slice
    """Stored pixels from the first window to the last."""
    taps: NDArray[np.intp]
    """Indices of each window's pixels within `pixels`; shape (windows, pixels)."""
    weights: NDArray[np.float64]
    """Length of each of these pixels within the window; the same shape."""


def gathered(windows: Windows, indices: NDArray[np.int64]) -> Gathered:
    """Return the stored pixels and weights of some windows of one axis."""
    low, high = windows.edges(indices)
    wanted = np.flatnonzero(high > low)
    if not len(wanted):
        return Gathered(wanted, slice(0, 0), np.empty((0, 0), np.intp), np.empty((0, 0)))
    start, stop = int(low[wanted[0]]), math.ceil(high[wanted[-1]])
    first = np.floor(low[wanted]).astype(np.intp)
    taps = first[:, None] + np.arange(int((np.ceil(high[wanted]) - first).max()))
    weights = np.minimum(high[wanted, None], taps + 1) - np.maximum(low[wanted, None], taps)
    return Gathered(
        wanted, slice(start, stop), (taps - start).clip(0, stop - start - 1), weights.clip(0, 1)
    )


def modes_of(stored: Pixels, down: Gathered, right: Gathered, background: int | None) -> Pixels:
    """Return the value of the largest area in each window; of equal areas, the lowest value.

    Parameters
    ----------
    stored : numpy.ndarray
        Shape (rows, columns), the pixels from the first window to the last.
    down, right : Gathered
        The windows.
    background : int or None
        Value that is chosen only if a window has no other; None for no such value.

    """
    shape = len(down.wanted), len(right.wanted)
    if stored.min() == stored.max():
        return np.full(shape, stored.flat[0])
    values = stored[down.taps[:, None, :, None], right.taps[None, :, None, :]]
    weights = down.weights[:, None, :, None] * right.weights[None, :, None, :]
    values = values.reshape(*shape, -1)
    weights = np.broadcast_to(weights, (*shape, down.taps.shape[1], right.taps.shape[1]))
    weights = weights.reshape(values.shape)
    if background is not None:
        weights = np.where(values == background, weights * 1e-9, weights)
    order = values.argsort(axis=-1, kind="stable")
    values = np.take_along_axis(values, order, -1)
    areas = np.take_along_axis(weights, order, -1).cumsum(-1)
    ends = np.ones(values.shape, bool)
    ends[..., :-1] = values[..., 1:] != values[..., :-1]
    # area of each value: its cumulative area less that at the end of the value before
    before = np.zeros_like(areas)
    before[..., 1:] = np.maximum.accumulate(np.where(ends, areas, 0.0), axis=-1)[..., :-1]
    own = np.where(ends, areas - before, -1.0)
    best = own.max(axis=-1, keepdims=True)
    chosen = (own >= best - 1e-9 * np.abs(best)).argmax(axis=-1, keepdims=True)
    return np.take_along_axis(values, chosen, -1)[..., 0]


def means_of(
    pixels: Pixels, rows: Windows, columns: Windows, background: tuple[float, ...]
) -> Pixels:
    """Return the means of windows of an array: see :class:`Sums`.

    Parameters
    ----------
    pixels : numpy.ndarray
        Shape (rows, columns, samples).
    rows, columns : Windows
        The windows of each axis.
    background : tuple of float
        Value of windows that cover nothing, one number per sample.

    Returns
    -------
    numpy.ndarray
        Shape (windows, windows, samples).

    """
    wanted = np.arange(rows.count), np.arange(columns.count)
    out = np.empty((rows.count, columns.count, pixels.shape[2]), pixels.dtype)
    out[...] = background
    covered = rows.covered(wanted[0]), columns.covered(wanted[1])
    sums = Sums(out, covered, background, "majority", has_gaps=False)
    pieces = (
        windows.pieces(indices, windows.extent, (0,))
        for windows, indices in zip((rows, columns), wanted, strict=True)
    )
    for row, column in itertools.product(*pieces):
        sums.add(row, column, pixels[row.source, column.source])
    sums.finish()
    return out
