"""The worked numbers, and the formulas against highdicom.spatial."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicomslide.header.geometry import SlideGeometry, nearest_index


def geometry(origin, ios, spacing, shape):
    return SlideGeometry(origin, tuple(ios[:2]), tuple(ios[3:5]), spacing, shape)


def numbered(rows, columns):
    """M[r, c] = 100 r + c + 1"""
    return 100 * np.arange(rows)[:, None] + np.arange(columns) + 1


def sample(geo, matrix, offset, size):
    """The region of a matrix that a grid describes, background 0."""
    grid = geo.region(offset, size)
    rows, columns = grid.rows, grid.columns
    if rows.ndim == 1:
        rows, columns = np.meshgrid(rows, columns, indexing="xy" if grid.transpose else "ij")
    inside = (rows >= 0) & (rows < geo.shape[0]) & (columns >= 0) & (columns < geo.shape[1])
    out = np.zeros(grid.shape, matrix.dtype)
    out[inside] = matrix[rows[inside], columns[inside]]
    return out


def full(geo, matrix):
    x_min, y_min, _, _ = geo.bounds
    return sample(geo, matrix, (x_min, y_min), geo.physical_size)


S3 = math.sqrt(3) / 2
WORKED = {
    "typical": dict(
        args=((10, 20), (0, -1, 0, -1, 0, 0), (0.001, 0.001), (20, 30)),
        p37=(9.997, 19.993),
        bounds=(9.9805, 19.9705, 10.0005, 20.0005),
        size=(0.020, 0.030),
        rotation=-90,
        shape=(30, 20),
        corners=(1901, 1, 1930, 30),
    ),
    "unrotated, anisotropic": dict(
        args=((5, 40), (1, 0, 0, 0, -1, 0), (0.002, 0.0005), (20, 30)),
        p37=(5.0035, 39.994),
        bounds=(4.99975, 39.961, 5.01475, 40.001),
        size=(0.015, 0.040),
        rotation=0,
        shape=(20, 30),
        corners=(1, 30, 1901, 1930),
    ),
    "turned the other way": dict(
        args=((2, 3), (0, 1, 0, 1, 0, 0), (0.004, 0.002), (10, 25)),
        p37=(2.012, 3.014),
        bounds=(1.998, 2.999, 2.038, 3.049),
        size=(0.040, 0.050),
        rotation=-270,
        shape=(25, 10),
        corners=(25, 925, 1, 901),
    ),
    "mirrored": dict(
        args=((7, 8), (1, 0, 0, 0, 1, 0), (0.001, 0.001), (20, 30)),
        p37=(7.007, 8.003),
        bounds=(6.9995, 7.9995, 7.0295, 8.0195),
        size=(0.030, 0.020),
        rotation=0,
        shape=(20, 30),
        corners=(1901, 1930, 1, 30),
    ),
    "oblique": dict(
        args=((10, 20), (S3, 0.5, 0, 0.5, -S3, 0), (0.001, 0.001), (20, 30)),
        p37=(10.007562, 20.000902),
        bounds=(9.999317, 19.9828625, 10.0352977, 20.015183),
        size=(0.0359808, 0.0323205),
        rotation=-330,
        shape=(32, 36),
        corners=(0, 0, 0, 0),
    ),
}


@pytest.mark.parametrize("case", WORKED.values(), ids=WORKED.keys())
def test_worked_example(case):
    geo = geometry(*case["args"])
    assert geo.to_slide((3, 7)) == pytest.approx(case["p37"], abs=5e-7)
    assert geo.bounds == pytest.approx(case["bounds"], abs=5e-7)
    assert geo.physical_size == pytest.approx(case["size"], abs=5e-8)
    assert geo.rotation == pytest.approx(case["rotation"])
    region = full(geo, numbered(*geo.shape))
    assert region.shape == case["shape"]
    found = tuple(region[r, c] for r in (0, -1) for c in (0, -1))
    assert found == case["corners"]


def test_worked_regions_of_the_typical_orientation():
    geo = geometry(*WORKED["typical"]["args"])
    matrix = numbered(20, 30)
    expected = np.array([[1524, 1424, 1324, 1224, 1124]]) + np.arange(4)[:, None]
    np.testing.assert_array_equal(sample(geo, matrix, (9.9845, 19.9735), (0.005, 0.004)), expected)
    expected = [[0, 0, 0, 0], [0, 0, 0, 0], [101, 1, 0, 0], [102, 2, 0, 0]]
    np.testing.assert_array_equal(sample(geo, matrix, (9.9985, 19.9985), (0.004, 0.004)), expected)


def test_worked_oblique_region_keeps_every_pixel_once():
    geo = geometry(*WORKED["oblique"]["args"])
    region = full(geo, numbered(20, 30))
    assert np.count_nonzero(region) == 600
    assert region[16, 18] == 1016


ALIGNED = {
    # u, v -> the upright array as a NumPy view of the matrix
    (0, -1, 0, -1, 0, 0): lambda m: np.rot90(m, -1),
    (0, 1, 0, 1, 0, 0): lambda m: np.rot90(m, 1),
    (1, 0, 0, 0, -1, 0): lambda m: m,
    (-1, 0, 0, 0, 1, 0): lambda m: np.rot90(m, 2),
    (1, 0, 0, 0, 1, 0): np.flipud,
    (-1, 0, 0, 0, -1, 0): np.fliplr,
    (0, 1, 0, -1, 0, 0): lambda m: np.rot90(m, 2).T,
    (0, -1, 0, 1, 0, 0): lambda m: m.T,
}


@pytest.mark.parametrize("ios", ALIGNED)
@pytest.mark.parametrize("spacing", [(0.001, 0.001), (0.002, 0.0005)])
def test_upright_array_is_a_pure_view(ios, spacing):
    matrix = numbered(7, 11)
    geo = geometry((10, 20), ios, spacing, matrix.shape)
    expected = ALIGNED[ios](matrix)
    upright = geo.orientation.apply(matrix)
    assert np.shares_memory(upright, matrix)
    np.testing.assert_array_equal(upright, expected)
    np.testing.assert_array_equal(full(geo, matrix), expected)
    assert geo.upright_shape == expected.shape
    y, x = geo.upright_coordinates()
    assert np.all(np.diff(y) < 0)
    assert np.all(np.diff(x) > 0)
    for i, j in itertools.product((0, 3, -1), repeat=2):
        r, c = geo.indices((x[j], y[i]))
        assert matrix[r, c] == upright[i, j]


@pytest.mark.parametrize("ios", ALIGNED)
def test_a_mirror_image_is_told_from_a_rotation(ios):
    geo = geometry((0, 0), ios, (1, 1), (2, 2))
    mirrored = ios in [(1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, -1, 0), (0, 1, 0, -1, 0, 0),
                       (0, -1, 0, 1, 0, 0)]  # fmt: skip
    assert geo.handedness == (1 if mirrored else -1)


@given(
    angle=st.floats(-180, 180),
    mirror=st.booleans(),
    origin=st.tuples(st.floats(-50, 50), st.floats(-50, 50)),
    spacing=st.tuples(st.floats(1e-4, 1e-1), st.floats(1e-4, 1e-1)),
    pixels=st.lists(
        st.tuples(st.integers(-1000, 100_000), st.integers(-1000, 100_000)), min_size=1, max_size=5
    ),
)
@settings(deadline=None)
def test_affine_agrees_with_highdicom(angle, mirror, origin, spacing, pixels):
    import highdicom.spatial as hds

    u = np.array([math.cos(math.radians(angle)), math.sin(math.radians(angle))])
    v = np.array([u[1], -u[0]]) * (-1 if mirror else 1)
    ios = (*u, 0.0, *v, 0.0)
    geo = geometry(origin, ios, spacing, (100, 100))
    reference = hds.PixelToReferenceTransformer(
        image_position=(*origin, 0.0), image_orientation=ios, pixel_spacing=spacing
    )
    column_row = np.array(pixels)[:, ::-1]
    points = geo.to_slide(pixels)
    np.testing.assert_allclose(points, reference(column_row)[:, :2], rtol=0, atol=1e-8)
    np.testing.assert_array_equal(geo.indices(points), pixels)
    assert geo.handedness == (1 if mirror else -1)
    assert -360 < geo.rotation <= 0


def test_scoord_has_its_origin_at_the_corner():
    """F4: image-relative coordinates (0, 0) are the top left corner of pixel (0, 0)."""
    import highdicom.spatial as hds

    origin, ios, spacing, shape = WORKED["typical"]["args"]
    geo = geometry(origin, ios, spacing, shape)
    reference = hds.ImageToReferenceTransformer(
        image_position=(*origin, 0.0), image_orientation=ios, pixel_spacing=spacing
    )
    column, row = 7.25, 3.5
    expected = reference(np.array([[column, row]]))[0, :2]
    assert geo.to_slide((row - 0.5, column - 0.5)) == pytest.approx(expected)


def test_halves_go_up_and_noise_does_not_keep_them_down():
    np.testing.assert_array_equal(
        nearest_index([-1.5, -0.5, 0.5, 1.5, 2.5, 0.5 - 1e-12, 0.49]), [-1, 0, 1, 2, 3, 1, 0]
    )


def test_levels_made_by_averaging_have_their_own_origin():
    """F12, worked example 6: the centre of level pixel (0, 0) is that of its k × k box."""
    base = geometry((10, 20), (0, -1, 0, -1, 0, 0), (0.00025, 0.00025), (4000, 4000))
    assert base.to_slide((1.5, 1.5)) == pytest.approx((9.999625, 19.999625))


@pytest.mark.parametrize("shift", [1e-5, -1e-5])
def test_nearly_aligned_cosines_still_give_pure_views(shift):
    ios = (shift, -1.0, 0.0, -1.0, -shift, 0.0)
    geo = geometry((10, 20), ios, (0.001, 0.001), (20, 30))
    y, x = geo.upright_coordinates()
    offset = x[0] - 0.0005, y[-1] - 0.0005
    region = sample(geo, numbered(20, 30), offset, (0.020, 0.030))
    np.testing.assert_array_equal(region, np.rot90(numbered(20, 30), -1))


@pytest.mark.parametrize(
    "wrong",
    [
        dict(row_direction=(1, 0), column_direction=(1, 0)),
        dict(row_direction=(0, 0)),
        dict(spacing=(0.0, 0.001)),
        dict(spacing=(float("nan"), 0.001)),
        dict(origin=(float("inf"), 0.0)),
    ],
)
def test_impossible_geometry_is_refused(wrong):
    args = dict(
        origin=(0.0, 0.0),
        row_direction=(0.0, -1.0),
        column_direction=(-1.0, 0.0),
        spacing=(0.001, 0.001),
        shape=(2, 2),
    )
    with pytest.raises(ValueError, match=r"geometry|orientation|spacing"):
        SlideGeometry(**(args | wrong))
