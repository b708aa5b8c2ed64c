"""Bulk annotations against highdicom's own reading and worked numbers; regions of annotations."""

from __future__ import annotations

import io
import itertools
import math
import pickle
import sys
import tracemalloc

import highdicom as hd
import numpy as np
import pydicom
import pytest
from highdicom.ann import Measurements
from highdicom.sr import Scoord3DContentItem
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRBigEndian

from dicomslide import open_slide
from dicomslide.annotation.bulk import find_annotation_groups, read_annotation_groups
from dicomslide.annotation.graphic import bounding_boxes, centroids
from dicomslide.annotation.group import AnnotationGroup, region_of_annotation
from dicomslide.backends.part10.file import FileSource
from dicomslide.contents.collection import join_concatenations
from dicomslide.errors import MetadataError, MetadataWarning
from dicomslide.image import TiledImage
from dicomslide.testing import write_slide
from tests.support.derive import annotations_of, group_of

AREA = codes.SCT.Area
SQUARE_MICROMETER = codes.UCUM.SquareMicrometer


# -- writing, by highdicom --


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Levels of a slide of anisotropic pixels, and of one that is sparse."""
    folder = tmp_path_factory.mktemp("annotated")
    options = dict(
        shape=(100, 140),
        tile_shape=(32, 48),
        spacing=(0.001, 0.00075),
        origin=(12.5, 31.25),
        drawing="position",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        associated=False,
    )
    return {
        "full": write_slide(folder / "full", downsamples=(1, 2), **options),
        "sparse": write_slide(
            folder / "sparse", downsamples=(1,), sparse=True, absent=[(0, 1)], **options
        ),
    }


@pytest.fixture(scope="module")
def image(paths):
    return opened(paths["full"][0])


def opened(path):
    source = FileSource.open(path)
    return TiledImage(source, source.metadata)


def reread(dataset):
    """The data set as a reader finds it, through bytes."""
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    file.seek(0)
    return pydicom.dcmread(file)


def millimeters(image, pixels):
    """What highdicom makes of image-relative (column, row) coordinates."""
    geometry = image.geometry
    transform = hd.spatial.ImageToReferenceTransformer(
        image_position=(*geometry.origin, 0),
        image_orientation=(*geometry.row_direction, 0, *geometry.column_direction, 0),
        pixel_spacing=geometry.spacing,
    )
    return transform(np.asarray(pixels, dtype=np.float64).reshape(-1, 2))[:, :2]


TRIANGLE = np.array([[10.0, 20.0], [30.0, 20.0], [30.0, 50.0]])


# -- reading --


def test_real_annotations_equal_what_highdicom_reads(shared_data):
    folder = shared_data / "highdicom"
    image = opened(folder / "sm_image.dcm")
    groups = find_annotation_groups(
        [FileSource.open(folder / "sm_annotations.dcm")], [image], image.frame_of_reference_uid
    )
    expected = hd.ann.annread(folder / "sm_annotations.dcm").AnnotationGroupSequence
    assert [group.number for group in groups] == [item.number for item in expected]
    for group, item in zip(groups, expected, strict=True):
        assert group.uid == item.uid
        assert group.label == item.label
        assert group.graphic_type == item.graphic_type.value
        assert group.generation_type == item.algorithm_type.value
        assert group.property_category == item.annotated_property_category
        assert group.property_type == item.annotated_property_type
        stored = item.get_graphic_data("2D")
        assert len(group) == len(stored)
        for found, pixels in zip(group, stored, strict=True):
            np.testing.assert_allclose(found, millimeters(image, pixels), rtol=0, atol=1e-12)
        names, values, units = item.get_measurements()
        assert [each.name for each in group.measurements] == names
        assert [each.unit for each in group.measurements] == units
        for measurement, column in zip(group.measurements, values.T, strict=True):
            np.testing.assert_array_equal(measurement.values, column)


def test_pixels_count_from_the_corner_of_the_matrix(image):
    """(0.5, 0.5) is the centre of pixel (0, 0), at the origin; columns run along −Y here."""
    points = [np.array([[0.5, 0.5]]), np.array([[10.5, 3.5]]), np.array([[0.0, 0.0]])]
    (group,) = read_annotation_groups(
        reread(annotations_of(image.name, [group_of(points, "POINT")])), image=image
    )
    expected = [
        (12.5, 31.25),
        (12.5 - 3 * 0.001, 31.25 - 10 * 0.00075),
        (12.5 + 0.0005, 31.25 + 0.000375),
    ]
    np.testing.assert_allclose(group.coordinates, expected, rtol=0, atol=1e-13)


def test_pixels_come_back_exactly_from_float32(image):
    """A corner on the edge of a pixel stays on it: millimetres of float32 would move it."""
    corners = np.float32([[c, r] for c in range(0, 140, 7) for r in range(0, 100, 3)])
    dataset = annotations_of(image.name, [group_of([corners], "POLYLINE")])
    assert "PointCoordinatesData" in dataset.AnnotationGroupSequence[0]
    (group,) = read_annotation_groups(reread(dataset), image=image)
    assert group.coordinates.dtype == np.float64
    np.testing.assert_array_equal(
        image.geometry.indices(group.coordinates), corners[:, ::-1].astype(int)
    )


@st.composite
def written_groups(draw):
    dimensions = draw(st.sampled_from([2, 3]))
    graphic_type = draw(st.sampled_from(["POINT", "POLYLINE", "POLYGON", "ELLIPSE", "RECTANGLE"]))
    sizes = {
        "POINT": st.just(1),
        "POLYLINE": st.integers(2, 6),
        "POLYGON": st.integers(3, 6),
        "ELLIPSE": st.just(4),
        "RECTANGLE": st.just(4),
    }[graphic_type]
    counts = draw(st.lists(sizes, min_size=1, max_size=5))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    points = random.uniform(0, 100, (sum(counts), dimensions)).astype(dtype)
    if dimensions == 3 and draw(st.booleans()):
        points[:, 2] = 0.125  # one plane: stored as Common Z Coordinate Value
    graphics = np.split(points, np.cumsum(counts)[:-1])
    measurements = []
    for _ in range(draw(st.integers(0, 2))):
        values = random.uniform(0, 10, len(counts))
        values[random.random(len(counts)) < 0.4] = np.nan
        measurements.append(Measurements(AREA, values, SQUARE_MICROMETER))
    return group_of(graphics, graphic_type, measurements=measurements), graphics


@given(written_groups())
@settings(max_examples=100)
def test_what_highdicom_writes_is_read(image, written):
    item, graphics = written
    three = graphics[0].shape[1] == 3
    dataset = reread(annotations_of(image.name, [item], "3D" if three else "2D"))
    (group,) = read_annotation_groups(dataset, image=None if three else image)
    assert group.graphic_type == item.GraphicType
    assert len(group) == len(graphics)
    for found, points in zip(group, graphics, strict=True):
        if not three:
            np.testing.assert_allclose(found, millimeters(image, points), rtol=0, atol=1e-12)
            continue
        assert found.dtype == points.dtype
        np.testing.assert_array_equal(found[:, :2], points[:, :2])
        if group.planes is None:
            np.testing.assert_array_equal(found, points)
        else:
            assert set(group.planes) == set(points[:, 2].tolist())
    for measurement, expected in zip(group.measurements, item.get_measurements()[1].T, strict=True):
        np.testing.assert_array_equal(measurement.values, expected)
        assert measurement.unit.value == "um2"


@pytest.mark.parametrize("kind", ["2D", "3D"])
def test_big_endian_values_are_read_in_their_order(image, kind):
    graphics = [TRIANGLE, TRIANGLE + 5]
    if kind == "3D":
        graphics = [np.c_[each, np.arange(3)] for each in graphics]
    area = Measurements(AREA, np.array([np.nan, 2.5]), SQUARE_MICROMETER)
    dataset = reread(annotations_of(image.name, [group_of(graphics, measurements=[area])], kind))
    (expected,) = read_annotation_groups(dataset, image=image)
    item = dataset.AnnotationGroupSequence[0]
    values = item.MeasurementsSequence[0].MeasurementValuesSequence[0]
    for holder, keyword, size in (
        (item, "DoublePointCoordinatesData", 8),
        (item, "LongPrimitivePointIndexList", 4),
        (values, "FloatingPointValues", 4),
        (values, "AnnotationIndexList", 4),
    ):
        swapped = np.frombuffer(holder[keyword].value, f"u{size}").byteswap().tobytes()
        holder[keyword].value = swapped
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    file = io.BytesIO()
    pydicom.dcmwrite(file, dataset, implicit_vr=False, little_endian=False)
    file.seek(0)
    (group,) = read_annotation_groups(pydicom.dcmread(file), image=image)
    np.testing.assert_array_equal(group.coordinates, expected.coordinates)
    np.testing.assert_array_equal(group.offsets, [0, 3, 6])
    np.testing.assert_array_equal(group.measurements[0].values, [np.nan, 2.5])


@pytest.mark.parametrize(("kind", "frame"), [("full", 5), ("full", 12), ("sparse", 2)])
def test_pixels_of_a_frame_count_from_its_corner(paths, kind, frame):
    image = opened(paths[kind][0])
    # the sparse image lacks the second tile of the first row
    row, column = divmod(frame - 1 if kind == "full" else frame, 3)
    dataset = annotations_of(image.name, [group_of([TRIANGLE])])
    dataset.PixelOriginInterpretation = "FRAME"
    dataset.ReferencedImageSequence[0].ReferencedFrameNumber = frame
    (group,) = read_annotation_groups(reread(dataset), image=image)
    expected = millimeters(image, TRIANGLE + np.array([48 * column, 32 * row]))
    np.testing.assert_allclose(group[0], expected, rtol=0, atol=1e-12)


def test_a_frame_of_a_part_is_counted_in_its_part(tmp_path, paths, image):
    """Parts of a concatenation are one image; annotations name the instance of a part."""
    whole = pydicom.dcmread(paths["full"][0])
    sources = []
    for part in (0, 1):
        dataset = pydicom.dcmread(paths["full"][0])
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.{part}"
        dataset.ConcatenationUID = "1.2.3"
        dataset.SOPInstanceUIDOfConcatenationSource = whole.SOPInstanceUID
        dataset.InConcatenationNumber = part + 1
        dataset.ConcatenationFrameOffsetNumber = 6 * part
        dataset.NumberOfFrames = 6
        half = len(whole.PixelData) // 2
        dataset.PixelData = whole.PixelData[half * part : half * (part + 1)]
        dataset.save_as(tmp_path / f"{part}.dcm")
        sources.append(FileSource.open(tmp_path / f"{part}.dcm"))
    (joined,) = join_concatenations(sources)
    dataset = annotations_of(image.name, [group_of([TRIANGLE])])
    dataset.PixelOriginInterpretation = "FRAME"
    dataset.ReferencedImageSequence[0].ReferencedSOPInstanceUID = "1.2.1"
    dataset.ReferencedImageSequence[0].ReferencedFrameNumber = 2
    (group,) = read_annotation_groups(reread(dataset), image=TiledImage(joined, joined.metadata))
    # the eighth of three in a row
    expected = millimeters(image, TRIANGLE + np.array([48 * 1, 32 * 2]))
    np.testing.assert_allclose(group[0], expected, rtol=0, atol=1e-12)


# -- what is odd, but can be read --


def test_odd_annotations_of_real_files_are_read(image):
    """One-point polygons, no property codes, no index list for an only annotation."""
    dataset = annotations_of(image.name, [group_of([TRIANGLE, TRIANGLE + 1])])
    item = dataset.AnnotationGroupSequence[0]
    item.LongPrimitivePointIndexList = np.uint32([1, 3]).tobytes()
    item.AnnotationPropertyCategoryCodeSequence = []
    del item.AnnotationPropertyTypeCodeSequence
    (group,) = read_annotation_groups(reread(dataset), image=image)
    assert [len(points) for points in group] == [1, 5]
    assert group.property_category is None
    assert group.property_type is None
    np.testing.assert_allclose(group.centroids[0], group[0][0])
    assert group.to_pandas()["property_type"].isna().all()
    item.NumberOfAnnotations = 1
    del item.LongPrimitivePointIndexList
    (group,) = read_annotation_groups(reread(dataset), image=image)
    assert [len(points) for points in group] == [6]


@pytest.mark.parametrize("graphic_type", ["POINT", "POLYLINE", "POLYGON", "ELLIPSE", "RECTANGLE"])
@pytest.mark.parametrize("kind", ["2D", "3D"])
def test_a_group_may_be_empty(image, graphic_type, kind):
    dataset = annotations_of(image.name, [group_of([TRIANGLE])], "2D")
    dataset.AnnotationCoordinateType = kind
    item = dataset.AnnotationGroupSequence[0]
    item.GraphicType = graphic_type
    item.NumberOfAnnotations = 0
    del item.DoublePointCoordinatesData, item.LongPrimitivePointIndexList
    (group,) = read_annotation_groups(reread(dataset), image=image)
    assert len(group) == len(list(group)) == 0
    assert group.coordinates.shape == (0, int(kind[0]))
    assert group.bounds.shape == (0, 4)
    assert group.centroids.shape == (0, 2)
    assert len(group.to_pandas()) == 0


def test_no_pixel_origin_is_that_of_the_matrix_with_a_warning(image):
    dataset = annotations_of(image.name, [group_of([TRIANGLE])])
    del dataset.PixelOriginInterpretation
    with pytest.warns(MetadataWarning, match="no Pixel Origin Interpretation"):
        (group,) = read_annotation_groups(reread(dataset), image=image)
    np.testing.assert_allclose(group[0], millimeters(image, TRIANGLE), rtol=0, atol=1e-12)


def test_planes_paths_and_algorithm_are_those_of_the_group(image):
    flat = [np.c_[TRIANGLE, np.full(3, 0.005)]]
    dataset = annotations_of(image.name, [group_of(flat, description="by hand")], "3D")
    item = dataset.AnnotationGroupSequence[0]
    item.CommonZCoordinateValue = [0.005, 0.007]
    item.AnnotationAppliesToAllOpticalPaths = "NO"
    item.ReferencedOpticalPathIdentifier = ["1", "2"]
    item.AnnotationGroupGenerationType = "AUTOMATIC"
    algorithm = Dataset()
    algorithm.AlgorithmName = "counter"
    item.AnnotationGroupAlgorithmIdentificationSequence = [algorithm]
    (group,) = read_annotation_groups(reread(dataset))
    assert group.planes == (0.005, 0.007)
    assert group.optical_paths == ("1", "2")
    assert group.generation_type == "AUTOMATIC"
    assert group.algorithm_name == "counter"
    assert group.description == "by hand"
    assert group.coordinates.shape == (3, 2)
    item.AnnotationAppliesToAllZPlanes = item.AnnotationAppliesToAllOpticalPaths = "YES"
    (group,) = read_annotation_groups(reread(dataset))
    assert group.planes is None
    assert group.optical_paths is None


# -- what is wrong --


def change(**values):
    def apply(dataset):
        item = dataset.AnnotationGroupSequence[0]
        for keyword, value in values.items():
            holder = dataset if keyword in dataset else item
            if value is None:
                del holder[keyword]
            else:
                setattr(holder, keyword, value)

    return apply


def remeasure(**values):
    def apply(dataset):
        item = dataset.AnnotationGroupSequence[0].MeasurementsSequence[0]
        for keyword, value in values.items():
            setattr(item.MeasurementValuesSequence[0], keyword, value)

    return apply


def refer(**values):
    def apply(dataset):
        dataset.PixelOriginInterpretation = "FRAME"
        for keyword, value in values.items():
            setattr(dataset.ReferencedImageSequence[0], keyword, value)

    return apply


def indices(*values):
    return np.uint32(values).tobytes()


WRONG = {
    "no such type": (change(GraphicType="CIRCLE"), "Graphic Type is CIRCLE"),
    "fewer than declared": (change(NumberOfAnnotations=3), "Annotations is 3, .* coordinates of 2"),
    "not ascending": (change(LongPrimitivePointIndexList=indices(1, 1)), "aren't valid for 12"),
    "descending": (change(LongPrimitivePointIndexList=indices(1, 9, 7)), "aren't valid for 12"),
    "out of range": (change(LongPrimitivePointIndexList=indices(1, 13)), "aren't valid for 12"),
    "not from the start": (
        change(LongPrimitivePointIndexList=indices(3, 7)),
        "aren't valid for 12",
    ),
    "zero-based": (change(LongPrimitivePointIndexList=indices(0, 6)), "has 0, which isn't"),
    "indices of points": (change(LongPrimitivePointIndexList=indices(1, 4)), "has 4, which isn't"),
    "no indices": (change(LongPrimitivePointIndexList=None), "0 indices that aren't valid"),
    "cut off": (change(DoublePointCoordinatesData=bytes(92)), "numbers of 8 bytes"),
    "half a point": (
        change(DoublePointCoordinatesData=bytes(88)),
        "11 coordinates aren't a multiple",
    ),
    "not finite": (
        change(DoublePointCoordinatesData=np.array([1, 2, np.nan] * 4).tobytes()),
        "point 2 of its coordinates isn't finite",
    ),
    "not of four": (change(GraphicType="ELLIPSE"), "6 points aren't a multiple of 4 per ELLIPSE"),
    "another measured": (remeasure(AnnotationIndexList=indices(1, 3)), "to annotation 3; .* are 2"),
    "none measured": (remeasure(AnnotationIndexList=indices(0, 1)), "to annotation 0; .* are 2"),
    "measured twice": (remeasure(AnnotationIndexList=indices(1, 1)), "several values for one"),
    "too few values": (remeasure(FloatingPointValues=bytes(4)), "1 values for 2 annotations"),
    "no coordinate type": (change(AnnotationCoordinateType=None), "Coordinate Type is None"),
    "no such origin": (change(PixelOriginInterpretation="TILE"), "Interpretation is TILE"),
    "no frame": (refer(), "expected one Referenced Frame Number, not none"),
    "two frames": (refer(ReferencedFrameNumber=[1, 2]), "expected one .*, not 1, 2"),
    "no such frame": (refer(ReferencedFrameNumber=13), "no frame 13 among 12"),
    "another image": (refer(ReferencedSOPInstanceUID="1.2.3"), "the image 1.2.3, which isn't here"),
    "another kind": (change(SOPClassUID="1.2"), "not Microscopy Bulk Simple Annotations"),
}


@pytest.mark.parametrize("case", WRONG)
def test_contradictions_are_errors(image, case):
    apply, message = WRONG[case]
    area = Measurements(AREA, np.array([1.0, 2.0]), SQUARE_MICROMETER)
    group = group_of([TRIANGLE, TRIANGLE + 5], measurements=[area])
    dataset = annotations_of(image.name, [group])
    apply(dataset)
    with pytest.raises(MetadataError, match=message) as error:
        read_annotation_groups(reread(dataset), image=image)
    assert dataset.SOPInstanceUID in str(error.value)


def test_several_images_of_pixels_are_an_error(image):
    dataset = annotations_of(image.name, [group_of([TRIANGLE])])
    other = Dataset()
    other.ReferencedSOPInstanceUID = "1.2.3"
    dataset.ReferencedImageSequence.append(other)
    with pytest.raises(MetadataError, match=r"pixels of one image, but it refers to .*, 1\.2\.3"):
        read_annotation_groups(reread(dataset), image=image)


# -- which are of a slide --


def save(folder, dataset, name="annotations.dcm"):
    path = folder / name
    dataset.save_as(path, enforce_file_format=True)
    return FileSource.open(path)


def test_annotations_of_any_level_are_found(tmp_path, paths):
    images = [opened(path) for path in paths["full"]]
    sources = [image._source for image in images]
    for number, image in enumerate(images):
        dataset = annotations_of(image.name, [group_of([TRIANGLE])])
        sources.append(save(tmp_path, dataset, f"{number}.dcm"))
    flat = [np.c_[TRIANGLE, np.zeros(3)]]
    sources.append(save(tmp_path, annotations_of(images[0].name, [group_of(flat)], "3D"), "3.dcm"))
    found = find_annotation_groups(sources, images, images[0].frame_of_reference_uid)
    assert len(found) == 3
    for group, image in zip(found, images, strict=False):
        np.testing.assert_allclose(group[0], millimeters(image, TRIANGLE), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(found[2][0], TRIANGLE)


def test_an_image_named_by_its_series_only_is_found(tmp_path, image):
    dataset = annotations_of(image.name, [group_of([TRIANGLE])])
    del dataset.ReferencedImageSequence
    assert len(find_annotation_groups([save(tmp_path, dataset)], [image], None)) == 1


@pytest.mark.parametrize("kind", ["2D", "3D"])
def test_annotations_of_another_slide_are_left_out(tmp_path, image, kind):
    graphics = [TRIANGLE if kind == "2D" else np.c_[TRIANGLE, np.zeros(3)]]
    dataset = annotations_of(image.name, [group_of(graphics)], kind)
    if kind == "2D":
        dataset.ReferencedImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"
    else:  # of this slide's image, but in millimetres of another frame of reference
        dataset.FrameOfReferenceUID = "1.2.3"
    source = save(tmp_path, dataset)
    with pytest.warns(MetadataWarning, match=r"left out: .*annotations\.dcm: .* another slide"):
        assert find_annotation_groups([source], [image], image.frame_of_reference_uid) == ()


def test_annotations_go_with_the_slide_that_is_chosen(tmp_path):
    for number, name in ((1, "one"), (2, "two")):
        options = dict(container_id=name, slide_number=number, associated=False)
        (path,) = write_slide(tmp_path / name, shape=(40, 40), downsamples=(1,), **options)
        dataset = annotations_of(path, [group_of([TRIANGLE] * number)])
        dataset.SOPInstanceUID = f"1.2.3.{number}"
        dataset.save_as(tmp_path / name / "annotations.dcm")
    for number, name in ((1, "one"), (2, "two")):
        slide = open_slide(tmp_path, container_id=name)
        assert [len(group) for group in slide.annotations()] == [number]


def test_pixels_of_an_absent_image_of_the_slide_are_an_error(tmp_path, image):
    dataset = annotations_of(image.name, [group_of([TRIANGLE])])
    dataset.FrameOfReferenceUID = image.frame_of_reference_uid
    dataset.ReferencedImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"
    source = save(tmp_path, dataset)
    with pytest.raises(MetadataError, match=r"pixels of the image 1\.2\.3, which isn't here"):
        find_annotation_groups([source], [image], image.frame_of_reference_uid)


# -- columns --


def test_a_group_is_a_sequence_of_read_only_views(image):
    dataset = annotations_of(image.name, [group_of([TRIANGLE, TRIANGLE + 5])])
    (group,) = read_annotation_groups(reread(dataset), image=image)
    assert np.shares_memory(group[1], group.coordinates)
    np.testing.assert_array_equal(group[-1], group[1])
    for index in (2, -3):
        with pytest.raises(IndexError, match=f"no annotation {index}; the group has 2"):
            group[index]
    with pytest.raises(ValueError, match="read-only"):
        group[0][0] = 0
    assert repr(group) == "<AnnotationGroup 1 'nuclei': 2 of POLYGON, 6 points>"
    copy = pickle.loads(pickle.dumps(group))
    np.testing.assert_array_equal(copy.coordinates, group.coordinates)
    assert copy.property_type == group.property_type


def test_a_million_points_take_little_more_than_themselves(image):
    """Polygons of 3 to 40 points, against NumPy on each of some of them."""
    random = np.random.default_rng(0)
    counts = random.integers(3, 41, 50_000)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    points = random.uniform(0, 100, (offsets[-1], 2)).astype(np.float32)
    dataset = annotations_of(image.name, [group_of([TRIANGLE])])
    item = dataset.AnnotationGroupSequence[0]
    del item.DoublePointCoordinatesData
    item.PointCoordinatesData = points.tobytes()
    item.LongPrimitivePointIndexList = (offsets[:-1] * 2 + 1).astype(np.uint32).tobytes()
    item.NumberOfAnnotations = len(counts)
    dataset = reread(dataset)
    tracemalloc.start()
    try:
        (group,) = read_annotation_groups(dataset, image=image)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    bounds, middles = group.bounds, group.centroids
    assert len(group) == 50_000
    assert len(group.coordinates) > 1_000_000
    assert peak < 4 * points.nbytes  # float64, twice the float32 of the file, and a little
    expected = millimeters(image, points)
    np.testing.assert_allclose(group.coordinates, expected, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(group.offsets, offsets)
    for i in (0, 1, 7_777, 31_415, 49_999):
        some = expected[offsets[i] : offsets[i + 1]]
        np.testing.assert_allclose(bounds[i], [*some.min(axis=0), *some.max(axis=0)])
        assert (bounds[i, :2] <= middles[i]).all()
        assert (middles[i] <= bounds[i, 2:]).all()


@given(
    st.lists(
        st.tuples(
            st.floats(-50, 50), st.floats(-50, 50), st.floats(0.001, 9), st.floats(0.001, 9),
            st.floats(0, 2 * math.pi),
        ),
        min_size=1,
        max_size=4,
    )
)  # fmt: skip
def test_bounds_of_an_ellipse_hold_its_curve(ellipses):
    """Against the curve itself, sampled densely."""
    points, expected = [], []
    for x, y, a, b, angle in ellipses:
        along = np.array([math.cos(angle), math.sin(angle)])
        across = np.array([-along[1], along[0]])
        points += [(x, y) + s * h * d for h, d in ((a, along), (b, across)) for s in (-1, 1)]
        t = np.linspace(0, 2 * np.pi, 5000)[:, None]
        curve = (x, y) + a * np.cos(t) * along + b * np.sin(t) * across
        expected.append([*curve.min(axis=0), *curve.max(axis=0)])
    boxes = bounding_boxes("ELLIPSE", np.array(points), np.arange(0, len(points) + 1, 4))
    np.testing.assert_allclose(boxes, expected, rtol=0, atol=2e-5)


def test_ellipse_of_anisotropic_pixels_is_one_in_millimetres(image):
    """Its axes aren't at a right angle any more; its bounds still hold its curve."""
    t = np.linspace(0, 2 * np.pi, 10_001)[:, None]
    along, across = np.array([20, 20]), np.array([-5, 5])
    curve = millimeters(image, (60, 50) + along * np.cos(t) + across * np.sin(t))
    ends = np.array([(40.0, 30), (80, 70), (65, 45), (55, 55)])
    (group,) = read_annotation_groups(
        reread(annotations_of(image.name, [group_of([ends], "ELLIPSE")])), image=image
    )
    expected = [*curve.min(axis=0), *curve.max(axis=0)]
    np.testing.assert_allclose(group.bounds[0], expected, rtol=0, atol=1e-9)


def test_centroids_are_those_of_area_and_length():
    """Worked numbers, of shapes of micrometres far from the origin."""
    far = np.array([20.0, 60.0])
    shapes = [
        # an L of three squares: ((0.5, 0.5) + (1.5, 0.5) + (0.5, 1.5)) / 3
        ([(0, 0), (2, 0), (2, 1), (1, 1), (1, 2), (0, 2)], (5 / 6, 5 / 6)),
        # a square with many points on one side
        ([(0, 0), (0.1, 0), (0.2, 0), (0.3, 0), (2, 0), (2, 2), (0, 2)], (1, 1)),
        ([(0, 0), (0, 2), (2, 2), (2, 0)], (1, 1)),  # clockwise
        ([(3, 4)], (3, 4)),
        ([(0, 0), (1, 1), (2, 2), (1, 1)], (1, 1)),  # without area
        ([(0, 0), (2, 2), (2, 0), (0, 2)], (1, 1)),  # crosses itself
    ]
    offsets = np.cumsum([0, *(len(points) for points, _ in shapes)])
    points = far + 0.001 * np.concatenate([points for points, _ in shapes])
    expected = far + 0.001 * np.array([middle for _, middle in shapes])
    found = centroids("POLYGON", points, offsets)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
    line = far + 0.001 * np.array([(0, 0), (0.5, 0), (1, 0), (4, 0)])
    found = centroids("POLYLINE", line, np.array([0, 4]))
    np.testing.assert_allclose(found, [far + np.array([0.002, 0])], rtol=0, atol=1e-12)


def test_table_has_a_row_an_annotation(image):
    measurements = [
        Measurements(AREA, np.array([1.5, np.nan]), SQUARE_MICROMETER),
        Measurements(AREA, np.array([3.0, 4.0]), SQUARE_MICROMETER),
    ]
    groups = [
        group_of([TRIANGLE, TRIANGLE + 6], measurements=measurements),
        group_of([TRIANGLE[:1]], "POINT", number=2),
    ]
    dataset = reread(annotations_of(image.name, groups))
    shapes, point = read_annotation_groups(dataset, image=image)
    table = shapes.to_pandas()
    assert list(table.columns) == [
        *("x", "y", "x_min", "y_min", "x_max", "y_max", "n_points", "Area", "Area_2"),
        *("group", "label", "graphic_type", "property_category", "property_type"),
    ]
    np.testing.assert_allclose(
        table[["x", "y"]], millimeters(image, [TRIANGLE.mean(axis=0), TRIANGLE.mean(axis=0) + 6])
    )
    np.testing.assert_allclose(table[["x_min", "y_min"]].iloc[0], shapes[0].min(axis=0))
    assert table["n_points"].tolist() == [3, 3]
    np.testing.assert_array_equal(table["Area"], [1.5, np.nan])
    assert table["Area_2"].tolist() == [3, 4]
    assert table.attrs["units"]["x"] == "mm"
    assert table.attrs["units"]["Area_2"] == "um2"
    assert table["property_type"].tolist() == ["Nucleus"] * 2
    import pandas as pd

    together = pd.concat([table, point.to_pandas()], ignore_index=True)
    assert together["group"].tolist() == [1, 1, 2]
    assert together["graphic_type"].tolist() == ["POLYGON", "POLYGON", "POINT"]


@pytest.mark.parametrize("z", [[0.5, 0.5, 0.5], [0.0, 0.5, 1.0]])
def test_table_has_z_where_the_annotations_have(image, z):
    dataset = annotations_of(image.name, [group_of([np.c_[TRIANGLE, z]])], "3D")
    (group,) = read_annotation_groups(reread(dataset))
    assert group.to_pandas()["z"].tolist() == [0.5]


def test_shapes_are_those_of_geopandas(image):
    pytest.importorskip("geopandas")
    box = np.array([(10.0, 10), (30, 10), (30, 20), (10, 20)])
    ends = np.array([(10.0, 20), (50, 20), (30, 10), (30, 30)])
    written = [
        ("POLYGON", [TRIANGLE, TRIANGLE + 1]),
        ("POLYLINE", [TRIANGLE, TRIANGLE[:2]]),
        ("POINT", [TRIANGLE[:1], TRIANGLE[1:2]]),
        ("RECTANGLE", [box, box + 1]),
        ("ELLIPSE", [ends, ends + 1]),
    ]
    groups = [group_of(g, kind, number=i + 1) for i, (kind, g) in enumerate(written)]
    found = read_annotation_groups(reread(annotations_of(image.name, groups)), image=image)
    pixel = 0.001 * 0.00075
    areas = dict(POLYGON=300, POLYLINE=0, POINT=0, RECTANGLE=200, ELLIPSE=200 * math.pi)
    for group in found:
        frame = group.to_geopandas()
        assert frame.crs is None
        assert list(frame.columns[:-1]) == list(group.to_pandas().columns)
        np.testing.assert_allclose(frame.area / pixel, areas[group.graphic_type], rtol=2e-3)
        np.testing.assert_allclose(frame.bounds, group.bounds, rtol=0, atol=1e-12)
        np.testing.assert_allclose(
            np.c_[frame.geometry.centroid.x, frame.geometry.centroid.y],
            group.centroids, rtol=0, atol=1e-12,
        )  # fmt: skip


def test_polygons_of_few_points_are_shapes_without_area():
    pytest.importorskip("geopandas")
    group = AnnotationGroup(
        number=1, uid=None, label=None, description=None, graphic_type="POLYGON",
        property_category=None, property_type=None, generation_type=None, algorithm_name=None,
        optical_paths=None, planes=None, coordinates=np.array([(1.0, 2), (3, 4), (5, 6)]),
        offsets=np.array([0, 1, 3]),
    )  # fmt: skip
    frame = group.to_geopandas()
    assert frame.area.tolist() == [0, 0]
    np.testing.assert_array_equal(frame.bounds, [(1, 2, 1, 2), (3, 4, 5, 6)])


def test_geopandas_is_asked_for_by_name(image, monkeypatch):
    monkeypatch.setitem(sys.modules, "geopandas", None)
    dataset = annotations_of(image.name, [group_of([TRIANGLE])])
    (group,) = read_annotation_groups(reread(dataset), image=image)
    with pytest.raises(ImportError, match=r"pip install 'dicomslide\[geo\]'"):
        group.to_geopandas()


# -- the region around one --


FRAME = "1.2.3.4"


def region(points, graphic_type="POINT", *, spacing=(0.001, 0.002), planes=(0.0,), **padding):
    points = np.asarray(points, dtype=np.float64)
    if points.shape[-1] == 2:
        points = np.concatenate([points, np.zeros((*points.shape[:-1], 1))], axis=-1)
    item = Scoord3DContentItem(
        name=codes.DCM.ImageRegion,
        graphic_type=graphic_type,
        graphic_data=points,
        frame_of_reference_uid=FRAME,
    )
    return region_of_annotation(
        item, frames_of_reference={FRAME}, spacing=spacing, planes=planes, **padding
    )


def corners(found):
    (x, y), (width, height) = found.offset, found.size
    return pytest.approx((x, y, x + width, y + height), abs=1e-9)


@pytest.mark.parametrize(
    ("graphic_type", "points", "box"),
    [
        ("MULTIPOINT", [(1, 2), (3, 7), (2, 9)], (1, 2, 3, 9)),
        ("POLYLINE", [(1, 2), (3, 7), (2, 9)], (1, 2, 3, 9)),
        ("POLYGON", [(1, 2), (3, 7), (2, 9), (1, 2)], (1, 2, 3, 9)),
        # half axes 5 and 1, turned by the angle of 3-4-5: half a box of √(9 + 0.64), √(16 + 0.36)
        (
            "ELLIPSE",
            [(7, 6), (13, 14), (10.8, 9.4), (9.2, 10.6)],
            (10 - 9.64**0.5, 10 - 16.36**0.5, 10 + 9.64**0.5, 10 + 16.36**0.5),
        ),
    ],
)
def test_region_is_the_box_around_the_annotation(graphic_type, points, box):
    assert box == corners(region(points, graphic_type))


@pytest.mark.parametrize(
    ("padding", "box"),
    [
        (1, (0, 1, 4, 10)),
        ((1, 2), (0, 0, 4, 11)),
        ([1, 2, 3, 4], (0, -2, 6, 11)),  # left = −X, top = +Y, right = +X, bottom = −Y
        (np.float32(0.5), (0.5, 1.5, 3.5, 9.5)),
    ],
)
def test_padding_mm_is_of_millimetres_on_the_slide(padding, box):
    assert box == corners(region([(1, 2), (3, 9)], "POLYLINE", padding_mm=padding))


@pytest.mark.parametrize(
    ("padding", "box"),
    [
        (1, (0.999, 1.998, 3.001, 9.002)),
        (2.0, (0.998, 1.996, 3.002, 9.004)),
        (np.int64(1), (0.999, 1.998, 3.001, 9.002)),
        ((1, 2), (0.999, 1.996, 3.001, 9.004)),
        ([1, 2, 3, 4], (0.999, 1.992, 3.003, 9.004)),  # left = −X, top = +Y, right = +X, bottom
    ],
)
def test_padding_is_of_pixels_of_the_level(padding, box):
    """One is 1 µm along X and 2 µm along Y."""
    assert box == corners(region([(1, 2), (3, 9)], "POLYLINE", padding=padding))
    both = region([(1, 2), (3, 9)], "POLYLINE", padding=padding, padding_mm=1)
    assert corners(both) == [box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1]


NO_PADDING = [-1, (1, -1), math.nan, math.inf, (1, 2, 3), (), (1,), [[1, 2], [3, 4]], None]


@pytest.mark.parametrize("padding", NO_PADDING)
def test_padding_that_is_none_is_an_error(padding):
    with pytest.raises(ValueError, match=r"padding_mm is .*; expected one, two or four finite"):
        region([(1, 2), (3, 9)], "POLYLINE", padding_mm=padding)


@pytest.mark.parametrize(
    "padding", [*NO_PADDING, 0.5, (1, 0.001), np.float32(0.25), [1, 2, 3, 4.5]]
)
def test_padding_that_is_no_whole_number_names_the_keyword_of_millimetres(padding):
    with pytest.raises(ValueError, match=r"padding is .* whole numbers of pixels.*padding_mm"):
        region([(1, 2), (3, 9)], "POLYLINE", padding=padding)


def test_annotations_of_no_region_are_errors():
    options = dict(frames_of_reference={FRAME}, spacing=(1.0, 1.0), planes=(0.0,))
    with pytest.raises(ValueError, match="ELLIPSOID has no region"):
        region([(i, i, i) for i in range(6)], "ELLIPSOID")
    item = Dataset()
    with pytest.raises(TypeError, match="expected a SCOORD3D content item"):
        region_of_annotation(item, **options)
    item.GraphicType, item.GraphicData = "POINT", [1.0, 2.0, 0.0]
    with pytest.raises(ValueError, match="of frame of reference None"):  # SCOORD: image-relative
        region_of_annotation(item, **options)
    item.ReferencedFrameOfReferenceUID = "1.2"
    with pytest.raises(ValueError, match=r"of frame of reference 1\.2, the slide of 1\.2\.3\.4"):
        region_of_annotation(item, **options)
    item.ReferencedFrameOfReferenceUID = FRAME
    assert region_of_annotation(item, **options).offset == (0.5, 1.5)
    for graphic_type, data, message in (
        ("POINT", [1.0, 2.0], "2 values"),
        ("POINT", [1.0] * 6, "6 values"),
        ("ELLIPSE", [1.0] * 9, "9 values"),
        ("POLYGON", [], "0 values"),
        ("POINT", [1.0, math.nan, 0.0], "isn't finite"),
    ):
        item.GraphicType, item.GraphicData = graphic_type, data
        with pytest.raises(ValueError, match=message):
            region_of_annotation(item, **options)


@pytest.mark.parametrize(("z", "plane"), [(0.0, 0), (0.0059, 0), (0.0061, 1), (0.007, 1), (1, 2)])
def test_region_is_of_the_nearest_focal_plane(z, plane):
    assert region([(1, 2, z)], planes=(5.0, 7.0, 9.0)).focal_plane_index == plane


def test_annotation_across_focal_planes_is_an_error():
    points = [(1, 2, 0.005), (3, 4, 0.009)]
    with pytest.raises(ValueError, match=r"in focal planes \[0, 2\], from z 0.005 to 0.009 mm"):
        region(points, "POLYLINE", planes=(5.0, 7.0, 9.0))
    assert region(points, "POLYLINE", planes=(5.0,)).focal_plane_index == 0


@pytest.mark.parametrize(
    "orientation",
    [(0, -1, 0, -1, 0, 0), (1, 0, 0, 0, -1, 0), (0.8, 0.6, 0, 0.6, -0.8, 0)],
    ids=["typical", "unrotated", "oblique"],
)
def test_a_point_is_the_pixel_in_which_it_lies(tmp_path, orientation):
    """At the centre of a pixel, and near its corners, against its own index."""
    (path,) = write_slide(
        tmp_path,
        shape=(40, 60),
        downsamples=(1,),
        tile_shape=(32, 32),
        spacing=(0.001, 0.00075),
        orientation=orientation,
        drawing="position",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        associated=False,
    )
    image = opened(path)
    matrix = image.get_total_pixel_matrix()[:, :, :]
    for row, column in ((0, 0), (17, 31), (39, 59)):
        for shift in itertools.product((-0.49, 0, 0.49), repeat=2):
            x, y = image.geometry.to_slide(np.array([row, column]) + shift)
            found = region([(x, y)], spacing=image.geometry.slide_spacing)
            pixels = image.get_slide_region(found.offset, found.size)
            assert pixels.shape == (1, 1, 3)
            np.testing.assert_array_equal(pixels[0, 0], matrix[row, column])


def test_less_padding_than_a_pixel_keeps_the_pixel_of_a_point(image):
    x, y = image.geometry.to_slide((20.3, 30.3))
    spacing = image.geometry.slide_spacing
    found = region([(x, y)], spacing=spacing, padding_mm=(0.0004, 0, 0, 0))
    pixels = image.get_slide_region(found.offset, found.size)
    np.testing.assert_array_equal(pixels[0, 0], image.get_total_pixel_matrix()[20, 30, :])
    assert pixels.shape == (1, 1, 3)


@pytest.mark.parametrize("padding", [1, (2, 0), (0, 1, 2, 3)])
def test_padding_in_pixels_is_around_the_pixel_of_a_point(image, padding):
    x, y = image.geometry.to_slide((20.3, 30.3))
    spacing = image.geometry.slide_spacing
    found = region([(x, y)], spacing=spacing, padding=padding)
    pixels = image.get_slide_region(found.offset, found.size)
    left, top, right, bottom = np.resize(padding, 4)
    assert pixels.shape == (top + 1 + bottom, left + 1 + right, 3)
    np.testing.assert_array_equal(pixels[top, left], image.get_total_pixel_matrix()[20, 30, :])
