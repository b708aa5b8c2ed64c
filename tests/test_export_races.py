"""Several exports to one place at once: one is left, whole, and the others say so."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import sys
import threading
import time

import dask
import numpy as np
import pytest
from zarr.storage import LocalStore, MemoryStore

import dicomslide
from dicomslide import to_ome_zarr
from dicomslide.export import exclusive
from dicomslide.export.target import BEGUN, SHARDS, ShardedArray, Target, shards_of
from dicomslide.testing import write_slide
from tests.support.exports import EXPLICIT, files

OPTIONS = dict(shard_size=32, overwrite=True)


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Two slides, of which one has more shards than the other, and each as it is exported alone."""
    found = []
    for number, shape in enumerate([(96, 96), (96, 160)]):
        folder = tmp_path_factory.mktemp(f"slide-{number}")
        write_slide(folder / "slide", shape=shape, downsamples=(1, 2), tile_shape=(32, 32),
                    container_id=f"DS-{number}", transfer_syntax_uid=EXPLICIT, associated=False,
                    seed=number)  # fmt: skip
        to_ome_zarr(dicomslide.open_slide(folder / "slide"), folder / "alone.zarr", shard_size=32)
        found.append((folder / "slide", files(folder / "alone.zarr")))
    return found


def export(slide, store, outcomes, seconds=0.0, **options):
    """Export, and say how it ended."""
    time.sleep(seconds)
    try:
        with dask.config.set(scheduler="threads", num_workers=2):
            to_ome_zarr(dicomslide.open_slide(slide), store, **OPTIONS | options)
    except (dicomslide.ExportError, dicomslide.StoreExistsError) as error:
        outcomes.append(type(error).__name__)
    except BaseException as error:
        outcomes.append(repr(error))
    else:
        outcomes.append("complete")


def held(store):
    target = Target.at(store)
    return {key: target.read(key) for key in sorted(target.keys())}


def race(slides, store, seed, contents=held, options=None):
    """Have two exports run at once; one is left as it is alone, whatever the other did when."""
    rng = np.random.default_rng(seed)
    outcomes = [[], []]
    delays = rng.uniform(0, 0.25, 2) * (rng.random() < 0.8)
    threads = [
        threading.Thread(target=export, args=(slide, store, ended, seconds), kwargs=options or {})
        for (slide, _), ended, seconds in zip(slides, outcomes, delays, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (first,), (second,) = outcomes
    assert {first, second} <= {"complete", "ExportError"}
    assert "complete" in (first, second)
    left = contents(store)
    winners = [
        whole for (_, whole), (how,) in zip(slides, outcomes, strict=True) if how == "complete"
    ]
    assert left in winners


@pytest.mark.parametrize("seed", range(6))
def test_two_exports_to_one_folder_leave_one_whole(slides, tmp_path, seed):
    race(slides, tmp_path / "out.zarr", seed, files)
    assert not list(tmp_path.glob("out.zarr/dicomslide*"))


@pytest.mark.parametrize("seed", range(4))
def test_two_exports_to_one_store_in_memory_leave_one_whole(slides, seed):
    race(slides, MemoryStore(), seed)


@pytest.mark.parametrize("seed", range(3))
def test_two_exports_to_one_url_leave_one_whole(slides, seed):
    race(slides, f"memory://races/{seed}.zarr", seed)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_two_exports_to_one_bucket_leave_one_whole(slides, exports_bucket):
    for seed in range(3):
        options = {"storage_options": exports_bucket}
        race(slides, f"s3://exports/race-{seed}.zarr", seed, options=options)


def export_in_a_process(slide, store, seconds, queue):
    outcomes = []
    export(slide, store, outcomes, seconds)
    queue.put(outcomes[0])


def test_processes_that_export_to_one_folder_leave_one_whole(slides, tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    processes = [
        context.Process(target=export_in_a_process, args=(slide, tmp_path / "out.zarr", 0.0, queue))
        for slide, _ in slides + slides
    ]
    for process in processes:
        process.start()
    outcomes = [queue.get() for _ in processes]
    for process in processes:
        process.join()
    assert set(outcomes) <= {"complete", "ExportError"}
    assert "complete" in outcomes
    assert files(tmp_path / "out.zarr") in [whole for _, whole in slides]


# -- at the worst moments --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "store"])
def test_what_a_replaced_export_deletes_is_not_what_the_same_one_writes_again(
    tmp_path, monkeypatch, kind
):
    """Both have one temporary folder. Between the look at who was begun and the deletion."""
    target = Target.at(tmp_path / "out.zarr" if kind == "folder" else MemoryStore())
    mine, other = ({"slide": number, "options": {}} for number in (1, 2))
    key = f"{shards_of(mine)}level_0/c/0/0/0"
    written = threading.Event()

    def begin_again():
        target.begin(mine, overwrite=True, resume=False)
        target.write(key, b"pixels")
        written.set()

    thread = threading.Thread(target=begin_again)
    delete = Target.delete_folder

    def late(self, folder):
        if thread.ident is None:
            thread.start()
            written.wait(1)  # in vain where it has to wait for the deletion
        delete(self, folder)

    for identity in (mine, other):
        target.begin(identity, overwrite=True, resume=False)
    monkeypatch.setattr(Target, "delete_folder", late)
    with pytest.raises(dicomslide.ExportError, match="another export was begun here meanwhile"):
        target.leave(mine)
    thread.join(60)
    assert target.read(key) == b"pixels"


@pytest.mark.parametrize("kind", ["folder", "store", "url"])
def test_a_shard_that_is_written_late_does_not_land_in_what_another_finished(
    slides, tmp_path, monkeypatch, kind
):
    """Between the look at who was begun and the write, another one begins and ends."""
    store = {"folder": tmp_path / "out.zarr", "store": MemoryStore(), "url": "memory://late/a"}[
        kind
    ]
    write, others = ShardedArray.write, []

    def late(self, index, pixels):
        if not others:
            others.append("begins")
            to_ome_zarr(dicomslide.open_slide(slides[0][0]), store, **OPTIONS)
            assert held(store) == slides[0][1]
        write(self, index, pixels)

    monkeypatch.setattr(ShardedArray, "write", late)
    with (
        dask.config.set(scheduler="synchronous"),
        pytest.raises(dicomslide.ExportError, match="another export was begun here meanwhile"),
    ):
        to_ome_zarr(dicomslide.open_slide(slides[1][0]), store, **OPTIONS)
    assert held(store) == slides[0][1]


# -- at every step ----------------------------------------------------------------------------

_interrupt: list = []
"""What is called before a step on files, while there is something."""


def _audit(event, args):
    if _interrupt and event in ("os.mkdir", "open", "os.rename", "os.remove", "os.scandir"):
        _interrupt[0](args[0])


@pytest.fixture(scope="module")
def _audited():
    sys.addaudithook(_audit)  # for the rest of the process, but idle


@pytest.fixture(scope="module")
def small_slides(tmp_path_factory):
    """Two slides of two shards each."""
    folders = [tmp_path_factory.mktemp(f"small-{number}") for number in range(2)]
    for number, folder in enumerate(folders):
        write_slide(folder, shape=(16, 32), downsamples=(1,), tile_shape=(16, 16),
                    container_id=f"DS-{number}", transfer_syntax_uid=EXPLICIT, associated=False,
                    seed=number)  # fmt: skip
    return folders


def at_a_step(monkeypatch, store, number, other, export):
    """Export, with another export just before a step; return how it ended, and whether it was.

    Steps are those on files in the store, by any library, while the store isn't held exclusively.
    """
    held, steps = [], []
    alone = Target.alone

    @contextlib.contextmanager
    def held_alone(self):
        with alone(self):
            held.append(self)
            try:
                yield
            finally:
                held.pop()

    def interrupt(path):
        name = str(path)
        if held or not name.startswith(str(store)) or name.endswith(exclusive.LOCK):
            return
        steps.append(name)
        if len(steps) == number + 1:
            _interrupt.clear()
            other()

    monkeypatch.setattr(Target, "alone", held_alone)
    _interrupt[:] = [interrupt]
    try:
        outcomes = []
        export(outcomes)
    finally:
        _interrupt.clear()
        monkeypatch.undo()
    return outcomes[0], len(steps) > number


@pytest.mark.usefixtures("_audited")
@pytest.mark.parametrize("what", ["replaces it", "completes the same", "was replaced and leaves"])
def test_whatever_another_export_does_at_any_step_one_is_left_whole(
    small_slides, tmp_path, monkeypatch, what
):
    """Deterministic: what is between two steps on files is tried for all of them."""
    slides = [dicomslide.open_slide(folder) for folder in small_slides]
    wholes = []
    for number, slide in enumerate(slides):
        to_ome_zarr(slide, tmp_path / f"alone-{number}.zarr", shard_size=16)
        wholes.append(files(tmp_path / f"alone-{number}.zarr"))
    (tmp_path / "again").mkdir()
    replaced = {"slide": "replaced", "options": {}}

    def run(outcomes, slide, store, **options):
        try:
            with dask.config.set(scheduler="synchronous"):
                to_ome_zarr(slide, store, shard_size=16, **options)
        except (dicomslide.ExportError, dicomslide.StoreExistsError):
            outcomes.append("refused")
        else:
            outcomes.append("complete")

    endings = set()
    number, was_interrupted = 0, True
    while was_interrupted:
        store = tmp_path / "again" / f"{number}.zarr"
        others = []

        def other(store=store, others=others):
            if what == "was replaced and leaves":
                late = Target.at(store)
                late.write(f"{shards_of(replaced)}level_0/image/c/0/0/0", b"late")
                with contextlib.suppress(dicomslide.ExportError):
                    late.leave(replaced)
                others.append("left")
            elif what == "replaces it":
                run(others, slides[1], store, overwrite=True)
            else:
                run(others, slides[0], store, resume=True)

        ended, was_interrupted = at_a_step(
            monkeypatch, store, number, other,
            lambda outcomes, store=store: run(outcomes, slides[0], store, resume=True),
        )  # fmt: skip
        assert others == (
            [] if not was_interrupted else ["left" if "leaves" in what else "complete"]
        )
        assert files(store) == wholes[ended == "refused"], number
        assert not list(store.glob("dicomslide*"))
        endings.add(ended)
        number += 1
    assert number > 15
    assert endings == ({"complete", "refused"} if what == "replaces it" else {"complete"})


def test_who_completes_an_export_is_waited_for(slides, tmp_path, monkeypatch):
    """Another one begins while shards are moved to their places: only when they all are."""
    store = tmp_path / "out.zarr"
    move, others, outcomes = Target.move, [], []

    def interrupted(self, key, new):
        if not others:
            others.append(threading.Thread(target=export, args=(slides[1][0], store, outcomes)))
            others[0].start()
            time.sleep(0.3)
        move(self, key, new)

    monkeypatch.setattr(Target, "move", interrupted)
    to_ome_zarr(dicomslide.open_slide(slides[0][0]), store, **OPTIONS)
    others[0].join()
    assert outcomes == ["complete"]
    assert files(store) == slides[1][1]


def test_a_store_that_vanishes_under_an_export_is_a_typed_error(slides, tmp_path, monkeypatch):
    store = tmp_path / "out.zarr"
    write = ShardedArray.write

    def gone(self, index, pixels):
        shutil.rmtree(store, ignore_errors=True)
        write(self, index, pixels)

    monkeypatch.setattr(ShardedArray, "write", gone)
    with pytest.raises(dicomslide.ExportError, match="isn't there"):
        to_ome_zarr(dicomslide.open_slide(slides[0][0]), store, **OPTIONS)


class FailingStore(LocalStore):
    """A disk that fails after some shards."""

    left = 5

    async def set(self, key, value):
        if "/c/" in key:
            type(self).left -= 1
            if self.left < 0:
                raise OSError(5, "Input/output error")
        await super().set(key, value)


@pytest.mark.parametrize("seed", range(4))
def test_when_both_fail_one_is_left_that_can_be_resumed(slides, tmp_path, monkeypatch, seed):
    outcomes = [[], []]
    monkeypatch.setattr(FailingStore, "left", 3 + 2 * seed)
    threads = [
        threading.Thread(target=export, args=(slide, FailingStore(tmp_path / "out.zarr"), ended))
        for (slide, _), ended in zip(slides, outcomes, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    error = repr(OSError(5, "Input/output error"))
    assert {ended for (ended,) in outcomes} <= {"ExportError", error}
    begun = json.loads((tmp_path / "out.zarr" / BEGUN).read_bytes())
    (number,) = [number for number in range(2) if begun["slide"] == f"DS-{number}"]
    slide, whole = slides[number]
    resumed = []
    export(slide, tmp_path / "out.zarr", resumed, overwrite=False, resume=True)
    assert resumed == ["complete"]
    assert files(tmp_path / "out.zarr") == whole


def test_an_export_that_was_killed_while_it_moved_shards_goes_on(slides, tmp_path, monkeypatch):
    slide, whole = slides[0]
    store = tmp_path / "out.zarr"
    move, moved = Target.move, []

    def killed(self, key, new):
        if len(moved) == 3:
            raise KeyboardInterrupt
        moved.append(key)
        move(self, key, new)

    monkeypatch.setattr(Target, "move", killed)
    with pytest.raises(KeyboardInterrupt):
        to_ome_zarr(dicomslide.open_slide(slide), store, **OPTIONS)
    monkeypatch.undo()
    assert (store / SHARDS).is_dir()
    written = []
    monkeypatch.setattr(ShardedArray, "write", lambda *args: written.append(args))
    to_ome_zarr(dicomslide.open_slide(slide), store, shard_size=32, resume=True)
    assert not written
    assert files(store) == whole


# -- one at a time ---------------------------------------------------------------------------


@pytest.fixture(params=["lock", "claims"])
def target(request, tmp_path):
    if request.param == "lock":
        pytest.importorskip("fcntl", reason="no such locks here")
    return Target.at(tmp_path / "store" if request.param == "lock" else MemoryStore())


def test_a_store_is_for_one_at_a_time(target):
    inside, most = [], []

    def work(number):
        for _ in range(5):
            with target.alone():
                inside.append(number)
                most.append(len(inside))
                time.sleep(0.001)
                inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 20
    assert target.keys() == set()


def test_the_claim_of_a_process_that_was_killed_is_not_waited_for_forever(monkeypatch):
    monkeypatch.setattr(exclusive, "LEASE", 0.2)
    target = Target.at(MemoryStore())
    target.write(f"{exclusive.CLAIMS}/killed", b"7")
    with target.alone():
        assert target.names_in(exclusive.CLAIMS) - {"killed"}
    assert target.keys() == set()


def test_a_claim_that_is_renewed_is_waited_for(monkeypatch):
    monkeypatch.setattr(exclusive, "LEASE", 0.5)
    target = Target.at(MemoryStore())
    order = []

    def long():
        with target.alone():
            order.append("first")
            started.set()
            time.sleep(1.5)
            order.append("first ends")

    started = threading.Event()
    thread = threading.Thread(target=long)
    thread.start()
    started.wait()
    with target.alone():
        order.append("second")
    thread.join()
    assert order == ["first", "first ends", "second"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_lock_of_a_process_that_was_killed_is_open(tmp_path):
    pytest.importorskip("fcntl", reason="no such locks here")
    ready, go = os.pipe()
    if not (pid := os.fork()):
        with exclusive.locked(str(tmp_path)):
            os.write(go, b"x")
            os.kill(os.getpid(), 9)
    os.read(ready, 1)
    os.waitpid(pid, 0)
    with exclusive.locked(str(tmp_path)) as is_locked:
        assert is_locked
    assert list(tmp_path.iterdir()) == []
