"""Patches and regions by their millimetres: pixels of the grid, wherever the slide lies."""

from __future__ import annotations

import pickle
import warnings

import dask
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicomslide import MetadataWarning, SlideSampler, open_slide
from dicomslide.testing import write_slide
from tests.support.derive import mapping, write_map, write_segmentation

ORIENTATIONS = [
    (0, -1, 0, -1, 0, 0), (0, 1, 0, 1, 0, 0), (1, 0, 0, 0, -1, 0), (-1, 0, 0, 0, 1, 0),
    (1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, -1, 0), (0, -1, 0, 1, 0, 0), (0, 1, 0, -1, 0, 0),
]  # fmt: skip


@pytest.fixture(scope="module", params=range(8))
def slide(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("slide")
    write_slide(
        folder, shape=(350, 461), downsamples=(1, 4), tile_shape=(64, 96),
        transfer_syntax_uid="1.2.840.10008.1.2.1", orientation=ORIENTATIONS[request.param],
        associated=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MetadataWarning)
        return open_slide(folder)


def grid_of(slide, where):
    spacing = where.get("spacing")
    return (
        slide.to_dataset(where["level"]) if spacing is None else slide.to_dataset(spacing=spacing)
    ).image.compute()


@pytest.mark.parametrize(
    "where", [{"spacing": "1 um"}, {"spacing": 0.0013}, {"level": 0}, {"level": 1}]
)
def test_patches_are_pixels_of_the_grid_around_their_centres(slide, where):
    whole = grid_of(slide, where)
    x_step, y_step = whole.slide.spacing
    x_min, y_min, x_max, y_max = whole.slide.extent
    random = np.random.default_rng(0)
    centers = random.uniform((x_min, y_min), (x_max, y_max), (25, 2))
    patches = slide.patches(centers, (10, 7), **where)
    assert patches.dims == ("patch", "y", "x", "sample")
    values = patches.values
    for i, (x, y) in enumerate(centers):
        cx, cy = float(patches.center_x[i]), float(patches.center_y[i])
        assert abs(cx - x) <= x_step / 2 * (1 + 1e-6)
        assert abs(cy - y) <= y_step / 2 * (1 + 1e-6)
        top, left = (
            round(float(value)) for value in (
                (whole.y[0] - cy) / y_step - 4.5, (cx - whole.x[0]) / x_step - 3
            )
        )  # fmt: skip
        box = np.full((10, 7, 3), 255, np.uint8)
        for row in range(10):
            for column in range(7):
                at = top + row, left + column
                if 0 <= at[0] < whole.shape[0] and 0 <= at[1] < whole.shape[1]:
                    box[row, column] = whole.values[at]
        np.testing.assert_array_equal(values[i], box)


def test_many_patches_cost_their_frames_once(tmp_path, frames_read):
    write_slide(tmp_path, shape=(512, 512), downsamples=(1,), tile_shape=(64, 64), associated=False)
    slide = open_slide(tmp_path)
    x_min, y_min, x_max, y_max = slide.physical_bounds
    centers = np.random.default_rng(0).uniform((x_min, y_min), (x_max, y_max), (500, 2))
    frames_read.clear()
    with dask.config.set(scheduler="synchronous"):
        patches = slide.patches(centers, (32, 32), spacing="1 um").compute()
    assert patches.shape == (500, 32, 32, 3)
    assert sorted(frames_read) == list(range(64))


def test_patches_are_lazy_and_take_any_key(slide):
    x_min, y_min, x_max, y_max = slide.physical_bounds
    centers = np.random.default_rng(1).uniform((x_min, y_min), (x_max, y_max), (9, 2))
    patches = slide.patches(centers, (6, 8), level=0)
    whole = patches.values
    for key in (
        np.s_[3],
        np.s_[::-2, 1:4],
        np.s_[[4, 1, 1], ::-1, 2],
        np.s_[2:2],
        np.s_[0, 0, 0, 0],
    ):
        np.testing.assert_array_equal(patches[key].values, whole[key])
    assert patches.data.chunks[1:] == ((6,), (8,), (3,))


def test_patches_are_chunks_of_their_own(slide, monkeypatch):
    monkeypatch.setattr("dicomslide.labelled.patches.CHUNK", 10 * 4 * 4 * 3)
    x_min, y_min, x_max, y_max = slide.physical_bounds
    centers = np.random.default_rng(1).uniform((x_min, y_min), (x_max, y_max), (3000, 2))
    patches = slide.patches(centers, (4, 4), level=0)
    assert patches.data.numblocks[0] == 300
    (fused,) = dask.optimize(patches.data.blocks[7])
    assert len(pickle.dumps(dict(fused.__dask_graph__()))) < 3000 * 16 / 10  # all positions
    np.testing.assert_array_equal(
        patches[70:80].values, slide.patches(centers[70:80], (4, 4), level=0).values
    )


def test_no_patches_are_an_array_without_any(slide):
    assert slide.patches([], (4, 4), level=0).compute().shape == (0, 4, 4, 3)


def test_what_has_bounds_is_taken_by_the_middle_of_its_box(slide):
    geopandas = pytest.importorskip("geopandas")
    from shapely.geometry import box

    x, y = slide.physical_bounds[0] + 0.05, slide.physical_bounds[1] + 0.06
    frame = geopandas.GeoDataFrame(geometry=[box(x - 0.01, y - 0.02, x + 0.01, y + 0.02)])
    by_box = slide.patches(frame, (5, 5), spacing=0.001)
    np.testing.assert_array_equal(by_box, slide.patches([(x, y)], (5, 5), spacing=0.001))


@pytest.mark.parametrize("centers", [[1, 2, 3], [[1, 2, 3]], [[np.nan, 1]], np.zeros((2, 2, 2))])
def test_centres_are_finite_pairs(slide, centers):
    with pytest.raises(ValueError, match=r"centre"):
        slide.patches(centers, (4, 4), level=0)


def test_regions_side_by_side_cover_the_slide(slide):
    """They begin at the upper left corner of the slide, to within half a pixel of the grid."""
    sampler = SlideSampler(slide, (50, 60), spacing="1 um")
    whole = slide.to_dataset(spacing="1 um").image
    across = len({round(x, 6) for x in sampler.centers[:, 0]})
    down = len(sampler) // across
    x, y = sampler.centers[0]
    left, top = (
        float(value) / 0.001 for value in (x - 0.03 - whole.x[0] + 0.0005,
                                           whole.y[0] + 0.0005 - y - 0.025)
    )  # fmt: skip
    x_min, _, _, y_max = slide.physical_bounds
    assert (x - 0.03, y + 0.025) == pytest.approx((x_min, y_max), abs=0.0005 * (1 + 1e-6))
    left, top = round(left), round(top)
    together = np.concatenate([
        np.concatenate([sampler[r * across + c] for c in range(across)], axis=1)
        for r in range(down)
    ])  # fmt: skip
    shown = whole.values[max(top, 0) :, max(left, 0) :]
    shown = shown[: together.shape[0], : together.shape[1]]
    np.testing.assert_array_equal(together[: shown.shape[0], : shown.shape[1]], shown)


def test_a_sampler_is_a_sequence_that_pickles_and_reads_several_at_once(slide):
    sampler = SlideSampler(slide, (16, 24), level=1)
    again = pickle.loads(pickle.dumps(sampler))
    assert len(again) == len(sampler)
    several = again.read([3, 0, 3])
    for found, index in zip(several, [3, 0, 3], strict=True):
        np.testing.assert_array_equal(found, sampler[index])
    np.testing.assert_array_equal(sampler[2:5][-1], sampler[4])
    np.testing.assert_array_equal(sampler[2:5].centers, sampler.centers[2:5])
    np.testing.assert_array_equal(sampler.__getitems__([1, 2]), sampler.read([1, 2]))
    some = sampler[[4, -1, 4]]
    assert isinstance(some, SlideSampler)
    np.testing.assert_array_equal(some.read(range(3)), sampler.read([4, len(sampler) - 1, 4]))
    odd = sampler[np.arange(len(sampler)) % 2 == 1]
    np.testing.assert_array_equal(odd.centers, sampler.centers[1::2])
    assert len(sampler[[]]) == 0
    with pytest.raises(IndexError):
        sampler[len(sampler)]
    with pytest.raises(IndexError):
        sampler.read([len(sampler)])
    with pytest.raises(TypeError, match="either a spacing or a level"):
        SlideSampler(slide, (4, 4))
    with pytest.raises(TypeError, match="side by side"):
        SlideSampler(slide, (4, 4), level=0, centers=[(0, 0)], bounds=(0, 0, 1, 1))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    write_slide(folder, shape=(90, 120), downsamples=(1,), tile_shape=(32, 32),
                transfer_syntax_uid="1.2.840.10008.1.2.1", associated=False)  # fmt: skip
    return open_slide(folder)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_patches_that_overlap_are_read_as_those_that_stand_alone(small, seed):
    random = np.random.default_rng(seed)
    x_min, y_min, x_max, y_max = small.physical_bounds
    centers = random.uniform((x_min, y_min), (x_max, y_max), (5, 2))
    spacing = float(random.choice([0.0005, 0.001, 0.0017]))
    together = small.patches(centers, (20, 20), spacing=spacing).values
    for i in range(5):
        alone = small.patches(centers[i : i + 1], (20, 20), spacing=spacing).values[0]
        np.testing.assert_array_equal(together[i], alone)


@pytest.mark.parametrize("spacing", [0.0003, 0.0002, 0.00031])
def test_what_lies_beyond_the_last_pixel_is_background(tmp_path, spacing):
    """A window that rounding lets begin before the edge covers nothing."""
    write_slide(tmp_path, shape=(200, 150), downsamples=(1,), tile_shape=(64, 64),
                transfer_syntax_uid="1.2.840.10008.1.2.1", associated=False)  # fmt: skip
    sampler = SlideSampler(open_slide(tmp_path), (64, 64), spacing=spacing)
    assert not (sampler.read(range(len(sampler))) == 0).all(axis=-1).any()


def test_what_is_no_region_is_refused(slide):
    x_min, y_min, x_max, y_max = slide.physical_bounds
    sampler = SlideSampler(slide, (64, 64), level=0)
    for wrong in ([0.7], np.array([True])):
        with pytest.raises(IndexError):
            sampler.read(wrong)
    with pytest.raises(ValueError, match="four finite numbers"):
        SlideSampler(slide, (64, 64), level=0, bounds=(np.nan, 0, 1, 1))
    with pytest.raises(ValueError, match='"majority" or "any"'):
        slide.patches([(x_min, y_min)], (4, 4), level=0, labels="mode")
    with pytest.raises(KeyError, match="no pixel"):
        slide.region((x_min, x_min), (y_min, y_min), spacing="1 um")
    with pytest.raises(TypeError, match="x in mm"):
        slide.region((None, x_max), (y_min, y_max), spacing="1 um")


@pytest.mark.needs("highdicom")
@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP", "map"])
def test_stored_pixels_of_segments_and_maps_are_copied(tmp_path, kind):
    """Also those of labels, which have no mean, and infinities; none lies beyond the matrix."""
    shape = (70, 110)
    (path,) = write_slide(tmp_path, shape=shape, downsamples=(1,), tile_shape=(32, 48),
                          drawing="position", associated=False,
                          transfer_syntax_uid="1.2.840.10008.1.2.1")  # fmt: skip
    random = np.random.default_rng(5)
    if kind == "map":
        values = random.normal(size=shape).astype(np.float32)
        values[3, 5], values[40, 60], values[50, 70] = np.nan, np.inf, -np.inf
        write_map(tmp_path / "map.dcm", path, values, [mapping("p")])
        background = np.nan
    else:
        labels = random.integers(0, 3, shape).astype(np.uint8)
        values, background = labels == 2, False
        pixels = labels if kind == "LABELMAP" else np.stack([labels == 1, values], -1)
        write_segmentation(tmp_path / "seg.dcm", path, pixels.astype(np.uint8), kind)
    slide = open_slide(tmp_path)
    channel = len(slide.channels) - 1  # of the second segment, or of the map
    wide = np.pad(np.rot90(values, -1), 150, constant_values=background)
    x_min, _, _, y_max = slide.physical_bounds
    first = random.integers(-20, 100, (12, 2))
    centers = np.stack([x_min + (first[:, 1] + 10) * 0.0005, y_max - (first[:, 0] + 8) * 0.0005], 1)
    found = slide.patches(centers, (16, 20), level=0, channel_index=channel).values
    expected = [wide[y + 150 :, x + 150 :][:16, :20] for y, x in first.tolist()]
    for patch, box in zip(found, expected, strict=True):
        np.testing.assert_array_equal(patch, box)
