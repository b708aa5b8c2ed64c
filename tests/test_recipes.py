"""Recipes, against NumPy and scikit-image on whole arrays, wherever dask computes them."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from operator import methodcaller

import dask
import dask.array as da
import numpy as np
import pydicom
import pytest
import xarray as xr
from scipy.ndimage import uniform_filter
from skimage.color import hed_from_rgb
from skimage.color import separate_stains as separate_whole
from skimage.filters import threshold_otsu
from skimage.measure import block_reduce

import dicomslide
from dicomslide import recipes
from dicomslide.testing import write_slide
from tests.support.derive import write_segmentation
from tests.support.parts import starts
from tests.support.workers import some_workers

SHAPE = (700, 900)
TILE = 64
HALO = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A slide of 11 × 15 tiles, of which those at the rim are glass, with segmentations."""
    folder = tmp_path_factory.mktemp("recipes")
    level, *_ = write_slide(folder, shape=SHAPE, downsamples=(1, 4), tile_shape=(TILE, TILE))
    write_segmentation(folder / "binary.dcm", level, segments_of(SHAPE), "BINARY")
    write_segmentation(
        folder / "labels.dcm", level, labels_of(SHAPE), "LABELMAP", omit_empty_frames=False
    )
    return folder


def segments_of(shape):
    """Two segments that overlap, as stored, shape (rows, columns, 2)."""
    rows, columns = np.indices(shape)
    return np.stack(
        [(rows - 300) ** 2 + (columns - 400) ** 2 < 200**2, columns > 350 + rows // 5], axis=-1
    ).astype(np.uint8)


def labels_of(shape):
    segments = segments_of(shape)
    return np.where(segments[..., 0], 1, 2 * segments[..., 1]).astype(np.uint8)


@pytest.fixture(scope="module")
def tree(folder):
    """Chunks of four by four frames."""
    return dicomslide.open_slide(folder, correct_color=False).to_datatree(chunks=4 * TILE)


@pytest.fixture(scope="module")
@starts("cluster")
def places():
    """Compute on this thread, on several, on two processes, and on a cluster of two."""
    context = get_context("spawn")
    with (
        ProcessPoolExecutor(2, mp_context=context) as pool,
        some_workers(2, is_default=False) as client,
    ):

        def on_processes(lazy):
            with dask.config.set(pool=pool):
                return lazy.compute(scheduler="processes")

        yield (
            methodcaller("compute", scheduler="synchronous"),
            methodcaller("compute", scheduler="threads"),
            on_processes,
            methodcaller("compute", scheduler=client.get),
        )


@pytest.fixture
def compute(places):
    """Compute at all places; return what is the same at all."""

    def compute(lazy):
        found, *others = [place(lazy) for place in places]
        for other in others:
            xr.testing.assert_identical(other, found)
        return found

    return compute


def chroma_of(pixels):
    return pixels.max(axis=-1) - pixels.min(axis=-1)


def test_tissue_and_its_area(tree, compute):
    coarse, fine = (tree[name].image for name in ("level_1", "level_0"))
    threshold = recipes.tissue_threshold(coarse)
    assert threshold.chunks is not None
    mask = recipes.tissue_mask(fine, threshold)
    found = compute(xr.Dataset({"mask": mask, "area": recipes.area(mask)}))
    expected = chroma_of(fine.values) > threshold_otsu(chroma_of(coarse.values))
    assert 0.2 < expected.mean() < 0.8
    np.testing.assert_array_equal(found.mask, expected)
    assert float(found.area) == pytest.approx(expected.sum() * 0.0005**2)
    assert found.area.attrs["units"] == "mm2"
    # a region of the mask lies where the same region of the image does
    box = dict(x=slice(17.7, 17.8), y=slice(31.7, 31.8))
    assert found.mask.sel(box).shape == fine.sel(box).shape[:2]
    assert "pixel_spacing" not in found.mask.attrs


def test_area_of_parts_of_a_mask(tree):
    """Of every other pixel, each stands for two; of one row, the row's height is known."""
    mask = tree["level_0"].segmentation
    whole = recipes.area(mask)
    assert whole.dims == ("segment",)
    np.testing.assert_allclose(whole, segments_of(SHAPE).sum((0, 1)) * 0.0005**2)
    np.testing.assert_allclose(recipes.area(mask[:, ::2]), whole, rtol=0.01)
    row = mask[:, 400:401]
    np.testing.assert_allclose(recipes.area(row), row.values.sum((1, 2)) * 0.0005**2)
    with pytest.raises(ValueError, match="evenly"):
        recipes.area(mask[:, [0, 1, 5]])
    with pytest.raises(ValueError, match="in mm"):
        recipes.area(mask.rename(y="row"))
    for other in (tree["level_0"].segmentation_2, mask.astype(float)):
        with pytest.raises(ValueError, match="mask of bool"):
            recipes.area(other)


def test_area_where_pixels_are_not_square(tmp_path):
    write_slide(
        tmp_path, shape=(64, 96), downsamples=(1,), tile_shape=(32, 32), spacing=(0.0005, 0.00025)
    )
    image = dicomslide.open_slide(tmp_path).to_dataset().image
    mask = recipes.tissue_mask(image, 1)
    assert 0 < int(mask.sum()) < 64 * 96
    assert float(recipes.area(mask)) == pytest.approx(int(mask.sum()) * 0.0005 * 0.00025)
    segments = xr.ones_like(mask, dtype=bool)
    found = recipes.segment_statistics(image, segments)["area"]
    assert float(found[0]) == pytest.approx(0.032 * 0.024)


def test_glass_alone_is_no_tissue_and_black_neither():
    glass = image_of(np.full((20, 30, 3), 240, np.uint8))
    assert not recipes.tissue_mask(glass, recipes.tissue_threshold(glass)).any()
    pixels = np.full((20, 30, 3), 240, np.uint8)
    pixels[:10], pixels[10:, :5] = (200, 100, 150), (2, 0, 3)
    mixed = image_of(pixels)
    mask = recipes.tissue_mask(mixed, recipes.tissue_threshold(mixed))
    assert mask[:10].all()
    assert not mask[10:].any()


def test_a_grey_image_is_tissue_where_it_is_bright():
    values = np.random.default_rng(0).integers(0, 3000, (40, 50), np.uint16)
    values[:20] += 40_000
    grey = image_of(values)
    threshold = recipes.tissue_threshold(grey)
    assert float(threshold) == threshold_otsu(values, nbins=65536)
    np.testing.assert_array_equal(recipes.tissue_mask(grey, threshold), values > 20_000)


def test_a_threshold_is_that_of_grey_or_colour_of_8_or_16_bits(tree):
    image = tree["level_1"].image
    with pytest.raises(ValueError, match="is float32; expected 8 or 16 bits"):
        recipes.tissue_threshold(image.astype(np.float32))
    for recipe in (recipes.tissue_threshold, functools.partial(recipes.tissue_mask, threshold=9)):
        with pytest.raises(ValueError, match="has 1 samples; expected 3 samples"):
            recipe(image[..., :1])


@pytest.fixture(scope="module")
def again(tree, folder, tmp_path_factory):
    """The slide as OME-Zarr that is opened again: dims c, y, x."""
    store = tmp_path_factory.mktemp("again") / "slide.zarr"
    dicomslide.to_ome_zarr(dicomslide.open_slide(folder, correct_color=False), store)
    return xr.open_datatree(store, engine="zarr", chunks={}, consolidated=False)


def test_colours_of_ome_zarr_opened_again_are_colours(tree, again):
    ours, theirs = tree["level_1"].image, again["level_1"].image
    assert theirs.dims == ("c", "y", "x")
    threshold = recipes.tissue_threshold(ours).compute()
    np.testing.assert_array_equal(recipes.tissue_threshold(theirs), threshold)
    mask = recipes.tissue_mask(theirs, threshold)
    assert mask.dims == ("y", "x")
    np.testing.assert_array_equal(mask, recipes.tissue_mask(ours, threshold))
    np.testing.assert_allclose(
        recipes.area(mask), recipes.area(recipes.tissue_mask(ours, threshold)), rtol=1e-9
    )
    stains = recipes.estimate_stains(ours).compute()
    np.testing.assert_allclose(recipes.estimate_stains(theirs), stains, rtol=1e-6)
    for given in (None, stains):
        expected = recipes.separate_stains(ours, given)
        found = recipes.separate_stains(theirs, given).transpose(*expected.dims)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dim", ["c", "band", "rgb", "color"])
def test_a_dim_that_may_be_of_colours_is_refused_by_name(tree, dim):
    image = tree["level_1"].image.rename(sample=dim).drop_vars(dim)
    for recipe in (
        recipes.tissue_threshold,
        functools.partial(recipes.tissue_mask, threshold=10),
        recipes.separate_stains,
        recipes.estimate_stains,
    ):
        with pytest.raises(ValueError, match=rf"dim '{dim}' .*rename\({dim}='sample'\)"):
            recipe(image)
    channels = image.rename({dim: "channel"})
    assert recipes.tissue_mask(channels, 10).dims == channels.dims  # so many grey images


def test_stains_are_those_of_scikit_image(tree, compute):
    image = tree["level_1"].image
    found = compute(recipes.separate_stains(image))
    assert found.dims == ("y", "x", "stain")
    assert found.stain.values.tolist() == ["haematoxylin", "eosin", "DAB"]
    expected = separate_whole(image.values / 255, hed_from_rgb)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.sel(stain="haematoxylin").max() > 0.03
    xr.testing.assert_equal(found.x, image.x)


def test_estimated_stains_are_those_that_were_mixed(compute):
    """Beer and Lambert: optical densities of two known colours, in known amounts."""
    true = np.array([(0.563, 0.720, 0.406), (0.216, 0.801, 0.558)])
    true /= np.linalg.norm(true, axis=1, keepdims=True)
    rng = np.random.default_rng(0)
    amounts = rng.uniform(0, 1.5, (200, 300, 2)) * rng.integers(0, 2, (200, 300, 2))
    light = np.exp(-amounts @ true) * 255
    image = image_of(light.round().astype(np.uint8), chunk=64)
    stains = compute(recipes.estimate_stains(image))
    assert stains.stain.values.tolist() == ["haematoxylin", "eosin", "residual"]
    np.testing.assert_allclose(stains[:2], true, atol=0.03)
    np.testing.assert_allclose(stains[2] @ stains[:2].T, 0, atol=1e-12)
    found = compute(recipes.separate_stains(image, recipes.estimate_stains(image)))
    unit = -np.log(1e-6)
    np.testing.assert_allclose(found[..., :2] * unit, amounts, atol=0.12)


def test_stains_want_a_stained_image_in_colour(tree):
    for value, message in ((240, "only 0 pixels are stained"), (99, "have one colour")):
        same = image_of(np.full((20, 20, 3), value, np.uint8))
        with pytest.raises(ValueError, match=message):
            recipes.estimate_stains(same).compute()
    for wrong in (tree["level_0"].image[..., 0], tree["level_0"].image.astype(np.uint16)):
        with pytest.raises(ValueError, match="8-bit colour"):
            recipes.separate_stains(wrong)
        with pytest.raises(ValueError, match="8-bit colour"):
            recipes.estimate_stains(wrong)
    two = recipes.estimate_stains(tree["level_1"].image)[:2]
    with pytest.raises(ValueError, match="expected three stains"):
        recipes.separate_stains(tree["level_1"].image, two)


def test_stains_are_estimated_of_all_planes_and_in_memory_at_once(tree):
    image = tree["level_1"].image
    expected = recipes.estimate_stains(image).compute()
    planes = xr.concat([image, image], "z")
    np.testing.assert_allclose(recipes.estimate_stains(planes), expected, atol=1e-3)
    loaded = image.compute()
    assert recipes.estimate_stains(loaded).chunks is None
    xr.testing.assert_identical(recipes.estimate_stains(loaded), expected)
    assert recipes.separate_stains(loaded).chunks is None


def smoothed(tile):
    """Look as far around as the halo reaches."""
    grey = tile.astype(np.float64).mean(axis=2)
    return uniform_filter(grey, 2 * HALO + 1, mode="constant")


def test_a_model_with_a_halo_leaves_no_seams(tree, compute):
    image = tree["level_0"].image
    found = compute(recipes.map_tiles(image, smoothed, halo=HALO, dtype=np.float64))
    padded = np.pad(image.values, ((HALO, HALO), (HALO, HALO), (0, 0)), mode="edge")
    expected = smoothed(padded)[HALO:-HALO, HALO:-HALO]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    seams = recipes.map_tiles(image, smoothed, dtype=np.float64).compute()
    assert np.abs(seams - expected).max() > 10
    box = dict(x=slice(17.7, 17.8), y=slice(31.7, 31.8))
    xr.testing.assert_equal(found.sel(box).x, image.sel(box).x)
    assert (found - image[..., 0]).shape == found.shape  # they align


def pooled(tile):
    """Average boxes of four pixels squared."""
    return block_reduce(tile[..., 0], (4, 4), np.mean)


def test_a_coarser_result_is_labelled_by_the_centres_of_its_pixels(tree, compute):
    """Boxes of pixels whose values are their own millimetres have these as their mean."""
    image = tree["level_0"].image
    found = compute(recipes.map_tiles(image, pooled, halo=HALO, factor=4))
    assert found.shape == (225, 175)
    expected = block_reduce(image.values[..., 0], (4, 4), np.mean)
    np.testing.assert_allclose(found, expected)
    for dim in ("x", "y"):
        place = image[dim].broadcast_like(image).chunk(image.chunksizes).transpose("y", "x", ...)
        boxes = recipes.map_tiles(place, pooled, factor=4, dtype=np.float64)
        xr.testing.assert_allclose(boxes, boxes[dim].broadcast_like(boxes), atol=1e-9)
        tiles = recipes.map_tiles(place, np.mean, factor=None, dtype=np.float64)
        inner = tiles[1:-1, 1:-1]
        xr.testing.assert_allclose(inner, inner[dim].broadcast_like(inner), atol=1e-9)
        assert float(tiles[dim].diff(dim).mean()) == pytest.approx(
            4 * TILE * 0.0005 * (1 if dim == "x" else -1)
        )


def test_a_number_a_tile_is_found_by_any_place_in_the_tile(tree, compute):
    image = tree["level_0"].image  # its first tiles along x are the rest: 700 = 188 + 2 · 256
    found = compute(recipes.map_tiles(image, np.mean, factor=None, dtype=np.float64))
    assert found.shape == (4, 3)
    place = image.isel(y=260, x=190)
    tile = image[256:512, 188:444].values
    assert float(found.sel(x=place.x, y=place.y)) == pytest.approx(tile.mean())
    corner = np.pad(image[:256, :188].values, ((0, 0), (68, 0), (0, 0)), mode="edge")
    assert float(found[0, 0]) == pytest.approx(corner.mean())


def test_a_pass_over_the_foreground_reads_no_other_frames(folder, frames_read, compute):
    tree = dicomslide.open_slide(folder, correct_color=False).to_datatree()
    coarse, fine = (tree[name].image for name in ("level_1", "level_0"))
    mask = recipes.tissue_mask(coarse, recipes.tissue_threshold(coarse)).compute()
    # frames that the pixels of the mask lie in, by the matrix that is stored
    matrix = dicomslide.open_slide(folder).levels[0].image.get_total_pixel_matrix()
    expected = set()
    for y, x in np.argwhere(mask.values):
        rows = range(SHAPE[0] - 4 * x - 4, SHAPE[0] - 4 * x)  # x runs against the rows
        for row in (rows[0], rows[-1]):
            expected |= {(row // TILE) * 15 + (column // TILE) for column in (4 * y, 4 * y + 3)}
    assert 60 < len(expected) < 120
    frames_read.clear()
    lazy = recipes.map_tiles(fine, np.mean, factor=None, where=mask)
    assert not frames_read
    found = lazy.compute(scheduler="threads")
    assert sorted(frames_read) == sorted(expected)
    everywhere = recipes.map_tiles(fine, np.mean, factor=None).compute()
    chosen = np.zeros(len(matrix), bool)
    chosen[sorted(expected)] = True
    chosen = np.rot90(chosen.reshape(11, 15), -1)
    np.testing.assert_array_equal(found, everywhere.where(chosen))
    xr.testing.assert_identical(compute(lazy), found)
    dense = recipes.map_tiles(fine, pooled, factor=4, where=mask).compute()
    assert np.isfinite(dense).sum() < dense.size
    of_tile = xr.zeros_like(dense) + found.sel(x=dense.x, y=dense.y, method="nearest").values
    np.testing.assert_array_equal(np.isfinite(dense), np.isfinite(of_tile))


def mean_of_channels(tile):
    return tile.mean(axis=0)


def test_a_model_of_several_channels(stack_slide):
    image = dicomslide.open_slide(stack_slide).to_dataset().image.isel(z=1)
    found = recipes.map_tiles(image, mean_of_channels, dtype=np.float64)
    np.testing.assert_array_equal(found, image.values.mean(axis=0))
    assert found.coords["z"] == image.z


def test_the_same_work_has_the_same_name(folder, tree):
    again = dicomslide.open_slide(folder, correct_color=False).to_datatree(chunks=4 * TILE)
    names = [
        {
            recipes.map_tiles(each["level_0"].image, smoothed, halo=HALO).data.name,
            recipes.separate_stains(each["level_0"].image).data.name,
            recipes.tissue_threshold(each["level_0"].image).data.name,
        }
        for each in (tree, again)
    ]
    assert names[0] == names[1]


def test_what_a_model_may_not_do_is_said(tree):
    image = tree["level_0"].image
    with pytest.raises(ValueError, match="no chunks"):
        recipes.map_tiles(image.compute(), smoothed)
    with pytest.raises(ValueError, match="expected equal ones"):
        recipes.map_tiles(image.chunk(x=(100, 200, 250, 150)), smoothed)
    with pytest.raises(ValueError, match="halo -1: expected an integer of 0 or more"):
        recipes.map_tiles(image, pooled, halo=-1)
    for options in (dict(factor=5), dict(factor=4, halo=6)):
        with pytest.raises(ValueError, match="expected multiples of the factor"):
            recipes.map_tiles(image, pooled, **options)
    with pytest.raises(ValueError, match=r"shape \(64, 64\) for a tile .* expected \(256, 256\)"):
        recipes.map_tiles(image, pooled).compute()
    for where in (image[..., 0], image[..., 0].astype(float).where(image[..., 0] > 250)):
        with pytest.raises(ValueError, match=r"where is .* expected a mask of bool"):
            recipes.map_tiles(image, smoothed, where=where)


def strongest_sample(tile):
    return tile.argmax(axis=2)  # int64


def test_integers_are_kept_as_they_are_or_refused(tree):
    image = tree["level_1"].image
    found = recipes.map_tiles(image, strongest_sample, dtype=np.uint8).compute()
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, image.values.argmax(axis=2))
    for model, dtype in ((smoothed, np.uint8), (negated, np.uint8), (hundredfold, np.int16)):
        with pytest.raises(ValueError, match=f"values that {np.dtype(dtype)} can't hold"):
            recipes.map_tiles(image, model, dtype=dtype).compute()


def negated(tile):
    return -tile[..., 0].astype(np.int64)


def hundredfold(tile):
    return tile[..., 0].astype(np.int64) * 1000


def test_a_model_that_fails_says_at_which_tile_wherever_it_ran(tree, places):
    image = tree["level_0"].image
    failing = functools.partial(fails_where_it_is_dark, darkest=int(image.min()))
    for place in places:
        with pytest.raises(RuntimeError, match="out of memory") as caught:
            place(recipes.map_tiles(image, failing, factor=None))
        (note,) = caught.value.__notes__
        first_x, last_x, first_y, last_y = map(float, re.findall(r"\d+\.\d+", note))
        tile = image.sel(x=slice(first_x, last_x), y=slice(first_y, last_y))
        assert tile.shape == (256, 256, 3)
        assert int(tile.min()) == int(image.min())


def fails_where_it_is_dark(tile, darkest):
    if tile.min() == darkest:
        raise RuntimeError("out of memory")
    return tile.mean()


class Network:
    """As one on a graphics card: it doesn't pickle."""

    def __init__(self):
        self.device = threading.Lock()

    def __call__(self, tile):
        with self.device:
            return tile.mean()


@functools.cache
def network():
    return Network()


def by_network(tile):
    return network()(tile)


def test_a_network_that_does_not_travel_is_made_in_each_process(tree, compute):
    image = tree["level_1"].image
    found = compute(recipes.map_tiles(image, by_network, factor=None, dtype=np.float64))
    assert float(found[0, 0]) == pytest.approx(image.values.mean())
    alone = recipes.map_tiles(image, Network(), factor=None, dtype=np.float64)
    assert alone.compute(scheduler="threads").equals(found)


def expected_statistics(pixels, segments):
    inside = [pixels[segment] for segment in segments]
    return [np.array([f(each, axis=0) for each in inside]) for f in (np.mean, np.std)]


@pytest.mark.parametrize(
    ("name", "background"),
    [("segmentation", False), ("segmentation_2", False), ("segmentation_2", True)],
)
def test_statistics_under_a_segmentation(tree, compute, frames_read, name, background):
    level = tree["level_0"]
    lazy = recipes.segment_statistics(level.image, level[name], background=background)
    assert all(variable.chunks is not None for variable in lazy.data_vars.values())
    frames_read.clear()
    found = lazy.compute(scheduler="threads")
    is_label_map = "flag_values" in level[name].attrs
    numbers = [0, 1, 2][not background :]
    stored = labels_of(SHAPE)[..., None] == numbers if is_label_map else segments_of(SHAPE) > 0
    segments = np.rot90(stored, -1).transpose(2, 0, 1)
    mean, std = expected_statistics(level.image.values, segments)
    np.testing.assert_allclose(found["area"], segments.sum((1, 2)) * 0.0005**2)
    np.testing.assert_allclose(found["mean"], mean)
    np.testing.assert_allclose(found["std"], std)
    assert found["mean"].dims == ("segment", "sample")
    assert found.sel(segment=1).segment_label == "tumour"
    xr.testing.assert_identical(compute(lazy), found)


def test_statistics_read_each_frame_once(folder, frames_read):
    level = dicomslide.open_slide(folder).to_datatree()["level_0"]
    frames_read.clear()
    recipes.segment_statistics(level.image, level.segmentation).compute(scheduler="threads")
    of_segments = pydicom.dcmread(folder / "binary.dcm", stop_before_pixels=True).NumberOfFrames
    assert len(frames_read) == 11 * 15 + of_segments


def test_statistics_of_channels(stack_slide, compute):
    image = dicomslide.open_slide(stack_slide).to_dataset().image.isel(z=0)
    bright = image.sel(channel="DAPI", drop=True) > 20_000
    found = compute(recipes.segment_statistics(image, bright))
    inside = image.values[:, bright.values].astype(np.float64)
    assert found["mean"].dims == ("segment", "channel")
    np.testing.assert_allclose(found["mean"][0], inside.mean(axis=1))
    np.testing.assert_allclose(found["std"][0], inside.std(axis=1))
    with pytest.raises(ValueError, match="segment"):
        recipes.segment_statistics(image, bright.expand_dims(z=[0.0]))


def test_statistics_of_thousands_of_labels_and_of_none():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3000, (90, 100), np.uint16)
    image = image_of(rng.normal(5, 2, (90, 100)).astype(np.float32), chunk=32)
    label_map = image_of(labels, chunk=32)  # of which 0 isn't listed
    numbers = [9999, *range(2999, 0, -1)]
    label_map.attrs["flag_values"] = numbers
    found = recipes.segment_statistics(image, label_map).compute()
    assert np.isnan(found.sel(segment=9999)["mean"])
    assert found.sel(segment=9999)["area"] == 0
    for number in (1, 77, 2999):
        inside = image.values[labels == number].astype(np.float64)
        one = found.sel(segment=number)
        assert one["mean"] == pytest.approx(inside.mean())
        assert one["std"] == pytest.approx(inside.std())


@pytest.mark.parametrize("largest", [254, 255, 300])
def test_statistics_of_the_largest_label_that_there_can_be(largest):
    labels = np.random.default_rng(0).choice(np.array([1, 254, 255], np.uint8), (20, 30))
    label_map = image_of(labels).assign_attrs(flag_values=[largest, 1])
    found = recipes.segment_statistics(image_of(labels), label_map).compute()
    np.testing.assert_allclose(found["mean"], [largest if largest < 256 else np.nan, 1])


def test_statistics_want_the_same_pixels_and_a_segmentation(tree):
    image, segmentation = tree["level_0"].image, tree["level_0"].segmentation
    with pytest.raises(ValueError, match="differ in their pixels along y or x"):
        recipes.segment_statistics(tree["level_1"].image, segmentation)
    with pytest.raises(ValueError, match=r"the labels are float32; expected integers"):
        recipes.segment_statistics(image, segmentation.astype(np.float32))
    with pytest.raises(ValueError, match=r"the label map has the dims \('segment', 'y', 'x'\)"):
        recipes.segment_statistics(image, segmentation.astype(np.uint8))
    with pytest.raises(TypeError, match="the labels are a ndarray"):
        recipes.segment_statistics(image, np.zeros((3, 4), int))


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint16, np.uint64])
def test_statistics_of_a_label_map_that_lists_no_labels(dtype):
    ids = np.array([0, 3, 77, np.iinfo(dtype).max], dtype)
    labels = np.random.default_rng(0).choice(ids, (40, 50))
    image = image_of(np.random.default_rng(1).integers(0, 99, (40, 50)).astype(np.uint16))
    found = recipes.segment_statistics(image, image_of(labels)).compute()
    assert found.segment.values.tolist() == ids[1:].tolist()
    expected = expected_statistics(image.values, [labels == number for number in ids[1:]])
    np.testing.assert_allclose(found["mean"], expected[0])
    np.testing.assert_allclose(found["std"], expected[1])
    assert found["area"].sum() == pytest.approx((labels > 0).sum() * 1e-6)


def test_what_is_missing_is_named():
    code = "import sys; sys.modules['skimage'] = None; import dicomslide.recipes"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'dicomslide[recipes]'" in ended.stderr


def image_of(pixels, chunk=16):
    """An array like those of a tree, of pixels given."""
    dims = ("y", "x", "sample")[: pixels.ndim]
    chunks = (chunk, chunk, 3)[: pixels.ndim]
    coords = {
        "y": 30 - 0.001 * np.arange(pixels.shape[0]),
        "x": 10 + 0.001 * np.arange(pixels.shape[1]),
    }
    if pixels.ndim == 3:
        coords["sample"] = ["r", "g", "b"]
    return xr.DataArray(da.from_array(pixels, chunks), coords, dims)
