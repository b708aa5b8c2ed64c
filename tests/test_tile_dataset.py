"""A data set of tiles gives the pixels around the places of a table, of many slides, anywhere."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dicomslide
from dicomslide import TileDataset
from dicomslide.process.budget import cached_bytes
from dicomslide.testing import position_values, write_slide
from tests.support.optional import need
from tests.support.range_server import serving

SPACING = 0.0005
SHAPES = {"S0": (90, 130), "S1": (64, 50), "S2": (70, 70)}
MARGIN = 250
NATIVE = "1.2.840.10008.1.2.1"


def written(folder, name, shape, **options):
    options = {"tile_shape": (32, 48), "downsamples": (1,), "drawing": "position"} | options
    write_slide(
        folder / name, shape=shape, container_id=name, associated=False,
        transfer_syntax_uid=NATIVE, slide_number=int(name[1:]) + 1, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    for name, shape in SHAPES.items():
        written(folder, name, shape)
    return folder


@pytest.fixture(scope="module")
def slides(folder):
    return dicomslide.open_slides(folder)


def upright(shape):
    """A slide as it lies: its first row on the right, in a wide frame of background."""
    values = position_values(np.arange(shape[0]), np.arange(shape[1]))
    return np.pad(np.rot90(values, -1), ((MARGIN,) * 2, (MARGIN,) * 2, (0, 0)), constant_values=255)


ARRAYS = {name: upright(shape) for name, shape in SHAPES.items()}


def table_of(slides, places, size):
    """The table of tiles whose first pixel (row, column) of the upright slide is given."""
    bounds = {name: slides[name].physical_bounds for name, _ in places}
    rows = []
    for name, (row, column) in places:
        x_min, _, _, y_max = bounds[name]
        x, y = x_min + (column + size[1] / 2) * SPACING, y_max - (row + size[0] / 2) * SPACING
        rows.append((name, x, y, len(rows)))
    return pd.DataFrame(rows, columns=["slide", "x", "y", "label"])


def expected(places, size):
    return [
        ARRAYS[name][MARGIN + row :, MARGIN + column :][: size[0], : size[1]]
        for name, (row, column) in places
    ]


places = st.lists(
    st.tuples(st.sampled_from(sorted(SHAPES)), st.tuples(*[st.integers(-40, 140)] * 2)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(
    places=places, size=st.tuples(st.integers(1, 50), st.integers(1, 50)), most=st.integers(1, 3)
)
def test_tiles_are_the_pixels_around_their_middles(slides, places, size, most):
    table = table_of(slides, places, size)
    tiles = TileDataset(table, slides, size=size, spacing=SPACING, max_open_slides=most)
    wanted = expected(places, size)
    assert len(tiles) == len(wanted)
    order = np.random.default_rng(len(places)).integers(-len(wanted), len(wanted), 8).tolist()
    again = pickle.loads(pickle.dumps(tiles))
    for at in order:
        for each in (tiles, again):
            tile = each[at]
            np.testing.assert_array_equal(tile, wanted[at])
            assert tile.dtype == np.uint8
            assert tile.flags.c_contiguous
            assert tile.flags.writeable
    for found in (
        tiles.__getitems__(order),
        again.read(order),
        tiles[order],
        tiles.read(np.array(order)),
    ):
        for tile, at in zip(found, order, strict=True):
            np.testing.assert_array_equal(tile, wanted[at])
    for tile, one in zip(tiles, wanted, strict=True):
        np.testing.assert_array_equal(tile, one)


def test_tiles_of_another_spacing_are_those_of_the_labelled_array(slides):
    slide = slides["S0"]
    image = slide.to_dataset(spacing="0.8 um").image.compute()
    x, y = np.meshgrid(image.x[5:-5:9], image.y[4:-4:11])
    table = {"slide": ["S0"] * x.size, "x": x.ravel(), "y": y.ravel()}
    tiles = TileDataset(table, slides, size=(7, 9), spacing="0.8 um")
    for number in range(len(tiles)):
        position = tiles.get_position(number)
        assert position == ("S0", x.flat[number], y.flat[number])
        at = image.indexes["y"].get_loc(position.y), image.indexes["x"].get_loc(position.x)
        np.testing.assert_array_equal(
            tiles[number], image[at[0] - 3 : at[0] + 4, at[1] - 4 : at[1] + 5]
        )


def test_a_table_of_tile_grid_says_size_and_spacing(slides):
    need("skimage")
    from dicomslide import recipes

    table = recipes.tile_grid(slides, (20, 30), spacing=SPACING, at_least=0)
    tiles = TileDataset(table, slides)
    assert tiles.size == (20, 30)
    assert tiles.spacing == SPACING
    assert tiles.slide_names == ("S0", "S1", "S2")
    assert (
        repr(tiles) == f"<TileDataset of {len(table)} tiles of 20 × 30 at 0.0005 mm, of 3 slides>"
    )
    for name in SHAPES:  # side by side, tiles are the slide
        of_slide = tiles[np.asarray(table.slide == name)]
        array = ARRAYS[name][MARGIN:, MARGIN:]
        across = len(set(table.x[table.slide == name]))
        rows = [
            np.concatenate(list(of_slide[start : start + across]), axis=1)
            for start in range(0, len(of_slide), across)
        ]
        whole = np.concatenate(rows)
        np.testing.assert_array_equal(whole, array[: whole.shape[0], : whole.shape[1]])


def doubled(pixels):
    """A transform, at the top of a module, where it pickles."""
    assert pixels.flags.c_contiguous
    return pixels.astype(np.int64) * 2


def test_columns_and_the_result_of_the_transform_are_returned(slides):
    where = [("S1", (3, 4)), ("S0", (5, 6))]
    table = table_of(slides, where, (10, 10))
    table["grade"] = ["low", "high"]
    tiles = TileDataset(
        table, slides, size=10, spacing=SPACING, transform=doubled,
        columns=["slide", "x", "y", "label", "grade"],
    )  # fmt: skip
    for item, number in ((tiles[1], 1), (tiles.__getitems__([0, 1])[1], 1), (next(iter(tiles)), 0)):
        assert list(item) == ["pixels", "slide", "x", "y", "label", "grade"]
        np.testing.assert_array_equal(
            item["pixels"], 2 * expected(where, (10, 10))[number].astype(int)
        )
        row = table.iloc[number]
        for name in ("slide", "x", "y", "label", "grade"):
            assert item[name] == row[name]
            assert type(item[name]) in (str, float, int)
    assert [tile["label"] for tile in tiles[::-1]] == [1, 0]
    np.testing.assert_array_equal(tiles.read([1])[0], expected(where, (10, 10))[1])


def test_slides_are_found_in_any_of_these_ways(folder, slides):
    where = [("S1", (3, 4)), ("S1", (5, 6))]
    table = table_of(slides, where, (10, 10))
    wanted = expected(where, (10, 10))
    by_path = table.assign(slide=str(folder / "S1"))
    options = {"size": 10, "spacing": SPACING}
    for tiles in (
        TileDataset(by_path, **options),
        TileDataset(by_path.assign(slide=folder / "S1"), **options),
        TileDataset(by_path.assign(slide=pd.Categorical(by_path.slide)), **options),
        TileDataset(table, {"S1": folder / "S1", "S7": "nowhere"}, **options),
        TileDataset(table, {"S1": slides["S1"]}, **options),
        TileDataset(table, lambda name: folder / name, **options),
        TileDataset(table, slides["S1"], **options),
        TileDataset(table.drop(columns="slide"), slides["S1"], **options),
        TileDataset({"x": table.x.tolist(), "y": table.y.tolist()}, slides["S1"], **options),
    ):
        np.testing.assert_array_equal(tiles.read([0, 1]), wanted)


def test_a_slide_is_opened_when_one_of_its_tiles_is_read(folder, tmp_path):
    tiles = TileDataset(
        {"slide": [str(folder / "S1"), str(tmp_path / "S9")], "x": [1.0, 2], "y": [1.0, 2]},
        size=10, spacing=SPACING,
    )  # fmt: skip
    assert (tiles[0] == 255).all()  # far from the slide
    with pytest.raises(FileNotFoundError) as caught:
        tiles[1]
    assert f"in the slide {str(tmp_path / 'S9')!r} of a table of tiles" in caught.value.__notes__


def test_channels_and_planes_are_chosen(tmp_path):
    write_slide(
        tmp_path, shape=(60, 80), tile_shape=(32, 32), downsamples=(1,), drawing="position",
        samples=1, bits=16, transfer_syntax_uid=NATIVE, optical_paths=("DAPI", "FITC"),
        planes=(5.0, 7.0), associated=False,
    )  # fmt: skip
    slide = dicomslide.open_slide(tmp_path)
    x_min, _, _, y_max = slide.physical_bounds
    tiles = TileDataset(
        {"x": [x_min + 20 * SPACING], "y": [y_max - 20 * SPACING]}, slide, size=40,
        spacing=SPACING, channel_index=1, focal_plane_index=1,
    )  # fmt: skip
    values = position_values(np.arange(60), np.arange(80), 1, 1, samples=1, dtype=np.uint16)
    np.testing.assert_array_equal(tiles[0], np.rot90(values, -1)[:40, :40])


# -- what is read ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def neighbours(tmp_path_factory):
    """A slide of 12 x 12 frames, and 64 tiles that each touch four of them."""
    folder = tmp_path_factory.mktemp("neighbours")
    written(folder, "S0", (12 * 32, 12 * 32), tile_shape=(32, 32))
    slides = dicomslide.open_slides(folder)
    where = [("S0", (16 + 32 * row, 16 + 32 * column)) for row in range(8) for column in range(8)]
    return folder, slides, where, table_of(slides, where, (32, 32))


def test_frames_that_tiles_share_are_decoded_once(neighbours, frames_read):
    _, slides, where, table = neighbours
    tiles = TileDataset(table, slides, size=32, spacing=SPACING)
    with dicomslide.set_options(frame_cache_bytes=0):
        tiles[0]
        assert len(frames_read) == 4
        frames_read.clear()
        found = tiles.__getitems__(range(64))
    assert len(frames_read) == len(set(frames_read)) == 81
    array = upright((12 * 32, 12 * 32))
    for tile, (_, (row, column)) in zip(found, where, strict=True):
        np.testing.assert_array_equal(tile, array[MARGIN + row :, MARGIN + column :][:32, :32])


@pytest.mark.parametrize("spacing", [SPACING, 0.0007])
def test_rows_of_tiles_one_by_one_decode_each_frame_once(tmp_path, frames_read, spacing):
    """What a tile leaves of a frame is kept for its neighbours."""
    write_slide(tmp_path, shape=(256, 256), tile_shape=(32, 32), downsamples=(1,), associated=False)
    slide = dicomslide.open_slide(tmp_path)
    x_min, y_min, x_max, y_max = slide.physical_bounds
    x, y = np.meshgrid(
        np.arange(x_min + 10 * spacing, x_max, 20 * spacing),
        np.arange(y_max - 10 * spacing, y_min, -20 * spacing),
    )
    tiles = TileDataset({"x": x.ravel(), "y": y.ravel()}, slide, size=20, spacing=spacing)
    for at in range(len(tiles)):
        tiles[at]
    assert sorted(frames_read) == list(range(64))


def test_a_server_is_asked_for_the_frames_of_a_batch_together(neighbours):
    need("fsspec", "aiohttp")
    folder, _, _, table = neighbours
    with serving(folder) as server:
        tiles = TileDataset(table, {"S0": f"{server.url}/S0/level-0.dcm"}, size=32, spacing=SPACING)
        tiles[0]

        def counted(read):
            dicomslide.clear_all("received frames", "decoded frames", "bytes of objects read ahead")
            server.forget()
            found = read()
            return found, len(server.requests)

        with dicomslide.set_options(frame_cache_bytes=0, encoded_cache_bytes=0):
            single, one_by_one = counted(lambda: [tiles[at] for at in range(64)])
            together, at_once = counted(lambda: tiles.__getitems__(range(64)))
    np.testing.assert_array_equal(together, single)
    assert one_by_one >= 64
    assert at_once <= 9  # a run of frames in each row of frames


def test_servers_are_asked_for_the_tiles_of_several_slides_at_once(folder, slides):
    need("fsspec", "aiohttp")
    where = [(name, (5, 5)) for name in SHAPES]
    table = table_of(slides, where, (10, 10))
    with serving(folder) as server:
        tiles = TileDataset(
            table, {name: f"{server.url}/{name}/level-0.dcm" for name in SHAPES},
            size=10, spacing=SPACING,
        )  # fmt: skip
        tiles.read([0, 1, 2])  # headers are known
        dicomslide.clear_all("received frames", "decoded frames", "bytes of objects read ahead")
        server.gate = threading.Barrier(3)  # answers nobody before all three have asked
        np.testing.assert_array_equal(
            tiles.read([2, 0, 1]), np.array(expected(where, (10, 10)))[[2, 0, 1]]
        )


def open_files():
    """Paths of the files that this process has open, on Linux."""
    folder = Path("/proc/self/fd")
    paths = [os.path.realpath(each) for each in folder.iterdir()] if folder.exists() else []
    return [path for path in paths if path.endswith(".dcm")]


@pytest.fixture(scope="module")
def hundred(tmp_path_factory):
    """Names of a hundred slides of two files each."""
    folder = tmp_path_factory.mktemp("hundred")
    for number in range(100):
        written(folder, f"S{number}", (64, 64), downsamples=(1, 2), tile_shape=(32, 32))
    return [str(folder / f"S{number}") for number in range(100)]


@pytest.mark.parametrize(("most", "budget"), [(4, 2**30), (1024, 2**20)])
def test_a_hundred_slides_take_bounded_files_and_memory(hundred, most, budget):
    bounds = dicomslide.open_slide(hundred[0]).physical_bounds
    x, y = bounds[0] + 16 * SPACING, bounds[3] - 16 * SPACING
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(100), 2))
    tiles = TileDataset(
        {"slide": [hundred[at] for at in order], "x": [x] * 200, "y": [y] * 200},
        size=32, spacing=SPACING, max_open_slides=most,
    )  # fmt: skip
    wanted = upright((64, 64))[MARGIN : MARGIN + 32, MARGIN : MARGIN + 32]
    with dicomslide.set_options(memory_budget=budget, frame_cache_bytes=2**16):
        for start in range(0, 200, 16):
            for tile in tiles.__getitems__(range(start, min(start + 16, 200))):
                np.testing.assert_array_equal(tile, wanted)
            assert sum(cached_bytes().values()) <= budget
            assert len(tiles._open) <= most
            assert cached_bytes()["open slides"] >= 8192 * len(tiles._open)
            assert len(open_files()) <= 128
    assert 0 < len(tiles._open) < 100
    dicomslide.clear_all("open slides")
    assert len(tiles._open) == 0
    np.testing.assert_array_equal(tiles[0], wanted)


def test_a_slide_that_is_opened_again_warns_once(tmp_path):
    for number in range(2):
        written(tmp_path, f"S{number}", (64, 64), orientation=(1, 0, 0, 0, 1, 0))
    paths = [str(tmp_path / f"S{number}") for number in range(2)]
    tiles = TileDataset(
        {"slide": paths * 3, "x": [0.0] * 6, "y": [0.0] * 6},
        size=8, spacing=SPACING, max_open_slides=1,
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for at in range(6):
            tiles[at]
    assert len(caught) == 2
    assert all("mirror" in str(each.message) for each in caught)
    assert {each.filename for each in caught} == {__file__}


# -- other processes -------------------------------------------------------------------------


def test_a_data_set_pickles_as_names_and_positions(slides, folder):
    table = table_of(slides, [("S1", (3, 4)), ("S0", (5, 6))] * 500, (10, 10))
    for given_slides, most in (
        (slides, 8_000), ({name: str(folder / name) for name in SHAPES}, 2_000)
    ):  # fmt: skip
        tiles = TileDataset(table, given_slides, size=10, spacing=SPACING)
        before = pickle.dumps(tiles)
        assert len(before) < 1000 * (8 + 8 + 4) + most
        tiles.read(range(10))
        assert len(pickle.dumps(tiles)) == len(before)
        again = pickle.loads(before)
        assert len(again._open) == 0
        np.testing.assert_array_equal(again.read(range(2)), tiles.read(range(2)))


def read_there(tiles, indices):
    return tiles.read(indices), os.getpid()


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_tiles_are_read_in_other_processes(slides, method):
    where = [("S1", (3, 4)), ("S0", (5, 6)), ("S2", (0, 30))]
    tiles = TileDataset(table_of(slides, where, (10, 10)), slides, size=10, spacing=SPACING)
    tiles.read(range(3))  # open before the fork
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        there, process = pool.submit(read_there, tiles, [2, 0, 1]).result(timeout=120)
    assert process != os.getpid()
    np.testing.assert_array_equal(there, np.array(expected(where, (10, 10)))[[2, 0, 1]])


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_pytorch_loads_every_tile_once(slides, method):
    need("torch")
    from torch.utils.data import DataLoader

    where = [(name, (row, 7)) for row in range(0, 60, 6) for name in SHAPES]
    tiles = TileDataset(
        table_of(slides, where, (10, 12)), slides, size=(10, 12), spacing=SPACING,
        columns=["slide", "label", "x"],
    )  # fmt: skip
    loader = DataLoader(
        tiles, batch_size=8, shuffle=True, num_workers=2, multiprocessing_context=method,
        timeout=120,
    )  # fmt: skip
    wanted = expected(where, (10, 12))
    seen = []
    for batch in loader:
        for pixels, slide, label in zip(
            batch["pixels"].numpy(), batch["slide"], batch["label"].tolist(), strict=True
        ):
            np.testing.assert_array_equal(pixels, wanted[label])
            assert slide == where[label][0]
            seen.append(label)
    assert sorted(seen) == list(range(30))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize(("threads", "there", "here"), [(None, 1, -1), (3, 3, 3)])
def test_a_worker_of_pytorch_decodes_in_one_thread(slides, monkeypatch, threads, there, here):
    """Unless it is told otherwise; elsewhere the options say in how many."""
    need("torch")
    from torch.utils.data import DataLoader

    def read(self, key, *, threads=None):
        return np.full((len(self.first), 1), -1 if threads is None else threads)

    monkeypatch.setattr("dicomslide.readers.patch_reader.PatchReader.read", read)
    table = table_of(slides, [("S0", (0, 0))] * 2, (60, 60))
    tiles = TileDataset(table, slides, size=60, spacing=SPACING, threads=threads)
    assert [each.item() for each in tiles.__getitems__([0, 1])] == [here, here]
    (found,) = DataLoader(
        tiles, batch_size=2, num_workers=1, multiprocessing_context="fork", timeout=120
    )
    assert found.ravel().tolist() == [there, there]


def _cached(pixels):
    found = cached_bytes()
    return np.array([found.get("decoded frames", 0), found.get("decoded frames of tiles", 0)])


@pytest.mark.parametrize("frames", [0, 2, 100, None])
def test_tiles_have_a_cache_of_their_own_size(tissue_slide, frames_read, frames):
    slide = dicomslide.open_slide(tissue_slide)
    x_min, y_min, x_max, y_max = slide.physical_bounds
    table = {"x": [(x_min + x_max) / 2] * 2, "y": [(y_min + y_max) / 2] * 2}
    size, frame = 300, 256 * 256 * 3
    tiles = TileDataset(
        table,
        slide,
        size=size,
        spacing=slide.pixel_spacings[0][0],
        transform=_cached,
        frame_cache_bytes=None if frames is None else frames * frame,
    )
    tiles[0]
    touched = len(frames_read)
    of_process, of_tiles = tiles[1]
    assert touched == len(set(frames_read)) > 2
    assert of_process == (touched * frame if frames is None else 0)
    if frames is None:
        assert of_tiles == 0
    else:
        assert of_tiles == (touched * frame if frames == 100 else 0)  # all, or too many for it
    with pytest.raises(ValueError, match="frame_cache_bytes -1"):
        TileDataset(table, slide, size=size, spacing=0.001, frame_cache_bytes=-1)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_a_worker_of_pytorch_has_a_small_cache(hundred):
    need("torch")
    from torch.utils.data import DataLoader

    bounds = dicomslide.open_slide(hundred[0]).physical_bounds
    x, y = bounds[0] + 32 * SPACING, bounds[3] - 32 * SPACING
    tiles = TileDataset(
        {"slide": [hundred[0]] * 2, "x": [x] * 2, "y": [y] * 2},
        size=20, spacing=SPACING, transform=_cached,
    )  # fmt: skip
    tiles[0]  # opened here, too: a worker opens it anew
    loader = DataLoader(
        tiles, batch_size=1, num_workers=1, multiprocessing_context="fork", timeout=120
    )
    assert [each.tolist() for each in loader][-1] == [[0, 4 * 32 * 32 * 3]]


def test_pytorch_is_not_imported(folder):
    code = (
        "import sys, dicomslide\n"
        f"tiles = dicomslide.TileDataset({{'slide': [{str(folder / 'S0')!r}], 'x': [1.0],"
        " 'y': [1.0]}, size=8, spacing=0.001)\n"
        "next(iter(dicomslide.TileStream(tiles, dicomslide.BlockShuffle(tiles))))\n"
        "print({'torch', 'skimage'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


# -- what isn't a table ----------------------------------------------------------------------

TABLE = {"slide": ["S0", "S1"], "x": [1.0, 2.0], "y": [3.0, 4.0], "pixels": [0, 0]}


@pytest.mark.parametrize(
    ("table", "options", "error", "message"),
    [
        ({"x": [1.0], "y": [1.0]}, {}, KeyError, r"no columns \['slide'\]; there are \['x', 'y'\]"),
        (TABLE, {"columns": ["label", "x"]}, KeyError, r"no columns \['label'\]"),
        (TABLE, {"columns": ["pixels"]}, ValueError, "'pixels'"),
        (TABLE, {"columns": "x"}, TypeError, "expected a list"),
        (TABLE, {"size": None}, ValueError, "size and spacing"),
        (TABLE, {"spacing": None}, ValueError, "size and spacing"),
        (TABLE, {"size": (0, 4)}, ValueError, r"size \(0, 4\)"),
        (TABLE, {"spacing": "fine"}, ValueError, "spacing 'fine'"),
        (TABLE | {"x": [1.0, np.nan]}, {}, ValueError, "centre 1"),
        (TABLE | {"x": [1.0, pd.NA]}, {}, ValueError, "column 'x': row 1 is <NA>; expected mm"),
        (TABLE | {"x": ["1", "2"]}, {}, ValueError, "column 'x' holds <U1: expected numbers"),
        (TABLE | {"x": [1j, 2j]}, {}, ValueError, "column 'x' holds complex128"),
        (TABLE | {"x": pd.Series(["1", "2"])}, {}, ValueError, "column 'x': row 0 is '1'"),
        (TABLE | {"x": [True, False]}, {}, ValueError, "column 'x' holds bool"),
        (TABLE | {"x": 1.0}, {}, ValueError, "column 'x' is 1.0: expected a value per tile"),
        (TABLE | {"x": [[1.0], [2.0]]}, {}, ValueError, r"column 'x' of shape \(2, 1\)"),
        (TABLE | {"x": [1.0, [2.0]]}, {}, ValueError, "column 'x' isn't an array"),
        (TABLE | {"y": [1.0]}, {}, ValueError, "'y' has 1 values, and 'x' has 2"),
        (TABLE | {"x": [1.0] * 3}, {}, ValueError, "'y' has 2 values, and 'x' has 3"),
        (TABLE | {"slide": ["S0"]}, {}, ValueError, "'slide' has 1 values, and 'x' has 2"),
        (TABLE | {"slide": "S0"}, {}, ValueError, "column 'slide' is 'S0'"),
        (TABLE | {"slide": [["S0"], ["S1"]]}, {}, ValueError, r"'slide' of shape \(2, 1\)"),
        (TABLE | {"n": [7]}, {"columns": ["n"]}, ValueError, "'n' has 1 values, and 'x' has 2"),
        (TABLE | {"n": [7] * 3}, {"columns": ["n"]}, ValueError, "'n' has 3 values"),
        (TABLE | {"n": 7}, {"columns": ["n"]}, ValueError, "column 'n' is 7"),
        (TABLE, {"threads": 0}, ValueError, "threads 0: expected 1 or more"),
        (TABLE, {"threads": -1}, ValueError, "threads -1"),
        (TABLE, {"threads": "x"}, TypeError, "threads 'x': expected an integer from 1 on"),
        (TABLE, {"threads": 1.5}, TypeError, "threads 1.5"),
        (TABLE, {"max_open_slides": "x"}, TypeError, "max_open_slides 'x'"),
        (TABLE, {"frame_cache_bytes": "x"}, TypeError, "frame_cache_bytes 'x'"),
        (TABLE | {"slide": ["S0", None]}, {}, ValueError, "row 1 of the table has no name"),
        (TABLE, {"max_open_slides": 0}, ValueError, "max_open_slides 0"),
        (TABLE, {"slides": {"S0": "a"}}, KeyError, "no slide 'S1'"),
        (TABLE, {"slides": {}}, KeyError, "no slide 'S0' nor 1 others"),
        (TABLE, {"slides": "cohort/"}, TypeError, "slides of type str"),
        (TABLE, {"slides": ["a", "b"]}, TypeError, "slides of type list"),
    ],
)
def test_what_is_no_table_of_tiles_is_refused(table, options, error, message):
    with pytest.raises(error, match=message):
        TileDataset(table, **{"size": 4, "spacing": 0.001, **options})


def test_one_slide_is_not_many(slides):
    with pytest.raises(ValueError, match="one slide for tiles of 2 slides"):
        TileDataset(TABLE, slides["S0"], size=4, spacing=0.001)


def test_a_table_of_numbers_of_any_kind_is_taken(slides):
    x_min, y_min, _, _ = slides["S0"].physical_bounds
    places = np.array([x_min, x_min + 0.01]), np.array([y_min, y_min + 0.01])
    wanted = TileDataset(
        dict(zip("xy", places, strict=True)), slides["S0"], size=4, spacing=SPACING
    )
    for kind in ("object", "Float64"):
        table = pd.DataFrame(dict(zip("xy", places, strict=True))).astype(kind)
        tiles = TileDataset(table, slides["S0"], size=4, spacing=SPACING)
        np.testing.assert_array_equal(tiles.centers, wanted.centers)
    table = pd.DataFrame({"x": [1, 2], "y": [3, 4]}).astype("Int32")
    tiles = TileDataset(table, slides["S0"], size=4, spacing=SPACING)
    assert tiles.centers.tolist() == [[1.0, 3.0], [2.0, 4.0]]


def test_one_slide_with_the_table_of_another_warns(folder, slides):
    slide = dicomslide.open_slide(folder / "S0")
    file = slide.levels[0].image.name
    table = {"x": [1.0], "y": [1.0]}
    with pytest.warns(
        dicomslide.MetadataWarning, match="tiles of 'S1'.* the one slide given, 'S0'"
    ):
        TileDataset(table | {"slide": ["S1"]}, slide, size=4, spacing=SPACING)
    with pytest.warns(dicomslide.MetadataWarning, match="tiles of"):
        TileDataset(table | {"slide": [folder / "S1"]}, slide, size=4, spacing=SPACING)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in (
            "S0", folder / "S0", str(folder / "S0") + "/", file, slide.name, folder,
            os.path.relpath(folder / "S0"), str(folder / "S*" / "*.dcm"), "S0/pyramid-0",
            Path(file).stem,
        ):  # fmt: skip
            TileDataset(table | {"slide": [name]}, slide, size=4, spacing=SPACING)
        TileDataset({"slide": [], "x": [], "y": []}, slide, size=4, spacing=SPACING)


def test_positions_far_beyond_any_slide_are_background(slides):
    table = {"x": [-1e300, 1e300, 1.0], "y": [1.0, 1e308, -1e308]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = TileDataset(table, slides["S0"], size=4, spacing=SPACING).read([0, 1, 2])
    assert (found == 255).all()


@pytest.mark.parametrize("spacing", [1.5e-8, 1e-10, 1e-12, 1e-300])
def test_pixels_far_smaller_than_those_of_the_slide_are_refused(slides, spacing):
    slide, (x, y) = slides["S0"], slides["S0"].physical_bounds[:2]
    tiles = TileDataset({"x": [x], "y": [y]}, slide, size=4, spacing=spacing)
    reads = [
        lambda: tiles[0],
        lambda: dicomslide.SlideSampler(slide, (4, 4), spacing=spacing),
        lambda: dicomslide.SlideSampler(slide, (4, 4), spacing=spacing, centers=[(x, y)]),
        lambda: slide.to_dataset(spacing=spacing),
        lambda: slide.to_datatree(spacings=[spacing]),
        lambda: slide.region((x, x + 0.01), (y, y + 0.01), spacing=spacing),
        lambda: slide.patches([(x, y)], (4, 4), spacing=spacing),
    ]
    for read in reads:
        with pytest.raises(ValueError, match="at least a thousandth of that of the base level"):
            read()


@pytest.mark.parametrize("part", [7, 300, 999])
def test_pixels_smaller_than_those_of_the_slide_repeat_these(slides, part):
    spacing = SPACING / part
    x_min, _, _, y_max = slides["S0"].physical_bounds
    x, y = x_min + 20.5 * SPACING, y_max - 30.5 * SPACING
    tiles = TileDataset({"x": [x], "y": [y]}, slides["S0"], size=4, spacing=spacing)
    wanted = np.broadcast_to(ARRAYS["S0"][MARGIN + 30, MARGIN + 20], (4, 4, 3))
    np.testing.assert_array_equal(tiles[0], wanted)


def test_what_is_no_index_is_refused(slides):
    tiles = TileDataset(TABLE, slides, size=4, spacing=0.001)
    for wrong in (2, -3, [2], [0.5], [True, False, True]):
        with pytest.raises(IndexError):
            tiles[wrong]
    for wrong in ([2], [-3], [0.5]):
        for read in (tiles.read, tiles.__getitems__):
            with pytest.raises(IndexError):
                read(wrong)
    with pytest.raises(IndexError):
        tiles.get_position(2)
    with pytest.raises(TypeError):
        tiles[1.5]
    with pytest.raises(ValueError, match="no tiles"):
        tiles.read([])
    assert tiles.__getitems__([]) == []
    assert len(tiles[[]]) == 0
    assert tiles.get_position(-1) == ("S1", 2.0, 4.0)


def test_slides_of_other_samples_are_read_one_by_one_but_not_as_one_array(slides, tmp_path):
    write_slide(
        tmp_path / "grey", shape=(60, 80), tile_shape=(32, 32), downsamples=(1,), samples=1,
        drawing="position", transfer_syntax_uid=NATIVE, associated=False,
    )  # fmt: skip
    tiles = TileDataset(TABLE, {"S0": slides["S0"], "S1": tmp_path / "grey"}, size=4, spacing=0.001)
    assert [tile.shape for tile in tiles.__getitems__([0, 1])] == [(4, 4, 3), (4, 4, 1)]
    with pytest.raises(ValueError, match="2 shapes and types"):
        tiles.read([0, 1])
