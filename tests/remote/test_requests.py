"""How much is asked of buckets and HTTP servers: frames together, each of them once."""

from __future__ import annotations

import os
import re
import threading

import dask
import numpy as np
import pytest

import dicomslide
from dicomslide.backends.objects.remote import RemoteSource
from dicomslide.backends.part10.file import FileSource
from dicomslide.testing import write_slide
from tests.support.range_server import serving
from tests.support.remote_slides import SECRET, forget_bytes, forget_everything, frames_on_disk

pytest.importorskip("aiohttp", reason="HTTP takes aiohttp: dicomslide[remote]")

TILE = 16
GREY = dict(samples=1, bits=16, drawing="position")
s3_is_old = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning"
)  # of botocore and moto


def matrix_of(url, **options):
    """Return a matrix of the largest level there."""
    slide = dicomslide.open_slide(url, correct_color=False)
    image = slide.get_volume_images()[0]
    if not isinstance(url, os.PathLike):
        image._source._instance().frames()  # where frames are
    return image.get_total_pixel_matrix(**options)


@pytest.fixture(scope="module")
def level(tmp_path_factory):
    """A level of 40 x 50 frames."""
    folder = tmp_path_factory.mktemp("level")
    write_slide(
        folder, shape=(40 * TILE, 50 * TILE), downsamples=(1,), tile_shape=(TILE, TILE),
        associated=False,
    )  # fmt: skip
    return folder


def mean_length(folder, count):
    frames = FileSource.open(folder / "level-0.dcm")._instance().frames()
    return np.mean([stop - start for start, stop in map(frames.span, range(count))])


def forget_decoded():
    dicomslide.clear_all("decoded frames")


class Asked:
    """What a bucket is asked for."""

    def __init__(self):
        self.ranges = []
        self.others = []
        self._lock = threading.Lock()

    def __call__(self, method, options):
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", options.get("Range", ""))
        with self._lock:
            if method == "get_object" and found:
                self.ranges.append((int(found[1]), int(found[2]) + 1))
            else:
                self.others.append(method)

    def forget(self):
        self.ranges.clear()
        self.others.clear()

    @property
    def nbytes(self):
        return sum(stop - start for start, stop in self.ranges)


@pytest.fixture
def asked(monkeypatch):
    from s3fs import S3FileSystem

    asked = Asked()
    call = S3FileSystem._call_s3

    async def counted(self, method, *arguments, **options):
        asked(method, options)
        return await call(self, method, *arguments, **options)

    monkeypatch.setattr(S3FileSystem, "_call_s3", counted)
    return asked


@pytest.fixture
def bucket(s3, s3_options):
    """Put the first level of a folder into a bucket."""
    dicomslide.register_storage_options("s3://slides", s3_options)

    def put(folder):
        s3["client"].upload_file(str(folder / "level-0.dcm"), "slides", "level.dcm")
        return "s3://slides/level.dcm"

    yield put
    s3["client"].delete_object(Bucket="slides", Key="level.dcm")


# -- what is kept ----------------------------------------------------------------------------


@s3_is_old
def test_a_warm_region_of_a_bucket_costs_no_request(level, bucket, asked):
    matrix = matrix_of(bucket(level))
    asked.forget()
    region = np.s_[5 : 8 * TILE, 20 * TILE + 3 : 28 * TILE]
    cold = matrix[region]
    np.testing.assert_array_equal(cold, matrix_of(level)[region])
    assert len(asked.ranges) == 8
    assert asked.nbytes <= 1.2 * 64 * mean_length(level, 64)
    asked.forget()
    forget_decoded()
    np.testing.assert_array_equal(matrix[region], cold)
    assert not asked.ranges
    assert not asked.others


def test_another_process_reads_frames_from_disk_and_never_those_of_another_version(
    server, folder, tmp_path
):
    url = f"{server.url}/slide/level-0.dcm?signature={SECRET}"
    wanted = [*range(3, 9)]
    expected = frames_on_disk(folder, wanted)

    def requests_in_another_process():
        forget_everything()
        source = RemoteSource.open(url)
        source._instance().frames()
        forget_bytes()
        server.forget()
        assert source.read_frames(wanted) == expected
        return len(server.requests)

    with dicomslide.set_options(frame_folder=str(tmp_path)):
        assert [requests_in_another_process() > 0 for _ in range(2)] == [True, False]
        server.always = "etag"
        assert [requests_in_another_process() > 0 for _ in range(2)] == [True, False]
    (kept,) = tmp_path.iterdir()
    assert SECRET.encode() not in kept.read_bytes()


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("at", [(0, 0), (16, 24)])
def test_chunks_of_single_frames_are_read_together(level, threads, at):
    top, left = at
    region = np.s_[top * TILE : (top + 8) * TILE, left * TILE : (left + 8) * TILE]
    with serving(level) as server:
        matrix = matrix_of(f"{server.url}/level-0.dcm")
        forget_bytes()
        server.forget()
        array = matrix.to_dask()[region]
        assert array.numblocks[:2] == (8, 8)
        with dask.config.set(scheduler="threads", num_workers=threads):
            np.testing.assert_array_equal(array.compute(), matrix_of(level)[region])
        assert len(server.requests) <= 20  # a row of tiles is one range of bytes
        assert server.nbytes <= 2.5 * 64 * mean_length(level, 64)


def test_little_is_read_in_vain_where_positions_are_random(level):
    with serving(level) as server:
        matrix = matrix_of(f"{server.url}/level-0.dcm")
        forget_bytes()
        server.forget()
        for at in np.random.default_rng(0).permutation(40 * 50)[:40].tolist():
            row, column = divmod(at, 50)
            matrix[row * TILE, column * TILE]
        assert len(server.requests) <= 2 * 40
        assert server.nbytes <= 2 * 40 * mean_length(level, 2000)


@pytest.mark.slow
@s3_is_old
@pytest.mark.parametrize("threads", [1, 4])
def test_a_mean_over_6400_frames_of_a_bucket_takes_few_requests(long_level, bucket, asked, threads):
    matrix = matrix_of(bucket(long_level))
    asked.forget()
    with dask.config.set(scheduler="threads", num_workers=threads):
        mean = matrix.to_dask().mean().compute()
    assert mean == pytest.approx(matrix_of(long_level)[...].mean())
    assert len(asked.ranges) <= 6400 / 32
    assert asked.nbytes <= 1.2 * 6400 * mean_length(long_level, 6400)


# -- pixels of any kind ----------------------------------------------------------------------


@s3_is_old
@pytest.mark.parametrize(
    "options",
    [dict(transfer_syntax_uid="1.2.840.10008.1.2.1"),
     dict(GREY, optical_paths=("1", "2", "3"), transfer_syntax_uid="1.2.840.10008.1.2.1"),
     dict(GREY, optical_paths=("1", "2"), planes=(0.0, 1.0), sparse=True,
          transfer_syntax_uid="1.2.840.10008.1.2.4.80")],
    ids=["native", "native paths", "paths and planes"],
)  # fmt: skip
def test_native_frames_and_several_paths_of_a_bucket_are_those_of_the_file(
    tmp_path, bucket, asked, frames_read, options
):
    write_slide(
        tmp_path, shape=(300, 500), downsamples=(1,), tile_shape=(32, 32), associated=False,
        **options,
    )  # fmt: skip
    url = bucket(tmp_path)
    frames = FileSource.open(tmp_path / "level-0.dcm")._instance().frames()
    paths, planes = (len(options.get(name, "1")) for name in ("optical_paths", "planes"))
    for path in range(paths):
        for plane in range(planes):
            where = dict(channel_index=path, focal_plane_index=plane)
            forget_everything()
            there, here = (matrix_of(each, **where) for each in (url, tmp_path))
            forget_bytes()
            region = np.s_[40:250, 70:300]
            frames_read.clear()
            expected = here[region]
            wanted = sum(stop - start for start, stop in map(frames.span, frames_read))
            asked.forget()
            np.testing.assert_array_equal(there[region], expected)
            assert asked.nbytes <= 1.2 * wanted
            np.testing.assert_array_equal(there.to_dask().compute(), here[...])
