"""Grid of an array's pixels on the slide: their centres and their borders."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.errors import GridError

if TYPE_CHECKING:
    from collections.abc import Collection

    import xarray as xr
    from numpy.typing import NDArray

__all__ = ["FRAME_OF_REFERENCE", "PixelAxis", "PixelGrid"]

FRAME_OF_REFERENCE = "frame_of_reference_uid"
CHUNK = 2048
"""Pixels along an edge of a chunk if an array has no chunks."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class PixelAxis:
    """Coordinates of pixels along a dim."""

    centres: NDArray[np.float64]
    """Centres, ascending."""
    borders: NDArray[np.float64]
    """Borders between pixels, and those at both ends, ascending."""
    reverse: bool
    """Whether the coordinate of the array descends."""

    @classmethod
    def of(
        cls, array: xr.DataArray | xr.Dataset, dim: str, extent: float | None = None
    ) -> PixelAxis:
        """Return the axis of a dim; `extent` of a pixel, by default that of its index.

        Raises
        ------
        ValueError
            When the coordinate isn't finite, or neither ascends nor descends.

        """
        centres = np.asarray(array[dim].values, np.float64)
        steps = np.diff(centres)
        reverse = bool(len(steps) and steps[0] < 0)
        if not np.isfinite(centres).all() or not (((steps < 0) == reverse) & (steps != 0)).all():
            raise ValueError(f"{dim} neither ascends nor descends throughout")
        if reverse:
            centres, steps = centres[::-1], -steps[::-1]
        if not len(centres):
            return cls(centres, np.zeros(1), reverse)
        if extent is None:  # where pixels were left out, the index still knows their extent
            known = getattr(array.xindexes.get(dim), "spacing", np.inf)
            extent = float(known) if np.isfinite(known) else float(np.min(steps, initial=np.inf))
        inner = (centres[1:] + centres[:-1]) / 2
        ends = centres[0] - extent / 2, centres[-1] + extent / 2
        return cls(centres, np.concatenate([[ends[0]], inner, [ends[1]]]), reverse)

    def part(self, start: int, stop: int) -> PixelAxis:
        """Return the pixels between two indices of the array."""
        if self.reverse:
            start, stop = len(self.centres) - stop, len(self.centres) - start
        return PixelAxis(self.centres[start:stop], self.borders[start : stop + 1], self.reverse)

    @property
    def low(self) -> float:
        """Lower border of all pixels."""
        return float(self.borders[0])

    @property
    def high(self) -> float:
        """Upper border of all pixels."""
        return float(self.borders[-1])


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class PixelGrid:
    """Grid of an upright array in mm, or of a matrix as stored, in pixels."""

    dims: tuple[str, str]
    """("y", "x") or ("row", "column")."""
    axes: tuple[PixelAxis, PixelAxis]
    """Axes of the dims."""
    chunks: tuple[tuple[int, ...], tuple[int, ...]]
    """Chunks along the dims."""
    affine: NDArray[np.float64] | None
    """2 × 3 matrix from (row, column, 1) to (x, y) in mm; None for an upright array."""
    frame_of_reference_uid: str | None
    """Frame of Reference UID; None if unknown."""

    @classmethod
    def of(cls, array: xr.DataArray | xr.Dataset) -> PixelGrid:
        """Return the grid of an array.

        Raises
        ------
        ValueError
            When it has no place on the slide.

        """
        dims, affine, extent = ("y", "x"), None, None
        known = {*array.dims} & {*array.coords}
        if not {"y", "x"} <= known or any(array[d].attrs.get("units", "mm") != "mm" for d in dims):
            dims, affine, extent = ("row", "column"), array.attrs.get("affine"), 1.0
            if not {*dims} <= known or affine is None:
                raise ValueError(
                    "the array has no place on the slide; expected the dims y and x with"
                    " coordinates in mm, or row and column with the attribute affine; its dims are"
                    f" {tuple(map(str, array.dims))}"
                )
            affine = np.asarray(affine, np.float64)
        row, column = (PixelAxis.of(array, dim, extent) for dim in dims)
        down, across = (_chunks_of(array, dim) for dim in dims)
        uid = next((u for d in dims if (u := array[d].attrs.get(FRAME_OF_REFERENCE))), None)
        return cls(dims, (row, column), (down, across), affine, uid)

    def check_frame(self, frame_of_reference_uids: Collection[str]) -> None:
        """Raise a GridError if millimetres of these frames of reference are others than these."""
        here = self.frame_of_reference_uid
        if here is not None and frame_of_reference_uids and here not in frame_of_reference_uids:
            raise GridError(
                f"the shapes are of frame of reference {', '.join(sorted(frame_of_reference_uids))}"
                f", the array is of {here}: equal coordinates aren't equal positions. Register one"
                " onto the other first"
            )

    def from_slide(self, points: NDArray[Any]) -> NDArray[Any]:
        """Map (x, y) in mm to coordinates along the second and the first dim."""
        if self.affine is None:
            return points
        pixels = (points - self.affine[:, 2]) @ np.linalg.inv(self.affine[:, :2]).T
        return pixels[:, ::-1]

    def corners(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return (x, y) in mm of corners of pixels: corner (0, 0) is that of the first pixel.

        Raises
        ------
        ValueError
            When the extent of the only pixel along a dim is unknown.

        """
        for dim, axis in zip(self.dims, self.axes, strict=True):
            if not np.isfinite(axis.borders).all():
                raise ValueError(f"the spacing along {dim} is unknown: it has one pixel")
        first, second = (
            (axis.borders[::-1] if axis.reverse else axis.borders)[at]
            for axis, at in zip(self.axes, (rows, columns), strict=True)
        )
        if self.affine is None:
            return np.stack([second, first], axis=-1)
        return np.stack([first, second], axis=-1) @ self.affine[:, :2].T + self.affine[:, 2]


def _chunks_of(array: xr.DataArray | xr.Dataset, dim: str) -> tuple[int, ...]:
    chunks = array.chunksizes.get(dim)
    if chunks is not None:
        return tuple(chunks)
    length = array.sizes[dim]
    return tuple(min(CHUNK, length - at) for at in range(0, length, CHUNK)) or (0,)
