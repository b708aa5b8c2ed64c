"""Patches of a slide: boxes of one size at any spacing, with their centres in mm."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from dicomslide.errors import MetadataError
from dicomslide.header.geometry import AS_STORED
from dicomslide.labelled.resolution import (
    check_labels,
    grid_of_level,
    grid_of_spacing,
    place_at,
    wanted_spacing,
    windows_on,
)
from dicomslide.process.warn import once
from dicomslide.readers.arrays import dask_joined
from dicomslide.readers.patch_reader import PatchReader
from dicomslide.readers.resampled_reader import ResampledReader

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from dicomslide.contents.contents import SlideContents
    from dicomslide.header.geometry import Orientation
    from dicomslide.header.resolution import Spacing
    from dicomslide.labelled.variables import Grid
    from dicomslide.readers.reductions import Labels

__all__ = ["PatchGrid", "Patches", "centers_of", "labelled_patches", "patch_grid"]

FAR = 1e9
"""Distance in mm beyond which centres needn't be told apart: there is no slide."""
CHUNK = 64 * 2**20
"""Bytes of patches that are read together."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Patches:
    """Patches of one size on the grid of a level or of a spacing."""

    reader: PatchReader
    centers: NDArray[np.float64]
    """(x, y) of the centre of each patch in mm, shape (patches, 2)."""
    spacing: tuple[float, float]
    """Spacing in mm along y and along x."""


def centers_of(boxes: Any) -> NDArray[np.float64]:
    """Return the centres of boxes, annotations or geometries in mm.

    Parameters
    ----------
    boxes : array-like, AnnotationGroup, geopandas.GeoDataFrame or GeoSeries
        (x, y) in mm, shape (n, 2); or an object with ``bounds`` in mm, whose centres are used.

    Returns
    -------
    numpy.ndarray
        Shape (n, 2).

    Raises
    ------
    ValueError
        When the array has another shape, or values that aren't finite.

    """
    bounds = getattr(boxes, "bounds", None)
    if bounds is not None:
        edges = np.asarray(bounds, np.float64).reshape(-1, 4)
        centers = (edges[:, :2] + edges[:, 2:]) / 2
    else:
        centers = np.asarray(boxes, np.float64)
        centers = centers.reshape(0, 2) if centers.size == 0 else centers
    if centers.ndim != 2 or centers.shape[1] != 2:
        raise ValueError(
            f"centres in mm are (x, y), shape (n, 2), not an array of shape {centers.shape}"
        )
    if not np.isfinite(centers).all():
        at = int(np.flatnonzero(~np.isfinite(centers).all(axis=1))[0])
        raise ValueError(
            f"centre {at} is {tuple(centers[at].tolist())} mm: expected finite numbers"
        )
    return centers


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class PatchGrid:
    """Grid of a level or a spacing, from which patches are read."""

    reader: ResampledReader
    """Reader of the pixels, in stored orientation."""
    grid: Grid
    """Geometry of the pixels: upright, or as stored if the slide lies obliquely."""
    orientation: Orientation
    """Transposition and flips from the reader to the grid."""

    @property
    def spacing(self) -> tuple[float, float]:
        """Spacing in mm along y and along x."""
        down, across = self.grid.placed.spacing
        turn = self.grid.orientation or AS_STORED
        return (across, down) if turn.transpose else (down, across)

    @property
    def covered(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """First and last edge of the image along y and along x, in pixels of the grid."""
        ends = [
            (-each.start / each.step, (each.extent - each.start) / each.step)
            for each in (self.reader.rows, self.reader.columns)
        ]
        turn = self.orientation
        y, x = ends[::-1] if turn.transpose else ends
        height, width = self.grid.plane_shape
        y = (height - y[1], height - y[0]) if turn.flip_y else y
        x = (width - x[1], width - x[0]) if turn.flip_x else x
        return y, x

    def patches(self, centers: ArrayLike, size: tuple[int, int]) -> Patches:
        """Return patches of (rows, columns) around centres (x, y) in mm, shape (patches, 2)."""
        reader = self.patch_reader(np.asarray(centers, np.float64), size)
        return Patches(reader, self.centers(reader.first, size), self.spacing)

    def patch_reader(self, centers: NDArray[np.float64], size: tuple[int, int]) -> PatchReader:
        """Return what reads patches of rows and columns around centres (x, y) in mm.

        Each begins with a whole pixel.
        """
        corners = self.pixels(centers.clip(-FAR, FAR)) - np.divide(size, 2)
        first = np.floor(corners + 0.5 + 1e-9).astype(np.int64)
        return PatchReader(self.reader, self.orientation, first, size)

    def pixels(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the (y, x) of points (x, y) in mm, in pixels from the outer corner of the grid."""
        stored = self.grid.placed.to_matrix(points) + 0.5
        turn = self.grid.orientation or AS_STORED
        return self._flipped(stored[:, ::-1] if turn.transpose else stored)

    def centers(self, first: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.float64]:
        """Return the centres (x, y) in mm of patches with the given first pixels (y, x)."""
        turn = self.grid.orientation or AS_STORED
        middles = self._flipped(first.astype(np.float64) + np.divide(size, 2))
        return self.grid.placed.to_slide((middles[:, ::-1] if turn.transpose else middles) - 0.5)

    def _flipped(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        turn = self.grid.orientation or AS_STORED
        height, width = self.grid.plane_shape
        y, x = points.T
        return np.stack([height - y if turn.flip_y else y, width - x if turn.flip_x else x], axis=1)


def patch_grid(
    slide: SlideContents,
    *,
    spacing: Spacing | None,
    level: int | None = None,
    channel_index: int = 0,
    focal_plane_index: int = 0,
    labels: Labels = "majority",
    fast: bool = False,
) -> PatchGrid:
    """Return the grid of a level or a spacing, from which patches are read.

    Parameters
    ----------
    slide : SlideContents
        The slide.
    spacing : float, str or None
        Spacing of pixels: see :func:`spacing_in_mm`; None if a level is given.
    level : int or None
        Zero-based index into pyramid levels; None if a spacing is given.
    channel_index, focal_plane_index : int
        Zero-based indices into channels and focal planes of the slide.
    labels, fast
        See :class:`ResampledReader`.

    Raises
    ------
    TypeError
        When not exactly one of `spacing` and `level` is given.
    LevelNotFoundError
        When there is no such level.
    ValueError
        When there is no such channel or focal plane.
    MetadataError
        When the header doesn't place the image on the slide.

    """
    check_labels(labels)
    wanted = wanted_spacing(spacing, level)
    with once(slide._warned):
        if level is not None:
            image, channel, plane = slide._place(level, channel_index, focal_plane_index)
            grid = grid_of_level(slide, level, "upright")
        else:
            assert wanted is not None
            image, channel, plane = place_at(slide, channel_index, focal_plane_index, wanted)
            grid = grid_of_spacing(slide, wanted, "upright", image)
    matrix = image.get_total_pixel_matrix(channel, plane)
    found = windows_on(grid, image)
    if found is None:
        raise MetadataError(f"{image.name}: its rows run obliquely to those of the base level")
    windows, orientation = found
    reader = ResampledReader.of(matrix._reader.as_meant(), windows, labels, fast=fast)
    return PatchGrid(reader, grid, orientation)


def labelled_patches(patches: Patches) -> xr.DataArray:
    """Return patches as a lazy array with their centres in mm.

    Parameters
    ----------
    patches : Patches
        The patches.

    Returns
    -------
    xarray.DataArray
        Dims (patch, y, x, sample), without the last for one sample; with the coordinates
        ``center_x`` and ``center_y`` in mm along ``patch``.

    """
    reader = patches.reader
    _, rows, columns, samples = reader.shape
    at_once = max(1, CHUNK // max(1, rows * columns * samples * reader.dtype.itemsize))
    # each task is sent the positions of its own patches only
    data = dask_joined(
        [
            dataclasses.replace(reader, first=reader.first[start : start + at_once])
            for start in range(0, max(len(reader.first), 1), at_once)
        ],
        name="patches",
    )
    coords: dict[str, Any] = {
        f"center_{name}": ("patch", values, {"long_name": f"{name} of the centre", "units": "mm"})
        for name, values in zip("xy", patches.centers.T, strict=True)
    }
    if samples == 3:
        coords["sample"] = ["r", "g", "b"]
    array = xr.DataArray(
        data,
        dims=("patch", "y", "x", "sample"),
        coords=coords,
        name="patches",
        attrs={"long_name": "pixel value", "spacing": list(patches.spacing)},
    )
    return array if samples > 1 else array.isel(sample=0)
