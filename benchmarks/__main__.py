"""Speed of dicomslide compared with other readers: prints tables, or writes them to README.md."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from pathlib import Path

from benchmarks.catalogue import TASKS
from benchmarks.report import report, write
from benchmarks.run import run
from benchmarks.slides import SLIDES

QUICK = ("bucket", "index", "jpeg-256", "large-extended")
"""Slides of a quick run."""


def main() -> None:
    """Run the benchmarks of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the tables to README.md")
    parser.add_argument("--only", metavar="TEXT", default="", help="tasks whose name has this")
    parser.add_argument("--rounds", type=int, default=11, help="11 if not given")
    parser.add_argument("--folder", type=Path, help="keep the slides here (3 GB)")
    parser.add_argument(
        "--quick", action="store_true", help="few small slides, one round; never written"
    )
    options = parser.parse_args()
    if options.write and (options.quick or options.only):
        parser.error("what is written is a whole run: no --quick, no --only")
    rounds = 1 if options.quick else options.rounds
    slides = {name: slide.quick() if options.quick else slide for name, slide in SLIDES.items()}
    tasks = [
        task
        for task in TASKS
        if options.only in task.key and (not options.quick or task.slide in QUICK)
    ]
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        results = run(tasks, slides, folder, rounds)
    text = report(results, slides, rounds, partial=bool(options.only))
    print(text)
    if options.write:
        write(text)


if __name__ == "__main__":
    main()
