"""Headers: parsed once a process, their values converted when they are asked for."""

from __future__ import annotations

import copy
import pickle
import shutil
import subprocess
import sys
import threading

import numpy as np
import pydicom
import pytest

import dicomslide
from dicomslide.backends.concatenation import ConcatenatedSource
from dicomslide.backends.part10 import frame_index as pixel_data
from dicomslide.backends.part10 import header as part10
from dicomslide.backends.part10 import parsed
from dicomslide.backends.part10.file import FileSource
from dicomslide.errors import MetadataError
from dicomslide.header import lenient
from dicomslide.header.tiling import distinct
from dicomslide.testing import write_slide

SMALL = dict(shape=(60, 80), tile_shape=(32, 32), drawing="position", associated=False)
INVALID = "1.2.wrong.9"
SPECIMENS = 0x00400560  # Specimen Description Sequence


def counting(counts, name, function, path_of):
    def counted(*args):
        key = name, path_of(*args)
        counts[key] = counts.get(key, 0) + 1
        return function(*args)

    return counted


@pytest.fixture
def calls(monkeypatch):
    """How often what is expensive about a file was made, by file."""
    counts = {}
    for module, name, path_of in (
        (part10, "read_header", lambda blob: blob.name),
        (parsed, "scan_per_frame_groups", lambda read, *args: read.__self__.name),
        (pixel_data, "locate_frames", lambda header, *args: header.blob.name),
    ):
        monkeypatch.setattr(module, name, counting(counts, name, getattr(module, name), path_of))
    return counts


def test_a_file_is_parsed_once_whatever_reads_it(tmp_path, calls):
    paths = write_slide(tmp_path, sparse=True, undefined_lengths=True, downsamples=(1, 2), **SMALL)
    slides = [dicomslide.open_slide(where) for where in (tmp_path, tmp_path, paths)]
    arrays = [slide.to_dataset(level=level) for slide in slides for level in (0, 1)]
    again = pickle.loads(pickle.dumps(slides[0]))
    for slide in (*slides, again):
        slide.get_image_region((0, 0), 0, (60, 80))
        slide.get_image_region((0, 0), 1, (30, 40))
    for array in arrays:
        array.image.compute()
    names = ("read_header", "scan_per_frame_groups", "locate_frames")
    assert calls == {(name, str(path)): 1 for name in names for path in paths}


def test_threads_that_want_a_file_at_once_wait_for_one_of_them(tmp_path, calls):
    (path,) = write_slide(tmp_path, sparse=True, downsamples=(1,), **SMALL)
    start = threading.Barrier(8)

    def read():
        start.wait()
        source = FileSource.open(path)
        source.frame_positions()
        source.read_frames([0])

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(calls.values()) == {1}


def test_a_file_that_was_replaced_is_parsed_anew(tmp_path, calls):
    (path,) = write_slide(tmp_path / "a", downsamples=(1,), container_id="A", **SMALL)
    (other,) = write_slide(tmp_path / "b", downsamples=(1,), container_id="BBB", **SMALL)
    assert dicomslide.open_slide(path).container_identifier == "A"
    shutil.copyfile(other, path)
    assert dicomslide.open_slide(path).container_identifier == "BBB"
    assert calls["read_header", str(path)] == 2


def test_what_is_not_asked_for_is_not_converted(tmp_path):
    (path,) = write_slide(tmp_path, downsamples=(1,), **SMALL)
    slide = dicomslide.open_slide(path)
    slide.get_image_region((0, 0), 0, (60, 80))
    metadata = slide.metadata
    assert metadata.get_item(SPECIMENS).is_raw
    assert sum(metadata.get_item(tag).is_raw for tag in tuple(metadata.keys())) > len(metadata) / 2


def test_metadata_are_what_pydicom_reads(tmp_path):
    (path,) = write_slide(tmp_path, downsamples=(1,), **SMALL)
    with pydicom.dcmread(path, stop_before_pixels=True) as expected:
        metadata = dicomslide.open_slide(path).metadata
        assert copy.deepcopy(metadata) == pydicom.Dataset(expected)
        assert pickle.loads(pickle.dumps(metadata)) == metadata
        assert metadata.to_json_dict() == expected.to_json_dict()
        assert str(metadata).splitlines()[-20:] == str(expected).splitlines()[-20:]
        assert metadata[0x00280000:0x00290000] == expected[0x00280000:0x00290000]
    with pytest.raises(KeyError):
        metadata[0x00280009]
    with pytest.raises(AttributeError):
        metadata.FrameTime  # noqa: B018


@pytest.mark.parametrize("key", ["NoKeyword", 0x00280009, 1 << 40, b"Rows", None])
def test_what_is_no_element_is_a_key_error_as_in_pydicom(tmp_path, key):
    (path,) = write_slide(tmp_path, downsamples=(1,), **SMALL)
    for metadata in (pydicom.dcmread(path), FileSource.open(path).metadata):
        with pytest.raises(KeyError):
            metadata[key]


def test_metadata_equal_what_pydicom_reads_from_either_side(tmp_path):
    (path,) = write_slide(tmp_path, downsamples=(1,), **SMALL)
    expected = pydicom.dcmread(path, stop_before_pixels=True)
    metadata = FileSource.open(path).metadata
    assert metadata == expected
    assert expected == metadata
    assert pydicom.Dataset(expected) == metadata
    assert metadata != 1
    expected.SpecimenDescriptionSequence[0].SpecimenIdentifier = "another"
    assert metadata != expected
    assert expected != metadata


def with_invalid_values(path):
    """UIDs that break the rules, and text of a character set."""
    dataset = pydicom.dcmread(path)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName = "Müller^Jürgen"
    dataset.OpticalPathSequence[0].OpticalPathDescription = "Größe"
    dataset.DeviceUID = dataset.SpecimenDescriptionSequence[0].SpecimenUID = "1.2.3456789"
    dataset.save_as(path)
    data = path.read_bytes()
    assert data.count(b"1.2.3456789") == 2
    path.write_bytes(data.replace(b"1.2.3456789", INVALID.encode()))
    return path


@pytest.mark.parametrize(
    "read",
    [
        lambda metadata: metadata.DeviceUID,
        lambda metadata: metadata.get("DeviceUID"),
        lambda metadata: metadata[0x00181002].value,
        lambda metadata: metadata[0x00180000:0x00190000].DeviceUID,
        lambda metadata: metadata.group_dataset(0x0018).DeviceUID,
        lambda metadata: copy.deepcopy(metadata).DeviceUID,
        lambda metadata: pickle.loads(pickle.dumps(metadata)).DeviceUID,
        lambda metadata: metadata.SpecimenDescriptionSequence[0].SpecimenUID,
        lambda metadata: next(e.value for e in metadata if e.keyword == "DeviceUID"),
        lambda metadata: next(e.value for e in metadata.iterall() if e.keyword == "SpecimenUID"),
    ],
)
def test_invalid_values_are_quiet_however_they_are_read(tmp_path, read):
    """Without pydicom's warnings, which are errors in these tests."""
    (path,) = write_slide(tmp_path, downsamples=(1,), **SMALL)
    with pytest.warns(UserWarning, match="Invalid value for VR UI"):
        read(pydicom.dcmread(with_invalid_values(path)))
    assert read(dicomslide.open_slide(path).metadata) == INVALID


def test_text_is_in_the_characters_of_the_header(tmp_path):
    (path,) = write_slide(tmp_path, downsamples=(1,), **SMALL)
    slide = dicomslide.open_slide(with_invalid_values(path))
    assert str(slide.metadata.PatientName) == "Müller^Jürgen"
    assert slide.channels[0].description == "Größe"


def test_metadata_of_a_concatenation_keep_text_and_are_quiet(tmp_path):
    paths = [
        write_slide(tmp_path / str(i), downsamples=(1,), slide_number=i, **SMALL)[0] for i in (1, 2)
    ]
    parts = tuple(FileSource.open(with_invalid_values(path)) for path in paths)
    joined = ConcatenatedSource(parts, (0, 6), (6, 6))
    assert joined.metadata is joined.metadata
    assert joined.metadata.NumberOfFrames == 12
    assert str(joined.metadata.PatientName) == "Müller^Jürgen"
    assert joined.metadata.DeviceUID == INVALID
    assert parts[0].metadata.NumberOfFrames == 6


def test_a_broken_value_that_nobody_needs_stops_no_concatenation(tmp_path):
    paths = [
        write_slide(tmp_path / str(i), downsamples=(1,), slide_number=i, **SMALL)[0] for i in (1, 2)
    ]
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.RecommendedDisplayFrameRateInFloat = 2.0
        dataset.save_as(path)
        data, number = path.read_bytes(), b"\x08\0\x59\x94F"
        assert data.count(number + b"L") == 1
        path.write_bytes(data.replace(number + b"L", number + b"D"))  # eight bytes, of four
    joined = ConcatenatedSource(tuple(map(FileSource.open, paths)), (0, 6), (6, 6)).metadata
    assert joined.NumberOfFrames == 12
    assert joined.Rows == 32
    with pytest.raises(dicomslide.MetadataError, match="header can't be read"):
        joined.RecommendedDisplayFrameRateInFloat  # noqa: B018


def test_validation_is_as_it_was_while_a_header_is_read(tmp_path):
    (path,) = write_slide(tmp_path, downsamples=(1,), **SMALL)
    settings = pydicom.config.settings
    before = settings.reading_validation_mode, settings.writing_validation_mode
    metadata = dicomslide.open_slide(with_invalid_values(path)).metadata
    assert (settings.reading_validation_mode, settings.writing_validation_mode) == before
    for _ in metadata:
        assert (settings.reading_validation_mode, settings.writing_validation_mode) == before


def test_threads_that_ask_for_one_value_get_the_same(tmp_path):
    (path,) = write_slide(tmp_path, downsamples=(1,), **SMALL)
    path = with_invalid_values(path)
    for _ in range(10):
        dicomslide.clear_all("parsed files", "layouts")
        metadata = FileSource.open(path).metadata
        found = []
        start = threading.Barrier(4)

        def read(metadata=metadata, found=found, start=start):
            start.wait()
            found.append([str(element.value) for element in metadata if element.tag != SPECIMENS])

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4
        assert all(each == found[0] for each in found)


def test_a_thread_never_sees_a_sequence_that_another_one_is_converting(tmp_path, monkeypatch):
    (path,) = write_slide(tmp_path, downsamples=(1,), **SMALL)
    metadata = FileSource.open(with_invalid_values(path)).metadata
    found, started = [], []
    make = lenient.LenientDataset.__init__

    def read():
        # the warning of an invalid value, of a plain data set, would be an error
        found.append(type(metadata.SpecimenDescriptionSequence[0]))

    def slow(item, *arguments):
        if not started:
            started.append(threading.Thread(target=read))
            started[0].start()
            started[0].join(0.2)  # it waits, else it is done long before
        make(item, *arguments)

    monkeypatch.setattr(lenient.LenientDataset, "__init__", slow)
    assert metadata.SpecimenDescriptionSequence[0].SpecimenUID == INVALID
    started[0].join()
    assert found == [lenient.LenientDataset]


def test_values_by_keyword_are_those_of_pydicom_also_after_changes(tmp_path):
    (path,) = write_slide(tmp_path, downsamples=(1,), **SMALL)
    plain, metadata = pydicom.dcmread(path, stop_before_pixels=True), FileSource.open(path).metadata
    keywords = [element.keyword for element in plain] + ["PyramidUID", "filename", "no keyword"]
    for _ in "twice":  # before values are converted, and after
        for keyword in keywords[:-2]:
            assert metadata.get(keyword, "absent") == plain.get(keyword, "absent"), keyword
    assert metadata.get("filename") == str(path)
    assert metadata.get("no keyword") is None
    assert metadata.get(0x00280010) == plain[0x00280010]  # by its tag: the element
    metadata = copy.deepcopy(metadata)
    metadata.Rows = 7
    assert metadata.get("Rows") == 7
    del metadata.Rows
    assert metadata.get("Rows", "absent") == "absent"


def test_a_value_that_can_not_be_converted_raises_and_names_the_file(tmp_path):
    (path,) = write_slide(tmp_path, downsamples=(1,), **SMALL)
    data = path.read_bytes()
    rows = b"\x28\0\x10\0US\x02\0\x20\0"
    assert data.count(rows) == 1
    # one byte short, which the next element makes up for
    path.write_bytes(data.replace(rows, b"\x28\0\x10\0US\x01\0\x20"))
    with pytest.raises(MetadataError, match=r"level-0\.dcm: the header can't be read: .*0028,0010"):
        dicomslide.open_slide(path)


@pytest.mark.parametrize(
    "values",
    [
        np.array([2.5, 2.5, 2.5]),
        np.array([3.0, 1.0, 3.0]),
        np.array(["a", "a"]),
        np.array([b"b", b"a", b"b"]),
        np.array([7]),
        np.array([], np.int64),
    ],
    ids=str,
)
def test_distinct_values_are_those_of_numpy(values):
    found, inverse = distinct(values)
    expected, of_each = np.unique(values, return_inverse=True)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(inverse, of_each)


FIRST_FILES = """
import sys, threading
from dicomslide.backends.part10.file import FileSource

half_way, opened = threading.Event(), threading.Event()

class Halfway:
    '''Holds whoever imports pydicom where its reader is there, but not the rest.'''

    def find_spec(self, name, path=None, target=None):
        if name == "pydicom.filewriter" and not half_way.is_set():
            half_way.set()
            opened.wait(1)

def open_second():
    half_way.wait(30)
    sys.stdout.write(f"{FileSource.open(sys.argv[2]).metadata.Rows}\\n")
    opened.set()

assert "pydicom" not in sys.modules
sys.meta_path.insert(0, Halfway())
second = threading.Thread(target=open_second)
second.start()
sys.stdout.write(f"{FileSource.open(sys.argv[1]).metadata.Rows}\\n")  # at once, unlike print
second.join()
assert half_way.is_set()
"""


def test_threads_open_the_first_files_of_a_process(position_slide):
    """The parts of pydicom fail where one thread imports them while another imports the whole."""
    paths = [str(position_slide / f"level-{level}.dcm") for level in (0, 1)]
    command = [sys.executable, "-c", FIRST_FILES, *paths]
    out = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (out.stdout, out.stderr) == ("32\n32\n", "")
