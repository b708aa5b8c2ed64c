"""Points of many graphics as columns, from shapes, tables, arrays and groups of annotations."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.annotation.graphic import NUM_POINTS
from dicomslide.annotation.group import AnnotationGroup
from dicomslide.errors import AnnotationError, GridError

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

__all__ = ["Graphics", "checked", "graphics_of"]

LEAST_POINTS = {"POINT": 1, "POLYLINE": 2, "POLYGON": 3, "ELLIPSE": 4, "RECTANGLE": 4}
"""Least number of points of an annotation, by graphic type (PS3.3 C.37.1.2)."""
RIGHT_ANGLE = 1e-3
"""Tolerance of right angles of rectangles and of axes of ellipses: a cosine."""


@dataclasses.dataclass(frozen=True, eq=False)
class Graphics:
    """Annotations of one graphic type."""

    kind: str
    """Graphic Type."""
    points: NDArray[Any]
    """(x, y) or (x, y, z) of all points in mm; shape (n_points, 2 or 3)."""
    offsets: NDArray[np.int64]
    """Shape (n + 1,): annotation i has the points ``offsets[i]:offsets[i + 1]``."""
    planes: tuple[float, ...] | None = None
    """z in mm that points of two coordinates have; None if unknown."""
    frame_of_reference_uid: str | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def check_frame(self, known: Collection[str]) -> None:
        """Raise a GridError if millimetres are of another frame of reference than these."""
        uid = self.frame_of_reference_uid
        if uid is not None and known and uid not in known:
            raise GridError(
                f"the shapes have the frame of reference {uid}, the slide"
                f" {', '.join(sorted(known))}: equal coordinates aren't equal positions. Register"
                ' them first, then set frame.attrs["frame_of_reference_uid"]'
            )


def graphics_of(annotations: Any, kind: str | None) -> Graphics:
    """Return annotations as columns.

    Parameters
    ----------
    annotations
        See :func:`write_annotations`.
    kind : str or None
        Graphic Type; None for what the shapes are.

    Raises
    ------
    AnnotationError
        When shapes aren't of one kind, have holes, or have too few points.
    TypeError
        When it is something else.

    """
    if kind is not None and kind not in NUM_POINTS:
        raise ValueError(f"graphic_type {kind!r}: expected one of {list(NUM_POINTS)}")
    if isinstance(annotations, AnnotationGroup):
        if kind not in (None, annotations.graphic_type):
            raise AnnotationError(
                f"graphic_type is {kind}, but the annotations are {annotations.graphic_type}"
            )
        return Graphics(
            annotations.graphic_type, annotations.coordinates, annotations.offsets,
            annotations.planes, annotations.frame_of_reference_uid,
        )  # fmt: skip
    uid = getattr(annotations, "attrs", {}).get("frame_of_reference_uid")
    if hasattr(annotations, "geometry"):  # of geopandas
        found = _of_geometries(np.asarray(annotations.geometry, object), kind)
    elif hasattr(annotations, "columns"):
        found = _of_table(annotations, kind)
    elif isinstance(annotations, tuple) and len(annotations) == 2:
        found = _of_columns(*annotations, kind or "POLYGON")
    elif isinstance(annotations, np.ndarray):
        found = _of_array(annotations, kind or "POLYGON")
    else:
        raise TypeError(
            f"can't write a {type(annotations).__name__}; expected a GeoDataFrame, a table with x"
            " and y in mm, a group of annotations, an array of shape (n, points, 2 or 3), or"
            " (points, offsets)"
        )
    return dataclasses.replace(found, frame_of_reference_uid=uid)


def checked(graphics: Graphics) -> Graphics:
    """Return graphics, with polygons open, after a check of all points.

    Raises
    ------
    AnnotationError
        When points aren't finite, annotations have too few points, or aren't what they are called.

    """
    finite = np.isfinite(graphics.points).all(axis=1)
    if not finite.all():
        point = int(np.argmin(finite))
        which = int(np.searchsorted(graphics.offsets, point, side="right")) - 1
        raise AnnotationError(
            f"annotation {which} has the point {graphics.points[point].tolist()}, which isn't"
            f" finite ({int((~finite).sum())} such points): leave it out, such as"
            " frame[frame.is_valid]"
        )
    if graphics.kind == "POLYGON":
        graphics = _opened(graphics)
    counts = np.diff(graphics.offsets)
    exact, least = NUM_POINTS[graphics.kind], LEAST_POINTS[graphics.kind]
    wrong = counts < least if exact is None else counts != exact
    if wrong.any():
        which = int(np.argmax(wrong))
        raise AnnotationError(
            f"annotation {which} has {counts[which]} points ({int(wrong.sum())} such annotations);"
            f" expected {least}{'' if exact else ' or more'} for {graphics.kind}"
        )
    if graphics.kind in ("RECTANGLE", "ELLIPSE"):
        _check_right_angles(graphics)
    return graphics


def _opened(graphics: Graphics) -> Graphics:
    """Leave out the last points that repeat the first: a polygon of annotations is open."""
    first, last = graphics.offsets[:-1], graphics.offsets[1:] - 1
    filled = last > first
    closed = np.zeros(len(graphics), bool)
    closed[filled] = (graphics.points[first[filled]] == graphics.points[last[filled]]).all(axis=1)
    if not closed.any():
        return graphics
    offsets = graphics.offsets - np.concatenate([[0], np.cumsum(closed)])
    points = np.delete(graphics.points, last[closed], axis=0)
    return dataclasses.replace(graphics, points=points, offsets=offsets)


def _check_right_angles(graphics: Graphics) -> None:
    corners = graphics.points[:, :2].reshape(-1, 4, 2).astype(np.float64)
    if graphics.kind == "RECTANGLE":
        first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 1]
        opposite = corners[:, 3] - corners[:, 0]
        apart = np.abs(opposite - second).max(axis=1)
        expected = "four corners, one after the other, with right angles"
    else:
        first, second = corners[:, 1] - corners[:, 0], corners[:, 3] - corners[:, 2]
        apart = np.abs(corners[:, :2].mean(axis=1) - corners[:, 2:].mean(axis=1)).max(axis=1)
        expected = (
            "the two ends of the longer axis, then those of the shorter one, at a right angle"
        )
    lengths = np.hypot(*first.T), np.hypot(*second.T)
    wrong = np.abs((first * second).sum(axis=1)) > RIGHT_ANGLE * lengths[0] * lengths[1]
    wrong |= apart > RIGHT_ANGLE * np.maximum(*lengths)
    if graphics.kind == "ELLIPSE":
        wrong |= lengths[0] < lengths[1] * (1 - RIGHT_ANGLE)
    if wrong.any():
        which = int(np.argmax(wrong))
        raise AnnotationError(
            f"annotation {which} is no valid {graphics.kind}: {corners[which].tolist()}"
            f" ({int(wrong.sum())} such annotations); expected {expected}"
        )


# -- from shapes, tables and arrays ------------------------------------------------------------


def _of_geometries(shapes: NDArray[Any], kind: str | None) -> Graphics:
    import shapely

    kinds = shapely.get_type_id(shapes)
    names = {0: "POINT", 1: "POLYLINE", 2: "POLYLINE", 3: "POLYGON"}
    missing = (kinds < 0) | shapely.is_empty(shapes)
    if missing.any():
        raise AnnotationError(
            f"row {int(np.argmax(missing))} has no shape ({int(missing.sum())} such rows): leave it"
            " out, such as frame[~frame.is_empty]"
        )
    several = kinds > 3
    if several.any():
        which = int(np.argmax(several))
        raise AnnotationError(
            f"row {which} is a {shapes[which].geom_type} ({int(several.sum())} such rows): an"
            " annotation is one shape: frame.explode()"
        )
    found = {names[each] for each in np.unique(kinds)}
    if len(found) > 1:
        raise AnnotationError(
            f"the shapes are {', '.join(sorted(found))}; a group has one kind: write them in"
            " several groups, {label: frame}"
        )
    (natural,) = found or {kind or "POLYGON"}
    holes = shapely.get_num_interior_rings(shapes) > 0
    if holes.any():
        raise AnnotationError(
            f"row {int(np.argmax(holes))} has a hole ({int(holes.sum())} such rows), which"
            " annotations can't: write a segmentation of recipes.rasterize(frame, like), or cut the"
            " polygons"
        )
    has_z = bool(len(shapes)) and bool(shapely.has_z(shapes).all())
    points, owner = shapely.get_coordinates(shapes, include_z=has_z, return_index=True)
    offsets = np.searchsorted(owner, np.arange(len(shapes) + 1))
    made = Graphics(natural, points, offsets)
    if kind == "RECTANGLE" and natural == "POLYGON":
        made = _opened(made)
    elif kind not in (None, natural) and (kind, natural) != ("ELLIPSE", "POLYLINE"):
        raise AnnotationError(
            f"the shapes are {natural}; graphic_type {kind} needs"
            f" {'line strings of four points' if kind == 'ELLIPSE' else 'other shapes'}"
        )
    return dataclasses.replace(made, kind=kind or natural)


def _of_table(table: Any, kind: str | None) -> Graphics:
    names = [name for name in ("x", "y", "z") if name in table.columns]
    if names[:2] != ["x", "y"]:
        raise AnnotationError(
            f"the table has the columns {list(map(str, table.columns))[:20]}; expected x and y in"
            " mm, and perhaps z, of points"
        )
    if kind not in (None, "POINT"):
        raise AnnotationError(f"a table of x and y has points, not {kind}")
    points = np.stack([np.asarray(table[name], np.float64) for name in names], axis=-1)
    return Graphics("POINT", points, np.arange(len(points) + 1))


def _of_array(array: NDArray[Any], kind: str) -> Graphics:
    if array.ndim == 2 and kind == "POINT":
        array = array[:, None]
    if array.ndim != 3 or array.shape[2] not in (2, 3) or array.dtype.kind not in "fiu":
        raise AnnotationError(
            f"an array of shape {array.shape} and {array.dtype}; expected (n, points, 2 or 3), in"
            " mm"
        )
    count, each, dimensions = array.shape
    return Graphics(kind, array.reshape(-1, dimensions), np.arange(count + 1) * each)


def _of_columns(points: Any, offsets: Any, kind: str) -> Graphics:
    points, offsets = np.asarray(points), np.asarray(offsets)
    if (
        points.ndim != 2 or points.shape[1] not in (2, 3) or offsets.ndim != 1
        or offsets.dtype.kind not in "iu" or len(offsets) < 1 or offsets[0] != 0
        or offsets[-1] != len(points) or (np.diff(offsets.astype(np.int64)) < 0).any()
    ):  # fmt: skip
        raise AnnotationError(
            f"points of shape {points.shape} and offsets of shape {offsets.shape}; expected points"
            " (n, 2 or 3) in mm, and ascending offsets, the first 0, the last n: annotation i has"
            " points[offsets[i]:offsets[i + 1]]"
        )
    return Graphics(kind, points, offsets.astype(np.int64))
