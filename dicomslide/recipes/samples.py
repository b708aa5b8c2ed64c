"""Whether an image is in colour or in grey: what its dims say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dicomslide.labelled.variables import DIMS

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["colors_along_sample"]

COLORS = ["r", "g", "b"]
PLACES = ("y", "x", "row", "column", "z")
NO_COLORS = (*DIMS.values(), "stain")
"""Dims along which the arrays of this package have no colours; a number may follow the name."""


def colors_along_sample(image: xr.DataArray) -> xr.DataArray:
    """Return an image whose colours, if it has any, lie along the dim ``sample``.

    So do those of a slide's tree. OME-Zarr that is opened again has them along ``c``.

    Parameters
    ----------
    image : xarray.DataArray
        With the dims ``y``, ``x`` and others.

    Raises
    ------
    ValueError
        When a dim is neither of colours nor known to be of none: taken for grey, a colour image
        would give wrong results in silence.

    """
    if "sample" not in image.dims and "c" in image.dims and "c" in image.coords:
        labels = [str(label) for label in image["c"].values.tolist()]
        if labels == COLORS:
            return image.rename(c="sample")
    for dim in image.dims:
        name = str(dim)
        if name not in (*PLACES, "sample") and not name.startswith(NO_COLORS):
            raise ValueError(
                f"the dim {name!r} of an image with the dims {image.dims} may be of colours or of"
                f" channels: rename it, such as image.rename({name}='sample') for red, green and"
                f" blue, image.rename({name}='channel') for channels"
            )
    return image
