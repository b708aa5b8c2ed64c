"""Regions on coarser levels: as those of the whole level, and on disks that are full."""

from __future__ import annotations

import errno

import dask
import numpy as np
import pydicom
import pytest

import dicomslide
from dicomslide.testing import write_slide
from dicomslide.write import scratch

SHAPE = (37, 51)
REGIONS = [
    (slice(5, 12), slice(3, 10)), (slice(8, 9), slice(9, 10)), (slice(50, 51), slice(36, 37)),
    (slice(0, 51), slice(30, 37)), (slice(46, 50), slice(0, 3)),
]  # fmt: skip
FORMS = [
    ("BINARY", "majority"), ("BINARY", "any"), ("BINARY", "nearest"), ("FRACTIONAL", "mean"),
    ("FRACTIONAL", "linear"), ("LABELMAP", "majority"),
]  # fmt: skip


@pytest.fixture(scope="module", params=[(1, 2, 4), (1, 3)])
def slide(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("slide")
    write_slide(
        folder, shape=SHAPE, downsamples=request.param, tile_shape=(16, 16), associated=False
    )
    return dicomslide.open_slide(folder)


def values_of(kind, shape):
    random = np.random.default_rng(4)
    if kind == "BINARY":
        return random.random(shape) < 0.6
    if kind == "FRACTIONAL":
        return random.random(shape, np.float32)
    return random.integers(0, 3, shape, np.uint8)


@pytest.mark.filterwarnings("ignore::dicomslide.ViewerWarning")
@pytest.mark.parametrize(("kind", "method"), FORMS)
def test_coarser_levels_of_a_region_are_those_of_the_level_padded_with_zeros(
    slide, tmp_path, kind, method
):
    image = slide.to_dataset(chunks={}).image.isel(sample=0, drop=True)
    values = values_of(kind, image.shape)
    for number, region in enumerate(REGIONS):
        padded = np.zeros_like(values)
        padded[region] = values[region]
        whole = image.copy(data=padded)
        found = []
        with dask.config.set(scheduler="sync"):
            for given, levels in ((whole, "all"), (whole[region], "all"), (whole[region], [1])):
                paths = dicomslide.write_segmentation(
                    given, slide, tmp_path / f"{number}-{len(found)}", kind=kind, levels=levels,
                    segments=["a", "b"] if kind == "LABELMAP" else "a", resample=method,
                )  # fmt: skip
                found.append([pydicom.dcmread(path).pixel_array for path in paths])
        for of_whole, of_region in zip(*found[:2], strict=True):
            np.testing.assert_array_equal(of_region, of_whole)
        np.testing.assert_array_equal(found[2][0], found[0][1])


def test_a_disk_that_is_full_of_kept_pixels_is_an_export_error(slide, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    def mapped(path, dtype, mode, **options):
        raise AssertionError("a page that has no room ends the process")

    monkeypatch.setattr(scratch, "write_at", full)
    monkeypatch.setattr(np, "memmap", mapped)
    mask = slide.to_dataset().image.mean("sample") < 180
    with pytest.raises(dicomslide.ExportError, match="no room is left"):
        dicomslide.write_segmentation(mask, slide, tmp_path, levels="all")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("levels", [[1, 1], [], True, 1.5, None, ["1"], "1"])
def test_levels_are_numbers_each_given_once(slide, tmp_path, levels):
    mask = slide.to_dataset().image.mean("sample") < 180
    with pytest.raises(ValueError, match=r"levels .*: expected .*numbers of levels"):
        dicomslide.write_segmentation(mask, slide, tmp_path, levels=levels, resample="any")
    assert list(tmp_path.iterdir()) == []
