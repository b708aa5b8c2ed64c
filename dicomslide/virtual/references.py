"""Where the frames of an image lie: URL, offset and length of each, in files as they are."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from dicomslide.backends.base import layout_of
from dicomslide.backends.concatenation import ConcatenatedSource
from dicomslide.backends.part10.file import FileSource
from dicomslide.backends.part10.source import Part10Source
from dicomslide.errors import FrameError, FrameReadError, NotVirtualError
from dicomslide.pixels import DECODERS
from dicomslide.virtual.encoding import (
    HEAD,
    check_head,
    foreign_codec,
    is_native,
    may_be_foreign,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from dicomslide.backends.base import FrameSource
    from dicomslide.pixels.pixel_format import Buffer

__all__ = ["CheckFrames", "References", "checked", "references_of", "url_of"]

CheckFrames: TypeAlias = Literal["all", "sample"] | None
"""Frames whose codestreams are examined before imagecodecs' codec is chosen for all of an image."""
SAMPLED, FEW = 12, 3
"""Frames of a sample by place, and again by length; frames by place where it decides nothing."""
AT_ONCE = 256
"""Upper bound on frames that are examined together."""


def checked(check_frames: CheckFrames) -> CheckFrames:
    """Return an option after a check of its value."""
    if check_frames not in ("all", "sample", None):
        raise ValueError(f'check_frames must be "all", "sample" or None, not {check_frames!r}')
    return check_frames


@dataclasses.dataclass(frozen=True, slots=True)
class References:
    """Byte ranges of the frames of an image."""

    urls: tuple[str, ...]
    """URL of each file."""
    files: NDArray[np.int64]
    """Index of the file of each frame; −1 for a frame that isn't here or has no bytes."""
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    foreign: Mapping[str, Any] | None
    """Codec of imagecodecs that decodes all frames, as in a metadata document; else None."""


def url_of(source: Part10Source) -> str:
    """Return the URL of a file or object."""
    return Path(source.path).as_uri() if isinstance(source, FileSource) else source.path


def references_of(
    source: FrameSource,
    urls: Mapping[str, str] | None = None,
    check_frames: CheckFrames = None,
) -> References:
    """Return the byte ranges of an image's frames, after checks of headers.

    Parameters
    ----------
    source : FrameSource
        Source of the image.
    urls : mapping of str to str, optional
        URL of a source by its name, where it isn't that of a file or object.
    check_frames : {"all", "sample"}, optional
        See :func:`dicomslide.virtual.to_icechunk`.

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
    ranges = References(tuple(names), files, offsets, lengths, None)
    return dataclasses.replace(ranges, foreign=_examined(source, parts, ranges, check_frames))


def _examined(
    source: FrameSource,
    parts: Sequence[tuple[Part10Source, int]],
    found: References,
    check_frames: CheckFrames,
) -> dict[str, Any] | None:
    """Examine headers of codestreams; return imagecodecs' codec of all, or None."""
    layout = layout_of(source)
    declared, uid = layout.pixel_format, str(layout.transfer_syntax_uid)
    if check_frames is None and all(isinstance(part, FileSource) for part, _ in parts):
        check_frames = "all"  # no request is needed
    has_foreign = may_be_foreign(declared, uid)
    is_each = has_foreign and check_frames == "all"
    frames = (
        np.flatnonzero(found.files >= 0)
        if is_each
        else _sample(source, found, few=check_frames is None)
    )
    codecs: list[dict[str, Any] | None] = []
    for frame, head in _heads(parts, frames, found, whole=is_each):
        try:
            try:
                check_head(head, declared, uid)
            except FrameError:
                raise
            except ValueError:  # its header is longer than usual, or it is none
                part, first = parts[found.files[frame]]
                head = memoryview(part.read_frames([frame - first])[0])
                check_head(head, declared, uid)
            codec = foreign_codec(head, declared, uid) if has_foreign else None
        except ValueError as error:
            raise NotVirtualError(f"{source.name}, frame {frame + 1}: {error}") from error
        if codec not in codecs:
            codecs.append(codec)
    return codecs[0] if len(codecs) == 1 and check_frames is not None else None


def _heads(
    parts: Sequence[tuple[Part10Source, int]],
    frames: NDArray[np.int64],
    of: References,
    *,
    whole: bool,
) -> Iterator[tuple[int, memoryview]]:
    """Yield frames with their first bytes, or with all of those for which that is one request."""
    for number, (part, first) in enumerate(parts):
        own = frames[of.files[frames] == number]
        for start in range(0, len(own), AT_ONCE):
            batch = own[start : start + AT_ONCE]
            data: Sequence[Buffer]
            if whole and not isinstance(part, FileSource):  # neighbours at once, without gaps
                data = part.read_frames((batch - first).tolist())
            else:
                data = part.read_heads(of.offsets[batch].tolist(), HEAD)
            lengths = of.lengths[batch].tolist()
            for frame, length, head in zip(batch.tolist(), lengths, data, strict=True):
                yield frame, memoryview(head)[:length]


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


def _sample(source: FrameSource, found: References, *, few: bool) -> NDArray[np.int64]:
    """Return frames spread over an image, frames of all lengths unless few, and some at the edges.

    Writers that crop tiles crop the last row and column. Blank tiles, which some writers take from
    another encoder, are short, and often have one length.
    """
    layout = layout_of(source)
    down, across = layout.grid.shape
    last = down * across - 1
    corners = np.array([across - 1, (down // 2 + 1) * across - 1, last - across // 2, last])
    at_edges = layout.frames.frames(0, 0, corners.clip(0, last))
    there, lengths = np.flatnonzero(found.files >= 0), found.lengths
    if not len(there):
        return there
    if few:
        spread = np.linspace(0, len(there) - 1, FEW).astype(np.int64)
        return np.intersect1d(np.concatenate([there[spread], at_edges]), there)
    spread = np.linspace(0, len(there) - 1, SAMPLED).astype(np.int64)
    by_length = there[np.argsort(lengths[there], kind="stable")]
    _, firsts, counts = np.unique(lengths[by_length], return_index=True, return_counts=True)
    most_common = by_length[firsts[[counts.argmax()]]]
    frames = np.concatenate([there[spread], by_length[spread], most_common, at_edges])
    return np.intersect1d(frames, there)
