"""One process at a time: what begins an export, or makes an image of it, has a store to itself."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
import uuid
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CLAIMS", "LOCK", "alone", "locked"]

LOCK = "dicomslide-export.lock"
"""File in a folder that is locked."""
CLAIMS = "dicomslide-export.claims"
"""Where they lie in a store that knows no locks."""
LEASE = 30.0
"""Seconds after which a claim that isn't renewed is that of a process that was killed."""
LONGEST_WAIT = 2.0
"""Seconds between two looks at who has a store."""


class Store(Protocol):
    """Anything that shows at once what was written to it, as objects in buckets do."""

    def read(self, key: str) -> bytes | None:
        """Return what is stored by a name, or None."""
        ...

    def write(self, key: str, value: bytes) -> None:
        """Store something by a name."""
        ...

    def delete(self, keys: list[str]) -> None:
        """Delete what is stored by some names."""
        ...

    def names_in(self, folder: str) -> set[str]:
        """Return the names that are stored in a folder, as they are now."""
        ...


@contextlib.contextmanager
def locked(folder: str) -> Iterator[bool]:
    """Have a folder to oneself, by a lock that ends with its process; False where there is none."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield False
        return
    path = os.path.join(folder, LOCK)
    os.makedirs(folder, exist_ok=True)
    while True:
        with open(path, "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:  # a file system that knows none
                yield False
                return
            try:
                if not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    continue
            except FileNotFoundError:  # deleted by who had it before
                continue
            try:
                yield True
            finally:
                with contextlib.suppress(FileNotFoundError):  # with the folder
                    os.unlink(path)
            return


@contextlib.contextmanager
def alone(store: Store) -> Iterator[None]:
    """Have a store to oneself that knows no locks.

    Who finds no other claim beside the own one has the store: of two that claim it at the same
    time, the one that looks later sees both, at least. Who sees another withdraws for a while.
    """
    claim = uuid.uuid4().hex
    renewals: dict[str, tuple[bytes | None, float]] = {}
    wait = 0.01
    while True:
        store.write(f"{CLAIMS}/{claim}", b"0")
        others = store.names_in(CLAIMS) - {claim}
        if not others:
            break
        store.delete([f"{CLAIMS}/{claim}"])
        now = time.monotonic()
        for other in others:
            renewal = store.read(f"{CLAIMS}/{other}")
            last, since = renewals.get(other, (None, now))
            if renewal is not None and renewal == last and now - since > LEASE:
                store.delete([f"{CLAIMS}/{other}"])
            elif renewal != last:
                renewals[other] = renewal, now
        time.sleep(random.uniform(wait / 2, wait))
        wait = min(2 * wait, LONGEST_WAIT)
    done = threading.Event()

    def renew() -> None:
        renewal = 0
        while not done.wait(LEASE / 5):
            renewal += 1
            with contextlib.suppress(OSError):
                store.write(f"{CLAIMS}/{claim}", str(renewal).encode())

    renewing = threading.Thread(target=renew, name="dicomslide export", daemon=True)
    renewing.start()
    try:
        yield
    finally:
        done.set()
        renewing.join()
        store.delete([f"{CLAIMS}/{claim}"])
