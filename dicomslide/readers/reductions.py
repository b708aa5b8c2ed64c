"""From stored pixels to those of other windows: means by area, and labels of the largest area."""

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
"""What a pixel of labels is of those that it covers."""
LARGE = 3 * 96**2
"""Samples from which on Pillow is faster than NumPy."""
NOISE = 1e-9
"""Fraction of an area by which it may be off."""


class Means:
    """The means of windows that each lie in one tile."""

    def __init__(self, out: Pixels) -> None:
        self._out = out
        self._assign = pixel_assignment(out)

    def add(self, row: WindowPiece, column: WindowPiece, part: Pixels) -> None:
        """Add the pixels of a tile that windows cover."""
        self._assign((row.target, column.target), _means(part, row.taps, column.taps))

    def finish(self) -> None:
        """Do what remains to be done when all tiles were added."""


class Sums(Means):
    """Sums over windows, to which tiles add their shares from several threads; then means.

    Parameters
    ----------
    out : numpy.ndarray
        Gets the means; background where windows cover nothing.
    covered : tuple of numpy.ndarray
        Length of each window within the matrix, of rows and of columns.
    background : tuple of float
        Value of the tiles that aren't added.
    labels : {"majority", "any"}
        What True among the pixels makes a window.
    has_gaps : bool
        Whether there may be tiles that aren't added.

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
        """Area of each window that was added."""
        self._nan: NDArray[np.float64] | None = None
        """Area of each window that was NaN."""
        self._lock = threading.Lock()

    def add(self, row: WindowPiece, column: WindowPiece, part: Pixels) -> None:
        """Add the pixels of a tile that windows cover."""
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
        """Put the means of windows that cover anything into the result."""
        area = np.multiply.outer(*self._covered)[..., None]
        reached = area > 0
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
                means = np.where(area > NOISE, sums / area, math.nan)  # NaN where all is
                if kind in "ui":
                    means = np.floor(means + 0.5)
        np.copyto(self._out, means, where=reached, casting="unsafe")


def _means(part: Pixels, down: Taps, across: Taps) -> Pixels:
    """Return means of boxes of whole pixels, rounded, halves up."""
    assert isinstance(down, int)
    assert isinstance(across, int)
    if down == across == 1:
        return part
    is_large = part.size > LARGE
    if part.dtype == np.uint8 and is_large and (down * across).bit_count() == 1:
        # Pillow is exact where the area is a power of two, and takes half of the time
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
    """The stored pixels of some windows of one axis."""

    wanted: NDArray[np.intp]
    """Which windows cover anything."""
    pixels: slice
    """The stored pixels that they cover, and those between them."""
    taps: NDArray[np.intp]
    """Indices of each window's pixels, from the first on; shape (windows, pixels)."""
    weights: NDArray[np.float64]
    """Length of each pixel in its window, likewise."""


def gathered(windows: Windows, indices: NDArray[np.int64]) -> Gathered:
    """Return the stored pixels of some windows of one axis."""
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
    """Return the value of the largest area in each window; the lowest of several.

    Parameters
    ----------
    stored : numpy.ndarray
        Shape (rows, columns), what the windows cover.
    down, right : Gathered
        The windows.
    background : int or None
        The value that gives way to any other; None for none.

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
    # the area up to the end of the value before: that of each value is the difference
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
        Value of windows that cover nothing, one a sample.

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
