"""What an image's header says of its pixels: format, grid, channels, planes, geometry."""

from __future__ import annotations

import dataclasses
import warnings
from typing import TYPE_CHECKING

import numpy as np

from dicomslide import utils
from dicomslide.channel import Channel, channels_of, shared_channel
from dicomslide.codec import PixelFormat
from dicomslide.color import WHITE, cielab_to_srgb
from dicomslide.enum import ChannelTypes
from dicomslide.errors import FramePositionError, MetadataError, MetadataWarning
from dicomslide.frames import (
    FrameMap,
    FramePositions,
    FullFrames,
    SparseFrames,
    TileGrid,
    focal_planes,
    index_of,
)
from dicomslide.geometry import SlideGeometry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pydicom.dataset import Dataset

__all__ = [
    "SAME_SPACING",
    "FieldOfView",
    "ImageLayout",
    "field_of_view",
    "first_plane_of",
    "geometry_of",
    "grid_of",
    "num_frames_of",
    "pixel_format_of",
    "pixel_spacing_of",
    "read_layout",
    "spacing_of",
]

MICROMETERS = 1000  # in a millimetre
LARGEST_SLIDE = 100.0  # mm; a larger Imaged Volume Width is in µm
PARALLEL = 0.99
"""Cosine of the angle within which rows of levels run alike."""
SAME_SPACING = 1e-6
"""Spacings are the same within this fraction of them."""


@dataclasses.dataclass(frozen=True, slots=True)
class ImageLayout:
    """What is needed to find and decode any tile of an image."""

    pixel_format: PixelFormat
    transfer_syntax_uid: str | None
    """None where each frame's bytes tell."""
    grid: TileGrid
    channels: tuple[Channel, ...]
    planes: tuple[float, ...]
    """Offset of each focal plane in µm."""
    frames: FrameMap
    num_frames: int
    background: tuple[float, ...]
    """Value of absent tiles, one number a sample."""
    label_values: tuple[int, ...] | None
    """Pixel value of each channel, where pixels are segment numbers (LABELMAP); else None."""
    shares_frames: bool
    """Whether the channels are views of the same frames: segments of a label map, or several
    mappings of one parametric map."""


def pixel_format_of(image: Dataset) -> PixelFormat:
    """Return how the header describes the pixels.

    Raises
    ------
    MetadataError
        When the image pixel description is missing or impossible.

    """
    floating = "FloatPixelData" in image or (
        utils.text(image, "SOPClassUID") == utils.PARAMETRIC_MAP_STORAGE
        and "PixelRepresentation" not in image
    )
    name = utils.name_of(image)
    values = {k: utils.number(image, k) for k in ("Rows", "Columns", "BitsAllocated")}
    wrong = [f"{keyword} {image.get(keyword)}" for keyword, value in values.items() if not value]
    if wrong:
        raise MetadataError(f"{name}: its pixels aren't described: {', '.join(wrong)}")
    rows, columns, allocated = (int(value or 0) for value in values.values())
    photometric = utils.text(image, "PhotometricInterpretation") or "MONOCHROME2"
    expected = 3 if photometric == "RGB" or photometric.startswith("YBR") else 1
    samples = int(utils.number(image, "SamplesPerPixel") or expected)
    if samples != expected:
        raise MetadataError(
            f"{name}: {samples} samples per pixel, but {photometric} has {expected}"
        )
    stored = utils.number(image, "BitsStored")
    high = utils.number(image, "HighBit")
    try:
        return PixelFormat(
            rows=rows,
            columns=columns,
            samples=samples,
            bits_allocated=allocated,
            bits_stored=int(stored or allocated),
            high_bit=int(high) if stored and high is not None else None,
            signed=not floating and image.get("PixelRepresentation") == 1,
            floating=floating,
            photometric=photometric,
            planar=image.get("PlanarConfiguration") == 1,
        )
    except ValueError as error:
        raise MetadataError(f"{name}: its pixels aren't described: {error}") from error


def grid_of(image: Dataset) -> TileGrid:
    """Return the tile grid.

    Raises
    ------
    MetadataError
        When the image isn't tiled, or a size is impossible.

    """
    keywords = ("TotalPixelMatrixRows", "TotalPixelMatrixColumns", "Rows", "Columns")
    values = [int(utils.number(image, keyword) or 0) for keyword in keywords]
    if min(values) < 1:
        said = ", ".join(f"{k} {image.get(k)}" for k in keywords)
        raise MetadataError(f"{utils.name_of(image)}: not a tiled image: {said}")
    return TileGrid(*values)


def is_label_map(image: Dataset) -> bool:
    """Whether an image is a segmentation whose pixels are segment numbers."""
    return utils.text(image, "SegmentationType") == "LABELMAP"


# -- frames ----------------------------------------------------------------------------------


def read_layout(
    image: Dataset,
    transfer_syntax_uid: str | None,
    positions: FramePositions | None,
    name: str,
    frame_groups: Callable[[Sequence[int]], Sequence[Dataset]] | None = None,
) -> ImageLayout:
    """Work out the layout of an image.

    Parameters
    ----------
    image : pydicom.dataset.Dataset
        Header of a tiled image.
    transfer_syntax_uid : str or None
        Transfer syntax of its frames; None where their bytes tell.
    positions : FramePositions or None
        What its per-frame functional groups say.
    name : str
        What messages call the image.
    frame_groups : callable, optional
        Returns the per-frame functional groups of some frames.

    Raises
    ------
    MetadataError
        When the header lacks what is needed, or contradicts itself.
    FramePositionError
        When a frame lies outside the matrix, or two lie at one place.

    """
    pixel_format, grid = pixel_format_of(image), grid_of(image)
    of_frames = () if positions is None or positions.channels is None else positions.channels
    channels = channels_of(image, of_frames, frame_groups)
    shares_frames = is_label_map(image) or _has_several_mappings(image, channels)
    num_frames = num_frames_of(image)
    try:
        if positions is not None:
            planes, frames = _sparse(image, grid, channels, positions, shares_frames)
        elif utils.text(image, "DimensionOrganizationType") == "TILED_SPARSE":
            raise MetadataError(
                "it is TILED_SPARSE, but its frames have no positions: there is no Per-Frame"
                " Functional Groups Sequence with a row and column for each"
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
        label_values=_label_values(channels) if is_label_map(image) else None,
        shares_frames=shares_frames,
    )


def _sparse(
    image: Dataset,
    grid: TileGrid,
    channels: tuple[Channel, ...],
    positions: FramePositions,
    shares_frames: bool,
) -> tuple[tuple[float, ...], FrameMap]:
    count = len(positions)
    if positions.z is None:
        planes: tuple[float, ...] = (first_plane_of(image),)
        of_frame = np.zeros(count, np.int64)
    else:
        planes, of_frame = focal_planes(positions.z)
    identifiers = [each.identifier for each in channels]
    if positions.channels is not None and not shares_frames:
        channel = index_of(identifiers, positions.channels)
    else:
        channel = np.full(count, _only_channel(image, identifiers, shares_frames))
    return planes, SparseFrames(grid, positions, channel, of_frame, len(planes))


def _full(
    image: Dataset,
    grid: TileGrid,
    channels: tuple[Channel, ...],
    num_frames: int,
    shares_frames: bool,
) -> tuple[tuple[Channel, ...], tuple[float, ...], FrameMap]:
    num_channels = 1 if shares_frames else len(channels)
    first = int(utils.number(image, "ConcatenationFrameOffsetNumber") or 0)
    is_part = utils.text(image, "ConcatenationUID") is not None
    num_planes = _num_planes(image)
    if num_planes is None:  # as many as the frames make
        stacks, rest = divmod(num_frames, grid.num_tiles * num_channels)
        num_planes = 1 if is_part or rest else stacks
    expected = grid.num_tiles * num_planes * num_channels
    if num_frames + first > expected or (num_frames < expected and not is_part):
        # counts of planes and items of paths are often bogus on images of one plane and path
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
        raise MetadataError(f"it has {num_planes} focal planes, but no Spacing Between Slices")
    planes = tuple(start + k * (step or 0.0) for k in range(num_planes))
    return channels, planes, FullFrames(grid.num_tiles, num_planes, num_frames, first)


def _num_planes(image: Dataset) -> int | None:
    """Total Pixel Matrix Focal Planes, or None."""
    given = utils.number(image, "TotalPixelMatrixFocalPlanes")
    return int(given) if given and given >= 1 else None


def num_frames_of(image: Dataset) -> int:
    """Return Number of Frames; where it is absent, what TILED_FULL has."""
    given = utils.number(image, "NumberOfFrames")
    if given:
        return int(given)
    if not utils.is_tiled_image(image):
        return 1
    num_channels = 1 if is_label_map(image) else len(channels_of(image))
    return grid_of(image).num_tiles * (_num_planes(image) or 1) * num_channels


def _only_channel(image: Dataset, identifiers: list[str], shares_frames: bool) -> int:
    """Return the channel of all frames, where each doesn't say: what the shared groups say."""
    shared = None if shares_frames else shared_channel(image)
    if shared is None or len(identifiers) == 1:
        return 0
    if shared not in identifiers:
        raise MetadataError(f"its frames belong to channel {shared!r}; the image has {identifiers}")
    return identifiers.index(shared)


def _label_values(channels: tuple[Channel, ...]) -> tuple[int, ...]:
    try:
        return tuple(int(channel.identifier) for channel in channels)
    except ValueError:
        named = [channel.identifier for channel in channels]
        raise MetadataError(f"segments of a label map need numbers, not {named}") from None


def _has_several_mappings(image: Dataset, channels: tuple[Channel, ...]) -> bool:
    return (
        channels[0].type is ChannelTypes.PARAMETER
        and len(channels) > 1
        and bool(_shared(image, "RealWorldValueMappingSequence"))
    )


def first_plane_of(image: Dataset) -> float:
    """Z Offset in Slide Coordinate System in µm, 0 where nothing says."""
    for origin in _origins(image):
        z = utils.number(origin, "ZOffsetInSlideCoordinateSystem")
        if z is not None:
            return z
    return 0.0


def _spacing_between_planes(image: Dataset) -> float | None:
    """Spacing Between Slices, in µm."""
    for measures in _shared(image, "PixelMeasuresSequence"):
        step = utils.number(measures, "SpacingBetweenSlices")
        if step:
            return step * MICROMETERS
    return None


def _background(image: Dataset, pixel_format: PixelFormat) -> tuple[float, ...]:
    """PS3.3 C.8.12.4.1.5: Recommended Absent Pixel CIELab Value for colour, else white."""
    if pixel_format.is_color:
        lab = utils.numbers(image, "RecommendedAbsentPixelCIELabValue", 3)
        return WHITE if lab is None else cielab_to_srgb([int(value) for value in lab])
    return (float("nan"),) if pixel_format.floating else (0,)


# -- geometry --------------------------------------------------------------------------------


def _shared(image: Dataset, keyword: str) -> list[Dataset]:
    return [
        item
        for group in utils.items(image, "SharedFunctionalGroupsSequence")
        for item in utils.items(group, keyword)
    ]


def _origins(image: Dataset) -> list[Dataset]:
    """Items that may give the origin: at the top level, or (some writers) in the shared groups."""
    keyword = "TotalPixelMatrixOriginSequence"
    return [*utils.items(image, keyword), *_shared(image, keyword)]


def pixel_spacing_of(image: Dataset) -> tuple[float, float] | None:
    """Return Pixel Spacing (between rows, between columns) in mm, or None."""
    for measures in _shared(image, "PixelMeasuresSequence"):
        spacing = utils.numbers(measures, "PixelSpacing", 2)
        if spacing is not None and min(spacing) > 0:
            return spacing[0], spacing[1]
    return None


@dataclasses.dataclass(frozen=True, slots=True)
class FieldOfView:
    """What the total pixel matrix of a pyramid's base covers."""

    height: float
    """In mm along the columns."""
    width: float
    """In mm along the rows."""
    pixel_spacing: tuple[float, float] | None
    """Pixel Spacing as the base's header has it."""
    row_direction: tuple[float, float] | None
    """In which (x, y) the rows run; None where the header doesn't say."""

    def is_turned_from(self, image: Dataset) -> bool:
        """Whether rows of an image run along others than the base's: its width isn't theirs."""
        here, there = _row_direction(image), self.row_direction
        if here is None or there is None:
            return False
        return abs(here[0] * there[0] + here[1] * there[1]) < PARALLEL


def field_of_view(image: Dataset) -> FieldOfView | None:
    """Return what the matrix of an image covers, or None where nothing says."""
    try:
        between_rows, between_columns = spacing_of(image)
    except MetadataError:
        return None
    grid = grid_of(image)
    return FieldOfView(
        grid.rows * between_rows,
        grid.columns * between_columns,
        pixel_spacing_of(image),
        _row_direction(image),
    )


def _row_direction(image: Dataset) -> tuple[float, float] | None:
    cosines = utils.numbers(image, "ImageOrientationSlide", 6)
    return None if cosines is None else (cosines[0], cosines[1])


def _imaged_volume(image: Dataset) -> tuple[float, float] | None:
    """Imaged Volume (Height, Width) in mm, or None; some writers give micrometres."""
    width = utils.number(image, "ImagedVolumeWidth")
    height = utils.number(image, "ImagedVolumeHeight")
    if width and height and width > 0 and height > 0:
        scale = MICROMETERS if max(width, height) > LARGEST_SLIDE else 1
        return height / scale, width / scale
    return None


def spacing_of(image: Dataset, base: FieldOfView | None = None) -> tuple[float, float]:
    """Return the spacing (between rows, between columns) in mm.

    Pixel Spacing, unless it is absent, or contradicted by what the matrix covers: some writers
    swap its values, and some give every level that of the base.

    Parameters
    ----------
    image : pydicom.dataset.Dataset
        Header of a tiled image.
    base : FieldOfView, optional
        What the base of the image's pyramid covers, and so the image, where it doesn't say and
        its rows run along those of the base.

    Raises
    ------
    MetadataError
        When there is no spacing, nor anything to derive it from.

    """
    grid = grid_of(image)
    if base is not None and base.is_turned_from(image):
        base = None
    spacing, volume = pixel_spacing_of(image), _imaged_volume(image)
    covered = volume if volume or base is None else (base.height, base.width)
    if spacing is None:
        if covered is None:
            raise MetadataError(
                f"{utils.name_of(image)}: no Pixel Spacing, nor anything to derive it from"
            )
        return covered[0] / grid.rows, covered[1] / grid.columns
    if covered is None or _covers(grid, spacing, covered):
        return spacing
    if _covers(grid, spacing[::-1], covered) and not _covers(grid, spacing, covered[::-1]):
        return spacing[1], spacing[0]  # and it isn't the volume that is swapped
    if base is not None and base.pixel_spacing is not None:
        derived = base.height / grid.rows, base.width / grid.columns
        factors = np.divide(derived, spacing)
        same = np.allclose(spacing, base.pixel_spacing, rtol=SAME_SPACING, atol=0)
        in_proportion = abs(factors[0] / factors[1] - 1) <= 1 / grid.rows + 1 / grid.columns
        if (
            same and in_proportion and factors.min() > 1 and _covers(grid, derived, covered)
        ):  # else what is covered contradicts both
            return derived
    return spacing


def _covers(grid: TileGrid, spacing: Sequence[float], extent: tuple[float, float]) -> bool:
    """Whether pixels of that spacing make that (height, width), within a pixel and 1 %."""
    sizes = np.array([grid.rows, grid.columns])
    allowed = np.maximum(0.01 * np.array(extent), spacing)
    return bool(np.all(np.abs(sizes * spacing - extent) <= allowed))


def geometry_of(
    image: Dataset,
    *,
    base: FieldOfView | None = None,
    relative: bool = False,
    origin: tuple[float, float] | None = None,
    spacing: tuple[float, float] | None = None,
) -> SlideGeometry:
    """Return the affine between the matrix and the slide.

    Parameters
    ----------
    image : pydicom.dataset.Dataset
        Header of a tiled image.
    base : FieldOfView, optional
        What the base of the image's pyramid covers: see :func:`spacing_of`.
    relative : bool, default: False
        Whether millimetres may count from the first pixel, with a warning, where the header
        doesn't give its place on the slide.
    origin, spacing : tuple of float, optional
        Taken instead of what the header says, or lacks: by what doesn't depend on them.

    Raises
    ------
    MetadataError
        When orientation, spacing or origin is absent or impossible.

    """
    name = utils.name_of(image)
    grid = grid_of(image)
    cosines = utils.numbers(image, "ImageOrientationSlide", 6)
    if cosines is None:
        raise MetadataError(
            f"{name}: no usable Image Orientation (Slide), so it has no place on the slide"
        )
    spacing = spacing or spacing_of(image, base)
    origin = origin or _origin(image, relative)
    try:
        return SlideGeometry(
            origin,
            (cosines[0], cosines[1]),
            (cosines[3], cosines[4]),
            spacing,
            (grid.rows, grid.columns),
        )
    except ValueError as error:
        raise MetadataError(f"{name}: {error}") from error


def _origin(image: Dataset, relative: bool) -> tuple[float, float]:
    for item in _origins(image):
        x = utils.number(item, "XOffsetInSlideCoordinateSystem")
        y = utils.number(item, "YOffsetInSlideCoordinateSystem")
        if x is not None and y is not None:
            return x, y
    absent = f"{utils.name_of(image)}: no Total Pixel Matrix Origin"
    if not relative:
        raise MetadataError(f"{absent}, so it has no place on the slide")
    warnings.warn(
        f"{absent}: millimetres count from its first pixel", MetadataWarning, stacklevel=3
    )
    return 0.0, 0.0
