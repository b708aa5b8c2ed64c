"""Arrays with one task for each chunk, which is made only when the chunk is asked for."""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
from typing import TYPE_CHECKING, Any

import dask.array as da
from dask._task_spec import DataNode, GraphNode, List, Task, TaskRef
from dask.base import dont_optimize, tokenize
from dask.context import globalmethod
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph, Layer, MaterializedLayer

from dicomslide.recipes.tile_source import ChunkSource
from dicomslide.recipes.tile_tasks import fill_task, part_of, run_task

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence, Set

    import numpy as np
    from dask.typing import Key
    from numpy.typing import NDArray

    from dicomslide.recipes.tile_tasks import At, Work

__all__ = ["TileArray", "tile_arrays"]


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Pause the garbage collector, which takes most of the time where very many tasks are made."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _ChunkLayer(Layer):
    """A task for each chunk of an array.

    Parameters
    ----------
    name : str
        Of the array.
    lead : int
        Number of dims of one chunk before the last two.
    shape : tuple of int
        Number of chunks along the last two dims.

    """

    has_legacy_tasks = False  # else dask would make all tasks to find out

    def __init__(self, name: str, lead: int, shape: tuple[int, int]) -> None:
        super().__init__()
        self.name = name
        self.lead = lead
        self.shape = shape
        self.beside: dict[Key, GraphNode] = {}
        """What several tasks depend on, by key."""

    def task(self, key: Key, number: int) -> GraphNode:
        """Return the task of a chunk, counted in row-major order."""
        raise NotImplementedError

    def is_materialized(self) -> bool:
        """Whether all tasks exist: never."""
        return False

    def get_output_keys(self) -> Set[Key]:
        """Return all keys."""
        return set(self)

    def __len__(self) -> int:
        return math.prod(self.shape) + len(self.beside)

    def __iter__(self) -> Iterator[Key]:
        yield from self.beside
        down, across = map(range, self.shape)
        yield from itertools.product((self.name,), *([(0,)] * self.lead), down, across)

    def _number(self, key: Any) -> int | None:
        if not isinstance(key, tuple) or len(key) != self.lead + 3 or key[0] != self.name:
            return None
        row, column = key[-2:]
        if any(key[1:-2]) or not (0 <= row < self.shape[0] and 0 <= column < self.shape[1]):
            return None
        return int(row * self.shape[1] + column)

    def __contains__(self, key: object) -> bool:
        return self._number(key) is not None or key in self.beside

    def __getitem__(self, key: Key) -> GraphNode:
        number = self._number(key)
        return self.beside[key] if number is None else self.task(key, number)

    def materialized(self) -> MaterializedLayer:
        """Return a layer of all tasks."""
        tasks: dict[Key, GraphNode] = {**self.beside}
        down, across = map(range, self.shape)
        keys: Any = itertools.product((self.name,), *([(0,)] * self.lead), down, across)
        with _uncollected():
            for number, key in enumerate(keys):
                tasks[key] = self.task(key, number)
        return MaterializedLayer(tasks, annotations=self.annotations)

    def cull(self, keys: set[Key], all_hlg_keys: Any) -> tuple[Layer, Mapping[Key, set[Key]]]:
        """Return a layer of the tasks of some keys, and the keys on which these depend."""
        wanted = {key: self[key] for key in keys if key in self}
        for key in {key for task in wanted.values() for key in task.dependencies}:
            if key in self.beside:
                wanted[key] = self.beside[key]
        culled = MaterializedLayer(wanted, annotations=self.annotations)
        return culled, {key: set(task.dependencies) for key, task in wanted.items()}


class _TileLayer(_ChunkLayer):
    """Tasks that read tiles, run a model on them, and assemble what it returns.

    Parameters
    ----------
    name, lead, shape
        See the base class.
    work : Work
        What all tasks have in common.
    model : object
        The model; a reference where it is computed by another task, or lies with the workers.
    tiles : sequence of numpy.ndarray, optional
        The tiles of each task; by default those of a block.
    has_tiles : numpy.ndarray, optional
        Whether any tile of each block is processed; by default, each is.

    """

    def __init__(
        self,
        name: str,
        lead: int,
        shape: tuple[int, int],
        work: Work,
        model: Any,
        tiles: Sequence[NDArray[np.int32]] | None,
        has_tiles: NDArray[np.bool_] | None,
    ) -> None:
        super().__init__(name, lead, shape)
        self.work = work
        self.tiles = tiles
        self.has_tiles = has_tiles
        self.work_ref, self.model_ref = TaskRef(f"tiles-{name}"), model
        self.beside[self.work_ref.key] = DataNode(self.work_ref.key, work)
        if not isinstance(model, TaskRef):
            self.model_ref = TaskRef(f"model-{tokenize(model)}")
            self.beside[self.model_ref.key] = DataNode(self.model_ref.key, model)

    def task(self, key: Key, number: int) -> GraphNode:
        """Return the task of a chunk, counted in row-major order."""
        if self.has_tiles is not None and not self.has_tiles[number]:
            return Task(key, fill_task, self.work_ref, number)
        at: At = number if self.tiles is None else self.tiles[number]
        source = self.work.source
        if not isinstance(source, ChunkSource):
            return Task(key, run_task, self.work_ref, self.model_ref, at)
        chunks = [TaskRef(source.key_of(place)) for place in self.work.chunks_of(at)]
        return Task(key, run_task, self.work_ref, self.model_ref, at, List(*chunks))


class _PartLayer(_ChunkLayer):
    """Tasks that return one of several outputs of other tasks.

    Parameters
    ----------
    name, lead, shape
        See the base class.
    whole : str
        Name of the tasks that return all outputs.
    part : int
        Which of them.

    """

    def __init__(self, name: str, lead: int, shape: tuple[int, int], whole: str, part: int) -> None:
        super().__init__(name, lead, shape)
        self.whole = whole
        self.part = part

    def task(self, key: Key, number: int) -> GraphNode:
        """Return the task of a chunk, counted in row-major order."""
        return Task(key, part_of, TaskRef((self.whole, *divmod(number, self.shape[1]))), self.part)


def _optimize(graph: Any, keys: Any, **options: Any) -> Any:
    """Return all tasks, where nothing but tiles is computed; else those that dask leaves."""
    if isinstance(graph, HighLevelGraph):
        own = {n: each for n, each in graph.layers.items() if isinstance(each, _ChunkLayer)}
        others = [each for name, each in graph.layers.items() if name not in own]
        if not others or (len(others) == 1 and _takes_all(others[0], own.values())):
            layers = {name: layer.materialized() for name, layer in own.items()}
            return HighLevelGraph({**graph.layers, **layers}, graph.dependencies)
    return da.optimize(graph, keys, **options)  # type: ignore[no-untyped-call]


def _takes_all(layer: Layer, below: Iterable[_ChunkLayer]) -> bool:
    """Whether a layer is one task that puts all chunks of arrays together, as ``compute`` does."""
    if not isinstance(layer, MaterializedLayer) or len(layer) != 1:
        return False
    (task,) = layer.values()
    whole = {each.whole for each in below if isinstance(each, _PartLayer)}
    chunks = sum(math.prod(each.shape) for each in below if each.name not in whole)
    return isinstance(task, GraphNode) and len(task.dependencies) == chunks


class TileArray(da.Array):
    """A dask array whose tasks need no optimization, unless there are others besides.

    To find nothing to fuse takes dask seconds where there are very many tasks.
    """

    __slots__ = ()
    __dask_optimize__ = globalmethod(  # type: ignore[no-untyped-call]
        _optimize, key="array_optimize", falsey=dont_optimize
    )


def tile_arrays(
    work: Work,
    model: Any,
    chunks: Sequence[tuple[tuple[int, ...], ...]],
    *,
    name: str,
    token: str,
    data: Any = None,
    tiles: Sequence[NDArray[np.int32]] | None = None,
    has_tiles: NDArray[np.bool_] | None = None,
) -> list[TileArray]:
    """Return the outputs of a model as arrays.

    Parameters
    ----------
    work : Work
        What all tasks have in common.
    model : callable, Delayed or Future
        The model, or what it is computed by.
    chunks : sequence of tuple
        The chunks of each output, of which those along all dims but the last two are one.
    name, token : str
        What the names of tasks begin with, and a hash of everything that the results depend on.
    data : dask.array.Array, optional
        The image, where tasks depend on its chunks.
    tiles, has_tiles
        See :class:`_TileLayer`.

    """
    below = [] if data is None else [data]
    if isinstance(model, Delayed):
        below.append(model)
        model = TaskRef(model.key)
    whole = f"{name}-{token}"
    shape = len(chunks[0][-2]), len(chunks[0][-1])
    leads = [len(each) - 2 for each in chunks]
    is_one = len(chunks) == 1
    layer = _TileLayer(whole, leads[0] if is_one else 0, shape, work, model, tiles, has_tiles)
    graph = HighLevelGraph.from_collections(whole, layer, dependencies=below)
    arrays = []
    for number, (each, lead) in enumerate(zip(chunks, leads, strict=True)):
        own, own_graph = whole, graph
        if not is_one:
            own = f"{name}-output-{number}-{token}"
            part = _PartLayer(own, lead, shape, whole, number)
            own_graph = HighLevelGraph(
                {**graph.layers, own: part}, {**graph.dependencies, own: {whole}}
            )
        dtype = work.outputs[number].dtype
        arrays.append(TileArray(own_graph, own, each, dtype=dtype))  # type: ignore[no-untyped-call]
    return arrays
