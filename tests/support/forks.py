"""Runs a function in a forked child."""

from __future__ import annotations

import multiprocessing


def in_child(function):
    """Return what a function gives in a forked child."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=lambda: queue.put(function()))
    child.start()
    child.join(30)
    stuck = child.is_alive()
    if stuck:
        child.kill()
    assert not stuck
    assert child.exitcode == 0
    return queue.get()
