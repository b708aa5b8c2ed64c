"""napari reads slides by the reader that its manifest names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest

import dicomslide
from dicomslide.plugins import napari as plugin
from dicomslide.testing import write_slide
from tests.support.derive import annotations_of, group_of, write_segmentation

EXPLICIT = "1.2.840.10008.1.2.1"
MANIFEST = Path(plugin.__file__).with_suffix(".yaml")
BOX = np.array([[20.5, 10.5], [89.5, 10.5], [89.5, 39.5], [20.5, 39.5]])


@pytest.fixture
def folder(tmp_path):
    """A stained slide with two segments and, in pixels, an annotation around the first."""
    files = write_slide(
        tmp_path, shape=(120, 160), downsamples=(1, 2), tile_shape=(64, 64),
        transfer_syntax_uid=EXPLICIT, associated=False,
    )  # fmt: skip
    mask = np.zeros((120, 160, 2), np.uint8)
    mask[10:40, 20:90, 0] = mask[80:110, 100:150, 1] = 1
    seg = write_segmentation(tmp_path / "seg.dcm", files[0], mask, "BINARY")
    header = pydicom.dcmread(seg)
    header.SegmentSequence[0].RecommendedDisplayCIELabValue = [34885, 53485, 50171]  # about red
    header.save_as(seg)
    annotations_of(files[0], [group_of([BOX])]).save_as(tmp_path / "ann.dcm")
    return tmp_path


def layers_of(path):
    read = plugin.get_reader(str(path))
    assert read is not None
    return read(str(path))


def _world(described, rows, columns):
    """The place of pixels in napari."""
    places = np.stack([rows, columns], axis=-1)
    return places * described["scale"] + described["translate"]


@pytest.mark.needs("highdicom")
def test_layers_are_the_slide_upright_in_millimetres(folder):
    image, *labels, shapes = layers_of(folder)
    assert [kind for _, _, kind in (image, *labels, shapes)] == [
        "image", "labels", "labels", "shapes"
    ]  # fmt: skip
    slide = dicomslide.open_slide(folder)
    assert image[1]["rgb"]
    for level in range(slide.num_levels):
        expected = slide.to_dataset(level).image
        np.testing.assert_array_equal(np.asarray(image[0][level]), expected.values)
        for data, *_ in labels:
            assert data[level].shape == expected.shape[:2]
    base = slide.to_dataset(0)
    for at, (data, described, _) in enumerate(labels):
        mask = base.segmentation.isel(segment=at).values
        np.testing.assert_array_equal(np.asarray(data[0]) != 0, mask)
        assert described["name"] == ("tumour", "stroma")[at]
        rows, columns = np.nonzero(mask)
        found = _world(described, rows, columns)
        np.testing.assert_allclose(found[:, 0], -base.y.values[rows])
        np.testing.assert_allclose(found[:, 1], base.x.values[columns])
    red, green, blue, _ = labels[0][1]["colormap"][1]
    assert red > 0.9 > 0.2 > max(green, blue)
    (outline,) = shapes[0]  # goes along the outermost pixels of the first segment
    inside = _world(labels[0][1], *np.nonzero(base.segmentation.isel(segment=0).values))
    pixel = labels[0][1]["scale"][0]
    np.testing.assert_allclose(outline.min(axis=0), inside.min(axis=0), atol=pixel)
    np.testing.assert_allclose(outline.max(axis=0), inside.max(axis=0), atol=pixel)


def test_channels_and_planes_of_fluorescence_are_named_and_coloured(tmp_path):
    write_slide(
        tmp_path, shape=(100, 150), drawing="cells", samples=1, bits=16, downsamples=(1, 2),
        optical_paths=("FITC", "Cy5", "DAPI"), planes=(0, 2, 4), transfer_syntax_uid=EXPLICIT,
    )  # fmt: skip
    ((data, described, kind),) = layers_of(tmp_path)
    expected = dicomslide.open_slide(tmp_path).to_dataset(0).image
    assert kind == "image"
    assert described["channel_axis"] == 0
    np.testing.assert_array_equal(
        np.asarray(data[0]), expected.transpose("channel", "z", "y", "x").values
    )
    names = [name.rpartition(" ")[2] for name in described["name"]]
    assert names == ["FITC", "Cy5", "DAPI"]
    assert described["colormap"][names.index("DAPI")] == "#0000FF"
    assert described["axis_labels"] == ["z", "y", "x"]
    assert described["scale"][0] == pytest.approx(0.002)
    smallest = np.asarray(data[-1])
    for (low, high), channel in zip(described["contrast_limits"], smallest, strict=True):
        assert channel.min() <= low < high <= channel.max()


def test_what_is_shown_of_a_channel_is_read_alone(tmp_path, frames_read):
    write_slide(
        tmp_path, shape=(256, 384), drawing="cells", samples=1, bits=16, downsamples=(1, 4),
        optical_paths=("FITC", "DAPI"), tile_shape=(64, 64), transfer_syntax_uid=EXPLICIT,
    )  # fmt: skip
    ((data, *_),) = layers_of(tmp_path)
    dicomslide.clear_all()
    frames_read.clear()
    np.asarray(data[0][1, 64:128, :64])
    assert len(frames_read) == 1


def test_annotations_that_napari_would_be_slow_with_are_points(folder, monkeypatch):
    monkeypatch.setattr(plugin, "MOST_SHAPES", 0)
    *_, (points, described, kind) = layers_of(folder)
    assert kind == "points"
    ((x, y),) = dicomslide.open_slide(folder).annotations()[0].centroids
    np.testing.assert_allclose(points, [[-y, x]])
    assert described["features"]["n_points"].tolist() == [4]


def test_other_files_and_folders_are_left_to_other_readers(tmp_path):
    (tmp_path / "notes.dcm").write_text("not DICOM")
    assert plugin.get_reader(str(tmp_path / "notes.dcm")) is None
    assert plugin.get_reader(str(tmp_path)) is None
    assert plugin.get_reader([]) is None
    assert plugin.get_reader("dicomweb+https://archive/studies/1.2") is plugin.read


def test_the_reader_needs_no_napari():
    code = "import sys, dicomslide.plugins.napari as p; sys.exit('napari' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.needs("npe2")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", ["slide", "slide/level-0.dcm", "dicomweb+https://a/studies/1"])
def test_npe2_finds_the_reader_by_its_manifest(tmp_path, what):
    from npe2 import PluginManager, PluginManifest

    manifest = PluginManifest.from_file(MANIFEST)
    manifest.validate_imports()
    manager = PluginManager()
    manager.register(manifest)
    (tmp_path / "slide").mkdir()
    path = what if "://" in what else str(tmp_path / what)
    (reader,) = manager.iter_compatible_readers([path])
    assert reader.command == "dicomslide.get_reader"
    assert not list(manager.iter_compatible_readers([str(tmp_path / "picture.tif")]))


@pytest.mark.needs("napari", "highdicom")
@pytest.mark.filterwarnings("ignore")
def test_napari_opens_all_layers_in_one_place(folder):
    from napari.components import ViewerModel
    from napari.layers import Layer

    viewer = ViewerModel()
    for layer in layers_of(folder):
        viewer.add_layer(Layer.create(*layer))
    image, *labels, shapes = viewer.layers
    assert image.multiscale
    base = dicomslide.open_slide(folder).to_dataset(0)
    for number, label in enumerate(labels, 1):
        mask = base.segmentation.sel(segment=number)
        row, column = (int(np.median(each)) for each in np.nonzero(mask.values))
        world = (-float(base.y[row]), float(base.x[column]))
        assert label.get_value(world, world=True)[1] == number
    np.testing.assert_array_equal(
        np.round(shapes.extent.data, 6)[0] >= np.round(image.extent.world, 6)[0], [True, True]
    )
