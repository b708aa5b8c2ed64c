"""Regions of a total pixel matrix as a sequence: what models are trained on."""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from dicomslide.geometry import SlideGrid
from dicomslide.indexing import Axis
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

    A sequence of regions of one size, side by side on a regular grid, in row-major order. Each
    is read when it is asked for, the frames that it touches and no others; a slice is a sampler
    of fewer regions. It pickles, and serves as a map-style data set to PyTorch's ``DataLoader``.

    Parameters
    ----------
    matrix : TotalPixelMatrix
        Total pixel matrix.
    region_dimensions : tuple of int
        Height (rows) and width (columns) of regions, without padding.
    bounding_box : tuple of tuple of int, optional
        Zero-based (row, column) offset and (rows, columns) size of a box that begins within the
        matrix, such as that of a tile. The first region lies at its offset, and regions cover
        it: the last ones may reach out of the box, for all are of the same dimensions. By
        default, the whole matrix.
    tile_grid_positions : sequence of tuple of int, or numpy.ndarray, optional
        Zero-based (row, column) positions in the tile grid of the matrix. The grid of regions
        covers the whole matrix, and those that intersect with one of these tiles are sampled,
        once each. Ignored where `bounding_box` is given.
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
        offset, size = ((0, 0), matrix.shape[:2]) if bounding_box is None else bounding_box
        self._offset = two_integers(offset, "offset of the bounding box", least=0)
        size = two_integers(size, "size of the bounding box", least=1)
        if any(start >= n for start, n in zip(self._offset, matrix.shape, strict=False)):
            raise ValueError(
                f"a bounding box at {self._offset} lies outside of the matrix of"
                f" {matrix.shape[0]} × {matrix.shape[1]} pixels"
            )
        down, across = (-(-s // d) for s, d in zip(size, self._dimensions, strict=True))
        self._across = across
        # numbers in row-major order of the regions that are sampled
        self._regions: range | NDArray[np.int64] = range(down * across)
        if bounding_box is None and tile_grid_positions is not None:
            self._regions = self._regions_at(np.asarray(tile_grid_positions))

    def _regions_at(self, tiles: NDArray[Any]) -> NDArray[np.int64]:
        """Find the regions that intersect with tiles."""
        if not tiles.size:
            return np.empty(0, np.int64)
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
        last = np.minimum(first + self.matrix.tile_shape[:2], self.matrix.shape[:2]) - 1
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
            Zero-based (row, column) grid position; (0, 0) is the region at the offset of the
            bounding box, or at that of the matrix where there is none

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
            offset + position * dimension - before
            for offset, position, dimension, before in zip(
                self._offset,
                self.get_region_grid_position(index),
                self._dimensions,
                (top, left),
                strict=True,
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
