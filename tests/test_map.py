"""A function of each slide of a cohort: on threads, processes, executors and a cluster."""

from __future__ import annotations

import functools
import gc
import os
import signal
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import dicomslide
from dicomslide.display.progress import Progress
from dicomslide.process.child import Child, ChildEndedError
from dicomslide.slide import calls
from dicomslide.testing import write_slide
from tests.support.optional import need
from tests.support.parts import starts
from tests.support.workers import some_workers

NAMES = [f"S-{number}" for number in range(4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    for number, name in enumerate(NAMES, 1):
        write_slide(
            folder / name, shape=(64, 96), tile_shape=(32, 32), downsamples=(1,), seed=number,
            container_id=name, slide_number=number, associated=False,
        )  # fmt: skip
    return folder


@pytest.fixture
def slides(folder):
    return dicomslide.open_slides(folder)


@pytest.fixture(scope="module")
@starts("cluster")
def client(tmp_path_factory):
    need("distributed")
    with some_workers(
        2, is_default=False, local_directory=tmp_path_factory.mktemp("workers")
    ) as client:
        yield client


@pytest.fixture
def executor():
    with ThreadPoolExecutor(2) as executor:
        yield executor


@pytest.fixture(
    params=["threads", "processes", "executor", pytest.param("cluster", marks=pytest.mark.cluster)]
)
def on(request):
    """Where functions run."""
    if request.param in ("threads", "processes"):
        return request.param
    return request.getfixturevalue({"executor": "executor", "cluster": "client"}[request.param])


def total(slide):
    return int(slide.get_image_region((0, 0), 0, slide.size).sum())


def test_results_are_those_of_a_loop_in_the_order_of_slides(slides, folder, on):
    expected = {name: total(dicomslide.open_slide(folder / name)) for name in NAMES}
    found = slides.map(lambda slide: total(slide), on=on, workers=2)
    assert list(found) == NAMES
    assert dict(found) == expected
    assert len(set(found.values())) == len(NAMES)
    assert not found.failures
    assert repr(found) == "<SlideResults of 4>"


def test_a_failure_names_slide_and_cause_and_stops_nothing(slides, on):
    def fails(slide):
        if slide.container_identifier == "S-2":
            raise ValueError("no tissue")
        return slide.container_identifier

    found = slides.map(fails, on=on, workers=2)
    assert dict(found) == {name: name for name in NAMES if name != "S-2"}
    error = found.failures["S-2"]
    assert isinstance(error, dicomslide.SlideTaskError)
    assert isinstance(error.error, ValueError)
    assert (error.slide, error.attempts) == ("S-2", 1)
    assert str(error) == "S-2: ValueError: no tissue"
    assert "in fails" in error.traceback
    assert error.error.__traceback__ is None
    assert "S-2" not in found
    with pytest.raises(dicomslide.SlideTaskError, match="no tissue"):
        found["S-2"]
    with pytest.raises(KeyError, match="S-9"):
        found["S-9"]
    assert not slides.failures
    assert repr(found) == "<SlideResults of 3, 1 failed>"


def fails_first(folder, error, slide):
    """Raise an error at the first call for a slide, in whichever process."""
    name = slide.container_identifier
    with open(folder / "calls", "a", encoding="utf-8") as file:
        file.write(f"{name}\n")
    if (folder / "calls").read_text(encoding="utf-8").split().count(name) < 2:
        raise error
    return name


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (OSError("a disk is busy"), True),
        (dicomslide.SourceReadError("a server is busy"), True),
        (ConnectionResetError(), True),
        (ValueError("always"), False),
        (dicomslide.SourceDeniedError("always"), False),
        (dicomslide.SourceChangedError("always"), False),
        (FileNotFoundError("always"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_may_pass_is_tried_again_after_all_others(slides, tmp_path, error, passes):
    function = functools.partial(fails_first, tmp_path, error)
    found = slides.map(function, on="threads", workers=1)
    calls = (tmp_path / "calls").read_text(encoding="utf-8").split()
    if passes:
        assert dict(found) == dict(zip(NAMES, NAMES, strict=True))
        assert calls == [*NAMES, *NAMES]
    else:
        assert {type(each.error) for each in found.failures.values()} == {type(error)}
        assert calls == NAMES


def test_so_many_attempts_are_made_and_no_more(slides, on):
    def fails(slide):
        raise OSError("it lasts")

    found = slides.map(fails, on=on, workers=2, retries=2)
    assert not found
    assert list(found.failures) == NAMES
    assert {each.attempts for each in found.failures.values()} == {3}
    assert str(found.failures["S-0"]) == "S-0: OSError: it lasts (after 3 attempts)"
    with pytest.raises(ValueError, match="retries -1"):
        slides.map(fails, retries=-1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"retries": 1.5}, "retries 1.5: expected an integer from 0 on"),
        ({"retries": "x"}, "retries 'x'"),
        ({"workers": "x"}, "workers 'x': expected an integer from 1 on"),
        ({"workers": 2.0}, "workers 2.0"),
        ({"progress": "yes"}, "progress 'yes': expected True, False or a function"),
        ({"progress": None}, "progress None"),
    ],
)
def test_options_of_another_type_are_refused_before_a_slide_is_opened(slides, options, message):
    with pytest.raises(TypeError, match=message):
        slides.map(lambda slide: pytest.fail("called"), **options)


def test_a_slide_that_does_not_open_is_a_failure_of_the_cohort_too(tmp_path):
    for number in (1, 2):
        write_slide(
            tmp_path / str(number), shape=(32, 32), tile_shape=(32, 32), downsamples=(1,),
            container_id=f"S-{number}", slide_number=number, associated=False,
        )  # fmt: skip
    slides = dicomslide.open_slides(tmp_path)
    (tmp_path / "1" / "level-0.dcm").unlink()
    dicomslide.clear_all()
    found = slides.map(total, on="threads")
    assert list(found) == ["S-2"]
    error = found.failures["S-1"]
    assert isinstance(error.error, dicomslide.SourceNotFoundError)
    assert error.attempts == 1
    assert slides.failures["S-1"] is error.error


def test_a_process_that_dies_takes_one_slide_with_it(slides):
    def dies(slide):
        if slide.container_identifier == "S-1":
            os.kill(os.getpid(), signal.SIGKILL)
        return os.getpid()

    found = slides.map(dies, on="processes", workers=2)
    assert list(found) == ["S-0", "S-2", "S-3"]
    assert os.getpid() not in found.values()
    error = found.failures["S-1"]
    assert isinstance(error.error, ChildEndedError)
    assert error.attempts == 2
    assert "signal 9" in str(error)


def test_processes_share_what_this_one_may_use(slides):
    def options(slide):
        here = dicomslide.get_options()
        return here.num_threads, here.memory_budget, here.encoded_cache_bytes

    with dicomslide.set_options(num_threads=6, memory_budget=2**28, encoded_cache_bytes=12345):
        found = slides.map(options, on="processes", workers=2)
    assert set(found.values()) == {(3, 2**27, 12345)}


def test_a_result_that_does_not_pickle_is_a_failure_and_a_function_that_does_not_is_an_error(
    slides,
):
    found = slides.map(lambda slide: threading.Lock(), on="processes", workers=1)
    assert list(found.failures) == NAMES
    assert "pickle" in str(found.failures["S-0"])
    lock = threading.Lock()
    with pytest.raises(TypeError, match="pickle"):
        slides.map(lambda slide: lock, on="processes", workers=1)


@pytest.mark.parametrize("where", ["threads", "processes"])
def test_what_interrupts_the_caller_ends_it_at_once(slides, where):
    def progress(done, total):
        raise KeyboardInterrupt

    def slow(slide):
        time.sleep(0 if slide.container_identifier == "S-0" else 120)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        slides.map(slow, on=where, workers=2, progress=progress)
    assert time.monotonic() - began < 100


def test_no_more_slides_are_open_than_workers(slides):
    alive = weakref.WeakSet()
    most = []
    lock = threading.Lock()

    def remember(slide):
        with lock:
            gc.collect()
            alive.add(slide)
            most.append(len(alive))

    slides.map(remember, on="threads", workers=1)
    assert most == [1] * len(NAMES)


def test_progress_is_told_as_slides_are_done(slides, capsys):
    told = []
    slides.map(total, on="threads", progress=lambda *state: told.append(state))
    assert told == [(number, len(NAMES)) for number in range(1, len(NAMES) + 1)]
    slides.map(total, on="threads", progress=True)
    captured = capsys.readouterr()
    assert captured.err.startswith("4 of 4 slides in ")
    assert captured.out == ""


def test_a_line_of_progress_says_how_long_the_rest_takes(capsys, monkeypatch):
    now = 0.0
    say = Progress("slides", clock=lambda: now)
    states = [(0, 100, ""), (20, 100, "20 of 100 slides, 20 %, about 1 min left\n"), (21, 100, "")]
    for done, total, expected in states:
        now = 20.0 if done == 20 else now
        say(done, total)
        assert capsys.readouterr().err == expected
    monkeypatch.setattr("dicomslide.display.progress._replaces_lines", lambda: True)
    now = 21.0
    say(1_000, 9_000)
    assert capsys.readouterr().err == "\r1,000 of 9,000 slides, 11 %, about 3 min left"
    now = 7_200.0
    say(9_000, 9_000)
    line = capsys.readouterr().err
    assert line.startswith("\r9,000 of 9,000 slides in 2.0 h ")
    assert line.endswith(" \n")


def test_the_current_cluster_is_used_by_default_and_within_its_tasks_threads(slides, client):
    def where(slide):
        return os.getpid(), threading.current_thread().name

    assert {pid for pid, _ in slides.map(where).values()} == {os.getpid()}
    with client.as_current():
        found = slides.map(where)
        assert os.getpid() not in {pid for pid, _ in found.values()}
        assert found.keys() == slides.map(where, on="cluster").keys()
    nested = client.submit(lambda: dict(slides.map(where)), pure=False).result()
    assert len({pid for pid, _ in nested.values()}) == 1
    large = np.zeros(2**21, np.uint8)
    assert set(slides.map(lambda slide: large.size, on=client).values()) == {2**21}


@pytest.mark.parametrize("lost", [1, 3])
def test_a_result_that_is_lost_with_its_worker_is_computed_again(
    slides, client, monkeypatch, tmp_path, lost
):
    """The scheduler may forget such a task, and the wait for its result never ends."""
    distributed = pytest.importorskip("distributed")
    result, asked = distributed.Future.result, []

    def late(future, timeout=None):
        found = result(future)
        if found.result == "S-2" and len(asked) < lost:
            asked.append(timeout)
            raise distributed.TimeoutError
        return found

    def called(slide):
        with (tmp_path / slide.container_identifier).open("a") as file:
            file.write("x")
        return slide.container_identifier

    monkeypatch.setattr(distributed.Future, "result", late)
    found = slides.map(called, on=client)
    assert dict(found) == {name: name for name in NAMES}
    assert asked == [calls.PATIENCE * 2**number for number in range(lost)]
    calls_of = {name: len((tmp_path / name).read_text()) for name in NAMES}
    assert calls_of == {name: 1 + lost * (name == "S-2") for name in NAMES}


def test_other_places_are_refused(slides):
    for on, error, match in (
        ("cluster", ValueError, "no dask cluster"),
        ("gpu", ValueError, "on is 'gpu'"),
        (3, TypeError, "on is a int"),
    ):
        with pytest.raises(error, match=match):
            slides.map(total, on=on)
    with pytest.raises(ValueError, match="workers 0"):
        slides.map(total, workers=0)


def test_a_process_answers_until_it_is_closed_and_raises_what_a_function_raises():
    child = Child(lambda value: 10 // value)
    try:
        assert [child(value) for value in (1, 5)] == [10, 2]
        with pytest.raises(ZeroDivisionError):
            child(0)
        assert child(2) == 5
    finally:
        child.close()
    assert not child._process.is_alive()
    assert child._process.exitcode == 0
    with pytest.raises((ChildEndedError, OSError)):
        child(1)
