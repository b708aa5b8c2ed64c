"""Coordinates of channels: names, optical set-up, and recommended display."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from dicomslide.enum import ChannelTypes
from dicomslide.header import dicom
from dicomslide.header.optics import optics_of, recommended_color, window_of
from dicomslide.labelled.channel_index import ChannelIndex
from dicomslide.labelled.coordinates import chunks_of_one
from dicomslide.labelled.name_index import NameIndex

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import TypeAlias

    from dicomslide.header.channels import Channel
    from dicomslide.header.optics import Filter
    from dicomslide.image import TiledImage

    Columns: TypeAlias = dict[str, tuple[Sequence[Any], dict[str, str]]]
    """Values by channel and attributes of coordinates, by name."""

__all__ = ["channel_coords", "channel_indexed", "channels_restored"]


def channel_coords(
    dim: str,
    channels: Sequence[Channel],
    labels: Sequence[str],
    images: Sequence[TiledImage],
    *,
    is_dim: bool,
) -> xr.Coordinates:
    """Return the labels of channels, with their descriptions, stains, units and so on.

    Labels of segments are their numbers, as integers.

    Parameters
    ----------
    dim : str
        Name of the dim and of the labels: ``channel``, ``segment`` or ``parameter``.
    channels : sequence of Channel
        Channels of one type.
    labels : sequence of str
        Unique labels: see :attr:`ChannelGroup.labels`. Where they differ from the identifiers, the
        identifiers and the series are coordinates as well.
    images : sequence of TiledImage
        An image of each channel, for the stains and the series in its header.
    is_dim : bool
        Whether there is such a dim; else all coordinates are scalars.

    """
    kind = channels[0].type
    identifiers = [c.identifier for c in channels]
    shown = _numbers(labels) if kind is ChannelTypes.SEGMENT else labels
    columns: Columns = {
        dim: (shown, {"long_name": _NAMES[kind]}),
    }
    if list(labels) != identifiers:
        series = ("SeriesInstanceUID", "SeriesDescription")
        uids, names = ([dicom.text(i.metadata, keyword) for i in images] for keyword in series)
        columns |= {
            f"{dim}_identifier": (identifiers, {"long_name": _NAMES[kind]}),
            f"{dim}_series": (uids, {"long_name": "Series Instance UID"}),
            f"{dim}_series_description": (names, {"long_name": "Series Description"}),
        }
    columns |= {
        ChannelTypes.OPTICAL_PATH: _of_optical_paths,
        ChannelTypes.SEGMENT: _of_segments,
        ChannelTypes.PARAMETER: _of_parameters,
    }[kind](dim, channels, images)
    # arrays can be aligned if both have the index of a coordinate, also where all values are NaN
    kept = _indexed(dim) if is_dim and kind is ChannelTypes.OPTICAL_PATH else ()
    there = {
        name: (_filled(values), attrs)
        for name, (values, attrs) in columns.items()
        if name in kept or any(value not in (None, "") for value in values)
    }
    if not is_dim:
        scalars = {name: xr.Variable((), of[0], attrs) for name, (of, attrs) in there.items()}
        return xr.Coordinates(scalars, indexes={})
    return channel_indexed(
        dim, {name: xr.Variable(dim, *of, chunks_of_one(dim)) for name, of in there.items()}
    )


def channel_indexed(dim: str, variables: Mapping[Any, xr.Variable]) -> xr.Coordinates:
    """Return coordinates of channels with indexes of identifiers, and of names and wavelengths.

    Parameters
    ----------
    dim : str
        Name of the dim and of the identifiers: ``channel``, ``segment`` or ``parameter``.
    variables : mapping
        Coordinates along the dim by name, with the identifiers.

    """
    identifiers = variables[dim].values
    names: dict[Any, str] = {}
    for name in (f"{dim}_description", f"{dim}_label"):
        if name in variables:
            called = zip(identifiers.tolist(), variables[name].values.tolist(), strict=True)
            names = {each: text for each, text in called if text and text != str(each)}
    index = ChannelIndex(pd.Index(identifiers, name=dim), dim, names=names)
    found = dict(variables) | index.create_variables(variables)
    indexes: dict[Any, xr.Index] = {dim: index}
    for name in _indexed(dim):
        if name in variables:
            beside = NameIndex.from_variables(
                {name: variables[name]}, options={"identifiers": identifiers}
            )
            found |= beside.create_variables(variables)
            indexes[name] = beside
    return xr.Coordinates(found, indexes=indexes)


def channels_restored(data: xr.DataArray | xr.Dataset) -> xr.Coordinates:
    """Return the coordinates of channels with the indexes that :func:`channel_indexed` gives."""
    found = xr.Coordinates()
    for name in map(str, data.coords):
        if _DIM.fullmatch(name) and data[name].dims == (name,):
            along = {
                key: _in_memory(data[key].variable)
                for key in (name, f"{name}_label", f"{name}_description", *_indexed(name))
                if key in data.coords and data[key].dims == (name,)
            }
            found = found.assign(channel_indexed(name, along))
    return found


def _in_memory(variable: xr.Variable) -> xr.Variable:
    """Return a coordinate of a file with NumPy's fixed-width texts, or numbers."""
    values = variable.values
    if values.dtype.kind in "OT":
        values = np.array([str(value) for value in values])
    return xr.Variable(variable.dims, values, variable.attrs, variable.encoding)


def _indexed(dim: str) -> tuple[str, ...]:
    """Return the coordinates of optical paths that have an index beside the identifiers."""
    number = dim.removeprefix("channel")
    return () if number == dim else (f"{dim}_description", f"wavelength{number}")


def _numbers(labels: Sequence[str]) -> Sequence[Any]:
    """Return Segment Numbers as integers; as they are where a header has other values."""
    try:
        return [int(label) for label in labels]
    except ValueError:
        return labels


def _of_optical_paths(
    dim: str, channels: Sequence[Channel], images: Sequence[TiledImage]
) -> Columns:
    """Return names, wavelengths, the optical set-up and the recommended display."""
    each_image = {id(image): image for image in images}
    stained = {key: ", ".join(dicom.stains_of(i.metadata)) for key, i in each_image.items()}
    windows = {key: window_of(i.metadata) or (None, None) for key, i in each_image.items()}
    optics = [optics_of(c, image.metadata) for c, image in zip(channels, images, strict=True)]
    bits = [image._layout.pixel_format.bits_stored for image in images]
    number = dim.removeprefix("channel")  # of image_2: wavelength_2
    columns: Columns = {
        f"{dim}_description": (
            [c.description or c.identifier for c in channels],
            {"long_name": "Optical Path Description"},
        ),
        f"{dim}_stain": (
            [stained[id(image)] for image in images],
            {"long_name": "substances used for specimen staining"},
        ),
        f"{dim}_codes": (
            [each.codes for each in optics],
            {"long_name": "Channel Description Codes"},
        ),
        f"wavelength{number}": (
            [c.wavelength for c in channels],
            {"long_name": "Illumination Wave Length", "units": "nm"},
        ),
        f"{dim}_illumination": (
            [each.illumination for each in optics],
            {"long_name": "Illumination Type"},
        ),
        f"{dim}_illumination_color": (
            [each.illumination_color for each in optics],
            {"long_name": "Illumination Color"},
        ),
        f"{dim}_objective_power": (
            [each.objective_power for each in optics],
            {"long_name": "Objective Lens Power"},
        ),
        f"{dim}_objective_na": (
            [each.objective_na for each in optics],
            {"long_name": "Objective Lens Numerical Aperture"},
        ),
        f"{dim}_exposure_time": (
            [each.exposure_time for each in optics],
            {"long_name": "exposure time", "units": "ms"},
        ),
        f"{dim}_color": (
            [recommended_color(c) for c in channels],
            {"long_name": "recommended display colour"},
        ),
        f"{dim}_window_low": (
            [windows[id(image)][0] for image in images],
            {"long_name": "recommended display: value that is darkest"},
        ),
        f"{dim}_window_high": (
            [windows[id(image)][1] for image in images],
            {"long_name": "recommended display: value that is brightest"},
        ),
    }
    for name, of in (("excitation", "Light"), ("emission", "Image")):
        filters: list[Filter] = [getattr(each, name) for each in optics]
        title = f"{of} Path Filter Pass"
        columns |= {
            f"{name}{number}": (
                [each.peak for each in filters],
                {"long_name": f"{title}-Through Wavelength", "units": "nm"},
            ),
            f"{name}_low{number}": (
                [each.low for each in filters],
                {"long_name": f"{title} Band, shorter end", "units": "nm"},
            ),
            f"{name}_high{number}": (
                [each.high for each in filters],
                {"long_name": f"{title} Band, longer end", "units": "nm"},
            ),
        }
    if len(set(bits)) > 1:
        columns[f"{dim}_bits_stored"] = bits, {"long_name": "Bits Stored"}
    return columns


def _of_segments(dim: str, channels: Sequence[Channel], images: Sequence[TiledImage]) -> Columns:
    """Return labels, meanings and recommended colours of segments."""
    return {
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
        f"{dim}_color": (
            [recommended_color(c) for c in channels],
            {"long_name": "recommended display colour"},
        ),
    }


def _of_parameters(dim: str, channels: Sequence[Channel], images: Sequence[TiledImage]) -> Columns:
    """Return meanings, units and mappings of parameters."""
    mappings = [c.mapping or (None, None) for c in channels]
    return {
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


_DIM = re.compile(r"(?:channel|segment|parameter)(?:_\d+)?")
"""Names of dims of channels."""
_NAMES = {
    ChannelTypes.OPTICAL_PATH: "Optical Path Identifier",
    ChannelTypes.SEGMENT: "Segment Number",
    ChannelTypes.PARAMETER: "LUT Label",
}


def _filled(values: Sequence[Any]) -> Any:
    """Return an array of texts or numbers; None becomes an empty text or NaN."""
    texts = any(isinstance(value, str) for value in values)
    return np.array([("" if texts else math.nan) if v is None else v for v in values])
