"""The errors and warnings that dicomslide raises.

Every error derives from :class:`DicomSlideError` and from the built-in type that
a caller would expect. Each names the file or UID, the frame where there is one,
what was found and what was expected.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "AmbiguousSlideError",
    "AnnotationError",
    "CacheWarning",
    "CohortIndexError",
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
    "NotVirtualError",
    "PerformanceWarning",
    "PixelValueError",
    "SlideTaskError",
    "SourceChangedError",
    "SourceDeniedError",
    "SourceNotFoundError",
    "SourceReadError",
    "StorageRefusedError",
    "StoreExistsError",
    "ViewerWarning",
]


class DicomSlideError(Exception):
    """Base of all errors of this package."""


class NotSlideError(DicomSlideError, ValueError):
    """A path, URL or store holds no whole slide image."""


class NotDicomError(NotSlideError):
    """A file or object isn't a DICOM Part 10 file."""


class AmbiguousSlideError(DicomSlideError, ValueError):
    """A path or store holds several slides, or several images for one place in a slide."""


class LevelNotFoundError(DicomSlideError, IndexError):
    """The slide has no such pyramid level."""


class GridError(DicomSlideError, ValueError):
    """Arrays that are to be aligned lie on different grids, or in other frames of reference."""


class MetadataError(DicomSlideError, ValueError):
    """A header lacks a required attribute, or contradicts itself."""


# MemoryError first: the other way round, dask can't take it from one process to another
class MemoryLimitError(MemoryError, DicomSlideError):
    """A requested array, or the size that a header declares, exceeds the memory limit."""


class SourceChangedError(DicomSlideError, OSError):
    """A file or object was replaced or changed since it was opened."""


class SourceReadError(DicomSlideError, OSError):
    """A server returns no bytes of an object, or others than those requested."""


class SourceNotFoundError(SourceReadError, FileNotFoundError):
    """An object doesn't exist, or an opened file doesn't exist on the machine that reads it."""


class SourceDeniedError(SourceReadError, PermissionError):
    """A server denies access to an object with these credentials, or without any."""


class NotPicklableError(DicomSlideError, TypeError):
    """A slide that was opened from bytes or a file object can't be pickled."""


class ExportError(DicomSlideError, OSError):
    """An export can't be written, or its files are missing after they were written."""


class StoreExistsError(DicomSlideError, FileExistsError):
    """The path of an export exists, or another export was begun there."""


class NotVirtualError(DicomSlideError, ValueError):
    """Pixels can't be chunks of a zarr array where they are; the message says why."""


class CohortIndexError(DicomSlideError, ValueError):
    """An index of a cohort is damaged or of another version, or can't hold a slide."""


class StorageRefusedError(ExportError):
    """A server refused to store some instances (STOW-RS, PS3.18 10.5).

    Parameters
    ----------
    server : str
        URL of the service.
    failures : mapping of str to str
        Reason by SOP Instance UID of each refused instance.
    stored : sequence of str
        SOP Instance UIDs of the instances that were stored, and still are.

    """

    def __init__(
        self, server: str, failures: Mapping[str, str], stored: Sequence[str] = ()
    ) -> None:
        super().__init__(server, failures, stored)  # pickle calls the class with these
        self.server = server
        self.failures = dict(failures)
        self.stored = tuple(stored)

    def __str__(self) -> str:
        refused = "; ".join(f"{uid}: {reason}" for uid, reason in self.failures.items())
        stored = f"; it stored, and still has, {', '.join(self.stored)}" if self.stored else ""
        return (
            f"{self.server} didn't store {len(self.failures)} of"
            f" {len(self.failures) + len(self.stored)} instances: {refused}{stored}"
        )


class PixelValueError(DicomSlideError, ValueError):
    """Values that are to be written don't fit: NaN, fractions beyond 1, labels of no segment."""


class AnnotationError(DicomSlideError, ValueError):
    """Shapes or measurements that annotations can't hold: points that aren't finite, holes."""


class SlideTaskError(DicomSlideError):
    """A function failed for a slide of a cohort, or the slide couldn't be opened for it.

    Parameters
    ----------
    slide : str
        Name of the slide.
    error : Exception, optional
        What was raised, without its traceback.
    attempts : int, default: 1
        Number of times that it was tried.
    traceback : str, default: ""
        Traceback as text, of whichever process or machine.

    """

    def __init__(
        self, slide: str, error: Exception | None = None, attempts: int = 1, traceback: str = ""
    ) -> None:
        super().__init__(slide, error, attempts, traceback)  # pickle calls the class with these
        self.slide = slide
        self.error = error
        self.attempts = attempts
        self.traceback = traceback

    def __str__(self) -> str:
        tried = f" (after {self.attempts} attempts)" if self.attempts > 1 else ""
        what = "" if self.error is None else f": {type(self.error).__name__}: {self.error}"
        return f"{self.slide}{what}{tried}"


class FrameError(DicomSlideError):
    """A frame can't be read, decoded or placed.

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
        super().__init__(reason, source, frame)  # pickle calls the class with these
        self.reason = reason
        self.source = source
        self.frame = frame

    def located(self, source: str, frame: int | None = None) -> FrameError:
        """Return this error with source and frame, unless it has them already."""
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
    """A frame lies outside the total pixel matrix, off its tile grid, or on another frame."""


class FrameWarning(UserWarning):
    """A frame couldn't be read and was filled with background (``on_error="fill"``)."""


class CacheWarning(UserWarning):
    """A cache on disk can't be read or written; frames are requested again when needed."""


class PerformanceWarning(UserWarning):
    """An operation takes long; the message says how long, why, and what helps."""


class MetadataWarning(UserWarning):
    """Something absent or contradictory in a header was worked around."""


class ViewerWarning(UserWarning):
    """What is written is lawful, but no known viewer shows it in this form."""
