"""The header of a DICOM Part 10 file, from its bytes.

No function here reads pixels. The header is read first, the per-frame functional groups on demand.
"""

from __future__ import annotations

import dataclasses
import io
import struct
import zlib
from functools import partial
from typing import TYPE_CHECKING

from dicomslide.errors import MetadataError, NotDicomError
from dicomslide.header import dicom
from dicomslide.header.blobs import (
    MOST_HEADER,
    Blob,
    MemoryBlob,
    errors_of_headers,
)
from dicomslide.header.layout import num_frames_of, pixel_format_of
from dicomslide.header.per_frame import (
    UNDEFINED,
    PerFrameSpan,
    find_items,
    value_of_sequence,
)
from dicomslide.options import check_memory, get_options
from dicomslide.pixels import DECODERS, Decoder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydicom.dataset import Dataset
    from pydicom.tag import BaseTag

__all__ = [
    "PIXEL_DATA",
    "PREAMBLE",
    "Header",
    "check_complete",
    "element_at",
    "read_header",
    "read_instance",
    "read_per_frame_groups",
]

PREAMBLE = 132
INFLATED_HEAD = 4 * 2**20
"""Inflated bytes of a deflated data set from which its largest size is computed."""
PIECE = 2**20
"""Bytes that are inflated in one step."""
BESIDE_FRAMES = 64 * 2**20
"""Upper bound on the bytes of a deflated data set beside frames and per-frame groups."""
PER_FRAME = 2**16
"""Upper bound on the bytes of the per-frame functional groups of one frame."""
PER_FRAME_GROUPS = 0x52009230
ANNOTATION_GROUPS = 0x006A0002
SEGMENTS = 0x00620002
_BULK = frozenset({PER_FRAME_GROUPS, ANNOTATION_GROUPS})
PIXEL_DATA = (0x7FE00010, 0x7FE00008, 0x7FE00009)  # integer, float, double float
_LONG_VRS = (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"UN", b"SQ", b"UC", b"UR", b"UT")


@dataclasses.dataclass(frozen=True, slots=True)
class Header:
    """The data set before the frames."""

    dataset: Dataset
    """Elements up to the per-frame functional groups or the pixel data."""
    transfer_syntax_uid: str
    decoder: Decoder
    blob: Blob
    """Bytes to which offsets refer: the file, or its inflated data set."""
    per_frame: PerFrameSpan | None
    rest: int
    """Offset of the first byte after `dataset` and, if its length is known, `per_frame`."""
    nbytes: int
    """Bytes in memory, approximately."""


def read_header(blob: Blob) -> Header:
    """Read the header of a Part 10 file.

    Raises
    ------
    NotDicomError
        When it isn't a DICOM Part 10 file.
    MetadataError
        When its header can't be read, or its transfer syntax isn't known.

    """
    head = blob.read(0, PREAMBLE)
    if head[128:] != b"DICM":
        raise NotDicomError(f"{blob.name}: not a DICOM file: no DICM prefix at byte 128")
    return _read_header(blob, _is_bulk)


def check_complete(header: Header, name: str, size: int) -> None:
    """Raise a MetadataError where the header of a slide's file lacks what makes it one.

    Without these attributes, an image would be taken for another kind of instance. Files of other
    SOP Classes raise nothing.

    Parameters
    ----------
    header : Header
        Header, as read.
    name : str
        Name of the file.
    size : int
        Bytes of the file.

    """
    dataset = header.dataset
    tag, *_ = element_at(header.blob, header.rest, header.decoder)
    is_cut = tag == 0
    lacking = dicom.lacking_of(dataset, is_cut=is_cut)
    sop_class = dicom.text(dataset, "SOPClassUID") or dicom.text(
        dataset.file_meta, "MediaStorageSOPClassUID"
    )
    if is_cut and sop_class == dicom.BULK_SIMPLE_ANNOTATIONS_STORAGE:
        lacking = ["AnnotationGroupSequence"]
    if lacking:
        cut = f"is cut: the file ends within it, after {size:,} bytes, and it " if is_cut else ""
        raise MetadataError(f"{name}: its header {cut}lacks {', '.join(lacking)}")


def read_instance(blob: Blob) -> Dataset:
    """Read the whole data set of a Part 10 file, whatever its size.

    Raises
    ------
    MetadataError
        When it can't be read.

    """
    return _read_header(blob, None).dataset


def read_per_frame_groups(header: Header, num_frames: int, frames: Sequence[int]) -> list[Dataset]:
    """Read the items of the Per-Frame Functional Groups Sequence of some frames; none if absent.

    Raises
    ------
    MetadataError
        When they can't be read.

    """
    from dicomslide.header.lenient import LenientDataset, read_dataset

    span, blob = header.per_frame, header.blob
    if span is None:
        return []
    with errors_of_headers(blob.name):
        found: list[Dataset] = []
        for item in find_items(blob.read, blob.size, span, num_frames, frames):
            dataset, _ = read_dataset(
                MemoryBlob(blob.name, item),
                0,
                implicit_vr=span.implicit_vr,
                little_endian=span.little_endian,
            )
            found.append(LenientDataset(dataset, blob.name))
        return found


def _is_bulk(tag: BaseTag, vr: str | None, length: int) -> bool:
    """Whether an element ends the header: one that may be as large as pixels."""
    return tag in _BULK or tag >> 16 == 0x7FE0


def _read_header(
    blob: Blob, stop_when: Callable[[BaseTag, str | None, int], bool] | None
) -> Header:
    import pydicom  # noqa: F401 - whole, before its parts: of threads that import those, one fails

    from dicomslide.header.lenient import LenientDataset, LoadedBlob, no_validation, read_dataset

    most_bytes = None if stop_when else get_options().memory_limit_bytes
    with errors_of_headers(blob.name):
        loaded: Blob | LoadedBlob = LoadedBlob(blob, PREAMBLE)
        file_meta, start = read_dataset(
            loaded, PREAMBLE, stop_when=lambda tag, vr, length: tag >> 16 != 2
        )
        with no_validation():
            uid = str(file_meta.get("TransferSyntaxUID", "")).strip("\0 ")
        decoder = DECODERS.get(uid)
        if decoder is None:
            raise MetadataError(
                f"{blob.name}: transfer syntax {uid or '(none)'} isn't supported; supported are "
                + ", ".join(f"{known} ({each.name})" for known, each in DECODERS.items())
            )
        if decoder.deflated:
            loaded = blob = _inflated(blob, start)
            start = 0
        read = partial(
            read_dataset,
            loaded,
            implicit_vr=decoder.implicit_vr,
            little_endian=decoder.little_endian,
            most_bytes=most_bytes,
        )
        plain, rest = read(start, stop_when=partial(_is_segments_or, stop_when))
        segments = _segments_at(blob, rest, decoder)
        if segments is not None:
            items, rest = segments
            others, rest = read(rest, stop_when=stop_when)
            plain.update(others)
        elif element_at(blob, rest, decoder)[0] == SEGMENTS:  # truncated
            plain, rest = read(start, stop_when=stop_when)
        dataset = LenientDataset(plain, blob.name)
        if segments is not None:
            dataset.add_lazy(SEGMENTS, items, decoder.implicit_vr, decoder.little_endian)
        dataset.file_meta = file_meta  # type: ignore[assignment]
        nbytes = rest - start + dicom.PER_ELEMENT * len(dataset)
        if decoder.deflated:
            nbytes += blob.size
        tag, _, length, value = element_at(blob, rest, decoder)
    per_frame = None
    if tag == PER_FRAME_GROUPS:
        per_frame = PerFrameSpan(value, length, decoder.implicit_vr, decoder.little_endian)
        rest = value if length == UNDEFINED else value + length
    return Header(dataset, uid, decoder, blob, per_frame, rest, nbytes)


def _is_segments_or(
    stop_when: Callable[[BaseTag, str | None, int], bool] | None,
    tag: BaseTag,
    vr: str | None,
    length: int,
) -> bool:
    """Whether an element ends the header, or is a Segment Sequence of undefined length.

    pydicom parses sequences of undefined length at once, which takes seconds where there are tens
    of thousands of segments.
    """
    if tag == SEGMENTS and length == UNDEFINED:
        return True
    return stop_when is not None and stop_when(tag, vr, length)


def _segments_at(blob: Blob, at: int, decoder: Decoder) -> tuple[bytes, int] | None:
    """Return the items of a Segment Sequence of undefined length, and the offset of its end."""
    tag, _, length, value = element_at(blob, at, decoder)
    if tag != SEGMENTS or length != UNDEFINED:
        return None
    span = PerFrameSpan(value, UNDEFINED, decoder.implicit_vr, decoder.little_endian)
    return value_of_sequence(blob.read, blob.size, span)


def _inflated(blob: Blob, start: int) -> MemoryBlob:
    """Inflate a data set, up to the size that its header describes."""
    limit = get_options().memory_limit_bytes
    engine = zlib.decompressobj(-15)
    pieces = (blob.read(at, PIECE) for at in range(start, blob.size, PIECE))
    data = io.BytesIO()
    most: int | None = None
    while not engine.eof:
        waiting = engine.unconsumed_tail or next(pieces, b"")
        part = engine.decompress(waiting, PIECE)
        if not waiting and not part:
            raise MetadataError(f"{blob.name}: the deflated data set is truncated")
        data.write(part)
        if data.tell() > limit:
            check_memory(data.tell(), f"{blob.name}, inflated,")
        if most is None and data.tell() > INFLATED_HEAD:
            most = _described_size(MemoryBlob(blob.name, data.getvalue()))
        if most is not None and data.tell() > most:
            raise MetadataError(
                f"{blob.name}: the deflated data set grows to more than the {most:,} bytes that its"
                " header describes"
            )
    return MemoryBlob(blob.name, data.getvalue(), blob.version)


def _described_size(head: MemoryBlob) -> int:
    """Return the largest size of a data set, by its first bytes."""
    from dicomslide.header.lenient import LenientDataset, read_dataset

    plain, _ = read_dataset(head, 0, stop_when=_is_bulk)
    dataset = LenientDataset(plain, head.name)
    try:
        count, pixels = num_frames_of(dataset), pixel_format_of(dataset)
    except MetadataError:  # no image, or its header goes on
        return MOST_HEADER
    return BESIDE_FRAMES + count * (pixels.native_bytes + PER_FRAME)


def element_at(blob: Blob, at: int, decoder: Decoder) -> tuple[int, bytes, int, int]:
    """Return (tag, VR, length, offset of the value) of the element at `at`; tag 0 at the end."""
    head = blob.read(at, 12)
    if len(head) < 8:
        return 0, b"", 0, at
    order = "<" if decoder.little_endian else ">"
    group, element = struct.unpack(order + "HH", head[:4])
    tag = group << 16 | element
    if decoder.implicit_vr:
        return tag, b"OW", struct.unpack(order + "I", head[4:8])[0], at + 8
    vr = head[4:6]
    if vr in _LONG_VRS:
        if len(head) < 12:
            return 0, b"", 0, at
        return tag, vr, struct.unpack(order + "I", head[8:12])[0], at + 12
    return tag, vr, struct.unpack(order + "H", head[6:8])[0], at + 8
