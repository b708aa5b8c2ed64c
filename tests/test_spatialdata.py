"""Slides as SpatialData objects: µm on the slide, pixels that are read late."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
import xarray as xr

import dicomslide
from dicomslide.testing import position_values
from tests.support.derive import annotations_of, group_of, write_segmentation

spatialdata = pytest.importorskip(
    "spatialdata",
    reason="spatialdata wants an older dask, so a venv of its own: python3 -m venv"
    " .venv-spatialdata && .venv-spatialdata/bin/python -m pip install --editable '.[spatialdata]'"
    " pytest hypothesis highdicom && .venv-spatialdata/bin/python -m pytest"
    " tests/test_spatialdata.py",
)
from spatialdata.transformations import get_transformation  # noqa: E402


def to_um(element, x, y):
    """X and Y of the slide in µm, of a point of an element: in SpatialData, y points down."""
    affine = get_transformation(element).to_affine_matrix(("x", "y"), ("x", "y"))
    return (affine @ [x, y, 1])[:2] * (1, -1)


def test_an_image_is_lazy_upright_and_in_micrometres(levels, frames_read):
    slide = dicomslide.open_slide(levels)
    data = dicomslide.to_spatialdata(slide)
    assert not frames_read
    image = data["image"]
    assert isinstance(image, xr.DataTree)
    for level, shape in enumerate([(70, 110), (35, 55)]):
        array = image[f"scale{level}"].image
        assert array.dims == ("c", "y", "x")
        expected = position_values(np.arange(shape[0]), np.arange(shape[1]))
        np.testing.assert_array_equal(np.moveaxis(array.values, 0, -1), np.rot90(expected, -1))
    assert list(image["scale0"].c.values) == ["r", "g", "b"]
    for row, column in ((0, 0), (69, 109), (5, 80)):
        mm = slide.get_slide_offset((row, column), 0)
        # upright by −90°: x is the row counted from the last, y the column; centres are at 0.5
        assert to_um(image, 69 - row + 0.5, column + 0.5) == pytest.approx(np.multiply(mm, 1000))
    np.testing.assert_allclose(image["scale1"].y[:3], [1, 3, 5])


def test_one_focal_plane_is_shown(stack_slide):
    data = dicomslide.to_spatialdata(dicomslide.open_slide(stack_slide), focal_plane_index=2)
    array = data["image"]["scale0"].image
    assert list(array.c.values) == ["Fluorescence DAPI", "Fluorescence FITC"]
    expected = position_values(np.arange(100), np.arange(140), 1, 2, samples=1, dtype=np.uint16)
    np.testing.assert_array_equal(array[1], np.rot90(expected[..., 0], -1))
    with pytest.raises(ValueError, match="no focal plane 3; expected 0 to 2"):
        dicomslide.to_spatialdata(dicomslide.open_slide(stack_slide), focal_plane_index=3)


def test_segments_are_labels_and_annotations_shapes_and_points(tmp_path, levels):
    mask = np.zeros((70, 110, 2), np.uint8)
    mask[10:20, 30:50, 0] = mask[15:40, 40:60, 1] = 1
    path = write_segmentation(tmp_path / "seg.dcm", levels[0], mask, "BINARY")
    square = np.array([[5.0, 5], [25, 5], [25, 15], [5, 15]])  # (column, row)
    annotations = annotations_of(
        levels[0],
        [
            group_of([square], number=1),
            group_of([np.array([[7.5, 8.5]])], "POINT", number=2),
            group_of([square[:3]], "POLYLINE", number=3),
        ],
    )
    annotations.save_as(tmp_path / "ann.dcm")
    slide = dicomslide.open_slide([*levels, path, tmp_path / "ann.dcm"])
    with pytest.warns(dicomslide.MetadataWarning, match="no polylines"):
        data = dicomslide.to_spatialdata(slide)
    assert set(data.labels) == {"segmentation_segment_1", "segmentation_segment_2"}
    label = data["segmentation_segment_2"]
    np.testing.assert_array_equal(label["scale0"].image, 2 * np.rot90(mask[..., 1], -1))
    assert to_um(label, 0.5, 0.5) == pytest.approx(to_um(data["image"], 0.5, 0.5))
    assert data.coordinate_systems == ["global"]
    (shape,) = spatialdata.transform(data["annotations_1"], to_coordinate_system="global").geometry
    # pixels of annotations count from the corner of the matrix
    corners = 1000 * slide.levels[0].image.geometry.to_slide(square[:, ::-1] - 0.5)
    np.testing.assert_allclose(np.array(shape.exterior.coords)[:4] * (1, -1), corners)
    point = spatialdata.transform(data["annotations_2"], to_coordinate_system="global").compute()
    expected = 1000 * slide.levels[0].image.geometry.to_slide((8, 7))
    np.testing.assert_allclose(point[["x", "y"]].to_numpy()[0] * (1, -1), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what spatialdata imports
def test_it_is_written_and_read_again(tmp_path, levels):
    data = dicomslide.to_spatialdata(dicomslide.open_slide(levels))
    data.write(tmp_path / "slide.zarr")
    again = spatialdata.read_zarr(tmp_path / "slide.zarr")
    np.testing.assert_array_equal(again["image"]["scale1"].image, data["image"]["scale1"].image)
    assert to_um(again["image"], 3, 4) == pytest.approx(to_um(data["image"], 3, 4))


def test_a_level_that_lies_elsewhere_is_left_out(tmp_path, levels):
    moved = pydicom.dcmread(levels[1])
    (origin,) = moved.TotalPixelMatrixOriginSequence
    origin.XOffsetInSlideCoordinateSystem += 0.003  # three pixels of its own
    moved.save_as(tmp_path / "moved.dcm")
    slide = dicomslide.open_slide([levels[0], tmp_path / "moved.dcm"])
    with pytest.warns(dicomslide.MetadataWarning, match="level 1 is left out"):
        data = dicomslide.to_spatialdata(slide)
    assert list(data["image"]) == ["scale0"]
