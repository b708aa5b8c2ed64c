"""Values of an image by label: sorted, counted, and their quantiles."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["CountedValues", "quantiles_of", "sorted_values"]

LARGE = 16
"""Mean number of values from which those of each label are sorted by themselves: short arrays are
sorted several times as fast as long ones, but each costs a call."""
COUNTED = 256
"""Mean number of values from which integers of 8 and 16 bits are sorted by counting, as NumPy's
stable sort does, in 1 to 4 ns a value; its other sort takes 2 to 32 ns, by the processor."""


def sorted_values(values: NDArray[Any], counts: NDArray[np.int64]) -> NDArray[Any]:
    """Return the values of each label in ascending order; NaN is last.

    Parameters
    ----------
    values : numpy.ndarray
        One for each pixel, those of the first label first.
    counts : numpy.ndarray
        Number of values of each label.

    """
    is_small = values.dtype.kind in "uib" and values.dtype.itemsize <= 4
    if is_small and len(values) < LARGE * len(counts):
        return _sorted_at_once(values, counts)
    found = values.copy()
    is_countable = values.dtype.kind in "uib" and values.dtype.itemsize <= 2
    kind: Any = "stable" if is_countable and len(values) >= COUNTED * len(counts) else None
    start = 0
    for stop in np.cumsum(counts).tolist():
        found[start:stop].sort(kind=kind)
        start = stop
    return found


def _sorted_at_once(values: NDArray[Any], counts: NDArray[np.int64]) -> NDArray[Any]:
    """Sort the values of many labels as one integer each, of label and value."""
    number, bits = len(counts), 8 * values.dtype.itemsize
    low = 0 if values.dtype.kind in "ub" else np.iinfo(values.dtype).min
    key: Any = np.uint32 if number <= 2 ** (32 - bits) else np.uint64
    keys: NDArray[Any] = np.repeat(np.arange(number, dtype=key) << key(bits), counts)
    keys |= (values.astype(np.int64) - low).astype(key) if low else values.astype(key)
    keys.sort()
    keys &= key(2**bits - 1)
    return (keys.astype(np.int64) + low).astype(values.dtype)


def quantiles_of(
    values: NDArray[Any],
    counts: NDArray[np.int64],
    quantiles: NDArray[np.float64],
    repeats: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """Return quantiles of the values of each label, with linear interpolation, as NumPy's.

    Parameters
    ----------
    values : numpy.ndarray
        Sorted by label, and ascending for each.
    counts : numpy.ndarray
        Number of values of each label: one or more.
    quantiles : numpy.ndarray
        Between 0 and 1.
    repeats : numpy.ndarray, optional
        How many times each value is there; by default once.

    Returns
    -------
    numpy.ndarray
        Shape (labels, quantiles).

    """
    firsts = (np.cumsum(counts) - counts)[:, None]
    place = (counts - 1)[:, None] * quantiles
    before = np.floor(place).astype(np.int64)
    after = np.minimum(before + 1, (counts - 1)[:, None])
    part = place - before
    low, high = firsts + before, firsts + after
    if repeats is not None:
        ends = np.cumsum(repeats)
        low, high = (np.searchsorted(ends, each, "right") for each in (low, high))
    lower, upper = values[low].astype(np.float64), values[high].astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinities
        step = upper - lower
        found = np.where(part < 0.5, lower + step * part, upper - step * (1 - part))
    return np.where(upper == lower, lower, found)


@dataclasses.dataclass(frozen=True, slots=True)
class CountedValues:
    """Distinct values of some labels in one channel, and how many times each is there."""

    lengths: NDArray[np.int64]
    """Number of distinct values of each label."""
    values: NDArray[Any]
    """Sorted by label, and ascending for each."""
    repeats: NDArray[np.uint32]
    """How many times each value is there."""

    @classmethod
    def of(cls, values: NDArray[Any], counts: NDArray[np.int64]) -> CountedValues:
        """Count sorted values, of which each label has so many."""
        which = np.repeat(np.arange(len(counts)), counts)
        return cls._counted(values, which, np.ones(len(values), np.uint32), len(counts))

    @classmethod
    def _counted(
        cls,
        values: NDArray[Any],
        which: NDArray[np.int64],
        repeats: NDArray[np.uint32],
        number: int,
    ) -> CountedValues:
        if not len(values):
            return cls(np.zeros(number, np.int64), values, repeats)
        is_new = np.ones(len(values), np.bool_)
        is_new[1:] = (values[1:] != values[:-1]) | (which[1:] != which[:-1])
        starts = np.flatnonzero(is_new)
        return cls(
            np.bincount(which[starts], minlength=number),
            values[starts],
            np.add.reduceat(repeats, starts, dtype=np.uint32),
        )

    def chosen(self, labels: NDArray[np.bool_]) -> CountedValues:
        """Return those of some labels."""
        kept = np.repeat(labels, self.lengths)
        return CountedValues(self.lengths[labels], self.values[kept], self.repeats[kept])

    def quantiles(
        self, counts: NDArray[np.int64], quantiles: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return quantiles of each label, which has so many values in all."""
        return quantiles_of(self.values, counts, quantiles, self.repeats.astype(np.int64))

    @classmethod
    def merged(
        cls, parts: Sequence[CountedValues], places: Sequence[NDArray[np.int64]], number: int
    ) -> CountedValues:
        """Merge values of several chunks.

        Parameters
        ----------
        parts : sequence of CountedValues
            Values of each chunk.
        places : sequence of numpy.ndarray
            Index of each label of a chunk among all.
        number : int
            Number of all labels.

        """
        which = np.concatenate(
            [np.repeat(at, part.lengths) for at, part in zip(places, parts, strict=True)]
        )
        values = np.concatenate([part.values for part in parts])
        repeats = np.concatenate([part.repeats for part in parts])
        order = np.lexsort((values, which))
        return cls._counted(values[order], which[order], repeats[order], number)
