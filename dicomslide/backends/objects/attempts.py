"""Requests for several parts of an object: those that fail are sent again, as the policy says."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from dicomslide.backends.base import RangeError
from dicomslide.backends.net import policy
from dicomslide.backends.net.policy import (
    DENIED,
    FORBIDDEN,
    STEP,
    TEMPORARY,
    UNAUTHORIZED,
    Failure,
    is_abandoned,
    retry,
    status_text,
)
from dicomslide.backends.net.redaction import said
from dicomslide.errors import DicomSlideError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence

__all__ = ["Fault", "Place", "Reach", "ask", "awaited", "deadline_of"]

T = TypeVar("T")

_TEMPORARY_ERRORS = frozenset(
    {errno.EBUSY, errno.EIO, errno.EAGAIN, errno.EPIPE, errno.ETIMEDOUT, errno.ECONNRESET}
)


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """An object, and the file system of fsspec that reaches it."""

    filesystem: Any
    path: str
    inside: tuple[Place, ...] = ()
    """The archive that the file system reads, if it reads one."""
    archive: str | None = None
    """Version of that archive when it was read."""
    generation: int = 0
    """Number of times that the credentials had been renewed."""


class Reach(Protocol):
    """The way to an object, whose credentials may have to be renewed."""

    def place(self) -> Place:
        """Return the object as this process reaches it."""
        ...

    def renew(self, refused: int) -> bool:
        """Renew the credentials of a generation; False where no function returns them."""
        ...

    def public(self, text: str) -> str:
        """Return a text without credentials."""
        ...


class Fault(OSError):
    """An answer other than the bytes that were asked for.

    Parameters
    ----------
    reason : str
        What came instead.
    status : int, optional
        HTTP status; None where the answer itself is damaged.
    wait : float, default: 0
        Seconds that the server asks to wait.
    is_lasting : bool, default: False
        Whether another attempt would end in the same way, whatever the status.

    """

    def __init__(
        self,
        reason: str,
        status: int | None = None,
        *,
        wait: float = 0.0,
        is_lasting: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.wait = wait
        self.is_lasting = is_lasting


_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


@contextlib.contextmanager
def deadline_of(deadline: float | None) -> Iterator[None]:
    """Give requests a deadline that began earlier, by the clock of the policy.

    Requests that are repeated in another way share the time of the first one.
    """
    token = _deadline.set(deadline)
    try:
        yield
    finally:
        _deadline.reset(token)


def ask(
    reach: Reach,
    count: int,
    request: Callable[[Place, Sequence[int], float], list[Any]],
    *,
    nbytes: int = 0,
) -> list[Any]:
    """Ask for several items until all have come.

    Parameters
    ----------
    reach : Reach
        The way to the object.
    count : int
        Number of items.
    request : callable
        Called with the place, the indices of the missing items, and the seconds left; returns each
        item, or an exception in its place.
    nbytes : int, default: 0
        Expected bytes of all items together.

    Raises
    ------
    RangeError
        When the attempts have ended without one of them.

    """
    bounds = policy.POLICY
    begun = _deadline.get()
    deadline = (bounds.begin() if begun is None else begun) + bounds.extra(nbytes)
    found: list[Any] = [None] * count
    missing: Sequence[int] = range(count)
    generation = first = 0

    def send(left: float) -> list[Any] | Failure:
        nonlocal missing, generation, first
        generation, answers = _ask_once(reach, missing, request, left)
        failures: dict[int, Failure] = {}
        for item, answer in zip(missing, answers, strict=True):
            if isinstance(answer, Exception):
                failures[item] = _failure_of(answer)
            else:
                found[item] = answer
        if not failures:
            return found
        missing = list(failures)
        first = min(missing, key=lambda item: _rank(failures[item]))
        return dataclasses.replace(
            failures[first],
            is_damaged=all(each.is_damaged for each in failures.values()),
            wait=max(each.wait for each in failures.values()),
        )

    result = retry(send, policy=bounds, deadline=deadline, renew=lambda: reach.renew(generation))
    if isinstance(result, Failure):
        raise RangeError(reach.public(result.reason), first, result.status)
    return result


def _rank(failure: Failure) -> int:
    """Return the order in which failures of several items decide how to go on."""
    if failure.status in DENIED:
        return 0
    return 2 if failure.is_temporary else 1


def awaited(loop: Any, coroutine: Coroutine[Any, Any, T], limit: float) -> T:
    """Run a coroutine in the thread of an event loop and wait for it; cancel it on any exception.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
        Event loop that runs in another thread.
    coroutine : coroutine
        What is run.
    limit : float
        Seconds.

    Raises
    ------
    TimeoutError
        When the time is over, or the interpreter exits.

    """
    import asyncio  # late: importing it takes as long as reading a region from disk

    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    until = time.monotonic() + limit
    try:
        while True:
            try:
                return future.result(max(0.0, min(STEP, until - time.monotonic())))
            except TimeoutError:
                if future.done() or time.monotonic() >= until or is_abandoned():
                    raise
    finally:
        future.cancel()


def _ask_once(
    reach: Reach,
    wanted: Sequence[int],
    request: Callable[[Place, Sequence[int], float], list[Any]],
    left: float,
) -> tuple[int, list[Any]]:
    generation = 0
    try:
        place = reach.place()
        generation = place.generation
        return generation, request(place, wanted, left)
    except (DicomSlideError, ImportError, MemoryError):
        raise
    except Exception as error:  # each file system has error types of its own
        return generation, [error] * len(wanted)


# -- errors of file systems ------------------------------------------------------------------

_CREDENTIALS_MISSING = ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError")
"""Errors of botocore, which has no common base for them."""


def _failure_of(error: Exception) -> Failure:
    status = _status(error)
    is_fault = isinstance(error, Fault)
    return Failure(
        _reason(error, status),
        status,
        is_temporary=_is_temporary(error, status),
        is_damaged=is_fault and status is None,
        wait=getattr(error, "wait", 0.0) if is_fault else 0.0,
    )


def _status(error: Exception) -> int | None:
    if isinstance(error, PermissionError):
        return FORBIDDEN
    if type(error).__name__ in _CREDENTIALS_MISSING:
        return UNAUTHORIZED
    if isinstance(error, FileNotFoundError):
        return 404
    for name in ("status", "status_code", "code"):
        value = getattr(error, name, None)
        if isinstance(value, (int, str)) and str(value).isdecimal():
            return int(value)
    return None


def _is_temporary(error: Exception, status: int | None) -> bool:
    if isinstance(error, Fault):
        return not error.is_lasting and (status is None or status in TEMPORARY)
    if status is not None:
        return status in TEMPORARY
    if isinstance(error, (ConnectionError, TimeoutError, EOFError)):
        return True
    if isinstance(error, ValueError):  # an invalid URL, a certificate that isn't trusted
        return False
    if type(error).__module__.startswith(("aiohttp", "botocore", "fsspec")):
        return True  # a broken connection: answers of a server have a status
    return isinstance(error, OSError) and error.errno in _TEMPORARY_ERRORS


def _reason(error: Exception, status: int | None) -> str:
    if isinstance(error, Fault):
        return error.reason
    if isinstance(error, FileNotFoundError):
        return "it isn't there"
    if isinstance(error, TimeoutError):
        return "no answer came in time"
    if getattr(error, "status", None) is not None and status is not None:
        return status_text(status)  # the error's own text may quote the URL with its query
    return said(error)
