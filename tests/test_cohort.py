"""Many slides at once: how they are found, named, and what happens to those that are broken."""

from __future__ import annotations

import gc
import pickle
import shutil
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest

import dicomslide
from dicomslide.backends.open import open_source
from dicomslide.backends.part10 import file, local
from dicomslide.cli import main
from dicomslide.process.registry import Registry
from dicomslide.slide import batches, cohort, collecting, reading
from dicomslide.testing import write_slide
from tests.support.fake_client import FakeClient

SHAPE = (64, 96)
NAMES = [f"S23-{number}" for number in range(1, 5)]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Four slides in three folders: two are mixed up in one, and other files lie beside them."""
    folder = tmp_path_factory.mktemp("cohort")
    for number, name in enumerate(NAMES, 1):
        write_slide(
            folder / name,
            shape=SHAPE,
            tile_shape=(32, 32),
            downsamples=(1, 2),
            container_id=name,
            slide_number=number,
            seed=number,
        )
    for name in NAMES[2:]:
        for path in (folder / name).iterdir():
            path.rename(folder / f"{path.stem}-of-{name}.dcm")
        (folder / name).rmdir()
    (folder / "notes.txt").write_text("not a slide")
    return folder


@pytest.fixture
def folder(written, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(written, tmp_path / "cohort")


@pytest.mark.parametrize("source", ["written", "nowhere"])
def test_an_option_that_does_not_exist_is_refused_at_once(written, source):
    source = written if source == "written" else "nowhere"
    with pytest.raises(ValueError, match='on_error must be "raise" or "fill", not \'x\''):
        dicomslide.open_slides(source, on_error="x")


def uids(slide):
    return {path_uid(image.name) for level in slide.levels for image in level.images}


def path_uid(path):
    return pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID


def test_slides_of_a_folder_have_the_names_of_their_containers(written):
    slides = dicomslide.open_slides(written)
    assert list(slides) == NAMES
    assert len(slides) == 4
    assert not slides.failures
    assert "S23-2" in slides
    assert "S23-9" not in slides
    with pytest.raises(KeyError, match="S23-9"):
        slides["S23-9"]
    for name, slide in slides.items():  # pydicom is the oracle
        headers = [
            header
            for path in written.rglob("*.dcm")
            if (header := pydicom.dcmread(path, stop_before_pixels=True)).ContainerIdentifier
            == name
        ]
        volumes = {h.SOPInstanceUID for h in headers if h.ImageType[2] == "VOLUME"}
        assert uids(slide) == volumes
        assert len(volumes) == 2
        assert len(slide.label_images) == len(slide.overview_images) == 1


def test_a_slide_of_a_cohort_is_that_which_open_slide_opens(written):
    slide = dicomslide.open_slides(written)["S23-1"]
    alone = dicomslide.open_slide(written / "S23-1")
    assert slide == alone
    region = slide.get_image_region((3, 5), 0, (50, 60))
    np.testing.assert_array_equal(region, alone.get_image_region((3, 5), 0, (50, 60)))


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*", NAMES),
        ("S23-*", NAMES[:2]),
        ("*-of-S23-4.dcm", NAMES[3:]),
        ("**/level-0.dcm", NAMES[:2]),
    ],
)
def test_patterns(written, pattern, names):
    assert list(dicomslide.open_slides(f"{written}/{pattern}")) == names


def test_a_list_of_folders_and_files(written):
    files = list(written.glob("*-of-S23-3.dcm"))
    assert list(dicomslide.open_slides([written / "S23-2", *files])) == ["S23-2", "S23-3"]
    assert list(dicomslide.open_slides(written.glob("*-of-S23-3.dcm"))) == ["S23-3"]


def test_patterns_of_urls(written):
    pytest.importorskip("fsspec", reason="URLs take fsspec")
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(written), "/written", recursive=True)
    try:
        slides = dicomslide.open_slides("memory://written/")
        assert list(slides) == NAMES
        assert slides["S23-1"].thumbnail(48).shape == (48, 32, 3)
        assert list(dicomslide.open_slides("memory://written/S23-*/*.dcm")) == NAMES[:2]
        found = dicomslide.open_slides(["memory://written/S23-1/", "memory://absent/"])
        assert list(found) == NAMES[:1]
        assert isinstance(found.failures["memory://absent/"], FileNotFoundError)
    finally:
        memory.rm("/written", recursive=True)


def test_workers_are_sent_no_secret_of_a_url(monkeypatch):
    sent = []

    def on_cluster(function, items, *, size):
        sent.extend(items)
        return []

    monkeypatch.setattr(collecting, "on_cluster", on_cluster)
    with pytest.raises(dicomslide.NotDicomError) as caught:
        dicomslide.open_slides(["https://me:pass@host/a.dcm?sig=secret"])
    assert len(sent) == 1
    for text in (str(sent), str(caught.value)):
        assert "secret" not in text
        assert "pass" not in text


def test_slides_of_a_client(written):
    slides = dicomslide.open_slides(FakeClient(written))
    assert list(slides) == NAMES
    expected = dicomslide.open_slide(written / "S23-1").get_image_region((0, 0), 0, SHAPE)
    np.testing.assert_array_equal(slides["S23-1"].get_image_region((0, 0), 0, SHAPE), expected)


def test_what_fails_is_listed_and_the_rest_opens(folder):
    (folder / "S23-1" / "level-0.dcm").write_bytes(bytes(128) + b"DICM" + b"rubbish" * 9)
    for path in folder.glob("level-*-of-S23-4.dcm"):
        path.unlink()  # label and overview are left
    named = folder / "notes.txt"
    slides = dicomslide.open_slides([folder, named, folder / "absent.dcm"])
    assert list(slides) == NAMES[:3]
    assert slides["S23-1"].num_levels == 1
    failures = dict(slides.failures)
    assert isinstance(failures.pop(str(folder / "absent.dcm")), FileNotFoundError)
    assert isinstance(failures.pop(str(named)), dicomslide.NotDicomError)
    assert isinstance(failures.pop("S23-4"), dicomslide.NotSlideError)
    broken = str(folder / "S23-1" / "level-0.dcm")
    assert isinstance(failures.pop(broken), dicomslide.DicomSlideError)
    assert not failures


def test_a_slide_that_does_not_open_raises_at_its_lookup_and_is_a_failure_from_then_on(folder):
    copy = pydicom.dcmread(folder / "S23-2" / "level-0.dcm")
    copy.SOPInstanceUID = copy.file_meta.MediaStorageSOPInstanceUID = "2.25.7"
    copy.save_as(folder / "S23-2" / "twice.dcm")
    slides = dicomslide.open_slides(folder)
    assert not slides.failures
    with pytest.raises(dicomslide.AmbiguousSlideError):
        slides["S23-2"]
    assert isinstance(slides.failures["S23-2"], dicomslide.AmbiguousSlideError)
    # its traceback would keep headers alive
    assert slides.failures["S23-2"].__traceback__ is None
    again = dicomslide.open_slides(folder)
    assert list(again.summaries()) == ["S23-1", "S23-3", "S23-4"]
    assert list(again.failures) == ["S23-2"]
    third = dicomslide.open_slides(folder)
    assert {name: slide.num_levels for name, slide in third.opened()} == {
        "S23-1": 2, "S23-3": 2, "S23-4": 2
    }  # fmt: skip
    assert list(third.failures) == ["S23-2"]


def test_cohorts_are_equal_if_their_slides_and_options_are_and_none_is_opened(folder):
    slides = dicomslide.open_slides(folder)
    same, other = (
        dicomslide.open_slides(folder, correct_color=correct) for correct in (True, False)
    )
    fewer = dicomslide.open_slides(folder / "S23-1")
    shutil.rmtree(folder)
    assert slides == same
    assert hash(slides) == hash(same) == hash(pickle.loads(pickle.dumps(slides)))
    assert slides not in (other, fewer, dict.fromkeys(slides))


def test_slides_that_all_name_one_container_take_few_reads_of_each_header(tmp_path, monkeypatch):
    """As of an anonymised archive: frames of reference tell them apart."""
    for number in range(12):
        write_slide(
            tmp_path / str(number),
            shape=SHAPE,
            downsamples=(1,),
            container_id="ANON",
            slide_number=number + 1,
        )
    (tmp_path / "3" / "label.dcm").unlink()
    read = count_headers(monkeypatch, kept=3)
    slides = dicomslide.open_slides(tmp_path)
    dicom = list(tmp_path.rglob("*.dcm"))
    assert max(Counter(path for path in read if path.endswith(".dcm")).values()) <= 5
    assert len(slides) == 12
    found = {Path(slide.name).parent.name: slide for slide in slides.values()}
    for name, slide in found.items():
        images = [*slide.levels[0].images, *slide.overview_images]
        if name != "3":  # which is given those of other scans of its container
            images += slide.label_images
        assert {Path(image.name) for image in images} == {
            path for path in dicom if path.parent.name == name
        }


def test_a_copy_of_a_file_elsewhere_is_left_out_with_a_warning(folder):
    shutil.copytree(folder / "S23-1", folder / "backup")
    slides = dicomslide.open_slides(folder)
    assert list(slides) == NAMES
    with pytest.warns(dicomslide.MetadataWarning, match="left out"):
        assert slides["S23-1"].num_levels == 2


def test_two_scans_of_a_container_are_told_apart_by_their_frame_of_reference(tmp_path):
    for number in (1, 2):
        write_slide(tmp_path / str(number), shape=SHAPE, downsamples=(1,), slide_number=number)
    frames = [
        dicomslide.open_slide(tmp_path / number).frame_of_reference_uid for number in ("1", "2")
    ]
    slides = dicomslide.open_slides(tmp_path)
    assert list(slides) == sorted(f"DS-0001/{frame}" for frame in frames)
    for name, slide in slides.items():
        assert name.endswith(slide.frame_of_reference_uid)


def test_a_container_with_a_backslash_has_the_name_that_is_stored(tmp_path):
    """pydicom reads it as several values."""
    write_slide(tmp_path, shape=SHAPE, downsamples=(1,), container_id="S23_3\\a")
    ((name, slide),) = dicomslide.open_slides(tmp_path).items()
    assert name == slide.container_identifier == "S23_3\\a"
    assert dicomslide.open_slide(tmp_path, container_id=name).name == slide.name


def test_a_label_is_that_of_its_series_rather_than_of_its_container(tmp_path):
    for number in (1, 2):
        write_slide(tmp_path / str(number), shape=SHAPE, downsamples=(1,), slide_number=number)
        level = pydicom.dcmread(tmp_path / str(number) / "level-0.dcm")
        path = tmp_path / str(number) / "label.dcm"
        label = pydicom.dcmread(path)
        label.SeriesInstanceUID = level.SeriesInstanceUID
        del label.FrameOfReferenceUID
        label.save_as(path)
    slides = dicomslide.open_slides(tmp_path)
    assert len(slides) == 2
    for slide in slides.values():
        (label,) = slide.label_images
        assert Path(label.name).parent == Path(slide.name).parent


def test_without_a_container_a_slide_has_the_name_of_a_file(folder):
    for path in (folder / "S23-1").iterdir():
        header = pydicom.dcmread(path)
        del header.ContainerIdentifier
        header.save_as(path)
    slides = dicomslide.open_slides(folder)
    assert len(slides) == 4
    (name,) = set(slides) - set(NAMES)
    assert name.startswith(str(folder / "S23-1"))
    assert slides[name].num_levels == 2


def test_options_are_those_of_each_slide(written):
    slides = dicomslide.open_slides(written, correct_color=False)
    assert slides["S23-1"] == dicomslide.open_slide(written / "S23-1", correct_color=False)
    assert slides["S23-1"] != dicomslide.open_slide(written / "S23-1")


def test_where_there_is_no_slide_the_first_failure_is_raised(written, tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        dicomslide.open_slides(tmp_path / "absent")
    with pytest.raises(dicomslide.NotDicomError, match="no DICOM file"):
        dicomslide.open_slides(tmp_path)
    with pytest.raises(dicomslide.NotDicomError, match="empty list"):
        dicomslide.open_slides([])
    with pytest.raises(dicomslide.NotSlideError, match="not a slide"):
        dicomslide.open_slides(written / "S23-1" / "label.dcm")
    with pytest.raises(TypeError, match="int"):
        dicomslide.open_slides(3)
    with pytest.raises(TypeError, match="study_instance_uid"):
        dicomslide.open_slides(written, study_instance_uid="1.2")
    with pytest.raises(ValueError, match="storage_options"):
        dicomslide.open_slides(written, storage_options={"anon": True})


def test_opening_reads_each_header_once_and_keeps_few_of_them_and_no_pixels(
    written, monkeypatch, frames_read
):
    read = count_headers(monkeypatch, kept=3)  # 16 files: as if they were thousands
    monkeypatch.setattr(local, "_open_files", Registry(2, "open files"))
    before = count_descriptors()
    slides = dicomslide.open_slides(written)
    dicom = [str(path) for path in written.rglob("*.dcm")]
    assert sorted(path for path in read if path.endswith(".dcm")) == sorted(dicom)
    assert not frames_read
    assert count_descriptors() <= before + 2
    assert len(pickle.dumps(slides)) < 2_500 * len(slides)


def count_headers(monkeypatch, kept):
    """Return a list to which the name of each file is added whose header is read; few are kept."""
    read = []
    original = file.part10.read_header

    def counting(blob):
        read.append(blob.name)
        return original(blob)

    monkeypatch.setattr(file.part10, "read_header", counting)
    monkeypatch.setattr(file, "_instances", Registry(kept, "parsed files"))
    # one after the other, however slow: several at once push each other out of so few
    monkeypatch.setattr(batches, "MIN_WAIT", float("inf"))
    return read


def count_descriptors():
    gc.collect()
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


@pytest.mark.parametrize("waits", [False, True])
def test_several_files_are_opened_at_once_where_that_means_to_wait(written, monkeypatch, waits):
    """As on a server: one alone would wait for the other at the barrier for ever."""
    barrier = threading.Barrier(2)
    threads = []

    def opening(path):
        threads.append(threading.get_ident())
        if waits and len(threads) in (2, 3):
            barrier.wait(10)
        return open_source(path)

    monkeypatch.setattr(reading, "open_source", opening)
    monkeypatch.setattr(batches, "MIN_WAIT", 0 if waits else 60)
    monkeypatch.setattr(batches.time, "thread_time", lambda: 0.0)
    slides = dicomslide.open_slides(written)
    assert list(slides) == NAMES
    assert list(slides.summaries()) == NAMES
    assert (len(set(threads)) > 1) == waits


def test_a_cohort_pickles(written):
    slides = pickle.loads(pickle.dumps(dicomslide.open_slides(written)))
    assert list(slides) == NAMES
    assert slides["S23-3"].thumbnail(48).shape == (48, 32, 3)


def test_a_table_has_a_row_a_slide(written):
    table = dicomslide.open_slides(written).to_pandas()
    assert list(table.index) == NAMES
    assert table.index.name == "slide"
    row = table.loc["S23-1"]
    assert (row["rows"], row["columns"], row["levels"]) == (*SHAPE, 2)
    assert row["um_per_pixel"] == pytest.approx(0.5)
    assert row["stains"] == "hematoxylin stain, water soluble eosin stain"
    assert row["file"].endswith("level-0.dcm")


def test_a_notebook_shows_slides_and_failures_and_asks_no_cluster(folder, monkeypatch):
    """Which may be at work for hours."""
    (folder / "S23-1" / "level-1.dcm").write_bytes(bytes(128) + b"DICM<b>")
    slides = dicomslide.open_slides(folder)
    monkeypatch.setattr(cohort, "on_cluster", None)
    assert repr(slides) == "<Cohort of 4 slides: S23-1, S23-2, S23-3, S23-4; 1 failure>"
    html = slides._repr_html_()
    for text in (*NAMES, "64 × 96", "4 slides", "1 failure", "level-1.dcm"):
        assert text in html


# -- at the prompt ---------------------------------------------------------------------------


def test_info_has_a_line_a_slide(written, capsys):
    assert main(["info", str(written)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["rows", "×", "columns"]
    assert [line.split()[0] for line in lines] == NAMES
    assert all("64 × 96" in line for line in lines)


def test_info_of_several_paths_of_which_one_is_wrong(written, capsys):
    assert main(["info", str(written / "S23-1"), str(written / "S23-2"), "absent"]) == 1
    captured = capsys.readouterr()
    assert [line.split()[0] for line in captured.out.splitlines()[1:]] == NAMES[:2]
    (error,) = captured.err.splitlines()
    assert error.startswith("dicomslide: error: ")
    assert "absent" in error


def test_info_as_json_of_several_slides(written, capsys):
    import json

    assert main(["info", "--json", str(written)]) == 0
    described = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in described] == NAMES
    assert described[1]["levels"][0]["rows"] == SHAPE[0]
    for arguments in ([str(written / "S23-2")], [str(written), "--container-id", "S23-2"]):
        assert main(["info", "--json", *arguments]) == 0
        assert json.loads(capsys.readouterr().out) == described[1:2]  # of one slide the same


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_info_of_slides_of_which_one_does_not_open(folder, options, capsys):
    copy = pydicom.dcmread(folder / "S23-2" / "level-0.dcm")
    copy.SOPInstanceUID = copy.file_meta.MediaStorageSOPInstanceUID = "2.25.7"
    copy.save_as(folder / "S23-2" / "twice.dcm")
    assert main(["info", *options, str(folder)]) == 1
    captured = capsys.readouterr()
    assert "S23-1" in captured.out
    assert "S23-2" not in captured.out
    (error,) = captured.err.splitlines()
    assert error.startswith("dicomslide: error: ")
    assert "twice.dcm both hold channel" in error


def test_info_of_one_slide_with_a_broken_file_shows_it_and_fails(folder, capsys):
    broken = folder / "S23-1" / "level-1.dcm"
    broken.write_bytes(bytes(128) + b"DICM<b>")
    assert main(["info", str(folder / "S23-1")]) == 1
    captured = capsys.readouterr()
    assert "level 0" in captured.out
    assert str(broken) in captured.err
