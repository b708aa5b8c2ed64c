"""Where the frames of an image lie: URL, offset and length of each, in files as they are."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dicomslide.backends.base import layout_of
from dicomslide.backends.concatenation import ConcatenatedSource
from dicomslide.backends.part10.file import FileSource
from dicomslide.backends.part10.source import Part10Source
from dicomslide.errors import FrameError, FrameReadError, NotVirtualError
from dicomslide.pixels import DECODERS
from dicomslide.virtual.encoding import HEAD, check_head, is_native

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from dicomslide.backends.base import FrameSource

__all__ = ["References", "references_of", "url_of"]

SAMPLED = 12
"""Frames of an image, evenly spaced, whose headers are read, besides those at the edges."""


@dataclasses.dataclass(frozen=True, slots=True)
class References:
    """Byte ranges of the frames of an image."""

    urls: tuple[str, ...]
    """URL of each file."""
    files: NDArray[np.int64]
    """Index of the file of each frame; −1 for a frame that isn't here or has no bytes."""
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    heads: tuple[memoryview, ...]
    """First bytes of some frames: of encapsulated ones, with the header of the codestream."""


def url_of(source: Part10Source) -> str:
    """Return the URL of a file or object."""
    return Path(source.path).as_uri() if isinstance(source, FileSource) else source.path


def references_of(source: FrameSource, urls: Mapping[str, str] | None = None) -> References:
    """Return the byte ranges of an image's frames, after checks of headers.

    Parameters
    ----------
    source : FrameSource
        Source of the image.
    urls : mapping of str to str, optional
        URL of a source by its name, where it isn't that of a file or object.

    Raises
    ------
    NotVirtualError
        When a frame isn't one range of a file, or its codestream contradicts the header; or when
        the frames come from a server that has no files.

    """
    layout = layout_of(source)
    uid = layout.transfer_syntax_uid
    if uid not in DECODERS:
        found = "several transfer syntaxes" if uid is None else f"transfer syntax {uid}"
        raise NotVirtualError(f"{source.name}: {found}; chunks of an array have one codec")
    given = urls or {}
    files = np.full(layout.num_frames, -1, np.int64)
    offsets, lengths = np.zeros((2, layout.num_frames), np.int64)
    names = []
    parts = list(_parts_of(source))
    for number, (part, first) in enumerate(parts):
        url = given.get(part.name) or url_of(part)
        if "://" not in url:
            raise NotVirtualError(f"{part.name}: its bytes are in memory, without a URL")
        if "::" in url:
            raise NotVirtualError(f"{part.name}: it is in an archive; chunks are ranges of a file")
        names.append(url)
        try:
            starts, counts = part.byte_ranges()
        except FrameReadError as error:
            raise NotVirtualError(f"{error}; a chunk of an array is one range of a file") from error
        here = slice(first, first + len(starts))
        offsets[here], lengths[here] = starts, counts
        files[here] = np.where(counts > 0, number, -1)
    if is_native(uid):
        _check_whole(source, files, lengths, layout.pixel_format.native_bytes)
        lengths[files >= 0] = layout.pixel_format.native_bytes  # without padding
    heads = []
    for frame in _sample(source, files):
        part, first = parts[files[frame]]
        length = int(min(lengths[frame], HEAD))
        (head,) = part.read_heads([int(offsets[frame])], length)
        view = memoryview(head)
        try:
            try:
                check_head(view, layout.pixel_format, uid)
            except FrameError:
                raise
            except ValueError:  # its header is longer than usual, or it is none
                view = memoryview(part.read_frames([frame - first])[0])
                check_head(view, layout.pixel_format, uid)
        except ValueError as error:
            raise NotVirtualError(f"{source.name}, frame {frame + 1}: {error}") from error
        heads.append(view)
    return References(tuple(names), files, offsets, lengths, tuple(heads))


def _parts_of(source: FrameSource) -> Iterator[tuple[Part10Source, int]]:
    """Yield the files of an image, each with the index of its first frame."""
    if isinstance(source, ConcatenatedSource):
        for each, first in zip(source.parts, source.firsts, strict=True):
            for part, inner in _parts_of(each):
                yield part, first + inner
    elif isinstance(source, Part10Source):
        yield source, 0
    else:
        raise NotVirtualError(
            f"{source.name}: its frames come from a {type(source).__name__}, which has no files"
            " with byte ranges; open the slide's files, or their URLs"
        )


def _check_whole(
    source: FrameSource, files: NDArray[np.int64], lengths: NDArray[np.int64], needed: int
) -> None:
    short = np.flatnonzero((files >= 0) & (lengths < needed))
    if short.size:
        raise NotVirtualError(
            f"{source.name}, frame {short[0] + 1}: {lengths[short[0]]} bytes; the header describes"
            f" {needed}"
        )


def _sample(source: FrameSource, files: NDArray[np.int64]) -> Sequence[int]:
    """Return frames spread over an image, and those in its last row and column of tiles.

    Writers that crop tiles crop the latter.
    """
    layout = layout_of(source)
    down, across = layout.grid.shape
    last = down * across - 1
    corners = np.array([across - 1, (down // 2 + 1) * across - 1, last - across // 2, last])
    at_edges = layout.frames.frames(0, 0, corners.clip(0, last))
    spread = np.linspace(0, layout.num_frames - 1, SAMPLED).astype(np.int64)
    frames = np.unique(np.concatenate([spread, at_edges[at_edges >= 0]]))
    return frames[files[frames] >= 0].tolist()
