"""Cached frames, decoded or as received, and which of them are worth caching."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, TypeVar

from dicomslide.process.budget import BUDGET, Member, has_part, is_forgotten

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Iterable

    import numpy as np

__all__ = ["FrameCache"]

F = TypeVar("F", "np.ndarray", bytes)

MOST_TOUCHED = 16_384
"""Upper bound on the frames that a cache remembers to have been wanted."""
WORTHWHILE = 1 / 8
"""Share of frames that are wanted again from which on caching new ones pays: it costs about a tenth
of decoding a frame."""
RECENT = 1_024
"""Number of wanted frames by which that share is judged."""
DOUBT = 64
"""Number of frames, wanted once, that it begins with."""


class FrameCache(Member[tuple["Hashable", int], F]):
    """LRU cache of frames, decoded or as received, bounded in bytes and in frames per image.

    Parameters
    ----------
    max_bytes : callable
        Returns the current bound in bytes, which applies in addition to the budget.
    kind : str
        Kind of the frames, in the plural.

    """

    def __init__(self, max_bytes: Callable[[], int], kind: str) -> None:
        self._max_bytes = max_bytes
        super().__init__(kind)

    def _start(self) -> None:
        super()._start()
        self._images: dict[Hashable, OrderedDict[int, None]] = {}
        self._touched: OrderedDict[tuple[Hashable, int], None] = OrderedDict()
        """Frames that were wanted while they weren't cached, in the order of the last time."""
        self._wanted: float = DOUBT
        self._wanted_again = 0.0
        """Numbers of frames, of which early ones count less."""

    @property
    def max_bytes(self) -> int:
        """Upper bound in bytes at this moment."""
        return min(self._max_bytes(), BUDGET.limit())

    def get(
        self, image: Hashable, frames: Iterable[int], *, in_passing: bool = False
    ) -> dict[int, F]:
        """Return the cached ones among frames of an image.

        With `in_passing`, this says nothing about whether caching pays.
        """
        found: dict[int, F] = {}
        with BUDGET.lock:
            order = self._images.get(image)
            if order is None:
                return found
            now = BUDGET.clock()
            for frame in frames:
                if frame in order:
                    entry = self._entries[image, frame]
                    self._use((image, frame), entry, now)
                    order.move_to_end(frame)
                    found[frame] = entry.value
            if not in_passing:
                self._count(len(found), len(found))
        return found

    def worth_caching(
        self, image: Hashable, frames: Collection[int], nbytes: int, *, at_once: bool = True
    ) -> Collection[int]:
        """Return those frames that should be cached when they have been decoded.

        They are all, while there is room, or while enough of what is wanted has been wanted before;
        otherwise those that were wanted before, as far back as a cache of this size would reach. A
        pass over new frames leaves the cached ones where they are.

        Parameters
        ----------
        image : hashable
            Key of the image.
        frames : collection of int
            Zero-based frames that aren't cached.
        nbytes : int
            Bytes of a decoded frame.
        at_once : bool, default: True
            Whether room is a reason: of regions, which are looked at again and have neighbours that
            share frames; not of single tiles, which passes take one after the other.

        """
        limit = self.max_bytes
        if nbytes > limit:
            return ()
        with BUDGET.lock:
            known = {frame for frame in frames if (image, frame) in self._touched}
            self._count(len(frames), len(known))
            most = min(limit // nbytes, MOST_TOUCHED)
            for frame in frames:
                self._touched[image, frame] = None
                self._touched.move_to_end((image, frame))
            while len(self._touched) > most:
                self._touched.popitem(last=False)
            if self._wanted_again > self._wanted * WORTHWHILE:
                return frames
            has_room = self.nbytes + len(frames) * nbytes <= limit
            return frames if at_once and has_room else known

    def _count(self, wanted: int, wanted_again: int) -> None:
        self._wanted += wanted
        self._wanted_again += wanted_again
        if self._wanted > RECENT:
            self._wanted /= 2
            self._wanted_again /= 2

    def put(self, image: Hashable, frame: int, data: F, max_frames: int | None = None) -> None:
        """Cache a frame, unless it is cached already.

        Parameters
        ----------
        image : hashable
            Key of the image.
        frame : int
            Zero-based frame.
        data : numpy.ndarray or bytes
            The frame; an array that is a view, or isn't writeable, is copied.
        max_frames : int, optional
            Upper bound on cached frames of the image.

        """
        nbytes = _nbytes(data)
        if max_frames == 0 or nbytes > self.max_bytes:
            return
        if not isinstance(data, bytes):
            base = data.base
            is_view = base is not None and getattr(base, "nbytes", -1) != nbytes
            if is_view or not data.flags.writeable:  # views of received bytes, maybe of many frames
                data = data.copy()  # a view would keep more bytes alive than are counted
        dropped: list[Any] = []
        with BUDGET.lock:
            if (image, frame) in self._entries or is_forgotten(image):
                return
            self._add((image, frame), data, nbytes)
            order = self._images.setdefault(image, OrderedDict())
            order[frame] = None
            while max_frames is not None and len(order) > max_frames:
                dropped.append(self._drop((image, next(iter(order)))))
            self._trim(dropped)
            BUDGET.make_room(dropped)

    def _after_drop(self, key: tuple[Hashable, int]) -> None:
        image, frame = key
        frames = self._images[image]
        del frames[frame]
        if not frames:
            del self._images[image]

    def _trim(self, dropped: list[Any]) -> None:
        limit = self._max_bytes()  # the option may have changed
        while self.nbytes > limit:
            dropped.append(self._drop_oldest())

    def forget(self, part: str) -> None:
        """Forget the frames of images whose keys have a text among their parts."""
        with BUDGET.lock:
            for key in [key for key in self._touched if has_part(key, part)]:
                del self._touched[key]
        super().forget(part)

    def clear(self) -> None:
        """Forget all frames, and which ones were wanted."""
        with BUDGET.lock:
            self._touched.clear()
            self._wanted, self._wanted_again = DOUBT, 0.0
        super().clear()

    def pop(self, image: Hashable, frames: Iterable[int]) -> dict[int, F]:
        """Return the cached ones among frames of an image, and forget them."""
        with BUDGET.lock:
            return {
                frame: self._drop((image, frame))
                for frame in dict.fromkeys(frames)
                if (image, frame) in self._entries
            }


def _nbytes(data: np.ndarray | bytes) -> int:
    return len(data) if isinstance(data, bytes) else data.nbytes
