"""Pixels of a total pixel matrix at another spacing: means, or majorities of labels."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dicomslide.options import allocated, check_memory
from dicomslide.process.lazy import lazy
from dicomslide.readers.indexing import Axis
from dicomslide.readers.matrix_reader import MatrixReader, picked, pixel_assignment
from dicomslide.readers.reductions import Labels, Means, Sums, gathered, modes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Sequence

    from numpy.typing import NDArray

    from dicomslide.header.scaling import Scaling
    from dicomslide.readers.matrix_reader import Meeting
    from dicomslide.readers.windows import WindowPiece, Windows

    Pixels: TypeAlias = NDArray[Any]

__all__ = ["Box", "Labels", "ResampledReader"]

LEAST_CHUNK = 256
"""Lower bound on pixels along an edge of a chunk."""
FEW_TILES = 4096
"""Tiles of a region up to which the frame of each is looked up, even if few have frames."""
BLOCK = 2048
"""Stored pixels along an edge of the blocks in which a label map is read."""


@dataclasses.dataclass(frozen=True, slots=True)
class Box:
    """Pixels that are read together, and the array that receives them."""

    rows: NDArray[np.int64]
    """Ascending and unique; those outside the grid are background."""
    columns: NDArray[np.int64]
    out: Pixels
    """Shape (rows, columns, samples); a view is possible."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Copy:
    """Stored pixels that are read together, and the array that receives them."""

    rows: Axis
    columns: Axis
    out: Pixels

    @lazy
    def assign(self) -> Callable[[Any, Pixels], None]:
        """Assigns pixels to a part of the array."""
        return pixel_assignment(self.out)


@dataclasses.dataclass(frozen=True)
class ResampledReader:
    """Reader of one channel and focal plane of an image, with pixels of another size.

    A pixel is the mean, by area, of the stored pixels that it covers, without NaN and without the
    area outside the matrix. Integers are rounded half up. A pixel of a label map is the label of
    the largest area, or the lowest of labels with equal areas. A boolean pixel is True if at least
    half of its area is True. A pixel that covers nothing of the matrix is background.
    """

    source: MatrixReader
    """Reader of the stored pixels."""
    rows: Windows
    columns: Windows
    labels: Labels = "majority"
    """Rule for labels: the majority, or any label before background."""

    @classmethod
    def of(
        cls,
        source: MatrixReader,
        windows: tuple[Windows, Windows],
        labels: Labels = "majority",
        *,
        fast: bool = False,
    ) -> ResampledReader:
        """Return a reader of windows; with `fast`, decoders reduce frames where that is possible.

        Parameters
        ----------
        source : MatrixReader
            Reader of the stored pixels.
        windows : tuple of Windows
            Windows of rows and of columns.
        labels : {"majority", "any"}
            See the class.
        fast : bool, default: False
            Whether frames are decoded at half, quarter, ... size where that takes less time. Pixels
            then differ from means: with JPEG by a few grey levels, at sharp edges by up to about
            25; with HTJ2K by more, because its low-pass filter isn't a mean.

        """
        most = int(math.log2(max(1.0, min(each.step for each in windows) * (1 + 1e-9))))
        times = min(most, source.most_reduction) if fast else 0
        if times:
            source = dataclasses.replace(source, reduction=times)
            windows = windows[0].halved(times), windows[1].halved(times)
        return cls(source, *windows, labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, columns and samples."""
        return self.rows.count, self.columns.count, self.source.shape[2]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type: that of the stored pixels."""
        return self.source.dtype

    @property
    def background(self) -> tuple[float, ...]:
        """Value of pixels of absent tiles, one number per sample."""
        return self.source.background

    @property
    def scaling(self) -> Scaling | None:
        """See :attr:`MatrixReader.scaling`."""
        return self.source.scaling

    @property
    def as_labels(self) -> bool:
        """See :attr:`MatrixReader.as_labels`."""
        return self.source.as_labels

    @property
    def tile_shape(self) -> tuple[int, int]:
        """Rows and columns of a chunk; a chunk covers whole tiles of the matrix if possible."""
        down, across = self.source.tile_shape
        return self.rows.unit(down, LEAST_CHUNK), self.columns.unit(across, LEAST_CHUNK)

    def of_channel(self, further: int) -> ResampledReader:
        """See :meth:`MatrixReader.of_channel`."""
        return dataclasses.replace(self, source=self.source.of_channel(further))

    def as_meant(self) -> ResampledReader:
        """See :meth:`MatrixReader.as_meant`."""
        return dataclasses.replace(self, source=self.source.as_meant())

    def __dask_tokenize__(self) -> tuple[Hashable, ...]:
        return (
            "dicomslide.ResampledReader",
            self.source.__dask_tokenize__(),
            dataclasses.astuple(self.rows),
            dataclasses.astuple(self.columns),
            self.labels,
        )

    def read(
        self,
        key: Sequence[Any],
        *,
        transpose: bool = False,
        threads: int | None = None,
        keep: bool = True,
        contiguous: bool = False,
    ) -> Pixels:
        """Read the pixels that a key for each axis selects: see :meth:`MatrixReader.read`.

        Each frame is decoded once.
        """
        axes = [Axis.of(part, length) for part, length in zip(key, self.shape, strict=True)]
        (rows, at_row), (columns, at_column) = (_each_once(axis) for axis in axes[:2])
        what = f"{self.source.source.name}: a region of {len(rows)} × {len(columns)} pixels"
        out = allocated((len(rows), len(columns), self.shape[2]), self.dtype, what)
        self.fill([Box(rows, columns, out)], threads=threads, keep=keep)
        for axis, at in enumerate((at_row, at_column)):
            out = out if at is None else out.take(at, axis)
        out = out[:: -1 if axes[0].reverse else 1, :: -1 if axes[1].reverse else 1]
        return picked(out, axes, transpose=transpose, contiguous=contiguous)

    def fill(self, boxes: Sequence[Box], *, threads: int | None = None, keep: bool = True) -> None:
        """Read the pixels of boxes.

        Each frame is decoded once, also if it is part of several boxes, except for label maps,
        which are read box by box.

        Parameters
        ----------
        boxes : sequence of Box
            The pixels, and the arrays that receive them.
        threads, keep
            See :meth:`MatrixReader.read`.

        """
        copies = self._copies(boxes)
        if copies is not None:
            self._copy(copies, threads, keep)
            return
        background = np.asarray(self.background)
        if self.as_labels:
            for box in boxes:
                box.out[...] = background
                self._fill_labels(box, threads, keep)
            return
        means: list[Means] = []
        shares: dict[int, list[tuple[Means, WindowPiece, WindowPiece]]] = {}
        for box in boxes:
            tiles, is_whole = self._tiles_of(box)
            down, across = self._pieces(box, tiles)
            covered = self.rows.covered(box.rows), self.columns.covered(box.columns)
            has_gaps = not is_whole or self.source.on_error == "fill"
            if has_gaps or not all(lengths.all() for lengths in covered):
                box.out[...] = background
            of_box = self._reduction_of(box, (down, across), covered, has_gaps=has_gaps)
            means.append(of_box)
            for tile in tiles.tolist():
                row, column = self.source.layout.grid.position(tile)
                shares.setdefault(tile, []).extend(
                    (of_box, *pair)
                    for pair in itertools.product(down.get(row, ()), across.get(column, ()))
                )
        in_order = list(shares.values())

        def use(at: int, tile: Pixels | None) -> None:
            for of_box, row, column in in_order[at]:
                if tile is not None:
                    part = self.source.part(tile, (row.source, column.source))
                    of_box.add(row, column, part)

        self._visit(shares, use, threads, keep)
        for of_box in means:
            of_box.finish()

    def _visit(
        self,
        tiles: Collection[int],
        use: Callable[[int, Pixels | None], None],
        threads: int | None,
        keep: bool,
    ) -> None:
        """Call `use` for tiles."""
        frames = self.source.frames_of(np.fromiter(tiles, np.int64)).tolist()
        self.source.frames.visit(frames, use, threads=threads, keep=keep)

    def _copies(self, boxes: Sequence[Box]) -> list[_Copy] | None:
        """Return boxes of stored pixels; None if one has pixels of another size, or many tiles."""
        copies: list[_Copy] = []
        grid = self.source.layout.grid
        most = max(FEW_TILES, 4 * self.source.layout.num_frames)
        for box in boxes:
            rows = self.rows.stored(box.rows)
            columns = self.columns.stored(box.columns)
            if rows is None or columns is None:
                return None
            down, across = Axis(rows[0]), Axis(columns[0])
            if (len(down) // grid.tile_rows) * (len(across) // grid.tile_columns) > most:
                return None
            if (len(down), len(across)) != box.out.shape[:2]:
                box.out[...] = self.background
            inner = box.out[rows[1] : rows[1] + len(down), columns[1] : columns[1] + len(across)]
            copies.append(_Copy(down, across, inner))
        return copies

    def _copy(self, copies: Sequence[_Copy], threads: int | None, keep: bool) -> None:
        """Read boxes of stored pixels, which are neither added up nor rounded."""
        grid = self.source.layout.grid
        shares: dict[int, list[tuple[_Copy, Meeting]]] = {}
        for copy in copies:
            across = list(copy.columns.pieces(grid.tile_columns))
            for row in copy.rows.pieces(grid.tile_rows):
                for column in across:
                    tile = row.tile * grid.shape[1] + column.tile
                    meeting = (row.target, column.target), (row.source, column.source)
                    shares.setdefault(tile, []).append((copy, meeting))
        in_order = list(shares.values())

        def use(at: int, tile: Pixels | None) -> None:
            for copy, (target, source) in in_order[at]:
                if tile is None:
                    copy.out[target] = self.background
                else:
                    copy.assign(target, self.source.part(tile, source))

        self._visit(shares, use, threads, keep)

    def _tiles_of(self, box: Box) -> tuple[NDArray[np.int64], bool]:
        """Return the tiles of a box that have frames, and whether these are all of its tiles."""
        rows, columns = (
            windows.tiles(indices, size)
            for windows, indices, size in zip(
                (self.rows, self.columns),
                (box.rows, box.columns),
                self.source.tile_shape,
                strict=True,
            )
        )
        grid = self.source.layout.grid
        count = len(rows) * len(columns)
        if count <= max(FEW_TILES, 4 * self.source.layout.num_frames):
            check_memory(16 * count, f"{self.source.source.name}: the tiles of a region")
            tiles = np.add.outer(np.array(rows) * grid.shape[1], np.array(columns, np.int64))
            tiles = tiles.ravel().astype(np.int64)
            present = tiles[self.source.frames_of(tiles) >= 0]
        else:  # most tiles are absent
            present = self.source.tiles_with_frames()
            row, column = np.divmod(present, grid.shape[1])
            within = (row >= rows.start) & (row < rows.stop)
            within &= (column >= columns.start) & (column < columns.stop)
            present = present[within]
        return present, len(present) == count

    def _pieces(
        self, box: Box, tiles: NDArray[np.int64]
    ) -> tuple[dict[int, list[WindowPiece]], dict[int, list[WindowPiece]]]:
        """Return the windows of the rows and of the columns of a box, by tile."""
        found: list[dict[int, list[WindowPiece]]] = []
        for windows, indices, size, of_axis in zip(
            (self.rows, self.columns),
            (box.rows, box.columns),
            self.source.tile_shape,
            np.divmod(tiles, self.source.layout.grid.shape[1]),
            strict=True,
        ):
            by_tile: dict[int, list[WindowPiece]] = {}
            for piece in windows.pieces(indices, size, np.unique(of_axis).tolist()):
                by_tile.setdefault(piece.tile, []).append(piece)
            found.append(by_tile)
        return found[0], found[1]

    def _reduction_of(
        self,
        box: Box,
        pieces: tuple[dict[int, list[WindowPiece]], dict[int, list[WindowPiece]]],
        covered: tuple[NDArray[np.float64], NDArray[np.float64]],
        *,
        has_gaps: bool,
    ) -> Means:
        """Return the reduction from stored pixels to the pixels of a box."""
        # if each window lies in one tile and holds whole pixels, none of which can be NaN
        if self.dtype.kind in "ui" and all(
            isinstance(piece.taps, int) and (lengths[piece.target] == piece.taps).all()
            for of_axis, lengths in zip(pieces, covered, strict=True)
            for of_tile in of_axis.values()
            for piece in of_tile
        ):
            return Means(box.out)
        return Sums(box.out, covered, self.background, self.labels, has_gaps=has_gaps)

    # -- labels --

    def _fill_labels(self, box: Box, threads: int | None, keep: bool) -> None:
        """Read blocks of whole windows, and determine the label of each window."""
        background = int(self.background[0]) if self.labels == "any" else None
        rows, columns = box.rows, box.columns
        steps = [max(1, int(BLOCK // windows.step)) for windows in (self.rows, self.columns)]
        for top in range(0, len(rows), steps[0]):
            for left in range(0, len(columns), steps[1]):
                block = rows[top : top + steps[0]], columns[left : left + steps[1]]
                down, right = (
                    gathered(windows, indices)
                    for windows, indices in zip((self.rows, self.columns), block, strict=True)
                )
                if not (len(down.wanted) and len(right.wanted)):
                    continue
                stored = self.source.read(
                    (down.pixels, right.pixels, 0), threads=threads, keep=keep
                )
                box.out[top + down.wanted[:, None], left + right.wanted, 0] = modes_of(
                    stored, down, right, background
                )


def _each_once(axis: Axis) -> tuple[NDArray[np.int64], NDArray[np.intp] | None]:
    """Return the unique indices of a key, ascending, and the position of each of its indices."""
    if isinstance(axis.indices, range):
        return np.arange(axis.indices.start, axis.indices.stop, axis.indices.step), None
    return np.unique(axis.indices, return_inverse=True)
