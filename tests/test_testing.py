"""Synthetic slides are lawful, and show what they should."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pydicom
import pytest

import dicomslide
from dicomslide.testing import draw_cells, draw_tissue, position_values, write_slide

VARIANTS = {
    # dciodvfy knows neither extended offset tables nor deflated data sets
    "jpeg": dict(),
    "sparse": dict(sparse=True, undefined_lengths=True),
    "fluorescence": dict(
        samples=1,
        bits=16,
        optical_paths=("a", "b"),
        planes=(1.0, 2.5),
        drawing="position",
        transfer_syntax_uid="1.2.840.10008.1.2.4.80",
    ),
    "sparse stack": dict(
        sparse=True,
        samples=1,
        bits=16,
        optical_paths=("a", "b"),
        planes=(1.0, 2.5),
        drawing="position",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
    ),
    "JPEG 2000": dict(transfer_syntax_uid="1.2.840.10008.1.2.4.90", offset_table="empty"),
    "implicit": dict(transfer_syntax_uid="1.2.840.10008.1.2", sparse=True),
}


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy (dicom3tools) isn't installed")
@pytest.mark.parametrize("variant", VARIANTS)
def test_files_are_lawful(tmp_path, variant):
    for path in write_slide(tmp_path, shape=(300, 400), downsamples=(1, 2), **VARIANTS[variant]):
        run = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True)
        assert "Error" not in run.stderr, run.stderr
        assert run.returncode == 0


def test_every_frame_shows_the_place_that_its_header_gives(tmp_path):
    """Positions, planes and paths by pydicom's data sets, pixels by its decoder."""
    options = VARIANTS["sparse stack"]
    (path,) = write_slide(
        tmp_path, shape=(70, 90), downsamples=(1,), tile_shape=(32, 48), associated=False, **options
    )
    dataset = pydicom.dcmread(path)
    groups = dataset.PerFrameFunctionalGroupsSequence
    assert len(groups) == 3 * 2 * 2 * 2
    for group, frame in zip(groups, dataset.pixel_array, strict=True):
        place = group.PlanePositionSlideSequence[0]
        row = place.RowPositionInTotalImagePixelMatrix - 1
        column = place.ColumnPositionInTotalImagePixelMatrix - 1
        plane = [1.0, 2.5].index(place.ZOffsetInSlideCoordinateSystem)
        identifier = group.OpticalPathIdentificationSequence[0].OpticalPathIdentifier
        rows = np.arange(row, min(row + 32, 70))
        columns = np.arange(column, min(column + 48, 90))
        expected = position_values(
            rows, columns, ["a", "b"].index(identifier), plane, samples=1, dtype=np.uint16
        )
        np.testing.assert_array_equal(frame[: len(rows), : len(columns)], expected[..., 0])


def test_highdicom_puts_the_same_matrix_together(tmp_path):
    import highdicom as hd

    (path,) = write_slide(
        tmp_path,
        shape=(70, 90),
        downsamples=(1,),
        tile_shape=(32, 48),
        drawing="position",
        sparse=True,
        transfer_syntax_uid="1.2.840.10008.1.2.4.90",
        associated=False,
    )
    found = hd.imread(path).get_total_pixel_matrix(apply_icc_profile=False)
    np.testing.assert_array_equal(found, position_values(np.arange(70), np.arange(90)))


def test_writing_is_deterministic(tmp_path):
    first = write_slide(tmp_path / "a", shape=(300, 400))
    second = write_slide(tmp_path / "b", shape=(300, 400))
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes()


def test_tissue_is_pink_and_purple_on_glass():
    picture = draw_tissue((512, 400)).astype(int)
    assert picture.shape == (512, 400, 3)
    corner = picture[:20, :20].mean(axis=(0, 1))
    assert corner.min() > 225
    stained = picture[np.ptp(picture, axis=2) > 40]
    assert 0.2 < len(stained) / (512 * 400) < 0.9
    assert (stained[:, 1] < stained[:, 0]).mean() > 0.8  # less green than red
    assert not np.array_equal(picture, draw_tissue((512, 400), seed=1))


def test_a_drawing_that_nobody_knows_raises(tmp_path):
    with pytest.raises(ValueError, match="drawing 'cell': expected 'tissue', 'cells' or"):
        write_slide(tmp_path, drawing="cell")


def test_pydicom_reads_the_header(tmp_path):
    path = write_slide(tmp_path, shape=(300, 400), downsamples=(1,), associated=False)[0]
    dataset = pydicom.dcmread(path)
    assert dataset.SOPClassUID.name == "VL Whole Slide Microscopy Image Storage"
    assert dataset.NumberOfFrames == 4
    assert pydicom.pixels.pixel_array(dataset).shape == (4, 256, 256, 3)


def test_cells_are_in_their_channel_and_on_their_plane(tmp_path):
    planes = (0.0, 3.0, 6.0)
    write_slide(
        tmp_path, shape=(120, 150), downsamples=(1, 2), tile_shape=(64, 64), drawing="cells",
        samples=1, bits=16, optical_paths=("DAPI", "FITC"), planes=planes,
        transfer_syntax_uid="1.2.840.10008.1.2.4.80",
    )  # fmt: skip
    tree = dicomslide.open_slide(tmp_path).to_datatree()
    drawn = draw_cells((150, 120), 2, planes).reshape(150, 120, 2, 3)
    assert np.array_equal(tree["level_0"].image, drawn.transpose(2, 3, 0, 1))
    boxes = drawn.reshape(75, 2, 60, 2, 2, 3).mean((1, 3)).transpose(2, 3, 0, 1)
    assert np.array_equal(tree["level_1"].image, np.floor(boxes))
    assert not tree.attrs.get("stains")


def test_markers_beyond_the_third_are_of_cells_of_one_type():
    drawn = draw_cells((200, 240), 21, (0.0,)).astype(int) > 1500
    all_nuclei, *of_types, again = (drawn[..., channel] for channel in range(0, 21, 3))
    assert (drawn[..., :3] == (draw_cells((200, 240), 3, (0.0,)) > 1500)).all()
    for nuclei in of_types:
        assert 0.05 < nuclei.sum() / all_nuclei.sum() < 0.5
        assert (nuclei & ~all_nuclei).mean() < 0.001
    assert (again != of_types[0]).mean() < 0.01  # the same cells, with other noise
    assert sum(nuclei.sum() for nuclei in of_types) > 0.9 * all_nuclei.sum()


@pytest.mark.parametrize(
    "other",
    [{"samples": 1}, {"bits": 16}, {"drawing": "cells"}, {"drawing": "cells", "samples": 1}],
)
def test_a_drawing_of_other_samples_is_refused(tmp_path, other):
    with pytest.raises(ValueError, match=r"has \d samples of \d+ bits"):
        write_slide(tmp_path, shape=(64, 64), **other)
