"""Imports point downwards; importing is cheap; modules stay small."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import xarray as xr

import dicomslide
from dicomslide.backends.part10.file import FileSource
from dicomslide.testing import write_slide

PACKAGE = Path(dicomslide.__file__).parent

# from the bottom up: a room may import those of layers before its own
LAYERS = (
    {"errors", "enum", "_version"},
    {"process"},
    {"options"},
    {"pixels"},
    {"header"},
    {"utils"},
    {"backends"},
    {"readers"},
    {"display"},
    {"matrix", "tile", "pyramid"},
    {"image"},
    {"annotation"},
    {"contents"},
    {"labelled"},
    {"accessor"},
    {"virtual"},
    {"slide"},
    {"xarray_plugin", "export", "openslide", "recipes", "view", "write"},
    {"demo", "plugins"},
    {"cli"},
    {"__main__"},
)
BACKENDS = (
    {"base", "coalesce", "criteria", "packing"},
    {"concatenation", "search"},
    {"part10", "batching", "net"},
    {"objects", "dicomweb"},
    {"open", "records"},
)
IN_WORDS = Path(__file__).parent.parent / "docs" / "internals" / "index.md"
FOR_TESTING = {"errors", "enum", "_version", "process", "options", "pixels", "header"}
"""What `testing` may import: it shares no reader with what it tests."""


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield ".".join(path.relative_to(PACKAGE).with_suffix("").parts), path


def imported(path):
    """Modules and packages of the package that a module imports: late, or for its types, too.

    Modules of other rooms that it names in a text are meant to be imported by name.
    """
    room = path.relative_to(PACKAGE).parts[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            named = re.fullmatch(r"dicomslide\.([\w.]+)", node.value)
            if named and named[1].split(".")[0] != room and is_module(named[1]):
                yield named[1]
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.partition(".")[0] != "dicomslide":
                continue
            inner = name.removeprefix("dicomslide").lstrip(".")
            if isinstance(node, ast.Import) or inner not in ("", *PACKAGES):
                yield inner
                continue
            for alias in node.names:  # of a package: its modules, or what it offers itself
                module = f"{inner}.{alias.name}".lstrip(".")
                yield module if is_module(module) else inner


def is_module(name):
    at = PACKAGE.joinpath(*name.split("."))
    return at.with_suffix(".py").exists() or at.is_dir()


PACKAGES = {
    ".".join(path.parent.relative_to(PACKAGE).parts) for path in PACKAGE.rglob("*/__init__.py")
}


def layer_of(room, layers):
    return next((number for number, rooms in enumerate(layers) if room in rooms), None)


def is_allowed(name, other):
    """Whether a module may import another one."""
    (room, *inner), (its_room, *its_inner) = name.split("."), other.split(".")
    if room == "__init__":
        return True  # the door
    if room == "testing":
        return its_room == "testing" or its_room in FOR_TESTING
    if its_room == "testing":
        return room == "demo"
    if room != its_room:
        here, there = layer_of(room, LAYERS), layer_of(its_room, LAYERS)
        return None not in (here, there) and there < here
    if room == "backends" and inner[0] != "__init__" and inner[0] != its_inner[0]:
        here, there = layer_of(inner[0], BACKENDS), layer_of(its_inner[0], BACKENDS)
        return None not in (here, there) and there < here
    return True


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda value: Path(value).name)
def test_imports_point_downwards(name, path):
    assert not [other for other in imported(path) if not is_allowed(name, other)]


@pytest.mark.parametrize(
    ("heading", "layers"), [("Layers of the package", LAYERS), ("Layers of backends", BACKENDS)]
)
def test_the_layers_are_written_as_they_are(heading, layers):
    if not IN_WORDS.exists():
        pytest.skip("the documentation isn't there")
    section = IN_WORDS.read_text(encoding="utf-8").partition(f"### {heading}\n")[2]
    lines = re.findall(r"^(\d+)\. (.+)$", section.partition("\n#")[0], re.MULTILINE)
    assert [int(number) for number, _ in lines] == list(range(1, len(layers) + 1))
    assert [set(re.findall(r"`(\w+)`", rooms)) for _, rooms in lines] == list(layers)


def test_modules_import_each_other_in_no_circle():
    paths = {name.removesuffix(".__init__"): path for name, path in modules()}
    arrows = {name: {o for o in imported(path) if o in paths} for name, path in paths.items()}
    while arrows:
        free = {name for name, others in arrows.items() if not others & arrows.keys() - {name}}
        assert free, f"a circle among {sorted(arrows)}"
        arrows = {name: others for name, others in arrows.items() if name not in free}


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda value: Path(value).name)
def test_modules_stay_small(name, path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 600


def test_no_attribute_is_made_under_a_lock_that_a_fork_leaves_closed():
    """Until Python 3.12, functools.cached_property has one a class."""
    users = [name for name, path in modules() if "cached_property(" in path.read_text()
             or "import cached_property" in path.read_text()
             or "@functools.cached_property" in path.read_text()]  # fmt: skip
    assert users == []


def test_a_dataset_costs_no_dictionary_of_codes(tmp_path):
    """Which takes longer to import than all else takes."""
    code = (
        "import sys, dicomslide; from dicomslide.testing import write_slide;"
        f"dicomslide.open_slide(write_slide({str(tmp_path)!r})).to_dataset();"
        "print({'pydicom.sr', 'highdicom', 'matplotlib', 'dicomweb_client'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_import_costs_no_heavy_package():
    code = (
        "import sys, dicomslide; from dicomslide import open_slide, Slide, TotalPixelMatrix;"
        "heavy = {'xarray', 'dask', 'pandas', 'highdicom', 'matplotlib', 'imagecodecs', 'PIL'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_first_region_costs_no_module_that_it_does_not_need(tmp_path):
    """Opening JPEG files and reading pixels: beyond what pydicom itself imports."""
    write_slide(tmp_path, shape=(64, 96), tile_shape=(32, 32), downsamples=(1, 2))
    code = (
        "import sys, numpy, pydicom; before = set(sys.modules);"
        f"import dicomslide; slide = dicomslide.open_slide({str(tmp_path)!r}, correct_color=False);"
        "slide.get_image_region((5, 5), 0, (50, 60));"
        "print(*sorted(set(sys.modules) - before))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(out.stdout.split())
    heavy = {"xarray", "dask", "highdicom", "PIL", "imagecodecs", "pandas", "matplotlib"}
    assert not heavy & {name.partition(".")[0] for name in imported}
    assert "numpy.ma" not in imported  # which plain np.unique imports, for 20 ms
    ours = {name.removeprefix("dicomslide.") for name in imported if "dicomslide." in name}
    assert not ours & {"backends.dicomweb.source", "backends.dicomweb.connection", "xarray_plugin"}
    rooms = {name.partition(".")[0] for name in ours}
    assert not rooms & {"annotation", "labelled", "display", "openslide", "testing", "demo"}


def test_every_public_name_is_there():
    for name in dicomslide.__all__:
        assert getattr(dicomslide, name) is not None
    assert set(dicomslide.__all__) < set(dir(dicomslide))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dicomslide.nothing  # noqa: B018


def test_every_option_is_set_by_its_environment_variable():
    code = (
        "import dataclasses, json, dicomslide;"
        "print(json.dumps(dataclasses.asdict(dicomslide.get_options())))"
    )
    options = dataclasses.asdict(dicomslide.get_options())
    values = {
        name: "index" if isinstance(value, str) else 5 + number
        for number, (name, value) in enumerate(options.items())
    }
    environment = {f"DICOMSLIDE_{name.upper()}": str(value) for name, value in values.items()}
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | environment,
    )
    assert json.loads(out.stdout) == values


@pytest.mark.parametrize(
    ("door", "most"), [("matrix", 5), ("slide region", 6), ("sel", 6), ("dask task", 6)]
)
def test_few_calls_lie_between_a_door_and_the_bytes(position_slide, monkeypatch, door, most):
    slide = dicomslide.open_slide(position_slide, correct_color=False)
    image = xr.open_dataset(slide, engine="dicomslide", cache=False).image
    y, x = image.y[10:50], image.x[10:50]
    offset, size = (float(x[0]), float(y[-1])), (float(x[-1] - x[0]), float(y[0] - y[-1]))
    doors = {
        "matrix": lambda: slide.get_volume_images()[0].get_total_pixel_matrix()[10:50, 10:50],
        "slide region": lambda: slide.get_slide_region(offset, 0, size),
        "sel": lambda: image.sel(y=slice(y[0], y[-1]), x=slice(x[0], x[-1])).values,
        "dask task": lambda: slide.to_dataset().image[10:50, 10:50].data.compute(scheduler="sync"),
    }
    calls, original = [], FileSource.read_frames

    def counting(self, indices):
        frame, names = sys._getframe(1), []
        while frame is not None:
            if Path(frame.f_code.co_filename).is_relative_to(PACKAGE):
                names.append(frame.f_code.co_qualname)
            frame = frame.f_back
        calls.append(names)
        return original(self, indices)

    monkeypatch.setattr(FileSource, "read_frames", counting)
    with dicomslide.set_options(num_threads=1):
        doors[door]()
    assert calls
    for names in calls:
        assert len(names) <= most, names
