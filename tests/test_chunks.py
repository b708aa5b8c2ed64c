"""Chunks of whole frames, over channels and focal planes as analysis wants them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dicomslide
from dicomslide.readers.chunks import MOST_BYTES, chunk_lengths, frame_lengths
from dicomslide.testing import write_slide

DIMS = ("channel", "z", "y", "x", "sample")
SHAPE = (2, 3, 100, 140)
FRAME = (32, 48)


@pytest.fixture(scope="module")
def expected(stack_slide):
    """The base level, read without dask: upright, (channel, z, y, x)."""
    return xr.open_dataset(stack_slide, engine="dicomslide").image.values


def _borders(lengths):
    return set(itertools.accumulate(lengths))


@pytest.mark.parametrize(
    ("chunks", "of_stack", "of_plane"),
    [
        ("frames", ((1, 1), (1, 1, 1)), None),
        ({}, ((1, 1), (1, 1, 1)), None),
        ({"channel": None}, ((1, 1), (1, 1, 1)), None),
        ("auto", ((2,), (3,)), ((140,), (100,))),
        (-1, ((2,), (3,)), ((140,), (100,))),
        ({"channel": -1}, ((2,), (1, 1, 1)), None),
        ({"z": 2, "y": -1}, ((1, 1), (2, 1)), ((140,), None)),
        ({"z": (1, 2), "segment": 7}, ((1, 1), (1, 2)), None),
        ({"channel": "auto", "y": "auto", "x": "auto"}, ((2,), (1, 1, 1)), ((140,), (100,))),
    ],
    ids=str,
)
def test_chunks_are_as_xarray_takes_them(stack_slide, expected, chunks, of_stack, of_plane):
    slide = dicomslide.open_slide(stack_slide)
    image = slide.to_dataset(chunks=chunks).image
    assert image.chunks[:2] == of_stack
    frames = slide.to_dataset().image.chunks[2:]
    for lengths, wanted, of_frames in zip(
        image.chunks[2:], of_plane or (None, None), frames, strict=True
    ):
        assert lengths == (wanted or of_frames)
    np.testing.assert_array_equal(image.values, expected)
    tree = slide.to_datatree(chunks=chunks)
    assert tree["level_0"].image.chunks == image.chunks


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_chunks_end_where_frames_end_and_hold_the_pixels(stack_slide, expected, data):
    values = st.one_of(st.integers(1, 200), st.sampled_from([-1, "auto", None]))
    chunks = data.draw(st.dictionaries(st.sampled_from(DIMS[:4]), values))
    slide = dicomslide.open_slide(stack_slide)
    image = slide.to_dataset(chunks=chunks).image
    for lengths, frames in zip(image.chunks, slide.to_dataset().image.chunks, strict=True):
        assert _borders(lengths) <= _borders(frames)
    for dim, lengths in zip(DIMS[2:4], image.chunks[2:], strict=False):
        if isinstance(chunks.get(dim), int) and chunks[dim] > 0:
            assert sorted(lengths)[1:] == [] or max(lengths) >= chunks[dim]
    key = data.draw(st.tuples(*(st.slices(length) for length in expected.shape)), label="region")
    np.testing.assert_array_equal(image[key].compute(scheduler="sync"), expected[key])


@pytest.mark.parametrize(
    "wrong",
    [
        {"chanel": 1},
        {"row": 512},
        {"column": -1},
        {"y": 0},
        {"y": "all"},
        {"y": (50, 50)},
        {"z": (1, 1)},
        {"x": 1.5},
        0,
        "auto ",
    ],
    ids=str,
)
def test_chunks_that_cannot_be_are_refused(stack_slide, wrong):
    with pytest.raises(ValueError, match="chunks"):
        dicomslide.open_slide(stack_slide).to_dataset(chunks=wrong)


@settings(max_examples=200, deadline=None)
@given(
    channels=st.integers(1, 60),
    planes=st.integers(1, 40),
    edge=st.integers(100, 100_000),
    tile=st.sampled_from([128, 256, 512, 1024, 4096]),
    itemsize=st.sampled_from([1, 2, 4]),
)
def test_automatic_chunks_stay_within_their_bytes(channels, planes, edge, tile, itemsize):
    frames = frame_lengths(edge, min(tile, edge))
    units = ((1,) * channels, (1,) * planes, frames, frames, (1,))
    lengths = chunk_lengths("auto", DIMS, units, itemsize, (False,) * 5)
    assert [sum(each) for each in lengths] == [sum(each) for each in units]
    largest = itemsize * np.prod([max(each) for each in lengths])
    one_frame = itemsize * max(frames) ** 2
    assert largest <= max(MOST_BYTES, one_frame, itemsize * 5 * 1024 * 5 * 1024)
    if channels * planes * one_frame <= MOST_BYTES:  # nothing is split that needn't be
        assert lengths[:2] == ((channels,), (planes,))


def test_work_across_channels_reads_each_frame_once(tmp_path, frames_read):
    write_slide(
        tmp_path,
        shape=(200, 260),
        downsamples=(1,),
        tile_shape=(64, 64),
        drawing="position",
        samples=1,
        bits=16,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        optical_paths=tuple(f"marker {number}" for number in range(12)),
        associated=False,
    )
    image = dicomslide.open_slide(tmp_path).to_dataset(chunks="auto").image
    weights = xr.DataArray(np.random.default_rng(0).random((3, 12)), dims=("stain", "channel"))
    unmixed = xr.dot(image.astype(float), weights, dim="channel").compute(scheduler="sync")
    assert sorted(frames_read) == list(range(12 * 4 * 5))
    stored = xr.open_dataset(tmp_path, engine="dicomslide").image.values
    np.testing.assert_allclose(
        unmixed.transpose("stain", "y", "x"), np.tensordot(weights.values, stored, (1, 0))
    )
