"""Predicates on data sets (kind of image) and on items (match of given attributes)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dicomslide.enum import ImageFlavors
from dicomslide.header import dicom
from dicomslide.header.dicom import is_image, is_tiled_image

if TYPE_CHECKING:
    from typing import TypeAlias

    from highdicom.sr import CodedConcept
    from pydicom.dataset import Dataset
    from pydicom.sr.coding import Code

    AnyCode: TypeAlias = Code | CodedConcept

__all__ = [
    "does_optical_path_item_match",
    "does_segment_item_match",
    "does_specimen_description_item_match",
    "is_image",
    "is_label_image",
    "is_overview_image",
    "is_tiled_image",
    "is_volume_image",
]

SINGLE_PRECISION = 2.0**-23
"""Relative tolerance of equal 32-bit floating-point numbers (VR FL)."""


def is_volume_image(dataset: Dataset) -> bool:
    """Determine whether a dataset is a VOLUME or THUMBNAIL image.

    Parameters
    ----------
    dataset : pydicom.dataset.Dataset
        Dataset

    Returns
    -------
    bool
        Whether dataset is a VOLUME or THUMBNAIL image

    """
    flavors = (ImageFlavors.VOLUME.value, ImageFlavors.THUMBNAIL.value)
    return is_image(dataset) and dicom.image_flavor(dataset) in flavors


def is_label_image(dataset: Dataset) -> bool:
    """Determine whether a dataset is a LABEL image.

    Parameters
    ----------
    dataset : pydicom.dataset.Dataset
        Dataset

    Returns
    -------
    bool
        Whether dataset is a LABEL image

    """
    return is_image(dataset) and dicom.image_flavor(dataset) == ImageFlavors.LABEL.value


def is_overview_image(dataset: Dataset) -> bool:
    """Determine whether a dataset is an OVERVIEW image.

    Parameters
    ----------
    dataset : pydicom.dataset.Dataset
        Dataset

    Returns
    -------
    bool
        Whether dataset is an OVERVIEW image

    """
    return is_image(dataset) and dicom.image_flavor(dataset) == ImageFlavors.OVERVIEW.value


def does_optical_path_item_match(
    item: Dataset,
    identifier: str | None = None,
    description: str | None = None,
    illumination_wavelength: float | None = None,
) -> bool:
    """Check whether an optical path item matches.

    Parameters
    ----------
    item : pydicom.dataset.Dataset
        Item of the Optical Path Sequence
    identifier : str, optional
        Optical Path Identifier
    description : str, optional
        Optical Path Description
    illumination_wavelength : float, optional
        Illumination Wave Length in nm, compared in single precision (its VR is FL)

    Returns
    -------
    bool
        Whether the item matches all given attributes

    """
    if illumination_wavelength is not None:
        wavelength = dicom.number(item, "IlluminationWaveLength")
        if wavelength is None or not math.isclose(
            wavelength, illumination_wavelength, rel_tol=SINGLE_PRECISION
        ):
            return False
    return _has_text(item, "OpticalPathIdentifier", identifier) and _has_text(
        item, "OpticalPathDescription", description
    )


def does_segment_item_match(
    item: Dataset,
    number: int | None = None,
    label: str | None = None,
    property_category: AnyCode | None = None,
    property_type: AnyCode | None = None,
) -> bool:
    """Check whether a segment item matches.

    Parameters
    ----------
    item : pydicom.dataset.Dataset
        Item of the Segment Sequence
    number : int, optional
        Segment Number
    label : str, optional
        Segment Label
    property_category : pydicom.sr.coding.Code or highdicom.sr.CodedConcept, optional
        Segmented Property Category, compared as pydicom does: a retired SNOMED identifier (SRT)
        equals its concept in SNOMED CT (SCT)
    property_type : pydicom.sr.coding.Code or highdicom.sr.CodedConcept, optional
        Segmented Property Type, compared in the same way

    Returns
    -------
    bool
        Whether the item matches all given attributes

    Raises
    ------
    TypeError
        When a category or type isn't a code

    """
    return (
        _has_text(item, "SegmentNumber", number)
        and _has_text(item, "SegmentLabel", label)
        and _has_code(item, "SegmentedPropertyCategoryCodeSequence", property_category)
        and _has_code(item, "SegmentedPropertyTypeCodeSequence", property_type)
    )


def does_specimen_description_item_match(
    item: Dataset, specimen_stain: AnyCode | None = None
) -> bool:
    """Check whether a specimen description item matches.

    Parameters
    ----------
    item : pydicom.dataset.Dataset
        Item of the Specimen Description Sequence
    specimen_stain : pydicom.sr.coding.Code or highdicom.sr.CodedConcept, optional
        Stain of the specimen, in any step of its preparation (TID 8003). A stain given as text
        has no code, and never matches

    Returns
    -------
    bool
        Whether the item matches

    Raises
    ------
    TypeError
        When `specimen_stain` isn't a code

    """
    return specimen_stain is None or any(
        _has_code(content, "ConceptCodeSequence", specimen_stain) for content in dicom._stains(item)
    )


def _has_text(item: Dataset, keyword: str, wanted: object) -> bool:
    return wanted is None or dicom.text(item, keyword) == str(wanted).strip()


def _has_code(item: Dataset, keyword: str, wanted: AnyCode | None) -> bool:
    if wanted is not None and not hasattr(wanted, "scheme_designator"):
        raise TypeError(
            f"{wanted!r} isn't a code; expected a pydicom.sr.coding.Code, or a"
            " highdicom.sr.CodedConcept, such as Code('108369006', 'SCT', 'Tumor')"
        )
    return wanted is None or any(code == wanted for code in dicom.codes(item, keyword))
