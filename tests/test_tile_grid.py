"""A table lists the tiles of slides that a mask covers, by area, whatever the grids of both."""

from __future__ import annotations

import functools
import math
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import dicomslide
from dicomslide.testing import write_slide

pytest.importorskip("skimage", reason="recipes take scikit-image")
from dicomslide import recipes

ORIENTATIONS = [
    (0, -1, 0, -1, 0, 0), (0, 1, 0, 1, 0, 0), (1, 0, 0, 0, -1, 0), (-1, 0, 0, 0, 1, 0),
    (1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, -1, 0), (0, -1, 0, 1, 0, 0), (0, 1, 0, -1, 0, 0),
]  # fmt: skip
SHAPE = (90, 130)
NATIVE = "1.2.840.10008.1.2.1"


def written(folder, **options):
    options = {"shape": SHAPE, "tile_shape": (32, 48), "downsamples": (1, 2)} | options
    write_slide(folder, transfer_syntax_uid=NATIVE, associated=False, **options)
    return folder


@functools.cache
def opened(folder, number):
    path = folder / str(number)
    written(path, orientation=ORIENTATIONS[number], spacing=(0.0006, 0.0005))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dicomslide.MetadataWarning)  # mirrored
        return dicomslide.open_slide(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tiles")


@pytest.fixture(scope="module", params=range(8))
def slide(request, folder):
    return opened(folder, request.param)


def overlaps(low, high, others_low, others_high):
    """How long each interval is that one of these shares with one of those."""
    return np.clip(
        np.minimum(high[:, None], others_high) - np.maximum(low[:, None], others_low), 0, None
    )


def covered(table, x, y, mask, pixel):
    """The fraction of each tile that a mask of pixels around x and y covers."""
    rows, columns = table.attrs["size"]
    half = np.array([columns, rows]) * table.attrs["spacing"] / 2
    middles = table[["x", "y"]].to_numpy()
    low, high = middles - half, middles + half
    across = overlaps(low[:, 0], high[:, 0], x - pixel[0] / 2, x + pixel[0] / 2)
    down = overlaps(low[:, 1], high[:, 1], y - pixel[1] / 2, y + pixel[1] / 2)
    return np.einsum("tj,ji,ti->t", down, mask, across) / np.prod(2 * half)


def mask_of(values, x, y):
    return xr.DataArray(values, {"y": y, "x": x}, ("y", "x"))


@st.composite
def masks(draw):
    shape = draw(st.tuples(st.integers(2, 12), st.integers(2, 12)))
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    values = random.random(shape) < draw(st.sampled_from([0.1, 0.5, 0.9]))
    pixel = draw(st.tuples(*[st.sampled_from([0.0003, 0.003, 0.0071, 0.02])] * 2))
    shift = draw(st.tuples(st.floats(-0.3, 1), st.floats(-0.3, 1)))  # of the slide's extent
    turned = draw(st.tuples(st.booleans(), st.booleans()))
    return values, pixel, shift, turned


@settings(max_examples=60, deadline=None)
@given(
    mask=masks(),
    number=st.integers(0, 7),
    size=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    lost=st.tuples(st.integers(0, 39), st.integers(0, 39)),
    spacing=st.sampled_from([0.0005, 0.001, 0.0013]),
    at_least=st.sampled_from([0.0, 1e-6, 0.3, 0.5, 1.0]),
    chunks=st.sampled_from([None, 3, {"y": (1, -1), "x": 5}]),
)
def test_a_fraction_is_that_of_the_tiles_area_which_the_mask_covers(
    folder, mask, number, size, lost, spacing, at_least, chunks
):
    slide = opened(folder, number)
    overlap = tuple(min(a, b - 2) for a, b in zip(lost, size, strict=True))
    values, pixel, shift, turned = mask
    x_min, y_min, x_max, y_max = slide.physical_bounds
    x = x_min + shift[0] * (x_max - x_min) + pixel[0] * np.arange(values.shape[1])
    y = y_min + shift[1] * (y_max - y_min) + pixel[1] * np.arange(values.shape[0])
    where = mask_of(values, x, y)[:: -1 if turned[0] else 1, :: -1 if turned[1] else 1]
    if chunks is not None:
        where = where.chunk({"y": 1, "x": 5} if isinstance(chunks, dict) else chunks)
    grid = functools.partial(
        recipes.tile_grid, slide, size, spacing=spacing, where=where, overlap=overlap
    )
    every = grid(at_least=0)
    expected = covered(every, x, y, values, pixel)
    np.testing.assert_allclose(every.fraction, expected, atol=1e-6)
    assert every.fraction.between(0, 1).all()
    some = grid(at_least=at_least)
    wanted = every[every.fraction >= at_least - 1e-9].reset_index(drop=True)
    pd.testing.assert_frame_equal(some, wanted)


def test_tiles_lie_side_by_side_from_the_upper_left_corner_on(slide):
    spacing = 0.001
    table = recipes.tile_grid(slide, (20, 30), spacing="1 um", at_least=0, overlap=(5, 10))
    assert table.attrs == {"size": [20, 30], "spacing": spacing}
    assert list(table) == ["slide", "x", "y", "fraction"]
    x_min, y_min, x_max, y_max = slide.physical_bounds
    across = math.ceil(round((x_max - x_min) / spacing, 6) / 20)
    down = math.ceil(round((y_max - y_min) / spacing, 6) / 15)
    assert len(table) == across * down
    x, y = (table[name].to_numpy().reshape(down, across) for name in "xy")
    # the corner of the grid is a corner of the base level: the last pixel may reach out of it
    assert abs(x[0, 0] - (x_min + 15 * spacing)) < spacing
    assert abs(y[0, 0] - (y_max - 10 * spacing)) < spacing
    np.testing.assert_allclose(np.diff(x, axis=1), 20 * spacing)
    np.testing.assert_allclose(np.diff(y, axis=0), -15 * spacing)
    np.testing.assert_allclose(np.diff(x, axis=0), 0, atol=1e-12)
    whole = covered(
        table, np.array([(x_min + x_max) / 2]), np.array([(y_min + y_max) / 2]),
        np.ones((1, 1)), (x_max - x_min, y_max - y_min),
    )  # fmt: skip
    np.testing.assert_allclose(table.fraction, whole, atol=1e-9)


def test_middles_are_those_of_patches(slide):
    """A tile begins with a whole pixel of the grid of the spacing."""
    table = recipes.tile_grid(slide, (7, 9), spacing=0.0013, overlap=2)
    sampler = dicomslide.SlideSampler(
        slide, (7, 9), spacing=0.0013, centers=table[["x", "y"]].to_numpy()
    )
    np.testing.assert_allclose(sampler.centers, table[["x", "y"]], rtol=0, atol=1e-12)


def test_a_slide_that_lies_obliquely_is_tiled_as_stored(tmp_path):
    cosines = (0.6, 0.8, 0, 0.8, -0.6, 0)
    written(tmp_path, orientation=cosines, downsamples=(1,))
    slide = dicomslide.open_slide(tmp_path)
    with pytest.warns(dicomslide.MetadataWarning, match="obliquely"):
        table = recipes.tile_grid(slide, 40, spacing=0.0005, at_least=0)
    assert len(table) == 3 * 4
    expected = np.outer([1, 1, 10 / 40], [1, 1, 1, 10 / 40]).ravel()
    np.testing.assert_allclose(table.fraction, expected)
    x, y = slide.get_slide_offset((19.5, 19.5), 0)
    assert table[["x", "y"]].to_numpy()[0] == pytest.approx((x, y))
    mask = mask_of(np.ones((2, 2), bool), np.array([17.0, 17.5]), np.array([31.0, 31.5]))
    with pytest.raises(dicomslide.MetadataError, match="obliquely"):
        recipes.tile_grid(slide, 40, spacing=0.0005, where=mask)


def test_a_table_costs_no_pixels_but_those_of_the_mask(tmp_path, frames_read):
    written(tmp_path, downsamples=(1, 4))
    slide = dicomslide.open_slide(tmp_path)
    assert len(recipes.tile_grid(slide, 16, spacing=0.0005))
    assert not frames_read
    coarse = slide.to_dataset(1, chunks="frames").image
    masked = recipes.tile_grid(slide, 16, spacing=0.0005, where=recipes.tissue_mask(coarse, 10))
    assert frames_read == [0]
    expected = covered(
        masked, coarse.x.values, coarse.y.values,
        recipes.tissue_mask(coarse, 10).values, (0.002, 0.002),
    )  # fmt: skip
    np.testing.assert_allclose(masked.fraction, expected, atol=1e-6)
    assert (masked.fraction >= 0.5 - 1e-9).all()


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    for number in range(3):
        written(folder / f"S{number}", shape=(60, 60 + 30 * number), container_id=f"S{number}",
                slide_number=number + 1, downsamples=(1,))  # fmt: skip
    return folder


def left_half(slide):
    """A mask of one pixel on each half of a slide."""
    x_min, y_min, x_max, y_max = slide.physical_bounds
    x = x_min + (x_max - x_min) * np.array([0.25, 0.75])
    y = np.array([(y_min + y_max) / 2] * 2) + np.array([-0.5, 0.5])
    return mask_of(np.array([[True, False]] * 2), x, y)


def test_tiles_of_many_slides_have_the_names_of_these(cohort):
    slides = dicomslide.open_slides(cohort)
    table = recipes.tile_grid(slides, 30, spacing=0.0005, where=left_half)
    alone = [recipes.tile_grid(slides[name], 30, spacing=0.0005, where=left_half(slides[name]))
             for name in slides]  # fmt: skip
    pd.testing.assert_frame_equal(table, pd.concat(alone, ignore_index=True))
    assert table.slide.unique().tolist() == ["S0", "S1", "S2"]
    paths = [cohort / "S2", str(cohort / "S0")]
    by_path = recipes.tile_grid(paths, 30, spacing=0.0005, where=left_half)
    assert by_path.slide.unique().tolist() == [str(each) for each in paths]
    named = recipes.tile_grid({"b": paths[0], "a": slides["S0"]}, 30, spacing=0.0005)
    assert named.slide.unique().tolist() == ["b", "a"]
    by_slide = recipes.tile_grid([slides["S1"], slides["S0"]], 30, spacing=0.0005)
    assert by_slide.slide.unique().tolist() == ["S1", "S0"]
    one = recipes.tile_grid(paths[0], 30, spacing=0.0005)
    assert one.slide.unique().tolist() == [str(paths[0])]


def test_slides_of_a_cohort_that_do_not_open_are_left_out(cohort, tmp_path):
    shutil.copytree(cohort, tmp_path / "cohort")
    slides = dicomslide.open_slides(tmp_path / "cohort")
    dicomslide.clear_all()
    shutil.rmtree(tmp_path / "cohort" / "S1")
    table = recipes.tile_grid(slides, 30, spacing=0.0005)
    assert table.slide.unique().tolist() == ["S0", "S2"]
    assert isinstance(slides.failures["S1"], dicomslide.SourceNotFoundError)


def test_no_tiles_are_a_table_without_rows(slide):
    nothing = mask_of(np.zeros((2, 2), bool), np.array([1.0, 2]), np.array([1.0, 2]))
    for table in (
        recipes.tile_grid([], 224, spacing=0.001),
        recipes.tile_grid(slide, 224, spacing=0.001, where=nothing),
        recipes.tile_grid(slide, 224, spacing=0.001, where=nothing[:0]),
    ):
        assert len(table) == 0
        assert (table.dtypes[["x", "y", "fraction"]] == np.float64).all()
        assert list(table.slide.str.upper()) == []  # of text
        assert table.attrs == {"size": [224, 224], "spacing": 0.001}


def test_a_mask_of_another_frame_of_reference_is_refused(cohort):
    slides = dicomslide.open_slides(cohort)
    mask = recipes.tissue_mask(slides["S0"].to_dataset(0).image, 10)
    assert len(recipes.tile_grid(slides["S0"], 10, spacing=0.001, where=mask))
    with pytest.raises(dicomslide.GridError, match="frame of reference") as caught:
        recipes.tile_grid(slides["S1"], 10, spacing=0.001, where=mask)
    assert "in the slide 'S1'" in caught.value.__notes__
    with pytest.raises(ValueError, match="one mask for 3 slides"):
        recipes.tile_grid(slides, 10, spacing=0.001, where=mask)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"size": 0}, ValueError, "size"),
        ({"size": (3, 4, 5)}, ValueError, "size"),
        ({"size": 2.5}, TypeError, "size"),
        ({"overlap": 10}, ValueError, r"overlap \(10, 10\)"),
        ({"overlap": -1}, ValueError, "overlap"),
        ({"at_least": 1.5}, ValueError, "at_least 1.5"),
        ({"at_least": math.nan}, ValueError, "at_least nan"),
        ({"at_least": "0.5"}, ValueError, "at_least '0.5': expected a fraction from 0 to 1"),
        ({"at_least": None}, ValueError, "at_least None: expected a fraction"),
        ({"spacing": 0}, ValueError, "spacing"),
        ({"spacing": 1e-12}, ValueError, "at least a thousandth"),
        ({"where": lambda slide: None}, TypeError, "NoneType; expected a DataArray"),
        ({"where": np.ones((2, 2), bool)}, TypeError, "ndarray; expected a DataArray"),
        ({"where": lambda slide: left_half(slide).astype(float)}, ValueError, "float64"),
        ({"where": lambda slide: left_half(slide).expand_dims("z")}, ValueError, "dims"),
        ({"where": lambda slide: left_half(slide).drop_vars("x")}, ValueError, "x in mm"),
        ({"where": lambda slide: left_half(slide)[:1, :1]}, ValueError, "spacing along"),
        (
            {"where": mask_of(np.ones((2, 3), bool), np.arange(3.0), np.array([1, np.nan]))},
            ValueError,
            "where: y has coordinates that aren't finite",
        ),
    ],
)
def test_what_is_no_grid_or_no_mask_is_refused(cohort, arguments, error, message):
    slide = dicomslide.open_slide(cohort / "S0")
    with pytest.raises(error, match=message):
        recipes.tile_grid(slide, **{"size": 10, "spacing": 0.001, **arguments})


@pytest.mark.parametrize("slides", [None, 5, 2.5])
def test_what_is_no_slide_is_refused(slides):
    with pytest.raises(TypeError, match=r"slides is of the type \w+; expected a Slide, a Cohort"):
        recipes.tile_grid(slides, 10, spacing=0.001)


def test_two_slides_of_one_name_are_refused(cohort):
    slide = dicomslide.open_slide(cohort / "S0")
    with pytest.raises(ValueError, match="two slides have the name 'S0'"):
        recipes.tile_grid([slide, slide], 10, spacing=0.001)


def test_too_many_tiles_are_refused_before_they_are_made(cohort):
    slide = dicomslide.open_slide(cohort / "S0")
    with (
        dicomslide.set_options(memory_limit_bytes=2**20),
        pytest.raises(dicomslide.MemoryLimitError, match="tiles"),
    ):
        recipes.tile_grid(slide, 1, spacing=0.0001)
