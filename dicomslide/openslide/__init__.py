"""The public names of openslide-python, for programs written for that library."""

from __future__ import annotations

from dicomslide.openslide import deepzoom, lowlevel
from dicomslide.openslide.abstract import AbstractSlide
from dicomslide.openslide.api import OpenSlide, open_slide
from dicomslide.openslide.cache import OpenSlideCache
from dicomslide.openslide.errors import (
    OpenSlideError,
    OpenSlideUnsupportedFormatError,
    OpenSlideVersionError,
)
from dicomslide.openslide.image_slide import ImageSlide
from dicomslide.openslide.installation import install, uninstall
from dicomslide.openslide.properties import (
    PROPERTY_NAME_BACKGROUND_COLOR,
    PROPERTY_NAME_BARCODE,
    PROPERTY_NAME_BOUNDS_HEIGHT,
    PROPERTY_NAME_BOUNDS_WIDTH,
    PROPERTY_NAME_BOUNDS_X,
    PROPERTY_NAME_BOUNDS_Y,
    PROPERTY_NAME_COMMENT,
    PROPERTY_NAME_MPP_X,
    PROPERTY_NAME_MPP_Y,
    PROPERTY_NAME_OBJECTIVE_POWER,
    PROPERTY_NAME_QUICKHASH1,
    PROPERTY_NAME_VENDOR,
)

__all__ = [
    "AbstractSlide",
    "ImageSlide",
    "OpenSlide",
    "OpenSlideCache",
    "OpenSlideError",
    "OpenSlideUnsupportedFormatError",
    "OpenSlideVersionError",
    "PROPERTY_NAME_BACKGROUND_COLOR",
    "PROPERTY_NAME_BARCODE",
    "PROPERTY_NAME_BOUNDS_HEIGHT",
    "PROPERTY_NAME_BOUNDS_WIDTH",
    "PROPERTY_NAME_BOUNDS_X",
    "PROPERTY_NAME_BOUNDS_Y",
    "PROPERTY_NAME_COMMENT",
    "PROPERTY_NAME_MPP_X",
    "PROPERTY_NAME_MPP_Y",
    "PROPERTY_NAME_OBJECTIVE_POWER",
    "PROPERTY_NAME_QUICKHASH1",
    "PROPERTY_NAME_VENDOR",
    "deepzoom",
    "install",
    "lowlevel",
    "open_slide",
    "uninstall",
]

__version__ = "1.4.7"
"""Version of openslide-python whose interface is implemented, for scripts that compare versions."""

__library_version__ = lowlevel.get_version()
"""Version of libopenslide whose images and properties are reproduced."""
