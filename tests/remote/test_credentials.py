"""Storage options, signed URLs and passwords: used, renewed, and shown to nobody."""

from __future__ import annotations

import pickle
import traceback

import numpy as np
import pytest
import xarray as xr

import dicomslide
from dicomslide.backends.net import storage_options
from dicomslide.backends.net.addresses import is_same_origin
from dicomslide.backends.objects import storage
from dicomslide.backends.objects.remote import RemoteSource
from dicomslide.errors import FrameReadError, SourceReadError
from tests.support.range_server import serving
from tests.support.remote_slides import (
    REGION,
    SECRET,
    forget_bytes,
    forget_everything,
    frames_on_disk,
    region,
)

pytest.importorskip("aiohttp", reason="HTTP takes aiohttp: dicomslide[remote]")


def secret_options():
    return {"headers": {"Authorization": f"Bearer {SECRET}"}}


def test_credentials_are_in_no_pickle_repr_name_encoding_or_message(server):
    server.token = f"Bearer {SECRET}"
    url = f"{server.url}/slide/level-0.dcm"
    slide = dicomslide.open_slide(url, storage_options=secret_options())
    dataset = xr.open_dataset(
        url, engine="dicomslide", chunks={}, storage_options=secret_options(), orientation="stored"
    )
    matrix = slide.get_volume_images()[0].get_total_pixel_matrix()
    source = slide.get_volume_images()[0]._source
    for thing in (slide, dataset, matrix, source, matrix.to_dask()):
        assert SECRET.encode() not in pickle.dumps(thing)
        assert SECRET not in repr(thing)
    assert len(pickle.dumps(source)) < 2000
    assert SECRET not in repr(dataset.encoding) + repr(dataset.image.encoding)
    assert SECRET not in str(dict(dataset.image.data.dask))
    assert SECRET not in repr(storage_options.registered(url))
    source._instance().frames()
    server.token = f"Bearer another{SECRET}"
    dicomslide.clear_all("heads of objects")
    with pytest.raises(FrameReadError) as caught:
        source.read_frames([8])
    text = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert "401" in text
    assert SECRET not in text


def test_a_signed_url_shows_no_signature(server, pixels):
    url = f"{server.url}/slide/level-0.dcm?X-Amz-Signature={SECRET}"
    slide = dicomslide.open_slide(url)
    np.testing.assert_array_equal(slide.get_image_region(**REGION), pixels)
    assert all(SECRET in path for _, path, _, _ in server.requests)
    source = slide.get_volume_images()[0]._source
    dataset = xr.open_dataset(url, engine="dicomslide")
    for text in (repr(source), repr(pickle.dumps(slide)), repr(dataset.encoding), slide.name):
        assert SECRET not in text
    server.always = 400
    forget_bytes()
    with pytest.raises(FrameReadError) as caught:
        source.read_frames([0])
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_user_and_password_of_a_url_stay_here(server):
    url = server.url.replace("//", f"//me:{SECRET}@") + "/slide/level-0.dcm"
    source = RemoteSource.open(url)
    assert source.path == f"{server.url}/slide/level-0.dcm"
    assert "Authorization" in server.requests[0][3]
    assert SECRET not in repr(source)


def test_harmless_options_travel_and_no_others():
    options = {
        "anon": False, "key": SECRET, "secret": SECRET, "token": SECRET, "requester_pays": True,
        "endpoint_url": "https://store.example.org", "headers": {"Authorization": SECRET},
        "client_kwargs": {"region_name": "eu-west-1", "aws_session_token": SECRET},
    }  # fmt: skip
    assert storage_options.harmless(options) == {
        "anon": False, "requester_pays": True, "endpoint_url": "https://store.example.org",
        "client_kwargs": {"region_name": "eu-west-1"},
    }  # fmt: skip
    assert not storage_options.harmless({"endpoint_url": f"https://me:{SECRET}@store.example.org"})
    assert not storage_options.harmless({"endpoint_url": f"https://store.example.org/?{SECRET}"})


def test_options_are_those_of_the_longest_beginning(server):
    dicomslide.register_storage_options(server.url, {"headers": {"X-Which": "host"}})
    dicomslide.register_storage_options(f"{server.url}/slide", {"headers": {"X-Which": "folder"}})
    dicomslide.register_storage_options(f"{server.url}/sl", {"headers": {"X-Which": "none"}})
    RemoteSource.open(f"{server.url}/slide/level-0.dcm")
    assert server.requests[-1][3]["X-Which"] == "folder"


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # fsspec's archives
def test_options_of_a_chained_url_reach_the_link_they_are_for(server, pixels):
    server.token = SECRET
    options = {"http": {"headers": {"Authorization": SECRET}}}
    url = f"zip://in::{server.url}/slide.zip"
    np.testing.assert_array_equal(region(url, storage_options=options), pixels)


def test_refused_credentials_are_asked_for_again_once(server, folder):
    given = []

    def options():
        given.append(f"Bearer {len(given)}")
        return {"headers": {"Authorization": given[-1]}}

    server.token = "Bearer 0"
    url = f"{server.url}/slide/level-0.dcm"
    dicomslide.register_storage_options(server.url, options)
    source = RemoteSource.open(url)
    dicomslide.clear_all("heads of objects")
    last = len(given)
    server.token = f"Bearer {last}"  # the one in use has expired
    assert list(map(bytes, source.read_frames([2]))) == frames_on_disk(folder, [2])
    assert len(given) == last + 1
    server.token = "Bearer of bad news"
    server.forget()
    with pytest.raises(FrameReadError, match="401"):
        source.read_frames([15])
    assert len(given) == last + 2
    assert len(server.requests) == 2


def test_threads_whose_credentials_are_refused_together_ask_for_others_once(image, server):
    """One of them is refused after another has got new ones."""
    given = []

    def options():
        given.append(f"Bearer {len(given)}")
        return {"headers": {"Authorization": given[-1]}}

    dicomslide.register_storage_options(server.url, options)
    reach = storage.ObjectReach(image.path, "{}")
    one, other = reach.place(), reach.place()
    assert reach.renew(one.generation)
    reach.place()
    assert reach.renew(other.generation)
    reach.place()
    assert len(given) == 2


def test_objects_of_a_list_share_connections(server):
    urls = [f"{server.url}/slide/level-{level}.dcm" for level in range(3)]
    for _ in range(2):  # equal options are the same
        dicomslide.open_slide(urls, storage_options={"headers": {"X-Which": "all"}})
        assert {headers["X-Which"] for _, _, _, headers in server.requests} == {"all"}
        assert len(storage._filesystems) == 1


def test_options_that_are_changed_and_registered_again_are_used(server):
    options = {"headers": {"X-Which": "old"}}
    url = f"{server.url}/slide/level-0.dcm"
    RemoteSource.open(url)
    dicomslide.register_storage_options(server.url, options)
    RemoteSource.open(url)
    options["headers"]["X-Which"] = "new"
    RemoteSource.open(url)
    assert server.requests[-1][3]["X-Which"] == "old"
    dicomslide.register_storage_options(server.url, options)
    RemoteSource.open(url)
    assert server.requests[-1][3]["X-Which"] == "new"


def test_any_number_of_signed_urls_is_remembered(server):
    url = f"{server.url}/slide/level-2.dcm"
    sources = RemoteSource.open(f"{url}?signature={SECRET}")
    for number in range(5000):
        storage_options.remembered(f"{url}?signature={number}")
    forget_everything()
    assert sources.metadata.Rows
    assert SECRET in server.requests[-1][1]


def test_a_process_that_does_not_know_a_signature_says_so(server):
    url = f"{server.url}/slide/level-0.dcm?X-Amz-Signature={SECRET}"
    source = RemoteSource.open(url)
    assert RemoteSource.open(source.path).identity == source.identity  # what was shown is enough
    forget_everything()
    storage_options.forget_all()  # another process
    server.forget()
    with pytest.raises(PermissionError, match="register the whole URL"):
        source.read_frames([0])
    assert not server.requests
    dicomslide.register_storage_options(url, {})
    source.read_frames([0])


@pytest.mark.parametrize(
    "text",
    [f"InvalidURL: ftp://host/key?X-Amz-Signature={SECRET}", f"no login as https://me:{SECRET}@host/",
     f"password {SECRET} is wrong", f"ftp://me:p@ss{SECRET}@host/ doesn't answer"],
)  # fmt: skip
def test_no_secret_is_in_a_message_whatever_it_says(text):
    reach = storage.ObjectReach(storage_options.remembered(f"https://me:{SECRET}@host/x"), "{}")
    assert SECRET not in reach.public(text)
    url = "https://host/a.dcm"
    given = {"headers": {"Authorization": f"Bearer {SECRET}"}}
    dicomslide.register_storage_options("https://host", lambda: given)
    storage_options.registered(url).current()
    assert SECRET not in storage.ObjectReach(url, "{}").public(text)


def test_redirects_to_another_server_share_connections(server, folder):
    with serving(folder) as other:
        server.always = (302, {"Location": f"{other.url}/slide/level-0.dcm"})
        source = RemoteSource.open(f"{server.url}/slide/level-0.dcm")
        for index in range(5):
            forget_bytes()
            source.read_frames([index])
        assert len(other.requests) > 5
        assert len(other.clients) == 1


@pytest.mark.parametrize(
    ("url", "is_same"),
    [("http://host/b", True), ("http://host:80/b", True), ("https://host/b", True),
     ("https://host:8443/b", False), ("http://other/b", False), ("http://host:81/b", False),
     ("https://host.other/b", False), ("http://host:port/b", False)],
)  # fmt: skip
def test_credentials_follow_to_the_same_server_and_its_safe_side(url, is_same):
    assert is_same_origin(url, "http://host/a") is is_same
    assert not is_same_origin("http://host/b", "https://host/a")


def test_redirects_without_end_raise(server):
    server.always = (302, {"Location": "/slide/level-0.dcm"})
    with pytest.raises(SourceReadError, match="more than 5 redirects"):
        RemoteSource.open(f"{server.url}/slide/level-0.dcm")
