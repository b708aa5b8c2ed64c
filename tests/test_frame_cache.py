"""Which decoded frames a process keeps, told by the frames that are read from the file."""

from __future__ import annotations

import functools
import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dicomslide
from dicomslide.openslide import OpenSlideCache
from dicomslide.process.budget import cached_bytes
from dicomslide.process.frame_cache import RECENT, FrameCache
from dicomslide.testing import write_slide
from tests.support.small_jpeg import EDGE, FRAME, FRAMES, TILE, matrix_of


@pytest.fixture
def matrix(small_jpeg_file):
    return matrix_of(small_jpeg_file)


def _kept():
    return cached_bytes().get("decoded frames", 0)


def _squares(size, step=None):
    return itertools.product(range(0, EDGE - size + 1, step or size), repeat=2)


def _read(matrix, row, column, size):
    return matrix[row : row + size, column : column + size]


@pytest.mark.parametrize("size", [40, 100, 112])
def test_tiles_in_raster_order_decode_each_frame_once(matrix, jpeg_pixels, frames_read, size):
    for row, column in _squares(size):
        np.testing.assert_array_equal(
            _read(matrix, row, column, size), jpeg_pixels[row : row + size, column : column + size]
        )
    assert len(frames_read) == len(set(frames_read))


def test_a_window_that_moves_decodes_each_frame_once(matrix, jpeg_pixels, frames_read):
    for column in range(0, EDGE - 130, 16):
        np.testing.assert_array_equal(
            _read(matrix, 70, column, 130), jpeg_pixels[70:200, column : column + 130]
        )
    assert len(frames_read) == len(set(frames_read))


def test_whole_tiles_are_kept_when_they_are_wanted_again(matrix, jpeg_pixels, frames_read):
    for epoch, kept in enumerate((0, FRAMES * FRAME, FRAMES * FRAME)):
        frames_read.clear()
        for row, column in _squares(TILE):
            np.testing.assert_array_equal(
                _read(matrix, row, column, TILE),
                jpeg_pixels[row : row + TILE, column : column + TILE],
            )
        assert _kept() == kept
        assert len(frames_read) == (FRAMES if epoch < 2 else 0)


def test_regions_of_whole_tiles_are_kept_while_there_is_room(matrix, jpeg_pixels, frames_read):
    with dicomslide.set_options(frame_cache_bytes=20 * FRAME):
        for row, column in _squares(2 * TILE):  # of four frames each
            _read(matrix, row, column, 2 * TILE)
        assert _kept() == 20 * FRAME
        frames_read.clear()
        np.testing.assert_array_equal(_read(matrix, 0, 0, 2 * TILE), jpeg_pixels[:128, :128])
        assert frames_read == []


def test_whole_tiles_by_their_index_are_kept_when_they_are_wanted_again(matrix, frames_read):
    first, kept = matrix[9], _kept()
    second = matrix[9]
    assert (kept, _kept(), len(frames_read)) == (0, FRAME, 2)
    second[...] = 0  # its owner may write into it
    np.testing.assert_array_equal(matrix[9], first)
    assert len(frames_read) == 2


def test_a_region_that_is_read_again_comes_from_memory(matrix, jpeg_pixels, frames_read):
    _read(matrix, 20, 30, 300)
    frames_read.clear()
    region = _read(matrix, 20, 30, 300)
    np.testing.assert_array_equal(region, jpeg_pixels[20:320, 30:330])
    assert frames_read == []
    region[...] = 0
    np.testing.assert_array_equal(_read(matrix, 20, 30, 300), jpeg_pixels[20:320, 30:330])


def test_a_stream_keeps_nothing_and_lets_nothing_go(matrix, frames_read):
    _read(matrix, 100, 100, 60)
    kept = _kept()
    assert kept == 4 * FRAME
    with dicomslide.set_options(frame_cache_bytes=4 * FRAME * FRAMES - 1):
        matrix[...]
        list(matrix)
        matrix.to_dask(chunks=128).compute(scheduler="threads")
        for index in range(FRAMES):
            matrix[index]
        assert _kept() == kept
        frames_read.clear()
        _read(matrix, 100, 100, 60)
        assert frames_read == []


def test_a_pass_over_new_frames_leaves_a_full_cache_as_it_is(matrix, frames_read):
    corners = [(60, 60), (60, 188), (188, 60), (188, 188)]
    with dicomslide.set_options(frame_cache_bytes=16 * FRAME):
        for row, column in corners:
            _read(matrix, row, column, 8)  # of four frames each
        assert _kept() == 16 * FRAME
        for row, column in _squares(2, TILE):
            if max(row, column) >= 4 * TILE:
                _read(matrix, row + 1, column + 1, 2)
        frames_read.clear()
        for row, column in corners:
            _read(matrix, row, column, 8)
        assert frames_read == []


def test_a_cache_keeps_new_frames_only_while_some_are_wanted_again():
    cache = FrameCache(lambda: 100, "frames of a test")
    frames = iter(range(10**6))

    def want(frame):
        if cache.get("image", [frame]):
            return True
        if frame in cache.worth_caching("image", {frame}, 10):
            cache.put("image", frame, bytes(10))
        return False

    for _ in range(3 * RECENT):
        want(next(frames))
    kept = set(cache.get("image", range(10**6)))
    assert len(kept) == 10
    assert kept == set(range(10))  # the first ones, while there was room
    dicomslide.clear_all("frames of a test")
    hits = 0
    for _ in range(1_000):
        frame = next(frames)
        want(frame)
        hits += want(frame)
    assert hits > 980  # each is kept at once, or at the second look


def test_frames_that_were_wanted_are_forgotten_with_their_scope():
    from dicomslide.process.budget import forget

    cache = FrameCache(lambda: 100, "frames of a test")
    wanted = functools.partial(cache.worth_caching, nbytes=10, at_once=False)
    wanted(("image", "scope of a test"), {1})
    assert wanted(("image", "scope of a test"), {1}) == {1}
    forget("scope of a test")
    assert wanted(("image", "scope of a test"), {1}) == set()
    cache.clear()
    assert wanted("image", {1}) == set()
    assert cache.worth_caching("image", {1, 2}, 101) == ()


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    most=st.integers(0, 70),
    reads=st.lists(
        st.tuples(
            st.integers(0, EDGE - 1),
            st.integers(0, EDGE - 1),
            st.integers(1, 300),
            st.integers(1, 300),
        ),
        max_size=12,
    ),
)
def test_whatever_is_read_is_right_and_within_the_bound(small_jpeg_file, jpeg_pixels, most, reads):
    with dicomslide.set_options(frame_cache_bytes=most * FRAME):
        dicomslide.clear_all("decoded frames")
        matrix = matrix_of(small_jpeg_file)
        for row, column, rows, columns in reads:
            key = slice(row, row + rows), slice(column, column + columns)
            np.testing.assert_array_equal(matrix[key], jpeg_pixels[key])
            assert _kept() <= most * FRAME


def test_many_threads_stay_within_the_bound(small_jpeg_file, jpeg_pixels):
    matrix = matrix_of(small_jpeg_file)
    bound = 9 * FRAME
    most = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for row, column in rng.integers(0, EDGE - 100, (20, 2)).tolist():
            np.testing.assert_array_equal(
                _read(matrix, row, column, 100), jpeg_pixels[row : row + 100, column : column + 100]
            )
            most.append(_kept())

    with dicomslide.set_options(frame_cache_bytes=bound), ThreadPoolExecutor(64) as pool:
        list(pool.map(work, range(64)))
    assert max(most) <= bound


def test_a_file_that_changes_is_read_anew(tmp_path):
    def written(drawing):
        (path,) = write_slide(
            tmp_path,
            shape=(128, 128),
            downsamples=(1,),
            tile_shape=(TILE, TILE),
            associated=False,
            drawing=drawing,
        )
        return path

    matrix = matrix_of(written("tissue"))
    before = [_read(matrix, 10, 10, 100) for _ in range(3)][-1]
    path = written("position")
    after = _read(matrix_of(path), 10, 10, 100)
    assert not np.array_equal(before, after)
    with dicomslide.set_options(frame_cache_bytes=0):
        np.testing.assert_array_equal(after, _read(matrix_of(path), 10, 10, 100))


def test_workers_have_the_bound_from_their_environment(small_jpeg_file):
    code = """
import sys, dicomslide
from dicomslide.process.budget import cached_bytes
matrix = dicomslide.open_slide(sys.argv[1]).get_volume_images()[0].get_total_pixel_matrix()
for row in range(0, 512, 64):
    matrix[row + 10 : row + 20, 10:40]
print(cached_bytes()["decoded frames"])
"""
    for value, expected in (("0", 0), (str(8 * FRAME), 8 * FRAME)):
        done = subprocess.run(
            [sys.executable, "-c", code, str(small_jpeg_file)],
            env=os.environ | {"DICOMSLIDE_FRAME_CACHE_BYTES": value},
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(done.stdout) == expected


def test_the_cache_of_openslide_is_used_as_the_process_uses_its_own(small_jpeg_file, frames_read):
    with dicomslide.OpenSlide(small_jpeg_file) as slide:
        cache = OpenSlideCache(10 * FRAME)
        slide.set_cache(cache)
        for _ in range(2):
            slide.read_region((10, 10), 0, (100, 100))
        assert cache.frames.nbytes == 4 * FRAME
        assert _kept() == 0
        assert len(frames_read) == 4
