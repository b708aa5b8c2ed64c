"""Readers of channels and focal planes: dicomslide, and the bare decoder with the same frames."""

from __future__ import annotations

from collections import deque
from typing import Any

from benchmarks.limit import Decoder
from benchmarks.subject import Dicomslide

__all__ = ["StackDecoder", "StackedDicomslide"]

STAINS = 4
"""Stains that are unmixed from all channels."""
CELLS_ACROSS = 256
"""Cells along an edge of the level: 65,536 labels with 0, which is the background."""


class StackedDicomslide(Dicomslide):
    """dicomslide, by xarray."""

    def image(self, chunks: Any) -> Any:
        """Return the base level, all channels and planes, lazily."""
        return self.slide.to_dataset(level=0, chunks=chunks).image

    def open(self) -> None:
        super().open()
        import xarray as xr

        options = {"engine": "dicomslide", "chunks": None, "orientation": "stored"}
        self.eager = xr.open_dataset(self.folder, **options).image

    def open_tree(self) -> None:
        """Open a slide, and make the tree of all that is in it."""
        self.slide = self.open_slide(self.folder)
        self.slide.to_datatree()

    def _field(self, row: int, column: int, size: int) -> Any:
        return self.eager[..., row : row + size, column : column + size]

    def fields(self, at: list[list[int]], size: int) -> None:
        """Read a square at each (row, column), in all channels."""
        for row, column in at:
            self._field(row, column, size).load()

    def focus(self, at: list[list[int]], size: int) -> None:
        """Find the brightest plane of each pixel of squares."""
        for row, column in at:
            self._field(row, column, size).argmax("z").load()

    def unmixed(self, chunks: Any) -> None:
        """Unmix the base level, and take means."""
        import numpy as np
        import xarray as xr

        image = self.image(chunks)
        weights = np.random.default_rng(0).random((STAINS, image.sizes["channel"]))
        matrix = xr.DataArray(weights.astype("float32"), dims=("stain", "channel"))
        xr.dot(image.astype("float32"), matrix, dim="channel").mean(("y", "x")).compute()

    def _cells(self) -> tuple[Any, Any]:
        """Return the base level, and a label map of it, both lazy."""
        import dask.array as da
        import numpy as np
        import xarray as xr

        image = self.image("auto")
        edge = CELLS_ACROSS * -(-image.sizes["y"] // CELLS_ACROSS) // CELLS_ACROSS
        rows, columns = (
            da.arange(image.sizes[dim], chunks=image.chunksizes[dim], dtype=np.uint32) // edge
            for dim in ("y", "x")
        )
        numbers = (rows[:, None] * CELLS_ACROSS + columns).astype(np.uint16)
        return image, xr.DataArray(numbers, {"y": image.y, "x": image.x}, ("y", "x"))

    def mean_of_cells(self) -> None:
        """Compute plain means of an image and a label map."""
        import dask

        image, labels = self._cells()
        dask.compute(image.mean(("y", "x")), labels.mean())

    def cell_statistics(self) -> None:
        """Compute areas, means and standard deviations of all labels."""
        from dicomslide import recipes

        recipes.segment_statistics(*self._cells()).compute()

    def cell_table(self) -> None:
        """Compute medians, percentiles and all else of all labels."""
        from dicomslide import recipes

        recipes.cell_table(*self._cells()).compute()


class StackDecoder(Decoder):
    """A loop over the frames of all channels and planes, with their bytes in memory."""

    def _stacked(self, size: int, row: int, column: int) -> list[list[Any]]:
        """Return the frames that a square touches, of each place together."""
        tiles = self.across**2
        places = [
            r * self.across + c
            for r in self._touched(row, size)
            for c in self._touched(column, size)
        ]
        return [self.frames[place::tiles] for place in places]

    def fields(self, at: list[list[int]], size: int) -> None:
        """Decode the frames of each square, one by one."""
        for row, column in at:
            stacks = self._stacked(size, row, column)
            self._run([frame for stack in stacks for frame in stack], self.decode)

    def focus(self, at: list[list[int]], size: int) -> None:
        """Decode the frames of each square, and find the brightest plane, place by place."""
        for row, column in at:
            # place by place: few, and each takes as long as many frames
            deque(self.pool.map(self._brightest, self._stacked(size, row, column)), maxlen=0)

    def _brightest(self, stack: list[Any]) -> None:
        import numpy as np

        np.stack([self.decode(frame) for frame in stack]).argmax(0)
