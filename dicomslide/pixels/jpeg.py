"""Decoders of JPEG (libjpeg-turbo, its warnings treated as errors) and JPEG-LS (CharLS)."""

from __future__ import annotations

import functools
import logging
import re
from typing import TYPE_CHECKING

import numpy as np

from dicomslide.errors import FrameDecodeError
from dicomslide.pixels.codestream import JpegHeader, ends_image, parse_jpeg
from dicomslide.pixels.pixel_format import (
    PixelFormat,
    check_precision,
    check_size,
    halved,
    imagecodecs,
    ybr_to_rgb,
)
from dicomslide.process.registry import Registry

if TYPE_CHECKING:
    from dicomslide.pixels.pixel_format import Pixels

__all__ = ["jpeg", "jpeg_is_ycbcr", "jpeg_ls"]

logger = logging.getLogger(__name__)

_conflicts: Registry[tuple[str, str], None] = Registry(64, "warnings of JPEG headers")
_END_OF_IMAGE = b"\xff\xd9"
_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00%c"  # APP14, ends with the transform


def jpeg(
    buffer: memoryview, declared: PixelFormat, scratch: Pixels | None = None, reduction: int = 0
) -> Pixels:
    """Decode JPEG of any process in DICOM; 8-bit DCT is decoded into `scratch` if given.

    See :func:`dicomslide.pixels.decode_frame` for `reduction`: libjpeg-turbo halves rows and
    columns by leaving out the high frequencies of each block of 8 × 8 pixels.
    """
    header = parse_jpeg(buffer)
    check_precision(header.precision, declared)
    check_size(header.rows, header.columns, len(header.component_ids), declared)
    if header.lossless or header.precision != 8:
        array = _jpeg_uncommon(buffer, header, declared)
        return halved(array, reduction) if reduction else array
    # libjpeg uses the smallest of its scales with at least these rows and columns; 0 for full size
    least = tuple(-(-n >> reduction) if reduction else 0 for n in (header.rows, header.columns))
    if declared.samples == 1:
        return _strict_jpeg(buffer, "GRAY", scratch, least)
    wanted = jpeg_is_ycbcr(header, declared)
    if wanted != _libjpeg_takes_for_ycbcr(header):
        buffer = _with_color_transform(buffer, header, wanted)
    return _strict_jpeg(buffer, "RGB", scratch, least)


def jpeg_is_ycbcr(header: JpegHeader, declared: PixelFormat) -> bool:
    """Whether a colour JPEG is YCbCr: by its codestream, else by Photometric Interpretation."""
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
        _conflicts.get(key, lambda: _log_conflict(*key))  # logged once per process
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
    """Replace the JFIF and Adobe markers by one Adobe marker that declares the colour space."""
    parts: list[bytes | memoryview] = [buffer[:2], _ADOBE % int(ycbcr)]
    at = 2
    for start, end in header.colour_segments:
        parts.append(buffer[at:start])
        at = end
    parts.append(buffer[at:])
    return memoryview(b"".join(parts))


def _strict_jpeg(
    buffer: memoryview, colorspace: str, scratch: Pixels | None, least: tuple[int, ...]
) -> Pixels:
    """Decode with libjpeg's warnings as errors: a truncated codestream only causes a warning."""
    import simplejpeg

    decode = functools.partial(
        simplejpeg.decode_jpeg,
        colorspace=colorspace,
        min_height=least[0],
        min_width=least[1],
        buffer=scratch,
    )
    for _ in range(3):
        try:
            return decode(buffer)
        except ValueError as error:
            repaired = _repaired(buffer, str(error))
            if repaired is None:
                raise
            buffer = repaired
    return decode(buffer)


def _repaired(buffer: memoryview, warning: str) -> memoryview | None:
    """Remove the cause of a harmless warning of libjpeg; None where the warning isn't harmless."""
    if not ends_image(buffer):  # if more than the marker is missing, the next try fails
        return memoryview(bytes(buffer) + _END_OF_IMAGE)
    data = bytes(buffer)
    end = data.rindex(_END_OF_IMAGE)
    surplus = re.search(r"(\d+) extraneous bytes before marker 0xd9", warning)
    if surplus:
        return memoryview(data[: end - int(surplus[1])] + _END_OF_IMAGE)
    if "SOS parameters" in warning:  # the only valid ones of a sequential scan are 0, 63, 0
        scan = parse_jpeg(buffer).scan
        behind = scan + 2 + int.from_bytes(data[scan + 2 : scan + 4], "big")
        if behind <= end:
            return memoryview(data[: behind - 3] + b"\0\x3f\0" + data[behind:])
    return None


def _require_end_of_image(buffer: memoryview) -> None:
    if not ends_image(buffer):
        raise FrameDecodeError("the codestream ends without its EOI marker: it is truncated")


def _jpeg_uncommon(buffer: memoryview, header: JpegHeader, declared: PixelFormat) -> Pixels:
    """Decode 12-bit and lossless JPEG, with a decoder that doesn't report libjpeg's warnings."""
    _require_end_of_image(buffer)
    data = bytes(buffer)
    components = "RGB" if declared.samples == 3 else "GRAYSCALE"
    ycbcr = declared.samples == 3 and jpeg_is_ycbcr(header, declared)
    source = "YCBCR" if ycbcr and not header.lossless else components

    def decode(codestream: bytes) -> Pixels:
        return imagecodecs().jpeg8_decode(codestream, colorspace=source, outcolorspace=components)

    array = decode(data)
    # At the end of truncated data the decoder continues with zeros; surplus data before the EOI
    # marker it ignores. Pixels that change with surplus data therefore mean that data are missing.
    end = len(data[: data.rindex(_END_OF_IMAGE)].rstrip(b"\xff"))  # without fill bytes
    if not np.array_equal(array, decode(data[:end] + b"\xaa" * 64 + data[end:])):
        raise FrameDecodeError("the JPEG codestream ends before its last pixel: it is truncated")
    return ybr_to_rgb(array) if ycbcr and header.lossless else array


def jpeg_ls(buffer: memoryview, declared: PixelFormat) -> Pixels:
    """Decode JPEG-LS, lossless or near-lossless."""
    header = parse_jpeg(buffer)
    check_precision(header.precision, declared)
    check_size(header.rows, header.columns, len(header.component_ids), declared)
    _require_end_of_image(buffer)  # CharLS may take seconds to detect truncation
    array = imagecodecs().jpegls_decode(buffer)
    return ybr_to_rgb(array) if declared.photometric.startswith("YBR_FULL") else array
