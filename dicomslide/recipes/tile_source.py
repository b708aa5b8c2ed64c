"""Where tiles get their pixels: from what a dask array slices, or from its chunks."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dicomslide.readers.arrays import ReaderArray

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dask.highlevelgraph import HighLevelGraph, Layer
    from numpy.typing import NDArray

__all__ = ["ChunkSource", "SlicedSource", "Source", "source_of"]

Part: TypeAlias = "tuple[slice, slice]"
"""Pixels along y and x."""
Place: TypeAlias = "tuple[int, int]"
"""Index of a chunk along y and x."""
RECHUNKED = "rechunk-"
"""Prefix of the names of dask's layers that cut an array into other chunks."""
SLICED = "getitem-"
"""Prefix of the names of dask's layers that index an array."""


@dataclasses.dataclass(frozen=True, eq=False)
class SlicedSource:
    """An array-like that is indexed by integers and slices, wherever a tile lies."""

    array: Any
    """Such as a :class:`dicomslide.readers.arrays.ReaderArray`, or a Zarr array."""
    key: tuple[int | range, ...]
    """The pixels of the image along each of its axes."""
    order: tuple[int, ...]
    """Which of these axes each axis of the image is."""
    axes: tuple[int, int]
    """Axes of the image that are y and x."""

    def chunks(self, parts: Sequence[Part]) -> list[Place]:
        """Return the chunks that a task depends on: none."""
        return []

    def read(self, part: Part, chunks: Mapping[Place, NDArray[Any]]) -> NDArray[Any]:
        """Return the pixels of a part of the image, all of its other dims."""
        cut = dict(zip((self.order[axis] for axis in self.axes), part, strict=True))
        key: list[int | slice] = []
        turned: list[slice] = []
        for axis, wanted in enumerate(self.key):
            if isinstance(wanted, int):
                key.append(wanted)
                continue
            pixels = wanted[cut[axis]] if axis in cut else wanted
            ascending = pixels if pixels.step > 0 else pixels[::-1]
            key.append(slice(ascending.start, ascending.stop, ascending.step))
            turned.append(slice(None, None, 1 if pixels.step > 0 else -1))
        found = np.asarray(self.array[tuple(key)])[tuple(turned)]
        kept = [axis for axis, wanted in enumerate(self.key) if not isinstance(wanted, int)]
        return found.transpose([kept.index(axis) for axis in self.order])


@dataclasses.dataclass(frozen=True, eq=False)
class ChunkSource:
    """The chunks of a dask array; one along each dim but y and x."""

    name: str
    """Of the array."""
    ndim: int
    axes: tuple[int, int]
    """Axes that are y and x."""
    starts: tuple[tuple[int, ...], tuple[int, ...]]
    """First pixel of each chunk along y and x, and where the last chunk ends."""

    def key_of(self, place: Place) -> tuple[Any, ...]:
        """Return the key of a chunk in the graph."""
        block = [0] * self.ndim
        for axis, at in zip(self.axes, place, strict=True):
            block[axis] = at
        return (self.name, *block)

    def _touched(self, part: Part) -> tuple[range, range]:
        down, across = (
            range(
                int(np.searchsorted(starts, pixels.start, side="right")) - 1,
                int(np.searchsorted(starts, pixels.stop, side="left")),
            )
            for starts, pixels in zip(self.starts, part, strict=True)
        )
        return down, across

    def chunks(self, parts: Sequence[Part]) -> list[Place]:
        """Return the chunks that parts of the image touch."""
        return sorted({at for part in parts for at in itertools.product(*self._touched(part))})

    def read(self, part: Part, chunks: Mapping[Place, NDArray[Any]]) -> NDArray[Any]:
        """Return the pixels of a part of the image, all of its other dims."""
        places = list(itertools.product(*self._touched(part)))
        first = np.asarray(chunks[places[0]])
        shape = list(first.shape)
        for axis, pixels in zip(self.axes, part, strict=True):
            shape[axis] = pixels.stop - pixels.start
        out = np.empty(shape, first.dtype)
        for place in places:
            source, target = [slice(None)] * self.ndim, [slice(None)] * self.ndim
            for axis, at, starts, pixels in zip(self.axes, place, self.starts, part, strict=True):
                low, high = max(starts[at], pixels.start), min(starts[at + 1], pixels.stop)
                source[axis] = slice(low - starts[at], high - starts[at])
                target[axis] = slice(low - pixels.start, high - pixels.start)
            out[tuple(target)] = chunks[place][tuple(source)]
        return out


Source: TypeAlias = SlicedSource | ChunkSource


def source_of(data: Any, axes: tuple[int, int]) -> tuple[Source, Any]:
    """Return where the tiles of an array get their pixels.

    Parameters
    ----------
    data : dask.array.Array or array-like
        The image. Where its graph does nothing but slice, transpose or rechunk an array-like, such
        as a slide's reader, tiles are read from that.
    axes : tuple of int
        Its axes that are y and x.

    Returns
    -------
    source : SlicedSource or ChunkSource
        Where pixels come from.
    data : dask.array.Array or None
        The array whose chunks tasks depend on; None where there is none.

    """
    import dask.array as da

    if not isinstance(data, da.Array):
        every = tuple(range(data.ndim))
        return SlicedSource(data, tuple(range(n) for n in data.shape), every, axes), None
    view = _view(data.dask, data.name, is_whole=True)
    if view is not None:
        key: list[Any] = [view.fixed.get(axis) for axis in range(view.ndim)]
        for axis, ranges in view.axes:
            key[axis] = _joined(ranges)
        order = tuple(axis for axis, _ in view.axes)
        lengths = tuple(-1 if key[axis] is None else len(key[axis]) for axis in order)
        if lengths == data.shape:
            array = view.array
            if isinstance(array, ReaderArray):  # frames at a tile's border are its neighbours', too
                array = dataclasses.replace(array, keep=True)
            return SlicedSource(array, tuple(key), order, axes), None
    whole = {axis: -1 for axis in range(data.ndim) if axis not in axes}
    data = data.rechunk(whole)  # type: ignore[no-untyped-call]
    down, across = ((0, *itertools.accumulate(data.chunks[axis])) for axis in axes)
    return ChunkSource(data.name, data.ndim, axes, (down, across)), data


@dataclasses.dataclass(frozen=True)
class _View:
    """What a layer of a graph shows of an array-like."""

    array: Any
    ndim: int
    """Axes of the array-like."""
    fixed: dict[int, int]
    """The index along axes that the layer hasn't."""
    axes: list[tuple[int, list[range]]]
    """For each axis of the layer, that of the array-like, and its pixels chunk by chunk."""


def _view(graph: HighLevelGraph, name: str, *, is_whole: bool = False) -> _View | None:
    """Return what a layer shows; None if it does more, or it can't be told.

    Parameters
    ----------
    graph : HighLevelGraph
        The graph.
    name : str
        The layer.
    is_whole : bool
        Whether the layer's own chunks don't matter.

    """
    from dask.blockwise import Blockwise

    layer = graph.layers.get(name)
    if layer is None:
        return None
    if isinstance(layer, Blockwise):
        return _produced(graph, layer) or _transposed(graph, layer)
    if name.startswith(RECHUNKED):
        below = graph.dependencies[name]
        if not is_whole or len(below) != 1:
            return None
        return _view(graph, *below, is_whole=True)
    return _indexed(graph, name, layer) if name.startswith(SLICED) else None


def _produced(graph: HighLevelGraph, layer: Any) -> _View | None:
    """Return what a layer of :func:`dask.array.from_array` shows: all of an array-like."""
    from dask._task_spec import DataNode, GraphNode, TaskRef
    from dask.array.optimization import GETTERS
    from dask.layers import ArraySliceDep

    if layer.task.func not in GETTERS:
        return None
    if layer.task.kwargs.get("lock") or len(layer.task.args) != 2 or len(layer.indices) != 2:
        return None
    (array, no_index), (slices, indices) = layer.indices
    chunks = layer.io_deps.get(slices) if isinstance(slices, str) else None
    if no_index is not None or not isinstance(chunks, ArraySliceDep):
        return None
    if tuple(indices) != tuple(layer.output_indices):
        return None
    if isinstance(array, TaskRef):
        holder: Mapping[Any, Any] = graph.layers.get(str(array.key), {})
        array = holder.get(array.key)
    if isinstance(array, DataNode):
        array = array.value
    if array is None or isinstance(array, (GraphNode, TaskRef, tuple, str)):
        return None
    axes = [
        (axis, [range(*pair) for pair in itertools.pairwise(starts)])
        for axis, starts in enumerate(chunks.starts)
    ]
    return _View(array, len(axes), {}, axes)


def _transposed(graph: HighLevelGraph, layer: Any) -> _View | None:
    if layer.task.func is not np.transpose or len(layer.indices) != 1 or layer.io_deps:
        return None
    ((below, indices),) = layer.indices
    view = _view(graph, below) if indices is not None else None
    if view is None or sorted(indices) != sorted(layer.output_indices):
        return None
    axes = [view.axes[indices.index(each)] for each in layer.output_indices]
    return dataclasses.replace(view, axes=axes)


def _indexed(graph: HighLevelGraph, name: str, layer: Layer) -> _View | None:
    """Return what a layer of slices of another one shows."""
    first = next(iter(layer), None)
    if not isinstance(first, tuple) or first[0] != name:
        return None
    origin = (0,) * (len(first) - 1)
    corner = _slice_of(layer, name, origin)
    view = None if corner is None else _view(graph, corner[0])
    if corner is None or view is None or len(corner[2]) != len(view.axes):
        return None
    below, block, index = corner
    fixed = dict(view.fixed)
    axes: list[tuple[int, list[range]]] = []
    lines: list[list[tuple[int, Any]]] = []  # chunk and slice by chunk of each axis of the layer
    for position, (at, part) in enumerate(zip(block, index, strict=True)):
        axis, ranges = view.axes[position]
        if not isinstance(part, slice):
            fixed[axis] = ranges[at][part]
            continue
        line = []
        here = len(lines)
        for number in itertools.count():
            found = _slice_of(layer, name, (*origin[:here], number, *origin[here + 1 :]))
            if found is None:
                break
            line.append((found[1][position], found[2][position]))
        lines.append(line)
        axes.append((axis, [ranges[of][pixels] for of, pixels in line]))
    if len(lines) != len(origin) or math.prod(map(len, lines)) != len(layer):
        return None
    for number in range(max(map(len, lines), default=0)):  # the same, away from the axes
        place = tuple(min(number, len(line) - 1) for line in lines)
        pairs = iter(line[at] for line, at in zip(lines, place, strict=True))
        expected = [
            next(pairs) if isinstance(part, slice) else (at, part)
            for at, part in zip(block, index, strict=True)
        ]
        found = _slice_of(layer, name, place)
        if found is None or (found[0], list(zip(*found[1:], strict=True))) != (below, expected):
            return None
    return _View(view.array, view.ndim, fixed, axes)


def _slice_of(
    layer: Layer, name: str, place: tuple[int, ...]
) -> tuple[str, tuple[int, ...], tuple[Any, ...]] | None:
    """Return the layer, the chunk and the key of which a chunk is a slice."""
    from dask._task_spec import Alias, Task, TaskRef
    from dask.array.optimization import GETTERS

    task = layer.get((name, *place))
    if isinstance(task, Alias) and isinstance(task.target, tuple):  # all of the chunk
        below, *block = task.target
        return str(below), tuple(map(int, block)), (slice(None),) * len(block)  # type: ignore[arg-type]
    if not isinstance(task, Task) or task.func not in GETTERS or len(task.args) != 2:
        return None
    ref, index = task.args
    if not isinstance(ref, TaskRef) or not isinstance(ref.key, tuple):
        return None
    if not isinstance(index, tuple) or not all(
        isinstance(part, (slice, int, np.integer)) for part in index
    ):
        return None
    below, *block = ref.key
    return str(below), tuple(map(int, block)), index  # type: ignore[arg-type]


def _joined(ranges: Sequence[range]) -> range | None:
    """Return ranges that follow each other as one; None where they don't."""
    parts = [part for part in ranges if len(part)]
    if not parts:
        return range(0)
    firsts = [part[0] for part in parts]
    step = next((part.step for part in parts if len(part) > 1), None)
    if step is None:
        step = firsts[1] - firsts[0] if len(parts) > 1 else 1
    if step == 0:
        return None
    whole = range(firsts[0], firsts[0] + step * sum(map(len, parts)), step)
    at = 0
    for part in parts:
        if whole[at : at + len(part)] != part:
            return None
        at += len(part)
    return whole
