"""The grid of pixels that an array lies on: what its coordinates in mm say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dicomslide.labelled.coordinates import slide_coordinate, step_of

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["coarser"]


def coarser(
    array: xr.DataArray, dim: str, *, factor: int, first: int, length: int
) -> xr.Coordinates:
    """Return the coordinate of boxes of pixels: their centres in mm.

    Parameters
    ----------
    array : xarray.DataArray
        With the pixels that are put together.
    dim : str
        ``y`` or ``x``.
    factor : int
        How many pixels make a box along the dim.
    first : int
        Index of the pixel that the first box begins with; negative where it begins outside.
    length : int
        Number of boxes.

    """
    if factor == 1:
        return array[dim].coords  # to the last bit, and with the same index: they align
    step = step_of(array, dim)
    starts = first + factor * np.arange(length)
    centres = float(array[dim][0]) + step * (starts + (factor - 1) / 2)
    return slide_coordinate(dim, centres, array[dim].attrs, abs(step) * factor)
