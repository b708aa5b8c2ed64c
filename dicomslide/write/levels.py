"""Pixels on the levels to which they are written: their own, all coarser ones, or others."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from dicomslide.errors import GridError
from dicomslide.labelled.match import match
from dicomslide.write.grids import grid_of_level, own_grid, placed, placed_on, upright
from dicomslide.write.scratch import Scratch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr

    from dicomslide.slide.slide import Slide
    from dicomslide.write.grids import Grid, Placed

__all__ = ["Levels", "Resample", "on_levels"]

Levels: TypeAlias = "Literal['own', 'all', 'free'] | int | Sequence[int]"
Resample = Literal["nearest", "majority", "any", "mean", "linear"]
FITTING = {
    "BINARY": ("majority", "any", "nearest"),
    "FRACTIONAL": ("mean", "nearest", "linear"),
    "LABELMAP": ("majority", "nearest"),
    "MAP": ("mean", "nearest", "linear"),
}
"""Ways of resampling by what pixels are, the default of a pyramid first."""


def on_levels(
    array: xr.DataArray, slide: Slide, levels: Levels, resample: Resample | None, kind: str
) -> list[Placed]:
    """Return the pixels of an array on each level that is written.

    Parameters
    ----------
    array : xarray.DataArray
        Dims (channel, y, x) in mm, or (channel, row, column) as stored.
    slide : Slide
        Slide with the levels.
    levels, resample
        See :func:`write_segmentation`.
    kind : {"BINARY", "FRACTIONAL", "LABELMAP", "MAP"}
        What the pixels are.

    Raises
    ------
    GridError
        See :func:`dicomslide.write.grids.placed`.
    ValueError
        When `levels` or `resample` isn't among those that fit.

    """
    if resample is not None and resample not in FITTING[kind]:
        raise ValueError(
            f"resample {resample!r}: expected one of {list(FITTING[kind])} for {kind}"
            if resample in get_args(Resample)
            else f"resample {resample!r}: expected one of {list(get_args(Resample))}"
        )
    if levels == "free":
        return [own_grid(array, slide)]
    if levels == "own":
        return [placed(array, slide)]
    if levels == "all":
        own = placed(array, slide)
        return _pyramid(array, slide, own, resample or FITTING[kind][0], kind)
    if isinstance(levels, str):  # type: ignore[unreachable]
        raise ValueError(f'levels {levels!r}: expected "own", "all", "free", or numbers of levels')
    return [_on_level(array, slide, level, resample, kind) for level in _numbers(levels)]


def _numbers(levels: Any) -> list[int]:
    """Return the numbers of levels, each once."""
    given = [levels] if isinstance(levels, (int, np.integer)) else levels
    numbers = list(given) if isinstance(given, Iterable) else []
    if (
        not numbers
        or any(isinstance(n, bool) or not isinstance(n, (int, np.integer)) for n in numbers)
        or len(set(numbers)) < len(numbers)
    ):
        raise ValueError(
            f'levels {levels!r}: expected "own", "all", "free", or numbers of levels, each once'
        )
    return [int(n) for n in numbers]


def _on_level(
    array: xr.DataArray, slide: Slide, level: int, resample: Resample | None, kind: str
) -> Placed:
    """Return the pixels on a level: as they are if it is theirs, else resampled."""
    own = None
    try:
        own = placed(array, slide)
    except GridError:
        if resample is None:
            raise
    else:
        if own.grid.level == level:
            return own
        if resample is None:
            raise GridError(
                f"the pixels are those of level {own.grid.level}, not of level {level}: choose how"
                ' they get there, such as resample="nearest"'
            )
    assert resample is not None
    grid = grid_of_level(slide, level)
    array = upright(array, slide)
    if own is not None and kind != "MAP":
        array = _padded(array, slide, own, grid)
    return _on(grid, _resampled(array, slide, grid, resample), array)


def _pyramid(
    array: xr.DataArray, slide: Slide, own: Placed, method: Resample | str, kind: str
) -> list[Placed]:
    """Return the pixels on their level and on all coarser ones, each computed from the one before.

    Pixels of coarser levels are kept on disk until they are written: tasks that wait for all pixels
    below them would hold them in memory.
    """
    assert own.grid.level is not None
    found = [own]
    coarser = range(own.grid.level + 1, slide.num_levels)
    here = upright(array, slide) if coarser else array
    if coarser and kind != "MAP":
        here = _padded(here, slide, own, grid_of_level(slide, coarser[-1]))
    for level in coarser:
        grid = grid_of_level(slide, level)
        is_fraction = found[-1].in_fractions
        resampled = _resampled(here, slide, grid, method, in_fractions=is_fraction)
        scratch = Scratch(resampled.shape, resampled.dtype)
        found[-1] = dataclasses.replace(found[-1], kept=(resampled.data, scratch))
        here = resampled.copy(data=scratch.dask_array())
        found.append(_on(grid, here, array))
    return found


def _padded(array: xr.DataArray, slide: Slide, own: Placed, coarser: Grid) -> xr.DataArray:
    """Return an upright array with zeros around it, up to the edges of its level.

    Coarser pixels that lie partly in a region are then those of the whole level, of which the rest
    is zero. There are as many zeros as two pixels of the coarsest level need.
    """
    import dask.array as da
    import xarray as xr

    like = own.grid.like(slide._said("FrameOfReferenceUID"))
    kept, widths = {}, []
    for dim, reach in zip(("y", "x"), reversed(coarser.geometry.slide_spacing), strict=True):
        count, centres = array.sizes[dim], like[dim].values
        first = int(np.abs(centres - float(array[dim][0])).argmin())
        index: Any = like.xindexes[dim]
        wanted = math.ceil(2 * reach / index.spacing)
        before, after = min(first, wanted), min(len(centres) - first - count, wanted)
        kept[dim] = slice(first - before, first + count + after)
        widths.append((before, after))
    if not any(map(any, widths)):
        return array
    array = array.transpose(..., "y", "x")
    pixels: Any = array.data
    widths = [(0, 0)] * (array.ndim - 2) + widths
    around = da.pad(pixels, widths, constant_values=0)
    others = {name: each for name, each in array.coords.items() if not {"y", "x"} & {*each.dims}}
    padded = xr.DataArray(around, others, array.dims, array.name, array.attrs)
    return padded.assign_coords(like.isel(kept).coords)


def _on(grid: Grid, resampled: xr.DataArray, array: xr.DataArray) -> Placed:
    """Return resampled pixels on their grid, and whether they are fractions of the array's."""
    in_fractions = array.dtype.kind == "b" and resampled.dtype.kind != "b"
    return dataclasses.replace(placed_on(resampled, grid), in_fractions=in_fractions)


def _resampled(
    array: xr.DataArray, slide: Slide, grid: Grid, method: Any, *, in_fractions: bool = False
) -> xr.DataArray:
    """Return an array on the pixels of a level whose centres lie within its extent, lazily.

    Majorities of bool are fractions of 1/255, whose means are those of a coarser level.
    """
    import dask.array as da
    import xarray as xr

    if grid.orientation is None:
        raise GridError(
            f"level {grid.level} lies obliquely on the slide: pixels in mm can't be resampled onto"
            " it; write rows and columns as stored"
        )
    like = grid.like(slide._said("FrameOfReferenceUID"))
    chunks = []
    for dim in ("y", "x"):
        step = abs(float(like[dim][1] - like[dim][0])) if like.sizes[dim] > 1 else None
        index: Any = array.xindexes[dim]
        half = index.spacing / 2
        ends = sorted((float(array[dim][0]), float(array[dim][-1])))
        inside = (like[dim].values >= ends[0] - half) & (like[dim].values <= ends[1] + half)
        if not inside.any():
            raise GridError(
                f"{dim} from {ends[0]:.9g} to {ends[1]:.9g} mm: no pixel of level {grid.level} is"
                " there"
            )
        like = like.isel({dim: np.flatnonzero(inside)})
        chunks.append(_chunks_like(array, like, dim, step))
    shape = like.sizes["y"], like.sizes["x"]
    empty = da.empty(shape, dtype=np.uint8, chunks=tuple(chunks))
    grid_of_chunks = xr.DataArray(empty, like.coords, ("y", "x"))
    if method == "any":
        return match(array, grid_of_chunks, "mean", 0) > 0
    if method == "majority" and array.dtype.kind == "b":
        fractions = match(array, grid_of_chunks, "mean", 0)
        return (fractions * np.float32(255)).round().astype(np.uint8)
    if method == "majority" and in_fractions:
        method = "mean"
    return match(array, grid_of_chunks, method, 0)


MOST_IN_CHUNK = 2048
LEAST_IN_CHUNK = 16


def _chunks_like(
    array: xr.DataArray, like: xr.Dataset, dim: str, step: float | None
) -> tuple[int, ...]:
    """Return chunks of the new pixels that need few chunks of an array: with its borders."""
    count = like.sizes[dim]
    if step is None or array.chunks is None:
        return (count,)
    middles = array[dim].values
    sign = 1 if dim == "x" else -1
    first = float(like[dim][0])
    ends = list(itertools.accumulate(array.chunksizes[dim]))[:-1]
    borders, last = [0], 0
    for end in ends:
        edge = (float(middles[end - 1]) + float(middles[end])) / 2
        border = min(max(round(sign * (edge - first) / step + 0.5), 0), count)
        if border - last >= LEAST_IN_CHUNK:
            # upsampled chunks are cut into parts of a block
            borders += [*range(last + MOST_IN_CHUNK, border, MOST_IN_CHUNK), border]
            last = border
    borders += [*range(last + MOST_IN_CHUNK, count, MOST_IN_CHUNK), count]
    return tuple(np.diff(sorted(set(borders))).tolist())
