"""Sources of paths and URLs: files, objects, and all files or objects of a folder."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dicomslide.backends.base import RangeError
from dicomslide.backends.net.addresses import is_dicomweb_url
from dicomslide.backends.net.redaction import public_url
from dicomslide.backends.net.storage_options import register_for_all, remembered
from dicomslide.backends.objects.attempts import Place, ask, awaited
from dicomslide.backends.objects.remote import RemoteSource, error_of
from dicomslide.backends.objects.storage import ObjectReach, is_url
from dicomslide.backends.part10.dicomdir import file_ids, files_listed_by, is_dicomdir
from dicomslide.backends.part10.file import FileSource, FileStore, check_opens
from dicomslide.backends.part10.header import PREAMBLE
from dicomslide.backends.part10.streams import StreamSource, is_stream
from dicomslide.errors import (
    DicomSlideError,
    MetadataError,
    MetadataWarning,
    NotDicomError,
    SourceNotFoundError,
    SourceReadError,
)
from dicomslide.process.parallel import together
from dicomslide.process.warn import warn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dicomslide.backends.net.storage_options import StorageOptions
    from dicomslide.backends.part10.source import Part10Source

__all__ = ["local_paths_and_urls", "objects_at", "open_source", "open_store",
           "paths_and_streams"]  # fmt: skip

OPENED_AT_ONCE = 16
"""Upper bound on objects and folders that are opened at the same time."""
_ARCHIVES = {".zip": "zip"} | dict.fromkeys((".tar", ".tar.gz", ".tar.bz2", ".tar.xz"), "tar")
"""Suffixes of archives, which are read as folders, and the protocol of fsspec for each."""


def open_source(path: str | os.PathLike[str]) -> Part10Source:
    """Open a file or an object."""
    path = os.fspath(path)
    return RemoteSource.open(path) if is_url(path) else FileSource.open(path)


# -- stores ----------------------------------------------------------------------------------


def open_store(source: Any, storage_options: StorageOptions | None = None) -> FileStore:
    """Open files and folders, on disk or by URL, bytes and file objects, or a list of them.

    Parameters
    ----------
    source : path-like, bytes-like, binary file object, or collection of these
        ``file://`` is a file on disk; other URLs are opened by fsspec. See
        :func:`local_paths_and_urls` for archives and DICOMDIR files.
    storage_options : mapping or callable, optional
        See :func:`register_storage_options`; they are registered for the given URLs.

    Raises
    ------
    SourceNotFoundError, SourceDeniedError
        When a file or object doesn't exist, or access is denied.
    SourceReadError
        When an object can't be read for another reason.
    NotDicomError
        When there is no DICOM file, or a named file isn't one.
    MetadataError
        When the header of a named file can't be read, or lacks what makes it an image.
    TypeError
        When `source` is of another type.
    ValueError
        When there are storage options but no URL.

    """
    paths, streams = paths_and_streams(source)
    local, urls = local_paths_and_urls(paths, storage_options)
    if not urls and not streams:
        return FileStore.open(local)
    sources: list[Part10Source] = list(FileStore.open(local).sources) if local else []
    sources += _sources_at(urls)
    sources += map(StreamSource.open, streams)
    if not sources:
        raise NotDicomError(f"{', '.join(map(public_url, urls))}: no DICOM file is there")
    store = FileStore.of(sources)
    store.check_complete()
    return store


def paths_and_streams(source: Any) -> tuple[list[str | os.PathLike[str]], list[Any]]:
    """Return paths with URLs, and bytes-like with file objects, of one of these or a collection.

    Raises
    ------
    TypeError
        When `source`, or an item of it, is of another type.

    """
    is_one = isinstance(source, (str, os.PathLike)) or is_stream(source)
    if not is_one and not isinstance(source, Iterable):
        raise _wrong_kind(source)
    paths, streams = [], []
    for each in (source,) if is_one else source:
        if isinstance(each, (str, os.PathLike)):
            paths.append(each)
        elif is_stream(each):
            streams.append(each)
        else:
            raise _wrong_kind(each)
    return paths, streams


def _wrong_kind(source: Any) -> TypeError:
    return TypeError(
        f"a slide can't be opened from a {type(source).__name__}; expected a path or URL, bytes, a"
        " binary file object, a list of these, a FrameStore or a Slide"
    )


def local_paths_and_urls(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    storage_options: StorageOptions | None = None,
) -> tuple[list[str | os.PathLike[str]], list[str]]:
    """Return paths on disk, and URLs, for which storage options are registered.

    An archive on disk becomes the URL of all of its members. A DICOMDIR on disk is replaced by the
    files that it lists.

    Raises
    ------
    NotDicomError
        When a path is empty (which would mean the current folder), or is the URL of a DICOMweb
        server.
    ValueError
        When there are storage options but no URL.

    """
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if "" in given:
        raise NotDicomError("an empty path; the current folder is '.'")
    for path in given:
        if isinstance(path, str) and is_dicomweb_url(path):
            raise NotDicomError(
                f"{public_url(path)}: the URL of a DICOMweb server is opened by itself, not in a"
                " list"
            )
    given = [_local_path(str(path)) if _is_local_url(path) else path for path in given]
    urls = [str(path) for path in given if is_url(path)]
    if storage_options is not None:
        if not urls:
            raise ValueError("storage_options are for URLs, and there is none")
        # all members of an archive share its options
        reached = [url.partition("::")[2] or _before_pattern(url) for url in urls]
        register_for_all(reached, storage_options)
    local: list[str | os.PathLike[str]] = []
    for path in given:
        archive = None if is_url(path) else _archive_at(path)
        if archive is not None:
            urls.append(archive)
        elif not is_url(path):
            local += _files_for(path)
    return local, urls


def _files_for(path: str | os.PathLike[str]) -> Sequence[str | os.PathLike[str]]:
    full = os.path.expanduser(os.fspath(path))
    return files_listed_by(full) if is_dicomdir(full) and os.path.isfile(full) else (path,)


def _archive_at(path: str | os.PathLike[str]) -> str | None:
    """Return the URL of all members of an archive on disk; None for other paths."""
    full = os.path.abspath(os.path.expanduser(os.fspath(path)))
    scheme = next((each for end, each in _ARCHIVES.items() if full.lower().endswith(end)), None)
    return f"{scheme}://::{full}" if scheme and os.path.isfile(full) else None


def _is_local_url(path: Any) -> bool:
    return isinstance(path, str) and path.startswith("file://") and "::" not in path


def _local_path(url: str) -> str:
    """Return the path of a file URL, which is percent-encoded unless fsspec wrote it."""
    from urllib.request import url2pathname

    path = url.removeprefix("file://")
    if path.startswith("localhost/"):
        path = path.removeprefix("localhost")
    return path if os.path.exists(path) else url2pathname(path)


def _sources_at(urls: Sequence[str]) -> list[Part10Source]:
    """Open objects and all objects of folders, several at the same time."""
    objects = [each for there in together(objects_at, urls, OPENED_AT_ONCE) for each in there]
    sources = []
    for found in together(_opened, objects, OPENED_AT_ONCE):
        if isinstance(found, DicomSlideError):
            warn(f"left out: {found}", MetadataWarning)
        elif found is not None:
            sources.append(found)
    return sources


def _opened(where: tuple[str, bool]) -> Part10Source | DicomSlideError | None:
    """Open an object, given its URL and whether the caller named it.

    For an object of a folder: None if it isn't DICOM, and the error if it is damaged, or is listed
    but doesn't exist.
    """
    url, is_given = where
    try:
        source = RemoteSource.open(url)
        if not is_given:
            check_opens(source.metadata)
            source.check_complete()
        return source
    except NotDicomError as error:
        if not is_given:
            return None
        if url.startswith(("http://", "https://")) and not url.partition("?")[0].endswith(".dcm"):
            raise NotDicomError(f"{error}; the URL of a folder ends in /") from None
        raise
    except (MetadataError, SourceNotFoundError) as error:
        if is_given:
            raise
        return error


def objects_at(url: str) -> list[tuple[str, bool]]:
    """Return the URLs of the objects of a URL, and whether each is the given URL itself.

    A URL is that of an object, of a folder with all its objects, of a DICOMDIR with the objects
    that it lists, or a pattern with ``*``.

    Raises
    ------
    SourceNotFoundError, SourceDeniedError, SourceReadError
        When there is none, or the server doesn't list them.

    """
    first = url.partition("::")[0].partition("?")[0]
    if "://" not in first:
        raise SourceReadError(
            f"{public_url(url)}: {first} keeps copies that it doesn't compare with the object, so"
            " that changes wouldn't be noticed; open the URL without it"
        )
    if first.startswith(("zip://", "tar://")) and "::" not in url:
        raise SourceNotFoundError(
            f"{url}: it names no archive, as {first[:6]}folder::archive does, and"
            f" {first[:6]}::archive for all that is in one"
        )
    is_http = first.startswith(("http://", "https://"))
    if is_dicomdir(first):
        folder, chained = first[: first.rindex("/") + 1], "".join(url.partition("::")[1:])
        listed = file_ids(RemoteSource.open(url).metadata)
        return [(folder + "/".join(parts) + chained, False) for parts in listed]
    if "*" not in first and (first.endswith(".dcm") or (is_http and not first.endswith("/"))):
        return [(url, True)]
    urls = _objects_in(url)
    return [(url, True)] if urls is None else [(each, False) for each in urls]


def _objects_in(url: str) -> list[str] | None:
    """Return the URLs of the objects in a folder; None for the URL of an object."""
    public = remembered(url)
    reach = ObjectReach(public, "{}")
    first, chained, rest = url.partition("::")
    how = "glob" if "*" in first else "find"

    def find(where: Place, wanted: Sequence[int], left: float) -> list[Any]:
        filesystem = where.filesystem
        filesystem.invalidate_cache()
        if not filesystem.async_impl:
            return [getattr(filesystem, how)(where.path, detail=True)]
        search = getattr(filesystem, f"_{how}")
        return [awaited(filesystem.loop, search(where.path, detail=True), left)]

    try:
        (found,) = ask(reach, 1, find)
    except RangeError as error:
        raise error_of(public, error) from None
    path = reach.place().path
    if list(found) == [path]:
        return None
    folder = _before_pattern(path)
    is_http = first.startswith(("http://", "https://"))  # a page may link to other folders
    found = {
        name: info
        for name, info in found.items()
        if name.startswith(folder) and not (is_http and "?" in name)
    }
    if not found:
        raise SourceNotFoundError(f"{public}: no object is there")
    # names of a file system may lack the server of the URL
    scheme, mark, inside = first.partition("://")
    named = _before_pattern(inside)
    base = scheme + mark + (named.rstrip("/") + "/" if named or inside.startswith("/") else "")
    return [
        base + name[len(folder) :].lstrip("/") + chained + rest
        for name, info in sorted(found.items())
        if info.get("type") == "file" and (info.get("size") is None or info["size"] > PREAMBLE)
    ]


def _before_pattern(url: str) -> str:
    """Return the folder above a pattern; other URLs unchanged."""
    return url.partition("*")[0].rpartition("/")[0] if "*" in url else url
