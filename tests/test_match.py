"""One array onto the grid of another one: values by area, and where they are."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import dicomslide.accessor  # noqa: F401 - which registers array.slide
from dicomslide import GridError, open_slide
from dicomslide.labelled.coordinates import slide_coordinate
from dicomslide.testing import write_slide


def array(shape, spacing, first=(10.0, 20.0), values=None, *, down=True, uid=None, chunks=None):
    """An array of random values; y descends, unless it is to ascend."""
    attrs = {"units": "mm"} | ({} if uid is None else {"frame_of_reference_uid": uid})
    values = np.random.default_rng(0).random(shape) if values is None else values
    found = xr.DataArray(values, dims=("y", "x", *("abc"[: values.ndim - 2])))
    for dim, start, step, count in zip("yx", first, (-spacing if down else spacing, spacing),
                                       shape, strict=False):  # fmt: skip
        along = start + step * np.arange(count)
        found = found.assign_coords(slide_coordinate(dim, along, attrs, spacing))
    return found if chunks is None else found.chunk(chunks)


def overlaps(wanted, stored, spacing, stored_spacing):
    low = np.maximum(wanted[:, None] - spacing / 2, stored - stored_spacing / 2)
    high = np.minimum(wanted[:, None] + spacing / 2, stored + stored_spacing / 2)
    return (high - low).clip(0)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 25), st.integers(1, 25)),
    other=st.tuples(st.integers(1, 25), st.integers(1, 25)),
    spacing=st.sampled_from([0.001, 0.0013, 0.004]),
    shift=st.tuples(st.floats(-0.02, 0.02), st.floats(-0.02, 0.02)),
    down=st.booleans(),
    chunks=st.integers(1, 9),
    like_chunks=st.integers(1, 9) | st.none(),
)
def test_means_are_by_area_whatever_the_chunks(
    shape, other, spacing, shift, down, chunks, like_chunks
):
    here = array(shape, 0.001, chunks=chunks, down=down)
    like = array(other, spacing, np.add((10.0, 20.0), shift), chunks=like_chunks)
    found = here.slide.match(like)
    assert found.chunks is not None
    y, x = (overlaps(like[d].values, here[d].values, spacing, 0.001) for d in "yx")
    area = y.sum(1)[:, None] * x.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = y @ here.values @ x.T / area
    covered = area > 1e-9 * 1e-6
    np.testing.assert_allclose(found.values[covered], expected[covered], rtol=1e-4)
    far = area == 0
    assert np.isnan(found.values[far]).all()
    for dim in "yx":
        xr.testing.assert_identical(found[dim].variable, like[dim].variable)


def test_nearest_is_that_of_reindex_like():
    here = array((40, 50), 0.001, chunks=16)
    for like in (array((13, 9), 0.0031, (9.999, 20.0004)), array((90, 90), 0.0005)):
        expected = here.reindex_like(like, method="nearest", fill_value=-1)
        found = here.slide.match(like, "nearest", fill_value=-1)
        np.testing.assert_array_equal(found.values, expected.values)


@pytest.mark.needs("scipy")
def test_linear_is_that_of_interp_where_there_are_four_centres():
    here = array((40, 50), 0.001, chunks=16)
    like = array((95, 95), 0.0004, (9.9999, 20.00013), chunks=30)
    found = here.slide.match(like, "linear").values
    expected = here.compute().interp(y=like.y, x=like.x).values
    inside = ~np.isnan(expected)
    assert inside.sum() > 5000
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-9)


def test_majority_takes_the_label_of_the_largest_area():
    labels = np.random.default_rng(0).integers(0, 4, (40, 60)).astype(np.uint8)
    here = array(labels.shape, 0.001, values=labels, chunks=17)
    like = array((13, 20), 0.003, (10.0 - 0.001, 20.001))
    found = here.slide.match(like, "majority").values
    boxes = labels[:39].reshape(13, 3, 20, 3).transpose(0, 2, 1, 3).reshape(13, 20, 9)
    counts = (boxes[..., None] == np.arange(4)).sum(axis=-2)
    np.testing.assert_array_equal(found, counts.argmax(axis=-1))  # the lowest of several
    assert found.dtype == np.uint8


def test_masks_become_fractions_and_integers_are_rounded():
    mask = np.zeros((4, 4), bool)
    mask[:2, :3] = True
    like = array((2, 2), 0.002, (10.0 - 0.0005, 20.0005))
    found = array((4, 4), 0.001, values=mask).slide.match(like)
    np.testing.assert_allclose(found.values, [[1, 0.5], [0, 0]])
    assert found.dtype == np.float32
    grey = array((4, 4), 0.001, values=np.arange(16, dtype=np.uint8).reshape(4, 4))
    np.testing.assert_array_equal(grey.slide.match(like).values, [[3, 5], [11, 13]])
    assert array((4, 4), 0.001, values=mask).slide.match(like, "majority").dtype == np.bool_


def test_other_dims_and_coordinates_stay():
    here = array((8, 8), 0.001, values=np.random.default_rng(1).random((8, 8, 2, 3)))
    here = here.transpose("a", "y", "b", "x").assign_coords(a=["p", "q"]).chunk(a=1, y=3)
    found = here.slide.match(array((4, 4), 0.002, (9.9995, 20.0005)))
    assert found.dims == here.dims
    assert list(found.a.values) == ["p", "q"]
    expected = here.compute().coarsen(y=2, x=2).mean()
    np.testing.assert_allclose(found.values, expected.values)


def test_only_what_is_needed_is_read():
    def fail(block):
        raise AssertionError("this chunk isn't needed")

    whole = da.concatenate([da.ones((10, 40), chunks=10), da.ones((30, 40), chunks=10).map_blocks(
        fail, dtype=float, meta=np.empty((0, 0)))])  # fmt: skip
    here = array((40, 40), 0.001, values=np.ones((40, 40))).copy(data=whole)
    like = array((4, 4), 0.002, (9.9995, 20.0005))
    assert (here.slide.match(like).values == 1).all()


def test_frames_of_reference_and_grids_are_checked():
    here, like = array((4, 4), 0.001, uid="1.2"), array((4, 4), 0.001, uid="1.3")
    with pytest.raises(GridError, match=r"1\.2 and 1\.3"):
        here.slide.match(like)
    with pytest.raises(ValueError, match="method must be one of"):
        here.slide.match(here, "cubic")
    with pytest.raises(ValueError, match="x in mm is needed"):
        here.slide.match(here.drop_vars("x"))
    with pytest.raises(ValueError, match="evenly"):
        here.isel(x=[0, 1, 3]).slide.match(here)
    with pytest.raises(TypeError, match="takes an array"):
        xr.Dataset({"a": here}).slide.match(here)


def test_arrays_of_other_spacings_say_that_they_can_be_matched():
    a, b = array((4, 4), 0.001), array((2, 2), 0.002)
    with pytest.raises(GridError, match=r"b\.slide\.match\(a\)"):
        a + b


def test_levels_are_registered_by_content(tmp_path):
    """The base, brought onto a level, is the level: it was made of means."""
    paths = write_slide(
        tmp_path, shape=(512, 768), downsamples=(1, 4), associated=False,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
    )  # fmt: skip
    base, level = (open_slide(paths).to_dataset(i).image for i in (0, 1))
    found = base.slide.match(level).values.astype(int)
    assert np.abs(found - level.values).max() <= 1
    apart = [np.abs(np.roll(found, shift, 0) - level.values).mean() for shift in (-1, 0, 1)]
    assert apart[1] < apart[0] / 4
    assert apart[1] < apart[2] / 4


def test_what_is_empty_gives_or_takes_nothing():
    here, like = array((8, 8), 0.001), array((4, 4), 0.002)
    for method in ("mean", "nearest", "majority", "linear"):
        assert here.slide.match(like[:0], method).compute().shape == (0, 4)
        assert np.isnan(here[:0].slide.match(like, method).values).all()


def test_only_the_grid_of_the_other_array_is_taken():
    here = array((8, 8), 0.001, values=np.random.default_rng(1).random((8, 8, 2)))
    like = array((4, 4), 0.002, (9.9995, 20.0005)).assign_coords(a=1, z=0.0)
    found = here.slide.match(like)
    assert found.dims == ("y", "x", "a")
    assert set(found.coords) == {"y", "x"}
