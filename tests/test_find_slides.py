"""Which slides a client has: searched page by page, grouped, filtered."""

from __future__ import annotations

import copy
import itertools
import warnings

import numpy as np
import pydicom
import pytest
from pydicom.sr.coding import Code
from pydicom.uid import UID

import dicomslide
from dicomslide.backends.dicomweb import searching
from dicomslide.slide.discovery import find_slides
from dicomslide.testing import uid_of, write_slide
from tests.support.fake_client import FILTERS, FakeClient, refused

EOSIN = Code("36879007", "SCT", "water soluble eosin stain")
SMALL = dict(
    shape=(60, 70),
    downsamples=(1, 2),
    tile_shape=(32, 32),
    drawing="position",
    transfer_syntax_uid="1.2.840.10008.1.2.1",
    associated=False,
)
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
PARAMETRIC_MAP = "1.2.840.10008.5.1.4.1.1.30"
ANNOTATIONS = "1.2.840.10008.5.1.4.1.1.91.1"


def derive(path, sop_class, modality, number=100):
    """Write beside a file of a slide an instance of a series of its own, derived from it."""
    dataset = pydicom.dcmread(path)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = UID(sop_class)
    dataset.SOPInstanceUID = uid_of(path, sop_class, number)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.SeriesInstanceUID = uid_of(path, sop_class, number, "series")
    dataset.Modality = modality
    del dataset.OpticalPathSequence
    if sop_class in (SEGMENTATION, LABEL_MAP):
        segment = pydicom.Dataset()
        segment.SegmentNumber, segment.SegmentLabel = 1, "Nuclei"
        dataset.SegmentSequence = [segment]
        dataset.SegmentationType = "FRACTIONAL" if sop_class == SEGMENTATION else "LABELMAP"
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.PixelData = dataset.PixelData[: 32 * 32 * int(dataset.NumberOfFrames)]
    if sop_class == ANNOTATIONS:
        for keyword in ("Rows", "Columns", "PixelData", "TotalPixelMatrixRows",
                        "TotalPixelMatrixColumns", "NumberOfFrames"):  # fmt: skip
            del dataset[keyword]
    dataset.save_as(path.parent / f"{modality}-{number}.dcm")
    return str(dataset.SOPInstanceUID)


@pytest.fixture
def archive(tmp_path):
    """Three slides of two patients; the first and second are of one study."""
    for number, container in ((1, "A"), (2, "B"), (3, "C")):
        write_slide(
            tmp_path / container,
            **SMALL,
            slide_number=number,
            container_id=container,
            optical_paths=("1", "2") if container == "C" else ("1",),
        )
    for path in (tmp_path / "B").iterdir():
        dataset = pydicom.dcmread(path)
        dataset.StudyInstanceUID = uid_of("study", 1)
        dataset.PatientID = "SYNTHETIC-1"
        if path.name == "level-0.dcm":
            del dataset.SpecimenDescriptionSequence
        dataset.save_as(path)
    for path in (tmp_path / "C").iterdir():
        dataset = pydicom.dcmread(path)
        dataset.StudyID = "7"
        dataset.save_as(path)
    return tmp_path


def containers(slides):
    return [slide.container_identifier for slide in slides]


def test_all_slides_are_found_in_order(archive):
    client = FakeClient(archive)
    slides = find_slides(client)
    assert containers(slides) == ["A", "B", "C"]
    assert [slide.num_levels for slide in slides] == [2, 2, 2]
    expected = dicomslide.open_slide(archive / "B").get_image_region((0, 0), 1, (30, 35))
    np.testing.assert_array_equal(slides[1].get_image_region((0, 0), 1, (30, 35)), expected)
    client.datasets = dict(reversed(client.datasets.items()))
    again = find_slides(client)
    assert containers(again) == ["A", "B", "C"]
    assert [s.name for s in again] == [s.name for s in slides]


def test_metadata_are_asked_for_by_series(archive):
    client = FakeClient(archive)
    find_slides(client)
    kinds = [call[0] for call in client.calls]
    assert kinds.count("series metadata") == 3
    assert "metadata" not in kinds
    assert "frames" not in kinds


@pytest.mark.parametrize(
    ("criteria", "expected"),
    [
        (dict(study_instance_uid=uid_of("study", 1)), ["A", "B"]),
        (dict(patient_id="SYNTHETIC-1"), ["A", "B"]),
        (dict(patient_id="SYNTHETIC-3"), ["C"]),
        (dict(study_id="7"), ["C"]),
        (dict(study_id="7", patient_id="SYNTHETIC-1"), []),
        (dict(study_instance_uid=uid_of("study", 1), patient_id="SYNTHETIC-3"), []),
        (dict(container_id="B"), ["B"]),
        (dict(container_id="nothing"), []),
        (dict(optical_path_ids=["2"]), ["C"]),
        (dict(optical_path_ids=["2", "1"]), ["A", "B", "C"]),
        (dict(specimen_stains=[EOSIN]), ["A", "B", "C"]),
        (dict(specimen_stains=[Code("1", "SCT", "no stain")]), []),
        (dict(specimen_stains=[]), []),
    ],
)
def test_criteria(archive, criteria, expected):
    assert containers(find_slides(FakeClient(archive), **criteria)) == expected


def test_images_without_the_stain_are_left_out_of_their_slide(archive):
    (slide,) = find_slides(FakeClient(archive), container_id="B", specimen_stains=[EOSIN])
    assert slide.total_pixel_matrix_dimensions == ((30, 35),)


def test_stains_may_be_concepts_of_highdicom(archive):
    from highdicom.sr import CodedConcept

    stain = CodedConcept.from_code(EOSIN)
    assert len(find_slides(FakeClient(archive), specimen_stains=[stain])) == 3
    with pytest.raises(TypeError, match=r"specimen_stains is .*; expected a list of"):
        find_slides(FakeClient(archive), specimen_stains=stain)  # a data set can be iterated over


@pytest.mark.parametrize(
    ("criterion", "value"),
    [
        ("specimen_stains", EOSIN),  # a named tuple: it can be iterated over
        ("specimen_stains", "36879007"),
        ("specimen_stains", ["36879007"]),
        ("specimen_stains", [EOSIN, None]),
        ("specimen_stains", 36879007),
        ("optical_path_ids", "1"),
        ("optical_path_ids", "10"),
        ("optical_path_ids", 1),
        ("optical_path_ids", [1]),
        ("optical_path_ids", b"1"),
    ],
)
def test_what_is_no_list_switches_no_filter_off(archive, criterion, value):
    with pytest.raises(TypeError, match=rf"{criterion} is .*; expected a list of"):
        find_slides(FakeClient(archive), **{criterion: value})


def test_any_iterable_is_a_list(archive):
    client = FakeClient(archive)
    expected = find_slides(client, specimen_stains=[EOSIN], optical_path_ids=["1"])
    assert find_slides(client, specimen_stains={EOSIN}, optical_path_ids=iter(["1"])) == expected
    assert expected
    assert find_slides(client, specimen_stains=[]) == []


def test_a_server_that_knows_no_filters_finds_the_same(archive):
    client = FakeClient(archive)
    search = client._search
    client._search = lambda k, keys, limit, offset, filters=None, **w: search(
        k, keys, limit, offset
    )
    assert containers(find_slides(client, patient_id="SYNTHETIC-3")) == ["C"]


@pytest.mark.parametrize("offsets", [True, False])
def test_results_come_in_pages(archive, offsets):
    client = FakeClient(archive, page=1 if offsets else None, offsets=offsets)
    assert containers(find_slides(client, include_derived=False)) == ["A", "B", "C"]
    asked = [call[2] for call in client.calls if call[0] == "search"]
    assert asked == ([0, 1, 2, 3] if offsets else [0, 3])


@pytest.mark.parametrize("value", [None, "https://host/dicom-web"])
def test_what_is_no_client_is_an_error(value):
    with pytest.raises(TypeError, match=r"expected a dicomweb_client\.api\.DICOMClient"):
        find_slides(value)


def test_a_server_that_gives_its_only_page_again_may_have_more(archive, monkeypatch):
    monkeypatch.setattr(searching, "PAGE", 2)
    with pytest.warns(dicomslide.MetadataWarning, match="may be more than these 2"):
        found = find_slides(FakeClient(archive, offsets=False), include_derived=False)
    assert containers(found) == ["A", "B"]


def test_results_that_never_end_are_an_error(archive, monkeypatch):
    monkeypatch.setattr(searching, "MOST_RESULTS", 1000)
    client = FakeClient(archive)
    numbers = itertools.count()

    def search(**where):
        return [{"0020000E": {"vr": "UI", "Value": [f"1.{next(numbers)}"]}} for _ in range(200)]

    client.search_for_series = search
    with pytest.raises(dicomslide.MetadataError, match="results of a search for series have no"):
        find_slides(client)
    assert next(numbers) <= 1200


@pytest.mark.parametrize(
    "bad", [{}, {"0020000E": None}, {"0020000E": {"vr": "UI"}},
            {"0020000E": {"vr": "UI", "Value": [None]}}, {"0020000E": {"Value": "1.2"}}],
)  # fmt: skip
def test_results_that_name_no_series_are_passed_over(archive, bad):
    client = FakeClient(archive)
    search = client.search_for_series
    client.search_for_series = lambda **where: [*search(**where), bad]
    assert containers(find_slides(client)) == ["A", "B", "C"]


@pytest.mark.parametrize("answer", [[], None])
def test_a_series_without_metadata_is_an_error_or_left_out(archive, answer):
    client = FakeClient(archive)
    series = uid_of("series", 1)
    retrieve = client.retrieve_series_metadata
    client.retrieve_series_metadata = lambda study, wanted: (
        answer if wanted == series else retrieve(study, wanted)
    )
    with pytest.raises(
        dicomslide.MetadataError, match=f"nothing as the metadata of series {series}"
    ):
        find_slides(client)
    with pytest.warns(dicomslide.MetadataWarning, match=f"left out: series {series}"):
        assert containers(find_slides(client, fail_on_error=False)) == ["B", "C"]


@pytest.mark.parametrize(
    ("sop_class", "modality"), [(SEGMENTATION, "SEG"), (LABEL_MAP, "SEG"), (PARAMETRIC_MAP, "OT")]
)
def test_derived_images_follow_their_slide(archive, sop_class, modality):
    uid = derive(archive / "B" / "level-0.dcm", sop_class, modality)
    slides = find_slides(FakeClient(archive))
    assert [[i.name for i in slide.derived_images] for slide in slides] == [[], [uid], []]
    slides = find_slides(FakeClient(archive), include_derived=False)
    assert [slide.derived_images for slide in slides] == [(), (), ()]
    # they need no stain, nor an optical path of their own
    (slide,) = find_slides(
        FakeClient(archive), container_id="B", specimen_stains=[EOSIN], optical_path_ids=["1"]
    )
    assert [image.name for image in slide.derived_images] == [uid]


def test_derived_images_of_studies_without_slides_are_not_asked_for(archive):
    derive(archive / "B" / "level-0.dcm", SEGMENTATION, "SEG")
    client = FakeClient(archive)
    other = next(d for d in client.datasets.values() if d.Modality == "SEG")
    other.StudyInstanceUID = "1.2.3"
    find_slides(client)
    assert ("series metadata", other.SeriesInstanceUID) not in client.calls


@pytest.mark.parametrize("by", ["frame of reference", "image"])
def test_annotations_go_to_their_slide(archive, by):
    uid = derive(archive / "B" / "level-0.dcm", ANNOTATIONS, "ANN")
    client = FakeClient(archive)
    annotations = client.datasets[uid]
    if by == "image":
        image = client.datasets[pydicom.dcmread(archive / "B" / "level-1.dcm").SOPInstanceUID]
        reference = pydicom.Dataset()
        reference.ReferencedSOPInstanceUID = image.SOPInstanceUID
        reference.ReferencedSOPClassUID = image.SOPClassUID
        annotations.ReferencedImageSequence = [reference]
        del annotations.FrameOfReferenceUID
    slides = find_slides(client)
    names = [[source.name for source in slide._sources] for slide in slides]
    assert [uid in each for each in names] == [False, True, False]


@pytest.mark.needs("requests")
def test_a_failure_is_an_error_or_leaves_out_and_says_why(archive):
    client = FakeClient(archive)
    series = uid_of("series", 1)
    retrieve = client.retrieve_series_metadata

    def failing(study, wanted):
        if wanted == series:
            raise refused(500)
        return retrieve(study, wanted)

    client.retrieve_series_metadata = failing
    with pytest.raises(
        dicomslide.MetadataError, match=rf"HTTPError: 500.* series {series}"
    ) as info:
        find_slides(client)
    assert "secret" not in str(info.value)
    with pytest.warns(dicomslide.MetadataWarning, match=rf"left out: series {series}: .* 500"):
        slides = find_slides(client, fail_on_error=False)
    assert containers(slides) == ["B", "C"]


@pytest.mark.parametrize(
    ("method", "modality", "left"),
    [("search_for_series", "SEG", ["A", "B"]), ("search_for_series", "SM", []),
     ("search_for_studies", None, [])],
)  # fmt: skip
@pytest.mark.needs("requests")
def test_a_search_that_fails_is_an_error_or_leaves_out_and_says_why(
    archive, method, modality, left
):
    filters = ("ContainerIdentifier",) if method == "search_for_studies" else FILTERS
    client = FakeClient(archive, filters=filters)
    search = getattr(client, method)

    def failing(*args, search_filters=None, **kwargs):
        if modality in (None, search_filters.get("Modality")):
            raise refused(500)
        return search(*args, search_filters=search_filters, **kwargs)

    setattr(client, method, failing)
    options = dict(patient_id="SYNTHETIC-1" if method == "search_for_series" else "SYNTHETIC-3")
    with pytest.raises(dicomslide.MetadataError, match="HTTPError: 500"):
        find_slides(client, **options)
    with pytest.warns(dicomslide.MetadataWarning, match=r"left out: the se.* HTTPError: 500"):
        assert containers(find_slides(client, fail_on_error=False, **options)) == left


def test_a_slide_that_cannot_be_built_is_left_out(archive):
    client = FakeClient(archive)
    twin = next(d for d in client.datasets.values() if d.ContainerIdentifier == "B")
    other = copy.deepcopy(twin)
    other.SOPInstanceUID = "1.2.3.4"
    client.datasets["1.2.3.4"] = other
    with pytest.raises(dicomslide.AmbiguousSlideError):
        find_slides(client)
    with pytest.warns(dicomslide.MetadataWarning, match="left out: slide B: "):
        slides = find_slides(client, fail_on_error=False)
    assert containers(slides) == ["A", "C"]


def test_an_instance_whose_metadata_are_damaged_is_left_out(archive):
    client = FakeClient(archive)
    damaged = next(d for d in client.datasets.values() if d.ContainerIdentifier == "A")
    keep = client._json

    def spoil(dataset):
        found = keep(dataset)
        if dataset is damaged:
            found["00200013"] = ["1"]  # no object
        return found

    client._json = spoil
    with pytest.raises(dicomslide.MetadataError, match=f"{damaged.SOPInstanceUID}: its metadata"):
        find_slides(client)
    with pytest.warns(dicomslide.MetadataWarning, match="left out: series"):
        assert containers(find_slides(client, fail_on_error=False)) == ["B", "C"]


def test_options_reach_the_slides(archive):
    (slide,) = find_slides(FakeClient(archive), container_id="A", max_frame_cache_size=2)
    assert slide._options.max_frame_cache_size == 2


def test_slides_in_a_client_of_files(archive, tmp_path):
    from dicomweb_client.api import DICOMfileClient

    derive(archive / "B" / "level-0.dcm", SEGMENTATION, "SEG")
    client = DICOMfileClient(f"file://{archive}", in_memory=True)
    assert containers(find_slides(client)) == ["A", "B", "C"]
    assert containers(find_slides(client, study_instance_uid=uid_of("study", 1))) == ["A", "B"]
    assert containers(find_slides(client, patient_id="SYNTHETIC-3")) == ["C"]
    (slide,) = find_slides(client, container_id="B")
    assert len(slide.derived_images) == 1
    client._db_manager.__getstate__()  # closes the database


def test_real_slides_are_found(shared_data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dicomslide.MetadataWarning)
        slides = find_slides(FakeClient(shared_data / "cmu-1-small-region"))
    assert [slide.num_levels for slide in slides] == [
        dicomslide.open_slide(shared_data / "cmu-1-small-region").num_levels
    ]
