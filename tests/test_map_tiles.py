"""Models on tiles, against NumPy and SciPy on whole images, wherever the pixels come from."""

from __future__ import annotations

import functools
import itertools
import pathlib
import pickle
import warnings

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from dask.diagnostics import Callback, ProgressBar
from hypothesis import given, settings
from hypothesis import strategies as st

import dicomslide
from dicomslide import GridError, MemoryLimitError, MetadataError, open_slide
from dicomslide.testing import write_slide
from tests.support.optional import need
from tests.support.parts import starts
from tests.support.workers import some_workers

need("skimage", "scipy")

from scipy.ndimage import convolve  # noqa: E402
from skimage.measure import block_reduce  # noqa: E402

from dicomslide import recipes  # noqa: E402
from dicomslide.recipes import tile_graph  # noqa: E402
from dicomslide.recipes.tile_source import SlicedSource, source_of  # noqa: E402

SHAPE = (150, 210)
FRAME = 32
ABSENT = [(1, 1), (1, 2), (2, 2), (4, 6)]
KERNEL = np.random.default_rng(5).uniform(0, 1, (7, 5))
REACH = 3
STRINGS = pytest.mark.filterwarnings("ignore:The data type")
"""Zarr has no specification of strings, such as the label of a channel."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiles")
    write_slide(
        folder, shape=SHAPE, downsamples=(1, 2), tile_shape=(FRAME, FRAME),
        transfer_syntax_uid="1.2.840.10008.1.2.1", associated=False,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def slide(folder):
    return open_slide(folder)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sparse")
    write_slide(
        folder, shape=SHAPE, downsamples=(1,), tile_shape=(FRAME, FRAME), sparse=True,
        absent=ABSENT, transfer_syntax_uid="1.2.840.10008.1.2.1", associated=False,
    )  # fmt: skip
    return open_slide(folder)


@pytest.fixture(scope="module")
@starts("cluster")
def client():
    with some_workers(2, is_default=False) as client:
        yield client


def filtered(tile):
    """Convolve a tile, with zeros around it: its outermost pixels are wrong."""
    return convolve(tile[..., 1].astype(np.float64), KERNEL, mode="constant")


def whole_filtered(pixels):
    """Convolve an image whose edge is repeated."""
    return convolve(pixels[..., 1].astype(np.float64), KERNEL, mode="nearest")


def average(tile):
    return block_reduce(tile[..., 0].astype(np.float64), (4, 4), np.mean)


def moments(tile):
    return np.array([tile.mean(), tile.std(), tile.max()])


# -- the same as of the whole image --


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_convolution_is_that_of_the_whole_image(slide, sparse, data):
    of, where = data.draw(
        st.sampled_from(
            [(slide, {"level": 0}), (slide, {"level": 1}), (sparse, {"level": 0}),
             (slide, {"spacing": "0.5 um"}), (slide, {"spacing": 0.0013}),
             (sparse, {"spacing": 0.0008})]
        )
    )  # fmt: skip
    tile = data.draw(st.tuples(*[st.integers(5, 300)] * 2))
    halo = data.draw(st.integers(REACH, 40))
    batch = data.draw(st.sampled_from([None, 1, 2, 6]))
    whole = of.to_dataset(where.get("level", 0), spacing=where.get("spacing")).image.compute()
    model = (
        filtered if batch is None else lambda tiles: np.stack([filtered(each) for each in tiles])
    )
    found = recipes.map_tiles(
        of, model, tile=tile, halo=halo, batch=batch, dtype=np.float64, **where
    )
    np.testing.assert_allclose(
        found.compute(scheduler="synchronous"), whole_filtered(whole.values), rtol=1e-9
    )
    xr.testing.assert_equal(found.x, whole.x)
    xr.testing.assert_equal(found.y, whole.y)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_part_of_a_level_is_a_whole_of_its_own(slide, data):
    """Whatever is selected, in whichever direction; at its border its own edge is repeated."""
    image = slide.to_dataset(chunks=data.draw(st.sampled_from(["frames", "auto", 70]))).image
    picks = {}
    for dim in ("y", "x"):
        first = data.draw(st.integers(0, image.sizes[dim] - 20))
        stop = data.draw(st.integers(first + 10, image.sizes[dim]))
        picks[dim] = slice(first, stop)
        if data.draw(st.booleans()):
            picks[dim] = slice(stop - 1, first - 1 if first else None, -1)
    image = image.isel(picks)
    is_computed = data.draw(st.booleans())
    if is_computed:
        image = image + np.uint8(1)
    order = data.draw(st.permutations(["y", "x", "sample"]))
    tile = data.draw(st.tuples(*[st.integers(5, 90)] * 2))
    turned = image.transpose(*order)
    y, x, sample = turned.get_axis_num(("y", "x", "sample"))

    def model(tile):
        return filtered(tile.transpose(y, x, sample))

    found = recipes.map_tiles(turned, model, tile=tile, halo=REACH, dtype=np.float64)
    np.testing.assert_allclose(
        found.compute(scheduler="synchronous"), whole_filtered(image.values), rtol=1e-9
    )
    xr.testing.assert_equal(found.x, image.x)
    if not is_computed:
        assert number_of_tasks(found) == found.data.npartitions


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_pixels_of_any_dask_array_are_found(data):
    """By NumPy's own indexing of an array that is sliced, transposed and rechunked."""
    random = np.random.default_rng(data.draw(st.integers(0, 9)))
    array = random.integers(0, 255, (23, 31, 4))

    class Stored:
        shape, dtype, ndim = array.shape, array.dtype, array.ndim

        def __getitem__(self, key):
            assert all(isinstance(part, (int, slice)) for part in key)
            return array[key]

    lazy = da.from_array(
        Stored(), chunks=data.draw(st.sampled_from([7, (23, 31, 4), (5, 31, 1)])),
        inline_array=data.draw(st.booleans()), asarray=data.draw(st.booleans()),
    )  # fmt: skip
    expected = array
    for _ in range(data.draw(st.integers(0, 3))):
        way = data.draw(st.sampled_from(["slice", "integer", "turn", "list", "add", "rechunk"]))
        key = [slice(None)] * lazy.ndim
        axis = data.draw(st.integers(0, lazy.ndim - 1))
        length = lazy.shape[axis]
        if way == "slice":
            step = data.draw(st.sampled_from([1, 2, -1, -3]))
            key[axis] = slice(None, None, step) if length < 4 else slice(1, -1, 1)
        elif way == "integer" and lazy.ndim > 2:
            key[axis] = data.draw(st.integers(-length, length - 1))
        elif way == "list":
            key[axis] = sorted(data.draw(st.sets(st.integers(0, length - 1), min_size=1)))
        if way == "turn":
            axes = data.draw(st.permutations(range(lazy.ndim)))
            lazy, expected = lazy.transpose(axes), expected.transpose(axes)
        elif way == "add":
            lazy, expected = lazy + 1, expected + 1
        elif way == "rechunk":
            lazy = lazy.rechunk(data.draw(st.integers(1, 9)))
        else:
            lazy, expected = lazy[tuple(key)], expected[tuple(key)]
    axes = tuple(data.draw(st.permutations(range(lazy.ndim))))[:2]
    source, below = source_of(lazy, axes)
    part = []
    for axis in axes:
        first = data.draw(st.integers(0, lazy.shape[axis] - 1))
        part.append(slice(first, data.draw(st.integers(first + 1, lazy.shape[axis]))))
    places = source.chunks([tuple(part)])
    chunks = {}
    if below is not None:
        assert places
        chunks = {place: dask.get(dict(below.dask), source.key_of(place)) for place in places}
    key = [slice(None)] * lazy.ndim
    for axis, pixels in zip(axes, part, strict=True):
        key[axis] = pixels
    np.testing.assert_array_equal(source.read(tuple(part), chunks), expected[tuple(key)])


def test_an_assignment_to_a_part_isnt_overlooked(slide):
    """A graph of slices, but for a few tasks: it is no array-like's."""
    image = slide.to_dataset().image
    data = image.data[2:]
    data[70:80, 60:70] = 0
    changed = image[2:].copy(data=data)
    found = recipes.map_tiles(changed, lambda tile: tile[..., 1], tile=50, dtype=np.uint8)
    np.testing.assert_array_equal(found, changed.values[..., 1])
    assert (found[70:80, 60:70] == 0).all()


# -- one task for each tile --


def number_of_tasks(array):
    """Return the tasks of an optimized graph, without what they share."""
    (optimized,) = dask.optimize(array.data)
    names = {key for key in optimized.dask if isinstance(key, str)}
    assert len(names) <= 2, names  # the model, and what all tiles have in common
    return len(optimized.dask) - len(names)


@STRINGS
def test_a_task_for_each_tile_whichever_way_a_slide_was_opened(folder, slide, tmp_path):
    level = slide.to_dataset(0).image
    level.chunk(y=50, x=50, sample=3).drop_encoding().to_dataset(name="image").to_zarr(
        tmp_path / "level.zarr", zarr_format=3, consolidated=False
    )
    engine = dict(engine="dicomslide")
    doors = {
        "level": (slide, dict(level=0)),
        "spacing": (slide, dict(spacing="0.5 um")),
        "frames": (level, {}),
        "chunks": (slide.to_dataset(chunks="auto").image, {}),
        "rechunked": (level.chunk(y=100, x=100), {}),
        "transposed": (level.transpose("sample", "y", "x"), {}),
        "engine": (xr.open_dataset(folder, chunks={}, **engine).image, {}),
        "engine, no chunks": (xr.open_dataset(folder, **engine).image, {}),
        "zarr": (xr.open_zarr(tmp_path / "level.zarr", consolidated=False).image, {}),
        "tree": (xr.open_datatree(folder, chunks={}, **engine)["level_0"].image, {}),
    }
    for name, (image, options) in doors.items():
        axis = 0 if name == "transposed" else -1

        def model(tile, axis=axis):
            return tile.take(1, axis)

        found = recipes.map_tiles(image, model, tile=64, halo=4, dtype=np.uint8, **options)
        assert number_of_tasks(found) == 4 * 3, name
        np.testing.assert_array_equal(found, level.values[..., 1], err_msg=name)


def test_a_chunk_is_a_tile_if_no_size_is_given(slide):
    image = slide.to_dataset().image  # its first column of frames is the rest of 150 by 32
    found = recipes.map_tiles(image, lambda tile: tile[..., 0], dtype=np.uint8)
    assert found.chunks == image.chunks[:2]
    assert number_of_tasks(found) == image.data.npartitions
    np.testing.assert_array_equal(found, image.values[..., 0])
    larger = recipes.map_tiles(image, filtered, halo=2 * FRAME + 5, dtype=np.float64)
    np.testing.assert_allclose(larger, whole_filtered(image.values), rtol=1e-9)


def test_an_array_in_memory_needs_a_tile(slide):
    image = slide.to_dataset().image.compute()
    with pytest.raises(ValueError, match=r"no chunks.*tile=1024"):
        recipes.map_tiles(image, filtered)
    found = recipes.map_tiles(image, filtered, tile=40, halo=REACH, dtype=np.float64)
    np.testing.assert_allclose(found, whole_filtered(image.values), rtol=1e-9)
    assert found.chunks is not None


def test_a_region_of_the_result_is_computed_of_its_tiles_alone(slide, frames_read):
    lazy = recipes.map_tiles(slide, average, level=0, tile=32, factor=4)
    frames_read.clear()
    region = lazy.isel(y=slice(8, 16), x=slice(8, 24)).compute(scheduler="threads")
    assert len(frames_read) <= 4 * 2  # 150 isn't a multiple: a tile is in two frames
    xr.testing.assert_identical(region, lazy.compute().isel(y=slice(8, 16), x=slice(8, 24)))
    whole = dask.optimize(lazy.data)[0]
    assert len(whole.dask) == lazy.data.npartitions + 2
    assert len(dask.optimize(lazy.data[:8, :8])[0].dask) <= 5


def test_dask_looks_for_nothing_to_fuse_where_nothing_but_tiles_is_computed(slide, monkeypatch):
    """Which takes it seconds where there are very many; a part of the tiles is culled by it."""
    lazy = recipes.map_tiles(slide, average, level=0, tile=32, factor=4)
    both = recipes.map_tiles(
        slide, lambda tile: (average(tile), average(tile) + 1), level=0, tile=32,
        outputs=[recipes.TileOutput(factor=4), recipes.TileOutput(factor=4)],
    )  # fmt: skip
    expected = (lazy + 0).compute()
    optimized = []
    original = da.optimize

    def optimize(graph, *args, **options):
        optimized.append(graph)
        return original(graph, *args, **options)

    monkeypatch.setattr(da, "optimize", optimize)
    xr.testing.assert_identical(lazy.compute(), expected)
    xr.testing.assert_equal(both.output_0.compute(), expected)
    dask.optimize(lazy.data)
    assert not optimized
    made = []
    monkeypatch.setattr(tile_graph._TileLayer, "materialized", lambda self: made.append(self))
    xr.testing.assert_identical(lazy[8:16, 8:16].compute(), expected[8:16, 8:16])
    xr.testing.assert_identical((lazy * 2).compute(), expected * 2)
    assert lazy.data[:8, :8].sum().compute() == pytest.approx(float(expected[:8, :8].sum()))
    assert not made


def test_results_can_be_pickled_persisted_and_computed_together(slide, client):
    lazy = recipes.map_tiles(slide, average, level=0, tile=32, factor=4)
    expected = lazy.compute()
    again = pickle.loads(pickle.dumps(lazy))
    xr.testing.assert_identical(again.compute(), expected)
    assert again.data.name == lazy.data.name
    xr.testing.assert_identical(lazy.persist().compute(), expected)
    xr.testing.assert_identical(client.compute(lazy).result(), expected)
    xr.testing.assert_identical(client.persist(lazy).compute(scheduler=client.get), expected)
    both = dask.compute(lazy, lazy + 1, lazy.data.sum())
    xr.testing.assert_identical(both[0], expected)
    np.testing.assert_array_equal(both[1], expected + 1)
    assert both[2] == pytest.approx(float(expected.sum()))
    with dask.annotate(retries=2):
        xr.testing.assert_identical(
            recipes.map_tiles(slide, average, level=0, tile=32, factor=4).compute(), expected
        )


def test_a_bar_counts_tiles(slide, capsys):
    lazy = recipes.map_tiles(slide, average, level=0, tile=32, factor=4)
    done = []
    with Callback(posttask=lambda key, *_: done.append(key)):
        lazy.compute(scheduler="synchronous")
    assert len([key for key in done if isinstance(key, tuple)]) == lazy.data.npartitions
    with ProgressBar():
        lazy.compute(scheduler="threads")
    assert "100% Completed" in capsys.readouterr().out


# -- the model --


class Counting:
    """A model of some size that counts in how many processes, and how often, it has arrived."""

    def __init__(self, size=1):
        self.weights = np.random.default_rng(1).bytes(size)

    def __call__(self, tile):
        return tile[..., 0]

    def __getstate__(self):
        pickled.append(self)
        return {"weights": self.weights}


pickled: list[Counting] = []


def test_a_model_is_sent_once_and_not_with_each_task(slide, client):
    model = Counting(2_000_000)
    lazy = recipes.map_tiles(slide, model, level=0, tile=16, dtype=np.uint8)
    assert lazy.data.npartitions == 140
    size = len(pickle.dumps(lazy.data.dask))
    assert size < 2_100_000
    pickled.clear()
    found = lazy.compute(scheduler=client.get)
    # to find its name, to the scheduler, and from the one worker to the other: not 140 times
    assert len(pickled) <= 2
    np.testing.assert_array_equal(found, slide.to_dataset().image.values[..., 0])


def test_a_model_may_be_computed_or_lie_with_the_workers(slide, client):
    expected = slide.to_dataset().image.values[..., 0]
    loaded = dask.delayed(Counting)(10)
    lazy = recipes.map_tiles(slide, loaded, level=0, tile=64, dtype=np.uint8)
    np.testing.assert_array_equal(lazy.compute(), expected)
    np.testing.assert_array_equal(lazy.compute(scheduler=client.get), expected)
    scattered = client.scatter(Counting(10), broadcast=True)
    lazy = recipes.map_tiles(slide, scattered, level=0, tile=64, dtype=np.uint8)
    np.testing.assert_array_equal(lazy.compute(scheduler=client.get), expected)
    for model in (loaded, scattered):
        with pytest.raises(TypeError, match="can't be called here"):
            recipes.map_tiles(slide, model, level=0, outputs="infer")
        with pytest.raises(TypeError, match="can't be called here"):
            recipes.embed_tiles(slide, model, level=0)


def several(tiles):
    assert tiles.ndim == 4
    return np.stack([moments(each) for each in tiles])


@pytest.mark.parametrize(("batch", "block"), [(1, (1, 1)), (4, (2, 2)), (6, (2, 3)), (7, (1, 7))])
def test_a_batch_is_a_block_of_tiles_whose_frames_are_decoded_once(
    slide, frames_read, batch, block
):
    calls = []

    def model(tiles):
        calls.append(len(tiles))
        return several(tiles)

    def found(model, batch):
        lazy = recipes.map_tiles(
            slide, model, level=0, tile=20, factor=None, dims={"moment": 3}, halo=5, batch=batch,
            dtype=np.float64,
        )  # fmt: skip
        assert lazy.shape == (3, 11, 8)
        frames_read.clear()
        return lazy, lazy.compute(scheduler="synchronous")

    one_by_one, expected = found(moments, None)
    frames_of_each = len(frames_read)
    lazy, result = found(model, batch)
    xr.testing.assert_identical(result, expected)
    assert lazy.chunks[1][0] == block[0]
    assert lazy.chunks[2][0] == min(block[1], 8)
    assert sum(calls) == 11 * 8
    assert max(calls) <= batch
    assert len(calls) == lazy.data.npartitions
    if batch == 6:
        assert len(frames_read) < frames_of_each / 2
    assert number_of_tasks(one_by_one) == 11 * 8


@pytest.mark.parametrize("factor", [1, 4, None])
@pytest.mark.parametrize("batch", [1, 4, 6, 7])
def test_batches_of_chunks_give_what_single_ones_give(slide, factor, batch):
    """Also where the first tile reaches out of the image, and with tiles that aren't run."""
    image = slide.to_dataset().image
    assert image.chunksizes["x"][0] < FRAME
    where = xr.zeros_like(image[..., 0], dtype=bool).compute()
    where[40:60, 100:140] = where[200, 3] = True

    def model(tile):
        return tile.mean() if factor is None else tile[::factor, ::factor, 0]

    def of_several(tiles):
        return np.stack([model(tile) for tile in tiles])

    for pixels, mask in itertools.product((image, 255 - image), (None, where, where & False)):
        single, batched = (
            recipes.map_tiles(pixels, of, factor=factor, where=mask, batch=most)
            for of, most in ((model, None), (of_several, batch))
        )
        xr.testing.assert_identical(
            batched.compute(scheduler="synchronous"), single.compute(scheduler="synchronous")
        )


def test_of_a_batch_only_the_tiles_of_the_mask_are_read_and_run(slide, frames_read):
    image = slide.to_dataset().image
    where = xr.zeros_like(image[..., 0], dtype=bool).compute()
    for y, x in ((10, 10), (75, 40), (76, 75), (200, 149)):
        where[y, x] = True
    calls = []

    def model(tiles):
        calls.append(len(tiles))
        return several(tiles)

    lazy, mask = recipes.map_tiles(
        slide, model, level=0, tile=30, factor=None, dims={"moment": 3}, batch=4, where=where,
        dtype=np.float64, return_mask=True,
    )  # fmt: skip
    expected = np.zeros((7, 5), bool)
    for y, x in ((10, 10), (75, 40), (76, 75), (200, 149)):
        expected[y // 30, x // 30] = True
    np.testing.assert_array_equal(mask, expected)
    frames_read.clear()
    found = lazy.compute(scheduler="synchronous")
    assert sum(calls) == 4
    assert len(frames_read) <= 4 * 4
    everywhere = recipes.map_tiles(
        slide, moments, level=0, tile=30, factor=None, dims={"moment": 3}, dtype=np.float64
    ).compute()
    xr.testing.assert_identical(found, everywhere.where(mask))
    assert mask.x.equals(found.x)


# -- what a model returns --


def test_classes_come_first_with_their_labels(slide):
    image = slide.to_dataset(0).image.values.astype(np.float32)

    def model(tile):
        return tile.transpose(2, 0, 1)[:2] / 255

    found = recipes.map_tiles(
        slide, model, level=0, tile=40, halo=3, dims={"class": ["stroma", "tumour"]}
    )
    assert found.dims == ("class", "y", "x")
    assert found.chunks[0] == (2,)
    np.testing.assert_array_equal(found, image.transpose(2, 0, 1)[:2] / 255)
    np.testing.assert_array_equal(found.sel({"class": "tumour"}), image[..., 1] / 255)


def all_of(tile):
    return {
        "likelihood": tile.transpose(2, 0, 1) / np.float32(255),
        "coarse": average(tile),
        "vector": moments(tile[4:-4, 4:-4]),
        "unused": 0,
    }


OUTPUTS = {
    "vector": recipes.TileOutput({"feature": 3}, factor=None, dtype=np.float64),
    "likelihood": recipes.TileOutput({"class": ["a", "b", "c"]}),
    "coarse": recipes.TileOutput(factor=4, dtype=np.float64, fill_value=-1),
}


def test_several_outputs_are_variables_each_with_its_own_pixels(slide, client):
    found = recipes.map_tiles(slide, all_of, level=0, tile=40, halo=4, outputs=OUTPUTS)
    assert list(found.data_vars) == ["vector", "likelihood", "coarse"]
    assert found.likelihood.dims == ("class", "y", "x")
    assert found.coarse.dims == ("y_4", "x_4")
    assert found.vector.dims == ("feature", "y_tile", "x_tile")
    image = slide.to_dataset(0).image.compute()
    np.testing.assert_array_equal(
        found.likelihood, image.values.transpose(2, 0, 1) / np.float32(255)
    )
    xr.testing.assert_equal(found.x, image.x)
    alone = recipes.map_tiles(slide, average, level=0, tile=40, factor=4, dtype=np.float64)
    np.testing.assert_array_equal(found.coarse, alone)
    np.testing.assert_array_equal(found.x_4, alone.x)
    tiles = recipes.map_tiles(
        slide, moments, level=0, tile=40, factor=None, dims={"feature": 3}, dtype=np.float64
    )
    np.testing.assert_array_equal(found.vector, tiles)
    np.testing.assert_array_equal(found.y_tile, tiles.y)
    xr.testing.assert_identical(found.compute(), found.compute(scheduler=client.get))
    number = len(dask.optimize(*(each.data for each in found.data_vars.values()))[0].dask)
    assert number == 24 * 4 + 2  # a task for each tile, and one that takes each output of it


def test_a_tuple_is_outputs_in_their_order(slide):
    def model(tiles):
        return tiles[..., 0], tiles[..., 1].astype(np.int64)

    outputs = [recipes.TileOutput(dtype=np.uint8), recipes.TileOutput(dtype=np.uint8)]
    found = recipes.map_tiles(slide, model, level=1, tile=30, batch=2, outputs=outputs)
    image = slide.to_dataset(1).image.values
    assert list(found) == ["output_0", "output_1"]
    np.testing.assert_array_equal(found.output_0, image[..., 0])
    np.testing.assert_array_equal(found.output_1, image[..., 1])


def test_what_a_model_returns_is_found_by_one_call(slide):
    called = []

    def counted(model):
        def call(tile):
            called.append(tile.shape)
            return model(tile)

        return call

    def infer(model, **options):
        called.clear()
        found = recipes.map_tiles(slide, counted(model), level=0, tile=40, halo=4,
                                  outputs="infer", **options)  # fmt: skip
        assert called == [(48, 48, 3) if "batch" not in options else (1, 48, 48, 3)]
        return found

    assert infer(filtered).dtype == np.float64
    coarse = infer(average)
    expected = recipes.map_tiles(slide, average, level=0, tile=40, factor=4, dtype=np.float64)
    xr.testing.assert_identical(coarse.compute(), expected.compute())
    classes = infer(lambda tile: tile.transpose(2, 0, 1))
    assert (classes.dims, classes.dtype) == (("class", "y", "x"), np.uint8)
    vectors = infer(several, batch=4)
    assert vectors.dims == ("feature", "y", "x")
    assert vectors.shape == (3, 6, 4)
    assert infer(np.mean).dims == ("y", "x")
    found = infer(all_of)
    assert found.coarse.dims == ("y_4", "x_4")
    assert set(found) == {"likelihood", "coarse", "vector", "unused"}
    np.testing.assert_array_equal(found.coarse, expected)
    pair = infer(lambda tiles: (tiles[..., 0], several(tiles)), batch=2)
    assert pair.output_1.dims == ("feature", "y_tile", "x_tile")
    with pytest.raises(ValueError, match=r"shape \(2, 3\) for a tile of zeros of 48 × 48"):
        infer(lambda tile: np.zeros((2, 3)))


def test_what_is_not_run_is_the_fill_value_and_the_mask_says_so(slide):
    image = slide.to_dataset().image
    where = xr.zeros_like(image[..., 0], dtype=bool).compute()
    where[70:90, 30:50] = True
    whole = average(np.pad(image.values, ((0, 2), (0, 2), (0, 0)), mode="edge"))
    for fill, dtype in ((None, np.float32), (-1, np.float64), (None, np.int16), (255, np.uint8)):
        found, mask = recipes.map_tiles(
            slide, lambda tile: np.rint(average(tile)), level=0, tile=40, factor=4,
            where=where, fill_value=fill, dtype=dtype, return_mask=True,
        )  # fmt: skip
        assert mask.dtype == np.bool_
        np.testing.assert_array_equal(np.argwhere(mask.values), [(1, 0), (1, 1), (2, 0), (2, 1)])
        on_pixels = mask.sel(x=found.x, y=found.y, method="nearest").values
        filled = fill if fill is not None else (np.nan if dtype is np.float32 else 0)
        expected = np.where(on_pixels, np.rint(whole), filled)
        np.testing.assert_array_equal(found, expected.astype(dtype))
    everything = recipes.map_tiles(slide, average, level=0, factor=4, return_mask=True)[1]
    assert bool(everything.all())
    for fill in (np.nan, 300, -1, "x", [1, 2]):
        with pytest.raises(ValueError, match=r"fill_value .* can't be held by uint8"):
            recipes.TileOutput(dtype=np.uint8, fill_value=fill)


@STRINGS
@pytest.mark.parametrize("batch", [None, 6])
@pytest.mark.parametrize("factor", [1, 4, None])
def test_zarr_takes_the_result_as_it_is(slide, tmp_path, factor, batch):
    need("zarr")

    def model(tiles):
        each = tiles if batch else tiles[None]
        reduced = [
            moments(tile) if factor is None else np.stack(
                [block_reduce(tile[..., 0], (factor, factor), np.mean)] * 3
            )
            for tile in each
        ]  # fmt: skip
        return np.stack(reduced) if batch else reduced[0]

    lazy = recipes.map_tiles(
        slide, model, level=0, tile=40, factor=factor, batch=batch, dims={"class": 3}
    )
    lazy.to_zarr(tmp_path / "out.zarr", zarr_format=3, consolidated=False)
    again = xr.open_zarr(tmp_path / "out.zarr", consolidated=False).tiles
    np.testing.assert_array_equal(again, lazy)
    np.testing.assert_array_equal(again.x, lazy.x)
    assert again.chunks == lazy.chunks


# -- vectors --


@pytest.mark.parametrize("batch", [None, 1, 5, 100])
def test_embeddings_are_those_of_the_tiles_of_the_mask_at_their_centres(slide, client, batch):
    image = slide.to_dataset(spacing="0.7 um").image.compute()
    where = (image[..., 0] < image[..., 0].quantile(0.3)).drop_vars("quantile")
    lazy = recipes.embed_tiles(
        slide, moments if batch is None else several, spacing="0.7 um", tile=20, where=where,
        batch=batch, dtype=np.float64,
    )  # fmt: skip
    assert lazy.dims == ("tile", "feature")
    assert lazy.chunks is not None
    assert max(lazy.chunks[0]) == min(batch or 1, lazy.sizes["tile"])
    found = lazy.compute()
    padded = np.pad(image.values, ((0, 20), (0, 20), (0, 0)), mode="edge")
    step = 0.0007
    expected = []
    for top, left in itertools.product(
        range(0, image.sizes["y"], 20), range(0, image.sizes["x"], 20)
    ):
        if not where.values[top : top + 20, left : left + 20].any():
            continue
        centre = (float(image.x[left]) + 9.5 * step, float(image.y[top]) - 9.5 * step)
        expected.append((*centre, *moments(padded[top : top + 20, left : left + 20])))
    assert 3 < len(expected) < 80
    np.testing.assert_allclose(np.column_stack([found.x, found.y, found.values]), expected)
    assert found.x.attrs["units"] == "mm"
    xr.testing.assert_identical(lazy.compute(scheduler=client.get), found)
    nowhere = recipes.embed_tiles(
        slide, moments, level=0, where=where & False, batch=None, features=3
    )
    assert nowhere.compute().shape == (0, 3)
    assert nowhere.dtype == nowhere.compute().dtype == np.float32
    for dtype in (np.float16, np.float64):
        nowhere = recipes.embed_tiles(
            slide, several, level=0, where=where & False, dtype=dtype, features=3
        )
        assert nowhere.dtype == nowhere.compute().dtype == dtype


def test_embeddings_of_a_computed_image_depend_on_its_chunks(slide):
    image = slide.to_dataset().image
    lazy = recipes.embed_tiles(255 - image, several, tile=33, halo=2, batch=4, dtype=np.float64)
    inverse = recipes.embed_tiles(
        slide, lambda tiles: several(255 - tiles), level=0, tile=33, halo=2, batch=4,
        dtype=np.float64,
    )  # fmt: skip
    np.testing.assert_array_equal(lazy, inverse)


# -- errors --


def test_what_cannot_be_is_said(slide):
    image = slide.to_dataset().image
    with pytest.raises(TypeError, match="either a spacing or a level"):
        recipes.map_tiles(slide, average)
    with pytest.raises(TypeError, match="either a spacing or a level"):
        recipes.embed_tiles(slide, average, level=0, spacing="1 um")
    with pytest.raises(TypeError, match="are for a slide"):
        recipes.map_tiles(image, average, level=0)
    with pytest.raises(TypeError, match="leave out factor, dtype, dims"):
        recipes.map_tiles(image, average, factor=4, outputs=OUTPUTS)
    for wrong in ("all", {}, [], {"a": np.float32}):
        with pytest.raises(TypeError, match="expected"):
            recipes.map_tiles(image, average, outputs=wrong)
    for batch in (0, -1, 1.5):
        with pytest.raises(ValueError, match=r"batch .* expected a positive integer"):
            recipes.map_tiles(image, average, batch=batch)
    for tile in (0, (3,), (3, -1)):
        with pytest.raises(ValueError, match=r"tile .* expected two integers from 1 on"):
            recipes.map_tiles(image, average, tile=tile)
    with pytest.raises(ValueError, match="expected those before y and x only"):
        recipes.map_tiles(image, average, dims={"y": 3})
    for factor in (0, -1, 1.5):
        with pytest.raises(ValueError, match="expected a positive integer, or None"):
            recipes.map_tiles(image, average, factor=factor)
    with pytest.raises(ValueError, match=r"returned an array of shape \(3,\) for a tile of zeros"):
        recipes.embed_tiles(slide, moments, level=0)


def full_mask(y, x):
    return xr.DataArray(np.ones((len(y), len(x)), bool), {"y": y, "x": x}, ("y", "x"))


FUNCTIONS = {
    "map_tiles": functools.partial(recipes.map_tiles, factor=None, dims={"feature": 3}),
    "embed_tiles": functools.partial(recipes.embed_tiles, features=3),
}


@pytest.fixture(params=FUNCTIONS)
def function(request):
    return FUNCTIONS[request.param]


@pytest.mark.parametrize(
    ("image_of", "error", "message"),
    [
        (lambda image: "a/slide", TypeError, r"type str; expected a Slide.*open_slide"),
        (lambda image: pathlib.Path("a"), TypeError, r"Path; expected a Slide.*open_slide"),
        (lambda image: None, TypeError, "type NoneType; expected a Slide"),
        (lambda image: image.to_dataset(name="image"), TypeError, "Dataset; .*dataset.image"),
        (lambda image: image.values, TypeError, r"ndarray; .*DataArray, which has y and x in mm"),
        (lambda image: image.data, TypeError, r"Array; .*DataArray, which has y and x in mm"),
        (lambda image: image.isel(x=0), ValueError, r"dims \('y', 'sample'\); expected y and x"),
        (lambda image: image.rename(y="row", x="column"), ValueError, r"'row', 'column'.*rename"),
        (lambda image: image[:0], ValueError, r"image has no pixels.*nothing was selected"),
        (lambda image: image[..., :0], ValueError, "image has no pixels"),
    ],
)
def test_what_is_no_image_is_refused_in_plain_words(slide, function, image_of, error, message):
    with pytest.raises(error, match=message):
        function(image_of(slide.to_dataset().image), several, tile=20)


def test_a_cohort_is_refused_for_one_of_its_slides(folder, function):
    with pytest.raises(TypeError, match=r"type Cohort; expected a Slide.*slides\[name\]"):
        function(dicomslide.open_slides(folder), several, level=0)


def test_an_array_as_it_is_stored_is_refused(slide, function):
    stored = slide.to_dataset(orientation="stored").image
    with pytest.raises(ValueError, match=r"expected y and x among them.*as stored"):
        function(stored, several, tile=20)


@pytest.mark.parametrize(
    ("where_of", "error", "message"),
    [
        (lambda mask: lambda slide: mask, TypeError, "function; expected a DataArray.*call it"),
        (lambda mask: mask.to_dataset(name="mask"), TypeError, "Dataset; .*choose its variable"),
        (lambda mask: mask.values, TypeError, "ndarray; expected a DataArray of bool"),
        (lambda mask: True, TypeError, "bool; expected a DataArray of bool"),
        (lambda mask: mask.expand_dims("z"), ValueError, r"dims \('z', 'y', 'x'\); expected y an"),
        (lambda mask: mask[0], ValueError, r"dims \('x',\); expected y and x"),
        (lambda mask: mask.drop_vars("y"), ValueError, "where: y in mm is needed"),
        (lambda mask: full_mask([1.0, np.nan], [1.0, 2.0]), ValueError, "where: y has .*finite"),
        (lambda mask: full_mask([1.0, 2.0], [np.inf, 2.0]), ValueError, "where: x has .*finite"),
        (lambda mask: full_mask([1.0, 2.0, 5.0], [1.0, 2.0]), ValueError, "where: .*y aren't even"),
    ],
)
def test_what_is_no_mask_is_refused_in_plain_words(slide, function, where_of, error, message):
    mask = slide.to_dataset(1).image[..., 0] > 100
    with pytest.raises(error, match=message):
        function(slide, several, level=0, where=where_of(mask))


def test_a_mask_without_pixels_selects_nothing(slide):
    mask = slide.to_dataset(1).image[..., 0] > 100
    found = recipes.embed_tiles(slide, several, level=0, where=mask[:0], features=3)
    assert found.shape == (0, 3)
    tiles = recipes.map_tiles(slide, average, level=0, factor=4, where=mask[:, :0])
    assert np.isnan(tiles).all()


def test_the_mask_of_another_slide_is_refused(slide, function, tmp_path):
    write_slide(tmp_path, shape=SHAPE, downsamples=(1,), container_id="other", slide_number=2)
    other = open_slide(tmp_path)
    mask = other.to_dataset(0).image[..., 0] > 100
    mine = slide.to_dataset(0).image
    assert mine.x.attrs["frame_of_reference_uid"] != mask.x.attrs["frame_of_reference_uid"]
    for image, options in ((slide, {"level": 0}), (mine, {"tile": 50}), (mine + 1, {"tile": 50})):
        with pytest.raises(GridError, match="differ in frame of reference"):
            function(image, several, where=mask, **options)
    same = function(other, several, level=0, where=mask)
    assert same.sizes["feature"] == 3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch": 2.0}, ValueError, "batch 2.0: expected a positive integer, or None"),
        ({"batch": "x"}, ValueError, "batch 'x': expected a positive integer, or None"),
        ({"halo": 2.5}, ValueError, "halo 2.5: expected an integer of 0 or more"),
        ({"halo": None}, ValueError, "halo None: expected an integer of 0 or more"),
        ({"tile": "x"}, TypeError, "tile 'x': expected two integers from 1 on"),
    ],
)
def test_what_is_no_number_is_refused_in_plain_words(slide, function, options, error, message):
    with pytest.raises(error, match=message):
        function(slide, several, level=0, **options)


@pytest.mark.parametrize("features", [2.5, "x", 0])
def test_features_are_a_positive_integer(slide, features):
    with pytest.raises(ValueError, match=f"features {features!r}: expected a positive integer"):
        recipes.embed_tiles(slide, several, level=0, features=features)


@pytest.mark.parametrize(
    ("dims", "error", "message"),
    [
        (["c"], TypeError, r"dims \['c'\]: expected a mapping of names"),
        ("c", TypeError, "dims 'c': expected a mapping of names"),
        ({"c": 2.5}, ValueError, "dims: c 2.5: expected an integer of 0 or more"),
        ({"c": -1}, ValueError, "dims: c -1: expected an integer of 0 or more"),
    ],
)
def test_dims_are_a_mapping_of_lengths_or_labels(slide, dims, error, message):
    with pytest.raises(error, match=message):
        recipes.map_tiles(slide, several, level=0, dims=dims)
    assert recipes.TileOutput({"c": np.int64(3)}).lead == (3,)


@pytest.mark.parametrize("outputs", [None, "infer"])
@pytest.mark.parametrize(
    "options",
    [{"tile": 5000}, {"tile": 10**9}, {"halo": 10**9}, {"tile": (1, 10**9)}, {"halo": 5000},
     {"tile": 10**9, "halo": 10**9}, {"tile": 30, "halo": 512, "batch": 16}],
)  # fmt: skip
def test_a_tile_beyond_the_memory_limit_is_refused_before_it_is_made(slide, options, outputs):
    def model(tile):
        assert outputs == "infer", "no model is called"
        assert options.get("batch")
        return tile[..., 0]

    with (
        dicomslide.set_options(memory_limit_bytes=20_000_000),
        pytest.raises(MemoryLimitError, match="memory_limit_bytes"),
    ):
        recipes.map_tiles(slide, model, level=0, outputs=outputs, **options)
    options = {"batch": 1} | options
    with (
        dicomslide.set_options(memory_limit_bytes=20_000_000),
        pytest.raises(MemoryLimitError, match="memory_limit_bytes"),
    ):
        recipes.embed_tiles(slide, several, level=0, features=3, **options)


def test_a_chunk_of_the_result_beyond_the_memory_limit_is_refused(slide):
    with (
        dicomslide.set_options(memory_limit_bytes=20_000_000),
        pytest.raises(MemoryLimitError, match="a chunk of the result"),
    ):
        recipes.map_tiles(slide, average, level=0, tile=100, dims={"class": 10**6})


def test_a_batch_counts_as_many_tiles_as_there_are(slide):
    with dicomslide.set_options(memory_limit_bytes=2_000_000):
        found = recipes.embed_tiles(slide, several, level=0, tile=50, batch=10**6)
        expected = recipes.embed_tiles(slide, several, level=0, tile=50, batch=1)
        np.testing.assert_array_equal(found, expected)


def test_a_halo_far_beyond_the_image_is_refused_and_one_somewhat_beyond_it_is_not(slide, function):
    with pytest.raises(ValueError, match=r"halo 1100: expected up to 1024 pixels around an image"):
        function(slide, several, level=0, tile=20, halo=1100)
    image = slide.to_dataset().image[60:90, 100:140].compute()
    found = recipes.map_tiles(image, filtered, tile=25, halo=64, dtype=np.float64)
    np.testing.assert_allclose(found, whole_filtered(image.values), rtol=1e-9)


def test_what_a_model_returns_is_checked(slide):
    def computed(model, **options):
        found = recipes.map_tiles(slide, model, level=0, tile=40, **options)
        return found.compute(scheduler="synchronous")

    with pytest.raises(ValueError, match=r"shape \(3, 48, 48\) for a tile of \(48, 48\) pixels"):
        computed(lambda tile: tile.transpose(2, 0, 1), halo=4)
    with pytest.raises(ValueError, match=r"\(1, 3\) for 4 tiles of \(4, 40, 40\).*\(4, 3\)") as e:
        computed(lambda tiles: several(tiles)[:1], batch=4, factor=None, dims={"m": 3})
    assert "in one of 4 tiles within x = " in e.value.__notes__[0]
    with pytest.raises(ValueError, match=r"returned \['a'\]; expected a dict of"):
        computed(lambda tile: {"a": 1}, outputs=OUTPUTS)
    with pytest.raises(ValueError, match="returned ndarray; expected a tuple of 2 arrays"):
        computed(moments, outputs=[recipes.TileOutput(), recipes.TileOutput()])
    with pytest.raises(ValueError, match="values that uint8 can't hold"):
        computed(lambda tile: tile[..., 0] + 0.5, dtype=np.uint8)


def test_an_oblique_slide_is_refused_unless_its_dims_are_renamed(tmp_path):
    write_slide(
        tmp_path, shape=(64, 64), downsamples=(1,), tile_shape=(32, 32), associated=False,
        orientation=(0.8, 0.6, 0, -0.6, 0.8, 0),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oblique = open_slide(tmp_path)
        with pytest.raises(MetadataError, match="no upright array"):
            recipes.map_tiles(oblique, average, level=0)
        image = oblique.to_dataset(0).image.rename(row="y", column="x")  # as the message says
    found = recipes.map_tiles(image, average, tile=32, factor=4, dtype=np.float64)
    np.testing.assert_array_equal(found, average(image.values))
    np.testing.assert_array_equal(found.y, np.arange(16) * 4 + 1.5)


def test_sources_are_found_where_they_are(slide):
    image = slide.to_dataset().image
    for each in (image, image[5:], image.transpose("sample", "y", "x"), image.isel(sample=1)):
        source, below = source_of(each.data, each.get_axis_num(("y", "x")))
        assert isinstance(source, SlicedSource)
        assert below is None
        part = (slice(3, 50), slice(10, 11))
        picked = each.isel(y=part[0], x=part[1])
        np.testing.assert_array_equal(source.read(part, {}), picked)
