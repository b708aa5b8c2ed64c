"""Sessions and tokens of this process for DICOMweb servers; they are never pickled."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from dicomslide.backends.net import storage_options
from dicomslide.backends.net.addresses import services_above
from dicomslide.backends.net.register import Register
from dicomslide.process.forks import ForkLock

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Credentials", "forget", "on_change", "register_credentials", "registered"]

SESSION_VARIABLE = "DICOMSLIDE_DICOMWEB_SESSION"
TOKEN_VARIABLE = "DICOMSLIDE_DICOMWEB_TOKEN"

_sessions: Register[Callable[[str], Any]] = Register(services_above)
_tokens: Register[Callable[[str], str | None]] = Register(services_above)
_listeners: list[Callable[[str], None]] = []


def register_credentials(
    url: str,
    *,
    session: Callable[[str], Any] | None = None,
    token: Callable[[str], str | None] | None = None,
) -> None:
    """Register the credentials of this process for a DICOMweb server.

    They are used by slides that were opened by URL or arrived pickled, which hold none; never by
    slides of a client that was passed in, which keeps its own. In each process of a cluster either
    this is called, or an environment variable names a function of an importable module:
    ``DICOMSLIDE_DICOMWEB_SESSION=package.module:function``, or ``DICOMSLIDE_DICOMWEB_TOKEN``.
    Otherwise a plain session is used, for which a ``.netrc`` file may hold a user and password.

    They take effect with the next request, also of slides that are open: the connections, headers
    and frames of the service that are in memory are dropped, as by :func:`forget`.

    Parameters
    ----------
    url : str
        URL of the service, or the beginning of it up to a ``/``; with or without ``dicomweb+``.
    session : callable, optional
        Called with the URL of the service; returns a ``requests.Session``, which isn't changed.
        Called again when the server has refused a request of the last one (401, 403).
    token : callable, optional
        Called with the URL of the service; returns a bearer token, or None. Called again when
        the server has refused the last one.

    """
    for register, function in ((_sessions, session), (_tokens, token)):
        if function is None:
            register.discard(url)
        else:
            register.put(url, function)
    _tell(url)


def forget(url: str) -> None:
    """Undo the registrations for a server, and drop the data that were read with them.

    Undone are :func:`register_credentials`, :func:`register_client` and
    :func:`register_storage_options`. Connections, sessions, headers and frames in memory are
    dropped. Frames on disk (`frame_folder`) stay, for those whom the server lets read the instance.
    An open slide asks the server again when pixels are read: without credentials if it was opened
    by URL, through its client if it was opened with one.

    Parameters
    ----------
    url : str
        URL of the service or of objects, or the beginning of it up to a ``/``; with or without
        ``dicomweb+``, a study and a series.

    """
    _sessions.drop(url)
    _tokens.drop(url)
    storage_options.forget(url)
    _tell(url)


def _tell(url: str) -> None:
    for changed in _listeners:
        changed(url)


def on_change(call: Callable[[str], None]) -> None:
    """Call a function with each URL whose registration changes from now on."""
    _listeners.append(call)


class _BearerToken:
    """Authorises requests with a bearer token, whose function is called once."""

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
        raise TypeError("a token can't be pickled; register it in each process")


def _checked(token: str) -> str:
    token = token.strip()  # of a token that was read from a file, the end of the line
    if not (token.isascii() and token.isprintable()):
        raise ValueError("the token has characters that aren't allowed in a header")
    return token


class Credentials:
    """Credentials of one connection to a service.

    Parameters
    ----------
    url : str
        URL of the service.
    session : requests.Session or callable, optional
        A session, or a function that returns one for the URL.
    token : callable, optional
        Returns a bearer token for the URL.

    """

    def __init__(
        self,
        url: str,
        session: Any = None,
        token: Callable[[str], str | None] | None = None,
    ) -> None:
        self._url = url
        self._session = session
        self._token = token
        self.auth = self._new_auth()
        """Adds the token to each request; None where there is none."""

    @property
    def makes_session(self) -> bool:
        """Whether the session is made here rather than passed in."""
        return self._session is None

    def _new_auth(self) -> _BearerToken | None:
        return None if self._token is None else _BearerToken(self._token, self._url)

    def session(self) -> Any:
        """Return the session to send through: the one passed in or returned, else a new one."""
        if callable(self._session):
            return self._given()
        if self._session is not None:
            return self._session
        import requests

        return requests.Session()

    def _given(self) -> Any:
        session = self._session(self._url)
        if not callable(getattr(session, "get", None)):  # else a plain one would be used
            kind = type(session).__name__
            raise TypeError(f"the session for {self._url} must be a requests.Session, not a {kind}")
        return session

    def renewed(self, refused: Any) -> Any:
        """Get new credentials where they come of a function; return the session to go on with."""
        self.auth = self._new_auth()
        return self._given() if callable(self._session) else refused

    @property
    def is_renewable(self) -> bool:
        """Whether they come of a function, which may return newer ones."""
        return self._token is not None or callable(self._session)


def registered(url: str) -> Credentials | None:
    """Return new credentials as they are registered for a service; None where none are."""
    session = _sessions.of(url) or _named_by(SESSION_VARIABLE)
    token = _tokens.of(url) or _named_by(TOKEN_VARIABLE)
    return None if session is None and token is None else Credentials(url, session, token)


def _named_by(variable: str) -> Any:
    """Return the function that an environment variable names; None where it isn't set."""
    name = os.environ.get(variable)
    if not name:
        return None
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ImportError(f"{variable} must name a function as module:function: {error}") from None
