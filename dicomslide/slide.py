"""A slide: all images of one glass slide in one frame of reference."""

from __future__ import annotations

import logging
import operator
import warnings
from typing import TYPE_CHECKING, Any, Literal

from dicomslide import utils
from dicomslide.backends.client import frame_source
from dicomslide.collection import (
    group_by_slide,
    is_derived,
    is_volume,
    join_concatenations,
    list_slides,
)
from dicomslide.errors import (
    AmbiguousSlideError,
    LevelNotFoundError,
    MetadataError,
    MetadataWarning,
    NotSlideError,
)
from dicomslide.image import TiledImage
from dicomslide.pyramid import build_pyramid

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    import numpy as np
    import xarray as xr
    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

    from dicomslide.backends.base import FrameSource
    from dicomslide.channel import Channel
    from dicomslide.pyramid import Level
    from dicomslide.reader import OnError

__all__ = ["Slide"]

logger = logging.getLogger(__name__)


class Slide:
    """A digital slide.

    The images that share a Frame of Reference UID and a Container Identifier: those of one or
    more channels and focal planes, at one or more resolutions (levels), with label, overview
    and derived images.

    Parameters
    ----------
    client : dicomweb_client.api.DICOMClient or FrameStore
        Where the frames are.
    image_metadata : sequence of pydicom.dataset.Dataset
        Metadata of the VL Whole Slide Microscopy Image instances of the slide, and of
        Segmentation and Parametric Map instances derived from them.
    max_frame_cache_size : int, default: 6
        Largest number of decoded frames of each image that the process keeps.
    pyramid_tolerance : float, default: 0.1
        Distance in mm by which the centres of levels may differ, if more than a pixel.
    correct_color : bool, default: True
        Whether colours are mapped to sRGB by the ICC profile of the optical path.
    on_error : {"raise", "fill"}, default: "raise"
        Whether a frame that can't be read or decoded raises, or is background with a warning.

    Raises
    ------
    NotSlideError
        When no VOLUME or THUMBNAIL image is among the images.
    AmbiguousSlideError
        When they belong to several slides, or two hold the same place in it.
    MetadataError
        When a header lacks what is needed, or contradicts itself.

    """

    def __init__(
        self,
        client: Any,
        image_metadata: Sequence[Dataset],
        max_frame_cache_size: int = 6,
        pyramid_tolerance: float = 0.1,
        *,
        correct_color: bool = True,
        on_error: OnError = "raise",
    ) -> None:
        self._open(
            join_concatenations([frame_source(client, metadata) for metadata in image_metadata]),
            max_frame_cache_size,
            pyramid_tolerance,
            correct_color,
            on_error,
        )
        self._warn_if_mirrored()

    def _open(
        self,
        sources: tuple[FrameSource, ...],
        max_frame_cache_size: int,
        pyramid_tolerance: float,
        correct_color: bool,
        on_error: OnError,
    ) -> None:
        self._sources = sources
        self._max_frame_cache_size = max_frame_cache_size
        self._pyramid_tolerance = pyramid_tolerance
        self._correct_color = correct_color
        self._on_error: OnError = on_error
        images = []
        for source in self._sources:
            if utils.is_tiled_image(source.metadata):
                images.append(
                    TiledImage(
                        source,
                        source.metadata,
                        max_frame_cache_size,
                        correct_color=correct_color,
                        on_error=on_error,
                    )
                )
            else:
                logger.debug("%s: passed over, for it is no tiled image", source.name)
        volumes = [image for image in images if is_volume(image)]
        if not volumes:
            names = ", ".join(source.name for source in self._sources[:3])
            raise NotSlideError(
                f"{names}{', ...' if len(self._sources) > 3 else ''}: not a slide: no VOLUME or"
                f" THUMBNAIL image among {len(self._sources)} instances"
            )
        slides = group_by_slide(images)
        if len(slides) > 1:
            raise AmbiguousSlideError(list_slides(slides))
        self._images = tuple(images)
        self._pyramid = build_pyramid(volumes, pyramid_tolerance)

    def _warn_if_mirrored(self) -> None:
        try:
            mirrored = self._pyramid.levels[0].image.geometry.handedness > 0
        except MetadataError:
            return
        if mirrored:
            warnings.warn(
                f"{self._pyramid.levels[0].image.name}: its Image Orientation (Slide) is that of a"
                " mirror image, seen through the glass; it is taken literally",
                MetadataWarning,
                stacklevel=3,
            )

    # -- what it is --

    def __reduce__(self) -> tuple[Any, ...]:
        # thin: names only; headers are read again where the slide arrives
        return _rebuild, (
            self._sources,
            self._max_frame_cache_size,
            self._pyramid_tolerance,
            self._correct_color,
            self._on_error,
        )

    def __dask_tokenize__(self) -> tuple[Hashable, ...]:
        identities = tuple(source.identity for source in self._sources)
        return ("dicomslide.Slide", identities, self._correct_color, self._on_error)

    def __repr__(self) -> str:
        rows, columns = self.size
        return (
            f"<Slide {self.container_identifier or self.name}: {self.num_levels} levels of"
            f" {rows} × {columns} pixels and less, {self.num_channels} channels,"
            f" {self.num_focal_planes} focal planes>"
        )

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
        return utils.text(self.metadata, "ContainerIdentifier")

    @property
    def frame_of_reference_uid(self) -> str:
        """Unique identifier of the frame of reference.

        Raises
        ------
        MetadataError
            When the images have none.

        """
        return self.levels[0].image.frame_of_reference_uid

    # -- images --

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels, from the largest to the smallest."""
        return self._pyramid.levels

    @property
    def channels(self) -> tuple[Channel, ...]:
        """The channels, in the order of their items in the first image that has them."""
        return self._pyramid.channels

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
        """THUMBNAIL images of the size of a level, which aren't levels themselves."""
        return self._pyramid.associated

    @property
    def derived_images(self) -> tuple[TiledImage, ...]:
        """Segmentations and parametric maps of the slide."""
        return tuple(image for image in self._images if is_derived(image))

    def _of_flavor(self, has: Any) -> tuple[TiledImage, ...]:
        return tuple(
            image for image in self._images if has(image.metadata) and not is_derived(image)
        )

    @property
    def num_levels(self) -> int:
        """Number of pyramid levels."""
        return len(self.levels)

    @property
    def num_channels(self) -> int:
        """Number of channels."""
        return len(self.channels)

    @property
    def num_focal_planes(self) -> int:
        """Number of focal planes."""
        return len(self.focal_plane_offsets)

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
        """Factor of each level relative to the base: the mean of those of rows and columns."""
        rows, columns = self.size
        return tuple((rows / r + columns / c) / 2 for r, c in self.total_pixel_matrix_dimensions)

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
            there = ", ".join(f"{i} ({r} × {c})" for i, (r, c) in enumerate(
                self.total_pixel_matrix_dimensions))  # fmt: skip
            raise LevelNotFoundError(f"{self.name}: no level {level}; there are {there}")
        return self.levels[level]

    def _place(
        self, level: int, channel_index: int, focal_plane_index: int
    ) -> tuple[TiledImage, int, int]:
        found = self.level(level).places.get((channel_index, focal_plane_index))
        if found is None:
            raise ValueError(
                f"{self.name}: level {level} has no channel {channel_index} in focal plane"
                f" {focal_plane_index}; the slide has {self.num_channels} channels and"
                f" {self.num_focal_planes} focal planes, from 0 on"
            )
        return found

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
            Images sorted by size in descending order

        Raises
        ------
        ValueError
            When there is no such channel or focal plane

        """
        places = [
            level.places[channel_index, focal_plane_index]
            for level in self.levels
            if (channel_index, focal_plane_index) in level.places
        ]
        if not places:
            self._place(0, channel_index, focal_plane_index)
        return tuple(image for image, _, _ in places)

    # -- pixels --

    def get_image_region(
        self,
        offset: tuple[int, int],
        level: int,
        size: tuple[int, int],
        channel_index: int = 0,
        focal_plane_index: int = 0,
    ) -> NDArray[Any]:
        """Get image region.

        Parameters
        ----------
        offset : tuple of int
            Zero-based (row, column) of the region's first pixel in the total pixel matrix of
            the base level, whatever the level that is read
        level : int
            Zero-based index into pyramid levels
        size : tuple of int
            Rows and columns of the requested region at `level`
        channel_index, focal_plane_index : int, default: 0
            Zero-based indices into channels and focal planes

        Returns
        -------
        numpy.ndarray
            Shape (rows, columns, samples), exactly as requested; outside of the matrix is
            background

        Raises
        ------
        LevelNotFoundError
            When there is no such level
        ValueError
            When there is no such channel or focal plane

        """
        image, channel, plane = self._place(level, channel_index, focal_plane_index)
        at_level = (
            offset[0] * image.size[0] // self.size[0],
            offset[1] * image.size[1] // self.size[1],
        )
        return image.get_image_region(at_level, size, channel, plane)

    def get_slide_region(
        self,
        offset: tuple[float, float],
        level: int,
        size: tuple[float, float],
        channel_index: int = 0,
        focal_plane_index: int = 0,
    ) -> NDArray[Any]:
        """Get slide region.

        Parameters
        ----------
        offset : tuple of float
            (x, y) of the region's corner with the lowest coordinates in mm
        level : int
            Zero-based index into pyramid levels
        size : tuple of float
            Width and height along X and Y in mm
        channel_index, focal_plane_index : int, default: 0
            Zero-based indices into channels and focal planes

        Returns
        -------
        numpy.ndarray
            Shape (rows, columns, samples), upright: columns run along X, rows against Y;
            outside of the matrix is background

        Raises
        ------
        LevelNotFoundError
            When there is no such level
        ValueError
            When there is no such channel or focal plane

        """
        image, channel, plane = self._place(level, channel_index, focal_plane_index)
        return image.get_slide_region(offset, size, channel, plane)

    def thumbnail(
        self, size: int = 1024, *, channel_index: int = 0, focal_plane_index: int = 0
    ) -> NDArray[np.uint8]:
        """Return an upright picture of the whole slide, as a screen shows it.

        Parameters
        ----------
        size : int, default: 1024
            Pixels along the longer edge; never more than the base level has.
        channel_index, focal_plane_index : int, default: 0
            Zero-based indices into channels and focal planes

        Returns
        -------
        numpy.ndarray
            Shape (rows, columns, 3), or (rows, columns) where the slide is grey, uint8

        Raises
        ------
        ValueError
            When there is no such channel or focal plane, or `size` is less than one

        """
        from dicomslide.picture import picture_of

        if size < 1:
            raise ValueError(f"a picture of {size} pixels along its longer edge isn't possible")
        levels = range(self.num_levels)
        enough = [level for level in levels if max(self.levels[level].size) >= size]
        place = self._place(max(enough, default=0), channel_index, focal_plane_index)
        return picture_of(place[0], size, *place[1:])

    # -- labelled --

    def to_dataset(
        self,
        level: int = 0,
        *,
        chunks: Literal["frames", "auto"] | int = "frames",
        frame: Literal["slide", "matrix"] = "slide",
        squeeze: bool = True,
    ) -> xr.Dataset:
        """Return a level as a labelled dataset of dask arrays.

        Parameters
        ----------
        level : int, default: 0
            Zero-based index into pyramid levels.
        chunks : {"frames", "auto"} or int, default: "frames"
            See :meth:`TotalPixelMatrix.to_dask`.
        frame : {"slide", "matrix"}, default: "slide"
            Upright, with dims y and x in mm; or rows and columns as stored.
        squeeze : bool, default: True
            Whether dims of size one, other than rows and columns, become scalar coordinates.

        Returns
        -------
        xarray.Dataset
            With the variable ``image``, dims (channel, z, y, x, sample).

        Raises
        ------
        LevelNotFoundError
            When there is no such level.

        """
        from dicomslide.labelled import level_dataset
        from dicomslide.stack import dask_data

        return level_dataset(self, level, data=dask_data(chunks), frame=frame, squeeze=squeeze)

    def to_datatree(
        self,
        *,
        chunks: Literal["frames", "auto"] | int = "frames",
        frame: Literal["slide", "matrix"] = "slide",
        squeeze: bool = True,
        associated: bool = False,
        include_patient: bool = False,
    ) -> xr.DataTree:
        """Return the slide as a tree of its levels, as labelled dask arrays.

        Parameters
        ----------
        chunks, frame, squeeze
            See :meth:`to_dataset`.
        associated : bool, default: False
            Whether label, overview and thumbnail are nodes beside the levels.
        include_patient : bool, default: False
            Whether attributes that identify the patient are among the attributes.

        Returns
        -------
        xarray.DataTree
            With the nodes ``level_0``, ``level_1``, ...

        """
        import xarray as xr

        from dicomslide.labelled import slide_groups
        from dicomslide.stack import dask_data

        groups = slide_groups(
            self,
            data=dask_data(chunks),
            frame=frame,
            squeeze=squeeze,
            associated=associated,
            include_patient=include_patient,
        )
        return xr.DataTree.from_dict(groups, name=self.container_identifier)


def _rebuild(
    sources: tuple[FrameSource, ...],
    max_frame_cache_size: int,
    pyramid_tolerance: float,
    correct_color: bool,
    on_error: OnError,
) -> Slide:
    slide = Slide.__new__(Slide)
    slide._open(sources, max_frame_cache_size, pyramid_tolerance, correct_color, on_error)
    return slide
