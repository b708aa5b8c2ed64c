"""Where frames are, kept on disk for files that don't say so themselves.

Each entry is a file of its own: its key, its numbers, and a digest of both. One that is damaged,
or of another file, counts as none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.options import get_options

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["load", "save"]

_FORMAT = "dicomslide index 1"
_DIGEST = hashlib.sha256().digest_size


def _key(what: tuple[Any, ...]) -> bytes:
    return json.dumps([_FORMAT, *what]).encode() + b"\n"


def _path(key: bytes) -> str | None:
    folder = get_options().index_folder
    return os.path.join(folder, hashlib.sha256(key).hexdigest() + ".index") if folder else None


def load(what: tuple[Any, ...]) -> NDArray[np.int64] | None:
    """Return the numbers that were kept; None where there are none, or they are damaged.

    Parameters
    ----------
    what : tuple
        What they are of: texts and numbers, among them the version of the file.

    Returns
    -------
    numpy.ndarray or None
        Of one dimension.

    """
    key = _key(what)
    path = _path(key)
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


def save(what: tuple[Any, ...], numbers: NDArray[np.int64]) -> None:
    """Keep numbers for other processes; a folder that can't be written to is no error.

    Others see the whole entry or none, whoever else writes it at the same time.
    """
    key = _key(what)
    path = _path(key)
    if path is None:
        return
    content = key + numbers.astype("<i8").tobytes()
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=os.path.dirname(path), delete=False) as file:
            try:
                file.write(hashlib.sha256(content).digest() + content)
                file.close()
                os.replace(file.name, path)
            except OSError:
                file.close()
                os.unlink(file.name)
                raise
