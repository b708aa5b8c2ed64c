"""Tables by label of a whole label map: one task for each chunk, and a tree of merges."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from dicomslide.recipes.label_tables import (
    LabelTable,
    Shared,
    cells_of,
    merged,
    moments_by_label,
    shapes_by_label,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

__all__ = ["cells", "columns_of", "moments", "shapes"]

SPLIT_EVERY = 16
"""Chunks that are merged at once, four by four: most labels that cross borders are whole then."""
_NONE = np.empty((0, 0), object)


def moments(image: Any, labels: Any, *, background: bool) -> Any:
    """Return number, sum and squared deviations of the pixels of each label.

    Parameters
    ----------
    image : dask.array.Array
        Shape (..., rows, columns), of which all dims but the last two are one chunk.
    labels : dask.array.Array
        Shape (rows, columns).
    background : bool
        Whether 0 is a label.

    Returns
    -------
    dask.array.Array
        Shape (1, 1), of one :class:`LabelTable`.

    """
    return _reduced(_by_chunk(moments_by_label, image, labels, background=background))


def shapes(labels: Any, *, background: bool) -> Any:
    """Return number, sums and bounds of rows and columns of each label; see :func:`moments`."""
    rows, columns = (
        da.arange(length, chunks=(chunks,))
        for length, chunks in zip(labels.shape, labels.chunks, strict=True)
    )
    tables = da.blockwise(  # type: ignore[no-untyped-call]
        _boxed, "yx", labels, "yx", rows, "y", columns, "x",
        function=shapes_by_label, background=background,
        adjust_chunks={"y": 1, "x": 1}, dtype=object, meta=_NONE,
    )  # fmt: skip
    return _reduced(tables)


def cells(
    image: Any, labels: Any, shared: Shared, quantiles: NDArray[np.float64], *, background: bool
) -> Any:
    """Return moments, extremes and quantiles of each label; see :func:`moments`.

    Parameters
    ----------
    image, labels, background
        See :func:`moments`. Both have equal chunks along rows and columns.
    shared : Shared
        Labels that are in several chunks.
    quantiles : numpy.ndarray
        Between 0 and 1.

    """
    tables = _by_chunk(
        cells_of, image, labels, shared=shared, quantiles=quantiles, background=background
    )
    return _reduced(tables, shared=shared, quantiles=quantiles)


def columns_of(
    table: Any,
    rows: NDArray[Any],
    names: Sequence[str],
    make: Callable[[LabelTable], Sequence[NDArray[Any]]],
    others: tuple[int, ...],
) -> list[Any]:
    """Return columns of a table for given labels, as arrays.

    Parameters
    ----------
    table : dask.array.Array
        Shape (1, 1), of one :class:`LabelTable`.
    rows : numpy.ndarray
        The labels; those that aren't in the table have NaN.
    names : sequence of str
        Names of the columns, for the names of tasks.
    make : callable
        Function of the table that returns each column, shape (labels, channels).
    others : tuple of int
        Shape of the channels.

    Returns
    -------
    list of dask.array.Array
        Shape (rows, *others), float64.

    """
    dims = tuple(range(3, 3 + len(others)))
    whole = da.blockwise(  # type: ignore[no-untyped-call]
        _looked_up, (2, *dims, 1000), table, (0, 1),
        rows=rows, make=make, others=others, concatenate=True,
        new_axes={2: len(rows), **dict(zip(dims, others, strict=True)), 1000: len(names)},
        dtype=np.float64, meta=np.empty((0,) * (len(others) + 2)),
    )  # fmt: skip
    return [whole[..., at] for at in range(len(names))]


def _by_chunk(function: Any, image: Any, labels: Any, **options: Any) -> Any:
    """Return the table of each chunk, shape (chunks down, chunks across)."""
    others = tuple(range(2, image.ndim))
    return da.blockwise(  # type: ignore[no-untyped-call]
        _boxed, (0, 1), image, (*others, 0, 1), labels, (0, 1),
        function=function, concatenate=True, adjust_chunks={0: 1, 1: 1},
        dtype=object, meta=_NONE, **options,
    )  # fmt: skip


def _boxed(*arrays: Any, function: Any, **options: Any) -> NDArray[Any]:
    """Return what a function returns in an array of one object."""
    box = np.empty((1, 1), object)
    box[0, 0] = function(*arrays, **options)
    return box


def _reduced(
    tables: Any, shared: Shared | None = None, quantiles: NDArray[np.float64] | None = None
) -> Any:
    merge = partial(_merged_boxes, shared=shared, quantiles=quantiles)
    return da.reduction(  # type: ignore[no-untyped-call]
        tables,
        chunk=_kept,
        combine=merge,
        aggregate=merge,
        axis=(0, 1),
        keepdims=True,
        split_every=SPLIT_EVERY,
        dtype=object,
        meta=_NONE,
    )


def _kept(boxes: NDArray[Any], axis: Any, keepdims: bool) -> NDArray[Any]:
    return boxes


def _merged_boxes(
    boxes: NDArray[Any],
    axis: Any,
    keepdims: bool,
    *,
    shared: Shared | None,
    quantiles: NDArray[np.float64] | None,
) -> NDArray[Any]:
    return _boxed(boxes.ravel().tolist(), function=merged, shared=shared, quantiles=quantiles)


def _looked_up(
    box: NDArray[Any],
    rows: NDArray[Any],
    make: Callable[[LabelTable], Sequence[NDArray[Any]]],
    others: tuple[int, ...],
) -> NDArray[np.float64]:
    table: LabelTable = box[0, 0]
    made = np.stack([np.asarray(each, np.float64) for each in make(table)], axis=-1)
    found = np.full((len(rows), *made.shape[1:]), np.nan)
    if len(table.labels):
        at = np.minimum(np.searchsorted(table.labels, rows), len(table.labels) - 1)
        is_there = table.labels[at] == rows
        found[is_there] = made[at[is_there]]
    return found.reshape(len(rows), *others, made.shape[-1])
