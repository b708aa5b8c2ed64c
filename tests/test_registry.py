"""Values that several threads want at once, and values that are forgotten while they are made."""

from __future__ import annotations

import secrets
import subprocess
import sys
import threading

import pytest

import dicomslide
from dicomslide.process import budget
from dicomslide.process.frame_cache import FrameCache
from dicomslide.process.registry import Registry

LONG = 60


@pytest.fixture
def values():
    return Registry(8, "values of a test")


class Maker:
    """Makes numbers, one after the other; each begins at once and ends when its gate is opened."""

    def __init__(self):
        self.gates = []
        self.lock = threading.Condition()
        self.at_once = self.most_at_once = 0

    def __call__(self):
        with self.lock:
            gate = threading.Event()
            self.gates.append(gate)
            number = len(self.gates)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            self.lock.notify_all()
        assert gate.wait(LONG)
        with self.lock:
            self.at_once -= 1
        if number == 1 and self.first_fails:
            raise ZeroDivisionError
        return number

    first_fails = False

    def wait_for(self, number):
        """Wait until so many values have begun to be made."""
        with self.lock:
            assert self.lock.wait_for(lambda: len(self.gates) >= number, LONG)


class Key:
    """A key of which it is known whether a thread has asked for it."""

    def __init__(self):
        self.is_looked_up = threading.local()
        self.lookups = threading.Semaphore(0)

    def __hash__(self):
        if not getattr(self.is_looked_up, "value", False):
            self.is_looked_up.value = True
            self.lookups.release()
        return 1


class Asking(threading.Thread):
    """A thread that asks for a value, and waits for the one that makes it, if there is one."""

    def __init__(self, values, key, make):
        super().__init__(daemon=True)
        self.values, self.key, self.make = values, key, make
        self.found = None
        self.start()
        assert key.lookups.acquire(timeout=LONG)
        values.discard("another key")  # which takes the lock under which the thread looks it up

    def run(self):
        try:
            self.found = self.values.get(self.key, self.make)
        except ZeroDivisionError as error:
            self.found = error

    def end(self):
        self.join(LONG)
        assert not self.is_alive()
        return self.found


@pytest.fixture
def key():
    key = Key()
    hash(key)  # of this thread
    assert key.lookups.acquire(timeout=LONG)
    return key


def test_after_a_failure_the_value_is_made_by_one_thread_at_a_time(values, key):
    make = Maker()
    make.first_fails = True
    first = Asking(values, key, make)
    make.wait_for(1)
    waiting = Asking(values, key, make)
    make.gates[0].set()
    assert isinstance(first.end(), ZeroDivisionError)
    make.wait_for(2)  # by the thread that waited
    newcomer = Asking(values, key, make)
    make.gates[1].set()
    assert waiting.end() == newcomer.end() == 2
    assert make.most_at_once == 1


@pytest.mark.parametrize(
    "forget",
    [
        lambda values, key: dicomslide.clear_all(values.kind),
        lambda values, key: values.clear(),
        lambda values, key: values.discard(key),
    ],
    ids=["clear_all", "clear", "discard"],
)
def test_a_value_whose_key_is_forgotten_while_it_is_made_is_not_cached(values, key, forget):
    make = Maker()
    first = Asking(values, key, make)
    make.wait_for(1)
    waiting = Asking(values, key, make)
    forget(values, key)
    newcomer = Asking(values, key, make)
    make.wait_for(2)  # the newcomer doesn't wait for what is forgotten
    make.gates[0].set()
    assert first.end() == 1
    assert key not in values
    make.gates[1].set()
    assert newcomer.end() == waiting.end() == 2
    assert values.get(key, make) == 2


def test_nothing_is_cached_any_more_under_a_name_that_was_forgotten(values):
    scope = secrets.token_hex(8)
    frames = FrameCache(lambda: 1000, "frames of a test")
    frames.put((scope, "image"), 0, b"before")

    def make():
        budget.forget(scope)
        frames.put((scope, "image"), 1, b"frame under way")
        return "value"

    assert values.get(("of", (scope, "study")), make) == "value"
    assert len(values) == 0
    assert len(frames) == 0
    frames.put(("another", "image"), 0, b"frame")
    assert len(frames) == 1


KINDS_OF_THE_PACKAGE = """
import importlib, pkgutil, dicomslide
for module in pkgutil.walk_packages(dicomslide.__path__, "dicomslide."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ImportError:  # without the extra that it needs
            pass
from dicomslide.process import budget
print(sorted({member.kind for member in budget.BUDGET.members} - budget.KINDS))
"""


def test_kinds_are_those_of_the_package_and_no_others_are_cleared():
    done = subprocess.run(
        [sys.executable, "-c", KINDS_OF_THE_PACKAGE], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
    with pytest.raises(ValueError, match=r"decoded frame'\].*'decoded frames'"):
        dicomslide.clear_all("decoded frame")
