"""The dim along which an image has red, green and blue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dicomslide.labelled.variables import DIMS

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["colors_along_sample"]

COLORS = ["r", "g", "b"]
SPATIAL_DIMS = ("y", "x", "row", "column", "z")
NON_COLOR_DIMS = (*DIMS.values(), "stain")
"""Dims of this package that don't hold colours; a number may follow the name (``channel_2``)."""


def colors_along_sample(image: xr.DataArray) -> xr.DataArray:
    """Return an image with its colours, if any, along the dim ``sample``.

    Images of a slide's tree are returned as they are. In those of an exported OME-Zarr, whose
    colours are along ``c``, that dim is renamed.

    Parameters
    ----------
    image : xarray.DataArray
        With the dims ``y``, ``x`` and others.

    Returns
    -------
    xarray.DataArray
        The same pixels; without the dim ``sample`` if the image is greyscale.

    Raises
    ------
    ValueError
        When a dim is unknown: it might hold colours, and a colour image that is processed as
        greyscale would give wrong results silently.

    """
    if "sample" not in image.dims and "c" in image.dims and "c" in image.coords:
        labels = [str(label) for label in image["c"].values.tolist()]
        if labels == COLORS:
            return image.rename(c="sample")
    for dim in image.dims:
        name = str(dim)
        if name not in (*SPATIAL_DIMS, "sample") and not name.startswith(NON_COLOR_DIMS):
            raise ValueError(
                f"the dim {name!r} of an image with the dims {image.dims} may hold colours or"
                f" channels: rename it, with image.rename({name}='sample') for red, green and"
                f" blue, or image.rename({name}='channel') for channels"
            )
    return image
