"""Channels that aren't alike: other sizes, depths and tiles, and tiles that weren't scanned."""

from __future__ import annotations

import dataclasses
import pickle

import imagecodecs
import numpy as np
import pydicom
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.encaps import encapsulate

import dicomslide
from dicomslide.errors import MetadataWarning
from dicomslide.header import placement
from dicomslide.testing.drawing import position_values
from tests.support.markers import GEOMETRY, write_markers

ABSENT = frozenset({(0, 0), (1, 2)})


def sized(rows, columns, factor=1):
    spacing = (0.0005 * factor,) * 2
    return dataclasses.replace(GEOMETRY, shape=(rows, columns), spacing=spacing)


def marker(number, description=None, identifier=None):
    return [
        {
            "OpticalPathIdentifier": str(identifier or number),
            "OpticalPathDescription": description or f"marker {number}",
        }
    ]


def write_each(folder, *channels):
    """Write an image per channel: (items of its optical paths, options of write_markers)."""
    folder.mkdir(exist_ok=True)
    for number, (paths, options) in enumerate(channels, 1):
        write_markers(folder / f"{number}.dcm", paths, number=number, **options)
    return dicomslide.open_slide(folder)


def upright(shape, channel=0, dtype=np.uint16):
    """Return the upright pixels of a matrix whose pixels encode their positions."""
    rows, columns = (np.arange(length) for length in shape)
    values = position_values(rows, columns, channel, samples=1, dtype=dtype)
    return np.rot90(values[:, :, 0], -1)


@pytest.mark.parametrize(
    ("sizes", "same_identifier"),
    [
        (((70, 100), (69, 100)), False),
        (((70, 100), (70, 99)), False),
        (((70, 100), (71, 101)), False),
        (((700, 1000), (698, 997)), False),
        (((700, 1000), (690, 990)), False),
        (((70, 100), (69, 100)), True),  # each file has a path "1" that it describes otherwise
    ],
)
def test_channels_of_other_sizes_are_no_levels(tmp_path, sizes, same_identifier):
    channels = [
        (marker(i, identifier="1" if same_identifier else None), {"geometry": sized(*size)})
        for i, size in enumerate(sizes, 1)
    ]
    slide = write_each(tmp_path / "a", *channels)
    assert slide.num_levels == 1
    assert slide.num_channels == 2
    tree = slide.to_datatree()
    largest = max(sizes)
    np.testing.assert_array_equal(tree["level_0"].image, upright(largest))
    np.testing.assert_array_equal(tree["image_2"].image_2, upright(min(sizes)))
    # on their common grid they can be compared
    both = xr.align(tree["level_0"].image, tree["image_2"].image_2, join="inner")
    assert both[0].shape == both[1].shape


def test_levels_of_channels_with_a_row_more_or_less_stay_levels(tmp_path):
    slide = write_each(
        tmp_path / "a",
        *(
            (marker(i), {"geometry": sized((140 - odd) // factor, 200 // factor, factor)})
            for factor in (1, 2)
            for i, odd in ((1, 0), (2, 1), (3, 0))
        ),
    )
    assert slide.total_pixel_matrix_dimensions == ((140, 200), (70, 100))
    tree = slide.to_datatree()
    assert tree["level_0"].image.channel.values.tolist() == ["1", "3"]
    assert tree["level_1"].image.shape == (2, 100, 70)
    assert tree["image_2"].image_2.shape == (200, 139)
    assert tree["image_2_level_1"].image_2.shape == (100, 69)


def test_depths_are_variables_beside_each_other(tmp_path):
    slide = write_each(
        tmp_path / "a",
        (marker(1), {"bits": 8}), (marker(2), {"bits": 16}), (marker(3), {"bits": 12}),
        (marker(4), {"bits": 12, "change": lambda h: setattr(h, "PixelRepresentation", 1)}),
    )  # fmt: skip
    level = slide.to_dataset()
    kinds = {name: (str(array.dtype), array.sizes.get(f"channel{name[5:]}", 1))
             for name, array in level.items()}  # fmt: skip
    assert kinds == {"image": ("uint8", 1), "image_2": ("uint16", 2), "image_3": ("int16", 1)}
    assert level.image.attrs["valid_range"] == [0, 255]
    assert level.image_2.channel_2_bits_stored.values.tolist() == [16, 12]
    assert level.image_2.sel(channel_2_description="marker 3").channel_2 == "3"
    assert level.image_2.sel(wavelength_2=slice(None)).sizes["channel_2"] == 2
    assert level.image_3.attrs["valid_range"] == [-2048, 2047]


def test_tiles_of_other_sizes_are_one_array(tmp_path):
    slide = write_each(tmp_path / "a", (marker(1), {}), (marker(2), {"tile": (16, 48)}))
    image = slide.to_dataset().image
    for index in (0, 1):
        np.testing.assert_array_equal(image[index], upright((70, 100)))


@pytest.mark.parametrize("orientation", ["upright", "stored"])
@pytest.mark.parametrize("chunks", [None, {}, "auto"])
def test_what_was_scanned_is_a_mask_by_channel_where_it_differs(tmp_path, orientation, chunks):
    write_each(
        tmp_path / "a",
        (marker(1), {"sparse": True}),
        (marker(2), {"sparse": True, "absent": ABSENT, "tile": (16, 48)}),
    )
    level = xr.open_dataset(
        tmp_path / "a", engine="dicomslide", chunks=chunks, orientation=orientation
    )
    expected = np.ones((2, 70, 100), bool)
    expected[1, :16, :48] = expected[1, 16:32, 96:100] = False
    if orientation == "upright":
        expected = np.rot90(expected, -1, axes=(1, 2))
    mask = level.image_scanned
    assert mask.dims == level.image.dims
    assert mask.dtype == bool
    assert (mask.chunks is None) == (chunks is None)
    np.testing.assert_array_equal(mask, expected)
    assert mask.sel(channel_description="marker 1").all()
    # statistics of the background leave out what isn't there
    mean = level.image.where(mask).mean(level.image.dims[1:])
    pixels = np.where(expected, level.image.values, np.nan)
    np.testing.assert_allclose(mean, np.nanmean(pixels, axis=(1, 2)))
    assert not level.image.values[~expected].any()


def test_what_was_scanned_is_one_mask_where_channels_agree(tmp_path):
    paths = [*marker(1), *marker(2)]
    path = write_markers(tmp_path / "a.dcm", paths, sparse=True, absent=ABSENT)
    level = dicomslide.open_slide(path).to_dataset()
    assert level.image_scanned.dims == ("y", "x")
    assert (
        "image_scanned"
        not in dicomslide.open_slide(
            write_markers(tmp_path / "b.dcm", paths, sparse=True)
        ).to_dataset()
    )
    again = pickle.loads(pickle.dumps(level))
    np.testing.assert_array_equal(again.image_scanned, level.image_scanned)


def test_a_channel_without_some_planes_was_not_scanned_there(tmp_path):
    with pytest.warns(MetadataWarning, match="pixels for 4 of 2 × 3 channels and focal planes"):
        level = write_each(
            tmp_path / "a", (marker(1), {"planes": (0.0, 1.0, 2.0)}), (marker(2), {})
        ).to_dataset()
    assert level.image_scanned.dims == ("channel", "z", "y", "x")
    there = level.image_scanned.all(("y", "x"))
    assert there.values.tolist() == [[True, True, True], [True, False, False]]
    assert (level.image_scanned.any(("y", "x")) == there).all()


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_part_of_a_mask_is_that_of_numpy(tmp_path, data):
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    cells = st.tuples(st.integers(0, 2), st.integers(0, 3))
    absent = data.draw(st.frozensets(cells, min_size=1, max_size=11))
    write_each(folder, (marker(1), {"sparse": True, "absent": absent}))
    level = xr.open_dataset(folder, engine="dicomslide")
    stored = np.ones((70, 100), bool)
    for row, column in absent:
        stored[32 * row : 32 * row + 32, 32 * column : 32 * column + 32] = False
    expected = np.rot90(stored, -1)
    keys = [
        data.draw(
            st.one_of(
                # xarray fails with empty slices of negative steps
                st.slices(length).filter(lambda key, n=length: len(range(n)[key]) > 0),
                st.integers(-length, length - 1),
                st.lists(st.integers(0, length - 1), max_size=5).map(lambda at: np.array(at, int)),
            )
        )
        for length in expected.shape
    ]
    found = level.image_scanned.isel(y=keys[0], x=keys[1]).values
    by_y = expected[keys[0]]
    np.testing.assert_array_equal(found, by_y[..., keys[1]])
    # of a spacing: pixels that cover nothing else than scanned ones
    factor = data.draw(st.integers(2, 5))
    coarse = xr.open_dataset(folder, engine="dicomslide", spacing=0.0005 * factor)
    padded = np.ones([-(-n // factor) * factor for n in stored.shape], bool)
    padded[:70, :100] = stored
    boxes = padded.reshape(padded.shape[0] // factor, factor, -1, factor).all((1, 3))
    np.testing.assert_array_equal(coarse.image_scanned, np.rot90(boxes, -1))


def test_a_mask_is_no_image_of_an_export(tmp_path):
    zarr = pytest.importorskip("zarr", reason="writes OME-Zarr")
    slide = write_each(tmp_path / "a", (marker(1), {"sparse": True, "absent": ABSENT}))
    dicomslide.to_ome_zarr(slide, tmp_path / "a.zarr")
    assert sorted(zarr.open_group(tmp_path / "a.zarr")) == ["level_0"]


@pytest.mark.parametrize("bits", [10, 12, 15])
@pytest.mark.parametrize(
    "codec",
    [
        "JPEG 2000",
        "signed JPEG 2000",
        pytest.param("lossless JPEG", marks=pytest.mark.needs("pylibjpeg")),
    ],
)
def test_signed_words_of_few_bits_are_as_pydicom_has_them(tmp_path, bits, codec):
    values = np.random.default_rng(bits).integers(-(1 << bits - 1), 1 << bits - 1, (32, 32))
    path = write_markers(
        tmp_path / "a.dcm", marker(1), bits=bits, geometry=sized(32, 32),
        change=lambda header: setattr(header, "PixelRepresentation", 1),
    )  # fmt: skip
    dataset = pydicom.dcmread(path)
    words = (values & ((1 << bits) - 1)).astype(np.uint16)
    if codec == "lossless JPEG":
        frame = imagecodecs.ljpeg_encode(words, bitspersample=bits)
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.70"
    else:
        frame = imagecodecs.jpeg2k_encode(
            values.astype(np.int16) if codec.startswith("signed") else words,
            bitspersample=bits, codecformat="j2k", reversible=True, level=0,
        )  # fmt: skip
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.90"
    dataset.PixelData = encapsulate([frame])
    dataset.save_as(path)
    image = dicomslide.open_slide(path).to_dataset(orientation="stored").image
    assert image.dtype == np.int16
    np.testing.assert_array_equal(image, pydicom.dcmread(path).pixel_array)
    np.testing.assert_array_equal(image, values)


def test_files_of_one_channel_each_are_compared_in_linear_time(tmp_path, monkeypatch):
    made = []
    geometry_of = placement.SlideGeometry
    monkeypatch.setattr(
        placement, "SlideGeometry", lambda *args: made.append(args) or geometry_of(*args)
    )
    counts = []
    for number in (10, 20):
        slide = write_each(tmp_path / str(number), *((marker(i), {}) for i in range(number)))
        slide.to_dataset()
        counts.append(len(made))
        made.clear()
    assert counts[1] <= 2.2 * counts[0]
