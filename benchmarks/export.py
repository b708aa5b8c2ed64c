"""Time of an export to OME-Zarr, relative to decoding, and its memory."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.process import peak_memory
from benchmarks.slides import SLIDES

ROUNDS = 3


def export(slide: str, out: str) -> None:
    """Export a slide in this process, and print the time relative to decoding all of it."""
    import dicomslide

    opened = dicomslide.open_slide(slide, correct_color=False)
    ratios = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        dicomslide.to_ome_zarr(opened, out, overwrite=True)
        took = time.perf_counter() - start
        peak = peak_memory()
        start = time.perf_counter()
        for level in range(opened.num_levels):
            array = opened.to_dataset(level, chunks="auto").image.data
            ones = tuple((1,) * count for count in array.numblocks)
            array.map_blocks(lambda block: block[:1, :1, :1].copy(), chunks=ones).compute()
        ratios.append(took / (time.perf_counter() - start))
    print(f"export: {statistics.median(ratios):.1f} × decoding, {took:.1f} s, {peak:.0f} MiB")


def main() -> None:
    """Write the slide, and export it in a separate process."""
    with tempfile.TemporaryDirectory() as folder:
        slide = SLIDES["jpeg-256"].write(Path(folder))
        command = [sys.executable, "-m", "benchmarks.export", str(slide), f"{folder}/out.zarr"]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    export(*sys.argv[1:]) if sys.argv[1:] else main()
