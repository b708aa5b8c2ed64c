"""Deep Zoom images equal those of openslide-python, which is asked in a process of its own."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

import dicomslide
from dicomslide import openslide
from dicomslide.openslide.deepzoom import DeepZoomGenerator
from dicomslide.testing import write_slide
from tests.support.optional import need

pytestmark = pytest.mark.filterwarnings("ignore::dicomslide.MetadataWarning")

SETTINGS = [
    dict(tile_size=126, overlap=1), dict(tile_size=64, overlap=0), dict(tile_size=50, overlap=7),
    dict(tile_size=254, overlap=1, limit_bounds=True), dict(tile_size=1000, overlap=3),
]  # fmt: skip
SIZES = [(304, 408), (129, 257), (1, 1), (2, 700)]
"""(rows, columns) of base levels; of 257, one pixel is left for a last tile of 64 or 128."""


def told(zoom, hashed):
    """Say all that a Deep Zoom image has; tiles of each level, some of them with their pixels."""
    places = [
        (level, (column, row))
        for level, (across, down) in enumerate(zoom.level_tiles)
        for column in range(across)
        for row in range(down)
    ]
    tiles = []
    for level, address in places:
        tile = zoom.get_tile(level, address)
        tiles.append([
            level, address, zoom.get_tile_coordinates(level, address),
            zoom.get_tile_dimensions(level, address), tile.size, tile.mode,
            hashed(tile.tobytes()), len(tile.info.get("icc_profile", b"")),
        ])  # fmt: skip
    return [
        zoom.level_count, zoom.level_tiles, zoom.level_dimensions, zoom.tile_count,
        zoom.get_dzi("jpeg"), repr(zoom).partition("(")[0], repr(zoom).rpartition("), ")[2],
        zoom.BOUNDS_OFFSET_PROPS, zoom.BOUNDS_SIZE_PROPS, tiles,
    ]  # fmt: skip


ORACLE = """
import json, sys
from dicomslide.openslide import open_slide
from openslide.deepzoom import DeepZoomGenerator
from tests.test_openslide_deepzoom import SETTINGS, hashed, told

print(json.dumps([
    [told(DeepZoomGenerator(open_slide(path), **each), hashed) for each in SETTINGS]
    for path in sys.argv[1:]]))
"""


def hashed(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoom")
    found = [
        write_slide(
            folder / str(number), shape=shape, tile_shape=(64, 80), associated=False,
            downsamples=(1, 3) if min(shape) > 100 else (1,),
        )[0]
        for number, shape in enumerate(SIZES)
    ]  # fmt: skip
    pixels = np.random.default_rng(1).integers(0, 256, (90, 70, 4), np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    return [*found, folder / "picture.png"]


def test_tiles_and_descriptions_are_openslides(files):
    need("openslide")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ORACLE, *map(str, files)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout)
    for path, expected in zip(files, theirs, strict=True):
        with openslide.open_slide(path) as slide:
            for settings, of_settings in zip(SETTINGS, expected, strict=True):
                ours = json.loads(json.dumps(told(DeepZoomGenerator(slide, **settings), hashed)))
                assert ours == of_settings, (path, settings)


class Bounded(openslide.ImageSlide):
    """An image of which a part is to be shown, on a colour."""

    properties = {  # noqa: RUF012
        openslide.PROPERTY_NAME_BOUNDS_X: "10",
        openslide.PROPERTY_NAME_BOUNDS_Y: "20",
        openslide.PROPERTY_NAME_BOUNDS_WIDTH: "40",
        openslide.PROPERTY_NAME_BOUNDS_HEIGHT: "30",
        openslide.PROPERTY_NAME_BACKGROUND_COLOR: "ff8000",
    }


def test_bounds_limit_what_is_shown_on_the_slides_background():
    pixels = np.full((100, 80, 4), 255, np.uint8)
    pixels[..., :2] = np.dstack(np.mgrid[:100, :80])
    pixels[25, 15, 3] = 0
    slide = Bounded(Image.fromarray(pixels))
    zoom = DeepZoomGenerator(slide, tile_size=16, overlap=0, limit_bounds=True)
    assert zoom.level_dimensions[-1] == (40, 30)
    tile = np.asarray(zoom.get_tile(zoom.level_count - 1, (0, 0))).copy()
    assert tuple(tile[5, 5]) == (0xFF, 0x80, 0)
    tile[5, 5] = pixels[25, 15, :3]
    np.testing.assert_array_equal(tile, pixels[20:36, 10:26, :3])
    whole = DeepZoomGenerator(slide, tile_size=16, overlap=0)
    assert whole.level_dimensions[-1] == (80, 100)


def test_what_is_not_there_is_a_clear_error(files):
    with openslide.OpenSlide(files[0]) as slide:
        zoom = DeepZoomGenerator(slide)
        assert zoom.level_count == 10
        for level in (-1, 10):
            with pytest.raises(ValueError, match=rf"no level {level}; there are 10"):
                zoom.get_tile(level, (0, 0))
        for address in ((-1, 0), (2, 0), (0, 2)):
            with pytest.raises(ValueError, match="in a grid of 2 × 2 tiles"):
                zoom.get_tile_dimensions(9, address)
        for wrong in (dict(tile_size=0), dict(overlap=-1)):
            with pytest.raises(dicomslide.openslide.OpenSlideError, match="positive"):
                DeepZoomGenerator(slide, **wrong)


def test_a_description_has_the_size_of_the_image(files):
    with openslide.OpenSlide(files[0]) as slide:
        root = ElementTree.fromstring(DeepZoomGenerator(slide, 100, 2).get_dzi("png"))
    space = "{http://schemas.microsoft.com/deepzoom/2008}"
    assert root.tag == f"{space}Image"
    assert root.attrib == {"TileSize": "100", "Overlap": "2", "Format": "png"}
    assert root.find(f"{space}Size").attrib == {"Width": "408", "Height": "304"}
