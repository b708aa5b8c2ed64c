"""Display of channels: colours and windows, by the coordinates and attributes of an array."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dicomslide.display.false_color import ChannelHint, false_colors

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["ChannelDisplay", "channel_displays", "channel_names"]

_NOT_CHANNELS = {"z", "y", "x", "row", "column", "sample"}
_IDENTIFIER = re.compile(r"(?:channel|parameter|segment)(?:_\d+)?")
_OF_CHANNELS = re.compile(r"(?:channel|parameter|segment)(?:_\d+)?_(\w+)$")
_WAVELENGTHS = re.compile(r"(wavelength|emission|excitation)(?:_\d+)?$")


class ChannelDisplay(NamedTuple):
    """How a channel is displayed."""

    name: str
    """Description of the channel; else its identifier, or its number from 1 on."""
    color: str
    """Colour of its brightest value, ``#RRGGBB``: see ``array.slide.channel_displays()``."""
    valid_range: tuple[float, float] | None
    """Lowest and highest value of Bits Stored; None if unknown, as for real numbers."""
    window: tuple[float, float] | None
    """Values that are displayed darkest and brightest, by the header, within the valid range; None
    where it recommends none: then they follow the pixels."""


def channel_displays(array: xr.DataArray) -> tuple[ChannelDisplay, ...]:
    """Return names, colours and windows in which the channels of an array are displayed.

    See ``array.slide.channel_displays()``. The position of a
    channel never decides against what is known of it.

    Parameters
    ----------
    array : xarray.DataArray
        Array of the engine, or one derived from it, also without a dim of channels, or with that
        dim renamed. No pixels are read.

    Returns
    -------
    tuple of ChannelDisplay
        One for each channel.

    """
    dim, count = _channels(array)
    columns = _columns(array, dim, count)
    names = channel_names(array)
    colors = false_colors(
        [
            ChannelHint(
                color=_text(columns, "color", i),
                names=[names[i], _text(columns, "codes", i), _text(columns, "illumination", i)],
                emission=_number(columns, "emission", i),
                illumination=_number(columns, "excitation", i) or _number(columns, "wavelength", i),
            )
            for i in range(count)
        ]
    )
    found = []
    for i, (name, color) in enumerate(zip(names, colors, strict=True)):
        limits = _limits(array, _number(columns, "bits_stored", i))
        low, high = (_number(columns, f"window_{end}", i) for end in ("low", "high"))
        window = None if low is None or high is None else (low, high)
        if window and limits:
            window = max(window[0], limits[0]), min(window[1], limits[1])
        if window and not window[0] < window[1]:
            window = None
        found.append(ChannelDisplay(name, color, limits, window))
    return tuple(found)


def channel_names(array: xr.DataArray) -> list[str]:
    """Return the descriptions of channels; else their identifiers, or their numbers from 1 on."""
    dim, count = _channels(array)
    columns = _columns(array, dim, count)
    named = (
        np.atleast_1d(coord.values)
        for name, coord in array.coords.items()
        if name == dim or (dim is None and not coord.ndim and _IDENTIFIER.fullmatch(str(name)))
    )
    identifiers = next(named, range(1, count + 1))
    return [
        _text(columns, "description", i) or _text(columns, "label", i) or str(identifiers[i])
        for i in range(count)
    ]


def _channels(array: xr.DataArray) -> tuple[Any, int]:
    """Return the dim of channels, None where there is none, and their number."""
    lead = [dim for dim in array.dims if dim not in _NOT_CHANNELS]
    return (lead[0], array.sizes[lead[0]]) if len(lead) == 1 else (None, 1)


def _columns(array: xr.DataArray, dim: Any, count: int) -> dict[str, Any]:
    """Return values by channel, by what they are: description, color, emission, ..."""
    found: dict[str, Any] = {}
    for name, coord in array.coords.items():
        match = _OF_CHANNELS.match(str(name)) or _WAVELENGTHS.match(str(name))
        if match and coord.dims in ((dim,), ()):
            found[match[1]] = np.broadcast_to(coord.values, count)
    return found


def _text(columns: dict[str, Any], name: str, index: int) -> str:
    return str(columns[name][index]) if name in columns else ""


def _number(columns: dict[str, Any], name: str, index: int) -> float | None:
    """Return a number; None where it is absent, NaN or no number."""
    try:
        value = float(columns[name][index])
    except (KeyError, TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _limits(array: xr.DataArray, bits: float | None) -> tuple[float, float] | None:
    """Return the lowest and highest possible value of a channel; None for real numbers."""
    if array.dtype.kind not in "iu":
        return None
    kind = np.iinfo(array.dtype)
    low, high = map(float, array.attrs.get("valid_range", (kind.min, kind.max)))
    if bits is not None:  # channels differ
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if low < 0 else (0.0, 2**bits - 1)
    return max(low, float(kind.min)), min(high, float(kind.max))
