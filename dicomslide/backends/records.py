"""Sources as plain values, by which another process finds the same bytes: no code, no credentials.

A record of a file or object below the folder that holds the record has its path relative to it, so
that both can be moved together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from typing import TYPE_CHECKING, Any, TypeAlias

from dicomslide.backends.dicomweb.connection import Address
from dicomslide.backends.dicomweb.source import DicomWebSource
from dicomslide.backends.net.redaction import has_hidden_query, public_url
from dicomslide.backends.net.storage_options import harmless
from dicomslide.backends.objects.remote import RemoteSource
from dicomslide.backends.objects.storage import is_url
from dicomslide.backends.part10.file import FileSource
from dicomslide.errors import CohortIndexError, DicomSlideError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dicomslide.backends.base import FrameSource

__all__ = ["Recorded", "folder_of", "packed_source", "record_of", "relative", "resolved",
           "restored", "source_of"]  # fmt: skip

Recorded: TypeAlias = FileSource | RemoteSource | DicomWebSource
"""Sources that have a record."""
HERE = "./"
"""Beginning of a relative path."""
_FILE = {"path": str, "sop_instance_uid": str, "size": int, "mtime_ns": int, "node": list,
         "ctime_ns": int}  # fmt: skip
_OBJECT = {"path": str, "sop_instance_uid": str, "size": int, "version": str, "options": dict}
_SERVER = {"url": str, "prefix": (str, type(None)), "study_instance_uid": str,
           "series_instance_uid": str, "sop_instance_uid": str}  # fmt: skip


def folder_of(path: str) -> str:
    """Return the folder of a path or URL, with a slash at its end."""
    plain = path.partition("?")[0] if is_url(path) else path.replace(os.sep, "/")
    return plain.rpartition("/")[0] + "/"


def relative(path: str, folder: str) -> str:
    """Return a path relative to a folder if it is below it; other paths unchanged."""
    plain = path if is_url(path) else path.replace(os.sep, "/")
    return HERE + plain[len(folder) :] if folder and plain.startswith(folder) else path


def resolved(path: str, folder: str) -> str:
    """Return the path that :func:`relative` was given, below the folder that is there now."""
    if not path.startswith(HERE):
        return path
    whole = folder + path.removeprefix(HERE)
    return whole if is_url(whole) else os.path.normpath(whole)


def record_of(source: FrameSource, folder: str = "") -> dict[str, Any]:
    """Return a source as values of JSON.

    Parameters
    ----------
    source : FrameSource
        Source.
    folder : str, optional
        Folder that holds the record: see :func:`folder_of`. By default, paths are absolute.

    Raises
    ------
    CohortIndexError
        When no other process could find it by its name alone.

    """
    if isinstance(source, FileSource):
        values = dataclasses.asdict(source) | {"path": relative(source.path, folder)}
        return {"kind": "file", **values}
    if isinstance(source, RemoteSource):
        if has_hidden_query(source.path):
            raise CohortIndexError(
                f"{source.path}: its URL has a query, which may be a signature and isn't written;"
                " use URLs without one, and register_storage_options"
            )
        options = json.loads(source.options)
        values = dataclasses.asdict(source) | {"options": options}
        return {"kind": "object", **values, "path": relative(source.path, folder)}
    if isinstance(source, DicomWebSource):
        address = source.address
        if not address.can_be_remade:
            raise CohortIndexError(
                f"{source.name} is read through a {address.kind}, which can't be made again from"
                " its name; give a dicomweb_client.api.DICOMwebClient, or the URL of the service"
            )
        study, series, instance = source.uids
        return {
            "kind": "dicomweb",
            "url": public_url(address.url),
            "prefix": address.prefix,
            "study_instance_uid": study,
            "series_instance_uid": series,
            "sop_instance_uid": instance,
        }
    raise CohortIndexError(
        f"{source.name} is a {type(source).__name__}, which can't be found again by its name; an"
        " index is of files, objects and DICOMweb servers"
    )


def source_of(record: Mapping[str, Any], folder: str = "") -> Recorded:
    """Return the source of a record; nothing is read.

    Raises
    ------
    CohortIndexError
        When it isn't a record of this version.

    """
    kind = record.get("kind") if isinstance(record, dict) else None
    if kind == "dicomweb":
        values = _checked(record, _SERVER)
        address = Address("DICOMwebClient", values.pop("url"), values.pop("prefix"))
        return DicomWebSource(address, **values)
    if kind not in ("file", "object"):
        raise CohortIndexError(f"a source of the kind {kind!r}, which this version doesn't know")
    values = _checked(record, _FILE if kind == "file" else _OBJECT)
    path = values["path"] = resolved(values["path"], folder)
    if is_url(path) != (kind == "object"):
        raise CohortIndexError(
            f"{path}: a {kind} when the index was made; an index with relative paths was moved"
            " without its files"
        )
    if kind == "file":
        return FileSource(**values | {"node": tuple(values["node"])})
    return RemoteSource(**values | {"options": json.dumps(harmless(values["options"]))})


def packed_source(
    source: FrameSource, folder: str, shared: dict[str, bytes]
) -> tuple[str, bytes | None]:
    """Return the record of a source as JSON, and its header; None if it has to be read anew.

    Parameters
    ----------
    source : FrameSource
        Source.
    folder : str
        Folder that holds the record.
    shared : dict of str to bytes
        Receives values that headers have in common, by digest.

    Raises
    ------
    CohortIndexError
        See :func:`record_of`.

    """
    record = record_of(source, folder)
    assert isinstance(source, Recorded)
    return json.dumps(record), source.pack_header(shared)


def restored(
    record: str, header: bytes | None, shared: Mapping[str, bytes], *, folder: str, name: str
) -> Recorded:
    """Return the source of :func:`packed_source`, whose header this process now keeps.

    It isn't kept where the file was removed or changed, which raises when the header is needed.

    Raises
    ------
    CohortIndexError
        When these aren't such values; it begins with `name`.

    """
    try:
        source = source_of(json.loads(record), folder)
        if header is not None:
            with contextlib.suppress(OSError):
                source.restore_header(header, shared)
    except CohortIndexError as error:
        raise CohortIndexError(f"{name}: {error}") from error
    except DicomSlideError:
        raise
    except (
        ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError
    ) as error:  # fmt: skip
        raise CohortIndexError(f"{name}: its row is damaged: {error}") from error
    return source


def _checked(record: Mapping[str, Any], types: Mapping[str, Any]) -> dict[str, Any]:
    for name, kind in types.items():
        if not isinstance(record.get(name), kind):
            raise CohortIndexError(f"a source whose {name} is {record.get(name)!r}")
    return {name: record[name] for name in types}
