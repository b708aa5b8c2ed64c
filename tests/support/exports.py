"""What tests of exports share: what is in a store, and whether others find it lawful."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import ome_zarr_models
import zarr

from dicomslide.testing import position_values

EXPLICIT = "1.2.840.10008.1.2.1"
SHARD = 64
"""Pixels of a shard here: each level has several."""


def upright(matrix):
    """The typical orientation's rows and columns as the slide stands."""
    return np.rot90(matrix, -1)


def expected(shape, **where):
    """What a level of a slide of positions shows, upright."""
    return upright(position_values(np.arange(shape[0]), np.arange(shape[1]), **where))


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


def ome(store, path=""):
    return zarr.open_group(store, mode="r", path=path).attrs["ome"]


def assert_valid(store):
    """A library that isn't ours finds all that OME-Zarr 0.5 demands."""
    group = zarr.open_group(store, mode="r")
    image = ome_zarr_models.open_ome_zarr(group)
    assert image.ome_zarr_version == "0.5"
    return image
