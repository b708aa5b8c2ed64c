"""Decoders of frames: the bytes of one frame to an array of pixels.

Decoding depends on bytes, pixel format and transfer syntax only. A frame that is truncated or
contradicts its header raises an error; no part of it is returned.
"""

from dicomslide.pixels.decode import (
    DECODERS,
    JPEG_BASELINE,
    NATIVE,
    Decoder,
    decode_frame,
    scratch_memory,
    transfer_syntax_of,
)
from dicomslide.pixels.pixel_format import PixelFormat

__all__ = ["DECODERS", "JPEG_BASELINE", "NATIVE", "Decoder", "PixelFormat", "decode_frame",
           "scratch_memory", "transfer_syntax_of"]  # fmt: skip
