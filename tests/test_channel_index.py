"""Identifiers of channels, segments and parameters that aren't there."""

from __future__ import annotations

import pickle

import numpy as np
import pydicom
import pytest
import xarray as xr

import dicomslide
from dicomslide.cli import main
from dicomslide.labelled.channel_index import ChannelIndex
from dicomslide.testing import write_slide
from tests.support.derive import mapping, segment, write_map, write_segmentation

SHAPE = (40, 60)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    (base,) = write_slide(
        folder, shape=SHAPE, downsamples=(1,), tile_shape=(32, 32), associated=False,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
    )  # fmt: skip
    rng = np.random.default_rng(0)
    masks = (rng.random((*SHAPE, 3)) > 0.5).astype(np.uint8)
    labels = ("tissue", "tumour", "Tissue")
    segmentation = write_segmentation(
        folder / "seg.dcm", base, masks, "BINARY",
        segments=[segment(i, label) for i, label in enumerate(labels, 1)],
    )  # fmt: skip
    values = rng.random((*SHAPE, 2)).astype(np.float32)
    maps = write_map(folder / "pm.dcm", base, values, [[mapping("a")], [mapping("b")]])
    return [base, segmentation, maps]


@pytest.mark.parametrize("chunks", [None, {}])
def test_an_identifier_that_is_not_there_raises_with_those_that_are(files, chunks):
    level = xr.open_dataset(files, engine="dicomslide", chunks=chunks)
    with pytest.raises(
        KeyError,
        match=r"no segment 'tissue'; identifiers are 1 \(tissue\), 2 \(tumour\), 3"
        r" \(Tissue\); 'tissue' is the description of 1, 3",
    ):
        level.segmentation.sel(segment="tissue")
    with pytest.raises(KeyError, match=r"no segment 4; identifiers are [^;]*$"):
        level.sel(segment=4)
    with pytest.raises(KeyError, match=r"no segment \['1', 'tumour'\]"):
        level.segmentation.sel(segment=["1", "tumour"])
    with pytest.raises(KeyError, match=r"no segment \[1, 5\]; identifiers are 1"):
        level.segmentation.sel(segment=[1, 5])
    with pytest.raises(
        KeyError, match=r"no parameter 'map b'; .*'b' \(map b\); .* description of 'b'"
    ):
        level.parametric_map.sel(parameter="map b")
    assert level.segmentation.sel(segment=2).segment_label == "tumour"
    assert level.segmentation.sel(segment=[3, 1]).segment.values.tolist() == [3, 1]
    by_label = level.segmentation.swap_dims(segment="segment_label")
    assert by_label.sel(segment_label="tumour").segment == 2


def test_the_index_of_identifiers_goes_through_what_xarray_does(files):
    masks = dicomslide.open_slide(files).to_dataset().segmentation
    some, last = masks.isel(segment=[0, 1]), masks.isel(segment=[2])
    for array in (
        some,
        pickle.loads(pickle.dumps(some)),
        some.copy(deep=True),
        xr.concat([some[:1], some[1:]], dim="segment"),
        some & masks,
        some.rename(segment="kind"),
        masks.sel(segment=[1, 2]),
    ):
        (dim,) = {*array.dims} - {"y", "x"}
        assert isinstance(array.xindexes[dim], ChannelIndex)
        with pytest.raises(KeyError, match=r"identifiers are 1 \(tissue\), 2 \(tumour\); "):
            array.sel({dim: "tissue"})
    joined = xr.concat([last, some], dim="segment")
    assert joined.segment.values.tolist() == [3, 1, 2]
    both = xr.align(some, last, join="outer", fill_value=False)[0]
    assert sorted(both.segment.values) == [1, 2, 3]
    assert (
        masks.groupby("segment").sum(...).values.tolist() == masks.sum(("y", "x")).values.tolist()
    )
    weights = xr.DataArray([1, 2, 3], {"segment": [1, 2, 3]})
    assert (masks * weights).sizes == masks.sizes  # an index of one's own


def test_numbers_of_segments_are_still_selected_by_text_with_a_warning(files):
    masks = dicomslide.open_slide(files).to_dataset().segmentation
    assert masks.segment.dtype == np.int64
    for text, number in [
        ("2", 2),
        (["3", "1"], [3, 1]),
        (slice("1", "2"), slice(1, 2)),
        (xr.DataArray(["2", "3"], dims="chosen"), xr.DataArray([2, 3], dims="chosen")),
    ]:
        with pytest.warns(FutureWarning, match=r"segment has numbers: .*sel\(segment=\d\)"):
            found = masks.sel(segment=text)
        xr.testing.assert_identical(found, masks.sel(segment=number))


def test_of_many_identifiers_some_are_listed():
    numbers = [str(i) for i in range(1, 101)]
    index = ChannelIndex(numbers, "segment", names={"7": "cell 7"})
    with pytest.raises(KeyError) as error:
        index.sel({"segment": "cell"})
    assert "'7' (cell 7)" in str(error.value)
    assert "'20' and 80 more" in str(error.value)
    assert "'21'" not in str(error.value)


def test_a_thumbnail_among_the_levels_says_so(tmp_path, capsys):
    paths = write_slide(
        tmp_path, shape=(256, 320), downsamples=(1, 2, 4), tile_shape=(64, 64), associated=False
    )
    dataset = pydicom.dcmread(paths[-1])
    dataset.ImageType = ["DERIVED", "PRIMARY", "THUMBNAIL", "RESAMPLED"]
    dataset.save_as(paths[-1])
    slide = dicomslide.open_slide(tmp_path)
    assert main(["info", str(tmp_path)]) == 0
    for text in (slide._repr_html_(), capsys.readouterr().out):
        assert "level 2, thumbnail" in text
        assert "level 1, thumbnail" not in text
    tree = slide.to_datatree()
    flavors = [tree[f"level_{level}"].attrs["image_flavor"] for level in range(3)]
    assert flavors == ["volume", "volume", "thumbnail"]
    assert "thumbnail" in repr(tree["level_2"])
    assert "thumbnail" in repr(xr.open_dataset(tmp_path, engine="dicomslide", level=2))
