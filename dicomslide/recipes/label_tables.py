"""Tables by label: what each chunk knows of its labels, and how chunks are merged.

A chunk knows of the labels in it only, so memory follows the labels that are there: neither the
largest label nor the number of chunks matters. Chunks are merged in a tree, always in one order.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.recipes.label_runs import Runs, moments_of
from dicomslide.recipes.label_values import CountedValues, quantiles_of, sorted_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["LabelTable", "Shared", "cells_of", "merged", "moments_by_label", "shapes_by_label"]

_REDUCE: dict[str, Any] = {
    "top": np.minimum,
    "bottom": np.maximum,
    "left": np.minimum,
    "right": np.maximum,
    "min": np.minimum,
    "max": np.maximum,
}
"""How columns of chunks are merged; others are added."""


@dataclasses.dataclass(frozen=True, slots=True)
class Shared:
    """Labels that are in several chunks: their quantiles need the values of all of these."""

    labels: NDArray[Any]
    """Ascending."""
    chunks: NDArray[np.int64]
    """Number of chunks of each."""

    def wanted(self, labels: NDArray[Any]) -> NDArray[np.int64]:
        """Return the number of chunks of each of some labels: one for those that aren't shared."""
        if not len(self.labels):
            return np.ones(len(labels), np.int64)
        at = np.minimum(np.searchsorted(self.labels, labels), len(self.labels) - 1)
        return np.where(self.labels[at] == labels, self.chunks[at], 1)


@dataclasses.dataclass(frozen=True, slots=True)
class LabelTable:
    """What is known of the labels of one chunk, or of several."""

    labels: NDArray[Any]
    """Labels that there are, ascending."""
    columns: dict[str, NDArray[Any]]
    """Columns with a number for each label, or an array (labels, channels, ...)."""
    waiting: NDArray[np.bool_] | None = None
    """Whether each label is in further chunks; None without quantiles."""
    values: tuple[CountedValues, ...] = ()
    """For each channel, the values of the labels that are in further chunks."""


def moments_by_label(pixels: NDArray[Any], labels: NDArray[Any], *, background: bool) -> LabelTable:
    """Return number, sum and squared deviations of the pixels of each label.

    Parameters
    ----------
    pixels : numpy.ndarray
        Shape (..., rows, columns).
    labels : numpy.ndarray
        Shape (rows, columns).
    background : bool
        Whether 0 is a label.

    """
    runs = _runs_of(labels, background)
    counts = runs.counts
    columns = _moments(runs, pixels.reshape(-1, *labels.shape), counts)
    return LabelTable(runs.labels, columns)


def shapes_by_label(
    labels: NDArray[Any],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    *,
    background: bool,
) -> LabelTable:
    """Return number, sums and bounds of rows and columns of each label.

    Parameters
    ----------
    labels : numpy.ndarray
        Shape (rows, columns).
    rows, columns : numpy.ndarray
        Indices of rows and columns in the whole label map.
    background : bool
        Whether 0 is a label.

    """
    runs = _runs_of(labels, background)
    counts = runs.counts
    found = runs.shape() | {"count": counts, "chunks": np.ones(len(counts), np.int64)}
    if len(rows) and len(columns):
        for name, first in (("rows", rows[0]), ("columns", columns[0])):
            found[name] = found[name] + first * counts
        for name, first in (
            ("top", rows[0]),
            ("bottom", rows[0]),
            ("left", columns[0]),
            ("right", columns[0]),
        ):
            found[name] = found[name] + first
    return LabelTable(runs.labels, found)


def cells_of(
    pixels: NDArray[Any],
    labels: NDArray[Any],
    shared: Shared,
    *,
    quantiles: NDArray[np.float64],
    background: bool,
) -> LabelTable:
    """Return number, moments, smallest and largest value and quantiles of each label.

    Parameters
    ----------
    pixels : numpy.ndarray
        Shape (..., rows, columns).
    labels : numpy.ndarray
        Shape (rows, columns).
    shared : Shared
        Labels that are in further chunks.
    quantiles : numpy.ndarray
        Between 0 and 1.
    background : bool
        Whether 0 is a label.

    """
    runs = _runs_of(labels, background)
    counts = runs.counts
    channels = pixels.reshape(-1, *labels.shape)
    waiting = shared.wanted(runs.labels) > 1
    columns = _moments(runs, channels, counts)
    number = len(counts)
    smallest, largest = (np.empty((number, len(channels)), pixels.dtype) for _ in range(2))
    found = np.full((number, len(channels), len(quantiles)), np.nan)
    values = []
    at = runs.pixels()
    ends = np.cumsum(counts)
    is_waiting = np.repeat(waiting, counts)
    for channel, plane in enumerate(channels):
        ordered = sorted_values(plane.reshape(-1)[at], counts)
        smallest[:, channel], largest[:, channel] = ordered[ends - counts], ordered[ends - 1]
        values.append(CountedValues.of(ordered[is_waiting], counts[waiting]))
        found[~waiting, channel] = quantiles_of(ordered[~is_waiting], counts[~waiting], quantiles)
    columns |= {
        "min": _nan_with(smallest, largest),
        "max": largest,
        "quantiles": _nan_with(found, largest[..., None]),
        "seen": np.ones(number, np.int64),
    }
    return LabelTable(runs.labels, columns, waiting, tuple(values))


def merged(
    parts: Sequence[LabelTable],
    shared: Shared | None = None,
    quantiles: NDArray[np.float64] | None = None,
) -> LabelTable:
    """Merge the tables of several chunks.

    Parameters
    ----------
    parts : sequence of LabelTable
        Tables, one or more.
    shared, quantiles
        See :func:`cells_of`.

    """
    labels, which = np.unique(np.concatenate([p.labels for p in parts]), return_inverse=True)
    columns: dict[str, NDArray[Any]] = {}
    for name, first in parts[0].columns.items():
        given = np.concatenate([part.columns[name] for part in parts])
        reduce = _REDUCE.get(name, np.add)
        out = np.zeros((len(labels), *first.shape[1:]), first.dtype)
        if reduce is not np.add:
            out[which] = given  # any of them, to begin with
        if name != "quantiles":
            reduce.at(out, which, given)
        columns[name] = out
    if "deviations" in columns:
        count = np.concatenate([part.columns["count"] for part in parts])[:, None]
        sums = np.concatenate([part.columns["sum"] for part in parts])
        with np.errstate(invalid="ignore", divide="ignore"):
            whole = columns["sum"] / columns["count"][:, None]
            apart = np.square(sums / count - whole[which]) * count
        np.add.at(columns["deviations"], which, np.where(count > 0, apart, 0))
    if shared is None or quantiles is None:
        return LabelTable(labels, columns)
    places = np.split(which, np.cumsum([len(part.labels) for part in parts])[:-1])
    done = np.full(columns["quantiles"].shape, np.nan)
    for part, at in zip(parts, places, strict=True):
        assert part.waiting is not None
        done[at[~part.waiting]] = part.columns["quantiles"][~part.waiting]
    columns["quantiles"] = done
    is_open = np.zeros(len(labels), np.bool_)  # in several of the parts
    for part, at in zip(parts, places, strict=True):
        assert part.waiting is not None
        is_open[at[part.waiting]] = True
    waiting = is_open & (columns["seen"] < shared.wanted(labels))
    opened = np.cumsum(is_open) - 1
    among = [opened[at[part.waiting]] for part, at in zip(parts, places, strict=True)]
    complete = ~waiting[is_open]
    values = []
    for channel in range(len(parts[0].values)):
        of_channel = [part.values[channel] for part in parts]
        all_values = CountedValues.merged(of_channel, among, int(is_open.sum()))
        ended = is_open & ~waiting
        if ended.any():
            found = all_values.chosen(complete).quantiles(columns["count"][ended], quantiles)
            done[ended, channel] = _nan_with(found, columns["max"][ended, channel][:, None])
        values.append(all_values.chosen(~complete))
    return LabelTable(labels, columns, waiting, tuple(values))


def _runs_of(labels: NDArray[Any], background: bool) -> Runs:
    if not labels.size:
        empty = np.zeros(0, np.int64)
        return Runs(empty, empty, labels.ravel(), empty, max(labels.shape[1], 1))
    runs = Runs.of(labels)
    return runs if background else runs.without(0)


def _moments(
    runs: Runs, channels: NDArray[Any], counts: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    sums, deviations = (np.zeros((len(counts), len(channels))) for _ in range(2))
    if len(counts):
        for at, plane in enumerate(channels):
            sums[:, at], deviations[:, at] = moments_of(runs, plane.reshape(-1))
    return {"count": counts, "sum": sums, "deviations": deviations}


def _nan_with(values: NDArray[Any], largest: NDArray[Any]) -> NDArray[Any]:
    """Return values with NaN where the largest value is NaN."""
    if largest.dtype.kind != "f":
        return values
    return np.where(np.isnan(largest), np.nan, values).astype(values.dtype)
