"""Assignment of derived images to channels and levels of a slide."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import TYPE_CHECKING

from dicomslide.contents.places import ChannelGroup, turned_onto
from dicomslide.errors import MetadataError
from dicomslide.header import dicom
from dicomslide.header.placement import place, place_beside
from dicomslide.header.tiling import match_planes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dicomslide.contents.levels import ImagePyramid, Level
    from dicomslide.header.channels import Channel
    from dicomslide.image import TiledImage

__all__ = ["DerivedSeries", "derived_series", "place_series"]

logger = logging.getLogger(__name__)


class DerivedSeries:
    """Images of a series that are one variable: at other levels, or with other channels."""

    def __init__(self) -> None:
        self.images: list[TiledImage] = []
        self.channels: dict[str, Channel] = {}
        self._held: set[object] = set()

    def add(self, image: TiledImage) -> bool:
        """Add an image, unless it conflicts with those of the series.

        It conflicts if it has a size, channel and focal plane of another image, or a channel with
        the identifier, but not the meaning, of another channel.
        """
        held = _keys_of(image)
        if self._held & held or any(
            _meaning(self.channels[channel.identifier]) != _meaning(channel)
            for channel in image.channels
            if channel.identifier in self.channels
        ):
            return False
        self._held |= held
        self.images.append(image)
        self.images.sort(key=lambda image: -math.prod(image.size))
        for channel in image.channels:
            self.channels.setdefault(channel.identifier, channel)
        return True


def _keys_of(image: TiledImage) -> set[object]:
    """Return (size, channel, offset) of the planes of an image; a label map has one channel."""
    names = ["all"] if image._layout.label_values else [c.identifier for c in image.channels]
    return {(image.size, name, z) for name in names for z in image.focal_plane_offsets}


def _meaning(channel: Channel) -> tuple[str | None, ...]:
    return channel.description, channel.category, channel.property_type, channel.quantity


def derived_series(images: Iterable[TiledImage]) -> list[DerivedSeries]:
    """Group derived images into series that are one variable of the tree each.

    Images of one DICOM series, at different levels or with different segments, belong together if
    they have one data type and one direction of rows, and don't conflict: see
    :meth:`DerivedSeries.add`. Groups are in the order of their first images.
    """
    by_kind: dict[tuple[object, ...], list[DerivedSeries]] = {}
    found: list[DerivedSeries] = []
    for image in images:
        kind = (
            dicom.text(image.metadata, "SeriesInstanceUID") or image.name,
            dicom.text(image.metadata, "SegmentationType"),
            dicom.text(image.metadata, "SegmentationFractionalType"),
            image.channel_type,
            image._layout.pixel_format.dtype,
            _directions(image),
        )
        alike = by_kind.setdefault(kind, [])
        if not any(series.add(image) for series in alike):
            series = DerivedSeries()
            series.add(image)
            alike.append(series)
            found.append(series)
    return found


def _directions(image: TiledImage) -> tuple[int, ...] | None:
    """Return the direction cosines of an image in hundredths; None where they are absent."""
    cosines = dicom.numbers(image.metadata, "ImageOrientationSlide", 6)
    return None if cosines is None else tuple(round(100 * cosine) for cosine in cosines)


def place_series(
    series: DerivedSeries,
    name: str,
    first: int,
    pyramid: ImagePyramid,
    tolerance: float,
    *,
    align_levels: bool,
) -> tuple[ChannelGroup, ImagePyramid]:
    """Find the level of each image of a derived series, and add its channels to that level.

    Parameters
    ----------
    series : DerivedSeries
        The series.
    name : str
        Name of the variable.
    first : int
        Zero-based index of the first channel of the series in the slide.
    pyramid : ImagePyramid
        Levels of the slide. The planes of an image that aren't among those of the pyramid are
        numbered by themselves.
    tolerance : float
        Distance in mm by which the centres of images of one level may differ; a pixel is always
        allowed.
    align_levels : bool
        Whether images with the origin of the base are aligned with its corner.

    Returns
    -------
    tuple of ChannelGroup and ImagePyramid
        The channels of the series, and the pyramid with these channels.

    """
    index = {identifier: first + i for i, identifier in enumerate(series.channels)}
    images = _placed(series.images, pyramid, align_levels)
    levels = list(pyramid.levels)
    level_of: dict[int, int | None] = {}
    matches = {
        id(image): match_planes(image.focal_plane_offsets, pyramid.planes) for image in images
    }
    # images in planes of the slide come first; others are placed where these leave room
    for image in sorted(images, key=lambda image: matches[id(image)] is None):
        at = next((i for i, level in enumerate(levels) if _fits(level, image, tolerance)), None)
        of_slide = matches[id(image)] or range(image.num_focal_planes)
        places = {
            (index[channel.identifier], plane): (image, c, p)
            for c, channel in enumerate(image.channels)
            for p, plane in enumerate(of_slide)
        }
        if at is None or not places.keys().isdisjoint(levels[at]._places):
            logger.info("%s: %d × %d pixels aren't on the grid of a level", image.name, *image.size)
            level_of[id(image)] = None
        else:
            levels[at] = levels[at]._with_places(places)
            level_of[id(image)] = at
    held = tuple((image, level_of[id(image)]) for image in images)
    group = ChannelGroup(name, tuple(series.channels.values()), first, held)
    return group, dataclasses.replace(pyramid, levels=tuple(levels))


def _placed(
    images: Sequence[TiledImage], pyramid: ImagePyramid, align_levels: bool
) -> list[TiledImage]:
    """Return the images of a series with their placements, from the largest to the smallest."""
    bases = [(image._source.metadata, image._placement) for image in pyramid.levels[0].images]
    placed = []
    for image in images:
        header = image._source.metadata
        # the level of the same size first: Pixel Spacing may be repeated on all levels
        beside = sorted(pyramid.levels, key=lambda level: level.size != image.size)
        found = (
            place_beside(header, other._source.metadata, other._placement)
            for level in beside
            for other in level.images
        )
        view = pyramid.view if beside[0].size == image.size else None
        placement = next(filter(None, found), None) or place(
            header, view, bases, align=align_levels
        )
        bases.append((header, placement))
        placed.append(image._placed(placement))
    return placed


def _fits(level: Level, image: TiledImage, tolerance: float) -> bool:
    """Whether the pixels of an image coincide with those of an image of a level."""
    return any(_coincides(image, other, tolerance) for other in level.images)


def _coincides(image: TiledImage, other: TiledImage, tolerance: float) -> bool:
    if turned_onto(image, other) is None:
        return False
    try:
        here, there = image.geometry, other.geometry
    except MetadataError:
        return True  # a header lacks the position
    return math.dist(here.center, there.center) <= max(tolerance, *there.spacing)
