"""Contents of a slide: its images by level, channel and focal plane."""

from __future__ import annotations

import logging
import math
import operator
from typing import TYPE_CHECKING, Any, TypeVar

from dicomslide import utils
from dicomslide.backends.base import fetch_headers
from dicomslide.contents.collection import (
    is_derived,
)
from dicomslide.contents.levels import affine_from_base
from dicomslide.contents.whole import images_with, whole_of
from dicomslide.enum import ChannelTypes
from dicomslide.errors import (
    LevelNotFoundError,
    MetadataError,
    MetadataWarning,
)
from dicomslide.header import dicom
from dicomslide.header.channels import Channels
from dicomslide.header.geometry import ROUNDING_NOISE
from dicomslide.header.lookup import ChannelsAndPlanes
from dicomslide.process.identity import Identified
from dicomslide.process.warn import once, silent, warn

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterable, Sequence

    from pydicom.dataset import Dataset
    from pydicom.sr.coding import Code

    from dicomslide.backends.base import FrameSource
    from dicomslide.contents.levels import Level
    from dicomslide.contents.options import SlideOptions
    from dicomslide.contents.pyramids import GlassPyramid
    from dicomslide.image import TiledImage

__all__ = ["SlideContents", "slide_of"]

logger = logging.getLogger(__name__)

S = TypeVar("S", bound="SlideContents")


class SlideContents(ChannelsAndPlanes, Identified):
    """Images of a slide by level, channel and focal plane: base class of :class:`dicomslide.Slide`.

    Parameters
    ----------
    sources : sequence of FrameSource
        Sources of the instances.
    options : SlideOptions
        Options of the slide.
    warned : iterable of str, default: ()
        Messages of warnings that aren't given again.
    later : collection of int, default: ()
        Indices of sources that are known to be labels, overviews and the like of this slide: their
        headers are read when such images are asked for.

    """

    def __init__(
        self,
        sources: Sequence[FrameSource],
        options: SlideOptions,
        warned: Iterable[str] = (),
        later: Collection[int] = (),
    ) -> None:
        self._sources = tuple(sources)
        self._options = options
        self._warned = set(warned)
        self._later = frozenset(later)
        with once(self._warned):
            self._arrange()

    def _arrange(self) -> None:
        """Arrange the instances into levels, channels and focal planes."""
        sources = [each for i, each in enumerate(self._sources) if i not in self._later]
        fetch_headers(sources)
        whole = whole_of(sources, self._options)
        self._others = whole.others
        self._beside = self._later.union(
            i for i, each in enumerate(self._sources) if each.identity in whole.beside
        )
        self._frames = whole.frames
        self._pyramids, self._pyramid_index = whole.pyramids, whole.pyramid_index
        if len(self._pyramids) > 1:  # fixed, so that copies read the same one
            self._options = self._options.changed(pyramid=self._pyramid_index)
        self._arranged = whole.arrangement.images
        self._pyramid = whole.arrangement.pyramid
        self._groups = whole.arrangement.groups  # channels by variable of the tree
        self._from_base: dict[int, list[list[float]]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # sources and options only: headers are read again when the slide is unpickled
        return _unpickled, (type(self), self._sources, self._options, tuple(sorted(self._beside)))

    def __dask_tokenize__(self) -> tuple[Hashable, ...]:
        options = self._options
        identities = tuple(source.identity for source in self._sources)
        return (
            "dicomslide.Slide",
            identities,
            options.correct_color,
            options.on_error,
            options.pyramid_tolerance,
            options.align_levels,
            options.spacing,
            self._pyramid_index,
        )

    def _reopened(self: S, **options: Any) -> S:
        """Return a slide of the same instances with other options; itself if none differs.

        Parameters
        ----------
        **options
            Arguments of :class:`dicomslide.Slide`; those that are None are unchanged.

        """
        changed = self._options.changed(**options)
        if changed == self._options:
            return self
        return slide_of(type(self), self._sources, changed, self._warned, self._later)

    @property
    def name(self) -> str:
        """File name or URL of the base level."""
        return self.levels[0].image.name

    @property
    def metadata(self) -> Dataset:
        """Metadata of the base level."""
        return self.levels[0].image.metadata

    @property
    def container_identifier(self) -> str | None:
        """Container Identifier, or None."""
        return self._said("ContainerIdentifier")

    @property
    def frame_of_reference_uid(self) -> str:
        """Frame of Reference UID.

        Raises
        ------
        MetadataError
            When no image of the levels has one.

        """
        uid = self._said("FrameOfReferenceUID")
        if uid is None:
            raise MetadataError(f"{self.name}: no Frame of Reference UID")
        return uid

    def _said(self, keyword: str) -> str | None:
        """Return the value of an element in the first image of the levels that has it, or None."""
        images = (image for level in self.levels for image in level.images)
        return next(filter(None, (dicom.text(image.metadata, keyword) for image in images)), None)

    @property
    def pyramids(self) -> tuple[GlassPyramid, ...]:
        """The pyramids on the glass, from the largest to the smallest.

        The slide reads the one of :attr:`pyramid_index`; the argument `pyramid` of
        :func:`open_slide` selects another.
        """
        return self._pyramids

    @property
    def pyramid_index(self) -> int:
        """Zero-based index, among :attr:`pyramids`, of the pyramid that the slide reads."""
        return self._pyramid_index

    # -- images --

    @property
    def _images(self) -> tuple[TiledImage, ...]:
        """All images, with their placements."""
        if self._later:
            with once(self._warned):
                self._arranged = images_with(
                    self._arranged, self._sources, self._later, self._options
                )
            self._later = frozenset()
        return self._arranged

    @property
    def _annotated(self) -> tuple[TiledImage, ...]:
        """Images to which annotations may refer: all if there may be annotations."""
        return self._images if self._others else ()

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels, from the largest to the smallest."""
        return self._pyramid.levels

    @property
    def num_levels(self) -> int:
        """Number of pyramid levels, from the highest resolution to the lowest."""
        return len(self.levels)

    @property
    def channels(self) -> Channels:
        """The channels: optical paths, then segments and parameters, series by series.

        Channels of a series are in the order of their items in the first image that has them.
        """
        return Channels(channel for group in self._groups for channel in group.channels)

    @property
    def annotation_labels(self) -> tuple[str, ...]:
        """Annotation Group Labels; one Series Description for each large or remote file."""
        from dicomslide.annotation.bulk import labels_of_groups

        return labels_of_groups(self._others, self._annotated, self._frames)

    @property
    def focal_plane_offsets(self) -> tuple[float, ...]:
        """Offset of each focal plane from the slide surface along Z, in µm."""
        return self._pyramid.planes

    @property
    def label_images(self) -> tuple[TiledImage, ...]:
        """LABEL images of the slide."""
        return self._of_flavor(utils.is_label_image)

    @property
    def overview_images(self) -> tuple[TiledImage, ...]:
        """OVERVIEW images of the slide."""
        return self._of_flavor(utils.is_overview_image)

    @property
    def thumbnail_images(self) -> tuple[TiledImage, ...]:
        """THUMBNAIL images that have the size of a level: they aren't levels themselves."""
        return self._pyramid.associated

    @property
    def derived_images(self) -> tuple[TiledImage, ...]:
        """Segmentations and parametric maps of the slide."""
        return tuple(image for image in self._arranged if is_derived(image))

    def _of_flavor(self, has: Any) -> tuple[TiledImage, ...]:
        return tuple(
            image for image in self._images if has(image.metadata) and not is_derived(image)
        )

    def get_volume_images(
        self, channel_index: int = 0, focal_plane_index: int = 0
    ) -> tuple[TiledImage, ...]:
        """Get VOLUME or THUMBNAIL images for a channel and focal plane.

        Parameters
        ----------
        channel_index, focal_plane_index : int, default: 0
            Zero-based indices into channels and focal planes

        Returns
        -------
        tuple of dicomslide.TiledImage
            Images sorted by size in descending order; for segments and parameters, the derived
            images, including those that aren't on the grid of a level

        Raises
        ------
        ValueError
            When there is no such channel or focal plane

        """
        channel = self._channel(channel_index)
        (group,) = (group for group in self._groups if channel_index in group.indices)
        key = (channel_index, focal_plane_index)
        found = tuple(
            image
            for image, level in group.images
            if (level is None and channel.identifier in [c.identifier for c in image.channels])
            or (level is not None and self._holds(level, key, image))
        )
        if not found:
            self._check(focal_plane_index, self.num_focal_planes, "focal plane")
            raise ValueError(
                f"{self.name}: channel {channel_index} has no image in focal plane"
                f" {focal_plane_index}"
            )
        return found

    def _holds(self, level: int, key: tuple[int, int], image: TiledImage) -> bool:
        place = self.levels[level]._places.get(key)
        return place is not None and place[0] is image

    def level(self, level: int) -> Level:
        """Return a level.

        Parameters
        ----------
        level : int
            Zero-based index; 0 is the largest.

        Raises
        ------
        LevelNotFoundError
            When there is no such level.

        """
        if not 0 <= operator.index(level) < self.num_levels:
            there = ", ".join(
                f"{i} ({each.size[0]} × {each.size[1]})" for i, each in enumerate(self.levels)
            )
            raise LevelNotFoundError(f"{self.name}: no level {level}; there are {there}")
        return self.levels[level]

    def _place(
        self, level: int, channel_index: int, focal_plane_index: int
    ) -> tuple[TiledImage, int, int]:
        """Return the image of a channel and focal plane at a level, and their indices in it."""
        places = self.level(level)._places
        found = places.get((channel_index, focal_plane_index))
        if found is not None:
            return found
        channel = self._channel(channel_index)
        planes = sorted({plane for index, plane in places if index == channel_index})
        if planes:
            raise ValueError(
                f"{self.name}: channel {channel_index} has no focal plane {focal_plane_index} at"
                f" level {level}; there are {planes}"
            )
        there = [
            i
            for i, each in enumerate(self.levels)
            if any(index == channel_index for index, _ in each._places)
        ]
        where = f"at levels {there}" if there else "on the grid of no level"
        raise ValueError(
            f"{self.name}: channel {channel_index} ({channel.type.value} {channel.identifier!r})"
            f" has no pixels at level {level}; it has some {where}, in the images of"
            f" get_volume_images(channel_index={channel_index})"
        )

    def _offset_at(self, level: int, offset: tuple[int, int]) -> tuple[int, int]:
        """Return the (row, column) of the pixel of a level at a pixel of the base."""
        affine = self._from_base.get(level)
        if affine is None:
            base, image = self.levels[0].image, self.levels[level].image
            affine = self._from_base[level] = affine_from_base(base, image)
        row, column = (
            math.floor(down * offset[0] + across * offset[1] + first + 0.5 + ROUNDING_NOISE)
            for down, across, first in affine
        )
        return row, column

    # -- sizes --

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the largest total pixel matrix."""
        return self.levels[0].size

    @property
    def total_pixel_matrix_dimensions(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of the total pixel matrices at each level."""
        return tuple(level.size for level in self.levels)

    @property
    def downsampling_factors(self) -> tuple[float, ...]:
        """Downsampling factor of each level: the mean of those along rows and columns."""
        rows, columns = self.size
        return tuple((rows / r + columns / c) / 2 for r, c in self.total_pixel_matrix_dimensions)

    @property
    def pixel_spacings(self) -> tuple[tuple[float, float], ...]:
        """Distance in mm between neighbouring pixels along a row and along a column, by level.

        The order is the reverse of that of Pixel Spacing (PS3.3 10.7.1.3).

        Raises
        ------
        MetadataError
            When a header lacks Pixel Spacing, and attributes to derive it from.

        """
        spacings = (level.image.pixel_spacing for level in self.levels)
        return tuple((along_row, along_column) for along_column, along_row in spacings)

    @property
    def physical_offset(self) -> tuple[float, float]:
        """Lowest (x, y), over all levels, of the centre of the first pixel, in mm.

        Raises
        ------
        MetadataError
            When a header lacks the orientation or the origin.

        """
        offsets = [image.physical_offset for level in self.levels for image in level.images]
        return min(x for x, _ in offsets), min(y for _, y in offsets)

    @property
    def physical_size(self) -> tuple[float, float]:
        """Largest extent along X and Y, over all levels, from outer edge to outer edge, in mm.

        Raises
        ------
        MetadataError
            When a header lacks orientation or spacing.

        """
        sizes = [image.physical_size for level in self.levels for image in level.images]
        return max(width for width, _ in sizes), max(height for _, height in sizes)

    @property
    def physical_bounds(self) -> tuple[float, float, float, float]:
        """(x_min, y_min, x_max, y_max) of the outer edges of all levels, in mm.

        Raises
        ------
        MetadataError
            When a header lacks the orientation, the spacing or the origin.

        """
        bounds = [image.physical_bounds for level in self.levels for image in level.images]
        x_min, y_min, x_max, y_max = zip(*bounds, strict=True)
        return min(x_min), min(y_min), max(x_max), max(y_max)

    # -- channels --

    def get_channel_type(self, channel_index: int) -> ChannelTypes:
        """Get type of a channel.

        Parameters
        ----------
        channel_index : int
            Zero-based index into channels

        Returns
        -------
        dicomslide.ChannelTypes
            Channel type

        Raises
        ------
        ValueError
            When no channel is found for `channel_index`

        """
        return self._channel(channel_index).type

    def get_channel_index(self, channel_identifier: str, channel_type: str | ChannelTypes) -> int:
        """Get index of a channel.

        Parameters
        ----------
        channel_identifier : str
            Optical Path Identifier, Segment Number or LUT Label
        channel_type : str or dicomslide.ChannelTypes
            Channel type

        Returns
        -------
        int
            Zero-based index into channels; with a warning, the first of several channels with
            the identifier

        Raises
        ------
        ValueError
            When no channel is found for `channel_identifier` and `channel_type`

        """
        kind = ChannelTypes(channel_type)
        of_type = [
            (index, channel.identifier)
            for index, channel in enumerate(self.channels)
            if channel.type is kind
        ]
        found = [index for index, name in of_type if name == str(channel_identifier)]
        if not found:
            raise ValueError(
                f"{self.name}: no channel {channel_identifier!r} of type {kind.value}; there are"
                f" {[name for _, name in of_type]}"
            )
        if len(found) > 1:
            warn(
                f"{self.name}: channels {found} all have the identifier {channel_identifier!r};"
                f" channel {found[0]} is used",
                MetadataWarning,
            )
        return found[0]

    def find_optical_paths(
        self,
        identifier: str | None = None,
        description: str | None = None,
        illumination_wavelength: float | None = None,
        specimen_stain: Code | None = None,
    ) -> tuple[int, ...]:
        """Find optical paths.

        Parameters
        ----------
        identifier : str, optional
            Optical Path Identifier
        description : str, optional
            Optical Path Description
        illumination_wavelength : float, optional
            Illumination Wave Length in nm
        specimen_stain : pydicom.sr.coding.Code or highdicom.sr.CodedConcept, optional
            Stain of the specimen

        Returns
        -------
        tuple of int
            Zero-based indices, ascending, of the channels that match all given attributes

        """
        return tuple(
            index
            for index, channel in enumerate(self.channels)
            if channel.type is ChannelTypes.OPTICAL_PATH
            and utils.does_optical_path_item_match(
                channel.item, identifier, description, illumination_wavelength
            )
            and (specimen_stain is None or self._is_stained(index, specimen_stain))
        )

    def _is_stained(self, channel_index: int, stain: Code) -> bool:
        own = range(channel_index, channel_index + 1)
        return any(
            utils.does_specimen_description_item_match(item, stain)
            for level in self.levels
            for image in level._images_of(own)
            for item in dicom.items(image.metadata, "SpecimenDescriptionSequence")
        )

    def find_segments(
        self,
        number: int | None = None,
        label: str | None = None,
        property_category: Code | None = None,
        property_type: Code | None = None,
    ) -> tuple[int, ...]:
        """Find segments.

        Parameters
        ----------
        number : int, optional
            Segment Number
        label : str, optional
            Segment Label
        property_category : pydicom.sr.coding.Code or highdicom.sr.CodedConcept, optional
            Segmented Property Category
        property_type : pydicom.sr.coding.Code or highdicom.sr.CodedConcept, optional
            Segmented Property Type

        Returns
        -------
        tuple of int
            Zero-based indices, ascending, of the channels that match all given attributes

        """
        return tuple(
            index
            for index, channel in enumerate(self.channels)
            if channel.type is ChannelTypes.SEGMENT
            and utils.does_segment_item_match(
                channel.item, number, label, property_category, property_type
            )
        )


def slide_of(
    kind: type[S],
    sources: Sequence[FrameSource],
    options: SlideOptions,
    warned: Iterable[str] = (),
    later: Collection[int] = (),
) -> S:
    """Return a slide of the class `kind`: see :class:`SlideContents`."""
    slide = kind.__new__(kind)
    SlideContents.__init__(slide, sources, options, warned, later)
    return slide


def _unpickled(
    kind: type[S],
    sources: Sequence[FrameSource],
    options: SlideOptions,
    later: Collection[int] = (),
) -> S:
    with silent():  # the pickled slide has given the warnings
        return slide_of(kind, sources, options, later=later)
