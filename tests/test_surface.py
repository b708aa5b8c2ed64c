"""What callers see: names, arguments that were renamed, and at which line they are warned."""

from __future__ import annotations

import concurrent.futures
import inspect
import pickle
import warnings

import pydicom
import pytest
import xarray as xr
from fake_client import FakeClient

import dicomslide
from dicomslide.backends.part10.file import FileStore
from dicomslide.testing import write_slide


def opened_by_engine(path, **options):
    return xr.open_dataset(path, engine="dicomslide", **options)


DOORS = {
    "to_dataset": lambda path, **options: dicomslide.open_slide(path).to_dataset(**options),
    "to_datatree": lambda path, **options: dicomslide.open_slide(path).to_datatree(**options),
    "open_dataset": lambda path, **options: opened_by_engine(path, **options),
    "a group": lambda path, **options: opened_by_engine(path, group="level_1", **options),
    "open_datatree": lambda path, **options: xr.open_datatree(path, engine="dicomslide", **options),
    "open_groups": lambda path, **options: xr.open_groups(path, engine="dicomslide", **options),
}
"""Whatever makes labelled arrays."""


def dims_of(labelled):
    if isinstance(labelled, dict):
        labelled = labelled["/level_0"]
    node = labelled["level_0"] if isinstance(labelled, xr.DataTree) else labelled
    return node["image"].dims[:2]


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_labelled_arrays_are_upright_or_as_stored(tissue_slide, door):
    assert dims_of(door(tissue_slide)) == ("y", "x")
    assert dims_of(door(tissue_slide, orientation="upright")) == ("y", "x")
    assert dims_of(door(tissue_slide, orientation="stored")) == ("row", "column")
    with pytest.raises(ValueError, match="not 'sideways'"):
        door(tissue_slide, orientation="sideways")


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
@pytest.mark.parametrize(
    ("old", "new", "dims"),
    [("slide", "upright", ("y", "x")), ("matrix", "stored", ("row", "column"))],
)
def test_the_old_name_of_orientation_does_with_a_warning(tissue_slide, door, old, new, dims):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        labelled = door(tissue_slide, frame=old)
    assert dims_of(labelled) == dims
    (warning,) = caught
    assert warning.category is FutureWarning
    assert f"frame={old!r} is called orientation={new!r}" in str(warning.message)
    assert warning.filename == __file__
    with pytest.raises(TypeError, match="frame is the old name of orientation"):
        door(tissue_slide, frame=old, orientation=new)
    with pytest.warns(FutureWarning), pytest.raises(ValueError, match="orientation must be"):
        door(tissue_slide, frame="stored wrongly")


def test_only_the_new_name_is_among_the_arguments():
    for function in (dicomslide.Slide.to_dataset, dicomslide.Slide.to_datatree):
        arguments = inspect.signature(function).parameters
        assert arguments["orientation"].default == "upright"
        assert "frame" not in arguments


@pytest.fixture
def odd_slide(tmp_path):
    """A mirrored slide, one of whose levels has another frame of reference, and a copy of it."""
    paths = write_slide(
        tmp_path / "odd", shape=(60, 80), tile_shape=(32, 32), downsamples=(1, 2),
        orientation=(1, 0, 0, 0, 1, 0), associated=False,
    )  # fmt: skip
    level = pydicom.dcmread(paths[1])
    level.FrameOfReferenceUID += ".1"
    level.save_as(paths[1])
    (tmp_path / "odd" / "copy.dcm").write_bytes(paths[0].read_bytes())
    return tmp_path / "odd"


FINDINGS = ["has the SOP Instance UID of", "2 Frame of Reference UIDs", "a mirror image"]
"""What there is to say of it, once."""


def warnings_of(function, *args, **kwargs):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = function(*args, **kwargs)
    return result, caught


def in_a_pool(folder):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: dicomslide.open_slide(folder)).result()


def made(folder):
    store = FileStore.open(folder)
    return dicomslide.Slide(store, store.metadata)


OPENING = {
    "open_slide": dicomslide.open_slide,
    "Slide": made,
    "one of several": lambda folder: dicomslide.open_slide(folder, container_id="DS-0001"),
    "client": lambda folder: dicomslide.open_slide(FakeClient(folder)),
    "find_slides": lambda folder: dicomslide.find_slides(FakeClient(folder))[0],
    "open_slides": lambda folder: next(iter(dicomslide.open_slides(folder).values())),
    "opened": lambda folder: next(dicomslide.open_slides(folder).opened())[1],
    "OpenSlide": lambda folder: dicomslide.OpenSlide(folder),
    "engine": opened_by_engine,
    "tree": lambda folder: xr.open_datatree(folder, engine="dicomslide"),
    "groups": lambda folder: xr.open_groups(folder, engine="dicomslide"),
    "thread": in_a_pool,
}


@pytest.mark.parametrize(("name", "door"), OPENING.items(), ids=OPENING)
def test_each_warning_comes_once_at_the_line_of_the_caller(odd_slide, name, door):
    _, caught = warnings_of(door, odd_slide)
    said = [str(warning.message) for warning in caught]
    for finding in FINDINGS[name in ("client", "find_slides") :]:  # a server has no two copies
        assert len([message for message in said if finding in message]) == 1, said
    assert len(said) == len(set(said))
    assert {warning.filename for warning in caught} == {__file__}
    source, first = inspect.getsourcelines(in_a_pool if name == "thread" else door)
    if name not in ("open_slide", "OpenSlide"):
        assert {first <= warning.lineno < first + len(source) for warning in caught} == {True}


def test_a_slide_that_is_opened_again_or_pickled_doesnt_warn_again(odd_slide):
    slide, caught = warnings_of(dicomslide.open_slide, odd_slide)
    assert len(caught) == len(FINDINGS)
    assert warnings_of(dicomslide.open_slide, slide, correct_color=False)[1] == []
    assert warnings_of(pickle.loads, pickle.dumps(slide))[1] == []
    assert warnings_of(slide.to_datatree)[1] == []
    cohort, of_sorting = warnings_of(dicomslide.open_slides, odd_slide)
    (name,) = cohort
    of_opening = warnings_of(cohort.__getitem__, name)[1]
    assert len(of_sorting) + len(of_opening) == len(FINDINGS)
    assert warnings_of(cohort.__getitem__, name)[1] == []


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_labelled_arrays_warn_at_the_line_of_the_caller(tmp_path, door):
    write_slide(
        tmp_path / "oblique", shape=(60, 80), tile_shape=(32, 32), downsamples=(1, 2),
        orientation=(0.6, 0.8, 0, 0.8, -0.6, 0), associated=False,
    )  # fmt: skip
    _, caught = warnings_of(door, tmp_path / "oblique")
    assert caught
    assert {warning.filename for warning in caught} == {__file__}
    assert all("lies obliquely" in str(warning.message) for warning in caught)
    assert len({str(warning.message) for warning in caught}) == len(caught)


def test_of_one_slide_an_array_warns_once(tmp_path):
    write_slide(
        tmp_path, shape=(60, 80), tile_shape=(32, 32), downsamples=(1, 2),
        orientation=(0.6, 0.8, 0, 0.8, -0.6, 0), associated=False,
    )  # fmt: skip
    slide = dicomslide.open_slide(tmp_path)
    assert len(warnings_of(slide.to_dataset)[1]) == 1
    (other,) = warnings_of(slide.to_datatree)[1]  # of the other level
    assert "level-1.dcm" in str(other.message)
    assert warnings_of(slide.to_datatree)[1] == []


def test_frames_that_are_filled_warn_at_the_line_of_the_caller_whichever_thread_decodes(tmp_path):
    path, *_ = write_slide(tmp_path, shape=(256, 256), tile_shape=(32, 32), downsamples=(1,),
                           associated=False)  # fmt: skip
    dataset = pydicom.dcmread(path)
    frames = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=64))
    dataset.PixelData = pydicom.encaps.encapsulate([frame[:40] for frame in frames])
    dataset.save_as(path)
    slide = dicomslide.open_slide(path, on_error="fill")
    _, caught = warnings_of(slide.get_image_region, (0, 0), 0, (256, 256))
    assert len(caught) == 64
    assert {warning.filename for warning in caught} == {__file__}
