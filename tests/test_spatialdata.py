"""Slides as SpatialData objects: µm on the slide, pixels that are read late."""

from __future__ import annotations

import dataclasses

import numpy as np
import pydicom
import pytest
import xarray as xr
from pydicom.sr.coding import Code

import dicomslide
from dicomslide.export import images as export_images
from dicomslide.export import spatialdata as export
from dicomslide.testing import position_values
from tests.support.derive import annotations_of, group_of, write_segmentation
from tests.support.markers import write_markers

spatialdata = pytest.importorskip(
    "spatialdata",
    reason="spatialdata wants an older dask, so a venv of its own: python3 -m venv"
    " .venv-spatialdata && .venv-spatialdata/bin/python -m pip install --editable '.[spatialdata]'"
    " pytest hypothesis highdicom && .venv-spatialdata/bin/python -m pytest"
    " tests/test_spatialdata.py",
)
hd = pytest.importorskip("highdicom")
from spatialdata.transformations import get_transformation  # noqa: E402

from dicomslide import recipes  # noqa: E402


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


def test_all_focal_planes_are_an_image_of_three_dimensions(stack_slide):
    slide = dicomslide.open_slide(stack_slide)
    data = dicomslide.to_spatialdata(slide, focal_plane_index=None)
    array = data["image"]["scale0"].image
    assert array.dims == ("c", "z", "y", "x")
    expected = position_values(np.arange(100), np.arange(140), 1, 2, samples=1, dtype=np.uint16)
    np.testing.assert_array_equal(array[1, 2], np.rot90(expected[..., 0], -1))
    dims = ("x", "y", "z")
    affine = get_transformation(data["image"]).to_affine_matrix(dims, dims)
    np.testing.assert_allclose((affine @ [0.5, 0.5, 2.5, 1])[2], 9)  # µm of the third plane
    plane = dicomslide.to_spatialdata(slide)
    assert (affine @ [3, 4, 0.5, 1])[:2] * (1, -1) == pytest.approx(to_um(plane["image"], 3, 4))


def test_of_a_segmentation_the_plane_is_taken_that_is_nearest(stack_slide, tmp_path):
    """Its planes needn't be those of the image, and it may have one."""
    slide = dicomslide.open_slide(stack_slide)
    tree = slide.to_datatree(squeeze=False)
    image = export_images.images_of(tree, 64)[0]
    array = image.levels[0].array
    for planes, nearest in (([0, 2], 1), ([1], None), ([0, 1], 1)):
        level = dataclasses.replace(image.levels[0], array=array.isel(z=planes))
        other = dataclasses.replace(image, levels=(level,))
        taken = export._in_plane(other, 2, export._z_of_plane(image, 2)).levels[0].array
        assert taken.sizes.get("z") in (None, 1)
        if nearest is not None:
            np.testing.assert_array_equal(taken.values, array.isel(z=planes[nearest]).values)


def test_channels_of_one_name_have_names_of_their_own(tmp_path):
    path = write_markers(
        tmp_path / "a.dcm", [{"OpticalPathDescription": name} for name in ("CD3", "DAPI", "cd3")]
    )
    data = dicomslide.to_spatialdata(dicomslide.open_slide(path))
    assert list(data["image"]["scale0"].c.values) == ["CD3", "DAPI", "cd3_2"]
    assert [each["color"] for each in data.attrs["channels"]["image"]][1] == "#0000FF"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:zarr v3 autosharding")
def test_measurements_and_statistics_are_tables(tmp_path, levels):
    """Rows are annotations or segments; they are there when it is read again."""
    mask = np.zeros((70, 110, 2), np.uint8)
    mask[10:20, 30:50, 0] = mask[15:40, 40:60, 1] = 1
    path = write_segmentation(tmp_path / "seg.dcm", levels[0], mask, "BINARY")
    header = pydicom.dcmread(path)
    header.SegmentSequence[1].RecommendedDisplayCIELabValue = [0, 32896, 32896]  # black
    header.save_as(path)
    square = np.array([[5.0, 5], [25, 5], [25, 15], [5, 15]])
    measured = [
        hd.ann.Measurements(Code("42798000", "SCT", "Area"), np.array(values),
                            Code("um2", "UCUM", "square micrometer"))
        for values in ([7.0, 9.0], [1.0, 2.0])
    ]  # fmt: skip
    annotations = annotations_of(
        levels[0],
        [
            group_of([square, square + 5], number=1, measurements=measured),
            group_of([square[:1], square[1:2]], "POINT", number=2, measurements=measured[:1]),
            group_of([square], number=3),
        ],
    )
    annotations.save_as(tmp_path / "ann.dcm")
    slide = dicomslide.open_slide([*levels, path, tmp_path / "ann.dcm"])
    level = slide.to_dataset(0)
    statistics = recipes.segment_statistics(level.image, level.segmentation)
    data = dicomslide.to_spatialdata(slide, statistics={"segmentation": statistics})
    data.write(tmp_path / "out.zarr")
    for each in (data, spatialdata.read_zarr(tmp_path / "out.zarr")):
        assert set(each.tables) == {"segments", "annotations_1_table", "annotations_2_table"}
        table = each["annotations_1_table"]
        assert list(table.var_names) == ["Area", "Area_2"]
        assert list(table.var["units"]) == ["um2", "um2"]
        np.testing.assert_array_equal(table.X, [[7, 1], [9, 2]])
        for name in ("annotations_1", "annotations_2"):
            of_element = each[f"{name}_table"].obs
            assert list(of_element["instance_id"]) == list(each[name].index)
            assert set(of_element["region"]) == {name}
            assert "Area" not in each[name]
        segments = each["segments"]
        assert list(segments.obs["region"]) == [f"segmentation_segment_{i}" for i in (1, 2)]
        assert list(segments.obs["instance_id"]) == [1, 2]
        assert list(segments.obs["label"]) == ["tumour", "stroma"]
        colors = dict(zip(segments.obs["label"].cat.categories, segments.uns["label_colors"],
                          strict=True))  # fmt: skip
        assert colors["stroma"] == "#000000"
        values = segments.to_df()
        pixels = np.rot90(position_values(np.arange(70), np.arange(110)), -1)
        for k in range(2):
            inside = np.rot90(mask[..., k], -1) == 1
            assert values["mean_g"].iloc[k] == pytest.approx(pixels[inside][:, 1].mean())
            assert values["area"].iloc[k] == pytest.approx(inside.sum() * 0.0005**2)
        assert each.attrs["channels"] == data.attrs["channels"]
    with pytest.raises(ValueError, match="given for 'other'; expected segmentations: 'segmenta"):
        dicomslide.to_spatialdata(slide, statistics={"other": statistics})
    with pytest.raises(ValueError, match="variables without the dim segment: image"):
        dicomslide.to_spatialdata(slide, statistics={"segmentation": level})
