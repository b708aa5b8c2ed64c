"""Targets: each row names two measures to compare, and the ratio to reach."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from benchmarks.server import ROUND_TRIP
from benchmarks.tasks import BOTH_WSIDICOM, BUDGET

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.results import Results

__all__ = ["TARGETS", "Target"]


@dataclasses.dataclass(frozen=True)
class Target:
    """A row of the table of targets."""

    name: str
    beside: str
    """Measure to compare with; None for a value with a unit."""
    limit: float
    value: Callable[[Results], Any]
    """Returns the value of each round."""
    unit: str = "×"
    at_least: bool = False

    def is_reached(self, value: float) -> bool:
        """Whether a value reaches the target."""
        return value >= self.limit if self.at_least else value <= self.limit


def _against(
    name: str, beside: str, limit: float, task: str, *others: str, reader: str = "dicomslide"
) -> Target:
    """Compare readers at one task."""
    return Target(
        name, beside, limit, lambda found: found.values(task, reader) / found.best(task, others)
    )


def _between(
    name: str,
    beside: str,
    limit: float,
    task: str,
    other: str,
    reader: str,
    other_reader: str = "",
) -> Target:
    """Compare two tasks."""
    return Target(
        name,
        beside,
        limit,
        lambda found: found.values(task, reader) / found.values(other, other_reader or reader),
    )


def _absolute(name: str, limit: float, unit: str, task: str, reader: str = "dicomslide") -> Target:
    quantity = "more_MiB" if "more memory" in name else unit
    return Target(name, "", limit, lambda found: found.values(task, reader, quantity), unit)


def _regions() -> list[Target]:
    first = [
        _against(f"{size}² region", name, limit, f"jpeg-256: region of {size}²", *others)
        for size, limits in (("512", (0.90, 0.35)), ("2,048", (0.90, 0.25)))
        for name, limit, others in (
            ("wsidicom at its best", limits[0], (*BOTH_WSIDICOM, "wsidicom, Pillow")),
            ("openslide", limits[1], ("openslide",)),
        )
    ]
    slides = {
        "jpeg-512": "frames of 512²",
        "jpeg-1024": "frames of 1,024²",
        "jpeg-2000": "JPEG 2000",
        "jpeg-ls-8": "JPEG-LS, 8 bit",
        "jpeg-ls-16": "JPEG-LS, 16 bit",
    }
    return [
        *first,
        *(
            _against(
                "10,000² region, two threads",
                name,
                limit,
                "jpeg-256: region of 10,000²",
                other,
                reader="dicomslide, 2 threads",
            )
            for name, limit, other in (
                ("wsidicom, two threads", 1.0, "wsidicom, 2 threads"),
                ("bare decoder, two threads", 1.15, "decoder, 2 threads"),
                (
                    "bare decoder, two threads, into an array",
                    1.15,
                    "decoder, placing, 2 threads",
                ),
            )
        ),
        *(
            _against(
                f"{size}² region, {about}",
                "wsidicom at its best",
                1.0,
                f"{slide}: region of {size}²",
                *BOTH_WSIDICOM,
            )
            for slide, about in slides.items()
            for size in ("512", "2,048")
        ),
        *(
            _against(f"512² region, {about}", beside, 0.5, f"{slide}: region of 512²", other)
            for slide, about in (("htj2k-lossless", "HTJ2K lossless"), ("htj2k", "HTJ2K lossy"))
            for beside, other in (
                ("wsidicom", "wsidicom"),
                ("wsidicom, two threads", "wsidicom, 2 threads"),
            )
        ),
        *(
            _against(name, "bare decoder", 1.10, task, "decoder", reader="dicomslide, 1 thread")
            for name, task in (
                ("tile by tile, one thread", "jpeg-256: whole level, tile by tile"),
                (
                    "tiles by their index, one thread",
                    "jpeg-256: a tile by its index, of a quarter of the level",
                ),
            )
        ),
        _against(
            "thumbnail of 512",
            "wsidicom",
            0.7,
            "jpeg-256: thumbnail of 512",
            *BOTH_WSIDICOM,
            reader="dicomslide, no cache",
        ),
    ]


def _pictures() -> list[Target]:
    return [
        _against(
            f"OpenSlide, {size}² region, frames of {tile}²",
            beside,
            limit,
            f"{slide}: region of {size}² as a picture",
            other,
            reader="dicomslide, OpenSlide",
        )
        for slide, tile in (("jpeg-256", "256"), ("jpeg-512", "512"), ("jpeg-1024", "1,024"))
        for size in ("256", "512", "1,024")
        for beside, limit, other in (
            ("slice of the matrix", 1.3, "dicomslide, matrix"),
            ("openslide", 0.4, "openslide"),
        )
    ]


def _resolutions() -> list[Target]:
    halved = "jpeg-256: region of 512² at twice the spacing"
    return [
        _against(
            "512² region at twice the spacing",
            "wsidicom's read_region_mpp",
            0.9,
            halved,
            *BOTH_WSIDICOM,
        ),
        _between(
            "512² region at twice the spacing",
            "the same 1,024² of the finer level",
            1.5,
            halved,
            "jpeg-256: region of 1,024²",
            "dicomslide",
        ),
        _between(
            "mean of a level at twice the spacing, through dask",
            "mean of the level",
            1.2,
            "jpeg-256: mean of the base level at twice the spacing, through dask",
            "jpeg-256: mean of the base level, through dask",
            "dicomslide, 2 threads",
        ),
        _between(
            "500 patches of 224², one thread",
            "bare decoder, frames as often as patches touch them",
            1.0,
            "jpeg-256: 500 patches of 224²",
            "jpeg-256: the frames of 500 regions of 224², as often as regions touch them",
            "dicomslide, 1 thread",
            "decoder",
        ),
        _between(
            "thumbnail of 512 of a base level of 20,480² alone, one thread",
            "decoding it whole",
            0.6,
            "jpeg-base: thumbnail of 512",
            "jpeg-base: whole level, tile by tile",
            "dicomslide, 1 thread",
            "decoder",
        ),
    ]


def _opening() -> list[Target]:
    fresh = "jpeg-256: fresh process: import, open, region of 512²"

    def empty_table(found: Results) -> Any:
        empty, extended = (
            found.values(f"{slide}: open", "dicomslide")
            + found.values(f"{slide}: first region of 512²", "dicomslide")
            for slide in ("large-empty", "large-extended")
        )
        walk = found.values("large-empty: find frames by their item headers", "decoder")
        return (empty - extended) / walk

    rows = [
        _against("fresh process: import, open, 512² region", "wsidicom", 0.60, fresh, "wsidicom"),
        _absolute("the same, peak memory", 75, "MiB", fresh),
        _between(
            "import dicomslide",
            "import numpy, pydicom",
            1.3,
            "jpeg-256: import",
            "jpeg-256: import",
            "dicomslide",
            "Python",
        ),
        _absolute("open 152,881 frames, extended offset table", 30, "ms", "large-extended: open"),
        Target(
            "empty offset table: open and read a region, beyond an extended one",
            "touching each item header once",
            1.5,
            empty_table,
        ),
    ]
    for slide, about, milliseconds, memory in (
        ("large-extended", "extended offset table", None, 40),
        ("large-empty", "empty offset table", None, 40),
        ("large-sparse", "TILED_SPARSE, explicit lengths", 350, 80),
        ("large-undefined", "TILED_SPARSE, undefined lengths", 350, 80),
    ):
        if milliseconds:
            rows.append(
                _absolute(f"open 152,881 frames, {about}", milliseconds, "ms", f"{slide}: open")
            )
        rows.append(
            _absolute(
                f"open and read a region, {about}, more memory",
                memory,
                "MiB",
                f"{slide}: first region of 512²",
            )
        )
    return rows


def _labelled() -> list[Target]:
    rows = [
        _absolute(f"{what} of 152,881 frames", 10, "ms", f"large-extended: build {what}")
        for what in ("dask array", "tree")
    ]
    for slide, about in (("jpeg-256", "6,400 frames"), ("large-extended", "152,881 frames")):
        for threads, reader in (("threads", "dicomslide"), ("one thread", "dicomslide, 1 thread")):
            for how, limit in (
                ("to_dask(), frames", 2.5),
                ("engine, chunks={}", 4.0),
                ("engine, inlined", 4.0),
                ("to_dask(), 4 × 4 frames", 1.2),
                ("to_dask(), auto", 1.2),
            ):
                rows.append(
                    _between(
                        f"2,048² of {about} by {how}",
                        f"eager read, {threads}",
                        limit,
                        f"{slide}: {how}, {threads}",
                        f"{slide}: region of 2,048²",
                        reader,
                    )
                )
        if slide == "jpeg-256":
            rows += [
                _between(
                    f"2,048² of {about} by to_dask(), frames",
                    f"dask around the bare decoder, {threads}",
                    1.2,
                    f"{slide}: to_dask(), frames, {threads}",
                    f"{slide}: dask around a decoder, {threads}",
                    reader,
                    "dask alone",
                )
                for threads, reader in (
                    ("threads", "dicomslide"),
                    ("one thread", "dicomslide, 1 thread"),
                )
            ]
    level, through_dask = "jpeg-256: whole level, block by block", "whole level through dask"

    def speed(decoder: str) -> Callable[[Results], Any]:
        task = f"jpeg-256: {through_dask}, threads"
        return lambda found: (
            found.values(level, decoder) / found.values(task, "dicomslide, 2 threads")
        )

    rows += [
        _between(
            "whole level through dask, one thread",
            "direct loop",
            1.15,
            f"jpeg-256: {through_dask}, one thread",
            level,
            "dicomslide, 1 thread",
        ),
        *(
            Target(
                "speed of a whole level through dask, threads",
                f"bare decoder, two threads, with the same arithmetic {how}",
                0.85,
                speed(decoder),
                at_least=True,
            )
            for how, decoder in (
                ("frame by frame", "decoder, 2 threads"),
                ("block by block", "decoder, placing, 2 threads"),
            )
        ),
        _between(
            "whole level through dask, LocalCluster of 2",
            "direct loop",
            1.5,
            f"jpeg-256: {through_dask}, LocalCluster of 2",
            level,
            "dicomslide",
            "dicomslide, 1 thread",
        ),
        *(
            _between(
                f"map_tiles, tiles of {size}² with a halo of 32, LocalCluster of 2",
                "a submitted task a tile",
                1.1,
                f"jpeg-256: map_tiles, {tiles}",
                f"jpeg-256: a submitted task a tile, {tiles}",
                "dicomslide",
            )
            for size in ("512", "1,024")
            for tiles in (f"tiles of {size}² with a halo of 32, LocalCluster of 2",)
        ),
        *(
            _absolute(
                f"whole level through dask, {how}, peak memory",
                600,
                "MiB",
                f"jpeg-256: {through_dask}, {how}",
                reader,
            )
            for how, reader in (
                ("one thread", "dicomslide, 1 thread"),
                ("threads", "dicomslide, 2 threads"),
                ("LocalCluster of 2", "dicomslide"),
            )
        ),
        _between(
            "2,048² box in mm by engine, chunks=None",
            "get_image_region",
            1.10,
            "jpeg-256: engine, chunks=None, box in mm",
            "jpeg-256: region of 2,048²",
            "dicomslide",
        ),
    ]
    return rows


def _overhead() -> list[Target]:
    def per_tile(task: str) -> Callable[[Results], Any]:
        return lambda found: 1000 * found.values(task, "dicomslide, no decoder, 1 thread")

    def correction(task: str, edge: int) -> Callable[[Results], Any]:
        def value(found: Results) -> Any:
            corrected, stored = (
                found.values(task, f"dicomslide, {what}, 1 thread")
                for what in ("corrected", "no cache")
            )
            transform = found.values("colour: transform of 2,048² pixels in frames", "highdicom")
            return (corrected - stored) / edge**2 / (transform[: len(stored)] / 2048**2)

        return value

    return [
        Target(
            f"a tile without decoder, {how}",
            "",
            60,
            per_tile(f"jpeg-256: without decoder, {task}"),
            "µs",
        )
        for how, task in (
            ("by its index", "a tile by its index"),
            ("in a region of 64", "region of 64 tiles; of a tile"),
        )
    ] + [
        Target(
            f"ICC correction of a {name} region, a pixel",
            "highdicom's ColorManager",
            0.35,
            correction(f"colour: region of {name}", edge),
        )
        for name, edge in (("512²", 512), ("2,048²", 2_048), ("5,120²", 5_120))
    ]


def _many() -> list[Target]:
    def speed(decoder: str, how: str) -> Callable[[Results], Any]:
        level, cluster = "jpeg-256: whole level, block by block", f"jpeg-256: whole level {how}"
        return lambda found: (
            found.values(level, decoder)
            / found.values(f"{cluster}, LocalCluster of 2", "dicomslide")
        )

    graph, cohort = "large-extended: graph of its tissue, auto", "cohort: open all slides"
    many = "many-sparse: open each slide and read a tile"
    first = "large-extended: on a LocalCluster, open and read a region of 512²"
    return [
        *(
            Target(
                f"speed of a whole level {how}, LocalCluster of 2",
                f"bare decoder, two processes, with the same arithmetic {by}",
                0.8,
                speed(decoder, how),
                at_least=True,
            )
            for how in ("through dask", "by map_blocks")
            for by, decoder in (
                ("frame by frame", "decoder, 2 processes"),
                ("block by block", "decoder, placing, 2 processes"),
            )
        ),
        _absolute("100,000²: from opening it to the first pixels from a worker", 100, "ms", first),
        _absolute("100,000²: graph of its tissue as it is sent, auto", 300, "kB", graph),
        _absolute("100,000²: tasks of that graph", 10_000, "tasks", graph),
        _between(
            "open 1,000 slides",
            "pydicom, all their headers",
            2.5,
            cohort,
            cohort,
            "dicomslide",
            "Python",
        ),
        _absolute("open 1,000 slides, more memory", 100, "MiB", cohort),
        _absolute("open a slide of four files again", 1.2, "ms", "jpeg-256: open it again"),
        _absolute("open 1,000 slides, files left open", 128, "descriptors", cohort),
        Target(
            "2,000 sparse slides one after the other, peak of cached bytes",
            f"memory_budget of {BUDGET // 2**20} MiB",
            1.0,
            lambda found: found.values(many, "dicomslide", "budget_share"),
        ),
        _absolute("2,000 sparse slides one after the other, more memory", 256, "MiB", many),
    ]


def _remote() -> list[Target]:
    def round_trips(found: Results) -> Any:
        task = "orthanc: cold region of 64 frames"
        far, near = (
            found.values(task, f"dicomslide, server {where}") for where in ("far away", "nearby")
        )
        return (far - near) / (1000 * ROUND_TRIP)

    return [
        *(
            _against(
                "cold 2,048² region from Orthanc",
                beside,
                0.5,
                "orthanc: cold region of 2,048²",
                other,
                reader="dicomslide, server",
            )
            for beside, other in (
                ("wsidicom", "wsidicom, server"),
                ("wsidicom, two threads", "wsidicom, server, 2 threads"),
            )
        ),
        _absolute(
            "300 slides of five objects in S3, 50 ms away: open them, and read a tile of each",
            12_000,
            "ms",
            "bucket: open all slides and read a tile of each",
        ),
        Target(
            "64 frames from Orthanc, 20 ms away: round trips beyond transfer and decoding",
            "",
            5,
            round_trips,
            "trips",
        ),
    ]


TARGETS = (
    *_regions(),
    *_pictures(),
    *_resolutions(),
    *_opening(),
    *_labelled(),
    *_overhead(),
    *_many(),
    *_remote(),
)
