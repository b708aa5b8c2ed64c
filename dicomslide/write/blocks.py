"""Blocks of whole tiles, each of which one task computes, encodes and writes."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import platform
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from dicomslide.write.frames import FrameForm

__all__ = ["BLOCK", "BlockWriter", "NativeFile", "blocks_along", "boxed", "explained",
           "opened", "record", "write_at"]  # fmt: skip

BLOCK = 2048
"""Pixels along an edge of a block, unless chunks are larger."""
record = np.dtype([("channel", "i4"), ("row", "i4"), ("column", "i4"), ("length", "i8")])
"""A frame in a part file: its channel in the array, its tile, and its bytes."""
SHARED_FOLDER_HINT = (
    "each worker of a cluster has to reach the folder of unfinished files by the same path: give"
    " temporary_folder=, on a disk that all share"
)


def blocks_along(chunks: Sequence[int], first: int, tile: int) -> tuple[int, ...]:
    """Return the pixels of blocks along an axis; borders between them are those of tiles.

    Parameters
    ----------
    chunks : sequence of int
        Pixels of the chunks of an array, whose borders are kept where tiles have borders there.
    first : int
        Position of the array's first pixel in the matrix.
    tile : int
        Pixels of a tile.

    """
    end = first + sum(chunks)
    least = max(tile, BLOCK // tile * tile)
    borders, at = [first], first
    for chunk in chunks[:-1]:
        at += chunk
        border = round(at / tile) * tile
        # the first block may begin within a tile: it ends where whole blocks would
        if border - borders[-1] // tile * tile >= least and border < end:
            borders.append(border)
    borders.append(end)
    return tuple(np.diff(borders).tolist())


@dataclasses.dataclass(frozen=True, slots=True)
class NativeFile:
    """A file whose native frames are written at their offsets."""

    path: str
    offset: int
    """Position of the first frame."""
    channel: int
    """Channel of the array, in the file."""


@dataclasses.dataclass(frozen=True, slots=True)
class BlockWriter:
    """Writes the frames of a block; pickles without pixels."""

    form: FrameForm
    values: Callable[[NDArray[Any], str], NDArray[Any]]
    """Checks and converts computed values to stored pixels, given where they are."""
    fill: float
    """Value of pixels beyond the array."""
    shape: tuple[int, int]
    """Rows and columns of the matrix."""
    borders: tuple[tuple[int, ...], ...]
    """First channel of each block, and first row and column in the matrix."""
    folder: str
    """Folder of the part files."""
    name: str
    """Beginning of their names."""
    files: tuple[NativeFile, ...] | None
    """Where native frames go, by channel of the array; None where frames go to part files."""
    is_sparse: bool
    """Whether tiles of `fill` only are left out."""

    def __call__(self, block: NDArray[Any], *, block_id: tuple[int, ...]) -> NDArray[Any]:
        """Write a block; return the records of its frames, if they are in a part file."""
        frames, channel, at = self.frames_of(block, block_id)
        if self.files is None:
            return boxed(self._to_part(frames, channel, at, block_id))
        self._to_files(frames, channel, at, self.files)
        return boxed(np.empty(0, record))

    def returned(self, block: NDArray[Any], *, block_id: tuple[int, ...]) -> NDArray[Any]:
        """Return the native frames of a block, instead of writing them."""
        return boxed(self.frames_of(block, block_id)[0])

    def frames_of(
        self, block: NDArray[Any], block_id: tuple[int, ...]
    ) -> tuple[NDArray[np.uint8], int, list[int]]:
        """Return the native frames of a block, its first channel, and its first tile."""
        channel, *first = (of[at] for of, at in zip(self.borders, block_id, strict=True))
        where = f"rows from {first[0]}, columns from {first[1]} of the matrix"
        pixels = self.values(np.asarray(block), where)
        at = [start // t for start, t in zip(first, self.form.tile, strict=True)]
        return self.form.frames(self._whole_tiles(pixels, first)), channel, at

    def _whole_tiles(self, pixels: NDArray[Any], first: Sequence[int]) -> NDArray[Any]:
        """Return a block with `fill` added up to the borders of its tiles."""
        before = [start % t for start, t in zip(first, self.form.tile, strict=True)]
        after = [
            -(start + n) % t
            for start, n, t in zip(before, pixels.shape[1:], self.form.tile, strict=True)
        ]
        if not any(before) and not any(after):
            return pixels
        padding = [(0, 0), *zip(before, after, strict=True)]
        return np.pad(pixels, padding, constant_values=self.fill)

    def empty_frame(self) -> NDArray[np.uint8]:
        """Return the native bytes of a tile of `fill`."""
        tile = np.full((1, *self.form.tile), self.fill, self.form.dtype)
        return self.form.frames(tile)[0, 0, 0]

    def _to_files(
        self,
        frames: NDArray[np.uint8],
        channel: int,
        at: Sequence[int],
        files: Sequence[NativeFile],
    ) -> None:
        down, across = self.form.tiles(self.shape)
        size = frames.shape[-1]
        for number, of_channel in enumerate(frames):
            file = files[channel + number]
            with opened(file.path) as descriptor:
                for row, run in enumerate(of_channel):
                    frame = (file.channel * down + at[0] + row) * across + at[1]
                    write_at(descriptor, run, file.offset + frame * size)

    def _to_part(
        self,
        frames: NDArray[np.uint8],
        channel: int,
        at: Sequence[int],
        block_id: tuple[int, ...],
    ) -> NDArray[Any]:
        empty = self.empty_frame()
        is_empty: Any = (frames == empty).all(-1) if empty.any() else ~frames.any(-1)
        known = self.form.encode(empty) if self.form.is_encapsulated else None
        found = []
        path = self.part(block_id)
        draft = f"{path}.{uuid.uuid4().hex}"  # a task may run twice
        with explained(path), open(draft, "wb") as file:
            for number, row, column in np.ndindex(frames.shape[:3]):
                if self.is_sparse and is_empty[number, row, column]:
                    continue
                encoded: Any = frames[number, row, column]
                if known is not None:
                    encoded = known if is_empty[number, row, column] else self.form.encode(encoded)
                file.write(encoded)
                found.append((channel + number, at[0] + row, at[1] + column, len(encoded)))
        os.replace(draft, path)
        return np.array(found, record)

    def part(self, block_id: tuple[int, ...]) -> str:
        """Return the path of the part file of a block."""
        return os.path.join(self.folder, f"{self.name}.{'-'.join(map(str, block_id))}.part")


def boxed(value: Any) -> NDArray[Any]:
    """Return an array of one object, as a block of dask's."""
    result = np.empty((1, 1, 1), object)
    result[0, 0, 0] = value
    return result


@contextlib.contextmanager
def opened(path: str) -> Iterator[int]:
    """Open an existing file for writing at offsets."""
    with explained(path):
        descriptor = os.open(path, os.O_WRONLY | getattr(os, "O_BINARY", 0))
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def explained(path: str) -> Iterator[None]:
    """Say what workers need, where the folder of a file isn't there."""
    try:
        yield
    except FileNotFoundError:
        raise ExportError(
            f"{path}: not there on this machine ({platform.node()}): {SHARED_FOLDER_HINT}"
        ) from None


def write_at(descriptor: int, data: NDArray[Any], offset: int) -> None:
    """Write an array at an offset of a file."""
    contiguous: Any = np.ascontiguousarray(data)
    view = memoryview(contiguous).cast("B")
    while len(view):
        if hasattr(os, "pwrite"):
            written = os.pwrite(descriptor, view, offset)
        else:  # Windows: the descriptor is of this task only
            os.lseek(descriptor, offset, os.SEEK_SET)
            written = os.write(descriptor, view)
        if not written:
            raise OSError(errno.EIO, "nothing was written")
        view, offset = view[written:], offset + written
