"""Channels and focal planes of a slide as one variable on a grid of pixels."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from dicomslide.contents.places import lies_on, turned_onto
from dicomslide.enum import ChannelTypes
from dicomslide.errors import MetadataError, MetadataWarning
from dicomslide.header.geometry import AS_STORED, Orientation, SlideGeometry
from dicomslide.header.layout import MICROMETERS
from dicomslide.header.optics import valid_range
from dicomslide.header.placement import geometry_of
from dicomslide.header.scaling import is_fractional
from dicomslide.header.tiling import SAME_PLANE, match_planes
from dicomslide.labelled.attributes import derived_attrs, image_attrs
from dicomslide.labelled.channel_coordinates import channel_coords
from dicomslide.labelled.coordinates import focal_plane_coords, matrix_coords, sample_coords
from dicomslide.options import check_memory
from dicomslide.process.warn import warn
from dicomslide.readers.scanned_reader import ScannedReader, tiles_scanned
from dicomslide.readers.stacked_reader import StackedReader, runs_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from dicomslide.contents.levels import Level
    from dicomslide.contents.places import ChannelGroup, Place
    from dicomslide.header.channels import Channel
    from dicomslide.header.geometry import OrientationName
    from dicomslide.image import TiledImage
    from dicomslide.labelled.parts import Parts
    from dicomslide.readers.stacked_reader import Data, Row

__all__ = ["Grid", "Stack", "deepest_of", "is_mask_of"]

SCANNED = "_scanned"
"""End of the names of masks."""
DIMS = {
    ChannelTypes.OPTICAL_PATH: "channel",
    ChannelTypes.SEGMENT: "segment",
    ChannelTypes.PARAMETER: "parameter",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Grid:
    """Pixels of a dataset: those of an image, upright or as stored."""

    image: TiledImage
    geometry: SlideGeometry | None
    orientation: Orientation | None
    """Transposition and flips of the matrix; None if it is as stored."""
    frame_of_reference_uid: str | None
    """Frame of Reference UID of the millimetres; None if headers have none."""

    @classmethod
    def of(
        cls, image: TiledImage, orientation: OrientationName, frame_of_reference_uid: str | None
    ) -> Grid:
        """Return the grid of an image, with a warning if it can't be upright in mm."""
        if orientation not in ("upright", "stored"):
            raise ValueError(f'orientation must be "upright" or "stored", not {orientation!r}')
        check_memory(8 * sum(image.size), f"{image.name}: coordinates")
        try:
            geometry = geometry_of(image.metadata, image._placement, relative=True)
        except MetadataError as error:
            warn(
                f"{error}: its dims are row and column, without millimetres",
                MetadataWarning,
            )
            return cls(image, None, None, frame_of_reference_uid)
        turned = None if orientation == "stored" else geometry.orientation
        if orientation == "upright" and turned is None:
            warn(
                f"{image.name}: it lies obliquely on the slide (rotation {geometry.rotation:.3f}"
                ' degrees), so its dims are row and column (orientation="stored")',
                MetadataWarning,
            )
        return cls(image, geometry, turned, frame_of_reference_uid)

    @property
    def placed(self) -> SlideGeometry:
        """Geometry of a grid that has one."""
        assert self.geometry is not None
        return self.geometry

    @property
    def plane_shape(self) -> tuple[int, int]:
        """Lengths of the dims of a grid that has a geometry."""
        rows, columns = self.placed.shape
        is_transposed = self.orientation is not None and self.orientation.transpose
        return (columns, rows) if is_transposed else (rows, columns)

    @property
    def dims(self) -> tuple[str, str]:
        """Names of the dims."""
        return ("row", "column") if self.orientation is None else ("y", "x")

    def coords(self) -> xr.Coordinates:
        """Return the coordinates of the dims."""
        size = self.image.size if self.geometry is None else self.geometry.shape
        return matrix_coords(self.geometry, self.orientation, size, self.frame_of_reference_uid)

    def turn(self, image: TiledImage) -> Orientation:
        """Return the transposition and flips of an image on this grid."""
        onto = turned_onto(image, self.image) or AS_STORED
        return onto.then(self.orientation or AS_STORED)


@dataclasses.dataclass(frozen=True, slots=True)
class Stack:
    """Channels and focal planes of one variable."""

    name: str
    """``image``, ``image_2``, ``segmentation``, ``parametric_map``, ..."""
    image: TiledImage
    """Image whose header describes the variable."""
    readers: tuple[Row, ...]
    """Readers by channel and focal plane; None without pixels. A label map is one channel."""
    channels: tuple[Channel, ...] = ()
    labels: tuple[str, ...] = ()
    """Label of each channel, by which it is selected."""
    images: tuple[TiledImage, ...] = ()
    """First image of each channel; of a label map, only one."""
    planes: tuple[int, ...] = ()
    """Zero-based index of each focal plane in the slide."""
    offsets: tuple[float, ...] = ()
    """Offset of each focal plane in µm, by the first channel that has it."""
    spans: tuple[tuple[float, float], ...] = ()
    """Lowest and highest offset of the frames of each focal plane in µm; empty if all planes are
    flat."""
    heights: tuple[tuple[float, ...], ...] = ()
    """Offset of each focal plane by channel in µm, NaN for missing planes; empty if channels don't
    differ."""
    orientation: Orientation | None = None
    """Transposition and flips from readers to the grid; None for those of the image."""
    resampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Attributes that describe how pixels of another grid were computed."""

    @classmethod
    def at_level(cls, level: Level, group: ChannelGroup) -> Stack | None:
        """Return the stack of a group of channels at a level; None if the level has none of them.

        If the level lacks some combinations of channels and focal planes, there is a warning.
        """
        places = {key: place for key, place in level._places.items() if key[0] in group.indices}
        if not places:
            return None
        channels = sorted({channel for channel, _ in places})
        planes = level._planes_of(group.indices)
        image, *others = level._images_of(group.indices)
        for other in others:
            _warn_if_apart(image, other)
        is_label_map = image._layout.label_values is not None  # all segments are in the same pixels
        if not is_label_map and len(places) < len(channels) * len(planes):
            warn(
                f"{image.name}: its level has pixels for {len(places)} of {len(channels)} ×"
                f" {len(planes)} channels and focal planes of {group.name}; the rest is"
                " background",
                MetadataWarning,
            )
        return cls._of_places(
            group,
            image,
            [channel - group.first for channel in channels],
            tuple(planes),
            [[places.get((channel, plane)) for plane in planes] for channel in channels],
        )

    @classmethod
    def of_image(cls, group: ChannelGroup, image: TiledImage) -> Stack:
        """Return the stack of one image of a group with distinct identifiers of channels."""
        planes = tuple(range(image.num_focal_planes))
        channels = range(image.num_channels)
        places: list[list[Place | None]] = [[(image, c, p) for p in planes] for c in channels]
        index = {channel.identifier: number for number, channel in enumerate(group.channels)}
        of_group = [index[channel.identifier] for channel in image.channels]
        return cls._of_places(group, image, of_group, planes, places)

    @classmethod
    def of_associated(cls, image: TiledImage) -> Stack:
        """Return the stack of a label, overview or thumbnail: its first matrix."""
        return cls("image", image, _readers([[(image, 0, 0)]]))

    @classmethod
    def _of_places(
        cls,
        group: ChannelGroup,
        image: TiledImage,
        channels: Sequence[int],
        planes: tuple[int, ...],
        places: list[list[Place | None]],
    ) -> Stack:
        """Return the stack of places by channel and plane; channels are indices in `group`."""
        labels = group.labels
        if image._layout.label_values is not None:  # all segments are in the same pixels
            places = [
                [next(filter(None, of_plane), None) for of_plane in zip(*places, strict=True)]
            ]
        holders = [[place for place in row if place is not None] for row in places]
        of_plane = [
            [place for place in column if place is not None] for column in zip(*places, strict=True)
        ]
        heights = [[math.nan if p is None else _offset(p) for p in row] for row in places]
        differ = np.nanmax(heights, axis=0) - np.nanmin(heights, axis=0) >= SAME_PLANE
        spans = [[each._layout.planes.span(p) for each, _, p in column] for column in of_plane]
        is_flat = not any(each._layout.planes.spans for column in of_plane for each, _, _ in column)
        return cls(
            name=group.name,
            image=image,
            readers=_readers(places),
            channels=tuple(group.channels[channel] for channel in channels),
            labels=tuple(labels[channel] for channel in channels),
            images=tuple(row[0][0] for row in holders),
            planes=planes,
            offsets=tuple(_offset(column[0]) for column in of_plane),
            spans=()
            if is_flat
            else tuple(
                (min(low for low, _ in each), max(high for _, high in each)) for each in spans
            ),
            heights=tuple(map(tuple, heights)) if differ.any() else (),
        )

    @property
    def is_image(self) -> bool:
        """Whether it isn't derived from other images."""
        return self.image.channel_type is ChannelTypes.OPTICAL_PATH

    @property
    def dim(self) -> str:
        """Name of the dim of the channels."""
        return DIMS[self.image.channel_type] + self.name[len(_plain(self.name)) :]

    def has_planes_of(self, other: Stack) -> bool:
        """Whether the focal planes are those of another stack of the level."""
        if self is other or len(self.planes) > 1:  # otherwise it would be a separate node
            return True
        return (
            self.planes == other.planes
            and match_planes(self.offsets, other.offsets) is not None
            and not self.heights
            and not other.heights
        )

    def as_meant(self) -> Stack:
        """Return the stack with fractions or real world values instead of stored values."""
        readers = tuple(
            tuple(reader and reader.as_meant() for reader in row) for row in self.readers
        )
        of_source = {id(reader.source): reader for row in readers for reader in row if reader}
        if all(reader.scaling is not None for reader in of_source.values()):
            return dataclasses.replace(self, readers=readers)
        if is_fractional(self.image.metadata):
            warn(
                f"{self.image.name}: fractions without Maximum Fractional Value: its pixels are"
                " as stored",
                MetadataWarning,
            )
        return self

    def add_to(
        self,
        parts: Parts,
        grid: Grid,
        data: Data,
        squeeze: bool,
        *,
        has_planes: bool,
        has_samples: bool,
        with_scanned: bool,
    ) -> None:
        """Add the variable, and the coordinates of its channels, to the parts of a dataset.

        Parameters
        ----------
        parts : Parts
            Parts with the coordinates of the grid and of the focal planes.
        grid : Grid
            The grid of the dataset.
        data : callable
            Returns the data of the variable, given a :class:`StackedReader`.
        squeeze : bool
            Whether dims of size one become scalar coordinates.
        has_planes : bool
            Whether its focal planes are those of the dataset; else its only plane is an attribute.
        has_samples : bool
            Whether a dim of samples of size one is kept when `squeeze` is False.
        with_scanned : bool
            Whether the mask of what was scanned is added as well, where tiles are absent.

        """
        image = self.image
        samples = image._layout.pixel_format.samples
        first = next(reader for row in self.readers for reader in row if reader is not None)
        is_label_map = first.as_labels
        kept = (
            not is_label_map and (len(self.readers) > 1 or not squeeze),
            has_planes and (len(self.readers[0]) > 1 or not squeeze),
            samples > 1 or (self.is_image and has_samples and not squeeze),
        )
        reader = StackedReader(
            runs=runs_of(self.readers),
            orientation=self.orientation or grid.turn(image),
            kept=kept,
            matrix_shape=first.shape,
            tile_shape=first.tile_shape,
            dtype=first.dtype,
            background=first.background,
        )
        dims = (
            *itertools.compress((self.dim, "z"), kept),
            *grid.dims,
            *(("sample",) if kept[2] else ()),
        )
        chunks = dict(zip(dims, map(_regular, reader.unit_lengths()), strict=True))
        attrs = self._attrs(grid, has_planes)
        variable = xr.Variable(
            dims, data(reader, dims), attrs, encoding={"preferred_chunks": chunks}
        )
        if self.channels and not is_label_map:
            parts.add(
                channel_coords(self.dim, self.channels, self.labels, self.images, is_dim=kept[0])
            )
        if samples == 3 and "sample" not in parts.coords:
            parts.add(sample_coords())
        parts.variables[self.name] = variable
        if self.is_image and with_scanned:
            self._add_scanned(parts, grid, reader, data)

    def _add_scanned(self, parts: Parts, grid: Grid, reader: StackedReader, data: Data) -> None:
        """Add the mask of what was scanned, unless each tile has a frame.

        Its dims of channels and focal planes are those along which it differs.
        """
        tiles = np.array([[tiles_scanned(each) for each in row] for row in self.readers], object)
        if not any(tiles.flat):
            return
        kept = (
            reader.kept[0] and bool((tiles != tiles[:1]).any()),
            reader.kept[1] and bool((tiles != tiles[:, :1]).any()),
            False,
        )
        fields = {f.name: getattr(reader, f.name) for f in dataclasses.fields(reader)}
        fields |= {"kept": kept, "dtype": np.dtype(bool), "background": (False,)}
        mask = ScannedReader(**fields)
        dims = (*itertools.compress((self.dim, "z"), kept), *grid.dims)
        chunks = dict(zip(dims, map(_regular, mask.unit_lengths()), strict=True))
        attrs = {"long_name": f"whether {self.name} was scanned"}
        variable = xr.Variable(dims, data(mask, dims), attrs, {"preferred_chunks": chunks})
        parts.variables[f"{self.name}{SCANNED}"] = variable

    def _attrs(self, grid: Grid, has_planes: bool) -> dict[str, Any]:
        """Return the attributes of the variable."""
        attrs = image_attrs(self.image, grid.geometry, grid.orientation)
        ranges = [valid_range(image._layout.pixel_format) for image in self.images]
        if self.is_image and ranges and None not in ranges:
            # of Bits Stored, which may be fewer than the data type has
            lows, highs = zip(*ranges, strict=True)
            attrs["valid_range"] = [min(lows), max(highs)]
        if not self.is_image:
            scaled = any(reader and reader.scaling for row in self.readers for reader in row)
            attrs |= derived_attrs(self.image, self.channels, scaled=scaled)
        if not has_planes:
            mm = [row[0] / MICROMETERS for row in self.heights or [self.offsets]]
            attrs["focal_plane_offset"] = mm if self.heights else mm[0]
        if self.spans:
            spans = [[low / MICROMETERS, high / MICROMETERS] for low, high in self.spans]
            attrs["focal_plane_span"] = spans if len(spans) > 1 else spans[0]
        return {**attrs, **self.resampling}

    def plane_coords(self, squeeze: bool) -> xr.Coordinates:
        """Return the coordinates of the focal planes; none for an associated image."""
        if not self.planes:
            return xr.Coordinates()
        return focal_plane_coords(
            self.offsets,
            self.planes,
            is_dim=len(self.planes) > 1 or not squeeze,
            of_channels=(self.dim, self.heights) if self.heights else None,
        )


def is_mask_of(name: str, variables: Collection[Any]) -> bool:
    """Whether a name is that of the mask of what was scanned of one of some variables."""
    return name.endswith(SCANNED) and name.removesuffix(SCANNED) in variables


def deepest_of(stacks: Sequence[Stack]) -> Stack:
    """Return the stack whose focal planes are those of a dataset: the first with several."""
    return next((each for each in stacks if each.is_image and len(each.planes) > 1), stacks[0])


def _plain(name: str) -> str:
    """Return the name of a variable without its number."""
    return name.rstrip("0123456789").removesuffix("_")


def _offset(place: Place) -> float:
    image, channel, plane = place
    return image._layout.planes.offset(channel, plane)


def _readers(
    places: Sequence[Sequence[Place | None]],
) -> tuple[Row, ...]:
    """Return the readers of places by channel and plane."""
    readers = tuple(
        tuple(
            None if place is None else place[0].get_total_pixel_matrix(*place[1:])._reader
            for place in row
        )
        for row in places
    )
    image = next(place[0] for row in places for place in row if place is not None)
    if image._layout.label_values is None:
        return readers
    return tuple(
        tuple(reader and dataclasses.replace(reader, as_labels=True) for reader in row)
        for row in readers
    )


def _regular(lengths: tuple[int, ...]) -> int | tuple[int, ...]:
    """Return the lengths of chunks, as one number if all but the last are equal."""
    first = lengths[0]
    regular = all(length == first for length in lengths[:-1]) and lengths[-1] <= first
    return first if regular else lengths


def _warn_if_apart(first: TiledImage, other: TiledImage) -> None:
    """Warn if images of one array have different positions on the slide."""
    if not lies_on(other, first):
        warn(
            f"{other.name} lies apart from {first.name}, by more than half a pixel; coordinates"
            " are those of the latter",
            MetadataWarning,
        )
