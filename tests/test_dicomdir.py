"""The directory of a file-set, as a medium has it, stands for the files that it lists."""

from __future__ import annotations

import shutil
import warnings
import zipfile

import numpy as np
import pydicom
import pytest
import xarray as xr
from pydicom.fileset import FileSet

import dicomslide
from dicomslide.testing import write_slide

OPTIONS = dict(shape=(100, 130), downsamples=(1, 2), tile_shape=(32, 32), associated=False)
REGION = ((0, 0), 0, (100, 130))


def write_media(folder, *slides):
    """A file-set of slides, as pydicom writes one."""
    media = FileSet()
    for paths in slides:
        for path in paths:
            media.add(path)
    folder.mkdir()
    media.write(folder)
    media._stage["t"].cleanup()  # or it warns that nobody does
    return folder / "DICOMDIR"


@pytest.fixture
def paths(tmp_path):
    return write_slide(tmp_path / "slide", **OPTIONS)


@pytest.fixture
def directory(tmp_path, paths):
    return write_media(tmp_path / "media", paths)


def test_the_slide_that_a_directory_lists_is_opened(tmp_path, paths, directory):
    expected = dicomslide.open_slide(paths).get_image_region(*REGION)
    # what it doesn't list isn't looked at
    write_slide(directory.parent / "other", slide_number=2, container_id="B", **OPTIONS)
    given = [directory, str(directory), [directory], f"local://{directory}"]
    for source in given:
        slide = dicomslide.open_slide(source)
        assert slide.num_levels == 2
        np.testing.assert_array_equal(slide.get_image_region(*REGION), expected)
        (again,) = dicomslide.open_slides(source).values()
        np.testing.assert_array_equal(again.get_image_region(*REGION), expected)
    tree = xr.open_datatree(directory, engine="dicomslide", orientation="stored")
    np.testing.assert_array_equal(tree["level_0"].image, expected)


def test_a_directory_in_an_archive_is_one_too(tmp_path, paths, directory):
    with zipfile.ZipFile(tmp_path / "media.zip", "w") as archive:
        for path in directory.parent.rglob("*"):
            archive.write(path, path.relative_to(directory.parent))
    slide = dicomslide.open_slide(f"zip://DICOMDIR::{tmp_path / 'media.zip'}")
    np.testing.assert_array_equal(
        slide.get_image_region(*REGION), dicomslide.open_slide(paths).get_image_region(*REGION)
    )


def test_several_slides_of_a_directory_are_told_apart(tmp_path):
    slides = [
        write_slide(tmp_path / name, slide_number=i, container_id=name, **OPTIONS)
        for i, name in enumerate("AB", 1)
    ]
    directory = write_media(tmp_path / "media", *slides)
    with pytest.raises(dicomslide.AmbiguousSlideError, match="2 slides"):
        dicomslide.open_slide(directory)
    assert dicomslide.open_slide(directory, container_id="B").container_identifier == "B"
    assert list(dicomslide.open_slides(directory)) == ["A", "B"]


@pytest.mark.parametrize("scheme", ["", "local://"])
def test_a_file_that_is_listed_but_missing_is_named(paths, directory, scheme):
    listed = sorted(path for path in directory.parent.rglob("*") if path.is_file())
    gone = next(p for p in listed if p != directory and pydicom.dcmread(p).InstanceNumber == 2)
    gone.unlink()
    source = f"{scheme}{directory}"
    name = gone.relative_to(directory.parent).as_posix()
    with pytest.warns(dicomslide.MetadataWarning, match=f"left out: .*{name}"):
        slide = dicomslide.open_slide(source)
    assert slide.num_levels == 1
    for path in listed:
        if path not in (directory, gone):
            path.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dicomslide.MetadataWarning)
        with pytest.raises(dicomslide.DicomSlideError, match="DICOMDIR"):
            dicomslide.open_slide(source)


@pytest.mark.parametrize("change", [str.lower, lambda name: f"{name.lower()};1"])
def test_names_of_a_medium_may_be_in_lower_case(tmp_path, paths, directory, change):
    """As file systems show those of ISO 9660."""
    copied = tmp_path / "copied"
    for path in directory.parent.rglob("*"):
        if path.is_file():
            parts = path.relative_to(directory.parent).parts
            target = copied.joinpath(*map(str.lower, parts[:-1]), change(parts[-1]))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    (copied / change("DICOMDIR")).rename(copied / "dicomdir")
    assert dicomslide.open_slide(copied / "dicomdir").num_levels == 2


@pytest.mark.parametrize(
    "parts", [["..", "level-0.dcm"], ["/", "etc"], ["a/../..", "b"], ["C:", "b"]]
)
def test_a_directory_does_not_lead_out_of_its_file_set(paths, directory, parts):
    with pydicom.config.disable_value_validation():
        dataset = pydicom.dcmread(directory)
        for record in dataset.DirectoryRecordSequence:
            if "ReferencedFileID" in record:
                record.ReferencedFileID = parts
        dataset.save_as(directory)
    for source in (directory, f"local://{directory}"):
        with pytest.raises(dicomslide.MetadataError, match="no file below it"):
            dicomslide.open_slide(source)


def test_a_directory_that_is_none_is_an_error(tmp_path):
    (tmp_path / "DICOMDIR").write_bytes(b"junk" * 100)
    with pytest.raises(dicomslide.NotDicomError, match="DICOMDIR"):
        dicomslide.open_slide(tmp_path / "DICOMDIR")
