"""Slides as OME-Zarr: the same pixels, the same millimetres, and what others make of them."""

from __future__ import annotations

import math

import numpy as np
import pydicom
import pytest
import xarray as xr
import zarr
from skimage.measure import label

import dicomslide
from dicomslide import recipes, to_ome_zarr
from dicomslide.labelled.overlay import overlay_of
from dicomslide.testing import position_values, write_slide
from tests.support.derive import mapping, segment, write_map, write_segmentation
from tests.support.exports import EXPLICIT, SHARD, assert_valid, expected, ome, upright
from tests.support.markers import palette, write_markers


@pytest.fixture
def _paths_of_several_parts(monkeypatch):
    """The library that validates takes the path of a label image's level for one name."""

    def array_at(group, path):
        first, _, rest = path.partition("/")
        member = group.members[first]
        return array_at(member, rest) if rest else member

    monkeypatch.setattr("ome_zarr_models.v05.labels.check_array_spec", array_at)


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


def each_level(tree, change):
    """A tree whose levels are changed; nothing of its root is."""
    return tree.map_over_datasets(lambda level: change(level) if level.dims else level)


@pytest.mark.parametrize("orientation", ["upright", "stored"])
def test_of_every_other_pixel_the_millimetres_are_right(position_slide, tmp_path, orientation):
    tree = dicomslide.open_slide(position_slide).to_datatree(orientation=orientation)
    y, x = tree["level_0"].image.dims[:2]
    out = tmp_path / "out.zarr"
    to_ome_zarr(
        each_level(tree, lambda level: level.isel({y: slice(4, None, 2), x: slice(6, 120, 3)})), out
    )
    scale, translation = ome(out)["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    assert scale["scale"] == pytest.approx([1, 2 * 0.0005, 3 * 0.0005], abs=1e-12)
    matrix = zarr.open_group(out, mode="r").attrs["slide_coordinates"]["matrix"]
    place = np.array(matrix) @ translation["translation"][1:]
    pixel = (
        (4, 6) if orientation == "stored" else (129 - 6, 4)
    )  # upright, x counts rows from the last
    assert place == pytest.approx(dicomslide.open_slide(position_slide).get_slide_offset(pixel, 0))


@pytest.mark.parametrize(
    ("picked", "message"),
    [
        ({"x": slice(None, None, -1)}, "x must ascend in even steps"),
        ({"y": slice(None, None, -1)}, "y must descend in even steps"),
        ({"x": [0, 5, 6]}, "x must ascend in even steps"),
        ({"x": slice(0, 0)}, "x has no pixels"),
        ({"z": slice(None, None, -1)}, "focal planes must ascend"),
    ],
)
def test_pixels_that_no_scale_can_place_are_refused(stack_slide, tmp_path, picked, message):
    tree = each_level(
        dicomslide.open_slide(stack_slide).to_datatree(), lambda level: level.isel(picked)
    )
    with pytest.raises(ValueError, match=message):
        to_ome_zarr(tree, tmp_path / "out.zarr")
    assert not (tmp_path / "out.zarr").exists()


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


@pytest.mark.parametrize(
    ("picked", "labels", "colors"),
    [
        ([2, 1, 0], ["blue", "green", "red"], ["0000FF", "00FF00", "FF0000"]),
        ([0, 2], ["red", "blue"], ["FF0000", "0000FF"]),
        ([1], ["green"], ["00FF00"]),
    ],
)
def test_samples_keep_their_colours_in_any_order(position_slide, tmp_path, picked, labels, colors):
    tree = dicomslide.open_slide(position_slide).to_datatree()
    to_ome_zarr(each_level(tree, lambda level: level.isel(sample=picked)), tmp_path / "out.zarr")
    channels = ome(tmp_path / "out.zarr")["omero"]["channels"]
    assert [shown["label"] for shown in channels] == labels
    assert [shown["color"] for shown in channels] == colors


def test_what_was_exported_keeps_colours_when_it_is_exported_again(exported, tmp_path):
    tree = xr.open_datatree(exported, engine="zarr", chunks={})
    to_ome_zarr(tree, tmp_path / "out.zarr", shard_size=SHARD)
    for key in ("multiscales", "omero"):
        assert ome(tmp_path / "out.zarr")[key] == ome(exported)[key]
    for level in ("level_0", "level_1"):
        written = zarr.open_array(tmp_path / "out.zarr", path=f"{level}/image", mode="r")
        assert (written.chunks, written.shards) == (
            tree[level].image.encoding["chunks"],
            tree[level].image.encoding["shards"],
        )
        np.testing.assert_array_equal(written[:], tree[level].image)


def test_grey_values_are_shown_where_they_are(tmp_path):
    """Fluorescence of 8 bits is dark; a constant has no range, and is shown in all of it."""
    values = np.arange(400, dtype=np.uint8).reshape(20, 20) // 8
    levels = {"image": (("channel", "y", "x"), np.stack([values, values * 0]))}
    coords = {"y": -0.5 * np.arange(20), "x": 0.5 * np.arange(20)}
    to_ome_zarr(
        xr.DataTree.from_dict({"/level_0": xr.Dataset(levels, coords)}), tmp_path / "out.zarr"
    )
    first, second = (each["window"] for each in ome(tmp_path / "out.zarr")["omero"]["channels"])
    low, high = np.percentile(values, (0.5, 99.5))
    assert first == {"min": 0, "max": 255, "start": low, "end": high}
    assert second == {"min": 0, "max": 255, "start": 0, "end": 255}


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
def masks():
    """Segments of both levels that overlap."""
    rng = np.random.default_rng(7)
    return [rng.random((*shape, 2)) > 0.6 for shape in ((70, 110), (35, 55))]


def assert_scales_are_those_of_the_image(out, name):
    """A label image has the shape, scale and translation of each level of the image."""
    (here,), (there,) = (ome(out, path)["multiscales"] for path in (f"labels/{name}", ""))
    for ours, theirs in zip(here["datasets"], there["datasets"], strict=True):
        arrays = [
            zarr.open_array(out, path=path, mode="r")
            for path in (f"labels/{name}/{ours['path']}", theirs["path"])
        ]
        assert arrays[0].shape[-2:] == arrays[1].shape[-2:]
        assert arrays[0].dtype.kind == "u"
        for mine, its in zip(*(each["coordinateTransformations"] for each in (ours, theirs)),
                             strict=True):  # fmt: skip
            assert list(mine.values())[1][-2:] == pytest.approx(list(its.values())[1][-2:])


def assert_nearest(out, path, source, variable, beyond=0):
    """Each pixel has the value of a pixel of the source whose centre is no farther than others."""
    target, source = (
        xr.open_dataset(out, engine="zarr", group=group)[variable] for group in (path, source)
    )
    spacing = float(source.x[1] - source.x[0])
    allowed = np.zeros(target.shape, bool)
    inside = np.ones(target.shape, bool)
    near = []
    for dim in ("y", "x"):
        distance = np.abs(target[dim].values[:, None] - source[dim].values)
        least = distance.min(axis=1, keepdims=True)
        near.append([np.flatnonzero(row <= low + 1e-3 * spacing)
                     for row, low in zip(distance, least, strict=True)])  # fmt: skip
        within = least[:, 0] <= spacing * 0.5001
        inside &= within[:, None] if dim == "y" else within
    for j, rows in enumerate(near[0]):
        for i, columns in enumerate(near[1]):
            values = source.values[np.ix_(rows, columns)]
            allowed[j, i] = (values == target.values[j, i]).any()
    assert allowed[inside].all()
    assert (target.values[~inside] == beyond).all()
    assert target.attrs["resampled"].startswith("nearest neighbour, of level ")


@pytest.mark.usefixtures("_paths_of_several_parts")
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


@pytest.mark.usefixtures("_paths_of_several_parts")
def test_labels_of_a_label_map_have_the_colours_that_its_header_recommends(tmp_path, levels, masks):
    labels = np.where(masks[0][..., 1], 2, masks[0][..., 0]).astype(np.uint8)
    path = write_segmentation(tmp_path / "seg.dcm", levels[0], labels, "LABELMAP")
    header = pydicom.dcmread(path)
    (of_tumour,) = (each for each in header.SegmentSequence if each.SegmentNumber == 1)
    of_tumour.RecommendedDisplayCIELabValue = [34885, 53485, 50171]  # about red
    header.save_as(path)
    slide = dicomslide.open_slide([levels[0], path])
    to_ome_zarr(slide, tmp_path / "out.zarr", shard_size=SHARD)
    described = ome(tmp_path / "out.zarr", "labels/segmentation")["image-label"]
    shown = {each["label-value"]: each["rgba"] for each in described["colors"]}
    red, green, blue, _ = shown[1]
    assert red > 240
    assert max(green, blue) < 30
    assert shown[2] != shown[1]  # one of its own, where none is recommended
    assert not any("color" in each for each in described["properties"])
    drawn = overlay_of(slide.to_dataset().segmentation)
    assert drawn.colors[drawn.values.index(1)] == f"#{red:02X}{green:02X}{blue:02X}"


@pytest.mark.usefixtures("_paths_of_several_parts")
def test_segments_of_some_levels_have_all_levels_as_label_images(tmp_path, levels, masks):
    """The same number of levels as the image is a must; fractions and maps have their own."""
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
    assert groups == {"level_0", "level_1", "labels", "segmentation_2", "parametric_map"}
    for name in groups - {"level_0", "level_1", "labels"}:
        assert_valid(out / name)
    assert ome(out, "labels")["labels"] == ["segmentation_segment_1", "segmentation_segment_2"]
    label = ome(out, "labels/segmentation_segment_2")["image-label"]
    assert (label["properties"][0]["label"], label["source"]) == ("stroma", {"image": "../../"})
    for k in range(2):
        name = f"segmentation_segment_{k + 1}"
        assert_scales_are_those_of_the_image(out, name)
        array = zarr.open_array(out, path=f"labels/{name}/level_0/segmentation", mode="r")
        np.testing.assert_array_equal(array[:], upright(masks[0][..., k]) * (k + 1))
        assert "resampled" not in array.attrs
        assert_nearest(out, f"labels/{name}/level_1", f"labels/{name}/level_0", "segmentation")
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


@pytest.mark.usefixtures("_paths_of_several_parts")
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
    described = ome(out, "labels/segmentation")["image-label"]
    assert {each["label-value"]: each["label"] for each in described["properties"]} == {
        0: "Background", 1: "tumour", 2: "stroma"
    }  # fmt: skip
    opacity = {each["label-value"]: each["rgba"][3] for each in described["colors"]}
    assert opacity == {0: 0, 1: 128, 2: 128}  # the background hides nothing
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
    names = {*ome(tmp_path / "out.zarr", "labels")["labels"]}
    assert names == {"segmentation_segment_2", "segmentation_2_segment_1"}
    array = zarr.open_array(
        tmp_path / "out.zarr", path="labels/segmentation_segment_2/level_0/segmentation", mode="r"
    )
    np.testing.assert_array_equal(array[:], 2 * upright(masks[0][..., 1]))


def test_a_segmentation_alone_is_exported(tmp_path, levels, masks):
    path = write_segmentation(tmp_path / "b.dcm", levels[0], masks[0].astype(np.uint8), "BINARY")
    to_ome_zarr(dicomslide.open_slide(path), tmp_path / "out.zarr")
    assert_valid(tmp_path / "out.zarr" / "segmentation_segment_1")
    assert "source" not in ome(tmp_path / "out.zarr", "segmentation_segment_1")["image-label"]


# -- what else is in a tree ------------------------------------------------------------------


@pytest.mark.usefixtures("_paths_of_several_parts")
def test_masks_of_ones_own_are_label_images(levels, tmp_path):
    tree = dicomslide.open_slide(levels).to_datatree()
    masks = {}
    for name in ("level_0", "level_1"):
        red, green, blue = (tree[name].image[..., k].values > 120 for k in range(3))
        masks[name] = {"tissue": red, "fat": green, "tumour": blue}
        classes = ["fat", "tumour"] if name == "level_0" else ["tumour", "fat"]
        tree[name] = tree[name].to_dataset().assign(
            tissue=(("y", "x"), red),
            model=(("kind", "y", "x"), np.stack([masks[name][each] for each in classes])),
        ).assign_coords(kind=classes)  # fmt: skip
    out = tmp_path / "out.zarr"
    to_ome_zarr(tree, out)
    assert_valid(out)
    assert ome(out, "labels")["labels"] == ["tissue", "model_segment_1", "model_segment_2"]
    for path, mask, value in (
        ("tissue", "tissue", 1), ("model_segment_1", "fat", 1), ("model_segment_2", "tumour", 2)
    ):  # fmt: skip
        for name in masks:
            variable = path.partition("_")[0]
            array = zarr.open_array(out, path=f"labels/{path}/{name}/{variable}", mode="r")
            np.testing.assert_array_equal(array[:], masks[name][mask] * value)
    (properties,) = ome(out, "labels/model_segment_2")["image-label"]["properties"]
    assert properties == {"label-value": 2, "label": "tumour"}


@pytest.mark.usefixtures("_paths_of_several_parts")
def test_instances_are_a_label_image(levels, tmp_path):
    tree = dicomslide.open_slide(levels).to_datatree()
    red = tree["level_0"].image.isel(sample=0, drop=True)
    cells = recipes.map_instances(red, lambda tile: label(tile % 40 < 20), halo=8, tile=64)
    tree["level_0"] = tree["level_0"].to_dataset().assign(cells=cells)
    to_ome_zarr(tree, tmp_path / "out.zarr")
    assert_valid(tmp_path / "out.zarr")
    assert ome(tmp_path / "out.zarr", "labels")["labels"] == ["cells"]
    array = zarr.open_array(tmp_path / "out.zarr", path="labels/cells/level_0/cells", mode="r")
    np.testing.assert_array_equal(array[:], cells)
    assert cells.max() > 1


@pytest.mark.usefixtures("_paths_of_several_parts")
@pytest.mark.parametrize("made_for", ["larger", "smaller"])
def test_a_mask_on_its_own_grid_is_a_label_image_on_the_levels_and_as_it_is(
    levels, tmp_path, made_for
):
    tree = dicomslide.open_slide(levels).to_datatree()
    base = tree["level_0" if made_for == "smaller" else "level_1"].to_dataset()
    step = 3 if made_for == "smaller" else 1
    grid = base.isel(y=slice(7, 65, step), x=slice(4, 50, step))
    mask = np.random.default_rng(3).random((grid.sizes["y"], grid.sizes["x"])) > 0.5
    tree["mask"] = xr.Dataset({"mask": (("y", "x"), mask)}, grid.coords).drop_dims("sample")
    out = tmp_path / "out.zarr"
    to_ome_zarr(tree, out, shard_size=32)
    assert_valid(out)
    assert_valid(out / "mask")
    assert ome(out, "labels")["labels"] == ["mask"]
    assert_scales_are_those_of_the_image(out, "mask")
    np.testing.assert_array_equal(zarr.open_array(out, path="mask/level_0/mask", mode="r")[:], mask)
    for level in range(2):
        assert_nearest(out, f"labels/mask/level_{level}", "mask/level_0", "mask")


@pytest.mark.usefixtures("_paths_of_several_parts")
def test_label_images_have_all_levels_without_millimetres_and_as_stored(levels, masks, tmp_path):
    stored = dicomslide.open_slide(levels).to_datatree(orientation="stored")
    bare = stored.map_over_datasets(lambda ds: ds.map(lambda each: each.drop_attrs()))
    for name, tree in (("stored", stored), ("bare", bare)):
        mask = (("row", "column"), masks[0][..., 0])
        tree["level_0"] = tree["level_0"].to_dataset().assign(mask=mask)
        out = tmp_path / f"{name}.zarr"
        to_ome_zarr(tree, out, shard_size=32)
        assert_valid(out)
        assert_scales_are_those_of_the_image(out, "mask")
        small = zarr.open_array(out, path="labels/mask/level_1/mask", mode="r")[:]
        quarters = masks[0][..., 0].reshape(35, 2, 55, 2)
        assert (small <= quarters.any((1, 3))).all()
        assert (small >= quarters.all((1, 3))).all()
        assert 0 < small.mean() < 1


def test_a_mask_that_lies_in_another_frame_of_reference_is_no_label_image(levels, tmp_path):
    tree = dicomslide.open_slide(levels).to_datatree()
    base = tree["level_0"].to_dataset().slide.restore(frame_of_reference_uid="1.2.3")
    tree["mask"] = xr.Dataset({"mask": base.image.isel(sample=0, drop=True) > 100})
    to_ome_zarr(tree, tmp_path / "out.zarr")
    groups = {name for name, _ in zarr.open_group(tmp_path / "out.zarr", mode="r").groups()}
    assert groups == {"level_0", "level_1", "mask"}


def test_colours_and_windows_are_those_of_names_headers_and_bits_stored(tmp_path):
    """A channel's position doesn't decide: DAPI is blue where it is the third."""
    path = write_markers(
        tmp_path / "markers.dcm",
        [
            {"OpticalPathDescription": "CD8 (Alexa Fluor 647)"},
            {
                "OpticalPathDescription": "CD3",
                "PaletteColorLookupTableSequence": palette(np.outer(np.arange(256), (0, 1, 1))),
            },
            {"OpticalPathDescription": "DAPI"},
        ],
        bits=12,
    )
    slide = dicomslide.open_slide(path)
    to_ome_zarr(slide, tmp_path / "out.zarr")
    channels = ome(tmp_path / "out.zarr")["omero"]["channels"]
    assert [(each["label"], each["color"]) for each in channels] == [
        ("CD8 (Alexa Fluor 647)", "FF00FF"), ("CD3", "00FFFF"), ("DAPI", "0000FF")
    ]  # fmt: skip
    pixels = slide.to_dataset().image.values
    for shown, values in zip(channels, pixels, strict=True):
        assert (shown["window"]["min"], shown["window"]["max"]) == (0, 4095)
        assert shown["window"]["start"] == np.percentile(values, 0.5)
        assert shown["window"]["end"] == np.percentile(values, 99.5)


def test_a_window_of_the_header_is_that_of_the_export(tmp_path):
    def change(header):
        header.WindowCenter, header.WindowWidth = 500, 201

    path = write_markers(
        tmp_path / "a.dcm", [{"OpticalPathDescription": "FITC"}], bits=10, change=change
    )
    to_ome_zarr(dicomslide.open_slide(path), tmp_path / "out.zarr")
    (shown,) = ome(tmp_path / "out.zarr")["omero"]["channels"]
    assert shown["window"] == {"min": 0, "max": 1023, "start": 399.5, "end": 599.5}
    assert shown["color"] == "00FF00"


def test_segments_have_the_colours_that_the_header_recommends(tmp_path, levels, masks):
    """CIELab of red, by scikit-image."""
    color = pytest.importorskip("skimage.color")
    lab = color.rgb2lab([[[1.0, 0, 0]]])[0, 0]
    path = write_segmentation(tmp_path / "b.dcm", levels[0], masks[0].astype(np.uint8), "BINARY")
    header = pydicom.dcmread(path)
    scaled = np.round((lab + np.array([0, 128, 128])) * 65535 / (100, 255, 255)).astype(int)
    header.SegmentSequence[1].RecommendedDisplayCIELabValue = scaled.tolist()
    header.save_as(path)
    to_ome_zarr(dicomslide.open_slide([*levels, path]), tmp_path / "out.zarr")
    (shown,) = ome(tmp_path / "out.zarr", "labels/segmentation_segment_2")["image-label"]["colors"]
    assert shown["rgba"] == pytest.approx([255, 0, 0, 128], abs=8)  # of another white point


def test_variables_and_nodes_by_the_same_name_are_all_written(levels, tmp_path):
    tree = dicomslide.open_slide(levels).to_datatree()
    base = tree["level_0"].to_dataset()
    tree["level_0"] = base.assign(heat=base.image.isel(sample=0) * 0 + 1)
    grid = base.isel(y=slice(1, None, 5), x=slice(1, None, 5))
    tree["heat"] = grid.assign(image=grid.image.isel(sample=0) * 0 + 2)
    tree["others"] = grid.assign(more=grid.image.isel(sample=0) * 0 + 3)
    to_ome_zarr(tree, tmp_path / "out.zarr")
    for path, value in (
        ("heat/level_0/heat", 1), ("heat_apart/level_0/image", 2),
        ("others_image/level_0/image", None), ("others_more/level_0/more", 3),
    ):  # fmt: skip
        array = zarr.open_array(tmp_path / "out.zarr", path=path, mode="r")
        pixels = np.moveaxis(grid.image.values, -1, 0) if value is None else value
        np.testing.assert_array_equal(array[:], np.broadcast_to(pixels, array.shape))


def test_what_a_tree_cannot_have_is_refused_or_named(levels, tmp_path):
    tree = dicomslide.open_slide(levels).to_datatree()
    base = tree["level_0"].to_dataset()
    red = base.image.isel(sample=0)
    for changed, message in (
        (base.assign(labels=red), "named 'labels'"),
        (base.assign(many=red.expand_dims(a=2, b=2)), "has the dims a, b; expected one dim"),
    ):
        tree["level_0"] = changed
        with pytest.raises(ValueError, match=message):
            to_ome_zarr(tree, tmp_path / "out.zarr")
    tree["level_0"] = base
    tree["deep/level_0"] = base
    with pytest.warns(dicomslide.MetadataWarning, match="left out: /deep/level_0"):
        to_ome_zarr(tree, tmp_path / "out.zarr")
