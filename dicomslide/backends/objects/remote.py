"""Objects in buckets, on HTTP servers and in archives: whatever fsspec reaches.

What travels to other processes names an object and its version. How this process reaches it, and
with which credentials, is registered here and never leaves the process.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import time
from functools import partial
from typing import TYPE_CHECKING

from dicomslide.backends.base import RangeError
from dicomslide.backends.batching import encoded_frames, gather
from dicomslide.backends.batching.gather import Gatherer
from dicomslide.backends.batching.prefetch import ReadAhead
from dicomslide.backends.coalesce import joined, place
from dicomslide.backends.net.attempts import FORBIDDEN, MISSING, UNAUTHORIZED, waiting_since
from dicomslide.backends.objects import ranges
from dicomslide.backends.objects.storage import (
    ObjectReach,
    harmless_for,
    remembered,
)
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
    from collections.abc import Callable, Hashable, Sequence

    from dicomslide.header.blobs import Span
    from dicomslide.pixels.pixel_format import Buffer

__all__ = ["RemoteFile", "RemoteSource", "error_of"]

HEAD = 2**17
"""Bytes that are read first: most headers are shorter."""
OF_HEAD = "head-"
"""Where the version of an object that has none begins."""
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
_heads: Registry[tuple[str, str], _Window] = Registry(
    256, "heads of objects", lambda window: len(window.data)
)
"""The first bytes of objects, by URL and version."""
_ahead: Registry[tuple[str, str], _Window] = Registry(
    8, "bytes of objects read ahead", lambda window: len(window.data)
)
"""The bytes behind them that were read last: one window, replaced as a whole."""

_latest: Registry[str, list[str]] = Registry(MOST_OBJECTS, "versions of objects")
"""The version of an object that came last, by URL: what is kept of another one isn't given."""


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
            raise error_of(url, error) from None
        if answer.size is None:
            raise SourceReadError(f"{url}: the server doesn't tell how many bytes it has")
        self.size: int = answer.size
        self._etag = answer.version
        # where the server tells no version, another object is at least noticed by its head
        self.version = self._etag or f"{OF_HEAD}{hashlib.sha256(answer.data).hexdigest()[:16]}"
        self._key = url, self.version
        self._latest = _latest.get(url, lambda: [self.version])
        self._latest[0] = self.version
        head = _Window(0, answer.data, HEAD)
        _heads.get(self._key, lambda: head)

    @property
    def is_current(self) -> bool:
        """Whether no other version of the object came since this one."""
        return self._latest[0] == self.version

    def read(self, offset: int, length: int) -> bytes:
        """Read bytes, and some ahead; fewer than `length` only at the end of the object."""
        length = max(0, min(length, self.size - offset))
        head = _heads.get(self._key, lambda: _NOTHING)
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
        head = _heads.get(self._key, lambda: _NOTHING)
        if self.is_current and all(stop <= head.stop for _, stop in spans):  # nothing to ask for
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
                self._latest[0] = ""
                raise _changed(self.name, self.size, answer.size)
        self._latest[0] = self.version
        return [answer.data for answer in answers]


def _changed(url: str, expected: int, found: int | None) -> SourceChangedError:
    other = "is another version"
    if found not in (None, expected):
        other = f"has {found} bytes, expected {expected}"
    return SourceChangedError(
        f"{url}: the object isn't any more the one that was opened, it {other}; open the slide"
        " again"
    )


def error_of(url: str, error: RangeError) -> SourceReadError:
    """Return what to raise where an object couldn't be reached."""
    if error.status in MISSING:
        return SourceNotFoundError(f"{url}: {error.reason}")
    if error.status in (UNAUTHORIZED, FORBIDDEN):
        return SourceDeniedError(f"{url}: {error.reason}; see dicomslide.register_storage_options")
    return SourceReadError(f"{url}: {error.reason}")


# -- sources ---------------------------------------------------------------------------------

_objects: Registry[tuple[str, str], RemoteFile] = Registry(MOST_OBJECTS, "objects")
_parsed: Registry[tuple[str, str], ParsedFile] = Registry(
    MOST_OBJECTS, "parsed files", lambda parsed: parsed.nbytes
)
_gatherers: Registry[tuple[Hashable, ...], Gatherer] = Registry(
    MOST_OBJECTS, "request batchers", lambda gatherer: gatherer.nbytes
)


@dataclasses.dataclass(frozen=True, slots=True)
class RemoteSource(Part10Source):
    """A DICOM Part 10 file that is an object in a bucket, on an HTTP server or in an archive.

    Thin: where it is and which version, and no credentials.
    """

    path: str
    """URL as it may be shown."""
    sop_instance_uid: str
    size: int
    version: str
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
        source = cls(public, "", file.size, file.version, options)
        dataset = source.metadata
        uid = dicom.text(dataset, "SOPInstanceUID") or dicom.text(
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
        return encoded_frames.frames_per_request(self._instance().pixel_format)

    def read_frames(self, indices: Sequence[int]) -> list[Buffer]:
        """Read frames that aren't kept yet: neighbours at once, several requests under way.

        What several threads ask for within milliseconds is asked for together, and so are the
        neighbours of single frames that are wanted one after the other. Nothing is kept of an
        object that has no version, for nothing tells that it is still the same.
        """
        instance = self._instance()
        return gather.read_frames(
            _gatherers.get(self.identity, lambda: Gatherer(ReadAhead.of(self))),
            self.identity,
            indices,
            self._fetch,
            begin=time.monotonic,
            most=self.frames_per_request,
            most_ahead=encoded_frames.frames_ahead(self.size // max(1, instance.num_frames)),
            keeps=self._keeps,
        )

    def _fetch(self, wanted: list[int], since: float | None) -> list[bytes]:
        with waiting_since(since):
            return list(map(bytes, self._instance().read_frames(wanted)))

    def may_read_anew(self) -> bool:
        """Return True: frames come over a network."""
        return True

    def drop_frame(self, index: int) -> None:
        """Drop what was kept of a frame."""
        encoded_frames.drop(self.identity, [index])
        _heads.discard((self.path, self.version))
        _ahead.discard((self.path, self.version))

    def read_anew(self, index: int) -> Buffer:
        """Read a frame from where it is, whatever was kept of it."""
        self.drop_frame(index)
        (frame,) = map(bytes, self._instance().read_frames([index]))
        if self._keeps:
            encoded_frames.keep(self.identity, {index: frame})
        return frame

    @property
    def _keeps(self) -> bool:
        """Whether frames that are kept are those that are there now."""
        return not self.version.startswith(OF_HEAD) and self._file().is_current

    def _instance(self) -> ParsedFile:
        key = self.path, self.version
        return _parsed.get(key, lambda: ParsedFile(self._file(), partial(_parsed.reweigh, key)))

    def _file(self) -> RemoteFile:
        def reopen() -> RemoteFile:
            file = RemoteFile(self.path, self.options)
            if (file.size, file.version) != (self.size, self.version):
                raise _changed(self.path, self.size, file.size)
            return file

        return _objects.get((self.path, self.version), reopen)
