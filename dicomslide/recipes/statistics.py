"""Area, mean and standard deviation of an image in each segment of a segmentation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.labelled.coordinates import step_of

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

__all__ = ["segment_statistics"]


def segment_statistics(image: xr.DataArray, segmentation: xr.DataArray) -> xr.Dataset:
    """Return the area of each segment, and mean and standard deviation of the image in it.

    Both arrays are read once, chunk by chunk.

    Parameters
    ----------
    image : xarray.DataArray
        Dims ``y``, ``x`` and others, such as ``sample`` or ``channel``.
    segmentation : xarray.DataArray
        On the same grid: bool, dims ``y``, ``x`` and optionally ``segment``; or a label map of
        unsigned integers whose attribute ``flag_values`` lists the segments, dims ``y`` and ``x``.

    Returns
    -------
    xarray.Dataset
        ``area`` in mm², dims (segment); ``mean`` and ``std`` (of the population), dims (segment,
        ...) with the other dims of the image. Lazy. Mean and standard deviation are NaN for a
        segment that is empty or contains a NaN.

    Raises
    ------
    ValueError
        When the coordinates of the two differ, or the segmentation is neither a mask nor a label
        map.

    """
    import dask.array as da
    import xarray as xr

    labels = segmentation.attrs.get("flag_values")
    given = ("y", "x") if labels is not None else ("segment", "y", "x")
    if labels is not None:
        labels = np.asarray(labels)
        if segmentation.dtype.kind != "u" or labels.min() < 0:
            raise ValueError(
                f"the segmentation is {segmentation.dtype}; expected unsigned integers for a label"
                " map"
            )
        names = segmentation.attrs.get("segment_labels", labels.astype(str))
        segments = {"segment": labels.astype(str), "segment_label": ("segment", names)}
    elif segmentation.dtype == np.bool_:
        if "segment" not in segmentation.dims:
            segmentation = segmentation.expand_dims("segment")
        segments = _non_spatial_coords(segmentation)
    else:
        raise ValueError(
            f"the segmentation is {segmentation.dtype} without the attribute flag_values; expected"
            " bool or a label map: compare fractions with a threshold, such as segmentation > 0.5"
        )
    image, segmentation = xr.align(image, segmentation, join="exact", copy=False)
    others = [dim for dim in image.dims if dim not in ("y", "x")]
    # one chunk along other dims: else dask reads the image once per segment, and vice versa
    image = image.chunk(dict.fromkeys(others, -1))
    segmentation = segmentation.chunk(dict.fromkeys(given[:-2], -1))
    sums = da.blockwise(  # type: ignore[no-untyped-call]
        _sums,
        ("y", "x", "segment", *others, "sum"),
        image.transpose("y", "x", *others).data,
        ("y", "x", *others),
        segmentation.transpose(*given).data,
        given,
        labels=labels,
        new_axes={"sum": 3} | ({} if labels is None else {"segment": len(labels)}),
        adjust_chunks={"y": 1, "x": 1},
        dtype=np.float64,
        meta=np.empty((0,) * (len(others) + 4)),
    ).sum((0, 1))
    table = xr.DataArray(sums, dims=("segment", *others, "sum"))
    table = table.assign_coords(_non_spatial_coords(image) | segments)
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


def _non_spatial_coords(array: xr.DataArray) -> dict[Any, Any]:
    return {name: each for name, each in array.coords.items() if not {"y", "x"} & {*each.dims}}


def _sums(
    pixels: NDArray[Any], segments: NDArray[Any], labels: NDArray[Any] | None
) -> NDArray[np.float64]:
    """Return number, sum and sum of squares of pixels, shape (1, 1, segments, ..., 3)."""
    others = pixels.shape[2:]
    columns = pixels.reshape(pixels.shape[0] * pixels.shape[1], -1).T
    number = len(segments) if labels is None else len(labels)
    sums = np.zeros((number, len(columns), 3))
    if labels is None:  # segments may overlap
        for at, inside in enumerate(segments.reshape(number, -1)):
            for column, found in zip(columns, sums[at], strict=True):
                chosen = column[inside].astype(np.float64)
                found[:] = len(chosen), chosen.sum(), np.square(chosen).sum()
    else:
        # position of each label in `labels`; all other values count at position `number`
        last = min(int(labels.max()) + 1, np.iinfo(segments.dtype).max)
        places = np.full(last + 1, number)
        possible = np.flatnonzero(labels <= last)
        places[labels[possible]] = possible
        which = places[np.minimum(segments, last).ravel()]
        sums[:, :, 0] = np.bincount(which, minlength=number + 1)[:number, None]
        for at, column in enumerate(columns):
            values = column.astype(np.float64)
            sums[:, at, 1] = np.bincount(which, values, number + 1)[:number]
            sums[:, at, 2] = np.bincount(which, np.square(values), number + 1)[:number]
    return sums.reshape(1, 1, number, *others, 3)
