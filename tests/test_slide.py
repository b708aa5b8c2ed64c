"""Slides: which images belong together, levels, regions, and what goes wrong."""

from __future__ import annotations

import math
import re
import shutil

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

import dicomslide
from dicomslide.testing import position_values, write_slide

EXPLICIT = "1.2.840.10008.1.2.1"
SMALL = dict(
    shape=(60, 80),
    downsamples=(1, 2),
    tile_shape=(32, 32),
    drawing="position",
    transfer_syntax_uid=EXPLICIT,
    associated=False,
)


def changed(path, change):
    """Rewrite a file with its data set changed."""
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(path)


def test_levels_and_what_they_share(tissue_slide):
    slide = dicomslide.open_slide(tissue_slide)
    assert slide.num_levels == 3
    assert slide.total_pixel_matrix_dimensions == ((600, 900), (300, 450), (150, 225))
    assert slide.downsampling_factors == (1.0, 2.0, 4.0)
    assert slide.size == (600, 900)
    assert (slide.num_channels, slide.num_focal_planes) == (1, 1)
    assert slide.container_identifier == "DS-0001"
    assert [image.flavor for image in slide.label_images] == ["LABEL"]
    assert [image.flavor for image in slide.overview_images] == ["OVERVIEW"]
    assert len(slide.get_volume_images()) == 3
    assert "3 levels of 600 × 900" in repr(slide)
    with pytest.raises(
        dicomslide.LevelNotFoundError, match=r"no level 3; there are 0 \(600 × 900\), 1"
    ):
        slide.get_image_region((0, 0), 3, (5, 5))
    with pytest.raises(IndexError):
        slide.level(-1)
    with pytest.raises(ValueError, match="no channel 1"):
        slide.get_volume_images(1)


def test_regions_are_exactly_as_large_as_asked_for(position_slide):
    slide = dicomslide.open_slide(position_slide, correct_color=False)
    whole = position_values(np.arange(130), np.arange(170))
    region = slide.get_image_region((120, -5), 0, (20, 30))
    expected = np.full((20, 30, 3), 255, np.uint8)
    expected[:10, 5:] = whole[120:, :25]
    np.testing.assert_array_equal(region, expected)
    # offsets are those of the base level; level 1 has half of its rows and columns
    region = slide.get_image_region((21, 33), 1, (4, 5))
    np.testing.assert_array_equal(region, position_values(np.arange(10, 14), np.arange(16, 21)))
    assert slide.get_image_region((500, 500), 0, (3, 4)).tolist() == [[[255] * 3] * 4] * 3
    assert slide.get_image_region((0, 0), 0, (0, 4)).shape == (0, 4, 3)
    with pytest.raises(ValueError, match=r"size \(-1, 4\): expected two integers from 0 on"):
        slide.get_image_region((0, 0), 0, (-1, 4))
    with pytest.raises(dicomslide.MemoryLimitError):
        slide.get_image_region((0, 0), 0, (10**7, 10**7))


def test_offsets_and_sizes_are_integers_of_any_type(position_slide):
    slide = dicomslide.open_slide(position_slide)
    image = slide.get_volume_images()[0]
    expected = slide.get_image_region((120, 160), 1, (3, 4))
    # products of the offset and the size of a level don't fit into a byte
    small = np.array([120, 160], np.uint8), np.array([3, 4], np.uint8)
    np.testing.assert_array_equal(slide.get_image_region(small[0], 1, small[1]), expected)
    for offset, size in (((0.5, 0), (3, 4)), ((0, 0), (2.5, 4))):
        with pytest.raises(TypeError, match="two integers"):
            slide.get_image_region(offset, 0, size)
        with pytest.raises(TypeError, match="two integers"):
            image.get_image_region(offset, size)


def test_worked_slide_regions_through_the_api(tmp_path):
    """Worked example 1, where M[r, c] is read off the position drawing."""
    write_slide(
        tmp_path,
        shape=(20, 30),
        downsamples=(1,),
        tile_shape=(8, 8),
        origin=(10, 20),
        spacing=(0.001, 0.001),
        drawing="position",
        samples=1,
        bits=16,
        transfer_syntax_uid=EXPLICIT,
        associated=False,
    )
    slide = dicomslide.open_slide(tmp_path)

    def numbered(region):
        """From 257 r + c to 100 r + c + 1, background 0 apart."""
        row, column = np.divmod(region[..., 0].astype(int), 257)
        return 100 * row + column + 1

    region = slide.get_slide_region((9.9845, 19.9735), 0, (0.005, 0.004))
    expected = np.array([[1524, 1424, 1324, 1224, 1124]]) + np.arange(4)[:, None]
    np.testing.assert_array_equal(numbered(region), expected)
    region = slide.get_slide_region((9.9985, 19.9985), 0, (0.004, 0.004))
    np.testing.assert_array_equal(numbered(region)[2:, :2], [[101, 1], [102, 2]])
    assert not region[:2].any()
    assert not region[:, 2:].any()
    image = slide.get_volume_images()[0]
    assert image.get_slide_offset((3, 7)) == pytest.approx((9.997, 19.993))
    assert image.get_pixel_indices((9.997, 19.993)) == (3, 7)
    assert image.physical_size == pytest.approx((0.020, 0.030))
    assert image.physical_offset == (10, 20)
    assert image.get_rotation() == pytest.approx(-90)
    points = image.map_pixel_indices_to_slide_coordinates(np.array([[3, 7], [0, 0]]))
    np.testing.assert_allclose(points, [[9.997, 19.993, 0], [10, 20, 0]])
    np.testing.assert_array_equal(
        image.map_slide_coordinates_to_pixel_indices(points), [[3, 7], [0, 0]]
    )
    with pytest.raises(ValueError, match=r"shape \(n, 2\)"):
        image.map_pixel_indices_to_slide_coordinates(np.zeros((2, 3)))


def test_focal_planes_and_channels_by_name(stack_slide):
    slide = dicomslide.open_slide(stack_slide)
    image = slide.get_volume_images()[0]
    assert slide.focal_plane_offsets == image.focal_plane_offsets == (5.0, 7.0, 9.0)
    assert image.get_focal_plane_index(7.0) == 1
    assert image.get_focal_plane_index(7.9) == 1
    assert image.get_focal_plane_offset(2) == 9.0
    for wrong in (3.5, 10.5, float("nan")):
        with pytest.raises(ValueError, match="no focal plane"):
            image.get_focal_plane_index(wrong)
    for index in (-1, 3):
        with pytest.raises(ValueError, match="no focal plane"):
            image.get_focal_plane_offset(index)
    assert image.get_channel_identifier(1) == "FITC"
    assert image.get_channel_index("DAPI") == 0
    for wrong in (-1, 2):
        with pytest.raises(ValueError, match="no channel"):
            image.get_channel_identifier(wrong)
    with pytest.raises(ValueError, match=r"\['DAPI', 'FITC'\]"):
        image.get_channel_index("TRITC")
    region = slide.get_image_region((0, 0), 0, (4, 4), channel_index=1, focal_plane_index=2)
    expected = position_values(np.arange(4), np.arange(4), 1, 2, samples=1, dtype=np.uint16)
    np.testing.assert_array_equal(region, expected)


@pytest.mark.parametrize("sparse", [False, True])
def test_stacks_in_files_of_their_own_are_one_slide(tmp_path, sparse):
    """One file for each optical path and focal plane, as many scanners write them."""
    for number, (path, z) in enumerate([("a", 4.0), ("a", 6.0), ("b", 4.0), ("b", 6.0)]):
        (file,) = write_slide(
            tmp_path / "x",
            **SMALL | dict(downsamples=(1,), drawing="position", samples=1, bits=16),
            optical_paths=(path,),
            planes=(z,),
            sparse=sparse,
        )
        changed(file, lambda ds, n=number: setattr(ds, "SOPInstanceUID", f"1.2.3.{n + 1}"))
        file.rename(tmp_path / f"{number}.dcm")
    slide = dicomslide.open_slide(tmp_path)
    assert slide.num_levels == 1
    assert slide.focal_plane_offsets == (4.0, 6.0)
    assert [channel.identifier for channel in slide.channels] == ["a", "b"]
    assert slide.to_dataset().image.shape == (2, 2, 80, 60)
    assert "3.dcm" in slide.get_volume_images(1, 1)[0].name


def test_several_slides_are_listed_and_chosen(tmp_path):
    write_slide(tmp_path / "one", **SMALL)
    write_slide(tmp_path / "two", **SMALL, slide_number=2, container_id="DS-0002")
    with pytest.raises(dicomslide.AmbiguousSlideError) as error:
        dicomslide.open_slide(tmp_path)
    assert "2 slides" in str(error.value)
    assert "container_id=" in str(error.value)
    assert "'DS-0001'" in str(error.value)
    assert "'DS-0002'" in str(error.value)
    slide = dicomslide.open_slide(tmp_path, container_id="DS-0002")
    assert slide.container_identifier == "DS-0002"
    assert slide.num_levels == 2
    with pytest.raises(dicomslide.NotSlideError, match=r"there are \['DS-0001', 'DS-0002'\]"):
        dicomslide.open_slide(tmp_path, container_id="DS-0003")


def test_a_list_of_slides_gives_the_size_of_each_ones_largest_image(tmp_path):
    for number in (1, 2):
        write_slide(tmp_path / str(number), shape=(1024, 1280), downsamples=(1, 2),
                    slide_number=number, container_id=str(number))  # fmt: skip
    # an overview has more rows, and fewer pixels
    with pytest.raises(dicomslide.AmbiguousSlideError, match="up to 1024 × 1280 pixels"):
        dicomslide.open_slide(tmp_path)


@pytest.mark.parametrize("open_", [dicomslide.open_slide, dicomslide.open_slides])
@pytest.mark.parametrize("path", ["", ["slide", ""]])
def test_an_empty_path_is_not_the_current_folder(tmp_path, monkeypatch, open_, path):
    write_slide(tmp_path / "slide", **SMALL)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(dicomslide.NotDicomError, match="an empty path"):
        open_(path)
    assert open_(".")


def test_two_scans_of_one_container_are_two_slides(tmp_path):
    write_slide(tmp_path / "one", **SMALL)
    write_slide(tmp_path / "two", **SMALL, slide_number=2)
    with pytest.raises(dicomslide.AmbiguousSlideError, match="frame_of_reference_uid="):
        dicomslide.open_slide(tmp_path)
    uid = dicomslide.open_slide(tmp_path / "two").frame_of_reference_uid
    slide = dicomslide.open_slide(tmp_path, frame_of_reference_uid=uid)
    assert slide.frame_of_reference_uid == uid


def test_labels_with_a_frame_of_reference_of_their_own_belong_to_their_container(tmp_path):
    paths = write_slide(tmp_path, **SMALL | dict(associated=True))
    changed(paths[-2], lambda ds: setattr(ds, "FrameOfReferenceUID", "1.2.3"))

    def without(dataset):
        del dataset.FrameOfReferenceUID

    changed(paths[-1], without)
    slide = dicomslide.open_slide(tmp_path)
    assert len(slide.label_images) == len(slide.overview_images) == 1
    with pytest.raises(dicomslide.MetadataError, match="no Frame of Reference"):
        slide.overview_images[0].frame_of_reference_uid  # noqa: B018


@pytest.mark.parametrize("container", ["DS-0002", None])
def test_a_label_of_another_slide_is_left_out(tmp_path, container):
    """Of another container; or of none that it names, in another study."""
    paths = write_slide(tmp_path / "1", **SMALL)
    others = write_slide(tmp_path / "2", **SMALL | dict(associated=True, slide_number=2))
    label = next(path for path in others if path.stem == "label")
    changed(label, lambda dataset: setattr(dataset, "ContainerIdentifier", container))
    with pytest.warns(dicomslide.MetadataWarning, match=r"left out: .*label\.dcm: LABEL of none"):
        slide = dicomslide.open_slide([*paths, label])
    assert slide.label_images == ()


def test_images_that_lack_frame_of_reference_or_container_join_their_slide(tmp_path):
    paths = write_slide(tmp_path, **SMALL)

    def without(dataset):
        del dataset.FrameOfReferenceUID

    changed(paths[1], without)
    assert dicomslide.open_slide(tmp_path).num_levels == 2

    def without_both(dataset):
        del dataset.ContainerIdentifier

    changed(paths[1], without_both)
    assert dicomslide.open_slide(tmp_path).num_levels == 2


def test_a_base_that_lacks_frame_of_reference_or_container_is_of_its_slide(tmp_path):
    paths = write_slide(tmp_path, **SMALL)
    other = pydicom.dcmread(paths[1])
    for keyword in ("FrameOfReferenceUID", "ContainerIdentifier"):
        changed(paths[0], lambda ds, keyword=keyword: ds.__delattr__(keyword))
        slide = dicomslide.open_slide(tmp_path)
        assert slide.num_levels == 2
        assert slide.frame_of_reference_uid == other.FrameOfReferenceUID
        assert slide.container_identifier == slide.to_datatree().name == other.ContainerIdentifier
        attributes = slide.to_datatree().attrs
        assert attributes["frame_of_reference_uid"] == other.FrameOfReferenceUID
        assert attributes["container_identifier"] == other.ContainerIdentifier


def test_slides_that_name_neither_frame_nor_container_are_told_apart_by_series(tmp_path):
    def nameless(dataset):
        del dataset.FrameOfReferenceUID
        del dataset.ContainerIdentifier

    for number, shape in ((1, (60, 80)), (2, (120, 160))):
        options = SMALL | dict(shape=shape, slide_number=number)
        for path in write_slide(tmp_path / str(number), **options):
            changed(path, nameless)
    with pytest.raises(dicomslide.AmbiguousSlideError, match="2 slides"):
        dicomslide.open_slide(tmp_path)
    assert dicomslide.open_slide(tmp_path / "1").num_levels == 2


def test_a_concatenation_uid_that_lies_joins_nothing(tmp_path):
    """One UID on every image of the slide, with numbers that contradict each other."""
    paths = write_slide(tmp_path, **SMALL | dict(associated=True))
    for path in paths:

        def bogus(dataset):
            dataset.ConcatenationUID = "1.2.3"
            dataset.ConcatenationFrameOffsetNumber = 0

        changed(path, bogus)
    slide = dicomslide.open_slide(tmp_path, correct_color=False)
    assert slide.num_levels == 2
    assert len(slide.label_images) == len(slide.overview_images) == 1
    expected = position_values(np.arange(60), np.arange(80))
    np.testing.assert_array_equal(slide.get_image_region((0, 0), 0, (60, 80)), expected)


def test_two_images_of_one_place_are_ambiguous(tmp_path):
    paths = write_slide(tmp_path, **SMALL)
    shutil.copy(paths[0], tmp_path / "again.dcm")
    changed(tmp_path / "again.dcm", lambda ds: setattr(ds, "SOPInstanceUID", "1.2.3"))
    with pytest.raises(dicomslide.AmbiguousSlideError, match=r"again\.dcm and .*level-0\.dcm"):
        dicomslide.open_slide(tmp_path)


def test_a_thumbnail_of_the_size_of_a_level_is_associated(tmp_path):
    paths = write_slide(tmp_path, **SMALL)
    shutil.copy(paths[1], tmp_path / "thumbnail.dcm")

    def as_thumbnail(dataset):
        dataset.SOPInstanceUID = "1.2.3"
        dataset.ImageType = ["DERIVED", "PRIMARY", "THUMBNAIL", "RESAMPLED"]

    changed(tmp_path / "thumbnail.dcm", as_thumbnail)
    slide = dicomslide.open_slide(tmp_path)
    assert slide.num_levels == 2
    assert [image.flavor for image in slide.thumbnail_images] == ["THUMBNAIL"]
    assert "thumbnail" in slide.to_datatree(associated=True).children


def test_spacing_of_the_base_on_every_level_does_not_merge_levels(tmp_path):
    paths = write_slide(tmp_path, **SMALL)
    spacing = pydicom.dcmread(paths[0]).SharedFunctionalGroupsSequence[0].PixelMeasuresSequence

    def wrong(dataset):
        dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence = spacing

    changed(paths[1], wrong)
    with pytest.warns(dicomslide.MetadataWarning, match=r"level-1\.dcm: its Pixel Spacing"):
        slide = dicomslide.open_slide(tmp_path)
    assert slide.num_levels == 2


def test_an_image_of_another_place_is_no_level(tmp_path):
    paths = write_slide(tmp_path, **SMALL)

    def away(dataset):
        dataset.TotalPixelMatrixOriginSequence[0].XOffsetInSlideCoordinateSystem = "3.5"

    changed(paths[1], away)
    with pytest.warns(dicomslide.MetadataWarning, match=r"2 pyramids are on this glass") as said:
        slide = dicomslide.open_slide(tmp_path)
    assert slide.num_levels == 1
    assert "pyramid=1: 30 × 40 pixels, 1 level" in str(said[0].message)
    assert dicomslide.open_slide(tmp_path, pyramid=1).size == (30, 40)


@pytest.mark.parametrize(
    ("width", "scale"), [(0.04, 1), (40.0, 1000)], ids=["millimetres", "micrometres"]
)
def test_absent_spacing_is_derived_from_the_imaged_volume(tmp_path, width, scale):
    paths = write_slide(tmp_path, **SMALL)

    def without(dataset):
        dataset.ImagedVolumeWidth, dataset.ImagedVolumeHeight = width, width * 3 / 4
        if scale == 1000:  # such writers give micrometres of a slide that is large in them
            dataset.ImagedVolumeWidth, dataset.ImagedVolumeHeight = 400.0, 300.0
        del dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence

    changed(paths[0], without)
    slide = dicomslide.open_slide(paths[0])
    spacing = 0.0005 if scale == 1 else 0.005
    assert slide.levels[0].image.geometry.spacing == pytest.approx((spacing, spacing))


def test_absent_spacing_of_a_level_is_derived_from_the_base(tmp_path):
    paths = write_slide(tmp_path, **SMALL)

    def without(dataset):
        del dataset.ImagedVolumeWidth
        del dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence

    changed(paths[1], without)
    slide = dicomslide.open_slide(tmp_path)
    assert slide.levels[1].image.geometry.spacing == pytest.approx((0.001, 0.001))


@pytest.mark.parametrize(
    "keyword",
    ["OpticalPathSequence", "ImageType", "DimensionOrganizationType", "TotalPixelMatrixFocalPlanes",
     "NumberOfOpticalPaths", "ContainerIdentifier", "ImagedVolumeWidth", "FrameOfReferenceUID",
     "SpecimenDescriptionSequence", "ImagedVolumeDepth", "StudyInstanceUID"],
)  # fmt: skip
def test_what_real_files_lack_does_not_keep_them_closed(tmp_path, keyword):
    paths = write_slide(tmp_path, **SMALL)
    for path in paths:
        changed(path, lambda ds: ds.__delattr__(keyword))
    slide = dicomslide.open_slide(tmp_path, correct_color=False)
    assert slide.num_levels == 2
    expected = position_values(np.arange(60), np.arange(80))
    np.testing.assert_array_equal(slide.get_image_region((0, 0), 0, (60, 80)), expected)
    assert slide.to_datatree()["level_1"].image.shape == (40, 30, 3)


@pytest.mark.parametrize(
    ("absent", "works"),
    [("origin", {"pixel_spacings", "physical_size", "get_rotation"}),
     ("orientation", {"pixel_spacings"}),
     ("spacing", {"physical_offset", "get_rotation"})],
)  # fmt: skip
def test_what_needs_no_missing_value_works_without_it(tmp_path, absent, works):
    paths = write_slide(
        tmp_path, **SMALL | dict(spacing=(0.002, 0.001), orientation=(0, 1, 0, 1, 0, 0))
    )

    def without(dataset):
        if absent == "origin":
            del dataset.TotalPixelMatrixOriginSequence
        elif absent == "orientation":
            del dataset.ImageOrientationSlide
        else:
            del dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
            del dataset.ImagedVolumeWidth

    for path in paths:
        changed(path, without)
    slide = dicomslide.open_slide(tmp_path)
    image = slide.get_volume_images()[0]
    # rows of 80 pixels run along Y, columns of 60 along X
    for name, get, expected in (
        ("pixel_spacings", lambda: slide.pixel_spacings, ((0.001, 0.002), (0.002, 0.004))),
        ("physical_size", lambda: slide.physical_size, pytest.approx((0.12, 0.08))),
        ("physical_offset", lambda: slide.physical_offset, (18.0, 32.0)),
        ("get_rotation", image.get_rotation, pytest.approx(-270)),
    ):
        if name in works:
            assert get() == expected
        else:
            with pytest.raises(dicomslide.MetadataError, match=image.name):
                get()


def test_a_mirror_image_without_origin_is_warned_of(tmp_path):
    write_slide(tmp_path, **SMALL | dict(orientation=(0, -1, 0, 1, 0, 0), downsamples=(1,)))
    changed(tmp_path / "level-0.dcm", lambda ds: ds.__delattr__("TotalPixelMatrixOriginSequence"))
    with pytest.warns(dicomslide.MetadataWarning, match="that of a mirror image"):
        dicomslide.open_slide(tmp_path)


def test_bogus_counts_on_single_images_are_worked_around(tmp_path):
    paths = write_slide(tmp_path, **SMALL | dict(downsamples=(1,)))
    changed(paths[0], lambda ds: setattr(ds, "TotalPixelMatrixFocalPlanes", 3))
    slide = dicomslide.open_slide(tmp_path, correct_color=False)
    assert slide.num_focal_planes == 1
    expected = position_values(np.arange(60), np.arange(80))
    np.testing.assert_array_equal(slide.get_image_region((0, 0), 0, (60, 80)), expected)


def test_invalid_values_are_read_as_they_are(tmp_path):
    """Without pydicom's warnings, which are errors in these tests."""
    (path,) = write_slide(tmp_path, **SMALL | dict(downsamples=(1,)))
    data = path.read_bytes()
    assert data.count(b"20260102") >= 2
    path.write_bytes(data.replace(b"20260102", b"2026-1-2"))
    slide = dicomslide.open_slide(path)
    assert str(slide.metadata.StudyDate) == "2026-1-2"


def test_a_tile_larger_than_the_matrix(tmp_path):
    write_slide(tmp_path, **SMALL | dict(shape=(22, 21), downsamples=(1,), tile_shape=(64, 128)))
    slide = dicomslide.open_slide(tmp_path, correct_color=False)
    expected = position_values(np.arange(22), np.arange(21))
    np.testing.assert_array_equal(slide.get_image_region((0, 0), 0, (22, 21)), expected)
    assert slide.to_dataset().image.chunks[:2] == ((21,), (22,))


def test_colour_is_corrected_at_every_door_unless_asked(tmp_path):
    from PIL import ImageCms

    import dicomslide.testing as testing

    swapped = bytearray(testing.srgb_profile())
    at_red, at_blue = swapped.find(b"rXYZ"), swapped.find(b"bXYZ")
    swapped[at_red : at_red + 4], swapped[at_blue : at_blue + 4] = b"bXYZ", b"rXYZ"
    ImageCms.ImageCmsProfile(__import__("io").BytesIO(bytes(swapped)))  # it is a profile
    write_slide(tmp_path, **SMALL, icc_profile=bytes(swapped))
    stored = position_values(np.arange(60), np.arange(80))
    plain = dicomslide.open_slide(tmp_path, correct_color=False)
    corrected = dicomslide.open_slide(tmp_path)
    np.testing.assert_array_equal(plain.get_image_region((0, 0), 0, (60, 80)), stored)
    seen = corrected.get_image_region((0, 0), 0, (60, 80)).astype(int)
    assert np.abs(seen - stored[..., ::-1]).max() <= 2  # red and blue change places
    tree = corrected.to_datatree()["level_0"].image.values
    np.testing.assert_array_equal(tree, np.rot90(seen, -1))


def test_thumbnails_are_upright_and_in_proportion(tmp_path, tissue_slide, stack_slide):
    slide = dicomslide.open_slide(tissue_slide)
    picture = slide.thumbnail(300)
    assert picture.shape == (300, 200, 3)
    from PIL import Image

    upright = Image.fromarray(slide.to_dataset(0).image.values).resize((200, 300), Image.BOX)
    assert np.abs(picture.astype(int) - np.asarray(upright)).mean() < 6
    assert slide.thumbnail(10**6).shape == (900, 600, 3)
    grey = dicomslide.open_slide(stack_slide).thumbnail(70, channel_index=1)
    assert grey.shape == (70, 50)
    assert grey.dtype == np.uint8
    assert (grey.min(), grey.max()) == (0, 255)
    write_slide(tmp_path, **SMALL | dict(spacing=(0.001, 0.0005), downsamples=(1,)))
    with pytest.raises(ValueError, match="no channel"):
        slide.thumbnail(channel_index=3)
    # 60 rows of 1 µm (along X) and 80 columns of 0.5 µm (along Y)
    assert dicomslide.open_slide(tmp_path).thumbnail(60).shape == (40, 60, 3)


@pytest.mark.parametrize("wrong", [None, 1, ("a", "b"), (1.5, 2), (float("nan"), 1), (None, 1)])
def test_places_in_pixels_are_pairs_of_integers(tissue_slide, wrong):
    slide = dicomslide.open_slide(tissue_slide)
    (image, *_) = slide.get_volume_images()
    matrix = image.get_total_pixel_matrix()
    for read in (
        lambda: slide.get_image_region(wrong, 0, (2, 2)),
        lambda: slide.get_image_region((0, 0), 0, wrong),
        lambda: image.get_image_region(wrong, (2, 2)),
        lambda: image.get_image_region((0, 0), wrong),
        lambda: dicomslide.TotalPixelMatrixSampler(matrix, wrong),
    ):
        with pytest.raises(TypeError, match="expected two integers"):
            read()
    if not isinstance(wrong, int | None):
        with pytest.raises(TypeError, match="expected two integers"):
            matrix.get_tile_index(wrong)


@pytest.mark.parametrize("wrong", [(1,), (1, 2, 3), (2**63, 0)])
def test_places_in_pixels_are_two_that_an_array_can_have(tissue_slide, wrong):
    slide = dicomslide.open_slide(tissue_slide)
    for read in (
        lambda: slide.get_image_region(wrong, 0, (2, 2)),
        lambda: slide.get_image_region((0, 0), 0, wrong),
    ):
        with pytest.raises(ValueError, match=re.escape(f"{wrong}: expected two integers")):
            read()


@pytest.mark.parametrize("wrong", [None, 1, ("a", "b"), (None, 1), (1,), (1, 2, 3), (math.nan, 1)])
def test_places_in_mm_are_pairs_of_finite_numbers(tissue_slide, wrong):
    slide = dicomslide.open_slide(tissue_slide)
    metadata = [image.metadata for image in slide.get_volume_images()]
    for ask in (
        lambda: slide.get_slide_region(wrong, 0, (0.1, 0.1)),
        lambda: slide.get_slide_region((16, 29), 0, wrong),
        lambda: slide.get_pixel_indices(wrong, 0),
        lambda: slide.get_slide_offset(wrong, 0),
        lambda: dicomslide.select_image_at_pixel_spacing(metadata, wrong),
    ):
        with pytest.raises((TypeError, ValueError), match=r"expected two (finite )?numbers"):
            ask()


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_no_pixel_lies_where_no_number_says(tissue_slide, wrong):
    slide = dicomslide.open_slide(tissue_slide)
    with pytest.raises(ValueError, match=r"\(16\.0, (nan|inf|-inf)\) mm: expected finite"):
        slide.map_slide_coordinates_to_pixel_indices([[16, 29, 0], [16, wrong, 0]], 0)


def test_options_of_a_slide_are_checked(tissue_slide):
    for wrong in (-1, "a", math.nan):
        with pytest.raises(ValueError, match=f"pyramid_tolerance {wrong!r}: expected mm"):
            dicomslide.open_slide(tissue_slide, pyramid_tolerance=wrong)
    for wrong in (-1, "a", 1.5):
        with pytest.raises(ValueError, match=f"max_frame_cache_size {wrong!r}: expected frames"):
            dicomslide.open_slide(tissue_slide, max_frame_cache_size=wrong)


def test_what_is_no_code_is_no_property_of_a_segment(tissue_slide):
    slide = dicomslide.open_slide(tissue_slide)
    with pytest.raises(TypeError, match=r"'eosin' isn't a code; expected .* Code\('108369006'"):
        slide.find_optical_paths(specimen_stain="eosin")
    with pytest.raises(TypeError, match="'Tumor' isn't a code"):
        dicomslide.does_segment_item_match(Dataset(), property_type="Tumor")


def test_arguments_that_make_no_sense(tissue_slide):
    slide = dicomslide.open_slide(tissue_slide)
    for offset, size in (
        ((float("nan"), 29), (1, 1)),
        ((1, 2), (float("inf"), 1)),
        ((1, 2), (-1, 1)),
    ):
        with pytest.raises(ValueError, match="in mm"):
            slide.get_slide_region(offset, 0, size)
    for size in (0, -5):
        with pytest.raises(ValueError, match="isn't possible"):
            slide.thumbnail(size)
    with pytest.raises(ValueError, match="on_error"):
        dicomslide.open_slide(tissue_slide, on_error="ignore")
    with pytest.raises(TypeError):
        slide.level("1")
    for source in (None, 5, object()):
        with pytest.raises(TypeError, match="can't be opened from"):
            dicomslide.open_slide(source)
    with pytest.raises(IndexError, match="boolean"):
        slide.get_volume_images()[0].get_total_pixel_matrix()[True]


def test_coordinates_are_checked_before_they_are_made(tmp_path):
    write_slide(tmp_path, **SMALL | dict(downsamples=(1,), sparse=True))

    def endless(dataset):
        dataset.TotalPixelMatrixRows = dataset.TotalPixelMatrixColumns = 2**32 - 1

    changed(tmp_path / "level-0.dcm", endless)
    slide = dicomslide.open_slide(tmp_path)
    with (
        dicomslide.set_options(memory_limit_bytes=10**9),
        pytest.raises(dicomslide.MemoryLimitError, match="coordinates"),
    ):
        slide.to_dataset()


def test_a_file_without_uid_does_not_close_a_large_folder(tmp_path):
    (path,) = write_slide(tmp_path, **SMALL | dict(downsamples=(1,)))
    data = path.read_bytes()
    others = tmp_path / "others"
    others.mkdir()
    for number in range(140):  # more than the process keeps open
        uid = pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID.encode()
        new = uid[:-4] + f"{number:04}".encode()
        (others / f"{number}.dcm").write_bytes(data.replace(uid, new).replace(b"VOLUME", b"LABEL "))

    def without(dataset):
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LABEL", "NONE"]

    changed(others / "7.dcm", without)
    raw = (others / "7.dcm").read_bytes()
    at = raw.index(b"\x08\0\x18\0UI")
    length = int.from_bytes(raw[at + 6 : at + 8], "little")
    (others / "7.dcm").write_bytes(raw[: at + 8] + bytes(length) + raw[at + 8 + length :])
    slide = dicomslide.open_slide(tmp_path)
    assert len(slide.label_images) == 140


def test_thumbnail_of_a_slide_with_few_tiles(tmp_path):
    """Most of a matrix of 60,000² pixels is absent, and isn't visited."""
    write_slide(
        tmp_path,
        **SMALL | dict(shape=(512, 512), tile_shape=(256, 256), downsamples=(1,), sparse=True),
        orientation=(1, 0, 0, 0, -1, 0),
    )

    def larger(dataset):
        dataset.TotalPixelMatrixRows = dataset.TotalPixelMatrixColumns = 60_000
        dataset.RecommendedAbsentPixelCIELabValue = [0, 32896, 32896]

    changed(tmp_path / "level-0.dcm", larger)
    picture = dicomslide.open_slide(tmp_path, correct_color=False).thumbnail(600)
    assert picture.shape == (600, 600, 3)
    assert picture[:5, :5, :2].mean() > 60  # 512 pixels of 60,000
    assert not picture[12:].any()
    assert not picture[:, 12:].any()


def test_nothing_to_open(tmp_path, tissue_slide):
    with pytest.raises(FileNotFoundError):
        dicomslide.open_slide(tmp_path / "absent")
    with pytest.raises(dicomslide.NotDicomError, match="no DICOM file"):
        dicomslide.open_slide(tmp_path)
    with pytest.raises(dicomslide.NotDicomError, match="empty list"):
        dicomslide.open_slide([])
    (tmp_path / "text.txt").write_text("not a slide")
    with pytest.raises(dicomslide.NotDicomError, match=r"text\.txt: not a DICOM file"):
        dicomslide.open_slide(tmp_path / "text.txt")
    with pytest.raises(dicomslide.NotSlideError, match="no VOLUME or THUMBNAIL"):
        dicomslide.open_slide(tissue_slide / "label.dcm")


def test_channels_that_lie_differently_are_variables_of_their_own(tmp_path):
    """As one array they would be wrong."""
    grey = SMALL | dict(downsamples=(1,), samples=1, bits=16)
    for name, options in (("a", {}), ("b", {}), ("c", dict(bits=8))):
        (path,) = write_slide(tmp_path / name, **grey | options, optical_paths=(name,))
        changed(path, lambda ds, n=name: setattr(ds, "SOPInstanceUID", f"1.2.{ord(n)}"))
    a, b, c = (tmp_path / name / "level-0.dcm" for name in "abc")
    assert dicomslide.open_slide([a, b]).to_dataset().image.shape == (2, 80, 60)
    level = dicomslide.open_slide([a, c]).to_dataset()
    assert (level.image.dtype, level.image_2.dtype) == (np.uint16, np.uint8)

    def shifted(dataset):
        dataset.TotalPixelMatrixOriginSequence[0].YOffsetInSlideCoordinateSystem = "32.002"

    changed(b, shifted)
    tree = dicomslide.open_slide([a, b]).to_datatree()
    assert list(tree["level_0"].data_vars) == ["image"]
    assert float(tree["image_2"].y[0] - tree["level_0"].y[0]) == pytest.approx(0.002)

    def turned(dataset):
        dataset.ImageOrientationSlide = [0, 1, 0, 1, 0, 0]

    changed(b, turned)
    slide = dicomslide.open_slide([a, b], pyramid_tolerance=1)
    apart = slide.to_datatree()["image_2"].image_2
    stored = slide._groups[1].images[0][0].get_total_pixel_matrix()[..., 0][..., 0]
    np.testing.assert_array_equal(apart, np.rot90(stored))
