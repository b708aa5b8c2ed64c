"""Bytes that can be read anywhere, and what pydicom reads of them: no more than is bearable."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeAlias

from dicomslide.errors import DicomSlideError, MemoryLimitError, MetadataError
from dicomslide.options import check_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dicomslide.pixels.pixel_format import Buffer

__all__ = ["Span", "MOST_HEADER", "Blob", "MemoryBlob", "errors_of_headers", "file_of"]

Span: TypeAlias = tuple[int, int]
"""First byte, and the one behind the last."""

MOST_HEADER = 256 * 2**20
"""Bytes of the elements before the frames, without per-frame functional groups."""
MOST_READS = 400_000
"""Of heads of elements and items, and of values: they take seconds, and no image has as many."""
LONG = 2**16
"""Bytes of a value that are allocated before it is known whether they are there."""


class Blob(Protocol):
    """Bytes that can be read anywhere, from several threads at once."""

    @property
    def name(self) -> str:
        """File name or URL."""
        ...

    @property
    def size(self) -> int:
        """Number of bytes."""
        ...

    @property
    def version(self) -> str:
        """What tells these bytes from others of that name: an ETag, or time of change.

        Empty where nothing does.
        """
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Read bytes; fewer than `length` only at the end."""
        ...

    def read_spans(self, spans: Sequence[Span]) -> list[Buffer]:
        """Read several ranges of bytes; a range is shorter only at the end."""
        ...

    def reading(self) -> Callable[[int, int], bytes]:
        """Return what :meth:`read` does, for many small reads one after the other."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class MemoryBlob:
    """Bytes in memory: what a deflated data set inflates to."""

    name: str
    data: bytes
    version: str = ""
    """Of what they were inflated from."""

    @property
    def size(self) -> int:
        """Number of bytes."""
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        """Read bytes."""
        return self.data[offset : offset + length]

    def read_spans(self, spans: Sequence[Span]) -> list[Buffer]:
        """Read several ranges of bytes."""
        view = memoryview(self.data)
        return [view[start:stop] for start, stop in spans]

    def reading(self) -> Callable[[int, int], bytes]:
        """Return what reads bytes."""
        return self.read


class _Readable(Protocol):
    """The part of a blob that pydicom reads."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes: ...


class _BlobFile(io.RawIOBase):
    """A blob as the file that pydicom's reader wants."""

    def __init__(self, blob: _Readable) -> None:
        self._blob = blob
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._blob.size}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._blob.read(self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class BoundedReader(io.BufferedReader):
    """Reads a blob for pydicom, which believes every length and any number of elements.

    Parameters
    ----------
    blob : Blob
        The bytes.
    most_bytes : int
        More are an error.

    """

    def __init__(self, blob: _Readable, most_bytes: int) -> None:
        super().__init__(_BlobFile(blob), 2**16)
        self._blob = blob
        self._most_bytes = most_bytes
        self._bytes = self._reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Read bytes, no more than are there."""
        self._reads += 1
        if self._reads > MOST_READS:
            raise MetadataError(
                f"{self._blob.name}: the header has more elements than any image needs: they would"
                f" take longer to read than is waited for, at byte {self.tell()}"
            )
        if size is None or size < 0 or size > LONG:
            left = max(0, self._blob.size - self.tell())
            size = left if size is None or size < 0 else min(size, left)
        self._bytes += size
        if self._bytes > self._most_bytes:
            check_memory(self._bytes, f"{self._blob.name}: its header")
            raise MemoryLimitError(
                f"{self._blob.name}: its header has more than {self._most_bytes:,} bytes before"
                " its frames"
            )
        return super().read(size)


def file_of(blob: _Readable, at: int, *, most_bytes: int | None = None) -> BinaryIO:
    """Return a blob as a file, to be read from a byte on.

    Parameters
    ----------
    blob : Blob
        The bytes.
    at : int
        The first one that is read.
    most_bytes : int, optional
        More are an error; by default, more than any header has.

    """
    file = BoundedReader(blob, MOST_HEADER if most_bytes is None else most_bytes)
    file.seek(at)
    return file


@contextlib.contextmanager
def errors_of_headers(name: str) -> Iterator[None]:
    """Turn whatever a damaged header makes pydicom raise into a MetadataError."""
    try:
        yield
    except DicomSlideError:
        raise
    except MemoryError as error:
        raise MemoryLimitError(f"{name}: the header takes more memory than there is") from error
    except Exception as error:
        raise MetadataError(f"{name}: the header can't be read: {error}") from error
