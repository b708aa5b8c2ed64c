"""Native frames, and those that are little else: deflated, or in runs of bytes (RLE)."""

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
"""Bytes that one of RLE makes, at most: two make 128 (PS3.5 G.3.1)."""
RLE_PADDING = 8
"""Zeros that padding of an RLE segment may decode to."""


def native(buffer: memoryview, declared: PixelFormat, byteorder: Literal["<", ">"] = "<") -> Pixels:
    """Take a native frame as pixels, without a copy where it is stored as such."""
    needed = declared.native_bytes
    if len(buffer) < needed:
        raise FrameDecodeError(f"{len(buffer)} bytes are left of a native frame of {needed} bytes")
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
    """Take values out of words: other bits may hold anything (PS3.5 8.1.1)."""
    above, below = declared.unused_bits
    if not above and not below:
        return words
    values = words << above
    values >>= above + below  # of signed ones, the highest bit stored is the sign
    return values


def _expand_422(flat: Pixels, declared: PixelFormat) -> Pixels:
    """Give both pixels of each Y1 Y2 Cb Cr their own chroma."""
    pairs = flat.reshape(-1, 4)
    full = np.empty((len(pairs), 2, 3), flat.dtype)
    full[:, :, 0] = pairs[:, :2]
    full[:, :, 1:] = pairs[:, None, 2:]
    return full.reshape(declared.shape)


def native_big_endian(buffer: memoryview, declared: PixelFormat) -> Pixels:
    """Take a native frame whose samples begin with their highest byte."""
    return native(buffer, declared, ">")


def inflated(buffer: memoryview, declared: PixelFormat) -> Pixels:
    """Inflate a frame that was deflated by itself (PS3.5 section 10)."""
    needed = declared.native_bytes
    # never more than declared, whatever the stream would grow to
    return native(memoryview(zlib.decompressobj(-15).decompress(buffer, needed)), declared)


def rle(buffer: memoryview, declared: PixelFormat) -> Pixels:
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
    if rows * columns * count > RLE_GROWTH * len(buffer):
        raise FrameDecodeError(
            f"{len(buffer)} bytes of RLE can't hold {rows} × {columns} pixels of {count} bytes"
        )
    ends = [*offsets[1:count], len(buffer)]
    samples_of_bytes = np.empty((rows * columns, samples, size), np.uint8)
    for segment, (start, end) in enumerate(zip(offsets, ends, strict=False)):
        if not 64 <= start < end <= len(buffer):
            raise FrameDecodeError(
                f"RLE segment {segment + 1} goes from byte {start} to {end} of {len(buffer)}"
            )
        plane = np.frombuffer(imagecodecs().packbits_decode(buffer[start:end]), np.uint8)
        rest = plane[rows * columns :]  # padding behind the segment decodes to a few zeros
        if len(plane) < rows * columns or len(rest) > RLE_PADDING or rest.any():
            raise FrameDecodeError(
                f"RLE segment {segment + 1} holds {len(plane)} bytes, expected {rows * columns}"
            )
        sample, byte = divmod(segment, size)
        samples_of_bytes[:, sample, size - 1 - byte] = plane[: rows * columns]
    words = samples_of_bytes.view(declared.dtype.newbyteorder("<")).reshape(rows, columns, samples)
    array = _bits_stored(words, declared)
    return ybr_to_rgb(array) if declared.photometric.startswith("YBR_FULL") else array
