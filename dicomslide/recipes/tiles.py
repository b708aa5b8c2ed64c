"""A model over a whole level, tile by tile."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.labelled.coordinates import step_of
from dicomslide.recipes.grid import coarser

if TYPE_CHECKING:
    from collections.abc import Callable

    import xarray as xr
    from numpy.typing import DTypeLike, NDArray

__all__ = ["map_tiles"]

NOISE = 1e-3
"""Pixels by which a mask has to reach into a tile: coordinates are rounded."""


def map_tiles(
    image: xr.DataArray,
    model: Callable[[NDArray[Any]], Any],
    *,
    halo: int = 0,
    factor: int | None = 1,
    where: xr.DataArray | None = None,
    dtype: DTypeLike = np.float32,
) -> xr.DataArray:
    """Run a model over a level, tile by tile; a tile is a chunk of the image.

    All tiles have one shape, also at the borders, beyond which the image's edge is repeated.
    Neighbours are read for the halo, so that the result has no seams if the halo is as large as
    the model looks around.

    Parameters
    ----------
    image : xarray.DataArray
        Of dask arrays, dims ``y``, ``x`` and others, such as ``sample``, in any order. Open the
        slide with the chunks that are wanted, for instance ``to_datatree(chunks=1024)``: these
        are whole frames.
    model : callable
        Takes a tile with its halo, dims as in the image. Returns an array (y, x) of
        one value for each box of `factor` pixels squared, that of the halo included, which is
        trimmed; or a single number, if `factor` is None. It travels to each worker once; where
        it can't, such as a network on a graphics card, give a function that makes it at its
        first tile in each process, and keeps it (:func:`functools.cache`).
    halo : int, default: 0
        Pixels of its neighbours that a tile is given on each side; a multiple of `factor`.
    factor : int or None, default: 1
        By how much the result is coarser than the image; None for one number a tile.
    where : xarray.DataArray, optional
        A mask, bool, dims ``y`` and ``x`` in mm, of any region at any level, that says where
        the model is run: on tiles that any of it lies in. It is computed at once. Frames of
        other tiles aren't read, unless for a halo; there the result is NaN, or zero if integer.
    dtype : dtype, default: float32
        Of the result; integers are the model's values as they are, never rounded or wrapped.

    Returns
    -------
    xarray.DataArray
        Dims ``y`` and ``x``, in the same millimetres: of the centres of its own pixels. Lazy.

    Raises
    ------
    ValueError
        When the image isn't chunked in equal tiles, halo and tiles aren't multiples of `factor`,
        `where` isn't bool; or, as it is computed, when the model's result has another shape, or
        values that `dtype` can't hold. A note says at which tile the model failed, in mm.

    """
    import dask.array as da
    import xarray as xr
    from dask.base import tokenize
    from dask.delayed import delayed
    from dask.highlevelgraph import HighLevelGraph

    if image.chunks is None:
        raise ValueError("the image has no chunks, and tiles are chunks: open it with some")
    image = image.chunk({dim: -1 for dim in image.dims if dim not in ("y", "x")})
    data, axes = image.data, image.get_axis_num(("y", "x"))
    rows, columns = lattices = [_Lattice.of(data.chunks[axis]) for axis in axes]
    lengths = [halo, rows.tile, columns.tile]
    unit = 1 if factor is None else factor
    if unit < 1 or not 0 <= halo <= min(lengths) or any(n % unit for n in lengths):
        raise ValueError(
            f"tiles of {rows.tile} × {columns.tile} pixels with a halo of {halo} pixels can't be"
            f" made with a factor of {factor}: all are multiples of the factor, and a halo is no"
            " larger than a tile"
        )
    for axis, lattice in zip(axes, lattices, strict=True):
        data = lattice.completed(data, axis)
    if halo:
        around = dict.fromkeys(axes, halo)
        data = da.overlap.overlap(data, around, dict.fromkeys(axes, "nearest"))  # type: ignore[no-untyped-call]
    chosen = _chosen(where, image, lattices)
    function = delayed(model, pure=True)  # a key of its own, which each worker gets once
    steps = [factor or lattice.tile for lattice in lattices]
    shape = rows.tile // steps[0], columns.tile // steps[1]
    trim = None if factor is None else halo // factor
    dtype = np.dtype(dtype)
    name = "map_tiles-" + tokenize(data, function, factor, halo, chosen, dtype)
    down, across = (
        [f"{dim} = {first:.4f} to {last:.4f}" for first, last in image[dim].values[lattice.ends()]]
        for dim, lattice in zip(("y", "x"), lattices, strict=True)
    )
    graph: dict[Any, Any] = {}
    for at in np.ndindex(chosen.shape):
        block = [0] * data.ndim
        block[axes[0]], block[axes[1]] = at
        tile = (data.name, *block)
        place = f"{across[at[1]]}, {down[at[0]]} mm"
        run = (_run, function.key, tile, place, shape, trim, dtype)
        graph[name, *at] = run if chosen[at] else (_nothing, shape, dtype)
    whole = da.Array(  # type: ignore[no-untyped-call]
        HighLevelGraph.from_collections(name, graph, dependencies=[data, function]),
        name,
        chunks=[(n,) * count for n, count in zip(shape, chosen.shape, strict=True)],
        dtype=dtype,
    )
    scalars = {name: each for name, each in image.coords.items() if not each.dims}
    result = xr.DataArray(whole, scalars, ("y", "x"), "tiles")
    for dim, lattice, step in zip(("y", "x"), lattices, steps, strict=True):
        first, end = lattice.before // step, -(-(lattice.before + lattice.length) // step)
        begin = first * step - lattice.before
        result = result.isel({dim: slice(first, end)}).assign_coords(
            coarser(image, dim, factor=step, first=begin, length=end - first)
        )
    return result


@dataclasses.dataclass(frozen=True)
class _Lattice:
    """Tiles of one length along an axis, the first and the last of which may reach outside."""

    tile: int
    length: int
    """Pixels of the image."""
    before: int
    """Pixels of the first tile that lie outside."""
    count: int

    @classmethod
    def of(cls, chunks: tuple[int, ...]) -> _Lattice:
        tile = max(chunks)
        if any(n != tile for n in chunks[1:-1]):
            raise ValueError(f"tiles are chunks, and have to be equal: not {chunks}")
        return cls(tile, sum(chunks), (tile - chunks[0]) if len(chunks) > 1 else 0, len(chunks))

    def completed(self, data: Any, axis: int) -> Any:
        """Repeat the edges of an array until all tiles are whole."""
        import dask.array as da

        width = [(0, 0)] * data.ndim
        width[axis] = self.before, self.tile * self.count - self.before - self.length
        if width[axis] == (0, 0):
            return data
        return da.pad(data, width, mode="edge").rechunk({axis: self.tile})

    def ends(self) -> NDArray[np.intp]:
        """Return the first and the last pixel of the image in each tile, shape (tiles, 2)."""
        starts = np.arange(self.count) * self.tile - self.before
        return np.stack([starts, starts + self.tile - 1], axis=1).clip(0, self.length - 1)


def _chosen(
    where: xr.DataArray | None, image: xr.DataArray, lattices: list[_Lattice]
) -> NDArray[np.bool_]:
    """Return which tiles any of a mask lies in."""
    if where is None:
        return np.ones([lattice.count for lattice in lattices], np.bool_)
    if where.dtype != np.bool_:  # NaN would be True
        raise ValueError(f"where is a mask of bool, not of {where.dtype}: compare it")
    chosen = where.transpose("y", "x").values
    for axis, (dim, lattice) in enumerate(zip(("y", "x"), lattices, strict=True)):
        step = step_of(image, dim)
        middle = (where[dim].values - float(image[dim][0])) / step + 0.5  # in pixels of the image
        half = abs(step_of(where, dim) / step) / 2 - NOISE
        chosen = np.stack(
            [
                chosen.compress((middle + half > first) & (middle - half < last + 1), axis).any(
                    axis
                )
                for first, last in lattice.ends()
            ],
            axis,
        )
    return chosen


def _run(
    model: Callable[[NDArray[Any]], Any],
    tile: NDArray[Any],
    place: str,
    shape: tuple[int, int],
    trim: int | None,
    dtype: np.dtype[Any],
) -> NDArray[Any]:
    try:
        result = np.asarray(model(tile))
        expected = () if trim is None else tuple(n + 2 * trim for n in shape)
        if result.shape != expected:
            raise ValueError(
                f"the model made an array of shape {result.shape} of a tile of shape {tile.shape},"
                f" not {expected}"
            )
        if trim:
            result = result[trim:-trim, trim:-trim]
        return _converted(result.reshape(shape), dtype)
    except Exception as error:
        error.add_note(f"in the tile at {place}")
        raise


def _converted(result: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind not in "iub":
        return result.astype(dtype, casting="same_kind")
    with np.errstate(invalid="ignore"):  # NaN isn't equal to what it becomes
        converted = result.astype(dtype)
    if not np.array_equal(converted, result):
        raise ValueError(f"the model's {result.dtype} has values that {dtype} can't hold: round it")
    return converted


def _nothing(shape: tuple[int, int], dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.full(shape, np.nan if dtype.kind == "f" else 0, dtype)
