"""Colours of pixels: blended channels, colour maps, colours of labels, and layers over each other.

Arrays of colours have shape (rows, columns, 3 or 4) and are uint8.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["LABEL_COLORS", "blend", "check_gamma", "laid_over", "ramp", "rgb_of", "robust_limits"]

ROBUST = (1.0, 99.8)
"""Percentiles of pixels that are displayed darkest and brightest."""
MOST_VALUES = 1 << 20
"""Upper bound on the values of which percentiles are computed."""
LABEL_COLORS = (
    "#E6194B", "#3CB44B", "#4363D8", "#FFE119", "#F58231", "#911EB4", "#42D4F4", "#F032E6",
    "#BFEF45", "#FABED4", "#469990", "#DCBEFF", "#9A6324", "#FFFAC8", "#800000", "#AAFFC3",
    "#808000", "#FFD8B1", "#000075",
)  # fmt: skip
"""Colours of segments that have none of their own, in turn."""


def rgb_of(color: str) -> tuple[int, int, int]:
    """Return red, green and blue, 0 to 255, of a colour: ``#RRGGBB``, or a name that CSS has."""
    if isinstance(color, str):
        if re.fullmatch(r"#[0-9a-fA-F]{6}", color):
            return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)
        from PIL import ImageColor

        try:
            return ImageColor.getrgb(color)[:3]
        except ValueError:
            pass
    raise ValueError(f"{color!r} is no colour: expected '#RRGGBB' or a name such as 'magenta'")


def check_gamma(gamma: float) -> float:
    """Return an exponent above zero.

    Raises
    ------
    ValueError
        When it is another number.

    """
    value = float(gamma)
    if not 0 < value < np.inf:
        raise ValueError(f"gamma {gamma!r}: expected a number above zero")
    return value


def robust_limits(values: NDArray[Any]) -> tuple[float, float]:
    """Return the values that are displayed darkest and brightest: the 1st and 99.8th percentile.

    Values that aren't finite don't count; where the percentiles are equal, it is the minimum and
    the maximum, and where these are equal, a range above them.
    """
    flat = values.reshape(-1)
    flat = flat[:: max(1, flat.size // MOST_VALUES)]
    if flat.dtype.kind == "f":
        flat = flat[np.isfinite(flat)]
    if not flat.size:
        return 0.0, 1.0
    low, high = (float(each) for each in np.percentile(flat, ROBUST))
    if not low < high:
        low, high = float(flat.min()), float(flat.max())
    return (low, high) if low < high else (low, low + 1.0)


def ramp(
    values: NDArray[Any], limits: tuple[float, float], gamma: float = 1.0
) -> NDArray[np.float32]:
    """Return values as numbers from 0 (the lower limit) to 1, raised to the power `gamma`.

    NaN is 0. Integers go through a table.
    """
    low, high = limits

    def scaled(numbers: NDArray[Any]) -> NDArray[np.float32]:
        shares = (numbers.astype(np.float64) - low) / (high - low)
        shares = np.nan_to_num(np.clip(shares, 0.0, 1.0), nan=0.0)
        return (shares**gamma if gamma != 1 else shares).astype(np.float32)

    if values.dtype.kind in "ui" and values.dtype.itemsize <= 2:
        table = scaled(np.arange(1 << 8 * values.dtype.itemsize))
        if values.dtype.kind == "i":
            kind = np.iinfo(values.dtype)
            # index −1 is the last entry, as of NumPy
            table = scaled(np.r_[0 : kind.max + 1, kind.min : 0])
        return table[values]
    return scaled(values)


def blend(
    channels: Sequence[NDArray[Any]],
    colors: Sequence[str | NDArray[np.uint8]],
    limits: Sequence[tuple[float, float]],
    gamma: float = 1.0,
) -> NDArray[np.uint8]:
    """Return the sum of channels in their colours, as light adds up.

    Parameters
    ----------
    channels : sequence of numpy.ndarray
        Pixels of each channel, shape (rows, columns).
    colors : sequence of str or numpy.ndarray
        Colour of the brightest value of each channel; or a table of colours from the darkest to
        the brightest value, shape (entries, 3), uint8.
    limits : sequence of tuple of float
        Values of each channel that are darkest and brightest.
    gamma : float, default: 1.0
        Exponent of the brightness, from 0 to 1, of each channel.

    Returns
    -------
    numpy.ndarray
        Shape (rows, columns, 3), uint8.

    """
    total = np.zeros((*channels[0].shape, 3), np.float32)
    for pixels, color, ends in zip(channels, colors, limits, strict=True):
        shares = ramp(pixels, ends, gamma)
        if isinstance(color, str):
            for sample, part in enumerate(rgb_of(color)):
                if part:
                    total[..., sample] += shares * np.float32(part)
        else:
            total += color[np.rint(shares * (len(color) - 1)).astype(np.intp)]
    return np.rint(np.minimum(total, 255.0)).astype(np.uint8)


def laid_over(below: NDArray[np.uint8], above: NDArray[np.uint8], opacity: float = 1.0) -> None:
    """Draw colours with an opacity over others, in place.

    Parameters
    ----------
    below : numpy.ndarray
        Shape (rows, columns, 4), opaque or not.
    above : numpy.ndarray
        Shape (rows, columns, 4): red, green and blue aren't multiplied by the opacity.
    opacity : float
        Factor of the opacity of `above`, from 0 to 1.

    """
    there = [np.flatnonzero(above[..., 3].any(axis=axis)) for axis in (1, 0)]
    if not there[0].size or opacity <= 0:
        return
    box = tuple(slice(int(each[0]), int(each[-1]) + 1) for each in there)
    over, under = above[box], below[box]
    alpha = over[..., 3] * np.float32(opacity / 255)
    both = alpha + under[..., 3] * np.float32(1 / 255) * (1 - alpha)
    share = alpha / np.maximum(both, np.float32(1e-6))
    for sample in range(3):  # faster than all at once
        color = under[..., sample].astype(np.float32)
        color += (over[..., sample] - color) * share
        under[..., sample] = np.rint(color)
    under[..., 3] = np.rint(both * 255)
