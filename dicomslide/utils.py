"""What kind of data set is this, and what does it say."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from dicomslide.enum import ImageFlavors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydicom.dataset import Dataset

__all__ = [
    "SEGMENTATION_STORAGES",
    "PARAMETRIC_MAP_STORAGE",
    "VL_WHOLE_SLIDE_MICROSCOPY_IMAGE_STORAGE",
    "image_flavor",
    "is_image",
    "is_label_image",
    "is_overview_image",
    "is_tiled_image",
    "is_volume_image",
    "items",
    "name_of",
    "number",
    "numbers",
    "text",
]

VL_WHOLE_SLIDE_MICROSCOPY_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.77.1.6"
SEGMENTATION_STORAGES = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation Storage
        "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation Storage
    }
)
PARAMETRIC_MAP_STORAGE = "1.2.840.10008.5.1.4.1.1.30"


def items(dataset: Dataset | None, keyword: str) -> Sequence[Dataset]:
    """Return the items of a sequence; none where it, or the data set, is absent or empty."""
    value = None if dataset is None else dataset.get(keyword)
    return () if value is None else value


def text(dataset: Dataset, keyword: str) -> str | None:
    """Return a value as text without padding; None where it is absent or empty."""
    value = dataset.get(keyword)
    stripped = "" if value is None else str(value).strip()
    return stripped or None


def number(dataset: Dataset, keyword: str) -> float | None:
    """Return a value as a number; None where it is absent, empty or not a number."""
    value = dataset.get(keyword)
    try:
        found = math.nan if value is None else float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """Return so many finite values as numbers; None where there are fewer, more, or others."""
    value: Any = dataset.get(keyword)
    if isinstance(value, (str, bytes)) or not hasattr(value, "__len__") or len(value) != count:
        return None
    try:
        found = tuple(float(each) for each in value)
    except (TypeError, ValueError):
        return None
    return found if all(math.isfinite(each) for each in found) else None


def name_of(dataset: Dataset) -> str:
    """Return what messages call an instance: its file if it has one, else its UID."""
    return getattr(dataset, "filename", None) or text(dataset, "SOPInstanceUID") or "image"


def is_image(dataset: Dataset) -> bool:
    """Determine whether a dataset is an image.

    Parameters
    ----------
    dataset : pydicom.dataset.Dataset
        Dataset

    Returns
    -------
    bool
        Whether dataset is an image: whether it has Rows and Columns (PS3.3 C.7.6.3).

    """
    return "Rows" in dataset and "Columns" in dataset


def is_tiled_image(dataset: Dataset) -> bool:
    """Determine whether a dataset is a tiled image.

    Parameters
    ----------
    dataset : pydicom.dataset.Dataset
        Dataset

    Returns
    -------
    bool
        Whether dataset is an image with Total Pixel Matrix Rows and Columns.

    """
    return (
        is_image(dataset)
        and bool(dataset.get("TotalPixelMatrixRows"))
        and bool(dataset.get("TotalPixelMatrixColumns"))
    )


def image_flavor(dataset: Dataset) -> str | None:
    """Return value 3 of Image Type (PS3.3 C.8.12.4.1.1), or None.

    A derived image that gives no flavor, or a VL image without Image Type, is taken for
    a VOLUME: nothing else is tiled.
    """
    values: Any = dataset.get("ImageType")
    if isinstance(values, str):
        values = values.split("\\")
    if values is not None and len(values) > 2 and values[2]:
        return str(values[2]).strip()
    return ImageFlavors.VOLUME.value if is_tiled_image(dataset) else None


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
    return is_image(dataset) and image_flavor(dataset) in flavors


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
    return is_image(dataset) and image_flavor(dataset) == ImageFlavors.LABEL.value


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
    return is_image(dataset) and image_flavor(dataset) == ImageFlavors.OVERVIEW.value
