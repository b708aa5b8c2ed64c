"""Slides in buckets, on HTTP servers and in archives: read as from disk, in few requests."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import fsspec
import numpy as np
import pydicom
import pytest
import xarray as xr
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

import dicomslide
from dicomslide.backends import base
from dicomslide.backends.net import policy
from dicomslide.backends.objects import attempts, ranges, remote, storage
from dicomslide.backends.objects.remote import RemoteSource
from dicomslide.backends.open import open_store
from dicomslide.backends.part10 import file as file_backend
from dicomslide.errors import FrameReadError, NotDicomError, SourceChangedError, SourceReadError
from dicomslide.readers import pools
from dicomslide.testing import write_slide
from tests.support import parts
from tests.support.fake_clock import FakeClock
from tests.support.range_server import serving
from tests.support.remote_slides import (
    REGION,
    SECRET,
    forget_bytes,
    forget_everything,
    frame_of,
    frames_on_disk,
    region,
)

pytest.importorskip("aiohttp", reason="HTTP takes aiohttp: dicomslide[remote]")


# -- where slides are ------------------------------------------------------------------------


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_folder_of_any_file_system_is_a_slide(folder, pixels, slash):
    memory = fsspec.filesystem("memory")
    for path in (folder / "slide").iterdir():
        memory.pipe(f"/bucket/slide/{path.name}", path.read_bytes())
    memory.pipe("/bucket/slide/notes.txt", b"no DICOM" * 100)
    try:
        np.testing.assert_array_equal(region(f"memory://bucket/slide{slash}"), pixels)
        names = [f"memory://bucket/slide/level-{level}.dcm" for level in (0, 1)]
        np.testing.assert_array_equal(region(names), pixels)
        np.testing.assert_array_equal(region(names[0]), pixels)
    finally:
        memory.rm("/bucket", recursive=True)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # fsspec's archives
@pytest.mark.parametrize("where", ["{folder}", "file://{folder}", "{server}"])
def test_an_archive_anywhere_is_a_folder(folder, pixels, server, where):
    at = where.format(folder=folder, server=server.url)
    np.testing.assert_array_equal(region(f"zip://in::{at}/slide.zip"), pixels)
    np.testing.assert_array_equal(region(f"zip://in/level-0.dcm::{at}/slide.zip"), pixels)


def test_a_file_url_is_a_file_on_disk(folder, pixels):
    store = open_store(f"file://{folder}/slide")
    assert {type(source) for source in store.sources} == {file_backend.FileSource}
    np.testing.assert_array_equal(region(f"file://{folder}/slide"), pixels)


@pytest.mark.parametrize(
    "url",
    ["file://{folder}/a#b %20", "file://localhost{folder}/slide", "file://slide", "{uri}",
     "local://{folder}/slide"],
)  # fmt: skip
def test_a_file_url_names_the_folder_that_it_seems_to(folder, tmp_path, monkeypatch, url):
    shutil.copytree(folder / "slide", tmp_path / "slide")
    shutil.copytree(folder / "slide", tmp_path / "a#b %20")
    monkeypatch.chdir(tmp_path)
    found = open_store(url.format(folder=tmp_path, uri=(tmp_path / "a#b %20").as_uri())).sources
    named = "slide" if "slide" in url else "a#b %20"
    assert {os.path.dirname(source.path.removeprefix("local://")) for source in found} == {
        str(tmp_path / named)
    }


class ServerInItsName(LocalFileSystem):
    """Calls objects by less than their URLs say, as FTP does: without the server."""

    protocol = "onserver"

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("onserver://host"))

    @staticmethod
    def _get_kwargs_from_urls(path):
        assert path.startswith("onserver://host/"), path
        return {}


def test_objects_of_a_folder_are_on_the_server_of_the_folder(folder, pixels):
    fsspec.register_implementation("onserver", ServerInItsName, clobber=True)
    url = f"onserver://host{folder}/slide"
    np.testing.assert_array_equal(region(url), pixels)
    assert {source.path for source in open_store(url).sources} == {
        f"{url}/{path.name}" for path in (folder / "slide").iterdir()
    }


def test_the_url_of_an_http_folder_without_its_slash_is_explained(server):
    with pytest.raises(NotDicomError, match="the URL of a folder ends in /"):
        dicomslide.open_slide(f"{server.url}/slide")


def test_an_archive_that_is_named_as_a_folder_is_explained(folder):
    with pytest.raises(FileNotFoundError, match="zip://folder::archive"):
        dicomslide.open_slide(f"zip://{folder}/slide.zip")


def test_copies_that_nobody_compares_are_not_read(server):
    with pytest.raises(SourceReadError, match="simplecache keeps copies"):
        dicomslide.open_slide(f"simplecache::{server.url}/slide/level-0.dcm")


def test_files_on_disk_and_objects_are_one_slide(folder, pixels, server):
    paths = [folder / "slide" / "level-0.dcm", f"{server.url}/slide/level-1.dcm"]
    slide = dicomslide.open_slide(paths)
    assert slide.num_levels == 2
    np.testing.assert_array_equal(slide.get_image_region(**REGION), pixels)


def test_an_http_folder_that_is_listed_is_a_slide(server, pixels):
    slide = dicomslide.open_slide(f"{server.url}/slide/")
    assert slide.num_levels == 3
    np.testing.assert_array_equal(slide.get_image_region(**REGION), pixels)


def test_xarray_opens_urls(server, folder, pixels):
    url = f"{server.url}/slide/level-0.dcm"
    dataset = xr.open_dataset(url, engine="dicomslide", orientation="stored", chunks={})
    assert dataset.encoding["source"] == url
    np.testing.assert_array_equal(dataset.image[10:710, 20:620].values, pixels)
    tree = xr.open_datatree(f"{server.url}/slide/", engine="dicomslide", orientation="stored")
    assert set(tree.children) == {"level_0", "level_1", "level_2"}


def test_guessing_looks_at_a_url_but_asks_nobody(server):
    from dicomslide.xarray_plugin import DicomSlideBackendEntrypoint

    guess = DicomSlideBackendEntrypoint().guess_can_open
    assert guess(f"{server.url}/slide/level-0.dcm")
    assert guess(f"{server.url}/slide/level-0.dcm?signature=1")
    assert not guess(f"{server.url}/slide/")
    assert not guess("s3://bucket/data.zarr")
    assert not server.requests


def test_positions_of_sparse_frames_are_read_of_an_object(tmp_path):
    write_slide(tmp_path, shape=(100, 140), tile_shape=(32, 32), downsamples=(1,), sparse=True)
    local = file_backend.FileSource.open(tmp_path / "level-0.dcm").metadata
    with serving(tmp_path) as server:
        metadata = RemoteSource.open(f"{server.url}/level-0.dcm").metadata
        for one, other in zip(
            dicomslide.compute_frame_positions(metadata),
            dicomslide.compute_frame_positions(local),
            strict=True,
        ):
            np.testing.assert_array_equal(one, other)


def test_an_unknown_kind_of_url_raises():
    with pytest.raises(NotDicomError, match=r"nowhere://host/slide: .* fsspec doesn't know"):
        dicomslide.open_slide("nowhere://host/slide")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ImportError, match=r"gs://bucket/slide.*gcsfs"):
        dicomslide.open_slide("gs://bucket/slide")
    script = (
        "import sys; sys.modules['aiohttp'] = None; import dicomslide;"
        " dicomslide.open_slide('http://host/slide/')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    error = done.stderr.splitlines()[-1]
    assert error.startswith("ImportError: http://host/slide/: ")
    assert error.endswith(": pip install 'dicomslide[remote]'")


def test_storage_options_without_a_url_raise(folder):
    options = {"anon": True}
    with pytest.raises(ValueError, match="storage_options are for URLs"):
        dicomslide.open_slide(folder / "slide", storage_options=options)
    store = open_store(folder / "slide")
    for source in (store, "dicomweb+http://127.0.0.1:1/studies/1.2"):
        with pytest.raises(ValueError, match="storage_options are for URLs"):
            dicomslide.open_slide(source, storage_options=options)
    with pytest.raises(TypeError, match="a mapping or a callable"):
        dicomslide.register_storage_options("s3://bucket", "anon")


def test_whatever_loop_the_options_speak_of_reading_waits_for_its_own(server, pixels):
    url = f"{server.url}/slide/level-0.dcm"

    async def in_a_loop():
        options = {"asynchronous": True, "loop": asyncio.get_running_loop()}
        return region(url, storage_options=options)

    np.testing.assert_array_equal(asyncio.run(in_a_loop()), pixels)


# -- requests --------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["basic", "extended"])
def test_opening_costs_three_requests_at_most(tmp_path, table):
    """Header and offset table of 40,000 frames, more than fits into the first read."""
    write_slide(tmp_path, shape=(64, 64), tile_shape=(32, 32), downsamples=(1,))
    path = long_image(tmp_path / "long.dcm", 40_000, table)
    with serving(tmp_path) as server:
        source = RemoteSource.open(f"{server.url}/long.dcm")
        assert source.metadata.NumberOfFrames == 40_000
        source._instance().frames()
        assert len(server.requests) <= 3
        assert server.nbytes < 3 * 2**20
        local = file_backend.FileSource.open(path)
        wanted = [0, 1, 20_000, 39_999]
        assert list(map(bytes, source.read_frames(wanted))) == list(
            map(bytes, local.read_frames(wanted))
        )


def long_image(path, count, table, shortest=20):
    """A Part 10 file of many short frames, written byte by byte."""
    dataset = pydicom.dcmread(path.parent / "level-0.dcm", stop_before_pixels=True)
    dataset.NumberOfFrames = count
    dataset.save_as(path)

    def element(number, vr, value, length=None):
        length = len(value) if length is None else length
        return struct.pack("<HH2sHI", 0x7FE0, number, vr, 0, length) + value

    lengths = shortest + 2 * (np.arange(count) % 50)
    offsets = np.concatenate([[0], np.cumsum(lengths + 8)[:-1]])
    items = b"".join(
        struct.pack("<HHI", 0xFFFE, 0xE000, length) + struct.pack("<I", i).ljust(length, b"\1")
        for i, length in enumerate(lengths.tolist())
    )
    basic = b""
    with path.open("ab") as file:
        if table == "extended":
            file.write(element(1, b"OV", offsets.astype("<u8").tobytes()))
            file.write(element(2, b"OV", lengths.astype("<u8").tobytes()))
        elif table == "basic":
            basic = offsets.astype("<u4").tobytes()
        file.write(element(0x10, b"OB", b"", 0xFFFFFFFF))
        file.write(struct.pack("<HHI", 0xFFFE, 0xE000, len(basic)) + basic + items)
        file.write(struct.pack("<HHI", 0xFFFE, 0xE0DD, 0))
    return path


def test_neighbours_are_one_request_and_little_is_read_in_vain(image, server, folder):
    wanted = [0, 1, 2, 4, 5, 6, 9, 10, 12, 15]
    instance = image._instance()
    spans = [instance.frames().span(index) for index in wanted]
    server.forget()
    assert list(map(bytes, image.read_frames(wanted))) == frames_on_disk(folder, wanted)
    assert len(server.requests) <= 5  # runs of neighbours
    assert server.nbytes <= 1.2 * sum(stop - start for start, stop in spans)


def test_requests_of_a_read_are_under_way_together(image, server, monkeypatch):
    monkeypatch.setattr(remote, "GAP", 0)
    spans = [(i * 12_000, i * 12_000 + 100) for i in range(16)]
    blob = image._instance().header.blob
    dicomslide.clear_all("heads of objects")
    server.forget()
    server.gate = threading.Barrier(16)  # none is answered before all have come
    assert [len(each) for each in blob.read_spans(spans)] == [100] * 16
    assert len(server.requests) == 16


def test_a_region_is_one_round_of_requests(server):
    """All are under way before any is answered."""
    slide = dicomslide.open_slide(f"{server.url}/slide/level-0.dcm")
    image = slide.get_volume_images()[0]
    matrix = image.get_total_pixel_matrix()
    image._source._instance().frames()  # the offset table
    dicomslide.clear_all("heads of objects")
    server.forget()
    matrix[:, :600]  # three tiles of each of four rows
    server.gate = threading.Barrier(len(server.requests))
    forget_bytes()
    dicomslide.clear_all("request batchers")  # and what would be wanted next
    server.forget()
    matrix[:, :600]
    assert 2 <= server.gate.parties <= 4
    assert not server.gate.broken


def test_objects_of_a_list_are_opened_together(server):
    server.gate = threading.Barrier(3)  # none is answered before all have come
    urls = [f"{server.url}/slide/level-{level}.dcm" for level in range(3)]
    assert [source.path for source in open_store(urls).sources] == urls
    assert not server.gate.broken


def test_small_objects_are_read_once(server, folder):
    slide = dicomslide.open_slide(f"{server.url}/slide/level-2.dcm")
    server.forget()
    slide.get_image_region((0, 0), 0, (256, 256))
    assert not server.requests


# -- changes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["reading", "opening"])
def test_an_object_that_changes_is_noticed_and_never_mixed(image, server, folder, tmp_path, by):
    with dicomslide.set_options(frame_folder=str(tmp_path)):
        image.read_frames([0])
        dicomslide.clear_all("heads of objects")
        server.always = "etag"
        if by == "opening":
            assert RemoteSource.open(image.path).version != image.version
        else:
            with pytest.raises(SourceChangedError, match="open the slide again"):
                image.read_frames([15])
        for wanted in ([0], [0, 15]):  # nor is what is kept given any more
            with pytest.raises(SourceChangedError, match="open the slide again"):
                image.read_frames(wanted)
        forget_everything()  # in another process
        with pytest.raises(SourceChangedError, match="open the slide again"):
            image.read_frames([0])
        server.always = None
        assert list(map(bytes, image.read_frames([0]))) == frames_on_disk(folder, [0])


def test_without_a_version_another_object_is_noticed_when_it_is_opened(folder, tmp_path):
    data = bytearray((folder / "slide" / "level-0.dcm").read_bytes())
    path = tmp_path / "level-0.dcm"
    path.write_bytes(data)
    with serving(tmp_path) as server:
        server.always = "no etag"
        url = f"{server.url}/level-0.dcm"
        source = RemoteSource.open(url)
        before = frame_of(source, 0)
        assert before == frames_on_disk(folder, [0])[0]
        at = data.index(before)
        data[at + len(before) // 2] ^= 1  # as long as before
        path.write_bytes(data)
        changed = RemoteSource.open(url)
        assert changed.identity != source.identity
        assert frame_of(changed, 0) != before
        forget_everything()
        with pytest.raises(SourceChangedError, match="another version"):
            source.read_frames([0])


def test_an_object_that_is_replaced_while_it_is_opened_is_not_mixed(folder, tmp_path, monkeypatch):
    """Its first bytes are of one version, its version is asked for when there is another."""
    memory = fsspec.filesystem("memory")
    old = (folder / "slide" / "level-0.dcm").read_bytes()
    dataset = pydicom.dcmread(folder / "slide" / "level-0.dcm")
    dataset.ContainerIdentifier = "another slide"
    dataset.save_as(tmp_path / "new.dcm")
    new = (tmp_path / "new.dcm").read_bytes()
    memory.pipe("/opening.dcm", old)
    read = MemoryFileSystem.cat_ranges
    others = [new]

    def replaced_afterwards(self, *arguments, **options):
        data = read(self, *arguments, **options)
        if others:
            memory.pipe("/opening.dcm", others.pop())
        return data

    monkeypatch.setattr(MemoryFileSystem, "cat_ranges", replaced_afterwards)
    source = RemoteSource.open("memory://opening.dcm")
    assert source.size == len(new)
    assert source.metadata.ContainerIdentifier == "another slide"
    memory.rm("/opening.dcm")


def test_an_object_in_memory_that_changes_is_noticed(folder):
    memory = fsspec.filesystem("memory")
    data = (folder / "slide" / "level-0.dcm").read_bytes()
    memory.pipe("/changing.dcm", data)
    source = RemoteSource.open("memory://changing.dcm")
    assert list(map(bytes, source.read_frames([0]))) == frames_on_disk(folder, [0])
    memory.pipe("/changing.dcm", data)
    forget_bytes()
    with pytest.raises(SourceChangedError, match=r"memory://changing\.dcm"):
        source.read_frames([0])
    memory.rm("/changing.dcm")
    with pytest.raises(FrameReadError, match="it isn't there"):
        source.read_frames([0])


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_an_archive_that_changes_is_noticed(folder, tmp_path):
    archive = shutil.copy(folder / "slide.zip", tmp_path)
    source = RemoteSource.open(f"zip://in/level-0.dcm::{archive}")
    source.read_frames([0])
    os.utime(archive, ns=(0, 10**9))
    forget_bytes()
    with pytest.raises(SourceChangedError, match="level-0"):
        source.read_frames([0])


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_an_archive_that_changed_is_read_anew(folder, tmp_path):
    archive = shutil.copy(folder / "slide.zip", tmp_path)
    url = f"zip://in::{archive}"
    assert dicomslide.open_slide(url).num_levels == 3
    with zipfile.ZipFile(archive, "w") as changed:
        changed.writestr("before", "other members lie elsewhere now")
        changed.write(folder / "slide" / "level-1.dcm", "in/level-0.dcm")
    slide = dicomslide.open_slide(url)
    assert slide.num_levels == 1
    np.testing.assert_array_equal(
        slide.get_image_region((0, 0), 0, (512, 512)),
        dicomslide.open_slide(folder / "slide" / "level-1.dcm").get_image_region(
            (0, 0), 0, (512, 512)
        ),
    )


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_an_archive_that_is_replaced_while_it_is_opened_is_not_mixed(folder, tmp_path):
    archive = shutil.copy(folder / "slide.zip", tmp_path)
    reach = storage.ObjectReach(f"zip://in/level-0.dcm::{archive}", "{}")
    reach.place()  # has read where members are
    os.utime(archive, ns=(0, 10**9))
    with pytest.raises(base.RangeError, match="changed while it was opened"):
        ranges.read_ranges(reach, [(0, 10)], is_known=False)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_of_an_archive_no_more_is_read_than_of_an_object(server, folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as outer:
        outer.write(folder / "slide.zip", "slide.zip")
    with serving(tmp_path) as other:
        for url, counting in (
            (f"zip://in/level-0.dcm::{server.url}/slide.zip", server),
            (f"zip://in/level-0.dcm::zip://slide.zip::{other.url}/outer.zip", other),
        ):
            source = RemoteSource.open(url)
            frames = source._instance().frames()
            dicomslide.clear_all("heads of objects")
            counting.forget()
            assert list(map(bytes, source.read_frames([15]))) == frames_on_disk(folder, [15])
            start, stop = frames.span(15)
            assert counting.nbytes == stop - start


# -- processes -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_sources_read_in_another_process(image, folder, method):
    assert frame_of(image, 1) == frames_on_disk(folder, [1])[0]  # the loop's thread runs
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        there = pool.submit(frame_of, image, 9).result(timeout=60)
    assert there == frames_on_disk(folder, [9])[0]


def test_many_threads_read_one_object(image, folder):
    expected = frames_on_disk(folder, range(16))
    with ThreadPoolExecutor(8) as pool:
        for index, frame in enumerate(pool.map(lambda i: frame_of(image, i % 16), range(64))):
            assert frame == expected[index % 16]


CLUSTER = """
import sys
import dicomslide, distributed, numpy as np
if __name__ == "__main__":
    url, options = sys.argv[1], eval(sys.argv[2])
    with distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=":0") as cluster:
        with distributed.Client(cluster) as client:
            client.run(dicomslide.register_storage_options, url.rpartition("/")[0], options)
            slide = dicomslide.open_slide(url, storage_options=options)
            array = slide.get_volume_images()[0].get_total_pixel_matrix().to_dask()
            print(int(array.sum(dtype=np.int64).compute()))
"""


def sum_on_a_cluster(url, options):
    parts.check("cluster")
    pytest.importorskip("distributed", reason="a cluster takes distributed")
    command = [sys.executable, "-W", "ignore", "-c", CLUSTER, url, repr(options)]
    out = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stderr[-2000:]
    return int(out.stdout)


@pytest.fixture(scope="module")
def total(folder):
    """Sum of the pixels of the first level."""
    image = dicomslide.open_slide(folder / "slide").get_volume_images()[0]
    return int(image.get_total_pixel_matrix()[...].sum(dtype=np.int64))


@pytest.mark.slow
@pytest.mark.cluster
def test_a_cluster_reads_from_a_server(server, total):
    server.token = SECRET
    options = {"headers": {"Authorization": SECRET}}
    assert sum_on_a_cluster(f"{server.url}/slide/level-0.dcm", options) == total


@pytest.mark.parametrize(
    ("path", "answered"), [("level-0.dcm", 0), ("level-0.dcm", 1), ("", 1)]
)  # fmt: skip
def test_an_interrupt_ends_a_process_that_waits(folder, path, answered):
    """Ctrl-C, while a server doesn't answer and much time is left."""
    code = (
        "import signal, sys, dicomslide\n"
        # a shell starts its background jobs with SIGINT ignored, which children inherit
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "try:\n"
        "    dicomslide.open_slide(sys.argv[1]).get_image_region((0, 0), 0, (1024, 1024))\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', flush=True)"
    )
    with serving(folder) as server:
        server.faults = [None] * answered + ["hang"] * 99
        command = [sys.executable, "-c", code, f"{server.url}/slide/{path}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert server.hangs.wait(60)
                process.send_signal(signal.SIGINT)
                out, _ = process.communicate(timeout=20)  # a request has 30 s
            finally:
                process.kill()
                server.released.set()
    assert out.strip() == "interrupted"


def test_a_thread_that_its_pool_does_not_list_is_abandoned_when_the_interpreter_exits(monkeypatch):
    """Ctrl-C between the start of a thread and its entry in the list of the pool."""

    class Unlisted(dict):
        def __setitem__(self, thread, queue):
            pass

    monkeypatch.setattr(concurrent.futures.thread, "_threads_queues", Unlisted())
    monkeypatch.setattr(policy, "is_exiting", lambda: True)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(policy.is_abandoned).result()
    assert not policy.is_abandoned()  # the main thread


def test_a_thread_whose_start_is_interrupted_ends(monkeypatch):
    dicomslide.clear_all("requesting threads")
    start, started = threading.Thread.start, []

    def interrupted(thread):
        start(thread)
        started.append(thread)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pools.submit_request(int)
    started[0].join(20)
    assert not started[0].is_alive()
    assert pools.submit_request(int).result() == 0  # a new pool


# -- S3 --------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("path", ["one", "one/", "one/level-0.dcm"])
def test_a_bucket_holds_slides(s3_options, pixels, path):
    np.testing.assert_array_equal(region(f"s3://slides/{path}", storage_options=s3_options), pixels)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_pickles_of_a_slide_in_a_bucket_hold_no_secret(s3_options):
    slide = dicomslide.open_slide("s3://slides/one/", storage_options=s3_options)
    source = slide.get_volume_images()[0]._source
    assert len(pickle.dumps(source)) < 2000
    assert SECRET.encode() not in pickle.dumps(slide)


@pytest.mark.slow
@pytest.mark.cluster
def test_a_cluster_reads_from_a_bucket(s3_options, total):
    assert sum_on_a_cluster("s3://slides/one/level-0.dcm", s3_options) == total


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_an_object_of_a_bucket_that_changes_or_vanishes_is_noticed(s3, s3_options, folder):
    data = bytearray((folder / "slide" / "level-0.dcm").read_bytes())
    s3["client"].put_object(Bucket="slides", Key="changing.dcm", Body=bytes(data))
    dicomslide.register_storage_options("s3://slides", s3_options)
    source = RemoteSource.open("s3://slides/changing.dcm")
    assert frame_of(source, 0) == frames_on_disk(folder, [0])[0]
    assert SECRET not in repr(source) + repr(pickle.dumps(source))
    assert json.loads(source.options) == {"client_kwargs": s3_options["client_kwargs"]}
    data[-20] ^= 1
    s3["client"].put_object(Bucket="slides", Key="changing.dcm", Body=bytes(data))
    forget_bytes()
    with pytest.raises(SourceChangedError, match="s3://slides/changing"):
        source.read_frames([0])
    s3["client"].delete_object(Bucket="slides", Key="changing.dcm")
    with pytest.raises(FrameReadError, match="it isn't there"):
        source.read_frames([0])
    with pytest.raises(FileNotFoundError, match="s3://slides/changing"):
        RemoteSource.open("s3://slides/changing.dcm")


def test_who_has_no_credentials_is_told_where_to_give_them(monkeypatch):
    botocore = pytest.importorskip("botocore.exceptions")
    reach = storage.ObjectReach("memory://nowhere", "{}")

    def request(place, wanted, left):
        raise botocore.NoCredentialsError

    clock = FakeClock()
    monkeypatch.setattr(policy, "POLICY", clock.policy())
    with pytest.raises(base.RangeError, match="Unable to locate credentials") as caught:
        attempts.ask(reach, 1, request)
    assert isinstance(remote.error_of("s3://bucket", caught.value), PermissionError)
    assert clock.waits == []


# -- offset tables that aren't there ---------------------------------------------------------


@pytest.fixture
def scanned(tmp_path):
    """An image of 40,000 frames and 2.4 MB that has no offset table."""
    write_slide(tmp_path, shape=(64, 64), tile_shape=(32, 32), downsamples=(1,))
    return long_image(tmp_path / "long.dcm", 40_000, "none")


def test_a_scan_reads_every_byte_once_in_few_requests(scanned):
    with serving(scanned.parent) as server:
        source = RemoteSource.open(f"{server.url}/long.dcm")
        source._instance().frames()
        assert server.nbytes <= scanned.stat().st_size + 2**16
        assert len(server.requests) <= 8
        server.forget()
        frames = source.read_frames([0, 17, 39_999])
        assert [int.from_bytes(frame[:4], "little") for frame in frames] == [0, 17, 39_999]


def test_a_scan_of_large_frames_reads_on(tmp_path):
    """Frames longer than what is read first, and none of their headers in what was read ahead."""
    write_slide(tmp_path, shape=(64, 64), tile_shape=(32, 32), downsamples=(1,))
    path = long_image(tmp_path / "long.dcm", 60, "none", shortest=2 * remote.HEAD)
    with serving(tmp_path) as server:
        source = RemoteSource.open(f"{server.url}/long.dcm")
        source._instance().frames()
        assert server.nbytes <= path.stat().st_size + 2**16
        assert len(server.requests) <= 12


def test_what_a_scan_found_is_kept_on_disk(scanned, tmp_path):
    kept = tmp_path / "index"
    with serving(scanned.parent) as server, dicomslide.set_options(index_folder=str(kept)):
        url = f"{server.url}/long.dcm"
        expected = frame_of(RemoteSource.open(url), 20_000)
        assert len(list(kept.iterdir())) == 1
        forget_everything()  # in another process
        server.forget()
        assert frame_of(RemoteSource.open(url), 20_000) == expected
        assert len(server.requests) <= 3
        assert server.nbytes < 2**19
        (entry,) = kept.iterdir()
        whole = entry.read_bytes()
        for damaged in (b"", whole[:-8], whole[:-1] + bytes([whole[-1] ^ 1]), b"x" * 99):
            entry.write_bytes(damaged)
            forget_everything()
            assert frame_of(RemoteSource.open(url), 20_000) == expected
            assert entry.read_bytes() == whole  # written again
        server.always = "etag"  # the entry of another version takes its place
        forget_everything()
        assert frame_of(RemoteSource.open(url), 20_000) == expected
        assert list(kept.iterdir()) == [entry]
        assert entry.read_bytes() != whole


def test_what_a_scan_of_a_file_found_is_kept_too(scanned, tmp_path):
    kept = tmp_path / "index"
    with dicomslide.set_options(index_folder=str(kept)):
        source = file_backend.FileSource.open(scanned)
        expected = frame_of(source, 3)
        forget_everything()
        assert frame_of(source, 3) == expected
        assert len(list(kept.iterdir())) == 1
    forget_everything()
    with dicomslide.set_options(index_folder=str(scanned)):  # not a folder
        assert frame_of(source, 3) == expected


def write_entries(number):
    from dicomslide.backends.part10 import index_cache

    numbers = np.full(100_000, number, np.int64)
    torn = 0
    for _ in range(20):
        index_cache.save("shared", (), numbers)
        found = index_cache.load("shared", ())
        torn += found is None or len(set(found.tolist())) != 1
    return torn


def test_processes_that_write_one_entry_never_tear_it(tmp_path, monkeypatch):
    monkeypatch.setenv("DICOMSLIDE_INDEX_FOLDER", str(tmp_path))
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert list(pool.map(write_entries, [1, 2])) == [0, 0]
    assert len(list(tmp_path.iterdir())) == 1
