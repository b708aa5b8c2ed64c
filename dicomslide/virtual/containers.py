"""Opening of icechunk repositories that have access to the files of virtual arrays."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from dicomslide.backends.objects.repositories import storage_of
from dicomslide.backends.objects.storage import is_url
from dicomslide.errors import NotVirtualError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import icechunk

__all__ = ["opened"]


def opened(
    storage: Any,
    urls: Sequence[str],
    containers: Sequence[icechunk.VirtualChunkContainer],
    credentials: Mapping[str, Any],
) -> icechunk.Repository:
    """Open or create a repository that has access to files."""
    import icechunk

    if isinstance(storage, (str, os.PathLike)) and not is_url(storage):
        # icechunk ends in a panic where it can't
        os.makedirs(os.path.expanduser(storage), exist_ok=True)
    storage = storage_of(storage)
    exists = icechunk.Repository.exists(storage)
    config = icechunk.Repository.fetch_config(storage) if exists else None
    config = config or icechunk.RepositoryConfig.default()
    known = dict(config.virtual_chunk_containers or {})
    added = [each for each in containers if each.url_prefix not in known]
    for container in added:
        config.set_virtual_chunk_container(container)
        known[container.url_prefix] = container
    for prefix in _prefixes(url for url in urls if not url.startswith(tuple(known))):
        container = icechunk.VirtualChunkContainer(prefix, _object_store(prefix))
        config.set_virtual_chunk_container(container)
        known[prefix] = container
        added.append(container)
    access = icechunk.containers_credentials(
        {prefix: credentials.get(prefix) or _access(prefix) for prefix in known}
    )
    do = icechunk.Repository.open if exists else icechunk.Repository.create
    repository = do(storage, config, authorize_virtual_chunk_access=access)
    if exists and added:
        repository.save_config()
    return repository


def _prefixes(urls: Iterable[str]) -> list[str]:
    """Return the prefixes of URLs: a common folder of local files, else scheme and host."""
    found: dict[str, list[str]] = {}
    for url in urls:
        scheme, _, rest = url.partition("://")
        found.setdefault(f"{scheme}://{rest.partition('/')[0]}/", []).append(url)
    return [_folder(of) if prefix == "file:///" else prefix for prefix, of in found.items()]


def _folder(urls: Sequence[str]) -> str:
    """Return the URL of a folder of files.

    Above names with escaped characters, such as blanks: icechunk finds no container with those.
    """
    folder = os.path.commonpath([os.path.dirname(url[len("file://") :]) for url in urls])
    plain = folder if "%" not in folder else os.path.dirname(folder.partition("%")[0] + "%")
    return f"file://{plain.rstrip('/')}/"


def _object_store(prefix: str) -> Any:
    import icechunk

    scheme = prefix.partition("://")[0]
    if scheme == "file":
        return icechunk.local_filesystem_store(prefix[7:])
    if scheme in ("http", "https"):
        return icechunk.http_store()
    if scheme == "s3":
        return icechunk.s3_store()
    raise NotVirtualError(
        f"{prefix}: give an icechunk.VirtualChunkContainer for URLs that begin so (`containers`)"
    )


def _access(prefix: str) -> Any:
    """Return the credentials of files for which none are given."""
    import icechunk

    scheme = prefix.partition("://")[0]
    if scheme == "s3":
        return icechunk.s3_from_env_credentials()
    # icechunk 1 has None for these
    name = {"file": "LocalFileSystemAccess", "http": "HttpAccess", "https": "HttpAccess"}
    return getattr(icechunk.credentials, name.get(scheme, ""), None)
