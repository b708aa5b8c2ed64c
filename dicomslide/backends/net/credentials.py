"""Who this process is to a DICOMweb server: sessions and tokens, which are never written down."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from dicomslide.backends.net.addresses import is_within, service_of
from dicomslide.process.forks import ForkLock

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Credentials", "forget", "on_change", "register_credentials", "registered"]

SESSION_VARIABLE = "DICOMSLIDE_DICOMWEB_SESSION"
TOKEN_VARIABLE = "DICOMSLIDE_DICOMWEB_TOKEN"


class _Registered:
    """Functions that give sessions or tokens, by the URL of the server they are for."""

    def __init__(self) -> None:
        self._lock = ForkLock()
        self._session: dict[str, Callable[[str], Any]] = {}
        self._token: dict[str, Callable[[str], str | None]] = {}
        self.on_change: list[Callable[[str], None]] = []
        """Called with the URL for which something else is registered now, or nothing."""

    def put(
        self,
        url: str,
        session: Callable[[str], Any] | None,
        token: Callable[[str], str | None] | None,
    ) -> None:
        key = service_of(url)
        with self._lock:
            self._session.pop(key, None)
            self._token.pop(key, None)
            if session is not None:
                self._session[key] = session
            if token is not None:
                self._token[key] = token
        self._tell(url)

    def drop(self, url: str) -> None:
        """Drop what is registered for a URL, and for those that begin with it."""
        with self._lock:
            for functions in (self._session, self._token):
                for key in [key for key in functions if is_within(key, url)]:
                    del functions[key]
        self._tell(url)

    def _tell(self, url: str) -> None:
        for changed in self.on_change:
            changed(url)

    def session(self, url: str) -> Callable[[str], Any] | None:
        return self._of(self._session, url, SESSION_VARIABLE)

    def token(self, url: str) -> Callable[[str], str | None] | None:
        return self._of(self._token, url, TOKEN_VARIABLE)

    def _of(self, functions: dict[str, Any], url: str, variable: str) -> Any:
        """Return the function for the longest URL that `url` begins with, else the variable's."""
        with self._lock:
            keys = [key for key in functions if is_within(url, key)]
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

    For slides that are opened by URL or arrive pickled, which hold no credentials; never for
    those of a client of the caller's, which keeps its own. In each process of a cluster either
    this is called, or an environment variable names a function of an importable module:
    ``DICOMSLIDE_DICOMWEB_SESSION=package.module:function``, or ``DICOMSLIDE_DICOMWEB_TOKEN``.
    Else a plain session is used, to which a ``.netrc`` file may give a user and password.

    It takes effect with the next request, also of slides that are open: what the process has kept
    of the service until then (connections, headers, frames in memory) is dropped, as by
    :func:`forget`.

    Parameters
    ----------
    url : str
        URL of the service, or what it begins with; as slides are opened by it, or without
        ``dicomweb+``.
    session : callable, optional
        Called with the URL of the service; returns a ``requests.Session``, of which nothing is
        changed. Called again when the server has refused what the last one sent.
    token : callable, optional
        Called with the URL of the service; returns a bearer token, or None. Called again when
        the server has refused the last one.

    """
    _registered.put(url, session, token)


def forget(url: str) -> None:
    """Undo :func:`register_credentials` and :func:`register_client`, and drop what came of them.

    Nothing that the process has kept of the service is used any more: connections, sessions,
    headers and frames in memory. Frames on disk (`frame_folder`) stay there, for whom the server
    lets see the instance that they are of. What is open by URL asks the server again when pixels
    are read, as somebody without credentials; what was opened with a client asks as that client.

    Parameters
    ----------
    url : str
        URL of the service, or what it begins with; with or without ``dicomweb+``, a study and a
        series.

    """
    _registered.drop(url)


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
        raise TypeError("a token can't be pickled; register it in each process")


def _checked(token: str) -> str:
    token = token.strip()  # who reads it from a file gets the end of the line, too
    if not (token.isascii() and token.isprintable()):
        raise ValueError("a token has characters that no header may have")
    return token


class Credentials:
    """By what one connection makes itself known to a service.

    Parameters
    ----------
    url : str
        URL of the service.
    session : requests.Session or callable, optional
        A session, or what gives one when called with the URL.
    token : callable, optional
        Gives a bearer token when called with the URL.

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
        """What authorises each request; None where the session does."""

    @property
    def makes_session(self) -> bool:
        """Whether the session is made here, and not the caller's."""
        return self._session is None

    def _new_auth(self) -> _BearerToken | None:
        return None if self._token is None else _BearerToken(self._token, self._url)

    def session(self) -> Any:
        """Return the session to send through: what the caller gives, else a new one."""
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
            raise TypeError(f"a {kind} came as session for {self._url}, not a requests.Session")
        return session

    def renewed(self, refused: Any) -> Any:
        """Get other credentials where there is a way to; return the session to go on with."""
        self.auth = self._new_auth()
        return self._given() if callable(self._session) else refused


def registered(url: str) -> Credentials | None:
    """Return new credentials as they are registered for a service; None where nothing is."""
    session, token = _registered.session(url), _registered.token(url)
    return None if session is None and token is None else Credentials(url, session, token)


def on_change(call: Callable[[str], None]) -> None:
    """Call a function with the URL for which something else is registered from now on."""
    _registered.on_change.append(call)


def _imported(name: str, variable: str) -> Any:
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ImportError(f"{variable} must name a function as module:function: {error}") from None
