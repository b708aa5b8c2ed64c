"""Enumerated values."""

from __future__ import annotations

from enum import Enum

__all__ = ["ChannelTypes", "ImageFlavors"]


class ChannelTypes(Enum):
    """Enumerated values for channel types."""

    OPTICAL_PATH = "OPTICAL_PATH"
    """Item of the Optical Path Sequence of a VL Whole Slide Microscopy Image."""

    PARAMETER = "PARAMETER"
    """Item of the Real World Value Mapping Sequence of a Parametric Map."""

    SEGMENT = "SEGMENT"
    """Item of the Segment Sequence of a Segmentation."""


class ImageFlavors(Enum):
    """Enumerated values for image flavors: value 3 of Image Type (PS3.3 C.8.12.4.1.1)."""

    LABEL = "LABEL"
    """The slide's label."""

    OVERVIEW = "OVERVIEW"
    """The whole slide at low magnification."""

    THUMBNAIL = "THUMBNAIL"
    """The whole specimen in one frame."""

    VOLUME = "VOLUME"
    """The specimen in tiles, at one resolution."""
