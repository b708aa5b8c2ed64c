"""What callers see: names, arguments that were renamed, and at which line they are warned."""

from __future__ import annotations

import inspect
import warnings

import pytest
import xarray as xr

import dicomslide


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
