"""Errors for failures of DICOMweb servers; messages give the cause first, then the request."""

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
    """A server doesn't send frames in any requested media type."""


# subclasses of the errors of sources and of those of metadata


class MetadataReadError(SourceReadError, MetadataError):
    """A server can't be reached, or doesn't send metadata."""


class MetadataDeniedError(SourceDeniedError, MetadataError):
    """A server denies access to metadata with these credentials, or without any."""


class MetadataNotFoundError(SourceNotFoundError, MetadataError):
    """A server doesn't have the requested metadata."""


def status_of(error: Exception) -> int | None:
    """Return the HTTP status of an error; None without a reply."""
    if isinstance(error, TransportError):
        return error.status
    return getattr(getattr(error, "response", None), "status_code", None)


def is_refusal(error: Exception) -> bool:
    """Whether a server or client refuses the media type; some clients have no such parameter."""
    if status_of(error) is None:  # TransportError is none of these
        return isinstance(error, (NotImplementedError, TypeError, ValueError))
    return status_of(error) in REFUSALS


def kind_of(error: Exception) -> type[MetadataError]:
    """Return the type of error for a failure of the server or network, or of the request."""
    status = status_of(error)
    if status in DENIED:
        return MetadataDeniedError
    if status in MISSING:
        return MetadataNotFoundError
    return MetadataReadError if isinstance(error, OSError) else MetadataError


def hint_for(kind: type[Exception]) -> str:
    """Return a remedy to append to the message; empty if there is none."""
    return "; see dicomslide.register_credentials" if kind is MetadataDeniedError else ""


def reason_of(error: Exception) -> str:
    """Return the message of an error, without credentials."""
    return str(error) if isinstance(error, TransportError) else said(error)


def listed(indices: Sequence[int]) -> str:
    """Return the numbers of frames as text, with ranges for consecutive numbers."""
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
