"""How often servers are asked: for many frames at once, for each of them once."""

from __future__ import annotations

import functools
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait
from types import SimpleNamespace

import dask
import numpy as np
import pytest

import dicomslide
from dicomslide.backends.batching import gather
from dicomslide.backends.batching.gather import Gatherer
from dicomslide.backends.batching.prefetch import ReadAhead
from dicomslide.header.tiling import FullFrames, TileGrid
from dicomslide.readers import frame_reader
from dicomslide.testing import write_slide
from tests.support.fake_client import FakeClient
from tests.support.faulty_server import FaultyServer, url_of

pytestmark = pytest.mark.needs("dicomweb_client")

TILE = 16
NUM_FRAMES = 42 * 40


@pytest.fixture(scope="module", params=[False, True], ids=["full", "sparse"])
def folder(tmp_path_factory, request):
    """A level of 1,680 frames."""
    folder = tmp_path_factory.mktemp("slide")
    write_slide(
        folder, shape=(42 * TILE - 5, 40 * TILE), downsamples=(1,), tile_shape=(TILE, TILE),
        associated=False, sparse=request.param,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def archive(folder):
    """What servers have, read and put into JSON once."""
    archive = FakeClient(folder)
    archive.frames = functools.cache(archive.frames)
    metadata = {uid: archive._json(dataset) for uid, dataset in archive.datasets.items()}
    archive._json = lambda dataset: metadata[dataset.SOPInstanceUID]
    return archive


@pytest.fixture
def server(archive):
    with FaultyServer(None) as server:
        server.archive = archive
        yield server


def matrix_at(where):
    slide = dicomslide.open_slide(where, correct_color=False)
    return slide.get_volume_images()[0].get_total_pixel_matrix()


@pytest.fixture
def matrix(server):
    return matrix_at(url_of(server))


@pytest.fixture(scope="module")
def pixels(folder):
    return matrix_at(folder)[...]


def times_asked_for(server):
    return set(Counter(number for numbers in server.frames for number in numbers).values())


def forget_decoded():
    dicomslide.clear_all("decoded frames")


# -- frames a request ------------------------------------------------------------------------


def test_a_region_is_asked_for_at_once_and_once(server, matrix, pixels):
    region = np.s_[5 : 5 + 8 * TILE, 3 : 3 + 8 * TILE]  # 81 frames
    for _ in range(2):
        np.testing.assert_array_equal(matrix[region], pixels[region])
        forget_decoded()
        assert [len(each) for each in server.frames] == [81]


def test_a_long_region_takes_requests_of_a_hundred_frames_a_few_at_a_time(
    server, matrix, pixels, monkeypatch
):
    monkeypatch.setattr(frame_reader, "REQUESTS", 3)
    server.gate = threading.Barrier(3)  # no request of the first three is answered alone
    np.testing.assert_array_equal(matrix[...], pixels)
    assert sorted(map(len, server.frames)) == [80] + [100] * 16
    assert times_asked_for(server) == {1}
    assert server.most_at_once == 3


def test_iteration_asks_for_many_tiles_at_once(server, matrix, pixels):
    for at, tile in enumerate(matrix):
        row, column = divmod(at, 40)
        expected = pixels[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
        np.testing.assert_array_equal(tile[: len(expected)], expected)
    assert len(server.frames) == 17


@pytest.mark.parametrize("threads", [1, 2, 16])
@pytest.mark.parametrize("chunks", ["frames", 64])
def test_dask_asks_for_many_frames_at_once(server, matrix, pixels, threads, chunks):
    array = matrix.to_dask(chunks)
    with dask.config.set(scheduler="threads", num_workers=threads):
        assert array.mean().compute() == pytest.approx(pixels.mean())
    assert len(server.frames) <= NUM_FRAMES / 32
    assert times_asked_for(server) == {1}


@pytest.mark.slow
def test_a_mean_over_6400_frames_takes_few_requests(long_level):
    with FaultyServer(long_level) as server:
        server.archive.frames = functools.cache(server.archive.frames)
        array = matrix_at(url_of(server)).to_dask()
        with dask.config.set(scheduler="threads", num_workers=2):
            mean = array.mean().compute()
        assert mean == pytest.approx(matrix_at(long_level)[...].mean())
        assert len(server.frames) <= 6400 / 32
        assert times_asked_for(server) == {1}


def test_tiles_one_after_the_other_are_asked_for_together(server, matrix):
    for tile in range(400):
        matrix[tile]
    assert len(server.frames) <= 400 / 32 + 5
    assert times_asked_for(server) == {1}


def test_little_is_read_in_vain_where_positions_are_random(server, matrix, pixels):
    for at in np.random.default_rng(0).permutation(NUM_FRAMES)[:40].tolist():
        row, column = divmod(at, 40)
        matrix[row * TILE, column * TILE]
    assert sum(map(len, server.frames)) <= 2 * 40


def test_nothing_is_read_ahead_that_cannot_be_kept(server, matrix):
    with dicomslide.set_options(encoded_cache_bytes=0):
        for tile in range(40):
            matrix[tile]
    assert server.frames == [[number] for number in range(1, 41)]


def test_what_was_read_ahead_and_is_bad_harms_nobody_else(server, matrix, pixels):
    server.bad = {60}
    for tile in range(59):
        np.testing.assert_array_equal(
            matrix[tile], pixels[:TILE, tile * TILE :][:, :TILE] if tile < 40 else matrix[tile]
        )
    with pytest.raises(dicomslide.FrameReadError, match="frame 60"):
        matrix[59]
    matrix[60]


# -- what several threads ask for ------------------------------------------------------------


def gatherer_of():
    gatherer = Gatherer(None)
    gatherer._latest = 0  # another thread has been here
    return gatherer


def read(gatherer, indices, fetch, most=8):
    return gatherer.read(indices, fetch, most=most, most_ahead=0)


def test_threads_that_ask_at_once_share_one_request(monkeypatch):
    monkeypatch.setattr(gather, "SHORTEST_WINDOW", 10.0)
    gatherer = gatherer_of()
    asked = []

    def fetch(indices):
        asked.append(indices)
        return {index: -index for index in indices}

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: read(gatherer, [i], fetch)[i], range(8)))
    assert found == [-i for i in range(8)]
    assert asked == [[*range(8)]]


def test_who_is_alone_waits_for_nobody(monkeypatch):
    monkeypatch.setattr(gather, "SHORTEST_WINDOW", 1e9)
    gatherer = Gatherer(None)
    for index in range(5):
        assert read(gatherer, [index], lambda indices: dict.fromkeys(indices, b"")) == {index: b""}


def test_what_is_under_way_is_not_asked_for_again():
    gatherer = gatherer_of()
    began, go = threading.Event(), threading.Event()
    asked = []

    def fetch(indices):
        asked.append(indices)
        began.set()
        go.wait(10)
        return {index: -index for index in indices}

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(read, gatherer, [1, 2], fetch)
        began.wait(10)
        second = pool.submit(read, gatherer, [2, 3], fetch)
        while gatherer._sent[0].readers < 2:
            threading.Event().wait(0.001)
        go.set()
        assert (first.result(), second.result()) == ({1: -1, 2: -2}, {2: -2, 3: -3})
    assert asked == [[1, 2], [3]]


def test_an_error_of_several_is_that_of_who_asked_for_what_is_bad(monkeypatch):
    monkeypatch.setattr(gather, "SHORTEST_WINDOW", 10.0)
    gatherer = gatherer_of()

    def fetch(indices):
        if 2 in indices:
            raise OSError(f"no {indices}")
        return {index: -index for index in indices}

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(read, gatherer, [i], fetch, most=4) for i in range(4)]
    assert [futures[i].result()[i] for i in (0, 1, 3)] == [0, -1, -3]
    with pytest.raises(OSError, match=r"no \[2\]"):
        futures[2].result()


def test_who_waits_for_what_another_asks_for_waits_as_long_as_that_takes(monkeypatch):
    monkeypatch.setattr(gather, "SHORTEST_WINDOW", 10.0)
    monkeypatch.setattr(gather, "STEP", 0.001)
    gatherer = gatherer_of()
    go = threading.Event()

    def fetch(indices):
        go.wait(10)
        return {index: -index for index in indices}

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(read, gatherer, [index], fetch, most=2) for index in (0, 1)]
        assert not wait(futures, timeout=0.1).done  # many steps
        go.set()
        assert [future.result() for future in futures] == [{0: 0}, {1: -1}]


@pytest.mark.parametrize("when", ["gathering", "asking"])
def test_nobody_waits_for_who_was_interrupted(monkeypatch, when):
    """As by Ctrl-C, which comes at any time."""
    monkeypatch.setattr(gather, "SHORTEST_WINDOW", 10.0)
    gatherer = gatherer_of()
    joined = threading.Event()

    def interrupted(*arguments):
        joined.wait(10)
        raise KeyboardInterrupt

    def fetch(indices):
        return {index: -index for index in indices}

    if when == "gathering":
        is_full = SimpleNamespace(wait=interrupted, set=joined.set)
        make = gather._Batch

        def batch():
            made = make()
            made.is_full = is_full
            return made

        monkeypatch.setattr(gather, "_Batch", batch)
    with ThreadPoolExecutor(2) as pool:
        leads = pool.submit(read, gatherer, [0], interrupted, most=2)
        while gatherer._open is None:
            threading.Event().wait(0.001)
        follows = pool.submit(read, gatherer, [1], fetch, most=2)
        while gatherer._open is not None and gatherer._open.readers < 2:
            threading.Event().wait(0.001)
        joined.set()
        assert follows.result(10) == {1: -1}
        with pytest.raises(KeyboardInterrupt):
            leads.result(10)
    assert gatherer._open is None
    assert not gatherer._sent


# -- what will be wanted ---------------------------------------------------------------------


def ahead_of(rows, columns, planes):
    """Return what guesses frames of a grid of tiles, all of them there."""
    grid = TileGrid(rows=rows, columns=columns, tile_rows=1, tile_columns=1)
    frames = FullFrames(grid.num_tiles, planes, planes * grid.num_tiles)
    return ReadAhead(SimpleNamespace(grid=grid, frames=frames))


def square(top, left, edge, columns):
    return {r * columns + c for r in range(top, top + edge) for c in range(left, left + edge)}


def test_squares_around_neighbours_grow_while_guesses_are_right():
    ahead = ahead_of(64, 60, planes=2)
    assert ahead.guess([0], 100) == set()
    assert ahead.guess([1], 100) == {60, 61}
    ahead.note([60, 61])
    assert ahead.guess([2], 100) == square(0, 0, 4, 60) - {0, 1, 2, 60, 61}
    ahead.note([3, 62, 63])
    assert ahead.guess([4], 100) == square(0, 0, 8, 60) - {0, 1, 2, 3, 4, 60, 61, 62, 63}
    ahead.note(sorted(square(0, 0, 8, 60)))
    assert ahead.guess([8], 100) == square(0, 8, 8, 60) - {8}  # as many as may be asked for
    ahead.note(square(0, 8, 8, 60))
    assert ahead.guess([16], 60) == square(0, 16, 4, 60) - {16}
    ahead.note(range(16, 20))
    corner = ahead.guess([64 * 60 - 1], 60)  # columns end there, and the plane
    assert corner == square(60, 56, 4, 60) - {64 * 60 - 1}


@pytest.mark.parametrize(("columns", "widest"), [(300, 32), (60, 60)])
def test_where_many_may_be_asked_for_squares_grow_wider_than_high(columns, widest):
    ahead = ahead_of(64, columns, planes=1)
    ahead.guess([0], 2000)
    extents = []
    for frame in (1, 2, 4, 8, 16, 40):
        guesses = ahead.guess([frame], 2000)
        ahead.note(guesses)
        tiles = [divmod(each, columns) for each in (*guesses, frame)]
        extents.append(tuple(max(each) - min(each) + 1 for each in zip(*tiles, strict=True)))
    assert extents == [(2, 2), (4, 4), (8, 8), (8, 16), (8, widest), (8, widest)]


def test_squares_far_apart_grow_if_all_of_them_was_wanted_and_shrink_if_little_was():
    ahead = ahead_of(640, 640, planes=1)
    ahead.guess([0], 2000)
    for frame in (1, 2, 4):
        ahead.note(ahead.guess([frame], 2000))
    sizes = []
    for at in range(1, 7):
        guesses = ahead.guess([at * 32 * (640 + 1)], 2000)
        sizes.append(len(guesses) + 1)
        ahead.note(list(guesses)[: len(guesses) if at < 3 else 1])
    assert sizes == [8 * 16, 8 * 32, 8 * 32, 8 * 16, 8 * 8, 4 * 4]


def test_frames_of_another_plane_are_no_neighbours():
    ahead = ahead_of(2, 2, planes=9)
    for frame in range(0, 36, 4):
        assert ahead.guess([frame], 100) == set()


def test_guesses_that_are_wrong_come_to_an_end():
    ahead = ahead_of(100, 100, planes=1)
    guesses = [len(ahead.guess([frame], 100)) for frame in (1, 2, *range(505, 10_000, 505))]
    assert guesses == [0, 3, *[0] * 19]


def test_a_few_neighbours_here_and_there_bring_few_guesses():
    ahead = ahead_of(100, 100, planes=1)
    wanted = guessed = 0
    known = set()
    for at in range(303, 9000, 707):
        for frame in (at, at + 1, at + 100, at + 101):
            wanted += 1
            if frame in known:
                ahead.note([frame])
            else:
                guesses = ahead.guess([frame], 100)
                guessed += len(guesses)
                known |= guesses
    assert guessed <= 3 * wanted


# -- what is kept on disk --------------------------------------------------------------------


def test_frames_on_disk_are_not_asked_for_again(server, matrix, pixels, tmp_path):
    with dicomslide.set_options(frame_folder=str(tmp_path / "kept")):
        for _ in range(2):
            np.testing.assert_array_equal(matrix[...], pixels)
            asked = len(server.frames)
            forget_decoded()
            dicomslide.clear_all("received frames")
    assert asked == len(server.frames) == 17
    assert (tmp_path / "kept").stat().st_mode & 0o077 == 0
