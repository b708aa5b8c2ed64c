"""What is asked of an archive to find slides in it: what was asked for, once, and no more."""

from __future__ import annotations

import datetime
import pickle

import pydicom
import pytest
from pydicom.sr.coding import Code

import dicomslide
from dicomslide.backends.criteria import Criteria
from dicomslide.slide.discovery import find_slides
from dicomslide.testing import uid_of, write_slide
from tests.support import orthanc
from tests.support.fake_client import FILTERS, FakeClient, refused

SMALL = dict(shape=(40, 50), downsamples=(1,), tile_shape=(64, 64), associated=False)
EOSIN = Code("36879007", "SCT", "water soluble eosin stain")


def studies_of(folder, count, modality=None):
    """Write studies of a slide each: S-000 on the first day of 2026, and so on."""
    write_slide(folder / "first", **SMALL)
    dataset = pydicom.dcmread(folder / "first" / "level-0.dcm")
    (folder / "first" / "level-0.dcm").unlink()
    for number in range(count):
        name = f"S-{number:03}"
        for keyword, kind in (
            ("StudyInstanceUID", "study"), ("SeriesInstanceUID", "series"),
            ("SOPInstanceUID", "instance"), ("FrameOfReferenceUID", "frame"),
        ):  # fmt: skip
            setattr(dataset, keyword, uid_of(kind, number, "archive"))
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.ContainerIdentifier, dataset.AccessionNumber = name, f"A-{number % 10}"
        dataset.PatientID = f"P-{number // 2}"
        day = datetime.date(2026, 1, 1) + datetime.timedelta(number)
        dataset.StudyDate = f"{day:%Y%m%d}"
        dataset.save_as(folder / f"{name}.dcm")
    return sorted(folder.glob("*.dcm"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive")
    studies_of(folder, 12)
    return folder


def headers_asked(client):
    return sum(call[0] in ("metadata", "series metadata") for call in client.calls)


def searches(client):
    return [call[1:] for call in client.calls if call[0] == "search"]


def names(found):
    return [slide.container_identifier for slide in found]


SOME = [
    (dict(container_id="S-007"), [7]),
    (dict(container_id="S-00[7]"), []),  # brackets are no wildcards in DICOM
    (dict(container_id="s-007"), []),
    (dict(container_id="S-00?"), range(10)),
    (dict(container_id="S-01*", patient_id="P-5"), [10, 11]),
    (dict(container_id="S-01*", patient_id="P-4"), []),
    (dict(patient_id="P-3"), [6, 7]),
    (dict(patient_id="P-*", accession_number="A-1"), [1, 11]),
    (dict(study_date="2026-01-03"), [2]),
    (dict(study_date=datetime.date(2026, 1, 3)), [2]),
    (dict(study_date=datetime.datetime(2026, 1, 3, 12)), [2]),
    (dict(study_date=("2026-01-11", None)), [10, 11]),
    (dict(study_date=(None, datetime.date(2026, 1, 2))), [0, 1]),
    (dict(study_date=("2026-01-02", "2026-01-03"), container_id="S-*"), [1, 2]),
    (dict(study_date=("2027-01-02", None)), []),
    (dict(study_instance_uid=uid_of("study", 4, "archive"), container_id="S-004"), [4]),
    (dict(study_instance_uid=uid_of("study", 4, "archive"), container_id="S-005"), []),
    (dict(modality="SM", container_id="S-003"), [3]),
    (dict(modality=["SEG"]), []),
]  # fmt: skip
SERVERS = {
    "all filters": dict(),
    "none": dict(filters=()),
    "none, and shows nothing": dict(filters=(), shows=False),
    "all, and shows nothing": dict(shows=False),
    "studies only": dict(filters=[each for each in FILTERS if each != "ContainerIdentifier"]),
    "pages of one": dict(page=1),
    "no offsets": dict(offsets=False),
}


@pytest.mark.parametrize("server", SERVERS.values(), ids=SERVERS)
def test_what_is_found_is_the_same_whatever_the_server_knows(folder, server):
    client = FakeClient(folder, **server)
    for number, (criteria, expected) in enumerate(SOME):
        wanted = [f"S-{number:03}" for number in expected]
        if number % 2:
            assert names(find_slides(client, **criteria)) == wanted, criteria
        elif wanted:
            assert list(dicomslide.open_slides(client, **criteria)) == wanted, criteria
        else:
            with pytest.raises(dicomslide.NotSlideError, match="no slide with this"):
                dicomslide.open_slides(client, **criteria)


@pytest.mark.needs("requests")
@pytest.mark.parametrize("resource", ["instances", "series", "studies"])
@pytest.mark.parametrize("how", [400, 501, "without the method", "finds nothing"])
def test_searches_that_a_server_refuses_are_replaced_and_not_tried_again(folder, resource, how):
    client = FakeClient(folder)
    method = f"search_for_{resource}"
    search = getattr(client, method)

    def answer(search_filters=None, **where):
        if set(search_filters or ()) - {"Modality"}:
            client.calls.append(("refused", resource))
            if how == "finds nothing":
                return []
            raise refused(how) if isinstance(how, int) else NotImplementedError(how)
        return search(search_filters=search_filters, **where)

    setattr(client, method, answer)
    criteria = dict(container_id="S-003", patient_id="P-1")
    for _ in range(3):
        assert names(find_slides(client, **criteria)) == ["S-003"]
        assert names(find_slides(client, patient_id="P-1")) == ["S-002", "S-003"]
    asked = client.calls.count(("refused", resource))
    if how == "finds nothing":
        return  # there might have been nothing
    assert asked == {"instances": 1, "series": 1, "studies": 0}[resource]


@pytest.mark.needs("requests")
@pytest.mark.parametrize("status", [400, 404, 503])
def test_a_search_without_filters_that_is_refused_is_an_error_in_words(folder, status):
    client = FakeClient(folder)
    study = pydicom.dcmread(folder / "S-003.dcm").StudyInstanceUID

    def answer(**where):
        raise refused(status)

    client.search_for_series = answer
    with pytest.raises(dicomslide.MetadataError, match=f"{status}.*search for series"):
        dicomslide.open_slide(client, study_instance_uid=study)


def test_a_server_that_ignores_a_filter_is_found_out_once(folder):
    client = FakeClient(folder, filters=())
    assert names(find_slides(client, container_id="S-003")) == ["S-003"]
    assert ("SOPInstanceUID", 0) in searches(client)
    client.calls.clear()
    assert names(find_slides(client, container_id="S-004")) == ["S-004"]
    assert not [each for each in searches(client) if each[0] == "SOPInstanceUID"]
    assert headers_asked(client) == 12
    dicomslide.clear_all("filters of servers")
    find_slides(client, container_id="S-004")
    assert ("SOPInstanceUID", 12) not in searches(client)
    assert ("SOPInstanceUID", 0) in searches(client)


def test_an_empty_answer_is_believed_once_the_server_has_found_what_it_has(folder):
    client = FakeClient(folder)
    assert find_slides(client, container_id="nothing") == []
    assert headers_asked(client) == 1
    client.calls.clear()
    assert find_slides(client, container_id="nothing else") == []
    assert searches(client) == [("SOPInstanceUID", 0)]
    assert headers_asked(client) == 0


@pytest.mark.parametrize("shows", [True, False])
@pytest.mark.parametrize("criteria", [criteria for criteria, _ in SOME], ids=str)
def test_headers_of_wanted_series_are_read_once_and_no_others(folder, criteria, shows):
    client = FakeClient(folder, shows=shows)
    find_slides(client, container_id="S-000")  # that it knows this filter
    client.calls.clear()
    count = len(find_slides(client, **criteria))
    series = [call[1] for call in client.calls if call[0] == "series metadata"]
    assert len(series) == len(set(series))
    # one more where the answer is empty, or of other studies
    assert len(series) <= count + ("container_id" in criteria and not count)


def test_a_cohort_asks_for_no_header_twice(folder):
    client = FakeClient(folder)
    slides = dicomslide.open_slides(client)
    assert headers_asked(client) == 12
    client.calls.clear()
    assert len(slides.to_pandas()) == 12
    assert all(slide.size == (40, 50) for _, slide in slides.opened())
    assert client.calls == []


def test_pages_are_searched_for_when_their_slides_are_wanted(folder):
    from dicomslide.backends.dicomweb.client import ClientStore

    client = FakeClient(folder, page=4)
    pages = ClientStore(client).pages()
    assert client.calls == []
    assert len(next(pages)) == 4
    assert searches(client) == [("SeriesInstanceUID", 0)]
    assert sum(map(len, pages)) == 8


def test_one_slide_is_opened_without_headers_of_others(folder):
    client = FakeClient(folder)
    assert dicomslide.open_slide(client, container_id="S-005").container_identifier == "S-005"
    assert headers_asked(client) == 1
    with pytest.raises(dicomslide.NotSlideError, match="no slide image with container 'none'"):
        dicomslide.open_slide(client, container_id="none")


@pytest.mark.parametrize(
    ("stains", "count"),
    [([EOSIN], 12), (["*EOSIN*"], 12), (["eosin"], 0), ([Code("1", "SCT", "x")], 0), ([], 0),
     ([Code("1", "SCT", "x"), "water soluble eosin stai?"], 12)],
)  # fmt: skip
def test_stains_are_codes_or_names(folder, stains, count):
    client = FakeClient(folder)
    if count:
        assert len(dicomslide.open_slides(client, stains=stains)) == count
    else:
        with pytest.raises(dicomslide.NotSlideError, match="no slide with this stains is there"):
            dicomslide.open_slides(client, stains=stains)


@pytest.mark.parametrize(
    ("criteria", "kind", "message"),
    [
        (dict(patient_id=3), TypeError, "patient_id is 3; expected text"),
        (dict(container_id=" "), ValueError, "container_id is empty"),
        (dict(study_date="1st of May"), ValueError, "study_date is '1st of May'.*YYYY-MM-DD"),
        (dict(study_date=20260101), TypeError, "study_date is 20260101"),
        (dict(study_date=("2026-01-02", "2026-01-01")), ValueError, "ends before it begins"),
        (dict(study_date=("2026-01-02",)), ValueError, "the first and the last"),
        (dict(modality=3), TypeError, "modality is 3; expected a list of texts"),
        (dict(stains=EOSIN), TypeError, "stains is Code.*; expected a list"),
        (dict(stains="eosin"), TypeError, "stains is 'eosin'; expected a list"),
        (dict(stains=[3]), TypeError, r"stains is \[3\]; expected a list"),
    ],
)
def test_criteria_that_are_none_are_errors(folder, criteria, kind, message):
    with pytest.raises(kind, match=message):
        dicomslide.open_slides(FakeClient(folder), **criteria)


@pytest.mark.parametrize(
    ("name", "value"),
    [("patient_id", "P-1"), ("study_date", "2026-01-01"), ("stains", [EOSIN]), ("modality", "SM")],
)
def test_files_are_not_searched(folder, name, value):
    with pytest.raises(TypeError, match=f"{name} is given with a .*; expected a client or a store"):
        dicomslide.open_slides(folder, **{name: value})


def test_days_are_compared_as_dates_of_headers():
    since = Criteria(study_date=("2026-01-02", None))
    fits = {"20260101": False, "20260102": True, "2026.01.02": True, "": False, None: False}
    assert {day: since.matches("StudyDate", day) for day in fits} == fits
    assert since.of_study == {"StudyDate": "20260102-"}
    assert Criteria(study_date=(None, "0987-01-02")).of_study == {"StudyDate": "-09870102"}
    assert Criteria(study_date=(None, None)).of_study == {}


# -- a real server ---------------------------------------------------------------------------

COUNT = 200
PAGES = 4 * (COUNT // 200 + 1)  # of four modalities, and the page on which nothing is new


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A proxy that counts, before a server of 200 studies."""
    if reason := orthanc.reason_to_skip():
        pytest.skip(reason)
    from tests.support.chaos import ChaosProxy

    folder = tmp_path_factory.mktemp("orthanc")
    paths = studies_of(folder, COUNT)
    with orthanc.running(folder) as url:
        orthanc.store(url, paths)
        with ChaosProxy(url, seed=0, rate=0) as proxy:
            yield proxy


@pytest.fixture
def client(server):
    from dicomweb_client.api import DICOMwebClient

    dicomslide.clear_all()
    server.requests.clear()
    return DICOMwebClient(server.url)


@pytest.mark.server
def test_a_slide_of_a_large_archive_takes_four_requests_beside_its_series(server, client):
    assert names(find_slides(client, container_id="S-123")) == ["S-123"]
    assert len(server.requests) <= 1 + 4
    server.requests.clear()
    assert find_slides(client, container_id="S-999") == []
    assert len(server.requests) == 1
    server.requests.clear()
    url = f"dicomweb+{server.url}"
    assert dicomslide.open_slide(url, container_id="S-124").container_identifier == "S-124"
    assert len(server.requests) <= 1 + 4


@pytest.mark.server
def test_all_slides_of_a_large_archive_take_a_request_each_and_pages(server, client):
    slides = dicomslide.open_slides(client)
    assert len(slides) == COUNT
    assert len(server.requests) <= COUNT + PAGES
    server.requests.clear()
    assert len(slides.to_pandas()) == COUNT
    assert [slides[name].container_identifier for name in slides] == list(slides)
    assert server.requests == []
    again = pickle.loads(pickle.dumps(slides))
    assert again["S-003"].size == (40, 50)


@pytest.mark.server
@pytest.mark.needs("pyarrow")
def test_an_index_of_a_large_archive_asks_for_frames_only(server, client, tmp_path):
    slides = dicomslide.open_slides(f"dicomweb+{server.url}")
    server.requests.clear()
    slides.save(tmp_path / "archive.parquet")
    assert server.requests == []
    expected = slides["S-123"].get_image_region((0, 0), 0, (40, 50))
    dicomslide.clear_all()
    server.requests.clear()
    again = dicomslide.open_slides(tmp_path / "archive.parquet")
    assert again.to_pandas().equals(slides.to_pandas())
    server.requests.clear()
    slide = again["S-123"]
    assert slide.container_identifier == "S-123"
    assert server.requests == []
    assert (slide.get_image_region((0, 0), 0, (40, 50)) == expected).all()
    assert len(server.requests) <= 2  # and the colour profile


@pytest.mark.server
@pytest.mark.parametrize(
    ("criteria", "numbers"),
    [
        (dict(study_date=("2026-01-31", "2026-02-01")), [30, 31]),
        (dict(patient_id="P-50"), [100, 101]),
        (dict(container_id="S-01*", accession_number="A-7"), [17]),
    ],
)
def test_a_real_server_is_asked_for_what_was_asked(server, client, criteria, numbers):
    server.play(503, "reset")  # which changes nothing, but two more requests
    expected = [f"S-{number:03}" for number in numbers]
    assert list(dicomslide.open_slides(client, **criteria)) == expected
    assert len(server.requests) <= len(expected) + PAGES + 2
