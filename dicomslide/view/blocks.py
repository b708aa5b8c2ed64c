"""Pixels of an array at several resolutions, read in blocks as views need them.

A view asks for values at positions in mm. The coarsest level that is fine enough for the distance
of these positions is read, in blocks that are kept: to move a view reads what is new in it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.errors import FrameError
from dicomslide.labelled.coordinates import step_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import xarray as xr
    from numpy.typing import NDArray

    Held = dict[tuple[int, int, int], "Block | None"]
    """Blocks by row, column and channel; None if a block isn't there."""

__all__ = ["Block", "BlockCache", "Levels", "Sampled", "TooMuch", "levels_of"]

BLOCK = 512
"""Edge of a block in pixels."""
COARSER = 1.25
"""Upper bound on the spacing of a level, relative to the distance of positions."""
MOST_PIXELS = 1 << 26
"""Upper bound on stored pixels of a channel that are decoded for one view."""
PATIENCE = 2.0
"""Seconds in which frames are asked for one by one, though none can be read."""
IN_A_ROW = 3
"""Frames in a row, after these seconds, that can't be read: the others aren't asked for."""
CACHE_BYTES = 80 << 20
"""Upper bound on the blocks that views of a slide keep, beside those of the view itself."""


class TooMuch(Exception):
    """No level is coarse enough: a view would need more than `MOST_PIXELS`."""


@dataclasses.dataclass(frozen=True, slots=True)
class Axis:
    """Pixels along x or y: the edge before the first, and the signed distance, in mm."""

    edge: float
    step: float
    size: int

    @classmethod
    def of(cls, array: xr.DataArray, dim: str) -> Axis:
        step = step_of(array, dim)
        return cls(float(array[dim].values[0]) - step / 2, step, array.sizes[dim])

    def indices(self, positions: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the index of the pixel at each position, outside 0 … size − 1 if there is none."""
        return np.floor((positions - self.edge) / self.step).astype(np.int64)


@dataclasses.dataclass(frozen=True, eq=False)
class Level:
    """One resolution of an array."""

    array: xr.DataArray
    """Dims ([channels,] [z,] y, x[, sample])."""
    x: Axis
    y: Axis
    cost: float
    """Stored pixels that are decoded per pixel."""
    frames: Callable[[], tuple[NDArray[np.int64], NDArray[np.int64]]] | None = None
    """Returns the first rows and columns of the frames, to read them one by one."""

    @property
    def spacing(self) -> float:
        return max(abs(self.x.step), abs(self.y.step))


@dataclasses.dataclass(frozen=True, slots=True)
class Sampled:
    """Values at positions."""

    values: NDArray[Any]
    """Shape (channels, rows, columns[, samples]); 0 where there is none."""
    inside: NDArray[np.bool_]
    """Whether there is a value, shape (rows, columns)."""
    bad: NDArray[np.bool_] | None
    """Where frames couldn't be read or decoded; None if all could."""
    spacing: float
    """Spacing of the level in mm."""
    is_lasting: bool
    """False if another attempt may read more of what is bad."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Pixels of a channel in a square of a level."""

    values: NDArray[Any]
    """Shape (rows, columns[, samples])."""
    bad: NDArray[np.bool_] | None
    """Where frames couldn't be read or decoded; None if all could."""
    is_lasting: bool
    """False if another attempt may read more."""

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.values.nbytes + (0 if self.bad is None else self.bad.nbytes)


class BlockCache:
    """Blocks by what they are of, bounded in bytes; the one used longest ago goes first."""

    def __init__(self, most: int = CACHE_BYTES) -> None:
        self._blocks: OrderedDict[Any, Block] = OrderedDict()
        self._most, self._bytes = most, 0
        self._lock = threading.Lock()

    def get(self, key: Any) -> Block | None:
        """Return a block, or None."""
        with self._lock:
            block = self._blocks.get(key)
            if block is not None:
                self._blocks.move_to_end(key)
            return block

    def put(self, key: Any, block: Block) -> None:
        """Keep a block."""
        with self._lock:
            before = self._blocks.pop(key, None)
            self._bytes += block.nbytes - (0 if before is None else before.nbytes)
            self._blocks[key] = block
            while self._bytes > self._most and len(self._blocks) > 1:
                self._bytes -= self._blocks.popitem(last=False)[1].nbytes


class Levels:
    """An array at several resolutions.

    Parameters
    ----------
    levels : sequence of Level
        In any order.
    cache : BlockCache
        Where blocks are kept.

    """

    def __init__(self, levels: Sequence[Level], cache: BlockCache) -> None:
        self.levels = sorted(levels, key=lambda level: level.spacing)
        self._cache = cache
        array = self.levels[0].array
        lead = [str(dim) for dim in array.dims if dim not in ("z", "y", "x", "sample")]
        self.channel_dim = lead[0] if lead else None
        self.num_channels = array.sizes[lead[0]] if lead else 1
        self.num_planes = array.sizes.get("z", 1)
        self.dtype = array.dtype

    @property
    def array(self) -> xr.DataArray:
        """Array of the finest level."""
        return self.levels[0].array

    def level_for(self, distance: float) -> int:
        """Return the coarsest level that is fine enough for positions at a distance in mm."""
        enough = [
            i for i, level in enumerate(self.levels) if level.spacing <= COARSER * distance
        ]  # the finest, if none is
        return max(enough, default=0)

    def sample(
        self,
        x: NDArray[np.float64],
        y: NDArray[np.float64],
        channels: Sequence[int] = (0,),
        plane: int = 0,
        *,
        cached: bool = False,
    ) -> Sampled | None:
        """Return the values of the pixels at positions.

        Parameters
        ----------
        x, y : numpy.ndarray
            Positions of columns and rows in mm, evenly spaced.
        channels : sequence of int
            Indices of channels.
        plane : int
            Index of the focal plane.
        cached : bool
            Whether nothing is read, but a coarser level used if that is in the cache.

        Returns
        -------
        Sampled or None
            None if nothing may be read and no level is in the cache.

        Raises
        ------
        TooMuch
            When no level is coarse enough.

        """
        wanted = self.level_for(_distance(x) or self.levels[0].spacing)
        for number in range(wanted, len(self.levels) if cached else wanted + 1):
            level = self.levels[number]
            rows, columns = level.y.indices(y), level.x.indices(x)
            down = (rows >= 0) & (rows < level.y.size)
            across = (columns >= 0) & (columns < level.x.size)
            inside = down[:, None] & across
            shape = (
                len(channels),
                len(y),
                len(x),
                *level.array.shape[level.array.ndim - self._tail :],
            )
            if not inside.any() or not len(channels):
                return Sampled(np.zeros(shape, self.dtype), inside, None, level.spacing, True)
            box = (rows[down].min(), rows[down].max() + 1,
                   columns[across].min(), columns[across].max() + 1)  # fmt: skip
            held = self._held(number, box, channels, plane)
            missing = _missing(held, again=not cached)
            if missing and cached:
                continue
            if missing:
                pixels = (box[1] - box[0]) * (box[3] - box[2]) * level.cost
                if pixels > MOST_PIXELS:
                    raise TooMuch
                self._read_missing(number, missing, channels, plane, held)
            region, bad = self._assembled(number, box, channels, held)
            rows, columns = rows - box[0], columns - box[2]  # beyond the edge, those at the edge
            values = np.empty(shape, self.dtype)
            for part, into in zip(region, values, strict=True):
                part.take(rows, 0, mode="clip").take(columns, 1, into, mode="clip")
            values[:, ~down] = values[:, :, ~across] = 0
            if bad is not None:
                bad = bad.take(rows, 0, mode="clip").take(columns, 1, mode="clip") & inside
            is_lasting = all(block is None or block.is_lasting for block in held.values())
            return Sampled(values, inside, bad, level.spacing, is_lasting)
        return None

    def needs_reading(
        self,
        x: NDArray[np.float64],
        y: NDArray[np.float64],
        channels: Sequence[int],
        plane: int,
    ) -> bool:
        """Whether blocks of the level for these positions aren't in the cache."""
        number = self.level_for(_distance(x) or self.levels[0].spacing)
        level = self.levels[number]
        rows, columns = level.y.indices(y), level.x.indices(x)
        rows = rows[(rows >= 0) & (rows < level.y.size)]
        columns = columns[(columns >= 0) & (columns < level.x.size)]
        if not len(rows) or not len(columns):
            return False
        box = (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1)
        return bool(_missing(self._held(number, box, channels, plane), again=True))

    def at(self, x: float, y: float, distance: float, channels: Sequence[int], plane: int) -> Any:
        """Return the values at a position that blocks in the cache have; None if none does."""
        point = np.array([x]), np.array([y])
        for number in range(self.level_for(distance), len(self.levels)):
            level = self.levels[number]
            row, column = int(level.y.indices(point[1])[0]), int(level.x.indices(point[0])[0])
            if not (0 <= row < level.y.size and 0 <= column < level.x.size):
                return None
            blocks = [
                self._cache.get(self._key(number, row // BLOCK, column // BLOCK, channel, plane))
                for channel in channels
            ]
            there = [block.values for block in blocks if block is not None]
            if len(there) == len(blocks):
                return [values[row % BLOCK, column % BLOCK] for values in there]
        return None

    @property
    def _tail(self) -> int:
        return 1 if "sample" in self.array.dims else 0

    def _key(self, number: int, row: int, column: int, channel: int, plane: int) -> Any:
        return id(self), number, row, column, channel, plane

    def _held(self, number: int, box: Sequence[int], channels: Sequence[int], plane: int) -> Held:
        """Return the blocks in a box that are in the cache; they stay, whatever that drops."""
        return {
            (row, column, channel): self._cache.get(self._key(number, row, column, channel, plane))
            for row in range(box[0] // BLOCK, -(-box[1] // BLOCK))
            for column in range(box[2] // BLOCK, -(-box[3] // BLOCK))
            for channel in channels
        }

    def _read_missing(
        self,
        number: int,
        missing: Sequence[tuple[int, int, int]],
        channels: Sequence[int],
        plane: int,
        held: Held,
    ) -> None:
        """Read blocks, in rectangles of all channels of which a block is missing."""
        level = self.levels[number]
        places = dict.fromkeys((row, column) for row, column, _ in missing)
        for rows, columns in rectangles(list(places)):
            lacking = {c for row, column, c in missing if row in rows and column in columns}
            new = [channel for channel in channels if channel in lacking]
            y = slice(rows.start * BLOCK, min(rows.stop * BLOCK, level.y.size))
            x = slice(columns.start * BLOCK, min(columns.stop * BLOCK, level.x.size))
            pixels, bad, is_lasting = self._read(level, y, x, new, plane)
            for row, column in itertools.product(rows, columns):
                top, left = (row - rows.start) * BLOCK, (column - columns.start) * BLOCK
                part = np.s_[top : top + BLOCK, left : left + BLOCK]
                marks = bad[part].copy() if bad is not None and bad[part].any() else None
                for channel, plain in zip(new, pixels, strict=True):
                    block = Block(plain[part].copy(), marks, is_lasting or marks is None)
                    held[row, column, channel] = block
                    self._cache.put(self._key(number, row, column, channel, plane), block)

    def _read(
        self, level: Level, y: slice, x: slice, channels: Sequence[int], plane: int
    ) -> tuple[NDArray[Any], NDArray[np.bool_] | None, bool]:
        """Read a box; where frames fail, frame by frame, with a mask of those that fail."""
        chosen: dict[Any, Any] = {"y": y, "x": x}
        array = level.array
        if "z" in array.dims:
            chosen["z"] = plane
        if self.channel_dim is not None:
            chosen[self.channel_dim] = list(channels)

        def read(**box: slice) -> NDArray[Any]:
            part = array.isel(chosen | box)
            values = np.asarray(part.values)
            return values if self.channel_dim is not None else values[None]

        try:
            return read(), None, True
        except FrameError:
            if level.frames is None:
                raise
        tops, lefts = level.frames()
        shape = (len(channels), y.stop - y.start, x.stop - x.start)
        values = np.zeros((*shape, *array.shape[array.ndim - self._tail :]), self.dtype)
        bad = np.ones(shape[1:], bool)
        is_lasting, any_read, in_a_row = True, False, 0
        late = time.monotonic() + PATIENCE
        for rows, columns in itertools.product(_pieces(y, tops), _pieces(x, lefts)):
            at = np.s_[
                rows.start - y.start : rows.stop - y.start,
                columns.start - x.start : columns.stop - x.start,
            ]
            try:
                values[(slice(None), *at)] = read(y=rows, x=columns)
            except FrameError as error:
                if not isinstance(error, OSError):
                    continue
                is_lasting = False
                in_a_row += 1
                if time.monotonic() > late and not any_read:
                    raise  # not the frame, but where it comes from
                if time.monotonic() > late and in_a_row >= IN_A_ROW:
                    break
            else:
                bad[at] = False
                any_read, in_a_row = True, 0
        return values, bad, is_lasting

    def _assembled(
        self, number: int, box: Sequence[int], channels: Sequence[int], held: Held
    ) -> tuple[list[NDArray[Any]], NDArray[np.bool_] | None]:
        """Return the pixels of a box from blocks, by channel, and where frames are bad."""
        level = self.levels[number]
        shape = (box[1] - box[0], box[3] - box[2])
        tail = level.array.shape[level.array.ndim - self._tail :]
        found = {channel: np.empty((*shape, *tail), self.dtype) for channel in channels}
        bad: NDArray[np.bool_] | None = None
        for (row, column, channel), block in held.items():
            assert block is not None
            top, left = row * BLOCK, column * BLOCK
            here = np.s_[
                max(top, box[0]) - box[0] : min(top + BLOCK, box[1]) - box[0],
                max(left, box[2]) - box[2] : min(left + BLOCK, box[3]) - box[2],
            ]
            there = np.s_[
                max(top, box[0]) - top : min(top + BLOCK, box[1]) - top,
                max(left, box[2]) - left : min(left + BLOCK, box[3]) - left,
            ]
            found[channel][here] = block.values[there]
            if block.bad is not None:
                bad = np.zeros(shape, bool) if bad is None else bad
                bad[here] |= block.bad[there]
        return [found[channel] for channel in channels], bad


def _missing(held: Held, *, again: bool) -> list[tuple[int, int, int]]:
    """Return which blocks aren't there; `again`: or may be read at another attempt."""
    return [
        place for place, block in held.items() if block is None or (again and not block.is_lasting)
    ]


def _distance(positions: NDArray[np.float64]) -> float:
    return float(abs(positions[-1] - positions[0])) / max(len(positions) - 1, 1)


def _pieces(span: slice, starts: NDArray[np.int64]) -> list[slice]:
    """Divide a range where frames start."""
    inner = [int(start) for start in starts if span.start < start < span.stop]
    return [slice(a, b) for a, b in itertools.pairwise([span.start, *inner, span.stop])]


def rectangles(cells: Sequence[tuple[int, int]]) -> list[tuple[range, range]]:
    """Return few rectangles that cover cells of a grid, and no other cells.

    Rows with the same runs of columns are joined: an L-shape, as of a view that was moved, has two.
    """
    by_row: dict[int, list[int]] = {}
    for row, column in cells:
        by_row.setdefault(row, []).append(column)
    open_: dict[tuple[int, int], range] = {}
    found: list[tuple[range, range]] = []
    for row in sorted(by_row):
        runs: list[tuple[int, int]] = []
        for column in sorted(by_row[row]):
            if runs and runs[-1][1] == column:
                runs[-1] = (runs[-1][0], column + 1)
            else:
                runs.append((column, column + 1))
        grown: dict[tuple[int, int], range] = {}
        for run in runs:
            before = open_.pop(run, None)
            is_next = before is not None and before.stop == row
            if before is not None and not is_next:
                found.append((before, range(*run)))
            grown[run] = range(before.start, row + 1) if before and is_next else range(row, row + 1)
        found += [(rows, range(*run)) for run, rows in open_.items()]
        open_ = grown
    return found + [(rows, range(*run)) for run, rows in open_.items()]


def levels_of(
    arrays: Sequence[xr.DataArray],
    cache: BlockCache,
    stored: Sequence[float] | None = None,
    frames: Callable[[int], Any] | None = None,
) -> Levels:
    """Return arrays of one content as levels.

    Parameters
    ----------
    arrays : sequence of xarray.DataArray
        Dims ([channels,] [z,] y, x[, sample]) in mm.
    cache : BlockCache
        Where blocks are kept.
    stored : sequence of float, optional
        Spacings of levels that are stored; others are computed from the next finer one of these.
    frames : callable, optional
        Given the index of an array, returns the chunks of its rows and columns.

    """
    levels = []
    for number, array in enumerate(arrays):
        x, y = Axis.of(array, "x"), Axis.of(array, "y")
        spacing = math.sqrt(abs(x.step * y.step))
        finer = [each for each in stored or () if each <= spacing * 1.01]
        cost = (spacing / max(finer)) ** 2 if finer else 1.0
        starts = None
        if frames is not None:

            def starts(number: int = number) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
                rows, columns = frames(number)
                return np.cumsum([0, *rows[:-1]]), np.cumsum([0, *columns[:-1]])

        levels.append(Level(array, x, y, cost, starts))
    return Levels(levels, cache)
