"""Faults of servers of objects alone: answers to range requests; all others are in test_faults."""

from __future__ import annotations

import pytest

import dicomslide
from dicomslide.backends.net import policy
from dicomslide.backends.objects import ranges, remote
from dicomslide.errors import FrameReadError, SourceReadError
from tests.support.fake_clock import FakeClock
from tests.support.remote_slides import (
    frames_on_disk,
)

pytest.importorskip("aiohttp", reason="HTTP takes aiohttp: dicomslide[remote]")


@pytest.fixture
def clock(image, monkeypatch):
    """The policy's clock, once the image is open and the server has forgotten it."""
    image._instance().frames()
    dicomslide.clear_all("heads of objects")
    image._file()._reach.place()
    clock = FakeClock()
    monkeypatch.setattr(policy, "POLICY", clock.policy())
    return clock


@pytest.mark.parametrize("fault", ["short", "shifted", "whole", "cut"])
def test_an_answer_that_is_not_the_range_is_asked_for_again(image, server, folder, clock, fault):
    server.forget()
    server.faults = [fault] * 2
    assert list(map(bytes, image.read_frames([3, 4]))) == frames_on_disk(folder, [3, 4])
    assert (len(server.requests), clock.waits) == (3, [0.25, 0.5])


@pytest.mark.parametrize("fault", ["short", "shifted", "whole"])
def test_an_answer_that_never_is_the_range_names_url_and_frame(image, server, clock, fault):
    server.forget()
    server.always = fault
    with pytest.raises(FrameReadError, match=r"\(3 attempts in 0\.8 s\)") as caught:
        image.read_frames([3, 4])
    assert (caught.value.source, caught.value.frame) == (image.path, 3)
    assert len(server.requests) == 3


def test_only_what_failed_is_asked_for_again(image, server, clock, monkeypatch):
    monkeypatch.setattr(remote, "GAP", 0)
    spans = [(i * 12_000, i * 12_000 + 100) for i in range(8)]
    blob = image._instance().header.blob
    server.forget()
    server.faults = [503, None, None, "cut"]
    assert [len(each) for each in blob.read_spans(spans)] == [100] * 8
    assert (len(server.requests), clock.waits) == (10, [0.25])


def test_many_bytes_have_more_time(image, clock, monkeypatch):
    limits = []

    def request(place, spans, limit, left, is_known):
        limits.append((limit, left))
        return [ranges.Answer(bytes(stop - start), None, "") for start, stop in spans]

    monkeypatch.setattr(ranges, "_request", request)
    for nbytes in (0, 1_000_000, 10**8):
        ranges.read_ranges(image._file()._reach, [(0, nbytes)])
    assert limits == [(30.0, 120.0), (40.0, 130.0), (510.0, 600.0)]


def test_a_broken_object_of_a_folder_does_not_vanish_in_silence(server):
    """A slide without one of its levels would look like a whole one."""
    server.faults = [None] * 3 + [403]
    with pytest.raises(PermissionError):
        dicomslide.open_slide(f"{server.url}/slide/")


def test_an_invalid_url_is_not_tried_again(monkeypatch):
    clock = FakeClock()
    monkeypatch.setattr(policy, "POLICY", clock.policy())
    with pytest.raises(SourceReadError, match="InvalidUrl"):
        dicomslide.open_slide("https:///level-0.dcm")
    assert clock.waits == []


def test_a_server_that_takes_no_ranges_is_named_as_such(server):
    server.always = "whole"
    with pytest.raises(SourceReadError, match="does the server take range requests"):
        dicomslide.open_slide(f"{server.url}/slide/level-0.dcm")
