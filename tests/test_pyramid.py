"""Which images are levels of one pyramid, and which of them is chosen."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pydicom
import pytest

import dicomslide
from dicomslide import MetadataError, Pyramid, PyramidLevel
from dicomslide.testing import write_slide

FACTORS = (1, 2, 4)


@pytest.fixture(scope="module")
def headers(tmp_path_factory):
    """Headers of three levels of 130 × 170 pixels and less, as pydicom reads them."""
    folder = tmp_path_factory.mktemp("pyramid")
    paths = write_slide(
        folder,
        shape=(128, 176),
        downsamples=FACTORS,
        tile_shape=(32, 48),
        spacing=(0.0005, 0.00025),
        planes=(5.0, 7.0),
        drawing="position",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
    )
    return [pydicom.dcmread(path, stop_before_pixels=True) for path in paths]


@pytest.fixture
def levels(headers):
    return copy.deepcopy(headers[:3])


def move(dataset, millimeters):
    origin = dataset.TotalPixelMatrixOriginSequence[0]
    origin.XOffsetInSlideCoordinateSystem = origin.XOffsetInSlideCoordinateSystem + millimeters


def measures(dataset):
    return dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]


def thumbnail_of(dataset):
    thumbnail = copy.deepcopy(dataset)
    thumbnail.ImageType = ["DERIVED", "PRIMARY", "THUMBNAIL", "RESAMPLED"]
    return thumbnail


# -- Pyramid ---------------------------------------------------------------------------------


def test_levels_are_sorted_and_described(levels):
    pyramid = Pyramid(levels[::-1], 0.1)
    assert isinstance(pyramid, Sequence)
    assert list(pyramid) == [
        ((128, 176), (0.0005, 0.00025), (1.0, 1.0), True),
        ((64, 88), (0.001, 0.0005), (2.0, 2.0), True),
        ((32, 44), (0.002, 0.001), (4.0, 4.0), True),
    ]
    assert pyramid[1].total_pixel_matrix_dimensions == (64, 88)
    assert pyramid[1].pixel_spacing == (0.001, 0.0005)
    assert repr(pyramid) == "<Pyramid of 3 levels: 128 × 176, 64 × 88, 32 × 44>"


def test_a_pyramid_is_a_sequence(levels):
    pyramid = Pyramid(levels, 0.1)
    as_list = list(pyramid)
    assert len(pyramid) == 3
    assert all(isinstance(level, PyramidLevel) for level in pyramid)
    for key in (0, -1, slice(None), slice(1, None), slice(None, None, -1), slice(5, 9)):
        expected = as_list[key]
        assert pyramid[key] == (tuple(expected) if isinstance(key, slice) else expected)
    for wrong in (3, -4):
        with pytest.raises(IndexError):
            pyramid[wrong]
    assert list(reversed(pyramid)) == as_list[::-1]
    assert pyramid.index(as_list[2]) == 2


def test_iterators_are_independent(levels):
    pyramid = Pyramid(levels, 0.1)
    pairs = [(a, b) for a in pyramid for b in pyramid]
    assert pairs == [(a, b) for a in list(pyramid) for b in list(pyramid)]


def test_factors_are_those_of_rows_and_of_columns(levels):
    levels[1].TotalPixelMatrixRows = 63
    assert Pyramid(levels, 0.1)[1].downsampling_factors == (128 / 63, 2.0)


def test_images_of_one_size_are_one_level(levels):
    other_channel = copy.deepcopy(levels[1])
    assert list(Pyramid([*levels, other_channel], 0.1)) == list(Pyramid(levels, 0.1))


def test_a_thumbnail_is_a_level_unless_one_has_its_size(levels):
    alone = Pyramid([levels[0], thumbnail_of(levels[2])], 0.1)
    assert [level.total_pixel_matrix_dimensions for level in alone] == [(128, 176), (32, 44)]
    elsewhere = thumbnail_of(levels[2])
    move(elsewhere, 5)
    assert list(Pyramid([*levels, elsewhere], 0.1)) == list(Pyramid(levels, 0.1))


def test_an_image_elsewhere_is_no_level(levels):
    move(levels[2], 0.3)
    with pytest.raises(MetadataError, match=r"level-2\.dcm: its centre is 0\.3 mm away") as caught:
        Pyramid(levels, 0.1)
    assert isinstance(caught.value, ValueError)
    assert len(Pyramid(levels, 0.31)) == 3


def test_centres_may_differ_by_a_pixel_of_the_level(levels):
    move(levels[2], 0.0019)  # spacing of its rows: 0.002
    assert len(Pyramid(levels, 0.0)) == 3
    move(levels[2], 0.0002)
    with pytest.raises(MetadataError, match="its centre is"):
        Pyramid(levels, 0.0)


def test_slide_leaves_out_what_is_no_level(tmp_path):
    paths = write_slide(tmp_path, shape=(128, 176), downsamples=FACTORS, associated=False)
    dataset = pydicom.dcmread(paths[2])
    move(dataset, 0.3)
    dataset.save_as(paths[2])
    with pytest.warns(dicomslide.MetadataWarning, match=r"pyramid=1: .*level-2\.dcm"):
        slide = dicomslide.open_slide(tmp_path)
    assert slide.num_levels == 2
    slide = dicomslide.open_slide(tmp_path, pyramid_tolerance=0.31)
    with pytest.raises(MetadataError):
        Pyramid([level.image.metadata for level in slide.levels], 0.1)
    pyramid = Pyramid([level.image.metadata for level in slide.levels], 0.31)
    sizes = tuple(level.total_pixel_matrix_dimensions for level in pyramid)
    assert sizes == slide.total_pixel_matrix_dimensions


def test_levels_of_references_are_a_template(levels):
    for present in ([], [0], [2, 1], [0, 1, 2]):
        pyramid = Pyramid([levels[i] for i in present], 0.1, ref_metadata=levels[::-1])
        assert [level[:3] for level in pyramid] == [level[:3] for level in Pyramid(levels, 0.1)]
        assert [level.has_pixels for level in pyramid] == [i in present for i in range(3)]


def test_an_image_that_matches_no_level_of_the_references_is_a_value_error(levels):
    with pytest.raises(ValueError, match=r"no level has .* \(32, 44\); there are \[\(128, 176\)"):
        Pyramid(levels, 0.1, ref_metadata=levels[:2])
    derived = copy.deepcopy(levels)
    move(derived[1], 1)
    with pytest.raises(ValueError, match=r"its centre is 1 mm away"):
        Pyramid(derived, 0.1, ref_metadata=levels)
    with pytest.raises(ValueError, match=r"its centre is 1 mm away"):
        Pyramid(levels, 0.1, ref_metadata=derived)


def test_labels_and_overviews_are_no_levels(headers):
    assert headers[3].ImageType[2] == "LABEL"
    with pytest.raises(MetadataError, match="expected a tiled VOLUME or THUMBNAIL image, not LAB"):
        Pyramid(headers, 0.1)


def test_a_pyramid_has_an_image(levels):
    for arguments in (([], 0.1), ([], 0.1, []), (levels, 0.1, [])):
        with pytest.raises(ValueError, match="at least one image"):
            Pyramid(*arguments)


def test_absent_spacings_come_from_the_field_of_view(levels):
    for level in levels[1:]:
        del measures(level).PixelSpacing, level.ImagedVolumeWidth, level.ImagedVolumeHeight
    assert Pyramid(levels, 0.1)[2].pixel_spacing == pytest.approx((0.002, 0.001))
    del measures(levels[0]).PixelSpacing, levels[0].ImagedVolumeWidth, levels[0].ImagedVolumeHeight
    with pytest.raises(MetadataError, match="no Pixel Spacing"):
        Pyramid(levels, 0.1)


# -- what an image says ----------------------------------------------------------------------


def test_centre_is_that_of_all_pixels(levels):
    import highdicom

    for level in levels:
        x, y, z = dicomslide.compute_image_center_position(level)
        origin = level.TotalPixelMatrixOriginSequence[0]
        expected = highdicom.spatial.PixelToReferenceTransformer(
            image_position=(
                origin.XOffsetInSlideCoordinateSystem,
                origin.YOffsetInSlideCoordinateSystem,
                0.0,
            ),
            image_orientation=level.ImageOrientationSlide,
            pixel_spacing=measures(level).PixelSpacing,
        )
        corners = np.array(
            [(c, r) for r in (0, level.TotalPixelMatrixRows - 1)
             for c in (0, level.TotalPixelMatrixColumns - 1)]
        )  # fmt: skip
        assert (x, y) == pytest.approx(tuple(expected(corners).mean(axis=0)[:2]))
        assert z == pytest.approx(0.005)  # 5 µm
    move(levels[0], 1)
    assert dicomslide.compute_image_center_position(levels[0])[0] == pytest.approx(x + 1)
    del levels[0].ImageOrientationSlide
    with pytest.raises(MetadataError, match="no usable Image Orientation"):
        dicomslide.compute_image_center_position(levels[0])


def test_pixel_spacing_is_in_the_order_of_dicom(levels):
    assert dicomslide.get_image_pixel_spacing(levels[1]) == (0.001, 0.0005)
    del measures(levels[1]).PixelSpacing
    assert dicomslide.get_image_pixel_spacing(levels[1]) == pytest.approx((0.001, 0.0005))
    del levels[1].ImagedVolumeWidth
    with pytest.raises(MetadataError, match=r"level-1\.dcm: no Pixel Spacing"):
        dicomslide.get_image_pixel_spacing(levels[1])


def test_size_is_that_of_the_matrix(levels):
    assert [dicomslide.get_image_size(level) for level in levels] == [128 * 176, 64 * 88, 32 * 44]
    del levels[0].TotalPixelMatrixRows
    with pytest.raises(MetadataError, match="not a tiled image"):
        dicomslide.get_image_size(levels[0])


# -- which image is wanted -------------------------------------------------------------------


@pytest.fixture
def square_levels(levels):
    """Levels at 40, 20 and 10 ×."""
    for level, spacing in zip(levels, ("0.00025", "0.0005", "0.001"), strict=True):
        measures(level).PixelSpacing = [spacing, spacing]
    return levels


@pytest.mark.parametrize(
    ("magnification", "expected"), [(40, 0), (20, 1), (10, 2), (4, 2), (2, 2), (1, 2)]
)
def test_the_nearest_magnification_is_selected(square_levels, magnification, expected):
    for order in (square_levels, square_levels[::-1]):
        found = dicomslide.select_image_at_magnification(order, magnification)
        assert found is square_levels[expected]


@pytest.mark.parametrize("magnification", [0, 3, 5, 80, -40, "40"])
def test_other_magnifications_are_value_errors(square_levels, magnification):
    with pytest.raises(ValueError, match=r"none of \(1, 2, 4, 10, 20, 40\)"):
        dicomslide.select_image_at_magnification(square_levels, magnification)


def test_tolerance_is_in_millimeters(square_levels):
    select = dicomslide.select_image_at_magnification
    assert select(square_levels[1:], 40, tolerance=0.00025) is square_levels[1]
    with pytest.raises(ValueError, match=r"no image within 0\.00024 mm .* has \(0\.0005, 0\.0005"):
        select(square_levels[1:], 40, tolerance=0.00024)
    assert select(square_levels, 40, tolerance=0) is square_levels[0]
    with pytest.raises(ValueError, match="empty"):
        select([], 40)


def test_the_nearest_spacing_is_selected_on_the_axis_that_differs_more(levels):
    select = dicomslide.select_image_at_pixel_spacing
    for level, spacing in zip(levels, ([1, 4], [2, 2], [3, 3]), strict=True):
        measures(level).PixelSpacing = spacing
    assert select(levels, (1, 1)) is levels[1]
    assert select(levels, (1, 4)) is levels[0]
    assert select(levels, (4, 1)) is levels[1]  # differs by 2 and 1; level 2 by 1 and 2
    assert select(levels, (9, 9)) is levels[2]
    with pytest.raises(ValueError, match="no image within 1 mm"):
        select(levels, (2, 0.5), tolerance=1)
    with pytest.raises(ValueError, match="empty"):
        select([], (1, 1))


def test_the_first_of_one_spacing_is_selected(square_levels):
    select = dicomslide.select_image_at_pixel_spacing
    measures(square_levels[1]).PixelSpacing = ["0.00025000000001", "0.00025"]
    assert select(square_levels[1::-1], (0.00025, 0.00025)) is square_levels[1]
    assert select(square_levels, (0.00025, 0.00025)) is square_levels[0]


def test_images_are_sorted(levels):
    for order in (levels, levels[::-1], [levels[1], levels[2], levels[0]]):
        given = list(order)
        by_size = dicomslide.sort_images_by_size(given)
        by_spacing = dicomslide.sort_images_by_pixel_spacing(given)
        assert all(a is b for a, b in zip(by_size, levels, strict=True))
        assert all(a is b for a, b in zip(by_spacing, levels, strict=True))
        assert all(a is b for a, b in zip(given, order, strict=True))  # left as they were
    assert dicomslide.sort_images_by_size([]) == []
    assert dicomslide.sort_images_by_pixel_spacing([]) == []


def test_images_of_one_size_keep_their_order(levels):
    twins = [copy.deepcopy(levels[0]) for _ in range(3)]
    for sort in (dicomslide.sort_images_by_size, dicomslide.sort_images_by_pixel_spacing):
        assert all(a is b for a, b in zip(sort(twins), twins, strict=True))
