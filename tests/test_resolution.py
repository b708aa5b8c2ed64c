"""A slide at any spacing: equal to NumPy's means by area, wherever the slide lies."""

from __future__ import annotations

import math
import pickle
import warnings

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import dicomslide
from dicomslide import MetadataError, MetadataWarning, open_slide
from dicomslide.header.resolution import spacing_in_mm
from dicomslide.readers.reductions import means_of
from dicomslide.readers.windows import Windows
from dicomslide.testing import write_slide
from tests.support.derive import write_segmentation

NATIVE = "1.2.840.10008.1.2.1"
HTJ2K = "1.2.840.10008.1.2.4.201"
BASE = 0.0005
ORIENTATIONS = [
    (0, -1, 0, -1, 0, 0), (0, 1, 0, 1, 0, 0), (1, 0, 0, 0, -1, 0), (-1, 0, 0, 0, 1, 0),
    (1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, -1, 0), (0, -1, 0, 1, 0, 0), (0, 1, 0, -1, 0, 0),
]  # fmt: skip


def written(folder, **options):
    defaults = dict(
        shape=(300, 421), downsamples=(1, 4), tile_shape=(64, 96), transfer_syntax_uid=NATIVE,
        associated=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MetadataWarning)
        return open_slide(write_slide(folder, **(defaults | options)))


def overlaps(wanted, stored, spacing, stored_spacing):
    """Length in mm of each stored pixel within each wanted one, shape (wanted, stored)."""
    low = np.maximum(wanted[:, None] - spacing / 2, stored - stored_spacing / 2)
    high = np.minimum(wanted[:, None] + spacing / 2, stored + stored_spacing / 2)
    return (high - low).clip(0)


def means(stored, wanted, spacing, stored_spacing):
    """The area means of a stored array (y, x, ...) for the coordinates of another one."""
    y, x = (
        overlaps(wanted[dim].values, stored[dim].values, spacing, stored_spacing) for dim in "yx"
    )
    sums = np.einsum("jr,rc...,kc->jk...", y, stored.values.astype(float), x, optimize=True)
    area = y.sum(1)[:, None] * x.sum(1)
    return sums / area.reshape(area.shape + (1,) * (sums.ndim - 2))


def assert_rounded(found, expected):
    """Integers are the nearest to the means; halves are rounded up, unless they are noise."""
    is_half = np.abs(expected - np.floor(expected) - 0.5) < 1e-6
    apart = np.abs(found - np.floor(expected + 0.5))
    assert not apart[~is_half].any()
    assert apart.max() <= 1


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_pixels_are_means_by_area_of_the_coarsest_level_that_is_finer(tmp_path, orientation):
    slide = written(tmp_path, orientation=orientation)
    for factor in (1, 1.5, 2, 3.7, 4, 12, 16):
        spacing = BASE * factor
        image = slide.to_dataset(spacing=spacing).image
        stored, stored_spacing = (
            (slide.to_dataset(1).image, 4 * BASE)
            if factor >= 4
            else (slide.to_dataset().image, BASE)
        )
        assert image.attrs["source_spacing"][0] == pytest.approx(stored_spacing)
        assert_rounded(image.values, means(stored, image, spacing, stored_spacing))


def test_a_spacing_that_is_stored_is_the_level(tmp_path):
    slide = written(tmp_path, shape=(512, 768))
    for level in (0, 1):
        xr.testing.assert_equal(
            slide.to_dataset(spacing=slide.pixel_spacings[level][0]).image,
            slide.to_dataset(level).image,
        )


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("factor", [1.5, 2, 3.7, 16])
def test_the_grid_begins_at_the_corner_of_the_base(tmp_path, orientation, factor):
    """The outer edges of pixel (0, 0) of the base are those of the first pixel."""
    slide = written(tmp_path, orientation=orientation, downsamples=(1,))
    base = slide.levels[0].image.geometry
    corner = base.to_slide((-0.5, -0.5))
    image = slide.to_dataset(spacing=BASE * factor).image
    for dim, edge in zip("xy", corner, strict=True):
        edges = np.array([image[dim].values.min(), image[dim].values.max()])
        edges += [-BASE * factor / 2, BASE * factor / 2]
        assert np.abs(edges - edge).min() < 1e-9
    assert image.slide.spacing == pytest.approx((BASE * factor,) * 2)


@pytest.mark.parametrize("factor", [1.5, 2, 3.7, 4])
def test_nothing_moves(tmp_path, factor):
    """The centroid of a structure stays where it is, to a millionth of a pixel."""
    slide = written(
        tmp_path, shape=(480, 592), downsamples=(1,), samples=1, bits=16, drawing="position"
    )
    stored = slide.to_dataset().image.astype(float)
    y, x = np.indices(stored.shape)
    pixels = np.exp(-((y - 301.3) ** 2 + (x - 243.8) ** 2) / (2 * 30**2))
    stored = stored.copy(data=pixels)
    matched = stored.slide.match(slide.to_dataset(spacing=BASE * factor).image)

    def centroid(array, spacing):
        weights = array * spacing**2
        return [float((weights * array[dim]).sum() / weights.sum()) for dim in "yx"]

    moved = np.subtract(centroid(matched, BASE * factor), centroid(stored, BASE))
    assert np.abs(moved).max() < 1e-6 * BASE


@given(
    extent=st.integers(1, 70),
    tile=st.integers(1, 40),
    start=st.floats(-3, 3) | st.integers(-3, 3),
    step=st.floats(0.3, 40) | st.integers(1, 20),
    data=st.data(),
)
def test_windows_are_cut_at_tiles_without_loss(extent, tile, start, step, data):
    count = max(1, math.ceil((extent - start) / step))
    windows = Windows.of(float(start), float(step), count, extent)
    indices = np.array(
        sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=12)))
    )
    found = np.zeros((len(indices), extent))
    for piece in windows.pieces(indices, tile, windows.tiles(indices, tile)):
        here = piece.tile * tile + piece.source.start
        for at, window in enumerate(range(piece.target.start, piece.target.stop)):
            if isinstance(piece.taps, int):
                found[window, here + at * piece.taps : here + (at + 1) * piece.taps] += 1
            else:
                np.add.at(found[window], here + piece.taps[0][:, at], piece.taps[1][:, at])
    low = windows.start + windows.step * indices[:, None]
    pixels = np.arange(extent)
    expected = np.minimum(low + windows.step, pixels + 1) - np.maximum(low, pixels)
    np.testing.assert_allclose(found, expected.clip(0), atol=1e-9)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.bool_])
def test_means_of_whole_and_broken_windows_are_numpys(dtype):
    random = np.random.default_rng(0)
    pixels = random.integers(-1000 if dtype is np.int16 else 0, 200, (60, 84, 2)).astype(dtype)
    for step in (1, 2, 3, 5, 12, 17, 60):
        windows = (Windows.of(0, step, -(-n // step), n) for n in pixels.shape[:2])
        found = means_of(pixels, *windows, (0, 0))
        array = xr.DataArray(pixels.astype(float), dims=("y", "x", "s"))
        expected = array.coarsen(y=step, x=step, boundary="pad").mean().values
        if dtype is np.bool_:
            np.testing.assert_array_equal(found, expected >= 0.5)
        elif dtype is np.float32:
            np.testing.assert_allclose(found, expected, rtol=1e-6)
        else:
            np.testing.assert_array_equal(found, np.floor(expected + 0.5))


def test_nan_is_left_out_and_stays_where_there_is_nothing_else():
    pixels = np.arange(64, dtype=np.float32).reshape(8, 8, 1)
    pixels[:4, :4] = np.nan
    pixels[5, 5] = np.nan
    found = means_of(pixels, Windows.of(0, 2, 4, 8), Windows.of(0, 2, 4, 8), (np.nan,))
    array = xr.DataArray(pixels, dims=("y", "x", "s"))
    expected = array.coarsen(y=2, x=2).mean().values
    np.testing.assert_allclose(found, expected)
    assert np.isnan(found[:2, :2]).all()
    assert not np.isnan(found[2:]).any()


def test_an_infinite_pixel_is_in_the_mean_of_its_own_window_only():
    pixels = np.ones((12, 12, 1), np.float32)
    pixels[4, 4] = np.inf
    windows = Windows.of(0, 1.7, 8, 12)
    found = means_of(pixels, windows, windows, (np.nan,))[..., 0]
    low = 1.7 * np.arange(8)
    touches = (low < 5) & (low + 1.7 > 4)
    np.testing.assert_array_equal(np.isinf(found), np.logical_and.outer(touches, touches))
    np.testing.assert_allclose(found[~np.isinf(found)], 1, rtol=1e-6)


@pytest.mark.parametrize("factor", [2, 3.7])
def test_absent_tiles_are_background(tmp_path, factor):
    slide = written(
        tmp_path, downsamples=(1,), sparse=True, absent=[(1, 1), (0, 3), (4, 4)], shape=(320, 480)
    )
    image = slide.to_dataset(spacing=BASE * factor).image
    stored = slide.to_dataset().image
    assert (stored.values == 255).all(axis=-1).any()
    assert_rounded(image.values, means(stored, image, BASE * factor, BASE))


def test_channels_and_focal_planes_are_those_of_the_level(tmp_path):
    slide = written(
        tmp_path, downsamples=(1,), samples=1, bits=12, optical_paths=("a", "b"),
        planes=(0.0, 1.0, 2.0), drawing="position",
    )  # fmt: skip
    image = slide.to_dataset(spacing="1.5 um").image
    stored = slide.to_dataset().image
    assert image.dims == stored.dims == ("channel", "z", "y", "x")
    np.testing.assert_array_equal(image.z, stored.z)
    for channel in ("a", "b"):
        for z in (0, 2):
            one = image.sel(channel=channel).isel(z=z)
            expected = means(stored.sel(channel=channel).isel(z=z), one, 0.0015, BASE)
            assert_rounded(one.values, expected)


def test_an_oblique_slide_is_resampled_along_its_own_rows(tmp_path):
    cosines = (math.cos(0.5), math.sin(0.5), 0, math.sin(0.5), -math.cos(0.5), 0)
    slide = written(tmp_path, orientation=cosines, downsamples=(1,), shape=(300, 420))
    image = slide.to_dataset(spacing=4 * BASE, orientation="stored").image
    stored = slide.get_image_region((0, 0), 0, (300, 420)).astype(float)
    expected = stored.reshape(75, 4, 105, 4, 3).mean(axis=(1, 3))
    np.testing.assert_array_equal(image.values, np.floor(expected + 0.5))
    affine = np.array(image.attrs["affine"])
    np.testing.assert_allclose(
        affine @ [0, 0, 1], slide.levels[0].image.geometry.to_slide((1.5, 1.5))
    )
    with pytest.warns(MetadataWarning, match="obliquely"):
        assert slide.to_dataset(spacing=4 * BASE).image.dims[:2] == ("row", "column")


def test_pixels_that_are_not_square_become_square(tmp_path):
    slide = written(
        tmp_path, spacing=(0.002, 0.0005), downsamples=(1,), orientation=ORIENTATIONS[2]
    )
    image = slide.to_dataset(spacing=0.004).image
    assert image.slide.spacing == pytest.approx((0.004, 0.004))
    stored = slide.to_dataset().image
    y = overlaps(image.y.values, stored.y.values, 0.004, 0.002)
    x = overlaps(image.x.values, stored.x.values, 0.004, 0.0005)
    sums = np.einsum("jr,rcs,kc->jks", y, stored.values.astype(float), x, optimize=True)
    assert_rounded(image.values, sums / (y.sum(1)[:, None] * x.sum(1))[..., None])


def test_each_frame_is_decoded_once(tmp_path, frames_read):
    slide = written(tmp_path, downsamples=(1,))
    for factor in (2, 3.7):
        frames_read.clear()
        with dask.config.set(scheduler="synchronous"):
            slide.to_dataset(spacing=BASE * factor, chunks="auto").image.compute()
        assert sorted(frames_read) == list(range(25))


def test_keys_pick_what_they_pick_of_the_whole(tmp_path):
    image = written(tmp_path).to_dataset(spacing=0.0017).image
    whole = image.values
    lazy = xr.open_dataset(written(tmp_path / "again"), engine="dicomslide", spacing=0.0017).image
    for key in (
        np.s_[5:60:7, ::-3], np.s_[[4, 1, 1, 70], 3:9], np.s_[-1, [0, 5]],
        np.s_[10:10], np.s_[3, 4],
    ):  # fmt: skip
        for each in (image, lazy):
            np.testing.assert_array_equal(each[key].values, whole[key])


# -- labels ------------------------------------------------------------------------------------


def with_labels(tmp_path, kind, pixels):
    folder = tmp_path / "slide"
    paths = write_slide(
        folder, shape=pixels.shape[:2], downsamples=(1,), tile_shape=(64, 64),
        transfer_syntax_uid=NATIVE, associated=False, orientation=ORIENTATIONS[2],
    )  # fmt: skip
    write_segmentation(folder / "seg.dcm", paths[0], pixels, kind)
    return open_slide(folder)


@pytest.mark.parametrize("factor", [2, 3, 3.7])
def test_labels_are_those_of_the_largest_area(tmp_path, factor):
    labels = np.random.default_rng(0).integers(0, 3, (128, 192)).astype(np.uint8)
    labels[:40, :90] = 2
    slide = with_labels(tmp_path, "LABELMAP", labels)
    spacing = BASE * factor
    found = slide.to_dataset(spacing=spacing).segmentation
    stored = slide.to_dataset().segmentation
    areas = np.stack([means((stored == k).astype(float), found, spacing, BASE) for k in range(3)])
    expected = areas.argmax(axis=0)
    ties = np.sort(areas, axis=0)
    clear = ties[-1] - ties[-2] > 1e-6
    np.testing.assert_array_equal(found.values[clear], expected[clear])
    assert found.attrs["resampling"] == "majority by area"
    any_label = slide.to_dataset(spacing=spacing, labels="any").segmentation.values
    np.testing.assert_array_equal(any_label > 0, areas[0] < 1 - 1e-9)


@pytest.mark.parametrize("factor", [2, 3.7])
def test_segments_are_true_where_half_is(tmp_path, factor):
    mask = np.random.default_rng(1).integers(0, 2, (128, 192, 2)).astype(np.uint8)
    slide = with_labels(tmp_path, "BINARY", mask)
    found = slide.to_dataset(spacing=BASE * factor).segmentation
    for segment in (1, 2):
        stored = slide.to_dataset().segmentation.sel(segment=segment)
        area = means(stored.astype(float), found.sel(segment=segment), BASE * factor, BASE)
        clear = np.abs(area - 0.5) > 1e-9
        np.testing.assert_array_equal(found.sel(segment=segment).values[clear], (area > 0.5)[clear])
    any_of = slide.to_dataset(spacing=BASE * 2, labels="any").segmentation.sel(segment=1)
    expected = mask[..., 0].reshape(64, 2, 96, 2).any(axis=(1, 3))
    np.testing.assert_array_equal(any_of.values, expected)


def test_fractions_are_means(tmp_path):
    fractions = np.random.default_rng(2).random((128, 192)).astype(np.float32)
    slide = with_labels(tmp_path, "FRACTIONAL", fractions)
    found = slide.to_dataset(spacing=BASE * 4).segmentation
    stored = slide.to_dataset().segmentation
    found = found.isel(segment=0) if "segment" in found.dims else found
    stored = stored.isel(segment=0) if "segment" in stored.dims else stored
    np.testing.assert_allclose(found.values, means(stored, found, BASE * 4, BASE), rtol=1e-5)


# -- levels ------------------------------------------------------------------------------------


def test_virtual_levels_are_halves_of_each_other_down_to_a_small_one(tmp_path):
    slide = written(tmp_path, shape=(2048, 1536), downsamples=(1, 16), tile_shape=(256, 256))
    tree = slide.to_datatree(levels="virtual", fast=False)
    sizes = {name: node.image.sizes["y"] for name, node in tree.children.items()}
    # stored as it is, three between both, and none below: the last one is small
    assert sizes == {"level_0": 1536, "level_1": 768, "level_2": 384, "level_3": 192, "level_4": 96}
    base = tree["level_0"].image
    for name, factor in (("level_1", 2), ("level_2", 4), ("level_3", 8)):
        image = tree[name].image
        assert_rounded(image.values, means(base, image, BASE * factor, BASE))
        assert tree[name].attrs["downsampling_factors"] == pytest.approx([factor, factor])
    assert "resampling" not in tree["level_4"].image.attrs


def test_a_tree_of_spacings_has_a_level_for_each(tmp_path):
    slide = written(tmp_path)
    tree = xr.open_datatree(slide, engine="dicomslide", spacings=["10x", 0.0008], chunks={})
    assert [node.attrs["spacing"] for node in tree.children.values()] == [0.0008, 0.001]
    with pytest.raises(ValueError, match="not both"):
        slide.to_datatree(spacings=[0.001], levels="virtual")
    with pytest.raises(ValueError, match='"stored" or "virtual"'):
        slide.to_datatree(levels="all")


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.50", HTJ2K])
def test_fast_is_near_to_the_mean_and_says_so(tmp_path, syntax):
    slide = written(
        tmp_path, shape=(512, 768), downsamples=(1,), tile_shape=(256, 256),
        transfer_syntax_uid=syntax,
    )  # fmt: skip
    for factor, size in ((2, "1/2"), (3.7, "1/2"), (4, "1/4"), (8, "1/8")):
        exact = slide.to_dataset(spacing=BASE * factor).image
        fast = slide.to_dataset(spacing=BASE * factor, fast=True).image
        assert fast.attrs["resampling"].endswith(f"decoded at {size} of their size")
        assert "decoded" not in exact.attrs["resampling"]
        apart = np.abs(exact.values.astype(int) - fast.values)
        assert apart.mean() < (1 if syntax != HTJ2K else 12)
    virtual, exact = (
        slide.to_datatree(levels="virtual", fast=fast)["level_1"].image for fast in (None, False)
    )
    assert virtual.attrs["resampling"].endswith("decoded at 1/2 of their size")
    assert exact.attrs["resampling"] == "mean by area"
    xr.testing.assert_equal(exact, slide.to_dataset(spacing=2 * BASE).image)


# -- spacings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "mm"),
    [
        (0.0005, 0.0005),
        ("1. um", 0.001),
        (".5 um", 0.0005), ("0.5 um", 0.0005), ("0.5um", 0.0005), ("0.5 µm", 0.0005),
        ("500 nm", 0.0005), ("0.0005 mm", 0.0005), ("10x", 0.001), ("40X", 0.00025),
        ("2.5 ×", 0.004), ("1e-3 mm", 0.001), (np.float32(0.5), 0.5), (1, 1.0),
    ],
)  # fmt: skip
def test_spacings_are_mm_or_say_their_unit(text, mm):
    assert spacing_in_mm(text) == pytest.approx(mm)


@pytest.mark.parametrize(
    "text",
    ["", "0.5", "um", "0 x", "-1 um", "1 inch", 0, -0.5, math.nan, math.inf, True, None, "x"],
)
def test_what_is_no_spacing_is_refused(text):
    with pytest.raises(ValueError, match=r"above zero"):
        spacing_in_mm(text)


def test_what_can_not_be_had_is_said(tmp_path):
    slide = written(tmp_path)
    with pytest.raises(ValueError, match="larger than the image"):
        slide.to_dataset(spacing=1e6)
    with pytest.raises(TypeError, match="level and spacing"):
        slide.to_dataset(1, spacing=0.001)
    with pytest.raises(TypeError, match="spacing"):
        xr.open_dataset(slide, engine="dicomslide", level=0, spacing=0.001)
    with pytest.raises(ValueError, match='"majority" or "any"'):
        slide.to_dataset(spacing=0.001, labels="mode")
    for call in (slide.region, slide.patches):
        arguments = ((0, 1), (0, 1)) if call == slide.region else ([(0, 0)], (2, 2))
        with pytest.raises(TypeError, match="either a spacing or a level"):
            call(*arguments)
        with pytest.raises(TypeError, match="either a spacing or a level"):
            call(*arguments, spacing=0.001, level=0)


def test_the_nearest_level_is_named_and_how_far_it_is(tmp_path):
    slide = written(tmp_path)
    assert slide.level_at("0.5 um") == (0, pytest.approx(BASE), pytest.approx(1))
    assert slide.level_at(magnification=10) == (0, pytest.approx(BASE), pytest.approx(2, rel=1e-2))
    level, spacing, factor = slide.level_at(0.0015)
    assert (level, factor) == (1, pytest.approx(0.0015 / spacing))
    with pytest.raises(TypeError, match="either a spacing or a magnification"):
        slide.level_at()


def test_a_spacing_can_be_given_where_headers_lack_it_or_are_wrong(tmp_path):
    slide = written(tmp_path, shape=(256, 384))
    assert slide.pixel_spacings == ((0.0005, 0.0005), (0.002, 0.002))
    given_one = open_slide(slide, spacing="0.25 um")
    assert given_one.pixel_spacings == ((0.00025, 0.00025), (0.001, 0.001))
    attrs = given_one.to_dataset(1).image.attrs
    assert attrs["pixel_spacing_given"] == pytest.approx([0.001, 0.001])
    assert attrs["pixel_spacing_stated"] == pytest.approx((0.002, 0.002))
    assert given_one.physical_size == pytest.approx(np.divide(slide.physical_size, 2))
    assert given_one != slide
    again = pickle.loads(pickle.dumps(given_one))
    assert again == given_one
    assert again.pixel_spacings == given_one.pixel_spacings
    corners = [each.geometry.to_slide((-0.5, -0.5)) for each in
               (level.image for level in given_one.levels)]  # fmt: skip
    np.testing.assert_allclose(corners[0], corners[1], atol=1e-9)


def test_a_slide_without_spacing_has_the_one_that_is_given(tmp_path):
    import pydicom

    (path,) = write_slide(tmp_path, shape=(64, 96), downsamples=(1,), associated=False)
    header = pydicom.dcmread(path)
    del header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    del header.ImagedVolumeWidth, header.ImagedVolumeHeight
    header.save_as(path)
    slide = open_slide(path)
    with pytest.raises(MetadataError, match=r"open_slide\(\.\.\., spacing=\.\.\.\)"):
        slide.to_dataset(spacing=0.001)
    image = open_slide(path, spacing=0.0005).to_dataset(spacing=0.001).image
    assert image.shape == (48, 32, 3)


def test_thumbnails_at_a_spacing(tmp_path):
    slide = written(tmp_path, shape=(400, 600))
    assert slide.thumbnail(spacing="4 um").shape == (75, 50, 3)
    np.testing.assert_array_equal(slide.thumbnail(spacing="4 um"), slide.thumbnail(75))


def test_regions_are_boxes_of_the_grid(tmp_path):
    slide = written(tmp_path)
    x_min, y_min, x_max, y_max = slide.physical_bounds
    region = slide.region(
        (x_max - 0.0502, x_max - 0.1002), (y_min + 0.0302, y_min + 0.0802), spacing="1 um"
    )
    whole = slide.to_dataset(spacing=0.001).image
    xr.testing.assert_equal(region, whole.sel(x=region.x, y=region.y))
    assert region.sizes == {"y": 50, "x": 50, "sample": 3}
    assert region.chunks is not None
    level = slide.region((x_min, x_max), (y_min, y_max), level=1)
    xr.testing.assert_equal(level, slide.to_dataset(1).image)
    with pytest.raises(KeyError, match="segmentation"):
        slide.region((x_min, x_max), (y_min, y_max), level=1, variable="segmentation")


def test_dicomslide_offers_the_sampler():
    assert "SlideSampler" in dir(dicomslide)


@pytest.mark.parametrize("spacing", [0.00051, 0.0005 * 50 / 23, 0.001, 0.00075])
def test_chunks_are_of_about_the_size_of_frames(tmp_path, spacing):
    slide = written(tmp_path, shape=(3000, 2600), downsamples=(1,), tile_shape=(256, 256))
    assert max(slide.to_dataset(spacing=spacing).image.chunks[0]) <= 1024
    assert max(slide.to_dataset(spacing=spacing, chunks="auto").image.chunks[0]) <= 3072
