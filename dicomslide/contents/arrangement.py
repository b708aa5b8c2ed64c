"""Arrangement of the images of a slide into levels, and of their channels into groups."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING

from dicomslide.contents.collection import is_derived, is_volume
from dicomslide.contents.derived import derived_series, place_series
from dicomslide.contents.levels import build_pyramid
from dicomslide.enum import ImageFlavors
from dicomslide.errors import MetadataError, MetadataWarning
from dicomslide.process.warn import warn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dicomslide.contents.levels import ImagePyramid
    from dicomslide.contents.options import SlideOptions
    from dicomslide.contents.places import ChannelGroup
    from dicomslide.image import TiledImage

__all__ = ["Arrangement", "arrange"]

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Arrangement:
    """Images of a slide with their placements, levels and groups of channels."""

    images: tuple[TiledImage, ...]
    """All images, in the order given, with their placements."""
    pyramid: ImagePyramid
    """Levels, with all channels."""
    groups: tuple[ChannelGroup, ...]
    """Optical paths, then the channels of each derived series."""


def arrange(images: Sequence[TiledImage], options: SlideOptions) -> Arrangement:
    """Arrange the images of one pyramid of a slide into levels and groups of channels.

    Parameters
    ----------
    images : sequence of TiledImage
        VOLUME, THUMBNAIL, LABEL, OVERVIEW and derived images, without corrected placements.
    options : SlideOptions
        Options of the slide.

    Raises
    ------
    AmbiguousSlideError
        When two images hold the same channel and focal plane of a level.
    MetadataError
        When a header lacks an attribute, or contradicts itself.

    """
    for image in images:
        if image.flavor not in ImageFlavors.__members__ and not is_derived(image):
            logger.debug("%s: a %s is passed over", image.name, image.flavor)
    tolerance, align_levels = options.pyramid_tolerance, options.align_levels
    volumes = [image for image in images if is_volume(image)]
    series = derived_series(image for image in images if is_derived(image))
    # without volume images, the levels are those of the first derived series
    pyramid = build_pyramid(volumes or series[0].images, tolerance, align_levels=align_levels)
    pyramid = pyramid if volumes else pyramid.without_channels()
    groups = pyramid.groups
    count: dict[str, int] = {}
    for each in series:
        kind = each.images[0].kind
        number = count[kind] = count.get(kind, 0) + 1
        name = kind if number == 1 else f"{kind}_{number}"
        first = sum(len(group.channels) for group in groups)
        group, pyramid = place_series(
            each, name, first, pyramid, tolerance, align_levels=align_levels
        )
        groups = (*groups, group)
    placed = [*pyramid.associated, *(image for group in groups for image, _ in group.images)]
    _warn_if_mirrored(pyramid.levels[0].image)
    by_source = {image._source.identity: image for image in placed}
    return Arrangement(
        tuple(by_source.get(image._source.identity, image) for image in images), pyramid, groups
    )


def _warn_if_mirrored(base: TiledImage) -> None:
    """Warn if the base level is mirrored: the slide as seen through the glass."""
    try:
        is_mirrored = base.is_mirrored
    except MetadataError:
        return
    if is_mirrored:
        warn(
            f"{base.name}: its Image Orientation (Slide) is that of a mirror image, as seen through"
            " the glass; it is used without a correction",
            MetadataWarning,
        )
