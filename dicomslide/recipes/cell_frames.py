"""Tables of cells for pandas and AnnData."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.header.layout import MICROMETERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    import anndata
    import pandas as pd
    import xarray as xr
    from numpy.typing import NDArray

    from dicomslide.annotation.group import AnnotationGroup

__all__ = ["to_anndata", "to_pandas"]


def to_pandas(table: xr.Dataset, *, annotations: AnnotationGroup | None = None) -> pd.DataFrame:
    """Return a table of cells as a pandas DataFrame, with one row per segment.

    Parameters
    ----------
    table : xarray.Dataset
        Of :func:`cell_table` or :func:`segment_statistics`; computed if it is lazy.
    annotations : AnnotationGroup, optional
        Bulk annotations of the same cells: annotation 1, the first, is of segment 1, as in a label
        map that :func:`rasterize` makes of them. Their columns follow, with the prefix
        ``annotation_``; those of segments without an annotation are empty.

    Returns
    -------
    pandas.DataFrame
        The index is ``segment``. Columns: ``segment_label`` and other coordinates; ``area``, ... ;
        and a column for each variable and channel, such as ``mean_CD3`` and ``percentile_95_CD3``,
        by the names of channels where these are unique.

    """
    import pandas as pd

    table = table.compute()
    index = pd.Index(table["segment"].values, name="segment")
    columns: dict[str, NDArray[Any]] = {
        str(name): each.values
        for name, each in table.coords.items()
        if each.dims == ("segment",) and name != "segment"
    }
    for name, array in table.data_vars.items():
        columns |= dict(_columns(str(name), array))
    frame = pd.DataFrame(columns, index)
    if annotations is not None:
        beside = annotations.to_pandas()
        beside.index = pd.RangeIndex(1, len(beside) + 1)
        frame = frame.join(beside.add_prefix("annotation_"))
    return frame


def to_anndata(table: xr.Dataset, *, values: str = "mean") -> anndata.AnnData:
    """Return a table of cells as AnnData, for scanpy, squidpy and others.

    Parameters
    ----------
    table : xarray.Dataset
        Of :func:`cell_table`; computed if it is lazy.
    values : str, default: "mean"
        Variable that is ``X``; the others with the same dims are layers.

    Returns
    -------
    anndata.AnnData
        One row (observation) per segment, with the number of the segment as its name; one column
        (variable) per channel, by its name. ``obs`` has the columns without channels,
        ``obsm["spatial"]`` the centroids (x, y) in µm.

    Raises
    ------
    ImportError
        When anndata isn't installed.
    ValueError
        When the table has no such variable with one dim of channels.

    """
    try:
        import anndata
    except ImportError:
        raise ImportError(
            "to_anndata needs anndata, which isn't installed: pip install 'dicomslide[anndata]'"
        ) from None
    import pandas as pd

    if values not in table or table[values].ndim != 2:
        named = [str(name) for name, each in table.data_vars.items() if each.ndim == 2]
        raise ValueError(
            f"{values!r} is no variable of the table with a dim of channels; expected one of"
            f" {named}: select along other dims, or expand_dims('channel') where there is none"
        )
    table = table.compute()
    dim = str(table[values].dims[1])
    alone = table.drop_vars([name for name, each in table.data_vars.items() if each.ndim > 1])
    obs = to_pandas(alone.drop_dims([d for d in alone.dims if d != "segment"]))
    obs.index = obs.index.astype(str)
    var = pd.DataFrame(index=pd.Index(_names(table, dim), dtype=object))
    for name, coordinate in table.coords.items():
        if coordinate.dims == (dim,):
            var[str(name)] = coordinate.values
    layers = {
        str(name): each.values
        for name, each in table.data_vars.items()
        if each.dims == ("segment", dim) and name != values
    }
    found = anndata.AnnData(table[values].values, obs=obs, var=var, layers=layers)
    if {"centroid_x", "centroid_y"} <= set(table.data_vars):
        centres = [table[f"centroid_{axis}"].values for axis in "xy"]
        found.obsm["spatial"] = np.stack(centres, axis=1) * MICROMETERS
    return found


def _columns(name: str, array: xr.DataArray) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield a name and the values for each place along the dims other than segment."""
    others = [str(dim) for dim in array.dims if dim != "segment"]
    labels = [_names(array, dim) for dim in others]
    for places in itertools.product(*(range(len(each)) for each in labels)):
        parts = dict(zip(others, (each[at] for each, at in zip(labels, places, strict=True)),
                         strict=True))  # fmt: skip
        percent = parts.pop("percentile", None)
        first = name if percent is None else f"percentile_{percent}"
        column = array.isel(dict(zip(others, places, strict=True))).values
        yield "_".join([first, *parts.values()]), column


def _names(array: xr.DataArray | xr.Dataset, dim: str) -> list[str]:
    """Return names of what lies along a dim: descriptions where unique, else labels."""
    if f"{dim}_description" in array.coords:
        names = [str(name) for name in array[f"{dim}_description"].values.tolist()]
        if len(set(names)) == len(names) and all(names):
            return names
    if dim not in array.coords:
        return [str(at) for at in range(array.sizes[dim])]
    values = array[dim].values.tolist()
    return [f"{each:g}" if isinstance(each, float) else str(each) for each in values]
