"""One frame's bytes to pixels.

A pure function of bytes, pixel format and transfer syntax, with one table of decoders. It
decodes whole or not at all: what is truncated or contradicts its header raises.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import re
import struct
import zlib
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dicomslide.cache import Registry
from dicomslide.codestream import (
    Jpeg2000Header,
    JpegHeader,
    ends_image,
    has_complete_tile_parts,
    has_plain_tile_parts,
    jpeg_xl_size,
    parse_jpeg,
    parse_jpeg2000,
    transfer_syntax_by_signature,
)
from dicomslide.errors import FrameDecodeError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Literal, TypeAlias

    from numpy.typing import NDArray

    Pixels: TypeAlias = NDArray[Any]
    Buffer: TypeAlias = bytes | bytearray | memoryview

__all__ = ["DECODERS", "NATIVE", "Decoder", "PixelFormat", "decode_frame", "transfer_syntax_of"]

logger = logging.getLogger(__name__)

NATIVE, RLE, DEFLATED_FRAME = (f"1.2.840.10008.1.2{end}" for end in (".1", ".5", ".8.1"))
_conflicts: Registry[tuple[str, str], None] = Registry(64)
TINY_HTJ2K = 1024
"""Bytes of a codestream below which OpenJPH believes too much of what it says of lengths."""
RLE_PADDING = 8
"""Zeros that padding of an RLE segment may decode to."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelFormat:
    """How a header describes the pixels of a frame (PS3.3 C.7.6.3)."""

    rows: int
    columns: int
    samples: int = 1
    bits_allocated: int = 8
    bits_stored: int = 8
    signed: bool = False
    floating: bool = False
    """Whether the pixels are Float or Double Float Pixel Data."""
    photometric: str = "MONOCHROME2"
    planar: bool = False
    """Whether native frames hold one plane a sample (Planar Configuration 1)."""

    def __post_init__(self) -> None:
        if min(self.rows, self.columns) < 1 or self.samples not in (1, 3):
            raise ValueError(
                f"a frame of {self.rows} × {self.columns} pixels with {self.samples} samples"
                " isn't an image; expected at least 1 × 1 with 1 or 3 samples"
            )
        allowed = (32, 64) if self.floating else (1, 8, 16, 32)
        if self.bits_allocated not in allowed:
            raise ValueError(f"Bits Allocated {self.bits_allocated} isn't one of {allowed}")

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """Of the decoded pixels: bool for bit-packed ones."""
        if self.bits_allocated == 1:
            return np.dtype(np.bool_)
        kind = "f" if self.floating else "i" if self.signed else "u"
        return np.dtype(f"{kind}{self.bits_allocated // 8}")

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Rows, columns and samples."""
        return self.rows, self.columns, self.samples

    @property
    def is_color(self) -> bool:
        """Whether the decoded pixels are RGB."""
        return self.samples == 3

    @property
    def native_bits(self) -> int:
        """Size of a native frame in bits; frames follow each other without padding."""
        pixels = self.rows * self.columns
        if self.photometric == "YBR_FULL_422":  # PS3.3 C.7.6.3.1.2: two pixels share chroma
            return 16 * pixels
        return pixels * self.samples * self.bits_allocated

    @property
    def native_bytes(self) -> int:
        """Size of a native frame that stands alone, in bytes."""
        return -(-self.native_bits // 8)


@dataclasses.dataclass(frozen=True, slots=True)
class Decoder:
    """How frames of one transfer syntax are stored, and what decodes them."""

    name: str
    decode: Callable[[memoryview, PixelFormat], Pixels]
    encapsulated: bool = True
    little_endian: bool = True
    implicit_vr: bool = False
    deflated: bool = False
    """Whether the whole data set is deflated, not single frames."""
    is_quick: bool = False
    """Whether decoding a frame takes about as long as keeping it does: memory is slow, too."""


def decode_frame(
    buffer: Buffer, pixel_format: PixelFormat, transfer_syntax_uid: str | None
) -> Pixels:
    """Decode one frame.

    Parameters
    ----------
    buffer : bytes-like
        The frame as stored, from its first bit, fragments joined.
    pixel_format : PixelFormat
        What the header says of it.
    transfer_syntax_uid : str or None
        Transfer syntax in which it is stored; None where only its bytes tell: see
        :func:`transfer_syntax_of`.

    Returns
    -------
    numpy.ndarray
        Shape (rows, columns, samples), of the format's dtype, RGB if colour. A codestream may
        hold fewer rows and columns than declared (a cropped tile at the edge), never more. It
        may be a read-only view of `buffer`.

    Raises
    ------
    FrameDecodeError
        When the transfer syntax isn't supported, or the bytes aren't what they should be.

    """
    if transfer_syntax_uid is None:
        transfer_syntax_uid = transfer_syntax_of(buffer, pixel_format)
        if transfer_syntax_uid == NATIVE and len(buffer) > pixel_format.native_bytes + 1:
            # chroma that a server has expanded, it has converted too
            pixel_format = dataclasses.replace(pixel_format, photometric="RGB")
    decoder = DECODERS.get(transfer_syntax_uid)
    if decoder is None:
        raise FrameDecodeError(
            f"transfer syntax {transfer_syntax_uid} isn't supported; supported are "
            + ", ".join(f"{uid} ({known.name})" for uid, known in DECODERS.items())
        )
    try:
        array = decoder.decode(memoryview(buffer).cast("B"), pixel_format)
    except FrameDecodeError:
        raise
    except Exception as error:  # each decoder has error types of its own
        raise FrameDecodeError(
            f"{len(buffer)} bytes of {decoder.name} don't decode: {error}"
        ) from error
    if array.ndim == 2:
        array = array[:, :, None]
    _check_size(array.shape[0], array.shape[1], array.shape[2], pixel_format)
    if array.dtype != pixel_format.dtype:
        array = _as_declared(array, pixel_format)
    return array


def transfer_syntax_of(buffer: Buffer, pixel_format: PixelFormat) -> str:
    """Tell the transfer syntax of a frame from its bytes.

    For frames that come without their transfer syntax, or with one that can't be believed:
    DICOMweb metadata have none, and servers transcode.

    Parameters
    ----------
    buffer : bytes-like
        The frame, from its first bit.
    pixel_format : PixelFormat
        What the header says of it.

    Returns
    -------
    str
        A key of :data:`DECODERS`; Explicit VR Little Endian for a native frame, which is as
        long as the header says.

    Raises
    ------
    FrameDecodeError
        When the bytes are no codestream that is known, nor as many as a native frame has.

    """
    view = memoryview(buffer).cast("B")
    native = _has_native_length(len(view), pixel_format)
    found = transfer_syntax_by_signature(view)
    if found is None and _has_rle_header(view, pixel_format):
        found = RLE
    # pixels may begin like any codestream, but they don't decode as one
    if found is not None and not (native and not _decodes(view, pixel_format, found)):
        return found
    if native:
        return NATIVE
    if _inflates(view, pixel_format):
        return DEFLATED_FRAME
    raise FrameDecodeError(
        f"{len(view)} bytes that start with {bytes(view[:4]).hex() or 'nothing'} are neither a"
        f" known codestream nor a native frame of {pixel_format.native_bytes} bytes"
    )


def _has_native_length(length: int, declared: PixelFormat) -> bool:
    sizes = {declared.native_bytes}
    if declared.photometric == "YBR_FULL_422":  # decompressed on the way
        sizes.add(math.prod(declared.shape) * declared.bits_allocated // 8)
    return length in sizes | {size + size % 2 for size in sizes}


def _has_rle_header(buffer: memoryview, declared: PixelFormat) -> bool:
    if len(buffer) < 64 or declared.bits_allocated == 1:
        return False
    count, *offsets = struct.unpack("<16I", buffer[:64])
    return (
        count == declared.samples * declared.dtype.itemsize
        and offsets[0] == 64
        and not any(offsets[count:])
        and all(a < b for a, b in itertools.pairwise([*offsets[:count], len(buffer)]))
    )


def _decodes(buffer: memoryview, declared: PixelFormat, transfer_syntax_uid: str) -> bool:
    try:
        decode_frame(buffer, declared, transfer_syntax_uid)
    except FrameDecodeError:
        return False
    return True


def _inflates(buffer: memoryview, declared: PixelFormat) -> bool:
    stream = zlib.decompressobj(-15)
    try:
        size = len(stream.decompress(buffer, declared.native_bytes + 2))
    except zlib.error:
        return False
    return stream.eof and _has_native_length(size, declared)


def _check_size(rows: int, columns: int, samples: int, declared: PixelFormat) -> None:
    if not (0 < rows <= declared.rows and 0 < columns <= declared.columns):
        raise FrameDecodeError(
            f"the codestream holds {rows} × {columns} pixels (rows × columns), the header"
            f" declares {declared.rows} × {declared.columns}"
        )
    if samples != declared.samples:
        raise FrameDecodeError(
            f"the codestream holds {samples} samples per pixel, the header declares"
            f" {declared.samples}"
        )


def _check_precision(precision: int, declared: PixelFormat) -> None:
    if precision > max(declared.bits_allocated, 8):
        raise FrameDecodeError(
            f"the codestream holds {precision} bits a sample, the header allocates"
            f" {declared.bits_allocated}"
        )


def _as_declared(array: Pixels, declared: PixelFormat) -> Pixels:
    """Cast decoded pixels, whose precision was checked, to the declared dtype."""
    if declared.bits_allocated == 1:
        return array != 0
    if declared.signed and array.dtype.kind == "u":
        # a codestream that doesn't know of signs holds the two's complement of Bits Stored
        sign = 1 << (declared.bits_stored - 1)
        wide = array.astype(np.int64)
        return ((wide ^ sign) - sign).astype(declared.dtype)
    if array.dtype.kind == "f" or array.dtype.itemsize > declared.dtype.itemsize:
        raise FrameDecodeError(f"the codestream holds {array.dtype}, not {declared.dtype}")
    return array.astype(declared.dtype)


def _imagecodecs() -> Any:
    import imagecodecs  # late, for it is large; as Any, for its stubs know bytes only

    return imagecodecs


def _ybr_to_rgb(array: Pixels) -> Pixels:
    from pydicom.pixels.processing import convert_color_space

    return convert_color_space(array, "YBR_FULL", "RGB", per_frame=True)


# -- native ----------------------------------------------------------------------------------


def _native(
    buffer: memoryview, declared: PixelFormat, byteorder: Literal["<", ">"] = "<"
) -> Pixels:
    needed = declared.native_bytes
    if len(buffer) < needed:
        raise FrameDecodeError(f"{len(buffer)} bytes are left of a native frame of {needed} bytes")
    rows, columns, samples = declared.shape
    if declared.bits_allocated == 1:
        bits = np.unpackbits(
            np.frombuffer(buffer, np.uint8), count=rows * columns * samples, bitorder="little"
        )
        return bits.view(np.bool_).reshape(rows, columns, samples)
    flat = np.frombuffer(buffer[:needed], declared.dtype.newbyteorder(byteorder))
    if declared.photometric == "YBR_FULL_422":
        return _ybr_to_rgb(_expand_422(flat, declared))
    if declared.planar and samples > 1:
        array = np.moveaxis(flat.reshape(samples, rows, columns), 0, -1)
    else:
        array = flat.reshape(rows, columns, samples)
    if declared.photometric == "YBR_FULL":
        return _ybr_to_rgb(np.ascontiguousarray(array))
    return array.astype(declared.dtype, copy=False)


def _expand_422(flat: Pixels, declared: PixelFormat) -> Pixels:
    """Give both pixels of each Y1 Y2 Cb Cr their own chroma."""
    pairs = flat.reshape(-1, 4)
    full = np.empty((len(pairs), 2, 3), flat.dtype)
    full[:, :, 0] = pairs[:, :2]
    full[:, :, 1:] = pairs[:, None, 2:]
    return full.reshape(declared.shape)


def _native_big_endian(buffer: memoryview, declared: PixelFormat) -> Pixels:
    return _native(buffer, declared, ">")


def _inflated(buffer: memoryview, declared: PixelFormat) -> Pixels:
    needed = declared.native_bytes
    # never more than declared, whatever the stream would grow to
    return _native(memoryview(zlib.decompressobj(-15).decompress(buffer, needed)), declared)


def _rle(buffer: memoryview, declared: PixelFormat) -> Pixels:
    """PS3.5 annex G: one segment for each byte of each sample, the highest byte first."""
    rows, columns, samples = declared.shape
    size, count = declared.dtype.itemsize, samples * declared.dtype.itemsize
    if len(buffer) < 64:
        raise FrameDecodeError(f"{len(buffer)} bytes can't hold an RLE header of 64")
    found, *offsets = struct.unpack("<16I", buffer[:64])
    if found != count:
        raise FrameDecodeError(
            f"the RLE header counts {found} segments; {samples} samples of {declared.dtype} have"
            f" {count}"
        )
    ends = [*offsets[1:count], len(buffer)]
    samples_of_bytes = np.empty((rows * columns, samples, size), np.uint8)
    for segment, (start, end) in enumerate(zip(offsets, ends, strict=False)):
        if not 64 <= start < end <= len(buffer):
            raise FrameDecodeError(
                f"RLE segment {segment + 1} goes from byte {start} to {end} of {len(buffer)}"
            )
        plane = np.frombuffer(_imagecodecs().packbits_decode(buffer[start:end]), np.uint8)
        rest = plane[rows * columns :]  # padding behind the segment decodes to a few zeros
        if len(plane) < rows * columns or len(rest) > RLE_PADDING or rest.any():
            raise FrameDecodeError(
                f"RLE segment {segment + 1} holds {len(plane)} bytes, expected {rows * columns}"
            )
        sample, byte = divmod(segment, size)
        samples_of_bytes[:, sample, size - 1 - byte] = plane[: rows * columns]
    array = samples_of_bytes.view(declared.dtype.newbyteorder("<")).reshape(rows, columns, samples)
    return _ybr_to_rgb(array) if declared.photometric.startswith("YBR_FULL") else array


# -- JPEG ------------------------------------------------------------------------------------

_END_OF_IMAGE = b"\xff\xd9"
_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00%c"  # APP14, ends with the transform


def _jpeg(buffer: memoryview, declared: PixelFormat) -> Pixels:
    header = parse_jpeg(buffer)
    _check_precision(header.precision, declared)
    _check_size(header.rows, header.columns, len(header.component_ids), declared)
    if header.lossless or header.precision != 8:
        return _jpeg_uncommon(buffer, header, declared)
    if declared.samples == 1:
        return _strict_jpeg(buffer, "GRAY")
    wanted = _jpeg_is_ycbcr(header, declared)
    if wanted != _libjpeg_takes_for_ycbcr(header):
        buffer = _with_color_transform(buffer, header, wanted)
    return _strict_jpeg(buffer, "RGB")


def _jpeg_is_ycbcr(header: JpegHeader, declared: PixelFormat) -> bool:
    """Whether a colour JPEG is YCbCr, by the codestream first, then by the header."""
    claimed = declared.photometric != "RGB"
    if header.adobe_transform is not None:
        found = header.adobe_transform != 0
    elif header.jfif or header.subsampled:
        found = True
    elif bytes(header.component_ids) == b"RGB":
        found = False
    else:
        return claimed
    if found != claimed:
        key = declared.photometric, "YCbCr" if found else "RGB"
        _conflicts.get(key, lambda: _log_conflict(*key))  # once, whatever the number of threads
    return found


def _log_conflict(photometric: str, found: str) -> None:
    logger.info(
        "Photometric Interpretation is %s; the JPEG codestream holds %s and is decoded as that",
        photometric,
        found,
    )


def _libjpeg_takes_for_ycbcr(header: JpegHeader) -> bool:
    if header.jfif:
        return True
    if header.adobe_transform is not None:
        return header.adobe_transform != 0
    return bytes(header.component_ids) != b"RGB"


def _with_color_transform(buffer: memoryview, header: JpegHeader, ycbcr: bool) -> memoryview:
    """Replace the markers from which libjpeg takes the colour space by one that says it."""
    parts: list[bytes | memoryview] = [buffer[:2], _ADOBE % int(ycbcr)]
    at = 2
    for start, end in header.colour_segments:
        parts.append(buffer[at:start])
        at = end
    parts.append(buffer[at:])
    return memoryview(b"".join(parts))


def _strict_jpeg(buffer: memoryview, colorspace: str) -> Pixels:
    """Decode with libjpeg's warnings as errors: they tell of truncation, not of pixels."""
    import simplejpeg

    for _ in range(3):
        try:
            return simplejpeg.decode_jpeg(buffer, colorspace)
        except ValueError as error:
            mended = _mended(buffer, str(error))
            if mended is None:
                raise
            buffer = mended
    return simplejpeg.decode_jpeg(buffer, colorspace)


def _mended(buffer: memoryview, warning: str) -> memoryview | None:
    """Put right what libjpeg warns of but is known to be harmless, for a second, strict try."""
    if not ends_image(buffer):  # nothing but the marker may be missing: if more is, it shows
        return memoryview(bytes(buffer) + _END_OF_IMAGE)
    data = bytes(buffer)
    end = data.rindex(_END_OF_IMAGE)
    surplus = re.search(r"(\d+) extraneous bytes before marker 0xd9", warning)
    if surplus:
        return memoryview(data[: end - int(surplus[1])] + _END_OF_IMAGE)
    if "SOS parameters" in warning:  # of a sequential scan, where they can only be 0, 63, 0
        scan = parse_jpeg(buffer).scan
        behind = scan + 2 + int.from_bytes(data[scan + 2 : scan + 4], "big")
        if behind <= end:
            return memoryview(data[: behind - 3] + b"\0\x3f\0" + data[behind:])
    return None


def _require_end_of_image(buffer: memoryview) -> None:
    if not ends_image(buffer):
        raise FrameDecodeError("the codestream ends without its EOI marker: it is truncated")


def _jpeg_uncommon(buffer: memoryview, header: JpegHeader, declared: PixelFormat) -> Pixels:
    """Decode 12-bit and lossless JPEG, of which libjpeg's warnings don't reach us."""
    _require_end_of_image(buffer)
    data = bytes(buffer)
    components = "RGB" if declared.samples == 3 else "GRAYSCALE"
    ycbcr = declared.samples == 3 and _jpeg_is_ycbcr(header, declared)
    source = "YCBCR" if ycbcr and not header.lossless else components

    def decode(codestream: bytes) -> Pixels:
        return _imagecodecs().jpeg8_decode(codestream, colorspace=source, outcolorspace=components)

    array = decode(data)
    # A decoder that has run out of data goes on with zeros. One that has not, ignores what is
    # put before the end marker: if that changes the pixels, data were missing.
    end = data.rindex(_END_OF_IMAGE)
    if not np.array_equal(array, decode(data[:end] + b"\xaa" * 64 + data[end:])):
        raise FrameDecodeError("the JPEG codestream ends before its last pixel: it is truncated")
    return _ybr_to_rgb(array) if ycbcr and header.lossless else array


def _jpeg_ls(buffer: memoryview, declared: PixelFormat) -> Pixels:
    header = parse_jpeg(buffer)
    _check_precision(header.precision, declared)
    _check_size(header.rows, header.columns, len(header.component_ids), declared)
    _require_end_of_image(buffer)  # CharLS notices too, but may take seconds to
    array = _imagecodecs().jpegls_decode(buffer)
    return _ybr_to_rgb(array) if declared.photometric.startswith("YBR_FULL") else array


# -- JPEG 2000, JPEG XL ----------------------------------------------------------------------


def _jpeg_2000(buffer: memoryview, declared: PixelFormat) -> Pixels:
    """Decode JPEG 2000 or HTJ2K, whichever the codestream is."""
    header = parse_jpeg2000(buffer)
    _check_precision(header.precision, declared)
    _check_size(header.rows, header.columns, header.components, declared)
    if not has_complete_tile_parts(buffer, header.tile_parts):
        raise FrameDecodeError("the JPEG 2000 codestream is truncated, or its lengths are wrong")
    array = _plain_htj2k(buffer, header) if header.plain_htj2k else None
    if array is None:
        array = _imagecodecs().jpeg2k_decode(buffer)
    stored_as_ycbcr = declared.photometric == "YBR_FULL" or (
        # writers that leave RGB under this claim don't subsample
        declared.photometric == "YBR_FULL_422" and header.subsampled
    )
    if stored_as_ycbcr and not header.multiple_component_transform:
        return _ybr_to_rgb(array)
    return array


def _plain_htj2k(buffer: memoryview, header: Jpeg2000Header) -> Pixels | None:
    """Decode reversible HTJ2K with OpenJPH, in half the time; None where OpenJPEG has to tell.

    OpenJPH doesn't clip what overshoots, and 256 becomes 0 on its way to bytes; and an error in a
    block gets lost on the way to Python, where it leaves rows of zeros. Told that samples have
    more bits than they have, it gives neither as pixels, but as values out of range. Of damaged
    codestreams, as few become pixels as with OpenJPEG, if they are plain and not tiny. Lossy ones
    (9/7) stay with OpenJPEG: they would gain less, and OpenJPH rounds some samples otherwise.
    """
    if len(buffer) < TINY_HTJ2K or not has_plain_tile_parts(buffer, header.tile_parts):
        return None
    bits = 15 if header.precision < 15 else 18  # of an array of 16 or 32
    data = bytearray(buffer)
    for at in header.precisions:
        data[at] = bits - 1
    shape = header.rows, header.columns, header.components
    array = np.zeros(shape[: 2 + (shape[2] > 1)], np.uint16 if bits == 15 else np.uint32)
    _imagecodecs().htj2k_decode(data, out=array)
    array -= (1 << bits - 1) - (1 << header.precision - 1)  # the middle of the range
    if array.max() >> header.precision:
        return None
    return array.astype(np.uint8 if header.precision <= 8 else np.uint16)


def _jpeg_xl(buffer: memoryview, declared: PixelFormat) -> Pixels:
    _check_size(*jpeg_xl_size(buffer), declared.samples, declared)
    return _imagecodecs().jpegxl_decode(buffer)  # the codestream knows its colours


_UID = "1.2.840.10008.1.2"

DECODERS: dict[str, Decoder] = {
    _UID: Decoder(
        "Implicit VR Little Endian", _native, encapsulated=False, implicit_vr=True, is_quick=True
    ),
    f"{_UID}.1": Decoder("Explicit VR Little Endian", _native, encapsulated=False, is_quick=True),
    f"{_UID}.2": Decoder(
        "Explicit VR Big Endian",
        _native_big_endian,
        encapsulated=False,
        little_endian=False,
        is_quick=True,
    ),
    f"{_UID}.1.99": Decoder(
        "Deflated Explicit VR Little Endian",
        _native,
        encapsulated=False,
        deflated=True,
        is_quick=True,
    ),
    f"{_UID}.1.98": Decoder(
        "Encapsulated Uncompressed Explicit VR Little Endian", _native, is_quick=True
    ),
    f"{_UID}.8.1": Decoder("Deflated Image Frame Compression", _inflated),
    f"{_UID}.5": Decoder("RLE Lossless", _rle),
    f"{_UID}.4.50": Decoder("JPEG Baseline", _jpeg, is_quick=True),
    f"{_UID}.4.51": Decoder("JPEG Extended", _jpeg),
    f"{_UID}.4.57": Decoder("JPEG Lossless", _jpeg),
    f"{_UID}.4.70": Decoder("JPEG Lossless SV1", _jpeg),
    f"{_UID}.4.80": Decoder("JPEG-LS Lossless", _jpeg_ls),
    f"{_UID}.4.81": Decoder("JPEG-LS Near Lossless", _jpeg_ls),
    f"{_UID}.4.90": Decoder("JPEG 2000 Lossless", _jpeg_2000),
    f"{_UID}.4.91": Decoder("JPEG 2000", _jpeg_2000),
    f"{_UID}.4.201": Decoder("HTJ2K Lossless", _jpeg_2000),
    f"{_UID}.4.202": Decoder("HTJ2K Lossless RPCL", _jpeg_2000),
    f"{_UID}.4.203": Decoder("HTJ2K", _jpeg_2000),
    f"{_UID}.4.110": Decoder("JPEG XL Lossless", _jpeg_xl),
    f"{_UID}.4.111": Decoder("JPEG XL JPEG Recompression", _jpeg_xl),
    f"{_UID}.4.112": Decoder("JPEG XL", _jpeg_xl),
}
"""Everything that is known of each transfer syntax, by UID (PS3.5 section 10)."""
