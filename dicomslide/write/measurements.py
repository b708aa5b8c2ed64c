"""`write_measurements`: numbers of regions as a measurement report (TID 1500)."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide._version import __version__
from dicomslide.errors import AnnotationError, MetadataError
from dicomslide.header import dicom
from dicomslide.header.layout import MICROMETERS
from dicomslide.pixels.decode import NATIVE
from dicomslide.slide import Slide, open_slide
from dicomslide.write.codes import MEASUREMENTS, coded, measurement_items
from dicomslide.write.graphics import checked, graphics_of
from dicomslide.write.grids import grid_of_level
from dicomslide.write.headers import (
    SeriesOptions,
    derived_header,
    instance_headers,
    item,
    new_uid,
)
from dicomslide.write.part10 import file_head
from dicomslide.write.segments import codes_of_word
from dicomslide.write.stream import Finished
from dicomslide.write.targets import stem_of, target_at

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import xarray as xr
    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

    from dicomslide.write.grids import Grid

__all__ = ["write_measurements"]

STORAGE = "1.2.840.10008.5.1.4.1.1.88.34"
LIGHT_MICROSCOPY = ("104157003", "SCT", "Light microscopy")
NOT_OF_REPORTS = (
    "ContentLabel", "ContentDescription", "ContentCreatorName", "ReferencedSeriesSequence",
    "FrameOfReferenceUID", "PositionReferenceIndicator", "ContainerIdentifier",
    "IssuerOfTheContainerIdentifierSequence", "AlternateContainerIdentifierSequence",
    "ContainerTypeCodeSequence", "ContainerDescription", "ContainerComponentSequence",
    "SpecimenDescriptionSequence",
)  # fmt: skip
"""Attributes of derived images that reports don't have: specimens are in their content."""


def write_measurements(
    measurements: xr.Dataset | Any,
    slide: Slide | Any,
    target: str | os.PathLike[str] | Any,
    *,
    codes: Mapping[str, Any] | None = None,
    regions: Any = None,
    segmentation: Any = None,
    findings: Mapping[str, Any] | None = None,
    level: int = 0,
    procedure: Any = LIGHT_MICROSCOPY,
    overwrite: bool = False,
    name: str = "measurements",
    series_description: str = "Measurements",
    series_number: int = 103,
    series_instance_uid: str | None = None,
    content_creator: str = "",
    storage_options: Mapping[str, Any] | None = None,
    temporary_folder: str | os.PathLike[str] | None = None,
) -> list[str]:
    """Write measurements of segments or regions as a DICOM report (TID 1500, Comprehensive 3D SR).

    Parameters
    ----------
    measurements : xarray.Dataset or pandas.DataFrame
        As :func:`dicomslide.recipes.segment_statistics` returns them: variables with the dim
        ``segment`` and perhaps others, such as ``channel``, for each of which the report has a
        measurement of its own; computed here if lazy. Or a table with a row for each region, whose
        columns are named in `codes`. NaN is no measurement.
    slide : Slide, or what :func:`open_slide` takes
        The slide.
    target : path-like, str or dicomweb_client.api.DICOMwebClient
        See :func:`write_segmentation`.
    codes : mapping, optional
        (quantity, unit) of variables or columns by name, each a word or a code, UCUM for the unit.
        By default ``area`` in mm², ``mean`` and ``std`` without a unit, unless an attribute
        ``units`` says another one; of a table, all columns
        that are called by such words.
    regions : geopandas.GeoDataFrame, GeoSeries or AnnotationGroup, optional
        A polygon or point in mm for each segment or row, in the same order. For a GeoDataFrame
        of measurements, its own shapes.
    segmentation : path-like, pydicom.dataset.Dataset or TiledImage, optional
        Segmentation of the slide whose segments were measured: a file of
        :func:`write_segmentation`. Segments are found by their labels, else by their numbers; where
        the measurements have neither, they are in the same order. Either this or `regions` at most.
    findings : mapping, optional
        What each segment is, by its label: a word such as ``"tumour"``, or a code. By default the
        codes in the segmentation; else the label, if it is such a word.
    level : int, default: 0
        Level whose images the report refers to.
    procedure : pydicom.sr.coding.Code or tuple, optional
        Procedure Reported.
    overwrite : bool, default: False
        Whether an existing file or object is replaced.
    name : str, default: "measurements"
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
        When there are no measurements, or infinite ones; when regions don't fit: their number or
        order, holes, several parts; when segments don't fit: their number or labels.
    GridError
        When the regions have another frame of reference than the slide.
    ImportError
        When highdicom isn't installed.
    MetadataError, StoreExistsError, ExportError, StorageRefusedError
        See :func:`write_segmentation`.
    TypeError, ValueError
        When an argument is something else than is described here.

    Examples
    --------
    >>> from dicomslide import recipes
    >>> image = slide.to_dataset(level=1, chunks="auto").image
    >>> mask = image.mean("sample") < 200
    >>> (path,) = dicomslide.write_segmentation(mask, slide, "results/", segments=["tissue"])
    >>> statistics = recipes.segment_statistics(image, mask)
    >>> paths = dicomslide.write_measurements(statistics, slide, "results/", segmentation=path)

    """
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "write_measurements needs highdicom: pip install 'dicomslide[report]'"
        ) from error
    stem_of(name)
    slide = slide if isinstance(slide, Slide) else open_slide(slide)
    to = target_at(
        target,
        overwrite=overwrite,
        storage_options=storage_options,
        temporary_folder=temporary_folder,
    )
    file = f"{name}.dcm"
    to.check([file])
    grid = grid_of_level(slide, level)
    if regions is not None and segmentation is not None:
        raise ValueError("regions and segmentation are both given; expected one of them at most")
    if regions is None and segmentation is None and hasattr(measurements, "geometry"):
        regions = measurements
    labels, rows = _rows_of(measurements, codes)
    _check_order(measurements, regions)
    measured = None if segmentation is None else _header_of(segmentation)
    places = _places(regions, measured, slide, grid, labels)
    groups = [
        _group(label, row, place, _finding(label, findings, place))
        for label, row, place in zip(labels, rows, places, strict=True)
    ]
    uid = new_uid()
    series = SeriesOptions(
        series_instance_uid=series_instance_uid or new_uid(),
        series_number=series_number,
        series_description=series_description,
        content_label="MEASUREMENTS",
        content_creator=content_creator,
    )
    evidence = [] if measured is None else [measured]
    report = _report(groups, grid, uid, series, coded(procedure, "procedure", {}), evidence)
    with to.working_folder() as folder:
        path = os.path.join(folder, file)
        with open(path, "xb") as opened:
            opened.write(file_head(report, NATIVE))
            opened.flush()
            os.fsync(opened.fileno())
        return to.publish([Finished(path, file, uid)])


# -- what was measured -------------------------------------------------------------------------


def _rows_of(
    measurements: Any, codes: Mapping[str, Any] | None
) -> tuple[list[str], list[list[tuple[str, Dataset, Dataset, float]]]]:
    """Return the label of each region, and its measurements: name, quantity, unit and value."""
    import xarray as xr

    if isinstance(measurements, xr.Dataset):
        labels, columns = _of_dataset(measurements)
    elif hasattr(measurements, "columns"):
        labels, columns = _of_table(measurements, codes)
    else:
        raise TypeError(
            f"can't report a {type(measurements).__name__}; expected the dataset of"
            " recipes.segment_statistics, or a table"
        )
    given = dict(codes or {})
    if unknown := set(given) - {each.variable for each in columns}:
        raise ValueError(f"codes: {sorted(unknown)} aren't among the measurements")
    rows: list[list[tuple[str, Dataset, Dataset, float]]] = [[] for _ in labels]
    for column in columns:
        name, values = column.name, column.values
        items = measurement_items(column.variable, given.get(column.variable), column.unit)
        if np.isinf(values).any():
            at = int(np.argmax(np.isinf(values)))
            raise AnnotationError(f"{name} of {labels[at]} is {values[at]}; expected a number")
        for row, value in zip(rows, values.tolist(), strict=True):
            if not np.isnan(value):
                row.append((name, *items, value))
    if not any(rows):
        raise AnnotationError("no measurements: all are NaN, or there are no segments")
    return labels, rows


@dataclasses.dataclass(frozen=True, eq=False)
class _Column:
    """A measurement of all regions."""

    variable: str
    """Variable or column of the table."""
    name: str
    """With the other dims' labels, such as "mean (channel DAPI)"."""
    unit: str | None
    """Unit that the table says."""
    values: NDArray[np.float64]


def _of_dataset(statistics: xr.Dataset) -> tuple[list[str], list[_Column]]:
    if "segment" not in statistics.dims:
        raise ValueError(
            f"the dims are {dict(statistics.sizes)}; expected segment, as"
            " recipes.segment_statistics has it"
        )
    statistics = statistics.compute()
    of_labels = "segment_label" if "segment_label" in statistics.coords else "segment"
    labels = (
        [str(each) for each in np.atleast_1d(statistics[of_labels].values)]
        if of_labels in statistics.coords
        else [str(number + 1) for number in range(statistics.sizes["segment"])]
    )
    columns = []
    for variable, each in statistics.data_vars.items():
        others = [dim for dim in each.dims if dim != "segment"]
        stacked = each.stack(_others=others) if others else each.expand_dims(_others=1)
        stacked = stacked.transpose("segment", "_others")
        for number in range(stacked.sizes["_others"]):
            of = stacked["_others"].values[number] if others else ()
            place = ", ".join(f"{d} {v}" for d, v in zip(others, of, strict=True))
            name = f"{variable} ({place})" if place else str(variable)
            values = np.asarray(stacked.values[:, number], np.float64)
            columns.append(_Column(str(variable), name, each.attrs.get("units"), values))
    return labels, columns


def _of_table(table: Any, codes: Mapping[str, Any] | None) -> tuple[list[str], list[_Column]]:
    names = list(codes) if codes else [
        name for name in table.columns if str(name).lower().replace("_", " ") in MEASUREMENTS
    ]  # fmt: skip
    if missing := [name for name in names if name not in table.columns]:
        raise ValueError(f"codes: {missing} are no columns of the table")
    units = table.attrs.get("units", {})
    labels = [str(each) for each in (table["label"] if "label" in table.columns else table.index)]
    try:
        columns = [
            _Column(
                str(name), str(name), units.get(name),
                table[name].to_numpy(dtype=np.float64, na_value=np.nan),
            )
            for name in names
        ]  # fmt: skip
    except (TypeError, ValueError) as error:
        raise AnnotationError(f"columns {names}: expected numbers ({error})") from error
    return labels, columns


# -- where -------------------------------------------------------------------------------------


def _check_order(measurements: Any, regions: Any) -> None:
    """Raise an AnnotationError if the rows of two tables are the same, in another order."""
    of_rows: Any = getattr(measurements, "index", None)
    of_regions: Any = getattr(regions, "index", None)
    if not (hasattr(of_rows, "sort_values") and hasattr(of_regions, "sort_values")):
        return
    if not of_rows.equals(of_regions) and set(of_rows) == set(of_regions):
        raise AnnotationError(
            "regions have the rows of measurements in another order:"
            " regions.loc[measurements.index]"
        )


def _places(
    regions: Any, segmentation: Dataset | None, slide: Slide, grid: Grid, labels: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the reference of each group of measurements to a region or a segment."""
    if regions is not None:
        return _in_regions(regions, slide, grid, len(labels))
    if segmentation is not None:
        return _in_segments(segmentation, grid, labels)
    return [{} for _ in labels]


def _in_regions(regions: Any, slide: Slide, grid: Grid, count: int) -> list[dict[str, Any]]:
    import highdicom as hd

    found = checked(graphics_of(regions, None))
    if len(found) != count:
        raise AnnotationError(f"{len(found)} regions for {count} segments; expected one for each")
    found.check_frame(slide._frames or ())
    uid = slide._said("FrameOfReferenceUID")
    if uid is None:
        raise MetadataError(f"{slide.name}: no Frame of Reference UID, in which regions lie")
    places = []
    for first, stop in zip(found.offsets[:-1], found.offsets[1:], strict=True):
        points = np.empty((stop - first, 3))
        points[:, 2] = (found.planes or (grid.first_plane / MICROMETERS,))[0]
        some = found.points[first:stop]
        points[:, : some.shape[1]] = some
        kind = "POLYGON" if found.kind == "RECTANGLE" else found.kind
        if kind == "POLYGON":  # closed here, unlike in annotations (PS3.3 C.18.9)
            points = np.concatenate([points, points[:1]])
        places.append({"referenced_region": hd.sr.ImageRegion3D(kind, points, uid)})
    return places


def _in_segments(header: Dataset, grid: Grid, labels: Sequence[str]) -> list[dict[str, Any]]:
    import highdicom as hd

    segments = _measured_segments(dicom.items(header, "SegmentSequence"), labels)
    series = hd.sr.SourceSeriesForSegmentation(grid.sources[0].metadata.SeriesInstanceUID)
    return [
        {
            "referenced_segment": hd.sr.ReferencedSegment(
                header.SOPClassUID,
                header.SOPInstanceUID,
                int(segment.SegmentNumber),
                source_series=series,
            ),
            "segment": segment,
        }
        for segment in segments
    ]


def _measured_segments(segments: Sequence[Dataset], labels: Sequence[str]) -> list[Dataset]:
    """Return the segment of each label: by its label, its number, or its place."""
    names = [str(segment.get("SegmentLabel")) for segment in segments]
    numbers = [str(segment.SegmentNumber) for segment in segments]
    are_unique = len({*labels}) == len(labels) and len({*names}) == len(names)
    if are_unique and {*labels} <= {*names}:
        return [segments[names.index(label)] for label in labels]
    if sorted(labels) == sorted(numbers):
        return [segments[numbers.index(label)] for label in labels]
    if len(names) != len(labels):
        raise AnnotationError(
            f"the segmentation has {len(names)} segments for {len(labels)} measured ones; expected"
            " the same"
        )
    if names != list(labels) and {*names} & {*labels}:
        raise AnnotationError(
            f"the segmentation has the segments {names[:20]}; measured are {list(labels)[:20]}"
        )
    return list(segments)


def _header_of(segmentation: Any) -> Dataset:
    """Return the header of a segmentation that is given as a file, a data set or an image."""
    import pydicom

    header: Any = getattr(segmentation, "metadata", segmentation)
    if isinstance(header, (str, os.PathLike)):
        header = pydicom.dcmread(os.fspath(header), stop_before_pixels=True)
    if dicom.text(header, "SOPClassUID") not in dicom.SEGMENTATION_STORAGES:
        raise ValueError(
            f"segmentation: its SOP class is {dicom.text(header, 'SOPClassUID')}; expected a"
            " segmentation"
        )
    return header


def _finding(label: str, findings: Mapping[str, Any] | None, place: Mapping[str, Any]) -> Dataset:
    """Return the item of what a region is."""
    given = (findings or {}).get(label)
    if given is None and "segment" in place:
        for code in dicom.items(place["segment"], "SegmentedPropertyTypeCodeSequence"):
            return code
    by_word = codes_of_word(given if isinstance(given, str) else label)
    if given is None or (isinstance(given, str) and by_word):
        usual = by_word or codes_of_word("region")
        assert usual is not None
        return coded(usual[1], "finding", {})
    return coded(given, f"finding {label}", {})


# -- the report --------------------------------------------------------------------------------


def _concept(code: Dataset) -> Any:
    import highdicom as hd

    return hd.sr.CodedConcept.from_dataset(code)


def _group(
    label: str,
    row: Sequence[tuple[str, Dataset, Dataset, float]],
    place: Mapping[str, Any],
    finding: Dataset,
) -> Any:
    """Return the group of measurements of a region (TID 1410, 1411 or 1501)."""
    import highdicom as hd

    values = [
        hd.sr.Measurement(
            name=_concept(quantity),
            value=value,
            unit=_concept(unit),
            tracking_identifier=hd.sr.TrackingIdentifier(uid=hd.UID(new_uid()), identifier=name),
        )
        for name, quantity, unit, value in row
    ]
    tracking: Any = place.get("segment")
    uid = None if tracking is None else dicom.text(tracking, "TrackingUID")
    options = {
        "tracking_identifier": hd.sr.TrackingIdentifier(
            uid=hd.UID(uid or new_uid()), identifier=label
        ),
        "finding_type": _concept(finding),
        "measurements": values,
    }
    if "referenced_region" in place:
        return hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            referenced_region=place["referenced_region"], **options
        )
    if "referenced_segment" in place:
        return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
            referenced_segment=place["referenced_segment"], **options
        )
    return hd.sr.MeasurementsAndQualitativeEvaluations(**options)


def _context(header: Dataset, creator: str) -> Any:
    """Return who observed what (TID 1001): this package, a person, and the specimen."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=hd.UID(new_uid()), name="dicomslide", manufacturer_name="dicomslide",
        model_name="dicomslide", serial_number=__version__,
    )  # fmt: skip
    person = hd.sr.PersonObserverIdentifyingAttributes(name=creator) if creator else None
    subject = None
    for specimen in dicom.items(header, "SpecimenDescriptionSequence")[:1]:
        subject = hd.sr.SubjectContext(
            subject_class=codes.DCM.Specimen,
            subject_class_specific_context=hd.sr.SubjectContextSpecimen(
                uid=dicom.text(specimen, "SpecimenUID") or new_uid(),
                identifier=dicom.text(specimen, "SpecimenIdentifier"),
                container_identifier=dicom.text(header, "ContainerIdentifier"),
            ),
        )
    return hd.sr.ObservationContext(
        observer_device_context=hd.sr.ObserverContext(
            observer_type=codes.DCM.Device, observer_identifying_attributes=device
        ),
        observer_person_context=None if person is None else hd.sr.ObserverContext(
            observer_type=codes.DCM.Person, observer_identifying_attributes=person
        ),
        subject_context=subject,
    )  # fmt: skip


def _mentioned(header: Dataset, instance: Dataset) -> Dataset:
    """Return what a report says of an instance that it refers to."""
    return item(
        **{
            keyword: instance[keyword].value
            for keyword in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID")
        },
        StudyInstanceUID=header.StudyInstanceUID,
        **{
            keyword: header.get(keyword)
            for keyword in (
                "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber",
                "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName",
            )
        },
    )  # fmt: skip


def _report(
    groups: Sequence[Any],
    grid: Grid,
    uid: str,
    series: SeriesOptions,
    procedure: Dataset,
    evidence: Sequence[Dataset],
) -> Dataset:
    import highdicom as hd

    header = derived_header(
        grid.sources,
        sop_class_uid=STORAGE,
        sop_instance_uid=uid,
        modality="SR",
        series=series,
        instance_number=1,
    )
    content = hd.sr.MeasurementReport(
        observation_context=_context(header, series.content_creator),
        procedure_reported=_concept(procedure),
        imaging_measurements=groups,
        title=hd.sr.CodedConcept("126000", "DCM", "Imaging Measurement Report"),
    )
    mentioned = [_mentioned(header, each) for each in (*instance_headers(grid.sources), *evidence)]
    report = hd.sr.Comprehensive3DSR(
        evidence=mentioned,
        content=content[0],
        series_instance_uid=series.series_instance_uid,
        series_number=series.series_number,
        sop_instance_uid=uid,
        instance_number=1,
        manufacturer="dicomslide",
        is_complete=True,
    )
    for element in header:
        if element.keyword not in NOT_OF_REPORTS:
            report[element.tag] = element
    return report
