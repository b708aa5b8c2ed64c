"""Area, mean and standard deviation of an image in each segment of a segmentation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.labelled.coordinates import step_of
from dicomslide.recipes.grid import coords_of
from dicomslide.recipes.label_maps import (
    BACKGROUND,
    checked_array,
    checked_label_map,
    in_one_chunk,
    segment_coords,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr
    from numpy.typing import NDArray

    from dicomslide.recipes.label_tables import LabelTable

__all__ = ["segment_statistics"]


def segment_statistics(
    image: xr.DataArray, segmentation: xr.DataArray, *, background: bool = False
) -> xr.Dataset:
    """Return the area of each segment, and mean and standard deviation of the image in it.

    Both arrays are read once, chunk by chunk. Memory follows the labels that there are in a chunk,
    not the largest label.

    Parameters
    ----------
    image : xarray.DataArray
        Dims ``y``, ``x`` and others, such as ``sample`` or ``channel``.
    segmentation : xarray.DataArray
        On the same grid: bool, dims ``y``, ``x`` and optionally ``segment``; or a label map of
        integers, dims ``y`` and ``x``.
    background : bool, default: False
        Whether 0, the background of a label map, is a row of the result.

    Returns
    -------
    xarray.Dataset
        ``area`` in mm², dims (segment); ``mean`` and ``std`` (of the population), dims (segment,
        ...) with the other dims of the image. Lazy. Mean and standard deviation are NaN for a
        segment that is empty or contains a NaN. ``segment`` has the numbers of a label map: those
        of its attribute ``flag_values``; without that, the labels that there are, for which the
        label map is read at once.

    Raises
    ------
    TypeError
        When the image or the segmentation is no labelled array.
    ValueError
        When the coordinates of the two differ, or the segmentation is neither a mask nor a label
        map.

    See Also
    --------
    cell_table : medians, centroids and more, at any level.

    """
    import xarray as xr

    image = checked_array(image)
    if getattr(segmentation, "dtype", None) == np.bool_:
        return _of_masks(image, segmentation)
    segmentation = checked_label_map(segmentation)
    attrs = segmentation.attrs
    image, segmentation = _on_one_grid(image, segmentation)
    from dicomslide.recipes import label_graph

    image = in_one_chunk(image)
    segmentation = segmentation.chunk({dim: image.chunksizes[dim] for dim in ("y", "x")})
    labels = np.asarray(attrs.get("flag_values", ()), np.int64)
    if "flag_values" not in attrs:
        (table,) = label_graph.shapes(segmentation.data, background=background).compute().ravel()
        labels = table.labels
    elif not background:
        labels = labels[labels != BACKGROUND]
    table = label_graph.moments(image.data, segmentation.data, background=background)
    others = image.dims[:-2]
    sizes = tuple(image.sizes[dim] for dim in others)
    count, mean, std = label_graph.columns_of(
        table, labels, ("count", "mean", "std"), _columns, sizes
    )
    pixel = abs(step_of(image, "y") * step_of(image, "x"))
    area = xr.DataArray(count[(slice(None), *(0 for _ in others))], dims="segment")
    found = xr.Dataset(
        {
            "area": area.fillna(0) * pixel,
            "mean": (("segment", *others), mean),
            "std": (("segment", *others), std),
        }
    )
    return found.assign_coords(coords_of(image, others)).assign_coords(
        segment_coords(labels, attrs)
    )


def _columns(table: LabelTable) -> Sequence[NDArray[Any]]:
    count, total = table.columns["count"][:, None], table.columns["sum"]
    std = np.sqrt(table.columns["deviations"] / count)
    return np.broadcast_to(count, total.shape), total / count, std


def _of_masks(image: xr.DataArray, segmentation: xr.DataArray) -> xr.Dataset:
    """Return the statistics of masks, which may overlap."""
    import dask.array as da
    import xarray as xr

    if "segment" not in segmentation.dims:
        segmentation = segmentation.expand_dims("segment")
    segments = coords_of(segmentation, ("segment",))
    image, segmentation = _on_one_grid(image, segmentation)
    others = [dim for dim in image.dims if dim not in ("y", "x")]
    # one chunk along other dims: else dask reads the image once per segment, and vice versa
    image = image.chunk(dict.fromkeys(others, -1))
    segmentation = segmentation.chunk({"segment": -1})
    sums = da.blockwise(  # type: ignore[no-untyped-call]
        _sums,
        ("y", "x", "segment", *others, "sum"),
        image.transpose("y", "x", *others).data,
        ("y", "x", *others),
        segmentation.transpose("segment", "y", "x").data,
        ("segment", "y", "x"),
        new_axes={"sum": 3},
        adjust_chunks={"y": 1, "x": 1},
        dtype=np.float64,
        meta=np.empty((0,) * (len(others) + 4)),
    ).sum((0, 1))
    table = xr.DataArray(sums, dims=("segment", *others, "sum"))
    table = table.assign_coords(coords_of(image, others)).assign_coords(segments)
    count, total, squares = (table.isel(sum=i) for i in range(3))
    some = count.where(count > 0)
    mean = total / some
    pixel = abs(step_of(image, "y") * step_of(image, "x"))
    return xr.Dataset(
        {
            "area": count.isel(dict.fromkeys(others, 0), drop=True) * pixel,
            "mean": mean,
            "std": np.sqrt((squares / some - mean**2).clip(min=0)),
        }
    )


def _on_one_grid(
    image: xr.DataArray, segmentation: xr.DataArray
) -> tuple[xr.DataArray, xr.DataArray]:
    import xarray as xr

    try:
        return xr.align(image, segmentation, join="exact", copy=False)
    except xr.AlignmentError as error:
        raise ValueError(
            "the image and the segmentation differ in their pixels along y or x, or in other"
            " coordinates: cell_table takes other levels"
        ) from error


def _sums(pixels: NDArray[Any], segments: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return number, sum and sum of squares of pixels, shape (1, 1, segments, ..., 3)."""
    others = pixels.shape[2:]
    columns = pixels.reshape(pixels.shape[0] * pixels.shape[1], -1).T
    sums = np.zeros((len(segments), len(columns), 3))
    for at, inside in enumerate(segments.reshape(len(segments), -1)):
        for column, found in zip(columns, sums[at], strict=True):
            chosen = column[inside].astype(np.float64)
            found[:] = len(chosen), chosen.sum(), np.square(chosen).sum()
    return sums.reshape(1, 1, len(segments), *others, 3)
