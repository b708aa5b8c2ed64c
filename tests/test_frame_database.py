"""Frames kept on disk: those that were put there or none, within bounds, whoever else writes."""

from __future__ import annotations

import contextlib
import sqlite3
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

import dicomslide
from dicomslide.backends import encoded_frames, frame_database
from dicomslide.backends.frame_database import NAME, FrameDatabase

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
        encoded_frames._memory.clear()
        assert encoded_frames.kept(IMAGE, range(5)) == frames


def test_a_folder_that_is_none_is_said_and_harms_nothing(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with (
        dicomslide.set_options(frame_folder=str(tmp_path / "file")),
        pytest.warns(dicomslide.CacheWarning, match="no frames are kept in"),
    ):
        encoded_frames.keep(IMAGE, frames_of([1]))
    assert encoded_frames.kept(IMAGE, [1]) == frames_of([1])  # in memory


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
