"""Masks and label images of shapes in the pixels of a level, lazily."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.annotation.graphic import ranges
from dicomslide.annotation.pixel_grid import PixelGrid
from dicomslide.annotation.raster import Edges, Graphics, fill

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    import xarray as xr
    from numpy.typing import NDArray

    from dicomslide.annotation.graphic import Integers
    from dicomslide.annotation.pixel_grid import PixelAxis

__all__ = ["rasterized"]


def rasterized(
    graphics: Graphics,
    values: NDArray[np.unsignedinteger[Any]] | None,
    like: xr.DataArray | xr.Dataset,
    *,
    name: str,
    frame_of_reference_uids: Collection[str] = (),
) -> xr.DataArray:
    """Return the pixels of shapes on the grid of an array, in its chunks.

    Parameters
    ----------
    graphics : Graphics
        Graphics with (x, y) in mm.
    values : numpy.ndarray or None
        Value for each shape, above zero; None for a mask.
    like : xarray.DataArray or xarray.Dataset
        Array with the coordinates ``y`` and ``x`` in mm, or of a matrix as stored.
    name : str
        Name of the array.
    frame_of_reference_uids : collection of str
        Frame of Reference UIDs of the millimetres; empty if unknown.

    Raises
    ------
    GridError
        When the frames of reference differ.
    ValueError
        When `like` has no place on the slide.

    """
    import xarray as xr

    grid = PixelGrid.of(like)
    grid.check_frame(frame_of_reference_uids)
    points = graphics.points[:, :2]
    graphics = dataclasses.replace(graphics, points=grid.from_slide(points))
    data = _array(graphics, values, grid)
    result = xr.DataArray(data, dims=grid.dims, name=name, attrs={"long_name": name})
    if grid.affine is not None:
        result.attrs["affine"] = like.attrs["affine"]
    for dim in grid.dims:
        index = {dim: like.xindexes[dim]}
        result = result.assign_coords(xr.Coordinates({dim: like[dim].variable}, indexes=index))
    return result


def _array(graphics: Graphics, values: NDArray[Any] | None, grid: PixelGrid) -> Any:
    import dask.array as da
    from dask.base import tokenize
    from dask.highlevelgraph import HighLevelGraph

    dtype = np.dtype(bool) if values is None else values.dtype
    name = "rasterize-" + tokenize(
        graphics.kind, graphics.points, graphics.offsets, graphics.shapes, values,
        [(axis.centres, axis.borders, axis.reverse) for axis in grid.axes], grid.chunks,
    )  # fmt: skip
    parts = [
        [axis.part(stop - size, stop) for size, stop in zip(sizes, np.cumsum(sizes), strict=True)]
        for axis, sizes in zip(grid.axes, grid.chunks, strict=True)
    ]
    index = _Index.of(graphics, parts)
    down, across = grid.chunks
    graph: dict[Any, Any] = {}
    for j, i in itertools.product(range(len(down)), range(len(across))):
        chosen = index.graphics_in(j, i)
        has_pixels = len(chosen) and down[j] and across[i]
        part = _Part(graphics, chosen, values, parts[0][j], parts[1][i]) if has_pixels else None
        graph[name, j, i] = _painted, part, (down[j], across[i]), dtype
    return da.Array(  # type: ignore[no-untyped-call]
        HighLevelGraph.from_collections(name, graph), name, chunks=grid.chunks, dtype=dtype
    )


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Index:
    """Graphics by chunk: a spatial index on the grid of the chunks."""

    graphics: Integers
    """Indices of graphics, ascending within a chunk."""
    starts: Integers
    """Index of each chunk's first graphic, and last the number of all."""
    columns: int
    """Chunks along the second axis."""

    @classmethod
    def of(cls, graphics: Graphics, parts: Sequence[Sequence[PixelAxis]]) -> _Index:
        boxes = graphics.boxes()
        (rows, down), (columns, across) = (
            _chunks_of_boxes(boxes[:, low], boxes[:, low + 2], axes)
            for axes, low in zip(parts, (1, 0), strict=True)
        )
        counts = down * across
        which = np.repeat(np.arange(len(boxes)), counts)
        within = ranges(np.zeros_like(counts), counts)
        row, column = np.divmod(within, across[which])
        width = len(parts[1])
        chunk = (rows[which] + row) * width + columns[which] + column
        order = np.argsort(chunk, kind="stable")
        starts = np.searchsorted(chunk[order], np.arange(len(parts[0]) * width + 1))
        return cls(which[order], starts, width)

    def graphics_in(self, j: int, i: int) -> Integers:
        """Return the indices of the graphics whose boxes reach into a chunk."""
        at = j * self.columns + i
        return self.graphics[self.starts[at] : self.starts[at + 1]]


def _chunks_of_boxes(
    low: NDArray[np.float64], high: NDArray[np.float64], axes: Sequence[PixelAxis]
) -> tuple[Integers, Integers]:
    """Return the first chunk that each of several intervals reaches, and how many it reaches."""
    reverse = any(axis.reverse for axis in axes)
    ascending = axes[::-1] if reverse else axes
    first = np.searchsorted([axis.high for axis in ascending], low)
    stop = np.searchsorted([axis.low for axis in ascending], high, side="right")
    return (len(axes) - stop if reverse else first), np.maximum(stop - first, 0)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Graphics in a chunk. In this process it refers to all graphics; it pickles as its own."""

    graphics: Graphics | Edges
    chosen: Integers | None
    """Indices of graphics; None for all edges."""
    values: NDArray[Any] | None
    y: PixelAxis
    x: PixelAxis

    def blocks(self) -> Iterator[Graphics | Edges]:
        """Yield some graphics at a time; of rings, the edges that matter here."""
        if isinstance(self.graphics, Edges) or self.chosen is None:
            yield self.graphics
            return
        x, y = self.x.centres, self.y.centres
        for block in self.graphics.blocks(self.chosen):
            yield block.edges().within(x, y) if block.kind == "POLYGON" else block

    def __reduce__(self) -> Any:
        own = self.graphics
        if isinstance(own, Graphics) and self.chosen is not None:
            if own.kind == "POLYGON":  # an outline of a million points has few of them here
                own = Edges.together([each for each in self.blocks() if isinstance(each, Edges)])
            else:
                own = own.take(self.chosen)
        used, shapes = np.unique(own.shapes, return_inverse=True)
        own = dataclasses.replace(own, shapes=shapes)
        values = None if self.values is None else self.values[used]
        chosen = None if isinstance(own, Edges) else np.arange(len(own.shapes))
        return _Part, (own, chosen, values, self.y, self.x)


def _painted(part: _Part | None, shape: tuple[int, int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the pixels of a chunk."""
    pixels = np.zeros(shape, dtype)
    if part is None:
        return pixels
    ascending = pixels[:: -1 if part.y.reverse else 1, :: -1 if part.x.reverse else 1]
    for block in part.blocks():
        is_points = isinstance(block, Graphics) and block.kind == "POINT"
        y, x = (axis.borders if is_points else axis.centres for axis in (part.y, part.x))
        fill(ascending, block, x, y, part.values)
    return pixels
