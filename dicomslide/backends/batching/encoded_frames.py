"""Cache of frames as received from servers and buckets, in memory and optionally on disk."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from dicomslide.backends.batching.frame_database import FrameDatabase
from dicomslide.options import get_options
from dicomslide.process.frame_cache import FrameCache

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from dicomslide.pixels import PixelFormat

__all__ = ["MOST_FRAMES", "drop", "frames_ahead", "frames_per_request", "keep", "kept"]

MOST_FRAMES = 100
"""Upper bound on frames per request."""
MOST_BYTES = 32 * 2**20
"""Upper bound on bytes per request, computed for native frames."""

_memory: FrameCache[bytes] = FrameCache(
    lambda: get_options().encoded_cache_bytes, "received frames"
)


def frames_per_request(pixel_format: PixelFormat) -> int:
    """Return the upper bound on frames per request."""
    return max(1, min(MOST_FRAMES, MOST_BYTES // max(1, pixel_format.native_bytes)))


def frames_ahead(frame_bytes: int) -> int:
    """Return the upper bound on prefetched frames, which have to fit into the cache."""
    return get_options().encoded_cache_bytes // 4 // max(1, frame_bytes)


def kept(
    image: tuple[Hashable, ...], frames: Sequence[int], *, scope: str = "", on_disk: bool = True
) -> dict[int, bytes]:
    """Return the cached ones among frames of an image.

    Parameters
    ----------
    image : tuple
        Identity of the source, whose text is the same in every process.
    frames : sequence of int
        Zero-based frames.
    scope : str, optional
        Name of the user's connection to a server; in memory, frames of one scope aren't found by
        another.
    on_disk : bool, default: True
        Whether frames on disk are returned, which other users may have cached.

    """
    here = _here(scope, image)
    found = _memory.get(here, frames)
    missing = [frame for frame in frames if frame not in found]
    if missing and on_disk:
        database = _on_disk()
        there = {} if database is None else database.get(_name(image), missing)
        there = {frame: data for frame, data in there.items() if data}
        for frame, data in there.items():
            _memory.put(here, frame, data)
        found |= there
    return found


def keep(image: tuple[Hashable, ...], frames: Mapping[int, bytes], *, scope: str = "") -> None:
    """Cache frames of an image; the least recently used frames are dropped.

    Empty frames aren't cached: a server's temporary fault would become permanent.
    """
    frames = {frame: data for frame, data in frames.items() if data}
    for frame, data in frames.items():
        _memory.put(_here(scope, image), frame, data)
    if (database := _on_disk()) is not None:
        database.put(_name(image), frames, get_options().frame_folder_bytes)


def drop(image: tuple[Hashable, ...], frames: Sequence[int], *, scope: str = "") -> None:
    """Drop damaged frames from the cache in memory and on disk."""
    _memory.pop(_here(scope, image), frames)
    if (database := _on_disk()) is not None:
        database.drop(_name(image), frames)


def _here(scope: str, image: tuple[Hashable, ...]) -> tuple[Hashable, ...]:
    return (scope, *image)


def _on_disk() -> FrameDatabase | None:
    folder = get_options().frame_folder
    return FrameDatabase(folder) if folder else None


def _name(image: tuple[Hashable, ...]) -> str:
    return hashlib.sha256(repr(image).encode()).hexdigest()
