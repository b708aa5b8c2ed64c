"""Measured tasks: reader, operation and slide, in a warm or in a fresh process."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

__all__ = ["BOTH_WSIDICOM", "BUDGET", "FRESH", "WARM", "Draw", "Fresh", "Warm"]


@dataclasses.dataclass(frozen=True)
class Draw:
    """Random positions of a round, equal for all readers."""

    rng: np.random.Generator
    edge: int
    """Rows and columns of the base level."""
    tile: int
    """Rows and columns of a frame."""

    def regions(self, count: int, size: int) -> dict[str, Any]:
        """Return `count` squares of at most `size` pixels."""
        size = min(size, self.edge // 2)
        at = self.rng.integers(0, self.edge - size, (count, 2)).tolist()
        return {"at": at, "size": size}

    def stretch(self, fraction: int) -> dict[str, int]:
        """Return a run of tiles: one of several equal parts of the level."""
        across = -(-self.edge // self.tile)
        rows = max(1, across // fraction)
        start = int(self.rng.integers(0, across - rows + 1))
        return {"start": start * across, "stop": (start + rows) * across}


def _nothing(draw: Draw) -> dict[str, Any]:
    return {}


def _positions(arguments: dict[str, Any]) -> int:
    return len(arguments["at"]) if "at" in arguments else 1


@dataclasses.dataclass(frozen=True)
class Warm:
    """An operation in a process that has performed it before."""

    name: str
    slide: str
    operation: str
    readers: tuple[str, ...]
    arguments: Callable[[Draw], dict[str, Any]] = _nothing
    unit: Callable[[dict[str, Any]], int] = _positions
    """Number of repetitions in one measurement; the result is that of one."""
    prepare: tuple[tuple[str, dict[str, Any]], ...] = ()
    """Operations that aren't measured."""
    slow: bool = False
    """Whether to run half of the rounds, and none beforehand."""
    forget: bool = False
    """Whether caches of pixels are emptied before each measurement."""

    @property
    def key(self) -> str:
        """Unique name."""
        return f"{self.slide}: {self.name}"


@dataclasses.dataclass(frozen=True)
class Fresh:
    """Sequence of operations in a new process; those with a name are measured."""

    slide: str
    steps: tuple[tuple[str, str, Callable[[Draw], dict[str, Any]]], ...]
    """(name or None, operation, arguments)."""
    readers: tuple[str, ...]
    whole: str = ""
    """Name of the whole, from the start of the process to its end."""
    slow: bool = False
    """Whether to run half of the rounds, and none beforehand."""

    @property
    def key(self) -> str:
        """Unique name."""
        return f"{self.slide}: {self.whole or ', '.join(name for name, *_ in self.steps if name)}"


BOTH_WSIDICOM = ("wsidicom", "wsidicom, 2 threads")
_PEERS = ("dicomslide", *BOTH_WSIDICOM, "openslide", "fastslide", "decoder")

BUDGET = 128 * 2**20
"""Bytes of `memory_budget`: a third of the cached bytes of 2,000 sparse slides without a bound."""


def _of(count: int, size: int) -> Callable[[Draw], dict[str, Any]]:
    return lambda draw: draw.regions(count, size)


def _tiles(arguments: dict[str, Any]) -> int:
    return int(arguments["stop"] - arguments["start"])


def _regions(slide: str, *more: str) -> list[Warm]:
    return [
        Warm(f"region of {size:,}²", slide, "regions", (*_PEERS, *more), _of(count, size))
        for size, count in ((512, 16), (2_048, 3))
    ]


def _dask(
    name: str,
    slide: str,
    scheduler: str,
    *readers: str,
    chunks: str | int | None = None,
    operation: str = "dask_regions",
) -> Warm:
    def arguments(draw: Draw) -> dict[str, Any]:
        given = draw.regions(3, 2_048) | {"scheduler": scheduler}
        return given if chunks is None else given | {"chunks": chunks}

    where = "threads" if scheduler == "threads" else "one thread"
    return Warm(f"{name}, {where}", slide, operation, readers, arguments)


def _through_dask(slide: str) -> list[Warm]:
    return [
        task
        for scheduler, reader in (
            ("threads", "dicomslide"),
            ("synchronous", "dicomslide, 1 thread"),
        )
        for task in (
            _dask("to_dask(), frames", slide, scheduler, reader, chunks="frames"),
            _dask("to_dask(), 4 × 4 frames", slide, scheduler, reader, chunks=1_024),
            _dask("to_dask(), auto", slide, scheduler, reader, chunks="auto"),
            _dask("engine, chunks={}", slide, scheduler, reader, operation="engine_regions"),
            _dask("engine, inlined", slide, scheduler, reader, operation="inlined_regions"),
        )
    ]


def _aligned(draw: Draw, tiles: int) -> dict[str, Any]:
    """Return four squares of `tiles` × `tiles` tiles, aligned to tiles."""
    across = draw.edge // draw.tile
    tiles = min(tiles, across)
    at = draw.rng.integers(0, across - tiles + 1, (4, 2)) * draw.tile
    return {"at": at.tolist(), "size": tiles * draw.tile}


def _as_pictures(slide: str) -> list[Warm]:
    readers = ("dicomslide, OpenSlide", "dicomslide, matrix", "openslide")
    return [
        Warm(f"region of {size:,}² as a picture", slide, "pictures", readers, _of(count, size))
        for size, count in ((256, 32), (512, 16), (1_024, 8))
    ]


WARM = (
    *_regions("jpeg-256", "dicomslide, 1 thread", "wsidicom, Pillow", "highdicom"),
    Warm(
        "region of 10,000²",
        "jpeg-256",
        "regions",
        (
            "dicomslide, 2 threads",
            "wsidicom, 2 threads",
            "decoder, 2 threads",
            "decoder, placing, 2 threads",
        ),
        _of(1, 10_000),
        slow=True,
    ),
    Warm(
        "whole level, tile by tile",
        "jpeg-256",
        "all_tiles",
        ("dicomslide, 1 thread", "decoder"),
        slow=True,
    ),
    Warm(
        "a tile by its index, of a quarter of the level",
        "jpeg-256",
        "tiles",
        ("dicomslide, 1 thread", "wsidicom", "openslide", "decoder"),
        lambda draw: draw.stretch(4),
        unit=_tiles,
        slow=True,
    ),
    Warm(
        "thumbnail of 512",
        "jpeg-256",
        "thumbnail",
        ("dicomslide, no cache", *BOTH_WSIDICOM, "openslide"),
        forget=True,
    ),
    Warm(
        "region of 512² at twice the spacing",
        "jpeg-256",
        "halved_regions",
        ("dicomslide", *BOTH_WSIDICOM),
        lambda draw: draw.regions(8, 1_024) | {"size": 512},
    ),
    Warm("region of 1,024²", "jpeg-256", "regions", ("dicomslide",), _of(8, 1_024)),
    Warm("open it again", "jpeg-256", "open", ("dicomslide",)),
    *(
        Warm(
            f"mean of the base level{how}, through dask",
            "jpeg-256",
            "mean",
            ("dicomslide, 2 threads",),
            lambda draw, halved=halved: {"halved": halved},
            slow=True,
        )
        for how, halved in (("", False), (" at twice the spacing", True))
    ),
    Warm(
        "500 patches of 224²",
        "jpeg-256",
        "patches",
        ("dicomslide, 1 thread",),
        _of(500, 224),
        unit=lambda arguments: 1,
        slow=True,
    ),
    Warm(
        "the frames of 500 regions of 224², as often as regions touch them",
        "jpeg-256",
        "regions",
        ("decoder",),
        _of(500, 224),
        unit=lambda arguments: 1,
        slow=True,
    ),
    Warm(
        "thumbnail of 512",
        "jpeg-base",
        "thumbnail",
        ("dicomslide, 1 thread",),
        forget=True,
        slow=True,
    ),
    Warm("whole level, tile by tile", "jpeg-base", "all_tiles", ("decoder",), slow=True),
    Warm(
        "without decoder, a tile by its index",
        "jpeg-256",
        "tiles",
        ("dicomslide, no decoder, 1 thread",),
        lambda draw: draw.stretch(8),
        unit=_tiles,
    ),
    Warm(
        "without decoder, region of 64 tiles; of a tile",
        "jpeg-256",
        "regions",
        ("dicomslide, no decoder, 1 thread",),
        lambda draw: _aligned(draw, 8),
        unit=lambda arguments: 64 * len(arguments["at"]),
    ),
    Warm(
        "without decoder, to_dask() of 64 frames; of a frame",
        "jpeg-256",
        "dask_regions",
        ("dicomslide, no decoder, 1 thread",),
        lambda draw: _aligned(draw, 8) | {"chunks": "frames", "scheduler": "synchronous"},
        unit=lambda arguments: 64 * len(arguments["at"]),
    ),
    *_through_dask("jpeg-256"),
    _dask("dask around a decoder", "jpeg-256", "threads", "dask alone"),
    _dask("dask around a decoder", "jpeg-256", "synchronous", "dask alone"),
    Warm("engine, chunks=None, box in mm", "jpeg-256", "boxes", ("dicomslide",), _of(3, 2_048)),
    Warm(
        "whole level, block by block",
        "jpeg-256",
        "level",
        (
            "dicomslide, 1 thread",
            "decoder",
            "decoder, 2 threads",
            "decoder, 2 processes",
            "decoder, placing, 2 threads",
            "decoder, placing, 2 processes",
        ),
        slow=True,
    ),
    *(
        Warm(
            f"whole level through dask, {how}",
            "jpeg-256",
            "level_dask",
            (reader,),
            lambda draw, scheduler=scheduler: {"scheduler": scheduler},
            slow=True,
        )
        for how, scheduler, reader in (
            ("one thread", "synchronous", "dicomslide, 1 thread"),
            ("threads", "threads", "dicomslide, 2 threads"),
        )
    ),
    Warm(
        "whole level through dask, LocalCluster of 2",
        "jpeg-256",
        "level_dask",
        ("dicomslide",),
        lambda draw: {"scheduler": "cluster"},
        prepare=(("start_cluster", {}),),
        slow=True,
    ),
    Warm(
        "whole level by map_blocks, LocalCluster of 2",
        "jpeg-256",
        "level_blocks",
        ("dicomslide",),
        prepare=(("start_cluster", {}),),
        slow=True,
    ),
    *(
        Warm(
            f"{how}, tiles of {size:,}² with a halo of 32, LocalCluster of 2",
            "jpeg-256",
            operation,
            ("dicomslide",),
            lambda draw, size=size: {"size": size},
            prepare=(("start_cluster", {}),),
            slow=True,
        )
        for size in (512, 1024)
        for how, operation in (
            ("map_tiles", "mapped_tiles"),
            ("a submitted task a tile", "submitted_tiles"),
        )
    ),
    *(
        task
        for slide in ("jpeg-512", "jpeg-1024", "jpeg-2000", "jpeg-ls-8", "jpeg-ls-16")
        for task in _regions(slide)
    ),
    *(task for slide in ("jpeg-256", "jpeg-512", "jpeg-1024") for task in _as_pictures(slide)),
    *_regions("htj2k-lossless"),
    *_regions("htj2k"),
    *(
        Warm(
            f"region of {size:,}²",
            "colour",
            "regions",
            ("dicomslide, no cache, 1 thread", "dicomslide, corrected, 1 thread"),
            _of(count, size),
            # LittleCMS sees each colour once: what is measured is all that follows
            prepare=(("all_tiles", {}),),
            slow=size > 2_048,
        )
        for size, count in ((512, 8), (2_048, 2), (5_120, 1))
    ),
    Warm(
        "transform of 2,048² pixels in frames",
        "colour",
        "correct",
        ("highdicom",),
        prepare=(("prepare_correction", {"edge": 2_048}),),
    ),
    Warm(
        "region of 2,048²",
        "large-extended",
        "regions",
        ("dicomslide", "dicomslide, 1 thread"),
        _of(3, 2_048),
    ),
    *_through_dask("large-extended"),
    Warm(
        "cold region of 2,048²",
        "orthanc",
        "regions",
        ("dicomslide, server", "wsidicom, server", "wsidicom, server, 2 threads", "decoder"),
        _of(1, 2_048),
        forget=True,
    ),
    Warm(
        "cold region of 64 frames",
        "orthanc",
        "regions",
        ("dicomslide, server nearby", "dicomslide, server far away"),
        lambda draw: _aligned(draw, 8),
        forget=True,
    ),
)


def _large(slide: str, *readers: str) -> Fresh:
    return Fresh(
        slide,
        (
            ("", "load_more", _nothing),
            ("open", "open", _nothing),
            ("first region of 512²", "regions", _of(1, 512)),
            ("build dask array", "build_array", _nothing),
            ("build tree", "build_tree", _nothing),
        ),
        readers,
    )


def _whole(name: str, operation: str, arguments: Callable[[Draw], dict[str, Any]]) -> Fresh:
    return Fresh(
        "jpeg-256",
        (("", "load", _nothing), ("", "open", _nothing), ("", operation, arguments)),
        ("dicomslide", "wsidicom", "openslide", "highdicom"),
        whole=f"fresh process: import, open, {name}",
    )


FRESH = (
    Fresh("jpeg-256", (("", "load", _nothing),), ("dicomslide", "Python"), whole="import"),
    _whole("region of 512²", "regions", _of(1, 512)),
    _whole("region of 2,048²", "regions", _of(1, 2_048)),
    _whole("thumbnail of 512", "thumbnail", _nothing),
    _large("large-extended", "dicomslide", "wsidicom", "openslide"),
    _large("large-empty", "dicomslide", "wsidicom", "openslide"),
    Fresh(
        "large-empty",
        (("", "load", _nothing), ("find frames by their item headers", "walk", _nothing)),
        ("decoder",),
    ),
    _large("large-sparse", "dicomslide", "wsidicom", "openslide"),
    _large("large-undefined", "dicomslide", "wsidicom", "openslide"),
    Fresh(
        "large-extended",
        (
            ("", "load_more", _nothing),
            ("", "start_workers", _nothing),
            ("on a LocalCluster, open and read a region of 512²", "first_bytes", _of(1, 512)),
            ("graph of its tissue, auto", "build_graph", _nothing),
        ),
        ("dicomslide",),
    ),
    Fresh(
        "cohort",
        (("", "load_more", _nothing), ("open all slides", "open_cohort", _nothing)),
        ("dicomslide", "Python"),
    ),
    Fresh(
        "bucket",
        (
            ("", "load_more", _nothing),
            ("open all slides and read a tile of each", "open_bucket", _nothing),
        ),
        ("dicomslide",),
        slow=True,
    ),
    Fresh(
        "many-sparse",
        (
            ("", "load_more", _nothing),
            ("open each slide and read a tile", "open_many", lambda draw: {"budget": BUDGET}),
        ),
        ("dicomslide",),
        slow=True,
    ),
)
