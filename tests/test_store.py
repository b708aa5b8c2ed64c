"""Files and results that are stored on a server: at the prompt, and as they are written."""

from __future__ import annotations

import os

import numpy as np
import pydicom
import pytest

import dicomslide
from dicomslide.cli import main
from dicomslide.testing import write_slide
from tests.support.optional import reason_to_skip
from tests.support.stow_server import StowServer

pytestmark = pytest.mark.skipif(
    bool(reason_to_skip("requests")), reason=str(reason_to_skip("requests"))
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slide")
    write_slide(folder, shape=(100, 140), downsamples=(1, 2), tile_shape=(32, 48), associated=False)
    (folder / "notes.txt").write_text("not DICOM")
    return folder


@pytest.fixture
def files(folder):
    return {str(pydicom.dcmread(path).SOPInstanceUID): path for path in folder.glob("*.dcm")}


def test_files_and_folders_are_stored_byte_for_byte(folder, files, capsys):
    with StowServer() as server:
        assert main(["store", str(folder), str(next(iter(files.values()))), server.url]) == 0
    assert {uid: path.read_bytes() for uid, path in files.items()} == server.stored
    assert capsys.readouterr().out == f"{server.url}: stored 2 of 2 instances\n"


def test_what_a_server_refuses_is_named_with_the_reason(folder, files, capsys):
    (uid, path), (other, _) = files.items()
    with StowServer(lambda each: 0x0122 if each.SOPInstanceUID == uid else None) as server:
        assert main(["store", str(folder), f"dicomweb+{server.url}"]) == 1
    assert list(server.stored) == [other]
    out, error = capsys.readouterr()
    assert error == (f"dicomslide: error: {path}: {uid}: SOP Class not supported (0x0122)\n")
    assert out.endswith(": stored 1 of 2 instances\n")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["notes.txt"], "isn't a DICOM file"),
        (["level-0.dcm", "copy/again.dcm"], "both the instance"),
        (["missing.dcm"], "No such file"),
        (["empty"], "no DICOM files"),
    ],
)
def test_nothing_is_sent_where_a_file_is_not_to_be_stored(folder, tmp_path, capsys, names, message):
    (tmp_path / "copy").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("not DICOM")
    for name in ("level-0.dcm", "copy/again.dcm"):
        (tmp_path / name).write_bytes((folder / "level-0.dcm").read_bytes())
    with StowServer() as server:
        assert main(["store", *(str(tmp_path / name) for name in names), server.url]) == 1
    assert server.stored == {}
    assert message in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_in_a_folder_are_left_out(folder, tmp_path, capsys):
    (tmp_path / "level-0.dcm").write_bytes((folder / "level-0.dcm").read_bytes())
    os.mkfifo(tmp_path / "pipe")
    with StowServer() as server:
        assert main(["store", str(tmp_path), server.url]) == 0
    assert len(server.stored) == 1


def test_a_url_with_a_password_is_refused(folder, capsys):
    assert main(["store", str(folder), "https://me:secret@host/dicom-web"]) == 1
    error = capsys.readouterr().err
    assert "without user" in error
    assert "secret" not in error


def write_map(slide, target):
    score = (slide.to_dataset().image.mean("sample") / 255).rename("score")
    return dicomslide.write_parametric_map(score, slide, target, quantity="probability", unit="1")


def write_cells(slide, target):
    points = np.array([[(12.0, 20.0), (12.1, 20.0), (12.0, 20.1)]])
    return dicomslide.write_annotations(points, slide, target, label="cell")


def write_report(slide, target):
    recipes = pytest.importorskip("dicomslide.recipes", reason="scikit-image isn't installed")
    pytest.importorskip("highdicom", reason="highdicom isn't installed")
    image = slide.to_dataset().image
    statistics = recipes.segment_statistics(image, image.mean("sample") < 128)
    return dicomslide.write_measurements(statistics, slide, target)


WRITERS = [write_map, write_cells, write_report]


@pytest.mark.parametrize("write", WRITERS)
def test_a_result_is_stored_on_a_server(folder, write):
    slide = dicomslide.open_slide(folder)
    with StowServer() as server:
        uids = write(slide, f"dicomweb+{server.url}")
    assert list(server.stored) == uids
    assert len(uids) == 1


@pytest.mark.parametrize("write", WRITERS)
def test_a_result_that_a_server_refuses_is_an_error_that_names_it(folder, write):
    slide = dicomslide.open_slide(folder)
    with (
        StowServer(lambda each: 0xA700) as server,
        pytest.raises(dicomslide.StorageRefusedError, match="out of resources") as raised,
    ):
        write(slide, f"dicomweb+{server.url}")
    assert server.stored == {}
    assert len(raised.value.failures) == 1


@pytest.mark.parametrize("write", WRITERS)
def test_a_result_is_written_to_a_bucket(folder, tmp_path, write):
    fsspec = pytest.importorskip("fsspec", reason="fsspec isn't installed")
    slide = dicomslide.open_slide(folder)
    (url,) = write(slide, f"memory://{tmp_path.name}")
    study = slide.levels[0].image.metadata.StudyInstanceUID
    with fsspec.open(url) as file:
        assert pydicom.dcmread(file).StudyInstanceUID == study
    with pytest.raises(dicomslide.StoreExistsError):
        write(slide, f"memory://{tmp_path.name}")
