"""Channels and focal planes as one upright array, from which labelled datasets are read."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dicomslide.options import check_memory, get_options
from dicomslide.readers.chunks import frame_lengths
from dicomslide.readers.indexing import Axis
from dicomslide.readers.matrix_reader import MatrixReader, as_contiguous
from dicomslide.readers.pools import Shared, helped
from dicomslide.readers.resampled_reader import ResampledReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from dicomslide.backends.base import FrameSource
    from dicomslide.header.geometry import Orientation

__all__ = ["Data", "PlaneReader", "Row", "StackedReader", "runs_of", "turned"]

Data: TypeAlias = "Callable[[StackedReader, Sequence[str]], Any]"
"""Makes the data of a variable from its reader and the names of its dims."""
PlaneReader: TypeAlias = MatrixReader | ResampledReader
"""Reader of one channel and focal plane."""
Row: TypeAlias = tuple[PlaneReader | None, ...]
"""Readers of a channel by focal plane; None for planes without pixels."""


@dataclasses.dataclass(frozen=True)
class StackedReader:
    """Reader of several channels and focal planes as one array, with the dims of the tree.

    Each axis takes an independent key: an integer, a slice or an array. The pickle holds readers
    and the parameters below.
    """

    runs: tuple[tuple[Row, int], ...]
    """Runs of consecutive channels of the same images: the readers of the first channel, and the
    number of channels (see :func:`runs_of`)."""
    orientation: Orientation
    """Transposition and flips from the matrix to the upright array."""
    kept: tuple[bool, bool, bool]
    """Whether there are the dims channel, z and sample."""
    matrix_shape: tuple[int, int, int]
    """Rows, columns and samples of each matrix."""
    tile_shape: tuple[int, int]
    """Rows and columns of a tile."""
    dtype: np.dtype[Any]
    background: tuple[float, ...]

    @property
    def stack_shape(self) -> tuple[int, int]:
        """Number of channels and of focal planes."""
        return sum(count for _, count in self.runs), len(self.runs[0][0])

    def reader(self, channel: int, plane: int) -> PlaneReader | None:
        """Return the reader of a channel and focal plane; None without pixels."""
        for row, count in self.runs:
            if channel < count:
                return _moved(row[plane], channel)
            channel -= count
        raise IndexError(f"no channel {channel} beyond the last")

    @property
    def plane_shape(self) -> tuple[int, int]:
        """Lengths of the dims y and x."""
        rows, columns, _ = self.matrix_shape
        return (columns, rows) if self.orientation.transpose else (rows, columns)

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each dim."""
        lengths = zip(self.stack_shape, self.kept[:2], strict=True)
        stack = [length for length, kept in lengths if kept]
        return (*stack, *self.plane_shape, *((self.matrix_shape[2],) if self.kept[2] else ()))

    def __dask_tokenize__(self) -> Any:
        return (
            "dicomslide.StackedReader",
            tuple(
                (tuple(None if reader is None else reader.__dask_tokenize__() for reader in row), n)
                for row, n in self.runs
            ),
            dataclasses.astuple(self.orientation),
            self.kept,
        )

    def read(
        self,
        key: Sequence[Any],
        *,
        threads: int | None = None,
        keep: bool = True,
        contiguous: bool = False,
    ) -> NDArray[Any]:
        """Read the pixels that a key for each dim selects, independently of the others.

        See :meth:`MatrixReader.read`.
        """
        channel, plane, matrix_key = self._resolved(key)
        transpose = self.orientation.transpose
        lengths = [Axis.of(k, n) for k, n in zip(matrix_key, self.matrix_shape, strict=True)]
        upright = [lengths[1], lengths[0], lengths[2]] if transpose else lengths
        shape = tuple(len(axis) for axis in upright if not axis.drop)
        check_memory(
            len(channel) * len(plane) * math.prod(shape) * self.dtype.itemsize,
            f"{len(channel) * len(plane)} regions of {shape}",
        )

        places = list(itertools.product(_ordered(channel), _ordered(plane)))
        lead = [len(axis) for axis in (channel, plane) if not axis.drop]
        read = {"transpose": transpose, "keep": keep}
        if len(places) == 1:
            reader = self.reader(*places[0])
            if reader is None:
                region = self._absent(shape)
            else:
                region = reader.read(matrix_key, threads=threads, contiguous=contiguous, **read)
            stack = region.reshape((*lead, *region.shape))
            return as_contiguous(stack) if contiguous else stack
        stack = np.empty((len(places), *shape), self.dtype)
        threads = get_options().num_threads if threads is None else threads
        # planes side by side where there is one for each thread: threads then wait for no other
        at_once = threads if len(places) >= threads else 1
        of_each = 1 if at_once > 1 else threads
        numbers = Shared(iter(range(len(places))))

        def work() -> None:
            try:
                while (number := numbers.take()) is not None:
                    reader = self.reader(*places[number])
                    if reader is None:
                        stack[number] = self._absent(shape)
                    else:
                        stack[number] = reader.read(matrix_key, threads=of_each, **read)
            except BaseException:  # the other threads needn't go on
                numbers.close()
                raise

        with helped(work, calls=at_once - 1, pool_size=threads - 1):
            work()
        return stack.reshape((*lead, *shape))

    def frames_of(self, key: Sequence[Any]) -> Iterator[tuple[FrameSource, list[int]]]:
        """Yield the source and the frames of each matrix that a key for each dim needs.

        Resampled matrices are left out.
        """
        channel, plane, matrix_key = self._resolved(key)
        for place in itertools.product(_ordered(channel), _ordered(plane)):
            reader = self.reader(*place)
            if isinstance(reader, MatrixReader):
                yield reader.source, reader.frames_within(matrix_key)

    def _resolved(self, key: Sequence[Any]) -> tuple[Axis, Axis, tuple[Any, Any, Any]]:
        """Return the channels, the focal planes, and the key of each matrix as stored."""
        keys = list(key)
        num_channels, num_planes = self.stack_shape
        channel = Axis.of(keys.pop(0) if self.kept[0] else 0, num_channels)
        plane = Axis.of(keys.pop(0) if self.kept[1] else 0, num_planes)
        height, width = self.plane_shape
        y = turned(keys.pop(0), height, self.orientation.flip_y)
        x = turned(keys.pop(0), width, self.orientation.flip_x)
        sample = keys.pop(0) if self.kept[2] else 0
        return channel, plane, (x, y, sample) if self.orientation.transpose else (y, x, sample)

    def _absent(self, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return the pixels of a region of a focal plane without pixels."""
        region = np.empty(shape, self.dtype)
        region[...] = self.background if region.ndim == 3 else self.background[0]
        return region

    @property
    def flipped(self) -> tuple[bool, ...]:
        """Whether each dim runs against that of the matrix."""
        return (
            *(False for kept in self.kept[:2] if kept),
            self.orientation.flip_y,
            self.orientation.flip_x,
            *((False,) if self.kept[2] else ()),
        )

    def unit_lengths(self) -> tuple[tuple[int, ...], ...]:
        """Return the lengths of frames along y and x, and ones along channels and focal planes."""
        rows, columns, samples = self.matrix_shape
        down, right = (
            frame_lengths(rows, self.tile_shape[0]),
            frame_lengths(columns, self.tile_shape[1]),
        )
        y, x = (right, down) if self.orientation.transpose else (down, right)
        lengths = zip(self.stack_shape, self.kept[:2], strict=True)
        ones = [(1,) * n for n, kept in lengths if kept]
        return (
            *ones,
            y[::-1] if self.orientation.flip_y else y,
            x[::-1] if self.orientation.flip_x else x,
            *(((samples,),) if self.kept[2] else ()),
        )


def runs_of(rows: Sequence[Row]) -> tuple[tuple[Row, int], ...]:
    """Group channels that are consecutive in the same images.

    A segmentation may have thousands of channels, and each dask task holds a reader of all.

    Parameters
    ----------
    rows : sequence of Row
        The readers of each channel.

    Returns
    -------
    tuple of (Row, int)
        The readers of the first channel of each run, and its length.

    """
    runs: list[tuple[Row, int]] = []
    for row in rows:
        if runs and row == tuple(_moved(reader, runs[-1][1]) for reader in runs[-1][0]):
            runs[-1] = runs[-1][0], runs[-1][1] + 1
        else:
            runs.append((row, 1))
    return tuple(runs)


def _moved(reader: PlaneReader | None, channels: int) -> PlaneReader | None:
    """Return the reader of the channel `channels` positions after this one, in this image."""
    if reader is None or channels == 0:
        return reader
    return reader.of_channel(channels)


def _ordered(axis: Axis) -> list[int]:
    values = [int(value) for value in axis.indices]
    return values[::-1] if axis.reverse else values


def turned(key: Any, length: int, flip: bool) -> Any:
    """Return the key that selects from the stored axis what `key` selects from the flipped one."""
    if not flip:
        return key
    if isinstance(key, slice):
        wanted = range(*key.indices(length))
        if not wanted:
            return slice(0, 0)
        stop = length - 1 - wanted[-1] - wanted.step // abs(wanted.step)
        return slice(length - 1 - wanted[0], None if stop < 0 else stop, -wanted.step)
    axis = Axis.of(key, length)
    return length - 1 - (axis.indices[0] if axis.drop else np.asarray(axis.indices))
