"""What lies on an image, as colours: segmentations, label maps, and maps of numbers."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.display.blend import LABEL_COLORS, ramp, rgb_of, robust_limits

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

__all__ = ["Labels", "NumberMap", "Overlay", "overlay_of"]

MOST_LEGEND = 30
"""Upper bound on entries of a legend."""
CLEAR = (0, 0, 0, 0)


@dataclasses.dataclass(frozen=True)
class Labels:
    """Labels or masks, drawn by segment."""

    values: tuple[int, ...] | None
    """Label of each segment of a label map; None for masks along a dim of segments, or one."""
    names: tuple[str, ...]
    colors: tuple[str, ...]
    hidden: frozenset[int] = frozenset()
    """Indices of segments that aren't drawn."""

    @property
    def legend(self) -> list[tuple[str, str]]:
        """Name and colour of the first segments."""
        return list(zip(self.names, self.colors, strict=True))[:MOST_LEGEND]

    def rgba(self, pixels: NDArray[Any]) -> NDArray[np.uint8]:
        """Return the colours of pixels, shape (rows, columns, 4).

        Parameters
        ----------
        pixels : numpy.ndarray
            Labels, shape (rows, columns); or masks or fractions, shape ([segments,] rows,
            columns), where fractions are opacities.

        """
        table = np.array([(*rgb_of(color), 255) for color in self.colors], np.uint8)
        table[list(self.hidden)] = CLEAR
        if self.values is not None or (pixels.ndim == 2 and pixels.dtype.kind in "ui"):
            return self._of_labels(pixels, table)
        masks = pixels if pixels.ndim == 3 else pixels[None]
        found = np.zeros((*masks.shape[1:], 4), np.uint8)
        for color, mask in zip(table, masks, strict=True):
            if color[3]:
                found[mask > 0] = color
                if mask.dtype.kind == "f":
                    inside = mask > 0
                    found[inside, 3] = np.rint(np.clip(mask[inside], 0, 1) * 255)
        return found

    def _of_labels(self, pixels: NDArray[Any], table: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self.values is None:  # numbers of objects: 0 is none
            found = table[(pixels.astype(np.int64) - 1) % len(table)]
            found[pixels == 0] = CLEAR
            return found
        values = np.array(self.values, np.int64)
        order = np.argsort(values)
        at = np.minimum(np.searchsorted(values[order], pixels), len(values) - 1)
        found = table[order[at]]
        found[(values[order[at]] != pixels) | (pixels == 0)] = CLEAR
        return found

    def describe(self, value: Any) -> str:
        """Return the names of the segments at a pixel."""
        if np.ndim(value):
            there = [i for i, each in enumerate(value) if each > 0]
        elif self.values is None:
            number = float(value)
            return "" if not number else self.names[0] if len(self.names) == 1 else f"{number:g}"
        else:
            there = [i for i, each in enumerate(self.values) if each == value and each]
        return ", ".join(
            f"{self.names[i]} {value[i]:.2g}"
            if np.ndim(value) and value.dtype.kind == "f"
            else self.names[i]
            for i in there
        )


@dataclasses.dataclass(frozen=True)
class NumberMap:
    """Numbers, drawn by a colour map; NaN is clear."""

    name: str
    unit: str
    limits: tuple[float, float] | None = None
    """Values of both ends of the colour map; by default those of the pixels."""
    colors: str = "viridis"
    """Name of a colour map of matplotlib."""

    def within(self, pixels: NDArray[Any]) -> NumberMap:
        """Return the map with limits: robust ones of the pixels, if it has none."""
        if self.limits is not None:
            return self
        return dataclasses.replace(self, limits=robust_limits(pixels))

    def table(self, entries: int = 256) -> NDArray[np.uint8]:
        """Return the colours from the lowest to the highest value, shape (entries, 3)."""
        import matplotlib

        colors = matplotlib.colormaps[self.colors](np.linspace(0, 1, entries), bytes=True)
        return np.asarray(colors[:, :3], np.uint8)

    def rgba(self, pixels: NDArray[Any]) -> NDArray[np.uint8]:
        """Return the colours of pixels, shape (rows, columns) to (rows, columns, 4)."""
        limits = self.within(pixels).limits
        assert limits is not None
        table = self.table()
        found = np.empty((*pixels.shape, 4), np.uint8)
        found[..., :3] = table[np.rint(ramp(pixels, limits) * 255).astype(np.intp)]
        found[..., 3] = np.where(np.isnan(pixels), 0, 255) if pixels.dtype.kind == "f" else 255
        return found

    def describe(self, value: Any) -> str:
        """Return the number at a pixel, with its unit."""
        number = float(np.ravel(value)[0])
        return "" if np.isnan(number) else f"{number:.4g} {self.unit}".strip()


Overlay = Labels | NumberMap


def overlay_of(array: xr.DataArray, **options: Any) -> Overlay:
    """Return how an array is drawn over an image, by its data type, dims and attributes.

    Label maps have ``flag_values``; bool and a dim ``segment`` are masks; other integers without a
    unit are numbers of objects; the rest are numbers with a colour map.

    Parameters
    ----------
    array : xarray.DataArray
        Array whose dims other than y, x are at most one of segments or parameters.
    **options
        Fields of :class:`Labels` or :class:`NumberMap` that differ, such as ``colors``.

    """
    attrs = array.attrs
    title = str(array.name or attrs.get("long_name", "overlay"))
    if "flag_values" in attrs:
        values = tuple(int(each) for each in attrs["flag_values"])
        names = attrs.get("segment_labels") or str(attrs.get("flag_meanings", "")).split()
        if len(names) != len(values):
            names = [str(value) for value in values]
        return _labels(values, tuple(map(str, names)), attrs.get("segment_colors"), options)
    lead = [str(dim) for dim in array.dims if dim not in ("y", "x", "row", "column")]
    is_fraction = "segmentation_type" in attrs and array.dtype.kind == "f"
    if array.dtype == np.bool_ or is_fraction or any(dim.startswith("segment") for dim in lead):
        count = array.sizes[lead[0]] if lead else 1
        names = _of_segments(array, "label", count) or _of_segments(array, "", count)
        colors = _of_segments(array, "color", count)
        return _labels(None, tuple(names or [title] * count), colors, options)
    if array.dtype.kind in "ui" and "units" not in attrs and not _is_parameter(array):
        return _labels(None, (title,), list(LABEL_COLORS), options, of_objects=True)
    unit = str(attrs.get("units", ""))
    name = str(attrs.get("long_name", title))
    return NumberMap(name, "" if unit == "1" else unit, **options)


def _labels(
    values: tuple[int, ...] | None,
    names: tuple[str, ...],
    colors: Any,
    options: dict[str, Any],
    *,
    of_objects: bool = False,
) -> Labels:
    count = len(LABEL_COLORS) if of_objects else len(names)
    given = options.get("colors") or colors or [None] * count
    if isinstance(given, str):
        given = [given] * count
    if of_objects:
        names = names * len(given)
    filled = tuple(
        each or LABEL_COLORS[i % len(LABEL_COLORS)]
        for i, each in enumerate([*given, *[None] * (len(names) - len(given))])
    )
    return Labels(values, names, filled[: len(names)])


def _of_segments(array: xr.DataArray, what: str, count: int) -> list[str] | None:
    """Return a text for each segment from a coordinate such as ``segment_label``, or None.

    Variables of a level have the coordinates without dims of all: ``segmentation_2`` has those that
    begin with ``segment_2``.
    """
    end = f"_{what}" if what else ""
    own = str(array.name).removeprefix("segmentation") + end
    pattern = rf"segment(_\d+)?{end}"
    names = [str(name) for name in array.coords if re.fullmatch(pattern, str(name))]
    named = f"segment{own}" if f"segment{own}" in names else next(iter(names), None)
    if named is None or array[named].size not in (1, count):
        return None
    return [str(each) for each in np.broadcast_to(array[named].values, count)]


def _is_parameter(array: xr.DataArray) -> bool:
    return any(str(name).startswith("parameter") for name in (*array.dims, *array.coords))
