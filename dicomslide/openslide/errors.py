"""Exceptions with the names of openslide-python, as aliases of this package's classes."""

from __future__ import annotations

from dicomslide.errors import DicomSlideError, NotSlideError

__all__ = [
    "OpenSlideError",
    "OpenSlideUnsupportedFormatError",
    "OpenSlideVersionError",
    "RequestError",
]

OpenSlideError = DicomSlideError
"""Base class of all errors."""

OpenSlideUnsupportedFormatError = NotSlideError
"""A file isn't a slide."""


class OpenSlideVersionError(DicomSlideError):
    """libopenslide is too old. Never raised; defined for scripts that catch it."""


class RequestError(DicomSlideError, ValueError):
    """An invalid request: a negative size, or the use of a closed slide."""
