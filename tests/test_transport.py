"""Requests over a network that fails: how often they are tried, how long it takes, what is said."""

from __future__ import annotations

import gc
import os
import random
import threading
import time
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context

import pytest
import requests

from dicomslide.backends.dicomweb.bodies import decompressed
from dicomslide.backends.dicomweb.multipart import ReplyError, WrongTypeError
from dicomslide.backends.dicomweb.transport import Transport, TransportError, _stranger
from dicomslide.backends.net.policy import Policy
from dicomslide.backends.net.redaction import public
from dicomslide.testing import write_slide
from tests.support.fake_clock import FakeClock
from tests.support.faulty_server import AS_STORED, FaultyServer

SECRET = "a-secret"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slide")
    write_slide(folder, shape=(60, 70), downsamples=(1,), tile_shape=(32, 32), associated=False)
    return folder


@pytest.fixture
def server(folder):
    with FaultyServer(folder) as server:
        yield server


@pytest.fixture
def clock():
    return FakeClock()


def transport(clock, *, session=None, refresh=None, **bounds):
    session = session or requests.Session()
    return Transport(
        lambda: session,
        refresh=refresh,
        policy=clock.policy(**bounds),
    )


def joined(kind, chunks):
    return b"".join(chunks)


def get(how, server, read=joined, **options):
    uid = next(iter(server.archive.datasets))
    url = f"{server.url}/studies/1/series/2/instances/{uid}/frames/1"
    return how.get(url, AS_STORED, read, **({"most_bytes": 10**6} | options))


def test_several_requests_may_share_a_deadline(server, clock):
    server.play(*[503] * 99)
    how = transport(clock, attempts=99, deadline=20.0)
    deadline = how.deadline()
    clock.now += 18.0
    with pytest.raises(TransportError):
        get(how, server, deadline=deadline)
    assert clock.now <= 20.0


def test_a_server_that_says_nothing_is_not_waited_for(server, clock):
    server.play("silence", "silence")
    began = time.monotonic()
    with pytest.raises(TransportError, match=r"(?i)read timed out.*2 attempts"):
        get(transport(clock, attempts=2, silence=0.1), server)
    assert time.monotonic() - began < 30
    server.released.set()
    assert get(transport(clock), server)


@pytest.mark.parametrize("what", ["trickle", "dripping_headers"])
def test_bytes_that_drop_in_one_by_one_do_not_outlast_the_deadline(server, what):
    server.play(what)
    how = Transport(requests.Session, policy=Policy(deadline=0.3))
    with pytest.raises(TransportError, match="bytes have come by the deadline"):
        get(how, server)


def test_a_large_reply_that_comes_steadily_may_take_longer(server):
    server.play("steady")
    how = Transport(requests.Session, policy=Policy(deadline=0.2, attempts=1))
    assert len(get(how, server)) == 1_000_000


def test_a_reply_without_end_is_not_received(server, clock):
    with pytest.raises(TransportError, match="more than the 10 bytes expected"):
        get(transport(clock), server, most_bytes=10)
    assert len(server.requests) == 1


def test_a_reply_that_goes_on_and_on_is_waited_for_only_so_long(server):
    server.play("endless")
    how = Transport(requests.Session, policy=Policy(deadline=0.2, attempts=1))
    began = time.monotonic()
    with pytest.raises(TransportError, match="bytes have come by the deadline"):
        get(how, server, most_bytes=10**9)
    assert 0.5 < time.monotonic() - began < 30


def test_a_reply_that_is_decompressed_to_far_more_is_left_as_it_grows(server, clock):
    server.play("bomb")
    tracemalloc.start()
    try:
        with pytest.raises(TransportError, match="more than the 20,000,000 bytes expected"):
            get(transport(clock), server, read=length, most_bytes=20_000_000)
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
        server.play("bomb")
        assert get(transport(clock), server, read=length, most_bytes=10**9) == 300 * 2**20
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


def length(kind, chunks):
    return sum(map(len, chunks))


@pytest.mark.parametrize("what", ["trickle", "dripping_headers", "dripping_chunk", "endless"])
def test_requests_that_are_given_up_close_their_sockets_and_end_their_threads(server, what):
    def left():
        names = ("dicomslide request", "dicomslide hang up")
        return [each for each in threading.enumerate() if each.name in names]

    session = requests.Session()
    how = Transport(lambda: session, policy=Policy(deadline=0.05, attempts=1))
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    server.play(*[what] * 24)
    with ThreadPoolExecutor(8) as pool:
        given_up = [pool.submit(get, how, server) for _ in range(24)]
        assert all(isinstance(each.exception(30), TransportError) for each in given_up)
    for _ in range(500):
        if not left():
            break
        time.sleep(0.02)
    assert not left()
    session.close()
    if before:
        for _ in range(500):  # the server, which is in this process, closes its own
            gc.collect()  # urllib3 leaves to it what is in the pool of a session
            if len(os.listdir("/proc/self/fd")) <= before + 2:
                break
            time.sleep(0.02)
        assert len(os.listdir("/proc/self/fd")) <= before + 2


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "deflate, as some have it", "two gzips"])
@pytest.mark.parametrize("step", [1, 7, 10**6])
def test_what_is_compressed_is_as_it_was_wherever_it_is_cut(encoding, step):
    data = b"0123456789" * 5000 + bytes(100_000) + random.Random(0).randbytes(5000)
    bits = {"deflate": 15, "deflate, as some have it": -15}.get(encoding, 31)

    def packed(data):
        packer = zlib.compressobj(9, zlib.DEFLATED, bits)
        return packer.compress(data) + packer.flush()

    body = packed(data[:777]) + packed(data[777:]) if encoding == "two gzips" else packed(data)
    name = "gzip" if bits == 31 else "deflate"
    pieces = [body[i : i + step] for i in range(0, len(body), step)]
    assert b"".join(decompressed(pieces, name)) == data
    for damaged in (body[: len(body) // 2], body[:-1], b"\xff" * 100):
        with pytest.raises(ReplyError, match="compressed reply"):
            list(decompressed([damaged], name))


def test_what_is_compressed_otherwise_is_refused():
    with pytest.raises(WrongTypeError, match="compressed as br"):
        list(decompressed([b"x"], "br"))
    assert list(decompressed([b"x", b"y"], "identity")) == [b"x", b"y"]


def test_nobody_there_is_an_error_after_some_attempts(clock):
    how = transport(clock, attempts=2)
    with pytest.raises(TransportError, match=r"ConnectionError.*2 attempts") as info:
        how.get(f"http://127.0.0.1:9/x?token={SECRET}", "*/*", joined, most_bytes=1)
    assert SECRET not in str(info.value)
    # what an error of requests knows of the request, dask would send with it
    assert info.value.__cause__ is None
    assert info.value.__context__ is None


@pytest.mark.parametrize("value", [f"Bearer {SECRET}\n", f" {SECRET}"])
def test_headers_that_are_none_are_not_shown(server, clock, value):
    session = requests.Session()
    session.headers["Authorization"] = value
    with pytest.raises(TransportError, match="InvalidHeader") as info:
        get(transport(clock, session=session), server)
    assert SECRET not in str(info.value)
    assert (server.requests, clock.waits) == ([], [])


@pytest.mark.parametrize(
    "text",
    [
        f"http://user:{SECRET}@host/x",
        f"http://user:pa@ss@{SECRET}@host/x",
        f"/x?token={SECRET} (Caused by nothing)",
        f"https://host/#access_token={SECRET}",
    ],
)
def test_credentials_in_urls_are_left_out(text):
    assert SECRET not in public(f"before {text}")
    assert public(f"before {text}").startswith("before ")


def test_a_url_that_is_none_is_an_error_at_once(clock):
    with pytest.raises(TransportError, match="InvalidURL"):
        transport(clock).get("http://", "*/*", joined, most_bytes=1)
    assert clock.waits == []


def test_errors_of_who_reads_are_theirs(server, clock):
    def read(kind, chunks):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        get(transport(clock), server, read)
    assert get(transport(clock), server)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_waits_for_none_of_its_parents_requests(server, clock):
    how = transport(clock)
    for _ in range(8):
        how._in_flight.acquire()
    context = get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=lambda: queue.put(len(get(how, server))))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert queue.get() > 100


# -- credentials -----------------------------------------------------------------------------


def test_another_host_gets_no_credentials(server, folder, clock):
    with FaultyServer(folder) as other:
        server.elsewhere = other.url.removesuffix("/dicom-web").replace("127.0.0.1", "localhost")
        server.play("redirect")
        session = requests.Session()
        session.headers.update({"Authorization": SECRET, "X-Api-Key": SECRET})
        session.cookies["session"] = SECRET
        session.params = {"key": SECRET}
        session.auth = ("user", SECRET)
        how = transport(clock, session=session)
        assert get(how, server)
        (sent,) = other.requests
        assert SECRET not in str(sent)
        assert "Authorization" not in sent[1]
        assert sent[1]["Accept"] == AS_STORED


def test_the_same_host_gets_them(server, clock):
    server.elsewhere = ""
    server.play("redirect")
    session = requests.Session()
    session.headers["X-Api-Key"] = SECRET
    assert get(transport(clock, session=session), server)
    assert [headers["X-Api-Key"] for _, headers in server.requests] == [SECRET, SECRET]


def test_another_host_is_reached_through_the_same_proxy(monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    stranger = _stranger(requests.Session(), "https://elsewhere/x")
    assert stranger.proxies["https"] == "http://proxy:3128"
    assert stranger.auth is None


def test_the_certificates_of_a_session_win_over_the_environment(
    server, clock, monkeypatch, tmp_path
):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path))
    asked = []

    class Session(requests.Session):
        def send(self, request, **settings):
            asked.append(settings["verify"])
            return super().send(request, **settings | {"verify": True})

    for verify in (True, str(tmp_path / "hospital.pem")):
        session = Session()
        session.verify = verify
        get(transport(clock, session=session), server)
    assert asked == [str(tmp_path), str(tmp_path / "hospital.pem")]
