"""Values as they are meant: fractions, and real world values (mask_and_scale)."""

from __future__ import annotations

import pickle

import numpy as np
import pydicom
import pytest
import xarray as xr
from pydicom.sr.coding import Code

import dicomslide
from dicomslide import open_slide
from dicomslide.testing import write_slide
from tests.support.derive import mapping, write_map, write_segmentation

SHAPE = (70, 110)
OPTIONS = dict(engine="dicomslide")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    (path,) = write_slide(
        tmp_path_factory.mktemp("base"), shape=SHAPE, downsamples=(1,), tile_shape=(32, 48),
        transfer_syntax_uid="1.2.840.10008.1.2.1", associated=False,
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def fractions(tmp_path_factory, base):
    """A fractional segmentation of two segments, and the values stored in it."""
    rng = np.random.default_rng(1)
    values = rng.integers(0, 201, (*SHAPE, 2))
    values[:32, :48] = 0  # a tile without frames
    path = write_segmentation(
        tmp_path_factory.mktemp("fractions") / "seg.dcm", base, values / 200, "FRACTIONAL",
        max_fractional_value=200,
    )  # fmt: skip
    return path, values


def upright(matrix):
    return np.rot90(matrix, -1)


def of_numbers(kind, **how):
    """A mapping of the integers 10 to 900 to metres."""
    import highdicom as hd

    return hd.pm.RealWorldValueMapping(
        lut_label=kind, lut_explanation=kind, unit=Code("m", "UCUM", "metre"),
        value_range=(10, 900), **how,
    )  # fmt: skip


MAPPINGS = {
    "linear": dict(slope=0.25, intercept=-5.0),
    "a table": dict(lut_data=np.square(np.arange(891) / 7)),
}


@pytest.mark.parametrize("how", MAPPINGS.values(), ids=MAPPINGS.keys())
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_integers_are_real_world_values_as_highdicom_maps_them(tmp_path, base, how, dtype):
    rng = np.random.default_rng(2)
    high = min(np.iinfo(dtype).max, 1000)
    values = rng.integers(0, high, (*SHAPE, 1), endpoint=True).astype(dtype)
    mapped = of_numbers("length", **how)
    path = write_map(tmp_path / "pm.dcm", base, values, [[mapped]])
    inside = (values >= 10) & (values <= 900)
    expected = np.full(values.shape, np.nan)
    expected[inside] = mapped.apply(values[inside])
    assert 0 < inside.sum() < inside.size
    for variable in (
        open_slide([base, path]).to_dataset().parametric_map,
        open_slide([base, path]).to_dataset(chunks="auto").parametric_map,
        open_slide([base, path]).to_datatree()["level_0"].parametric_map,
        xr.open_dataset([base, path], **OPTIONS).parametric_map,
        xr.open_dataset([base, path], chunks={}, **OPTIONS).parametric_map,
        xr.open_datatree([base, path], mask_and_scale=True, **OPTIONS)["level_0"].parametric_map,
    ):
        assert variable.dtype == np.float64
        assert variable.attrs["units"] == "m"
        np.testing.assert_allclose(variable, upright(expected[..., 0]), rtol=1e-12)
    for variable in (
        open_slide([base, path]).to_dataset(mask_and_scale=False).parametric_map,
        open_slide([base, path]).to_datatree(mask_and_scale=False)["level_0"].parametric_map,
        xr.open_dataset([base, path], mask_and_scale=False, **OPTIONS).parametric_map,
        xr.open_dataset([base, path], decode_cf=False, **OPTIONS).parametric_map,
        xr.open_dataset(
            [base, path], mask_and_scale={"parametric_map": False}, **OPTIONS
        ).parametric_map,
        xr.open_datatree([base, path], mask_and_scale=False, **OPTIONS)["level_0"].parametric_map,
    ):
        assert variable.dtype == dtype
        assert "units" not in variable.attrs
        np.testing.assert_array_equal(variable, upright(values[..., 0]))
    slide = open_slide([base, path])  # the methods of the API give what is stored
    region = slide.get_image_region((0, 0), 0, SHAPE, 1)
    np.testing.assert_array_equal(region, values)
    matrix = slide.get_volume_images(1)[0].get_total_pixel_matrix(0)
    np.testing.assert_array_equal(matrix[...], values)
    np.testing.assert_array_equal(matrix.to_dask(), values)


def test_several_mappings_of_the_same_integers_are_several_quantities(tmp_path, base):
    values = np.arange(np.prod(SHAPE)).reshape(*SHAPE, 1).astype(np.uint16) % 1001
    path = write_map(
        tmp_path / "pm.dcm", base, values,
        [[mapping("percent", 0.5, kind=int), mapping("raw", 3.0, kind=int)]],
    )  # fmt: skip
    variable = open_slide([base, path]).to_dataset().parametric_map
    for label, slope in (("percent", 0.5), ("raw", 3.0)):
        np.testing.assert_allclose(
            variable.sel(parameter=label), upright(values[..., 0] * slope - 5)
        )
    assert variable.attrs["units"] == "%"


def test_what_is_not_stored_of_integers_is_nan(tmp_path, base):
    values = np.full((*SHAPE, 1), 100, np.uint16)
    path = write_map(tmp_path / "pm.dcm", base, values, [[mapping("a", kind=int)]])
    dataset = pydicom.dcmread(path)
    # without the first frame, a tile of 32 × 48 pixels
    dataset.PerFrameFunctionalGroupsSequence = dataset.PerFrameFunctionalGroupsSequence[1:]
    dataset.PixelData = dataset.PixelData[32 * 48 * 2 :]
    dataset.NumberOfFrames -= 1
    dataset.DimensionOrganizationType = "TILED_SPARSE"
    dataset.save_as(path)
    expected = np.full(SHAPE, 95.0)
    expected[:32, :48] = np.nan
    variable = open_slide([base, path]).to_dataset().parametric_map
    np.testing.assert_array_equal(variable, upright(expected))


def test_fractions_are_read_lazily_and_told_apart_from_what_is_stored(base, fractions):
    path, values = fractions
    slide = open_slide([base, path])
    meant, stored = (slide.to_dataset(mask_and_scale=each).segmentation for each in (True, False))
    assert meant.data.name != stored.data.name
    assert meant.chunks == stored.chunks
    assert meant.data._meta.dtype == np.float32
    lazy = xr.open_dataset([base, path], **OPTIONS).segmentation
    assert "[15400 values with dtype=float32]" in repr(lazy)
    assert lazy.encoding["preferred_chunks"] == meant.encoding["preferred_chunks"]
    box = dict(segment=1, y=slice(7, 60), x=slice(3, 50))
    whole = upright(values).astype(np.float32) / np.float32(200)
    expected = whole[7:60, 3:50, 1]
    for each in (meant, lazy, pickle.loads(pickle.dumps(lazy)), pickle.loads(pickle.dumps(meant))):
        part = each.isel(box)
        assert part.dtype == np.float32
        np.testing.assert_array_equal(part, expected)
    scattered = lazy.isel(y=xr.DataArray([3, 100], dims="p"), x=xr.DataArray([3, 60], dims="p"))
    np.testing.assert_array_equal(
        scattered.isel(segment=0),
        upright(values[..., 0])[[3, 100], [3, 60]].astype(np.float32) / 200,
    )


def test_fractions_of_nothing_stay_as_they_are_stored(tmp_path, base, fractions):
    dataset = pydicom.dcmread(fractions[0])
    del dataset.MaximumFractionalValue
    dataset.save_as(tmp_path / "seg.dcm")
    slide = open_slide([base, tmp_path / "seg.dcm"])
    with pytest.warns(dicomslide.MetadataWarning, match="without Maximum Fractional Value"):
        variable = slide.to_dataset().segmentation
    assert variable.dtype == np.uint8
    assert "units" not in variable.attrs


def test_what_has_no_other_meaning_is_the_same_with_and_without(tmp_path, base):
    rng = np.random.default_rng(4)
    mask = (rng.random((*SHAPE, 2)) > 0.5).astype(np.uint8)
    binary = write_segmentation(tmp_path / "seg.dcm", base, mask, "BINARY")
    floats = rng.random((*SHAPE, 1)).astype(np.float32)
    path = write_map(tmp_path / "pm.dcm", base, floats, [[mapping("a")]])
    slide = open_slide([base, binary, path])
    meant, stored = (slide.to_dataset(mask_and_scale=each) for each in (True, False))
    assert meant.identical(stored)
    for name in ("image", "segmentation", "parametric_map"):
        assert meant[name].data.name == stored[name].data.name
        assert meant[name].dtype == stored[name].dtype
