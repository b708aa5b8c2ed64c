"""A slide at a resolution that is wanted: its variables on one grid of pixels of that size."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from dicomslide.errors import MetadataError, MetadataWarning
from dicomslide.header.geometry import AS_STORED
from dicomslide.header.placement import SAME_SPACING, geometry_of
from dicomslide.header.resolution import coarsened, grid_at, placed_on, spacing_in_mm
from dicomslide.labelled.variables import Grid, Stack, deepest_of
from dicomslide.process.warn import warn
from dicomslide.readers.matrix_reader import MatrixReader
from dicomslide.readers.resampled_reader import ResampledReader
from dicomslide.readers.windows import Windows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from dicomslide.contents.contents import SlideContents
    from dicomslide.contents.places import ChannelGroup, Place
    from dicomslide.header.geometry import Orientation, OrientationName
    from dicomslide.header.resolution import Spacing
    from dicomslide.image import TiledImage
    from dicomslide.readers.reductions import Labels
    from dicomslide.readers.stacked_reader import PlaneReader

__all__ = ["check_labels", "grid_of_level", "grid_of_spacing", "place_at", "resampled", "stacks_at",
           "virtual_factors", "virtual_grid", "wanted_spacing", "windows_on"]  # fmt: skip

T = TypeVar("T", bound="tuple[Any, ...]")

APART = 1.5
"""Factor by which a virtual level has to be finer than the next stored one."""
SMALL = 512
"""Pixels along the longer edge of a level behind which there needn't be another."""


def check_labels(labels: str) -> None:
    """Raise a ValueError unless the value is one of :data:`Labels`."""
    if labels not in ("majority", "any"):
        raise ValueError(f'labels must be "majority" or "any", not {labels!r}')


def wanted_spacing(spacing: Spacing | None, level: int | None) -> float | None:
    """Return the spacing in mm that is wanted; None where a level is.

    Raises
    ------
    TypeError
        When not exactly one of both is given.
    ValueError
        When the spacing isn't one.

    """
    if (spacing is None) == (level is None):
        raise TypeError("either a spacing or a level must be given, and not both")
    return None if spacing is None else spacing_in_mm(spacing)


def grid_of_spacing(
    slide: SlideContents,
    spacing: float,
    orientation: OrientationName,
    image: TiledImage | None = None,
) -> Grid:
    """Return the grid of square pixels of a size, from the corner of the base level on.

    Parameters
    ----------
    slide : SlideContents
        The slide.
    spacing : float
        Distance of pixels in mm.
    orientation : {"upright", "stored"}
        Upright in mm, or rows and columns that run as those of the base level.
    image : TiledImage, optional
        The image whose extent the grid covers; by default that of which the slide's first channels
        are made.

    Raises
    ------
    MetadataError
        When the base level has no place on the slide.
    ValueError
        When pixels of that size are larger than the slide.

    """
    grid = grid_of_level(slide, 0, orientation)
    if image is None:
        image, _ = _source_of(slide, slide._groups[0], spacing)
    source = geometry_of(image.metadata, image._placement, relative=True)
    return dataclasses.replace(grid, geometry=grid_at(spacing, grid.placed, source))


def virtual_grid(
    slide: SlideContents, level: int, factor: int, orientation: OrientationName
) -> Grid:
    """Return the grid whose pixels are boxes of a stored level's pixels.

    Parameters
    ----------
    slide : SlideContents
        The slide.
    level : int
        Zero-based index of the stored level.
    factor : int
        Pixels of it along an edge of a box.
    orientation : {"upright", "stored"}
        See :func:`grid_of_spacing`.

    Raises
    ------
    MetadataError
        When the level has no place on the slide.

    """
    grid = grid_of_level(slide, level, orientation)
    return dataclasses.replace(grid, geometry=coarsened(grid.placed, factor))


def grid_of_level(slide: SlideContents, level: int, orientation: OrientationName) -> Grid:
    """Return the grid of a level's pixels.

    Raises
    ------
    LevelNotFoundError
        When there is no such level.
    MetadataError
        When it has no place on the slide.

    """
    image = slide.level(level).image
    try:
        geometry_of(image.metadata, image._placement, relative=True)
    except MetadataError as error:
        raise MetadataError(
            f"{error}: pixels of a size in mm need a place on the slide; where just the spacing is"
            " missing, open_slide(..., spacing=...) gives one"
        ) from error
    return Grid.of(image, orientation, slide._said("FrameOfReferenceUID"))


def virtual_factors(slide: SlideContents, level: int) -> list[int]:
    """Return the factors of two between a stored level and the next one.

    Behind the last level, those that follow until a picture of it is small.

    Parameters
    ----------
    slide : SlideContents
        The slide.
    level : int
        Zero-based index of the stored level.

    """
    here = slide.levels[level].size
    if level + 1 < slide.num_levels:
        ratio = math.sqrt(math.prod(here) / math.prod(slide.levels[level + 1].size))
        most = ratio / APART
    else:
        most = 2 * max(here) / SMALL - 1e-9
    return [2**k for k in range(1, 64) if 2**k <= most]


def stacks_at(
    slide: SlideContents,
    spacing: float,
    grid: Grid,
    *,
    labels: Labels,
    fast: bool,
    as_wanted: Callable[[Stack], Stack],
) -> list[Stack]:
    """Return the variables of a slide on a grid.

    Each is made of the coarsest of its levels that is finer than the grid; of its finest level,
    where none is. A variable with several focal planes of its own is left out. So are derived
    images that lie on no level's grid, where a series has several: they are places of their own.

    Parameters
    ----------
    slide : SlideContents
        The slide.
    spacing : float
        Distance of the grid's pixels in mm.
    grid : Grid
        The grid.
    labels : {"majority", "any"}
        See :class:`ResampledReader`.
    fast : bool
        See :meth:`ResampledReader.of`.
    as_wanted : callable
        Gives a stack with what its pixels mean, or with what is stored.

    """
    stacks = []
    for group in slide._groups:
        apart = [image for image, level in group.images if level is None]
        if len(apart) == len(group.images) > 1:
            continue
        image, level = _source_of(slide, group, spacing)
        if level is None:
            stack: Stack | None = Stack.of_image(group, image)
        else:
            stack = Stack.at_level(slide.levels[level], group)
        placed = None if stack is None else resampled(as_wanted(stack), grid, labels, fast=fast)
        if placed is not None:
            stacks.append(placed)
    planes = deepest_of(stacks).planes if stacks else ()
    return [stack for stack in stacks if len(stack.planes) < 2 or stack.planes == planes]


def _source_of(
    slide: SlideContents, group: ChannelGroup, spacing: float
) -> tuple[TiledImage, int | None]:
    """Return the image, and its level, from which pixels of a size are made.

    The coarsest one whose pixels are no larger; the finest one where all are.
    """

    def candidates() -> Iterator[tuple[float, TiledImage, int | None]]:
        for image, level in group.images:
            if level is not None or len(group.images) == 1:
                yield max(image.pixel_spacing), image, level

    _, image, level = _coarsest_finer(candidates(), spacing)
    return image, level


def place_at(
    slide: SlideContents, channel_index: int, focal_plane_index: int, spacing: float
) -> Place:
    """Return the image, channel and focal plane of which pixels of a size are made.

    Raises
    ------
    ValueError
        When there is no such channel or focal plane.

    """
    key = (channel_index, focal_plane_index)
    levels = [number for number, level in enumerate(slide.levels) if key in level._places]
    places = [slide._place(level, *key) for level in levels or [0]]  # which says what is there
    _, place = _coarsest_finer(((max(each[0].pixel_spacing), each) for each in places), spacing)
    return place


def _coarsest_finer(candidates: Iterable[T], spacing: float) -> T:
    """Return the candidate of the largest spacing, its first item, up to the one that is wanted.

    The one of the smallest spacing, where all are larger.
    """
    by_spacing = sorted(candidates, key=lambda each: each[0])
    finer = [each for each in by_spacing if each[0] <= spacing * (1 + SAME_SPACING)]
    return (finer or by_spacing[:1])[-1]


def windows_on(grid: Grid, image: TiledImage) -> tuple[tuple[Windows, Windows], Orientation] | None:
    """Return the windows of an image's rows and columns that the pixels of a grid cover.

    Returns
    -------
    windows : tuple of Windows
        Of rows and of columns.
    orientation : Orientation
        How their pixels are turned onto the grid.
    None
        Where rows and columns aren't parallel to those of the grid.

    """
    source = geometry_of(image.metadata, image._placement, relative=True)
    placed = placed_on(grid.placed, source)
    if placed is None:
        return None
    rows, columns = (
        Windows.of(*axis, extent)
        for axis, extent in zip(
            zip(placed.start, placed.step, placed.count, strict=True), source.shape, strict=True
        )
    )
    return (rows, columns), placed.orientation.then(grid.orientation or AS_STORED)


def resampled(stack: Stack, grid: Grid, labels: Labels, *, fast: bool = False) -> Stack | None:
    """Return a stack with the pixels of another grid.

    None, with a warning, where its rows and columns aren't parallel to those of the grid.

    Parameters
    ----------
    stack : Stack
        Channels and focal planes of an image.
    grid : Grid
        With a geometry.
    labels : {"majority", "any"}
        See :class:`ResampledReader`.
    fast : bool, default: False
        See :meth:`ResampledReader.of`.

    """
    image = stack.image
    found = windows_on(grid, image)
    if found is None:
        warn(
            f"{image.name}: its rows run obliquely to those of the base level: left out",
            MetadataWarning,
        )
        return None
    windows, orientation = found

    def moved(reader: PlaneReader) -> ResampledReader:
        assert isinstance(reader, MatrixReader)  # of an image, in its own pixels
        return ResampledReader.of(reader, windows, labels, fast=fast)

    readers = tuple(
        tuple(reader if reader is None else moved(reader) for reader in row)
        for row in stack.readers
    )
    return dataclasses.replace(
        stack,
        readers=readers,
        orientation=orientation,
        resampling=_described(readers, image.pixel_spacing),
    )


def _described(
    readers: Sequence[Sequence[ResampledReader | None]], source_spacing: tuple[float, float]
) -> dict[str, object]:
    """Return attributes that say what pixels are made of."""
    first = next(reader for row in readers for reader in row if reader is not None)
    if first.as_labels or first.dtype == np.bool_:
        way = "majority by area" if first.labels == "majority" else "any label before background"
    else:
        way = "mean by area"
    if first.source.reduction:
        way += f", of frames decoded at 1/{1 << first.source.reduction} of their size"
    return {"resampling": way, "source_spacing": list(source_spacing)}
