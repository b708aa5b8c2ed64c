"""Frame positions from the bytes of the Per-Frame Functional Groups Sequence.

Data sets of 150,000 frames would take seconds and hundreds of megabytes. Instead, NumPy searches
the bytes, block by block, for the few tags that matter. Where the result is ambiguous (not exactly
one of each tag per frame, in order), the items are parsed one by one.
"""

from __future__ import annotations

import dataclasses
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.errors import MetadataError
from dicomslide.header import dicom
from dicomslide.header.tiling import FramePositions, distinct

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TypeAlias

    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

    Read: TypeAlias = Callable[[int, int], bytes]

__all__ = [
    "LONG_VRS",
    "UNDEFINED",
    "PerFrameSpan",
    "end_of_sequence",
    "find_items",
    "item_spans",
    "positions_of_dataset",
    "positions_of_json",
    "scan_per_frame_groups",
    "value_of_sequence",
]

UNDEFINED = 0xFFFFFFFF
"""Length of sequences, items and pixel data that end with a delimiter (PS3.5 7.5)."""
BLOCK = 4 * 2**20
LONGEST = 64  # bytes by which blocks overlap: no wanted element is longer

# tag -> VR, in the order in which they stand in an item
Z_OFFSET, OPTICAL_PATH, COLUMN, ROW, SEGMENT, LUT_LABEL = (
    0x0040074A,
    0x00480106,
    0x0048021E,
    0x0048021F,
    0x0062000B,
    0x00409210,
)
WANTED = {
    Z_OFFSET: b"DS",
    LUT_LABEL: b"SH",
    OPTICAL_PATH: b"SH",
    COLUMN: b"SL",
    ROW: b"SL",
    SEGMENT: b"US",
}
_PER_FRAME_GROUPS = 0x52009230
_SEGMENT_MACRO = 0x0062000A
# this macro is searched for as well: Referenced Segment Number also occurs in references to other
# segmentations
_SEARCHED = WANTED | {_SEGMENT_MACRO: b"SQ"}
# functional group macro -> wanted tags in it
_MACROS = {
    0x0048021A: (Z_OFFSET, COLUMN, ROW),  # Plane Position (Slide)
    0x00480207: (OPTICAL_PATH,),  # Optical Path Identification
    _SEGMENT_MACRO: (SEGMENT,),  # Segment Identification
    0x00409096: (LUT_LABEL,),  # Real World Value Mapping
}
_SEQUENCE_END = b"\xfe\xff\xdd\xe0\0\0\0\0"
_PIXEL_DATA_GROUP = b"\xe0\x7f"
LONG_VRS = frozenset(
    {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
)
"""Value representations whose length has 32 bits in explicit syntaxes (PS3.5 7.1.2)."""
_ITEM, _ITEM_END, _END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_ITEM_TAG = (0xFFFE, 0xE000)


@dataclasses.dataclass(frozen=True, slots=True)
class PerFrameSpan:
    """Byte range and encoding of the items of the sequence."""

    start: int
    """Offset of the first item."""
    length: int
    """Length in bytes; 0xFFFFFFFF where undefined."""
    implicit_vr: bool = False
    little_endian: bool = True


@dataclasses.dataclass(slots=True)
class _Found:
    """Offsets at which a tag was found, and its values: one array per block."""

    at: list[NDArray[np.int64]] = dataclasses.field(default_factory=list)
    values: list[NDArray[np.generic]] = dataclasses.field(default_factory=list)


def scan_per_frame_groups(
    read: Read, size: int, span: PerFrameSpan, num_frames: int
) -> tuple[FramePositions | None, int]:
    """Read the position, plane and channel of every frame.

    Parameters
    ----------
    read : callable
        Function of (offset, length) that returns bytes.
    size : int
        Number of bytes of the file.
    span : PerFrameSpan
        Byte range and encoding of the sequence.
    num_frames : int
        Number of Frames.

    Returns
    -------
    positions : FramePositions or None
        None where the items hold no positions.
    end : int
        Offset of the first byte after the sequence.

    Raises
    ------
    MetadataError
        When the sequence is truncated, or some frames have positions and others none.

    """
    if span.little_endian:
        found, end = _search(read, size, span)
        if end is not None and _is_conclusive(found, num_frames, span.implicit_vr):
            values = {
                tag: np.concatenate(each.values) for tag, each in found.items() if each.values
            }
            return _positions(values), end
    return _walk(read, size, span, num_frames)


def positions_of_dataset(image: Dataset) -> FramePositions | None:
    """Read the position, plane and channel of every frame from a data set in memory.

    Returns
    -------
    FramePositions or None
        None where there is no sequence, or its items hold no positions.

    Raises
    ------
    MetadataError
        When the sequence hasn't one item per frame, or some frames have positions and others
        none.

    """
    element: Any = image.get_item(_PER_FRAME_GROUPS)
    if element is None:
        return None
    num_frames = int(dicom.number(image, "NumberOfFrames") or 1)
    if element.is_raw and element.value:  # still bytes: these are searched
        data = element.value
        implicit_vr = element.is_implicit_VR or element.VR == "UN"  # PS3.5 6.2.2
        span = PerFrameSpan(0, len(data), implicit_vr, element.is_little_endian)
        return scan_per_frame_groups(
            lambda at, length: data[at : at + length], len(data), span, num_frames
        )[0]
    groups = image[_PER_FRAME_GROUPS].value
    _check_count(len(groups), num_frames)
    values: dict[int, list[Any]] = {tag: [] for tag in WANTED}
    for group in groups:
        for macro, tags in _MACROS.items():
            items = group[macro].value if macro in group else ()
            for tag in tags:
                value = items[0].get(tag) if items else None
                if value is not None and value.value is not None:
                    values[tag].append(value.value)
    return _complete(values, num_frames)


def positions_of_json(
    groups: Sequence[Mapping[str, Any]], num_frames: int
) -> FramePositions | None:
    """Read the position, plane and channel of every frame from DICOM JSON (PS3.18 annex F).

    Parameters
    ----------
    groups : sequence of mapping
        Items of the Per-Frame Functional Groups Sequence.
    num_frames : int
        Number of Frames.

    Returns
    -------
    FramePositions or None
        None where the items hold no positions.

    Raises
    ------
    MetadataError
        When there isn't one item per frame, or some frames have positions and others none.

    """
    _check_count(len(groups), num_frames)
    values: dict[int, list[Any]] = {}
    for macro, tags in _MACROS.items():
        key = f"{macro:08X}"
        items = [_first_value(group, key) for group in groups]
        for tag in tags:
            name = f"{tag:08X}"
            found = [_first_value(item, name) for item in items if item]
            values[tag] = [value for value in found if value is not None]
    return _complete({tag: values[tag] for tag in WANTED}, num_frames)


def _first_value(json: Mapping[str, Any], tag: str) -> Any:
    """Return the first value of an element of DICOM JSON; None where it has none."""
    values = json[tag].get("Value") if tag in json else None
    return values[0] if values else None


# -- search ----------------------------------------------------------------------------------


def _search(read: Read, size: int, span: PerFrameSpan) -> tuple[dict[int, _Found], int | None]:
    """Search overlapping blocks for the tags; also return the end of the sequence, if found."""
    found = {tag: _Found() for tag in _SEARCHED}
    end = None if span.length == UNDEFINED else span.start + span.length
    limit = size if end is None else min(end, size)
    at = span.start
    while at < limit:
        data = read(at, min(BLOCK + LONGEST, limit - at))
        if end is None:
            stop = _find_end(data)
            if stop >= 0:
                end = at + stop + len(_SEQUENCE_END)
                data = data[:stop]
                limit = at + stop
        _search_block(data, at, span.implicit_vr, found)
        at += BLOCK
    return found, end


def _find_end(data: bytes) -> int:
    return data.find(_SEQUENCE_END + _PIXEL_DATA_GROUP)


def _search_block(data: bytes, start: int, implicit_vr: bool, found: dict[int, _Found]) -> None:
    padded = data + bytes(LONGEST + 4 - len(data) % 4)
    searched = min(len(data), BLOCK)
    # elements begin at even offsets: tag, VR and length, value, of four bytes each
    words = [np.frombuffer(padded, "<u4", (len(padded) - shift) // 4, shift) for shift in (0, 2)]
    for tag, vr in _SEARCHED.items():
        code = (tag & 0xFFFF) << 16 | tag >> 16
        places = [np.flatnonzero(each[: searched // 4 + 1] == code) for each in words]
        at = np.concatenate([each * 4 + shift for each, shift in zip(places, (0, 2), strict=True)])
        order = np.argsort(at, kind="stable")
        order = order[at[order] < searched]
        if not order.size:
            continue
        lengths, values = (
            np.concatenate([each[i + k] for each, i in zip(words, places, strict=True)])
            for k in (1, 2)
        )
        if not implicit_vr:
            order = order[lengths[order] & 0xFFFF == int.from_bytes(vr, "little")]
            lengths = lengths >> 16
        if vr == b"SQ":
            found[tag].at.extend([at[order] + start] if order.size else [])
            continue
        expected = {b"SL": 4, b"US": 2}.get(vr)
        likely = lengths <= LONGEST - 8 if expected is None else lengths == expected
        order = order[likely[order]]
        if not order.size:
            continue
        found[tag].at.append(at[order] + start)
        if vr == b"SL":
            found[tag].values.append(values[order].view(np.int32))
        elif vr == b"US":
            found[tag].values.append(values[order] & 0xFFFF)
        else:
            found[tag].values.append(_texts_at(padded, at[order] + 8, lengths[order]))


def _texts_at(
    data: bytes, at: NDArray[np.int64], lengths: NDArray[np.uint32]
) -> NDArray[np.bytes_]:
    width = max(int(lengths.max()), 1)
    columns = np.arange(width)
    raw = np.frombuffer(data, np.uint8)[at[:, None] + columns]
    raw[columns >= lengths[:, None]] = 0
    return raw.view(f"S{width}")[:, 0]


def _is_conclusive(found: dict[int, _Found], num_frames: int, implicit_vr: bool) -> bool:
    """Whether each tag was found once per frame or never, in one order, and in its own macro.

    Only the segment's tag occurs in other macros too, so only its offset is checked.
    """
    at = [np.concatenate(each.at) for each in found.values() if each.at]
    if any(len(places) != num_frames for places in at):
        return False
    turns = np.array(sorted(at, key=lambda places: int(places[0]))).T.ravel()
    if np.any(np.diff(turns) <= 0):
        return False
    macros, segments = found[_SEGMENT_MACRO].at, found[SEGMENT].at
    if not macros or not segments:
        return not macros and not segments
    heads = 16 if implicit_vr else 20  # bytes of the headers of the sequence and of its item
    return bool(np.all(np.concatenate(segments) - np.concatenate(macros) == heads))


# -- walk ------------------------------------------------------------------------------------


def find_items(
    read: Read, size: int, span: PerFrameSpan, num_frames: int, frames: Sequence[int]
) -> list[bytes]:
    """Return the bytes of the items of some frames, without the item headers.

    Raises
    ------
    MetadataError
        When the sequence is truncated, or hasn't one item per frame.

    """
    walker, _ = _walked(read, size, span, num_frames)
    return [walker.data[slice(*walker.items[frame])] for frame in frames]


def item_spans(
    data: bytes, *, implicit_vr: bool = False, little_endian: bool = True
) -> list[tuple[int, int]]:
    """Return (start, stop) of the content of each item of a sequence.

    Parameters
    ----------
    data : bytes
        The value of the sequence.
    implicit_vr, little_endian : bool
        Its encoding.

    Raises
    ------
    MetadataError
        When the bytes aren't those of items.

    """
    head = struct.Struct("<HHI" if little_endian else ">HHI")
    spans, at = [], 0
    try:
        while at < len(data):
            *tag, length = head.unpack_from(data, at)
            if tuple(tag) != _ITEM_TAG or length == UNDEFINED:  # to be parsed to its end
                walker = _Walker(data, PerFrameSpan(0, len(data), implicit_vr, little_endian))
                walker.sequence(0, len(data), top=True)
                return walker.items
            spans.append((at + 8, at + 8 + length))
            at += 8 + length
        if at > len(data):
            raise IndexError
    except (struct.error, IndexError):
        raise MetadataError("a sequence is truncated or isn't well formed") from None
    return spans


def _walk(
    read: Read, size: int, span: PerFrameSpan, num_frames: int
) -> tuple[FramePositions | None, int]:
    """Parse the items element by element."""
    walker, end = _walked(read, size, span, num_frames)
    return _complete(walker.values, num_frames), end


def _walked(read: Read, size: int, span: PerFrameSpan, num_frames: int) -> tuple[_Walker, int]:
    try:
        walker, end = _walker_of(read, size, span)
    except (struct.error, IndexError):
        raise MetadataError(
            "the Per-Frame Functional Groups Sequence is truncated or isn't well formed"
        ) from None
    _check_count(len(walker.items), num_frames)
    return walker, end


def _walker_of(read: Read, size: int, span: PerFrameSpan) -> tuple[_Walker, int]:
    """Parse a sequence; return the parser and the offset of the end."""
    available = size - span.start
    length = min(span.length, available) if span.length != UNDEFINED else min(BLOCK, available)
    while True:
        walker = _Walker(read(span.start, length), span)
        try:
            end = walker.sequence(0, length if span.length != UNDEFINED else None, top=True)
            return walker, span.start + end
        except (struct.error, IndexError):
            if span.length != UNDEFINED or length == available:
                raise
            length = min(4 * length, available)


def end_of_sequence(
    data: bytes, at: int, *, implicit_vr: bool = False, little_endian: bool = True
) -> int:
    """Return the end of a sequence of undefined length whose items begin at `at`.

    That is beyond the bytes where they aren't those of a sequence.
    """
    walker = _Walker(data, PerFrameSpan(0, len(data), implicit_vr, little_endian))
    try:
        return walker.sequence(at, None)
    except (struct.error, IndexError):
        return len(data) + 1


def value_of_sequence(read: Read, size: int, span: PerFrameSpan) -> tuple[bytes, int] | None:
    """Return the items of a sequence of undefined length as bytes, and the offset of its end.

    Parameters
    ----------
    read, size, span
        See :func:`scan_per_frame_groups`.

    Returns
    -------
    tuple of bytes and int, or None
        None where it is truncated or isn't well formed.

    """
    try:
        walker, end = _walker_of(read, size, span)
    except (struct.error, IndexError):
        return None
    return walker.data[: end - span.start - len(_SEQUENCE_END)], end


class _Walker:
    """Parser of nested elements that collects the first value of each wanted tag in its macro."""

    def __init__(self, data: bytes, span: PerFrameSpan) -> None:
        order = "<" if span.little_endian else ">"
        self.data = data
        self._tag = struct.Struct(order + "HH").unpack_from
        self._u2 = struct.Struct(order + "H").unpack_from
        self._u4 = struct.Struct(order + "I").unpack_from
        self._i4 = struct.Struct(order + "i").unpack_from
        self._implicit = span.implicit_vr
        self.items: list[tuple[int, int]] = []
        """(start, stop) of the item of each frame, in bytes."""
        self.values: dict[int, list[bytes | int | str]] = {tag: [] for tag in WANTED}
        self._of_macro: tuple[int, ...] = ()

    def sequence(self, at: int, end: int | None, *, top: bool = False) -> int:
        while end is None or at < end:
            group, element = self._tag(self.data, at)
            tag, (length,) = group << 16 | element, self._u4(self.data, at + 4)
            at += 8
            if tag == _END:
                return at
            if tag != _ITEM:
                raise IndexError
            start = at
            if top:
                self.items.append((start, start))
            at = self.item(at, None if length == UNDEFINED else at + length, top=top)
            if top:
                end_tag = 8 if length == UNDEFINED else 0
                self.items[-1] = (start, at - end_tag)
        return at

    def item(self, at: int, end: int | None, *, top: bool) -> int:
        data = self.data
        while end is None or at < end:
            group, element = self._tag(data, at)
            tag = group << 16 | element
            if tag == _ITEM_END:
                return at + 8
            if top:
                self._of_macro = _MACROS.get(tag, ())
            vr = b"" if self._implicit else data[at + 4 : at + 6]
            if self._implicit:
                (length,) = self._u4(data, at + 4)
                at += 8
            elif vr in LONG_VRS:
                (length,) = self._u4(data, at + 8)
                at += 12
            else:
                (length,) = self._u2(data, at + 6)
                at += 8
            if length == UNDEFINED:
                at = self._undefined(at, vr)
                continue
            if tag in self._of_macro and len(self.values[tag]) < len(self.items):
                self._keep(tag, at, length)
            elif vr == b"SQ" or (
                self._implicit and length >= 8 and self._tag(data, at) == _ITEM_TAG
            ):
                self.sequence(at, at + length)
            at += length
            if at > len(data):
                raise IndexError
        return at

    def _undefined(self, at: int, vr: bytes) -> int:
        before = self._implicit
        self._implicit = before or vr == b"UN"  # PS3.5 6.2.2: its items are in implicit VR
        try:
            return self.sequence(at, None)
        finally:
            self._implicit = before

    def _keep(self, tag: int, at: int, length: int) -> None:
        vr = WANTED[tag]
        value: bytes | int = self.data[at : at + length]
        if vr == b"SL":
            (value,) = self._i4(self.data, at)
        elif vr == b"US":
            (value,) = self._u2(self.data, at)
        self.values[tag].append(value)


def _check_count(count: int, num_frames: int) -> None:
    if count != num_frames:
        raise MetadataError(
            f"the Per-Frame Functional Groups Sequence has {count} items for {num_frames} frames;"
            " expected one per frame"
        )


# -- values ----------------------------------------------------------------------------------


def _complete(values: dict[int, list[bytes | int | str]], num_frames: int) -> FramePositions | None:
    for tag, each in values.items():
        if each and len(each) != num_frames:
            raise MetadataError(
                f"{len(each)} of {num_frames} items of the Per-Frame Functional Groups Sequence"
                f" have ({tag >> 16:04X},{tag & 0xFFFF:04X}); expected all or none"
            )
    return _positions({tag: np.array(each) for tag, each in values.items() if each})


def _positions(values: dict[int, NDArray[np.generic]]) -> FramePositions | None:
    if ROW not in values or COLUMN not in values:
        return None
    z = values.get(Z_OFFSET)
    channels = next(
        (values[tag] for tag in (SEGMENT, LUT_LABEL, OPTICAL_PATH) if tag in values), None
    )
    return FramePositions(
        rows=values[ROW].astype(np.int64) - 1,
        columns=values[COLUMN].astype(np.int64) - 1,
        z=None if z is None else _numbers(z),
        channels=None if channels is None else _texts(channels),
    )


def _numbers(values: NDArray[np.generic]) -> NDArray[np.float64]:
    written, inverse = distinct(values)
    try:
        return np.array([float(value) for value in written.tolist()])[inverse]
    except ValueError:
        raise MetadataError(
            "a Z Offset in Slide Coordinate System isn't a number; the first values are"
            f" {written[:5].tolist()}"
        ) from None


def _texts(values: NDArray[np.generic]) -> NDArray[np.str_]:
    if values.dtype.kind in "iu":
        return values.astype(np.str_)
    written, inverse = distinct(values)
    decoded = [
        (value.decode("latin-1") if isinstance(value, bytes) else str(value)).strip()
        for value in written.tolist()
    ]
    return np.array(decoded, dtype=np.str_)[inverse]
