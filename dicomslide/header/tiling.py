"""Tile grid of a total pixel matrix, and the mapping between tiles, focal planes and frames.

For TILED_FULL the mapping is computed, without memory per frame; for TILED_SPARSE it is held in
integer arrays. Tiles are numbered in row-major order over the whole grid.
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

__all__ = ["SAME_PLANE", "FocalPlanes", "FrameMap", "FramePositions", "FullFrames",
           "SparseFrames", "TileGrid", "distinct", "focal_planes", "match_planes",
           "plane_tolerance", "tiles_of"]  # fmt: skip

SINGLE_PLANE_TOLERANCE = 0.5
"""Tolerance in µm between an offset and that of the only focal plane."""
SAME_PLANE = 0.01
"""Distance in µm below which two offsets are of one focal plane."""
CLEAR_GAP = 2
"""Lowest ratio of the gaps between focal planes to those within them, where planes are found by
their heights alone."""


@dataclasses.dataclass(frozen=True, slots=True)
class TileGrid:
    """Division of a total pixel matrix into tiles of one size; the last ones may be cropped."""

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
        """Number of tiles (down, across)."""
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
    """Positions and channels in the per-frame functional groups, one entry per frame."""

    rows: Integers
    """Zero-based row of the first pixel: Row Position In Total Image Pixel Matrix − 1."""
    columns: Integers
    """Zero-based column of the first pixel: Column Position In Total Image Pixel Matrix − 1."""
    z: NDArray[np.float64] | None = None
    """Z Offset in Slide Coordinate System in µm; None where absent."""
    channels: NDArray[np.str_] | None = None
    """Channel identifier; None where absent."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = (self.rows, self.columns, self.z, self.channels)
        return sum(each.nbytes for each in arrays if each is not None)


class FrameMap(Protocol):
    """Mapping between frames and tiles of each channel and focal plane."""

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        ...

    def frames(self, channel: int, plane: int, tiles: Integers) -> Integers:
        """Return the zero-based frame of each tile, −1 where a tile is absent."""
        ...

    def locate(self, frames: Integers) -> tuple[Integers, Integers, Integers]:
        """Return the channel, plane and tile of each zero-based frame.

        Raises
        ------
        IndexError
            When there is no such frame.

        """
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class FullFrames:
    """TILED_FULL: frames are ordered by column, row, focal plane, channel (PS3.3 C.7.6.17.3)."""

    num_tiles: int
    num_planes: int
    num_frames: int
    """Number of Frames of the instance."""
    first: int = 0
    """Concatenation Frame Offset Number, where the instance is one part of a concatenation."""

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays: it has none."""
        return 0

    def frames(self, channel: int, plane: int, tiles: Integers) -> Integers:
        """Return the zero-based frame of each tile, −1 where a tile is absent."""
        found = (channel * self.num_planes + plane) * self.num_tiles + tiles - self.first
        return np.where((found >= 0) & (found < self.num_frames), found, -1)

    def locate(self, frames: Integers) -> tuple[Integers, Integers, Integers]:
        """Return the channel, plane and tile of each zero-based frame."""
        _check_frames(frames, self.num_frames)
        return _unstacked(frames + self.first, self.num_planes, self.num_tiles)


class SparseFrames:
    """TILED_SPARSE: every frame has a position of its own.

    Parameters
    ----------
    grid : TileGrid
        Tile grid on which the frames lie.
    tiles : numpy.ndarray
        Tile of each frame: see :func:`tiles_of`.
    channels : numpy.ndarray
        Zero-based channel of each frame.
    planes : numpy.ndarray
        Zero-based focal plane of each frame.
    num_planes : int
        Number of focal planes.

    Raises
    ------
    FramePositionError
        When two frames have one position, channel and focal plane.

    """

    def __init__(
        self,
        grid: TileGrid,
        tiles: Integers,
        channels: Integers,
        planes: Integers,
        num_planes: int,
    ) -> None:
        keys = (channels * num_planes + planes) * grid.num_tiles + tiles
        self._num_planes = num_planes
        self._num_tiles = grid.num_tiles
        self._key_of_frame = keys
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]
        double = np.flatnonzero(np.diff(self._keys) == 0)
        if double.size:
            first, second = self._order[double[0] : double[0] + 2]
            row, column = grid.position(int(tiles[first]))
            raise FramePositionError(
                f"frames {first + 1} and {second + 1} both lie at row {row * grid.tile_rows + 1},"
                f" column {column * grid.tile_columns + 1} of the same channel and focal plane",
                frame=int(second),
            )

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return self._key_of_frame.nbytes + self._order.nbytes + self._keys.nbytes

    def frames(self, channel: int, plane: int, tiles: Integers) -> Integers:
        """Return the zero-based frame of each tile, −1 where a tile is absent."""
        wanted = (channel * self._num_planes + plane) * self._num_tiles + tiles
        at = np.searchsorted(self._keys, wanted)
        at[at == len(self._keys)] = 0
        return np.where(self._keys[at] == wanted, self._order[at], -1)

    def locate(self, frames: Integers) -> tuple[Integers, Integers, Integers]:
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
    """Split keys into channel, plane and tile; the tile varies fastest, the channel slowest."""
    stack, tile = np.divmod(keys, num_tiles)
    channel, plane = np.divmod(stack, num_planes)
    return channel, plane, tile


def tiles_of(grid: TileGrid, positions: FramePositions) -> Integers:
    """Return the tile of each frame.

    Raises
    ------
    FramePositionError
        When a frame lies outside the matrix or off the grid.

    """
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
    rows, columns = positions.rows // grid.tile_rows, positions.columns // grid.tile_columns
    return rows * grid.shape[1] + columns


def distinct(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """Return the sorted distinct values, and for each value its index among them.

    Like ``numpy.unique``, but without sorting where all values are equal, as in most images.
    """
    if len(values) and (values == values[0]).all():
        return values[:1], np.zeros(len(values), np.intp)
    return np.unique(values, return_inverse=True)


def focal_planes(
    z: NDArray[np.float64],
    sites: Integers,
    declared: int | None = None,
    *,
    may_be_absent: bool = False,
) -> Integers:
    """Assign pictures (frames, or images) to focal planes, from the glass towards the coverslip.

    A flat plane is the set of pictures at one height, within 0.01 µm, or within less where one
    site has several pictures that are closer. Planes may also follow the tissue, with a height of
    their own at each site (PS3.3, Supplement 145). This is assumed when there are more heights
    than pictures at a site, unless the header declares that many planes, or more than half of the
    pictures of that many planes exist. Then:

    - if each site has one picture, there is one plane;
    - if heights form groups that are clearly apart, each group is a plane;
    - otherwise the k-th picture of a site, from the glass on, belongs to the k-th plane.

    Parameters
    ----------
    z : numpy.ndarray
        Offset of each picture in µm.
    sites : numpy.ndarray
        Site of each picture: an integer for the tile and channel of a frame, or for
        the level and channel of an image.
    declared : int, optional
        Total Pixel Matrix Focal Planes.
    may_be_absent : bool, default: False
        Whether sites with one picture each may lack pictures of other declared planes, as segments
        do in tiles where they have no pixels.

    Returns
    -------
    numpy.ndarray
        Zero-based plane of each picture. Two pictures of one site get the same plane if they have
        one height, or if they are more than `declared` and most sites don't have as many.

    """
    values, inverse = distinct(z)
    if len(values) == 1:
        return np.zeros(len(z), np.int64)
    order = np.lexsort((z, sites))
    follows = np.diff(sites[order]) == 0  # whether the next picture has the same site
    starts = np.flatnonzero(np.concatenate([[True], ~follows]))
    counts = np.diff(starts, append=len(z))
    depth = int(counts.max())

    def collide(planes: Integers) -> bool:
        return bool(np.any(follows & (np.diff(planes[order]) == 0)))

    def parted(gap: float) -> Integers:
        return np.concatenate([[0], np.cumsum(np.diff(values) >= gap)])[inverse]

    planes = parted(SAME_PLANE)
    if collide(planes):
        planes = inverse
        if collide(planes):
            return planes
    count = int(planes.max()) + 1
    if count == depth or (
        declared is not None and count <= declared and (depth > 1 or may_be_absent)
    ):
        return planes
    if depth == 1:
        return np.zeros(len(z), np.int64)
    plausible = declared if declared is not None and depth <= declared < count else None
    gaps = np.sort(np.diff(values))
    widest = (plausible or depth) - 1
    if gaps[-widest] > CLEAR_GAP * gaps[-widest - 1]:
        apart = parted(gaps[-widest])
        if not collide(apart):
            return apart
    if plausible is None and 2 * len(z) > count * len(counts):
        return planes
    rank = np.empty(len(z), np.int64)
    rank[order] = np.arange(len(z)) - np.repeat(starts, counts)
    if declared is not None and declared < depth and 2 * np.sum(counts > declared) <= len(counts):
        return np.minimum(rank, declared - 1)
    return rank


@dataclasses.dataclass(frozen=True, slots=True)
class FocalPlanes:
    """Offsets of the focal planes of an image from the slide surface, in µm."""

    offsets: tuple[float, ...]
    """Offset of each plane, ascending."""
    spans: tuple[tuple[float, float], ...] = ()
    """Lowest and highest offset of the frames of each plane; empty where all planes are flat in
    each channel."""
    of_channels: tuple[tuple[float, ...], ...] = ()
    """Offsets of the planes by channel; empty where channels have the same offsets."""

    @classmethod
    def of_frames(
        cls,
        z: NDArray[np.float64],
        planes: Integers,
        sites: Integers,
        channels: Integers,
        num_channels: int,
    ) -> FocalPlanes:
        """Return the offsets of the planes of some frames.

        The offset of a plane is the median of its frames' offsets (the lower one of two), taken
        over the sites that have all planes, if there are such sites.

        Parameters
        ----------
        z : numpy.ndarray
            Offset of each frame in µm.
        planes, sites, channels : numpy.ndarray
            Plane, site and channel of each frame: see :func:`focal_planes`.
        num_channels : int
            Number of channels.

        """
        if (z == z[0]).all():
            return cls((float(z[0]),))
        count = int(planes.max()) + 1
        if count == 1:
            whole = slice(None)
        else:
            _, site, pictures = np.unique(sites, return_inverse=True, return_counts=True)
            is_whole = pictures[site] == count
            whole = is_whole if is_whole.any() else slice(None)
        _, offsets, _, _ = _ordered(z[whole], planes[whole])
        keys, heights, lowest, highest = _ordered(z, channels * count + planes)
        is_flat = (highest - lowest < SAME_PLANE).all()
        _, _, lowest, highest = _ordered(z, planes)
        of_channels = np.tile(offsets, (num_channels, 1))
        of_channels.ravel()[keys] = heights
        return cls(
            tuple(offsets.tolist()),
            () if is_flat else tuple(zip(lowest.tolist(), highest.tolist(), strict=True)),
            tuple(map(tuple, of_channels.tolist()))
            if (np.ptp(of_channels, axis=0) >= SAME_PLANE).any()
            else (),
        )

    def __len__(self) -> int:
        return len(self.offsets)

    def offset(self, channel: int, plane: int) -> float:
        """Return the offset of a focal plane in a channel, in µm."""
        return self.of_channels[channel][plane] if self.of_channels else self.offsets[plane]

    def span(self, plane: int) -> tuple[float, float]:
        """Return the lowest and the highest offset of the frames of a focal plane in µm."""
        return self.spans[plane] if self.spans else (self.offsets[plane],) * 2


def _ordered(
    z: NDArray[np.float64], keys: Integers
) -> tuple[Integers, NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the distinct keys, ascending, with median, lowest and highest value of each."""
    order = np.lexsort((z, keys))
    ordered, values = keys[order], z[order]
    starts = np.flatnonzero(np.concatenate([[True], np.diff(ordered) != 0]))
    counts = np.diff(starts, append=len(z))
    return (
        ordered[starts],
        values[starts + (counts - 1) // 2],
        values[starts],
        values[starts + counts - 1],
    )


def plane_tolerance(planes: Sequence[float]) -> float:
    """Return the tolerance between an offset and that of its focal plane, in µm.

    It is half the smallest distance between planes, or 0.5 µm for one plane.

    Parameters
    ----------
    planes : sequence of float
        Offset of each focal plane in µm.

    """
    if len(planes) < 2:
        return SINGLE_PLANE_TOLERANCE
    return float(np.diff(np.sort(planes)).min()) / 2


def match_planes(offsets: Sequence[float], planes: Sequence[float]) -> tuple[int, ...] | None:
    """Return the index of the plane of each offset; None unless each has a plane of its own.

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
