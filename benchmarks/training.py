"""Tiles as models are trained with: batches of neighbours, a DataLoader, many slides at random."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.targets import Target
from benchmarks.tasks import Draw, Fresh, Warm
from benchmarks.tiles import SLIDES

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.results import Results

__all__ = ["TRAINING_TARGETS", "TRAINING_TASKS"]

SIDE, OF_MODELS = 8, 224
"""Neighbours along an edge of a square of tiles, and rows and columns of each."""
NEIGHBOURS = "64 tiles of 224² side by side"
PEERS = ("wsidicom", "openslide", "fastslide")
FORKED = PEERS[:2]
"""Readers that work in a forked process: of fastslide, which has threads of its own, it hangs."""
LOADERS = ((0, None), (1, "fork"), (2, "fork"), (1, "spawn"), (2, "spawn"))
"""Workers of a DataLoader, and how they are started."""
OF_LOADERS = 1_024
"""Tiles that a DataLoader gives."""
HUNDRED, OF_HUNDRED, SMALL = 100, 2_000, 256
"""Slides, tiles over them, and rows and columns of each tile."""
OVER_SLIDES = "tiles of 256² over 100 slides, at random"
HOW_OFTEN = ("with opening them", "all open")
MOST_MIB = 60


def _neighbours(draw: Draw) -> dict[str, Any]:
    """Return a square of tiles side by side, row by row."""
    side = min(SIDE, draw.edge // OF_MODELS)
    row, column = draw.rng.integers(0, draw.edge - side * OF_MODELS + 1, 2).tolist()
    at = [
        [row + down * OF_MODELS, column + right * OF_MODELS]
        for down in range(side)
        for right in range(side)
    ]
    return {"at": at, "size": OF_MODELS}


def _of_hundred(draw: Draw) -> dict[str, Any]:
    at = draw.regions(OF_HUNDRED, SMALL)["at"]
    return {"at": [[int(draw.rng.integers(0, HUNDRED)), *place] for place in at], "size": SMALL}


def _loader(workers: int, start: str | None) -> str:
    how = "no worker" if not workers else f"{workers} worker{'s' * (workers > 1)} by {start}"
    return f"tiles of {OF_MODELS}² through a DataLoader, {how}"


def _batches(slide: str) -> list[Warm]:
    return [
        Warm(
            f"{NEIGHBOURS}, {how}",
            slide,
            "tiles_of_dataset",
            ("dicomslide", "dicomslide, no cache"),
            lambda draw, how=how: _neighbours(draw) | {"together": how == "together"},
        )
        for how in ("one by one", "together")
    ]


def _together(slide: str, tile: str) -> list[Target]:
    return [
        Target(
            f"{NEIGHBOURS} by __getitems__, frames of {tile}²",
            f"one by one, {beside}",
            0.6,
            lambda found, reader=reader: (
                found.values(f"{slide}: {NEIGHBOURS}, together", reader)
                / found.values(f"{slide}: {NEIGHBOURS}, one by one", reader)
            ),
        )
        for beside, reader in (
            ("no frame kept", "dicomslide, no cache"),
            ("frames kept in between", "dicomslide"),
        )
    ]


def _peers(start: str | None) -> tuple[str, ...]:
    return FORKED if start == "fork" else PEERS


def _times_of(task: str, *peers: str) -> Callable[[Results], Any]:
    return lambda found: found.best(task, peers) / found.values(task, "dicomslide")


def _memory_of(task: str) -> Callable[[Results], Any]:
    return lambda found: found.values(task, "dicomslide", "worker_MiB")


TRAINING_TASKS = (
    *(task for slide, _ in SLIDES for task in _batches(slide)),
    *(
        Warm(
            _loader(workers, start),
            "jpeg-256",
            "loaded_tiles",
            ("dicomslide", *_peers(start)),
            lambda draw, workers=workers, start=start: (
                draw.regions(OF_LOADERS, OF_MODELS) | {"workers": workers, "start": start}
            ),
            forget=True,
            slow=True,
        )
        for workers, start in LOADERS
    ),
    Fresh(
        "hundred",
        (
            ("", "load_more", lambda draw: {}),
            (f"{OVER_SLIDES}, {HOW_OFTEN[0]}", "open_and_read_each", _of_hundred),
            (f"{OVER_SLIDES}, {HOW_OFTEN[1]}", "tiles_of_each", _of_hundred),
        ),
        ("dicomslide", *PEERS),
        slow=True,
    ),
)
TRAINING_TARGETS = (
    *(target for slide, tile in SLIDES for target in _together(slide, tile)),
    *(
        Target(
            f"{_loader(workers, start)}, tiles a second",
            "the best of wsidicom, openslide, fastslide",
            1.1,
            _times_of(f"jpeg-256: {_loader(workers, start)}", *_peers(start)),
            at_least=True,
        )
        for workers, start in LOADERS
    ),
    *(
        Target(
            f"{_loader(workers, start)}, more memory of a worker",
            "",
            MOST_MIB,
            _memory_of(f"jpeg-256: {_loader(workers, start)}"),
            "MiB",
        )
        for workers, start in LOADERS[1:]
    ),
    *(
        Target(
            f"{OVER_SLIDES}, {how}",
            "the best of wsidicom, openslide, fastslide, which keep all open",
            0.7,
            lambda found, task=f"hundred: {OVER_SLIDES}, {how}": (
                found.values(task, "dicomslide") / found.best(task, PEERS)
            ),
        )
        for how in HOW_OFTEN
    ),
)
