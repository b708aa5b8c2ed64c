"""Tiled DICOM image with its channels, focal planes, geometry and total pixel matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dicomslide.backends.base import layout_of
from dicomslide.backends.dicomweb.client import frame_source
from dicomslide.enum import ChannelTypes
from dicomslide.errors import MetadataError
from dicomslide.header import dicom
from dicomslide.header.channels import Channels
from dicomslide.header.description import describe_image
from dicomslide.header.layout import ImageLayout, grid_of
from dicomslide.header.lookup import ChannelsAndPlanes
from dicomslide.header.placed_image import PlacedImage
from dicomslide.header.placement import AS_STATED, Given, Placement, corrected, with_spacing
from dicomslide.matrix import TotalPixelMatrix
from dicomslide.options import check_memory
from dicomslide.process.identity import Identified
from dicomslide.readers.matrix_reader import OnError, check_on_error

if TYPE_CHECKING:
    from collections.abc import Hashable

    import numpy as np
    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

    from dicomslide.display.progress import Report

__all__ = ["TiledImage"]

KINDS = {
    ChannelTypes.OPTICAL_PATH: "image",
    ChannelTypes.SEGMENT: "segmentation",
    ChannelTypes.PARAMETER: "parametric_map",
}


class TiledImage(PlacedImage, ChannelsAndPlanes, Identified):
    """A tiled DICOM image.

    That is an instance with Total Pixel Matrix Rows and Columns: a VL Whole Slide Microscopy Image,
    Segmentation or Parametric Map. It has one total pixel matrix for each channel and focal plane.

    Parameters
    ----------
    client : dicomweb_client.api.DICOMClient, FrameStore or FrameSource
        Client, store or source that has the frames.
    image_metadata : pydicom.dataset.Dataset
        Metadata of a tiled DICOM image.
    max_frame_cache_size : int or None, default: 6
        Upper bound on the decoded frames of this image in the process' cache. None: as many as
        the option `frame_cache_bytes` allows.
    correct_color : bool, default: True
        Whether colours are converted to sRGB by the ICC profile of the optical path.
    on_error : {"raise", "fill"}, default: "raise"
        For frames that can't be read or decoded: raise an error, or return background with a
        warning.

    Raises
    ------
    MetadataError
        When the header lacks an attribute, or contradicts itself.

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
        self._given: Given | None = None
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
            placement.origin,
            None if self._given is None else (self._given.spacing, self._given.origin),
        )

    def _placed(self, placement: Placement) -> TiledImage:
        """Return a copy of this image with another placement.

        Parameters
        ----------
        placement : Placement
            Corrections of the header by the image's pyramid.

        """
        image = self._copied()
        image._placement = placement
        return image

    def _respaced(self, given: Given) -> TiledImage:
        """Return a copy of this image with a spacing, or also an origin, of the caller."""
        image = self._copied()
        image._given = given
        return image

    def __repr__(self) -> str:
        rows, columns = self.size
        what = self.flavor if self.kind == "image" else self.kind.replace("_", " ")
        return f"<TiledImage {what} {rows} × {columns} pixels, {self._source.name}>"

    def _repr_html_(self) -> str:
        from dicomslide.display.html import image_html
        from dicomslide.display.tables import channel_label

        caption = channel_label(self.channels, self.focal_plane_offsets, 0, 0)
        identifiers = [channel.identifier for channel in self.channels]
        return image_html(
            self.describe(), identifiers, self.focal_plane_offsets, self._picture, caption
        )

    def describe(self) -> dict[str, Any]:
        """Return the description of the image as plain values, from its header.

        Returns
        -------
        dict
            Flavor, file, size in pixels and tiles, encoding, and placement on the slide; the
            placement is None where the header lacks it.

        """
        return {
            "flavor": self.flavor if self.kind == "image" else self.kind,
            "file": self.name,
        } | describe_image(
            self._header, self._placement, transfer_syntax_uid=self.transfer_syntax_uid
        )

    def _picture(
        self,
        size: int,
        channel_index: int = 0,
        focal_plane_index: int = 0,
        *,
        progress: bool | Report = False,
    ) -> NDArray[np.uint8]:
        """Return an upright 8-bit picture of the whole image, for display.

        Parameters
        ----------
        size : int
            Pixels along the longer edge; at most those of the image.
        channel_index, focal_plane_index : int, default: 0
            Zero-based indices.
        progress : bool or callable, default: False
            See :meth:`Slide.thumbnail`.

        Returns
        -------
        numpy.ndarray
            Shape (rows, columns, 3), or (rows, columns) where the image is grey; uint8, writable

        Raises
        ------
        ValueError
            When there is no such channel or focal plane

        """
        from dicomslide.display.picture import picture_of

        matrix = self.get_total_pixel_matrix(channel_index, focal_plane_index)
        try:
            geometry = self.geometry
        except MetadataError:
            geometry = None
        return picture_of(matrix._reader, geometry, size, progress)

    # -- metadata --

    @property
    def metadata(self) -> Dataset:
        """Image metadata, without pixel data and per-frame functional groups.

        Pixel Spacing is :attr:`pixel_spacing`: corrected, where the slide corrects it.
        """
        spacing = self._placement.spacing
        return self._header if spacing is None else with_spacing(self._header, spacing)

    @property
    def _header(self) -> Dataset:
        """Header of the instance, with the spacing given by the caller, if any."""
        header, given = self._source.metadata, self._given
        return header if given is None else corrected(header, given)

    @property
    def name(self) -> str:
        """File name, URL or SOP Instance UID."""
        return self._source.name

    @property
    def kind(self) -> str:
        """Name of the variable in the tree: image, segmentation or parametric_map."""
        return KINDS[self.channel_type]

    @property
    def flavor(self) -> str:
        """Value 3 of Image Type: VOLUME, THUMBNAIL, LABEL, OVERVIEW, ..."""
        return dicom.image_flavor(self._header) or "VOLUME"

    @property
    def transfer_syntax_uid(self) -> str | None:
        """Transfer Syntax UID; None where it is derived from each frame's bytes (DICOMweb)."""
        return self._source.transfer_syntax_uid

    @property
    def frame_of_reference_uid(self) -> str:
        """Frame of Reference UID.

        Raises
        ------
        MetadataError
            When the header lacks it.

        """
        uid = dicom.text(self._header, "FrameOfReferenceUID")
        if uid is None:
            raise MetadataError(f"{self.name}: no Frame of Reference UID")
        return uid

    @property
    def _layout(self) -> ImageLayout:
        """Layout of the image, computed once per process."""
        return layout_of(self._source)

    @property
    def size(self) -> tuple[int, int]:
        """Total Pixel Matrix Rows and Columns."""
        grid = grid_of(self._header)
        return grid.rows, grid.columns

    # -- channels and focal planes --

    @property
    def channels(self) -> Channels:
        """The channels, in the order of their items."""
        return Channels(self._layout.channels)

    @property
    def focal_plane_offsets(self) -> tuple[float, ...]:
        """Offset of each focal plane from the slide surface along Z, in µm.

        Where a plane follows the tissue, so that its frames have different offsets, it is their
        median.
        """
        return self._layout.planes.offsets

    def get_references(self, sop_class_uid: str | None = None) -> list[tuple[str, str, str]]:
        """Get unique identifiers of referenced instances.

        Parameters
        ----------
        sop_class_uid : str, optional
            SOP Class UID of instances for which references should be obtained

        Returns
        -------
        list of tuple of str
            Study, Series and SOP Instance UID of each instance in the Common Instance Reference
            module (PS3.3 C.12.2), in the order of its items

        """
        study = dicom.text(self._header, "StudyInstanceUID") or ""
        others = dicom.items(self._header, "StudiesContainingOtherReferencedInstancesSequence")
        found = [
            (study_uid, dicom.text(series, "SeriesInstanceUID") or "", instance)
            for study_uid, item in [
                (study, self._header),
                *((dicom.text(other, "StudyInstanceUID") or "", other) for other in others),
            ]
            for series in dicom.items(item, "ReferencedSeriesSequence")
            for instance in dicom.items(series, "ReferencedInstanceSequence")
        ]
        return [
            (study_uid, series_uid, dicom.text(instance, "ReferencedSOPInstanceUID") or "")
            for study_uid, series_uid, instance in found
            if sop_class_uid in (None, dicom.text(instance, "ReferencedSOPClassUID"))
        ]

    @property
    def channel_type(self) -> ChannelTypes:
        """Type of the channels."""
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
        """Read a region of the image, given in pixels.

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
            Shape (rows, columns, samples), exactly the requested size; pixels outside the matrix
            are background

        Raises
        ------
        TypeError
            When an offset or a size isn't an integer
        ValueError
            When there is no such channel or focal plane, or a size is negative

        """
        offset = dicom.two_integers(offset, "offset")
        size = dicom.two_integers(size, "size", least=0)
        matrix = self.get_total_pixel_matrix(channel_index, focal_plane_index)
        return matrix._reader.read_box(offset, size)

    def get_slide_region(
        self,
        offset: tuple[float, float],
        size: tuple[float, float],
        channel_index: int = 0,
        focal_plane_index: int = 0,
    ) -> NDArray[Any]:
        """Read an upright region of the slide, given in millimetres.

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
            Shape (rows, columns, samples), upright: x ascends with the column index, y descends
            with the row index. Pixels outside the matrix are background. The shape depends on
            `size` only.

        Raises
        ------
        ValueError
            When there is no such channel or focal plane, or a size is negative
        MetadataError
            When the header doesn't say where the image lies on the slide

        """
        offset = dicom.two_numbers(offset, "offset in mm")
        size = dicom.two_numbers(size, "size in mm")
        if min(size) < 0:
            raise ValueError(f"size in mm {size}: expected numbers that aren't negative")
        geometry = self.geometry
        rows, columns = geometry.region_shape(size)
        check_memory(
            rows * columns + 8 * (rows + columns), f"a region of {rows} × {columns} pixels"
        )
        matrix = self.get_total_pixel_matrix(channel_index, focal_plane_index)
        return matrix._reader.read_grid(geometry.region(offset, size))
