"""Does a slide of 152,881 frames cost what a small one costs?

Writes the slides, then opens each, builds its dask array, and reads 2,048² pixels, every time
in a fresh process, small and large slides in turn. Prints a table, and with ``--write`` puts
it into README.md beside this file.

    python benchmarks/large_matrix.py [--write] [--repeat 5]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np

LARGE, SMALL, TILE = 100_000, 2_560, 256
VARIANTS = {
    "extended offset table": dict(offset_table="extended", share_frames=True),
    "empty basic offset table": dict(offset_table="empty"),
    "TILED_SPARSE, explicit lengths": dict(offset_table="extended", share_frames=True, sparse=True),
    "TILED_SPARSE, undefined lengths": dict(
        offset_table="extended", share_frames=True, sparse=True, undefined_lengths=True
    ),
}
OPERATIONS = {
    "open": "open [ms]",
    "build": "build dask array and dataset [ms]",
    "first": "first region of 2,048² [ms]",
    "region": "next region of 2,048² [ms]",
    "dask": "region through dask [ms]",
    "memory": "peak memory over importing [MiB]",
}


def write(folder: Path) -> None:
    from dicomslide.codec import PixelFormat
    from dicomslide.geometry import SlideGeometry
    from dicomslide.testing import PositionDrawing, SyntheticImage, encode_frame, write_image

    fmt = PixelFormat(rows=TILE, columns=TILE, samples=3)
    jpeg = "1.2.840.10008.1.2.4.50"
    shades = [np.full(fmt.shape, 200 + 3 * i, np.uint8) for i in range(16)]
    frames = [encode_frame(shade, fmt, jpeg) for shade in shades]
    for size in (LARGE, SMALL):
        for name, options in VARIANTS.items():
            path = folder / f"{size} {name}.dcm"
            if path.exists():
                continue
            image = SyntheticImage(
                geometry=SlideGeometry(
                    (20.0, 50.0), (0.0, -1.0), (-1.0, 0.0), (0.00025, 0.00025), (size, size)
                ),
                drawing=PositionDrawing(3, np.uint8),
                pixel_format=fmt,
                transfer_syntax_uid=jpeg,
                encoded=lambda channel, plane, tile: frames[tile % 16],
                **options,
            )
            write_image(path, image)


def measure(path: str, size: int) -> dict[str, float]:
    """Measure one slide in this process."""
    import time

    import dask.array
    import pydicom.filereader
    import simplejpeg
    import xarray as xr

    import dicomslide
    import dicomslide.backends.file
    import dicomslide.labelled.tree

    assert pydicom.filereader  # imported beforehand: only reading is measured
    assert simplejpeg

    def peak() -> float:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    rng = np.random.default_rng()
    at = [tuple(int(v) for v in rng.integers(0, size - 2048, 2)) for _ in range(4)]
    xr.DataArray(dask.array.zeros((8, 8), chunks=4)).compute(scheduler="sync")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # reset the peak
    before = peak()
    found = {}
    start = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal start
        found[name] = (time.perf_counter() - start) * 1000
        start = time.perf_counter()

    slide = dicomslide.open_slide(path, correct_color=False)
    lap("open")
    dataset = slide.to_dataset()
    lap("build")
    slide.get_image_region(at[0], 0, (2048, 2048))
    lap("first")
    slide.get_image_region(at[1], 0, (2048, 2048))
    lap("region")
    y, x = at[2]
    dataset.image[y : y + 2048, x : x + 2048].compute(scheduler="sync")
    lap("dask")
    found["memory"] = peak() - before
    return found


def table(results: dict[tuple[str, int], list[dict[str, float]]]) -> str:
    names = list(VARIANTS)
    lines = [
        "| | " + " | ".join(names) + " |",
        "|---|" + "---|" * len(names),
    ]
    for key, title in OPERATIONS.items():
        cells = []
        for name in names:
            large, small = (
                statistics.median(run[key] for run in results[name, size])
                for size in (LARGE, SMALL)
            )
            cells.append(f"{large:,.1f} / {small:,.1f}")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keep the slides here")
    parser.add_argument("--measure", nargs=2, metavar=("PATH", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], int(options.measure[1]))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        write(folder)
        results: dict[tuple[str, int], list[dict[str, float]]] = {}
        for _ in range(options.repeat):
            for name in VARIANTS:
                for size in (LARGE, SMALL):
                    path = str(folder / f"{size} {name}.dcm")
                    command = [sys.executable, __file__, "--measure", path, str(size)]
                    out = subprocess.run(command, capture_output=True, text=True, check=True)
                    results.setdefault((name, size), []).append(json.loads(out.stdout))
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("numpy", "dask", "xarray", "pydicom", "simplejpeg")
    )
    frames = (-(-LARGE // TILE)) ** 2
    text = (
        f"{LARGE:,}² pixels in {frames:,} frames / {SMALL:,}² pixels in"
        f" {(-(-SMALL // TILE)) ** 2} frames; medians of {options.repeat} fresh processes, files in"
        f" the page cache.\nPython {platform.python_version()}, {os.cpu_count()} cores;"
        f" {packages}.\n\n{table(results)}"
    )
    print(text)
    if options.write:
        readme = Path(__file__).with_name("README.md")
        head, _, rest = readme.read_text(encoding="utf-8").partition("<!-- large_matrix -->\n")
        _, _, tail = rest.partition("<!-- end -->")
        readme.write_text(
            f"{head}<!-- large_matrix -->\n{text}\n<!-- end -->{tail}", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
