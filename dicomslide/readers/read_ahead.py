"""Frames that other threads decode before they are asked for."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.options import get_options
from dicomslide.process.budget import has_part
from dicomslide.process.frame_cache import FrameCache
from dicomslide.process.parallel import is_exiting
from dicomslide.readers.pools import submit_decoding

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Sequence
    from typing import TypeAlias

    from numpy.typing import NDArray

    Pixels: TypeAlias = NDArray[Any]
    Key: TypeAlias = tuple[Hashable, int]
    """Key of an image in the cache, and a frame."""
    Decode: TypeAlias = Callable[[int], Pixels | None]

__all__ = ["AHEAD"]

SHARE = 8
"""Part of ``frame_cache_bytes`` that frames decoded ahead may take in addition, as a divisor."""
MOST_FRAMES = 32
"""Approximate number of frames of the boxes that are foreseen."""
MOST_STEPS = 8
"""Upper bound on the boxes that are foreseen."""
RECENT = 64
"""Number of calls for which an image has a share of the room."""


class _Ahead(FrameCache[np.ndarray]):
    """Frames that were decoded ahead, and those that threads of the decoding pool are to decode.

    Each is taken out by the read that asks for it.
    """

    def _start(self) -> None:
        super()._start()
        self._lock = threading.RLock()  # finalizers may read slides
        self._pending: OrderedDict[Key, Decode] = OrderedDict()
        self._running: dict[Key, tuple[threading.Event, int]] = {}
        """Event that is set at the end, and the thread, by frame."""
        self._threads = 0
        """Threads of the pool that decode ahead, or are about to."""
        self._cleared = 0
        """Number of calls of :meth:`clear`: what was under way is not kept after one."""
        self._turn = 0
        self._recent: OrderedDict[Hashable, int] = OrderedDict()
        """Images of recent calls of :meth:`add`, each with its last."""

    def steps(self, frames: int, nbytes: int) -> int:
        """Return how many boxes of a number of frames are to be foreseen.

        Parameters
        ----------
        frames : int
            Frames that a box touches.
        nbytes : int
            Bytes of a decoded frame.

        """
        fits = 2 * frames * nbytes <= self.max_bytes
        return min(MOST_STEPS, max(1, MOST_FRAMES // frames)) if fits else 0

    def add(self, image: Hashable, frames: Sequence[int], nbytes: int, decode: Decode) -> None:
        """Have frames decoded by other threads, as far as there is room for this image.

        Images that are read in turn share the room: none is to displace what others wait for.

        Parameters
        ----------
        image : hashable
            Key of the image in the cache.
        frames : sequence of int
            Frames that aren't cached, in the order in which they will be asked for.
        nbytes : int
            Bytes of a decoded frame.
        decode : callable
            Returns the pixels of a frame, in memory of their own. None, or an error, leaves the
            frame to whoever asks for it.

        """
        most = get_options().num_threads - 1
        with self._lock:
            self._turn += 1
            self._recent[image] = self._turn
            self._recent.move_to_end(image)
            while next(iter(self._recent.values())) < self._turn - RECENT:
                self._recent.popitem(last=False)
            room = self.max_bytes // (2 * nbytes * len(self._recent))
            known = self._pending.keys() | self._running.keys()
            ready = self.get(image, frames, in_passing=True)
            new = [key for f in frames if f not in ready and (key := (image, f)) not in known]
            self._pending.update(dict.fromkeys(new[:room], decode))
            calls = max(0, min(most - self._threads, len(self._pending)))
            self._threads += calls
        begun: list[Any] = []
        try:
            if calls:
                begun = submit_decoding(self._work, calls=calls, pool_size=most)
        finally:
            with self._lock:
                self._threads -= calls - len(begun)

    def leave_out(self, image: Hashable) -> None:
        """Leave out the frames of an image that no thread has begun."""
        self._leave_out(lambda key: key[0] == image)

    def _leave_out(self, is_meant: Callable[[Key], bool]) -> None:
        if self._pending:
            with self._lock:
                for key in list(filter(is_meant, list(self._pending))):
                    self._pending.pop(key, None)

    def forget(self, part: str) -> None:
        """Forget the frames of images whose keys have a text among their parts."""
        self._leave_out(lambda key: has_part(key, part))
        super().forget(part)

    def clear(self) -> None:
        """Forget all frames, and which ones are to be decoded."""
        with self._lock:
            self._pending.clear()
            self._cleared += 1
        super().clear()

    def is_busy_for(self, frames: int) -> bool:
        """Whether threads of the pool decode ahead for longer than so many frames take."""
        return self._threads > 0 and frames * self._threads <= len(self._pending)

    def take(
        self, image: Hashable, frames: Sequence[int]
    ) -> tuple[dict[int, Pixels], Collection[int]]:
        """Return the pixels of those frames that are decoded, and the frames that are just now.

        Frames that no thread has begun are left to the caller.
        """
        running: set[int] = set()
        if self._pending or self._running:
            with self._lock:
                for frame in frames:
                    if self._done((image, frame)) is not None:
                        running.add(frame)
                    else:
                        self._pending.pop((image, frame), None)
        return self.pop(image, [f for f in frames if f not in running]), running

    def wait(self, image: Hashable, frame: int) -> Pixels | None:
        """Return the pixels of a frame that is decoded, or just now: meanwhile, decode others.

        None if no thread has begun it, or where that failed.
        """
        if not (self._pending or self._running or self.nbytes):
            return None
        with self._lock:
            self._pending.pop((image, frame), None)
            done = self._done((image, frame))
        if done is not None:
            while not done.is_set() and self._decode_next():
                pass
            done.wait()
        return self.pop(image, [frame]).get(frame)

    def _done(self, key: Key) -> threading.Event | None:
        """Return the event of a frame that another thread is decoding; None if none is.

        A finalizer that reads may run in the thread that decodes.
        """
        done, thread = self._running.get(key, (None, 0))
        return None if thread == threading.get_ident() else done

    def _work(self) -> None:
        while self._decode_next(ends=True):
            pass

    def _decode_next(self, *, ends: bool = False) -> bool:
        """Decode a frame; False if there is none: the thread ends, if it is one of the pool."""
        done, key = threading.Event(), None
        try:  # before anything is begun: Ctrl-C may come anywhere
            with self._lock:
                if not self._pending or is_exiting():
                    self._threads = max(0, self._threads - ends)
                    return False
                key, decode = next(iter(self._pending.items()))
                self._running[key] = done, threading.get_ident()
                del self._pending[key]  # after: a look at both without the lock sees it
                cleared = self._cleared
            image, frame = key
            with contextlib.suppress(Exception):  # whoever asks for the frame gets the error
                if (tile := decode(frame)) is not None and cleared == self._cleared:
                    self.put(image, frame, tile)
        finally:
            done.set()
            if key is not None:
                with self._lock:
                    self._running.pop(key, None)
        return True


AHEAD = _Ahead(lambda: get_options().frame_cache_bytes // SHARE, "frames decoded ahead")
