"""Metadata as DICOM JSON: the same positions as the file's, without a data set a frame."""

from __future__ import annotations

import json

import numpy as np
import pydicom
import pytest

import dicomslide
from dicomslide.backends.dicom_json import BulkData, dataset_of_json, frame_groups_of_json
from dicomslide.backends.dicomweb import _header_of
from dicomslide.backends.file import FileSource
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
