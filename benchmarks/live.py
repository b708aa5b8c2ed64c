"""A live Zarr store: time of a chunk relative to its tile, and to what zarr itself takes."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.slides import SLIDES

if TYPE_CHECKING:
    from collections.abc import Callable

SLIDES_OF_STORES = ("jpeg-base", "planes")
CHUNKS = 300
ROUNDS = 7
ACROSS = 4
"""Chunks along an edge of a region."""


def _times(slide: str, folder: Path) -> dict[str, list[float]]:
    """Return the milliseconds of a chunk, by what reads it, of each round."""
    import zarr

    import dicomslide

    opened = dicomslide.open_slide(SLIDES[slide].write(folder), correct_color=False)
    matrix = opened.get_volume_images()[0].get_total_pixel_matrix()
    live = zarr.open_group(opened.to_zarr_store(orientation="stored"), mode="r")["level_0/image"]
    *lead, height, width = live.chunks
    first = (slice(0, lead[0]), *(slice(0, 1) for _ in lead[1:]))
    # the same bytes in memory: what is left is zarr's own time
    copy = zarr.create_array({}, shape=live.shape, chunks=live.chunks, dtype=live.dtype,
                             compressors=None)  # fmt: skip
    down, right = live.shape[-2] // height, live.shape[-1] // width
    rng = np.random.default_rng(0)

    def box(place: tuple[int, int], across: int) -> tuple[slice, slice]:
        y, x = place[0] * height, place[1] * width
        return slice(y, y + across * height), slice(x, x + across * width)

    readers: dict[str, Callable[[tuple[slice, slice]], Any]] = {
        "tile of the matrix": lambda at: matrix[at],
        "live store": lambda at: live[(*first, *at)],
        "store in memory": lambda at: copy[(*first, *at)],
    }
    times: dict[str, list[float]] = {}
    for across, count in ((1, CHUNKS), (ACROSS, CHUNKS // ACROSS**2)):
        for _ in range(ROUNDS):
            places = rng.integers(0, (down - across, right - across), (count, 2)).tolist()
            for place in places:
                at = (*first, *box(place, across))
                copy[at] = live[at]
            for name, read in readers.items():
                dicomslide.clear_all("decoded frames")
                start = time.perf_counter()
                for place in places:
                    read(box(place, across))
                elapsed = (time.perf_counter() - start) / (count * across**2)
                times.setdefault(f"{name}, {across}²", []).append(1000 * elapsed)
    return times


def main() -> None:
    """Read chunks of slides one by one, and regions of several."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live", description=__doc__)
    parser.add_argument("--folder", type=Path, help="keep the slides here")
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as temporary:
        for slide in SLIDES_OF_STORES:
            of = {
                name: statistics.median(found)
                for name, found in _times(slide, folder or Path(temporary)).items()
            }
            for across in (1, ACROSS):
                tile, live, memory = (
                    of[f"{name}, {across}²"]
                    for name in ("tile of the matrix", "live store", "store in memory")
                )
                print(
                    f"{slide}, {across}² chunks at once: {live:.2f} ms a chunk, {live / tile:.2f} ×"
                    f" a tile of the matrix; without zarr's own {memory:.2f} ms"
                    f" {(live - memory) / tile:.2f} × (target: 1.3)"
                )


if __name__ == "__main__":
    main()
