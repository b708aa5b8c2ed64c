"""Where instances are written to: a folder or file, a bucket, or a DICOMweb server.

Instances are written to a temporary folder first, and published when all of them are whole. Until
then, a target shows nothing of them. A single instance whose frames come in order goes to a bucket
without that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import re
import shutil
import tempfile
import time
from typing import TYPE_CHECKING, Any, Protocol

from dicomslide.backends.dicomweb.protocol import is_client
from dicomslide.backends.net.addresses import URL_SCHEME, is_dicomweb_url
from dicomslide.backends.net.storage_options import (
    harmless_for,
    register_storage_options,
    remembered,
)
from dicomslide.backends.objects.storage import ObjectReach, is_url
from dicomslide.errors import ExportError, StoreExistsError
from dicomslide.write.stream import streamed, write_all

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from dicomslide.backends.dicomweb.connection import Connection
    from dicomslide.write.stream import Finished, Job

__all__ = ["Target", "stem_of", "target_at", "write_to"]

TEMPORARY = ".dicomslide-write-"
"""Beginning of the names of temporary folders."""
ATTEMPTS = 20
"""Attempts to delete a temporary folder."""
LOCAL = ("file://", "local://")
"""Schemes of URLs of paths."""
LOCK = "lock"
"""File in a temporary folder that its process has locked: without, the folder is left over."""


class Target(Protocol):
    """Where instances are published."""

    def check(self, names: Sequence[str]) -> None:
        """Raise a StoreExistsError if a name exists that may not be overwritten."""
        ...

    def publish(self, files: Sequence[Finished]) -> list[str]:
        """Publish whole files; return their paths, URLs or SOP Instance UIDs."""
        ...

    def working_folder(self) -> AbstractContextManager[str]:
        """Return a context with a folder for unfinished files, which is deleted at its end."""
        ...


def target_at(
    target: Any,
    *,
    overwrite: bool,
    storage_options: Mapping[str, Any] | None = None,
    temporary_folder: str | os.PathLike[str] | None = None,
) -> Target:
    """Return the target for a path, a URL or a client.

    Parameters
    ----------
    target : path-like, str or dicomweb_client.api.DICOMwebClient
        A folder; a file whose name ends in ``.dcm``; a URL of fsspec, of one of these; the URL of
        a DICOMweb service, ``dicomweb+https://...``; or a client of one.
    overwrite : bool
        Whether existing files and objects are replaced.
    storage_options : mapping, optional
        Options of fsspec for a URL.
    temporary_folder : path-like, optional
        Folder for unfinished files of a target that isn't a folder on disk.

    Raises
    ------
    TypeError
        When it is none of these.
    ValueError
        When an option is given that isn't for such a target.

    """
    temporary = None if temporary_folder is None else os.fspath(temporary_folder)
    if is_client(target):
        from dicomslide.backends.dicomweb.connection import connection_of

        found: Target = ServerTarget(connection_of(target), overwrite, temporary)
    elif isinstance(target, str) and is_dicomweb_url(target):
        from dicomslide.backends.dicomweb.storing import connection_for

        found = ServerTarget(connection_for(target), overwrite, temporary)
    elif is_url(target) and not target.startswith(LOCAL):
        if storage_options is not None:
            register_storage_options(target, storage_options)
            storage_options = None
        url = remembered(target)
        found = BucketTarget(url, harmless_for(url), overwrite, temporary)
    elif isinstance(target, (str, os.PathLike)):
        path = os.fspath(target)
        for scheme in LOCAL:
            path = path.removeprefix(scheme)
        path = os.path.abspath(path)
        if temporary is not None:
            raise ValueError(
                f"temporary_folder is for buckets and servers: in {path}, unfinished files are in a"
                " folder beside the finished ones"
            )
        found = FolderTarget(path, overwrite)
    else:
        raise TypeError(
            f"can't write to a {type(target).__name__}; expected a folder, a URL"
            f" (s3://..., {URL_SCHEME}https://...) or a DICOMweb client"
        )
    if storage_options is not None:
        raise ValueError(f"storage_options are for URLs of fsspec, not for {target!r}")
    return found


def write_to(target: Target, jobs: Sequence[Job]) -> list[str]:
    """Compute pixels, and write and publish the instances that consist of them.

    Parameters
    ----------
    target : Target
        Where they go.
    jobs : sequence of Job
        Arrays with their instances.

    Returns
    -------
    list of str
        Paths, URLs or SOP Instance UIDs.

    """
    names = [instance.name for job in jobs for instance in job.instances]
    target.check(names)
    if isinstance(target, BucketTarget) and len(jobs) == 1 and jobs[0].is_stream:
        return target.stream(names[0], streamed(jobs[0]))
    with target.working_folder() as folder:
        return target.publish(write_all(jobs, folder))


def _names_in(place: str, names: Sequence[str]) -> dict[str, str]:
    """Return the path of each name: in a folder, or the file that is named itself."""
    if not place.lower().endswith(".dcm"):
        return {name: f"{place.rstrip('/')}/{name}" for name in names}
    if len(names) > 1:
        raise ValueError(
            f"{place}: {len(names)} instances don't go into one file; expected a folder"
        )
    return {names[0]: place}


@contextlib.contextmanager
def _temporary(parent: str | None) -> Iterator[str]:
    """Make a folder that is deleted at the end, also after an error or Ctrl-C."""
    folder = tempfile.mkdtemp(prefix=TEMPORARY, dir=parent)
    lock = None
    try:
        with contextlib.suppress(ImportError, OSError):  # Windows, file systems without locks
            import fcntl

            lock = open(os.path.join(folder, LOCK), "wb")  # noqa: SIM115 - closed below
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder
    finally:
        _delete(folder)
        if lock is not None:
            lock.close()


@contextlib.contextmanager
def _on_disk(parent: str | None) -> Iterator[str]:
    """Make such a folder for what is sent elsewhere; by default in that of the system."""
    with _explaining(parent or tempfile.gettempdir()), _temporary(parent) as folder:
        yield folder


def _delete(folder: str) -> None:
    """Delete a folder, also while tasks that weren't stopped still write there."""
    for attempt in range(ATTEMPTS):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.exists(folder):
            return
        time.sleep(0.01 * attempt)


def _sweep(parent: str) -> None:
    """Delete temporary folders of processes that were killed, which hold no lock any more."""
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        for entry in os.scandir(parent):
            if not entry.name.startswith(TEMPORARY):
                continue
            with contextlib.suppress(OSError), open(os.path.join(entry.path, LOCK), "rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(entry.path, ignore_errors=True)


def exists_error(place: str) -> StoreExistsError:
    """Return the error about a file or object that exists."""
    return StoreExistsError(
        f"{place}: exists; overwrite=True replaces it, name=... writes beside it"
    )


# -- folders -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class FolderTarget:
    """A folder, or the path of a file."""

    path: str
    overwrite: bool

    @property
    def folder(self) -> str:
        """Folder of the files."""
        return os.path.dirname(self.path) if self.path.lower().endswith(".dcm") else self.path

    def check(self, names: Sequence[str]) -> None:
        """Raise a StoreExistsError if a file exists that may not be overwritten."""
        if os.path.exists(self.folder) and not os.path.isdir(self.folder):
            raise StoreExistsError(f"{self.folder}: exists, and isn't a folder")
        for path in _names_in(self.path, names).values():
            if os.path.lexists(path) and not self.overwrite:
                raise exists_error(path)

    @contextlib.contextmanager
    def working_folder(self) -> Iterator[str]:
        """Make a folder on the disk of the target: files are then renamed."""
        made = _made(self.folder)
        _sweep(self.folder)
        try:
            with _explaining(self.path), _temporary(self.folder) as folder:
                yield folder
        finally:
            for each in reversed(made):  # those that are still empty
                with contextlib.suppress(OSError):
                    os.rmdir(each)

    def publish(self, files: Sequence[Finished]) -> list[str]:
        """Give the files their names."""
        paths = _names_in(self.path, [file.name for file in files])
        done: list[str] = []
        try:
            for file in files:
                path = paths[file.name]
                if self.overwrite:
                    os.replace(file.path, path)
                else:
                    _rename_new(file.path, path)
                done.append(path)
        except BaseException:
            for path in [] if self.overwrite else done:
                os.unlink(path)
            raise
        return done


def _made(folder: str) -> list[str]:
    """Make a folder, and return those that were made for it."""
    made: list[str] = []
    while not os.path.isdir(folder):
        made.append(folder)
        folder = os.path.dirname(folder)
    for each in reversed(made):
        with contextlib.suppress(FileExistsError):
            os.mkdir(each)
    return made[::-1]


def _rename_new(path: str, new: str) -> None:
    """Rename a file, if nobody has made one of that name meanwhile."""
    try:
        os.link(path, new)
    except FileExistsError:
        raise exists_error(new) from None
    except OSError:  # a file system without links
        if os.path.lexists(new):
            raise exists_error(new) from None
        os.rename(path, new)
    else:
        os.unlink(path)


@contextlib.contextmanager
def _explaining(place: str) -> Iterator[None]:
    """Turn what a full disk raises into an ExportError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ExportError(
                f"{place}: no room is left ({error.strerror}); nothing was written. Make room, or"
                " write less: a coarser level, TILED_SPARSE, or a compressed transfer syntax"
            ) from error
        raise


# -- buckets -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class BucketTarget:
    """A folder or an object on a server, reached by fsspec."""

    url: str
    """Without credentials."""
    options: str
    """Storage options that aren't secret, as JSON."""
    overwrite: bool
    temporary_folder: str | None = None

    def _reached(self, url: str) -> tuple[Any, str]:
        place = ObjectReach(url, self.options).place()
        return place.filesystem, place.path

    def check(self, names: Sequence[str]) -> None:
        """Raise a StoreExistsError if an object exists that may not be overwritten."""
        if self.overwrite:
            _names_in(self.url, names)
            return
        with self._explaining():
            for url in _names_in(self.url, names).values():
                filesystem, path = self._reached(url)
                filesystem.invalidate_cache()
                if filesystem.exists(path):
                    raise exists_error(url)

    def working_folder(self) -> AbstractContextManager[str]:
        """Make a folder on disk, from which whole files are uploaded."""
        return _on_disk(self.temporary_folder)

    def publish(self, files: Sequence[Finished]) -> list[str]:
        """Upload the files; an object is there when all of its parts are."""
        urls = _names_in(self.url, [file.name for file in files])
        done: list[str] = []
        self.check(list(urls))
        try:
            with self._explaining():
                for file in files:
                    filesystem, path = self._reached(urls[file.name])
                    filesystem.put_file(file.path, path)
                    done.append(urls[file.name])
        except BaseException:
            if not self.overwrite:
                for url in done:
                    filesystem, path = self._reached(url)
                    with contextlib.suppress(Exception):
                        filesystem.rm_file(path)
            raise
        return done

    def stream(self, name: str, pieces: Iterable[bytes]) -> list[str]:
        """Upload an object piece by piece, without a copy on disk.

        It is there when all of it is.
        """
        from fsspec.spec import AbstractBufferedFile

        (url,) = _names_in(self.url, [name]).values()
        with self._explaining():
            filesystem, path = self._reached(url)
            file = filesystem.open(path, "wb")
        try:
            for piece in pieces:
                with self._explaining():
                    file.write(piece)
            with self._explaining():
                file.close()
        except BaseException:
            with contextlib.suppress(Exception):
                file.discard()
            if isinstance(file, AbstractBufferedFile):
                file.closed = True  # else it would be completed when it is collected
            else:  # such a file is there from the beginning
                with contextlib.suppress(Exception):
                    file.close()
                with contextlib.suppress(Exception):
                    filesystem.rm_file(path)
            raise
        return [url]

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        """Turn errors of clients into an ExportError without credentials."""
        try:
            yield
        except (StoreExistsError, ImportError, MemoryError):
            raise
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            shown = ObjectReach(self.url, self.options).public(text)
            raise ExportError(f"{self.url}: {shown}") from (error if shown == text else None)


# -- servers -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ServerTarget:
    """A DICOMweb server, which stores instances by STOW-RS."""

    connection: Connection
    overwrite: bool
    temporary_folder: str | None = None

    def check(self, names: Sequence[str]) -> None:
        """Raise a ValueError for an option that servers don't have."""
        if self.overwrite:
            raise ValueError(
                "overwrite=True: a DICOMweb server doesn't replace instances; new ones have new"
                " UIDs, and lie beside the old ones"
            )

    def working_folder(self) -> AbstractContextManager[str]:
        """Make a folder on disk, from which whole instances are sent."""
        return _on_disk(self.temporary_folder)

    def publish(self, files: Sequence[Finished]) -> list[str]:
        """Send the instances; return their SOP Instance UIDs."""
        from dicomslide.backends.dicomweb.storing import store_files

        store_files(self.connection, {file.sop_instance_uid: file.path for file in files})
        return [file.sop_instance_uid for file in files]


def stem_of(name: str) -> str:
    """Check a name of files.

    Raises
    ------
    ValueError
        When it isn't of letters, digits, dots, hyphens and underscores.

    """
    if not re.fullmatch(r"[\w][\w.-]*", name) or name.lower().endswith(".dcm"):
        raise ValueError(f"name {name!r}: expected letters, digits, '-', '_' and '.', without .dcm")
    return name
