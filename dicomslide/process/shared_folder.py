"""Files in a folder that several users may share: who may read or write it, may do so with them."""

from __future__ import annotations

import os
import stat

__all__ = ["create"]


def create(path: str, *, exclusive: bool = False) -> int:
    """Open a file to read and write, made if it isn't there, and return its descriptor.

    Its permissions are those of its folder, whatever the umask: who shares a folder said so when
    the folder was made.

    Parameters
    ----------
    path : str
        Where; the folder is there.
    exclusive : bool, default: False
        Whether it is an error if the file is there.

    Raises
    ------
    OSError
        When it can't be opened.

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
