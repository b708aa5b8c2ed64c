"""Slides through the clients of dicomweb-client: what they may be sent, and in other processes."""

from __future__ import annotations

import copy
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import pydicom
import pytest
import requests
from dicomweb_client.api import DICOMfileClient, DICOMwebClient

import dicomslide
from dicomslide import Slide, TiledImage, TotalPixelMatrix
from dicomslide.backends.dicomweb import connection
from dicomslide.backends.dicomweb.client import frame_source
from dicomslide.backends.dicomweb.source import DicomWebSource
from dicomslide.backends.part10.file import FileSource, FileStore
from dicomslide.testing import write_slide
from tests.support.fake_client import FakeClient


def pixels(slide):
    return slide.get_image_region((0, 0), 0, slide.size)


def test_credentials_are_not_sent_to_another_server():
    found = connection.connection_of(DICOMwebClient("http://host:8080/dicom-web"))
    with pytest.raises(dicomslide.MetadataError, match=r"bulk data are at http://other/x, not at"):
        found.bulk_data("http://other/x?signature=secret")
    for other in ("http://host/x", "http://host:8081/x", "https://host:8080/x", "http://host:a/x"):
        with pytest.raises(dicomslide.MetadataError, match="bulk data are at"):
            found.bulk_data(other)


def test_what_a_client_sent_is_no_cause_of_an_error(jpeg_slide):
    """Dask pickles the causes of errors, and those of requests hold the headers that were sent."""

    class Failing(DICOMwebClient):
        def retrieve_instance_metadata(self, *uids):
            answer = requests.Response()
            answer.status_code = 503
            answer.request = requests.Request(
                "GET", "http://x", headers={"Authorization": "secret"}
            ).prepare()
            answer.raise_for_status()

        def retrieve_instance(self, *uids):
            raise ValueError("a bug")

    found = connection.connection_of(Failing("http://failing/dicom-web"))
    with pytest.raises(dicomslide.MetadataError, match="503") as info:
        found.metadata(("1", "2", "3"))
    assert info.value.__cause__ is None
    assert info.value.__context__ is None
    with pytest.raises(dicomslide.MetadataError, match="a bug") as info:
        found.instance(("1", "2", "3"))
    assert isinstance(info.value.__cause__, ValueError)


# -- other processes -------------------------------------------------------------------------


class Server(DICOMwebClient):
    """A DICOMwebClient whose requests a fake one answers."""

    def __init__(self, url, fake):
        super().__init__(url, headers={"Authorization": "Bearer secret"})
        for name in dir(fake):
            if name.startswith(("retrieve_", "search_")):
                setattr(self, name, getattr(fake, name))


def test_pickles_are_thin_and_read_through_the_client_of_their_server(jpeg_slide):
    fake = FakeClient(jpeg_slide)
    url = fake.base_url.replace("u:secret@", "").replace("?token=secret", "")
    client = Server(url, fake)
    slide = Slide(client, fake.all_metadata())
    expected = pixels(slide)
    image = slide.get_volume_images()[0]
    things = {
        "source": image._source,
        "matrix": image.get_total_pixel_matrix(),
        "slide": slide,
        "dask array": image.get_total_pixel_matrix().to_dask(),
    }
    pickles = {name: pickle.dumps(thing) for name, thing in things.items()}
    assert all(b"secret" not in data for data in pickles.values())
    assert len(pickles["source"]) < 500
    assert len(pickles["matrix"]) < 1000
    arrived = {name: pickle.loads(data) for name, data in pickles.items()}
    dicomslide.clear_all("decoded frames")
    assert arrived["source"] == image._source
    assert arrived["source"].identity == image._source.identity
    np.testing.assert_array_equal(arrived["matrix"][...], expected)
    np.testing.assert_array_equal(pixels(arrived["slide"]), expected)
    np.testing.assert_array_equal(arrived["dask array"].compute(scheduler="sync"), expected)
    # metadata were retrieved once, for all
    assert len([call for call in fake.calls if call == ("metadata", image.name)]) <= 2


def test_a_process_without_a_client_makes_one(jpeg_slide):
    fake = FakeClient(jpeg_slide)
    source = frame_source(Server("http://elsewhere:8042/dicom-web/", fake), fake.all_metadata()[0])
    connection._connections._by_address.clear()
    dicomslide.clear_all("headers")
    remade = connection.connection_at(pickle.loads(pickle.dumps(source)).address).client
    assert type(remade) is DICOMwebClient
    assert remade.base_url == "http://elsewhere:8042/dicom-web"
    assert "Authorization" not in remade._session.headers


def test_a_registered_client_serves_what_arrives(jpeg_slide):
    fake = FakeClient(jpeg_slide)
    client = Server("http://registered/dicom-web", fake)
    data = pickle.dumps(frame_source(client, fake.all_metadata()[0]))
    connection._connections._by_address.clear()
    connection.register_client(client)
    source = pickle.loads(data)
    assert source.read_frames([0]) == fake.frames(source.name)[:1]


def test_what_arrived_reads_through_the_client_that_was_registered_last(jpeg_slide):
    """Tokens expire, and a worker gets a new client."""
    before, after = FakeClient(jpeg_slide), FakeClient(jpeg_slide)
    expired = Server("http://renewed/dicom-web", before)
    data = pickle.dumps(frame_source(expired, before.all_metadata()[0]))
    connection.register_client(expired)
    source = pickle.loads(data)
    source.read_frames([0])
    asked = len(before.calls)
    connection.register_client(Server("http://renewed/dicom-web", after))
    assert source.read_frames([1]) == after.frames(source.name)[1:2]
    assert len(before.calls) == asked


def test_clients_that_cannot_be_remade_do_not_pickle_and_say_what_to_do(jpeg_slide):
    client = FakeClient(jpeg_slide)
    slide = Slide(client, client.all_metadata())
    with pytest.raises(TypeError, match=r"FakeClient, which can't be made again.*use threads"):
        pickle.dumps(slide)
    source = slide.get_volume_images()[0]._source
    assert copy.copy(source) is source
    assert copy.deepcopy(source) is source


def region_and_session(slide, client):
    return slide.get_image_region((0, 0), 0, (60, 70)), client.closed


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_does_not_talk_through_its_parents_sockets(jpeg_slide):
    """Two processes at one connection would read each other's replies."""

    class Session:
        def __init__(self, owner):
            self.owner = owner

        def close(self):
            self.owner.closed += 1

    client = FakeClient(jpeg_slide)
    client._session, client.closed = Session(client), 0
    slide = Slide(client, client.all_metadata())
    expected = pixels(slide)
    assert client.closed == 0
    context = get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=lambda: queue.put(region_and_session(slide, client)))
    dicomslide.clear_all("decoded frames")
    child.start()
    found, closed = queue.get()
    child.join(30)
    np.testing.assert_array_equal(found, expected)
    assert closed == 1
    assert client.closed == 0


# -- clients of files ------------------------------------------------------------------------


@pytest.fixture
def file_client(tmp_path):
    folder = tmp_path / "a folder"
    write_slide(
        folder / "deeper",
        shape=(60, 70),
        downsamples=(1,),
        tile_shape=(32, 32),
        associated=False,
        transfer_syntax_uid="1.2.840.10008.1.2.4.201",
    )
    (folder / "notes.txt").write_text("nothing")
    client = DICOMfileClient(f"file://{folder}", in_memory=True)
    yield client
    client._db_manager.__getstate__()  # closes the database


def metadata_of(client):
    (series,) = client.search_for_series()
    uids = series["0020000D"]["Value"][0], series["0020000E"]["Value"][0]
    found = client.retrieve_series_metadata(*uids)
    return [pydicom.Dataset.from_json(each) for each in found]


def test_a_client_of_files_is_passed_by(file_client):
    slide = Slide(file_client, metadata_of(file_client))
    assert isinstance(slide.get_volume_images()[0]._source, FileSource)
    expected = pixels(dicomslide.open_slide(file_client.url_prefix))
    np.testing.assert_array_equal(pixels(slide), expected)
    np.testing.assert_array_equal(pixels(dicomslide.open_slide(file_client)), expected)
    # what is read in other threads and processes needs no database
    arrived = pickle.loads(pickle.dumps(slide))
    with ThreadPoolExecutor(1) as pool:
        np.testing.assert_array_equal(pool.submit(pixels, arrived).result(), expected)


@pytest.mark.parametrize("kind", ["client", "store"])
@pytest.mark.parametrize("sparse", [False, True], ids=["full", "sparse"])
@pytest.mark.parametrize(
    "read",
    [pydicom.dcmread, lambda path: pydicom.dcmread(path, stop_before_pixels=True)],
    ids=["with pixels", "without"],
)
def test_metadata_may_be_what_pydicom_reads_of_the_files(tmp_path, kind, sparse, read):
    """The pixels are those that its own pixel_array has, at the places where they belong."""
    paths = write_slide(
        tmp_path,
        shape=(70, 90),
        downsamples=(1, 2),
        tile_shape=(32, 32),
        sparse=sparse,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        associated=False,
    )
    metadata = [read(path) for path in paths]
    client = DICOMfileClient(f"file://{tmp_path}", in_memory=True)
    source = client if kind == "client" else FileStore.open(tmp_path)
    frames = [pydicom.dcmread(path).pixel_array for path in paths]
    slide = Slide(source, metadata, correct_color=False)
    for number, each in enumerate(metadata):
        image = TiledImage(source, each, correct_color=False)
        matrix = TotalPixelMatrix(source, each, correct_color=False)
        assert image == slide.get_volume_images()[number]
        assert "PixelData" not in image.metadata
        np.testing.assert_array_equal(matrix[:], frames[number])  # row-major, none absent
        np.testing.assert_array_equal(image.get_total_pixel_matrix()[:], frames[number])
        offsets, *_ = dicomslide.compute_frame_positions(each)
        np.testing.assert_array_equal(offsets, matrix.tile_positions)
    client._db_manager.__getstate__()  # closes the database


def test_files_that_move_are_found_again(file_client, tmp_path):
    metadata = metadata_of(file_client)
    TiledImage(file_client, metadata[0])
    folder = tmp_path / "a folder"
    (folder / "deeper").rename(folder / "elsewhere")
    other = metadata[0].SOPInstanceUID
    source = frame_source(file_client, metadata[0])
    assert source.path == str(folder / "elsewhere" / "level-0.dcm")
    shutil.rmtree(folder / "elsewhere")
    with pytest.raises(dicomslide.MetadataError, match=f"no file holds the instance {other}"):
        frame_source(file_client, metadata[0])


def test_real_slides_through_a_client_of_files(shared_data, tmp_path):
    folder = tmp_path / "slides"
    shutil.copytree(shared_data / "cmu-1-small-region", folder)
    expected = dicomslide.open_slide(folder)
    client = DICOMfileClient(f"file://{folder}", in_memory=True)
    slide = dicomslide.open_slide(client)
    np.testing.assert_array_equal(pixels(slide), pixels(expected))
    assert slide.label_images[0].size == expected.label_images[0].size
    client._db_manager.__getstate__()


def test_real_slides_through_a_server(shared_data):
    folder = shared_data / "cmu-1-small-region"
    expected = dicomslide.open_slide(folder)
    slide = dicomslide.open_slide(FakeClient(folder))
    np.testing.assert_array_equal(pixels(slide), pixels(expected))
    assert isinstance(slide.get_volume_images()[0]._source, DicomWebSource)
