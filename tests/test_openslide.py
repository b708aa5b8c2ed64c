"""OpenSlide against openslide-python on the same files, and where they differ."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

import dicomslide
from dicomslide.openslide import PROPERTY_NAME_MPP_X, PROPERTY_NAME_MPP_Y, OpenSlide
from dicomslide.testing import position_values, srgb_profile, write_slide
from tests.support.optional import need

pytestmark = pytest.mark.filterwarnings("ignore::dicomslide.MetadataWarning")

EXPLICIT = "1.2.840.10008.1.2.1"
JPEG_LS = "1.2.840.10008.1.2.4.80"
REGIONS = 200  # of each of five slides
DOWNSAMPLES = [-1.0, 0.0, 0.5, 1.0, 1.999, 2.0, 2.0001, *np.geomspace(0.1, 100, 93).tolist()]
THUMBNAILS = [(64, 64), (200, 33), (17, 500), (1, 1), (256, 256), (10_000, 10_000)]

# what openslide says, in one process of its own; Deep Zoom tiles of our slides are made there, too
ORACLE = """
import json, sys
import numpy as np
import openslide
from openslide.deepzoom import DeepZoomGenerator
from dicomslide.openslide import OpenSlide

def bytes_of(picture):
    return np.asarray(picture).ravel()

folder, requests = sys.argv[1], json.load(sys.stdin)
for name, request in requests.items():
    slide = openslide.OpenSlide(request["path"])
    ours = OpenSlide(request["path"])
    assert "dicom" == slide.detect_format(request["path"])
    arrays = {}
    arrays["regions"] = np.concatenate([
        bytes_of(slide.read_region(location, level, size))
        for location, level, size in request["regions"]])
    thumbnails = [slide.get_thumbnail(size) for size in request["thumbnails"]]
    arrays["thumbnails"] = np.concatenate([bytes_of(each) for each in thumbnails])
    for level, size in enumerate(slide.level_dimensions):
        arrays[f"level {level}"] = np.asarray(slide.read_region((0, 0), level, size))
    for key, picture in slide.associated_images.items():
        arrays[f"associated {key}"] = np.asarray(picture)
    for key, (location, level, size) in request.get("between", {}).items():
        arrays[f"between {key}"] = np.asarray(slide.read_region(location, level, size))
    zoom, our_zoom = (
        DeepZoomGenerator(each, tile_size=126, overlap=1, limit_bounds=True)
        for each in (slide, ours))
    differing, tiles = [], 0
    for level, (across, down) in enumerate(zoom.level_tiles):
        for address in [(i, j) for i in range(across) for j in range(down)]:
            theirs, mine = (each.get_tile(level, address) for each in (zoom, our_zoom))
            tiles += 1
            if (np.asarray(theirs) != np.asarray(mine)).any() or theirs.info != mine.info:
                differing.append([level, address])
    said = {
        "dimensions": slide.dimensions,
        "level_count": slide.level_count,
        "level_dimensions": slide.level_dimensions,
        "level_downsamples": slide.level_downsamples,
        "best": [slide.get_best_level_for_downsample(d) for d in request["downsamples"]],
        "properties": dict(slide.properties),
        "thumbnail sizes": [each.size for each in thumbnails],
        "profile": slide.read_region((0, 0), 0, (1, 1)).info["icc_profile"].hex(),
        "profile sizes": {
            key: len(each.info["icc_profile"]) for key, each in slide.associated_images.items()},
        "zoom": [zoom.level_dimensions, our_zoom.level_dimensions],
        "zoom tiles": tiles,
        "zoom tiles differing": differing,
    }
    np.savez(f"{folder}/{name}.npz", **arrays)
    with open(f"{folder}/{name}.json", "w") as file:
        json.dump(said, file)
"""


def requests_of(path, *, exact=True, between=()):
    """Ask for random regions at all levels, where `exact`, else at the base level only.

    Locations are multiples of the level's factor: others are pixels between pixels.
    """
    with OpenSlide(path) as slide:
        factors, sizes = slide.level_downsamples, slide.level_dimensions
    random = np.random.default_rng(1)
    regions = []
    for number in range(REGIONS):
        level = number % (len(sizes) + 1) - 1 if exact else 0  # -1: a level that isn't there
        width, height = sizes[level]
        x = int(random.integers(-width // 2, width + 20))
        y = int(random.integers(-height // 2, height + 20))
        factor = int(factors[level])
        size = [int(edge) for edge in random.integers(0, 140, 2)]
        regions.append([[x * factor, y * factor], level, size])
    return {
        "path": str(path),
        "regions": regions,
        "downsamples": DOWNSAMPLES,
        "thumbnails": THUMBNAILS,
        "between": dict(between),
    }


BETWEEN = {
    "half": [(101, 40), 1, (50, 30)],
    "edge": [(389, 40), 1, (20, 30)],
    "negative": [(-3, 40), 1, (50, 30)],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory, request):
    """A file of each slide, by name."""
    folder = tmp_path_factory.mktemp("slides")
    slides = {
        "pyramid": dict(shape=(304, 408), downsamples=(1, 2, 4), tile_shape=(64, 80)),
        "odd": dict(shape=(605, 903), downsamples=(1, 3, 6), tile_shape=(128, 96)),
        "sparse": dict(
            shape=(300, 400),
            downsamples=(1, 2),
            tile_shape=(64, 80),
            spacing=(0.0005, 0.00025),
            orientation=(1, 0, 0, 0, -1, 0),
            sparse=True,
            absent=((0, 0), (2, 3)),
            drawing="position",
            transfer_syntax_uid=EXPLICIT,
        ),
    }
    found = {name: write_slide(folder / name, **kw)[0] for name, kw in slides.items()}
    add_elements(found["sparse"])
    try:
        shared = request.getfixturevalue("shared_data")
    except pytest.skip.Exception:
        return found
    # any file of a series will do
    real = {"cmu": "cmu-1-small-region", "boxes": "boxes"}
    return found | {name: min((shared / path).glob("*.dcm")) for name, path in real.items()}


def add_elements(path):
    """Add elements of all value representations, with several values where they may have some."""
    dataset = pydicom.dcmread(path)
    for keyword, vr, value in (
        ("SoftwareVersions", "LO", ["1", "two"]),
        ("OtherPatientNames", "PN", ["A^B", "C^D"]),
        ("PatientComments", "LT", "line1\nline2 \\ back"),
        ("InstitutionAddress", "ST", "addr \\ x"),
        ("ScheduledStudyStartDate", "DA", ["20200101", "20210101"]),
        ("FrameTimeVector", "DS", ["1.50", "2.5", ".3"]),
        ("ReferencedFrameNumber", "IS", ["1", "2", "+3"]),
        ("TimeRange", "FD", [0.1, 1e-7]),
        ("RecommendedDisplayFrameRateInFloat", "FL", 0.1),
        ("SimpleFrameList", "UL", [1, 2, 3]),
        ("ReferencePixelX0", "SL", -7),
        ("SelectorSSValue", "SS", [-1, -2]),
        ("SelectorSVValue", "SV", -(10**15)),
        ("SelectorUVValue", "UV", 2**63 + 5),
        ("SelectorATValue", "AT", [0x00100020, 0x00480105]),
        ("SelectorUTValue", "UT", "ut \\ text"),
        ("SelectorUCValue", "UC", ["uc1", "uc2"]),
        ("SelectorURValue", "UR", "http://example.org/z"),
        ("SelectorAEValue", "AE", ["AE1", "AE2"]),
        ("SelectorASValue", "AS", ["010Y", "020Y"]),
        ("SelectorTMValue", "TM", ["1010", "1111"]),
        ("SelectorDTValue", "DT", ["2020", "2021"]),
        ("SelectorSHValue", "SH", ["s h", "t"]),
        ("SelectorUIValue", "UI", ["1.2", "1.3"]),
        ("SelectorOBValue", "OB", b"abcd"),
        ("SelectorUNValue", "UN", b"abcd"),
        ("SelectorFDValue", "FD", None),
        ("SelectorDSValue", "DS", ""),
        ("SelectorLOValue", "LO", ""),
    ):
        dataset.add_new(keyword, vr, value)
    items = [Dataset(), Dataset(), Dataset()]
    items[0].CodeValue, items[2].CodeValue = "x", ""
    dataset.ReasonForVisitCodeSequence = items
    dataset.PatientName = "Müller^Jörg"
    dataset.OpticalPathSequence[0].ObjectiveLensPower = "20.5"
    dataset.save_as(path)


@pytest.fixture(scope="module")
def openslides(files, tmp_path_factory):
    """What openslide says of each slide: requests, answers, arrays."""
    need("openslide")
    folder = tmp_path_factory.mktemp("openslide")
    requests = {
        name: requests_of(path, exact=name != "odd", between=BETWEEN if name == "pyramid" else ())
        for name, path in files.items()
    }
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ORACLE, str(folder)],
        input=json.dumps(requests),
        text=True,
        check=True,
    )
    return {
        name: (
            request,
            json.loads((folder / f"{name}.json").read_text()),
            dict(np.load(folder / f"{name}.npz")),
        )
        for name, request in requests.items()
    }


@pytest.fixture(params=["pyramid", "odd", "sparse", "cmu", "boxes"])
def both(request, files, openslides):
    """One of our slides, and what openslide says of the same file."""
    if request.param not in files:
        pytest.skip("no real slides")
    with OpenSlide(files[request.param]) as slide:
        yield slide, *openslides[request.param]


def pixels(picture):
    return np.asarray(picture)


# -- as openslide has it --


def test_levels_equal_openslides(both):
    slide, _, said, _ = both
    assert list(slide.dimensions) == said["dimensions"]
    assert slide.level_count == said["level_count"]
    assert [list(size) for size in slide.level_dimensions] == said["level_dimensions"]
    assert list(slide.level_downsamples) == said["level_downsamples"]
    best = [slide.get_best_level_for_downsample(d) for d in DOWNSAMPLES]
    assert len(best) == 100
    assert best == said["best"]


def test_regions_equal_openslides_to_the_byte(both):
    slide, request, said, arrays = both
    start = 0
    for location, level, size in request["regions"]:
        region = slide.read_region(tuple(location), level, tuple(size))
        assert (region.mode, region.size) == ("RGBA", tuple(size))
        assert region.info["icc_profile"].hex() == said["profile"]
        stop = start + 4 * size[0] * size[1]
        np.testing.assert_array_equal(pixels(region).ravel(), arrays["regions"][start:stop])
        start = stop
    assert start == arrays["regions"].size > 0


def test_whole_levels_equal_openslides(both):
    slide, _, _, arrays = both
    for level, size in enumerate(slide.level_dimensions):
        whole = slide.read_region((0, 0), level, size)
        np.testing.assert_array_equal(pixels(whole), arrays[f"level {level}"])


def test_thumbnails_equal_openslides(both):
    slide, _, said, arrays = both
    thumbnails = [slide.get_thumbnail(size) for size in THUMBNAILS]
    assert [list(each.size) for each in thumbnails] == said["thumbnail sizes"]
    assert {each.mode for each in thumbnails} == {"RGB"}
    assert {each.info["icc_profile"].hex() for each in thumbnails} == {said["profile"]}
    joined = np.concatenate([pixels(each).ravel() for each in thumbnails])
    np.testing.assert_array_equal(joined, arrays["thumbnails"])


def test_properties_equal_openslides_but_for_padding(both):
    slide, _, said, _ = both
    assert list(slide.properties) == list(said["properties"])  # the order, too
    expected = {key: value.rstrip(" ") for key, value in said["properties"].items()}
    assert dict(slide.properties) == expected
    assert all(type(value) is str for value in slide.properties.values())


def test_associated_images_equal_openslides(both):
    slide, _, said, arrays = both
    images = slide.associated_images
    expected = {key.removeprefix("associated "): value for key, value in arrays.items()
                if key.startswith("associated ")}  # fmt: skip
    assert len(images) == len(expected)
    for key, array in expected.items():
        assert key in images
        assert images[key].mode == "RGBA"
        np.testing.assert_array_equal(pixels(images[key]), array)
        assert len(images[key].info["icc_profile"]) == said["profile sizes"][key]


@pytest.mark.parametrize("name", ["pyramid", "sparse", "cmu", "boxes"])
def test_deep_zoom_tiles_equal_openslides(name, openslides):
    if name not in openslides:
        pytest.skip("no real slides")
    _, said, _ = openslides[name]
    theirs, ours = said["zoom"]
    assert ours == theirs
    assert said["zoom tiles"] >= len(theirs)
    assert said["zoom tiles differing"] == []


# -- where it differs, for the reasons that the class gives --


def test_between_pixels_of_a_level_ours_is_a_stored_pixel(files, openslides):
    _, _, arrays = openslides["pyramid"]
    stored = arrays["level 1"].astype(int)
    with OpenSlide(files["pyramid"]) as slide:
        ours = {key: pixels(slide.read_region(*args)) for key, args in BETWEEN.items()}
    np.testing.assert_array_equal(ours["half"], stored[20:50, 51:101])  # half a pixel: rounded up
    interpolated = (stored[20:50, 50:100] + stored[20:50, 51:101]) / 2
    assert np.abs(arrays["between half"] - interpolated).max() <= 1
    assert not np.array_equal(arrays["between half"], ours["half"])
    # level 1 ends at column 204; 389 / 2 is 195 rounded up
    assert set(np.unique(ours["edge"][..., 3])) == {0, 255}
    np.testing.assert_array_equal(ours["edge"][:, :9], stored[20:50, 195:])
    assert {0, 255} < set(np.unique(arrays["between edge"][..., 3]))
    # −3 / 2 is −1: rounded up here, its fraction dropped there
    np.testing.assert_array_equal(ours["negative"][:, 1:], stored[20:50, :49])
    np.testing.assert_array_equal(arrays["between negative"][:, 1:], stored[20:50, :49])


def test_associated_images_have_dicoms_names_and_openslides(files):
    with OpenSlide(files["pyramid"]) as slide:
        images = slide.associated_images
        assert list(images) == ["LABEL", "OVERVIEW"]
        assert images["LABEL"] == images["label"]
        assert images["OVERVIEW"] == images["macro"]
        assert "LABEL" in images
        assert "macro" in images
        assert "THUMBNAIL" not in images
        assert images.get("thumbnail") is None
        with pytest.raises(
            KeyError, match=r"associated image 'x'; expected one of \['LABEL', 'OVER"
        ):
            images["x"]
        with pytest.raises(TypeError):
            images["LABEL"] = None
        assert "'LABEL': (440, 360)" in repr(images)


def test_a_thumbnail_is_a_level_of_a_slide_and_an_associated_image_of_a_path(shared_data):
    folder = shared_data / "cmu-1-small-region"
    slide = dicomslide.open_slide(folder)
    stored = dicomslide.open_slide(folder, correct_color=False).get_image_region(
        (0, 0), 1, (768, 574)
    )
    assert slide.num_levels == 2
    for with_level in (
        OpenSlide(slide),
        OpenSlide(folder, thumbnail_levels=True),
        pickle.loads(pickle.dumps(OpenSlide(slide))),
    ):
        assert with_level.level_dimensions == ((2220, 2967), (574, 768))
        assert with_level.level_downsamples[1] == (2220 / 574 + 2967 / 768) / 2
        assert list(with_level.associated_images) == ["LABEL", "OVERVIEW"]
        region = pixels(with_level.read_region((0, 0), 1, (574, 768)))
        np.testing.assert_array_equal(region[..., :3], stored)
        assert with_level.properties["openslide.level-count"] == "2"
        assert not [name for name in with_level.properties if "associated.thumbnail" in name]
    for without in (
        OpenSlide(folder),
        OpenSlide(min(folder.iterdir())),
        OpenSlide(slide, thumbnail_levels=False),
        pickle.loads(pickle.dumps(OpenSlide(slide, thumbnail_levels=False))),
    ):
        assert without.level_dimensions == ((2220, 2967),)
        assert list(without.associated_images) == ["LABEL", "OVERVIEW", "THUMBNAIL"]
        thumbnail = pixels(without.associated_images["thumbnail"])
        np.testing.assert_array_equal(thumbnail[..., :3], stored)


def test_thumbnails_alone_are_levels(tmp_path):
    (path,) = write_slide(tmp_path, shape=(60, 80), downsamples=(1,), associated=False)
    dataset = pydicom.dcmread(path)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "THUMBNAIL", "RESAMPLED"]
    dataset.save_as(path)
    for slide in (OpenSlide(path), OpenSlide(dicomslide.open_slide(path))):
        assert slide.dimensions == (80, 60)
        assert len(slide.associated_images) == 0


def test_private_elements_and_an_unknown_power_are_left_out(tmp_path):
    (path,) = write_slide(tmp_path, shape=(60, 80), downsamples=(1,), associated=False)
    dataset = pydicom.dcmread(path)
    dataset.private_block(0x0009, "CREATOR", create=True).add_new(1, "LO", "secret")
    dataset.OpticalPathSequence[0].ObjectiveLensPower = 0
    dataset.save_as(path)
    properties = OpenSlide(path).properties
    assert not [key for key in properties if "Private" in key or key.startswith("dicom.[")]
    assert "secret" not in properties.values()
    assert "openslide.objective-power" not in properties
    assert not [key for key in properties if "bounds" in key]


def test_micrometres_per_pixel_are_derived_where_spacing_is_absent(tmp_path):
    (path,) = write_slide(
        tmp_path, shape=(60, 80), downsamples=(1,), associated=False, spacing=(0.0005, 0.00025)
    )
    dataset = pydicom.dcmread(path)
    del dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    dataset.save_as(path)
    properties = OpenSlide(path).properties
    assert float(properties[PROPERTY_NAME_MPP_X]) == pytest.approx(0.25)
    assert float(properties[PROPERTY_NAME_MPP_Y]) == pytest.approx(0.5)
    del dataset.ImagedVolumeWidth
    dataset.save_as(path)
    assert PROPERTY_NAME_MPP_X not in OpenSlide(path).properties


def test_text_is_decoded_by_its_character_set(tmp_path):
    (path,) = write_slide(tmp_path, shape=(60, 80), downsamples=(1,), associated=False)
    dataset = pydicom.dcmread(path)
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.PatientName = "Müller^Jörg"
    dataset.save_as(path)
    assert OpenSlide(path).properties["dicom.PatientName"] == "Müller^Jörg"


def test_properties_are_read_only(files):
    with OpenSlide(files["pyramid"]) as slide, pytest.raises(TypeError):
        slide.properties["openslide.vendor"] = "aperio"


# -- what can be opened --


def test_a_file_brings_its_series_and_nothing_else(tmp_path):
    write_slide(tmp_path, shape=(60, 80), downsamples=(1, 2), tile_shape=(32, 32))
    write_slide(tmp_path / "other", shape=(40, 50), downsamples=(1,), slide_number=2)
    for path in (tmp_path / "other").iterdir():  # another series in the same folder
        shutil.move(path, tmp_path / f"other-{path.name}")
    (tmp_path / "notes.txt").write_text("no DICOM")
    shutil.copy(tmp_path / "level-1.dcm", tmp_path / "copy.dcm")
    for name in ("level-0.dcm", "level-1.dcm", "label.dcm", "copy.dcm"):
        slide = OpenSlide(tmp_path / name)
        assert slide.level_dimensions == ((80, 60), (40, 30))
        assert list(slide.associated_images) == ["LABEL", "OVERVIEW"]
    assert OpenSlide(os.fsencode(tmp_path / "other-label.dcm")).dimensions == (50, 40)


def test_a_damaged_neighbour_is_left_out_with_a_warning(tmp_path):
    path, *_ = write_slide(tmp_path, shape=(60, 80), downsamples=(1, 2))
    damaged = tmp_path / "damaged.dcm"
    damaged.write_bytes(path.read_bytes()[:150])
    with pytest.warns(dicomslide.MetadataWarning, match=r"left out: .*damaged\.dcm"):
        assert OpenSlide(path).level_count == 2


def test_a_folder_a_list_and_a_slide_can_be_opened(files):
    folder = files["pyramid"].parent
    expected = pixels(OpenSlide(files["pyramid"]).read_region((8, 8), 1, (60, 60)))
    for given in (folder, sorted(folder.iterdir()), dicomslide.open_slide(folder)):
        slide = OpenSlide(given)
        assert slide.level_count == 3
        np.testing.assert_array_equal(pixels(slide.read_region((8, 8), 1, (60, 60))), expected)


def test_what_is_no_slide_is_a_typed_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        OpenSlide(tmp_path / "nothing.dcm")
    text = tmp_path / "text.dcm"
    text.write_text("text")
    with pytest.raises(dicomslide.NotDicomError, match=r"text\.dcm"):
        OpenSlide(text)
    with pytest.raises(TypeError, match="int"):
        OpenSlide(5)


def test_formats_are_detected(files, tmp_path):
    assert OpenSlide.detect_format(files["pyramid"]) == "dicom"
    assert OpenSlide.detect_format(os.fsencode(files["pyramid"].with_name("label.dcm"))) == "dicom"
    assert OpenSlide.detect_format(str(files["pyramid"].parent)) == "dicom"
    dataset = pydicom.dcmread(files["pyramid"])
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    dataset.save_as(tmp_path / "ct.dcm")
    (tmp_path / "damaged.dcm").write_bytes(files["pyramid"].read_bytes()[:150])
    (tmp_path / "text.dcm").write_text("text")
    for path in (*tmp_path.iterdir(), tmp_path, tmp_path / "nothing"):
        assert OpenSlide.detect_format(path) is None


# -- pixels --


def test_colours_are_as_stored_whatever_the_slides_option(tmp_path):
    from PIL import ImageCms

    profile = srgb_profile()
    (path,) = write_slide(
        tmp_path, shape=(60, 80), downsamples=(1,), tile_shape=(32, 32), associated=False,
        drawing="position", transfer_syntax_uid=EXPLICIT, icc_profile=profile,
    )  # fmt: skip
    slide = OpenSlide(dicomslide.open_slide(path, correct_color=True))
    region = slide.read_region((0, 0), 0, (80, 60))
    np.testing.assert_array_equal(
        pixels(region)[..., :3], position_values(np.arange(60), np.arange(80))
    )
    assert region.info["icc_profile"] == profile
    assert isinstance(slide.color_profile, ImageCms.ImageCmsProfile)
    assert slide.properties["openslide.icc-size"] == str(len(profile))


def test_channels_and_planes_are_chosen_and_shown_by_their_most_significant_bits(stack_slide):
    slide = dicomslide.open_slide(stack_slide)
    for channel in range(2):
        for plane in range(3):
            shown = OpenSlide(slide, channel_index=channel, focal_plane_index=plane)
            for level in range(2):
                size = shown.level_dimensions[level]
                region = pixels(shown.read_region((0, 0), level, size))
                stored = slide.get_image_region((0, 0), level, size[::-1], channel, plane)
                assert stored.dtype == np.uint16
                for sample in range(3):
                    np.testing.assert_array_equal(region[..., sample], stored[..., 0] // 256)
                assert (region[..., 3] == 255).all()
            assert shown.color_profile is None
            assert "icc_profile" not in shown.get_thumbnail((20, 20)).info
            assert "openslide.icc-size" not in shown.properties
    with pytest.raises(ValueError, match="channel"):
        OpenSlide(slide, channel_index=2)
    with pytest.raises(ValueError, match="focal plane"):
        OpenSlide(slide, focal_plane_index=-1)


@pytest.mark.parametrize("bits", [8, 12])
def test_grey_becomes_rgb(tmp_path, bits):
    (path,) = write_slide(
        tmp_path, shape=(15, 80), downsamples=(1,), tile_shape=(32, 32), associated=False,
        drawing="position", samples=1, bits=bits, transfer_syntax_uid=JPEG_LS,
    )  # fmt: skip
    stored = dicomslide.open_slide(path).get_image_region((0, 0), 0, (15, 80))
    region = pixels(OpenSlide(path).read_region((0, 0), 0, (80, 15)))
    np.testing.assert_array_equal(region[..., :3], np.repeat(stored >> (bits - 8), 3, axis=2))


def test_a_segment_is_black_and_white_and_transparent_where_it_has_no_tile(shared_data):
    path = shared_data / "highdicom" / "seg_image_sm_control.dcm"
    dataset = pydicom.dcmread(path)
    expected = np.zeros((50, 50, 4), np.uint8)
    for frame, group in zip(
        dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns),
        dataset.PerFrameFunctionalGroupsSequence,
        strict=True,
    ):
        if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == 1:
            place = group.PlanePositionSlideSequence[0]
            top = place.RowPositionInTotalImagePixelMatrix - 1
            left = place.ColumnPositionInTotalImagePixelMatrix - 1
            part = expected[top : top + dataset.Rows, left : left + dataset.Columns]
            part[..., :3] = (frame * 255)[: part.shape[0], : part.shape[1], np.newaxis]
            part[..., 3] = 255
    assert {0, 255} == set(np.unique(expected[..., 3])) == set(np.unique(expected[..., 0]))
    region = OpenSlide(path).read_region((0, 0), 0, (50, 50))
    np.testing.assert_array_equal(pixels(region), expected)


def test_markers_of_a_jpeg_are_believed_rather_than_the_header(files, openslides, tmp_path):
    _, _, arrays = openslides["pyramid"]
    dataset = pydicom.dcmread(files["pyramid"])
    assert dataset.PhotometricInterpretation == "YBR_FULL_422"
    dataset.PhotometricInterpretation = "RGB"
    dataset.save_as(tmp_path / "slide.dcm")
    slide = OpenSlide(tmp_path / "slide.dcm")
    whole = slide.read_region((0, 0), 0, slide.dimensions)
    np.testing.assert_array_equal(pixels(whole), arrays["level 0"])


def test_a_bad_frame_is_an_error_that_leaves_the_slide_usable(files, openslides, tmp_path):
    _, _, arrays = openslides["pyramid"]
    dataset = pydicom.dcmread(files["pyramid"])
    count = dataset.NumberOfFrames
    frames = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=count))
    frames[1] = frames[1][:200]
    dataset.PixelData = pydicom.encaps.encapsulate(frames)
    dataset.save_as(tmp_path / "slide.dcm")
    slide = OpenSlide(tmp_path / "slide.dcm")
    with pytest.raises(dicomslide.FrameDecodeError, match=r"slide\.dcm, frame 2"):
        slide.read_region((0, 0), 0, (100, 10))
    region = slide.read_region((0, 0), 0, (80, 10))  # the first tile is 80 pixels wide
    np.testing.assert_array_equal(pixels(region), arrays["level 0"][:10, :80])


def test_impossible_requests_are_clear_errors(files):
    with OpenSlide(files["pyramid"]) as slide:
        for size in ((-1, 5), (5, -1)):
            with pytest.raises(ValueError, match="is negative"):
                slide.read_region((0, 0), 0, size)
        with pytest.raises(TypeError):
            slide.read_region((0.5, 0), 0, (5, 5))
        with pytest.raises(TypeError):
            slide.read_region((0, 0), 1.0, (5, 5))
        for size in ((0, 5), (5, -1)):
            with pytest.raises(ValueError, match="isn't possible"):
                slide.get_thumbnail(size)
        for level in (0, 9):
            with pytest.raises(dicomslide.MemoryLimitError):
                slide.read_region((0, 0), level, (10**7, 10**7))
        # numbers of NumPy, and far away
        region = slide.read_region(np.array([10**15, 0]), np.int64(0), np.array([3, 2]))
        assert region.size == (3, 2)
        assert not pixels(region).any()


# -- life of an object --


def test_a_closed_slide_says_so(files):
    with OpenSlide(files["pyramid"]) as slide:
        assert slide.level_count == 3
    slide.close()
    for use in (
        lambda: slide.dimensions,
        lambda: slide.level_downsamples,
        lambda: slide.properties,
        lambda: slide.associated_images,
        lambda: slide.color_profile,
        lambda: slide.get_best_level_for_downsample(1),
        lambda: slide.read_region((0, 0), 0, (1, 1)),
        lambda: slide.get_thumbnail((5, 5)),
        lambda: pickle.dumps(slide),
    ):
        with pytest.raises(ValueError, match=r"level-0\.dcm'\)\) is closed"):
            use()
    assert repr(slide) == f"OpenSlide({files['pyramid']!r})"


def test_closing_leaves_the_slide_it_was_made_of(files):
    slide = dicomslide.open_slide(files["pyramid"].parent)
    OpenSlide(slide).close()
    assert slide.get_image_region((0, 0), 0, (5, 5)).shape == (5, 5, 3)


def test_a_pickle_is_thin_and_shows_the_same(stack_slide):
    class_of_its_own = OpenSlide(stack_slide, channel_index=1, focal_plane_index=2)
    class_of_its_own.properties  # noqa: B018 - what is worked out isn't pickled
    pickled = pickle.dumps(class_of_its_own)
    assert len(pickled) < 3000
    slide = pickle.loads(pickled)
    assert slide.properties == class_of_its_own.properties
    assert slide.read_region((3, 3), 1, (40, 40)) == class_of_its_own.read_region(
        (3, 3), 1, (40, 40)
    )
    assert slide.read_region((3, 3), 1, (40, 40)) != OpenSlide(stack_slide).read_region(
        (3, 3), 1, (40, 40)
    )


def test_threads_read_the_same(files, openslides):
    _, _, arrays = openslides["pyramid"]
    whole = arrays["level 0"]
    slide = OpenSlide(files["pyramid"])

    def read(place):
        x, y = place
        return np.array_equal(
            pixels(slide.read_region(place, 0, (50, 40))), whole[y : y + 40, x : x + 50]
        )

    places = [(x, y) for x in range(0, 350, 25) for y in range(0, 260, 20)]
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, places))
