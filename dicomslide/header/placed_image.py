"""Conversion between pixels of an image and millimetres on the slide, by its header."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.header import dicom
from dicomslide.header.placement import Placement, geometry_of, spacing_of
from dicomslide.process.lazy import lazy

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

    from dicomslide.header.geometry import SlideGeometry

__all__ = ["PlacedImage"]


class PlacedImage:
    """Base class of images with a position on the slide."""

    _placement: Placement

    @property
    def _header(self) -> Dataset:
        """Header of the instance, without corrections."""
        raise NotImplementedError

    @property
    def focal_plane_offsets(self) -> tuple[float, ...]:
        """Offset of each focal plane from the slide surface along Z, in µm."""
        raise NotImplementedError

    @property
    def geometry(self) -> SlideGeometry:
        """Affine transform between the matrix and the slide.

        Raises
        ------
        MetadataError
            When the header doesn't say where the image lies on the slide.

        """
        return self._geometry

    @lazy
    def _geometry(self) -> SlideGeometry:
        return geometry_of(self._header, self._placement)

    def _copied(self) -> Self:
        """Return a shallow copy to be placed elsewhere: without what follows from the place."""
        image = copy.copy(self)
        image.__dict__.pop("_geometry", None)
        return image

    @property
    def pixel_spacing(self) -> tuple[float, float]:
        """Spacing (between rows, between columns) in mm, in the order of Pixel Spacing.

        Raises
        ------
        MetadataError
            When the header lacks Pixel Spacing, and attributes to derive it from.

        """
        return self._placement.spacing or spacing_of(self._header)

    @property
    def physical_offset(self) -> tuple[float, float]:
        """(x, y) of the centre of the matrix' first pixel in mm.

        Total Pixel Matrix Origin, for a level of a slide corrected by its registration.
        """
        return geometry_of(self._header, self._placement, spacing=(1.0, 1.0)).origin

    @property
    def physical_size(self) -> tuple[float, float]:
        """Size of the total pixel matrix along X and Y in mm, from outer edge to outer edge."""
        return geometry_of(self._header, self._placement, origin=(0.0, 0.0)).physical_size

    @property
    def physical_bounds(self) -> tuple[float, float, float, float]:
        """(x_min, y_min, x_max, y_max) of the outer edges of the matrix in mm."""
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
        """Geometry with a placeholder origin and spacing: only its orientation is valid.

        Headers may have Image Orientation (Slide) but no origin or spacing.
        """
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
            Zero-based (row, column) of the pixel that contains the position; outside the matrix
            where the slide was not imaged

        Raises
        ------
        ValueError
            When the offset isn't two finite numbers
        MetadataError
            When the header doesn't say where the image lies on the slide

        """
        offset = dicom.two_numbers(offset, "offset in mm")
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
        x, y = self.geometry.to_slide(dicom.two_numbers(pixel_indices, "pixel indices")).tolist()
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
            (x, y, z) in the slide coordinate system in mm, shape (n, 3); z is the offset of the
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
            When the coordinates have another shape, or aren't finite
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
