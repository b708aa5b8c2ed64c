"""JPEG 2000, HTJ2K and JPEG XL: OpenJPEG, OpenJPH where that is safe, and libjxl."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dicomslide.errors import FrameDecodeError
from dicomslide.pixels.codestream import (
    Jpeg2000Header,
    has_complete_tile_parts,
    has_plain_tile_parts,
    jpeg_xl_size,
    parse_jpeg2000,
)
from dicomslide.pixels.pixel_format import (
    PixelFormat,
    check_precision,
    check_size,
    imagecodecs,
    ybr_to_rgb,
)

if TYPE_CHECKING:
    from dicomslide.pixels.pixel_format import Pixels

__all__ = ["jpeg_2000", "jpeg_xl"]

TINY_HTJ2K = 1024
"""Bytes of a codestream below which OpenJPH believes too much of what it says of lengths."""


def jpeg_2000(buffer: memoryview, declared: PixelFormat) -> Pixels:
    """Decode JPEG 2000 or HTJ2K, whichever the codestream is."""
    header = parse_jpeg2000(buffer)
    check_precision(header.precision, declared)
    check_size(header.rows, header.columns, header.components, declared)
    if not has_complete_tile_parts(buffer, header.tile_parts):
        raise FrameDecodeError("the JPEG 2000 codestream is truncated, or its lengths are wrong")
    array = _plain_htj2k(buffer, header) if header.plain_htj2k else None
    if array is None:
        array = imagecodecs().jpeg2k_decode(buffer)
    stored_as_ycbcr = declared.photometric == "YBR_FULL" or (
        # writers that leave RGB under this claim don't subsample
        declared.photometric == "YBR_FULL_422" and header.subsampled
    )
    if stored_as_ycbcr and not header.multiple_component_transform:
        return ybr_to_rgb(array)
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
    imagecodecs().htj2k_decode(data, planar=False, out=array)
    array -= (1 << bits - 1) - (1 << header.precision - 1)  # the middle of the range
    if array.max() >> header.precision:
        return None
    return array.astype(np.uint8 if header.precision <= 8 else np.uint16)


def jpeg_xl(buffer: memoryview, declared: PixelFormat) -> Pixels:
    """Decode JPEG XL."""
    check_size(*jpeg_xl_size(buffer), declared.samples, declared)
    return imagecodecs().jpegxl_decode(buffer)  # the codestream knows its colours
