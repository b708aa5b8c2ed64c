"""Application of a model to a slide, tile by tile."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from dicomslide.errors import MetadataError
from dicomslide.header.dicom import two_integers
from dicomslide.labelled.coordinates import step_of
from dicomslide.labelled.resolution import wanted_spacing
from dicomslide.options import check_memory
from dicomslide.recipes.grid import coarser
from dicomslide.recipes.tile_checks import check_tile, checked_image, checked_integer, checked_mask
from dicomslide.recipes.tile_source import source_of
from dicomslide.recipes.tile_tasks import TileOutput, Work
from dicomslide.recipes.tilings import Tiling

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import xarray as xr
    from numpy.typing import DTypeLike, NDArray

    from dicomslide.header.resolution import Spacing
    from dicomslide.slide.slide import Slide

__all__ = ["TileOutput", "embed_tiles", "image_of", "map_tiles"]

MIN_OVERLAP = 1e-3
"""Pixels by which a mask's pixel must overlap a tile to select it: coordinates are rounded."""
SLIDE_TILE = 1024
"""Pixels along the edge of a tile of a slide, where none are given."""
EMBEDDED_TILE = 224
"""The same for embeddings: what most models take."""

_Tilings: TypeAlias = "tuple[Tiling, Tiling]"
"""Tiles along y and x."""


def map_tiles(
    image: xr.DataArray | Slide,
    model: Callable[[NDArray[Any]], Any],
    *,
    halo: int = 0,
    factor: int | None = 1,
    where: xr.DataArray | None = None,
    dtype: DTypeLike = np.float32,
    spacing: Spacing | None = None,
    tile: int | tuple[int, int] | None = None,
    level: int | None = None,
    batch: int | None = None,
    dims: Mapping[str, int | Sequence[Any]] | None = None,
    fill_value: Any = None,
    outputs: Sequence[TileOutput] | Mapping[str, TileOutput] | Literal["infer"] | None = None,
    return_mask: bool = False,
) -> Any:
    """Apply a model to a slide, tile by tile.

    A task reads its tile and the halo around it, runs the model, and cuts the halo off. All tiles
    have one shape. Beyond the border of the image, its edge pixels are repeated. With a halo as
    large as the receptive field of the model, the result has no seams between tiles.

    Parameters
    ----------
    image : Slide or xarray.DataArray
        A slide, with a `spacing` or a `level`; or an array with the dims ``y``, ``x`` and others,
        such as ``sample``, in any order. Where an array is a slide's (or of Zarr, ...), whatever
        has been selected of it, tasks read from the slide. Of an array that is computed, they
        depend on its chunks.
    model : callable
        Takes a tile with its halo, a NumPy array with the dims of the image; or, with a `batch`,
        several along a first dim. Returns an array ``(*dims, y, x)`` with a value per box of
        `factor` × `factor` pixels, halo included (cut off); or ``(*dims)`` if `factor` is None;
        with a `batch`, the same with a first dim of tiles. The model is one value of the graph,
        that each worker of a cluster is sent once; dask's scheduler of processes sends it with each
        task. It may be a :class:`dask.delayed.Delayed` or a future, as of ``client.scatter``. For a
        model that can't be pickled, such as a network on a GPU, pass a function that creates it at
        the first tile in each process, and caches it (:func:`functools.cache`).
    halo : int, default: 0
        Pixels to add on each side; a multiple of `factor`.
    factor : int or None, default: 1
        Pixels of the image per pixel of the result along each axis; None for one value per tile.
    where : xarray.DataArray, optional
        Mask of the tiles to process: bool, dims ``y`` and ``x`` in mm, of any region at any level.
        A tile is processed if any True pixel overlaps it. The mask is computed at once. Frames of
        other tiles are read for halos only. A function, as :func:`tile_grid` takes, is not
        accepted.
    dtype : dtype, default: float32
        Data type of the result. Values of the model are never rounded or wrapped to integers.
    spacing : float or str, optional
        Distance between pixels at which a slide is read: a number in mm, or text such as
        ``"0.5 um"`` or ``"10x"`` (1 µm): see :meth:`dicomslide.Slide.to_dataset`.
    tile : int or tuple of int, optional
        Pixels along the edges of a tile, or its rows and columns; multiples of `factor`. Tiles
        begin at the first pixel of the image; one that is larger than the image is passed to the
        model whole, the edge of the image repeated. By default 1024 for a slide; of an array, each
        chunk is a tile.
    level : int, optional
        Zero-based index into pyramid levels, where a slide is read.
    batch : int, optional
        Most tiles of a call of the model. A task then reads a block of so many tiles at once, and
        a chunk of the result is such a block. Fewer are passed at the border, and where `where`
        leaves tiles out.
    dims : mapping, optional
        Name of each dim that the model returns before ``y`` and ``x``, and its length or its
        labels: ``{"class": ["stroma", "tumour"]}``.
    fill_value : scalar, optional
        Value of the result where no tile is processed; NaN if not given, or zero for integers and
        bool.
    outputs : sequence or mapping of TileOutput, or "infer", optional
        What a model of several outputs returns: a tuple, or a dict with the keys of the mapping.
        Each :class:`TileOutput` has `factor`, `dtype`, `dims` and `fill_value` of its own.
        ``"infer"`` calls the model at once, with a tile of zeros, and takes number, shapes and data
        types of its outputs from what it returns: a single dim before ``y`` and ``x`` is
        ``class``, a vector ``feature``.
    return_mask : bool, default: False
        Whether to return the mask of the tiles that are processed, too.

    Returns
    -------
    result : xarray.DataArray or xarray.Dataset
        Dims ``(*dims, y, x)``, with coordinates in mm of its pixels' centres. Lazy; a chunk for
        each task. With a `tile`, or of a slide, all chunks but the last are of one size, as Zarr
        needs them. Several `outputs` are variables of a dataset, by the keys of the mapping or as
        ``output_0``, ``output_1``, ...; those that aren't of the smallest factor have dims such as
        ``y_16`` and ``x_16``, or ``y_tile`` and ``x_tile``.
    mask : xarray.DataArray
        Only with `return_mask`: bool, dims ``y`` and ``x``, one value per tile, in memory.

    Raises
    ------
    TypeError
        When `image` is neither a slide nor a labelled array, or `where` no labelled array; a slide
        is given without a spacing or a level, or an array with one; or `outputs` beside what
        describes a single one.
    ValueError
        When an array has no pixels, or none along ``y`` and ``x``; it isn't chunked in equal tiles
        and no `tile` is given; halo or tiles aren't multiples of `factor`; the halo exceeds both
        1024 pixels and the image; or `where` isn't bool with evenly spaced ``y`` and ``x``. On
        computation, when the model returns another shape, or values that `dtype` can't hold. A note
        of the exception gives the position of the tile in mm.
    GridError
        When `where` has another frame of reference than the image.
    MemoryLimitError
        When the tiles of a task with their halo, or a chunk of the result, exceed the option
        `memory_limit_bytes`.

    Notes
    -----
    The bars of dask count tiles: ``with dask.diagnostics.ProgressBar(): result.compute()``, or
    ``distributed.progress(result.persist())`` on a cluster.

    Examples
    --------
    >>> scores = map_tiles(slide, model, spacing="0.5 um", tile=512, halo=32, where=mask)
    >>> scores.to_zarr("scores.zarr")

    """
    import xarray as xr

    image, tilings, halo, batch = _checked(
        image, spacing=spacing, level=level, tile=tile, default=SLIDE_TILE, halo=halo, batch=batch
    )
    single = TileOutput(dims or {}, factor, dtype, fill_value)
    described: Any = outputs
    if outputs is not None and single != TileOutput():
        raise TypeError("outputs describes all of them: leave out factor, dtype, dims, fill_value")
    if isinstance(outputs, str):
        if outputs != "infer":
            raise TypeError(f'outputs {outputs!r}: expected TileOutput, or "infer"')
        described = _inferred(_call(model, image, tilings, halo, batch), tilings, halo, batch)
    if isinstance(described, TileOutput):
        described, single = None, described
    each = _listed(described, single)
    for output in each:
        _check_factor(tilings, halo, output.factor)
    wanted = _tiles_under(where, image, tilings)
    arrays = _computed(
        image, model, tilings,
        halo=halo, batch=batch, outputs=each, described=described, wanted=wanted,
    )  # fmt: skip
    found = [
        _labelled(image, data, output, tilings) for data, output in zip(arrays, each, strict=True)
    ]
    result: Any = found[0].rename("tiles")
    if described is not None:
        numbered = [f"output_{number}" for number in range(len(each))]
        names = list(described) if isinstance(described, Mapping) else numbered
        finest = min(output.factor or math.inf for output in each)
        result = xr.Dataset(
            {
                name: array if (output.factor or math.inf) == finest else _renamed(array, output)
                for name, array, output in zip(names, found, each, strict=True)
            }
        )
    return (result, _mask_of(image, tilings, wanted)) if return_mask else result


def embed_tiles(
    image: xr.DataArray | Slide,
    model: Callable[[NDArray[Any]], Any],
    *,
    spacing: Spacing | None = None,
    level: int | None = None,
    tile: int | tuple[int, int] | None = None,
    halo: int = 0,
    where: xr.DataArray | None = None,
    batch: int | None = 32,
    features: int | None = None,
    dtype: DTypeLike = np.float32,
) -> xr.DataArray:
    """Return a vector for each tile of a slide, such as the embedding of a foundation model.

    Parameters
    ----------
    image, spacing, level, tile, halo, where
        See :func:`map_tiles`. Tiles of a slide have 224 pixels along an edge by default.
    model : callable
        Takes tiles along a first dim, then the dims of the image; returns an array (tiles,
        features). See :func:`map_tiles` for how it gets to workers.
    batch : int or None, default: 32
        Most tiles of a call of the model, and of a task; None for a model that takes a tile and
        returns a vector.
    features : int, optional
        Length of a vector. If it isn't given, the model is called at once, with a tile of zeros.
    dtype : dtype, default: float32
        Data type of the result.

    Returns
    -------
    xarray.DataArray
        Dims (tile, feature), with the tiles that are processed in row-major order, and the
        coordinates ``x`` and ``y`` in mm of their centres along ``tile``. Lazy; a chunk for each
        task.

    Raises
    ------
    TypeError, ValueError, GridError, MemoryLimitError
        See :func:`map_tiles`.

    Examples
    --------
    >>> vectors = embed_tiles(slide, model, spacing="0.5 um", where=mask)
    >>> near = vectors[abs(vectors.x - 12.5) < 1]

    """
    import xarray as xr

    image, tilings, halo, batch = _checked(
        image, spacing=spacing, level=level, tile=tile, default=EMBEDDED_TILE, halo=halo,
        batch=batch,
    )  # fmt: skip
    if features is not None:
        features = checked_integer(features, "features", or_none=True)
    else:
        shape = np.shape(_call(model, image, tilings, halo, batch))
        if len(shape) != (1 if batch is None else 2):
            raise ValueError(
                f"the model returned an array of shape {shape} for a tile of zeros; expected"
                f" {'(features,)' if batch is None else '(1, features)'}"
            )
        features = shape[-1]
    output = TileOutput({"feature": features}, None, dtype)
    wanted = _tiles_under(where, image, tilings)
    (data,) = _computed(
        image, model, tilings,
        halo=halo, batch=batch, outputs=[output], described=None, wanted=wanted, as_list=True,
    )  # fmt: skip
    centres = _mask_of(image, tilings, wanted)
    coords = {
        dim: ("tile", centres[dim].values[at], {"long_name": dim, "units": "mm"})
        for dim, at in zip(("y", "x"), np.nonzero(wanted), strict=True)
    }
    return xr.DataArray(data, coords, ("tile", "feature"), "embeddings")


def _checked(
    image: xr.DataArray | Slide,
    *,
    spacing: Spacing | None,
    level: int | None,
    tile: int | tuple[int, int] | None,
    default: int,
    halo: Any,
    batch: Any,
) -> tuple[xr.DataArray, _Tilings, int, int | None]:
    """Return the pixels, their tiles, the halo and the batch; `default` is the tile of a slide."""
    import xarray as xr

    image = checked_image(image)
    if tile is None and not isinstance(image, xr.DataArray):
        tile = default
    halo = checked_integer(halo, "halo", least=0)
    if batch is not None:
        batch = checked_integer(batch, "batch", or_none=True)
    image = image_of(image, spacing, level)
    tilings = _tilings_of(image, tile)
    check_tile(image, tilings, halo)
    return image, tilings, halo, batch


def image_of(
    image: xr.DataArray | Slide, spacing: Spacing | None, level: int | None
) -> xr.DataArray:
    """Return the pixels as a labelled array."""
    import xarray as xr

    if not isinstance(image, xr.DataArray):
        wanted = wanted_spacing(spacing, level)
        pixels: xr.DataArray = image.to_dataset(level or 0, spacing=wanted, chunks="auto").image
        if not {"y", "x"} <= set(pixels.dims):
            raise MetadataError(
                f"{image.name}: it has no upright array; give map_tiles one, with its dims renamed"
                " to y and x: slide.to_dataset().image.rename(row='y', column='x')"
            )
        return pixels
    if spacing is not None or level is not None:
        raise TypeError(
            "spacing and level are for a slide; an array has the spacing of its coordinates"
        )
    return image


def _tilings_of(image: xr.DataArray, tile: int | tuple[int, int] | None) -> _Tilings:
    """Return the tiles along y and x: of a size, or one for each chunk."""
    if tile is not None:
        sizes = (tile, tile) if isinstance(tile, (int, np.integer)) else tile
        down, across = two_integers(sizes, "tile", least=1)
        return Tiling.of_length(image.sizes["y"], down), Tiling.of_length(image.sizes["x"], across)
    if image.chunks is None:
        raise ValueError(
            "the image has no chunks, and tiles are chunks unless their size is given, such as"
            " tile=1024"
        )
    return Tiling.of_chunks(image.chunksizes["y"]), Tiling.of_chunks(image.chunksizes["x"])


def _check_factor(tilings: _Tilings, halo: int, factor: int | None) -> None:
    rows, columns = tilings
    if any(n % (factor or 1) for n in (halo, rows.tile, columns.tile)):
        raise ValueError(
            f"tiles of {rows.tile} × {columns.tile} pixels with a halo of {halo} pixels can't be"
            f" made with a factor of {factor}; expected multiples of the factor"
        )


def _listed(
    outputs: Sequence[TileOutput] | Mapping[str, TileOutput] | None, single: TileOutput
) -> tuple[TileOutput, ...]:
    """Return outputs in their order."""
    if outputs is None:
        return (single,)
    found = tuple(outputs.values() if isinstance(outputs, Mapping) else outputs)
    if not found or not all(isinstance(each, TileOutput) for each in found):
        raise TypeError(f"outputs {outputs!r}: expected a sequence or a mapping of TileOutput")
    return found


def _block_of(batch: int | None) -> tuple[int, int]:
    """Return the tiles of a task, down and across: as near to a square as they can be."""
    tiles = batch or 1
    down = next(n for n in range(math.isqrt(tiles), 0, -1) if tiles % n == 0)
    return down, tiles // down


def _computed(
    image: xr.DataArray,
    model: Any,
    tilings: _Tilings,
    *,
    halo: int,
    batch: int | None,
    outputs: Sequence[TileOutput],
    described: Any,
    wanted: NDArray[np.bool_],
    as_list: bool = False,
) -> list[Any]:
    """Return the outputs of a model as dask arrays.

    Parameters
    ----------
    image, model, halo, batch
        See :func:`map_tiles`.
    tilings : tuple of Tiling
        Tiles along y and x.
    outputs : sequence of TileOutput
        What the model returns.
    described : mapping, sequence or None
        How outputs were given; None for one.
    wanted : numpy.ndarray
        Whether each tile is processed, shape (tiles down, tiles across).
    as_list : bool
        Whether results are those of the processed tiles, one after the other; else of the image.

    """
    import dask.array as da
    from dask.base import tokenize

    from dicomslide.recipes.tile_graph import tile_arrays

    data = image.data if image.chunks or _is_in_memory(image) else image.chunk().data
    source, chunked = source_of(data, image.get_axis_num(("y", "x")))  # type: ignore[arg-type]
    rows, columns = tilings
    block = _block_of(batch)
    work = Work(
        source=source,
        rows=rows,
        columns=columns,
        halo=halo,
        batch=batch,
        outputs=tuple(outputs),
        names=tuple(described) if isinstance(described, Mapping) else None,
        is_one=described is None,
        down=image["y"].values[rows.ends()],
        across=image["x"].values[columns.ends()],
        block=block,
        wanted=None if wanted.all() or as_list else np.packbits(wanted),
    )
    tiles = has_tiles = None
    chunks: list[tuple[tuple[int, ...], ...]]
    if as_list:
        numbers = np.flatnonzero(wanted).astype(np.int32)
        step = batch or 1
        tiles = [numbers[start : start + step] for start in range(0, len(numbers), step)]
        if not tiles:
            return [da.zeros((0, *output.lead), dtype=output.dtype) for output in outputs]
        lengths = tuple(map(len, tiles))
        chunks = [(lengths, output.lead) for output in outputs]
    else:
        if not wanted.all():
            starts = [range(0, n, step) for n, step in zip(wanted.shape, block, strict=True)]
            has_tiles = np.logical_or.reduceat(wanted, starts[0], axis=0)
            has_tiles = np.logical_or.reduceat(has_tiles, starts[1], axis=1).ravel()
        chunks = [
            (
                *((n,) for n in output.lead),
                rows.chunks(output.factor or rows.tile, block[0]),
                columns.chunks(output.factor or columns.tile, block[1]),
            )
            for output in outputs
        ]
    at_once = (batch or 1) if as_list else math.prod(map(min, block, wanted.shape))
    at_once = max(min(at_once, int(np.count_nonzero(wanted))), 1)
    check_memory(at_once * check_tile(image, tilings, halo), f"a batch of {at_once} tiles")
    for output, each in zip(outputs, chunks, strict=True):
        nbytes = math.prod(map(max, each)) * np.dtype(output.dtype).itemsize
        check_memory(nbytes, "a chunk of the result")
    key = getattr(model, "key", None)  # of what is computed, or lies with the workers
    token = tokenize(
        data,
        model if key is None else key,
        tilings,
        halo,
        batch,
        outputs,
        described,
        wanted,
        as_list,
    )
    return tile_arrays(
        work,
        model,
        chunks,
        name="embed_tiles" if as_list else "map_tiles",
        token=token,
        data=chunked,
        tiles=tiles,
        has_tiles=has_tiles,
    )


def _is_in_memory(image: xr.DataArray) -> bool:
    return isinstance(image.variable._data, np.ndarray)


def _labelled(
    image: xr.DataArray, data: Any, output: TileOutput, tilings: _Tilings
) -> xr.DataArray:
    """Return an output with the mm of its pixels."""
    import xarray as xr

    coords: dict[Any, Any] = {
        name: each
        for name, each in image.coords.items()
        if not each.dims and name not in output.dims
    }
    coords |= {name: labels for name, labels in output.dims.items() if not _is_length(labels)}
    found = xr.DataArray(data, coords, (*output.dims, "y", "x"))
    for dim, tiling in zip(("y", "x"), tilings, strict=True):
        step = output.factor or tiling.tile
        first = tiling.first_of(step) * step - tiling.before
        length = tiling.count_of(step)
        found = found.assign_coords(coarser(image, dim, factor=step, first=first, length=length))
    return found


def _mask_of(image: xr.DataArray, tilings: _Tilings, wanted: NDArray[np.bool_]) -> xr.DataArray:
    """Return the mask of the tiles that are processed."""
    mask = _labelled(image, wanted, TileOutput(factor=None, dtype=np.bool_), tilings)
    return mask.rename("processed")


def _renamed(array: xr.DataArray, output: TileOutput) -> xr.DataArray:
    """Return an output that is coarser than others, with dims of its own."""
    end = "tile" if output.factor is None else str(output.factor)
    return array.rename(y=f"y_{end}", x=f"x_{end}")


def _tiles_under(
    where: xr.DataArray | None, image: xr.DataArray, tilings: _Tilings
) -> NDArray[np.bool_]:
    """Return a bool for each tile, shape (tiles down, tiles across): whether a mask overlaps it."""
    if where is None:
        return np.ones([tiling.count for tiling in tilings], np.bool_)
    where = checked_mask(where, image.xindexes)
    if not where.size:
        return np.zeros([tiling.count for tiling in tilings], np.bool_)
    selected = where.values
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


def _call(model: Any, image: xr.DataArray, tilings: _Tilings, halo: int, batch: int | None) -> Any:
    """Return what a model returns of a tile of zeros."""
    if not callable(model) or hasattr(model, "key"):
        raise TypeError(
            "a model that is computed, or that lies with the workers, can't be called here: say"
            " what it returns by features, outputs, dims and factor"
        )
    size = dict(zip(("y", "x"), (tiling.tile + 2 * halo for tiling in tilings), strict=True))
    shape = tuple(size.get(str(dim), length) for dim, length in image.sizes.items())
    return model(np.zeros(shape if batch is None else (1, *shape), image.dtype))


def _inferred(
    returned: Any, tilings: _Tilings, halo: int, batch: int | None
) -> TileOutput | list[TileOutput] | dict[str, TileOutput]:
    """Return the outputs of a model by what it returned of a tile of zeros."""
    if isinstance(returned, Mapping):
        return {str(k): _output_like(each, tilings, halo, batch) for k, each in returned.items()}
    if isinstance(returned, (tuple, list)):
        return [_output_like(each, tilings, halo, batch) for each in returned]
    return _output_like(returned, tilings, halo, batch)


def _output_like(returned: Any, tilings: _Tilings, halo: int, batch: int | None) -> TileOutput:
    found = np.asarray(returned)
    shape = found.shape if batch is None else found.shape[1:]
    whole = [tiling.tile + 2 * halo for tiling in tilings]
    factors = {n / m if m else 0.0 for n, m in zip(whole, shape[-2:], strict=False)}
    factor = factors.pop() if len(shape) >= 2 and len(factors) == 1 else 0.0
    if factor >= 1 and factor.is_integer() and len(shape) <= 3:
        dims = {"class": shape[0]} if len(shape) == 3 else {}
        return TileOutput(dims, int(factor), found.dtype)
    if len(shape) <= 1:
        return TileOutput({"feature": shape[0]} if shape else {}, None, found.dtype)
    raise ValueError(
        f"the model returned an array of shape {found.shape} for a tile of zeros of {whole[0]} ×"
        f" {whole[1]} pixels: say what it is, by outputs=[TileOutput(dims={{...}}, factor=...)]"
    )


def _is_length(value: Any) -> bool:
    return isinstance(value, (int, np.integer))
