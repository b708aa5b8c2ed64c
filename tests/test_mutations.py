"""Files damaged at random are opened, or refused in words: nothing else escapes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.datadict import dictionary_VR

import dicomslide
from dicomslide.testing import write_slide
from tests.support.quirky import NATIVE, RLE, expected, setting, write

COUNT = 600
"""Files that each of two children damages: a second for a hundred."""
LARGEST = 400_000
"""Bytes of a real file that is small enough to be damaged over and over."""


def write_seeds(folder: Path) -> None:
    """Small files of many kinds."""
    root = "1.2.840.10008.1.2"
    for number, (uid, options) in enumerate(
        [
            (NATIVE, {}),
            (NATIVE, dict(sparse=True)),
            (NATIVE, dict(sparse=True, undefined_lengths=True, samples=1, bits=16)),
            (root, dict(sparse=True)),
            (f"{root}.2", {}),
            (f"{NATIVE}.99", {}),
            (RLE, dict(offset_table="empty", fragments=2)),
            (f"{root}.4.50", dict(offset_table="extended")),
            (f"{root}.4.90", dict(offset_table="basic", sparse=True)),
            (f"{root}.4.80", dict(optical_paths=("1", "2"), samples=1, planes=(0.0, 2.0))),
        ]
    ):
        write(folder / f"{number}.dcm", uid, **options)
    for path in write_slide(
        folder / "slide", shape=(40, 60), downsamples=(1,), tile_shape=(32, 32)
    ):
        assert path.exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    write_seeds(folder)
    real = Path(__file__).parents[2] / "shared" / "data"
    for number, path in enumerate(sorted(real.rglob("*.dcm"))):  # where they are
        if path.stat().st_size < LARGEST:
            shutil.copy(path, folder / f"real-{number}.dcm")
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits are Linux's")
@pytest.mark.parametrize("first", [0, 100_000])
def test_nothing_escapes_from_a_damaged_file_but_what_is_documented(folder, first, tmp_path):
    own = shutil.copytree(folder, tmp_path / "seeds")
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.mutations", own, str(first), str(COUNT)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr[-2000:]


def replaced(path, old, new):
    data = path.read_bytes()
    assert data.count(old) >= 1
    path.write_bytes(data.replace(old, new, 1))
    return path


@pytest.mark.parametrize("vr", [b"XX", b"\0\0", b"zz"])
@pytest.mark.parametrize(
    "head", [b"\x02\0\x10\0UI", b"\x02\0\x12\0UI", b"\x48\0\x06\x01SH", b"\x28\0\x30\0DS"]
)
def test_an_unknown_value_representation_is_an_error_that_names_the_file_or_none(
    tmp_path, head, vr
):
    """In the file meta information, and in sequences."""
    path = replaced(write(tmp_path / "image.dcm"), head, head[:4] + vr)
    try:
        dicomslide.open_slide(path).get_image_region((0, 0), 0, (20, 20))
    except dicomslide.DicomSlideError as error:
        assert "image.dcm" in str(error)  # noqa: PT017 - or it is read all the same


@pytest.mark.parametrize(
    "keyword",
    ["SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID",
     "SOPClassUID", "ConcatenationUID", "PyramidUID", "TotalPixelMatrixRows", "Rows",
     "NumberOfFrames", "ImageType", "ContainerIdentifier"],
)  # fmt: skip
def test_several_values_where_one_belongs_are_an_error_that_names_the_file_or_none(
    tmp_path, keyword
):
    def change(dataset):
        value = dataset.get(keyword, "1.2")
        is_number = not isinstance(value, str) and not hasattr(value, "__len__")
        values = [value, value] if is_number or isinstance(value, str) else [*value, *value]
        dataset.add_new(keyword, dictionary_VR(keyword), values)

    path = write(tmp_path / "image.dcm", change=None)
    with pydicom.config.disable_value_validation():
        dataset = pydicom.dcmread(path)
        change(dataset)
        dataset.save_as(path, enforce_file_format=False)
    for opens in (dicomslide.open_slide, lambda path: list(dicomslide.open_slides(path).values())):
        try:
            opens(path)
        except dicomslide.DicomSlideError as error:
            assert "image.dcm" in str(error)  # noqa: PT017 - or it is read all the same


def test_colours_have_no_sign(tmp_path):
    path = write(tmp_path / "image.dcm", change=setting(PixelRepresentation=1))
    pixels = dicomslide.open_slide(path, correct_color=False).get_image_region((0, 0), 0, (50, 70))
    np.testing.assert_array_equal(pixels, expected())
