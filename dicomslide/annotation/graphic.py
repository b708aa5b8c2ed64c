"""Bounding boxes, centroids and outlines of many graphics whose points are in one array.

Graphic i has the points ``offsets[i]:offsets[i + 1]``. All functions are vectorized: there is no
object per graphic.
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

__all__ = ["BLOCK", "NUM_POINTS", "bounding_boxes", "centroids", "ellipse_outlines", "half_axes",
           "padded", "ranges"]  # fmt: skip

NUM_POINTS: dict[str, int | None] = {
    "POINT": 1,
    "POLYLINE": None,
    "POLYGON": None,
    "ELLIPSE": 4,
    "RECTANGLE": 4,
}
"""Number of points by graphic type of bulk annotations (PS3.3 C.37.1.2); None for any number."""

BLOCK = 2**16
"""Points that are processed at a time, which bounds the memory of temporary arrays."""


def bounding_boxes(graphic_type: str, points: Floats, offsets: Integers) -> NDArray[np.float64]:
    """Return (x_min, y_min, x_max, y_max) of each graphic.

    Parameters
    ----------
    graphic_type : str
        Type of all graphics. The four points of an ELLIPSE are the ends of its first, then of its
        second axis; the box is that of the curve.
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
        center, first, second = half_axes(points)
        # extent of c + a cos t + b sin t, for any angle between a and b
        half = np.hypot(first, second)
        boxes[:, :2], boxes[:, 2:] = center - half, center + half
    elif len(boxes):
        for axis in (0, 1):
            boxes[:, axis] = np.minimum.reduceat(points[:, axis], offsets[:-1])
            boxes[:, axis + 2] = np.maximum.reduceat(points[:, axis], offsets[:-1])
    return boxes


def centroids(graphic_type: str, points: Floats, offsets: Integers) -> NDArray[np.float64]:
    """Return the centroid (x, y) of each graphic, shape (n, 2), in the unit of the points.

    It is the centroid of the area of a POLYGON, of the length of a POLYLINE, and the mean of the
    points of other graphics. The mean is also used for a polygon without area, and for one that
    intersects itself so that the centroid of its signed area lies outside its bounding box.
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
    # relative to the first point: products of large coordinates would lose the area to rounding
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
    """Yield (start, stop) of runs of graphics with about BLOCK points together."""
    edges = np.searchsorted(offsets, np.arange(0, offsets[-1], BLOCK)).tolist()
    yield from itertools.pairwise(sorted({*edges, len(offsets) - 1}))


def padded(
    points: Floats, offsets: Integers, *, closed: bool, minimum: int
) -> tuple[Floats, Integers]:
    """Return points and offsets of graphics, with first points repeated at their ends.

    Parameters
    ----------
    points : numpy.ndarray
        Shape (n_points, 2).
    offsets : numpy.ndarray
        Shape (n + 1,).
    closed : bool
        Whether each graphic gets its first point as its last point.
    minimum : int
        Least number of points per graphic; more copies of the first point are appended as needed.

    """
    counts = np.diff(offsets)
    new_counts = np.maximum(counts + closed, minimum)
    new_offsets = np.concatenate([[0], np.cumsum(new_counts)])
    within = ranges(np.zeros_like(new_counts), new_counts)
    within[within >= np.repeat(counts, new_counts)] = 0
    return points[np.repeat(offsets[:-1], new_counts) + within], new_offsets


def ranges(starts: Integers, counts: Integers) -> Integers:
    """Return each start and the integers that follow it, so many in all, one range after another.

    Parameters
    ----------
    starts, counts : numpy.ndarray
        First integer and length of each range, shape (n,).

    """
    before = np.cumsum(counts) - counts
    return np.arange(int(counts.sum())) + np.repeat(starts - before, counts)


def ellipse_outlines(points: Floats, vertices: int) -> tuple[NDArray[np.float64], Integers]:
    """Return points and offsets of polygons that approximate ellipses.

    Parameters
    ----------
    points : numpy.ndarray
        Shape (4 n, 2) or (4 n, 3): the ends of the first, then of the second axis of each ellipse.
    vertices : int
        Number of corners of each polygon.

    """
    center, first, second = half_axes(points)
    angles = np.arange(vertices) * (2 * np.pi / vertices)
    outlines = (
        center[:, None]
        + first[:, None] * np.cos(angles)[:, None]
        + second[:, None] * np.sin(angles)[:, None]
    )
    return outlines.reshape(-1, 2), np.arange(len(center) + 1) * vertices


def half_axes(points: Floats) -> tuple[NDArray[np.float64], ...]:
    """Return the centre and two conjugate half diameters of each ellipse, shape (n, 2) each.

    They are the half axes in the coordinates of the file. An affine transform (pixels to
    millimetres) keeps them conjugate, which suffices here, but not always at a right angle.
    """
    ends = points[:, :2].reshape(-1, 4, 2).astype(np.float64)
    return ends.mean(axis=1), (ends[:, 1] - ends[:, 0]) / 2, (ends[:, 3] - ends[:, 2]) / 2
