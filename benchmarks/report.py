"""Tables of results, and their section in README.md."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.catalogue import PASSES, TARGETS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from benchmarks.results import Results
    from benchmarks.slides import Slide

__all__ = ["report", "write"]

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- results -->\n", "<!-- end of results -->"
PACKAGES = (
    "dicomslide", "numpy", "pydicom", "simplejpeg", "imagecodecs", "pillow", "dask", "distributed",
    "xarray", "wsidicom", "openslide-python", "openslide-bin", "fastslide",
    "highdicom",
)  # fmt: skip


def report(
    results: Results, slides: Mapping[str, Slide], rounds: int, *, partial: bool = False
) -> str:
    """Return all tables as Markdown; after a partial run, only rows with results."""
    return "\n".join(
        [
            *_machine(rounds),
            "",
            "### Targets",
            "",
            *_targets(results, partial),
            "",
            *_tiles(results),
            "### Times",
            "",
            *_times(results, slides),
            "### Notes",
            "",
            *_notes(results),
        ]
    )


def write(text: str) -> None:
    """Replace the tables in README.md."""
    head, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, _, tail = rest.partition(END)
    README.write_text(f"{head}{BEGIN}{text}\n{END}{tail}", encoding="utf-8")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _machine(rounds: int) -> Iterator[str]:
    yield f"{datetime.date.today()}, {_processor()}, {os.cpu_count()} cores, {platform.system()};"
    yield f"medians of {rounds} rounds ({(rounds + 1) // 2} of what is slow)."
    yield f"Python {platform.python_version()}; " + ", ".join(
        f"{package} {_version(package)}" for package in PACKAGES
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _targets(results: Results, partial: bool) -> Iterator[str]:
    yield "| what | beside what | measured | target | reached |"
    yield "|---|---|---|---|---|"
    for target in TARGETS:
        sign = "≥" if target.at_least else "≤"
        wanted = f"{sign} {target.limit:g} {target.unit}"
        try:
            value = float(np.median(target.value(results)))
        except LookupError as error:
            if not partial:
                yield f"| {target.name} | {target.beside} | – ({error.args[0]}) | {wanted} | |"
            continue
        shown = f"{value:.2f}" if target.unit == "×" else _number(value)
        reached = "yes" if target.is_reached(value) else "**no**"
        yield f"| {target.name} | {target.beside} | {shown} {target.unit} | {wanted} | {reached} |"


def _tiles(results: Results) -> Iterator[str]:
    """Yield a table of tiles a second of processor time: a row a reader, a column a task."""
    shown = {
        reader: [
            results.values(task.key, reader, "cpu_ms")
            if (task.key, reader) in results.measures
            else None
            for task in PASSES
        ]
        for reader in dict.fromkeys(reader for task in PASSES for reader in task.readers)
    }
    if all(value is None for row in shown.values() for value in row):
        return
    yield "### Tiles of 448² a second, on one processor"
    yield ""
    yield "Tiles divided by the processor time of all threads. Frames of 256², 512² and 1,024²."
    yield "Equal are pixels that libjpeg-turbo's decoder gives, too."
    yield ""
    heads = [
        f"{task.slide.removeprefix('jpeg-')}: {task.name.split(', ', 1)[-1]}" for task in PASSES
    ]
    yield "| reader | equal | " + " | ".join(heads) + " |"
    yield "|---" * (len(heads) + 2) + "|"
    for reader, row in shown.items():
        differing = {results.differences.get((task.slide, reader)) for task in PASSES} - {None}
        equal = "; ".join(sorted(map(str, differing))) or "yes"
        cells = ["–" if each is None else _number(1000 / float(np.median(each))) for each in row]
        yield f"| {reader} | {equal} | " + " | ".join(cells) + " |"
    yield ""


def _times(results: Results, slides: Mapping[str, Slide]) -> Iterator[str]:
    """Yield a table per slide, with a row per task and reader."""
    tasks = dict.fromkeys(task for task, _ in [*results.measures, *results.reasons])
    for name, slide in slides.items():
        own = [task for task in tasks if task.startswith(f"{name}: ")]
        if not own:
            continue
        yield f"**{name}**: {slide.about}; {slide.edge:,}² pixels"
        yield ""
        yield "| task | reader | ms | CPU ms | peak MiB | MB read |"
        yield "|---|---|---|---|---|---|"
        for task in own:
            shown = task.removeprefix(f"{name}: ")
            for (measured, reader), found in results.measures.items():
                if measured != task:
                    continue
                cells = [
                    _number(float(np.median([one[quantity] for one in found])))
                    for quantity in ("ms", "cpu_ms", "MiB", "read_MB")
                ]
                yield f"| {shown} | {reader} | " + " | ".join(cells) + " |"
                shown = ""
        yield ""


def _notes(results: Results) -> Iterator[str]:
    failures = dict.fromkeys(
        (task.partition(": ")[0], reader, reason)
        for (task, reader), reason in results.reasons.items()
        if not reason.startswith(NotImplementedError.__name__)  # not every reader does all
    )
    for slide, reader, reason in failures:
        yield f"* {slide}, {reader}: – {reason}"
    for (slide, reader), told in results.differences.items():
        yield f"* {slide}: pixels of {reader} differ from the bare decoder's {told}"
    if not failures and not results.differences:
        yield "All pixels are those of the bare decoder, and every reader did every task."
