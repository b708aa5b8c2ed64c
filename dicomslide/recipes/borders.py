"""Borders of labels along pixels: traced in chunks, joined to rings.

A border is a cycle of directed runs between corners of pixels, with its label to the right (seen
with rows downwards and columns to the right). Corner (i, j) is the upper left one of pixel (i, j).
Everything is integers, so that what is joined fits exactly.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Integers: TypeAlias = NDArray[np.int64]

__all__ = ["Rings", "rings_of", "runs_in"]

RIGHT, DOWN, LEFT, UP = range(4)
"""Directions of runs, clockwise."""


def runs_in(
    labels: NDArray[Any],
    above: NDArray[Any] | None,
    beside: NDArray[Any] | None,
    first: tuple[int, int],
    is_last: tuple[bool, bool],
) -> Integers:
    """Return the runs along the borders of a chunk's pixels.

    A chunk has the borders to the pixels above and to the left of it, and those within.

    Parameters
    ----------
    labels : numpy.ndarray
        Labels, shape (rows, columns); 0 is background.
    above, beside : numpy.ndarray or None
        The row above it, shape (columns,), and the column to the left, shape (rows,); None at the
        edge of the whole.
    first : tuple of int
        Row and column of the first pixel.
    is_last : tuple of bool
        Whether the chunk is the last of its column and the last of its row.

    Returns
    -------
    numpy.ndarray
        Shape (n, 6): label, row and column of the start, those of the end, direction.

    """
    found = [
        _runs_along(labels, above, first, is_last[0], (RIGHT, LEFT), transpose=False),
        _runs_along(labels.T, beside, first[::-1], is_last[1], (UP, DOWN), transpose=True),
    ]
    return np.concatenate(found)


def _runs_along(
    labels: NDArray[Any],
    before: NDArray[Any] | None,
    first: tuple[int, int],
    is_last: bool,
    directions: tuple[int, int],
    *,
    transpose: bool,
) -> Integers:
    """Return the runs between lines of pixels: those of the labels after them and before them."""
    background = np.zeros((1, labels.shape[1]), labels.dtype)
    head = background if before is None else before[None].astype(labels.dtype, copy=False)
    lines = np.concatenate([head, labels, background] if is_last else [head, labels])
    found = []
    for here, there, direction in (
        (lines[1:], lines[:-1], directions[0]),
        (lines[:-1], lines[1:], directions[1]),
    ):
        is_border = (here != 0) & (here != there)
        follows = np.zeros_like(is_border)  # on the same run as the pixel before it
        follows[:, 1:] = is_border[:, 1:] & is_border[:, :-1] & (here[:, 1:] == here[:, :-1])
        line, start = np.nonzero(is_border & ~follows)
        ends = is_border.copy()
        ends[:, :-1] &= ~follows[:, 1:]
        end = np.nonzero(ends)[1] + 1
        label = here[line, start].astype(np.int64)
        if direction in (LEFT, UP):
            start, end = end, start
        line, start, end = line + first[0], start + first[1], end + first[1]
        ways = (start, line, end, line) if transpose else (line, start, line, end)
        found.append(np.stack([label, *ways, np.full_like(label, direction)], axis=-1))
    return np.concatenate(found)


@dataclasses.dataclass(frozen=True, slots=True)
class Rings:
    """Simple closed rings: none meets itself, not even in a corner."""

    labels: Integers
    """Label of each ring, shape (n,)."""
    rows: Integers
    """Rows of the corners of all rings."""
    columns: Integers
    """Columns of the corners of all rings."""
    offsets: Integers
    """Ring i has the corners ``offsets[i]:offsets[i + 1]``; the first one isn't repeated."""

    @property
    def areas(self) -> Integers:
        """Number of enclosed pixels of each ring, negative for holes."""
        after = np.arange(1, len(self.rows) + 1)
        after[self.offsets[1:] - 1] = self.offsets[:-1]
        cross = self.columns * self.rows[after] - self.columns[after] * self.rows
        return np.add.reduceat(cross, self.offsets[:-1]) // 2 if len(self.labels) else self.labels


def rings_of(runs: Integers, columns: int) -> Rings:
    """Join runs to rings.

    Parameters
    ----------
    runs : numpy.ndarray
        All runs: see :func:`runs_in`.
    columns : int
        Columns of the whole array.

    """
    width = columns + 1
    labels, label = np.unique(runs[:, 0], return_inverse=True)
    start, end = (runs[:, at] * width + runs[:, at + 1] for at in (1, 3))
    direction = runs[:, 5]
    corners = int(max(start.max(initial=0), end.max(initial=0))) + 1
    if len(labels) * corners > np.iinfo(np.int64).max:
        raise MemoryError(f"{len(labels)} labels of {corners} corners of pixels: choose a region")
    following = _following(label * corners + start, label * corners + end, direction)
    ring, order = _cycles(following)
    ring, label, start, direction = (each[order] for each in (ring, label, start, direction))
    # a run that continues straight, over the border of two chunks, starts at no corner
    before = np.arange(-1, len(ring) - 1)
    firsts = np.flatnonzero(np.diff(ring, prepend=-1))
    before[firsts] = np.append(firsts[1:], len(ring)) - 1
    is_corner = direction != direction[before]
    ring, label, corner = ring[is_corner], label[is_corner], start[is_corner]
    offsets = np.append(np.flatnonzero(np.diff(ring, prepend=-1)), len(ring))
    corner, offsets, label = _split(corner, offsets, label[offsets[:-1]])
    row, column = np.divmod(corner, width)
    return Rings(labels[label], row, column, offsets)


def _following(start: Integers, end: Integers, direction: Integers) -> Integers:
    """Return the index of the run that follows each run, by label and corner.

    Where two pixels of a label touch in a corner only, two runs start there; the border stays with
    its pixel: it turns right.
    """
    order = np.argsort(start)
    sorted_starts = start[order]
    at = np.searchsorted(sorted_starts, end)
    following = order[at]
    other = order[np.minimum(at + 1, len(order) - 1)]
    is_crossing = (start[other] == end) & (other != following)
    turns = is_crossing & (direction[following] != (direction + 1) % 4)
    return np.where(turns, other, following)


def _cycles(following: Integers) -> tuple[Integers, Integers]:
    """Return the number of the cycle of each element of a permutation, and all in order."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(following)
    here = np.arange(count)
    graph = coo_array((np.ones(count, np.int8), (here, following)), shape=(count, count))
    number, cycle = connected_components(graph, directed=False)
    first = np.full(number, count)
    np.minimum.at(first, cycle, here)
    # steps from each element to the last one of its cycle, by doubling
    is_last = following == first[cycle]
    to = np.where(is_last, here, following)
    steps = np.where(is_last, 0, 1)
    active = np.flatnonzero(~is_last[to])
    while active.size:
        steps_now, to_now = steps[active] + steps[to[active]], to[to[active]]
        steps[active], to[active] = steps_now, to_now
        active = active[~is_last[to_now]]
    order = np.lexsort((-steps, cycle))
    return cycle, order


def _split(
    corner: Integers, offsets: Integers, label: Integers
) -> tuple[Integers, Integers, Integers]:
    """Split rings that meet themselves in corners: into rings beside each other, and holes."""
    ring = np.repeat(np.arange(len(label)), np.diff(offsets))
    order = np.lexsort((corner, ring))
    again = (np.diff(ring[order]) == 0) & (np.diff(corner[order]) == 0)
    meets = np.unique(ring[order][1:][again])
    if not len(meets):
        return corner, offsets, label
    parts = [
        (np.array(part), label[at])
        for at in meets
        for part in _simple(corner[offsets[at] : offsets[at + 1]].tolist())
    ]
    stays = np.ones(len(label), bool)
    stays[meets] = False
    counts = [*np.diff(offsets)[stays], *(len(part) for part, _ in parts)]
    corners = [corner[stays[ring]], *(part for part, _ in parts)]
    return (
        np.concatenate(corners),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        np.concatenate([label[stays], [each for _, each in parts]]).astype(np.int64),
    )


def _simple(corners: list[int]) -> Iterator[list[int]]:
    """Yield the loops of a ring between two visits of one corner."""
    path: list[int] = []
    places: dict[int, int] = {}
    for corner in corners:
        if (at := places.get(corner)) is not None:
            yield path[at:]
            for each in path[at + 1 :]:
                del places[each]
            del path[at + 1 :]
        else:
            places[corner] = len(path)
            path.append(corner)
    yield path
