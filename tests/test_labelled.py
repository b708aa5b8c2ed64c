"""The tree: dims, coordinates, and selection by millimetres."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import dicomslide
from dicomslide.header.geometry import SlideGeometry
from dicomslide.labelled.index import SlideIndex
from dicomslide.testing import position_values, write_slide

ALIGNED = {
    "typical": ((0, -1, 0, -1, 0, 0), lambda m: np.rot90(m, -1)),
    "turned": ((0, 1, 0, 1, 0, 0), lambda m: np.rot90(m, 1)),
    "unrotated": ((1, 0, 0, 0, -1, 0), lambda m: m),
    "upside down": ((-1, 0, 0, 0, 1, 0), lambda m: np.rot90(m, 2)),
    "mirrored 1": ((1, 0, 0, 0, 1, 0), np.flipud),
    "mirrored 2": ((-1, 0, 0, 0, -1, 0), np.fliplr),
    "mirrored 3": ((0, 1, 0, -1, 0, 0), lambda m: np.rot90(m, 2).transpose(1, 0, 2)),
    "mirrored 4": ((0, -1, 0, 1, 0, 0), lambda m: m.transpose(1, 0, 2)),
}
SHAPE = (70, 110)
EXPLICIT = "1.2.840.10008.1.2.1"


@pytest.fixture(scope="module", params=ALIGNED, ids=ALIGNED.keys())
def oriented(request, tmp_path_factory):
    """A slide of one orientation, its upright array, and its geometry."""
    ios, upright = ALIGNED[request.param]
    folder = tmp_path_factory.mktemp("oriented")
    write_slide(
        folder,
        shape=SHAPE,
        downsamples=(1,),
        tile_shape=(32, 48),
        orientation=ios,
        origin=(12.0, 34.0),
        spacing=(0.002, 0.001),
        drawing="position",
        transfer_syntax_uid=EXPLICIT,
        associated=False,
    )
    matrix = position_values(np.arange(SHAPE[0]), np.arange(SHAPE[1]))
    geometry = SlideGeometry((12.0, 34.0), ios[:2], ios[3:5], (0.002, 0.001), SHAPE)
    if request.param.startswith("mirrored"):
        with pytest.warns(dicomslide.MetadataWarning, match="mirror image"):
            slide = dicomslide.open_slide(folder, correct_color=False)
    else:
        slide = dicomslide.open_slide(folder, correct_color=False)
    return slide, upright(matrix), geometry


def pixels_in(geometry, x, y):
    """Slow and obvious: the stored (row, column) of all pixels whose centres lie in a box."""
    rows, columns = np.indices(geometry.shape)
    centres = geometry.to_slide(np.stack([rows, columns], -1))
    inside = (
        (centres[..., 0] >= min(x) - 1e-9)
        & (centres[..., 0] <= max(x) + 1e-9)
        & (centres[..., 1] >= min(y) - 1e-9)
        & (centres[..., 1] <= max(y) + 1e-9)
    )
    return {tuple(p) for p in np.argwhere(inside).tolist()}


def test_upright_array_and_its_coordinates(oriented):
    slide, upright, geometry = oriented
    image = slide.to_dataset().image
    assert image.dims == ("y", "x", "sample")
    np.testing.assert_array_equal(image.values, upright)
    assert np.all(np.diff(image.y) < 0)
    assert np.all(np.diff(image.x) > 0)
    # every pixel's own centre, computed from where its value says that it is stored
    stored_row, stored_column = upright[..., 0].astype(int), upright[..., 1].astype(int)
    centres = geometry.to_slide(np.stack([stored_row, stored_column], -1))
    x, y = np.meshgrid(image.x, image.y)
    np.testing.assert_allclose(centres, np.stack([x, y], -1), rtol=0, atol=1e-9)


@given(
    x=st.tuples(st.floats(11.8, 12.2), st.floats(11.8, 12.2)),
    y=st.tuples(st.floats(33.8, 34.2), st.floats(33.8, 34.2)),
)
@settings(deadline=None, max_examples=40)
def test_slice_of_millimetres_ignores_direction(oriented, x, y):
    slide, _, geometry = oriented
    image = slide.to_dataset().image
    x_min, y_min, x_max, y_max = geometry.bounds
    along_x, along_y = (min(each) > high or max(each) < low for each, low, high in (
        (x, x_min, x_max), (y, y_min, y_max)
    ))  # fmt: skip
    if along_x or along_y:
        for xs, ys in itertools.product((x, x[::-1]), (y, y[::-1])):
            with pytest.raises(KeyError, match=r"no pixel at .*; the coordinate goes from"):
                image.sel(x=slice(*xs), y=slice(*ys))
        return
    boxes = [image.sel(x=slice(*xs), y=slice(*ys)) for xs in (x, x[::-1]) for ys in (y, y[::-1])]
    for box in boxes[1:]:
        xr.testing.assert_identical(box.drop_attrs(), boxes[0].drop_attrs())
    values = boxes[0].values.reshape(-1, 3)
    found = {(int(r), int(c)) for r, c, _ in values}
    assert found == pixels_in(geometry, x, y)


def test_a_number_selects_the_nearest_pixel_within_half_a_pixel(oriented):
    slide, _, geometry = oriented
    image = slide.to_dataset().image
    along_x, along_y = geometry.slide_spacing
    row, column = 13, 57
    x, y = geometry.to_slide((row, column))
    for dx, dy in ((0, 0), (0.49, -0.49), (-0.49, 0.49)):
        value = image.sel(x=x + dx * along_x, y=y + dy * along_y).values
        assert tuple(value[:2]) == (row, column)
    x_min, y_min, x_max, y_max = geometry.bounds
    assert image.sel(x=x_min, y=y_max).shape == (3,)
    for outside in ({"x": x_min - 0.01 * along_x}, {"x": x_max + along_x}, {"y": y_min - along_y}):
        with pytest.raises(KeyError, match="no pixel at"):
            image.sel(outside)


def test_matrix_frame_is_as_stored_with_its_affine(oriented):
    slide, _, geometry = oriented
    image = slide.to_dataset(orientation="stored").image
    assert image.dims == ("row", "column", "sample")
    matrix = position_values(np.arange(SHAPE[0]), np.arange(SHAPE[1]))
    np.testing.assert_array_equal(image.values, matrix)
    affine = np.array(image.attrs["affine"])
    np.testing.assert_allclose(affine @ (7, 9, 1), geometry.to_slide((7, 9)))
    assert image.chunks[:2] == ((32, 32, 6), (48, 48, 14))


def test_api_and_tree_agree_on_a_region(oriented):
    slide, _, geometry = oriented
    image = slide.to_dataset().image
    along_x, along_y = geometry.slide_spacing
    box = image.isel(x=slice(3, 20), y=slice(5, 31))
    x, y = float(box.x[0]) - along_x / 2, float(box.y[-1]) - along_y / 2
    size = 17 * along_x, 26 * along_y
    np.testing.assert_array_equal(slide.get_slide_region((x, y), 0, size), box.values)


def test_outer_indexing_of_the_stack(oriented):
    slide, upright, _ = oriented
    image = slide.to_dataset().image
    y, x = [0, 5, 5, -1], [2, 60, 1]
    np.testing.assert_array_equal(
        image.isel(y=y, x=x).values, upright[np.ix_(np.array(y), np.array(x))]
    )
    np.testing.assert_array_equal(image.isel(y=slice(None, None, -7)), upright[::-7])
    np.testing.assert_array_equal(image.isel(y=3, sample=1), upright[3, :, 1])
    np.testing.assert_array_equal(image.isel(x=-1, y=slice(0, 0)), upright[0:0, -1])


# -- stacks ----------------------------------------------------------------------------------


def expected_stack(shape, factor=1):
    rows, columns = np.arange(shape[0] // factor), np.arange(shape[1] // factor)
    return np.stack(
        [
            [
                np.rot90(
                    position_values(rows, columns, c, p, samples=1, dtype=np.uint16)[..., 0], -1
                )
                for p in range(3)
            ]
            for c in range(2)
        ]
    )


def test_channels_and_focal_planes_are_dims(stack_slide):
    tree = dicomslide.open_slide(stack_slide).to_datatree()
    for level, factor in ((0, 1), (1, 2)):
        image = tree[f"level_{level}"].image
        assert image.dims == ("channel", "z", "y", "x")
        np.testing.assert_array_equal(image.values, expected_stack((100, 140), factor))
        assert image.channel.values.tolist() == ["DAPI", "FITC"]
        np.testing.assert_allclose(image.z.values, [0.005, 0.007, 0.009])
        assert image.focal_plane.values.tolist() == [0, 1, 2]
        assert image.wavelength.values.tolist() == [405, 465]
    image = tree["level_0"].image
    one = image.sel(channel="FITC", z=0.0072)
    np.testing.assert_array_equal(one.values, expected_stack((100, 140))[1, 1])
    with pytest.raises(KeyError):
        image.sel(z=0.0151)
    assert image.sel(channel_description="Fluorescence DAPI").shape == (3, 140, 100)


@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_any_key_of_the_stack(stack_slide, data):
    image = dicomslide.open_slide(stack_slide).to_dataset().image
    expected = expected_stack((100, 140))
    indexer, key = {}, []
    for dim, length in image.sizes.items():
        one = data.draw(
            st.one_of(
                st.integers(-length, length - 1),
                st.slices(length),
                st.lists(st.integers(-length, length - 1), min_size=1, max_size=4),
            )
        )
        indexer[dim] = one
        key.append(one)
    for axis in reversed(range(4)):  # one axis after the other: outer indexing
        expected = expected[(slice(None),) * axis + (key[axis],)]
    np.testing.assert_array_equal(image.isel(indexer).values, expected)


def test_squeezing(stack_slide, position_slide):
    flat = dicomslide.open_slide(position_slide, correct_color=False).to_dataset(squeeze=False)
    assert flat.image.dims == ("channel", "z", "y", "x", "sample")
    assert flat.image.shape[:2] == (1, 1)
    assert flat.sample.values.tolist() == ["r", "g", "b"]
    squeezed = dicomslide.open_slide(position_slide, correct_color=False).to_dataset()
    assert squeezed.image.dims == ("y", "x", "sample")
    assert str(squeezed.channel.values) == "1"
    assert float(squeezed.z) == 0.0
    np.testing.assert_array_equal(flat.image.values[0, 0], squeezed.image.values)
    stack = dicomslide.open_slide(stack_slide).to_dataset(squeeze=False)
    assert stack.image.dims == ("channel", "z", "y", "x", "sample")
    assert stack.image.shape[-1] == 1


# -- the tree --------------------------------------------------------------------------------


def test_levels_have_their_own_origin_and_spacing(tissue_slide):
    tree = dicomslide.open_slide(tissue_slide).to_datatree()
    assert list(tree.children) == ["level_0", "level_1", "level_2"]
    for level, factor in enumerate((1, 2, 4)):
        image = tree[f"level_{level}"].image
        assert image.slide.spacing == pytest.approx((0.0005 * factor,) * 2)
        assert image.x.attrs["units"] == image.y.attrs["units"] == "mm"
        # the pixels' outer edge is the same for all, and half a pixel from the first centre
        assert float(image.y[0]) + 0.00025 * factor == pytest.approx(32.00025)
        assert float(image.x[-1]) + 0.00025 * factor == pytest.approx(18.00025)
        assert tree[f"level_{level}"].attrs["downsampling_factors"] == pytest.approx([factor] * 2)


def test_a_place_is_the_same_on_every_level(tissue_slide):
    """Levels were made by averaging, so that the mean of a box in mm hardly changes."""
    tree = dicomslide.open_slide(tissue_slide).to_datatree()
    box = dict(x=slice(17.75, 17.85), y=slice(31.70, 31.85))
    means = [float(tree[f"level_{i}"].image.sel(box).mean()) for i in range(3)]
    assert np.ptp(means) < 1.5
    elsewhere = float(
        tree["level_0"].image.sel(x=slice(17.71, 17.73), y=slice(31.60, 31.62)).mean()
    )
    assert abs(elsewhere - means[0]) > 1.5  # the test can tell places apart


def test_attributes_are_plain_and_name_no_patient(tissue_slide):
    slide = dicomslide.open_slide(tissue_slide)
    tree = slide.to_datatree(associated=True)
    for node in tree.subtree:
        json.dumps(node.attrs)
        for variable in node.variables.values():
            json.dumps(variable.attrs)
    assert tree.attrs["container_identifier"] == "DS-0001"
    assert tree.attrs["stains"] == ["hematoxylin stain", "water soluble eosin stain"]
    assert "Synthetic^Slide" not in repr(tree.attrs)
    assert slide.to_datatree(include_patient=True).attrs["patient_id"] == "SYNTHETIC-1"


def test_associated_images_are_nodes(tissue_slide):
    tree = dicomslide.open_slide(tissue_slide).to_datatree(associated=True)
    assert list(tree.children)[3:] == ["label", "overview"]
    label, overview = tree["label"].image, tree["overview"].image
    assert label.shape == (360, 440, 3)
    assert float(overview.y[0]) > float(overview.y[-1])
    # the overview shows the label where the label is
    place = dict(x=slice(3, 20), y=slice(58, 73))
    difference = label.sel(place).mean() - overview.sel(place).mean()
    assert abs(float(difference)) < 2


def test_images_without_spacing_have_rows_and_columns(tmp_path):
    (path,) = write_slide(tmp_path, shape=(40, 50), downsamples=(1,), associated=False)
    import pydicom

    dataset = pydicom.dcmread(path)
    del dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    del dataset.ImagedVolumeWidth
    dataset.save_as(path)
    slide = dicomslide.open_slide(path)
    with pytest.warns(dicomslide.MetadataWarning, match="no Pixel Spacing"):
        dataset = slide.to_dataset()
    assert dataset.image.dims == ("row", "column", "sample")
    with pytest.raises(dicomslide.MetadataError, match="no Pixel Spacing"):
        slide.get_slide_region((0, 0), 0, (1, 1))


def test_images_without_origin_count_from_their_first_pixel(tmp_path):
    (path,) = write_slide(tmp_path, shape=(40, 50), downsamples=(1,), associated=False)
    import pydicom

    dataset = pydicom.dcmread(path)
    del dataset.TotalPixelMatrixOriginSequence
    dataset.save_as(path)
    slide = dicomslide.open_slide(path)
    with pytest.warns(dicomslide.MetadataWarning, match="no Total Pixel Matrix Origin"):
        image = slide.to_dataset().image
    assert float(image.y[0]) == float(image.x[-1]) == 0
    with pytest.raises(dicomslide.MetadataError, match="no position on the slide"):
        slide.levels[0].image.physical_offset  # noqa: B018


def test_oblique_images_have_rows_and_columns_and_resample_on_request(tmp_path):
    s3 = math.sqrt(3) / 2
    write_slide(
        tmp_path,
        shape=(20, 30),
        downsamples=(1,),
        tile_shape=(8, 8),
        orientation=(s3, 0.5, 0, 0.5, -s3, 0),
        origin=(10, 20),
        spacing=(0.001, 0.001),
        drawing="position",
        samples=1,
        bits=16,
        transfer_syntax_uid=EXPLICIT,
        associated=False,
    )
    slide = dicomslide.open_slide(tmp_path)
    with pytest.warns(dicomslide.MetadataWarning, match="obliquely"):
        dataset = slide.to_dataset()
    assert dataset.image.dims == ("row", "column")
    assert "affine" in dataset.image.attrs
    image = slide.levels[0].image
    region = slide.get_slide_region(image.physical_bounds[:2], 0, image.physical_size)
    assert region.shape == (32, 36, 1)
    # 600 pixels aren't background; of them, one has the value 0
    assert np.count_nonzero(region) == 599
    assert region[16, 18] == 257 * 10 + 15  # worked example 5: M[10, 15]


# -- SlideIndex ------------------------------------------------------------------------------


def indexed(values, spacing=None):
    variable = xr.Variable("x", np.asarray(values, float))
    index = SlideIndex(variable.to_index(), "x", spacing=spacing)
    coords = xr.Coordinates({"x": variable}, indexes={"x": index})
    return xr.DataArray(np.arange(len(values)), dims="x", coords=coords)


@pytest.mark.parametrize("step", [0.5, -0.5])
def test_open_ends_and_steps(step):
    array = indexed(10 + step * np.arange(9))
    low, high = sorted((10.0, 10 + step * 8))
    assert array.sel(x=slice(None)).size == 9
    assert array.sel(x=slice(low, None) if step > 0 else slice(high, None)).size == 9
    middle = 10 + step * 4
    assert array.sel(x=slice(middle, None)).values.tolist() == [4, 5, 6, 7, 8]
    assert array.sel(x=slice(None, middle)).values.tolist() == [0, 1, 2, 3, 4]
    assert array.sel(x=slice(high, low, 2)).values.tolist() == [0, 2, 4, 6, 8]


def test_noise_does_not_lose_a_border_pixel():
    array = indexed(np.arange(10) * 0.00025 + 10)
    bound = 10 + 0.1 + 0.00025 * 3 - 0.1  # 10.00075, not to the last bit
    assert array.sel(x=slice(10, bound)).size == 4


def test_index_survives_what_xarray_does_with_it():
    array = indexed([3.0, 2.0, 1.0])
    thinned = array.isel(x=slice(None, None, 2))
    assert isinstance(thinned.xindexes["x"], SlideIndex)
    assert int(thinned.sel(x=1.4)) == 2
    with pytest.raises(KeyError):  # of a pixel that was left out
        thinned.sel(x=1.9)
    shuffled = array.isel(x=[2, 0, 1])
    assert int(shuffled.sel(x=3.0)) == 0
    assert int(shuffled.sel(x=2.9)) == 0
    assert shuffled.sel(x=slice(1, 2)).values.tolist() == [2, 1]
    with pytest.raises(KeyError):
        shuffled.sel(x=3.6)
    assert thinned.sel(x=slice(0, 2)).values.tolist() == [2]
    only = array.isel(x=[1])
    assert int(only.sel(x=2.4)) == 1
    with pytest.raises(KeyError):
        only.sel(x=2.6)
    first, second = xr.align(array.isel(x=slice(2)), array.isel(x=slice(1, None)), join="inner")
    assert int(first.sel(x=2.4)) == int(second.sel(x=1.6)) == 1
    with pytest.raises(KeyError):
        first.sel(x=2.6)
    renamed = array.rename(x="u")
    assert renamed.sel(u=slice(2.5, 1.5)).values.tolist() == [1]
    joined = xr.concat([array, indexed([0.0, -1.0])], dim="x")
    assert joined.sel(x=slice(-2, 0.5)).values.tolist() == [0, 1]
    apart = xr.concat([array.isel(x=[0]), array.isel(x=[2])], dim="x")
    assert int(apart.sel(x=1.4)) == 2
    with pytest.raises(KeyError):
        apart.sel(x=2.0)
    total = array + array
    assert total.sel(x=slice(0.5, 1.5)).values.tolist() == [4]
    xr.testing.assert_identical(array.copy(deep=True), array)
    assert int(array.sel(x=2.2, method="nearest")) == 1
    np.testing.assert_array_equal(array.sel(x=[1.1, 2.9]), [2, 0])
    with pytest.raises(KeyError):
        array.sel(x=5.0)


def test_chunks_of_an_upright_level_are_contiguous(tissue_slide):
    """So that they are joined quickly, and any library takes them."""
    level = dicomslide.open_slide(tissue_slide, correct_color=False).to_dataset()
    eager = level.image.values
    for chunk, place in (
        (level.image.data.blocks[0, 0], eager[: level.image.chunks[0][0]]),
        (level.image.data[3:300:2, 5:], eager[3:300:2, 5:]),
    ):
        pixels = chunk.compute(scheduler="sync")
        assert pixels.flags.c_contiguous
        np.testing.assert_array_equal(pixels, place[: pixels.shape[0], : pixels.shape[1]])
