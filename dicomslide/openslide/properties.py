"""Names and values of the properties of a slide in openslide-python, from its header."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from dicomslide.errors import MetadataError
from dicomslide.header import dicom
from dicomslide.header.placement import pixel_spacing_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pydicom.dataelem import DataElement
    from pydicom.dataset import Dataset

    from dicomslide.image import TiledImage
    from dicomslide.readers.matrix_reader import MatrixReader

__all__ = [
    "OPENSLIDE_NAMES",
    "PROPERTY_NAME_BACKGROUND_COLOR",
    "PROPERTY_NAME_BARCODE",
    "PROPERTY_NAME_BOUNDS_HEIGHT",
    "PROPERTY_NAME_BOUNDS_WIDTH",
    "PROPERTY_NAME_BOUNDS_X",
    "PROPERTY_NAME_BOUNDS_Y",
    "PROPERTY_NAME_COMMENT",
    "PROPERTY_NAME_MPP_X",
    "PROPERTY_NAME_MPP_Y",
    "PROPERTY_NAME_OBJECTIVE_POWER",
    "PROPERTY_NAME_QUICKHASH1",
    "PROPERTY_NAME_VENDOR",
    "VENDOR",
    "properties_of",
]

# DICOM has no background colour, bounds and comment; the names are defined for scripts
PROPERTY_NAME_BACKGROUND_COLOR = "openslide.background-color"
PROPERTY_NAME_BARCODE = "openslide.barcode"
PROPERTY_NAME_BOUNDS_HEIGHT = "openslide.bounds-height"
PROPERTY_NAME_BOUNDS_WIDTH = "openslide.bounds-width"
PROPERTY_NAME_BOUNDS_X = "openslide.bounds-x"
PROPERTY_NAME_BOUNDS_Y = "openslide.bounds-y"
PROPERTY_NAME_COMMENT = "openslide.comment"
PROPERTY_NAME_MPP_X = "openslide.mpp-x"
PROPERTY_NAME_MPP_Y = "openslide.mpp-y"
PROPERTY_NAME_OBJECTIVE_POWER = "openslide.objective-power"
PROPERTY_NAME_QUICKHASH1 = "openslide.quickhash-1"
PROPERTY_NAME_VENDOR = "openslide.vendor"

VENDOR = "dicom"
MICROMETERS = 1000  # in a millimetre
OPENSLIDE_NAMES = {"LABEL": "label", "OVERVIEW": "macro", "THUMBNAIL": "thumbnail"}
UNSPLIT = frozenset({"AS", "DA", "IS", "LO", "LT", "ST", "UR", "UT"})
"""Value representations whose values libopenslide leaves joined by backslashes."""


def properties_of(
    image: TiledImage,
    levels: Sequence[MatrixReader],
    downsamples: Sequence[float],
    associated: Mapping[str, MatrixReader],
) -> dict[str, str]:
    """Return the properties of a slide, sorted by name.

    Parameters
    ----------
    image : TiledImage
        Image of level 0, whose header gives the values.
    levels : sequence of MatrixReader
        From the largest to the smallest.
    downsamples : sequence of float
        Factor of each level.
    associated : mapping of str to MatrixReader
        Label, overview and thumbnail by flavor.

    """
    base = levels[0]
    metadata = image.metadata
    found = {PROPERTY_NAME_VENDOR: VENDOR, "openslide.level-count": str(len(levels))}
    for part in (getattr(metadata, "file_meta", None), metadata):
        found.update(_elements_of(part or (), "dicom"))
    if "dicom.BarcodeValue" in found:
        found[PROPERTY_NAME_BARCODE] = found["dicom.BarcodeValue"]
    for i, (reader, downsample) in enumerate(zip(levels, downsamples, strict=True)):
        grid = reader.layout.grid
        level = f"openslide.level[{i}]"
        found[f"{level}.width"], found[f"{level}.height"] = str(grid.columns), str(grid.rows)
        found[f"{level}.tile-width"] = str(grid.tile_columns)
        found[f"{level}.tile-height"] = str(grid.tile_rows)
        found[f"{level}.downsample"] = _decimal(downsample)
    found.update(_icc_size("openslide", base))
    for flavor, reader in associated.items():
        name = f"openslide.associated.{OPENSLIDE_NAMES[flavor]}"
        found[f"{name}.width"], found[f"{name}.height"] = map(str, reader.shape[1::-1])
        found.update(_icc_size(name, reader))
    spacing = _spacing_of(image)
    if spacing is not None:
        # (between rows, between columns) is (y, x)
        found[PROPERTY_NAME_MPP_Y] = _decimal(spacing[0] * MICROMETERS)
        found[PROPERTY_NAME_MPP_X] = _decimal(spacing[1] * MICROMETERS)
    path = base.layout.channels[base.channel_index].item
    power = None if path is None else dicom.number(path, "ObjectiveLensPower")
    if power:
        found[PROPERTY_NAME_OBJECTIVE_POWER] = _decimal(power)
    series = dicom.text(metadata, "SeriesInstanceUID")
    if series is not None:
        # libopenslide hashes the UID with the zero byte that terminates it in C
        found[PROPERTY_NAME_QUICKHASH1] = hashlib.sha256(series.encode() + b"\0").hexdigest()
    return dict(sorted(found.items()))


def _icc_size(name: str, reader: MatrixReader) -> dict[str, str]:
    profile = reader.icc_profile
    return {} if profile is None else {f"{name}.icc-size": str(len(profile))}


def _spacing_of(image: TiledImage) -> tuple[float, float] | None:
    """Return the spacing between rows and between columns in mm, derived if it isn't stated."""
    spacing = pixel_spacing_of(image._source.metadata)
    if spacing is not None:
        return spacing
    try:
        return image.pixel_spacing
    except MetadataError:
        return None


def _decimal(value: float) -> str:
    """Format a number as libopenslide does: 17 significant digits, without trailing zeros."""
    return f"{value:.17g}"


def _elements_of(dataset: Iterable[DataElement], prefix: str) -> Iterator[tuple[str, str]]:
    """Yield (name, value) of elements that have a keyword, sequence items included."""
    for element in dataset:
        if not element.keyword or element.tag.element == 0:  # private, or a group length
            continue
        name = f"{prefix}.{element.keyword}"
        if element.VR == "SQ":
            items: Iterable[Dataset] = element.value or ()
            for i, item in enumerate(items):
                yield from _elements_of(item, f"{name}[{i}]")
            continue
        values = _texts_of(element)
        if len(values) == 1:
            yield name, values[0]
        else:
            yield from ((f"{name}[{i}]", value) for i, value in enumerate(values))


def _texts_of(element: DataElement) -> list[str]:
    """Return the values of an element as text; an empty list for bytes and absent values."""
    value: Any = element.value
    if value is None and element.VR in ("DS", "IS"):
        value = ""
    if value is None or isinstance(value, bytes):
        return []
    values = list(value) if element.VM > 1 else [value]
    if element.VR == "AT":  # a tag is written as its group and its element number
        return [str(part) for tag in values for part in (tag >> 16, tag & 0xFFFF)]
    texts = [_decimal(each) if type(each) is float else str(each) for each in values]
    return ["\\".join(texts)] if element.VR in UNSPLIT else texts
