"""Runs of equal labels along the rows of a label map, and sums over them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.annotation.graphic import ranges

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Runs", "moments_of"]

STRIP = 2**16
"""Pixels whose squares are computed at once: they stay in the cache of a processor."""
SPARSE = 4
"""Range of labels, as a multiple of their number, above which they are sorted."""


@dataclasses.dataclass(frozen=True, slots=True)
class Runs:
    """Runs of one label along the rows of a label map, in row-major order.

    A cell has one run for each of its rows. Most work is done per run, not per pixel.
    """

    starts: NDArray[np.int64]
    """First pixel of each run, counted in row-major order."""
    lengths: NDArray[np.int64]
    """Pixels of each run."""
    labels: NDArray[Any]
    """The labels that there are, ascending."""
    which: NDArray[np.int64]
    """Index of the label of each run among `labels`."""
    width: int
    """Pixels of a row."""

    @classmethod
    def of(cls, labels: NDArray[Any]) -> Runs:
        """Return the runs of a label map, shape (rows, columns)."""
        flat = np.ascontiguousarray(labels).ravel()
        width = labels.shape[1]
        begins = np.empty(flat.size, np.bool_)
        np.not_equal(flat[1:], flat[:-1], out=begins[1:])
        begins[::width] = True
        starts = np.flatnonzero(begins)
        lengths = np.diff(starts, append=flat.size)
        there, which = _numbered(flat[starts])
        return cls(starts, lengths, there, which, width)

    def without(self, label: int) -> Runs:
        """Return the runs of other labels than one."""
        at = np.searchsorted(self.labels, label)
        if at == len(self.labels) or self.labels[at] != label:
            return self
        kept = self.which != at
        which = self.which[kept]
        return Runs(
            self.starts[kept],
            self.lengths[kept],
            np.delete(self.labels, at),
            which - (which > at),
            self.width,
        )

    def totals(self, of_runs: NDArray[Any]) -> NDArray[np.float64]:
        """Return the sum of a number of each run, for each label."""
        return np.bincount(self.which, of_runs, len(self.labels)).astype(np.float64)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Pixels of each label."""
        return self.totals(self.lengths).astype(np.int64)

    def shape(self) -> dict[str, NDArray[Any]]:
        """Return sums of rows and columns of each label, and its first and last ones."""
        rows, columns = np.divmod(self.starts, self.width)
        ends = columns + self.lengths - 1
        found: dict[str, NDArray[Any]] = {
            "rows": self.totals(rows * self.lengths),
            "columns": self.totals((columns + ends) * self.lengths / 2),
        }
        count = len(self.labels)
        for name, values, reduce, most in (
            ("top", rows, np.minimum, np.iinfo(np.int64).max),
            ("bottom", rows, np.maximum, -1),
            ("left", columns, np.minimum, np.iinfo(np.int64).max),
            ("right", ends, np.maximum, -1),
        ):
            found[name] = np.full(count, most, np.int64)
            reduce.at(found[name], self.which, values)
        return found

    def pixels(self) -> NDArray[np.int64]:
        """Return each pixel, counted in row-major order; those of the first label come first."""
        order = np.argsort(self.which, kind="stable")
        return ranges(self.starts[order], self.lengths[order])


def moments_of(runs: Runs, values: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the sum of the values of each label, and of squares of deviations from their mean.

    Parameters
    ----------
    runs : Runs
        Runs of the labels, without gaps or with gaps.
    values : numpy.ndarray
        One for each pixel, in row-major order. Sums of integers of 8 and 16 bits are exact.

    Returns
    -------
    sums, deviations : numpy.ndarray
        One number for each label.

    """
    total = np.zeros(len(runs.starts))
    squares = np.zeros(len(runs.starts))
    is_small = values.dtype.kind in "ui" and values.dtype.itemsize <= 2
    dtype = np.dtype(np.int64 if is_small else np.float64)
    rows = max(STRIP // runs.width, 1) * runs.width
    strips = np.empty(rows, dtype)
    ends = runs.starts + runs.lengths
    bounds = np.searchsorted(runs.starts, np.arange(0, len(values) + rows, rows))
    for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        if first == last:
            continue
        begin, end = int(runs.starts[first]), int(ends[last - 1])
        strip = strips[: end - begin]
        np.copyto(strip, values[begin:end], casting="unsafe")
        cuts, places = _without_gaps(runs.starts[first:last] - begin, ends[first:last] - begin)
        with np.errstate(invalid="ignore", over="ignore"):
            sums = np.add.reduceat(strip, cuts)
        total[first:last] = sums[places]
        with np.errstate(invalid="ignore", over="ignore"):  # infinities
            if not is_small:
                lengths = np.diff(cuts, append=len(strip))
                strip -= np.repeat(sums / lengths, lengths)
            np.multiply(strip, strip, out=strip)
            squares[first:last] = np.add.reduceat(strip, cuts)[places]
    sums, counts = runs.totals(total), runs.totals(runs.lengths)
    with np.errstate(invalid="ignore"):
        if is_small:  # exact sums
            return sums, np.maximum(runs.totals(squares) - sums * sums / counts, 0)
        apart = total / runs.lengths - (sums / counts)[runs.which]
        return sums, runs.totals(squares + runs.lengths * apart * apart)


def _without_gaps(
    starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Any]:
    """Return the first pixels of runs and of the gaps between them, and which are those of runs."""
    gaps = np.flatnonzero(ends[:-1] != starts[1:])
    if not gaps.size:
        return starts, slice(None)
    is_run = np.ones(len(starts) + len(gaps), np.bool_)
    is_run[gaps + 1 + np.arange(len(gaps))] = False
    cuts = np.empty(len(is_run), np.int64)
    cuts[is_run], cuts[~is_run] = starts, ends[gaps]
    return cuts, is_run


def _numbered(labels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the distinct labels, ascending, and the index of each label among them."""
    low, high = int(labels.min()), int(labels.max())
    if high - low > SPARSE * len(labels):
        there, which = np.unique(labels, return_inverse=True)
        return there, which
    is_there = np.zeros(high - low + 1, np.bool_)
    if labels.dtype.kind == "u":
        shifted = (labels - labels.dtype.type(low)).astype(np.int64)
    else:  # differences may be larger than the data type can hold
        shifted = labels.astype(np.int64) - low
    is_there[shifted] = True
    there = np.flatnonzero(is_there)
    numbers = np.cumsum(is_there) - 1
    return labels.dtype.type(low) + there.astype(labels.dtype), numbers[shifted]
