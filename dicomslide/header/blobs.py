"""Random access to the bytes of a data set, and bounded reading of them by pydicom."""

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

__all__ = ["Span", "MOST_HEADER", "Blob", "MemoryBlob", "errors_of_headers", "file_of",
           "raw_file_of"]  # fmt: skip

Span: TypeAlias = tuple[int, int]
"""Byte range: its first byte, and the byte after its last."""

MOST_HEADER = 256 * 2**20
"""Upper bound on the bytes of a header, without its per-frame functional groups."""
MOST_READS = 400_000
"""Upper bound on reads of element headers, item headers and values: so many take seconds, and no
valid image needs as many."""
LONG = 2**16
"""Bytes of a value up to which its declared length isn't compared with the bytes that are left."""


class Blob(Protocol):
    """Bytes with random access, from several threads at once."""

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
        """Version of the bytes: an ETag or modification time; empty where there is none."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Read bytes; fewer than `length` only at the end."""
        ...

    def read_spans(self, spans: Sequence[Span]) -> list[Buffer]:
        """Read several ranges of bytes; a range is shorter only at the end."""
        ...

    def reading(self) -> Callable[[int, int], bytes]:
        """Return a function like :meth:`read`, made for many small reads in sequence."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class MemoryBlob:
    """Bytes in memory, such as an inflated data set."""

    name: str
    data: bytes
    version: str = ""
    """Version of the file that the bytes come from."""

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
        """Return a function that reads bytes."""
        return self.read


class Readable(Protocol):
    """The part of a blob that is read as a file."""

    @property
    def name(self) -> str:
        """File name or URL."""
        ...

    @property
    def size(self) -> int:
        """Number of bytes."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Read bytes."""
        ...


class _BlobFile(io.RawIOBase):
    """Blob as a binary file, for readers that take no offsets."""

    def __init__(self, blob: Readable) -> None:
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
    """Binary file of a blob that bounds the bytes and the number of reads.

    pydicom itself checks neither the declared lengths nor the number of elements.

    Parameters
    ----------
    blob : Blob
        The bytes.
    most_bytes : int
        Upper bound on the bytes that are read.

    """

    def __init__(self, blob: Readable, most_bytes: int) -> None:
        super().__init__(_BlobFile(blob), 2**16)
        self._blob = blob
        self._most_bytes = most_bytes
        self._bytes = self._reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to `size` bytes, after a check of the bounds.

        Raises
        ------
        MetadataError
            When there are too many reads.
        MemoryLimitError
            When there are too many bytes.

        """
        self._reads += 1
        if self._reads > MOST_READS:
            raise MetadataError(
                f"{self._blob.name}: the header has more elements than any image needs; reading"
                f" stopped at byte {self.tell()}, after {MOST_READS:,} reads"
            )
        if size is None or size < 0 or size > LONG:
            left = max(0, self._blob.size - self.tell())
            size = left if size is None or size < 0 else min(size, left)
        self._bytes += size
        if self._bytes > self._most_bytes:
            check_memory(self._bytes, f"{self._blob.name}: its header")
            raise MemoryLimitError(
                f"{self._blob.name}: the header before the frames has more than"
                f" {self._most_bytes:,} bytes"
            )
        return super().read(size)


def raw_file_of(blob: Readable) -> io.RawIOBase:
    """Return a blob as a binary file, without bounds on what is read."""
    return _BlobFile(blob)


def file_of(blob: Readable, at: int, *, most_bytes: int | None = None) -> BinaryIO:
    """Return a blob as a binary file, positioned at a byte, with bounds on what is read.

    Parameters
    ----------
    blob : Blob
        The bytes.
    at : int
        Offset of the first byte that is read.
    most_bytes : int, optional
        Upper bound on the bytes that are read; by default, that of headers.

    """
    file = BoundedReader(blob, MOST_HEADER if most_bytes is None else most_bytes)
    file.seek(at)
    return file


@contextlib.contextmanager
def errors_of_headers(name: str) -> Iterator[None]:
    """Convert any error that pydicom raises for a damaged header into a MetadataError."""
    try:
        yield
    except DicomSlideError:
        raise
    except MemoryError as error:
        raise MemoryLimitError(f"{name}: the header doesn't fit the memory") from error
    except Exception as error:
        raise MetadataError(f"{name}: the header can't be read: {error}") from error
