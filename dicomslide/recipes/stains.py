"""Stain separation by colour deconvolution, and estimation of stain colours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.recipes.samples import colors_along_sample

if TYPE_CHECKING:
    from collections.abc import Hashable

    import xarray as xr
    from numpy.typing import NDArray

__all__ = ["estimate_stains", "separate_stains"]

MIN_DENSITY = 0.15
"""Optical density below which a pixel is glass (Macenko 2009)."""
ANGLE_PERCENTILES = (1, 99)
"""Percentiles of the angle in the plane of both stains: the pure stains (Macenko 2009)."""
MIN_STAINED_PIXELS = 100
"""Fewer stained pixels than these raise an error."""
MIN_SINE = 0.02
"""Sine of the angle between two stain colours below which they are one stain."""


def separate_stains(image: xr.DataArray, stains: xr.DataArray | None = None) -> xr.DataArray:
    """Return the amount of each stain, by colour deconvolution (Ruifrok 2001).

    Parameters
    ----------
    image : xarray.DataArray
        Any region of any level in 8-bit colour, with red, green and blue along ``sample``, or
        along ``c`` for an exported OME-Zarr.
    stains : xarray.DataArray, optional
        Colours of three stains as optical densities, dims (stain, sample): see
        :func:`estimate_stains`. By default scikit-image's haematoxylin, eosin and DAB.

    Returns
    -------
    xarray.DataArray
        float32, lazy if the image is, with the dims and coordinates of the image, except ``stain``
        in place of ``sample``; in scikit-image's unit, in which 1 is an optical density of 6.

    Raises
    ------
    ValueError
        When the image isn't in 8-bit colour, or there aren't three stains.

    """
    import xarray as xr
    from skimage.color import rgb_from_hed

    image = _in_color(image)
    if stains is None:
        stains = xr.DataArray(
            rgb_from_hed,
            dims=("stain", "sample"),
            coords={"stain": ["haematoxylin", "eosin", "DAB"], "sample": ["r", "g", "b"]},
        )
    elif dict(stains.sizes) != {"stain": 3, "sample": 3}:
        raise ValueError(
            f"stains have the sizes {dict(stains.sizes)}; expected three stains (the third may be"
            " a residual) with three samples: {'stain': 3, 'sample': 3}"
        )
    separated = xr.apply_ufunc(
        _separated,
        _in_one_chunk(image, "sample"),
        stains,
        input_core_dims=[["sample"], ["stain", "sample"]],
        output_core_dims=[["stain"]],
        dask="parallelized",
        output_dtypes=[np.float32],
    )
    separated = separated.rename("stains").drop_attrs(deep=False)
    return separated.assign_attrs(long_name="amount of stain")


def estimate_stains(image: xr.DataArray) -> xr.DataArray:
    """Estimate the colours of haematoxylin and eosin of a slide (Macenko 2009).

    Parameters
    ----------
    image : xarray.DataArray
        A whole level in 8-bit colour. Use a coarse one: all its pixels are in memory at once.

    Returns
    -------
    xarray.DataArray
        Optical densities as unit vectors, dims (stain, sample): haematoxylin, eosin and the
        residual, which is orthogonal to both. Lazy if the image is.

    Raises
    ------
    ValueError
        When the image isn't in 8-bit colour; on computation, when fewer than 100 pixels are
        stained, or all have one colour.

    """
    import xarray as xr

    image = _in_color(image).transpose(..., "sample")
    estimated = xr.apply_ufunc(
        _estimated,
        _in_one_chunk(image, *image.dims),
        input_core_dims=[image.dims],
        output_core_dims=[["stain", "sample"]],
        exclude_dims=set(image.dims[:-1]),
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": {"stain": 3}},
    )
    estimated = estimated.rename("stains").drop_attrs(deep=False)
    return estimated.assign_coords(stain=["haematoxylin", "eosin", "residual"])


def _in_color(image: xr.DataArray) -> xr.DataArray:
    image = colors_along_sample(image)
    if image.dtype != np.uint8 or image.sizes.get("sample") != 3:
        raise ValueError(
            f"the image is {image.dtype} with the dims {image.dims}; expected 8-bit colour: uint8"
            " with three samples"
        )
    return image


def _in_one_chunk(image: xr.DataArray, *dims: Hashable) -> xr.DataArray:
    """Rechunk an array to one chunk along some dims, if it is a dask array."""
    return image if image.chunks is None else image.chunk(dict.fromkeys(dims, -1))


def _separated(pixels: NDArray[np.uint8], stains: NDArray[np.float64]) -> NDArray[np.float32]:
    from skimage.color import separate_stains

    light = pixels.astype(np.float32) / np.float32(255)
    return separate_stains(light, np.linalg.inv(stains).astype(np.float32))


def _estimated(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    light = (pixels.reshape(-1, 3).astype(np.float64) + 1) / 256  # +1: no logarithm of zero
    density = -np.log(light)
    density = density[(density > MIN_DENSITY).all(axis=1)]
    if len(density) < MIN_STAINED_PIXELS:
        raise ValueError(
            f"only {len(density)} pixels are stained; expected {MIN_STAINED_PIXELS} or more to"
            " estimate stains"
        )
    _, axes = np.linalg.eigh(np.cov(density.T))
    plane = axes[:, :0:-1]  # the two directions in which colours vary most
    plane = plane * np.where(plane.sum(axis=0) < 0, -1, 1)
    across, along = (density @ plane).T[::-1]
    angles = np.percentile(np.arctan2(across, along), ANGLE_PERCENTILES)
    pair = np.stack([np.cos(angles), np.sin(angles)], axis=1) @ plane.T
    pair = pair[np.argsort(-pair[:, 0])]  # haematoxylin first: blue, it absorbs more red
    residual: NDArray[Any] = np.cross(*pair)
    sine = float(np.linalg.norm(residual))
    if sine < MIN_SINE:
        raise ValueError("all stained pixels have one colour: there are no two stains")
    return np.stack([*pair, residual / sine])
