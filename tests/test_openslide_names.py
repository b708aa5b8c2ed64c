"""The names of openslide-python's module, and what stands behind them, against that package."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pydicom
import pytest
from PIL import Image, UnidentifiedImageError

import dicomslide
from dicomslide import openslide
from dicomslide.testing import srgb_profile, uid_of, write_slide
from tests.support.optional import need

pytestmark = pytest.mark.filterwarnings("ignore::dicomslide.MetadataWarning")

EXPLICIT = "1.2.840.10008.1.2.1"
REGIONS = [
    ((0, 0), (40, 30)), ((-7, 5), (20, 20)), ((30, 20), (30, 30)), ((90, 0), (4, 4)),
    ((-20, -20), (5, 5)), ((3, 4), (0, 6)), ((0, 0), (0, 0)), ((39, 29), (1, 1)),
]  # fmt: skip
THUMBNAILS = [(10, 10), (100, 100), (7, 50)]
DECLARED = """
import inspect, json
import openslide
from openslide import lowlevel

own = [name for name, value in vars(openslide).items() if not name.startswith("_") and (
    name.startswith("PROPERTY") or getattr(value, "__module__", "").startswith("openslide"))]
classes = [getattr(openslide, name) for name in own if inspect.isclass(getattr(openslide, name))]
print(json.dumps({
    "names": own,
    "members": {each.__name__: [n for n in dir(each) if not n.startswith("_")]
                for each in classes if not issubclass(each, Exception)},
    "properties": {name: getattr(openslide, name) for name in own if name.startswith("PROPERTY")},
    "bases": {each.__name__: [base.__name__ for base in each.__mro__] for each in classes},
}))
"""


def said_by_openslide(code, *arguments):
    need("openslide")
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.fixture(scope="module")
def slide_file(tmp_path_factory):
    """A colour slide of JPEG tiles."""
    folder = tmp_path_factory.mktemp("slide")
    return write_slide(folder, shape=(160, 200), downsamples=(1, 2), tile_shape=(64, 80))[0]


def test_every_name_of_openslide_python_is_here_with_its_members():
    declared = said_by_openslide(DECLARED)
    assert len(declared["names"]) >= 20
    for name in declared["names"]:
        assert hasattr(openslide, name), name
    for name, members in declared["members"].items():
        missing = set(members) - set(dir(getattr(openslide, name)))
        assert not missing, (name, missing)
    for name, value in declared["properties"].items():
        assert getattr(openslide, name) == value
    for name in ("OpenSlide", "ImageSlide"):
        assert "AbstractSlide" in declared["bases"][name]
        assert issubclass(getattr(openslide, name), openslide.AbstractSlide)
    for name in ("OpenSlideUnsupportedFormatError", "OpenSlideVersionError"):
        assert issubclass(getattr(openslide, name), openslide.OpenSlideError)
    for name in ("__version__", "__library_version__"):
        assert tuple(map(int, getattr(openslide, name).split(".")[:2])) >= (1, 4)
    assert openslide.lowlevel.OpenSlideError is openslide.OpenSlideError
    assert openslide.lowlevel.get_version() == openslide.__library_version__


def test_in_the_place_of_openslide_its_lowlevel_module_can_be_imported():
    code = """
import sys
import dicomslide.openslide
sys.modules["openslide"] = dicomslide.openslide
from openslide import OpenSlide, ImageSlide, OpenSlideError, __version__
from openslide.lowlevel import OpenSlideError as again
import openslide.lowlevel
assert again is OpenSlideError is openslide.lowlevel.OpenSlideError
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("open_it", [openslide.OpenSlide, openslide.open_slide])
def test_a_missing_file_is_a_file_not_found_error_and_nothing_else(open_it, tmp_path):
    for given in (tmp_path / "absent.dcm", str(tmp_path / "absent"), os.fsencode(tmp_path / "a")):
        with pytest.raises(FileNotFoundError) as raised:
            open_it(given)
        assert type(raised.value) is FileNotFoundError
        assert raised.value.filename == os.fsdecode(given)


def test_errors_have_the_names_of_openslide(slide_file, tmp_path):
    (tmp_path / "text.dcm").write_text("no slide")
    with openslide.open_slide(slide_file) as slide:
        assert isinstance(slide, openslide.OpenSlide)
        assert slide.read_region((0, 0), 0, (2, 2)).size == (2, 2)
        with pytest.raises(openslide.OpenSlideError, match="negative"):
            slide.read_region((0, 0), 0, (-2, 2))
    with pytest.raises(openslide.OpenSlideError, match="closed"):
        _ = slide.dimensions
    for open_it in (openslide.OpenSlide, openslide.open_slide):
        for given in (tmp_path / "text.dcm", tmp_path):
            with pytest.raises(openslide.OpenSlideUnsupportedFormatError):
                open_it(given)
    with pytest.raises(TypeError, match="int"):
        openslide.open_slide(5)


# -- ordinary pictures --

PICTURES = """
import json, sys
import numpy as np
import openslide

path, regions, thumbnails = sys.argv[1], *map(json.loads, sys.argv[2:])
slide = openslide.open_slide(path)
assert type(slide) is openslide.ImageSlide
print(json.dumps({
    "regions": [[r.size, r.mode, np.asarray(r).ravel().tolist(), len(r.info["icc_profile"])]
                for r in (slide.read_region(at, 0, size) for at, size in regions)],
    "thumbnails": [[t.size, t.mode, np.asarray(t).ravel().tolist(), len(t.info["icc_profile"])]
                   for t in map(slide.get_thumbnail, thumbnails)],
    "rest": [slide.level_count, slide.dimensions, slide.level_dimensions, slide.level_downsamples,
             dict(slide.properties), dict(slide.associated_images), slide.detect_format(path),
             slide.get_best_level_for_downsample(9), repr(slide)],
}))
"""


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_an_ordinary_picture_is_shown_as_openslide_shows_it(tmp_path, mode):
    path = tmp_path / "picture.png"
    random = np.random.default_rng(3)
    shape = (30, 40) if mode == "L" else (30, 40, len(mode))
    Image.fromarray(random.integers(0, 256, shape, np.uint8)).save(path, icc_profile=srgb_profile())
    theirs = said_by_openslide(PICTURES, path, json.dumps(REGIONS), json.dumps(THUMBNAILS))
    with openslide.open_slide(str(path)) as slide:
        assert type(slide) is openslide.ImageSlide

        def shown(picture):
            values = np.asarray(picture).ravel().tolist()
            return [list(picture.size), picture.mode, values, len(picture.info["icc_profile"])]

        assert [shown(slide.read_region(at, 0, size)) for at, size in REGIONS] == theirs["regions"]
        assert [shown(slide.get_thumbnail(size)) for size in THUMBNAILS] == theirs["thumbnails"]
        rest = [
            slide.level_count, slide.dimensions, slide.level_dimensions, slide.level_downsamples,
            dict(slide.properties), dict(slide.associated_images), slide.detect_format(path),
            slide.get_best_level_for_downsample(9), repr(slide),
        ]  # fmt: skip
        assert json.loads(json.dumps(rest)) == theirs["rest"]
        assert slide.color_profile is not None
    with pytest.raises(ValueError, match="closed"):
        slide.read_region((0, 0), 0, (1, 1))


def test_a_picture_of_pillow_stays_open_when_its_slide_is_closed(slide_file):
    picture = Image.new("RGB", (8, 6), "red")
    slide = openslide.ImageSlide(picture)
    slide.set_cache(openslide.OpenSlideCache(100))
    assert slide.color_profile is None
    for wrong in (((0, 0), 1, (2, 2)), ((0, 0), 0, (-1, 2))):
        with pytest.raises(openslide.OpenSlideError):
            slide.read_region(*wrong)
    with pytest.raises(dicomslide.MemoryLimitError):
        slide.read_region((0, 0), 0, (10**7, 10**7))
    slide.close()
    slide.close()
    assert picture.getpixel((0, 0)) == (255, 0, 0)
    assert openslide.ImageSlide.detect_format(slide_file) is None
    with pytest.raises(UnidentifiedImageError):
        openslide.ImageSlide(slide_file)


def test_a_class_of_ones_own_needs_what_openslides_needs():
    class Own(openslide.AbstractSlide):
        level_count = 1
        level_dimensions = ((40, 20),)
        level_downsamples = (1.0,)
        properties: dict[str, str] = {}  # noqa: RUF012
        associated_images: dict[str, Image.Image] = {}  # noqa: RUF012

        @classmethod
        def detect_format(cls, filename):
            return None

        def close(self):
            pass

        def get_best_level_for_downsample(self, downsample):
            return 0

        def read_region(self, location, level, size):
            return Image.new("RGBA", size, "red")

    with Own() as slide:
        slide.set_cache(openslide.OpenSlideCache(1))
        assert slide.dimensions == (40, 20)
        assert slide.color_profile is None
        assert slide.get_thumbnail((10, 10)).size == (10, 5)


# -- caches --


def decoded(monkeypatch):
    """Count the frames that are decoded."""
    from dicomslide.readers import frame_reader

    frames = []
    original = frame_reader.decode_frame

    def counting(*args, **kwargs):
        frames.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(frame_reader, "decode_frame", counting)
    return frames


def test_a_cache_holds_decoded_tiles_up_to_its_capacity(slide_file, monkeypatch):
    frames = decoded(monkeypatch)
    tile = 64 * 80 * 3
    whole = (200, 160)  # 3 × 3 tiles
    cache = openslide.OpenSlideCache(40 * tile)
    assert repr(cache) == f"OpenSlideCache({40 * tile})"
    with dicomslide.set_options(frame_cache_bytes=0):
        with openslide.OpenSlide(slide_file) as slide:
            before = slide.read_region((0, 0), 0, whole)
            slide.read_region((0, 0), 0, whole)
            assert len(frames) == 18  # nothing is kept
            slide.set_cache(cache)
            assert slide.read_region((0, 0), 0, whole) == before
            assert len(frames) == 27
            assert slide.read_region((0, 0), 0, whole) == before
            assert len(frames) == 27
            assert cache.frames.nbytes == 9 * tile
        # shared by slides, and it outlives them
        with openslide.OpenSlide(slide_file) as slide:
            slide.set_cache(cache)
            assert slide.read_region((0, 0), 0, whole) == before
            assert len(frames) == 27
            slide.set_cache(openslide.OpenSlideCache(2 * tile))
            for x in (0, 80, 160, 80, 160, 0):  # the two last stay
                slide.read_region((x, 0), 0, (40, 64))
            assert len(frames) == 27 + 4
            slide.set_cache(openslide.OpenSlideCache(0))
            for _ in range(2):
                slide.read_region((0, 0), 0, (40, 64))
            assert len(frames) == 27 + 4 + 2


def test_a_slide_with_a_cache_pickles_without_it(slide_file):
    slide = openslide.OpenSlide(slide_file)
    before = len(pickle.dumps(slide))
    slide.set_cache(openslide.OpenSlideCache(10**6))
    region = slide.read_region((0, 0), 0, (200, 160))
    pickled = pickle.dumps(slide)
    assert len(pickled) == before
    assert pickle.loads(pickled).read_region((0, 0), 0, (200, 160)) == region


def test_what_is_no_cache_is_a_type_error_and_one_of_openslide_python_changes_nothing(slide_file):
    class Cache:
        _openslide_cache = object()

    with openslide.OpenSlide(slide_file) as slide:
        slide.set_cache(Cache())
        assert slide.read_region((0, 0), 0, (2, 2)).size == (2, 2)
        for wrong in (None, 5, "cache"):
            with pytest.raises(TypeError, match="expected an OpenSlideCache"):
                slide.set_cache(wrong)
    with pytest.raises(ValueError, match="closed"):
        slide.set_cache(Cache())
    with pytest.raises(ValueError, match="negative"):
        openslide.OpenSlideCache(-1)
    with pytest.raises(TypeError):
        openslide.OpenSlideCache(1.5)


# -- properties --

PROPERTIES = """
import json, sys
import openslide
print(json.dumps(dict(openslide.OpenSlide(sys.argv[1]).properties)))
"""


@pytest.mark.parametrize("value", ["ABC123", "", None])
def test_a_barcode_is_that_of_level_0_also_where_it_is_empty(tmp_path, value):
    path, _ = write_slide(tmp_path, shape=(60, 80), downsamples=(1, 2), associated=False)
    dataset = pydicom.dcmread(path)
    if value is not None:
        dataset.BarcodeValue = value
        dataset.save_as(path)
    theirs = said_by_openslide(PROPERTIES, path)
    ours = openslide.OpenSlide(path).properties
    assert ours.get(openslide.PROPERTY_NAME_BARCODE) == value
    assert theirs.get(openslide.PROPERTY_NAME_BARCODE) == value
    assert list(ours) == list(theirs)


def write_parts(folder):
    """Write the base level as a concatenation of two files, and a second level."""
    base, second = write_slide(
        folder / "whole", shape=(128, 128), downsamples=(1, 2), tile_shape=(64, 64),
        transfer_syntax_uid=EXPLICIT, associated=False,
    )  # fmt: skip
    second.rename(folder / second.name)
    pixels = pydicom.dcmread(base).PixelData
    for part in range(2):
        dataset = pydicom.dcmread(base)
        dataset.SOPInstanceUIDOfConcatenationSource = dataset.SOPInstanceUID
        dataset.SOPInstanceUID = uid_of("part", str(part))
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.ConcatenationUID = uid_of("concatenation", "0")
        dataset.InConcatenationNumber, dataset.InConcatenationTotalNumber = part + 1, 2
        dataset.ConcatenationFrameOffsetNumber = 2 * part
        dataset.NumberOfFrames = 2
        half = len(pixels) // 2
        dataset.PixelData = pixels[part * half : (part + 1) * half]
        dataset.save_as(folder / f"part-{part}.dcm")
    return folder / "part-0.dcm"


def test_properties_of_a_concatenation_have_its_file_meta_information(tmp_path):
    path = write_parts(tmp_path)
    theirs = said_by_openslide(PROPERTIES, path)
    ours = dict(openslide.OpenSlide(path).properties)
    assert ours["dicom.TransferSyntaxUID"] == EXPLICIT
    assert list(ours) == list(theirs)
    differing = {key for key in ours if ours[key] != theirs[key].rstrip(" ")}
    # ours are those of the whole
    assert differing <= {"dicom.NumberOfFrames", "dicom.ConcatenationFrameOffsetNumber"}
    assert ours["dicom.NumberOfFrames"] == "4"


# -- several pyramids of one glass --


def write_regions(folder, *, one_series):
    """Write two regions of one glass, 12 mm apart, into one folder; return files by region."""
    (folder / "glass").mkdir(parents=True)
    found = []
    for region, (y, shape) in enumerate(((32.0, (100, 130)), (20.0, (64, 97)))):
        paths = {}
        for path in write_slide(
            folder / str(region), shape=shape, origin=(18.0, y), downsamples=(1, 2),
            tile_shape=(32, 32), drawing="position", transfer_syntax_uid=EXPLICIT,
            associated=not one_series,
        ):  # fmt: skip
            dataset = pydicom.dcmread(path)
            dataset.SOPInstanceUID = uid_of("instance", str(region), path.name)
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            if not one_series:
                dataset.SeriesInstanceUID = uid_of("series", str(region))
            paths[path.stem] = folder / "glass" / f"{region}-{path.name}"
            dataset.save_as(paths[path.stem])
        found.append(paths)
    return found


SHOWN = """
import json, sys
import numpy as np
import openslide
slide = openslide.OpenSlide(sys.argv[1])
regions = [slide.read_region((0, 0), i, size) for i, size in enumerate(slide.level_dimensions)]
print(json.dumps([slide.level_dimensions, [np.asarray(r).ravel().tolist() for r in regions],
                  dict(slide.properties)]))
"""


def test_a_file_shows_its_own_pyramid_as_libopenslide_does_of_two_series(tmp_path):
    for paths in write_regions(tmp_path, one_series=False):
        for name in ("level-0", "level-1", "label"):
            dimensions, regions, properties = said_by_openslide(SHOWN, paths[name])
            with openslide.OpenSlide(paths[name]) as slide:
                assert [list(size) for size in slide.level_dimensions] == dimensions
                for level, size in enumerate(slide.level_dimensions):
                    ours = np.asarray(slide.read_region((0, 0), level, size))
                    assert ours.ravel().tolist() == regions[level]
                assert dict(slide.properties) == {k: v.rstrip() for k, v in properties.items()}


def test_a_file_shows_its_own_pyramid_also_within_one_series(tmp_path):
    regions = write_regions(tmp_path, one_series=True)
    for paths, (rows, columns) in zip(regions, ((100, 130), (64, 97)), strict=True):
        for name in ("level-0", "level-1"):
            slide = openslide.OpenSlide(paths[name])
            assert slide.dimensions == (columns, rows)
            assert slide.level_count == 2
            stored = pydicom.dcmread(paths["level-1"])
            assert slide.level_dimensions[1] == (
                stored.TotalPixelMatrixColumns, stored.TotalPixelMatrixRows,
            )  # fmt: skip
            again = pickle.loads(pickle.dumps(slide))
            assert again.read_region((0, 0), 0, (97, 64)) == slide.read_region((0, 0), 0, (97, 64))
    of_slide = openslide.OpenSlide(dicomslide.open_slide(tmp_path / "glass", pyramid=1))
    assert of_slide.dimensions == (97, 64)
    assert pickle.loads(pickle.dumps(of_slide)).dimensions == (97, 64)


def test_a_folder_of_several_slides_says_what_this_class_takes(tmp_path):
    for number in (1, 2):
        write_slide(
            tmp_path / str(number), shape=(64, 64), tile_shape=(32, 32), downsamples=(1,),
            container_id=f"S-{number}", slide_number=number, associated=False,
        )  # fmt: skip
    with pytest.raises(
        dicomslide.AmbiguousSlideError, match=r"'S-1'(.|\n)*OpenSlide takes the path"
    ):
        dicomslide.OpenSlide(tmp_path)
    for slide in (
        tmp_path / "1" / "level-0.dcm",
        dicomslide.open_slide(tmp_path, container_id="S-1"),
    ):
        assert dicomslide.OpenSlide(slide).properties["dicom.ContainerIdentifier"] == "S-1"
