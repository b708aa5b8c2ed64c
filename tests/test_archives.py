"""Slides in zip and tar files, which are read as folders are."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import xarray as xr

import dicomslide
from dicomslide.backends.objects import ranges
from dicomslide.testing import write_slide

KINDS = ["stored.zip", "deflated.zip", "plain.tar", "packed.tar.gz"]
OPTIONS = dict(shape=(100, 130), downsamples=(1, 2), tile_shape=(32, 32), associated=False)


def pack(path, members):
    """An archive of files under other names."""
    if path.suffix == ".zip":
        kind = zipfile.ZIP_DEFLATED if "deflated" in path.name else zipfile.ZIP_STORED
        with zipfile.ZipFile(path, "w", kind) as archive:
            for name, file in members.items():
                archive.write(file, name)
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
            for name, file in members.items():
                archive.add(file, name)
    return path


def url_of(path, inside=""):
    return f"{'zip' if path.suffix == '.zip' else 'tar'}://{inside}::{path}"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_slide(tmp_path_factory.mktemp("slide"), **OPTIONS)


@pytest.fixture(scope="module")
def pixels(files):
    return dicomslide.open_slide(files).get_image_region((0, 0), 0, (100, 130))


def ways_in(source):
    """By what a slide is opened; of each, the pixels of its base level."""
    yield dicomslide.open_slide(source).get_image_region((0, 0), 0, (100, 130))
    (slide,) = dicomslide.open_slides(source).values()
    yield slide.get_image_region((0, 0), 0, (100, 130))
    dataset = xr.open_dataset(source, engine="dicomslide", orientation="stored")
    yield dataset.image.values


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("folder", ["", "study/series/"])
@pytest.mark.parametrize("given", ["whole", "path", "folder", "pattern", "list"])
def test_all_of_an_archive_is_opened_as_a_folder_is(tmp_path, files, pixels, kind, folder, given):
    path = pack(tmp_path / kind, {folder + file.name: file for file in files})
    source = {
        "whole": url_of(path),
        "path": str(path),
        "folder": url_of(path, folder.partition("/")[0]),
        "pattern": url_of(path, f"{folder}*.dcm"),
        "list": [url_of(path, folder + file.name) for file in files],
    }[given]
    if given == "list":
        found = dicomslide.open_slide(source).get_image_region((0, 0), 0, (100, 130))
        np.testing.assert_array_equal(found, pixels)
    else:
        for found in ways_in(source):
            np.testing.assert_array_equal(found, pixels)


def test_what_is_no_dicom_file_is_passed_over_in_an_archive(tmp_path, files, pixels):
    notes = tmp_path / "notes.txt"
    notes.write_text("notes" * 100)
    members = {"notes.txt": notes, "__MACOSX/._level-0.dcm": notes} | {f.name: f for f in files}
    for kind in KINDS:
        path = pack(tmp_path / kind, members)
        found = dicomslide.open_slide(path).get_image_region((0, 0), 0, (100, 130))
        np.testing.assert_array_equal(found, pixels)
        empty = pack(tmp_path / f"empty {kind}", {"notes.txt": notes})
        with pytest.raises(dicomslide.NotDicomError, match="no DICOM file is there"):
            dicomslide.open_slide(empty)


def test_several_slides_of_an_archive_are_told_apart(tmp_path):
    members = {}
    for number in (1, 2):
        folder = tmp_path / str(number)
        paths = write_slide(folder, slide_number=number, container_id=f"S{number}", **OPTIONS)
        members |= {f"{number}/{path.name}": path for path in paths}
    path = pack(tmp_path / "plain.tar", members)
    assert list(dicomslide.open_slides(path)) == ["S1", "S2"]
    with pytest.raises(dicomslide.AmbiguousSlideError):
        dicomslide.open_slide(path)
    assert dicomslide.open_slide(path, container_id="S2").container_identifier == "S2"


@pytest.mark.parametrize("kind", KINDS)
def test_threads_read_one_archive_at_once(tmp_path, files, pixels, kind):
    path = pack(tmp_path / kind, {file.name: file for file in files})
    slide = dicomslide.open_slide(path)
    corners = [(row, column) for row in range(0, 96, 8) for column in range(0, 128, 8)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda corner: slide.get_image_region(corner, 0, (4, 4)), corners))
    for (row, column), region in zip(corners, found, strict=True):
        np.testing.assert_array_equal(region, pixels[row : row + 4, column : column + 4])


def test_a_slide_of_a_tar_travels_to_another_process(tmp_path, files, pixels):
    path = pack(tmp_path / "plain.tar", {file.name: file for file in files})
    matrix = dicomslide.open_slide(path).get_volume_images()[0].get_total_pixel_matrix()
    code = (
        "import pickle, sys; matrix = pickle.load(sys.stdin.buffer);"
        "sys.stdout.buffer.write(matrix[...].tobytes())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(matrix), capture_output=True, check=True
    )
    assert done.stdout == pixels.tobytes()


def test_members_of_a_plain_tar_are_read_by_the_range(tmp_path, files, monkeypatch):
    path = pack(tmp_path / "plain.tar", {file.name: file for file in files})
    read = []
    original = ranges._any_ranges

    def noting(place, spans, *arguments):
        read.append(place.path)
        return original(place, spans, *arguments)

    monkeypatch.setattr(ranges, "_any_ranges", noting)
    dicomslide.open_slide(path).get_image_region((0, 0), 0, (100, 130))
    assert set(read) == {str(path)}


@pytest.mark.parametrize("kind", ["stored.zip", "plain.tar"])
def test_an_archive_that_is_replaced_is_noticed(tmp_path, kind):
    large = dict(  # not all of it is read as it is opened
        shape=(400, 400), downsamples=(1,), transfer_syntax_uid="1.2.840.10008.1.2.1",
        associated=False,
    )  # fmt: skip
    (file,) = write_slide(tmp_path / "slide", **large)
    path = pack(tmp_path / kind, {file.name: file})
    slide = dicomslide.open_slide(path)
    (other,) = write_slide(tmp_path / "other", drawing="position", **large)
    new = pack(tmp_path / f"new {kind}", {other.name: other})
    assert new.stat().st_size == path.stat().st_size
    shutil.move(new, path)
    os.utime(path, (1, 1))
    with pytest.raises(dicomslide.DicomSlideError, match=kind):
        slide.get_image_region((0, 0), 0, (400, 400))


@pytest.mark.parametrize("name", ["broken.zip", "broken.tar", "broken.tar.gz"])
def test_what_is_no_archive_is_an_error_that_names_it(tmp_path, name):
    (tmp_path / name).write_bytes(b"junk" * 1000)
    for opens in (dicomslide.open_slide, dicomslide.open_slides):
        with pytest.raises(dicomslide.DicomSlideError, match=name):
            opens(tmp_path / name)


def test_an_archive_whose_name_is_not_given_is_asked_for():
    with pytest.raises(dicomslide.SourceNotFoundError, match="zip://::archive"):
        dicomslide.open_slide("zip://slide")
