"""Position of an image on the slide: by its header, corrected by the other levels of its pyramid.

A header may lack the spacing, or have that of another level. Nearly all writers repeat the origin
of the base on every level, although levels share the outer corner of the base, not the centre of
its first pixel. A :class:`Placement` holds the corrections.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.errors import MetadataError, MetadataWarning
from dicomslide.header import dicom
from dicomslide.header.geometry import SlideGeometry
from dicomslide.header.layout import MICROMETERS, origin_items, shared_items, size_of
from dicomslide.process.warn import warn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

__all__ = [
    "SAME_SPACING",
    "AS_STATED",
    "FieldOfView",
    "Given",
    "Placement",
    "are_alike",
    "corrected",
    "field_of_view",
    "geometry_of",
    "in_proportion",
    "once_per_place",
    "pixel_spacing_of",
    "place",
    "place_beside",
    "place_of",
    "spacing_of",
    "stated_origin",
    "with_spacing",
]

LARGEST_SLIDE = 100.0  # mm; a larger Imaged Volume Width is in µm
PARALLEL = 0.99
"""Lowest cosine of the angle between rows of levels that count as parallel."""
SAME_SPACING = 1e-6
"""Relative tolerance of equal spacings."""
SAME_ORIGIN = 0.01
"""Tolerance of equal origins, as a fraction of a pixel of the finer image."""


@dataclasses.dataclass(frozen=True, slots=True)
class Placement:
    """Corrections of an image's spacing and origin, from the other levels of its pyramid."""

    spacing: tuple[float, float] | None = None
    """Spacing (between rows, between columns) in mm; None where Pixel Spacing is right."""
    shift: tuple[float, float] = (0.0, 0.0)
    """(x, y) in mm from the Total Pixel Matrix Origin of the header to the centre of the first
    pixel."""
    origin: tuple[float, float] | None = None
    """(x, y) of the base's origin in mm, where the header lacks Total Pixel Matrix Origin."""

    @property
    def registration(self) -> str:
        """Basis of the position: ``"as stated"`` or ``"corner of the base level"``."""
        return "corner of the base level" if any(self.shift) else "as stated"


AS_STATED = Placement()
"""Placement without corrections."""


# -- spacing ---------------------------------------------------------------------------------


def pixel_spacing_of(image: Dataset) -> tuple[float, float] | None:
    """Return Pixel Spacing (between rows, between columns) in mm, or None."""
    for measures in shared_items(image, "PixelMeasuresSequence"):
        spacing = dicom.numbers(measures, "PixelSpacing", 2)
        if spacing is not None and min(spacing) > 0:
            return spacing[0], spacing[1]
    return None


def with_spacing(image: Dataset, spacing: tuple[float, float]) -> Dataset:
    """Return a header with another Pixel Spacing in mm; other values aren't copied."""
    import pydicom
    from pydicom.valuerep import DSfloat

    # elements are replaced: a changed value of an element would also change in `image`
    (measures,) = shared_items(image, "PixelMeasuresSequence")[:1] or [pydicom.Dataset()]
    (groups,) = dicom.items(image, "SharedFunctionalGroupsSequence")[:1] or [pydicom.Dataset()]
    values = [DSfloat(value, auto_format=True) for value in spacing]
    measures = _with_element(measures, "PixelSpacing", values)
    groups = _with_element(groups, "PixelMeasuresSequence", [measures])
    return _with_element(image, "SharedFunctionalGroupsSequence", [groups])


@dataclasses.dataclass(frozen=True, slots=True)
class Given:
    """Spacing and origin given by the caller, in place of those of a header."""

    spacing: tuple[float, float]
    """Spacing (between rows, between columns) in mm."""
    origin: tuple[float, float] | None
    """(x, y) of the Total Pixel Matrix Origin in mm; None for that of the header."""


def corrected(image: Dataset, given: Given) -> Dataset:
    """Return a header with the spacing and origin of the caller; other values aren't copied.

    Imaged Volume Width and Height are removed, since they may contradict the spacing.

    Parameters
    ----------
    image : pydicom.dataset.Dataset
        Header of a tiled image.
    given : Given
        Spacing and origin.

    """
    import pydicom

    header = with_spacing(image, given.spacing)
    if given.origin is not None:
        item = pydicom.Dataset()
        item.XOffsetInSlideCoordinateSystem, item.YOffsetInSlideCoordinateSystem = given.origin
        header = _with_element(header, "TotalPixelMatrixOriginSequence", [item])
    for keyword in ("ImagedVolumeWidth", "ImagedVolumeHeight"):
        header.pop(keyword, None)
    return header


def _with_element(dataset: Dataset, keyword: str, value: Any) -> Dataset:
    """Return a shallow copy of a data set with one element set."""
    changed = copy.copy(dataset)
    changed.__dict__["_dict"] = dict(dataset.items())  # a copy shares this dict
    changed.pop(keyword, None)
    setattr(changed, keyword, value)
    return changed


@dataclasses.dataclass(frozen=True, slots=True)
class FieldOfView:
    """Area that the total pixel matrix of a pyramid's base covers."""

    extent: tuple[float, float]
    """(height, width) in mm: along the columns, along the rows."""
    size: tuple[int, int]
    """Total pixel matrix rows and columns of the base."""
    pixel_spacing: tuple[float, float] | None
    """Pixel Spacing of the base's header."""
    imaged_volume: tuple[float, float] | None
    """Imaged Volume (Height, Width) of the base's header in mm."""
    row_direction: tuple[float, float] | None
    """Direction (x, y) of the rows; None without Image Orientation (Slide)."""

    def is_turned_from(self, image: Dataset) -> bool:
        """Whether the rows of an image aren't parallel to the base's: extents don't compare."""
        here, there = _row_direction(image), self.row_direction
        if here is None or there is None:
            return False
        return abs(here[0] * there[0] + here[1] * there[1]) < PARALLEL

    def covered_by(self, image: Dataset) -> tuple[float, float]:
        """Return the (height, width) in mm that an image covers, without its Pixel Spacing.

        Imaged Volume of the image; or the extent of the base, where that is absent or the same as
        the base's.
        """
        volume = _imaged_volume(image)
        if volume is None or are_alike(volume, self.imaged_volume):
            return self.extent
        return volume

    def spacing_of(self, size: tuple[int, int]) -> tuple[float, float]:
        """Return the spacing in mm of a level that covers the extent with (rows, columns)."""
        return self.extent[0] / size[0], self.extent[1] / size[1]


def field_of_view(images: Sequence[Dataset]) -> FieldOfView | None:
    """Return the area that the base of a pyramid covers; None where headers don't say.

    It is Pixel Spacing times the size of the largest image. Where levels of several sizes repeat
    one Pixel Spacing, that may belong to a base that is missing, or be a default. Then Imaged
    Volume is used, if it is the same on all of these levels and larger by equal factors along rows
    and columns, or if the product exceeds the size of a slide.

    Parameters
    ----------
    images : sequence of pydicom.dataset.Dataset
        Headers of the pyramid's levels, or of some of them.

    """
    base = max(images, key=lambda image: math.prod(size_of(image)))
    size, stated, volume = size_of(base), pixel_spacing_of(base), _imaged_volume(base)
    try:
        spacing = spacing_of(base)
    except MetadataError:
        return None
    extent = size[0] * spacing[0], size[1] * spacing[1]
    repeating = [
        image
        for image in images
        if are_alike(pixel_spacing_of(image), stated)
        and in_proportion(np.divide(size, size_of(image)), size_of(image))
    ]
    if (
        volume is not None
        and stated is not None
        and len({size_of(image) for image in repeating}) > 1
        and all(are_alike(_imaged_volume(image), volume) for image in repeating)
    ):
        larger = np.divide(volume, np.multiply(size, stated))
        if (in_proportion(larger, size) and larger.min() > 1) or max(extent) > LARGEST_SLIDE:
            extent = volume
    return FieldOfView(extent, size, stated, volume, _row_direction(base))


def are_alike(here: tuple[float, float] | None, there: tuple[float, float] | None) -> bool:
    """Whether two spacings or extents are equal; None equals None only."""
    if here is None or there is None:
        return here is there
    return bool(np.allclose(here, there, rtol=SAME_SPACING, atol=0))


def in_proportion(factors: NDArray[np.float64], size: Sequence[float]) -> bool:
    """Whether two factors are equal, within the rounding of `size` to whole pixels."""
    return bool(abs(factors[0] / factors[1] - 1) <= 1 / size[0] + 1 / size[1])


def _row_direction(image: Dataset) -> tuple[float, float] | None:
    cosines = dicom.numbers(image, "ImageOrientationSlide", 6)
    return None if cosines is None else (cosines[0], cosines[1])


def _imaged_volume(image: Dataset) -> tuple[float, float] | None:
    """Return Imaged Volume (Height, Width) in mm, or None; some writers give it in µm."""
    width = dicom.number(image, "ImagedVolumeWidth")
    height = dicom.number(image, "ImagedVolumeHeight")
    if width and height and width > 0 and height > 0:
        scale = MICROMETERS if max(width, height) > LARGEST_SLIDE else 1
        return height / scale, width / scale
    return None


def spacing_of(image: Dataset, view: FieldOfView | None = None) -> tuple[float, float]:
    """Return the spacing (between rows, between columns) in mm.

    Pixel Spacing, unless it is absent or contradicts the area that the matrix covers: some writers
    swap its values, and some repeat that of the base on every level.

    Parameters
    ----------
    image : pydicom.dataset.Dataset
        Header of a tiled image.
    view : FieldOfView, optional
        Area that the base of the image's pyramid covers. It also holds for the image, if its
        header lacks Imaged Volume and its rows are parallel to those of the base.

    Raises
    ------
    MetadataError
        When there is no Pixel Spacing, and nothing to derive it from.

    """
    spacing = pixel_spacing_of(image)
    if view is not None and view.is_turned_from(image):
        view = None
    covered = _imaged_volume(image) if view is None else view.covered_by(image)
    if covered is None:
        if spacing is None:
            raise MetadataError(
                f"{dicom.name_of(image)}: no Pixel Spacing, and no Imaged Volume Width and Height"
                " to derive it from"
            )
        return spacing
    if spacing is not None and not dicom.is_tiled_image(image):
        return spacing
    size = size_of(image)
    if spacing is None:
        return covered[0] / size[0], covered[1] / size[1]
    if _covers(size, spacing, covered):
        return spacing
    if _covers(size, spacing[::-1], covered) and not _covers(size, spacing, covered[::-1]):
        return spacing[1], spacing[0]  # else the Imaged Volume may be swapped
    if view is not None and are_alike(spacing, view.pixel_spacing):
        derived = view.spacing_of(size)
        if (
            max(size[0] - view.size[0], size[1] - view.size[1]) <= 0
            and in_proportion(np.divide(derived, view.spacing_of(view.size)), size)
            and _covers(size, derived, covered)
        ):  # else the covered area contradicts the derived spacing as well
            return derived
    return spacing


def _covers(size: tuple[int, int], spacing: Sequence[float], extent: tuple[float, float]) -> bool:
    """Whether size times spacing is the extent (height, width), within a pixel or 1 %."""
    allowed = np.maximum(0.01 * np.array(extent), spacing)
    return bool(np.all(np.abs(np.multiply(size, spacing) - extent) <= allowed))


# -- origin and orientation ------------------------------------------------------------------


def geometry_of(
    image: Dataset,
    placement: Placement = AS_STATED,
    *,
    relative: bool = False,
    origin: tuple[float, float] | None = None,
    spacing: tuple[float, float] | None = None,
) -> SlideGeometry:
    """Return the affine transform between the matrix and the slide.

    Parameters
    ----------
    image : pydicom.dataset.Dataset
        Header of a tiled image.
    placement : Placement, optional
        Corrections of the header by the image's pyramid.
    relative : bool, default: False
        Whether a missing origin is replaced by (0, 0), with a warning, instead of an error:
        millimetres then count from the first pixel.
    origin, spacing : tuple of float, optional
        Values to use instead of the header's, for results that don't depend on them.

    Raises
    ------
    MetadataError
        When orientation, spacing or origin is absent or impossible.

    """
    name = dicom.name_of(image)
    cosines = dicom.numbers(image, "ImageOrientationSlide", 6)
    if cosines is None:
        raise MetadataError(
            f"{name}: no usable Image Orientation (Slide) of six numbers, so it has no position on"
            " the slide"
        )
    spacing = spacing or placement.spacing or spacing_of(image)
    if origin is None:
        x, y = stated_origin(image) or placement.origin or _absent_origin(image, relative)
        origin = x + placement.shift[0], y + placement.shift[1]
    try:
        return SlideGeometry(
            origin,
            (cosines[0], cosines[1]),
            (cosines[3], cosines[4]),
            spacing,
            size_of(image),
        )
    except ValueError as error:
        raise MetadataError(f"{name}: {error}") from error


def _absent_origin(image: Dataset, relative: bool) -> tuple[float, float]:
    absent = f"{dicom.name_of(image)}: no Total Pixel Matrix Origin"
    if not relative:
        raise MetadataError(f"{absent}, so it has no position on the slide")
    warn(f"{absent}: millimetres count from its first pixel", MetadataWarning)
    return 0.0, 0.0


def stated_origin(image: Dataset) -> tuple[float, float] | None:
    """Return the Total Pixel Matrix Origin (x, y) in mm; None where the header lacks it."""
    for item in origin_items(image):
        x = dicom.number(item, "XOffsetInSlideCoordinateSystem")
        y = dicom.number(item, "YOffsetInSlideCoordinateSystem")
        if x is not None and y is not None:
            return x, y
    return None


# -- what a pyramid adds ---------------------------------------------------------------------


def place(
    image: Dataset,
    view: FieldOfView | None,
    bases: Iterable[tuple[Dataset, Placement]] = (),
    *,
    align: bool = True,
) -> Placement:
    """Return the placement of an image of a pyramid.

    An image whose origin and orientation are those of a finer image shares the outer corner of that
    image, rather than the centre of its first pixel. So does an image without an origin.

    Parameters
    ----------
    image : pydicom.dataset.Dataset
        Header of a level, or of an image derived from one.
    view : FieldOfView or None
        Area that the base of the pyramid covers.
    bases : iterable of (pydicom.dataset.Dataset, Placement)
        Images of the finest level, with their placements.
    align : bool, default: True
        Whether corners are aligned; else the header's origin is used.

    """
    try:
        spacing = spacing_of(image, view)
    except MetadataError:
        return AS_STATED
    own = None if spacing == pixel_spacing_of(image) else spacing
    stated = stated_origin(image)
    for base, placement in bases if align else ():
        of_base = stated_origin(base)
        here = _geometry_as_stated(image, spacing, stated or of_base)
        there = _geometry_as_stated(base, placement.spacing, of_base)
        if here is None or there is None or (of_base is None and stated is not None):
            continue
        corner = here.on_corner_of(there, SAME_ORIGIN)
        if corner is not None:
            shift = np.subtract(corner.origin, here.origin) + placement.shift
            return Placement(
                own, (float(shift[0]), float(shift[1])), of_base if stated is None else None
            )
    return Placement(own)


def place_of(image: Dataset) -> tuple[Any, ...]:
    """Return all that a header says of the place of an image: equal values have equal placements.

    They are origin, spacing, orientation, size, and the area that the matrix covers.
    """
    return (
        stated_origin(image),
        pixel_spacing_of(image),
        dicom.numbers(image, "ImageOrientationSlide", 6),
        size_of(image),
        _imaged_volume(image),
        dicom.is_tiled_image(image),
    )


def once_per_place(locate: Callable[[Dataset], Placement]) -> Callable[[Dataset], Placement]:
    """Return a function of an image's placement that is computed once for images at one place."""
    known: dict[tuple[Any, ...], Placement] = {}

    def placement_of(image: Dataset) -> Placement:
        at = place_of(image)
        if at not in known:
            known[at] = locate(image)
        return known[at]

    return placement_of


def place_beside(image: Dataset, level: Dataset, placement: Placement) -> Placement | None:
    """Return the placement of an image on the grid of a level; None where it isn't on that grid.

    Parameters
    ----------
    image : pydicom.dataset.Dataset
        Header of an image derived from the level, or from a part of it; its rows may run in another
        direction.
    level : pydicom.dataset.Dataset
        Header of the level.
    placement : Placement
        Placement of the level.

    """
    given = pixel_spacing_of(image)
    spacing = None
    # a Pixel Spacing copied from the level is corrected like the level's; another one is kept: the
    # image of a part of the base may have the spacing of the base
    if given in (None, pixel_spacing_of(level)) and size_of(image) == size_of(level):
        spacing = placement.spacing or pixel_spacing_of(level)
    here = _geometry_as_stated(image, spacing, stated_origin(image))
    there = _geometry_as_stated(level, placement.spacing, stated_origin(level))
    if here is None or there is None or not here.shares_lattice(there, SAME_ORIGIN):
        return None
    return Placement(None if spacing == given else spacing, placement.shift)


def _geometry_as_stated(
    image: Dataset,
    spacing: tuple[float, float] | None,
    origin: tuple[float, float] | None,
) -> SlideGeometry | None:
    """Return the geometry with these values, origin (0, 0) for None; None where it is invalid."""
    try:
        return geometry_of(image, origin=origin or (0.0, 0.0), spacing=spacing)
    except MetadataError:
        return None
