"""The points of many graphics in one array: bounding boxes, centroids, outlines.

Graphic i has the points ``offsets[i]:offsets[i + 1]``. Nothing here makes an object a graphic:
a million of them are a few passes over the array.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeAlias

    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.floating[Any]]
    Integers: TypeAlias = NDArray[np.int64]

__all__ = ["BLOCK", "NUM_POINTS", "bounding_boxes", "centroids", "ellipse_outlines", "padded"]

NUM_POINTS: dict[str, int | None] = {
    "POINT": 1,
    "POLYLINE": None,
    "POLYGON": None,
    "ELLIPSE": 4,
    "RECTANGLE": 4,
}
"""Graphic types of bulk annotations (PS3.3 C.37.1.2), and the points of one; None for any."""

BLOCK = 2**16
"""Points that are worked on at once, which bounds what temporary arrays take."""


def bounding_boxes(graphic_type: str, points: Floats, offsets: Integers) -> NDArray[np.float64]:
    """Return (x_min, y_min, x_max, y_max) of each graphic.

    Parameters
    ----------
    graphic_type : str
        Type of all graphics. An ELLIPSE is the curve through its four points, which are the
        ends of its axes (those of the first, then those of the second), not the points alone.
    points : numpy.ndarray
        Shape (n_points, 2) or (n_points, 3): x, y and z.
    offsets : numpy.ndarray
        Shape (n + 1,), strictly ascending.

    Returns
    -------
    numpy.ndarray
        Shape (n, 4), in the unit of the points.

    """
    boxes = np.empty((len(offsets) - 1, 4))
    if len(boxes) and graphic_type == "ELLIPSE":
        center, first, second = _ellipses(points)
        # of c + a cos t + b sin t, whatever the angle between a and b
        half = np.hypot(first, second)
        boxes[:, :2], boxes[:, 2:] = center - half, center + half
    elif len(boxes):
        for axis in (0, 1):
            boxes[:, axis] = np.minimum.reduceat(points[:, axis], offsets[:-1])
            boxes[:, axis + 2] = np.maximum.reduceat(points[:, axis], offsets[:-1])
    return boxes


def centroids(graphic_type: str, points: Floats, offsets: Integers) -> NDArray[np.float64]:
    """Return (x, y) of the middle of each graphic, shape (n, 2).

    That of a POLYGON is of its area, that of a POLYLINE of its length, that of the others the
    mean of their points; as it is too for a polygon without area, or one that crosses itself so
    that the centre of its signed area lies outside of its bounding box.
    """
    found = np.empty((len(offsets) - 1, 2))
    for first, last in _blocks(offsets):
        start = offsets[first]
        some = points[start : offsets[last], :2].astype(np.float64)
        found[first:last] = _centroids(graphic_type, some, offsets[first : last + 1] - start)
    return found


def _centroids(
    graphic_type: str, points: NDArray[np.float64], offsets: Integers
) -> NDArray[np.float64]:
    starts, lasts, counts = offsets[:-1], offsets[1:] - 1, np.diff(offsets)
    means: NDArray[np.float64] = np.add.reduceat(points, starts, axis=0) / counts[:, None]
    if NUM_POINTS[graphic_type] is not None:
        return means
    # from the first point: far from the origin, an area in square millimetres is all rounding
    here = points - np.repeat(points[starts], counts, axis=0)
    following = np.arange(1, len(points) + 1)
    following[lasts] = starts if graphic_type == "POLYGON" else lasts
    there = here[following]
    if graphic_type == "POLYGON":
        weights = here[:, 0] * there[:, 1] - here[:, 1] * there[:, 0]
        middles = (here + there) / 3
    else:
        weights = np.hypot(*(there - here).T)
        middles = (here + there) / 2
    moments = np.add.reduceat(weights[:, None] * middles, starts, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = points[starts] + moments / np.add.reduceat(weights, starts)[:, None]
    boxes = bounding_boxes(graphic_type, points, offsets)
    slack = 1e-6 * np.max(boxes[:, 2:] - boxes[:, :2], axis=1, keepdims=True)
    inside = (found >= boxes[:, :2] - slack) & (found <= boxes[:, 2:] + slack)
    return np.where(inside.all(axis=1, keepdims=True), found, means)


def _blocks(offsets: Integers) -> Iterator[tuple[int, int]]:
    """Yield the first graphic and the one after the last of runs of about BLOCK points."""
    edges = np.searchsorted(offsets, np.arange(0, offsets[-1], BLOCK)).tolist()
    yield from itertools.pairwise(sorted({*edges, len(offsets) - 1}))


def padded(
    points: Floats, offsets: Integers, *, closed: bool, minimum: int
) -> tuple[Floats, Integers]:
    """Return points and offsets of the graphics with their first point repeated at the end.

    Parameters
    ----------
    points : numpy.ndarray
        Shape (n_points, 2).
    offsets : numpy.ndarray
        Shape (n + 1,).
    closed : bool
        Whether each ends where it begins.
    minimum : int
        Points that each has at least: what is a graphic to others has so many.

    """
    counts = np.diff(offsets)
    new_counts = np.maximum(counts + closed, minimum)
    new_offsets = np.concatenate([[0], np.cumsum(new_counts)])
    within = np.arange(new_offsets[-1]) - np.repeat(new_offsets[:-1], new_counts)
    within[within >= np.repeat(counts, new_counts)] = 0
    return points[np.repeat(offsets[:-1], new_counts) + within], new_offsets


def ellipse_outlines(points: Floats, vertices: int) -> tuple[NDArray[np.float64], Integers]:
    """Return points and offsets of polygons whose corners lie on the ellipses."""
    center, first, second = _ellipses(points)
    angles = np.arange(vertices) * (2 * np.pi / vertices)
    outlines = (
        center[:, None]
        + first[:, None] * np.cos(angles)[:, None]
        + second[:, None] * np.sin(angles)[:, None]
    )
    return outlines.reshape(-1, 2), np.arange(len(center) + 1) * vertices


def _ellipses(points: Floats) -> tuple[NDArray[np.float64], ...]:
    """Return the centre and both half axes of each ellipse, shape (n, 2) each.

    A map between pixels and millimetres, whatever their aspect, keeps an ellipse an ellipse,
    and its axes a pair of conjugate diameters, all that is needed of them.
    """
    ends = points[:, :2].reshape(-1, 4, 2).astype(np.float64)
    return ends.mean(axis=1), (ends[:, 1] - ends[:, 0]) / 2, (ends[:, 3] - ends[:, 2]) / 2
