"""Tables of cells, by label maps of any integers, at any level."""

from __future__ import annotations

import sys

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from highdicom.ann import Measurements
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.sr.codedict import codes
from skimage.measure import regionprops_table

import dicomslide
from dicomslide import recipes
from dicomslide.errors import MemoryLimitError
from dicomslide.recipes.label_runs import Runs, moments_of
from dicomslide.testing import write_slide
from tests.support.derive import annotations_of, group_of, write_segmentation
from tests.support.workers import some_workers

STEP = 0.001
SHAPE = (150, 210)


def cells_of(shape):
    """Cells whose numbers have gaps and are large, and of which one has two parts."""
    rows, columns = np.indices(shape)
    labels = (rows // 23 * 20 + columns // 31 + 1) * 10**9
    labels[(rows % 23 - 11) ** 2 + (columns % 31 - 15) ** 2 > 110] = 0
    labels[0, 0] = labels[-1, -1] = 5
    return labels


def array_of(pixels, chunks, *, step=STEP, first=(30.0, 10.0), **coords):
    *others, rows, columns = pixels.shape
    dims = ("channel", "y", "x")[3 - pixels.ndim :]
    if others:
        coords["channel"] = ["DAPI", "CD3", "CD8"][: others[0]]
    coords |= {"y": first[0] - step * np.arange(rows), "x": first[1] + step * np.arange(columns)}
    return xr.DataArray(da.from_array(pixels, chunks=chunks), coords, dims)


def expected(labels, pixels):
    """What scikit-image and NumPy measure, by label."""
    numbers, compact = np.unique(labels, return_inverse=True)
    compact = compact.reshape(labels.shape) + (0 if numbers[0] == 0 else 1)
    properties = ("area", "centroid", "bbox", "intensity_mean", "intensity_min", "intensity_max")
    channels = np.moveaxis(pixels, 0, -1).astype(np.float64)
    found = regionprops_table(compact, channels, properties=properties)
    numbers = numbers[numbers != 0]
    inside = [pixels[:, labels == number].astype(np.float64) for number in numbers]
    return numbers, found, inside


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int64, np.float32, np.float64])
def test_a_table_of_cells_is_that_of_scikit_image(dtype):
    labels = cells_of(SHAPE)
    pixels = np.random.default_rng(0).normal(90, 60, (3, *SHAPE)).clip(0, 255).astype(dtype)
    image, label_map = array_of(pixels, (1, 40, 64)), array_of(labels, (50, 70))
    lazy = recipes.cell_table(image, label_map)
    assert lazy["mean"].chunks is not None
    table = lazy.compute()
    numbers, found, inside = expected(labels, pixels)
    assert table.segment.values.tolist() == numbers.tolist()
    np.testing.assert_array_equal(table["count"], found["area"])
    np.testing.assert_allclose(table["area"], found["area"] * STEP**2)
    for dim, axis, sign, first in (("y", 0, -1, 30), ("x", 1, 1, 10)):
        np.testing.assert_allclose(
            table[f"centroid_{dim}"], first + sign * STEP * found[f"centroid-{axis}"]
        )
        ends = [first + sign * STEP * (found[f"bbox-{at}"] - 0.5) for at in (axis, axis + 2)]
        np.testing.assert_allclose(table[f"{dim}_min"], np.minimum(*ends))
        np.testing.assert_allclose(table[f"{dim}_max"], np.maximum(*ends))
    for name in ("mean", "min", "max"):
        for channel in range(3):
            values = table[name].isel(channel=channel)
            np.testing.assert_allclose(values, found[f"intensity_{name}-{channel}"])
    np.testing.assert_allclose(table["std"], [each.std(axis=1) for each in inside], atol=1e-9)
    np.testing.assert_allclose(table["median"], [np.median(each, axis=1) for each in inside])
    of_numpy = [np.percentile(each, [5, 25, 75, 95], axis=1).T for each in inside]
    np.testing.assert_allclose(table["percentiles"], of_numpy)
    assert table["percentiles"].dims == ("segment", "channel", "percentile")


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_tables_of_any_labels_and_chunks_are_numpys(data):
    rows, columns = data.draw(st.tuples(st.integers(2, 14), st.integers(2, 14)))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    kinds = st.sampled_from([np.int8, np.uint8, np.int32, np.uint64])
    dtype = data.draw(kinds)
    some = rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, 5, dtype, endpoint=True)
    labels = rng.choice(np.append(some, dtype(0)), (rows, columns))
    pixels = rng.integers(0, 9, (2, rows, columns)).astype(
        data.draw(st.sampled_from([np.uint8, np.int16, np.uint16, np.float32]))
    )
    chunks = data.draw(st.tuples(st.integers(1, 14), st.integers(1, 14)))
    table = recipes.cell_table(
        array_of(pixels, (2, *chunks)),
        array_of(labels, chunks[::-1]),
        percentiles=[10],
        background=True,
    ).compute(scheduler="sync")
    numbers = np.unique(labels)
    assert table.segment.values.tolist() == numbers.tolist()
    for at, number in enumerate(numbers):
        inside = pixels[:, labels == number].astype(np.float64)
        one = table.isel(segment=at)
        assert int(one["count"]) == inside.shape[1]
        np.testing.assert_allclose(one["mean"], inside.mean(axis=1))
        np.testing.assert_allclose(one["std"], inside.std(axis=1), atol=1e-9)
        np.testing.assert_allclose(one["median"], np.median(inside, axis=1))
        np.testing.assert_allclose(one["percentiles"][:, 0], np.percentile(inside, 10, axis=1))


def test_deviations_are_exact_for_large_values():
    labels = np.repeat([[1, 1, 2, 2, 2, 1]], 50, axis=0)
    values = 1e9 + np.random.default_rng(0).normal(0, 1, labels.shape)
    sums, squares = moments_of(Runs.of(labels), values.ravel())
    for at, label in enumerate((1, 2)):
        inside = values[labels == label]
        assert sums[at] == pytest.approx(inside.sum())
        assert squares[at] == pytest.approx(inside.var() * inside.size, rel=1e-6)


def test_cells_with_nan_and_infinity_have_no_numbers():
    pixels = np.ones((1, 20, 30), np.float32)
    pixels[0, :, 10:20] = np.nan
    pixels[0, 3, 25] = np.inf
    labels = np.repeat(np.arange(30)[None] // 10 + 1, 20, axis=0)
    table = recipes.cell_table(array_of(pixels, (1, 7, 8)), array_of(labels, (7, 8))).compute()
    for name in ("mean", "median", "std", "min", "max"):
        assert np.isnan(table[name].sel(segment=2)).all()
        assert table[name].sel(segment=1).item() == (0 if name == "std" else 1)
    assert table["max"].sel(segment=3).item() == np.inf
    assert table["median"].sel(segment=3).item() == 1


@pytest.mark.cluster
def test_tables_are_equal_on_threads_and_a_cluster():
    labels = cells_of(SHAPE)
    pixels = np.random.default_rng(0).normal(0, 1, (2, *SHAPE)).astype(np.float32)
    lazy = recipes.cell_table(array_of(pixels, (1, 40, 64)), array_of(labels, (40, 64)))
    found = lazy.compute(scheduler="threads")
    xr.testing.assert_identical(lazy.compute(scheduler="sync"), found)
    with some_workers(2, is_default=False) as client:
        xr.testing.assert_identical(client.compute(lazy).result(), found)


@pytest.mark.parametrize("factor", [2, 0.5])
def test_an_image_and_labels_of_different_levels_meet_at_centres(factor):
    labels = cells_of((120, 160))
    label_map = array_of(labels, (50, 70))
    shape = int(120 / factor), int(160 / factor)
    pixels = np.random.default_rng(0).integers(0, 255, (1, *shape)).astype(np.uint8)
    step = STEP * factor
    first = (30 + STEP / 2 - step / 2, 10 - STEP / 2 + step / 2)
    image = array_of(pixels, (1, 20, 30), step=step, first=first)
    table = recipes.cell_table(image, label_map).compute()
    # of the label map, its own shape; of the image, the label under each centre
    rows, columns = (
        np.floor((np.arange(n) + 0.5) * factor + 1e-6).astype(int).clip(0, most - 1)
        for n, most in zip(shape, labels.shape, strict=True)
    )
    under = labels[np.ix_(rows, columns)]
    for number in table.segment.values:
        one = table.sel(segment=number)
        assert float(one["area"]) == pytest.approx((labels == number).sum() * STEP**2)
        inside = pixels[0, under == number]
        assert int(one["count"]) == inside.size
        np.testing.assert_allclose(one["median"], np.median(inside) if inside.size else np.nan)


def test_a_table_of_a_region_has_what_lies_in_it():
    labels = cells_of(SHAPE)
    pixels = np.random.default_rng(0).integers(0, 255, (1, *SHAPE)).astype(np.uint8)
    region = {"y": slice(30, 90), "x": slice(50, 120)}
    table = recipes.cell_table(
        array_of(pixels, (1, 40, 64)).isel(region), array_of(labels, (50, 70))
    ).compute()
    inside = labels[30:90, 50:120]
    numbers, counts = np.unique(inside[inside > 0], return_counts=True)
    assert table.segment.values.tolist() == numbers.tolist()
    np.testing.assert_array_equal(table["count"], counts)
    np.testing.assert_allclose(table["area"], counts * STEP**2)
    apart = array_of(labels, (50, 70), first=(90.0, 10.0))
    with pytest.raises(ValueError, match="don't overlap along y"):
        recipes.cell_table(array_of(pixels, (1, 40, 64)), apart)


def test_masks_that_overlap_are_rows_of_a_table():
    rng = np.random.default_rng(0)
    masks = rng.random((3, 40, 50)) > 0.6
    masks[2] = False
    pixels = rng.integers(0, 255, (1, 40, 50)).astype(np.uint8)
    image = array_of(pixels, (1, 20, 20))
    segmentation = array_of(masks, (1, 20, 20)).rename(channel="segment")
    segmentation = segmentation.assign_coords(
        segment=[4, 2, 9], segment_label=("segment", ["tumour", "stroma", "none"])
    )
    table = recipes.cell_table(image, segmentation).compute()
    assert table.segment.values.tolist() == [4, 2, 9]
    assert table.segment_label.values.tolist() == ["tumour", "stroma", "none"]
    for at in range(2):
        inside = pixels[0][masks[at]]
        assert table["median"][at].item() == np.median(inside)
        assert table["count"][at].item() == inside.size
    assert np.isnan(table["median"][2]).all()
    assert table["count"].dtype == np.int64
    assert (table["count"][2].item(), table["area"][2].item()) == (0, 0)


def test_wrong_labels_are_refused():
    image = array_of(np.zeros((1, 20, 30), np.float32), (1, 20, 30))
    labels = array_of(np.ones((20, 30), np.int64), (10, 10))
    with pytest.raises(TypeError, match="the labels are a ndarray; expected a DataArray"):
        recipes.cell_table(image, np.ones((20, 30), int))
    with pytest.raises(ValueError, match=r"the labels are float32; expected integers"):
        recipes.cell_table(image, labels.astype(np.float32))
    with pytest.raises(ValueError, match=r"has the dims \('z', 'y', 'x'\); expected y and x"):
        recipes.cell_table(image, labels.expand_dims("z"))
    with pytest.raises(ValueError, match=r"percentiles \(101,\): expected numbers from 0 to 100"):
        recipes.cell_table(image, labels, percentiles=(101,))
    for odd in (50, ("median",)):
        with pytest.raises(ValueError, match=r"percentiles .*: expected numbers from 0 to 100"):
            recipes.cell_table(image, labels, percentiles=odd)
    with (
        dicomslide.set_options(memory_limit_bytes=1000),
        pytest.raises(MemoryLimitError, match="values of 1 segments that several chunks"),
    ):
        recipes.cell_table(image, labels)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cells")
    level, *_ = write_slide(
        folder, shape=(120, 160), downsamples=(1, 2), tile_shape=(64, 64), drawing="cells",
        samples=1, bits=16, optical_paths=("DAPI", "CD3"), associated=False,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
    )  # fmt: skip
    labels = np.zeros((120, 160), np.uint8)
    labels[10:40, 20:60], labels[50:90, 70:110] = 1, 2
    write_segmentation(folder / "seg.dcm", level, labels, "LABELMAP")
    return dicomslide.open_slide(folder)


def test_cells_of_a_slide_become_tables_of_pandas(slide):
    dataset = slide.to_dataset(chunks="auto")
    table = recipes.cell_table(dataset.image, dataset.segmentation)
    assert table.segment.values.tolist() == [1, 2]
    assert table.segment_label.values.tolist() == ["tumour", "stroma"]
    assert (
        recipes.cell_table(dataset.image, dataset.segmentation, background=True).sizes["segment"]
        == 3
    )
    frame = recipes.to_pandas(table)
    assert frame.index.name == "segment"
    assert frame.loc[1, "segment_label"] == "tumour"
    assert (
        frame.loc[2, "median_Fluorescence CD3"]
        == table["median"].sel(segment=2, channel="CD3").compute()
    )
    assert {"area", "centroid_x", "x_min", "count", "percentile_5_Fluorescence DAPI"} <= set(
        frame.columns
    )
    low = slide.to_dataset(1, chunks="auto").image
    coarse = recipes.cell_table(low, dataset.segmentation).compute()
    np.testing.assert_allclose(coarse["area"], table["area"])
    np.testing.assert_array_equal(coarse["count"], [30 * 40 / 4, 40 * 40 / 4])
    assert isinstance(frame, pd.DataFrame)


def test_cells_are_joined_to_the_annotations_that_they_were_made_of(slide, tmp_path):
    level = slide.name
    corners = np.array([[0, 0], [0, 20], [30, 20], [30, 0]], np.float32)
    graphics = [corners + 5, corners + np.float32([80, 60])]
    measured = Measurements(
        name=codes.SCT.Area, unit=codes.UCUM.SquareMicrometer, values=np.array([3.5, 4.5])
    )
    group = group_of(graphics, measurements=[measured])
    annotations_of(level, [group]).save_as(tmp_path / "ann.dcm")
    annotated = dicomslide.open_slide([level, tmp_path / "ann.dcm"])
    (found,) = annotated.annotations()
    image = annotated.to_dataset(chunks="auto").image
    labels = recipes.rasterize(found, image, labels=True)
    joined = recipes.to_pandas(recipes.cell_table(image, labels), annotations=found)
    assert joined.index.tolist() == [1, 2]
    assert joined["annotation_Area"].tolist() == [3.5, 4.5]
    np.testing.assert_allclose(joined["centroid_x"], joined["annotation_x"], atol=1e-6)
    np.testing.assert_allclose(joined["centroid_y"], joined["annotation_y"], atol=1e-6)


@pytest.mark.needs("anndata")
def test_cells_become_anndata(slide):
    dataset = slide.to_dataset(chunks="auto")
    table = recipes.cell_table(dataset.image, dataset.segmentation).compute()
    found = recipes.to_anndata(table, values="median")
    assert found.obs_names.tolist() == ["1", "2"]
    assert found.var_names.tolist() == ["Fluorescence DAPI", "Fluorescence CD3"]
    np.testing.assert_array_equal(found.X, table["median"])
    np.testing.assert_array_equal(found.layers["mean"], table["mean"])
    assert found.obs["segment_label"].tolist() == ["tumour", "stroma"]
    centres = np.stack([table.centroid_x, table.centroid_y], axis=1)
    np.testing.assert_allclose(found.obsm["spatial"], 1000 * centres)
    with pytest.raises(ValueError, match="'area' is no variable of the table with a dim"):
        recipes.to_anndata(table, values="area")


def test_without_anndata_the_error_names_the_extra(slide, monkeypatch):
    monkeypatch.setitem(sys.modules, "anndata", None)
    with pytest.raises(ImportError, match=r"dicomslide\[anndata\]"):
        recipes.to_anndata(xr.Dataset())
