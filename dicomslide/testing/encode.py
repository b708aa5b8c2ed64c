"""Encoders of one frame in every transfer syntax that the package reads."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from dicomslide.pixels import PixelFormat

__all__ = ["ENCODERS", "LOSSY", "PHOTOMETRIC", "encode_frame"]


def _native(tile: NDArray[Any], pixel_format: PixelFormat) -> bytes:
    if pixel_format.bits_allocated == 1:
        return np.packbits(tile.ravel(), bitorder="little").tobytes()
    if pixel_format.planar:
        tile = np.moveaxis(tile, -1, 0)
    return np.ascontiguousarray(tile).tobytes()


def _native_big_endian(tile: NDArray[Any], pixel_format: PixelFormat) -> bytes:
    return _native(tile.astype(tile.dtype.newbyteorder(">")), pixel_format)


def _deflated(tile: NDArray[Any], pixel_format: PixelFormat) -> bytes:
    return zlib.compress(_native(tile, pixel_format), wbits=-15)


def _rle(tile: NDArray[Any], pixel_format: PixelFormat) -> bytes:
    from pydicom.pixels.encoders.base import RLELosslessEncoder

    return RLELosslessEncoder.encode(
        np.ascontiguousarray(tile.squeeze(-1) if pixel_format.samples == 1 else tile),
        rows=pixel_format.rows,
        columns=pixel_format.columns,
        samples_per_pixel=pixel_format.samples,
        bits_allocated=pixel_format.bits_allocated,
        bits_stored=pixel_format.bits_allocated,
        pixel_representation=0,
        photometric_interpretation="RGB" if pixel_format.samples == 3 else "MONOCHROME2",
        number_of_frames=1,
        planar_configuration=0 if pixel_format.samples == 3 else None,
        encoding_plugin="pydicom",
    )


def _jpeg(tile: NDArray[Any], pixel_format: PixelFormat) -> bytes:
    import simplejpeg

    colorspace = "RGB" if pixel_format.samples == 3 else "GRAY"
    encoded = simplejpeg.encode_jpeg(
        np.ascontiguousarray(tile), quality=90, colorspace=colorspace, colorsubsampling="420"
    )
    return bytes(encoded)


def _imagecodecs(name: str, **options: Any) -> Callable[[NDArray[Any], PixelFormat], bytes]:
    def encode(tile: NDArray[Any], pixel_format: PixelFormat) -> bytes:
        import imagecodecs

        if pixel_format.samples == 1:
            tile = tile[:, :, 0]
        return bytes(getattr(imagecodecs, name)(np.ascontiguousarray(tile), **options))

    return encode


def _jpeg_lossless(tile: NDArray[Any], pixel_format: PixelFormat) -> bytes:
    # by default libjpeg converts RGB to YCbCr, even in its lossless process
    space = "RGB" if pixel_format.samples == 3 else "GRAYSCALE"
    encode = _imagecodecs(
        "jpeg8_encode",
        lossless=True,
        bitspersample=pixel_format.bits_stored,
        colorspace=space,
        outcolorspace=space,
    )
    return encode(tile, pixel_format)


_UID = "1.2.840.10008.1.2"
_jpeg_2000_lossless = _imagecodecs("jpeg2k_encode", codecformat="j2k", level=0, reversible=True)
_jpeg_2000_lossy = _imagecodecs("jpeg2k_encode", codecformat="j2k", level=40, reversible=False)
_htj2k = _imagecodecs("htj2k_encode", reversible=True)
_htj2k_lossy = _imagecodecs("htj2k_encode", reversible=False)
_jpeg_xl = _imagecodecs("jpegxl_encode", lossless=True, usecontainer=False)

ENCODERS: dict[str, Callable[[NDArray[Any], PixelFormat], bytes]] = {
    _UID: _native,
    f"{_UID}.1": _native,
    f"{_UID}.2": _native_big_endian,
    f"{_UID}.1.99": _native,
    f"{_UID}.1.98": _native,
    f"{_UID}.8.1": _deflated,
    f"{_UID}.5": _rle,
    f"{_UID}.4.50": _jpeg,
    f"{_UID}.4.51": _imagecodecs("jpeg8_encode", level=95, bitspersample=12),
    f"{_UID}.4.57": _jpeg_lossless,
    f"{_UID}.4.70": _jpeg_lossless,
    f"{_UID}.4.80": _imagecodecs("jpegls_encode"),
    f"{_UID}.4.81": _imagecodecs("jpegls_encode", level=2),
    f"{_UID}.4.90": _jpeg_2000_lossless,
    f"{_UID}.4.91": _jpeg_2000_lossy,
    f"{_UID}.4.201": _htj2k,
    f"{_UID}.4.202": _htj2k,
    f"{_UID}.4.203": _htj2k_lossy,
    f"{_UID}.4.110": _jpeg_xl,
    f"{_UID}.4.111": _imagecodecs("jpegxl_encode", level=90, lossless=False, usecontainer=False),
    f"{_UID}.4.112": _imagecodecs("jpegxl_encode", level=90, lossless=False, usecontainer=False),
}
"""Encoder of a frame for each transfer syntax UID that the package decodes."""

PHOTOMETRIC = {
    f"{_UID}.4.50": "YBR_FULL_422",
    f"{_UID}.4.90": "YBR_RCT",
    f"{_UID}.4.91": "YBR_ICT",
    f"{_UID}.4.201": "YBR_RCT",
    f"{_UID}.4.202": "YBR_RCT",
    f"{_UID}.4.203": "YBR_ICT",
}
LOSSY = {
    f"{_UID}.4.50": "ISO_10918_1",
    f"{_UID}.4.51": "ISO_10918_1",
    f"{_UID}.4.81": "ISO_14495_1",
    f"{_UID}.4.91": "ISO_15444_1",
    f"{_UID}.4.203": "ISO_15444_15",
    f"{_UID}.4.111": "ISO_18181_1",
    f"{_UID}.4.112": "ISO_18181_1",
}


def encode_frame(tile: NDArray[Any], pixel_format: PixelFormat, transfer_syntax_uid: str) -> bytes:
    """Encode a tile as one frame, without padding to an even length.

    Parameters
    ----------
    tile : numpy.ndarray
        Shape (rows, columns, samples).
    pixel_format : PixelFormat
        Rows, columns, samples and bits of the frame.
    transfer_syntax_uid : str
        Any key of :data:`ENCODERS`.

    Returns
    -------
    bytes
        The encoded frame.

    """
    return ENCODERS[transfer_syntax_uid](tile, pixel_format)
