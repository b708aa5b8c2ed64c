"""Which channel and focal plane of a slide each one of its images holds."""

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

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import TypeAlias

    from dicomslide.header.channels import Channel
    from dicomslide.image import TiledImage

    Place: TypeAlias = tuple[TiledImage, int, int]
    """An image, and the zero-based indices of a channel and a focal plane in it."""
    Places: TypeAlias = dict[tuple[int, int], Place]

__all__ = ["ChannelGroup", "SlidePlaces", "lies_on", "slide_places",
           "turned_onto"]  # fmt: skip

SAME_STEP = 1e-4
"""Fraction of a pixel by which steps between pixels of one grid may differ."""
SAME_PIXEL = 0.5 + 1e-6
"""Pixels are at the same millimetres within this fraction of one."""


@dataclasses.dataclass(frozen=True)
class ChannelGroup:
    """Channels that are one variable of the tree: optical paths, or those of a derived series."""

    name: str
    """``image``, ``image_2``, ``segmentation``, ``segmentation_2``, ``parametric_map``, ..."""
    channels: tuple[Channel, ...]
    first: int
    """Zero-based index, among the channels of the slide, of the first."""
    images: tuple[tuple[TiledImage, int | None], ...]
    """From the largest to the smallest, each with the index of its level; None where it lies on
    no level's grid."""

    @property
    def is_image(self) -> bool:
        """Whether they are optical paths, not derived."""
        return self.channels[0].type is ChannelTypes.OPTICAL_PATH

    @property
    def indices(self) -> range:
        """Zero-based indices of the channels in the slide."""
        return range(self.first, self.first + len(self.channels))

    @property
    def labels(self) -> tuple[str, ...]:
        """Identifiers of the channels, made distinct, by which the tree selects them.

        1, 2, 1_2, 2_2 where two series have a 1 and a 2.
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
    """Variable by variable; in each in the order of their items in the first image that has
    them."""
    variables: tuple[range, ...]
    """Channels that can be one array at each level: pixels of one kind at the same millimetres."""
    planes: tuple[float, ...]
    """Offset of each focal plane in µm."""
    places: tuple[Places, ...]
    """By level: (channel, focal plane) -> image, and channel and focal plane in it."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Held:
    """A channel of an image."""

    level: int
    image: TiledImage
    index: int
    """Of the channel in the image."""

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
    def meaning(self) -> tuple[object, ...]:
        """What a person tells channels apart by."""
        channel = self.channel
        stains = tuple(dicom.stains_of(self.image.metadata))
        return channel.description, channel.wavelength, stains


class _SlideChannel:
    """What images hold of a channel of the slide."""

    def __init__(self, held: _Held) -> None:
        self.held = [held]

    def fit(self, other: _Held) -> tuple[bool, ...] | None:
        """Return how well an image's channel fits, the better the more; None where it doesn't.

        What the images of a series call the same is the same, but where both have pixels of one
        place. Series may count their channels anew, as cycles of staining do: what they call the
        same is the same at different levels only, where nothing speaks against it.
        """
        if any(_is_apart(other, held) for held in self.held):
            return None
        return (
            any(held.kind == other.kind for held in self.held),
            any(held.series == other.series for held in self.held),
            not any(_contradict(held.meaning, other.meaning) for held in self.held),
        )

    def is_doubled_by(self, other: _Held) -> _Held | None:
        """Return what already has the place of an image's channel, if nothing tells them apart."""
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
        """Whether both can be channels of one array at each level that has both."""
        return all(
            _is_array_with(a.image, b.image) and lies_on(a.image, b.image)
            for a in self.held
            for b in other.held
            if a.level == b.level and a.image is not b.image
        )


def _is_apart(a: _Held, b: _Held) -> bool:
    """Whether something that is called the same is another channel."""
    contradict = _contradict(a.meaning, b.meaning)
    if a.series != b.series:
        return contradict or a.level == b.level
    if a.level != b.level:
        return False
    if a.image is b.image or contradict or not _is_array_with(a.image, b.image):
        return True
    return any(abs(z - other) < SAME_PLANE for z in a.offsets for other in b.offsets)


def _contradict(a: tuple[object, ...], b: tuple[object, ...]) -> bool:
    """Whether two things say something else; what one doesn't say contradicts nothing."""
    return any(x and y and x != y for x, y in zip(a, b, strict=True))


def _is_array_with(a: TiledImage, b: TiledImage) -> bool:
    """Whether pixels of two images are of one kind, as many, as large, and lie the same way."""
    return _kind(a) == _kind(b) and turned_onto(a, b) == AS_STORED


def _kind(image: TiledImage) -> tuple[object, ...]:
    pixel_format = image._layout.pixel_format
    return pixel_format.dtype, pixel_format.samples


def turned_onto(image: TiledImage, other: TiledImage) -> Orientation | None:
    """Return how the matrix of an image is turned to lie as that of another one does.

    Returns
    -------
    Orientation or None
        None where pixels aren't as many, as large, in rows and columns.

    """
    try:
        here, there = image.geometry, other.geometry
    except MetadataError:  # nothing says that they lie in another way
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
    """Whether such an image's pixels are another one's: at the same mm, within half a pixel."""
    try:
        here, there = image.geometry, other.geometry
    except MetadataError:
        return True  # nothing says that they aren't
    rows, columns = here.shape
    corners = there.pixels_of(here) @ [[0, rows - 1], [0, columns - 1], [1, 1]]
    ends = [(0, there.shape[0] - 1), (0, there.shape[1] - 1)]
    return bool(np.abs(np.sort(corners) - ends).max() <= SAME_PIXEL)


def slide_places(levels: Sequence[Sequence[TiledImage]]) -> SlidePlaces:
    """Find out which channels and focal planes a slide has, and which image holds which of them.

    Channels of one identifier are one, unless series tell them apart that both have it at one
    level, or, in a series, pixels of another kind or other descriptions.

    A slide has the focal planes that its images say, in the sense of
    :func:`dicomslide.header.tiling.focal_planes`: where each channel has one at each level, at
    whatever height, that is the only plane. The offset of a plane is that of the first image that
    has as many as any.

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
    """Put together what images hold of one channel, in the order of what comes first."""
    by_identifier: dict[str, list[_SlideChannel]] = {}
    found: list[_SlideChannel] = []
    for held in all_held:
        called = by_identifier.setdefault(held.channel.identifier, [])
        fits = {channel: fit for channel in called if (fit := channel.fit(held)) is not None}
        if fits:
            max(fits, key=lambda channel: fits[channel]).held.append(held)
            continue
        for double in filter(None, (channel.is_doubled_by(held) for channel in called)):
            raise AmbiguousSlideError(
                f"{double.image.name} and {held.image.name} both hold channel"
                f" {held.channel.identifier!r}, focal plane {held.offsets[0]:g} µm, of the level of"
                f" {held.image.size[0]} × {held.image.size[1]} pixels; open the files wanted only"
            )
        called.append(_SlideChannel(held))
        found.append(called[-1])
    return found


def _variables(channels: Iterable[_SlideChannel]) -> list[list[_SlideChannel]]:
    """Put channels together that can be one array."""
    variables: list[list[_SlideChannel]] = []
    # one channel stands for all that are in the same images: a segmentation may have thousands
    compared: list[dict[tuple[int, ...], _SlideChannel]] = []
    for channel in channels:
        images = tuple(id(held.image) for held in channel.held)
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
    """Sort the focal planes of the images' channels into those of the slide."""
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
