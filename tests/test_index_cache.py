"""Where frames are, kept on disk: shared as the folder is, and nothing left by killed writers."""

from __future__ import annotations

import os
import signal
import stat
import time

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate, generate_frames

import dicomslide
from dicomslide.backends.part10 import index_cache
from dicomslide.backends.part10.file import FileSource
from dicomslide.testing import write_slide

NUMBERS = np.arange(1000)


@pytest.fixture
def folder(tmp_path):
    with dicomslide.set_options(index_folder=str(tmp_path / "index")):
        yield tmp_path / "index"


def forked_writer(folder, how):
    """Have a process stop while it writes an entry."""
    ready, go = os.pipe()
    pid = os.fork()
    if not pid:

        def stop(*args):
            os.write(go, b"x")
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)

        fdopen = os.fdopen

        class Stopping:
            """A file that never ends to be written."""

            def __init__(self, *args):
                self.file = fdopen(*args)

            def __enter__(self):
                return self.file

            def __exit__(self, *error):
                self.file.flush()
                stop()

        index_cache.os.fdopen = Stopping
        index_cache.save("b", (), NUMBERS)
        os._exit(1)
    assert os.read(ready, 1) == b"x"
    if how == "killed":
        os.waitpid(pid, 0)
    return pid


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_what_a_killed_writer_left_is_cleared_and_what_one_still_writes_is_not(folder):
    index_cache.save("a", (), NUMBERS)
    (entry,) = folder.iterdir()
    forked_writer(folder, "killed")
    assert len(list(folder.iterdir())) == 2
    index_cache.save("a", (), NUMBERS + 1)
    assert list(folder.iterdir()) == [entry]
    writer = forked_writer(folder, "still writing")
    try:
        index_cache.save("a", (), NUMBERS + 2)
        assert len(list(folder.iterdir())) == 2
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
    index_cache.save("a", (), NUMBERS + 3)
    assert list(folder.iterdir()) == [entry]
    np.testing.assert_array_equal(index_cache.load("a", ()), NUMBERS + 3)


def test_without_locks_the_age_of_what_was_left_tells(folder, monkeypatch):
    monkeypatch.setattr(index_cache, "_is_free", lambda descriptor: None)
    index_cache.save("a", (), NUMBERS)
    old, new = (folder / f"{name}{index_cache.PARTIAL}" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    long_ago = time.time() - 2 * index_cache.LONG
    os.utime(old, (long_ago, long_ago))
    index_cache.save("a", (), NUMBERS)
    assert not old.exists()
    assert new.exists()


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o077])
@pytest.mark.parametrize(
    ("mode", "expected"), [(None, None), (0o700, 0o600), (0o775, 0o664), (0o2770, 0o660)]
)
def test_who_may_use_the_folder_may_use_its_entries(folder, umask, mode, expected):
    if mode is not None:
        folder.mkdir()
        folder.chmod(mode)
    before = os.umask(umask)
    try:
        index_cache.save("a", (), NUMBERS)
    finally:
        os.umask(before)
    (entry,) = folder.iterdir()
    if expected is None:  # made by this process, for whom its umask says
        expected = 0o666 & ~umask
    assert stat.S_IMODE(entry.stat().st_mode) == expected


def test_an_entry_that_cannot_be_written_leaves_nothing(folder, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    folder.mkdir()
    monkeypatch.setattr(index_cache.os, "replace", full)
    index_cache.save("a", (), NUMBERS)
    assert list(folder.iterdir()) == []
    assert index_cache.load("a", ()) is None


def test_frames_of_a_file_that_was_replaced_with_its_old_time_and_size_are_found_anew(
    folder, tmp_path
):
    path, *_ = write_slide(
        tmp_path / "slide", shape=(64, 96), tile_shape=(32, 32), downsamples=(1,),
        offset_table="empty", associated=False,
    )  # fmt: skip
    header = pydicom.dcmread(path)
    frames = list(generate_frames(header.PixelData, number_of_frames=6))
    assert len(set(map(len, frames))) > 1
    expected = [bytes(frame) for frame in FileSource.open(path).read_frames(range(6))]
    assert list(map(bytes, frames)) == expected
    before = path.stat()
    header.PixelData = encapsulate(frames[::-1], has_bot=False)
    header.save_as(tmp_path / "new")
    os.utime(tmp_path / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(tmp_path / "new", path)
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    dicomslide.clear_all()  # as in another process
    found = [bytes(frame) for frame in FileSource.open(path).read_frames(range(6))]
    assert found == expected[::-1]
