"""Label images on the levels of another image, as viewers expect them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from dicomslide.errors import GridError
from dicomslide.labelled.coordinates import slide_coordinate
from dicomslide.labelled.index import FRAME_OF_REFERENCE
from dicomslide.labelled.match import match

if TYPE_CHECKING:
    from dicomslide.export.images import ExportImage, ExportLevel

__all__ = ["on_levels_of"]

TOLERANCE = 1e-3
"""Greatest distance between pixels of the same grid, as a fraction of their spacing."""


def on_levels_of(label: ExportImage, image: ExportImage) -> tuple[ExportImage | None, bool]:
    """Return a label image with exactly the levels of an image.

    A level that the label image doesn't have is made of the next larger one by nearest neighbour,
    or of the smallest one if there is no larger one. The attribute ``resampled`` of its array says
    so. Pixels of the image beyond the label image are background, 0.

    Parameters
    ----------
    label : ExportImage
        A label image.
    image : ExportImage
        The image that it labels.

    Returns
    -------
    ExportImage or None
        None if it has other axes on the slide than the image, another frame of reference, or an
        unknown position.
    bool
        Whether all levels of `label` are among those of the returned one.

    """
    placed = [_placed(level, image, label.own_grid) for level in label.levels]
    own = [level for level in placed if level is not None]
    if len(own) < len(placed) or not all(_are_parallel(each, image.levels[0]) for each in own):
        return None, False
    try:
        levels = tuple(_level(own, like) for like in image.levels)
    except GridError:
        return None, False
    kept = all(any(_on_same_grid(each, like) for like in image.levels) for each in own)
    return dataclasses.replace(label, levels=levels), kept


def _placed(level: ExportLevel, image: ExportImage, own_grid: bool) -> ExportLevel | None:
    """Return a level with its position; without one, that of its node; None if it is unknown."""
    if level.raster.to_slide is not None:
        return level
    for like in image.levels:
        if like.number == level.number and like.array.shape[-2:] == level.array.shape[-2:]:
            return None if own_grid else dataclasses.replace(level, raster=like.raster)
    return None


def _are_parallel(level: ExportLevel, like: ExportLevel) -> bool:
    here, there = level.raster.to_slide, like.raster.to_slide
    if here is None or there is None:
        return here is there
    return np.allclose(here, there, rtol=0, atol=1e-6)


def _on_same_grid(level: ExportLevel, like: ExportLevel) -> bool:
    if level.array.shape[-2:] != like.array.shape[-2:]:
        return False
    ours, theirs = (_ends(each) for each in (level, like))
    return bool((np.abs(ours - theirs) <= TOLERANCE * np.array(like.raster.spacing)).all())


def _ends(level: ExportLevel) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return (y, x) of the centres of the first and of the last pixel."""
    start, spacing = np.array(level.raster.start), np.array(level.raster.spacing)
    return np.stack([start, start + spacing * (np.array(level.array.shape[-2:]) - 1)])


def _level(levels: list[ExportLevel], like: ExportLevel) -> ExportLevel:
    """Return the level on the grid of another one, or else one that is resampled to it."""
    array = next((level.array for level in levels if _on_same_grid(level, like)), None)
    if array is not None:
        level = next(level for level in levels if level.array is array)
        return dataclasses.replace(level, number=like.number, raster=like.raster)
    edge = max(like.raster.spacing) * (1 + TOLERANCE)
    larger = [level for level in levels if max(level.raster.spacing) <= edge]
    source = larger[-1] if larger else levels[0]
    matched = match(_in_mm(source), _in_mm(like), "nearest", 0)
    coords = {key: like.array.coords[key] for key in ("y", "x") if key in like.array.coords}
    attrs = {**source.array.attrs, "resampled": f"nearest neighbour, of level {source.number}"}
    plain = xr.DataArray(
        matched.data,
        {key: each for key, each in source.array.coords.items() if not {"y", "x"} & {*each.dims}},
        source.array.dims,
        source.array.name,
        attrs,
    ).assign_coords(coords)
    return dataclasses.replace(like, array=plain)


def _in_mm(level: ExportLevel) -> xr.DataArray:
    """Return an array with y and x along the axes of the raster; y is negative, so it descends."""
    array = xr.DataArray(level.array.data, dims=level.array.dims)
    for dim, start, spacing in zip("yx", level.raster.start, level.raster.spacing, strict=True):
        values = start + spacing * np.arange(array.sizes[dim])
        known = level.array.coords[dim].attrs if dim in level.array.coords else {}
        attrs = {key: known[key] for key in (FRAME_OF_REFERENCE,) if key in known}
        values = -values if dim == "y" else values
        array = array.assign_coords(slide_coordinate(dim, values, attrs, spacing))
    return array
