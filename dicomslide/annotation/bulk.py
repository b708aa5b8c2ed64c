"""Reader of Microscopy Bulk Simple Annotations (PS3.3 A.87), and their assignment to slides."""

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
"""Upper bound on the bytes of a file that is read for its labels only: it takes milliseconds."""


def find_annotation_groups(
    sources: Sequence[FrameSource],
    images: Sequence[TiledImage],
    frame_of_reference_uids: Collection[str],
) -> tuple[AnnotationGroup, ...]:
    """Read the bulk annotations of a slide.

    Annotations in millimetres belong to the slide with their Frame of Reference UID; those in
    pixels to the slide that has the image they refer to. Others are left out, with a warning.

    Parameters
    ----------
    sources : sequence of FrameSource
        Instances of any kind. Only those that are annotations by their headers are read.
    images : sequence of TiledImage
        The images of the slide.
    frame_of_reference_uids : collection of str
        Frame of Reference UIDs of the slide: several only where its levels have different ones.

    Returns
    -------
    tuple of AnnotationGroup

    Raises
    ------
    MetadataError
        When annotations contradict themselves, or have the frame of reference of the slide but are
        in pixels of an image that the slide lacks.

    Warns
    -----
    MetadataWarning
        For each instance that is left out.

    """
    groups: list[AnnotationGroup] = []
    for source in sources:
        header = source.metadata
        if are_annotations_of(header, images, frame_of_reference_uids):
            image = _annotated_image(header, images)
            groups.extend(read_annotation_groups(source.read_instance(), image=image))
        elif dicom.text(header, "SOPClassUID") == dicom.BULK_SIMPLE_ANNOTATIONS_STORAGE:
            warn(
                f"left out: {source.name}: annotations of another slide: the frame of reference is"
                f" {dicom.text(header, 'FrameOfReferenceUID')}, the referenced images are"
                f" {list(_references(header))}",
                MetadataWarning,
            )
    return tuple(groups)


def labels_of_groups(
    sources: Sequence[FrameSource],
    images: Sequence[TiledImage],
    frame_of_reference_uids: Collection[str],
) -> tuple[str, ...]:
    """Return the Annotation Group Labels of a slide, without reading large or remote files.

    Such a file contributes one label: its Series Description, or its name.

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
        if _are_millimeters(header):  # of another frame of reference, whatever image they refer to
            return False
    return _annotated_image(header, images) is not None


def _annotated_image(header: Dataset, images: Sequence[TiledImage]) -> TiledImage | None:
    """Return the image to which annotations refer; None where it isn't among `images`."""
    image_of = {uid: image for image in images for uid in _first_frames(image)}
    return next((image_of[uid] for uid in _references(header) if uid in image_of), None)


def _are_millimeters(dataset: Dataset) -> bool:
    return dicom.text(dataset, "AnnotationCoordinateType") == "3D"


def _references(dataset: Dataset) -> dict[str, Dataset]:
    """Return the items that reference the annotated images, by SOP Instance UID."""
    found = list(dicom.items(dataset, "ReferencedImageSequence"))
    if not found:  # some writers reference images in the series' items only
        for series in dicom.items(dataset, "ReferencedSeriesSequence"):
            found.extend(dicom.items(series, "ReferencedInstanceSequence"))
    return {dicom.text(item, "ReferencedSOPInstanceUID") or "": item for item in found}


def _first_frames(image: TiledImage) -> dict[str, int]:
    """Return the first frame of each instance of an image, by SOP Instance UID.

    A concatenation has several instances.
    """
    source = image._source
    if isinstance(source, ConcatenatedSource):
        parts = zip(source.parts, source.firsts, strict=True)
        return {dicom.text(part.metadata, "SOPInstanceUID") or "": at for part, at in parts}
    return {dicom.text(image.metadata, "SOPInstanceUID") or "": 0}


# -- reading ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class _PixelOrigin:
    """Origin of image-relative coordinates."""

    geometry: SlideGeometry
    first: tuple[int, int]
    """(row, column) of the pixel whose top left corner has the coordinates (0, 0)."""

    def to_slide(self, points: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Map (column, row) to (x, y) in mm, shape (n, 2)."""
        mapped = np.empty(points.shape)
        # coordinates are relative to a corner, those of the geometry to centres: C.8.12.4.1.4
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
        The whole instance: see :meth:`FrameSource.read_instance`.
    image : TiledImage, optional
        The image that the instance refers to; required for annotations in pixels.

    Returns
    -------
    tuple of AnnotationGroup
        In the order of the Annotation Group Sequence.

    Raises
    ------
    MetadataError
        When the instance isn't of this SOP class, lacks an attribute or contradicts itself; when
        its annotations are in pixels and `image` isn't the image they refer to, or lacks its
        position on the slide.

    """
    name = dicom.name_of(dataset)
    if dicom.text(dataset, "SOPClassUID") != dicom.BULK_SIMPLE_ANNOTATIONS_STORAGE:
        raise MetadataError(
            f"{name}: not Microscopy Bulk Simple Annotations: its SOP class is"
            f" {dataset.get('SOPClassUID')}"
        )
    try:
        origin = _origin_of_pixels(dataset, image)
    except MetadataError as error:
        raise MetadataError(f"{name}: {error}") from error
    # arrays have the byte order of the file; data sets made in memory are little-endian
    order = ">" if dataset.original_encoding[1] is False else "<"
    frame = dicom.text(dataset, "FrameOfReferenceUID")
    if image is not None and origin is not None:
        frame = dicom.text(image.metadata, "FrameOfReferenceUID") or frame
    groups = []
    for position, item in enumerate(dicom.items(dataset, "AnnotationGroupSequence")):
        number = int(dicom.number(item, "AnnotationGroupNumber") or position + 1)
        try:
            group = _read_group(item, number, origin, order)
            groups.append(dataclasses.replace(group, frame_of_reference_uid=frame))
        except MetadataError as error:
            raise MetadataError(f"{name}: annotation group {number}: {error}") from None
    return tuple(groups)


def _origin_of_pixels(dataset: Dataset, image: TiledImage | None) -> _PixelOrigin | None:
    """Return the origin of coordinates in pixels; None where coordinates are millimetres."""
    if _are_millimeters(dataset):
        return None
    kind = dicom.text(dataset, "AnnotationCoordinateType")
    if kind != "2D":
        raise MetadataError(f"Annotation Coordinate Type is {kind}; expected 2D or 3D")
    references = _references(dataset)
    instances = {} if image is None else _first_frames(image)
    if image is None or not instances.keys() & references.keys():
        other = f"; {image.name} is another image" if image is not None else ""
        raise MetadataError(
            "its coordinates are pixels of the image"
            f" {', '.join(references) or '(no image is referenced)'}, which isn't here{other}"
        )
    if len(references) > 1:
        raise MetadataError(
            f"its coordinates are pixels of one image, but it refers to {', '.join(references)}"
        )
    origin = dicom.text(dataset, "PixelOriginInterpretation")
    if origin is None:
        warn(
            f"{dicom.name_of(dataset)}: no Pixel Origin Interpretation: coordinates are read as"
            " pixels of the total pixel matrix (VOLUME)",
            MetadataWarning,
        )
    elif origin not in ("VOLUME", "FRAME"):
        raise MetadataError(f"Pixel Origin Interpretation is {origin}; expected VOLUME or FRAME")
    if origin != "FRAME":
        return _PixelOrigin(image.geometry, (0, 0))
    ((uid, reference),) = references.items()
    numbers = _several(reference, "ReferencedFrameNumber")
    if len(numbers) != 1:
        raise MetadataError(
            "its coordinates are pixels of one frame: expected one Referenced Frame Number, not"
            f" {', '.join(map(str, numbers)) or 'none'}"
        )
    layout = layout_of(image._source)
    try:
        frame = np.array([instances[uid] + int(numbers[0]) - 1])
        tile = int(layout.frames.locate(frame)[2][0])
    except IndexError as error:
        raise MetadataError(f"Referenced Frame Number of {image.name}: {error}") from error
    row, column = layout.grid.position(tile)
    first = row * layout.grid.tile_rows, column * layout.grid.tile_columns
    return _PixelOrigin(image.geometry, first)


def _read_group(
    item: Dataset, number: int, origin: _PixelOrigin | None, order: str
) -> AnnotationGroup:
    graphic_type = dicom.text(item, "GraphicType")
    if graphic_type not in NUM_POINTS:
        raise MetadataError(
            f"Graphic Type is {graphic_type}; expected one of {', '.join(NUM_POINTS)}"
        )
    planes = tuple(float(z) for z in _several(item, "CommonZCoordinateValue"))
    values = _numbers(item, "DoublePointCoordinatesData", order + "f8")
    if not values.size:
        values = _numbers(item, "PointCoordinatesData", order + "f4")
    dimensions = 3 if origin is None and not planes else 2
    if values.size % dimensions:
        raise MetadataError(
            f"{values.size} coordinates aren't a multiple of {dimensions} per point"
        )
    if not np.isfinite(values).all():
        wrong = int(np.argmin(np.isfinite(values))) // dimensions
        raise MetadataError(f"point {wrong + 1} of its coordinates isn't finite")
    points = values.reshape(-1, dimensions)
    offsets = _offsets(item, graphic_type, points, order)
    coordinates = points if origin is None else origin.to_slide(points)
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
    """Return the index of the first point of each annotation, and last the number of points."""
    declared = dicom.number(item, "NumberOfAnnotations")
    each = NUM_POINTS[graphic_type]
    if each is not None:
        if len(points) % each:
            raise MetadataError(
                f"{len(points)} points aren't a multiple of {each} per {graphic_type}"
            )
        offsets = np.arange(0, len(points) + 1, each)
    else:
        indices = _numbers(item, "LongPrimitivePointIndexList", order + "u4").astype(np.int64)
        if not indices.size and len(points) and declared == 1:
            indices = np.ones(1, np.int64)  # the list is required, but has only one possible value
        # one-based indices into the values, not into the points
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
                f"Long Primitive Point Index List has {indices.size} indices that aren't valid for"
                f" {points.size} values: expected {expected}"
            )
    if declared is not None and declared != len(offsets) - 1:
        raise MetadataError(
            f"Number of Annotations is {declared:g}, but there are coordinates of"
            f" {len(offsets) - 1}"
        )
    return offsets


def _measured(item: Dataset, count: int, order: str) -> NDArray[np.float32]:
    """Return one value per annotation, NaN where there is none."""
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
                f"a measurement refers to annotation {outside[0] + 1}; there are {count}, from 1 on"
            )
        if len(np.unique(indices)) < len(indices) or measured[indices].any():
            raise MetadataError("a measurement has several values for one annotation")
        values[indices] = found
        measured[indices] = True
    return values


def _numbers(item: Dataset, keyword: str, dtype: str) -> NDArray[Any]:
    """Return a binary value as numbers in native byte order, without a copy where possible."""
    data = item.get(keyword)
    kind = np.dtype(dtype)
    if data is None:
        return np.empty(0, kind.newbyteorder("="))
    if not isinstance(data, bytes) or len(data) % kind.itemsize:
        raise MetadataError(f"{keyword} isn't an array of numbers of {kind.itemsize} bytes")
    return np.frombuffer(data, kind).astype(kind.newbyteorder("="), copy=False)


def _several(item: Dataset, keyword: str) -> list[Any]:
    value = item.get(keyword)
    if value is None or isinstance(value, (str, int, float)):
        return [] if value in (None, "") else [value]
    return list(value)
