"""Regions of a total pixel matrix as images of Pillow, and as arrays of what is stored."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.options import allocated, check_memory

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from dicomslide.readers.matrix_reader import MatrixReader

__all__ = ["Box", "read_array", "read_picture"]

OPAQUE = 255


@dataclasses.dataclass(frozen=True, slots=True)
class Box:
    """A region of a matrix; may reach outside of it."""

    left: int
    """Column of the first pixel."""
    top: int
    """Row of the first pixel."""
    width: int
    """Columns."""
    height: int
    """Rows."""

    def within(self, reader: MatrixReader) -> Box:
        """Return the part inside of the matrix, without rows or columns if there is none."""
        rows, columns, _ = reader.shape
        left, top = min(max(self.left, 0), columns), min(max(self.top, 0), rows)
        right, bottom = min(self.left + self.width, columns), min(self.top + self.height, rows)
        return Box(left, top, max(right - left, 0), max(bottom - top, 0))


def read_picture(reader: MatrixReader, box: Box, profile: bytes | None) -> Image.Image:
    """Read a region as an image.

    Parameters
    ----------
    reader : MatrixReader
        Reader of integer or bool pixels.
    box : Box
        The region.
    profile : bytes, optional
        ICC profile of the image.

    Returns
    -------
    PIL.Image.Image
        RGBA of the size of the box: greyscale as RGB, more than 8 bits reduced to the 8 most
        significant of Bits Stored; transparent outside of the matrix and in absent tiles.

    """
    from PIL import Image

    check_memory(4 * box.width * box.height, f"an image of {box.width} × {box.height} pixels")
    inside = box.within(reader)
    if inside == box and box.width and box.height:
        picture = _opaque_but_for_absent(reader, inside)
    else:
        picture = Image.new("RGBA", (box.width, box.height))  # transparent
        if inside.width and inside.height:
            at = inside.left - box.left, inside.top - box.top
            picture.paste(_opaque_but_for_absent(reader, inside), at)
    if profile is not None:
        picture.info["icc_profile"] = profile
    return picture


def read_array(reader: MatrixReader, box: Box) -> NDArray[Any]:
    """Read a region as an array.

    Parameters
    ----------
    reader : MatrixReader
        Reader of pixels.
    box : Box
        The region.

    Returns
    -------
    numpy.ndarray
        Shape (rows, columns, samples) of the box, as stored; 0 outside of the matrix and in absent
        tiles.

    """
    inside = box.within(reader)
    if inside == box:
        return _stored(reader, inside)
    shape = box.height, box.width, reader.shape[2]
    out = allocated(shape, reader.dtype, f"{reader.source.name}: a region of shape {shape}")
    out[...] = 0
    if inside.width and inside.height:
        top, left = inside.top - box.top, inside.left - box.left
        out[top : top + inside.height, left : left + inside.width] = _stored(reader, inside)
    return out


def _stored(reader: MatrixReader, box: Box) -> NDArray[Any]:
    """Read a region inside of a matrix, 0 in absent tiles."""
    pixels = _read(reader, box)
    for part in _absent(reader, box):
        pixels[part] = 0
    return pixels


def _opaque_but_for_absent(reader: MatrixReader, box: Box) -> Image.Image:
    """Read a region inside of a matrix as an RGBA image.

    Pillow adds the fourth band itself while it copies the pixels: twelve times as fast as filling
    an array of four samples with NumPy.
    """
    from PIL import Image

    pixels = _as_8_bits(_read(reader, box), reader.layout.pixel_format.bits_stored)
    absent = _absent(reader, box)
    for part in absent:
        pixels[part] = 0
    if pixels.shape[2] == 1:
        picture = Image.fromarray(pixels[..., 0]).convert("RGB")
    else:
        picture = Image.fromarray(pixels)
    if not absent:
        picture.putalpha(OPAQUE)
        return picture
    alpha = np.full(pixels.shape[:2], OPAQUE, np.uint8)
    for part in absent:
        alpha[part] = 0
    picture.putalpha(Image.fromarray(alpha))
    return picture


def _read(reader: MatrixReader, box: Box) -> NDArray[Any]:
    rows = slice(box.top, box.top + box.height)
    return reader.read((rows, slice(box.left, box.left + box.width), slice(None)))


def _is_complete(reader: MatrixReader) -> bool:
    """Whether every tile of every channel and focal plane has a frame: no two share a place."""
    layout = reader.layout
    channels = 1 if layout.shares_frames else len(layout.channels)
    return layout.num_frames == channels * len(layout.planes) * layout.grid.num_tiles


def _absent(reader: MatrixReader, box: Box) -> list[tuple[slice, slice]]:
    """Return the rows and columns of runs of absent tiles within a region."""
    if _is_complete(reader) or not box.width or not box.height:
        return []
    grid = reader.layout.grid
    down = range(box.top // grid.tile_rows, (box.top + box.height - 1) // grid.tile_rows + 1)
    across = range(
        box.left // grid.tile_columns, (box.left + box.width - 1) // grid.tile_columns + 1
    )
    tiles = np.add.outer(np.array(down) * grid.shape[1], np.array(across))
    is_absent = reader.frames_of(tiles.ravel()).reshape(tiles.shape) < 0
    if not is_absent.any():
        return []
    edges = np.diff(np.pad(is_absent.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    found = []
    for (row, first), (_, end) in zip(
        np.argwhere(edges == 1).tolist(), np.argwhere(edges == -1).tolist(), strict=True
    ):
        top = (down[0] + row) * grid.tile_rows - box.top
        left = (across[0] + first) * grid.tile_columns - box.left
        right = (across[0] + end) * grid.tile_columns - box.left
        found.append(
            (
                slice(max(top, 0), min(top + grid.tile_rows, box.height)),
                slice(max(left, 0), min(right, box.width)),
            )
        )
    return found


def _as_8_bits(pixels: NDArray[Any], bits_stored: int) -> NDArray[np.uint8]:
    """Return the 8 most significant of Bits Stored, with the same scale in all regions."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.view(np.uint8) * np.uint8(255)
    lowest = -(1 << bits_stored - 1) if pixels.dtype.kind == "i" else 0
    shifted = (pixels.astype(np.int64) - lowest) >> max(0, bits_stored - 8)
    return np.clip(shifted, 0, 255).astype(np.uint8)
