"""Annotations and shapes in a view: counted in pixels from afar, as outlines from near."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.annotation.graphic import ellipse_outlines
from dicomslide.display.blend import rgb_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Shapes", "shapes_of"]

FEW = 1000
"""Shapes in a view up to which each is drawn as its outline."""
ELLIPSE_VERTICES = 32
FAINTEST = 90
"""Opacity, of 255, of a pixel with one shape."""

Box = tuple[float, float, float, float]


class Shapes(abc.ABC):
    """Shapes of one content, in mm.

    Parameters
    ----------
    boxes : numpy.ndarray
        (x_min, y_min, x_max, y_max) of each, shape (n, 4).
    points : numpy.ndarray
        A point of each, such as its centroid, shape (n, 2).

    """

    def __init__(self, boxes: NDArray[Any], points: NDArray[Any]) -> None:
        self._boxes = np.asfortranarray(boxes, np.float32)
        self._points = np.ascontiguousarray(points, np.float64)

    def __len__(self) -> int:
        return len(self._points)

    def within(self, box: Box) -> NDArray[np.int64]:
        """Return the indices of the shapes whose boxes meet a box (x_min, y_min, x_max, y_max)."""
        x_min, y_min, x_max, y_max = (np.float32(each) for each in box)
        left, bottom, right, top = self._boxes.T
        meets = left <= x_max
        meets &= right >= x_min
        meets &= bottom <= y_max
        meets &= top >= y_min
        return np.flatnonzero(meets)

    def at(self, x: float, y: float, reach: float) -> int | None:
        """Return the index of the shape at a position in mm, or within reach of it; None if none.

        Of several whose boxes are there, it is that with the nearest point.
        """
        chosen = self.within((x - reach, y - reach, x + reach, y + reach))
        if not chosen.size:
            return None
        distances = np.hypot(*(self._points[chosen] - (x, y)).T)
        return int(chosen[np.argmin(distances)])

    @abc.abstractmethod
    def outlines(self, chosen: NDArray[np.int64]) -> tuple[list[NDArray[Any]], list[int]]:
        """Return lines, each shape (points, 2), and the index of each one's shape; no points."""

    @abc.abstractmethod
    def describe(self, index: int) -> str:
        """Return what is known of a shape, in a line."""

    def points(self, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return a point of each of the chosen shapes."""
        return self._points[chosen]

    def rgba(self, box: Box, shape: tuple[int, int], color: str) -> NDArray[np.uint8]:
        """Return how many shapes lie in each pixel of a view as opacity, rows from the bottom up.

        Parameters
        ----------
        box : tuple of float
            (x_min, y_min, x_max, y_max) in mm.
        shape : tuple of int
            Rows and columns.
        color : str
            Colour of the pixels.

        Returns
        -------
        numpy.ndarray
            Shape (rows, columns, 4), uint8.

        """
        rows, columns = shape
        scale = columns / (box[2] - box[0]), rows / (box[3] - box[1])
        x = (self._points[:, 0] - box[0]) * scale[0]
        y = (self._points[:, 1] - box[1]) * scale[1]
        inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
        at = y[inside].astype(np.int64) * columns + x[inside].astype(np.int64)
        counts = np.bincount(at, minlength=rows * columns).reshape(shape)
        found = np.zeros((*shape, 4), np.uint8)
        found[..., :3] = rgb_of(color)
        there = counts > 0
        some = np.log1p(counts[there].astype(np.float32))
        if some.size:
            scaled = some / max(float(some.max()), float(np.log1p(1)))
            found[there, 3] = np.rint(FAINTEST + (255 - FAINTEST) * scaled)
        return found


class GroupShapes(Shapes):
    """Annotations of an :class:`~dicomslide.AnnotationGroup`."""

    def __init__(self, group: Any) -> None:
        super().__init__(group.bounds, group.centroids)
        self._group = group

    def outlines(self, chosen: NDArray[np.int64]) -> tuple[list[NDArray[Any]], list[int]]:
        group = self._group
        if group.graphic_type == "POINT":
            return [], []
        lines = [np.asarray(group[i][:, :2], np.float64) for i in chosen.tolist()]
        if group.graphic_type == "ELLIPSE" and lines:
            points, _ = ellipse_outlines(np.concatenate(lines), ELLIPSE_VERTICES)
            lines = list(points.reshape(len(lines), -1, 2))
        if group.graphic_type != "POLYLINE":
            lines = [np.concatenate([line, line[:1]]) for line in lines]
        return lines, chosen.tolist()

    def describe(self, index: int) -> str:
        group = self._group
        kind = group.property_type
        measured = [
            f"{each.name.meaning if each.name else 'measurement'} {each.values[index]:.4g}"
            + (f" {each.unit.value}" if each.unit else "")
            for each in group.measurements
        ]
        return ", ".join([f"{kind.meaning if kind else 'annotation'} {index + 1}", *measured])


class FrameShapes(Shapes):
    """Rows of a GeoDataFrame, or shapes of a GeoSeries."""

    def __init__(self, frame: Any) -> None:
        import shapely

        self._frame = frame
        self._shapes = np.asarray(frame.geometry.values)
        kept = ~(shapely.is_missing(self._shapes) | shapely.is_empty(self._shapes))
        self._rows = np.flatnonzero(kept)
        self._shapes = self._shapes[kept]
        middles = shapely.get_coordinates(shapely.centroid(self._shapes))
        super().__init__(shapely.bounds(self._shapes), middles)

    def outlines(self, chosen: NDArray[np.int64]) -> tuple[list[NDArray[Any]], list[int]]:
        import shapely

        lines, of_shape = [], []
        parts, index = shapely.get_parts(self._shapes[chosen], return_index=True)
        for part, at in zip(parts, chosen[index].tolist(), strict=True):
            rings: Sequence[Any] = [part]
            if part.geom_type == "Polygon":
                rings = [part.exterior, *part.interiors]
            elif part.geom_type not in ("LineString", "LinearRing"):
                continue
            lines += [shapely.get_coordinates(ring) for ring in rings]
            of_shape += [at] * len(rings)
        return lines, of_shape

    def describe(self, index: int) -> str:
        row = self._frame.iloc[int(self._rows[index])]
        if not hasattr(self._frame, "columns"):
            return f"shape {index + 1}"
        values = [
            f"{name} {row[name]}" for name in self._frame.columns
            if name != self._frame.geometry.name
        ]  # fmt: skip
        return ", ".join(values[:5]) or f"shape {index + 1}"


def shapes_of(given: Any) -> Shapes:
    """Return an AnnotationGroup or a GeoDataFrame as shapes."""
    return FrameShapes(given) if hasattr(given, "geometry") else GroupShapes(given)
