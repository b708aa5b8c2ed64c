"""Slides through a client: pixels are those of the files, whatever the server makes of them."""

from __future__ import annotations

import dask
import numpy as np
import pydicom
import pytest
from pydicom.uid import UID

import dicomslide
from dicomslide import Slide, TiledImage, TotalPixelMatrix
from dicomslide.backends.dicomweb.client import frame_source
from dicomslide.backends.net import policy
from dicomslide.backends.part10.file import FileSource, FileStore
from dicomslide.pixels import PixelFormat, decode_frame, transfer_syntax_of
from dicomslide.testing import ENCODERS, encode_frame, write_image, write_slide
from tests.support.fake_client import FakeClient, refused
from tests.support.fake_clock import FakeClock
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


@pytest.mark.needs("requests")
def test_media_types_that_are_refused_are_not_asked_for_again(jpeg_slide):
    client = FakeClient(jpeg_slide, accepts=lambda m: m == ("application/octet-stream",))
    metadata = client.all_metadata()[0]
    source = frame_source(client, metadata)
    assert source.read_frames([0]) == client.frames(source.name)[:1]
    assert len(frame_calls(client)) == 3
    frame_source(client, metadata).read_frames([1])
    assert len(frame_calls(client)) == 4


@pytest.mark.needs("requests")
@pytest.mark.parametrize(
    ("fault", "reason"),
    [("refused", "406"), ("empty", "no time is left"), ("too many", "no time is left")],
)
def test_a_client_with_ways_of_its_own_is_not_asked_again_after_the_deadline(
    jpeg_slide, monkeypatch, fault, reason
):
    clock = FakeClock()
    monkeypatch.setattr(policy, "POLICY", clock.policy(deadline=10.0))

    def respond(frames, indices):
        clock.now += 11.0
        if fault != "empty":
            raise refused(406 if fault == "refused" else 413)
        return [b"" for _ in frames]

    client = FakeClient(jpeg_slide, send=respond)
    (uid, *_) = client.datasets
    source = frame_source(client, client.metadata(uid))
    with pytest.raises(dicomslide.FrameReadError, match=reason):
        source.read_frames([0, 1])
    assert [call[0] for call in client.calls].count("frames") == 1


@pytest.mark.needs("requests")
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


@pytest.mark.needs("requests")
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


@pytest.mark.needs("requests")
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


@pytest.mark.needs("requests")
@pytest.mark.parametrize("lossy", [True, False])
def test_nothing_lossy_is_asked_for_unless_the_image_is_lossy(jpeg_slide, lossy):
    client = FakeClient(jpeg_slide, accepts=lambda media_types: False)
    metadata = client.all_metadata()[0]
    metadata.LossyImageCompression = "01" if lossy else "00"
    with pytest.raises(dicomslide.FrameReadError):
        frame_source(client, metadata).read_frames([0])
    assert (("image/jpeg",) in [call[3] for call in frame_calls(client)]) == lossy


@pytest.mark.needs("requests")
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


@pytest.mark.needs("requests")
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


@pytest.mark.needs("requests")
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


@pytest.mark.parametrize("status", [503, 429, None])
def test_a_failure_that_passes_does_not_end_reading_of_float_frames(tmp_path, float_pixels, status):
    import requests

    failure = requests.ConnectionError() if status is None else refused(status)
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
