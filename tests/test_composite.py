"""Stills: channels blended in colours, overlays, titles, scale bars, contact sheets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import dicomslide
from dicomslide.display.blend import blend, laid_over, robust_limits
from dicomslide.labelled.composite import composite
from dicomslide.labelled.overlay import overlay_of
from dicomslide.testing import write_slide
from tests.support import derive

RAW = "1.2.840.10008.1.2.1"


@pytest.fixture(scope="module")
def markers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("markers")
    write_slide(
        folder, shape=(300, 400), drawing="cells", samples=1, bits=16, transfer_syntax_uid=RAW,
        optical_paths=("DAPI", "FITC", "Cy5"), planes=(0, 2), container_id="F-1",
    )  # fmt: skip
    return dicomslide.open_slide(folder)


@pytest.fixture(scope="module")
def tissue(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tissue")
    files = write_slide(folder, shape=(256, 384), downsamples=(1, 2), container_id="S-1")
    masks = np.zeros((256, 384, 2), np.uint8)
    masks[:100, :, 0] = masks[50:150, :200, 1] = 1
    derive.write_segmentation(folder / "seg.dcm", files[0], masks, "BINARY")
    cells = [np.array([[20.0, 30], [60, 30], [60, 90]]), np.array([[5.0, 5], [9, 5], [9, 9]])]
    derive.annotations_of(files[0], [derive.group_of(cells)]).save_as(folder / "ann.dcm")
    return dicomslide.open_slide(folder)


def some_axes():
    from matplotlib.figure import Figure

    return Figure().subplots()


def by_the_formula(pixels, colors, limits, gamma):
    """Sum of channels in floating point, of what is written in the documentation."""
    total = np.zeros((*pixels.shape[1:], 3))
    for values, color, (low, high) in zip(pixels, colors, limits, strict=True):
        share = np.clip((values.astype(float) - low) / (high - low), 0, 1) ** gamma
        total += share[..., None] * np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    return np.minimum(total, 255)


@given(
    pixels=arrays.arrays(
        st.sampled_from([np.uint8, np.uint16, np.int16, np.float32, np.bool_]), (2, 3, 5)
    ).filter(lambda pixels: np.isfinite(pixels).all()),
    ends=st.lists(st.tuples(st.integers(-300, 300), st.integers(1, 70000)), min_size=2, max_size=2),
    gamma=st.floats(0.3, 3),
)
def test_channels_add_up_in_their_colours(pixels, ends, gamma):
    limits = [(low, low + width) for low, width in ends]
    colors = ["#FF8000", "#2040C0"]
    found = blend(list(pixels), colors, limits, gamma)
    assert np.abs(found - by_the_formula(pixels, colors, limits, gamma)).max() <= 0.51


def test_a_composite_is_lazy_and_has_the_millimetres_of_its_image(markers, frames_read):
    image = markers.to_dataset().image.isel(z=0)
    coarse = markers.to_dataset(2).image.isel(z=0)
    colors = ["blue", "#00FF00", "#FF00FF"]
    picture = composite(image, colors, limits=coarse)
    np.testing.assert_array_equal(picture.x, image.x)
    assert type(picture.xindexes["x"]) is dicomslide.SlideIndex
    assert (picture.dims, picture.dtype) == (("y", "x", "sample"), np.uint8)
    part = picture.isel(y=slice(3, 9), x=slice(60, 70))
    expected = by_the_formula(
        image.isel(y=slice(3, 9), x=slice(60, 70)).values,
        ["#0000FF", "#00FF00", "#FF00FF"], picture.limits, 1,
    )  # fmt: skip
    dicomslide.clear_all()
    frames_read.clear()
    assert np.abs(part.values - expected).max() <= 0.51
    assert len(frames_read) == 3  # one frame of each channel, once
    ends = [np.percentile(each, (1, 99.8)) for each in coarse.values]
    np.testing.assert_allclose(picture.limits, ends)


def test_a_composite_has_the_units_of_its_coordinates_but_not_the_image_s_attributes(markers):
    image = markers.to_dataset().image.isel(z=0)
    found = composite(image)
    for dim in ("y", "x"):
        assert found[dim].attrs == image[dim].attrs
        assert found[dim].attrs["units"] == "mm"
    assert set(found.attrs) == {"long_name", "limits"}


def test_limits_come_from_pixels_headers_or_the_caller(markers):
    image = markers.to_dataset(2).image.isel(z=0)
    assert composite(image, limits="header").limits == [[0, 65535]] * 3
    assert composite(image, limits=(5, 9)).limits == [[5, 9]] * 3
    assert composite(image, limits=[(0, 1), (2, 3), (4, 5)]).limits[2] == [4, 5]
    assert composite(image[0]).sizes["sample"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(colors=["red"]), "1 colours for 3 channels"),
        (dict(colors=["red", "green", "no colour"]), "'no colour' is no colour"),
        (dict(limits="best"), "'best'"),
        (dict(limits=[(1, 0)] * 3), "ascending pair for each of 3"),
        (dict(limits=[(0, 1)] * 2), "ascending pair for each of 3"),
        (dict(gamma=0), "gamma 0"),
    ],
)
def test_a_composite_says_what_it_expects(markers, options, message):
    image = markers.to_dataset(2).image.isel(z=0)
    with pytest.raises(ValueError, match=message):
        composite(image, **options)


def test_colours_and_stacks_are_not_blended(markers, tissue):
    with pytest.raises(ValueError, match="are colours"):
        composite(tissue.to_dataset().image)
    with pytest.raises(ValueError, match="isel"):
        composite(markers.to_dataset().image)
    with pytest.raises(ValueError, match="no channels to blend"):
        tissue.thumbnail(composite=True)


def test_a_thumbnail_blends_all_channels(markers):
    """At the size of a level it is that level, between the robust limits of its pixels."""
    image = markers.to_dataset(1).image.isel(z=1)
    picture = markers.thumbnail(200, composite=True, focal_plane_index=1)
    colors = [each.color for each in image.slide.channel_displays()]
    assert colors == ["#0000FF", "#00FF00", "#FF00FF"]
    limits = [robust_limits(each.astype(np.float32)) for each in image.values]
    expected = by_the_formula(image.values, colors, limits, 1)
    assert np.abs(picture - expected).max() <= 0.51


@pytest.mark.needs("matplotlib")
def test_plots_say_what_a_person_wants(markers, tissue):
    assert markers.plot(
        ax=some_axes(), channel_index=1, focal_plane_index=1, size=400
    ).get_title() == ("F-1 · Fluorescence FITC · focal plane 2 µm · 0.5 µm/px")
    assert tissue.plot(ax=some_axes(), size=192).get_title() == "S-1 · 1 µm/px"
    axes = markers.plot(ax=some_axes(), composite=True)
    assert axes.get_title().startswith("F-1 · composite · ")
    assert [each.get_text() for each in axes.get_legend().get_texts()] == [
        f"Fluorescence {name}" for name in ("DAPI", "FITC", "Cy5")
    ]
    region = markers.to_dataset().image.isel(z=0, channel=1, x=slice(20), y=slice(30))
    assert region.slide.plot(ax=some_axes()).get_title() == "Fluorescence FITC · 0.5 µm/px"
    coloured = tissue.to_dataset().image.isel(x=slice(20), y=slice(30))
    assert coloured.slide.plot(ax=some_axes()).get_title() == "0.5 µm/px"


@pytest.mark.needs("matplotlib")
def test_an_array_is_plotted_where_it_lies(markers):
    image = markers.to_dataset().image.isel(z=0)
    axes = image.slide.plot(ax=some_axes(), limits=(0, 5000), gamma=0.5)
    (shown,) = axes.images
    assert tuple(shown.get_extent()) == pytest.approx([image.slide.extent[i] for i in (0, 2, 1, 3)])
    expected = composite(image, limits=(0, 5000), gamma=0.5)
    np.testing.assert_array_equal(shown.get_array(), expected)
    turned = image.isel(y=slice(None, None, -1), x=slice(None, None, -1)).slide.plot(
        ax=some_axes(), limits=(0, 5000), gamma=0.5
    )
    np.testing.assert_array_equal(turned.images[0].get_array(), expected)
    with pytest.raises(TypeError, match="dataset"):
        markers.to_dataset().slide.plot()


@pytest.mark.needs("matplotlib")
def test_a_plot_reads_each_frame_once(markers, frames_read):
    markers.to_dataset().image.isel(z=0).slide.plot(ax=some_axes())
    assert len(frames_read) == len(set(frames_read)) > 0


@pytest.mark.needs("matplotlib")
@pytest.mark.parametrize("dark", [True, False])
def test_a_scale_bar_is_legible_on_any_ground(dark):
    from matplotlib.colors import to_rgb

    axes = some_axes()
    axes.imshow(np.full((50, 50, 3), 0 if dark else 255, np.uint8), extent=(0, 1, 0, 1))
    dicomslide.add_scale_bar(axes)
    (bar,) = axes.lines
    assert to_rgb(bar.get_color()) == ((1, 1, 1) if dark else (0, 0, 0))


@pytest.mark.needs("matplotlib", "geopandas")
def test_overlays_lie_where_their_millimetres_are(tissue):
    import geopandas
    import shapely

    box = geopandas.GeoDataFrame(geometry=[shapely.box(17.9, 31.9, 17.95, 31.95)])
    heat = xr.zeros_like(tissue.to_dataset(1).image.isel(sample=0), "float32")
    heat = heat.rename("heat").assign_attrs(units="%")
    axes = tissue.plot(
        ax=some_axes(),
        overlay={"tumours": "segmentation", "nuclei": "nuclei", "mine": box, "h": heat},
    )
    picture, segments, numbers = axes.images
    assert axes.get_xlim() == pytest.approx(picture.get_extent()[:2])
    masks = tissue.to_dataset().segmentation
    assert tuple(segments.get_extent()) == pytest.approx(
        [masks.slide.extent[i] for i in (0, 2, 1, 3)]
    )
    drawn = np.asarray(segments.get_array())[..., 3] > 0
    np.testing.assert_array_equal(drawn, masks.any("segment"))
    assert [each.get_text() for each in axes.get_legend().get_texts()] == [
        "tumour", "stroma", "nuclei", "mine",
    ]  # fmt: skip
    assert "%" in axes.figure.axes[-1].get_ylabel()
    lines = axes.collections[0].get_segments()
    (group,) = tissue.annotations()
    np.testing.assert_allclose(lines[0][:-1], group[0][:, :2])
    assert numbers.get_alpha().shape == heat.shape


@pytest.mark.needs("matplotlib")
def test_an_overlay_lies_where_it_is_in_any_order_of_its_pixels(tissue):
    mask = tissue.to_dataset(1).image.isel(sample=0).astype("float32").rename("mask") > 200
    turned = mask.isel(y=slice(None, None, -1), x=slice(None, None, -1))
    first, second = (
        tissue.plot(ax=some_axes(), overlay=each).images[1].get_array() for each in (mask, turned)
    )
    assert first.any()
    np.testing.assert_array_equal(first, second)


@pytest.mark.needs("matplotlib")
@pytest.mark.parametrize(
    ("overlay", "error", "message"),
    [
        (["no such"], KeyError, "'segmentation', 'nuclei'"),
        ([7], TypeError, "of type int"),
        (xr.DataArray(np.zeros((2, 2)), dims=("a", "b")), ValueError, "dims y, x in mm"),
    ],
)
def test_overlays_that_cannot_be_drawn_say_why(tissue, overlay, error, message):
    with pytest.raises(error, match=message):
        tissue.plot(ax=some_axes(), overlay=overlay)


@pytest.mark.needs("matplotlib")
def test_an_array_of_another_frame_of_reference_is_refused(tissue):
    image = tissue.to_dataset(1).image.isel(sample=0)
    other = image.slide.restore(frame_of_reference_uid="1.2.3")
    with pytest.raises(dicomslide.GridError, match=r"1\.2\.3"):
        tissue.plot(ax=some_axes(), overlay=other)


def test_label_maps_have_a_colour_for_each_label_and_nothing_elsewhere():
    labels = xr.DataArray(
        np.array([[0, 3, 7], [9, 3, 0]], np.uint8), dims=("y", "x"),
        attrs=dict(flag_values=[7, 3], segment_labels=["a", "b"]),
    )  # fmt: skip
    drawn = overlay_of(labels, colors=["#FF0000", "#00FF00"])
    rgba = drawn.rgba(labels.values)
    assert rgba[0].tolist() == [[0, 0, 0, 0], [0, 255, 0, 255], [255, 0, 0, 255]]
    assert rgba[1, 0].tolist() == [0, 0, 0, 0]  # a label that isn't declared
    assert [drawn.describe(value) for value in (0, 3, 7, 9)] == ["", "b", "a", ""]


def test_numbers_of_objects_are_told_apart():
    objects = xr.DataArray(np.arange(6, dtype=np.int32).reshape(2, 3), dims=("y", "x"))
    rgba = overlay_of(objects).rgba(objects.values)
    assert not rgba[0, 0, 3]
    for one, other in itertools.pairwise(rgba.reshape(-1, 4)[1:]):
        assert tuple(one) != tuple(other)


@pytest.mark.needs("matplotlib")
def test_each_segmentation_of_a_level_has_the_name_of_its_own_segment():
    masks = {
        name: (("y", "x"), np.ones((2, 3), bool)) for name in ("segmentation", "segmentation_2")
    }
    labels = {"segment": 1, "segment_label": "dark", "segment_2": 1, "segment_2_label": "tissue"}
    level = xr.Dataset(masks, labels)
    for name, label in (("segmentation", "dark"), ("segmentation_2", "tissue")):
        assert overlay_of(level[name]).describe(1) == label
        ((shown, _),) = overlay_of(level[name]).legend
        assert shown == label


@pytest.mark.needs("matplotlib")
def test_numbers_without_a_value_are_clear():
    values = np.array([[np.nan, 0.0, 1.0]], np.float32)
    drawn = overlay_of(xr.DataArray(values, dims=("y", "x"), attrs=dict(units="1")), limits=(0, 1))
    rgba = drawn.rgba(values)
    assert rgba[0, :, 3].tolist() == [0, 255, 255]
    assert [drawn.describe(value) for value in values[0]] == ["", "0", "1"]


def test_colours_over_others_mix_by_opacity():
    """As Pillow's alpha_composite has them."""
    from PIL import Image

    rng = np.random.default_rng(0)
    below, above = rng.integers(0, 256, (2, 20, 20, 4), dtype=np.uint8)
    below[..., 3] = 255
    expected = Image.alpha_composite(Image.fromarray(below), Image.fromarray(above))
    laid_over(below, above)
    assert np.abs(below.astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.needs("matplotlib")
def test_a_contact_sheet_has_a_picture_of_each_slide_at_one_scale(tmp_path):
    write_slide(tmp_path / "a", shape=(128, 192), downsamples=(1,), container_id="A")
    write_slide(
        tmp_path / "b", shape=(64, 64), downsamples=(1,), drawing="cells", samples=1, bits=16,
        transfer_syntax_uid=RAW, optical_paths=("DAPI", "FITC"), container_id="B", slide_number=2,
    )  # fmt: skip
    (bad,) = write_slide(
        tmp_path / "c", shape=(64, 64), downsamples=(1,), container_id="C", slide_number=3,
        associated=False,
    )  # fmt: skip
    data = bytearray(bad.read_bytes())
    at = data.index(b"\xff\xd8\xff")
    data[at : at + 200] = bytes(200)
    bad.write_bytes(data)
    figure = dicomslide.open_slides(tmp_path).plot(columns=2, size=64)
    panels = figure.axes
    assert [panel.get_title() for panel in panels] == ["A", "B", "C", ""]
    first, second = (panel.images[0] for panel in panels[:2])
    assert first.get_array().shape == (64, 43, 3)
    assert second.get_array().shape == (64, 64, 3)  # blended
    assert panels[0].get_xlim() == panels[1].get_xlim()
    assert "FrameDecodeError" in panels[2].texts[0].get_text()
    shown = dicomslide.open_slides(tmp_path).plot(most=1)
    assert shown.get_suptitle() == "1 of 3 slides"
    with pytest.raises(ValueError, match="of 0 pixels"):
        dicomslide.open_slides(tmp_path).plot(size=0)
