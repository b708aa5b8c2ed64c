"""`write_segmentation`: masks, probabilities and label images as DICOM Segmentations."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from dicomslide.errors import ViewerWarning
from dicomslide.process.warn import warn
from dicomslide.slide import Slide, open_slide
from dicomslide.write.choices import Organization, check_choice, tile_size_of
from dicomslide.write.frames import DEFLATED_FRAME, JPEG_LS, MOST_NATIVE, NATIVE, FrameForm
from dicomslide.write.grids import plane_of
from dicomslide.write.headers import (
    SEGMENTATION,
    TILE_POSITION,
    SeriesOptions,
    derived_header,
    item,
    matrix_header,
    new_uid,
    tile_groups,
)
from dicomslide.write.levels import on_levels
from dicomslide.write.masks import Kind, Masks, masks_of, values_of
from dicomslide.write.segments import segment_items
from dicomslide.write.stream import Instance, Job, too_large
from dicomslide.write.targets import stem_of, target_at, write_to

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import xarray as xr
    from pydicom.dataset import Dataset

    from dicomslide.write.grids import Grid, Placed
    from dicomslide.write.levels import Levels, Resample

__all__ = ["FractionalType", "write_segmentation"]

FractionalType = Literal["PROBABILITY", "OCCUPANCY"]
STORAGE = "1.2.840.10008.5.1.4.1.1.66.4"
LABELMAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"
SEGMENT_NUMBER = (0x0062000B, 0x0062000A, "Segment Number")
MOST_FRAMES = 2**31 - 1


def write_segmentation(
    segmentation: xr.DataArray | xr.Dataset,
    slide: Slide | Any,
    target: str | os.PathLike[str] | Any,
    *,
    segments: Any = None,
    kind: Kind = "BINARY",
    levels: Levels = "own",
    organization: Organization = "TILED_FULL",
    transfer_syntax_uid: str | None = None,
    overwrite: bool = False,
    resample: Resample | None = None,
    tile_size: int | tuple[int, int] | None = None,
    split: bool | None = None,
    fractional_type: FractionalType = "PROBABILITY",
    name: str = "segmentation",
    series_description: str | None = None,
    series_number: int = 100,
    series_instance_uid: str | None = None,
    content_creator: str = "",
    storage_options: Mapping[str, Any] | None = None,
    temporary_folder: str | os.PathLike[str] | None = None,
) -> list[str]:
    """Write masks, probabilities or a label image of a slide as DICOM Segmentations (PS3.3 A.51).

    Pixels are computed by the current dask scheduler, block by block, and written as they are
    computed: memory doesn't grow with their number. They are turned into the orientation of the
    level to which they belong, padded with zeros to its total pixel matrix, and have its origin and
    spacing as its header states them. Patient, study, frame of reference, container and specimens
    are those of the level.

    Parameters
    ----------
    segmentation : xarray.DataArray or xarray.Dataset
        Pixels with coordinates ``y`` and ``x`` in mm, or rows and columns as stored, of a whole
        level or a region; lazy or in memory; with a further dim for several segments. Of a dataset,
        each variable of the data type is a segment. Bool for BINARY, floating-point numbers from 0
        to 1 for FRACTIONAL (stored in steps of 1/255), integers for LABELMAP.
    slide : Slide, or what :func:`open_slide` takes
        The slide.
    target : path-like, str or dicomweb_client.api.DICOMwebClient
        A folder, also that of the slide; a file, ``*.dcm``, for one instance; a URL of fsspec of
        one of these; the URL of a DICOMweb service, ``dicomweb+https://...``, or a client of one.
    segments : sequence or mapping, optional
        A description of each segment: a label; a mapping with ``label`` and, optionally,
        ``category`` and ``type`` (pydicom's ``Code``; value, scheme and meaning; or a word, such as
        ``"tumour"``), ``algorithm`` (name and version), ``algorithm_type``, ``description``,
        ``tracking_id``, ``tracking_uid``, ``anatomic_region`` and ``color``; highdicom's
        ``SegmentDescription``; or a channel of :attr:`Slide.channels`. For LABELMAP a mapping from
        pixel values to these, or a sequence for the values from one. By default, labels come from
        the coordinates or the name of the array, and codes from labels that are usual words.
    kind : {"BINARY", "FRACTIONAL", "LABELMAP"}, default: "BINARY"
        Segmentation Type.
    levels : {"own", "all", "free"}, int or sequence of int, default: "own"
        ``"own"``: the level on whose grid the pixels lie. ``"all"``: this level and all coarser
        ones, as a pyramid, in one pass: each is computed from the level before, whose pixels are
        kept in the temporary folder meanwhile. Numbers: these levels. ``"free"``: a matrix of the
        pixels' own spacing and extent.
    organization : {"TILED_FULL", "TILED_SPARSE"}, default: "TILED_FULL"
        Whether all tiles are stored, or only those with pixels that aren't zero.
    transfer_syntax_uid : str, optional
        Explicit VR Little Endian, RLE Lossless, JPEG-LS Lossless (both not for BINARY), or Deflated
        Image Frame Compression. By default the first, or the next that fits beyond 4 GiB.
    overwrite : bool, default: False
        Whether existing files or objects of these names are replaced.
    resample : {"nearest", "majority", "any", "mean", "linear"}, optional
        How pixels get to another level. ``"majority"``: at least half of what a pixel covers, for
        labels the most frequent; ``"any"``: anything that it covers. By default, other levels are
        an error, except for ``levels="all"``, which takes majorities, for FRACTIONAL means.
    tile_size : int or tuple of int, optional
        Rows and columns of a frame; by default those of the level, rounded up to multiples of eight
        columns for BINARY, whose frames then begin at whole bytes.
    split : bool, optional
        Whether each segment is an instance of its own; by default for FRACTIONAL only.
    fractional_type : {"PROBABILITY", "OCCUPANCY"}, default: "PROBABILITY"
        Segmentation Fractional Type.
    name : str, default: "segmentation"
        Beginning of the names of files: ``segmentation_level_0.dcm``.
    series_description, series_number, series_instance_uid, content_creator : optional
        Of the series, of which all instances are; a new one by default.
    storage_options : mapping, optional
        fsspec options of a URL: see :func:`register_storage_options`.
    temporary_folder : path-like, optional
        Folder for unfinished files of a target that isn't a folder on disk. Workers of a cluster
        have to reach it by the same path. By default the system's. A single instance of one
        segment, native and TILED_FULL, goes to a bucket without it.

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
        When values don't fit: NaN, fractions below 0 or above 1, labels of no segment, or another
        data type.
    MetadataError
        When the slide's header lacks what places a segmentation: origin, spacing, orientation.
    StoreExistsError
        When a file or object exists.
    ExportError
        When the disk is full, a server can't be reached, or workers don't reach the folder.
    StorageRefusedError
        When a server refuses some instances; the error names each with the reason.
    TypeError, ValueError
        When an argument is something else than is described here.

    Warns
    -----
    ViewerWarning
        When no viewer is known that shows the form.

    Notes
    -----
    All files are written to a temporary folder and get their names when all are whole. After an
    error or an interruption, nothing is left; what a killed process leaves, the next call in this
    folder deletes.

    Examples
    --------
    >>> image = slide.to_dataset(level=1, chunks="auto").image
    >>> mask = image.mean("sample") < 200
    >>> dicomslide.write_segmentation(mask, slide, "slide/", segments=["tissue"])
    ['...slide/segmentation_level_1.dcm']

    """
    check_choice("kind", kind, get_args(Kind))
    check_choice("organization", organization, get_args(Organization))
    check_choice("fractional_type", fractional_type, get_args(FractionalType))
    stem_of(name)
    slide = slide if isinstance(slide, Slide) else open_slide(slide)
    to = target_at(
        target,
        overwrite=overwrite,
        storage_options=storage_options,
        temporary_folder=temporary_folder,
    )
    masks = masks_of(segmentation, segments, kind)
    items = segment_items(masks.described, numbers=masks.numbers)
    description = series_description or f"Segmentation: {', '.join(masks.labels)}"
    writing = _Writing(
        masks=masks,
        items=tuple(items),
        sparse=organization == "TILED_SPARSE",
        split=kind == "FRACTIONAL" if split is None else bool(split) and kind != "LABELMAP",
        fractional_type=fractional_type,
        transfer_syntax_uid=transfer_syntax_uid,
        tile_size=tile_size_of(tile_size),
        name=name,
        series=SeriesOptions(
            series_instance_uid=series_instance_uid or new_uid(),
            series_number=series_number,
            series_description=description,
            content_label="SEGMENTATION",
            content_description=description,
            content_creator=content_creator,
        ),
    )
    jobs = writing.jobs(on_levels(masks.array, slide, levels, resample, kind), levels)
    _warn_of_viewers(jobs, writing)
    return write_to(to, jobs)


@dataclasses.dataclass(frozen=True)
class _Writing:
    """What all instances of a call have in common."""

    masks: Masks
    items: tuple[Dataset, ...]
    """Items of the Segment Sequence."""
    sparse: bool
    split: bool
    fractional_type: str
    transfer_syntax_uid: str | None
    tile_size: tuple[int, int] | None
    name: str
    series: SeriesOptions

    @property
    def kind(self) -> Kind:
        return self.masks.kind

    def jobs(self, levels: Sequence[Placed], chosen: Levels) -> list[Job]:
        """Return the jobs of the pixels of each level."""
        count = 1 if self.kind == "LABELMAP" else len(self.items)
        parts = [range(n, n + 1) for n in range(count)] if self.split else [range(count)]
        pyramids = [new_uid() if chosen == "all" else None for _ in parts]
        jobs, number = [], 0
        for placed in levels:
            form = self._form(placed.grid, len(parts[0]))
            plane = plane_of(self.masks.array, placed.grid)
            instances = []
            for part, pyramid in zip(parts, pyramids, strict=True):
                number += 1
                of = _Instance(self, placed.grid, form, plane, part, pyramid, number, new_uid())
                instances.append(of.instance)
            jobs.append(Job(placed, form, values_of(self.masks, placed), tuple(instances)))
        return jobs

    def _form(self, grid: Grid, channels: int) -> FrameForm:
        dtype = self.masks.stored_dtype
        tile = self.tile_size or (
            (grid.tile[0], -(-grid.tile[1] // 8) * 8) if self.kind == "BINARY" else grid.tile
        )
        form = FrameForm(dtype, tile, self.transfer_syntax_uid or NATIVE)
        frames = channels * math.prod(form.tiles(grid.shape))
        nbytes = frames * form.frame_bits // 8
        if frames > MOST_FRAMES:
            raise ValueError(f"{frames:,} frames are more than an instance can have: larger tiles")
        if nbytes > MOST_NATIVE and not form.is_encapsulated and not self.sparse:
            if self.transfer_syntax_uid is not None:
                raise ValueError(too_large(nbytes))
            syntax = DEFLATED_FRAME if self.kind == "BINARY" else JPEG_LS
            form = dataclasses.replace(form, transfer_syntax_uid=syntax)
        return form

    def file_name(self, grid: Grid, part: range) -> str:
        """Return the name of the file of an instance."""
        level = "" if grid.level is None else f"_level_{grid.level}"
        is_one = len(part) == len(self.items) or self.kind == "LABELMAP"
        return f"{self.name}{level}{'' if is_one else f'_segment_{part.start + 1}'}.dcm"


@dataclasses.dataclass(frozen=True)
class _Instance:
    """One instance: segments of one level."""

    of: _Writing
    grid: Grid
    form: FrameForm
    plane: float
    """Offset of its focal plane in µm."""
    part: range
    """Indices of its segments."""
    pyramid_uid: str | None
    number: int
    uid: str

    @property
    def instance(self) -> Instance:
        return Instance(
            name=self.of.file_name(self.grid, self.part),
            sop_instance_uid=self.uid,
            channels=self.part,
            header=self.header,
            groups=self._groups if self.of.sparse else None,
        )

    @property
    def _items(self) -> list[Dataset]:
        """Items of the Segment Sequence, numbered from one, but for labels."""
        if self.of.kind == "LABELMAP":
            return list(self.of.items)
        return segment_items([self.of.items[at] for at in self.part])

    @property
    def _is_of_one(self) -> bool:
        """Whether all frames are of one segment."""
        return self.of.kind != "LABELMAP" and len(self.part) == 1

    def header(self, frames: int) -> Dataset:
        """Return the header, given the number of frames."""
        kind = self.of.kind
        is_label_map = kind == "LABELMAP"
        header = derived_header(
            self.grid.sources,
            sop_class_uid=LABELMAP_STORAGE if is_label_map else STORAGE,
            sop_instance_uid=self.uid,
            modality="SEG",
            series=self.of.series,
            instance_number=self.number,
        )
        shared = {}
        if self._is_of_one:
            shared["SegmentIdentificationSequence"] = [item(ReferencedSegmentNumber=1)]
        header.update(
            matrix_header(
                self.grid,
                tile=self.form.tile,
                frames=frames,
                organization="TILED_SPARSE" if self.of.sparse else "TILED_FULL",
                plane=self.plane,
                derivation=SEGMENTATION,
                shared=shared,
                dimensions=TILE_POSITION if is_label_map else (SEGMENT_NUMBER, *TILE_POSITION),
            )
        )
        bits = self.form.bits_allocated
        header.PhotometricInterpretation = "MONOCHROME2"
        header.BitsAllocated = header.BitsStored = bits
        header.HighBit = bits - 1
        header.PixelRepresentation = 0
        header.SegmentationType = kind
        header.SegmentSequence = self._items
        header.SegmentsOverlap = "NO" if is_label_map or len(self.part) == 1 else "UNDEFINED"
        if is_label_map:
            header.PixelPaddingValue = 0
        if kind == "FRACTIONAL":
            header.SegmentationFractionalType = self.of.fractional_type
            header.MaximumFractionalValue = np.iinfo(self.form.dtype).max
        if self.pyramid_uid is not None:
            header.PyramidUID = self.pyramid_uid
            header.PyramidLabel = self.of.name
        return header

    def _groups(self, positions: Any) -> Any:
        """Yield the per-frame functional groups of frames at (segment, row, column)."""
        numbered = self.of.kind != "LABELMAP"
        return tile_groups(
            self.grid,
            positions,
            tile=self.form.tile,
            plane=self.plane,
            indices=lambda channel: (channel + 1,) if numbered else (),
            more=_segment_group if numbered and not self._is_of_one else None,
        )


@functools.lru_cache(1024)
def _segment_group(channel: int) -> bytes:
    """Return the Segment Identification Sequence of a frame."""
    from dicomslide.write.part10 import ENCODER

    number = ENCODER.element(0x0062000B, "US", ENCODER.pack("H", channel + 1))
    return ENCODER.sequence(0x0062000A, ENCODER.item(number))


def _warn_of_viewers(jobs: Sequence[Job], writing: _Writing) -> None:
    """Warn of forms that no viewer is known to show."""
    reasons = []
    if any(job.form.transfer_syntax_uid == DEFLATED_FRAME for job in jobs):
        reasons.append("Deflated Image Frame Compression, which only dicomslide is known to read")
    full = not writing.sparse
    if writing.kind == "FRACTIONAL" and full and not writing.split and len(writing.items) > 1:
        reasons.append(
            "several FRACTIONAL segments of one TILED_FULL instance: split=True writes an instance"
            " for each"
        )
    if writing.kind == "LABELMAP":
        reasons.append("LABELMAP on slides: BINARY has a frame for each segment (array == label)")
    for reason in reasons:
        warn(f"no viewer without Python is known to show {reason}", ViewerWarning)
