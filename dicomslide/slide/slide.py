"""A slide: all images of one glass slide in one frame of reference."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from dicomslide.backends.dicomweb.client import frame_source
from dicomslide.contents.collection import join_concatenations
from dicomslide.contents.options import SlideOptions
from dicomslide.contents.places import turned_onto
from dicomslide.header import dicom
from dicomslide.header.geometry import AS_STORED, SlideGrid
from dicomslide.header.resolution import spacing_in_mm
from dicomslide.process.warn import once
from dicomslide.slide.views import SlideViews

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

    from dicomslide.annotation.group import AnnotationGroup
    from dicomslide.header.resolution import Spacing
    from dicomslide.readers.matrix_reader import OnError

__all__ = ["Slide"]


class Slide(SlideViews):
    """A digital slide.

    It consists of the images with one Frame of Reference UID and one Container Identifier: images
    of one or more channels and focal planes at one or more resolutions (levels), label and
    overview, and the segmentations and parametric maps derived from them. If there are derived
    images only, the levels are the sizes of these.

    Indices of channels are consecutive: optical paths first, then the segments and parameters of
    each derived series. Rows and columns are those of the total pixel matrices as stored; x and y
    are millimetres on the slide (PS3.3 C.8.12.2.1).

    Parameters
    ----------
    client : dicomweb_client.api.DICOMClient or FrameStore
        Source of the frames.
    image_metadata : sequence of pydicom.dataset.Dataset
        Metadata of the VL Whole Slide Microscopy Image instances of the slide, and of
        Segmentation, Parametric Map and Microscopy Bulk Simple Annotations instances derived
        from them.
    max_frame_cache_size : int or None, default: 6
        Upper bound on the decoded frames of each image that the process caches; None bounds them
        by the option `frame_cache_bytes` only.
    pyramid_tolerance : float, default: 0.1
        Largest distance in mm between the centres of levels, if larger than a pixel.
    correct_color : bool, default: True
        Whether colours are mapped to sRGB by the ICC profile of the optical path.
    on_error : {"raise", "fill"}, default: "raise"
        Whether a frame that can't be read or decoded raises, or is replaced by background with a
        warning.
    align_levels : bool, default: True
        Whether levels with the Total Pixel Matrix Origin of the base are aligned to its corner, to
        which their pixels correspond; False uses each header unchanged.
    pyramid : int or str, optional
        Pyramid to read if the glass has several (regions scanned separately; a stack, and an image
        with extended depth of field): its index, where 0 is the largest; its Pyramid UID; or the
        SOP Instance UID, path or name of one of its files. By default the largest is read, and a
        warning lists all.
    spacing : float or str, optional
        Spacing of the base level, for headers without one or with a wrong one: a number in mm, or
        text such as ``"0.25 um"``. Other levels and derived images are scaled in proportion.
        Attributes of arrays contain the given spacing and that of the headers.

    Raises
    ------
    NotSlideError
        When there is no VOLUME or THUMBNAIL image, nor an image derived from one.
    AmbiguousSlideError
        When images belong to several slides, or two images have the same channel, focal plane and
        level.
    MetadataError
        When a header lacks a required attribute, or contradicts itself.

    Examples
    --------
    >>> slide = dicomslide.open_slide("slide/")
    >>> slide.get_slide_region(offset=(16, 29), level=0, size=(0.5, 0.5))
    >>> slide.find_segments(label="tumour")

    """

    def __init__(
        self,
        client: Any,
        image_metadata: Sequence[Dataset],
        max_frame_cache_size: int | None = 6,
        pyramid_tolerance: float = 0.1,
        *,
        correct_color: bool = True,
        on_error: OnError = "raise",
        align_levels: bool = True,
        pyramid: int | str | None = None,
        spacing: Spacing | None = None,
    ) -> None:
        sources = [frame_source(client, metadata) for metadata in image_metadata]
        options = SlideOptions(
            max_frame_cache_size=max_frame_cache_size,
            pyramid_tolerance=pyramid_tolerance,
            correct_color=correct_color,
            on_error=on_error,
            align_levels=align_levels,
            pyramid=pyramid,
            spacing=None if spacing is None else spacing_in_mm(spacing),
        )
        super().__init__(join_concatenations(sources), options)

    def __repr__(self) -> str:
        from dicomslide.contents.description import in_words

        return f"<Slide {in_words(self)}>"

    def _repr_html_(self) -> str:
        from dicomslide.display.html import PICTURE_SIZE, slide_html
        from dicomslide.display.tables import channel_label

        level = next(
            (level for level in reversed(self.levels) if max(level.size) >= PICTURE_SIZE),
            self.levels[0],
        )
        # the first channel and plane of the level
        (channel, plane), place = min(level._places.items(), key=lambda each: each[0])
        image, *indices = place

        def picture(size: int) -> NDArray[np.uint8]:
            return image._picture(size, *indices)

        caption = channel_label(self.channels, self.focal_plane_offsets, channel, plane)
        return slide_html(self.describe(), image.describe(), picture, caption)

    def describe(self) -> dict[str, Any]:
        """Return the contents of the slide as plain values; reads headers only.

        Returns
        -------
        dict
            Values of JSON types: attributes of the slide, its pyramids, levels, associated and
            derived images, channels, focal planes (µm), labels of segments, and annotations.

        """
        from dicomslide.contents.description import describe

        return describe(self)

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
            Zero-based (row, column) of a pixel of the base level, for any `level`: the region
            begins with the pixel of `level` that contains the centre of this pixel
        level : int
            Zero-based index into pyramid levels
        size : tuple of int
            Rows and columns of the requested region at `level`
        channel_index, focal_plane_index : int, default: 0
            Zero-based indices into channels and focal planes

        Returns
        -------
        numpy.ndarray
            Shape (rows, columns, samples), with the requested rows and columns; pixels outside the
            matrix are background. Rows and columns have the directions of the level's image, also
            if the image of the channel is stored in another orientation

        Raises
        ------
        LevelNotFoundError
            When there is no such level
        TypeError
            When an offset or a size isn't an integer
        ValueError
            When there is no such channel or focal plane, or a size is negative

        """
        image, channel, plane = self._place(level, channel_index, focal_plane_index)
        at_level = self._offset_at(level, dicom.two_integers(offset, "offset"))
        size = dicom.two_integers(size, "size", least=0)
        reader = image.get_total_pixel_matrix(channel, plane)._reader
        shown = self.levels[level].image
        if image is shown:
            return reader.read_box(at_level, size)
        orientation = turned_onto(image, shown) or AS_STORED
        return reader.read_grid(SlideGrid.box(at_level, size).of_turned(orientation, image.size))

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
            Shape (rows, columns, samples), upright: columns run along X, rows against Y; pixels
            outside the matrix are background. The shape depends on `size` only

        Raises
        ------
        LevelNotFoundError
            When there is no such level
        ValueError
            When there is no such channel or focal plane, or a size is negative
        MetadataError
            When the header doesn't place the image on the slide

        """
        image, channel, plane = self._place(level, channel_index, focal_plane_index)
        return image.get_slide_region(offset, size, channel, plane)

    def get_slide_region_for_annotation(
        self,
        annotation: Any,
        level: int,
        channel_index: int = 0,
        padding: float | Sequence[float] = 0.0,
        *,
        padding_mm: float | Sequence[float] = 0.0,
    ) -> NDArray[Any]:
        """Get slide region defined by a graphic annotation.

        Parameters
        ----------
        annotation : highdicom.sr.Scoord3DContentItem
            Graphic annotation that defines the region of interest in the slide coordinate
            system: POINT, MULTIPOINT, POLYLINE, POLYGON or ELLIPSE
        level : int
            Zero-based index into pyramid levels
        channel_index : int, default: 0
            Zero-based index into channels
        padding : int or sequence of int, default: 0
            Pixels of the level that are added: one number for all borders; two for left/right and
            top/bottom; or four for left (−X), top (+Y), right (+X) and bottom (−Y)
        padding_mm : float or sequence of float, default: 0.0
            The same in mm; both are added

        Returns
        -------
        numpy.ndarray
            Shape (rows, columns, samples), upright: columns run along X, rows against Y. The region
            of the padded bounding box, as of :meth:`get_slide_region`, with at least one pixel and
            its padding. It is read from the focal plane of the channel that is nearest to the z of
            the annotation

        Raises
        ------
        LevelNotFoundError
            When there is no such level
        ValueError
            When the annotation is an ELLIPSOID or in another frame of reference, `padding` contains
            a number that isn't whole, or there is no such channel

        """
        from dicomslide.annotation.group import region_of_annotation

        here = self.level(level)
        # a segmentation may have some of the slide's planes, or others
        offset_of = {
            plane: image._layout.planes.offset(of_image, own)
            for (channel, plane), (image, of_image, own) in here._places.items()
            if channel == channel_index
        } or dict(enumerate(self.focal_plane_offsets))
        region = region_of_annotation(
            annotation,
            frames_of_reference=self._frames or {self.frame_of_reference_uid},
            spacing=here.image.geometry.slide_spacing,
            planes=tuple(offset_of.values()),
            padding=padding,
            padding_mm=padding_mm,
        )
        nearest = tuple(offset_of)[region.focal_plane_index]
        return self.get_slide_region(region.offset, level, region.size, channel_index, nearest)

    def annotations(self) -> tuple[AnnotationGroup, ...]:
        """Read the Microscopy Bulk Simple Annotations of the slide (PS3.3 A.87).

        Returns
        -------
        tuple of dicomslide.AnnotationGroup
            Points, polygons, ... as columns in mm of the slide, with label, property codes and
            measurements

        Raises
        ------
        MetadataError
            When annotations contradict themselves, or refer to an image that isn't available

        """
        from dicomslide.annotation.bulk import find_annotation_groups

        with once(self._warned):
            groups = find_annotation_groups(self._others, self._annotated, self._frames)
        return tuple(dataclasses.replace(group, slide=self) for group in groups)

    # -- between pixels and millimetres --

    def get_pixel_indices(
        self,
        offset: tuple[float, float],
        level: int,
        channel_index: int = 0,
        focal_plane_index: int = 0,
    ) -> tuple[int, int]:
        """Get indices into total pixel matrix for a given slide position.

        Parameters
        ----------
        offset : tuple of float
            (x, y) in the slide coordinate system in mm
        level : int
            Zero-based index into pyramid levels
        channel_index, focal_plane_index : int, default: 0
            Zero-based indices into channels and focal planes

        Returns
        -------
        tuple of int
            Zero-based (row, column) of the pixel at the position; negative, or beyond the matrix,
            outside the imaged area

        Raises
        ------
        LevelNotFoundError
            When there is no such level
        ValueError
            When there is no such channel or focal plane

        """
        image, _, _ = self._place(level, channel_index, focal_plane_index)
        return image.get_pixel_indices(offset)

    def get_slide_offset(
        self,
        pixel_indices: tuple[int, int],
        level: int,
        channel_index: int = 0,
        focal_plane_index: int = 0,
    ) -> tuple[float, float]:
        """Get slide coordinates for a given total pixel matrix position.

        Parameters
        ----------
        pixel_indices : tuple of int
            Zero-based (row, column) in the total pixel matrix
        level : int
            Zero-based index into pyramid levels
        channel_index, focal_plane_index : int, default: 0
            Zero-based indices into channels and focal planes

        Returns
        -------
        tuple of float
            (x, y) of the pixel's centre in mm

        Raises
        ------
        LevelNotFoundError
            When there is no such level
        ValueError
            When there is no such channel or focal plane

        """
        image, _, _ = self._place(level, channel_index, focal_plane_index)
        return image.get_slide_offset(pixel_indices)

    def map_pixel_indices_to_slide_coordinates(
        self,
        pixel_indices: NDArray[Any],
        level: int,
        channel_index: int = 0,
        focal_plane_index: int = 0,
    ) -> NDArray[np.float64]:
        """Map pixel indices to slide coordinates.

        Parameters
        ----------
        pixel_indices : numpy.ndarray
            Zero-based (row, column) indices into the total pixel matrix, shape (n, 2)
        level : int
            Zero-based index into pyramid levels
        channel_index, focal_plane_index : int, default: 0
            Zero-based indices into channels and focal planes

        Returns
        -------
        numpy.ndarray
            (x, y, z) in the slide coordinate system in mm, shape (n, 3); z is that of the
            focal plane

        Raises
        ------
        LevelNotFoundError
            When there is no such level
        ValueError
            When there is no such channel or focal plane

        """
        image, channel, plane = self._place(level, channel_index, focal_plane_index)
        points = image.map_pixel_indices_to_slide_coordinates(pixel_indices)
        points[:, 2] = image._layout.planes.offset(channel, plane) / 1000
        return points

    def map_slide_coordinates_to_pixel_indices(
        self,
        slide_coordinates: NDArray[Any],
        level: int,
        channel_index: int = 0,
        focal_plane_index: int = 0,
    ) -> NDArray[np.int64]:
        """Map slide coordinates to pixel indices.

        Parameters
        ----------
        slide_coordinates : numpy.ndarray
            (x, y, z) in the slide coordinate system in mm, shape (n, 3); z isn't used
        level : int
            Zero-based index into pyramid levels
        channel_index, focal_plane_index : int, default: 0
            Zero-based indices into channels and focal planes

        Returns
        -------
        numpy.ndarray
            Zero-based (row, column) indices into the total pixel matrix, shape (n, 2)

        Raises
        ------
        LevelNotFoundError
            When there is no such level
        ValueError
            When there is no such channel or focal plane

        """
        image, _, _ = self._place(level, channel_index, focal_plane_index)
        return image.map_slide_coordinates_to_pixel_indices(slide_coordinates)
