"""Focal planes that follow the tissue, and channels whose images differ: what peers open."""

from __future__ import annotations

import dataclasses
import logging
import subprocess
import sys

import numpy as np
import pydicom
import pytest
import xarray as xr
from pydicom.sr.coding import Code

import dicomslide
from dicomslide import FramePositionError, MetadataWarning, OpenSlide, open_slide
from dicomslide.errors import AmbiguousSlideError
from dicomslide.header.geometry import SlideGeometry
from dicomslide.header.tiling import focal_planes
from dicomslide.pixels import PixelFormat
from dicomslide.testing import (
    PositionDrawing,
    SyntheticImage,
    averaged,
    uid_of,
    write_image,
    write_slide,
)
from tests.support.quirky import NATIVE, changed, expected

SHAPE = (60, 80)
BASE = SlideGeometry((10.0, 20.0), (0.0, -1.0), (-1.0, 0.0), (0.001, 0.001), SHAPE)


@dataclasses.dataclass(frozen=True)
class Further(PositionDrawing):
    """Draws what channels and planes of other images follow on."""

    channel: int = 0
    plane: int = 0

    def tile(self, rows, columns, channel, plane):
        return super().tile(rows, columns, self.channel + channel, self.plane + plane)


def write(
    path, *, channel=0, plane=0, paths=("1",), planes=(0.0,), samples=1, bits=16, factor=1,
    shape=SHAPE, shift=(0.0, 0.0), orientation=None, series="a", sparse=False, change=None,
):  # fmt: skip
    """An image that shows the channels and planes from one on, counted through all images."""
    dtype = np.uint16 if bits > 8 else np.uint8
    x, y = BASE.origin
    geometry = dataclasses.replace(BASE, origin=(x + shift[0], y + shift[1]), shape=shape)
    if orientation is not None:
        geometry = dataclasses.replace(
            geometry, row_direction=orientation[:2], column_direction=orientation[3:5]
        )
    image = SyntheticImage(
        geometry=averaged(geometry, factor),
        drawing=Further(samples, dtype, channel, plane),
        pixel_format=PixelFormat(
            rows=32, columns=32, samples=samples, bits_allocated=bits, bits_stored=bits
        ),
        transfer_syntax_uid=NATIVE,
        optical_paths=paths,
        planes=planes,
        sparse=sparse,
    )

    def named(dataset):
        dataset.SOPInstanceUID = uid_of(path.name)
        dataset.SeriesInstanceUID = uid_of("series", series)
        dataset.SeriesDescription = f"series {series}"
        if change is not None:
            change(dataset)

    path.parent.mkdir(parents=True, exist_ok=True)
    return write_image(path, image, change=named)


def drawn(shape=SHAPE, channel=0, plane=0, *, samples=1, bits=16):
    dtype = np.uint16 if bits > 8 else np.uint8
    return expected(shape, channel, plane, samples=samples, dtype=dtype)


def upright(matrix):
    return np.rot90(matrix, -1)


def with_heights(path, heights, *, declared=1):
    """Give each frame a Z offset of its own, in µm."""

    def change(dataset):
        for item, z in zip(dataset.PerFrameFunctionalGroupsSequence, heights, strict=True):
            item.PlanePositionSlideSequence[0].ZOffsetInSlideCoordinateSystem = f"{z:.4f}"
        dataset.TotalPixelMatrixFocalPlanes = declared
        if declared is None:
            del dataset.TotalPixelMatrixFocalPlanes

    changed(path, change)
    return path


# -- planes that follow the tissue -----------------------------------------------------------


@pytest.mark.parametrize("declared", [1, 3, 1000, None])
@pytest.mark.parametrize("paths", [("1",), ("DAPI", "FITC")])
def test_a_plane_that_follows_the_tissue_is_one(tmp_path, caplog, declared, paths):
    caplog.set_level(logging.DEBUG, "dicomslide")
    path = write(tmp_path / "a.dcm", paths=paths, sparse=True)
    heights = np.random.default_rng(1).normal(5, 1, 6 * len(paths)).round(3)
    heights[6:] = heights[: len(heights[6:])]  # both channels follow it alike
    with_heights(path, heights, declared=declared)
    slide = open_slide(path)
    assert slide.num_focal_planes == 1
    median = sorted(heights)[(len(heights) - 1) // 2]
    assert slide.get_focal_plane_offset(0) == pytest.approx(median)
    variable = xr.open_datatree(path, engine="dicomslide")["level_0"].image
    assert "z" not in variable.dims
    assert float(variable.z) == pytest.approx(median / 1000)
    np.testing.assert_allclose(
        variable.attrs["focal_plane_span"], [heights.min() / 1000, heights.max() / 1000]
    )
    assert "isn't flat" in caplog.text
    for channel in range(len(paths)):
        wanted = drawn(channel=channel)
        np.testing.assert_array_equal(slide.get_image_region((0, 0), 0, SHAPE, channel), wanted)
        shown = np.asarray(
            OpenSlide(slide, channel_index=channel).read_region((0, 0), 0, SHAPE[::-1])
        )
        np.testing.assert_array_equal(shown[..., 0], wanted[..., 0] >> 8)
        assert (shown[..., 3] == 255).all()
    _, positions, _, planes = dicomslide.compute_frame_positions(pydicom.dcmread(path))
    assert not planes.any()
    np.testing.assert_allclose(positions[:, 2], heights / 1000)  # each frame's own


def test_libopenslide_sees_the_same_pixels_of_a_plane_that_follows_the_tissue(tmp_path):
    pytest.importorskip("openslide")
    (path,) = write_slide(
        tmp_path, shape=SHAPE, downsamples=(1,), tile_shape=(32, 32), drawing="position",
        transfer_syntax_uid=NATIVE, associated=False, sparse=True,
    )  # fmt: skip
    with_heights(path, [0.0, 0.3, -2.5, 4.0, 1.1, 0.2])
    code = (
        "import sys, openslide; slide = openslide.OpenSlide(sys.argv[1]);"
        "sys.stdout.buffer.write(slide.read_region((0, 0), 0, slide.dimensions).tobytes())"
    )
    out = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=True)
    ours = OpenSlide(path).read_region((0, 0), 0, SHAPE[::-1])
    assert out.stdout == ours.tobytes()


@pytest.mark.parametrize("declared", [3, 1, None])
@pytest.mark.parametrize("tilt", [0.0, 3.0], ids=["noise", "tilted"])
def test_planes_that_follow_the_tissue_are_counted_within_each_tile(tmp_path, declared, tilt):
    path = write(tmp_path / "a.dcm", planes=(0.0, 2.0, 4.0), sparse=True)
    tiles = np.tile(np.arange(6), 3)
    noise = np.random.default_rng(2).normal(0, 0.05, 18)
    heights = np.repeat([0.0, 2.0, 4.0], 6) + tilt * tiles + noise
    with_heights(path, heights, declared=declared)
    slide = open_slide(path)
    assert slide.num_focal_planes == 3
    variable = slide.to_dataset().image
    assert len(variable.attrs["focal_plane_span"]) == 3
    for plane in range(3):
        wanted = drawn(plane=plane)
        np.testing.assert_array_equal(slide.get_image_region((0, 0), 0, SHAPE, 0, plane), wanted)
        np.testing.assert_array_equal(variable[plane], upright(wanted[..., 0]))
        median = sorted(heights[6 * plane : 6 * plane + 6])[2]
        assert slide.get_focal_plane_offset(plane) == pytest.approx(median, abs=1e-3)
    indices = dicomslide.compute_frame_positions(pydicom.dcmread(path))[3]
    np.testing.assert_array_equal(indices, np.repeat([0, 1, 2], 6))


def test_noise_does_not_move_a_tile_that_lacks_a_plane(tmp_path):
    """Of its tiles the first lacks the lowest plane: what it has is of the middle and highest."""
    z = np.array([2.03, 4.01, 0.0, 2.0, 4.0, 0.02, 1.98, 3.97])
    tiles = np.array([0, 0, 1, 1, 1, 2, 2, 2])
    assert focal_planes(z, tiles, 3).tolist() == [1, 2, 0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("z", "tiles", "declared", "planes"),
    [
        ([0, 5, 5, 10], [0, 0, 1, 1], 3, [0, 1, 1, 2]),  # declared: two tiles lack one each
        ([0, 5, 5, 10], [0, 0, 1, 1], None, [0, 1, 1, 2]),  # four of six are there
        ([0, 5, 5, 10], [0, 0, 1, 1], 2, [0, 1, 0, 1]),
        ([0, 1, 10, 11, 20, 21], [0, 0, 1, 1, 2, 2], None, [0, 1, 0, 1, 0, 1]),
        ([0, 0.001, 0, 0.001], [0, 0, 1, 1], 2, [0, 1, 0, 1]),  # frames need them to be planes
        ([0, 0.001, 0.004, 0.002], [0, 1, 2, 3], 1, [0, 0, 0, 0]),
        ([0, 0.3, 0.6], [0, 1, 2], 3, [0, 0, 0]),
    ],
)  # fmt: skip
def test_planes_are_those_that_frames_need(z, tiles, declared, planes):
    found = focal_planes(np.array(z, float), np.array(tiles), declared)
    assert found.tolist() == planes


@pytest.mark.parametrize("offset", [0.0, 0.7])
def test_two_frames_at_one_place_of_a_plane_that_follows_the_tissue_raise(tmp_path, offset):
    path = write(tmp_path / "a.dcm", sparse=True)
    heights = [0.0, 0.5, 1.0, 1.5, 2.0, 0.5 + offset]
    with_heights(path, heights)

    def move(dataset):
        second, last = (dataset.PerFrameFunctionalGroupsSequence[i] for i in (1, 5))
        for name in ("ColumnPositionInTotalImagePixelMatrix", "RowPositionInTotalImagePixelMatrix"):
            value = second.PlanePositionSlideSequence[0][name].value
            setattr(last.PlanePositionSlideSequence[0], name, value)

    changed(path, move)
    with pytest.raises(FramePositionError, match="frames 2 and 6 both lie at row 1, column 33"):
        open_slide(path)


def test_parts_of_an_image_whose_plane_follows_the_tissue_are_one(tmp_path):
    whole = pydicom.dcmread(with_heights(write(tmp_path / "a.dcm", sparse=True), np.arange(6) / 3))
    for number in range(2):
        part = pydicom.dcmread(tmp_path / "a.dcm")
        part.SOPInstanceUID = part.file_meta.MediaStorageSOPInstanceUID = uid_of("part", number)
        frames = slice(3 * number, 3 * number + 3)
        part.PerFrameFunctionalGroupsSequence = whole.PerFrameFunctionalGroupsSequence[frames]
        part.NumberOfFrames = 3
        half = len(whole.PixelData) // 2
        part.PixelData = whole.PixelData[number * half : (number + 1) * half]
        part.save_as(tmp_path / f"part-{number}.dcm")
    (tmp_path / "a.dcm").unlink()
    slide = open_slide(tmp_path)
    np.testing.assert_array_equal(slide.get_image_region((0, 0), 0, SHAPE), drawn())


def test_planes_of_a_million_frames_are_found_without_a_loop():
    """As a loop over tiles it takes more than a minute."""
    count = 350_000
    z = (np.repeat([0.0, 2.0, 4.0], count) + np.tile(np.linspace(0, 50, count), 3)).round(4)
    order = np.random.default_rng(0).permutation(3 * count)
    tiles = np.tile(np.arange(count), 3)
    found = focal_planes(z[order], tiles[order], 3)
    np.testing.assert_array_equal(found, np.repeat([0, 1, 2], count)[order])


# -- levels and channels with one plane each -------------------------------------------------


@pytest.mark.parametrize("step", [0.05, 0.1, 4.0])
def test_levels_with_a_plane_each_have_one(tmp_path, step):
    heights = (1.0, 1.0 + step, 1.0 - step)
    for level, z in enumerate(heights):
        write(tmp_path / f"{level}.dcm", planes=(z,), factor=2**level)
    slide = open_slide(tmp_path)
    assert (slide.num_levels, slide.focal_plane_offsets) == (3, (1.0,))
    assert slide.get_focal_plane_index(1.0) == 0
    tree = slide.to_datatree()
    for level, z in enumerate(heights):
        shape = (60 >> level, 80 >> level)
        np.testing.assert_array_equal(slide.get_image_region((0, 0), level, shape), drawn(shape))
        here = tree[f"level_{level}"]
        assert float(here.z) == pytest.approx(z / 1000)
        assert int(here.focal_plane) == 0
        points = slide.map_pixel_indices_to_slide_coordinates(np.array([[0, 0]]), level)
        assert points[0, 2] == pytest.approx(z / 1000)
    assert OpenSlide(slide).level_dimensions == ((80, 60), (40, 30), (20, 15))


def test_a_level_with_the_middle_plane_of_a_stack_has_that_one(tmp_path):
    write(tmp_path / "0.dcm", planes=(0.0, 2.0, 4.0))
    write(tmp_path / "1.dcm", planes=(2.03,), plane=1, factor=2)
    slide = open_slide(tmp_path)
    assert slide.focal_plane_offsets == (0.0, 2.0, 4.0)
    np.testing.assert_array_equal(
        slide.get_image_region((0, 0), 1, (30, 40), 0, 1), drawn((30, 40), plane=1)
    )
    level = slide.to_dataset(1)
    assert (float(level.z), int(level.focal_plane)) == (pytest.approx(0.00203), 1)


@pytest.mark.parametrize("stored", ["an instance each", "one instance"])
def test_channels_with_a_plane_each_are_no_stack(tmp_path, stored):
    heights, paths = (0.0, 0.4, -0.3), ("DAPI", "FITC", "Cy5")
    if stored == "one instance":
        path = write(tmp_path / "a.dcm", paths=paths, sparse=True)
        with_heights(path, np.repeat(heights, 6))
    else:
        for i, (z, path) in enumerate(zip(heights, paths, strict=True)):
            write(tmp_path / f"{i}.dcm", channel=i, paths=(path,), planes=(z,))
    slide = open_slide(tmp_path)
    assert (slide.num_channels, slide.num_focal_planes) == (3, 1)
    variable = slide.to_dataset().image
    assert variable.dims == ("channel", "y", "x")
    assert variable.z.dims == ("channel",)
    assert "focal_plane_span" not in variable.attrs  # each is flat
    np.testing.assert_allclose(variable.z, np.array(heights) / 1000)
    for channel, z in enumerate(heights):
        np.testing.assert_array_equal(variable[channel], upright(drawn(channel=channel)[..., 0]))
        points = slide.map_pixel_indices_to_slide_coordinates(np.array([[0, 0]]), 0, channel)
        assert points[0, 2] == pytest.approx(z / 1000)
    assert float(variable.sel(channel="FITC").z) == pytest.approx(0.0004)
    whole = slide.to_dataset(squeeze=False).image
    assert whole.dims == ("channel", "z", "y", "x", "sample")
    assert whole.channel_z.dims == ("channel", "z")
    np.testing.assert_allclose(whole.channel_z[:, 0], np.array(heights) / 1000)


def test_stacks_of_channels_that_lie_apart_have_the_z_of_each(tmp_path):
    """Chromatic shift: the same planes of another channel lie 0.3 µm higher."""
    write(tmp_path / "a.dcm", paths=("DAPI",), planes=(0.0, 2.0, 4.0))
    write(tmp_path / "b.dcm", channel=1, paths=("Cy5",), planes=(0.3, 2.3, 4.3))
    slide = open_slide(tmp_path)
    assert slide.focal_plane_offsets == (0.0, 2.0, 4.0)
    variable = slide.to_dataset().image
    assert variable.dims == ("channel", "z", "y", "x")
    np.testing.assert_allclose(variable.z, [0, 0.002, 0.004])
    np.testing.assert_allclose(
        variable.channel_z, [[0, 0.002, 0.004], [0.0003, 0.0023, 0.0043]], atol=1e-12
    )
    for channel in range(2):
        for plane in range(3):
            wanted = drawn(channel=channel, plane=plane)
            np.testing.assert_array_equal(variable[channel, plane], upright(wanted[..., 0]))


# -- channels whose images differ ------------------------------------------------------------


def test_a_channel_that_lies_apart_has_millimetres_of_its_own(tmp_path):
    shift = (0.0012, -0.0025)  # 1.2 pixels along X, 2.5 along −Y
    for factor in (1, 2):
        write(tmp_path / f"{factor}-a.dcm", paths=("DAPI", "FITC"), factor=factor)
        write(tmp_path / f"{factor}-b.dcm", channel=2, paths=("Cy5",), factor=factor, shift=shift)
    slide = open_slide(tmp_path)
    assert (slide.num_levels, slide.num_channels) == (2, 3)
    tree = slide.to_datatree()
    assert tree["level_0"].image.channel.values.tolist() == ["DAPI", "FITC"]
    assert [name for name in tree.children if "level_" not in name[:6]] == [
        "image_2",
        "image_2_level_1",
    ]
    for level, name in enumerate(("image_2", "image_2_level_1")):
        apart, shape = tree[name].image_2, (60 >> level, 80 >> level)
        assert apart.channel_2.item() == "Cy5"
        np.testing.assert_array_equal(apart, upright(drawn(shape, 2)[..., 0]))
        beside = tree[f"level_{level}"].image
        np.testing.assert_allclose(apart.x.values - beside.x.values, shift[0], atol=1e-9)
        np.testing.assert_allclose(apart.y.values - beside.y.values, shift[1], atol=1e-9)
    # a place is the same in the tree and the API, of either channel
    apart = tree["image_2"].image_2
    box = (9.9551, 19.9501), (0.02, 0.01)
    for channel, variable in ((0, tree["level_0"].image[0]), (2, apart)):
        region = slide.get_slide_region(box[0], 0, box[1], channel)[..., 0]
        x, y = 9.9551 + 0.0075, 19.9601 - 0.0035  # of region[3, 7]
        assert region[3, 7] == variable.sel(x=x, y=y)
    assert xr.open_dataset(tmp_path, engine="dicomslide", group="image_2").image_2.shape == (80, 60)


def test_channels_less_than_half_a_pixel_apart_are_one_array(tmp_path):
    write(tmp_path / "a.dcm", paths=("DAPI",))
    write(tmp_path / "b.dcm", channel=1, paths=("FITC",), shift=(0.0004, -0.0004))
    variable = open_slide(tmp_path).to_dataset().image
    np.testing.assert_array_equal(variable[1], upright(drawn(channel=1)[..., 0]))


@pytest.mark.parametrize("more", [(1, 0), (0, 1), (-1, -1)])
def test_a_row_or_column_more_makes_no_level(tmp_path, more):
    shape = SHAPE[0] + more[0], SHAPE[1] + more[1]
    for factor in (1, 2):
        write(tmp_path / f"{factor}-a.dcm", paths=("DAPI",), factor=factor)
        write(
            tmp_path / f"{factor}-b.dcm", channel=1, paths=("FITC",), factor=factor, shape=shape
        )  # fmt: skip
    slide = open_slide(tmp_path)
    assert (slide.num_levels, slide.num_channels) == (2, 2)
    for channel, size in (("DAPI", SHAPE), ("FITC", shape)):
        index = slide.get_channel_index(channel, "OPTICAL_PATH")
        np.testing.assert_array_equal(
            slide.get_image_region((0, 0), 0, size, index),
            drawn(size, channel=channel == "FITC"),
        )
    tree = slide.to_datatree()
    assert {name for name in tree.children if name.startswith("level_")} == {"level_0", "level_1"}
    assert tree["image_2"].image_2.size + tree["level_0"].image.size == (
        np.prod(SHAPE) + np.prod(shape)
    )


def test_levels_of_one_spacing_that_nearly_are_of_one_size_stay_levels(tmp_path):
    """Some writers state the base's spacing on every level: the same channel is no other one."""
    for number, shape in enumerate((SHAPE, (59, 79))):
        write(tmp_path / f"{number}.dcm", shape=shape)
    assert open_slide(tmp_path).num_levels == 2


@pytest.mark.parametrize("same_path", [False, True])
@pytest.mark.parametrize(
    "kinds",
    [
        (dict(samples=3, bits=8), dict(samples=1, bits=16)),
        (dict(samples=1, bits=16), dict(samples=3, bits=8)),
        (dict(samples=1, bits=8), dict(samples=1, bits=16)),
    ],
    ids=["H&E and fluorescence", "fluorescence and H&E", "8 and 16 bits"],
)
def test_pixels_of_two_kinds_are_variables_beside_each_other(tmp_path, kinds, same_path):
    paths = ("1", "1") if same_path else ("A", "B")
    for factor in (1, 2):
        for i, kind in enumerate(kinds):
            path = tmp_path / f"{factor}-{i}.dcm"
            write(path, channel=i, paths=(paths[i],), factor=factor, **kind)
    slide = dicomslide.open_slide(tmp_path, correct_color=False)
    assert (slide.num_levels, slide.num_channels) == (2, 2)
    tree = slide.to_datatree()
    assert set(tree.children) == {"level_0", "level_1"}
    for level in range(2):
        shape = (60 >> level, 80 >> level)
        here = tree[f"level_{level}"]
        assert list(here.data_vars) == ["image", "image_2"]
        assert (here.channel.item(), here.channel_2.item()) == paths
        for i, kind in enumerate(kinds):
            wanted = drawn(shape, i, **kind)
            np.testing.assert_array_equal(slide.get_image_region((0, 0), level, shape, i), wanted)
            variable = here["image_2" if i else "image"]
            wanted = wanted if kind["samples"] == 3 else wanted[..., 0]
            np.testing.assert_array_equal(variable, upright(wanted))
    whole = slide.to_dataset(squeeze=False)
    colour = kinds[0]["samples"] == 3 or kinds[1]["samples"] == 3
    assert whole.sizes["sample"] == (3 if colour else 1)
    if not same_path:
        assert slide.get_channel_index("B", "OPTICAL_PATH") == 1
    assert isinstance(tree["level_0"].image_2.chunks, tuple)


def test_a_stack_beside_one_plane_keeps_its_z(tmp_path):
    write(tmp_path / "a.dcm", paths=("HE",), samples=3, bits=8, planes=(2.0,))
    write(tmp_path / "b.dcm", channel=1, paths=("DAPI",), planes=(0.0, 2.0, 4.0))
    level = open_slide(tmp_path, correct_color=False).to_dataset()
    assert level.image.dims == ("y", "x", "sample")
    assert level.image.attrs["focal_plane_offset"] == pytest.approx(0.002)
    assert level.image_2.dims == ("z", "y", "x")
    for plane, z in enumerate((0.0, 0.002, 0.004)):
        np.testing.assert_array_equal(
            level.image_2.sel(z=z), upright(drawn(channel=1, plane=plane)[..., 0])
        )


def test_a_channel_that_is_stored_another_way_up_is_beside_the_others(tmp_path):
    """One as scanned, one as it stands: 60 × 80 pixels and 80 × 60 of the same places."""
    write(tmp_path / "a.dcm", paths=("A",))
    corner = (BASE.origin[0] - 0.059, BASE.origin[1])
    write(
        tmp_path / "b.dcm", channel=1, paths=("B",), shape=(80, 60),
        shift=(corner[0] - 10.0, 0.0), orientation=(1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    )  # fmt: skip
    slide = open_slide(tmp_path)
    assert slide.num_levels == 1
    level = slide.to_dataset()
    np.testing.assert_array_equal(level.image, upright(drawn()[..., 0]))
    np.testing.assert_array_equal(level.image_2, drawn((80, 60), 1)[..., 0])
    stored = slide.to_dataset(orientation="stored")
    np.testing.assert_array_equal(stored.image, drawn()[..., 0])
    np.testing.assert_array_equal(stored.image_2, np.rot90(drawn((80, 60), 1)[..., 0]))


# -- cycles of staining ----------------------------------------------------------------------

CYCLES = {"a": (("DAPI", 405.0), ("CD3", 488.0)), "b": (("DAPI", 405.0), ("CD8", 647.0))}


def write_cycles(folder, *, described=True, heights=(0.0, 0.0), factors=(1, 2)):
    for factor in factors:
        for cycle, (series, stains) in enumerate(CYCLES.items()):

            def change(dataset, stains=stains):
                for item, (name, wavelength) in zip(
                    dataset.OpticalPathSequence, stains, strict=True
                ):
                    if described:
                        item.OpticalPathDescription = name
                        item.IlluminationWaveLength = wavelength

            write(
                folder / f"{series}-{factor}.dcm", channel=2 * cycle, paths=("1", "2"),
                series=series, factor=factor, planes=(heights[cycle],), change=change,
            )  # fmt: skip
    return folder


@pytest.mark.parametrize("described", [True, False])
def test_cycles_of_staining_are_channels_of_their_own(tmp_path, described):
    slide = open_slide(write_cycles(tmp_path, described=described))
    assert (slide.num_levels, slide.num_channels) == (2, 4)
    assert [slide.get_channel_identifier(i) for i in range(4)] == ["1", "2", "1", "2"]
    with pytest.warns(MetadataWarning, match=r"channels \[1, 3\] all have the identifier '2'"):
        assert slide.get_channel_index("2", "OPTICAL_PATH") == 1
    assert slide.find_optical_paths(identifier="2") == (1, 3)
    if described:
        assert slide.find_optical_paths(description="CD8") == (3,)
    for level in range(2):
        shape = (60 >> level, 80 >> level)
        variable = slide.to_dataset(level).image
        assert variable.channel.values.tolist() == ["1", "2", "1_2", "2_2"]
        assert variable.channel_identifier.values.tolist() == ["1", "2", "1", "2"]
        assert variable.channel_series_description.values.tolist() == [
            "series a", "series a", "series b", "series b",
        ]  # fmt: skip
        if described:
            names = ["DAPI", "CD3", "DAPI", "CD8"]
            assert variable.channel_description.values.tolist() == names
            assert variable.wavelength.values.tolist() == [405, 488, 405, 647]
        for channel in range(4):
            wanted = drawn(shape, channel)
            np.testing.assert_array_equal(
                slide.get_image_region((0, 0), level, shape, channel), wanted
            )
            label = variable.channel.values[channel]
            np.testing.assert_array_equal(variable.sel(channel=label), upright(wanted[..., 0]))


@pytest.mark.parametrize("described", [True, False])
def test_cycles_in_focus_at_other_heights_are_channels_not_planes(tmp_path, described):
    slide = open_slide(write_cycles(tmp_path, heights=(0.0, 0.6), described=described))
    assert (slide.num_channels, slide.num_focal_planes) == (4, 1)
    variable = slide.to_dataset().image
    np.testing.assert_allclose(variable.z, [0, 0, 0.0006, 0.0006])
    for channel in range(4):
        np.testing.assert_array_equal(variable[channel], upright(drawn(channel=channel)[..., 0]))


def test_a_channel_has_one_label_on_all_levels(tmp_path):
    write_cycles(tmp_path)
    (tmp_path / "a-2.dcm").unlink()  # the first cycle has a base only
    slide = open_slide(tmp_path)
    assert slide.to_dataset(1).image.channel.values.tolist() == ["1_2", "2_2"]
    np.testing.assert_array_equal(
        slide.to_dataset(1).image.sel(channel="2_2"), upright(drawn((30, 40), 3)[..., 0])
    )


def test_cycles_are_found_by_their_own_stain(tmp_path):
    for number, (value, meaning) in enumerate((("1", "anti-CD3"), ("2", "anti-CD8"))):

        def change(dataset, value=value, meaning=meaning):
            steps = dataset.SpecimenDescriptionSequence[0].SpecimenPreparationSequence
            items = [i for step in steps for i in step.SpecimenPreparationStepContentItemSequence]
            for item in items:
                if "ConceptCodeSequence" in item:
                    code = item.ConceptCodeSequence[0]
                    code.CodeValue, code.CodingSchemeDesignator = value, "99TEST"
                    code.CodeMeaning = meaning

        path = tmp_path / f"{number}.dcm"
        write(path, channel=number, series=meaning, samples=3, bits=8)
        changed(path, change)
    slide = open_slide(tmp_path, correct_color=False)
    stain = Code("2", "99TEST", "anti-CD8")
    assert slide.find_optical_paths(specimen_stain=stain) == (1,)
    assert slide.to_dataset().image.channel_stain.values.tolist()[1].startswith("anti-CD8")


def test_a_channel_whose_levels_are_in_two_series_is_one(tmp_path):
    write(tmp_path / "0.dcm", series="a")
    write(tmp_path / "1.dcm", series="b", factor=2)
    slide = open_slide(tmp_path)
    assert (slide.num_levels, slide.num_channels) == (2, 1)


def test_images_of_one_series_that_nothing_tells_apart_are_ambiguous(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.dcm")
    with pytest.raises(AmbiguousSlideError, match=r"a\.dcm and .*b\.dcm both hold channel '1'"):
        open_slide(tmp_path)


def test_descriptions_tell_channels_of_one_series_apart(tmp_path):
    for i, name in enumerate(("DAPI", "FITC")):

        def change(dataset, name=name):
            dataset.OpticalPathSequence[0].OpticalPathDescription = name

        write(tmp_path / f"{name}.dcm", channel=i, change=change)
    variable = open_slide(tmp_path).to_dataset().image
    assert variable.channel_description.values.tolist() == ["DAPI", "FITC"]
    np.testing.assert_array_equal(variable[1], upright(drawn(channel=1)[..., 0]))
