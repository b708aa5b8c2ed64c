"""Tissue mask by a threshold, and the area of masks."""

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
    """Return the threshold between glass and tissue, by Otsu's method.

    The threshold is one of chroma (the largest minus the smallest of red, green and blue) for an
    image in colour, and of the pixel value for a greyscale one.

    Parameters
    ----------
    image : xarray.DataArray
        A whole level, uint8 or uint16, in colour (along ``sample``, or along ``c`` for an exported
        OME-Zarr) or greyscale. A coarse level gives as good a threshold in less time.

    Returns
    -------
    xarray.DataArray
        float64 scalar, lazy.

    Raises
    ------
    ValueError
        When the image isn't of 8 or 16 bits, has a number of samples other than three, or an
        unknown dim that might hold colours.

    """
    import dask.array as da
    import xarray as xr

    if image.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"the image is {image.dtype}; expected 8 or 16 bits without sign (uint8, uint16)"
        )
    values = da.asarray(_chroma_or_value(image).data)  # type: ignore[no-untyped-call]
    possible = np.iinfo(values.dtype).max + 1
    counts, _ = da.histogram(values, bins=possible, range=(0, possible))  # type: ignore[no-untyped-call]
    return xr.DataArray(counts.map_blocks(_otsu, drop_axis=0, dtype=np.float64), name="threshold")


def tissue_mask(image: xr.DataArray, threshold: xr.DataArray | float) -> xr.DataArray:
    """Return the mask of tissue: chroma, or the value of a greyscale image, above a threshold.

    Parameters
    ----------
    image : xarray.DataArray
        Any region of any level, in colour or greyscale, as for :func:`tissue_threshold`.
    threshold : xarray.DataArray or float
        See :func:`tissue_threshold`.

    Returns
    -------
    xarray.DataArray
        bool, lazy if the image is, with its dims and coordinates except ``sample``.

    Raises
    ------
    ValueError
        When the image has a number of samples other than three, or an unknown dim that might hold
        colours.

    Examples
    --------
    >>> mask = tissue_mask(tree["level_0"].image, tissue_threshold(tree["level_2"].image))

    """
    mask = (_chroma_or_value(image) > threshold).rename("tissue")
    return mask.drop_attrs(deep=False).assign_attrs(long_name="tissue")


def area(mask: xr.DataArray) -> xr.DataArray:
    """Return the area in mm² of the True pixels of a mask.

    Parameters
    ----------
    mask : xarray.DataArray
        bool, with the dims ``y`` and ``x`` in mm, such as a tissue mask or a segmentation.

    Returns
    -------
    xarray.DataArray
        mm², with the dims of the mask except ``y`` and ``x``; lazy if the mask is.

    Raises
    ------
    ValueError
        When the mask isn't bool, or its coordinates aren't evenly spaced mm.

    """
    if mask.dtype != np.bool_:  # a sum of labels or fractions isn't a number of pixels
        raise ValueError(
            f"the mask is {mask.dtype}; expected a mask of bool: compare it, such as mask > 0"
        )
    pixel = abs(step_of(mask, "y") * step_of(mask, "x"))
    found = (mask.sum(("y", "x")) * pixel).rename("area")
    return found.drop_attrs(deep=False).assign_attrs(long_name="area", units="mm2")


def chroma(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return the difference between the largest and the smallest of red, green and blue.

    This is HSV saturation times value. Saturation alone classifies dark glass, pen marks and scan
    borders as tissue, because noise of nearly black pixels is highly saturated.

    Parameters
    ----------
    pixels : numpy.ndarray
        Shape (..., 3), unsigned integers.

    Returns
    -------
    numpy.ndarray
        Shape (...), of the same type.

    """
    red, green, blue = (pixels[..., sample] for sample in range(3))
    strongest = np.maximum(np.maximum(red, green), blue)
    return strongest - np.minimum(np.minimum(red, green), blue)


def _chroma_or_value(image: xr.DataArray) -> xr.DataArray:
    image = colors_along_sample(image)
    if "sample" not in image.dims:
        return image
    if image.sizes["sample"] != 3:
        raise ValueError(
            f"the image has {image.sizes['sample']} samples; expected 3 samples: red, green, blue"
        )
    import xarray as xr

    # on whole chunks: selecting each sample would decode each frame three times
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
    if len(found) == 1:  # a constant image: no pixel is above the threshold
        return np.asarray(found[0], np.float64)
    values = np.arange(found[0], found[-1] + 1)
    threshold = threshold_otsu(hist=(counts[values], values))  # type: ignore[no-untyped-call]
    return np.asarray(threshold, np.float64)
