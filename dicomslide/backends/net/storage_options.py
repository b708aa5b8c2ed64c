"""Storage options of fsspec for URLs, as this process was told them; they are never pickled.

A pickle names a URL without credentials, and only options that hold none.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from dicomslide.backends.net.redaction import public_url
from dicomslide.backends.net.register import Register
from dicomslide.process import budget as cache
from dicomslide.process.forks import ForkLock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    StorageOptions: TypeAlias = Mapping[str, Any] | Callable[[], Mapping[str, Any]]

__all__ = ["Registered", "StorageOptions", "forget", "forget_all", "full_url", "harmless",
           "harmless_for", "options_for", "register_for_all", "register_storage_options",
           "registered", "remembered", "scope_of"]  # fmt: skip

HARMLESS = frozenset(
    {"anon", "endpoint_url", "region_name", "requester_pays", "use_ssl", "account_name", "project"}
)
"""Storage options that hold no credentials and are pickled."""
NESTED = "client_kwargs"
"""An option of s3fs whose harmless items are pickled, too."""
_CUTS = re.compile(r"/|\?|::")
"""Ends of the beginnings of a URL."""


class Registered:
    """Storage options for URLs with one beginning; equal to itself only."""

    def __init__(self, options: StorageOptions) -> None:
        self.options = options
        self.scope = secrets.token_hex(8)
        """Part of the key of all that is cached of objects that were read with them."""
        self.generation = 0
        """Number of renewals."""
        self.secrets: list[str] = []
        """Texts of the current options that no message may show."""
        self._lock = ForkLock()

    def current(self) -> dict[str, Any]:
        """Return the options; a function that returns them is called."""
        options = _copied(self.options() if callable(self.options) else self.options)
        self.secrets = _texts(options, harmless(options))
        return options

    def renew(self, refused: int) -> bool:
        """Let new file systems call the function again; False where there is none.

        Nothing is done where another thread has renewed the refused generation.
        """
        if not callable(self.options):
            return False
        with self._lock:
            if self.generation == refused:
                self.generation += 1
        return True


def _copied(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of options, with the dictionaries in them."""
    if not isinstance(options, Mapping):
        raise TypeError(
            f"storage options are a mapping or a callable that returns one, not a"
            f" {type(options).__name__}"
        )

    def copied(value: Any) -> Any:
        return {key: copied(each) for key, each in value.items()} if type(value) is dict else value

    return {key: copied(value) for key, value in options.items()}


def _texts(value: Any, shown: Any = None) -> list[str]:
    """Return all texts of storage options, except those that may be shown."""
    if isinstance(value, dict):
        known = shown if isinstance(shown, dict) else {}
        return [text for key, each in value.items() for text in _texts(each, known.get(key))]
    if isinstance(value, (list, tuple)):
        return [text for each in value for text in _texts(each)]
    if not isinstance(value, str) or value == shown:
        return []
    return [text for text in (value, *value.split()) if len(text) > 3]


def _beginnings(url: str) -> list[str]:
    """Return the beginnings of a URL that options may be registered for, the longest first.

    The options of a chained URL are for all its links, so the beginnings of each link count.
    """
    found = set()
    for link in (url, *url.split("::")[1:]):
        found.add(link.rstrip("/"))
        found.update(link[: at.start()].rstrip("/") for at in _CUTS.finditer(link))
    return sorted(found, key=len, reverse=True)


_registered: Register[Registered] = Register(_beginnings)
_full_urls: Register[str] = Register(lambda public: [public])
"""URLs with credentials, by their public form."""


def register_storage_options(prefix: str, options: StorageOptions) -> None:
    """Register the storage options with which this process reads URLs with a common beginning.

    A pickled slide names an object, but holds no credentials. A worker process reads it with the
    options registered there, else with those of its environment (such as ``AWS_ACCESS_KEY_ID``).

    Other options than before take effect with the next request, also of slides that are open; the
    headers and frames in memory that were read with the old ones are dropped.

    Parameters
    ----------
    prefix : str
        Beginning of the URLs: ``"s3://bucket"``, ``"https://host/path"``.
    options : mapping or callable
        Options of the file system of fsspec: ``key`` and ``secret`` of s3fs, ``headers`` of HTTP.
        Or a function that returns them, which is called again when a server refuses the
        credentials (401, 403).

    Raises
    ------
    TypeError
        When the options are neither.

    Notes
    -----
    A signed URL is pickled without its query. A worker process can read it once the whole URL is
    registered there: ``register_storage_options(url, {})``.

    Examples
    --------
    >>> import dicomslide
    >>> dicomslide.register_storage_options("s3://public-slides", {"anon": True})

    """
    register_for_all([prefix], options)


def register_for_all(prefixes: Iterable[str], options: StorageOptions) -> None:
    """Register the same options for several beginnings of URLs: one file system for each server."""
    given = Registered(options if callable(options) else _copied(options))
    for prefix in map(remembered, prefixes):
        known = _registered.own(prefix)
        if known is not None and known.options == given.options:
            _registered.put(prefix, known)  # the newest stay
        else:
            _registered.put(prefix, given)
            if known is not None:
                cache.forget(known.scope)


def forget(url: str) -> None:
    """Undo registrations for a URL and for those below it; drop what was read with them."""
    for each in _registered.drop(public_url(url)):
        cache.forget(each.scope)


def forget_all() -> None:
    """Undo all registrations."""
    _registered.clear()
    _full_urls.clear()


def registered(url: str) -> Registered | None:
    """Return the options registered for the longest beginning of a URL."""
    return _registered.of(url)


def scope_of(url: str) -> str:
    """Return the scope of the options for a URL; an empty text where none are registered."""
    given = _registered.of(url)
    return "" if given is None else given.scope


def remembered(url: str) -> str:
    """Return the public form of a URL; this process remembers the full one."""
    public = public_url(url)
    if public != url:
        _full_urls.put(public, url)
    return public


def full_url(public: str) -> str:
    """Return the URL of a public form, with its credentials where this process knows them."""
    return _full_urls.own(public) or public


def harmless_for(url: str) -> str:
    """Return the options for a URL that are pickled, as JSON; none that a function returns."""
    given = _registered.of(url)
    options = {} if given is None or callable(given.options) else harmless(given.options)
    return json.dumps(options, sort_keys=True)


def options_for(public: str, otherwise: str) -> tuple[str, dict[str, Any]]:
    """Return the full URL of a public form, and the options to read it with.

    Parameters
    ----------
    public : str
        URL without credentials.
    otherwise : str
        Options, as JSON, where none are registered in this process.

    """
    given = _registered.of(public)
    options = json.loads(otherwise) if given is None else given.current()
    return full_url(public), options


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
