"""Labelled arrays, annotations and shapes in plots by matplotlib, with axes in mm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.annotation.graphic import ellipse_outlines
from dicomslide.display.blend import LABEL_COLORS
from dicomslide.display.picture import as_displayed
from dicomslide.display.plots import (
    add_scale_bar,
    current_axes,
    show_legend,
    show_picture,
    title_of,
)
from dicomslide.labelled.composite import channel_dim, composite
from dicomslide.labelled.overlay import Labels, overlay_of
from dicomslide.labelled.presentation import channel_displays

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

__all__ = ["plot_array", "plot_image", "plot_shapes"]

FEW = 20_000
"""Annotations up to which each is drawn as its shape; of more, the centroids are."""
ELLIPSE_VERTICES = 32


def plot_image(image: xr.DataArray, *, ax: Axes | None, scale_bar: bool, **options: Any) -> Axes:
    """Plot an image; see :meth:`dicomslide.labelled.accessor.SlideAccessor.plot`."""
    x_min, y_min, x_max, y_max = image.slide.extent
    names: str | None = None
    legend: list[tuple[str, str]] = []
    if "sample" in image.dims:
        if options:
            raise ValueError(f"{', '.join(options)} are of channels; its pixels are colours")
        pixels = image.transpose("y", "x", "sample").values
        picture = as_displayed(pixels)
    elif channel_dim(image) is None and not options:
        pixels = image.transpose("y", "x").values
        picture = as_displayed(pixels[:, :, None])
        if "channel" in image.coords:  # selected of several, or the only one
            names = channel_displays(image)[0].name
    else:
        # computed first: robust limits and the picture need the same pixels
        picture = composite(image.compute(), **options).transpose("y", "x", "sample").values
        shown = channel_displays(image)
        colors = options.get("colors") or [each.color for each in shown]
        names = ", ".join(each.name for each in shown)
        legend = [(each.name, color) for each, color in zip(shown, colors, strict=True)]
    axes = current_axes(ax)
    show_picture(axes, _upright(picture, image), (x_min, y_min, x_max, y_max))
    show_legend(axes, legend)
    if scale_bar:
        add_scale_bar(axes)
    axes.set_title(title_of(names, spacing=image.slide.spacing[0]))
    return axes


def _upright(pixels: NDArray[Any], array: xr.DataArray) -> NDArray[Any]:
    """Return pixels, shape (rows, columns, ...), with x to the right and y upwards."""
    if array["y"].values[0] < array["y"].values[-1]:
        pixels = pixels[::-1]
    if array["x"].values[0] > array["x"].values[-1]:
        pixels = pixels[:, ::-1]
    return pixels


def plot_array(axes: Axes, array: xr.DataArray, name: str, opacity: float) -> list[tuple[str, str]]:
    """Draw a segmentation, label map or map of numbers over a picture; numbers with a colour bar.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Axes in mm.
    array : xarray.DataArray
        Dims ([segment,] y, x), which is read.
    name : str
        Name of the overlay.
    opacity : float
        From 0 to 1.

    Returns
    -------
    list of tuple of str
        Name and colour of each segment.

    """
    values = array.values
    drawn = overlay_of(array)
    if not isinstance(drawn, Labels):
        values = values[0] if values.ndim == 3 else values
        drawn = drawn.within(values)
    x_min, y_min, x_max, y_max = array.slide.extent
    rgba = _upright(drawn.rgba(values), array)
    axes.imshow(
        rgba,
        extent=(x_min, x_max, y_min, y_max),
        alpha=rgba[..., 3] / 255 * opacity,
        interpolation="nearest",
        zorder=1,
    )
    if isinstance(drawn, Labels):
        return drawn.legend
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    assert drawn.limits is not None
    mappable = ScalarMappable(Normalize(*drawn.limits), drawn.colors)
    label = f"{drawn.name} [{drawn.unit}]" if drawn.unit else drawn.name
    axes.figure.colorbar(mappable, ax=axes, label=label, alpha=opacity, shrink=0.7)
    return []


def plot_shapes(axes: Axes, shapes: Any, name: str, number: int) -> list[tuple[str, str]]:
    """Draw the outlines of an AnnotationGroup or a GeoDataFrame; return name and colour."""
    color = LABEL_COLORS[number % len(LABEL_COLORS)]
    if hasattr(shapes, "geometry"):
        shapes.plot(ax=axes, facecolor="none", edgecolor=color, color=None, linewidth=0.8, zorder=2)
        return [(name, color)]
    if shapes.graphic_type == "POINT" or len(shapes) > FEW:
        x, y = shapes.centroids.T
        axes.scatter(x, y, s=4 if len(shapes) <= FEW else 0.2, color=color, zorder=2)
        return [(name, color)]
    from matplotlib.collections import LineCollection

    points, offsets = shapes.coordinates[:, :2], shapes.offsets
    if shapes.graphic_type == "ELLIPSE":
        points, offsets = ellipse_outlines(points.astype(np.float64), ELLIPSE_VERTICES)
    lines = np.split(points, offsets[1:-1])
    if shapes.graphic_type != "POLYLINE":
        lines = [np.concatenate([line, line[:1]]) for line in lines]
    axes.add_collection(
        LineCollection(lines, colors=color, linewidths=0.8, zorder=2), autolim=False
    )
    return [(name, color)]
