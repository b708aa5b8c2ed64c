"""Frame index of a DICOM Part 10 file: the span of each frame, and its bytes from that span.

Spans come from the offset tables if there are any, else from one scan. Frames aren't decoded here.
"""

from __future__ import annotations

import dataclasses
import struct
from typing import TYPE_CHECKING, Protocol

import numpy as np

from dicomslide.backends.base import RangeError
from dicomslide.backends.part10 import index_cache
from dicomslide.backends.part10.header import PIXEL_DATA, Header, element_at
from dicomslide.errors import FrameReadError, MetadataError
from dicomslide.header.per_frame import UNDEFINED

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

    from dicomslide.header.blobs import Blob, Span
    from dicomslide.pixels.pixel_format import Buffer, PixelFormat

    Offsets: TypeAlias = NDArray[np.int64]

__all__ = ["EncapsulatedFrames", "Frames", "NativeFrames", "OffsetTableError", "PixelData",
           "locate_frames", "locate_pixel_data", "read_frames", "scan_frames"]  # fmt: skip

INTEGERS = PIXEL_DATA[0]
EXTENDED_OFFSET_TABLE, EXTENDED_OFFSET_TABLE_LENGTHS = 0x7FE00001, 0x7FE00002
ITEM_HEADER = 8
_ITEM, _SEQUENCE_END = 0xE000FFFE, 0xE0DDFFFE  # as a little-endian number: element, group
NEAR = 2048
"""Item length in bytes below which item headers are read together."""
WINDOW = 2**16
"""Bytes that are read together of such items."""
MOST_AT_ONCE = 4 * 2**20
"""Upper bound on bytes of a frame that are read by the extended offset table alone."""


class OffsetTableError(FrameReadError):
    """An offset table points at bytes where no item begins."""


@dataclasses.dataclass(frozen=True, slots=True)
class PixelData:
    """Place of the Pixel Data element, and the extended offset table before it."""

    tag: int
    start: int
    """First byte of the value."""
    length: int
    """In bytes; 0xFFFFFFFF where undefined."""
    vr: bytes
    extended_offsets: NDArray[np.uint64] | None
    extended_lengths: NDArray[np.uint64] | None

    def without_tables(self) -> PixelData:
        """Return the same without the extended offset table."""
        return dataclasses.replace(self, extended_offsets=None, extended_lengths=None)


def locate_pixel_data(header: Header, rest: int, num_frames: int) -> PixelData:
    """Find the Pixel Data element and the extended offset table before it.

    Parameters
    ----------
    header : Header
        The data set before the frames.
    rest : int
        Offset of the first byte after the per-frame functional groups.
    num_frames : int
        Number of Frames; an extended offset table of another length is ignored.

    Raises
    ------
    MetadataError
        When there is no pixel data.

    """
    blob, decoder = header.blob, header.decoder
    tables: dict[int, NDArray[np.uint64]] = {}
    at = rest
    while True:
        tag, vr, length, value = element_at(blob, at, decoder)
        if tag in PIXEL_DATA:
            break
        if tag == 0 or length == UNDEFINED or value + length > blob.size:
            at = _skip_to_pixel_data(header, at)
            continue
        is_table = tag in (EXTENDED_OFFSET_TABLE, EXTENDED_OFFSET_TABLE_LENGTHS)
        if is_table and length == 8 * num_frames:
            tables[tag] = np.frombuffer(blob.read(value, length), "<u8")
        at = value + length
    return PixelData(
        tag,
        value,
        length,
        vr,
        tables.get(EXTENDED_OFFSET_TABLE),
        tables.get(EXTENDED_OFFSET_TABLE_LENGTHS),
    )


def _skip_to_pixel_data(header: Header, at: int) -> int:
    """Skip elements with pydicom; return the offset of the Pixel Data element."""
    from dicomslide.header.lenient import read_dataset

    _, found = read_dataset(
        header.blob,
        at,
        implicit_vr=header.decoder.implicit_vr,
        little_endian=header.decoder.little_endian,
        stop_when=lambda tag, vr, length: tag in PIXEL_DATA,
    )
    if element_at(header.blob, found, header.decoder)[0] not in PIXEL_DATA:
        raise MetadataError(f"{header.blob.name}: it has no pixel data, or is truncated before it")
    return found


# -- frames ----------------------------------------------------------------------------------


class Frames(Protocol):
    """The span of each frame, and its bytes from that span."""

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        ...

    def span(self, index: int) -> Span:
        """Return which bytes are to be read for a frame."""
        ...

    def taken_from(self, data: Buffer, index: int, blob: Blob) -> Buffer:
        """Return a frame, from its first bit, out of the bytes of its span."""
        ...

    def byte_ranges(self, num_frames: int, blob: Blob) -> tuple[Offsets, Offsets]:
        """Return where each frame's own bytes lie: the first one, and their number.

        Raises
        ------
        FrameReadError
            When a frame isn't one range of whole bytes.

        """
        ...


def read_frames(frames: Frames, blob: Blob, indices: Sequence[int]) -> list[Buffer]:
    """Read frames; neighbouring spans together.

    Raises
    ------
    FrameReadError
        Naming the blob and the frame.

    """
    try:
        data = blob.read_spans([frames.span(index) for index in indices])
        return [
            frames.taken_from(each, index, blob) for each, index in zip(data, indices, strict=True)
        ]
    except RangeError as error:
        raise FrameReadError(error.reason, blob.name, indices[error.item]) from None
    except FrameReadError as error:
        raise error.located(blob.name) from error


@dataclasses.dataclass(frozen=True, slots=True)
class NativeFrames:
    """Native frames, which follow each other without padding, bit by bit."""

    start: int
    end: int
    """First byte behind the pixel data, as far as the file goes."""
    bits: int
    """Bits of a frame."""
    swapped: bool
    """Whether 8-bit pixels are stored in 16-bit words of the other byte order."""

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays: it has none."""
        return 0

    def span(self, index: int) -> Span:
        """Return which bytes are to be read for a frame: whole words where they are swapped."""
        first, last, _ = self._bytes_of(index)
        if self.start + last > self.end:
            raise FrameReadError(
                f"it ends at byte {self.start + last}, the pixel data end at byte {self.end}",
                frame=index,
            )
        if self.swapped:
            first, last = first - first % 2, last + last % 2
        return self.start + first, self.start + last

    def taken_from(self, data: Buffer, index: int, blob: Blob) -> Buffer:
        """Return a frame, from its first bit, out of the bytes of its span."""
        first, last, shift = self._bytes_of(index)
        if self.swapped:
            even = len(data) // 2 * 2
            words = np.frombuffer(data[:even], np.uint8).reshape(-1, 2)[:, ::-1].tobytes()
            lead = first % 2
            data = (words + bytes(data[even:]))[lead : lead + last - first]
        if len(data) < last - first:
            raise FrameReadError(f"{len(data)} bytes are left of its {last - first}", frame=index)
        if not shift:
            return data
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        return np.packbits(bits[shift : shift + self.bits], bitorder="little").tobytes()

    def byte_ranges(self, num_frames: int, blob: Blob) -> tuple[Offsets, Offsets]:
        """Return where each frame's own bytes lie: the first one, and their number."""
        if self.bits % 8 and num_frames > 1:
            raise FrameReadError(
                f"it begins within a byte: frames of {self.bits} bits follow each other without"
                " padding",
                frame=1,
            )
        if self.swapped:
            raise FrameReadError("its 8-bit pixels are stored in swapped 16-bit words", frame=0)
        self.span(num_frames - 1)
        length = -(-self.bits // 8)
        offsets = self.start + np.arange(num_frames, dtype=np.int64) * length
        return offsets, np.full(num_frames, length, np.int64)

    def _bytes_of(self, index: int) -> tuple[int, int, int]:
        """Return a frame's first byte, the one behind its last, and the bits before it."""
        first, shift = divmod(index * self.bits, 8)
        return first, -(-(index + 1) * self.bits // 8), shift


@dataclasses.dataclass(frozen=True, slots=True)
class EncapsulatedFrames:
    """Encapsulated frames of one or several items (fragments) each."""

    starts: NDArray[np.int64]
    """Offset of each frame's first item."""
    ends: NDArray[np.int64]
    """Offset of the end of its last item; with `single`, the item header may correct it."""
    limit: int
    """First byte behind the pixel data, as far as the file goes."""
    single: bool
    """Whether each frame is one item, as an extended offset table requires."""

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return self.starts.nbytes + self.ends.nbytes

    def span(self, index: int) -> Span:
        """Return which bytes are to be read for a frame."""
        if index >= len(self.starts):
            raise FrameReadError(
                f"the file ends before it: {len(self.starts)} frames are there", frame=index
            )
        start, end = int(self.starts[index]), int(self.ends[index])
        if not 0 <= start < self.limit:
            raise OffsetTableError(
                f"the offset table points at byte {start}, the pixel data end at {self.limit}",
                frame=index,
            )
        if self.single and end - start > MOST_AT_ONCE:
            end = start  # read the item header first, which has the length
        return start, max(min(end, self.limit), start + ITEM_HEADER)

    def taken_from(self, data: Buffer, index: int, blob: Blob) -> Buffer:
        """Return a frame, its fragments joined, out of the bytes of its span."""
        start = int(self.starts[index])
        parts = []
        at = 0
        while at < len(data):
            stop = at + ITEM_HEADER + _item_length(data, at, start, index)
            if len(data) < stop <= self.limit - start:
                data = bytes(data) + blob.read(start + len(data), stop - len(data))
            if stop > len(data):
                raise FrameReadError(
                    f"its item at byte {start + at} has {stop - at - ITEM_HEADER} bytes, the pixel"
                    f" data end at byte {self.limit}",
                    frame=index,
                )
            parts.append(memoryview(data)[at + ITEM_HEADER : stop])
            at = stop
            if self.single:
                break
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def byte_ranges(self, num_frames: int, blob: Blob) -> tuple[Offsets, Offsets]:
        """Return where each frame's own bytes lie: the first one, and their number.

        Item headers say so. Of frames that follow each other as an extended offset table or a scan
        has them, those of the first and last are read: a wrong table contradicts them, or itself.
        """
        self.span(num_frames - 1)
        lengths = self.ends - self.starts - ITEM_HEADER
        order = np.argsort(self.starts, kind="stable")
        gaps = self.starts[order][1:] - self.ends[order][:-1]
        is_sure = self.single and bool(((gaps == 0) | (gaps == 1)).all() and (lengths >= 0).all())
        checked = order[[0, -1]] if is_sure else np.arange(num_frames)
        firsts = self.starts[checked].tolist()
        heads = blob.read_spans([(at, at + ITEM_HEADER) for at in firsts])
        for index, head, start in zip(checked.tolist(), heads, firsts, strict=True):
            length = _item_length(head, 0, start, index)
            stop = start + ITEM_HEADER + length
            if stop > self.limit:
                raise FrameReadError(
                    f"its item has {length} bytes, the pixel data end at byte {self.limit}",
                    frame=index,
                )
            if not self.single and self.ends[index] - stop >= ITEM_HEADER:
                raise FrameReadError("it has several fragments", frame=index)
            lengths[index] = length
        return self.starts + ITEM_HEADER, lengths


def _item_length(data: Buffer, at: int, start: int, index: int) -> int:
    is_whole = len(data) >= at + ITEM_HEADER
    tag, length = struct.unpack_from("<II", data, at) if is_whole else (None, 0)
    if tag != _ITEM:
        raise OffsetTableError(
            f"the offset table points at byte {start}, but no item begins at byte {start + at}",
            frame=index,
        )
    if length == UNDEFINED:
        raise FrameReadError(f"its item at byte {start + at} has an undefined length", frame=index)
    return length


def locate_frames(
    header: Header, pixel_data: PixelData, num_frames: int, pixel_format: PixelFormat
) -> Frames:
    """Return the frame index, by the offset tables if there are any, else by one scan.

    Parameters
    ----------
    header : Header
        The data set before the frames.
    pixel_data : PixelData
        Place of the Pixel Data element.
    num_frames : int
        Number of Frames.
    pixel_format : PixelFormat
        Pixel format, by the header.

    Raises
    ------
    MetadataError
        When the pixel data can't hold that many frames, or hold numbers of another kind.

    """
    blob = header.blob
    limit = blob.size
    if pixel_data.length != UNDEFINED:
        limit = min(limit, pixel_data.start + pixel_data.length)
    if not header.decoder.encapsulated:
        if (pixel_data.tag == INTEGERS) == pixel_format.floating:
            raise MetadataError(
                f"{blob.name}: the header describes pixels of {pixel_format.dtype}, the pixel data"
                f" are in the element {pixel_data.tag:08X}"
            )
        bits = _stored_bits(blob, pixel_data, num_frames, pixel_format.native_bits)
        swapped = not header.decoder.little_endian and pixel_data.vr == b"OW"
        return NativeFrames(pixel_data.start, limit, bits, swapped and _has_8_bits(header.dataset))
    base, table_length = _first_item(blob, pixel_data)
    offsets, lengths = pixel_data.extended_offsets, pixel_data.extended_lengths
    if offsets is not None and lengths is not None and len(offsets) == len(lengths) == num_frames:
        starts = base + offsets.astype(np.int64)
        return EncapsulatedFrames(
            starts, starts + ITEM_HEADER + lengths.astype(np.int64), limit, single=True
        )
    if table_length == 4 * num_frames:
        data = blob.read(pixel_data.start + ITEM_HEADER, table_length)
        table = np.frombuffer(data[: len(data) // 4 * 4], "<u4").astype(np.int64)
        # items are in the order of frames (PS3.5 A.4), and in a file of more than 4 GiB the 32-bit
        # offsets wrap: a table that says otherwise is no table
        if len(table) == num_frames and limit - base <= UNDEFINED and (np.diff(table) > 0).all():
            return _by_basic_table(blob, base + table, limit)
    return _kept_or_by_scan(blob, base, limit, num_frames)


def scan_frames(
    header: Header, pixel_data: PixelData, num_frames: int, by_table: EncapsulatedFrames
) -> EncapsulatedFrames | None:
    """Return the frame index by one scan, where an offset table doesn't point at items.

    Tables of pydicom before 2.4.4 are such: they don't count the padding of frames.

    Parameters
    ----------
    header, pixel_data, num_frames
        See :func:`locate_frames`.
    by_table : EncapsulatedFrames
        Frame index by the offset table.

    Returns
    -------
    EncapsulatedFrames or None
        None where the scan doesn't find all frames, or where the table, as far as it points at
        frames, has them in another order.

    """
    blob = header.blob
    base, _ = _first_item(blob, pixel_data)
    try:
        found = _kept_or_by_scan(blob, base, by_table.limit, num_frames)
    except MetadataError:
        return None
    if len(found.starts) != num_frames:
        return None
    is_right = np.isin(by_table.starts, found.starts)
    return found if (by_table.starts == found.starts)[is_right].all() else None


def _first_item(blob: Blob, pixel_data: PixelData) -> tuple[int, int]:
    """Return the offset of the first item of a frame, and the length of the basic offset table."""
    head = blob.read(pixel_data.start, ITEM_HEADER).ljust(ITEM_HEADER, b"\0")
    tag, table_length = struct.unpack("<II", head)
    if tag != _ITEM:
        raise MetadataError(f"{blob.name}: encapsulated pixel data don't begin with an item")
    return pixel_data.start + ITEM_HEADER + table_length, table_length


def _kept_or_by_scan(blob: Blob, base: int, limit: int, num_frames: int) -> EncapsulatedFrames:
    what = (blob.size, blob.version, base, limit, num_frames)
    kept = index_cache.load(blob.name, what) if blob.version else None
    if kept is not None and len(kept) % 2 == 1:
        starts, ends = kept[1:].reshape(2, -1)
        return EncapsulatedFrames(starts, ends, limit, single=bool(kept[0]))
    found = _by_scan(blob, base, limit, num_frames)
    if blob.version:  # without a version, the entry could be of other bytes
        numbers = np.concatenate([[found.single], found.starts, found.ends])
        index_cache.save(blob.name, what, numbers)
    return found


def _stored_bits(blob: Blob, pixel_data: PixelData, num_frames: int, native_bits: int) -> int:
    """Return the distance between the beginnings of consecutive frames, in bits.

    Frames aren't padded (PS3.5 section 8), but some writers pad each bit-packed one to whole bytes.
    Any other length of the pixel data raises a MetadataError: all frames would be shifted.
    """
    for bits in (native_bits, -(-native_bits // 8) * 8):
        expected = -(-num_frames * bits // 8)
        if pixel_data.length in (expected, expected + expected % 2):
            return bits
    raise MetadataError(
        f"{blob.name}: the header describes {num_frames} frames of {native_bits} bits,"
        f" {-(-num_frames * native_bits // 8)} bytes; the pixel data have {pixel_data.length}"
    )


def _has_8_bits(dataset: Dataset) -> bool:
    return dataset.get("BitsAllocated") in (1, 8)


def _by_basic_table(blob: Blob, starts: NDArray[np.int64], limit: int) -> EncapsulatedFrames:
    # a frame ends where the next one on disk begins; the last one where the items end
    ordered, places = np.unique(starts, return_inverse=True)
    last = int(ordered[-1])
    items, _ = _scan_items(blob, last, limit)  # none behind a wrong offset: reading it will say so
    following = np.append(ordered, max(items[-1], last + 1))
    return EncapsulatedFrames(starts, following[places + 1], limit, single=False)


def _scan_items(blob: Blob, at: int, limit: int) -> tuple[list[int], int | None]:
    """Read each item header once.

    Returns
    -------
    offsets : list of int
        Offset of each item, and of the end of the last one.
    tag : int or None
        Tag at that end, if it isn't an item's; None where the pixel data end.

    """
    unpack = struct.Struct("<II").unpack_from
    read = blob.reading()
    offsets = [at]
    add = offsets.append
    window, start, behind, size = b"", at, at - 1, ITEM_HEADER
    while at + ITEM_HEADER <= limit:
        if at > behind:
            window, start = read(at, size), at
            behind = start + len(window) - ITEM_HEADER
            if at > behind:  # the file was truncated: reading frames will raise
                break
        tag, length = unpack(window, at - start)
        if tag != _ITEM:
            return offsets, tag
        # small items are read many at once, of large ones the headers alone
        size = WINDOW if length < NEAR else ITEM_HEADER
        at += ITEM_HEADER + length
        add(at)
    return offsets, None


def _by_scan(blob: Blob, base: int, limit: int, num_frames: int) -> EncapsulatedFrames:
    offsets, tag = _scan_items(blob, base, limit)
    if tag not in (None, _SEQUENCE_END):
        raise MetadataError(f"{blob.name}: no item begins at byte {offsets[-1]} of the pixel data")
    bounds = np.array(offsets, np.int64)
    starts, ends = bounds[:-1], bounds[1:]
    found = len(starts)
    if found == num_frames or (found < num_frames and tag is None):
        return EncapsulatedFrames(starts, ends, limit, single=True)  # truncated, if fewer
    begins = _begin_codestreams(blob, starts)
    if np.count_nonzero(begins) == num_frames and begins[0]:
        first = np.flatnonzero(begins)
    elif found > num_frames and found % num_frames == 0:
        first = np.arange(num_frames) * (found // num_frames)
    else:
        raise MetadataError(
            f"{blob.name}: the header declares {num_frames} frames, the pixel data hold {found}"
            f" fragments, of which {np.count_nonzero(begins)} begin a codestream"
        )
    return EncapsulatedFrames(
        starts[first], ends[np.append(first[1:], found) - 1], limit, single=False
    )


_CODESTREAM_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\xff\x0a", b"\0\0\0\x0c")


def _begin_codestreams(blob: Blob, starts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each item begins as a frame does, not as a later fragment of one."""
    longest = max(map(len, _CODESTREAM_STARTS))
    values = (starts + ITEM_HEADER).tolist()
    heads = blob.read_spans([(at, at + longest) for at in values])
    return np.array([bytes(head).startswith(_CODESTREAM_STARTS) for head in heads], np.bool_)
