"""Patches of one channel and focal plane: boxes of one size at any positions."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.options import allocated
from dicomslide.process.lazy import lazy
from dicomslide.readers.indexing import Axis
from dicomslide.readers.matrix_reader import as_contiguous
from dicomslide.readers.resampled_reader import Box

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from numpy.typing import NDArray

    from dicomslide.header.geometry import Orientation
    from dicomslide.readers.resampled_reader import ResampledReader

__all__ = ["PatchReader"]


@dataclasses.dataclass(frozen=True, eq=False)
class PatchReader:
    """Reader of patches as one array with dims (patch, y, x, sample).

    A frame of several patches that are read together is decoded once. Pixels outside the grid are
    background.
    """

    reader: ResampledReader
    """Reader of the pixels of the grid, in stored orientation."""
    orientation: Orientation
    """Transposition and flips from the grid to a patch."""
    first: NDArray[np.int64]
    """(y, x) of the first pixel of each patch in the upright grid, shape (patches, 2)."""
    size: tuple[int, int]
    """Rows and columns of a patch."""

    @lazy
    def shape(self) -> tuple[int, int, int, int]:
        """Number of patches, and rows, columns and samples of a patch."""
        return len(self.first), *self.size, self.reader.shape[2]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the pixels."""
        return self.reader.dtype

    def __dask_tokenize__(self) -> tuple[Hashable, ...]:
        return (
            "dicomslide.PatchReader",
            self.reader.__dask_tokenize__(),
            dataclasses.astuple(self.orientation),
            self.first.tobytes(),
            self.size,
        )

    def read(
        self,
        key: Sequence[Any],
        *,
        threads: int | None = None,
        keep: bool = True,
        contiguous: bool = False,
    ) -> NDArray[Any]:
        """Read the pixels that a key for each dim selects: see :meth:`MatrixReader.read`.

        Selected patches are read as a whole.
        """
        patches = Axis.of(key[0], len(self.first))
        wanted = np.asarray(patches.indices, np.int64)
        shape = (len(wanted), *self.shape[1:])
        out = allocated(shape, self.dtype, f"{self.reader.source.source.name}: {shape} of patches")
        boxes = [
            self._box(int(y), int(x), of)
            for (y, x), of in zip(self.first[wanted], out, strict=True)
        ]
        self.reader.fill(boxes, threads=threads, keep=keep)
        out = out[::-1] if patches.reverse else out
        axes = [Axis.of(part, n) for part, n in zip(key[1:], self.shape[1:], strict=True)]
        for number, axis in enumerate(axes, 1):
            indices: Any = axis.indices
            if isinstance(indices, range):
                indices = slice(indices.start, indices.stop, indices.step)
            before = (slice(None),) * number
            out = out[(*before, indices)][(*before, slice(None, None, -1 if axis.reverse else 1))]
        out = out[tuple(0 if axis.drop else slice(None) for axis in (patches, *axes))]
        return as_contiguous(out) if contiguous else out

    def _box(self, y: int, x: int, out: NDArray[Any]) -> Box:
        """Return the box of a patch, in stored orientation."""
        turn = self.orientation
        rows, columns = (
            first + np.arange(length) for first, length in zip((y, x), self.size, strict=True)
        )
        height, width, _ = self.reader.shape
        if turn.transpose:
            height, width = width, height
        if turn.flip_y:
            rows, out = (height - 1 - rows)[::-1], out[::-1]
        if turn.flip_x:
            columns, out = (width - 1 - columns)[::-1], out[:, ::-1]
        if turn.transpose:
            return Box(columns, rows, out.swapaxes(0, 1))
        return Box(rows, columns, out)
