"""Objects in buckets, on HTTP servers and in archives: whatever fsspec reaches.

What travels to other processes names an object and its version. How this process reaches it, and
with which credentials, is registered here and never leaves the process.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import os
import queue
import threading
import warnings
from typing import TYPE_CHECKING, Any, TypeVar

from dicomslide import utils
from dicomslide.backends import encoded_frames, ranges
from dicomslide.backends.attempts import (
    FORBIDDEN,
    MISSING,
    UNAUTHORIZED,
    Place,
    RangeError,
    ask,
    awaited,
)
from dicomslide.backends.file import FileSource, FileStore, check_opens
from dicomslide.backends.part10 import PREAMBLE
from dicomslide.backends.spans import joined, place
from dicomslide.backends.storage import (
    ObjectReach,
    harmless_for,
    is_url,
    public_url,
    register_for_all,
    remembered,
)
from dicomslide.cache import Registry
from dicomslide.errors import (
    MetadataError,
    MetadataWarning,
    NotDicomError,
    SourceChangedError,
    SourceDeniedError,
    SourceNotFoundError,
    SourceReadError,
)
from dicomslide.layout import pixel_format_of

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from dicomslide.backends.spans import Span
    from dicomslide.backends.storage import StorageOptions
    from dicomslide.codec.pixel_format import Buffer

T = TypeVar("T")
R = TypeVar("R")

__all__ = ["RemoteFile", "RemoteSource", "open_source", "open_store"]

HEAD = 2**17
"""Bytes that are read first: most headers are shorter."""
MOST_AHEAD = 8 * 2**20
"""Bytes that are read ahead, at most, by who reads on and on."""
SKIPPED = 2**20
"""Bytes that somebody who reads on may skip: reading them costs no more than a round trip."""
KEPT = 2**20
"""Bytes of a read that are kept for the next one, with what was read ahead."""
PIECE = 2 * 2**20
"""A long read is several requests of so many bytes or more."""
GAP = 2**17
"""Bytes that are read in vain rather than in another request, as a round trip costs as much."""
WASTE = 0.15
"""Most of them, as a share of what is wanted."""
MOST_BYTES = 64 * 2**20
"""Bytes that one read has under way at once."""
OPENED_AT_ONCE = 16
MOST_OBJECTS = 1024


@dataclasses.dataclass(frozen=True, slots=True)
class _Window:
    """Bytes of an object that were read before they were wanted."""

    start: int
    data: bytes
    step: int
    """Bytes that were read beyond what was asked for."""

    @property
    def stop(self) -> int:
        """First byte behind them."""
        return self.start + len(self.data)

    def take(self, offset: int, length: int) -> bytes:
        """Return what is here from an offset on."""
        if not self.start <= offset < self.stop:
            return b""
        return self.data[offset - self.start : offset - self.start + length]


_NOTHING = _Window(0, b"", HEAD)
_heads: Registry[tuple[str, str], _Window] = Registry(256)
"""The first bytes of objects, by URL and version."""
_ahead: Registry[tuple[str, str], list[_Window]] = Registry(8)
"""What was read last behind them: one window, replaced as a whole."""


class RemoteFile:
    """An object that is read by position, by any number of threads.

    Parameters
    ----------
    url : str
        As it may be shown.
    options : str
        Harmless storage options, as JSON.

    Raises
    ------
    SourceNotFoundError, SourceDeniedError
        When it isn't there, or isn't to be read.
    SourceReadError
        When it can't be read for another reason.

    """

    def __init__(self, url: str, options: str) -> None:
        self.name = url
        self._reach = ObjectReach(url, options)
        try:
            (answer,) = ranges.read_ranges(self._reach, [(0, HEAD)], is_known=False)
        except RangeError as error:
            raise _error(url, error) from None
        if answer.size is None:
            raise SourceReadError(f"{url}: the server doesn't tell how many bytes it has")
        self.size: int = answer.size
        self._etag = answer.version
        # where the server tells no version, another object is at least noticed by its head
        self.version = self._etag or f"head-{hashlib.sha256(answer.data).hexdigest()[:16]}"
        self._key = url, self.version
        head = _Window(0, answer.data, HEAD)
        _heads.get(self._key, lambda: head)

    def read(self, offset: int, length: int) -> bytes:
        """Read bytes, and some ahead; fewer than `length` only at the end of the object."""
        length = max(0, min(length, self.size - offset))
        head = _heads.get(self._key, lambda: _NOTHING)
        latest = _ahead.get(self._key, lambda: [head])
        window = latest[0]
        found = head.take(offset, length) or window.take(offset, length)
        if len(found) == length:
            return found
        at = offset + len(found)
        missing = length - len(found)
        last = window if at >= window.start else head
        goes_on = 0 <= at - last.stop <= SKIPPED
        step = min(2 * last.step, MOST_AHEAD) if goes_on else HEAD
        stop = min(at + missing + step, self.size)
        pieces = max(1, (stop - at) // PIECE)
        cuts = [at + (stop - at) * i // pieces for i in range(pieces + 1)]
        try:
            parts = self._fetch(list(itertools.pairwise(cuts)))
        except RangeError as error:
            raise _error(self.name, error) from None
        data = b"".join(parts)
        kept = data[max(0, missing - KEPT) :]
        latest[0] = _Window(stop - len(kept), kept, step)
        return found + data[:missing]

    def read_spans(self, spans: Sequence[Span]) -> list[Buffer]:
        """Read several ranges of bytes: neighbours at once, several requests under way.

        Raises
        ------
        RangeError
            Naming which of them.

        """
        spans = [(start, max(start, min(stop, self.size))) for start, stop in spans]
        found: list[Buffer] = [b""] * len(spans)
        head = _heads.get(self._key, lambda: _NOTHING)
        if all(stop <= head.stop for _, stop in spans):  # nothing to ask for
            return [head.take(start, stop - start) for start, stop in spans]
        batch: list[tuple[int, int, list[int]]] = []
        under_way = 0
        for run in joined(spans, gap=GAP, waste=WASTE):
            if batch and under_way + run[1] - run[0] > MOST_BYTES:
                self._read_runs(batch, spans, found)
                batch, under_way = [], 0
            batch.append(run)
            under_way += run[1] - run[0]
        self._read_runs(batch, spans, found)
        return found

    def _read_runs(
        self, runs: list[tuple[int, int, list[int]]], spans: Sequence[Span], found: list[Buffer]
    ) -> None:
        runs = [run for run in runs if run[1] > run[0]]
        try:
            parts = self._fetch([(start, stop) for start, stop, _ in runs])
        except RangeError as error:
            item = runs[error.item][2][0]
            raise RangeError(error.reason, item, error.status, self.name) from None
        for (start, _, members), data in zip(runs, parts, strict=True):
            place(data, start, members, spans, found)

    def reading(self) -> Callable[[int, int], bytes]:
        """Return what reads bytes."""
        return self.read

    def check_unchanged(self) -> None:
        """Do nothing: every answer says which version it is of."""

    def _fetch(self, spans: list[Span]) -> list[bytes]:
        if not spans:
            return []
        answers = ranges.read_ranges(self._reach, spans)
        for answer in answers:
            if answer.version != self._etag or answer.size not in (None, self.size):
                raise _changed(self.name, self.size, answer.size)
        return [answer.data for answer in answers]


def _changed(url: str, expected: int, found: int | None) -> SourceChangedError:
    other = "is another version"
    if found not in (None, expected):
        other = f"has {found} bytes, expected {expected}"
    return SourceChangedError(
        f"{url}: the object isn't any more the one that was opened, it {other}; open the slide"
        " again"
    )


def _error(url: str, error: RangeError) -> SourceReadError:
    if error.status in MISSING:
        return SourceNotFoundError(f"{url}: {error.reason}")
    if error.status in (UNAUTHORIZED, FORBIDDEN):
        return SourceDeniedError(f"{url}: {error.reason}; see dicomslide.register_storage_options")
    return SourceReadError(f"{url}: {error.reason}")


# -- sources ---------------------------------------------------------------------------------

_objects: Registry[tuple[str, str], RemoteFile] = Registry(MOST_OBJECTS)


@dataclasses.dataclass(frozen=True, slots=True)
class RemoteSource(FileSource):
    """A DICOM Part 10 file that is an object in a bucket, on an HTTP server or in an archive.

    Thin: where it is and which version, and no credentials.
    """

    version: str = ""
    """Its ETag, or time of change, or a digest of its first bytes where the server tells neither:
    then a change in mid-read isn't noticed."""
    options: str = "{}"
    """Storage options that hold no credentials, as JSON."""

    @classmethod
    def open(cls, url: str | os.PathLike[str]) -> RemoteSource:
        """Open an object and read its header, unless this process has done so.

        Raises
        ------
        SourceNotFoundError, SourceDeniedError
            When it isn't there, or isn't to be read.
        SourceReadError
            When it can't be read for another reason.
        NotDicomError
            When it isn't a DICOM Part 10 file.
        MetadataError
            When its header can't be read.

        """
        public = remembered(os.fspath(url))
        options = harmless_for(public)
        file = RemoteFile(public, options)
        _objects.get((public, file.version), lambda: file)
        source = cls(public, "", file.size, 0, file.version, options)
        dataset = source.metadata
        uid = utils.text(dataset, "SOPInstanceUID") or utils.text(
            dataset.file_meta, "MediaStorageSOPInstanceUID"
        )
        return dataclasses.replace(source, sop_instance_uid=uid or public)

    @property
    def identity(self) -> tuple[Hashable, ...]:
        """Name of these bytes: the same in every process."""
        return ("remote", self.path, self.sop_instance_uid, self.size, self.version)

    @property
    def frames_per_request(self) -> int:
        """Frames that are asked for at once, in several requests where they aren't neighbours."""
        return encoded_frames.frames_per_request(pixel_format_of(self.metadata))

    @property
    def _key(self) -> tuple[str, int, Hashable]:
        return self.path, self.size, self.version

    def _file(self) -> RemoteFile:
        def reopen() -> RemoteFile:
            file = RemoteFile(self.path, self.options)
            if (file.size, file.version) != (self.size, self.version):
                raise _changed(self.path, self.size, file.size)
            return file

        return _objects.get((self.path, self.version), reopen)


def open_source(path: str | os.PathLike[str]) -> FileSource:
    """Open a file or an object."""
    path = os.fspath(path)
    return RemoteSource.open(path) if is_url(path) else FileSource.open(path)


# -- stores ----------------------------------------------------------------------------------


def open_store(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    storage_options: StorageOptions | None = None,
) -> FileStore:
    """Open files and folders, on disk or by URL, or a list of them.

    Parameters
    ----------
    paths : path-like or iterable of path-like
        ``file://`` is a file on disk; any other URL is what fsspec makes of it.
    storage_options : mapping or callable, optional
        See :func:`register_storage_options`; they are registered for the URLs given.

    Raises
    ------
    SourceNotFoundError, SourceDeniedError
        When something isn't there, or isn't to be read.
    SourceReadError
        When an object can't be read for another reason.
    NotDicomError
        When no DICOM file is there, or a file that was named isn't one.
    ValueError
        When there are storage options but no URL.

    """
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    given = [_local_path(str(path)) if _is_local_url(path) else path for path in given]
    urls = [str(path) for path in given if is_url(path)]
    if storage_options is not None:
        if not urls:
            raise ValueError("storage_options are for URLs, and there is none")
        # all objects of an archive are reached alike
        register_for_all([url.partition("::")[2] or url for url in urls], storage_options)
    if not urls:
        return FileStore.open(given)
    local = [path for path in given if not is_url(path)]
    sources: list[FileSource] = list(FileStore.open(local).sources) if local else []
    sources += _sources_at(urls)
    if not sources:
        raise NotDicomError(f"{', '.join(map(public_url, urls))}: no DICOM file is there")
    return FileStore.of(sources)


def _is_local_url(path: Any) -> bool:
    return isinstance(path, str) and path.startswith("file://") and "::" not in path


def _local_path(url: str) -> str:
    """Return the path of a URL as fsspec writes it, else of one that is encoded as URLs should."""
    from urllib.request import url2pathname

    path = url.removeprefix("file://")
    if path.startswith("localhost/"):
        path = path.removeprefix("localhost")
    return path if os.path.exists(path) else url2pathname(path)


def _sources_at(urls: Sequence[str]) -> list[FileSource]:
    """Open objects, and all objects of folders, several at once."""
    objects = [each for there in _together(_objects_at, urls) for each in there]
    sources = []
    for found in _together(_opened, objects):
        if isinstance(found, MetadataError):
            warnings.warn(f"left out: {found}", MetadataWarning, stacklevel=4)
        elif found is not None:
            sources.append(found)
    return sources


def _together(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Return what a function gives for each item; the first error is raised at once."""
    waiting = collections.deque(enumerate(items))
    done: queue.SimpleQueue[tuple[int, R | None, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        while True:
            try:
                at, item = waiting.popleft()
            except IndexError:
                return
            try:
                done.put((at, function(item), None))
            except BaseException as error:
                done.put((at, None, error))

    # not of a pool, whose threads nobody leaves behind: neither Ctrl-C nor the end of the process
    for _ in range(min(OPENED_AT_ONCE, len(items))):
        threading.Thread(target=work, name="dicomslide", daemon=True).start()
    found: dict[int, Any] = {}
    try:
        while len(found) < len(items):
            at, result, error = done.get()
            if error is not None:
                raise error
            found[at] = result
    finally:
        waiting.clear()
    return [found[at] for at in range(len(items))]


def _opened(where: tuple[str, bool]) -> FileSource | MetadataError | None:
    """Open an object, by its URL and whether that was given.

    Of one in a folder, None where it isn't DICOM, the error where it is broken.
    """
    url, is_given = where
    try:
        source = RemoteSource.open(url)
        if not is_given:
            check_opens(source.metadata)
        return source
    except NotDicomError as error:
        if not is_given:
            return None
        if url.startswith(("http://", "https://")) and not url.partition("?")[0].endswith(".dcm"):
            raise NotDicomError(f"{error}; the URL of a folder ends in /") from None
        raise
    except MetadataError as error:
        if is_given:
            raise
        return error


def _objects_at(url: str) -> list[tuple[str, bool]]:
    """Return the URLs of the objects at a URL, and whether each is the one given."""
    first = url.partition("::")[0].partition("?")[0]
    if "://" not in first:
        raise SourceReadError(
            f"{public_url(url)}: {first} keeps copies that it doesn't compare with the object, so"
            " that changes wouldn't be noticed; open the URL without it"
        )
    if first.startswith(("zip://", "tar://")) and "::" not in url:
        raise SourceNotFoundError(f"{url}: it names no archive, as {first[:6]}folder::archive does")
    is_http = first.startswith(("http://", "https://"))
    if first.endswith(".dcm") or (is_http and not first.endswith("/")):
        return [(url, True)]
    urls = _objects_in(url)
    return [(url, True)] if urls is None else [(each, False) for each in urls]


def _objects_in(url: str) -> list[str] | None:
    """Return the URLs of the objects in a folder; None where the URL is of an object itself."""
    public = remembered(url)
    reach = ObjectReach(public, "{}")

    def find(where: Place, wanted: Sequence[int], left: float) -> list[Any]:
        filesystem = where.filesystem
        filesystem.invalidate_cache()
        if not filesystem.async_impl:
            return [filesystem.find(where.path, detail=True)]
        return [awaited(filesystem.loop, filesystem._find(where.path, detail=True), left)]

    try:
        (found,) = ask(reach, 1, find)
    except RangeError as error:
        raise _error(public, error) from None
    folder = reach.place().path
    if list(found) == [folder]:
        return None
    first, chained, rest = url.partition("::")
    is_http = first.startswith(("http://", "https://"))  # a page also links to elsewhere
    found = {
        name: info
        for name, info in found.items()
        if name.startswith(folder) and not (is_http and "?" in name)
    }
    if not found:
        raise SourceNotFoundError(f"{public}: no object is there")
    # what a file system calls an object may lack the server that its URL names
    base = first if first.endswith("/") else f"{first}/"
    return [
        base + name[len(folder) :].lstrip("/") + chained + rest
        for name, info in sorted(found.items())
        if info.get("type") == "file" and (info.get("size") is None or info["size"] > PREAMBLE)
    ]
