"""A table of the tiles of slides, and how much of each a mask covers."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.errors import MetadataError
from dicomslide.header import dicom
from dicomslide.header.resolution import spacing_in_mm
from dicomslide.labelled.coordinates import step_of
from dicomslide.labelled.patches import patch_grid
from dicomslide.options import check_memory
from dicomslide.recipes.tile_checks import checked_mask
from dicomslide.slide.cohort import Cohort
from dicomslide.slide.opening import open_slide
from dicomslide.slide.slide import Slide

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pandas as pd
    import xarray as xr
    from numpy.typing import NDArray

    from dicomslide.header.resolution import Spacing
    from dicomslide.labelled.patches import PatchGrid

__all__ = ["tile_grid"]

BLOCK = 2**22
"""Pixels of a mask that are added up at once, where the mask isn't chunked."""
NEAR = 1e-6
"""Pixels of a mask by which the border of a tile may be off the border of a pixel."""
ROUNDING = 1e-9
"""Fraction of a tile by which a computed fraction may be off."""
BYTES_PER_TILE = 64
"""Of the columns, and of what they are made of."""


def tile_grid(
    slides: Slide | Cohort | Mapping[str, Any] | str | os.PathLike[str] | Iterable[Any],
    size: int | tuple[int, int] = 224,
    *,
    spacing: Spacing,
    where: xr.DataArray | Callable[[Slide], xr.DataArray] | None = None,
    at_least: float = 0.5,
    overlap: int | tuple[int, int] = 0,
) -> pd.DataFrame:
    """Return the tiles of one slide or of many as a table, for :class:`dicomslide.TileDataset`.

    Tiles lie side by side, or overlap, from the upper left corner of the slide on, each on whole
    pixels of the grid of the spacing: see :meth:`dicomslide.Slide.to_dataset`. No pixels of the
    tiles are read.

    Parameters
    ----------
    slides : Slide, Cohort, mapping, path-like, or iterable of Slides and paths
        The slides. The name of one is its key in a cohort or mapping, else its path as given, or
        the Container Identifier of a Slide. Slides of a cohort that don't open are left out, and
        their errors are in :attr:`dicomslide.Cohort.failures`.
    size : int or tuple of int, default: 224
        Pixels along the edges of a tile: rows and columns, or one number for both.
    spacing : float or str
        Distance of pixels: a number in mm, or text such as ``"0.5 um"`` or ``"10x"`` (1 µm).
    where : xarray.DataArray or callable, optional
        Mask of what is wanted: bool, dims ``y`` and ``x`` in mm, of any region at any level, such
        as :func:`tissue_mask` makes; or for many slides a function that is called with each Slide
        and returns one. Outside of the mask nothing is wanted. By default the whole slide is.
    at_least : float, default: 0.5
        Least fraction of a tile's area that the mask covers: from 0 (every tile) to 1.
    overlap : int or tuple of int, default: 0
        Pixels by which neighbouring tiles overlap, along rows and columns.

    Returns
    -------
    pandas.DataFrame
        A row per tile, slide by slide and row by row from above: ``slide``, the name; ``x`` and
        ``y``, the middle of the tile in mm of the slide coordinate system; ``fraction``, that part
        of its area which the mask, or the slide without one, covers. Its ``attrs`` hold ``size``
        (rows and columns) and ``spacing`` (mm).

    Raises
    ------
    TypeError
        When the slides, the size, the overlap or the mask are of another type than listed.
    ValueError
        When a number is out of its range, two slides have one name, the mask isn't bool with evenly
        spaced ``y`` and ``x`` in mm, or one mask is given for many slides.
    GridError
        When the mask has another frame of reference than the slide.
    MetadataError
        When a header doesn't say where the image lies on the slide, or the slide lies obliquely and
        a mask is given.

    Examples
    --------
    >>> def tissue(slide):
    ...     image = slide.to_dataset(spacing="8 um").image
    ...     return recipes.tissue_mask(image, recipes.tissue_threshold(image))
    >>> table = recipes.tile_grid(slides, 224, spacing="0.5 um", where=tissue)

    """
    import pandas as pd
    import xarray as xr

    shape = _pair(size, "size", least=1)
    border = _pair(overlap, "overlap", least=0)
    if any(lost >= edge for lost, edge in zip(border, shape, strict=True)):
        raise ValueError(f"overlap {border}: expected less than the size of a tile, {shape}")
    _check_fraction(at_least, "at_least")
    step = shape[0] - border[0], shape[1] - border[1]
    pixel = spacing_in_mm(spacing)
    counts: dict[str, int] = {}
    centers, fractions = [np.empty((0, 2))], [np.empty(0)]
    for name, slide in _named(slides, has_one_mask=isinstance(where, xr.DataArray)):
        if name in counts:
            raise ValueError(f"two slides have the name {name!r}: give a mapping of names")
        try:
            mask = where(slide) if callable(where) else where
            if mask is None and where is not None:
                raise TypeError("where returned a NoneType; expected a DataArray of bool")
            tiles, covered = _tiles_of(slide, pixel, shape, step, mask, at_least)
        except Exception as error:
            error.add_note(f"in the slide {name!r}")
            raise
        counts[name] = len(tiles)
        centers.append(tiles)
        fractions.append(covered)
    x, y = np.concatenate(centers).T
    table = pd.DataFrame(
        {
            "slide": pd.Series(
                np.repeat(np.array(list(counts), object), list(counts.values())), dtype=str
            ),
            "x": x,
            "y": y,
            "fraction": np.concatenate(fractions),
        }
    )
    table.attrs = {"size": list(shape), "spacing": pixel}
    return table


def _pair(value: Any, name: str, *, least: int) -> tuple[int, int]:
    return dicom.two_integers((value, value) if np.ndim(value) == 0 else value, name, least=least)


def _check_fraction(value: Any, name: str) -> None:
    if not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise ValueError(f"{name} {value!r}: expected a fraction from 0 to 1")


def _named(slides: Any, *, has_one_mask: bool) -> Iterator[tuple[str, Slide]]:
    """Yield the name of each slide, and the slide."""
    if isinstance(slides, (Slide, str, os.PathLike)):
        slides = [slides]
    elif not isinstance(slides, (Mapping, Iterable)):
        raise TypeError(
            f"slides is of the type {type(slides).__name__}; expected a Slide, a Cohort, a mapping,"
            " a path, or several Slides or paths"
        )
    elif not isinstance(slides, Mapping):
        slides = list(slides)
    if has_one_mask and len(slides) > 1:
        raise ValueError(
            f"one mask for {len(slides)} slides: give a function that returns the mask of a slide"
        )
    if isinstance(slides, Cohort):
        yield from slides.opened()
        return
    given = slides.items() if isinstance(slides, Mapping) else ((None, each) for each in slides)
    for name, each in given:
        slide = each if isinstance(each, Slide) else open_slide(each)
        if name is None:
            is_path = isinstance(each, (str, os.PathLike))
            name = os.fspath(each) if is_path else slide.container_identifier or slide.name
        yield name, slide


def _tiles_of(
    slide: Slide,
    spacing: float,
    size: tuple[int, int],
    step: tuple[int, int],
    mask: xr.DataArray | None,
    at_least: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the (x, y) of the middles of a slide's tiles, and how much of each is covered."""
    grid = patch_grid(slide, spacing=spacing)
    ranges = [range(0, *each) for each in zip(grid.grid.plane_shape, step, strict=True)]
    count = len(ranges[0]) * len(ranges[1])
    check_memory(BYTES_PER_TILE * count, f"{slide.name}: {count} tiles")
    starts = [np.asarray(each) for each in ranges]
    if mask is None:
        values: Any = np.ones((1, 1), np.bool_)
        edges = [_Edges(first, last - first) for first, last in grid.covered]
    else:
        values, edges = _mask_on(grid, mask)
    down, across = (
        edge.ends(start, length) for edge, start, length in zip(edges, starts, size, strict=True)
    )
    area = _area_in(values, down, across)
    # of a tile, in pixels of the mask
    whole = (size[0] / edges[0].step) * (size[1] / edges[1].step)
    fractions = (area / whole).clip(0, 1)
    rows, columns = np.nonzero(fractions >= at_least - ROUNDING)
    first = np.stack([starts[0][rows], starts[1][columns]], axis=1)
    return grid.centers(first, size), fractions[rows, columns]


@dataclasses.dataclass(frozen=True, slots=True)
class _Edges:
    """Where the pixels of a mask lie along an axis, in pixels of a grid."""

    first: float
    """The edge with which the first pixel begins."""
    step: float
    """Length of a pixel."""

    def ends(
        self, starts: NDArray[np.int64], size: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return where tiles begin and end, in pixels of the mask."""
        low, high = ((each - self.first) / self.step for each in (starts, starts + size))
        return _even(low), _even(high)


def _even(edges: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    whole = np.rint(edges)
    return np.where(np.abs(edges - whole) < NEAR, whole, edges)


def _mask_on(grid: PatchGrid, mask: xr.DataArray) -> tuple[Any, list[_Edges]]:
    """Return the pixels of a mask, from the upper left on, and where they lie on a grid."""
    mask = checked_mask(mask, grid.grid.coords().xindexes)
    if grid.grid.orientation is None:
        raise MetadataError(
            f"{grid.grid.image.name}: it lies obliquely on the slide, and a mask in mm doesn't"
        )
    if not mask.size:
        return np.zeros((1, 1), np.bool_), [_Edges(0.0, 1.0)] * 2
    steps = [step_of(mask, dim) for dim in ("y", "x")]
    # upright arrays run from the upper left on: y descends, x ascends
    mask = mask[:: 1 if steps[0] < 0 else -1, :: 1 if steps[1] > 0 else -1]
    y, x = grid.pixels(np.array([[float(mask.x[0]), float(mask.y[0])]]))[0].tolist()
    down, across = (abs(step) / pixel for step, pixel in zip(steps, grid.spacing, strict=True))
    return mask.data, [_Edges(y - down / 2, down), _Edges(x - across / 2, across)]


Ends = tuple["NDArray[np.float64]", "NDArray[np.float64]"]


def _area_in(mask: Any, down: Ends, across: Ends) -> NDArray[np.float64]:
    """Return the area of True in each tile, in pixels of the mask.

    Parameters
    ----------
    mask : numpy.ndarray or dask.array.Array
        Bool, shape (rows, columns); read block by block.
    down, across : tuple of numpy.ndarray
        Where tiles begin and end along an axis, ascending, in pixels of the mask.

    Returns
    -------
    numpy.ndarray
        Shape (tiles down, tiles across).

    """
    from dask.base import compute
    from dask.delayed import delayed

    found = np.zeros((len(down[0]), len(across[0])))
    if isinstance(mask, np.ndarray):
        at_once = max(1, BLOCK // mask.shape[1])
        for top in range(0, mask.shape[0], at_once):
            block = mask[top : top + at_once]
            rows, y = _touched(down, top, len(block))
            columns, x = _touched(across, 0, mask.shape[1])
            found[rows, columns] += _areas(block, y, x)
        return found
    tops, lefts = (np.cumsum((0, *lengths)).tolist() for lengths in mask.chunks)
    blocks = mask.to_delayed()
    tasks, places = [], []
    for i, j in np.ndindex(blocks.shape):
        rows, y = _touched(down, tops[i], mask.chunks[0][i])
        columns, x = _touched(across, lefts[j], mask.chunks[1][j])
        if rows.start < rows.stop and columns.start < columns.stop:
            tasks.append(delayed(_areas)(blocks[i, j], y, x))
            places.append((rows, columns))
    for place, areas in zip(places, compute(*tasks), strict=True):  # type: ignore[no-untyped-call]
        found[place] += areas
    return found


def _touched(ends: Ends, first: int, length: int) -> tuple[slice, Ends]:
    """Return which tiles a block touches along an axis, and where they lie in the block."""
    low, high = ends
    begin = int(np.searchsorted(high, first, side="right"))
    end = int(np.searchsorted(low, first + length, side="left"))
    these = slice(begin, max(begin, end))
    return these, (
        (low[these] - first).clip(0, length),
        (high[these] - first).clip(0, length),
    )


def _areas(block: NDArray[np.bool_], down: Ends, across: Ends) -> NDArray[np.float64]:
    return _summed(_summed(block, 0, *down), 1, *across)


def _summed(
    values: NDArray[Any], axis: int, low: NDArray[np.float64], high: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the integral of pixels between edges along an axis."""
    length = values.shape[axis]
    before = np.zeros(tuple(n + (i == axis) for i, n in enumerate(values.shape)))
    values.cumsum(axis, out=before[1:] if axis == 0 else before[:, 1:])

    def up_to(edge: NDArray[np.float64]) -> NDArray[np.float64]:
        whole = np.floor(edge).astype(np.intp).clip(0, length - 1)
        part = (edge - whole).reshape((-1, 1) if axis == 0 else (1, -1))
        found: NDArray[np.float64] = before.take(whole, axis) + part * values.take(whole, axis)
        return found

    return up_to(high) - up_to(low)
