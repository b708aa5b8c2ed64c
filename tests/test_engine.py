"""The engine of xarray."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import dask
import numpy as np
import pytest
import xarray as xr

import dicomslide
from dicomslide.backends.part10.file import FileSource
from dicomslide.labelled.index import SlideIndex
from dicomslide.readers import frame_reader
from dicomslide.testing import position_values, write_slide
from dicomslide.xarray_plugin import DicomSlideBackendEntrypoint
from tests.support.profiles import swapped_profile

UPRIGHT = np.rot90(position_values(np.arange(130), np.arange(170)), -1)
OPTIONS = dict(engine="dicomslide", correct_color=False)


@pytest.fixture
def frames_read(monkeypatch):
    """Which frames are read, and in how many batches."""
    read = []
    original = FileSource.read_frames

    def counting(self, indices):
        read.append(list(indices))
        return original(self, indices)

    monkeypatch.setattr(FileSource, "read_frames", counting)
    return read


@pytest.mark.parametrize("chunks", [None, {}, "auto", {"y": 96, "x": (66, 64)}])
def test_open_dataset_in_every_way(position_slide, chunks):
    dataset = xr.open_dataset(position_slide, chunks=chunks, **OPTIONS)
    assert dataset.image.dims == ("y", "x", "sample")
    assert isinstance(dataset.xindexes["x"], SlideIndex)
    np.testing.assert_array_equal(dataset.image.values, UPRIGHT)
    assert dataset.encoding["source"] == str(position_slide)
    assert dataset.attrs["container_identifier"] == "DS-0001"


def test_frames_are_chunks_in_the_order_of_the_dims(position_slide):
    image = xr.open_dataset(position_slide, chunks={}, **OPTIONS).image
    # rows of 32 become x, turned around; columns of 48 become y
    assert image.chunks == ((48, 48, 48, 26), (2, 32, 32, 32, 32), (3,))
    assert image.encoding["preferred_chunks"] == {"y": 48, "x": (2, 32, 32, 32, 32), "sample": 3}


def test_auto_and_explicit_chunks_align_to_frames(position_slide):
    import dask

    with dask.config.set({"array.chunk-size": "20kiB"}):
        image = xr.open_dataset(position_slide, chunks="auto", **OPTIONS).image
    frames = xr.open_dataset(position_slide, chunks={}, **OPTIONS).image
    for dim in ("y", "x"):
        borders = set(np.cumsum(image.chunksizes[dim]).tolist())
        assert borders <= set(np.cumsum(frames.chunksizes[dim]).tolist())
    assert 1 < image.data.npartitions < frames.data.npartitions
    with pytest.warns(UserWarning, match="separate the stored chunks"):
        xr.open_dataset(position_slide, chunks={"y": 50}, **OPTIONS)


def test_reading_without_chunks_is_lazy(position_slide, frames_read):
    image = xr.open_dataset(position_slide, **OPTIONS).image
    assert not frames_read
    part = image.isel(y=slice(50, 60), x=slice(70, 90))
    assert not frames_read
    np.testing.assert_array_equal(part.values, UPRIGHT[50:60, 70:90])
    assert sorted(frame for batch in frames_read for frame in batch) == [5]


def test_scattered_pixels_read_only_their_frames(position_slide, frames_read):
    image = xr.open_dataset(position_slide, **OPTIONS).image
    y = xr.DataArray([0, 169], dims="point")
    x = xr.DataArray([129, 0], dims="point")
    np.testing.assert_array_equal(image.isel(y=y, x=x).values, UPRIGHT[[0, 169], [129, 0]])
    assert sum(map(len, frames_read)) <= 4
    frames_read.clear()
    dicomslide.clear_all("decoded frames")
    corners = image.isel(y=[0, 169], x=[0, 129]).values
    np.testing.assert_array_equal(corners, UPRIGHT[np.ix_([0, 169], [0, 129])])
    assert sum(map(len, frames_read)) == 4


def test_async_reads(position_slide):
    image = xr.open_dataset(position_slide, cache=False, **OPTIONS).image
    threads = set()
    original = FileSource.read_frames

    async def load():
        parts = [image.isel(y=slice(i, i + 10)) for i in (0, 60, 120)]
        return await asyncio.gather(*(part.load_async() for part in parts))

    def spying(self, indices):
        threads.add(threading.current_thread())
        return original(self, indices)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileSource, "read_frames", spying)
        loaded = asyncio.run(load())
    for i, part in zip((0, 60, 120), loaded, strict=True):
        np.testing.assert_array_equal(part.values, UPRIGHT[i : i + 10])
    assert threading.main_thread() not in threads


def test_an_array_is_decoded_by_all_threads_whichever_reads_it(position_slide, monkeypatch):
    image = xr.open_dataset(position_slide, cache=False, **OPTIONS).image
    together, here = threading.Barrier(3, timeout=30), threading.local()
    original = frame_reader.decode_frame

    def decode_together(*args):
        if not hasattr(here, "begun"):
            here.begun = True
            together.wait()  # until three threads decode
        return original(*args)

    monkeypatch.setattr(frame_reader, "decode_frame", decode_together)
    with dicomslide.set_options(num_threads=3), ThreadPoolExecutor(1) as server:
        pixels = server.submit(lambda: image.values).result()
    np.testing.assert_array_equal(pixels, UPRIGHT)


@pytest.mark.parametrize("door", ["matrix", "dataset"])
def test_a_dask_task_decodes_in_its_own_thread(position_slide, monkeypatch, door):
    slide = dicomslide.open_slide(position_slide, correct_color=False)
    if door == "matrix":
        array = slide.get_volume_images()[0].get_total_pixel_matrix().to_dask("auto")
    else:
        array = slide.to_dataset(chunks="auto").image.data
    assert array.npartitions == 1  # of many frames
    decoding, original = set(), frame_reader.decode_frame

    def decode(*args):
        decoding.add(threading.get_ident())
        return original(*args)

    monkeypatch.setattr(frame_reader, "decode_frame", decode)
    with dicomslide.set_options(num_threads=3), dask.config.set(scheduler="sync"):
        array.compute()
    assert decoding == {threading.get_ident()}


def test_open_datatree_and_groups(position_slide):
    tree = xr.open_datatree(position_slide, chunks={}, associated=True, **OPTIONS)
    assert list(tree.children) == ["level_0", "level_1", "label", "overview"]
    np.testing.assert_array_equal(tree["level_0"].image.values, UPRIGHT)
    assert isinstance(tree["level_1"].xindexes["y"], SlideIndex)
    assert tree.encoding["source"] == str(position_slide)
    groups = xr.open_groups(position_slide, **OPTIONS)
    assert list(groups) == ["/", "/level_0", "/level_1"]
    one = xr.open_datatree(position_slide, group="level_1", **OPTIONS)
    xr.testing.assert_identical(
        one.to_dataset().image.drop_attrs(), tree["level_1"].image.drop_attrs()
    )
    roi = tree["level_0"].image.sel(x=slice(17.99, 17.95), y=slice(31.95, 31.99))
    assert roi.shape == (81, 81, 3)


def test_levels_and_groups_by_name(position_slide):
    by_level = xr.open_dataset(position_slide, level=1, **OPTIONS)
    by_group = xr.open_dataset(position_slide, group="/level_1", **OPTIONS)
    xr.testing.assert_identical(by_level, by_group)
    assert by_level.image.shape == (85, 65, 3)
    assert xr.open_dataset(position_slide, group="label", **OPTIONS).image.shape == (360, 440, 3)
    with pytest.raises(
        dicomslide.LevelNotFoundError, match=r"no level 2; there are 0 \(130 × 170\)"
    ):
        xr.open_dataset(position_slide, level=2, **OPTIONS)
    with pytest.raises(IndexError, match="no level -1"):
        xr.open_dataset(position_slide, level=-1, **OPTIONS)
    with pytest.raises(dicomslide.LevelNotFoundError, match="'level_1', 'label', 'overview'"):
        xr.open_dataset(position_slide, group="macro", **OPTIONS)
    with pytest.raises(TypeError, match="level, group and spacing"):
        xr.open_dataset(position_slide, group="label", level=0, **OPTIONS)


def test_drop_variables(position_slide):
    dataset = xr.open_dataset(
        position_slide, drop_variables=["image", "channel_description", "absent"], **OPTIONS
    )
    assert "image" not in dataset
    assert "channel_description" not in dataset.coords
    tree = xr.open_datatree(position_slide, drop_variables="image", **OPTIONS)
    assert not tree["level_1"].data_vars


def test_other_inputs(position_slide):
    files = sorted(position_slide.glob("level-*.dcm"))
    for given in (files, str(position_slide), [str(file) for file in files]):
        dataset = xr.open_dataset(given, level=1, **OPTIONS)
        assert dataset.image.shape == (85, 65, 3)
    slide = dicomslide.open_slide(position_slide, correct_color=False)
    image = xr.open_dataset(slide, engine="dicomslide", chunks={}).image
    np.testing.assert_array_equal(image.values, UPRIGHT)
    alone = xr.open_dataset(files[1], **OPTIONS)
    assert alone.image.shape == (85, 65, 3)


def test_engine_is_guessed_for_slides_and_nothing_else(position_slide, tmp_path):
    guess = DicomSlideBackendEntrypoint().guess_can_open
    assert guess(position_slide)
    assert guess(str(position_slide / "level-0.dcm"))
    dataset = xr.open_dataset(position_slide / "level-0.dcm")
    assert dataset.image.shape[2] == 3
    assert xr.open_datatree(position_slide)["level_1"].image.shape == (85, 65, 3)
    other = tmp_path / "other.nc"
    other.write_bytes(b"CDF\1" + bytes(2000))
    short = tmp_path / "short.dcm"
    short.write_bytes(bytes(128) + b"DICM")
    for no in (
        other,
        short,
        tmp_path,
        tmp_path / "absent",
        "https://host/slide.svs",
        "s3://bucket/slide",
        b"bytes",
        None,
        3,
        ["a"],
        object(),
        "nul\0byte",
    ):
        assert guess(no) is False


def test_names_are_deterministic_and_frames_have_names_of_their_own(position_slide):
    first = xr.open_dataset(position_slide, chunks={}, **OPTIONS).image.data.name
    code = (
        "import sys, xarray as xr;"
        f"print(xr.open_dataset({str(position_slide)!r}, engine='dicomslide', chunks={{}},"
        " correct_color=False).image.data.name)"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    # xarray's own token takes the path as it was given
    given = xr.open_dataset(str(position_slide), chunks={}, **OPTIONS).image.data.name
    assert out.stdout.strip() == given
    assert first.startswith("open_dataset-")
    slide = dicomslide.open_slide(position_slide, correct_color=False)
    names = {
        slide.to_dataset(chunks=c, orientation=o).image.data.name
        for c in ("frames", 100)
        for o in ("upright", "stored")
    }
    assert len(names) == 4


def test_computing_on_whole_slides(tissue_slide):
    image = xr.open_dataset(tissue_slide, engine="dicomslide", chunks={}).image
    eager = dicomslide.open_slide(tissue_slide).get_image_region((0, 0), 0, (600, 900))
    for scheduler in ("sync", "threads"):
        mean = image.mean().compute(scheduler=scheduler)
        assert float(mean) == pytest.approx(eager.mean())


def test_entry_point_module_imports_xarray_only():
    code = (
        "import xarray, sys; before = set(sys.modules);"
        "import dicomslide.xarray_plugin;"
        "new = {m.split('.')[0] for m in set(sys.modules) - before};"
        "print(sorted(new - {'dicomslide'} - set(sys.stdlib_module_names)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_absent_tiles_in_the_tree(tmp_path):
    write_slide(
        tmp_path,
        shape=(64, 96),
        downsamples=(1,),
        tile_shape=(32, 48),
        drawing="position",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        sparse=True,
        absent=[(1, 0)],
        associated=False,
    )
    image = xr.open_dataset(tmp_path, chunks={}, **OPTIONS).image
    expected = position_values(np.arange(64), np.arange(96))
    expected[32:, :48] = 255
    np.testing.assert_array_equal(image.values, np.rot90(expected, -1))


def test_a_dataset_has_chunks_of_one_kind_along_each_dim(stack_slide):
    """Or xarray can't tell them, and refuses map_blocks: coordinates beside a dim count too."""
    dataset = xr.open_dataset(stack_slide, engine="dicomslide", chunks={})
    assert {dataset.chunks[dim] for dim in ("channel", "z")} == {
        (1,) * dataset.sizes[dim] for dim in ("channel", "z")
    }
    mapped = xr.map_blocks(lambda part: part + 1, dataset[["image"]])
    region = dict(y=slice(5, 9), x=slice(3, 6))
    np.testing.assert_array_equal(
        mapped.image.isel(region), dataset.image.isel(region).values + np.uint8(1)
    )


@pytest.mark.parametrize(
    "orientation",
    [(0, -1, 0, -1, 0, 0), (0, 1, 0, 1, 0, 0), (-1, 0, 0, 0, 1, 0), (1, 0, 0, 0, -1, 0)],
)
@pytest.mark.parametrize("samples", [1, 3])
def test_arrays_without_dask_are_contiguous_whichever_way_they_are_stored(
    tmp_path, orientation, samples
):
    """PyTorch refuses negative strides, also those of an axis of length one."""
    write_slide(
        tmp_path, shape=(96, 128), downsamples=(1,), tile_shape=(32, 32), orientation=orientation,
        samples=samples, drawing="position", associated=False,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
    )  # fmt: skip
    image = xr.open_dataset(tmp_path, cache=False, **OPTIONS).image
    whole = dicomslide.open_slide(tmp_path, correct_color=False).to_dataset().image.values
    for key in (
        dict(y=slice(5, 60), x=slice(3, 80)),
        dict(y=slice(5, 6), x=slice(3, 4)),
        dict(y=slice(None, None, -3), x=slice(9, 80)),
        dict(y=7, x=slice(3, 80)),
        dict(y=slice(0, 32), x=slice(0, 32)),
        dict(y=[5, 3, 70], x=slice(9, 3, -1)),
    ):
        values = image.isel(key).values
        assert values.flags.c_contiguous
        assert all(stride > 0 for stride in values.strides)
        expected = xr.DataArray(whole, dims=image.dims).isel(key)
        np.testing.assert_array_equal(values, expected)
    torch = pytest.importorskip("torch")
    torch.from_numpy(image.isel(y=slice(5, 6)).values)


def test_options_of_a_slide_hold_that_is_opened_again(tmp_path):
    write_slide(
        tmp_path, shape=(20, 30), downsamples=(1,), tile_shape=(16, 16), drawing="position",
        transfer_syntax_uid="1.2.840.10008.1.2.1", icc_profile=swapped_profile(),
        associated=False,
    )  # fmt: skip
    stored, corrected = (
        dicomslide.open_slide(tmp_path, correct_color=each) for each in (False, True)
    )
    upright = np.rot90(position_values(np.arange(20), np.arange(30)), -1)
    for slide, options, as_stored in (
        (stored, {}, True),
        (corrected, {}, False),
        (corrected, {"correct_color": False}, True),
        (stored, {"correct_color": True}, False),
    ):
        image = xr.open_dataset(slide, engine="dicomslide", **options).image
        assert np.array_equal(image, upright) == as_stored
        image = xr.open_datatree(slide, engine="dicomslide", **options)["level_0"].image
        assert np.array_equal(image, upright) == as_stored
    with pytest.raises(dicomslide.NotSlideError, match="another"):
        xr.open_dataset(stored, engine="dicomslide", container_id="another")
