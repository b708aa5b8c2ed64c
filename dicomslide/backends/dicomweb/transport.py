"""GET requests that survive what networks do: bounded in number, time and bytes.

Everything goes through a session of requests, which has the credentials. They stay with the
host that they are for.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import re
import threading
import time
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import urljoin, urlsplit

from dicomslide.backends.dicomweb.bodies import decompressed, hang_up
from dicomslide.backends.dicomweb.multipart import ReplyError, WrongTypeError
from dicomslide.process.forks import after_fork_in_child
from dicomslide.process.parallel import start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    Read: TypeAlias = Callable[[str, Iterator[bytes]], "T"]

__all__ = ["RETRIED", "Patience", "Transport", "TransportError", "is_at_home", "public", "said"]

T = TypeVar("T")

RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP status of what may go well a little later."""
CHUNK = 2**18
SLOWEST = 100_000
"""Bytes a second for which is waited beyond the deadline: what is large takes its time."""
LONGEST = 5.0
"""Deadlines that a reply may take, however steadily it comes."""
ACCEPTED_ENCODINGS = "gzip, deflate"
MOST_REDIRECTS = 5
MOST_IN_FLIGHT = 8
"""Requests to one server at a time: as many as a session keeps connections for, or fewer."""
_CREDENTIALS = re.compile(r"(?<=//)[^/\s]+@|[?#][^\s'\")]*")


class TransportError(OSError):
    """A request didn't succeed.

    Parameters
    ----------
    reason : str
        Why, and how often it was tried; without credentials.
    status : int, optional
        HTTP status, where the server answered.

    """

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason, status)
        self.reason = reason
        self.status = status

    def __str__(self) -> str:
        return self.reason


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How often is tried, and how long is waited, in seconds."""

    attempts: int = 6
    damaged: int = 3
    """Attempts after which a damaged reply is what the server has."""
    deadline: float = 120.0
    """For all attempts together, with the waits between them; up to five times as long for a
    reply that is large and comes steadily."""
    first_wait: float = 0.25
    """Before the second attempt; twice as long before each further one."""
    longest_wait: float = 10.0
    connect: float = 10.0
    """For a connection."""
    silence: float = 30.0
    """For the next bytes of a reply."""


class Transport:
    """Sends GET requests through a session.

    Parameters
    ----------
    session : callable
        Gives the requests.Session, at each attempt.
    refresh : callable, optional
        Called once a request when the server says 401, with the session and the `auth` that were
        refused: afterwards `session` and `auth` may give others.
    auth : callable, optional
        Gives what authorises each request; the session does where it gives None.
    patience : Patience, optional
        How often and how long.
    clock, sleep, jitter : callable, optional
        Seconds that run; waits seconds; a random number from 0 to 1.

    """

    def __init__(
        self,
        session: Callable[[], Any],
        *,
        refresh: Callable[[Any, Any], None] | None = None,
        auth: Callable[[], Any] = lambda: None,
        patience: Patience | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._session = session
        self._refresh = refresh
        self._auth = auth
        self._patience = patience or Patience()
        self._clock = clock
        self._sleep = sleep
        self._jitter = jitter
        self._start()
        after_fork_in_child(self, "_start")

    def _start(self) -> None:
        self._in_flight = threading.BoundedSemaphore(MOST_IN_FLIGHT)

    def deadline(self) -> float:
        """Return when, by the clock, that ends what begins now."""
        return self._clock() + self._patience.deadline

    def get(
        self,
        url: str,
        accept: str,
        read: Read[T],
        *,
        most_bytes: int,
        retried: frozenset[int] = RETRIED,
        deadline: float | None = None,
        nothing: T | None = None,
    ) -> T:
        """Get what a URL leads to.

        Parameters
        ----------
        url : str
            Where.
        accept : str
            Media type wanted: one, for some servers look at the last only.
        read : callable
            Makes of the Content-Type and the chunks of a body what is returned; called in a
            thread of its own.
        most_bytes : int
            Longest body that is received, as it is when nothing of it is compressed.
        retried : frozenset of int
            HTTP status after which is tried again.
        deadline : float, optional
            When to give up, by the clock; for several requests that are one to who waits.
        nothing : object, optional
            What 204 No Content means; by default it is an error.

        Raises
        ------
        TransportError
            When it doesn't succeed in time.

        """
        began = self._clock()
        deadline = self.deadline() if deadline is None else deadline
        attempt, refreshed = 0, False
        while True:
            attempt += 1
            asked = 0.0  # seconds, by the server
            status: int | None = None
            may_retry, attempts = True, self._patience.attempts
            try:
                if not self._in_flight.acquire(timeout=max(0.0, deadline - self._clock())):
                    raise TimeoutError("other requests have taken all the time")
                try:
                    session = self._session()
                    auth = self._auth()
                    send = functools.partial(self._send, session, auth, url, accept, deadline)
                    extra = (LONGEST - 1) * self._patience.deadline
                    exchange = _Exchange(send, read, most_bytes, extra)
                    found = exchange.result(deadline - self._clock())
                    status = exchange.status
                    if status == HTTPStatus.OK:
                        return found
                    if status == HTTPStatus.NO_CONTENT:
                        if nothing is not None:
                            return nothing
                        raise ReplyError(f"the reply is empty: {_named(status)}")
                    asked, reason = exchange.asked, _named(status)
                    may_retry = status in retried
                finally:
                    self._in_flight.release()
            except ReplyError as error:
                reason, status = str(error), HTTPStatus.OK
                may_retry = not isinstance(error, WrongTypeError)
                attempts = min(attempts, self._patience.damaged)
            except Exception as error:
                if not _is_of_network(error):
                    raise
                reason = said(error)
                may_retry = not _is_lasting(error)
            if status == HTTPStatus.UNAUTHORIZED and not refreshed:
                refreshed = True
                if self._refresh is not None:
                    self._refresh(session, auth)
                continue
            backoff = min(
                self._patience.longest_wait, self._patience.first_wait * 2 ** (attempt - 1)
            )
            wait = max(asked, backoff * (1 + self._jitter()) / 2)
            if not may_retry or attempt >= attempts or self._clock() + wait >= deadline:
                tried = f"{attempt} attempt{'s' if attempt > 1 else ''}"
                if attempt > 1 or may_retry:
                    reason += f" ({tried} in {self._clock() - began:.1f} s)"
                # no cause: errors of requests hold the request, with its credentials, and
                # dask sends causes from process to process
                raise TransportError(reason, status)
            self._sleep(wait)

    def _send(self, session: Any, auth: Any, url: str, accept: str, deadline: float) -> Any:
        """Send a request, and follow where it is sent to, elsewhere without credentials."""
        home = url
        sender = session
        for _ in range(MOST_REDIRECTS + 1):
            left = max(0.001, deadline - self._clock())
            response = sender.get(
                url,
                headers={"Accept": accept, "Accept-Encoding": ACCEPTED_ENCODINGS},
                stream=True,
                allow_redirects=False,
                auth=auth if sender is session else None,
                verify=sender.verify,  # else an environment variable wins
                timeout=(min(self._patience.connect, left), min(self._patience.silence, left)),
            )
            if not response.is_redirect:
                return response
            url = urljoin(url, response.headers["Location"])
            response.close()
            sender = session if is_at_home(url, home) else _stranger(session, url)
        raise WrongTypeError(f"{MOST_REDIRECTS + 1} redirections, one after the other")


class _Exchange(Generic[T]):
    """A request and what is read of its reply, in a thread of its own, which who waits can leave.

    A socket limits the time until the next byte, but not that of bytes that drop in one by one,
    and the look-up of a host's name has no limit at all.

    Parameters
    ----------
    send : callable
        Sends the request and returns the response.
    read : callable
        See :meth:`Transport.get`.
    most_bytes : int
        Longest body that is read, as it is when nothing of it is compressed.
    extra : float
        Most seconds that are waited beyond the deadline, as long as bytes come steadily.

    """

    def __init__(
        self, send: Callable[[], Any], read: Read[T], most_bytes: int, extra: float
    ) -> None:
        self._send = send
        self._read = read
        self._most_bytes = most_bytes
        self._extra = extra
        self._done: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._received = 0
        self._is_left = False
        self.status = 0
        self.asked = 0.0
        """Seconds that the server asks to wait."""

    def result(self, seconds: float) -> T:
        """Return what is read of an answer; None where the server gives none.

        Raises
        ------
        TimeoutError
            When it isn't read in time.

        """
        if seconds <= 0:
            raise TimeoutError("no time is left for it")
        deadline = time.monotonic() + seconds
        thread = start(self._run, "dicomslide request")
        if thread is None:
            self._run()
        is_done = False
        try:
            while True:
                extra = min(self._received / SLOWEST, self._extra)
                left = deadline + extra - time.monotonic()
                try:
                    found, error = self._done.get(timeout=max(0.0, left))
                    is_done = True
                    break
                except Empty:
                    if left <= 0:
                        raise TimeoutError(
                            f"{self._received:,} bytes have come by the deadline"
                        ) from None
        finally:
            self._is_left = True
            if not is_done and thread is not None:
                hang_up(thread)
        if error is not None:
            raise error
        return found

    def _run(self) -> None:
        try:
            self._done.put((self._exchanged(), None))
        except BaseException as error:  # it is raised where it is waited for
            if not self._is_left:  # else its traceback would keep alive what it went through
                self._done.put((None, error))

    def _exchanged(self) -> T | None:
        with self._send() as response:
            self.status = response.status_code
            self.asked = _retry_after(response)
            if self.status != HTTPStatus.OK:
                return None
            return self._read(response.headers.get("Content-Type") or "", self._chunks(response))

    def _chunks(self, response: Any) -> Iterator[bytes]:
        """Yield the body as it arrives and is decompressed, as long as somebody waits for it."""
        length = 0
        for chunk in decompressed(self._pieces(response), _encoding_of(response)):
            length += len(chunk)
            if length > self._most_bytes:
                raise WrongTypeError(
                    f"the reply has more than the {self._most_bytes:,} bytes expected"
                )
            yield chunk

    def _pieces(self, response: Any) -> Iterator[bytes]:
        # iter_content waits for a whole chunk, and decompresses it whatever comes of it
        read1 = getattr(response.raw, "read1", None)
        for piece in (
            response.raw.stream(CHUNK, decode_content=False)
            if read1 is None
            else iter(lambda: read1(CHUNK, decode_content=False), b"")
        ):
            self._received += len(piece)
            if self._is_left:
                raise TimeoutError("nobody waits any more")
            yield piece


def _encoding_of(response: Any) -> str:
    return (response.headers.get("Content-Encoding") or "").strip().lower()


def public(text: str) -> str:
    """Leave out credentials of the URLs in a text."""
    return _CREDENTIALS.sub("", text)


def said(error: BaseException) -> str:
    """Return what an error says, without credentials of URLs and values of headers."""
    text, bad_header, _ = f"{type(error).__name__}: {error}".partition("header value")
    return public(text + bad_header)


def _named(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _retry_after(response: Any) -> float:
    """Return how many seconds the server asks to wait; 0 where it doesn't."""
    text = response.headers.get("Retry-After") or ""
    if text.strip().isdecimal():
        return float(text)
    try:
        when = parsedate_to_datetime(text)
        return when.replace(tzinfo=when.tzinfo or UTC).timestamp() - time.time()
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _is_of_network(error: Exception) -> bool:
    from urllib3.exceptions import HTTPError  # errors of a body are these, not those of requests

    return isinstance(error, (OSError, HTTPError))  # all of requests' own are OSError


def _is_lasting(error: Exception) -> bool:
    """Whether trying again is of no use: an impossible URL, a certificate that isn't trusted."""
    from requests import exceptions

    return isinstance(error, (exceptions.SSLError, ValueError))


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def is_at_home(url: str, home: str) -> bool:
    """Whether credentials for one URL may be sent to another."""
    try:
        at, of = _origin(url), _origin(home)
    except ValueError:  # a port that is no number, an address that is none
        return False
    return at == of or (at == ("https", of[1], 443) and of == ("http", of[1], 80))


def _stranger(session: Any, url: str) -> Any:
    """Return a session without the headers, cookies, parameters and credentials of another."""
    import requests

    settings = session.merge_environment_settings(url, {}, None, None, None)
    stranger = requests.Session()
    stranger.trust_env = False  # nor those of a .netrc
    stranger.proxies = settings["proxies"]
    stranger.verify = settings["verify"]
    return stranger
