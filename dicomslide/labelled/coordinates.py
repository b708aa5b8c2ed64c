"""Coordinate variables of the labelled datasets: millimetres, focal planes, channels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from dicomslide.enum import ChannelTypes
from dicomslide.labelled.index import SlideIndex

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dicomslide.channel import Channel
    from dicomslide.geometry import Orientation, SlideGeometry

__all__ = ["channel_coords", "focal_plane_coords", "matrix_coords", "slide_coordinate"]


def matrix_coords(
    geometry: SlideGeometry | None, orientation: Orientation | None, size: tuple[int, int]
) -> xr.Coordinates:
    """Return y and x in mm of an upright matrix, or row and column where it is as stored."""
    if geometry is None or orientation is None:
        return xr.Coordinates(
            {
                name: xr.Variable(name, np.arange(length))
                for name, length in zip(("row", "column"), size, strict=True)
            }
        )
    y, x = geometry.upright_coordinates()
    along_x, along_y = geometry.slide_spacing
    coords = xr.Coordinates()
    for name, values, spacing in (("y", y, along_y), ("x", x, along_x)):
        # plots write "x [mm]" along their axes
        attrs = {"long_name": name, "units": "mm", "pixel_size": spacing}
        coords = coords.assign(slide_coordinate(name, values, attrs, spacing))
    return coords


def focal_plane_coords(
    offsets: Sequence[float], planes: Sequence[int], *, is_dim: bool
) -> xr.Coordinates:
    """Return z in mm of focal planes, with their indices beside it.

    Parameters
    ----------
    offsets : sequence of float
        In µm.
    planes : sequence of int
        Zero-based indices.
    is_dim : bool
        Whether z is a dim; else both are scalars.

    """
    values = np.array(offsets) / 1000
    attrs = {"long_name": "focal plane's offset", "units": "mm"}
    index = xr.Variable("z", np.array(planes), {"long_name": "focal plane's index"}, _one("z"))
    if not is_dim:
        z = xr.Variable("z", values, attrs)
        return xr.Coordinates({"z": z[0], "focal_plane": _scalar(index)})
    return slide_coordinate("z", values, attrs, None).assign(focal_plane=index)


def slide_coordinate(
    name: str, values: Any, attrs: dict[str, Any], spacing: float | None
) -> xr.Coordinates:
    """Return a coordinate in mm with its index: see :class:`SlideIndex`."""
    index = SlideIndex(pd.Index(values, name=name), name, spacing=spacing)
    variables = index.create_variables({name: xr.Variable(name, values, attrs)})
    return xr.Coordinates(variables, indexes={name: index})


def channel_coords(
    dim: str, channels: Sequence[Channel], stains: Sequence[str], *, is_dim: bool
) -> dict[str, xr.Variable]:
    """Return the identifiers of channels, and beside them what a person knows them by.

    Parameters
    ----------
    dim : str
        Name of the dim, and of the identifiers: ``channel``, ``segment``, ``parameter``.
    channels : sequence of Channel
        Channels of one type.
    stains : sequence of str
        What the specimen of each channel was stained with; empty where nothing says.
    is_dim : bool
        Whether there is such a dim; else all are scalars.

    """
    kind = channels[0].type
    columns: dict[str, tuple[Sequence[Any], dict[str, str]]] = {
        dim: ([c.identifier for c in channels], {"long_name": _NAMES[kind]}),
    }
    if kind is ChannelTypes.OPTICAL_PATH:
        columns |= {
            f"{dim}_description": (
                [c.description or c.identifier for c in channels],
                {"long_name": "Optical Path Description"},
            ),
            f"{dim}_stain": (stains, {"long_name": "substances used for specimen staining"}),
            "wavelength": (
                [c.wavelength for c in channels],
                {"long_name": "Illumination Wave Length", "units": "nm"},
            ),
        }
    elif kind is ChannelTypes.SEGMENT:
        columns |= {
            f"{dim}_label": (
                [c.description or c.identifier for c in channels],
                {"long_name": "Segment Label"},
            ),
            f"{dim}_category": (
                [c.category for c in channels],
                {"long_name": "Segmented Property Category"},
            ),
            f"{dim}_type": (
                [c.property_type for c in channels],
                {"long_name": "Segmented Property Type"},
            ),
            f"{dim}_algorithm": (
                [c.algorithm for c in channels],
                {"long_name": "Segment Algorithm"},
            ),
        }
    else:
        mappings = [c.mapping or (None, None) for c in channels]
        columns |= {
            f"{dim}_description": (
                [c.description or c.identifier for c in channels],
                {"long_name": "LUT Explanation"},
            ),
            f"{dim}_quantity": ([c.quantity for c in channels], {"long_name": "Quantity"}),
            f"{dim}_unit": ([c.unit for c in channels], {"long_name": "Measurement Units (UCUM)"}),
            f"{dim}_slope": (
                [slope for slope, _ in mappings],
                {"long_name": "Real World Value Slope"},
            ),
            f"{dim}_intercept": (
                [intercept for _, intercept in mappings],
                {"long_name": "Real World Value Intercept"},
            ),
        }
    found = {
        name: xr.Variable(dim, _filled(values), attrs, _one(dim))
        for name, (values, attrs) in columns.items()
        if any(value not in (None, "") for value in values)
    }
    return found if is_dim else {name: _scalar(variable) for name, variable in found.items()}


_NAMES = {
    ChannelTypes.OPTICAL_PATH: "Optical Path Identifier",
    ChannelTypes.SEGMENT: "Segment Number",
    ChannelTypes.PARAMETER: "LUT Label",
}


def _scalar(variable: xr.Variable) -> xr.Variable:
    """Return the only value of a variable, which has no chunks."""
    scalar = variable[0]
    scalar.encoding = {}
    return scalar


def _one(dim: str) -> dict[str, Any]:
    """Return an encoding with the chunks that the pixels have along a dim: a dataset is one."""
    return {"preferred_chunks": {dim: 1}}


def _filled(values: Sequence[Any]) -> Any:
    """Return an array of texts, or of numbers, with those that are absent empty or NaN."""
    texts = any(isinstance(value, str) for value in values)
    return np.array([("" if texts else math.nan) if v is None else v for v in values])
