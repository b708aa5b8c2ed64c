"""Real slides, against other readers of the same files."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pydicom
import pytest
import xarray as xr
from PIL import Image

import dicomslide

pytestmark = pytest.mark.filterwarnings("ignore::dicomslide.MetadataWarning")

OPENSLIDE = """
import sys, numpy, openslide
slide = openslide.OpenSlide(sys.argv[1])
numpy.save(sys.argv[2], numpy.asarray(slide.read_region((0, 0), 0, slide.dimensions)))
"""


@pytest.fixture(scope="module")
def cmu(shared_data):
    """Folder and file of the volume of a scanned slide."""
    folder = shared_data / "cmu-1-small-region"
    for path in sorted(folder.glob("*.dcm")):
        if pydicom.dcmread(path, specific_tags=["ImageType"]).ImageType[2] == "VOLUME":
            return folder, path
    raise AssertionError("no VOLUME")


def stored(folder):
    return xr.open_datatree(folder, engine="dicomslide", chunks={}, correct_color=False)


@pytest.mark.needs("openslide")
def test_level_equals_openslides_reading(cmu, tmp_path):
    folder, path = cmu
    out = tmp_path / "pixels.npy"
    # in a process of its own: its C libraries needn't agree with ours
    command = [sys.executable, "-c", OPENSLIDE, str(path), str(out)]
    subprocess.run(command, check=True)
    rgba = np.load(out)
    assert np.all(rgba[..., 3] == 255)
    level = stored(folder)["level_0"].image
    # stored as 0\\1\\0\\1\\0\\0: upright is turned counterclockwise
    np.testing.assert_array_equal(level.values, np.rot90(rgba[..., :3], 1))
    slide = dicomslide.open_slide(folder, correct_color=False)
    matrix = slide.get_volume_images()[0].get_total_pixel_matrix()
    np.testing.assert_array_equal(matrix[...], rgba[..., :3])


@pytest.fixture
def libjpeg_turbo():
    """Let pydicom, and so highdicom, decode by Pillow: pylibjpeg upsamples in its own way."""
    from pydicom.pixels.decoders import JPEGBaseline8BitDecoder as decoder

    had = "pylibjpeg" in decoder.available_plugins
    if had:
        decoder.remove_plugin("pylibjpeg")
    yield
    if had:
        decoder.add_plugin("pylibjpeg", ("pydicom.pixels.decoders.pylibjpeg", "_decode_frame"))


@pytest.mark.usefixtures("libjpeg_turbo")
@pytest.mark.parametrize("corrected", [False, True])
def test_level_equals_highdicoms_reading(cmu, corrected):
    """To the last bit, but where pydicom rounds YCbCr to RGB in its own way.

    libjpeg's own conversion, to which openslide and Pillow agree, differs from pydicom's by
    one level in a few samples of a million.
    """
    import highdicom as hd

    folder, path = cmu
    expected = hd.imread(path).get_total_pixel_matrix(apply_icc_profile=corrected)
    image = xr.open_dataset(folder, engine="dicomslide", correct_color=corrected).image
    difference = np.abs(image.values - np.rot90(expected, 1))
    assert difference.max() <= (3 if corrected else 1)
    assert np.count_nonzero(difference) < 5e-6 * difference.size


def test_level_equals_pillows_frames(cmu):
    _, path = cmu
    dataset = pydicom.dcmread(path)
    matrix = dicomslide.open_slide(path, correct_color=False).get_volume_images()[0]
    matrix = matrix.get_total_pixel_matrix()
    frames = pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=len(matrix))
    for tile, frame in zip(matrix, frames, strict=True):
        with Image.open(io.BytesIO(frame)) as picture:
            np.testing.assert_array_equal(tile, np.asarray(picture.convert("RGB")))


def test_tree_of_a_scanned_slide(cmu):
    folder, _ = cmu
    tree = xr.open_datatree(folder, engine="dicomslide", chunks={}, associated=True)
    # the thumbnail is of a size of its own: a level
    assert [tree[name].image.shape for name in tree.children] == [
        (2220, 2967, 3),
        (574, 768, 3),
        (463, 387, 3),
        (431, 1280, 3),
    ]
    image = tree["level_0"].image
    assert image.slide.spacing == pytest.approx((0.000499, 0.000499))
    box = image.sel(x=slice(26.0, 26.1), y=slice(24.0, 24.1))
    same = image.sel(x=slice(26.1, 26.0), y=slice(24.1, 24.0))
    assert box.sizes["x"] == box.sizes["y"] == 200
    xr.testing.assert_identical(box, same)


def small_images():
    return ["sm_image", "sm_image_control", "sm_image_dots", "sm_image_grayscale",
            "sm_image_grayscale_reversed", "sm_image_jpegls", "sm_image_jpegls_nobot",
            "sm_image_numbers"]  # fmt: skip


@pytest.mark.parametrize("name", small_images())
@pytest.mark.needs("pylibjpeg")
def test_small_images_equal_pydicoms_frames_put_together(shared_data, name):
    path = shared_data / "highdicom" / f"{name}.dcm"
    dataset = pydicom.dcmread(path)
    frames = dataset.pixel_array
    rows, columns = dataset.TotalPixelMatrixRows, dataset.TotalPixelMatrixColumns
    expected = np.zeros((rows, columns, *frames.shape[3:]), frames.dtype)
    at = [(r, c) for r in range(0, rows, dataset.Rows) for c in range(0, columns, dataset.Columns)]
    for (r, c), frame in zip(at, frames, strict=True):
        part = expected[r : r + dataset.Rows, c : c + dataset.Columns]
        part[...] = frame[: part.shape[0], : part.shape[1]]
    slide = dicomslide.open_slide(path, correct_color=False)
    matrix = slide.get_volume_images()[0].get_total_pixel_matrix()
    np.testing.assert_array_equal(matrix[...].squeeze(), expected)
    image = xr.open_dataset(
        path, engine="dicomslide", correct_color=False, orientation="stored"
    ).image
    np.testing.assert_array_equal(image.values, expected)


def test_thumbnail_of_the_size_of_a_level(shared_data):
    slide = dicomslide.open_slide(shared_data / "boxes")
    assert slide.num_levels == 1
    assert len(slide.thumbnail_images) == 1
