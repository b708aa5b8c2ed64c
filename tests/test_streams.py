"""Slides that are no files here: bytes, and file objects that somebody else has opened."""

from __future__ import annotations

import copy
import gc
import gzip
import io
import multiprocessing
import pickle
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import xarray as xr

import dicomslide
from dicomslide.testing import write_slide

REGION = ((3, 5), 0, (90, 120))


@pytest.fixture(scope="module", params=["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "jpeg"])
def paths(request, tmp_path_factory):
    options = {} if request.param == "jpeg" else {"transfer_syntax_uid": request.param}
    return write_slide(
        tmp_path_factory.mktemp("slide"), shape=(100, 130), downsamples=(1, 2), tile_shape=(32, 32),
        **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def expected(paths):
    return dicomslide.open_slide(paths).get_image_region(*REGION)


def gzipped(path):
    packed = path.with_suffix(".gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    return gzip.open(packed)


def opened_by_fsspec(path):
    import fsspec

    return fsspec.open(f"local://{path}", "rb").open()


KINDS = {
    "bytes": lambda path: path.read_bytes(),
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "BytesIO": lambda path: io.BytesIO(path.read_bytes()),
    "file": lambda path: path.open("rb"),
    "raw file": lambda path: path.open("rb", buffering=0),
    "gzip": gzipped,
    "fsspec": opened_by_fsspec,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_slide_is_opened_from_what_is_in_its_files(paths, expected, kind):
    given = [KINDS[kind](path) for path in paths]
    slide = dicomslide.open_slide(given)
    assert slide.num_levels == 2
    assert len(slide.label_images) == 1
    np.testing.assert_array_equal(slide.get_image_region(*REGION), expected)
    dataset = xr.open_dataset(given, engine="dicomslide", orientation="stored", chunks={})
    np.testing.assert_array_equal(dataset.image[3:93, 5:125].compute(), expected)
    (again,) = dicomslide.open_slides(given).values()
    np.testing.assert_array_equal(again.get_image_region(*REGION), expected)
    for each in given:
        if hasattr(each, "close"):
            each.close()


@pytest.mark.parametrize("kind", ["bytes", "BytesIO", "file"])
def test_one_level_is_opened_from_one_object(paths, expected, kind):
    given = KINDS[kind](paths[0])
    for slide in (dicomslide.open_slide(given), *dicomslide.open_slides(given).values()):
        np.testing.assert_array_equal(slide.get_image_region(*REGION), expected)
    mixed = dicomslide.open_slide([given, paths[1]])
    assert mixed.num_levels == 2
    if kind == "file":
        given.close()


class Careless(io.RawIOBase):
    """Reads a little at a time, and lets other threads go on in the middle."""

    def __init__(self, data):
        self._data, self._at = data, 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=io.SEEK_SET):
        time.sleep(0)
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at}.get(whence, len(self._data))
        return self._at

    def readinto(self, buffer):
        at = self._at
        time.sleep(0)
        part = self._data[at : at + min(len(buffer), 1000)]
        buffer[: len(part)] = part
        self._at = at + len(part)
        return len(part)


def test_threads_read_one_file_object_at_once(paths, expected):
    slide = dicomslide.open_slide([Careless(path.read_bytes()) for path in paths])
    corners = [(row, column) for row in range(0, 88, 8) for column in range(0, 112, 8)]

    def read(corner):
        return slide.get_image_region((3 + corner[0], 5 + corner[1]), 0, (4, 8))

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(read, corners))
    finally:
        sys.setswitchinterval(switch)
    for (row, column), region in zip(corners, found, strict=True):
        np.testing.assert_array_equal(region, expected[row : row + 4, column : column + 8])


def test_a_slide_of_bytes_says_that_it_does_not_pickle(paths):
    slide = dicomslide.open_slide([path.read_bytes() for path in paths])
    matrix = slide.get_volume_images()[0].get_total_pixel_matrix()
    for each in (slide, matrix, slide.to_dataset()):
        with pytest.raises(dicomslide.NotPicklableError, match=r"<bytes \d+>: .*other processes"):
            pickle.dumps(each)
    assert isinstance(pickle.loads(pickle.dumps(dicomslide.NotPicklableError("x"))), TypeError)
    copied = copy.deepcopy(matrix)
    np.testing.assert_array_equal(copied[:9, :9], matrix[:9, :9])


def test_bytes_are_forgotten_with_their_slide(paths):
    class Bytes(io.BytesIO):
        pass

    given = Bytes(paths[0].read_bytes())
    alive = weakref.ref(given)
    slide = dicomslide.open_slide(given)
    slide.get_image_region(*REGION)
    del slide, given
    gc.collect()
    assert alive() is None


def test_two_objects_with_the_same_bytes_are_copies_of_one_instance(paths):
    data = paths[0].read_bytes()
    with pytest.warns(dicomslide.MetadataWarning, match=r"<bytes \d+> has the SOP Instance UID"):
        slide = dicomslide.open_slide([data, data])
    assert slide.num_levels == 1


class Pipe(io.BytesIO):
    def seekable(self):
        return False


class Failing(io.BytesIO):
    fails = False

    def read(self, *size):
        if self.fails:
            raise RuntimeError("the key has expired")
        return super().read(*size)


def test_what_can_not_be_read_as_a_file_is_an_error_that_says_why(paths):
    data = paths[0].read_bytes()
    closed = io.BytesIO(data)
    closed.close()
    for given, why in (
        (Pipe(data), "can't seek"),
        (io.StringIO("text"), "binary mode"),
        (closed, "closed file"),
    ):
        with pytest.raises(dicomslide.SourceReadError, match=why):
            dicomslide.open_slide(given)
    for given in (b"", b"junk", io.BytesIO(b"junk" * 100), bytes(200)):
        with pytest.raises(dicomslide.NotDicomError, match=r"<bytes|<BytesIO"):
            dicomslide.open_slide(given)
    with pytest.raises(dicomslide.DicomSlideError, match=r"<bytes"):
        dicomslide.open_slide(data[:400])
    for given in (3, None, [3], [paths[0], None]):
        with pytest.raises(TypeError, match=r"can't be opened from a (int|NoneType); expected"):
            dicomslide.open_slide(given)
    with pytest.raises(ValueError, match="storage_options are for URLs"):
        dicomslide.open_slide(data, storage_options={})


def test_a_file_object_that_fails_later_is_an_error_that_names_the_frame(tmp_path):
    (path,) = write_slide(tmp_path, shape=(64, 64), downsamples=(1,), tile_shape=(32, 32),
                          associated=False)  # fmt: skip
    given = Failing(path.read_bytes())
    slide = dicomslide.open_slide(given)
    given.fails = True
    with pytest.raises(dicomslide.DicomSlideError, match=r"<Failing \d+>.*key has expired"):
        slide.get_image_region((0, 0), 0, (64, 64))
    given.fails = False
    assert slide.get_image_region((0, 0), 0, (64, 64)).shape == (64, 64, 3)


def test_a_file_that_becomes_shorter_is_noticed(tmp_path):
    (path,) = write_slide(tmp_path, shape=(64, 64), downsamples=(1,), associated=False)
    with path.open("r+b") as file:
        slide = dicomslide.open_slide(file)
        file.truncate(2000)
        with pytest.raises(dicomslide.SourceChangedError, match=r"level-0\.dcm .*2000 bytes"):
            slide.get_image_region((0, 0), 0, (64, 64))


def _read_in_child(matrix, queue):
    try:
        queue.put(matrix[:40, :40].tobytes())
    except dicomslide.DicomSlideError as error:
        queue.put(str(error))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("kind", ["bytes", "file"])
def test_a_forked_process_reads_memory_but_not_a_file_whose_place_it_shares(tmp_path, kind):
    (path,) = write_slide(tmp_path, shape=(64, 64), downsamples=(1,), associated=False)
    given = KINDS[kind](path)
    matrix = dicomslide.open_slide(given).get_volume_images()[0].get_total_pixel_matrix()
    expected = matrix[:40, :40].tobytes()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_read_in_child, args=(matrix, queue))
    process.start()
    found = queue.get(timeout=30)
    process.join()
    if kind == "bytes":
        assert found == expected
    else:
        assert "opened in another process" in found
        given.close()
    assert threading.active_count() >= 1
