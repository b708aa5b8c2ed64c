"""Decoders of JPEG 2000 (OpenJPEG), HTJ2K (OpenJPH or OpenJPEG) and JPEG XL (libjxl)."""

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
    halved,
    imagecodecs,
    ybr_to_rgb,
)

if TYPE_CHECKING:
    from dicomslide.pixels.pixel_format import Pixels

__all__ = ["jpeg_2000", "jpeg_2000_is_ycbcr", "jpeg_xl"]

TINY_HTJ2K = 1024
"""Bytes of a codestream below which OpenJPH doesn't check declared lengths well enough."""


def jpeg_2000(buffer: memoryview, declared: PixelFormat, reduction: int = 0) -> Pixels:
    """Decode JPEG 2000 or HTJ2K, whichever the codestream is.

    See :func:`dicomslide.pixels.decode_frame` for `reduction`: OpenJPH leaves out the finest
    resolutions of the wavelet transform.
    """
    header = parse_jpeg2000(buffer)
    check_precision(header.precision, declared)
    check_size(header.rows, header.columns, header.components, declared)
    if not has_complete_tile_parts(buffer, header.tile_parts):
        raise FrameDecodeError(
            "the JPEG 2000 codestream is truncated, or its tile-parts lack their declared length"
        )
    array = _plain_htj2k(buffer, header, reduction) if header.plain_htj2k else None
    if array is None:
        array = imagecodecs().jpeg2k_decode(buffer)
        array = halved(np.atleast_3d(array), reduction) if reduction else array
    return ybr_to_rgb(array) if jpeg_2000_is_ycbcr(header, declared) else array


def jpeg_2000_is_ycbcr(header: Jpeg2000Header, declared: PixelFormat) -> bool:
    """Whether the components of a codestream are YCbCr, which its decoder leaves as they are."""
    stored_as_ycbcr = declared.photometric == "YBR_FULL" or (
        # some writers declare YBR_FULL_422 for RGB pixels; those aren't subsampled
        declared.photometric == "YBR_FULL_422" and header.subsampled
    )
    return stored_as_ycbcr and not header.multiple_component_transform


def _plain_htj2k(buffer: memoryview, header: Jpeg2000Header, reduction: int) -> Pixels | None:
    """Decode reversible HTJ2K with OpenJPH, in half the time; None where OpenJPEG is needed.

    OpenJPH doesn't clip values that overshoot: 256 becomes 0 as a byte. Errors in a block aren't
    reported either: they leave rows of zeros. Therefore the precision in the header is raised
    before decoding; both faults then show as values out of range, and None is returned. For plain
    codestreams that aren't tiny, damage is then detected as often as with OpenJPEG. Lossy
    codestreams (9/7) are left to OpenJPEG: they gain less, and OpenJPH rounds some samples
    differently.
    """
    if len(buffer) < TINY_HTJ2K or not has_plain_tile_parts(buffer, header.tile_parts):
        return None
    bits = 15 if header.precision < 15 else 18  # precision declared to OpenJPH
    data = bytearray(buffer)
    for at in header.precisions:
        data[at] = bits - 1
    shape = -(-header.rows >> reduction), -(-header.columns >> reduction), header.components
    array = np.zeros(shape[: 2 + (shape[2] > 1)], np.uint16 if bits == 15 else np.uint32)
    imagecodecs().htj2k_decode(data, planar=False, skipres=reduction or None, out=array)
    middle, largest = (1 << bits - 1) - (1 << header.precision - 1), (1 << header.precision) - 1
    if reduction:  # the low-pass filter may overshoot
        array = array.clip(middle, middle + largest)
    array -= middle  # offset of unsigned samples
    if array.max() > largest:
        return None
    return array.astype(np.uint8 if header.precision <= 8 else np.uint16)


def jpeg_xl(buffer: memoryview, declared: PixelFormat) -> Pixels:
    """Decode JPEG XL."""
    check_size(*jpeg_xl_size(buffer), declared.samples, declared)
    return imagecodecs().jpegxl_decode(buffer)  # libjxl converts colours itself
