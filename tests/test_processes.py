"""What travels to other processes reads there, and is thin."""

from __future__ import annotations

import multiprocessing
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import dask
import numpy as np
import pytest
import xarray as xr

import dicomslide
from dicomslide.backends.part10.file import FileSource
from dicomslide.testing import position_values

UPRIGHT = np.rot90(position_values(np.arange(130), np.arange(170)), -1)


def things(folder):
    """Everything that holds pixels, each with a function that reads from it."""
    slide = dicomslide.open_slide(folder, correct_color=False)
    image = slide.get_volume_images()[0]
    options = dict(engine="dicomslide", correct_color=False)
    source = FileSource.open(folder / "level-0.dcm")
    return {
        "source": source,
        "image": image,
        "matrix": image.get_total_pixel_matrix(),
        "slide": slide,
        "dask array": slide.to_dataset().image.data,
        "matrix as dask array": image.get_total_pixel_matrix().to_dask("auto"),
        "dataset": xr.open_dataset(folder, **options),
        "dataset of dask arrays": xr.open_dataset(folder, chunks={}, **options),
        "tree": xr.open_datatree(folder, **options),
        "tree of dask arrays": slide.to_datatree(),
    }


def read(name, thing):
    """Read a corner of whatever it is; runs in the other process."""
    if name == "source":
        return np.frombuffer(thing.read_frames([0])[0], np.uint8).reshape(32, 48, 3)[:5, :6]
    if name == "image":
        return thing.get_image_region((0, 0), (5, 6))
    if name == "slide":
        return thing.get_image_region((0, 0), 0, (5, 6))
    if name == "matrix":
        return thing[:5, :6]
    if name == "matrix as dask array":
        return thing[:5, :6].compute(scheduler="sync")
    if name == "dask array":
        return np.rot90(thing[:6, -5:].compute(scheduler="sync"))
    dataset = thing["level_0"] if name.startswith("tree") else thing
    with dask.config.set(scheduler="sync"):  # dask's own threads don't survive a fork
        return np.rot90(dataset.image[:6, -5:].values)


EXPECTED = position_values(np.arange(5), np.arange(6))


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_everything_reads_in_another_process(position_slide, method):
    local = things(position_slide)
    # open files and a decoding pool are there when the process forks
    local["matrix"]._reader.read(
        (slice(None), slice(None), slice(None)),
    )
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        for name, thing in local.items():
            np.testing.assert_array_equal(read(name, thing), EXPECTED, err_msg=name)
            there = pool.submit(read, name, thing).result(timeout=120)
            np.testing.assert_array_equal(there, EXPECTED, err_msg=name)


def test_pickles_are_thin(position_slide):
    local = things(position_slide)
    sizes = {
        name: len(pickle.dumps(local[name])) for name in ("source", "image", "matrix", "slide")
    }
    assert sizes["source"] < 500
    assert sizes["image"] < 1000
    assert sizes["matrix"] < 1000
    assert sizes["slide"] < 1500
    for name in ("dask array", "matrix as dask array"):
        graph = pickle.dumps(local[name].dask)
        assert len(graph) < 10_000, name


def test_unpickling_a_reader_touches_no_file(position_slide, tmp_path):
    """A scheduler that sees no files can still unpickle graphs."""
    import shutil

    copy = tmp_path / "copy.dcm"
    shutil.copy(position_slide / "level-0.dcm", copy)
    slide = dicomslide.open_slide(copy)
    pickled = pickle.dumps((slide.get_volume_images()[0].get_total_pixel_matrix(),
                            slide.to_dataset().image.data))  # fmt: skip
    copy.unlink()
    dicomslide.clear_all("parsed files", "layouts")
    matrix, array = pickle.loads(pickled)
    assert array.shape == (170, 130, 3)
    with pytest.raises(FileNotFoundError):
        matrix[:5, :5]


def test_threads_read_a_thousand_random_regions(tissue_slide):
    slide = dicomslide.open_slide(tissue_slide)
    whole = slide.get_image_region((0, 0), 0, (600, 900))
    dicomslide.clear_all("decoded frames")
    rng = np.random.default_rng(1)
    corners = rng.integers((-50, -50), (600, 900), (1000, 2)).tolist()

    def region(corner):
        return slide.get_image_region(tuple(corner), 0, (64, 64))

    padded = np.full((800, 1100, 3), 255, np.uint8)
    padded[100:700, 100:1000] = whole
    with ThreadPoolExecutor(8) as pool:
        for (row, column), pixels in zip(corners, pool.map(region, corners), strict=True):
            expected = padded[row + 100 : row + 164, column + 100 : column + 164]
            np.testing.assert_array_equal(pixels, expected)


def test_a_thread_reads_on_after_the_main_thread_has_ended(position_slide):
    code = f"""
import threading
import dicomslide

image = dicomslide.open_slide({str(position_slide)!r}).get_volume_images()[0]
matrix = image.get_total_pixel_matrix()

def read():
    threading.main_thread().join()
    with dicomslide.set_options(num_threads=3):
        print(matrix[...].shape)

threading.Thread(target=read).start()
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) == ("(130, 170, 3)\n", "")
