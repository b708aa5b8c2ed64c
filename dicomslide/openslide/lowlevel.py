"""The names of ``openslide.lowlevel`` that scripts use: exceptions and the library's version."""

from __future__ import annotations

from dicomslide.openslide.errors import (
    OpenSlideError,
    OpenSlideUnsupportedFormatError,
    OpenSlideVersionError,
)

__all__ = [
    "OpenSlideError",
    "OpenSlideUnsupportedFormatError",
    "OpenSlideVersionError",
    "get_version",
]

LIBRARY_VERSION = "4.0.1"
"""Version of libopenslide whose images and properties are reproduced."""


def get_version() -> str:
    """Return the version of libopenslide whose images and properties are reproduced."""
    return LIBRARY_VERSION
