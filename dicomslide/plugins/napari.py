"""DICOM slides in napari, which finds this reader by the manifest beside it and isn't imported.

Axes are those of the upright raster in mm, as of an export to OME-Zarr: x of the slide, and −y,
since rows of napari run downwards. All layers of a slide lie in them.
"""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Any, TypeAlias

import dask.array as da
import numpy as np

from dicomslide.annotation.graphic import ellipse_outlines
from dicomslide.backends.objects.storage import is_url
from dicomslide.backends.part10.file import is_dicom_file
from dicomslide.display.blend import robust_limits
from dicomslide.export import ome_metadata
from dicomslide.export.images import images_of
from dicomslide.export.label_images import on_levels_of
from dicomslide.export.ome_metadata import label_color
from dicomslide.labelled.presentation import channel_displays
from dicomslide.slide.opening import open_slide

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from dicomslide.annotation.group import AnnotationGroup
    from dicomslide.export.images import ExportImage
    from dicomslide.labelled.presentation import ChannelDisplay

__all__ = ["get_reader", "read"]

Layer: TypeAlias = tuple[Any, dict[str, Any], str]
"""Data, properties and type of a layer."""

FIRST_FILES = 100
"""Files of a folder that are examined: napari asks about each folder that it opens."""
MOST_SHAPES = 5_000
"""Annotations of a group up to which napari shows outlines; it is slow with more."""
ELLIPSE_VERTICES = 32
POINT_SIZE = 0.005
"""Diameter of points in mm: about that of a nucleus."""
MOST_COLORS = 1_000
"""Labels of an image up to which each has its own colour; napari has colours for any."""
MOST_PIXELS = 4096**2
"""Pixels of the smallest level up to which they tell what is darkest and brightest."""
UNIT = "mm"


def get_reader(path: str | list[str]) -> Callable[[Any], list[Layer]] | None:
    """Return the reader of a path or URL, or of several; None for what isn't DICOM.

    A folder is DICOM where one of its first files is.
    """
    paths = [path] if isinstance(path, str) else list(path)
    return read if paths and all(map(_may_be_dicom, paths)) else None


def _may_be_dicom(path: str) -> bool:
    if is_url(path):
        return True
    if not os.path.isdir(path):
        return is_dicom_file(path)
    files = (os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)
    return any(map(is_dicom_file, itertools.islice(files, FIRST_FILES)))


def read(path: str | list[str]) -> list[Layer]:
    """Return the layers of a slide: images, then labels, then annotations.

    Parameters
    ----------
    path : str or list of str
        Files of a slide, its folder, or a URL: see :func:`dicomslide.open_slide`.

    """
    slide = open_slide(path)
    images = images_of(slide.to_datatree(), 1)
    layers: list[Layer] = []
    for image in images:
        if image.labels is None:
            layers.append(_image(image))
        else:
            on_levels, _ = on_levels_of(image, images[0])
            layers.append(_labels(image if on_levels is None else on_levels))
    return layers + [_annotations(group) for group in slide.annotations() if len(group)]


def _image(image: ExportImage) -> Layer:
    levels = [level.array.data for level in image.levels]
    about = _placed(image)
    if image.samples == "rgb":
        in_color = [da.moveaxis(data, 0, -1) for data in levels]
        return in_color, about | {"name": image.name, "rgb": True}, "image"
    displays = channel_displays(image.levels[0].array)
    windows = [_window(image, display, at) for at, display in enumerate(displays)]
    channels = ome_metadata.channels(image, displays, [(*each, *each) for each in windows])
    about |= {
        "name": [f"{image.name}: {each['label']}" for each in channels],
        "channel_axis": 0,
        "colormap": [f"#{each['color']}" for each in channels],
        "contrast_limits": windows,
        "blending": "additive",
    }
    return levels, about, "image"


def _window(image: ExportImage, display: ChannelDisplay, channel: int) -> tuple[float, float]:
    """Return the values that are darkest and brightest, of the header or else of the pixels."""
    smallest = image.levels[-1].array.isel(c=channel)
    if display.window is not None and not image.samples:
        return display.window
    if display.valid_range is not None and (image.in_color or smallest.size > MOST_PIXELS):
        return display.valid_range
    return robust_limits(smallest.values)


def _labels(image: ExportImage) -> Layer:
    properties = image.labels or {}
    about = _placed(image) | {"name": image.name}
    if len(properties) == 1:
        ((value, described),) = properties.items()
        about["name"] = described.get("label") or f"{image.name} {value}"
    if properties:
        about["features"] = {
            "index": [0, *properties],
            "label": ["", *(each.get("label", "") for each in properties.values())],
        }
    if 0 < len(properties) <= MOST_COLORS:
        colors = {
            value: np.array([*label_color(value, each.get("color"))[:3], 255]) / 255
            for value, each in properties.items()
        }
        about["colormap"] = {None: np.zeros(4), 0: np.zeros(4), **colors}
    return [level.array.data for level in image.levels], about | {"opacity": 0.5}, "labels"


def _placed(image: ExportImage) -> dict[str, Any]:
    """Return scale and translation, in mm where the position on the slide is known."""
    level = image.levels[0]
    dims = [dim for dim in image.dims if dim != "c"]
    spacing, start = ome_metadata.places(level)
    unit = "pixel" if level.raster.to_slide is None else UNIT
    return {
        "scale": [spacing[dim] for dim in dims],
        "translate": [start[dim] for dim in dims],
        "axis_labels": dims,
        "units": [unit] * len(dims),
    }


def _annotations(group: AnnotationGroup) -> Layer:
    about: dict[str, Any] = {
        "name": group.label or f"annotations {group.number}",
        "axis_labels": ["y", "x"],
        "units": [UNIT] * 2,
        "features": {
            str(name): column.values
            for name, column in group.to_pandas().items()
            if column.dtype.kind in "biuf"
        },
    }
    if group.graphic_type == "POINT" or len(group) > MOST_SHAPES:
        return _in_axes(group.centroids), about | {"size": POINT_SIZE}, "points"
    points: NDArray[Any] = group.coordinates
    offsets = group.offsets
    if group.graphic_type == "ELLIPSE":
        points, offsets = ellipse_outlines(points, ELLIPSE_VERTICES)
    outlines = np.split(_in_axes(points), offsets[1:-1])
    about |= {
        "shape_type": "path" if group.graphic_type == "POLYLINE" else "polygon",
        "face_color": "transparent",
        "edge_color": "yellow",
        "edge_width": POINT_SIZE / 5,
    }
    return outlines, about, "shapes"


def _in_axes(points: NDArray[Any]) -> NDArray[np.float64]:
    """Return (−y, x) of points (x, y)."""
    return np.stack([-points[:, 1], points[:, 0]], axis=1).astype(np.float64)
