"""Where each frame lies: the tile grid of a total pixel matrix, and which frame is which tile.

TILED_FULL is arithmetic and never an object or a number per frame; TILED_SPARSE is two
integer arrays. Tiles are numbered in row-major order over the whole grid everywhere.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dicomslide.errors import FramePositionError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    from numpy.typing import NDArray

    Integers: TypeAlias = NDArray[np.int64]

__all__ = ["FrameMap", "FramePositions", "FullFrames", "SparseFrames", "TileGrid", "distinct",
           "focal_planes", "match_planes", "plane_tolerance"]  # fmt: skip

SINGLE_PLANE_TOLERANCE = 0.5
"""µm by which an offset may differ from that of an only focal plane."""
SAME_PLANE = 0.01
"""Offsets closer than this, in µm, are one focal plane."""


@dataclasses.dataclass(frozen=True, slots=True)
class TileGrid:
    """A total pixel matrix cut into tiles of one size, the last ones perhaps cropped."""

    rows: int
    """Total Pixel Matrix Rows"""
    columns: int
    """Total Pixel Matrix Columns"""
    tile_rows: int
    """Rows"""
    tile_columns: int
    """Columns"""

    @property
    def shape(self) -> tuple[int, int]:
        """Number of tiles along rows and columns of the grid."""
        return -(-self.rows // self.tile_rows), -(-self.columns // self.tile_columns)

    @property
    def num_tiles(self) -> int:
        """Number of tiles, absent ones included."""
        down, across = self.shape
        return down * across

    def position(self, tile: int) -> tuple[int, int]:
        """Return the zero-based (row, column) of a tile in the grid."""
        return divmod(tile, self.shape[1])


@dataclasses.dataclass(frozen=True, slots=True)
class FramePositions:
    """What the per-frame functional groups say, one entry a frame."""

    rows: Integers
    """Zero-based row of the first pixel: Row Position In Total Image Pixel Matrix − 1."""
    columns: Integers
    """Zero-based column of the first pixel."""
    z: NDArray[np.float64] | None = None
    """Z Offset in Slide Coordinate System in µm; None where frames don't say."""
    channels: NDArray[np.str_] | None = None
    """Identifier of the channel; None where frames don't say."""

    def __len__(self) -> int:
        return len(self.rows)


class FrameMap(Protocol):
    """Which frame is which tile."""

    def frames(self, channel: int, plane: int, tiles: Integers) -> Integers:
        """Return the zero-based frame of each tile, −1 where a tile is absent."""
        ...

    def places(self, frames: Integers) -> tuple[Integers, Integers, Integers]:
        """Return the channel, plane and tile of each zero-based frame.

        Raises
        ------
        IndexError
            When there is no such frame.

        """
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class FullFrames:
    """TILED_FULL: columns, rows, focal planes, then channels (PS3.3 C.7.6.17.3)."""

    num_tiles: int
    num_planes: int
    num_frames: int
    """Frames that are here."""
    first: int = 0
    """Concatenation Frame Offset Number of a part that stands alone."""

    def frames(self, channel: int, plane: int, tiles: Integers) -> Integers:
        """Return the zero-based frame of each tile, −1 where a tile is absent."""
        found = (channel * self.num_planes + plane) * self.num_tiles + tiles - self.first
        return np.where((found >= 0) & (found < self.num_frames), found, -1)

    def places(self, frames: Integers) -> tuple[Integers, Integers, Integers]:
        """Return the channel, plane and tile of each zero-based frame."""
        _check_frames(frames, self.num_frames)
        return _unstacked(frames + self.first, self.num_planes, self.num_tiles)


class SparseFrames:
    """TILED_SPARSE: every frame says where it lies.

    Parameters
    ----------
    grid : TileGrid
        Tile grid on which the frames lie.
    positions : FramePositions
        Where they lie.
    channels : numpy.ndarray
        Zero-based channel of each frame.
    planes : numpy.ndarray
        Zero-based focal plane of each frame.
    num_planes : int
        Number of focal planes.

    Raises
    ------
    FramePositionError
        When a frame lies outside the matrix or off the grid, or two lie at one place.

    """

    def __init__(
        self,
        grid: TileGrid,
        positions: FramePositions,
        channels: Integers,
        planes: Integers,
        num_planes: int,
    ) -> None:
        _check_on_grid(grid, positions)
        tiles = (positions.rows // grid.tile_rows) * grid.shape[1] + (
            positions.columns // grid.tile_columns
        )
        keys = (channels * num_planes + planes) * grid.num_tiles + tiles
        self._num_planes = num_planes
        self._num_tiles = grid.num_tiles
        self._key_of_frame = keys
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]
        double = np.flatnonzero(np.diff(self._keys) == 0)
        if double.size:
            first, second = self._order[double[0] : double[0] + 2]
            raise FramePositionError(
                f"frames {first + 1} and {second + 1} both lie at row {positions.rows[first] + 1},"
                f" column {positions.columns[first] + 1} of the same channel and focal plane",
                frame=int(second),
            )

    def frames(self, channel: int, plane: int, tiles: Integers) -> Integers:
        """Return the zero-based frame of each tile, −1 where a tile is absent."""
        wanted = (channel * self._num_planes + plane) * self._num_tiles + tiles
        at = np.searchsorted(self._keys, wanted)
        at[at == len(self._keys)] = 0
        return np.where(self._keys[at] == wanted, self._order[at], -1)

    def places(self, frames: Integers) -> tuple[Integers, Integers, Integers]:
        """Return the channel, plane and tile of each zero-based frame."""
        _check_frames(frames, len(self._order))
        return _unstacked(self._key_of_frame[frames], self._num_planes, self._num_tiles)


def _check_frames(frames: Integers, count: int) -> None:
    wrong = frames[(frames < 0) | (frames >= count)]
    if wrong.size:
        raise IndexError(f"there is no frame {wrong.flat[0] + 1} among {count}")


def _unstacked(
    keys: Integers, num_planes: int, num_tiles: int
) -> tuple[Integers, Integers, Integers]:
    """Split keys, in which tiles run fastest, then planes, then channels."""
    stack, tile = np.divmod(keys, num_tiles)
    channel, plane = np.divmod(stack, num_planes)
    return channel, plane, tile


def _check_on_grid(grid: TileGrid, positions: FramePositions) -> None:
    for values, size, step, name in (
        (positions.rows, grid.rows, grid.tile_rows, "row"),
        (positions.columns, grid.columns, grid.tile_columns, "column"),
    ):
        outside = np.flatnonzero((values < 0) | (values >= size))
        if outside.size:
            frame = int(outside[0])
            raise FramePositionError(
                f"it lies at {name} {values[frame] + 1}, outside the total pixel matrix of"
                f" {grid.rows} rows × {grid.columns} columns",
                frame=frame,
            )
        off = np.flatnonzero(values % step)
        if off.size:
            frame = int(off[0])
            raise FramePositionError(
                f"it lies at {name} {values[frame] + 1}, which isn't on the grid of"
                f" {grid.tile_rows} × {grid.tile_columns} tiles",
                frame=frame,
            )


def distinct(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """Return the distinct values, sorted, and the index among them of each.

    Frames mostly are of one plane and one channel: then nothing is sorted.
    """
    if len(values) and (values == values[0]).all():
        return values[:1], np.zeros(len(values), np.intp)
    return np.unique(values, return_inverse=True)


def focal_planes(z: NDArray[np.float64]) -> tuple[tuple[float, ...], Integers]:
    """Group offsets along Z into focal planes, from the glass slide towards the coverslip.

    Parameters
    ----------
    z : numpy.ndarray
        Offset of each frame in µm.

    Returns
    -------
    offsets : tuple of float
        Offset of each plane in µm, ascending.
    planes : numpy.ndarray
        Zero-based plane of each frame.

    """
    values, inverse = distinct(z)
    starts = np.concatenate([[True], np.diff(values) >= SAME_PLANE])
    return tuple(values[starts].tolist()), (np.cumsum(starts) - 1)[inverse]


def plane_tolerance(planes: Sequence[float]) -> float:
    """Return how far, in µm, an offset may be from that of its focal plane: half their distance.

    Parameters
    ----------
    planes : sequence of float
        Offset of each focal plane in µm.

    """
    if len(planes) < 2:
        return SINGLE_PLANE_TOLERANCE
    return float(np.diff(np.sort(planes)).min()) / 2


def match_planes(offsets: Sequence[float], planes: Sequence[float]) -> tuple[int, ...] | None:
    """Return the index of the plane in which each offset lies; None where not each has its own.

    Parameters
    ----------
    offsets, planes : sequence of float
        In µm.

    """
    distances = np.abs(np.subtract.outer(np.array(offsets), np.array(planes)))
    nearest = tuple(distances.argmin(axis=1).tolist())
    if (distances.min(axis=1) > plane_tolerance(planes)).any() or len(set(nearest)) < len(nearest):
        return None
    return nearest


def index_of(identifiers: Sequence[str], channels: NDArray[np.str_]) -> Integers:
    """Map each frame's channel identifier to its zero-based index.

    Raises
    ------
    FramePositionError
        When a frame names a channel that the image doesn't have.

    """
    names, inverse = distinct(channels)
    known = {name: i for i, name in reversed(list(enumerate(identifiers)))}
    codes = np.array([known.get(name, -1) for name in names.tolist()], dtype=np.int64)
    found = codes[inverse]
    unknown = np.flatnonzero(found < 0)
    if unknown.size:
        frame = int(unknown[0])
        raise FramePositionError(
            f"it belongs to channel {str(channels[frame])!r}; the image has {list(identifiers)}",
            frame=frame,
        )
    return found
