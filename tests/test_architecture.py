"""Imports point downwards; importing is cheap; modules stay small."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import dicomslide
from dicomslide.testing import write_slide

PACKAGE = Path(dicomslide.__file__).parent

# from the bottom up: a module may import only what stands before it
FLOORS = [
    "errors",
    "enum",
    "forks",
    "lazy",
    "options",
    "cache",
    "together",
    "identity",
    "utils",
    "geometry",
    "annotation",
    "annotation.graphic",
    "annotation.group",
    "channel",
    "frames",
    "perframe",
    "codec.codestream",
    "codec.pixel_format",
    "codec.native",
    "codec.jpeg",
    "codec.jpeg2000",
    "codec.decode",
    "codec",
    "color",
    "layout",
    "scaling",
    "placement",
    "pyramid",
    "backends.addresses",
    "backends.spans",
    "backends.attempts",
    "backends.ranges",
    "backends.storage",
    "backends.blobs",
    "backends.lenient",
    "backends.base",
    "backends.part10",
    "backends.shared_folder",
    "backends.index_cache",
    "backends.pixel_data",
    "backends.local",
    "backends.file",
    "backends.frame_database",
    "backends.encoded_frames",
    "backends.read_ahead",
    "backends.gather",
    "backends.remote",
    "backends.streams",
    "backends.dicomdir",
    "backends.stores",
    "backends.multipart",
    "backends.bodies",
    "backends.transport",
    "backends.dicom_json",
    "backends.credentials",
    "backends.service",
    "backends.failures",
    "backends.negotiation",
    "backends.connection",
    "backends.dicomweb",
    "backends.client",
    "tile",
    "frame_reader",
    "indexing",
    "reader",
    "annotation.bulk",
    "stack",
    "labelled",
    "labelled.attributes",
    "display",
    "display.description",
    "display.picture",
    "display.html",
    "sampler",
    "matrix",
    "lookup",
    "image",
    "slide.options",
    "slide.places",
    "slide.levels",
    "slide.collection",
    "slide.derived",
    "slide.pyramids",
    "slide.arrangement",
    "labelled.index",
    "labelled.channel_index",
    "labelled.coordinates",
    "accessor",
    "labelled.variables",
    "labelled.tree",
    "slide.contents",
    "slide.arrays",
    "slide.slide",
    "slide.discovery",
    "slide.opening",
    "slide.sorting",
    "slide.cohort",
    "slide",
    "export",
    "export.images",
    "export.ome_metadata",
    "export.exclusive",
    "export.target",
    "export.ome_zarr",
    "export.spatialdata",
    "openslide.errors",
    "openslide.lowlevel",
    "openslide.abstract",
    "openslide.image_slide",
    "openslide.cache",
    "openslide.properties",
    "openslide.rgba",
    "openslide.contents",
    "openslide.api",
    "openslide",
    "testing.drawing",
    "testing.encode",
    "testing.image",
    "testing.write",
    "testing.slide",
    "testing",
    "recipes.grid",
    "recipes.samples",
    "recipes.tissue",
    "recipes.stains",
    "recipes.statistics",
    "recipes.tiles",
    "recipes",
    "demo",
    "cli",
    "__main__",
    "backends.xarray_plugin",
]


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if name not in ("__init__", "backends.__init__"):
            yield name.removesuffix(".__init__"), path


def imported(path):
    """Modules of the package that a module imports when it runs: not for its types only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only or not isinstance(node, ast.ImportFrom):
            continue
        if node.module == "dicomslide":
            yield from (alias.name for alias in node.names)
        elif (node.module or "").startswith("dicomslide."):
            home = node.module.removeprefix("dicomslide.")
            names = {f"{home}.{alias.name}" for alias in node.names} & set(FLOORS)
            yield from names or {home}


def test_every_module_has_its_floor():
    assert {name for name, _ in modules()} == set(FLOORS)


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=lambda value: Path(value).name)
def test_imports_point_downwards(name, path):
    below = set(FLOORS[: FLOORS.index(name)])
    above = {other for other in imported(path) if other not in below}
    assert not above


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
    assert not ours & {"backends.dicomweb", "backends.connection", "backends.xarray_plugin"}
    floors = {name.partition(".")[0] for name in ours}
    assert not floors & {"annotation", "labelled", "display", "openslide", "testing", "demo"}


def test_every_public_name_is_there():
    for name in dicomslide.__all__:
        assert getattr(dicomslide, name) is not None
    assert dir(dicomslide) == sorted(dicomslide.__all__)
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
