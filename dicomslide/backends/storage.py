"""How this process reaches URLs: file systems of fsspec, their options and credentials.

None of it leaves the process: what travels to others names a URL without what may be secret.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, TypeAlias

from dicomslide.backends.ranges import Place
from dicomslide.cache import ForkLock, Registry
from dicomslide.errors import NotDicomError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    StorageOptions: TypeAlias = Mapping[str, Any] | Callable[[], Mapping[str, Any]]

__all__ = ["ObjectReach", "StorageOptions", "harmless", "harmless_for", "is_url",
           "public_url", "register_storage_options", "remembered"]  # fmt: skip

MOST_REGISTERED = 1024
HARMLESS = frozenset(
    {"anon", "endpoint_url", "region_name", "requester_pays", "use_ssl", "account_name", "project"}
)
"""Storage options that may travel to other processes."""
NESTED = "client_kwargs"
"""An option of s3fs whose harmless items may travel, too."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(://|::)")
_HIDDEN = re.compile(r"(?<=://)[^/@:]*:[^/@]*@|(?<=^http://)[^/@]*@|(?<=^https://)[^/@]*@")


def is_url(path: Any) -> bool:
    """Whether something is a URL, of a file or not."""
    return isinstance(path, str) and _URL.match(path) is not None and "://" in path


def public_url(url: str) -> str:
    """Return a URL without what may be a credential: user and password, and an HTTP query.

    A digest stands for the query, which may be all that tells two objects apart.
    """
    return "::".join(_public_link(link) for link in url.split("::"))


def _public_link(link: str) -> str:
    shown = _HIDDEN.sub("", link)
    if shown.startswith(("http://", "https://")):
        shown, mark, query = shown.partition("?")
        if mark:
            shown += "?" + hashlib.sha256(query.encode()).hexdigest()[:12]
    return shown


def _secrets_of(url: str) -> list[str]:
    parts = [found.group() for link in url.split("::") for found in [_HIDDEN.search(link)] if found]
    return parts + [link.partition("?")[2] for link in url.split("::") if "?" in link]


# -- storage options -------------------------------------------------------------------------


class _Registered:
    """How URLs that begin alike are reached; equal to itself only."""

    def __init__(self, options: StorageOptions) -> None:
        self.options = options
        self.generation = 0
        """How often they were asked for again."""

    def current(self) -> dict[str, Any]:
        return dict(self.options() if callable(self.options) else self.options)


class _StorageOptions:
    """What this process was told of how to reach URLs."""

    def __init__(self) -> None:
        self._lock = ForkLock()
        # not forgotten in a forked child: it reads what the parent reads
        self._by_prefix: OrderedDict[str, _Registered] = OrderedDict()
        self._urls: OrderedDict[str, str] = OrderedDict()

    def register(self, prefix: str, options: StorageOptions) -> None:
        with self._lock:
            known = self._by_prefix.get(prefix)
            if known is None or known.options != options:
                self._by_prefix[prefix] = _Registered(options)
            _keep_newest(self._by_prefix, prefix)

    def of(self, url: str) -> _Registered | None:
        """Return what was registered for the longest beginning of a URL."""
        with self._lock:
            fitting = [prefix for prefix in self._by_prefix if _begins(url, prefix)]
            return self._by_prefix[max(fitting, key=len)] if fitting else None

    def renew(self, given: _Registered, known: int) -> None:
        """Let new file systems ask for options again, unless they do so already."""
        with self._lock:
            if given.generation == known:
                given.generation += 1

    def keep_url(self, url: str) -> str:
        """Remember what a public URL stands for; return the public one."""
        public = public_url(url)
        if public != url:
            with self._lock:
                self._urls[public] = url
                _keep_newest(self._urls, public)
        return public

    def full_url(self, public: str) -> str:
        with self._lock:
            return self._urls.get(public, public)


def _keep_newest(mapping: OrderedDict[str, Any], key: str) -> None:
    mapping.move_to_end(key)
    while len(mapping) > MOST_REGISTERED:
        mapping.popitem(last=False)


def _begins(url: str, prefix: str) -> bool:
    start = prefix.rstrip("/")
    # of a chained URL the options are for all its links, and so may the prefix be for any of them
    return any(
        link == start or link.startswith((start + "/", start + "?", start + "::"))
        for link in (url, *url.split("::")[1:])
    )


_storage_options = _StorageOptions()


def register_storage_options(prefix: str, options: StorageOptions) -> None:
    """Let this process reach all URLs that begin alike with these options.

    What is pickled names an object, but holds no credentials. A worker process reads it with what
    was registered there, else with what its environment gives (such as ``AWS_ACCESS_KEY_ID``).

    Parameters
    ----------
    prefix : str
        Beginning of the URLs: ``"s3://bucket"``, ``"https://host/path"``.
    options : mapping or callable
        Options of the file system of fsspec: ``key`` and ``secret`` of s3fs, ``headers`` of HTTP.
        Or what returns them; it is called again when a server refuses the credentials.

    Examples
    --------
    >>> import dicomslide
    >>> dicomslide.register_storage_options("s3://public-slides", {"anon": True})

    """
    _storage_options.register(_storage_options.keep_url(prefix), options)


def remembered(url: str) -> str:
    """Return a URL as it may be shown; this process keeps what that stands for."""
    return _storage_options.keep_url(url)


def harmless_for(url: str) -> str:
    """Return what may travel of the options for a URL, as JSON; nothing of what a callable gives.

    A process that has to be told of the callable gets the rest from there, too.
    """
    given = _storage_options.of(url)
    options = {} if given is None or callable(given.options) else harmless(given.options)
    return json.dumps(options, sort_keys=True)


def harmless(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those storage options that hold no credentials."""

    def is_plain(value: Any) -> bool:
        return isinstance(value, (bool, int)) or (
            isinstance(value, str) and public_url(value) == value
        )

    kept = {key: value for key, value in options.items() if key in HARMLESS and is_plain(value)}
    nested = options.get(NESTED)
    if isinstance(nested, dict) and (inner := harmless(nested)):
        kept[NESTED] = inner
    return kept


# -- file systems ----------------------------------------------------------------------------

_filesystems: Registry[tuple[Hashable, ...], Any] = Registry(32)
"""By server, options and archive. Made anew in a forked child, which has no threads of fsspec's."""


class ObjectReach:
    """How this process reaches an object."""

    def __init__(self, url: str, options: str) -> None:
        self.url = url
        """As it may be shown."""
        self.options = options
        """The harmless ones, as JSON: where nothing is registered."""
        self._generation = 0

    def place(self) -> Place:
        """Return the object as this process reaches it."""
        given = _storage_options.of(self.url)
        self._generation = given.generation if given else 0
        return self._place(_storage_options.full_url(self.url), given)

    def _place(self, full: str, given: _Registered | None) -> Place:
        first, _, rest = full.partition("::")
        root = first.partition("://")[0] if rest else "/".join(first.split("/", 3)[:3])

        def make() -> Any:
            return _new_filesystem(full, given.current() if given else json.loads(self.options))

        key = (root, rest, given, self.options, self._generation)
        filesystem = _filesystems.get(key, make)
        path = filesystem._strip_protocol(first)
        return Place(filesystem, path, (self._place(rest, given),) if rest else ())

    def renew(self) -> bool:
        """Ask for new credentials, unless another thread has; False where there is nobody to."""
        given = _storage_options.of(self.url)
        if given is None or not callable(given.options):
            return False
        _storage_options.renew(given, self._generation)
        return True

    def public(self, text: str) -> str:
        """Leave out of a text what nobody may see."""
        given = _storage_options.of(self.url)
        secrets = _secrets_of(_storage_options.full_url(self.url))
        if given is not None:
            options = given.options if not callable(given.options) else {}
            secrets += _texts(options, harmless(options))
        for secret in sorted(secrets, key=len, reverse=True):
            text = text.replace(secret, "***")
        return public_url(text)


def _texts(value: Any, shown: Any = None) -> list[str]:
    """Return all texts of storage options other than those that may be shown."""
    if isinstance(value, dict):
        known = shown if isinstance(shown, dict) else {}
        return [text for key, each in value.items() for text in _texts(each, known.get(key))]
    if isinstance(value, (list, tuple)):
        return [text for each in value for text in _texts(each)]
    return [value] if isinstance(value, str) and len(value) > 3 and value != shown else []


def _new_filesystem(url: str, options: Mapping[str, Any]) -> Any:
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise ImportError(
            "reading from URLs takes the package fsspec: dicomslide[remote]"
        ) from None
    shown = public_url(url)
    try:
        # not from fsspec's own cache, which would keep credentials that were renewed
        filesystem, _ = url_to_fs(url, **options, skip_instance_cache=True)
    except ImportError as error:
        raise ImportError(f"{shown}: {error}") from None
    except ValueError as error:
        if "Protocol not known" in str(error):
            raise NotDicomError(
                f"{shown}: a URL of a kind that fsspec doesn't know; that of a DICOMweb server"
                " begins with dicomweb+https://"
            ) from None
        raise
    return filesystem
