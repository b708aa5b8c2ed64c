"""What several tests use."""

from __future__ import annotations

import gc
import os
import threading
import time
from pathlib import Path

import hypothesis
import pytest

import dicomslide
from dicomslide.backends.part10.file import FileSource
from dicomslide.testing import write_slide
from tests.support import optional, parts, small_jpeg
from tests.support.moto_bucket import serving_bucket
from tests.support.parts import starts

# CI tries the same examples each time; a developer's machine goes on looking for others
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None)
hypothesis.settings.register_profile("developer", deadline=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "developer")


class Module(pytest.Module):
    """A file of tests, skipped if it imports an optional package that isn't installed."""

    def collect(self):
        try:
            return super().collect()
        except self.CollectError as error:
            if reason := optional.reason_of(error.__cause__):
                pytest.skip(reason, allow_module_level=True)
            raise


def pytest_pycollect_makemodule(module_path, parent):
    return Module.from_parent(parent, path=module_path)


def _skipping(item):
    """Skip a test that imports an optional package that isn't installed."""
    try:
        return (yield)
    except ModuleNotFoundError as error:
        if reason := optional.reason_of(error):
            pytest.skip(reason)
        raise


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:  # before some of them are deselected by their markers
        parts.mark(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    parts.begin(item)
    for marker in item.iter_markers("needs"):
        if reason := optional.reason_to_skip(*marker.args):
            pytest.skip(reason)
    return (yield from _skipping(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    return (yield from _skipping(item))


SHARED = Path(__file__).parents[2] / "shared" / "data"


def _wait_for_threads(seconds):
    """Wait for threads that go on after an error: as of other files, where one doesn't open."""
    until = time.monotonic() + seconds
    for thread in threading.enumerate():
        if thread.name == "dicomslide" and thread.is_alive():  # one that starts can't be joined
            thread.join(max(0.0, until - time.monotonic()))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown():
    _wait_for_threads(2)  # what they use is still there: servers, and what is patched
    return (yield)


@pytest.fixture(autouse=True)
def _alone():
    """No test sees what another one decoded or received, nor runs beside its threads."""
    dicomslide.clear_all()
    yield
    _wait_for_threads(30)
    dicomslide.clear_all()


@pytest.fixture
def frames_read(monkeypatch) -> list[int]:
    """Zero-based frames that were read from files, one after the other."""
    read: list[int] = []
    original = FileSource.read_frames

    def counting(self, indices):
        read.extend(indices)
        return original(self, indices)

    monkeypatch.setattr(FileSource, "read_frames", counting)
    return read


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Small real slides; not part of the project."""
    if not SHARED.is_dir():
        pytest.skip(f"no real slides: {SHARED} isn't there")
    return SHARED


@pytest.fixture(scope="session")
def small_jpeg_file(tmp_path_factory) -> Path:
    """A level of JPEG frames of 64 × 64 pixels: see `tests.support.small_jpeg`."""
    return small_jpeg.write(tmp_path_factory.mktemp("small-jpeg"))


@pytest.fixture(scope="session")
def jpeg_pixels(small_jpeg_file):
    """Pixels of that level, by other decoders."""
    return small_jpeg.decoded(small_jpeg_file)


@pytest.fixture(scope="session")
def tissue_slide(tmp_path_factory) -> Path:
    """A colour slide of three JPEG levels, with label and overview."""
    folder = tmp_path_factory.mktemp("tissue")
    write_slide(folder, shape=(600, 900), downsamples=(1, 2, 4))
    return folder


@pytest.fixture(scope="session")
def jpeg_slide(tmp_path_factory) -> Path:
    """A colour slide of one small JPEG level."""
    folder = tmp_path_factory.mktemp("jpeg")
    write_slide(folder, shape=(60, 70), downsamples=(1,), tile_shape=(32, 32), associated=False)
    return folder


@pytest.fixture(scope="session")
def position_slide(tmp_path_factory) -> Path:
    """A colour slide of two native levels whose values tell positions."""
    folder = tmp_path_factory.mktemp("position")
    write_slide(
        folder,
        shape=(130, 170),
        downsamples=(1, 2),
        tile_shape=(32, 48),
        drawing="position",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
    )
    return folder


@pytest.fixture(scope="session")
def exported(position_slide, tmp_path_factory) -> Path:
    """The slide of positions as OME-Zarr, exported at once."""
    store = tmp_path_factory.mktemp("exported") / "slide.zarr"
    dicomslide.to_ome_zarr(dicomslide.open_slide(position_slide), store, shard_size=64)
    return store


@pytest.fixture
@starts("server")
def exports_bucket():
    """Options to reach an empty bucket named exports, on this machine."""
    with serving_bucket("exports") as (options, _):
        yield options
    dicomslide.clear_all("exported stores")
    gc.collect()  # sessions of s3fs say here, where it is expected, that nobody closed them


@pytest.fixture(scope="session")
def stack_slide(tmp_path_factory) -> Path:
    """A fluorescence slide of two optical paths and three focal planes."""
    folder = tmp_path_factory.mktemp("stack")
    write_slide(
        folder,
        shape=(100, 140),
        downsamples=(1, 2),
        tile_shape=(32, 48),
        drawing="position",
        samples=1,
        bits=16,
        transfer_syntax_uid="1.2.840.10008.1.2.4.80",
        optical_paths=("DAPI", "FITC"),
        planes=(5.0, 7.0, 9.0),
    )
    return folder


@pytest.fixture(scope="session")
def long_level(tmp_path_factory) -> Path:
    """A level of 80 x 80 frames, which are tiny."""
    folder = tmp_path_factory.mktemp("long")
    write_slide(folder, shape=(1280, 1280), downsamples=(1,), tile_shape=(16, 16), associated=False)
    return folder


@pytest.fixture(scope="module")
def levels(tmp_path_factory) -> list[Path]:
    """Two levels that show positions, and lie where images derived from them are written, too."""
    return write_slide(
        tmp_path_factory.mktemp("levels"),
        shape=(70, 110),
        downsamples=(1, 2),
        tile_shape=(32, 48),
        drawing="position",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        associated=False,
    )
