"""Where tissue is, and how much of it there is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.labelled.coordinates import step_of
from dicomslide.recipes.samples import colors_along_sample

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

__all__ = ["area", "chroma", "tissue_mask", "tissue_threshold"]


def tissue_threshold(image: xr.DataArray) -> xr.DataArray:
    """Return the chroma that best parts tissue from glass, by Otsu's method.

    Parameters
    ----------
    image : xarray.DataArray
        A whole level, in colour (red, green and blue along ``sample``, or along ``c``, as in
        OME-Zarr that is opened again) or in grey, of integers: a coarse one, which is as good
        and quickly read. It is read chunk by chunk.

    Returns
    -------
    xarray.DataArray
        One number, lazy.

    Raises
    ------
    ValueError
        When the image isn't of 8 or 16 bits, has other samples than three, or a dim that may be
        of colours or not.

    """
    import dask.array as da
    import xarray as xr

    if image.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"a threshold is found for 8 or 16 bits, not for {image.dtype}")
    values = da.asarray(_strength(image).data)  # type: ignore[no-untyped-call]
    possible = np.iinfo(values.dtype).max + 1
    counts, _ = da.histogram(values, bins=possible, range=(0, possible))  # type: ignore[no-untyped-call]
    return xr.DataArray(counts.map_blocks(_otsu, drop_axis=0, dtype=np.float64), name="threshold")


def tissue_mask(image: xr.DataArray, threshold: xr.DataArray | float) -> xr.DataArray:
    """Return where tissue is: where chroma, or the value of a grey image, is above a threshold.

    Parameters
    ----------
    image : xarray.DataArray
        Any region of any level, in colour or in grey, as above.
    threshold : xarray.DataArray or float
        See :func:`tissue_threshold`.

    Returns
    -------
    xarray.DataArray
        bool, with the dims and the millimetres of the image, but ``sample``.

    Raises
    ------
    ValueError
        When the image has other samples than three, or a dim that may be of colours or not.

    """
    mask = (_strength(image) > threshold).rename("tissue")
    return mask.drop_attrs(deep=False).assign_attrs(long_name="tissue")


def area(mask: xr.DataArray) -> xr.DataArray:
    """Return the area in mm² where a mask is True, for each of its other dims.

    Parameters
    ----------
    mask : xarray.DataArray
        bool, with ``y`` and ``x`` in mm: a tissue mask, a segmentation, a part of either.

    Raises
    ------
    ValueError
        When the mask isn't bool, or isn't in evenly spaced mm.

    """
    if mask.dtype != np.bool_:  # the sum of labels or fractions is no number of pixels
        raise ValueError(f"an area is that of a mask of bool, not of {mask.dtype}: compare it")
    pixel = abs(step_of(mask, "y") * step_of(mask, "x"))
    found = (mask.sum(("y", "x")) * pixel).rename("area")
    return found.drop_attrs(deep=False).assign_attrs(long_name="area", units="mm2")


def chroma(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return how far apart the strongest and the weakest of red, green and blue are.

    It is saturation times brightness: saturation alone would take dark glass, pen and the
    borders of a scan for tissue, where a black pixel's noise is as saturated as can be.

    Parameters
    ----------
    pixels : numpy.ndarray
        Shape (..., 3), integers.

    """
    red, green, blue = (pixels[..., sample] for sample in range(3))
    strongest = np.maximum(np.maximum(red, green), blue)
    return strongest - np.minimum(np.minimum(red, green), blue)


def _strength(image: xr.DataArray) -> xr.DataArray:
    image = colors_along_sample(image)
    if "sample" not in image.dims:
        return image
    if image.sizes["sample"] != 3:
        raise ValueError(f"colour has 3 samples, not {image.sizes['sample']}: red, green and blue")
    import xarray as xr

    # on whole chunks: selecting sample by sample would decode each frame three times
    return xr.apply_ufunc(
        chroma,
        image,
        input_core_dims=[["sample"]],
        dask="parallelized",
        output_dtypes=[image.dtype],
    )


def _otsu(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    from skimage.filters import threshold_otsu

    found = np.flatnonzero(counts)
    if len(found) == 1:  # nothing to part, and nothing above
        return np.asarray(found[0], np.float64)
    values = np.arange(found[0], found[-1] + 1)
    threshold = threshold_otsu(hist=(counts[values], values))  # type: ignore[no-untyped-call]
    return np.asarray(threshold, np.float64)
