"""A slide on a server of ranges, and a process that knows nothing of it: for tests of URLs."""

from __future__ import annotations

import zipfile

import pytest

import dicomslide
from dicomslide.backends.net import policy, storage_options
from dicomslide.backends.objects import remote
from dicomslide.backends.objects.remote import RemoteSource
from dicomslide.backends.part10 import file as file_backend
from dicomslide.testing import write_slide
from tests.support.range_server import serving

__all__ = [
    "_nothing_known",
    "_short_waits",
    "folder",
    "image",
    "pixels",
    "s3",
    "s3_options",
    "server",
]

SECRET = "hush-0123456789"
SHAPE = (1024, 1024)
REGION = dict(offset=(10, 20), level=0, size=(700, 600))


def forget_everything():
    """Be another process."""
    dicomslide.clear_all()


def forget_bytes():
    """Ask again for all that is read of an object."""
    dicomslide.clear_all("heads of objects", "bytes of objects read ahead", "received frames")


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
def s3(folder):
    """Options to reach the slide in a bucket of moto's server on this machine."""
    pytest.importorskip("s3fs", reason="buckets of S3 take s3fs")
    moto_server = pytest.importorskip("moto.server", reason="no S3 server: moto isn't installed")
    import boto3

    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {
        "key": "someone", "secret": SECRET,
        "client_kwargs": {"endpoint_url": f"http://{host}:{port}", "region_name": "us-east-1"},
    }  # fmt: skip
    client = boto3.client(
        "s3", aws_access_key_id="someone", aws_secret_access_key=SECRET, **options["client_kwargs"]
    )
    client.create_bucket(Bucket="slides")
    for path in (folder / "slide").iterdir():
        client.upload_file(str(path), "slides", f"one/{path.name}")
    yield options | {"client": client}
    server.stop()


@pytest.fixture
def s3_options(s3):
    return {key: value for key, value in s3.items() if key != "client"}


def frames_on_disk(folder, indices):
    source = file_backend.FileSource.open(folder / "slide" / "level-0.dcm")
    return [bytes(frame) for frame in source.read_frames(indices)]


def region(url, **options):
    return dicomslide.open_slide(url, **options).get_image_region(**REGION)


def frame_of(source, index):
    return bytes(source.read_frames([index])[0])
