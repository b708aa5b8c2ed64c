"""Total pixel matrix of an image as a lazy array of tiles, and a sampler of its regions."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from dicomslide.backends.dicomweb.client import frame_source
from dicomslide.header import dicom
from dicomslide.process.identity import Identified
from dicomslide.readers.arrays import dask_array
from dicomslide.readers.chunks import chunk_lengths, frame_lengths
from dicomslide.readers.indexing import Axis, expand_key, plain_key
from dicomslide.readers.matrix_reader import MatrixReader, OnError, check_on_error
from dicomslide.readers.regions import RegionGrid, read_boxes

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator
    from typing import TypeAlias

    import dask.array
    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

    from dicomslide.readers.chunks import Chunks

    Pixels: TypeAlias = NDArray[Any]
    Padding: TypeAlias = int | tuple[int, int] | tuple[int, int, int, int]

__all__ = ["TotalPixelMatrix", "TotalPixelMatrixSampler"]

AXES = ("row", "column", "sample")
"""Names of the axes of a matrix."""


class TotalPixelMatrix(Identified):
    """Total pixel matrix of one channel and focal plane of a tiled image.

    It is indexed like a NumPy array of shape (rows, columns, samples); frames are read and decoded
    on access. A one-dimensional index returns tiles instead of rows: ``matrix[0]`` is the first
    tile, ``matrix[2:6]`` a stack of four tiles.

    Parameters
    ----------
    client : dicomweb_client.api.DICOMClient, FrameStore or FrameSource
        Client, store or source that has the frames.
    image_metadata : pydicom.dataset.Dataset
        Metadata of a tiled DICOM image.
    channel_index : int, default: 0
        Zero-based index into channels, in the order of their items.
    focal_plane_index : int, default: 0
        Zero-based index into focal planes, from the glass slide towards the coverslip.
    max_frame_cache_size : int or None, default: 9
        Upper bound on the decoded frames of this image in the process' cache. None: as many as
        the option `frame_cache_bytes` allows.
    correct_color : bool, default: True
        Whether colours are converted to sRGB by the ICC profile of the optical path.
    on_error : {"raise", "fill"}, default: "raise"
        For frames that can't be read or decoded: raise an error, or return background with a
        warning.

    Raises
    ------
    ValueError
        When there is no such channel or focal plane.
    MetadataError
        When the header lacks an attribute, or contradicts itself.

    Examples
    --------
    >>> region = matrix[:256, 256:512]
    >>> tile = matrix[matrix.get_tile_index((2, 4))]
    >>> mean = matrix.to_dask().mean().compute()

    """

    def __init__(
        self,
        client: Any,
        image_metadata: Dataset,
        channel_index: int = 0,
        focal_plane_index: int = 0,
        max_frame_cache_size: int | None = 9,
        correct_color: bool = True,
        *,
        on_error: OnError = "raise",
    ) -> None:
        check_on_error(on_error)
        self._reader = MatrixReader(
            frame_source(client, image_metadata),
            operator.index(channel_index),
            operator.index(focal_plane_index),
            max_frame_cache_size,
            bool(correct_color),
            on_error,
        )
        layout = self._reader.layout
        for index, given, kind in (
            (self._reader.channel_index, layout.channels, "channel"),
            (self._reader.focal_plane_index, layout.planes, "focal plane"),
        ):
            if not 0 <= index < len(given):
                raise ValueError(
                    f"{self._reader.source.name}: no {kind} {index}; there are {len(given)}, from"
                    " 0 on"
                )

    def __dask_tokenize__(self) -> tuple[Hashable, ...]:
        return self._reader.__dask_tokenize__()

    def __repr__(self) -> str:
        rows, columns, samples = self.shape
        return (
            f"<TotalPixelMatrix {rows} × {columns} × {samples} {self.dtype},"
            f" {self.num_tiles} tiles of {self.tile_shape[0]} × {self.tile_shape[1]}>"
        )

    def _repr_html_(self) -> str:
        from dicomslide.display.html import matrix_html

        return matrix_html(self.shape, self.tile_shape, self.tile_grid_shape, self.dtype)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, Columns, and Samples per Pixel."""
        return self._reader.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type: bool for bit-packed segments, else that of the stored pixels."""
        return self._reader.dtype

    @property
    def ndim(self) -> int:
        """Number of dimensions: 3."""
        return 3

    @property
    def size(self) -> int:
        """Size (rows x columns x samples)."""
        rows, columns, samples = self.shape
        return rows * columns * samples

    @property
    def nbytes(self) -> int:
        """Size in bytes of the whole matrix, decoded."""
        return self.size * self.dtype.itemsize

    # -- tiles --

    @property
    def num_tiles(self) -> int:
        """Number of tiles, in row-major order over the whole grid, absent ones included."""
        return self._reader.layout.grid.num_tiles

    def __len__(self) -> int:
        return self.num_tiles

    @property
    def tile_shape(self) -> tuple[int, int, int]:
        """Rows, Columns, and Samples per Pixel of a tile, also of tiles at the edge."""
        return self._reader.layout.pixel_format.shape

    @property
    def tile_size(self) -> int:
        """Size of a tile (rows x columns x samples)."""
        rows, columns, samples = self.tile_shape
        return rows * columns * samples

    @property
    def tile_grid_shape(self) -> tuple[int, int]:
        """Number of tiles (top to bottom, left to right)."""
        return self._reader.layout.grid.shape

    @property
    def tile_grid_positions(self) -> NDArray[np.int64]:
        """Zero-based (row, column) of each tile in the tile grid, shape (tiles, 2)."""
        return np.stack(np.divmod(np.arange(self.num_tiles), self.tile_grid_shape[1]), axis=-1)

    @property
    def tile_positions(self) -> NDArray[np.int64]:
        """Zero-based (row, column) of each tile's first pixel, shape (tiles, 2)."""
        return self.tile_grid_positions * np.array(self.tile_shape[:2])

    def _check_tile(self, index: int) -> int:
        return Axis.of(index, self.num_tiles).indices[0]

    def get_tile_grid_position(self, index: int) -> tuple[int, int]:
        """Get position of a tile in the tile grid.

        Parameters
        ----------
        index : int
            Zero-based index of the tile in the flattened total pixel matrix

        Returns
        -------
        tuple of int
            Zero-based (row, column) index of a tile in the tile grid

        Raises
        ------
        IndexError
            When there is no such tile.

        """
        return self._reader.layout.grid.position(self._check_tile(index))

    def get_tile_position(self, index: int) -> tuple[int, int]:
        """Get position of a tile.

        Parameters
        ----------
        index : int
            Zero-based index of the tile in the flattened total pixel matrix

        Returns
        -------
        tuple of int
            Zero-based (row, column) offset of a tile in the total pixel matrix

        Raises
        ------
        IndexError
            When there is no such tile.

        """
        row, column = self.get_tile_grid_position(index)
        return row * self.tile_shape[0], column * self.tile_shape[1]

    def get_tile_bounding_box(self, index: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Get the bounding box of a tile.

        Parameters
        ----------
        index : int
            Tile index

        Returns
        -------
        offset : tuple of int
            Zero-based (row, column) pixel indices in the total pixel matrix
        size : tuple of int
            Height (rows) and width (columns) of the tile

        Raises
        ------
        IndexError
            When there is no such tile.

        """
        return self.get_tile_position(index), self.tile_shape[:2]

    def get_tile_index(
        self, position: tuple[int, int] | int | None = None, frame_number: int | None = None
    ) -> int:
        """Get index of a tile.

        Parameters
        ----------
        position : tuple of int, optional
            Zero-based (row, column) index of a tile in the tile grid. ``get_tile_index(2, 4)``
            means the position (2, 4).
        frame_number : int, optional
            One-based number of the corresponding frame item in the Pixel Data element

        Returns
        -------
        int
            Zero-based index of the tile in the flattened total pixel matrix

        Raises
        ------
        TypeError
            When not exactly one of the two is given, or the position isn't a pair of integers.
        IndexError
            When there is no such tile, or the frame isn't of this channel and focal plane.

        """
        if isinstance(position, (int, np.integer)) and frame_number is not None:
            position, frame_number = (int(position), frame_number), None
        if (position is None) == (frame_number is None):
            raise TypeError("either position or frame_number must be given")
        if frame_number is not None:
            frame = np.array([operator.index(frame_number) - 1])
            channel, plane, tile = (
                int(found[0]) for found in self._reader.layout.frames.locate(frame)
            )
            reader = self._reader
            if reader.layout.shares_frames:
                channel = reader.channel_index
            if (channel, plane) != (reader.channel_index, reader.focal_plane_index):
                raise IndexError(
                    f"frame {frame_number} belongs to channel {channel}, focal plane {plane}; this"
                    f" matrix is channel {reader.channel_index}, focal plane"
                    f" {reader.focal_plane_index}"
                )
            return tile
        row, column = dicom.two_integers(position, "tile grid position")  # type: ignore[arg-type]
        down, across = self.tile_grid_shape
        if not (0 <= row < down and 0 <= column < across):
            raise IndexError(f"no tile at {(row, column)} in a grid of {down} × {across} tiles")
        return row * across + column

    # -- pixels --

    def __getitem__(self, key: Any) -> Pixels:
        if not isinstance(key, tuple):
            key = (key,)
        if len(key) == 1 and key[0] is not Ellipsis:
            return self._reader.read_tiles(key[0])
        parts = expand_key(key, self.ndim)
        if not isinstance(parts[2], (slice, np.ndarray)):
            # the axis of samples is kept for one sample
            sample = Axis.of(parts[2], self.shape[2]).indices[0]
            parts[2] = slice(sample, sample + 1)
        arrays = [isinstance(part, np.ndarray) for part in parts]
        integers = [not isinstance(part, (slice, np.ndarray)) for part in parts]
        if any(arrays) and (sum(arrays) > 1 or any(integers)):
            return self._reader.read_points(parts)
        for axis in np.flatnonzero(arrays):
            part = parts[axis]
            if part.ndim > 1:  # one array of any shape: read flat
                parts[axis] = part.ravel()
                flat = self._reader.read(parts)
                return flat.reshape(flat.shape[:axis] + part.shape + flat.shape[axis + 1 :])
        return self._reader.read(parts)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Pixels:
        if copy is False:
            raise ValueError(
                "pixels are decoded into a new array: copy=False (an array without a copy) isn't"
                " possible"
            )
        array = self[...]
        return array if dtype is None else array.astype(dtype, copy=False)

    def __iter__(self) -> Iterator[Pixels]:
        """Return an iterator over the tiles; iterators are independent of each other."""
        return self._reader.iterate()

    # -- dask --

    def to_dask(self, chunks: Chunks = "frames") -> dask.array.Array:
        """Return the matrix as a dask array.

        The time to build it doesn't depend on the size of the slide, and computing a region reads
        only the frames of that region.

        Parameters
        ----------
        chunks : {"frames", "auto"}, int or mapping, default: "frames"
            ``"frames"``: one frame per chunk. ``"auto"``: whole frames, together about
            2,048 × 2,048 pixels per chunk, which is faster where most of a level is read. An
            integer: whole frames, together at least that many pixels along each edge; −1: one
            chunk. A mapping by axis, 0 to 2 as in dask, or ``"row"``, ``"column"`` and
            ``"sample"``: such a value for each, or the lengths of its chunks, which end where
            frames end.

        Returns
        -------
        dask.array.Array
            Shape (rows, columns, samples), the data type of the matrix.

        Raises
        ------
        ValueError
            When `chunks` is none of these.

        """
        tile_rows, tile_columns, samples = self.tile_shape
        rows, columns, _ = self.shape
        units = frame_lengths(rows, tile_rows), frame_lengths(columns, tile_columns), (samples,)
        if isinstance(chunks, Mapping):
            chunks = {AXES[key] if key in (0, 1, 2) else key: each for key, each in chunks.items()}
        lengths = chunk_lengths(chunks, AXES, units, self.dtype.itemsize, (False,) * 3)
        array: dask.array.Array = dask_array(self._reader, lengths, name="total-pixel-matrix")
        return array


class TotalPixelMatrixSampler(Sequence["Pixels"]):
    """Sequence of regions of a total pixel matrix, read on access.

    The regions have one size and lie side by side on a regular grid, in row-major order. The grid
    starts at the first pixel of the matrix, whichever regions are sampled; the last regions may
    extend beyond the matrix. An integer index reads a region, and only the frames of that region. A
    slice, a list or an array of integers or booleans returns a sampler of the selected regions, and
    :meth:`read` reads several at once. A sampler can be pickled, and is a map-style data set for
    PyTorch's ``DataLoader``.

    Parameters
    ----------
    matrix : TotalPixelMatrix
        Total pixel matrix.
    region_dimensions : tuple of int
        Height (rows) and width (columns) of regions, without padding.
    bounding_box : tuple of tuple of int, optional
        Zero-based (row, column) offset and (rows, columns) size of a box that begins within the
        matrix, such as that of a tile: regions that intersect the box are sampled. By default, all
        regions.
    tile_grid_positions : sequence of tuple of int, or numpy.ndarray, optional
        Zero-based (row, column) positions in the tile grid of the matrix, shape (tiles, 2):
        regions that intersect one of these tiles are sampled, once each. Ignored if
        `bounding_box` is given.
    padding : int or tuple of int, default: 0
        Number of neighbouring pixels that are added to each region: one number for all four
        sides; two for left/right and top/bottom; or four for left, top, right and bottom.

    Raises
    ------
    ValueError
        When regions are empty, the box or a tile lies outside the matrix, or a padding is
        negative.

    Notes
    -----
    Pixels outside the matrix are background: for colour, Recommended Absent Pixel CIELab Value or
    white; NaN for floating-point maps; else 0.

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
        if not isinstance(matrix, TotalPixelMatrix):
            raise TypeError(
                f"matrix of type {type(matrix).__name__}: expected a TotalPixelMatrix, such as"
                " image.get_total_pixel_matrix() of one of a slide's images; SlideSampler takes a"
                " slide"
            )
        self._matrix = matrix
        self._dimensions = dicom.two_integers(region_dimensions, "region_dimensions", least=1)
        self._padding = _four_paddings(padding)
        self._grid = RegionGrid(matrix.shape[:2], self._dimensions)
        # row-major numbers, in the whole grid, of the sampled regions
        self._regions: range | NDArray[np.int64] = range(math.prod(self._grid.shape))
        if bounding_box is not None:
            try:
                offset, extent = bounding_box
            except (TypeError, ValueError):
                raise ValueError(
                    f"bounding_box {bounding_box!r}: expected two pairs, ((row, column) of the"
                    " first pixel, (rows, columns))"
                ) from None
            self._regions = self._grid.in_box(offset, extent)
        elif tile_grid_positions is not None:
            self._regions = self._grid.in_tiles(
                np.asarray(tile_grid_positions), matrix.tile_shape[:2], matrix.tile_grid_shape
            )

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
        """Rows, columns and samples of a region with padding, as sampled."""
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
        """Get position of a sampled region in the grid.

        Parameters
        ----------
        index : int
            Zero-based index of the sampled region

        Returns
        -------
        tuple of int
            Zero-based (row, column) position in the grid of the whole matrix

        Raises
        ------
        IndexError
            When there is no such region.

        """
        number = int(self._regions[Axis.of(operator.index(index), len(self)).indices[0]])
        return divmod(number, self._grid.shape[1])

    @property
    def region_grid_positions(self) -> NDArray[np.int64]:
        """Zero-based (row, column) of each region in the grid of the whole matrix, shape (n, 2)."""
        return self._grid.positions(self._regions)

    @property
    def region_positions(self) -> NDArray[np.int64]:
        """Zero-based (row, column) of each region's first pixel without padding, shape (n, 2)."""
        return self.region_grid_positions * np.array(self._dimensions)

    @overload
    def __getitem__(self, index: int) -> Pixels: ...

    @overload
    def __getitem__(
        self, index: slice | Sequence[int] | NDArray[Any]
    ) -> TotalPixelMatrixSampler: ...

    def __getitem__(
        self, index: int | slice | Sequence[int] | NDArray[Any]
    ) -> Pixels | TotalPixelMatrixSampler:
        key = plain_key(index)
        if isinstance(key, (slice, np.ndarray)):
            fewer = copy.copy(self)
            fewer._regions = self._selected(key)
            return fewer
        left, top, _, _ = self.padding
        row, column = (
            position * dimension - before
            for position, dimension, before in zip(
                self.get_region_grid_position(key), self._dimensions, (top, left), strict=True
            )
        )
        rows, columns, _ = self.padded_region_shape
        return self.matrix._reader.read_box((row, column), (rows, columns))

    def _selected(self, key: Any) -> range | NDArray[np.int64]:
        """Return the numbers of the regions that a key picks."""
        if isinstance(key, slice):
            return self._regions[key]
        return np.asarray(self._regions)[Axis.of(key, len(self)).indices]

    def read(self, indices: Sequence[int] | NDArray[Any]) -> Pixels:
        """Read several regions at once; each of their frames is decoded once.

        Parameters
        ----------
        indices : sequence of int
            Zero-based indices of sampled regions, in any order.

        Returns
        -------
        numpy.ndarray
            Shape (regions, rows, columns, samples), with padding.

        Raises
        ------
        IndexError
            When there is no such region.

        """
        left, top, _, _ = self.padding
        positions = self._grid.positions(self._selected(plain_key(indices)))
        first = positions * np.array(self._dimensions) - (top, left)
        return read_boxes(self.matrix._reader, first, self.padded_region_shape[:2])

    __getitems__ = read


def _four_paddings(padding: Padding) -> tuple[int, int, int, int]:
    given = tuple(operator.index(each) for each in np.ravel(padding).tolist())
    if len(given) not in (1, 2, 4) or min(given) < 0:
        raise ValueError(
            f"padding {padding}: expected one number, two (left/right, top/bottom) or four (left,"
            " top, right, bottom), none negative"
        )
    left, top, right, bottom = given * (4 // len(given))
    return left, top, right, bottom
