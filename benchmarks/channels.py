"""Channels and focal planes: unmixing, fields of all channels, cells in tables, opening."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.targets import Target
from benchmarks.tasks import Draw, Fresh, Warm

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.results import Results

__all__ = ["CHANNEL_TARGETS", "CHANNEL_TASKS"]

READER, DECODER = "dicomslide, stacks", "decoder, stacks, 2 threads"
FIELD = "field of 512² of all channels"
FOCUS = "argmax of a field of 512² over planes"
MEAN, TABLE, STATISTICS = "plain means of cells", "cell_table", "segment_statistics"
ADVISED = ("auto", "all channels")
CHUNKS: dict[str, Any] = {
    "auto": "auto",
    "all channels": {"channel": -1, "z": -1},
    "all channels of 2 × 2 frames": {"channel": -1, "y": 512, "x": 512},
}
"""Chunks for unmixing."""


def _nothing(draw: Draw) -> dict[str, Any]:
    return {}


def _unmixed(chunks: str) -> Fresh:
    name = f"unmixed by xr.dot, chunks: {chunks}"
    given = {"chunks": CHUNKS[chunks]}
    steps = (
        ("", "load_more", _nothing),
        ("", "open", _nothing),
        (name, "unmixed", lambda _: given),
    )
    return Fresh("forty", steps, (READER,), slow=True)


def _ratio_to_best(chunks: str, quantity: str) -> Callable[[Results], Any]:
    """Compare with the fastest chunks, or the memory of these."""

    def value(found: Results) -> Any:
        import numpy as np

        def of(other: str, quantity: str) -> Any:
            return found.values(f"forty: unmixed by xr.dot, chunks: {other}", READER, quantity)

        best = min(CHUNKS, key=lambda other: float(np.median(of(other, "ms"))))
        return of(chunks, quantity) / of(best, quantity)

    return value


def _beside(task: str, other: str, reader: str = READER) -> Callable[[Results], Any]:
    return lambda found: found.values(task, READER) / found.values(other, reader)


def _opened(slide: str) -> Fresh:
    steps = (("", "load_more", _nothing), ("open it, with its tree", "open_tree", _nothing))
    return Fresh(slide, steps, (READER,))


def _milliseconds(name: str, limit: int, slide: str) -> Target:
    task = f"{slide}: open it, with its tree"
    return Target(name, "", limit, lambda found: found.values(task, READER), "ms")


CHANNEL_TASKS = (
    *map(_unmixed, CHUNKS),
    Warm(
        FIELD, "forty", "fields", (READER, DECODER), lambda draw: draw.regions(3, 512), forget=True
    ),
    Warm(
        FOCUS, "planes", "focus", (READER, DECODER), lambda draw: draw.regions(6, 512), forget=True
    ),
    *(
        Warm(name, "four", operation, (READER,), slow=True, forget=True)
        for name, operation in (
            (MEAN, "mean_of_cells"),
            (STATISTICS, "cell_statistics"),
            (TABLE, "cell_table"),
        )
    ),
    *map(_opened, ("forty-in-one", "forty-files", "cells")),
)
CHANNEL_TARGETS = (
    *(
        Target(
            f"40 channels × 5,120² unmixed by xr.dot, chunks: {chunks}, {what}",
            "the fastest chunks",
            limit,
            _ratio_to_best(chunks, quantity),
        )
        for chunks in ADVISED
        for what, quantity, limit in (("time", "ms", 1.1), ("more memory", "more_MiB", 1.5))
    ),
    Target(
        "field of 512² in 40 channels",
        "bare decoder, two threads",
        1.2,
        _beside(f"forty: {FIELD}", f"forty: {FIELD}", DECODER),
    ),
    Target(
        "argmax of a field of 512² over 15 planes",
        "bare decoder, two threads, with the same arithmetic place by place",
        1.2,
        _beside(f"planes: {FOCUS}", f"planes: {FOCUS}", DECODER),
    ),
    *(
        Target(
            f"65,535 labels × 4 channels over 20,480², {name}",
            "plain means of the same arrays",
            2.0,
            _beside(f"four: {name}", f"four: {MEAN}"),
        )
        for name in (STATISTICS, TABLE)
    ),
    _milliseconds("open 40 channels × 20,480² in one file", 250, "forty-in-one"),
    _milliseconds("open 40 channels × 20,480² in 40 files", 250, "forty-files"),
    _milliseconds("open a slide with a label map of 20,000 segments", 500, "cells"),
)
