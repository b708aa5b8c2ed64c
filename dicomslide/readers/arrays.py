"""Adapter of readers to the array interface of xarray and dask, and dask arrays of readers."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.readers.chunks import chunk_lengths
from dicomslide.readers.indexing import expand_key

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from dicomslide.readers.chunks import Chunks
    from dicomslide.readers.matrix_reader import MatrixReader
    from dicomslide.readers.patch_reader import PatchReader
    from dicomslide.readers.stacked_reader import Data, StackedReader

__all__ = ["ReaderArray", "dask_array", "dask_data", "dask_joined"]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ReaderArray:
    """Reader with the array interface; each axis takes an independent key.

    Returned arrays are contiguous, because callers concatenate them.
    """

    reader: MatrixReader | StackedReader | PatchReader
    """Reader of the pixels."""
    threads: int | None = None
    """Number of threads that decode a region, including the calling one; None for the option
    ``num_threads``."""
    keep: bool = True
    """Whether decoded frames may be cached for later reads."""

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
        """Function that reads by one key for each dim."""
        return functools.partial(
            self.reader.read, threads=self.threads, keep=self.keep, contiguous=True
        )

    def __getitem__(self, key: Any) -> NDArray[Any]:
        return self.read(expand_key(key if isinstance(key, tuple) else (key,), self.ndim))

    def __dask_tokenize__(self) -> Any:
        return self.reader.__dask_tokenize__()


def dask_array(
    reader: MatrixReader | StackedReader,
    chunks: Sequence[int | tuple[int, ...]],
    *,
    name: str = "slide",
) -> Any:
    """Return a reader as a dask array with the given chunks.

    One task reads one chunk, in its own thread only. It caches no frames, as other tasks read
    other frames.

    Parameters
    ----------
    reader : MatrixReader or StackedReader
        Reader of the pixels.
    chunks : sequence of int or tuple of int
        For each dim, the common length of its chunks, or the length of each chunk.
    name : str, default: "slide"
        Prefix of the names of tasks.

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
    """Return the concatenation of readers along the first dim as a dask array.

    Each reader is one chunk, read by one task as in :func:`dask_array`. A task holds no reader
    but its own.

    Parameters
    ----------
    readers : sequence of PatchReader
        Readers whose shapes differ in the first dim only.
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


def dask_data(chunks: Chunks) -> Data:
    """Return a function that makes a dask array of a reader.

    See :func:`~dicomslide.readers.chunks.chunk_lengths` for `chunks`.
    """
    return lambda reader, dims: dask_array(
        reader,
        chunk_lengths(chunks, dims, reader.unit_lengths(), reader.dtype.itemsize, reader.flipped),
    )
