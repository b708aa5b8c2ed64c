"""A clock that stands still until somebody sleeps: waits and deadlines are exact."""

from __future__ import annotations

import time

from dicomslide.backends.net import policy


class FakeClock:
    """Time in seconds from 0, or from now for dates; `waits` are all that were slept."""

    def __init__(self, jitter=1.0):
        self.now = 0.0
        self.began = time.time()
        self.waits = []
        self.jitter = jitter

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.waits.append(seconds)
        self.now += seconds

    def clock(self):
        return policy.Clock(
            monotonic=self,
            time=lambda: self.began + self.now,
            sleep=self.sleep,
            jitter=lambda: self.jitter,
        )

    def policy(self, **bounds):
        return policy.Policy(clock=self.clock(), **bounds)
