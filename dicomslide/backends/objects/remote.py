"""Objects in buckets, on HTTP servers and in archives, read with fsspec.

A pickled source names an object and its version. The storage options, with the credentials, are
registered in each process (:mod:`dicomslide.backends.net.storage_options`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from dicomslide.backends.base import RangeError
from dicomslide.backends.batching import encoded_frames, gather
from dicomslide.backends.batching.gather import Gatherer
from dicomslide.backends.batching.prefetch import ReadAhead
from dicomslide.backends.coalesce import divide, joined
from dicomslide.backends.net import policy
from dicomslide.backends.net.policy import DENIED, MISSING
from dicomslide.backends.net.storage_options import harmless_for, remembered, scope_of
from dicomslide.backends.objects import ranges
from dicomslide.backends.objects.attempts import deadline_of
from dicomslide.backends.objects.storage import ObjectReach
from dicomslide.backends.part10.local import OPEN_AGAIN
from dicomslide.backends.part10.packed import unpack
from dicomslide.backends.part10.parsed import ParsedFile
from dicomslide.backends.part10.source import Part10Source
from dicomslide.errors import (
    SourceChangedError,
    SourceDeniedError,
    SourceNotFoundError,
    SourceReadError,
)
from dicomslide.header import dicom
from dicomslide.process.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from dicomslide.header.blobs import Span
    from dicomslide.pixels.pixel_format import Buffer

__all__ = ["RemoteFile", "RemoteSource", "error_of"]

HEAD = 2**17
"""Bytes of the first request of an object: most headers are shorter."""
OF_HEAD = "head-"
"""Prefix of the version of an object whose server names none."""
MOST_AHEAD = 8 * 2**20
"""Upper bound on the bytes that a sequential read reads ahead."""
SKIPPED = 2**20
"""Bytes that a sequential read may skip: reading them costs no more than a round trip."""
KEPT = 2**20
"""Bytes at the end of a read that are kept for the next one, with those read ahead."""
PIECE = 2 * 2**20
"""Lower bound on the bytes of each request of a long read."""
GAP = 2**17
"""Unwanted bytes between two ranges that are read in one request: a round trip costs as much."""
WASTE = 0.15
"""Upper bound on the unwanted bytes, as a share of the wanted ones."""
MOST_BYTES = 64 * 2**20
"""Upper bound on the bytes of one read that are under way at once."""
MOST_OBJECTS = 16_384
"""Upper bound on objects that are kept by number: a cohort of 3,000 slides isn't fetched twice."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Window:
    """Bytes of an object that were read ahead."""

    start: int
    data: bytes
    step: int
    """Bytes that were read ahead of the last read."""

    @property
    def stop(self) -> int:
        """First byte behind them."""
        return self.start + len(self.data)

    def take(self, offset: int, length: int) -> bytes:
        """Return the bytes of a range, as far as they are in the window."""
        if not self.start <= offset < self.stop:
            return b""
        return self.data[offset - self.start : offset - self.start + length]


_NOTHING = _Window(0, b"", HEAD)
_Key: TypeAlias = tuple[str, str, str]
"""URL, version, and the scope of the storage options with which the object was read."""
_heads: Registry[_Key, _Window] = Registry(256, "heads of objects", lambda window: len(window.data))
"""First bytes of objects."""
_wholes: Registry[_Key, _Window] = Registry(
    2048, "heads of objects", lambda window: len(window.data)
)
"""Objects that the first request gave as a whole, such as small levels and labels of a cohort."""
_ahead: Registry[_Key, _Window] = Registry(
    8, "bytes of objects read ahead", lambda window: len(window.data)
)
"""The last window read of each object; it is replaced as a whole."""
_latest: Registry[str, list[str]] = Registry(MOST_OBJECTS, "versions of objects")
"""Version of the last answer, by URL: cached bytes of another version aren't used."""


class RemoteFile:
    """An object that is read by position, by any number of threads.

    Every answer is compared with its size and version.

    Parameters
    ----------
    url : str
        URL without credentials.
    options : str
        Harmless storage options, as JSON.
    size : int
        Bytes of the object.
    version : str
        Version of the object: see :class:`RemoteSource`.

    """

    def __init__(self, url: str, options: str, size: int, version: str) -> None:
        self.name = url
        self.size = size
        self.version = version
        self._etag = "" if version.startswith(OF_HEAD) else version
        self._reach = ObjectReach(url, options)
        self._key = url, version, scope_of(url)
        self._latest = _latest.get(url, lambda: [""])

    @classmethod
    def open(cls, url: str, options: str) -> RemoteFile:
        """Request the first bytes of an object, with its size and version.

        Raises
        ------
        SourceNotFoundError, SourceDeniedError
            When the object isn't there, or the server refuses to give it.
        SourceReadError
            When it can't be read for another reason.

        """
        try:
            (answer,) = ranges.read_ranges(ObjectReach(url, options), [(0, HEAD)], is_known=False)
        except RangeError as error:
            raise error_of(url, error) from None
        if answer.size is None:
            raise SourceReadError(f"{url}: the server doesn't say how many bytes it has")
        # where the server names no version, a digest of the head shows most changes
        digest = f"{OF_HEAD}{hashlib.sha256(answer.data).hexdigest()[:16]}"
        file = cls(url, options, answer.size, answer.version or digest)
        file._latest[0] = file.version
        head = _Window(0, answer.data, HEAD)
        file._kept.get(file._key, lambda: head)
        return file

    @classmethod
    def known(cls, url: str, options: str, size: int, version: str) -> RemoteFile:
        """Return an object that was opened before, maybe by another process.

        Without a request, since answers are compared; the first bytes of an object without a
        version are requested, and compared.

        Raises
        ------
        SourceChangedError
            When they are others.
        SourceNotFoundError, SourceDeniedError, SourceReadError
            See :meth:`open`.

        """
        file = cls(url, options, size, version)
        return file if file._etag else cls.again(url, options, size, version)

    @classmethod
    def again(cls, url: str, options: str, size: int, version: str) -> RemoteFile:
        """Request the first bytes of an object that was opened before: see :meth:`known`."""
        found = cls.open(url, options)
        if (found.size, found.version) != (size, version):
            raise cls(url, options, size, version)._changed(found.size, found.version)
        return found

    @property
    def _kept(self) -> Registry[_Key, _Window]:
        """Where the first bytes are kept."""
        return _wholes if self.size <= HEAD else _heads

    @property
    def is_current(self) -> bool:
        """Whether the last answer was of this version of the object."""
        return self._latest[0] == self.version

    def read(self, offset: int, length: int) -> bytes:
        """Read bytes, and some ahead; fewer than `length` only at the end of the object."""
        length = max(0, min(length, self.size - offset))
        head = self._kept.get(self._key, lambda: _NOTHING)
        window = _ahead.get(self._key, lambda: head)
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
            raise error_of(self.name, error) from None
        data = b"".join(parts)
        kept = data[max(0, missing - KEPT) :]
        _ahead.put(self._key, _Window(stop - len(kept), kept, step))
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
        head = self._kept.get(self._key, lambda: _NOTHING)
        if self.is_current and all(stop <= head.stop for _, stop in spans):
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
            divide(data, start, members, spans, found)

    def reading(self) -> Callable[[int, int], bytes]:
        """Return a function that reads bytes."""
        return self.read

    def check_unchanged(self) -> None:
        """Do nothing: every answer names its version."""

    def _fetch(self, spans: list[Span]) -> list[bytes]:
        if not spans:
            return []
        answers = ranges.read_ranges(self._reach, spans)
        for answer in answers:
            if answer.version != self._etag or answer.size not in (None, self.size):
                self._latest[0] = ""
                raise self._changed(answer.size, answer.version)
        self._latest[0] = self.version
        return [answer.data for answer in answers]

    def _changed(self, size: int | None, version: str) -> SourceChangedError:
        found = f"is another version, {version or 'unnamed'}, expected {self.version}"
        if size not in (None, self.size):
            found = f"has {size} bytes, expected {self.size}"
        return SourceChangedError(
            f"{self.name}: the object has changed since it was opened, it {found}; {OPEN_AGAIN}"
        )


def error_of(url: str, error: RangeError) -> SourceReadError:
    """Return the error to raise for an object that couldn't be read."""
    if error.status in MISSING:
        return SourceNotFoundError(f"{url}: {error.reason}")
    if error.status in DENIED:
        return SourceDeniedError(f"{url}: {error.reason}; see dicomslide.register_storage_options")
    return SourceReadError(f"{url}: {error.reason}")


# -- sources ---------------------------------------------------------------------------------

_objects: Registry[_Key, RemoteFile] = Registry(MOST_OBJECTS, "objects")
_parsed: Registry[_Key, ParsedFile] = Registry(
    MOST_OBJECTS, "parsed files", lambda parsed: parsed.nbytes
)
_gatherers: Registry[tuple[Hashable, ...], Gatherer] = Registry(
    MOST_OBJECTS, "request batchers", lambda gatherer: gatherer.nbytes
)


@dataclasses.dataclass(frozen=True, slots=True)
class RemoteSource(Part10Source):
    """A DICOM Part 10 file that is an object in a bucket, on an HTTP server or in an archive.

    Its pickle holds the URL and the version, and no credentials.
    """

    path: str
    """URL without credentials."""
    sop_instance_uid: str
    size: int
    version: str
    """ETag of the object, or its time of change; a digest of its first bytes where the server says
    neither, in which case a change behind these bytes isn't noticed."""
    options: str = "{}"
    """Storage options that hold no credentials, as JSON."""

    @classmethod
    def open(cls, url: str | os.PathLike[str]) -> RemoteSource:
        """Open an object and read its header.

        Raises
        ------
        SourceNotFoundError, SourceDeniedError
            When it isn't there, or the server refuses to give it.
        SourceReadError
            When it can't be read for another reason.
        NotDicomError
            When it isn't a DICOM Part 10 file.
        MetadataError
            When its header can't be read.

        """
        public = remembered(os.fspath(url))
        options = harmless_for(public)
        file = RemoteFile.open(public, options)
        source = cls(public, "", file.size, file.version, options)
        _objects.get(source._key, lambda: file)
        dataset = source.metadata
        uid = dicom.text(dataset, "SOPInstanceUID") or dicom.text(
            dataset.file_meta, "MediaStorageSOPInstanceUID"
        )
        return dataclasses.replace(source, sop_instance_uid=uid or public)

    @property
    def identity(self) -> tuple[Hashable, ...]:
        """Name of these bytes: the same in every process."""
        return ("remote", self.path, self.sop_instance_uid, self.size, self.version)

    def kept_as(self) -> tuple[Hashable, ...]:
        """Key of what this process caches of it: other storage options have another one."""
        return (scope_of(self.path), *self.identity)

    @property
    def _key(self) -> _Key:
        return self.path, self.version, scope_of(self.path)

    def unread_headers(self) -> tuple[RemoteSource, ...]:
        """Return this source, unless this process keeps its header, with positions of frames."""
        is_read = self._key in _parsed and self._instance().has_positions
        return () if is_read else (self,)

    @property
    def frames_per_request(self) -> int:
        """Upper bound on frames per batch, which is several requests where frames lie apart."""
        return encoded_frames.frames_per_request(self._instance().pixel_format)

    def read_frames(self, indices: Sequence[int]) -> list[Buffer]:
        """Read frames that aren't cached: neighbours in one request, several requests at once.

        Frames that several threads ask for within milliseconds are read in one batch; single frames
        that are read one after the other make neighbours be prefetched. Frames of an object without
        a version aren't cached, since a change wouldn't be noticed.
        """
        instance = self._instance()
        return gather.read_frames(
            _gatherers.get(self.kept_as(), lambda: Gatherer(ReadAhead.of(self))),
            self.identity,
            indices,
            self._fetch,
            begin=policy.POLICY.begin,
            most=self.frames_per_request,
            most_ahead=encoded_frames.frames_ahead(self.size // max(1, instance.num_frames)),
            keeps=self.keeps_frames,
            scope=scope_of(self.path),
        )

    def _fetch(self, wanted: list[int], deadline: float | None) -> list[bytes]:
        with deadline_of(deadline):
            return list(map(bytes, self._instance().read_frames(wanted)))

    def may_read_anew(self) -> bool:
        """Return True: frames come over a network."""
        return True

    def drop_frame(self, index: int) -> None:
        """Remove a frame from the caches."""
        encoded_frames.drop(self.identity, [index], scope=scope_of(self.path))
        for kept in (_heads, _wholes, _ahead):
            kept.discard(self._key)

    def read_anew(self, index: int) -> Buffer:
        """Read a frame from the server, also where it is cached."""
        self.drop_frame(index)
        (frame,) = map(bytes, self._instance().read_frames([index]))
        if self.keeps_frames:
            encoded_frames.keep(self.identity, {index: frame}, scope=scope_of(self.path))
        return frame

    @property
    def keeps_frames(self) -> bool:
        """Whether cached frames are of the version that the server has now."""
        return not self.version.startswith(OF_HEAD) and self._file().is_current

    def restore_header(self, data: bytes, shared: Mapping[str, bytes]) -> None:
        """Have the process keep what :meth:`pack_header` returned, unless it keeps the header.

        Requests and errors are those of :meth:`RemoteFile.known`.

        Raises
        ------
        KeyError, TypeError, ValueError
            When it isn't such a result.

        """
        _objects.get(self._key, lambda: RemoteFile.known(*self._known))
        self._instance(partial(unpack, data, shared))

    def _instance(
        self, parse: Callable[[RemoteFile, Callable[[ParsedFile], None]], ParsedFile] = ParsedFile
    ) -> ParsedFile:
        key = self._key
        return _parsed.get(key, lambda: parse(self._file(), partial(_parsed.reweigh, key)))

    @property
    def _known(self) -> tuple[str, str, int, str]:
        return self.path, self.options, self.size, self.version

    def _file(self) -> RemoteFile:
        return _objects.get(self._key, lambda: RemoteFile.again(*self._known))
