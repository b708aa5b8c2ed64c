"""Who this process is to a DICOMweb server: sessions and tokens, which are never written down."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from dicomslide.cache import ForkLock

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["new_session", "register_credentials", "renewed_session"]

SESSION_VARIABLE = "DICOMSLIDE_DICOMWEB_SESSION"
TOKEN_VARIABLE = "DICOMSLIDE_DICOMWEB_TOKEN"


class _Registered:
    """Functions that give sessions or tokens, by the URL of the server they are for."""

    def __init__(self) -> None:
        self._lock = ForkLock()
        self._session: dict[str, Callable[[str], Any]] = {}
        self._token: dict[str, Callable[[str], str | None]] = {}

    def put(
        self,
        url: str,
        session: Callable[[str], Any] | None,
        token: Callable[[str], str | None] | None,
    ) -> None:
        key = url.removeprefix("dicomweb+").rstrip("/")
        with self._lock:
            self._session.pop(key, None)
            self._token.pop(key, None)
            if session is not None:
                self._session[key] = session
            if token is not None:
                self._token[key] = token

    def session(self, url: str) -> Callable[[str], Any] | None:
        return self._of(self._session, url, SESSION_VARIABLE)

    def token(self, url: str) -> Callable[[str], str | None] | None:
        return self._of(self._token, url, TOKEN_VARIABLE)

    def _of(self, functions: dict[str, Any], url: str, variable: str) -> Any:
        """Return the function for the longest URL that `url` begins with, else the variable's."""
        with self._lock:
            keys = [key for key in functions if f"{url.rstrip('/')}/".startswith(f"{key}/")]
            if keys:
                return functions[max(keys, key=len)]
        name = os.environ.get(variable)
        return _imported(name, variable) if name else None


_registered = _Registered()


def register_credentials(
    url: str,
    *,
    session: Callable[[str], Any] | None = None,
    token: Callable[[str], str | None] | None = None,
) -> None:
    """Say how this process makes itself known to a DICOMweb server.

    For slides that are opened by URL or arrive pickled, which hold no credentials. In each
    process of a cluster either this is called, or an environment variable names a function of an
    importable module: ``DICOMSLIDE_DICOMWEB_SESSION=package.module:function``, or
    ``DICOMSLIDE_DICOMWEB_TOKEN``. Else a plain session is used, to which a ``.netrc`` file may
    give a user and password.

    Parameters
    ----------
    url : str
        URL of the service, or what it begins with; as slides are opened by it, or without
        ``dicomweb+``.
    session : callable, optional
        Called with the URL of the service; returns a ``requests.Session``. Called again when
        the server has refused what the last one sent.
    token : callable, optional
        Called with the URL of the service; returns a bearer token, or None. Called again when
        the server has refused the last one.

    """
    _registered.put(url, session, token)


class _BearerToken:
    """Authorises requests by a token, which is asked for once."""

    def __init__(self, token: Callable[[str], str | None], url: str) -> None:
        self._get = token
        self._url = url
        self._lock = ForkLock()
        self._token: str | None = None

    def __call__(self, request: Any) -> Any:
        with self._lock:
            if self._token is None:
                token = self._get(self._url)
                self._token = None if token is None else _checked(token)
            if self._token is not None:
                request.headers["Authorization"] = f"Bearer {self._token}"
        return request

    def __reduce__(self) -> Any:
        raise TypeError("a session with a token can't be pickled; register it in each process")


def _checked(token: str) -> str:
    token = token.strip()  # who reads it from a file gets the end of the line, too
    if not (token.isascii() and token.isprintable()):
        raise ValueError("a token has characters that no header may have")
    return token


def new_session(url: str) -> Any:
    """Return a session for a server, with what is known of credentials for it.

    Returns
    -------
    requests.Session
        A session of its own.

    """
    make, token = _registered.session(url), _registered.token(url)
    if make is not None:
        session = make(url)
    else:
        import requests

        session = requests.Session()
    if token is not None:
        session.auth = _BearerToken(token, url)
    return session


def renewed_session(url: str, refused: Any) -> Any:
    """Return what to go on with after a server has refused a session.

    Returns
    -------
    requests.Session
        Another one, or the same, where that gets other credentials by itself or can't.

    """
    token = _registered.token(url)
    if _registered.session(url) is not None:
        return new_session(url)
    if token is not None:
        refused.auth = _BearerToken(token, url)
    return refused


def _imported(name: str, variable: str) -> Any:
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ImportError(f"{variable} must name a function as module:function: {error}") from None
