"""Tiles as pipelines read them: in raster order, shuffled, again, scaled, written as files.

Each reader does so by its plainest call, with the cache that it has if nothing is said (fastslide:
its global one), which is empty at first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.targets import Target
from benchmarks.tasks import BOTH_WSIDICOM, Draw, Warm

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.results import Results

__all__ = ["PASSES", "SLIDES", "TILE_TARGETS", "TILE_TASKS"]

SIZE = 448
"""Rows and columns of a tile: twice those that models take."""
ROWS = 3
"""Rows of tiles that are read one after the other."""
STEPS, STEP = 64, 128
"""Positions of a window, and the pixels from one to the next."""
WINDOW = 512
AGAIN = 2_048

SLIDES = (("jpeg-256", "256"), ("jpeg-512", "512"), ("jpeg-1024", "1,024"))
PEERS = (*BOTH_WSIDICOM, "openslide", "fastslide")
READERS = ("dicomslide", "dicomslide, 1 thread", *PEERS)
PAIRED = ("wsidicom", "openslide", "fastslide")
PAIRS = tuple(
    f"{reader}, 2 processes" for reader in ("dicomslide", "dicomslide, 1 thread", *PAIRED)
)

HOW = (
    ("tiles of 448², in raster order", "regions", 0.65),
    ("tiles of 448², in raster order, scaled to 224²", "scaled_regions", 0.75),
    ("tiles of 448², in raster order, written as JPEG", "written_regions", 0.85),
)


def _raster(draw: Draw) -> dict[str, Any]:
    """Return some rows of tiles, from one edge of the level to the other."""
    size = min(SIZE, draw.edge // 2)
    rows = min(ROWS, draw.edge // size)
    top = int(draw.rng.integers(0, draw.edge - rows * size + 1))
    at = [
        [row, column]
        for row in range(top, top + rows * size, size)
        for column in range(0, draw.edge - size + 1, size)
    ]
    return {"at": at, "size": size}


def _shuffled(draw: Draw) -> dict[str, Any]:
    arguments = _raster(draw)
    draw.rng.shuffle(arguments["at"])
    return arguments


def _moving(draw: Draw) -> dict[str, Any]:
    """Return a window that moves along a row."""
    size = min(WINDOW, draw.edge // 4)
    steps = min(STEPS, (draw.edge - size) // STEP)
    row, first = draw.rng.integers(0, draw.edge - size - steps * STEP + 1, 2).tolist()
    return {"at": [[row, first + step * STEP] for step in range(steps)], "size": size}


def _box(draw: Draw) -> dict[str, Any]:
    return draw.regions(1, AGAIN)


def _tasks(slide: str) -> list[Warm]:
    return [
        *(
            # caches are empty at first: the largest would hold the level after a few rounds
            Warm(name, slide, operation, READERS, arguments, forget=True)
            for name, operation, arguments in (
                *((name, operation, _raster) for name, operation, _ in HOW),
                ("tiles of 448², shuffled", "regions", _shuffled),
                ("region of 2,048², again", "regions_again", _box),
                ("window of 512² that moves by 128", "regions", _moving),
            )
        ),
        *(
            Warm(f"{name}, two processes", slide, operation, PAIRS, arguments, forget=True)
            for name, operation, arguments in (
                *((name, operation, _raster) for name, operation, _ in HOW),
                ("tiles of 448², shuffled", "regions", _shuffled),
            )
        ),
        Warm(
            "the frames under tiles of 448², each once",
            slide,
            "frames_once",
            ("decoder", "decoder, 2 threads"),
            _raster,
        ),
    ]


def _beside(task: str, *others: str) -> Callable[[Results], Any]:
    return lambda found: found.values(task, "dicomslide") / found.best(task, others)


def _targets(slide: str, tile: str) -> list[Target]:
    best = "the best of wsidicom, openslide, fastslide"
    rows = [
        *((name, best, limit, PEERS) for name, _, limit in HOW),
        ("tiles of 448², shuffled", best, 0.95, PEERS),
        ("region of 2,048², again", "wsidicom with its cache", 0.15, BOTH_WSIDICOM),
        ("window of 512² that moves by 128", "wsidicom with its cache", 0.5, BOTH_WSIDICOM),
    ]
    return [
        Target(f"{name}, frames of {tile}²", beside, limit, _beside(f"{slide}: {name}", *others))
        for name, beside, limit, others in rows
    ] + [
        Target(
            f"{name}, frames of {tile}², two processes",
            best,
            limit,
            lambda found, task=f"{slide}: {name}, two processes": (
                found.best(task, PAIRS[:2]) / found.best(task, PAIRS[2:])
            ),
        )
        for name, limit in (
            *((name, limit) for name, _, limit in HOW), ("tiles of 448², shuffled", 0.95)
        )
    ]  # fmt: skip


TILE_TASKS = tuple(task for slide, _ in SLIDES for task in _tasks(slide))
PASSES = tuple(
    task for task in TILE_TASKS if task.readers is READERS and task.name.startswith("tiles")
)
"""Those that read many tiles in one process."""
TILE_TARGETS = tuple(target for slide, tile in SLIDES for target in _targets(slide, tile))
