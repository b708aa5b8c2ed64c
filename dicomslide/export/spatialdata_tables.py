"""Tables of segments and annotations for SpatialData."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pandas as pd
    import xarray as xr

    from dicomslide.annotation.group import AnnotationGroup
    from dicomslide.export.images import ExportImage

__all__ = ["element_columns", "measurement_table", "segment_table", "unique"]

POSITIONS = {"x", "y", "z", "x_min", "y_min", "x_max", "y_max"}
"""Columns of annotations in mm, which the geometry replaces."""


def unique(names: Iterable[str]) -> list[str]:
    """Return names with ``_2``, ``_3``, ... where the same, in any case, came before."""
    found: list[str] = []
    taken: set[str] = set()
    for name in names:
        number, tried = 1, name
        while tried.casefold() in taken:
            number += 1
            tried = f"{name}_{number}"
        taken.add(tried.casefold())
        found.append(tried)
    return found


def _accepted(names: Iterable[str]) -> list[str]:
    """Return unique names that SpatialData accepts: letters, digits, ``_``, ``.`` and ``-``."""
    return unique(re.sub(r"[^\w.-]+", "_", str(name)).strip("_") or "value" for name in names)


def _measured(group: AnnotationGroup) -> tuple[pd.DataFrame, list[str]]:
    """Return the table of annotations, and the names of its columns of measurements."""
    table = group.to_pandas()
    names = [str(name) for name in table]
    first = names.index("n_points") + 1
    return table, names[first : names.index("group")]


def element_columns(group: AnnotationGroup) -> pd.DataFrame:
    """Return the columns of annotations that aren't positions or measurements."""
    table, measured = _measured(group)
    return table[[name for name in table if name not in {*measured, *POSITIONS}]]


def measurement_table(group: AnnotationGroup, region: str) -> dict[str, Any]:
    """Return the table of the measurements of a group of annotations; empty if it has none.

    Parameters
    ----------
    group : AnnotationGroup
        Annotations, whose order is that of the element.
    region : str
        Name of the element.

    Returns
    -------
    dict of str to anndata.AnnData
        The table by its name, with the shape (annotations, measurements).

    """
    table, measured = _measured(group)
    if not measured:
        return {}
    units = table.attrs["units"]
    obs = table[["label", "property_category", "property_type"]].reset_index(drop=True)
    obs = obs.assign(region=region, instance_id=np.arange(len(table)))
    values = np.stack([each.values for each in group.measurements], axis=1)
    return {f"{region}_table": _table(obs, values, measured, [units.get(m, "") for m in measured])}


def segment_table(
    images: Sequence[ExportImage], statistics: Mapping[str, xr.Dataset]
) -> dict[str, Any]:
    """Return the table of all segments of label images; empty if there is none.

    Parameters
    ----------
    images : sequence of ExportImage
        Label images.
    statistics : mapping of str to xarray.Dataset
        Variables with a dim of segments, by the name of the segmentation.

    Returns
    -------
    dict of str to anndata.AnnData
        The table ``segments``, shape (segments, measurements).

    Raises
    ------
    ValueError
        When `statistics` are of no segmentation, or have no dim of segments.

    """
    import pandas as pd

    variables = {image.variable for image in images}
    if unknown := set(statistics) - variables:
        raise ValueError(
            f"statistics are given for {', '.join(map(repr, sorted(unknown)))}; expected"
            f" segmentations: {', '.join(map(repr, sorted(variables))) or 'there are none'}"
        )
    measured = {name: _by_segment(name, dataset) for name, dataset in statistics.items()}
    rows: list[dict[str, Any]] = []
    values: list[dict[str, float]] = []
    for image in images:
        for value, properties in (image.labels or {}).items():
            if not value:
                continue  # background
            rows.append({"region": image.name, "instance_id": value} | properties)
            of_segments = measured.get(image.variable, {})
            number, label = str(value), properties.get("label")
            values.append(of_segments.get(number) or of_segments.get(str(label)) or {})
    if not rows:
        return {}
    obs = pd.DataFrame(rows)
    colors = obs.pop("color") if "color" in obs else None
    columns = pd.DataFrame(values)
    units = {
        str(name): variable.attrs.get("units", "")
        for dataset in statistics.values()
        for name, variable in dataset.data_vars.items()
    }
    of_columns = [units.get(column.partition(" ")[0], "") for column in map(str, columns)]
    table = _table(obs, columns.to_numpy(np.float64), list(map(str, columns)), of_columns)
    if "label" in table.obs and colors is not None:
        # as scanpy and viewers have them: a colour for each category
        known = dict(zip(obs["label"], colors.fillna("#808080"), strict=True))
        table.uns["label_colors"] = [known[each] for each in table.obs["label"].cat.categories]
    return {"segments": table}


def _by_segment(name: str, dataset: xr.Dataset) -> dict[str, dict[str, float]]:
    """Return the values of each segment by the names of columns."""
    wrong = [str(key) for key, array in dataset.items() if "segment" not in array.dims]
    if "segment" not in dataset.coords or wrong:
        raise ValueError(
            f"statistics of {name!r} have variables without the dim segment:"
            f" {', '.join(wrong) or 'all'}; expected those of recipes.segment_statistics"
        )
    computed = dataset.compute()
    found: dict[str, dict[str, float]] = {str(each): {} for each in dataset["segment"].values}
    for variable, array in computed.data_vars.items():
        others = [dim for dim in array.dims if dim != "segment"]
        flat = array.stack(of=others) if others else array.expand_dims("of")
        labels = [
            " ".join(map(str, [variable, *(key if isinstance(key, tuple) else (key,))]))
            for key in (flat["of"].values if others else [()])
        ]
        for of_segment, values in zip(
            found.values(), flat.transpose("segment", "of").values, strict=True
        ):
            of_segment.update(zip(labels, map(float, values), strict=True))
    return found


def _table(
    obs: pd.DataFrame, values: np.ndarray[Any, Any], names: Sequence[str], units: Sequence[str]
) -> Any:
    import anndata
    import pandas as pd
    from spatialdata.models import TableModel

    obs = obs.set_axis([str(i) for i in range(len(obs))], axis="index")
    for name in set(obs) - {"instance_id"}:
        obs[name] = obs[name].astype(object).fillna("").astype(str).astype("category")
    var = pd.DataFrame({"units": [str(unit) for unit in units]}, index=_accepted(names))
    table = anndata.AnnData(np.asarray(values), obs=obs, var=var)
    return TableModel.parse(
        table,
        region=list(obs["region"].cat.categories),
        region_key="region",
        instance_key="instance_id",
    )
