"""Decoded frames of an image: kept, or fetched in batches and decoded by several threads."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections import deque
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dicomslide.backends.base import drop_frame, kept_as, may_read_anew, read_anew
from dicomslide.errors import FrameError, FrameReadError, FrameWarning, MetadataError
from dicomslide.options import get_options
from dicomslide.pixels import DECODERS, decode_frame, scratch_memory, transfer_syntax_of
from dicomslide.process.parallel import is_exiting
from dicomslide.process.registry import FrameCache, Registry
from dicomslide.process.warn import warn
from dicomslide.readers.pools import Shared, collect, submit_decoding, submit_request

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
    """A place in what is read, and the frame that belongs there."""
    Batch: TypeAlias = tuple[list[Wanted], Sequence[Buffer | None] | None]
    """What a thread takes at once, and its bytes if they have come already."""

__all__ = ["FrameReader", "OnError"]

OnError = Literal["raise", "fill"]

BATCH = 16
"""Most frames that a thread fetches or decodes at once."""
PARTS = 4
"""Batches of each thread of a short read: so that none waits long for the others."""
REQUESTS = 4
"""Requests that one read has under way, or received and not yet decoded."""

_frames: FrameCache[np.ndarray] = FrameCache(
    lambda: get_options().frame_cache_bytes, "decoded frames"
)
_empty: Registry[Hashable, None] = Registry(1024, "warnings of empty frames")
"""Images of which frames without bytes were warned of."""


class FrameReader:
    """Gives an image's frames as pixels, in the colours in which they are stored.

    Parameters
    ----------
    source : FrameSource
        Where the frames are.
    layout : ImageLayout
        What the header says of them.
    max_frame_cache_size : int or None
        Largest number of the image's decoded frames that the process keeps; None for as many as
        it may keep of all images, where they take long to decode, else none.
    on_error : {"raise", "fill"}
        Whether a bad frame raises, or is None with a warning.
    reduction : int, default: 0
        How often rows and columns of frames are halved: see :func:`dicomslide.pixels.decode_frame`.
    cache : FrameCache, optional
        Where decoded frames are kept, as many as it holds; that of the process if not given.

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
        if max_frame_cache_size is None and cache is not None:  # who gives one wants it used
            max_frame_cache_size = cache.max_bytes // self._tile_bytes
        if max_frame_cache_size is None and decoder is not None and decoder.is_quick:
            max_frame_cache_size = 0
        self._most = max_frame_cache_size
        self.batch = source.frames_per_request or BATCH
        """Frames that are best asked for at once."""
        self.keeps_frames = max_frame_cache_size != 0
        self._on_error = on_error

    def visit(
        self,
        frames: Sequence[int],
        use: Callable[[int, Pixels | None], None],
        *,
        threads: int | None = None,
        keep: bool = True,
    ) -> None:
        """Call ``use(i, pixels)`` for each frame, from several threads and in any order.

        Parameters
        ----------
        frames : sequence of int
            Zero-based frames, −1 for an absent one.
        use : callable
            Gets the index into `frames`, and pixels of shape (rows, columns, samples), to be copied
            but neither written nor kept: others have them too, or the next frame will. A codestream
            may hold fewer rows and columns than the header declares. None stands for background.
        threads : int, optional
            Threads that fetch and decode, this one included; as many as the options say by
            default.
        keep : bool, default: True
            Whether frames may be kept for the next read.

        Raises
        ------
        FrameError
            When a frame can't be read or decoded, unless bad frames are to be filled.

        """
        plan = self._plan(frames, use, threads, keep)
        if plan is None:
            return
        helpers = submit_decoding(self._run, plan, calls=plan.helpers, pool_size=plan.pool_size)
        try:
            self._run(plan)
        except Exception:
            with contextlib.suppress(Exception):  # the first error is the one to be told
                collect(helpers)
            raise
        collect(helpers)  # a KeyboardInterrupt waits for nobody: they may wait for a server

    @property
    def _kept_as(self) -> Hashable:
        """By what decoded frames are known: those of another size are others."""
        image = kept_as(self._source)
        return (image, self._reduction) if self._reduction else image

    def _plan(
        self,
        frames: Sequence[int],
        use: Callable[[int, Pixels | None], None],
        threads: int | None,
        keep: bool,
    ) -> _Plan | None:
        """Hand out what is absent or kept; return how the rest is read, None if there is none."""
        image = self._kept_as
        held = self._cache.get(image, frames)
        missing = []
        for at, frame in enumerate(frames):
            tile = held.get(frame)
            if frame < 0 or tile is not None:
                use(at, tile)
            else:
                missing.append((at, frame))
        if not missing:
            return None
        threads = get_options().num_threads if threads is None else threads
        helpers = min(threads, len(missing)) - 1
        step = min(BATCH, -(-len(missing) // (PARTS * (helpers + 1) if helpers else 1)))
        return _Plan(
            image=image,
            batches=Shared(self._batches(missing, step)),
            kept=self._to_keep([frame for _, frame in missing]) if keep else (),
            use=use,
            helpers=helpers,
            pool_size=threads - 1,
        )

    def _run(self, plan: _Plan) -> None:
        """Fetch and decode batch by batch what nobody else has taken, and hand it out."""
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
        except BaseException:  # the other threads needn't go on
            plan.batches.close()
            raise

    def _batches(self, frames: list[Wanted], step: int) -> Iterator[Batch]:
        """Yield what a thread does at once: batches yet to be fetched, or parts of what arrives.

        A source that answers requests is asked for many frames by each, while what it has given
        is decoded.
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
        """Yield what each request gives, in their order, while the next ones are under way."""
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
            return self._fetch(wanted)  # by whoever is left

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
        """Yield the pixels of frames in their order, to be owned by who gets them.

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
            held = self._cache.get(self._kept_as, batch)
            missing = [frame for frame in batch if frame >= 0 and frame not in held]
            buffers = iter(self._fetch(missing) if missing else ())
            for frame in batch:
                tile = held.get(frame)
                if frame >= 0 and tile is None:
                    tile = self._decode(frame, next(buffers))
                if tile is not None and (frame in held or not tile.flags.writeable):
                    tile = tile.copy()
                yield tile

    def _to_keep(self, frames: list[int]) -> Collection[int]:
        """Return those frames of one read that it pays to keep: only such as would stay."""
        most = self._most
        if most is not None:
            return set(frames[-most:]) if most else ()
        is_stream = len(frames) * self._tile_bytes > self._cache.max_bytes // 4
        return () if is_stream else set(frames)  # a stream would push out all else

    def _is_worth_keeping(self, buffer: Buffer | None, tile: Pixels) -> bool:
        """Whether it takes long to decode: of frames of which only their own bytes tell how.

        One that may be cropped by a fault of a server's is read anew the next time.
        """
        layout = self._layout
        if tile.shape != layout.pixel_format.shape and may_read_anew(self._source):
            return False
        if buffer is None or self._most is not None or layout.transfer_syntax_uid is not None:
            return True
        try:
            return not DECODERS[transfer_syntax_of(buffer, self._stored_format)].is_quick
        except FrameError:  # it was read anew
            return True

    def _fetch(self, frames: list[int]) -> Sequence[Buffer | None]:
        """Read frames; with ``on_error="fill"``, one by one if it must be, None for a bad one."""
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
        """Return the pixels of a frame; one that came over a network may have to be read anew."""
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
            drop_frame(self._source, frame)  # nobody is to have it again
            anew = None if is_anew else self._read_anew(frame)
            if anew is not None:
                return self._decode(frame, anew, scratch, is_anew=True)
            located = error.located(self._source.name, frame)
            if self._on_error == "raise":
                raise located from error
            self._warn(located)
            return None
        if tile.shape != layout.pixel_format.shape and (lost := self._lost(frame, tile.shape[:2])):
            drop_frame(self._source, frame)  # a file's own, or what a server makes of it
            anew = None if is_anew else self._read_anew(frame)
            if anew is not None:
                return self._decode(frame, anew, scratch, is_anew=True)
            self._warn(lost)
        return tile

    def _read_anew(self, frame: int) -> Buffer | None:
        """Read a frame once more; None where that is of no use, or fails and isn't to raise."""
        try:
            return read_anew(self._source, frame)
        except (FrameReadError, MetadataError):
            if self._on_error == "raise":
                raise
            return None

    def _warn(self, error: Exception) -> None:
        warn(f"filled with background: {error}", FrameWarning)

    def _lost(self, frame: int, shape: tuple[int, ...]) -> FrameReadError | None:
        """Return what is wrong where a cropped frame doesn't reach to the edge of the matrix."""
        grid = self._layout.grid
        (tile,) = self._layout.frames.places(np.array([frame]))[2].tolist()
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
    """How one read gets the frames that aren't kept."""

    image: Hashable
    """By which the process keeps the image's frames."""
    batches: Shared[Batch]
    """What threads take, until nothing is left."""
    kept: Collection[int]
    """Frames to be kept once they are decoded."""
    use: Callable[[int, Pixels | None], None]
    """Gets the pixels: see :meth:`FrameReader.visit`."""
    helpers: int
    """Threads that help the one that reads."""
    pool_size: int
    """Threads of the pool from which they are."""
