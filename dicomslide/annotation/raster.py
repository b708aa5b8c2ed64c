"""Pixels whose centres lie in graphics: points, ellipses and rings of many shapes, in one array.

All functions are vectorized: there is no object per graphic. They take numbers only;
:mod:`dicomslide.annotation.rasterize` makes labelled arrays of them.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.annotation.graphic import bounding_boxes, half_axes, ranges

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from dicomslide.annotation.graphic import Floats, Integers

__all__ = ["Edges", "Graphics", "fill"]

POINTS = 2**16
"""Points of graphics that are processed at a time."""
CROSSINGS = 2**20
"""Upper bound on the crossings of edges and rows that are processed at a time, unless one row has
more."""
PIXELS = 2**22
"""Upper bound on the pixels that are set at a time, unless one run has more."""
DOUBTFUL = 2.0**-48
"""Distance of a centre from an edge, relative to the coordinates, below which the side on which it
lies is computed exactly: three times the bound on the rounding error of a crossing."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Graphics:
    """Graphics of one kind, as columns; a shape is one or several of them."""

    kind: str
    """POINT, ELLIPSE (four points each), or POLYGON: rings, closed or not."""
    points: Floats
    """(x, y) of all points, shape (n_points, 2)."""
    offsets: Integers
    """Shape (n + 1,): graphic i has the points ``offsets[i]:offsets[i + 1]``."""
    shapes: Integers
    """Shape (n,): ascending number of the shape to which each graphic belongs."""

    def boxes(self) -> NDArray[np.float64]:
        """Return (x_min, y_min, x_max, y_max) of each graphic, shape (n, 4)."""
        return bounding_boxes(self.kind, self.points, self.offsets)

    def take(self, chosen: Integers) -> Graphics:
        """Return the graphics with these ascending indices."""
        counts = self.offsets[chosen + 1] - self.offsets[chosen]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        at = ranges(self.offsets[chosen], counts)
        return Graphics(self.kind, self.points[at], offsets, self.shapes[chosen])

    def blocks(self, chosen: Integers) -> Iterator[Graphics]:
        """Yield those of some graphics, whole shapes with about POINTS points at a time."""
        counts = self.offsets[chosen + 1] - self.offsets[chosen]
        before = np.concatenate([[0], np.cumsum(counts)])
        start = 0
        while start < len(chosen):
            stop = int(np.searchsorted(before, before[start] + POINTS, side="right")) - 1
            last = self.shapes[chosen[max(stop - 1, start)]]
            # rings of a shape stay together
            stop = int(np.searchsorted(self.shapes[chosen], last, side="right"))
            yield self.take(chosen[start:stop])
            start = stop

    def edges(self) -> Edges:
        """Return the sides of rings; each ring has one from its last to its first point."""
        counts = np.diff(self.offsets)
        after = np.arange(1, len(self.points) + 1)
        after[self.offsets[1:][counts > 0] - 1] = self.offsets[:-1][counts > 0]
        points = self.points.astype(np.float64, copy=False)
        return Edges(points, points[after], np.repeat(self.shapes, counts))


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Edges:
    """Sides of rings."""

    start: NDArray[np.float64]
    """(x, y) of one end, shape (n, 2)."""
    end: NDArray[np.float64]
    """(x, y) of the other end, shape (n, 2)."""
    shapes: Integers
    """Shape (n,): number of the shape."""

    @classmethod
    def together(cls, several: Sequence[Edges]) -> Edges:
        """Return the edges of several, at least one, in one object."""
        return cls(*(
            np.concatenate([getattr(each, field.name) for each in several])
            for field in dataclasses.fields(cls)
        ))  # fmt: skip

    def within(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> Edges:
        """Return the edges that cross a row of centres, to the left of the last column."""
        bottom, top = (f(self.start[:, 1], self.end[:, 1]) for f in (np.minimum, np.maximum))
        chosen = np.searchsorted(y, bottom) < np.searchsorted(y, top)
        chosen &= np.minimum(self.start[:, 0], self.end[:, 0]) <= x[-1]
        return Edges(self.start[chosen], self.end[chosen], self.shapes[chosen])


def fill(
    pixels: NDArray[Any],
    graphics: Graphics | Edges,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    values: NDArray[Any] | None,
) -> None:
    """Set the pixels whose centres lie in a shape, by shape number: later ones cover earlier ones.

    A shape contains a centre by the even-odd rule over all its rings, computed without rounding
    errors. A centre on its border is in it where the shape lies to the right (or, on a horizontal
    side, above): of two shapes with a common side, exactly one contains it.

    Parameters
    ----------
    pixels : numpy.ndarray
        Shape (len(y), len(x)), changed in place.
    graphics : Graphics or Edges
        Rings (or their edges), ellipses or points.
    x, y : numpy.ndarray
        Ascending centres of pixels. For points: ascending borders of pixels, one more of each.
    values : numpy.ndarray or None
        Value for each shape; None for True.

    """
    if isinstance(graphics, Graphics) and graphics.kind == "POINT":
        at = [
            np.searchsorted(borders, graphics.points[:, axis], side="right") - 1
            for axis, borders in ((1, y), (0, x))
        ]
        inside = (at[0] >= 0) & (at[0] < len(y) - 1) & (at[1] >= 0) & (at[1] < len(x) - 1)
        value = True if values is None else values[graphics.shapes[inside]]
        pixels[at[0][inside], at[1][inside]] = value
        return
    crossings = _of_ellipses if isinstance(graphics, Graphics) else _of_edges
    _fill_rows(pixels, graphics, x, y, values, crossings)


def _fill_rows(
    pixels: NDArray[Any],
    graphics: Any,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    values: NDArray[Any] | None,
    crossings: Any,
) -> None:
    number, found = crossings(graphics, x, y)
    if number > CROSSINGS and len(y) > 1:
        half = len(y) // 2
        for rows in (slice(0, half), slice(half, None)):
            _fill_rows(pixels[rows], graphics, x, y[rows], values, crossings)
        return
    shapes, rows, columns = found()
    line, columns = _sorted_by_line(shapes * len(y) + rows, columns, len(x) + 1)
    # crossings of one shape and one row follow each other from left to right: two bound a run, and
    # the last one alone a run to the end, where an edge beyond it was left out
    is_first = np.ones(len(line), bool)
    is_first[1:] = line[1:] != line[:-1]
    number = np.arange(len(line))
    number -= np.maximum.accumulate(np.where(is_first, number, 0))
    begins = np.flatnonzero(number % 2 == 0)
    stops = np.append(np.where(is_first[1:], len(x), columns[1:]), len(x))[begins]
    lengths = stops - columns[begins]
    some = lengths > 0
    begins, lengths = begins[some], lengths[some]
    of_shape, row = np.divmod(line[begins], len(y))
    _set_runs(pixels, of_shape, row, columns[begins], lengths, values)


def _sorted_by_line(line: Integers, columns: Integers, width: int) -> tuple[Integers, Integers]:
    """Sort crossings by line (shape and row), then by column below `width`, as one number each."""
    sorted_by_both = np.sort(line * width + columns)
    return np.divmod(sorted_by_both, width)


def _set_runs(
    pixels: NDArray[Any],
    shapes: Integers,
    rows: Integers,
    columns: Integers,
    lengths: Integers,
    values: NDArray[Any] | None,
) -> None:
    ends = np.cumsum(lengths)
    start = 0
    while start < len(lengths):
        done = ends[start] - lengths[start]
        stop = max(int(np.searchsorted(ends, done + PIXELS, side="right")), start + 1)
        run = slice(start, stop)
        at = np.repeat(rows[run], lengths[run]), ranges(columns[run], lengths[run])
        # of several values for one pixel, NumPy assigns the last
        pixels[at] = True if values is None else np.repeat(values[shapes[run]], lengths[run])
        start = stop


def _of_edges(edges: Edges, x: NDArray[np.float64], y: NDArray[np.float64]) -> Any:
    """Return the number of crossings of edges with rows, and a function that returns these."""
    bottom, top = (f(edges.start[:, 1], edges.end[:, 1]) for f in (np.minimum, np.maximum))
    first, stop = np.searchsorted(y, bottom), np.searchsorted(y, top)
    counts = stop - first

    def found() -> tuple[Integers, Integers, Integers]:
        edge = np.repeat(np.arange(len(counts)), counts)
        rows = ranges(first, counts)
        start, end = edges.start[edge], edges.end[edge]
        columns = _columns(start, end, x, y[rows])
        return edges.shapes[edge], rows, columns

    return int(counts.sum()), found


def _columns(
    start: NDArray[np.float64],
    end: NDArray[np.float64],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
) -> Integers:
    """Return the first column whose centre isn't to the left of each edge, at a height `y` each."""
    part = (y - start[:, 1]) / (end[:, 1] - start[:, 1])
    low, high = np.minimum(start[:, 0], end[:, 0]), np.maximum(start[:, 0], end[:, 0])
    crossing = np.clip(start[:, 0] + part * (end[:, 0] - start[:, 0]), low, high)
    noise = DOUBTFUL * np.maximum(np.abs(low), np.abs(high))
    least = np.searchsorted(x, crossing - noise)
    most = least.copy()
    near = np.flatnonzero(x[np.minimum(least, len(x) - 1)] <= crossing + noise)
    most[near] = np.searchsorted(x, (crossing + noise)[near], side="right")
    while (doubtful := np.flatnonzero(least < most)).size:
        middle = least[doubtful]
        left = _is_left(x[middle], y[doubtful], start[doubtful], end[doubtful])
        least[doubtful[left]] += 1
        most[doubtful[~left]] = least[doubtful[~left]]
    return least


def _is_left(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    start: NDArray[np.float64],
    end: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Whether points lie to the left of edges at their height, without rounding errors."""
    upward = end[:, 1] > start[:, 1]
    low, high = np.where(upward[:, None], start, end), np.where(upward[:, None], end, start)
    # sign of (high - low) × (point - low): each difference and each product as a sum of floats
    across, up = _difference(high[:, 0], low[:, 0]), _difference(high[:, 1], low[:, 1])
    right, above = _difference(x, low[:, 0]), _difference(y, low[:, 1])
    terms = [part for a in across for b in above for part in _product(a, b)]
    terms += [-part for a in up for b in right for part in _product(a, b)]
    return np.array(
        [math.fsum(each) > 0 for each in zip(*(t.tolist() for t in terms), strict=True)]
    )


def _difference(
    a: NDArray[np.float64], b: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the rounded difference and its rounding error (Knuth's two-sum)."""
    total = a - b
    part = total - a
    return total, (a - (total - part)) - (b + part)


def _product(
    a: NDArray[np.float64], b: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the rounded product and its rounding error (Dekker's, with Veltkamp's splitting)."""
    product = a * b
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, error


def _halves(a: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    scaled = a * 134217729.0  # 2**27 + 1: halves of 26 bits
    high = scaled - (scaled - a)
    return high, a - high


def _of_ellipses(graphics: Graphics, x: NDArray[np.float64], y: NDArray[np.float64]) -> Any:
    """Return the number of crossings of ellipses with rows, and a function that returns these."""
    center, a, b = half_axes(graphics.points)
    determinant = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    half = np.where(determinant == 0, 0.0, np.hypot(a[:, 1], b[:, 1]))
    first = np.searchsorted(y, center[:, 1] - half)
    counts = np.searchsorted(y, center[:, 1] + half) - first

    def found() -> tuple[Integers, Integers, Integers]:
        which = np.repeat(np.arange(len(counts)), counts)
        rows = ranges(first, counts)
        up = y[rows] - center[which, 1]
        # (x, y) = c + a cos t + b sin t: with y given, x varies around a middle by `reach`
        tall = half[which]
        slope = (a[which, 0] * a[which, 1] + b[which, 0] * b[which, 1]) / tall**2
        reach = np.abs(determinant[which]) / tall * np.sqrt(np.clip(1 - (up / tall) ** 2, 0, None))
        middle = center[which, 0] + slope * up
        columns = [np.searchsorted(x, middle - reach), np.searchsorted(x, middle + reach)]
        return np.tile(graphics.shapes[which], 2), np.tile(rows, 2), np.concatenate(columns)

    return 2 * int(counts.sum()), found
