"""Table of decoders by transfer syntax, and the choice of a frame's decoder."""

from __future__ import annotations

import dataclasses
import itertools
import math
import struct
import zlib
from typing import TYPE_CHECKING, Literal

import numpy as np

from dicomslide.errors import FrameDecodeError
from dicomslide.pixels.codestream import transfer_syntax_by_signature
from dicomslide.pixels.jpeg import jpeg, jpeg_ls
from dicomslide.pixels.jpeg2000 import jpeg_2000, jpeg_xl
from dicomslide.pixels.native import inflated, native, native_big_endian, rle
from dicomslide.pixels.pixel_format import PixelFormat, as_declared, check_size, halved

if TYPE_CHECKING:
    from collections.abc import Callable

    from dicomslide.pixels.pixel_format import Buffer, Pixels

__all__ = ["DECODERS", "JPEG_BASELINE", "NATIVE", "Decoder", "decode_frame", "scratch_memory",
           "transfer_syntax_of"]  # fmt: skip

NATIVE, RLE, DEFLATED_FRAME, JPEG_BASELINE = (
    f"1.2.840.10008.1.2{end}" for end in (".1", ".5", ".8.1", ".4.50")
)


MOST_SCRATCH = 64 * 2**20
"""Upper bound on reusable memory for decoding, in bytes: a frame of 4,700 × 4,700 RGB pixels."""


@dataclasses.dataclass(frozen=True, slots=True)
class Decoder:
    """Encoding of one transfer syntax, and the function that decodes its frames."""

    name: str
    decode: Callable[..., Pixels]
    """Function of (memoryview, PixelFormat), and of scratch memory where `takes_scratch`."""
    encapsulated: bool = True
    little_endian: bool = True
    implicit_vr: bool = False
    deflated: bool = False
    """Whether the whole data set is deflated, not single frames."""
    caching: Literal["never", "maybe", "always"] = "always"
    """Whether pixels are worth caching: never where decoding is about as fast as copying, maybe
    where caching a frame takes a tenth of the time of decoding it."""
    takes_scratch: bool = False
    """Whether `decode` takes an array to decode into."""
    most_reduction: int = 0
    """Number of halvings that `decode` can do to save time; see :func:`decode_frame`."""


_UID = "1.2.840.10008.1.2"

DECODERS: dict[str, Decoder] = {
    _UID: Decoder(
        "Implicit VR Little Endian", native, encapsulated=False, implicit_vr=True, caching="never"
    ),
    f"{_UID}.1": Decoder("Explicit VR Little Endian", native, encapsulated=False, caching="never"),
    f"{_UID}.2": Decoder(
        "Explicit VR Big Endian",
        native_big_endian,
        encapsulated=False,
        little_endian=False,
        caching="never",
    ),
    f"{_UID}.1.99": Decoder(
        "Deflated Explicit VR Little Endian",
        native,
        encapsulated=False,
        deflated=True,
        caching="never",
    ),
    f"{_UID}.1.98": Decoder(
        "Encapsulated Uncompressed Explicit VR Little Endian", native, caching="never"
    ),
    f"{_UID}.8.1": Decoder("Deflated Image Frame Compression", inflated),
    f"{_UID}.5": Decoder("RLE Lossless", rle),
    JPEG_BASELINE: Decoder(
        "JPEG Baseline", jpeg, caching="maybe", takes_scratch=True, most_reduction=3
    ),
    f"{_UID}.4.51": Decoder("JPEG Extended", jpeg),
    f"{_UID}.4.57": Decoder("JPEG Lossless", jpeg),
    f"{_UID}.4.70": Decoder("JPEG Lossless SV1", jpeg),
    f"{_UID}.4.80": Decoder("JPEG-LS Lossless", jpeg_ls),
    f"{_UID}.4.81": Decoder("JPEG-LS Near Lossless", jpeg_ls),
    f"{_UID}.4.90": Decoder("JPEG 2000 Lossless", jpeg_2000),
    f"{_UID}.4.91": Decoder("JPEG 2000", jpeg_2000),
    f"{_UID}.4.201": Decoder("HTJ2K Lossless", jpeg_2000, most_reduction=5),
    f"{_UID}.4.202": Decoder("HTJ2K Lossless RPCL", jpeg_2000, most_reduction=5),
    f"{_UID}.4.203": Decoder("HTJ2K", jpeg_2000),
    f"{_UID}.4.110": Decoder("JPEG XL Lossless", jpeg_xl),
    f"{_UID}.4.111": Decoder("JPEG XL JPEG Recompression", jpeg_xl),
    f"{_UID}.4.112": Decoder("JPEG XL", jpeg_xl),
}
"""The supported transfer syntaxes, by UID (PS3.5 section 10)."""


def decode_frame(
    buffer: Buffer,
    pixel_format: PixelFormat,
    transfer_syntax_uid: str | None,
    scratch: Pixels | None = None,
    reduction: int = 0,
) -> Pixels:
    """Decode one frame.

    Parameters
    ----------
    buffer : bytes-like
        The encoded frame, with its fragments joined.
    pixel_format : PixelFormat
        The header's description of the frame.
    transfer_syntax_uid : str or None
        Transfer Syntax UID of the frame; None to derive it from the bytes: see
        :func:`transfer_syntax_of`.
    scratch : numpy.ndarray of numpy.uint8, optional
        Memory that the decoder may overwrite, and return a view of: see :func:`scratch_memory`.
    reduction : int, default: 0
        Number of halvings of rows and columns, rounded up: by the decoder if it can, with pixels
        that differ slightly from the mean; else by the mean of boxes of pixels.

    Returns
    -------
    numpy.ndarray
        Shape (rows, columns, samples), halved `reduction` times, dtype of `pixel_format`, colour
        as RGB. A codestream may hold fewer rows and columns than declared (a cropped tile at the
        edge), never more. The array may be a read-only view of `buffer`, or a view of `scratch`.

    Raises
    ------
    FrameDecodeError
        When the transfer syntax isn't supported, or the bytes are truncated, damaged, or
        contradict `pixel_format`.

    """
    if transfer_syntax_uid is None:
        transfer_syntax_uid = transfer_syntax_of(buffer, pixel_format)
        if transfer_syntax_uid == NATIVE and len(buffer) > pixel_format.native_bytes + 1:
            # the server has expanded YBR_FULL_422 to full chroma: such servers send RGB
            pixel_format = dataclasses.replace(pixel_format, photometric="RGB")
    decoder = DECODERS.get(transfer_syntax_uid)
    if decoder is None:
        raise FrameDecodeError(
            f"transfer syntax {transfer_syntax_uid} isn't supported; supported are "
            + ", ".join(f"{uid} ({known.name})" for uid, known in DECODERS.items())
        )
    try:
        memory = (scratch,) if decoder.takes_scratch else ()
        options = {"reduction": reduction} if reduction and decoder.most_reduction else {}
        array = decoder.decode(memoryview(buffer).cast("B"), pixel_format, *memory, **options)
    except FrameDecodeError:
        raise
    except Exception as error:  # decoders raise errors of many types
        raise FrameDecodeError(
            f"{len(buffer)} bytes of {decoder.name} don't decode: {error}"
        ) from error
    if array.ndim == 2:
        array = array[:, :, None]
    check_size(array.shape[0], array.shape[1], array.shape[2], pixel_format)
    if array.dtype != pixel_format.dtype:
        array = as_declared(array, pixel_format)
    return halved(array, reduction) if reduction and not decoder.most_reduction else array


def scratch_memory(pixel_format: PixelFormat) -> Pixels | None:
    """Return memory to decode frames into, one after another; None where frames are too large.

    The caller copies the pixels of a frame before it decodes the next one. Decoding into new memory
    takes up to a third longer, since the system zeroes it. The bound keeps a wrong header from
    allocating more than the codestreams hold.
    """
    size = math.prod(pixel_format.shape)
    if size > MOST_SCRATCH:
        return None
    memory = np.empty(size + 32, np.uint8)
    # At a multiple of 32 bytes libjpeg-turbo writes around the processor's cache; pixels that are
    # copied right away are copied faster from the cache.
    start = (16 - memory.__array_interface__["data"][0]) % 32
    return memory[start : start + size].reshape(pixel_format.shape)


def transfer_syntax_of(buffer: Buffer, pixel_format: PixelFormat) -> str:
    """Derive the transfer syntax of a frame from its bytes.

    This is for frames of DICOMweb servers: metadata may lack the transfer syntax, and servers may
    transcode.

    Parameters
    ----------
    buffer : bytes-like
        The encoded frame.
    pixel_format : PixelFormat
        The header's description of the frame.

    Returns
    -------
    str
        A key of :data:`DECODERS`; Explicit VR Little Endian for a native frame, which has the
        length that the header implies.

    Raises
    ------
    FrameDecodeError
        When the bytes are no known codestream, and their number isn't that of a native frame.

    """
    view = memoryview(buffer).cast("B")
    native = _has_native_length(len(view), pixel_format)
    found = transfer_syntax_by_signature(view)
    if found is None and _has_rle_header(view, pixel_format):
        found = RLE
    # native pixels may begin with the signature of a codestream, but don't decode as one
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
    if declared.photometric == "YBR_FULL_422":  # a server may have expanded the chroma
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
