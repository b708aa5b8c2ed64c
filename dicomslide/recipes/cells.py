"""Tables of cells: the shape of each segment, and the values of an image in it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.labelled.coordinates import step_of
from dicomslide.options import check_memory
from dicomslide.recipes.grid import coords_of
from dicomslide.recipes.label_maps import (
    checked_array,
    checked_label_map,
    in_common,
    in_one_chunk,
    segment_coords,
)
from dicomslide.recipes.label_tables import Shared

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr
    from numpy.typing import NDArray

    from dicomslide.recipes.label_tables import LabelTable

__all__ = ["cell_table"]

BYTES_PER_VALUE = 12
"""Bytes of a value of a segment that several chunks share, while they are merged."""
MEDIAN = 0.5


def cell_table(
    image: xr.DataArray,
    labels: xr.DataArray,
    *,
    percentiles: Sequence[float] = (5, 25, 75, 95),
    background: bool = False,
) -> xr.Dataset:
    """Return a table of the segments of a label map, such as cells.

    The label map is read at once, to find the labels that there are and their shapes. The values of
    the image are lazy: a task for each chunk reads the image once, and the tables of chunks are
    merged. Segments that lie in several chunks are merged exactly, medians and percentiles too:
    their values are kept, each distinct value once, until all chunks with them have been merged.

    Parameters
    ----------
    image : xarray.DataArray
        Dims ``y``, ``x`` in mm and others, such as ``channel`` or ``sample``.
    labels : xarray.DataArray
        Label map of integers, dims ``y`` and ``x``, at any level or spacing; 0 is background. Or a
        segmentation of bool, dims ``y``, ``x`` and optionally ``segment``, whose segments may
        overlap. Store a label map that is expensive to compute first.
    percentiles : sequence of float, default: (5, 25, 75, 95)
        Between 0 and 100, with linear interpolation; those of :func:`numpy.percentile`.
    background : bool, default: False
        Whether 0, the background of a label map, is a row.

    Returns
    -------
    xarray.Dataset
        Dims (segment, ...) with the dims of the image other than ``y`` and ``x``.

        By the pixels of the label map, in memory: ``area`` in mm², ``centroid_x``, ``centroid_y``,
        ``x_min``, ``x_max``, ``y_min`` and ``y_max`` (outer edges of the pixels) in mm. By the
        pixels of the image, lazy: ``count`` (number of pixels), ``mean``, ``median``, ``std`` (of
        the population), ``min``, ``max``, and ``percentiles`` with a dim ``percentile``; NaN for a
        segment without a pixel, and where a pixel is NaN.

        ``segment`` has the labels that there are, ascending; ``segment_label`` and ``segment_type``
        are those of the label map's attributes.

    Raises
    ------
    TypeError
        When the image or the labels are no labelled array.
    ValueError
        When they are neither integers nor bool, don't overlap the image, or coordinates aren't
        evenly spaced mm.
    GridError
        When both have different frames of reference.
    MemoryLimitError
        When the values of segments that several chunks share may exceed the option
        `memory_limit_bytes`.

    Notes
    -----
    Where the image and the label map have different levels, a pixel of the image belongs to the
    segment at its centre, and the shape is still that of the label map's own pixels. Only what lies
    within the extent of both is in the table.

    Examples
    --------
    >>> table = cell_table(level_0.image, level_0.segmentation).compute()
    >>> table["median"].sel(channel="CD3")
    >>> recipes.to_anndata(table)

    """
    image = checked_array(image)
    if getattr(labels, "dtype", None) == np.bool_:
        return _of_masks(image, labels, percentiles=percentiles)
    labels = checked_label_map(labels)
    try:
        quantiles = np.array([MEDIAN, *(each / 100 for each in percentiles)], np.float64)
    except TypeError:
        quantiles = np.array([np.nan])
    if not ((quantiles >= 0) & (quantiles <= 1)).all():
        raise ValueError(f"percentiles {percentiles!r}: expected numbers from 0 to 100")
    return _table(image, labels, quantiles, tuple(percentiles), background=background)


def _table(
    image: xr.DataArray,
    labels: xr.DataArray,
    quantiles: NDArray[np.float64],
    percentiles: tuple[float, ...],
    *,
    background: bool,
) -> xr.Dataset:
    import dask.array as da
    import xarray as xr

    from dicomslide.recipes import label_graph

    attrs = labels.attrs
    image, labels, on_image = in_common(image, labels)
    image = in_one_chunk(image)
    is_one = on_image is labels
    _, (pixels, map_data) = da.core.unify_chunks(  # type: ignore[no-untyped-call]
        image.data,
        (*range(2, image.ndim), 0, 1),
        _as_dask(on_image),
        (0, 1),
        warn=False,
    )
    shapes = label_graph.shapes(map_data, background=background)
    if not is_one:
        own = label_graph.shapes(_as_dask(labels), background=background)
        (of_image,), (of_labels,) = (each.ravel() for each in da.compute(shapes, own))  # type: ignore[no-untyped-call]
    else:
        (of_image,) = shapes.compute().ravel()
        of_labels = of_image
    is_shared = of_image.columns["chunks"] > 1
    shared = Shared(of_image.labels[is_shared], of_image.columns["chunks"][is_shared])
    _check(image, of_image, is_shared)
    table = label_graph.cells(pixels, map_data, shared, quantiles, background=background)
    others = image.dims[:-2]
    names = ("count", "mean", "std", "min", "max", "median", *map(str, percentiles))
    rows = of_labels.labels
    sizes = tuple(image.sizes[dim] for dim in others)
    count, mean, std, low, high, median, *rest = label_graph.columns_of(
        table, rows, names, partial(_columns, count=len(quantiles)), sizes
    )
    dims = ("segment", *others)
    variables: dict[str, Any] = _shape_columns(labels, of_labels)
    counted = xr.DataArray(count[(slice(None), *(0 for _ in others))], dims="segment")
    variables["count"] = counted.fillna(0).astype(np.int64)
    for name, data in (("mean", mean), ("median", median), ("std", std), ("min", low)):
        variables[name] = (dims, data)
    variables["max"] = (dims, high)
    if percentiles:
        variables["percentiles"] = ((*dims, "percentile"), da.stack(rest, axis=-1))  # type: ignore[no-untyped-call]
    found = xr.Dataset(variables).assign_coords(coords_of(image, others))
    if percentiles:
        found = found.assign_coords(percentile=np.asarray(percentiles, np.float64))
    return found.assign_coords(segment_coords(rows, attrs))


def _of_masks(
    image: xr.DataArray, masks: xr.DataArray, *, percentiles: Sequence[float]
) -> xr.Dataset:
    """Return the table of segments that may overlap: each is a label map of its own."""
    import xarray as xr

    if "segment" not in masks.dims:
        masks = masks.expand_dims("segment")
    tables = []
    for at in range(masks.sizes["segment"]):
        mask = masks.isel(segment=at)
        named = {
            name: each.item()
            for name, each in mask.coords.items()
            if not each.dims and str(name).startswith("segment")
        }
        table = cell_table(image, mask.astype(np.uint8), percentiles=percentiles)
        if not table.sizes["segment"]:  # of a mask without pixels
            table = table.reindex(segment=[1], fill_value={"area": 0, "count": 0})
        number = named.pop("segment", at + 1)
        tables.append(
            table.assign_coords({"segment": [number]}).assign_coords(
                {name: ("segment", [value]) for name, value in named.items()}
            )
        )
    return xr.concat(tables, "segment")


def _as_dask(array: xr.DataArray) -> Any:
    chunked = array if array.chunks is not None else array.chunk("auto")
    return chunked.transpose("y", "x").data


def _check(image: xr.DataArray, table: LabelTable, is_shared: NDArray[np.bool_]) -> None:
    """Check the memory of the values that are kept until chunks are merged.

    Of data types of 8 and 16 bits, a segment has as many distinct values at most.
    """
    counts = table.columns["count"][is_shared]
    if image.dtype.kind in "uib" and image.dtype.itemsize <= 2:
        counts = np.minimum(counts, 2 ** (8 * image.dtype.itemsize))
    channels = int(np.prod(image.shape[:-2]))
    check_memory(
        int(counts.sum()) * channels * BYTES_PER_VALUE,
        f"values of {len(counts):,} segments that several chunks share",
    )


def _columns(table: LabelTable, count: int) -> Sequence[NDArray[Any]]:
    """Return count, mean, std, smallest and largest value, and quantiles."""
    columns = table.columns
    number, total = columns["count"][:, None], columns["sum"]
    found = [np.broadcast_to(number, total.shape), total / number]
    found.append(np.sqrt(columns["deviations"] / number))
    found += [columns["min"], columns["max"]]
    return found + [columns["quantiles"][..., at] for at in range(count)]


def _shape_columns(labels: xr.DataArray, table: LabelTable) -> dict[str, Any]:
    """Return area, centroid and box of each label, in mm."""
    columns = table.columns
    found: dict[str, Any] = {}
    steps = {dim: step_of(labels, dim) for dim in ("y", "x")}
    area = columns["count"] * abs(steps["y"] * steps["x"])
    found["area"] = ("segment", area, {"long_name": "area", "units": "mm2"})
    attrs = {"units": "mm"}
    for dim, sums, first, last in (
        ("x", "columns", "left", "right"),
        ("y", "rows", "top", "bottom"),
    ):
        step, origin = steps[dim], float(labels[dim][0])
        centre = origin + step * (columns[sums] / columns["count"])
        found[f"centroid_{dim}"] = ("segment", centre, attrs)
        ends = [origin + step * (columns[first] - 0.5), origin + step * (columns[last] + 0.5)]
        found[f"{dim}_min"] = ("segment", np.minimum(*ends), attrs)
        found[f"{dim}_max"] = ("segment", np.maximum(*ends), attrs)
    return found
