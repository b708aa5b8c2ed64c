"""The command line, as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pydicom
import pytest
from PIL import Image

from dicomslide.cli import main
from dicomslide.testing import write_slide
from tests.support.faulty_server import FaultyServer


def test_info_as_a_table(tissue_slide, capsys):
    assert main(["info", str(tissue_slide)]) == 0
    out = capsys.readouterr().out
    assert "DS-0001" in out
    assert "hematoxylin stain, water soluble eosin stain" in out
    lines = {line.split("  ")[0]: line for line in out.splitlines()}
    assert "600 × 900" in lines["level 0"]
    assert "0.5 " in lines["level 0"]
    assert "0.3 × 0.45" in lines["level 0"]
    assert "JPEG Baseline, YBR_FULL_422" in lines["level 2"]
    assert "25 × 75" in lines["overview"]
    assert "0\\-1\\0\\-1\\0\\0 (-90°)" in out


def test_info_as_json(stack_slide, capsys):
    assert main(["info", "--json", str(stack_slide)]) == 0
    (described,) = json.loads(capsys.readouterr().out)
    assert described["focal_planes_um"] == [5, 7, 9]
    assert [c["identifier"] for c in described["channels"]] == ["DAPI", "FITC"]
    assert [c["wavelength_nm"] for c in described["channels"]] == [405, 465]
    assert described["levels"][1]["rows"] == 50
    assert described["levels"][1]["um_per_pixel"] == [1, 1]
    assert described["levels"][0]["frames"] == 4 * 3 * 6


def run_module(*arguments, **environment):
    """Run ``python -m dicomslide`` as a terminal that knows ASCII only would."""
    return subprocess.run(
        [sys.executable, "-m", "dicomslide", *map(str, arguments)],
        capture_output=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONUTF8"} | environment,
    )


ASCII_TERMINALS = [
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "ascii:strict"},
    {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]


@pytest.mark.parametrize("terminal", ASCII_TERMINALS)
def test_a_terminal_of_ascii_gets_ascii(tmp_path, terminal):
    write_slide(tmp_path / "slide", shape=(60, 80), downsamples=(1, 2), container_id="Gewebe-Ü1")
    slide = tmp_path / "slide"
    table = run_module("info", slide, **terminal)
    assert (table.returncode, table.stderr) == (0, b"")
    text = table.stdout.decode("ascii")
    assert "60 x 80" in text
    assert "um/pixel" in text
    assert "(-90 deg)" in text
    assert "Gewebe-\\xdc1" in text
    as_json = run_module("info", "--json", slide, **terminal)
    assert json.loads(as_json.stdout.decode("ascii"))[0]["container_identifier"] == "Gewebe-Ü1"
    saved = run_module("thumbnail", slide, tmp_path / "out.png", **terminal)
    assert b"pixels" in saved.stdout
    wrong = run_module("info", tmp_path / "Ü-absent", **terminal)
    assert wrong.returncode == 1
    wrong.stderr.decode("ascii")
    assert run_module("--help", **terminal).returncode == 0


def test_python_m_dicomslide_is_the_command_line(tissue_slide):
    out = run_module("info", tissue_slide, PYTHONIOENCODING="utf-8")
    assert out.returncode == 0
    assert "600 × 900" in out.stdout.decode()
    usage = run_module()
    assert usage.returncode == 2
    assert b"usage: dicomslide" in usage.stderr
    assert run_module("info", "absent").returncode == 1


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
def test_a_reader_that_has_seen_enough_is_no_error(tissue_slide):
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "dicomslide", "info", "--json", str(tissue_slide)],
            stdout=closed, stderr=subprocess.PIPE,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")


def test_info_lists_segments_and_annotations_by_label(shared_data, capsys):
    folder = shared_data / "highdicom"
    paths = [str(folder / f"{name}.dcm") for name in ("sm_annotations", "sm_image")]
    assert main(["info", *paths]) == 0
    assert "annotations             'nuclei'" in capsys.readouterr().out
    assert main(["info", "--json", *paths]) == 0
    (described,) = json.loads(capsys.readouterr().out)
    assert described["annotations"] == ["nuclei"]


@pytest.mark.needs("requests")
def test_info_of_a_server(tissue_slide, capsys):
    with FaultyServer(tissue_slide) as server:
        assert main(["info", f"dicomweb+{server.url}"]) == 0
        of_server = capsys.readouterr().out
        assert main(["info", f"dicomweb+{server.url}", "--container-id", "DS-0001"]) == 0
    assert capsys.readouterr().out == of_server
    assert main(["info", str(tissue_slide)]) == 0
    assert capsys.readouterr().out.splitlines()[:7] == of_server.splitlines()[:7]


def test_thumbnail(tissue_slide, tmp_path, capsys):
    out = tmp_path / "out.png"
    assert main(["thumbnail", str(tissue_slide), str(out), "--size", "150"]) == 0
    with Image.open(out) as image:
        assert image.size == (100, 150)
    assert "100 × 150 pixels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "absent"], "absent"),
        (["info", "{empty}"], "no DICOM file"),
        (["info", "{text}"], "not a DICOM file"),
        (["info", "{slide}/label.dcm"], "not a slide"),
        (["info", "{slide}", "--container-id", "X"], "there are ['DS-0001']"),
        (["thumbnail", "{slide}", "{empty}/no/such/folder.png"], "folder.png"),
        (["thumbnail", "{slide}", "{empty}/out.xyz"], "out.xyz"),
        (["thumbnail", "{slide}", "{empty}/out.png", "--channel", "5"], "no channel 5"),
        pytest.param(
            ["demo", "absent", "--output", "{empty}/demo"],
            "absent",
            marks=pytest.mark.needs("skimage", "matplotlib"),
        ),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_one(
    tissue_slide, tmp_path, capsys, arguments, message
):
    text = tmp_path / "text.txt"
    text.write_text("not a slide")
    empty = tmp_path / "empty"
    empty.mkdir()
    filled = [a.format(empty=empty, text=text, slide=tissue_slide) for a in arguments]
    assert main(filled) == 1
    captured = capsys.readouterr()
    errors = captured.err.strip().splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("dicomslide: error: ")
    assert message in errors[0]


WRONG_USAGE = ["", "info", "thumbnail x", "x", "thumbnail x y --size 0", "thumbnail x y --size a"]


@pytest.mark.parametrize("arguments", [*map(str.split, WRONG_USAGE), ["info", ""]])
def test_wrong_usage_exits_with_two(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "usage: dicomslide" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.needs("skimage", "matplotlib")
def test_demo_on_a_slide_of_its_own(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("dicomslide.demo.SYNTHETIC_SHAPE", (1024, 1280))
    monkeypatch.setattr("dicomslide.demo.SYNTHETIC_DOWNSAMPLES", (1, 2, 4, 8))
    out = tmp_path / "out"
    assert main(["demo", "--output", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "Group: /level_3" in printed
    assert "tissue: " in printed
    assert "100% Completed" in printed
    for name in ("slide.png", "tissue.png", "region.png"):
        with Image.open(out / name) as image:
            pixels = np.asarray(image.convert("RGB"))
        assert min(pixels.shape[:2]) > 400
        assert pixels.std() > 10


@pytest.mark.needs("skimage", "matplotlib")
def test_demo_on_a_tiny_slide(tmp_path, capsys):
    write_slide(tmp_path / "slide", shape=(16, 20), downsamples=(1,), associated=False)
    assert main(["demo", str(tmp_path / "slide"), "--output", str(tmp_path)]) == 0
    assert (tmp_path / "region.png").exists()


@pytest.mark.needs("skimage", "matplotlib")
def test_demo_on_a_grey_slide(stack_slide, tmp_path, capsys):
    assert main(["demo", str(stack_slide), "--output", str(tmp_path)]) == 0
    assert (tmp_path / "tissue.png").exists()


def test_info_lists_the_pyramids_of_a_glass(tmp_path, capsys):
    folder = tmp_path / "slide"
    folder.mkdir()
    for number, origin in enumerate(((18.0, 32.0), (18.0, 20.0))):
        for path in write_slide(
            tmp_path / str(number), shape=(64 - number, 64), downsamples=(1,), origin=origin,
            associated=False,
        ):  # fmt: skip
            dataset = pydicom.dcmread(path)
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.{number}"
            dataset.save_as(folder / f"{number}.dcm")
    assert main(["info", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "DS-0001/pyramid-0" in out
    assert "DS-0001/pyramid-1" in out
    assert main(["info", "--json", "--pyramid", "1", str(folder)]) == 0
    (described,) = json.loads(capsys.readouterr().out)
    assert (described["pyramid_index"], described["levels"][0]["rows"]) == (1, 63)
    assert [each["rows"] for each in described["pyramids"]] == [64, 63]
    assert main(["info", "--pyramid", "1.dcm", str(folder)]) == 0
    assert "pyramid 1               63 × 64 pixels, 1 level" in capsys.readouterr().out
    assert main(["info", "--pyramid", "7", str(folder)]) != 0


def test_info_says_how_levels_are_registered(tmp_path, capsys):
    write_slide(tmp_path, shape=(64, 64), downsamples=(1, 2), level_origins="base")
    for options, x in (([], 18 - 0.00025), (["--as-stated"], 18)):
        assert main(["info", "--json", *options, str(tmp_path)]) == 0
        (described,) = json.loads(capsys.readouterr().out)
        level = described["levels"][1]
        assert level["total_pixel_matrix_origin"][0] == pytest.approx(x)
        assert level["registration"] == ("as stated" if options else "corner of the base level")
