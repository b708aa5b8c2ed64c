"""Levels of a slide, with the image of each channel and focal plane."""

from __future__ import annotations

import contextlib
import dataclasses
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.contents.places import ChannelGroup, slide_places
from dicomslide.errors import MetadataError, MetadataWarning
from dicomslide.header.placement import pixel_spacing_of
from dicomslide.process.warn import warn
from dicomslide.pyramid import group_levels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dicomslide.contents.places import Place, Places
    from dicomslide.header.channels import Channel
    from dicomslide.header.placement import FieldOfView, Placement
    from dicomslide.image import TiledImage

__all__ = ["ImagePyramid", "Level", "affine_from_base", "build_pyramid"]


@dataclasses.dataclass(frozen=True)
class Level:
    """Images of one resolution."""

    size: tuple[int, int]
    """Total pixel matrix rows and columns."""
    images: tuple[TiledImage, ...]
    """Images of its channels and focal planes; the first one defines the geometry of the level."""
    _places: Mapping[tuple[int, int], Place]
    """(channel, focal plane) of the slide -> image with its pixels; read-only."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_places", MappingProxyType(dict(self._places)))

    def __hash__(self) -> int:
        return hash((self.size, self.images))

    def __reduce__(self) -> tuple[Any, ...]:
        return Level, (self.size, self.images, dict(self._places))

    def _with_places(self, places: Mapping[tuple[int, int], Place]) -> Level:
        """Return this level with additional channels."""
        return dataclasses.replace(self, _places={**self._places, **places})

    def _images_of(self, channels: range) -> tuple[TiledImage, ...]:
        """Return the images of some of the slide's channels, each once."""
        found = [place[0] for key, place in self._places.items() if key[0] in channels]
        return tuple({id(image): image for image in found}.values())

    def _planes_of(self, channels: range) -> list[int]:
        """Return the focal planes in which some of the slide's channels have pixels."""
        return sorted({plane for channel, plane in self._places if channel in channels})

    @property
    def image(self) -> TiledImage:
        """The image that defines the geometry of the level."""
        return self.images[0]


@dataclasses.dataclass(frozen=True)
class ImagePyramid:
    """Levels from the largest to the smallest, with their channels and focal planes."""

    levels: tuple[Level, ...]
    channels: tuple[Channel, ...]
    """Channels: see :func:`dicomslide.contents.places.slide_places`."""
    groups: tuple[ChannelGroup, ...]
    """Channels by variable of the tree."""
    planes: tuple[float, ...]
    """Offset of each focal plane in µm, ascending."""
    associated: tuple[TiledImage, ...]
    """Thumbnails of the size of a level."""
    view: FieldOfView | None
    """Area that the base covers."""

    def without_channels(self) -> ImagePyramid:
        """Return levels of the same sizes without channels."""
        levels = tuple(dataclasses.replace(level, _places={}) for level in self.levels)
        return dataclasses.replace(self, levels=levels, channels=(), groups=())


def build_pyramid(
    images: Sequence[TiledImage], tolerance: float, *, align_levels: bool
) -> ImagePyramid:
    """Arrange VOLUME and THUMBNAIL images of one slide into levels.

    See :func:`dicomslide.pyramid.group_levels`. Misfits are left out, with a warning.

    Parameters
    ----------
    images : sequence of TiledImage
        VOLUME and THUMBNAIL images of one slide.
    tolerance : float
        Distance in mm by which centres of levels may differ; a pixel is always allowed.
    align_levels : bool
        Whether levels with the origin of the base are aligned with its corner.

    Raises
    ------
    AmbiguousSlideError
        When two images hold the same channel and focal plane of a level.

    """
    groups = group_levels(
        [image.metadata for image in images], tolerance, align_levels=align_levels
    )
    for reason in groups.misfits.values():
        warn(f"left out: {reason}", MetadataWarning)
    for image, placement in zip(images, groups.placements, strict=True):
        _warn_of_spacing(image, placement)
    images = [
        image._placed(placement) for image, placement in zip(images, groups.placements, strict=True)
    ]
    kept = [[images[i] for i in same] for same in groups.levels]
    found = slide_places(kept)
    levels = tuple(
        _level(same, places, found.variables)
        for same, places in zip(kept, found.places, strict=True)
    )
    variables = tuple(
        ChannelGroup(
            "image" if number == 1 else f"image_{number}",
            found.channels[channels.start : channels.stop],
            channels.start,
            tuple(
                (image, i) for i, level in enumerate(levels) for image in level._images_of(channels)
            ),
        )
        for number, channels in enumerate(found.variables, 1)
    )
    associated = tuple(images[i] for i in groups.associated)
    return ImagePyramid(levels, found.channels, variables, found.planes, associated, groups.view)


def _level(images: Sequence[TiledImage], places: Places, variables: Sequence[range]) -> Level:
    """Return a level; its first image belongs to its first variable."""
    number_of = {
        id(place[0]): number
        for number, channels in reversed(list(enumerate(variables)))
        for key, place in places.items()
        if key[0] in channels
    }
    ordered = sorted(images, key=lambda image: number_of[id(image)])
    return Level(ordered[0].size, tuple(ordered), places)


def _warn_of_spacing(image: TiledImage, placement: Placement) -> None:
    """Warn if Pixel Spacing is present, but was corrected by the area that the matrix covers."""
    given, taken = pixel_spacing_of(image.metadata), placement.spacing
    if given is not None and taken is not None:
        warn(
            f"{image.name}: its Pixel Spacing, ({given[0]:g}, {given[1]:g}), contradicts the area"
            f" that its matrix covers; ({taken[0]:g}, {taken[1]:g}) mm is used",
            MetadataWarning,
        )


def affine_from_base(base: TiledImage, image: TiledImage) -> list[list[float]]:
    """Return the 2 × 3 affine from (row, column, 1) of the base to real-valued indices in an image.

    It is computed from their positions on the slide; where a header lacks the position, the corners
    of both are assumed to coincide.
    """
    with contextlib.suppress(MetadataError):
        affine: list[list[float]] = image.geometry.pixels_of(base.geometry).tolist()
        return affine
    try:
        scales = np.divide(base.pixel_spacing, image.pixel_spacing)
    except MetadataError:
        scales = np.divide(image.size, base.size)
    down, across = scales.tolist()
    return [[down, 0.0, (down - 1) / 2], [0.0, across, (across - 1) / 2]]
