"""Computation of matrices block by block, and assembly of the files of instances.

Native frames have known offsets: each task writes its own into the file. Encoded and sparse frames
haven't: tasks write part files, of which the file is assembled in the order of frames, with an
offset table that is then known.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import os
import uuid
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.options import check_memory
from dicomslide.write.blocks import BlockWriter, NativeFile, blocks_along
from dicomslide.write.frames import MOST_NATIVE, join_bits
from dicomslide.write.part10 import (
    ENCODER,
    PREAMBLE,
    encapsulated_head,
    encapsulated_tail,
    file_head,
    native_head,
    per_frame_groups,
)
from dicomslide.write.scratch import Keeper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

    from dicomslide.write.frames import FrameForm
    from dicomslide.write.grids import Placed

__all__ = ["Finished", "Instance", "Job", "streamed", "too_large", "write_all"]

MOST_OPEN = 256
"""Upper bound on part files that are open at once."""


@dataclasses.dataclass(frozen=True)
class Instance:
    """An instance that is written from channels of an array."""

    name: str
    """Name of its file."""
    sop_instance_uid: str
    channels: range
    """Channels of the array that it consists of."""
    header: Callable[[int], Dataset]
    """Returns the header, given the number of frames."""
    groups: Callable[[NDArray[Any]], Iterable[bytes]] | None = None
    """Returns the per-frame functional groups, given (channel, row, column) of each frame's tile,
    counted from zero; None for TILED_FULL."""


@dataclasses.dataclass(frozen=True)
class Job:
    """An array, and the instances that are written from it."""

    placed: Placed
    form: FrameForm
    values: Callable[[NDArray[Any], str], NDArray[Any]]
    """Checks and converts values to stored pixels; see :class:`BlockWriter`."""
    instances: tuple[Instance, ...]
    fill: float = 0

    @property
    def is_sparse(self) -> bool:
        """Whether empty tiles are left out."""
        return self.instances[0].groups is not None

    @property
    def is_direct(self) -> bool:
        """Whether tasks write into the file of the instance."""
        if self.is_sparse or self.form.is_encapsulated or not self.form.is_aligned:
            return False
        # where nothing is written, such a file is zero
        return self.fill == 0 or self.placed.pixels.shape[1:] == self.placed.grid.shape

    @property
    def is_stream(self) -> bool:
        """Whether its only file can be written from its beginning to its end."""
        return (
            self.is_direct
            and len(self.instances) == 1
            and len(self.instances[0].channels) == 1 == len(self.placed.pixels)
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Number of tiles down and across."""
        return self.form.tiles(self.placed.grid.shape)

    def frames(self, instance: Instance) -> int:
        """Return the number of frames of an instance with all tiles."""
        return len(instance.channels) * math.prod(self.grid)


@dataclasses.dataclass(frozen=True)
class Finished:
    """A file that was written whole."""

    path: str
    name: str
    sop_instance_uid: str


def write_all(jobs: Sequence[Job], folder: str) -> list[Finished]:
    """Compute jobs one by one, with the current dask scheduler, and write their instances.

    Parameters
    ----------
    jobs : sequence of Job
        Arrays; one may keep pixels from which the next is computed.
    folder : str
        Folder of the files, in which nobody looks for slides.

    Returns
    -------
    list of Finished
        The files, in the order of jobs and instances.

    """
    finished: list[Finished] = []
    scratches = []
    for job in jobs:
        writer, pixels = _prepared(job, folder)
        wanted = [(writer, pixels, _indices(pixels))]
        if job.placed.kept is not None:
            kept, scratch = job.placed.kept
            scratch.create(folder)
            scratches.append(scratch)
            borders = tuple(
                tuple(itertools.accumulate(each[:-1], initial=0)) for each in kept.chunks
            )
            wanted.append((Keeper(scratch, borders), kept, _indices(kept)))  # type: ignore[arg-type]
        results = _computed(wanted)
        found = dict(zip(_indices(pixels), results, strict=False))
        finished += _finish(job, writer, found)
    for scratch in scratches:
        scratch.delete()
    return finished


def streamed(job: Job) -> Iterator[bytes]:
    """Yield the file of an instance of native frames of one channel, in its order.

    Blocks side by side are computed together, and the next ones while these are taken.
    """
    (instance,) = job.instances
    count = job.frames(instance)
    nbytes = count * job.form.frame_bits // 8
    yield file_head(instance.header(count), job.form.transfer_syntax_uid)
    yield native_head(job.form, nbytes + nbytes % 2)
    writer, pixels = _prepared(job, folder=None)
    down, across = job.grid
    size = job.form.frame_bits // 8
    empty = writer.empty_frame().tobytes()
    bands = [
        [at for at in _indices(pixels) if at[1] == band] for band in range(pixels.numblocks[1])
    ]
    row = 0
    with ThreadPoolExecutor(1) as pool:
        compute = functools.partial(_band, writer, pixels)
        waiting = pool.submit(compute, bands[0])
        for following in [*bands[1:], None]:
            band = waiting.result()
            if following is not None:
                waiting = pool.submit(compute, following)
            (first, _) = next(iter(band))
            yield from itertools.repeat(empty * across, first - row)
            height = next(iter(band.values())).shape[1]
            frames = np.frombuffer(bytearray(empty * (height * across)), np.uint8)
            frames = frames.reshape(height, across, size)
            for (_, column), found in band.items():
                frames[:, column : column + found.shape[2]] = found[0]
            yield frames.tobytes()
            row = first + height
    yield from itertools.repeat(empty * across, down - row)
    yield bytes(nbytes % 2)


def _band(
    writer: BlockWriter, pixels: Any, blocks: list[tuple[int, ...]]
) -> dict[tuple[int, int], NDArray[np.uint8]]:
    """Return the frames of blocks by the row and column of their first tile."""
    found = _computed([(writer.returned, pixels, blocks)])
    firsts = [
        [
            writer.borders[axis][at[axis]] // t
            for axis, t in zip((1, 2), writer.form.tile, strict=True)
        ]
        for at in blocks
    ]
    return {(row, column): frames for (row, column), frames in zip(firsts, found, strict=True)}


def _indices(pixels: Any) -> list[tuple[int, ...]]:
    """Return the indices of the blocks of an array."""
    return list(np.ndindex(*pixels.numblocks))


def _computed(wanted: Sequence[tuple[Any, Any, list[tuple[int, ...]]]]) -> list[Any]:
    """Return what functions return of blocks of arrays, computed at once.

    Parameters
    ----------
    wanted : sequence of tuple
        Function of a block, array, and indices of its blocks.

    """
    import dask.array as da
    from dask.base import compute_as_if_collection
    from dask.highlevelgraph import HighLevelGraph

    graphs, keys = [], []
    for function, pixels, blocks in wanted:
        mapped = pixels.map_blocks(
            function,
            name=f"write-{uuid.uuid4().hex}",  # unique: a scheduler must not reuse a result
            chunks=tuple((1,) * n for n in pixels.numblocks),
            dtype=object,
            meta=np.empty((0,) * 3, object),
        )
        graphs.append(mapped.dask)
        keys += [(mapped.name, *index) for index in blocks]
    graph = HighLevelGraph.merge(*graphs)
    found = compute_as_if_collection(da.Array, graph, keys)  # type: ignore[no-untyped-call]
    return [each.flat[0] for each in found]


def _prepared(job: Job, folder: str | None) -> tuple[BlockWriter, Any]:
    """Return what writes the blocks of a job, and its pixels with blocks as chunks.

    Files are created in `folder`, if it is given.
    """
    placed, form = job.placed, job.form
    pixels = placed.pixels
    blocks = [
        blocks_along(chunks, first, tile)
        for chunks, first, tile in zip(pixels.chunks[1:], placed.first, form.tile, strict=True)
    ]
    largest = max(pixels.chunks[0]) * math.prod(map(max, blocks))
    check_memory(largest * max(form.dtype.itemsize, pixels.dtype.itemsize), "a block of tiles")
    pixels = pixels.rechunk((pixels.chunks[0], *blocks), method="tasks")
    borders = [
        tuple(itertools.accumulate(each[:-1], initial=first))
        for each, first in zip(pixels.chunks, (0, *placed.first), strict=True)
    ]
    files: list[NativeFile] | None = None
    if job.is_direct and folder is not None:
        files = []
        for instance in job.instances:
            path = os.path.join(folder, instance.name)
            offset = _create(job, instance, path)
            files += [NativeFile(path, offset, number) for number in range(len(instance.channels))]
    writer = BlockWriter(
        form=form,
        values=job.values,
        fill=job.fill,
        shape=placed.grid.shape,
        borders=tuple(borders),
        folder=folder or "",
        name=job.instances[0].name,
        files=None if files is None else tuple(files),
        is_sparse=job.is_sparse,
    )
    return writer, pixels


def _create(job: Job, instance: Instance, path: str) -> int:
    """Create a file of native frames, all zero; return the offset of the first one.

    Its preamble follows when all frames are written: until then, it is no DICOM file.
    """
    count = job.frames(instance)
    nbytes = count * job.form.frame_bits // 8
    head = file_head(instance.header(count), job.form.transfer_syntax_uid)
    head += native_head(job.form, nbytes + nbytes % 2)
    with open(path, "xb") as file:
        file.write(bytes(len(PREAMBLE)) + head[len(PREAMBLE) :])
        file.truncate(len(head) + nbytes + nbytes % 2)
    return len(head)


def _finish(
    job: Job, writer: BlockWriter, found: dict[tuple[int, ...], NDArray[Any]]
) -> Iterator[Finished]:
    for instance in job.instances:
        path = os.path.join(writer.folder, instance.name)
        if not job.is_direct:
            with open(path, "xb") as file:
                for data in _assembled(job, instance, writer, found):
                    file.write(data)
        with open(path, "r+b") as file:
            file.flush()
            os.fsync(file.fileno())  # the preamble makes it a file: never before its frames
            file.write(PREAMBLE)
        yield Finished(path, instance.name, instance.sop_instance_uid)
    if not job.is_direct:
        for block_id in found:
            os.unlink(writer.part(block_id))


def _assembled(
    job: Job,
    instance: Instance,
    writer: BlockWriter,
    found: dict[tuple[int, ...], NDArray[Any]],
) -> Iterator[bytes]:
    """Yield a file from part files, without its preamble."""
    form = job.form
    frames = _Frames.of(job, instance, writer, found)
    positions = frames.places
    head = file_head(instance.header(len(positions)), form.transfer_syntax_uid)
    yield bytes(len(PREAMBLE)) + head[len(PREAMBLE) :]
    if instance.groups is not None:
        yield from per_frame_groups(instance.groups(positions))
    if form.is_encapsulated:
        yield encapsulated_head(frames.lengths.tolist())
        for data in frames.read():
            yield ENCODER.fragment(data)
        yield encapsulated_tail()
        return
    nbytes = -(-len(positions) * form.frame_bits // 8)
    if nbytes > MOST_NATIVE:
        raise ValueError(too_large(nbytes))
    yield native_head(form, nbytes + nbytes % 2)
    yield from frames.read() if form.is_aligned else join_bits(frames.read(), form.frame_bits)
    yield bytes(nbytes % 2)


def too_large(nbytes: int) -> str:
    """Return the message about native pixels that are too large."""
    return (
        f"native frames of {nbytes:,} bytes don't fit into an element, of {MOST_NATIVE:,} bytes"
        " at most: choose an encapsulated transfer syntax, or a coarser level"
    )


@dataclasses.dataclass(frozen=True)
class _Frames:
    """Frames of an instance in part files, in their order."""

    places: NDArray[Any]
    """Channel in the instance, row and column of each frame's tile."""
    parts: NDArray[Any]
    """Index of the part file of each frame; −1 for an empty frame."""
    offsets: NDArray[Any]
    lengths: NDArray[Any]
    paths: tuple[str, ...]
    empty: bytes

    @classmethod
    def of(
        cls,
        job: Job,
        instance: Instance,
        writer: BlockWriter,
        found: dict[tuple[int, ...], NDArray[Any]],
    ) -> _Frames:
        """Return the frames of an instance by the records of all blocks."""
        down, across = job.grid
        first = instance.channels.start
        empty: Any = writer.empty_frame()
        empty = job.form.encode(empty) if job.form.is_encapsulated else empty.tobytes()
        numbers, parts, offsets, lengths = [], [], [], []
        for number, records in enumerate(found.values()):
            ends = np.cumsum(records["length"])
            channel = records["channel"] - first
            of_instance = (channel >= 0) & (channel < len(instance.channels))
            tiles = (channel.astype(np.int64) * down + records["row"]) * across + records["column"]
            numbers.append(tiles[of_instance])
            offsets.append((ends - records["length"])[of_instance])
            lengths.append(records["length"][of_instance])
            parts.append(np.full(int(of_instance.sum()), number))
        known = np.concatenate(numbers)
        count = job.frames(instance)
        if job.is_sparse:
            order = np.argsort(known)
            # an image has a frame at least (PS3.3 C.7.6.6)
            numbered = known[order] if len(known) else np.zeros(1, np.int64)
        else:
            numbered = np.arange(count)
            order = np.full(count, -1)
            order[known] = np.arange(len(known))
        if not len(known):
            order = np.full(len(numbered), -1)
        # an index of −1 takes the appended value, that of an empty frame
        part, offset, length = (
            np.append(np.concatenate(each), last)[order]
            for each, last in ((parts, -1), (offsets, 0), (lengths, len(empty)))
        )
        places = np.stack([
            numbered // (down * across), numbered // across % down, numbered % across
        ], axis=-1)  # fmt: skip
        paths = tuple(writer.part(block_id) for block_id in found)
        return cls(places, part, offset, length, paths, empty)

    def read(self) -> Iterator[bytes]:
        """Yield the frames in their order."""
        with _OpenParts() as opened:
            for part, offset, length in zip(
                self.parts.tolist(), self.offsets.tolist(), self.lengths.tolist(), strict=True
            ):
                if part < 0:
                    yield self.empty
                    continue
                descriptor = opened.get(self.paths[part])
                os.lseek(descriptor, offset, os.SEEK_SET)
                data = os.read(descriptor, length)
                if len(data) != length:
                    raise OSError(f"{self.paths[part]}: ends within a frame")
                yield data


class _OpenParts(contextlib.AbstractContextManager["_OpenParts"]):
    """Part files that are open, the least recently used of which are closed."""

    def __init__(self) -> None:
        self._descriptors: OrderedDict[str, int] = OrderedDict()

    def get(self, path: str) -> int:
        descriptor = self._descriptors.get(path)
        if descriptor is None:
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            self._descriptors[path] = descriptor
        self._descriptors.move_to_end(path)
        while len(self._descriptors) > MOST_OPEN:
            os.close(self._descriptors.popitem(last=False)[1])
        return descriptor

    def __exit__(self, *error: object) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
