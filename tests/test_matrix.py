"""A total pixel matrix is indexed like the NumPy array that it stands for."""

from __future__ import annotations

import gc
import pickle
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import dask
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import dicomslide
from dicomslide.backends.part10.file import FileSource
from dicomslide.header.geometry import SlideGeometry
from dicomslide.pixels import PixelFormat
from dicomslide.readers import frame_reader, pools
from dicomslide.readers.arrays import ReaderArray
from dicomslide.testing import (
    PositionDrawing,
    SyntheticImage,
    position_values,
    write_image,
    write_slide,
)
from dicomslide.testing.image import srgb_profile
from tests.support.profiles import swapped_profile

SHAPE = (23, 31)
TILE = (7, 10)
FORMATS = {
    "uint8 RGB": PixelFormat(rows=TILE[0], columns=TILE[1], samples=3),
    "uint16": PixelFormat(rows=TILE[0], columns=TILE[1], bits_allocated=16, bits_stored=16),
    "bool": PixelFormat(rows=TILE[0], columns=TILE[1], bits_allocated=1, bits_stored=1),
    "int16": PixelFormat(
        rows=TILE[0], columns=TILE[1], bits_allocated=16, bits_stored=16, signed=True
    ),
    "float32": PixelFormat(
        rows=TILE[0], columns=TILE[1], bits_allocated=32, bits_stored=32, floating=True
    ),
    "float64": PixelFormat(
        rows=TILE[0], columns=TILE[1], bits_allocated=64, bits_stored=64, floating=True
    ),
}
ABSENT = frozenset({(0, 1), (3, 3), (2, 0)})


def geometry(shape=SHAPE):
    return SlideGeometry((10.0, 20.0), (0.0, -1.0), (-1.0, 0.0), (0.001, 0.001), shape)


def as_described(fmt):
    """Return what changes a header where the writer of tests knows unsigned integers only."""

    def change(dataset):
        dataset.PixelRepresentation = int(fmt.signed)
        if fmt.floating:
            dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.30"
            del dataset.PixelRepresentation

    return change


@pytest.fixture(scope="module")
def matrices(tmp_path_factory):
    """Matrix and the array that it stands for, by kind of pixel."""
    folder = tmp_path_factory.mktemp("matrices")
    made = {}
    for name, fmt in [*FORMATS.items(), ("with absent tiles", FORMATS["uint8 RGB"])]:
        absent = ABSENT if name == "with absent tiles" else frozenset()
        drawing = PositionDrawing(fmt.samples, fmt.dtype)
        image = SyntheticImage(
            geometry=geometry(),
            drawing=drawing,
            pixel_format=fmt,
            sparse=bool(absent),
            absent=absent,
        )
        path = write_image(folder / f"{name}.dcm", image, change=as_described(fmt))
        source = FileSource.open(path)
        matrix = dicomslide.TotalPixelMatrix(source, source.metadata, correct_color=False)
        array = position_values(
            np.arange(SHAPE[0]), np.arange(SHAPE[1]), samples=fmt.samples, dtype=fmt.dtype
        )
        for r, c in absent:
            array[r * 7 : r * 7 + 7, c * 10 : c * 10 + 10] = 255
        made[name] = matrix, array
    return made


def keys(shape):
    """Keys of three axes: integers, slices, Ellipsis, and what may be left out."""
    return hnp.basic_indices(shape, allow_ellipsis=True, allow_newaxis=False).filter(
        lambda key: isinstance(key, tuple) and (len(key) > 1 or key == (Ellipsis,))
    )


def as_documented(array, key):
    """NumPy's result, but an integer sample keeps its axis."""
    parts = list(key)
    dots = [i for i, part in enumerate(parts) if part is Ellipsis]
    if dots:
        at = dots[0]
        parts[at : at + 1] = [slice(None)] * (3 - len(parts) + 1)
    if len(parts) == 3 and isinstance(parts[2], int):
        sample = parts[2] % array.shape[2]
        parts[2] = slice(sample, sample + 1)
    return array[tuple(parts)]


@pytest.mark.parametrize("kind", [*FORMATS, "with absent tiles"])
def test_basic_indexing_is_numpys(matrices, kind):
    matrix, array = matrices[kind]
    assert (matrix.shape, matrix.dtype, matrix.ndim) == (array.shape, array.dtype, 3)
    assert (matrix.size, matrix.nbytes) == (array.size, array.nbytes)

    @given(keys(array.shape))
    @settings(deadline=None, max_examples=80)
    def check(key):
        result = matrix[key]
        expected = as_documented(array, key)
        assert result.dtype == expected.dtype
        np.testing.assert_array_equal(result, expected)

    check()


@st.composite
def fancy_keys(draw, shape):
    """Keys with arrays of integers or booleans on one or more axes."""

    def axis(length):
        integers = st.integers(-length, length - 1)
        return st.one_of(
            st.slices(length),
            integers,
            st.lists(integers, max_size=6),
            hnp.arrays(np.bool_, length),
        )

    return tuple(draw(axis(length)) for length in shape)


@pytest.mark.parametrize("kind", ["uint8 RGB", "bool", "with absent tiles"])
def test_fancy_indexing_is_numpys(matrices, kind):
    matrix, array = matrices[kind]

    @given(fancy_keys(array.shape))
    @settings(deadline=None, max_examples=150)
    def check(key):
        plain = tuple(np.array(k, int) if isinstance(k, list) else k for k in key)
        try:
            expected = as_documented(array, plain)
        except IndexError:  # arrays that don't broadcast
            with pytest.raises(IndexError):
                matrix[key]
            return
        np.testing.assert_array_equal(matrix[key], expected)

    check()


@pytest.mark.parametrize(
    "key",
    [
        (np.array([[0, 5], [22, -1]]), slice(None)),
        (3, [1, 30, 2]),
        ([0, 22], 4, [0, 2]),
        (slice(None), np.array([[1], [2]]), np.array([[0, 1]])),
        ([], slice(None)),
        (np.int16(3), np.uint8(4), slice(None)),
    ],
)
def test_arrays_of_any_shape_and_mixed_with_integers(matrices, key):
    matrix, array = matrices["uint8 RGB"]
    plain = tuple(np.array(k, int) if isinstance(k, list) else k for k in key)
    np.testing.assert_array_equal(matrix[key], array[plain])


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_dask_array_slices_like_numpy(matrices, data):
    matrix, array = matrices["uint8 RGB"]
    chunks = data.draw(st.sampled_from(["frames", "auto", 5, 20]))
    lazy = matrix.to_dask(chunks)
    first = data.draw(hnp.basic_indices(array.shape, allow_newaxis=False))
    expected, result = array[first], lazy[first]
    if expected.ndim:  # and once more, so that slices are fused
        second = data.draw(hnp.basic_indices(expected.shape, allow_newaxis=False))
        expected, result = expected[second], result[second]
    np.testing.assert_array_equal(result.compute(scheduler="sync"), expected)


def test_dask_chunks_are_frames(matrices):
    matrix, array = matrices["uint16"]
    lazy = matrix.to_dask()
    assert lazy.chunks == ((7, 7, 7, 2), (10, 10, 10, 1), (1,))
    assert matrix.to_dask(20).chunks[:2] == ((21, 2), (20, 11))
    assert matrix.to_dask("auto").chunks[:2] == ((23,), (31,))
    np.testing.assert_array_equal(lazy.compute(scheduler="threads"), array)
    assert matrix.to_dask(-1).chunks == ((23,), (31,), (1,))
    assert matrix.to_dask({0: 10, 1: -1}).chunks == ((14, 9), (31,), (1,))
    for wrong in (0, -2, "frame", 2.5, True):
        with pytest.raises(ValueError, match="chunks must be"):
            matrix.to_dask(wrong)
    assert matrix.to_dask({"row": 10, "column": -1}).chunks == ((14, 9), (31,), (1,))
    assert matrix.to_dask({1: np.array([20, 11])}).chunks[1] == (20, 11)
    wrong_ones = [
        {3: 1}, {0: "all"}, {0: (7, 7)}, {0: (8, 15)}, {0: 0}, {0: True}, {"rows": 5}, {"y": 5},
        {"row": 0},
    ]  # fmt: skip
    for wrong in wrong_ones:
        with pytest.raises(ValueError, match="chunks"):
            matrix.to_dask(wrong)


def test_what_tasks_read_is_contiguous(matrices):
    matrix, array = matrices["uint8 RGB"]
    for key in ((slice(None), slice(None), 1), (slice(None), slice(9, 2, -1), slice(1, None))):
        region = ReaderArray(matrix._reader)[key]
        assert region.flags.c_contiguous
        np.testing.assert_array_equal(region, array[key])


def test_dask_reads_only_the_frames_of_a_region(matrices, frames_read):
    matrix, array = matrices["uint16"]
    lazy = matrix.to_dask("auto")[8:13, 11:19]
    np.testing.assert_array_equal(lazy.compute(scheduler="sync"), array[8:13, 11:19])
    assert frames_read == [5]
    frames_read.clear()
    dicomslide.clear_all("decoded frames")
    np.testing.assert_array_equal(matrix[[0, 22], [0, 30], :], array[[0, 22], [0, 30], :])
    assert sorted(frames_read) == [0, 15]


def test_tiles_are_row_major_and_whole(matrices):
    matrix, array = matrices["uint8 RGB"]
    assert matrix.tile_grid_shape == (4, 4)
    assert len(matrix) == matrix.num_tiles == 16
    assert matrix.tile_shape == (7, 10, 3)
    assert matrix.tile_size == 210
    stack = matrix[2:6]
    assert stack.shape == (4, 7, 10, 3)
    for i, tile in enumerate(matrix):
        (row, column), size = matrix.get_tile_bounding_box(i)
        assert size == (7, 10)
        assert tuple(matrix.tile_positions[i]) == (row, column) == matrix.get_tile_position(i)
        assert tuple(matrix.tile_grid_positions[i]) == matrix.get_tile_grid_position(i)
        part = array[row : row + 7, column : column + 10]
        np.testing.assert_array_equal(tile[: part.shape[0], : part.shape[1]], part)
        if 2 <= i < 6:
            np.testing.assert_array_equal(stack[i - 2], tile)
    np.testing.assert_array_equal(matrix[-1], matrix[15])
    np.testing.assert_array_equal(matrix[[3, -1]], np.stack([matrix[3], matrix[15]]))
    np.testing.assert_array_equal(matrix[np.arange(16) == 5], matrix[5:6])
    np.testing.assert_array_equal(matrix[::-5], np.stack([matrix[i] for i in (15, 10, 5, 0)]))


@pytest.mark.parametrize("kind", ["uint8 RGB", "uint16", "bool", "with absent tiles"])
def test_keys_of_tiles_are_numpys_on_the_stack_of_tiles(matrices, kind):
    matrix, array = matrices[kind]
    # the writer repeats the last row and column in edge tiles; an absent tile is background
    wide = np.pad(array, ((0, 5), (0, 9), (0, 0)), mode="edge")
    stack = wide.reshape(4, 7, 4, 10, -1).swapaxes(1, 2).reshape(16, 7, 10, -1)
    assert list(map(tuple, matrix.tile_grid_positions)) == list(np.ndindex(4, 4))

    @given(
        st.one_of(
            st.integers(-16, 15),
            st.integers(-16, 15).map(np.int16),
            st.slices(16),
            st.lists(st.integers(-16, 15), max_size=8),
            hnp.arrays(np.int64, st.integers(0, 8), elements=st.integers(-16, 15)),
            hnp.arrays(np.bool_, 16),
            hnp.arrays(np.bool_, 16).map(list),
            st.builds(range, st.integers(0, 15), st.integers(0, 16)),
        )
    )
    def check(key):
        plain = np.array(key, int) if isinstance(key, (list, range)) and not len(key) else key
        expected = stack[list(plain) if isinstance(plain, range) else plain]
        result = matrix[key]
        assert result.dtype == expected.dtype
        np.testing.assert_array_equal(result, expected)

    check()


def test_iterators_are_independent(matrices):
    matrix, _ = matrices["with absent tiles"]
    stack = matrix[:]
    pairs = [(a, b) for a in matrix for b in matrix]
    assert len(pairs) == 256
    for i, (a, b) in enumerate(pairs):
        np.testing.assert_array_equal(a, stack[i // 16])
        np.testing.assert_array_equal(b, stack[i % 16])


def test_tile_index_by_position_and_frame(matrices):
    matrix, _ = matrices["uint16"]
    assert matrix.get_tile_index((2, 3)) == matrix.get_tile_index(position=(2, 3)) == 11
    assert matrix.get_tile_index(2, 3) == 11
    assert matrix.get_tile_index(frame_number=12) == 11
    with pytest.raises(IndexError, match="grid of 4 × 4"):
        matrix.get_tile_index((4, 0))
    with pytest.raises(IndexError, match="frame 17"):
        matrix.get_tile_index(frame_number=17)
    with pytest.raises(TypeError):
        matrix.get_tile_index()
    with pytest.raises(TypeError):
        matrix.get_tile_index((0, 0), 1)
    with pytest.raises(TypeError, match="two integers"):  # not the tile halfway, which is none
        matrix.get_tile_index((2.5, 1))
    for index in (16, -17):
        for get in (
            matrix.get_tile_position,
            matrix.get_tile_grid_position,
            matrix.get_tile_bounding_box,
        ):
            with pytest.raises(IndexError):
                get(index)


def test_frames_of_a_label_map_are_tiles_of_each_segment(tmp_path):
    from pydicom.dataset import Dataset

    def as_label_map(dataset):
        dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.66.7"
        dataset.SegmentationType = "LABELMAP"
        dataset.SegmentSequence = [Dataset(), Dataset()]
        for number, segment in enumerate(dataset.SegmentSequence, start=1):
            segment.SegmentNumber = number

    fmt = PixelFormat(rows=TILE[0], columns=TILE[1])
    image = SyntheticImage(
        geometry=geometry(), drawing=PositionDrawing(1, np.uint8), pixel_format=fmt
    )
    source = FileSource.open(write_image(tmp_path / "map.dcm", image, change=as_label_map))
    for channel in (0, 1):
        matrix = dicomslide.TotalPixelMatrix(source, source.metadata, channel)
        assert matrix.dtype == bool
        assert matrix.get_tile_index(frame_number=12) == 11


@pytest.mark.parametrize(
    "key",
    [
        (23, 0),
        (0, -32),
        (0, 0, 3),
        16,
        -17,
        [16],
        (slice(None), [31]),
        (0, 0, 0, 0),
        (None, 0),
        (..., ...),
        (True, 0),
        (np.zeros(5, bool), 0),
        (0.5, 0),
        ("a", 0),
        1.5,
        None,
        True,
        [[0, 1]],
        np.zeros((2, 2), int),
        np.zeros(15, bool),
        np.zeros(SHAPE, bool),
        (np.zeros(SHAPE, bool), slice(None)),
        (np.zeros(SHAPE, bool), 0),
    ],
)
def test_impossible_keys_raise_index_error(matrices, key):
    matrix, _ = matrices["uint8 RGB"]
    with pytest.raises(IndexError):
        matrix[key]


def test_numpy_protocol(matrices):
    matrix, array = matrices["uint16"]
    np.testing.assert_array_equal(np.asarray(matrix), array)
    assert np.asarray(matrix, dtype=float).dtype == float
    with pytest.raises(ValueError, match="without a copy"):
        np.array(matrix, copy=False)


def test_results_belong_to_the_caller(matrices):
    matrix, array = matrices["uint8 RGB"]
    for key in (0, (..., 0), (slice(0, 7), slice(0, 10))):
        result = matrix[key]
        result[...] = 0  # neither read-only nor a view of what is cached
    np.testing.assert_array_equal(matrix[...], array)


def test_memory_is_checked_before_it_is_allocated(matrices):
    matrix, _ = matrices["uint8 RGB"]
    with dicomslide.set_options(memory_limit_bytes=1000):
        with pytest.raises(dicomslide.MemoryLimitError, match="limit of 1,000 bytes"):
            matrix[...]
        with pytest.raises(dicomslide.MemoryLimitError):
            matrix[:]
        assert matrix[:5, :5].shape == (5, 5, 3)


def test_names_are_the_same_in_every_process(matrices):
    matrix, _ = matrices["uint8 RGB"]
    copy = pickle.loads(pickle.dumps(matrix))
    assert copy.to_dask().name == matrix.to_dask().name
    assert matrix.to_dask("auto").name != matrix.to_dask().name
    assert dask.base.tokenize(copy) == dask.base.tokenize(matrix)
    assert len(pickle.dumps(matrix)) < 1000


def test_threads_agree(matrices):
    matrix, array = matrices["uint8 RGB"]
    rng = np.random.default_rng(0)
    corners = rng.integers(0, (SHAPE[0] - 5, SHAPE[1] - 8), (1000, 2))

    def read(corner):
        r, c = corner
        return matrix[r : r + 5, c : c + 8]

    with ThreadPoolExecutor(8) as pool:
        for (r, c), region in zip(corners, pool.map(read, corners), strict=True):
            np.testing.assert_array_equal(region, array[r : r + 5, c : c + 8])


@pytest.mark.parametrize("order", ["row-major", "reversed"])
@pytest.mark.parametrize("table", ["basic", "extended", "empty"])
def test_sparse_images_have_background_where_tiles_are_absent(tmp_path, order, table):
    fmt = FORMATS["uint16"]
    absent = frozenset({(0, 1), (3, 3), (2, 0)})
    image = SyntheticImage(
        geometry=geometry(),
        drawing=PositionDrawing(1, fmt.dtype),
        pixel_format=fmt,
        sparse=True,
        absent=absent,
        order=order,
        offset_table=table,
        transfer_syntax_uid="1.2.840.10008.1.2.4.80",
    )
    source = FileSource.open(write_image(tmp_path / "sparse.dcm", image))
    matrix = dicomslide.TotalPixelMatrix(source, source.metadata)
    expected = position_values(np.arange(23), np.arange(31), samples=1, dtype=np.uint16)
    for r, c in absent:
        expected[r * 7 : r * 7 + 7, c * 10 : c * 10 + 10] = 0
    np.testing.assert_array_equal(matrix[...], expected)
    np.testing.assert_array_equal(
        matrix[[0, 14, 22], [12, 3, 30]], expected[[0, 14, 22], [12, 3, 30]]
    )
    assert not matrix[1].any()
    assert matrix.num_tiles == 16
    assert matrix.get_tile_index(frame_number=1) == (0 if order == "row-major" else 14)


def test_absent_colour_tiles_are_the_recommended_colour(tmp_path):
    fmt = FORMATS["uint8 RGB"]
    image = SyntheticImage(
        geometry=geometry(),
        drawing=PositionDrawing(3, np.uint8),
        pixel_format=fmt,
        sparse=True,
        absent=frozenset({(1, 1)}),
    )
    white = FileSource.open(write_image(tmp_path / "white.dcm", image))
    matrix = dicomslide.TotalPixelMatrix(white, white.metadata, correct_color=False)
    assert np.all(matrix[5] == 255)

    def mid_grey(dataset):
        dataset.RecommendedAbsentPixelCIELabValue = [35130, 32896, 32896]  # L* 53.6, a* b* 0

    grey = FileSource.open(write_image(tmp_path / "grey.dcm", image, change=mid_grey))
    matrix = dicomslide.TotalPixelMatrix(grey, grey.metadata, correct_color=False)
    assert np.unique(matrix[5]).tolist() == [128]


class Careless(FileSource):
    """A source that answers with another number of frames than asked for."""

    def read_frames(self, indices):
        frames = super().read_frames(indices)
        return frames[:-1] if self.sop_instance_uid.endswith("-") else [*frames, b""]


@pytest.mark.parametrize("on_error", ["raise", "fill"])
@pytest.mark.parametrize("fault", ["-", "+"])
def test_another_number_of_frames_than_asked_for_is_an_error(matrices, fault, on_error):
    source = matrices["uint16"][0]._reader.source
    careless = Careless(source.path, source.sop_instance_uid + fault, source.size, source.mtime_ns)
    matrix = dicomslide.TotalPixelMatrix(careless, source.metadata, on_error=on_error)
    for key in (0, slice(2, 6), (slice(0, 14), slice(0, 20))):
        with pytest.raises(dicomslide.FrameReadError, match=r"frames came for \d+ that were asked"):
            matrix[key]


def test_each_optical_path_has_its_own_profile(tmp_path):
    from highdicom.color import ColorManager

    profiles = {
        "sRGB": srgb_profile(),
        "swapped": swapped_profile(),
        "broken": b"no profile at all",
    }

    def with_profiles(dataset):
        for item in dataset.OpticalPathSequence:
            item.ICCProfile = profiles[item.OpticalPathIdentifier]

    image = SyntheticImage(
        geometry=geometry(),
        drawing=PositionDrawing(3, np.uint8),
        pixel_format=FORMATS["uint8 RGB"],
        optical_paths=tuple(profiles),
    )
    source = FileSource.open(write_image(tmp_path / "paths.dcm", image, change=with_profiles))

    def pixels(channel, **options):
        return dicomslide.TotalPixelMatrix(source, source.metadata, channel, **options)[...]

    for channel, name in enumerate(profiles):
        stored = pixels(channel, correct_color=False)
        if name == "broken":
            with pytest.warns(dicomslide.MetadataWarning, match=r"paths\.dcm.*stay as stored"):
                np.testing.assert_array_equal(pixels(channel), stored)
        else:
            expected = ColorManager(profiles[name]).transform_frame(stored)
            np.testing.assert_array_equal(pixels(channel), expected)
            assert np.any(expected != stored) == (name == "swapped")


def test_frame_cache_is_bounded_in_bytes_and_frames(matrices):
    matrix, _ = matrices["uint8 RGB"]
    cache = frame_reader._frames
    matrix[...]
    assert cache.nbytes == 9 * 7 * 10 * 3  # max_frame_cache_size
    cache.clear()
    with dicomslide.set_options(frame_cache_bytes=3 * 210):
        matrix[...]
        assert cache.nbytes == 3 * 210


def test_kept_frames_hold_no_more_memory_than_is_counted(tmp_path):
    fmt = PixelFormat(rows=64, columns=64, samples=3)
    image = SyntheticImage(
        geometry=geometry((64, 640)), drawing=PositionDrawing(3, np.uint8), pixel_format=fmt
    )
    source = FileSource.open(write_image(tmp_path / "native.dcm", image))
    matrix = dicomslide.TotalPixelMatrix(
        source, source.metadata, max_frame_cache_size=1, correct_color=False
    )
    matrix[:1, :1]
    cache = frame_reader._frames
    cache.clear()
    with dicomslide.set_options(num_threads=1):
        tracemalloc.start()
        try:
            matrix[...]  # ten frames, read from the file at once
            gc.collect()
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert cache.nbytes == 64 * 64 * 3
    assert held < 3 * cache.nbytes


def test_frames_that_take_long_to_decode_are_kept_unless_they_are_a_stream(tmp_path, frames_read):
    (path,) = write_slide(
        tmp_path,
        shape=(100, 130),
        downsamples=(1,),
        tile_shape=(25, 26),
        transfer_syntax_uid="1.2.840.10008.1.2.4.90",
        associated=False,
    )
    slide = dicomslide.open_slide(path, correct_color=False)
    cache, frame = frame_reader._frames, 25 * 26 * 3
    first = slide.get_image_region((0, 0), 0, (100, 130))
    np.testing.assert_array_equal(slide.get_image_region((0, 0), 0, (100, 130)), first)
    assert len(frames_read) == 20
    assert cache.nbytes == 20 * frame
    cache.clear()
    with dicomslide.set_options(frame_cache_bytes=4 * 20 * frame - 1):
        np.testing.assert_array_equal(slide.get_image_region((0, 0), 0, (100, 130)), first)
        assert cache.nbytes == 0
        slide.get_image_region((0, 0), 0, (25, 130))
        assert cache.nbytes == 5 * frame


def test_reads_of_any_number_of_frames_share_their_threads(matrices):
    matrix, _ = matrices["uint8 RGB"]
    with dicomslide.set_options(num_threads=5):
        matrix[...]
        pool = pools._decoding.get(4, make=lambda: None)
        for tiles in range(1, 10):
            dicomslide.clear_all("decoded frames")
            matrix[:tiles]
            assert pools._decoding.get(4, make=lambda: None) is pool


def test_threads_are_named_by_their_pool():
    names: list[str] = []

    def note():
        names.append(threading.current_thread().name)

    pools.submit_decoding(note, calls=1, pool_size=1)[0].result()
    pools.submit_request(note).result()
    decoding, requesting = names
    assert decoding.startswith("dicomslide-decode_")
    assert requesting.startswith("dicomslide-fetch_")


def test_at_most_so_many_frames_are_kept_as_asked_for(tissue_slide):
    slide = dicomslide.open_slide(tissue_slide, max_frame_cache_size=2)
    pixels = slide.get_image_region((0, 0), 0, (600, 900))
    assert frame_reader._frames.nbytes == 2 * 256 * 256 * 3
    slide.get_image_region((600, 0), 0, (600, 900))  # in memory that frames share by turns
    np.testing.assert_array_equal(slide.get_image_region((0, 0), 0, (600, 900)), pixels)


def test_tasks_and_iteration_keep_no_frames(matrices):
    matrix, array = matrices["uint8 RGB"]
    np.testing.assert_array_equal(matrix.to_dask().compute(), array)
    tiles = list(matrix)
    np.testing.assert_array_equal(tiles[0], array[:7, :10])
    assert frame_reader._frames.nbytes == 0
    tiles[0][...] = 1  # each is the caller's own
    matrix[0][...] = 2
    np.testing.assert_array_equal(matrix[0], array[:7, :10])
    np.testing.assert_array_equal(next(iter(matrix)), array[:7, :10])


def test_wrong_channel_or_plane_is_a_value_error(matrices):
    matrix, _ = matrices["uint16"]
    source = matrix._reader.source
    for kwargs in ({"channel_index": 1}, {"channel_index": -1}, {"focal_plane_index": 2}):
        with pytest.raises(ValueError, match=r"no (channel|focal plane)"):
            dicomslide.TotalPixelMatrix(source, source.metadata, **kwargs)
    with pytest.raises(ValueError, match="on_error"):
        dicomslide.TotalPixelMatrix(source, source.metadata, on_error="ignore")


def test_a_client_of_another_kind_is_a_type_error(matrices):
    matrix, _ = matrices["uint16"]
    with pytest.raises(TypeError, match="FrameStore"):
        dicomslide.TotalPixelMatrix(object(), matrix._reader.source.metadata)


def test_reading_in_threads_gives_the_same(matrices):
    matrix, array = matrices["uint8 RGB"]
    for num_threads in (1, 2, 7):
        dicomslide.clear_all("decoded frames")
        with dicomslide.set_options(num_threads=num_threads):
            np.testing.assert_array_equal(matrix[:, :], array)
