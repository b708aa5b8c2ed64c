"""Asking a server again: what fails is tried once more where that may help, within a deadline."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import random
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from dicomslide.backends.base import RangeError
from dicomslide.errors import DicomSlideError
from dicomslide.process.parallel import is_exiting, is_of_a_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence

__all__ = ["FORBIDDEN", "MISSING", "PATIENCE", "UNAUTHORIZED", "Fault", "Patience", "Place",
           "Reach", "ask", "awaited", "waiting_since"]  # fmt: skip

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Patience:
    """How long a read is tried for; in seconds."""

    deadline: float = 90.0
    """All attempts of a read together, with the waits between them."""
    request: float = 30.0
    """One request."""
    slowest: float = 2**18
    """Bytes a second that are still waited for: a read of many bytes has more time, in all and
    for each of its requests, which share the line."""
    attempts: int = 6
    first_wait: float = 0.25
    """Before the second attempt, at most; twice as long before each one that follows."""
    longest_wait: float = 10.0
    """Between attempts, unless the server names a longer one."""


PATIENCE = Patience()
STEP = 0.5
"""Seconds after which who waits looks whether anybody still wants it."""
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP status of what may go better the next time."""
UNAUTHORIZED, FORBIDDEN = 401, 403
MISSING = frozenset({404, 410})
_PASSING_ERRORS = frozenset(
    {errno.EBUSY, errno.EIO, errno.EAGAIN, errno.EPIPE, errno.ETIMEDOUT, errno.ECONNRESET}
)


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """An object, as a file system of fsspec reaches it."""

    filesystem: Any
    path: str
    inside: tuple[Place, ...] = ()
    """The object that the file system lies in, as an archive does."""
    archive: str | None = None
    """Version of what the file system lies in, when it was read."""
    generation: int = 0
    """How often credentials had been renewed when it was made."""


class Reach(Protocol):
    """The way to an object, whose credentials may have to be renewed."""

    def place(self) -> Place:
        """Return the object as this process reaches it."""
        ...

    def renew(self, refused: int) -> bool:
        """Ask for newer credentials than those of a generation; False where there is no way to."""
        ...

    def public(self, text: str) -> str:
        """Leave out of a text what nobody may see."""
        ...


class Fault(OSError):
    """An answer that isn't what was asked for.

    Parameters
    ----------
    reason : str
        What came instead.
    status : int, optional
        HTTP status, or the one that means the same; None where another answer may be right.
    wait : float, default: 0
        Seconds that the server wants to be left alone.

    """

    def __init__(self, reason: str, status: int | None = None, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.wait = wait


# -- trying again ----------------------------------------------------------------------------

_began: ContextVar[float | None] = ContextVar("began", default=None)


@contextlib.contextmanager
def waiting_since(began: float | None) -> Iterator[None]:
    """Count the time of what is asked for from when somebody began to wait, by time.monotonic.

    What is asked for a second time, in another way, has the time that is left of the first.
    """
    token = _began.set(began)
    try:
        yield
    finally:
        _began.reset(token)


def ask(
    reach: Reach,
    count: int,
    request: Callable[[Place, Sequence[int], float], list[Any]],
    *,
    nbytes: int = 0,
) -> list[Any]:
    """Ask for several things until all have come.

    Parameters
    ----------
    reach : Reach
        Where to.
    count : int
        Number of things.
    request : callable
        Gets the place, which things are wanted, and the seconds left; returns each of them, or
        the exception instead.
    nbytes : int, default: 0
        Bytes that are to come, all together.

    Raises
    ------
    RangeError
        When one can't be had, and trying again doesn't help or hasn't.

    """
    began = _began.get() or time.monotonic()
    deadline = PATIENCE.deadline + nbytes / PATIENCE.slowest
    found: list[Any] = [None] * count
    missing: Sequence[int] = range(count)
    renewed = False
    for attempt in itertools.count(1):
        left = deadline - (time.monotonic() - began)
        failures: dict[int, Exception] = {}
        generation, answers = _ask_once(reach, missing, request, left)
        for item, answer in zip(missing, answers, strict=True):
            if isinstance(answer, Exception):
                failures[item] = answer
            else:
                found[item] = answer
        if not failures:
            return found
        missing = list(failures)
        denied = any(_status(error) in (UNAUTHORIZED, FORBIDDEN) for error in failures.values())
        if denied and not renewed and reach.renew(generation):
            renewed = True
            continue
        if _is_exiting():
            deadline = 0.0
        hopeless = [item for item, error in failures.items() if not _may_pass(error)]
        wait = min(PATIENCE.first_wait * 2 ** (attempt - 1), PATIENCE.longest_wait)
        wait *= random.uniform(0.5, 1)  # or all that failed together would come back together
        wait = max([wait, *(getattr(error, "wait", 0.0) for error in failures.values())])
        spent = time.monotonic() - began
        if hopeless or attempt >= PATIENCE.attempts or spent + wait > deadline:
            item = (hopeless or missing)[0]
            reason = reach.public(_reason(failures[item]))
            if not hopeless:
                reason += f" (given up after {attempt} attempts in {spent:.1f} s)"
            raise RangeError(reason, item, _status(failures[item]))
        _pause(wait)
    raise AssertionError  # the loop has no end of its own


def _pause(seconds: float) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not _is_exiting():
        time.sleep(min(left, STEP))


def _is_exiting() -> bool:
    """Whether the interpreter exits, and waits for this thread, which has nobody left to read for.

    So it does for the threads of pools, dask's among them; a thread of somebody's own goes on.
    """
    return is_exiting() and is_of_a_pool()


def awaited(loop: Any, coroutine: Coroutine[Any, Any, T], limit: float) -> T:
    """Wait for a coroutine in the thread of an event loop; it ends with whoever waits.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
        Runs in another thread.
    coroutine : coroutine
        What to wait for.
    limit : float
        Seconds.

    Raises
    ------
    TimeoutError
        When the time is over, or the interpreter exits.

    """
    import asyncio  # late: it takes as long to import as a region takes to read from disk

    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    until = time.monotonic() + limit
    try:
        while True:
            try:
                return future.result(max(0.0, min(STEP, until - time.monotonic())))
            except TimeoutError:
                if future.done() or time.monotonic() >= until or _is_exiting():
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


_CREDENTIALS_MISSING = ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError")
"""Errors of botocore, which has no common base for them."""


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


def _may_pass(error: Exception) -> bool:
    status = _status(error)
    if isinstance(error, Fault) or status is not None:
        return status is None or status in PASSING
    if isinstance(error, (ConnectionError, TimeoutError, EOFError)):
        return True
    if isinstance(error, ValueError):  # a URL that is none, a certificate that isn't to be trusted
        return False
    if type(error).__module__.startswith(("aiohttp", "botocore", "fsspec")):
        return True  # a connection that broke; what a server says has a status
    return isinstance(error, OSError) and error.errno in _PASSING_ERRORS


def _reason(error: Exception) -> str:
    if isinstance(error, Fault):
        return error.reason
    if isinstance(error, FileNotFoundError):
        return "it isn't there"
    if isinstance(error, TimeoutError):
        return "no answer came in time"
    status = getattr(error, "status", None)
    if status is not None:  # the error's own text may quote the URL with all it holds
        return f"HTTP status {status}"
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
