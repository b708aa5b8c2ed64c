"""The accessor: arrays that were saved, coarsened or made elsewhere, in millimetres again."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

import dicomslide
from dicomslide import SlideIndex
from dicomslide.testing import write_slide

EXPLICIT = "1.2.840.10008.1.2.1"
BOX = dict(x=slice(17.93, 17.97), y=slice(31.95, 31.97))


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slide")
    write_slide(
        folder, shape=(192, 256), downsamples=(1, 4), tile_shape=(64, 64), associated=False,
        samples=1, bits=16, drawing="position", planes=(5, 7), transfer_syntax_uid=EXPLICIT,
    )  # fmt: skip
    return dicomslide.open_slide(folder)


def saved_as_netcdf(tree, path):
    dataset = tree["level_0"].to_dataset()
    dataset.astype(np.int32, keep_attrs=True).to_netcdf(path)
    return xr.open_dataset(path, chunks={})


def saved_as_zarr(tree, path):
    tree.chunk({"y": 64, "x": 64}).to_zarr(path, zarr_format=2)
    return xr.open_datatree(path, engine="zarr", chunks={})["level_0"].to_dataset()


def saved_as_ome_zarr(tree, path):
    dicomslide.to_ome_zarr(tree, path)
    return xr.open_datatree(path, engine="zarr", chunks={})["level_0"].to_dataset()


@pytest.mark.parametrize(
    "save",
    [
        pytest.param(saved_as_netcdf, marks=pytest.mark.needs("scipy")),
        pytest.param(saved_as_zarr, marks=pytest.mark.needs("zarr")),
        pytest.param(saved_as_ome_zarr, marks=pytest.mark.needs("zarr")),
    ],
)
def test_restore_gives_the_index_back_to_what_was_saved(tmp_path, slide, save):
    tree = slide.to_datatree()
    original = tree["level_0"].image
    opened = save(tree, tmp_path / "saved")
    assert opened.image.sel(BOX).size == 0  # y descends: why there is restore
    restored = opened.slide.restore()
    image = restored.image
    for box in (BOX, {dim: slice(label.stop, label.start) for dim, label in BOX.items()}):
        part = image.sel(box)
        assert part.sizes["x"] == 81
        np.testing.assert_array_equal(part.squeeze(drop=True), original.sel(BOX))
    for dim in ("x", "y", "z"):
        was, now = original.xindexes[dim], image.xindexes[dim]
        assert isinstance(now, SlideIndex)
        assert now.equals(was)
        assert now.spacing == pytest.approx(was.spacing)
        assert now.frame_of_reference_uid == was.frame_of_reference_uid
    uid = slide.frame_of_reference_uid
    assert image.xindexes["x"].frame_of_reference_uid == image.x.attrs["frame_of_reference_uid"]
    assert image.xindexes["x"].frame_of_reference_uid == uid
    assert not (image.squeeze(drop=True).astype(int) - original).any()
    assert float(image.sel(x=17.94512, method=None).x) == pytest.approx(17.945)
    assert opened.image.slide.restore().identical(image)
    assert restored.slide.restore().identical(restored)


@pytest.mark.needs("zarr")
def test_a_tree_is_restored_in_all_its_nodes(tmp_path, slide):
    dicomslide.to_ome_zarr(slide, tmp_path / "out.zarr")
    opened = xr.open_datatree(tmp_path / "out.zarr", engine="zarr", chunks={})
    for node in (opened, opened["level_0"], opened["level_1"]):
        assert "tree.slide.restore()" in repr(node.to_dataset())
    restored = opened.slide.restore()
    assert restored.attrs == opened.attrs
    for level in (0, 1):
        part = restored[f"level_{level}"].image.sel(BOX).squeeze(drop=True)
        np.testing.assert_array_equal(part, slide.to_dataset(level).image.sel(BOX))
        assert part.size
    assert opened["level_1"].slide.restore().sel(BOX).sizes["x"] == 20
    with pytest.raises(ValueError, match="no node has"):
        xr.DataTree.from_dict({"/a": xr.Dataset({"b": ("x", [1])})}).slide.restore()


def test_an_array_with_a_plain_index_meets_its_level_after_restore(slide):
    image = slide.to_dataset().image
    noise = 1e-12 * np.random.default_rng(0).uniform(-1, 1, image.sizes["x"])
    own = xr.DataArray(
        np.ones(image.shape[1:], bool), dims=("y", "x"),
        coords={"y": image.y.values, "x": image.x.values + noise},
    )  # fmt: skip
    assert image.where(own.slide.restore(), 0).sizes == image.sizes
    # and of another grid, taken onto the level's
    coarse = image.isel(z=0).coarsen(y=4, x=4).max()
    taken = coarse.slide.restore().reindex_like(image, method="nearest")
    np.testing.assert_array_equal(taken, np.kron(coarse, np.ones((4, 4), int)))
    assert (image - taken).sizes == image.sizes


def test_spacing_and_extent_are_measured(slide):
    image = slide.to_dataset().image
    assert image.slide.spacing == (0.0005, 0.0005)
    assert image.slide.extent == pytest.approx(slide.physical_bounds)
    for array in (image, image.to_dataset()):
        strided = array.isel(y=slice(None, None, 3), x=slice(2, None, 2))
        assert strided.slide.spacing == (0.001, 0.0015)
        coarse = array.coarsen(y=2, x=4).mean()
        for each in (coarse, coarse.slide.restore()):
            assert each.slide.spacing == (0.002, 0.001)
            assert each.slide.extent == pytest.approx(slide.physical_bounds)
    part = image.isel(x=slice(5, 6), y=slice(7, 9))
    assert part.slide.spacing == (0.0005, 0.0005)
    x, y = float(part.x[0]), part.y.values
    assert part.slide.extent == pytest.approx(
        (x - 0.00025, y[1] - 0.00025, x + 0.00025, y[0] + 0.00025)
    )
    with pytest.raises(ValueError, match="evenly"):
        image.isel(x=[0, 1, 5]).slide.spacing  # noqa: B018
    with pytest.raises(ValueError, match="x in mm is needed"):
        slide.to_dataset(orientation="stored").image.slide.extent  # noqa: B018
    with pytest.raises(ValueError, match="spacing along x is unknown: it has 1 pixels"):
        coarse.isel(x=[0]).slide.spacing  # noqa: B018


def test_no_attribute_of_an_array_goes_stale_when_pixels_are_left_out(slide):
    dataset = slide.to_dataset()
    for variable in dataset.variables.values():
        assert not {"pixel_size", "pixel_spacing", "spacing"} & variable.attrs.keys()


def test_restore_says_what_is_not_in_mm(slide):
    rows = slide.to_dataset(orientation="stored").image
    with pytest.raises(ValueError, match=r"x, y or z in mm is needed; .*'row': 'int64'"):
        rows.isel(z=0).slide.restore()
    micrometres = slide.to_dataset().image.isel(z=0)
    micrometres = micrometres.assign_coords(
        {dim: (dim, micrometres[dim].values * 1000, {"units": "µm"}) for dim in "xy"}
    )
    with pytest.raises(ValueError, match="µm"):
        micrometres.slide.restore()
    renamed = rows.isel(z=0).rename(row="y", column="x")  # as an export of rows and columns
    with pytest.raises(ValueError, match="in mm is needed"):
        renamed.slide.restore()


def test_restore_says_in_which_frame_of_reference_an_array_lies(slide):
    image = slide.to_dataset().image
    other = image.slide.restore(frame_of_reference_uid="1.2.3")
    assert other.x.attrs["frame_of_reference_uid"] == "1.2.3"
    with pytest.raises(dicomslide.GridError, match="differ in frame of reference"):
        image - other
    registered = other.slide.restore(frame_of_reference_uid=slide.frame_of_reference_uid)
    assert not (image - registered).any()


@pytest.mark.needs("scipy")
def test_other_engines_have_the_accessor_and_importing_the_package_costs_no_xarray(tmp_path):
    path = tmp_path / "a.nc"
    xr.Dataset({"a": ("x", [1, 2])}, {"x": [0.5, 1.5]}).to_netcdf(path)
    code = (
        "import sys, dicomslide; assert 'xarray' not in sys.modules;"
        f"import xarray as xr; print(type(xr.open_dataset({str(path)!r}).slide.restore()"
        ".xindexes['x']).__name__)"
    )
    alone = (
        "import dicomslide.accessor, xarray as xr;"
        "print(xr.DataArray([1, 2], {'x': [1.0, 2.0]}).slide.restore().sel(x=slice(9, 1.5)).item())"
    )
    for script, expected in ((code, "SlideIndex"), (alone, "2")):
        out = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        assert out.stdout.strip() == expected
