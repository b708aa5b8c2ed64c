"""Exports that find something there, are interrupted, or are written elsewhere."""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.storage import LocalStore, MemoryStore

import dicomslide
from dicomslide import to_ome_zarr
from dicomslide.cli import main
from dicomslide.export.target import ShardedArray, Target
from dicomslide.testing import write_slide
from tests.support.exports import EXPLICIT, SHARD, assert_valid, expected, files
from tests.support.parts import starts
from tests.support.workers import some_workers


def assert_nothing_to_read(store):
    """No reader takes what is there for an image, or for an array."""
    with pytest.raises(FileNotFoundError):
        xr.open_datatree(store, engine="zarr")
    with pytest.raises(FileNotFoundError):
        zarr.open(store, mode="r")
    assert not list(Path(store).glob("**/level_0/**/zarr.json"))


# -- what is there already -------------------------------------------------------------------


def test_what_exists_is_left_alone(position_slide, exported, tmp_path):
    slide = dicomslide.open_slide(position_slide)
    before = files(exported)
    with pytest.raises(dicomslide.StoreExistsError, match="overwrite=True") as raised:
        to_ome_zarr(slide, exported)
    assert isinstance(raised.value, FileExistsError)
    to_ome_zarr(slide, exported, resume=True, shard_size=SHARD)  # complete: nothing to do
    assert files(exported) == before
    (tmp_path / "thesis.tex").write_text("text")
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(dicomslide.StoreExistsError, match="exists"):
            to_ome_zarr(slide, tmp_path, **options)
        with pytest.raises(dicomslide.StoreExistsError, match="isn't a folder"):
            to_ome_zarr(slide, tmp_path / "thesis.tex", **options)
    assert files(tmp_path) == {"thesis.tex": b"text"}


def folders(store):
    return {path.relative_to(store) for path in Path(store).rglob("*") if path.is_dir()}


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_overwriting_leaves_nothing_of_what_was_there(
    position_slide, exported, tmp_path, zarr_format
):
    out = tmp_path / "out.zarr"
    zarr.save_group(out, a=np.ones(3), b=np.ones(4), zarr_format=zarr_format)
    slide = dicomslide.open_slide(position_slide)
    to_ome_zarr(slide, out, overwrite=True, shard_size=SHARD)
    assert files(out) == files(exported)
    assert folders(out) == folders(exported)


def test_overwriting_that_was_interrupted_looks_like_nothing(
    position_slide, exported, tmp_path, monkeypatch
):
    out = tmp_path / "out.zarr"
    slide = dicomslide.open_slide(position_slide)
    to_ome_zarr(slide, out, shard_size=SHARD)

    async def interrupted(self, prefix):
        raise PermissionError

    monkeypatch.setattr(LocalStore, "delete_dir", interrupted)
    with pytest.raises(PermissionError):
        to_ome_zarr(slide, out, overwrite=True, shard_size=SHARD)
    monkeypatch.undo()
    assert_nothing_to_read(out)
    with pytest.raises(dicomslide.StoreExistsError, match="was being replaced"):
        to_ome_zarr(slide, out, resume=True, shard_size=SHARD)
    to_ome_zarr(slide, out, overwrite=True, shard_size=SHARD)
    assert files(out) == files(exported)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overwrite": True, "resume": True}, "one of them"),
        ({"shard_size": 0}, "shard_size"),
        ({"compression": "zip"}, "zstd"),
        ({"storage_options": {}}, "expected a URL"),
    ],
)
def test_wrong_options_raise(position_slide, tmp_path, options, message):
    slide = dicomslide.open_slide(position_slide)
    with pytest.raises(ValueError, match=message):
        to_ome_zarr(slide, tmp_path / "out.zarr", **options)
    assert not (tmp_path / "out.zarr").exists()


def test_wrong_sources_and_stores_raise(position_slide, tmp_path):
    slide = dicomslide.open_slide(position_slide)
    with pytest.raises(TypeError, match="Slide or an xarray"):
        to_ome_zarr(str(position_slide), tmp_path / "out.zarr")
    with pytest.raises(TypeError, match="can't write to a int"):
        to_ome_zarr(slide, 5)
    with pytest.raises(ValueError, match="expected a store that can write"):
        to_ome_zarr(slide, MemoryStore(read_only=True))
    with pytest.raises(ValueError, match="the tree has no image"):
        to_ome_zarr(xr.DataTree.from_dict({"/a": xr.Dataset()}), tmp_path / "out.zarr")


def test_a_shard_beyond_the_memory_limit_raises_beforehand(position_slide, tmp_path):
    slide = dicomslide.open_slide(position_slide)
    with (
        dicomslide.set_options(memory_limit_bytes=3 * 96 * 96),
        pytest.raises(dicomslide.MemoryLimitError, match="a shard"),
    ):
        to_ome_zarr(slide, tmp_path / "out.zarr")
    assert not (tmp_path / "out.zarr").exists()


# -- interruptions ---------------------------------------------------------------------------

KILLED = """
import os, signal, sys
import numpy, dask.array, xarray, zarr  # before any thread is there, so that a fork is harmless
from zarr.storage import _local
import dicomslide
slide_folder, out, points = sys.argv[1], sys.argv[2], [int(p) for p in sys.argv[3:]]
original, count = _local._put, 0
def put(path, value, exclusive=False):
    global count
    count += 1
    if count == point:  # half of it is on disk
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".killed.partial").write_bytes(value.to_bytes()[: len(value) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    return original(path, value, exclusive)
_local._put = put
slide = dicomslide.open_slide(slide_folder)
for point in points:
    if os.fork() == 0:
        dicomslide.to_ome_zarr(slide, f"{out}/{point}.zarr", shard_size=64)
        os._exit(1)
    _, status = os.wait()
    assert os.WIFSIGNALED(status), status
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_an_export_killed_at_any_point_is_nothing_and_goes_on(
    position_slide, exported, tmp_path, frames_read
):
    whole = files(exported)
    shards = [name for name in whole if "/image/c/" in name]
    # the export is begun by one file more, and the root is the last of them
    points = [1, 2, 2 + len(shards) // 2, 2 + len(shards), 1 + len(whole)]
    subprocess.run(
        [sys.executable, "-c", KILLED, str(position_slide), str(tmp_path), *map(str, points)],
        check=True,
    )
    slide = dicomslide.open_slide(position_slide)
    for point in points:
        store = tmp_path / f"{point}.zarr"
        if point < len(whole):
            assert_nothing_to_read(store)
        with pytest.raises(FileNotFoundError):
            zarr.open_group(store, mode="r")
        if point > 1:
            with pytest.raises(dicomslide.StoreExistsError, match="resume=True"):
                to_ome_zarr(slide, store, shard_size=SHARD)
        frames_read.clear()
        to_ome_zarr(slide, store, shard_size=SHARD, resume=True)
        assert files(store) == whole, point
        if point >= 2 + len(shards):  # only coordinates were missing
            assert not frames_read


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_killed_between_the_root_and_the_end_it_is_complete(position_slide, exported, tmp_path):
    to_ome_zarr(dicomslide.open_slide(position_slide), tmp_path / "a.zarr", shard_size=SHARD)
    root = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())
    identity = root["attributes"]["dicomslide"]["export"]
    (tmp_path / "a.zarr" / "dicomslide-export.json").write_text(json.dumps(identity))
    assert_valid(tmp_path / "a.zarr")
    slide = dicomslide.open_slide(position_slide)
    to_ome_zarr(slide, tmp_path / "a.zarr", resume=True, shard_size=SHARD)
    assert files(tmp_path / "a.zarr") == files(exported)


class FullStore(LocalStore):
    """A disk with room for so many shards."""

    room = 5

    async def set(self, key, value):
        if "/c/" in key:
            type(self).room -= 1
            if self.room < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        await super().set(key, value)


def one_by_one():
    """Have no thread still write a shard when the next one finds the disk full."""
    return dask.config.set(scheduler="synchronous")


def test_a_full_disk_says_what_to_do_and_finished_shards_are_not_read_again(
    position_slide, exported, tmp_path, frames_read, monkeypatch
):
    store = FullStore(tmp_path / "out.zarr")
    slide = dicomslide.open_slide(position_slide)
    monkeypatch.setattr(FullStore, "room", 5)
    with one_by_one(), pytest.raises(OSError, match="No space left") as raised:
        to_ome_zarr(slide, store, shard_size=SHARD)
    (note,) = raised.value.__notes__
    assert "make room; resume=True" in note
    assert_nothing_to_read(tmp_path / "out.zarr")
    shards = [path for path in (tmp_path / "out.zarr").rglob("c/*/*/*") if path.is_file()]
    assert len(shards) == 5
    FullStore.room = 10_000
    full = len(frames_read)
    frames_read.clear()
    to_ome_zarr(slide, store, shard_size=SHARD, resume=True)
    resumed = len(frames_read)
    assert files(tmp_path / "out.zarr") == files(exported)
    frames_read.clear()
    to_ome_zarr(slide, store, shard_size=SHARD, overwrite=True)
    assert resumed < len(frames_read) <= resumed + full


def test_a_damaged_shard_is_written_again(position_slide, exported, tmp_path, monkeypatch):
    store = FullStore(tmp_path / "out.zarr")
    slide = dicomslide.open_slide(position_slide)
    monkeypatch.setattr(FullStore, "room", 5)
    with one_by_one(), pytest.raises(OSError, match="No space left"):
        to_ome_zarr(slide, store, shard_size=SHARD)
    shard = next(path for path in (tmp_path / "out.zarr").rglob("c/*/*/*") if path.is_file())
    shard.write_bytes(shard.read_bytes()[:-10])
    FullStore.room = 10_000
    to_ome_zarr(slide, store, shard_size=SHARD, resume=True)
    assert files(tmp_path / "out.zarr") == files(exported)


def test_another_slide_or_other_options_are_not_resumed(position_slide, tmp_path, monkeypatch):
    store = FullStore(tmp_path / "out.zarr")
    monkeypatch.setattr(FullStore, "room", 2)
    with one_by_one(), pytest.raises(OSError, match="No space left"):
        to_ome_zarr(dicomslide.open_slide(position_slide), store, shard_size=SHARD)
    write_slide(tmp_path / "other", shape=(130, 170), downsamples=(1, 2), tile_shape=(32, 48),
                container_id="DS-2", transfer_syntax_uid=EXPLICIT, drawing="position")  # fmt: skip
    before = files(tmp_path / "out.zarr")
    for slide, options, message in (
        (dicomslide.open_slide(tmp_path / "other"), {}, "slide 'DS-0001', not 'DS-2'"),
        (dicomslide.open_slide(position_slide), {"compression": "blosc"}, "'zstd', not 'blosc'"),
        (dicomslide.open_slide(position_slide), {"shard_size": 32}, "shard_size 64, not 32"),
        (dicomslide.open_slide(position_slide, correct_color=False), {}, "other pixels"),
        (dicomslide.open_slide(position_slide, on_error="fill"), {}, "other pixels"),
    ):  # fmt: skip
        with pytest.raises(dicomslide.StoreExistsError, match=message):
            to_ome_zarr(slide, store, **{"shard_size": SHARD, "resume": True} | options)
    assert files(tmp_path / "out.zarr") == before


def test_of_two_exports_to_one_place_the_first_gives_up(
    position_slide, exported, tissue_slide, tmp_path, monkeypatch
):
    out = tmp_path / "out.zarr"
    write, second = ShardedArray.write, []

    def interrupting(self, index, pixels):
        write(self, index, pixels)
        if index == (0, 1, 1) and not second:
            second.append("overwrites what the first one has written")
            slide = dicomslide.open_slide(position_slide)
            to_ome_zarr(slide, out, shard_size=SHARD, overwrite=True)

    monkeypatch.setattr(ShardedArray, "write", interrupting)
    with (
        dask.config.set(scheduler="synchronous"),
        pytest.raises(dicomslide.ExportError, match="another export was begun here meanwhile"),
    ):
        to_ome_zarr(dicomslide.open_slide(tissue_slide), out, shard_size=SHARD)
    assert files(out) == files(exported)


def test_two_that_write_the_same_both_succeed(position_slide, exported, tmp_path, monkeypatch):
    out = tmp_path / "out.zarr"
    slide = dicomslide.open_slide(position_slide)
    write, second = ShardedArray.write, []

    def interrupting(self, index, pixels):
        if index == (0, 1, 1) and not second:
            second.append("goes on with it")
            to_ome_zarr(slide, out, shard_size=SHARD, resume=True)
        write(self, index, pixels)

    monkeypatch.setattr(ShardedArray, "write", interrupting)
    with dask.config.set(scheduler="synchronous"):
        to_ome_zarr(slide, out, shard_size=SHARD)
    assert second
    assert files(out) == files(exported)


def test_a_broken_frame_names_itself_and_leaves_nothing_to_read(tmp_path):
    write_slide(tmp_path / "slide", shape=(128, 128), downsamples=(1,), tile_shape=(32, 32),
                associated=False)  # fmt: skip
    (path,) = (tmp_path / "slide").iterdir()
    data = bytearray(path.read_bytes())
    place = [i for i in range(len(data) - 1) if data[i : i + 2] == b"\xff\xd8"][6]  # JPEG's SOI
    data[place : place + 2] = b"\0\0"
    path.write_bytes(data)
    with pytest.raises(dicomslide.FrameDecodeError, match="frame 7") as raised:
        to_ome_zarr(dicomslide.open_slide(path), tmp_path / "out.zarr", shard_size=32)
    assert "resume=True" in raised.value.__notes__[0]
    assert_nothing_to_read(tmp_path / "out.zarr")
    slide = dicomslide.open_slide(path, on_error="fill")
    with pytest.warns(dicomslide.FrameWarning, match="frame 7"):
        to_ome_zarr(slide, tmp_path / "out.zarr", shard_size=32, overwrite=True)
    assert_valid(tmp_path / "out.zarr")


# -- elsewhere -------------------------------------------------------------------------------


def test_a_url_is_written_by_fsspec(position_slide, exported):
    import fsspec

    url = "memory://exports/slide.zarr"
    slide = dicomslide.open_slide(position_slide)
    to_ome_zarr(slide, url, shard_size=SHARD)
    memory = fsspec.filesystem("memory")
    written = {path: memory.cat_file(path) for path in memory.find("/exports/slide.zarr")}
    whole = files(exported)
    assert {
        name.removeprefix("/exports/slide.zarr/"): data for name, data in written.items()
    } == whole
    with pytest.raises(dicomslide.StoreExistsError, match="memory://exports"):
        to_ome_zarr(slide, url)
    to_ome_zarr(slide, url, shard_size=SHARD, overwrite=True)
    array = xr.open_datatree(url, engine="zarr", chunks={})["level_0"].image
    np.testing.assert_array_equal(array.transpose("y", "x", "c"), expected((130, 170)))


def test_credentials_are_in_no_pickle():
    target = Target.at("s3://bucket/slide.zarr", {"key": "KEY-ID", "secret": "SECRET-KEY"})
    travelling = pickle.dumps(target)
    assert b"SECRET-KEY" not in travelling
    assert b"KEY-ID" not in travelling
    assert len(travelling) < 1000


def test_no_message_shows_credentials():
    pytest.importorskip("s3fs", reason="buckets of S3 take s3fs")
    there = Target.at("s3://bucket/slide.zarr", {"key": "KEY-ID", "secret": "SECRET-KEY"})
    assert there.store  # opened, but not reached
    with (
        pytest.raises(dicomslide.ExportError, match="signed by") as raised,
        there.reached(),
    ):
        raise ValueError("signed by SECRET-KEY")
    assert "SECRET-KEY" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_a_store_of_zarrs_is_written(position_slide, exported):
    store = MemoryStore()
    to_ome_zarr(dicomslide.open_slide(position_slide), store, shard_size=SHARD)
    assert {key: value.to_bytes() for key, value in store._store_dict.items()} == files(exported)


@pytest.fixture(scope="module")
@starts("cluster")
def client():
    with some_workers(2, is_default=False) as client:
        yield client


def test_a_cluster_writes_the_same(client, position_slide, exported, tmp_path):
    slide = dicomslide.open_slide(position_slide)
    with client.as_current():
        to_ome_zarr(slide, tmp_path / "out.zarr", shard_size=SHARD)
    assert files(tmp_path / "out.zarr") == files(exported)


@pytest.mark.parametrize(
    ("store", "message"),
    [
        (MemoryStore(), "shards aren't there after they were written: do all workers write to"),
        # found out by the first shard: of a URL nothing but the name travels
        ("memory://apart/slide.zarr", "export isn't there: do all workers write to the same place"),
    ],
)
def test_workers_that_write_elsewhere_are_found_out(client, position_slide, store, message):
    slide = dicomslide.open_slide(position_slide)
    with client.as_current(), pytest.raises(dicomslide.ExportError, match=message):
        to_ome_zarr(slide, store, shard_size=SHARD)
    assert Target.at(store).read("zarr.json") is None


def die_while_writing(end):
    """Let this worker die with half of a shard on disk, once it writes one that ends so."""
    from zarr.storage import _local

    put = _local._put

    def dying(path, value, exclusive=False):
        if path.as_posix().endswith(end):
            path.parent.mkdir(parents=True, exist_ok=True)
            half = value.to_bytes()[: len(value) // 2]
            path.with_suffix(".killed.partial").write_bytes(half)
            os.kill(os.getpid(), signal.SIGKILL)
        return put(path, value, exclusive)

    _local._put = dying


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_workers_killed_while_they_write_do_not_change_the_result(
    client, position_slide, exported, tmp_path
):
    slide = dicomslide.open_slide(position_slide)
    before = set(client.run(os.getpid).values())
    client.run(die_while_writing, "level_0/image/c/0/1/1")  # the other one dies of it, too
    with client.as_current():
        to_ome_zarr(slide, tmp_path / "out.zarr", shard_size=SHARD)
    assert files(tmp_path / "out.zarr") == files(exported)
    client.wait_for_workers(2, timeout=60)
    assert not before & set(client.run(os.getpid).values())


# -- buckets ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_bucket_is_written_once_it_is_reached(position_slide, exported, exports_bucket):
    slide = dicomslide.open_slide(position_slide)
    url = "s3://exports/slide.zarr"
    nowhere = exports_bucket["client_kwargs"] | {"endpoint_url": "nowhere"}
    with pytest.raises(dicomslide.ExportError, match=f"{url}: .*Invalid endpoint"):
        to_ome_zarr(slide, url, storage_options=exports_bucket | {"client_kwargs": nowhere})
    for options in ({}, {"overwrite": True}):  # with the new options, not with the old ones
        to_ome_zarr(slide, url, shard_size=SHARD, storage_options=exports_bucket, **options)
        there = Target.at(url)
        assert {key: there.read(key) for key in sorted(there.keys())} == files(exported)
    tree = xr.open_datatree(url, engine="zarr", chunks={}, storage_options=exports_bucket)
    np.testing.assert_array_equal(
        tree["level_1"].image.transpose("y", "x", "c"), expected((65, 85))
    )


# -- at the prompt ---------------------------------------------------------------------------


def test_export_at_the_prompt(position_slide, exported, tmp_path, capsys):
    out = tmp_path / "out.zarr"
    arguments = ["export", str(position_slide), str(out), "--shard-size", str(SHARD)]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == f"{out}: complete"
    assert captured.err == ""  # no bar where nobody looks
    assert files(out) == files(exported)
    assert main(arguments) == 1
    assert "overwrite" in capsys.readouterr().err
    assert main([*arguments, "--resume"]) == 0
    assert main([*arguments, "--overwrite"]) == 0
    capsys.readouterr()
    assert main(["export", str(position_slide), "s4://bucket/out.zarr"]) == 1
    assert capsys.readouterr().err == (
        "dicomslide: error: s4://bucket/out.zarr: ValueError: Protocol not known: s4\n"
    )


def test_an_interrupted_export_says_how_to_go_on(
    position_slide, exported, tmp_path, capsys, monkeypatch
):
    write = ShardedArray.write

    def interrupted(self, index, pixels):
        if index == (0, 1, 1):
            raise KeyboardInterrupt
        write(self, index, pixels)

    out = tmp_path / "out.zarr"
    arguments = ["export", str(position_slide), str(out), "--shard-size", str(SHARD)]
    monkeypatch.setattr(ShardedArray, "write", interrupted)
    assert main(arguments) == 130
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "dicomslide: interrupted"
    assert "--resume" in lines[1]
    assert_nothing_to_read(out)
    monkeypatch.undo()
    assert main([*arguments, "--resume"]) == 0
    assert files(out) == files(exported)
