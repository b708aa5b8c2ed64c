"""Threads that still read when the main thread ends: they go on, each alone."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import dicomslide
from dicomslide.testing import write_slide
from tests.support.faulty_server import FaultyServer
from tests.support.optional import need
from tests.support.range_server import serving

READING = """
import sys, threading, time
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import dicomslide

place, whose, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
slide = dicomslide.open_slide(place, correct_color=False)

def read():
    total = 0
    for turn in range(12):
        with dicomslide.set_options(num_threads=2 + turn % 3):
            total += int(slide.get_image_region((0, 0), 0, (512, 768)).sum(dtype=np.int64))
        if turn == 6:  # a first read, for which nothing is kept
            dicomslide.open_slide(place, correct_color=False).get_image_region((0, 0), 1, (99, 99))
    print(f"{total}\\n", end="", flush=True)

if whose == "own":
    for _ in range(8):
        threading.Thread(target=read).start()
else:
    pool = ThreadPoolExecutor(8)
    for _ in range(8):
        pool.submit(read)
time.sleep(seconds)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ends")
    write_slide(folder / "slide", shape=(512, 768), downsamples=(1, 2), tile_shape=(64, 64),
                associated=False)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def expected(folder):
    slide = dicomslide.open_slide(folder / "slide", correct_color=False)
    return f"{12 * int(slide.get_image_region((0, 0), 0, (512, 768)).sum(dtype=np.int64))}\n"


def all_finish(place, whose, seconds, expected):
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", READING, place, whose, str(seconds)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ended.stderr == ""
    assert ended.stdout == 8 * expected


@pytest.mark.parametrize("whose", ["own", "of a pool"])
@pytest.mark.parametrize("seconds", [0, 0.01, 0.1, 0.3])
def test_threads_that_read_files_finish(folder, expected, whose, seconds):
    all_finish(folder / "slide", whose, seconds, expected)


@pytest.mark.parametrize("seconds", [0, 0.1, 0.4])
def test_threads_that_read_from_a_server_finish(folder, expected, seconds):
    need("aiohttp")
    with serving(folder) as server:
        all_finish(f"{server.url}/slide/", "own", seconds, expected)


@pytest.mark.parametrize("seconds", [0, 0.3])
def test_threads_that_read_from_a_dicomweb_server_finish(folder, expected, seconds):
    need("requests")
    with FaultyServer(folder / "slide") as server:
        (study,) = server.archive.search_for_studies()
        uid = study["0020000D"]["Value"][0]
        all_finish(f"dicomweb+{server.url}/studies/{uid}", "own", seconds, expected)
