"""Options of a process: checked, bounded to their block, and followed at once."""

from __future__ import annotations

import dataclasses
import gc
import threading

import numpy as np
import pytest

import dicomslide
from dicomslide import get_options, set_options
from dicomslide.backends.batching import encoded_frames
from dicomslide.process.budget import cached_bytes
from dicomslide.process.frame_cache import FrameCache
from dicomslide.readers import frame_reader
from dicomslide.testing import write_slide


def test_options_are_checked_and_restored():
    before = get_options()
    with set_options(num_threads=1) as options:
        assert options.num_threads == 1
    assert get_options() == before
    for wrong in ({"num_threads": 0}, {"frame_cache_bytes": -1}, {"memory_limit_bytes": 1.5}):
        with pytest.raises(ValueError, match="must be an integer"):
            set_options(**wrong)
    with pytest.raises(ValueError, match="index_folder must be a text"):
        set_options(index_folder=3)
    assert get_options() == before


def test_what_is_set_without_a_block_lasts():
    before = get_options()
    try:
        set_options(num_threads=3)
        with set_options(frame_cache_bytes=5):
            assert get_options() == dataclasses.replace(before, num_threads=3, frame_cache_bytes=5)
        assert get_options() == dataclasses.replace(before, num_threads=3)
    finally:
        set_options(num_threads=before.num_threads)
    assert get_options() == before


def test_a_call_within_a_block_lasts_but_for_what_the_block_has_set():
    before = get_options()
    try:
        with set_options(num_threads=2, frame_cache_bytes=5):
            set_options(num_threads=3, encoded_cache_bytes=7)
            assert (get_options().num_threads, get_options().frame_cache_bytes) == (3, 5)
        assert get_options() == dataclasses.replace(before, encoded_cache_bytes=7)
    finally:
        set_options(encoded_cache_bytes=before.encoded_cache_bytes)


def test_a_block_may_begin_again():
    before = get_options()
    block = set_options(num_threads=2)
    for _ in range(2):
        with block as options:
            assert options.num_threads == get_options().num_threads == 2
        assert get_options() == before


@pytest.mark.parametrize("seed", range(5))
def test_blocks_in_any_order_of_ends_end_where_they_began(seed):
    """The model: what the latest block that is still open says, else what was before."""
    before = get_options()
    rng = np.random.default_rng(seed)
    names = ("num_threads", "frame_cache_bytes", "encoded_cache_bytes", "frame_folder_bytes")
    open_blocks = []
    for _ in range(200):
        if not open_blocks or rng.random() < 0.5:
            values = {name: int(rng.integers(1, 10**6)) for name in names if rng.random() < 0.5}
            block = set_options(**values)
            block.__enter__()
            open_blocks.append((block, values))
        else:
            block, _ = open_blocks.pop(rng.integers(len(open_blocks)))
            block.__exit__(None, None, None)
        expected = dataclasses.asdict(before)
        for _, values in open_blocks:
            expected |= values
        assert dataclasses.asdict(get_options()) == expected
    for block, _ in open_blocks:
        block.__exit__(None, None, None)
    assert get_options() == before


def test_blocks_that_overlap_in_threads_end_where_they_began():
    before = get_options()
    gates = [threading.Barrier(2, timeout=10) for _ in range(3)]

    def first():
        with set_options(num_threads=11):
            gates[0].wait()  # the other begins
            gates[1].wait()
        gates[2].wait()  # this one has ended, the other ends

    thread = threading.Thread(target=first)
    thread.start()
    gates[0].wait()
    with set_options(num_threads=12):
        gates[1].wait()
        gates[2].wait()
        assert get_options().num_threads == 12
    thread.join()
    assert get_options() == before


def test_threads_that_open_blocks_all_the_time_leave_nothing():
    before = get_options()

    def work(number):
        for i in range(200):
            with set_options(num_threads=1 + number, frame_cache_bytes=10**6 + i):
                set_options(frame_cache_bytes=10**6)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert get_options() == before


def test_a_call_ends_with_its_block_while_another_thread_ends_a_block(monkeypatch):
    before = get_options()
    is_ending, gate = threading.Event(), threading.Event()
    other = set_options(num_threads=3)

    def tell():
        if threading.current_thread() is thread:
            is_ending.set()
            assert gate.wait(60)

    monkeypatch.setattr("dicomslide.options.tell_of_changes", tell)
    thread = threading.Thread(target=lambda: other.__exit__(None, None, None))
    with set_options(frame_cache_bytes=10**7):
        call = set_options(frame_cache_bytes=10**6)
        thread.start()
        assert is_ending.wait(60)
        del call
    gate.set()
    thread.join()
    assert get_options() == before


# -- caches follow ---------------------------------------------------------------------------


@pytest.mark.parametrize("most", [0, 1, 32 * 48 * 2 - 1, 5 * 32 * 48 * 2 + 7])
def test_decoded_frames_beyond_the_bound_are_freed_at_once(stack_slide, most):
    slide = dicomslide.open_slide(stack_slide)
    slide.get_image_region((0, 0), 0, (100, 140))
    assert frame_reader._frames.nbytes == 12 * 32 * 48 * 2
    with set_options(frame_cache_bytes=most):
        assert frame_reader._frames.nbytes <= most
        slide.get_image_region((0, 0), 0, (100, 140))
        assert frame_reader._frames.nbytes <= most


def test_encoded_frames_beyond_the_bound_are_freed_at_once():
    encoded_frames._memory.put("image", 0, bytes(1000))
    encoded_frames._memory.put("image", 1, bytes(1000))
    with set_options(encoded_cache_bytes=1000):
        assert list(encoded_frames._memory.get("image", [0, 1])) == [1]
        with set_options(encoded_cache_bytes=999):
            assert encoded_frames._memory.nbytes == 0


def test_a_cache_holds_no_more_than_it_may_while_the_bound_changes():
    cache = FrameCache(lambda: get_options().frame_cache_bytes, "frames")
    stop = threading.Event()

    def work(image):
        frame = 0
        while not stop.is_set():
            cache.put(image, frame, bytes(100))
            frame += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        rng = np.random.default_rng(1)
        for most in rng.integers(0, 5000, 200).tolist():
            with set_options(frame_cache_bytes=most):
                assert cache.nbytes <= most
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_many_sparse_slides_stay_within_the_budget(tmp_path):
    """Each has 1,600 frames, whose positions and offsets take about 100 kB."""
    first, *_ = write_slide(
        tmp_path,
        shape=(640, 640),
        downsamples=(1,),
        tile_shape=(16, 16),
        sparse=True,
        associated=False,
    )
    budget = 2**20
    with set_options(memory_budget=budget):
        totals = []
        for number in range(20):
            path = tmp_path / f"slide-{number}.dcm"
            path.write_bytes(first.read_bytes())
            slide = dicomslide.open_slide(path)
            slide.get_image_region((0, 0), 0, (20, 20))
            totals.append(sum(cached_bytes().values()))
        assert max(totals) <= budget
        assert totals[-1] > budget // 2  # it is used, too
        first_again = dicomslide.open_slide(tmp_path / "slide-0.dcm")  # which was dropped
        np.testing.assert_array_equal(
            first_again.get_image_region((0, 0), 0, (20, 20)),
            slide.get_image_region((0, 0), 0, (20, 20)),
        )
