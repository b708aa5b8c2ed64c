"""Image pyramids: grouping of images into levels, and selection of an image by resolution."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np

from dicomslide import utils
from dicomslide.enum import ImageFlavors
from dicomslide.errors import MetadataError
from dicomslide.header import dicom
from dicomslide.header.channels import have_other_channels
from dicomslide.header.layout import first_plane_of, size_of
from dicomslide.header.placement import (
    SAME_SPACING,
    Placement,
    are_alike,
    field_of_view,
    geometry_of,
    in_proportion,
    once_per_place,
    pixel_spacing_of,
    place,
    place_of,
    spacing_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pydicom.dataset import Dataset

    from dicomslide.header.geometry import SlideGeometry
    from dicomslide.header.placement import FieldOfView

__all__ = [
    "Pyramid",
    "PyramidLevel",
    "compute_image_center_position",
    "get_image_pixel_spacing",
    "get_image_size",
    "select_image_at_magnification",
    "select_image_at_pixel_spacing",
    "sort_images_by_pixel_spacing",
    "sort_images_by_size",
]

MAGNIFICATIONS = (1, 2, 4, 10, 20, 40)
SPACING_AT_1X = 0.01
"""Pixel spacing in mm at 1×; that at 40× is 0.00025 mm, as is usual for scanners."""


SAME_SIZE = 2.5
"""Pixels by which the sizes of registered channels may differ."""
SAME_SHARE = 0.1
"""Fraction of a size by which the sizes of registered channels may differ: few pixels are a large
fraction of a small level."""
NEAR_SHARE = 0.02
"""Fraction of a size by which sizes of one spacing may differ where the headers tell the channels
apart: levels differ by far more."""


# -- levels of a pyramid -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class LevelGroups:
    """Levels of a pyramid; its images are given by their indices."""

    base: int
    """The largest image."""
    levels: tuple[tuple[int, ...], ...]
    """The images of each level, from the largest to the smallest."""
    associated: tuple[int, ...]
    """Thumbnails that have the size of a level: they aren't levels themselves."""
    misfits: dict[int, str]
    """Images that show another area than the base, with the reason as a sentence."""
    placements: tuple[Placement, ...]
    """Placement of each image."""
    view: FieldOfView | None
    """Area that the base covers."""


def group_levels(
    images: Sequence[Dataset], tolerance: float, *, align_levels: bool = True
) -> LevelGroups:
    """Sort VOLUME and THUMBNAIL images into the levels of one pyramid.

    Images belong to one level if their total pixel matrices have one size. (Spacing isn't reliable:
    some scanners repeat that of the base on every level.) Images of one spacing whose sizes differ
    by few pixels, or by up to two percent, as after a registration of channels, also belong to one
    level, if they hold different channels.

    An image is a misfit if its centre differs from that of the base by more than a pixel of the
    level and more than `tolerance`; centres aren't compared where a header lacks the position. Of
    two volumes of one spacing but different sizes, the smaller one is a misfit too, unless it may
    be a level that repeats the spacing of the base.

    Parameters
    ----------
    images : sequence of pydicom.dataset.Dataset
        Headers of VOLUME and THUMBNAIL images; at least one.
    tolerance : float
        Distance in mm by which centres may differ.
    align_levels : bool, default: True
        Whether levels with the origin of the base are aligned with its corner: see :func:`place`.

    Returns
    -------
    LevelGroups

    Raises
    ------
    MetadataError
        When an image isn't tiled.

    """
    sizes = [size_of(image) for image in images]
    thumbnails = [dicom.image_flavor(i) == ImageFlavors.THUMBNAIL.value for i in images]
    # by size, volumes before thumbnails; the sort is stable
    order = sorted(range(len(images)), key=lambda i: (-math.prod(sizes[i]), thumbnails[i]))
    view = field_of_view(images)
    locate = _placer(images, view, align_levels)
    placements = tuple(locate(image) for image in images)
    spacings = [
        at.spacing or pixel_spacing_of(image) for image, at in zip(images, placements, strict=True)
    ]
    base = order[0]
    why_not = _check_of_place(images[base], placements[base], tolerance)
    by_size: dict[tuple[int, int], list[int]] = {}
    associated = []
    misfits = {}
    for i in order:
        reason = why_not(images[i], placements[i])
        if thumbnails[i] and sizes[i] in by_size:
            associated.append(i)
        elif reason is not None:
            misfits[i] = reason
        elif sizes[i] in by_size:
            by_size[sizes[i]].append(i)
        else:
            here = images[i], placements[i]
            level = next(
                (
                    same
                    for same in by_size.values()
                    if all(_are_channels(*here, images[j], placements[j]) for j in same)
                ),
                None,
            )
            volumes = [same[0] for same in by_size.values() if not thumbnails[same[0]]]
            # the first match: the base, where levels repeat its spacing
            like = next((j for j in volumes if are_alike(spacings[i], spacings[j])), None)
            if level is not None:
                level.append(i)
            elif (
                like is None
                or thumbnails[i]
                or _are_levels(*here, images[like], placements[like], of_base=like == base)
            ):
                by_size[sizes[i]] = [i]
            else:
                misfits[i] = (
                    f"{dicom.name_of(images[i])}: it has the pixel spacing of"
                    f" {dicom.name_of(images[like])}, but {sizes[i][0]} × {sizes[i][1]} pixels"
                    f" instead of {sizes[like][0]} × {sizes[like][1]}: it shows another region"
                )
    levels = tuple(tuple(same) for same in by_size.values())
    return LevelGroups(base, levels, tuple(associated), misfits, placements, view)


def _are_channels(
    image: Dataset, placement: Placement, other: Dataset, place_of_other: Placement
) -> bool:
    """Whether two images of different sizes are channels of one level: see :func:`group_levels`."""
    here, there = _geometry_of(image, placement), _geometry_of(other, place_of_other)
    if here is None or there is None:
        return False
    spacing = np.array(there.slide_spacing)
    if not np.allclose(here.slide_spacing, spacing, rtol=SAME_SPACING, atol=0):
        return False
    sizes = np.array([here.physical_size, there.physical_size]) / spacing
    differ = np.abs(np.diff(sizes, axis=0))
    if (differ > SAME_SHARE * sizes).any():
        return False
    if have_other_channels(image, other):
        return bool(differ.max() <= SAME_SIZE or (differ <= NEAR_SHARE * sizes).all())
    if differ.max() > SAME_SIZE:
        return False
    origins = [
        [
            dicom.text(each, keyword)
            for keyword in ("SeriesInstanceUID", "PhotometricInterpretation")
        ]
        + [each.get("BitsAllocated")]
        for each in (image, other)
    ]
    return origins[0] != origins[1]


def _are_levels(
    image: Dataset,
    placement: Placement,
    other: Dataset,
    place_of_other: Placement,
    *,
    of_base: bool,
) -> bool:
    """Whether two images of one spacing but different sizes may be levels of one pyramid.

    They may if `other` is the base, whose spacing some writers repeat on all levels.
    """
    here, there = _geometry_of(image, placement), _geometry_of(other, place_of_other)
    if here is None or there is None:
        return True  # a header lacks the position
    size, other_size = (
        np.divide(each.physical_size, there.slide_spacing) for each in (here, there)
    )
    if of_base:
        return in_proportion(other_size / size, size.tolist())
    return bool(np.abs(size - other_size).max() <= SAME_SIZE)


def _placer(
    images: Sequence[Dataset], view: FieldOfView | None, align_levels: bool
) -> Callable[[Dataset], Placement]:
    """Return a function that computes the placement of an image of a pyramid.

    Images at one place have one placement: those of many channels in separate files are compared
    once.
    """
    alone = once_per_place(functools.partial(place, view=view))
    stated = [(image, alone(image)) for image in images]
    base, at = max(stated, key=lambda each: math.prod(size_of(each[0])))
    finest = at.spacing or pixel_spacing_of(base)
    # images of other channels may have a row more or less
    bases = [
        (image, placement)
        for image, placement in stated
        if size_of(image) == size_of(base)
        or are_alike(placement.spacing or pixel_spacing_of(image), finest)
    ]
    # one of the channels that lie at one place stands for all
    unlike: dict[Any, tuple[Dataset, Placement]] = {}
    for image, placement in bases:
        unlike.setdefault((place_of(image), placement), (image, placement))
    of_bases = tuple(unlike.values())
    return once_per_place(functools.partial(place, view=view, bases=of_bases, align=align_levels))


def _check_of_place(
    base: Dataset, placement: Placement, tolerance: float
) -> Callable[[Dataset, Placement], str | None]:
    """Return a function that returns why an image isn't a level of the base; None if it may be."""
    there = _geometry_of(base, placement)

    def why_not(image: Dataset, placement: Placement) -> str | None:
        here = _geometry_of(image, placement)
        if here is None or there is None:
            return None  # a header lacks the position
        distance = math.dist(here.center, there.center)
        allowed = max(tolerance, *here.spacing)
        if distance <= allowed:
            return None
        return (
            f"{dicom.name_of(image)}: its centre is {distance:.3g} mm away from that of"
            f" {dicom.name_of(base)}, more than the {allowed:.3g} mm within which images are"
            " levels of one pyramid"
        )

    return why_not


def _geometry_of(image: Dataset, placement: Placement) -> SlideGeometry | None:
    try:
        return geometry_of(image, placement)
    except MetadataError:
        return None


class PyramidLevel(NamedTuple):
    """Image pyramid level."""

    total_pixel_matrix_dimensions: tuple[int, int]
    """Total Pixel Matrix Rows and Columns."""
    pixel_spacing: tuple[float, float]
    """Spacing (between rows, between columns) in mm, in the order of Pixel Spacing."""
    downsampling_factors: tuple[float, float]
    """Number of (rows, columns) of the base level per row and column of this level."""
    has_pixels: bool
    """Whether `metadata` has an image at the level."""


class Pyramid(Sequence[PyramidLevel]):
    """Image pyramid: a sequence of levels, from the largest to the smallest.

    Images belong to one level if their total pixel matrices have one size. A THUMBNAIL of the size
    of a level isn't a level of its own.

    Parameters
    ----------
    metadata : sequence of pydicom.dataset.Dataset
        Metadata of VOLUME or THUMBNAIL images, or of images derived from them, in any order.
    tolerance : float
        Distance in mm by which the centres of levels may differ; a pixel of the level is always
        allowed.
    ref_metadata : sequence of pydicom.dataset.Dataset, optional
        Metadata of the source images from which the images of `metadata` are derived. The pyramid
        has their levels, also those at which `metadata` has no image.

    Raises
    ------
    ValueError
        When there is no image.
    MetadataError
        A ValueError: when an image isn't a tiled VOLUME or THUMBNAIL, lies elsewhere on the
        slide, has the size of no level of `ref_metadata`, or has no pixel spacing.

    """

    def __init__(
        self,
        metadata: Sequence[Dataset],
        tolerance: float,
        ref_metadata: Sequence[Dataset] | None = None,
    ) -> None:
        template = metadata if ref_metadata is None else ref_metadata
        if not template:
            raise ValueError("a pyramid needs at least one image; none was given")
        for image in (*template, *metadata):
            if not (dicom.is_tiled_image(image) and utils.is_volume_image(image)):
                raise MetadataError(
                    f"{dicom.name_of(image)}: not a level of a pyramid: expected a tiled VOLUME or"
                    f" THUMBNAIL image, not {dicom.image_flavor(image)}"
                )
        groups = group_levels(template, tolerance)
        for reason in groups.misfits.values():
            raise MetadataError(reason)
        base = template[groups.base]
        levels = [template[same[0]] for same in groups.levels]
        sizes = [size_of(level) for level in levels]
        locate = _placer(template, groups.view, align_levels=True)
        why_not = _check_of_place(base, locate(base), tolerance)
        for image in () if ref_metadata is None else metadata:
            if size_of(image) not in sizes:
                raise MetadataError(
                    f"{dicom.name_of(image)}: no level has a total pixel matrix of its size,"
                    f" {size_of(image)}; there are {sizes}"
                )
            if elsewhere := why_not(image, locate(image)):
                raise MetadataError(elsewhere)
        present = {size_of(image) for image in metadata}
        self._levels = tuple(
            PyramidLevel(
                total_pixel_matrix_dimensions=size,
                pixel_spacing=locate(level).spacing or spacing_of(level),
                downsampling_factors=(sizes[0][0] / size[0], sizes[0][1] / size[1]),
                has_pixels=size in present,
            )
            for level, size in zip(levels, sizes, strict=True)
        )

    def __repr__(self) -> str:
        sizes = [level.total_pixel_matrix_dimensions for level in self]
        return f"<Pyramid of {len(self)} levels: {', '.join(f'{r} × {c}' for r, c in sizes)}>"

    def __len__(self) -> int:
        return len(self._levels)

    @overload
    def __getitem__(self, index: int) -> PyramidLevel: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[PyramidLevel, ...]: ...

    def __getitem__(self, index: int | slice) -> PyramidLevel | tuple[PyramidLevel, ...]:
        return self._levels[index]


# -- attributes of an image ------------------------------------------------------------------


def compute_image_center_position(image: Dataset) -> tuple[float, float, float]:
    """Compute position of image center in slide coordinate system.

    Parameters
    ----------
    image : pydicom.dataset.Dataset
        Metadata of DICOM VL Whole Slide Microscopy Image instance

    Returns
    -------
    tuple of float
        (x, y, z) of the centre of the total pixel matrix in mm; z is the offset of the first focal
        plane

    Raises
    ------
    MetadataError
        When the header lacks the spacing, the orientation or the origin.

    """
    return (*geometry_of(image).center, first_plane_of(image) / 1000)


def get_image_pixel_spacing(image: Dataset) -> tuple[float, float]:
    """Get pixel spacing of an image.

    Parameters
    ----------
    image : pydicom.dataset.Dataset
        Metadata of a DICOM VL Whole Slide Microscopy Image instance or derived image instance
        (e.g., DICOM Segmentation)

    Returns
    -------
    tuple of float
        Pixel Spacing (between rows, between columns) in mm; derived from Imaged Volume Width
        and Height where it is absent

    Raises
    ------
    MetadataError
        When the header has neither.

    """
    return spacing_of(image)


def get_image_size(image: Dataset) -> int:
    """Get size of an image.

    Parameters
    ----------
    image : pydicom.dataset.Dataset
        Metadata of a DICOM VL Whole Slide Microscopy Image instance or a derived image instance
        (e.g., DICOM Segmentation)

    Returns
    -------
    int
        Number of pixels of a total pixel matrix: Total Pixel Matrix Rows × Columns

    Raises
    ------
    MetadataError
        When the image isn't tiled.

    """
    return math.prod(size_of(image))


# -- selection of an image -------------------------------------------------------------------


def select_image_at_magnification(
    collection: Sequence[Dataset], magnification: int, tolerance: float | None = None
) -> Dataset:
    """Select an image from a collection at a desired magnification.

    Parameters
    ----------
    collection : sequence of pydicom.dataset.Dataset
        Metadata of DICOM VL Whole Slide Microscopy Image instances
    magnification : {1, 2, 4, 10, 20, 40}
        Magnification level (corresponds roughly to object lens power of a microscope): 40× is
        0.00025 mm between pixels, 1× is 0.01 mm
    tolerance : float, optional
        Largest allowed difference in mm between the desired spacing and that of the image

    Returns
    -------
    pydicom.dataset.Dataset
        Image closest to the desired magnification

    Raises
    ------
    ValueError
        When `collection` is empty, `magnification` is none of the choices, or `tolerance` is
        exceeded.
    MetadataError
        A ValueError: when an image has no pixel spacing.

    """
    if magnification not in MAGNIFICATIONS:
        raise ValueError(f"magnification {magnification!r} is none of {MAGNIFICATIONS}")
    spacing = SPACING_AT_1X / magnification
    return select_image_at_pixel_spacing(collection, (spacing, spacing), tolerance)


def select_image_at_pixel_spacing(
    collection: Sequence[Dataset],
    pixel_spacing: tuple[float, float],
    tolerance: float | None = None,
) -> Dataset:
    """Select an image from a collection at a desired spatial pixel spacing.

    Parameters
    ----------
    collection : sequence of pydicom.dataset.Dataset
        Metadata of DICOM VL Whole Slide Microscopy Image instances
    pixel_spacing : tuple of float
        Desired spacing (between rows, between columns) in mm, in the order of Pixel Spacing
    tolerance : float, optional
        Largest allowed difference in mm between the desired spacing and that of the image

    Returns
    -------
    pydicom.dataset.Dataset
        Image with the smallest difference of spacing, the larger of both axes; the first of
        several with one spacing

    Raises
    ------
    ValueError
        When `collection` is empty, `tolerance` is exceeded, or a number isn't finite.
    MetadataError
        A ValueError: when an image has no pixel spacing.

    """
    if not collection:
        raise ValueError("the collection of images to select from is empty")
    pixel_spacing = dicom.two_numbers(pixel_spacing, "pixel spacing in mm")
    if tolerance is not None and math.isnan(tolerance):
        raise ValueError("tolerance nan: expected mm, zero or more")
    spacings = np.array([spacing_of(image) for image in collection])
    distances = np.abs(spacings - np.asarray(pixel_spacing)).max(axis=1)
    noise = SAME_SPACING * max(pixel_spacing)
    nearest = int(np.argmax(distances <= distances.min() + noise))
    if tolerance is not None and distances[nearest] > tolerance + noise:
        raise ValueError(
            f"no image within {tolerance:g} mm of a pixel spacing of {pixel_spacing} mm; the"
            f" nearest has {tuple(spacings[nearest].tolist())} mm"
        )
    return collection[nearest]


def sort_images_by_pixel_spacing(collection: Iterable[Dataset]) -> list[Dataset]:
    """Sort images by pixel spacing in ascending order (lowest to highest).

    Parameters
    ----------
    collection : sequence of pydicom.dataset.Dataset
        Metadata of DICOM VL Whole Slide Microscopy Image instances

    Returns
    -------
    list of pydicom.dataset.Dataset
        Images by the area of a pixel; images of one spacing stay in their order

    Raises
    ------
    MetadataError
        When an image has no pixel spacing.

    """
    return sorted(collection, key=lambda image: math.prod(spacing_of(image)))


def sort_images_by_size(collection: Iterable[Dataset]) -> list[Dataset]:
    """Sort images by size in descending order (largest to smallest).

    Parameters
    ----------
    collection : sequence of pydicom.dataset.Dataset
        Metadata of DICOM VL Whole Slide Microscopy Image instances

    Returns
    -------
    list of pydicom.dataset.Dataset
        Images by the number of pixels of their matrices; images of one size stay in their order

    Raises
    ------
    MetadataError
        When an image isn't tiled.

    """
    return sorted(collection, key=get_image_size, reverse=True)
