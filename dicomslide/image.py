"""A tiled image: its channels, focal planes, geometry and total pixel matrices."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide import utils
from dicomslide.backends.base import layout_of
from dicomslide.backends.dicomweb.client import frame_source
from dicomslide.enum import ChannelTypes
from dicomslide.errors import MetadataError
from dicomslide.header.channels import Channels
from dicomslide.header.geometry import SlideGeometry, SlideGrid
from dicomslide.header.layout import ImageLayout, grid_of
from dicomslide.header.lookup import ChannelsAndPlanes
from dicomslide.header.placement import AS_STATED, Placement, geometry_of, spacing_of, with_spacing
from dicomslide.matrix import TotalPixelMatrix
from dicomslide.options import check_memory
from dicomslide.process.identity import Identified
from dicomslide.readers.matrix_reader import OnError, check_on_error

if TYPE_CHECKING:
    from collections.abc import Hashable

    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

    from dicomslide.backends.base import FrameSource

__all__ = ["TiledImage"]

KINDS = {
    ChannelTypes.OPTICAL_PATH: "image",
    ChannelTypes.SEGMENT: "segmentation",
    ChannelTypes.PARAMETER: "parametric_map",
}


class TiledImage(ChannelsAndPlanes, Identified):
    """A tiled DICOM image.

    An image with the Total Pixel Matrix Rows and Total Pixel Matrix Columns attributes,
    whatever its SOP Class: VL Whole Slide Microscopy Image, Segmentation or Parametric Map.
    It has one total pixel matrix for each channel and focal plane.

    Parameters
    ----------
    client : dicomweb_client.api.DICOMClient, FrameStore or FrameSource
        Where the frames are.
    image_metadata : pydicom.dataset.Dataset
        Metadata of a tiled DICOM image.
    max_frame_cache_size : int or None, default: 6
        Largest number of this image's decoded frames that the process keeps; None for as
        many as `frame_cache_bytes` allows where they take long to decode, else none.
    correct_color : bool, default: True
        Whether colours are mapped to sRGB by the ICC profile of the optical path.
    on_error : {"raise", "fill"}, default: "raise"
        Whether a frame that can't be read or decoded raises, or is background with a warning.

    Raises
    ------
    MetadataError
        When the header lacks what is needed, or contradicts itself.

    Examples
    --------
    >>> image = slide.get_volume_images()[0]
    >>> image.metadata.BitsAllocated
    >>> matrix = image.get_total_pixel_matrix(channel_index=0)
    >>> matrix[:1000, 350:750, :]

    """

    def __init__(
        self,
        client: Any,
        image_metadata: Dataset,
        max_frame_cache_size: int | None = 6,
        *,
        correct_color: bool = True,
        on_error: OnError = "raise",
    ) -> None:
        self._source = frame_source(client, image_metadata)
        self._max_frame_cache_size = max_frame_cache_size
        self._correct_color = correct_color
        self._on_error: OnError = on_error
        self._placement = AS_STATED
        check_on_error(on_error)
        grid_of(self._source.metadata)

    def __dask_tokenize__(self) -> tuple[Hashable, ...]:
        placement = self._placement
        return (
            "dicomslide.TiledImage",
            self._source.identity,
            self._correct_color,
            self._on_error,
            placement.spacing,
            placement.shift,
        )

    def placed(self, placement: Placement) -> TiledImage:
        """Return this image where the pyramid that it is a part of puts it.

        Parameters
        ----------
        placement : Placement
            What that pyramid makes of the header.

        """
        image = copy.copy(self)
        image._placement = placement
        return image

    def __repr__(self) -> str:
        rows, columns = self.size
        what = self.flavor if self.kind == "image" else self.kind.replace("_", " ")
        return f"<TiledImage {what} {rows} × {columns} pixels, {self._source.name}>"

    def _repr_html_(self) -> str:
        from dicomslide.display.html import image_html

        return image_html(self)

    # -- what it is --

    @property
    def metadata(self) -> Dataset:
        """Image metadata, without pixel data and per-frame functional groups.

        Pixel Spacing is that of :attr:`pixel_spacing`, also where the slide derived it.
        """
        spacing = self._placement.spacing
        return self._header if spacing is None else with_spacing(self._header, spacing)

    @property
    def _header(self) -> Dataset:
        """What the instance itself says."""
        return self._source.metadata

    @property
    def placement(self) -> Placement:
        """What the pyramid of the image makes of its header; nothing for an image by itself."""
        return self._placement

    @property
    def name(self) -> str:
        """What messages call it: file name, URL or SOP Instance UID."""
        return self._source.name

    @property
    def source(self) -> FrameSource:
        """Where the frames are."""
        return self._source

    @property
    def kind(self) -> str:
        """What the tree calls its variable: image, segmentation or parametric_map."""
        return KINDS[self.channel_type]

    @property
    def flavor(self) -> str:
        """Value 3 of Image Type: VOLUME, THUMBNAIL, LABEL, OVERVIEW, ..."""
        return utils.image_flavor(self._header) or "VOLUME"

    @property
    def transfer_syntax_uid(self) -> str | None:
        """Transfer syntax of the frames; None where each frame's bytes tell (DICOMweb)."""
        return self._source.transfer_syntax_uid

    @property
    def frame_of_reference_uid(self) -> str:
        """Unique identifier of the frame of reference.

        Raises
        ------
        MetadataError
            When the image has none.

        """
        uid = utils.text(self._header, "FrameOfReferenceUID")
        if uid is None:
            raise MetadataError(f"{self.name}: no Frame of Reference UID")
        return uid

    @property
    def layout(self) -> ImageLayout:
        """What the header says of the pixels, worked out once a process."""
        return layout_of(self._source)

    @property
    def size(self) -> tuple[int, int]:
        """Number of total pixel matrix rows and columns."""
        grid = grid_of(self._header)
        return grid.rows, grid.columns

    # -- channels and focal planes --

    @property
    def channels(self) -> Channels:
        """The channels, in the order of their items."""
        return Channels(self.layout.channels)

    @property
    def focal_plane_offsets(self) -> tuple[float, ...]:
        """Offset of each focal plane from the slide surface along Z, in µm.

        That of a plane that follows the tissue, so that each frame has an offset of its own, is
        the median of its frames.
        """
        return self.layout.planes.offsets

    def get_references(self, sop_class_uid: str | None = None) -> list[tuple[str, str, str]]:
        """Get unique identifiers of referenced instances.

        Parameters
        ----------
        sop_class_uid : str, optional
            SOP Class UID of instances for which references should be obtained

        Returns
        -------
        list of tuple of str
            Study, Series and SOP Instance UID of each instance that the Common Instance Reference
            module names (PS3.3 C.12.2), in its order

        """
        study = utils.text(self._header, "StudyInstanceUID") or ""
        others = utils.items(self._header, "StudiesContainingOtherReferencedInstancesSequence")
        found = [
            (study_uid, utils.text(series, "SeriesInstanceUID") or "", instance)
            for study_uid, item in [
                (study, self._header),
                *((utils.text(other, "StudyInstanceUID") or "", other) for other in others),
            ]
            for series in utils.items(item, "ReferencedSeriesSequence")
            for instance in utils.items(series, "ReferencedInstanceSequence")
        ]
        return [
            (study_uid, series_uid, utils.text(instance, "ReferencedSOPInstanceUID") or "")
            for study_uid, series_uid, instance in found
            if sop_class_uid in (None, utils.text(instance, "ReferencedSOPClassUID"))
        ]

    @property
    def channel_type(self) -> ChannelTypes:
        """Type of channels."""
        return self.channels[0].type

    def get_channel_index(self, channel_identifier: str) -> int:
        """Get index of a channel.

        Parameters
        ----------
        channel_identifier : str
            Optical Path Identifier, Segment Number or LUT Label

        Returns
        -------
        int
            Zero-based index into channels, in the order of their items

        Raises
        ------
        ValueError
            When no channel is found for `channel_identifier`

        """
        identifiers = [channel.identifier for channel in self.channels]
        if str(channel_identifier) not in identifiers:
            raise ValueError(
                f"{self.name}: no channel {channel_identifier!r}; there are {identifiers}"
            )
        return identifiers.index(str(channel_identifier))

    # -- pixels --

    def get_total_pixel_matrix(
        self, channel_index: int = 0, focal_plane_index: int = 0
    ) -> TotalPixelMatrix:
        """Get total pixel matrix for a given channel and focal plane.

        Parameters
        ----------
        channel_index : int, default: 0
            Zero-based index into channels, in the order of their items
        focal_plane_index : int, default: 0
            Zero-based index into focal planes, from the glass slide towards the coverslip

        Returns
        -------
        dicomslide.TotalPixelMatrix
            Total Pixel Matrix

        Raises
        ------
        ValueError
            When there is no such channel or focal plane

        """
        return TotalPixelMatrix(
            self._source,
            self._header,
            channel_index,
            focal_plane_index,
            self._max_frame_cache_size,
            self._correct_color,
            on_error=self._on_error,
        )

    def get_image_region(
        self,
        offset: tuple[int, int],
        size: tuple[int, int],
        channel_index: int = 0,
        focal_plane_index: int = 0,
    ) -> NDArray[Any]:
        """Get image region.

        Parameters
        ----------
        offset : tuple of int
            Zero-based (row, column) of the region's first pixel in the total pixel matrix
        size : tuple of int
            Rows and columns of the requested region
        channel_index : int, default: 0
            Zero-based index into channels, in the order of their items
        focal_plane_index : int, default: 0
            Zero-based index into focal planes, from the glass slide towards the coverslip

        Returns
        -------
        numpy.ndarray
            Shape (rows, columns, samples), exactly as requested; outside of the matrix is
            background

        Raises
        ------
        TypeError
            When an offset or a size is no integer
        ValueError
            When there is no such channel or focal plane, or a size is negative

        """
        offset = utils.two_integers(offset, "offset")
        size = utils.two_integers(size, "size", least=0)
        matrix = self.get_total_pixel_matrix(channel_index, focal_plane_index)
        return matrix.reader.read_grid(SlideGrid.box(offset, size))

    def get_slide_region(
        self,
        offset: tuple[float, float],
        size: tuple[float, float],
        channel_index: int = 0,
        focal_plane_index: int = 0,
    ) -> NDArray[Any]:
        """Get slide region.

        Parameters
        ----------
        offset : tuple of float
            (x, y) of the region's corner with the lowest coordinates in mm
        size : tuple of float
            Width and height along X and Y in mm
        channel_index : int, default: 0
            Zero-based index into channels, in the order of their items
        focal_plane_index : int, default: 0
            Zero-based index into focal planes, from the glass slide towards the coverslip

        Returns
        -------
        numpy.ndarray
            Shape (rows, columns, samples), upright: columns run along X, rows against Y;
            outside of the matrix is background. Its shape depends on `size` only.

        Raises
        ------
        ValueError
            When there is no such channel or focal plane, or a size is negative
        MetadataError
            When the header doesn't say where the image lies on the slide

        """
        offset = utils.two_numbers(offset, "offset in mm")
        size = utils.two_numbers(size, "size in mm")
        if min(size) < 0:
            raise ValueError(f"size in mm {size}: expected numbers that aren't negative")
        geometry = self.geometry
        rows, columns = geometry.region_shape(size)
        check_memory(
            rows * columns + 8 * (rows + columns), f"a region of {rows} × {columns} pixels"
        )
        matrix = self.get_total_pixel_matrix(channel_index, focal_plane_index)
        return matrix.reader.read_grid(geometry.region(offset, size))

    # -- geometry --

    @property
    def geometry(self) -> SlideGeometry:
        """The affine between the matrix and the slide.

        Raises
        ------
        MetadataError
            When the header doesn't say where the image lies on the slide.

        """
        return geometry_of(self._header, self._placement)

    @property
    def pixel_spacing(self) -> tuple[float, float]:
        """Spacing (between rows, between columns) in mm, in the order of Pixel Spacing.

        Raises
        ------
        MetadataError
            When there is none, nor anything to derive it from.

        """
        return self._placement.spacing or spacing_of(self._header)

    @property
    def physical_offset(self) -> tuple[float, float]:
        """(x, y) of the centre of the matrix' first pixel in mm.

        The Total Pixel Matrix Origin, or, of a level of a slide, where that is registered.
        """
        return geometry_of(self._header, self._placement, spacing=(1.0, 1.0)).origin

    @property
    def physical_size(self) -> tuple[float, float]:
        """Size of the total pixel matrix along the X and Y axes in mm, pixels' edges included."""
        return geometry_of(self._header, self._placement, origin=(0.0, 0.0)).physical_size

    @property
    def physical_bounds(self) -> tuple[float, float, float, float]:
        """(x_min, y_min, x_max, y_max) of the matrix' outer edges in mm."""
        return self.geometry.bounds

    def get_rotation(self) -> float:
        """Get angle to rotate image such that it aligns with slide.

        Returns
        -------
        float
            Counterclockwise angle of rotation in degrees, in (−360, 0]

        Raises
        ------
        MetadataError
            When the header doesn't say how the image is turned on the slide.

        """
        return self._turned.rotation

    @property
    def is_mirrored(self) -> bool:
        """Whether the image shows the slide as seen through the glass.

        Raises
        ------
        MetadataError
            When the header doesn't say how the image is turned on the slide.

        """
        return self._turned.handedness > 0

    @property
    def _turned(self) -> SlideGeometry:
        """What depends on Image Orientation (Slide) alone, which often is all that is there."""
        return geometry_of(self._header, origin=(0.0, 0.0), spacing=(1.0, 1.0))

    def get_pixel_indices(self, offset: tuple[float, float]) -> tuple[int, int]:
        """Get indices into total pixel matrix for a given slide position.

        Parameters
        ----------
        offset : tuple of float
            (x, y) in the slide coordinate system in mm

        Returns
        -------
        tuple of int
            Zero-based (row, column) of the pixel there; negative or beyond the matrix where
            the slide was not imaged

        Raises
        ------
        ValueError
            When the offset isn't two finite numbers
        MetadataError
            When the header doesn't say where the image lies on the slide

        """
        offset = utils.two_numbers(offset, "offset in mm")
        row, column = self.geometry.indices(offset).tolist()
        return row, column

    def get_slide_offset(self, pixel_indices: tuple[int, int]) -> tuple[float, float]:
        """Get slide coordinates for a given total pixel matrix position.

        Parameters
        ----------
        pixel_indices : tuple of int
            Zero-based (row, column) offset in the total pixel matrix

        Returns
        -------
        tuple of float
            (x, y) of the pixel's centre in mm

        """
        x, y = self.geometry.to_slide(utils.two_numbers(pixel_indices, "pixel indices")).tolist()
        return x, y

    def map_pixel_indices_to_slide_coordinates(
        self, pixel_indices: NDArray[Any]
    ) -> NDArray[np.float64]:
        """Map pixel indices to slide coordinates.

        Parameters
        ----------
        pixel_indices : numpy.ndarray
            Zero-based (row, column) indices into the total pixel matrix, shape (n, 2)

        Returns
        -------
        numpy.ndarray
            (x, y, z) in the slide coordinate system in mm, shape (n, 3); z is that of the
            first focal plane

        """
        points = self.geometry.to_slide(_columns(pixel_indices, (2,)))
        z = np.full((len(points), 1), self.focal_plane_offsets[0] / 1000)
        return np.hstack([points, z])

    def map_slide_coordinates_to_pixel_indices(
        self, slide_coordinates: NDArray[Any]
    ) -> NDArray[np.int64]:
        """Map slide coordinates to pixel indices.

        Parameters
        ----------
        slide_coordinates : numpy.ndarray
            (x, y, z) in the slide coordinate system in mm, shape (n, 3); z isn't used

        Returns
        -------
        numpy.ndarray
            Zero-based (row, column) indices into the total pixel matrix, shape (n, 2)

        Raises
        ------
        ValueError
            When the coordinates are of another shape, or not finite
        MetadataError
            When the header doesn't say where the image lies on the slide

        """
        points = _columns(slide_coordinates, (2, 3))[:, :2]
        if not np.isfinite(points).all():
            (first, *_) = points[~np.isfinite(points).all(axis=1)].tolist()
            raise ValueError(f"slide coordinates {tuple(first)} mm: expected finite numbers")
        return self.geometry.indices(points)


def _columns(values: NDArray[Any], counts: tuple[int, ...]) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] not in counts:
        raise ValueError(f"an array of shape (n, {counts[-1]}) is expected, not {array.shape}")
    return array
