"""The functions of ``openslide.lowlevel``, for handles of slides that are read by this package."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, Any

from dicomslide.backends.objects.storage import is_url
from dicomslide.backends.part10.file import is_dicom_file
from dicomslide.openslide.properties import OPENSLIDE_NAMES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from PIL import Image

    from dicomslide.openslide.api import OpenSlide
    from dicomslide.openslide.cache import OpenSlideCache
    from dicomslide.openslide.contents import Contents
    from dicomslide.readers.matrix_reader import MatrixReader

__all__ = ["CACHE", "FUNCTIONS", "Handle", "is_ours"]

CACHE = "_dicomslide_cache"
"""Attribute of a cache of libopenslide: one of the same capacity, for slides of this package."""


class Handle:
    """Handle of a slide that this package reads, in place of one of libopenslide.

    Parameters
    ----------
    slide : OpenSlide
        The open slide, closed with the handle.

    """

    def __init__(self, slide: OpenSlide) -> None:
        self._slide: OpenSlide | None = slide

    @property
    def slide(self) -> OpenSlide:
        """The open slide.

        Raises
        ------
        ctypes.ArgumentError
            When it is closed, as openslide-python does.

        """
        slide = self._slide  # read once: another thread may close it
        if slide is None:
            raise ctypes.ArgumentError("the slide is closed; open it again")
        return slide

    @property
    def contents(self) -> Contents:
        """Levels and associated images."""
        return self.slide._open_contents()

    @property
    def associated(self) -> dict[str, MatrixReader]:
        """Readers of associated images by libopenslide's names, in their order."""
        readers = self.contents.associated
        return {OPENSLIDE_NAMES[flavor]: reader for flavor, reader in readers.items()}

    def close(self) -> None:
        """Close the slide."""
        self.slide.close()
        self._slide = None


def is_ours(filename: Any) -> bool:
    """Whether this package opens a slide: a DICOM file, a folder or a URL.

    libopenslide opens neither folders nor URLs.
    """
    if not isinstance(filename, (str, bytes, os.PathLike)):
        return False  # openslide-python raises the error
    path = os.fsdecode(filename)
    return is_url(path) or os.path.isdir(path) or is_dicom_file(path)


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _level_dimensions(handle: Handle, level: int) -> tuple[int, int]:
    dimensions = handle.contents.dimensions
    return dimensions[level] if 0 <= level < len(dimensions) else (-1, -1)


def _level_downsample(handle: Handle, level: int) -> float:
    downsamples = handle.contents.downsamples
    return downsamples[level] if 0 <= level < len(downsamples) else -1.0


def _read_region(
    handle: Handle, x: int, y: int, level: int, width: int, height: int
) -> Image.Image:
    return handle.slide.read_region((x, y), level, (width, height))


def _associated_dimensions(handle: Handle, name: str | bytes) -> tuple[int, int]:
    rows, columns, _ = handle.associated[_text(name)].shape
    return columns, rows


def _associated_profile(handle: Handle, name: str | bytes) -> bytes | None:
    return handle.associated[_text(name)].icc_profile


def _set_cache(handle: Handle, cache: Any) -> None:
    ours: OpenSlideCache | None = getattr(cache, CACHE, None)
    if ours is not None:  # else created before install(): the cache of the process is used
        handle.slide.set_cache(ours)


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "close": Handle.close,
    "get_level_count": lambda handle: handle.slide.level_count,
    "get_level_dimensions": _level_dimensions,
    "get_level_downsample": _level_downsample,
    "get_best_level_for_downsample": lambda handle, downsample: (
        handle.slide.get_best_level_for_downsample(downsample)
    ),
    "read_region": _read_region,
    "get_icc_profile_size": lambda handle: len(handle.slide.icc_profile or b""),
    "read_icc_profile": lambda handle: handle.slide.icc_profile,
    "get_error": lambda handle: None,
    "get_property_names": lambda handle: list(handle.slide.properties),
    "get_property_value": lambda handle, name: handle.slide.properties.get(_text(name)),
    "get_associated_image_names": lambda handle: list(handle.associated),
    "get_associated_image_dimensions": _associated_dimensions,
    "read_associated_image": lambda handle, name: handle.slide.associated_images[_text(name)],
    "get_associated_image_icc_profile_size": lambda handle, name: len(
        _associated_profile(handle, name) or b""
    ),
    "read_associated_image_icc_profile": _associated_profile,
    "set_cache": _set_cache,
}
"""Functions of openslide.lowlevel whose first argument is a handle, by name."""
