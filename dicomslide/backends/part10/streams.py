"""DICOM Part 10 files in memory, or in a file object of the caller."""

from __future__ import annotations

import dataclasses
import io
import itertools
import os
import uuid
from typing import TYPE_CHECKING, Any

from dicomslide.backends.base import RangeError
from dicomslide.backends.part10.parsed import ParsedFile
from dicomslide.backends.part10.source import Part10Source
from dicomslide.errors import NotPicklableError, SourceChangedError, SourceReadError
from dicomslide.header import dicom
from dicomslide.process.forks import ForkLock
from dicomslide.process.lazy import lazy

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from dicomslide.header.blobs import Span
    from dicomslide.pixels.pixel_format import Buffer

__all__ = ["Stream", "StreamSource", "is_stream"]

_IN_MEMORY = (bytes, bytearray, memoryview)
_numbers = itertools.count(1)


def is_stream(source: Any) -> bool:
    """Whether an object is bytes-like or a file object."""
    return isinstance(source, _IN_MEMORY) or (hasattr(source, "read") and hasattr(source, "seek"))


class Stream:
    """Bytes of a file object, which one thread at a time reads.

    Parameters
    ----------
    given : bytes-like or binary file object
        A file object has to be seekable and to stay open while it is read; the caller must not seek
        or read it at the same time.

    Raises
    ------
    SourceReadError
        When it can't seek, isn't binary, or is closed.

    """

    def __init__(self, given: Any) -> None:
        kind = type(given).__name__
        in_memory = isinstance(given, _IN_MEMORY)
        self._file = io.BytesIO(given) if in_memory else given
        self._lock = ForkLock()
        # a forked child shares the position in a file with its parent, but not that in memory
        self._process = None if isinstance(self._file, io.BytesIO) else os.getpid()
        named = getattr(given, "name", None)
        number = next(_numbers)
        self.name = f"{named} ({kind} {number})" if isinstance(named, str) else f"<{kind} {number}>"
        self.version = ""
        self.identity = uuid.uuid4().hex
        """Unique, whatever the bytes."""
        self.size = self._find_size()

    @lazy
    def parsed(self) -> ParsedFile:
        """The parsed file, which lives as long as this object."""
        return ParsedFile(self)

    def _find_size(self) -> int:
        seekable = getattr(self._file, "seekable", None)
        try:
            can_seek = seekable is None or seekable()
            is_binary = can_seek and isinstance(self._file.read(0), _IN_MEMORY)
            size = int(self._seek(0, os.SEEK_END)) if is_binary else 0
        except Exception as error:  # each kind of file object has error types of its own
            raise SourceReadError(f"{self.name}: it can't be read: {error}") from error
        if not can_seek:
            raise SourceReadError(f"{self.name}: it can't seek; give its bytes: file.read()")
        if not is_binary:
            raise SourceReadError(f"{self.name}: it gives text; open the file in binary mode")
        return size

    def _seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        at: int | None = self._file.seek(offset, whence)
        return self._file.tell() if at is None else at

    def read(self, offset: int, length: int) -> bytes:
        """Read bytes; fewer than `length` only at the end.

        Raises
        ------
        SourceReadError
            When the file object raises, or is closed, or this is a forked process.

        """
        self._check_process()
        left = max(0, min(length, self.size - offset))
        parts = []
        try:
            with self._lock:
                self._seek(offset)
                while left and (part := self._file.read(left)):
                    parts.append(bytes(part))
                    left -= len(part)
        except Exception as error:
            raise SourceReadError(f"{self.name}: it can't be read: {error}") from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _check_process(self) -> None:
        if self._process not in (None, os.getpid()):
            raise SourceReadError(
                f"{self.name}: it was opened in another process, of which this one was forked, and"
                " both would move its place; open the slide here"
            )

    def read_spans(self, spans: Sequence[Span]) -> list[Buffer]:
        """Read several ranges of bytes.

        Raises
        ------
        RangeError
            Naming which of them.

        """
        found: list[Buffer] = []
        for item, (start, stop) in enumerate(spans):
            try:
                found.append(self.read(start, stop - start))
            except SourceReadError as error:
                raise RangeError(str(error), item, None) from error
        return found

    def reading(self) -> Callable[[int, int], bytes]:
        """Return the function that reads bytes."""
        return self.read

    def check_unchanged(self) -> None:
        """Raise a SourceChangedError where its size has changed."""
        if self._process is None:
            return
        self._check_process()
        with self._lock:
            size = self._find_size()
        if size != self.size:
            raise SourceChangedError(
                f"{self.name}: it has {size} bytes, expected {self.size}; open the slide again"
            )


@dataclasses.dataclass(frozen=True, slots=True)
class StreamSource(Part10Source):
    """A DICOM Part 10 file in memory, or in a file object.

    It can't be pickled: no other process could open it by name, and its bytes may be many.
    """

    path: str
    """Name of the file object in messages."""
    sop_instance_uid: str
    size: int
    stream: Stream = dataclasses.field(repr=False, compare=False)

    @classmethod
    def open(cls, given: Any) -> StreamSource:
        """Read a header.

        Raises
        ------
        SourceReadError
            When a file object can't be read.
        NotDicomError
            When it isn't a DICOM Part 10 file.
        MetadataError
            When its header can't be read.

        """
        stream = Stream(given)
        dataset = stream.parsed.header.dataset
        uid = dicom.text(dataset, "SOPInstanceUID") or dicom.text(
            dataset.file_meta, "MediaStorageSOPInstanceUID"
        )
        return cls(stream.name, uid or stream.name, stream.size, stream)

    @property
    def identity(self) -> tuple[Hashable, ...]:
        """Name of these bytes, in this process."""
        return ("stream", self.stream.identity, self.sop_instance_uid, self.size)

    def _instance(self) -> ParsedFile:
        return self.stream.parsed

    def __reduce__(self) -> tuple[Any, ...]:
        raise NotPicklableError(
            f"{self.path}: bytes and file objects don't go to other processes, which would need a"
            " copy of all of it for each task; write it to a file that they see, or use threads"
        )

    def __copy__(self) -> StreamSource:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> StreamSource:
        return self
