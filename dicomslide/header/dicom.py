"""Access to the elements of a data set: texts, numbers, codes and items; and its kind.

Invalid headers raise no error here: a value that is absent, empty or of another kind is None.
"""

from __future__ import annotations

import math
import operator
from collections.abc import MutableSequence
from typing import TYPE_CHECKING, Any

from dicomslide.enum import ImageFlavors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydicom.dataset import Dataset
    from pydicom.sr.coding import Code

__all__ = [
    "PER_ELEMENT",
    "BULK_SIMPLE_ANNOTATIONS_STORAGE",
    "PARAMETRIC_MAP_STORAGE",
    "SEGMENTATION_STORAGES",
    "VL_WHOLE_SLIDE_MICROSCOPY_IMAGE_STORAGE",
    "code_value",
    "codes",
    "counted",
    "image_flavor",
    "integer",
    "is_image",
    "is_lazy",
    "is_tiled_image",
    "items",
    "lacking_of",
    "meaning_of",
    "name_of",
    "nbytes",
    "nbytes_of_items",
    "number",
    "numbers",
    "stains_of",
    "text",
    "texts",
    "two_integers",
    "two_numbers",
]

VL_WHOLE_SLIDE_MICROSCOPY_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.77.1.6"
SEGMENTATION_STORAGES = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation Storage
        "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation Storage
    }
)
PARAMETRIC_MAP_STORAGE = "1.2.840.10008.5.1.4.1.1.30"
BULK_SIMPLE_ANNOTATIONS_STORAGE = "1.2.840.10008.5.1.4.1.1.91.1"
USING_SUBSTANCE = ("424361007", "G-C350")
"""Code of the concept "Using substance" in SNOMED CT, and its retired identifier (TID 8003)."""
LARGEST_INDEX = 2**62
"""Upper bound on pixel indices: sums of them fit into 64 bits."""
PER_ELEMENT = 500
"""Approximate memory of an element without its value, in bytes."""


def items(dataset: Dataset, keyword: str) -> Sequence[Dataset]:
    """Return the items of a sequence; empty where it is absent, or no sequence."""
    value: Any = dataset.get(keyword)
    if is_lazy(value):
        return value
    is_list = isinstance(value, MutableSequence)  # true of pydicom's sequences
    return value if is_list and all(hasattr(item, "keys") for item in value) else ()


def text(dataset: Dataset, keyword: str) -> str | None:
    """Return a value as text without padding; None where it is absent or empty.

    Several values are one text with backslashes between them, as they are stored (PS3.5 6.4).
    """
    return _text_of(dataset.get(keyword))


def _text_of(value: Any) -> str | None:
    if value is None:
        return None
    several = not isinstance(value, str) and isinstance(value, MutableSequence)
    return ("\\".join(map(str, value)) if several else str(value)).strip() or None


def meaning_of(codes: Any) -> str | None:
    """Return the Code Meaning of the first item of a code sequence; None where there is none."""
    for code in codes or ():
        return text(code, "CodeMeaning")
    return None


def is_lazy(value: Any) -> bool:
    """Whether a value is a :class:`~dicomslide.header.lazy_items.LazySequence`."""
    return getattr(value, "is_lazy", False) is True


def texts(found: Any, keyword: str) -> list[str | None]:
    """Return a value of each item as text without padding; None where it is absent or empty.

    Parameters
    ----------
    found : sequence of pydicom.dataset.Dataset
        Items of a sequence.
    keyword : str
        Keyword of the element.

    """
    if not is_lazy(found):
        return [text(item, keyword) for item in found]
    return list(map(_text_of, found.values(keyword)))


def number(dataset: Dataset, keyword: str) -> float | None:
    """Return a value as a number; None where it is absent, empty or not a number."""
    value = dataset.get(keyword)
    try:
        found = math.nan if value is None else float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """Return a value as `count` finite numbers; None where it isn't that."""
    value: Any = dataset.get(keyword)
    if isinstance(value, (str, bytes)) or not hasattr(value, "__len__") or len(value) != count:
        return None
    try:
        found = tuple(float(each) for each in value)
    except (TypeError, ValueError):
        return None
    return found if all(math.isfinite(each) for each in found) else None


def code_value(item: Dataset) -> str | None:
    """Return Code Value, Long Code Value or URN Code Value (PS3.3 8.8); None without one."""
    values = (text(item, kind) for kind in ("CodeValue", "LongCodeValue", "URNCodeValue"))
    return next(filter(None, values), None)


def codes(dataset: Dataset, keyword: str) -> Iterator[Code]:
    """Yield the codes of a code sequence that have a value."""
    from pydicom.sr.coding import Code  # imported late: it loads dictionaries of codes, in 0.1 s

    for item in items(dataset, keyword):
        value = code_value(item)
        if value is not None:
            yield Code(
                value=value,
                scheme_designator=text(item, "CodingSchemeDesignator") or "",
                meaning=text(item, "CodeMeaning") or value,
                scheme_version=text(item, "CodingSchemeVersion"),
            )


def integer(value: Any, name: str, *, least: int, most: int | None = LARGEST_INDEX) -> int:
    """Check an integer, such as a number of threads.

    Raises
    ------
    TypeError
        When `value` isn't an integer.
    ValueError
        When it is less than `least`, or more than `most`.

    """
    try:
        given = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} {value!r}: expected an integer from {least} on") from None
    if given < least:
        raise ValueError(f"{name} {given}: expected {least} or more")
    if most is not None and given > most:
        raise ValueError(f"{name} {given}: expected {most} or less")
    return given


def two_integers(values: Sequence[int], name: str, *, least: int | None = None) -> tuple[int, int]:
    """Check a pair of integers, such as rows and columns.

    Raises
    ------
    TypeError
        When `values` isn't a sequence of integers.
    ValueError
        When there aren't two, or one is less than `least` or too large.

    """
    expected = "expected two integers" + ("" if least is None else f" from {least} on")
    try:
        given = tuple(operator.index(value) for value in values)
    except TypeError:
        raise TypeError(f"{name} {values!r}: {expected}") from None
    low = -LARGEST_INDEX if least is None else least
    if len(given) != 2 or min(given) < low or max(given) > LARGEST_INDEX:
        raise ValueError(f"{name} {given}: {expected}")
    return given


def two_numbers(values: Sequence[float], name: str) -> tuple[float, float]:
    """Check a pair of finite numbers, such as x and y.

    Raises
    ------
    TypeError
        When `values` isn't a sequence of numbers.
    ValueError
        When there aren't two, or one isn't finite.

    """
    try:
        given = tuple(values)
        finite = all(map(math.isfinite, given))
    except TypeError:
        raise TypeError(f"{name} {values!r}: expected two numbers") from None
    if len(given) != 2 or not finite:
        raise ValueError(f"{name} {given}: expected two finite numbers")
    return float(given[0]), float(given[1])


def counted(count: int, what: str) -> str:
    """Return a count with its noun: ``1 level``, ``3 levels``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def nbytes(dataset: Dataset) -> int:
    """Return the approximate memory of a data set, in bytes."""
    total = 0
    for tag in tuple(dataset.keys()):
        element: Any = dataset.get_item(tag)
        value = None if element is None else element.value
        total += PER_ELEMENT
        if isinstance(value, (bytes, str)):
            total += len(value)
        elif not element.is_raw and element.VR == "SQ":
            total += nbytes_of_items(value or ())
    return total


def nbytes_of_items(found: Any) -> int:
    """Return the approximate memory of the items of a sequence, in bytes."""
    return found.nbytes if is_lazy(found) else sum(map(nbytes, found))


def name_of(dataset: Dataset) -> str:
    """Return the name of an instance for messages: its file name, else its SOP Instance UID."""
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


_FLAVORS = tuple(each.value for each in ImageFlavors)
_OF_IMAGES = ("Rows", "Columns")
_OF_MATRICES = ("TotalPixelMatrixColumns", "TotalPixelMatrixRows")


def lacking_of(dataset: Dataset, *, is_cut: bool = False) -> list[str]:
    """Return the keywords of what :func:`is_tiled_image` needs and the header of a slide lacks.

    Parameters
    ----------
    dataset : pydicom.dataset.Dataset
        Header. If it has no SOP Class UID, its file meta information gives it.
    is_cut : bool, default: False
        Whether the file ends within the header. Otherwise a segmentation or parametric map without
        a total pixel matrix is complete, as it isn't one of a slide; so is an image of a flavor
        that slides don't use, such as a localizer.

    Returns
    -------
    list of str
        Empty for a tiled image, and for instances of other SOP Classes than those of images of
        slides.

    """
    sop_class = text(dataset, "SOPClassUID")
    if sop_class is None and getattr(dataset, "file_meta", None) is not None:
        sop_class = text(dataset.file_meta, "MediaStorageSOPClassUID")
    is_slide = sop_class == VL_WHOLE_SLIDE_MICROSCOPY_IMAGE_STORAGE
    if not is_slide and sop_class not in (*SEGMENTATION_STORAGES, PARAMETRIC_MAP_STORAGE):
        return []
    lacking = [keyword for keyword in _OF_IMAGES if keyword not in dataset]
    absent = [keyword for keyword in _OF_MATRICES if not dataset.get(keyword)]
    is_needed = is_slide and image_flavor(dataset) in (None, *_FLAVORS)
    if is_needed or is_cut or len(absent) == 1:
        lacking += absent
    return lacking


def image_flavor(dataset: Dataset) -> str | None:
    """Return value 3 of Image Type (PS3.3 C.8.12.4.1.1), or None.

    A tiled image without that value is a VOLUME.
    """
    values: Any = dataset.get("ImageType")
    if isinstance(values, str):
        values = values.split("\\")
    if hasattr(values, "__len__") and len(values) > 2 and values[2]:
        return str(values[2]).strip()
    return ImageFlavors.VOLUME.value if is_tiled_image(dataset) else None


def stains_of(image: Dataset) -> list[str]:
    """Return the names of the specimens' stains (Specimen Description Sequence, TID 8003)."""
    found: dict[str | None, None] = {}
    for specimen in items(image, "SpecimenDescriptionSequence"):
        for content in _stains(specimen):
            for code in items(content, "ConceptCodeSequence"):
                found[text(code, "CodeMeaning")] = None
            found[text(content, "TextValue")] = None
    return [name for name in found if name]


def _stains(specimen: Dataset) -> Iterator[Dataset]:
    """Yield the content items whose concept is Using substance (TID 8003)."""
    for step in items(specimen, "SpecimenPreparationSequence"):
        for content in items(step, "SpecimenPreparationStepContentItemSequence"):
            names = items(content, "ConceptNameCodeSequence")
            if any(code_value(name) in USING_SUBSTANCE for name in names):
                yield content
