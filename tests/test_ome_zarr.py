"""Slides as OME-Zarr: the same pixels, the same millimetres, and never half of them."""

from __future__ import annotations

import errno
import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import ome_zarr_models
import pydicom
import pytest
import xarray as xr
import zarr
from derive import segment, write_segmentation
from test_derived import mapping, write_map
from workers import two_workers
from zarr.storage import LocalStore, MemoryStore

import dicomslide
from dicomslide import to_ome_zarr
from dicomslide.cli import main
from dicomslide.export.target import Target
from dicomslide.testing import position_values, write_slide

EXPLICIT = "1.2.840.10008.1.2.1"
SHARD = 64
"""Pixels of a shard here: each level has several."""


def upright(matrix):
    """The typical orientation's rows and columns as the slide stands."""
    return np.rot90(matrix, -1)


def expected(shape, **where):
    """What a level of a slide of positions shows, upright."""
    return upright(position_values(np.arange(shape[0]), np.arange(shape[1]), **where))


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


def ome(store, path=""):
    return zarr.open_group(store, mode="r", path=path).attrs["ome"]


def assert_valid(store):
    """A library that isn't ours finds all that OME-Zarr 0.5 demands."""
    group = zarr.open_group(store, mode="r")
    image = ome_zarr_models.open_ome_zarr(group)
    assert image.ome_zarr_version == "0.5"
    return image


def assert_nothing_to_read(store):
    """No reader takes what is there for an image, or for an array."""
    with pytest.raises(FileNotFoundError):
        xr.open_datatree(store, engine="zarr")
    with pytest.raises(FileNotFoundError):
        zarr.open(store, mode="r")
    assert not list(Path(store).glob("**/level_0/**/zarr.json"))


@pytest.fixture(autouse=True)
def _paths_of_several_parts(monkeypatch):
    """The library that validates takes the path of a label image's level for one name."""

    def array_at(group, path):
        first, _, rest = path.partition("/")
        member = group.members[first]
        return array_at(member, rest) if rest else member

    monkeypatch.setattr("ome_zarr_models.v05.labels.check_array_spec", array_at)


@pytest.fixture(scope="module")
def exported(position_slide, tmp_path_factory):
    """The slide of positions, exported at once."""
    store = tmp_path_factory.mktemp("exported") / "slide.zarr"
    to_ome_zarr(dicomslide.open_slide(position_slide), store, shard_size=SHARD)
    return store


# -- pixels and millimetres ------------------------------------------------------------------


def test_every_pixel_of_every_level_is_that_of_the_slide(exported):
    for level, shape in enumerate([(130, 170), (65, 85)]):
        array = zarr.open_array(exported, path=f"level_{level}/image", mode="r")
        assert (array.dtype, array.metadata.dimension_names) == (np.uint8, ("c", "y", "x"))
        np.testing.assert_array_equal(np.moveaxis(array[:], 0, -1), expected(shape))


def test_millimetres_are_those_of_the_headers(position_slide, exported):
    (multiscale,) = ome(exported)["multiscales"]
    assert [axis["name"] for axis in multiscale["axes"]] == ["c", "y", "x"]
    assert [axis.get("unit") for axis in multiscale["axes"]] == [None, "millimeter", "millimeter"]
    for level, dataset in enumerate(multiscale["datasets"]):
        header = pydicom.dcmread(position_slide / f"level-{level}.dcm")
        (origin,) = header.TotalPixelMatrixOriginSequence
        rows, columns = header.TotalPixelMatrixRows, header.TotalPixelMatrixColumns
        measures = header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        spacing = float(measures.PixelSpacing[0])
        # columns run against Y, rows against X: upright, the first pixel is the last row's first
        x = float(origin.XOffsetInSlideCoordinateSystem) - (rows - 1) * spacing
        y = float(origin.YOffsetInSlideCoordinateSystem)
        scale, translation = dataset["coordinateTransformations"]
        assert scale == {"type": "scale", "scale": [1, spacing, spacing]}
        assert translation["translation"] == pytest.approx([0, -y, x], abs=1e-9)
        opened = xr.open_dataset(exported, engine="zarr", group=f"level_{level}")
        np.testing.assert_allclose(opened.x, x + spacing * np.arange(rows), rtol=0, atol=1e-9)
        np.testing.assert_allclose(opened.y, y - spacing * np.arange(columns), rtol=0, atol=1e-9)
        assert opened.y.attrs["units"] == "mm"


def test_xarray_slices_by_the_same_millimetres(position_slide, exported):
    slide = dicomslide.open_slide(position_slide)
    tree = xr.open_datatree(exported, engine="zarr", chunks={})
    assert tree.attrs["container_identifier"] == "DS-0001"
    assert tree["level_1"].attrs["downsampling_factors"] == [2, 2]
    for level in range(2):
        theirs = slide.to_dataset(level).image
        box = dict(x=slice(17.95, 17.98), y=slice(31.99, 31.95))
        ours = tree[f"level_{level}"].image.sel(box)
        np.testing.assert_array_equal(ours.transpose("y", "x", "c"), theirs.sel(box))
        assert ours.size > 100
    assert list(tree["level_0"].c.values) == ["r", "g", "b"]
    assert tree["level_0"].image.attrs["image_orientation_slide"] == [0, -1, 0, -1, 0, 0]


@pytest.mark.parametrize(
    "orientation", [(1, 0, 0, 0, -1, 0), (math.sqrt(3) / 2, 0.5, 0, 0.5, -math.sqrt(3) / 2, 0)]
)
@pytest.mark.filterwarnings("ignore:.*obliquely:dicomslide.MetadataWarning")
def test_the_matrix_beside_leads_back_to_the_slide(tmp_path, orientation):
    write_slide(tmp_path / "slide", shape=(40, 60), downsamples=(1, 2), tile_shape=(16, 16),
                orientation=orientation, drawing="position", transfer_syntax_uid=EXPLICIT,
                associated=False)  # fmt: skip
    slide = dicomslide.open_slide(tmp_path / "slide")
    to_ome_zarr(slide, tmp_path / "out.zarr", shard_size=32)
    assert_valid(tmp_path / "out.zarr")
    root = zarr.open_group(tmp_path / "out.zarr", mode="r")
    matrix = np.array(root.attrs["slide_coordinates"]["matrix"])
    for level, dataset in enumerate(ome(tmp_path / "out.zarr")["multiscales"][0]["datasets"]):
        scale, translation = (
            list(each.values())[1] for each in dataset["coordinateTransformations"]
        )
        pixel = root[dataset["path"]][:, 7, 9]
        place = matrix @ (np.array(translation[1:]) + np.array(scale[1:]) * (7, 9))
        row, column = slide.get_pixel_indices(tuple(place), level)
        np.testing.assert_array_equal(
            pixel, position_values(np.array([row]), np.array([column]))[0, 0]
        )
        assert place == pytest.approx(slide.get_slide_offset((row, column), level), abs=1e-9)


def test_without_millimetres_scales_are_pixels_of_the_base(tmp_path):
    tree = xr.DataTree.from_dict({
        f"/level_{i}": xr.Dataset({"image": (("row", "column"), np.eye(n, dtype=np.uint16))})
        for i, n in enumerate((40, 10))
    })  # fmt: skip
    to_ome_zarr(tree, tmp_path / "out.zarr")
    assert_valid(tmp_path / "out.zarr")
    (multiscale,) = ome(tmp_path / "out.zarr")["multiscales"]
    assert "unit" not in multiscale["axes"][1]
    scale, translation = multiscale["datasets"][1]["coordinateTransformations"]
    assert (scale["scale"], translation["translation"]) == ([1, 4, 4], [0, 1.5, 1.5])


def test_a_tree_that_was_worked_on_keeps_its_millimetres(position_slide, tmp_path):
    tree = xr.open_datatree(position_slide, engine="dicomslide", chunks={})
    cut = tree.map_over_datasets(
        lambda ds: ds.sel(x=slice(17.95, 17.98), y=slice(31.95, 31.99)) if ds.dims else ds
    )
    cut = cut.map_over_datasets(lambda ds: ds.assign(image=255 - ds.image) if "image" in ds else ds)
    to_ome_zarr(cut, tmp_path / "out.zarr", shard_size=32)
    written = xr.open_datatree(tmp_path / "out.zarr", engine="zarr", chunks={})
    for name in ("level_0", "level_1"):
        image = written[name].image.transpose("y", "x", "c")
        np.testing.assert_array_equal(
            image, 255 - tree[name].image.sel(x=cut[name].x, y=cut[name].y)
        )
        np.testing.assert_array_equal(image.y, cut[name].y)
    _, translation = ome(tmp_path / "out.zarr")["multiscales"][0]["datasets"][0][
        "coordinateTransformations"
    ]
    assert translation["translation"] == [
        0,
        -float(cut["level_0"].y[0]),
        float(cut["level_0"].x[0]),
    ]


def test_a_tree_that_is_not_in_chunks_is_written_all_the_same(position_slide, tmp_path):
    tree = xr.open_datatree(position_slide, engine="dicomslide")
    to_ome_zarr(tree, tmp_path / "out.zarr", shard_size=SHARD)
    array = zarr.open_array(tmp_path / "out.zarr", path="level_0/image", mode="r")
    np.testing.assert_array_equal(np.moveaxis(array[:], 0, -1), expected((130, 170)))


# -- channels, planes, shards ----------------------------------------------------------------


def test_channels_and_focal_planes_are_axes(stack_slide, tmp_path):
    to_ome_zarr(dicomslide.open_slide(stack_slide), tmp_path / "out.zarr", compression="blosc")
    assert_valid(tmp_path / "out.zarr")
    array = zarr.open_array(tmp_path / "out.zarr", path="level_0/image", mode="r")
    assert array.shape == (2, 3, 140, 100)
    for channel in range(2):
        for plane in range(3):
            values = expected((100, 140), channel=channel, plane=plane, samples=1, dtype=np.uint16)
            np.testing.assert_array_equal(array[channel, plane], values[..., 0])
    (multiscale,) = ome(tmp_path / "out.zarr")["multiscales"]
    assert [axis["name"] for axis in multiscale["axes"]] == ["c", "z", "y", "x"]
    scale, translation = multiscale["datasets"][0]["coordinateTransformations"]
    assert (scale["scale"][1], translation["translation"][1]) == (0.002, 0.005)  # mm
    channels = ome(tmp_path / "out.zarr")["omero"]["channels"]
    level = dicomslide.open_slide(stack_slide).to_dataset(1).image.values
    for channel, shown in enumerate(channels):
        assert shown["window"]["max"] == 65535
        low, high = np.percentile(level[channel], (0.5, 99.5))
        assert (shown["window"]["start"], shown["window"]["end"]) == (low, high)
    assert [shown["color"] for shown in channels] == ["0000FF", "00FF00"]
    opened = xr.open_dataset(tmp_path / "out.zarr", engine="zarr", group="level_0")
    assert list(opened.c.values) == ["DAPI", "FITC"]
    np.testing.assert_allclose(opened.z, [0.005, 0.007, 0.009])


def test_colours_are_channels_of_one_chunk(tmp_path):
    write_slide(tmp_path / "slide", shape=(40, 60), downsamples=(1,), tile_shape=(16, 16),
                optical_paths=("bright", "dark"), drawing="position", associated=False,
                transfer_syntax_uid=EXPLICIT)  # fmt: skip
    to_ome_zarr(dicomslide.open_slide(tmp_path / "slide"), tmp_path / "out.zarr", shard_size=32)
    assert_valid(tmp_path / "out.zarr")
    array = zarr.open_array(tmp_path / "out.zarr", path="level_0/image", mode="r")
    assert (array.shape, array.chunks, array.shards) == ((6, 60, 40), (3, 16, 16), (3, 32, 32))
    for channel in range(2):
        pixels = np.moveaxis(array[3 * channel : 3 * channel + 3], 0, -1)
        np.testing.assert_array_equal(pixels, expected((40, 60), channel=channel))
    channels = ome(tmp_path / "out.zarr")["omero"]["channels"]
    assert [shown["label"] for shown in channels[3:]] == ["dark red", "dark green", "dark blue"]
    assert [shown["color"] for shown in channels] == ["FF0000", "00FF00", "0000FF"] * 2


def test_chunks_are_frames_and_shards_whole_chunks(tissue_slide, tmp_path):
    to_ome_zarr(dicomslide.open_slide(tissue_slide), tmp_path / "out.zarr", shard_size=512)
    array = zarr.open_array(tmp_path / "out.zarr", path="level_0/image", mode="r")
    assert (array.chunks, array.shards) == ((3, 256, 256), (3, 512, 512))
    smallest = zarr.open_array(tmp_path / "out.zarr", path="level_2/image", mode="r")
    assert (smallest.shape, smallest.chunks) == ((3, 225, 150), (3, 225, 150))
    assert len(list((tmp_path / "out.zarr" / "level_0" / "image" / "c").rglob("?"))) > 0


def test_a_level_with_other_channels_is_left_out(stack_slide, tmp_path):
    tree = dicomslide.open_slide(stack_slide).to_datatree()
    tree["level_1"] = tree["level_1"].isel(channel=[0])
    with pytest.warns(dicomslide.MetadataWarning, match="level 1 is left out"):
        to_ome_zarr(tree, tmp_path / "out.zarr")
    (multiscale,) = ome(tmp_path / "out.zarr")["multiscales"]
    assert [dataset["path"] for dataset in multiscale["datasets"]] == ["level_0/image"]


# -- derived images --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def levels(tmp_path_factory):
    return write_slide(
        tmp_path_factory.mktemp("levels"),
        shape=(70, 110),
        downsamples=(1, 2),
        tile_shape=(32, 48),
        drawing="position",
        transfer_syntax_uid=EXPLICIT,
        associated=False,
    )


@pytest.fixture(scope="module")
def masks():
    """Segments of both levels that overlap."""
    rng = np.random.default_rng(7)
    return [rng.random((*shape, 2)) > 0.6 for shape in ((70, 110), (35, 55))]


def test_segments_of_all_levels_are_label_images(tmp_path, levels, masks):
    series = pydicom.uid.generate_uid()
    paths = [
        write_segmentation(
            tmp_path / f"{i}.dcm", levels[i], mask.astype(np.uint8), "BINARY", series=series
        )
        for i, mask in enumerate(masks)
    ]
    out = tmp_path / "out.zarr"
    to_ome_zarr(dicomslide.open_slide([*levels, *paths]), out, shard_size=SHARD)
    image = assert_valid(out)
    names = ["segmentation_segment_1", "segmentation_segment_2"]
    assert ome(out, "labels")["labels"] == names
    assert image.members is not None
    for k, name in enumerate(names):
        label = ome(out, f"labels/{name}")
        assert label["image-label"]["source"] == {"image": "../../"}
        (properties,) = label["image-label"]["properties"]
        assert properties["label-value"] == k + 1
        assert properties["label"] == ("tumour", "stroma")[k]
        for i, dataset in enumerate(label["multiscales"][0]["datasets"]):
            array = zarr.open_array(out, path=f"labels/{name}/{dataset['path']}", mode="r")
            assert array.dtype == np.uint8
            np.testing.assert_array_equal(array[:], upright(masks[i][..., k]) * (k + 1))
            there = ome(out)["multiscales"][0]["datasets"][i]["coordinateTransformations"]
            for ours, theirs in zip(dataset["coordinateTransformations"], there, strict=True):
                assert list(ours.values())[1] == list(theirs.values())[1][1:]


def test_what_is_on_some_levels_is_an_image_of_its_own(tmp_path, levels, masks):
    """The same number of levels as the image is a must for label images."""
    paths = [
        write_segmentation(tmp_path / "b.dcm", levels[0], masks[0].astype(np.uint8), "BINARY"),
        write_segmentation(
            tmp_path / "f.dcm", levels[0], masks[0] * 0.5, "FRACTIONAL", max_fractional_value=200
        ),
        write_map(
            tmp_path / "p.dcm",
            levels[1],
            np.linspace(0, 1, 35 * 55).reshape(35, 55, 1).astype(np.float32),
            [[mapping("a")]],
        ),
    ]
    out = tmp_path / "out.zarr"
    to_ome_zarr(dicomslide.open_slide([*levels, *paths]), out, shard_size=SHARD)
    assert_valid(out)
    groups = {name for name, _ in zarr.open_group(out, mode="r").groups()}
    assert groups == {
        "level_0", "level_1", "segmentation_segment_1", "segmentation_segment_2",
        "segmentation_2", "parametric_map",
    }  # fmt: skip
    for name in groups - {"level_0", "level_1"}:
        assert_valid(out / name)
    label = ome(out, "segmentation_segment_2")["image-label"]
    assert (label["properties"][0]["label"], label["source"]) == ("stroma", {"image": "../"})
    half = zarr.open_array(out, path="segmentation_2/level_0/segmentation_2", mode="r")
    np.testing.assert_array_equal(half[1], upright(masks[0][..., 1]) * 100)
    parameters = zarr.open_array(out, path="parametric_map/level_1/parametric_map", mode="r")
    assert (parameters.shape, parameters.dtype) == ((1, 55, 35), np.float32)
    there = ome(out)["multiscales"][0]["datasets"][1]["coordinateTransformations"]
    (dataset,) = ome(out, "parametric_map")["multiscales"][0]["datasets"]
    assert dataset["coordinateTransformations"] == there
    (shown,) = ome(out, "parametric_map")["omero"]["channels"]
    assert shown["label"] == "map a"
    assert 0 <= shown["window"]["start"] < shown["window"]["end"] <= 1


def test_a_label_map_is_one_label_image(tmp_path, levels, masks):
    series = pydicom.uid.generate_uid()
    labels = [np.select([m[..., 0], m[..., 1]], [1, 2], 0).astype(np.uint8) for m in masks]
    paths = [
        write_segmentation(tmp_path / f"{i}.dcm", levels[i], each, "LABELMAP", series=series)
        for i, each in enumerate(labels)
    ]
    out = tmp_path / "out.zarr"
    to_ome_zarr(dicomslide.open_slide([*levels, *paths]), out, shard_size=SHARD)
    assert_valid(out)
    assert ome(out, "labels")["labels"] == ["segmentation"]
    described = ome(out, "labels/segmentation")["image-label"]["properties"]
    assert {each["label-value"]: each["label"] for each in described} | {0: ""} == {
        0: "", 1: "tumour", 2: "stroma"
    }  # fmt: skip
    for i, each in enumerate(labels):
        array = zarr.open_array(out, path=f"labels/segmentation/level_{i}/segmentation", mode="r")
        np.testing.assert_array_equal(array[:], upright(each))


def test_the_only_segment_of_a_tree_keeps_its_number(tmp_path, levels, masks):
    described = [segment(1, "stroma")]
    first = write_segmentation(tmp_path / "1.dcm", levels[0], masks[0].astype(np.uint8), "BINARY")
    second = write_segmentation(
        tmp_path / "2.dcm", levels[0], masks[0][..., :1].astype(np.uint8), "BINARY",
        segments=described,
    )  # fmt: skip
    tree = dicomslide.open_slide([*levels, first, second]).to_datatree()
    tree["level_0"] = tree["level_0"].isel(segment=1)
    assert not {"segment", "segment_2"} & set(tree["level_0"].dims)
    to_ome_zarr(tree, tmp_path / "out.zarr")
    names = {name for name, _ in zarr.open_group(tmp_path / "out.zarr", mode="r").groups()}
    assert {"segmentation_segment_2", "segmentation_2_segment_1"} <= names
    array = zarr.open_array(
        tmp_path / "out.zarr", path="segmentation_segment_2/level_0/segmentation", mode="r"
    )
    np.testing.assert_array_equal(array[:], 2 * upright(masks[0][..., 1]))


def test_a_segmentation_alone_is_exported(tmp_path, levels, masks):
    path = write_segmentation(tmp_path / "b.dcm", levels[0], masks[0].astype(np.uint8), "BINARY")
    to_ome_zarr(dicomslide.open_slide(path), tmp_path / "out.zarr")
    assert_valid(tmp_path / "out.zarr" / "segmentation_segment_1")
    assert "source" not in ome(tmp_path / "out.zarr", "segmentation_segment_1")["image-label"]


# -- what is there already -------------------------------------------------------------------


def test_what_exists_is_left_alone(position_slide, exported, tmp_path):
    slide = dicomslide.open_slide(position_slide)
    before = files(exported)
    with pytest.raises(dicomslide.StoreExistsError, match="overwrite=True") as raised:
        to_ome_zarr(slide, exported)
    assert isinstance(raised.value, FileExistsError)
    to_ome_zarr(slide, exported, resume=True, shard_size=SHARD)  # complete: nothing to do
    assert files(exported) == before
    (tmp_path / "thesis.tex").write_text("text")
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(dicomslide.StoreExistsError, match="exists"):
            to_ome_zarr(slide, tmp_path, **options)
        with pytest.raises(dicomslide.StoreExistsError, match="isn't a folder"):
            to_ome_zarr(slide, tmp_path / "thesis.tex", **options)
    assert files(tmp_path) == {"thesis.tex": b"text"}


def test_overwriting_leaves_nothing_of_what_was_there(position_slide, exported, tmp_path):
    zarr.save_group(tmp_path / "out.zarr", a=np.ones(3), b=np.ones(4))
    slide = dicomslide.open_slide(position_slide)
    to_ome_zarr(slide, tmp_path / "out.zarr", overwrite=True, shard_size=SHARD)
    assert files(tmp_path / "out.zarr") == files(exported)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overwrite": True, "resume": True}, "one of them"),
        ({"shard_size": 0}, "shard_size"),
        ({"compression": "zip"}, "zstd"),
        ({"storage_options": {}}, "URLs"),
    ],
)
def test_wrong_options_raise(position_slide, tmp_path, options, message):
    slide = dicomslide.open_slide(position_slide)
    with pytest.raises(ValueError, match=message):
        to_ome_zarr(slide, tmp_path / "out.zarr", **options)
    assert not (tmp_path / "out.zarr").exists()


def test_wrong_sources_and_stores_raise(position_slide, tmp_path):
    slide = dicomslide.open_slide(position_slide)
    with pytest.raises(TypeError, match="Slide or an xarray"):
        to_ome_zarr(str(position_slide), tmp_path / "out.zarr")
    with pytest.raises(TypeError, match="can't write to a int"):
        to_ome_zarr(slide, 5)
    with pytest.raises(ValueError, match="can be written"):
        to_ome_zarr(slide, MemoryStore(read_only=True))
    with pytest.raises(ValueError, match="no image in this tree"):
        to_ome_zarr(xr.DataTree.from_dict({"/a": xr.Dataset()}), tmp_path / "out.zarr")


def test_a_shard_beyond_the_memory_limit_raises_beforehand(position_slide, tmp_path):
    slide = dicomslide.open_slide(position_slide)
    with (
        dicomslide.set_options(memory_limit_bytes=3 * 96 * 96),
        pytest.raises(dicomslide.MemoryLimitError, match="a shard"),
    ):
        to_ome_zarr(slide, tmp_path / "out.zarr")
    assert not (tmp_path / "out.zarr").exists()


# -- interruptions ---------------------------------------------------------------------------

KILLED = """
import os, signal, sys
import numpy, dask.array, xarray, zarr  # before any thread is there, so that a fork is harmless
from zarr.storage import _local
import dicomslide
slide_folder, out, points = sys.argv[1], sys.argv[2], [int(p) for p in sys.argv[3:]]
original, count = _local._put, 0
def put(path, value, exclusive=False):
    global count
    count += 1
    if count == point:  # half of it is on disk
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".killed.partial").write_bytes(value.to_bytes()[: len(value) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    return original(path, value, exclusive)
_local._put = put
slide = dicomslide.open_slide(slide_folder)
for point in points:
    if os.fork() == 0:
        dicomslide.to_ome_zarr(slide, f"{out}/{point}.zarr", shard_size=64)
        os._exit(1)
    _, status = os.wait()
    assert os.WIFSIGNALED(status), status
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_an_export_killed_at_any_point_is_nothing_and_goes_on(
    position_slide, exported, tmp_path, frames_read
):
    whole = files(exported)
    shards = [name for name in whole if "/image/c/" in name]
    # the export is begun by one file more, and the root is the last of them
    points = [1, 2, 2 + len(shards) // 2, 2 + len(shards), 1 + len(whole)]
    subprocess.run(
        [sys.executable, "-c", KILLED, str(position_slide), str(tmp_path), *map(str, points)],
        check=True,
    )
    slide = dicomslide.open_slide(position_slide)
    for point in points:
        store = tmp_path / f"{point}.zarr"
        if point < len(whole):
            assert_nothing_to_read(store)
        with pytest.raises(FileNotFoundError):
            zarr.open_group(store, mode="r")
        if point > 1:
            with pytest.raises(dicomslide.StoreExistsError, match="resume=True"):
                to_ome_zarr(slide, store, shard_size=SHARD)
        frames_read.clear()
        to_ome_zarr(slide, store, shard_size=SHARD, resume=True)
        assert files(store) == whole, point
        if point >= 2 + len(shards):  # only coordinates were missing
            assert not frames_read


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_killed_between_the_root_and_the_end_it_is_complete(position_slide, exported, tmp_path):
    to_ome_zarr(dicomslide.open_slide(position_slide), tmp_path / "a.zarr", shard_size=SHARD)
    root = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())
    identity = root["attributes"]["dicomslide"]["export"]
    (tmp_path / "a.zarr" / "dicomslide-export.json").write_text(json.dumps(identity))
    assert_valid(tmp_path / "a.zarr")
    slide = dicomslide.open_slide(position_slide)
    to_ome_zarr(slide, tmp_path / "a.zarr", resume=True, shard_size=SHARD)
    assert files(tmp_path / "a.zarr") == files(exported)


class FullStore(LocalStore):
    """A disk with room for so many shards."""

    room = 5

    async def set(self, key, value):
        if "/c/" in key:
            type(self).room -= 1
            if self.room < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        await super().set(key, value)


def test_a_full_disk_says_what_to_do_and_finished_shards_are_not_read_again(
    position_slide, exported, tmp_path, frames_read, monkeypatch
):
    store = FullStore(tmp_path / "out.zarr")
    slide = dicomslide.open_slide(position_slide)
    monkeypatch.setattr(FullStore, "room", 5)
    with pytest.raises(OSError, match="No space left") as raised:
        to_ome_zarr(slide, store, shard_size=SHARD)
    (note,) = raised.value.__notes__
    assert "make room; resume=True" in note
    assert_nothing_to_read(tmp_path / "out.zarr")
    shards = [path for path in (tmp_path / "out.zarr").rglob("c/*/*/*") if path.is_file()]
    assert len(shards) == 5
    FullStore.room = 10_000
    full = len(frames_read)
    frames_read.clear()
    to_ome_zarr(slide, store, shard_size=SHARD, resume=True)
    resumed = len(frames_read)
    assert files(tmp_path / "out.zarr") == files(exported)
    frames_read.clear()
    to_ome_zarr(slide, store, shard_size=SHARD, overwrite=True)
    assert resumed < len(frames_read) <= resumed + full


def test_a_damaged_shard_is_written_again(position_slide, exported, tmp_path, monkeypatch):
    store = FullStore(tmp_path / "out.zarr")
    slide = dicomslide.open_slide(position_slide)
    monkeypatch.setattr(FullStore, "room", 5)
    with pytest.raises(OSError, match="No space"):
        to_ome_zarr(slide, store, shard_size=SHARD)
    shard = next(path for path in (tmp_path / "out.zarr").rglob("c/*/*/*") if path.is_file())
    shard.write_bytes(shard.read_bytes()[:-10])
    FullStore.room = 10_000
    to_ome_zarr(slide, store, shard_size=SHARD, resume=True)
    assert files(tmp_path / "out.zarr") == files(exported)


def test_another_slide_or_other_options_are_not_resumed(position_slide, tmp_path, monkeypatch):
    store = FullStore(tmp_path / "out.zarr")
    monkeypatch.setattr(FullStore, "room", 2)
    with pytest.raises(OSError, match="No space"):
        to_ome_zarr(dicomslide.open_slide(position_slide), store, shard_size=SHARD)
    write_slide(tmp_path / "other", shape=(130, 170), downsamples=(1, 2), tile_shape=(32, 48),
                container_id="DS-2", transfer_syntax_uid=EXPLICIT, drawing="position")  # fmt: skip
    before = files(tmp_path / "out.zarr")
    for slide, options, message in (
        (dicomslide.open_slide(tmp_path / "other"), {}, "slide 'DS-0001', not 'DS-2'"),
        (dicomslide.open_slide(position_slide), {"compression": "blosc"}, "'zstd', not 'blosc'"),
        (dicomslide.open_slide(position_slide), {"shard_size": 32}, "shard_size 64, not 32"),
        (dicomslide.open_slide(position_slide, correct_color=False), {}, "other pixels"),
        (dicomslide.open_slide(position_slide, on_error="fill"), {}, "other pixels"),
    ):  # fmt: skip
        with pytest.raises(dicomslide.StoreExistsError, match=message):
            to_ome_zarr(slide, store, **{"shard_size": SHARD, "resume": True} | options)
    assert files(tmp_path / "out.zarr") == before


def test_a_broken_frame_names_itself_and_leaves_nothing_to_read(tmp_path):
    write_slide(tmp_path / "slide", shape=(128, 128), downsamples=(1,), tile_shape=(32, 32),
                associated=False)  # fmt: skip
    (path,) = (tmp_path / "slide").iterdir()
    data = bytearray(path.read_bytes())
    place = [i for i in range(len(data) - 1) if data[i : i + 2] == b"\xff\xd8"][6]  # JPEG's SOI
    data[place : place + 2] = b"\0\0"
    path.write_bytes(data)
    with pytest.raises(dicomslide.FrameDecodeError, match="frame 7") as raised:
        to_ome_zarr(dicomslide.open_slide(path), tmp_path / "out.zarr", shard_size=32)
    assert "resume=True" in raised.value.__notes__[0]
    assert_nothing_to_read(tmp_path / "out.zarr")
    slide = dicomslide.open_slide(path, on_error="fill")
    with pytest.warns(dicomslide.FrameWarning, match="frame 7"):
        to_ome_zarr(slide, tmp_path / "out.zarr", shard_size=32, overwrite=True)
    assert_valid(tmp_path / "out.zarr")


# -- elsewhere -------------------------------------------------------------------------------


def test_a_url_is_written_by_fsspec(position_slide, exported):
    import fsspec

    url = "memory://exports/slide.zarr"
    slide = dicomslide.open_slide(position_slide)
    to_ome_zarr(slide, url, shard_size=SHARD)
    memory = fsspec.filesystem("memory")
    written = {path: memory.cat_file(path) for path in memory.find("/exports/slide.zarr")}
    whole = files(exported)
    assert {
        name.removeprefix("/exports/slide.zarr/"): data for name, data in written.items()
    } == whole
    with pytest.raises(dicomslide.StoreExistsError, match="memory://exports"):
        to_ome_zarr(slide, url)
    to_ome_zarr(slide, url, shard_size=SHARD, overwrite=True)
    array = xr.open_datatree(url, engine="zarr", chunks={})["level_0"].image
    np.testing.assert_array_equal(array.transpose("y", "x", "c"), expected((130, 170)))


def test_credentials_are_in_no_pickle():
    target = Target.at("s3://bucket/slide.zarr", {"key": "KEY-ID", "secret": "SECRET-KEY"})
    travelling = pickle.dumps(target)
    assert b"SECRET-KEY" not in travelling
    assert b"KEY-ID" not in travelling
    assert len(travelling) < 1000


def test_a_store_of_zarrs_is_written(position_slide, exported):
    store = MemoryStore()
    to_ome_zarr(dicomslide.open_slide(position_slide), store, shard_size=SHARD)
    assert {key: value.to_bytes() for key, value in store._store_dict.items()} == files(exported)


@pytest.fixture(scope="module")
def client():
    with two_workers(is_default=False) as client:
        yield client


def test_a_cluster_writes_the_same(client, position_slide, exported, tmp_path):
    slide = dicomslide.open_slide(position_slide)
    with client.as_current():
        to_ome_zarr(slide, tmp_path / "out.zarr", shard_size=SHARD)
    assert files(tmp_path / "out.zarr") == files(exported)


def test_workers_that_write_elsewhere_are_found_out(client, position_slide):
    store = MemoryStore()
    slide = dicomslide.open_slide(position_slide)
    with (
        client.as_current(),
        pytest.raises(dicomslide.ExportError, match="do all workers write to the same place"),
    ):
        to_ome_zarr(slide, store, shard_size=SHARD)
    assert "zarr.json" not in store._store_dict


# -- at the prompt ---------------------------------------------------------------------------


def test_export_at_the_prompt(position_slide, exported, tmp_path, capsys):
    out = tmp_path / "out.zarr"
    arguments = ["export", str(position_slide), str(out), "--shard-size", str(SHARD)]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == f"{out}: complete"
    assert captured.err == ""  # no bar where nobody looks
    assert files(out) == files(exported)
    assert main(arguments) == 1
    assert "overwrite" in capsys.readouterr().err
    assert main([*arguments, "--resume"]) == 0
    assert main([*arguments, "--overwrite"]) == 0


def test_an_interrupted_export_says_how_to_go_on(
    position_slide, exported, tmp_path, capsys, monkeypatch
):
    from dicomslide.export.target import ShardedArray

    write = ShardedArray.write

    def interrupted(self, index, pixels):
        if index == (0, 1, 1):
            raise KeyboardInterrupt
        write(self, index, pixels)

    out = tmp_path / "out.zarr"
    arguments = ["export", str(position_slide), str(out), "--shard-size", str(SHARD)]
    monkeypatch.setattr(ShardedArray, "write", interrupted)
    assert main(arguments) == 130
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "dicomslide: interrupted"
    assert "--resume" in lines[1]
    assert_nothing_to_read(out)
    monkeypatch.undo()
    assert main([*arguments, "--resume"]) == 0
    assert files(out) == files(exported)
