"""Segmentations that are written and opened again: values, millimetres, codes, and other readers."""

from __future__ import annotations

import itertools
import warnings

import dask
import numpy as np
import pydicom
import pytest
import xarray as xr
from pydicom.sr.codedict import codes

import dicomslide
from dicomslide.testing import write_slide
from tests.support.orientations import ORIENTATIONS

NATIVE = "1.2.840.10008.1.2.1"
RLE = "1.2.840.10008.1.2.5"
JPEG_LS = "1.2.840.10008.1.2.4.80"
DEFLATED = "1.2.840.10008.1.2.8.1"
SHAPE = (23, 31)
TILE = (8, 16)


@pytest.fixture(scope="module", params=list(ORIENTATIONS))
def oriented(request, tmp_path_factory):
    """A slide whose pixels are numbers of their places in the matrix."""
    folder = tmp_path_factory.mktemp("oriented")
    write_slide(
        folder, shape=SHAPE, downsamples=(1,), tile_shape=TILE,
        orientation=ORIENTATIONS[request.param], origin=(12.0, 34.0), spacing=(0.001, 0.0005),
        drawing="position", samples=1, bits=16, transfer_syntax_uid=NATIVE, associated=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dicomslide.MetadataWarning)
        slide = dicomslide.open_slide(folder)
        yield slide, slide.to_dataset(chunks={}).image.load()


def table_of(image, kind):
    """A value for each pixel of an image by its number, so that places can't be confused."""
    numbers = np.random.default_rng(5).integers(0, 256, int(image.max()) + 1)
    if kind == "BINARY":
        return numbers < 100
    if kind == "FRACTIONAL":
        return (numbers / np.float64(255)).astype(np.float32)
    return (numbers % 4).astype(np.uint8)


def stored_by_pydicom(path):
    """The total pixel matrix by pydicom's frames, and by the standard's order or positions."""
    dataset = pydicom.dcmread(path)
    rows, columns = dataset.TotalPixelMatrixRows, dataset.TotalPixelMatrixColumns
    height, width = dataset.Rows, dataset.Columns
    frames = dataset.pixel_array.reshape(-1, height, width)
    down, across = -(-rows // height), -(-columns // width)
    matrix = np.zeros((down * height, across * width), frames.dtype)
    groups = dataset.get("PerFrameFunctionalGroupsSequence")
    for number, frame in enumerate(frames):
        row, column = (number // across * height, number % across * width)
        if groups is not None:
            position = groups[number].PlanePositionSlideSequence[0]
            row = position.RowPositionInTotalImagePixelMatrix - 1
            column = position.ColumnPositionInTotalImagePixelMatrix - 1
        matrix[row : row + height, column : column + width] = frame
    return matrix[:rows, :columns]


KINDS = {"BINARY": [NATIVE, DEFLATED], "FRACTIONAL": [NATIVE, JPEG_LS], "LABELMAP": [NATIVE, RLE]}
SEGMENTS = {"LABELMAP": ["stroma", "tumour", "necrosis"]}


@pytest.mark.filterwarnings("ignore::dicomslide.ViewerWarning")
@pytest.mark.filterwarnings("ignore::dicomslide.MetadataWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_again_in_every_orientation(oriented, tmp_path, kind):
    slide, image = oriented
    table = table_of(image, kind)
    whole = image.copy(data=table[image.values]).reset_coords(drop=True)
    stored = table[slide.levels[0].image.get_total_pixel_matrix()[...][:, :, 0]]
    down, across = image.dims
    region = {down: slice(3, 20), across: slice(5, 21)}
    part = whole.isel(region)
    inside = xr.zeros_like(whole)
    inside[region] = part
    written, expected = {}, {}
    with dask.config.set(scheduler="sync"):
        for syntax, organization, (given, wanted) in itertools.product(
            KINDS[kind], ("TILED_FULL", "TILED_SPARSE"), ((whole.chunk(7), whole), (part, inside))
        ):
            name = f"s{len(written)}"
            expected[name] = wanted
            (written[name],) = dicomslide.write_segmentation(
                given, slide, tmp_path, kind=kind, segments=SEGMENTS.get(kind, "tissue"),
                transfer_syntax_uid=syntax, organization=organization, name=name,
                series_description=name,
            )  # fmt: skip
            if syntax != DEFLATED and wanted is whole:
                of_file = stored_by_pydicom(written[name])
                of_file = of_file / np.float32(255) if kind == "FRACTIONAL" else of_file
                np.testing.assert_array_equal(of_file, stored)
    found = dicomslide.open_slide([*folder_of(slide), *written.values()]).to_dataset()
    found = {each.attrs.get("series_description"): each for each in found.data_vars.values()}
    for name, wanted in expected.items():
        xr.testing.assert_equal(found[name].reset_coords(drop=True), wanted)


def folder_of(slide):
    return [image._source.path for level in slide.levels for image in level.images]


CODES = [
    {
        "label": "tumour nests", "category": codes.SCT.MorphologicallyAbnormalStructure,
        "type": codes.SCT.Tumor, "algorithm": "net 2.1", "tracking_uid": "1.2.3.4",
        "tracking_id": "first", "description": "by a network", "color": "#ff8000",
    },
    "stroma",
]  # fmt: skip


def test_segments_are_described_by_codes_words_and_highdicom(tissue_slide, tmp_path):
    hd = pytest.importorskip("highdicom")
    slide = dicomslide.open_slide(tissue_slide)
    image = slide.to_dataset().image
    masks = xr.concat([image.mean("sample") < limit for limit in (120, 180, 240)], "segment")
    third = hd.seg.SegmentDescription(
        7, "necrosis", codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Necrosis, "MANUAL"
    )
    (path,) = dicomslide.write_segmentation(masks, slide, tmp_path, segments=[*CODES, third])
    first, second, third = pydicom.dcmread(path).SegmentSequence
    assert [first.SegmentNumber, second.SegmentNumber, third.SegmentNumber] == [1, 2, 3]
    assert first.SegmentedPropertyTypeCodeSequence[0].CodeValue == codes.SCT.Tumor.value
    assert (first.SegmentAlgorithmName, first.SegmentAlgorithmType) == ("net", "AUTOMATIC")
    assert first.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion == "2.1"
    assert (first.TrackingID, first.TrackingUID) == ("first", "1.2.3.4")
    assert second.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Connective tissue"
    assert third.SegmentAlgorithmType == "MANUAL"
    read = hd.seg.segread(path)
    assert read.segmented_property_types == [
        codes.SCT.Tumor, codes.SCT.ConnectiveTissue, codes.SCT.Necrosis
    ]  # fmt: skip
    matrices = read.get_total_pixel_matrix(combine_segments=False)
    stored = slide.to_dataset(orientation="stored").image
    for number, limit in enumerate((120, 180, 240)):
        np.testing.assert_array_equal(matrices[..., number], stored.mean("sample") < limit)
    found = dicomslide.open_slide([*folder_of(slide), path]).to_dataset().segmentation
    assert found.segment_label.values.tolist() == ["tumour nests", "stroma", "necrosis"]
    np.testing.assert_array_equal(found, masks)
