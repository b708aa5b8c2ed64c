"""SlideIndex: alignment by position on the grid, and slices in mm."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import xarray as xr
from hypothesis import assume, given
from hypothesis import strategies as st

import dicomslide
import dicomslide.accessor
from dicomslide.labelled.index import SlideIndex
from dicomslide.testing import position_values, write_slide

EXPLICIT = "1.2.840.10008.1.2.1"


def along(values, *, dim="x", uid=None, spacing=None):
    """An array whose values count its pixels, with the index of millimetres."""
    values = np.asarray(values, float)
    index = SlideIndex(
        xr.Variable(dim, values).to_index(), dim, spacing=spacing, frame_of_reference_uid=uid
    )
    coords = xr.Coordinates({dim: (dim, values)}, indexes={dim: index})
    return xr.DataArray(np.arange(len(values)), dims=dim, coords=coords)


grids = st.tuples(
    st.floats(-60, 60),
    st.floats(1e-4, 1e-2),
    st.integers(2, 60),
    st.sampled_from([1, -1]),
)


def pixels(start, spacing, count, direction):
    return start + spacing * np.arange(count)[::direction]


@given(grid=grids, key_a=st.slices(60), key_b=st.slices(60), noise=st.integers(0, 2**32 - 1))
def test_pixels_of_one_grid_align_by_position_whatever_their_last_bits(grid, key_a, key_b, noise):
    """The oracle counts pixels: their numbers are the coordinates of plain arrays."""
    _, spacing, count, direction = grid
    centres = pixels(*grid)
    numbers = np.arange(count)[::direction]
    rng = np.random.default_rng(noise)
    off = centres + spacing * 4e-7 * rng.uniform(-1, 1, count)
    a, b = along(centres, spacing=spacing), along(off, spacing=spacing)
    plain = xr.DataArray(numbers, dims="x", coords={"x": numbers})
    a, b = a.copy(data=numbers)[key_a], b.copy(data=numbers)[key_b]
    plain_a, plain_b = plain[key_a], plain[key_b]
    total = a + b
    expected = plain_a + plain_b
    np.testing.assert_array_equal(np.sort(total), np.sort(expected))
    for join in ("inner", "outer", "left", "right"):
        ours = xr.align(a, b, join=join, fill_value=-1)
        theirs = xr.align(plain_a, plain_b, join=join, fill_value=-1)
        for one, other in zip(ours, theirs, strict=True):
            order, order_there = np.argsort(one.x.values), np.argsort(other.x.values)
            np.testing.assert_array_equal(one.values[order], other.values[order_there])
    assert a.xindexes["x"].equals(a.xindexes["x"])
    assert a.xindexes["x"].equals(b.xindexes["x"]) == np.array_equal(plain_a, plain_b)


@given(
    grid=grids,
    fraction=st.floats(1e-4, 0.5),
    how=st.sampled_from(["spacing", "phase", "frame of reference"]),
)
def test_other_grids_raise_whatever_aligns_them(grid, fraction, how):
    start, spacing, count, direction = grid
    a = along(pixels(*grid), uid="1.2", spacing=spacing)
    if how == "spacing":
        b = along(pixels(start, spacing * (1 + fraction), count, direction), uid="1.2")
    elif how == "phase":
        b = along(pixels(start + fraction * spacing, spacing, count, direction), spacing=spacing)
    else:
        b = along(pixels(*grid), uid="1.3", spacing=spacing)
    assert not a.xindexes["x"].equals(b.xindexes["x"])
    for align in (
        lambda: a + b,
        lambda: a.where(b > 0),
        lambda: xr.Dataset({"a": a, "b": b}),
        lambda: a.to_dataset(name="a").assign(b=b),
        lambda: a.reindex_like(b),
        lambda: xr.concat([a, b], dim="x"),
        lambda: xr.align(a, b, join="left"),
        lambda: a.combine_first(b),
    ):
        with pytest.raises(dicomslide.GridError, match=f"differ in {how}") as error:
            align()
        assert isinstance(error.value, ValueError)
    if how != "frame of reference":
        assert "b.slide.match(a)" in str(error.value)


def test_frames_of_reference_count_only_where_both_are_known():
    a, b = along([1, 2, 3], uid="1.2"), along([1, 2, 3])
    for total in (a + b, b + a):
        assert total.x.size == 3
    assert xr.align(b[1:], a[:2], join="inner")[0].xindexes["x"].frame_of_reference_uid == "1.2"
    assert xr.concat([b, along([4, 5], uid="1.2")], "x").xindexes["x"].frame_of_reference_uid
    with pytest.raises(dicomslide.GridError, match=r"1\.2 and 1\.3.*slide\.restore"):
        a.reindex_like(along([1, 2, 3], uid="1.3"), method="nearest")


@given(grid=grids, gap=st.integers(0, 5), fraction=st.floats(1e-3, 0.5))
def test_concatenated_parts_are_of_one_grid_even_where_they_are_apart(grid, gap, fraction):
    start, spacing, count, _ = grid
    a = along(pixels(start, spacing, count, 1), spacing=spacing)
    further = start + spacing * (count + gap)
    joined = xr.concat([a, along(pixels(further, spacing, count, 1))], dim="x")
    assert isinstance(joined.xindexes["x"], SlideIndex)
    assert joined.xindexes["x"].spacing == pytest.approx(spacing)
    with pytest.raises(dicomslide.GridError, match="differ in phase"):
        xr.concat([a, along(pixels(further + fraction * spacing, spacing, count, 1))], dim="x")


def test_planes_that_are_not_evenly_spaced_align_with_parts_of_themselves():
    stack = along([5.0, 7.0, 12.0, 30.0], dim="z")
    for first, second in itertools.product(([0, 2], [1, 3], [2], [0, 1, 2, 3]), repeat=2):
        total = stack.isel(z=first) + stack.isel(z=second)
        assert total.values.tolist() == [2 * i for i in first if i in second]
    assert xr.concat([stack.isel(z=[0]), stack.isel(z=[2])], "z").z.values.tolist() == [5, 12]
    with pytest.raises(dicomslide.GridError, match="differ in phase"):
        stack + along([5.0, 8.0, 12.0], dim="z", spacing=2.0)


def test_an_outer_join_keeps_the_direction():
    a = along([9.0, 8.0, 7.0])
    both = xr.align(a[:2], a[1:], join="outer", fill_value=-1)[0]
    assert both.x.values.tolist() == [9, 8, 7]
    assert xr.align(a[2:], a[:2], join="outer", fill_value=-1)[0].x.values.tolist() == [9, 8, 7]
    assert xr.align(a[::-1][:2], a[::-1], join="outer")[0].x.values.tolist() == [7, 8, 9]


def test_every_other_pixel_is_the_same_where_its_extent_was_measured_anew():
    """Files don't say that pixels between were left out."""
    array = along(0.5 * np.arange(10))[::2]
    measured = array.drop_indexes("x").set_xindex("x").slide.restore()
    assert (array.xindexes["x"].spacing, measured.xindexes["x"].spacing) == (0.5, 1.0)
    assert (array - measured).size == 5
    with pytest.raises(dicomslide.GridError, match="differ in spacing"):
        array[:1] - measured[:1]


# -- taking one grid onto another ------------------------------------------------------------


@given(
    fine=st.tuples(st.floats(-60, 60), st.floats(1e-4, 1e-2), st.integers(1, 50)),
    coarse=st.tuples(st.floats(-8, 8), st.floats(0.2, 9), st.integers(1, 12)),
    directions=st.tuples(st.sampled_from([1, -1]), st.sampled_from([1, -1])),
)
def test_nearest_takes_the_pixel_in_which_each_centre_lies(fine, coarse, directions):
    start, spacing, count = fine
    shift, factor, count_coarse = coarse
    a = along(pixels(start, spacing, count, directions[0]), spacing=spacing)
    coarse_start, step = start + shift * spacing, spacing * factor
    b = along(pixels(coarse_start, step, count_coarse, directions[1]), spacing=step)
    # numbers of pixels, in the direction of b, in which the centres of a lie
    at = (a.x.values - b.x.values[0]) / (directions[1] * step)
    assume((np.abs(at - np.floor(at) - 0.5) > 1e-4).all())  # not on the border of two
    index = np.rint(at).astype(int)
    expected = np.where((index >= 0) & (index < count_coarse), index, -1)
    taken = b.reindex_like(a, method="nearest", fill_value=-1)
    np.testing.assert_array_equal(taken, expected)
    assert taken.xindexes["x"].equals(a.xindexes["x"])
    assert (a + taken).sizes == a.sizes


def test_a_centre_on_a_border_takes_the_later_pixel():
    """As everywhere: floor(t + ½)."""
    for values in ([0.5, 1.5, 2.5, 3.5], [3.5, 2.5, 1.5, 0.5]):
        fine = along(values)
        coarse = along([1.0, 3.0][:: 1 if values[0] < 1 else -1], spacing=2.0)
        assert fine.reindex_like(coarse, method="nearest").values.tolist() == [1, 3]


def test_a_mask_of_a_coarse_level_is_taken_onto_the_base_level(tmp_path):
    """76 × 76 pixels of 16 × 16 cover 1201 × 1201."""
    write_slide(
        tmp_path, shape=(1201, 1201), downsamples=(1, 16), tile_shape=(256, 256), associated=False,
        transfer_syntax_uid=EXPLICIT,
    )  # fmt: skip
    tree = dicomslide.open_slide(tmp_path).to_datatree(chunks="auto")
    fine, coarse = (tree[f"level_{level}"].image for level in (0, 1))
    mask = (coarse.isel(sample=1) < 225).drop_vars("sample").compute()
    assert 0 < int(mask.sum()) < mask.size
    with pytest.raises(
        dicomslide.GridError, match=r"1201 pixels of 0\.0005 mm .* and 75 pixels of 0\.008 mm"
    ):
        fine.where(mask)
    chosen = fine.where(mask.reindex_like(fine, method="nearest", fill_value=False), 0)
    assert chosen.dtype == np.uint8
    assert chosen.shape == fine.shape
    # upright: rows and columns run from the right border, and from the upper one
    whole = np.zeros((1201, 1201), bool)
    whole[:1200, 1:] = np.kron(mask, np.ones((16, 16), bool))
    np.testing.assert_array_equal(chosen, np.where(whole[..., None], fine, 0))


def test_images_of_one_grid_stored_in_different_orientations_keep_all_their_pixels(tmp_path):
    """Coordinates differ in the last bit, for they were counted from opposite ends."""
    shape, spacing = (96, 128), 0.00025
    left, top = 17.3, 31.7
    for name, orientation, origin in (
        ("a", (1, 0, 0, 0, -1, 0), (left, top)),
        ("b", (-1, 0, 0, 0, 1, 0), (left + 127 * spacing, top - 95 * spacing)),
    ):
        write_slide(
            tmp_path / name, shape=shape, downsamples=(1,), orientation=orientation, origin=origin,
            spacing=(spacing, spacing), transfer_syntax_uid=EXPLICIT, associated=False,
            drawing="position",
        )  # fmt: skip
    a, b = (
        dicomslide.open_slide(tmp_path / name, correct_color=False).to_dataset().image
        for name in "ab"
    )
    assert not np.array_equal(a.x, b.x)
    upright = position_values(np.arange(96), np.arange(128)).astype(int)
    total = a.astype(int) + b
    assert total.sizes == a.sizes
    np.testing.assert_array_equal(total, upright + np.rot90(upright, 2))
    assert xr.Dataset({"a": a, "b": b}).sizes == {"y": 96, "x": 128, "sample": 3}


# -- slices ----------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0.5, -0.5])
def test_a_slice_outside_of_the_array_says_where_it_is(step):
    array = along(10 + step * np.arange(9))
    low, high = array.x.values.min() - 0.25, array.x.values.max() + 0.25
    for outside in ((high + 0.01, high + 5), (low - 3, low - 0.01), (10_000, 12_000)):
        for bounds in (outside, outside[::-1]):
            with pytest.raises(KeyError, match=r"no pixel at x = .* goes from .* mm, in pixels of"):
                array.sel(x=slice(*bounds))
    open_end = slice(high + 1, None) if step > 0 else slice(low - 1, None)
    with pytest.raises(KeyError, match="no pixel at x"):
        array.sel(x=open_end)
    with pytest.raises(KeyError, match=r"goes from 3 to 3 mm, in one pixel"):
        along([3.0]).sel(x=4)  # whose extent nothing says
    # what touches the array, but no centre, is empty, and so is what an empty array has
    assert array.sel(x=slice(high - 0.01, high + 5)).size == 0
    assert array.sel(x=slice(10.2, 10.3)).size == 0
    assert array.isel(x=[]).sel(x=slice(1, 2)).size == 0
    assert array.sel(x=slice(None)).size == 9


def test_pixels_in_no_order_are_selected_by_millimetres():
    """Parts that were put together in another order, or an array that was rolled."""
    array = along(np.arange(10.0))
    for mixed in (xr.concat([array[6:], array[:6]], "x"), array.roll(x=4, roll_coords=True)):
        assert mixed.sel(x=slice(3, 7)).values.tolist() == [6, 7, 3, 4, 5]
        assert mixed.sel(x=slice(7, 3, 2)).values.tolist() == [6, 3, 5]
        assert mixed.sel(x=slice(None, 2)).values.tolist() == [0, 1, 2]
        assert mixed.sel(x=4.3).item() == 4
        assert mixed.sel(x=[8.7, 0.2]).values.tolist() == [9, 0]
        points = xr.DataArray([8.7, 0.2], dims="point")
        assert mixed.sel(x=points).dims == ("point",)
        for outside in (9.6, slice(9.6, 12)):
            with pytest.raises(KeyError, match="no pixel at x"):
                mixed.sel(x=outside)


def test_a_focal_plane_that_is_alone_is_found_within_half_a_micrometre(tmp_path):
    write_slide(
        tmp_path, shape=(20, 30), downsamples=(1,), associated=False, planes=(5,),
        transfer_syntax_uid=EXPLICIT,
    )  # fmt: skip
    image = dicomslide.open_slide(tmp_path).to_dataset(squeeze=False).image
    assert image.sel(z=0.0054).dims == ("channel", "y", "x", "sample")
    for off in (0.0057, 5.0):  # mm, and the same in µm
        with pytest.raises(KeyError, match="no pixel at z"):
            image.sel(z=off)
        with pytest.raises(KeyError, match="no pixel at z"):
            image.sel(z=slice(off, off + 1))


@pytest.mark.parametrize("spacing", [0.00025, 0.000499, 1 / 3000])
@pytest.mark.parametrize("direction", [1, -1])
def test_the_spacing_of_many_pixels_is_measured_to_the_last(spacing, direction):
    """So that of a level of 150,000 pixels the last one isn't another grid's."""
    level = along(pixels(61.7, spacing, 150_000, direction), spacing=spacing)
    restored = level.drop_indexes("x").set_xindex("x").slide.restore()
    index = restored.xindexes["x"]
    assert index.spacing == pytest.approx(spacing, rel=1e-14)
    assert index.is_even
    ends = [0, -1]
    assert (level.isel(x=ends) - restored).size == (restored.isel(x=ends) + level).size == 2
