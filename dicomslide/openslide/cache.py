"""`OpenSlideCache`: a cache of decoded tiles that several slides can share."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

from dicomslide.process.frame_cache import FrameCache

if TYPE_CHECKING:
    import numpy as np

__all__ = ["OpenSlideCache"]


class OpenSlideCache:
    """LRU cache of decoded tiles, bounded in bytes.

    :meth:`dicomslide.OpenSlide.set_cache` sets the cache of a slide. Other slides use the cache of
    the process, bounded by ``frame_cache_bytes`` (:func:`dicomslide.set_options`).

    Parameters
    ----------
    capacity : int
        Upper bound on the bytes of decoded tiles; 0 for no caching.

    Raises
    ------
    TypeError
        When `capacity` isn't an integer.
    ValueError
        When `capacity` is negative.

    """

    def __init__(self, capacity: int) -> None:
        self._capacity = operator.index(capacity)
        if self._capacity < 0:
            raise ValueError(f"capacity {capacity} is negative; expected a number of bytes")
        self.frames: FrameCache[np.ndarray] = FrameCache(
            lambda: self._capacity, "tiles of OpenSlide"
        )
        """The cached tiles."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._capacity!r})"
