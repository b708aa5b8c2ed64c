"""Orders of tiles: every tile once an epoch, over ranks and workers, neighbours together."""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dicomslide
from dicomslide import BlockShuffle, TileDataset, TileStream
from dicomslide.testing import write_slide
from tests.support.optional import need

EDGE = 0.01
"""Edge of a tile in mm."""


def dataset_of(shapes, seed=None):
    """Tiles side by side, of slides of so many rows and columns; shuffled by a seed."""
    rows = [
        (f"slide {number}", 3 + EDGE * (column + 0.5), 7 - EDGE * (row + 0.5))
        for number, shape in enumerate(shapes)
        for row, column in np.ndindex(shape)
    ]
    if seed is not None:
        rows = [rows[at] for at in np.random.default_rng(seed).permutation(len(rows))]
    columns = zip(*rows, strict=True) if rows else ([], [], [])
    return TileDataset(dict(zip(("slide", "x", "y"), columns, strict=True)), size=10, spacing=0.001)


shapes = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=5)


@settings(max_examples=150, deadline=None)
@given(
    shapes=shapes,
    size=st.integers(1, 7),
    block=st.sampled_from([0.5, 1, 2, 3.5, 100]),
    mixed=st.integers(1, 4),
    slides_at_once=st.sampled_from([None, 1, 2, 9]),
    shuffle=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_each_tile_comes_once_an_epoch_over_all_ranks(
    shapes, size, block, mixed, slides_at_once, shuffle, epoch
):
    tiles = dataset_of(shapes, seed=0)
    options = dict(mixed=mixed, slides_at_once=slides_at_once, shuffle=shuffle, seed=5)
    orders = [
        BlockShuffle(tiles, block, rank=rank, world_size=size, **options) for rank in range(size)
    ]
    for order in orders:
        order.set_epoch(epoch)
    parts = [list(order) for order in orders]
    assert [len(part) for part in parts] == [len(order) for order in orders]
    together = list(itertools.chain(*parts))
    assert sorted(together) == list(range(len(tiles)))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    alone = BlockShuffle(tiles, block, **options)
    alone.set_epoch(epoch)
    assert list(alone) == together  # ranks have parts of one order
    if not shuffle:
        assert together == list(range(len(tiles)))


@settings(max_examples=60, deadline=None)
@given(shapes=shapes, size=st.integers(1, 7), shuffle=st.booleans())
def test_ranks_have_equally_many_where_they_are_to(shapes, size, shuffle):
    tiles = dataset_of(shapes)
    for uneven in ("repeat", "drop"):
        orders = [
            BlockShuffle(tiles, rank=rank, world_size=size, uneven=uneven, shuffle=shuffle)
            for rank in range(size)
        ]
        parts = [list(order) for order in orders]
        assert [len(part) for part in parts] == [len(order) for order in orders]
        assert len(set(map(len, parts))) == 1
        found, counts = np.unique(np.concatenate(parts).astype(int), return_counts=True)
        if uneven == "drop":
            assert (counts == 1).all()
            assert len(tiles) - len(found) < size
        else:
            assert len(found) == len(tiles)
            assert counts.sum() - len(tiles) < size


def blocks_in(tiles, order):
    """Runs of the order in which each tile has a side in common with one before it in the run."""
    places = np.rint(tiles.centers / EDGE - 0.5).astype(int)
    runs = [[order[0]]]
    for at in order[1:]:
        here = (tiles.slide_indices[at], *places[at])
        near = {(tiles.slide_indices[each], *places[each]) for each in runs[-1]}
        extent = np.ptp([places[each] for each in [*runs[-1], at]], axis=0).max()
        if {each[0] for each in near} == {here[0]} and extent < 4:
            runs[-1].append(at)
        else:
            runs.append([at])
    return runs


def test_the_tiles_of_a_block_follow_each_other_and_blocks_are_shuffled():
    tiles = dataset_of([(16, 16), (12, 20)], seed=3)
    order = BlockShuffle(tiles, 4)
    found = blocks_in(tiles, list(order))
    # 4 x 4 tiles, fewer at the borders of a slide, which a block may begin beyond
    assert max(map(len, found)) == 16
    assert len(found) <= 5 * 5 + 4 * 6
    codes = [int(tiles.slide_indices[run[0]]) for run in found]
    assert len(set(itertools.pairwise(codes))) == 4  # slides take turns at random
    random = blocks_in(tiles, np.random.default_rng(0).permutation(len(tiles)).tolist())
    assert len(random) > 300


def test_an_epoch_has_an_order_of_its_own_and_other_blocks():
    tiles = dataset_of([(16, 16)])
    order, same = BlockShuffle(tiles, seed=1), BlockShuffle(tiles, seed=1)
    first = list(order)
    assert list(order) == list(same) == first  # an iteration changes nothing
    order.set_epoch(1)
    assert order.epoch == 1
    second = list(order)
    assert second != first
    sets = [{frozenset(run) for run in blocks_in(tiles, each)} for each in (first, second)]
    assert len(sets[0] & sets[1]) < len(sets[0]) / 2
    order.set_epoch(0)
    assert list(order) == first
    assert list(BlockShuffle(tiles, seed=2)) != first
    again = pickle.loads(pickle.dumps(order))
    assert list(again) == first


def test_blocks_that_are_mixed_are_shuffled_together():
    tiles = dataset_of([(16, 16)] * 3)
    plain, mixed = BlockShuffle(tiles, 4, seed=1), BlockShuffle(tiles, 4, mixed=3, seed=1)
    runs = blocks_in(tiles, list(plain))
    order = list(mixed)
    assert order != list(plain)
    start = 0
    for at in range(0, len(runs), 3):
        three = runs[at : at + 3]
        wanted = sorted(itertools.chain(*three))
        here = order[start : start + len(wanted)]
        assert sorted(here) == wanted
        start += len(wanted)
    assert len(blocks_in(tiles, order)) > 2 * len(runs)


def test_tiles_that_lie_far_apart_are_of_blocks_of_their_own():
    """Whose numbers don't overflow."""
    random = np.random.default_rng(0)
    places = np.concatenate(
        [random.uniform(-1e12, 1e12, (40, 2)), random.uniform(0, 0.05, (50, 2))]
    )
    tiles = TileDataset(
        {"slide": np.repeat([f"slide {i}" for i in range(9)], 10), "x": places[:, 0],
         "y": places[:, 1]},
        size=10, spacing=0.001,
    )  # fmt: skip
    order = list(BlockShuffle(tiles, 10))
    assert sorted(order) == list(range(90))
    codes = tiles.slide_indices[[at for at in order if at >= 40]]
    changes = np.count_nonzero(np.diff(codes))
    assert changes <= 4 * 5  # of each slide at most four blocks


def test_few_slides_come_at_once_if_asked_for():
    tiles = dataset_of([(5, 5)] * 12, seed=2)
    codes = tiles.slide_indices
    order = BlockShuffle(tiles, 2, slides_at_once=3, seed=4)
    groups = []
    for epoch in range(2):
        order.set_epoch(epoch)
        found = codes[list(order)].reshape(4, 75)
        for part in found:
            assert len(set(part.tolist())) == 3
            assert len(set(part[:40].tolist())) > 1  # shuffled among these
        groups.append({frozenset(part.tolist()) for part in found})
        assert len(frozenset().union(*groups[-1])) == 12
    assert groups[0] != groups[1]


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """A slide of 16 x 16 frames."""
    folder = tmp_path_factory.mktemp("order")
    write_slide(
        folder, shape=(512, 512), tile_shape=(32, 32), downsamples=(1,), drawing="position",
        transfer_syntax_uid="1.2.840.10008.1.2.1", associated=False,
    )  # fmt: skip
    return dicomslide.open_slide(folder)


@pytest.fixture(scope="module")
def tiles(slide):
    """15 x 15 tiles that each touch four frames, and tell which they are."""
    x_min, _, _, y_max = slide.physical_bounds
    x, y = np.meshgrid(
        x_min + 0.0005 * 32 * np.arange(1, 16), y_max - 0.0005 * 32 * np.arange(1, 16)
    )
    table = {"x": x.ravel(), "y": y.ravel(), "number": np.arange(225)}
    return TileDataset(table, slide, size=32, spacing=0.0005, columns=["number"])


def test_a_batch_of_blocks_decodes_fewer_frames(tiles, frames_read):
    def decoded(order):
        frames_read.clear()
        for start in range(0, len(order), 32):
            tiles.read(order[start : start + 32])
        return len(frames_read)

    with dicomslide.set_options(frame_cache_bytes=0):
        by_blocks = decoded(list(BlockShuffle(tiles, 4)))
        at_random = decoded(np.random.default_rng(0).permutation(225).tolist())
    assert by_blocks < 0.65 * at_random


# -- ranks -----------------------------------------------------------------------------------


def test_the_environment_says_which_rank_this_is(monkeypatch):
    tiles = dataset_of([(4, 5)])
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    whole = list(BlockShuffle(tiles, rank=0, world_size=1))
    assert list(BlockShuffle(tiles)) == whole[6:13]
    assert list(BlockShuffle(tiles, rank=2, world_size=4)) == whole[10:15]
    assert repr(BlockShuffle(tiles)) == "<BlockShuffle of 7 tiles, rank 1 of 3, epoch 0>"
    stream = TileStream(tiles)
    assert len(stream) == 7
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(ValueError, match="RANK and WORLD_SIZE are '1' and '1'"):
        BlockShuffle(tiles)
    monkeypatch.setenv("RANK", "one")
    with pytest.raises(ValueError, match="'one'"):
        BlockShuffle(tiles)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"block": 0}, ValueError, "block 0"),
        ({"block": float("nan")}, ValueError, "block nan"),
        ({"block": 1e-300}, ValueError, "block 1e-300: expected a finite number above zero"),
        ({"block": float("inf")}, ValueError, "block inf"),
        ({"block": "x"}, TypeError, "block 'x': expected a number"),
        ({"mixed": 0}, ValueError, "mixed 0"),
        ({"mixed": 10**30}, ValueError, "mixed 10+: expected [0-9]+ or less"),
        ({"mixed": 1.5}, TypeError, "mixed 1.5: expected an integer"),
        ({"slides_at_once": "x"}, TypeError, "slides_at_once 'x'"),
        ({"seed": "x"}, TypeError, "seed 'x'"),
        ({"rank": [0], "world_size": 2}, ValueError, "rank and world_size"),
        ({"slides_at_once": 0}, ValueError, "slides_at_once 0"),
        ({"seed": -1}, ValueError, "seed -1"),
        ({"uneven": "pad"}, ValueError, "'pad'"),
        ({"rank": 0}, TypeError, "both rank and world_size"),
        ({"rank": 2, "world_size": 2}, ValueError, "rank and world_size are 2 and 2"),
        ({"rank": -1, "world_size": 2}, ValueError, "-1"),
    ],
)
def test_what_is_no_order_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        BlockShuffle(dataset_of([(2, 2)]), **options)


@pytest.mark.parametrize("dataset", [[1, 2, 3], None, np.zeros(3)])
def test_orders_and_streams_are_of_a_data_set_of_tiles(dataset):
    for made in (BlockShuffle, TileStream):
        with pytest.raises(TypeError, match=r"dataset of type \w+: expected a TileDataset"):
            made(dataset)


def test_positions_beyond_all_bounds_are_shuffled():
    table = {"slide": ["S"] * 4, "x": [-1e300, 1e300, 0.0, 0.0], "y": [0.0, 1e308, 0.0, 5.0]}
    order = BlockShuffle(TileDataset(table, size=4, spacing=0.001), 1e-6)
    assert sorted(order) == [0, 1, 2, 3]


def test_an_epoch_counts_from_zero():
    with pytest.raises(ValueError, match="epoch -1"):
        BlockShuffle(dataset_of([(2, 2)])).set_epoch(-1)


# -- streams ---------------------------------------------------------------------------------


def test_a_stream_gives_the_tiles_in_order(tiles, frames_read):
    order = BlockShuffle(tiles, seed=3)
    stream = TileStream(tiles, order, at_once=32)
    assert len(stream) == 225
    for epoch in (0, 0, 1):  # without workers, an epoch is what it was set to
        stream.set_epoch(epoch)
        found = list(stream)
        assert [tile["number"] for tile in found] == list(order)
        for tile in found[::50]:
            np.testing.assert_array_equal(tile["pixels"], tiles[tile["number"]]["pixels"])
    with dicomslide.set_options(frame_cache_bytes=0):
        frames_read.clear()
        next(iter(stream))
        assert len(frames_read) == len(set(frames_read)) > 30  # those of 32 tiles
    assert [tile["number"] for tile in TileStream(tiles)] == list(range(225))


def test_a_stream_takes_the_order_of_its_own_data_set(tiles):
    with pytest.raises(ValueError, match="another data set"):
        TileStream(tiles, BlockShuffle(tiles[:5]))
    with pytest.raises(ValueError, match="at_once 0"):
        TileStream(tiles, at_once=0)
    with pytest.raises(TypeError, match="at_once 'x'"):
        TileStream(tiles, at_once="x")
    with pytest.raises(TypeError, match="order of type list: expected a BlockShuffle"):
        TileStream(tiles, [1])


def test_a_stream_made_before_pytorch_is_imported_says_what_to_do(tiles):
    need("torch")
    code = (
        "import dicomslide; tiles = dicomslide.TileDataset("
        "{'slide': ['a'], 'x': [0.0], 'y': [0.0]}, size=4, spacing=0.001)\n"
        "stream = dicomslide.TileStream(tiles)\n"
        "import torch.utils.data\n"
        "try:\n    next(iter(torch.utils.data.DataLoader(stream)))\n"
        "except TypeError as error: print(error)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "import torch.utils.data before the stream is made" in out.stdout
    with pytest.raises(TypeError, match="no tiles by number"):
        TileStream(tiles)[0]


def numbers_of(loader):
    return list(itertools.chain(*(batch["number"].tolist() for batch in loader)))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize(
    ("method", "workers", "ranks"), [("fork", 1, 2), ("fork", 3, 2), ("spawn", 2, 1)]
)
def test_pytorch_streams_each_tile_once_over_ranks_and_workers(tiles, method, workers, ranks):
    need("torch")
    from torch.utils.data import DataLoader, IterableDataset

    seen = []
    for rank in range(ranks):
        stream = TileStream(tiles, BlockShuffle(tiles, rank=rank, world_size=ranks), at_once=16)
        assert isinstance(stream, IterableDataset)
        assert isinstance(stream, Iterable)
        loader = DataLoader(
            stream, batch_size=16, num_workers=workers, multiprocessing_context=method,
            timeout=120,
        )  # fmt: skip
        seen.append(numbers_of(loader))
    assert sorted(itertools.chain(*seen)) == list(range(225))
    assert max(map(len, seen)) - min(map(len, seen)) <= 1
    assert not isinstance(tiles, IterableDataset)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("persistent", [True, False])
def test_workers_that_stay_go_on_to_the_next_epoch(tiles, persistent):
    need("torch")
    from torch.utils.data import DataLoader

    order = BlockShuffle(tiles)
    stream = TileStream(tiles, order, at_once=25)
    loader = DataLoader(
        stream, batch_size=25, num_workers=1, multiprocessing_context="fork", timeout=120,
        persistent_workers=persistent,
    )  # fmt: skip
    for epoch in range(3):
        stream.set_epoch(epoch)
        assert numbers_of(loader) == order.indices(epoch).tolist()
    expected = 3 if persistent else 2  # without set_epoch, only workers that stay go on
    assert numbers_of(loader) == order.indices(expected).tolist()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_pytorch_takes_the_order_as_a_sampler(tiles):
    need("torch")
    from torch.utils.data import DataLoader

    order = BlockShuffle(tiles)
    loader = DataLoader(
        tiles, batch_size=32, sampler=order, num_workers=2, multiprocessing_context="fork",
        persistent_workers=True, timeout=120,
    )  # fmt: skip
    assert len(loader) == 8
    for epoch in range(2):
        order.set_epoch(epoch)
        assert numbers_of(loader) == order.indices(epoch).tolist()
