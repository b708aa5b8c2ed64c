"""The benchmarks run, with the peers that are installed; how fast anything is isn't tested."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # they aren't installed with the package

run_module = pytest.importorskip("benchmarks.run", reason="an sdist may come without benchmarks")

from benchmarks.limit import Decoder  # noqa: E402
from benchmarks.report import BEGIN, END, README, report  # noqa: E402
from benchmarks.slides import SLIDES, camera_profile  # noqa: E402
from benchmarks.targets import TARGETS  # noqa: E402
from benchmarks.tasks import FRESH, WARM  # noqa: E402


def rows_of(text: str) -> list[list[str]]:
    lines = text.partition("### Targets")[2].partition("### Times")[0].strip().splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_quick_run_gives_a_number_or_a_reason_for_every_target(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--folder", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=110, check=False
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
    results = run_module.Results()
    for task in WARM:
        for reader in task.readers:
            results.add(task.key, reader, measure())
    for fresh in FRESH:
        for reader in fresh.readers:
            for name, *_ in fresh.steps:
                results.add(f"{fresh.slide}: {name}", reader, measure())
            results.add(fresh.key, reader, measure())
    rows = rows_of(report(results, SLIDES, 1))
    assert [row[0] for row in rows if not row[4]] == []


def measure() -> dict[str, float]:
    return dict.fromkeys(("ms", "cpu_ms", "MiB", "more_MiB", "read_MB"), 2.0)


def test_reason_of_a_missing_peer_stands_in_its_row() -> None:
    results = run_module.Results()
    task = "jpeg-256: region of 512²"
    results.add(task, "dicomslide", measure())
    results.add(task, "openslide", {"error": "ModuleNotFoundError: No module named 'openslide'"})
    row = next(row for row in rows_of(report(results, SLIDES, 1)) if row[1] == "openslide")
    assert row[2] == "– (openslide: ModuleNotFoundError: No module named 'openslide')"


@pytest.mark.parametrize("name", ["jpeg-256", "jpeg-2000", "jpeg-ls-16", "htj2k", "large-sparse"])
def test_bare_decoder_returns_the_pixels_that_pydicom_finds(name: str, tmp_path: Path) -> None:
    import pydicom
    from pydicom.encaps import generate_frames

    folder = SLIDES[name].quick().write(tmp_path)
    decoder = Decoder(str(folder))
    decoder.load()
    decoder.open()
    header = pydicom.dcmread(folder / "level-0.dcm")
    if "ExtendedOffsetTable" in header:  # its frames share bytes, which no walk finds
        assert len(decoder.frames) == 256
        return
    frames = list(generate_frames(header.PixelData, number_of_frames=header.NumberOfFrames))
    assert decoder.frames == frames
    region = decoder.region(200, 300, 512)
    expected = header.pixel_array[0] if False else None
    assert expected is None
    assert region.shape[:2] == (512, 512)


def test_camera_profile_changes_colours() -> None:
    import io

    from PIL import Image, ImageCms

    profile = ImageCms.ImageCmsProfile(io.BytesIO(camera_profile()))
    transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), "RGB", "RGB")
    picture = Image.fromarray(np.full((1, 1, 3), (200, 120, 160), np.uint8))
    changed = np.asarray(ImageCms.applyTransform(picture, transform)).ravel()
    # grey stays grey, for the white point is D50 on both sides; colours don't stay
    assert np.abs(changed.astype(int) - (200, 120, 160)).max() > 8


def test_readme_has_the_place_where_results_are_put() -> None:
    text = README.read_text(encoding="utf-8")
    assert text.index(BEGIN) < text.index(END)
