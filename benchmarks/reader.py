"""Base class of the compared readers, and computations that all of them share."""

from __future__ import annotations

import io
import itertools
import os
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BLOCK", "THUMBNAIL", "Reader", "blocks", "summary"]

THUMBNAIL = 512
"""Pixels along the longer edge."""
BLOCK = 2_048
"""Rows and columns of the blocks in which a whole level is read."""
PALE = 200
"""Upper bound on green in tissue."""


def blocks(edge: int) -> Iterator[tuple[int, int]]:
    """Yield the (row, column) of each block of a level."""
    return itertools.product(range(0, edge, BLOCK), repeat=2)


def summary(pixels: Any) -> tuple[Any, Any]:
    """Return the number of pixels that are tissue, and the sum of all, of NumPy and dask alike."""
    return (pixels[:, :, 1] < PALE).sum(), pixels.sum()


class Reader:
    """Reader of a slide; methods that it doesn't support are missing.

    Parameters
    ----------
    folder : str
        The slide.
    threads : int, optional
        Threads that decode; by default the reader's own default.

    """

    def __init__(self, folder: str, threads: int | None = None) -> None:
        self.folder = folder
        self.base = os.path.join(folder, "level-0.dcm")
        self.threads = threads
        self.loaded = 0.0
        """MiB of the process after all imports."""

    def load(self) -> None:
        """Import the packages of the reader."""

    def load_more(self) -> None:
        """Also import packages that are imported late, so that this isn't measured."""
        self.load()

    def open(self) -> None:
        """Open the slide."""

    def forget(self) -> None:
        """Empty the caches of pixels."""

    def region(self, row: int, column: int, size: int) -> Any:
        """Return a square of pixels of the base level as an array."""
        raise NotImplementedError(f"{type(self).__name__} doesn't read regions")

    def regions(self, at: list[list[int]], size: int) -> None:
        """Read a square at each (row, column)."""
        for row, column in at:
            self.region(row, column, size)

    def regions_again(self, at: list[list[int]], size: int) -> dict[str, float]:
        """Read squares twice; the second time counts."""
        self.regions(at, size)
        cpu, start = time.process_time(), time.perf_counter()
        self.regions(at, size)
        return {
            "ms": (time.perf_counter() - start) * 1000,
            "cpu_ms": (time.process_time() - cpu) * 1000,
        }

    def loaded_tiles(
        self, at: list[list[int]], size: int, workers: int, start: str | None
    ) -> dict[str, float]:
        """Read squares through PyTorch's DataLoader, by a data set that calls this reader."""
        from benchmarks.loaders import TilesOfReader, loaded

        return loaded(TilesOfReader(type(self), self.folder, at, size), workers, start)

    def open_each(self) -> None:
        """Open each slide of a folder."""
        self.each = []
        for name in sorted(os.listdir(self.folder)):
            reader = type(self)(os.path.join(self.folder, name), self.threads)
            reader.load()
            reader.open()
            self.each.append(reader)

    def tiles_of_each(self, at: list[list[int]], size: int) -> None:
        """Read a square at each (slide, row, column)."""
        for number, row, column in at:
            self.each[number].region(row, column, size)

    def open_and_read_each(self, at: list[list[int]], size: int) -> None:
        """Open each slide of a folder, and read a square at each (slide, row, column)."""
        self.open_each()
        self.tiles_of_each(at, size)

    def scaled_regions(self, at: list[list[int]], size: int) -> None:
        """Read squares, and halve their rows and columns."""
        for picture in self._pictures_of(at, size):
            picture.reduce(2)

    def written_regions(self, at: list[list[int]], size: int) -> None:
        """Read squares, and write each as JPEG."""
        for picture in self._pictures_of(at, size):
            picture.save(io.BytesIO(), "JPEG", quality=80)

    def _pictures_of(self, at: list[list[int]], size: int) -> Iterator[Any]:
        from PIL import Image

        for row, column in at:
            pixels = self.region(row, column, size)
            yield Image.fromarray(pixels[:, :, :3] if pixels.shape[2] == 4 else pixels)
