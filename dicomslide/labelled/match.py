"""Resampling of an array in mm onto the grid of another array, lazily and chunk by chunk."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from dicomslide.labelled.coordinates import step_of
from dicomslide.labelled.index import SlideIndex
from dicomslide.readers.reductions import gathered, means_of, modes_of
from dicomslide.readers.windows import Windows

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Method", "match"]

Method = Literal["mean", "nearest", "majority", "linear"]
METHODS = ("mean", "nearest", "majority", "linear")
CHUNK = 1024
"""Pixels along an edge of a chunk if the other array has no chunks."""
PLANE = ("y", "x")


def match(
    array: xr.DataArray,
    like: xr.DataArray | xr.Dataset,
    method: Method,
    fill_value: Any,
) -> xr.DataArray:
    """Return an array on the grid of another one; see :meth:`SlideAccessor.match`."""
    import dask.array as da
    from dask.base import tokenize
    from dask.highlevelgraph import HighLevelGraph

    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, not {method!r}")
    _check_frames(array, like)
    if array.dtype.kind == "b" and method in ("mean", "linear"):
        array = array.astype(np.float32)
    axes = [_Axis.of(array, like, dim) for dim in PLANE]
    lead = [dim for dim in array.dims if dim not in PLANE]
    source = array.transpose(*lead, *PLANE)
    source = source if source.chunks is not None else source.chunk({})
    if fill_value is None:
        fill_value = np.nan if source.dtype.kind == "f" else 0
    chunks = [_chunks_of(like, dim) for dim in PLANE]
    borders = [_borders(each) for each in chunks]
    data = source.data
    lead_chunks = data.chunks[:-2]
    name = "match-" + tokenize(data, axes, chunks, method, fill_value)
    graph: dict[Any, Any] = {}
    for j, i in itertools.product(*(range(len(each)) for each in chunks)):
        parts = [
            axis.part(border[at], border[at + 1], of_source, method)
            for axis, border, at, of_source in zip(
                axes, borders, (j, i), data.chunks[-2:], strict=True
            )
        ]
        (rows, down), (columns, across) = parts
        for block in itertools.product(*(range(len(each)) for each in lead_chunks)):
            blocks = [[(data.name, *block, r, c) for c in across] for r in down]
            shape = tuple(each[at] for each, at in zip(lead_chunks, block, strict=True))
            graph[name, *block, j, i] = (
                _resampled, blocks, shape, rows, columns, method, fill_value, source.dtype,
            )  # fmt: skip
    matched = da.Array(  # type: ignore[no-untyped-call]
        HighLevelGraph.from_collections(name, graph, dependencies=[data]),
        name,
        chunks=(*lead_chunks, *chunks),
        dtype=source.dtype,
    )
    coords = {key: each for key, each in source.coords.items() if not set(PLANE) & set(each.dims)}
    result = xr.DataArray(matched, coords, source.dims, source.name, source.attrs)
    for dim in PLANE:
        alone = xr.Coordinates({dim: like[dim].variable}, indexes={dim: like.xindexes[dim]})
        result = result.assign_coords(alone)
    return result.transpose(*array.dims)


@dataclasses.dataclass(frozen=True, slots=True)
class _Part:
    """Input of one chunk of the result, along one axis."""

    windows: Windows
    """Windows in pixels of `source`."""
    source: slice
    """Pixels that the windows cover, within the concatenated chunks of the source."""
    reverse: bool
    """Whether the order of the windows is opposite to that of the source."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Axis:
    """Pixels of the other grid along one dim, in pixels of the array."""

    windows: Windows
    reverse: bool
    """Whether the two coordinates have opposite directions."""

    @classmethod
    def of(cls, array: xr.DataArray, like: xr.DataArray | xr.Dataset, dim: str) -> _Axis:
        """Return the windows of a dim, by the coordinates of two arrays.

        Raises
        ------
        ValueError
            When an array has no evenly spaced coordinate in mm.

        """
        here, there = step_of(array, dim), step_of(like, dim)
        values = like[dim].values
        if not (len(values) and array.sizes[dim]):
            return cls(Windows(0.0, 1.0, len(values), 0), reverse=False)
        first = float(values[0] if here * there > 0 else values[-1])
        # centre of the first window, in pixels from the edge of the array's first pixel
        middle = (first - float(array[dim].values[0])) / here + 0.5
        step = abs(there / here)
        windows = Windows.of(middle - step / 2, step, len(values), array.sizes[dim])
        return cls(windows, here * there < 0)

    def part(
        self, start: int, stop: int, chunks: tuple[int, ...], method: str
    ) -> tuple[_Part, range]:
        """Return the input of some of the windows, and the chunks of the source that hold it."""
        whole = self.windows
        if self.reverse:
            start, stop = whole.count - stop, whole.count - start
        begin = whole.start + whole.step * start
        wide = 1.0 if method in ("linear", "nearest") else 0.0  # neighbours of a window's centre
        low = math.floor(min(max(begin - wide, 0), whole.extent))
        high = math.ceil(min(max(begin + whole.step * (stop - start) + wide, 0), whole.extent))
        if high <= low:
            empty = dataclasses.replace(whole, count=stop - start, extent=0)
            return _Part(empty, slice(0, 0), self.reverse), range(0)
        borders = _borders(chunks)
        first = int(np.searchsorted(borders, low, side="right")) - 1
        last = int(np.searchsorted(borders, high, side="left"))
        windows = Windows.of(begin - low, whole.step, stop - start, high - low)
        part = slice(low - borders[first], high - borders[first])
        return _Part(windows, part, self.reverse), range(first, last)


def _resampled(
    blocks: list[list[NDArray[Any]]],
    lead: tuple[int, ...],
    rows: _Part,
    columns: _Part,
    method: str,
    fill_value: Any,
    dtype: np.dtype[Any],
) -> NDArray[Any]:
    """Return a chunk of the result, computed from chunks of the source."""
    count = math.prod(lead)
    shape = (*lead, rows.windows.count, columns.windows.count)
    if not blocks or not blocks[0]:
        return np.full(shape, fill_value, dtype)
    joined = np.block(blocks)[..., rows.source, columns.source]
    planes = np.moveaxis(joined.reshape(count, *joined.shape[-2:]), 0, -1)
    found = _ON_PLANES[method](planes, rows.windows, columns.windows, fill_value)
    found = found[:: -1 if rows.reverse else 1, :: -1 if columns.reverse else 1]
    return np.ascontiguousarray(np.moveaxis(found, -1, 0).reshape(shape).astype(dtype, copy=False))


def _mean(planes: NDArray[Any], rows: Windows, columns: Windows, fill_value: Any) -> NDArray[Any]:
    return means_of(planes, rows, columns, (fill_value,) * planes.shape[2])


def _majority(
    planes: NDArray[Any], rows: Windows, columns: Windows, fill_value: Any
) -> NDArray[Any]:
    out = np.full((rows.count, columns.count, planes.shape[2]), fill_value, planes.dtype)
    down, right = (gathered(each, np.arange(each.count)) for each in (rows, columns))
    if len(down.wanted) and len(right.wanted):
        part = planes[down.pixels, right.pixels]
        for at in range(planes.shape[2]):
            modes = modes_of(part[..., at], down, right, None)
            out[down.wanted[:, None], right.wanted, at] = modes
    return out


def _middles(windows: Windows) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return the centres of windows, in pixels from the edge, and whether they are inside."""
    middles: NDArray[Any] = windows.start + windows.step * (np.arange(windows.count) + 0.5)
    return middles, (middles > -1e-9) & (middles < windows.extent + 1e-9)


def _nearest(
    planes: NDArray[Any], rows: Windows, columns: Windows, fill_value: Any
) -> NDArray[Any]:
    out = np.full((rows.count, columns.count, planes.shape[2]), fill_value, planes.dtype)
    (y, in_y), (x, in_x) = _middles(rows), _middles(columns)
    at_y, at_x = (
        np.floor(middles + 1e-9).astype(int).clip(0, windows.extent - 1)
        for middles, windows in ((y[in_y], rows), (x[in_x], columns))
    )
    out[np.ix_(in_y, in_x)] = planes[np.ix_(at_y, at_x)]
    return out


def _linear(planes: NDArray[Any], rows: Windows, columns: Windows, fill_value: Any) -> NDArray[Any]:
    """Interpolate between the centres of four pixels; beyond the last centre, use its pixel."""
    values = planes.astype(np.float64)
    within = []
    for axis, windows in enumerate((rows, columns)):
        middles, inside = _middles(windows)
        at = (middles - 0.5).clip(0, windows.extent - 1)
        before = np.floor(at).astype(int).clip(0, max(windows.extent - 2, 0))
        after = (before + 1).clip(0, windows.extent - 1)
        weight = (at - before).reshape([-1 if i == axis else 1 for i in range(3)])
        low, high = values.take(before, axis), values.take(after, axis)
        values = np.where(weight == 0, low, low + weight * (high - low))
        within.append(inside)
    values = np.floor(values + 0.5) if planes.dtype.kind in "ui" else values
    out = np.full(values.shape, fill_value, planes.dtype)
    inside = np.logical_and.outer(*within)
    out[inside] = values[inside]
    return out


_ON_PLANES = {"mean": _mean, "majority": _majority, "nearest": _nearest, "linear": _linear}


def _chunks_of(like: xr.DataArray | xr.Dataset, dim: str) -> tuple[int, ...]:
    known = like.chunksizes.get(dim)
    if known is not None:
        return tuple(known)
    whole, rest = divmod(like.sizes[dim], CHUNK)
    return (CHUNK,) * whole + ((rest,) if rest or not whole else ())


def _borders(chunks: tuple[int, ...]) -> list[int]:
    return [0, *itertools.accumulate(chunks)]


def _check_frames(array: xr.DataArray, like: xr.DataArray | xr.Dataset) -> None:
    """Raise a GridError if both are in different frames of reference."""
    for dim in PLANE:
        here, there = array.xindexes.get(dim), like.xindexes.get(dim)
        if isinstance(here, SlideIndex) and isinstance(there, SlideIndex):
            here.check_frame(there)
