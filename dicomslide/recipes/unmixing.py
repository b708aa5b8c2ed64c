"""Unmixing of fluorescence, and background of channels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.recipes.grid import coords_of
from dicomslide.recipes.label_maps import checked_array, in_one_chunk

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

__all__ = ["estimate_background", "subtract_background", "unmix"]


def unmix(image: xr.DataArray, matrix: xr.DataArray, *, dim: str = "channel") -> xr.DataArray:
    """Return the amount of each fluorophore, by least squares.

    Parameters
    ----------
    image : xarray.DataArray
        With the dim of channels.
    matrix : xarray.DataArray
        What each channel has of one unit of each fluorophore, two dims: `dim`, and one that the
        result has in its place, such as ``fluorophore``. If it has labels of channels, they are
        those of the image, in any order.
    dim : str, default: "channel"
        Dim of the channels.

    Returns
    -------
    xarray.DataArray
        float32, lazy if the image is, with the other dim of the matrix in place of `dim`. Amounts
        aren't bounded: noise around zero may be negative.

    Raises
    ------
    TypeError
        When one of the two is no labelled array.
    ValueError
        When dims or channels of the two differ, or the fluorophores can't be told apart.

    Examples
    --------
    >>> matrix = xr.DataArray(
    ...     [[1, 0.3], [0.1, 1]],
    ...     {"fluorophore": ["FITC", "Cy3"], "channel": ["1", "2"]},
    ...     ("fluorophore", "channel"),
    ... )
    >>> unmix(image, matrix)

    """
    import xarray as xr

    image, matrix = checked_array(image, dims=()), checked_array(matrix, "matrix", ())
    if dim not in image.dims or matrix.ndim != 2 or dim not in matrix.dims:
        raise ValueError(
            f"the image has the dims {tuple(map(str, image.dims))}, the matrix"
            f" {tuple(map(str, matrix.dims))}; expected {dim} in both, and one more in the matrix"
        )
    (to,) = (other for other in matrix.dims if other != dim)
    if to in image.dims:
        raise ValueError(f"the image has the dim {to!r} already: rename that of the matrix")
    if dim in matrix.coords and dim in image.coords:
        there, wanted = image[dim].values.tolist(), matrix[dim].values.tolist()
        if sorted(map(str, there)) != sorted(map(str, wanted)):
            raise ValueError(f"the image has the channels {there}, the matrix {wanted}")
        matrix = matrix.sel({dim: there})
    elif matrix.sizes[dim] != image.sizes[dim]:
        raise ValueError(
            f"the image has {image.sizes[dim]} channels, the matrix {matrix.sizes[dim]}"
        )
    mixing = matrix.transpose(dim, to).values.astype(np.float64)
    if not np.isfinite(mixing).all() or np.linalg.matrix_rank(mixing) < mixing.shape[1]:
        raise ValueError(
            f"{mixing.shape[1]} fluorophores can't be told apart by {mixing.shape[0]} channels:"
            " expected finite numbers, and rows that are no combination of others"
        )
    inverse = np.linalg.pinv(mixing).astype(np.float32)
    if image.chunks is not None:
        image = image.chunk({dim: -1})
    found = xr.apply_ufunc(
        _unmixed,
        image,
        kwargs={"inverse": inverse},
        input_core_dims=[[dim]],
        output_core_dims=[[to]],
        dask="parallelized",
        output_dtypes=[np.float32],
        dask_gufunc_kwargs={"output_sizes": {to: len(inverse)}},
    )
    coords = {name: each for name, each in matrix.coords.items() if each.dims == (to,)}
    order = [to if each == dim else each for each in image.dims]
    found = found.transpose(*order).assign_coords(coords).rename("unmixed")
    return found.drop_attrs(deep=False).assign_attrs(long_name="amount of fluorophore")


def estimate_background(
    image: xr.DataArray, *, percentile: float = 5, scanned: xr.DataArray | None = None
) -> xr.DataArray:
    """Return the background of each channel: a low percentile of its pixels.

    Parameters
    ----------
    image : xarray.DataArray
        Dims ``y``, ``x`` and others, of integers of 8 or 16 bits. A coarse level gives as good an
        estimate in less time.
    percentile : float, default: 5
        Between 0 and 100: half the percentage of pixels without tissue gives their median.
    scanned : xarray.DataArray, optional
        bool, dims ``y`` and ``x`` of the same grid: the pixels that were scanned, such as
        ``image_scanned`` of a dataset. Others, which are 0, are left out.

    Returns
    -------
    xarray.DataArray
        float64, with the dims of the image except ``y`` and ``x``, lazy. NaN if nothing was
        scanned.

    Raises
    ------
    TypeError
        When the image is no labelled array.
    ValueError
        When the image has another data type, `scanned` is no mask of its grid, or the percentile
        isn't between 0 and 100.

    """
    import dask.array as da
    import xarray as xr

    image = checked_array(image)
    if image.dtype.kind not in "ui" or image.dtype.itemsize > 2:
        raise ValueError(f"the image is {image.dtype}; expected integers of 8 or 16 bits")
    if not 0 <= percentile <= 100:
        raise ValueError(f"percentile {percentile}: expected a number from 0 to 100")
    image = in_one_chunk(image)
    arrays: list[Any] = [image.data, (*range(2, image.ndim), 0, 1)]
    if scanned is not None:
        if scanned.dtype != np.bool_ or set(scanned.dims) != {"y", "x"}:
            raise ValueError(
                f"scanned is {scanned.dtype} with the dims {tuple(map(str, scanned.dims))};"
                " expected bool with y and x"
            )
        image, scanned = xr.align(image, scanned, join="exact", copy=False)
        chunked = scanned.chunk({dim: image.chunksizes[dim] for dim in ("y", "x")})
        arrays += [chunked.transpose("y", "x").data, (0, 1)]
    others = tuple(range(2, image.ndim))
    possible = 2 ** (8 * image.dtype.itemsize)
    counts = da.blockwise(  # type: ignore[no-untyped-call]
        _counts, (0, 1, *others, 1000), *arrays, adjust_chunks={0: 1, 1: 1},
        new_axes={1000: possible}, dtype=np.int64, meta=np.empty((0,) * (len(others) + 3)),
    ).sum((0, 1), split_every=4)  # fmt: skip
    low = int(np.iinfo(image.dtype).min)
    found = counts.map_blocks(
        _percentile, percentile / 100, low, drop_axis=len(others), dtype=np.float64
    )
    dims = image.dims[:-2]
    return xr.DataArray(found, dims=dims, name="background").assign_coords(coords_of(image, dims))


def subtract_background(
    image: xr.DataArray, background: xr.DataArray | float, *, scanned: xr.DataArray | None = None
) -> xr.DataArray:
    """Return an image without its background; what is below it is 0.

    Parameters
    ----------
    image : xarray.DataArray
        With any dims.
    background : xarray.DataArray or float
        Of each channel, as of :func:`estimate_background`, or for all. It may have other channels
        beside those of the image.
    scanned : xarray.DataArray, optional
        The pixels that were scanned: others are NaN.

    Returns
    -------
    xarray.DataArray
        float32, lazy if the image or the background is, with the dims and coordinates of the image.

    Raises
    ------
    TypeError
        When the image is no labelled array.
    ValueError
        When the background or the mask lacks channels or pixels of the image, or has other dims.

    """
    image = checked_array(image, dims=())
    found = (image.astype(np.float32) - background).clip(min=0).astype(np.float32)
    _check_whole(image, found, "background")
    if scanned is not None:
        found = found.where(scanned)
        _check_whole(image, found, "mask of what was scanned")
    return found.transpose(*image.dims).rename(image.name).assign_attrs(image.attrs)


def _check_whole(image: xr.DataArray, found: xr.DataArray, what: str) -> None:
    """Check that a result has all of an image: xarray leaves out what the other operand lacks."""
    if set(found.dims) != set(image.dims):
        more = [str(dim) for dim in found.dims if dim not in image.dims]
        raise ValueError(f"the {what} has the dims {more}, which the image doesn't have")
    for dim, size in image.sizes.items():
        if found.sizes[dim] != size:
            raise ValueError(
                f"the {what} has {found.sizes[dim]} of the image's {size} labels along {dim}"
            )


def _unmixed(pixels: NDArray[Any], inverse: NDArray[np.float32]) -> NDArray[np.float32]:
    return pixels.astype(np.float32) @ inverse.T


def _counts(pixels: NDArray[Any], scanned: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """Return how many pixels have each value, shape (1, 1, ..., values)."""
    info = np.iinfo(pixels.dtype)
    channels = pixels.reshape(-1, *pixels.shape[-2:])
    number = int(info.max) - int(info.min) + 1
    counts = np.zeros((len(channels), number), np.int64)
    for count, channel in zip(counts, channels, strict=True):
        kept = channel.ravel() if scanned is None else channel[scanned]
        count[:] = np.bincount(kept.astype(np.int64) - int(info.min), minlength=number)
    return counts.reshape(1, 1, *pixels.shape[:-2], number)


def _percentile(counts: NDArray[np.int64], quantile: float, low: int) -> NDArray[np.float64]:
    """Return a quantile by counts of values along the last axis, with linear interpolation."""
    ends = counts.cumsum(axis=-1)
    total = ends[..., -1]
    place = np.maximum(total - 1, 0) * quantile
    before = np.floor(place)
    lower = (ends <= before[..., None]).sum(axis=-1)
    upper = (ends <= np.minimum(before + 1, np.maximum(total - 1, 0))[..., None]).sum(axis=-1)
    found = lower + (upper - lower) * (place - before) + low
    return np.where(total > 0, found, np.nan)
