"""Decoders of native, deflated and RLE frames."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

from dicomslide.errors import FrameDecodeError
from dicomslide.pixels.pixel_format import PixelFormat, imagecodecs, ybr_to_rgb

if TYPE_CHECKING:
    from typing import Literal

    from dicomslide.pixels.pixel_format import Pixels

__all__ = ["inflated", "native", "native_big_endian", "rle"]

RLE_GROWTH = 64
"""Upper bound on decoded bytes per byte of RLE: two bytes decode to 128 at most (PS3.5 G.3.1)."""
RLE_PADDING = 8
"""Upper bound on the zeros that the padding of an RLE segment decodes to."""


def native(buffer: memoryview, declared: PixelFormat, byteorder: Literal["<", ">"] = "<") -> Pixels:
    """Decode a native frame: a view of `buffer` where the stored bytes are the pixels."""
    needed = declared.native_bytes
    if len(buffer) < needed:
        raise FrameDecodeError(
            f"the native frame is truncated: {len(buffer)} bytes, expected {needed}"
        )
    rows, columns, samples = declared.shape
    if declared.bits_allocated == 1:
        bits = np.unpackbits(
            np.frombuffer(buffer, np.uint8), count=rows * columns * samples, bitorder="little"
        )
        return bits.view(np.bool_).reshape(rows, columns, samples)
    words = np.frombuffer(buffer[:needed], declared.dtype.newbyteorder(byteorder))
    flat = _bits_stored(words, declared)
    if declared.photometric == "YBR_FULL_422":
        return ybr_to_rgb(_expand_422(flat, declared))
    if declared.planar and samples > 1:
        array = np.moveaxis(flat.reshape(samples, rows, columns), 0, -1)
    else:
        array = flat.reshape(rows, columns, samples)
    if declared.photometric == "YBR_FULL":
        return ybr_to_rgb(np.ascontiguousarray(array))
    return array.astype(declared.dtype, copy=False)


def _bits_stored(words: Pixels, declared: PixelFormat) -> Pixels:
    """Return the Bits Stored of each word; its other bits may have any value (PS3.5 8.1.1)."""
    above, below = declared.unused_bits
    if not above and not below:
        return words
    values = words << above
    values >>= above + below  # an arithmetic shift extends the sign of signed values
    return values


def _expand_422(flat: Pixels, declared: PixelFormat) -> Pixels:
    """Expand each Y1 Y2 Cb Cr to two pixels (PS3.3 C.7.6.3.1.2)."""
    pairs = flat.reshape(-1, 4)
    full = np.empty((len(pairs), 2, 3), flat.dtype)
    full[:, :, 0] = pairs[:, :2]
    full[:, :, 1:] = pairs[:, None, 2:]
    return full.reshape(declared.shape)


def native_big_endian(buffer: memoryview, declared: PixelFormat) -> Pixels:
    """Decode a native frame of big-endian samples."""
    return native(buffer, declared, ">")


def inflated(buffer: memoryview, declared: PixelFormat) -> Pixels:
    """Decode a native frame that is deflated on its own (PS3.5 section 10)."""
    needed = declared.native_bytes
    # the bound limits what a malicious stream may inflate to
    return native(memoryview(zlib.decompressobj(-15).decompress(buffer, needed)), declared)


def rle(buffer: memoryview, declared: PixelFormat) -> Pixels:
    """Decode RLE (PS3.5 annex G): one segment per byte of each sample, most significant first."""
    rows, columns, samples = declared.shape
    size, count = declared.dtype.itemsize, samples * declared.dtype.itemsize
    if len(buffer) < 64:
        raise FrameDecodeError(f"the RLE frame has {len(buffer)} bytes; its header alone has 64")
    found, *offsets = struct.unpack("<16I", buffer[:64])
    if found != count:
        raise FrameDecodeError(
            f"the RLE header declares {found} segments; {samples} samples of {declared.dtype} need"
            f" {count}"
        )
    if rows * columns * count > RLE_GROWTH * len(buffer):
        raise FrameDecodeError(
            f"{len(buffer)} bytes of RLE can't hold {rows} × {columns} pixels of {count} bytes"
        )
    ends = [*offsets[1:count], len(buffer)]
    samples_of_bytes = np.empty((rows * columns, samples, size), np.uint8)
    for segment, (start, end) in enumerate(zip(offsets, ends, strict=False)):
        if not 64 <= start < end <= len(buffer):
            raise FrameDecodeError(
                f"RLE segment {segment + 1} extends from byte {start} to {end}; expected a range"
                f" within bytes 64 to {len(buffer)}"
            )
        plane = np.frombuffer(imagecodecs().packbits_decode(buffer[start:end]), np.uint8)
        rest = plane[rows * columns :]  # padding after the segment decodes to a few zeros
        if len(plane) < rows * columns or len(rest) > RLE_PADDING or rest.any():
            raise FrameDecodeError(
                f"RLE segment {segment + 1} holds {len(plane)} bytes, expected {rows * columns}"
            )
        sample, byte = divmod(segment, size)
        samples_of_bytes[:, sample, size - 1 - byte] = plane[: rows * columns]
    words = samples_of_bytes.view(declared.dtype.newbyteorder("<")).reshape(rows, columns, samples)
    array = _bits_stored(words, declared)
    return ybr_to_rgb(array) if declared.photometric.startswith("YBR_FULL") else array
