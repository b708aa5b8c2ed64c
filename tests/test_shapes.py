"""Pixels of annotations, and outlines of pixels: against shapely, for every pixel."""

from __future__ import annotations

import pickle
import tracemalloc

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import example, given, settings
from hypothesis import strategies as st

import dicomslide
from dicomslide.annotation.graphic import half_axes
from dicomslide.annotation.group import AnnotationGroup
from dicomslide.errors import GridError
from dicomslide.labelled.coordinates import slide_coordinate
from dicomslide.testing import write_slide

shapely = pytest.importorskip("shapely", reason="shapely, an oracle, isn't installed")
geopandas = pytest.importorskip("geopandas", reason="geopandas isn't installed")
pytest.importorskip("skimage", reason="recipes need scikit-image, which isn't installed")

from dicomslide import recipes  # noqa: E402
from dicomslide.recipes.borders import rings_of, runs_in  # noqa: E402

STEP = 0.00025
ORIGIN = (12.5, 31.25)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with dask.config.set(scheduler="sync"):
        yield


def plane(data, chunks=7, *, descending=True):
    """An upright array in mm."""
    found = xr.Coordinates()
    for dim, start, size in zip("yx", ORIGIN[::-1], data.shape, strict=True):
        values = start + STEP * np.arange(size)
        if dim == "y" and descending:
            values = values[::-1]
        found = found.assign(slide_coordinate(dim, values, {"units": "mm"}, STEP))
    return xr.DataArray(da.from_array(data, chunks=chunks), found, ("y", "x"))


def grid(rows, columns, **options):
    return plane(np.zeros((rows, columns), bool), **options)


def group(kind, graphics, **options):
    points = np.concatenate(graphics)
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in graphics])])
    defaults = dict.fromkeys(
        ("uid", "description", "property_category", "property_type", "generation_type",
         "algorithm_name", "optical_paths", "planes")
    )  # fmt: skip
    return AnnotationGroup(
        number=1, label="nuclei", graphic_type=kind, coordinates=points, offsets=offsets,
        **defaults | options,
    )  # fmt: skip


def centres(like):
    return np.meshgrid(like.x.values, like.y.values)


# -- polygons to pixels --


@st.composite
def drawn_polygons(draw):
    """Corners anywhere, on borders of pixels, or on centres; they may cross themselves."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    graphics = []
    for _ in range(draw(st.integers(1, 4))):
        corners = random.uniform(-4, 34, (draw(st.integers(3, 9)), 2))
        on = draw(st.sampled_from([None, 1, 2]))
        if on is not None:
            corners = np.rint(corners * on) / on
        graphics.append(np.asarray(ORIGIN) + corners * STEP)
    return graphics


@given(drawn_polygons(), st.booleans(), st.sampled_from([5, 16, 40]))
@settings(max_examples=50, deadline=None)
def test_a_pixel_is_in_where_shapely_finds_its_centre(graphics, descending, chunks):
    like = grid(24, 30, chunks=chunks, descending=descending)
    x, y = centres(like)
    covered = np.zeros(like.shape, np.int64)
    for number, corners in enumerate(graphics, 1):
        found = group("POLYGON", [corners]).rasterize(like)
        polygon = shapely.Polygon(corners)
        decided = ~shapely.intersects_xy(polygon.boundary, x, y)
        np.testing.assert_array_equal(
            found.values[decided], shapely.contains_xy(polygon, x, y)[decided]
        )
        covered[found.values] = number
    whole = group("POLYGON", graphics)
    np.testing.assert_array_equal(whole.rasterize(like), covered > 0)
    labels = whole.rasterize(like, labels=True)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, covered)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(labels)), covered)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_polygons_with_common_sides_share_no_pixel_and_leave_no_gap(seed):
    """Triangles of points on centres: many centres lie on sides, and in corners."""
    random = np.random.default_rng(seed)
    points = np.unique(random.integers(0, 20, (12, 2)), axis=0)
    points = np.concatenate([points, [(0, 0), (0, 20), (20, 0), (20, 20)]])
    points = np.asarray(ORIGIN) + points * STEP
    triangles = shapely.get_parts(shapely.delaunay_triangles(shapely.multipoints(points)))
    like = grid(21, 21)
    counts = sum(recipes.rasterize([each], like).astype(int) for each in triangles)
    box = recipes.rasterize([shapely.box(*points.min(axis=0), *points.max(axis=0))], like)
    np.testing.assert_array_equal(counts, box.astype(int))
    assert int(box.sum()) == 20 * 20  # half of the border


def test_a_line_through_centres_is_decided_exactly():
    """Sides that pass centres by less than the rounding error of a crossing."""
    like = grid(40, 40, chunks=16)
    x, y = centres(like)
    random = np.random.default_rng(5)
    near = np.nextafter(x.ravel(), np.inf), y.ravel()
    for _ in range(50):
        first, second = random.integers(0, 1600, 2)
        far = np.array([x.ravel()[second] + 0.3, y.ravel()[second] + 0.1])
        corners = np.array([(near[0][first], near[1][first]), far, far + np.array([-0.7, 0.5])])
        found = group("POLYGON", [corners]).rasterize(like).values
        polygon = shapely.Polygon(corners)
        decided = ~shapely.intersects_xy(polygon.boundary, x, y)
        np.testing.assert_array_equal(found[decided], shapely.contains_xy(polygon, x, y)[decided])


def test_an_ellipse_is_its_curve():
    ends = np.array([(12.502, 31.253), (12.506, 31.256), (12.5031, 31.2558), (12.5049, 31.2532)])
    like = grid(40, 40)
    center, first, second = half_axes(ends)
    x, y = centres(like)
    axes = np.stack([first[0], second[0]], axis=-1)
    along = np.linalg.solve(axes, np.stack([x.ravel(), y.ravel()]) - center.T)
    expected = (np.square(along).sum(axis=0) < 1).reshape(x.shape)
    assert expected.sum() > 100
    np.testing.assert_array_equal(group("ELLIPSE", [ends]).rasterize(like), expected)


def test_points_are_in_the_pixels_that_contain_them():
    like = grid(9, 11)
    at = (
        np.asarray(ORIGIN)
        + np.array([(0, 0), (3.4, 2.6), (10.49, 8.49), (10.6, 3), (-0.6, 3)]) * STEP
    )
    found = group("POINT", [each[None] for each in at]).rasterize(like, labels=True)
    expected = np.zeros((9, 11), int)
    expected[8, 0], expected[5, 3], expected[0, 10] = 1, 2, 3
    np.testing.assert_array_equal(found, expected)


def test_a_matrix_as_stored_has_the_pixels_of_the_upright_one(tmp_path):
    write_slide(tmp_path, shape=(90, 130), tile_shape=(32, 32), downsamples=(1,))
    slide = dicomslide.open_slide(tmp_path)
    upright = slide.to_dataset().image
    center = np.array([float(upright.x.mean()), float(upright.y.mean())])
    corners = center + np.array([(-0.02, -0.01), (0.017, -0.013), (0.011, 0.021)])
    uid = upright.x.attrs["frame_of_reference_uid"]
    triangle = group("POLYGON", [corners], frame_of_reference_uid=uid)
    found = triangle.rasterize(upright)
    stored = triangle.rasterize(slide.to_dataset(orientation="stored").image)
    assert stored.dims == ("row", "column")
    # F11 of 0\-1\0\-1\0\0: the upright array is the matrix turned clockwise
    np.testing.assert_array_equal(found, np.rot90(stored, -1))
    assert found.sum() > 500
    assert found.xindexes["x"].equals(upright.xindexes["x"])
    assert bool((upright.where(found).isnull().any("sample") == ~found).all())
    with pytest.raises(GridError, match=r"frame of reference 1\.2\.3"):
        group("POLYGON", [corners], frame_of_reference_uid="1.2.3").rasterize(upright)


def test_every_second_pixel_of_a_level_is_every_second_pixel_of_the_mask():
    like = grid(40, 50, chunks=9)
    corners = np.asarray(ORIGIN) + np.array([(3.3, 2.1), (44.2, 8.9), (20.5, 37.7)]) * STEP
    triangle = group("POLYGON", [corners])
    whole = triangle.rasterize(like)
    np.testing.assert_array_equal(triangle.rasterize(like[::2, 1::3]), whole[::2, 1::3])
    np.testing.assert_array_equal(whole[3:20, 5:31], triangle.rasterize(like[3:20, 5:31]))


def test_lines_and_arrays_without_a_place_are_refused():
    line = group("POLYLINE", [np.array([ORIGIN, (12.6, 31.3)])])
    with pytest.raises(ValueError, match="buffer"):
        line.rasterize(grid(5, 5))
    with pytest.raises(ValueError, match="buffer"):
        recipes.rasterize(line.to_geopandas(), grid(5, 5))
    square = group("RECTANGLE", [np.array([(0.0, 0), (0, 1), (1, 1), (1, 0)])])
    with pytest.raises(ValueError, match="no place on the slide"):
        square.rasterize(xr.DataArray(np.zeros((3, 3)), dims=("y", "x")))
    frame = square.to_geopandas()
    with pytest.raises(ValueError, match="no such column"):
        recipes.rasterize(frame, grid(5, 5), labels="class")
    with pytest.raises(ValueError, match="above zero"):
        recipes.rasterize(frame.assign(label=0), grid(5, 5), labels="label")
    with pytest.raises(ValueError, match="a column"):
        recipes.rasterize(square, grid(5, 5), labels="label")


def test_a_task_carries_what_its_chunk_shows():
    """An outline of 100,000 points that spans 100 chunks, as it is sent to a cluster."""
    angles = np.linspace(0, 2 * np.pi, 100_000, endpoint=False)
    corners = (
        np.asarray(ORIGIN) + (500 + 490 * np.stack([np.cos(angles), np.sin(angles)], -1)) * STEP
    )
    lazy = group("POLYGON", [corners]).rasterize(grid(1000, 1000, chunks=100))
    tasks = [pickle.dumps(task) for task in lazy.data.dask.values()]
    assert len(tasks) == 100
    assert max(map(len, tasks)) < corners.nbytes / 10
    assert sum(map(len, tasks)) < corners.nbytes
    assert int(lazy.sum()) == pytest.approx(np.pi * 490**2, rel=1e-4)


def test_many_nuclei_take_the_memory_of_their_coordinates():
    random = np.random.default_rng(1)
    angles = np.arange(20) * 2 * np.pi / 20
    shape = 10 * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    middles = random.uniform(20, 4980, (20_000, 2))
    points = np.asarray(ORIGIN) + (middles[:, None] + shape).reshape(-1, 2) * STEP
    nuclei = group("POLYGON", list(points.reshape(-1, 20, 2)))
    like = xr.DataArray(
        da.zeros((5000, 5000), bool, chunks=500),
        {"y": ORIGIN[1] + STEP * np.arange(5000), "x": ORIGIN[0] + STEP * np.arange(5000)},
        ("y", "x"),
    )
    tracemalloc.start()
    lazy = nuclei.rasterize(like, labels=True)
    count = int((lazy > 0).sum().compute(scheduler="sync"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * points.nbytes + 20 * 500 * 500 * 8
    assert 4e6 < count < 6e6


# -- pixels to polygons --


@st.composite
def drawn_labels(draw):
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.tuples(st.integers(1, 25), st.integers(1, 25)))
    number = draw(st.integers(1, 4))
    labels = random.integers(0, number + 1, shape)
    if draw(st.booleans()):  # blobs with holes
        labels = np.kron(labels, np.ones((3, 3), int))[: shape[0], : shape[1]]
    return labels * draw(st.sampled_from([1, 70_000]))


RING = np.array(
    [[0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 1, 0, 1, 0], [0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]
)
"""A hole that meets the outside in a corner, and a region that meets another one."""


@given(drawn_labels(), st.sampled_from([4, 9, 30]), st.booleans())
@example(RING, 1, True)
@example(np.kron(RING, np.ones((2, 2), int)), 3, False)
@example(np.zeros((4, 4), int), 3, False)
@settings(max_examples=50, deadline=None)
def test_outlines_of_labels_give_the_labels_again(labels, chunks, descending):
    like = plane(labels, chunks, descending=descending)
    found = recipes.outlines(like)
    present = np.unique(labels[labels > 0])
    assert found["label"].tolist() == present.tolist()
    assert found.geometry.is_valid.all()
    assert not shapely.is_empty(found.geometry).any()
    np.testing.assert_array_equal(recipes.rasterize(found, like, labels="label"), labels)
    counts = [(labels == each).sum() for each in present]
    np.testing.assert_allclose(found.area / STEP**2, counts, rtol=1e-9)
    # in one chunk, in memory: the same polygons
    alone = recipes.outlines(like.compute())
    assert shapely.equals(alone.geometry, found.geometry).all()


@given(drawn_labels(), st.sampled_from([4, 9, 30]))
@example(RING, 1)
@settings(max_examples=40, deadline=None)
def test_outlines_of_a_mask_are_its_regions(labels, chunks):
    from skimage.measure import label

    mask = labels > 0
    like = plane(mask, chunks)
    found = recipes.outlines(like)
    regions = label(mask, connectivity=1)
    assert len(found) == regions.max()
    assert (found.geom_type == "Polygon").all()
    assert found.geometry.is_valid.all()
    np.testing.assert_array_equal(recipes.rasterize(found, like), mask)
    counts = np.sort(np.bincount(regions.ravel())[1:])
    np.testing.assert_allclose(np.sort(found.area / STEP**2), counts, rtol=1e-9)
    # sides of polygons: no corner lies on a straight line, in whichever chunks it was traced
    rings = shapely.get_rings(found.geometry.to_numpy())
    for ring in rings:
        steps = np.sign(np.round(np.diff(shapely.get_coordinates(ring), axis=0) / STEP))
        assert (steps != np.roll(steps, 1, axis=0)).any(axis=1).all()


def test_outlines_of_a_matrix_as_stored_lie_on_the_slide(tmp_path):
    write_slide(tmp_path, shape=(90, 130), tile_shape=(32, 32), downsamples=(1,))
    slide = dicomslide.open_slide(tmp_path)
    upright, stored = (
        slide.to_dataset(orientation=each).image.isel(sample=1) for each in ("upright", "stored")
    )
    threshold = int(np.median(upright))
    found, again = (
        recipes.outlines(upright > threshold),
        recipes.outlines((stored > threshold).assign_attrs(stored.attrs)),
    )
    assert found.attrs["frame_of_reference_uid"] == slide.frame_of_reference_uid
    assert (
        shapely.union_all(found.geometry)
        .symmetric_difference(shapely.union_all(again.geometry))
        .area
        < 1e-12
    )
    np.testing.assert_array_equal(recipes.rasterize(found, upright), upright > threshold)


def test_simplified_outlines_have_fewer_corners_within_the_tolerance():
    rows, columns = np.indices((200, 200))
    mask = plane((rows - 100) ** 2 + (columns - 90) ** 2 < 80**2, 64)
    exact, simple = recipes.outlines(mask), recipes.outlines(mask, simplify=STEP)
    assert (
        shapely.get_num_coordinates(simple.geometry)[0]
        < shapely.get_num_coordinates(exact.geometry)[0] / 3
    )
    assert exact.geometry[0].hausdorff_distance(simple.geometry[0]) <= 1.01 * STEP


def test_masks_without_outlines_are_refused():
    like = grid(5, 5)
    with pytest.raises(ValueError, match="float64"):
        recipes.outlines(like.astype(float))
    with pytest.raises(ValueError, match="label -1"):
        recipes.outlines(like.astype(int) - 1)
    with pytest.raises(ValueError, match="select one"):
        recipes.outlines(like.expand_dims(segment=["1", "2"]))
    alone = xr.DataArray([[True, True]], {"y": [1.0], "x": [1.0, 2.0]}, ("y", "x"))
    with pytest.raises(ValueError, match="spacing along y is unknown"):
        recipes.outlines(alone)


def test_rings_are_turned_by_the_side_of_their_label():
    runs = runs_in(np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]]), None, None, (0, 0), (True, True))
    rings = rings_of(runs, 3)
    assert sorted(rings.areas.tolist()) == [-1, 9]
    assert np.diff(rings.offsets).tolist() == [4, 4]
