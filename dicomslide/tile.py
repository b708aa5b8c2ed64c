"""Assembly of tiles to a total pixel matrix, the reverse, and positions of frames."""

from __future__ import annotations

import functools
import math
import operator
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.errors import DicomSlideError
from dicomslide.header import dicom
from dicomslide.header.channels import channels_of
from dicomslide.header.layout import MICROMETERS, read_layout
from dicomslide.header.per_frame import positions_of_dataset
from dicomslide.header.placement import geometry_of
from dicomslide.options import check_memory

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

    from dicomslide.backends.part10.source import Part10Source

    Positions: TypeAlias = Sequence[tuple[int, int]] | NDArray[Any]

__all__ = [
    "assemble_total_pixel_matrix",
    "compute_frame_positions",
    "disassemble_total_pixel_matrix",
]

PER_FRAME_GROUPS = "PerFrameFunctionalGroupsSequence"
BYTES_PER_FRAME = 48
"""Bytes per frame of the arrays that :func:`compute_frame_positions` returns."""


def assemble_total_pixel_matrix(
    tiles: Sequence[NDArray[Any]],
    tile_positions: Positions,
    total_pixel_matrix_rows: int,
    total_pixel_matrix_columns: int,
) -> NDArray[Any]:
    """Assemble a total pixel matrix from individual tiles.

    Parameters
    ----------
    tiles : sequence of numpy.ndarray
        Individual image tiles of shape (rows, columns) or (rows, columns, samples)
    tile_positions : sequence of tuple of int, or numpy.ndarray
        Zero-based (row, column) position of each tile's first pixel in the total pixel matrix,
        shape (tiles, 2)
    total_pixel_matrix_rows : int
        Number of total rows
    total_pixel_matrix_columns : int
        Number of total columns

    Returns
    -------
    numpy.ndarray
        Total pixel matrix of shape (rows, columns) or (rows, columns, samples), with the data
        type of the tiles. Pixels that no tile covers are white in colour images, else 0. Tiles are
        cropped at the edge of the matrix; of overlapping tiles, the last one is on top.

    Raises
    ------
    ValueError
        When there is no tile, tiles differ in samples or data type, or a position is missing or
        lies outside the matrix.
    MemoryLimitError
        When the matrix would be larger than the memory limit.

    """
    if not len(tiles):
        raise ValueError("no tiles: expected at least one, for its data type and samples")
    # Python integers, since NumPy's small integers overflow
    shape = (operator.index(total_pixel_matrix_rows), operator.index(total_pixel_matrix_columns))
    positions = _checked(tile_positions, shape)
    if len(tiles) != len(positions):
        raise ValueError(f"{len(tiles)} tiles, but {len(positions)} positions")
    first = np.asarray(tiles[0])
    matrix = _blank((*shape, *first.shape[2:]), first.shape[2:], first.dtype)
    for i, ((row, column), each) in enumerate(zip(positions.tolist(), tiles, strict=True)):
        tile = np.asarray(each)
        if (tile.ndim, tile.shape[2:], tile.dtype) != (matrix.ndim, matrix.shape[2:], matrix.dtype):
            raise ValueError(
                f"tile {i} has shape {tile.shape} and type {tile.dtype}; expected the samples and"
                f" type of tile 0, which has shape {first.shape} and type {first.dtype}"
            )
        here = matrix[row : row + tile.shape[0], column : column + tile.shape[1]]
        here[...] = tile[: here.shape[0], : here.shape[1]]
    return matrix


def disassemble_total_pixel_matrix(
    total_pixel_matrix: NDArray[Any], tile_positions: Positions, rows: int, columns: int
) -> NDArray[Any]:
    """Disassemble a total pixel matrix into individual tiles.

    Parameters
    ----------
    total_pixel_matrix : numpy.ndarray
        Total pixel matrix of shape (rows, columns) or (rows, columns, samples)
    tile_positions : sequence of tuple of int, or numpy.ndarray
        Zero-based (row, column) position of each tile's first pixel in the total pixel matrix,
        shape (tiles, 2)
    rows : int
        Number of rows per tile
    columns : int
        Number of columns per tile

    Returns
    -------
    numpy.ndarray
        Stacked image tiles of shape (tiles, rows, columns) or (tiles, rows, columns, samples).
        Pixels outside the matrix are white in colour images, else 0.

    Raises
    ------
    ValueError
        When the matrix has neither two nor three dimensions, a size isn't positive, or a
        position lies outside the matrix.
    MemoryLimitError
        When the tiles would take more than the memory limit.

    """
    shape = total_pixel_matrix.shape
    if len(shape) not in (2, 3):
        raise ValueError(f"a total pixel matrix has two or three dimensions, not {len(shape)}")
    rows, columns = operator.index(rows), operator.index(columns)
    if min(rows, columns) < 1:
        raise ValueError(f"tiles of {rows} × {columns} pixels are empty; expected at least 1 × 1")
    positions = _checked(tile_positions, shape[:2])
    stack = (len(positions), rows, columns, *shape[2:])
    tiles = _blank(stack, shape[2:], total_pixel_matrix.dtype)
    for tile, (row, column) in zip(tiles, positions.tolist(), strict=True):
        part = total_pixel_matrix[row : row + rows, column : column + columns]
        tile[: part.shape[0], : part.shape[1]] = part
    return tiles


def _checked(tile_positions: Positions, shape: tuple[int, ...]) -> NDArray[np.int64]:
    given = np.asarray(tile_positions)
    if not given.size:
        return np.empty((0, 2), np.int64)
    if given.ndim != 2 or given.shape[1] != 2 or given.dtype.kind not in "iu":
        raise ValueError(
            "tile positions: expected integers (row, column) of shape (tiles, 2), not"
            f" {given.dtype} of shape {given.shape}"
        )
    positions = given.astype(np.int64)
    outside = np.flatnonzero(((positions < 0) | (positions >= shape)).any(axis=1))
    if outside.size:
        raise ValueError(
            f"tile {outside[0]} lies at {tuple(positions[outside[0]].tolist())}, outside the"
            f" matrix of {shape[0]} × {shape[1]} pixels"
        )
    return positions


def _blank(shape: tuple[int, ...], samples: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return a new array: white for colour (three samples), else 0."""
    check_memory(math.prod(shape) * dtype.itemsize, f"an array of shape {shape}")
    if samples != (3,):
        return np.zeros(shape, dtype)
    return np.full(shape, np.iinfo(dtype).max if dtype.kind in "iu" else 1, dtype)


# -- frames ----------------------------------------------------------------------------------


def compute_frame_positions(
    image: Dataset,
) -> tuple[NDArray[np.uint32], NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Compute the positions of frames.

    Parameters
    ----------
    image : pydicom.dataset.Dataset
        Metadata of a tiled image. A TILED_SPARSE image needs its Per-Frame Functional Groups
        Sequence, or the file from which it was read (attribute ``filename``).

    Returns
    -------
    total_pixel_matrix_positions : numpy.ndarray
        Zero-based (row, column) of the first pixel of each frame in the total pixel matrix,
        shape (frames, 2)
    slide_positions : numpy.ndarray
        (x, y, z) of the centre of that pixel in the slide coordinate system in mm, shape
        (frames, 3)
    channel_indices : numpy.ndarray
        Zero-based channel of each frame, shape (frames,): the index into all items of the Optical
        Path or Segment Sequence, also those without frames. 0 where channels share the frames, as
        the segments of a label map do
    focal_plane_indices : numpy.ndarray
        Zero-based focal plane of each frame, shape (frames,), from the glass slide towards the
        coverslip

    Raises
    ------
    MetadataError
        When the header lacks an attribute, or contradicts itself.
    FramePositionError
        When a frame lies outside the matrix or off the tile grid, or two frames have one position.

    """
    file = _file_of(image)
    if file is not None:
        positions = file.frame_positions()
    elif hasattr(image, "frame_positions"):  # metadata of a client: without the groups
        positions = image.frame_positions
    else:
        positions = positions_of_dataset(image)
    layout = read_layout(
        image,
        None,  # positions don't depend on the encoding
        positions,
        dicom.name_of(image),
        functools.partial(_frame_groups, image) if file is None else file.frame_groups,
    )
    check_memory(layout.num_frames * BYTES_PER_FRAME, f"positions of {layout.num_frames} frames")
    channels, planes, tiles = layout.frames.locate(np.arange(layout.num_frames))
    if positions is None and not layout.shares_frames:  # the layout leaves out paths without frames
        declared = [channel.identifier for channel in channels_of(image)]
        held = [declared.index(channel.identifier) for channel in layout.channels]
        channels = np.array(held)[channels]
    grid = layout.grid
    offsets = np.stack(np.divmod(tiles, grid.shape[1]), axis=-1)
    offsets *= (grid.tile_rows, grid.tile_columns)
    if positions is None or positions.z is None:
        z = np.array(layout.planes.offsets)[planes]
    else:  # frames of one plane may have different offsets
        z = positions.z
    slide_positions = np.column_stack([geometry_of(image).to_slide(offsets), z / MICROMETERS])
    return offsets.astype(np.uint32), slide_positions, channels, planes


def _frame_groups(image: Dataset, frames: Sequence[int]) -> list[Dataset]:
    groups = dicom.items(image, PER_FRAME_GROUPS)
    return [groups[frame] for frame in frames] if groups else []


def _file_of(image: Dataset) -> Part10Source | None:
    """Return the file with the per-frame functional groups that a data set lacks; else None.

    Data sets that this package has read don't include these groups.
    """
    from dicomslide.backends.open import open_source

    path = getattr(image, "filename", None)
    if PER_FRAME_GROUPS in image or not isinstance(path, (str, os.PathLike)):
        return None
    try:
        source = open_source(path)
    except (OSError, DicomSlideError):
        return None  # the file is gone or has changed: use the header alone
    return source if source.sop_instance_uid == dicom.text(image, "SOPInstanceUID") else None
