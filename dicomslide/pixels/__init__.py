"""One frame's bytes to pixels.

A pure function of bytes, pixel format and transfer syntax, with one table of decoders. It
decodes whole or not at all: what is truncated or contradicts its header raises.
"""

from dicomslide.pixels.decode import (
    DECODERS,
    NATIVE,
    Decoder,
    decode_frame,
    scratch_memory,
    transfer_syntax_of,
)
from dicomslide.pixels.pixel_format import PixelFormat

__all__ = ["DECODERS", "NATIVE", "Decoder", "PixelFormat", "decode_frame", "scratch_memory",
           "transfer_syntax_of"]  # fmt: skip
