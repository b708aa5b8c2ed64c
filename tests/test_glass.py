"""What lies on one glass: several pyramids, levels that don't say that they belong together."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pydicom
import pytest
import xarray as xr
from pydicom.sr.codedict import codes

import dicomslide
from dicomslide.testing import position_values, uid_of, write_slide
from tests.support.fake_client import FakeClient

NATIVE = "1.2.840.10008.1.2.1"
OPTIONS = dict(
    downsamples=(1, 2),
    tile_shape=(32, 32),
    drawing="position",
    transfer_syntax_uid=NATIVE,
    associated=False,
    icc_profile=None,
)


def add(folder, name, change=lambda dataset: None, **options):
    """Write a pyramid into a folder that has others; return its files."""
    folder.mkdir(exist_ok=True)
    paths = []
    for path in write_slide(folder / f"tmp-{name}", **OPTIONS | options):
        dataset = pydicom.dcmread(path)
        uid = uid_of(name, path.name)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
        change(dataset)
        path.unlink()
        paths.append(folder / f"{name}-{path.name}")
        dataset.save_as(paths[-1])
    (folder / f"tmp-{name}").rmdir()
    return paths


@pytest.fixture
def regions(tmp_path):
    """Two regions of one glass, in one series: 12 mm apart."""
    folder = tmp_path / "slide"
    add(folder, "a", shape=(64, 96), origin=(18.0, 20.0))
    add(folder, "b", shape=(100, 130), origin=(18.0, 32.0))
    return folder


def quiet(call, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dicomslide.MetadataWarning)
        return call(*args, **options)


def test_the_largest_pyramid_is_read_and_a_warning_lists_the_others(regions):
    with pytest.warns(dicomslide.MetadataWarning, match="2 pyramids are on this glass") as said:
        slide = dicomslide.open_slide(regions)
    assert len(said) == 1
    assert "pyramid=1: 64 × 96 pixels, 2 levels" in str(said[0].message)
    assert slide.size == (100, 130)
    assert slide.pyramid_index == 0
    assert [(each.size, each.num_levels) for each in slide.pyramids] == [
        ((100, 130), 2),
        ((64, 96), 2),
    ]
    again = pickle.loads(pickle.dumps(slide))  # without another warning
    assert again == slide


@pytest.mark.parametrize("how", ["number", "file", "path", "instance", "text"])
def test_a_pyramid_is_chosen_without_a_warning(regions, how):
    file = regions / "a-level-1.dcm"
    wanted = {
        "number": 1,
        "file": file.name,
        "path": file,
        "instance": pydicom.dcmread(file).SOPInstanceUID,
        "text": str(file),
    }[how]
    slide = dicomslide.open_slide(regions, pyramid=wanted)
    assert slide.pyramid_index == 1
    assert slide.total_pixel_matrix_dimensions == ((64, 96), (32, 48))
    expected = position_values(np.arange(64), np.arange(96))
    np.testing.assert_array_equal(slide.get_image_region((0, 0), 0, (64, 96)), expected)
    assert slide.physical_bounds[3] < 21
    if how != "path":
        image = xr.open_dataset(regions, engine="dicomslide", pyramid=wanted).image
        assert image.shape == (96, 64, 3)
        tree = xr.open_datatree(regions, engine="dicomslide", pyramid=wanted)
        assert tree["level_1"].image.shape == (48, 32, 3)
    other = dicomslide.open_slide(slide, pyramid=0)
    assert other.size == (100, 130)


def test_a_pyramid_that_isnt_there_is_an_error_that_lists_those_there_are(regions):
    for wrong in (2, -1, "1.2.3", "c-level-0.dcm"):
        with pytest.raises(dicomslide.NotSlideError, match=r"(?s)no pyramid .*pyramid=1: 64 × 96"):
            dicomslide.open_slide(regions, pyramid=wrong)


def test_a_cohort_and_a_server_have_a_slide_for_each_pyramid(regions):
    cohort = dicomslide.open_slides(regions)
    assert list(cohort) == ["DS-0001/pyramid-0", "DS-0001/pyramid-1"]
    assert [slide.size for slide in cohort.values()] == [(100, 130), (64, 96)]
    assert not cohort.failures
    found = dicomslide.find_slides(FakeClient(regions))
    assert [slide.size for slide in found] == [(100, 130), (64, 96)]


def test_small_regions_side_by_side_arent_levels_of_each_other(tmp_path):
    """Their centres are nearer than the tolerance: sizes tell that pixels of one spacing differ."""

    def forget(dataset):
        del dataset.FrameOfReferenceUID

    folder = tmp_path / "slide"
    for name, shape in (("a", (200, 240)), ("b", (160, 200))):
        add(folder, name, forget, shape=shape, downsamples=(1, 2, 4, 8))
    slide = quiet(dicomslide.open_slide, folder)
    assert [each.size for each in slide.pyramids] == [(200, 240), (160, 200)]
    assert slide.total_pixel_matrix_dimensions == ((200, 240), (100, 120), (50, 60), (25, 30))
    other = dicomslide.open_slide(folder, pyramid=1)
    assert other.total_pixel_matrix_dimensions == ((160, 200), (80, 100), (40, 50), (20, 25))
    cohort = dicomslide.open_slides(folder)
    assert sorted(slide.size for slide in cohort.values()) == [(160, 200), (200, 240)]


def test_what_is_derived_goes_with_the_pyramid_that_it_was_derived_from(regions):
    from tests.support.derive import segment, write_segmentation

    mask = np.zeros((64, 96), np.uint8)
    mask[10:20, 30:50] = 1
    write_segmentation(
        regions / "seg.dcm", regions / "a-level-0.dcm", mask, "BINARY",
        segments=[segment(1, "tumour")],
    )  # fmt: skip
    assert not quiet(dicomslide.open_slide, regions).derived_images
    slide = dicomslide.open_slide(regions, pyramid=1)
    index = slide.get_channel_index("1", "SEGMENT")
    np.testing.assert_array_equal(
        slide.get_image_region((0, 0), 0, (64, 96), index)[..., 0], mask.astype(bool)
    )
    assert [len(each.derived_images) for each in dicomslide.open_slides(regions).values()] == [0, 1]


def test_extended_depth_of_field_lies_beside_its_stack(tmp_path):
    folder = tmp_path / "slide"

    def deep(dataset):
        dataset.ExtendedDepthOfField = "YES"
        dataset.NumberOfFocalPlanes = 3
        dataset.DistanceBetweenFocalPlanes = 2.0

    add(folder, "a-edof", deep, shape=(100, 130))
    add(folder, "stack", shape=(100, 130), planes=(0.0, 2.0, 4.0))
    slide = quiet(dicomslide.open_slide, folder)
    assert slide.num_focal_planes == 3
    assert [each.has_extended_depth_of_field for each in slide.pyramids] == [False, True]
    flat = dicomslide.open_slide(folder, pyramid=1)
    assert (flat.num_focal_planes, flat.num_levels) == (1, 2)
    assert "a-edof" in flat.name


def test_levels_of_which_some_dont_say_that_planes_were_made_one_are_one_pyramid(tmp_path):
    folder = tmp_path / "slide"

    def deep(dataset):
        if dataset.TotalPixelMatrixRows == 100:
            dataset.ExtendedDepthOfField = "YES"

    add(folder, "a", deep, shape=(100, 130))
    assert dicomslide.open_slide(folder).num_levels == 2


def test_pyramid_uids_tell_apart_what_lies_at_one_place(tmp_path):
    """A part scanned again in the middle of the whole: by size and centre it could be a level."""
    folder = tmp_path / "slide"
    places = {"whole": ((128, 128), (18, 32)), "part": ((64, 64), (17.984, 31.984))}
    for name, (shape, origin) in places.items():
        add(folder, name, lambda dataset, name=name: setattr(dataset, "PyramidUID", uid_of(name)),
            shape=shape, origin=origin)  # fmt: skip
    slide = quiet(dicomslide.open_slide, folder)
    assert slide.total_pixel_matrix_dimensions == ((128, 128), (64, 64))
    assert slide.pyramids[1].uid == uid_of("part")
    part = dicomslide.open_slide(folder, pyramid=uid_of("part"))
    assert part.total_pixel_matrix_dimensions == ((64, 64), (32, 32))


def test_pyramid_uids_of_channels_dont_part_a_slide(tmp_path):
    folder = tmp_path / "slide"
    for name in ("DAPI", "CD8"):
        add(folder, name, lambda dataset, name=name: setattr(dataset, "PyramidUID", uid_of(name)),
            shape=(100, 130), samples=1, optical_paths=(name,))  # fmt: skip
    slide = dicomslide.open_slide(folder)
    assert (slide.num_channels, slide.num_levels, len(slide.pyramids)) == (2, 2, 1)


# -- levels of one series with frames of reference of their own ------------------------------


@pytest.mark.parametrize("container", [True, False], ids=["container", "no container"])
@pytest.mark.parametrize("level_origins", ["own", "base"])
def test_levels_whose_frames_of_reference_differ_are_one_slide(tmp_path, container, level_origins):
    from highdicom.sr import Scoord3DContentItem

    for number, path in enumerate(
        write_slide(tmp_path, **OPTIONS | dict(shape=(128, 96), level_origins=level_origins,
                                               downsamples=(1, 2, 4)))
    ):  # fmt: skip
        dataset = pydicom.dcmread(path)
        dataset.FrameOfReferenceUID = f"{dataset.SeriesInstanceUID}.{number}"
        if not container:
            del dataset.ContainerIdentifier
        dataset.save_as(path)
    with pytest.warns(dicomslide.MetadataWarning, match="3 Frame of Reference UIDs"):
        slide = dicomslide.open_slide(tmp_path)
    assert slide.num_levels == 3
    assert slide.frame_of_reference_uid.endswith(".0")
    assert len(quiet(dicomslide.open_slides, tmp_path)) == 1
    assert len(quiet(dicomslide.find_slides, FakeClient(tmp_path))) == 1
    assert len(quiet(dicomslide.OpenSlide, tmp_path / "level-0.dcm").level_dimensions) == 3
    # an annotation is made on one of the levels, and is of the slide
    expected = slide.get_slide_region((17.97, 31.97), 0, (0.01, 0.02))
    for frame in (f"{dataset.SeriesInstanceUID}.{number}" for number in range(4)):
        item = Scoord3DContentItem(
            codes.DCM.ImageRegion,
            "POLYLINE",
            np.array([(17.97, 31.97, 0), (17.98, 31.99, 0)]),
            frame,
        )
        if frame.endswith(".3"):
            with pytest.raises(ValueError, match="is of frame of reference"):
                slide.get_slide_region_for_annotation(item, 0)
        else:
            found = slide.get_slide_region_for_annotation(item, 0)
            np.testing.assert_array_equal(found, expected)


def test_channels_whose_frames_of_reference_differ_are_one_slide(tmp_path):
    folder = tmp_path / "slide"
    for number, name in enumerate(("DAPI", "CD8")):

        def own(dataset, number=number):
            dataset.FrameOfReferenceUID = f"{dataset.SeriesInstanceUID}.{number}"

        add(folder, name, own, shape=(100, 130), samples=1, optical_paths=(name,))
    slide = quiet(dicomslide.open_slide, folder)
    assert (slide.num_channels, slide.num_levels) == (2, 2)


def test_two_scans_of_one_series_are_two_slides(tmp_path):
    """Of one size and place, and of one channel: they can't be one pyramid."""
    folder = tmp_path / "slide"
    for name in ("first", "second"):

        def own(dataset, name=name):
            dataset.FrameOfReferenceUID = uid_of(name)

        add(folder, name, own, shape=(100, 130))
    with pytest.raises(dicomslide.AmbiguousSlideError):
        dicomslide.open_slide(folder)
    assert len(dicomslide.open_slides(folder)) == 2


def test_scans_of_two_series_with_frames_of_reference_of_their_own_are_two_slides(tmp_path):
    paths = write_slide(tmp_path, **OPTIONS | dict(shape=(128, 96)))
    for number, path in enumerate(paths):
        dataset = pydicom.dcmread(path)
        dataset.FrameOfReferenceUID = uid_of("frame", number)
        dataset.SeriesInstanceUID = uid_of("series", number)
        dataset.save_as(path)
    assert len(dicomslide.open_slides(tmp_path)) == 2


# -- spacing that is another's ---------------------------------------------------------------


def state(paths, *, spacing, volume, origin=None):
    """Let all levels state one Pixel Spacing (rows, columns) and one volume (height, width)."""
    for path in paths:
        dataset = pydicom.dcmread(path)
        groups = dataset.SharedFunctionalGroupsSequence[0]
        groups.PixelMeasuresSequence[0].PixelSpacing = list(spacing)
        if volume is None:
            del dataset.ImagedVolumeWidth, dataset.ImagedVolumeHeight
        else:
            dataset.ImagedVolumeHeight, dataset.ImagedVolumeWidth = volume
        dataset.save_as(path)


@pytest.mark.parametrize("absent", [0, 1, 2], ids=lambda n: f"{n} levels absent")
def test_a_spacing_of_an_absent_base_gives_way_to_the_volume_that_all_levels_cover(
    tmp_path, absent
):
    """As OrthancWSI wrote: 15 × 15 mm, and the spacing of the base on each level."""
    paths = write_slide(
        tmp_path,
        **OPTIONS | dict(shape=(800, 1200), downsamples=(1, 2, 4, 8), level_origins="base",
                         origin=(20.0, 40.0)),
    )  # fmt: skip
    state(paths, spacing=(15 / 800, 15 / 1200), volume=(15.0, 15.0))
    for path in paths[:absent]:
        path.unlink()
    slide = quiet(dicomslide.open_slide, tmp_path)
    assert slide.num_levels == 4 - absent
    for (rows, columns), (along_row, along_column) in zip(
        slide.total_pixel_matrix_dimensions, slide.pixel_spacings, strict=True
    ):
        assert (along_column, along_row) == pytest.approx((15 / rows, 15 / columns), rel=1e-6)
    # all levels cover the same millimetres
    bounds = [level.image.physical_bounds for level in slide.levels]
    np.testing.assert_allclose(bounds, [bounds[0]] * len(bounds), atol=1e-6)


@pytest.mark.parametrize("spacing", [0.0005, 0.005])
def test_a_default_volume_that_contradicts_the_base_leaves_its_spacing(tmp_path, spacing):
    paths = write_slide(
        tmp_path, **OPTIONS | dict(shape=(800, 1200), downsamples=(1, 2, 4), level_origins="base",
                                   spacing=(spacing, spacing)),
    )  # fmt: skip
    state(paths, spacing=(spacing, spacing), volume=(15.0, 15.0))
    slide = quiet(dicomslide.open_slide, tmp_path)
    expected = [(spacing * factor,) * 2 for factor in (1, 2, 4)]
    np.testing.assert_allclose(slide.pixel_spacings, expected, rtol=1e-9)


def test_spacings_that_the_slide_derived_are_in_the_metadata_of_its_images(tmp_path):
    paths = write_slide(
        tmp_path, **OPTIONS | dict(shape=(800, 1200), downsamples=(1, 2, 4), level_origins="base")
    )
    state(paths, spacing=(0.0005, 0.0005), volume=None)
    dataset = pydicom.dcmread(paths[2])
    del dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    dataset.save_as(paths[2])
    slide = quiet(dicomslide.open_slide, tmp_path)
    metadata = [image.metadata for image in slide.get_volume_images()]
    found = [dicomslide.get_image_pixel_spacing(each) for each in metadata]
    np.testing.assert_allclose(found, [(0.0005,) * 2, (0.001,) * 2, (0.002,) * 2], rtol=1e-9)
    shuffled = [metadata[2], metadata[0], metadata[1]]
    assert dicomslide.sort_images_by_pixel_spacing(shuffled) == metadata
    assert dicomslide.select_image_at_pixel_spacing(shuffled, (0.002, 0.002), 1e-6) is metadata[2]
    assert dicomslide.select_image_at_magnification(shuffled, 10, 1e-6) is metadata[1]
    _, where, _, _ = dicomslide.compute_frame_positions(metadata[1])
    assert where[1, 1] - where[0, 1] == pytest.approx(-32 * 0.001)
    # the header itself is as it was
    header = slide.levels[1].image._source.metadata
    measures = header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert list(measures.PixelSpacing) == [0.0005, 0.0005]


def test_sorting_and_selecting_need_only_what_they_compare():
    def image(**values):
        dataset = pydicom.Dataset()
        for keyword, value in values.items():
            setattr(dataset, keyword, value)
        return dataset

    sizes = [image(TotalPixelMatrixRows=n, TotalPixelMatrixColumns=10) for n in (2, 3, 1)]
    assert [i.TotalPixelMatrixRows for i in dicomslide.sort_images_by_size(sizes)] == [3, 2, 1]
    spaced = []
    for spacing in (0.002, 0.0005, 0.001):
        measures = image(PixelSpacing=[spacing, spacing])
        groups = image(PixelMeasuresSequence=[measures])
        spaced.append(image(SharedFunctionalGroupsSequence=[groups]))
    ordered = [spaced[1], spaced[2], spaced[0]]
    assert dicomslide.sort_images_by_pixel_spacing(spaced) == ordered
    assert dicomslide.select_image_at_pixel_spacing(spaced, (0.0011, 0.001)) is spaced[2]
    assert dicomslide.select_image_at_magnification(spaced, 20) is spaced[1]


# -- slides opened again ---------------------------------------------------------------------


def test_options_of_a_slide_that_is_opened_again_hold(tissue_slide):
    slide = dicomslide.open_slide(tissue_slide)
    assert dicomslide.open_slide(slide) is slide
    stored = dicomslide.open_slide(slide, correct_color=False, on_error="fill")
    assert stored == dicomslide.open_slide(tissue_slide, correct_color=False, on_error="fill")
    assert dicomslide.open_slide(stored) is stored
    assert dicomslide.open_slide(stored, correct_color=True) != stored
    image = xr.open_dataset(slide, engine="dicomslide", correct_color=False).image
    expected = xr.open_dataset(tissue_slide, engine="dicomslide", correct_color=False).image
    np.testing.assert_array_equal(image[:50, :50], expected[:50, :50])


@pytest.mark.parametrize("option", ["container_id", "study_instance_uid", "frame_of_reference_uid"])
def test_a_slide_that_is_opened_again_as_another_one_is_an_error(tissue_slide, option):
    slide = dicomslide.open_slide(tissue_slide)
    with pytest.raises(dicomslide.NotSlideError, match="wanted is 'another'"):
        dicomslide.open_slide(slide, **{option: "another"})
    with pytest.raises(ValueError, match="storage_options"):
        dicomslide.open_slide(slide, storage_options={"anon": True})


def test_levels_are_immutable_and_equal_where_they_show_the_same(tissue_slide):
    one, other = dicomslide.open_slide(tissue_slide), dicomslide.open_slide(tissue_slide)
    assert one.levels == other.levels
    assert {one.levels[1]: "x"}[other.levels[1]] == "x"
    with pytest.raises(TypeError):
        one.levels[0]._places[7, 7] = one.levels[0]._places[0, 0]
    with pytest.raises(AttributeError):
        one.levels[0].size = (1, 1)
    assert pickle.loads(pickle.dumps(one.levels[1])) == one.levels[1]
    assert one.levels[1].image != dicomslide.open_slide(tissue_slide / "level-1.dcm").levels[0]
