"""Levels lie on each other: by what their pixels show, whatever origin their headers state."""

from __future__ import annotations

import itertools
import math
import pickle

import numpy as np
import pydicom
import pytest
import xarray as xr
from pydicom.sr.codedict import codes

import dicomslide
from dicomslide.contents.levels import affine_from_base
from dicomslide.header.geometry import SlideGeometry
from dicomslide.testing import write_slide
from tests.support.derive import segment, write_segmentation

NATIVE = "1.2.840.10008.1.2.1"
ORIENTATIONS = [
    (0, -1, 0, -1, 0, 0),
    (0, 1, 0, 1, 0, 0),
    (1, 0, 0, 0, -1, 0),
    (-1, 0, 0, 0, 1, 0),
]
FACTORS = (1, 2, 4, 16)


def write(folder, **options):
    settings = dict(
        shape=(352, 272),
        downsamples=FACTORS,
        tile_shape=(64, 64),
        transfer_syntax_uid=NATIVE,
        associated=False,
        icc_profile=None,
    )
    return write_slide(folder, **settings | options)


def box_means(image, factor):
    """Means of the base's boxes and their centres in mm, in NumPy, of an upright image."""
    rows, columns = (length // factor for length in image.shape[:2])
    values = image.values[: rows * factor, : columns * factor].astype(float)
    means = values.reshape(rows, factor, columns, factor, -1).mean(axis=(1, 3))
    y = image.y.values[: rows * factor].reshape(rows, factor).mean(axis=1)
    x = image.x.values[: columns * factor].reshape(columns, factor).mean(axis=1)
    return means, y, x


@pytest.mark.parametrize("level_origins", ["own", "base"])
@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
def test_a_level_lies_where_the_boxes_of_the_base_lie_that_it_is_the_means_of(
    tmp_path, orientation, level_origins
):
    write(tmp_path, orientation=orientation, level_origins=level_origins)
    tree = xr.open_datatree(tmp_path, engine="dicomslide")
    for number, factor in enumerate(FACTORS[1:], 1):
        level = tree[f"level_{number}"].image
        means, y, x = box_means(tree["level_0"].image, factor)
        np.testing.assert_allclose(level.y, y, rtol=0, atol=1e-9)
        np.testing.assert_allclose(level.x, x, rtol=0, atol=1e-9)
        assert np.abs(level.values - means).max() <= math.log2(factor) + 1  # rounded level by level


def test_the_letter_of_the_header_is_there_at_every_door(tmp_path):
    paths = write(tmp_path, level_origins="base")
    stated = pytest.approx((18.0, 32.0), abs=1e-9)
    registered = pytest.approx((18.0 - 7.5 * 0.0005, 32.0 - 7.5 * 0.0005), abs=1e-9)
    slide = dicomslide.open_slide(tmp_path)
    assert slide.get_slide_offset((0, 0), 3) == registered
    letter = dicomslide.open_slide(tmp_path, align_levels=False)
    assert letter.get_slide_offset((0, 0), 3) == stated
    assert dicomslide.open_slide(slide, align_levels=False).get_slide_offset((0, 0), 3) == stated
    assert dicomslide.open_slide(letter).get_slide_offset((0, 0), 3) == stated
    assert pickle.loads(pickle.dumps(letter)).get_slide_offset((0, 0), 3) == stated
    (of_cohort,) = dicomslide.open_slides(tmp_path, align_levels=False).values()
    assert of_cohort.get_slide_offset((0, 0), 3) == stated
    assert slide != letter
    assert slide.levels[3].image != letter.levels[3].image
    assert slide.levels[0].image == letter.levels[0].image
    # an image by itself is as its header says
    alone = dicomslide.open_slide(paths[3])
    assert alone.get_slide_offset((0, 0), 0) == stated
    for options, where in (({}, registered), ({"align_levels": False}, stated)):
        image = xr.open_dataset(tmp_path, engine="dicomslide", level=3, **options).image
        assert (float(image.x[-1]), float(image.y[0])) == where
        tree = xr.open_datatree(tmp_path, engine="dicomslide", **options)
        assert float(tree["level_3"].x[-1]) == float(image.x[-1])
        assert tuple(image.attrs["total_pixel_matrix_origin"]) == where
    assert image.attrs["registration"] == "as stated"
    attrs = slide.to_dataset(3).image.attrs
    assert attrs["registration"] == "corner of the base level"
    assert tuple(attrs["total_pixel_matrix_origin_stated"]) == stated


def test_worked_example_6():
    base = geometry((10.0, 20.0), 0.00025, (80, 120))
    level = geometry((10.0, 20.0), 0.001, (20, 30))
    registered = level.on_corner_of(base, 0.01)
    assert registered.origin == pytest.approx((9.999625, 19.999625), abs=1e-12)
    lawful = geometry(registered.origin, 0.001, (20, 30))
    assert lawful.on_corner_of(base, 0.01) is None  # it states another origin


def geometry(origin, spacing, shape):
    return SlideGeometry(origin, (0.0, -1.0), (-1.0, 0.0), (spacing, spacing), shape)


@pytest.mark.parametrize("away", [(0.02, 0), (0, -0.02), (1, 1), (-0.5, 0.5)])
def test_any_other_origin_is_taken_as_stated(tmp_path, away):
    """In pixels of the base: from two hundredths on it is another origin."""
    paths = write(tmp_path, level_origins="base", downsamples=(1, 4))
    dataset = pydicom.dcmread(paths[1])
    item = dataset.TotalPixelMatrixOriginSequence[0]
    item.XOffsetInSlideCoordinateSystem = x = round(18 + away[0] * 0.0005, 8)
    item.YOffsetInSlideCoordinateSystem = y = round(32 + away[1] * 0.0005, 8)
    dataset.save_as(paths[1])
    slide = dicomslide.open_slide(tmp_path)
    assert slide.get_slide_offset((0, 0), 1) == pytest.approx((x, y), abs=1e-9)


def test_a_level_turned_otherwise_than_the_base_is_taken_as_stated(tmp_path):
    paths = write(tmp_path, level_origins="base", downsamples=(1, 4), shape=(64, 64))
    dataset = pydicom.dcmread(paths[1])
    dataset.ImageOrientationSlide = [-1, 0, 0, 0, -1, 0]
    dataset.save_as(paths[1])
    slide = dicomslide.open_slide(tmp_path, pyramid_tolerance=10)
    assert slide.get_slide_offset((0, 0), 1) == pytest.approx((18, 32), abs=1e-9)


@pytest.mark.parametrize("shape", [(353, 272), (351, 273)])
def test_levels_of_channels_lie_on_the_base_of_their_own_channel(tmp_path, shape):
    """Of registered channels one has a row more than the other, and another origin."""
    import highdicom as hd

    origins = {"A": (18.0, 32.0), "B": (18.0103, 32.0047)}
    for name, size in (("A", (352, 272)), ("B", shape)):
        paths = write(
            tmp_path / name, shape=size, origin=origins[name], samples=1, bits=16,
            optical_paths=(name,), drawing="position", level_origins="base",
        )  # fmt: skip
        for path in paths:
            dataset = pydicom.dcmread(path)
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = hd.UID()
            dataset.save_as(path)
    slide = dicomslide.open_slide(tmp_path)
    assert slide.num_levels == len(FACTORS)
    for factor, level in zip(FACTORS, slide.levels, strict=True):
        for image in level.images:
            middle = (factor - 1) / 2 * 0.0005
            x, y = origins[image.channels[0].identifier]
            assert image.geometry.origin == pytest.approx((x - middle, y - middle), abs=1e-9)


def test_millimetres_that_count_from_the_first_pixel_are_registered_too(tmp_path):
    """No level has an origin: they share the corner all the same."""
    for path in write(tmp_path, level_origins="base", downsamples=(1, 4)):
        dataset = pydicom.dcmread(path)
        del dataset.TotalPixelMatrixOriginSequence
        dataset.save_as(path)
    with pytest.warns(dicomslide.MetadataWarning, match="count from its first pixel"):
        tree = xr.open_datatree(tmp_path, engine="dicomslide")
    _, y, x = box_means(tree["level_0"].image, 4)
    np.testing.assert_allclose(tree["level_1"].y, y, rtol=0, atol=1e-9)
    np.testing.assert_allclose(tree["level_1"].x, x, rtol=0, atol=1e-9)


def test_a_level_without_an_origin_lies_on_the_corner_of_a_base_that_has_one(tmp_path):
    paths = write(tmp_path, level_origins="base", downsamples=(1, 4))
    dataset = pydicom.dcmread(paths[1])
    del dataset.TotalPixelMatrixOriginSequence
    dataset.save_as(paths[1])
    tree = xr.open_datatree(tmp_path, engine="dicomslide")
    _, y, x = box_means(tree["level_0"].image, 4)
    np.testing.assert_allclose(tree["level_1"].y, y, rtol=0, atol=1e-9)
    np.testing.assert_allclose(tree["level_1"].x, x, rtol=0, atol=1e-9)
    slide = dicomslide.open_slide(tmp_path)
    assert slide.get_slide_offset((0, 0), 1) == pytest.approx((18 - 0.00075, 32 - 0.00075))
    letter = dicomslide.open_slide(tmp_path, align_levels=False)
    with pytest.raises(dicomslide.MetadataError, match="no Total Pixel Matrix Origin"):
        letter.get_slide_offset((0, 0), 1)


# -- what was derived ------------------------------------------------------------------------


def blobs(shape):
    """A mask whose edges tell a shift of half a pixel."""
    row, column = np.mgrid[: shape[0], : shape[1]]
    near = ((row % 12) - 5) ** 2 + ((column % 14) - 6) ** 2
    return near <= 18


@pytest.mark.parametrize("level_origins", ["own", "base"])
def test_a_segmentation_of_a_coarse_level_lies_on_that_level(tmp_path, level_origins):
    """highdicom copies the origin that its source states, also for the levels of a pyramid."""
    paths = write(tmp_path, level_origins=level_origins)
    mask = blobs((88, 68))
    write_segmentation(
        tmp_path / "seg.dcm", paths[2], np.stack([mask, ~mask], -1).astype(np.uint8), "BINARY"
    )
    tree = xr.open_datatree(tmp_path, engine="dicomslide")
    segment = tree["level_2"].segmentation.sel(segment=1)
    assert segment.shape == tree["level_2"].image.shape[:2]
    image = tree["level_0"].image
    onto = segment.reindex_like(image, method="nearest", fill_value=False)
    # as high as shared corners give: each pixel of the level covers four by four of the base
    upright = np.rot90(np.kron(mask, np.ones((4, 4), bool)), -1)
    overlap = 2 * (onto.values & upright).sum() / (onto.values.sum() + upright.sum())
    assert overlap == 1
    slide = dicomslide.open_slide(tmp_path)
    index = slide.get_channel_index("1", "SEGMENT")
    assert slide.get_slide_offset((0, 0), 2, index) == pytest.approx(
        slide.get_slide_offset((0, 0), 2)
    )


def test_a_part_of_a_level_lies_on_the_grid_of_that_level(tmp_path):
    """Its origin is that of a pixel of the level, by what the level's header says."""
    paths = write(tmp_path, level_origins="base", downsamples=(1, 4))
    seg = write_segmentation(
        tmp_path / "seg.dcm", paths[1], blobs((88, 68)).astype(np.uint8), "BINARY",
        segments=[segment(1, "tumour")],
    )  # fmt: skip
    dataset = pydicom.dcmread(seg)
    part = dicomslide.open_slide(tmp_path)
    whole = part.get_slide_offset((10, 20), 1)
    dataset.TotalPixelMatrixRows, dataset.TotalPixelMatrixColumns = 64, 64
    del dataset.PerFrameFunctionalGroupsSequence
    dataset.DimensionOrganizationType = "TILED_FULL"
    dataset.Rows, dataset.Columns = 64, 64
    dataset.NumberOfFrames = 1
    dataset.PixelData = np.packbits(blobs((64, 64)), bitorder="little").tobytes()
    item = dataset.TotalPixelMatrixOriginSequence[0]
    item.XOffsetInSlideCoordinateSystem = round(18 - 10 * 0.002, 6)
    item.YOffsetInSlideCoordinateSystem = round(32 - 20 * 0.002, 6)
    dataset.save_as(seg)
    slide = dicomslide.open_slide(tmp_path)
    (image,) = slide.derived_images
    assert image.get_slide_offset((0, 0)) == pytest.approx(whole, abs=1e-9)


def test_levels_of_a_segmentations_own_pyramid_share_its_corner(tmp_path):
    """As highdicom's create_segmentation_pyramid writes them: the origin of the first on all."""
    import highdicom as hd

    paths = write(tmp_path, level_origins="own", downsamples=(1, 2))
    source = pydicom.dcmread(paths[0])
    written = hd.seg.create_segmentation_pyramid(
        source_images=[source],
        pixel_arrays=[blobs((352, 272))[None].astype(np.uint8)],
        segmentation_type="BINARY",
        segment_descriptions=[segment(1, "tumour")],
        series_instance_uid=hd.UID(),
        series_number=5,
        manufacturer="m",
        manufacturer_model_name="mm",
        software_versions="1",
        device_serial_number="s",
        downsample_factors=[2.0, 4.0],
    )
    for number, dataset in enumerate(written):
        dataset.save_as(tmp_path / f"seg-{number}.dcm")
    slide = dicomslide.open_slide(tmp_path)
    step = 0.0005
    for image in slide.derived_images:
        factor = 352 // image.size[0]
        middle = (factor - 1) / 2 * step
        assert image.get_slide_offset((0, 0)) == pytest.approx((18 - middle, 32 - middle), abs=1e-9)
    tree = slide.to_datatree()
    assert "segmentation" in tree["level_1"]


def test_annotations_in_pixels_of_a_coarse_level_lie_on_it(tmp_path):
    import highdicom as hd

    paths = write(tmp_path, level_origins="base")
    source = pydicom.dcmread(paths[3])
    # from the corner: (column, row) of the first pixel's centre, and of the corner of the fifth
    points = [np.array([[0.5, 0.5]]), np.array([[4.0, 4.0]])]
    group = hd.ann.AnnotationGroup(
        number=1,
        uid=hd.UID(),
        label="cells",
        annotated_property_category=codes.SCT.AnatomicalStructure,
        annotated_property_type=codes.SCT.Cell,
        graphic_type="POINT",
        graphic_data=points,
        algorithm_type="MANUAL",
    )
    annotations = hd.ann.MicroscopyBulkSimpleAnnotations(
        source_images=[source],
        annotation_coordinate_type="2D",
        annotation_groups=[group],
        series_instance_uid=hd.UID(),
        series_number=9,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="m",
        manufacturer_model_name="mm",
        software_versions="1",
        device_serial_number="s",
    )
    annotations.save_as(tmp_path / "ann.dcm")
    for align_levels, shift in ((True, 7.5), (False, 0)):
        slide = dicomslide.open_slide(tmp_path, align_levels=align_levels)
        (found,) = slide.annotations()
        first = np.array([18.0, 32.0]) - shift * 0.0005
        expected = [first, first - 3.5 * 16 * 0.0005]
        np.testing.assert_allclose(found.coordinates, expected, atol=1e-9)


# -- by content, of a scanned slide ------------------------------------------------------------


def test_levels_of_a_scanned_slide_correlate_best_where_they_lie(shared_data, tmp_path):
    """wsidicom adds levels to a scan, with the base's origin: its boxes' means fit them best."""
    wsidicom = pytest.importorskip("wsidicom")
    files = (shared_data / "cmu-1-small-region").glob("*.dcm")
    (scan,) = (
        f for f in files if "VOLUME" in pydicom.dcmread(f, stop_before_pixels=True).ImageType
    )
    with wsidicom.WsiDicom.open([scan]) as opened:
        opened.save(tmp_path, add_missing_levels=True, workers=1)
    slide = dicomslide.open_slide(tmp_path, correct_color=False)
    assert slide.num_levels == 5
    tree = slide.to_datatree(chunks="auto")
    base = tree["level_0"].image.astype(float).mean("sample").compute()
    step = 0.000499
    # sums of rows and columns: the mean of any box of whole pixels in four look-ups
    total = np.zeros((base.shape[0] + 1, base.shape[1] + 1))
    total[1:, 1:] = base.values.cumsum(0).cumsum(1)

    def box_sums(top, left, size):
        bottom, right = top + size, left + size
        return (
            total[np.ix_(bottom, right)] - total[np.ix_(top, right)]
            - total[np.ix_(bottom, left)] + total[np.ix_(top, left)]
        )  # fmt: skip

    for number, factor in enumerate((2, 4, 8), 1):
        level = tree[f"level_{number}"].image.astype(float).mean("sample").compute()
        inner = level[3:-3, 3:-3]
        # first row and column of the box of the base that lies around each pixel of the level
        top = np.rint((float(base.y[0]) - inner.y.values) / step - (factor - 1) / 2).astype(int)
        left = np.rint((inner.x.values - float(base.x[0])) / step - (factor - 1) / 2).astype(int)
        shifts = range(-factor // 2, factor // 2 + 1)
        found = {
            (down, right): np.corrcoef(
                box_sums(top + down, left + right, factor).ravel(), inner.values.ravel()
            )[0, 1]
            for down, right in itertools.product(shifts, shifts)
        }
        assert max(found, key=found.__getitem__) == (0, 0)
        assert found[0, 0] > 0.99


# -- offsets in pixels of the base -----------------------------------------------------------


@pytest.mark.parametrize("shape", [(4117, 5752), (4601, 3291), (2967, 2220)], ids=str)
def test_an_offset_of_whole_boxes_of_the_base_is_a_pixel_of_the_level(tmp_path, shape):
    factors = (1, 4, 16)
    write(tmp_path, shape=shape, downsamples=factors, drawing="position", samples=1, bits=16,
          tile_shape=(512, 512), level_origins="base")  # fmt: skip
    slide = dicomslide.open_slide(tmp_path)
    for level, factor in enumerate(factors):
        rows, columns = slide.levels[level].size
        matrix = slide.levels[level].image.get_total_pixel_matrix()
        for row, column in ((0, 0), (1, 2), (rows // 2, columns // 3), (rows - 1, columns - 1)):
            for more in (0, factor - 1):  # the first and the last pixel of the box
                offset = row * factor + more, column * factor + more
                found = slide.get_image_region(offset, level, (1, 1))
                np.testing.assert_array_equal(found, matrix[row : row + 1, column : column + 1])


@pytest.mark.parametrize("level_origins", ["own", "base"])
@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8, 16, 32])
def test_arithmetic_of_offsets_in_a_large_slide(factor, level_origins):
    """46000 × 32914: levels are as large as whole boxes make them, and larger by a part of one."""

    class Image:
        def __init__(self, geometry):
            self.geometry = geometry

    base = geometry((18.0, 32.0), 0.00025, (46000, 32914))
    for round_to in (math.floor, math.ceil):
        shape = round_to(46000 / factor), round_to(32914 / factor)
        middle = (factor - 1) / 2 * 0.00025
        level = geometry((18.0 - middle, 32.0 - middle), 0.00025 * factor, shape)
        if level_origins == "base" and factor > 1:
            level = geometry((18.0, 32.0), 0.00025 * factor, shape).on_corner_of(base, 0.01)
        (down, _, first), _ = affine_from_base(Image(base), Image(level))
        for offset in (-2 * factor - 1, -1, 0, 1, factor - 1, factor, 4 * factor, 45999):
            assert math.floor(down * offset + first + 0.5 + 1e-9) == offset // factor


def test_offsets_where_nothing_says_where_images_lie_go_by_sizes(tmp_path):
    """No spacing, no volume, no orientation: floor((offset + ½) · R_l / R_0)."""
    for path in write(tmp_path, shape=(100, 60), downsamples=(1, 3), drawing="position",
                      samples=1, bits=16):  # fmt: skip
        dataset = pydicom.dcmread(path)
        del dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
        del dataset.ImagedVolumeWidth, dataset.ImagedVolumeHeight, dataset.ImageOrientationSlide
        dataset.save_as(path)
    slide = dicomslide.open_slide(tmp_path)
    matrix = slide.levels[1].image.get_total_pixel_matrix()
    for offset in (0, 1, 2, 3, 50, 98):
        at = math.floor((offset + 0.5) * 33 / 100)
        np.testing.assert_array_equal(
            slide.get_image_region((offset, 0), 1, (1, 1)), matrix[at : at + 1, :1]
        )
