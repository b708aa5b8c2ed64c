"""Segmentations and parametric maps: channels of the slide, variables of its tree."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import dask
import numpy as np
import pydicom
import pytest
import xarray as xr
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

import dicomslide
from dicomslide import ChannelTypes, TiledImage, open_slide
from dicomslide.backends.part10.file import FileStore
from dicomslide.errors import MetadataError
from dicomslide.header.geometry import SlideGeometry
from dicomslide.header.lazy_items import LazySequence
from dicomslide.pixels import PixelFormat
from dicomslide.testing import PositionDrawing, SyntheticImage, position_values, write_image
from dicomslide.testing import write_slide as write
from tests.support.derive import mapping, segment, tumour, write_map, write_segmentation

EXPLICIT = "1.2.840.10008.1.2.1"
SHAPE = (70, 110)
TILE = (32, 48)
POINTS = ([3, 5], [0, 109])


def write_slide(folder, **options):
    return write(
        folder,
        **{
            "shape": SHAPE,
            "downsamples": (1, 2),
            "tile_shape": TILE,
            "drawing": "position",
            "transfer_syntax_uid": EXPLICIT,
            "associated": False,
        }
        | options,
    )


def upright(matrix):
    """The typical orientation's rows and columns as the slide stands."""
    return np.rot90(matrix, -1)


@pytest.fixture(scope="module")
def levels(tmp_path_factory):
    """Files of a slide of two levels."""
    return write_slide(tmp_path_factory.mktemp("levels"))


@pytest.fixture(scope="module")
def masks():
    rng = np.random.default_rng(7)
    masks = rng.random((*SHAPE, 2)) > 0.6
    masks[:32, :48] = False  # a tile of nothing
    return masks


def tiled(path):
    store = FileStore.open(path)
    return TiledImage(store, store.metadata[0])


def labels_of(masks):
    return np.select([masks[..., 0], masks[..., 1]], [1, 2], 0).astype(np.uint8)


def kept(image, index):
    """Pixels of a channel of a TiledImage, without the sample axis."""
    return image.get_total_pixel_matrix(index)[:, :][..., 0]


# -- segmentations ---------------------------------------------------------------------------

BINARY = {
    "sparse": {},
    "all frames": {"omit_empty_frames": False},
    "full": {"dimension_organization_type": "TILED_FULL", "omit_empty_frames": False},
    "bits that aren't byte-aligned": {"tile_size": (9, 13)},
    "frames of few bits": {"tile_size": (3, 5)},
    "larger than the matrix": {"tile_size": (128, 128)},
}


@pytest.mark.parametrize("options", BINARY.values(), ids=BINARY.keys())
def test_binary_segments_are_boolean_channels(tmp_path, levels, masks, options):
    path = write_segmentation(
        tmp_path / "seg.dcm", levels[0], masks.astype(np.uint8), "BINARY", **options
    )
    slide = open_slide([*levels, path])
    assert (slide.num_channels, slide.num_levels) == (3, 2)
    assert slide.get_channel_type(0) is ChannelTypes.OPTICAL_PATH
    for k, number in enumerate(("1", "2")):
        index = slide.get_channel_index(number, "SEGMENT")
        assert (index, slide.get_channel_identifier(index)) == (1 + k, number)
        assert slide.get_channel_type(index) is ChannelTypes.SEGMENT
        region = slide.get_image_region((0, 0), 0, SHAPE, index)
        assert region.dtype == bool
        np.testing.assert_array_equal(region[..., 0], masks[..., k])
        outside = slide.get_image_region((60, 100), 0, (20, 20), index)
        np.testing.assert_array_equal(outside[:10, :10, 0], masks[60:, 100:, k])
        assert not outside[10:].any()
        assert not outside[:, 10:].any()
    level = slide.to_datatree()["level_0"]
    assert level.segmentation.dims == ("segment", "y", "x")
    assert level.segmentation.dtype == bool
    assert level.segmentation.attrs["segmentation_type"] == "BINARY"
    for k, number in enumerate(("1", "2")):
        chosen = level.segmentation.sel(segment=int(number))
        np.testing.assert_array_equal(chosen, upright(masks[..., k]))
    assert "segmentation" not in slide.to_datatree()["level_1"]


FRACTIONAL = {
    "native": {},
    "JPEG 2000": {"transfer_syntax_uid": "1.2.840.10008.1.2.4.90"},
    "JPEG-LS": {"transfer_syntax_uid": "1.2.840.10008.1.2.4.80"},
    "RLE": {"transfer_syntax_uid": "1.2.840.10008.1.2.5"},
}


@pytest.mark.parametrize("options", FRACTIONAL.values(), ids=FRACTIONAL.keys())
def test_fractional_segments_keep_their_values(tmp_path, levels, masks, options):
    rng = np.random.default_rng(1)
    values = rng.integers(0, 201, masks.shape) * masks
    path = write_segmentation(
        tmp_path / "seg.dcm",
        levels[0],
        values / 200,
        "FRACTIONAL",
        max_fractional_value=200,
        **options,
    )
    slide = open_slide([levels[0], path])
    stored = slide.to_dataset(mask_and_scale=False).segmentation
    meant = slide.to_dataset().segmentation
    assert (stored.dtype, meant.dtype) == (np.uint8, np.float32)
    assert "units" not in stored.attrs
    assert meant.attrs["units"] == "1"
    for variable in (stored, meant):
        assert variable.attrs["maximum_fractional_value"] == 200
        assert variable.attrs["segmentation_fractional_type"] == "PROBABILITY"
    for k in range(2):
        np.testing.assert_array_equal(
            slide.get_image_region((0, 0), 0, SHAPE, 1 + k)[..., 0], values[..., k]
        )
        np.testing.assert_array_equal(stored[k], upright(values[..., k]))
        np.testing.assert_array_equal(meant[k], upright(values[..., k] / 200).astype(np.float32))


LABELMAP = {
    "native": {},
    "RLE": {"transfer_syntax_uid": "1.2.840.10008.1.2.5"},
    "full": {"dimension_organization_type": "TILED_FULL", "omit_empty_frames": False},
}


@pytest.mark.parametrize("options", LABELMAP.values(), ids=LABELMAP.keys())
def test_a_label_map_is_one_image_whose_segments_are_boolean_channels(
    tmp_path, levels, masks, options
):
    labels = labels_of(masks)
    path = write_segmentation(tmp_path / "seg.dcm", levels[0], labels, "LABELMAP", **options)
    slide = open_slide([levels[0], path])
    variable = slide.to_dataset(squeeze=False).segmentation
    assert variable.dims == ("z", "y", "x")
    assert variable.dtype == np.uint8
    np.testing.assert_array_equal(variable[0], upright(labels))
    assert variable.attrs["flag_values"] == [0, 1, 2]
    assert variable.attrs["flag_meanings"] == "Background tumour stroma"
    for number in (0, 1, 2):
        index = slide.get_channel_index(str(number), ChannelTypes.SEGMENT)
        region = slide.get_image_region((0, 0), 0, SHAPE, index)
        assert region.dtype == bool
        np.testing.assert_array_equal(region[..., 0], labels == number)
        (image,) = slide.get_volume_images(index)
        matrix = image.get_total_pixel_matrix(image.get_channel_index(str(number)))
        assert matrix.dtype == bool
        np.testing.assert_array_equal(matrix[0][..., 0], labels[:32, :48] == number)
        np.testing.assert_array_equal(matrix[(*POINTS, 0)][:, 0], labels[POINTS] == number)
        np.testing.assert_array_equal(matrix.to_dask()[..., 0], labels == number)


def test_absent_tiles_of_a_label_map_are_its_background(tmp_path, levels, masks):
    labels = labels_of(masks)  # its first tile is empty and has no frame
    path = write_segmentation(tmp_path / "seg.dcm", levels[0], labels, "LABELMAP")
    image = open_slide([levels[0], path]).derived_images[0]
    assert image._layout.num_frames < 9
    assert image.get_total_pixel_matrix(image.get_channel_index("0"))[0].all()
    assert not image.get_total_pixel_matrix(image.get_channel_index("1"))[0].any()


def test_segments_are_labelled(tmp_path, levels, masks):
    path = write_segmentation(tmp_path / "seg.dcm", levels[0], masks.astype(np.uint8), "BINARY")
    variable = open_slide([levels[0], path]).to_dataset().segmentation
    assert variable.segment.values.tolist() == [1, 2]
    assert variable.segment_label.values.tolist() == ["tumour", "stroma"]
    assert set(variable.segment_category.values) == {"Morphologically Abnormal Structure"}
    assert variable.segment_type.values.tolist() == ["Tumor", "Connective tissue"]
    assert variable.segment_algorithm.values.tolist() == ["net", "net"]
    swapped = variable.swap_dims(segment="segment_label").sel(segment_label="stroma")
    np.testing.assert_array_equal(swapped, upright(masks[..., 1]))


def test_one_segment_is_a_scalar_coordinate(tmp_path, levels, masks):
    path = write_segmentation(
        tmp_path / "seg.dcm", levels[0], masks[..., 0].astype(np.uint8), "BINARY",
        segments=[segment(1, "tumour")],
    )  # fmt: skip
    slide = open_slide([levels[0], path])
    variable = slide.to_dataset().segmentation
    assert variable.dims == ("y", "x")
    assert variable.segment.item() == 1
    assert variable.segment_label.item() == "tumour"
    assert slide.to_dataset(squeeze=False).segmentation.dims == ("segment", "z", "y", "x")


def test_references_are_those_that_highdicom_wrote(tmp_path, levels, masks):
    path = write_segmentation(tmp_path / "a.dcm", levels[0], masks.astype(np.uint8), "BINARY")
    source = pydicom.dcmread(levels[0])
    image = tiled(path)
    named = (source.StudyInstanceUID, source.SeriesInstanceUID, source.SOPInstanceUID)
    assert image.get_references() == [named]
    assert image.get_references(source.SOPClassUID) == [named]
    assert image.get_references(sop_class_uid="1.2.3") == []
    assert tiled(levels[0]).get_references() == []
    # one of another study
    dataset = pydicom.dcmread(path)
    study = pydicom.Dataset()
    study.StudyInstanceUID = "1.2.3"
    study.ReferencedSeriesSequence = copy.deepcopy(dataset.ReferencedSeriesSequence)
    dataset.StudiesContainingOtherReferencedInstancesSequence = [study]
    dataset.save_as(path)
    assert tiled(path).get_references() == [named, ("1.2.3", *named[1:])]
    assert {type(uid) for each in image.get_references() for uid in each} == {str}


def test_segments_are_found(tmp_path, levels, masks):
    import highdicom as hd

    path = write_segmentation(tmp_path / "seg.dcm", levels[0], masks.astype(np.uint8), "BINARY")
    slide = open_slide([levels[0], path])
    assert slide.find_segments() == (1, 2)
    assert slide.find_segments(number=2) == (2,)
    assert slide.find_segments(label="tumour") == (1,)
    assert slide.find_segments(label="tumour", number=2) == ()
    assert slide.find_segments(property_type=codes.SCT.ConnectiveTissue) == (2,)
    assert slide.find_segments(
        property_category=Code("49755003", "SCT", "any meaning"),
        property_type=hd.sr.CodedConcept("108369006", "SCT", "any meaning"),
    ) == (1,)
    assert slide.find_optical_paths() == (0,)
    assert slide.find_optical_paths(identifier="1", description="Brightfield") == (0,)
    assert slide.find_optical_paths(identifier="2") == ()
    assert slide.find_optical_paths(specimen_stain=Code("12710003", "SCT", "hematoxylin")) == (0,)
    assert slide.find_optical_paths(specimen_stain=Code("1", "SCT", "other")) == ()


@pytest.mark.parametrize("wrong", [-1, 3])
def test_channels_that_are_not_there_raise(tmp_path, levels, masks, wrong):
    path = write_segmentation(tmp_path / "seg.dcm", levels[0], masks.astype(np.uint8), "BINARY")
    slide = open_slide([levels[0], path])
    message = f"no channel {wrong}; there are 3"
    with pytest.raises(ValueError, match=message):
        slide.get_channel_identifier(wrong)
    with pytest.raises(ValueError, match=message):
        slide.get_channel_type(wrong)
    with pytest.raises(ValueError, match=message):
        slide.get_image_region((0, 0), 0, (1, 1), wrong)
    with pytest.raises(ValueError, match=message):
        slide.get_volume_images(wrong)
    with pytest.raises(ValueError, match=r"no channel '9' of type SEGMENT; there are \['1', '2'\]"):
        slide.get_channel_index("9", "SEGMENT")
    with pytest.raises(ValueError, match="no channel '2' of type OPTICAL_PATH"):
        slide.get_channel_index("2", ChannelTypes.OPTICAL_PATH)
    with pytest.raises(ValueError, match="FOO"):
        slide.get_channel_index("1", "FOO")


def test_shared_groups_say_to_which_segment_all_frames_belong(tmp_path, levels, masks):
    path = write_segmentation(
        tmp_path / "seg.dcm", levels[0], masks[..., 0].astype(np.uint8), "BINARY",
        segments=[segment(1, "tumour")], omit_empty_frames=False,
    )  # fmt: skip
    dataset = pydicom.dcmread(path)
    identification = dataset.SharedFunctionalGroupsSequence[0].SegmentIdentificationSequence
    identification[0].ReferencedSegmentNumber = 2
    dataset.SegmentSequence.append(segment(2, "stroma"))
    dataset.save_as(path)
    image = open_slide([levels[0], path]).derived_images[0]
    assert not kept(image, 0).any()
    np.testing.assert_array_equal(kept(image, 1), masks[..., 0])
    # the same without positions: frames are in the order of the tiles
    del dataset.PerFrameFunctionalGroupsSequence
    dataset.DimensionOrganizationType = "TILED_FULL"
    dataset.save_as(path)
    image = open_slide([levels[0], path]).derived_images[0]
    assert not kept(image, 0).any()
    np.testing.assert_array_equal(kept(image, 1), masks[..., 0])
    identification[0].ReferencedSegmentNumber = 5
    dataset.save_as(path)
    with pytest.raises(dicomslide.MetadataError, match="belong to channel '5'; the image has"):
        open_slide([levels[0], path])


def test_a_segmentation_without_descriptions_has_one_implied_segment(tmp_path, levels, masks):
    path = write_segmentation(
        tmp_path / "seg.dcm", levels[0], masks[..., 0].astype(np.uint8), "BINARY",
        segments=[segment(1, "tumour")],
    )  # fmt: skip
    dataset = pydicom.dcmread(path)
    del dataset.SegmentSequence
    dataset.save_as(path)
    slide = open_slide([levels[0], path])
    assert slide.find_segments(number=1) == (1,)
    np.testing.assert_array_equal(
        slide.get_image_region((0, 0), 0, SHAPE, 1)[..., 0], masks[..., 0]
    )


# -- many segments ---------------------------------------------------------------------------

MANY = 120


@pytest.fixture(scope="module")
def cells(tmp_path_factory, levels):
    """A segmentation of a segment for each of many cells, and the number of each pixel's."""
    labels = np.arange(np.prod(SHAPE)).reshape(SHAPE) // 65 + 1
    path = write_segmentation(
        tmp_path_factory.mktemp("cells") / "seg.dcm", levels[0], labels.astype(np.uint8), "BINARY",
        segments=[segment(i + 1, f"cell {i + 1}") for i in range(MANY)],
    )  # fmt: skip
    return path, labels


def test_a_task_is_as_small_with_many_segments_as_with_few(tmp_path, levels, masks, cells):
    few = write_segmentation(tmp_path / "seg.dcm", levels[0], masks.astype(np.uint8), "BINARY")

    def task_size(path):
        array = open_slide([levels[0], path]).to_dataset().segmentation[1, :5, :5].data
        (optimized,) = dask.optimize(array)
        return len(pickle.dumps(dict(optimized.__dask_graph__())))

    assert task_size(cells[0]) < task_size(few) + 200


def test_each_of_many_segments_reads_from_its_frames(levels, cells):
    path, labels = cells
    variable = open_slide([levels[0], path]).to_dataset().segmentation
    picked = variable.sel(segment=[120, 3, 64]).compute()
    for k, number in enumerate((120, 3, 64)):
        np.testing.assert_array_equal(picked[k], upright(labels == number))
    again = pickle.loads(pickle.dumps(variable))
    np.testing.assert_array_equal(again.argmax("segment") + 1, upright(labels))


def test_runs_of_channels_end_where_another_image_begins(tmp_path, levels, masks):
    """Segments 1 and 3 in one instance of a series, 2 and 4 in another one, none in a third."""
    series = generate_uid()
    numbers = ((1, 3), (2, 4))
    pixels = [masks.astype(np.uint8), (~masks).astype(np.uint8)]
    paths = []
    for of_instance, shown in zip(numbers, pixels, strict=True):
        path = write_segmentation(
            tmp_path / f"{of_instance[0]}.dcm", levels[0], shown, "BINARY", series=series,
        )  # fmt: skip
        dataset = pydicom.dcmread(path)
        for item, number in zip(dataset.SegmentSequence, of_instance, strict=True):
            item.SegmentNumber = number
            item.SegmentLabel = f"segment {number}"
        for group in dataset.PerFrameFunctionalGroupsSequence:
            identification = group.SegmentIdentificationSequence[0]
            identification.ReferencedSegmentNumber = of_instance[
                identification.ReferencedSegmentNumber - 1
            ]
        dataset.save_as(path)
        paths.append(path)
    variable = open_slide([levels[0], *paths]).to_dataset().segmentation
    assert variable.segment.values.tolist() == [1, 3, 2, 4]
    expected = np.concatenate([masks, ~masks], axis=2)
    for k in range(4):
        np.testing.assert_array_equal(variable[k], upright(expected[..., k]))


def test_html_of_many_segments_lists_some(levels, cells):
    slide = open_slide([levels[0], cells[0]])
    page = slide._repr_html_()
    assert "cell 5<" in page
    assert "cell 6<" not in page
    assert f"and {MANY - 6} more" in page
    assert f"cell {MANY}<" in page
    assert f"1 channel, {MANY} segments, 1 focal plane" in page
    image = slide.derived_images[0]._repr_html_()
    assert "TiledImage: segmentation" in image
    assert "VOLUME" not in image
    assert f"50, and {MANY - 50} more" in image


ITEMS = 300
ENCODINGS = {
    "explicit": ("1.2.840.10008.1.2.1", False),
    "implicit": ("1.2.840.10008.1.2", False),
    "big endian": ("1.2.840.10008.1.2.2", False),
    "undefined lengths": ("1.2.840.10008.1.2.1", True),
    "undefined lengths, implicit": ("1.2.840.10008.1.2", True),
}


@pytest.mark.parametrize(("syntax", "undefined"), ENCODINGS.values(), ids=ENCODINGS.keys())
def test_thousands_of_segments_are_described_without_being_parsed(
    tmp_path, levels, masks, syntax, undefined, monkeypatch
):
    labels = labels_of(masks)
    path = write_segmentation(tmp_path / "seg.dcm", levels[0], labels, "LABELMAP")
    dataset = pydicom.dcmread(path)
    items = list(dataset.SegmentSequence)
    for number in range(3, ITEMS):
        item = copy.deepcopy(items[1 + number % 2])
        item.SegmentNumber = number
        item.SegmentLabel = f"Zelle {number} µ"
        if number % 7 == 0:
            del item.SegmentedPropertyTypeCodeSequence
        items.append(item)
    dataset.SegmentSequence = items
    dataset.SpecificCharacterSet = "ISO_IR 192"
    if undefined:
        dataset["SegmentSequence"].is_undefined_length = True
        for item in items:
            item.is_undefined_length_sequence_item = True
            for element in item:
                element.is_undefined_length = element.VR == "SQ"
    dataset.file_meta.TransferSyntaxUID = syntax
    implicit, little = syntax == "1.2.840.10008.1.2", syntax != "1.2.840.10008.1.2.2"
    pydicom.dcmwrite(path, dataset, implicit_vr=implicit, little_endian=little, force_encoding=True)
    parsed = []
    whole = LazySequence.__getitem__
    monkeypatch.setattr(
        LazySequence, "__getitem__", lambda self, at: parsed.append(at) or whole(self, at)
    )
    slide = open_slide([levels[0], path])
    attrs = slide.to_dataset().segmentation.attrs
    assert "flag_meanings" not in attrs  # a text of megabytes
    assert len(str(attrs)) < 2000
    assert f"{ITEMS:,} segments ('Background', 'tumour'" in repr(slide)
    assert not parsed
    expected = pydicom.dcmread(path).SegmentSequence
    assert attrs["flag_values"] == [item.SegmentNumber for item in expected]
    assert attrs["segment_labels"] == [item.SegmentLabel for item in expected]
    kinds = [item.get("SegmentedPropertyTypeCodeSequence") for item in expected]
    assert attrs["segment_types"] == [kind[0].CodeMeaning if kind else "" for kind in kinds]
    for at in (0, 2, 250, -1):
        assert slide.channels[1 + at % ITEMS].item == expected[at]
    header = slide.derived_images[0].metadata
    assert header.SegmentSequence == expected
    assert pickle.loads(pickle.dumps(header)).SegmentSequence == expected
    header = copy.deepcopy(header)
    header.SegmentSequence.append(expected[1])
    assert len(header.SegmentSequence) == ITEMS + 1
    assert header.SegmentSequence[-1] == expected[1]


def test_items_that_are_cut_raise(levels, tmp_path, masks):
    path = write_segmentation(tmp_path / "seg.dcm", levels[0], labels_of(masks), "LABELMAP")
    dataset = pydicom.dcmread(path)
    dataset["SegmentSequence"].is_undefined_length = True
    dataset.save_as(path)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"stroma")])
    with pytest.raises(MetadataError, match=r"seg\.dcm"):
        FileStore.open(path)


# -- several derived images ------------------------------------------------------------------


def test_equal_numbers_of_two_series_are_different_channels(tmp_path, levels, masks):
    first = write_segmentation(tmp_path / "a.dcm", levels[0], masks.astype(np.uint8), "BINARY")
    labels = labels_of(masks)
    second = write_segmentation(tmp_path / "b.dcm", levels[0], labels, "LABELMAP")
    third = write_segmentation(tmp_path / "c.dcm", levels[0], (~masks).astype(np.uint8), "BINARY")
    slide = open_slide([levels[0], first, second, third])
    identifiers = [channel.identifier for channel in slide.channels]
    assert identifiers == ["1", "1", "2", "0", "1", "2", "1", "2"]
    with pytest.warns(dicomslide.MetadataWarning, match=r"channels \[1, 4, 6\] all have"):
        assert slide.get_channel_index("1", "SEGMENT") == 1
    assert slide.find_segments(number=2) == (2, 5, 7)
    np.testing.assert_array_equal(
        slide.get_image_region((0, 0), 0, SHAPE, 6)[..., 0], ~masks[..., 0]
    )
    level = slide.to_dataset()
    assert level.segmentation.dims == ("segment", "y", "x")
    assert level.segmentation_2.dims == ("y", "x")
    assert level.segmentation_3.dims == ("segment_3", "y", "x")
    np.testing.assert_array_equal(level.segmentation, ~level.segmentation_3)
    np.testing.assert_array_equal(level.segmentation_2, upright(labels))
    assert level.segment_3_label.values.tolist() == ["tumour", "stroma"]
    uids = [level[f"segmentation{n}"].attrs["series_instance_uid"] for n in ("", "_2", "_3")]
    assert len(set(uids)) == 3


def test_a_series_with_an_instance_for_each_level_is_one_variable(tmp_path, levels, masks):
    series = generate_uid()
    small = masks[:70:2, :110:2]
    paths = [
        write_segmentation(
            tmp_path / f"{i}.dcm", levels[i], pixels.astype(np.uint8), "BINARY", series=series
        )
        for i, pixels in ((1, small), (0, masks))
    ]
    slide = open_slide([*levels, *paths])
    assert slide.num_channels == 3
    np.testing.assert_array_equal(
        slide.get_image_region((0, 0), 1, (35, 55), 2)[..., 0], small[..., 1]
    )
    tree = slide.to_datatree()
    np.testing.assert_array_equal(tree["level_1"].segmentation[1], upright(small[..., 1]))
    np.testing.assert_array_equal(tree["level_0"].segmentation[1], upright(masks[..., 1]))
    assert [image.size for image in slide.get_volume_images(2)] == [(70, 110), (35, 55)]


def test_segments_in_instances_of_their_own_are_one_variable(tmp_path, levels, masks):
    series = generate_uid()
    paths = [
        write_segmentation(
            tmp_path / f"{k}.dcm", levels[0], masks[..., k].astype(np.uint8), "BINARY",
            segments=[segment(1, name)], series=series,
        )
        for k, name in enumerate(("tumour", "stroma"))
    ]  # fmt: skip
    dataset = pydicom.dcmread(paths[1])
    dataset.SegmentSequence[0].SegmentNumber = 2
    shared = dataset.SharedFunctionalGroupsSequence[0]
    shared.SegmentIdentificationSequence[0].ReferencedSegmentNumber = 2
    dataset.save_as(paths[1])
    variable = open_slide([levels[0], *paths]).to_dataset().segmentation
    assert variable.segment_label.values.tolist() == ["tumour", "stroma"]
    for k in range(2):
        np.testing.assert_array_equal(variable[k], upright(masks[..., k]))


def test_images_of_a_series_that_hold_the_same_are_variables_of_their_own(tmp_path, levels, masks):
    series = generate_uid()
    paths = [
        write_segmentation(
            tmp_path / f"{k}.dcm", levels[0], masks[..., [k, 1 - k]].astype(np.uint8), "BINARY",
            series=series,
        )
        for k in range(2)
    ]  # fmt: skip
    level = open_slide([levels[0], *paths]).to_dataset()
    np.testing.assert_array_equal(level.segmentation[0], upright(masks[..., 0]))
    np.testing.assert_array_equal(level.segmentation_2[0], upright(masks[..., 1]))


def test_a_level_without_pixels_for_a_channel_raises_and_says_which_has(tmp_path, levels, masks):
    path = write_segmentation(tmp_path / "seg.dcm", levels[0], masks.astype(np.uint8), "BINARY")
    slide = open_slide([*levels, path])
    with pytest.raises(ValueError, match=r"SEGMENT '1'\) has no pixels at level 1; .*levels \[0\]"):
        slide.get_image_region((0, 0), 1, (5, 5), 1)
    with pytest.raises(ValueError, match=r"no focal plane 1 at level 0; there are \[0\]"):
        slide.get_image_region((0, 0), 0, (5, 5), 1, 1)


# -- where they lie --------------------------------------------------------------------------


def test_what_lies_on_no_level_is_a_node_with_its_own_millimetres(tmp_path, levels, masks):
    small = masks[:70:2, :110:2]
    path = write_segmentation(tmp_path / "seg.dcm", levels[1], small.astype(np.uint8), "BINARY")
    slide = open_slide([levels[0], path])  # the level that it was made of isn't here
    tree = slide.to_datatree()
    assert set(tree.children) == {"level_0", "segmentation"}
    assert "segmentation" not in tree["level_0"].data_vars
    variable = tree["segmentation"].segmentation
    np.testing.assert_array_equal(variable[0], upright(small[..., 0]))
    expected = open_slide(levels[1]).to_dataset()
    np.testing.assert_allclose(variable.x, expected.x, rtol=0, atol=1e-9)
    np.testing.assert_allclose(variable.y, expected.y, rtol=0, atol=1e-9)
    (image,) = slide.get_volume_images(1)
    np.testing.assert_array_equal(kept(image, 0), small[..., 0])
    with pytest.raises(ValueError, match=r"grid of no level, in the images of get_volume_images"):
        slide.get_image_region((0, 0), 0, (5, 5), 1)
    dataset = xr.open_dataset(
        [levels[0], path], engine="dicomslide", group="segmentation", chunks={}
    )
    np.testing.assert_array_equal(dataset.segmentation[0], upright(small[..., 0]))


def test_a_matrix_of_the_levels_size_that_lies_apart_keeps_its_own_millimetres(
    tmp_path, levels, masks
):
    path = write_segmentation(tmp_path / "seg.dcm", levels[0], masks.astype(np.uint8), "BINARY")
    dataset = pydicom.dcmread(path)
    origin = dataset.TotalPixelMatrixOriginSequence[0]
    origin.XOffsetInSlideCoordinateSystem = "17.9995"  # one row further
    dataset.save_as(path)
    slide = open_slide([*levels, path])
    tree = slide.to_datatree()
    assert "segmentation" not in tree["level_0"].data_vars
    inside = dict(x=slice(17.98, 17.99), y=slice(31.97, 31.98))
    image = tree["level_0"].image.sel(inside)
    chosen = tree["segmentation"].segmentation.sel(inside)
    np.testing.assert_allclose(chosen.x, image.x, rtol=0, atol=1e-9)
    rows = upright(np.arange(70)[:, None].repeat(110, 1))
    at = [round((17.9995 - x) / 0.0005) for x in chosen.x.values]
    np.testing.assert_array_equal(
        chosen[0].isel(y=0), masks[at, round((32 - float(chosen.y[0])) / 0.0005), 0]
    )
    assert rows.shape == (110, 70)
    # the API reads it by level, in its own millimetres too
    assert slide.get_pixel_indices((17.9995, 32.0), 0, 1) == (0, 0)
    np.testing.assert_array_equal(
        slide.get_slide_region((17.98, 31.97), 0, (0.01, 0.01), 1)[..., 0],
        slide.get_volume_images(1)[0].get_slide_region((17.98, 31.97), (0.01, 0.01))[..., 0],
    )


def test_a_part_of_the_base_of_a_levels_size_keeps_its_spacing(tmp_path, levels):
    """As many pixels as level 1, but as small as those of level 0: a quarter of the slide."""
    part = np.zeros((35, 55), np.uint8)
    part[3, 7] = 1
    path = write_segmentation(tmp_path / "seg.dcm", levels[1], part, "BINARY", segments=[tumour()])
    dataset, base = pydicom.dcmread(path), pydicom.dcmread(levels[0])
    here, there = (
        each.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0] for each in (dataset, base)
    )
    here.PixelSpacing = there.PixelSpacing
    dataset.TotalPixelMatrixOriginSequence = base.TotalPixelMatrixOriginSequence
    dataset.save_as(path)
    slide = open_slide([*levels, path])
    (image,) = slide.derived_images
    import highdicom as hd

    expected = hd.spatial.PixelToReferenceTransformer.for_image(
        dataset, for_total_pixel_matrix=True
    )(np.array([[7, 3]]))
    np.testing.assert_allclose(image.get_slide_offset((3, 7)), expected[0, :2], atol=1e-9)
    assert "segmentation" not in slide.to_dataset(1)
    assert slide.to_datatree()["segmentation"].segmentation.slide.spacing == (0.0005,) * 2


def test_a_pixel_by_millimetres_is_the_same_place_in_image_and_segmentation(tmp_path, levels):
    rows, columns = np.indices(SHAPE)
    mask = ((rows % 16) == 5) & ((columns % 16) == 9)
    path = write_segmentation(
        tmp_path / "seg.dcm", levels[0], mask.astype(np.uint8), "BINARY",
        segments=[segment(1, "dots")],
    )  # fmt: skip
    slide = open_slide([*levels, path], correct_color=False)
    level = slide.to_datatree()["level_0"]
    for x, y in [(17.9975, 31.9955), (17.9895, 31.9875)]:
        assert bool(level.segmentation.sel(x=x, y=y))
        red, green, _ = level.image.sel(x=x, y=y).values
        assert (red % 16, green % 16) == (5, 9)
        assert slide.get_slide_region((x - 2e-4, y - 2e-4), 0, (5e-4, 5e-4), 1).all()


@pytest.mark.parametrize("shown", ["upright", "stored"])
@pytest.mark.parametrize("turned", ["upright", "mirrored"])
def test_a_segmentation_stored_another_way_up_is_a_variable_of_its_level(
    tmp_path, levels, masks, turned, shown
):
    """Pixels of the image's places: rows along −Y and columns along X, or along −X and Y."""
    path = write_segmentation(tmp_path / "1.dcm", levels[0], masks.astype(np.uint8), "BINARY")
    straight = open_slide([*levels, path]).to_dataset(orientation=shown)
    x, y = 18.0 - 69 * 0.0005, 32.0
    orientation = (1, 0, 0, 0, -1, 0)
    stored = upright(masks)
    if turned == "mirrored":
        x, orientation, stored = 18.0, (-1, 0, 0, 0, -1, 0), upright(masks)[:, ::-1]
    (source,) = write_slide(
        tmp_path / turned, shape=(110, 70), tile_shape=(32, 48), downsamples=(1,),
        origin=(x, y), orientation=orientation, associated=False,
    )  # fmt: skip
    path = write_segmentation(tmp_path / "2.dcm", source, stored.astype(np.uint8), "BINARY")
    slide = open_slide([*levels, path])
    tree = slide.to_datatree(orientation=shown)
    assert set(tree.children) == {f"level_{i}" for i in range(len(slide.levels))}
    level = tree["level_0"].to_dataset()
    np.testing.assert_array_equal(level.segmentation, straight.segmentation)
    np.testing.assert_array_equal(level.segmentation[1, 5:9, 7], straight.segmentation[1, 5:9, 7])
    assert level.image.where(level.segmentation[1]).shape == level.image.shape
    region = slide.get_slide_region((17.9701, 31.9601), 0, (0.02, 0.015), 1)[..., 0]
    np.testing.assert_array_equal(
        region, open_slide([*levels, tmp_path / "1.dcm"]).get_slide_region(
            (17.9701, 31.9601), 0, (0.02, 0.015), 1)[..., 0],
    )  # fmt: skip
    # by pixels of the base, too: rows and columns of a region are those of the level's image
    outlined = np.pad(masks[..., 0], 40)
    for row, column in ((0, 0), (17, 33), (-9, -4), (60, 100)):
        region = slide.get_image_region((row, column), 0, (15, 20), 1)[..., 0]
        at = slice(row + 40, row + 55), slice(column + 40, column + 60)
        np.testing.assert_array_equal(region, outlined[at])


def test_a_segmentation_alone_is_in_its_levels_only(tmp_path, levels, masks):
    path = write_segmentation(tmp_path / "seg.dcm", levels[0], masks.astype(np.uint8), "BINARY")
    assert set(open_slide(path).to_datatree().children) == {"level_0"}


def test_a_derived_image_of_another_frame_of_reference_is_left_out(tmp_path, levels, masks):
    path = write_segmentation(tmp_path / "seg.dcm", levels[0], masks.astype(np.uint8), "BINARY")
    dataset = pydicom.dcmread(path)
    dataset.FrameOfReferenceUID = "1.2.3"
    dataset.save_as(path)
    with pytest.warns(dicomslide.MetadataWarning, match=r"left out: .* reference is 1\.2\.3"):
        slide = open_slide([levels[0], path])
    assert slide.num_channels == 1


def test_a_derived_image_without_frame_of_reference_joins_the_slide_it_refers_to(
    tmp_path, levels, masks
):
    other = write_slide(tmp_path / "other", slide_number=2, container_id="DS-0002")
    path = write_segmentation(tmp_path / "seg.dcm", levels[0], masks.astype(np.uint8), "BINARY")
    dataset = pydicom.dcmread(path)
    dataset.FrameOfReferenceUID = ""
    dataset.save_as(path)
    with pytest.raises(dicomslide.AmbiguousSlideError):
        open_slide([*levels, *other, path])
    assert open_slide([*levels, *other, path], container_id="DS-0001").num_channels == 3
    assert open_slide([*levels, *other, path], container_id="DS-0002").num_channels == 1


def test_a_segmentation_alone_opens(tmp_path, levels, masks):
    path = write_segmentation(tmp_path / "seg.dcm", levels[0], masks.astype(np.uint8), "BINARY")
    slide = open_slide(path)
    assert (slide.num_levels, slide.num_channels) == (1, 2)
    assert slide.get_channel_type(0) is ChannelTypes.SEGMENT
    np.testing.assert_array_equal(
        slide.get_image_region((0, 0), 0, SHAPE, 1)[..., 0], masks[..., 1]
    )
    with xr.open_dataset(path, engine="dicomslide") as dataset:
        assert set(dataset.data_vars) == {"segmentation"}
        np.testing.assert_array_equal(dataset.segmentation[1], upright(masks[..., 1]))


# -- focal planes ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Further(PositionDrawing):
    """Shows what the planes behind those of an image would show."""

    by: int = 0

    def tile(self, rows, columns, channel, plane):
        return super().tile(rows, columns, channel, plane + self.by)


def write_plane_segmentation(path, planes, *, sparse=False, size=SHAPE, drawn=0, x=18.0, number=1):
    """A bit-packed segmentation of one segment with focal planes of its own."""
    image = SyntheticImage(
        geometry=SlideGeometry((x, 32.0), (0.0, -1.0), (-1.0, 0.0), (0.0005, 0.0005), size),
        drawing=Further(1, np.bool_, drawn),
        pixel_format=PixelFormat(rows=32, columns=48, bits_allocated=1, bits_stored=1),
        planes=planes,
        sparse=sparse,
        instance_number=27 + drawn,
    )

    def change(dataset):
        dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
        dataset.Modality = "SEG"
        dataset.SegmentationType = "BINARY"
        dataset.SegmentSequence = [segment(number, "nuclei")]
        dataset.SeriesInstanceUID = "1.2.3.4"
        del dataset.OpticalPathSequence

    return write_image(path, image, change=change)


def mask_of(plane):
    return position_values(np.arange(70), np.arange(110), 0, plane, samples=1, dtype=bool)[..., 0]


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """A z-stack of three planes in one file, of one level."""
    folder = tmp_path_factory.mktemp("stack")
    options = dict(samples=1, bits=16, planes=(5.0, 7.0, 9.0), downsamples=(1,))
    return write_slide(folder, **options)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_segmentation_of_all_focal_planes_has_the_images_z(tmp_path, stack, sparse):
    path = write_plane_segmentation(tmp_path / "seg.dcm", (5.0, 7.0, 9.0), sparse=sparse)
    slide = open_slide([*stack, path])
    level = slide.to_dataset()
    assert level.segmentation.dims == ("z", "y", "x")
    for plane, z in enumerate((0.005, 0.007, 0.009)):
        np.testing.assert_array_equal(level.segmentation.sel(z=z), upright(mask_of(plane)))
        np.testing.assert_array_equal(
            slide.get_image_region((0, 0), 0, SHAPE, 1, plane)[..., 0], mask_of(plane)
        )


def test_a_segmentation_of_one_focal_plane_says_in_its_attributes_which(tmp_path, stack):
    path = write_plane_segmentation(tmp_path / "seg.dcm", (7.0,))
    slide = open_slide([*stack, path])
    for squeeze in (True, False):
        variable = slide.to_dataset(squeeze=squeeze).segmentation
        assert "z" not in variable.dims
        assert variable.attrs["focal_plane_offset"] == pytest.approx(0.007)
    assert slide.get_focal_plane_index(7.0) == 1
    np.testing.assert_array_equal(
        slide.get_image_region((0, 0), 0, SHAPE, 1, 1)[..., 0], mask_of(0)
    )
    with pytest.raises(ValueError, match=r"no focal plane 0 at level 0; there are \[1\]"):
        slide.get_image_region((0, 0), 0, SHAPE, 1, 0)


def test_a_segmentation_of_other_focal_planes_is_a_node_of_its_own(tmp_path, stack):
    path = write_plane_segmentation(tmp_path / "seg.dcm", (20.0, 24.0))
    slide = open_slide([*stack, path])
    tree = slide.to_datatree()
    assert "segmentation" not in tree["level_0"].data_vars
    variable = tree["segmentation"].segmentation
    np.testing.assert_allclose(variable.z, [0.020, 0.024])
    np.testing.assert_array_equal(variable.sel(z=0.024), upright(mask_of(1)))
    # the API counts the segmentation's own planes
    np.testing.assert_array_equal(
        slide.get_image_region((0, 0), 0, SHAPE, 1, 1)[..., 0], mask_of(1)
    )


def test_a_segmentation_of_some_focal_planes_is_nodes_of_its_own(tmp_path, stack):
    """An instance for each of two planes, of three."""
    paths = [
        write_plane_segmentation(tmp_path / f"{z}.dcm", (z,), drawn=i)
        for i, z in enumerate((5.0, 7.0))
    ]
    slide = open_slide([*stack, *paths])
    tree = slide.to_datatree()
    assert "segmentation" not in tree["level_0"].data_vars
    nodes = [node.segmentation for name, node in tree.items() if name.startswith("segmentation")]
    assert [float(node.z) for node in nodes] == pytest.approx([0.005, 0.007])
    for plane, node in enumerate(nodes):
        np.testing.assert_array_equal(node, upright(mask_of(plane)))
        np.testing.assert_array_equal(
            slide.get_image_region((0, 0), 0, SHAPE, 1, plane)[..., 0], mask_of(plane)
        )


@pytest.mark.parametrize(
    ("planes", "z", "nearest"), [((20.0, 30.0), 7.0, 0), ((20.0, 30.0), 26.0, 1), ((5.0,), 9.0, 0)]
)
def test_a_region_around_an_annotation_is_of_the_nearest_plane_of_its_channel(
    tmp_path, stack, planes, z, nearest
):
    """The slide's planes are at 5, 7 and 9 µm."""
    path = write_plane_segmentation(tmp_path / "seg.dcm", planes)
    slide = open_slide([*stack, path])
    x, y = slide.get_slide_offset((20, 30), 0)
    h = 0.00025
    import highdicom as hd

    item = hd.sr.Scoord3DContentItem(
        name=codes.DCM.ImageRegion,
        graphic_type="POLYLINE",
        # from edge to edge of 11 × 21 pixels
        graphic_data=np.array([(x + h, y + h, z / 1000), (x - 0.005 - h, y - 0.01 - h, z / 1000)]),
        frame_of_reference_uid=slide.frame_of_reference_uid,
    )
    region = slide.get_slide_region_for_annotation(item, 0, channel_index=1)
    np.testing.assert_array_equal(region[..., 0], upright(mask_of(nearest)[20:31, 30:51]))


@pytest.mark.parametrize("order", [1, -1])
def test_a_focal_plane_that_the_slide_lacks_takes_no_place_of_another(tmp_path, levels, order):
    """The slide has that of 0 µm only."""
    planes = ((0.0, 20.0), (0, 1))
    paths = [
        write_plane_segmentation(tmp_path / f"{z}.dcm", (z,), drawn=i)
        for z, i in zip(*planes, strict=True)
    ]
    slide = open_slide([*levels, *paths[::order]])
    assert len(slide.get_volume_images(1)) == 2
    tree = slide.to_datatree()
    np.testing.assert_array_equal(tree["level_0"].segmentation, upright(mask_of(0)))
    np.testing.assert_array_equal(tree["segmentation"].segmentation, upright(mask_of(1)))
    assert float(tree["segmentation"].z) == 0.020
    np.testing.assert_array_equal(slide.get_image_region((0, 0), 0, SHAPE, 1)[..., 0], mask_of(0))


def test_segments_that_lie_apart_take_those_beside_them_along(tmp_path, levels):
    """One variable has one place: that of two pixels' distance, and its neighbour, are nodes."""
    beside = write_plane_segmentation(tmp_path / "1.dcm", (0.0,))
    apart = write_plane_segmentation(tmp_path / "2.dcm", (0.0,), drawn=1, x=18.001, number=2)
    tree = open_slide([*levels, beside, apart]).to_datatree()
    assert "segmentation" not in tree["level_0"].data_vars
    nodes = [node.segmentation for name, node in tree.items() if name.startswith("segmentation")]
    assert [int(node.segment) for node in nodes] == [1, 2]
    for plane, node in enumerate(nodes):
        np.testing.assert_array_equal(node, upright(mask_of(plane)))
        assert float(node.x[-1]) == pytest.approx((18.0, 18.001)[plane])


def test_a_label_map_of_several_instances_has_the_pixels_of_each(tmp_path, stack, masks):
    """One for each of three planes, each with a segment of its own."""
    labels, paths = [], []
    for i, z in enumerate((5.0, 7.0, 9.0)):
        labels.append(np.where(masks[..., i % 2], i + 1, 0).astype(np.uint8))
        path = tmp_path / f"{i}.dcm"
        write_segmentation(
            path, stack[0], labels[i], "LABELMAP", series="1.2.3.5",
            segments=[segment(i + 1, f"kind {i}")], omit_empty_frames=False,
            dimension_organization_type="TILED_FULL",
        )  # fmt: skip
        dataset = pydicom.dcmread(path)
        dataset.TotalPixelMatrixOriginSequence[0].ZOffsetInSlideCoordinateSystem = z
        dataset.SegmentSequence = dataset.SegmentSequence[1:]  # without highdicom's background
        dataset.save_as(path)
        paths.append(path)
    level = open_slide([*stack, *paths]).to_dataset()
    assert level.segmentation.attrs["flag_values"] == [1, 2, 3]
    for i in range(3):
        np.testing.assert_array_equal(level.segmentation.isel(z=i), upright(labels[i]))


# -- parametric maps -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint16])
@pytest.mark.parametrize("labels", [("a",), ("b", "a")])
def test_parametric_maps_are_channels_by_lut_label(tmp_path, levels, dtype, labels):
    rng = np.random.default_rng(3)
    values = (rng.random((*SHAPE, len(labels))) * 1000).astype(dtype)
    kind = int if dtype == np.uint16 else float
    path = write_map(
        tmp_path / "pm.dcm", levels[0], values,
        [[mapping(label, 2.0 + k, kind=kind)] for k, label in enumerate(labels)],
    )  # fmt: skip
    slide = open_slide([*levels, path])
    assert slide.num_channels == 1 + len(labels)
    variable = slide.to_dataset(squeeze=False, mask_and_scale=False).parametric_map
    assert variable.dims == ("parameter", "z", "y", "x")
    assert variable.dtype == dtype
    assert variable.parameter.values.tolist() == list(labels)
    assert variable.parameter_description.values.tolist() == [f"map {label}" for label in labels]
    assert set(variable.parameter_quantity.values) == {"Class activation"}
    assert set(variable.parameter_unit.values) == {"%"}
    assert variable.parameter_slope.values.tolist() == [2.0, 3.0][: len(labels)]
    assert set(variable.parameter_intercept.values) == {-5.0}
    for k, label in enumerate(labels):
        index = slide.get_channel_index(label, "PARAMETER")
        assert (index, slide.get_channel_type(index)) == (1 + k, ChannelTypes.PARAMETER)
        region = slide.get_image_region((0, 0), 0, SHAPE, index)
        assert region.dtype == dtype
        np.testing.assert_array_equal(region[..., 0], values[..., k])
        np.testing.assert_array_equal(variable.sel(parameter=label)[0], upright(values[..., k]))
    outside = slide.get_image_region((-1, 0), 0, (1, 1), 1)
    assert np.isnan(outside).all() if dtype != np.uint16 else not outside.any()


def test_values_that_are_real_world_values_have_units(tmp_path, levels):
    values = np.ones((*SHAPE, 1), np.float32)
    path = write_map(tmp_path / "pm.dcm", levels[0], values, [[mapping("a")]])
    assert "units" not in open_slide([levels[0], path]).to_dataset().parametric_map.attrs
    dataset = pydicom.dcmread(path)
    item = dataset.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    item.RealWorldValueIntercept = 0.0
    dataset.save_as(path)
    variable = open_slide([levels[0], path]).to_dataset().parametric_map
    assert variable.attrs["units"] == "%"
    assert variable.attrs["long_name"] == "Class activation"


def test_several_mappings_of_the_same_pixels_are_channels_of_the_same_frames(tmp_path, levels):
    rng = np.random.default_rng(4)
    values = (rng.random((*SHAPE, 1)) * 1000).astype(np.float32)
    path = write_map(
        tmp_path / "pm.dcm", levels[0], values, [[mapping("percent"), mapping("raw", 0.5)]]
    )
    slide = open_slide([levels[0], path])
    assert [c.identifier for c in slide.channels[1:]] == ["percent", "raw"]
    for index in (1, 2):
        np.testing.assert_array_equal(
            slide.get_image_region((0, 0), 0, SHAPE, index)[..., 0], values[..., 0]
        )


# -- the tree as a whole ---------------------------------------------------------------------


def test_trees_with_derived_images_pickle_and_have_names_that_last(tmp_path, levels, masks):
    first = write_segmentation(tmp_path / "a.dcm", levels[0], labels_of(masks), "LABELMAP")
    slide = open_slide([*levels, first])
    assert pickle.loads(pickle.dumps(slide)).num_channels == slide.num_channels
    tree = slide.to_datatree()
    again = pickle.loads(pickle.dumps(tree))
    np.testing.assert_array_equal(again["level_0"].segmentation, upright(labels_of(masks)))
    names = [open_slide([*levels, first]).to_dataset().segmentation.data.name for _ in range(2)]
    assert names[0] == names[1]
    matrix = slide.derived_images[0].get_total_pixel_matrix(1)
    assert matrix.to_dask().name != slide.derived_images[0].get_total_pixel_matrix(2).to_dask().name


def test_the_engine_opens_derived_images_beside_their_level(tmp_path, levels, masks):
    path = write_segmentation(tmp_path / "seg.dcm", levels[0], masks.astype(np.uint8), "BINARY")
    tree = xr.open_datatree([*levels, path], engine="dicomslide", chunks={})
    part = tree["level_0"].to_dataset().sel(x=slice(17.97, 17.98), y=slice(31.96, 31.99))
    np.testing.assert_array_equal(
        part.segmentation.sel(segment=2).transpose("y", "x"),
        tree["level_0"].segmentation[1].sel(x=part.x, y=part.y),
    )
    lazy = xr.open_dataset([*levels, path], engine="dicomslide")
    np.testing.assert_array_equal(lazy.segmentation[0], upright(masks[..., 0]))
    np.testing.assert_array_equal(lazy.segmentation[:, 5, 7], upright(masks)[5, 7])
    area = (lazy.segmentation.sum(("y", "x")) * 0.0005**2).values
    np.testing.assert_allclose(area, masks.sum((0, 1)) * 0.0005**2)


def test_matrix_frame_keeps_rows_and_columns(tmp_path, levels, masks):
    path = write_segmentation(tmp_path / "seg.dcm", levels[0], masks.astype(np.uint8), "BINARY")
    variable = open_slide([levels[0], path]).to_dataset(orientation="stored").segmentation
    assert variable.dims == ("segment", "row", "column")
    np.testing.assert_array_equal(variable[1], masks[..., 1])


# -- real files ------------------------------------------------------------------------------

REAL = [
    "control",
    "control_labelmap",
    "control_labelmap_palette_color",
    "dots",
    "dots_tiled_full",
    "numbers",
]


@pytest.mark.parametrize("name", REAL)
def test_real_segmentations_equal_highdicoms_reading(shared_data, name):
    path = shared_data / "highdicom" / f"seg_image_sm_{name}.dcm"
    import highdicom as hd

    expected = hd.seg.segread(path)
    numbers = list(expected.segment_numbers)
    matrices = expected.get_total_pixel_matrix(segment_numbers=numbers)
    store = FileStore.open(path)
    image = TiledImage(store, store.metadata[0])
    slide = open_slide([shared_data / "highdicom" / f"sm_image_{name.split('_')[0]}.dcm", path])
    assert slide.num_channels == 1 + image.num_channels
    for k, number in enumerate(numbers):
        matrix = image.get_total_pixel_matrix(image.get_channel_index(str(number)))
        assert matrix.dtype == bool
        np.testing.assert_array_equal(matrix[:, :][..., 0], matrices[..., k])
        index = slide.get_channel_index(str(number), "SEGMENT")
        np.testing.assert_array_equal(
            slide.get_image_region((0, 0), 0, (50, 50), index)[..., 0], matrices[..., k]
        )
        description = expected.get_segment_description(number)
        assert slide.channels[index].description == description.segment_label


@pytest.mark.parametrize("name", ["control_labelmap", "dots_tiled_full"])
def test_real_segmentations_share_their_levels_grid(shared_data, name):
    folder = shared_data / "highdicom"
    image = folder / f"sm_image_{name.split('_')[0]}.dcm"
    tree = open_slide([image, folder / f"seg_image_sm_{name}.dcm"]).to_datatree()
    assert set(tree.children) == {"level_0"}
    assert tree["level_0"].segmentation.sizes["x"] == tree["level_0"].image.sizes["x"]


def test_a_real_segmentation_a_pixel_apart_keeps_its_own_millimetres(shared_data):
    """Its writer counted positions from one, so that its header puts it a pixel further."""
    folder = shared_data / "highdicom"
    tree = open_slide(
        [folder / "sm_image_control.dcm", folder / "seg_image_sm_control.dcm"]
    ).to_datatree()
    apart = tree["level_0"].x.values - tree["segmentation"].x.values
    np.testing.assert_allclose(apart, 0.000499, rtol=0, atol=1e-9)
