"""Application of a model to a whole level, tile by tile."""

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

    from dicomslide.slide.slide import Slide

__all__ = ["map_tiles"]

MIN_OVERLAP = 1e-3
"""Pixels by which a mask's pixel must overlap a tile to select it: coordinates are rounded."""


def map_tiles(
    image: xr.DataArray | Slide,
    model: Callable[[NDArray[Any]], Any],
    *,
    halo: int = 0,
    factor: int | None = 1,
    where: xr.DataArray | None = None,
    dtype: DTypeLike = np.float32,
    spacing: float | str | None = None,
    tile: int = 1024,
) -> xr.DataArray:
    """Apply a model to a level, tile by tile; a tile is a chunk of the image.

    All tiles have one shape; beyond the border of the image, its edge pixels are repeated. With a
    halo as large as the receptive field of the model, the result has no seams between tiles.

    Parameters
    ----------
    image : xarray.DataArray or Slide
        A slide, with a `spacing`; or a dask array, dims ``y``, ``x`` and others, such as
        ``sample``, in any order. Its chunks set the tiles: open the slide with, for instance,
        ``to_datatree(chunks=1024)``, which makes chunks of whole frames.
    model : callable
        Takes a tile with its halo, a NumPy array with the dims of the image. Returns an array
        (y, x) with a value per box of `factor` × `factor` pixels, halo included (it is trimmed);
        or a single number if `factor` is None. The model is pickled and sent to each worker once.
        For a model that can't be pickled, such as a network on a GPU, pass a function that creates
        it at the first tile in each process, and caches it (:func:`functools.cache`).
    halo : int, default: 0
        Pixels of neighbouring tiles to add on each side; a multiple of `factor`.
    factor : int or None, default: 1
        Pixels of the image per pixel of the result along each axis; None for one value per tile.
    where : xarray.DataArray, optional
        Mask of the tiles to process: bool, dims ``y`` and ``x`` in mm, of any region at any level.
        A tile is processed if any True pixel overlaps it. The mask is computed at once. Frames of
        other tiles are read for halos only; the result there is NaN, or zero for integers.
    dtype : dtype, default: float32
        Data type of the result. Values of the model are never rounded or wrapped to integers.
    spacing : float or str, optional
        Distance between pixels at which a slide is read: a number in mm, or text such as
        ``"0.5 um"`` or ``"10x"`` (1 µm): see :meth:`dicomslide.Slide.to_dataset`.
    tile : int, default: 1024
        Pixels along the edge of a tile, where a slide is read.

    Returns
    -------
    xarray.DataArray
        Dims ``y`` and ``x``, with coordinates in mm of the centres of its pixels. Lazy.

    Raises
    ------
    ValueError
        When the image isn't chunked in equal tiles, halo or tiles aren't multiples of `factor`,
        or `where` isn't bool; on computation, when the model returns another shape, or values
        that `dtype` can't hold. A note of the exception gives the position of the tile in mm.

    Examples
    --------
    >>> scores = map_tiles(level.image, model, halo=32, factor=4, where=mask)

    """
    import dask.array as da
    import xarray as xr
    from dask.base import tokenize
    from dask.delayed import delayed
    from dask.highlevelgraph import HighLevelGraph

    if not isinstance(image, xr.DataArray):
        if spacing is None:
            raise TypeError("a slide needs a spacing: map_tiles(slide, model, spacing=...)")
        opened: xr.DataArray = image.to_dataset(spacing=spacing, chunks=tile).image
        image = opened.chunk(y=tile, x=tile)
    elif spacing is not None:
        raise TypeError("spacing is for a slide; an array has the spacing of its coordinates")
    if image.chunks is None:
        raise ValueError(
            "the image has no chunks, and tiles are chunks: open the slide with chunks, such as"
            " chunks=1024"
        )
    image = image.chunk({dim: -1 for dim in image.dims if dim not in ("y", "x")})
    data, axes = image.data, image.get_axis_num(("y", "x"))
    rows, columns = tilings = [_Tiling.of(data.chunks[axis]) for axis in axes]
    lengths = [halo, rows.tile, columns.tile]
    unit = 1 if factor is None else factor
    if unit < 1 or not 0 <= halo <= min(lengths) or any(n % unit for n in lengths):
        raise ValueError(
            f"tiles of {rows.tile} × {columns.tile} pixels with a halo of {halo} pixels can't be"
            f" made with a factor of {factor}; expected multiples of the factor, and a halo no"
            " larger than a tile"
        )
    for axis, tiling in zip(axes, tilings, strict=True):
        data = tiling.padded(data, axis)
    if halo:
        around = dict.fromkeys(axes, halo)
        data = da.overlap.overlap(data, around, dict.fromkeys(axes, "nearest"))  # type: ignore[no-untyped-call]
    selected = _tiles_under(where, image, tilings)
    function = delayed(model, pure=True)  # a key of its own, so that each worker gets it once
    steps = [factor or tiling.tile for tiling in tilings]
    shape = rows.tile // steps[0], columns.tile // steps[1]
    trim = None if factor is None else halo // factor
    dtype = np.dtype(dtype)
    name = "map_tiles-" + tokenize(data, function, factor, halo, selected, dtype)
    down, across = (
        [f"{dim} = {first:.4f} to {last:.4f}" for first, last in image[dim].values[tiling.ends()]]
        for dim, tiling in zip(("y", "x"), tilings, strict=True)
    )
    graph: dict[Any, Any] = {}
    for at in np.ndindex(selected.shape):
        block = [0] * data.ndim
        block[axes[0]], block[axes[1]] = at
        source = (data.name, *block)
        place = f"{across[at[1]]}, {down[at[0]]} mm"
        run = (_run, function.key, source, place, shape, trim, dtype)
        graph[name, *at] = run if selected[at] else (_fill, shape, dtype)
    whole = da.Array(  # type: ignore[no-untyped-call]
        HighLevelGraph.from_collections(name, graph, dependencies=[data, function]),
        name,
        chunks=[(n,) * count for n, count in zip(shape, selected.shape, strict=True)],
        dtype=dtype,
    )
    scalars = {name: each for name, each in image.coords.items() if not each.dims}
    result = xr.DataArray(whole, scalars, ("y", "x"), "tiles")
    for dim, tiling, step in zip(("y", "x"), tilings, steps, strict=True):
        first, end = tiling.before // step, -(-(tiling.before + tiling.length) // step)
        begin = first * step - tiling.before
        result = result.isel({dim: slice(first, end)}).assign_coords(
            coarser(image, dim, factor=step, first=begin, length=end - first)
        )
    return result


@dataclasses.dataclass(frozen=True)
class _Tiling:
    """Tiles of one length along an axis; the first and the last may extend beyond the image."""

    tile: int
    """Pixels of a tile."""
    length: int
    """Pixels of the image."""
    before: int
    """Pixels of the first tile before the first pixel of the image."""
    count: int
    """Number of tiles."""

    @classmethod
    def of(cls, chunks: tuple[int, ...]) -> _Tiling:
        tile = max(chunks)
        if any(n != tile for n in chunks[1:-1]):
            raise ValueError(
                f"chunks are {chunks}; expected equal ones (the first and the last may be smaller),"
                " since tiles are chunks: rechunk the image"
            )
        return cls(tile, sum(chunks), (tile - chunks[0]) if len(chunks) > 1 else 0, len(chunks))

    def padded(self, data: Any, axis: int) -> Any:
        """Repeat the edge pixels of an array until all tiles are whole."""
        import dask.array as da

        width = [(0, 0)] * data.ndim
        width[axis] = self.before, self.tile * self.count - self.before - self.length
        if width[axis] == (0, 0):
            return data
        return da.pad(data, width, mode="edge").rechunk({axis: self.tile})

    def ends(self) -> NDArray[np.intp]:
        """Return the first and the last pixel's index in each tile, shape (tiles, 2)."""
        starts = np.arange(self.count) * self.tile - self.before
        return np.stack([starts, starts + self.tile - 1], axis=1).clip(0, self.length - 1)


def _tiles_under(
    where: xr.DataArray | None, image: xr.DataArray, tilings: list[_Tiling]
) -> NDArray[np.bool_]:
    """Return a bool for each tile, shape (tiles down, tiles across): whether a mask overlaps it."""
    if where is None:
        return np.ones([tiling.count for tiling in tilings], np.bool_)
    if where.dtype != np.bool_:  # NaN would be True
        raise ValueError(
            f"where is {where.dtype}; expected a mask of bool: compare it, such as where > 0"
        )
    selected = where.transpose("y", "x").values
    for axis, (dim, tiling) in enumerate(zip(("y", "x"), tilings, strict=True)):
        step = step_of(image, dim)
        middle = (where[dim].values - float(image[dim][0])) / step + 0.5  # in pixels of the image
        half = abs(step_of(where, dim) / step) / 2 - MIN_OVERLAP
        selected = np.stack(
            [
                selected.compress((middle + half > first) & (middle - half < last + 1), axis).any(
                    axis
                )
                for first, last in tiling.ends()
            ],
            axis,
        )
    return selected


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
                f"the model returned an array of shape {result.shape} for a tile of shape"
                f" {tile.shape}; expected {expected}"
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
    with np.errstate(invalid="ignore"):  # NaN fails the comparison below
        converted = result.astype(dtype)
    if not np.array_equal(converted, result):
        raise ValueError(
            f"the model returned {result.dtype} with values that {dtype} can't hold: round them, or"
            " choose another dtype"
        )
    return converted


def _fill(shape: tuple[int, int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the result of a tile that isn't processed."""
    return np.full(shape, np.nan if dtype.kind == "f" else 0, dtype)
