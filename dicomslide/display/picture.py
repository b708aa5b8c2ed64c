"""Upright 8-bit pictures of matrices."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.display.progress import duration, report_of
from dicomslide.errors import PerformanceWarning
from dicomslide.header.geometry import AS_STORED
from dicomslide.options import allocated, check_memory
from dicomslide.process.warn import warn
from dicomslide.readers.resampled_reader import ResampledReader
from dicomslide.readers.windows import Windows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dicomslide.display.progress import Report
    from dicomslide.header.geometry import Orientation, SlideGeometry
    from dicomslide.readers.matrix_reader import MatrixReader

__all__ = ["as_displayed", "picture_of", "values_of"]


BANDS = 64
"""Upper bound on parts in which a large matrix is read, after each of which progress is told."""
MOST_OF_LEAST = 4
"""Times that bands may have the rows of `BANDS` equal ones, so that they end where tiles do."""
FEW_FRAMES = 2048
"""Frames up to which a matrix is read at once."""
PATIENCE, LONG = 3.0, 10.0
"""Seconds after which it is estimated how long a picture still takes, and from how many on a
warning says so."""
MOST_AT_ONCE = 64 * 2**20
"""Bytes of pixels from which on a matrix is averaged while it is read."""


def picture_of(
    reader: MatrixReader,
    geometry: SlideGeometry | None,
    size: int,
    progress: bool | Report = False,
) -> NDArray[np.uint8]:
    """Return an upright picture of a whole matrix.

    Parameters
    ----------
    reader : MatrixReader
        Reader of the matrix, of any size.
    geometry : SlideGeometry or None
        Geometry of the matrix on the slide; None for a picture as stored.
    size : int
        Pixels along the longer edge; at most those of the matrix.

    Returns
    -------
    numpy.ndarray
        Shape (rows, columns, 3) or (rows, columns), uint8, writable.

    Raises
    ------
    MemoryLimitError
        When one row of the picture, or an oblique picture, needs too much memory.

    """
    from PIL import Image

    pixels, box, shape = _pixels_of(reader, geometry, size, progress)
    picture = Image.fromarray(np.ascontiguousarray(as_displayed(pixels)))
    resized = picture.resize(shape, Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
    return np.array(resized)  # a copy, since an array that shares memory with Pillow is read-only


def values_of(
    reader: MatrixReader,
    geometry: SlideGeometry | None,
    size: int,
    progress: bool | Report = False,
) -> NDArray[np.float32]:
    """Return the values of a grey matrix at the pixels of its picture: see :func:`picture_of`.

    Returns
    -------
    numpy.ndarray
        Shape (rows, columns), float32.

    """
    from PIL import Image

    pixels, box, shape = _pixels_of(reader, geometry, size, progress)
    values = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0], np.float32))
    resized = values.resize(shape, Image.Resampling.BOX, box=box)
    return np.array(resized)


def _pixels_of(
    reader: MatrixReader,
    geometry: SlideGeometry | None,
    size: int,
    progress: bool | Report,
) -> tuple[NDArray[Any], tuple[float, float, float, float], tuple[int, int]]:
    """Read a whole matrix, upright, with at least as many pixels as its picture, if it has them.

    Returns
    -------
    pixels : numpy.ndarray
        Shape (rows, columns, samples).
    box : tuple of float
        (left, top, right, bottom) of the matrix in these pixels.
    shape : tuple of int
        Columns and rows of the picture, whose pixels are square.

    """
    orientation = None if geometry is None else geometry.orientation
    if geometry is not None and orientation is None:
        x_min, y_min, _, _ = geometry.bounds
        check_memory(math.prod(geometry.region_shape(geometry.physical_size)), "an oblique image")
        pixels = reader.read_grid(geometry.region((x_min, y_min), geometry.physical_size))
        height, width = pixels.shape[:2]
        box = (0.0, 0.0, float(width), float(height))
    else:
        report = report_of(progress, "frames")
        if progress is False:
            report = _Estimate(reader.source.name)
        pixels, box = _reduced(reader, size, orientation or AS_STORED, report)
        width, height = max(1, round(box[2] - box[0])), max(1, round(box[3] - box[1]))
    if geometry is not None:  # pixels of the picture are square, those of the matrix may not be
        width_mm, height_mm = geometry.physical_size
        scale = min(size, max(reader.shape[:2])) / max(width_mm, height_mm)
        width, height = (max(1, round(edge * scale)) for edge in (width_mm, height_mm))
    return pixels, box, (width, height)


class _Estimate:
    """Warns once, while a picture is made, if it still takes long.

    Parameters
    ----------
    name : str
        Name of the image.

    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._began: float | None = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Compare the time that so many frames took with what is left."""
        if self._began is None or not done:
            return
        passed = time.monotonic() - self._began
        left = passed * (total - done) / done
        if passed < PATIENCE:
            return
        self._began = None
        if left >= LONG:
            warn(
                f"{self._name}: a picture takes about {duration(left)} more: all {total:,} frames"
                " of this level are decoded, since no smaller one has as many pixels as the"
                " picture. thumbnail(progress=True) shows how far it is,"
                " set_options(num_threads=...) lets more processors decode, and get_slide_region"
                " reads a part",
                PerformanceWarning,
            )


def _reduced(
    reader: MatrixReader, size: int, orientation: Orientation, report: Report
) -> tuple[NDArray[Any], tuple[float, float, float, float]]:
    """Read a whole matrix, upright, as means of boxes, with at least `size` pixels if it has them.

    Returns
    -------
    pixels : numpy.ndarray
        Shape (rows, columns, samples).
    box : tuple of float
        (left, top, right, bottom) of the matrix in these pixels: the last may extend beyond it.

    """
    rows, columns = reader.shape[:2]
    times = max(0, int(math.log2(max(1.0, max(rows, columns) / size))))
    by_decoder = min(times, reader.most_reduction)
    nbytes = math.prod(reader.shape) * reader.dtype.itemsize >> 2 * by_decoder
    if nbytes <= MOST_AT_ONCE:  # then what the decoder gives is enough, and Pillow does the rest
        times = by_decoder
        reader = dataclasses.replace(reader, reduction=times)
        pixels = _read_in_bands(reader, reader.tile_shape[0], reader.layout.grid.shape, report)
    else:
        pixels = _halved(reader, times, report)
    height, width = rows / (1 << times), columns / (1 << times)
    if orientation.transpose:
        height, width = width, height
    pixels = orientation.apply(pixels)
    left = pixels.shape[1] - width if orientation.flip_x else 0.0
    top = pixels.shape[0] - height if orientation.flip_y else 0.0
    return pixels, (left, top, left + width, top + height)


def _halved(reader: MatrixReader, times: int, report: Report) -> NDArray[Any]:
    """Read a whole matrix with rows and columns halved `times` times, by decoders if they can."""
    windows = (
        Windows.of(0, 1 << times, -(-length >> times), length) for length in reader.shape[:2]
    )
    rows, columns = windows
    reduced = ResampledReader.of(reader, (rows, columns), fast=True)
    tile = reader.tile_shape[0]
    # rows of the picture after which rows of tiles end, too
    unit = math.lcm(tile, 1 << times) >> times
    return _read_in_bands(reduced, unit, reader.layout.grid.shape, report)


def _read_in_bands(
    reader: MatrixReader | ResampledReader, unit: int, tiles: tuple[int, int], report: Report
) -> NDArray[Any]:
    """Read a whole matrix, in bands if it has many tiles.

    Parameters
    ----------
    reader : MatrixReader or ResampledReader
        Reader of the matrix.
    unit : int
        Number of rows of pixels of which bands are multiples, so that none divides tiles.
    tiles : tuple of int
        Rows and columns of the grid of tiles.
    report : callable
        Called with the numbers of tiles that were read, and of all.

    """
    shape, total = reader.shape, math.prod(tiles)
    every = (slice(None), slice(None))
    if total <= FEW_FRAMES:
        pixels = reader.read((slice(None), *every), keep=False)
    else:
        least = -(-shape[0] // BANDS)
        band = -(-least // unit) * unit
        if band > MOST_OF_LEAST * least:  # rather decode some tiles twice
            band = least
        pixels = allocated(shape, reader.dtype, "a picture of the whole image")
        for start in range(0, shape[0], band):
            stop = min(start + band, shape[0])
            report(round(total * start / shape[0]), total)
            pixels[start:stop] = reader.read((slice(start, stop), *every), keep=False)
    report(total, total)
    return pixels


def as_displayed(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Convert pixels to 8 bits for display.

    8-bit colour is unchanged. Other values are scaled to 0 … 255 between the 0.1th and the 99.9th
    percentile of the finite ones, or between their minimum and maximum where the percentiles are
    equal. NaN becomes black. 8-bit grey of one value is unchanged.

    Parameters
    ----------
    pixels : numpy.ndarray
        Shape (rows, columns, samples).

    Returns
    -------
    numpy.ndarray
        Shape (rows, columns, 3), or (rows, columns) for one sample; uint8.

    """
    is_grey = pixels.shape[2] == 1
    if is_grey:
        pixels = pixels[:, :, 0]
    if pixels.dtype == np.uint8 and (not is_grey or np.ptp(pixels) == 0):
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(255)
    values = pixels.astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, (0.1, 99.9)) if finite.size else (0.0, 1.0)
    if low == high and finite.size:  # few pixels have other values: show those
        low, high = finite.min(), finite.max()
    clipped = np.clip(np.nan_to_num(values, nan=low), low, high)
    return ((clipped / 2 - low / 2) / max(high / 2 - low / 2, 1e-12) * 255).astype(np.uint8)
