"""State machines: the registry, the frame cache and the request batcher beside plain models."""

from __future__ import annotations

import threading
from collections import OrderedDict

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import dicomslide
from dicomslide.backends.batching.gather import Gatherer
from dicomslide.options import get_options
from dicomslide.process.budget import cached_bytes
from dicomslide.process.frame_cache import FrameCache
from dicomslide.process.registry import Registry

KEYS = st.integers(0, 7)
SIZES = st.integers(0, 400)
IMAGES = st.sampled_from(["a", "b", ("c", "part")])


class Caches(RuleBasedStateMachine):
    """Two registries and a frame cache under one budget; the model is one dict in order of use."""

    NUMBER = 4
    FRAME_BYTES = 900

    def __init__(self):
        super().__init__()
        dicomslide.clear_all()
        self.kinds = {
            "first": Registry(self.NUMBER, "first", len),
            "second": Registry(self.NUMBER, "second", len),
        }
        self.files = Registry(self.NUMBER, "files")
        self.frame_bytes = self.FRAME_BYTES
        self.frames = FrameCache(lambda: self.frame_bytes, "frames")
        self.budget = 10**6
        self.options = []
        self.model = OrderedDict()
        self.model_files = OrderedDict()
        self.set_budget(1500)

    def teardown(self):
        while self.options:
            self.options.pop().__exit__(None, None, None)
        dicomslide.clear_all()

    # -- the model --

    def total(self, kind=None):
        return sum(len(value) for key, value in self.model.items() if kind in (None, key[0]))

    def model_put(self, key, value):
        self.model.pop(key, None)
        if len(value) > self.budget:
            return
        self.model[key] = value
        same = [each for each in self.model if each[0] == key[0]]
        if key[0] != "frames":
            for each in same[: max(0, len(same) - self.NUMBER)]:
                del self.model[each]
        self.model_trim()

    def model_trim(self):
        while self.total("frames") > self.frame_bytes:
            del self.model[next(key for key in self.model if key[0] == "frames")]
        while self.total() > self.budget:
            # what weighs nothing frees nothing, but is dropped as the oldest of its kind
            kinds = {key[0] for key in self.model if self.total(key[0])}
            del self.model[next(key for key in self.model if key[0] in kinds)]

    # -- what is done --

    @rule(budget=st.integers(0, 2000))
    def set_budget(self, budget):
        self.options.append(dicomslide.set_options(memory_budget=budget))
        self.budget = budget
        self.model_trim()

    @rule(kind=st.sampled_from(["first", "second"]), key=KEYS, size=SIZES)
    def get(self, kind, key, size):
        made = []

        def make():
            made.append(bytes(size))
            return made[-1]

        value = self.kinds[kind].get(key, make)
        known = self.model.get((kind, key))
        assert (known is None) == bool(made)
        if known is None:
            assert value is made[0]
            self.model_put((kind, key), value)
        else:
            assert value == known
            self.model.move_to_end((kind, key))

    @rule(kind=st.sampled_from(["first", "second"]), key=KEYS, size=SIZES)
    def put(self, kind, key, size):
        self.kinds[kind].put(key, bytes(size))
        self.model_put((kind, key), bytes(size))

    @rule(kind=st.sampled_from(["first", "second"]), key=KEYS)
    def discard(self, kind, key):
        self.kinds[kind].discard(key)
        self.model.pop((kind, key), None)

    @rule(kind=st.sampled_from(["first", "second"]), key=KEYS)
    def fail(self, kind, key):
        if (kind, key) not in self.model:
            with pytest.raises(ZeroDivisionError):
                self.kinds[kind].get(key, lambda: 1 // 0)

    @rule(key=KEYS)
    def open_file(self, key):
        self.files.get(key, object)
        self.model_files[key] = None
        self.model_files.move_to_end(key)
        while len(self.model_files) > self.NUMBER:
            self.model_files.popitem(last=False)

    @rule(image=IMAGES, frame=KEYS, size=SIZES, most=st.sampled_from([None, 0, 1, 3]))
    def put_frame(self, image, frame, size, most):
        self.frames.put(image, frame, bytes(size), most)
        key = "frames", image, frame
        if key in self.model or most == 0 or size > min(self.frame_bytes, self.budget):
            return
        self.model[key] = bytes(size)
        same = [each for each in self.model if each[:2] == key[:2]]
        for each in same[: 0 if most is None else max(0, len(same) - most)]:
            del self.model[each]
        self.model_trim()

    @rule(image=IMAGES, frames=st.lists(KEYS, unique=True))
    def get_frames(self, image, frames):
        found = self.frames.get(image, frames)
        keys = [("frames", image, frame) for frame in frames]
        assert found == {key[2]: self.model[key] for key in keys if key in self.model}
        for key in keys:
            if key in self.model:
                self.model.move_to_end(key)

    @rule(image=IMAGES, frames=st.lists(KEYS))
    def pop_frames(self, image, frames):
        keys = [
            key
            for frame in dict.fromkeys(frames)
            if (key := ("frames", image, frame)) in self.model
        ]
        assert self.frames.pop(image, frames) == {key[2]: self.model.pop(key) for key in keys}

    @rule(size=st.integers(0, 1200))
    def bound_frames(self, size):
        self.frame_bytes = size
        dicomslide.set_options(num_threads=get_options().num_threads)  # caches are told
        self.model_trim()

    @rule(part=st.sampled_from(["a", "part"]))
    def forget(self, part):
        self.frames.forget(part)
        for key in list(self.model):
            if key[0] == "frames" and (key[1] == part or part in key[1]):
                del self.model[key]

    @rule(kind=st.sampled_from(["first", "second", "frames", None]))
    def clear(self, kind):
        dicomslide.clear_all(*([] if kind is None else [kind]))
        for key in list(self.model):
            if kind in (None, key[0]):
                del self.model[key]
        if kind is None:
            self.model_files.clear()

    # -- what holds at any time --

    @invariant()
    def holds_the_same(self):
        for kind, registry in self.kinds.items():
            there = {key for key in range(8) if key in registry}
            assert there == {key[1] for key in self.model if key[0] == kind}
            assert cached_bytes()[kind] == self.total(kind)
        assert self.frames.nbytes == self.total("frames")
        assert len(self.frames) == sum(key[0] == "frames" for key in self.model)
        assert {key for key in range(8) if key in self.files} == set(self.model_files)
        assert sum(cached_bytes().values()) <= self.budget


class Batches(RuleBasedStateMachine):
    """Threads that ask one batcher, one step at a time; the model is the set of what each wants.

    A request is under way until the machine answers it, so that others find it, and may fail.
    Rules have no preconditions: how many requests there are depends on which thread asks first.
    """

    MOST = 8
    READERS = 6

    def __init__(self):
        super().__init__()
        self.gatherer = Gatherer(None)
        self.lock = threading.Condition()
        self.asked = []
        """Requests under way: what they ask for, and their answers."""
        self.readers = []
        self.fails = False

    def fetch(self, wanted):
        assert wanted == sorted(set(wanted)), "asked for in order, and once"
        answer = []
        with self.lock:
            self.asked.append((tuple(wanted), answer))
            self.lock.notify_all()
            assert self.lock.wait_for(lambda: answer, 30)
        if answer[0]:
            raise OSError("the server fails")
        return {index: b"%d" % index for index in wanted}

    def read(self, wanted, outcome):
        try:
            found = self.gatherer.read(wanted, self.fetch, most=self.MOST, most_ahead=0)
            result = {index: found[index] for index in wanted}
        except OSError as error:
            result = error
        with self.lock:
            outcome.append(result)
            self.lock.notify_all()

    def waiting(self):
        """Return what is wanted by each reader that has no answer yet."""
        return [wanted for _, wanted, outcome in self.readers if not outcome]

    def is_at_rest(self):
        """Whether each reader has its answer, or waits for a request under way."""
        under_way = {index for wanted, _ in self.asked for index in wanted}
        return all(under_way.intersection(wanted) for wanted in self.waiting())

    def settle(self):
        with self.lock:
            assert self.lock.wait_for(self.is_at_rest, 30), "a reader waits for nothing"

    @rule(wanted=st.sets(st.integers(0, 9), min_size=1, max_size=5))
    def ask(self, wanted):
        if len(self.waiting()) == self.READERS:
            return
        outcome = []
        thread = threading.Thread(target=self.read, args=(sorted(wanted), outcome), daemon=True)
        self.readers.append((thread, wanted, outcome))
        thread.start()
        self.settle()

    @rule(at=st.integers(0, 5), fails=st.sampled_from([False, False, False, True]))
    def answer(self, at, fails):
        with self.lock:
            if not self.asked:
                return
            _, answer = self.asked.pop(at % len(self.asked))
            answer.append(fails)
            self.fails |= fails
            self.lock.notify_all()
        self.settle()

    @invariant()
    def nothing_is_asked_for_twice(self):
        if self.fails:
            return  # what failed is asked for again, by each for itself
        with self.lock:
            asked = [index for wanted, _ in self.asked for index in wanted]
        assert len(asked) == len(set(asked))

    @invariant()
    def who_has_an_answer_has_what_it_asked_for(self):
        for _, wanted, outcome in self.readers:
            if outcome and not isinstance(outcome[0], OSError):
                assert outcome[0] == {index: b"%d" % index for index in wanted}
            if outcome and isinstance(outcome[0], OSError):
                assert self.fails

    def teardown(self):
        while self.waiting():
            self.settle()
            with self.lock:
                while self.asked:
                    self.asked.pop()[1].append(False)
                self.lock.notify_all()
                self.lock.wait_for(lambda: self.asked or not self.waiting(), 30)
        for thread, _, _ in self.readers:
            thread.join(30)
            assert not thread.is_alive()
        self.who_has_an_answer_has_what_it_asked_for()
        assert not self.gatherer._sent, "no batch is left"


TestCaches = Caches.TestCase
TestCaches.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestBatches = Batches.TestCase
TestBatches.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)
