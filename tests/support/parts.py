"""Parts of the suite: tests that start a cluster or a server are marked, and can be left out."""

from __future__ import annotations

_of_test: set[str] | None = None
"""Markers of the test that runs; None where none does."""


def starts(*markers):
    """Return a decorator of fixtures: tests that use the fixture get these markers."""

    def decorated(function):
        function.starts = markers
        return function

    return decorated


def mark(item):
    """Give a test the markers of its fixtures."""
    for found in item._fixtureinfo.name2fixturedefs.values():
        for marker in getattr(found[-1].func, "starts", ()):
            item.add_marker(marker)


def begin(item):
    """Remember the markers of a test that is about to run."""
    global _of_test
    _of_test = {marker.name for marker in item.iter_markers()}


def check(marker):
    """Fail where a test starts something without being marked, so that no part can miss it."""
    assert _of_test is None or marker in _of_test, (
        f"a test that isn't marked as {marker!r}, nor its fixture with starts({marker!r})"
    )
