"""Between the pixels of a level, OpenSlide reads the one nearest to where libopenslide does."""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction
from math import floor

import numpy as np
import pytest

from dicomslide.openslide import OpenSlide
from dicomslide.openslide.contents import downsamples_of, pixel_at
from dicomslide.testing import write_slide
from tests.support.optional import need

pytestmark = pytest.mark.filterwarnings("ignore::dicomslide.MetadataWarning")

SIZES = [(4117, 5752), (4601, 3291), (2967, 2220)]
"""(width, height) of base levels: no multiples of 4 or 16."""
FACTORS = (1, 4, 16)
TILE = 256

ORACLE = """
import json, sys
import numpy as np
import openslide

path, out = sys.argv[1:]
slide = openslide.OpenSlide(path)
arrays = {}
for i, (location, level, size) in enumerate(json.load(sys.stdin)):
    arrays[str(i)] = np.asarray(slide.read_region(location, level, size))
for level in range(1, slide.level_count):
    arrays[f"level {level}"] = np.asarray(
        slide.read_region((0, 0), level, slide.level_dimensions[level]))
np.savez(out, downsamples=slide.level_downsamples, **arrays)
"""


def openslide_reads(path, requests, out):
    """Return libopenslide's regions by number, its levels and its downsamples."""
    need("openslide")
    command = [sys.executable, "-W", "ignore", "-c", ORACLE, str(path), str(out)]
    subprocess.run(command, input=json.dumps(requests), text=True, check=True)
    return dict(np.load(out))


@pytest.fixture(scope="module", params=SIZES, ids=lambda size: "{}x{}".format(*size))
def odd(request, tmp_path_factory):
    """A file of a pyramid whose sizes are no multiples of its factors."""
    width, height = request.param
    folder = tmp_path_factory.mktemp("odd")
    return write_slide(
        folder, shape=(height, width), downsamples=FACTORS, tile_shape=(240, 256), associated=False
    )[0]


def whole_tiles(slide):
    """Where tile savers read: tiles side by side at a level, as locations of level 0."""
    return [
        ((int(i * TILE * factor), int(j * TILE * factor)), level, (TILE, TILE))
        for level, factor in enumerate(slide.level_downsamples)
        if level
        for i in range(slide.level_dimensions[level][0] // TILE)
        for j in range(slide.level_dimensions[level][1] // TILE)
    ]


def test_tiles_side_by_side_are_those_of_the_level_and_libopenslides(odd, tmp_path):
    with OpenSlide(odd) as slide:
        requests = whole_tiles(slide)
        ours = [np.asarray(slide.read_region(*request)) for request in requests]
    assert len(requests) >= 4
    theirs = openslide_reads(odd, requests, tmp_path / "theirs.npz")
    for number, ((location, level, _), tile) in enumerate(zip(requests, ours, strict=True)):
        factor = theirs["downsamples"][level]
        left, top = (round(place / factor) for place in location)
        assert (left % TILE, top % TILE) == (0, 0)
        whole = theirs[f"level {level}"]
        np.testing.assert_array_equal(tile, whole[top : top + TILE, left : left + TILE])
        # libopenslide mixes colours with those of a neighbour; no other shift is as near
        inner = theirs[str(number)][2:-2, 2:-2, :3].astype(int)

        def distance(down, right, tile=tile, inner=inner):
            moved = tile[2 + down : TILE - 2 + down, 2 + right : TILE - 2 + right, :3]
            return np.abs(moved - inner).mean()

        shifts = {(i, j): distance(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)}
        assert min(shifts, key=shifts.get) == (0, 0)


def test_any_location_is_the_pixel_nearest_to_libopenslides_mixture(odd, tmp_path):
    random = np.random.default_rng(7)
    with OpenSlide(odd) as slide:
        width, height = slide.dimensions
        requests = [
            ((int(random.integers(width * 3 // 4)), int(random.integers(height * 3 // 4))), level,
             (40, 30))
            for level in (1, 2)
            for _ in range(40)
        ]  # fmt: skip
        ours = [np.asarray(slide.read_region(*request)) for request in requests]
    theirs = openslide_reads(odd, requests, tmp_path / "theirs.npz")
    for number, ((location, level, size), region) in enumerate(zip(requests, ours, strict=True)):
        factor = theirs["downsamples"][level]
        left, top = (floor(place / factor + 0.5) for place in location)
        whole = theirs[f"level {level}"]
        np.testing.assert_array_equal(region, whole[top : top + size[1], left : left + size[0]])
        # what libopenslide mixes are the pixels around the fraction that rounding takes away
        x, y = (place / factor for place in location)
        rows, columns = floor(y) + np.arange(32), floor(x) + np.arange(42)
        part = whole[np.ix_(rows, columns)][..., :3].astype(float)
        down, right = y - floor(y), x - floor(x)
        mixed = (1 - down) * part[:-1] + down * part[1:]
        mixed = (1 - right) * mixed[:, :-1] + right * mixed[:, 1:]
        inner = theirs[str(number)][1:-1, 1:-1, :3]
        assert np.abs(mixed[1:29, 1:39] - inner).max() < 8


@pytest.mark.parametrize(
    ("x", "column"),
    [(0, 0), (1, 0), (2, 0), (3, 1), (5, 1), (6, 1), (7, 2), (-1, 0), (-2, 0), (-3, -1), (-6, -1),
     (-7, -2), (-64, -16), (4 * 256, 256), (4116, 1029)],
)  # fmt: skip
def test_locations_of_an_odd_pyramid_by_hand(tmp_path_factory, x, column):
    """4117 columns make 1029: 4.0005 to one."""
    folder = tmp_path_factory.getbasetemp() / "by-hand"
    if not folder.exists():
        write_slide(
            folder, shape=(64, 4117), downsamples=(1, 4), tile_shape=(64, 256), associated=False,
            drawing="position", transfer_syntax_uid="1.2.840.10008.1.2.1",
        )  # fmt: skip
    with OpenSlide(folder / "level-0.dcm") as slide:
        assert slide.level_dimensions[1] == (1029, 16)
        whole = np.asarray(slide.read_region((0, 0), 1, (1029, 16)))
        region = np.asarray(slide.read_region((x, 0), 1, (8, 16)))
    expected = np.zeros((16, 8, 4), np.uint8)
    for i in range(8):
        if 0 <= column + i < 1029:
            expected[:, i] = whole[:, column + i]
    np.testing.assert_array_equal(region, expected)


@pytest.mark.parametrize("factor", [4, 16, 32])
def test_arithmetic_of_a_pyramid_of_46000_by_32914(factor):
    """Of a slide too large to write: against exact fractions."""
    width, height = 46000 // factor, 32914 // factor
    downsamples = downsamples_of([(46000, 32914), (width, height)])
    exact = (Fraction(46000, width) + Fraction(32914, height)) / 2
    assert downsamples[0] == 1
    assert downsamples[1] == pytest.approx(float(exact), rel=1e-15)
    half = factor // 2
    places = [0, 1, half - 1, half, half + 1, -1, -half, -half - 1, -factor, 45999, 32913, 10**9]
    for x in places:
        found = pixel_at((x, 32914 - x), downsamples[1])
        assert found == tuple(floor(each / exact + Fraction(1, 2)) for each in (x, 32914 - x))
    for tile in range(46000 // factor // TILE + 1):
        location = int(tile * TILE * downsamples[1])
        assert pixel_at((location, -location), downsamples[1]) == (tile * TILE, -tile * TILE)


@pytest.mark.parametrize(
    ("x", "pixel"),
    [(1, 1), (2, 1), (3, 2), (101, 51), (-1, 0), (-2, -1), (-3, -1), (-4, -2), (-5, -2)],
)
def test_halves_are_rounded_towards_the_next_pixel(x, pixel):
    assert pixel_at((x, x), 2.0) == (pixel, pixel)


def test_tiles_of_a_real_pyramid_are_unshifted(shared_data, tmp_path):
    path = min((shared_data / "cmu-1-small-region").glob("*.dcm"))
    with OpenSlide(path) as slide:
        requests = [((x, y), 0, (TILE, TILE)) for x in (-100, 0, 1964) for y in (-7, 0, 2711)]
        ours = [np.asarray(slide.read_region(*request)) for request in requests]
    theirs = openslide_reads(path, requests, tmp_path / "theirs.npz")
    for number, region in enumerate(ours):
        np.testing.assert_array_equal(region, theirs[str(number)])
