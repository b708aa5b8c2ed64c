"""Segmentations that are written and opened again: values, millimetres, codes, other readers."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path

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
@pytest.mark.parametrize(
    "kind", ["BINARY", pytest.param("FRACTIONAL", marks=pytest.mark.needs("pylibjpeg")), "LABELMAP"]
)
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


# -- levels --------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["own", "base"])
def pyramid(request, tmp_path_factory):
    """A slide of three levels, whose headers state their own origin, or all that of the base."""
    folder = tmp_path_factory.mktemp("pyramid")
    write_slide(
        folder, shape=(203, 310), downsamples=(1, 2, 5), tile_shape=(32, 24), associated=False,
        level_origins=request.param, orientation=(0, -1, 0, -1, 0, 0),
    )  # fmt: skip
    return dicomslide.open_slide(folder)


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("aligned", [True, False], ids=["registered", "as stated"])
def test_a_mask_of_a_level_states_what_the_level_states(pyramid, tmp_path, level, aligned):
    slide = dicomslide.open_slide(pyramid, align_levels=aligned)
    mask = slide.to_dataset(level).image.mean("sample") < 180
    region = mask.isel(y=slice(11, 50), x=slice(7, 33))
    (path,) = dicomslide.write_segmentation(region, slide, tmp_path, segments="tissue")
    assert path.endswith(f"segmentation_level_{level}.dcm")
    written, source = pydicom.dcmread(path), slide.levels[level].image.metadata
    for keyword in ("TotalPixelMatrixRows", "ImageOrientationSlide", "FrameOfReferenceUID"):
        assert written[keyword] == source[keyword]
    origins = [
        each.TotalPixelMatrixOriginSequence[0].XOffsetInSlideCoordinateSystem
        for each in (written, source)
    ]
    assert origins[0] == origins[1]
    both = dicomslide.open_slide([*folder_of(slide), path], align_levels=aligned)
    found = both.to_dataset(level).segmentation
    expected = xr.zeros_like(mask)
    expected[dict(y=slice(11, 50), x=slice(7, 33))] = region
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found.x, mask.x)
    np.testing.assert_array_equal(found.y, mask.y)


def test_a_pyramid_is_written_in_one_pass(pyramid, tmp_path):
    slide, computed = pyramid, []
    image = slide.to_dataset(chunks={"y": 70, "x": 61}).image

    def thresholded(block):
        computed.append(block.shape)
        return block.mean(-1) < 180

    data = image.data.map_blocks(thresholded, drop_axis=2, dtype=bool, meta=np.empty((0, 0), bool))
    mask = image.isel(sample=0, drop=True).copy(data=data)
    expected = mask.compute()
    computed.clear()
    paths = dicomslide.write_segmentation(mask, slide, tmp_path, segments="tissue", levels="all")
    assert len(computed) == data.npartitions
    headers = [pydicom.dcmread(path) for path in paths]
    assert len({each.PyramidUID for each in headers}) == 1
    assert len({each.SeriesInstanceUID for each in headers}) == 1
    tracking = {each.SegmentSequence[0].TrackingUID for each in headers}
    assert len(tracking) == 1
    tree = dicomslide.open_slide([*folder_of(slide), *paths]).to_datatree()
    np.testing.assert_array_equal(tree["level_0"].segmentation, expected)
    # 310 × 203 upright: level 1 has whole pixels of 2 × 2, but for what lies beyond the edge
    fine = expected.values.astype(float)[:, ::-1][:, :202][:310]
    halves = fine.reshape(155, 2, 101, 2).mean((1, 3)) >= 0.5
    found = tree["level_1"].segmentation.values[:, ::-1]
    np.testing.assert_array_equal(found[:155, :101], halves)
    assert tree["level_2"].segmentation.shape == slide.to_dataset(2).image.shape[:2]


def test_any_and_other_levels_are_resampled_on_request(pyramid, tmp_path):
    mask = pyramid.to_dataset(0).image.mean("sample") < 100
    with pytest.raises(dicomslide.GridError, match=r"level 0, not of level 2.*resample="):
        dicomslide.write_segmentation(mask, pyramid, tmp_path, levels=2)
    (path,) = dicomslide.write_segmentation(mask, pyramid, tmp_path, levels=2, resample="any")
    found = dicomslide.open_slide([*folder_of(pyramid), path]).to_dataset(2).segmentation
    assert found.values.any()
    fraction = mask.slide.match(pyramid.to_dataset(2).image)
    np.testing.assert_array_equal(found, fraction.fillna(0) > 0)


def test_a_matrix_of_its_own_keeps_its_millimetres(pyramid, tmp_path):
    coarse = pyramid.to_dataset(spacing="7.3 um").image.mean("sample") < 200
    with pytest.raises(dicomslide.GridError, match=r"0\.0073.*grid of no level.*free"):
        dicomslide.write_segmentation(coarse, pyramid, tmp_path)
    (path,) = dicomslide.write_segmentation(coarse, pyramid, tmp_path, levels="free")
    tree = dicomslide.open_slide([*folder_of(pyramid), path]).to_datatree()
    (found,) = [
        node.segmentation for node in tree.children.values() if "segmentation" in node.data_vars
    ]
    np.testing.assert_array_equal(found, coarse)
    np.testing.assert_allclose(found.x, coarse.x, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.y, coarse.y, rtol=0, atol=1e-9)


# -- what is refused -----------------------------------------------------------------------------


def image_of(slide):
    return slide.to_dataset().image.mean("sample")


def other_frame(slide):
    return (image_of(slide) < 180).slide.restore(frame_of_reference_uid="1.2.3"), {}


def nan(slide):
    values = (image_of(slide) / 255).astype("float32")
    return values.where(values < 0.5), dict(kind="FRACTIONAL")


REFUSED = {
    "other frame of reference": (other_frame, dicomslide.GridError, "1.2.3"),
    "no millimetres": (
        lambda s: (xr.DataArray(np.zeros((4, 4), bool), dims=("y", "x")), {}),
        dicomslide.GridError, "isn't in mm",
    ),
    "shifted by half a pixel": (
        lambda s: ((image_of(s) < 180).assign_coords(x=lambda a: a.x + 0.00025), {}),
        dicomslide.GridError, "grid of no level",
    ),
    "rows without a level": (
        lambda s: (xr.DataArray(np.zeros((4, 4), bool), dims=("row", "column")), {}),
        dicomslide.GridError, "affine",
    ),
    "NaN": (nan, dicomslide.PixelValueError, "NaN.*fillna"),
    "beyond one": (
        lambda s: (image_of(s), dict(kind="FRACTIONAL")), dicomslide.PixelValueError, "to 2.*0 to 1"
    ),
    "numbers": (lambda s: (image_of(s), {}), dicomslide.PixelValueError, "float.*bool"),
    "labels without a segment": (
        lambda s: ((image_of(s) / 40).astype("u1"), dict(kind="LABELMAP", segments=["a", "b"])),
        dicomslide.PixelValueError, r"labels 3, .*no segment",
    ),
    "labels without segments": (
        lambda s: ((image_of(s) / 40).astype("u1"), dict(kind="LABELMAP")), ValueError, "missing"
    ),
    "too few descriptions": (
        lambda s: (xr.concat([image_of(s) < 9, image_of(s) < 99], "n"), dict(segments="tissue")),
        ValueError, "1 descriptions for 2",
    ),
    "an unknown word": (
        lambda s: (image_of(s) < 9, dict(segments=[{"label": "x", "type": "frog"}])),
        ValueError, "no code is known for 'frog'",
    ),
    "bits by JPEG-LS": (
        lambda s: (image_of(s) < 9, dict(transfer_syntax_uid=JPEG_LS)), ValueError, "not for frames"
    ),
    "a plain array": (lambda s: ((image_of(s) < 9).values, {}), TypeError, "DataArray"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::dicomslide.ViewerWarning")
@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_and_leaves_nothing(pyramid, tmp_path, case):
    make, error, message = REFUSED[case]
    array, options = make(pyramid)
    with pytest.raises(error, match=message):
        dicomslide.write_segmentation(array, pyramid, tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("keyword", ["TotalPixelMatrixOriginSequence", "StudyInstanceUID"])
@pytest.mark.filterwarnings("ignore::dicomslide.MetadataWarning")
def test_a_slide_that_places_nothing_is_refused(tmp_path, keyword):
    (path,) = write_slide(
        tmp_path, shape=(64, 64), tile_shape=(32, 32), downsamples=(1,), associated=False
    )
    dataset = pydicom.dcmread(path)
    del dataset[keyword]
    dataset.save_as(path)
    slide = dicomslide.open_slide(path)
    with pytest.raises(dicomslide.MetadataError, match=r"Origin|Study"):
        dicomslide.write_segmentation(image_of(slide) < 180, slide, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_file_that_exists_is_overwritten_on_request_only(pyramid, tmp_path):
    mask = image_of(pyramid) < 180
    (path,) = dicomslide.write_segmentation(mask, pyramid, tmp_path)
    before = Path(path).read_bytes()
    with pytest.raises(dicomslide.StoreExistsError, match="overwrite=True"):
        dicomslide.write_segmentation(mask, pyramid, tmp_path)
    assert Path(path).read_bytes() == before
    with pytest.raises(dicomslide.PixelValueError):  # also while it is replaced
        dicomslide.write_segmentation(
            mask.copy(data=mask.chunk().data.map_blocks(np.asarray, dtype=bool) * 1),
            pyramid, tmp_path, overwrite=True,
        )  # fmt: skip
    assert Path(path).read_bytes() == before
    assert dicomslide.write_segmentation(~mask, pyramid, tmp_path, overwrite=True) == [path]
    assert Path(path).read_bytes() != before


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("syntax", [NATIVE, DEFLATED])
@pytest.mark.filterwarnings("ignore::dicomslide.ViewerWarning")
def test_an_interrupted_write_leaves_nothing(pyramid, tmp_path, error, syntax):
    mask = (image_of(pyramid) < 180).chunk(64)

    def failing(block, block_info=None):
        if block_info[0]["chunk-location"] == (2, 1):
            raise error
        return block

    data = mask.data.map_blocks(failing, dtype=bool, meta=np.empty((0, 0), bool))
    with pytest.raises(error), dask.config.set(scheduler="sync"):
        dicomslide.write_segmentation(
            mask.copy(data=data), pyramid, tmp_path, transfer_syntax_uid=syntax
        )
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_no_slide_and_is_swept(pyramid, tmp_path):
    left = tmp_path / ".dicomslide-write-abc"
    left.mkdir()
    (left / "lock").touch()
    (path,) = dicomslide.write_segmentation(image_of(pyramid) < 180, pyramid, tmp_path)
    assert [str(each) for each in tmp_path.iterdir()] == [path]


def test_a_full_disk_is_an_export_error(pyramid, tmp_path, monkeypatch):
    import errno
    import os

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(dicomslide.ExportError, match="no room is left"):
        dicomslide.write_segmentation(image_of(pyramid) < 180, pyramid, tmp_path)
    assert list(tmp_path.iterdir()) == []
