"""Items match when everything that is asked of them holds."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from dicomslide import (
    does_optical_path_item_match,
    does_segment_item_match,
    does_specimen_description_item_match,
)
from dicomslide.header import dicom
from dicomslide.testing import write_slide

TISSUE = Code("85756007", "SCT", "Tissue")
TISSUE_BY_ITS_RETIRED_NAME = Code("T-D0050", "SRT", "Tissue")
NUCLEUS = Code("84640000", "SCT", "Nucleus")
HEMATOXYLIN = Code("12710003", "SCT", "hematoxylin stain")
EOSIN = Code("36879007", "SCT", "water soluble eosin stain")


def item(**elements):
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def coded(code, keyword="CodeValue"):
    dataset = item(CodingSchemeDesignator=code.scheme_designator, CodeMeaning=code.meaning)
    setattr(dataset, keyword, code.value)
    return dataset


def as_read(dataset):
    """Write an item and read it, so that its values are as they come from a file."""
    from pydicom.filebase import DicomBytesIO
    from pydicom.filereader import read_dataset
    from pydicom.filewriter import write_dataset

    file = DicomBytesIO()
    file.is_little_endian, file.is_implicit_VR = True, False
    write_dataset(file, dataset)
    file.seek(0)
    return read_dataset(file, False, True)


# -- optical paths ---------------------------------------------------------------------------


@pytest.fixture
def path():
    return as_read(
        item(
            OpticalPathIdentifier="10",
            OpticalPathDescription="DAPI channel",
            IlluminationWaveLength=488.1,
        )
    )


@pytest.mark.parametrize(
    ("criteria", "expected"),
    [
        ({}, True),
        (dict(identifier="10"), True),
        (dict(identifier="1"), False),
        (dict(identifier=""), False),
        (dict(description="DAPI channel"), True),
        (dict(description="DAPI"), False),
        (dict(illumination_wavelength=488.1), True),
        (dict(illumination_wavelength=float(np.float32(488.1))), True),
        (dict(illumination_wavelength=488.2), False),
        (dict(illumination_wavelength=0), False),
        (dict(identifier="10", description="DAPI channel", illumination_wavelength=488.1), True),
        (dict(identifier="9", description="DAPI channel", illumination_wavelength=488.1), False),
        (dict(identifier="10", description="FITC", illumination_wavelength=488.1), False),
        (dict(identifier="10", description="DAPI channel", illumination_wavelength=525), False),
    ],
)
def test_optical_paths_match_in_all_that_is_given(path, criteria, expected):
    assert does_optical_path_item_match(path, **criteria) is expected


def test_what_an_optical_path_does_not_say_matches_nothing():
    for criteria in (
        dict(identifier="1"),
        dict(description=""),
        dict(illumination_wavelength=0.0),
        dict(illumination_wavelength=488.1),
    ):
        assert not does_optical_path_item_match(Dataset(), **criteria)
    assert does_optical_path_item_match(Dataset())


# -- segments --------------------------------------------------------------------------------


@pytest.fixture
def segment():
    return as_read(
        item(
            SegmentNumber=2,
            SegmentLabel="nuclei",
            SegmentedPropertyCategoryCodeSequence=[coded(TISSUE)],
            SegmentedPropertyTypeCodeSequence=[coded(NUCLEUS)],
        )
    )


@pytest.mark.parametrize(
    ("criteria", "expected"),
    [
        ({}, True),
        (dict(number=2), True),
        (dict(number=np.uint16(2)), True),
        (dict(number=1), False),
        (dict(number=0), False),
        (dict(label="nuclei"), True),
        (dict(label="nucle"), False),
        (dict(property_category=TISSUE), True),
        (dict(property_category=NUCLEUS), False),
        (dict(property_type=NUCLEUS), True),
        (dict(property_type=codes.SCT.Nucleus), True),
        (dict(property_type=Code("84640000", "DCM", "Nucleus")), False),
        (dict(property_type=Code("84640000", "SCT", "Nucleus", "2024")), False),
        (dict(property_category=TISSUE_BY_ITS_RETIRED_NAME), True),
        (dict(number=2, label="nuclei", property_category=TISSUE, property_type=NUCLEUS), True),
        (dict(number=1, label="nuclei", property_category=TISSUE, property_type=NUCLEUS), False),
        (dict(number=2, label="cells", property_category=TISSUE, property_type=NUCLEUS), False),
        (dict(number=2, label="nuclei", property_category=NUCLEUS, property_type=NUCLEUS), False),
        (dict(number=2, label="nuclei", property_category=TISSUE, property_type=TISSUE), False),
    ],
)
def test_segments_match_in_all_that_is_given(segment, criteria, expected):
    assert does_segment_item_match(segment, **criteria) is expected


def test_retired_codes_of_an_item_equal_their_successors():
    segment = item(SegmentedPropertyCategoryCodeSequence=[coded(TISSUE_BY_ITS_RETIRED_NAME)])
    assert does_segment_item_match(segment, property_category=TISSUE)


def test_concepts_of_highdicom_match_by_their_codes(segment, specimen):
    from highdicom.sr import CodedConcept

    nucleus = CodedConcept("84640000", "SCT", "another meaning")
    assert does_segment_item_match(segment, property_type=nucleus)
    retired = item(SegmentedPropertyCategoryCodeSequence=[coded(TISSUE_BY_ITS_RETIRED_NAME)])
    assert does_segment_item_match(retired, property_category=CodedConcept(*TISSUE[:3]))
    assert does_specimen_description_item_match(specimen, CodedConcept(*EOSIN[:3]))
    assert not does_specimen_description_item_match(Dataset(), CodedConcept(*EOSIN[:3]))


@pytest.mark.parametrize("keyword", ["CodeValue", "LongCodeValue", "URNCodeValue"])
def test_codes_are_found_in_whichever_element_holds_them(keyword):
    code = Code("urn:oid:1.2.3.4", "99TEST", "something")
    segment = as_read(item(SegmentedPropertyTypeCodeSequence=[coded(code, keyword)]))
    assert does_segment_item_match(segment, property_type=code)
    assert not does_segment_item_match(segment, property_type=NUCLEUS)


def test_a_segment_without_codes_matches_none():
    for segment in (Dataset(), item(SegmentedPropertyTypeCodeSequence=[])):
        assert not does_segment_item_match(segment, property_type=NUCLEUS)
        assert not does_segment_item_match(segment, property_category=TISSUE)
        assert does_segment_item_match(segment)


# -- specimens -------------------------------------------------------------------------------


@pytest.fixture
def specimen(tmp_path):
    path = write_slide(tmp_path, shape=(32, 32), downsamples=(1,), associated=False)[0]
    return pydicom.dcmread(path).SpecimenDescriptionSequence[0]


@pytest.mark.parametrize(
    ("stain", "expected"),
    [
        (None, True),
        (HEMATOXYLIN, True),
        (EOSIN, True),
        (NUCLEUS, False),
        (Code("127790008", "SCT", "Staining"), False),  # what was done, not with what
    ],
)
def test_specimens_match_by_any_of_their_stains(specimen, stain, expected):
    assert does_specimen_description_item_match(specimen, stain) is expected
    assert does_specimen_description_item_match(Dataset(), stain) is (stain is None)


def test_stains_have_names_whether_coded_or_not(specimen):
    steps = specimen.SpecimenPreparationSequence
    by_text = item(
        ConceptNameCodeSequence=[coded(Code("G-C350", "SRT", "Using substance"))],
        TextValue="a home brew",
    )
    steps.append(item(SpecimenPreparationStepContentItemSequence=[by_text]))
    image = item(SpecimenDescriptionSequence=[specimen, specimen])
    assert dicom.stains_of(image) == [
        "hematoxylin stain",
        "water soluble eosin stain",
        "a home brew",
    ]
    assert dicom.stains_of(Dataset()) == []
    assert not does_specimen_description_item_match(specimen, Code("a home brew", "99X", ""))
