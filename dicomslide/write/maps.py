"""`write_parametric_map`: numbers of pixels, such as probabilities, as DICOM Parametric Maps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from dicomslide.header.elements import decimal
from dicomslide.slide import Slide, open_slide
from dicomslide.write.choices import Organization, check_choice, tile_size_of
from dicomslide.write.codes import QUANTITIES, coded, unit_item
from dicomslide.write.frames import JPEG_LS, MOST_NATIVE, NATIVE, FrameForm
from dicomslide.write.grids import plane_of
from dicomslide.write.headers import (
    TILE_POSITION,
    SeriesOptions,
    code_item,
    derived_header,
    item,
    matrix_header,
    new_uid,
    tile_groups,
)
from dicomslide.write.levels import on_levels
from dicomslide.write.masks import labels_along, with_channels
from dicomslide.write.numbers import NumberForm
from dicomslide.write.palettes import palette_of
from dicomslide.write.stream import Instance, Job, too_large
from dicomslide.write.targets import stem_of, target_at, write_to

if TYPE_CHECKING:
    import os

    import xarray as xr
    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

    from dicomslide.write.grids import Grid, Placed
    from dicomslide.write.levels import Levels, Resample

__all__ = ["write_parametric_map"]

STORAGE = "1.2.840.10008.5.1.4.1.1.30"
MissingValues = Literal["refuse", "allow"]
Qualification = Literal["PRODUCT", "RESEARCH", "SERVICE"]
LONGEST_LABEL = 16
IMAGE_TYPE = ["DERIVED", "PRIMARY", "VOLUME", "QUANTITY"]
FIRST_MAPPED, LAST_MAPPED = 0x00409216, 0x00409211
"""Real World Value First and Last Value Mapped, whose VR depends on the pixels."""
DERIVATION = ("112187", "DCM", "Unspecified method of calculation")
QUANTITY = ("246205007", "SCT", "Quantity")


def write_parametric_map(
    parametric_map: xr.DataArray,
    slide: Slide | Any,
    target: str | os.PathLike[str] | Any,
    *,
    quantity: Any,
    unit: Any,
    labels: str | Sequence[str] | None = None,
    dtype: str | None = None,
    value_range: tuple[float, float] | None = None,
    slope: float = 1.0,
    intercept: float = 0.0,
    missing: MissingValues = "refuse",
    palette: Any = None,
    levels: Levels = "own",
    organization: Organization = "TILED_FULL",
    transfer_syntax_uid: str | None = None,
    overwrite: bool = False,
    resample: Resample | None = None,
    tile_size: int | tuple[int, int] | None = None,
    content_qualification: Qualification = "RESEARCH",
    name: str = "parametric_map",
    series_description: str | None = None,
    series_number: int = 101,
    series_instance_uid: str | None = None,
    content_creator: str = "",
    storage_options: Mapping[str, Any] | None = None,
    temporary_folder: str | os.PathLike[str] | None = None,
) -> list[str]:
    """Write numbers for each pixel of a slide as DICOM Parametric Maps (PS3.3 A.75).

    As :func:`write_segmentation` does, it computes pixels block by block with the current dask
    scheduler, turns them into the orientation of their level, and copies patient, study, frame of
    reference, container and specimens from it. Pixels of the level that the array doesn't have
    have no value: NaN when read again. Each parameter is an instance of its own.

    Parameters
    ----------
    parametric_map : xarray.DataArray
        Numbers with coordinates ``y`` and ``x`` in mm, or rows and columns as stored, of a whole
        level or a region; lazy or in memory; with a further dim for several parameters.
    slide : Slide, or what :func:`open_slide` takes
        The slide.
    target : path-like, str or dicomweb_client.api.DICOMwebClient
        See :func:`write_segmentation`.
    quantity : str, pydicom.sr.coding.Code, tuple or sequence of these
        What the numbers are, of all parameters or of each: a word (``"probability"``, ``"class
        activation"``, ``"saliency"``, ``"area"``, ...) or a code: pydicom's ``Code``, or (value,
        scheme, meaning).
    unit : str, pydicom.sr.coding.Code, tuple or sequence of these
        Unit of all parameters or of each: UCUM, such as ``"um2"``, ``"%"``, or ``"1"`` for none.
    labels : str or sequence of str, optional
        LUT Label of each parameter, of 16 characters at most, by which it is found again. By
        default, from the coordinate ``parameter_label`` or that of the further dim, else the name
        of the array.
    dtype : {"float32", "float64", "uint16"}, optional
        How numbers are stored. By default as they are: as ``"uint16"`` if they are uint8 or uint16.
    value_range : tuple of float, optional
        Lowest and highest number. Required for floating-point numbers as ``"uint16"``, which are
        stored in 65,534 steps between these. Others are an error. It is also the window in which
        viewers show the map: without it, they show 0 to 1, or all integers.
    slope, intercept : float, optional
        For integers: real value = slope × integer + intercept, which is what is read again.
    missing : {"refuse", "allow"}, default: "refuse"
        Whether NaN, a pixel without a value, is an error. Infinite numbers always are.
    palette : str or array-like, optional
        Colours for viewers, from the lowest to the highest value: a colour map of matplotlib, by
        name; or an array, shape (n, 3), integers from 0 to 255.
    levels, organization, overwrite, tile_size : optional
        See :func:`write_segmentation`. Sparse maps leave out tiles without any value.
    resample : {"mean", "nearest", "linear"}, optional
        How numbers get to another level: see :func:`write_segmentation`.
    transfer_syntax_uid : str, optional
        Explicit VR Little Endian; for ``"uint16"`` also RLE Lossless or JPEG-LS Lossless.
    content_qualification : {"RESEARCH", "PRODUCT", "SERVICE"}, default: "RESEARCH"
        Content Qualification.
    name : str, default: "parametric_map"
        Beginning of the names of files: ``parametric_map_level_0.dcm``.
    series_description, series_number, series_instance_uid, content_creator : optional
        Of the series, of which all instances are; a new one by default.
    storage_options, temporary_folder : optional
        See :func:`write_segmentation`.

    Returns
    -------
    list of str
        Paths or URLs of the instances; SOP Instance UIDs for a server.

    Raises
    ------
    GridError
        When the pixels have another frame of reference, or lie on the grid of no level and no
        resampling was asked for.
    PixelValueError
        When numbers don't fit: NaN, infinite, beyond `value_range` or the data type.
    MetadataError
        When the slide's header lacks what places a map: origin, spacing, orientation.
    StoreExistsError, ExportError, StorageRefusedError
        See :func:`write_segmentation`.
    TypeError, ValueError
        When an argument is something else than is described here.

    Examples
    --------
    >>> image = slide.to_dataset(level=1, chunks="auto").image
    >>> darkness = (1 - image.mean("sample") / 255).astype("float32").rename("darkness")
    >>> paths = dicomslide.write_parametric_map(
    ...     darkness, slide, "results/", quantity="probability", unit="1"
    ... )

    """
    stem_of(name)
    slide = slide if isinstance(slide, Slide) else open_slide(slide)
    to = target_at(
        target,
        overwrite=overwrite,
        storage_options=storage_options,
        temporary_folder=temporary_folder,
    )
    check_choice("organization", organization, get_args(Organization))
    check_choice("missing", missing, get_args(MissingValues))
    check_choice("content_qualification", content_qualification, get_args(Qualification))
    array, described = _described(parametric_map, labels, quantity, unit)
    form = NumberForm.of(array.dtype, dtype, value_range, (slope, intercept), missing == "allow")
    description = series_description or f"Map: {', '.join(each.label for each in described)}"
    writing = _Writing(
        form=form,
        parameters=described,
        palette=None if palette is None else palette_of(palette),
        sparse=organization == "TILED_SPARSE",
        transfer_syntax_uid=transfer_syntax_uid,
        tile_size=tile_size_of(tile_size),
        qualification=content_qualification,
        name=name,
        series=SeriesOptions(
            series_instance_uid=series_instance_uid or new_uid(),
            series_number=series_number,
            series_description=description,
            content_label="MAP",
            content_description=description,
            content_creator=content_creator,
        ),
    )
    jobs = writing.jobs(array, on_levels(array, slide, levels, resample, "MAP"), levels)
    return write_to(to, jobs)


@dataclasses.dataclass(frozen=True)
class Parameter:
    """What the numbers of a channel are."""

    label: str
    quantity: Dataset
    unit: Dataset


def _described(
    array: Any, labels: Any, quantity: Any, unit: Any
) -> tuple[xr.DataArray, tuple[Parameter, ...]]:
    """Return an array with a dim of parameters first, and what each is.

    Raises
    ------
    TypeError, ValueError
        When the array has other dims, or the numbers of labels, quantities or units don't fit.

    """
    import xarray as xr

    if not isinstance(array, xr.DataArray):
        raise TypeError(
            f"a parametric map is an xarray.DataArray with coordinates in mm, not a"
            f" {type(array).__name__}: xr.DataArray(values, coords={{'y': image.y, 'x': image.x}},"
            " dims=('y', 'x'))"
        )
    array, dim = with_channels(array, "parameter")
    count = array.sizes[dim]
    names = _labels_of(array, dim, labels)
    quantities, units = (
        list(each) if _is_several(each) else [each] * count for each in (quantity, unit)
    )
    for what, each in (("labels", names), ("quantity", quantities), ("unit", units)):
        if len(each) != count:
            raise ValueError(f"{what}: {len(each)} for {count} parameters; expected one for each")
    for name in names:
        if not name.strip() or len(name) > LONGEST_LABEL or "\\" in name:
            raise ValueError(
                f"labels: {name!r} isn't a LUT Label; expected 1 to {LONGEST_LABEL} characters:"
                " labels=..."
            )
    if len(set(names)) < count:
        raise ValueError(f"labels {names}: expected a different one for each parameter")
    return array, tuple(
        Parameter(name, coded(of, f"quantity of {name}", QUANTITIES), unit_item(by, name))
        for name, of, by in zip(names, quantities, units, strict=True)
    )


def _is_several(given: Any) -> bool:
    """Whether a code is given for each parameter, rather than one for all."""
    if isinstance(given, str) or hasattr(given, "CodingSchemeDesignator"):
        return False
    if hasattr(given, "scheme_designator"):  # pydicom's Code is a tuple
        return False
    if isinstance(given, tuple) and 3 <= len(given) <= 4:
        return not all(isinstance(each, str) or each is None for each in given)
    return isinstance(given, Sequence)


def _labels_of(array: xr.DataArray, dim: str, labels: Any) -> list[str]:
    if labels is not None:
        return [labels] if isinstance(labels, str) else [str(each) for each in labels]
    by_coordinate = labels_along(array, dim, or_numbers=True)
    if by_coordinate is not None:
        return by_coordinate
    if array.sizes[dim] == 1:
        return [str(array.name or "map")]
    return [f"map {number}" for number in range(1, array.sizes[dim] + 1)]


@dataclasses.dataclass(frozen=True)
class _Writing:
    """What all instances of a call have in common."""

    form: NumberForm
    parameters: tuple[Parameter, ...]
    palette: Dataset | None
    sparse: bool
    transfer_syntax_uid: str | None
    tile_size: tuple[int, int] | None
    qualification: str
    name: str
    series: SeriesOptions

    def jobs(self, array: xr.DataArray, levels: Sequence[Placed], chosen: Levels) -> list[Job]:
        """Return the jobs of the pixels of each level."""
        pyramids = [new_uid() if chosen == "all" else None for _ in self.parameters]
        jobs, number = [], 0
        for placed in levels:
            form = self._frame_form(placed.grid)
            plane = plane_of(array, placed.grid)
            instances = []
            for at, pyramid in enumerate(pyramids):
                number += 1
                of = _Instance(self, placed.grid, form, plane, at, pyramid, number, new_uid())
                instances.append(of.instance)
            jobs.append(Job(placed, form, self.form, tuple(instances), fill=self.form.fill))
        return jobs

    def _frame_form(self, grid: Grid) -> FrameForm:
        tile = self.tile_size or grid.tile
        form = FrameForm(self.form.dtype, tile, self.transfer_syntax_uid or NATIVE)
        nbytes = math.prod(form.tiles(grid.shape)) * form.frame_bits // 8
        if nbytes > MOST_NATIVE and not form.is_encapsulated and not self.sparse:
            if self.transfer_syntax_uid is not None or not self.form.is_integer:
                raise ValueError(
                    f"{too_large(nbytes)}; a map as uint16 (dtype=, value_range=) can be encoded"
                )
            form = dataclasses.replace(form, transfer_syntax_uid=JPEG_LS)
        return form


@dataclasses.dataclass(frozen=True)
class _Instance:
    """One instance: a parameter of one level."""

    of: _Writing
    grid: Grid
    form: FrameForm
    plane: float
    """Offset of its focal plane in µm."""
    at: int
    """Index of its parameter."""
    pyramid_uid: str | None
    number: int
    uid: str

    @property
    def instance(self) -> Instance:
        level = "" if self.grid.level is None else f"_level_{self.grid.level}"
        of_one = f"_{self.at + 1}" if len(self.of.parameters) > 1 else ""
        return Instance(
            name=f"{self.of.name}{level}{of_one}.dcm",
            sop_instance_uid=self.uid,
            channels=range(self.at, self.at + 1),
            header=self.header,
            groups=self._groups if self.of.sparse else None,
        )

    def header(self, frames: int) -> Dataset:
        """Return the header, given the number of frames."""
        header = derived_header(
            self.grid.sources,
            sop_class_uid=STORAGE,
            sop_instance_uid=self.uid,
            modality="OT",
            series=self.of.series,
            instance_number=self.number,
        )
        header.update(
            matrix_header(
                self.grid,
                tile=self.form.tile,
                frames=frames,
                organization="TILED_SPARSE" if self.of.sparse else "TILED_FULL",
                plane=self.plane,
                derivation=DERIVATION,
                shared=self._shared(),
                dimensions=TILE_POSITION,
            )
        )
        header.ImageType = IMAGE_TYPE
        header.ContentQualification = self.of.qualification
        header.AcquisitionContextSequence = []
        header.PhotometricInterpretation = "MONOCHROME2"
        header.PresentationLUTShape = "IDENTITY"
        header.BurnedInAnnotation = "NO"
        header.RecognizableVisualFeatures = "NO"
        header.BitsAllocated = self.form.bits_allocated
        if self.of.form.is_integer:
            header.BitsStored = header.BitsAllocated
            header.HighBit = header.BitsStored - 1
            header.PixelRepresentation = 0
            header.PixelPaddingValue = int(self.of.form.fill)
        header.PixelPresentation = "MONOCHROME"
        if self.of.palette is not None:
            header.PixelPresentation = "COLOR_RANGE"
            header.update(self.of.palette)
        if self.pyramid_uid is not None:
            header.PyramidUID = self.pyramid_uid
            header.PyramidLabel = self.of.name
        return header

    def _shared(self) -> dict[str, Any]:
        """Return the shared functional groups of a map, by keyword."""
        low, high = self.of.form.window
        colors = item(MinimumStoredValueMapped=float(low), MaximumStoredValueMapped=float(high))
        of_palette = {} if self.of.palette is None else {"StoredValueColorRangeSequence": [colors]}
        return of_palette | {
            "PixelValueTransformationSequence": [
                item(RescaleIntercept="0", RescaleSlope="1", RescaleType="US")
            ],
            "FrameVOILUTSequence": [
                item(WindowCenter=decimal((low + high) / 2), WindowWidth=decimal(high - low))
            ],
            "RealWorldValueMappingSequence": [self._mapping()],
            "ParametricMapFrameTypeSequence": [item(FrameType=IMAGE_TYPE)],
        }

    def _mapping(self) -> Dataset:
        """Return the Real World Value Mapping (PS3.3 C.7.6.16.2.11)."""
        form, parameter = self.of.form, self.of.parameters[self.at]
        low, high = form.mapped
        made = item(
            LUTExplanation=parameter.quantity.CodeMeaning,
            LUTLabel=parameter.label,
            MeasurementUnitsCodeSequence=[parameter.unit],
            QuantityDefinitionSequence=[
                item(
                    ValueType="CODE",
                    ConceptNameCodeSequence=[code_item(*QUANTITY)],
                    ConceptCodeSequence=[parameter.quantity],
                )
            ],
            RealWorldValueSlope=form.slope,
            RealWorldValueIntercept=form.intercept,
        )
        if form.is_integer:
            made.add_new(FIRST_MAPPED, "US", int(low))
            made.add_new(LAST_MAPPED, "US", int(high))
        else:
            made.DoubleFloatRealWorldValueFirstValueMapped = low
            made.DoubleFloatRealWorldValueLastValueMapped = high
        return made

    def _groups(self, positions: NDArray[Any]) -> Any:
        """Yield the per-frame functional groups of frames at (parameter, row, column)."""
        return tile_groups(
            self.grid,
            positions,
            tile=self.form.tile,
            plane=self.plane,
            indices=lambda channel: (),
        )
