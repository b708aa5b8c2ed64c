"""Deep Zoom images of slides, with the interface of ``openslide.deepzoom``."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, ClassVar
from xml.etree import ElementTree

from dicomslide.openslide.abstract import flattened
from dicomslide.openslide.errors import RequestError
from dicomslide.openslide.properties import (
    PROPERTY_NAME_BACKGROUND_COLOR,
    PROPERTY_NAME_BOUNDS_HEIGHT,
    PROPERTY_NAME_BOUNDS_WIDTH,
    PROPERTY_NAME_BOUNDS_X,
    PROPERTY_NAME_BOUNDS_Y,
)

if TYPE_CHECKING:
    from PIL import Image

    from dicomslide.openslide.abstract import AbstractSlide

__all__ = ["DeepZoomGenerator"]

NAMESPACE = "http://schemas.microsoft.com/deepzoom/2008"
"""XML namespace of a Deep Zoom Image."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Span:
    """A tile along one axis."""

    start: int
    """First pixel of the tile in level 0 of the slide."""
    read: int
    """Pixels of the slide's level that are read."""
    shown: int
    """Pixels of the tile."""


class DeepZoomGenerator:
    """Makes the tiles and the metadata of a Deep Zoom image.

    Each level of a Deep Zoom image is half as large as the next one, rounded up; level 0 is one
    pixel. Tiles are made from the slide's level that
    :meth:`dicomslide.OpenSlide.get_best_level_for_downsample` selects. Sizes are (width, height);
    addresses are (column, row).

    Parameters
    ----------
    osr : AbstractSlide
        A slide, or an image with the interface of one.
    tile_size : int, default: 254
        Width and height of a tile in pixels, without overlap.
    overlap : int, default: 1
        Pixels that a tile shares with each of its neighbours.
    limit_bounds : bool, default: False
        Whether to show only the region that the properties ``openslide.bounds-*`` describe; DICOM
        has none.

    Raises
    ------
    ValueError
        When `tile_size` isn't positive, or `overlap` is negative.

    Examples
    --------
    >>> zoom = DeepZoomGenerator(dicomslide.OpenSlide("slide/level-0.dcm"))
    >>> tile = zoom.get_tile(zoom.level_count - 1, (0, 0))

    """

    BOUNDS_OFFSET_PROPS: ClassVar = (PROPERTY_NAME_BOUNDS_X, PROPERTY_NAME_BOUNDS_Y)
    """Names of the properties of the region's first pixel."""
    BOUNDS_SIZE_PROPS: ClassVar = (PROPERTY_NAME_BOUNDS_WIDTH, PROPERTY_NAME_BOUNDS_HEIGHT)
    """Names of the properties of the region's size."""

    def __init__(
        self,
        osr: AbstractSlide,
        tile_size: int = 254,
        overlap: int = 1,
        limit_bounds: bool = False,
    ) -> None:
        if tile_size < 1 or overlap < 0:
            raise RequestError(
                f"tile_size {tile_size} and overlap {overlap}; expected a positive number, and 0 or"
                " more"
            )
        self._osr = osr
        self._tile_size = tile_size
        self._overlap = overlap
        self._limit_bounds = limit_bounds
        properties = osr.properties if limit_bounds else {}
        self._offset = tuple(int(properties.get(name, 0)) for name in self.BOUNDS_OFFSET_PROPS)
        shares = [
            int(properties.get(name, edge)) / edge
            for name, edge in zip(self.BOUNDS_SIZE_PROPS, osr.dimensions, strict=True)
        ]
        self._slide_dimensions = tuple(
            (math.ceil(width * shares[0]), math.ceil(height * shares[1]))
            for width, height in osr.level_dimensions
        )
        width, height = self._slide_dimensions[0]
        halvings = (max(width, height) - 1).bit_length()  # until both are 1
        # ceil(ceil(n / 2) / 2) is ceil(n / 4)
        self._dimensions = tuple(
            (-(-width // 2**times), -(-height // 2**times)) for times in range(halvings, -1, -1)
        )
        self._factors = tuple(2**times for times in range(halvings, -1, -1))
        self._slide_levels = tuple(map(osr.get_best_level_for_downsample, self._factors))
        self._slide_factors = osr.level_downsamples
        color = osr.properties.get(PROPERTY_NAME_BACKGROUND_COLOR, "ffffff")
        self._background = f"#{color}"

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self._osr!r}, tile_size={self._tile_size!r},"
            f" overlap={self._overlap!r}, limit_bounds={self._limit_bounds!r})"
        )

    @property
    def level_count(self) -> int:
        """Number of Deep Zoom levels."""
        return len(self._dimensions)

    @property
    def level_dimensions(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of each Deep Zoom level in pixels, from the smallest."""
        return self._dimensions

    @property
    def level_tiles(self) -> tuple[tuple[int, int], ...]:
        """Numbers of tiles (across, down) of each Deep Zoom level."""
        edge = self._tile_size
        return tuple((-(-width // edge), -(-height // edge)) for width, height in self._dimensions)

    @property
    def tile_count(self) -> int:
        """Number of tiles of all levels."""
        return sum(across * down for across, down in self.level_tiles)

    def get_tile(self, level: int, address: tuple[int, int]) -> Image.Image:
        """Return a tile.

        Parameters
        ----------
        level : int
            Zero-based Deep Zoom level.
        address : tuple of int
            (column, row) of the tile.

        Returns
        -------
        PIL.Image.Image
            RGB on the slide's background colour, white for DICOM, with the ICC profile in
            ``info["icc_profile"]``.

        Raises
        ------
        ValueError
            When there is no such level or tile.
        FrameError
            When a frame can't be read or decoded.

        """
        from PIL import Image

        location, slide_level, size = self.get_tile_coordinates(level, address)
        region = self._osr.read_region(location, slide_level, size)
        tile = flattened(region, self._background)
        shown = self.get_tile_dimensions(level, address)
        if tile.size != shown:
            tile.thumbnail(shown, Image.Resampling.LANCZOS)
        return tile

    def get_tile_coordinates(
        self, level: int, address: tuple[int, int]
    ) -> tuple[tuple[int, int], int, tuple[int, int]]:
        """Return the arguments of ``read_region`` for a tile: location, level and size.

        Parameters
        ----------
        level : int
            Zero-based Deep Zoom level.
        address : tuple of int
            (column, row) of the tile.

        Raises
        ------
        ValueError
            When there is no such level or tile.

        """
        x, y = self._spans(level, address)
        return (x.start, y.start), self._slide_levels[level], (x.read, y.read)

    def get_tile_dimensions(self, level: int, address: tuple[int, int]) -> tuple[int, int]:
        """Return the (width, height) of a tile in pixels.

        Parameters
        ----------
        level : int
            Zero-based Deep Zoom level.
        address : tuple of int
            (column, row) of the tile.

        Raises
        ------
        ValueError
            When there is no such level or tile.

        """
        x, y = self._spans(level, address)
        return x.shown, y.shown

    def get_dzi(self, format: str) -> str:
        """Return the XML description of the Deep Zoom image, a .dzi file.

        Parameters
        ----------
        format : str
            Format of tiles, as viewers name it: "jpeg" or "png".

        """
        image = ElementTree.Element(
            "Image",
            TileSize=str(self._tile_size),
            Overlap=str(self._overlap),
            Format=format,
            xmlns=NAMESPACE,
        )
        width, height = self._dimensions[-1]
        ElementTree.SubElement(image, "Size", Width=str(width), Height=str(height))
        return ElementTree.tostring(image, encoding="unicode")

    def _spans(self, level: int, address: tuple[int, int]) -> tuple[_Span, _Span]:
        if not 0 <= level < self.level_count:
            raise RequestError(f"no level {level}; there are {self.level_count}, from 0 on")
        across, down = self.level_tiles[level]
        column, row = address
        if not (0 <= column < across and 0 <= row < down):
            raise RequestError(f"no tile {(column, row)} in a grid of {across} × {down} tiles")
        return self._span(level, 0, column), self._span(level, 1, row)

    def _span(self, level: int, axis: int, index: int) -> _Span:
        is_last = index == self.level_tiles[level][axis] - 1
        first = index * self._tile_size - (self._overlap if index else 0)
        end = (index + 1) * self._tile_size + self._overlap
        if is_last:
            end = self._dimensions[level][axis]
        slide_level = self._slide_levels[level]
        slide_factor = self._slide_factors[slide_level]
        factor = self._factors[level] / slide_factor  # from the slide's level to this one
        at = factor * first
        return _Span(
            start=int(slide_factor * at + self._offset[axis]),
            read=min(
                math.ceil(factor * (end - first)),
                self._slide_dimensions[slide_level][axis] - math.ceil(at),
            ),
            shown=end - first,
        )
