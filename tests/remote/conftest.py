"""What tests of URLs use: a slide on a server of ranges and in a bucket."""

from __future__ import annotations

import zipfile

import pytest

import dicomslide
from dicomslide.backends.net import policy, storage_options
from dicomslide.backends.objects import remote
from dicomslide.backends.objects.remote import RemoteSource
from dicomslide.testing import write_slide
from tests.support.moto_bucket import serving_bucket
from tests.support.parts import starts
from tests.support.range_server import serving
from tests.support.remote_slides import REGION, SECRET, SHAPE, forget_everything


@pytest.fixture(autouse=True)
def _nothing_known():
    forget_everything()
    storage_options.forget_all()
    yield
    forget_everything()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    short = policy.Policy(attempts=4, first_wait=0.01, longest_wait=0.05)
    monkeypatch.setattr(policy, "POLICY", short)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of a slide of three levels, whose first one is longer than what is read ahead."""
    folder = tmp_path_factory.mktemp("served")
    write_slide(folder / "slide", shape=SHAPE, downsamples=(1, 2, 4))
    assert (folder / "slide" / "level-0.dcm").stat().st_size > remote.HEAD
    with zipfile.ZipFile(folder / "slide.zip", "w") as archive:
        for path in sorted((folder / "slide").iterdir()):
            archive.write(path, f"in/{path.name}")
    return folder


@pytest.fixture(scope="module")
def pixels(folder):
    """Of the files on disk."""
    return dicomslide.open_slide(folder / "slide").get_image_region(**REGION)


@pytest.fixture
def server(folder):
    with serving(folder) as server:
        yield server


@pytest.fixture
def image(server):
    """The first level; the server has forgotten who opened it."""
    source = RemoteSource.open(f"{server.url}/slide/level-0.dcm")
    server.forget()
    return source


@pytest.fixture(scope="module")
@starts("server")
def s3(folder):
    """Options to reach the slide in a bucket of moto's server on this machine."""
    with serving_bucket("slides", secret=SECRET) as (options, client):
        for path in (folder / "slide").iterdir():
            client.upload_file(str(path), "slides", f"one/{path.name}")
        yield options | {"client": client}


@pytest.fixture
def s3_options(s3):
    return {key: value for key, value in s3.items() if key != "client"}
