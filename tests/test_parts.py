"""Parts of the suite: no test starts a cluster or a server without being marked as such."""

from __future__ import annotations

import pytest

from tests.support import parts
from tests.support.moto_bucket import serving_bucket
from tests.support.workers import some_workers


@pytest.fixture
@parts.starts("cluster")
def started():
    parts.check("cluster")


def test_markers_of_a_fixture_are_those_of_its_tests(started, request):
    assert [marker.name for marker in request.node.iter_markers()] == ["cluster"]
    parts.check("cluster")


@pytest.mark.parametrize("start", [lambda: some_workers(1), lambda: serving_bucket("bucket")])
def test_what_is_not_marked_is_not_started(start):
    with pytest.raises(AssertionError, match="isn't marked"), start():
        pass
