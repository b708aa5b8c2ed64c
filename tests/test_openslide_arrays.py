"""Regions as arrays, and what else callers of tiffslide use; regions with absent tiles."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import dicomslide
from dicomslide import openslide
from dicomslide.testing import position_values, write_slide

pytestmark = pytest.mark.filterwarnings("ignore::dicomslide.MetadataWarning")

EXPLICIT = "1.2.840.10008.1.2.1"
ROWS, COLUMNS = 150, 230
TILE = 32, 48
ABSENT = (0, 0), (1, 1), (1, 2), (2, 4), (4, 3), (4, 4)
"""(row, column) of tiles without a frame; some are cropped by the edge, some are neighbours."""


def write(folder, **more):
    kw = dict(
        shape=(ROWS, COLUMNS), downsamples=(1, 2), tile_shape=TILE, drawing="position",
        transfer_syntax_uid=EXPLICIT, associated=False,
    )  # fmt: skip
    return write_slide(folder, **kw | more)[0]


def stored(rows=ROWS, columns=COLUMNS, absent=(), **kw):
    """What is stored, and where."""
    pixels = position_values(np.arange(rows), np.arange(columns), **kw)
    is_there = np.ones((rows, columns), np.bool_)
    for row, column in absent:
        top, left = row * TILE[0], column * TILE[1]
        is_there[top : top + TILE[0], left : left + TILE[1]] = False
    return pixels, is_there


def cut(whole, x, y, width, height):
    """Cut a region that may reach outside, where it is 0."""
    out = np.zeros((height, width, *whole.shape[2:]), whole.dtype)
    for row in range(max(y, 0), min(y + height, len(whole))):
        left, right = max(x, 0), min(x + width, whole.shape[1])
        if left < right:
            out[row - y, left - x : right - x] = whole[row, left:right]
    return out


@pytest.fixture(scope="module", params=[(), ABSENT], ids=["complete", "sparse"])
def colour(request, tmp_path_factory):
    """A slide in colour, what is stored, and where."""
    folder = tmp_path_factory.mktemp("colour")
    sparse = dict(sparse=True, absent=request.param) if request.param else {}
    slide = openslide.OpenSlide(write(folder, **sparse))
    return slide, *stored(absent=request.param)


boxes = st.tuples(
    st.integers(-60, COLUMNS + 20), st.integers(-60, ROWS + 20),
    st.integers(0, COLUMNS + 80), st.integers(0, ROWS + 80),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(box=boxes)
def test_any_region_is_opaque_where_tiles_are_and_transparent_elsewhere(colour, box):
    slide, pixels, is_there = colour
    x, y, width, height = box
    alpha = cut(is_there, *box).astype(np.uint8) * np.uint8(255)
    expected = np.dstack([cut(pixels, *box) * (alpha[..., np.newaxis] > 0), alpha])
    picture = slide.read_region((x, y), 0, (width, height))
    assert (picture.mode, picture.size) == ("RGBA", (width, height))
    np.testing.assert_array_equal(np.asarray(picture), expected)
    array = slide.read_region((x, y), 0, (width, height), as_array=True)
    assert (array.dtype, array.shape) == (np.uint8, (height, width, 3))
    np.testing.assert_array_equal(array, expected[..., :3])


@settings(max_examples=60, deadline=None)
@given(box=boxes)
def test_without_padding_a_region_ends_where_the_slide_ends(colour, box):
    slide, pixels, is_there = colour
    x, y, width, height = box
    rows = slice(*(min(max(edge, 0), ROWS) for edge in (y, y + height)))
    columns = slice(*(min(max(edge, 0), COLUMNS) for edge in (x, x + width)))
    expected = (pixels * is_there[..., np.newaxis])[rows, columns]
    array = slide.read_region((x, y), 0, (width, height), as_array=True, padding=False)
    np.testing.assert_array_equal(array, expected)
    picture = slide.read_region((x, y), 0, (width, height), padding=False)
    assert picture.size == expected.shape[1::-1]
    np.testing.assert_array_equal(np.asarray(picture)[..., :3], expected)


def test_a_region_is_the_callers_own(colour):
    slide, pixels, _ = colour
    x, y = COLUMNS - TILE[1], 2 * TILE[0]
    expected = pixels[y : y + 10, x : x + 10]
    for _ in range(2):
        array = slide.read_region((x, y), 0, (10, 10), as_array=True)
        np.testing.assert_array_equal(array, expected)
        array[...] = 7
        picture = slide.read_region((x, y), 0, (10, 10))
        np.testing.assert_array_equal(np.asarray(picture)[..., :3], expected)
        picture.paste((1, 2, 3, 4), (0, 0, 10, 10))
        assert picture.getpixel((5, 5)) == (1, 2, 3, 4)


def test_a_level_that_is_not_there_is_empty_or_an_error(colour):
    slide, *_ = colour
    for level in (-1, 2, 9):
        empty = slide.read_region((0, 0), level, (5, 4), as_array=True)
        assert empty.shape == (4, 5, 3)
        assert not empty.any()
        assert not np.asarray(slide.read_region((0, 0), level, (5, 4))).any()
        with pytest.raises(IndexError, match=rf"no level {level}; there are 2"):
            slide.read_region((0, 0), level, (5, 4), padding=False)


def test_an_array_as_large_as_no_memory_is_a_clear_error(colour):
    slide, *_ = colour
    with pytest.raises(dicomslide.MemoryLimitError):
        slide.read_region((0, 0), 0, (10**7, 10**7), as_array=True)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_an_array_has_all_bits_that_are_stored(tmp_path, bits):
    slide = openslide.OpenSlide(
        write(tmp_path, samples=1, bits=bits, shape=(15, 230), sparse=True, absent=[(0, 1)])
    )
    file = pydicom.dcmread(tmp_path / "level-0.dcm")
    whole = np.zeros((TILE[0], 5 * TILE[1]), file.pixel_array.dtype)
    for frame, at in zip(file.pixel_array, (0, 2, 3, 4), strict=True):
        whole[:, at * TILE[1] : (at + 1) * TILE[1]] = frame
    expected = cut(whole[:15, :230, np.newaxis], -5, -2, 240, 20)
    array = slide.read_region((-5, -2), 0, (240, 20), as_array=True)
    assert array.dtype == (np.uint8 if bits == 8 else np.uint16)
    np.testing.assert_array_equal(array, expected)
    picture = np.asarray(slide.read_region((-5, -2), 0, (240, 20)))
    np.testing.assert_array_equal(picture[..., :3], np.repeat(expected >> (bits - 8), 3, axis=2))
    opaque = np.zeros((20, 240), np.uint8)
    opaque[2:17, 5:235] = 255
    opaque[2:17, 5 + TILE[1] : 5 + 2 * TILE[1]] = 0
    np.testing.assert_array_equal(picture[..., 3], opaque)


def test_a_picture_of_pillow_is_an_array_of_rgba():
    image = Image.fromarray(stored(30, 40)[0])
    slide = openslide.ImageSlide(image)
    expected = np.dstack([cut(np.asarray(image), -3, 5, 50, 20), np.zeros((20, 50), np.uint8)])
    expected[:, 3:43, 3] = 255
    np.testing.assert_array_equal(slide.read_region((-3, 5), 0, (50, 20), as_array=True), expected)
    inside = slide.read_region((-3, 5), 0, (50, 40), as_array=True, padding=False)
    np.testing.assert_array_equal(inside[..., :3], np.asarray(image)[5:])
    assert slide.read_region((50, 5), 0, (5, 5), padding=False).size == (0, 5)


def test_a_thumbnail_can_be_made_of_the_one_that_is_there(shared_data):
    folder = shared_data / "cmu-1-small-region"
    slide = openslide.OpenSlide(min(folder.glob("*.dcm")))
    embedded = slide.associated_images["THUMBNAIL"]
    small = (100, 100)
    expected = embedded.convert("RGB")
    expected.thumbnail(small, Image.Resampling.LANCZOS)
    made = slide.get_thumbnail(small, use_embedded=True)
    np.testing.assert_array_equal(np.asarray(made), np.asarray(expected))
    assert made.info["icc_profile"] == embedded.info["icc_profile"]
    assert slide.get_thumbnail(small) != made
    large = tuple(edge + 1 for edge in embedded.size)  # of the base level, then
    assert slide.get_thumbnail(large, use_embedded=True) == slide.get_thumbnail(large)
    with pytest.raises(ValueError, match="isn't possible"):
        slide.get_thumbnail((0, 5), use_embedded=True)
    without = openslide.OpenSlide(folder, thumbnail_levels=True)  # it is a level
    assert without.get_thumbnail(small, use_embedded=True) == without.get_thumbnail(small)
