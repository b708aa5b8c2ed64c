"""How much of each stain there is in a pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.recipes.samples import colors_along_sample

if TYPE_CHECKING:
    from collections.abc import Hashable

    import xarray as xr
    from numpy.typing import NDArray

__all__ = ["estimate_stains", "separate_stains"]

TRANSPARENT = 0.15
"""Optical density below which a pixel is glass (Macenko 2009)."""
EXTREMES = (1, 99)
"""Percentiles of the angles between which stains are mixed (Macenko 2009)."""
ENOUGH = 100
"""Stained pixels without which nothing can be estimated."""
ALIKE = 0.02
"""Sine of the angle between two stains that are one."""


def separate_stains(image: xr.DataArray, stains: xr.DataArray | None = None) -> xr.DataArray:
    """Return how much of each stain there is, by colour deconvolution (Ruifrok 2001).

    Parameters
    ----------
    image : xarray.DataArray
        8-bit colour, with red, green and blue along ``sample``, or along ``c``, as in OME-Zarr
        that is opened again: any region of any level.
    stains : xarray.DataArray, optional
        The colours of three stains as optical densities, dims (stain, sample): see
        :func:`estimate_stains`. By default scikit-image's haematoxylin, eosin and DAB.

    Returns
    -------
    xarray.DataArray
        float32, with the dims and the millimetres of the image, but ``stain`` for ``sample``;
        in scikit-image's unit, in which 1 is an optical density of 6.

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
            f"stains are three, of which the last may be a residual, with the dims stain and"
            f" sample: not {dict(stains.sizes)}"
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
    """Estimate the colours of haematoxylin and eosin on this very slide (Macenko 2009).

    Parameters
    ----------
    image : xarray.DataArray
        A whole level in 8-bit colour; a coarse one, for its pixels are looked at together.

    Returns
    -------
    xarray.DataArray
        Optical densities, of length one, dims (stain, sample): haematoxylin, eosin and the
        residual, which is neither. Lazy.

    Raises
    ------
    ValueError
        When the image isn't in 8-bit colour; as it is computed, when hardly anything is stained,
        or all in one colour.

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
            f"stains are those of an image in 8-bit colour; this one is {image.dtype} with the dims"
            f" {image.dims}"
        )
    return image


def _in_one_chunk(image: xr.DataArray, *dims: Hashable) -> xr.DataArray:
    """Put chunks along some dims together; what is computed already stays so."""
    return image if image.chunks is None else image.chunk(dict.fromkeys(dims, -1))


def _separated(pixels: NDArray[np.uint8], stains: NDArray[np.float64]) -> NDArray[np.float32]:
    from skimage.color import separate_stains

    light = pixels.astype(np.float32) / np.float32(255)
    return separate_stains(light, np.linalg.inv(stains).astype(np.float32))


def _estimated(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    light = (pixels.reshape(-1, 3).astype(np.float64) + 1) / 256  # no logarithm of zero
    density = -np.log(light)
    density = density[(density > TRANSPARENT).all(axis=1)]
    if len(density) < ENOUGH:
        raise ValueError(f"only {len(density)} pixels are stained: too few to estimate stains")
    _, axes = np.linalg.eigh(np.cov(density.T))
    plane = axes[:, :0:-1]  # the two directions in which colours vary most
    plane = plane * np.where(plane.sum(axis=0) < 0, -1, 1)
    across, along = (density @ plane).T[::-1]
    angles = np.percentile(np.arctan2(across, along), EXTREMES)
    pair = np.stack([np.cos(angles), np.sin(angles)], axis=1) @ plane.T
    pair = pair[np.argsort(-pair[:, 0])]  # haematoxylin is blue: it takes more red away
    residual: NDArray[Any] = np.cross(*pair)
    sine = float(np.linalg.norm(residual))
    if sine < ALIKE:
        raise ValueError("all stained pixels have one colour: there are no two stains")
    return np.stack([*pair, residual / sine])
