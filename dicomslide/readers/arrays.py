"""Readers as arrays: the one adapter by which dask and xarray read, and arrays of dask."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dicomslide.readers.indexing import expand_key

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from dicomslide.readers.matrix_reader import MatrixReader
    from dicomslide.readers.patch_reader import PatchReader
    from dicomslide.readers.stacked_reader import Data, StackedReader

__all__ = ["ReaderArray", "chunk_multiple", "dask_array", "dask_data", "dask_joined"]

AUTO_CHUNK = 2048
"""Pixels along an edge that ``chunks="auto"`` comes near to."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ReaderArray:
    """A reader that is indexed like an array, each axis by its own key.

    What it returns is contiguous: whoever reads through it joins it with others.
    """

    reader: MatrixReader | StackedReader | PatchReader
    """Gives the pixels."""
    threads: int | None = None
    """Threads that decode a region, the calling one included; None for as many as the option
    ``num_threads`` says."""
    keep: bool = True
    """Whether decoded frames may be kept for the next region."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each dim."""
        return self.reader.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the pixels."""
        return self.reader.dtype

    @property
    def ndim(self) -> int:
        """Number of dims."""
        return len(self.shape)

    @property
    def read(self) -> Callable[[Sequence[Any]], NDArray[Any]]:
        """What reads by a key for each dim."""
        return functools.partial(
            self.reader.read, threads=self.threads, keep=self.keep, contiguous=True
        )

    def __getitem__(self, key: Any) -> NDArray[Any]:
        return self.read(expand_key(key if isinstance(key, tuple) else (key,), self.ndim))

    def __dask_tokenize__(self) -> Any:
        return self.reader.__dask_tokenize__()


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


def dask_array(
    reader: MatrixReader | StackedReader,
    chunks: Sequence[int | tuple[int, ...]],
    *,
    name: str = "slide",
) -> Any:
    """Return a reader as a dask array, whatever its chunks.

    Each is read by one task, in the task's own thread, and keeps no frames, which other tasks
    don't need.

    Parameters
    ----------
    reader : MatrixReader or StackedReader
        What the tasks read from.
    chunks : sequence of int or tuple of int
        Length of the chunks along each dim, or their lengths.
    name : str, default: "slide"
        What names of tasks begin with.

    """
    import dask.array
    from dask.base import tokenize

    return dask.array.from_array(  # type: ignore[no-untyped-call]
        ReaderArray(reader, threads=1, keep=False),
        chunks=chunks,
        name=f"{name}-{tokenize(reader, chunks)}",
        asarray=False,
        lock=False,
        meta=np.empty((0,) * len(reader.shape), reader.dtype),
        inline_array=True,
    )


def dask_joined(readers: Sequence[PatchReader], *, name: str) -> Any:
    """Return readers, one after the other along the first dim, as a dask array.

    Each is a chunk and read by one task, as of :func:`dask_array`; a task holds its reader only.

    Parameters
    ----------
    readers : sequence of PatchReader
        Readers of shapes that differ in the first dim only.
    name : str
        Prefix of the names of tasks.

    """
    import dask.array
    from dask.base import tokenize

    key = f"{name}-{tokenize(*readers)}"
    _, *rest = readers[0].shape
    graph = {
        (key, number, *(0 for _ in rest)): (_whole, ReaderArray(reader, threads=1, keep=False))
        for number, reader in enumerate(readers)
    }
    chunks = (tuple(len(reader.first) for reader in readers), *((length,) for length in rest))
    return dask.array.Array(graph, key, chunks, readers[0].dtype)  # type: ignore[no-untyped-call]


def _whole(array: ReaderArray) -> NDArray[Any]:
    return array.read([slice(None)] * array.ndim)


def dask_data(chunks: Literal["frames", "auto"] | int) -> Data:
    """Return what makes a dask array of whole frames of a reader."""
    return lambda reader: dask_array(
        reader, reader.chunk_lengths(chunk_multiple(chunks, reader.tile_shape))
    )
