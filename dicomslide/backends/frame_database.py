"""Frames kept on disk, for other processes and later ones: a database of SQLite, bounded."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["FrameDatabase"]

NAME = "frames-1.sqlite"
PATIENCE = 5.0
"""Seconds that are waited for another process that writes."""
AT_ONCE = 500
"""Frames that one statement names."""
FRESH = 3600
"""Seconds for which a frame that was used needn't be noted as used again."""

# `total` is kept by triggers, so that it is right whatever process writes
_SCHEMA = """
CREATE TABLE IF NOT EXISTS frames (
    image TEXT, frame INTEGER, used INTEGER, size INTEGER, digest BLOB, data BLOB,
    UNIQUE (image, frame)
);
CREATE INDEX IF NOT EXISTS by_use ON frames (used);
CREATE TABLE IF NOT EXISTS total (bytes INTEGER);
INSERT INTO total SELECT 0 WHERE NOT EXISTS (SELECT * FROM total);
CREATE TRIGGER IF NOT EXISTS more AFTER INSERT ON frames
    BEGIN UPDATE total SET bytes = bytes + new.size; END;
CREATE TRIGGER IF NOT EXISTS less AFTER DELETE ON frames
    BEGIN UPDATE total SET bytes = bytes - old.size; END;
"""
_TOTAL = "SELECT bytes FROM total"
_FIND = "SELECT rowid, frame, used, digest, data FROM frames WHERE image = ? AND frame IN ({})"
_KEEP = "INSERT OR IGNORE INTO frames VALUES (?, ?, ?, ?, ?, ?)"
_DROP = "DELETE FROM frames WHERE image = ? AND frame = ?"
_FORGET = """
DELETE FROM frames WHERE rowid IN (SELECT rowid FROM frames ORDER BY used, rowid LIMIT 16)
"""


class FrameDatabase:
    """Frames of many images, of which those go first that were used least recently.

    Nothing is open between calls: threads, forks and other processes are SQLite's to keep apart.

    Parameters
    ----------
    folder : str
        Where it is; made, for its owner alone, if it isn't there.

    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._path = os.path.join(folder, NAME)

    def get(self, image: str, frames: Sequence[int]) -> dict[int, bytes]:
        """Return those of an image's frames that are here; one that is damaged isn't.

        Raises
        ------
        OSError, sqlite3.Error
            When they can't be read.

        """
        with contextlib.suppress(FileNotFoundError):
            # empty while another thread or process begins it
            if os.path.getsize(self._path):
                return self._get(image, frames)
        return {}

    def _get(self, image: str, frames: Sequence[int]) -> dict[int, bytes]:
        now = int(time.time())
        found: dict[int, bytes] = {}
        damaged, used = [], []
        with self._opened() as database:
            for start in range(0, len(frames), AT_ONCE):
                some = frames[start : start + AT_ONCE]
                query = _FIND.format(",".join("?" * len(some)))
                for row, frame, last, digest, data in database.execute(query, (image, *some)):
                    if not isinstance(data, bytes) or digest != _digest(image, frame, data):
                        damaged.append((row,))
                        continue
                    found[frame] = data
                    if last < now - FRESH:
                        used.append((now, row))
            if damaged or used:
                with _writing(database):
                    database.executemany("DELETE FROM frames WHERE rowid = ?", damaged)
                    database.executemany("UPDATE frames SET used = ? WHERE rowid = ?", used)
        return found

    def put(self, image: str, frames: Mapping[int, bytes], most_bytes: int) -> None:
        """Keep frames of an image, and at most so many bytes of all.

        Raises
        ------
        OSError, sqlite3.Error
            When they can't be written.

        """
        now = int(time.time())
        rows = [
            (image, frame, now, len(data), _digest(image, frame, data), data)
            for frame, data in frames.items()
            if len(data) <= most_bytes
        ]
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        with self._opened() as database:
            database.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT")
            with _writing(database):
                database.executemany(_KEEP, rows)
                gone = 1
                while gone and database.execute(_TOTAL).fetchone()[0] > most_bytes:
                    gone = database.execute(_FORGET).rowcount

    def drop(self, image: str, frames: Sequence[int]) -> None:
        """Drop frames of an image.

        Raises
        ------
        OSError, sqlite3.Error
            When they can't be dropped.

        """
        with contextlib.suppress(FileNotFoundError):
            if os.path.getsize(self._path):
                rows = [(image, frame) for frame in frames]
                with self._opened() as database, _writing(database):
                    database.executemany(_DROP, rows)

    def remove(self) -> None:
        """Remove what is no database any more."""
        for end in ("", "-journal"):
            with contextlib.suppress(OSError):
                os.unlink(self._path + end)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(
            sqlite3.connect(self._path, timeout=PATIENCE, isolation_level=None)
        ) as database:
            # what a power cut damages is noticed, and only a cache
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


def _digest(image: str, frame: int, data: bytes) -> bytes:
    return hashlib.blake2b(f"{image} {frame} ".encode() + data, digest_size=16).digest()
