"""A slide at any spacing: grids of this spacing, and the variables of the slide on them."""

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
"""Lower bound on the ratio of spacings of the next stored level and a virtual level."""
SMALL = 512
"""Pixels along the longer edge up to which a level is the last one of virtual levels."""


def check_labels(labels: str) -> None:
    """Raise a ValueError unless the value is one of :data:`Labels`."""
    if labels not in ("majority", "any"):
        raise ValueError(f'labels must be "majority" or "any", not {labels!r}')


def wanted_spacing(spacing: Spacing | None, level: int | None) -> float | None:
    """Return a spacing in mm; None if a level is given instead.

    Raises
    ------
    TypeError
        When not exactly one of both is given.
    ValueError
        When the spacing is invalid.

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
    """Return the grid of square pixels of a spacing, from the corner of the base level.

    Parameters
    ----------
    slide : SlideContents
        The slide.
    spacing : float
        Spacing in mm.
    orientation : {"upright", "stored"}
        Upright in mm, or with rows and columns in the directions of the base level.
    image : TiledImage, optional
        Image whose extent the grid covers; by default the image from which the slide's first
        channels are computed.

    Raises
    ------
    MetadataError
        When the header doesn't place the base level on the slide.
    ValueError
        When pixels of this spacing are larger than the slide.

    """
    grid = grid_of_level(slide, 0, orientation)
    if image is None:
        image, _ = _source_of(slide, slide._groups[0], spacing)
    source = geometry_of(image.metadata, image._placement, relative=True)
    return dataclasses.replace(grid, geometry=grid_at(spacing, grid.placed, source))


def virtual_grid(
    slide: SlideContents, level: int, factor: int, orientation: OrientationName
) -> Grid:
    """Return the grid of a virtual level: each pixel is a box of pixels of a stored level.

    Parameters
    ----------
    slide : SlideContents
        The slide.
    level : int
        Zero-based index of the stored level.
    factor : int
        Number of its pixels along an edge of a box.
    orientation : {"upright", "stored"}
        See :func:`grid_of_spacing`.

    Raises
    ------
    MetadataError
        When the header doesn't place the level on the slide.

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
        When the header doesn't place it on the slide.

    """
    image = slide.level(level).image
    try:
        geometry_of(image.metadata, image._placement, relative=True)
    except MetadataError as error:
        raise MetadataError(
            f"{error}: pixels of a size in mm need a position on the slide; if only the spacing is"
            " missing, open_slide(..., spacing=...) gives one"
        ) from error
    return Grid.of(image, orientation, slide._said("FrameOfReferenceUID"))


def virtual_factors(slide: SlideContents, level: int) -> list[int]:
    """Return the factors of virtual levels between a stored level and the next one.

    For the last stored level, factors until the longer edge has at most :data:`SMALL` pixels.

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

    A variable is computed from the coarsest of its levels that is finer than the grid, or from its
    finest level if none is. Two kinds are left out: variables with several focal planes that differ
    from those of the others, and series of several derived images on different grids, none of them
    that of a level.

    Parameters
    ----------
    slide : SlideContents
        The slide.
    spacing : float
        Spacing of the grid in mm.
    grid : Grid
        The grid.
    labels : {"majority", "any"}
        See :class:`ResampledReader`.
    fast : bool
        See :meth:`ResampledReader.of`.
    as_wanted : callable
        Returns a stack with stored values, or with fractions or real world values.

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
    """Return the image, and its level, from which pixels of a spacing are computed.

    This is the coarsest one with pixels that aren't larger, or the finest one if all are.
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
    """Return image, channel and focal plane from which pixels of a spacing are computed.

    Raises
    ------
    ValueError
        When there is no such channel or focal plane.

    """
    key = (channel_index, focal_plane_index)
    levels = [number for number, level in enumerate(slide.levels) if key in level._places]
    places = [slide._place(level, *key) for level in levels or [0]]  # an error lists what exists
    _, place = _coarsest_finer(((max(each[0].pixel_spacing), each) for each in places), spacing)
    return place


def _coarsest_finer(candidates: Iterable[T], spacing: float) -> T:
    """Return the candidate with the largest spacing (its first item) up to a given one.

    If all are larger, the candidate with the smallest spacing is returned.
    """
    by_spacing = sorted(candidates, key=lambda each: each[0])
    finer = [each for each in by_spacing if each[0] <= spacing * (1 + SAME_SPACING)]
    return (finer or by_spacing[:1])[-1]


def windows_on(grid: Grid, image: TiledImage) -> tuple[tuple[Windows, Windows], Orientation] | None:
    """Return the windows of an image's rows and columns that the pixels of a grid cover.

    Returns
    -------
    windows : tuple of Windows
        Windows of rows and of columns.
    orientation : Orientation
        Transposition and flips from the windows to the grid.
    None
        If rows and columns aren't parallel to those of the grid.

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
    """Return a stack on another grid.

    None, with a warning, if its rows and columns aren't parallel to those of the grid.

    Parameters
    ----------
    stack : Stack
        Channels and focal planes of an image.
    grid : Grid
        Grid with a geometry.
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
        assert isinstance(reader, MatrixReader)  # not resampled yet
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
    """Return attributes that describe how pixels are computed."""
    first = next(reader for row in readers for reader in row if reader is not None)
    if first.as_labels or first.dtype == np.bool_:
        way = "majority by area" if first.labels == "majority" else "any label before background"
    else:
        way = "mean by area"
    if first.source.reduction:
        way += f", of frames decoded at 1/{1 << first.source.reduction} of their size"
    return {"resampling": way, "source_spacing": list(source_spacing)}
