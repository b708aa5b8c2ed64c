"""Slides stored in a real server and read back: the pixels of the files, in few requests."""

from __future__ import annotations

import pickle
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import dask
import numpy as np
import pydicom
import pytest
import requests
import xarray as xr
from dicomweb_client.api import DICOMwebClient
from pydicom.uid import UID, generate_uid

import dicomslide
from dicomslide.backends.dicomweb import connection
from dicomslide.backends.dicomweb.client import frame_source
from dicomslide.backends.part10.file import FileSource
from dicomslide.testing import ENCODERS, write_image, write_slide
from tests.support import orthanc
from tests.support.quirky import EXTENDED, J2K, JPEG_LS, RLE, bit_packed, twelve_bits
from tests.support.quirky import NATIVE as EXPLICIT
from tests.support.workers import some_workers

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(bool(orthanc.reason_to_skip()), reason=str(orthanc.reason_to_skip())),
]

SMALL = dict(shape=(100, 110), downsamples=(1, 2), tile_shape=(32, 32), associated=False)


class CountingSession(requests.Session):
    """Counts requests for frames, and others."""

    def __init__(self):
        super().__init__()
        self.urls = []

    def get(self, url, **options):
        self.urls.append(url)
        return super().get(url, **options)

    @property
    def frames(self):
        """Frames asked for, request by request."""
        found = [url.partition("/frames/")[2] for url in self.urls]
        return [[int(number) for number in each.split(",")] for each in found if each]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with orthanc.running(tmp_path_factory.mktemp("orthanc")) as url:
        yield url


def whole(slide, level=0):
    return slide.get_volume_images()[level].get_total_pixel_matrix()[...]


def opened(url, uids):
    study, series = uids
    return dicomslide.open_slide(f"dicomweb+{url}/studies/{study}/series/{series}")


@pytest.mark.parametrize("uid", ENCODERS)
def test_pixels_are_those_of_the_file_in_every_transfer_syntax(tmp_path, url, uid):
    if uid == EXTENDED:
        write_image(tmp_path / "level-0.dcm", twelve_bits())
    else:
        number = 100 + list(ENCODERS).index(uid)
        write_slide(tmp_path, **SMALL, slide_number=number, transfer_syntax_uid=uid)
    uids = orthanc.store(url, sorted(tmp_path.glob("*.dcm")))
    expected = whole(dicomslide.open_slide(tmp_path))
    np.testing.assert_array_equal(whole(opened(url, uids)), expected)


@pytest.mark.parametrize("uid", [EXPLICIT, "1.2.840.10008.1.2.2", RLE, J2K, JPEG_LS])
def test_two_bytes_a_sample(tmp_path, url, uid):
    number = 150 + list(ENCODERS).index(uid)
    write_slide(
        tmp_path, **SMALL, slide_number=number, transfer_syntax_uid=uid, samples=1, bits=16,
        drawing="position", optical_paths=("DAPI", "FITC"), planes=(5.0, 7.0),
    )  # fmt: skip
    uids = orthanc.store(url, sorted(tmp_path.glob("*.dcm")))
    expected, found = dicomslide.open_slide(tmp_path), opened(url, uids)
    xr.testing.assert_equal(
        found.to_datatree().compute(scheduler="threads"), expected.to_datatree().compute()
    )


@pytest.mark.parametrize("sparse", [False, True], ids=["full", "sparse"])
def test_a_slide_of_five_levels_opens_in_few_requests(tmp_path, url, sparse):
    number = 180 + sparse
    write_slide(
        tmp_path, shape=(700, 900), downsamples=(1, 2, 4, 8, 16), slide_number=number,
        sparse=sparse, tile_shape=(32, 32),
    )  # fmt: skip
    study, _ = orthanc.store(url, sorted(tmp_path.glob("*.dcm")))
    client = DICOMwebClient(url, session=CountingSession())
    slide = dicomslide.open_slide(client, study_instance_uid=study)
    assert slide.num_levels == 5
    assert len(client._session.urls) <= 4
    expected = dicomslide.open_slide(tmp_path)
    for level in range(5):
        np.testing.assert_array_equal(whole(slide, level), whole(expected, level))
    np.testing.assert_array_equal(
        slide.label_images[0].get_total_pixel_matrix()[...],
        expected.label_images[0].get_total_pixel_matrix()[...],
    )


@pytest.fixture(scope="module")
def large(url, tmp_path_factory):
    """A slide of 100 frames of 256², stored."""
    folder = tmp_path_factory.mktemp("large")
    write_slide(folder, shape=(2560, 2560), downsamples=(1, 4), slide_number=190, associated=False)
    return folder, orthanc.store(url, sorted(folder.glob("*.dcm")))


def test_a_region_is_read_in_few_requests_once(url, large):
    folder, (study, _) = large
    client = DICOMwebClient(url, session=CountingSession())
    slide = dicomslide.open_slide(client, study_instance_uid=study)
    matrix = slide.get_volume_images()[0].get_total_pixel_matrix()
    expected = dicomslide.open_slide(folder).get_volume_images()[0].get_total_pixel_matrix()
    found = matrix[100:2148, 100:2148]
    np.testing.assert_array_equal(found, expected[100:2148, 100:2148])
    frames = client._session.frames
    assert [len(each) for each in frames] == [81]
    dicomslide.clear_all("decoded frames")
    matrix[100:2148, 100:2148]
    assert client._session.frames == frames


def test_every_frame_is_asked_for_once_by_dask(url, large):
    folder, (study, _) = large
    client = DICOMwebClient(url, session=CountingSession())
    slide = dicomslide.open_slide(client, study_instance_uid=study)
    dicomslide.clear_all("received frames")
    with dask.config.set(scheduler="threads"):
        found = slide.get_volume_images()[0].get_total_pixel_matrix().to_dask("auto").mean()
        mean = found.compute()
    counts = Counter(number for numbers in client._session.frames for number in numbers)
    assert (len(counts), set(counts.values())) == (100, {1})
    # one for each chunk, unless two threads ask within milliseconds
    assert len(client._session.frames) <= 4
    assert mean == pytest.approx(whole(dicomslide.open_slide(folder)).mean())


def test_frames_that_are_not_there_are_an_error_that_names_them(url, large):
    _, uids = large
    slide = opened(url, uids)
    header = slide.get_volume_images()[0].metadata
    header.NumberOfFrames = 101
    source = frame_source(DICOMwebClient(url), header)
    with pytest.raises(dicomslide.FrameReadError, match=r"frame 101: .*400"):
        source.read_frames([100])
    assert len(source.read_frames([99])) == 1


def test_real_slides(shared_data, url):
    folder = shared_data / "cmu-1-small-region"
    uids = orthanc.store(url, sorted(folder.glob("*.dcm")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dicomslide.MetadataWarning)
        found, expected = opened(url, uids), dicomslide.open_slide(folder)
        for level in range(expected.num_levels):
            np.testing.assert_array_equal(whole(found, level), whole(expected, level))


def from_server(url, original, folder):
    """Store a file under another UID; return a source that reads it from the server."""
    dataset = pydicom.dcmread(original)
    dataset.SOPInstanceUID = generate_uid()  # others may have stored one with the same
    path = folder / f"stored-{original.name}"
    dataset.save_as(path)
    uids = orthanc.store(url, [path])
    header = pydicom.dcmread(path, stop_before_pixels=True)
    client = DICOMwebClient(url)
    metadata = connection.connection_of(client).metadata((*uids, str(header.SOPInstanceUID)))
    return frame_source(client, metadata)


def tiled_files(folder):
    for path in sorted(folder.rglob("*.dcm")):
        source = FileSource.open(path)
        if dicomslide.is_tiled_image(source.metadata):
            yield path, source


def channels_of(source):
    image = dicomslide.TiledImage(source, source.metadata)
    for channel in range(image.num_channels):
        for plane in range(image.num_focal_planes):
            matrix = image.get_total_pixel_matrix(channel, plane)
            yield matrix[...]


@pytest.mark.filterwarnings("ignore::dicomslide.MetadataWarning")
@pytest.mark.parametrize("folder", ["highdicom", "boxes"])
def test_images_and_what_is_derived_from_them(tmp_path, shared_data, url, folder):
    for path, source in tiled_files(shared_data / folder):
        found, expected = channels_of(from_server(url, path, tmp_path)), channels_of(source)
        for each, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(each, other, err_msg=str(path))


def test_annotations_are_whole(tmp_path, shared_data, url):
    path = shared_data / "highdicom" / "sm_annotations.dcm"
    source = from_server(url, path, tmp_path)
    expected = pydicom.dcmread(path)
    expected.SOPInstanceUID = source.sop_instance_uid
    assert source.read_instance() == expected


def test_bit_packed_frames(tmp_path, url):
    expected = bit_packed(tmp_path)
    (found,) = channels_of(from_server(url, tmp_path / "level-0.dcm", tmp_path))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ["<f4", "<f8"])
def test_float_pixels(tmp_path, url, kind):
    number = 200 + np.dtype(kind).itemsize
    write_slide(
        tmp_path, shape=(64, 96), downsamples=(1,), tile_shape=(32, 32), samples=1,
        drawing="position", transfer_syntax_uid=EXPLICIT, associated=False, slide_number=number,
    )  # fmt: skip
    path = tmp_path / "level-0.dcm"
    dataset = pydicom.dcmread(path)
    values = np.random.default_rng(2).normal(size=(6, 32, 32)).astype(kind)
    uid = "1.2.840.10008.5.1.4.1.1.30"
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = UID(uid)
    del dataset.PixelData, dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit
    dataset.BitsAllocated = 8 * values.itemsize
    keyword = "FloatPixelData" if kind == "<f4" else "DoubleFloatPixelData"
    setattr(dataset, keyword, values.tobytes())
    dataset.save_as(path)
    (found,) = channels_of(from_server(url, path, tmp_path))
    expected = values.reshape(2, 3, 32, 32).transpose(0, 2, 1, 3).reshape(64, 96, 1)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == values.dtype


def test_processes_read_from_the_server(url, large):
    folder, uids = large
    image = opened(url, uids).get_volume_images()[0]
    pickled = pickle.dumps(image.get_total_pixel_matrix())
    assert len(pickled) < 2000
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        corners = [pool.submit(corner, pickled, at) for at in (0, 256)]
        found = [each.result(120) for each in corners]
    expected = whole(dicomslide.open_slide(folder))
    for at, each in zip((0, 256), found, strict=True):
        np.testing.assert_array_equal(each, expected[at : at + 256, at : at + 256])


def corner(pickled, at):
    return pickle.loads(pickled)[at : at + 256, at : at + 256]


@pytest.mark.slow
@pytest.mark.cluster
def test_a_cluster_reads_from_the_server(url, large):
    pytest.importorskip("distributed")
    folder, uids = large
    array = opened(url, uids).get_volume_images()[0].get_total_pixel_matrix().to_dask("auto")
    with some_workers(2, protocol="tcp") as client:
        mean = client.compute(array.mean()).result(timeout=120)
    assert mean == pytest.approx(whole(dicomslide.open_slide(folder)).mean())


def test_results_come_back_from_the_server_to_which_they_were_written(tmp_path, url):
    write_slide(tmp_path, **SMALL, slide_number=230)
    study, series = orthanc.store(url, sorted(tmp_path.glob("*.dcm")))
    service = f"dicomweb+{url}"
    slide = dicomslide.open_slide(f"{service}/studies/{study}/series/{series}")
    image = slide.to_dataset(chunks={}).image
    brightness = image.mean("sample")
    mask, score = brightness < 190, (brightness / 255).astype("float32").rename("score")
    corners = np.random.default_rng(3).uniform(12, 12.1, (7, 5, 2))
    dicomslide.write_segmentation(mask, slide, service, segments=["tissue"])
    dicomslide.write_parametric_map(score, slide, service, quantity="probability", unit="1")
    dicomslide.write_annotations(corners, slide, service, label="nucleus")
    found = dicomslide.open_slide(DICOMwebClient(url), study_instance_uid=study)
    dataset = found.to_dataset()
    np.testing.assert_array_equal(dataset.segmentation, mask)
    np.testing.assert_array_equal(dataset.parametric_map, score)
    xr.testing.assert_equal(dataset.x.reset_coords(drop=True), image.x.reset_coords(drop=True))
    assert dataset.parameter_quantity == "Probability"
    (group,) = found.annotations()
    np.testing.assert_array_equal(group.coordinates.reshape(corners.shape), corners)
    assert (group.label, group.property_type.meaning) == ("nucleus", "Nucleus")
