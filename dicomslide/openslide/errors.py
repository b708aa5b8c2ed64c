"""The errors of openslide-python, by its names: classes of this package that are raised here."""

from __future__ import annotations

from dicomslide.errors import DicomSlideError, NotSlideError

__all__ = [
    "OpenSlideError",
    "OpenSlideUnsupportedFormatError",
    "OpenSlideVersionError",
    "RequestError",
]

OpenSlideError = DicomSlideError
"""What can't be read, or done with a slide."""

OpenSlideUnsupportedFormatError = NotSlideError
"""What is no slide."""


class OpenSlideVersionError(DicomSlideError):
    """The library is too old. Never raised here, where there is none; scripts catch it."""


class RequestError(DicomSlideError, ValueError):
    """What is asked for can't be: a negative size, or anything of a slide that was closed."""
