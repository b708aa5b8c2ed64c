"""The total pixel matrix of an image: a lazy array whose tiles are DICOM frames."""

from __future__ import annotations

import operator
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dicomslide.backends.base import FrameSource, frame_source
from dicomslide.cache import FrameCache, Registry
from dicomslide.codec import decode_frame
from dicomslide.color import ColorTransform, color_transform
from dicomslide.errors import FrameError, FrameReadError, FrameWarning, MetadataError
from dicomslide.indexing import Axis, Piece, expand_key, points
from dicomslide.layout import ImageLayout, read_layout
from dicomslide.options import check_memory, get_options

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence
    from typing import TypeAlias

    import dask.array
    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

    Pixels: TypeAlias = NDArray[Any]

__all__ = ["OnError", "TotalPixelMatrix", "chunk_multiple", "layout_of"]

OnError = Literal["raise", "fill"]

AUTO_CHUNK = 2048
"""Pixels along an edge that ``chunks="auto"`` comes near to."""
BATCH = 16
"""Frames that a thread reads at once."""

_layouts: Registry[tuple[Hashable, ...], ImageLayout] = Registry(256)
_frames = FrameCache(lambda: get_options().frame_cache_bytes)
_pools: Registry[tuple[int, int], ThreadPoolExecutor] = Registry(1)


def layout_of(source: FrameSource) -> ImageLayout:
    """Return this process's layout of an image, worked out once."""

    def read() -> ImageLayout:
        return read_layout(
            source.metadata, source.transfer_syntax_uid, source.frame_positions(), source.name
        )

    return _layouts.get(source.identity, read)


def chunk_multiple(chunks: str | int, tile_shape: tuple[int, int]) -> tuple[int, int]:
    """Return how many tiles, down and across, make a chunk.

    Parameters
    ----------
    chunks : {"frames", "auto"} or int
        One frame; whole frames of about 2,048² pixels; or whole frames of at least so many
        pixels along an edge.
    tile_shape : tuple of int
        (rows, columns) of a tile.

    Raises
    ------
    ValueError
        When `chunks` is none of these.

    """
    if chunks == "frames":
        return 1, 1
    if chunks == "auto":
        return max(1, round(AUTO_CHUNK / tile_shape[0])), max(1, round(AUTO_CHUNK / tile_shape[1]))
    if isinstance(chunks, (int, np.integer)) and not isinstance(chunks, bool) and chunks > 0:
        return -(-int(chunks) // tile_shape[0]), -(-int(chunks) // tile_shape[1])
    raise ValueError(f'chunks must be "frames", "auto" or a number of pixels, not {chunks!r}')


class TotalPixelMatrix:
    """Total pixel matrix of one channel and focal plane of a tiled image.

    Looks like a NumPy array of shape (rows, columns, samples) and is indexed like one; frames
    are read and decoded when pixels are asked for. A one-dimensional index gives tiles
    instead: ``matrix[0]`` is the first tile, ``matrix[2:6]`` four of them, stacked.

    Parameters
    ----------
    client : FrameStore or FrameSource
        Where the frames are.
    image_metadata : pydicom.dataset.Dataset
        Metadata of a tiled DICOM image.
    channel_index : int, default: 0
        Zero-based index into channels, in the order of their items.
    focal_plane_index : int, default: 0
        Zero-based index into focal planes, from the glass slide towards the coverslip.
    max_frame_cache_size : int, default: 9
        Largest number of this image's decoded frames that the process keeps.
    correct_color : bool, default: True
        Whether colours are mapped to sRGB by the ICC profile of the optical path.
    on_error : {"raise", "fill"}, default: "raise"
        Whether a frame that can't be read or decoded raises, or is background with a warning.

    Raises
    ------
    ValueError
        When there is no such channel or focal plane.
    MetadataError
        When the header lacks what is needed, or contradicts itself.

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
        max_frame_cache_size: int = 9,
        correct_color: bool = True,
        *,
        on_error: OnError = "raise",
    ) -> None:
        if on_error not in ("raise", "fill"):
            raise ValueError(f'on_error must be "raise" or "fill", not {on_error!r}')
        self._source = frame_source(client, image_metadata)
        self._channel_index = int(channel_index)
        self._focal_plane_index = int(focal_plane_index)
        self._max_frame_cache_size = int(max_frame_cache_size)
        self._correct_color = bool(correct_color)
        self._on_error: OnError = on_error
        self._known_layout: ImageLayout | None = None
        layout = self._layout
        for index, given, kind in (
            (self._channel_index, layout.channels, "channel"),
            (self._focal_plane_index, layout.planes, "focal plane"),
        ):
            if not 0 <= index < len(given):
                raise ValueError(
                    f"{self._source.name}: no {kind} {index}; there are {len(given)}, from 0 on"
                )

    # -- what it is --

    @property
    def _layout(self) -> ImageLayout:
        if self._known_layout is None:
            self._known_layout = layout_of(self._source)
        return self._known_layout

    def __getstate__(self) -> dict[str, Any]:
        # thin: the layout is read again, once, where the matrix arrives
        return self.__dict__ | {"_known_layout": None}

    def __dask_tokenize__(self) -> tuple[Hashable, ...]:
        return (
            "dicomslide.TotalPixelMatrix",
            self._source.identity,
            self._channel_index,
            self._focal_plane_index,
            self._correct_color,
            self._on_error,
        )

    def __repr__(self) -> str:
        rows, columns, samples = self.shape
        return (
            f"<TotalPixelMatrix {rows} × {columns} × {samples} {self.dtype},"
            f" {self.num_tiles} tiles of {self.tile_shape[0]} × {self.tile_shape[1]}>"
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, Columns, and Samples per Pixel."""
        layout = self._layout
        return layout.grid.rows, layout.grid.columns, layout.pixel_format.samples

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type: bool for bit-packed segments, else that of the stored pixels."""
        return self._layout.pixel_format.dtype

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
        return self._layout.grid.num_tiles

    def __len__(self) -> int:
        return self.num_tiles

    @property
    def tile_shape(self) -> tuple[int, int, int]:
        """Rows, Columns, and Samples per Pixel of a tile; edge tiles too are of this shape."""
        return self._layout.pixel_format.shape

    @property
    def tile_size(self) -> int:
        """Size of a tile (rows x columns x samples)."""
        rows, columns, samples = self.tile_shape
        return rows * columns * samples

    @property
    def tile_grid_shape(self) -> tuple[int, int]:
        """Number of tiles (top to bottom, left to right)."""
        return self._layout.grid.shape

    @property
    def tile_grid_positions(self) -> NDArray[np.int64]:
        """Zero-based (row, column) of each tile in the tile grid, shape (tiles, 2)."""
        return np.stack(np.divmod(np.arange(self.num_tiles), self.tile_grid_shape[1]), axis=-1)

    @property
    def tile_positions(self) -> NDArray[np.int64]:
        """Zero-based (row, column) of each tile's first pixel, shape (tiles, 2)."""
        return self.tile_grid_positions * np.array(self.tile_shape[:2])

    def _check_tile(self, index: int) -> int:
        return Axis.of(index, self.num_tiles).indices[0]  # type: ignore[return-value]

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
        return self._layout.grid.position(self._check_tile(index))

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
            is read as the position (2, 4).
        frame_number : int, optional
            One-based number of the corresponding frame item in the Pixel Data element

        Returns
        -------
        int
            Zero-based index of the tile in the flattened total pixel matrix

        Raises
        ------
        TypeError
            When not exactly one of both is given.
        IndexError
            When there is no such tile, or the frame isn't of this channel and focal plane.

        """
        if isinstance(position, (int, np.integer)) and frame_number is not None:
            position, frame_number = (int(position), frame_number), None
        if (position is None) == (frame_number is None):
            raise TypeError("either position or frame_number must be given")
        if frame_number is not None:
            channel, plane, tile = self._layout.frames.place(operator.index(frame_number) - 1)
            if (channel, plane) != (self._channel_index, self._focal_plane_index):
                raise IndexError(
                    f"frame {frame_number} belongs to channel {channel}, focal plane {plane}; this"
                    f" matrix is channel {self._channel_index}, focal plane"
                    f" {self._focal_plane_index}"
                )
            return tile
        row, column = position  # type: ignore[misc]
        down, across = self.tile_grid_shape
        if not (0 <= row < down and 0 <= column < across):
            raise IndexError(f"no tile at {(row, column)} in a grid of {down} × {across} tiles")
        return int(row * across + column)

    # -- pixels --

    def __getitem__(self, key: Any) -> Pixels:
        if not isinstance(key, tuple):
            key = (key,)
        if len(key) == 1 and key[0] is not Ellipsis:
            return self._tiles(key[0])
        parts = expand_key(key, self.ndim)
        if not isinstance(parts[2], (slice, np.ndarray)):
            # one sample keeps its axis, as documented
            sample = Axis.of(parts[2], self.shape[2]).indices[0]
            parts[2] = slice(sample, sample + 1)
        arrays = [isinstance(part, np.ndarray) for part in parts]
        integers = [not isinstance(part, (slice, np.ndarray)) for part in parts]
        if any(arrays) and (sum(arrays) > 1 or any(integers)):
            return self._points(parts)
        for axis in np.flatnonzero(arrays):
            part = parts[axis]
            if part.ndim > 1:  # one array of any shape: read flat
                parts[axis] = part.ravel()
                flat = self.read(parts)
                return flat.reshape(flat.shape[:axis] + part.shape + flat.shape[axis + 1 :])
        return self.read(parts)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Pixels:
        if copy is False:
            raise ValueError("the pixels have to be decoded: an array without a copy isn't possible")
        array = self[...]
        return array if dtype is None else array.astype(dtype, copy=False)

    def __iter__(self) -> Iterator[Pixels]:
        """Iterate over the tiles, independently of other iterators."""
        return (self[index] for index in range(len(self)))

    def read(self, key: Sequence[Any], *, num_threads: int | None = None) -> Pixels:
        """Read the pixels that a key for each axis picks, each independently of the others.

        Parameters
        ----------
        key : sequence
            For rows, columns and samples: an integer (which drops its axis), a slice, or a
            one-dimensional array of integers or booleans.
        num_threads : int, optional
            Threads that decode; by default the option of that name.

        Returns
        -------
        numpy.ndarray
            Up to three dimensions.

        Raises
        ------
        IndexError
            When a key reaches outside its axis.
        FrameError
            When a frame can't be read or decoded.
        MemoryLimitError
            When the result would be too large.

        """
        rows, columns, samples = (
            Axis.of(part, length) for part, length in zip(key, self.shape, strict=True)
        )
        layout = self._layout
        shape = len(rows), len(columns), layout.pixel_format.samples
        check_memory(
            shape[0] * shape[1] * shape[2] * self.dtype.itemsize,
            f"a region of {shape[0]} × {shape[1]} pixels",
        )
        out = np.empty(shape, self.dtype)
        down = list(rows.pieces(layout.grid.tile_rows))
        right = list(columns.pieces(layout.grid.tile_columns))
        tiles = np.array(
            [[r.tile * layout.grid.shape[1] + c.tile for c in right] for r in down], np.int64
        ).ravel()
        places = [(r, c) for r in down for c in right]

        def place(at: int, tile: Pixels | None) -> None:
            r, c = places[at]
            _place(out, r, c, layout.background if tile is None else tile)

        self._visit(tiles, place, num_threads)
        result = out[
            :: -1 if rows.reverse else 1,
            :: -1 if columns.reverse else 1,
        ]
        wanted = samples.indices
        if isinstance(wanted, range):
            wanted_slice = slice(wanted.start, wanted.stop, wanted.step)
            result = result[:, :, wanted_slice][:, :, :: -1 if samples.reverse else 1]
        else:
            result = result[:, :, wanted]
        drop = tuple(0 if axis.drop else slice(None) for axis in (rows, columns, samples))
        return result[drop]

    def _points(self, parts: list[Any]) -> Pixels:
        """Read scattered pixels: only the tiles in which they lie."""
        for part, length in zip(parts, self.shape, strict=True):
            if not isinstance(part, slice):  # checked here, for messages that name the length
                Axis.of(part.ravel() if isinstance(part, np.ndarray) else part, length)
        rows, columns, samples = points(parts, self.shape)
        grid = self._layout.grid
        of_pixel = (rows // grid.tile_rows) * grid.shape[1] + columns // grid.tile_columns
        tiles, inverse = np.unique(of_pixel, return_inverse=True)
        inverse = inverse.reshape(of_pixel.shape)
        out = np.empty(rows.shape, self.dtype)

        def place(at: int, tile: Pixels | None) -> None:
            here = inverse == at
            if tile is None:
                out[here] = np.asarray(self._layout.background)[samples[here]]
            else:
                out[here] = tile[
                    rows[here] % grid.tile_rows, columns[here] % grid.tile_columns, samples[here]
                ]

        self._visit(tiles, place, None)
        return out

    def _tiles(self, key: Any) -> Pixels:
        """Read whole tiles: one, or a stack of them."""
        if isinstance(key, (list, range)):
            key = np.asarray(key)
        wanted = Axis.of(key, self.num_tiles)
        indices = np.asarray(wanted.indices, dtype=np.int64)
        indices = indices[::-1] if wanted.reverse else indices
        check_memory(
            len(indices) * self.tile_size * self.dtype.itemsize, f"a stack of {len(indices)} tiles"
        )
        out = np.empty((len(indices), *self.tile_shape), self.dtype)

        def place(at: int, tile: Pixels | None) -> None:
            out[at] = self._layout.background if tile is None else tile

        self._visit(indices, place, None)
        return out[0] if wanted.drop else out

    def _visit(self, tiles: NDArray[np.int64], place: Any, num_threads: int | None) -> None:
        """Call ``place(i, pixels)`` for each tile, with None for an absent one."""
        layout = self._layout
        channel = 0 if layout.is_label_map else self._channel_index
        frames = layout.frames.frames(channel, self._focal_plane_index, tiles).tolist()
        wanted = list(enumerate(frames))
        threads = num_threads or get_options().num_threads
        step = max(1, min(BATCH, -(-len(wanted) // threads)))
        batches = [wanted[i : i + step] for i in range(0, len(wanted), step)]

        def run(batch: list[tuple[int, int]]) -> None:
            for at, tile in self._decode(batch):
                place(at, tile)

        if threads > 1 and len(batches) > 1:
            for _ in _pool(threads).map(run, batches):
                pass
        else:
            for batch in batches:
                run(batch)

    def _decode(self, batch: list[tuple[int, int]]) -> Iterator[tuple[int, Pixels | None]]:
        """Yield the decoded tile of each (place, frame); None where it is background."""
        image = (self._source.identity, self._correct_color)
        missing = []
        for at, frame in batch:
            cached = None if frame < 0 else _frames.get(image, frame)
            if frame < 0 or cached is not None:
                yield at, cached
            else:
                missing.append((at, frame))
        if not missing:
            return
        transform = self._color_transform()
        buffers = self._read_frames([frame for _, frame in missing])
        for (at, frame), buffer in zip(missing, buffers, strict=True):
            tile = None if not buffer else self._decode_tile(frame, buffer, transform)
            if tile is not None:
                _frames.put(image, frame, tile, self._max_frame_cache_size)
            yield at, tile

    def _read_frames(self, frames: list[int]) -> list[bytes]:
        """Read frames; with ``on_error="fill"``, one by one if it must be."""
        try:
            buffers = self._source.read_frames(frames)
        except (FrameReadError, MetadataError) as error:
            if self._on_error == "raise":
                raise
            if len(frames) > 1:
                return [buffer for frame in frames for buffer in self._read_frames([frame])]
            self._warn(error)
            return [b""]
        if len(buffers) != len(frames):
            raise FrameReadError(
                f"{len(buffers)} frames came for {len(frames)} that were asked for",
                self._source.name,
            )
        return buffers

    def _decode_tile(
        self, frame: int, buffer: bytes, transform: ColorTransform | None
    ) -> Pixels | None:
        layout = self._layout
        try:
            tile = decode_frame(buffer, layout.pixel_format, layout.transfer_syntax_uid)
        except FrameError as error:
            located = error.located(self._source.name, frame)
            if self._on_error == "raise":
                raise located from error
            self._warn(located)
            return None
        if transform is not None:
            tile = transform(tile)
        if tile.shape != layout.pixel_format.shape:  # cropped at the edge of the matrix
            whole = np.empty(layout.pixel_format.shape, tile.dtype)
            whole[...] = layout.background
            whole[: tile.shape[0], : tile.shape[1]] = tile
            tile = whole
        return tile

    def _warn(self, error: Exception) -> None:
        warnings.warn(f"filled with background: {error}", FrameWarning, stacklevel=2)

    def _color_transform(self) -> ColorTransform | None:
        layout = self._layout
        if not self._correct_color or layout.pixel_format.dtype != np.uint8:
            return None
        if not layout.pixel_format.is_color:
            return None
        profile = layout.channels[self._channel_index].icc_profile
        if profile is None:
            profile = self._source.metadata.get("ICCProfile")
        return color_transform(bytes(profile), self._source.name) if profile else None

    # -- dask --

    def to_dask(self, chunks: Literal["frames", "auto"] | int = "frames") -> dask.array.Array:
        """Return the matrix as a dask array.

        Building it costs the same whatever the size of the slide, and computing a region
        reads that region's frames only.

        Parameters
        ----------
        chunks : {"frames", "auto"} or int, default: "frames"
            One frame a chunk; ``"auto"``, whole frames of about 2,048² pixels, which is faster
            wherever most of a level is read; or whole frames of at least so many pixels along
            an edge.

        Returns
        -------
        dask.array.Array
            Shape (rows, columns, samples).

        """
        import dask.array
        from dask.base import tokenize

        tile_rows, tile_columns, samples = self.tile_shape
        down, across = chunk_multiple(chunks, (tile_rows, tile_columns))
        return dask.array.from_array(
            ChunkReader(self),
            chunks=(down * tile_rows, across * tile_columns, samples),
            name=f"total-pixel-matrix-{tokenize(self, down, across)}",
            asarray=False,
            lock=False,
            meta=np.empty((0, 0, 0), self.dtype),
            inline_array=True,
        )


class ChunkReader:
    """What a task holds: reads in the task's own thread, each axis by its own key.

    Parameters
    ----------
    array : TotalPixelMatrix or alike
        Has `shape`, `dtype` and ``read(key, num_threads=...)``.

    """

    def __init__(self, array: Any) -> None:
        self.array = array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.array.shape  # type: ignore[no-any-return]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the array."""
        return self.array.dtype  # type: ignore[no-any-return]

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def __getitem__(self, key: tuple[Any, ...]) -> Pixels:
        parts = expand_key(key if isinstance(key, tuple) else (key,), self.ndim)
        return self.array.read(parts, num_threads=1)  # type: ignore[no-any-return]

    def __dask_tokenize__(self) -> Any:
        return self.array.__dask_tokenize__()


def _place(out: Pixels, row: Piece, column: Piece, tile: Pixels | tuple[float, ...]) -> None:
    """Put a tile's (or background's) part into the result."""
    slices = isinstance(row.target, slice) and isinstance(column.target, slice)
    if slices:
        target: Any = (row.target, column.target)
        source: Any = (row.source, column.source)
    else:
        target = np.ix_(_whole(row.target), _whole(column.target))
        source = np.ix_(_whole(row.source), _whole(column.source))
    out[target] = tile[source] if isinstance(tile, np.ndarray) else tile


def _whole(part: slice | NDArray[np.int64]) -> NDArray[np.int64]:
    return np.arange(part.start, part.stop, part.step or 1) if isinstance(part, slice) else part


def _pool(threads: int) -> ThreadPoolExecutor:
    # a forked child has the parent's pool but none of its threads, hence the process id
    return _pools.get(
        (os.getpid(), threads), lambda: ThreadPoolExecutor(threads, thread_name_prefix="dicomslide")
    )
