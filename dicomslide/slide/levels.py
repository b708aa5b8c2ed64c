"""The images of each level of a slide, by channel and focal plane."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.errors import AmbiguousSlideError, MetadataError, MetadataWarning
from dicomslide.frames import focal_planes
from dicomslide.placement import pixel_spacing_of
from dicomslide.pyramid import group_levels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dicomslide.channel import Channel
    from dicomslide.image import TiledImage
    from dicomslide.placement import FieldOfView, Placement

__all__ = ["ImagePyramid", "Level", "affine_from_base", "build_pyramid"]


Place = tuple["TiledImage", int, int]
"""An image, and the zero-based indices of a channel and a focal plane in it."""


@dataclasses.dataclass(frozen=True)
class Level:
    """The images of one resolution."""

    size: tuple[int, int]
    """Total pixel matrix rows and columns."""
    images: tuple[TiledImage, ...]
    places: Mapping[tuple[int, int], Place]
    """(channel, focal plane) of the slide, and where its pixels are; read-only."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "places", MappingProxyType(dict(self.places)))

    def __hash__(self) -> int:
        return hash((self.size, self.images))

    def __reduce__(self) -> tuple[Any, ...]:
        return Level, (self.size, self.images, dict(self.places))

    def with_places(self, places: Mapping[tuple[int, int], Place]) -> Level:
        """Return this level with other channels beside those that it has."""
        return dataclasses.replace(self, places={**self.places, **places})

    def images_of(self, channels: range) -> tuple[TiledImage, ...]:
        """Return the images that hold some of the slide's channels, each once."""
        found = [place[0] for key, place in self.places.items() if key[0] in channels]
        return tuple({id(image): image for image in found}.values())

    def planes_of(self, channels: range) -> list[int]:
        """Return the focal planes in which some of the slide's channels have pixels."""
        return sorted({plane for channel, plane in self.places if channel in channels})

    @property
    def image(self) -> TiledImage:
        """The image that stands for the level's geometry."""
        return self.images[0]


@dataclasses.dataclass(frozen=True)
class ImagePyramid:
    """Levels from the largest to the smallest, and what their images share."""

    levels: tuple[Level, ...]
    channels: tuple[Channel, ...]
    """In the order of their items in the first image that has them."""
    planes: tuple[float, ...]
    """Offset of each focal plane in µm, ascending."""
    associated: tuple[TiledImage, ...]
    """Thumbnails of the size of a level."""
    view: FieldOfView | None
    """What the base covers."""


def build_pyramid(
    images: Sequence[TiledImage], tolerance: float, *, align_levels: bool
) -> ImagePyramid:
    """Sort VOLUME and THUMBNAIL images of one slide into levels.

    See :func:`dicomslide.pyramid.group_levels`; an image that shows another place is left out,
    with a warning that says so.

    Parameters
    ----------
    images : sequence of TiledImage
        VOLUME and THUMBNAIL images of one slide.
    tolerance : float
        Distance in mm by which centres of levels may differ, if more than a pixel.
    align_levels : bool
        Whether levels that state the base's origin share its corner.

    Raises
    ------
    AmbiguousSlideError
        When two images hold the same channel and focal plane of a level.

    """
    groups = group_levels(
        [image.metadata for image in images], tolerance, align_levels=align_levels
    )
    for reason in groups.misfits.values():
        warnings.warn(f"left out: {reason}", MetadataWarning, stacklevel=4)
    for image, placement in zip(images, groups.placements, strict=True):
        _warn_of_spacing(image, placement)
    images = [
        image.placed(placement) for image, placement in zip(images, groups.placements, strict=True)
    ]
    kept = [[images[i] for i in same] for same in groups.levels]
    members = [image for same in kept for image in same]
    channels = _channels_of(members)
    planes, _ = focal_planes(
        np.array([offset for image in members for offset in image.focal_plane_offsets])
    )
    levels = tuple(
        Level(same[0].size, tuple(same), _places_of(same, channels, planes)) for same in kept
    )
    associated = tuple(images[i] for i in groups.associated)
    return ImagePyramid(levels, channels, planes, associated, groups.view)


def _warn_of_spacing(image: TiledImage, placement: Placement) -> None:
    """Warn where Pixel Spacing is given, but contradicted by what the matrix covers."""
    given, taken = pixel_spacing_of(image.metadata), placement.spacing
    if given is not None and taken is not None:
        warnings.warn(
            f"{image.name}: its Pixel Spacing, ({given[0]:g}, {given[1]:g}), contradicts what its"
            f" matrix covers; taken is ({taken[0]:g}, {taken[1]:g}) mm",
            MetadataWarning,
            stacklevel=5,
        )


def _channels_of(images: Sequence[TiledImage]) -> tuple[Channel, ...]:
    found: dict[str, Channel] = {}
    for image in images:
        for channel in image.channels:
            found.setdefault(channel.identifier, channel)
    return tuple(found.values())


def _places_of(
    images: Sequence[TiledImage], channels: tuple[Channel, ...], planes: tuple[float, ...]
) -> dict[tuple[int, int], tuple[TiledImage, int, int]]:
    index = {channel.identifier: i for i, channel in enumerate(channels)}
    offsets = np.array(planes)
    places: dict[tuple[int, int], tuple[TiledImage, int, int]] = {}
    for image in images:
        for c, channel in enumerate(image.channels):
            for p, offset in enumerate(image.focal_plane_offsets):
                place = index[channel.identifier], int(np.argmin(np.abs(offsets - offset)))
                if place in places:
                    raise AmbiguousSlideError(
                        f"{places[place][0].name} and {image.name} both hold channel"
                        f" {channel.identifier!r}, focal plane {offset:g} µm, of the level of"
                        f" {image.size[0]} × {image.size[1]} pixels; open the files wanted only"
                    )
                places[place] = (image, c, p)
    return places


def affine_from_base(base: TiledImage, image: TiledImage) -> list[list[float]]:
    """Return the affine from (row, column, 1) of the base to real indices in another image.

    By where both lie on the slide; where a header doesn't say, they share a corner.
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
