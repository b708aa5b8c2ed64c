"""Conversion of stored pixel values to real world values, or to fractions."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.enum import ChannelTypes
from dicomslide.header import dicom
from dicomslide.header.channels import Channel, channel_type_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

    from dicomslide.pixels.pixel_format import PixelFormat

__all__ = ["Scaling", "is_fractional", "scaling_of"]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Scaling:
    """Conversion of the stored values of a channel."""

    dtype: np.dtype[Any]
    """Data type of the converted values."""
    absent: float
    """Converted value of pixels that aren't stored."""
    slope: float = 1.0
    intercept: float = 0.0
    divisor: float = 1.0
    first: float = -math.inf
    """Lowest stored value that is mapped; lower ones become NaN."""
    last: float = math.inf
    """Highest stored value that is mapped; higher ones become NaN."""
    table: NDArray[np.float64] | None = None
    """Converted value of each stored value from `first` on, where the mapping isn't linear."""

    def apply(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Return the converted values of stored pixels, an array of the same shape."""
        values: NDArray[Any]
        if self.table is None:
            values = pixels.astype(self.dtype)
            if self.divisor != 1:
                values /= self.dtype.type(self.divisor)
            if self.slope != 1:
                values *= self.slope
            if self.intercept:
                values += self.intercept
        else:
            index = pixels.astype(np.int64) - int(self.first)
            values = self.table[index.clip(0, len(self.table) - 1)]
        if math.isfinite(self.first) or math.isfinite(self.last):
            values[(pixels < self.first) | (pixels > self.last)] = math.nan
        return values


def is_fractional(image: Dataset) -> bool:
    """Whether Segmentation Type is FRACTIONAL (PS3.3 C.8.20.2.3)."""
    return (
        channel_type_of(image) is ChannelTypes.SEGMENT
        and dicom.text(image, "SegmentationType") == "FRACTIONAL"
    )


def scaling_of(image: Dataset, channel: Channel, pixel_format: PixelFormat) -> Scaling | None:
    """Return the conversion of the stored values of a channel; None where they stay as stored.

    Values of a fractional segmentation are divided by Maximum Fractional Value. Integers of a
    parametric map are converted by the channel's Real World Value Mapping (PS3.3 C.7.6.16.2.11);
    values outside its range become NaN. Floating-point values of a parametric map stay as stored.

    Parameters
    ----------
    image : pydicom.dataset.Dataset
        Header of the image.
    channel : Channel
        The channel.
    pixel_format : PixelFormat
        Format of the stored pixels.

    Returns
    -------
    Scaling or None

    """
    if is_fractional(image):
        largest = dicom.number(image, "MaximumFractionalValue")
        return Scaling(np.dtype(np.float32), 0.0, divisor=largest) if largest else None
    if channel.type is not ChannelTypes.PARAMETER or pixel_format.floating:
        return None
    first, last = channel.mapped_range
    slope, intercept = channel.mapping or (1.0, 0.0)
    table = channel.mapping_table
    if table is not None:
        first = first if math.isfinite(first) else 0.0
        last = min(last, first + len(table) - 1)
    return Scaling(
        np.dtype(np.float64),
        math.nan,
        slope=slope,
        intercept=intercept,
        first=first,
        last=last,
        table=table,
    )
