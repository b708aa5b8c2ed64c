"""Every notebook runs, and is committed with the outputs of a run."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import orthanc

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
RUNS = ("nbclient", "nbformat", "ipykernel", "matplotlib")
NEEDS = {
    "01_first_slide": ("panel",),
    "02_physical_coordinates": ("highdicom", "panel", "skimage"),
    "03_cluster": ("distributed", "skimage"),
    "04_dicomweb": ("dicomweb_client", "geopandas", "skimage"),
    "05_fluorescence": ("panel", "skimage", "scipy", "zarr"),
    "06_openslide": ("openslide",),
    "07_any_resolution": ("skimage",),
}
MACHINE = re.compile(r"/tmp/|/home/|/root/|/Users/|C:\\\\|site-packages|127\.0\.0\.1:(?!8042)")


def reason_to_skip(path):
    for module in (*RUNS, *NEEDS.get(path.stem, ())):
        if importlib.util.find_spec(module) is None:
            return f"{module} isn't installed: pip install 'dicomslide[notebooks]'"
    if path.stem == "04_dicomweb" and "DICOMSLIDE_ORTHANC_URL" not in os.environ:
        return orthanc.reason_to_skip()
    return None


def cells_of(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def kinds_of(cells):
    """What each cell shows: streams by name, data by their types."""
    return [
        sorted(
            output.get("name") or " ".join(sorted(output["data"]))
            for output in cell.get("outputs", ())
        )
        for cell in cells
    ]


STARTS = {"03_cluster": ["cluster"], "04_dicomweb": ["server"]}
"""What notebooks start: markers of their tests."""


def executed(path, folder):
    """Return the cells of a notebook as it runs now, in a process of its own."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    copy = Path(shutil.copy(path, folder))
    with contextlib.ExitStack() as stack:
        if path.stem == "04_dicomweb" and "DICOMSLIDE_ORTHANC_URL" not in environment:
            url = stack.enter_context(orthanc.running(folder))
            environment["DICOMSLIDE_ORTHANC_URL"] = url
        done = subprocess.run(
            [sys.executable, str(FOLDER / "execute.py"), str(copy)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
    assert done.returncode == 0, done.stdout.decode()[-3000:]
    return cells_of(copy)


def test_they_are_numbered_from_one_on():
    numbers = [path.stem[:2] for path in NOTEBOOKS]
    assert numbers == ["01", "02", "03", "04", "05", "06", "07"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path,
            id=path.stem,
            marks=[getattr(pytest.mark, marker) for marker in STARTS.get(path.stem, ())],
        )
        for path in NOTEBOOKS
    ],
)
def test_it_runs_and_shows_what_is_committed(path, tmp_path):
    if reason := reason_to_skip(path):
        pytest.skip(reason)
    assert kinds_of(executed(path, tmp_path)) == kinds_of(cells_of(path))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_committed_with_outputs_of_no_machine(path):
    cells = cells_of(path)
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    pictures = [each for each in outputs if {"image/jpeg", "image/png"} & {*each.get("data", ())}]
    assert len(pictures) >= (1 if path.stem == "04_dicomweb" else 3)
    assert not [each for each in outputs if each["output_type"] == "error"]
    assert not [each for each in outputs if each.get("name") == "stderr"]
    text = path.read_text(encoding="utf-8")
    assert len(text) < 500_000
    without_pictures = re.sub(r'"image/\w+": "[^"]*"|base64,[\w+/=]*', "", text)
    assert not MACHINE.findall(without_pictures)
    assert "application/vnd.jupyter.widget" not in text
    assert "application/vnd.holoviews" not in text
    assert set(json.loads(text)["metadata"]) == {"kernelspec", "language_info"}
    assert not any(cell["metadata"] for cell in cells)


@pytest.mark.skipif(bool(reason_to_skip(NOTEBOOKS[0])), reason=str(reason_to_skip(NOTEBOOKS[0])))
def test_without_a_server_it_says_what_to_do(tmp_path):
    copy = shutil.copy(FOLDER / "04_dicomweb.ipynb", tmp_path)
    ended = subprocess.run(
        [sys.executable, str(FOLDER / "execute.py"), str(copy)],
        env=os.environ | {"DICOMSLIDE_ORTHANC_URL": "http://127.0.0.1:9/dicom-web"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert "no DICOMweb server at http://127.0.0.1:9/dicom-web: start Orthanc" in ended.stderr
