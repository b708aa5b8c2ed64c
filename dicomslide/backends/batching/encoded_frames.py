"""Frames as they came from servers and buckets: kept in memory and, where wanted, on disk."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from dicomslide.backends.batching.frame_database import FrameDatabase
from dicomslide.options import get_options
from dicomslide.process.registry import FrameCache

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from dicomslide.pixels import PixelFormat

__all__ = ["MOST_FRAMES", "drop", "frames_ahead", "frames_per_request", "keep", "kept"]

MOST_FRAMES = 100
"""Frames a request: what a request costs is shared by many."""
MOST_BYTES = 32 * 2**20
"""Bytes a request, were the frames native."""

_memory: FrameCache[bytes] = FrameCache(
    lambda: get_options().encoded_cache_bytes, "received frames"
)


def frames_per_request(pixel_format: PixelFormat) -> int:
    """Return how many frames a request is to ask for, at most."""
    return max(1, min(MOST_FRAMES, MOST_BYTES // max(1, pixel_format.native_bytes)))


def frames_ahead(frame_bytes: int) -> int:
    """Return how many frames may be asked for before they are wanted: they have to be kept."""
    return get_options().encoded_cache_bytes // 4 // max(1, frame_bytes)


def kept(
    image: tuple[Hashable, ...], frames: Sequence[int], *, scope: str = "", on_disk: bool = True
) -> dict[int, bytes]:
    """Return those of an image's frames that are kept.

    Parameters
    ----------
    image : tuple
        Identity of the source, whose text is the same in every process.
    frames : sequence of int
        Zero-based frames.
    scope : str, optional
        Who reads, where not all may see the same: in memory, each finds what it has put there.
    on_disk : bool, default: True
        Whether who reads may see those on disk, which others may have put there.

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
    """Keep frames of an image, in the place of others that were used less recently.

    None that is empty: to ask for it again costs little, and to be wrong for good much.
    """
    frames = {frame: data for frame, data in frames.items() if data}
    for frame, data in frames.items():
        _memory.put(_here(scope, image), frame, data)
    if (database := _on_disk()) is not None:
        database.put(_name(image), frames, get_options().frame_folder_bytes)


def drop(image: tuple[Hashable, ...], frames: Sequence[int], *, scope: str = "") -> None:
    """Drop frames that turned out to be damaged, in memory and on disk."""
    _memory.discard(_here(scope, image), frames)
    if (database := _on_disk()) is not None:
        database.drop(_name(image), frames)


def _here(scope: str, image: tuple[Hashable, ...]) -> tuple[Hashable, ...]:
    return (scope, *image)


def _on_disk() -> FrameDatabase | None:
    folder = get_options().frame_folder
    return FrameDatabase(folder) if folder else None


def _name(image: tuple[Hashable, ...]) -> str:
    return hashlib.sha256(repr(image).encode()).hexdigest()
