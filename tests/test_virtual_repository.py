"""Slides in an icechunk repository: read by xarray alone, extended, watched for changes."""

from __future__ import annotations

import importlib.util
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

import dicomslide
from dicomslide.backends.objects.repositories import reason_of
from dicomslide.cli import main
from dicomslide.errors import ExportError, MetadataWarning, NotVirtualError, StoreExistsError
from tests.support.optional import need
from tests.support.quirky import BASELINE, NATIVE, RLE, open_stored, pyramid, split_in_two, write
from tests.support.range_server import serving

need("icechunk", "virtualizarr")
import icechunk  # noqa: E402

import dicomslide.virtual.repository as repository_module  # noqa: E402
from dicomslide.virtual import to_icechunk  # noqa: E402

HAS_ZARR_CODECS = importlib.util.find_spec("imagecodecs.zarr") is not None


def tree_of(repository, name):
    store = repository.readonly_session("main").store
    return xr.open_datatree(store, group=name, engine="zarr", consolidated=False, chunks={})


def names_in(repository):
    store = repository.readonly_session("main").store
    return sorted(xr.open_datatree(store, engine="zarr", consolidated=False).children)


def assert_read(repository, name, slide):
    tree = tree_of(repository, name)
    ours = slide.to_datatree(orientation="stored", mask_and_scale=False)
    assert "level-0.dcm" in tree.attrs.pop("dicomslide_sources")
    assert tree.attrs == ours.attrs
    for level in range(slide.num_levels):
        theirs, own = (each[f"level_{level}"] for each in (tree, ours))
        assert theirs.attrs == own.attrs
        assert theirs.image.attrs == own.image.attrs
        np.testing.assert_array_equal(theirs.image, own.image)
        assert set(theirs.coords) == set(own.coords)
        for coord in own.coords:
            assert theirs[coord].values.tolist() == own[coord].values.tolist()


@pytest.fixture(scope="module", params=[NATIVE, BASELINE, RLE])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("a slide")  # with a blank: URLs are percent-encoded
    pyramid(folder, transfer_syntax_uid=request.param, sparse=True, absent=[(0, 1)])
    return folder


def test_pixels_through_icechunk_are_those_of_the_slide(folder, tmp_path):
    slide = open_stored(folder)
    repository = to_icechunk(slide, tmp_path / "repo")
    assert isinstance(repository, icechunk.Repository)
    assert_read(repository, "DS-0001", slide)


def test_a_storage_of_icechunk_can_be_given(folder):
    slide = open_stored(folder)
    assert_read(to_icechunk({"a": slide}, icechunk.in_memory_storage()), "a", slide)


READER = """
import sys
sys.modules["dicomslide"] = None  # importing it is an error
import icechunk, numpy as np, xarray as xr
try:
    from imagecodecs.zarr import register_codecs
except ImportError:
    pass
else:
    register_codecs()
path, prefix, name, out = sys.argv[1:]
access = icechunk.containers_credentials(
    {prefix: getattr(icechunk.credentials, "LocalFileSystemAccess", None)}
)
repository = icechunk.Repository.open(
    icechunk.local_filesystem_storage(path), authorize_virtual_chunk_access=access
)
store = repository.readonly_session("main").store
tree = xr.open_datatree(store, group=name, engine="zarr", consolidated=False)
np.save(out, tree["level_0"].image.values)
"""


@pytest.mark.parametrize("uid", [NATIVE, BASELINE])
def test_a_process_without_dicomslide_reads_the_repository(tmp_path, uid):
    if uid == BASELINE and not HAS_ZARR_CODECS:
        pytest.skip("imagecodecs for Python 3.11 has no codecs of zarr")
    pyramid(tmp_path / "slide", transfer_syntax_uid=uid)
    slide = open_stored(tmp_path / "slide")
    to_icechunk(slide, tmp_path / "repo")
    prefix = f"{(tmp_path / 'slide').as_uri()}/"
    out = tmp_path / "pixels.npy"
    command = [sys.executable, "-c", READER, str(tmp_path / "repo"), prefix, "DS-0001", str(out)]
    subprocess.run(command, check=True, cwd=tmp_path)
    pixels = slide.get_image_region((0, 0), 0, slide.size)
    np.testing.assert_array_equal(np.load(out), pixels)


# -- a cohort --------------------------------------------------------------------------------------


def cohort(folder, *numbers, **options):
    for number in numbers:
        pyramid(folder / str(number), container_id=f"S-{number}", slide_number=number, **options)
    return dicomslide.open_slides(folder, correct_color=False)


def test_a_cohort_is_one_commit_and_is_extended_by_another(tmp_path):
    slides = cohort(tmp_path / "first", 1, 2)
    repository = to_icechunk(slides, tmp_path / "repo")
    more = cohort(tmp_path / "second", 3)  # in another folder
    repository = to_icechunk(more, tmp_path / "repo")
    assert names_in(repository) == ["S-1", "S-2", "S-3"]
    messages = [each.message for each in repository.ancestry(branch="main")]
    assert messages[:2] == ["slides: S-3", "slides: S-1, S-2"]
    for name, slide in [*slides.opened(), *more.opened()]:
        assert_read(repository, name, slide)


def test_a_slide_that_is_there_is_replaced_only_if_wanted(tmp_path):
    slides = cohort(tmp_path / "slides", 1, 2)
    to_icechunk(slides, tmp_path / "repo")
    other = open_stored(pyramid(tmp_path / "other", shape=(40, 40), container_id="S-1"))
    with pytest.raises(StoreExistsError, match="S-1 already"):
        to_icechunk(other, tmp_path / "repo")
    repository = to_icechunk(other, tmp_path / "repo", overwrite=True)
    assert names_in(repository) == ["S-1", "S-2"]
    assert_read(repository, "S-1", other)


def test_after_a_failure_nothing_is_committed(tmp_path):
    good = open_stored(pyramid(tmp_path / "good"))
    bad = open_stored(write(tmp_path / "bad.dcm", RLE, fragments=2))
    with pytest.raises(NotVirtualError, match=r"bad\.dcm.*several fragments"):
        to_icechunk({"good": good, "bad": bad}, tmp_path / "repo")
    assert not (tmp_path / "repo").exists()
    with pytest.warns(MetadataWarning, match="left out: bad: .*several fragments"):
        repository = to_icechunk({"good": good, "bad": bad}, tmp_path / "repo", on_error="skip")
    assert names_in(repository) == ["good"]
    with pytest.raises(ValueError, match="on_error"):
        to_icechunk(good, tmp_path / "repo", on_error="ignore")


def test_two_slides_of_one_name_are_an_error(tmp_path):
    slide = open_stored(pyramid(tmp_path / "slide"))
    with pytest.raises(NotVirtualError, match="two slides have the name 'DS-0001'"):
        to_icechunk([slide, slide], tmp_path / "repo")
    with pytest.raises(NotVirtualError, match="'a_b': the group 'a_b' is that of another slide"):
        to_icechunk({"a/b": slide, "a_b": slide}, tmp_path / "repo")


def test_names_that_zarr_has_for_other_things_are_replaced(tmp_path):
    slide = open_stored(pyramid(tmp_path / "slide"))
    slides = dict.fromkeys(["zarr.json", "a.zarr.json", "b\\c"], slide)
    repository = to_icechunk(slides, tmp_path / "repo")
    assert names_in(repository) == ["a.zarr.json", "b_c", "slide"]
    assert list(dicomslide.open_slides(repository)) == ["a.zarr.json", "b_c", "slide"]
    assert_read(repository, "b_c", slide)


@pytest.mark.parametrize("slides", [{"a": 5}, {1: "slide"}, ["slide"], "slide"])
def test_what_is_no_slide_is_refused(tmp_path, slides):
    with pytest.raises(TypeError, match=r"expected slides.* not a (int|str)"):
        to_icechunk(slides, tmp_path / "repo")


def test_the_command_line_writes_and_extends(tmp_path, capsys):
    cohort(tmp_path / "slides", 1, 2)
    repo = str(tmp_path / "repo")
    assert main(["virtualize", str(tmp_path / "slides" / "1"), repo]) == 0
    assert main(["virtualize", str(tmp_path / "slides" / "2"), repo]) == 0
    assert "repo: committed" in capsys.readouterr().out
    assert main(["virtualize", str(tmp_path / "slides"), repo]) == 1
    assert "S-1, S-2 already" in capsys.readouterr().err
    assert main(["virtualize", "--overwrite", str(tmp_path / "slides"), repo]) == 0


def test_what_is_no_folder_for_a_repository_is_one_line(tmp_path, capfd):
    cohort(tmp_path / "slides", 1)
    (tmp_path / "file").write_text("")
    for place, said in ("slides", "clean prefix"), ("file", "file"), ("file/repo", "file/repo"):
        assert main(["virtualize", str(tmp_path / "slides"), str(tmp_path / place)]) == 1
        errors = [line for line in capfd.readouterr().err.splitlines() if "dicomslide:" in line]
        assert len(errors) == 1
        assert said in errors[0]
        assert "context" not in errors[0]


def test_an_error_of_icechunk_says_each_reason_once():
    text = (
        "  x can't write: no access\n  | \n  | context:\n  |    0: icechunk::create\n"
        "  |              at icechunk/src/a.rs:1\n  | \n  |-> no access\n  `-> it is full\n"
    )
    assert reason_of(icechunk.IcechunkError(text)) == "can't write: no access: it is full"
    assert reason_of(icechunk.IcechunkError("plain")) == "plain"


def test_slides_that_others_add_meanwhile_stay(tmp_path, monkeypatch):
    slides = {name: open_stored(pyramid(tmp_path / name)) for name in "abc"}
    to_icechunk({"a": slides["a"]}, tmp_path / "repo")
    write_slides = repository_module.write_slides

    def meanwhile(name):
        def write(*arguments):
            monkeypatch.setattr(repository_module, "write_slides", write_slides)
            to_icechunk({name: slides["b"]}, tmp_path / "repo")
            write_slides(*arguments)

        monkeypatch.setattr(repository_module, "write_slides", write)

    meanwhile("b")
    assert names_in(to_icechunk({"c": slides["c"]}, tmp_path / "repo")) == ["a", "b", "c"]
    meanwhile("d")
    with pytest.raises(ExportError, match=r"repo: nothing is committed.*same names"):
        to_icechunk({"d": slides["c"]}, tmp_path / "repo")
    (again,) = dicomslide.open_slides(tmp_path / "repo").select(["d"]).values()
    assert again.name == slides["b"].name


def test_the_command_line_takes_urls_of_repositories(tmp_path, capsys, monkeypatch):
    cohort(tmp_path / "slides", 1)
    monkeypatch.chdir(tmp_path)
    assert main(["virtualize", "slides", "memory://cohort.icechunk"]) == 1
    assert "memory://cohort.icechunk: icechunk has storages of" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["slides"]


def test_a_missing_package_is_named_before_slides_are_searched_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "virtualizarr", None)
    assert main(["virtualize", "absent", str(tmp_path / "repo")]) == 1
    assert "pip install 'dicomslide[virtual]'" in capsys.readouterr().err


# -- changes and servers ---------------------------------------------------------------------------


def test_a_file_that_has_changed_is_noticed(tmp_path):
    (path, *_) = pyramid(tmp_path / "slide")
    repository = to_icechunk(open_stored(tmp_path / "slide"), tmp_path / "repo")
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    with pytest.raises(icechunk.IcechunkError, match="has changed"):
        tree_of(repository, "DS-0001")["level_0"].image.load()
    tree_of(repository, "DS-0001")["level_1"].image.load()


@pytest.mark.server
def test_objects_of_s3_are_read_and_watched(tmp_path):
    need("s3fs", "moto")
    from tests.support.moto_bucket import serving_bucket

    files = pyramid(tmp_path / "slide")
    with serving_bucket("scans") as (options, client):
        for path in files:
            client.upload_file(str(path), "scans", f"a/{path.name}")
        slide = dicomslide.open_slide(
            [f"s3://scans/a/{path.name}" for path in files],
            storage_options=options,
            correct_color=False,
        )
        address = options["client_kwargs"]["endpoint_url"]
        store = icechunk.s3_store(
            region="us-east-1", endpoint_url=address, allow_http=True, force_path_style=True,
            s3_compatible=True,
        )  # fmt: skip
        keys = icechunk.s3_credentials(access_key_id="someone", secret_access_key="hush")
        repository = to_icechunk(
            slide,
            icechunk.in_memory_storage(),
            containers=[icechunk.VirtualChunkContainer("s3://scans/", store)],
            credentials={"s3://scans/": keys},
        )
        assert_read(repository, "DS-0001", slide)
        client.put_object(
            Bucket="scans", Key=f"a/{files[0].name}", Body=b"0" + files[0].read_bytes()[1:]
        )
        with pytest.raises(icechunk.IcechunkError, match="has changed"):
            tree_of(repository, "DS-0001")["level_0"].image.load()


@pytest.mark.skipif(icechunk.__version__ >= "2", reason="icechunk 2 knows servers with a port")
def test_a_server_with_a_port_is_refused_by_name(tmp_path):
    need("aiohttp")
    files = pyramid(tmp_path / "slide", downsamples=(1,))
    with serving(tmp_path / "slide") as server:
        slide = dicomslide.open_slide(f"{server.url}/{files[0].name}")
        with pytest.raises(NotVirtualError, match=r"level-0\.dcm: no container.*from version 2 on"):
            to_icechunk(slide, tmp_path / "repo")


@pytest.mark.skipif(icechunk.__version__ < "2", reason="icechunk 1 knows servers without a port")
def test_files_of_an_http_server_are_read(tmp_path):
    need("aiohttp")
    files = pyramid(tmp_path / "slide")
    with serving(tmp_path / "slide") as server:
        slide = dicomslide.open_slide(
            [f"{server.url}/{path.name}" for path in files], correct_color=False
        )
        repository = to_icechunk(slide, tmp_path / "repo")
        assert_read(repository, "DS-0001", slide)


@pytest.mark.parametrize("check_frames", [None, "sample", "all"])
def test_frames_of_a_server_are_examined_if_wanted(tmp_path, check_frames):
    """Without a request for each frame, its own codec examines it as it is read."""
    need("aiohttp")
    files = pyramid(tmp_path / "slide", transfer_syntax_uid=BASELINE, downsamples=(1,))
    with serving(tmp_path / "slide") as server:
        slide = dicomslide.open_slide(f"{server.url}/{files[0].name}", correct_color=False)
        virtual = slide.to_virtual(check_frames=check_frames)
    (codec,) = virtual["level_0"].image.data.metadata.codecs
    is_foreign = HAS_ZARR_CODECS and check_frames is not None
    assert codec.to_dict()["name"] == ("imagecodecs_jpeg" if is_foreign else "dicomslide_frame")


def test_files_of_other_servers_need_a_container(tmp_path):
    from dicomslide.virtual.containers import opened

    with pytest.raises(NotVirtualError, match=r"gs://bucket/.*VirtualChunkContainer"):
        opened(str(tmp_path / "repo"), ["gs://bucket/a.dcm"], (), {})


# -- opened as a cohort ----------------------------------------------------------------------------


def test_a_repository_opens_as_the_cohort_that_it_was_made_of(tmp_path):
    slides = cohort(tmp_path / "slides", 1, 2, associated=True)
    repository = to_icechunk(slides, tmp_path / "repo")
    dicomslide.clear_all()
    again = dicomslide.open_slides(tmp_path / "repo", correct_color=False)
    assert type(again) is dicomslide.Cohort
    assert list(again) == ["S-1", "S-2"]
    for name, slide in pickle.loads(pickle.dumps(again)).opened():
        assert slide.describe() == slides[name].describe()
        assert slide.to_datatree(associated=True).identical(
            slides[name].to_datatree(associated=True)
        )
        assert_read(repository, name, slide)
    assert again.to_pandas().equals(slides.to_pandas())
    other = cohort(tmp_path / "others", 3)
    to_icechunk(other, tmp_path / "repo")
    for source in (str(tmp_path / "repo"), repository, repository.storage):
        assert list(dicomslide.open_slides(source)) == ["S-1", "S-2", "S-3"]
    with pytest.raises(TypeError, match=r"stains is given with an index; see Cohort.select"):
        dicomslide.open_slides(tmp_path / "repo", stains=["x"])
    with pytest.raises(ValueError, match="storage_options are for URLs"):
        dicomslide.open_slides(tmp_path / "repo", storage_options={})
    for opened in (dicomslide.open_slide, lambda path: dicomslide.open_slides([path])):
        with pytest.raises(dicomslide.NotDicomError) as error:
            opened(tmp_path / "repo")
        assert "a repository of them, given by itself" in error.value.__notes__[0]


def test_parts_of_an_image_open_as_one(tmp_path):
    files = pyramid(tmp_path / "slide", transfer_syntax_uid=NATIVE)
    split_in_two(files[1])
    slide = open_stored(tmp_path / "slide")
    to_icechunk(slide, tmp_path / "repo")
    again = dicomslide.open_slides(tmp_path / "repo", correct_color=False)["DS-0001"]
    assert again.describe() == slide.describe()
    for level in range(slide.num_levels):
        size = slide.levels[level].size
        ours, theirs = (each.get_image_region((0, 0), level, size) for each in (slide, again))
        np.testing.assert_array_equal(ours, theirs)


def test_a_slide_of_a_repository_that_changed_since_is_noticed(tmp_path):
    to_icechunk(cohort(tmp_path / "slides", 1, 2), tmp_path / "repo")
    path = tmp_path / "slides" / "1" / "level-0.dcm"
    path.write_bytes(path.read_bytes() + b"\0\0")
    dicomslide.clear_all()
    slides = dicomslide.open_slides(tmp_path / "repo")
    with pytest.raises(dicomslide.SourceChangedError, match=r"1/level-0\.dcm.*expected"):
        slides["S-1"]
    assert slides["S-2"].num_levels


def test_groups_of_unknown_origin_are_failures(tmp_path):
    import zarr

    repository = to_icechunk(cohort(tmp_path / "slides", 1, 2), tmp_path / "repo")
    session = repository.writable_session("main")
    root = zarr.open_group(session.store)
    root.create_group("other")
    root["S-1"].attrs["dicomslide_sources"] = '{"version": 99, "sources": []}'
    session.commit("other groups")
    slides = dicomslide.open_slides(tmp_path / "repo")
    assert list(slides) == ["S-2"]
    assert isinstance(slides.failures["other"], dicomslide.NotSlideError)
    assert "is of version 99" in str(slides.failures["S-1"])
    session = repository.writable_session("main")
    root = zarr.open_group(session.store)
    root["S-2"].attrs["dicomslide_sources"] = '{"version": 1, "sources": [{"kind": "pickle"}]}'
    session.commit("damaged")
    with pytest.raises(dicomslide.CohortIndexError, match=r"its attribute .* is"):
        dicomslide.open_slides(tmp_path / "repo")


def test_a_repository_that_is_none_is_an_error(tmp_path):
    (tmp_path / "refs").mkdir()
    (tmp_path / "snapshots").mkdir()
    with pytest.raises(dicomslide.SourceReadError, match="icechunk can't read the repository"):
        dicomslide.open_slides(tmp_path)
    with pytest.raises(NotVirtualError, match=r"give an icechunk\.Storage for others"):
        dicomslide.open_slides("memory://cohort.icechunk")


@pytest.mark.server
def test_a_repository_of_s3_opens_as_a_cohort(tmp_path):
    need("s3fs", "moto")
    from tests.support.moto_bucket import serving_bucket

    slides = cohort(tmp_path / "slides", 1)
    with serving_bucket("repositories") as (options, _):
        url = "s3://repositories/a/cohort.icechunk"
        dicomslide.register_storage_options("s3://repositories", options)
        to_icechunk(slides, url)
        assert dicomslide.open_slides(url)["S-1"].describe() == slides["S-1"].describe()
        dicomslide.forget("s3://repositories")
        again = dicomslide.open_slides(url, storage_options=options)
        assert list(again) == ["S-1"]
        assert "hush" not in str(pickle.dumps(again))
        dicomslide.forget("s3://repositories")


@pytest.mark.skipif(icechunk.__version__ < "2", reason="icechunk 1 has no storage of HTTP servers")
def test_a_repository_of_a_web_server_opens_as_a_cohort(tmp_path):
    slides = cohort(tmp_path / "slides", 1)
    to_icechunk(slides, tmp_path / "cohort.icechunk")
    with serving(tmp_path) as server:
        again = dicomslide.open_slides(f"{server.url}/cohort.icechunk")
        assert again["S-1"].describe() == slides["S-1"].describe()
