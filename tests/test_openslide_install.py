"""After install(), openslide-python reads DICOM by this package, in processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from dicomslide.testing import write_slide
from tests.support.optional import need
from tests.support.tiff import write_tiff

pytestmark = pytest.mark.filterwarnings("ignore::dicomslide.MetadataWarning")

EXPLICIT = "1.2.840.10008.1.2.1"
SDIST = "OPENSLIDE_PYTHON_SDIST"
"""Environment variable: path of openslide-python's source distribution, which has its tests."""


def run(*command, **kw):
    return subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, command)],
        **dict(capture_output=True, text=True, check=False) | kw,
    )


def said(code, *arguments):
    """What a program prints, as JSON."""
    done = run("-c", code, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A slide, a TIFF, a PNG, another DICOM file and one whose first frame is damaged."""
    folder = tmp_path_factory.mktemp("slides")
    slide = write_slide(
        folder / "slide", shape=(304, 408), downsamples=(1, 2, 4), tile_shape=(64, 80)
    )[0]
    (folder / "damaged").mkdir()
    file = pydicom.dcmread(slide)
    number = file.NumberOfFrames
    frames = list(pydicom.encaps.generate_frames(file.PixelData, number_of_frames=number))
    file.PixelData = pydicom.encaps.encapsulate([frames[0][:100], *frames[1:]])
    file.save_as(folder / "damaged" / "slide.dcm")
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    file.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    (folder / "ct").mkdir()
    file.save_as(folder / "ct" / "ct.dcm")
    pixels = np.random.default_rng(2).integers(0, 256, (100, 150, 3), np.uint8)
    write_tiff(folder / "slide.tiff", pixels)
    Image.fromarray(pixels).save(folder / "picture.png")
    return folder


@pytest.fixture(scope="module")
def slide_file(folder):
    return folder / "slide" / "level-0.dcm"


# -- with openslide-python --

READING = """
import hashlib, json, sys
import openslide
from openslide import OpenSlide, open_slide
from openslide.deepzoom import DeepZoomGenerator

if sys.argv[1] == "install":
    import dicomslide.openslide
    dicomslide.openslide.install()
    dicomslide.openslide.install()

def told(picture):
    return [picture.mode, picture.size, hashlib.sha256(picture.tobytes()).hexdigest(),
            len(picture.info.get("icc_profile", b""))]

found = {}
for path in sys.argv[2:]:
    slide = OpenSlide(path)
    assert type(slide) is OpenSlide
    assert isinstance(slide, openslide.AbstractSlide)
    zoom = DeepZoomGenerator(slide, tile_size=126, overlap=1)
    cache = openslide.OpenSlideCache(10**6)
    slide.set_cache(cache)
    found[path] = {
        "ours": type(slide._osr).__module__.startswith("dicomslide"),
        "format": [OpenSlide.detect_format(path), slide.detect_format(path.encode())],
        "repr": repr(slide),
        "levels": [slide.level_count, slide.dimensions, slide.level_dimensions,
                   slide.level_downsamples],
        "best": [slide.get_best_level_for_downsample(d) for d in (0.5, 1, 2, 3.9, 4, 100)],
        "properties": {key: value.rstrip() for key, value in slide.properties.items()},
        "no property": slide.properties.get("absent"),
        "profile": slide.color_profile is not None,
        "regions": [told(slide.read_region(at, level, size)) for at, level, size in (
            ((0, 0), 0, (100, 90)), ((-12, 40), 1, (90, 50)), ((80, 80), 2, (400, 400)),
            ((0, 0), 9, (5, 6)), ((0, 0), 0, (0, 6)))],
        "thumbnail": told(slide.get_thumbnail((64, 64))),
        "associated": {key: told(picture) for key, picture in slide.associated_images.items()},
        "zoom": [zoom.level_dimensions, told(zoom.get_tile(zoom.level_count - 1, (1, 0)))],
        "opened": type(open_slide(path)).__name__,
    }
print(json.dumps(found))
"""


def test_installed_it_reads_dicom_as_libopenslide_does_and_the_rest_by_libopenslide(folder):
    need("openslide")
    paths = [
        folder / "slide" / "level-0.dcm",
        folder / "slide" / "label.dcm",
        folder / "slide.tiff",
    ]
    theirs = said(READING, "without", *paths)
    ours = said(READING, "install", *paths)
    assert [each.pop("ours") for each in theirs.values()] == [False, False, False]
    assert [each.pop("ours") for each in ours.values()] == [True, True, False]
    assert ours == theirs
    assert theirs[str(paths[0])]["associated"].keys() == {"label", "macro"}


KINDS = """
import ctypes, json, pickle, sys
from pathlib import Path
import pytest
from openslide import OpenSlide as OpenedBefore, OpenSlideError
from openslide import lowlevel
import openslide
import dicomslide
from dicomslide.openslide import install, uninstall

folder = Path(sys.argv[1])
slide_file = folder / "slide" / "level-0.dcm"
before = dict(vars(lowlevel))
install()
install()

class Derived(openslide.OpenSlide):
    def half(self):
        return self.get_thumbnail([edge // 2 for edge in self.dimensions])

# what is a slide
assert openslide.OpenSlide is OpenedBefore
for cls in (OpenedBefore, Derived):
    with cls(slide_file) as slide:
        assert isinstance(slide, cls) and slide.dimensions == (408, 304)
        assert type(slide._osr).__module__.startswith("dicomslide")
assert Derived(str(slide_file)).half().size == (204, 152)
own = dicomslide.OpenSlide(slide_file)
assert isinstance(own, openslide.OpenSlide) and isinstance(own, openslide.AbstractSlide)
assert not isinstance(own, openslide.ImageSlide)
assert not isinstance(openslide.OpenSlide(slide_file), openslide.ImageSlide)
assert isinstance(openslide.open_slide(folder / "picture.png"), openslide.ImageSlide)

# what libopenslide doesn't open: a folder, and a URL
for place in (folder / "slide", slide_file.as_uri()):
    assert openslide.OpenSlide(place).read_region((8, 8), 0, (9, 9)) == slide.__class__(
        slide_file).read_region((8, 8), 0, (9, 9))
    assert openslide.OpenSlide.detect_format(place) == "dicom"
assert openslide.OpenSlide.detect_format((folder / "absent").as_uri()) is None

# errors are those of openslide-python
no_slides = "ct/ct.dcm", "ct", "absent.dcm", "picture.png"
for path in map(folder.joinpath, no_slides):
    with pytest.raises(openslide.OpenSlideUnsupportedFormatError):
        openslide.OpenSlide(path)
    assert openslide.OpenSlide.detect_format(path) is None
for wrong in (None, 3):
    with pytest.raises(ctypes.ArgumentError):
        openslide.OpenSlide(wrong)
with openslide.OpenSlide(folder / "damaged" / "slide.dcm") as damaged:
    with pytest.raises(OpenSlideError, match="frame 1") as error:
        damaged.read_region((0, 0), 0, (10, 10))
    assert isinstance(error.value.__cause__, dicomslide.FrameDecodeError)
    assert damaged.read_region((80, 0), 0, (10, 10)).size == (10, 10)  # it can still be used
    with pytest.raises(OpenSlideError):
        damaged.read_region((0, 0), 0, (-1, 10))
with pytest.raises(ctypes.ArgumentError, match="closed"):
    damaged.dimensions
with pytest.raises(ctypes.ArgumentError, match="closed"):
    damaged.close()
with pytest.raises(KeyError):
    slide.__class__(slide_file).associated_images["absent"]

# functions of openslide.lowlevel
handle = openslide.OpenSlide(slide_file)._osr
assert lowlevel.get_level_dimensions(handle, 1) == (204, 152)
assert lowlevel.get_level_dimensions(handle, 9) == (-1, -1)
assert lowlevel.get_level_downsample(handle, -1) == -1.0
assert lowlevel.get_associated_image_dimensions(handle, b"label") == (440, 360)
assert lowlevel.get_icc_profile_size(handle) == len(lowlevel.read_icc_profile(handle)) > 100
assert lowlevel.get_associated_image_icc_profile_size(handle, "macro") == len(
    lowlevel.read_associated_image_icc_profile(handle, "macro"))
assert lowlevel.get_error(handle) is None
assert all(hasattr(getattr(lowlevel, name), "available")
           for name in before if name.startswith("get_") or name.startswith("read_"))

# caches are those that were asked for, and others are refused
frames = []
from dicomslide.readers import frame_reader
decode = frame_reader.decode_frame
frame_reader.decode_frame = lambda *a, **kw: frames.append(1) or decode(*a, **kw)
dicomslide.set_options(frame_cache_bytes=0)
cached = openslide.OpenSlide(slide_file)
cache = openslide.OpenSlideCache(10**6)
assert repr(cache) == "OpenSlideCache(1000000)"
cached.set_cache(cache)
for _ in range(3):
    cached.read_region((0, 0), 0, (80, 64))
assert len(frames) == 1
for wrong in (None, 3):
    with pytest.raises(TypeError):
        cached.set_cache(wrong)
with pytest.raises(ctypes.ArgumentError):
    openslide.OpenSlideCache(-1)

# pickles
again = pickle.loads(pickle.dumps(cached))
assert again.read_region((8, 8), 1, (50, 40)) == cached.read_region((8, 8), 1, (50, 40))

# and back
uninstall()
uninstall()
assert {k: v for k, v in vars(lowlevel).items() if not k.startswith("__")} == {
    k: v for k, v in before.items() if not k.startswith("__")}
assert not type(openslide.OpenSlide(slide_file)._osr).__module__.startswith("dicomslide")
with pytest.raises(ctypes.ArgumentError):
    cached.dimensions  # opened in between
install()
assert cached.dimensions == (408, 304)
assert type(openslide.OpenSlide(slide_file)._osr).__module__.startswith("dicomslide")
print("null")
"""


def test_installed_classes_errors_caches_and_pickles_are_openslides(folder):
    need("openslide")
    said(KINDS, folder)


SPAWNED = """
import multiprocessing, sys
import openslide

def kind(path):
    slide = openslide.OpenSlide(path)
    return type(slide._osr).__name__, slide.read_region((0, 0), 0, (5, 5)).tobytes()

def kind_of(slide):
    return type(slide._osr).__name__, slide.read_region((0, 0), 0, (5, 5)).tobytes()

if __name__ == "__main__":
    import dicomslide.openslide
    dicomslide.openslide.install()
    path = sys.argv[1]
    here = kind(path)
    assert here[0] != "_OpenSlide"
    for method in ("spawn", "forkserver"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            assert pool.apply(kind, (path,)) == here, method
            assert pool.apply(kind_of, (openslide.OpenSlide(path),)) == here, method
    dicomslide.openslide.uninstall()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(kind, (path,))[0] == "_OpenSlide"
"""


def test_processes_that_are_started_are_installed_too(slide_file, tmp_path):
    need("openslide")
    (tmp_path / "program.py").write_text(SPAWNED)
    done = run(tmp_path / "program.py", slide_file, timeout=120)
    assert done.returncode == 0, done.stderr


SUITE = """
import sys
if sys.argv[1] == "install":
    import dicomslide.openslide
    dicomslide.openslide.install()
    import openslide
    assert type(openslide.OpenSlide("tests/fixtures/boxes_0.dcm")._osr).__name__ != "_OpenSlide"
import pytest
sys.exit(pytest.main(["-q", "-rA", "-p", "no:cacheprovider", "tests"]))
"""


def test_the_tests_of_openslide_python_pass_installed_as_they_do_without(tmp_path):
    need("openslide")
    if SDIST not in os.environ:
        pytest.skip(
            f"{SDIST} is not set: pip download --no-deps --no-binary :all: openslide-python"
        )
    with tarfile.open(os.environ[SDIST]) as archive:
        archive.extractall(tmp_path / "sdist", filter="data")
    (unpacked,) = (tmp_path / "sdist").iterdir()
    script = tmp_path / "suite.py"  # whose folder doesn't hold openslide's sources
    script.write_text(SUITE)
    outcomes = []
    for how in ("without", "install"):
        done = run(script, how, cwd=unpacked)
        assert done.returncode == 0, done.stdout + done.stderr
        outcomes.append(
            sorted(line for line in done.stdout.splitlines() if line.startswith(("PASS", "SKIP")))
        )
    assert len(outcomes[0]) > 50
    assert outcomes[0] == outcomes[1]


# -- without it --

WITHOUT = """
import importlib, sys
from pathlib import Path
import pytest

class NotInstalled:
    # as where neither openslide-python nor libopenslide is
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "openslide" and name not in sys.modules:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
with pytest.raises(ModuleNotFoundError):
    import openslide
import dicomslide.openslide
dicomslide.openslide.install()
dicomslide.openslide.install()
import openslide
import openslide.lowlevel
from openslide import OpenSlide, open_slide
from openslide.deepzoom import DeepZoomGenerator
from openslide.lowlevel import OpenSlideError as Error

folder = Path(sys.argv[1])
assert openslide is dicomslide.openslide
assert Error is openslide.OpenSlideError
assert openslide.lowlevel is dicomslide.openslide.lowlevel
slide = open_slide(folder / "slide" / "level-0.dcm")
assert isinstance(slide, openslide.AbstractSlide) and slide.dimensions == (408, 304)
assert isinstance(slide, dicomslide.OpenSlide)
assert DeepZoomGenerator is dicomslide.openslide.deepzoom.DeepZoomGenerator
assert DeepZoomGenerator(slide).get_tile(9, (0, 0)).size == (255, 255)
assert OpenSlide.detect_format(folder / "slide" / "level-0.dcm") == "dicom"
assert OpenSlide.detect_format(folder / "slide.tiff") is None
assert open_slide(folder / "picture.png").dimensions == (150, 100)
with pytest.raises(openslide.OpenSlideUnsupportedFormatError,
                   match="slide.tiff.*other formats need openslide-python"):
    OpenSlide(folder / "slide.tiff")
dicomslide.openslide.uninstall()
dicomslide.openslide.uninstall()
with pytest.raises(ModuleNotFoundError):
    import openslide
"""


def test_without_openslide_python_the_module_is_this_packages(folder):
    done = run("-c", WITHOUT, folder)
    assert done.returncode == 0, done.stderr


# -- python -m dicomslide.openslide --

PROGRAM = """
import json, os, sys
import neighbour
import openslide

class Here:
    pass

slide = openslide.OpenSlide(sys.argv[1])
print(json.dumps({
    "name": __name__,
    "main": getattr(sys.modules["__main__"], "Here", None) is Here,
    "argv": sys.argv,
    "path": sys.path[0],
    "file": __file__,
    "kind": type(getattr(slide, "_osr", slide)).__module__.partition(".")[0],
    "size": slide.dimensions,
}))
if "fail" in sys.argv:
    raise RuntimeError("as it was asked to")
sys.exit(int(sys.argv[2]))
"""


@pytest.fixture
def program(tmp_path):
    (tmp_path / "programs").mkdir()
    path = tmp_path / "programs" / "reading.py"
    path.write_text(PROGRAM)
    path.with_name("neighbour.py").write_text("")
    return path


def test_a_script_runs_as_if_python_ran_it(program, slide_file):
    done = run("-m", "dicomslide.openslide", program, slide_file, 7, "--help", "-m")
    assert done.returncode == 7, done.stderr
    assert json.loads(done.stdout) == {
        "name": "__main__",
        "main": True,
        "argv": [str(program), str(slide_file), "7", "--help", "-m"],
        "path": str(program.parent),
        "file": str(program),
        "kind": "dicomslide",
        "size": [408, 304],
    }


def test_a_module_runs_as_if_python_ran_it(program, slide_file):
    root = Path(__file__).parents[1]
    done = run(
        "-m", "dicomslide.openslide", "-m", "reading", slide_file, 0, "-x",
        cwd=program.parent, env=os.environ | {"PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["main"]
    assert told["argv"] == [str(program), str(slide_file), "0", "-x"]
    assert told["kind"] == "dicomslide"


@pytest.mark.parametrize("zipped", [False, True])
def test_a_folder_or_an_archive_runs_as_if_python_ran_it(program, slide_file, zipped):
    need("openslide")
    program.rename(program.with_name("__main__.py"))
    path = program.parent
    if zipped:
        path = Path(shutil.make_archive(str(path), "zip", path))
    paths = []
    for command in ([path], ["-m", "dicomslide.openslide", path]):
        done = run(*command, slide_file, 3)
        assert (done.returncode, done.stdout[:1]) == (3, "{"), done.stderr
        told = json.loads(done.stdout)
        paths.append(told["path"])
    assert paths == [str(path), str(path)]
    assert told["main"]
    assert told["kind"] == "dicomslide"


def test_an_exception_of_the_program_has_its_traceback_and_status(program, slide_file):
    done = run("-m", "dicomslide.openslide", program, slide_file, "fail")
    assert done.returncode == 1
    assert f'File "{program}", line' in done.stderr
    assert done.stderr.rstrip().endswith("RuntimeError: as it was asked to")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "a script or -m MODULE is needed"),
        (["-m"], 2, "a script or -m MODULE is needed"),
        (["-x", "program.py"], 2, "-x isn't known here"),
        (["absent.py"], 2, "can't open absent.py: there is no such file"),
        (["--help"], 0, ""),
    ],
)
def test_without_a_program_the_usage_is_said(arguments, status, message):
    done = run("-m", "dicomslide.openslide", *arguments)
    assert done.returncode == status
    assert message in done.stderr
    usage = "usage: python -m dicomslide.openslide SCRIPT [ARGUMENT ...]"
    assert usage in done.stdout + done.stderr or "can't open" in message
