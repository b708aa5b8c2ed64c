"""Storage of instances on a DICOMweb server: STOW-RS (PS3.18 10.5)."""

from __future__ import annotations

import json
import os
import secrets
from typing import TYPE_CHECKING, Any

from dicomslide.backends.dicomweb.transport import TransportError
from dicomslide.backends.net.redaction import public, said
from dicomslide.errors import (
    AmbiguousSlideError,
    NotDicomError,
    SourceDeniedError,
    StorageRefusedError,
)
from dicomslide.header import dicom

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydicom.dataset import Dataset

    from dicomslide.backends.dicomweb.connection import Connection

__all__ = ["connection_for", "instances_in", "store_files"]

PIECE = 2**20
"""Bytes that are read from a file at a time."""
MOST_REPLY = 16 * 2**20
"""Upper bound on the bytes of a reply."""
ANSWERED = frozenset({200, 202, 409})
"""HTTP status of replies that say of each instance whether it was stored."""
REASONS = {
    0x0110: "processing failure",
    0x0117: "invalid object instance",
    0x0122: "SOP Class not supported",
    0x0124: "not authorized",
    0x0131: "duplicate transaction",
    0x0213: "resource limitation",
    0xA700: "out of resources",
    0xA770: "mismatch of Study Instance UIDs",
    0xA900: "the data set doesn't match its SOP Class",
    0xC000: "the server can't understand it",
    0xC122: "transfer syntax not supported",
}
"""Failure Reason (PS3.18 table I.2-2, PS3.4 table GG.4-1)."""


def connection_for(url: str) -> Connection:
    """Return the connection to the service of a URL, by what is registered for it.

    Raises
    ------
    NotDicomError
        When it isn't the URL of a service, or contains credentials.

    """
    from dicomslide.backends.dicomweb.connection import Address, connection_at
    from dicomslide.backends.net.addresses import URL_SCHEME, parse_web_url

    found = parse_web_url(url)
    if public(url) != url or found is None:
        raise NotDicomError(
            f"{public(url)}: expected a URL like {URL_SCHEME}https://host/dicom-web, without user,"
            " password or query; see dicomslide.register_credentials"
        )
    return connection_at(Address("DICOMwebClient", found.service, None))


def instances_in(paths: Sequence[str | os.PathLike[str]]) -> dict[str, str]:
    """Return the DICOM files among files and folders, by SOP Instance UID.

    Parameters
    ----------
    paths : sequence of path-like
        Files, all of which have to be DICOM; and folders, with their folders, in which other files
        are left out.

    Raises
    ------
    NotDicomError
        When a file isn't DICOM, or nothing is found.
    AmbiguousSlideError
        When two files are the same instance.

    """
    found: dict[str, str] = {}
    for given in paths:
        path = os.fspath(given)
        for file in _files_in(path) if os.path.isdir(path) else [path]:
            uid = _uid_of(file)
            if uid is None and file == path:
                raise NotDicomError(f"{path}: isn't a DICOM file")
            if uid is None:
                continue
            if uid in found and not os.path.samefile(found[uid], file):
                raise AmbiguousSlideError(
                    f"{found[uid]} and {file} are both the instance {uid}: name one of them"
                )
            found.setdefault(uid, file)
    if not found:
        raise NotDicomError(f"{', '.join(map(str, paths))}: no DICOM files")
    return found


def _files_in(folder: str) -> Iterator[str]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (os.path.join(place, name) for name in sorted(names))
        yield from filter(os.path.isfile, paths)  # a pipe would be waited for


def _uid_of(path: str) -> str | None:
    """Return the SOP Instance UID of a file, by its File Meta Information; None if it has none."""
    from pydicom.errors import InvalidDicomError
    from pydicom.filereader import read_file_meta_info

    try:
        meta = read_file_meta_info(path)
    except (InvalidDicomError, EOFError):
        return None
    return dicom.text(meta, "MediaStorageSOPInstanceUID")


def store_files(connection: Connection, paths: Mapping[str, str]) -> None:
    """Store files on a server, one by one.

    Parameters
    ----------
    connection : Connection
        Connection to the server.
    paths : mapping of str to str
        Path of each file by its SOP Instance UID.

    Raises
    ------
    StorageRefusedError
        When the server refuses some. The others are stored nevertheless.

    """
    failures: dict[str, str] = {}
    for uid, path in paths.items():
        try:
            failed = _store(connection, uid, path)
        except (TransportError, SourceDeniedError) as error:
            failed = str(error)
        if failed is not None:
            failures[uid] = failed
    if failures:
        stored = [uid for uid in paths if uid not in failures]
        raise StorageRefusedError(connection.address.url, failures, stored)


def _store(connection: Connection, uid: str, path: str) -> str | None:
    """Store a file; return why the server refused it, or None."""
    service = connection.service
    if service is None:
        return _by_client(connection.client, uid, path)
    boundary = f"dicomslide-{secrets.token_hex(16)}"
    body = _Body(path, boundary)
    answer = service.transport.post(
        f"{service.stow}/studies",
        body,
        content_type=f'multipart/related; type="application/dicom"; boundary={boundary}',
        accept="application/dicom+json",
        read=lambda kind, chunks: b"".join(chunks),
        most_bytes=MOST_REPLY,
        answered=ANSWERED,
    )
    return _failure_said(answer, uid)


def _by_client(client: Any, uid: str, path: str) -> str | None:
    """Store a file by a client with methods of its own, which needs the whole of it."""
    import pydicom

    store = getattr(client, "store_instances", None)
    if store is None:
        return f"a {type(client).__name__} stores no instances: it has no store_instances()"
    try:
        answer = store([pydicom.dcmread(path)])
    except Exception as error:  # each client has error types of its own
        return said(error)
    return _failure_in(answer, uid) if isinstance(answer, pydicom.Dataset) else None


def _failure_said(answer: bytes, uid: str) -> str | None:
    """Return the failure of an instance in a reply of JSON: see :func:`_failure_in`."""
    from pydicom.dataset import Dataset

    try:
        found = json.loads(answer or b"{}")
        reply = Dataset.from_json(found[0] if isinstance(found, list) else found)
    except (ValueError, TypeError, IndexError, AttributeError):
        return f"the server's reply can't be read: {answer[:200]!r}"
    return _failure_in(reply, uid)


def _failure_in(reply: Dataset, uid: str) -> str | None:
    """Return the failure of an instance in a reply, in words; None where it was stored."""
    failed = [
        each
        for keyword in ("FailedSOPSequence", "OtherFailuresSequence")
        for each in dicom.items(reply, keyword)
    ]
    for each in failed:
        reason = int(dicom.number(each, "FailureReason") or 0)
        families = (reason, reason & 0xFF00, reason & 0xF000)  # of Axxx and Cxxx, all are alike
        words = next((REASONS[code] for code in families if code in REASONS), "refused")
        return f"{words} (0x{reason:04X})"
    stored = dicom.items(reply, "ReferencedSOPSequence")
    if not any(dicom.text(each, "ReferencedSOPInstanceUID") == uid for each in stored):
        return "the server's reply doesn't name it as stored"
    return None


class _Body:
    """Body of a request with one file, read anew for each attempt."""

    def __init__(self, path: str, boundary: str) -> None:
        self._path = path
        self._head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        self._tail = f"\r\n--{boundary}--\r\n".encode()

    def __len__(self) -> int:
        return len(self._head) + os.path.getsize(self._path) + len(self._tail)

    def __iter__(self) -> Iterator[bytes]:
        yield self._head
        with open(self._path, "rb") as file:
            while piece := file.read(PIECE):
                yield piece
        yield self._tail
