"""large_image reads slides by the tile source that it finds by its entry point."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import dicomslide
from dicomslide.testing import write_slide
from tests.support.optional import reason_to_skip

if reason := reason_to_skip("large_image"):
    pytest.skip(reason, allow_module_level=True)

from large_image.exceptions import TileSourceError, TileSourceFileNotFoundError

from dicomslide.plugins.large_image import DicomSlideTileSource

NUMPY = "numpy"


@pytest.fixture(scope="module")
def slide_folder(tmp_path_factory):
    """Levels of 1, 4 and 16: large_image wants those of 2 and 8 too."""
    folder = tmp_path_factory.mktemp("large-image")
    write_slide(folder, shape=(900, 1300), downsamples=(1, 4, 16), tile_shape=(128, 128))
    return folder


@pytest.fixture(scope="module")
def source(slide_folder):
    return DicomSlideTileSource(slide_folder)


def _levels(folder):
    slide = dicomslide.open_slide(folder)
    return [
        level.image.get_total_pixel_matrix()[...] for level in slide.levels
    ], slide.pixel_spacings[0]


def _padded(pixels, rows, columns):
    """Return pixels with white, the background, beyond the edges."""
    out = np.full((rows, columns, 3), 255, np.uint8)
    out[: pixels.shape[0], : pixels.shape[1]] = pixels[:rows, :columns]
    return out


def test_metadata_is_that_of_the_base_level(source, slide_folder):
    (base, *_), spacing = _levels(slide_folder)
    metadata = source.getMetadata()
    assert (metadata["sizeY"], metadata["sizeX"]) == base.shape[:2]
    assert (metadata["tileHeight"], metadata["tileWidth"]) == (128, 128)
    assert metadata["levels"] == 5  # 1,300 pixels are 11 tiles: 16 are 2 to the power of 4
    assert (metadata["mm_y"], metadata["mm_x"]) == pytest.approx(spacing)
    assert metadata["bandCount"] == 3
    assert metadata["dtype"] == "uint8"
    assert "SOPClassUID" in source.getInternalMetadata()["dicom"]


def test_tiles_of_stored_levels_are_the_stored_pixels(source, slide_folder):
    levels, _ = _levels(slide_folder)
    for z, pixels in zip((4, 2, 0), levels, strict=True):
        for x, y in ((0, 0), ((pixels.shape[1] - 1) // 128, (pixels.shape[0] - 1) // 128)):
            tile = source.getTile(x, y, z, numpyAllowed="always")
            wanted = pixels[y * 128 : (y + 1) * 128, x * 128 : (x + 1) * 128]
            np.testing.assert_array_equal(tile, _padded(wanted, 128, 128))


def test_tiles_between_stored_levels_are_means(source, slide_folder):
    levels, _ = _levels(slide_folder)
    for z, finer in ((3, levels[0]), (1, levels[1])):
        tile = source.getTile(1, 0, z, numpyAllowed="always")
        boxes = _padded(finer[:256, 256:512], 256, 256).reshape(128, 2, 128, 2, 3).astype(float)
        np.testing.assert_allclose(tile, boxes.mean(axis=(1, 3)), atol=0.51)


def test_regions_and_thumbnails_are_whole(source, slide_folder):
    (base, *_), _ = _levels(slide_folder)
    region, _ = source.getRegion(
        format=NUMPY, region={"left": 100, "top": 50, "width": 700, "height": 600}
    )
    np.testing.assert_array_equal(region[:, :, :3], base[50:650, 100:800])
    picture, _ = source.getThumbnail(width=200, height=200, encoding="PNG")
    import io

    shown = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(float)
    wanted = Image.fromarray(base).resize(shown.shape[1::-1], Image.Resampling.BOX)
    assert np.abs(shown - np.asarray(wanted)).mean() < 5


def test_label_and_overview_are_associated_images(source, slide_folder):
    assert source.getAssociatedImagesList() == ["label", "macro"]
    slide = dicomslide.open_slide(slide_folder)
    picture, _ = source.getAssociatedImage("label", format=NUMPY)
    pixels = slide.label_images[0].get_total_pixel_matrix()[...]
    np.testing.assert_array_equal(picture[:, :, : pixels.shape[2]], pixels)
    assert source.getAssociatedImage("other") is None


def test_frames_are_channels_and_planes(stack_slide):
    source = DicomSlideTileSource(stack_slide)
    slide = dicomslide.open_slide(stack_slide)
    metadata = source.getMetadata()
    assert metadata["IndexRange"] == {"IndexC": 2, "IndexZ": 3}
    assert len(metadata["channels"]) == 2
    assert source.dtype == np.uint16
    for frame, (plane, channel) in enumerate(np.ndindex(3, 2)):
        tile = source.getTile(0, 0, source.levels - 1, numpyAllowed="always", frame=frame)
        wanted = slide.get_image_region((0, 0), 0, tile.shape[:2], channel, plane)
        np.testing.assert_array_equal(tile, wanted)
    with pytest.raises(TileSourceError):
        source.getTile(0, 0, 0, frame=6)


def test_large_image_opens_dicom_by_this_source_in_another_process(slide_folder):
    code = """
import pickle, sys
import large_image
source = large_image.open(sys.argv[1])
again = pickle.loads(pickle.dumps(source))
print(source.name, again.sizeX, next(large_image.open(sys.argv[1]).tileIterator())["width"])
"""
    path = str(slide_folder / "level-0.dcm")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, path],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["dicomslide", "1300", "128"]


def test_a_pickled_source_opens_the_slide_again(source):
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(
        again.getTile(2, 3, 4, numpyAllowed="always"),
        source.getTile(2, 3, 4, numpyAllowed="always"),
    )


def test_what_is_no_slide_is_refused_as_large_image_wants_it(tmp_path):
    path = tmp_path / "other.dcm"
    path.write_bytes(bytes(1000))
    with pytest.raises(TileSourceError, match="isn't read as a DICOM slide"):
        DicomSlideTileSource(path)
    assert not DicomSlideTileSource.canRead(path)
    with pytest.raises(TileSourceFileNotFoundError):
        DicomSlideTileSource(tmp_path / "nothing.dcm")
