"""Encoding of the frames of a matrix: bits, bytes, RLE, JPEG-LS and deflated frames."""

from __future__ import annotations

import dataclasses
import itertools
import math
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.pixels.decode import DEFLATED_FRAME, NATIVE, RLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

__all__ = ["DEFLATED_FRAME", "JPEG_LS", "MOST_NATIVE", "NATIVE", "RLE", "FrameForm", "join_bits"]

JPEG_LS = "1.2.840.10008.1.2.4.80"
MOST_NATIVE = 2**32 - 2
"""Upper bound on the bytes of native pixel data, whose length has 32 bits (PS3.5 7.1)."""
DEFLATE_LEVEL = 6
MOST_BITS = 8 * 2**20
"""Bits of frames that are joined at a time."""


@dataclasses.dataclass(frozen=True, slots=True)
class FrameForm:
    """How the pixels of a frame are stored."""

    dtype: np.dtype[Any]
    """Data type of stored pixels; bool for single bits."""
    tile: tuple[int, int]
    """Rows and columns of a frame."""
    transfer_syntax_uid: str

    def __post_init__(self) -> None:
        if self.is_encapsulated and self.transfer_syntax_uid not in _ENCODERS:
            raise ValueError(
                f"transfer_syntax_uid {self.transfer_syntax_uid}: can't be written; expected one of"
                f" {[NATIVE, *_ENCODERS]}"
            )
        kinds = _ENCODERS[self.transfer_syntax_uid][1] if self.is_encapsulated else "buf"
        if self.dtype.kind not in kinds:
            fitting = [uid for uid, (_, kinds) in _ENCODERS.items() if self.dtype.kind in kinds]
            raise ValueError(
                f"transfer_syntax_uid {self.transfer_syntax_uid}: not for frames of {self.dtype};"
                f" expected one of {[NATIVE, *fitting]}"
            )

    @property
    def is_encapsulated(self) -> bool:
        """Whether each frame is encoded by itself."""
        return self.transfer_syntax_uid != NATIVE

    @property
    def bits_allocated(self) -> int:
        """Bits Allocated."""
        return 1 if self.dtype.kind == "b" else 8 * self.dtype.itemsize

    @property
    def frame_bits(self) -> int:
        """Bits of a native frame."""
        return math.prod(self.tile) * self.bits_allocated

    @property
    def is_aligned(self) -> bool:
        """Whether each native frame begins at a byte (PS3.5 8.1.1)."""
        return self.frame_bits % 8 == 0

    def tiles(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return the number of tiles down and across a matrix of rows and columns."""
        rows, columns = (-(-n // t) for n, t in zip(shape, self.tile, strict=True))
        return rows, columns

    def frames(self, block: NDArray[Any]) -> NDArray[np.uint8]:
        """Return the native bytes of the frames of whole tiles.

        Parameters
        ----------
        block : numpy.ndarray
            Shape (..., rows, columns): multiples of a tile, of the stored data type.

        Returns
        -------
        numpy.ndarray
            Shape (..., tiles down, tiles across, bytes); bits of a frame that isn't aligned are
            padded.

        """
        *lead, rows, columns = block.shape
        height, width = self.tile
        down, across = rows // height, columns // width

        def in_tiles(pixels: NDArray[Any]) -> NDArray[Any]:
            size = pixels.shape[-1] // across
            tiles = pixels.reshape(*lead, down, height, across, size).swapaxes(-3, -2)
            return np.ascontiguousarray(tiles).reshape(*lead, down, across, height * size)

        if self.dtype.kind != "b":
            found = in_tiles(block).astype(self.dtype.newbyteorder("<"), copy=False)
            return found.view(np.uint8)
        if width % 8 == 0:  # packed first: what is rearranged is an eighth
            return in_tiles(_packed_rows(block))
        return np.packbits(in_tiles(block), axis=-1, bitorder="little")

    def encode(self, frame: NDArray[np.uint8]) -> bytes:
        """Return an encoded frame of even length, given its native bytes."""
        encoded = _ENCODERS[self.transfer_syntax_uid][0](frame, self)
        return encoded + bytes(len(encoded) % 2)


def _packed_rows(block: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the bits of each row, eight pixels a byte, the first in the lowest bit.

    NumPy packs rows fast only where their pixels lie side by side in memory: those of turned blocks
    don't, so that bytes are put together from eight whole columns, or flipped when they are packed.
    """
    down, across = block.strides[-2:]
    if abs(across) > abs(down):
        *lead, rows, columns = block.shape
        if down < 0:
            return _packed_rows(block[..., ::-1, :])[..., ::-1, :]
        parts = block.view(np.uint8).swapaxes(-1, -2).reshape(*lead, columns // 8, 8, rows)
        packed = parts[..., 0, :].copy()
        shifted = np.empty_like(packed)
        for bit in range(1, 8):
            np.left_shift(parts[..., bit, :], bit, out=shifted)
            np.bitwise_or(packed, shifted, out=packed)
        return packed.swapaxes(-1, -2)
    if across < 0:
        return np.packbits(block[..., ::-1], axis=-1, bitorder="big")[..., ::-1]
    return np.packbits(block, axis=-1, bitorder="little")


def _rle(frame: NDArray[np.uint8], form: FrameForm) -> bytes:
    """Return RLE segments of each byte of the pixels, the highest first (PS3.5 annex G)."""
    import imagecodecs

    planes = frame.reshape(*form.tile, form.dtype.itemsize)
    segments = []
    for at in reversed(range(form.dtype.itemsize)):
        # rows are encoded one by one, as annex G.3.1 requires
        data = bytes(imagecodecs.packbits_encode(np.ascontiguousarray(planes[:, :, at]), axis=-1))
        segments.append(data + bytes(len(data) % 2))
    ends = list(itertools.accumulate(map(len, segments), initial=64))
    header = struct.pack("<16I", len(segments), *ends[:-1], *[0] * (15 - len(segments)))
    return header + b"".join(segments)


def _jpeg_ls(frame: NDArray[np.uint8], form: FrameForm) -> bytes:
    import imagecodecs

    return bytes(imagecodecs.jpegls_encode(frame.view(form.dtype).reshape(form.tile)))


def _deflated(frame: NDArray[np.uint8], form: FrameForm) -> bytes:
    return zlib.compress(frame.tobytes(), DEFLATE_LEVEL, wbits=-zlib.MAX_WBITS)


_ENCODERS: dict[str, tuple[Callable[[NDArray[np.uint8], FrameForm], bytes], str]] = {
    JPEG_LS: (_jpeg_ls, "u"),
    RLE: (_rle, "u"),
    DEFLATED_FRAME: (_deflated, "bu"),
}
"""Encoder of each encapsulated transfer syntax, and the kinds of data type that it is for."""


def join_bits(frames: Iterable[bytes], bits: int) -> Iterator[bytes]:
    """Yield frames of bits one after the other, without the padding of each (PS3.5 8.1.1).

    Parameters
    ----------
    frames : iterable of bytes
        Frames, each padded to whole bytes.
    bits : int
        Bits of a frame.

    """
    waiting: list[NDArray[np.uint8]] = []
    # eight frames end at a byte, whatever their size
    at_once = 8 * max(1, MOST_BITS // (8 * bits))
    for frame in frames:
        waiting.append(np.unpackbits(np.frombuffer(frame, np.uint8), count=bits, bitorder="little"))
        if len(waiting) == at_once:
            yield np.packbits(np.concatenate(waiting), bitorder="little").tobytes()
            waiting.clear()
    if waiting:
        yield np.packbits(np.concatenate(waiting), bitorder="little").tobytes()
