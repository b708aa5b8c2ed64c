"""Who reads is who was let in: clients, URLs, pickles, what is kept; at a server of two users.

The server is a real Orthanc that checks passwords; a proxy before it says which user sees which
study.
"""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import requests
import xarray as xr
from dicomweb_client.api import DICOMwebClient

import dicomslide
from dicomslide.errors import FrameReadError, NotDicomError, SourceDeniedError, SourceReadError
from dicomslide.testing import write_slide
from tests.support import orthanc
from tests.support.faulty_server import TOKEN, FaultyServer
from tests.support.parts import starts

reason = orthanc.reason_to_skip()
needs_orthanc = pytest.mark.skipif(reason is not None, reason=str(reason))

PASSWORDS = {"anna": "secret-of-anna", "bert": "secret-of-bert"}
SMALL = dict(shape=(96, 128), downsamples=(1, 2), tile_shape=(32, 32), associated=False)


class Ward:
    """Two slides in two studies, of which each user sees one."""

    def __init__(self, folder, gate, slides):
        self.gate = gate
        self.folder = folder
        self.slides = slides
        self.reset()

    def reset(self):
        self.gate.rights = {user: {uids[0]} for user, uids in self.slides.items()}
        self.gate.requests.clear()
        dicomslide.forget(self.gate.url.removesuffix("/dicom-web"))

    def session(self, user):
        session = requests.Session()
        session.trust_env = False
        session.auth = (user, PASSWORDS[user])
        return session

    def client(self, user):
        return DICOMwebClient(self.gate.url, self.session(user))

    def url(self, owner):
        study, series = self.slides[owner]
        return f"dicomweb+{self.gate.url}/studies/{study}/series/{series}"

    def study(self, owner):
        return self.slides[owner][0]

    def pixels(self, owner):
        return whole(dicomslide.open_slide(self.folder / owner))

    def users_of(self, count):
        """Users of the requests since `count` of them had been made."""
        return {user for user, _ in self.gate.requests[count:]}


@pytest.fixture(scope="module")
@starts("server")
def _ward(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ward")
    with orthanc.running(folder, PASSWORDS) as url:
        slides = {}
        for number, user in enumerate(PASSWORDS):
            paths = write_slide(folder / user, **SMALL, slide_number=number + 1, seed=number)
            slides[user] = orthanc.store(url, paths, (user, PASSWORDS[user]))
        with orthanc.Gate(url, {}) as gate:
            yield Ward(folder, gate, slides)


@pytest.fixture
def ward(_ward):
    _ward.reset()
    yield _ward
    _ward.reset()


def whole(slide):
    return slide.get_image_region((0, 0), 0, slide.size)


def state_of(session):
    """What a caller may see of a session."""
    return {name: copy.copy(getattr(session, name)) for name in requests.Session.__attrs__}


# -- a caller's client -----------------------------------------------------------------------


@needs_orthanc
def test_a_client_that_is_refused_is_given_no_credentials_that_are_registered(ward):
    dicomslide.register_credentials(ward.gate.url, session=lambda url: ward.session("bert"))
    session = requests.Session()
    session.trust_env = False
    before = state_of(session)
    client = DICOMwebClient(ward.gate.url, session)
    for user in PASSWORDS:
        with pytest.raises(SourceDeniedError, match=r"^401 Unauthorized"):
            dicomslide.open_slide(client, study_instance_uid=ward.study(user))
    with pytest.raises(SourceDeniedError, match="401"):
        dicomslide.find_slides(client)
    with pytest.raises(SourceDeniedError, match="401"):
        dicomslide.open_slides(client)
    metadata = dicomslide.open_slide(ward.url("bert")).metadata
    image = dicomslide.TiledImage(client, metadata)
    asked = len(ward.gate.requests)
    with pytest.raises(FrameReadError, match="401"):
        image.get_total_pixel_matrix()[:1, :1]
    assert ward.users_of(asked) == {None}
    assert client._session is session
    assert state_of(session) == before


@needs_orthanc
@pytest.mark.parametrize("owner", PASSWORDS)
def test_each_client_sees_its_own_whatever_is_registered_for_others(ward, owner):
    (other,) = PASSWORDS.keys() - {owner}
    mine, others = ward.client(owner), ward.client(other)
    slide = dicomslide.open_slide(mine)
    hers = dicomslide.open_slide(others)
    metadata = hers.metadata
    for change in (
        lambda: None,
        lambda: dicomslide.register_credentials(ward.gate.url, session=ward.session),
        lambda: dicomslide.register_credentials(
            ward.gate.url, session=lambda url: ward.session(other)
        ),
        lambda: dicomslide.register_client(others),
        lambda: dicomslide.forget(ward.gate.url),
    ):
        change()
        asked = len(ward.gate.requests)
        np.testing.assert_array_equal(whole(slide), ward.pixels(owner))
        np.testing.assert_array_equal(whole(dicomslide.open_slide(mine)), ward.pixels(owner))
        assert ward.users_of(asked) <= {owner}
        # what it was told of by somebody else isn't shown to it, kept or not
        np.testing.assert_array_equal(whole(hers), ward.pixels(other))
        with pytest.raises(FrameReadError, match="403 Forbidden"):
            dicomslide.TiledImage(mine, metadata).get_total_pixel_matrix()[:]
        with pytest.raises(SourceDeniedError, match="403 Forbidden"):
            dicomslide.open_slide(mine, study_instance_uid=ward.study(other))


@needs_orthanc
def test_all_slides_of_a_client_are_read_by_it_later_too(ward):
    """A cohort keeps names only, and opens a slide when it is looked up."""
    slides = dicomslide.open_slides(ward.client("anna"))
    dicomslide.register_credentials(ward.gate.url, session=lambda url: ward.session("bert"))
    asked = len(ward.gate.requests)
    ((_, slide),) = slides.opened()
    np.testing.assert_array_equal(whole(slide), ward.pixels("anna"))
    assert ward.users_of(asked) == {"anna"}


# -- URLs ------------------------------------------------------------------------------------


@needs_orthanc
def test_a_url_is_opened_by_what_is_registered_and_no_client_that_was_used(ward):
    for user in PASSWORDS:
        dicomslide.open_slide(ward.client(user))
    asked = len(ward.gate.requests)
    with pytest.raises(SourceDeniedError, match="401"):
        dicomslide.open_slide(ward.url("anna"))
    assert ward.users_of(asked) == {None}
    dicomslide.register_client(ward.client("anna"))
    np.testing.assert_array_equal(
        whole(dicomslide.open_slide(ward.url("anna"))), ward.pixels("anna")
    )
    with pytest.raises(SourceDeniedError, match="403"):
        dicomslide.open_slide(ward.url("bert"))


@needs_orthanc
@pytest.mark.parametrize("prefix", ["the service", "with dicomweb+ and /", "the host", "a study"])
def test_registering_again_and_forgetting_take_effect_with_the_next_request(ward, prefix):
    url = {
        "the service": ward.gate.url,
        "with dicomweb+ and /": f"dicomweb+{ward.gate.url}/",
        "the host": ward.gate.url.removesuffix("/dicom-web").replace("http", "HTTP"),
        "a study": ward.url("anna"),
    }[prefix]
    made = []

    def session_of(user):
        def session(service):
            made.append(service)
            return ward.session(user)

        return session

    dicomslide.register_credentials(url, session=session_of("anna"))
    slide = dicomslide.open_slide(ward.url("anna"))
    expected = whole(slide)
    np.testing.assert_array_equal(expected, ward.pixels("anna"))
    arrived = pickle.loads(pickle.dumps(slide))
    asked = len(ward.gate.requests)
    np.testing.assert_array_equal(whole(slide), expected)
    assert len(ward.gate.requests) == asked  # its frames are kept

    dicomslide.register_credentials(url, session=session_of("bert"))
    for each in (slide, arrived):
        with pytest.raises((SourceDeniedError, FrameReadError), match="403 Forbidden"):
            whole(each)
    with pytest.raises(SourceDeniedError, match="403 Forbidden"):
        pickle.loads(pickle.dumps(slide))
    with pytest.raises(SourceDeniedError, match="403 Forbidden"):
        dicomslide.open_slide(ward.url("anna"))
    assert whole(dicomslide.open_slide(ward.url("bert"))).any()
    assert ward.users_of(asked) == {"bert"}

    asked = len(ward.gate.requests)
    forget = dicomslide.forget if len(prefix) % 2 else dicomslide.register_credentials
    forget(url)
    for each in (slide, arrived):
        with pytest.raises((SourceDeniedError, FrameReadError), match="401 Unauthorized"):
            whole(each)
    with pytest.raises(SourceDeniedError, match="401 Unauthorized"):
        pickle.loads(pickle.dumps(slide))
    assert ward.users_of(asked) == {None}
    assert set(made) == {ward.gate.url}

    dicomslide.register_credentials(url, session=session_of("anna"))
    np.testing.assert_array_equal(whole(slide), expected)


@needs_orthanc
def test_rights_that_are_given_later_count_and_so_do_other_credentials_after_a_refusal(ward):
    dicomslide.register_credentials(ward.gate.url, session=lambda url: ward.session("bert"))
    for _ in range(2):
        with pytest.raises(SourceDeniedError, match="403"):
            dicomslide.open_slide(ward.url("anna"))
    dicomslide.register_credentials(ward.gate.url, session=lambda url: ward.session("anna"))
    assert whole(dicomslide.open_slide(ward.url("anna"))).any()
    ward.gate.rights["bert"].add(ward.study("anna"))
    dicomslide.register_credentials(ward.gate.url, session=lambda url: ward.session("bert"))
    np.testing.assert_array_equal(
        whole(dicomslide.open_slide(ward.url("anna"))), ward.pixels("anna")
    )


@needs_orthanc
@pytest.mark.parametrize("kind", ["session", "callable"])
@pytest.mark.parametrize("way", ["open_slide", "open_slides", "engine", "tree"])
def test_a_slide_may_have_a_session_of_its_own(ward, kind, way):
    dicomslide.register_credentials(ward.gate.url, session=lambda url: ward.session("bert"))
    session = ward.session("anna")
    before = state_of(session)
    own = session if kind == "session" else lambda url: session
    expected = ward.pixels("anna")

    def read(session):
        url = ward.url("anna")
        if way == "open_slide":
            return whole(dicomslide.open_slide(url, session=session))
        if way == "open_slides":
            ((_, slide),) = dicomslide.open_slides(url, session=session).opened()
            return whole(slide)
        options = dict(engine="dicomslide", orientation="stored", session=session)
        if way == "engine":
            return xr.open_dataset(url, **options).image.values
        return xr.open_datatree(url, **options, chunks={})["level_0"].image.compute(
            scheduler="threads"
        )

    asked = len(ward.gate.requests)
    np.testing.assert_array_equal(read(own), expected)
    assert ward.users_of(asked) == {"anna"}
    for other in (None, ward.session("bert")):
        with pytest.raises(SourceDeniedError, match="403"):
            read(other)
    assert state_of(session) == before
    slide = dicomslide.open_slide(ward.url("anna"), session=own)
    dicomslide.forget(ward.gate.url)
    np.testing.assert_array_equal(whole(slide), expected)


def test_a_session_for_something_else_than_a_dicomweb_url_is_an_error(tissue_slide):
    client = DICOMwebClient("http://host/dicom-web")
    for source in (
        tissue_slide,
        str(tissue_slide),
        client,
        "https://host/slide.dcm",
        [tissue_slide],
    ):
        for way in (dicomslide.open_slide, dicomslide.open_slides):
            with pytest.raises(ValueError, match="a session is for the URL of a DICOMweb"):
                way(source, session=requests.Session())


def test_what_gives_no_session_is_an_error_and_nothing_is_asked_without_credentials(tmp_path):
    write_slide(tmp_path, **SMALL)
    with FaultyServer(tmp_path) as server:
        study = next(iter(server.archive.datasets.values())).StudyInstanceUID
        with pytest.raises(TypeError, match=r"must be a requests\.Session, not a NoneType"):
            dicomslide.open_slide(
                f"dicomweb+{server.url}/studies/{study}", session=lambda url: None
            )
        assert server.requests == []


# -- pickles ---------------------------------------------------------------------------------


@needs_orthanc
def test_what_arrives_pickled_is_read_by_what_is_registered_else_as_it_was_opened(ward):
    slides = {user: dicomslide.open_slide(ward.client(user)) for user in PASSWORDS}
    pickles = {user: pickle.dumps(slide) for user, slide in slides.items()}
    assert all(PASSWORDS[user].encode() not in data for user, data in pickles.items())
    for user, data in pickles.items():  # two clients of one server, in the process that has both
        np.testing.assert_array_equal(whole(pickle.loads(data)), ward.pixels(user))
    dicomslide.register_credentials(ward.gate.url, session=lambda url: ward.session("anna"))
    np.testing.assert_array_equal(whole(pickle.loads(pickles["anna"])), ward.pixels("anna"))
    with pytest.raises(SourceDeniedError, match="403"):
        pickle.loads(pickles["bert"])
    dicomslide.forget(ward.gate.url)
    for data in pickles.values():
        with pytest.raises(SourceDeniedError, match="401"):
            pickle.loads(data)


# -- what is kept ----------------------------------------------------------------------------


@needs_orthanc
def test_frames_on_disk_are_only_for_whom_the_server_lets_see_them(ward, tmp_path):
    with dicomslide.set_options(frame_folder=str(tmp_path)):
        hers = dicomslide.open_slide(ward.client("anna"))
        expected = whole(hers)
        data = pickle.dumps(hers)

        def forget_memory():
            dicomslide.clear_all("received frames", "decoded frames")

        forget_memory()
        asked = len(ward.gate.requests)
        np.testing.assert_array_equal(whole(hers), expected)
        assert len(ward.gate.requests) == asked  # they are on disk

        bert = ward.client("bert")
        matrix = dicomslide.TiledImage(bert, hers.metadata).get_total_pixel_matrix()
        dicomslide.register_credentials(ward.gate.url, session=lambda url: ward.session("bert"))
        for _ in range(2):
            with pytest.raises(FrameReadError, match="403"):
                matrix[:]
            with pytest.raises(SourceDeniedError, match="403"):
                pickle.loads(data)
        forget_memory()
        np.testing.assert_array_equal(whole(hers), expected)

        ward.gate.rights["bert"].add(ward.study("anna"))
        asked = len(ward.gate.requests)
        slide = dicomslide.open_slide(bert, study_instance_uid=ward.study("anna"))
        np.testing.assert_array_equal(whole(slide), expected)
        assert not [path for _, path in ward.gate.requests[asked:] if "/frames/" in path]


@needs_orthanc
def test_headers_and_frames_in_memory_are_those_of_who_fetched_them(ward):
    ward.gate.rights["bert"].add(ward.study("anna"))
    slides = {
        user: dicomslide.open_slide(ward.client(user), study_instance_uid=ward.study("anna"))
        for user in PASSWORDS
    }
    for user, slide in slides.items():
        asked = len(ward.gate.requests)
        whole(slide)
        assert ward.users_of(asked) == {user}
    ward.gate.rights["bert"].clear()
    dicomslide.clear_all("received frames", "decoded frames")
    with pytest.raises(FrameReadError, match="403"):
        whole(slides["bert"])
    assert whole(slides["anna"]).any()


# -- tokens, and servers that can't be reached -----------------------------------------------


def test_a_token_beside_a_session_leaves_the_session_as_it_is(tmp_path):
    write_slide(tmp_path, **SMALL)
    session = requests.Session()
    before = state_of(session)
    with FaultyServer(tmp_path) as server:
        server.token = TOKEN
        study = next(iter(server.archive.datasets.values())).StudyInstanceUID
        dicomslide.register_credentials(
            server.url, session=lambda url: session, token=lambda url: TOKEN
        )
        try:
            assert dicomslide.open_slide(f"dicomweb+{server.url}/studies/{study}").num_levels == 2
        finally:
            dicomslide.forget(server.url)
    assert state_of(session) == before


@pytest.mark.parametrize("scheme", ["dicomweb+", ""])
def test_a_server_that_cannot_be_reached_is_an_error_of_the_source(monkeypatch, scheme):
    from dicomslide.backends.net import policy

    monkeypatch.setattr(policy, "POLICY", policy.Policy(attempts=1))
    with pytest.raises(SourceReadError, match=r"^ConnectionError") as info:
        dicomslide.open_slide(f"{scheme}http://127.0.0.1:9/dicom-web/studies/1.2.3")
    assert not isinstance(info.value, PermissionError)
    assert "127.0.0.1:9/dicom-web doesn't give" in str(info.value)
    assert isinstance(pickle.loads(pickle.dumps(info.value)), SourceReadError)


@pytest.mark.parametrize(
    "path",
    ["studies/1.2.3", "studies/1.2.3/", "studies/1.2/series/3.4", "studies/1.2/series/3.4/?x=1"],
)
def test_a_dicomweb_url_is_known_without_its_prefix_in_a_list_it_is_an_error(path):
    url = f"https://host.invalid/dicom-web/{path}"
    with pytest.raises(NotDicomError, match="opened by itself"):
        dicomslide.open_slide([url])
    if "?" in path:
        with pytest.raises(NotDicomError, match="may hold no user, password or query"):
            dicomslide.open_slide(url)


def test_a_study_is_opened_by_a_url_without_prefix_as_with_it(tmp_path):
    write_slide(tmp_path, **SMALL)
    with FaultyServer(tmp_path) as server:
        study = next(iter(server.archive.datasets.values())).StudyInstanceUID
        url = f"{server.url}/studies/{study}"
        expected = whole(dicomslide.open_slide(tmp_path))
        for each in (url, f"{url}/", f"dicomweb+{url}"):
            np.testing.assert_array_equal(whole(dicomslide.open_slide(each)), expected)
        assert len(dicomslide.open_slides(url)) == 1
        with xr.open_dataset(url, engine="dicomslide", orientation="stored") as dataset:
            np.testing.assert_array_equal(dataset.image, expected)
        assert all(path.rpartition("/")[2] != study for path, _ in server.requests)
