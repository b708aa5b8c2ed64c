"""File systems of fsspec by which this process reaches objects."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from dicomslide.backends.net.redaction import has_hidden_query, public, public_url, secrets_of
from dicomslide.backends.net.storage_options import Registered, full_url, registered
from dicomslide.backends.objects import ranges
from dicomslide.backends.objects.attempts import Place
from dicomslide.errors import NotDicomError, SourceDeniedError
from dicomslide.process.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

__all__ = ["ObjectReach", "is_url"]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(://|::)")


def is_url(path: Any) -> bool:
    """Whether something is a URL, of a file or not."""
    return isinstance(path, str) and _URL.match(path) is not None and "://" in path


CONNECTIONS = 32
"""Upper bound on connections to S3: s3fs has 10, fewer than the requests that are under way."""
_filesystems: Registry[tuple[Hashable, ...], Any] = Registry(32, "file systems")
"""By server, options and archive. Made anew in a forked child, which has no threads of fsspec's."""


class ObjectReach:
    """The way of this process to an object.

    Parameters
    ----------
    url : str
        URL of the object, without credentials.
    options : str
        Harmless storage options as JSON, used where none are registered.

    """

    def __init__(self, url: str, options: str) -> None:
        self.url = url
        self.options = options
        self._archive: str | None = None  # version of the archive that holds it

    def place(self) -> Place:
        """Return the object with the file system that reaches it.

        Raises
        ------
        SourceDeniedError
            When the URL has a query that this process doesn't know.

        """
        full = full_url(self.url)
        if has_hidden_query(full):
            raise SourceDeniedError(
                f"{self.url}: this process doesn't know the query of the URL, which may be a"
                " signature and isn't pickled; register the whole URL here:"
                " dicomslide.register_storage_options(url, {})"
            )
        return self._place(full, registered(self.url))

    def _place(self, full: str, given: Registered | None) -> Place:
        first, _, rest = full.partition("::")
        while rest and "://" not in first:  # a copy of the link that follows
            first, _, rest = rest.partition("::")
        root = first.partition("://")[0] if rest else "/".join(first.split("/", 3)[:3])
        inside = (self._place(rest, given),) if rest else ()
        if inside and self._archive is None:
            self._archive = ranges.version_of(inside[0])
        generation = given.generation if given else 0

        def make() -> Any:
            return _new_filesystem(full, given.current() if given else json.loads(self.options))

        archive = self._archive if inside else None
        scope = given.scope if given else ""
        key = (root, rest, scope, self.options, generation, archive)
        filesystem = _filesystems.get(key, make)
        path = filesystem._strip_protocol(first)
        return Place(filesystem, path, inside, archive, generation)

    def renew(self, refused: int) -> bool:
        """Renew the credentials of a generation; False where no function returns them."""
        given = registered(self.url)
        return given is not None and given.renew(refused)

    def public(self, text: str) -> str:
        """Return a text without the credentials of the object, and those of any URL."""
        given = registered(self.url)
        known = [] if given is None else given.secrets
        return public(text, [*secrets_of(full_url(self.url)), *known])


def _new_filesystem(url: str, options: Mapping[str, Any]) -> Any:
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise ImportError(
            "reading from URLs takes the package fsspec: pip install 'dicomslide[remote]'"
        ) from None
    shown = public_url(url)
    # it runs in fsspec's own loop, never in that of the caller
    options = {key: each for key, each in options.items() if key not in ("asynchronous", "loop")}
    if url.startswith(("s3://", "s3a://")):
        config = {"max_pool_connections": CONNECTIONS} | dict(options.get("config_kwargs") or {})
        options |= {"config_kwargs": config}
    try:
        # not from fsspec's own cache, which would keep credentials that were renewed
        filesystem, _ = url_to_fs(url, **options, skip_instance_cache=True)
    except ImportError as error:
        how = ": pip install 'dicomslide[remote]'" if "aiohttp" in str(error) else ""
        raise ImportError(f"{shown}: {error}{how}") from None
    except ValueError as error:
        if "Protocol not known" in str(error):
            raise NotDicomError(
                f"{shown}: a URL of a kind that fsspec doesn't know; a DICOMweb server is read by"
                " one URL, dicomweb+https://host/.../studies/.../series/..., not in a list"
            ) from None
        raise
    return filesystem
