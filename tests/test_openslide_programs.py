"""Programs that are written for openslide get from us what they get from there."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pydicom
import pytest

from dicomslide.testing import write_slide
from tests.support import programs
from tests.support.optional import need

ROOT = Path(__file__).parents[1]
SCRIPT = Path(programs.__file__)
WAYS = {
    "openslide": [SCRIPT],
    "installed": ["-m", "dicomslide.openslide", SCRIPT],
    "replaced": ["-c", f"""
import runpy, sys
import dicomslide.openslide
sys.modules["openslide"] = dicomslide.openslide
sys.argv = [{str(SCRIPT)!r}, *sys.argv[1:]]
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""],
}  # fmt: skip
"""By whom slides are read: arguments of Python."""


def said(*arguments):
    """What a program prints in a process of its own, as JSON."""
    command = [sys.executable, "-W", "ignore", *map(str, arguments)]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": paths}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def slide_file(tmp_path_factory):
    """A slide with a magnification; levels lie exactly over each other."""
    paths = write_slide(
        tmp_path_factory.mktemp("slide"), shape=(384, 512), downsamples=(1, 2, 4),
        tile_shape=(64, 80), spacing=(0.0005, 0.0005),
    )  # fmt: skip
    for path in paths:
        file = pydicom.dcmread(path)
        file.OpticalPathSequence[0].ObjectiveLensPower = 20
        file.save_as(path)
    return paths[0]


@pytest.fixture(scope="module")
def found(slide_file):
    """What each program gets, by the way in which it reads."""
    need("openslide")
    return {way: said(*arguments, slide_file) for way, arguments in WAYS.items()}


@pytest.mark.parametrize("way", ["installed", "replaced"])
@pytest.mark.parametrize("program", [each.__name__ for each in programs.PROGRAMS])
def test_a_program_gets_what_it_gets_from_openslide(program, way, found):
    assert found[way][program] == found["openslide"][program]


def test_programs_are_read_to_by_whom_they_should_be(slide_file):
    need("openslide")
    code = """
import json, openslide, sys
slide = openslide.OpenSlide(sys.argv[1])
print(json.dumps([type(slide).__module__, type(slide._osr).__module__]))
"""
    ways = {
        "openslide": ["-c", code],
        "installed": ["-c", f"import dicomslide.openslide as d; d.install()\n{code}"],
    }
    assert said(*ways["openslide"], slide_file) == ["openslide", "openslide.lowlevel"]
    assert said(*ways["installed"], slide_file) == [
        "openslide", "dicomslide.openslide.installation",
    ]  # fmt: skip


MONAI = """
import json, sys
from monai.data import PatchWSIDataset, WSIReader
from tests.support.programs import digest

path = sys.argv[1]
reader = WSIReader("openslide", level=1)
wsi = reader.read(path)
pixels, meta = reader.get_data(wsi, location=(16, 24), size=(60, 50))
data = PatchWSIDataset(
    [{"image": path, "location": [64, 64], "label": [1]}], patch_size=32, patch_level=0,
    reader="openslide")
print(json.dumps([
    type(wsi._osr).__module__, digest(pixels), str(meta["path"]), reader.get_mpp(wsi, 1),
    reader.get_power(wsi, 0), reader.get_size(wsi, 2), reader.get_level_count(wsi),
    digest(reader.get_wsi_at_mpp(wsi, 2.0)), digest(data[0]["image"])]))
"""

WSIDATA = """
import json, sys
from wsidata.reader import OpenSlideReader
from tests.support.programs import digest

reader = OpenSlideReader(sys.argv[1])
kind = type(reader.reader._osr).__module__
found = [digest(reader.get_region(16, 8, 60, 50, level=1)), digest(reader.get_thumbnail(100)),
         reader.properties.shape, reader.properties.mpp, reader.properties.magnification,
         reader.properties.level_shape]
reader.detach_reader()
found.append(digest(reader.get_region(16, 8, 60, 50)))
print(json.dumps([kind, *found, sorted(reader.associated_images)]))
"""

TIATOOLBOX = """
import json, sys
from tiatoolbox.wsicore.wsireader import OpenSlideWSIReader
from tests.support.programs import digest

reader = OpenSlideWSIReader(sys.argv[1])
info = reader.info.as_dict()
print(json.dumps([
    type(reader.openslide_wsi._osr).__module__,
    digest(reader.read_rect((8, 16), (50, 40), resolution=0, units="level")),
    digest(reader.read_rect((8, 16), (50, 40), resolution=1.0, units="mpp")),
    digest(reader.read_bounds((0, 0, 128, 96), resolution=1, units="level")),
    digest(reader.slide_thumbnail(resolution=2, units="mpp")),
    [list(map(float, info["mpp"])), info["objective_power"], info["level_count"], info["vendor"]],
]))
"""


@pytest.mark.parametrize(
    ("package", "code"), [("monai", MONAI), ("wsidata", WSIDATA), ("tiatoolbox", TIATOOLBOX)]
)
def test_the_package_itself_gets_what_it_gets_from_openslide(package, code, slide_file):
    need("openslide")
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} isn't installed")
    by_openslide, *theirs = said("-c", code, slide_file)
    by_us, *ours = said("-c", f"import dicomslide.openslide as d; d.install()\n{code}", slide_file)
    assert (by_openslide, by_us) == ("openslide.lowlevel", "dicomslide.openslide.installation")
    assert ours == theirs
