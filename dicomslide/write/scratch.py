"""Pixels that are kept on disk while an instance is written, for those computed from them."""

from __future__ import annotations

import dataclasses
import math
import os
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.errors import ExportError
from dicomslide.write.blocks import BLOCK, boxed, explained, opened, write_at

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Keeper", "Scratch"]


@dataclasses.dataclass(eq=False)
class Scratch:
    """An array in a file, of which parts are written, then read; pickles as its path.

    It is made for a write, and begins to exist with :meth:`create`.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    name: str = dataclasses.field(default_factory=lambda: f"{uuid.uuid4().hex}.scratch")
    folder: str | None = None

    @property
    def ndim(self) -> int:
        """Number of dims."""
        return len(self.shape)

    @property
    def path(self) -> str:
        """Path of the file."""
        if self.folder is None:
            raise ExportError("pixels of a coarser level are read before those of the level before")
        return os.path.join(self.folder, self.name)

    def create(self, folder: str) -> None:
        """Create the file, of zeros."""
        self.folder = folder
        with open(self.path, "xb") as file:
            file.truncate(max(1, math.prod(self.shape) * self.dtype.itemsize))

    def delete(self) -> None:
        """Delete the file."""
        os.unlink(self.path)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        with explained(self.path):
            mapped = np.memmap(self.path, self.dtype, "r", shape=self.shape)
        return np.array(mapped[key])  # a copy: pages of the file aren't kept

    def write(self, first: tuple[int, ...], pixels: NDArray[Any]) -> None:
        """Write a block whose first pixel is at a position.

        Rows are written, not mapped: on a full disk, a mapped page ends the process (SIGBUS).
        """
        rows = np.ascontiguousarray(pixels, self.dtype)
        with opened(self.path) as descriptor:
            for at in np.ndindex(rows.shape[:-1]):
                start = (*np.add(first[:-1], at), first[-1])
                number = int(np.ravel_multi_index(start, self.shape))
                write_at(descriptor, rows[at], number * self.dtype.itemsize)

    def dask_array(self) -> Any:
        """Return it as a dask array, which is computed when the file is written."""
        import dask.array as da

        chunks = (1,) * (self.ndim - 2) + (BLOCK, BLOCK)
        return da.from_array(self, chunks=chunks, name=self.name, asarray=False)  # type: ignore[no-untyped-call]


@dataclasses.dataclass(frozen=True)
class Keeper:
    """Writes blocks of an array into a scratch file."""

    scratch: Scratch
    borders: tuple[tuple[int, ...], ...]
    """First pixel of each block, by dim."""

    def __call__(self, block: NDArray[Any], *, block_id: tuple[int, ...]) -> NDArray[Any]:
        """Write a block."""
        first = tuple(of[at] for of, at in zip(self.borders, block_id, strict=True))
        self.scratch.write(first, block)
        return boxed(None)
