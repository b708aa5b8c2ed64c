"""Files in a folder that users may share, with the permissions of the folder."""

from __future__ import annotations

import os
import stat

__all__ = ["create"]


def create(path: str, *, exclusive: bool = False) -> int:
    """Open a file for reading and writing, created if it doesn't exist, and return its descriptor.

    A new file has the permissions of its folder, whatever the umask.

    Parameters
    ----------
    path : str
        Path of the file, in an existing folder.
    exclusive : bool, default: False
        Whether it is an error if the file exists.

    Raises
    ------
    OSError
        When the file can't be opened.

    """
    mode = stat.S_IMODE(os.stat(os.path.dirname(path) or ".").st_mode) & 0o666
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        if exclusive:
            raise
        return os.open(path, os.O_RDWR)
    if hasattr(os, "fchmod"):  # not on Windows
        os.fchmod(descriptor, mode)
    return descriptor
