"""A sampler is a sequence of regions: each once, of one size, equal to what the array has there."""

from __future__ import annotations

import itertools
import multiprocessing
import pickle
import tracemalloc
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dicomslide
from dicomslide import TotalPixelMatrixSampler
from dicomslide.backends.part10.file import FileSource
from dicomslide.header.geometry import SlideGeometry
from dicomslide.pixels import PixelFormat
from dicomslide.testing import PositionDrawing, SyntheticImage, position_values, write_image

SHAPE = (23, 31)
TILE = (7, 10)
GRID = (4, 4)
ABSENT = (1, 2)
BACKGROUND = {1: 0, 3: 255}


@pytest.fixture(scope="module")
def matrices(tmp_path_factory):
    """Matrix, one tile of which is absent, and the array that it stands for, by samples."""
    folder = tmp_path_factory.mktemp("sampler")
    geometry = SlideGeometry((10.0, 20.0), (0.0, -1.0), (-1.0, 0.0), (0.001, 0.001), SHAPE)
    made = {}
    for samples in (1, 3):
        image = SyntheticImage(
            geometry=geometry,
            drawing=PositionDrawing(samples, np.uint8),
            pixel_format=PixelFormat(rows=TILE[0], columns=TILE[1], samples=samples),
            sparse=True,
            absent=frozenset({ABSENT}),
        )
        source = FileSource.open(write_image(folder / f"{samples}.dcm", image))
        array = position_values(
            np.arange(SHAPE[0]), np.arange(SHAPE[1]), samples=samples, dtype=np.uint8
        )
        array[7:14, 20:30] = BACKGROUND[samples]
        matrix = dicomslide.TotalPixelMatrix(source, source.metadata, correct_color=False)
        made[samples] = matrix, array
    return made


def cut(array, offset, shape):
    """Cut from an array in a wide frame of background: NumPy alone."""
    margin = 200
    background = BACKGROUND[array.shape[2]]
    wide = np.pad(array, ((margin,) * 2, (margin,) * 2, (0, 0)), constant_values=background)
    top, left = offset[0] + margin, offset[1] + margin
    return wide[top : top + shape[0], left : left + shape[1]]


def borders(padding):
    """Left, top, right and bottom, as the documentation words it."""
    if isinstance(padding, int):
        return (padding,) * 4
    if len(padding) == 2:
        return padding[0], padding[1], padding[0], padding[1]
    return padding


paddings = st.one_of(
    st.integers(0, 40),
    st.tuples(*[st.integers(0, 40)] * 2),
    st.tuples(*[st.integers(0, 40)] * 4),
)
dimensions = st.tuples(st.integers(1, 40), st.integers(1, 40))


@st.composite
def boxes(draw):
    row, column = draw(st.integers(0, SHAPE[0] - 1)), draw(st.integers(0, SHAPE[1] - 1))
    return (row, column), (
        draw(st.integers(1, SHAPE[0] - row + 20)),  # it may reach out of the matrix
        draw(st.integers(1, SHAPE[1] - column + 20)),
    )


def intersecting(covered, size):
    """Return the positions in the grid from (0, 0) of regions with a pixel that is covered."""
    grid = itertools.product(range(-(-SHAPE[0] // size[0])), range(-(-SHAPE[1] // size[1])))
    return [
        (r, c)
        for r, c in grid
        if covered[r * size[0] : (r + 1) * size[0], c * size[1] : (c + 1) * size[1]].any()
    ]


def assert_regions(sampler, array, positions, size, padding):
    """Compare every region with the array, in the order of positions in the grid."""
    left, top, right, bottom = borders(padding)
    shape = top + size[0] + bottom, left + size[1] + right
    assert sampler.region_shape == (*size, array.shape[2])
    assert sampler.padded_region_shape == (*shape, array.shape[2])
    assert sampler.padding == (left, top, right, bottom)
    assert len(sampler) == len(positions)
    for i, (region, (row, column)) in enumerate(zip(sampler, positions, strict=True)):
        assert sampler.get_region_grid_position(i) == (row, column)
        at = row * size[0] - top, column * size[1] - left
        np.testing.assert_array_equal(region, cut(array, at, shape))
        assert region.dtype == array.dtype


@pytest.mark.parametrize("samples", [1, 3])
def test_regions_cover_the_matrix_with_any_padding(matrices, samples):
    matrix, array = matrices[samples]

    @given(dimensions.filter(lambda size: size[0] * size[1] > 20), paddings)
    @settings(max_examples=40)
    def check(size, padding):
        sampler = TotalPixelMatrixSampler(matrix, size, padding=padding)
        assert sampler.matrix is matrix
        assert_regions(sampler, array, intersecting(np.ones(SHAPE, bool), size), size, padding)

    check()


@given(box=boxes(), size=dimensions.filter(lambda size: size[0] * size[1] > 20), padding=paddings)
@settings(max_examples=40)
def test_a_bounding_box_selects_the_regions_of_the_grid_that_intersect_with_it(
    matrices, box, size, padding
):
    matrix, array = matrices[3]
    (row, column), (height, width) = box
    covered = np.zeros(SHAPE, bool)
    covered[row : row + height, column : column + width] = True
    for tiles in (None, [(0, 0)]):  # ignored beside a box
        sampler = TotalPixelMatrixSampler(matrix, size, box, tiles, padding)
        assert_regions(sampler, array, intersecting(covered, size), size, padding)


def test_a_box_that_begins_within_a_region_selects_that_region(matrices):
    matrix, array = matrices[3]
    sampler = TotalPixelMatrixSampler(matrix, (5, 8), ((7, 9), (4, 8)))
    assert [sampler.get_region_grid_position(i) for i in range(len(sampler))] == [
        (1, 1), (1, 2), (2, 1), (2, 2),
    ]  # fmt: skip
    np.testing.assert_array_equal(sampler[0], array[5:10, 8:16])
    (only,) = TotalPixelMatrixSampler(matrix, (5, 8), ((5, 8), (5, 8)))
    np.testing.assert_array_equal(only, array[5:10, 8:16])


def test_the_bounding_box_of_a_tile_gives_that_tile(matrices):
    matrix, _ = matrices[3]
    for index, tile in enumerate(matrix):
        box = matrix.get_tile_bounding_box(index)
        (region,) = TotalPixelMatrixSampler(matrix, matrix.tile_shape[:2], box)
        (top, left), _ = box
        inside = matrix.shape[0] - top, matrix.shape[1] - left
        np.testing.assert_array_equal(
            region[: inside[0], : inside[1]], tile[: inside[0], : inside[1]]
        )


tiles = st.lists(
    st.tuples(st.integers(0, GRID[0] - 1), st.integers(0, GRID[1] - 1)), max_size=8
)  # fmt: skip


@given(tiles=tiles, size=dimensions.filter(lambda size: size[0] * size[1] > 20))
@settings(max_examples=60)
def test_tiles_select_the_regions_that_intersect_with_them_once_each(matrices, tiles, size):
    matrix, array = matrices[1]
    covered = np.zeros(SHAPE, bool)
    for row, column in tiles:
        covered[row * 7 : row * 7 + 7, column * 10 : column * 10 + 10] = True
    sampler = TotalPixelMatrixSampler(matrix, size, tile_grid_positions=tiles)
    assert_regions(sampler, array, intersecting(covered, size), size, 0)


def test_tiles_of_the_matrix_itself_select_themselves(matrices):
    matrix, _ = matrices[3]
    sampler = TotalPixelMatrixSampler(
        matrix, TILE, tile_grid_positions=matrix.tile_grid_positions[::-3].astype(np.uint32)
    )
    found = [sampler.get_region_grid_position(i) for i in range(len(sampler))]
    assert found == [divmod(i, 4) for i in range(0, 16, 3)]


def test_a_sampler_is_a_sequence(matrices):
    matrix, _ = matrices[1]
    sampler = TotalPixelMatrixSampler(matrix, (5, 8), padding=1)
    assert isinstance(sampler, Sequence)
    as_list = [sampler[i] for i in range(20)]
    assert len(sampler) == 20
    np.testing.assert_array_equal(np.stack(list(reversed(sampler))), np.stack(as_list[::-1]))
    np.testing.assert_array_equal(sampler[np.int64(-1)], as_list[-1])
    assert sampler.get_region_grid_position(-1) == (4, 3)
    for key in (slice(None), slice(3, 9), slice(None, None, -3), slice(-2, None), slice(30, 40)):
        part = sampler[key]
        assert isinstance(part, TotalPixelMatrixSampler)
        assert len(part) == len(as_list[key])
        for region, expected in zip(part, as_list[key], strict=True):
            np.testing.assert_array_equal(region, expected)
    assert sampler[3:9][1:3].get_region_grid_position(0) == (1, 0)
    assert len(sampler) == 20  # a slice leaves it as it was
    for wrong in (20, -21):
        with pytest.raises(IndexError):
            sampler[wrong]
        with pytest.raises(IndexError):
            sampler.get_region_grid_position(wrong)
    with pytest.raises(TypeError):
        sampler[1.5]
    assert repr(sampler) == "<TotalPixelMatrixSampler of 20 regions of 7 × 10 × 1>"


@given(
    size=dimensions.filter(lambda size: size[0] * size[1] > 20),
    padding=paddings,
    wanted=st.lists(st.integers(-10, 9), max_size=6),
)
@settings(max_examples=40)
@pytest.mark.parametrize("samples", [1, 3])
def test_several_regions_are_read_together_as_one_by_one(matrices, samples, size, padding, wanted):
    matrix, array = matrices[samples]
    sampler = TotalPixelMatrixSampler(matrix, size, padding=padding)
    wanted = [each % len(sampler) - (len(sampler) if each < 0 else 0) for each in wanted]
    left, top, right, bottom = borders(padding)
    shape = top + size[0] + bottom, left + size[1] + right
    positions = sampler.region_positions
    grid = sampler.region_grid_positions
    together = sampler.read(wanted)
    assert together.shape == (len(wanted), *shape, samples)
    assert together.dtype == array.dtype
    for region, at in zip(together, wanted, strict=True):
        row, column = sampler.get_region_grid_position(at)
        assert grid[at].tolist() == [row, column]
        assert positions[at].tolist() == [row * size[0], column * size[1]]
        at = row * size[0] - top, column * size[1] - left
        np.testing.assert_array_equal(region, cut(array, at, shape))
    np.testing.assert_array_equal(sampler.__getitems__(wanted), together)
    some = sampler[wanted]
    assert isinstance(some, TotalPixelMatrixSampler)
    np.testing.assert_array_equal(some.region_positions, positions[wanted])
    np.testing.assert_array_equal(some.read(range(len(some))), together)


def test_regions_that_are_read_together_share_their_frames(matrices, frames_read):
    matrix, _ = matrices[3]
    with dicomslide.set_options(frame_cache_bytes=0):
        TotalPixelMatrixSampler(matrix, (5, 8), padding=2).read(range(20))
    assert sorted(frames_read) == list(range(15))  # one tile has no frame


@pytest.mark.parametrize("wrong", [[20], [0, -21], [0.5], [[0, 1]], [True, False]])
def test_what_is_no_list_of_regions_is_an_index_error(matrices, wrong):
    sampler = TotalPixelMatrixSampler(matrices[1][0], (5, 8))
    for read in (sampler.read, sampler.__getitem__):
        with pytest.raises(IndexError):
            read(wrong)


def test_iterators_are_independent(matrices):
    matrix, _ = matrices[1]
    sampler = TotalPixelMatrixSampler(matrix, (12, 16))
    pairs = [(a, b) for a in sampler for b in sampler]
    assert len(pairs) == 16
    for i, (a, b) in enumerate(pairs):
        np.testing.assert_array_equal(a, sampler[i // 4])
        np.testing.assert_array_equal(b, sampler[i % 4])


def test_only_the_frames_of_a_region_are_read_and_each_once(matrices, frames_read):
    matrix, _ = matrices[3]
    sampler = TotalPixelMatrixSampler(matrix, TILE, padding=(0, 1, 0, 0))
    assert not frames_read
    sampler[0]
    assert frames_read == [0]
    frames_read.clear()
    dicomslide.clear_all("decoded frames")
    sampler[9]  # (2, 1), and one row of the tile above
    assert sorted(frames_read) == [5, 8]  # tile (1, 2) has no frame
    frames_read.clear()
    sampler[3:3], sampler[:2], len(sampler), repr(sampler)
    assert not frames_read


def test_results_belong_to_the_caller(matrices):
    matrix, array = matrices[3]
    sampler = TotalPixelMatrixSampler(matrix, TILE)
    sampler[0][...] = 0
    np.testing.assert_array_equal(sampler[0], array[:7, :10])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (dict(region_dimensions=(0, 5)), r"region_dimensions \(0, 5\)"),
        (dict(bounding_box=((-1, 0), (5, 5))), r"offset of the bounding box \(-1, 0\)"),
        (dict(bounding_box=((0, 0), (5, 0))), r"size of the bounding box \(5, 0\)"),
        (dict(bounding_box=((23, 0), (4, 5))), "outside the matrix of 23 × 31"),
        (dict(bounding_box=((0, 31), (1, 1))), "outside the matrix of 23 × 31"),
        (dict(bounding_box=(0, 0, 1, 1)), r"bounding_box \(0, 0, 1, 1\): expected two pairs"),
        (dict(bounding_box=5), "bounding_box 5: expected two pairs"),
        (dict(tile_grid_positions=[(0, 0), (4, 0)]), r"no tile at \(4, 0\) in a grid of 4 × 4"),
        (dict(tile_grid_positions=[(0, -1)]), r"no tile at \(0, -1\)"),
        (dict(tile_grid_positions=[0, 1]), "tile_grid_positions: expected integers"),
        (dict(tile_grid_positions=[(0.5, 1)]), "tile_grid_positions: expected integers"),
        (dict(padding=-1), "padding -1"),
        (dict(padding=(1, 2, 3)), r"padding \(1, 2, 3\)"),
        (dict(padding=(1, 2, 3, -4)), "none negative"),
        (dict(padding=()), r"padding \(\)"),
    ],
)
def test_impossible_arguments_are_value_errors(matrices, arguments, reason):
    matrix, _ = matrices[1]
    with pytest.raises(ValueError, match=reason):
        TotalPixelMatrixSampler(matrix, **{"region_dimensions": (5, 5), **arguments})


def test_a_sampler_is_of_a_matrix():
    with pytest.raises(TypeError, match="matrix of type list: expected a TotalPixelMatrix"):
        TotalPixelMatrixSampler([1], (5, 5))


def test_memory_is_checked_before_it_is_allocated(matrices):
    matrix, _ = matrices[1]
    sampler = TotalPixelMatrixSampler(matrix, (5, 5), padding=10**6)
    tracemalloc.start()
    try:
        with pytest.raises(dicomslide.MemoryLimitError):
            sampler[0]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10**6  # an index for each row and column alone would be 32 MB


# -- other processes -------------------------------------------------------------------------


def region(thing, index):
    """Read one region; runs in the other process."""
    return thing[index]


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_samplers_and_matrices_read_in_other_processes(matrices, method):
    matrix, array = matrices[3]
    sampler = TotalPixelMatrixSampler(matrix, (5, 8), tile_grid_positions=[(1, 1)], padding=2)
    assert len(pickle.dumps(sampler)) < 2000
    np.testing.assert_array_equal(sampler[0], cut(array, (3, 6), (9, 12)))  # open before the fork
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        there = pool.submit(region, sampler[1:], 0).result(timeout=120)
        np.testing.assert_array_equal(there, sampler[1])
        np.testing.assert_array_equal(pool.submit(region, matrix, 3).result(120), matrix[3])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_pytorch_loads_every_region_once(matrices, method):
    data = pytest.importorskip("torch.utils.data", reason="PyTorch isn't installed")
    matrix, _ = matrices[3]
    sampler = TotalPixelMatrixSampler(matrix, (5, 8), padding=2)
    loader = data.DataLoader(
        sampler, batch_size=3, num_workers=2, multiprocessing_context=method, timeout=120
    )
    batches = list(loader)
    assert [len(batch) for batch in batches] == [3] * 6 + [2]
    loaded = np.concatenate([batch.numpy() for batch in batches])
    np.testing.assert_array_equal(loaded, np.stack(list(sampler)))
    shuffled = data.DataLoader(
        sampler[::-1], batch_size=None, num_workers=2, multiprocessing_context=method, timeout=120
    )
    np.testing.assert_array_equal(
        np.stack([each.numpy() for each in shuffled]), np.stack(list(sampler))[::-1]
    )
