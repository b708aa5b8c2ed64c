"""Faults of servers, in one table, for objects over HTTP and DICOMweb both."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import pickle
import ssl
import time
import traceback
from email.utils import formatdate

import pytest
import requests
from dicomweb_client.api import DICOMwebClient

import dicomslide
from dicomslide.backends.dicomweb import transport
from dicomslide.backends.net import policy, storage_options
from dicomslide.backends.objects import attempts
from dicomslide.backends.objects.remote import RemoteSource
from dicomslide.testing import write_slide
from tests.support.fake_clock import FakeClock
from tests.support.faulty_server import FaultyServer
from tests.support.range_server import serving

pytest.importorskip("aiohttp", reason="HTTP takes aiohttp: dicomslide[remote]")

SECRET = "hush-0123456789"
FRAME = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slide")
    write_slide(folder, shape=(300, 410), downsamples=(1,), tile_shape=(64, 64), associated=False)
    return folder


@pytest.fixture(scope="module")
def stored(folder):
    """A frame as the file has it."""
    source = dicomslide.open_slide(folder).get_volume_images()[0]._source
    return bytes(source.read_frames([FRAME])[0])


def named(fault, names):
    return names.get(fault, fault) if isinstance(fault, str) else fault


class Objects:
    """The slide as an object on a server that takes range requests."""

    def __init__(self, server):
        self.server = server
        self.url = f"{server.url}/level-0.dcm"
        self.resets = 0

    def open(self):
        return RemoteSource.open(self.url)

    def register(self, give):
        dicomslide.register_storage_options(
            self.server.url, lambda: {"headers": {"Authorization": f"Bearer {give()}"}}
        )

    def register_for_good(self):
        dicomslide.register_storage_options(
            self.server.url, {"headers": {"Authorization": f"Bearer {SECRET}"}}
        )

    def play(self, faults):
        names = {"truncated": "cut", "silence": "hang", "trickle": "drip", "damaged": "short"}
        # aiohttp itself sends a request once more whose connection breaks before an answer
        self.resets = 2 * list(faults).count("reset")
        twice = [each for fault in faults for each in (fault,) * (1 + (fault == "reset"))]
        self.server.faults = [named(fault, names) for fault in twice]

    def count(self):
        left = self.server.faults.count("reset")
        return len(self.server.requests) - (self.resets - left) // 2

    def bound(self, source, bounds):
        """The policy of the process holds."""

    @staticmethod
    def sent_to(server):
        return server.requests

    @staticmethod
    def host(server):
        return server.url

    elsewhere = staticmethod(serving)


class DicomWeb:
    """The slide behind a DICOMweb server."""

    def __init__(self, server):
        self.server = server
        (dataset,) = server.archive.datasets.values()
        study, series = dataset.StudyInstanceUID, dataset.SeriesInstanceUID
        self.url = f"dicomweb+{server.url}/studies/{study}/series/{series}"

    def open(self):
        return dicomslide.open_slide(self.url).get_volume_images()[0]._source

    def register(self, give):
        dicomslide.register_credentials(self.server.url, token=lambda url: give())

    def register_for_good(self):
        session = requests.Session()
        session.headers["Authorization"] = f"Bearer {SECRET}"
        dicomslide.register_client(DICOMwebClient(self.server.url, session))

    def play(self, faults):
        self.server.faults.clear()
        self.server.play(*(named(fault, {"damaged": "missing"}) for fault in faults))

    def count(self):
        return len(self.server.requests)

    def bound(self, source, bounds):
        source._connection.service.transport._policy = bounds

    @staticmethod
    def sent_to(server):
        return server.requests

    @staticmethod
    def host(server):
        return server.url.removesuffix("/dicom-web")

    elsewhere = FaultyServer


@pytest.fixture(params=[Objects, DicomWeb], ids=["object", "dicomweb"])
def behind(request, folder):
    """The slide behind a server that wants a token, at a process that knows nothing of it."""
    forget()
    storage_options.forget_all()
    with request.param.elsewhere(folder) as server:
        found = request.param(server)
        yield found
        dicomslide.forget(server.url)


def forget():
    """Drop the bytes and frames in memory."""
    dicomslide.clear_all(
        "heads of objects", "bytes of objects read ahead", "received frames", "decoded frames",
        "request batchers",
    )  # fmt: skip


@pytest.fixture
def clock():
    clock = FakeClock()
    clock.began = float(int(clock.began))
    return clock


@pytest.fixture
def opened(behind, clock, monkeypatch):
    """Return a function that reads a frame under a policy, and the tokens that were given."""
    given = []

    def give():
        given.append(SECRET)
        return SECRET

    def read(faults, *, is_renewable=True, **bounds):
        if is_renewable:
            behind.register(give)
        else:
            behind.register_for_good()
        source = behind.open()
        source.read_frames([0])
        source.read_frames([FRAME - 1])  # what frames are asked for as is agreed on
        rules = clock.policy(**bounds)
        monkeypatch.setattr(policy, "POLICY", rules)
        behind.bound(source, rules)
        forget()
        given.clear()
        behind.server.requests.clear()
        behind.play(faults)
        try:
            return bytes(source.read_anew(FRAME))
        finally:
            read.requests = behind.count()
            behind.play([])

    read.given = given
    return read


def chain(error):
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def check_secret(error):
    """No message, repr, cause or pickle of an error holds what was sent."""
    shown = "".join(traceback.format_exception(error))
    for each in chain(error):
        shown += f"{each} {each!r} {vars(each)}"
        assert SECRET.encode() not in pickle.dumps(each)
    assert SECRET not in shown


@dataclasses.dataclass(frozen=True)
class Fault:
    faults: tuple
    """What the server does, one request each; then it is well."""
    requests: int | None
    waits: tuple = ()
    reason: str = ""
    """What the error says; empty where the frame comes."""
    bounds: dict = dataclasses.field(default_factory=dict)


def later(status, value):
    return (status, {"Retry-After": value})


ALL = (0.25, 0.5, 1.0, 2.0, 4.0)
TEMPORARY = [408, 425, 429, 500, 502, 503, 504, "reset", "truncated"]
TABLE = {
    **{f"{what} once": Fault((what,), 2, ALL[:1]) for what in (*TEMPORARY, "damaged")},
    **{f"{what} twice": Fault((what,) * 2, 3, ALL[:2]) for what in TEMPORARY},
    **{
        f"{what} always": Fault((what,) * 9, 6, ALL, r"\(6 attempts in 7\.8 s\)")
        for what in TEMPORARY
    },
    "damaged always": Fault(("damaged",) * 9, 3, ALL[:2], r"\(3 attempts in 0\.8 s\)"),
    **{
        f"{status}": Fault((status,), 1, (), f"{status} [A-Z]")
        for status in (404, 410)
    },
    "waits are bounded": Fault(
        (503,) * 9, 6, (0.25, 0.5, 0.6, 0.6, 0.6), "6 attempts", {"longest_wait": 0.6}
    ),
    "attempts are bounded": Fault((503,) * 9, 2, ALL[:1], "503 .*2 attempts", {"attempts": 2}),
    "the deadline holds": Fault(
        (503,) * 99, 5, ALL[:4], r"503 .*5 attempts in 3\.8 s", {"deadline": 6.0, "attempts": 99}
    ),
    "seconds are waited": Fault((later(429, "7"), later(503, "2")), 3, (7.0, 2.0)),
    "no seconds": Fault((later(503, "0"),), 2, ALL[:1]),
    "nonsense": Fault((later(503, "soon"), later(503, "-1")), 3, ALL[:2]),
    "too many seconds": Fault((later(503, "3600"),), 1, (), r"503 .*\(1 attempt in"),
    "silence": Fault(("silence",) * 9, None, (), "1 attempt", {"deadline": 0.3, "attempts": 1}),
    "trickle": Fault(("trickle",) * 9, None, (), "1 attempt", {"deadline": 0.3, "attempts": 1}),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_faults_end_as_the_policy_says(behind, opened, clock, stored, name):
    fault = TABLE[name]
    if fault.reason:
        with pytest.raises(dicomslide.FrameReadError, match=fault.reason) as caught:
            opened(fault.faults, **fault.bounds)
        assert f"frame {FRAME + 1}" in str(caught.value)
        check_secret(caught.value)
    else:
        assert opened(fault.faults, **fault.bounds) == stored
    assert tuple(clock.waits) == fault.waits
    assert fault.requests in (None, opened.requests)
    assert opened(()) == stored  # reading goes on


def test_waits_grow_to_a_limit_and_differ_by_chance():
    chance = iter([0.0, 0.5, 1.0, 0.0, 1.0])
    rules = policy.Policy(longest_wait=1.0, clock=policy.Clock(jitter=chance.__next__))
    assert [rules.backoff(attempt) for attempt in range(1, 6)] == [0.125, 0.375, 1.0, 0.5, 1.0]


def test_many_bytes_extend_the_deadline_within_bounds():
    rules = policy.Policy(deadline=10.0, slowest=100.0, longest=5.0)
    assert [rules.extra(nbytes) for nbytes in (0, 1000, 10**9)] == [0.0, 10.0, 40.0]


@pytest.fixture
def far_from_greenwich(monkeypatch):
    monkeypatch.setenv("TZ", "XYZ-09")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the time zone can't be set")
@pytest.mark.parametrize("zone", [" GMT", " +0000", " -0000", ""])
@pytest.mark.parametrize("seconds", [10, -10])
def test_the_date_of_retry_after_is_in_gmt(
    opened, clock, stored, far_from_greenwich, zone, seconds
):
    date = formatdate(clock.began + seconds, usegmt=True).removesuffix(" GMT") + zone
    assert opened([later(503, date)]) == stored
    assert clock.waits == [10.0 if seconds > 0 else 0.25]


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials_are_renewed_once(behind, opened, clock, stored, status):
    assert opened([status]) == stored
    assert (opened.requests, len(opened.given), clock.waits) == (2, 1, [])
    with pytest.raises(dicomslide.FrameReadError, match=f"{status} [A-Z]") as caught:
        opened([status] * 9)
    assert (opened.requests, len(opened.given), clock.waits) == (2, 1, [])
    check_secret(caught.value)


@pytest.mark.parametrize("status", [401, 403])
def test_credentials_that_nobody_renews_are_refused_once(behind, opened, clock, status):
    with pytest.raises(dicomslide.FrameReadError, match=f"{status} [A-Z]") as caught:
        opened([status] * 9, is_renewable=False)
    assert (opened.requests, clock.waits) == (1, [])
    check_secret(caught.value)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, dicomslide.SourceDeniedError), (403, dicomslide.SourceDeniedError),
     (404, dicomslide.SourceNotFoundError), (410, dicomslide.SourceNotFoundError),
     (400, dicomslide.SourceReadError), (503, dicomslide.SourceReadError)],
)  # fmt: skip
def test_a_slide_that_is_refused_is_an_error_that_names_the_server(
    behind, clock, monkeypatch, status, kind
):
    monkeypatch.setattr(policy, "POLICY", clock.policy())
    behind.register(lambda: SECRET)
    behind.play([status] * 99)
    with pytest.raises(kind, match=behind.server.url) as caught:
        behind.open()
    assert str(status) in str(caught.value)
    check_secret(caught.value)


def test_another_origin_gets_no_credentials(behind, opened, folder, stored):
    with type(behind).elsewhere(folder) as other:
        target = type(behind).host(other)
        if isinstance(behind, Objects):
            fault = (302, {"Location": f"{target}/level-0.dcm"})
        else:
            behind.server.elsewhere, fault = target, "redirect"
        assert opened([fault]) == stored
        (sent,) = other.requests
        assert SECRET not in str(sent)
        assert "Authorization" not in str(sent)
        assert SECRET in str(behind.server.requests)


def test_redirects_without_end_are_an_error_at_once(behind, opened, clock):
    if isinstance(behind, Objects):
        fault = (302, {"Location": "/level-0.dcm"})
    else:
        behind.server.elsewhere, fault = "", "redirect"
    with pytest.raises(dicomslide.FrameReadError, match="more than 5 redirects") as caught:
        opened([fault] * 9)
    assert (opened.requests, clock.waits) == (6, [])
    check_secret(caught.value)


def test_a_redirect_to_an_invalid_url_is_an_error_at_once(behind, opened, clock):
    if isinstance(behind, Objects):
        fault = (302, {"Location": "http://127.0.0.1:port/"})
    else:
        behind.server.elsewhere, fault = "http://127.0.0.1:port", "redirect"
    # requests looks at the port before we do, where it has sent credentials
    expected = "a redirect to an invalid URL|Port could not be cast"
    with pytest.raises(dicomslide.FrameReadError, match=expected):
        opened([fault])
    assert (opened.requests, clock.waits) == (1, [])


@pytest.mark.parametrize("fault", [503, "silence", "trickle"])
def test_pools_give_up_when_the_interpreter_exits(behind, opened, clock, monkeypatch, fault):
    for module in (policy, attempts, transport):
        monkeypatch.setattr(module, "is_abandoned", lambda: bool(behind.server.requests))
    with pytest.raises(dicomslide.FrameReadError, match="1 attempt"):
        opened([fault] * 9)
    assert (opened.requests, clock.waits) == (1, [])


@contextlib.contextmanager
def untrusted(folder):
    """Yield the port of a server whose certificate nobody has signed."""
    x509 = pytest.importorskip("cryptography.x509", reason="certificates take cryptography")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "127.0.0.1")])
    day = datetime.timedelta(days=1)
    today = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(today - day).not_valid_after(today + day)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = folder / "server.pem"
    pem.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with serving(folder) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        yield server.server_address[1]


@pytest.mark.parametrize("url", ["{}/level-0.dcm", "dicomweb+{}/studies/1.2/series/3.4"])
def test_a_certificate_that_is_not_trusted_is_an_error_at_once(tmp_path, clock, monkeypatch, url):
    monkeypatch.setattr(policy, "POLICY", clock.policy())
    with (
        untrusted(tmp_path) as port,
        pytest.raises(dicomslide.SourceReadError, match=r"(?i)certificate"),
    ):
        dicomslide.open_slide(url.format(f"https://127.0.0.1:{port}"))
    assert clock.waits == []


# -- registration ----------------------------------------------------------------------------


def test_other_credentials_drop_what_was_read_with_the_old_ones(behind, stored):
    """Frames, headers and objects in memory; equal storage options change nothing."""
    behind.register_for_good()
    source = behind.open()
    assert bytes(source.read_frames([FRAME])[0]) == stored
    before = behind.count()
    assert bytes(source.read_frames([FRAME])[0]) == stored
    assert behind.count() == before
    behind.register(lambda: SECRET)
    behind.play([403] * 99)
    with pytest.raises(dicomslide.DicomSlideError, match="403"):
        source.read_frames([FRAME])
    behind.play([])
    assert bytes(source.read_frames([FRAME])[0]) == stored


def test_credentials_that_are_forgotten_are_sent_no_more(behind, stored):
    behind.register(lambda: SECRET)
    source = behind.open()
    source.read_frames([FRAME])
    dicomslide.forget(behind.server.url)
    behind.server.requests.clear()
    assert bytes(source.read_frames([FRAME])[0]) == stored
    assert behind.count() > 0
    assert SECRET not in str(behind.server.requests)
