"""Regions of one size, side by side over a matrix: their numbers and positions."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.header import dicom
from dicomslide.header.geometry import AS_STORED
from dicomslide.readers.patch_reader import PatchReader
from dicomslide.readers.resampled_reader import ResampledReader
from dicomslide.readers.windows import Windows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dicomslide.readers.matrix_reader import MatrixReader

__all__ = ["RegionGrid", "read_boxes"]


@dataclasses.dataclass(frozen=True, slots=True)
class RegionGrid:
    """Grid of adjacent regions from the first pixel of a matrix, numbered row by row.

    The last regions of a row or a column may extend beyond the matrix.
    """

    matrix_shape: tuple[int, int]
    """Rows and columns of the matrix."""
    dimensions: tuple[int, int]
    """Rows and columns of a region."""

    @property
    def shape(self) -> tuple[int, int]:
        """Number of regions, from top to bottom and from left to right."""
        (rows, columns), (height, width) = self.matrix_shape, self.dimensions
        return -(-rows // height), -(-columns // width)

    def positions(self, numbers: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the zero-based (row, column) in the grid of regions, shape (regions, 2)."""
        return np.stack(np.divmod(np.asarray(numbers, np.int64), self.shape[1]), axis=-1)

    def in_box(self, offset: tuple[int, int], size: tuple[int, int]) -> NDArray[np.int64]:
        """Return the numbers of the regions that intersect a box of pixels.

        Parameters
        ----------
        offset : tuple of int
            (row, column) of the first pixel.
        size : tuple of int
            Rows and columns.

        Raises
        ------
        ValueError
            When the box is empty, or begins outside the matrix.

        """
        first = np.array(
            [dicom.two_integers(offset, "offset of the bounding box", least=0)], np.int64
        )
        rows_columns = dicom.two_integers(size, "size of the bounding box", least=1)
        shape = self.matrix_shape
        if (first >= shape).any():
            raise ValueError(
                f"a bounding box at {tuple(first[0].tolist())} lies outside the matrix of"
                f" {shape[0]} × {shape[1]} pixels"
            )
        last: NDArray[np.int64] = np.minimum(first + rows_columns, shape) - 1
        return self._between(first, last)

    def in_tiles(
        self, positions: NDArray[Any], tile_shape: tuple[int, int], tiles: tuple[int, int]
    ) -> NDArray[np.int64]:
        """Return the numbers of the regions that intersect tiles of the matrix.

        Parameters
        ----------
        positions : numpy.ndarray
            (row, column) in the grid of tiles, shape (tiles, 2).
        tile_shape : tuple of int
            Rows and columns of a tile.
        tiles : tuple of int
            Number of tiles, from top to bottom and from left to right.

        Raises
        ------
        ValueError
            When there is no such tile, or the array is of another shape or type.

        """
        if not positions.size:
            return np.empty(0, np.int64)
        if positions.ndim != 2 or positions.shape[1] != 2 or positions.dtype.kind not in "iu":
            raise ValueError(
                "tile_grid_positions: expected integers (row, column) of shape (tiles, 2), not"
                f" {positions.dtype} of shape {positions.shape}"
            )
        positions = np.unique(positions.astype(np.int64), axis=0)
        outside = positions[((positions < 0) | (positions >= tiles)).any(axis=1)]
        if outside.size:
            raise ValueError(
                f"no tile at {tuple(outside[0].tolist())} in a grid of {tiles[0]} × {tiles[1]}"
                " tiles"
            )
        first: NDArray[np.int64] = positions * np.array(tile_shape)
        return self._between(first, np.minimum(first + tile_shape, self.matrix_shape) - 1)

    def _between(self, first: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of the regions that intersect boxes, given by first and last pixel."""
        first, last = first // self.dimensions, last // self.dimensions
        rows, columns = (
            first[:, axis, None] + np.arange((last - first)[:, axis].max() + 1) for axis in (0, 1)
        )
        inside = (rows <= last[:, :1])[:, :, None] & (columns <= last[:, 1:])[:, None, :]
        return np.unique((rows[:, :, None] * self.shape[1] + columns[:, None, :])[inside])


def read_boxes(
    reader: MatrixReader, first: NDArray[np.int64], size: tuple[int, int]
) -> NDArray[Any]:
    """Read boxes of one size; each of their frames is decoded once.

    Parameters
    ----------
    reader : MatrixReader
        Gives the pixels.
    first : numpy.ndarray
        (row, column) of each box's first pixel, shape (boxes, 2); what lies outside of the matrix
        is background.
    size : tuple of int
        Rows and columns of a box.

    Returns
    -------
    numpy.ndarray
        Shape (boxes, rows, columns, samples).

    """
    rows, columns = (Windows(0.0, 1.0, length, length) for length in reader.shape[:2])
    patches = PatchReader(ResampledReader(reader, rows, columns), AS_STORED, first, size)
    return patches.read((slice(None),) * 4)
