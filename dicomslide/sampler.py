"""Regions of a total pixel matrix as a sequence: what models are trained on."""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from dicomslide.header.geometry import SlideGrid
from dicomslide.readers.indexing import Axis
from dicomslide.utils import two_integers

if TYPE_CHECKING:
    from typing import TypeAlias

    from numpy.typing import NDArray

    from dicomslide.matrix import TotalPixelMatrix

    Pixels: TypeAlias = NDArray[Any]
    Padding: TypeAlias = int | tuple[int, int] | tuple[int, int, int, int]

__all__ = ["TotalPixelMatrixSampler"]


class TotalPixelMatrixSampler(Sequence["Pixels"]):
    """Samples regions of a total pixel matrix.

    A sequence of regions of one size, side by side on a regular grid, in row-major order. The
    grid is that of the whole matrix, from its first pixel on, whichever of its regions are
    sampled; the last ones may reach out of the matrix. Each is read when it is asked for, the
    frames that it touches and no others; a slice is a sampler of fewer regions. It pickles, and
    serves as a map-style data set to PyTorch's ``DataLoader``.

    Parameters
    ----------
    matrix : TotalPixelMatrix
        Total pixel matrix.
    region_dimensions : tuple of int
        Height (rows) and width (columns) of regions, without padding.
    bounding_box : tuple of tuple of int, optional
        Zero-based (row, column) offset and (rows, columns) size of a box that begins within the
        matrix, such as that of a tile. Those regions of the grid that intersect with it are
        sampled. By default, all.
    tile_grid_positions : sequence of tuple of int, or numpy.ndarray, optional
        Zero-based (row, column) positions in the tile grid of the matrix. Those regions of the
        grid that intersect with one of these tiles are sampled, once each. Ignored where
        `bounding_box` is given.
    padding : int or tuple of int, default: 0
        Pixels that are added at the borders of each region, from what lies beside it: at all
        four; at left/right and top/bottom; or at left, top, right and bottom.

    Raises
    ------
    ValueError
        When regions would hold nothing, the box or a tile lies outside of the matrix, or a
        padding is negative.

    Notes
    -----
    What reaches out of the matrix is background: white, or the colour that the image recommends
    for absent pixels; NaN for floating-point maps; 0 for others.

    Examples
    --------
    >>> sampler = TotalPixelMatrixSampler(matrix, (256, 256), padding=16)
    >>> sampler[0].shape
    (288, 288, 3)
    >>> for region in sampler[:100]:
    ...     print(region.mean())

    """

    def __init__(
        self,
        matrix: TotalPixelMatrix,
        region_dimensions: tuple[int, int],
        bounding_box: tuple[tuple[int, int], tuple[int, int]] | None = None,
        tile_grid_positions: Sequence[tuple[int, int]] | NDArray[Any] | None = None,
        padding: Padding = 0,
    ) -> None:
        self._matrix = matrix
        self._dimensions = two_integers(region_dimensions, "region_dimensions", least=1)
        self._padding = _four_paddings(padding)
        down, self._across = (
            -(-n // edge) for n, edge in zip(matrix.shape, self._dimensions, strict=False)
        )
        # numbers in row-major order of the regions that are sampled
        self._regions: range | NDArray[np.int64] = range(down * self._across)
        if bounding_box is not None:
            self._regions = self._regions_in(*self._pixels_of_box(*bounding_box))
        elif tile_grid_positions is not None:
            self._regions = self._regions_in(*self._pixels_of(np.asarray(tile_grid_positions)))

    def _pixels_of_box(
        self, offset: tuple[int, int], size: tuple[int, int]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first and the last pixel of a box within the matrix, shape (1, 2)."""
        first = np.array([two_integers(offset, "offset of the bounding box", least=0)])
        rows_columns = two_integers(size, "size of the bounding box", least=1)
        shape = self.matrix.shape[:2]
        if (first >= shape).any():
            raise ValueError(
                f"a bounding box at {tuple(first[0].tolist())} lies outside of the matrix of"
                f" {shape[0]} × {shape[1]} pixels"
            )
        return first, np.minimum(first + rows_columns, shape) - 1

    def _pixels_of(self, tiles: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first and the last pixel of tiles within the matrix, shape (tiles, 2)."""
        if not tiles.size:
            return np.empty((0, 2), np.int64), np.empty((0, 2), np.int64)
        grid_shape = self.matrix.tile_grid_shape
        if tiles.ndim != 2 or tiles.shape[1] != 2 or tiles.dtype.kind not in "iu":
            raise ValueError(
                "tile_grid_positions are (row, column) integers, shape (tiles, 2), not"
                f" {tiles.dtype} of shape {tiles.shape}"
            )
        tiles = np.unique(tiles.astype(np.int64), axis=0)
        outside = tiles[((tiles < 0) | (tiles >= grid_shape)).any(axis=1)]
        if outside.size:
            raise ValueError(
                f"no tile at {tuple(outside[0].tolist())} in a grid of {grid_shape[0]} ×"
                f" {grid_shape[1]} tiles"
            )
        first = tiles * self.matrix.tile_shape[:2]
        return first, np.minimum(first + self.matrix.tile_shape[:2], self.matrix.shape[:2]) - 1

    def _regions_in(self, first: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.int64]:
        """Find the regions that intersect with boxes, by their first and last pixels."""
        if not len(first):
            return np.empty(0, np.int64)
        first, last = first // self._dimensions, last // self._dimensions
        rows, columns = (
            first[:, axis, None] + np.arange((last - first)[:, axis].max() + 1) for axis in (0, 1)
        )
        inside = (rows <= last[:, :1])[:, :, None] & (columns <= last[:, 1:])[:, None, :]
        return np.unique((rows[:, :, None] * self._across + columns[:, None, :])[inside])

    @property
    def matrix(self) -> TotalPixelMatrix:
        """Total pixel matrix."""
        return self._matrix

    @property
    def region_shape(self) -> tuple[int, int, int]:
        """Rows, columns and samples of a region without padding."""
        return (*self._dimensions, self.matrix.shape[2])

    @property
    def padded_region_shape(self) -> tuple[int, int, int]:
        """Rows, columns and samples of a region with its padding, as it is sampled."""
        rows, columns, samples = self.region_shape
        left, top, right, bottom = self.padding
        return top + rows + bottom, left + columns + right, samples

    @property
    def padding(self) -> tuple[int, int, int, int]:
        """Padding at the left, top, right, and bottom of each region."""
        return self._padding

    def __repr__(self) -> str:
        rows, columns, samples = self.padded_region_shape
        return f"<TotalPixelMatrixSampler of {len(self)} regions of {rows} × {columns} × {samples}>"

    def __len__(self) -> int:
        return len(self._regions)

    def get_region_grid_position(self, index: int) -> tuple[int, int]:
        """Get position of sampled region in the grid.

        Parameters
        ----------
        index : int
            Zero-based index of the sampled region

        Returns
        -------
        tuple of int
            Zero-based (row, column) position in the grid of the whole matrix, whichever of its
            regions are sampled

        Raises
        ------
        IndexError
            When there is no such region.

        """
        number = int(self._regions[Axis.of(operator.index(index), len(self)).indices[0]])
        return divmod(number, self._across)

    @overload
    def __getitem__(self, index: int) -> Pixels: ...

    @overload
    def __getitem__(self, index: slice) -> TotalPixelMatrixSampler: ...

    def __getitem__(self, index: int | slice) -> Pixels | TotalPixelMatrixSampler:
        if isinstance(index, slice):
            fewer = copy.copy(self)
            fewer._regions = self._regions[index]
            return fewer
        left, top, _, _ = self.padding
        row, column = (
            position * dimension - before
            for position, dimension, before in zip(
                self.get_region_grid_position(index), self._dimensions, (top, left), strict=True
            )
        )
        rows, columns, _ = self.padded_region_shape
        return self.matrix.reader.read_grid(SlideGrid.box((row, column), (rows, columns)))


def _four_paddings(padding: Padding) -> tuple[int, int, int, int]:
    given = tuple(operator.index(each) for each in np.ravel(padding).tolist())
    if len(given) not in (1, 2, 4) or min(given) < 0:
        raise ValueError(
            f"padding {padding}: expected one number, two (left/right, top/bottom) or four (left,"
            " top, right, bottom), none negative"
        )
    left, top, right, bottom = given * (4 // len(given))
    return left, top, right, bottom
