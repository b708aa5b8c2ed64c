"""Reading from a slow store holds no lock of the process."""

from __future__ import annotations

import io
import shutil
import threading

import numpy as np
import pytest

import dicomslide


class Slow(io.BytesIO):
    """A file whose bytes from a place on come once a gate is opened."""

    def __init__(self, data, stop):
        super().__init__(data)
        self.stop = stop
        self.is_asked, self.gate = threading.Event(), threading.Event()

    def read(self, size=-1):
        if size != 0 and self.tell() >= self.stop:
            self.is_asked.set()
            assert self.gate.wait(60)
        return super().read(size)


@pytest.mark.parametrize("stop", [0, 1], ids=["preamble", "data set"])
def test_a_header_that_does_not_arrive_delays_no_other_slide(position_slide, tmp_path, stop):
    unknown = shutil.copytree(position_slide, tmp_path / "slide")  # no header of it is cached
    level = position_slide / "level-0.dcm"
    slow = Slow(level.read_bytes(), stop)
    opened = []
    thread = threading.Thread(target=lambda: opened.append(dicomslide.open_slide(slow)))
    thread.start()
    try:
        assert slow.is_asked.wait(60)
        others = []

        def open_other():
            slide = dicomslide.open_slide(unknown, correct_color=False)
            others.append(slide.get_image_region((0, 0), 0, (30, 40)))

        other = threading.Thread(target=open_other, daemon=True)
        other.start()
        other.join(60)
        assert others, "the other slide waits for the slow one"
        assert not opened
    finally:
        slow.gate.set()
        thread.join(60)
    region = opened[0].get_image_region((0, 0), 0, (30, 40))
    np.testing.assert_array_equal(region, others[0])


def test_options_that_another_thread_sets_during_a_block_last():
    before = dicomslide.get_options()
    try:
        with dicomslide.set_options(num_threads=7):
            setting = threading.Thread(target=lambda: dicomslide.set_options(num_threads=9))
            setting.start()
            setting.join()
            assert dicomslide.get_options().num_threads == 9
        assert dicomslide.get_options().num_threads == 9
    finally:
        dicomslide.set_options(num_threads=before.num_threads)
    assert dicomslide.get_options() == before
