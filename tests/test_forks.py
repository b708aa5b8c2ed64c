"""Children that are forked while other threads read, import and set options."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import dicomslide
from dicomslide import options
from dicomslide.header import lenient
from dicomslide.process import budget, forks
from dicomslide.testing import position_values
from tests.support.forks import in_child

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]

UNDER_LOAD = """
import faulthandler, os, random, sys, threading, time
import numpy as np
import dicomslide
from dicomslide.testing import position_values

door, folder, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
expected = position_values(np.arange(100), np.arange(120))

def pixels():
    if door == "xarray":
        import xarray
        options = dict(engine="dicomslide", correct_color=False, orientation="stored")
        return xarray.open_dataset(folder, **options).image[:100, :120].values
    if door == "openslide":
        with dicomslide.OpenSlide(folder) as opened:
            return np.asarray(opened.read_region((0, 0), 0, (120, 100)))[..., :3]
    slide = dicomslide.open_slide(folder, correct_color=False)
    if door == "shared":  # one object, of which several threads make the attributes
        matrix = shared.get_total_pixel_matrix()
        return matrix[:100, :120]
    return slide.get_image_region((0, 0), 0, (100, 120))

def forget():
    dicomslide.clear_all()

def read():
    with dicomslide.set_options(num_threads=2):
        np.testing.assert_array_equal(pixels(), expected)

def go_on():
    while True:
        read()
        forget()  # so that each read is a first one

if door == "shared":
    shared = dicomslide.open_slide(folder, correct_color=False).get_volume_images()[0]
for _ in range(4):
    threading.Thread(target=go_on, daemon=True).start()
waits = random.Random(seed)
children = []
for _ in range(12):
    time.sleep(waits.uniform(0, 0.05))
    child = os.fork()
    if not child:
        faulthandler.dump_traceback_later(40, exit=True)
        read()
        os._exit(0)
    children.append(child)
failed = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
print(sum(map(bool, failed)), flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("door", ["matrix", "shared", "xarray", "openslide"])
def test_children_read_that_are_forked_while_threads_read_for_the_first_time(position_slide, door):
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", UNDER_LOAD, door, position_slide, "1"],
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert (ended.stdout, ended.stderr) == ("0\n", "")


IMPORTING = """
import os, sys, threading
import dicomslide
sys.path.insert(0, sys.argv[1])
threading.Thread(target=lambda: __import__("slow")).start()
while "slow" not in sys.modules:
    pass
child = os.fork()
if not child:
    import slow
    os._exit(slow.answer)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_fork_waits_for_a_module_that_another_thread_imports(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import time, logging; logging.getLogger('slow'); time.sleep(0.5);"
        "import wave; logging.getLogger('slower'); answer = 42"
    )
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IMPORTING, tmp_path],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (ended.stdout, ended.stderr) == ("42\n", "")


def test_a_fork_does_not_wait_forever_for_a_module_that_runs_a_whole_program(tmp_path):
    (tmp_path / "slow.py").write_text("import threading; threading.Event().wait()")
    code = IMPORTING.replace("import slow\n", "").replace("slow.answer", "42") + (
        "forks.PATIENCE = 1e9; child = os.fork()\n"
        "if not child: os._exit(0)\n"
        "print('forked again', flush=True); os._exit(0)"
    )
    code = code.replace(
        "import dicomslide\n", "from dicomslide.process import forks; forks.PATIENCE = 0.5\n"
    )
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, tmp_path],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (ended.stdout, ended.stderr) == ("42\nforked again\n", "")


def hold(lock, holding, release):
    with lock:
        holding.set()
        release.wait(30)


def test_a_lock_held_while_the_process_forks_does_not_stop_the_child(position_slide):
    slide = dicomslide.open_slide(position_slide, correct_color=False)
    image = slide.get_volume_images()[0]
    locks = [budget.BUDGET.lock, image._source._instance()._lock, lenient._reading,
             options._current._lock]  # fmt: skip
    release = threading.Event()
    holders = []
    for lock in locks:
        holding = threading.Event()
        holders.append(threading.Thread(target=hold, args=(lock, holding, release)))
        holders[-1].start()
        assert holding.wait(10)

    def corner():
        with dicomslide.set_options(num_threads=2):
            return slide.get_image_region((0, 0), 0, (5, 6))

    try:
        np.testing.assert_array_equal(in_child(corner), position_values(np.arange(5), np.arange(6)))
    finally:
        release.set()
        for holder in holders:
            holder.join()


def test_a_barrier_is_waited_for(tmp_path):
    """In a process of its own: a barrier is there as long as its process."""
    code = """
import os, threading, time
from dicomslide.process.forks import ForkBarrier
barrier, ends, holding = ForkBarrier(), [], threading.Event()
def hold():
    with barrier:
        holding.set()
        time.sleep(0.3)
        ends.append(1)
threading.Thread(target=hold).start()
holding.wait()
child = os.fork()
if not child:
    with barrier:
        os._exit(len(ends))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
with barrier:
    if not os.fork():  # by who holds it
        with barrier:
            os._exit(0)
print(os.wait()[1])
with barrier:
    print("open")
"""
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (ended.stdout, ended.stderr) == ("1\n0\nopen\n", "")


def test_a_child_has_the_switch_of_validation_as_it_was():
    from pydicom import config

    def modes():
        return config.settings.reading_validation_mode, config.settings.writing_validation_mode

    before = modes()
    holding, release = threading.Event(), threading.Event()
    holder = threading.Thread(target=hold, args=(lenient.no_validation(), holding, release))
    holder.start()
    try:
        assert holding.wait(10)
        assert modes() != before
        assert in_child(modes) == before
    finally:
        release.set()
        holder.join()
    assert modes() == before


def test_what_is_gone_is_not_started_anew():
    before = len(forks._started)
    kept = [forks.ForkLock() for _ in range(10)]
    assert len(forks._started) == before + 10
    del kept
    assert len(forks._started) == before
