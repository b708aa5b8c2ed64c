"""A million slides on paper: unit costs of this machine, and a simulation of a bucket and workers.

``python -m benchmarks.scale`` measures what a slide costs, simulates what many slides cost, and
prints the tables of ``docs/scale.md``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import math
import os
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["ACTIONS", "Bucket", "Job", "Outcome", "Workers", "count", "simulate", "write_slides"]

SIMULATED = 4000
"""Upper bound on slides that are simulated; the time of more is in proportion."""
PATIENCE = 1.0
"""Seconds of requests that a bucket puts off before it refuses one (503)."""
MOST_BACKOFF = 20.0
"""Upper bound in seconds on the wait before a refused request is sent again."""


@dataclasses.dataclass(frozen=True)
class Bucket:
    """What a bucket does with a request."""

    latency: float = 0.030
    """Seconds to the first byte."""
    requests_per_second: float = 5500.0
    """Rate beyond which requests are refused: that of S3 for GET and a prefix."""


@dataclasses.dataclass(frozen=True)
class Workers:
    """Processes that share the work."""

    count: int = 1
    cores: int = 1
    at_once: int = 16
    """Slides of a worker that are under way at once."""
    bandwidth: float = 125e6
    """Bytes per second of each: a gigabit per second."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What a slide takes."""

    requests: int
    nbytes: int
    """Bytes of all answers."""
    rounds: int
    """Times that it waits for answers; the requests of a round are under way at once."""
    cpu: float
    """Seconds of a core, after the last answer."""
    scheduling: float = 0.0
    """Seconds of the one scheduler."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What all slides took."""

    seconds: float
    requests: int
    """Requests that were answered."""
    refused: int
    """Requests that were sent again, as the bucket had too many."""
    nbytes: int


def simulate(job: Job, slides: int, bucket: Bucket, workers: Workers) -> Outcome:
    """Return what slides take: each waits, round by round, then for a core of its worker."""
    there = min(slides, max(SIMULATED, 4 * workers.count * workers.at_once))
    rng = random.Random(0)
    cores = [[0.0] * workers.cores for _ in range(workers.count)]
    network = [0.0] * workers.count
    accepting = scheduler = end = 0.0
    waiting, refused, number = there, 0, 0
    of_round = _shares(job.requests, job.rounds)
    events: list[tuple[float, int, int, int, int]] = []  # time, number, worker, round, attempt

    def begin(now: float, worker: int) -> None:
        nonlocal waiting, scheduler, number
        if waiting:
            waiting -= 1
            number += 1
            scheduler = max(scheduler, now) + job.scheduling
            heapq.heappush(events, (scheduler, number, worker, 0, 0))

    for _ in range(workers.at_once):
        for worker in range(workers.count):
            begin(0.0, worker)
    while events:
        now, _, worker, at, attempt = heapq.heappop(events)
        number += 1
        if at < job.rounds:
            if accepting - now > PATIENCE:
                refused += of_round[at]
                pause = rng.uniform(0.5, 1) * min(MOST_BACKOFF, 0.5 * 2**attempt)
                heapq.heappush(events, (now + pause, number, worker, at, attempt + 1))
                continue
            accepting = max(accepting, now) + of_round[at] / bucket.requests_per_second
            first = max(now, accepting - of_round[at] / bucket.requests_per_second)
            arrived = first + bucket.latency
            transfer = job.nbytes * of_round[at] / max(1, job.requests) / workers.bandwidth
            network[worker] = max(network[worker], arrived) + transfer
            heapq.heappush(events, (network[worker], number, worker, at + 1, 0))
            continue
        core = min(range(workers.cores), key=cores[worker].__getitem__)
        done = max(now, cores[worker][core]) + job.cpu
        cores[worker][core] = done
        end = max(end, done)
        begin(done, worker)
    factor = slides / there
    return Outcome(
        end * factor, job.requests * slides, round(refused * factor), job.nbytes * slides
    )


def _shares(total: int, rounds: int) -> list[int]:
    """Return the requests of each round."""
    return [total * (at + 1) // rounds - total * at // rounds for at in range(rounds)]


# -- unit costs, by the code itself ----------------------------------------------------------------

EDGE, TILE = 2048, 256
DOWNSAMPLES = (1, 2, 4, 8)


MEASURED = 300
"""Slides that are held open, to measure the memory of one."""


def write_slides(folder: Path, number: int, edge: int = EDGE) -> None:
    """Write slides of four files."""
    from dicomslide.testing import write_slide

    write_slide(folder / "0", shape=(edge, edge), tile_shape=(TILE, TILE), associated=False,
                downsamples=DOWNSAMPLES, offset_table="extended", container_id="S-0",
                slide_number=0)  # fmt: skip
    for each in range(1, number):
        # other paths: nothing is shared but the disk
        shutil.copytree(folder / "0", folder / str(each), copy_function=os.link)


def _files(place: str) -> list[str]:
    return [f"{place}/level-{level}.dcm" for level in range(len(DOWNSAMPLES))]


def _open(place: str) -> Any:
    import dicomslide

    return dicomslide.open_slide(_files(place), correct_color=False)


def _level(level: int) -> Callable[[Any], Any]:
    return lambda slide: slide.get_image_region((0, 0), level, slide.level(level).size)


ACTIONS: dict[str, Callable[[Any], Any]] = {
    "open": lambda slide: slide,
    "virtualise": lambda slide: slide.to_virtual(),
    "tile": lambda slide: slide.get_volume_images()[0].get_total_pixel_matrix()[30],
    "base level": _level(0),
}
"""What is done with an open slide, by name."""


class _Latency:
    """The gate of a server at which each request waits for the same time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.begun: list[float] = []

    def wait(self, timeout: float) -> None:
        self.begun.append(time.monotonic())
        time.sleep(self.seconds)

    def rounds(self) -> int:
        """Return how often requests began after those before were answered; forget them."""
        found, answered = 0, -math.inf
        for at in sorted(self.begun):
            if at >= answered:
                found += 1
                answered = at + self.seconds
        self.begun.clear()
        return found


@contextlib.contextmanager
def _served(folder: Path, latency: float) -> Iterator[Any]:
    from tests.support.range_server import serving

    with serving(folder) as server:
        server.gate = _Latency(latency)
        yield server


def count(folder: Path, action: str, slides: int = 1, latency: float = 0.2) -> Job:
    """Do an action with slides of an HTTP server one by one; return the requests of one.

    Opening isn't counted with other actions.
    """
    import dicomslide

    requests, nbytes, rounds = [], [], []
    with _served(folder, latency) as server:
        for number in range(slides):
            place = f"{server.url}/{number}"
            slide = None if action == "open" else _open(place)
            server.forget()
            server.gate.rounds()
            ACTIONS[action](_open(place) if slide is None else slide)
            rounds.append(server.gate.rounds())
            requests.append(len(server.requests))
            nbytes.append(server.nbytes)
            dicomslide.clear_all()
    # a machine that is busy takes requests that are sent at once for several rounds
    return Job(max(requests), max(nbytes), min(rounds), 0.0)


def _cpu(folder: Path, action: str, slides: int) -> float:
    """Return the seconds of a core that an action takes, on files of this machine."""
    import dicomslide

    times = []
    with dicomslide.set_options(num_threads=1, frame_cache_bytes=0):  # as of many: nothing is kept
        for number in range(slides):
            place = str(folder / str(number))
            slide = None if action == "open" else _open(place)
            began = time.process_time()
            ACTIONS[action](_open(place) if slide is None else slide)
            times.append(time.process_time() - began)
    dicomslide.clear_all()
    return statistics.median(times[1:])


def _resident() -> int:
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def _memory(folder: Path, slides: int) -> float:
    """Return the bytes that a process grows by for a slide that it holds open."""
    held = [_open(str(folder / str(number))) for number in range(3)]
    before = _resident()
    held += [_open(str(folder / str(number))) for number in range(3, slides)]
    return (_resident() - before) / (len(held) - 3)


def _scheduler(tasks: int = 10_000) -> tuple[float, float]:
    """Return the seconds and the bytes of a task in dask's scheduler and client."""
    from distributed import Client, LocalCluster, wait

    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        wait(client.map(abs, range(500), pure=False))
        before, began = _resident(), time.perf_counter()
        futures = client.map(abs, range(tasks), pure=False)
        wait(futures)
        return (time.perf_counter() - began) / tasks, (_resident() - before) / tasks


def _repository(folder: Path) -> tuple[float, float]:
    """Return the seconds and the bytes of a chunk in an icechunk repository, by a large array."""
    import dicomslide
    from dicomslide.testing import write_slide
    from dicomslide.virtual import to_icechunk

    write_slide(folder / "large", shape=(16_384, 16_384), tile_shape=(64, 64), downsamples=(1,),
                associated=False, drawing="position")  # fmt: skip
    slide = dicomslide.open_slide(folder / "large")
    chunks = (16_384 // 64) ** 2
    began = time.process_time()
    to_icechunk({"large": slide}, folder / "repository")
    seconds = time.process_time() - began
    size = sum(p.stat().st_size for p in (folder / "repository").rglob("*") if p.is_file())
    return seconds / chunks, size / chunks


# -- a million slides ------------------------------------------------------------------------------

SLIDES = 1_000_000
FRAMES, FRAME_BYTES = 54_000, 15_000
"""Frames of a slide of four levels, 51,200² pixels at the base, and bytes of one."""
FRAMES_PER_REQUEST, AT_ONCE = 100, 8
"""Frames of a request for many, and requests of a slide that are under way at once."""
COUNTS = (1, 10, 100, 1000)


def main() -> None:
    """Measure, simulate, print."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_slides(folder, MEASURED)
        units = {
            action: dataclasses.replace(count(folder, action, 3), cpu=_cpu(folder, action, 30))
            for action in ACTIONS
        }
        memory = _memory(folder, MEASURED)
        frames = (EDGE // TILE) ** 2
        seconds_of_chunk, bytes_of_chunk = _repository(folder)
    seconds_of_task, bytes_of_task = _scheduler()
    print("| of a slide | requests | rounds | KB | ms of a core |\n|---|---|---|---|---|")
    for action, job in units.items():
        row = [action, job.requests, job.rounds, f"{job.nbytes / 1e3:,.0f}", f"{job.cpu * 1e3:.1f}"]
        print("|", " | ".join(map(str, row)), "|")
    print(
        f"\nan open slide holds {memory / 1e3:,.0f} KB; a task of dask's scheduler takes"
        f" {seconds_of_task * 1e3:.2f} ms and {bytes_of_task / 1e3:.1f} KB; a chunk of a"
        f" repository takes {seconds_of_chunk * 1e6:.0f} µs and {bytes_of_chunk:.0f} bytes\n"
    )
    whole, opened = units["base level"], units["open"]
    requests = FRAMES // FRAMES_PER_REQUEST
    virtual = dataclasses.replace(
        _after(opened, units["virtualise"]),
        cpu=opened.cpu + units["virtualise"].cpu + FRAMES * seconds_of_chunk,
    )
    per_frame = whole.cpu / frames
    jobs = {
        "open, by files": opened,
        "a tile, by an index": dataclasses.replace(units["tile"], cpu=opened.cpu),
        "a level of 2,048²": _after(opened, Job(1, 64 * FRAME_BYTES, 1, 64 * per_frame)),
        "virtualise, extended offset tables": virtual,
        "all pixels": Job(requests, FRAMES * FRAME_BYTES, requests // AT_ONCE, FRAMES * per_frame),
    }
    heads = "".join(f" h, {n:,} workers |" for n in COUNTS)
    print(f"| of {SLIDES:,} slides | 10⁶ requests | TB |{heads} refused at the last |")
    print("|---|---|---|" + "---|" * len(COUNTS) + "---|")
    for what, job in jobs.items():
        job = dataclasses.replace(job, scheduling=seconds_of_task)
        found = [simulate(job, SLIDES, Bucket(), Workers(count=n)) for n in COUNTS]
        cells = [f"{found[0].requests / 1e6:,.0f}", f"{found[0].nbytes / 1e12:,.2f}"]
        cells += [f"{each.seconds / 3600:,.2g}" for each in found]
        share = found[-1].refused / max(1, found[-1].refused + found[-1].requests)
        print(f"| {what} | {' | '.join(cells)} | {share:.0%} |")


def _after(first: Job, then: Job) -> Job:
    """Return both jobs, one after the other."""
    sums = (getattr(first, f.name) + getattr(then, f.name) for f in dataclasses.fields(Job))
    return Job(*sums)


if __name__ == "__main__":
    main()
