"""Files on disk: their signature, and reads at an offset by any number of threads."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import platform
import stat
from typing import TYPE_CHECKING, Protocol

from dicomslide.backends.coalesce import read_joined
from dicomslide.errors import NotDicomError, SourceChangedError, SourceNotFoundError
from dicomslide.header.blobs import Blob
from dicomslide.process.forks import ForkLock
from dicomslide.process.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dicomslide.header.blobs import Span
    from dicomslide.pixels.pixel_format import Buffer

__all__ = ["OPEN_AGAIN", "ChangingBlob", "LocalFile", "Signature", "check_is_file",
           "check_unchanged"]  # fmt: skip

OPEN_AGAIN = "open the slide again, or its index, written anew"
"""Remedy for a file or object that has changed since."""


@dataclasses.dataclass(frozen=True, slots=True)
class Signature:
    """Size, time and inode of a file, which detect that another file is at its path."""

    size: int
    """In bytes."""
    mtime_ns: int
    """Time of the last change of content, in nanoseconds."""
    node: tuple[int, int]
    """Device and inode on this machine: they differ between files of equal size and time."""
    ctime_ns: int = dataclasses.field(default=0, compare=False)
    """Time of the last change of content or status, in nanoseconds, which nobody can set back. It
    also changes with permissions and links, so it is no reason to refuse an open file."""

    @classmethod
    def of(cls, status: os.stat_result) -> Signature:
        """Return the signature of a file."""
        node = (status.st_dev, status.st_ino)
        return cls(status.st_size, status.st_mtime_ns, node, status.st_ctime_ns)


def check_is_file(path: str) -> None:
    """Raise a NotDicomError for a pipe, a socket or a device: reading one may block.

    A path that doesn't exist raises nothing; opening it will.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise NotDicomError(f"{path}: not a file, but a pipe, a socket or a device")


class _OpenFile:
    """A file descriptor that is closed with the last reference, never during a read."""

    def __init__(self, path: str) -> None:
        check_is_file(path)
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - lives as long as this
        self._descriptor = self._file.fileno()
        if not hasattr(os, "pread"):  # Windows: seek and read, one at a time
            self._lock = ForkLock()
            self.read = self._seek_and_read  # type: ignore[method-assign]

    @property
    def signature(self) -> Signature:
        """Signature of the open file at this moment."""
        return Signature.of(os.fstat(self._descriptor))

    def read(self, offset: int, length: int) -> bytes:
        data = os.pread(self._descriptor, length, offset)
        while len(data) < length:  # Linux reads no more than 2 GiB at once
            more = os.pread(self._descriptor, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def _seek_and_read(self, offset: int, length: int) -> bytes:
        with self._lock:
            self._file.seek(offset)
            return self._file.read(length) or b""

    def __del__(self) -> None:
        file = getattr(self, "_file", None)
        if file is not None:
            file.close()


_open_files: Registry[tuple[str, Signature], _OpenFile] = Registry(128, "open files")


class LocalFile:
    """A file that is read at given offsets, by any number of threads, without a lock.

    The number of open files of a process is bounded: a closed file is opened again for a read.
    """

    def __init__(self, path: str) -> None:
        self.name = path
        opened = _OpenFile(path)
        self.signature = opened.signature
        self.size, self.mtime_ns = self.signature.size, self.signature.mtime_ns
        # without the device, whose number differs between machines that share an `index_folder`
        inode, changed = self.signature.node[1], self.signature.ctime_ns
        self.version = f"{self.mtime_ns} {inode} {changed}"
        _open_files.get((path, self.signature), lambda: opened)

    def read(self, offset: int, length: int) -> bytes:
        """Read bytes; fewer than `length` only at the end of the file."""
        return self._opened().read(offset, length)

    def read_spans(self, spans: Sequence[Span]) -> list[Buffer]:
        """Read several spans; neighbouring ones together."""
        return read_joined(self.reading(), spans)

    def reading(self) -> Callable[[int, int], bytes]:
        """Return a function that reads bytes; the file stays open while it is referenced."""
        return self._opened().read

    def _opened(self) -> _OpenFile:
        return _open_files.get((self.name, self.signature), self._reopen)

    @classmethod
    def known(cls, path: str, size: int, mtime_ns: int) -> LocalFile:
        """Open a file that was opened before, maybe by another process.

        Raises
        ------
        SourceNotFoundError
            When it doesn't exist on this machine.
        SourceChangedError
            When it has another size or time of change.

        """
        with _found_again(path):
            file = cls(path)
        # another machine knows it by another inode
        check_unchanged(path, Signature(size, mtime_ns, file.signature.node), file.signature)
        return file

    def _reopen(self) -> _OpenFile:
        with _found_again(self.name):
            opened = _OpenFile(self.name)
        check_unchanged(self.name, self.signature, opened.signature)
        return opened

    def check_unchanged(self) -> None:
        """Raise a SourceChangedError if the file was changed since it was opened."""
        check_unchanged(self.name, self.signature, self._opened().signature)


@contextlib.contextmanager
def _found_again(path: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SourceNotFoundError(
            f"{path}: no such file any more, or none on this machine ({platform.node()}): each"
            " worker of a cluster has to reach it by the same path, as on a shared disk or by a"
            " URL (s3://, https://)"
        ) from error


def check_unchanged(path: str, before: Signature, now: Signature) -> None:
    """Raise a SourceChangedError where the signature of a file has changed."""
    if now != before:
        raise SourceChangedError(
            f"{path}: the file isn't any more the one that was opened: it has {_said(now)},"
            f" expected {_said(before)}; {OPEN_AGAIN}"
        )


def _said(signature: Signature) -> str:
    changed = datetime.datetime.fromtimestamp(signature.mtime_ns / 1e9, datetime.UTC)
    return f"{signature.size} bytes, changed {changed:%Y-%m-%d %H:%M:%S.%f} UTC"


class ChangingBlob(Blob, Protocol):
    """Bytes of a file or object that others may replace."""

    def check_unchanged(self) -> None:
        """Raise a SourceChangedError if they were replaced."""
        ...
