"""Layout of an image by its header: pixel format, tile grid, channels, focal planes, frames."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING

import numpy as np

from dicomslide.enum import ChannelTypes
from dicomslide.errors import FramePositionError, MetadataError
from dicomslide.header import dicom
from dicomslide.header.channels import Channel, channels_of, shared_channel
from dicomslide.header.tiling import (
    FocalPlanes,
    FrameMap,
    FramePositions,
    FullFrames,
    SparseFrames,
    TileGrid,
    focal_planes,
    index_of,
    tiles_of,
)
from dicomslide.pixels import PixelFormat
from dicomslide.pixels.color import WHITE, cielab_to_srgb

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydicom.dataset import Dataset

__all__ = [
    "MICROMETERS",
    "ImageLayout",
    "first_plane_of",
    "grid_of",
    "num_frames_of",
    "origin_items",
    "pixel_format_of",
    "read_layout",
    "shared_items",
    "size_of",
]

logger = logging.getLogger(__name__)

MICROMETERS = 1000  # in a millimetre
BESIDE_FRAMES = 4096
"""Bytes of a layout without its map of frames, approximately."""


@dataclasses.dataclass(frozen=True, slots=True)
class ImageLayout:
    """Layout of an image: all that is needed to find and decode its tiles."""

    pixel_format: PixelFormat
    transfer_syntax_uid: str | None
    """Transfer Syntax UID of the frames; None where it is derived from the bytes of each."""
    grid: TileGrid
    channels: tuple[Channel, ...]
    planes: FocalPlanes
    frames: FrameMap
    num_frames: int
    background: tuple[float, ...]
    """Pixel value of absent tiles, one number per sample."""
    label_values: tuple[int, ...] | None
    """Pixel value (Segment Number) of each channel of a LABELMAP segmentation; else None."""
    shares_frames: bool
    """Whether all channels are read from the same frames: segments of a label map, or several
    mappings of a parametric map."""

    @property
    def nbytes(self) -> int:
        """Bytes in memory, approximately: those of the map of frames, and of the rest."""
        return self.frames.nbytes + BESIDE_FRAMES

    def halved(self, times: int) -> ImageLayout:
        """Return the layout of frames whose rows and columns are halved `times` times.

        Parameters
        ----------
        times : int
            Number of halvings. Rows and columns of a tile have to be multiples of ``2**times``.

        """
        grid = self.grid
        return dataclasses.replace(
            self,
            pixel_format=self.pixel_format.halved(times),
            grid=TileGrid(
                -(-grid.rows >> times),
                -(-grid.columns >> times),
                grid.tile_rows >> times,
                grid.tile_columns >> times,
            ),
        )


def pixel_format_of(image: Dataset) -> PixelFormat:
    """Return the pixel format that a header declares (PS3.3 C.7.6.3).

    Raises
    ------
    MetadataError
        When attributes of the pixels are missing or contradict each other.

    """
    floating = "FloatPixelData" in image or (
        dicom.text(image, "SOPClassUID") == dicom.PARAMETRIC_MAP_STORAGE
        and "PixelRepresentation" not in image
    )
    name = dicom.name_of(image)
    values = {k: dicom.number(image, k) for k in ("Rows", "Columns", "BitsAllocated")}
    wrong = [f"{keyword} {image.get(keyword)}" for keyword, value in values.items() if not value]
    if wrong:
        raise MetadataError(f"{name}: its pixels aren't described: {', '.join(wrong)}")
    rows, columns, allocated = (int(value or 0) for value in values.values())
    photometric = dicom.text(image, "PhotometricInterpretation") or "MONOCHROME2"
    expected = 3 if photometric == "RGB" or photometric.startswith("YBR") else 1
    samples = int(dicom.number(image, "SamplesPerPixel") or expected)
    if samples != expected:
        raise MetadataError(
            f"{name}: {samples} samples per pixel, but {photometric} has {expected}"
        )
    stored = dicom.number(image, "BitsStored")
    high = dicom.number(image, "HighBit")
    try:
        return PixelFormat(
            rows=rows,
            columns=columns,
            samples=samples,
            bits_allocated=allocated,
            bits_stored=int(stored or allocated),
            high_bit=int(high) if stored and high is not None else None,
            # colour samples are unsigned, whatever Pixel Representation is (PS3.3 C.7.6.3.1.2)
            signed=not floating and samples == 1 and image.get("PixelRepresentation") == 1,
            floating=floating,
            photometric=photometric,
            planar=image.get("PlanarConfiguration") == 1,
        )
    except ValueError as error:
        raise MetadataError(f"{name}: its pixels aren't described: {error}") from error


def size_of(image: Dataset) -> tuple[int, int]:
    """Return Total Pixel Matrix Rows and Columns.

    Raises
    ------
    MetadataError
        When the image isn't tiled, or a size is impossible.

    """
    rows, columns = _sizes(image, "TotalPixelMatrixRows", "TotalPixelMatrixColumns")
    return rows, columns


def grid_of(image: Dataset) -> TileGrid:
    """Return the tile grid of an image.

    Raises
    ------
    MetadataError
        When the image isn't tiled, or a size is below 1.

    """
    return TileGrid(
        *_sizes(image, "TotalPixelMatrixRows", "TotalPixelMatrixColumns", "Rows", "Columns")
    )


def _sizes(image: Dataset, *keywords: str) -> list[int]:
    values = [int(dicom.number(image, keyword) or 0) for keyword in keywords]
    if min(values) < 1:
        found = ", ".join(f"{k} {image.get(k)}" for k in keywords)
        raise MetadataError(
            f"{dicom.name_of(image)}: not a tiled image: {found}; expected 1 or more of each"
        )
    return values


def is_label_map(image: Dataset) -> bool:
    """Whether Segmentation Type is LABELMAP: pixels are segment numbers."""
    return dicom.text(image, "SegmentationType") == "LABELMAP"


# -- frames ----------------------------------------------------------------------------------


def read_layout(
    image: Dataset,
    transfer_syntax_uid: str | None,
    positions: FramePositions | None,
    name: str,
    frame_groups: Callable[[Sequence[int]], Sequence[Dataset]] | None = None,
) -> ImageLayout:
    """Return the layout of an image.

    Parameters
    ----------
    image : pydicom.dataset.Dataset
        Header of a tiled image.
    transfer_syntax_uid : str or None
        Transfer Syntax UID of its frames; None to derive it from the bytes of each.
    positions : FramePositions or None
        Frame positions in its per-frame functional groups.
    name : str
        Name of the image for messages.
    frame_groups : callable, optional
        Function of frame indices that returns their per-frame functional groups.

    Returns
    -------
    ImageLayout

    Raises
    ------
    MetadataError
        When the header lacks an attribute, or contradicts itself.
    FramePositionError
        When a frame lies outside the matrix, or two frames have one position.

    """
    pixel_format, grid = pixel_format_of(image), grid_of(image)
    of_frames = () if positions is None or positions.channels is None else positions.channels
    channels = channels_of(image, of_frames, frame_groups)
    shares_frames = is_label_map(image) or _has_several_mappings(image, channels)
    num_frames = num_frames_of(image)
    try:
        if positions is not None:
            planes, frames = _sparse(image, grid, channels, positions, shares_frames)
        elif dicom.text(image, "DimensionOrganizationType") == "TILED_SPARSE":
            raise MetadataError(
                "it is TILED_SPARSE, but its frames have no positions: there is no Per-Frame"
                " Functional Groups Sequence with the row and column of each frame"
            )
        else:
            channels, planes, frames = _full(image, grid, channels, num_frames, shares_frames)
    except FramePositionError as error:
        raise error.located(name, error.frame or 0) from None
    except MetadataError as error:
        raise MetadataError(f"{name}: {error}") from None
    return ImageLayout(
        pixel_format=pixel_format,
        transfer_syntax_uid=transfer_syntax_uid,
        grid=grid,
        channels=channels,
        planes=planes,
        frames=frames,
        num_frames=num_frames,
        background=_background(image, pixel_format),
        label_values=_label_values(channels, name) if is_label_map(image) else None,
        shares_frames=shares_frames,
    )


def _sparse(
    image: Dataset,
    grid: TileGrid,
    channels: tuple[Channel, ...],
    positions: FramePositions,
    shares_frames: bool,
) -> tuple[FocalPlanes, FrameMap]:
    count = len(positions)
    tiles = tiles_of(grid, positions)
    identifiers = [each.identifier for each in channels]
    if positions.channels is not None and not shares_frames:
        channel = index_of(identifiers, positions.channels)
    else:
        channel = np.full(count, _only_channel(image, identifiers, shares_frames))
    if positions.z is None or not count:
        planes = FocalPlanes((first_plane_of(image),))
        of_frame = np.zeros(count, np.int64)
    else:
        sites = channel * grid.num_tiles + tiles
        is_image = channels[0].type is ChannelTypes.OPTICAL_PATH
        of_frame = focal_planes(positions.z, sites, _num_planes(image), may_be_absent=not is_image)
        # optical paths may have planes at different heights; segments share those of the image
        of_path = channel if is_image else np.zeros(count, np.int64)
        planes = FocalPlanes.of_frames(positions.z, of_frame, sites, of_path, len(identifiers))
    for plane, (low, high) in enumerate(planes.spans):
        logger.debug(
            "%s: focal plane %d isn't flat: its frames lie from %g to %g µm",
            dicom.name_of(image), plane, low, high,
        )  # fmt: skip
    return planes, SparseFrames(grid, tiles, channel, of_frame, len(planes))


def _full(
    image: Dataset,
    grid: TileGrid,
    channels: tuple[Channel, ...],
    num_frames: int,
    shares_frames: bool,
) -> tuple[tuple[Channel, ...], FocalPlanes, FrameMap]:
    num_channels = 1 if shares_frames else len(channels)
    first = int(dicom.number(image, "ConcatenationFrameOffsetNumber") or 0)
    is_part = dicom.text(image, "ConcatenationUID") is not None
    num_planes = _num_planes(image)
    if num_planes is None:  # derived from the number of frames
        stacks, rest = divmod(num_frames, grid.num_tiles * num_channels)
        num_planes = 1 if is_part or rest else stacks
    expected = grid.num_tiles * num_planes * num_channels
    if num_frames + first > expected or (num_frames < expected and not is_part):
        # images of one plane and one path often declare wrong numbers of planes or paths
        if num_frames != grid.num_tiles:
            raise MetadataError(
                f"the header declares {num_frames} frames"
                + (f" from frame {first + 1} on" if first else "")
                + f"; {grid.shape[0]} × {grid.shape[1]} tiles, {num_planes} focal planes and"
                f" {num_channels} channels make {expected}"
            )
        num_planes = 1
        only = _only_channel(image, [each.identifier for each in channels], shares_frames)
        first = only * grid.num_tiles
        if channels[0].type is ChannelTypes.OPTICAL_PATH:  # a segment without frames is empty
            channels, first = channels[only : only + 1], 0
    start = first_plane_of(image)
    step = _spacing_between_planes(image)
    if num_planes > 1 and step is None:
        raise MetadataError(
            f"it has {num_planes} focal planes, but no Spacing Between Slices to place them"
        )
    planes = FocalPlanes(tuple(start + k * (step or 0.0) for k in range(num_planes)))
    return channels, planes, FullFrames(grid.num_tiles, num_planes, num_frames, first)


def _num_planes(image: Dataset) -> int | None:
    """Return Total Pixel Matrix Focal Planes, or None."""
    given = dicom.number(image, "TotalPixelMatrixFocalPlanes")
    return int(given) if given and given >= 1 else None


def num_frames_of(image: Dataset) -> int:
    """Return Number of Frames; where it is absent, the number of a TILED_FULL image."""
    given = dicom.number(image, "NumberOfFrames")
    if given:
        return int(given)
    if not dicom.is_tiled_image(image):
        return 1
    num_channels = 1 if is_label_map(image) else len(channels_of(image))
    return grid_of(image).num_tiles * (_num_planes(image) or 1) * num_channels


def _only_channel(image: Dataset, identifiers: list[str], shares_frames: bool) -> int:
    """Return the index of the channel in the shared functional groups, 0 where they name none."""
    shared = None if shares_frames else shared_channel(image)
    if shared is None or len(identifiers) == 1:
        return 0
    if shared not in identifiers:
        raise MetadataError(f"its frames belong to channel {shared!r}; the image has {identifiers}")
    return identifiers.index(shared)


def _label_values(channels: tuple[Channel, ...], name: str) -> tuple[int, ...]:
    try:
        return tuple(int(channel.identifier) for channel in channels)
    except ValueError:
        named = [channel.identifier for channel in channels]
        raise MetadataError(
            f"{name}: Segment Numbers of a label map must be integers, not {named}"
        ) from None


def _has_several_mappings(image: Dataset, channels: tuple[Channel, ...]) -> bool:
    return (
        channels[0].type is ChannelTypes.PARAMETER
        and len(channels) > 1
        and bool(shared_items(image, "RealWorldValueMappingSequence"))
    )


def first_plane_of(image: Dataset) -> float:
    """Return Z Offset in Slide Coordinate System in µm, 0 where it is absent."""
    for origin in origin_items(image):
        z = dicom.number(origin, "ZOffsetInSlideCoordinateSystem")
        if z is not None:
            return z
    return 0.0


def _spacing_between_planes(image: Dataset) -> float | None:
    """Return Spacing Between Slices in µm, or None."""
    for measures in shared_items(image, "PixelMeasuresSequence"):
        step = dicom.number(measures, "SpacingBetweenSlices")
        if step:
            return step * MICROMETERS
    return None


def _background(image: Dataset, pixel_format: PixelFormat) -> tuple[float, ...]:
    """Return the pixel value of absent tiles.

    For colour, Recommended Absent Pixel CIELab Value (PS3.3 C.8.12.4.1.5) or white; for other
    pixels, 0, or NaN where they are floating-point numbers.
    """
    if pixel_format.is_color:
        lab = dicom.numbers(image, "RecommendedAbsentPixelCIELabValue", 3)
        return WHITE if lab is None else cielab_to_srgb([int(value) for value in lab])
    return (float("nan"),) if pixel_format.floating else (0,)


# -- items of several modules ----------------------------------------------------------------


def shared_items(image: Dataset, keyword: str) -> list[Dataset]:
    """Return the items of a sequence in the Shared Functional Groups Sequence."""
    return [
        item
        for group in dicom.items(image, "SharedFunctionalGroupsSequence")
        for item in dicom.items(group, keyword)
    ]


def origin_items(image: Dataset) -> list[Dataset]:
    """Return the items of Total Pixel Matrix Origin Sequence.

    The sequence belongs at the top level; some writers put it into the shared groups.
    """
    keyword = "TotalPixelMatrixOriginSequence"
    return [*dicom.items(image, keyword), *shared_items(image, keyword)]
