"""Cache of frame offsets on disk, for files and objects without an offset table.

Each entry is a file: a digest, the key and the offsets. An entry that is damaged, or of another
version of the DICOM file, is ignored.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.options import get_options
from dicomslide.process import shared_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["load", "save"]

_FORMAT = "dicomslide index 1"
PARTIAL = ".partial"
"""Suffix of an entry while it is written."""
LONG = 3600
"""Age in seconds from which a partial entry is deleted, on systems without file locks."""
_DIGEST = hashlib.sha256().digest_size


def _key(what: tuple[Any, ...]) -> bytes:
    return json.dumps([_FORMAT, *what]).encode() + b"\n"


def _path(name: str) -> str | None:
    folder = os.path.expanduser(get_options().index_folder)
    digest = hashlib.sha256(json.dumps([_FORMAT, name]).encode()).hexdigest()
    return os.path.join(folder, f"{digest}.index") if folder else None


def load(name: str, what: tuple[Any, ...]) -> NDArray[np.int64] | None:
    """Return cached numbers; None where there is no entry, or a damaged one.

    Parameters
    ----------
    name : str
        Path or URL of the file.
    what : tuple
        Key of the numbers: texts and numbers, including the version of the file.

    Returns
    -------
    numpy.ndarray or None
        One-dimensional array.

    """
    key = _key((name, *what))
    path = _path(name)
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError:
        return None
    content = data[_DIGEST:]
    if hashlib.sha256(content).digest() != data[:_DIGEST] or not content.startswith(key):
        return None
    return np.frombuffer(content, "<i8", offset=len(key)).astype(np.int64)


def save(name: str, what: tuple[Any, ...], numbers: NDArray[np.int64]) -> None:
    """Cache numbers for other processes, in place of those of another version of the file.

    A folder that isn't writable is no error. The entry is replaced atomically.
    """
    key = _key((name, *what))
    path = _path(name)
    if path is None:
        return
    content = key + numbers.astype("<i8").tobytes()
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        partial = f"{path}.{uuid.uuid4().hex}{PARTIAL}"
        try:
            with os.fdopen(shared_folder.create(partial, exclusive=True), "wb") as file:
                _is_free(file.fileno())  # locks it until it is closed
                file.write(hashlib.sha256(content).digest() + content)
            os.replace(partial, path)
        except BaseException:
            os.unlink(partial)
            raise
        _clear(os.path.dirname(path))


def _clear(folder: str) -> None:
    """Delete the partial entries of killed writers."""
    for each in os.scandir(folder):
        if each.name.endswith(PARTIAL):
            with contextlib.suppress(OSError), open(each.path, "rb") as file:
                is_free = _is_free(file.fileno())
                if is_free is None:
                    is_free = each.stat().st_mtime < time.time() - LONG
                if is_free:
                    os.unlink(each.path)


def _is_free(descriptor: int) -> bool | None:
    """Lock a file until it is closed; False if another process has the lock, None without locks."""
    try:
        import fcntl  # not on Windows

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True
