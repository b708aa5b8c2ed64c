"""Cache of frames on disk, shared by processes: a SQLite database, bounded in bytes."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import sqlite3
import time
from typing import TYPE_CHECKING
from urllib.request import pathname2url

from dicomslide.errors import CacheWarning
from dicomslide.process import shared_folder
from dicomslide.process.forks import ForkBarrier
from dicomslide.process.warn import warn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["FrameDatabase"]

NAME = "frames-1.sqlite"
PATIENCE = 0.5
"""Seconds to wait for another process that writes."""
REST = 60.0
"""Seconds for which a database isn't used after a failure: other processes may keep it busy."""
AT_ONCE = 500
"""Upper bound on frames per SQL statement."""
FRESH = 3600
"""Resolution in seconds of the time of last use."""
LARGEST = 2**28
"""Upper bound on the bytes of a cached frame: a larger size is damage."""

# triggers update `total`, so that it is right whichever process writes; it is stored twice, so that
# damage to it is detected
_SCHEMA = (
    """CREATE TABLE frames (
        image TEXT, frame INTEGER, used INTEGER, size INTEGER, digest BLOB, data BLOB,
        UNIQUE (image, frame)
    )""",
    "CREATE INDEX by_use ON frames (used)",
    "CREATE TABLE total (bytes INTEGER, negative INTEGER)",
    "INSERT INTO total VALUES (0, 0)",
    """CREATE TRIGGER more AFTER INSERT ON frames BEGIN
        UPDATE total SET bytes = bytes + new.size, negative = negative - new.size;
    END""",
    """CREATE TRIGGER less AFTER DELETE ON frames BEGIN
        UPDATE total SET bytes = bytes - old.size, negative = negative + old.size;
    END""",
)
_PARTS = "SELECT sql FROM sqlite_master WHERE sql NOT NULL"
_ALL_PARTS = {each.encode() for each in _SCHEMA if each.startswith("CREATE")}
_TOTAL = "SELECT bytes, negative FROM total"
_FIND = (
    "SELECT rowid, frame, used, size, digest, data FROM frames WHERE image = ? AND frame IN ({})"
)
_KEEP = "INSERT OR IGNORE INTO frames VALUES (?, ?, ?, ?, ?, ?)"
_NOTE = "UPDATE frames SET used = ? WHERE rowid = ?"
_DROP_ROW = "DELETE FROM frames WHERE rowid = ?"
_DROP = "DELETE FROM frames WHERE image = ? AND frame = ?"
_FORGET = """
DELETE FROM frames WHERE rowid IN (SELECT rowid FROM frames ORDER BY used, rowid LIMIT 16)
"""

_OF_OTHERS = {
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL, sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOLFS, sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_PROTOCOL,
}  # fmt: skip
"""Codes of errors that don't mean a damaged database."""
_NOT_TO_BE_LOCKED = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY}

_in_use = ForkBarrier()
"""Held while SQLite is used: a forked child would inherit SQLite's own locks as they are."""
_resting: dict[tuple[str, str], float] = {}
"""Time until which a failed database isn't used, by its path and the operation."""


class _DamageError(Exception):
    """A database has other tables or values than those of frames."""


class FrameDatabase:
    """LRU cache of frames of many images in a SQLite database.

    Nothing is open between calls; SQLite locks out other threads and processes. A damaged database
    is removed and created again. One that can't be used for another reason gives no frames, with a
    warning, and isn't used again for ``REST`` seconds.

    Parameters
    ----------
    folder : str
        Folder of the database; created, readable by its owner alone, if it doesn't exist. In an
        existing folder, the database gets the permissions of the folder.

    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._path = os.path.join(folder, NAME)

    def get(self, image: str, frames: Sequence[int]) -> dict[int, bytes]:
        """Return the cached ones among frames of an image; damaged frames are dropped."""
        now = int(time.time())
        found: dict[int, bytes] = {}
        used: list[tuple[int, int]] = []
        damaged: list[tuple[int]] = []

        def find(database: sqlite3.Connection) -> None:
            for start in range(0, len(frames), AT_ONCE):
                some = frames[start : start + AT_ONCE]
                query = _FIND.format(",".join("?" * len(some)))
                rows = database.execute(query, (image, *some))
                for row, frame, last, size, digest, data in rows:
                    if not isinstance(data, bytes) or size != len(data):
                        raise _DamageError
                    if digest != _digest(image, frame, data):
                        damaged.append((row,))
                        continue
                    found[frame] = data
                    if not isinstance(last, int) or abs(now - last) > FRESH:
                        used.append((now, row))

        def read() -> None:
            try:
                with self._opened() as database:
                    find(database)
            except sqlite3.Error as error:
                if _code(error) not in _NOT_TO_BE_LOCKED:
                    raise
                # no locks, or no permission to roll back the journal of a killed writer
                with self._opened(immutable=True) as database:
                    find(database)

        def note() -> None:
            with self._opened() as database, _writing(database):
                database.executemany(_DROP_ROW, damaged)
                database.executemany(_NOTE, used)

        self._try("read", read, "no frames are read from")
        if used or damaged:
            self._try("note", note)
        return found

    def put(self, image: str, frames: Mapping[int, bytes], most_bytes: int) -> None:
        """Cache frames of an image, within an upper bound on the bytes of all frames."""
        now = int(time.time())
        rows = [
            (image, frame, now, len(data), _digest(image, frame, data), data)
            for frame, data in frames.items()
            if len(data) <= min(most_bytes, LARGEST)
        ]

        def write() -> None:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            os.close(shared_folder.create(self._path))
            with self._opened() as database, _writing(database):
                parts = {each for (each,) in database.execute(_PARTS)}
                if not parts:
                    for statement in _SCHEMA:
                        database.execute(statement)
                elif parts != _ALL_PARTS:
                    raise _DamageError
                for row in rows:
                    is_new = database.execute(_KEEP, row).rowcount
                    if not is_new and not database.execute(_FIND.format("?"), row[:2]).fetchall():
                        raise _DamageError  # the index has a row that the table lacks
                gone = 1
                while _total(database) > most_bytes:
                    if not gone:
                        raise _DamageError
                    gone = database.execute(_FORGET).rowcount

        self._try("write", write, "no frames are kept in")

    def drop(self, image: str, frames: Sequence[int]) -> None:
        """Drop frames of an image."""

        def write() -> None:
            with self._opened() as database, _writing(database):
                database.executemany(_DROP, [(image, frame) for frame in frames])

        if self._is_begun():
            self._try("write", write, "no frames are dropped from")

    def _try(self, what: str, use: Callable[[], None], failing: str = "") -> None:
        """Use the database; a damaged one is removed, and used once more."""
        key = self._path, what
        if time.monotonic() < _resting.get(key, -math.inf):
            return
        for is_last in (False, True):
            try:
                with _in_use:
                    if what == "write" or self._is_begun():
                        use()
                return
            # Python can't decode all messages of SQLite that quote damaged schemas
            except (_DamageError, sqlite3.Error, UnicodeError, OSError, MemoryError) as error:
                if self._is_damage(error) and not is_last:
                    self._remove()
                    continue
                _resting[key] = time.monotonic() + REST
                if failing:
                    reason = str(error) or "it is damaged, and can't be begun anew"
                    warn(f"{failing} {self._folder}: {reason}", CacheWarning)
                return

    def _is_begun(self) -> bool:
        """Whether the file has content; it is empty while another thread or process creates it."""
        try:
            return os.path.getsize(self._path) > 0
        except FileNotFoundError:
            return False

    def _is_damage(self, error: Exception) -> bool:
        """Whether an error means a damaged database, not the system or other processes."""
        if _code(error) == sqlite3.SQLITE_READONLY:  # a damaged header gives this code, too
            return all(os.access(path, os.W_OK) for path in (self._folder, self._path))
        return not isinstance(error, (OSError, MemoryError)) and _code(error) not in _OF_OTHERS

    def _remove(self) -> None:
        for end in ("", "-journal"):
            with contextlib.suppress(OSError):
                os.unlink(self._path + end)

    @contextlib.contextmanager
    def _opened(self, *, immutable: bool = False) -> Iterator[sqlite3.Connection]:
        # SQLite opens what can't be written to for reading
        url = f"file:{pathname2url(os.path.abspath(self._path))}?"
        url += "immutable=1" if immutable else "mode=rw"
        with contextlib.closing(
            sqlite3.connect(url, timeout=PATIENCE, isolation_level=None, uri=True)
        ) as database:
            database.text_factory = bytes
            database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 2 * LARGEST)
            # damage by a power cut is detected by the digests
            database.execute("PRAGMA synchronous = OFF")
            yield database


@contextlib.contextmanager
def _writing(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _total(database: sqlite3.Connection) -> int:
    """Return the bytes of all frames."""
    rows = database.execute(_TOTAL).fetchall()
    if len(rows) == 1 and all(isinstance(value, int) for value in rows[0]):
        nbytes, negative = rows[0]
        if nbytes == -negative >= 0:
            return int(nbytes)
    raise _DamageError


def _code(error: Exception) -> int | None:
    """Return SQLite's primary code of an error; None where Python found it."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _digest(image: str, frame: int, data: bytes) -> bytes:
    return hashlib.blake2b(f"{image} {frame} ".encode() + data, digest_size=16).digest()
