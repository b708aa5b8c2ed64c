"""The errors and warnings that dicomslide raises.

Every error derives from :class:`DicomSlideError` and from the built-in type that
a caller would expect. Each names the file or UID, the frame where there is one,
what was found and what was expected.
"""

from __future__ import annotations

import os

__all__ = [
    "AmbiguousSlideError",
    "CacheWarning",
    "DicomSlideError",
    "ExportError",
    "FrameDecodeError",
    "FrameError",
    "FramePositionError",
    "FrameReadError",
    "FrameWarning",
    "GridError",
    "LevelNotFoundError",
    "MemoryLimitError",
    "MetadataError",
    "MetadataWarning",
    "NotDicomError",
    "NotPicklableError",
    "NotSlideError",
    "SourceChangedError",
    "SourceDeniedError",
    "SourceNotFoundError",
    "SourceReadError",
    "StoreExistsError",
]


class DicomSlideError(Exception):
    """Base of all errors of this package."""


class NotSlideError(DicomSlideError, ValueError):
    """What was opened holds no whole slide image."""


class NotDicomError(NotSlideError):
    """What was opened is not a DICOM Part 10 file."""


class AmbiguousSlideError(DicomSlideError, ValueError):
    """What was opened holds several slides, or several images for one place in a slide."""


class LevelNotFoundError(DicomSlideError, IndexError):
    """The slide has no such pyramid level."""


class GridError(DicomSlideError, ValueError):
    """Arrays that are to be aligned lie on different grids, or in other frames of reference."""


class MetadataError(DicomSlideError, ValueError):
    """A header lacks what is needed, or contradicts itself."""


# MemoryError first: the other way round, dask can't take it from one process to another
class MemoryLimitError(MemoryError, DicomSlideError):
    """What was asked for, or what a header claims, exceeds the memory limit."""


class SourceChangedError(DicomSlideError, OSError):
    """A file is not any more the one that was opened."""


class SourceReadError(DicomSlideError, OSError):
    """A server doesn't give the bytes of an object, or not those that were asked for."""


class SourceNotFoundError(SourceReadError, FileNotFoundError):
    """There is no such object, or a file that was opened isn't there where it is to be read."""


class SourceDeniedError(SourceReadError, PermissionError):
    """A server doesn't let an object be read with these credentials, or without any."""


class NotPicklableError(DicomSlideError, TypeError):
    """What is read from bytes or a file object can't go to another process."""


class ExportError(DicomSlideError, OSError):
    """What is exported can't be written, or isn't where it was written to."""


class StoreExistsError(DicomSlideError, FileExistsError):
    """Something is where an export is to be written, or another export was begun there."""


class FrameError(DicomSlideError):
    """Something is wrong with one frame.

    Parameters
    ----------
    reason : str
        What was found and what was expected.
    source : str, optional
        File name, URL or SOP Instance UID.
    frame : int, optional
        Zero-based index of the frame; the message gives the one-based frame number
        that DICOM uses.

    """

    def __init__(self, reason: str, source: str | None = None, frame: int | None = None) -> None:
        super().__init__(reason, source, frame)  # what pickle rebuilds the error from
        self.reason = reason
        self.source = source
        self.frame = frame

    def located(self, source: str, frame: int | None = None) -> FrameError:
        """Return this error with the place filled in where it isn't known yet."""
        known = self.frame is not None
        return type(self)(self.reason, self.source or source, self.frame if known else frame)

    def __str__(self) -> str:
        place = [] if self.source is None else [os.fspath(self.source)]
        if self.frame is not None:
            place.append(f"frame {self.frame + 1}")
        return f"{', '.join(place)}: {self.reason}" if place else self.reason


class FrameReadError(FrameError, OSError):
    """The bytes of a frame can't be read: truncated file, wrong offset table."""


class FrameDecodeError(FrameError, ValueError):
    """The bytes of a frame aren't what the header says they are."""


class FramePositionError(FrameError, ValueError):
    """A frame lies outside the total pixel matrix, off its grid, or where another one lies."""


class FrameWarning(UserWarning):
    """A frame couldn't be read and was filled with background (``on_error="fill"``)."""


class CacheWarning(UserWarning):
    """What was to be kept on disk couldn't be; it is fetched again when it is wanted again."""


class MetadataWarning(UserWarning):
    """Something absent or contradictory in a header was worked around."""
