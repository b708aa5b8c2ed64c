"""Reads that coroutines ask for together: one round of requests, then the reads."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
from typing import TYPE_CHECKING, Any

from dicomslide.backends.base import kept_as, layout_of
from dicomslide.backends.batching import encoded_frames
from dicomslide.backends.part10.source import Part10Source
from dicomslide.process.parallel import start, together
from dicomslide.readers.stacked_reader import StackedReader

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

    from numpy.typing import NDArray

    from dicomslide.backends.base import FrameSource
    from dicomslide.readers.arrays import ReaderArray

__all__ = ["read_in_round"]

AT_ONCE = 16
"""Upper bound on requests, and on reads, that are under way at once."""
SHARE = 2
"""Frames that a round may fetch, in quarters of the cache of received frames."""

_here = threading.local()
"""The round of this thread's event loop that other reads may still join."""


async def read_in_round(array: ReaderArray, key: Sequence[Any]) -> NDArray[Any]:
    """Read what other coroutines of the event loop ask for as well, in another thread.

    Frames of all reads that the loop's next step finds are requested together: each once, and
    neighbours in one request. The event loop goes on meanwhile.

    Parameters
    ----------
    array : ReaderArray
        What is read from.
    key : sequence
        A key for each dim: see :meth:`StackedReader.read`.

    """
    loop = asyncio.get_running_loop()
    current: _Round | None = getattr(_here, "round", None)
    if current is None or current.loop is not loop:
        current = _here.round = _Round(loop)
        loop.call_soon(current.begin)
    read = _Read(array, key, loop.create_future())
    current.reads.append(read)
    return await read.future


@dataclasses.dataclass(frozen=True, slots=True)
class _Read:
    array: ReaderArray
    key: Sequence[Any]
    future: asyncio.Future[Any]


class _Round:
    """Reads that are made together."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.reads: list[_Read] = []

    def begin(self) -> None:
        """Let no other read join, and read in another thread."""
        _here.round = None
        if start(self._run, "dicomslide-round") is None:
            self._run()

    def _run(self) -> None:
        if len(self.reads) > 1:
            together(_fetch, list(_batches(self.reads)), AT_ONCE)
        together(self._read, self.reads, AT_ONCE)

    def _read(self, read: _Read) -> None:
        if read.future.cancelled():
            return
        result, failure = None, None
        try:
            result = read.array.read(read.key)
        except BaseException as error:
            failure = error

        def finish() -> None:
            if read.future.done():  # cancelled
                return
            if failure is None:
                read.future.set_result(result)
            else:
                read.future.set_exception(failure)

        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self.loop.call_soon_threadsafe(finish)


def _batches(reads: Sequence[_Read]) -> Iterator[tuple[FrameSource, list[int]]]:
    """Yield the frames of each request, as far as they fit into the cache of received frames."""
    wanted: dict[Hashable, tuple[FrameSource, set[int]]] = {}
    for read in reads:
        reader = read.array.reader
        with _left_to_reads():
            if isinstance(reader, StackedReader):
                for source, frames in reader.frames_of(read.key):
                    wanted.setdefault(kept_as(source), (source, set()))[1].update(frames)
    room = float(SHARE)
    for source, found in wanted.values():
        with _left_to_reads():
            most = source.frames_per_request
            if most is None or not getattr(source, "keeps_frames", False):
                continue
            fit = encoded_frames.frames_ahead(_frame_bytes(source))
            frames = sorted(found)[: int(room * fit)]
            room -= len(frames) / max(1, fit)
            for first in range(0, len(frames), most):
                yield source, frames[first : first + most]


def _fetch(batch: tuple[FrameSource, list[int]]) -> None:
    source, frames = batch
    with _left_to_reads():
        source.read_frames(frames)


def _left_to_reads() -> contextlib.AbstractContextManager[None]:
    """Suppress errors, which the read that needs a header or a frame raises."""
    return contextlib.suppress(Exception)


def _frame_bytes(source: FrameSource) -> int:
    """Return the approximate size of a received frame."""
    layout = layout_of(source)
    if isinstance(source, Part10Source):
        return source.size // max(1, layout.num_frames)
    return layout.pixel_format.native_bytes
