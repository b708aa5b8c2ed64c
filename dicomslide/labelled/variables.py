"""The channels and focal planes of a slide, on one grid of pixels, as a variable."""

from __future__ import annotations

import dataclasses
import itertools
import math
import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from dicomslide import utils
from dicomslide.enum import ChannelTypes
from dicomslide.errors import MetadataError, MetadataWarning
from dicomslide.geometry import Orientation, SlideGeometry
from dicomslide.labelled.attributes import derived_attrs, image_attrs
from dicomslide.labelled.coordinates import channel_coords, focal_plane_coords, matrix_coords
from dicomslide.options import check_memory
from dicomslide.placement import geometry_of
from dicomslide.stack import StackedReader, runs_of

if TYPE_CHECKING:
    from dicomslide.channel import Channel
    from dicomslide.image import TiledImage
    from dicomslide.slide.derived import ChannelGroup
    from dicomslide.slide.levels import Level
    from dicomslide.stack import Data, Row

__all__ = ["Frame", "Grid", "Stack"]

Frame = Literal["slide", "matrix"]
AS_STORED = Orientation(transpose=False, flip_y=False, flip_x=False)
DIMS = {
    ChannelTypes.OPTICAL_PATH: "channel",
    ChannelTypes.SEGMENT: "segment",
    ChannelTypes.PARAMETER: "parameter",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Grid:
    """The pixels of a dataset: those of an image, upright or as stored."""

    image: TiledImage
    geometry: SlideGeometry | None
    orientation: Orientation | None
    """How the matrix is turned; None where it is as stored."""
    frame_of_reference_uid: str | None
    """In which millimetres count; None where nothing says."""

    @classmethod
    def of(cls, image: TiledImage, frame: Frame, frame_of_reference_uid: str | None) -> Grid:
        """Return the grid of an image; a warning says where it can't be upright in mm."""
        if frame not in ("slide", "matrix"):
            raise ValueError(f'frame must be "slide" or "matrix", not {frame!r}')
        check_memory(8 * sum(image.size), f"{image.name}: coordinates")
        try:
            geometry = geometry_of(image.metadata, image.placement, relative=True)
        except MetadataError as error:
            warnings.warn(
                f"{error}: its dims are row and column, without millimetres",
                MetadataWarning,
                stacklevel=5,
            )
            return cls(image, None, None, frame_of_reference_uid)
        orientation = None if frame == "matrix" else geometry.orientation
        if frame == "slide" and orientation is None:
            warnings.warn(
                f"{image.name}: it lies obliquely on the slide (rotation {geometry.rotation:.3f}"
                ' degrees), so its dims are row and column (frame="matrix")',
                MetadataWarning,
                stacklevel=5,
            )
        return cls(image, geometry, orientation, frame_of_reference_uid)

    @property
    def dims(self) -> tuple[str, str]:
        """Names of the dims."""
        return ("row", "column") if self.orientation is None else ("y", "x")

    def coords(self) -> xr.Coordinates:
        """Return the coordinates of the dims."""
        return matrix_coords(
            self.geometry, self.orientation, self.image.size, self.frame_of_reference_uid
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Stack:
    """Channels and focal planes that are one variable."""

    name: str
    """``image``, ``segmentation``, ``parametric_map``, ..."""
    image: TiledImage
    """The image whose header stands for all."""
    readers: tuple[Row, ...]
    """By channel, then by focal plane; None where there are no pixels. A label map is one."""
    channels: tuple[Channel, ...] = ()
    stains: tuple[str, ...] = ()
    """What the specimen of each channel was stained with."""
    planes: tuple[int, ...] = ()
    """Zero-based index of each focal plane in the slide."""
    offsets: tuple[float, ...] = ()
    """Offset of each focal plane in µm."""

    @classmethod
    def at_level(cls, level: Level, group: ChannelGroup) -> Stack | None:
        """Return what a level has of a group of channels; None if nothing.

        Raises
        ------
        MetadataError
            When its images can't be one array.

        """
        places = {key: place for key, place in level.places.items() if key[0] in group.indices}
        if not places:
            return None
        channels = sorted({channel for channel, _ in places})
        planes = level.planes_of(group.indices)
        image, *others = images = level.images_of(group.indices)
        for other in others:
            _check_alike(image, other)
        is_label_map = image.layout.label_values is not None  # whose segments share their pixels
        if not is_label_map and len(places) < len(channels) * len(planes):
            warnings.warn(
                f"{image.name}: its level has pixels for {len(places)} of {len(channels)} ×"
                f" {len(planes)} channels and focal planes of {group.name}; the rest is"
                " background",
                MetadataWarning,
                stacklevel=5,
            )
        of_channel = {channel: place[0] for (channel, _), place in places.items()}
        stain_of = {id(each): _stain(each) for each in images}
        of_plane = {key[1]: (place[0], place[2]) for key, place in places.items()}
        return cls(
            name=group.name,
            image=image,
            readers=_readers(
                [[places.get((channel, plane)) for plane in planes] for channel in channels]
            ),
            channels=tuple(group.channels[channel - group.first] for channel in channels),
            stains=tuple(stain_of[id(of_channel[channel])] for channel in channels),
            planes=tuple(planes),
            offsets=tuple(
                holder.focal_plane_offsets[own]
                for holder, own in (of_plane[plane] for plane in planes)
            ),
        )

    @classmethod
    def of_image(cls, name: str, image: TiledImage) -> Stack:
        """Return all that is in an image."""
        planes = range(image.num_focal_planes)
        return cls(
            name=name,
            image=image,
            readers=_readers(
                [
                    [(image, channel, plane) for plane in planes]
                    for channel in range(image.num_channels)
                ]
            ),
            channels=image.channels,
            stains=(_stain(image),) * image.num_channels,
            planes=tuple(planes),
            offsets=image.focal_plane_offsets,
        )

    @classmethod
    def of_associated(cls, image: TiledImage) -> Stack:
        """Return the first matrix of a label, overview or thumbnail, without its channels."""
        return cls("image", image, _readers([[(image, 0, 0)]]))

    def add_to(
        self,
        dataset: xr.Dataset,
        grid: Grid,
        data: Data,
        squeeze: bool,
        *,
        has_planes: bool = True,
    ) -> xr.Dataset:
        """Return a dataset with the variable, and the coordinates of its channels, added.

        Parameters
        ----------
        dataset : xarray.Dataset
            Has the coordinates of the grid and of the focal planes.
        grid : Grid
            The pixels.
        data : callable
            Makes a variable's data of a :class:`StackedReader`.
        squeeze : bool
            Whether dims of size one become scalar coordinates.
        has_planes : bool
            Whether its focal planes are those of the dataset; else its only one is an attribute.

        """
        image = self.image
        is_image = self.name == "image"
        layout = image.layout
        samples = layout.pixel_format.samples
        first = next(reader for row in self.readers for reader in row if reader is not None)
        is_label_map = first.as_labels
        kept = (
            not is_label_map and (len(self.readers) > 1 or not squeeze),
            has_planes and (len(self.readers[0]) > 1 or not squeeze),
            samples > 1 or (is_image and not squeeze),
        )
        reader = StackedReader(
            runs=runs_of(self.readers),
            orientation=grid.orientation or AS_STORED,
            kept=kept,
            matrix_shape=(*image.size, samples),
            tile_shape=(layout.pixel_format.rows, layout.pixel_format.columns),
            dtype=first.dtype,
            background=first.background,
        )
        kind = image.channel_type
        channel_dim = DIMS[kind] + self.name[len(_plain(self.name)) :]
        dims = (
            *itertools.compress((channel_dim, "z"), kept),
            *grid.dims,
            *(("sample",) if kept[2] else ()),
        )
        attrs = image_attrs(image, grid.geometry, grid.orientation)
        if not is_image:
            attrs |= derived_attrs(image, self.channels)
        if not has_planes:
            attrs["focal_plane_offset"] = self.offsets[0] / 1000  # mm
        chunks = dict(zip(dims, map(_regular, reader.chunk_lengths()), strict=True))
        variable = xr.Variable(dims, data(reader), attrs, encoding={"preferred_chunks": chunks})
        coords: dict[str, Any] = {}
        if self.channels and not is_label_map:
            coords |= channel_coords(channel_dim, self.channels, self.stains, is_dim=kept[0])
        if samples == 3:
            coords["sample"] = xr.Variable("sample", np.array(["r", "g", "b"]))
        return dataset.assign_coords(coords).assign({self.name: variable})

    def plane_coords(self, squeeze: bool) -> xr.Coordinates:
        """Return the coordinates of the focal planes; none for an associated image."""
        if not self.planes:
            return xr.Coordinates()
        return focal_plane_coords(
            self.offsets, self.planes, is_dim=len(self.planes) > 1 or not squeeze
        )


def _plain(name: str) -> str:
    """Return the name of a variable without its number."""
    return name.rstrip("0123456789").removesuffix("_")


def _stain(image: TiledImage) -> str:
    return ", ".join(utils.stains_of(image.metadata))


def _readers(
    places: list[list[tuple[TiledImage, int, int] | None]],
) -> tuple[Row, ...]:
    """Return the readers of places by channel and plane; one of each plane of a label map."""
    readers = tuple(
        tuple(
            None if place is None else place[0].get_total_pixel_matrix(*place[1:]).reader
            for place in row
        )
        for row in places
    )
    image = next(place[0] for row in places for place in row if place is not None)
    if image.layout.label_values is None:
        return readers
    of_planes = (next(filter(None, of_plane)) for of_plane in zip(*readers, strict=True))
    return (tuple(dataclasses.replace(reader, as_labels=True) for reader in of_planes),)


def _regular(lengths: tuple[int, ...]) -> int | tuple[int, ...]:
    """Return one number for chunks that are all of one length but the last."""
    first = lengths[0]
    regular = all(length == first for length in lengths[:-1]) and lengths[-1] <= first
    return first if regular else lengths


def _check_alike(first: TiledImage, other: TiledImage) -> None:
    """Raise where the images of a level can't be one array, warn where they lie apart.

    Raises
    ------
    MetadataError
        When pixels are of another kind, or the matrix lies in another way.

    """
    here, there = (image.get_total_pixel_matrix() for image in (first, other))
    if (here.dtype, here.shape) != (there.dtype, there.shape):
        raise MetadataError(
            f"{other.name} has {there.dtype} pixels of {there.shape[2]} samples, {first.name}"
            f" {here.dtype} of {here.shape[2]}: as channels of a level they can't be one array"
        )
    try:
        a, b = first.geometry, other.geometry
    except MetadataError:
        return
    if not np.allclose(a.matrix[:, :2], b.matrix[:, :2], rtol=0, atol=1e-4 * min(a.spacing)):
        raise MetadataError(
            f"{other.name} lies on the slide in another way than {first.name}: orientation or"
            " pixel spacing differ, so they can't be one array"
        )
    apart = math.dist(a.origin, b.origin)
    if apart > min(a.spacing) / 2:
        warnings.warn(
            f"{other.name} lies {apart:.3g} mm away from {first.name}; coordinates are those of"
            " the latter",
            MetadataWarning,
            stacklevel=6,
        )
