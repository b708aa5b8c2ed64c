"""Coordinates of results: those of the image, or in mm of what is coarser."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dicomslide.labelled.coordinates import slide_coordinate, step_of

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable

    import xarray as xr

__all__ = ["coarser", "coords_of"]


def coords_of(array: xr.DataArray, dims: Collection[Hashable]) -> xr.Coordinates:
    """Return the coordinates of an array along some of its dims, and those without dims.

    They keep their indexes: a result is selected by millimetres and by names, as its image.
    """
    others = {dim: 0 for dim in array.dims if dim not in dims}
    return array.isel(others, drop=True).coords


def coarser(
    array: xr.DataArray, dim: str, *, factor: int, first: int, length: int
) -> xr.Coordinates:
    """Return the coordinate of an array whose pixels are boxes of an image's pixels.

    Parameters
    ----------
    array : xarray.DataArray
        The image, with the coordinate `dim` in mm.
    dim : str
        ``y`` or ``x``.
    factor : int
        Pixels per box along the dim.
    first : int
        Index of the first pixel of the first box; negative if that pixel is outside of the image.
    length : int
        Number of boxes.

    Returns
    -------
    xarray.Coordinates
        Centres of the boxes in mm.

    """
    if factor == 1:
        return array[dim].coords  # bit for bit equal, with the same index, so that both align
    step = step_of(array, dim)
    starts = first + factor * np.arange(length)
    centres = float(array[dim][0]) + step * (starts + (factor - 1) / 2)
    return slide_coordinate(dim, centres, array[dim].attrs, abs(step) * factor)
