"""Slides behind a server that fails: right pixels, or an error that says what is missing."""

from __future__ import annotations

import pickle
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import requests
import xarray as xr
from dicomweb_client.api import DICOMwebClient

import dicomslide
from dicomslide.backends.batching import encoded_frames
from dicomslide.backends.dicomweb import connection, service
from dicomslide.backends.dicomweb.client import frame_source, store_at
from dicomslide.backends.dicomweb.transport import Transport
from dicomslide.backends.net import credentials
from dicomslide.testing import write_slide
from tests.support.fake_client import FakeClient
from tests.support.fake_clock import FakeClock
from tests.support.faulty_server import AS_STORED, TOKEN, FaultyServer, url_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slide")
    write_slide(
        folder, shape=(300, 410), downsamples=(1, 2, 4, 8, 16), tile_shape=(32, 32),
        associated=False,
    )  # fmt: skip
    return folder


@pytest.fixture
def server(folder):
    with FaultyServer(folder) as server:
        yield server


@pytest.fixture
def clock():
    return FakeClock()


def client_of(server, clock=None, **bounds):
    """Return a client, for whose connection the clock runs when it waits."""
    client = DICOMwebClient(server.url)
    if clock is not None:
        found = connection.connection_of(client)
        found.service.transport = Transport(
            lambda: client._session,
            refresh=found._renew,
            policy=clock.policy(**bounds),
        )
    return client


def source_of(server, clock, **bounds):
    client = client_of(server, clock, **bounds)
    return frame_source(client, server.archive.all_metadata()[0])


def whole(slide):
    return slide.get_image_region((0, 0), 0, slide.size)


# -- faults ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [408, 429, 502, 503, 504, "reset", "truncated", "cut_last_part", "no_closing_delimiter",
     "short_part", "missing", "surplus", "other_frames", "swapped_numbers", "empty_part",
     "empty_part_with_length"],
)  # fmt: skip
def test_what_went_wrong_once_is_asked_for_again(server, clock, fault):
    source = source_of(server, clock)
    server.play(fault)
    stored = server.archive.frames(source.name)
    assert source.read_frames([7, 2]) == [stored[7], stored[2]]
    assert server.frames == [[3, 8], [3, 8]]
    assert clock.waits == [0.25]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (503, "503 Service Unavailable"),
        ("truncated", "IncompleteRead"),
        ("no_closing_delimiter", "the reply ends before the end of part 2"),
        ("cut_last_part", "the reply ends before the end of part 2"),
        ("short_part", "part 1 isn't the [0-9]+ bytes long that it says"),
        ("missing", "1 parts came for 2"),
        ("surplus", "more parts came than the 2"),
        ("empty_part", "part 2 is empty: a fault, or what is stored so"),
        ("empty_part_with_length", "part 1 is empty: a fault, or what is stored so"),
        ("other_frames", r"parts came that say they are frames \[999\]"),
    ],
)
def test_what_goes_wrong_each_time_is_an_error_that_names_the_frames(server, clock, fault, reason):
    source = source_of(server, clock, **({"attempts": 3} if fault in (503, "truncated") else {}))
    server.play(*[fault] * 3)
    with pytest.raises(
        dicomslide.FrameReadError, match=rf": .*{reason}.*\(3 attempts in 0\.8 s\): .*frames 3, 8$"
    ) as info:
        source.read_frames([7, 2])
    assert source.name in str(info.value)
    assert server.url in str(info.value)
    stored = server.archive.frames(source.name)
    assert source.read_frames([7, 2]) == [stored[7], stored[2]]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (403, "403 Forbidden"),
        (404, "404 Not Found"),
        ("wrong_part_type", "part 1 is text/html"),
        ("login_page", "part 1 is text/html"),
    ],
)
def test_what_will_not_change_is_an_error_at_once(server, clock, fault, reason):
    source = source_of(server, clock)
    server.play(fault)
    with pytest.raises(dicomslide.FrameReadError, match=f": .*{reason}.*: .*frame 8"):
        source.read_frames([7])
    assert (len(server.requests), clock.waits) == (1, [])
    assert source.read_frames([7]) == [server.archive.frames(source.name)[7]]


@pytest.mark.parametrize("fault", ["empty", "no_content"])
def test_an_empty_reply_is_no_empty_frame(server, clock, fault):
    """A frame that is stored empty is background: silence must not become one."""
    source = source_of(server, clock)
    server.play(*[fault] * 4)
    with pytest.raises(dicomslide.FrameReadError, match=r"the reply is empty.*: .*frame 8"):
        source.read_frames([7])
    assert source.read_frames([7]) == [server.archive.frames(source.name)[7]]


@pytest.mark.parametrize("folder_of_frames", [False, True], ids=["memory", "disk"])
@pytest.mark.parametrize("fault", ["empty_part", "damaged_frames", "no_codestreams"])
@pytest.mark.parametrize("way", ["region", "tile", "iteration", "dask"])
def test_bad_frames_are_never_pixels_nor_kept(
    server, clock, tmp_path, fault, folder_of_frames, way
):
    """The server is well again: what it said before isn't held against it, here or elsewhere."""
    image = dicomslide.TiledImage(client_of(server, clock), server.archive.all_metadata()[0])
    matrix = image.get_total_pixel_matrix()
    file = dicomslide.open_slide(server.archive.folder).get_volume_images()[0]
    expected = file.get_total_pixel_matrix()[:64, :64]
    read = {
        "region": lambda: matrix[:64, :64],
        "tile": lambda: matrix[0],
        "iteration": lambda: next(iter(matrix)),
        "dask": lambda: matrix.to_dask()[:64, :64].compute(scheduler="sync"),
    }[way]
    shape = expected if way in ("region", "dask") else expected[:32, :32]
    with dicomslide.set_options(frame_folder=str(tmp_path) if folder_of_frames else ""):
        server.play(*[fault] * 99)
        for _ in range(2):
            with pytest.raises(dicomslide.FrameError):
                read()
        server.faults.clear()
        np.testing.assert_array_equal(read(), shape)
        asked = len(server.requests)
        dicomslide.clear_all("decoded frames")
        np.testing.assert_array_equal(read(), shape)
        assert len(server.requests) == asked  # good ones are
        dicomslide.clear_all("received frames", "decoded frames")
        np.testing.assert_array_equal(read(), shape)
        assert (len(server.requests) == asked) is folder_of_frames


@pytest.mark.parametrize(
    "fault", ["damaged_frames", "no_codestreams", "empty_part_with_length", "cropped_frames"]
)
def test_a_frame_that_came_damaged_once_is_asked_for_once_more(server, clock, fault):
    image = dicomslide.TiledImage(client_of(server, clock), server.archive.all_metadata()[0])
    file = dicomslide.open_slide(server.archive.folder).get_volume_images()[0]
    server.play(fault)
    np.testing.assert_array_equal(
        image.get_total_pixel_matrix()[5], file.get_total_pixel_matrix()[5]
    )
    assert len(server.frames) == 2  # perhaps with neighbours
    assert all(6 in numbers for numbers in server.frames)


def test_frames_that_lack_pixels_are_not_kept(server, clock, tmp_path):
    """They may be stored so: they are shown, with a warning each time."""
    image = dicomslide.TiledImage(
        client_of(server, clock), server.archive.all_metadata()[0], correct_color=False
    )
    matrix = image.get_total_pixel_matrix()
    slide = dicomslide.open_slide(server.archive.folder, correct_color=False)
    file = slide.get_volume_images()[0]
    with dicomslide.set_options(frame_folder=str(tmp_path)):
        server.play(*["cropped_frames"] * 99)
        for _ in range(2):
            with pytest.warns(dicomslide.FrameWarning, match=r"holds 2 × 2 pixels of \(32, 32\)"):
                assert (matrix[:32, :32][2:] == 255).all()
        server.faults.clear()
        np.testing.assert_array_equal(matrix[:], file.get_total_pixel_matrix()[:])


def test_damaged_frames_that_another_process_kept_leave_the_folder(server, clock, tmp_path):
    image = dicomslide.TiledImage(client_of(server, clock), server.archive.all_metadata()[0])
    matrix, source = image.get_total_pixel_matrix(), image._source
    stored = server.archive.frames(source.name)
    with dicomslide.set_options(frame_folder=str(tmp_path)):
        bad = {3: stored[3][:50], 4: b"", 5: stored[5]}
        encoded_frames.FrameDatabase(str(tmp_path)).put(
            encoded_frames._name(source.identity), bad, 10**9
        )
        matrix[0]  # the server lets it be seen
        server.frames.clear()
        found = matrix[3:6]
        file = dicomslide.open_slide(server.archive.folder).get_volume_images()[0]
        np.testing.assert_array_equal(found, file.get_total_pixel_matrix()[3:6])
        asked = {number for numbers in server.frames for number in numbers}
        assert asked >= {4, 5}
        assert 6 not in asked
        dicomslide.clear_all("received frames")
        assert encoded_frames.kept(source.identity, [3, 5]) == {3: stored[3], 5: stored[5]}


def test_empty_frames_of_a_client_with_its_own_ways_are_asked_for_once_more(folder):
    client = FakeClient(folder)
    source = frame_source(client, client.all_metadata()[0])
    empty = []

    def send(frames, indices):
        return [b"" if empty and empty.pop() else frame for frame in frames]

    client.send = send
    empty[:] = [True]
    assert source.read_frames([2]) == [client.frames(source.name)[2]]
    empty[:] = [True] * 99
    with pytest.raises(dicomslide.FrameReadError, match=r"frame 4 came empty twice: .*stored so"):
        source.read_frames([3])


@pytest.mark.parametrize("fault", [400, 406])
def test_a_media_type_that_is_refused_is_followed_by_another(server, clock, fault):
    source = source_of(server, clock)
    server.accepts = lambda accept: True
    server.play(fault)
    assert source.read_frames([7]) == [server.archive.frames(source.name)[7]]
    assert clock.waits == []
    accepted = [headers["Accept"] for _, headers in server.requests]
    assert accepted == [AS_STORED, 'multipart/related; type="*/*"; transfer-syntax=*']
    source.read_frames([8])
    assert server.requests[-1][1]["Accept"] == accepted[1]


@pytest.mark.parametrize("status", [413, 414])
def test_a_server_that_finds_a_request_too_long_is_asked_for_fewer(server, clock, status):
    source = source_of(server, clock)
    server.play(status)
    stored = server.archive.frames(source.name)
    assert source.read_frames(range(40)) == stored[:40]
    assert [*map(len, server.frames)] == [40, 20, 20]
    assert source.read_frames(range(60, 100)) == stored[60:100]
    assert [*map(len, server.frames)] == [40, 20, 20, 20, 20]


def test_parts_in_another_order_are_put_in_theirs(server, clock):
    source = source_of(server, clock)
    server.play("reordered")
    stored = server.archive.frames(source.name)
    assert source.read_frames([1, 2, 3]) == stored[1:4]
    assert len(server.requests) == 1


def test_a_failure_of_the_server_is_not_that_of_a_media_type_once_one_is_agreed_on(server, clock):
    source = source_of(server, clock)
    source.read_frames([0])
    server.play(500, 500)
    assert source.read_frames([1]) == [server.archive.frames(source.name)[1]]
    assert {headers["Accept"] for _, headers in server.requests} == {AS_STORED}
    assert clock.waits == [0.25, 0.5]


def accepted(server):
    return [headers["Accept"] == AS_STORED for _, headers in server.requests]


def test_a_failure_that_passes_does_not_change_what_frames_are_asked_for_as(server, clock):
    server.accepts = lambda accept: True
    source = source_of(server, clock)
    stored = server.archive.frames(source.name)
    server.play(500)
    assert [source.read_frames([index])[0] for index in (0, 30, 60)] == stored[:90:30]
    assert accepted(server) == [True, False, True, True]


@pytest.mark.parametrize(("status", "asked_in_vain"), [(500, [0, 1, 3, 7]), (501, [0])])
def test_what_always_fails_is_tried_less_and_less(
    server, clock, monkeypatch, status, asked_in_vain
):
    monkeypatch.setattr(connection, "time", SimpleNamespace(monotonic=lambda: clock.now))
    server.accepts = lambda accept: accept != AS_STORED
    server.refusal = status
    source = source_of(server, clock)
    found = []
    for second in range(9):  # 0.9 s go by between two requests
        server.requests.clear()
        source.read_frames([9 * second])
        if True in accepted(server):
            found.append(second)
        clock.now += 0.9
    assert found == asked_in_vain


def test_one_deadline_holds_for_all_media_types(server, clock):
    source = source_of(server, clock, deadline=5.0, attempts=99)
    server.play(*[503] * 99)
    with pytest.raises(dicomslide.FrameReadError, match="503"):
        source.read_frames([0])
    assert clock.now <= 5.0


def test_bad_frames_are_filled_and_reading_goes_on(server, clock):
    client = client_of(server, clock)
    metadata = server.archive.all_metadata()[0]
    image = dicomslide.TiledImage(client, metadata, on_error="fill", correct_color=False)
    matrix = image.get_total_pixel_matrix()
    matrix[:1, :1]
    server.play(404, 404)
    with pytest.warns(dicomslide.FrameWarning, match="404"):
        assert (matrix[64:65, :1] == 255).all()
    server.faults.clear()
    dicomslide.clear_all("decoded frames")
    slide = dicomslide.open_slide(server.archive.folder, correct_color=False)
    expected = slide.get_volume_images()[0].get_total_pixel_matrix()
    np.testing.assert_array_equal(matrix[64:96, :32], expected[64:96, :32])


def test_a_profile_that_could_not_be_had_is_asked_for_again(server, clock, folder):
    slide = dicomslide.open_slide(client_of(server, clock))
    metadata, connected = slide.metadata, slide.get_volume_images()[0]._source
    item = metadata.OpticalPathSequence[0]
    server.play(404)
    with pytest.warns(dicomslide.MetadataWarning, match="colours stay as stored.*404"):
        assert connected.icc_profile(item) is None
    stored = dicomslide.open_slide(folder).metadata.OpticalPathSequence[0].ICCProfile
    assert connected.icc_profile(item) == stored
    asked = len(server.requests)
    assert connected.icc_profile(item) == stored
    assert len(server.requests) == asked


def test_all_that_is_tried_for_bulk_data_has_one_deadline(server, clock):
    client = client_of(server, clock, deadline=5.0, attempts=99)
    server.play(*[503] * 99)
    with pytest.raises(dicomslide.MetadataError, match="503"):
        connection.connection_of(client).bulk_data(f"{server.url}/studies/1/7")
    assert clock.now <= 5.0


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("empty", "the reply is empty"),
        ("deep_json", "1,000,000 levels deep; expected 192 at most"),
        ("login_page", "the reply is text/html, not DICOM JSON"),
        ("bomb", "more than the [0-9,]+ bytes expected"),
    ],
)
@pytest.mark.parametrize("what", ["search", "series", "instance"])
def test_json_that_is_none_is_an_error_of_the_source_in_bounded_memory(
    server, clock, monkeypatch, what, fault, reason
):
    """An empty reply to a search isn't a search that finds nothing: that is 204."""
    monkeypatch.setattr(service, "MOST_JSON_BYTES", 10**7)
    read = readers(server, clock)[what]
    server.play(*[fault] * 9)
    with pytest.raises(dicomslide.SourceReadError, match=reason):
        read()
    server.faults.clear()
    assert read()


def readers(server, clock):
    """Ways to ask for JSON."""
    client = client_of(server, clock)
    found = connection.connection_of(client)
    uids = frame_source(client, server.archive.all_metadata()[0]).uids
    return {
        "search": lambda: dicomslide.open_slides(client),
        "series": lambda: found.series_metadata(*uids[:2]),
        "instance": lambda: found.metadata(uids),
    }


def test_a_search_that_finds_nothing_says_204(server, clock):
    server.play(*["no_content"] * 4)
    assert dicomslide.find_slides(client_of(server, clock)) == []


@pytest.mark.parametrize("depth", [64, 250, 1000])
@pytest.mark.parametrize("open_them", [dicomslide.open_slide, dicomslide.open_slides])
@pytest.mark.parametrize("series", [True, False], ids=["series", "study"])
def test_metadata_nested_deeper_than_programs_go_are_an_error(server, open_them, depth, series):
    server.depth = depth
    server.play(*["nested_json"] * 9)
    with pytest.raises(dicomslide.DicomSlideError, match=f"{3 * depth + 1:,} levels deep"):
        open_them(url_of(server, series))


def test_bulk_data_are_bounded(server, clock, monkeypatch):
    monkeypatch.setattr(service, "MOST_BULK_BYTES", 10**6)
    server.bomb_type = "application/octet-stream"
    found = connection.connection_of(client_of(server, clock))
    server.play(*["bomb"] * 9)
    with pytest.raises(dicomslide.SourceReadError, match="more than the 1,000,000 bytes"):
        found.bulk_data(f"{server.url}/studies/1/00282000")


def test_guesses_that_fail_take_no_time_of_what_is_wanted(server, clock):
    """Both have one deadline together."""
    source = source_of(server, clock, deadline=10.0, attempts=99)
    for index in (0, 1, 13, 14):  # neighbours, so that others are guessed
        source.read_frames([index])
    asked = len(server.frames)
    clock.now = 0.0
    server.play(*[503] * 99)
    with pytest.raises(dicomslide.FrameReadError, match=r"no time is left|503"):
        source.read_frames([26])
    assert clock.now <= 10.0
    assert len(server.frames[asked]) > 1  # there were guesses


# -- credentials -----------------------------------------------------------------------------


@pytest.fixture
def tokens(server):
    """Let the server want a token; count how often it is asked for."""
    server.token = TOKEN
    asked = []

    def token(url):
        asked.append(url)
        return f"{TOKEN}-expired" if len(asked) == 1 else TOKEN

    dicomslide.register_credentials(server.url, token=token)
    yield asked
    dicomslide.register_credentials(server.url)


def test_a_token_that_expires_is_refreshed_once(server, tokens):
    slide = dicomslide.open_slide(url_of(server))
    assert len(tokens) == 2
    assert whole(slide).any()
    assert len(tokens) == 2
    secret = TOKEN.encode()
    assert all(secret not in str(path).encode() for path, _ in server.requests)
    server.token = "nobody has it"
    dicomslide.clear_all("received frames", "decoded frames")
    with pytest.raises(dicomslide.FrameReadError, match="401 Unauthorized") as info:
        whole(slide)
    assert TOKEN not in str(info.value)
    server.token = TOKEN
    assert whole(slide).any()


def test_threads_whose_token_expires_at_once_renew_it_once(server, tokens):
    source = dicomslide.open_slide(url_of(server)).get_volume_images()[0]._source
    asked = len(tokens)
    server.token = "another"
    together = threading.Barrier(8)
    gone = threading.Event()
    original = credentials._tokens.of(server.url)

    def token(url):
        original(url)
        gone.wait(0.2)
        return "another"

    dicomslide.register_credentials(server.url, token=token)

    def fetch(index):
        together.wait(10)
        (frame,) = source._fetch([index])
        return frame

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(fetch, range(8)))
    assert found == server.archive.frames(source.name)[:8]
    assert len(tokens) == asked + 1


def test_a_token_may_be_read_from_a_file_with_the_end_of_its_line(server):
    server.token = TOKEN
    dicomslide.register_credentials(f"dicomweb+{server.url}/", token=lambda url: f"{TOKEN}\n")
    try:
        assert dicomslide.open_slide(url_of(server)).num_levels == 5
    finally:
        dicomslide.register_credentials(server.url)


@pytest.mark.parametrize("bad", [f"{TOKEN}\r\nX: y", f"{TOKEN}\u2019"])
def test_a_token_that_no_header_may_have_is_not_shown(server, bad):
    dicomslide.register_credentials(server.url, token=lambda url: bad)
    try:
        with pytest.raises(dicomslide.MetadataError, match="the token has characters") as info:
            dicomslide.open_slide(url_of(server))
    finally:
        dicomslide.register_credentials(server.url)
    assert TOKEN not in "".join(traceback.format_exception(info.value))
    assert server.requests == []


def test_nothing_that_is_kept_or_shown_holds_a_token(server, tokens):
    url = url_of(server)
    slide = dicomslide.open_slide(url)
    tree = xr.open_datatree(url, engine="dicomslide", chunks={})
    image = slide.get_volume_images()[0]
    array = tree["level_0"].image
    things = [slide, image._source, image.get_total_pixel_matrix(), array.data, tree]
    for thing in things:
        pickled = pickle.dumps(thing)
        assert TOKEN.encode() not in pickled
        assert TOKEN not in repr(thing)
    assert len(pickle.dumps(image._source)) < 2000
    assert TOKEN not in str(array.data.name)
    assert TOKEN not in str(tree["level_0"].encoding) + str(array.encoding)
    arrived = pickle.loads(pickle.dumps(image._source))
    connection._connections._by_address.clear()  # as in another process
    assert arrived.read_frames([0]) == [server.archive.frames(image.name)[0]]


def test_credentials_may_be_registered_after_a_server_has_refused(server):
    server.token = TOKEN
    with pytest.raises(dicomslide.SourceDeniedError, match=r"^401 Unauthorized"):
        dicomslide.open_slide(url_of(server))
    dicomslide.register_credentials(server.url, token=lambda url: TOKEN)
    try:
        assert dicomslide.open_slide(url_of(server)).num_levels == 5
    finally:
        dicomslide.register_credentials(server.url)


def test_a_session_factory_is_asked_again_when_its_session_is_refused(server):
    server.token = TOKEN
    made = []

    def session(url):
        made.append(requests.Session())
        made[-1].headers["Authorization"] = f"Bearer {TOKEN if len(made) > 1 else 'expired'}"
        return made[-1]

    dicomslide.register_credentials(server.url, session=session)
    try:
        assert dicomslide.open_slide(url_of(server)).num_levels == 5
        assert len(made) == 2
    finally:
        dicomslide.register_credentials(server.url)


def give_token(url):
    return TOKEN


def test_dicomweb_client_is_asked_for_by_name(server, monkeypatch):
    monkeypatch.setitem(sys.modules, "dicomweb_client.api", None)
    with pytest.raises(ImportError, match=r"pip install 'dicomslide\[dicomweb\]'"):
        dicomslide.open_slide(url_of(server))


def test_the_environment_may_name_a_function(server, monkeypatch):
    server.token = TOKEN
    monkeypatch.setenv(credentials.TOKEN_VARIABLE, f"{__name__}:give_token")
    assert dicomslide.open_slide(url_of(server)).num_levels == 5
    monkeypatch.setenv(credentials.TOKEN_VARIABLE, f"{__name__}:nothing")
    connection._connections._by_address.clear()
    with pytest.raises(ImportError, match=r"DICOMSLIDE_DICOMWEB_TOKEN must name a function"):
        dicomslide.open_slide(url_of(server))


def test_credentials_are_for_the_server_that_they_are_registered_for(server, folder):
    with FaultyServer(folder) as other:
        dicomslide.register_credentials(server.url, token=give_token)
        try:
            dicomslide.open_slide(url_of(other))
        finally:
            dicomslide.register_credentials(server.url)
        assert all("Authorization" not in headers for _, headers in other.requests)


# -- URLs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("series", [True, False], ids=["series", "study"])
def test_a_slide_is_opened_by_url_in_few_requests(server, folder, series):
    url = url_of(server, series)
    slide = dicomslide.open_slide(url)
    assert slide.num_levels == 5
    assert len(server.requests) <= 4
    np.testing.assert_array_equal(whole(slide), whole(dicomslide.open_slide(folder)))


@pytest.mark.parametrize("engine", ["dicomslide", None])
def test_the_engine_opens_a_url(server, folder, engine):
    url = url_of(server)
    dataset = xr.open_dataset(url, engine=engine, chunks={})
    expected = xr.open_dataset(folder, engine="dicomslide")
    xr.testing.assert_equal(dataset.compute(scheduler="threads"), expected)
    assert dataset.encoding["source"] == url


@pytest.mark.parametrize(
    ("url", "service", "study", "series"),
    [
        ("https://host/studies/1.2", "https://host", "1.2", None),
        ("http://host:80/a/b/studies/1.2/series/3.4/", "http://host:80/a/b", "1.2", "3.4"),
        ("https://host/dicom-web/", "https://host/dicom-web", None, None),
        ("https://host", "https://host", None, None),
    ],
)
def test_a_url_names_a_service_and_what_is_wanted_of_it(url, service, study, series):
    store = store_at(f"dicomweb+{url}")
    assert store.client.base_url == service
    assert (store.criteria.study_instance_uid, store.series_instance_uid) == (study, series)


@pytest.mark.parametrize("bad", ["u:secret@host/x", "host/x?token=secret"])
def test_a_url_with_credentials_is_an_error_that_does_not_show_them(bad):
    with pytest.raises(dicomslide.NotDicomError, match="register_credentials") as info:
        dicomslide.open_slide(f"dicomweb+https://{bad}/studies/1.2")
    assert "secret" not in str(info.value)


@pytest.mark.parametrize("bad", ["ftp://host/studies/1.2", "https://host/studies/abc", "https://"])
def test_a_url_of_something_else_is_an_error(bad):
    with pytest.raises(dicomslide.NotDicomError, match="isn't like"):
        dicomslide.open_slide(f"dicomweb+{bad}")


def test_storage_options_for_a_dicomweb_server_are_an_error(server):
    for source in (url_of(server), client_of(server)):
        with pytest.raises(ValueError, match="register_credentials"):
            dicomslide.open_slide(source, storage_options={"token": TOKEN})
    assert server.requests == []


# -- requests --------------------------------------------------------------------------------


def test_requests_in_flight_are_bounded(server, clock):
    inside, most = [], []
    source = source_of(server, clock)
    original = server.archive.frames

    def frames(uid):
        inside.append(1)
        most.append(len(inside))
        threading.Event().wait(0.01)
        inside.pop()
        return original(uid)

    server.archive.frames = frames
    with ThreadPoolExecutor(24) as pool:
        list(pool.map(lambda i: source._fetch([i]), range(48)))
    assert max(most) <= 8


def test_encoded_frames_are_kept_within_bounds(server, clock):
    source = source_of(server, clock)
    size = len(server.archive.frames(source.name)[0])
    with dicomslide.set_options(encoded_cache_bytes=3 * size):
        for index in range(20):
            source.read_frames([index])
        assert encoded_frames._memory.nbytes <= 3 * size
    assert len(server.requests) == 20
