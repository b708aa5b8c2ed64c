"""Tiles of many slides, by a table of their millimetres: a map-style data set."""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
import numbers
import operator
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
import pandas as pd

from dicomslide.backends.net.redaction import public_url
from dicomslide.errors import MetadataWarning
from dicomslide.header import dicom
from dicomslide.header.resolution import spacing_in_mm
from dicomslide.labelled.patches import centers_of, patch_grid
from dicomslide.options import allocated
from dicomslide.process.frame_cache import FrameCache
from dicomslide.process.parallel import together
from dicomslide.process.registry import Registry
from dicomslide.process.warn import once
from dicomslide.readers.indexing import Axis, plain_key
from dicomslide.slide.opening import open_slide
from dicomslide.slide.slide import Slide
from dicomslide.slide.workers import worker_share

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeAlias

    from numpy.typing import NDArray

    from dicomslide.header.resolution import Spacing
    from dicomslide.labelled.patches import PatchGrid

    Slides: TypeAlias = Slide | Mapping[Any, Any] | Callable[[Any], Any]

__all__ = ["TileDataset", "TilePosition"]

PIXELS = "pixels"
"""Key of the pixels in what is returned together with columns of the table."""
AT_ONCE = 64
"""Tiles that an iterator reads together."""
MOST_SLIDES = 16
"""Upper bound on remote slides that are read at once."""
BYTES_PER_SLIDE = 8192
"""Bytes of an open slide beside the positions of its frames; its headers are cached elsewhere."""
WORKER_CACHE = 32 * 2**20
"""Default bound on the bytes of decoded frames in a worker of a DataLoader: blocks of neighbours
need few frames at a time."""
_WHOLE = (slice(None),) * 4


class TilePosition(NamedTuple):
    """Where a tile lies."""

    slide: Any
    """Name of its slide."""
    x: float
    """Of its middle in mm of the slide coordinate system."""
    y: float


class TileDataset(Sequence[Any]):
    """Tiles of one slide or of many, listed in a table: a map-style data set for PyTorch.

    A tile is read when it is asked for, with the frames that it touches and no others. Several are
    read together (``__getitems__``, which PyTorch's ``DataLoader`` calls with a batch): frames that
    they share are decoded once, and those of a bucket or a server are requested together. Slides
    are opened when the first of their tiles is read, and the latest ones stay open.

    A data set pickles as names and positions, without slides, files or pixels, and reads in worker
    processes, forked or spawned. PyTorch isn't imported.

    Parameters
    ----------
    table : pandas.DataFrame or mapping of columns
        A row per tile: ``slide``, the name of a slide; ``x`` and ``y``, the middle of the tile in
        mm of the slide coordinate system; and any others. :func:`dicomslide.recipes.tile_grid`
        makes one. Not needed after this.
    slides : Cohort, mapping, callable or Slide, optional
        Gives the slide of a name, or what :func:`open_slide` takes; or the one slide of all tiles.
        By default names are paths or URLs, and :func:`open_slide` opens them.
    size : int or tuple of int, optional
        Pixels along the edges of a tile: rows and columns, or one number for both. By default
        ``table.attrs["size"]``.
    spacing : float or str, optional
        Distance of pixels: a number in mm, or text such as ``"0.5 um"`` or ``"10x"`` (1 µm). By
        default ``table.attrs["spacing"]``.
    columns : sequence of str, default: ()
        Columns of the table that are returned with the pixels, such as ``["label", "x", "y"]``:
        then a tile is a dict of these and of ``pixels``.
    transform : callable, optional
        Called with the pixels of each tile, an array of shape (rows, columns, samples), whose
        result is returned in their place. Workers that are spawned need one that pickles.
    channel_index, focal_plane_index : int, default: 0
        Zero-based indices into channels and focal planes.
    fast : bool, default: False
        Whether the decoder may leave out detail: see :meth:`Slide.to_dataset`.
    max_open_slides : int, default: 1024
        Largest number of slides that stay open, in each process, within its `memory_budget`: a few
        kilobytes each, and the positions of the frames of a sparse image.
    frame_cache_bytes : int, optional
        Upper bound on the bytes of decoded frames that each process caches for these tiles; 0 for
        none. By default 32 MiB in a worker of a ``DataLoader``; else they are in the cache of the
        process.
    threads : int, optional
        Threads that fetch and decode; by default one in a worker of a ``DataLoader``, else as many
        as the option ``num_threads`` says.

    Raises
    ------
    KeyError
        When the table lacks a column, or `slides` a name.
    TypeError
        When an argument is of another type.
    ValueError
        When columns differ in length, positions aren't finite numbers, a name is missing, `size` or
        `spacing` aren't known, a number is out of its range, or one slide is given for several
        names.

    Warns
    -----
    MetadataWarning
        When one slide is given, and the name in the table is neither its Container Identifier nor a
        file or a folder of it: tiles would have the pixels of another slide.

    Notes
    -----
    Tiles begin with a whole pixel of the grid of the spacing, so that a middle is up to half a
    pixel off the one in the table; those of :func:`dicomslide.recipes.tile_grid` aren't. What
    reaches out of the slide is background. A slide that can't be opened, or a frame that can't be
    read, raises, unless `slides` opens with ``on_error="fill"``.

    See Also
    --------
    BlockShuffle : A random order in which neighbouring tiles are read together.
    TileStream : The same tiles as an iterable data set.

    Examples
    --------
    >>> x, y = np.add(slide.physical_bounds[:2], 0.1)
    >>> table = {"x": [x, x + 0.1], "y": [y, y], "label": [0, 1]}
    >>> tiles = dicomslide.TileDataset(
    ...     table, slide, size=100, spacing="1 um", columns=["label"]
    ... )
    >>> tiles[1]["pixels"].shape, tiles[1]["label"]
    ((100, 100, 3), 1)

    """

    def __init__(
        self,
        table: pd.DataFrame | Mapping[str, Any],
        slides: Slides | None = None,
        *,
        size: int | tuple[int, int] | None = None,
        spacing: Spacing | None = None,
        columns: Sequence[str] = (),
        transform: Callable[[NDArray[Any]], Any] | None = None,
        channel_index: int = 0,
        focal_plane_index: int = 0,
        fast: bool = False,
        max_open_slides: int = 1024,
        frame_cache_bytes: int | None = None,
        threads: int | None = None,
    ) -> None:
        if isinstance(columns, str):
            raise TypeError(f"columns {columns!r}: expected a list of names")
        needed = [*(() if isinstance(slides, Slide) else ("slide",)), "x", "y", *columns]
        if not (slides is None or isinstance(slides, (Slide, Mapping)) or callable(slides)):
            raise TypeError(
                f"slides of type {type(slides).__name__}: expected a Cohort (see open_slides), a"
                " mapping of names, a function of a name, or one Slide"
            )
        missing = [name for name in dict.fromkeys(needed) if name not in table]
        if missing:
            raise KeyError(f"the table has no columns {missing}; there are {list(table)}")
        if PIXELS in columns:
            raise ValueError(f"a column {PIXELS!r} would take the place of the pixels")
        of_table = getattr(table, "attrs", {})
        size = of_table.get("size") if size is None else size
        spacing = of_table.get("spacing") if spacing is None else spacing
        if size is None or spacing is None:
            raise ValueError("size and spacing of tiles: neither given nor in the table's attrs")
        edges = (size, size) if np.ndim(size) == 0 else size
        self._size = dicom.two_integers(edges, "size", least=1)  # type: ignore[arg-type]
        self._spacing = spacing_in_mm(spacing)
        x = _numbers_of(table, "x")
        y = _same_length(_numbers_of(table, "y"), "y", x)
        self._centers = centers_of(np.column_stack([x, y]))
        self._columns = {name: _same_length(_column_of(table, name), name, x) for name in columns}
        self._slides = slides
        self._codes, self._names = self._named(table)
        self._transform = transform
        self._places = operator.index(channel_index), operator.index(focal_plane_index)
        self._fast = bool(fast)
        self._threads = None if threads is None else dicom.integer(threads, "threads", least=1)
        self._max_open_slides = dicom.integer(max_open_slides, "max_open_slides", least=1)
        if frame_cache_bytes is not None:
            dicom.integer(frame_cache_bytes, "frame_cache_bytes", least=0, most=None)
        self._frame_cache_bytes = frame_cache_bytes
        self._warned: set[str] = set()
        self._begin()

    def _named(self, table: Any) -> tuple[NDArray[np.int32], tuple[Any, ...]]:
        """Return the number of each tile's slide, and the names of the slides."""
        if isinstance(self._slides, Slide) and "slide" not in table:
            name = self._slides.container_identifier or self._slides.name
            return np.zeros(len(self._centers), np.int32), (name,)
        given = _same_length(_column_of(table, "slide", object), "slide", self._centers)
        if given.ndim != 1:
            raise ValueError(f"column 'slide' of shape {given.shape}: expected a name per tile")
        codes, found = pd.factorize(given)
        if (codes < 0).any():
            raise ValueError(f"row {int(np.argmax(codes < 0))} of the table has no name of a slide")
        names = tuple(found.tolist())
        if isinstance(self._slides, Slide) and len(names) > 1:
            raise ValueError(
                f"one slide for tiles of {len(names)} slides, {names[0]!r}, {names[1]!r}, ...: give"
                " a mapping of names"
            )
        if isinstance(self._slides, Slide) and names and not _is_name_of(names[0], self._slides):
            warnings.warn(
                f"the table has tiles of {names[0]!r}; their pixels will be those of the one slide"
                f" given, {self._slides.container_identifier or self._slides.name!r}",
                MetadataWarning,
                stacklevel=3,
            )
        if isinstance(self._slides, Mapping):
            unknown = [name for name in names if name not in self._slides]
            if unknown:
                others = f" nor {len(unknown) - 1} others" if len(unknown) > 1 else ""
                raise KeyError(f"there is no slide {unknown[0]!r}{others}")
        return codes.astype(np.int32), names

    def _begin(self) -> None:
        self._open: Registry[int, PatchGrid] = Registry(
            self._max_open_slides,
            "open slides",
            lambda grid: grid.reader.source.layout.nbytes + BYTES_PER_SLIDE,
        )
        self._frames: FrameCache[np.ndarray] = FrameCache(
            lambda: WORKER_CACHE if self._frame_cache_bytes is None else self._frame_cache_bytes,
            "decoded frames of tiles",
        )

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value for name, value in vars(self).items() if name not in ("_open", "_frames")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of a tile."""
        return self._size

    @property
    def spacing(self) -> float:
        """Distance of pixels in mm."""
        return self._spacing

    @property
    def slide_names(self) -> tuple[Any, ...]:
        """Name of each slide, in the order of the table."""
        return self._names

    @property
    def slide_indices(self) -> NDArray[np.int32]:
        """Index of each tile's slide among :attr:`slide_names`, shape (tiles,)."""
        return self._codes

    @property
    def centers(self) -> NDArray[np.float64]:
        """(x, y) of the middle of each tile in mm, as the table has it, shape (tiles, 2)."""
        return self._centers

    def get_position(self, index: int) -> TilePosition:
        """Get the position of a tile.

        Parameters
        ----------
        index : int
            Zero-based index of the tile

        Returns
        -------
        TilePosition
            Name of its slide, and (x, y) of its middle in mm, as the table has them

        Raises
        ------
        IndexError
            When there is no such tile

        """
        at = self._checked(operator.index(index))[0]
        return TilePosition(self._names[self._codes[at]], *self._centers[at].tolist())

    def __repr__(self) -> str:
        rows, columns = self._size
        return (
            f"<TileDataset of {len(self):,} tiles of {rows} × {columns} at {self._spacing:g} mm,"
            f" of {dicom.counted(len(self._names), 'slide')}>"
        )

    def __len__(self) -> int:
        return len(self._centers)

    def _checked(self, key: Any) -> Any:
        return Axis.of(key, len(self)).indices

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice | Sequence[int] | NDArray[Any]) -> TileDataset: ...

    def __getitem__(self, index: int | slice | Sequence[int] | NDArray[Any]) -> Any:
        """Return a tile; of a slice, a list or an array of indices, a data set of these tiles."""
        key = plain_key(index)
        if isinstance(key, (slice, np.ndarray)):
            at = key if isinstance(key, slice) else self._checked(key)
            fewer = copy.copy(self)
            fewer._centers, fewer._codes = self._centers[at], self._codes[at]
            fewer._columns = {name: values[at] for name, values in self._columns.items()}
            fewer._begin()
            return fewer
        (at,) = self._checked(operator.index(key))
        return self._item(at, self._read(int(self._codes[at]), np.array([at]))[0])

    def __getitems__(self, indices: Sequence[int] | NDArray[Any]) -> list[Any]:
        """Return several tiles, each as ``[]`` does; frames that they share are decoded once."""
        at = np.asarray(self._checked(np.atleast_1d(plain_key(indices))), np.int64)
        found: list[Any] = [None] * len(at)
        for places, tiles in self._read_all(at):
            for place, pixels in zip(places.tolist(), tiles, strict=True):
                found[place] = self._item(int(at[place]), pixels)
        return found

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self), AT_ONCE):
            yield from self.__getitems__(range(start, min(start + AT_ONCE, len(self))))

    def read(self, indices: Sequence[int] | NDArray[Any]) -> NDArray[Any]:
        """Read the pixels of several tiles at once, without columns and transform.

        Parameters
        ----------
        indices : sequence of int
            Zero-based indices of tiles, in any order

        Returns
        -------
        numpy.ndarray
            Shape (tiles, rows, columns, samples)

        Raises
        ------
        IndexError
            When there is no such tile
        ValueError
            When no tile is asked for, or their slides differ in samples or data type

        """
        at = np.asarray(self._checked(np.atleast_1d(plain_key(indices))), np.int64)
        if not len(at):
            raise ValueError("no tiles: expected at least one, for their samples and data type")
        found = self._read_all(at)
        kinds = {(tiles.shape[1:], tiles.dtype) for _, tiles in found}
        if len(kinds) != 1:
            raise ValueError(
                f"tiles of {len(kinds)} shapes and types, which one array can't hold: {kinds}"
            )
        if len(found) == 1:
            return found[0][1]
        ((shape, dtype),) = kinds
        out = allocated((len(at), *shape), dtype, f"{len(at)} tiles")
        for places, tiles in found:
            out[places] = tiles
        return out

    def _item(self, at: int, pixels: NDArray[Any]) -> Any:
        """Return a tile as the caller wants it."""
        result = pixels if self._transform is None else self._transform(pixels)
        if not self._columns:
            return result
        values = {name: _plain_value(column[at]) for name, column in self._columns.items()}
        return {PIXELS: result, **values}

    def _read_all(self, at: NDArray[np.int64]) -> list[tuple[NDArray[np.intp], NDArray[Any]]]:
        """Return the tiles of each slide, and their places among those that are wanted."""
        codes = self._codes[at]
        of_slide = [(int(code), np.flatnonzero(codes == code)) for code in np.unique(codes)]

        def read(one: tuple[int, NDArray[np.intp]]) -> tuple[NDArray[np.intp], NDArray[Any]]:
            code, places = one
            return places, self._read(code, at[places])

        if len(of_slide) > 1:
            source = self._grid(of_slide[0][0]).reader.source.source
            if source.frames_per_request is not None:  # a server is asked for all at once
                return together(read, of_slide, MOST_SLIDES)
        return [read(one) for one in of_slide]

    def _read(self, code: int, at: NDArray[np.int64]) -> NDArray[Any]:
        """Read tiles of one slide."""
        is_single = self._threads is None and worker_share() is not None
        try:
            reader = self._grid(code).patch_reader(self._centers[at], self._size)
            return reader.read(_WHOLE, threads=1 if is_single else self._threads)
        except Exception as error:
            error.add_note(f"in the slide {self._names[code]!r} of a table of tiles")
            raise

    def _grid(self, code: int) -> PatchGrid:
        """Return the pixels of a slide, opened if it isn't."""
        return self._open.get(code, lambda: self._opened(self._names[code]))

    def _opened(self, name: Any) -> PatchGrid:
        slides = self._slides
        found: Any = name
        if isinstance(slides, Slide):
            found = slides
        elif isinstance(slides, Mapping):
            found = slides[name]
        elif slides is not None:
            found = slides(name)
        with once(self._warned):  # a slide that is opened again warns once
            slide = found if isinstance(found, Slide) else open_slide(found)
            channel, plane = self._places
            grid = patch_grid(
                slide,
                spacing=self._spacing,
                channel_index=channel,
                focal_plane_index=plane,
                fast=self._fast,
            )
        if self._frame_cache_bytes is None and worker_share() is None:
            return grid
        source = dataclasses.replace(
            grid.reader.source, max_frame_cache_size=None, frame_cache=self._frames
        )
        return dataclasses.replace(grid, reader=dataclasses.replace(grid.reader, source=source))


def _column_of(table: Any, name: str, dtype: type | None = None) -> NDArray[Any]:
    """Return a column of a table as an array, whose first axis is that of the tiles."""
    try:
        values = np.asarray(table[name], dtype)
    except ValueError as error:  # lists of several lengths
        raise ValueError(f"column {name!r} isn't an array of values: {error}") from error
    if not values.ndim:
        raise ValueError(f"column {name!r} is {table[name]!r}: expected a value per tile")
    return values


def _numbers_of(table: Any, name: str) -> NDArray[np.float64]:
    """Return a column of numbers in mm."""
    values = _column_of(table, name)
    if values.ndim != 1:
        raise ValueError(f"column {name!r} of shape {values.shape}: expected a number per tile")
    if values.dtype.kind == "O":
        for row, value in enumerate(values):
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise ValueError(f"column {name!r}: row {row} is {value!r}; expected mm")
    elif values.dtype.kind not in "iuf":
        raise ValueError(f"column {name!r} holds {values.dtype}: expected numbers in mm")
    return values.astype(np.float64)


def _same_length(values: NDArray[Any], name: str, x: NDArray[Any]) -> NDArray[Any]:
    """Check that a column has as many values as ``x``."""
    if len(values) != len(x):
        raise ValueError(
            f"column {name!r} has {len(values)} values, and 'x' has {len(x)}: expected one per tile"
        )
    return values


def _is_name_of(name: Any, slide: Slide) -> bool:
    """Whether a name is one that a slide has: its identifier, or of its files or their folders."""
    given = os.fspath(name) if isinstance(name, os.PathLike) else str(name)
    container = slide.container_identifier
    if container and (given == container or given.startswith(f"{container}/")):  # of a cohort
        return True
    given = public_url(given).rstrip("/")
    here = os.path.realpath(os.path.expanduser(given))
    for file in {image.name for level in slide.levels for image in level.images}:
        path = PurePath(file)
        if given in (file, path.stem, *path.parts) or fnmatch.fnmatch(file, given):
            return True
        if file.startswith(f"{given}/") or PurePath(os.path.realpath(file)).is_relative_to(here):
            return True
    return False


def _plain_value(value: Any) -> Any:
    """Return a number or text of NumPy's as Python's own, which DataLoaders put together."""
    return value.item() if isinstance(value, np.generic) else value
