"""Regions by millimetres, in every orientation, against a slow and obvious oracle."""

from __future__ import annotations

import math
import os
import pickle
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.sr.codedict import codes

import dicomslide
from dicomslide import open_slide
from dicomslide.testing import write_slide
from tests.support.orientations import ORIENTATIONS

SHAPE = (23, 31)
ORIGIN = (12.0, 34.0)
SPACINGS = [(0.001, 0.001), (0.002, 0.0005)]


@pytest.fixture(scope="module", params=[(n, s) for n in ORIENTATIONS for s in SPACINGS], ids=str)
def oriented(request, tmp_path_factory):
    name, spacing = request.param
    folder = tmp_path_factory.mktemp("oriented")
    write_slide(
        folder,
        shape=SHAPE,
        downsamples=(1,),
        tile_shape=(8, 16),
        orientation=ORIENTATIONS[name],
        origin=ORIGIN,
        spacing=spacing,
        drawing="position",
        samples=1,
        bits=16,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        associated=False,
    )
    if "mirrored" in name:
        with pytest.warns(dicomslide.MetadataWarning, match="mirror image"):
            return open_slide(folder)
    return open_slide(folder)


def slow_region(matrix, image, offset, size):
    """Formula F10, one sample after another, in exact arithmetic."""
    exact = lambda values: [Fraction(str(value)) for value in values]  # noqa: E731
    header = image.metadata
    cosines = exact(header.ImageOrientationSlide)
    (ux, uy), (vx, vy) = cosines[0:2], cosines[3:5]
    shared = header.SharedFunctionalGroupsSequence[0]
    down, right = exact(shared.PixelMeasuresSequence[0].PixelSpacing)
    x0, y0 = exact(ORIGIN)
    step_x = (abs(ux) * right + abs(vx) * down) / (abs(ux) + abs(vx))
    step_y = (abs(uy) * right + abs(vy) * down) / (abs(uy) + abs(vy))
    x, y = exact(offset)
    width, height = exact(size)
    columns, rows = (round(round(float(a / b), 6)) for a, b in ((width, step_x), (height, step_y)))
    out = np.zeros((rows, columns), matrix.dtype)
    for i in range(rows):
        for j in range(columns):
            at_x = x + (j + Fraction(1, 2)) * step_x
            at_y = y + height - (i + Fraction(1, 2)) * step_y
            c = ((at_x - x0) * ux + (at_y - y0) * uy) / right
            r = ((at_x - x0) * vx + (at_y - y0) * vy) / down
            row, column = (math.floor(t + Fraction(1, 2) + Fraction(1, 10**9)) for t in (r, c))
            if 0 <= row < matrix.shape[0] and 0 <= column < matrix.shape[1]:
                out[i, j] = matrix[row, column]
    return out


def stored(slide):
    return slide.get_image_region((0, 0), 0, SHAPE)[..., 0]


def test_whole_image_equals_the_oracle(oriented):
    (image,) = oriented.get_volume_images()
    matrix = stored(oriented)
    x_min, y_min, _, _ = image.physical_bounds
    region = oriented.get_slide_region((x_min, y_min), 0, image.physical_size)
    expected = slow_region(matrix, image, (x_min, y_min), image.physical_size)
    np.testing.assert_array_equal(region[..., 0], expected)


@settings(max_examples=12)
@given(data=st.data())
def test_any_region_equals_the_oracle(oriented, data):
    (image,) = oriented.get_volume_images()
    x_min, y_min, x_max, y_max = image.physical_bounds
    micrometers = lambda low, high: st.integers(  # noqa: E731
        round(low * 1e4), round(high * 1e4)
    ).map(lambda n: n / 1e4)
    offset = (
        data.draw(micrometers(x_min - 0.01, x_max + 0.005)),
        data.draw(micrometers(y_min - 0.01, y_max + 0.005)),
    )
    size = data.draw(st.tuples(micrometers(0, 0.03), micrometers(0, 0.03)))
    region = oriented.get_slide_region(offset, 0, size)
    expected = slow_region(stored(oriented), image, offset, size)
    assert region.shape == (*expected.shape, 1)
    np.testing.assert_array_equal(region[..., 0], expected)


def test_pixels_and_millimetres_are_each_others_inverse(oriented):
    indices = np.array([(0, 0), (22, 30), (7, 3), (-4, 40)])
    points = oriented.map_pixel_indices_to_slide_coordinates(indices, 0)
    assert points.shape == (4, 3)
    np.testing.assert_array_equal(
        oriented.map_slide_coordinates_to_pixel_indices(points, 0), indices
    )
    for index, (x, y, _) in zip(indices.tolist(), points.tolist(), strict=True):
        assert oriented.get_slide_offset(tuple(index), 0) == pytest.approx((x, y), abs=1e-12)
        assert oriented.get_pixel_indices((x, y), 0) == tuple(index)


def test_sizes_of_a_slide_are_those_of_its_images(oriented):
    (image,) = oriented.get_volume_images()
    assert oriented.physical_size == pytest.approx(image.physical_size)
    assert oriented.physical_offset == pytest.approx(ORIGIN)
    assert oriented.physical_bounds == pytest.approx(image.physical_bounds)
    between_rows, between_columns = image.geometry.spacing
    assert oriented.pixel_spacings == ((between_columns, between_rows),)


def test_sizes_are_the_extremes_of_all_levels(position_slide):
    slide = open_slide(position_slide)
    images = slide.get_volume_images()
    assert len(images) == 2
    assert slide.physical_offset == tuple(np.min([i.physical_offset for i in images], axis=0))
    assert slide.physical_size == tuple(np.max([i.physical_size for i in images], axis=0))
    assert slide.pixel_spacings == ((0.0005, 0.0005), (0.001, 0.001))


def test_z_of_mapped_pixels_is_that_of_the_focal_plane(stack_slide):
    slide = open_slide(stack_slide)
    for plane, z in enumerate((0.005, 0.007, 0.009)):
        points = slide.map_pixel_indices_to_slide_coordinates(
            np.array([[1, 2]]), 1, channel_index=1, focal_plane_index=plane
        )
        assert points[0, 2] == pytest.approx(z)
        assert slide.get_focal_plane_offset(plane) == pytest.approx(1000 * z)
        assert slide.get_focal_plane_index(1000 * z + 0.9) == plane


def test_levels_that_are_not_there_raise(position_slide):
    slide = open_slide(position_slide)
    for call in (
        lambda level: slide.get_image_region((0, 0), level, (1, 1)),
        lambda level: slide.get_slide_region((0, 0), level, (1, 1)),
        lambda level: slide.get_pixel_indices((0, 0), level),
        lambda level: slide.get_slide_offset((0, 0), level),
        lambda level: slide.map_pixel_indices_to_slide_coordinates(np.zeros((1, 2)), level),
        lambda level: slide.map_slide_coordinates_to_pixel_indices(np.zeros((1, 3)), level),
    ):
        for level in (-1, 2):
            with pytest.raises(IndexError, match=rf"no level {level}; there are 0 \(130 × 170\)"):
                call(level)


@pytest.mark.parametrize("wrong", [-1, 3])
def test_focal_planes_that_are_not_there_raise(stack_slide, wrong):
    slide = open_slide(stack_slide)
    (image, _) = slide.get_volume_images()
    for holder in (slide, image):
        with pytest.raises(ValueError, match=f"no focal plane {wrong}; there are 3"):
            holder.get_focal_plane_offset(wrong)
        with pytest.raises(ValueError, match=r"no focal plane within 1 µm of 3.9 µm"):
            holder.get_focal_plane_index(3.9)
    with pytest.raises(ValueError, match=f"focal plane {wrong}"):
        slide.get_image_region((0, 0), 0, (1, 1), 0, wrong)
    with pytest.raises(ValueError, match=f"no focal plane {wrong}; there are 3"):
        slide.get_volume_images(0, wrong)


# -- equality and hashes ---------------------------------------------------------------------


def test_equality_agrees_with_hashes(position_slide, stack_slide):
    one, same = open_slide(position_slide), open_slide(position_slide)
    others = [open_slide(stack_slide), open_slide(position_slide, correct_color=False)]
    views = [
        lambda slide: slide,
        lambda slide: slide.get_volume_images()[0],
        lambda slide: slide.get_volume_images()[0].get_total_pixel_matrix(),
    ]
    for view in views:
        assert view(one) == view(same)
        assert hash(view(one)) == hash(view(same))
        assert view(one) == pickle.loads(pickle.dumps(view(one)))
        assert view(one) != "something else"
        for other in others:
            assert view(one) != view(other)
            assert hash(view(one)) != hash(view(other))
    assert len({one, same, *others}) == 3
    assert one.get_volume_images()[0] != one.get_volume_images()[1]


def test_hashes_are_the_same_in_every_process(position_slide):
    code = (
        "import sys, dicomslide; s = dicomslide.open_slide(sys.argv[1]);"
        "i = s.get_volume_images()[0]; print(hash(s), hash(i), hash(i.get_total_pixel_matrix()))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code, str(position_slide)],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


# -- around an annotation ----------------------------------------------------------------------


def test_a_region_around_an_annotation_is_of_its_level_channel_and_plane(tmp_path):
    """Padded pixels of the stored matrix, turned upright by NumPy."""
    from highdicom.sr import Scoord3DContentItem

    write_slide(
        tmp_path,
        shape=(60, 80),
        downsamples=(1, 2),
        tile_shape=(32, 32),
        spacing=(0.001, 0.001),
        drawing="position",
        samples=1,
        bits=16,
        optical_paths=("9", "10"),
        planes=(5.0, 7.0),
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        associated=False,
    )
    slide = open_slide(tmp_path)
    # the centres of pixels (10, 20) and (13, 26) at level 1, of which one is 2 µm
    corners = [slide.get_slide_offset(indices, 1) for indices in ((10, 20), (13, 26))]
    item = Scoord3DContentItem(
        name=codes.DCM.ImageRegion,
        graphic_type="POLYLINE",
        graphic_data=np.array([(*corner, 0.0068) for corner in corners]),
        frame_of_reference_uid=slide.frame_of_reference_uid,
    )
    (image,) = {slide.get_volume_images(1, plane)[1] for plane in (0, 1)}
    whole = np.asarray(image.get_total_pixel_matrix(1, 1))
    for padding, rows, columns in (
        (dict(padding_mm=0.001), slice(10, 14), slice(20, 27)),
        (dict(padding_mm=(0.003, 0.001)), slice(9, 15), slice(20, 27)),
        # rows run towards -X, columns towards -Y: left is below, top is before
        (dict(padding_mm=(0.001, 0.003, 0.005, 0.007)), slice(8, 14), slice(19, 30)),
        # half a pixel at each side: the whole pixels
        (dict(padding=1, padding_mm=0.001), slice(9, 15), slice(19, 28)),
        (dict(padding=(1, 2), padding_mm=0.001), slice(9, 15), slice(18, 29)),
        (dict(padding=(4, 1, 2, 3), padding_mm=0.001), slice(8, 18), slice(19, 30)),
    ):
        found = slide.get_slide_region_for_annotation(item, 1, 1, **padding)
        np.testing.assert_array_equal(found, np.rot90(whole[rows, columns], -1))
    with pytest.raises(ValueError, match=r"padding is 0\.001.*padding_mm"):
        slide.get_slide_region_for_annotation(item, 1, 1, 0.001)
    first = slide.get_slide_region_for_annotation(item, 1, 0, padding_mm=0.001)
    assert not np.array_equal(first, np.rot90(whole[10:14, 20:27], -1))
    item.ReferencedFrameOfReferenceUID = "1.2.3"
    with pytest.raises(ValueError, match=r"of frame of reference 1\.2\.3"):
        slide.get_slide_region_for_annotation(item, 1)
