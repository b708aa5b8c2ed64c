"""Channels by what they are called and by their wavelengths."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import dicomslide
from dicomslide.labelled.channel_index import ChannelIndex
from dicomslide.labelled.name_index import NameIndex
from tests.support.markers import write_markers

NAMES = ["DAPI", "CD3", "CD8", "CD20"]
WAVELENGTHS = [405.0, 640.0, 561.1, 488.0]


def paths_of(names=NAMES, wavelengths=WAVELENGTHS):
    return [
        {"OpticalPathDescription": name}
        | ({} if wavelength is None else {"IlluminationWaveLength": wavelength})
        for name, wavelength in zip(names, wavelengths, strict=True)
    ]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("markers")
    write_markers(folder / "a.dcm", paths_of())
    return folder


DOORS = {
    "to_dataset": lambda path: dicomslide.open_slide(path).to_dataset(),
    "to_dataset auto": lambda path: dicomslide.open_slide(path).to_dataset(chunks="auto"),
    "to_datatree": lambda path: dicomslide.open_slide(path).to_datatree()["level_0"].to_dataset(),
    "engine": lambda path: xr.open_dataset(path, engine="dicomslide"),
    **{
        f"engine, chunks={chunks}": (
            lambda path, chunks=chunks: xr.open_dataset(path, engine="dicomslide", chunks=chunks)
        )
        for chunks in ({}, "auto", {"channel": 2}, {"channel": -1, "y": 32})
    },
    "tree": lambda path: xr.open_datatree(path, engine="dicomslide", chunks={})[
        "level_0"
    ].to_dataset(),
}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_coordinates_are_numpy_at_each_door(path, door):
    level = door(path)
    for name, coord in level.coords.items():
        assert isinstance(coord.data, np.ndarray), name
        assert coord.chunks is None, name
    image = level.image
    assert level.chunksizes.keys() == (image.chunksizes.keys() if image.chunks else set())
    chosen = image[image.channel_description == "CD8"]
    assert chosen.channel.values.tolist() == ["3"]
    assert image.where(image.wavelength > 500, drop=True).channel.values.tolist() == ["2", "3"]
    totals = image.groupby("channel_description").sum(...)
    expected = {n: int(image.values[i].astype(int).sum()) for i, n in enumerate(NAMES)}
    assert dict(zip(totals.channel_description.values, totals.values, strict=True)) == expected


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_names_and_wavelengths_select(path, door):
    level = door(path)
    image = level.image
    assert image.sel(channel_description="DAPI").identical(image.sel(channel="1"))
    assert level.sel(channel_description="CD20").channel == "4"
    assert image.sel(wavelength=405).channel == "1"
    assert image.sel(wavelength=561.1).channel == "3"  # stored in single precision
    assert image.sel(wavelength=455, method="nearest").channel == "4"
    assert image.sel(wavelength=[488, 405]).channel.values.tolist() == ["4", "1"]
    for interval in (slice(400, 500), slice(500, 400)):
        assert image.sel(wavelength=interval).channel.values.tolist() == ["1", "4"]
    assert image.sel(channel_description=slice("CD3", "CD8")).channel_description.size == 2
    with pytest.raises(KeyError, match=r"no channel_description 'CD4'; there are 'DAPI', 'CD3'"):
        image.sel(channel_description="CD4")
    with pytest.raises(KeyError, match=r"no wavelength 455; there are 405.0, .*method=\"nearest\""):
        image.sel(wavelength=455)
    with pytest.raises(KeyError, match="no wavelength 455"):
        image.sel(wavelength=455, method="nearest", tolerance=10)
    with pytest.raises(ValueError, match="method 'pad'; expected \"nearest\""):
        image.sel(wavelength=455, method="pad")
    with pytest.raises(ValueError, match="names have no order"):
        image.sel(channel_description="CD4", method="nearest")


def test_several_channels_may_have_one_name_and_some_no_wavelength(tmp_path):
    names = ["DAPI", "CD3", "DAPI", "CD8"]
    path = write_markers(tmp_path / "a.dcm", paths_of(names, [405.0, None, 405.0, 488.0]))
    image = dicomslide.open_slide(path).to_dataset().image
    assert image.sel(channel_description="DAPI").channel.values.tolist() == ["1", "3"]
    assert image.sel(channel_description=["CD8", "DAPI"]).channel.values.tolist() == ["4", "1", "3"]
    assert image.sel(wavelength=455, method="nearest").channel == "4"
    assert image.sel(wavelength=405).channel.values.tolist() == ["1", "3"]
    points = xr.DataArray(["CD8", "CD3"], dims="cell")
    assert image.sel(channel_description=points).dims == ("cell", "y", "x")
    with pytest.raises(KeyError, match="several channels have the same channel_description"):
        image.sel(channel_description=xr.DataArray(["CD8", "DAPI"], dims="cell"))
    with pytest.raises(KeyError, match="several channels"):
        image.sel(channel_description=slice("DAPI", "CD8"))


def test_the_indexes_go_through_what_xarray_does(path):
    image = dicomslide.open_slide(path).to_dataset().image
    for array in (
        image[::-1],
        image.isel(channel=[3, 1, 0]),
        pickle.loads(pickle.dumps(image)),
        image.copy(deep=True),
        xr.concat([image[2:], image[:2]], dim="channel"),
        xr.concat([image, image], dim="slide"),
        image.roll(channel=1, roll_coords=True),
        image.sortby("wavelength"),
        image + image,
        image * image[:2],
        image.astype("float32").mean(("y", "x")),
        xr.map_blocks(lambda block: block + 1, image),
        image.to_dataset().assign(other=image > 3).other,
        image.compute(),
        xr.align(image, image[1:3], join="outer")[1],
    ):
        assert isinstance(array.xindexes["channel"], ChannelIndex)
        assert isinstance(array.xindexes["wavelength"], NameIndex)
        dapi = array.sel(channel_description="DAPI")
        assert (dapi.channel.item(), dapi.wavelength.item()) == ("1", 405)
        assert array.sel(wavelength=405).channel == "1"
    renamed = image.rename(channel="c", wavelength="nm")
    assert renamed.sel(nm=405).c == "1"
    assert "wavelength" not in image.drop_vars("wavelength").xindexes
    named = image.assign_coords(channel_description=("channel", list("abcd")))
    assert named.set_xindex("channel_description", NameIndex).sel(channel_description="b") is not (
        None
    )
    # dims that are swapped, or stacked, need an index less: xarray expects one per dim
    plain = image.drop_indexes(["channel_description", "wavelength"])
    swapped = plain.swap_dims(channel="channel_description")
    assert swapped.sel(channel_description="CD3").channel == "2"
    assert plain.stack(feature=("channel", "y")).sizes["feature"] == 4 * image.sizes["y"]
    assert image.stack(pixel=("y", "x")).sel(channel_description="CD3").channel == "2"


def test_slides_are_aligned_by_identifiers_not_by_names(tmp_path):
    for name, names, wavelengths in (
        ("a", ["DAPI", "CD3", "CD8"], [405.0, 488.0, 561.0]),
        ("b", ["DAPI", "CD45", "CD8"], [405.0, 488.0, None]),
        ("c", ["DAPI"], [None]),
    ):
        write_markers(tmp_path / f"{name}.dcm", [*paths_of(names, wavelengths), {}])
    a, b, c = (dicomslide.open_slide(tmp_path / f"{n}.dcm").to_dataset().image for n in "abc")
    total = (a + b).compute()
    assert total.channel.values.tolist() == ["1", "2", "3", "4"]
    assert total.channel_description.values.tolist() == ["DAPI", "", "CD8", "4"]
    np.testing.assert_array_equal(total.wavelength, [405, 488, np.nan, np.nan])
    np.testing.assert_array_equal(total, a.values + b.values)
    fewer = (a + c).compute()
    assert fewer.channel.values.tolist() == ["1", "2"]  # what both have
    assert fewer.channel_description.values.tolist() == ["DAPI", ""]
    np.testing.assert_array_equal(fewer, a.values[:2] + c.values)
    stacked = xr.concat([a, c], dim="slide", join="outer", fill_value=0)
    assert stacked.sizes["channel"] == 4
    assert stacked.sel(channel_description="CD8").channel == "3"


@pytest.mark.parametrize(
    "form",
    [
        pytest.param("zarr", marks=pytest.mark.needs("zarr")),
        pytest.param("netcdf", marks=pytest.mark.needs("scipy")),
    ],
)
def test_restored_data_of_files_is_selected_by_name(path, tmp_path, form):
    level = dicomslide.open_slide(path).to_dataset(chunks=-1)[["image"]]
    level.image.encoding.clear()
    for name in level.variables:
        level[name].encoding.clear()
    file = tmp_path / f"a.{form}"
    if form == "zarr":
        level.to_zarr(file, zarr_format=2, consolidated=True)
        opened = xr.open_dataset(file, engine="zarr", chunks={})
    else:
        level.astype("int32").to_netcdf(file, engine="scipy")  # version 3 has no uint16
        opened = xr.open_dataset(file, engine="scipy")
    restored = opened.slide.restore()
    assert restored.image.sel(channel_description="CD8").channel == "3"
    assert restored.image.sel(wavelength=455, method="nearest").channel == "4"
    assert restored.image.attrs["valid_range"] is not None
    with pytest.raises(KeyError, match=r"identifiers are '1' \(DAPI\)"):
        restored.sel(channel="DAPI")
    np.testing.assert_array_equal(restored.image, level.image)


def test_one_plane_and_one_channel_are_selected_too(path, tmp_path):
    write_markers(tmp_path / "one.dcm", paths_of()[:1], planes=(1.0,))
    one = dicomslide.open_slide(tmp_path / "one.dcm").to_dataset().image
    assert one.dims == ("y", "x")
    for labels in (
        {"z": 0.001}, {"z": 0.0013}, {"channel": "1"}, {"channel_description": "DAPI"},
        {"wavelength": 405}, {"z": slice(0, 0.002)}, {"z": slice(None, 0.002)},
        {"z": 0.001, "x": slice(17.97, 17.98)},
    ):  # fmt: skip
        assert one.slide.sel(labels).sizes["y"] == one.sizes["y"]
    assert one.slide.sel(wavelength=455, method="nearest").dims == ("y", "x")
    for labels in ({"z": 0.0016}, {"channel": "2"}, {"wavelength": 406}, {"z": slice(0.002, 1)},
                   {"channel_description": "CD3"}):  # fmt: skip
        with pytest.raises(KeyError, match="the only one is"):
            one.slide.sel(labels)
    assert one.slide.sel({"wavelength": 406}, tolerance=1.0, method="nearest") is one
    several = dicomslide.open_slide(path).to_dataset().image
    assert several.slide.sel(z=0, channel_description="CD3").channel == "2"
    kept = dicomslide.open_slide(tmp_path / "one.dcm").to_dataset(squeeze=False).image
    assert kept.sel(z=0.001, channel_description="DAPI").dims == ("y", "x", "sample")


@given(
    st.lists(st.sampled_from([400.0, 405.0, 488.0, 561.0, np.nan]), min_size=1, max_size=6),
    st.floats(300, 700),
    st.lists(st.integers(0, 9), min_size=1, max_size=6, unique=True),
)
def test_the_nearest_wavelength_is_that_of_pandas(wavelengths, wanted, others):
    identifiers = [str(i) for i in range(len(wavelengths))]
    index = NameIndex(pd.Index(wavelengths, name="w"), "channel", identifiers=identifiers)
    known = pd.Series(wavelengths, identifiers).dropna()
    if known.empty:
        with pytest.raises(KeyError):
            index.sel({"w": wanted}, method="nearest")
    else:
        nearest = (known - wanted).abs().min()
        found = np.atleast_1d(index.sel({"w": wanted}, method="nearest").dim_indexers["channel"])
        assert {abs(wavelengths[i] - wanted) for i in found} == {nearest}
    # joined by identifier, like pandas' series
    other = NameIndex(
        pd.Index([600.0 + i for i in others], name="w"), "channel",
        identifiers=[str(i) for i in others],
    )  # fmt: skip
    theirs = pd.Series(other.index, other.identifiers)
    for how in ("inner", "outer"):
        joined = index.join(other, how)
        assert set(joined.identifiers) == set(
            pd.Index(identifiers).join(other.identifiers, how=how)
        )
        for identifier, value in zip(joined.identifiers, joined.index, strict=True):
            mine = wavelengths[int(identifier)] if identifier in identifiers else None
            if identifier in theirs and mine is not None:
                assert np.isnan(value)
            else:
                np.testing.assert_equal(value, theirs[identifier] if mine is None else mine)
