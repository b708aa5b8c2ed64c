"""Optical set-up of a channel, and the display that its header recommends (PS3.3 C.8.12.5)."""

from __future__ import annotations

import dataclasses
from collections.abc import MutableSequence
from typing import TYPE_CHECKING, Any

from dicomslide.enum import ChannelTypes
from dicomslide.header import dicom
from dicomslide.header.layout import shared_items
from dicomslide.header.palette import hex_color, palette_of, strongest
from dicomslide.pixels.color import cielab_to_srgb

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from dicomslide.header.channels import Channel
    from dicomslide.pixels import PixelFormat

__all__ = ["Filter", "Optics", "optics_of", "recommended_color", "valid_range", "window_of"]


@dataclasses.dataclass(frozen=True, slots=True)
class Filter:
    """Wavelengths in nm that a filter lets pass; None where the header doesn't say."""

    peak: float | None = None
    """Filter Pass-Through Wavelength; else the middle of the pass band."""
    low: float | None = None
    """Shorter end of the pass band."""
    high: float | None = None
    """Longer end of the pass band."""

    @classmethod
    def of(cls, path: Dataset, kind: str) -> Filter:
        """Return the filter of the light path or the image path; `kind` is Light or Image."""
        low, high = dicom.numbers(path, f"{kind}PathFilterPassBand", 2) or (None, None)
        # one end of the band of a cut-off filter may be zero
        low, high = low or None, high or None
        if low and high and low > high:
            low, high = high, low
        peak = dicom.number(path, f"{kind}PathFilterPassThroughWavelength") or None
        if peak is None and low and high:
            peak = (low + high) / 2
        return cls(peak, low, high)


@dataclasses.dataclass(frozen=True, slots=True)
class Optics:
    """Optical set-up of a channel: texts and numbers, None where the header doesn't say."""

    excitation: Filter
    """Filter of the light path."""
    emission: Filter
    """Filter of the image path."""
    illumination: str | None
    """Meanings of the Illumination Type Codes."""
    illumination_color: str | None
    """Meanings of the Illumination Color Code."""
    codes: str | None
    """Meanings of the Channel Description Codes, such as fluorochrome and target."""
    objective_power: float | None
    """Objective Lens Power."""
    objective_na: float | None
    """Objective Lens Numerical Aperture."""
    exposure_time: float | None
    """Exposure time in ms."""


def optics_of(channel: Channel, image: Dataset) -> Optics:
    """Return the optical set-up of a channel.

    Parameters
    ----------
    channel : Channel
        An optical path.
    image : pydicom.dataset.Dataset
        Header of an image with the channel, for what optical paths may share.

    """
    path = channel.item
    return Optics(
        excitation=Filter.of(path, "Light"),
        emission=Filter.of(path, "Image"),
        illumination=_meanings(path, "IlluminationTypeCodeSequence"),
        illumination_color=_meanings(path, "IlluminationColorCodeSequence"),
        codes=_meanings(path, "ChannelDescriptionCodeSequence"),
        objective_power=dicom.number(path, "ObjectiveLensPower") or None,
        objective_na=dicom.number(path, "ObjectiveLensNumericalAperture") or None,
        exposure_time=_exposure(path, image),
    )


def _meanings(path: Dataset, keyword: str) -> str | None:
    meanings = (
        dicom.text(code, "CodeMeaning") or dicom.code_value(code)
        for code in dicom.items(path, keyword)
    )
    return ", ".join(filter(None, meanings)) or None


def _exposure(path: Dataset, image: Dataset) -> float | None:
    """Return the exposure time in ms, of the optical path or else of the image."""
    for dataset in (path, image):
        for keyword, per_ms in (
            ("ExposureTimeInms", 1.0),
            ("ExposureTimeInuS", 1000.0),
            ("ExposureTime", 1.0),
            ("ExposureTimeInSeconds", 0.001),
        ):
            value = dicom.number(dataset, keyword)
            if value:
                return value / per_ms
    return None


def recommended_color(channel: Channel) -> str | None:
    """Return the colour in which a header recommends to display a channel, as ``#RRGGBB``.

    It is the brightest entry of an optical path's Palette Color Lookup Table, or a segment's
    Recommended Display CIELab Value; None where both are absent.
    """
    if channel.type is ChannelTypes.OPTICAL_PATH:
        palette = palette_of(channel.item)
        return None if palette is None else strongest(palette)
    lab = dicom.numbers(channel.item, "RecommendedDisplayCIELabValue", 3)
    return None if lab is None else hex_color(cielab_to_srgb([int(value) for value in lab]))


def window_of(image: Dataset) -> tuple[float, float] | None:
    """Return the stored values that a header recommends to display darkest and brightest.

    These are the ends of the first Window Center and Width (PS3.3 C.11.2.1.2), of the image or of
    the shared functional groups, converted by Rescale Slope and Intercept; None where absent.
    """
    for dataset in (*shared_items(image, "FrameVOILUTSequence"), image):
        center, width = (_first(dataset, f"Window{name}") for name in ("Center", "Width"))
        if center is None or not width or width < 0:
            continue
        if (dicom.text(dataset, "VOILUTFunction") or "LINEAR") == "LINEAR":
            center, width = center - 0.5, max(width - 1, 0.0)
        low, high = center - width / 2, center + width / 2
        slope, intercept = _rescaled(image)
        return (low - intercept) / slope, (high - intercept) / slope
    return None


def _rescaled(image: Dataset) -> tuple[float, float]:
    """Return Rescale Slope and Intercept."""
    for dataset in (*shared_items(image, "PixelValueTransformationSequence"), image):
        slope = dicom.number(dataset, "RescaleSlope")
        if slope and slope > 0:
            return slope, dicom.number(dataset, "RescaleIntercept") or 0.0
    return 1.0, 0.0


def _first(dataset: Dataset, keyword: str) -> float | None:
    """Return the first value of an element as a number; None where it has none."""
    value: Any = dataset.get(keyword)
    try:
        return float(value[0] if isinstance(value, MutableSequence) else value)
    except (IndexError, TypeError, ValueError):
        return None


def valid_range(pixel_format: PixelFormat) -> tuple[int, int] | None:
    """Return the lowest and highest value of Bits Stored; None for bool and real numbers."""
    if pixel_format.floating or pixel_format.bits_allocated == 1:
        return None
    bits = pixel_format.bits_stored
    if not 0 < bits <= pixel_format.bits_allocated:
        bits = pixel_format.bits_allocated
    if pixel_format.signed:
        return -(1 << bits - 1), (1 << bits - 1) - 1
    return 0, (1 << bits) - 1
