"""Pixel format that a header declares, and the checks and casts that decoders share."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from dicomslide.errors import FrameDecodeError
from dicomslide.process.lazy import lazy

if TYPE_CHECKING:
    from typing import Any, TypeAlias

    from numpy.typing import NDArray

    Pixels: TypeAlias = NDArray[Any]
    Buffer: TypeAlias = bytes | bytearray | memoryview

__all__ = ["PixelFormat", "as_declared", "check_precision", "check_size", "halved", "imagecodecs",
           "ybr_to_rgb"]  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelFormat:
    """Pixel format of a frame as its header declares it (Image Pixel module, PS3.3 C.7.6.3)."""

    rows: int
    columns: int
    samples: int = 1
    bits_allocated: int = 8
    bits_stored: int = 8
    high_bit: int | None = None
    """High Bit: index of the most significant stored bit of a word; None for Bits Stored − 1."""
    signed: bool = False
    floating: bool = False
    """Whether the pixels are Float or Double Float Pixel Data."""
    photometric: str = "MONOCHROME2"
    planar: bool = False
    """Whether native frames hold one plane per sample (Planar Configuration 1)."""

    def __post_init__(self) -> None:
        if min(self.rows, self.columns) < 1 or self.samples not in (1, 3):
            raise ValueError(
                f"a frame of {self.rows} × {self.columns} pixels with {self.samples} samples"
                " isn't an image; expected at least 1 × 1 with 1 or 3 samples"
            )
        allowed = (32, 64) if self.floating else (1, 8, 16, 32)
        if self.bits_allocated not in allowed:
            raise ValueError(f"Bits Allocated {self.bits_allocated} isn't one of {allowed}")

    @lazy
    def dtype(self) -> np.dtype[Any]:
        """NumPy dtype of the decoded pixels: bool where Bits Allocated is 1."""
        if self.bits_allocated == 1:
            return np.dtype(np.bool_)
        kind = "f" if self.floating else "i" if self.signed else "u"
        return np.dtype(f"{kind}{self.bits_allocated // 8}")

    @property
    def unused_bits(self) -> tuple[int, int]:
        """Number of unused bits of a native word, above and below the stored ones (PS3.5 8.1.1).

        A High Bit that contradicts Bits Stored is ignored, and so is a Bits Stored that exceeds
        Bits Allocated.
        """
        allocated, stored = self.bits_allocated, self.bits_stored
        if self.floating or allocated == 1 or not 0 < stored <= allocated:
            return 0, 0
        top = stored if self.high_bit is None else self.high_bit + 1
        if not stored <= top <= allocated:
            top = stored
        return allocated - top, top - stored

    def halved(self, times: int) -> PixelFormat:
        """Return the format of frames whose sizes are halved `times` times, rounded up."""
        return dataclasses.replace(
            self, rows=-(-self.rows >> times), columns=-(-self.columns >> times)
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, columns and samples."""
        return self.rows, self.columns, self.samples

    @property
    def is_color(self) -> bool:
        """Whether the decoded pixels are RGB."""
        return self.samples == 3

    @property
    def native_bits(self) -> int:
        """Size of a native frame in bits; native frames follow each other without padding."""
        pixels = self.rows * self.columns
        if self.photometric == "YBR_FULL_422":  # PS3.3 C.7.6.3.1.2: two pixels share chroma
            return 16 * pixels
        return pixels * self.samples * self.bits_allocated

    @property
    def native_bytes(self) -> int:
        """Size of one native frame in bytes, rounded up."""
        return -(-self.native_bits // 8)


def check_size(rows: int, columns: int, samples: int, declared: PixelFormat) -> None:
    """Raise a FrameDecodeError if a codestream has more pixels, or other samples, than declared."""
    if not (0 < rows <= declared.rows and 0 < columns <= declared.columns):
        raise FrameDecodeError(
            f"the codestream holds {rows} × {columns} pixels (rows × columns), the header"
            f" declares {declared.rows} × {declared.columns}"
        )
    if samples != declared.samples:
        raise FrameDecodeError(
            f"the codestream holds {samples} samples per pixel, the header declares"
            f" {declared.samples}"
        )


def check_precision(precision: int, declared: PixelFormat) -> None:
    """Raise a FrameDecodeError if a codestream has more bits per sample than Bits Allocated."""
    if precision > max(declared.bits_allocated, 8):
        raise FrameDecodeError(
            f"the codestream holds {precision} bits per sample, the header allocates"
            f" {declared.bits_allocated}"
        )


def as_declared(array: Pixels, declared: PixelFormat) -> Pixels:
    """Cast decoded pixels to the declared dtype; their precision has been checked before."""
    if declared.bits_allocated == 1:
        return array != 0
    if declared.signed and array.dtype.kind == "u":
        # an unsigned codestream holds the two's complement of Bits Stored
        sign = 1 << (declared.bits_stored - 1)
        wide = array.astype(np.int64)
        return ((wide ^ sign) - sign).astype(declared.dtype)
    if array.dtype.kind == "f" or array.dtype.itemsize > declared.dtype.itemsize:
        raise FrameDecodeError(f"the codestream holds {array.dtype}, not {declared.dtype}")
    return array.astype(declared.dtype)


def halved(array: Pixels, times: int) -> Pixels:
    """Halve rows and columns `times` times, rounded up, by the mean of boxes of pixels.

    Boxes that extend beyond an edge are filled with the pixels at that edge.

    Parameters
    ----------
    array : numpy.ndarray
        Shape (rows, columns, samples).
    times : int
        Number of halvings.

    """
    edge = 1 << times
    rows, columns, samples = array.shape
    ends = [(0, -length % edge) for length in (rows, columns)]
    whole = np.pad(array, [*ends, (0, 0)], mode="edge")
    boxes = whole.reshape(whole.shape[0] // edge, edge, whole.shape[1] // edge, edge, samples)
    means = boxes.mean(axis=(1, 3))
    return (np.floor(means + 0.5) if array.dtype.kind in "ui" else means).astype(array.dtype)


def imagecodecs() -> Any:
    """Return the package imagecodecs, imported on first use since it is large.

    The return type is Any because its type stubs accept bytes only.
    """
    import imagecodecs

    return imagecodecs


def ybr_to_rgb(array: Pixels) -> Pixels:
    """Convert YBR_FULL to RGB (PS3.3 C.7.6.3.1.2)."""
    from pydicom.pixels.processing import convert_color_space

    return convert_color_space(array, "YBR_FULL", "RGB", per_frame=True)
