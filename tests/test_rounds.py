"""Reads of several coroutines: one round of requests, pixels and errors as of single reads."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
import xarray as xr

import dicomslide
from dicomslide.errors import FrameReadError, SourceReadError
from dicomslide.testing import write_slide
from tests.support import own_store
from tests.support.optional import need
from tests.support.range_server import serving

need("aiohttp", "fsspec")

EDGE, HALF = 512, 256
QUADRANTS = [(row, column) for row in (0, HALF) for column in (0, HALF)]
NATIVE = "1.2.840.10008.1.2.1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two slides of one file each, of 64 frames, most of which lie behind the first bytes."""
    folder = tmp_path_factory.mktemp("slides")
    for number in (1, 2):
        write_slide(folder / str(number), shape=(EDGE, EDGE), tile_shape=(64, 64), seed=number,
                    downsamples=(1,), associated=False, transfer_syntax_uid=NATIVE,
                    container_id=f"S-{number}", slide_number=number)  # fmt: skip
    return folder


@pytest.fixture
def server(folder):
    with serving(folder) as server:
        yield server
    dicomslide.clear_all()


def opened(place):
    return xr.open_dataset(
        place, engine="dicomslide", chunks=None, cache=False, orientation="stored",
        correct_color=False,
    )  # fmt: skip


def quadrants(dataset):
    return [
        dataset.isel(row=slice(row, row + HALF), column=slice(column, column + HALF))
        for row, column in QUADRANTS
    ]


async def loaded(regions, **options):
    return await asyncio.gather(*(region.load_async() for region in regions), **options)


def expected(folder, number):
    """Return the pixels of the file, by pydicom's frames."""
    import pydicom

    (path,) = (folder / str(number)).glob("*.dcm")
    frames = pydicom.dcmread(path).pixel_array.reshape(8, 8, 64, 64, 3)
    return frames.swapaxes(1, 2).reshape(EDGE, EDGE, 3)


def test_regions_of_several_slides_are_one_round_of_requests(folder, server):
    slides = [opened(f"{server.url}/{number}/level-0.dcm") for number in (1, 2)]
    regions = [region for slide in slides for region in quadrants(slide)]
    server.forget()
    server.gate = threading.Barrier(2)  # each request waits for the other one
    found = asyncio.run(loaded(regions))
    assert len(server.requests) == 2
    for number, of_slide in zip((1, 2), (found[:4], found[4:]), strict=True):
        pixels = expected(folder, number)
        for (row, column), region in zip(QUADRANTS, of_slide, strict=True):
            wanted = pixels[row : row + HALF, column : column + HALF]
            np.testing.assert_array_equal(region.image, wanted)


def test_regions_that_overlap_have_each_frame_once(folder, server):
    image = opened(f"{server.url}/1/level-0.dcm").image
    regions = [image.isel(row=slice(at, at + 200), column=slice(100, 400)) for at in (0, 60, 150)]
    server.forget()
    found = asyncio.run(loaded(regions))
    tiles = 6 * 6  # rows 0 to 350, columns 100 to 400
    assert server.nbytes <= (tiles + 6 * 2) * 64 * 64 * 3  # gaps are as cheap as requests
    for at, region in zip((0, 60, 150), found, strict=True):
        np.testing.assert_array_equal(region, expected(folder, 1)[at : at + 200, 100:400])


def test_scattered_pixels_are_part_of_the_round(folder, server):
    image = opened(f"{server.url}/1/level-0.dcm").image
    rows, columns = xr.DataArray([3, 500], dims="point"), xr.DataArray([7, 300], dims="point")
    regions = [image.isel(row=rows, column=columns), image.isel(row=[200, 100], column=-1)]
    scattered, lines = asyncio.run(loaded(regions))
    pixels = expected(folder, 1)
    np.testing.assert_array_equal(scattered, pixels[[3, 500], [7, 300]])
    np.testing.assert_array_equal(lines, pixels[[200, 100], -1])


def test_frames_that_are_not_kept_are_not_fetched_ahead(folder, server):
    server.always = "no etag"
    dataset = opened(f"{server.url}/1/level-0.dcm")
    server.forget()
    found = asyncio.run(loaded(quadrants(dataset)))
    assert server.nbytes <= 1.5 * EDGE * EDGE * 3
    np.testing.assert_array_equal(found[3].image, expected(folder, 1)[HALF:, HALF:])


def test_a_store_of_another_package_reads_each_frame_once(folder, monkeypatch):
    monkeypatch.setattr(own_store.Book, "frames_per_request", 8)
    dataset = opened(dicomslide.open_slide(own_store.shelf_of(folder / "1")))
    own_store.read.clear()
    found = asyncio.run(loaded(quadrants(dataset)))
    frames = [frame for _, _, of_call in own_store.read for frame in of_call]
    assert sorted(frames) == list(range(64))
    np.testing.assert_array_equal(found[3].image, expected(folder, 1)[HALF:, HALF:])


def test_each_region_has_its_own_error(folder, server):
    slides = [opened(f"{server.url}/{number}/level-0.dcm") for number in (1, 2)]
    regions = [region for slide in slides for region in quadrants(slide)]
    regions.append(regions[0].isel(row=slice(0, 0)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "folder", folder / "nowhere")
        with pytest.raises(FrameReadError, match="404") as alone:
            regions[0].compute()
        *failed, empty = asyncio.run(loaded(regions, return_exceptions=True))
    assert {type(each) for each in failed} == {type(alone.value)}
    assert [str(failed[at]).partition(":")[0] for at in (0, 4)] == ["http", "http"]
    assert "/1/" in str(failed[0])
    assert "/2/" in str(failed[4])
    assert empty.image.shape == (0, HALF, 3)


def test_a_server_that_has_gone_with_all_headers_is_an_error_of_each(folder, server):
    dataset = opened(f"{server.url}/1/level-0.dcm")
    dicomslide.clear_all()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "folder", folder / "nowhere")
        loading = asyncio.wait_for(loaded(quadrants(dataset), return_exceptions=True), 30)
        failed = asyncio.run(loading)
    assert all(isinstance(each, (FrameReadError, SourceReadError)) for each in failed)


def test_a_cancelled_read_leaves_the_others(folder, server):
    dataset = opened(f"{server.url}/1/level-0.dcm")

    async def load():
        first, *others = [asyncio.create_task(each.load_async()) for each in quadrants(dataset)]
        await asyncio.sleep(0)
        first.cancel()
        return await asyncio.gather(first, *others, return_exceptions=True)

    first, *others = asyncio.run(load())
    assert isinstance(first, asyncio.CancelledError)
    np.testing.assert_array_equal(others[2].image, expected(folder, 1)[HALF:, HALF:])


def test_the_loop_goes_on_meanwhile(server):
    dataset = opened(f"{server.url}/1/level-0.dcm")
    server.gate = threading.Barrier(2)

    async def load():
        loading = asyncio.create_task(dataset.load_async())
        while not server.gate.n_waiting:
            await asyncio.sleep(0.001)
        server.gate.reset()  # the request goes on: the barrier is broken for it
        server.gate = None
        return await loading

    assert asyncio.run(load()).image.shape == (EDGE, EDGE, 3)
