"""Decoded frames of an image: from the cache, or fetched in batches and decoded by threads."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dicomslide.backends.base import drop_frame, kept_as, may_read_ahead, may_read_anew, read_anew
from dicomslide.errors import FrameError, FrameReadError, FrameWarning, MetadataError
from dicomslide.options import get_options
from dicomslide.pixels import DECODERS, decode_frame, scratch_memory, transfer_syntax_of
from dicomslide.process.frame_cache import FrameCache
from dicomslide.process.parallel import is_exiting
from dicomslide.process.registry import Registry
from dicomslide.process.warn import warn
from dicomslide.readers.pools import Shared, helped, submit_request
from dicomslide.readers.read_ahead import AHEAD

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
    from concurrent.futures import Future
    from typing import TypeAlias

    from numpy.typing import NDArray

    from dicomslide.backends.base import FrameSource
    from dicomslide.header.layout import ImageLayout
    from dicomslide.pixels.pixel_format import Buffer

    Pixels: TypeAlias = NDArray[Any]
    Wanted: TypeAlias = tuple[int, int]
    """Position in the list of requested frames, and the frame."""
    Batch: TypeAlias = tuple[list[Wanted], Sequence[Buffer | None] | None]
    """Frames that a thread processes together, and their bytes if already received."""

__all__ = ["FrameReader", "OnError"]

OnError = Literal["raise", "fill"]

BATCH = 16
"""Upper bound on the frames that a thread fetches or decodes together."""
PARTS = 4
"""Batches per thread of a short read, so that all threads finish at about the same time."""
REQUESTS = 4
"""Upper bound on the requests of one read that are under way, or received but not decoded."""

_frames: FrameCache[np.ndarray] = FrameCache(
    lambda: get_options().frame_cache_bytes, "decoded frames"
)
_empty: Registry[Hashable, None] = Registry(1024, "warnings of empty frames")
"""Images whose frames without bytes have been reported in a warning."""


class FrameReader:
    """Reader of the decoded frames of an image, in the colours as stored.

    Parameters
    ----------
    source : FrameSource
        Source of the encoded frames.
    layout : ImageLayout
        Layout of the image.
    max_frame_cache_size : int or None
        Upper bound on the decoded frames of the image that the process caches. With None,
        frames are bounded by ``frame_cache_bytes`` only.
    on_error : {"raise", "fill"}
        Whether a bad frame raises, or gives a warning and None as its pixels.
    reduction : int, default: 0
        Number of times that rows and columns of frames are halved: see
        :func:`dicomslide.pixels.decode_frame`.
    cache : FrameCache, optional
        Cache of decoded frames, used up to its own bound; by default that of the process.

    """

    def __init__(
        self,
        source: FrameSource,
        layout: ImageLayout,
        *,
        max_frame_cache_size: int | None,
        on_error: OnError,
        reduction: int = 0,
        cache: FrameCache[np.ndarray] | None = None,
    ) -> None:
        self._source = source
        self._stored_format = layout.pixel_format
        self._reduction = reduction
        layout = layout.halved(reduction) if reduction else layout
        self._cache = _frames if cache is None else cache
        self._layout = layout
        self._tile_bytes = math.prod(layout.pixel_format.shape) * layout.pixel_format.dtype.itemsize
        decoder = DECODERS.get(layout.transfer_syntax_uid or "")
        self._caching = "maybe" if decoder is None else decoder.caching
        if max_frame_cache_size is None and cache is None and self._caching == "never":
            max_frame_cache_size = 0  # a given cache is to be used
        self._most = max_frame_cache_size
        self.batch = source.frames_per_request or BATCH
        """Preferred number of frames per request."""
        self._on_error = on_error

    def visit(
        self,
        frames: Sequence[int],
        use: Callable[[int, Pixels | None], None],
        *,
        threads: int | None = None,
        keep: bool = True,
    ) -> None:
        """Call ``use(i, pixels)`` for each frame, in several threads and in any order.

        Parameters
        ----------
        frames : sequence of int
            Zero-based frames, −1 for an absent one.
        use : callable
            Receives the index into `frames` and pixels of shape (rows, columns, samples), which it
            copies, and neither changes nor stores: they may be shared, or overwritten by the next
            frame. A codestream may hold fewer rows and columns than the header declares. None
            stands for background.
        threads : int, optional
            Number of threads that fetch and decode, including the calling one; by default the
            option ``num_threads``.
        keep : bool, default: True
            Whether decoded frames may be cached for later reads.

        Raises
        ------
        FrameError
            When a frame can't be read or decoded, unless bad frames are to be filled.

        """
        plan = self._plan(frames, use, threads, keep)
        if plan is None:
            return
        with helped(self._run, plan, calls=plan.helpers, pool_size=plan.pool_size):
            self._run(plan)
        for at, frame in plan.late:
            use(at, self._late(plan.image, frame, is_kept=frame in plan.kept))

    def steps_ahead(self, frames: int) -> int:
        """Return the number of boxes, each of so many frames, that are worth decoding ahead.

        It is 0 with a single thread, for sources other than files, and where decoded frames aren't
        cached.
        """
        is_off = get_options().num_threads == 1 or not self._cache.max_bytes
        if is_off or self._most is not None or not may_read_ahead(self._source):
            return 0
        return AHEAD.steps(frames, self._tile_bytes)

    def look_ahead(self, frames: Sequence[int]) -> None:
        """Have frames decoded by other threads, in the order in which they will be asked for.

        Parameters
        ----------
        frames : sequence of int
            Zero-based frames, −1 for an absent one. If it is empty, those of earlier calls won't be
            asked for either.

        """
        image = self._kept_as
        if not frames:
            AHEAD.leave_out(image)
            return
        held = self._cache.get(image, frames, in_passing=True)
        missing = [frame for frame in frames if frame >= 0 and frame not in held]
        AHEAD.add(image, missing, self._tile_bytes, self._unasked)

    def _unasked(self, frame: int) -> Pixels | None:
        """Return the pixels of a frame; None where there is something to say about it."""
        (buffer,) = self._source.read_frames([frame])
        if not buffer:
            return None
        syntax = self._layout.transfer_syntax_uid
        tile = decode_frame(buffer, self._stored_format, syntax, None, self._reduction)
        return tile if tile.shape == self._layout.pixel_format.shape else None

    def _late(self, image: Hashable, frame: int, *, is_kept: bool) -> Pixels | None:
        """Return the pixels of a frame that another thread decodes."""
        tile, buffer = AHEAD.wait(image, frame), None
        if tile is None:  # another read has taken it, or there was an error, which isn't known here
            tile = self._cache.get(image, (frame,), in_passing=True).get(frame)
        if tile is None:
            (buffer,) = self._fetch([frame])
            tile = self._decode(frame, buffer)
        if is_kept and tile is not None and self._is_worth_keeping(buffer, tile):
            self._cache.put(image, frame, tile, self._most)
        return tile

    @property
    def _kept_as(self) -> Hashable:
        """Key of the decoded frames in the cache, which depends on their size."""
        image = kept_as(self._source)
        return (image, self._reduction) if self._reduction else image

    def _plan(
        self,
        frames: Sequence[int],
        use: Callable[[int, Pixels | None], None],
        threads: int | None,
        keep: bool,
    ) -> _Plan | None:
        """Call `use` for absent and cached frames; return a plan of the others, None if none."""
        image = self._kept_as
        keep = keep and (self._most is not None or not self._is_stream(len(frames)))
        held = self._cache.get(image, frames, in_passing=not keep)
        new = [frame for frame in frames if frame >= 0 and frame not in held]
        kept = self._to_keep(image, new) if keep and new else ()
        ready, running = AHEAD.take(image, new) if new else ({}, ())
        for frame, tile in ready.items():
            if frame in kept:
                self._cache.put(image, frame, tile, self._most)
        held |= ready
        missing: list[Wanted] = []
        late: list[Wanted] = []
        for at, frame in enumerate(frames):
            if frame < 0 or frame in held:
                use(at, held.get(frame))
            else:
                (late if frame in running else missing).append((at, frame))
        if not (missing or late):
            return None
        threads = get_options().num_threads if threads is None else threads
        # threads that decode ahead for longer than this read takes would help too late
        helpers = 0 if AHEAD.is_busy_for(len(missing)) else max(0, min(threads, len(missing)) - 1)
        step = -(-len(missing) // (PARTS * (helpers + 1) if helpers else 1))
        return _Plan(
            image=image,
            batches=Shared(self._batches(missing, min(BATCH, step or 1))),
            late=late,
            kept=kept,
            use=use,
            helpers=helpers,
            pool_size=threads - 1,
        )

    def _run(self, plan: _Plan) -> None:
        """Take batches until none is left; fetch and decode each, and call `use` for its frames."""
        scratch = scratch_memory(self._stored_format)
        kept = plan.kept
        try:
            while (batch := plan.batches.take()) is not None:
                wanted, buffers = batch
                if buffers is None:
                    buffers = self._fetch([frame for _, frame in wanted])
                for (at, frame), buffer in zip(wanted, buffers, strict=True):
                    tile = self._decode(frame, buffer, None if frame in kept else scratch)
                    if frame in kept and tile is not None and self._is_worth_keeping(buffer, tile):
                        self._cache.put(plan.image, frame, tile, self._most)
                    plan.use(at, tile)
        except BaseException:  # so that the other threads stop
            plan.batches.close()
            raise

    def _batches(self, frames: list[Wanted], step: int) -> Iterator[Batch]:
        """Yield batches: frames to be fetched, or frames with their received bytes.

        With a source that answers requests, each request asks for `frames_per_request` frames, and
        the next requests are under way while received frames are decoded.
        """
        size = self._source.frames_per_request
        if size is None:
            yield from ((frames[i : i + step], None) for i in range(0, len(frames), step))
            return
        requests = [frames[i : i + size] for i in range(0, len(frames), size)]
        for wanted, buffers in zip(requests, self._received(requests), strict=True):
            for i in range(0, len(wanted), step):
                yield wanted[i : i + step], buffers[i : i + step]

    def _received(self, requests: list[list[Wanted]]) -> Iterator[Sequence[Buffer | None]]:
        """Yield the reply to each request, in order, while the next ones are under way."""
        frames = [[frame for _, frame in wanted] for wanted in requests]
        if len(frames) == 1:
            yield from map(self._fetch, frames)
            return
        under_way: deque[tuple[list[int], Future[Sequence[Buffer | None]] | None]] = deque()

        def next_answer() -> Sequence[Buffer | None]:
            wanted, answer = under_way.popleft()
            try:
                if answer is not None:
                    return answer.result()
            except Exception:
                if not is_exiting():
                    raise
            return self._fetch(wanted)  # in the calling thread

        try:
            for wanted in frames:
                under_way.append((wanted, submit_request(self._fetch, wanted)))
                if len(under_way) == REQUESTS:
                    yield next_answer()
            while under_way:
                yield next_answer()
        finally:
            for _, answer in under_way:
                if answer is not None:
                    answer.cancel()

    def stream(self, frames: Sequence[int]) -> Iterator[Pixels | None]:
        """Yield the pixels of frames in order, as arrays that the caller may change.

        Parameters
        ----------
        frames : sequence of int
            Zero-based frames, −1 for an absent one.

        Yields
        ------
        numpy.ndarray or None
            See :meth:`visit`.

        """
        for start in range(0, len(frames), self.batch):
            batch = frames[start : start + self.batch]
            held = self._cache.get(self._kept_as, batch, in_passing=True)
            missing = [frame for frame in batch if frame >= 0 and frame not in held]
            buffers = iter(self._fetch(missing) if missing else ())
            for frame in batch:
                tile = held.get(frame)
                if frame >= 0 and tile is None:
                    tile = self._decode(frame, next(buffers))
                if tile is not None and (frame in held or not tile.flags.writeable):
                    tile = tile.copy()
                yield tile

    def single(self, frame: int, *, keep: bool = True) -> Pixels | None:
        """Return the pixels of one frame, as an array that the caller may change.

        Decoding into the returned memory avoids a copy, so that a frame is cached only when it is
        read for the second time.

        Parameters
        ----------
        frame : int
            Zero-based frame, −1 for an absent one.
        keep : bool, default: True
            Whether it may be kept for the next read.

        Returns
        -------
        numpy.ndarray or None
            See :meth:`visit`.

        """
        if frame < 0:
            return None
        image = self._kept_as
        tile = self._cache.get(image, (frame,), in_passing=not keep).get(frame)
        if tile is not None:
            return tile.copy()
        tile, buffer = AHEAD.wait(image, frame), None
        if tile is None:
            (buffer,) = self._fetch([frame])
            tile = self._decode(frame, buffer)
        if tile is None:
            return None
        if keep and self._to_keep(image, [frame], at_once=False):
            if self._is_worth_keeping(buffer, tile):
                self._cache.put(image, frame, tile, self._most)
            return tile.copy()
        return tile if tile.flags.writeable else tile.copy()

    def _is_stream(self, frames: int) -> bool:
        """Whether so many frames, read at once, would evict much of the cache."""
        limit = self._cache.max_bytes
        return frames * self._tile_bytes > (limit // 4 if self._cache is _frames else limit)

    def _to_keep(
        self, image: Hashable, frames: list[int], *, at_once: bool = True
    ) -> Collection[int]:
        """Return the frames of one read that are worth caching."""
        most = self._most
        if most is not None:
            return set(frames[-most:]) if most else ()
        wanted = set(frames)
        known = self._cache.worth_caching(image, wanted, self._tile_bytes, at_once=at_once)
        return wanted if self._caching == "always" else known

    def _is_worth_keeping(self, buffer: Buffer | None, tile: Pixels) -> bool:
        """Whether a decoded frame is to be cached.

        Where the transfer syntax is known from the frame's bytes only, the frame is cached if it
        takes long to decode. A frame that a server may have cropped is not cached, so that it is
        read again.
        """
        layout = self._layout
        if tile.shape != layout.pixel_format.shape and may_read_anew(self._source):
            return False
        if buffer is None or self._most is not None or layout.transfer_syntax_uid is not None:
            return True
        try:
            return DECODERS[transfer_syntax_of(buffer, self._stored_format)].caching != "never"
        except FrameError:  # the bytes are bad; the frame was read again
            return True

    def _fetch(self, frames: list[int]) -> Sequence[Buffer | None]:
        """Read frames; with ``on_error="fill"``, one by one after an error, None for bad ones."""
        try:
            buffers = self._source.read_frames(frames)
        except (FrameReadError, MetadataError) as error:
            if self._on_error == "raise":
                raise
            if len(frames) > 1:
                return [buffer for frame in frames for buffer in self._fetch([frame])]
            self._warn(error)
            return [None]
        if len(buffers) != len(frames):
            raise FrameReadError(
                f"{len(buffers)} frames came for {len(frames)} that were asked for",
                self._source.name,
            )
        return buffers

    def _decode(
        self,
        frame: int,
        buffer: Buffer | None,
        scratch: Pixels | None = None,
        *,
        is_anew: bool = False,
    ) -> Pixels | None:
        """Return the pixels of a frame; a bad one that came over a network is read again once."""
        if buffer is None:
            return None
        if not buffer:
            reason = "it has no bytes; others of the image may have none either"
            error = FrameReadError(reason, self._source.name, frame)
            _empty.get(kept_as(self._source), lambda: self._warn(error))
            return None
        layout = self._layout
        try:
            tile = decode_frame(
                buffer, self._stored_format, layout.transfer_syntax_uid, scratch, self._reduction
            )
        except FrameError as error:
            drop_frame(self._source, frame)  # no other read is to use it
            anew = None if is_anew else self._read_anew(frame)
            if anew is not None:
                return self._decode(frame, anew, scratch, is_anew=True)
            located = error.located(self._source.name, frame)
            if self._on_error == "raise":
                raise located from error
            self._warn(located)
            return None
        if tile.shape != layout.pixel_format.shape and (lost := self._lost(frame, tile.shape[:2])):
            drop_frame(self._source, frame)  # as stored, or damaged by the server
            anew = None if is_anew else self._read_anew(frame)
            if anew is not None:
                return self._decode(frame, anew, scratch, is_anew=True)
            self._warn(lost)
        return tile

    def _read_anew(self, frame: int) -> Buffer | None:
        """Read a frame again; None for a local source, or after a failure that doesn't raise."""
        try:
            return read_anew(self._source, frame)
        except (FrameReadError, MetadataError):
            if self._on_error == "raise":
                raise
            return None

    def _warn(self, error: Exception) -> None:
        warn(f"filled with background: {error}", FrameWarning)

    def _lost(self, frame: int, shape: tuple[int, ...]) -> FrameReadError | None:
        """Return an error if a frame lacks pixels within the matrix, else None."""
        grid = self._layout.grid
        (tile,) = self._layout.frames.locate(np.array([frame]))[2].tolist()
        row, column = grid.position(tile)
        needed = (
            min(grid.tile_rows, grid.rows - row * grid.tile_rows),
            min(grid.tile_columns, grid.columns - column * grid.tile_columns),
        )
        if shape[0] < needed[0] or shape[1] < needed[1]:
            reason = f"its codestream holds {shape[0]} × {shape[1]} pixels of {needed}"
            return FrameReadError(reason, self._source.name, frame)
        return None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """Plan of one read for the frames that aren't cached."""

    image: Hashable
    """Key of the image's frames in the cache."""
    batches: Shared[Batch]
    """Batches, each taken by one thread."""
    late: list[Wanted]
    """Frames that other threads are decoding."""
    kept: Collection[int]
    """Frames to be cached after decoding."""
    use: Callable[[int, Pixels | None], None]
    """Receives the pixels: see :meth:`FrameReader.visit`."""
    helpers: int
    """Number of threads that decode in addition to the calling one."""
    pool_size: int
    """Number of threads of the pool."""
