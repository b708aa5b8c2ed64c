"""A cache of decoded tiles that several slides share, as openslide-python has one."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

from dicomslide.process.registry import FrameCache

if TYPE_CHECKING:
    import numpy as np

__all__ = ["OpenSlideCache"]


class OpenSlideCache:
    """Decoded tiles of the slides that it is given to, bounded in bytes.

    :meth:`dicomslide.OpenSlide.set_cache` gives it to a slide; the least recently used tile goes
    first. A slide without one keeps tiles in the cache of the process, of ``frame_cache_bytes``
    (:func:`dicomslide.set_options`).

    Parameters
    ----------
    capacity : int
        Bytes of decoded tiles that it holds; 0 for none.

    Raises
    ------
    TypeError
        When `capacity` is no integer.
    ValueError
        When it is negative.

    """

    def __init__(self, capacity: int) -> None:
        self._capacity = operator.index(capacity)
        if self._capacity < 0:
            raise ValueError(f"capacity {capacity} is negative")
        self.frames: FrameCache[np.ndarray] = FrameCache(
            lambda: self._capacity, "tiles of OpenSlide"
        )
        """The tiles that it holds."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._capacity!r})"
