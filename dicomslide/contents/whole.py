"""What a slide consists of, worked out from headers once and kept by the names of its instances."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

from dicomslide.backends.base import fetch_headers, kept_as
from dicomslide.backends.concatenation import ConcatenatedSource
from dicomslide.backends.part10.file import check_opens
from dicomslide.backends.part10.source import Part10Source
from dicomslide.backends.part10.streams import StreamSource
from dicomslide.contents.arrangement import arrange
from dicomslide.contents.collection import (
    group_by_slide,
    join_concatenations,
    list_slides,
    not_a_slide,
    respaced,
)
from dicomslide.contents.pyramids import choose_pyramid, pyramids_of
from dicomslide.errors import AmbiguousSlideError, MetadataError, MetadataWarning
from dicomslide.header import dicom
from dicomslide.image import TiledImage
from dicomslide.process.registry import Registry
from dicomslide.process.warn import heard, warn

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Sequence

    from dicomslide.backends.base import FrameSource
    from dicomslide.contents.arrangement import Arrangement
    from dicomslide.contents.options import SlideOptions
    from dicomslide.contents.pyramids import GlassPyramid

__all__ = ["Whole", "images_with", "whole_of"]

logger = logging.getLogger(__name__)

PER_IMAGE = 2**13
"""Approximate memory of an image without its header, in bytes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Whole:
    """The instances of a slide, arranged into pyramids, levels, channels and focal planes."""

    others: tuple[FrameSource, ...]
    """Instances that aren't tiled images."""
    beside: frozenset[Hashable]
    """Identities of labels, overviews, and images of unknown flavors."""
    frames: frozenset[str]
    """Frame of Reference UIDs: see :class:`SlideGroup`."""
    pyramids: tuple[GlassPyramid, ...]
    """The pyramids on the glass."""
    pyramid_index: int
    """Which of them is read."""
    arrangement: Arrangement
    """Its images and levels."""
    warnings: tuple[tuple[str, type[Warning]], ...] = ()
    """Text and category of each warning that was given."""

    @property
    def nbytes(self) -> int:
        """Bytes in memory, approximately."""
        channels = [channel for group in self.arrangement.groups for channel in group.channels]
        lists = {id(channel.items): channel.items for channel in channels}
        items = sum(map(dicom.nbytes_of_items, lists.values()))
        return items + PER_IMAGE * len(self.arrangement.images)


_wholes: Registry[tuple[Hashable, ...], Whole] = Registry(
    1024, "arranged slides", lambda whole: whole.nbytes
)
"""By sources and options. A file that has changed is another source."""


def whole_of(sources: Sequence[FrameSource], options: SlideOptions) -> Whole:
    """Return what a slide consists of; of files and objects, it is kept by this process.

    Warnings are given each time.

    Parameters
    ----------
    sources : sequence of FrameSource
        Sources of the instances.
    options : SlideOptions
        Options of the slide.

    Raises
    ------
    NotSlideError
        When none is an image of a slide.
    AmbiguousSlideError
        When they are of several slides, or two images hold the same place.
    MetadataError
        When a header lacks an attribute, or contradicts itself.

    """
    if not all(map(_is_a_name, sources)):
        return _arranged(sources, options)
    is_new = False

    def make() -> Whole:
        nonlocal is_new
        is_new = True
        with heard() as warnings:
            whole = _arranged(sources, options)
        return dataclasses.replace(whole, warnings=tuple(warnings))

    whole = _wholes.get((tuple(sources), tuple(map(kept_as, sources)), options), make)
    if not is_new:
        for message, category in whole.warnings:
            warn(message, category)
    return whole


def _is_a_name(source: FrameSource) -> bool:
    """Whether a source holds neither a header, nor bytes, nor what a caller has opened."""
    if isinstance(source, ConcatenatedSource):
        return all(map(_is_a_name, source.parts))
    return isinstance(source, Part10Source) and not isinstance(source, StreamSource)


def _arranged(sources: Sequence[FrameSource], options: SlideOptions) -> Whole:
    tiled: list[FrameSource] = []
    others: list[FrameSource] = []
    for source in sources:
        (tiled if dicom.is_tiled_image(source.metadata) else others).append(source)
    for source in others:
        if lacking := dicom.lacking_of(source.metadata):
            warn(f"left out: {source.name}: its header lacks {', '.join(lacking)}", MetadataWarning)
        logger.debug("%s: it isn't a tiled image", source.name)
    common: dict[str, Any] = dict(correct_color=options.correct_color, on_error=options.on_error)
    images = [
        TiledImage(source, source.metadata, options.max_frame_cache_size, **common)
        for source in tiled
    ]
    if options.spacing is not None:
        images = respaced(images, options.spacing)
    slides = group_by_slide(images)
    if not slides:
        raise not_a_slide(sources)
    if len(slides) > 1:
        raise AmbiguousSlideError(list_slides(slides))
    (slide,) = slides
    pyramids = tuple(pyramids_of(slide, options.pyramid_tolerance))
    index = choose_pyramid(pyramids, options.pyramid)
    members = set(map(id, pyramids[index].images))
    return Whole(
        others=tuple(others),
        beside=frozenset(image._source.identity for image in slide.others),
        frames=slide.frames,
        pyramids=pyramids,
        pyramid_index=index,
        arrangement=arrange([image for image in images if id(image) in members], options),
    )


def images_with(
    arranged: tuple[TiledImage, ...],
    sources: Sequence[FrameSource],
    later: Collection[int],
    options: SlideOptions,
) -> tuple[TiledImage, ...]:
    """Return the images of a slide with those whose headers weren't read when it was opened.

    Parameters
    ----------
    arranged : tuple of TiledImage
        Images of the other sources.
    sources : sequence of FrameSource
        Sources of all instances.
    later : collection of int
        Indices of those whose headers weren't read; left out, with a warning, where one is broken.
    options : SlideOptions
        Options of the slide.

    """
    fetch_headers(sources)
    kept = []
    for i, source in enumerate(sources):
        try:
            check_opens(source.metadata)
        except MetadataError as error:
            if i not in later:
                raise
            warn(f"left out: {error}", MetadataWarning)
        else:
            kept.append(source)
    whole = whole_of(join_concatenations(kept), options)
    known = {image._source.identity for image in arranged}
    others = (each for each in whole.arrangement.images if each._source.identity not in known)
    return (*arranged, *others)
