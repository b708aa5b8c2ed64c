"""Virtual Zarr: time to make slides virtual relative to opening them, and to read a region."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.slides import SLIDES

SLIDES_OF_COHORT = 1000
DOWNSAMPLES = (1, 2, 4, 8)
"""Levels of a slide of the cohort: a file each."""
EDGE = 2048
ROUNDS = 7


def cohort(folder: str, how: str) -> None:
    """Open the slides of a folder in this process, and print how long that and `how` takes."""
    import dicomslide

    start = time.perf_counter()
    for each in sorted(Path(folder).iterdir()):
        slide = dicomslide.open_slide(each)
        if how == "virtual":
            slide.to_virtual()
    print(f"{how}: {time.perf_counter() - start:.2f} s", flush=True)


def region(slide: str, repository: str) -> None:
    """Read regions by dicomslide and through icechunk in this process, one after the other."""
    import numpy as np
    import zarr

    import dicomslide
    from dicomslide.virtual import to_icechunk

    opened = dicomslide.open_slide(slide, correct_color=False, max_frame_cache_size=0)
    store = to_icechunk({"slide": opened}, repository).readonly_session("main").store
    array = zarr.open_array(store, path="slide/level_0/image", mode="r")
    ratios = []
    for number in range(ROUNDS):
        at = 100 + 61 * number
        start = time.perf_counter()
        ours = opened.get_image_region((at, at), 0, (EDGE, EDGE))
        between = time.perf_counter()
        theirs = array[at : at + EDGE, at : at + EDGE]
        ratios.append((time.perf_counter() - between) / (between - start))
        assert np.array_equal(ours, theirs)
    codec = array.metadata.codecs[0].to_dict()["name"]
    print(f"region of {EDGE}² by {codec}: {statistics.median(ratios):.2f} × dicomslide")


def main() -> None:
    """Write slides, and read them in separate processes."""
    from dicomslide.testing import write_slide

    run = [sys.executable, "-m", "benchmarks.virtual"]
    with tempfile.TemporaryDirectory() as folder:
        slide = SLIDES["jpeg-256"].write(Path(folder) / "slide")
        subprocess.run([*run, "region", str(slide), f"{folder}/repository"], check=True)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(SLIDES_OF_COHORT):
            write_slide(Path(folder) / f"{number:04}", shape=(512, 512), downsamples=DOWNSAMPLES,
                        tile_shape=(128, 128), drawing="position", associated=False,
                        container_id=f"S-{number}", slide_number=number)  # fmt: skip
        for how in ("open", "virtual", "open", "virtual"):
            subprocess.run([*run, "cohort", folder, how], check=True)


if __name__ == "__main__":
    kind, *arguments = sys.argv[1:] or ["main"]
    {"main": main, "cohort": cohort, "region": region}[kind](*arguments)
