"""Conversion of slides to SpatialData objects."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from dicomslide.errors import MetadataError, MetadataWarning
from dicomslide.export.images import images_of, shard_data
from dicomslide.labelled.tree import slide_groups
from dicomslide.process.warn import warn

if TYPE_CHECKING:
    import spatialdata

    from dicomslide.annotation.group import AnnotationGroup
    from dicomslide.export.images import ExportImage, ExportLevel, Raster
    from dicomslide.slide.slide import Slide

__all__ = ["to_spatialdata"]

COORDINATE_SYSTEM = "slide"
CHUNK = 2048
"""Edge in pixels of a chunk, which one dask task reads."""


def to_spatialdata(slide: Slide, *, focal_plane_index: int = 0) -> spatialdata.SpatialData:
    """Return a slide as a SpatialData object with lazy pixels.

    Parameters
    ----------
    slide : Slide
        The slide.
    focal_plane_index : int, default: 0
        Zero-based index of the focal plane to take.

    Returns
    -------
    spatialdata.SpatialData
        With the upright multiscale image ``image``, dims (c, y, x); a label image for each
        segment (``segmentation_segment_1``) or label map; an image for each other derived series;
        and shapes or points for each group of annotations (``annotations_1``), with their
        measurements. All have a transformation to the coordinate system ``"slide"``: µm along X
        and Y of the DICOM slide coordinate system, in which y points up.

    Raises
    ------
    ImportError
        When spatialdata isn't installed.
    MetadataError
        When a header has no position of an image on the slide.
    ValueError
        When `focal_plane_index` is out of range.

    Notes
    -----
    In SpatialData, the centre of the first pixel is at 0.5, and all levels of an image have the
    transformation of the largest one. The position of a level thus follows from the ratio of the
    numbers of pixels; a level whose own header differs by more than one of its pixels is left out,
    with a warning. Polylines are left out, with a warning, since SpatialData doesn't have them.

    """
    try:
        from spatialdata import SpatialData
        from spatialdata.models import Image2DModel, Labels2DModel
    except ImportError:
        raise ImportError(
            "to_spatialdata needs the package spatialdata: pip install 'dicomslide[spatialdata]'"
        ) from None
    groups = slide_groups(slide, data=shard_data(CHUNK), squeeze=False, mask_and_scale=False)
    tree = xr.DataTree.from_dict(groups)
    images: dict[str, Any] = {}
    labels: dict[str, Any] = {}
    for image in images_of(tree, CHUNK):
        if image.labels is None:
            images[image.name] = _multiscale(image, Image2DModel, focal_plane_index)
        else:
            labels[image.name] = _multiscale(image, Labels2DModel, focal_plane_index)
    shapes: dict[str, Any] = {}
    points: dict[str, Any] = {}
    for number, group in enumerate(slide.annotations(), 1):
        if group.graphic_type == "POINT":
            points[f"annotations_{number}"] = _points(group)
        elif group.graphic_type == "POLYLINE":
            warn(
                f"annotation group {group.label!r} is left out: SpatialData has no polylines",
                MetadataWarning,
            )
        elif len(group):
            shapes[f"annotations_{number}"] = _shapes(group)
    return SpatialData(images=images, labels=labels, shapes=shapes, points=points)


def _multiscale(image: ExportImage, model: Any, focal_plane_index: int) -> xr.DataTree:
    """Return an image as a tree with the nodes ``scale0``, ``scale1``, ..."""
    from spatialdata import transformations
    from spatialdata.models import Image2DModel

    base = image.levels[0]
    transformation = transformations.Affine(
        _affine(base.raster, image.name), input_axes=("x", "y"), output_axes=("x", "y")
    )
    scales: dict[str, xr.Dataset] = {}
    for level in image.levels:
        if not _agrees_with_ratio(level, base):
            warn(
                f"{image.name}: level {level.number} is left out: its position differs by more than"
                " a pixel from the one that SpatialData derives from the numbers of pixels",
                MetadataWarning,
            )
            continue
        array = level.array
        if "z" in array.dims:
            if not 0 <= focal_plane_index < array.sizes["z"]:
                raise ValueError(
                    f"{image.name}: no focal plane {focal_plane_index}; expected 0 to"
                    f" {array.sizes['z'] - 1}"
                )
            array = array.isel(z=focal_plane_index)
        plain = xr.DataArray(array.data, dims=array.dims)
        for dim in ("y", "x"):  # centres, in pixels of the largest level
            step = base.array.sizes[dim] / array.sizes[dim]
            plain = plain.assign_coords({dim: (np.arange(array.sizes[dim]) + 0.5) * step})
        if model is Image2DModel and "c" in array.coords:
            plain = plain.assign_coords(c=[str(name) for name in array["c"].values])
        plain.attrs["transform"] = {COORDINATE_SYSTEM: transformation}
        scales[f"scale{len(scales)}"] = plain.to_dataset(name="image")
    tree = xr.DataTree.from_dict(scales)
    transformations.set_transformation(tree, transformation, COORDINATE_SYSTEM)
    model().validate(tree)
    return tree


def _affine(raster: Raster, name: str) -> list[list[float]]:
    """Return the affine from (x, y) in pixels, origin at the first pixel's corner, to µm."""
    if raster.to_slide is None:
        raise MetadataError(
            f"{name}: the header has no position on the slide (Total Pixel Matrix Origin Sequence,"
            " Image Orientation (Slide), Pixel Spacing), which SpatialData needs"
        )
    matrix = 1000 * np.array(raster.to_slide)
    spacing, start = np.array(raster.spacing), np.array(raster.start)
    steps = matrix * spacing  # columns: a pixel along y, along x
    corner = matrix @ (start - spacing / 2)
    return [
        [steps[0, 1], steps[0, 0], corner[0]],
        [steps[1, 1], steps[1, 0], corner[1]],
        [0.0, 0.0, 1.0],
    ]


def _agrees_with_ratio(level: ExportLevel, base: ExportLevel) -> bool:
    """Whether a level's position follows from the ratio of numbers of pixels, within a pixel."""
    shape, base_shape = (np.array(each.array.shape[-2:]) for each in (level, base))
    spacing, base_spacing = (np.array(each.raster.spacing) for each in (level, base))
    derived = base_spacing * base_shape / shape
    first = np.array(base.raster.start) - base_spacing / 2 + derived / 2 - level.raster.start
    last = first + (derived - spacing) * (shape - 1)
    return bool((np.maximum(np.abs(first), np.abs(last)) <= spacing).all())


def _scale() -> dict[str, Any]:
    from spatialdata.transformations import Scale

    return {COORDINATE_SYSTEM: Scale([1000.0, 1000.0], axes=("x", "y"))}  # mm to µm


def _points(group: AnnotationGroup) -> Any:
    from spatialdata.models import PointsModel

    table = group.to_pandas().drop(
        columns=["x_min", "y_min", "x_max", "y_max", "z"], errors="ignore"
    )
    return PointsModel.parse(
        _named(table), coordinates={"x": "x", "y": "y"}, transformations=_scale()
    )


def _shapes(group: AnnotationGroup) -> Any:
    from spatialdata.models import ShapesModel

    return ShapesModel.parse(_named(group.to_geopandas()), transformations=_scale())


def _named(table: Any) -> Any:
    """Return a table with column names that SpatialData accepts: letters, digits, ``_.-``."""
    return table.rename(columns=lambda name: re.sub(r"[^\w.-]+", "_", str(name)))
