"""What the failures of a DICOMweb server are raised as: errors that say why first, then of what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dicomslide.backends.dicomweb.service import REFUSALS
from dicomslide.backends.dicomweb.transport import TransportError
from dicomslide.backends.net.policy import DENIED, MISSING
from dicomslide.backends.net.redaction import said
from dicomslide.errors import (
    FrameReadError,
    MetadataError,
    SourceDeniedError,
    SourceNotFoundError,
    SourceReadError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MetadataDeniedError", "MetadataNotFoundError", "MetadataReadError", "NotServedError",
           "hint_for", "is_refusal", "kind_of", "listed", "read_error", "reason_of",
           "status_of"]  # fmt: skip


class NotServedError(FrameReadError):
    """A server doesn't give frames as anything that it was asked for."""


# who catches errors of sources catches these, and who catches those of metadata, too


class MetadataReadError(SourceReadError, MetadataError):
    """A server can't be reached, or doesn't give metadata."""


class MetadataDeniedError(SourceDeniedError, MetadataError):
    """A server doesn't let metadata be had with these credentials, or without any."""


class MetadataNotFoundError(SourceNotFoundError, MetadataError):
    """A server doesn't have what was asked for."""


def status_of(error: Exception) -> int | None:
    """Return the HTTP status of an error; None where there was no answer."""
    if isinstance(error, TransportError):
        return error.status
    return getattr(getattr(error, "response", None), "status_code", None)


def is_refusal(error: Exception) -> bool:
    """Whether an error is about the media type; clients check it too, and some take none."""
    if status_of(error) is None:  # TransportError isn't among these
        return isinstance(error, (NotImplementedError, TypeError, ValueError))
    return status_of(error) in REFUSALS


def kind_of(error: Exception) -> type[MetadataError]:
    """Return what a failure is: of the server or the way to it, else of what was asked."""
    status = status_of(error)
    if status in DENIED:
        return MetadataDeniedError
    if status in MISSING:
        return MetadataNotFoundError
    return MetadataReadError if isinstance(error, OSError) else MetadataError


def hint_for(kind: type[Exception]) -> str:
    """Return what may be added to a message: what to do."""
    return "; see dicomslide.register_credentials" if kind is MetadataDeniedError else ""


def reason_of(error: Exception) -> str:
    """Return what an error says, without credentials."""
    return str(error) if isinstance(error, TransportError) else said(error)


def listed(indices: Sequence[int]) -> str:
    """Name frames by number, those that follow each other as a range."""
    ranges: list[list[int]] = []
    for number in sorted(index + 1 for index in indices):
        if ranges and number <= ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    named = [str(a) if a == b else f"{a}, {b}" if b == a + 1 else f"{a}-{b}" for a, b in ranges]
    return f"frame{'s' if len(indices) > 1 else ''} {', '.join(named)}"


def read_error(
    reason: str, name: str, indices: Sequence[int], kind: type[FrameReadError] = FrameReadError
) -> FrameReadError:
    """Return an error of one or more frames."""
    return kind(reason, name, indices[0] if len(indices) == 1 else None)
