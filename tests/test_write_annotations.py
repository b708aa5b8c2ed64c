"""Annotations and reports that are written and read again: by dicomslide, highdicom, dciodvfy."""

from __future__ import annotations

import errno
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.sr.codedict import codes

import dicomslide
from dicomslide.testing import write_slide
from tests.support import dciodvfy

hd = pytest.importorskip("highdicom", reason="highdicom, which reads again, isn't installed")
shapely = pytest.importorskip("shapely", reason="shapely isn't installed")
geopandas = pytest.importorskip("geopandas", reason="geopandas isn't installed")

ORIGIN = (12.5, 31.25)
LEAST = {"POINT": 1, "POLYLINE": 2, "POLYGON": 3, "ELLIPSE": 4, "RECTANGLE": 4}


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slide")
    write_slide(
        folder, shape=(100, 140), downsamples=(1, 2), tile_shape=(32, 48),
        spacing=(0.001, 0.00075), origin=ORIGIN, associated=False,
    )  # fmt: skip
    return dicomslide.open_slide(folder)


def files_of(slide):
    return [image._source.path for level in slide.levels for image in level.images]


def read_again(slide, *paths):
    return dicomslide.open_slide([*files_of(slide), *paths]).annotations()


def triangles(count=3, seed=1):
    random = np.random.default_rng(seed)
    return np.asarray(ORIGIN) - random.uniform(0, 0.05, (count, 3, 2))


# -- round trips --


@st.composite
def drawn_graphics(draw):
    kind = draw(st.sampled_from(list(LEAST)))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    most = {"POLYLINE": 9, "POLYGON": 9}.get(kind, LEAST[kind])
    counts = draw(st.lists(st.integers(LEAST[kind], most), min_size=1, max_size=6))
    points = random.normal(size=(sum(counts), draw(st.sampled_from([2, 3])))) + 10
    offsets = np.concatenate([[0], np.cumsum(counts)])
    if kind in ("ELLIPSE", "RECTANGLE"):
        for first in offsets[:-1]:
            angle, size = random.uniform(0, 7), np.sort(random.uniform(0.01, 1, 2))[::-1]
            turn = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
            ends = {
                "ELLIPSE": np.array([(-1, 0), (1, 0), (0, -1), (0, 1)]),
                "RECTANGLE": np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]),
            }[kind]
            points[first : first + 4, :2] = points[first, :2] + ends * size @ turn
    if points.shape[1] == 3 and draw(st.booleans()):
        points[:, 2] = 0.125
    values = random.uniform(0, 9, len(counts))
    values[random.random(len(counts)) < 0.4] = np.nan
    return kind, points, offsets, values


@given(drawn_graphics(), st.sampled_from(["float64", "float32"]))
@settings(max_examples=60, deadline=None)
def test_millimetres_are_read_again_to_the_last_bit(slide, tmp_path_factory, drawn, dtype):
    kind, points, offsets, _ = drawn
    target = tmp_path_factory.mktemp("target")
    (path,) = dicomslide.write_annotations(
        (points, offsets), slide, target, label="nucleus", graphic_type=kind, dtype=dtype
    )
    stored = points.astype(dtype)
    (group,) = read_again(slide, path)
    assert (group.label, group.graphic_type, len(group)) == ("nucleus", kind, len(offsets) - 1)
    assert group.coordinates.dtype == dtype
    np.testing.assert_array_equal(group.coordinates, stored[:, : group.coordinates.shape[1]])
    np.testing.assert_array_equal(group.offsets, offsets)
    if group.coordinates.shape[1] == 2:
        z = 0.125 if points.shape[1] == 3 else 0.0
        assert group.planes == (points[0, 2] if len(points) == 1 and points.shape[1] == 3 else z,)
    (read,) = hd.ann.annread(path).get_annotation_groups()
    assert read.annotated_property_type == codes.SCT.Nucleus
    for found, first, stop in zip(
        read.get_graphic_data("3D"), offsets[:-1], offsets[1:], strict=True
    ):
        np.testing.assert_array_equal(found[:, :2], stored[first:stop, :2])


@given(drawn_graphics(), st.sampled_from([0, 1]))
@settings(max_examples=30, deadline=None)
def test_pixels_of_a_level_are_those_of_highdicom(slide, tmp_path_factory, drawn, level):
    kind, points, offsets, _ = drawn
    (path,) = dicomslide.write_annotations(
        (points, offsets), slide, tmp_path_factory.mktemp("target"), label="cell",
        graphic_type=kind, coordinates="2D", level=level,
    )  # fmt: skip
    geometry = slide.levels[level].image.geometry
    to_pixels = hd.spatial.ReferenceToImageTransformer(
        image_position=(*geometry.origin, 0),
        image_orientation=(*geometry.row_direction, 0, *geometry.column_direction, 0),
        pixel_spacing=geometry.spacing,
    )
    flat = np.column_stack([points[:, :2], np.zeros(len(points))])
    found = np.concatenate(hd.ann.annread(path).get_annotation_groups()[0].get_graphic_data("2D"))
    np.testing.assert_allclose(found, to_pixels(flat)[:, :2], rtol=0, atol=1e-6)
    (group,) = read_again(slide, path)
    np.testing.assert_allclose(group.coordinates, points[:, :2], rtol=0, atol=1e-12)


def test_a_table_of_shapes_is_read_again_with_its_measurements(slide, tmp_path):
    shapes = shapely.polygons(triangles())
    frame = geopandas.GeoDataFrame(
        {"area": [1.5, np.nan, 2.5], "score": [0.25, 0.5, 1e-9], "name": list("abc")},
        geometry=shapes,
    )
    frame.attrs["frame_of_reference_uid"] = slide.frame_of_reference_uid
    (path,) = dicomslide.write_annotations(
        frame, slide, tmp_path, label="cells", algorithm="net 2.1", color="#ff0000",
        property_type=codes.SCT.Cell, description="by a network",
        measurements={"area": ("area", "um2"), "score": ("probability", codes.UCUM.NoUnits)},
    )  # fmt: skip
    (group,) = read_again(slide, path)
    assert shapely.equals_exact(group.to_geopandas().geometry, shapes).all()
    area, score = group.measurements
    assert (area.name, area.unit.value) == (codes.SCT.Area, "um2")
    assert (score.name.meaning, score.unit) == ("Probability", codes.UCUM.NoUnits)
    np.testing.assert_array_equal(area.values, np.float32([1.5, np.nan, 2.5]))
    np.testing.assert_array_equal(score.values, np.float32([0.25, 0.5, 1e-9]))
    assert group.property_type == codes.SCT.Cell
    assert (group.algorithm_name, group.generation_type) == ("net", "AUTOMATIC")
    assert group.description == "by a network"
    names, values, units = hd.ann.annread(path).get_annotation_groups()[0].get_measurements()
    assert [name.meaning for name in names] == ["Area", "Probability"]
    np.testing.assert_array_equal(values[:, 0], np.float32([1.5, np.nan, 2.5]))
    assert [unit.value for unit in units] == ["um2", "1"]
    # and once more, as a group
    (again,) = dicomslide.write_annotations(group, slide, tmp_path, name="again")
    (second,) = read_again(slide, again)
    assert second.property_category == group.property_category
    assert (second.algorithm_name, second.description) == ("net", "by a network")
    assert second.measurements[0].unit == area.unit
    np.testing.assert_array_equal(second.measurements[0].values, area.values)
    np.testing.assert_array_equal(second.coordinates, group.coordinates)
    # and as the table that the group is
    (third,) = dicomslide.write_annotations(
        group.to_geopandas(), slide, tmp_path, label="third", name="third", measurements=["Area"]
    )
    (third,) = read_again(slide, third)
    assert third.measurements[0].unit == area.unit


def test_several_groups_are_one_instance(slide, tmp_path):
    import pandas as pd

    points = pd.DataFrame({"x": [12.4, 12.3], "y": [31.1, 31.0], "z": [0.0, 0.002]})
    lines = geopandas.GeoSeries([shapely.LineString([(12.4, 31), (12.3, 31.1), (12.2, 31)])])
    (path,) = dicomslide.write_annotations(
        {"nuclei": points, "vessel": lines, "region": triangles()}, slide, tmp_path,
        algorithm_type="MANUAL", property_type={"region": "tumour"}, optical_paths=["1"],
    )  # fmt: skip
    first, second, third = read_again(slide, path)
    assert [each.graphic_type for each in (first, second, third)] == [
        "POINT",
        "POLYLINE",
        "POLYGON",
    ]
    assert [each.property_type.meaning for each in (first, second, third)] == [
        "Nucleus", "Blood vessel", "Neoplasm",
    ]  # fmt: skip
    np.testing.assert_array_equal(first.coordinates, points)
    assert (first.optical_paths, first.generation_type) == (("1",), "MANUAL")
    assert second.algorithm_name is None
    (path,) = dicomslide.write_annotations(first, slide, tmp_path, name="again")
    (again,) = read_again(slide, path)
    assert (again.optical_paths, again.generation_type) == (("1",), "MANUAL")
    with pytest.raises(ValueError, match="algorithm_type is MANUAL"):
        dicomslide.write_annotations(
            triangles(), slide, tmp_path, name="x", label="x", algorithm="a",
            algorithm_type="MANUAL",
        )  # fmt: skip


def test_polygons_are_written_open(slide, tmp_path):
    closed = np.concatenate([triangles(), triangles()[:, :1]], axis=1)
    (path,) = dicomslide.write_annotations(closed, slide, tmp_path, label="region")
    (group,) = read_again(slide, path)
    np.testing.assert_array_equal(group.coordinates.reshape(3, 3, 2), triangles())


def test_outlines_of_a_mask_come_back_as_the_mask(slide, tmp_path):
    recipes = pytest.importorskip("dicomslide.recipes", reason="scikit-image isn't installed")
    image = slide.to_dataset(chunks={}).image
    mask = (image.mean("sample") < 190).compute()
    shapes = recipes.outlines(mask)
    shapes = shapes[shapely.get_num_interior_rings(shapes.geometry) == 0]
    mask = recipes.rasterize(shapes, image)
    assert mask.sum() > 100
    for coordinates in ("3D", "2D"):
        (path,) = dicomslide.write_annotations(
            shapes, slide, tmp_path, label="nucleus", coordinates=coordinates, name=coordinates
        )
        (group,) = read_again(slide, path)
        np.testing.assert_array_equal(group.rasterize(image), mask)


def test_a_concatenation_has_pixels_of_its_first_part(tmp_path):
    path, *_ = write_slide(
        tmp_path / "whole", shape=(64, 96), tile_shape=(32, 32), downsamples=(1,),
        transfer_syntax_uid="1.2.840.10008.1.2.1", associated=False,
    )  # fmt: skip
    pixels, parts = pydicom.dcmread(path).PixelData, []
    for part in (0, 1):
        dataset = pydicom.dcmread(path)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.{part}"
        dataset.ConcatenationUID, dataset.InConcatenationNumber = "1.2.3", part + 1
        dataset.SOPInstanceUIDOfConcatenationSource = "1.2.4"
        dataset.ConcatenationFrameOffsetNumber, dataset.NumberOfFrames = 3 * part, 3
        half = len(pixels) // 2
        dataset.PixelData = pixels[half * part : half * (part + 1)]
        parts.append(tmp_path / f"{part}.dcm")
        dataset.save_as(parts[-1])
    joined = dicomslide.open_slide(parts)
    for coordinates, references in (("2D", ["1.2.0"]), ("3D", ["1.2.0", "1.2.1"])):
        (written,) = dicomslide.write_annotations(
            triangles(), joined, tmp_path, label="cell", coordinates=coordinates, name=coordinates
        )
        found = pydicom.dcmread(written).ReferencedImageSequence
        assert [each.ReferencedSOPInstanceUID for each in found] == references
        (group,) = dicomslide.open_slide([*parts, written]).annotations()
        np.testing.assert_allclose(group.coordinates.reshape(3, 3, 2), triangles(), atol=1e-12)


# -- lawful --


@pytest.mark.skipif(bool(dciodvfy.MISSING), reason=str(dciodvfy.MISSING))
@pytest.mark.parametrize("coordinates", ["3D", "2D"])
def test_annotations_are_lawful(slide, tmp_path, coordinates):
    import pandas as pd

    points = pd.DataFrame({"x": [12.4, 12.3], "y": [31.1, 31.0], "area": [1.0, np.nan]})
    (path,) = dicomslide.write_annotations(
        {"nuclei": points, "cells": triangles()}, slide, tmp_path, coordinates=coordinates,
        measurements=None, optical_paths=["1"], color=(255, 0, 0),
    )  # fmt: skip
    (other,) = dicomslide.write_annotations(
        points, slide, tmp_path, coordinates=coordinates, measurements=["area"], label="nuclei",
        name="other", algorithm="net 1.0",
    )  # fmt: skip
    assert dciodvfy.errors_in(path) == dciodvfy.errors_in(other) == []
    found, source = pydicom.dcmread(path), slide.levels[0].image.metadata
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "ContainerIdentifier"):
        assert found[keyword].value == source[keyword].value
    assert found.SpecimenDescriptionSequence == source.SpecimenDescriptionSequence
    assert found.ReferencedImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert (found.get("FrameOfReferenceUID") == source.FrameOfReferenceUID) == (coordinates == "3D")


# -- refusals --


def holed():
    return [shapely.Point(12.4, 31).buffer(0.02).difference(shapely.Point(12.4, 31).buffer(0.01))]


def with_nan():
    points = triangles()
    points[1, 2, 0] = np.nan
    return points


def frame_of(**columns):
    return geopandas.GeoDataFrame(columns, geometry=shapely.polygons(triangles()))


def of_other_frame():
    frame = frame_of()
    frame.attrs["frame_of_reference_uid"] = "1.2.3"
    return frame


WRONG = dicomslide.AnnotationError
REFUSED = {
    "NaN": (with_nan, {}, WRONG, "annotation 1 has the point .*nan"),
    "hole": (lambda: geopandas.GeoSeries(holed()), {}, WRONG, "row 0 has a hole"),
    "parts": (
        lambda: geopandas.GeoSeries([shapely.multipolygons(shapely.polygons(triangles()))]), {},
        WRONG, r"MultiPolygon .*explode\(\)",
    ),
    "empty": (lambda: geopandas.GeoSeries([shapely.Polygon(), None]), {}, WRONG, "no shape"),
    "kinds": (
        lambda: geopandas.GeoSeries([shapely.Point(1, 2), shapely.polygons(triangles())[0]]), {},
        WRONG, "one kind",
    ),
    "two points": (lambda: triangles()[:, :2], {}, WRONG, "has 2 points"),
    "no annotations": (lambda: triangles(0), {}, WRONG, "no annotations"),
    "rectangle": (
        lambda: np.array([[(0, 0), (1, 0), (2, 1), (0, 1.0)]]), {"graphic_type": "RECTANGLE"},
        WRONG, "no valid RECTANGLE",
    ),
    "shorter axis first": (
        lambda: np.array([[(0, -1), (0, 1), (-2, 0), (2.0, 0)]]), {"graphic_type": "ELLIPSE"},
        WRONG, "no valid ELLIPSE",
    ),
    "frame": (of_other_frame, {}, dicomslide.GridError, r"frame of reference 1\.2\.3"),
    "infinite measurement": (
        lambda: frame_of(area=[1, 2, 1e300]), {"measurements": ["area"]}, WRONG, "annotation 2 is",
    ),
    "text measured": (
        lambda: frame_of(area=list("abc")), {"measurements": ["area"]}, WRONG, "expected numbers",
    ),
    "no column": (frame_of, {"measurements": ["area"]}, ValueError, "no column"),
    "no code": (
        lambda: frame_of(beauty=[1, 2, 3]), {"measurements": ["beauty"]}, ValueError, "no code",
    ),
    "property": (frame_of, {"property_type": "beauty"}, ValueError, "no code is known"),
    "label": (frame_of, {"label": None}, ValueError, "label is missing"),
    "type": (lambda: [1, 2], {}, TypeError, "can't write a list"),
    "level": (frame_of, {"level": 7}, dicomslide.LevelNotFoundError, "level"),
    "coordinates": (frame_of, {"coordinates": "4D"}, ValueError, "coordinates '4D'"),
    "z": (frame_of, {"z": np.inf}, ValueError, "finite millimetres"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_and_leaves_nothing(slide, tmp_path, case):
    make, options, error, message = REFUSED[case]
    target = tmp_path / "results"
    with pytest.raises(error, match=message):
        dicomslide.write_annotations(make(), slide, target, **{"label": "nucleus"} | options)
    assert not target.exists()


def test_annotations_that_exist_are_overwritten_on_request_only(slide, tmp_path):
    (path,) = dicomslide.write_annotations(triangles(), slide, tmp_path, label="cell")
    before = Path(path).read_bytes()
    with pytest.raises(dicomslide.StoreExistsError, match="overwrite=True"):
        dicomslide.write_annotations(triangles(), slide, tmp_path, label="cell")
    assert Path(path).read_bytes() == before
    dicomslide.write_annotations(triangles(2), slide, tmp_path, label="cell", overwrite=True)
    assert len(read_again(slide, path)[0]) == 2


def test_a_full_disk_leaves_nothing(slide, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(dicomslide.ExportError, match="no room is left"):
        dicomslide.write_annotations(triangles(), slide, tmp_path / "new", label="cell")
    assert list(tmp_path.iterdir()) == []


def test_a_slide_without_a_frame_of_reference_has_pixels_only(tmp_path):
    path, *_ = write_slide(tmp_path / "slide", shape=(64, 64), downsamples=(1,), associated=False)
    header = pydicom.dcmread(path)
    del header.FrameOfReferenceUID
    header.save_as(path)
    bare = dicomslide.open_slide(path)
    with pytest.raises(dicomslide.MetadataError, match="Frame of Reference"):
        dicomslide.write_annotations(triangles(), bare, tmp_path / "to", label="cell")
    (written,) = dicomslide.write_annotations(
        triangles(), bare, tmp_path / "to", label="cell", coordinates="2D"
    )
    (group,) = dicomslide.open_slide([path, written]).annotations()
    np.testing.assert_allclose(group.coordinates.reshape(3, 3, 2), triangles(), atol=1e-12)


def test_many_polygons_are_written_without_a_copy(slide, tmp_path):
    angles = np.arange(20) * 2 * np.pi / 20
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    polygons = np.repeat(ORIGIN + 0.01 * circle[None], 50_000, axis=0)
    tracemalloc.start()
    (path,) = dicomslide.write_annotations(polygons, slide, tmp_path, label="cell")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert os.path.getsize(path) > polygons.nbytes
    assert peak < 0.5 * polygons.nbytes  # indices, and checks of points
    assert len(read_again(slide, path)[0]) == 50_000


# -- reports --


@pytest.fixture(scope="module")
def statistics(slide, tmp_path_factory):
    recipes = pytest.importorskip("dicomslide.recipes", reason="scikit-image isn't installed")
    image = slide.to_dataset(chunks={}).image
    brightness = image.mean("sample")
    masks = xr.concat([brightness < 150, brightness > 200, brightness < -1], "segment")
    masks = masks.assign_coords(segment_label=("segment", ["tumour", "stroma", "nothing"]))
    folder = tmp_path_factory.mktemp("segmentation")
    (path,) = dicomslide.write_segmentation(masks, slide, folder)
    return recipes.segment_statistics(image, masks), path


def test_statistics_of_segments_are_a_report_that_refers_to_them(slide, statistics, tmp_path):
    table, segmentation = statistics
    (path,) = dicomslide.write_measurements(
        table, slide, tmp_path, segmentation=segmentation, content_creator="Doe^Jane"
    )
    report = hd.sr.srread(path)
    assert report.StudyInstanceUID == slide.levels[0].image.metadata.StudyInstanceUID
    assert report.PatientID == slide.levels[0].image.metadata.PatientID
    groups = report.content.get_volumetric_roi_measurement_groups()
    segments = pydicom.dcmread(segmentation).SegmentSequence
    assert [group.tracking_uid for group in groups] == [each.TrackingUID for each in segments]
    assert [group.tracking_identifier for group in groups] == ["tumour", "stroma", "nothing"]
    expected = table.compute()
    for number, group in enumerate(groups):
        assert group.finding_type == segments[number].SegmentedPropertyTypeCodeSequence[0]
        found = {}
        for m in group.get_measurements():
            found.setdefault((m.name.meaning, m.unit.value), []).append(m.value)
        of = expected.isel(segment=number)
        np.testing.assert_allclose(found["Area", "mm2"], [of.area])
        if number < 2:  # an empty segment has no mean
            np.testing.assert_allclose(found["Mean", "1"], of["mean"])
            np.testing.assert_allclose(found["Standard Deviation", "1"], of["std"])
        else:
            assert set(found) == {("Area", "mm2")}
    evidence = {
        each.ReferencedSOPInstanceUID
        for keyword in ("CurrentRequestedProcedureEvidenceSequence",
                        "PertinentOtherEvidenceSequence")
        for study in report.get(keyword, [])
        for series in study.ReferencedSeriesSequence
        for each in series.ReferencedSOPSequence
    }  # fmt: skip
    assert evidence == {
        slide.levels[0].image.metadata.SOPInstanceUID,
        pydicom.dcmread(segmentation).SOPInstanceUID,
    }


def test_regions_of_a_report_lie_where_they_were_drawn(slide, tmp_path):
    frame = frame_of(area=[1.5, 2.5, 3.5], label=["tumour", "x", "stroma"])
    (path,) = dicomslide.write_measurements(
        frame, slide, tmp_path, codes={"area": ("area", "um2")}, findings={"x": codes.SCT.Necrosis}
    )
    groups = hd.sr.srread(path).content.get_planar_roi_measurement_groups()
    assert [group.finding_type.CodeMeaning for group in groups] == [
        "Neoplasm", "Necrosis", "Connective tissue",
    ]  # fmt: skip
    for group, corners, area in zip(groups, triangles(), frame["area"], strict=True):
        region = group.roi
        assert region.ReferencedFrameOfReferenceUID == slide.frame_of_reference_uid
        np.testing.assert_allclose(region.value[:-1, :2], corners, rtol=0, atol=1e-5)
        (measurement,) = group.get_measurements()
        assert (measurement.value, measurement.unit.value) == (area, "um2")
        # the documented door to the region of such an annotation
        assert slide.get_slide_region_for_annotation(region, 0).size


def test_segments_of_a_report_are_those_of_the_same_labels_in_any_order(slide, tmp_path):
    image = slide.to_dataset(chunks={}).image.isel(sample=0, drop=True)
    data = xr.concat([image < 100, image < 180, image < 250], "segment")
    (segmentation,) = dicomslide.write_segmentation(
        data, slide, tmp_path, segments=["tumour", "stroma", "fat"]
    )
    table = pd.DataFrame({"area": [3.0, 1.0], "label": ["fat", "tumour"]})
    (path,) = dicomslide.write_measurements(table, slide, tmp_path, segmentation=segmentation)
    groups = hd.sr.srread(path).content.get_volumetric_roi_measurement_groups()
    assert [(each.get_measurements()[0].value, _segment_of(each)) for each in groups] == [
        (3.0, [3]), (1.0, [1]),
    ]  # fmt: skip
    by_number = pd.DataFrame({"area": [3.0, 1.0, 2.0]}, index=[3, 1, 2])
    (path,) = dicomslide.write_measurements(
        by_number, slide, tmp_path, segmentation=segmentation, name="numbers"
    )
    groups = hd.sr.srread(path).content.get_volumetric_roi_measurement_groups()
    assert [(each.get_measurements()[0].value, _segment_of(each)) for each in groups] == [
        (3.0, [3]), (1.0, [1]), (2.0, [2]),
    ]  # fmt: skip
    table = pd.DataFrame({"area": [3.0, 1.0, 2.0], "label": ["fat", "tumour", "nerve"]})
    with pytest.raises(dicomslide.AnnotationError, match=r"segments .*'stroma'.*measured .*nerve"):
        dicomslide.write_measurements(
            table, slide, tmp_path, segmentation=segmentation, name="other"
        )


def _segment_of(group):
    """The segments that a group refers to."""
    return [
        int(reference.ReferencedSegmentNumber)
        for content in group[0].ContentSequence
        for reference in content.get("ReferencedSOPSequence", [])
        if "ReferencedSegmentNumber" in reference
    ]


def test_regions_in_another_order_than_measurements_are_refused(slide, tmp_path):
    frame = frame_of(area=[1.5, 2.5, 3.5])
    table = frame[["area"]].sort_values("area", ascending=False)
    with pytest.raises(dicomslide.AnnotationError, match=r"regions\.loc\[measurements\.index\]"):
        dicomslide.write_measurements(table, slide, tmp_path, regions=frame)
    regions = frame.loc[table.index]
    (path,) = dicomslide.write_measurements(table, slide, tmp_path, regions=regions)
    first, *_ = hd.sr.srread(path).content.get_planar_roi_measurement_groups()
    assert first.get_measurements()[0].value == 3.5
    np.testing.assert_allclose(first.roi.value[:-1, :2], triangles()[2], rtol=0, atol=1e-5)


def test_rectangles_are_regions_of_a_report(slide, tmp_path):
    corners = np.array([[[10.0, 20.0], [10.5, 20.0], [10.5, 20.25], [10.0, 20.25]]])
    (path,) = dicomslide.write_annotations(
        corners, slide, tmp_path, label="x", graphic_type="RECTANGLE"
    )
    (group,) = dicomslide.open_slide(
        [*(image._source.path for level in slide.levels for image in level.images), path]
    ).annotations()
    table = pd.DataFrame({"area": [1.0]})
    (path,) = dicomslide.write_measurements(table, slide, tmp_path, regions=group)
    (found,) = hd.sr.srread(path).content.get_planar_roi_measurement_groups()
    expected = np.concatenate([corners[0], corners[0, :1]])
    np.testing.assert_allclose(found.roi.value[:, :2], expected)


@pytest.mark.parametrize("unit", ["µm²", "um 2", ""])
def test_units_that_are_no_ucum_are_refused(slide, tmp_path, unit):
    frame = frame_of(size=[1.5, 2.5, 3.5])
    with pytest.raises(ValueError, match="expected UCUM"):
        dicomslide.write_annotations(
            frame, slide, tmp_path, label="cell", measurements={"size": ("area", unit)}
        )


def test_text_that_would_be_several_values_is_refused(slide, tmp_path):
    mask = slide.to_dataset().image.isel(sample=0, drop=True) < 180
    for options in (
        {"segments": ["a\\b"]}, {"segments": "a", "series_description": "a\\b"},
        {"segments": "a", "content_creator": "a\\b"},
        {"segments": {"label": "a", "algorithm": "net\\2 1.0"}},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="without a backslash"):
            dicomslide.write_segmentation(mask, slide, tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_options_of_unknown_groups_are_refused(slide, tmp_path):
    points = np.array([[10.0, 20.0]])
    with pytest.raises(ValueError, match=r"\['cels'\] aren't among the groups \['cells'\]"):
        dicomslide.write_annotations(
            {"cells": points}, slide, tmp_path, graphic_type={"cels": "POINT"}
        )


def test_units_are_those_that_a_table_says(slide, tmp_path):
    frame = frame_of(area=[1.5, 2.5, 3.5])
    (path,) = dicomslide.write_annotations(
        frame, slide, tmp_path, label="cell", measurements={"area": ("area", "um2")}
    )
    (group,) = read_again(slide, path)
    (report,) = dicomslide.write_measurements(group.to_geopandas(), slide, tmp_path)
    groups = hd.sr.srread(report).content.get_planar_roi_measurement_groups()
    found = [each.get_measurements()[0] for each in groups]
    assert [(each.value, each.unit.value) for each in found] == [
        (1.5, "um2"), (2.5, "um2"), (3.5, "um2"),
    ]  # fmt: skip


@pytest.mark.skipif(bool(dciodvfy.MISSING), reason=str(dciodvfy.MISSING))
def test_reports_are_lawful(slide, statistics, tmp_path):
    table, segmentation = statistics
    for name, options in (("a", {"segmentation": segmentation}), ("b", {})):
        (path,) = dicomslide.write_measurements(table, slide, tmp_path, name=name, **options)
        assert dciodvfy.errors_in(path) == []
    (path,) = dicomslide.write_measurements(frame_of(area=[1, 2, 3]), slide, tmp_path, name="c")
    assert dciodvfy.errors_in(path) == []


def test_reports_of_nothing_are_refused(slide, statistics, tmp_path):
    table, segmentation = statistics
    for measurements, options, error, message in (
        (table * np.nan, {}, WRONG, "all are NaN"),
        (table.drop_dims("segment"), {}, ValueError, "expected segment"),
        (
            table.isel(segment=[0]).drop_vars("segment_label"),
            {"segmentation": segmentation},
            WRONG,
            "3 segments for 1",
        ),
        (table, {"regions": frame_of()[:2]}, WRONG, "2 regions for 3"),
        (table, {"regions": of_other_frame()}, dicomslide.GridError, "frame of reference"),
        (table, {"segmentation": files_of(slide)[0]}, ValueError, "expected a segmentation"),
        (table.rename(area="beauty"), {}, ValueError, "'beauty': no code is known"),
        (frame_of(area=[1, np.inf, 2]), {}, WRONG, "area of 1 is inf"),
        ([1], {}, TypeError, "can't report a list"),
    ):
        with pytest.raises(error, match=message):
            dicomslide.write_measurements(measurements, slide, tmp_path / "to", **options)
    assert not (tmp_path / "to").exists()
