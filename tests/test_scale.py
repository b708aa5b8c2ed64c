"""The simulation of many slides: arithmetic that is known, and requests of the code itself."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.scale import ACTIONS, Bucket, Job, Workers, count, simulate, write_slides
from tests.support.optional import need

FAST = Bucket(latency=0.1, requests_per_second=1e9)
ONE = Workers(count=1, cores=1, at_once=1, bandwidth=1e6)


def test_one_slide_after_the_other_takes_the_sum():
    job = Job(requests=6, nbytes=500_000, rounds=3, cpu=0.2)
    found = simulate(job, 50, FAST, ONE)
    assert found.seconds == pytest.approx(50 * (3 * 0.1 + 0.5 + 0.2))
    assert (found.requests, found.nbytes, found.refused) == (300, 25_000_000, 0)


def test_slides_beyond_those_simulated_are_in_proportion():
    job = Job(requests=1, nbytes=0, rounds=1, cpu=0.1)
    few, many = (simulate(job, slides, FAST, ONE) for slides in (4000, 1_000_000))
    assert many.seconds == pytest.approx(250 * few.seconds)
    assert many.requests == 1_000_000


@pytest.mark.parametrize(("count", "cores"), [(1, 1), (1, 4), (5, 2)])
def test_work_of_cores_is_shared(count, cores):
    job = Job(requests=1, nbytes=0, rounds=1, cpu=1.0)
    found = simulate(job, 1000, FAST, Workers(count, cores, at_once=32))
    assert found.seconds == pytest.approx(1000 / (count * cores), rel=0.01)


def test_a_worker_has_one_network():
    job = Job(requests=4, nbytes=1_000_000, rounds=1, cpu=0.0)
    found = simulate(job, 200, FAST, dataclasses.replace(ONE, at_once=16))
    assert found.seconds == pytest.approx(200, rel=0.01)


def test_a_bucket_refuses_requests_beyond_its_rate():
    job = Job(requests=10, nbytes=0, rounds=1, cpu=0.0)
    bucket = Bucket(latency=0.01, requests_per_second=100)
    calm = simulate(job, 100, bucket, dataclasses.replace(ONE, at_once=4))
    crowded = simulate(job, 1000, bucket, Workers(count=50, at_once=16))
    assert calm.refused == 0
    assert crowded.refused > 0
    assert crowded.seconds >= 1000 * 10 / 100


def test_a_scheduler_begins_one_task_after_the_other():
    job = Job(requests=0, nbytes=0, rounds=0, cpu=0.001, scheduling=0.01)
    found = simulate(job, 1000, FAST, Workers(count=100, at_once=16))
    assert found.seconds == pytest.approx(1000 * 0.01, rel=0.01)


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    write_slides(folder, 3)
    return folder


@pytest.mark.needs("aiohttp", "virtualizarr")
def test_requests_that_are_simulated_are_those_of_the_code(slides):
    need("fsspec")
    assert count(slides, "open").requests == 4  # the head of each file
    for action in ACTIONS:
        one, three = (count(slides, action, slides=n, latency=0.05) for n in (1, 3))
        assert (one.requests, one.nbytes) == (three.requests, three.nbytes), action
        found = simulate(one, 3, Bucket(latency=0.05), ONE)
        assert found.requests == 3 * three.requests
        assert found.nbytes == 3 * three.nbytes


@pytest.mark.needs("aiohttp")
def test_a_level_is_requested_in_few_requests(slides):
    need("fsspec")
    whole = count(slides, "base level")
    assert 1 <= whole.requests <= 4
    assert 1 <= count(slides, "tile").requests <= 2  # where the frame is, and its bytes
