"""Pixels of one channel and focal plane of an image, read by index from its frames."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.backends.base import kept_as, layout_of
from dicomslide.header.scaling import Scaling, scaling_of
from dicomslide.options import allocated, check_memory
from dicomslide.pixels import DECODERS, JPEG_BASELINE
from dicomslide.pixels.color import ColorTransform, color_transform
from dicomslide.process.lazy import lazy, lazy_once
from dicomslide.readers.frame_reader import FrameReader, OnError
from dicomslide.readers.indexing import Axis, Piece, points
from dicomslide.readers.trails import trail_of

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence
    from typing import TypeAlias

    from numpy.typing import NDArray

    from dicomslide.backends.base import FrameSource
    from dicomslide.header.geometry import SlideGrid
    from dicomslide.header.layout import ImageLayout
    from dicomslide.process.frame_cache import FrameCache

    Pixels: TypeAlias = NDArray[Any]
    Meeting: TypeAlias = tuple[Any, Any]
    """Keys of the same pixels in the result and in a tile."""

__all__ = ["MatrixReader", "OnError", "as_contiguous", "check_on_error", "picked",
           "pixel_assignment"]  # fmt: skip

ROWS_AT_ONCE = 64
"""Rows of a frame that are transposed or flipped together: those of frames of 256² are 48 KB."""


def check_on_error(on_error: str) -> None:
    """Raise a ValueError unless the value is one of :data:`OnError`."""
    if on_error not in ("raise", "fill"):
        raise ValueError(f'on_error must be "raise" or "fill", not {on_error!r}')


@dataclasses.dataclass(frozen=True)
class MatrixReader:
    """Reader of one channel and focal plane of an image.

    Its pickle holds its parameters only. The layout is read from the header once in each process,
    when it is first needed.
    """

    source: FrameSource
    channel_index: int = 0
    focal_plane_index: int = 0
    max_frame_cache_size: int | None = None
    """Upper bound on the decoded frames of the image that the process caches. With None,
    frames are bounded by ``frame_cache_bytes`` only."""
    correct_color: bool = True
    """Whether colours are mapped to sRGB by the ICC profile of the optical path."""
    on_error: OnError = "raise"
    """Whether a bad frame raises, or is replaced by background with a warning."""
    as_labels: bool = False
    """Whether pixels of a label map are segment numbers, independently of the channel; else they
    are True where the segment of the channel is."""
    frame_cache: FrameCache[np.ndarray] | None = dataclasses.field(
        default=None, compare=False, repr=False
    )
    """Cache of decoded frames, used up to its own bound; None for that of the process. It isn't
    pickled."""

    scaled: bool = False
    """Whether pixels are fractions or real world values; else they are as stored."""
    reduction: int = 0
    """Number of times that the decoder halves rows and columns of the matrix and its tiles."""

    def __getstate__(self) -> dict[str, Any]:
        state = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return state | {"frame_cache": None}

    @lazy
    def layout(self) -> ImageLayout:
        """Layout of the image, at the reduction."""
        layout = layout_of(self.source)
        return layout.halved(self.reduction) if self.reduction else layout

    @lazy
    def shape(self) -> tuple[int, int, int]:
        """Rows, columns and samples of the matrix."""
        layout = self.layout
        return layout.grid.rows, layout.grid.columns, layout.pixel_format.samples

    @property
    def tile_shape(self) -> tuple[int, int]:
        """Rows and columns of a tile."""
        return self._tile_shape[:2]

    @lazy
    def dtype(self) -> np.dtype[Any]:
        """Data type of the pixels."""
        if self.scaling is not None:
            return self.scaling.dtype
        return self.layout.pixel_format.dtype if self._label is None else np.dtype(np.bool_)

    @lazy
    def background(self) -> tuple[float, ...]:
        """Value of pixels of absent tiles, one number per sample."""
        background, label = self.layout.background, self._label
        if self.scaling is not None:
            return (self.scaling.absent,)
        return background if label is None else (background[0] == label,)

    @lazy
    def scaling(self) -> Scaling | None:
        """Map from stored values to fractions or real world values; None for stored values."""
        if not self.scaled:
            return None
        layout = self.layout
        channel = layout.channels[self.channel_index]
        return scaling_of(self.source.metadata, channel, layout.pixel_format)

    @lazy
    def _label(self) -> int | None:
        """Value of the channel's segment in a label map; None for other images."""
        values = self.layout.label_values
        return None if self.as_labels or values is None else values[self.channel_index]

    @lazy
    def frames(self) -> FrameReader:
        """Reader of the frames."""
        return FrameReader(
            self.source,
            layout_of(self.source),
            reduction=self.reduction,
            max_frame_cache_size=self.max_frame_cache_size,
            on_error=self.on_error,
            cache=self.frame_cache,
        )

    @property
    def icc_profile(self) -> bytes | None:
        """ICC Profile of the optical path, or of the image; None without one, or without colour."""
        layout = self.layout
        if not layout.pixel_format.is_color:
            return None
        profile = self.source.icc_profile(layout.channels[self.channel_index].item)
        profile = profile or self.source.icc_profile(self.source.metadata)
        return bytes(profile) if profile else None

    @lazy_once
    def _transform(self) -> ColorTransform | None:
        if not self.correct_color or self.layout.pixel_format.dtype != np.uint8:
            return None
        profile = self.icc_profile
        return None if profile is None else color_transform(profile, self.source.name)

    def __dask_tokenize__(self) -> tuple[Hashable, ...]:
        return (
            "dicomslide",
            self.source.identity,
            self.channel_index,
            self.focal_plane_index,
            self.correct_color,
            self.on_error,
            self.as_labels,
            self.scaled,
            self.reduction,
        )

    @property
    def most_reduction(self) -> int:
        """Largest reduction that saves time and divides the size of tiles without a remainder.

        It is 0 for labels, and where pixels are fractions or real world values.
        """
        layout = layout_of(self.source)
        if layout.pixel_format.dtype.kind != "u" or self.as_labels or self.scaling is not None:
            return 0
        decoder = DECODERS.get(layout.transfer_syntax_uid or JPEG_BASELINE)
        most = 0 if decoder is None or self._label is not None else decoder.most_reduction
        edges = math.gcd(layout.grid.tile_rows, layout.grid.tile_columns)
        return min(most, (edges & -edges).bit_length() - 1)

    def of_channel(self, further: int) -> MatrixReader:
        """Return the reader of the channel `further` positions after this one, in this image."""
        return dataclasses.replace(self, channel_index=self.channel_index + further)

    def as_meant(self) -> MatrixReader:
        """Return the reader of fractions or real world values instead of stored values."""
        return dataclasses.replace(self, scaled=True)

    def frames_of(self, tiles: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the zero-based frame of each tile, −1 where a tile is absent."""
        layout = self.layout
        channel = 0 if layout.shares_frames else self.channel_index
        return layout.frames.frames(channel, self.focal_plane_index, tiles)

    def tiles_with_frames(self) -> NDArray[np.int64]:
        """Return the tiles that have frames, ascending, in time proportional to the frames."""
        layout = self.layout
        channel, plane, tile = layout.frames.locate(np.arange(layout.num_frames))
        of_channel = channel == (0 if layout.shares_frames else self.channel_index)
        return np.unique(tile[of_channel & (plane == self.focal_plane_index)])

    def read(
        self,
        key: Sequence[Any],
        *,
        transpose: bool = False,
        threads: int | None = None,
        keep: bool = True,
        contiguous: bool = False,
    ) -> Pixels:
        """Read the pixels that a key for each axis selects, independently of the others.

        Parameters
        ----------
        key : sequence
            For rows, columns and samples: an integer (which drops its axis), a slice, or a
            one-dimensional array of integers or booleans.
        transpose : bool, default: False
            Whether columns come before rows in the result.
        threads : int, optional
            Number of threads that fetch and decode, including the calling one; by default the
            option ``num_threads``.
        keep : bool, default: True
            Whether decoded frames may be cached for later reads.
        contiguous : bool, default: False
            Whether the result is contiguous in memory, for callers that concatenate it or pass it
            to code that requires that (PyTorch). Otherwise it may be a transposed or flipped view.

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
        shape = len(rows), len(columns), self.shape[2]
        what = f"{self.source.name}: a region of {shape[0]} × {shape[1]} pixels"
        check_memory(math.prod(shape) * self.dtype.itemsize, what)
        frames, places = self._meetings(rows, columns)
        turns = transpose or rows.reverse or columns.reverse
        slices = isinstance(rows.indices, range) and isinstance(columns.indices, range)
        is_tile = slices and len(frames) == 1 and shape == self._tile_shape
        if keep and threads != 1:
            self._look_ahead(rows.indices, columns.indices, len(frames))
        if is_tile and not (contiguous and turns):  # no copy
            out = _turned(self._owned(self.frames.single(frames[0], keep=keep)), rows, columns)
        else:
            if contiguous and transpose:
                memory = allocated((shape[1], shape[0], shape[2]), self.dtype, what).swapaxes(0, 1)
            else:
                memory = allocated(shape, self.dtype, what)
            turned = _turned(memory, rows, columns)
            stored, out = (turned, memory) if contiguous else (memory, turned)
            place = self._placing(places, stored)
            self.frames.visit(frames, place, threads=threads, keep=keep)
        return picked(out, (rows, columns, samples), transpose=transpose, contiguous=contiguous)

    def frames_within(self, key: Sequence[Any]) -> list[int]:
        """Return the frames of the tiles that a key for rows, columns and samples meets."""
        rows, columns, _ = (
            Axis.of(part, length) for part, length in zip(key, self.shape, strict=True)
        )
        frames, _ = self._meetings(rows, columns)
        return [frame for frame in frames if frame >= 0]

    def _look_ahead(
        self, rows: range | NDArray[np.int64], columns: range | NDArray[np.int64], frames: int
    ) -> None:
        """Have the frames decoded of boxes that are probably read after this one.

        Parameters
        ----------
        rows, columns : range or numpy.ndarray
            The box; nothing is foreseen after scattered ones.
        frames : int
            Number of frames that it touches.

        """
        if not (isinstance(rows, range) and isinstance(columns, range) and frames):
            return
        steps = self.frames.steps_ahead(frames)
        if steps:
            matrix = self.channel_index, self.focal_plane_index, self.reduction
            trail = trail_of((kept_as(self.source), matrix))
            tiles = trail.follow(rows, columns, steps, self.layout.grid)
            if tiles is not None:
                self.frames.look_ahead(self.frames_of(tiles).tolist() if tiles.size else ())

    def _meetings(self, rows: Axis, columns: Axis) -> tuple[list[int], list[Meeting]]:
        """Return the frames of rows and columns, and keys of the pixels of each."""
        grid = self.layout.grid
        down = list(rows.pieces(grid.tile_rows))
        right = list(columns.pieces(grid.tile_columns))
        tiles = np.add.outer(
            np.array([piece.tile for piece in down], np.int64) * grid.shape[1],
            np.array([piece.tile for piece in right], np.int64),
        )
        frames = self.frames_of(tiles.ravel()).tolist()
        return frames, [_meeting(r, c) for r in down for c in right]

    def _placing(self, places: list[Meeting], out: Pixels) -> Callable[[int, Pixels | None], None]:
        """Return a function that copies pixels of a frame to an array in stored orientation."""
        assign = pixel_assignment(out)

        def place(at: int, tile: Pixels | None) -> None:
            target, source = places[at]
            if tile is None:
                out[target] = self.background
            else:
                assign(target, self.part(tile, source))

        return place

    def read_points(self, parts: list[Any]) -> Pixels:
        """Read scattered pixels, selected as by NumPy; only the tiles that hold them are read."""
        for part, length in zip(parts, self.shape, strict=True):
            if not isinstance(part, slice):  # so that messages name the length
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
                where = rows[None, here] % grid.tile_rows, columns[None, here] % grid.tile_columns
                out[here] = self.part(tile, where)[0, np.arange(len(here)), samples[here]]

        self.frames.visit(self.frames_of(tiles).tolist(), place)
        return out.reshape(shape)

    def read_tiles(self, key: Any) -> Pixels:
        """Read one whole tile, or a stack of tiles."""
        if isinstance(key, (list, range)):
            key = np.asarray(key) if len(key) else np.empty(0, np.int64)
        if isinstance(key, (bool, np.bool_)):
            raise IndexError("a single boolean isn't an index here; expected one for each tile")
        wanted = Axis.of(key, self.layout.grid.num_tiles)
        indices = np.asarray(wanted.indices, dtype=np.int64)
        indices = indices[::-1] if wanted.reverse else indices
        shape = (len(indices), *self._tile_shape)
        what = f"{self.source.name}: a stack of {len(indices)} tiles"
        check_memory(math.prod(shape) * self.dtype.itemsize, what)
        frames = self.frames_of(indices).tolist()
        if wanted.drop:
            return self._owned(self.frames.single(frames[0]))
        out = allocated(shape, self.dtype, what)

        def place(at: int, tile: Pixels | None) -> None:
            out[at] = self.background if tile is None else self.part(tile, ...)

        self.frames.visit(frames, place)
        return out

    def iterate(self) -> Iterator[Pixels]:
        """Yield each tile in order; tiles are fetched in batches and not cached."""
        num_tiles = self.layout.grid.num_tiles
        batch = self.frames.batch
        for start in range(0, num_tiles, batch):
            frames = self.frames_of(np.arange(start, min(start + batch, num_tiles))).tolist()
            for tile in self.frames.stream(frames):
                yield self._owned(tile)

    def read_box(self, offset: tuple[int, int], size: tuple[int, int]) -> Pixels:
        """Read the pixels of a box, with background outside the matrix.

        Parameters
        ----------
        offset : tuple of int
            (row, column) of the first pixel.
        size : tuple of int
            Number of rows and columns.

        Returns
        -------
        numpy.ndarray
            Shape (rows, columns, samples) of the box.

        """
        shape = (*size, self.shape[2])
        first = max(0, offset[0]), max(0, offset[1])
        last = min(offset[0] + size[0], self.shape[0]), min(offset[1] + size[1], self.shape[1])
        inside = max(0, last[0] - first[0]), max(0, last[1] - first[1])
        down, right = (Axis(range(*ends)) for ends in zip(first, last, strict=True))
        frames, places = self._meetings(down, right)
        rows, columns = (range(at, at + n) for at, n in zip(offset, size, strict=True))
        self._look_ahead(rows, columns, len(frames))
        if inside == size == self._tile_shape[:2] and len(frames) == 1:
            return self._owned(self.frames.single(frames[0]))  # no copy
        what = f"{self.source.name}: a region of {size[0]} × {size[1]} pixels"
        out = allocated(shape, self.dtype, what)
        if inside != size:
            out[...] = self.layout.background
        if all(inside):
            top, left = first[0] - offset[0], first[1] - offset[1]
            stored = out[top : top + inside[0], left : left + inside[1]]
            self.frames.visit(frames, self._placing(places, stored))
        return out

    def read_grid(self, grid: SlideGrid) -> Pixels:
        """Read the pixels of a grid, with background outside the matrix.

        Parameters
        ----------
        grid : SlideGrid
            The pixels; along an axis, those within the matrix must be consecutive.

        Returns
        -------
        numpy.ndarray
            Shape (rows, columns, samples) of the grid.

        """
        rows, columns, samples = self.shape
        shape = (*grid.shape, samples)
        out = allocated(shape, self.dtype, f"{self.source.name}: a region of shape {shape}")
        in_rows = (grid.rows >= 0) & (grid.rows < rows)
        in_columns = (grid.columns >= 0) & (grid.columns < columns)
        oblique = grid.rows.ndim == 2
        if oblique or not (in_rows.all() and in_columns.all()):
            out[...] = self.layout.background
        if oblique:
            inside = in_rows & in_columns
            out[inside] = self.read_points([grid.rows[inside], grid.columns[inside], slice(None)])
            return out
        down = Axis.of(_as_slice(grid.rows[in_rows]), rows)
        right = Axis.of(_as_slice(grid.columns[in_columns]), columns)
        if len(down) and len(right):
            top, left = int(np.argmax(in_rows)), int(np.argmax(in_columns))
            stored = out.swapaxes(0, 1) if grid.transpose else out
            inner = stored[top : top + len(down), left : left + len(right)]
            frames, places = self._meetings(down, right)
            self._look_ahead(down.indices, right.indices, len(frames))
            self.frames.visit(frames, self._placing(places, _turned(inner, down, right)))
        return out

    @property
    def _tile_shape(self) -> tuple[int, int, int]:
        return self.layout.pixel_format.shape

    def _owned(self, tile: Pixels | None) -> Pixels:
        """Return a whole tile of a stream, in the form that users see; background if absent."""
        if tile is not None:
            return self.part(tile, ...)
        background = allocated(self._tile_shape, self.dtype, f"{self.source.name}: a tile")
        background[...] = self.background
        return background

    def part(self, tile: Pixels, where: Any) -> Pixels:
        """Return pixels of a decoded tile in the form that users see: see :attr:`_shown`."""
        shown = self._shown
        if tile.shape == self._tile_shape:
            return tile[where] if shown is None else shown(tile[where])
        if shown is not None:
            tile = shown(tile)
        # cropped at the edge of the matrix, or smaller than the header says
        if where is ...:
            where = slice(None), slice(None)
        rows, columns = (
            np.arange(length)[part] if isinstance(part, slice) else part
            for part, length in zip(where, self._tile_shape[:2], strict=True)
        )
        if rows.ndim == columns.ndim == 1:
            rows, columns = np.ix_(rows, columns)
        shape = (*np.broadcast_shapes(rows.shape, columns.shape), self._tile_shape[2])
        out = allocated(shape, self.dtype, f"{self.source.name}: part of a tile")
        out[...] = self.background
        inside = (rows < tile.shape[0]) & (columns < tile.shape[1])
        rows, columns = np.broadcast_arrays(rows, columns)
        out[inside] = tile[rows[inside], columns[inside]]
        return out

    @lazy
    def _shown(self) -> Callable[[Pixels], Pixels] | None:
        """Map to sRGB, to real world values or to a segment's mask; None for stored values."""
        if self.scaling is not None:
            return self.scaling.apply
        label = self._label
        return self._transform if label is None else lambda pixels: pixels == label


def picked(out: Pixels, axes: Sequence[Axis], *, transpose: bool, contiguous: bool) -> Pixels:
    """Return the selected samples of a region, in the order and type of memory of the result.

    Parameters
    ----------
    out : numpy.ndarray
        Shape (rows, columns, samples): the selected rows and columns in order, and all samples.
    axes : sequence of Axis
        Keys of rows, columns and samples.
    transpose, contiguous : bool
        See :meth:`MatrixReader.read`.

    """
    rows, columns, samples = axes
    out = out.swapaxes(0, 1) if transpose else out
    wanted = samples.indices
    if isinstance(wanted, range):
        wanted_slice = slice(wanted.start, wanted.stop, wanted.step)
        out = out[:, :, wanted_slice][:, :, :: -1 if samples.reverse else 1]
    else:
        out = out[:, :, wanted]
    order = (columns, rows, samples) if transpose else (rows, columns, samples)
    out = out[tuple(0 if axis.drop else slice(None) for axis in order)]
    return as_contiguous(out) if contiguous else out


def as_contiguous(array: Pixels) -> Pixels:
    """Return a C-contiguous array without negative strides, copied if necessary.

    NumPy counts a reversed axis of length one as contiguous, PyTorch doesn't.
    """
    fits = array.flags.c_contiguous and all(stride >= 0 for stride in array.strides)
    return array if fits else array.copy()


def _turned(array: Pixels, rows: Axis, columns: Axis) -> Pixels:
    return array[:: -1 if rows.reverse else 1, :: -1 if columns.reverse else 1]


def pixel_assignment(out: Pixels) -> Callable[[Any, Pixels], None]:
    """Return a function that assigns pixels to parts of an array, sample by sample if faster.

    It is where the array is transposed or flipped: NumPy copies the three bytes of a pixel in a
    loop of their own, which takes twice to three times as long. Rows are copied in groups that stay
    in the processor's cache from sample to sample.
    """
    samples, itemsize = out.shape[2], out.itemsize
    if samples == 1 or out.strides[1] == samples * itemsize or out.strides[2] != itemsize:
        return out.__setitem__

    def assign(target: Any, part: Pixels) -> None:
        if not all(isinstance(each, slice) for each in target):
            out[target] = part
            return
        inner = out[target]
        for top in range(0, len(part), ROWS_AT_ONCE):
            rows = slice(top, top + ROWS_AT_ONCE)
            for sample in range(samples):
                inner[rows, :, sample] = part[rows, :, sample]

    return assign


def _meeting(row: Piece, column: Piece) -> Meeting:
    """Return the keys of pixels of a tile, in the result and in the tile."""
    if isinstance(row.target, slice) and isinstance(column.target, slice):
        return (row.target, column.target), (row.source, column.source)
    return (
        np.ix_(_whole(row.target), _whole(column.target)),
        np.ix_(_whole(row.source), _whole(column.source)),
    )


def _whole(part: slice | NDArray[np.int64]) -> NDArray[np.int64]:
    return np.arange(part.start, part.stop, part.step or 1) if isinstance(part, slice) else part


def _as_slice(indices: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    """Return evenly spaced indices as a slice, for which NumPy makes no copy."""
    if not indices.size:
        return slice(0)
    step = int(indices[1] - indices[0]) if len(indices) > 1 else 1
    if step == 0 or np.any(np.diff(indices) != step):
        return indices
    stop = int(indices[-1]) + step
    return slice(int(indices[0]), None if stop < 0 else stop, step)
