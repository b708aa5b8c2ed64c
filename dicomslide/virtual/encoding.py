"""Choice of the zarr codecs of an image's frames, from its header and those of codestreams."""

from __future__ import annotations

import importlib
import inspect
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.errors import FrameDecodeError
from dicomslide.pixels import DECODERS
from dicomslide.pixels.codestream import jpeg_xl_size, parse_jpeg, parse_jpeg2000
from dicomslide.pixels.jpeg import jpeg_is_ycbcr
from dicomslide.pixels.jpeg2000 import jpeg_2000_is_ycbcr
from dicomslide.pixels.pixel_format import check_precision, check_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from dicomslide.pixels import PixelFormat

__all__ = ["HEAD", "check_head", "codecs_of", "foreign_codec", "is_native", "may_be_foreign"]

HEAD = 1024
"""Bytes of a codestream within which its header usually ends."""

_UID = "1.2.840.10008.1.2.4"
_JPEG = frozenset(f"{_UID}.{end}" for end in (50, 51, 57, 70))
_JPEG_LS = frozenset({f"{_UID}.80", f"{_UID}.81"})
_JPEG_2000 = frozenset({f"{_UID}.90", f"{_UID}.91"})
_HTJ2K = frozenset(f"{_UID}.{end}" for end in (201, 202, 203))
_JPEG_XL = frozenset(f"{_UID}.{end}" for end in (110, 111, 112))


def is_native(transfer_syntax_uid: str) -> bool:
    """Whether a frame's bytes are its pixels, so that their number is known."""
    decoder = DECODERS[transfer_syntax_uid]
    return not decoder.encapsulated or decoder.name.startswith("Encapsulated Uncompressed")


def codecs_of(
    declared: PixelFormat, transfer_syntax_uid: str, foreign: dict[str, Any] | None, lead: int
) -> list[dict[str, Any]]:
    """Return the codecs of frames, as in the metadata document of a zarr array.

    Without a codec of zarr or imagecodecs, :class:`~dicomslide.virtual.codec.FrameCodec`.

    Parameters
    ----------
    declared : PixelFormat
        The header's description of the frames.
    transfer_syntax_uid : str
        Their Transfer Syntax UID.
    foreign : dict or None
        Codec of imagecodecs for all frames: see :func:`foreign_codec`.
    lead : int
        Number of dims before rows and columns.

    """
    from dicomslide.virtual.codec import configuration_of

    if is_native(transfer_syntax_uid):
        if not _is_plain(declared):
            return [configuration_of(declared, transfer_syntax_uid)]
        endian = "little" if DECODERS[transfer_syntax_uid].little_endian else "big"
        plain: dict[str, Any] = {"name": "bytes"}
        if declared.dtype.itemsize > 1:
            plain["configuration"] = {"endian": endian}
        if not (declared.planar and declared.samples > 1):
            return [plain]
        order = [*range(lead), lead + 2, lead, lead + 1]  # one plane of rows for each sample
        return [{"name": "transpose", "configuration": {"order": order}}, plain]
    return [foreign or configuration_of(declared, transfer_syntax_uid)]


def may_be_foreign(declared: PixelFormat, transfer_syntax_uid: str) -> bool:
    """Whether imagecodecs may have a codec of frames, which depends on their codestreams."""
    name = _NAMES.get(transfer_syntax_uid)
    is_plain = not declared.signed and declared.bits_allocated > 1
    return name is not None and is_plain and _has(name)


def foreign_codec(
    head: memoryview, declared: PixelFormat, transfer_syntax_uid: str
) -> dict[str, Any] | None:
    """Return imagecodecs' codec of a frame, as in a metadata document.

    None if it wouldn't give exactly the pixels of :func:`dicomslide.pixels.decode_frame`. `head`
    is that of :func:`check_head`.
    """
    return _FOREIGN[_NAMES[transfer_syntax_uid]](head, declared)


def _is_plain(declared: PixelFormat) -> bool:
    """Whether the stored words of native frames are the pixels."""
    is_rgb = not declared.photometric.startswith(("YBR_FULL", "YBR_PARTIAL"))
    return declared.bits_allocated > 1 and is_rgb and declared.unused_bits == (0, 0)


def check_head(head: memoryview, declared: PixelFormat, transfer_syntax_uid: str) -> None:
    """Raise an error if the header of a codestream contradicts that of the image.

    Raises
    ------
    FrameDecodeError
        When it has more rows or columns, other samples, or more bits than declared.
    ValueError
        When it isn't the header of such a codestream, or `head` is too short for it.

    """
    if transfer_syntax_uid in _JPEG | _JPEG_LS:
        header = parse_jpeg(head)
        check_precision(header.precision, declared)
        check_size(header.rows, header.columns, len(header.component_ids), declared)
    elif transfer_syntax_uid in _JPEG_2000 | _HTJ2K:
        main = parse_jpeg2000(head)
        check_precision(main.precision, declared)
        check_size(main.rows, main.columns, main.components, declared)
    elif transfer_syntax_uid in _JPEG_XL:
        check_size(*jpeg_xl_size(head), declared.samples, declared)
    elif is_native(transfer_syntax_uid) and len(head) < min(HEAD, declared.native_bytes):
        raise FrameDecodeError(f"{len(head)} bytes; expected {declared.native_bytes}")


# -- codecs of imagecodecs, if it has them ---------------------------------------------------------


def _jpeg(head: memoryview, declared: PixelFormat) -> dict[str, Any] | None:
    header = parse_jpeg(head)
    is_ycbcr = declared.samples == 3 and jpeg_is_ycbcr(header, declared)
    if not _decodes_to(header.rows, header.columns, header.precision, declared) or (
        is_ycbcr and header.lossless
    ):
        return None
    pixels = "RGB" if declared.samples == 3 else "GRAYSCALE"
    spaces = {"colorspace_data": pixels, "colorspace_jpeg": "YCBCR" if is_ycbcr else pixels}
    return {"name": "imagecodecs_jpeg", "configuration": spaces}


def _jpeg_ls(head: memoryview, declared: PixelFormat) -> dict[str, Any] | None:
    header = parse_jpeg(head)
    if declared.photometric.startswith("YBR_FULL") or not _decodes_to(
        header.rows, header.columns, header.precision, declared
    ):
        return None
    return {"name": "imagecodecs_jpegls"}


def _jpeg_2000(head: memoryview, declared: PixelFormat) -> dict[str, Any] | None:
    header = parse_jpeg2000(head)
    if (
        header.subsampled
        or header.plain_htj2k
        or jpeg_2000_is_ycbcr(header, declared)
        or not _decodes_to(header.rows, header.columns, header.precision, declared)
    ):
        return None
    return {"name": "imagecodecs_jpeg2k"}


def _decodes_to(rows: int, columns: int, precision: int, declared: PixelFormat) -> bool:
    """Whether a codestream decodes to an array of the shape and dtype of a whole frame."""
    dtype = np.uint8 if precision <= 8 else np.uint16
    is_whole = (rows, columns) == (declared.rows, declared.columns)
    return is_whole and precision <= 16 and declared.dtype == dtype


_NAMES = {
    **dict.fromkeys(_JPEG, "Jpeg"),
    **dict.fromkeys(_JPEG_LS, "Jpegls"),
    **dict.fromkeys(_JPEG_2000, "Jpeg2k"),
}
"""Name of imagecodecs' class by Transfer Syntax UID."""
_FOREIGN: dict[str, Callable[[memoryview, PixelFormat], dict[str, Any] | None]] = {
    "Jpeg": _jpeg,
    "Jpegls": _jpeg_ls,
    "Jpeg2k": _jpeg_2000,
}


@cache
def _has(name: str) -> bool:
    """Whether imagecodecs has a codec of zarr 3 with the parameters used; zarr then knows it."""
    fields = {"colorspace_jpeg", "colorspace_data"} if name == "Jpeg" else set()
    try:
        codec = getattr(importlib.import_module("imagecodecs.zarr"), name, None)
    except ImportError:  # before 2026.6; Python 3.11 has no later one
        return False
    if codec is None or not fields <= inspect.signature(codec).parameters.keys():
        return False
    from zarr.registry import register_codec

    register_codec(f"imagecodecs_{name.lower()}", codec)
    return True
