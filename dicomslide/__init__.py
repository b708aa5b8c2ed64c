"""DICOM whole slide images as lazy, labelled arrays.

What leads to arrays is imported when it is first used: importing the package costs neither
xarray nor dask.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dicomslide.enum import ChannelTypes, ImageFlavors
from dicomslide.errors import (
    AmbiguousSlideError,
    DicomSlideError,
    FrameDecodeError,
    FrameError,
    FramePositionError,
    FrameReadError,
    FrameWarning,
    LevelNotFoundError,
    MemoryLimitError,
    MetadataError,
    MetadataWarning,
    NotDicomError,
    NotSlideError,
    SourceChangedError,
)
from dicomslide.options import Options, get_options, set_options
from dicomslide.utils import (
    is_image,
    is_label_image,
    is_overview_image,
    is_tiled_image,
    is_volume_image,
)

if TYPE_CHECKING:
    from dicomslide.image import TiledImage
    from dicomslide.index import SlideIndex
    from dicomslide.matrix import TotalPixelMatrix
    from dicomslide.opening import open_slide
    from dicomslide.slide import Slide

__version__ = "0.1.0"

_LATE = {
    "Slide": "slide",
    "SlideIndex": "index",
    "TiledImage": "image",
    "TotalPixelMatrix": "matrix",
    "open_slide": "opening",
}

__all__ = [
    "AmbiguousSlideError",
    "ChannelTypes",
    "DicomSlideError",
    "FrameDecodeError",
    "FrameError",
    "FramePositionError",
    "FrameReadError",
    "FrameWarning",
    "ImageFlavors",
    "LevelNotFoundError",
    "MemoryLimitError",
    "MetadataError",
    "MetadataWarning",
    "NotDicomError",
    "NotSlideError",
    "Options",
    "Slide",
    "SlideIndex",
    "SourceChangedError",
    "TiledImage",
    "TotalPixelMatrix",
    "__version__",
    "get_options",
    "is_image",
    "is_label_image",
    "is_overview_image",
    "is_tiled_image",
    "is_volume_image",
    "open_slide",
    "set_options",
]


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_LATE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
