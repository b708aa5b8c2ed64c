"""The benchmarks run, with the peers that are installed; how fast anything is isn't tested."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.catalogue import TARGETS, TASKS
from benchmarks.limit import Decoder
from benchmarks.report import BEGIN, END, README, report
from benchmarks.results import Results
from benchmarks.run import run
from benchmarks.slides import SLIDES, camera_profile
from benchmarks.tasks import Fresh
from benchmarks.worker import answer
from tests.support import orthanc

ROOT = Path(__file__).parent.parent


def rows_of(text: str) -> list[list[str]]:
    lines = text.partition("### Targets")[2].partition("\n### ")[0].strip().splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.slow
@pytest.mark.server
def test_quick_run_gives_a_number_or_a_reason_for_every_target(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--folder", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = rows_of(done.stdout)
    assert [row[:2] for row in rows] == [[target.name, target.beside] for target in TARGETS]
    for name, _, measured, _, reached in rows:
        if reached:
            assert re.match(r"-?[\d.,e+-]+ \S+$", measured), name
        else:
            assert re.match(r"– \(.+\)$", measured), name
    numbers = {row[0] for row in rows if row[4]}
    # needs nobody else
    assert "tile by tile, one thread" in numbers
    assert "a tile without decoder, in a region of 64" in numbers
    assert "tree of 152,881 frames" in numbers
    # dicomslide is compared with the decoder before it is measured
    assert "pixels of dicomslide" not in done.stdout


def test_every_target_is_of_tasks_that_are_run() -> None:
    results = Results()
    for task in TASKS:
        for reader in task.readers:
            for name, *_ in task.steps if isinstance(task, Fresh) else ():
                results.add(f"{task.slide}: {name}", reader, measure())
            results.add(task.key, reader, measure())
    rows = rows_of(report(results, SLIDES, 1))
    assert [row[0] for row in rows if not row[4]] == []


def measure() -> dict[str, float]:
    quantities = ("ms", "cpu_ms", "MiB", "more_MiB", "read_MB", "kB", "tasks", "descriptors")
    quantities += ("budget_share", "worker_MiB", "requests")
    return dict.fromkeys(quantities, 2.0)


def test_reason_of_a_missing_peer_stands_in_its_row() -> None:
    results = Results()
    task = "jpeg-256: region of 512²"
    results.add(task, "dicomslide", measure())
    results.add(task, "openslide", {"error": "ModuleNotFoundError: No module named 'openslide'"})
    row = next(row for row in rows_of(report(results, SLIDES, 1)) if row[1] == "openslide")
    assert row[2] == "– (openslide: ModuleNotFoundError: No module named 'openslide')"


def test_reasons_name_slides_without_the_folder_of_this_machine() -> None:
    class Refusing:
        folder = os.path.join(os.sep, "here", "jpeg-256 4096")

        def open(self) -> None:
            raise ValueError(f"{self.folder!r}: {os.path.join(self.folder, 'level-0.dcm')}")

    found = answer(Refusing(), {"operation": "open", "arguments": {}})
    assert found == {"error": "ValueError: 'jpeg-256 4096': level-0.dcm"}
    assert not re.search(r"/tmp/|/home/|/root/", README.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.skipif(bool(orthanc.reason_to_skip()), reason=str(orthanc.reason_to_skip()))
def test_slide_on_a_server_is_measured(tmp_path: Path) -> None:
    slide = dataclasses.replace(SLIDES["orthanc"], edge=1024, factors=(1,))
    tasks = [task for task in TASKS if task.slide == "orthanc"]
    results = run(tasks, {"orthanc": slide}, tmp_path, 1)
    trips = next(target for target in TARGETS if "round trips" in target.name)
    assert trips.value(results) > 0.5
    for (_, reader), reason in results.reasons.items():
        assert "wsidicom" in reader
        assert "ModuleNotFoundError" in reason
    assert not results.differences


def test_a_server_that_is_not_installed_is_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orthanc, "PROGRAM", None)
    slide = dataclasses.replace(SLIDES["orthanc"], edge=256, factors=(1,))
    tasks = [task for task in TASKS if task.slide == "orthanc"]
    results = run(tasks, {"orthanc": slide}, tmp_path, 1)
    rows = [row for row in rows_of(report(results, SLIDES, 1)) if "Orthanc" in row[0]]
    assert len(rows) == 3
    assert all(re.match(r"– \(.+: Orthanc isn't installed", row[2]) for row in rows)


@pytest.mark.needs("pylibjpeg")
@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("jpeg-256", 4), ("jpeg-ls-16", 0), ("htj2k-lossless", 0), ("large-empty", 4)],
)
def test_bare_decoder_returns_the_pixels_that_pydicom_finds(
    name: str, tolerance: int, tmp_path: Path
) -> None:
    from pydicom.pixels import pixel_array

    folder = SLIDES[name].quick().write(tmp_path)
    decoder = Decoder(str(folder))
    decoder.load()
    decoder.open()
    assert len(decoder.frames) == 16 * 16
    frame = pixel_array(folder / "level-0.dcm", index=3 * 16 + 5)  # by pylibjpeg: another decoder
    region = decoder.region(3 * 256 - 10, 5 * 256 - 20, 300)
    found = region[10 : 10 + 256, 20 : 20 + 256].reshape(frame.shape)
    assert np.abs(found.astype(int) - frame).max() <= tolerance
    assert np.ptp(frame) > 20


def test_camera_profile_changes_colours() -> None:
    import io

    from PIL import Image, ImageCms

    profile = ImageCms.ImageCmsProfile(io.BytesIO(camera_profile()))
    transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), "RGB", "RGB")
    picture = Image.fromarray(np.full((1, 1, 3), (200, 120, 160), np.uint8))
    changed = np.asarray(ImageCms.applyTransform(picture, transform)).ravel()
    assert np.abs(changed.astype(int) - (200, 120, 160)).max() > 8


def test_readme_has_the_place_where_results_are_put() -> None:
    text = README.read_text(encoding="utf-8")
    assert text.index(BEGIN) < text.index(END)
