"""The whole path on a cluster of processes: also when workers fail, die, or come and go."""

from __future__ import annotations

import functools
import os
import pickle
import shutil
import signal
import time

import numpy as np
import pytest
import xarray as xr

import dicomslide
from dicomslide.backends.part10 import file
from dicomslide.backends.part10.file import FileSource
from dicomslide.header.geometry import SlideGeometry
from dicomslide.pixels.pixel_format import PixelFormat
from dicomslide.slide import batches, reading
from dicomslide.testing import (
    PositionDrawing,
    SyntheticImage,
    encode_frame,
    position_values,
    write_image,
    write_slide,
)
from tests.support.range_server import serving
from tests.support.workers import some_workers

distributed = pytest.importorskip("distributed", reason="a cluster takes distributed")
pytestmark = pytest.mark.cluster

SHAPE = (130, 170)
PIXELS = position_values(np.arange(SHAPE[0]), np.arange(SHAPE[1]))


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")  # not shared with other clusters
    with some_workers(2, memory_limit=2**30, local_directory=folder) as client:
        yield client


@pytest.fixture
def folder(position_slide, tmp_path):
    """A slide that no worker has read yet."""
    return shutil.copytree(position_slide, tmp_path / "slide")


def base_level(folder, chunks="frames"):
    slide = dicomslide.open_slide(folder, correct_color=False)
    return slide.get_volume_images()[0].get_total_pixel_matrix().to_dask(chunks)


def names(folder):
    """Return what dask calls the arrays of a slide; also in another process."""
    slide = dicomslide.open_slide(folder)
    tree = slide.to_datatree()
    engine = xr.open_dataset(folder, engine="dicomslide", chunks={})
    matrix = slide.get_volume_images()[0].get_total_pixel_matrix()
    return [
        matrix.to_dask().name,
        matrix.to_dask("auto").sum().name,
        slide.to_dataset().image.data.name,
        *(tree[f"level_{level}"].image.data.name for level in range(slide.num_levels)),
        engine.image.mean(("y", "x")).data.name,
    ]


@pytest.mark.slow
def test_arrays_have_the_same_names_in_every_process_and_each_time(client, position_slide):
    here = names(position_slide)
    assert here == names(position_slide)
    for there in client.run(names, position_slide).values():
        assert there == here


def test_repeated_work_is_not_done_again(client, position_slide):
    kept = client.persist(base_level(position_slide).sum(dtype=np.int64))
    distributed.wait(kept)
    with counting_reads(client) as count:
        again = client.persist(base_level(position_slide).sum(dtype=np.int64))
        assert int(again.compute()) == PIXELS.sum(dtype=np.int64)
        assert count() == 0


class counting_reads:
    """Counts the frames that workers read."""

    def __init__(self, client):
        self.client = client

    def __enter__(self):
        self.client.run(_start_counting)
        return lambda: sum(self.client.run(_count).values())

    def __exit__(self, *error):
        self.client.run(_stop_counting)


_original = FileSource.read_frames
_frames: list[int] = []


def _start_counting():
    def counting(self, indices):
        _frames.extend(indices)
        return _original(self, indices)

    dicomslide.clear_all("decoded frames")
    FileSource.read_frames = counting


def _stop_counting():
    FileSource.read_frames = _original


def _count():
    return len(_frames)


def test_each_frame_is_read_once_for_a_whole_level(client, folder):
    with counting_reads(client) as count:
        total = base_level(folder).sum(dtype=np.int64).compute()
        assert total == PIXELS.sum(dtype=np.int64)
        assert count() == 5 * 4


def test_a_graph_is_a_constant_and_little_for_each_task(client, tmp_path):
    """What is sent: dask's expression, and on the scheduler a task a frame."""
    sizes = {}
    for edge in (256, 1024):
        write_slide(
            tmp_path / str(edge),
            shape=(edge, edge),
            downsamples=(1,),
            tile_shape=(32, 32),
            drawing="position",
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            associated=False,
        )
        array = base_level(tmp_path / str(edge))
        frames = (edge // 32) ** 2
        sent = len(pickle.dumps(array))
        graph = dict(array.__dask_graph__())
        assert frames <= len(graph) <= frames + 1
        sizes[frames] = sent, len(pickle.dumps(graph))
    (few, small, of_few), (many, large, of_many) = ((n, *size) for n, size in sizes.items())
    assert large < 10_000
    assert large - small < 8 * (many - few)  # the sizes of chunks
    assert (of_many - of_few) / (many - few) < 600
    assert of_few < 10_000 + 600 * few


def test_trees_and_datasets_compute_on_a_cluster_what_numpy_does(client, folder):
    upright = np.rot90(PIXELS, -1)
    tree = xr.open_datatree(folder, engine="dicomslide", chunks={}, correct_color=False)
    tissue = (tree["level_0"].image.isel(sample=0) > 90).sum()
    assert int(tissue.compute()) == (upright[:, :, 0] > 90).sum()
    image = xr.open_dataset(folder, engine="dicomslide", chunks="auto", correct_color=False).image
    np.testing.assert_array_equal(image[10:60, 20:90].compute(), upright[10:60, 20:90])


# -- what fails ------------------------------------------------------------------------------


def fail_once(errors):
    """Let each frame of a worker fail once before it is read."""

    def failing(self, indices):
        if failed := [index for index in indices if index not in seen]:
            seen.update(failed)
            raise errors(f"{self.name}: passes")
        return _original(self, indices)

    seen: set[int] = set()
    FileSource.read_frames = failing


@pytest.mark.parametrize("error", [OSError, dicomslide.SourceReadError])
def test_retries_get_past_an_error_that_passes(client, folder, error):
    array = base_level(folder).sum(dtype=np.int64)
    client.run(fail_once, error)
    try:
        with pytest.raises(error, match=r"level-0.dcm: passes"):
            array.compute()
        client.run(fail_once, error)
        # each of two workers may fail at a task
        assert array.compute(retries=2) == PIXELS.sum(dtype=np.int64)
    finally:
        client.run(_stop_counting)


def test_every_error_comes_from_a_worker_as_what_it_is(client):
    kinds = [
        kind
        for name in dicomslide.errors.__all__
        if issubclass(kind := getattr(dicomslide, name), Exception)
    ]
    assert len(kinds) > 15
    for future, kind in zip(client.map(fail, kinds), kinds, strict=True):
        with pytest.raises(kind, match="reason") as caught:
            future.result()
        assert type(caught.value) is kind


def fail(kind):
    more = ({"1.2.3": "no room"},) if kind is dicomslide.StorageRefusedError else ()
    raise kind("reason", *more)


def test_a_file_that_workers_do_not_see_is_an_error_that_says_what_they_need(client, folder):
    array = base_level(folder)
    shutil.rmtree(folder)  # workers haven't opened it yet
    with pytest.raises(dicomslide.SourceNotFoundError) as caught:
        array.sum().compute()
    message = str(caught.value)
    assert str(folder / "level-0.dcm") in message
    assert "each worker of a cluster has to reach it by the same path" in message


def test_a_chunk_beyond_the_memory_of_a_worker_is_an_error_before_the_worker_dies(client, tmp_path):
    edge = 20_480  # 1.2 GiB; a file of one frame's bytes
    pixel_format = PixelFormat(rows=512, columns=512, samples=3)
    syntax = "1.2.840.10008.1.2.4.50"
    frame = encode_frame(np.full(pixel_format.shape, 255, np.uint8), pixel_format, syntax)
    image = SyntheticImage(
        geometry=SlideGeometry((20, 50), (0, -1), (-1, 0), (0.0005, 0.0005), (edge, edge)),
        drawing=PositionDrawing(3, np.uint8),
        pixel_format=pixel_format,
        transfer_syntax_uid=syntax,
        offset_table="extended",
        encoded=lambda channel, plane, number: frame + bytes(len(frame) % 2),
        share_frames=True,
    )
    write_image(tmp_path / "large.dcm", image)
    pids = client.run(os.getpid)
    with pytest.raises(dicomslide.MemoryLimitError, match="this dask worker of 1,073,741,824 byt"):
        base_level(tmp_path, chunks=edge).sum().compute()
    assert client.run(os.getpid) == pids


def kill_when(client, pids, done):
    """Kill a worker that is at work, one of those given, when so many chunks are there."""
    scheduler = client.cluster.scheduler

    def killed():
        states = [task.state for task in list(scheduler.tasks.values())]
        for address, worker in list(scheduler.workers.items()):
            if address in pids and worker.processing and states.count("memory") >= done:
                os.kill(pids.pop(address), signal.SIGKILL)
                return True
        return False

    wait_until(killed)


def wait_until(happens):
    deadline = time.monotonic() + 60
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def slowly(block):
    time.sleep(0.1)
    return block


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_workers_killed_in_the_middle_twice_do_not_change_the_result(client, folder):
    array = base_level(folder).map_blocks(slowly, dtype=np.uint8)
    pids = client.run(os.getpid)
    before = set(pids.values())
    future = client.compute(array)
    kill_when(client, pids, 1)
    kill_when(client, pids, 3)
    np.testing.assert_array_equal(future.result(timeout=60), PIXELS)
    np.testing.assert_array_equal(array.compute(scheduler="synchronous"), PIXELS)
    client.wait_for_workers(2, timeout=60)
    assert not before & set(client.run(os.getpid).values())


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_workers_that_replace_others_know_how_to_reach_urls(client, folder):
    """By what is registered for all workers, also those to come; the client's don't travel."""
    pytest.importorskip("aiohttp", reason="HTTP takes fsspec's")
    with serving(folder) as server:
        server.token = "Bearer hush"
        options = {"headers": {"Authorization": server.token}}
        slide = dicomslide.open_slide(
            f"{server.url}/", storage_options=options, correct_color=False
        )
        total = slide.get_volume_images()[0].get_total_pixel_matrix().to_dask().sum(dtype=np.int64)
        with pytest.raises(dicomslide.SourceDeniedError):
            total.compute()
        client.register_worker_callbacks(
            functools.partial(dicomslide.register_storage_options, server.url, options)
        )
        pids = client.run(os.getpid)
        for pid in pids.values():
            os.kill(pid, signal.SIGKILL)
        workers = client.cluster.scheduler.workers
        wait_until(lambda: len(workers) == 2 and not workers.keys() & pids.keys())
        assert total.compute() == PIXELS.sum(dtype=np.int64)


@pytest.mark.slow
def test_a_worker_that_comes_in_the_middle_does_not_change_the_result(folder, tmp_path):
    gate = tmp_path / "gate"
    array = base_level(folder).map_blocks(
        once_there, gate, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8)
    )
    # a cluster of its own, that nothing has been killed in and nobody uses after it
    with some_workers(1, is_default=False, local_directory=tmp_path) as client:
        client.cluster.adapt(minimum=1, maximum=2, interval="50ms", target_duration="100ms")
        future = client.compute(array)
        wait_until(lambda: len(client.cluster.scheduler.workers) == 2)
        gate.touch()
        np.testing.assert_array_equal(future.result(timeout=60), PIXELS)


def once_there(block, gate):
    wait_until(gate.exists)
    return slowly(block)


# -- cohorts ---------------------------------------------------------------------------------


@pytest.fixture
def slides(tmp_path):
    """A folder of six slides."""
    for number in range(6):
        write_slide(
            tmp_path / f"S{number}",
            shape=(64, 96),
            downsamples=(1, 2),
            container_id=f"S{number}",
            slide_number=number + 1,
        )
    return tmp_path


def test_a_cohort_is_opened_by_workers_and_does_not_need_them_later(client, slides, monkeypatch):
    read = client.run(lambda: len(file._instances))
    monkeypatch.chdir(slides)  # where workers aren't
    opened = dicomslide.open_slides(".")
    assert sum(client.run(lambda: len(file._instances)).values()) == sum(read.values()) + 6 * 4
    assert list(opened) == [f"S{number}" for number in range(6)]
    assert list(opened.summaries()) == list(opened)
    monkeypatch.setattr(batches, "cluster_client", lambda: None)
    assert opened["S3"].get_image_region((0, 0), 0, (64, 96)).shape == (64, 96, 3)


def test_what_workers_do_not_see_is_read_here(client, slides):
    client.run(_lose_files)
    try:
        opened = dicomslide.open_slides(slides)
    finally:
        client.run(_find_files)
    assert len(opened) == 6
    assert not opened.failures


def _lose_files():
    def lost(path):
        raise FileNotFoundError(f"{path}: not here")

    reading.open_source = lost


def _find_files():
    from dicomslide.backends.open import open_source

    reading.open_source = open_source


def test_a_cohort_is_opened_in_a_task(client, slides):
    found = client.submit(dicomslide.open_slides, slides, pure=False).result(timeout=60)
    assert len(found) == 6
