"""The grid of pixels that an array lies on: what its coordinates in mm say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dicomslide.labelled.coordinates import slide_coordinate

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["coarser", "step_of"]


def step_of(array: xr.DataArray, dim: str) -> float:
    """Return the distance in mm from one pixel's centre to the next, negative where it descends.

    Parameters
    ----------
    array : xarray.DataArray
        With the dim, and its coordinate in mm.
    dim : str
        ``y`` or ``x``.

    Raises
    ------
    ValueError
        When there is no such coordinate, or its pixels don't follow each other evenly.

    """
    if dim not in array.dims or dim not in array.coords:
        raise ValueError(f"a recipe needs {dim} in mm; the array has the dims {array.dims}")
    coordinate = array[dim]
    values = coordinate.values
    if len(values) < 2:
        size = coordinate.attrs.get("pixel_size")
        if size is None:
            raise ValueError(f"nothing says how large {len(values)} pixels along {dim} are")
        return float(size) if dim == "x" else -float(size)
    step = float(values[-1] - values[0]) / (len(values) - 1)
    if not np.allclose(np.diff(values), step, rtol=1e-3, atol=0):
        raise ValueError(f"pixels along {dim} don't follow each other evenly")
    return step


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
    size = abs(step) * factor
    return slide_coordinate(dim, centres, array[dim].attrs | {"pixel_size": size}, size)
