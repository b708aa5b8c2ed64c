"""Zarr codec ``dicomslide_frame``: an encoded DICOM frame as a chunk of an array.

Zarr finds it by the entry point ``zarr.codecs`` of the installed package, and once this module is
imported. It needs the package zarr only.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
from zarr.abc.codec import ArrayBytesCodec
from zarr.registry import register_codec

from dicomslide.pixels import PixelFormat, decode_frame

if TYPE_CHECKING:
    from typing import Self

    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer

__all__ = ["NAME", "FrameCodec", "configuration_of"]

NAME = "dicomslide_frame"
"""Name of the codec in the metadata of arrays."""
_DEFAULTS = {
    field.name: field.default
    for field in dataclasses.fields(PixelFormat)
    if field.name not in ("rows", "columns")
}


@dataclasses.dataclass(frozen=True)
class FrameCodec(ArrayBytesCodec):
    """Decodes a chunk that is one frame, with dicomslide's decoders and their checks.

    The last dims of a chunk are rows and columns, and samples if a pixel has several. Of a
    codestream with fewer rows or columns, the rest of the chunk is the array's fill value. A frame
    that is damaged, or contradicts the pixel format, raises a
    :class:`~dicomslide.FrameDecodeError`. It doesn't encode.

    Parameters
    ----------
    transfer_syntax_uid : str
        Transfer Syntax UID of the frames.
    pixel_format : mapping
        Attributes of the Image Pixel module (PS3.3 C.7.6.3): fields of
        ``dicomslide.pixels.PixelFormat`` other than `rows` and `columns`, which are those of
        a chunk. Fields that are left out have their default.

    """

    transfer_syntax_uid: str
    pixel_format: tuple[tuple[str, Any], ...]
    is_fixed_size = False

    def __init__(self, *, transfer_syntax_uid: str, pixel_format: Any = ()) -> None:
        fields = dict(pixel_format)
        if unknown := sorted(fields.keys() - _DEFAULTS.keys()):
            raise ValueError(f"{NAME}: unknown fields of the pixel format: {', '.join(unknown)}")
        object.__setattr__(self, "transfer_syntax_uid", transfer_syntax_uid)
        object.__setattr__(self, "pixel_format", tuple(sorted(fields.items())))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Return the codec of a metadata document."""
        return cls(**data.get("configuration", {}))

    def to_dict(self) -> dict[str, Any]:
        """Return the codec as in a metadata document."""
        configuration = {
            "transfer_syntax_uid": self.transfer_syntax_uid,
            "pixel_format": dict(self.pixel_format),
        }
        return {"name": NAME, "configuration": configuration}

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        fields = dict(self.pixel_format)
        samples = fields.get("samples", 1)
        rows, columns = chunk_spec.shape[-3:-1] if samples > 1 else chunk_spec.shape[-2:]
        declared = PixelFormat(rows=rows, columns=columns, **fields)
        pixels = decode_frame(chunk_bytes.as_numpy_array().data, declared, self.transfer_syntax_uid)
        if pixels.shape != declared.shape:  # a tile that the writer cropped at the edge
            whole = np.full(declared.shape, chunk_spec.fill_value, pixels.dtype)
            whole[: pixels.shape[0], : pixels.shape[1]] = pixels
            pixels = whole
        return chunk_spec.prototype.nd_buffer.from_numpy_array(pixels.reshape(chunk_spec.shape))

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        return await asyncio.to_thread(self._decode_sync, chunk_bytes, chunk_spec)

    async def _encode_single(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        raise NotImplementedError(f"{NAME} reads DICOM frames; it doesn't write them")

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Raise a NotImplementedError: encoded frames differ in size."""
        raise NotImplementedError(f"{NAME}: encoded frames differ in size")


def configuration_of(declared: PixelFormat, transfer_syntax_uid: str) -> dict[str, Any]:
    """Return the codec of frames, as in a metadata document."""
    given = {name: getattr(declared, name) for name in _DEFAULTS}
    fields = {name: value for name, value in given.items() if value != _DEFAULTS[name]}
    return FrameCodec(transfer_syntax_uid=transfer_syntax_uid, pixel_format=fields).to_dict()


register_codec(NAME, FrameCodec)
