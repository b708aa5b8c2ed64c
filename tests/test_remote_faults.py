"""What servers do to who reads by URL: refusals, breaks, silence, Ctrl-C in between."""

from __future__ import annotations

import dataclasses
import re

import pytest

import dicomslide
from dicomslide.backends.net import attempts
from dicomslide.errors import FrameReadError, SourceReadError
from tests.support.remote_slides import *  # noqa: F403 - fixtures
from tests.support.remote_slides import (
    frames_on_disk,
)

pytest.importorskip("aiohttp", reason="HTTP takes aiohttp: dicomslide[remote]")


@pytest.mark.parametrize(
    "fault", [408, 429, 500, 502, 503, 504, "reset", "short", "shifted", "cut", "whole", "slow"]
)
@pytest.mark.parametrize("times", [1, 3])
def test_what_passes_is_tried_again(image, server, folder, fault, times):
    image._instance().frames()
    dicomslide.clear_all("heads of objects")
    server.forget()
    server.faults = [fault] * times
    assert list(map(bytes, image.read_frames([3, 4]))) == frames_on_disk(folder, [3, 4])
    assert len(server.requests) == times + 1


@pytest.mark.parametrize("fault", [503, "reset", "short", "shifted", "cut", "whole"])
def test_what_does_not_pass_raises_and_names_url_and_frame(image, server, folder, fault):
    image._instance().frames()
    dicomslide.clear_all("heads of objects")
    server.forget()
    server.always = fault
    with pytest.raises(FrameReadError, match="given up after 4 attempts") as caught:
        image.read_frames([3, 4])
    assert (caught.value.source, caught.value.frame) == (image.path, 3)
    # a connection that was in use before and is reset may just have been old: aiohttp asks twice
    assert len(server.requests) == 4 or (fault == "reset" and len(server.requests) <= 8)
    server.always = None  # reading goes on
    assert list(map(bytes, image.read_frames([3]))) == frames_on_disk(folder, [3])


@pytest.mark.parametrize(("status", "what"), [(400, "400"), (403, "403"), (404, "404"), (406, "")])
def test_what_never_passes_raises_at_once(image, server, status, what, monkeypatch):
    # a slow machine isn't taken for a server that doesn't answer
    patience = dataclasses.replace(attempts.PATIENCE, request=5.0)
    monkeypatch.setattr(attempts, "PATIENCE", patience)
    image._instance().frames()
    dicomslide.clear_all("heads of objects")
    server.forget()
    server.always = status
    with pytest.raises(FrameReadError, match=f"frame 6: .*{what}"):
        image.read_frames([5])
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, FileNotFoundError), (401, PermissionError), (403, PermissionError),
     (400, SourceReadError), (503, SourceReadError)],
)  # fmt: skip
def test_what_cannot_be_opened_raises_and_names_the_url(server, status, kind):
    server.always = status
    url = f"{server.url}/slide/level-0.dcm"
    with pytest.raises(kind, match=re.escape(url)):
        dicomslide.open_slide(url)


def test_a_broken_object_of_a_folder_does_not_vanish_in_silence(server):
    """A slide without one of its levels would look like a whole one."""
    server.faults = [None] * 3 + [403]
    with pytest.raises(PermissionError):
        dicomslide.open_slide(f"{server.url}/slide/")


def test_the_wait_that_a_server_asks_for_is_kept(image, server, monkeypatch):
    waits = []
    monkeypatch.setattr(attempts, "_pause", lambda seconds: waits.append(seconds))
    dicomslide.clear_all("heads of objects")
    server.faults = [(503, {"Retry-After": "2"}), (429, {"Retry-After": "1"})]
    image.read_frames([0])
    assert [wait for wait in waits if wait >= 1] == [2, 1]


def test_waits_grow_and_the_deadline_holds(image, server, monkeypatch):
    waits = []
    monkeypatch.setattr(attempts, "_pause", lambda seconds: waits.append(seconds))
    monkeypatch.setattr(
        attempts, "PATIENCE", attempts.Patience(5, 0.5, attempts=5, first_wait=0.01, longest_wait=1)
    )
    dicomslide.clear_all("heads of objects")
    server.always = 503
    with pytest.raises((FrameReadError, SourceReadError), match="given up after 5 attempts"):
        image.read_frames([0])
    for number, wait in enumerate(waits):
        assert 0.005 * 2**number <= wait <= 0.01 * 2**number
    assert len(waits) == 4
    server.always = (503, {"Retry-After": "3600"})  # longer than anybody waits
    with pytest.raises((FrameReadError, SourceReadError), match="given up after 1 attempts"):
        image.read_frames([0])


def test_a_server_that_does_not_answer_is_not_waited_for(image, server):
    image._instance().frames()
    dicomslide.clear_all("heads of objects")
    server.forget()
    server.always = "slow"  # 1.5 s; a request has 0.5 s
    with pytest.raises(FrameReadError, match="no answer came in time"):
        image.read_frames([0])
    assert len(server.requests) == 4


def test_what_takes_long_because_it_is_much_is_waited_for(image, server, folder, monkeypatch):
    image._instance().frames()
    dicomslide.clear_all("heads of objects")
    wanted = list(range(16))
    nbytes = sum(map(len, frames_on_disk(folder, wanted)))
    server.always = "slow"  # 1.5 s; a request has 0.5 s, and 2 s for these bytes
    patience = dataclasses.replace(attempts.PATIENCE, slowest=nbytes / 2)
    monkeypatch.setattr(attempts, "PATIENCE", patience)
    assert list(map(bytes, image.read_frames(wanted))) == frames_on_disk(folder, wanted)


def test_what_never_can_be_right_is_not_tried_again(server, monkeypatch):
    monkeypatch.setattr(attempts, "_pause", lambda seconds: pytest.fail("it waits"))
    with pytest.raises(SourceReadError, match="InvalidUrl"):
        dicomslide.open_slide("https:///level-0.dcm")


def test_a_server_that_takes_no_ranges_is_named_as_such(server):
    server.always = "whole"
    with pytest.raises(SourceReadError, match="does the server take range requests"):
        dicomslide.open_slide(f"{server.url}/slide/level-0.dcm")
