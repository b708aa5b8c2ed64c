"""A slide as a live store of OME-Zarr: read by zarr, pixel by pixel, and checked."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import xarray as xr

import dicomslide
from dicomslide.testing import write_slide
from tests.support import derive

pytestmark = pytest.mark.needs("zarr")

RAW = "1.2.840.10008.1.2.1"
SLIDES = {
    "colour": dict(shape=(300, 420), tile_shape=(128, 96), downsamples=(1, 2, 4)),
    "fluorescence": dict(
        shape=(200, 300), drawing="cells", samples=1, bits=16, transfer_syntax_uid=RAW,
        optical_paths=("DAPI", "FITC"), planes=(0, 2, 4), tile_shape=(128, 128),
    ),
    "as a north-up raster": dict(
        shape=(200, 300), orientation=(1, 0, 0, 0, -1, 0), tile_shape=(64, 64)
    ),
}  # fmt: skip


@pytest.fixture(params=SLIDES)
def slide(request, tmp_path):
    write_slide(tmp_path, **SLIDES[request.param])
    return dicomslide.open_slide(tmp_path)


@pytest.mark.parametrize("orientation", ["upright", "stored"])
def test_every_level_is_read_by_zarr_pixel_by_pixel(slide, orientation):
    import zarr

    root = zarr.open_group(slide.to_zarr_store(orientation=orientation), mode="r")
    for level in range(slide.num_levels):
        image = slide.to_dataset(level, orientation=orientation, squeeze=False).image
        found = root[f"level_{level}/image"][:]
        plane = ("y", "x") if orientation == "upright" else ("row", "column")
        expected = image.transpose("channel", "sample", "z", *plane).values
        np.testing.assert_array_equal(found, expected.reshape(found.shape))
        part = root[f"level_{level}/image"][..., 7:45, 11:40]
        np.testing.assert_array_equal(part, found[..., 7:45, 11:40])


def test_it_is_the_export_without_a_copy(slide, tmp_path):
    import zarr

    dicomslide.to_ome_zarr(slide, tmp_path / "out.zarr")
    exported = zarr.open_group(tmp_path / "out.zarr", mode="r")
    live = zarr.open_group(slide.to_zarr_store(), mode="r")
    assert live.attrs["ome"] == exported.attrs["ome"]
    one, other = (dict(group["level_0"].attrs) for group in (live, exported))
    assert {**one} == {k: v for k, v in other.items() if k in one}
    assert sorted(live["level_0"].array_keys()) == sorted(exported["level_0"].array_keys())
    for name in ("x", "y"):
        np.testing.assert_array_equal(live[f"level_0/{name}"][:], exported[f"level_0/{name}"][:])


@pytest.mark.needs("ome_zarr_models")
def test_it_is_valid_ome_zarr(slide):
    import zarr
    from ome_zarr_models import open_ome_zarr

    image = open_ome_zarr(zarr.open_group(slide.to_zarr_store(), mode="r"))
    paths = [each.path for each in image.ome_attributes.multiscales[0].datasets]
    assert paths == [f"level_{level}/image" for level in range(slide.num_levels)]


@pytest.mark.needs("highdicom")
def test_label_images_are_in_it(tmp_path):
    import zarr

    files = write_slide(tmp_path, shape=(128, 192), tile_shape=(64, 64), downsamples=(1, 2))
    masks = np.zeros((128, 192, 2), np.uint8)
    masks[20:90, 30:100, 0] = masks[60:, 80:, 1] = 1
    derive.write_segmentation(tmp_path / "seg.dcm", files[0], masks, "BINARY")
    slide = dicomslide.open_slide(tmp_path)
    live = zarr.open_group(slide.to_zarr_store(), mode="r")
    names = live["labels"].attrs["ome"]["labels"]
    assert len(names) == 2
    expected = slide.to_dataset().segmentation
    for name, mask in zip(names, expected.values, strict=True):
        (array,) = (a for n, a in live[f"labels/{name}/level_0"].arrays() if a.ndim >= 2)
        np.testing.assert_array_equal(array[:].squeeze() > 0, mask)


def test_xarray_opens_it_with_its_millimetres(slide):
    tree = xr.open_datatree(slide.to_zarr_store(), engine="zarr", consolidated=False)
    np.testing.assert_array_equal(tree["level_0"].x, slide.to_dataset().x)


def test_it_lists_what_it_has_and_nothing_else(slide):
    from zarr.core.sync import sync

    async def gathered(keys):
        return [key async for key in keys]

    store = slide.to_zarr_store()
    keys = sync(gathered(store.list()))
    assert len(keys) == len(set(keys))
    assert all(sync(store.exists(key)) for key in keys)
    assert "c" in sync(gathered(store.list_dir("level_0/image")))
    for key in ("level_0/image/c/0/0/99/0", "level_0/image/c/0", "level_9/image/c/0/0/0/0", "x"):
        assert not sync(store.exists(key))


def test_it_is_read_only_and_pickles_thin(slide):
    from zarr.core.sync import sync

    store = slide.to_zarr_store()
    with pytest.raises(ValueError, match="read-only"):
        sync(store.set("x", None))
    copy = pickle.loads(pickle.dumps(store))
    assert copy == store
    assert len(pickle.dumps(store)) < 20_000


def test_a_chunk_is_the_same_without_an_event_loop(slide):
    from zarr.abc.store import RangeByteRequest
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.sync import sync

    store, prototype = slide.to_zarr_store(), default_buffer_prototype()
    for part in (None, RangeByteRequest(3, 90)):
        keys = ("level_0/image/c/0/1/1", "level_0/image/c/1/1/1/1")  # without and with planes
        waited = [sync(store.get(key, prototype, part)) for key in keys]
        found = [store.get_sync(key, prototype=prototype, byte_range=part) for key in keys]
        assert sum(each is not None for each in found) == 1
        assert [each and each.to_bytes() for each in found] == [
            each and each.to_bytes() for each in waited
        ]
    for change in (lambda: store.set_sync("x", None), lambda: store.delete_sync("x")):
        with pytest.raises(ValueError, match="read-only"):
            change()


def test_zarr_reads_without_a_task_for_each_chunk(slide):
    import zarr
    from zarr.core import codec_pipeline

    if not hasattr(codec_pipeline, "FusedCodecPipeline"):
        pytest.skip("zarr reads each chunk in a task of its own before 3.3")
    expected = zarr.open_group(slide.to_zarr_store(), mode="r")["level_0/image"][:]
    with zarr.config.set({"codec_pipeline.path": "zarr.core.codec_pipeline.FusedCodecPipeline"}):
        found = zarr.open_group(slide.to_zarr_store(), mode="r")["level_0/image"][:]
    np.testing.assert_array_equal(found, expected)


def test_a_chunk_reads_one_frame_as_stored(slide, frames_read):
    import zarr

    array = zarr.open_group(slide.to_zarr_store(orientation="stored"), mode="r")["level_0/image"]
    dicomslide.clear_all()
    frames_read.clear()
    array[tuple(slice(0, chunk) for chunk in array.chunks)]
    assert len(frames_read) == 1


def test_a_frame_that_fails_is_an_error_that_names_it(tmp_path):
    import zarr

    path, *_ = write_slide(tmp_path, shape=(64, 64), downsamples=(1,), associated=False)
    data = bytearray(path.read_bytes())
    at = data.index(b"\xff\xd8\xff")
    data[at : at + 200] = bytes(200)
    path.write_bytes(data)
    live = zarr.open_group(dicomslide.open_slide(path).to_zarr_store(), mode="r")
    with pytest.raises(dicomslide.FrameDecodeError, match=r"level-0\.dcm"):
        live["level_0/image"][:]
