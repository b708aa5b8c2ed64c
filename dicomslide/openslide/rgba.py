"""Regions of a total pixel matrix as RGBA images, transparent where no pixels are stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.options import check_memory

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from dicomslide.readers.matrix_reader import MatrixReader

__all__ = ["as_picture", "read_rgba", "transparent"]


def transparent(width: int, height: int) -> NDArray[np.uint8]:
    """Return transparent black pixels, shape (height, width, 4), uint8.

    Raises
    ------
    MemoryLimitError
        When the array exceeds the memory limit.

    """
    check_memory(4 * width * height, f"an image of {width} × {height} pixels")
    return np.zeros((height, width, 4), np.uint8)


def read_rgba(
    reader: MatrixReader, left: int, top: int, width: int, height: int
) -> NDArray[np.uint8]:
    """Read a region of a matrix.

    Parameters
    ----------
    reader : MatrixReader
        Reader of integer or bool pixels.
    left, top : int
        Column and row of the region's first pixel; may be outside of the matrix.
    width, height : int
        Columns and rows of the region.

    Returns
    -------
    numpy.ndarray
        Shape (height, width, 4), uint8: greyscale as RGB, more than 8 bits reduced to the 8 most
        significant of Bits Stored; transparent outside of the matrix and in absent tiles.

    """
    rgba = transparent(width, height)
    rows, columns, _ = reader.shape
    first_row, first_column = max(top, 0), max(left, 0)
    end_row, end_column = min(top + height, rows), min(left + width, columns)
    if first_row >= end_row or first_column >= end_column:
        return rgba
    inside = rgba[first_row - top : end_row - top, first_column - left : end_column - left]
    pixels = reader.read((slice(first_row, end_row), slice(first_column, end_column), slice(None)))
    inside[..., :3] = _as_8_bits(pixels, reader.layout.pixel_format.bits_stored)
    inside[..., 3] = 255
    grid = reader.layout.grid
    tile_row = np.arange(first_row, end_row) // grid.tile_rows
    tile_column = np.arange(first_column, end_column) // grid.tile_columns
    down = np.arange(tile_row[0], tile_row[-1] + 1)
    across = np.arange(tile_column[0], tile_column[-1] + 1)
    tiles = down[:, np.newaxis] * grid.shape[1] + across
    absent = reader.frames_of(tiles.ravel()).reshape(tiles.shape) < 0
    if absent.any():
        inside[absent[np.ix_(tile_row - down[0], tile_column - across[0])]] = 0
    return rgba


def _as_8_bits(pixels: NDArray[Any], bits_stored: int) -> NDArray[np.uint8]:
    """Return the 8 most significant of Bits Stored, with the same scale in all regions."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(255)
    lowest = -(1 << bits_stored - 1) if pixels.dtype.kind == "i" else 0
    shifted = (pixels.astype(np.int64) - lowest) >> max(0, bits_stored - 8)
    return np.clip(shifted, 0, 255).astype(np.uint8)


def as_picture(rgba: NDArray[np.uint8], profile: bytes | None) -> Image.Image:
    """Return pixels of shape (rows, columns, 4) as an image of Pillow with an ICC profile."""
    from PIL import Image

    height, width, _ = rgba.shape
    picture = Image.fromarray(rgba) if rgba.size else Image.new("RGBA", (width, height))
    if profile is not None:
        picture.info["icc_profile"] = profile
    return picture
