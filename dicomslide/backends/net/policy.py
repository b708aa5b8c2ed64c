"""Retry policy of all network clients: attempts, waits, deadline, and the meaning of status codes.

Each client turns the outcome of one request into a result or a :class:`Failure`; :func:`retry`
decides what follows.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import time
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar

from dicomslide.process.parallel import is_exiting, is_of_a_pool

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DENIED", "FORBIDDEN", "MISSING", "POLICY", "STEP", "TEMPORARY", "UNAUTHORIZED",
           "Clock", "Failure", "Policy", "is_abandoned", "retry", "retry_after",
           "status_text"]  # fmt: skip

T = TypeVar("T")

UNAUTHORIZED, FORBIDDEN = 401, 403
DENIED = frozenset({UNAUTHORIZED, FORBIDDEN})
"""HTTP status of a server that doesn't accept the credentials, or lacks any."""
MISSING = frozenset({404, 410})
"""HTTP status of something that isn't there."""
TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP status of failures that may not occur again."""
STEP = 0.5
"""Interval in seconds at which waiting threads check whether the interpreter exits."""


def is_abandoned() -> bool:
    """Whether the interpreter exits and only waits for this thread, one of a pool.

    dask's threads are of pools. A thread that the user started goes on.
    """
    return is_exiting() and is_of_a_pool()


def _sleep(seconds: float) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not is_abandoned():
        time.sleep(min(left, STEP))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Time, waiting and chance, as the policy uses them; tests replace them."""

    monotonic: Callable[[], float] = time.monotonic
    """Seconds on a clock that never goes back."""
    time: Callable[[], float] = time.time
    """Seconds since 1970, UTC, for dates that servers name."""
    sleep: Callable[[float], None] = _sleep
    """Wait for a number of seconds."""
    jitter: Callable[[], float] = random.random
    """A random number from 0 to 1."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Bounds of the attempts of a request; times in seconds."""

    attempts: int = 6
    """Upper bound on attempts."""
    damaged: int = 3
    """The same where replies arrive whole, but not with what was asked for."""
    deadline: float = 120.0
    """For all attempts together, with the waits between them."""
    slowest: float = 100_000.0
    """Bytes a second that a line must give: many bytes extend the deadline by their number divided
    by this."""
    longest: float = 5.0
    """Upper bound on the extended deadline, as a multiple of `deadline`."""
    first_wait: float = 0.25
    """Upper bound on the wait before the second attempt; doubled before each further one."""
    longest_wait: float = 10.0
    """Upper bound on a wait, unless the server asks for a longer one."""
    connect: float = 10.0
    """For a connection."""
    silence: float = 30.0
    """For the next bytes of a reply; for ranges of an object, the time beside `slowest`."""
    clock: Clock = Clock()

    def begin(self) -> float:
        """Return the deadline, by the clock, of a request that begins now."""
        return self.clock.monotonic() + self.deadline

    def left(self, deadline: float) -> float:
        """Return the seconds until a deadline."""
        return deadline - self.clock.monotonic()

    def extra(self, nbytes: int) -> float:
        """Return the seconds by which a number of bytes extends the deadline."""
        return min(nbytes / self.slowest, (self.longest - 1) * self.deadline)

    def backoff(self, attempt: int) -> float:
        """Return the wait after an attempt, random so that clients don't come back all at once."""
        bound = min(self.first_wait * 2 ** (attempt - 1), self.longest_wait)
        return bound * (1 + self.clock.jitter()) / 2


POLICY = Policy()
"""The policy of this process."""


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """Outcome of a request that didn't succeed."""

    reason: str
    """Why, without credentials."""
    status: int | None = None
    """HTTP status; None where no answer came."""
    is_temporary: bool = False
    """Whether another attempt may succeed."""
    is_damaged: bool = False
    """Whether a reply came, but not with what was asked for."""
    wait: float = 0.0
    """Seconds that the server asked to wait (Retry-After)."""


def retry(
    send: Callable[[float], T | Failure],
    *,
    policy: Policy,
    deadline: float,
    renew: Callable[[], bool] = lambda: False,
) -> T | Failure:
    """Send a request until it succeeds, or until another attempt has no prospect.

    Parameters
    ----------
    send : callable
        Makes one attempt within the given number of seconds.
    policy : Policy
        Bounds.
    deadline : float
        When to give up, by the clock of the policy.
    renew : callable, optional
        Called once, when the server has refused the credentials (401, 403); returns whether there
        are newer ones. Then the next attempt follows at once.

    Returns
    -------
    object or Failure
        The result, or the last failure, whose reason says how many attempts were made.

    """
    began = policy.clock.monotonic()
    is_renewed = False
    for attempt in itertools.count(1):
        result = send(policy.left(deadline))
        if not isinstance(result, Failure):
            return result
        if result.status in DENIED and not is_renewed:
            is_renewed = True
            if renew():
                continue
        attempts = min(policy.attempts, policy.damaged) if result.is_damaged else policy.attempts
        wait = max(result.wait, policy.backoff(attempt))
        is_last = attempt >= attempts or wait >= policy.left(deadline) or is_abandoned()
        if not result.is_temporary or is_last:
            seconds = policy.clock.monotonic() - began
            tried = f" ({attempt} attempt{'s' if attempt > 1 else ''} in {seconds:.1f} s)"
            is_worth_saying = attempt > 1 or result.is_temporary
            return dataclasses.replace(
                result, reason=result.reason + (tried if is_worth_saying else "")
            )
        policy.clock.sleep(wait)
    raise AssertionError  # the loop has no end of its own


def retry_after(value: str | None, clock: Clock) -> float:
    """Return the seconds that a Retry-After header asks to wait; 0 where it is none.

    It is a number of seconds or an HTTP date (RFC 9110, 10.2.3), which is GMT also where it names
    no zone.
    """
    text = (value or "").strip()
    if text.isdecimal():
        return float(text)
    try:
        when = parsedate_to_datetime(text)
        return max(0.0, when.replace(tzinfo=when.tzinfo or UTC).timestamp() - clock.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0


def status_text(status: int) -> str:
    """Return an HTTP status with its phrase: ``503 Service Unavailable``."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"HTTP status {status}"
