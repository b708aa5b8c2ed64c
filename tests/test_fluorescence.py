"""Instances, unmixing, background and focus: recipes for fluorescence."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from dask.delayed import delayed
from scipy import ndimage
from skimage.measure import label

import dicomslide
from dicomslide import recipes
from dicomslide.testing import write_slide

SHAPE = (150, 205)


def array_of(pixels, dims, chunks):
    coords = {
        "y": 30 - 0.001 * np.arange(pixels.shape[dims.index("y")]),
        "x": 10 + 0.001 * np.arange(pixels.shape[dims.index("x")]),
    }
    return xr.DataArray(da.from_array(pixels, chunks=chunks), coords, dims)


@pytest.fixture(scope="module")
def blobs():
    """Cells at random, and a vessel that crosses many tiles."""
    rng = np.random.default_rng(0)
    rows, columns = np.indices(SHAPE)
    pixels = np.zeros(SHAPE, np.uint8)
    for row, column, radius in rng.integers((0, 0, 3), (*SHAPE, 8), (40, 3)):
        pixels[(rows - row) ** 2 + (columns - column) ** 2 < radius**2] = 200
    pixels[70:73, 10:190] = 200
    return pixels


def connected(pixels):
    return label(pixels > 0, connectivity=1)


def connected_each(tiles):
    return np.stack([connected(tile) for tile in tiles])


def is_one_to_one(found, expected):
    pairs = np.unique(np.stack([found.ravel(), expected.ravel()]), axis=1)
    return pairs.shape[1] == len(np.unique(expected)) == len(np.unique(found))


@pytest.mark.parametrize("tile", [32, 50, 512])
@pytest.mark.parametrize("batch", [None, 3])
def test_instances_are_stitched_across_tiles(blobs, tile, batch):
    image = array_of(blobs, ("y", "x"), (64, 64))
    model = connected if batch is None else connected_each
    lazy = recipes.map_instances(image, model, halo=16, tile=tile, batch=batch)
    found = lazy.compute(scheduler="sync")
    assert is_one_to_one(found.values, connected(blobs))
    assert sorted(np.unique(found)) == list(range(found.values.max() + 1))
    assert found.y.identical(image.y)
    assert lazy.compute(scheduler="threads").identical(found)


def test_instances_under_a_mask_and_of_a_delayed_model(blobs):
    image = array_of(blobs, ("y", "x"), (64, 64))
    left = xr.DataArray(
        np.broadcast_to(np.arange(SHAPE[1]) < 64, SHAPE), {"y": image.y, "x": image.x}, ("y", "x")
    )
    found = recipes.map_instances(image, delayed(connected), halo=8, tile=32, where=left).values
    assert not found[:, 64:].any()
    assert is_one_to_one(found[:, :56], connected(blobs[:, :64])[:, :56])


def test_halves_that_hardly_overlap_are_two_instances():
    pixels = np.ones((32, 64), np.uint8)

    def half(tile):  # each tile finds its own side of the overlap, and a bit of the other's
        first = tile.shape[1] // 2
        labels = np.zeros(tile.shape, int)
        labels[:, 2:-2] = 1
        labels[:, :first] *= 7
        return labels

    image = array_of(pixels, ("y", "x"), (32, 32))
    strict = recipes.map_instances(image, half, halo=4, tile=32, min_overlap=0.9)
    lenient = recipes.map_instances(image, half, halo=4, tile=32, min_overlap=0.1)
    assert lenient.values.max() < strict.values.max()


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (np.zeros((48, 48), np.float32), "float32 of shape .* expected a label map"),
        (np.full((48, 48), -1), "expected a label map"),
        (np.zeros((20, 48), int), "expected that of the tile with its halo"),
        (np.zeros((1, 48, 48), int), "expected a label map"),
    ],
)
def test_wrong_instances_are_refused(returned, message):
    image = array_of(np.zeros((64, 64), np.uint8), ("y", "x"), (32, 32))
    with pytest.raises(ValueError, match=message):
        recipes.map_instances(image, lambda _: returned, halo=8, tile=32).compute()


def test_instances_need_a_halo_and_a_share():
    image = array_of(np.zeros((64, 64), np.uint8), ("y", "x"), (32, 32))
    with pytest.raises(ValueError, match="halo 0: expected a positive integer"):
        recipes.map_instances(image, connected, halo=0)
    with pytest.raises(ValueError, match="min_overlap 2"):
        recipes.map_instances(image, connected, halo=1, min_overlap=2)


# -- channels --------------------------------------------------------------------------------


def test_unmixing_finds_the_amounts_that_were_mixed():
    rng = np.random.default_rng(0)
    amounts = rng.uniform(0, 100, (2, 40, 50)).astype(np.float32)
    mixing = np.array([[1, 0.3, 0.1], [0.2, 1, 0.4]])
    image = array_of(
        np.einsum("fc,fyx->cyx", mixing, amounts), ("channel", "y", "x"), (1, 16, 16)
    ).assign_coords(channel=["1", "2", "3"])
    matrix = xr.DataArray(
        mixing[:, ::-1],
        {"fluorophore": ["FITC", "Cy3"], "channel": ["3", "2", "1"]},
        ("fluorophore", "channel"),
    )
    found = recipes.unmix(image, matrix)
    assert found.dims == ("fluorophore", "y", "x")
    assert found.chunks is not None
    np.testing.assert_allclose(found, amounts, rtol=1e-3, atol=1e-3)
    assert found.fluorophore.values.tolist() == ["FITC", "Cy3"]
    with pytest.raises(ValueError, match="image has the channels"):
        recipes.unmix(image, matrix.assign_coords(channel=["3", "2", "9"]))
    with pytest.raises(ValueError, match="can't be told apart"):
        recipes.unmix(image, xr.ones_like(matrix))
    with pytest.raises(ValueError, match="expected wave in both"):
        recipes.unmix(image, matrix, dim="wave")
    with pytest.raises(ValueError, match="3 channels, the matrix 2"):
        recipes.unmix(image, matrix.isel(channel=[0, 1]).drop_vars("channel"))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
@pytest.mark.parametrize("percentile", [0, 5, 37.5, 100])
def test_the_background_is_a_percentile_of_what_was_scanned(dtype, percentile):
    rng = np.random.default_rng(0)
    pixels = rng.integers(3, 120, (2, 40, 50)).astype(dtype)
    scanned = rng.random((40, 50)) > 0.3
    pixels[:, ~scanned] = 0
    image = array_of(pixels, ("channel", "y", "x"), (1, 16, 16))
    mask = xr.DataArray(scanned, {"y": image.y, "x": image.x}, ("y", "x"))
    found = recipes.estimate_background(image, percentile=percentile, scanned=mask)
    assert found.dims == ("channel",)
    expected = np.percentile(pixels[:, scanned], percentile, axis=1)
    np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose(
        recipes.estimate_background(image, percentile=percentile),
        np.percentile(pixels, percentile, axis=(1, 2)),
    )
    clean = recipes.subtract_background(image, found, scanned=mask)
    assert clean.dtype == np.float32
    inside = np.maximum(pixels - expected[:, None, None], 0)
    np.testing.assert_allclose(clean, np.where(scanned, inside, np.nan), rtol=1e-6, atol=1e-4)
    assert np.isnan(recipes.estimate_background(image, scanned=mask & False)).all()


def test_a_background_needs_few_values_and_a_mask():
    image = array_of(np.zeros((20, 30), np.float32), ("y", "x"), (10, 10))
    with pytest.raises(ValueError, match="the image is float32; expected integers of 8 or 16"):
        recipes.estimate_background(image)
    with pytest.raises(ValueError, match="scanned is float32"):
        recipes.estimate_background(image.astype(np.uint8), scanned=image)
    with pytest.raises(ValueError, match="percentile -1"):
        recipes.estimate_background(image.astype(np.uint8), percentile=-1)


# -- focal planes ----------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [("z", "y", "x"), ("channel", "z", "y", "x"),
                                  ("z", "y", "x", "sample")])  # fmt: skip
def test_a_focus_stack_is_that_of_the_whole_image(dims):
    rng = np.random.default_rng(0)
    sizes = {"z": 4, "y": 60, "x": 70, "channel": 2, "sample": 3}
    pixels = rng.integers(0, 255, [sizes[dim] for dim in dims]).astype(np.uint8)
    image = array_of(pixels, dims, [{"y": 20, "x": 32}.get(dim, 1) for dim in dims])
    lazy = recipes.focus_stack(image, window=7)
    assert lazy.image.chunks is not None
    found = lazy.compute()
    whole = image.transpose(..., "z", "y", "x").values.astype(np.float32)
    if "sample" in dims:
        whole = image.transpose("sample", "z", "y", "x").values.astype(np.float32).mean(axis=0)
    planes = whole.reshape(-1, 4, 60, 70)
    sharp = np.stack(
        [
            [ndimage.uniform_filter(np.square(ndimage.laplace(plane)), 7) for plane in stack]
            for stack in planes
        ]
    )
    best = sharp.argmax(axis=1).reshape(found["plane"].shape)
    np.testing.assert_array_equal(found["plane"], best)
    taken = image.compute().isel(z=found["plane"]).transpose(*found.image.dims)
    np.testing.assert_array_equal(found.image, taken)
    assert found.image.dims == tuple(dim for dim in dims if dim != "z")
    xr.testing.assert_equal(recipes.focus_stack(image.compute(), window=7), found)


def test_a_focus_stack_finds_the_sharp_plane():
    rng = np.random.default_rng(0)
    sharp = rng.integers(0, 255, (80, 90)).astype(np.float32)
    blurred = ndimage.gaussian_filter(sharp, 3)
    left = np.arange(90) < 45
    planes = np.stack([np.where(left, sharp, blurred), np.where(left, blurred, sharp)])
    image = array_of(planes, ("z", "y", "x"), (1, 40, 30))
    found = recipes.focus_stack(image).compute()
    assert (found["plane"][:, :36] == 0).all()
    assert (found["plane"][:, 54:] == 1).all()
    np.testing.assert_array_equal(found.image[:, :36], sharp[:, :36])
    with pytest.raises(ValueError, match="expected z, y and x"):
        recipes.focus_stack(image.isel(z=0))
    with pytest.raises(ValueError, match="window 4: expected an odd"):
        recipes.focus_stack(image, window=4)


@pytest.fixture(scope="module")
def markers(tmp_path_factory):
    """A stack of markers, of which the first and the ninth have one wavelength."""
    folder = tmp_path_factory.mktemp("markers")
    write_slide(
        folder, shape=(96, 128), tile_shape=(64, 64), downsamples=(1,), drawing="cells", samples=1,
        bits=16, optical_paths=[f"m{n}" for n in range(10)], planes=(0, 2), associated=False,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
    )  # fmt: skip
    return dicomslide.open_slide(folder).to_dataset(chunks="auto").image


RESULTS = {
    "composite": lambda image: recipes.composite(image.isel(z=0)),
    "focus_stack": lambda image: recipes.focus_stack(image).image,
    "plane": lambda image: recipes.focus_stack(image).plane,
    "map_instances": lambda image: recipes.map_instances(
        image.isel(channel=0, z=0), connected, halo=4, tile=64
    ),
    "subtract_background": lambda image: recipes.subtract_background(image, 100),
    "unmix": lambda image: recipes.unmix(
        image, xr.DataArray(np.eye(10)[:, :2], dims=("channel", "fluorophore"))
    ),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_are_selected_by_the_millimetres_of_their_image(markers, name):
    found = RESULTS[name](markers)
    box = {"y": slice(31.96, 31.98), "x": slice(17.97, 17.99)}  # y descends
    part = markers.sel(box)
    assert 0 < part.sizes["y"] < markers.sizes["y"]
    for dim in ("y", "x"):
        xr.testing.assert_identical(found.sel(box)[dim].variable, part[dim].variable)


TABLES = {
    "cell_table": lambda image, cells: recipes.cell_table(image, cells)["mean"],
    "segment_statistics": lambda image, cells: recipes.segment_statistics(image, cells)["mean"],
    "masks": lambda image, cells: recipes.segment_statistics(image, cells == 1)["mean"],
    "cell_table of masks": lambda image, cells: recipes.cell_table(image, cells == 1)["mean"],
    "estimate_background": lambda image, cells: recipes.estimate_background(image),
    "focus_stack": lambda image, cells: recipes.focus_stack(image).image,
}


@pytest.mark.parametrize("name", TABLES)
def test_results_are_selected_by_the_names_of_channels(markers, name):
    cells = xr.ones_like(markers.isel(channel=0, z=0, drop=True), dtype=np.uint8)
    found = TABLES[name](markers, cells)
    assert found.sel(channel_description="Fluorescence m3").channel == "m3"
    assert found.sel(wavelength=405).channel.values.tolist() == ["m0", "m8"]


def test_a_background_that_lacks_channels_is_refused(markers):
    background = recipes.estimate_background(markers)
    with pytest.raises(ValueError, match="background has 2 of the image's 10 labels along channel"):
        recipes.subtract_background(markers, background.isel(channel=[1, 4]))
    with pytest.raises(ValueError, match=r"background has the dims \['cell'\], which the image"):
        recipes.subtract_background(markers, background.expand_dims("cell"))
    scanned = xr.ones_like(markers.isel(channel=0, z=0), dtype=bool).isel(y=slice(9))
    with pytest.raises(ValueError, match="scanned has 9 of the image's 128 labels along y"):
        recipes.subtract_background(markers, background, scanned=scanned)
    two = markers.sel(channel=["m4", "m1"])
    of_all = recipes.subtract_background(two, background)
    of_two = recipes.subtract_background(two, recipes.estimate_background(two))
    xr.testing.assert_identical(of_all.compute(), of_two.compute())


@pytest.mark.parametrize(
    "wrong",
    [
        lambda array: recipes.cell_table(array, xr.DataArray()),
        lambda array: recipes.segment_statistics(array, xr.DataArray()),
        recipes.estimate_background,
        lambda array: recipes.subtract_background(array, 3),
        lambda array: recipes.unmix(array, np.eye(2)),
        recipes.focus_stack,
    ],
)
@pytest.mark.parametrize("array", [np.zeros((2, 5, 5)), xr.Dataset(), "slide/"])
def test_arrays_without_labels_are_refused(wrong, array):
    message = f"the image is a {type(array).__name__}; expected an xarray.DataArray"
    with pytest.raises(TypeError, match=message):
        wrong(array)


def test_statistics_of_another_level_point_to_the_table_of_cells(markers):
    cells = xr.ones_like(markers.isel(channel=0, z=0, drop=True), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"differ in their .* cell_table takes other"):
        recipes.segment_statistics(markers, cells.isel(y=slice(None, None, 2)))
