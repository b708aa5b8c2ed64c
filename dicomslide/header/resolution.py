"""Pixel spacings as numbers, texts or magnifications, and the pixel grids of a spacing."""

from __future__ import annotations

import dataclasses
import math
import numbers
import re
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dicomslide.header.geometry import AXIS_TOLERANCE, Orientation, SlideGeometry

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Spacing", "coarsened", "grid_at", "magnification_in_mm", "placed_on", "spacing_in_mm"]

Spacing: TypeAlias = float | str
"""Pixel spacing: a number in mm, or text such as ``"0.5 um"`` or ``"10x"``."""

SLIVER = 1e-3
"""Fraction of a pixel that a grid may leave uncovered at its far edge."""
LEAST_FRACTION = 1e-3
"""Lower bound on the spacing of a grid, as a fraction of that of the base level."""
TEN_TIMES = 0.001
"""Pixel spacing in mm at a magnification of 10 ×."""
_UNITS = {"mm": 1.0, "um": 1e-3, "µm": 1e-3, "μm": 1e-3, "micron": 1e-3, "microns": 1e-3,
          "nm": 1e-6}  # fmt: skip
_TEXT = re.compile(
    r"\s*(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?)\s*(?P<unit>[a-zµμ×]+)\s*", re.I
)


def spacing_in_mm(spacing: Spacing) -> float:
    """Return a pixel spacing in mm.

    Parameters
    ----------
    spacing : float or str
        Number in mm; text with a unit, such as ``"0.5 um"``, ``"0.5 µm"``, ``"500 nm"`` or
        ``"0.0005 mm"``; or magnification, such as ``"10x"`` (1 µm), ``"20x"`` (0.5 µm) or
        ``"40x"`` (0.25 µm).

    Raises
    ------
    ValueError
        When `spacing` is none of these, or isn't above zero.

    """
    value = _from_text(spacing) if isinstance(spacing, str) else _from_number(spacing)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(
            f"spacing {spacing!r}: expected mm above zero, or a text with a unit, such as"
            ' "0.5 um" or "10x" (which is 1 µm)'
        )
    return value


def _from_number(value: Any) -> float:
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return float(value) if is_number else math.nan


def _from_text(text: str) -> float:
    """Return the pixel spacing of a text in mm; NaN if the text isn't valid."""
    match = _TEXT.fullmatch(text)
    if match is None:
        return math.nan
    number, unit = float(match["number"]), match["unit"].lower()
    if unit in ("x", "×"):
        return magnification_in_mm(number)
    return number * _UNITS.get(unit, math.nan)


def magnification_in_mm(magnification: float) -> float:
    """Return the pixel spacing in mm at a magnification: 1 µm at 10 ×.

    Raises
    ------
    ValueError
        When `magnification` isn't above zero.

    """
    value = _from_number(magnification)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"magnification {magnification!r}: expected a number above zero")
    return 10 * TEN_TIMES / value


def grid_at(spacing: float, base: SlideGeometry, source: SlideGeometry) -> SlideGeometry:
    """Return the grid of square pixels that begins at the corner of the base.

    Parameters
    ----------
    spacing : float
        Pixel spacing in mm.
    base : SlideGeometry
        Geometry of the base level. The outer corners of pixel (0, 0) of the base and of the grid
        coincide.
    source : SlideGeometry
        Geometry of the image whose extent the grid covers.

    Raises
    ------
    ValueError
        When the grid has no pixel, or pixels are smaller than a thousandth of those of the base.

    """
    if spacing < LEAST_FRACTION * min(base.spacing):
        raise ValueError(
            f"spacing {spacing:g} mm: expected at least a thousandth of that of the base level,"
            f" which is {min(base.spacing):g} mm"
        )
    x, y = base.to_slide((np.divide(spacing, base.spacing) - 1) / 2).tolist()
    grid = dataclasses.replace(base, origin=(x, y), spacing=(spacing, spacing), shape=(1, 1))
    return dataclasses.replace(grid, shape=_shape_over(grid, source))


def coarsened(source: SlideGeometry, factor: int) -> SlideGeometry:
    """Return the grid with the same corner whose pixels are boxes of `factor` × `factor` pixels.

    Parameters
    ----------
    source : SlideGeometry
        The finer grid.
    factor : int
        Pixels along an edge of a box.

    """
    x, y = source.to_slide(((factor - 1) / 2, (factor - 1) / 2)).tolist()
    rows, columns = (-(-length // factor) for length in source.shape)
    spacing = source.spacing[0] * factor, source.spacing[1] * factor
    return dataclasses.replace(source, origin=(x, y), spacing=spacing, shape=(rows, columns))


def _shape_over(grid: SlideGeometry, source: SlideGeometry) -> tuple[int, int]:
    """Return the rows and columns with which a grid extends to the far edges of an image."""
    rows, columns = source.shape
    corners = grid.pixels_of(source) @ [
        [-0.5, -0.5, rows - 0.5, rows - 0.5],
        [-0.5, columns - 0.5, -0.5, columns - 0.5],
        [1.0, 1.0, 1.0, 1.0],
    ]
    down, across = np.ceil(corners.max(axis=1) + 0.5 - SLIVER).astype(int).tolist()
    if min(down, across) < 1:
        raise ValueError(
            f"pixels of {grid.spacing[0]:g} mm are larger than the image, which is"
            f" {source.physical_size[0]:.4g} × {source.physical_size[1]:.4g} mm"
        )
    return down, across


@dataclasses.dataclass(frozen=True, slots=True)
class PlacedGrid:
    """Pixels of a grid in the matrix of an image; pairs are in the order of the matrix' axes."""

    start: tuple[float, float]
    """(row, column) of the lowest edge of the grid, in pixels from the corner of the matrix."""
    step: tuple[float, float]
    """Number of pixels of the matrix per pixel of the grid."""
    count: tuple[int, int]
    """Number of pixels of the grid."""
    orientation: Orientation
    """Orientation that turns an array along the axes of the matrix to those of the grid."""


def placed_on(grid: SlideGeometry, image: SlideGeometry) -> PlacedGrid | None:
    """Return the pixels of a grid in the matrix of an image.

    Parameters
    ----------
    grid : SlideGeometry
        The grid.
    image : SlideGeometry
        The image.

    Returns
    -------
    PlacedGrid or None
        None where the axes of both aren't parallel.

    """
    affine: NDArray[np.float64] = image.pixels_of(grid)
    steps, origin = affine[:, :2], affine[:, 2]
    transpose = bool(abs(steps[0, 1]) > abs(steps[0, 0]))
    along = (1, 0) if transpose else (0, 1)  # the grid's axis of each axis of the matrix
    own = np.array([steps[0, along[0]], steps[1, along[1]]])
    other = np.array([steps[0, along[1]], steps[1, along[0]]])
    if np.abs(other).max() > AXIS_TOLERANCE * np.abs(own).min():
        return None
    count = tuple(grid.shape[axis] for axis in along)
    first = origin - steps @ (0.5, 0.5) + 0.5  # the grid's corner, from that of the matrix
    start = np.where(own > 0, first, first + own * count)
    flip = own < 0
    flip_y, flip_x = (flip[1], flip[0]) if transpose else (flip[0], flip[1])
    return PlacedGrid(
        start=(float(start[0]), float(start[1])),
        step=(float(abs(own[0])), float(abs(own[1]))),
        count=(count[0], count[1]),
        orientation=Orientation(transpose, flip_y=bool(flip_y), flip_x=bool(flip_x)),
    )
