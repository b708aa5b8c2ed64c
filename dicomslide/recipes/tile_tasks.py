"""What one task does: it reads tiles with their halo, runs the model, and assembles the results."""

from __future__ import annotations

import dataclasses
import itertools
import math
import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dicomslide.process.lazy import lazy
from dicomslide.recipes.tile_checks import checked_integer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import DTypeLike, NDArray

    from dicomslide.recipes.tile_source import Place, Source
    from dicomslide.recipes.tilings import Tiling

__all__ = ["At", "TileOutput", "Work", "fill_task", "part_of", "run_task"]

Tile: TypeAlias = "tuple[int, int]"
"""Index of a tile along y and x."""
Block: TypeAlias = "tuple[range, range]"
"""Tiles side by side: indices along y and x."""
At: TypeAlias = "int | NDArray[np.int32]"
"""The tiles of a task: the number of a block of them in row-major order, or the numbers of each."""


@dataclasses.dataclass(frozen=True)
class TileOutput:
    """An output of a model: see :func:`map_tiles`.

    Raises
    ------
    ValueError
        When the factor is no positive integer or None, dims are ``y`` or ``x`` or of a length that
        is no integer, or `dtype` can't hold `fill_value`.
    TypeError
        When dims are no mapping.

    """

    dims: Mapping[str, int | Sequence[Any]] = dataclasses.field(default_factory=dict)
    """Name of each dim before ``y`` and ``x``, such as ``{"class": ["stroma", "tumour"]}``, and its
    length or its labels."""
    factor: int | None = 1
    """Pixels of the image per pixel of the output along each axis; None for one value per tile."""
    dtype: DTypeLike = np.float32
    """Data type of the result. Values of the model are never rounded or wrapped to integers."""
    fill_value: Any = None
    """Value where no tile is processed; NaN if not given, or zero for integers and bool."""

    def __post_init__(self) -> None:
        if self.factor is not None:
            checked_integer(self.factor, "factor", or_none=True)
        if not isinstance(self.dims, Mapping):
            raise TypeError(
                f"dims {self.dims!r}: expected a mapping of names to lengths or labels, such as"
                " {'class': 2}"
            )
        for name, labels in self.dims.items():
            if not hasattr(labels, "__len__"):
                checked_integer(labels, f"dims: {name}", least=0)
        if {"y", "x"} & set(self.dims):
            raise ValueError(f"dims {list(self.dims)}: expected those before y and x only")
        _ = self.fill

    @property
    def lead(self) -> tuple[int, ...]:
        """Lengths of the dims before ``y`` and ``x``."""
        return tuple(
            len(n) if hasattr(n, "__len__") else operator.index(n) for n in self.dims.values()
        )

    @lazy
    def fill(self) -> NDArray[Any]:
        """The value where no tile is processed, of the data type, without a dim."""
        dtype = np.dtype(self.dtype)
        if self.fill_value is None:
            return np.asarray(np.nan if dtype.kind in "fc" else 0, dtype)
        value = np.asarray(self.fill_value)
        same = value.ndim == 0 and np.can_cast(value.dtype, dtype, "same_kind")
        if not same:
            with np.errstate(invalid="ignore"):
                same = (
                    value.ndim == 0 and value.dtype.kind in "iufb" and value == value.astype(dtype)
                )
        if not same:
            raise ValueError(f"fill_value {self.fill_value!r} can't be held by {dtype}")
        return value.astype(dtype)

    def shape_of(self, tile: Tile) -> Tile:
        """Return the pixels that a tile of so many pixels gives."""
        return (1, 1) if self.factor is None else (tile[0] // self.factor, tile[1] // self.factor)

    def part(self, result: Any, number: int | None, tile: Tile, halo: int) -> NDArray[Any]:
        """Check what a model returned, and cut the halo off.

        Parameters
        ----------
        result : array-like
            Of one tile, or of several along the first dim.
        number : int or None
            Number of tiles; None for one without a dim of tiles.
        tile : tuple of int
            Pixels of a tile, without the halo.
        halo : int
            Pixels around it.

        Returns
        -------
        numpy.ndarray
            Shape (tiles, *dims, rows, columns), of the data type.

        """
        found = np.asarray(result)
        trim = 0 if self.factor is None else halo // self.factor
        pixels = self.shape_of(tile)
        around = () if self.factor is None else tuple(n + 2 * trim for n in pixels)
        first = () if number is None else (number,)
        expected = (*first, *self.lead, *around)
        if found.shape != expected:
            whole = (*first, *(n + 2 * halo for n in tile))
            raise ValueError(
                f"the model returned an array of shape {found.shape} for {_counted(number)} of"
                f" {whole} pixels; expected {expected}"
            )
        if trim:
            found = found[..., trim:-trim, trim:-trim]
        return _converted(found, np.dtype(self.dtype)).reshape(number or 1, *self.lead, *pixels)


def _counted(number: int | None) -> str:
    return "a tile" if number is None else f"{number} tile{'s' * (number > 1)}"


@dataclasses.dataclass(frozen=True, eq=False)
class Work:
    """What all tasks of one image and one model have in common."""

    source: Source
    """Where the pixels come from."""
    rows: Tiling
    """Tiles along y."""
    columns: Tiling
    """Tiles along x."""
    halo: int
    """Pixels around each tile."""
    batch: int | None
    """Most tiles of a call of the model; None for one that takes a tile by itself."""
    outputs: tuple[TileOutput, ...]
    """What the model returns."""
    names: tuple[str, ...] | None
    """Keys of the mapping that the model returns; None where it returns no mapping."""
    is_one: bool
    """Whether the model returns an array, rather than a sequence or a mapping of them."""
    down: NDArray[np.float64]
    """Centres in mm of the first and the last pixel of each tile along y, shape (tiles, 2)."""
    across: NDArray[np.float64]
    """The same along x."""
    block: Tile
    """Tiles of a task, down and across."""
    wanted: NDArray[np.uint8] | None
    """Which tiles are processed, packed bits in row-major order; None for all."""

    def block_of(self, at: int) -> Block:
        """Return the tiles of the block of a number."""
        row, column = divmod(at, -(-self.columns.count // self.block[1]))
        return self._range(row, self.block[0], self.rows), self._range(
            column, self.block[1], self.columns
        )

    @staticmethod
    def _range(number: int, tiles: int, of: Tiling) -> range:
        return range(number * tiles, min((number + 1) * tiles, of.count))

    def tiles_of(self, at: At) -> list[Tile]:
        """Return the tiles that a task processes, in row-major order."""
        if not isinstance(at, int):
            return [divmod(int(number), self.columns.count) for number in at]
        tiles = itertools.product(*self.block_of(at))
        if self.wanted is None:
            return list(tiles)
        return [tile for tile in tiles if self._is_wanted(*tile)]

    def _is_wanted(self, row: int, column: int) -> bool:
        assert self.wanted is not None
        byte, bit = divmod(row * self.columns.count + column, 8)
        return bool(self.wanted[byte] >> (7 - bit) & 1)

    def part_of(self, block: Block) -> tuple[slice, slice]:
        """Return the pixels of the image that are read for a block of tiles."""
        down, across = (
            tiling.window(each.start, each.stop, self.halo).inside
            for tiling, each in zip((self.rows, self.columns), block, strict=True)
        )
        return down, across

    def chunks_of(self, at: At) -> list[Place]:
        """Return the chunks of the image on which a task depends."""
        return self.source.chunks([self.part_of(block) for block in blocks_of(self.tiles_of(at))])

    def read(self, block: Block, chunks: Mapping[Place, NDArray[Any]]) -> list[NDArray[Any]]:
        """Return the pixels of each tile of a block, with its halo.

        Where it reaches out of the image, the pixels of the image's edge are repeated.
        """
        tilings = self.rows, self.columns
        windows = [
            tiling.window(each.start, each.stop, self.halo)
            for tiling, each in zip(tilings, block, strict=True)
        ]
        pixels = self.source.read((windows[0].inside, windows[1].inside), chunks)
        pad = [(0, 0)] * pixels.ndim
        for axis, window in zip(self.source.axes, windows, strict=True):
            pad[axis] = window.pad
        if any(map(any, pad)):
            pixels = np.pad(pixels, pad, mode="edge")
        found = []
        for at in itertools.product(*(range(len(each)) for each in block)):
            key = [slice(None)] * pixels.ndim
            for axis, tiling, number in zip(self.source.axes, tilings, at, strict=True):
                start = number * tiling.tile
                key[axis] = slice(start, start + tiling.tile + 2 * self.halo)
            found.append(pixels[tuple(key)])
        return found

    def results(
        self, model: Callable[[NDArray[Any]], Any], tiles: list[Tile], pixels: list[NDArray[Any]]
    ) -> list[NDArray[Any]]:
        """Run the model on tiles; return each output, shape (tiles, *dims, rows, columns)."""
        try:
            returned = model(pixels[0] if self.batch is None else np.stack(pixels))
            number = None if self.batch is None else len(tiles)
            size = self.rows.tile, self.columns.tile
            return [
                output.part(each, number, size, self.halo)
                for output, each in zip(self.outputs, self._each(returned), strict=True)
            ]
        except Exception as error:
            error.add_note(self._place(tiles))
            raise

    def _each(self, returned: Any) -> Sequence[Any]:
        """Return the outputs in their order."""
        if self.is_one:
            return [returned]
        if self.names is not None:
            if not hasattr(returned, "keys") or not set(self.names) <= set(returned.keys()):
                had = list(returned) if hasattr(returned, "keys") else type(returned).__name__
                raise ValueError(f"the model returned {had}; expected a dict of {self.names}")
            return [returned[name] for name in self.names]
        if not isinstance(returned, (tuple, list)) or len(returned) != len(self.outputs):
            raise ValueError(
                f"the model returned {type(returned).__name__}; expected a tuple of"
                f" {len(self.outputs)} arrays"
            )
        return returned

    def _place(self, tiles: list[Tile]) -> str:
        rows, columns = ([tile[axis] for tile in tiles] for axis in (0, 1))
        x, y = (
            f"{name} = {ends[min(at), 0]:.4f} to {ends[max(at), 1]:.4f}"
            for name, ends, at in (("x", self.across, columns), ("y", self.down, rows))
        )
        if len(tiles) == 1:
            return f"in the tile at {x}, {y} mm"
        return f"in one of {len(tiles)} tiles within {x}, {y} mm"

    def empty(self, at: At, output: TileOutput) -> NDArray[Any]:
        """Return an array for an output of a block of tiles, of the value where nothing is run."""
        assert isinstance(at, int)
        spans = self._spans(self.block_of(at), output)
        shape = (*output.lead, *(stop - start for start, stop in spans))
        return np.broadcast_to(output.fill, shape)

    def _spans(self, block: Block, output: TileOutput) -> list[tuple[int, int]]:
        return [
            tiling.span(each.start, each.stop, output.factor or tiling.tile)
            for tiling, each in zip((self.rows, self.columns), block, strict=True)
        ]

    def place(
        self, out: NDArray[Any], block: Block, output: TileOutput, tile: Tile, part: NDArray[Any]
    ) -> None:
        """Put the result of a tile into that of its block."""
        target: list[Any] = [...]
        source: list[Any] = [...]
        for tiling, (begin, end), at in zip(
            (self.rows, self.columns), self._spans(block, output), tile, strict=True
        ):
            step = output.factor or tiling.tile
            first = at * (tiling.tile // step) - tiling.first_of(step)  # in the whole result
            low, high = max(first, begin), min(first + tiling.tile // step, end)
            target.append(slice(low - begin, high - begin))
            source.append(slice(low - first, high - first))
        out[tuple(target)] = part[tuple(source)]


def blocks_of(tiles: Sequence[Tile]) -> list[Block]:
    """Put tiles together that are read at once, and no others with them.

    Parameters
    ----------
    tiles : sequence of tuple of int
        In row-major order.

    Returns
    -------
    list of tuple of range
        One block where they are one; else runs of each row.

    """
    rows, columns = ([tile[axis] for tile in tiles] for axis in (0, 1))
    whole = range(min(rows), max(rows) + 1), range(min(columns), max(columns) + 1)
    if math.prod(map(len, whole)) == len(tiles):
        return [whole]
    blocks: list[Block] = []
    for row, column in tiles:
        if blocks and blocks[-1][0].start == row and blocks[-1][1].stop == column:
            blocks[-1] = blocks[-1][0], range(blocks[-1][1].start, column + 1)
        else:
            blocks.append((range(row, row + 1), range(column, column + 1)))
    return blocks


def run_task(
    work: Work,
    model: Callable[[NDArray[Any]], Any],
    at: At,
    chunks: Sequence[NDArray[Any]] = (),
) -> Any:
    """Process the tiles of a task.

    Parameters
    ----------
    work : Work
        What all tasks have in common.
    model : callable
        The model.
    at : int or numpy.ndarray
        Which tiles.
    chunks : sequence of numpy.ndarray
        The chunks of the image on which the task depends.

    Returns
    -------
    numpy.ndarray or tuple of numpy.ndarray
        Of a block, pixels of each output with its dims; of a list of tiles, (tiles, *dims).

    """
    tiles = work.tiles_of(at)
    by_place = dict(zip(work.chunks_of(at), chunks, strict=True)) if chunks else {}
    at_once = work.batch or 1
    outs: list[Any] = [None] * len(work.outputs)
    found: list[list[NDArray[Any]]] = []
    ready: list[NDArray[Any]] = []
    done = 0
    for block in blocks_of(tiles):
        ready += work.read(block, by_place)
        while len(ready) >= at_once or (ready and done + len(ready) == len(tiles)):
            several, ready = ready[:at_once], ready[at_once:]
            found.append(work.results(model, tiles[done : done + len(several)], several))
            done += len(several)
    del ready
    for number, output in enumerate(work.outputs):
        parts = [part for each in found for part in each[number]]
        if not isinstance(at, int):
            outs[number] = np.stack(parts)[..., 0, 0]
            continue
        block = work.block_of(at)
        out = work.empty(at, output)
        if len(tiles) == math.prod(map(len, block)):
            out = np.empty(out.shape, out.dtype)
        else:
            out = out.copy()
        for tile, part in zip(tiles, parts, strict=True):
            work.place(out, block, output, tile, part)
        outs[number] = out
    return outs[0] if len(outs) == 1 else tuple(outs)


def fill_task(work: Work, at: int) -> Any:
    """Return the results of a block of tiles of which none is processed."""
    outs = tuple(work.empty(at, output) for output in work.outputs)
    return outs[0] if len(outs) == 1 else outs


def part_of(outs: tuple[NDArray[Any], ...], number: int) -> NDArray[Any]:
    """Return one of several outputs."""
    return outs[number]


def _converted(result: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind not in "iub":
        return result.astype(dtype, casting="same_kind", copy=False)
    with np.errstate(invalid="ignore"):  # NaN fails the comparison below
        converted = result.astype(dtype)
    if not np.array_equal(converted, result):
        raise ValueError(
            f"the model returned {result.dtype} with values that {dtype} can't hold: round them, or"
            " choose another dtype"
        )
    return converted
