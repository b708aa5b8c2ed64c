"""Microscopy Bulk Simple Annotations (PS3.3 A.87): which are of a slide, and reading them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.annotation.graphic import BLOCK, NUM_POINTS
from dicomslide.annotation.group import AnnotationGroup, Measurement
from dicomslide.backends.base import layout_of
from dicomslide.backends.concatenation import ConcatenatedSource
from dicomslide.backends.part10.source import Part10Source
from dicomslide.errors import MetadataError, MetadataWarning
from dicomslide.header import dicom
from dicomslide.process.warn import warn

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

    from dicomslide.backends.base import FrameSource
    from dicomslide.header.geometry import SlideGeometry
    from dicomslide.image import TiledImage

__all__ = [
    "are_annotations_of",
    "find_annotation_groups",
    "labels_of_groups",
    "read_annotation_groups",
]

SMALL = 4 * 2**20
"""Bytes of a file that is read for its labels alone: a few milliseconds."""


def find_annotation_groups(
    sources: Sequence[FrameSource],
    images: Sequence[TiledImage],
    frame_of_reference_uids: Collection[str],
) -> tuple[AnnotationGroup, ...]:
    """Read the bulk annotations of a slide from among its sources.

    Those in millimetres are of the slide in whose frame of reference they are; those in pixels
    of the slide that has the image they refer to. Others are left out, with a warning.

    Parameters
    ----------
    sources : sequence of FrameSource
        Instances of any kind; headers tell which are annotations, and only those are read.
    images : sequence of TiledImage
        The images of the slide.
    frame_of_reference_uids : collection of str
        Frames of reference of the slide: one, or none, and several only where its levels differ.

    Raises
    ------
    MetadataError
        When annotations contradict themselves, or are of this frame of reference but in pixels
        of an image that isn't here.

    """
    groups: list[AnnotationGroup] = []
    for source in sources:
        header = source.metadata
        if are_annotations_of(header, images, frame_of_reference_uids):
            image = _annotated_image(header, images)
            groups.extend(read_annotation_groups(source.read_instance(), image=image))
        elif dicom.text(header, "SOPClassUID") == dicom.BULK_SIMPLE_ANNOTATIONS_STORAGE:
            warn(
                f"left out: {source.name}: annotations of another slide: its frame of reference is"
                f" {dicom.text(header, 'FrameOfReferenceUID')}, and it refers to"
                f" {list(_references(header))}",
                MetadataWarning,
            )
    return tuple(groups)


def labels_of_groups(
    sources: Sequence[FrameSource],
    images: Sequence[TiledImage],
    frame_of_reference_uids: Collection[str],
) -> tuple[str, ...]:
    """Return the Annotation Group Label of each group of a slide, as far as they cost little.

    Only small files are read for it. Of others, whose headers don't have them, the Series
    Description, or the name of the instance, stands for all groups of it.

    Parameters
    ----------
    sources, images, frame_of_reference_uids
        See :func:`find_annotation_groups`.

    """
    found: list[str] = []
    for source in sources:
        header = source.metadata
        if not are_annotations_of(header, images, frame_of_reference_uids):
            continue
        groups = list(dicom.items(header, "AnnotationGroupSequence"))
        if not groups and isinstance(source, Part10Source) and source.size <= SMALL:
            groups = list(dicom.items(source.read_instance(), "AnnotationGroupSequence"))
        labels = [dicom.text(group, "AnnotationGroupLabel") or "?" for group in groups]
        found.extend(labels or [dicom.text(header, "SeriesDescription") or source.name])
    return tuple(found)


def are_annotations_of(
    header: Dataset, images: Sequence[TiledImage], frame_of_reference_uids: Collection[str]
) -> bool:
    """Whether an instance holds bulk annotations of a slide, by its header alone."""
    if dicom.text(header, "SOPClassUID") != dicom.BULK_SIMPLE_ANNOTATIONS_STORAGE:
        return False
    frame = dicom.text(header, "FrameOfReferenceUID")
    if frame is not None and frame_of_reference_uids:
        if frame in frame_of_reference_uids:
            return True
        if _are_millimeters(header):  # of another place, whatever they refer to
            return False
    return _annotated_image(header, images) is not None


def _annotated_image(header: Dataset, images: Sequence[TiledImage]) -> TiledImage | None:
    """Return the image to which annotations refer, if it is here."""
    image_of = {uid: image for image in images for uid in _first_frames(image)}
    return next((image_of[uid] for uid in _references(header) if uid in image_of), None)


def _are_millimeters(dataset: Dataset) -> bool:
    return dicom.text(dataset, "AnnotationCoordinateType") == "3D"


def _references(dataset: Dataset) -> dict[str, Dataset]:
    """Return the items that name the images annotated, by SOP Instance UID."""
    found = list(dicom.items(dataset, "ReferencedImageSequence"))
    if not found:  # some writers name images by series only
        for series in dicom.items(dataset, "ReferencedSeriesSequence"):
            found.extend(dicom.items(series, "ReferencedInstanceSequence"))
    return {dicom.text(item, "ReferencedSOPInstanceUID") or "": item for item in found}


def _first_frames(image: TiledImage) -> dict[str, int]:
    """Return the instances of an image by UID: several of a concatenation, with their frames."""
    source = image._source
    if isinstance(source, ConcatenatedSource):
        parts = zip(source.parts, source.firsts, strict=True)
        return {dicom.text(part.metadata, "SOPInstanceUID") or "": at for part, at in parts}
    return {dicom.text(image.metadata, "SOPInstanceUID") or "": 0}


# -- reading ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class _Pixels:
    """What image-relative coordinates count from."""

    geometry: SlideGeometry
    first: tuple[int, int]
    """(row, column) of the pixel at whose top left corner they are (0, 0)."""

    def to_slide(self, points: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Map (column, row) to (x, y) in mm, shape (n, 2)."""
        mapped = np.empty(points.shape)
        # from the corner to the centres by which the geometry counts: PS3.3 C.8.12.4.1.4
        shift = np.asarray(self.first) - 0.5
        for start in range(0, len(points), BLOCK):
            part = slice(start, start + BLOCK)
            mapped[part] = self.geometry.to_slide(points[part, ::-1] + shift)
        return mapped


def read_annotation_groups(
    dataset: Dataset, *, image: TiledImage | None = None
) -> tuple[AnnotationGroup, ...]:
    """Read a Microscopy Bulk Simple Annotations instance (PS3.3 A.87).

    Parameters
    ----------
    dataset : pydicom.dataset.Dataset
        The whole instance, as :meth:`FrameSource.read_instance` gives it.
    image : TiledImage, optional
        The image that it refers to: annotations in pixels need it.

    Returns
    -------
    tuple of AnnotationGroup
        In the order of the Annotation Group Sequence.

    Raises
    ------
    MetadataError
        When the instance lacks what is needed or contradicts itself, when its annotations are
        in pixels of an image that isn't given, or of one without a place on the slide.

    """
    name = dicom.name_of(dataset)
    if dicom.text(dataset, "SOPClassUID") != dicom.BULK_SIMPLE_ANNOTATIONS_STORAGE:
        raise MetadataError(
            f"{name}: not Microscopy Bulk Simple Annotations, but of SOP class"
            f" {dataset.get('SOPClassUID')}"
        )
    try:
        pixels = _pixels_of(dataset, image)
    except MetadataError as error:
        raise MetadataError(f"{name}: {error}") from error
    # bytes of a data set are as in the file; one made in memory says nothing, and is as Intel's
    order = ">" if dataset.original_encoding[1] is False else "<"
    groups = []
    for position, item in enumerate(dicom.items(dataset, "AnnotationGroupSequence")):
        number = int(dicom.number(item, "AnnotationGroupNumber") or position + 1)
        try:
            groups.append(_read_group(item, number, pixels, order))
        except MetadataError as error:
            raise MetadataError(f"{name}: annotation group {number}: {error}") from None
    return tuple(groups)


def _pixels_of(dataset: Dataset, image: TiledImage | None) -> _Pixels | None:
    """Return what coordinates are relative to; None where they are millimetres."""
    if _are_millimeters(dataset):
        return None
    kind = dicom.text(dataset, "AnnotationCoordinateType")
    if kind != "2D":
        raise MetadataError(f"Annotation Coordinate Type is {kind}; expected 2D or 3D")
    references = _references(dataset)
    instances = {} if image is None else _first_frames(image)
    if image is None or not instances.keys() & references.keys():
        there = f"; {image.name} is another one" if image is not None else ""
        raise MetadataError(
            "its coordinates are pixels of the image"
            f" {', '.join(references) or 'that it fails to name'}, which isn't here{there}"
        )
    if len(references) > 1:
        raise MetadataError(
            f"its coordinates are pixels of one image, but it refers to {', '.join(references)}"
        )
    origin = dicom.text(dataset, "PixelOriginInterpretation")
    if origin is None:
        warn(
            f"{dicom.name_of(dataset)}: no Pixel Origin Interpretation: pixels are taken for those"
            " of the total pixel matrix",
            MetadataWarning,
        )
    elif origin not in ("VOLUME", "FRAME"):
        raise MetadataError(f"Pixel Origin Interpretation is {origin}; expected VOLUME or FRAME")
    if origin != "FRAME":
        return _Pixels(image.geometry, (0, 0))
    ((uid, reference),) = references.items()
    numbers = _several(reference, "ReferencedFrameNumber")
    if len(numbers) != 1:
        raise MetadataError(
            "its coordinates are pixels of one frame, but it names"
            f" {', '.join(map(str, numbers)) or 'none'}: expected one Referenced Frame Number"
        )
    layout = layout_of(image._source)
    try:
        frame = np.array([instances[uid] + int(numbers[0]) - 1])
        tile = int(layout.frames.places(frame)[2][0])
    except IndexError as error:
        raise MetadataError(f"Referenced Frame Number of {image.name}: {error}") from error
    row, column = layout.grid.position(tile)
    return _Pixels(image.geometry, (row * layout.grid.tile_rows, column * layout.grid.tile_columns))


def _read_group(item: Dataset, number: int, pixels: _Pixels | None, order: str) -> AnnotationGroup:
    graphic_type = dicom.text(item, "GraphicType")
    if graphic_type not in NUM_POINTS:
        raise MetadataError(
            f"Graphic Type is {graphic_type}; expected one of {', '.join(NUM_POINTS)}"
        )
    planes = tuple(float(z) for z in _several(item, "CommonZCoordinateValue"))
    values = _numbers(item, "DoublePointCoordinatesData", order + "f8")
    if not values.size:
        values = _numbers(item, "PointCoordinatesData", order + "f4")
    dimensions = 3 if pixels is None and not planes else 2
    if values.size % dimensions:
        raise MetadataError(f"{values.size} coordinates don't make points of {dimensions}")
    if not np.isfinite(values).all():
        wrong = int(np.argmin(np.isfinite(values))) // dimensions
        raise MetadataError(f"point {wrong + 1} of its coordinates isn't finite")
    points = values.reshape(-1, dimensions)
    offsets = _offsets(item, graphic_type, points, order)
    coordinates = points if pixels is None else pixels.to_slide(points)
    all_planes = dicom.text(item, "AnnotationAppliesToAllZPlanes") == "YES"
    all_paths = dicom.text(item, "AnnotationAppliesToAllOpticalPaths") == "YES"
    paths = tuple(str(path) for path in _several(item, "ReferencedOpticalPathIdentifier"))
    algorithms = dicom.items(item, "AnnotationGroupAlgorithmIdentificationSequence")
    count = len(offsets) - 1
    measurements = tuple(
        Measurement(
            name=next(dicom.codes(each, "ConceptNameCodeSequence"), None),
            unit=next(dicom.codes(each, "MeasurementUnitsCodeSequence"), None),
            values=_measured(each, count, order),
        )
        for each in dicom.items(item, "MeasurementsSequence")
    )
    for array in (coordinates, offsets, *(each.values for each in measurements)):
        array.flags.writeable = False
    return AnnotationGroup(
        number=number,
        uid=dicom.text(item, "AnnotationGroupUID"),
        label=dicom.text(item, "AnnotationGroupLabel"),
        description=dicom.text(item, "AnnotationGroupDescription"),
        graphic_type=graphic_type,
        property_category=next(dicom.codes(item, "AnnotationPropertyCategoryCodeSequence"), None),
        property_type=next(dicom.codes(item, "AnnotationPropertyTypeCodeSequence"), None),
        generation_type=dicom.text(item, "AnnotationGroupGenerationType"),
        algorithm_name=dicom.text(algorithms[0], "AlgorithmName") if algorithms else None,
        optical_paths=None if all_paths else paths or None,
        planes=None if all_planes else planes or None,
        coordinates=coordinates,
        offsets=offsets,
        measurements=measurements,
    )


def _offsets(
    item: Dataset, graphic_type: str, points: NDArray[np.floating[Any]], order: str
) -> NDArray[np.int64]:
    """Return where each annotation begins, and behind them the number of points."""
    declared = dicom.number(item, "NumberOfAnnotations")
    each = NUM_POINTS[graphic_type]
    if each is not None:
        if len(points) % each:
            raise MetadataError(f"{len(points)} points don't make {graphic_type}s of {each}")
        offsets = np.arange(0, len(points) + 1, each)
    else:
        indices = _numbers(item, "LongPrimitivePointIndexList", order + "u4").astype(np.int64)
        if not indices.size and len(points) and declared == 1:
            indices = np.ones(1, np.int64)  # required, but there is nothing to tell apart
        # one-based, of a point's first value among all values, not of a point among points
        starts, off = np.divmod(indices - 1, points.shape[1])
        expected = "ascending indices of values, from 1 on, of the first point of each annotation"
        if off.any():
            raise MetadataError(
                "Long Primitive Point Index List has"
                f" {indices[np.argmax(off != 0)]}, which isn't the first value of a point of"
                f" {points.shape[1]}; expected {expected}"
            )
        offsets = np.append(starts, len(points))
        if offsets[0] != 0 or (indices.size and np.any(np.diff(offsets) < 1)):
            raise MetadataError(
                f"Long Primitive Point Index List has {indices.size} indices that don't divide"
                f" {points.size} values: expected {expected}"
            )
    if declared is not None and declared != len(offsets) - 1:
        raise MetadataError(
            f"Number of Annotations is {declared:g}, but its coordinates are those of"
            f" {len(offsets) - 1}"
        )
    return offsets


def _measured(item: Dataset, count: int, order: str) -> NDArray[np.float32]:
    """Return one value an annotation, NaN where it has none."""
    values = np.full(count, np.nan, np.float32)
    measured = np.zeros(count, bool)
    for part in dicom.items(item, "MeasurementValuesSequence"):
        found = _numbers(part, "FloatingPointValues", order + "f4")
        if "AnnotationIndexList" in part:
            indices = _numbers(part, "AnnotationIndexList", order + "u4").astype(np.int64) - 1
        else:
            indices = np.arange(count)
        if len(found) != len(indices):
            raise MetadataError(
                f"a measurement has {len(found)} values for {len(indices)} annotations"
            )
        outside = indices[(indices < 0) | (indices >= count)]
        if outside.size:
            raise MetadataError(
                f"a measurement is of annotation {outside[0] + 1}; there are {count}, from 1 on"
            )
        if len(np.unique(indices)) < len(indices) or measured[indices].any():
            raise MetadataError("a measurement has several values for one annotation")
        values[indices] = found
        measured[indices] = True
    return values


def _numbers(item: Dataset, keyword: str, dtype: str) -> NDArray[Any]:
    """Return a value of bytes as numbers in the machine's own byte order, without a copy."""
    data = item.get(keyword)
    kind = np.dtype(dtype)
    if data is None:
        return np.empty(0, kind.newbyteorder("="))
    if not isinstance(data, bytes) or len(data) % kind.itemsize:
        raise MetadataError(f"{keyword} isn't a list of numbers of {kind.itemsize} bytes")
    return np.frombuffer(data, kind).astype(kind.newbyteorder("="), copy=False)


def _several(item: Dataset, keyword: str) -> list[Any]:
    value = item.get(keyword)
    if value is None or isinstance(value, (str, int, float)):
        return [] if value in (None, "") else [value]
    return list(value)
