"""What recipes take for labels: label maps of integers, and masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.labelled.coordinates import step_of
from dicomslide.labelled.index import SlideIndex

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr
    from numpy.typing import NDArray

__all__ = ["BACKGROUND", "checked_array", "checked_label_map", "in_common", "in_one_chunk",
           "segment_coords"]  # fmt: skip

BACKGROUND = 0
"""Label of the pixels of no segment."""
SAME_GRID = 1e-3
"""Distance of pixels of one grid, as a fraction of a pixel."""
TIE = 1e-6
"""Fraction of a pixel by which a place between two pixels is nearer to the second one, whatever
rounding does."""


def checked_array(array: Any, what: str = "image", dims: Sequence[str] = ("y", "x")) -> Any:
    """Return a labelled array that has some dims.

    Raises
    ------
    TypeError
        When it is no labelled array.
    ValueError
        When it lacks a dim.

    """
    import xarray as xr

    if not isinstance(array, xr.DataArray):
        raise TypeError(
            f"the {what} is a {type(array).__name__}; expected an xarray.DataArray, as in"
            " slide.to_dataset()"
        )
    if not set(dims) <= set(array.dims):
        raise ValueError(
            f"the {what} has the dims {tuple(map(str, array.dims))}; expected {' and '.join(dims)}"
        )
    return array


def checked_label_map(labels: Any) -> xr.DataArray:
    """Return a label map with the dims y and x.

    Raises
    ------
    TypeError
        When it is no labelled array.
    ValueError
        When it isn't of integers, or has other dims.

    """
    import xarray as xr

    if not isinstance(labels, xr.DataArray):
        raise TypeError(
            f"the labels are a {type(labels).__name__}; expected a DataArray of integers or bool"
            " with the dims y and x, such as slide.to_dataset().segmentation"
        )
    if labels.dtype.kind not in "ui":
        raise ValueError(
            f"the labels are {labels.dtype}; expected integers (a label map), or bool: compare"
            " fractions with a threshold, such as segmentation > 0.5"
        )
    if set(labels.dims) != {"y", "x"}:
        raise ValueError(
            f"the label map has the dims {tuple(map(str, labels.dims))}; expected y and x: select"
            " along others, such as labels.isel(z=0)"
        )
    return labels.transpose("y", "x")


def in_one_chunk(image: xr.DataArray) -> xr.DataArray:
    """Return an image as a dask array of one chunk along the dims other than y and x."""
    others = [dim for dim in image.dims if dim not in ("y", "x")]
    if image.chunks is None:
        image = image.chunk(dict.fromkeys(("y", "x"), "auto"))
    return image.transpose(*others, "y", "x").chunk(dict.fromkeys(others, -1))


def in_common(
    image: xr.DataArray, labels: xr.DataArray
) -> tuple[xr.DataArray, xr.DataArray, xr.DataArray]:
    """Return the parts of an image and a label map that lie above each other.

    Parameters
    ----------
    image : xarray.DataArray
        Dims ``y``, ``x`` and others.
    labels : xarray.DataArray
        Dims ``y``, ``x``, at any resolution.

    Returns
    -------
    image, labels : xarray.DataArray
        The part of each within the extent of the other.
    on_image : xarray.DataArray
        The label at the centre of each pixel of the image; `labels` itself where both are on one
        grid.

    Raises
    ------
    ValueError
        When they don't overlap, or their coordinates aren't evenly spaced mm.
    GridError
        When they have different frames of reference.

    """
    keys: dict[str, Any] = {}
    whole: dict[str, Any] = {}
    parts: dict[str, Any] = {}
    is_one = True
    for dim in ("y", "x"):
        here, there = image.xindexes.get(dim), labels.xindexes.get(dim)
        if isinstance(here, SlideIndex) and isinstance(there, SlideIndex):
            here.check_frame(there)
        step, label_step = step_of(image, dim), step_of(labels, dim)
        # centres of the image's pixels, in pixels of the label map
        first = (float(image[dim][0]) - float(labels[dim][0])) / label_step
        places = first + (step / label_step) * np.arange(image.sizes[dim])
        nearest = np.floor(places + 0.5 + TIE)
        inside = np.flatnonzero((nearest >= 0) & (nearest < labels.sizes[dim]))
        if not inside.size:
            raise ValueError(f"the image and the label map don't overlap along {dim}")
        whole[dim] = slice(int(inside[0]), int(inside[-1]) + 1)
        at = nearest[whole[dim]].astype(np.int64)
        # the pixels of the label map that lie within the extent of the image
        reach = abs(step / label_step) / 2
        low, high = min(places[0], places[-1]) - reach, max(places[0], places[-1]) + reach
        begin = max(int(np.ceil(low - SAME_GRID)), 0)
        end = min(int(np.floor(high + SAME_GRID)) + 1, labels.sizes[dim])
        parts[dim] = slice(begin, end)
        is_one &= bool(
            abs(step - label_step) * image.sizes[dim] < SAME_GRID * abs(step)
            and np.abs(places - nearest).max() < SAME_GRID
        )
        keys[dim] = at
    image = image.isel(whole)
    if is_one:
        start = {dim: slice(int(keys[dim][0]), int(keys[dim][-1]) + 1) for dim in keys}
        labels = labels.isel(start).assign_coords(y=image.y, x=image.x)
        return image, labels, labels
    on_image = labels.isel(keys).drop_vars(["y", "x"]).assign_coords(y=image.y, x=image.x)
    return image, labels.isel(parts), on_image


def segment_coords(labels: NDArray[Any], attrs: dict[Any, Any]) -> dict[str, Any]:
    """Return the coordinates of rows of a table: numbers, and labels and types where known."""
    numbered = labels if labels.dtype == np.uint64 else labels.astype(np.int64)
    coords: dict[str, Any] = {"segment": numbered}
    numbers = attrs.get("flag_values")
    if numbers is None:
        return coords
    order = np.argsort(numbers, kind="stable")
    ascending = np.asarray(numbers)[order]
    at = np.minimum(np.searchsorted(ascending, labels), len(ascending) - 1)
    is_known = ascending[at] == labels
    for name, key in (("segment_label", "segment_labels"), ("segment_type", "segment_types")):
        if key in attrs:
            texts = np.asarray(attrs[key], dtype=object)[order][at]
            texts = np.where(is_known, texts, "").astype(np.str_)
            if (texts != "").any():
                coords[name] = ("segment", texts)
    return coords
