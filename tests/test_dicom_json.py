"""Metadata as DICOM JSON: the same positions as the file's, without a data set a frame."""

from __future__ import annotations

import json

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dicomslide
from dicomslide.backends.dicomweb import dicom_json
from dicomslide.backends.dicomweb.dicom_json import (
    MOST_NESTED,
    BulkData,
    dataset_of_json,
    frame_groups_of_json,
    nesting_of,
)
from dicomslide.backends.dicomweb.source import _header_of
from dicomslide.backends.part10.file import FileSource
from dicomslide.header.layout import pixel_format_of
from dicomslide.testing import write_slide

POSITIONS = "0048021A"
ROW = "0048021F"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sparse")
    return write_slide(
        folder, shape=(100, 140), downsamples=(1,), tile_shape=(32, 48), samples=1, bits=16,
        transfer_syntax_uid="1.2.840.10008.1.2.1", optical_paths=("DAPI", "FITC"),
        planes=(5.0, 7.0, 9.0), sparse=True, associated=False, drawing="position",
    )[0]  # fmt: skip


@pytest.fixture
def metadata(path):
    return json.loads(pydicom.dcmread(path, stop_before_pixels=True).to_json())


def test_positions_are_those_of_the_file(path, metadata):
    found, expected = dataset_of_json(metadata), FileSource.open(path).frame_positions()
    for name in ("rows", "columns", "z", "channels"):
        np.testing.assert_array_equal(
            getattr(found.frame_positions, name), getattr(expected, name), strict=name != "channels"
        )
    assert "PerFrameFunctionalGroupsSequence" not in found
    assert "PerFrameFunctionalGroupsSequence" in pydicom.Dataset.from_json(metadata)


def test_numbers_may_be_strings(path, metadata):
    for item in metadata["52009230"]["Value"]:
        position = item[POSITIONS]["Value"][0]
        for tag in (ROW, "0040074A"):
            position[tag]["Value"] = [str(position[tag]["Value"][0])]
    found, expected = dataset_of_json(metadata), FileSource.open(path).frame_positions()
    np.testing.assert_array_equal(found.frame_positions.rows, expected.rows)
    np.testing.assert_array_equal(found.frame_positions.z, expected.z)


def test_no_data_set_is_made_for_a_frame(metadata, monkeypatch):
    made = []
    original = pydicom.Dataset.from_json.__func__

    def from_json(cls, found, *arguments):
        made.append(found)
        return original(cls, found, *arguments)

    monkeypatch.setattr(pydicom.Dataset, "from_json", classmethod(from_json))
    dataset_of_json(metadata)
    assert len(made) < len(metadata["52009230"]["Value"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda groups: groups.pop(), "items for"),
        (lambda groups: groups[3][POSITIONS]["Value"][0].pop(ROW), "expected all or none"),
        (lambda groups: groups[3].clear(), "expected all or none"),
    ],
)
def test_positions_that_some_frames_lack_are_an_error(metadata, change, said):
    change(metadata["52009230"]["Value"])
    with pytest.raises(dicomslide.MetadataError, match=said):
        _header_of(dataset_of_json(metadata))


def test_the_groups_of_some_frames_are_data_sets(path, metadata):
    expected = pydicom.dcmread(path).PerFrameFunctionalGroupsSequence
    found = frame_groups_of_json(metadata, [5, 2])
    assert [*found] == [expected[5], expected[2]]
    del metadata["52009230"]
    assert frame_groups_of_json(metadata, [5, 2]) == []


def test_bulk_data_know_where_they_are(metadata):
    metadata["00282000"] = {"vr": "OB", "BulkDataURI": "http://host/bulk/1"}
    found = dataset_of_json(metadata).ICCProfile
    assert isinstance(found, BulkData)
    assert (found, found.uri) == (b"", "http://host/bulk/1")


@pytest.mark.parametrize(
    "groups", [{"vr": "SQ"}, {"vr": "SQ", "Value": [None]}, {"vr": "SQ", "Value": [1]}]
)
def test_what_is_no_dicom_json_is_an_error_or_nothing(metadata, groups):
    metadata["52009230"] = groups
    if groups == {"vr": "SQ"}:
        assert dataset_of_json(metadata).frame_positions is None
    else:
        with pytest.raises(dicomslide.MetadataError):
            _header_of(dataset_of_json(metadata))


def test_a_sequence_that_is_bulk_data_is_said_to_be_left_out(metadata):
    metadata["00480105"] = {"vr": "SQ", "BulkDataURI": "http://host/bulk/1"}
    with pytest.warns(dicomslide.MetadataWarning, match="sequence 00480105 is left out"):
        found = dataset_of_json(metadata)
    assert not found.get("OpticalPathSequence")
    assert found.Rows == metadata["00280010"]["Value"][0]


@pytest.mark.parametrize(
    "bad",
    [None, "x", [], {"00080018": None}, {"00080018": {"vr": "UI", "Value": []}, "00280010": 3}],
)
def test_what_is_no_object_of_elements_is_an_error(bad):
    with pytest.raises(dicomslide.MetadataError, match="DICOM JSON"):
        dataset_of_json(bad)


UNNEEDED = [
    ("00200013", "IS", [""]),
    ("00101030", "DS", [""]),
    ("00101030", "DS", ["70,5"]),
    ("00200011", "IS", ["A1"]),
    ("00200011", "IS", "12a"),
    ("00091002", "DS", ["abc", 3]),
    ("00180050", "DS", [None, "thin"]),
    ("00189073", "FD", ["12.5.1"]),
    ("00280002", "US", ["3"]),
    ("00082142", "US", ["many"]),
    ("00100010", "PN", [{"Alphabetic": None}]),
    ("00100010", "PN", [{"Alphabetic": "A", "Phonetic": 3}]),
    ("00209165", "AT", [17]),
    ("00280034", "ZZ", ["1"]),
    ("00282000", "OB", None),
]


@pytest.mark.parametrize(("tag", "vr", "value"), UNNEEDED)
@pytest.mark.parametrize("nested", [False, True])
def test_a_value_that_does_not_convert_hinders_nobody_who_does_not_need_it(
    metadata, tag, vr, value, nested
):
    broken = {"vr": vr, "Value": value} if vr != "OB" else {"vr": vr, "InlineBinary": 3}
    expected = dataset_of_json(json.loads(json.dumps(metadata)))
    if nested:
        metadata["00480105"]["Value"][0]["00480100"] = {"vr": "SQ", "Value": [{tag: broken}]}
    else:
        metadata[tag] = broken
    found = dataset_of_json(metadata)
    assert found.SOPInstanceUID == expected.SOPInstanceUID
    assert found.Rows == expected.Rows
    assert found.TotalPixelMatrixRows == expected.TotalPixelMatrixRows
    paths = [each.OpticalPathIdentifier for each in found.OpticalPathSequence]
    assert paths == ["DAPI", "FITC"]
    measures = found.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert list(measures.PixelSpacing) == list(
        expected.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    )
    np.testing.assert_array_equal(found.frame_positions.rows, expected.frame_positions.rows)


@pytest.mark.parametrize(
    ("keyword", "tag", "element"),
    [
        ("SeriesNumber", "00200011", {"vr": "IS", "Value": ["A1"]}),
        ("PatientWeight", "00101030", {"vr": "DS", "Value": ["70,5"]}),
        ("ExposureTime", "00181150", {"vr": "IS", "Value": "12a"}),
    ],
)
def test_a_value_that_does_not_convert_is_the_text_that_it_would_be_in_a_file(
    path, metadata, tmp_path, keyword, tag, element
):
    metadata[tag] = element
    text = "".join(element["Value"])
    assert dataset_of_json(metadata).get(keyword) == text
    number = int(tag, 16)
    dataset = pydicom.dcmread(path)
    dataset[number] = pydicom.DataElement(number, "SH", text)
    dataset.save_as(tmp_path / "image.dcm")
    data = (tmp_path / "image.dcm").read_bytes()
    head = (number >> 16).to_bytes(2, "little") + (number & 0xFFFF).to_bytes(2, "little")
    assert data.count(head + b"SH") == 1
    vr = element["vr"].encode()
    (tmp_path / "image.dcm").write_bytes(data.replace(head + b"SH", head + vr))
    assert FileSource.open(tmp_path / "image.dcm").metadata.get(keyword) == text


def test_pixels_that_are_not_described_by_numbers_are_an_error(metadata):
    metadata["00280010"] = {"vr": "US", "Value": ["many"]}
    with pytest.raises(dicomslide.MetadataError, match="pixels aren't described: Rows many"):
        pixel_format_of(dataset_of_json(metadata))


def test_an_empty_number_is_empty_and_a_name_without_letters_too(metadata):
    metadata["00200013"] = {"vr": "IS", "Value": [""]}
    metadata["00100010"] = {"vr": "PN", "Value": [{"Alphabetic": None}]}
    metadata["00081070"] = {"vr": "PN", "Value": [{"Alphabetic": "Ä^B", "Phonetic": 3}]}
    found = dataset_of_json(metadata)
    assert found.InstanceNumber is None
    assert str(found.PatientName) == ""
    assert str(found.OperatorsName) == "Ä^B==3"


@pytest.mark.parametrize("tag", [(0x0010, 0x1030), (0x0048, 0x0112)])
@pytest.mark.parametrize("value", ["70,5", "20x", "abc"])
def test_in_a_file_such_a_value_hinders_nobody_either(path, tmp_path, tag, value):
    dataset = pydicom.dcmread(path)
    where = dataset if tag[0] == 0x0010 else dataset.OpticalPathSequence[0]
    where[tag] = pydicom.DataElement(tag, "SH", value)
    dataset.save_as(tmp_path / "image.dcm")
    data = (tmp_path / "image.dcm").read_bytes()
    head = tag[0].to_bytes(2, "little") + tag[1].to_bytes(2, "little")
    assert data.count(head + b"SH") == 1
    (tmp_path / "image.dcm").write_bytes(data.replace(head + b"SH", head + b"DS"))
    for source in (tmp_path, tmp_path / "image.dcm"):
        slide = dicomslide.open_slide(source)
        np.testing.assert_array_equal(
            slide.get_image_region((0, 0), 0, (50, 60), 1),
            dicomslide.open_slide(path).get_image_region((0, 0), 0, (50, 60), 1),
        )
        assert slide.to_dataset().sizes["channel"] == 2


# -- nesting ---------------------------------------------------------------------------------


def depth_of(value):
    """As programs see it: one by one."""
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


ANY_JSON = st.recursive(
    st.none() | st.integers() | st.text('[{"\\a', max_size=9),
    lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text("a[{"), some, max_size=3),
)


@given(ANY_JSON, st.integers(0, 3 * MOST_NESTED))
def test_json_that_is_nested_too_deep_is_known(value, more):
    """Brackets that text opens don't make it so."""
    data = b"[" * more + json.dumps(value, ensure_ascii=False).encode() + b"]" * more
    assert (nesting_of(data) > MOST_NESTED) == (depth_of(value) + more > MOST_NESTED)


@pytest.mark.parametrize("size", [dicom_json.BLOCK - 1, dicom_json.BLOCK, 3 * dicom_json.BLOCK])
def test_the_nesting_of_long_json_is_counted_across_blocks(size):
    value = b'"' + b"x" * size + b'"'
    for _ in range(MOST_NESTED + 1):
        value = b"[" + value + b"]"
    assert nesting_of(value) == MOST_NESTED + 1


def test_sequences_as_deep_as_the_bound_allows_are_converted():
    dataset = pydicom.Dataset()
    dataset.PatientID = "deep"
    for _ in range(MOST_NESTED // 3 - 1):
        outer = pydicom.Dataset()
        outer.ReferencedSeriesSequence = [dataset]
        dataset = outer
    text = json.dumps(dataset.to_json_dict()).encode()
    assert MOST_NESTED - 6 <= nesting_of(text) <= MOST_NESTED
    assert dataset_of_json(json.loads(text)) == dataset
