"""Reads the pixels of one channel and focal plane: tiles found, fetched, decoded and placed."""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dicomslide.cache import FrameCache, Registry
from dicomslide.codec import decode_frame
from dicomslide.color import ColorTransform, color_transform
from dicomslide.errors import FrameError, FrameReadError, FrameWarning, MetadataError
from dicomslide.indexing import Axis, Piece, expand_key, points
from dicomslide.layout import ImageLayout, read_layout
from dicomslide.options import check_memory, get_options

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence
    from typing import TypeAlias

    from numpy.typing import NDArray

    from dicomslide.backends.base import FrameSource
    from dicomslide.geometry import SlideGrid

    Pixels: TypeAlias = NDArray[Any]

__all__ = [
    "ChunkReader",
    "MatrixReader",
    "OnError",
    "check_on_error",
    "chunk_multiple",
    "layout_of",
]

OnError = Literal["raise", "fill"]

AUTO_CHUNK = 2048
"""Pixels along an edge that ``chunks="auto"`` comes near to."""
BATCH = 16
"""Frames that a thread reads at once."""

_layouts: Registry[tuple[Hashable, ...], ImageLayout] = Registry(1024)
_frames = FrameCache(lambda: get_options().frame_cache_bytes)
_pools: Registry[tuple[int, int], ThreadPoolExecutor] = Registry(1)


def layout_of(source: FrameSource) -> ImageLayout:
    """Return this process's layout of an image, worked out once."""

    def read() -> ImageLayout:
        return read_layout(
            source.metadata,
            source.transfer_syntax_uid,
            source.frame_positions(),
            source.name,
            source.frame_groups,
        )

    return _layouts.get(source.identity, read)


def check_on_error(on_error: str) -> None:
    """Raise a ValueError unless the value is one of :data:`OnError`."""
    if on_error not in ("raise", "fill"):
        raise ValueError(f'on_error must be "raise" or "fill", not {on_error!r}')


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


@dataclasses.dataclass(frozen=True)
class MatrixReader:
    """Reads pixels of one channel and focal plane of an image.

    Thin: its pickle holds what is given here. The layout is looked up, once a process, where
    pixels are read.
    """

    source: FrameSource
    channel_index: int = 0
    focal_plane_index: int = 0
    max_frame_cache_size: int = 9
    """Largest number of the image's decoded frames that the process keeps."""
    correct_color: bool = True
    """Whether colours are mapped to sRGB by the ICC profile of the optical path."""
    on_error: OnError = "raise"
    """Whether a bad frame raises, or is background with a warning."""
    as_labels: bool = False
    """Whether a label map gives its segment numbers, whatever the channel; else the pixels of
    the channel's segment are True."""

    @property
    def layout(self) -> ImageLayout:
        """What the header says of the pixels."""
        return layout_of(self.source)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, columns and samples of the matrix."""
        layout = self.layout
        return layout.grid.rows, layout.grid.columns, layout.pixel_format.samples

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the pixels."""
        return self.layout.pixel_format.dtype if self._label is None else np.dtype(np.bool_)

    @property
    def background(self) -> tuple[float, ...]:
        """Value of pixels of absent tiles, one number a sample."""
        background, label = self.layout.background, self._label
        return background if label is None else (background[0] == label,)

    @property
    def _label(self) -> int | None:
        """The value of the pixels that are the channel's segment, in a label map."""
        values = self.layout.label_values
        return None if self.as_labels or values is None else values[self.channel_index]

    @property
    def icc_profile(self) -> bytes | None:
        """ICC Profile of the optical path, or of the image; None where it isn't in colour."""
        layout = self.layout
        if not layout.pixel_format.is_color:
            return None
        profile = self.source.icc_profile(layout.channels[self.channel_index].item)
        profile = profile or self.source.icc_profile(self.source.metadata)
        return bytes(profile) if profile else None

    def __dask_tokenize__(self) -> tuple[Hashable, ...]:
        return (
            "dicomslide",
            self.source.identity,
            self.channel_index,
            self.focal_plane_index,
            self.correct_color,
            self.on_error,
            self.as_labels,
        )

    def frames_of(self, tiles: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the zero-based frame of each tile, −1 where a tile is absent."""
        layout = self.layout
        channel = 0 if layout.shares_frames else self.channel_index
        return layout.frames.frames(channel, self.focal_plane_index, tiles)

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
        layout = self.layout
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

        background = self.background

        def place(at: int, tile: Pixels | None) -> None:
            r, c = places[at]
            _place(out, r, c, background if tile is None else tile)

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

    def read_points(self, parts: list[Any]) -> Pixels:
        """Read scattered pixels as NumPy would pick them: only the tiles in which they lie."""
        for part, length in zip(parts, self.shape, strict=True):
            if not isinstance(part, slice):  # checked here, for messages that name the length
                Axis.of(part.ravel() if isinstance(part, np.ndarray) else part, length)
        indices = points(parts, self.shape)
        shape = indices[0].shape
        rows, columns, samples = (each.ravel() for each in indices)
        grid = self.layout.grid
        of_pixel = (rows // grid.tile_rows) * grid.shape[1] + columns // grid.tile_columns
        order = np.argsort(of_pixel, kind="stable")
        tiles, starts = np.unique(of_pixel[order], return_index=True)
        pixels_of = np.split(order, starts[1:])
        out = np.empty(rows.shape, self.dtype)
        background = np.asarray(self.background)

        def place(at: int, tile: Pixels | None) -> None:
            here = pixels_of[at]
            if tile is None:
                out[here] = background[samples[here]]
            else:
                out[here] = tile[
                    rows[here] % grid.tile_rows, columns[here] % grid.tile_columns, samples[here]
                ]

        self._visit(tiles, place, None)
        return out.reshape(shape)

    def read_tiles(self, key: Any) -> Pixels:
        """Read whole tiles: one, or a stack of them."""
        if isinstance(key, (list, range)):
            key = np.asarray(key) if len(key) else np.empty(0, np.int64)
        if isinstance(key, (bool, np.bool_)):
            raise IndexError("a single boolean isn't an index here; expected one for each tile")
        wanted = Axis.of(key, self.layout.grid.num_tiles)
        indices = np.asarray(wanted.indices, dtype=np.int64)
        indices = indices[::-1] if wanted.reverse else indices
        check_memory(
            len(indices) * math.prod(self.layout.pixel_format.shape) * self.dtype.itemsize,
            f"a stack of {len(indices)} tiles",
        )
        out = np.empty((len(indices), *self.layout.pixel_format.shape), self.dtype)
        background = self.background

        def place(at: int, tile: Pixels | None) -> None:
            out[at] = background if tile is None else tile

        self._visit(indices, place, None)
        return out[0] if wanted.drop else out

    def read_grid(self, grid: SlideGrid) -> Pixels:
        """Read the pixels of a grid, which may reach outside of the matrix: there is background.

        Parameters
        ----------
        grid : SlideGrid
            Which pixels; along an axis, those inside of the matrix have to be one run.

        Returns
        -------
        numpy.ndarray
            Shape (rows, columns, samples) of the grid.

        """
        rows, columns, samples = self.shape
        shape = (*grid.shape, samples)
        check_memory(math.prod(shape) * self.dtype.itemsize, f"a region of shape {shape}")
        in_rows = (grid.rows >= 0) & (grid.rows < rows)
        in_columns = (grid.columns >= 0) & (grid.columns < columns)
        oblique = grid.rows.ndim == 2
        if in_rows.all() and in_columns.all() and not oblique:  # no need of background
            pixels = self._read_runs(grid.rows, grid.columns)
            return np.ascontiguousarray(pixels.swapaxes(0, 1) if grid.transpose else pixels)
        out = np.empty(shape, self.dtype)
        out[...] = self.layout.background
        if oblique:
            inside = in_rows & in_columns
            out[inside] = self.read_points([grid.rows[inside], grid.columns[inside], slice(None)])
        elif in_rows.any() and in_columns.any():
            stored = out.swapaxes(0, 1) if grid.transpose else out
            pixels = self._read_runs(grid.rows[in_rows], grid.columns[in_columns])
            top, left = int(np.argmax(in_rows)), int(np.argmax(in_columns))
            stored[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
        return out

    def _read_runs(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Pixels:
        return self.read((_as_slice(rows), _as_slice(columns), slice(None)))

    def _visit(
        self,
        tiles: NDArray[np.int64],
        place: Callable[[int, Pixels | None], None],
        num_threads: int | None,
    ) -> None:
        """Call ``place(i, pixels)`` for each tile, with None for an absent one."""
        wanted = list(enumerate(self.frames_of(tiles).tolist()))
        threads = num_threads or get_options().num_threads
        step = max(1, min(BATCH, -(-len(wanted) // threads)))
        batches = [wanted[i : i + step] for i in range(0, len(wanted), step)]

        label = self._label

        def run(batch: list[tuple[int, int]]) -> None:
            for at, tile in self._decode(batch):
                place(at, tile if tile is None or label is None else tile == label)

        if threads > 1 and len(batches) > 1:
            for _ in _pool(threads).map(run, batches):
                pass
        else:
            for batch in batches:
                run(batch)

    def _decode(self, batch: list[tuple[int, int]]) -> Iterator[tuple[int, Pixels | None]]:
        """Yield the decoded tile of each (place, frame); None where it is background."""
        image = (self.source.identity, self.correct_color)
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
                _frames.put(image, frame, tile, self.max_frame_cache_size)
            yield at, tile

    def _read_frames(self, frames: list[int]) -> list[bytes]:
        """Read frames; with ``on_error="fill"``, one by one if it must be."""
        try:
            buffers = self.source.read_frames(frames)
        except (FrameReadError, MetadataError) as error:
            if self.on_error == "raise":
                raise
            if len(frames) > 1:
                return [buffer for frame in frames for buffer in self._read_frames([frame])]
            self._warn(error)
            return [b""]
        if len(buffers) != len(frames):
            raise FrameReadError(
                f"{len(buffers)} frames came for {len(frames)} that were asked for",
                self.source.name,
            )
        return buffers

    def _decode_tile(
        self, frame: int, buffer: bytes, transform: ColorTransform | None
    ) -> Pixels | None:
        layout = self.layout
        try:
            tile = decode_frame(buffer, layout.pixel_format, layout.transfer_syntax_uid)
        except FrameError as error:
            located = error.located(self.source.name, frame)
            if self.on_error == "raise":
                raise located from error
            self._warn(located)
            return None
        if transform is not None:
            tile = transform(tile)
        if tile.shape != layout.pixel_format.shape:  # cropped at the edge of the matrix
            whole = np.empty(layout.pixel_format.shape, tile.dtype)
            whole[...] = layout.background
            whole[: tile.shape[0], : tile.shape[1]] = tile
            self._warn_of_lost_pixels(frame, tile.shape[:2])
            tile = whole
        return tile

    def _warn(self, error: Exception) -> None:
        warnings.warn(f"filled with background: {error}", FrameWarning, stacklevel=2)

    def _warn_of_lost_pixels(self, frame: int, shape: tuple[int, ...]) -> None:
        """Warn where a cropped frame doesn't reach to the edge of the matrix."""
        grid = self.layout.grid
        (tile,) = self.layout.frames.places(np.array([frame]))[2].tolist()
        row, column = grid.position(tile)
        needed = (
            min(grid.tile_rows, grid.rows - row * grid.tile_rows),
            min(grid.tile_columns, grid.columns - column * grid.tile_columns),
        )
        if shape[0] < needed[0] or shape[1] < needed[1]:
            reason = f"its codestream holds {shape[0]} × {shape[1]} pixels of {needed}"
            self._warn(FrameReadError(reason, self.source.name, frame))

    def _color_transform(self) -> ColorTransform | None:
        if not self.correct_color or self.layout.pixel_format.dtype != np.uint8:
            return None
        profile = self.icc_profile
        return None if profile is None else color_transform(profile, self.source.name)


class ChunkReader:
    """What a task holds: reads in the task's own thread, each axis by its own key.

    Parameters
    ----------
    array : MatrixReader or alike
        Has `shape`, `dtype` and ``read(key, num_threads=...)``.

    """

    def __init__(self, array: Any) -> None:
        self.array = array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the array."""
        return self.array.dtype

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def __getitem__(self, key: tuple[Any, ...]) -> Pixels:
        parts = expand_key(key if isinstance(key, tuple) else (key,), self.ndim)
        return self.array.read(parts, num_threads=1)

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


def _as_slice(indices: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    """Return evenly spaced indices as a slice, which reads without a copy."""
    if not indices.size:
        return slice(0)
    step = int(indices[1] - indices[0]) if len(indices) > 1 else 1
    if step == 0 or np.any(np.diff(indices) != step):
        return indices
    stop = int(indices[-1]) + step
    return slice(int(indices[0]), None if stop < 0 else stop, step)


def _pool(threads: int) -> ThreadPoolExecutor:
    # a forked child has the parent's pool but none of its threads, hence the process id
    return _pools.get(
        (os.getpid(), threads), lambda: ThreadPoolExecutor(threads, thread_name_prefix="dicomslide")
    )
