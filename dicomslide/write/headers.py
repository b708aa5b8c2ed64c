"""Headers of what is derived from a slide: patient, study, specimen, references, equipment.

The modules that derived objects have in common with their source are copied (PS3.3 A.51, A.75,
A.87); what belongs to the source's acquisition, such as Imaged Volume and optical paths, isn't.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide._version import __version__
from dicomslide.backends.concatenation import parts_of
from dicomslide.errors import MetadataError
from dicomslide.header import dicom
from dicomslide.header.elements import decimal
from dicomslide.write.part10 import ENCODER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

    from dicomslide.image import TiledImage
    from dicomslide.write.grids import Grid

__all__ = ["SEGMENTATION", "TILE_POSITION", "SeriesOptions", "code_item", "derived_header",
           "instance_headers", "item", "matrix_header", "new_uid", "references",
           "tile_groups"]  # fmt: skip

COPIED = (
    # Patient, Clinical Trial Subject (PS3.3 C.7.1)
    "PatientName", "PatientID", "IssuerOfPatientID", "TypeOfPatientID",
    "IssuerOfPatientIDQualifiersSequence", "PatientBirthDate", "PatientBirthTime", "PatientSex",
    "OtherPatientIDsSequence", "OtherPatientNames", "EthnicGroup", "PatientComments",
    "QualityControlSubject", "PatientSpeciesDescription", "PatientSpeciesCodeSequence",
    "PatientBreedDescription", "PatientBreedCodeSequence", "BreedRegistrationSequence",
    "ResponsiblePerson", "ResponsiblePersonRole", "ResponsibleOrganization",
    "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence",
    "ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialProtocolName",
    "ClinicalTrialSiteID", "ClinicalTrialSiteName", "ClinicalTrialSubjectID",
    "ClinicalTrialSubjectReadingID",
    # General Study, Patient Study, Clinical Trial Study (PS3.3 C.7.2)
    "StudyInstanceUID", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID",
    "AccessionNumber", "IssuerOfAccessionNumberSequence", "StudyDescription",
    "PhysiciansOfRecord", "NameOfPhysiciansReadingStudy", "ProcedureCodeSequence",
    "ReferencedStudySequence", "AdmittingDiagnosesDescription", "PatientAge", "PatientSize",
    "PatientWeight", "ClinicalTrialTimePointID", "ClinicalTrialTimePointDescription",
    "LongitudinalTemporalInformationModified", "TimezoneOffsetFromUTC",
    # Frame of Reference (PS3.3 C.7.4.1)
    "FrameOfReferenceUID", "PositionReferenceIndicator",
    # Specimen (PS3.3 C.7.6.22)
    "ContainerIdentifier", "IssuerOfTheContainerIdentifierSequence",
    "AlternateContainerIdentifierSequence", "ContainerTypeCodeSequence", "ContainerDescription",
    "ContainerComponentSequence", "SpecimenDescriptionSequence",
)  # fmt: skip
"""Attributes of the source that what is derived from it has, too."""
SEGMENTATION = ("113076", "DCM", "Segmentation")
"""Derivation Code of segmentations (PS3.16 CID 7203)."""
TILE_POSITION = (
    (0x0048021F, 0x0048021A, "Row Position In Total Image Pixel Matrix"),
    (0x0048021E, 0x0048021A, "Column Position In Total Image Pixel Matrix"),
)
"""Dimensions of tiles: pointer, pointer of the functional group, and label of each."""
EMPTY_IF_ABSENT = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "ReferringPhysicianName", "StudyID", "AccessionNumber",
)  # fmt: skip
"""Attributes of type 2, which are written without a value where the source lacks them."""
UTF_8 = "ISO_IR 192"
LONGEST_LO, LONGEST_SH = 64, 16
"""Most characters of a value (PS3.5 6.2)."""
SEPARATED = frozenset({"CS", "LO", "PN", "SH", "UC", "UI"})
"""Value representations of text in which a backslash separates values."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeriesOptions:
    """What a series is called; one for all instances of a call."""

    series_instance_uid: str
    series_number: int
    series_description: str
    content_label: str
    content_description: str = ""
    content_creator: str = ""


def new_uid() -> str:
    """Return a new UID, derived from a random UUID (PS3.5 B.2)."""
    import uuid

    return f"2.25.{uuid.uuid4().int}"


def item(**values: Any) -> Dataset:
    """Return a data set of elements by keyword.

    Raises
    ------
    ValueError
        When a text has a backslash, which separates values (PS3.5 6.2).

    """
    from pydicom.datadict import dictionary_VR
    from pydicom.dataset import Dataset

    made = Dataset()
    for keyword, value in values.items():
        if isinstance(value, str) and "\\" in value and dictionary_VR(keyword) in SEPARATED:
            raise ValueError(f"{keyword} {value!r}: expected text without a backslash")
        setattr(made, keyword, value)
    return made


def code_item(value: str, scheme: str, meaning: str, version: str | None = None) -> Dataset:
    """Return an item of a code sequence (PS3.3 8.8)."""
    keyword = "CodeValue"
    if len(value) > LONGEST_SH:
        keyword = "URNCodeValue" if value.startswith(("urn:", "http")) else "LongCodeValue"
    made = item(**{keyword: value}, CodingSchemeDesignator=scheme, CodeMeaning=meaning)
    if version is not None:
        made.CodingSchemeVersion = version
    return made


def derived_header(
    sources: Sequence[TiledImage],
    *,
    sop_class_uid: str,
    sop_instance_uid: str,
    modality: str,
    series: SeriesOptions,
    instance_number: int,
) -> Dataset:
    """Return the header of an object derived from images of a slide, without what it consists of.

    Parameters
    ----------
    sources : sequence of TiledImage
        Images that it is derived from; the first one has patient, study and specimen.
    sop_class_uid, sop_instance_uid, modality : str
        Of the new object.
    series : SeriesOptions
        Of its series.
    instance_number : int
        Number in the series, from one.

    Raises
    ------
    MetadataError
        When the source has no Study Instance UID.

    """
    header = _copied(sources[0].metadata)
    if dicom.text(header, "StudyInstanceUID") is None:
        raise MetadataError(
            f"{sources[0].name}: no Study Instance UID, to which what is derived from it belongs"
        )
    now = datetime.datetime.now()
    values = {
        "SpecificCharacterSet": UTF_8,
        "SOPClassUID": sop_class_uid,
        "SOPInstanceUID": sop_instance_uid,
        "InstanceCreationDate": now.strftime("%Y%m%d"),
        "InstanceCreationTime": now.strftime("%H%M%S"),
        "ContentDate": now.strftime("%Y%m%d"),
        "ContentTime": now.strftime("%H%M%S.%f"),
        "Modality": modality,
        "SeriesInstanceUID": series.series_instance_uid,
        "SeriesNumber": series.series_number,
        "SeriesDescription": series.series_description[:LONGEST_LO],
        "SeriesDate": now.strftime("%Y%m%d"),
        "SeriesTime": now.strftime("%H%M%S"),
        "InstanceNumber": instance_number,
        "Manufacturer": "dicomslide",
        "ManufacturerModelName": "dicomslide",
        "DeviceSerialNumber": "none",
        "SoftwareVersions": __version__,
        "ContentLabel": series.content_label,
        "ContentDescription": series.content_description[:LONGEST_LO],
        "ContentCreatorName": series.content_creator,
        "ReferencedSeriesSequence": _referenced_series(sources),
    }
    header.update(item(**values))
    return header


def _copied(source: Dataset) -> Dataset:
    """Return the copied attributes of a source, with its texts decoded."""
    from pydicom.dataset import Dataset

    header = Dataset()
    if "SpecificCharacterSet" in source:
        header.SpecificCharacterSet = source.SpecificCharacterSet
    for keyword in COPIED:
        if keyword in source:
            header[keyword] = copy.deepcopy(source[keyword])
    header.decode()  # they are encoded anew in another character set
    _drop_character_sets(header)
    for keyword in EMPTY_IF_ABSENT:
        if keyword not in header:
            setattr(header, keyword, None)
    return header


def _drop_character_sets(dataset: Dataset) -> None:
    """Remove the character sets of a data set and of its items."""
    if "SpecificCharacterSet" in dataset:
        del dataset.SpecificCharacterSet
    for element in dataset:
        if element.VR == "SQ":
            for each in element.value or ():
                _drop_character_sets(each)


# -- references --------------------------------------------------------------------------------


def instance_headers(sources: Iterable[TiledImage]) -> list[Dataset]:
    """Return the header of each instance of images, of which a concatenation has several."""
    found: dict[str | None, Dataset] = {}
    for image in sources:
        for part in parts_of(image._source):
            found.setdefault(dicom.text(part.metadata, "SOPInstanceUID"), part.metadata)
    return list(found.values())


def references(sources: Iterable[TiledImage]) -> list[Dataset]:
    """Return a SOP Instance Reference of each source instance (PS3.3 10.8)."""
    return list(map(_reference, instance_headers(sources)))


def _reference(header: Dataset) -> Dataset:
    return item(
        ReferencedSOPClassUID=header.SOPClassUID,
        ReferencedSOPInstanceUID=header.SOPInstanceUID,
    )


def _referenced_series(sources: Sequence[TiledImage]) -> list[Dataset]:
    """Return the items of the Common Instance Reference module (PS3.3 C.12.2)."""
    by_series: dict[str, list[Dataset]] = {}
    for each in instance_headers(sources):
        by_series.setdefault(str(each.SeriesInstanceUID), []).append(_reference(each))
    return [
        item(SeriesInstanceUID=uid, ReferencedInstanceSequence=instances)
        for uid, instances in by_series.items()
    ]


# -- matrices ----------------------------------------------------------------------------------


def matrix_header(
    grid: Grid,
    *,
    tile: tuple[int, int],
    frames: int,
    organization: str,
    plane: float,
    derivation: tuple[str, str, str],
    shared: Mapping[str, Any],
    dimensions: Sequence[tuple[int, int, str]],
) -> Dataset:
    """Return what tiled objects have in common: matrix, dimensions and shared functional groups.

    Parameters
    ----------
    grid : Grid
        Matrix of the object.
    tile : tuple of int
        Rows and columns of a frame.
    frames : int
        Number of frames.
    organization : {"TILED_FULL", "TILED_SPARSE"}
        Dimension Organization Type.
    plane : float
        Offset of the focal plane in µm.
    derivation : tuple of str
        Derivation Code: value, scheme and meaning.
    shared : mapping
        Further sequences of the shared functional groups, by keyword.
    dimensions : sequence of (int, int, str)
        Pointer, pointer of the functional group, and label of each dimension.

    """
    geometry, x, y = grid.geometry, *grid.origin
    organization_uid = new_uid()
    measures = item(
        PixelSpacing=[decimal(value) for value in geometry.spacing],
        SliceThickness=_thickness(grid),
    )
    sources = [_derivation_source(each) for each in references(grid.sources)]
    groups = item(
        PixelMeasuresSequence=[measures],
        DerivationImageSequence=[
            item(SourceImageSequence=sources, DerivationCodeSequence=[code_item(*derivation)])
        ],
    )
    for keyword, value in shared.items():
        setattr(groups, keyword, value)
    header = item(
        ImageType=["DERIVED", "PRIMARY"],
        PatientOrientation=None,
        DimensionOrganizationType=organization,
        DimensionOrganizationSequence=[item(DimensionOrganizationUID=organization_uid)],
        DimensionIndexSequence=[
            item(
                DimensionIndexPointer=pointer,
                FunctionalGroupPointer=group,
                DimensionOrganizationUID=organization_uid,
                DimensionDescriptionLabel=label,
            )
            for pointer, group, label in dimensions
        ],
        SamplesPerPixel=1,
        NumberOfFrames=frames,
        Rows=tile[0],
        Columns=tile[1],
        TotalPixelMatrixRows=grid.shape[0],
        TotalPixelMatrixColumns=grid.shape[1],
        TotalPixelMatrixFocalPlanes=1,
        ImageOrientationSlide=_cosines(grid),
        TotalPixelMatrixOriginSequence=[
            item(
                XOffsetInSlideCoordinateSystem=decimal(x),
                YOffsetInSlideCoordinateSystem=decimal(y),
                ZOffsetInSlideCoordinateSystem=decimal(plane),
            )
        ],
        SourceImageSequence=references(grid.sources),
        SharedFunctionalGroupsSequence=[groups],
        LossyImageCompression="00",
    )
    first = grid.sources[0].metadata
    if dicom.text(first, "LossyImageCompression") == "01":  # of the source, which can't be undone
        for keyword in ("LossyImageCompression", "LossyImageCompressionRatio",
                        "LossyImageCompressionMethod"):  # fmt: skip
            if keyword in first:
                header[keyword] = copy.deepcopy(first[keyword])
    return header


def _cosines(grid: Grid) -> list[str]:
    u, v = grid.geometry.row_direction, grid.geometry.column_direction
    return [decimal(value + 0.0) for value in (*u, 0.0, *v, 0.0)]


def _thickness(grid: Grid) -> str:
    """Return the Slice Thickness of the source in mm."""
    for groups in dicom.items(grid.sources[0].metadata, "SharedFunctionalGroupsSequence"):
        for measures in dicom.items(groups, "PixelMeasuresSequence"):
            thickness = dicom.number(measures, "SliceThickness")
            if thickness:
                return decimal(thickness)
    return decimal(NO_THICKNESS)


NO_THICKNESS = 0.001
"""Slice Thickness in mm where the source has none: about the depth of field of an objective."""


def _derivation_source(reference: Dataset) -> Dataset:
    """Return an item of the Source Image Sequence of a derivation (PS3.3 C.7.6.16.2.6)."""
    reference.SpatialLocationsPreserved = "YES"
    reference.PurposeOfReferenceCodeSequence = [
        code_item("121322", "DCM", "Source image for image processing operation")
    ]
    return reference


# -- groups of each frame ----------------------------------------------------------------------


def tile_groups(
    grid: Grid,
    positions: NDArray[Any],
    *,
    tile: tuple[int, int],
    plane: float,
    indices: Callable[[int], tuple[int, ...]],
    more: Callable[[int], bytes] | None = None,
) -> Iterator[bytes]:
    """Yield the functional groups of each frame of a sparse matrix.

    Parameters
    ----------
    grid : Grid
        Matrix.
    positions : numpy.ndarray
        Channel, row and column of each frame's tile, counted from zero; shape (frames, 3).
    tile : tuple of int
        Rows and columns of a frame.
    plane : float
        Offset of the focal plane in µm.
    indices : callable
        Dimension Index Values before those of the tile, by channel.
    more : callable, optional
        Encoded groups after those of the tile, by channel.

    """
    stated = dataclasses.replace(grid.geometry, origin=grid.origin)
    firsts = positions[:, 1:] * np.array(tile)
    z = ENCODER.text(0x0040074A, "DS", decimal(plane))
    for (channel, row, column), first, (x, y) in zip(
        positions.tolist(), firsts.tolist(), stated.to_slide(firsts).tolist(), strict=True
    ):
        values = (*indices(channel), row + 1, column + 1)
        index = ENCODER.element(0x00209157, "UL", ENCODER.pack(f"{len(values)}I", *values))
        place = (
            ENCODER.text(0x0040072A, "DS", decimal(x))
            + ENCODER.text(0x0040073A, "DS", decimal(y))
            + z
            + ENCODER.element(0x0048021E, "SL", ENCODER.pack("i", first[1] + 1))
            + ENCODER.element(0x0048021F, "SL", ENCODER.pack("i", first[0] + 1))
        )
        yield (
            ENCODER.sequence(0x00209111, ENCODER.item(index))
            + ENCODER.sequence(0x0048021A, ENCODER.item(place))
            + (more(channel) if more is not None else b"")
        )
