"""Frames kept on disk: those that were put there or none, within bounds, whoever else writes."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import tempfile
import threading
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

import dicomslide
from dicomslide.backends.batching import encoded_frames, frame_database
from dicomslide.backends.batching.frame_database import NAME, FrameDatabase
from tests.support.forks import in_child

IMAGE = ("dicomweb", "https://host", "1.2.3")


def frames_of(numbers, size=1000):
    return {i: np.random.default_rng(i).bytes(size) for i in numbers}


@pytest.fixture
def database(tmp_path):
    return FrameDatabase(str(tmp_path / "kept"))


@contextlib.contextmanager
def opened(database):
    with contextlib.closing(sqlite3.connect(database._path)) as connection, connection:
        yield connection


def test_frames_come_back_as_they_were_put(database):
    frames = frames_of(range(1200)) | {1200: b""}
    assert database.get("a", [0, 1]) == {}
    database.put("a", frames, 10**8)
    database.put("b", {0: b"other"}, 10**8)
    assert database.get("a", [*frames, 9999]) == frames
    assert database.get("b", [0, 1]) == {0: b"other"}


def test_one_that_another_process_has_just_begun_has_no_frames_yet(database):
    database.put("a", {}, 10**8)
    with open(database._path, "wb"):
        pass
    assert database.get("a", [0]) == {}
    database.put("a", {0: b"some"}, 10**8)
    assert database.get("a", [0]) == {0: b"some"}


def test_those_used_least_recently_go_first_and_the_bound_holds(database, monkeypatch):
    now = [1_000_000]
    monkeypatch.setattr(frame_database.time, "time", lambda: now[0])
    for start in range(0, 200, 20):
        database.put("a", frames_of(range(start, start + 20)), 100_000)
        now[0] += 2 * frame_database.FRESH
        assert len(database.get("a", range(5))) == 5  # used again and again
        with opened(database) as connection:
            (held,) = connection.execute("SELECT sum(size) FROM frames").fetchone()
            assert held <= 100_000
            assert connection.execute("SELECT bytes FROM total").fetchone() == (held,)
    assert len(database.get("a", range(180, 200))) == 20
    assert len(database.get("a", range(5, 100))) == 0


def test_a_frame_larger_than_the_bound_is_not_kept(database):
    database.put("a", {0: bytes(101), 1: bytes(99)}, 100)
    assert set(database.get("a", [0, 1])) == {1}


def test_a_damaged_frame_counts_as_none(database):
    database.put("a", frames_of(range(3)), 10**6)
    with opened(database) as connection:
        connection.execute("UPDATE frames SET data = zeroblob(1000) WHERE frame = 1")
        connection.execute("UPDATE frames SET frame = 7 WHERE frame = 2")
    assert set(database.get("a", range(10))) == {0}
    database.put("a", frames_of(range(3)), 10**6)
    assert database.get("a", range(10)) == frames_of(range(3))


@pytest.mark.parametrize("damage", [b"", b"no database" * 1000])
def test_a_damaged_file_is_begun_anew(tmp_path, damage):
    frames = frames_of(range(3))
    with dicomslide.set_options(frame_folder=str(tmp_path)):
        (tmp_path / NAME).write_bytes(damage)
        for _ in range(2):
            encoded_frames.keep(IMAGE, frames)
        dicomslide.clear_all("received frames")
        assert encoded_frames.kept(IMAGE, range(5)) == frames


def test_a_folder_that_is_none_is_said_and_harms_nothing(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with (
        dicomslide.set_options(frame_folder=str(tmp_path / "file")),
        pytest.warns(dicomslide.CacheWarning, match="no frames are kept in"),
    ):
        encoded_frames.keep(IMAGE, frames_of([1]))
    assert encoded_frames.kept(IMAGE, [1]) == frames_of([1])  # in memory


# -- damage ----------------------------------------------------------------------------------


def is_well(database, frames):
    """Once it was noticed, what is put is there again, and counted."""
    found = database.get("a", range(50))
    assert all(data == frames.get(frame) for frame, data in found.items())
    for _ in range(2):  # a put may be what notices
        database.put("a", frames, 10**6)
    found = database.get("a", range(50))
    assert all(data == frames.get(frame) for frame, data in found.items())
    database.put("a", frames, 10**6)
    assert database.get("a", range(50)) == frames
    with opened(database) as connection:
        (held,) = connection.execute("SELECT sum(length(data)) FROM frames").fetchone()
        assert connection.execute("SELECT bytes FROM total").fetchone() == (held,)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE total SET bytes = 'much'",
        "UPDATE total SET bytes = NULL",
        "UPDATE total SET bytes = 10000000000",
        "UPDATE total SET bytes = -5000, negative = 5000",
        "UPDATE total SET bytes = 1.5, negative = -1.5",
        "UPDATE total SET bytes = x'00ff'",
        "DELETE FROM total",
        "INSERT INTO total VALUES (0, 0)",
        "DROP TABLE total",
        "DROP TRIGGER more",
        "DROP TRIGGER less",
        "DROP INDEX by_use",
        "DROP TABLE frames",
        "CREATE TABLE other (number INTEGER)",
        "ALTER TABLE frames RENAME COLUMN used TO last",
        "ALTER TABLE total RENAME COLUMN bytes TO octets",
        "UPDATE frames SET used = 'yesterday' WHERE frame < 9",
        "UPDATE frames SET used = NULL WHERE frame < 9",
        "UPDATE frames SET size = 7 WHERE frame = 3",
        "UPDATE frames SET size = 'x' WHERE frame = 3",
        "UPDATE frames SET data = 'text' WHERE frame = 4",
        "UPDATE frames SET data = CAST(x'ff00fe' AS TEXT) WHERE frame = 4",
        "UPDATE frames SET data = NULL WHERE frame = 4",
        "UPDATE frames SET data = 5 WHERE frame = 4",
        "UPDATE frames SET digest = 'text' WHERE frame = 5",
        "UPDATE frames SET digest = NULL WHERE frame = 5",
        "UPDATE frames SET frame = 'six' WHERE frame = 6",
        "UPDATE frames SET image = NULL WHERE frame = 7",
        "UPDATE frames SET image = CAST(x'ff' AS TEXT) WHERE frame = 7",
    ],
)
def test_what_sqlite_takes_for_sound_is_begun_anew_where_it_is_not(database, statement):
    frames = frames_of(range(20))
    database.put("a", frames, 10**6)
    with opened(database) as connection:
        connection.execute(statement)
    is_well(database, frames)


@pytest.mark.parametrize("seed", range(8))
def test_bytes_changed_at_random_give_no_error_and_no_wrong_frame(database, seed):
    rng = np.random.default_rng(seed)
    frames = frames_of(range(20), 700)
    for _ in range(25):
        database._remove()
        database.put("a", frames, 10**6)
        with open(database._path, "r+b") as file:
            content = bytearray(file.read())
            for _ in range(rng.integers(1, 12)):
                at = int(rng.integers(len(content) if rng.random() < 0.5 else 4096))
                content[at : at + 1] = rng.bytes(1)
            if rng.random() < 0.2:
                content = content[: rng.integers(1, len(content))]
            file.seek(0)
            file.write(content)
            file.truncate(len(content))
        try:
            is_well(database, frames)
        except AssertionError:
            with opened(database) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            raise


# -- others ----------------------------------------------------------------------------------


@pytest.fixture
def connects(monkeypatch):
    """How often a database is asked; where it is busy, nobody waits long."""
    connects = []
    connect = sqlite3.connect

    def counting(*args, **kwargs):
        connects.append(args)
        return connect(*args, **kwargs)

    monkeypatch.setattr(frame_database, "PATIENCE", 0.01)
    monkeypatch.setattr(frame_database.sqlite3, "connect", counting)
    return connects


def test_a_process_that_holds_the_lock_is_asked_once_in_a_while(database, connects, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(frame_database.time, "monotonic", lambda: now[0])
    database.put("a", frames_of([1]), 10**6)
    with contextlib.closing(sqlite3.connect(database._path)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        connects.clear()
        with pytest.warns(dicomslide.CacheWarning, match="no frames are read from .* locked"):
            assert database.get("a", [1]) == {}
        with pytest.warns(dicomslide.CacheWarning, match="no frames are kept in .* locked"):
            database.put("a", frames_of([2]), 10**6)
        for _ in range(5):  # in this process, by whatever object
            assert FrameDatabase(database._folder).get("a", [1]) == {}
            FrameDatabase(database._folder).put("a", frames_of([2]), 10**6)
        assert len(connects) == 2
    now[0] += frame_database.REST
    database.put("a", frames_of([2]), 10**6)
    assert database.get("a", [1, 2]) == frames_of([1, 2])


def test_while_another_process_writes_frames_are_read_all_the_same(database, connects, monkeypatch):
    database.put("a", frames_of([1]), 10**6)
    later = frame_database.time.time() + 2 * frame_database.FRESH
    monkeypatch.setattr(frame_database.time, "time", lambda: later)  # use is to be noted
    with contextlib.closing(sqlite3.connect(database._path)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        for _ in range(5):
            assert database.get("a", [1]) == frames_of([1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("journal", [False, True], ids=["closed", "left by a killed writer"])
def test_a_folder_that_can_only_be_read_gives_frames(monkeypatch, journal):
    later = frame_database.time.time() + 2 * frame_database.FRESH
    with tempfile.TemporaryDirectory() as folder:
        database = FrameDatabase(os.path.join(folder, "kept"))
        database.put("a", frames_of([1]), 10**6)
        if journal:
            kill_while_it_writes(database)
        for path, mode in ((database._path, 0o444), (database._folder, 0o555), (folder, 0o755)):
            os.chmod(path, mode)
        if journal:
            os.chmod(database._path + "-journal", 0o444)

        def read():
            if os.getuid() == 0:  # whom nothing is denied
                os.setuid(65534)
            monkeypatch.setattr(frame_database.time, "time", lambda: later)
            with pytest.raises(OSError, match="denied"):
                open(os.path.join(database._folder, "new"), "wb")  # noqa: SIM115
            found = [database.get("a", [1, 2]) for _ in range(3)]
            with pytest.warns(dicomslide.CacheWarning, match="no frames are kept in"):
                database.put("a", frames_of([3]), 10**6)
            return found, database.get("a", [1, 2, 3])

        try:
            assert in_child(read) == ([frames_of([1])] * 3, frames_of([1]))
        finally:
            os.chmod(database._folder, 0o755)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_database_that_can_only_be_read_is_not_removed_from_a_folder_that_can_be_written(
    monkeypatch,
):
    later = frame_database.time.time() + 2 * frame_database.FRESH
    with tempfile.TemporaryDirectory() as folder:
        database = FrameDatabase(os.path.join(folder, "kept"))
        database.put("a", frames_of([1]), 10**6)
        for path, mode in ((database._path, 0o444), (database._folder, 0o777), (folder, 0o755)):
            os.chmod(path, mode)

        def use():
            if os.getuid() == 0:  # whom nothing is denied
                os.setuid(65534)
            monkeypatch.setattr(frame_database.time, "time", lambda: later)  # use is to be noted
            found = database.get("a", [1])
            with pytest.warns(dicomslide.CacheWarning, match="no frames are dropped from"):
                database.drop("a", [1])
            return found

        assert in_child(use) == frames_of([1])
        assert database.get("a", [1]) == frames_of([1])


def kill_while_it_writes(database):
    """Leave the journal of a process that was killed before it was done."""

    def write():
        connection = sqlite3.connect(database._path, isolation_level=None)
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("BEGIN IMMEDIATE")
        for number in range(100, 200):
            row = ("a", number, 0, 3000, b"", bytes(3000))
            connection.execute("INSERT INTO frames VALUES (?, ?, ?, ?, ?, ?)", row)
        os._exit(0)

    pid = os.fork()
    if not pid:
        write()
    os.waitpid(pid, 0)
    assert os.path.getsize(database._path + "-journal") > 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_what_a_killed_writer_left_is_undone_by_the_next_one(database):
    database.put("a", frames_of([1]), 10**6)
    kill_while_it_writes(database)
    database.put("a", frames_of([2]), 10**6)
    assert database.get("a", [1, 2, 150]) == frames_of([1, 2])
    assert os.listdir(database._folder) == [NAME]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_that_is_forked_while_threads_use_the_database_uses_it(database):
    stop = threading.Event()

    def use(number):
        while not stop.is_set():
            database.put("a", frames_of([number, 0]), 10**6)
            database.get("a", range(10))

    def in_a_child():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            database.put("a", frames_of([7]), 10**6)
        return database.get("a", [0, 7])

    threads = [threading.Thread(target=use, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            assert in_child(in_a_child)[7] == frames_of([7])[7]
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o077])
@pytest.mark.parametrize(
    ("mode", "expected"), [(None, 0o600), (0o700, 0o600), (0o775, 0o664), (0o2770, 0o660)]
)
def test_who_may_use_the_folder_may_use_the_frames(tmp_path, umask, mode, expected):
    folder = tmp_path / "kept"
    if mode is not None:
        folder.mkdir()
        folder.chmod(mode)
    before = os.umask(umask)
    try:
        FrameDatabase(str(folder)).put("a", frames_of([1]), 10**6)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(folder / NAME).st_mode) == expected


def put_many(folder, start):
    database = FrameDatabase(folder)
    for number in range(start, start + 60):
        database.put("a", frames_of([number, 0]), 50_000)
        found = database.get("a", range(200))
        assert all(data == frames_of([frame])[frame] for frame, data in found.items())
    return len(found)


def test_processes_share_one_folder(tmp_path):
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        counts = [pool.submit(put_many, str(tmp_path), start) for start in (0, 100)]
        assert all(0 < each.result(60) <= 50 for each in counts)
