"""The metadata of OME-Zarr 0.5, as plain JSON values."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.errors import MetadataWarning
from dicomslide.process.warn import warn

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr

    from dicomslide.export.images import ExportImage, ExportLevel
    from dicomslide.labelled.presentation import ChannelDisplay

__all__ = ["VERSION", "channels", "focal_planes", "image_label", "label_color", "multiscales",
           "places"]  # fmt: skip

VERSION = "0.5"
SAMPLES = {"r": ("red", "FF0000"), "g": ("green", "00FF00"), "b": ("blue", "0000FF")}
LABEL_ALPHA = 128
"""Opacity of labels, 0 to 255."""


def multiscales(image: ExportImage) -> list[dict[str, Any]]:
    """Return ``multiscales`` of an image: axes, and scale and translation of each level.

    The translation is the centre of the first pixel. Each level has its own spacing and origin, so
    that ratios between levels needn't be integers.
    """
    spatial = {"type": "space"}
    if image.levels[0].raster.to_slide is not None:
        spatial["unit"] = "millimeter"
    axes = [
        {"name": dim, "type": "channel"} if dim == "c" else {"name": dim} | spatial
        for dim in image.dims
    ]
    datasets = [
        {
            "path": f"level_{level.number}/{image.variable}",
            "coordinateTransformations": _transformations(level),
        }
        for level in image.levels
    ]
    return [{"name": image.name, "axes": axes, "datasets": datasets}]


def _transformations(level: ExportLevel) -> list[dict[str, Any]]:
    spacing, start = places(level)
    dims = [str(dim) for dim in level.array.dims]
    return [
        {"type": "scale", "scale": [spacing.get(dim, 1.0) for dim in dims]},
        {"type": "translation", "translation": [start.get(dim, 0.0) for dim in dims]},
    ]


def places(level: ExportLevel) -> tuple[dict[str, float], dict[str, float]]:
    """Return the distance between pixels and the centre of the first one, by spatial dim."""
    spacing = dict(zip(("y", "x"), level.raster.spacing, strict=True))
    start = dict(zip(("y", "x"), level.raster.start, strict=True))
    if "z" in level.array.dims:
        spacing["z"], start["z"] = focal_planes(level.array)
    return spacing, start


def focal_planes(array: xr.DataArray) -> tuple[float, float]:
    """Return the mean distance between focal planes and the position of the first one, in mm."""
    z = np.asarray(array["z"], dtype=float) if "z" in array.coords else np.arange(array.sizes["z"])
    steps = np.diff(z)
    if (steps <= 0).any():
        raise ValueError(f"{array.name}: focal planes must ascend along z")
    if not np.allclose(steps, steps.mean(), rtol=1e-3, atol=0):
        warn(
            f"focal planes aren't evenly spaced ({', '.join(f'{value:g}' for value in z)} mm):"
            " multiscales have the mean distance; the coordinate z is exact",
            MetadataWarning,
        )
    return float(np.round(steps.mean(), 12)), float(z[0])


def channels(
    image: ExportImage,
    displays: Sequence[ChannelDisplay],
    windows: Sequence[tuple[float, float, float, float]],
) -> list[dict[str, Any]]:
    """Return ``omero.channels`` of an image: name, display colour and window of each channel.

    Parameters
    ----------
    image : ExportImage
        With an axis c.
    displays : sequence of ChannelDisplay
        Name and colour of each channel; samples red, green and blue have their own.
    windows : sequence of tuple of float
        (min, max, start, end) of each channel: the range of possible values, and the values that
        are displayed darkest and brightest.

    """
    names = [display.name for display in displays]
    colors = [display.color.removeprefix("#") for display in displays]
    array = image.levels[0].array
    identifiers = np.atleast_1d(array["c"].values) if "c" in array.coords else image.samples
    for i, sample in enumerate(image.samples):
        word, colors[i] = SAMPLES[sample]
        names[i] = str(identifiers[i])[:-1] + word
    return [
        {
            "label": name,
            "color": color,
            "window": dict(zip(("min", "max", "start", "end"), window, strict=True)),
            "active": True,
            "coefficient": 1,
            "family": "linear",
            "inverted": False,
        }
        for name, color, window in zip(names, colors, windows, strict=True)
    ]


def image_label(labels: dict[int, dict[str, str]], source: str | None) -> dict[str, Any]:
    """Return ``image-label``: display colour and properties of each label value.

    Parameters
    ----------
    labels : dict of int to dict of str
        Properties of each value; ``color`` is its display colour, ``#RRGGBB``. Empty where values
        have none.
    source : str or None
        Relative path of the labelled image.

    """
    described: dict[str, Any] = {"version": VERSION}
    if labels:
        described["colors"] = [
            {"label-value": value, "rgba": label_color(value, properties.get("color"))}
            for value, properties in labels.items()
        ]
        described["properties"] = [
            {"label-value": value}
            | {key: each for key, each in properties.items() if key != "color"}
            for value, properties in labels.items()
        ]
    return described | ({} if source is None else {"source": {"image": source}})


def label_color(value: int, recommended: str | None = None) -> list[int]:
    """Return red, green, blue and opacity, 0 to 255, of a label value.

    Without a recommended colour, ``#RRGGBB``, hues differ between near values. Zero is the
    background, and transparent.
    """
    alpha = LABEL_ALPHA if value else 0
    if recommended:
        return [*bytes.fromhex(recommended.removeprefix("#")), alpha]
    hue = (value * 0.61803398875) % 1  # golden ratio: an even spread for any number of values
    rgb = [0.5 + 0.5 * math.cos(2 * math.pi * (hue - third / 3)) for third in range(3)]
    return [*(round(255 * part) for part in rgb), alpha]
