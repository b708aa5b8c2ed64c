"""Mutual exclusion between processes on one store, by a file lock or by claims in the store."""

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

__all__ = ["CLAIMS", "LOCK", "claimed", "locked"]

LOCK = "dicomslide-export.lock"
"""Name of the lock file in a local folder."""
CLAIMS = "dicomslide-export.claims"
"""Folder of claims in a store without file locks."""
LEASE = 30.0
"""Seconds without renewal after which a claim is stale: its process was killed."""
MAX_WAIT = 2.0
"""Upper bound in seconds on the interval between two attempts to claim a store."""


class Store(Protocol):
    """Key-value store with read-after-write and list-after-write consistency, such as S3."""

    def read(self, key: str) -> bytes | None:
        """Return the value of a key, or None if absent."""
        ...

    def write(self, key: str, value: bytes) -> None:
        """Set the value of a key."""
        ...

    def delete(self, keys: list[str]) -> None:
        """Delete keys."""
        ...

    def names_in(self, folder: str) -> set[str]:
        """Return the names in a folder, without caching."""
        ...


@contextlib.contextmanager
def locked(folder: str) -> Iterator[bool]:
    """Hold an exclusive file lock on a folder, which the system releases if the process dies.

    Yields
    ------
    bool
        False if the system or the file system has no file locks.

    """
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
            except OSError:  # a file system without locks
                yield False
                return
            try:
                if not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    continue
            except FileNotFoundError:  # deleted by the previous holder of the lock
                continue
            try:
                yield True
            finally:
                with contextlib.suppress(FileNotFoundError):  # deleted together with the folder
                    os.unlink(path)
            return


@contextlib.contextmanager
def claimed(store: Store) -> Iterator[None]:
    """Hold an exclusive claim on a store without file locks.

    A process writes its claim, then lists the claims. It holds the store if its claim is the only
    one; otherwise it deletes its claim, waits, and tries again. Of two processes that claim at the
    same time, the one that lists last sees both claims, so that never both hold the store.
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
        wait = min(2 * wait, MAX_WAIT)
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
