"""The pixel matrix that an array belongs to: a level of the slide, or a grid of its own."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.enum import ChannelTypes
from dicomslide.errors import GridError, MetadataError
from dicomslide.header.geometry import AS_STORED, SlideGeometry
from dicomslide.header.layout import MICROMETERS, first_plane_of
from dicomslide.labelled.coordinates import restored, slide_coordinate, step_of
from dicomslide.labelled.index import SlideIndex

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr

    from dicomslide.header.geometry import Orientation
    from dicomslide.image import TiledImage
    from dicomslide.slide.slide import Slide
    from dicomslide.write.scratch import Scratch

__all__ = ["Grid", "Placed", "grid_of_level", "own_grid", "placed", "placed_on", "plane_of",
           "upright"]  # fmt: skip

SAME_CENTRE = 1e-3
"""Tolerance of equal pixel centres, as a fraction of a pixel."""
SAME_AFFINE = 1e-6
"""Relative tolerance of equal affine transforms of arrays as stored."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """A total pixel matrix on the slide, to which pixels are written."""

    geometry: SlideGeometry
    """Where its pixels lie."""
    origin: tuple[float, float]
    """(x, y) in mm that its header states: that of the level, where levels are registered."""
    sources: tuple[TiledImage, ...]
    """Images of the slide that it is derived from; the first one has the header."""
    tile: tuple[int, int]
    """Rows and columns of a frame of the source."""
    level: int | None
    """Zero-based level of the slide; None for a grid of its own."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        return self.geometry.shape

    @property
    def first_plane(self) -> float:
        """Offset of the first focal plane of the source in µm."""
        return first_plane_of(self.sources[0].metadata)

    @property
    def orientation(self) -> Orientation | None:
        """Transposition and flips that turn the matrix upright; None if it lies obliquely."""
        return self.geometry.orientation

    def like(self, frame_of_reference_uid: str | None) -> xr.Dataset:
        """Return a dataset without variables that has the upright pixels of the matrix."""
        import xarray as xr

        attrs = {"units": "mm"}
        if frame_of_reference_uid is not None:
            attrs["frame_of_reference_uid"] = frame_of_reference_uid
        coords = xr.Coordinates()
        along = reversed(self.geometry.slide_spacing)
        for name, values, spacing in zip(
            ("y", "x"), self.geometry.upright_coordinates(), along, strict=True
        ):
            coords = coords.assign(slide_coordinate(name, values, attrs, spacing))
        return xr.Dataset(coords=coords)


@dataclasses.dataclass(frozen=True)
class Placed:
    """Pixels of a grid, in the orientation of its matrix."""

    pixels: Any
    """Dask array, shape (channels, rows, columns)."""
    grid: Grid
    first: tuple[int, int] = (0, 0)
    """(row, column) in the matrix of the first pixel."""
    in_fractions: bool = False
    """Whether pixels are fractions of 1/255 of what is True in the pixels that they cover."""
    kept: tuple[Any, Scratch] | None = None
    """Pixels of the next level, which are computed together with these, and where they are kept
    until they are written themselves."""


def grid_of_level(slide: Slide, level: int) -> Grid:
    """Return the matrix of a level.

    Raises
    ------
    MetadataError
        When its header doesn't place it on the slide.

    """
    found = slide.level(level)
    sources = tuple(
        image for image in found.images if image.channel_type is ChannelTypes.OPTICAL_PATH
    ) or (found.image,)
    image = sources[0]
    try:
        geometry = image.geometry
    except MetadataError as error:
        raise MetadataError(
            f"{error}: what is derived from it can't be placed either. Pass a slide that is opened"
            " with spacing=..., or correct its header"
        ) from error
    placement, origin = image._placement, geometry.origin
    if any(placement.shift) and placement.origin is None:
        x, y = np.subtract(origin, placement.shift).tolist()
        origin = x, y
    tile = image._layout.pixel_format
    return Grid(geometry, origin, sources, (tile.rows, tile.columns), level)


def placed(array: xr.DataArray, slide: Slide) -> Placed:
    """Return the pixels of an array on the matrix of the level to which they belong.

    Parameters
    ----------
    array : xarray.DataArray
        Dims (channel, y, x) in mm, or (channel, row, column) as stored.
    slide : Slide
        Slide with the level.

    Raises
    ------
    GridError
        When it is on the grid of no level, or has another frame of reference.

    """
    array = _lazy(array)
    if {"row", "column"} <= set(map(str, array.dims)):
        return _as_stored(array, slide)
    array = upright(array, slide)
    grids = [grid_of_level(slide, level) for level in range(slide.num_levels)]
    for grid in grids:
        found = _first_pixel(array, grid)
        if found is not None:
            return _turned(array, grid, found)
    raise GridError(_no_level(array, grids))


def placed_on(array: xr.DataArray, grid: Grid) -> Placed:
    """Return the pixels of an upright array that lies on the grid of a level."""
    found = _first_pixel(array, grid)
    assert found is not None
    return _turned(array, grid, found)


def upright(array: xr.DataArray, slide: Slide) -> xr.DataArray:
    """Return an array with y descending and x ascending, after a check of its frame of reference.

    Raises
    ------
    GridError
        When it has another frame of reference than the slide, or no coordinates in mm.

    """
    if not {"y", "x"} <= set(map(str, array.dims)) or not array.size:
        raise GridError(
            f"an array with pixels and the dims y and x in mm, or row and column as stored, is"
            f" needed; the dims are {dict(array.sizes)}"
        )
    coords = restored(array)
    for dim in ("y", "x"):
        if coords is None or dim not in coords:
            raise GridError(
                f"{dim} isn't in mm: its units are {array[dim].attrs.get('units', 'unknown')!r}."
                " Give the array the coordinates of the pixels that it was computed from:"
                " xr.DataArray(values, coords={'y': image.y, 'x': image.x}, dims=('y', 'x'))"
            )
        index = coords.xindexes[dim]
        own = index.frame_of_reference_uid if isinstance(index, SlideIndex) else None
        known = {*(slide._frames or ()), _frame_of(slide)}
        if own is not None and own not in known and None not in known:
            raise GridError(
                f"{dim}: the array has the frame of reference {own}, the slide"
                f" {_frame_of(slide)}: equal coordinates aren't equal positions. Register the array"
                " onto the slide first, then set its frame of reference:"
                " array.slide.restore(frame_of_reference_uid=...)"
            )
    assert coords is not None
    array = array.assign_coords({name: coords[name] for name in ("y", "x")})
    array = array.assign_coords(coords) if len(coords) else array
    try:
        for dim, sign in (("y", -1), ("x", 1)):
            if array.sizes[dim] > 1 and step_of(array, dim) * sign < 0:
                array = array.isel({dim: slice(None, None, -1)})
    except ValueError as error:
        raise GridError(f"{error}; expected the pixels of an image, without gaps") from error
    return array


def own_grid(array: xr.DataArray, slide: Slide, tile: tuple[int, int] | None = None) -> Placed:
    """Return the pixels of an array on a matrix of their own, turned like that of the base.

    Parameters
    ----------
    array : xarray.DataArray
        Dims (channel, y, x) in mm, of any spacing.
    slide : Slide
        Slide on which it lies.
    tile : tuple of int, optional
        Rows and columns of a frame; by default those of the base, and no more than the array has.

    """
    array = upright(_lazy(array), slide)
    base = grid_of_level(slide, 0)
    spacing = _spacing_of(array)
    orientation, like = base.orientation, base.geometry
    if orientation is None:  # an oblique slide: the array's own directions
        orientation = AS_STORED
        like = dataclasses.replace(like, row_direction=(1.0, 0.0), column_direction=(0.0, -1.0))
    else:
        like = like._snapped()
    down, across = array.sizes["y"], array.sizes["x"]
    between = (spacing[0], spacing[1]) if orientation.transpose else (spacing[1], spacing[0])
    shape = (across, down) if orientation.transpose else (down, across)
    # the first pixel of the matrix is at a corner of the upright array
    at_y, at_x = (-1 if flip else 0 for flip in (orientation.flip_y, orientation.flip_x))
    origin = float(array.x[at_x]), float(array.y[at_y])
    geometry = dataclasses.replace(like, origin=origin, spacing=between, shape=shape)
    grid = Grid(geometry, origin, base.sources, tile or base.tile, None)
    return _turned(array, grid, (0, 0))


# -- lattices ----------------------------------------------------------------------------------


def _lazy(array: xr.DataArray) -> xr.DataArray:
    import dask.array as da

    if array.chunks is None:
        if isinstance(array.variable._data, np.ndarray):
            # named by what it is, not by its content: it is written once, and hashing takes long
            data = da.from_array(array.data, chunks=_CHUNKS, name=False)  # type: ignore[no-untyped-call]
            return array.copy(data=data)
        return array.chunk()
    return array


_CHUNKS = 2048
"""Pixels along an edge of a chunk of arrays in memory."""


def _spacing_of(array: xr.DataArray) -> tuple[float, float]:
    """Return the spacing of an upright array along (x, y) in mm."""
    return step_of(array, "x"), -step_of(array, "y")


def _first_pixel(array: xr.DataArray, grid: Grid) -> tuple[int, int] | None:
    """Return the upright (row, column) of an array's first pixel on a grid; None if it isn't."""
    if grid.orientation is None:
        return None
    y, x = grid.geometry.upright_coordinates()
    along_x, along_y = grid.geometry.slide_spacing
    step_x, step_y = _spacing_of(array)
    axes = (("x", step_x, along_x, x, 1), ("y", step_y, along_y, y, -1))
    found = []
    for dim, step, pixel, centres, sign in axes:
        # the ends decide: a spacing may differ in digits that coordinates haven't
        ends = np.array([float(array[dim][0]), float(array[dim][-1])])
        first, last = sign * (ends - centres[0]) / pixel
        start = round(first)
        if (
            abs(step / pixel - 1) > SAME_CENTRE
            or max(abs(first - start), abs(last - start - array.sizes[dim] + 1)) > SAME_CENTRE
            or start < 0
            or start + array.sizes[dim] > len(centres)
        ):
            return None
        found.append(start)
    return found[1], found[0]


def _turned(array: xr.DataArray, grid: Grid, at: tuple[int, int]) -> Placed:
    """Return upright pixels, the first of which is at an upright position, as the matrix lies."""
    data = array.transpose(..., "y", "x").data
    turn = grid.orientation or AS_STORED
    if turn.flip_y:
        data = data[:, ::-1]
    if turn.flip_x:
        data = data[:, :, ::-1]
    height, width = grid.geometry.upright_shape if grid.orientation else grid.shape
    row = height - at[0] - data.shape[1] if turn.flip_y else at[0]
    column = width - at[1] - data.shape[2] if turn.flip_x else at[1]
    if turn.transpose:
        return Placed(data.swapaxes(1, 2), grid, (column, row))
    return Placed(data, grid, (row, column))


def _as_stored(array: xr.DataArray, slide: Slide) -> Placed:
    """Return an array of rows and columns on its level, by its affine transform or its size."""
    affine, whole = array.attrs.get("affine"), None
    grids = [grid_of_level(slide, level) for level in range(slide.num_levels)]
    array = array.transpose(..., "row", "column")
    first = []
    for dim in ("row", "column"):
        numbers = array[dim].values if dim in array.coords else np.arange(array.sizes[dim])
        start = int(numbers[0]) if array.sizes[dim] else 0
        if numbers.dtype.kind not in "iu" or (numbers != start + np.arange(len(numbers))).any():
            raise GridError(f"{dim}: expected consecutive ascending pixel numbers of a level")
        first.append(start)
    for grid in grids:
        if affine is not None:
            known = np.asarray(affine, np.float64)
            whole = known.shape == (2, 3) and np.allclose(
                known, grid.geometry.matrix, rtol=SAME_AFFINE, atol=1e-9
            )
        else:
            whole = array.shape[-2:] == grid.shape and first == [0, 0]
        inside = all(
            a >= 0 and a + n <= m
            for a, n, m in zip(first, array.shape[-2:], grid.shape, strict=True)
        )
        if whole and inside and array.size:
            return Placed(array.data, grid, (first[0], first[1]))
    said = "its attribute `affine` is that of no level" if affine is not None else (
        "it has no attribute `affine`, and isn't a whole level: keep the attributes of the image"
        " (xr.set_options(keep_attrs=True))"
    )  # fmt: skip
    raise GridError(
        f"rows and columns of {array.shape[-2]} × {array.shape[-1]} pixels from {tuple(first)} on:"
        f" {said}; the levels are {[grid.shape for grid in grids]}"
    )


def _no_level(array: xr.DataArray, grids: Sequence[Grid]) -> str:
    spacing = _spacing_of(array)
    levels = "; ".join(
        f"level {grid.level}: {grid.geometry.slide_spacing[0]:.9g} × "
        f"{grid.geometry.slide_spacing[1]:.9g} mm, {grid.geometry.rotation:g} degrees"
        for grid in grids
    )
    ends = ", ".join(
        f"{dim} {float(array[dim][0]):.9g} … {float(array[dim][-1]):.9g} mm" for dim in ("x", "y")
    )
    return (
        f"the array's pixels of {spacing[0]:.9g} × {spacing[1]:.9g} mm ({ends}) are on the grid of"
        f' no level ({levels}). Choose: levels=0 (or another level) with resample="nearest",'
        ' "majority", "mean" or "linear" writes them on the grid of that level; levels="free" as'
        " they are, which fewer viewers show"
    )


def _frame_of(slide: Slide) -> str | None:
    try:
        return slide.frame_of_reference_uid
    except MetadataError:
        return None


def plane_of(array: xr.DataArray, grid: Grid) -> float:
    """Return the offset of the focal plane of an array in µm, by its scalar coordinate z in mm."""
    if "z" in array.coords and array["z"].ndim == 0 and math.isfinite(float(array["z"])):
        return float(array["z"]) * MICROMETERS
    return grid.first_plane
