"""What real files do: groups of quirks, and the tests that hold each.

Those of pixels are in test_quirky_pixels; here is the table, and those of headers and slides.

 1. Photometric Interpretation contradicts the JPEG:
    test_quirky_pixels.test_colour_is_that_of_the_frames
    test_quirky_pixels.test_a_conflict_of_colours_is_logged_once
    test_codec.test_colour_of_jpeg_is_that_of_the_codestream
 2. "YBR_FULL_422" is 4:2:0 or 4:4:4, and progressive under the Baseline UID:
    test_quirky_pixels.test_colour_is_that_of_the_frames
    test_codec.test_jpeg_of_pillow_decodes_as_pillow_does
    test_codec.test_codestream_larger_than_the_tile_raises
 3. The codestream's size isn't Rows × Columns:
    test_quirky_pixels.test_cropped_frames_at_the_edge_are_whole
    test_quirky_pixels.test_frames_cut_in_half_warn_of_lost_pixels
    test_quirky_pixels.test_frames_larger_than_their_tile_raise
 4. JPEG 2000 is RGB whatever is claimed:
    test_codec.test_components_of_jpeg_2000_are_rgb
    test_codec.test_jpeg_2000_stored_as_ybr_without_transform_becomes_rgb
 5. Plain JPEG 2000 under the UIDs of HTJ2K:
    test_codec.test_plain_jpeg_2000_under_a_htj2k_uid_decodes
 6. Transfer syntaxes that pydicom doesn't know, byte order of 8 bits, 12 bits, and planes:
    test_file.test_jpeg_xl_which_pydicom_does_not_know
    test_file.test_big_endian_bytes_that_are_not_swapped
    test_file.test_native_frames_of_any_size
    test_quirky_pixels.test_twelve_bits_in_sixteen
    test_codec.test_frames_decode_as_pydicom_decodes_them
    test_codec.test_planar_configuration_of_native_frames
 7. Profiles, palettes and a wavelength of 0 on grey optical paths:
    test_quirky_pixels.test_grey_pixels_are_as_stored_whatever_their_path_says
 8. Offset tables that lie, both at once, padding:
    test_file.test_lengths_of_an_extended_table_may_be_wrong
    test_file.test_both_offset_tables_may_be_there
    test_quirky_pixels.test_frames_of_odd_length_are_found
    test_quirky_pixels.test_bytes_behind_the_end_of_an_image_are_ignored
 9. Several fragments a frame, and frames of no bytes:
    test_file.test_frames_are_found_by_any_table_and_in_any_fragments
    test_file.test_unequal_numbers_of_fragments_are_split_at_codestreams
    test_file.test_frames_of_no_bytes_are_background
10. Frames in another order than row by row:
    test_quirky_pixels.test_frames_lie_where_they_say_under_a_claim_of_tiled_full
    test_perframe.test_positions_win_over_tiled_full
11. Concatenation attributes that lie, or aren't there:
    test_bogus_numbers_of_a_concatenation_on_a_label
    test_slide.test_a_concatenation_uid_that_lies_joins_nothing
    test_split_images_without_concatenation_attributes_are_one
    test_sparse_images_that_lie_apart_are_no_parts
    test_images_of_one_place_that_are_no_parts_stay_ambiguous
    test_full_parts_without_concatenation_attributes_raise
    test_perframe.test_a_part_alone_puts_its_frames_at_their_tiles
12. Tiles larger than the matrix, bogus counts, flavours without a matrix:
    test_slide.test_a_tile_larger_than_the_matrix
    test_a_label_that_names_paths_of_others
    test_a_localizer_without_matrix_is_passed_over
13. Orientations: mirrored, with −0.0, and one for each image:
    test_orientations_are_taken_literally
    test_an_overview_lies_in_its_own_way
14. Origin absent, without Z, elsewhere, or a writer's default:
    test_labelled.test_images_without_origin_count_from_their_first_pixel
    test_an_origin_without_z_or_in_the_shared_groups
    test_defaults_of_a_converter
15. Spacing absent, the same on all levels, swapped; volume in µm; odd ratios:
    test_slide.test_absent_spacing_is_derived_from_the_imaged_volume
    test_slide.test_absent_spacing_of_a_level_is_derived_from_the_base
    test_labelled.test_images_without_spacing_have_rows_and_columns
    test_spacing_of_the_base_on_every_level
    test_a_crop_of_the_base_keeps_its_spacing
    test_a_part_that_covers_less_than_its_matrix_keeps_its_spacing
    test_a_level_that_is_turned_is_not_as_wide_as_the_base
    test_derived.test_a_part_of_the_base_of_a_levels_size_keeps_its_spacing
    test_swapped_spacing
    test_anisotropic_spacing_that_nothing_contradicts_is_taken
    test_ratios_of_levels_are_no_integers
    test_a_label_without_spacing_has_rows_and_columns
16. What is absent:
    test_slide.test_what_real_files_lack_does_not_keep_them_closed
    test_what_is_absent_does_not_keep_a_slide_closed
    test_absent_counts_are_those_of_the_frames
17. Invalid values:
    test_invalid_values_do_not_keep_a_slide_closed
    test_images_of_one_uid_are_told_apart
    test_slide.test_invalid_values_are_read_as_they_are
    test_file.test_a_second_file_of_one_instance_is_left_out_with_a_warning
18. Segmentations of unaligned bits, palettes; odd annotations:
    test_quirky_pixels.test_bit_packed_segments_equal_highdicoms_reading
    test_quirky_pixels.test_frames_padded_to_bytes
    test_quirky_pixels.test_a_label_map_with_palette_is_labels
    test_annotation.test_odd_annotations_of_real_files_are_read
19. Slides over several series, scans in one study, shared labels:
    test_a_slide_over_several_series
    test_scans_of_one_container_share_their_label
    test_a_scan_with_a_label_keeps_its_own
    test_slide.test_two_scans_of_one_container_are_two_slides
20. A thumbnail of the size of level 0:
    test_a_thumbnail_of_the_size_of_the_base
    test_slide.test_a_thumbnail_of_the_size_of_a_level_is_associated
24. Focal planes whose z follows the tissue:
    test_odd_stacks.test_a_plane_that_follows_the_tissue_is_one
    test_odd_stacks.test_planes_that_follow_the_tissue_are_counted_within_each_tile
    test_odd_stacks.test_two_frames_at_one_place_of_a_plane_that_follows_the_tissue_raise
    test_odd_stacks.test_parts_of_an_image_whose_plane_follows_the_tissue_are_one
25. Levels, and channels, with one plane each at a z of its own:
    test_odd_stacks.test_levels_with_a_plane_each_have_one
    test_odd_stacks.test_channels_with_a_plane_each_are_no_stack
26. Registered channels whose origins or sizes differ:
    test_odd_stacks.test_a_channel_that_lies_apart_has_millimetres_of_its_own
    test_odd_stacks.test_a_row_or_column_more_makes_no_level
27. H&E beside fluorescence, 8 beside 16 bits:
    test_odd_stacks.test_pixels_of_two_kinds_are_variables_beside_each_other
    test_odd_stacks.test_a_stack_beside_one_plane_keeps_its_z
28. Cycles of staining that count their paths anew:
    test_odd_stacks.test_cycles_of_staining_are_channels_of_their_own
    test_odd_stacks.test_cycles_in_focus_at_other_heights_are_channels_not_planes
"""

from __future__ import annotations

import ast
import dataclasses
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

import dicomslide
from dicomslide.backends.part10.file import FileStore
from dicomslide.errors import MetadataError, MetadataWarning
from dicomslide.header.geometry import SlideGeometry
from dicomslide.testing import (
    position_values,
    write_slide,
)
from tests.support.quirky import (
    NATIVE,
    RLE,
    SHAPE,
    changed,
    expected,
    measures,
    open_stored,
    pixels_of,
    pixels_of_image,
    pyramid,
    setting,
    write,
)

# -- the table -------------------------------------------------------------------------------


def test_every_quirk_has_tests_and_they_exist():
    groups = re.split(r"^ ?(\d+)\. ", __doc__, flags=re.MULTILINE)[1:]
    numbers = [int(number) for number in groups[::2]]
    assert numbers == sorted(set(numbers))
    assert numbers[:20] == list(range(1, 21))
    for text in groups[1::2]:
        named = re.findall(r"(?:(test_\w+)\.)?(test_\w+)", text)
        assert named
        for module, test in named:
            path = Path(__file__).with_name(f"{module}.py") if module else Path(__file__)
            tree = ast.parse(path.read_text(encoding="utf-8"))
            functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
            assert test in functions


# -- 11: concatenations ----------------------------------------------------------------------


def test_bogus_numbers_of_a_concatenation_on_a_label(tmp_path):
    paths = write_slide(
        tmp_path, shape=(60, 80), downsamples=(1,), tile_shape=(32, 32), drawing="position",
        transfer_syntax_uid=NATIVE,
    )  # fmt: skip
    before = pixels_of_image(open_stored(tmp_path).label_images[0])
    changed(
        paths[1],
        setting(
            ConcatenationUID="1.2.3",
            InConcatenationNumber=7,
            ConcatenationFrameOffsetNumber=41,
        ),
    )
    slide = open_stored(tmp_path)
    np.testing.assert_array_equal(pixels_of_image(slide.label_images[0]), before)
    assert before.std() > 10


def write_half(folder: Path, number: int, frames: slice, **options: Any) -> Path:
    return write(
        folder / f"half-{number}.dcm",
        RLE,
        arrange=lambda places: places[frames],
        instance_number=number,
        **options,
    )


@pytest.mark.parametrize("paths", [("1",), ("DAPI", "FITC")])
def test_split_images_without_concatenation_attributes_are_one(tmp_path, paths):
    options = dict(sparse=True, optical_paths=paths, planes=(0.0, 2.0), samples=1, bits=16)
    for number, frames in enumerate((slice(0, None, 3), slice(1, None, 3), slice(2, None, 3))):
        write_half(tmp_path, number, frames, **options)
    slide = open_stored(tmp_path)
    assert (slide.num_levels, slide.num_channels, slide.num_focal_planes) == (1, len(paths), 2)
    for channel in range(len(paths)):
        for plane in range(2):
            np.testing.assert_array_equal(
                pixels_of(slide, channel_index=channel, focal_plane_index=plane),
                expected(SHAPE, channel, plane, samples=1, dtype=np.uint16),
            )


def test_images_of_one_place_that_are_no_parts_stay_ambiguous(tmp_path):
    write_half(tmp_path, 1, slice(0, 7), sparse=True)
    write_half(tmp_path, 2, slice(6, None), sparse=True)
    with pytest.raises(dicomslide.AmbiguousSlideError, match=r"half-1\.dcm and .*half-2\.dcm"):
        open_stored(tmp_path)


@pytest.mark.parametrize("wrong", [dict(origin=(10.0, 20.02)), dict(spacing=(0.002, 0.002))])
def test_sparse_images_that_lie_apart_are_no_parts(tmp_path, wrong):
    """Two regions of a slide, in matrices of one size."""
    here = SlideGeometry((10.0, 20.0), (0.0, -1.0), (-1.0, 0.0), (0.001, 0.001), SHAPE)
    there = dataclasses.replace(here, **wrong)
    write_half(tmp_path, 1, slice(0, 7), sparse=True, geometry=here)
    write_half(tmp_path, 2, slice(7, None), sparse=True, geometry=there)
    with pytest.raises(dicomslide.AmbiguousSlideError, match=r"half-1\.dcm and .*half-2\.dcm"):
        open_stored(tmp_path)


def test_full_parts_without_concatenation_attributes_raise(tmp_path):
    """Nothing says at which tile such a part starts."""
    write_half(tmp_path, 1, slice(0, 7))
    write_half(tmp_path, 2, slice(7, None))
    with pytest.raises(MetadataError, match=r"half-1\.dcm: the header declares 7 frames; 4 × 3 "):
        open_stored(tmp_path)


# -- 12: structure ---------------------------------------------------------------------------


@pytest.mark.parametrize("shared", ["1", "2", None])
def test_a_label_that_names_paths_of_others(tmp_path, shared):
    """Three optical paths, of which the one frame belongs to one."""
    paths = write_slide(tmp_path, shape=(60, 80), downsamples=(1,), tile_shape=(32, 32))
    before = pixels_of_image(open_stored(tmp_path).label_images[0])

    def change(dataset: pydicom.Dataset) -> None:
        dataset.NumberOfOpticalPaths = 3
        (path,) = dataset.OpticalPathSequence
        others = [pydicom.Dataset(), pydicom.Dataset()]
        for other, identifier in zip(others, "23", strict=True):
            other.update(path)
            other.add_new("OpticalPathIdentifier", "SH", identifier)
        dataset.OpticalPathSequence = [path, *others]
        (groups,) = dataset.SharedFunctionalGroupsSequence
        if shared is None:
            del groups.OpticalPathIdentificationSequence
        else:
            groups.OpticalPathIdentificationSequence[0].OpticalPathIdentifier = shared

    changed(paths[1], change)
    slide = open_stored(tmp_path)
    (label,) = slide.label_images
    assert [channel.identifier for channel in label.channels] == [shared or "1"]
    np.testing.assert_array_equal(pixels_of_image(label), before)
    assert slide.to_datatree(associated=True)["label"].image.dims == ("y", "x", "sample")


def test_a_localizer_without_matrix_is_passed_over(tmp_path, caplog):
    pyramid(tmp_path)
    without = setting(
        ImageType=["ORIGINAL", "PRIMARY", "REGIONLOCALIZER", "NONE"],
        TotalPixelMatrixRows=...,
        TotalPixelMatrixColumns=...,
    )
    write(tmp_path / "localizer.dcm", instance_number=9, change=without)
    whole = setting(ImageType=["ORIGINAL", "PRIMARY", "REGIONLOCALIZER", "NONE"])
    write(tmp_path / "whole.dcm", instance_number=10, change=whole)
    with caplog.at_level(logging.DEBUG, "dicomslide"):
        slide = open_stored(tmp_path)
    np.testing.assert_array_equal(pixels_of(slide), expected((60, 80)))
    assert slide.num_levels == 2
    assert "localizer.dcm: it isn't a tiled image" in caplog.text
    assert "whole.dcm: a REGIONLOCALIZER is passed over" in caplog.text


# -- 13: orientation -------------------------------------------------------------------------

ORIENTATIONS = {
    "3DHISTECH": (-1, 0, 0, 0, -1, 0),
    "typical": (0, -1, 0, -1, 0, 0),
    "Aperio": (1, 0, 0, 0, -1, 0),
    "turned": (-1, 0, 0, 0, 1, 0),
}


@pytest.mark.parametrize("zero", ["0", "-0.0", "-0"])
@pytest.mark.parametrize("name", ORIENTATIONS)
def test_orientations_are_taken_literally(tmp_path, name, zero):
    cosines = ORIENTATIONS[name]
    path = write(
        tmp_path / "image.dcm",
        orientation=tuple(map(float, cosines)),
        change=setting(ImageOrientationSlide=[str(c) if c else zero for c in cosines]),
    )
    if name == "3DHISTECH":
        with pytest.warns(MetadataWarning, match="mirror image"):
            slide = open_stored(path)
    else:
        slide = open_stored(path)
    image = slide.to_dataset().image
    stored = expected()
    for row, column in ((0, 0), (3, 50), (49, 69)):
        x = 10 + 0.001 * (column * cosines[0] + row * cosines[3])
        y = 20 + 0.001 * (column * cosines[1] + row * cosines[4])
        assert slide.get_slide_offset((row, column), 0) == pytest.approx((x, y), abs=1e-12)
        np.testing.assert_array_equal(image.sel(x=x, y=y, method="nearest"), stored[row, column])
    assert image.x[0] < image.x[-1]
    assert image.y[0] > image.y[-1]


def test_an_overview_lies_in_its_own_way(tmp_path):
    write(tmp_path / "volume.dcm", instance_number=1)
    write(
        tmp_path / "overview.dcm",
        instance_number=2,
        flavor="OVERVIEW",
        orientation=(1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    )
    tree = open_stored(tmp_path).to_datatree(associated=True)
    stored = expected()
    np.testing.assert_array_equal(tree["level_0"].image, np.rot90(stored, -1))
    np.testing.assert_array_equal(tree["overview"].image, stored)
    assert float(tree["overview"].x[0]) == 10.0
    assert float(tree["level_0"].x[-1]) == 10.0


# -- 14: origin ------------------------------------------------------------------------------


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("z", ["0.007", None])
def test_an_origin_without_z_or_in_the_shared_groups(tmp_path, z, moved):
    def change(dataset: pydicom.Dataset) -> None:
        (origin,) = dataset.TotalPixelMatrixOriginSequence
        del origin.ZOffsetInSlideCoordinateSystem
        if z is not None:
            origin.ZOffsetInSlideCoordinateSystem = z
        if moved:
            (groups,) = dataset.SharedFunctionalGroupsSequence
            groups.TotalPixelMatrixOriginSequence = [origin]
            del dataset.TotalPixelMatrixOriginSequence

    slide = open_stored(write(tmp_path / "image.dcm", change=change))
    assert slide.physical_offset == (10.0, 20.0)
    assert slide.focal_plane_offsets == (0.007 if z else 0.0,)
    x, y = slide.get_slide_offset((3, 7), 0)
    assert (x, y) == pytest.approx((9.997, 19.993), abs=1e-12)


def test_defaults_of_a_converter(tmp_path):
    """OrthancWSI: origin (20, 40), 15 × 15 mm, whatever the slide: pixels aren't square."""

    def change(dataset: pydicom.Dataset) -> None:
        (origin,) = dataset.TotalPixelMatrixOriginSequence
        origin.XOffsetInSlideCoordinateSystem = "20"
        origin.YOffsetInSlideCoordinateSystem = "40"
        dataset.ImagedVolumeWidth = dataset.ImagedVolumeHeight = 15.0
        measures(dataset).PixelSpacing = [15 / 50, 15 / 70]

    slide = open_stored(write(tmp_path / "image.dcm", change=change))
    assert slide.physical_offset == (20.0, 40.0)
    assert slide.physical_size == pytest.approx((15, 15))
    assert slide.pixel_spacings[0] == pytest.approx((15 / 70, 15 / 50))  # along a row, a column
    np.testing.assert_array_equal(pixels_of(slide), expected())


# -- 15: spacing -----------------------------------------------------------------------------


def large_pyramid(folder: Path, sizes: list[tuple[int, int]], width: float) -> list[Path]:
    """Levels of a field of view of some mm, whose pixels are as large as that makes them."""
    base = SlideGeometry(
        (20.0, 40.0), (0.0, -1.0), (-1.0, 0.0), (width / sizes[0][1],) * 2, sizes[0]
    )
    paths = []
    for number, shape in enumerate(sizes):
        spacing = (sizes[0][0] * base.spacing[0] / shape[0], width / shape[1])
        half = [(spacing[i] - base.spacing[i]) / 2 for i in (0, 1)]
        origin = (20.0 - half[0], 40.0 - half[1])  # geometry.md F12
        geometry = dataclasses.replace(base, origin=origin, spacing=spacing, shape=shape)
        path = folder / f"level-{number}.dcm"
        paths.append(
            write(
                path,
                shape=shape,
                geometry=geometry,
                instance_number=number + 1,
                resampled=number > 0,
            )
        )
    return paths


SIZES = [(222, 297), (111, 148), (55, 74)]


@pytest.mark.parametrize("volume", [True, False])
def test_spacing_of_the_base_on_every_level(tmp_path, volume):
    """Of 15 mm: a level of pixels as small as the base's would lie elsewhere."""
    paths = large_pyramid(tmp_path, SIZES, 15.0)
    before = open_stored(tmp_path)
    right = (
        before.pixel_spacings,
        before.physical_bounds,
        [before.get_slide_offset((0, 0), level) for level in range(3)],
    )

    def change(dataset: pydicom.Dataset) -> None:
        measures(dataset).PixelSpacing = [15.0 / 297] * 2
        if not volume:
            del dataset.ImagedVolumeWidth, dataset.ImagedVolumeHeight

    for path in paths:
        changed(path, change)
    with pytest.warns(MetadataWarning, match=r"level-\d\.dcm: its Pixel Spacing") as caught:
        slide = open_stored(tmp_path)
    assert len(caught) == 2
    assert [level.size for level in slide.levels] == SIZES
    for found, wanted in zip((slide.pixel_spacings, slide.physical_bounds), right[:2], strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
    for level in range(3):
        assert slide.get_slide_offset((0, 0), level) == pytest.approx(right[2][level])
        np.testing.assert_array_equal(pixels_of(slide, level), expected(SIZES[level]))
    metadata = [pydicom.dcmread(path) for path in paths]
    factors = [level.pixel_spacing for level in dicomslide.Pyramid(metadata, 0.1)]
    np.testing.assert_allclose(factors, [s[::-1] for s in right[0]], rtol=1e-6)


def test_a_crop_of_the_base_keeps_its_spacing(tmp_path):
    """Half as large, as fine, and lying in the middle: what it covers says that it is a part."""
    base = SlideGeometry((20.0, 40.0), (0.0, -1.0), (-1.0, 0.0), (0.01, 0.01), (100, 120))
    part = dataclasses.replace(base, origin=(19.75, 39.7), shape=(50, 60))
    write(tmp_path / "whole.dcm", shape=(100, 120), geometry=base, instance_number=1)
    write(tmp_path / "part.dcm", shape=(50, 60), geometry=part, instance_number=2)
    slide = open_stored(tmp_path)
    assert slide.pixel_spacings == ((0.01, 0.01), (0.01, 0.01))
    assert slide.get_slide_offset((3, 7), 1) == pytest.approx((19.72, 39.63))
    # offsets are pixels of the base: the part begins at its pixel (25, 30)
    np.testing.assert_array_equal(slide.get_image_region((25, 30), 1, (50, 60)), expected((50, 60)))


@pytest.mark.parametrize("volume", [(0.14, 0.05), (140.0, 50.0)], ids=["mm", "µm"])
def test_swapped_spacing(tmp_path, volume):
    """50 rows of 1 µm and 70 columns of 2 µm."""
    geometry = SlideGeometry((10.0, 20.0), (0.0, -1.0), (-1.0, 0.0), (0.001, 0.002), SHAPE)

    def change(dataset: pydicom.Dataset) -> None:
        measures(dataset).PixelSpacing = ["0.002", "0.001"]
        dataset.ImagedVolumeWidth, dataset.ImagedVolumeHeight = volume

    path = write(tmp_path / "image.dcm", geometry=geometry, change=change)
    with pytest.warns(MetadataWarning, match=r"image\.dcm: its Pixel Spacing, \(0\.002, 0\.001\)"):
        slide = open_stored(path)
    assert slide.pixel_spacings == ((0.002, 0.001),)
    assert slide.get_slide_offset((3, 7), 0) == pytest.approx((9.997, 19.986))
    assert dicomslide.get_image_pixel_spacing(slide.metadata) == (0.001, 0.002)


@pytest.mark.parametrize("volume", [(0.07, 0.1), (15.0, 15.0), (None, None)])
def test_anisotropic_spacing_that_nothing_contradicts_is_taken(tmp_path, volume):
    """Of which the volume is right, a default that fits neither way, or absent."""
    geometry = SlideGeometry((10.0, 20.0), (0.0, -1.0), (-1.0, 0.0), (0.002, 0.001), SHAPE)
    change = setting(ImagedVolumeWidth=volume[0], ImagedVolumeHeight=volume[1])
    slide = open_stored(write(tmp_path / "image.dcm", geometry=geometry, change=change))
    assert slide.pixel_spacings == ((0.001, 0.002),)


def test_a_part_that_covers_less_than_its_matrix_keeps_its_spacing(tmp_path):
    """Of the base's spacing, with half as many pixels, sparsely imaged: 0.1 mm of 0.6."""
    base = SlideGeometry((20.0, 40.0), (0.0, -1.0), (-1.0, 0.0), (0.01, 0.01), (100, 120))
    part = dataclasses.replace(base, origin=(19.75, 39.7), shape=(50, 60))
    covered = setting(ImagedVolumeWidth=0.1, ImagedVolumeHeight=0.1)
    write(tmp_path / "whole.dcm", shape=(100, 120), geometry=base, instance_number=1)
    write(tmp_path / "part.dcm", shape=(50, 60), geometry=part, instance_number=2, change=covered)
    slide = open_stored(tmp_path)
    assert slide.pixel_spacings == ((0.01, 0.01), (0.01, 0.01))


def test_a_level_that_is_turned_is_not_as_wide_as_the_base(tmp_path):
    """1 mm along X and 2 mm along Y, of 20 × 20 pixels, whose rows run along X, not along Y."""
    base = SlideGeometry((20.0, 40.0), (0.0, -1.0), (-1.0, 0.0), (0.01, 0.01), (100, 200))
    turned = SlideGeometry((19.03, 39.955), (1.0, 0.0), (0.0, -1.0), (0.1, 0.05), (20, 20))
    absent = setting(ImagedVolumeWidth=..., ImagedVolumeHeight=...)
    write(tmp_path / "base.dcm", shape=(100, 200), geometry=base, instance_number=1, change=absent)
    write(
        tmp_path / "turned.dcm", shape=(20, 20), geometry=turned, instance_number=2, change=absent
    )
    slide = open_stored(tmp_path)
    assert slide.pixel_spacings == ((0.01, 0.01), (0.05, 0.1))  # along a row, along a column


def test_ratios_of_levels_are_no_integers(tmp_path):
    """As 2967 → 1483 → 741: offsets are floored, millimetres are each level's own."""
    sizes = [(105, 297), (52, 148), (26, 74)]
    large_pyramid(tmp_path, sizes, 0.297)
    slide = open_stored(tmp_path)
    assert slide.total_pixel_matrix_dimensions == tuple(sizes)
    assert slide.downsampling_factors[2] == pytest.approx((105 / 26 + 297 / 74) / 2)
    region = slide.get_image_region((100, 290), 2, (2, 2))
    row, column = 100 * 26 // 105, 290 * 74 // 297
    assert (row, column) == (24, 72)
    np.testing.assert_array_equal(
        region, position_values(row + np.arange(2), column + np.arange(2))
    )
    for level in range(3):
        x, y = slide.get_slide_offset((0, 0), level)
        spacing = slide.pixel_spacings[level]
        assert x + spacing[1] / 2 == pytest.approx(20.0005, abs=1e-9)
        assert y + spacing[0] / 2 == pytest.approx(40.0005, abs=1e-9)


@pytest.mark.parametrize("flavor", ["LABEL", "OVERVIEW"])
def test_a_label_without_spacing_has_rows_and_columns(tmp_path, flavor):
    pyramid(tmp_path)

    def change(dataset: pydicom.Dataset) -> None:
        del measures(dataset).PixelSpacing, dataset.ImagedVolumeWidth, dataset.ImagedVolumeHeight
        del dataset.TotalPixelMatrixOriginSequence, dataset.FrameOfReferenceUID

    write(tmp_path / "other.dcm", flavor=flavor, instance_number=9, change=change)
    slide = open_stored(tmp_path)
    with pytest.warns(MetadataWarning, match=r"other\.dcm: no Pixel Spacing"):
        tree = slide.to_datatree(associated=True)
    image = tree[flavor.lower()].image
    assert image.dims == ("row", "column", "sample")
    np.testing.assert_array_equal(image, expected())
    assert tree["level_0"].image.dims == ("y", "x", "sample")


# -- 16: what is absent ----------------------------------------------------------------------

ABSENT = [
    "OpticalPathSequence", "FrameOfReferenceUID", "ImageType", "DimensionOrganizationType",
    "DimensionOrganizationSequence", "TotalPixelMatrixFocalPlanes", "NumberOfOpticalPaths",
    "ContainerIdentifier", "NumberOfFrames", "SpecimenDescriptionSequence", "ImagedVolumeWidth",
    "ImagedVolumeHeight", "ImagedVolumeDepth", "PatientID", "StudyInstanceUID", "Manufacturer",
    "PlanarConfiguration", "BitsStored", "HighBit", "SamplesPerPixel", "PixelRepresentation",
    "SharedFunctionalGroupsSequence", "TotalPixelMatrixOriginSequence", "InstanceNumber",
]  # fmt: skip


@pytest.mark.parametrize("keyword", [*ABSENT, "all"])
@pytest.mark.filterwarnings("ignore:.*:dicomslide.MetadataWarning")
def test_what_is_absent_does_not_keep_a_slide_closed(tmp_path, keyword):
    keywords = ABSENT if keyword == "all" else [keyword]
    for path in pyramid(tmp_path):
        changed(path, setting(**dict.fromkeys(keywords, ...)))
    slide = dicomslide.open_slide(tmp_path)
    assert slide.num_levels == 2
    assert [channel.identifier for channel in slide.channels] == ["1"]
    for level, shape in enumerate(((60, 80), (30, 40))):
        stored = expected(shape)
        assert np.abs(pixels_of(slide, level).astype(int) - stored).max() <= 1  # sRGB to sRGB
    tree = slide.to_datatree()
    assert tree["level_1"].image.size == 30 * 40 * 3
    if "TotalPixelMatrixOriginSequence" not in keywords:
        assert slide.get_slide_offset((0, 0), 0) == pytest.approx((18.0, 32.0))
        assert slide.pixel_spacings[1] == pytest.approx((0.001, 0.001))
    else:
        with pytest.raises(MetadataError, match=r"no position on the slide|no Pixel Spacing"):
            slide.get_slide_offset((0, 0), 0)
    if "FrameOfReferenceUID" in keywords:
        with pytest.raises(MetadataError, match="no Frame of Reference UID"):
            slide.frame_of_reference_uid  # noqa: B018


def test_absent_counts_are_those_of_the_frames(tmp_path):
    """Two paths and three planes: 72 frames on 12 tiles."""
    options = dict(samples=1, bits=16, optical_paths=("a", "b"), planes=(5.0, 7.0, 9.0))
    absent = setting(TotalPixelMatrixFocalPlanes=..., NumberOfOpticalPaths=...)
    slide = open_stored(write(tmp_path / "image.dcm", **options, change=absent))
    assert slide.focal_plane_offsets == (5.0, 7.0, 9.0)
    for channel, plane in ((0, 0), (1, 0), (0, 2), (1, 2)):
        np.testing.assert_array_equal(
            pixels_of(slide, channel_index=channel, focal_plane_index=plane),
            expected(SHAPE, channel, plane, samples=1, dtype=np.uint16),
        )
    change = setting(NumberOfFrames=...)
    slide = open_stored(write(tmp_path / "frames.dcm", **options, change=change))
    np.testing.assert_array_equal(
        pixels_of(slide, channel_index=1, focal_plane_index=2),
        expected(SHAPE, 1, 2, samples=1, dtype=np.uint16),
    )


# -- 17: invalid values ----------------------------------------------------------------------

LONG_UID = "1.2.826.0.1.3680043.10.1338." + "9" * 37


@pytest.mark.parametrize(
    "values",
    [
        dict(SOPInstanceUID=LONG_UID),
        dict(SeriesInstanceUID=LONG_UID, FrameOfReferenceUID=LONG_UID),
        dict(StudyDate="2021-01-07", AcquisitionDateTime="2021-01-07T12:00"),
        dict(StudyInstanceUID=""),
        dict(FrameOfReferenceUID="", ContainerIdentifier=""),
        dict(SOPInstanceUID="01.002.not-a-uid"),
        dict(PatientName="a" * 70, ContainerIdentifier="container " * 9),
        dict(PatientBirthDate="unknown", StudyTime="noon", PatientSex="X Y"),
    ],
    ids=lambda values: ", ".join(values),
)
def test_invalid_values_do_not_keep_a_slide_closed(tmp_path, values):
    """Without warnings of pydicom's, which are errors in these tests."""
    assert len(LONG_UID) == 65
    path = write(tmp_path / "image.dcm", change=setting(**values))
    slide = open_stored(path)
    for keyword, value in values.items():
        assert str(slide.metadata.get(keyword)) == value.strip()
    np.testing.assert_array_equal(pixels_of(slide), expected())
    image = slide.to_dataset().image
    np.testing.assert_array_equal(image, np.rot90(expected(), -1))
    assert slide == open_stored(path)


def test_images_of_one_uid_are_told_apart(tmp_path):
    """Series and SOP Instance UID are the same, of every image of the slide."""
    paths = write_slide(
        tmp_path, shape=(60, 80), tile_shape=(32, 32), drawing="position",
        downsamples=(1, 2, 4), transfer_syntax_uid=NATIVE,
    )  # fmt: skip
    uid = pydicom.dcmread(paths[0], stop_before_pixels=True).SeriesInstanceUID
    for path in paths:
        changed(path, setting(SOPInstanceUID=uid))
    with pytest.warns(MetadataWarning, match="is another image: both are used") as caught:
        slide = open_stored(tmp_path)
    assert len(caught) == 4
    assert slide.num_levels == 3
    for level in range(3):
        np.testing.assert_array_equal(pixels_of(slide, level), expected((60 >> level, 80 >> level)))
    assert "label.dcm" in slide.label_images[0].name
    assert "overview.dcm" in slide.overview_images[0].name
    assert len({image.get_total_pixel_matrix() for image in slide.get_volume_images()}) == 3
    sparse = pydicom.dcmread(paths[1])
    del sparse.filename
    with pytest.warns(MetadataWarning), pytest.raises(MetadataError, match="no file holds"):
        dicomslide.Slide(FileStore.open(tmp_path), [sparse])


# -- 19: series, studies ---------------------------------------------------------------------


@pytest.mark.parametrize("absent", [(), ("FrameOfReferenceUID",), ("ContainerIdentifier",)])
def test_a_slide_over_several_series(tmp_path, absent):
    """Each image in a series of its own."""
    paths = write_slide(
        tmp_path, shape=(60, 80), tile_shape=(32, 32), drawing="position",
        downsamples=(1, 2, 4), transfer_syntax_uid=NATIVE,
    )  # fmt: skip
    for number, path in enumerate(paths):
        values = dict(SeriesInstanceUID=f"1.2.{number}", **dict.fromkeys(absent, ...))
        changed(path, setting(**values))
    slide = open_stored(tmp_path)
    assert slide.num_levels == 3
    assert len(slide.label_images) == len(slide.overview_images) == 1
    for level in range(3):
        np.testing.assert_array_equal(pixels_of(slide, level), expected((60 >> level, 80 >> level)))


def test_scans_of_one_container_share_their_label(tmp_path):
    """In one study: each scan has a series and a frame of reference, one has the label."""
    one = write_slide(
        tmp_path / "one", shape=(60, 80), tile_shape=(32, 32), downsamples=(1, 2),
    )  # fmt: skip
    two = write_slide(
        tmp_path / "two", shape=(50, 70), tile_shape=(32, 32), downsamples=(1, 2),
        slide_number=2, associated=False,
    )  # fmt: skip
    first = pydicom.dcmread(one[0], stop_before_pixels=True)
    for path in two:
        changed(path, setting(StudyInstanceUID=first.StudyInstanceUID))
    for path in one[2:]:
        changed(path, setting(SeriesInstanceUID="1.2.3"))
    with pytest.raises(dicomslide.AmbiguousSlideError, match="2 slides"):
        open_stored(tmp_path)
    for paths, size in ((one, (60, 80)), (two, (50, 70))):
        uid = pydicom.dcmread(paths[0], stop_before_pixels=True).FrameOfReferenceUID
        slide = dicomslide.open_slide(tmp_path, frame_of_reference_uid=uid)
        assert slide.size == size
        assert slide.num_levels == 2
        assert [image.name for image in slide.label_images] == [str(one[2])]
        assert [image.name for image in slide.overview_images] == [str(one[3])]


def test_a_scan_with_a_label_keeps_its_own(tmp_path):
    for number in (1, 2):
        write_slide(
            tmp_path / str(number), shape=(60, 80), tile_shape=(32, 32), downsamples=(1,),
            slide_number=number,
        )  # fmt: skip
    uid = open_stored(tmp_path / "2").frame_of_reference_uid
    slide = dicomslide.open_slide(tmp_path, frame_of_reference_uid=uid)
    assert [image.name for image in slide.label_images] == [str(tmp_path / "2" / "label.dcm")]


# -- 20: thumbnail ---------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("a.dcm", "b.dcm"), ("b.dcm", "a.dcm")])
def test_a_thumbnail_of_the_size_of_the_base(tmp_path, names):
    volume, thumbnail = (tmp_path / name for name in names)
    write(volume, instance_number=1)
    write(thumbnail, instance_number=2, flavor="THUMBNAIL", tile=(50, 70))
    slide = open_stored(tmp_path)
    assert slide.num_levels == 1
    assert slide.levels[0].image.name == str(volume)
    assert [image.name for image in slide.thumbnail_images] == [str(thumbnail)]
    np.testing.assert_array_equal(pixels_of(slide), expected())
    alone = open_stored(thumbnail)
    assert alone.num_levels == 1
    np.testing.assert_array_equal(pixels_of(alone), expected())
