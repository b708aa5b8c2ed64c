"""The engine under dask's array expressions: the package dask-array as xarray's chunk manager."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dicomslide.testing import write_slide

SCRIPT = """
import sys

import numpy as np
import xarray as xr
from dask_array import Array
from dask_array.xarray import register

from dicomslide.backends.part10.file import FileSource

register()  # for all of this process
read = []
original = FileSource.read_frames


def spying(source, indices):
    read.extend(indices)
    return original(source, indices)


FileSource.read_frames = spying
options = dict(engine="dicomslide", correct_color=False)
plain = xr.open_dataset(sys.argv[1], chunks=None, **options).image.load()
image = xr.open_dataset(sys.argv[1], chunks={}, **options).image
assert isinstance(image.data, Array), type(image.data)
assert image.data.chunks == ((44, 64, 64, 64, 64)[::-1], (8, 64, 64, 64), (3,)), image.data.chunks

read.clear()
lazy = [
    image[70:100, 10:60],
    image.isel(y=slice(64, 128), x=slice(8, 72)),
    image.sel(x=plain.x[100], y=plain.y[[150, 20]], method="nearest"),
    (image.astype("f4") + 1).mean("sample")[64:128, 8:72],
    image.isel(x=slice(None, None, -50)).transpose("sample", "x", "y"),
]
assert not read
for number, each in enumerate(lazy):
    assert isinstance(each.data, Array), type(each.data)
    pixels = each.values
    if number in (1, 3):  # the tile, and no other, through the arithmetic
        assert len(set(read)) == 1, read
    read.clear()
    wanted = [
        plain[70:100, 10:60],
        plain[64:128, 8:72],
        plain.isel(x=100, y=[150, 20]),
        (plain.astype("f4") + 1).mean("sample")[64:128, 8:72],
        plain[:, ::-50].transpose("sample", "x", "y"),
    ][number]
    np.testing.assert_array_equal(pixels, wanted.values)

tree = xr.open_datatree(sys.argv[1], chunks={}, **options)
assert isinstance(tree["level_1"].image.data, Array)
assert tree.map_over_datasets(lambda node: node.max())["level_0"].image == plain.max()
auto = xr.open_dataset(sys.argv[1], chunks="auto", **options).image
np.testing.assert_array_equal(auto, plain)
print("read", len(lazy), "ways")
"""


@pytest.mark.needs("dask_array")
def test_chunks_are_frames_and_a_region_reads_its_frames_only(tmp_path):
    write_slide(tmp_path / "slide", shape=(200, 300), tile_shape=(64, 64), downsamples=(1, 2),
                drawing="position", transfer_syntax_uid="1.2.840.10008.1.2.1")  # fmt: skip
    command = [sys.executable, "-W", "error", "-c", SCRIPT, str(tmp_path / "slide")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "read 5 ways\n"
