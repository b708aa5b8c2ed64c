"""`write_annotations`: points, lines and shapes as Microscopy Bulk Simple Annotations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dicomslide.annotation.graphic import BLOCK, NUM_POINTS
from dicomslide.annotation.group import AnnotationGroup
from dicomslide.errors import AnnotationError, MetadataError
from dicomslide.header.dicom import BULK_SIMPLE_ANNOTATIONS_STORAGE
from dicomslide.header.layout import MICROMETERS
from dicomslide.slide import Slide, open_slide
from dicomslide.write.bulk import Bulk, write_bulk
from dicomslide.write.choices import check_choice
from dicomslide.write.codes import QUANTITIES, coded, measurement_items, unit_item
from dicomslide.write.graphics import checked, graphics_of
from dicomslide.write.grids import grid_of_level
from dicomslide.write.headers import (
    LONGEST_LO,
    SeriesOptions,
    code_item,
    derived_header,
    item,
    new_uid,
    references,
)
from dicomslide.write.segments import UNNAMED, algorithm_items, cielab_of, codes_of_word
from dicomslide.write.targets import stem_of, target_at

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

    from dicomslide.write.graphics import Graphics
    from dicomslide.write.grids import Grid

__all__ = ["write_annotations"]


def write_annotations(
    annotations: Any,
    slide: Slide | Any,
    target: str | os.PathLike[str] | Any,
    *,
    label: str | None = None,
    coordinates: Literal["3D", "2D"] = "3D",
    level: int = 0,
    graphic_type: str | Mapping[str, str] | None = None,
    property_category: Any = None,
    property_type: Any = None,
    measurements: Sequence[str] | Mapping[str, Any] | None = None,
    algorithm: Any = None,
    algorithm_type: Literal["AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"] | None = None,
    dtype: Literal["float64", "float32"] = "float64",
    z: float | None = None,
    optical_paths: Sequence[str] | None = None,
    description: str | None = None,
    color: Any = None,
    overwrite: bool = False,
    name: str = "annotations",
    series_description: str | None = None,
    series_number: int = 102,
    series_instance_uid: str | None = None,
    content_creator: str = "",
    storage_options: Mapping[str, Any] | None = None,
    temporary_folder: str | os.PathLike[str] | None = None,
) -> list[str]:
    """Write annotations of a slide as DICOM Microscopy Bulk Simple Annotations (PS3.3 A.87).

    Coordinates are written from arrays, without an object per annotation. Patient, study, frame of
    reference, container and specimens are those of the slide.

    Parameters
    ----------
    annotations : GeoDataFrame, DataFrame, AnnotationGroup, numpy.ndarray, tuple or mapping
        Annotations in mm on the slide: points, line strings or polygons of geopandas; a table with
        the columns ``x`` and ``y`` (and ``z``) of points; a group of annotations; an array, shape
        (n, points, 2 or 3); or (points, offsets), where annotation i has the points
        ``points[offsets[i]:offsets[i + 1]]``. Polygons may be closed or not; what is written isn't,
        as the standard has it. A mapping from labels to these is several groups of one instance.
    slide : Slide, or what :func:`open_slide` takes
        The slide.
    target : path-like, str or dicomweb_client.api.DICOMwebClient
        See :func:`write_segmentation`.
    label : str, optional
        Annotation Group Label. By default that of a group of annotations; for a mapping, its keys.
    coordinates : {"3D", "2D"}, default: "3D"
        Whether coordinates are written as millimetres on the slide, or as columns and rows of the
        total pixel matrix of a level, (0, 0) at its corner.
    level : int, default: 0
        Zero-based level, to which the annotations refer.
    graphic_type : {"POINT", "POLYLINE", "POLYGON", "ELLIPSE", "RECTANGLE"} or mapping, optional
        By default what the shapes are; for arrays POLYGON. Of several groups, a mapping by label.
        RECTANGLE: four corners in order. ELLIPSE: four points, the ends of the longer, then of the
        shorter axis, as arrays or line strings.
    property_category, property_type : str, pydicom.sr.coding.Code, tuple or mapping, optional
        What is annotated: a word, such as ``"nucleus"``, or a code; of several groups, a mapping
        by label. By default the label, if it is such a word; else Image Region.
    measurements : sequence of str or mapping, optional
        Columns of the table whose numbers are measurements; or a mapping from columns to (quantity,
        unit), each a code or a word (``"area"``; UCUM for the unit). For a group of annotations by
        default its own. NaN is no measurement. Stored as float32.
    algorithm : str, mapping or highdicom.AlgorithmIdentificationSequence, optional
        Name and version, such as ``"net 2.1"``, of what made the annotations. By default that of a
        group of annotations.
    algorithm_type : {"AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"}, optional
        Annotation Group Generation Type. By default that of a group of annotations, else AUTOMATIC.
    dtype : {"float64", "float32"}, default: "float64"
        How coordinates are stored. float32 halves the file; in mm it is wrong by up to 1 nm per
        16 mm from the origin of the slide, in pixels of a level by 1/256 of a pixel.
    z : float, optional
        z in mm of annotations without one. By default that of their focal plane, or of the first
        one of the slide.
    optical_paths : sequence of str, optional
        Optical Path Identifiers for which the annotations hold; by default those of a group of
        annotations, else all.
    description, color : optional
        Annotation Group Description, by default that of a group; colour for viewers,
        ``"#rrggbb"`` or (r, g, b).
    overwrite : bool, default: False
        Whether an existing file or object is replaced.
    name : str, default: "annotations"
        Name of the file, without ``.dcm``.
    series_description, series_number, series_instance_uid, content_creator : optional
        Of the series; a new one by default.
    storage_options, temporary_folder : optional
        See :func:`write_segmentation`.

    Returns
    -------
    list of str
        Path or URL of the instance; its SOP Instance UID for a server.

    Raises
    ------
    AnnotationError
        When shapes don't fit: coordinates that aren't finite, holes, several parts, several kinds
        in one group; or measurements: infinite, or text.
    GridError
        When the shapes have another frame of reference than the slide.
    MetadataError
        When the slide's header lacks origin or spacing (for 2D), or its frame of reference.
    StoreExistsError, ExportError, StorageRefusedError
        See :func:`write_segmentation`.
    TypeError, ValueError
        When an argument is something else than is described here.

    Examples
    --------
    >>> import geopandas, shapely
    >>> circles = shapely.points([(16.3, 29.4), (16.2, 29.3)]).tolist()
    >>> nuclei = geopandas.GeoDataFrame(geometry=circles).buffer(0.005).to_frame("geometry")
    >>> nuclei["area"] = nuclei.area  # mm²
    >>> paths = dicomslide.write_annotations(
    ...     nuclei, slide, "results/", label="nucleus", measurements=["area"], algorithm="net 2.1"
    ... )

    """
    check_choice("coordinates", coordinates, ("3D", "2D"))
    check_choice("dtype", dtype, ("float64", "float32"))
    check_choice("algorithm_type", algorithm_type, (None, "AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"))
    stem_of(name)
    slide = slide if isinstance(slide, Slide) else open_slide(slide)
    to = target_at(
        target,
        overwrite=overwrite,
        storage_options=storage_options,
        temporary_folder=temporary_folder,
    )
    groups = _labelled(annotations, label)
    _check_labels(groups, graphic_type, property_category, property_type)
    file = f"{name}.dcm"
    to.check([file])
    writing = _Writing(
        grid=_grid(slide, level, coordinates),
        coordinates=coordinates,
        dtype=np.dtype(dtype),
        frames_of_reference=frozenset(slide._frames or ()),
        z=z,
        optical_paths=None if optical_paths is None else tuple(map(str, optical_paths)),
        description=description,
        algorithm=algorithm,
        algorithm_type=algorithm_type,
        color=None if color is None else cielab_of(color, "annotations"),
    )
    items = [
        writing.group(number, of_label, each, graphic_type, property_category, property_type,
                      measurements)
        for number, (of_label, each) in enumerate(groups.items(), 1)
    ]  # fmt: skip
    uid = new_uid()
    text = series_description or f"Annotations: {', '.join(groups)}"
    series = SeriesOptions(
        series_instance_uid=series_instance_uid or new_uid(),
        series_number=series_number,
        series_description=text,
        content_label="ANNOTATIONS",
        content_description=text,
        content_creator=content_creator,
    )
    header = writing.header(uid, series)
    with to.working_folder() as folder:
        return to.publish([write_bulk(header, items, folder, file)])


def _labelled(annotations: Any, label: str | None) -> dict[str, Any]:
    """Return the annotations of each group by label."""
    if isinstance(annotations, Mapping):
        if label is not None:
            raise ValueError("label is given with a mapping, whose keys are the labels")
        groups = {str(key): each for key, each in annotations.items()}
    else:
        if label is None:
            label = getattr(annotations, "label", None)
            label = label if isinstance(label, str) else None
        if label is None:
            raise ValueError("label is missing: what the annotations are called")
        groups = {label: annotations}
    for each in groups:
        if not each.strip() or len(each) > LONGEST_LO or "\\" in each:
            raise ValueError(f"label {each!r}: expected text of 1 to {LONGEST_LO} characters")
    if not groups:
        raise AnnotationError("no group of annotations: an instance has one at least")
    return groups


def _check_labels(groups: Mapping[str, Any], *options: Any) -> None:
    """Raise a ValueError if an option is given for a group that isn't there."""
    for option in options:
        if isinstance(option, Mapping) and (unknown := set(option) - set(groups)):
            raise ValueError(f"{option}: {sorted(unknown)} aren't among the groups {list(groups)}")


def _grid(slide: Slide, level: int, coordinates: str) -> Grid:
    """Return the matrix of the level to which annotations refer."""
    grid = grid_of_level(slide, level)
    if coordinates == "3D" and slide._said("FrameOfReferenceUID") is None:
        raise MetadataError(
            f"{slide.name}: no Frame of Reference UID, in which millimetres are positions;"
            ' coordinates="2D" writes pixels'
        )
    return grid


@dataclasses.dataclass(frozen=True)
class _Writing:
    """What all groups of a call have in common."""

    grid: Grid
    coordinates: str
    dtype: np.dtype[Any]
    frames_of_reference: frozenset[str]
    z: float | None
    optical_paths: tuple[str, ...] | None
    description: str | None
    algorithm: Any
    algorithm_type: str | None
    color: list[int] | None

    def header(self, uid: str, series: SeriesOptions) -> Dataset:
        """Return the header without groups."""
        sources = self.grid.sources if self.coordinates == "3D" else self.grid.sources[:1]
        header = derived_header(
            sources,
            sop_class_uid=BULK_SIMPLE_ANNOTATIONS_STORAGE,
            sop_instance_uid=uid,
            modality="ANN",
            series=series,
            instance_number=1,
        )
        header.AnnotationCoordinateType = self.coordinates
        header.ReferencedImageSequence = references(sources)
        if self.coordinates == "2D":
            # pixels of one instance: of a concatenation, the first
            del header.ReferencedImageSequence[1:]
            header.PixelOriginInterpretation = "VOLUME"
            for keyword in ("FrameOfReferenceUID", "PositionReferenceIndicator"):
                header.pop(keyword, None)  # the module is that of millimetres (PS3.3 A.87.1)
        return header

    def group(
        self,
        number: int,
        label: str,
        annotations: Any,
        kind: Any,
        category: Any,
        property_type: Any,
        measurements: Any,
    ) -> tuple[Dataset, list[Bulk]]:
        """Return a group's item, without its bulky elements, and these."""
        kind = kind.get(label) if isinstance(kind, Mapping) else kind
        found = checked(graphics_of(annotations, kind))
        found.check_frame(self.frames_of_reference)
        if not len(found):
            raise AnnotationError(f"{label}: no annotations; expected one at least")
        of_category, of_type = self._properties(annotations, label, category, property_type)
        group = item(
            AnnotationGroupNumber=number,
            AnnotationGroupUID=new_uid(),
            AnnotationGroupLabel=label,
            AnnotationPropertyCategoryCodeSequence=[of_category],
            AnnotationPropertyTypeCodeSequence=[of_type],
            NumberOfAnnotations=len(found),
            GraphicType=found.kind,
        )
        known = annotations if isinstance(annotations, AnnotationGroup) else None
        description = self.description or (known and known.description)
        if description:
            group.AnnotationGroupDescription = description
        self._add_algorithm(group, known)
        paths = self.optical_paths or (known and known.optical_paths)
        group.AnnotationAppliesToAllOpticalPaths = "NO" if paths else "YES"
        if paths:
            group.ReferencedOpticalPathIdentifier = list(paths)
        if self.color is not None:
            group.RecommendedDisplayCIELabValue = self.color
        points = self._points(found, group)
        of_measurements = _measured(annotations, measurements, len(found), label)
        if of_measurements:
            group.MeasurementsSequence = of_measurements
        return group, _bulks(points, found, self.dtype)

    def _add_algorithm(self, group: Dataset, known: AnnotationGroup | None) -> None:
        """Say how annotations were made; an algorithm is required unless they are MANUAL."""
        kind, algorithm = self.algorithm_type, self.algorithm
        if known is not None and algorithm is None:
            kind, algorithm = kind or known.generation_type, known.algorithm_name
        group.AnnotationGroupGenerationType = kind = kind or "AUTOMATIC"
        if kind != "MANUAL":
            items = algorithm_items(algorithm or UNNAMED, "annotations")
            group.AnnotationGroupAlgorithmIdentificationSequence = items
        elif self.algorithm is not None:
            raise ValueError("algorithm is given, but algorithm_type is MANUAL")

    def _properties(
        self, annotations: Any, label: str, category: Any, kind: Any
    ) -> tuple[Dataset, Dataset]:
        """Return the items of the category and the type of what is annotated."""
        category, kind = (
            given.get(label) if isinstance(given, Mapping) else given for given in (category, kind)
        )
        if isinstance(annotations, AnnotationGroup):
            category = category or annotations.property_category
            kind = kind or annotations.property_type
        by_word = codes_of_word(kind if isinstance(kind, str) else label)
        if isinstance(kind, str) and by_word is None:
            coded(kind, f"property_type of {label}", {})
        usual = by_word or codes_of_word("region")
        assert usual is not None
        if isinstance(category, str):
            of_category = codes_of_word(category)
            category = of_category[1] if of_category else category
        return (
            coded(category or usual[0], f"property_category of {label}", {}),
            code_item(*usual[1])
            if kind is None or isinstance(kind, str)
            else coded(kind, f"property_type of {label}", {}),
        )

    def _points(self, found: Graphics, group: Dataset) -> NDArray[Any]:
        """Return the stored coordinates, shape (n, 2 or 3), and say in the item where they lie."""
        points = found.points
        if self.coordinates == "2D":
            return _pixels(points, self.grid, self.dtype)
        has_z = points.shape[1] == 3
        if has_z and (points[:, 2] == points[0, 2]).all():
            planes: Sequence[float] = [float(points[0, 2])]
            points, has_z = points[:, :2], False
        elif not has_z:
            default = self.z if self.z is not None else self.grid.first_plane / MICROMETERS
            planes = [default] if self.z is not None or not found.planes else found.planes
        group.AnnotationAppliesToAllZPlanes = "NO"
        if not has_z:
            if not np.isfinite(planes).all():
                raise ValueError(f"z {planes}: expected finite millimetres")
            group.CommonZCoordinateValue = list(planes)
        return points


def _pixels(points: NDArray[Any], grid: Grid, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return columns and rows of points, (0, 0) at the corner of the matrix (PS3.3 C.37.1.1)."""
    pixels = np.empty((len(points), 2), dtype)
    for start in range(0, len(points), BLOCK):
        part = slice(start, start + BLOCK)
        pixels[part] = grid.geometry.to_matrix(points[part, :2])[:, ::-1] + 0.5
    return pixels


def _bulks(points: NDArray[Any], found: Graphics, dtype: np.dtype[Any]) -> list[Bulk]:
    """Return the elements of coordinates, and of the indices of first points."""
    double = dtype.itemsize == 8
    bulks = [
        Bulk(DOUBLE_POINTS if double else POINTS, "OD" if double else "OF", points,
             dtype.newbyteorder("<"))
    ]  # fmt: skip
    if NUM_POINTS[found.kind] is None:
        firsts = found.offsets[:-1] * points.shape[1] + 1
        if firsts[-1] > MOST_INDEX:
            raise AnnotationError(
                f"{points.size:,} coordinates are more than a group can have: write several groups"
            )
        bulks.append(Bulk(FIRST_POINTS, "OL", firsts, np.dtype("<u4")))
    return bulks


POINTS, DOUBLE_POINTS, FIRST_POINTS = 0x00660016, 0x00660022, 0x00660040
"""Point Coordinates Data, Double Point Coordinates Data, Long Primitive Point Index List"""
MOST_INDEX = 2**32 - 1


# -- measurements ------------------------------------------------------------------------------


def _measured(annotations: Any, measurements: Any, count: int, label: str) -> list[Dataset]:
    """Return the items of the Measurements Sequence."""
    if isinstance(annotations, AnnotationGroup) and measurements is None:
        return [
            _measurement(
                each.values,
                coded(each.name or "mean", f"measurement of {label}", QUANTITIES),
                unit_item(each.unit or "1", label),
                label,
            )
            for each in annotations.measurements
        ]
    if not measurements:
        return []
    if isinstance(annotations, AnnotationGroup):
        annotations = annotations.to_pandas()
    if isinstance(measurements, str):
        measurements = [measurements]
    columns = getattr(annotations, "columns", ())
    units = getattr(annotations, "attrs", {}).get("units", {})
    made = []
    for column in measurements:
        if column not in columns:
            raise ValueError(
                f"measurements: {column!r} is no column of {label}, which has"
                f" {list(map(str, columns))[:20]}"
            )
        given = measurements[column] if isinstance(measurements, Mapping) else None
        quantity, unit = measurement_items(str(column), given, units.get(column))
        made.append(_measurement(_numbers(annotations[column], column), quantity, unit, column))
    return made


def _numbers(values: Any, column: str) -> NDArray[np.float64]:
    try:
        return np.asarray(values.to_numpy(dtype=np.float64, na_value=np.nan))
    except (TypeError, ValueError) as error:
        raise AnnotationError(
            f"the column {column!r} has {values.dtype}; expected numbers"
        ) from error


def _measurement(values: NDArray[Any], quantity: Dataset, unit: Dataset, column: str) -> Dataset:
    """Return an item of the Measurements Sequence; NaN is left out (PS3.3 C.37.1.2)."""
    with np.errstate(over="ignore"):
        stored = values.astype("<f4")
    wrong = np.isinf(stored)
    if wrong.any():
        which = int(np.argmax(wrong))
        raise AnnotationError(
            f"the measurement {column!r} of annotation {which} is {values[which]}; expected numbers"
            " that float32 holds, or NaN for none"
        )
    known = ~np.isnan(stored)
    made = item(FloatingPointValues=stored[known].tobytes())
    if not known.all():
        made.AnnotationIndexList = (np.flatnonzero(known) + 1).astype("<u4").tobytes()
    return item(
        ConceptNameCodeSequence=[quantity],
        MeasurementUnitsCodeSequence=[unit],
        MeasurementValuesSequence=[made],
    )
