"""Requests of DICOMweb through a session of requests, bounded in number, time and bytes.

The session holds the credentials, which are sent to the origin that they are for only.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
from http import HTTPStatus
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from dicomslide.backends.dicomweb.bodies import decompressed, hang_up
from dicomslide.backends.dicomweb.multipart import ReplyError, WrongTypeError
from dicomslide.backends.net import policy as policies
from dicomslide.backends.net.addresses import MOST_REDIRECTS, is_same_origin, redirect_of
from dicomslide.backends.net.policy import (
    STEP,
    TEMPORARY,
    Failure,
    Policy,
    is_abandoned,
    retry,
    retry_after,
    status_text,
)
from dicomslide.backends.net.redaction import said
from dicomslide.process.forks import after_fork_in_child
from dicomslide.process.parallel import start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    Read: TypeAlias = Callable[[str, Iterator[bytes]], "T"]

__all__ = ["Transport", "TransportError"]

T = TypeVar("T")

_OK = frozenset({int(HTTPStatus.OK)})
CHUNK = 2**18
ACCEPTED_ENCODINGS = "gzip, deflate"
MOST_IN_FLIGHT = 8
"""Upper bound on requests to one server at once, below the connections that a session keeps."""


class TransportError(OSError):
    """A request didn't succeed.

    Parameters
    ----------
    reason : str
        Why, and after how many attempts; without credentials.
    status : int, optional
        HTTP status, where the server answered.

    """

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason, status)
        self.reason = reason
        self.status = status

    def __str__(self) -> str:
        return self.reason


class Body(Protocol):
    """Body of a request, which can be sent again."""

    def __len__(self) -> int:
        """Return its length in bytes."""
        ...

    def __iter__(self) -> Iterator[bytes]:
        """Yield it from its beginning."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class _Request:
    """A request, as it is sent in each attempt."""

    method: Literal["GET", "POST"]
    url: str
    headers: dict[str, str]
    body: Body | None = None

    def sent(self, session: Any, url: str, **options: Any) -> Any:
        """Send it to a URL; return the response."""
        if self.method == "GET":
            return session.get(url, **options)
        # an iterator has no length: the header that is given says it
        return session.post(url, data=self.body, **options)


class Transport:
    """Sends requests through a session.

    Parameters
    ----------
    session : callable
        Returns the requests.Session; called for each attempt.
    refresh : callable, optional
        Called once for each request whose credentials the server refuses (401, 403), with the
        session and the `auth` that were used; returns whether `session` and `auth` now return
        newer ones.
    auth : callable, optional
        Returns what adds credentials to each request; None where the session does.
    policy : Policy, optional
        Bounds of attempts and time; those of the process if not given.

    """

    def __init__(
        self,
        session: Callable[[], Any],
        *,
        refresh: Callable[[Any, Any], bool] | None = None,
        auth: Callable[[], Any] = lambda: None,
        policy: Policy | None = None,
    ) -> None:
        self._session = session
        self._refresh = refresh
        self._auth = auth
        self._policy = policy or policies.POLICY
        self._start()
        after_fork_in_child(self, "_start")

    def _start(self) -> None:
        self._in_flight = threading.BoundedSemaphore(MOST_IN_FLIGHT)

    def deadline(self) -> float:
        """Return the deadline, by the clock of the policy, of a request that begins now."""
        return self._policy.begin()

    def get(
        self,
        url: str,
        accept: str,
        read: Read[T],
        *,
        most_bytes: int,
        retried: frozenset[int] = TEMPORARY,
        deadline: float | None = None,
        nothing: T | None = None,
    ) -> T:
        """Get the resource at a URL.

        Parameters
        ----------
        url : str
            URL.
        accept : str
            The one media type that is accepted: of several, some servers use only the last.
        read : callable
            Returns the result, given the Content-Type and the chunks of a body; called in a
            separate thread.
        most_bytes : int
            Upper bound on the length of the body after decompression.
        retried : frozenset of int
            HTTP status that is followed by another attempt.
        deadline : float, optional
            When to give up, by the clock of the policy; for several requests that share one.
        nothing : object, optional
            Result for 204 No Content; by default that is an error.

        Raises
        ------
        TransportError
            When the request doesn't succeed in time.

        """
        request = _Request("GET", url, {"Accept": accept})
        return self._asked(request, read, most_bytes, _OK, retried, deadline, nothing)

    def post(
        self,
        url: str,
        body: Body,
        *,
        content_type: str,
        accept: str,
        read: Read[T],
        most_bytes: int,
        answered: frozenset[int],
    ) -> T:
        """Post a body to a URL; again after a temporary failure, so that it must be idempotent.

        Parameters
        ----------
        url, accept, read, most_bytes
            See :meth:`get`.
        body : iterable of bytes
            The body, with its length; iterated for each attempt.
        content_type : str
            Its media type.
        answered : frozenset of int
            HTTP status of replies that are read.

        Raises
        ------
        TransportError
            When the request doesn't succeed in time; a long body has more of it.

        """
        deadline = self.deadline() + self._policy.extra(len(body))
        headers = {
            "Accept": accept,
            "Content-Type": content_type,
            "Content-Length": str(len(body)),
        }
        request = _Request("POST", url, headers, body)
        return self._asked(request, read, most_bytes, answered, TEMPORARY, deadline, None)

    def _asked(
        self,
        request: _Request,
        read: Read[T],
        most_bytes: int,
        answered: frozenset[int],
        retried: frozenset[int],
        deadline: float | None,
        nothing: T | None,
    ) -> T:
        """Send a request until it succeeds, or has no prospect."""
        deadline = self.deadline() if deadline is None else deadline
        used: tuple[Any, Any] = (None, None)

        def send(left: float) -> tuple[T] | Failure:
            nonlocal used
            if not self._in_flight.acquire(timeout=max(0.0, left)):
                return Failure("other requests have taken all the time", is_temporary=True)
            try:
                used = self._session(), self._auth()
                send_once = functools.partial(self._send, *used, request, deadline)
                exchange = _Exchange(send_once, read, most_bytes, self._policy, answered)
                found = exchange.result(self._policy.left(deadline))
                return _result_of(exchange, found, nothing, answered, retried)
            except ReplyError as error:
                is_temporary = not isinstance(error, WrongTypeError)
                return Failure(str(error), HTTPStatus.OK, is_temporary, is_damaged=True)
            except Exception as error:
                if not _is_of_network(error):
                    raise
                return Failure(said(error), is_temporary=not _is_lasting(error))
            finally:
                self._in_flight.release()

        def renew() -> bool:
            return self._refresh is not None and self._refresh(*used)

        result = retry(send, policy=self._policy, deadline=deadline, renew=renew)
        if isinstance(result, Failure):
            # no cause: errors of requests hold the request, with its credentials, and dask
            # pickles causes
            raise TransportError(result.reason, result.status)
        return result[0]

    def _send(self, session: Any, auth: Any, request: _Request, deadline: float) -> Any:
        """Send a request and follow redirects; without credentials to another origin."""
        policy, sender = self._policy, session
        url = home = request.url
        for _ in range(MOST_REDIRECTS + 1):
            left = max(0.001, policy.left(deadline))
            response = request.sent(
                sender,
                url,
                headers={**request.headers, "Accept-Encoding": ACCEPTED_ENCODINGS},
                stream=True,
                allow_redirects=False,
                auth=auth if sender is session else None,
                verify=sender.verify,  # otherwise an environment variable has precedence
                timeout=(min(policy.connect, left), min(policy.silence, left)),
            )
            try:
                target = redirect_of(url, response.status_code, response.headers.get("Location"))
            except ValueError as error:
                response.close()
                raise WrongTypeError(str(error)) from None
            if target is None:
                return response
            response.close()
            if request.method == "POST" and not is_same_origin(target, home):
                raise WrongTypeError("a redirect to another server, to which nothing is sent")
            url = target
            sender = session if is_same_origin(url, home) else _stranger(session, url)
        raise WrongTypeError(f"more than {MOST_REDIRECTS} redirects")


def _result_of(
    exchange: _Exchange[T],
    found: T | None,
    nothing: T | None,
    answered: frozenset[int],
    retried: frozenset[int],
) -> tuple[T] | Failure:
    """Return the result of an exchange that was completed, in a tuple."""
    status = exchange.status
    if status in answered:
        return (found,)  # type: ignore[return-value]
    if status == HTTPStatus.NO_CONTENT:
        if nothing is not None:
            return (nothing,)
        raise ReplyError(f"the reply is empty: {status_text(status)}")
    return Failure(status_text(status), status, status in retried, wait=exchange.asked)


class _Exchange(Generic[T]):
    """A request and the reading of its reply, in a separate thread that can be abandoned.

    The timeout of a socket limits the time until the next byte, but not that of a reply that is
    sent byte by byte. The resolution of a host name has no timeout.

    Parameters
    ----------
    send : callable
        Sends the request and returns the response.
    read : callable
        See :meth:`Transport.get`.
    most_bytes : int
        Upper bound on the length of the body after decompression.
    policy : Policy
        Determines how much received bytes extend the deadline.
    answered : frozenset of int
        HTTP status of replies that are read.

    """

    def __init__(
        self,
        send: Callable[[], Any],
        read: Read[T],
        most_bytes: int,
        policy: Policy,
        answered: frozenset[int],
    ) -> None:
        self._answered = answered
        self._send = send
        self._read = read
        self._most_bytes = most_bytes
        self._policy = policy
        self._done: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._received = 0
        self._is_left = False
        self.status = 0
        self.asked = 0.0
        """Seconds that the server asks to wait."""

    def result(self, seconds: float) -> T:
        """Return the result of reading the reply; None where its status isn't among the answers.

        Raises
        ------
        TimeoutError
            When the reply isn't read in time, or the interpreter exits.

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
                extra = self._policy.extra(self._received)
                left = deadline + extra - time.monotonic()
                try:
                    found, error = self._done.get(timeout=max(0.0, min(left, STEP)))
                    is_done = True
                    break
                except Empty:
                    if left <= 0 or is_abandoned():
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
        except BaseException as error:  # raised again in the waiting thread
            if not self._is_left:  # otherwise its traceback would keep the reply alive
                self._done.put((None, error))

    def _exchanged(self) -> T | None:
        with self._send() as response:
            self.status = response.status_code
            self.asked = retry_after(response.headers.get("Retry-After"), self._policy.clock)
            if self.status not in self._answered:
                return None
            return self._read(response.headers.get("Content-Type") or "", self._chunks(response))

    def _chunks(self, response: Any) -> Iterator[bytes]:
        """Yield the decompressed body as it arrives, until the exchange is abandoned."""
        length = 0
        for chunk in decompressed(self._pieces(response), _encoding_of(response)):
            length += len(chunk)
            if length > self._most_bytes:
                raise WrongTypeError(
                    f"the reply has more than the {self._most_bytes:,} bytes expected"
                )
            yield chunk

    def _pieces(self, response: Any) -> Iterator[bytes]:
        # iter_content waits for a whole chunk, and decompresses it without a bound
        read1 = getattr(response.raw, "read1", None)
        for piece in (
            response.raw.stream(CHUNK, decode_content=False)
            if read1 is None
            else iter(lambda: read1(CHUNK, decode_content=False), b"")
        ):
            self._received += len(piece)
            if self._is_left:
                raise TimeoutError("the request was abandoned")
            yield piece


def _encoding_of(response: Any) -> str:
    return (response.headers.get("Content-Encoding") or "").strip().lower()


def _is_of_network(error: Exception) -> bool:
    from urllib3.exceptions import HTTPError  # errors of a body are these, not those of requests

    return isinstance(error, (OSError, HTTPError))  # all of requests' own are OSError


def _is_lasting(error: Exception) -> bool:
    """Whether another attempt has no prospect: an invalid URL, a certificate that isn't trusted."""
    from requests import exceptions

    return isinstance(error, (exceptions.SSLError, ValueError))


def _stranger(session: Any, url: str) -> Any:
    """Return a session with the proxies and certificates of another, and nothing else of it."""
    import requests

    settings = session.merge_environment_settings(url, {}, None, None, None)
    stranger = requests.Session()
    stranger.trust_env = False  # which excludes credentials of a .netrc
    stranger.proxies = settings["proxies"]
    stranger.verify = settings["verify"]
    return stranger
