"""What viewers make of exports: upright pictures, colours that channels are named for, labels."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest

import dicomslide
from dicomslide.testing import write_slide
from tests.support.derive import annotations_of, group_of, write_segmentation
from tests.support.exports import EXPLICIT
from tests.support.markers import palette, write_markers

# viewers and what they import warn of their own
pytestmark = pytest.mark.filterwarnings("ignore")

HOW = (
    "is for a venv of its own: python3 -m venv .venv-spatialdata && .venv-spatialdata/bin/python -m"
    " pip install --editable '.[spatialdata]' pytest hypothesis highdicom ome-zarr-models"
    " spatialdata-plot napari-ome-zarr && .venv-spatialdata/bin/python -m pytest -p no:napari"
    " -p no:npe2 tests/test_viewers.py"
)
ORIENTATIONS = [(0, -1, 0, -1, 0, 0), (1, 0, 0, 0, -1, 0), (0, 1, 0, 1, 0, 0)]


@pytest.fixture
def markers(tmp_path):
    """Three channels whose colours differ from those that their positions would have."""
    cyan = palette(np.outer(np.arange(256), (0, 1, 1)))
    return dicomslide.open_slide(
        write_markers(
            tmp_path / "markers.dcm",
            [
                {"OpticalPathDescription": "Texas Red"},
                {"OpticalPathDescription": "CD3", "PaletteColorLookupTableSequence": cyan},
                {"OpticalPathDescription": "DAPI"},
            ],
            bits=12,
        )
    )


COLORS = {"Texas Red": "#FF0000", "CD3": "#00FFFF", "DAPI": "#0000FF"}


def segmented(tmp_path, orientation=ORIENTATIONS[0]):
    """A stained slide, with a segment in a corner of its first level only, and an annotation."""
    files = write_slide(
        tmp_path / "slide", shape=(120, 160), downsamples=(1, 2), tile_shape=(64, 64),
        orientation=orientation, transfer_syntax_uid=EXPLICIT, associated=False,
    )  # fmt: skip
    mask = np.zeros((120, 160, 2), np.uint8)
    mask[10:40, 20:90, 0] = mask[80:110, 100:150, 1] = 1
    seg = write_segmentation(tmp_path / "seg.dcm", files[0], mask, "BINARY")
    header = pydicom.dcmread(seg)
    for item, lab in zip(header.SegmentSequence, ([34885, 53485, 50171], [57500, 10753, 54225]),
                         strict=True):  # fmt: skip
        item.RecommendedDisplayCIELabValue = lab  # about red, and green
    header.save_as(seg)
    box = np.array([[20.5, 10.5], [89.5, 10.5], [89.5, 39.5], [20.5, 39.5]])
    annotations_of(files[0], [group_of([box])]).save_as(tmp_path / "ann.dcm")
    return dicomslide.open_slide([*files, seg, tmp_path / "ann.dcm"])


# -- napari -----------------------------------------------------------------------------------


def layers_of(store):
    reader = pytest.importorskip("napari_ome_zarr", reason=f"napari-ome-zarr {HOW}")
    return reader.napari_get_reader(str(store))(str(store))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_napari_shows_labels_over_the_upright_image_at_each_zoom(tmp_path, orientation):
    slide = segmented(tmp_path, orientation)
    dicomslide.to_ome_zarr(slide, tmp_path / "out.zarr")
    image, *labels = layers_of(tmp_path / "out.zarr")
    assert [kind for _, _, kind in labels] == ["labels", "labels"]
    for number, level in enumerate(slide.levels):
        expected = slide.to_dataset(number).image.values
        np.testing.assert_array_equal(np.moveaxis(np.asarray(image[0][number]), 0, -1), expected)
        for data, _, _ in labels:
            assert data[number].shape == expected.shape[:2], level
    segments = slide.to_dataset(0).segmentation.values
    for value, (data, described, _) in enumerate(labels, 1):
        np.testing.assert_array_equal(np.asarray(data[0]) == value, segments[value - 1])
        assert np.asarray(data[1]).any()
        for key in ("scale", "units", "axis_labels"):
            assert described[key] == image[1][key]
        np.testing.assert_array_equal(
            described["affine"].affine_matrix, image[1]["affine"].affine_matrix
        )
        assert described["properties"]["label"] == [("tumour", "stroma")[value - 1]]


def test_napari_shows_channels_in_the_colours_of_their_names(markers, tmp_path):
    dicomslide.to_ome_zarr(markers, tmp_path / "out.zarr")
    ((_, described, kind),) = layers_of(tmp_path / "out.zarr")
    assert kind == "image"
    assert described["name"] == [f"image: {name}" for name in COLORS]
    for colormap, color in zip(described["colormap"], COLORS.values(), strict=True):
        brightest = np.asarray(colormap.colors)[-1, :3] * 255
        np.testing.assert_array_equal(brightest, list(bytes.fromhex(color[1:])))
    assert all(0 <= low < high <= 4095 for low, high in described["contrast_limits"])


# -- spatialdata-plot -------------------------------------------------------------------------


@pytest.fixture
def drawn():
    """A function that draws on a picture of one dot per pixel of the slide, and returns it."""
    pytest.importorskip("spatialdata_plot", reason=f"spatialdata-plot {HOW}")
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    def draw(plotted, shape):
        figure = plt.figure(figsize=(shape[1] / 100, shape[0] / 100), dpi=100)
        axes = figure.add_axes((0, 0, 1, 1))
        plotted.pl.show(ax=axes, title="", colorbar=False, legend_loc="none")
        axes.set_axis_off()
        axes.set_position((0, 0, 1, 1))
        figure.canvas.draw()
        picture = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(float)
        plt.close(figure)
        return picture

    return draw


def difference(picture, other):
    return np.abs(picture - other).mean()


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_spatialdata_plot_shows_the_upright_image_labels_and_shapes(tmp_path, drawn, orientation):
    slide = segmented(tmp_path, orientation)
    level = slide.to_dataset(0)
    upright = level.image.values.astype(float)
    data = dicomslide.to_spatialdata(slide)
    image = drawn(data.pl.render_images("image"), upright.shape)
    right = difference(image, upright)
    assert right < 6
    for mirrored in (upright[::-1], upright[:, ::-1], upright[::-1, ::-1]):
        assert difference(image, mirrored) > 2 * right
    for number, color in ((1, (255, 0, 0)), (2, (0, 255, 0))):
        labelled = drawn(
            data.pl.render_images("image").pl.render_labels(
                f"segmentation_segment_{number}", color="label", table_name="segments",
                fill_alpha=1,
            ),
            upright.shape,
        )  # fmt: skip
        changed = np.abs(labelled - image).max(axis=-1) > 30
        mask = level.segmentation.values[number - 1]
        assert (changed & mask).sum() / (changed | mask).sum() > 0.8
        assert np.abs(np.median(labelled[mask], axis=0) - color).max() < 40
    shown = drawn(
        data.pl.render_images("image").pl.render_shapes("annotations_1", color="#00FF00"),
        upright.shape,
    )
    changed = np.abs(shown - image).max(axis=-1) > 30
    mask = level.segmentation.values[0]
    assert (changed & mask).sum() / (changed | mask).sum() > 0.8


def test_spatialdata_plot_shows_channels_in_the_colours_that_attrs_tell(markers, drawn):
    data = dicomslide.to_spatialdata(markers)
    channels = data.attrs["channels"]["image"]
    assert {each["name"]: each["color"] for each in channels} == COLORS
    shape = markers.to_dataset(0).image.shape[-2:]
    for each in channels:
        plotted = data.pl.render_images("image", channel=[each["name"]], palette=[each["color"]])
        picture = drawn(plotted, shape)
        wanted = np.array(list(bytes.fromhex(each["color"][1:]))) > 0
        assert picture[..., wanted].max() > 200
        assert picture[..., ~wanted].mean() < 20
