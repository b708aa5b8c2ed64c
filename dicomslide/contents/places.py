"""Mapping from channels and focal planes of a slide to those of its images."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING

import numpy as np

from dicomslide.enum import ChannelTypes
from dicomslide.errors import AmbiguousSlideError, MetadataError
from dicomslide.header import dicom
from dicomslide.header.geometry import AS_STORED, Orientation
from dicomslide.header.tiling import SAME_PLANE, focal_planes
from dicomslide.process.lazy import lazy

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import TypeAlias

    from dicomslide.header.channels import Channel
    from dicomslide.image import TiledImage

    Place: TypeAlias = tuple[TiledImage, int, int]
    """An image, and the zero-based indices of a channel and a focal plane of the image."""
    Places: TypeAlias = dict[tuple[int, int], Place]

__all__ = ["ChannelGroup", "SlidePlaces", "lies_on", "slide_places",
           "turned_onto"]  # fmt: skip

SAME_STEP = 1e-4
"""Tolerance of equal steps between pixels, as a fraction of a pixel."""
SAME_PIXEL = 0.5 + 1e-6
"""Tolerance of coinciding pixels, as a fraction of a pixel."""


@dataclasses.dataclass(frozen=True)
class ChannelGroup:
    """Channels of one variable of the tree: optical paths, or channels of a derived series."""

    name: str
    """``image``, ``image_2``, ``segmentation``, ``segmentation_2``, ``parametric_map``, ..."""
    channels: tuple[Channel, ...]
    first: int
    """Zero-based index of the first channel among those of the slide."""
    images: tuple[tuple[TiledImage, int | None], ...]
    """Images from the largest to the smallest, each with the index of its level; None where it
    isn't on the grid of a level."""

    @property
    def is_image(self) -> bool:
        """Whether the channels are optical paths, not segments or parameters."""
        return self.channels[0].type is ChannelTypes.OPTICAL_PATH

    @property
    def indices(self) -> range:
        """Zero-based indices of the channels in the slide."""
        return range(self.first, self.first + len(self.channels))

    @property
    def labels(self) -> tuple[str, ...]:
        """Unique labels of the channels in the tree: identifiers, with a suffix where needed.

        For example 1, 2, 1_2, 2_2 where two series have the identifiers 1 and 2.
        """
        identifiers = {channel.identifier for channel in self.channels}
        labels: dict[str, None] = {}
        for channel in self.channels:
            label, number = channel.identifier, itertools.count(2)
            while label in labels or (label != channel.identifier and label in identifiers):
                label = f"{channel.identifier}_{next(number)}"
            labels[label] = None
        return tuple(labels)


@dataclasses.dataclass(frozen=True, slots=True)
class SlidePlaces:
    """Channels and focal planes of a slide."""

    channels: tuple[Channel, ...]
    """Channels, variable by variable, in the order of their items in the first image that has
    them."""
    variables: tuple[range, ...]
    """Indices of the channels of each variable. These can be one array at each level: their pixels
    coincide and have one data type."""
    planes: tuple[float, ...]
    """Offset of each focal plane in µm."""
    places: tuple[Places, ...]
    """By level: (channel, focal plane) of the slide -> image, and channel and focal plane in it."""


@dataclasses.dataclass(frozen=True)
class _Held:
    """Channel of an image at a level."""

    level: int
    image: TiledImage
    index: int
    """Zero-based index of the channel in the image."""

    @property
    def channel(self) -> Channel:
        return self.image.channels[self.index]

    @property
    def offsets(self) -> list[float]:
        """Offset of each focal plane in µm."""
        planes = self.image._layout.planes
        return [planes.offset(self.index, plane) for plane in range(len(planes))]

    @property
    def series(self) -> str | None:
        return dicom.text(self.image.metadata, "SeriesInstanceUID")

    @property
    def kind(self) -> tuple[object, ...]:
        return _kind(self.image)

    @property
    def lies(self) -> tuple[object, ...]:
        """Level, geometry and data type: channels for which these are equal fit one array."""
        try:
            geometry: object = self.image.geometry
        except MetadataError:
            geometry = self.image.size
        return self.level, geometry, *self.kind

    @lazy
    def meaning(self) -> tuple[object, ...]:
        """Description, wavelength and stains of the channel."""
        channel = self.channel
        stains = tuple(dicom.stains_of(self.image.metadata))
        return channel.description, channel.wavelength, stains


class _SlideChannel:
    """Channel of the slide: the channels of images that are one channel."""

    def __init__(self, held: _Held) -> None:
        self.held = [held]

    def may_be(self, other: _Held) -> bool:
        """Whether a channel of an image with the same identifier may be this one.

        Channels with one identifier in images of one series match, unless both have pixels at one
        level and focal plane. Different series may reuse identifiers, as in cycles of staining:
        their channels match only at different levels, and if their meanings don't contradict.
        """
        return not any(_is_apart(other, held) for held in self.held)

    def fit(self, other: _Held) -> tuple[bool, ...]:
        """Return how well a channel of an image matches this one.

        Returns
        -------
        tuple of bool
            Whether the data type, the series and the meaning agree; a greater tuple is a better
            match.

        """
        return (
            any(held.kind == other.kind for held in self.held),
            any(held.series == other.series for held in self.held),
            not any(_contradict(held.meaning, other.meaning) for held in self.held),
        )

    def is_doubled_by(self, other: _Held) -> _Held | None:
        """Return the channel of another image that is a duplicate of `other`, or None."""
        return next(
            (
                held
                for held in self.held
                if held.level == other.level
                and held.image is not other.image
                and (held.series, held.kind) == (other.series, other.kind)
                and not _contradict(held.meaning, other.meaning)
            ),
            None,
        )

    def is_variable_with(self, other: _SlideChannel) -> bool:
        """Whether both channels can be in one array at each level that has both."""
        return all(
            _is_array_with(a.image, b.image) and lies_on(a.image, b.image)
            for a in self.held
            for b in other.held
            if a.level == b.level and a.image is not b.image
        )


def _is_apart(a: _Held, b: _Held) -> bool:
    """Whether channels of images with one identifier are different channels."""
    if a.level != b.level:
        return a.series != b.series and _contradict(a.meaning, b.meaning)
    if a.series != b.series or a.image is b.image or not _is_array_with(a.image, b.image):
        return True
    if _contradict(a.meaning, b.meaning):
        return True
    return any(abs(z - other) < SAME_PLANE for z in a.offsets for other in b.offsets)


def _contradict(a: tuple[object, ...], b: tuple[object, ...]) -> bool:
    """Whether values differ that are present in both tuples."""
    return any(x and y and x != y for x, y in zip(a, b, strict=True))


def _is_array_with(a: TiledImage, b: TiledImage) -> bool:
    """Whether two images have one data type, shape, spacing and orientation."""
    return _kind(a) == _kind(b) and turned_onto(a, b) == AS_STORED


def _kind(image: TiledImage) -> tuple[object, ...]:
    pixel_format = image._layout.pixel_format
    return pixel_format.dtype, pixel_format.samples


def turned_onto(image: TiledImage, other: TiledImage) -> Orientation | None:
    """Return the orientation that turns the matrix of an image onto that of another one.

    Returns
    -------
    Orientation or None
        None where their shapes or spacings differ, or the rotation isn't by right angles.

    """
    try:
        here, there = image.geometry, other.geometry
    except MetadataError:  # a header lacks the position: assume the same orientation
        return AS_STORED if image.size == other.size else None
    steps = there.pixels_of(here)[:, :2]
    down, across = np.rint(steps)
    transpose = bool(down[1])
    size = image.size[::-1] if transpose else image.size
    if size != other.size or np.abs(steps - (down, across)).max() > SAME_STEP:
        return None
    if sorted(np.abs([*down, *across])) != [0, 0, 1, 1]:
        return None
    return Orientation(transpose, flip_y=down.sum() < 0, flip_x=across.sum() < 0)


def lies_on(image: TiledImage, other: TiledImage) -> bool:
    """Whether the pixels of two images of one shape coincide, within half a pixel."""
    try:
        here, there = image.geometry, other.geometry
    except MetadataError:
        return True  # a header lacks the position
    rows, columns = here.shape
    corners = there.pixels_of(here) @ [[0, rows - 1], [0, columns - 1], [1, 1]]
    ends = [(0, there.shape[0] - 1), (0, there.shape[1] - 1)]
    return bool(np.abs(np.sort(corners) - ends).max() <= SAME_PIXEL)


def slide_places(levels: Sequence[Sequence[TiledImage]]) -> SlidePlaces:
    """Return the channels and focal planes of a slide, and the image of each of them.

    Channels with one identifier are one channel, unless two series have it at one level, or images
    of a series have it with another data type or another description.

    The focal planes of a slide are found by :func:`dicomslide.header.tiling.focal_planes`: where
    each channel has one plane at each level, at any height, there is one plane. The offset of a
    plane is taken from the first image with the largest number of planes.

    Parameters
    ----------
    levels : sequence of sequence of TiledImage
        The images of each level.

    Raises
    ------
    AmbiguousSlideError
        When two images of one series hold the same channel and focal plane of a level.

    """
    found = _channels(
        _Held(level, image, index)
        for level, images in enumerate(levels)
        for image in images
        for index in range(image.num_channels)
    )
    variables = _variables(found)
    ordered = [channel for variable in variables for channel in variable]
    ends = np.cumsum([0, *map(len, variables)]).tolist()
    planes, keyed = _planes(ordered, len(levels))
    return SlidePlaces(
        channels=tuple(channel.held[0].channel for channel in ordered),
        variables=tuple(range(*pair) for pair in itertools.pairwise(ends)),
        planes=planes,
        places=keyed,
    )


def _channels(all_held: Iterable[_Held]) -> list[_SlideChannel]:
    """Group channels of images to channels of the slide, in the order of the first of each."""
    by_identifier: dict[str, list[_SlideChannel]] = {}
    found: list[_SlideChannel] = []
    for held in all_held:
        called = by_identifier.setdefault(held.channel.identifier, [])
        fitting = [channel for channel in called if channel.may_be(held)]
        if len(fitting) > 1:  # else the stains needn't be read of the header
            fitting.sort(key=lambda channel: channel.fit(held), reverse=True)
        if fitting:
            fitting[0].held.append(held)
            continue
        for double in filter(None, (channel.is_doubled_by(held) for channel in called)):
            raise AmbiguousSlideError(
                f"{double.image.name} and {held.image.name} both hold channel"
                f" {held.channel.identifier!r}, focal plane {held.offsets[0]:g} µm, of the level of"
                f" {held.image.size[0]} × {held.image.size[1]} pixels; open only one of them"
            )
        called.append(_SlideChannel(held))
        found.append(called[-1])
    return found


def _variables(channels: Iterable[_SlideChannel]) -> list[list[_SlideChannel]]:
    """Group channels that can be in one array."""
    variables: list[list[_SlideChannel]] = []
    # one channel is compared for all that lie alike: there may be thousands
    compared: list[dict[tuple[object, ...], _SlideChannel]] = []
    for channel in channels:
        images = tuple(held.lies for held in channel.held)
        number = next(
            (
                number
                for number, others in enumerate(compared)
                if images in others or all(map(channel.is_variable_with, others.values()))
            ),
            len(variables),
        )
        if number == len(variables):
            variables.append([])
            compared.append({})
        variables[number].append(channel)
        compared[number].setdefault(images, channel)
    return variables


def _planes(
    channels: Sequence[_SlideChannel], num_levels: int
) -> tuple[tuple[float, ...], tuple[Places, ...]]:
    """Assign the focal planes of the images' channels to focal planes of the slide."""
    entries = [
        (held.level, number, held, plane, offset)
        for number, channel in enumerate(channels)
        for held in channel.held
        for plane, offset in enumerate(held.offsets)
    ]
    entries.sort(key=lambda entry: entry[:2])
    z = np.array([entry[4] for entry in entries])
    at = np.array([level * len(channels) + number for level, number, *_ in entries])
    of_slide = focal_planes(z, at)
    count = int(of_slide.max()) + 1
    _, place, pictures = np.unique(at, return_inverse=True, return_counts=True)
    first = place == int(np.argmax(pictures))
    if pictures.max() < count:
        first = np.ones(len(z), bool)
    offsets = [float(z[first & (of_slide == plane)].min()) for plane in range(count)]
    places: tuple[Places, ...] = tuple({} for _ in range(num_levels))
    for (level, number, held, plane, _), key in zip(entries, of_slide.tolist(), strict=True):
        places[level][number, key] = held.image, held.index, plane
    return tuple(offsets), places
