"""Which images are levels of one pyramid."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import TYPE_CHECKING

import numpy as np

from dicomslide.enum import ImageFlavors
from dicomslide.errors import AmbiguousSlideError, MetadataError, MetadataWarning
from dicomslide.frames import focal_planes
from dicomslide.layout import field_of_view

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dicomslide.channel import Channel
    from dicomslide.image import TiledImage

__all__ = ["ImagePyramid", "Level", "build_pyramid"]


@dataclasses.dataclass(frozen=True)
class Level:
    """The images of one resolution."""

    size: tuple[int, int]
    """Total pixel matrix rows and columns."""
    images: tuple[TiledImage, ...]
    places: dict[tuple[int, int], tuple[TiledImage, int, int]]
    """(channel, focal plane) of the slide -> image, and channel and focal plane in it."""

    def images_of(self, channels: range) -> tuple[TiledImage, ...]:
        """Return the images that hold some of the slide's channels, each once."""
        found = [place[0] for key, place in self.places.items() if key[0] in channels]
        return tuple({id(image): image for image in found}.values())

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


def build_pyramid(images: Sequence[TiledImage], tolerance: float) -> ImagePyramid:
    """Sort VOLUME and THUMBNAIL images of one slide into levels.

    Images are of one level when their matrices are of one size: spacing alone doesn't tell,
    some scanners write that of the base everywhere.

    Parameters
    ----------
    images : sequence of TiledImage
        VOLUME and THUMBNAIL images of one slide.
    tolerance : float
        Distance in mm by which centres of levels may differ, if more than a pixel.

    Raises
    ------
    AmbiguousSlideError
        When two images hold the same channel and focal plane of a level.

    """
    # stable: in the order of size, volumes before thumbnails
    ordered = sorted(images, key=lambda i: (-math.prod(i.size), i.flavor == "THUMBNAIL"))
    by_size: dict[tuple[int, int], list[TiledImage]] = {}
    associated: list[TiledImage] = []
    for image in ordered:
        if image.flavor == ImageFlavors.THUMBNAIL.value and image.size in by_size:
            associated.append(image)
        else:
            by_size.setdefault(image.size, []).append(image)
    base = ordered[0]
    for image in ordered:
        image.extent = field_of_view(base.metadata)
    kept = [same for same in by_size.values() if _belongs(base, same[0], tolerance)]
    members = [image for same in kept for image in same]
    channels = _channels_of(members)
    planes, _ = focal_planes(
        np.array([offset for image in members for offset in image.focal_plane_offsets])
    )
    levels = tuple(
        Level(same[0].size, tuple(same), _places_of(same, channels, planes)) for same in kept
    )
    return ImagePyramid(levels, channels, planes, tuple(associated))


def _belongs(base: TiledImage, image: TiledImage, tolerance: float) -> bool:
    """Whether an image shows the same place as the base; a warning says why if it doesn't."""
    try:
        here, there = image.geometry, base.geometry
    except MetadataError:
        return True  # nothing says that it doesn't
    distance = math.dist(here.center, there.center)
    allowed = max(tolerance, *here.spacing)
    if distance <= allowed:
        return True
    warnings.warn(
        f"left out: {image.name}: its centre is {distance:.3g} mm away from that of"
        f" {base.name}, more than the {allowed:.3g} mm within which images are levels of one"
        " pyramid",
        MetadataWarning,
        stacklevel=5,
    )
    return False


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
