"""How this process reaches URLs: file systems of fsspec, their options and credentials.

None of it leaves the process: what travels to others names a URL without what may be secret.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from dicomslide.backends.net.attempts import Place
from dicomslide.backends.objects import ranges
from dicomslide.errors import NotDicomError, SourceDeniedError
from dicomslide.process.forks import ForkLock
from dicomslide.process.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    StorageOptions: TypeAlias = Mapping[str, Any] | Callable[[], Mapping[str, Any]]

__all__ = ["ObjectReach", "StorageOptions", "harmless", "harmless_for", "is_url",
           "options_for", "public_url", "register_for_all", "register_storage_options",
           "remembered"]  # fmt: skip

MOST_REGISTERED = 2**16
"""Beginnings of URLs, and URLs with a secret: each is a short text, and opening a data set by
signed URLs takes many."""
HARMLESS = frozenset(
    {"anon", "endpoint_url", "region_name", "requester_pays", "use_ssl", "account_name", "project"}
)
"""Storage options that may travel to other processes."""
NESTED = "client_kwargs"
"""An option of s3fs whose harmless items may travel, too."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(://|::)")
_HIDDEN = re.compile(
    r"(?<=://)[^/?#@:\s]*:[^/?#\s]*@|(?<=http://)[^/?#\s]*@|(?<=https://)[^/?#\s]*@"
)
"""User and password of any URL in a text."""
_QUERY = re.compile(r"(?<=\?)(?!query-[0-9a-f]{12}\b)[^\s'\"<>?]+")
"""Query of any URL in a text, unless it is a digest."""
_DIGEST = re.compile(r"query-[0-9a-f]{12}")
_CUTS = re.compile(r"/|\?|::")
"""Where a URL begins that others begin with."""


def is_url(path: Any) -> bool:
    """Whether something is a URL, of a file or not."""
    return isinstance(path, str) and _URL.match(path) is not None and "://" in path


def public_url(url: str) -> str:
    """Return a URL without what may be a credential: user and password, and an HTTP query.

    A digest stands for the query, which may be all that tells two objects apart. What is public
    stays as it is.
    """
    return "::".join(_public_link(link) for link in url.split("::"))


def _public_link(link: str) -> str:
    shown = _HIDDEN.sub("", link)
    if shown.startswith(("http://", "https://")):
        shown, mark, query = shown.partition("?")
        if mark:
            is_public = _DIGEST.fullmatch(query) is not None
            digest = hashlib.sha256(query.encode()).hexdigest()[:12]
            shown += f"?{query}" if is_public else f"?query-{digest}"
    return shown


def _secrets_of(url: str) -> list[str]:
    parts = [found.group()[:-1] for found in _HIDDEN.finditer(url)]
    parts += [part.partition(":")[2] for part in parts]
    return parts + [link.partition("?")[2] for link in url.split("::") if "?" in link]


# -- storage options -------------------------------------------------------------------------


class _Registered:
    """How URLs that begin alike are reached; equal to itself only."""

    def __init__(self, options: StorageOptions) -> None:
        self.options = options
        self.generation = 0
        """How often they were asked for again."""
        self.secrets: list[str] = []
        """Texts of those in use that no message may show."""

    def current(self) -> dict[str, Any]:
        options = _copied(self.options() if callable(self.options) else self.options)
        self.secrets = _texts(options, harmless(options))
        return options


def _copied(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options that don't change if those given do."""
    if not isinstance(options, Mapping):
        raise TypeError(
            f"storage options are a mapping or a callable that returns one, not a"
            f" {type(options).__name__}"
        )

    def copied(value: Any) -> Any:
        return {key: copied(each) for key, each in value.items()} if type(value) is dict else value

    return {key: copied(value) for key, value in options.items()}


class _StorageOptions:
    """What this process was told of how to reach URLs."""

    def __init__(self) -> None:
        self._lock = ForkLock()
        # not forgotten in a forked child: it reads what the parent reads
        self._by_prefix: OrderedDict[str, _Registered] = OrderedDict()
        self._urls: OrderedDict[str, str] = OrderedDict()

    def register(self, prefixes: Iterable[str], options: StorageOptions) -> None:
        given = _Registered(options if callable(options) else _copied(options))
        with self._lock:
            for prefix in prefixes:
                start = prefix.rstrip("/")
                known = self._by_prefix.get(start)
                if known is None or known.options != given.options:
                    self._by_prefix[start] = given
                _keep_newest(self._by_prefix, start)

    def of(self, url: str) -> _Registered | None:
        """Return what was registered for the longest beginning of a URL."""
        with self._lock:
            return next(
                (self._by_prefix[each] for each in _beginnings(url) if each in self._by_prefix),
                None,
            )

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


def _beginnings(url: str) -> list[str]:
    """Return what options for a URL may be registered for, the longest first.

    Of a chained URL the options are for all its links, and so may the prefix be for any of them.
    """
    found = set()
    for link in (url, *url.split("::")[1:]):
        found.add(link.rstrip("/"))
        found.update(link[: at.start()].rstrip("/") for at in _CUTS.finditer(link))
    return sorted(found, key=len, reverse=True)


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

    Raises
    ------
    TypeError
        When the options are neither.

    Notes
    -----
    A signed URL travels without its query. A worker process reads it once it was registered there,
    whole: ``register_storage_options(url, {})``.

    Examples
    --------
    >>> import dicomslide
    >>> dicomslide.register_storage_options("s3://public-slides", {"anon": True})

    """
    register_for_all([prefix], options)


def register_for_all(prefixes: Iterable[str], options: StorageOptions) -> None:
    """Let this process reach URLs with the same options, by one file system for each server."""
    _storage_options.register(map(_storage_options.keep_url, prefixes), options)


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


def options_for(public: str, otherwise: str) -> tuple[str, dict[str, Any]]:
    """Return the full URL that a public one stands for, and the options to reach it with.

    Parameters
    ----------
    public : str
        URL as it may be shown.
    otherwise : str
        Options, as JSON, where nothing is registered in this process.

    """
    given = _storage_options.of(public)
    options = json.loads(otherwise) if given is None else given.current()
    return _storage_options.full_url(public), options


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

_filesystems: Registry[tuple[Hashable, ...], Any] = Registry(32, "file systems")
"""By server, options and archive. Made anew in a forked child, which has no threads of fsspec's."""


class ObjectReach:
    """How this process reaches an object."""

    def __init__(self, url: str, options: str) -> None:
        self.url = url
        """As it may be shown."""
        self.options = options
        """The harmless ones, as JSON: where nothing is registered."""
        self._archive: str | None = None
        """The version of the archive that it is in: another one is read anew."""

    def place(self) -> Place:
        """Return the object as this process reaches it.

        Raises
        ------
        SourceDeniedError
            When the URL has a query, and this process wasn't told of it.

        """
        full = _storage_options.full_url(self.url)
        if any(_DIGEST.fullmatch(link.partition("?")[2]) for link in full.split("::")):
            raise SourceDeniedError(
                f"{self.url}: this process doesn't know the query of the URL, which may be a"
                " signature and isn't told to others; register the whole URL here:"
                " dicomslide.register_storage_options(url, {})"
            )
        return self._place(full, _storage_options.of(self.url))

    def _place(self, full: str, given: _Registered | None) -> Place:
        first, _, rest = full.partition("::")
        while rest and "://" not in first:  # a copy of what follows
            first, _, rest = rest.partition("::")
        root = first.partition("://")[0] if rest else "/".join(first.split("/", 3)[:3])
        inside = (self._place(rest, given),) if rest else ()
        if inside and self._archive is None:
            self._archive = ranges.version_of(inside[0])
        generation = given.generation if given else 0

        def make() -> Any:
            return _new_filesystem(full, given.current() if given else json.loads(self.options))

        archive = self._archive if inside else None
        key = (root, rest, given, self.options, generation, archive)
        filesystem = _filesystems.get(key, make)
        path = filesystem._strip_protocol(first)
        return Place(filesystem, path, inside, archive, generation)

    def renew(self, refused: int) -> bool:
        """Ask for newer credentials than those refused, unless another thread has done so.

        False where there is nobody to ask.
        """
        given = _storage_options.of(self.url)
        if given is None or not callable(given.options):
            return False
        _storage_options.renew(given, refused)
        return True

    def public(self, text: str) -> str:
        """Leave out of a text what nobody may see."""
        given = _storage_options.of(self.url)
        secrets = _secrets_of(_storage_options.full_url(self.url))
        if given is not None:
            secrets += given.secrets
        for secret in sorted(filter(None, secrets), key=len, reverse=True):
            text = text.replace(secret, "***")
        return _QUERY.sub("***", _HIDDEN.sub("", text))


def _texts(value: Any, shown: Any = None) -> list[str]:
    """Return all texts of storage options other than those that may be shown."""
    if isinstance(value, dict):
        known = shown if isinstance(shown, dict) else {}
        return [text for key, each in value.items() for text in _texts(each, known.get(key))]
    if isinstance(value, (list, tuple)):
        return [text for each in value for text in _texts(each)]
    if not isinstance(value, str) or value == shown:
        return []
    return [text for text in (value, *value.split()) if len(text) > 3]


def _new_filesystem(url: str, options: Mapping[str, Any]) -> Any:
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise ImportError(
            "reading from URLs takes the package fsspec: pip install 'dicomslide[remote]'"
        ) from None
    shown = public_url(url)
    # whoever uses it awaits nothing, in whatever loop it runs
    options = {key: each for key, each in options.items() if key not in ("asynchronous", "loop")}
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
