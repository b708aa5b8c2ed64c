"""The names of ``openslide.lowlevel`` that scripts take from it: its errors and its version."""

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
"""Version of libopenslide that pictures and properties were measured against."""


def get_version() -> str:
    """Return the version of libopenslide whose pictures and properties are shown."""
    return LIBRARY_VERSION
