"""Description of a synthetic image, and its DICOM header."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dicomslide.header.elements import decimal
from dicomslide.header.tiling import TileGrid
from dicomslide.testing.encode import LOSSY, PHOTOMETRIC

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

    from dicomslide.header.geometry import SlideGeometry
    from dicomslide.pixels import PixelFormat
    from dicomslide.testing.drawing import Drawing

__all__ = ["EXPLICIT_LITTLE_ENDIAN", "UID_ROOT", "OffsetTable", "SyntheticImage", "decimal",
           "header_of", "srgb_profile", "uid_of"]  # fmt: skip

EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
UID_ROOT = "1.2.826.0.1.3680043.10.1338."

OffsetTable = Literal["basic", "extended", "empty"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticImage:
    """Description of a synthetic image."""

    geometry: SlideGeometry
    """Position on the slide, and shape of the total pixel matrix."""
    drawing: Drawing
    """Source of the pixels."""
    pixel_format: PixelFormat
    """Rows, columns, samples and bits of a frame."""
    transfer_syntax_uid: str = EXPLICIT_LITTLE_ENDIAN
    sparse: bool = False
    """TILED_SPARSE rather than TILED_FULL."""
    absent: frozenset[tuple[int, int]] = frozenset()
    """(row, column) in the tile grid of tiles that have no frame; sparse images only."""
    order: Literal["row-major", "reversed"] = "row-major"
    """Order of the frames; sparse images only."""
    offset_table: OffsetTable = "basic"
    undefined_lengths: bool = False
    """Whether sequences and items of the per-frame groups have undefined lengths."""
    optical_paths: tuple[str, ...] = ("1",)
    """Optical Path Identifiers."""
    planes: tuple[float, ...] = (0.0,)
    """Z offset of each focal plane in µm."""
    fragments: int = 1
    """Fragments of each encapsulated frame."""
    flavor: str = "VOLUME"
    """Value 3 of Image Type."""
    resampled: bool = False
    """Whether the image is a coarser level than the base."""
    icc_profile: bytes | None = None
    """ICC Profile of colour images; by default sRGB."""
    container_id: str = "DS-0001"
    """Container Identifier."""
    slide_number: int = 1
    """Images with the same number share study, series and frame of reference."""
    instance_number: int = 1
    """Instance Number."""
    encoded: Callable[[int, int, int], bytes] | None = None
    """Returns the encoded frame of (channel, plane, tile), in place of the encoded drawing."""
    share_frames: bool = False
    """Whether equal frames share their bytes on disk (extended offset table only)."""

    @property
    def grid(self) -> TileGrid:
        """Tile grid of the matrix."""
        return TileGrid(*self.geometry.shape, self.pixel_format.rows, self.pixel_format.columns)

    def places(self) -> list[tuple[int, int, int]]:
        """Return (channel, plane, tile) of each frame, in the order of the frames."""
        grid = self.grid
        absent = {row * grid.shape[1] + column for row, column in self.absent}
        found = [
            (channel, plane, tile)
            for channel in range(len(self.optical_paths))
            for plane in range(len(self.planes))
            for tile in range(grid.num_tiles)
            if tile not in absent
        ]
        return found[::-1] if self.order == "reversed" else found

    def tile(self, channel: int, plane: int, tile: int) -> NDArray[Any]:
        """Return the pixels of a tile; beyond the matrix, its last row and column are repeated."""
        grid = self.grid
        row, column = grid.position(tile)
        rows = np.minimum(row * grid.tile_rows + np.arange(grid.tile_rows), grid.rows - 1)
        columns = np.minimum(
            column * grid.tile_columns + np.arange(grid.tile_columns), grid.columns - 1
        )
        return self.drawing.tile(rows, columns, channel, plane)


def uid_of(*parts: object) -> str:
    """Return a UID that is a hash of the parts: the same for the same parts in every process."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return UID_ROOT + str(int.from_bytes(digest[:12], "big"))


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _item(**elements: Any) -> Dataset:
    from pydicom.dataset import Dataset

    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return item


def header_of(image: SyntheticImage) -> Dataset:
    """Return the header of a synthetic image, without per-frame groups and pixel data."""
    fmt, geometry = image.pixel_format, image.geometry
    color = fmt.samples == 3
    lossy = LOSSY.get(image.transfer_syntax_uid)
    ds = _item(
        SpecificCharacterSet="ISO_IR 192",
        ImageType=[
            "DERIVED" if image.resampled else "ORIGINAL",
            "PRIMARY",
            image.flavor,
            "RESAMPLED" if image.resampled else "NONE",
        ],
        SOPClassUID="1.2.840.10008.5.1.4.1.1.77.1.6",
        SOPInstanceUID=uid_of("instance", image.slide_number, image.instance_number),
        StudyDate="20260102",
        ContentDate="20260102",
        StudyTime="120000",
        ContentTime="120000",
        AcquisitionDateTime="20260102120000",
        AccessionNumber="",
        Modality="SM",
        Manufacturer="dicomslide",
        ReferringPhysicianName="",
        ManufacturerModelName="Synthetic slide writer",
        VolumetricProperties="VOLUME",
        PatientName="Synthetic^Slide",
        PatientID=f"SYNTHETIC-{image.slide_number}",
        PatientBirthDate="",
        PatientSex="",
        DeviceSerialNumber="1",
        SoftwareVersions="1",
        AcquisitionDuration=None,
        StudyInstanceUID=uid_of("study", image.slide_number),
        SeriesInstanceUID=uid_of("series", image.slide_number),
        StudyID="1",
        SeriesNumber=1,
        InstanceNumber=image.instance_number,
        FrameOfReferenceUID=uid_of("frame of reference", image.slide_number),
        PositionReferenceIndicator="SLIDE_CORNER",
        DimensionOrganizationType="TILED_SPARSE" if image.sparse else "TILED_FULL",
        ContainerIdentifier=image.container_id,
        IssuerOfTheContainerIdentifierSequence=[],
        ContainerTypeCodeSequence=[_code("433466003", "SCT", "Microscope slide")],
        SamplesPerPixel=fmt.samples,
        PhotometricInterpretation=_photometric(image) if color else "MONOCHROME2",
        NumberOfFrames=len(image.places()),
        Rows=fmt.rows,
        Columns=fmt.columns,
        BitsAllocated=fmt.bits_allocated,
        BitsStored=fmt.bits_stored,
        HighBit=fmt.bits_stored - 1,
        PixelRepresentation=0,
        BurnedInAnnotation="NO",
        LossyImageCompression="01" if lossy or image.resampled else "00",
        AcquisitionContextSequence=[],
        ImagedVolumeWidth=geometry.shape[1] * geometry.spacing[1],
        ImagedVolumeHeight=geometry.shape[0] * geometry.spacing[0],
        ImagedVolumeDepth=1.0,
        TotalPixelMatrixColumns=geometry.shape[1],
        TotalPixelMatrixRows=geometry.shape[0],
        SpecimenLabelInImage="YES" if image.flavor in ("LABEL", "OVERVIEW") else "NO",
        FocusMethod="AUTO",
        ExtendedDepthOfField="NO",
        NumberOfOpticalPaths=len(image.optical_paths),
        TotalPixelMatrixFocalPlanes=len(image.planes),
        TotalPixelMatrixOriginSequence=[
            _item(
                XOffsetInSlideCoordinateSystem=decimal(geometry.origin[0]),
                YOffsetInSlideCoordinateSystem=decimal(geometry.origin[1]),
                ZOffsetInSlideCoordinateSystem=decimal(image.planes[0]),
            )
        ],
        ImageOrientationSlide=[
            decimal(value)
            for value in (*geometry.row_direction, 0.0, *geometry.column_direction, 0.0)
        ],
        PresentationLUTShape="IDENTITY",
        RescaleIntercept="0",
        RescaleSlope="1",
    )
    if color:
        ds.PlanarConfiguration = int(fmt.planar)
        del ds.PresentationLUTShape, ds.RescaleIntercept, ds.RescaleSlope
    if ds.LossyImageCompression == "01":
        ds.LossyImageCompressionRatio = "10"
        ds.LossyImageCompressionMethod = lossy or "ISO_10918_1"
    if image.flavor == "LABEL":
        ds.LabelText = ds.BarcodeValue = image.container_id
    _describe_specimen(ds, image)
    _describe_dimensions(ds, image)
    ds.OpticalPathSequence = [
        _optical_path(identifier, color, image) for identifier in image.optical_paths
    ]
    measures = _item(
        SliceThickness="1.0",
        PixelSpacing=[decimal(value) for value in geometry.spacing],
    )
    if len(image.planes) > 1:
        measures.SpacingBetweenSlices = decimal((image.planes[1] - image.planes[0]) / 1000)
    frame_type = list(ds.ImageType)
    shared = _item(
        PixelMeasuresSequence=[measures],
        WholeSlideMicroscopyImageFrameTypeSequence=[_item(FrameType=frame_type)],
    )
    if not image.sparse or len(image.optical_paths) == 1:
        shared.OpticalPathIdentificationSequence = [
            _item(OpticalPathIdentifier=image.optical_paths[0])
        ]
    ds.SharedFunctionalGroupsSequence = [shared]
    return ds


def _photometric(image: SyntheticImage) -> str:
    if image.pixel_format.photometric.startswith("YBR"):
        return image.pixel_format.photometric
    return PHOTOMETRIC.get(image.transfer_syntax_uid, "RGB")


def _describe_specimen(ds: Dataset, image: SyntheticImage) -> None:
    stain = _item(
        SpecimenPreparationStepContentItemSequence=[
            _item(
                ValueType="TEXT",
                ConceptNameCodeSequence=[_code("121041", "DCM", "Specimen Identifier")],
                TextValue=image.container_id,
            ),
            _item(
                ValueType="CODE",
                ConceptNameCodeSequence=[_code("111701", "DCM", "Processing type")],
                ConceptCodeSequence=[_code("127790008", "SCT", "Staining")],
            ),
            _item(
                ValueType="CODE",
                ConceptNameCodeSequence=[_code("424361007", "SCT", "Using substance")],
                ConceptCodeSequence=[_code("12710003", "SCT", "hematoxylin stain")],
            ),
            _item(
                ValueType="CODE",
                ConceptNameCodeSequence=[_code("424361007", "SCT", "Using substance")],
                ConceptCodeSequence=[_code("36879007", "SCT", "water soluble eosin stain")],
            ),
        ]
    )
    ds.SpecimenDescriptionSequence = [
        _item(
            SpecimenIdentifier=image.container_id,
            IssuerOfTheSpecimenIdentifierSequence=[],
            SpecimenUID=uid_of("specimen", image.slide_number),
            SpecimenPreparationSequence=[stain] if image.pixel_format.samples == 3 else [],
        )
    ]


def _describe_dimensions(ds: Dataset, image: SyntheticImage) -> None:
    organization = uid_of("dimensions", image.slide_number)
    ds.DimensionOrganizationSequence = [_item(DimensionOrganizationUID=organization)]
    if not image.sparse:
        return
    ds.DimensionIndexSequence = [
        _item(
            DimensionIndexPointer=pointer,
            FunctionalGroupPointer=0x0048021A,
            DimensionOrganizationUID=organization,
        )
        for pointer in (0x0048021F, 0x0048021E, 0x0040074A)
    ]


def _optical_path(identifier: str, color: bool, image: SyntheticImage) -> Dataset:
    item = _item(
        OpticalPathIdentifier=identifier,
        OpticalPathDescription="Brightfield" if color else f"Fluorescence {identifier}",
        IlluminationTypeCodeSequence=[
            _code("111744", "DCM", "Brightfield illumination")
            if color
            else _code("111743", "DCM", "Epifluorescence illumination")
        ],
    )
    if color:
        item.ICCProfile = image.icc_profile or srgb_profile()
        item.IlluminationColorCodeSequence = [_code("414298005", "SCT", "Full Spectrum")]
    else:
        # 405 to 825 nm, and again: as of stains that come in cycles
        item.IlluminationWaveLength = 405.0 + 60 * (image.optical_paths.index(identifier) % 8)
    return item


def srgb_profile() -> bytes:
    """Return an sRGB ICC profile with a fixed creation time."""
    from PIL import ImageCms

    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = struct.pack(">6H", 2026, 1, 2, 12, 0, 0)
    profile[84:100] = bytes(16)  # no profile ID (MD5), since the creation time has changed
    return bytes(profile) + bytes(len(profile) % 2)
