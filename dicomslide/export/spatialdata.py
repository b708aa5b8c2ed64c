"""Conversion of slides to SpatialData objects."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from dicomslide.errors import MetadataError, MetadataWarning
from dicomslide.export.images import images_of, shard_data
from dicomslide.export.ome_metadata import focal_planes
from dicomslide.export.spatialdata_tables import (
    element_columns,
    measurement_table,
    segment_table,
    unique,
)
from dicomslide.labelled.parts import datasets_of
from dicomslide.labelled.presentation import channel_displays
from dicomslide.labelled.tree import slide_parts
from dicomslide.process.warn import warn

if TYPE_CHECKING:
    from collections.abc import Mapping

    import spatialdata

    from dicomslide.annotation.group import AnnotationGroup
    from dicomslide.export.images import ExportImage, ExportLevel, Raster
    from dicomslide.slide.slide import Slide

__all__ = ["to_spatialdata"]

COORDINATE_SYSTEM = "global"
"""Name that readers of SpatialData use and viewers show by default."""
CHUNK = 2048
"""Edge in pixels of a chunk, which one dask task reads."""
TO_GLOBAL = ((1000.0, 0.0), (0.0, -1000.0))
"""From (x, y) of the slide in mm to (x, y) in µm with y pointing down."""


def to_spatialdata(
    slide: Slide,
    *,
    focal_plane_index: int | None = 0,
    statistics: Mapping[str, xr.Dataset] | None = None,
) -> spatialdata.SpatialData:
    """Return a slide as a SpatialData object with lazy pixels.

    Parameters
    ----------
    slide : Slide
        The slide.
    focal_plane_index : int or None, default: 0
        Zero-based index of the focal plane of the image to take. Of segmentations and other images
        with focal planes, it is the one nearest to it. None takes all of them: images with several
        focal planes are three-dimensional, with dims (c, z, y, x).
    statistics : mapping of str to xarray.Dataset, optional
        Measurements of segments by the name of a segmentation, such as
        ``{"segmentation": recipes.segment_statistics(level.image, level.segmentation)}``. They are
        computed.

    Returns
    -------
    spatialdata.SpatialData
        With

        * the upright multiscale image ``image``, dims (c, y, x), whose channels have their names;
        * a label image for each segment (``segmentation_segment_1``) or label map, and an image for
          each other derived series;
        * shapes or points for each group of annotations (``annotations_1``);
        * tables: ``segments`` has a row for each segment of each label image, with its label,
          category, type and colour, and `statistics`; ``annotations_1_table`` has the measurements
          of a group of annotations, with units in ``var``;
        * ``attrs["channels"]``: name, colour and window of each channel of each image.

        All are in the coordinate system ``"global"``: µm, x is X of the DICOM slide coordinate
        system, and y is −Y, since y points down where SpatialData is displayed.

    Raises
    ------
    ImportError
        When spatialdata isn't installed.
    MetadataError
        When a header has no position of an image on the slide.
    ValueError
        When `focal_plane_index` is out of range, or `statistics` are of no segmentation.

    Notes
    -----
    In SpatialData, the centre of the first pixel is at 0.5, and all levels of an image have the
    transformation of the largest one. The position of a level thus follows from the ratio of the
    numbers of pixels; a level whose own header differs by more than one of its pixels is left out,
    with a warning. Polylines are left out, with a warning, since SpatialData doesn't have them.

    """
    try:
        from spatialdata import SpatialData
    except ImportError:
        raise ImportError(
            "to_spatialdata needs the package spatialdata: pip install 'dicomslide[spatialdata]'"
        ) from None
    groups = slide_parts(slide, data=shard_data(CHUNK), squeeze=False, mask_and_scale=False)
    tree = xr.DataTree.from_dict(datasets_of(groups))
    found = images_of(tree, CHUNK)
    plane = None if focal_plane_index is None else _z_of_plane(found[0], focal_plane_index)
    images: dict[str, Any] = {}
    labels: dict[str, Any] = {}
    channels: dict[str, Any] = {}
    for image in found:
        planar = image if focal_plane_index is None else _in_plane(image, focal_plane_index, plane)
        if image.labels is None:
            images[image.name] = _multiscale(planar)
            channels[image.name] = _channels(planar)
        else:
            labels[image.name] = _multiscale(planar)
    shapes: dict[str, Any] = {}
    points: dict[str, Any] = {}
    tables = segment_table([image for image in found if image.labels is not None], statistics or {})
    for number, group in enumerate(slide.annotations(), 1):
        name = f"annotations_{number}"
        if group.graphic_type == "POLYLINE":
            warn(
                f"annotation group {group.label!r} is left out: SpatialData has no polylines",
                MetadataWarning,
            )
        elif len(group):
            if group.graphic_type == "POINT":
                points[name] = _points(group)
            else:
                shapes[name] = _shapes(group)
            tables |= measurement_table(group, name)
    return SpatialData(
        images=images,
        labels=labels,
        shapes=shapes,
        points=points,
        tables=tables,
        attrs={"channels": channels},
    )


def _z_of_plane(image: ExportImage, index: int) -> float | None:
    """Return the position of a focal plane in mm; None if it is unknown, or the only one."""
    array = image.levels[0].array
    count = array.sizes.get("z", 1)
    if not 0 <= index < count:
        raise ValueError(f"{image.name}: no focal plane {index}; expected 0 to {count - 1}")
    return float(array["z"][index]) if "z" in array.dims and "z" in array.coords else None


def _in_plane(image: ExportImage, index: int, z: float | None) -> ExportImage:
    """Return one focal plane of an image: the one nearest to z in mm, or else that of an index."""
    levels = []
    for level in image.levels:
        array = level.array
        if "z" in array.dims:
            here = index
            if z is not None and "z" in array.coords:
                here = int(np.abs(array["z"].values - z).argmin())
            elif here >= array.sizes["z"]:
                raise ValueError(
                    f"{image.name}: no focal plane {here}; expected 0 to {array.sizes['z'] - 1}"
                )
            array = array.isel(z=here)
        levels.append(dataclasses.replace(level, array=array))
    return dataclasses.replace(image, levels=tuple(levels))


def _multiscale(image: ExportImage) -> xr.DataTree:
    """Return an image as a tree with the nodes ``scale0``, ``scale1``, ..."""
    from spatialdata import models, transformations

    base = image.levels[0]
    kind = "Image" if image.labels is None else "Labels"
    model = getattr(models, f"{kind}{3 if 'z' in base.array.dims else 2}DModel")
    transformation = transformations.Affine(
        _affine(base.raster, image.name), input_axes=("x", "y"), output_axes=("x", "y")
    )
    if "z" in base.array.dims:
        transformation = transformations.Sequence([_planes_to_um(base.array), transformation])
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
        plain = xr.DataArray(array.data, dims=array.dims)
        for dim in {"z", "y", "x"} & {*map(str, array.dims)}:
            # centres, in pixels of the largest level
            step = base.array.sizes[dim] / array.sizes[dim]
            plain = plain.assign_coords({dim: (np.arange(array.sizes[dim]) + 0.5) * step})
        if image.labels is None:
            plain = plain.assign_coords(c=_names(image))
        plain.attrs["transform"] = {COORDINATE_SYSTEM: transformation}
        scales[f"scale{len(scales)}"] = plain.to_dataset(name="image")
    tree = xr.DataTree.from_dict(scales)
    transformations.set_transformation(tree, transformation, COORDINATE_SYSTEM)
    model().validate(tree)
    return tree


def _planes_to_um(array: xr.DataArray) -> Any:
    """Return the transformation of z from planes, whose centres are at 0.5, to µm."""
    from spatialdata.transformations import Affine

    distance, first = (1000 * value for value in focal_planes(array))
    return Affine([[distance, first - distance / 2], [0, 1]], ("z",), ("z",))


def _names(image: ExportImage) -> list[str]:
    """Return names of channels that are unique: r, g and b of colours."""
    array = image.levels[0].array
    if image.samples:
        samples = array["c"].values if "c" in array.coords else image.samples
        return [str(name) for name in samples]
    names = [display.name for display in channel_displays(array)]
    return unique(names)


def _channels(image: ExportImage) -> list[dict[str, Any]]:
    """Return name, colour and window of each channel, as plain JSON values."""
    displays = channel_displays(image.levels[0].array)
    samples = {"r": "#FF0000", "g": "#00FF00", "b": "#0000FF"}
    return [
        {
            "name": name,
            "color": samples[image.samples[i]] if image.samples else display.color,
            "valid_range": display.valid_range and list(display.valid_range),
            "window": None if image.samples else display.window and list(display.window),
        }
        for i, (name, display) in enumerate(zip(_names(image), displays, strict=True))
    ]


def _affine(raster: Raster, name: str) -> list[list[float]]:
    """Return the affine from (x, y) in pixels, origin at the first pixel's corner, to µm."""
    if raster.to_slide is None:
        raise MetadataError(
            f"{name}: the header has no position on the slide (Total Pixel Matrix Origin Sequence,"
            " Image Orientation (Slide), Pixel Spacing), which SpatialData needs"
        )
    matrix = np.array(TO_GLOBAL) @ np.array(raster.to_slide)
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


def _points(group: AnnotationGroup) -> Any:
    from spatialdata.models import PointsModel

    table = element_columns(group)
    table[["x", "y"]] = group.centroids @ np.array(TO_GLOBAL).T
    return PointsModel.parse(
        table, coordinates={"x": "x", "y": "y"}, transformations=_already_global()
    )


def _shapes(group: AnnotationGroup) -> Any:
    import geopandas
    import shapely
    from spatialdata.models import ShapesModel

    matrix = np.array(TO_GLOBAL)
    outlines = shapely.transform(
        group.to_geopandas().geometry.to_numpy(), lambda points: points @ matrix.T
    )
    table = geopandas.GeoDataFrame(element_columns(group), geometry=outlines)
    return ShapesModel.parse(table, transformations=_already_global())


def _already_global() -> dict[str, Any]:
    from spatialdata.transformations import Identity

    return {COORDINATE_SYSTEM: Identity()}
