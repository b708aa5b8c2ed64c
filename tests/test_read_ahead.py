"""Frames that are decoded before they are asked for, told by the frames that are read."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.encaps import encapsulate, generate_frames

import dicomslide
from dicomslide.backends.part10.file import FileSource
from dicomslide.errors import FrameDecodeError
from dicomslide.header.tiling import TileGrid
from dicomslide.process.budget import cached_bytes
from dicomslide.readers.pools import submit_decoding
from dicomslide.readers.read_ahead import AHEAD, RECENT
from dicomslide.readers.trails import Trail
from tests.support.forks import in_child
from tests.support.small_jpeg import EDGE, FRAME, TILE, matrix_of

SIZE = 96
"""Rows and columns of a box: of two or three tiles along an axis."""


@pytest.fixture
def jpeg_file(small_jpeg_file, tmp_path):
    """A file of which no earlier test has left frames to be decoded."""
    return shutil.copy(small_jpeg_file, tmp_path / "level.dcm")


@pytest.fixture
def matrix(jpeg_file):
    with dicomslide.set_options(num_threads=3):
        yield matrix_of(jpeg_file)


@pytest.fixture
def readers(monkeypatch):
    """Names of the threads that read frames from files, by frame."""
    threads: dict[int, str] = {}
    original = FileSource.read_frames

    def noting(self, indices):
        threads.update(dict.fromkeys(indices, threading.current_thread().name))
        return original(self, indices)

    monkeypatch.setattr(FileSource, "read_frames", noting)
    return threads


@pytest.fixture
def foreseen(monkeypatch):
    """Frames that were to be decoded ahead."""
    frames: list[int] = []
    monkeypatch.setattr(AHEAD, "add", lambda image, more, nbytes, decode: frames.extend(more))
    return frames


def _check(matrix, jpeg_pixels, row, column, size=SIZE):
    key = slice(row, row + size), slice(column, column + size)
    np.testing.assert_array_equal(matrix[key], jpeg_pixels[key])


def _ahead():
    return cached_bytes().get("frames decoded ahead", 0) // FRAME


def _until(reached):
    for _ in range(3_000):
        if reached():
            return
        time.sleep(0.01)
    raise AssertionError("it didn't come to that in 30 seconds")


def _columns_of(frames):
    return sorted({frame % (EDGE // TILE) for frame in frames})


def test_what_follows_boxes_in_a_row_is_decoded_meanwhile(matrix, jpeg_pixels, readers):
    for column in (0, SIZE, 2 * SIZE):  # two equal steps
        _check(matrix, jpeg_pixels, 0, column)
    _until(lambda: _ahead() == 2)  # the column of tiles that the next box adds
    assert _columns_of(readers) == list(range(6))
    readers.clear()
    _check(matrix, jpeg_pixels, 0, 3 * SIZE)
    assert "MainThread" not in readers.values()
    _until(lambda: _columns_of(readers) == [6, 7])


def test_more_is_foreseen_as_long_as_it_comes():
    trail, grid = Trail(), TileGrid(64, 6_400, 64, 64)
    found = [
        trail.follow(range(64), range(column, column + 64), 8, grid)
        for column in range(0, 64 * 12, 64)
    ]
    counts = [None if tiles is None else len(tiles) for tiles in found]
    assert counts == [0, 0, 1, 2, 3, None, 6, None, None, None, 4, None]
    assert trail.follow(range(64), range(640, 704), 8, grid).tolist() == []
    assert trail.follow(range(64), range(640, 704), 8, grid) is None  # the same again


def test_the_end_of_a_row_leaves_none_of_it_out(matrix, jpeg_pixels, monkeypatch):
    original, gate = FileSource.read_frames, threading.Event()

    def waiting(self, indices):
        if threading.current_thread() is not threading.main_thread():
            gate.wait(30)
        return original(self, indices)

    left_out = []
    monkeypatch.setattr(FileSource, "read_frames", waiting)
    monkeypatch.setattr(AHEAD, "leave_out", left_out.append)
    with dicomslide.set_options(num_threads=2):
        for column in range(0, EDGE, TILE):
            if column == 3 * TILE:
                left_out.clear()
                gate.set()
            _check(matrix, jpeg_pixels, 0, column, TILE)
    assert not left_out


def test_a_read_does_not_wait_for_a_pool_that_is_busy(matrix, jpeg_pixels):
    gate = threading.Event()
    with dicomslide.set_options(num_threads=2):
        busy = submit_decoding(gate.wait, 30, calls=1, pool_size=1)
        try:
            _check(matrix, jpeg_pixels, 100, 100, 300)  # of 36 frames, for which help is asked
            assert not gate.is_set()
            assert not busy[0].done()
        finally:
            gate.set()


def test_readers_of_the_same_frame_own_their_jpeg_pixels(matrix, jpeg_pixels):
    for column in (0, TILE, 2 * TILE):
        _check(matrix, jpeg_pixels, 0, column, TILE)
    _until(lambda: _ahead() == 1)
    barrier = threading.Barrier(8)

    def read(_):
        barrier.wait()
        return matrix[:TILE, 3 * TILE : 4 * TILE]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(read, range(8)))
    for number, region in enumerate(found):
        np.testing.assert_array_equal(region, jpeg_pixels[:TILE, 3 * TILE : 4 * TILE])
        assert not any(np.shares_memory(region, other) for other in found[:number])
    _check(matrix, jpeg_pixels, 0, 3 * TILE - 8)


def test_ctrl_c_in_a_read_that_decodes_for_others_leaves_nothing_begun(
    matrix, jpeg_pixels, monkeypatch
):
    gate, begun, original = threading.Event(), threading.Event(), FileSource.read_frames

    def interrupted(self, indices):
        if threading.current_thread() is not threading.main_thread():
            begun.set()
            gate.wait(30)
        elif list(indices) != [2]:
            gate.set()
            raise KeyboardInterrupt
        return original(self, indices)

    with dicomslide.set_options(num_threads=2):
        for column in (0, TILE):
            _check(matrix, jpeg_pixels, 0, column, TILE)
        monkeypatch.setattr(FileSource, "read_frames", interrupted)
        _check(matrix, jpeg_pixels, 0, 2 * TILE, TILE)
        assert begun.wait(30)
        with pytest.raises(KeyboardInterrupt):  # while another thread decodes frame 3
            matrix[:TILE, 3 * TILE : 4 * TILE]
        monkeypatch.setattr(FileSource, "read_frames", original)
        for column in range(0, EDGE, TILE):
            _check(matrix, jpeg_pixels, 0, column, TILE)


@pytest.mark.parametrize("step", [(0, -40), (40, 0), (-40, 0)])
def test_any_direction_is_followed(matrix, jpeg_pixels, readers, step):
    row, column = (EDGE - SIZE if by < 0 else 0 for by in step)
    for number in range(3):
        _check(matrix, jpeg_pixels, row + number * step[0], column + number * step[1])
    met = {
        (r // TILE, c // TILE)
        for number in range(4)
        for r in range(row + number * step[0], row + number * step[0] + SIZE, 8)
        for c in range(column + number * step[1], column + number * step[1] + SIZE, 8)
    }
    _until(lambda: {divmod(frame, EDGE // TILE) for frame in readers} >= met)


def test_regions_of_a_slide_and_of_openslide_are_followed(jpeg_file, readers):
    slide = dicomslide.open_slide(jpeg_file)
    with dicomslide.set_options(num_threads=2), dicomslide.OpenSlide(jpeg_file) as other:
        for read in (
            lambda column: slide.get_image_region((0, column), 0, (SIZE, SIZE)),
            lambda column: other.read_region((column, 0), 0, (SIZE, SIZE)),
        ):
            dicomslide.clear_all()
            readers.clear()
            for column in (0, SIZE, 2 * SIZE):
                read(column)
            _until(lambda: _columns_of(readers) == list(range(6)))


@pytest.mark.parametrize("size", [TILE, SIZE])
def test_rows_of_boxes_decode_each_frame_once(matrix, jpeg_pixels, frames_read, size):
    for row, column in itertools.product(range(0, EDGE - size + 1, size), repeat=2):
        _check(matrix, jpeg_pixels, row, column, size)
    assert sorted(frames_read) == sorted(set(frames_read))


def test_threads_that_read_the_same_rows_get_right_jpeg_pixels(matrix, jpeg_pixels):
    boxes = list(itertools.product(range(0, EDGE - SIZE + 1, SIZE), repeat=2))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda box: _check(matrix, jpeg_pixels, *box), boxes * 4))


@pytest.mark.parametrize(
    "options",
    [dict(num_threads=1), dict(frame_cache_bytes=0), dict(frame_cache_bytes=8 * FRAME)],
)
def test_without_threads_or_room_nothing_is_decoded_ahead(matrix, jpeg_pixels, foreseen, options):
    for off in (options, {}):
        with dicomslide.set_options(**off):
            for column in (0, SIZE, 2 * SIZE):
                _check(matrix, jpeg_pixels, 0, column)
        assert bool(foreseen) == (not off)


def test_a_file_of_the_caller_is_read_only_when_asked(jpeg_file, jpeg_pixels, foreseen):
    with dicomslide.set_options(num_threads=3), open(jpeg_file, "rb") as file:
        for source in (file, jpeg_file):
            matrix = matrix_of(source)
            for column in (0, SIZE, 2 * SIZE):
                _check(matrix, jpeg_pixels, 0, column)
            assert bool(foreseen) == (source is jpeg_file)


def test_scattered_boxes_foresee_nothing(matrix, jpeg_pixels, foreseen):
    scattered = [(0, 0), (300, 200), (10, 330), (200, 40), (400, 130)]
    back_and_forth = [(0, 0), (0, 300)] * 3
    pairs = [(row, column) for column in range(0, 400, 80) for row in (0, 80)]
    for row, column in scattered + back_and_forth + pairs:
        _check(matrix, jpeg_pixels, row, column)
    assert foreseen == []
    dicomslide.clear_all("decoded frames")
    for column in (0, SIZE, 2 * SIZE):
        _check(matrix, jpeg_pixels, 0, column)
    assert foreseen


def test_frames_decoded_ahead_stay_within_their_part(matrix, jpeg_pixels):
    with dicomslide.set_options(frame_cache_bytes=8 * 13 * FRAME):
        for row, column in itertools.product(range(0, EDGE - SIZE + 1, 32), repeat=2):
            _check(matrix, jpeg_pixels, row, column)
            assert _ahead() <= 13


def _copies(path, folder, count):
    for number in range(count):
        (folder / f"{number}.dcm").write_bytes(path.read_bytes())
    return [matrix_of(folder / f"{number}.dcm") for number in range(count)]


def test_frames_that_nobody_takes_give_way(jpeg_file, tmp_path, matrix, jpeg_pixels, readers):
    with dicomslide.set_options(frame_cache_bytes=8 * 16 * FRAME):
        for other in _copies(jpeg_file, tmp_path, 4):  # each is left after three boxes
            for column in (0, SIZE, 2 * SIZE):
                _check(other, jpeg_pixels, 0, column)
        for _ in range(RECENT):
            matrix[:2, :2], matrix[:2, 2:4], matrix[:2, 4:6]
        readers.clear()
        for column in (0, SIZE, 2 * SIZE):
            _check(matrix, jpeg_pixels, 0, column)
        _until(lambda: _columns_of(readers) == list(range(6)))


def test_images_that_are_read_in_turn_displace_nothing(
    jpeg_file, tmp_path, jpeg_pixels, frames_read
):
    with dicomslide.set_options(num_threads=3, frame_cache_bytes=8 * 16 * FRAME):
        matrices = _copies(jpeg_file, tmp_path, 12)
        for column in range(0, EDGE - SIZE + 1, SIZE):
            for matrix in matrices:
                _check(matrix, jpeg_pixels, 0, column)
    columns = -(-(EDGE // SIZE * SIZE) // TILE)
    assert len(frames_read) <= 2 * columns * len(matrices)


@pytest.fixture
def damaged(jpeg_file, tmp_path):
    """The level with a frame that no decoder reads."""
    data = pydicom.dcmread(jpeg_file)
    frames = list(generate_frames(data.PixelData, number_of_frames=64))
    frames[6] = frames[6][: len(frames[6]) // 3]
    data.PixelData = encapsulate(frames)
    data.save_as(tmp_path / "damaged.dcm")
    return tmp_path / "damaged.dcm"


def test_a_bad_frame_is_an_error_of_the_box_that_has_it(damaged, jpeg_pixels):
    with dicomslide.set_options(num_threads=3):
        matrix = matrix_of(damaged)
        for column in range(0, 6 * TILE - SIZE + 1, SIZE):
            _check(matrix, jpeg_pixels, 0, column)
        for _ in range(2):
            with pytest.raises(FrameDecodeError, match=r"damaged\.dcm, frame 7"):
                matrix[:SIZE, 4 * SIZE : 5 * SIZE]
        filled = matrix_of(damaged, on_error="fill")
        for column in range(0, 6 * TILE - SIZE + 1, SIZE):
            _check(filled, jpeg_pixels, 0, column)
        with pytest.warns(dicomslide.FrameWarning, match="frame 7"):
            region = filled[:SIZE, 4 * SIZE : 5 * SIZE]
        np.testing.assert_array_equal(region[TILE:], jpeg_pixels[TILE:SIZE, 4 * SIZE : 5 * SIZE])


def test_a_child_decodes_what_its_parent_had_under_way(matrix, jpeg_pixels, monkeypatch):
    gate, begun = threading.Event(), threading.Event()
    original, parent = FileSource.read_frames, os.getpid()

    def waiting(self, indices):
        if os.getpid() == parent and threading.current_thread() is not threading.main_thread():
            begun.set()
            gate.wait(30)
        return original(self, indices)

    for column in (0, SIZE):
        _check(matrix, jpeg_pixels, 0, column)
    monkeypatch.setattr(FileSource, "read_frames", waiting)
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(_check, matrix, jpeg_pixels, 0, 2 * SIZE)
        assert begun.wait(30)
        try:
            assert in_child(
                lambda: bool(
                    (matrix[:SIZE, 3 * SIZE : EDGE] == jpeg_pixels[:SIZE, 3 * SIZE :]).all()
                )
            )
        finally:
            gate.set()
        under_way.result()
    _check(matrix, jpeg_pixels, 0, 3 * SIZE)


def test_a_program_that_ends_decodes_nothing_more(jpeg_file):
    code = """
import atexit, sys, time, dicomslide
from dicomslide.readers.frame_reader import FrameReader
from tests.support.small_jpeg import matrix_of

dicomslide.set_options(num_threads=2)
matrix = matrix_of(sys.argv[1])
original, begun = FrameReader._unasked, []

def slow(self, frame):
    begun.append(frame)
    time.sleep(1)
    return original(self, frame)

atexit.register(lambda: print(len(begun)))  # is called when other threads have ended
FrameReader._unasked = slow
matrix[:, :64], matrix[:, 64:128], matrix[:, 128:192]
while not begun:
    time.sleep(0.01)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(jpeg_file)], capture_output=True, text=True, timeout=60
    )
    assert (done.stderr, done.returncode) == ("", 0)
    assert int(done.stdout) < 4  # of eight frames


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    grid=st.tuples(*[st.integers(1, 400)] * 2, *[st.integers(1, 60)] * 2),
    first=st.tuples(*[st.integers(-50, 400)] * 2),
    size=st.tuples(*[st.integers(1, 90)] * 2),
    share=st.floats(-1, 1),
    axis=st.integers(0, 1),
    steps=st.integers(1, 8),
    count=st.integers(3, 20),
)
def test_tiles_that_follow_are_those_of_the_next_boxes(
    grid, first, size, share, axis, steps, count
):
    rows, columns, tile_rows, tile_columns = grid
    tiling = TileGrid(rows, columns, tile_rows, tile_columns)
    by = round(share * size[axis])
    step = (by, 0) if axis == 0 else (0, by)
    number_of = np.add.outer(
        np.arange(rows) // tile_rows * tiling.shape[1], np.arange(columns) // tile_columns
    )

    def met(number):
        box = tuple(
            slice(max(0, at + number * d), max(0, at + number * d + n))
            for at, d, n in zip(first, step, size, strict=True)
        )
        return set(number_of[box].ravel().tolist())

    trail, known = Trail(), set()
    for number in range(count):
        box = (
            range(at + number * d, at + number * d + n)
            for at, d, n in zip(first, step, size, strict=True)
        )
        tiles = trail.follow(*box, steps, tiling)
        if number < 2 or not by:
            assert tiles is None or not tiles.size
            continue
        if tiles is not None:
            assert tiles.size
            assert len(set(tiles.tolist())) == len(tiles)
            known |= set(tiles.tolist())
        assert known >= met(number + 1)
        assert known <= set().union(*(met(n) for n in range(number + steps + 1)))
