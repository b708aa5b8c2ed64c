"""Plots of pictures with axes in mm, a scale bar and a title."""

from __future__ import annotations

import math
import re
import unicodedata
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

__all__ = ["add_scale_bar", "current_axes", "show_legend", "show_picture", "title_of"]


def current_axes(ax: Axes | None) -> Axes:
    """Return the axes to plot into: those given, or the current ones.

    Raises
    ------
    ImportError
        When matplotlib isn't installed.

    """
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise ImportError(
            "plot needs matplotlib, which isn't installed: pip install 'dicomslide[plot]'"
        ) from None
    return plt.gca()


def title_of(*parts: str | None, spacing: float | None = None) -> str:
    """Join what a picture shows to a title, such as "S23-1 · DAPI · 0.5 µm/px".

    Parameters
    ----------
    *parts : str or None
        Names of the slide, the channel and so on; those that are empty are left out.
    spacing : float, optional
        Distance of pixels in mm.

    """
    shown = [part for part in parts if part]
    if spacing is not None:
        shown.append(f"{spacing * 1000:.3g} µm/px")
    return " · ".join(shown)


def show_legend(axes: Axes, entries: Sequence[tuple[str, str]]) -> None:
    """Show names with their colours in the upper right corner of axes."""
    from matplotlib.patches import Patch

    if entries:
        handles = [Patch(facecolor=color, edgecolor="grey", label=name) for name, color in entries]
        axes.legend(handles=handles, loc="upper right", fontsize="small")


def show_picture(
    axes: Axes, pixels: NDArray[Any], bounds: tuple[float, float, float, float]
) -> None:
    """Show an upright picture within bounds (x_min, y_min, x_max, y_max) in mm."""
    x_min, y_min, x_max, y_max = bounds
    grey = dict(cmap="gray") if pixels.ndim == 2 else {}
    axes.imshow(pixels, extent=(x_min, x_max, y_min, y_max), **grey)  # type: ignore[arg-type]
    axes.set_xlabel("x [mm]")
    axes.set_ylabel("y [mm]")


def add_scale_bar(axes: Axes, *, color: str | None = None, unit: str | None = None) -> None:
    """Draw a scale bar of a round length into the lower left corner of axes.

    The aspect ratio of the axes is set to "equal", so that the bar is valid in every direction.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Axes with x and y in the slide coordinate system, as from ``image.plot.imshow()``.
    color : str, optional
        Color of the bar and of its label, which gives the length in mm or µm. By default white
        where the picture beneath is dark, else black.
    unit : str, optional
        Unit of x and y: mm, µm (also um or micrometer), nm, cm or m. By default the unit in
        brackets at the end of the axis labels, as xarray writes them ("x [µm]"); mm where there
        is none.

    Raises
    ------
    ValueError
        When the unit isn't a known unit of length, or x and y have different units.

    Examples
    --------
    >>> plot = slide.to_dataset(1).image.plot.imshow()
    >>> dicomslide.add_scale_bar(plot.axes)

    """
    from matplotlib.colors import to_rgb
    from matplotlib.patheffects import withStroke

    mm = _millimeters_of(axes, unit)
    axes.set_aspect("equal")
    left, right = sorted(axes.get_xlim())
    bottom, top = sorted(axes.get_ylim())
    longest = mm * (right - left) / 4
    length = 10 ** math.floor(math.log10(longest))
    length *= max(m for m in (1, 2, 5) if m * length <= longest)
    x, y = left + 0.05 * (right - left), bottom + 0.05 * (top - bottom)
    label = f"{length:g} mm" if length >= 0.5 else f"{length * 1000:g} µm"
    end = x + length / mm
    if color is None:
        color = "white" if _is_dark(axes, (x, end), y) else "black"
    style: dict[str, Any] = dict(color=color, zorder=10)
    (bar,) = axes.plot([x, end], [y, y], linewidth=4, solid_capstyle="butt", **style)
    text = axes.annotate(
        label, ((x + end) / 2, y), (0, 5), textcoords="offset points", ha="center", **style
    )
    outline = "white" if sum(to_rgb(color)) < 1.5 else "black"  # visible on tissue and on glass
    bar.set_path_effects([withStroke(linewidth=6, foreground=outline)])
    text.set_path_effects([withStroke(linewidth=2, foreground=outline)])


def _is_dark(axes: Axes, across: tuple[float, float], y: float) -> bool:
    """Whether the last picture of axes is dark on a line of constant y."""
    for image in reversed(axes.images):
        shown = image.get_array()
        if shown is None:
            continue
        left, right, bottom, top = image.get_extent()
        rows, columns = shown.shape[:2]
        first = bottom if image.origin == "lower" else top
        last = top if image.origin == "lower" else bottom
        row = int((y - first) / (last - first) * rows)
        begin, end = (int((each - left) / (right - left) * columns) for each in sorted(across))
        if not 0 <= row < rows or end < 0 or begin >= columns:
            continue
        line = shown[row : row + 1, max(0, begin) : end + 1]
        rgba = np.asarray(image.to_rgba(line, norm=True), np.float64)
        if rgba.size and rgba[..., 3].mean() > 0.5:  # not an overlay that is clear here
            return bool(rgba[..., :3].mean() < 0.4)
    return False


MILLIMETERS = {
    "m": 1e3, "meter": 1e3, "metre": 1e3,
    "cm": 10.0, "centimeter": 10.0, "centimetre": 10.0,
    "mm": 1.0, "millimeter": 1.0, "millimetre": 1.0,
    "µm": 1e-3, "um": 1e-3, "micrometer": 1e-3, "micrometre": 1e-3, "micron": 1e-3,
    "nm": 1e-6, "nanometer": 1e-6, "nanometre": 1e-6,
}  # fmt: skip
"""Millimetres per unit of length."""


def _millimeters_of(axes: Axes, unit: str | None) -> float:
    """Return the millimetres per `unit`, or per unit in the axis labels."""
    if unit is not None:
        return _millimeters(unit)
    labels = (axes.get_xlabel(), axes.get_ylabel())
    named = [re.search(r"[\[(]([^\])]*)[\])]\s*$", label) for label in labels]
    found = {_millimeters(each[1]) for each in named if each is not None}
    if len(found) > 1:
        raise ValueError(
            "a scale bar is valid in every direction only if x and y have one unit, not"
            f" {labels[0]!r} and {labels[1]!r}"
        )
    return found.pop() if found else 1.0


def _millimeters(unit: str) -> float:
    name = unicodedata.normalize("NFKC", unit.strip()).replace("\N{GREEK SMALL LETTER MU}", "µ")
    for each in (name, name.removesuffix("s")):
        if each in MILLIMETERS:
            return MILLIMETERS[each]
    raise ValueError(
        f"{unit!r} is no length: pass the unit of x and y, as in add_scale_bar(..., unit='mm')"
    )
