"""What the README and the documentation show, runs.

Blocks of Python of a page run one after the other, in one namespace, in a folder where there is
what they open. Addresses that they name are those of servers on this machine. A block that follows
a comment ``<!-- not run: why -->`` is compiled only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import doctest
import pkgutil
import re
import runpy
import shutil
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pydicom
import pytest
import xarray as xr

import dicomslide
from dicomslide.cli import _parser
from dicomslide.testing import write_slide
from tests.support import derive, orthanc, parts
from tests.support.derive import annotations_of, group_of
from tests.support.moto_bucket import serving_bucket
from tests.support.optional import need
from tests.support.range_server import serving

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
BLOCK = re.compile(r"^(?:<!-- not run: (.+?) -->\n+)?```python\n(.*?)^```$", re.M | re.S)


def blocks_of(page):
    """Yield of each block of Python why it isn't run, the line it begins on, and its text."""
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        yield found[1], text.count("\n", 0, found.start(2)), found[2]


# -- what pages speak of ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where pages are read: a slide with a segmentation and annotations, and a cohort."""
    folder = tmp_path_factory.mktemp("pages")
    files = write_slide(
        folder / "slide", shape=(1536, 1536), origin=(16.6, 29.6), container_id="S23-1"
    )
    shape = (1536, 1536)
    pixels = np.zeros((*shape, 2), bool)
    pixels[400:1000, 300:900, 0] = pixels[1000:1200, 300:900, 1] = True
    derive.write_segmentation(
        folder / "slide" / "segmentation.dcm", files[0], pixels.astype(np.uint8), "BINARY"
    )
    cells = group_of([np.array([[500.0, 600.0], [510, 600], [510, 610]])])
    annotations_of(files[0], [cells]).save_as(folder / "slide" / "annotations.dcm")
    for number in (1, 2):
        write_slide(
            folder / "cohort" / f"S23-{number}",
            shape=(512, 640),
            container_id=f"S23-{number}",
            slide_number=number,
        )
    with zipfile.ZipFile(folder / "slides.zip", "w") as archive:
        for path in files:
            archive.write(path, f"slide/{path.name}")
    return folder


@pytest.fixture(scope="module")
def web_server(folder):
    with serving(folder) as server:
        yield server.url


@pytest.fixture(scope="module")
def dicomweb_server(folder, tmp_path_factory):
    if reason := orthanc.reason_to_skip():
        pytest.skip(reason)
    with orthanc.running(tmp_path_factory.mktemp("orthanc")) as url:
        orthanc.store(url, sorted((folder / "slide").glob("[lo]*.dcm")))
        yield url


@pytest.fixture(scope="module")
def cluster(bucket, tmp_path_factory):
    """A cluster whose workers have the bucket's credentials."""
    distributed = pytest.importorskip("distributed", reason="a cluster takes distributed")
    workers = tmp_path_factory.mktemp("workers")
    parts.check("cluster")
    with distributed.LocalCluster(
        2, threads_per_worker=1, dashboard_address=":0", local_directory=workers
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture(scope="module")
def bucket(folder, tmp_path_factory):
    """A bucket of moto's server; S3's environment variables lead to it."""
    with serving_bucket("bucket") as (options, client), pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", options["client_kwargs"]["endpoint_url"])
        patch.setenv("AWS_ACCESS_KEY_ID", options["key"])
        patch.setenv("AWS_SECRET_ACCESS_KEY", options["secret"])
        patch.setenv("AWS_DEFAULT_REGION", options["client_kwargs"]["region_name"])
        for path in [*(folder / "slide").iterdir(), *(folder / "cohort").rglob("*.dcm")]:
            name = str(path.relative_to(folder))
            client.upload_file(str(path), "bucket", name, ExtraArgs={"ACL": "public-read"})
        yield "s3://bucket"


REGISTERS = "client.register_worker_callbacks("
"""In a page that has a client of a cluster, unless it makes one."""
ADDRESSES = {  # as pages have them, and the fixtures that stand for them
    "s3://bucket": "bucket",
    "https://host/dicom-web": "dicomweb_server",
    "https://host": "web_server",
    "tcp://scheduler:8786": "cluster",
}


def parts_of(page):
    """Return what the examples of a page need that has to be started."""
    text = page.read_text(encoding="utf-8")
    found = {"server"} if "s3://bucket" in text or "https://host/dicom-web" in text else set()
    if "tcp://scheduler:8786" in text or REGISTERS in text:
        found |= {"cluster", "server"}
    return found


@pytest.fixture
def addressed(request, folder):
    """What puts into a text what addresses, paths and UIDs stand for."""

    def put(text):
        for address, fixture in ADDRESSES.items():
            if address in text:
                text = text.replace(address, request.getfixturevalue(fixture))
        header = pydicom.dcmread(folder / "slide" / "level-0.dcm", stop_before_pixels=True)
        text = text.replace("/studies/1.2.3", f"/studies/{header.StudyInstanceUID}")
        text = text.replace("/series/4.5.6", f"/series/{header.SeriesInstanceUID}")
        return text.replace("/shared/", f"{folder}/")

    return put


@pytest.fixture
def names(request, addressed, monkeypatch):
    """What pages take for granted: a model, a token, options, a client of dask's cluster."""
    page = types.ModuleType("page")
    names = vars(page)
    names |= {
        "model": model,
        "my_token": lambda: "token",
        "options": {"anon": False},
    }
    text = request.getfixturevalue("page").read_text(encoding="utf-8")
    if "@dataclass" in text:
        # which look their module up; else functions would be pickled by a name that no worker knows
        monkeypatch.setitem(sys.modules, "page", page)
    if "torch.utils.data.DataLoader(" in text:
        names["torch"] = pytest.importorskip("torch", reason="PyTorch isn't installed")
    if '.parquet")\n' in text:
        need("pyarrow")
    with contextlib.ExitStack() as stack:
        if REGISTERS in text and "client = " not in text:
            from distributed import Client

            address = request.getfixturevalue("cluster")
            names["client"] = stack.enter_context(Client(address, set_as_default=False))
        before = dataclasses.asdict(dicomslide.get_options())
        stack.callback(
            lambda: dicomslide.set_options(**before)
        )  # those that a page sets are undone
        stack.enter_context(matplotlib.rc_context({"backend": "Agg"}))
        yield names
        plt.close("all")


def model(tile):
    """Return a number for each 4 × 4 pixels of a tile (rows, columns, samples)."""
    rows, columns = tile.shape[0] // 4, tile.shape[1] // 4
    return tile.reshape(rows, 4, columns, 4, -1).mean((1, 3, 4))


class _Shown(doctest.OutputChecker):
    """Takes any output where none is shown."""

    def check_output(self, want, got, optionflags):
        return not want or super().check_output(want, got, optionflags)


def run(text, names, title, *, path=None, line=0, checker=None):
    """Run examples with a prompt; names that they make stay."""
    test = doctest.DocTestParser().get_doctest(text, {}, title, path, line)
    test.globs = names  # which the parser would copy
    said = []
    runner = doctest.DocTestRunner(checker, verbose=False, optionflags=doctest.ELLIPSIS)
    failed, _ = runner.run(test, out=said.append, clear_globs=False)
    assert not failed, "".join(said)


# -- tests -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",  # of botocore
    "ignore::ResourceWarning",
    "ignore:This DataLoader will create:UserWarning",  # on a machine of few processors
)
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[getattr(pytest.mark, part) for part in sorted(parts_of(page))])
        for page in PAGES
        if any(blocks_of(page))
    ],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_its_examples_run(page, names, folder, addressed, monkeypatch):
    monkeypatch.chdir(folder)
    for reason, line, text in blocks_of(page):
        if text.startswith(">>>"):
            run(addressed(text), names, page.name, path=str(page), line=line)
            continue
        code = compile("\n" * line + (text if reason else addressed(text)), str(page), "exec")
        if not reason:
            exec(code, names)


def test_the_store_of_the_page_of_sources_passes_the_tests_that_the_page_shows(folder, tmp_path):
    store, fill, tests = (text for _, _, text in blocks_of(DOCS / "reference" / "sources.md"))
    shutil.copytree(folder / "slide", tmp_path / "slide")
    (tmp_path / "own.py").write_text(store)
    (tmp_path / "fill.py").write_text(f"from own import *\n{fill}")
    (tmp_path / "test_own.py").write_text(f"from own import *\n{tests}")
    for command in (["fill.py"], ["-m", "pytest", "-q", "-p", "no:cacheprovider", "test_own.py"]):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert not done.returncode, done.stdout + done.stderr
    assert "passed" in done.stdout


@pytest.mark.parametrize(
    "name", [name for name in dicomslide.__all__ if ">>>" in getattr(dicomslide, name).__doc__]
)
def test_the_example_of_its_docstring_runs(name, folder, tmp_path, monkeypatch):
    for part in ("slide", "cohort"):
        shutil.copytree(folder / part, tmp_path / part)
    monkeypatch.chdir(tmp_path)
    slide = dicomslide.open_slide("slide")
    names = {each: getattr(dicomslide, each) for each in dicomslide.__all__}
    names |= {"dicomslide": dicomslide, "np": np, "xr": xr, "slide": slide}
    names["image"] = slide.get_volume_images()[0]
    names["matrix"] = names["image"].get_total_pixel_matrix()
    text = getattr(dicomslide, name).__doc__
    run(text, names, name, checker=_Shown())
    plt.close("all")


@pytest.mark.parametrize("figure", ["coordinates", "rooms"])
def test_a_figure_is_drawn_by_its_script(tmp_path, figure):
    script = shutil.copy(DOCS / "figures" / f"{figure}.py", tmp_path)
    with matplotlib.rc_context({"backend": "Agg"}):
        runpy.run_path(script, run_name="__main__")
    assert (tmp_path / f"{figure}.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_the_figure_of_the_rooms_shows_them_as_they_are():
    script = runpy.run_path(str(DOCS / "figures" / "rooms.py"))
    shown = (DOCS / "figures" / "rooms.svg").read_text(encoding="utf-8")
    words = script["words"](script["parts"]())
    assert f"<dc:description>{words}<" in shown, "draw it anew: python docs/figures/rooms.py"


def test_rooms_that_import_each_other_in_a_circle_are_not_drawn():
    layers_of = runpy.run_path(str(DOCS / "figures" / "rooms.py"))["layers_of"]
    assert layers_of({"low": set(), "top": {"low", "middle"}, "middle": {"low"}}) == [
        ["low"], ["middle"], ["top"]
    ]  # fmt: skip
    with pytest.raises(ValueError, match="a circle among"):
        layers_of({"low": set(), "one": {"low", "other"}, "other": {"one"}})


def names_in(page):
    """What a page sets as code, without its blocks of code."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.findall(r"(?<!`)`([^`\n]+)`", text)


ROOMS = {path.stem for path in Path(dicomslide.__file__).parent.iterdir()}


@pytest.mark.parametrize("page", sorted((DOCS / "internals").glob("*.md")), ids=lambda p: p.stem)
def test_what_the_internals_name_is_there(page):
    for name in names_in(page):
        if re.fullmatch(r"[a-z]\w*(\.\w+)+", name) and name.partition(".")[0] in ROOMS:
            assert pkgutil.resolve_name(f"dicomslide.{name}") is not None


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "SECURITY.md"])
def test_files_that_a_page_for_contributors_names_are_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    tops = "dicomslide/", "tests/", "docs/", ".ci/"
    named = {name for name in names_in(ROOT / page) if name.startswith(tops)}
    named |= set(re.findall(r"\]\(([^)#]+)[^)]*\)", text))
    assert len(named) > 5
    made = {"docs/_build", "tests/test_NAME.py"}
    assert not {name for name in named - made if not (ROOT / name).exists()}


def test_every_command_and_option_is_on_its_page():
    text = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    commands = next(action.choices for action in _parser()._actions if action.choices)
    for name, parser in commands.items():
        assert f"`dicomslide {name} " in text
        options = {option for action in parser._actions for option in action.option_strings}
        assert not {option for option in options - {"-h", "--help"} if f"`{option}`" not in text}
