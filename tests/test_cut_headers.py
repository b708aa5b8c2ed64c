"""Files of slides that were cut within their header, or whose header lacks what an image needs."""

from __future__ import annotations

import os
import shutil
import warnings
import zipfile

import numpy as np
import pydicom
import pytest
import xarray as xr

import dicomslide
from dicomslide.backends.part10.file import FileStore
from dicomslide.openslide import OpenSlide
from dicomslide.testing import write_slide
from tests.support.derive import annotations_of, group_of
from tests.support.fake_client import FakeClient

CUTS = [300, 1000, 1500, 2000]
LACKING = ["Rows", "Columns", "TotalPixelMatrixColumns", "TotalPixelMatrixRows"]
CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
SEGMENTATION_STORAGE = "1.2.840.10008.5.1.4.1.1.66.4"


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """Three levels, of 700 × 900, 350 × 450 and 175 × 225 pixels."""
    folder = tmp_path_factory.mktemp("slide")
    write_slide(folder, shape=(700, 900))
    return folder


def without(path, *keywords, **values):
    dataset = pydicom.dcmread(path)
    for keyword in keywords:
        del dataset[keyword]
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)


def damage(path, how):
    """Damage a file, and return what the message about it says after its name."""
    if isinstance(how, str):
        without(path, how)
        return f"its header lacks {how}"
    os.truncate(path, how)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, about the end of the file
        left = pydicom.dcmread(path)
    lacking = ", ".join(keyword for keyword in LACKING if keyword not in left)
    assert lacking
    return (
        f"its header is cut: the file ends within it, after {how:,} bytes, and it lacks {lacking}"
    )


@pytest.fixture(params=[*CUTS, *LACKING])
def damaged(request, whole, tmp_path):
    """Return a folder with a damaged base level, and what is said of it."""
    folder = shutil.copytree(whole, tmp_path / "damaged")
    path = folder / "level-0.dcm"
    return folder, f"{path}: {damage(path, request.param)}"


def zipped(folder):
    target = folder.parent / "slide.zip"
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    return target


FOLDERS = {
    "folder": dicomslide.open_slide,
    "URL": lambda folder: dicomslide.open_slide(f"local://{folder}"),
    "pattern": lambda folder: dicomslide.open_slide(f"local://{folder}/*.dcm"),
    "archive": lambda folder: dicomslide.open_slide(zipped(folder)),
    "store": lambda folder: dicomslide.find_slides(FileStore.open(folder))[0],
    "OpenSlide": lambda folder: OpenSlide(folder),
    "OpenSlide of a neighbour": lambda folder: OpenSlide(folder / "level-1.dcm"),
    "engine": lambda folder: xr.open_dataset(folder, engine="dicomslide"),
}


@pytest.mark.parametrize("door", FOLDERS)
def test_in_a_folder_it_is_left_out_with_a_warning_that_says_why(damaged, door):
    folder, said = damaged
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        opened = FOLDERS[door](folder)
    (message,) = [
        str(each.message)
        for each in caught
        if issubclass(each.category, dicomslide.MetadataWarning)
    ]
    assert message.startswith("left out: ")
    name, _, what = said.partition(": ")
    assert os.path.basename(name) in message
    assert message.endswith(f": {what}")
    if isinstance(opened, dicomslide.Slide):
        assert opened.total_pixel_matrix_dimensions == ((350, 450), (175, 225))


def opened_stream(folder):
    with (folder / "level-0.dcm").open("rb") as file:
        dicomslide.open_slide([file, (folder / "level-1.dcm").read_bytes()])


NAMED = {
    "path": lambda folder: dicomslide.open_slide(folder / "level-0.dcm"),
    "list": lambda folder: dicomslide.open_slide([folder / "level-0.dcm", folder / "level-1.dcm"]),
    "beside a folder": lambda folder: dicomslide.open_slide(
        [folder / "level-0.dcm", folder.parent / "whole"]
    ),
    "URL": lambda folder: dicomslide.open_slide(f"local://{folder}/level-0.dcm"),
    "URLs": lambda folder: dicomslide.open_slide(
        [f"local://{folder}/level-1.dcm", f"local://{folder}/level-0.dcm"]
    ),
    "OpenSlide": lambda folder: OpenSlide(folder / "level-0.dcm"),
    "OpenSlide of a list": lambda folder: OpenSlide(
        [folder / "level-0.dcm", folder / "level-1.dcm"]
    ),
    "engine": lambda folder: xr.open_dataset(folder / "level-0.dcm", engine="dicomslide"),
}


@pytest.mark.parametrize("door", NAMED)
def test_a_named_file_is_an_error_that_says_what_is_missing(damaged, door):
    folder, said = damaged
    write_slide(folder.parent / "whole", shape=(64, 64), downsamples=(1,), slide_number=2)
    with pytest.raises(dicomslide.MetadataError) as raised:
        NAMED[door](folder)
    assert str(raised.value).endswith(said)


def test_bytes_and_file_objects_are_errors_too(damaged):
    folder, said = damaged
    with pytest.raises(dicomslide.MetadataError) as raised:
        opened_stream(folder)
    assert str(raised.value).endswith(said.partition(": ")[2])


@pytest.mark.parametrize("is_listed", [False, True])
def test_it_is_a_failure_of_a_cohort(damaged, is_listed):
    folder, said = damaged
    slides = dicomslide.open_slides(sorted(folder.iterdir()) if is_listed else folder)
    ((name, error),) = slides.failures.items()
    assert name == str(folder / "level-0.dcm")
    assert isinstance(error, dicomslide.MetadataError)
    assert str(error) == said
    (slide,) = slides.values()
    assert slide.num_levels == 2


@pytest.mark.parametrize("how", [1000, "Rows"])
def test_a_copy_beside_the_complete_file_does_not_matter(whole, tmp_path, how):
    folder = shutil.copytree(whole, tmp_path / "slide")
    copy = shutil.copy(folder / "level-0.dcm", folder / "a copy.dcm")
    damage(copy, how)
    expected = dicomslide.open_slide(whole).get_image_region((0, 0), 0, (64, 64))
    for given in (folder, sorted(folder.iterdir())):
        with pytest.warns(dicomslide.MetadataWarning, match=r"left out: .*a copy\.dcm"):
            slide = dicomslide.open_slide(given)
        assert slide.num_levels == 3
        np.testing.assert_array_equal(slide.get_image_region((0, 0), 0, (64, 64)), expected)


@pytest.mark.parametrize("how", [1000, "Rows"])
def test_files_of_other_kinds_are_ignored_as_ever(whole, tmp_path, how):
    folder = shutil.copytree(whole, tmp_path / "slide")
    other = shutil.copy(folder / "label.dcm", folder / "other.dcm")
    dataset = pydicom.dcmread(other)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CT_IMAGE_STORAGE
    dataset.SOPInstanceUID = "1.2.3"
    dataset.save_as(other)
    damage(other, how)
    with warnings.catch_warnings():
        warnings.simplefilter("error", dicomslide.MetadataWarning)
        assert dicomslide.open_slide(folder).num_levels == 3
        slides = dicomslide.open_slides(folder)
        assert OpenSlide(folder / "level-0.dcm").level_count == 3
    assert (len(slides), dict(slides.failures)) == (1, {})


def as_segmentation(path, *lacking):
    """Give a file the SOP Class of segmentations, as far as sorting of files reads it."""
    dataset = pydicom.dcmread(path)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = SEGMENTATION_STORAGE
    dataset.SOPInstanceUID = "1.2.3"
    for keyword in lacking:
        del dataset[keyword]
    dataset.save_as(path)


@pytest.mark.parametrize("lacking", [["TotalPixelMatrixRows"], ["Rows"]])
def test_a_segmentation_that_lacks_one_of_them_is_named(whole, tmp_path, lacking):
    folder = shutil.copytree(whole, tmp_path / "slide")
    other = shutil.copy(folder / "level-0.dcm", folder / "mask.dcm")
    as_segmentation(other, *lacking)
    with pytest.warns(
        dicomslide.MetadataWarning, match=rf"mask\.dcm: its header lacks {lacking[0]}"
    ):
        assert dicomslide.open_slide(folder).num_levels == 3
    os.truncate(other, 1000)
    with pytest.warns(dicomslide.MetadataWarning, match=r"mask\.dcm: its header is cut"):
        assert dicomslide.open_slide(folder).num_levels == 3


def test_a_segmentation_of_a_volume_that_is_no_slide_is_ignored(whole, tmp_path):
    """It has Rows and Columns, but no total pixel matrix."""
    folder = shutil.copytree(whole, tmp_path / "slide")
    other = shutil.copy(folder / "level-0.dcm", folder / "mask.dcm")
    as_segmentation(other, "TotalPixelMatrixRows", "TotalPixelMatrixColumns")
    with warnings.catch_warnings():
        warnings.simplefilter("error", dicomslide.MetadataWarning)
        assert dicomslide.open_slide(folder).num_levels == 3
        assert not dicomslide.open_slides(folder).failures


def test_annotations_that_end_before_their_groups_are_named(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "slide")
    path = folder / "nuclei.dcm"
    square = np.array([[10, 10], [20, 10], [20, 20], [10, 20]], np.float32)
    annotations_of(folder / "level-0.dcm", [group_of([square])]).save_as(path)
    assert len(dicomslide.open_slide(folder).annotation_labels) == 1
    data = path.read_bytes()
    os.truncate(path, data.index(b"\x6a\0\2\0SQ"))
    said = r"nuclei\.dcm: its header is cut: .* lacks AnnotationGroupSequence$"
    with pytest.warns(dicomslide.MetadataWarning, match=said):
        slide = dicomslide.open_slide(folder)
    assert (slide.num_levels, slide.annotation_labels) == (3, ())
    with pytest.raises(dicomslide.MetadataError, match=said):
        dicomslide.open_slide([folder / "level-0.dcm", path])
    assert list(dicomslide.open_slides(folder).failures) == [str(path)]


@pytest.mark.parametrize("keyword", LACKING)
def test_metadata_of_a_server_that_lack_one_are_named(whole, keyword):
    client = FakeClient(whole)
    uid, dataset = next(
        each for each in client.datasets.items() if each[1].TotalPixelMatrixRows == 700
    )
    del dataset[keyword]
    said = f"{uid}: its header lacks {keyword}"
    with pytest.warns(dicomslide.MetadataWarning, match=f"left out: .*{said}$"):
        assert dicomslide.open_slide(client).num_levels == 2
    with pytest.raises(dicomslide.MetadataError, match=said):
        dicomslide.find_slides(client)
    with pytest.warns(dicomslide.MetadataWarning, match=f"left out: .*{said}$"):
        (slide,) = dicomslide.find_slides(client, fail_on_error=False)
    assert slide.num_levels == 2
    slides = dicomslide.open_slides(client)
    ((_, error),) = slides.failures.items()
    assert isinstance(error, dicomslide.MetadataError)
    assert str(error).endswith(said)
