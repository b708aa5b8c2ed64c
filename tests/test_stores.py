"""Stores of others: whatever has the methods that the documentation says."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
import xarray as xr

import dicomslide
from dicomslide.backends import (
    FrameSource,
    FrameStore,
    RereadableSource,
    ScopedSource,
    SearchableStore,
    Series,
)
from dicomslide.backends.concatenation import ConcatenatedSource
from dicomslide.backends.dicomweb.client import frame_source
from dicomslide.backends.dicomweb.protocol import DicomWebClient, is_client
from dicomslide.backends.part10.file import FileSource
from dicomslide.testing import write_slide
from tests.support import own_store
from tests.support.fake_client import FakeClient

NATIVE, JPEG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.50"
SMALL = dict(shape=(70, 90), tile_shape=(32, 32), downsamples=(1, 2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two slides in two studies."""
    folder = tmp_path_factory.mktemp("shelf")
    for number, (syntax, sparse) in enumerate([(NATIVE, True), (JPEG, False)], 1):
        write_slide(folder / f"S{number}", **SMALL, transfer_syntax_uid=syntax,
                    sparse=sparse, container_id=f"S{number}", slide_number=number)  # fmt: skip
    return folder


@pytest.fixture
def store(folder):
    return own_store.shelf_of(folder)


def pixels_of(slide):
    return [slide.get_image_region((0, 0), level, (30, 40)) for level in range(slide.num_levels)]


def assert_same(slide, path):
    expected = dicomslide.open_slide(path)
    assert slide.num_levels == expected.num_levels == 2
    assert slide.channels == expected.channels
    for found, wanted in zip(pixels_of(slide), pixels_of(expected), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_a_slide_of_anybodys_store_is_that_of_its_files(store, folder):
    slide = dicomslide.open_slide(store, container_id="S1")
    assert_same(slide, folder / "S1")


@pytest.mark.parametrize("name", ["S1", "S2"])
def test_all_slides_of_anybodys_store_are_found(store, folder, name):
    cohort = dicomslide.open_slides(store)
    assert list(cohort) == ["S1", "S2"]
    assert not cohort.failures
    assert_same(cohort[name], folder / name)
    assert cohort.summaries().keys() == {"S1", "S2"}
    slides = dicomslide.find_slides(store)
    assert [slide.container_identifier for slide in slides] == ["S1", "S2"]
    assert_same(slides[int(name[1]) - 1], folder / name)


def test_a_study_patient_or_container_of_anybodys_store_is_chosen(store):
    first, second = dicomslide.find_slides(store)
    study = first._said("StudyInstanceUID")
    assert study != second._said("StudyInstanceUID")
    (found,) = dicomslide.find_slides(store, study_instance_uid=study)
    assert found.container_identifier == "S1"
    assert list(dicomslide.open_slides(store, study_instance_uid=study)) == ["S1"]
    assert len(dicomslide.find_slides(store, container_id="S2")) == 1
    assert dicomslide.find_slides(store, patient_id="nobody") == []
    slide = dicomslide.open_slide(store, study_instance_uid=study)
    assert slide.container_identifier == "S1"


@pytest.mark.parametrize("chunks", [None, {}])
def test_the_engine_opens_anybodys_store(store, folder, chunks):
    given = dict(engine="dicomslide", container_id="S1", chunks=chunks)
    with (
        xr.open_dataset(store, **given) as found,
        xr.open_dataset(folder / "S1", **given | {"container_id": None}) as expected,
    ):
        xr.testing.assert_equal(found.compute(), expected.compute())


def test_a_store_that_is_searched_gives_the_metadata_of_a_series_at_a_time(store, folder):
    asked = []

    class Searched(own_store.Shelf):
        @property
        def metadata(self):
            raise AssertionError("a thousand requests")

        def series(self, study_instance_uid=None):
            every = own_store.Shelf.metadata.fget(self)
            return {
                Series(each.StudyInstanceUID, each.SeriesInstanceUID)
                for each in every
                if study_instance_uid in (None, each.StudyInstanceUID)
            }

        def metadata_of(self, series):
            asked.append(series)
            if broken in (series.study_instance_uid, True):
                raise OSError("the shelf is broken")
            every = own_store.Shelf.metadata.fget(self)
            return [each for each in every if series.series_instance_uid == each.SeriesInstanceUID]

    broken = None
    searched = Searched(store.shelf)
    assert isinstance(searched, SearchableStore)
    assert list(dicomslide.open_slides(searched)) == ["S1", "S2"]
    first, second = dicomslide.find_slides(searched)
    assert set(asked) == {
        Series(slide._said("StudyInstanceUID"), slide._said("SeriesInstanceUID"))
        for slide in (first, second)
    }
    asked.clear()
    broken = second._said("StudyInstanceUID")
    cohort = dicomslide.open_slides(searched)
    assert list(cohort) == ["S1"]
    (failure,) = cohort.failures.values()
    assert "broken" in str(failure)
    with pytest.raises(OSError, match="broken"):
        dicomslide.find_slides(searched)
    with pytest.warns(dicomslide.MetadataWarning, match="broken"):
        assert len(dicomslide.find_slides(searched, fail_on_error=False)) == 1


def test_derived_images_of_anybodys_store_are_included_or_not(tmp_path):
    from tests.support import derive

    files = write_slide(tmp_path, **SMALL, transfer_syntax_uid=NATIVE)
    mask = np.zeros((70, 90, 2), np.uint8)
    mask[10:30, 20:50, 0] = mask[40:50, 20:50, 1] = 1
    derive.write_segmentation(tmp_path / "segmentation.dcm", files[0], mask, "BINARY")
    store = own_store.shelf_of(tmp_path)
    (slide,) = dicomslide.find_slides(store)
    assert len(slide.find_segments()) == 2
    (slide,) = dicomslide.find_slides(store, include_derived=False)
    assert not slide.find_segments()


def test_no_slide_in_a_store_is_an_error_that_names_its_kind():
    own_store.FILES["empty"] = {}
    store = own_store.Shelf("empty")
    with pytest.raises(dicomslide.NotSlideError, match="Shelf: no slide image is there"):
        dicomslide.open_slide(store)
    with pytest.raises(dicomslide.NotDicomError, match="Shelf: no DICOM slide image is there"):
        dicomslide.open_slides(store)
    assert dicomslide.find_slides(store) == []


def test_frames_that_cost_requests_are_read_as_many_at_once_as_the_source_says(store, monkeypatch):
    monkeypatch.setattr(own_store.Book, "frames_per_request", 4)
    slide = dicomslide.open_slide(store, container_id="S1")
    own_store.read.clear()
    slide.get_image_region((0, 0), 0, (90, 70))
    assert sorted(len(indices) for *_, indices in own_store.read) == [1, 4, 4]


def test_parts_of_a_concatenation_read_anew_only_what_comes_over_a_network(folder):
    path = folder / "S1" / "level-0.dcm"

    class Remote(FileSource):
        __slots__ = ()

        def may_read_anew(self):
            return True

        def drop_frame(self, index):
            dropped.append(index)

        def read_anew(self, index):
            (frame,) = self.read_frames([index])
            return frame

    dropped = []
    local, remote = FileSource.open(path), Remote.open(path)
    assert not isinstance(local, RereadableSource)
    count = int(local.metadata.NumberOfFrames)
    for parts, expected in [((local, local), False), ((local, remote), True)]:
        source = ConcatenatedSource(parts, (0, count), (count, count))
        assert isinstance(source, RereadableSource)
        assert isinstance(source, ScopedSource)
        assert source.may_read_anew() is expected
    assert source.read_anew(0) is None
    source.drop_frame(0)
    assert bytes(source.read_anew(count)) == bytes(local.read_frames([0])[0])
    source.drop_frame(count + 2)
    assert dropped == [2]


class Proxy:
    """Passes on what it is asked."""

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, name)


def test_proxies_of_stores_and_clients_are_known_by_what_they_pass_on(store, folder):
    slide = dicomslide.open_slide(Proxy(store), container_id="S1")
    assert_same(slide, folder / "S1")
    client = Proxy(FakeClient(folder))
    assert is_client(client)
    assert [each.container_identifier for each in dicomslide.find_slides(client)] == ["S1", "S2"]


def test_what_is_asked_of_a_client_are_methods_of_dicomweb_client():
    api = pytest.importorskip("dicomweb_client.api", reason="dicomweb-client isn't installed")
    methods = {
        name
        for kind in DicomWebClient.__mro__
        for name in vars(kind)
        if name.startswith(("search_for_", "retrieve_"))
    }
    assert len(methods) == 8
    assert all(callable(getattr(api.DICOMClient, name)) for name in methods)


def test_the_contract_is_what_the_package_has_itself(store, folder):
    (path, *_) = sorted((folder / "S1").glob("*.dcm"))
    header = pydicom.dcmread(path, stop_before_pixels=True)
    assert isinstance(store, FrameStore)
    assert isinstance(frame_source(store, header), FrameSource)
    assert isinstance(FileSource.open(path), FrameSource)
    assert isinstance(frame_source(FakeClient(folder), header), FrameSource)
