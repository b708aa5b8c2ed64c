"""Checks of what :func:`map_tiles`, :func:`embed_tiles` and :func:`tile_grid` are given."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.labelled.coordinates import step_of
from dicomslide.labelled.index import SlideIndex
from dicomslide.options import check_memory
from dicomslide.slide.slide import Slide

if TYPE_CHECKING:
    from collections.abc import Hashable

    import xarray as xr

    from dicomslide.recipes.tilings import Tiling

__all__ = ["check_tile", "checked_image", "checked_integer", "checked_mask"]

LARGE_HALO = 1024
"""Pixels that a halo may have around any image; more only where the image itself is larger."""


def checked_integer(value: Any, name: str, *, least: int = 1, or_none: bool = False) -> int:
    """Return a number as an integer.

    Raises
    ------
    ValueError
        When it is no integer, or less than `least`; `or_none` says that None is possible, too.

    """
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        expected = "a positive integer" if least == 1 else f"an integer of {least} or more"
        raise ValueError(f"{name} {value!r}: expected {expected}{', or None' if or_none else ''}")
    return number


def checked_image(image: Any) -> xr.DataArray | Slide:
    """Return an image, if it is a slide or a labelled array with pixels along y and x.

    Raises
    ------
    TypeError
        When it is something else.
    ValueError
        When the array has no pixels, or other dims.

    """
    import xarray as xr

    if isinstance(image, Slide):
        return image
    if not isinstance(image, xr.DataArray):
        remedy = ""
        if isinstance(image, (str, os.PathLike)):
            remedy = ": open it first, with dicomslide.open_slide"
        elif isinstance(image, (xr.Dataset, xr.DataTree)):
            remedy = ": choose its variable, such as dataset.image"
        elif isinstance(image, Mapping):
            remedy = ": choose one of its slides, such as slides[name]"
        elif hasattr(image, "shape"):
            remedy = ", which has y and x in mm: slide.to_dataset(0).image"
        raise TypeError(
            f"image is of the type {type(image).__name__}; expected a Slide or an"
            f" xarray.DataArray{remedy}"
        )
    if not {"y", "x"} <= set(image.dims):
        raise ValueError(
            f"image has the dims {_names(image.dims)}; expected y and x among them: select ranges"
            " along both, such as isel(x=slice(0, 1)), and rename the dims of an array as stored,"
            " such as rename(row='y', column='x')"
        )
    if not image.size:
        raise ValueError(
            f"image has no pixels, with the sizes {dict(image.sizes)}: nothing was selected"
        )
    return image


def checked_mask(where: Any, indexes: Mapping[Any, Any]) -> xr.DataArray:
    """Return a mask of tiles with the dims y and x, in this order.

    Parameters
    ----------
    where : object
        What was given as a mask.
    indexes : mapping
        Indexes of the image that it is a mask of (``xindexes``), by their dims.

    Raises
    ------
    TypeError
        When it is no labelled array.
    ValueError
        When it isn't bool, has other dims, or coordinates that aren't evenly spaced mm.
    GridError
        When it has another frame of reference than the image.

    """
    import xarray as xr

    if not isinstance(where, xr.DataArray):
        remedy = ""
        if isinstance(where, xr.Dataset):
            remedy = ": choose its variable"
        elif callable(where):
            remedy = "; only tile_grid takes a function: call it with the slide"
        raise TypeError(
            f"where is a {type(where).__name__}; expected a DataArray of bool with the dims y and x"
            f" in mm{remedy}"
        )
    if where.dtype != np.bool_:  # NaN would be True
        raise ValueError(
            f"where is {where.dtype}; expected a mask of bool: compare it, such as where > 0"
        )
    if set(where.dims) != {"y", "x"}:
        raise ValueError(
            f"where has the dims {_names(where.dims)}; expected y and x: select along others, such"
            " as where.sel(segment=...)"
        )
    for dim in ("y", "x"):
        here, there = where.xindexes.get(dim), indexes.get(dim)
        if isinstance(here, SlideIndex) and isinstance(there, SlideIndex):
            here.check_frame(there)
        if where.size:
            try:
                step_of(where, dim)
            except ValueError as error:
                raise ValueError(f"where: {error}") from None
    return where.transpose("y", "x")


def _names(dims: tuple[Hashable, ...]) -> tuple[str, ...]:
    return tuple(map(str, dims))


def check_tile(image: xr.DataArray, tilings: tuple[Tiling, Tiling], halo: int) -> int:
    """Check the size of a tile with its halo; return its bytes.

    Raises
    ------
    MemoryLimitError
        When the tile exceeds the memory limit.
    ValueError
        When the halo is much larger than the image.

    """
    rows, columns = (tiling.tile + 2 * halo for tiling in tilings)
    others = math.prod(length for dim, length in image.sizes.items() if dim not in ("y", "x"))
    nbytes = rows * columns * others * image.dtype.itemsize
    check_memory(nbytes, f"a tile of {rows} × {columns} pixels, with its halo,")
    largest = max(LARGE_HALO, *(tiling.length for tiling in tilings))
    if halo > largest:
        raise ValueError(
            f"halo {halo}: expected up to {largest} pixels around an image of"
            f" {tilings[0].length} × {tilings[1].length}; beyond it there is nothing but its edge,"
            " repeated"
        )
    return nbytes
