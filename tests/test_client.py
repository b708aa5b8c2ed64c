"""Slides through a client: pixels are those of the files, whatever the server makes of them."""

from __future__ import annotations

import copy
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context

import dask
import numpy as np
import pydicom
import pytest
import requests
from dicomweb_client.api import DICOMfileClient, DICOMwebClient
from pydicom.uid import UID

import dicomslide
from dicomslide import Slide, TiledImage, TotalPixelMatrix
from dicomslide.backends.dicomweb import connection
from dicomslide.backends.dicomweb.client import frame_source
from dicomslide.backends.dicomweb.source import DicomWebSource
from dicomslide.backends.part10.file import FileSource, FileStore
from dicomslide.pixels import PixelFormat, decode_frame, transfer_syntax_of
from dicomslide.testing import ENCODERS, encode_frame, write_image, write_slide
from tests.support.fake_client import FakeClient, refused
from tests.support.quirky import BASELINE as JPEG
from tests.support.quirky import EXTENDED, J2K, JPEG_LS, RLE, bit_packed, twelve_bits
from tests.support.quirky import NATIVE as EXPLICIT

DEFLATED_FRAME = "1.2.840.10008.1.2.8.1"
AS_STORED = (("application/octet-stream", "*"),)
SMALL = dict(shape=(60, 70), downsamples=(1,), tile_shape=(32, 32), associated=False)


def pixels(slide):
    return slide.get_image_region((0, 0), 0, slide.size)


def frame_calls(client):
    return [call for call in client.calls if call[0] == "frames"]


@pytest.fixture(scope="module")
def jpeg_slide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jpeg")
    write_slide(folder, **SMALL)
    return folder


# -- any client ------------------------------------------------------------------------------


@pytest.mark.parametrize("uid", ENCODERS)
def test_pixels_are_those_of_the_file_in_every_transfer_syntax(tmp_path, uid):
    if uid == EXTENDED:
        write_image(tmp_path / "level-0.dcm", twelve_bits())
    else:
        write_slide(tmp_path, **SMALL, drawing="position", transfer_syntax_uid=uid)
    client = FakeClient(tmp_path)
    expected = pixels(dicomslide.open_slide(tmp_path))
    np.testing.assert_array_equal(pixels(Slide(client, client.all_metadata())), expected)
    assert frame_calls(client)


@pytest.mark.parametrize("uid", [JPEG, J2K, JPEG_LS, RLE, "1.2.840.10008.1.2.4.91"])
def test_frames_that_a_server_decodes_are_those_of_the_file(tmp_path, uid):
    write_slide(tmp_path, **SMALL, transfer_syntax_uid=uid)
    client = FakeClient(tmp_path, transcodes=True)
    expected = pixels(dicomslide.open_slide(tmp_path))
    np.testing.assert_array_equal(pixels(Slide(client, client.all_metadata())), expected)


def test_every_class_of_the_documented_api_takes_a_client(jpeg_slide):
    client = FakeClient(jpeg_slide)
    metadata = client.all_metadata()[0]
    expected = pixels(dicomslide.open_slide(jpeg_slide))
    np.testing.assert_array_equal(Slide(client, [metadata]).levels[0].image.get_image_region(
        (0, 0), (60, 70)), expected)  # fmt: skip
    np.testing.assert_array_equal(
        TiledImage(client, metadata).get_image_region((0, 0), (60, 70)), expected
    )
    np.testing.assert_array_equal(TotalPixelMatrix(client, metadata)[...], expected)
    slide = dicomslide.open_slide(client)
    np.testing.assert_array_equal(pixels(slide), expected)
    np.testing.assert_array_equal(
        slide.to_dataset(orientation="stored").image.compute(scheduler="sync"), expected
    )


def test_a_study_of_a_client_is_opened_alone(tmp_path):
    for number in (1, 2):
        write_slide(tmp_path / str(number), **SMALL, slide_number=number, container_id=f"S{number}")
    client = FakeClient(tmp_path)
    with pytest.raises(dicomslide.AmbiguousSlideError, match="container_id"):
        dicomslide.open_slide(client)
    assert dicomslide.open_slide(client, container_id="S2").container_identifier == "S2"
    study = str(next(iter(client.datasets.values())).StudyInstanceUID)
    slide = dicomslide.open_slide(client, study_instance_uid=study)
    assert slide.container_identifier == "S1"
    with pytest.raises(dicomslide.NotSlideError, match=r"no instance of study 1\.2\.3"):
        dicomslide.open_slide(client, study_instance_uid="1.2.3")
    with pytest.raises(dicomslide.NotSlideError, match=r"no instance of study 1\.2\.3"):
        dicomslide.open_slide(tmp_path, study_instance_uid="1.2.3")


def test_where_nothing_is_found_is_named(tmp_path):
    with pytest.raises(dicomslide.NotSlideError, match=r"^FakeClient: no slide image is there"):
        dicomslide.open_slide(FakeClient(tmp_path))


@pytest.mark.parametrize("value", [3, object(), None])
def test_what_is_no_client_is_an_error_that_says_what_is_expected(jpeg_slide, value):
    with pytest.raises(TypeError, match=r"expected a dicomweb_client\.api\.DICOMClient"):
        frame_source(value, pydicom.Dataset())


def test_a_store_is_not_asked_for_the_metadata_of_all_to_read_one(jpeg_slide):
    class Store:
        @property
        def metadata(self):
            raise AssertionError("this may be a thousand requests")

        identity = name = transfer_syntax_uid = metadata

        def source(self, metadata):
            return FileStore.open(jpeg_slide).source(metadata)

    (path, *_) = sorted(jpeg_slide.glob("*.dcm"))
    image = TiledImage(Store(), pydicom.dcmread(path))
    assert image.get_image_region((0, 0), (2, 2)).shape == (2, 2, 3)


def test_metadata_without_uids_are_an_error_that_shows_them(jpeg_slide):
    client = FakeClient(jpeg_slide)
    metadata = client.all_metadata()[0]
    metadata.StudyInstanceUID = ""
    with pytest.raises(dicomslide.MetadataError, match="StudyInstanceUID , SeriesInstanceUID 1"):
        TiledImage(client, metadata)


@pytest.mark.parametrize("order", ["sparse", "sparse without type"])
def test_per_frame_positions_come_from_the_metadata(tmp_path, order):
    write_slide(tmp_path, **SMALL, drawing="position", transfer_syntax_uid=EXPLICIT,
                sparse=True, absent=((0, 1),))  # fmt: skip
    client = FakeClient(tmp_path)
    metadata = client.all_metadata()[0]
    if order == "sparse without type":
        del metadata.DimensionOrganizationType
    expected = pixels(dicomslide.open_slide(tmp_path))
    image = TiledImage(client, metadata)
    np.testing.assert_array_equal(image.get_image_region((0, 0), (60, 70)), expected)
    # who passes an image's own metadata on, passes its positions on
    again = TiledImage(client, image.metadata)
    assert "PerFrameFunctionalGroupsSequence" not in image.metadata
    assert "PerFrameFunctionalGroupsSequence" in metadata
    dicomslide.clear_all("layouts")
    np.testing.assert_array_equal(again.get_image_region((0, 0), (60, 70)), expected)


# -- requests --------------------------------------------------------------------------------


def test_frames_are_asked_for_as_stored_and_in_one_request(jpeg_slide):
    client = FakeClient(jpeg_slide)
    source = frame_source(client, client.all_metadata()[0])
    frames = source.read_frames([5, 0, 3, 0])
    stored = client.frames(source.sop_instance_uid)
    assert frames == [stored[5], stored[0], stored[3], stored[0]]
    assert frame_calls(client) == [("frames", source.name, [1, 4, 6], AS_STORED)]
    assert source.read_frames([]) == []


def test_media_types_that_are_refused_are_not_asked_for_again(jpeg_slide):
    client = FakeClient(jpeg_slide, accepts=lambda m: m == ("application/octet-stream",))
    metadata = client.all_metadata()[0]
    source = frame_source(client, metadata)
    assert source.read_frames([0]) == client.frames(source.name)[:1]
    assert len(frame_calls(client)) == 3
    frame_source(client, metadata).read_frames([1])
    assert len(frame_calls(client)) == 4


def test_one_instance_that_a_server_cannot_give_as_stored_changes_nothing_for_others(tmp_path):
    for number in (1, 2):
        write_slide(tmp_path / str(number), **SMALL, slide_number=number)
    client = FakeClient(tmp_path)
    first, second = (frame_source(client, each) for each in client.all_metadata())

    def frames(study, series, instance, frame_numbers, media_types=None):
        client.calls.append(("frames", instance, list(frame_numbers), media_types))
        if instance == first.name and media_types == AS_STORED:
            raise refused(500)
        return client.frames(instance)[: len(frame_numbers)]

    client.retrieve_instance_frames = frames
    for source, frame in ((first, 0), (second, 0), (first, 1), (second, 1)):
        source.read_frames([frame])
    asked = [call[3] for call in frame_calls(client) if call[1] == second.name]
    assert asked == [AS_STORED, AS_STORED]
    asked = [call[3] for call in frame_calls(client) if call[1] == first.name]
    assert asked == [AS_STORED, (("*/*", "*"),)] * 2  # it might have been a bad moment


def test_threads_that_find_out_at_once_what_is_given(jpeg_slide):
    client = FakeClient(jpeg_slide)
    source = frame_source(client, client.all_metadata()[0])
    overtaken = []

    def frames(study, series, instance, frame_numbers, media_types=None):
        if media_types == AS_STORED:
            if not overtaken:  # another thread agrees before this one hears that it is refused
                overtaken.append(True)
                source.read_frames([0])
            raise refused(500)
        return client.frames(instance)[: len(frame_numbers)]

    client.retrieve_instance_frames = frames
    assert len(source.read_frames([1, 2])) == 2


def test_an_instance_that_is_refused_altogether_changes_nothing_for_others(tmp_path):
    for number in (1, 2):
        write_slide(tmp_path / str(number), **SMALL, slide_number=number)
    client = FakeClient(tmp_path)
    first, second = (frame_source(client, each) for each in client.all_metadata())
    client.accepts = lambda media_types: False
    with pytest.raises(dicomslide.FrameReadError, match="406"):
        first.read_frames([0])
    client.accepts = lambda media_types: True
    client.calls.clear()
    second.read_frames([0])
    assert [call[3] for call in frame_calls(client)] == [AS_STORED]


def test_a_client_that_knows_no_media_types(jpeg_slide):
    class Simple:
        def __init__(self, client):
            self.client = client

        def retrieve_instance_frames(self, study, series, instance, frame_numbers):
            return self.client.retrieve_instance_frames(study, series, instance, frame_numbers)

    client = FakeClient(jpeg_slide)
    image = TiledImage(Simple(client), client.all_metadata()[0], correct_color=False)
    expected = dicomslide.open_slide(jpeg_slide, correct_color=False)
    np.testing.assert_array_equal(image.get_image_region((0, 0), (60, 70)), pixels(expected))


@pytest.mark.parametrize("lossy", [True, False])
def test_nothing_lossy_is_asked_for_unless_the_image_is_lossy(jpeg_slide, lossy):
    client = FakeClient(jpeg_slide, accepts=lambda media_types: False)
    metadata = client.all_metadata()[0]
    metadata.LossyImageCompression = "01" if lossy else "00"
    with pytest.raises(dicomslide.FrameReadError):
        frame_source(client, metadata).read_frames([0])
    assert (("image/jpeg",) in [call[3] for call in frame_calls(client)]) == lossy


@pytest.mark.parametrize("uid", [JPEG, "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.81"])
def test_a_server_that_compresses_with_loss_is_refused_where_the_image_is_lossless(tmp_path, uid):
    write_slide(tmp_path, **SMALL, transfer_syntax_uid=uid)
    client = FakeClient(tmp_path, accepts=lambda media_types: media_types == ("*/*",))
    metadata = client.all_metadata()[0]
    assert frame_source(client, metadata).read_frames([0])
    metadata.LossyImageCompression = "00"  # as if the server had compressed it on the way
    with pytest.raises(dicomslide.FrameReadError, match=r"frame 2: .*lossy compression"):
        frame_source(client, metadata).read_frames([1])
    client = FakeClient(tmp_path)  # as stored: whatever the header says
    assert frame_source(client, metadata).read_frames([2]) == [
        client.frames(metadata.SOPInstanceUID)[2]
    ]


@pytest.mark.parametrize(
    "send", [lambda f, i: f[:-1], lambda f, i: [*f, f[0]], lambda f, i: []],
    ids=["too few", "too many", "none"],
)  # fmt: skip
def test_a_reply_of_another_number_of_frames_is_an_error_that_names_them(jpeg_slide, send):
    client = FakeClient(jpeg_slide, send=send)
    source = frame_source(client, client.all_metadata()[0])
    with pytest.raises(dicomslide.FrameReadError, match=r"frames came for 2: frames 2, 3") as info:
        source.read_frames([1, 2])
    assert info.value.source == source.name


def test_a_server_that_sorts_frames_shifts_no_tile(jpeg_slide):
    client = FakeClient(jpeg_slide)
    stored = client.frames(next(iter(client.datasets)))
    client.send = lambda frames, indices: [stored[index] for index in sorted(indices)]
    source = frame_source(client, client.all_metadata()[0])
    assert source.read_frames([4, 1]) == [stored[4], stored[1]]


def test_errors_of_the_server_name_instance_and_frames_but_no_credentials(jpeg_slide):
    def fail(frames, indices):
        raise refused(503)

    client = FakeClient(jpeg_slide, send=fail)
    source = frame_source(client, client.all_metadata()[0])
    with pytest.raises(dicomslide.FrameReadError, match=r"HTTPError: 503 .*frames 1, 2$") as info:
        source.read_frames([0, 1])
    assert source.name in str(info.value)
    assert len(frame_calls(client)) == 1  # no other media type helps
    for shown in (str(info.value), repr(source), repr(source.identity)):
        assert "secret" not in shown
    assert info.value.__cause__ is None
    with pytest.raises(dicomslide.FrameReadError, match="frame 7: the image has 6 frames"):
        source.read_frames([6])
    assert len(frame_calls(client)) == 1


def test_bad_frames_are_background_where_asked_for(jpeg_slide):
    bad = 2

    def send(frames, indices):
        if bad in indices:
            raise refused(503)
        return frames

    client = FakeClient(jpeg_slide, send=send)
    image = TiledImage(client, client.all_metadata()[0], on_error="fill")
    with pytest.warns(dicomslide.FrameWarning, match="frame 3"):
        found = image.get_image_region((0, 0), (60, 70))
    expected = pixels(dicomslide.open_slide(jpeg_slide)).copy()
    expected[:32, 64:] = 255
    np.testing.assert_array_equal(found, expected)


def test_many_threads_read_through_one_client(jpeg_slide):
    client = FakeClient(jpeg_slide)
    matrix = Slide(client, client.all_metadata()).get_volume_images()[0].get_total_pixel_matrix()
    expected = matrix[...]
    with dask.config.set(scheduler="threads", num_workers=8):
        for _ in range(5):
            dicomslide.clear_all("decoded frames")
            np.testing.assert_array_equal(matrix.to_dask().compute(), expected)


# -- what the bytes are ----------------------------------------------------------------------

RAMP = np.mgrid[:32, :48].sum(0).astype(np.uint8)[:, :, None]
GREY = PixelFormat(rows=32, columns=48)


@pytest.mark.parametrize("uid", ENCODERS)
def test_the_bytes_tell_a_transfer_syntax_that_decodes_them(uid):
    array = RAMP.astype(np.uint16) * 20 if uid == EXTENDED else RAMP
    pixel_format = PixelFormat(rows=32, columns=48, bits_allocated=8 * array.itemsize,
                               bits_stored=12 if uid == EXTENDED else 8)  # fmt: skip
    frame = encode_frame(array, pixel_format, uid)
    np.testing.assert_array_equal(
        decode_frame(frame, pixel_format, None), decode_frame(frame, pixel_format, uid)
    )
    tells = transfer_syntax_of(frame, pixel_format)
    assert (tells == EXPLICIT) == (len(frame) == RAMP.size)
    assert (tells == DEFLATED_FRAME) == (uid == DEFLATED_FRAME)


@pytest.mark.parametrize("uid", [JPEG, JPEG_LS, J2K, RLE, "1.2.840.10008.1.2.4.110"])
def test_native_frames_that_begin_like_a_codestream_are_native(uid):
    """Not only its signature: the first half of a lawful codestream."""
    start = encode_frame(RAMP, GREY, uid)
    native = (start[: len(start) // 2] + bytes(RAMP.size))[: RAMP.size]
    assert transfer_syntax_of(native, GREY) == EXPLICIT
    assert decode_frame(native, GREY, None).tobytes() == native


def as_long_as_native(uid):
    """Encode so much noise that the codestream is as long as the pixels are, or nearly."""
    noise = np.random.default_rng(1).integers(0, 256, RAMP.size, np.uint8)
    for count in range(0, RAMP.size + 1, 4):
        pixels = np.where(np.arange(RAMP.size) < count, noise, 0).astype(np.uint8)
        frame = encode_frame(pixels.reshape(RAMP.shape), GREY, uid)
        if RAMP.size - 8 <= len(frame) <= RAMP.size:
            return frame + bytes(RAMP.size - len(frame))
    raise AssertionError("no such frame")


@pytest.mark.parametrize("uid", [JPEG, JPEG_LS, J2K, RLE])
def test_a_codestream_as_long_as_a_native_frame_is_a_codestream(uid):
    frame = as_long_as_native(uid)
    assert len(frame) == GREY.native_bytes
    np.testing.assert_array_equal(decode_frame(frame, GREY, None), decode_frame(frame, GREY, uid))


@pytest.mark.parametrize("length", [0, 1, RAMP.size - 1, RAMP.size + 1, 2 * RAMP.size])
def test_bytes_that_are_nothing_known_are_an_error(length):
    with pytest.raises(dicomslide.FrameDecodeError, match=f"{length} bytes that start with"):
        transfer_syntax_of(bytes([7]) * length, GREY)


def test_frames_of_odd_length_may_be_padded():
    odd = PixelFormat(rows=3, columns=5)
    assert decode_frame(bytes(range(16)), odd, None).tobytes() == bytes(range(15))


# -- what frames can't be asked for ----------------------------------------------------------


def test_bit_packed_frames_that_begin_within_a_byte_are_cut_from_the_whole(tmp_path):
    expected = bit_packed(tmp_path)
    client = FakeClient(tmp_path)
    matrix = TotalPixelMatrix(client, client.all_metadata()[0])
    np.testing.assert_array_equal(matrix[...], expected)
    matrix[::-1, ::2]
    assert [call[0] for call in client.calls] == ["instance"]
    np.testing.assert_array_equal(TotalPixelMatrix(*file_of(tmp_path))[...], expected)


def test_bit_packed_frames_of_whole_bytes_are_asked_for(tmp_path):
    expected = bit_packed(tmp_path, 16, 16)
    client = FakeClient(tmp_path)
    np.testing.assert_array_equal(TotalPixelMatrix(client, client.all_metadata()[0])[...], expected)
    assert {call[0] for call in client.calls} == {"frames"}


def test_a_whole_beyond_the_memory_limit_is_not_asked_for(tmp_path):
    bit_packed(tmp_path)
    client = FakeClient(tmp_path)
    source = frame_source(client, client.all_metadata()[0])
    with (
        dicomslide.set_options(memory_limit_bytes=60),
        pytest.raises(dicomslide.MemoryLimitError, match="as a whole"),
    ):
        source.read_frames([0])
    assert client.calls == []


def file_of(folder):
    source = FileSource.open(folder / "level-0.dcm")
    return source, source.metadata


@pytest.fixture
def float_pixels(tmp_path):
    """A map of 2 x 3 float frames; their values."""
    write_slide(tmp_path, **SMALL, samples=1, transfer_syntax_uid=EXPLICIT, drawing="position")
    path = tmp_path / "level-0.dcm"
    dataset = pydicom.dcmread(path)
    values = np.random.default_rng(2).normal(size=(6, 32, 32)).astype("<f4")
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = UID(
        "1.2.840.10008.5.1.4.1.1.30"
    )
    del dataset.PixelData, dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit
    dataset.BitsAllocated = 32
    dataset.FloatPixelData = values.tobytes()
    dataset.save_as(path)
    return values


def test_float_pixels_come_with_the_whole_where_frames_are_refused(tmp_path, float_pixels):
    client = FakeClient(tmp_path)
    matrix = TotalPixelMatrix(client, client.all_metadata()[0])
    whole = float_pixels.reshape(2, 3, 32, 32).transpose(0, 2, 1, 3).reshape(64, 96)
    np.testing.assert_array_equal(matrix[:, :, 0], whole[:60, :70, None])
    assert matrix.dtype == np.float32
    kinds = [call[0] for call in client.calls]
    assert kinds.count("instance") == 1
    dicomslide.clear_all("decoded frames")
    np.testing.assert_array_equal(matrix[:, :, 0], whole[:60, :70, None])
    assert [call[0] for call in client.calls] == kinds


class ServesFloats(FakeClient):
    """Gives frames of Float Pixel Data, after some failures."""

    def frames(self, instance):
        if self.failures:
            raise self.failures.pop()
        data = self.datasets[instance].FloatPixelData
        return [data[at : at + 4096] for at in range(0, len(data), 4096)]


@pytest.mark.parametrize("failure", [refused(503), refused(429), requests.ConnectionError()])
def test_a_failure_that_passes_does_not_end_reading_of_float_frames(
    tmp_path, float_pixels, failure
):
    client = ServesFloats(tmp_path)
    client.failures = [failure]
    source = frame_source(client, client.all_metadata()[0])
    with pytest.raises(dicomslide.FrameReadError, match="doesn't give frame 1"):
        source.read_frames([0])
    assert source.read_frames([1, 4]) == [float_pixels[at].tobytes() for at in (1, 4)]
    assert {call[0] for call in client.calls} == {"frames"}


def test_a_server_that_fails_with_float_frames_is_asked_for_the_whole_for_now(
    tmp_path, float_pixels
):
    client = ServesFloats(tmp_path)
    client.failures = [refused(500)] * 20
    source = frame_source(client, client.all_metadata()[0])
    assert source.read_frames([1]) == [float_pixels[1].tobytes()]
    asked = len(client.calls)
    assert source.read_frames([2]) == [float_pixels[2].tobytes()]  # it is still here
    assert len(client.calls) == asked
    dicomslide.clear_all("whole instances", "received frames")
    client.failures.clear()
    assert source.read_frames([3]) == [float_pixels[3].tobytes()]
    assert [call[0] for call in client.calls[asked:]] == ["frames"]


def test_whole_data_sets_are_read(jpeg_slide):
    client = FakeClient(jpeg_slide)
    source = frame_source(client, client.all_metadata()[0])
    assert source.read_instance().PixelData == client.datasets[source.name].PixelData
    client.datasets.clear()
    with pytest.raises(dicomslide.MetadataError, match=r"KeyError.* doesn't give the data set "):
        source.read_instance()


# -- colour ----------------------------------------------------------------------------------


def odd_profile():
    """sRGB with two colours exchanged: correction is seen."""
    from dicomslide.testing import srgb_profile

    profile = bytearray(srgb_profile())
    at = {profile[i : i + 4].decode("latin-1"): i for i in range(132, 132 + 12 * 20, 12)}
    for field in (4, 5, 6, 7):
        red, green = at["rXYZ"] + field, at["gXYZ"] + field
        profile[red], profile[green] = profile[green], profile[red]
    return bytes(profile)


@pytest.mark.parametrize("how", ["lost address", "address", "inline"])
def test_colour_is_corrected_with_a_profile_that_is_bulk_data(tmp_path, how):
    write_slide(tmp_path, **SMALL, icc_profile=odd_profile())
    client = FakeClient(tmp_path, bulk=how != "inline")
    expected = pixels(dicomslide.open_slide(tmp_path))
    stored = pixels(dicomslide.open_slide(tmp_path, correct_color=False))
    assert (expected != stored).any()
    if how == "address":
        slide = dicomslide.open_slide(client)
    else:
        slide = Slide(client, client.all_metadata())
    assert "bulk data" not in [call[0] for call in client.calls]  # not before pixels are read
    np.testing.assert_array_equal(pixels(slide), expected)
    pixels(slide)
    urls = [call[1] for call in client.calls if call[0] == "bulk data"]
    assert len(urls) == (0 if how == "inline" else 1)
    # the server's own idea of its name isn't followed
    host = client.base_url.split("@")[1].split("/")[0]
    assert all(url.startswith(f"https://{host}/dicom-web/studies/") for url in urls)


def test_colours_stay_as_stored_with_one_warning_where_the_profile_cannot_be_had(jpeg_slide):
    client = FakeClient(jpeg_slide)
    client.retrieve_bulkdata = None
    slide = Slide(client, client.all_metadata())
    with pytest.warns(dicomslide.MetadataWarning, match="colours stay as stored") as caught:
        found = pixels(slide)
    assert len([each for each in caught if "stay as stored" in str(each.message)]) == 1
    expected = pixels(dicomslide.open_slide(jpeg_slide, correct_color=False))
    np.testing.assert_array_equal(found, expected)


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
    write_slide(folder / "deeper", **SMALL, transfer_syntax_uid="1.2.840.10008.1.2.4.201")
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
