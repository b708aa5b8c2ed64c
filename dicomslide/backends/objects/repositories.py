"""Storages of icechunk by path or URL, with the storage options that this process knows for it."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dicomslide.backends.net.storage_options import options_for, remembered
from dicomslide.backends.objects.storage import is_url
from dicomslide.errors import NotVirtualError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import icechunk

__all__ = ["is_repository", "reason_of", "storage_of"]

SUFFIX = ".icechunk"
"""End of the URL of a repository."""
_REASON = re.compile(r"^ *(?:x|×|[|├╰`]─?-?[>▶]) (.+)$", re.MULTILINE)
"""Line of an error of icechunk that says what happened; others say where in its code."""


def is_repository(source: object) -> bool:
    """Whether something is a repository of icechunk, or the path or URL of one.

    A folder is one by its contents, a URL by its suffix.
    """
    if isinstance(source, (str, os.PathLike)):
        where = os.fspath(source)
        if is_url(where):
            return str(where).rstrip("/").endswith(SUFFIX)
        folder = Path(os.fsdecode(where)).expanduser()
        has_refs = (folder / "refs").is_dir() or (folder / "repo").is_file()  # icechunk 1, and 2
        return has_refs and (folder / "snapshots").is_dir()
    icechunk: Any = sys.modules.get("icechunk")  # there, if it has made the source
    return icechunk is not None and isinstance(source, (icechunk.Repository, icechunk.Storage))


def storage_of(where: str | os.PathLike[str] | icechunk.Storage) -> Any:
    """Return the storage of a repository.

    Parameters
    ----------
    where : path-like or icechunk.Storage
        Folder, URL (``s3://``, ``http://``, ``https://``), or a storage, which is returned.

    Raises
    ------
    NotVirtualError
        When icechunk has no storage for such URLs.

    """
    import icechunk

    if not isinstance(where, (str, os.PathLike)):
        return where
    path = os.fspath(where)
    if not is_url(path):
        return icechunk.local_filesystem_storage(os.path.abspath(os.path.expanduser(path)))
    url, options = options_for(remembered(path), "{}")
    parts = urlsplit(url)
    if parts.scheme == "s3":
        return icechunk.s3_storage(
            bucket=parts.netloc, prefix=parts.path.strip("/") or None, **_of_s3(options)
        )
    if parts.scheme in ("http", "https") and hasattr(icechunk, "http_storage"):
        return icechunk.http_storage(url, headers=dict(options.get("headers", {})))
    needed = " (from version 2 on)" if parts.scheme in ("http", "https") else ""
    raise NotVirtualError(
        f"{remembered(path)}: icechunk has storages of folders, s3:// and http(s)://{needed} here;"
        " give an icechunk.Storage for others"
    )


def _of_s3(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of icechunk for storage options of s3fs."""
    given = {**options.get("client_kwargs", {}), **options}
    key = given.get("key") or given.get("aws_access_key_id")
    endpoint = given.get("endpoint_url")
    is_anonymous = bool(given.get("anon"))
    return {
        "region": given.get("region_name"),
        "endpoint_url": endpoint,
        "allow_http": str(endpoint).startswith("http://"),
        "force_path_style": endpoint is not None,
        "access_key_id": key,
        "secret_access_key": given.get("secret") or given.get("aws_secret_access_key"),
        "session_token": given.get("token") or given.get("aws_session_token"),
        "anonymous": is_anonymous or None,
        "from_env": None if key or is_anonymous else True,
        "requester_pays": bool(given.get("requester_pays")),
    }


def reason_of(error: Exception) -> str:
    """Return what an error of icechunk says, as a line; a cause often repeats its effect."""
    said = ""
    for reason in _REASON.findall(str(error)):
        if reason not in said:
            said += f": {reason}" if said else reason
    return said or str(error)
