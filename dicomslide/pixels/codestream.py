"""Parsers of the headers of JPEG, JPEG-LS, JPEG 2000 and JPEG XL codestreams.

They read markers, never entropy-coded data. Size, precision and colour space are thus known before
memory is allocated, at a cost that is negligible beside decoding.
"""

from __future__ import annotations

import dataclasses
import struct
from functools import lru_cache

__all__ = ["Jpeg2000Header", "JpegHeader", "ends_image", "has_complete_tile_parts",
           "has_plain_tile_parts", "is_lossy", "jpeg_xl_size", "parse_jpeg", "parse_jpeg2000",
           "transfer_syntax_by_signature"]  # fmt: skip

USUAL_HEADER = 1024
"""Bytes within which most headers of codestreams end."""
MOST_TILES = 65535
"""Upper bound on the tiles of a JPEG 2000 image (T.800 A.4.2)."""

# markers without a length (T.81 table B.1): TEM, RST0-RST7, SOI
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_START_OF_FRAME = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xF7})  # sequential, progressive, lossless, LS
_START_OF_SCAN = b"\xff\xda"
_END_OF_IMAGE = b"\xff\xd9"  # EOI of JPEG, EOC of JPEG 2000
_START_OF_TILE_PART = b"\xff\x90"  # SOT
_JPEG_2000 = b"\xff\x4f\xff\x51"  # SOC, SIZ
_HTJ2K_CAPABILITY = 0x4000
"""Bit of Rsiz that is set where a CAP marker follows (T.814 A.2)."""
_UNSUPPORTED_FRAME = frozenset({*range(0xC5, 0xD0)} - {0xC8, 0xCC})  # hierarchical, arithmetic


@dataclasses.dataclass(frozen=True, slots=True)
class JpegHeader:
    """Parameters of a JPEG or JPEG-LS codestream, from the markers before its first scan."""

    rows: int
    columns: int
    precision: int
    start_of_frame: int
    """Second byte of the SOF marker: the coding process (T.81 table B.1)."""
    component_ids: tuple[int, ...]
    subsampled: bool
    """Whether components differ in their number of samples."""
    adobe_transform: int | None
    """Colour transform of the Adobe APP14 marker: 0 none, 1 YCbCr."""
    jfif: bool
    colour_segments: tuple[tuple[int, int], ...]
    """(start, end) in bytes of the APP0 JFIF and APP14 Adobe segments."""
    scan: int
    """Offset of the first SOS marker."""

    @property
    def lossless(self) -> bool:
        """Whether the process is lossless JPEG (not JPEG-LS)."""
        return self.start_of_frame == 0xC3


def parse_jpeg(buffer: memoryview) -> JpegHeader:
    """Read the markers of a JPEG or JPEG-LS codestream up to its first scan.

    Raises
    ------
    ValueError
        When a marker is invalid or truncated, the process isn't one of DICOM, or no frame header
        precedes the first scan.

    """
    start = bytes(buffer[:USUAL_HEADER])
    scan = start.find(_START_OF_SCAN)
    if scan >= 0:
        end = scan + 2 + int.from_bytes(start[scan + 2 : scan + 4], "big")
        try:
            return _parse_cached(start[:end])
        except ValueError:  # these bytes were no SOS marker, but part of a segment
            pass
    return _parse(buffer)


@lru_cache(maxsize=64)
def _parse_cached(header: bytes) -> JpegHeader:
    """Parse a header; most frames of an image have an identical one, parsed once."""
    return _parse(memoryview(header))


def _parse(buffer: memoryview) -> JpegHeader:
    size = len(buffer)
    if size < 4 or buffer[0] != 0xFF or buffer[1] != 0xD8:
        raise ValueError(
            f"no JPEG codestream: it starts with {bytes(buffer[:4]).hex() or 'nothing'}, not ffd8"
        )
    adobe: int | None = None
    jfif = False
    segments: list[tuple[int, int]] = []
    frame: tuple[int, int, int, int, tuple[int, ...], bool] | None = None
    at = 2
    while at + 4 <= size:
        if buffer[at] != 0xFF:
            raise ValueError(f"byte {at} of the JPEG header is {buffer[at]:02X}, not a marker (FF)")
        code = buffer[at + 1]
        if code == 0xFF:  # fill byte
            at += 1
            continue
        if code in _STANDALONE:
            at += 2
            continue
        length = buffer[at + 2] << 8 | buffer[at + 3]
        end = at + 2 + length
        if length < 2 or end > size:
            raise ValueError(f"marker FF{code:02X} at byte {at} runs past the end of the frame")
        body = buffer[at + 4 : end]
        if code == 0xE0 and bytes(body[:5]) == b"JFIF\0":
            jfif = True
            segments.append((at, end))
        elif code == 0xEE and bytes(body[:5]) == b"Adobe" and len(body) >= 12:
            adobe = body[11]
            segments.append((at, end))
        elif code in _START_OF_FRAME:
            precision, rows, columns, components = struct.unpack(">BHHB", body[:6])
            if len(body) < 6 + 3 * components or not components:
                raise ValueError("the JPEG frame header is too short for its components")
            sampling = {body[7 + 3 * i] for i in range(components)}
            ids = tuple(body[6 + 3 * i] for i in range(components))
            frame = rows, columns, precision, code, ids, len(sampling) > 1
        elif code in _UNSUPPORTED_FRAME:
            raise ValueError(
                f"JPEG process FF{code:02X} (hierarchical or arithmetic) isn't in DICOM"
            )
        elif code == 0xDA:
            if frame is None:
                break
            return JpegHeader(*frame, adobe, jfif, tuple(segments), at)
        at = end
    raise ValueError("the JPEG codestream ends before its first scan")


@dataclasses.dataclass(frozen=True, slots=True)
class Jpeg2000Header:
    """The main header of a JPEG 2000 codestream."""

    rows: int
    columns: int
    precision: int
    components: int
    subsampled: bool
    multiple_component_transform: bool
    reversible: bool
    """Whether the wavelet is the reversible one, 5/3 (T.800 A.6.1)."""
    precisions: tuple[int, ...]
    """Offsets of the bytes that hold the precision of a component (Ssiz)."""
    plain_htj2k: bool
    """Whether it is reversible HTJ2K without optional features: see :func:`_is_plain_htj2k`."""
    tile_parts: int
    """Offset of the first tile-part."""


def parse_jpeg2000(buffer: memoryview) -> Jpeg2000Header:
    """Read the main header of a JPEG 2000 codestream, which may stand in a JP2 file.

    Raises
    ------
    ValueError
        When there is no such codestream, or its main header is truncated or invalid.

    """
    head = bytes(buffer[:USUAL_HEADER])
    end = head.find(_START_OF_TILE_PART + b"\x00\x0a")
    if end >= 0 and head.startswith(_JPEG_2000):
        try:
            return _parse_main_header_cached(head[: end + 2])
        except ValueError:  # these bytes were no SOT marker, but part of a segment
            pass
    return _parse_main_header(bytes(buffer))


@lru_cache(maxsize=64)
def _parse_main_header_cached(header: bytes) -> Jpeg2000Header:
    """Parse a main header; most frames of an image have an identical one, parsed once."""
    return _parse_main_header(header)


def _parse_main_header(data: bytes) -> Jpeg2000Header:
    start = data.find(_JPEG_2000)  # boxes of a JP2 file may precede it
    if start < 0:
        raise ValueError(f"no JPEG 2000 codestream: it starts with {data[:4].hex() or 'nothing'}")
    try:
        return _main_header(data, start + 2)
    except struct.error:
        raise ValueError("the JPEG 2000 codestream ends within its main header") from None


def _main_header(data: bytes, at: int) -> Jpeg2000Header:
    siz = at
    segments: list[tuple[int, bytes]] = []
    transform = reversible = False
    while True:
        (marker,) = struct.unpack_from(">H", data, at)
        if marker == 0xFF90:  # SOT: the first tile-part
            break
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker == 0xFF51:  # SIZ
            right, bottom, left, top = struct.unpack_from(">4I", data, at + 6)
            width, height, tile_left, tile_top = struct.unpack_from(">4I", data, at + 22)
            if not (width and height and tile_left <= left < right and tile_top <= top < bottom):
                raise ValueError("the sizes in the JPEG 2000 header contradict each other")
            tiles = -(-(right - tile_left) // width) * -(-(bottom - tile_top) // height)
            if tiles > MOST_TILES:
                raise ValueError(
                    f"the JPEG 2000 header declares {tiles} tiles; at most {MOST_TILES} are allowed"
                )
            (components,) = struct.unpack_from(">H", data, at + 38)
            triples = struct.unpack_from(f">{3 * components}B", data, at + 40)
        elif marker == 0xFF52:  # COD
            transform = data[at + 8] == 1
            reversible = data[at + 13 : at + 14] == b"\1"
        segments.append((marker, data[at + 4 : at + 2 + length]))
        at += 2 + length
    precisions = triples[::3]
    return Jpeg2000Header(
        rows=bottom - top,
        columns=right - left,
        precision=max(p & 0x7F for p in precisions) + 1,
        components=components,
        subsampled=len(set(triples[1::3])) > 1 or len(set(triples[2::3])) > 1,
        multiple_component_transform=transform,
        reversible=reversible,
        precisions=tuple(siz + 40 + 3 * i for i in range(components)),
        plain_htj2k=_is_plain_htj2k(segments),
        tile_parts=at,
    )


def _is_plain_htj2k(segments: list[tuple[int, bytes]]) -> bool:
    """Whether a main header declares HTJ2K (T.814) without optional features.

    That is: reversible, of one tile and one layer, with 1 or 3 unsigned components of equal size,
    precision and coding parameters. OpenJPH decodes these safely (see ``jpeg2000._plain_htj2k``).
    """
    bodies = dict(segments)
    kinds = sorted(marker for marker, _ in segments if marker not in (0xFF55, 0xFF64))  # TLM, COM
    if kinds != [0xFF50, 0xFF51, 0xFF52, 0xFF5C]:  # CAP, SIZ, COD, QCD, once each
        return False
    cap, siz, cod, qcd = (bodies[kind] for kind in kinds)
    samples, remainder = divmod(len(siz) - 36, 3)
    if remainder or samples not in (1, 3) or len(cap) != 6 or len(cod) < 10:
        return False
    capabilities, right, bottom, *offset = struct.unpack_from(">H4I", siz)
    width, height, *tile_offset = struct.unpack_from(">4I", siz, 18)
    levels, block_width, block_height = cod[5:8]
    return (
        bool(capabilities & _HTJ2K_CAPABILITY)
        and not any(offset + tile_offset)
        and width >= right
        and height >= bottom
        and not (right | bottom) % (2 << levels)
        and siz[34:36] == bytes((0, samples))
        and siz[36:] == bytes((siz[36], 1, 1)) * samples
        and siz[36] < 16
        # part 15 only; all blocks are HT, with one HT set each (T.814 A.3)
        and cap[:4] == b"\0\2\0\0"
        and not cap[4] & 0xF8
        # progression, one layer, colour transform of three components
        and cod[0] <= 1
        and cod[1] <= 4
        and cod[2:4] == b"\0\1"
        and cod[4] <= int(samples == 3)
        # blocks of at most 4,096 samples, HT coding only, reversible 5/3 (T.800 A.6.1)
        and levels <= 10
        and max(block_width, block_height) <= 6
        and block_width + block_height <= 8
        and cod[8:10] == b"\x40\1"
        and len(cod) == 10 + cod[0] * (levels + 1)
        and all(size & 0x0F >= 5 and size >> 4 >= 5 for size in cod[10:])
        # no quantisation; 1 to 4 guard bits; per subband an exponent that fits the precision of
        # the pixels (T.800 A.6.4)
        and len(qcd) == 2 + 3 * levels
        and qcd[0] in (0x20, 0x40, 0x60, 0x80)
        and all(siz[36] < size >> 3 <= siz[36] + 5 and not size & 7 for size in qcd[1:])
    )


def has_complete_tile_parts(buffer: memoryview, at: int) -> bool:
    """Whether tile-parts from offset `at` on have the lengths they declare and end with EOC."""
    while at + 12 <= len(buffer) and bytes(buffer[at : at + 2]) == _START_OF_TILE_PART:
        (length,) = struct.unpack_from(">I", buffer, at + 6)
        if length == 0:  # the last tile-part, up to EOC
            return ends_image(buffer)
        if length < 14:
            return False
        at += length
    return bytes(buffer[at : at + 2]) == _END_OF_IMAGE


def has_plain_tile_parts(buffer: memoryview, at: int) -> bool:
    """Whether tile-parts from offset `at` on are of tile 0, in order, without optional markers."""
    part = 0
    while bytes(buffer[at : at + 2]) == _START_OF_TILE_PART:
        size, tile, length, index, count, data = struct.unpack_from(">2HI2BH", buffer, at + 2)
        if (size, tile, index, data) != (10, 0, part, 0xFF93) or (count and index >= count):  # SOD
            return False
        if not length:
            return False
        at += length
        part += 1
    return True


def ends_image(buffer: memoryview) -> bool:
    """Whether a codestream ends with the EOI or EOC marker, apart from padding."""
    end = bytes(buffer[-16:]).rstrip(b"\0")
    if len(end) < 2:
        end = bytes(buffer).rstrip(b"\0")
    # some writers pad to an even length with a byte of any value
    padded = len(buffer) % 2 == 0 and bytes(buffer[-3:-1]) == _END_OF_IMAGE
    return padded or end.endswith(_END_OF_IMAGE)


def jpeg_xl_size(buffer: memoryview) -> tuple[int, int]:
    """Read (rows, columns), in pixels, from a JPEG XL codestream's SizeHeader (ISO/IEC 18181-1).

    Raises
    ------
    ValueError
        When there is no JPEG XL codestream, neither bare nor in the box format.

    """
    head = bytes(buffer[:4096])
    start = 0
    if head[4:8] == b"JXL ":  # the box format: codestream in jxlc, or in parts in jxlp
        whole, part = head.find(b"jxlc"), head.find(b"jxlp")
        start = whole + 4 if whole >= 0 else part + 8
    if head[start : start + 2] != b"\xff\x0a":
        raise ValueError(f"no JPEG XL codestream: it starts with {head[:4].hex() or 'nothing'}")
    bits = int.from_bytes(head[start + 2 : start + 14], "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    small = take(1)

    def side() -> int:
        return 8 * (1 + take(5)) if small else 1 + take((9, 13, 18, 30)[take(2)])

    rows = side()
    ratio = take(3)
    if ratio == 0:
        return rows, side()
    numerator, denominator = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return rows, rows * numerator // denominator


# -- transfer syntax, lossy or lossless ------------------------------------------------------------

_UID = "1.2.840.10008.1.2.4"
_JPEG_PROCESSES = {0xC0: f"{_UID}.50", 0xC3: f"{_UID}.57", 0xF7: f"{_UID}.81"}
_JP2 = b"\0\0\0\x0cjP  \r\n\x87\n"
_JPEG_XL = b"\xff\x0a"
_JPEG_XL_BOXES = b"\0\0\0\x0cJXL \r\n\x87\n"


def transfer_syntax_by_signature(buffer: memoryview) -> str | None:
    """Return the transfer syntax of a codestream, by its first bytes.

    Where a lossless and a general transfer syntax share a signature, the general one is returned.

    Returns
    -------
    str or None
        Transfer Syntax UID of JPEG, JPEG-LS, JPEG 2000, HTJ2K or JPEG XL; None without one of
        their signatures.

    """
    head = bytes(buffer[:12])
    if head[:3] == b"\xff\xd8\xff":
        try:
            return _JPEG_PROCESSES.get(parse_jpeg(buffer).start_of_frame, f"{_UID}.51")
        except ValueError:
            return f"{_UID}.50"  # its decoder raises an error that names the fault
    if head[:4] == _JPEG_2000 or head == _JP2:
        data = bytes(buffer)
        at = data.find(_JPEG_2000) + 6
        capabilities = int.from_bytes(data[at : at + 2], "big")
        return f"{_UID}.203" if capabilities & _HTJ2K_CAPABILITY else f"{_UID}.91"
    if head[:2] == _JPEG_XL or head == _JPEG_XL_BOXES:
        return f"{_UID}.112"
    return None


def is_lossy(buffer: memoryview) -> bool:
    """Whether the header of a codestream says that its compression is lossy.

    True for JPEG with DCT, near-lossless JPEG-LS, and JPEG 2000 or HTJ2K with the 9/7 wavelet.
    False for JPEG XL, whose size header doesn't say, and without a known signature.
    """
    uid = transfer_syntax_by_signature(buffer)
    try:
        if uid in (f"{_UID}.91", f"{_UID}.203"):
            return not parse_jpeg2000(buffer).reversible
        if uid is None or uid == f"{_UID}.112":
            return False
        header = parse_jpeg(buffer)
        if header.start_of_frame == 0xF7:  # NEAR follows the components (T.87 C.2.3)
            return buffer[header.scan + 5 + 2 * buffer[header.scan + 4]] > 0
    except (ValueError, IndexError):
        return False  # the decoder raises an error that names the fault
    return not header.lossless
