"""DICOM slides in `large_image`: its entry point ``large_image.source`` finds this tile source."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from large_image.cache_util import LruCacheMetaclass, methodcache
from large_image.constants import TILE_FORMAT_NUMPY, SourcePriority
from large_image.exceptions import TileSourceError, TileSourceFileNotFoundError
from large_image.tilesource import FileTileSource
from PIL import Image

from dicomslide.enum import ChannelTypes
from dicomslide.errors import DicomSlideError
from dicomslide.header import dicom
from dicomslide.slide.opening import open_slide

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dicomslide.image import TiledImage

__all__ = ["DicomSlideTileSource"]

SMALLEST, LARGEST, MOST_OBLONG = 64, 4096, 4
"""Bounds on edges of tiles in pixels, and on their ratio; else tiles of 256² are served."""


class DicomSlideTileSource(FileTileSource, metaclass=LruCacheMetaclass):  # type: ignore[misc, metaclass]
    """Tiles of a DICOM slide.

    Levels are the powers of two that `large_image` expects. Each is read from the nearest finer
    stored level, by area. Frames of `large_image` are the channels and focal planes, channels
    first. Colours are sRGB.

    Parameters
    ----------
    path : path-like or str
        A file of the slide, its folder, or a URL: see :func:`dicomslide.open_slide`.
    **kwargs
        See ``large_image.tilesource.FileTileSource``.

    Raises
    ------
    large_image.exceptions.TileSourceFileNotFoundError
        When there is no such file or folder.
    large_image.exceptions.TileSourceError
        When it isn't one slide that can be read.

    """

    cacheName = "tilesource"
    name = "dicomslide"
    extensions: ClassVar[dict[str | None, SourcePriority]] = {
        None: SourcePriority.LOW,
        "dcm": SourcePriority.PREFERRED,
        "dic": SourcePriority.PREFERRED,
        "dicom": SourcePriority.PREFERRED,
    }
    mimeTypes: ClassVar[dict[str | None, SourcePriority]] = {
        None: SourcePriority.FALLBACK,
        "application/dicom": SourcePriority.PREFERRED,
    }

    def __init__(self, path: Any, **kwargs: Any) -> None:
        super().__init__(path, **kwargs)
        place = os.fspath(self._getLargeImagePath())
        if "://" not in place and not os.path.exists(place):
            raise TileSourceFileNotFoundError(place)
        try:
            self._slide = open_slide(place)
        except (DicomSlideError, OSError, ValueError) as error:
            raise TileSourceError(f"{place} isn't read as a DICOM slide: {error}") from error
        level = self._slide.levels[0].image
        self.sizeY, self.sizeX = level.size
        matrix = level.get_total_pixel_matrix()
        self.tileHeight, self.tileWidth = _served(matrix.tile_shape[:2])
        self._dtype = matrix.dtype
        self._bandCount = matrix.shape[2]
        largest = max(self.sizeX / self.tileWidth, self.sizeY / self.tileHeight)
        self.levels = 1 + max(0, math.ceil(math.log2(largest)))
        channels = self._slide.channels
        optical = [i for i, c in enumerate(channels) if c.type is ChannelTypes.OPTICAL_PATH]
        self._channels = optical or list(range(len(channels)))
        self._stored = [self._stored_level(z) for z in range(self.levels)]

    def _stored_level(self, z: int) -> tuple[int, float]:
        """Return the stored level from which a level is read, and how many times finer it is."""
        factor = 2.0 ** (self.levels - 1 - z)
        factors = self._slide.downsampling_factors
        at = max(i for i, each in enumerate(factors) if i == 0 or each <= factor * 1.01)
        ratio = factor / factors[at]
        return at, round(ratio) if abs(ratio - round(ratio)) < 0.01 else ratio

    @methodcache()  # type: ignore[untyped-decorator]
    def getTile(
        self,
        x: int,
        y: int,
        z: int,
        pilImageAllowed: bool = False,
        numpyAllowed: bool | str = False,
        **kwargs: Any,
    ) -> Any:
        """Return a tile, as ``large_image.tilesource.TileSource.getTile`` says."""
        frame = self._getFrame(**kwargs)
        self._xyzInRange(x, y, z, frame, self._num_frames)
        level, ratio = self._stored[z]
        if ratio > 2**self._maxSkippedLevels:
            tile, kind = self._getTileFromEmptyLevel(x, y, z, **kwargs)
        else:
            factor = 2 ** (self.levels - 1 - z)
            plane, channel = divmod(frame, len(self._channels))
            kind = TILE_FORMAT_NUMPY
            try:
                pixels = self._slide.get_image_region(
                    (y * self.tileHeight * factor, x * self.tileWidth * factor),
                    level,
                    (math.ceil(self.tileHeight * ratio), math.ceil(self.tileWidth * ratio)),
                    self._channels[channel],
                    plane,
                )
            except (DicomSlideError, ValueError) as error:
                raise TileSourceError(str(error)) from error
            tile = _by_area(pixels, ratio, (self.tileWidth, self.tileHeight))
        return self._outputTile(tile, kind, x, y, z, pilImageAllowed, numpyAllowed, **kwargs)

    @property
    def _num_frames(self) -> int:
        return len(self._channels) * self._slide.num_focal_planes

    def _nonemptyLevelsList(self, frame: int | None = 0) -> list[bool]:
        return [ratio == 1 for _, ratio in self._stored]

    def getPreferredLevel(self, level: int) -> int:
        """Return the level, as fine or finer, that is stored."""
        level = max(0, min(level, self.levels - 1))
        while self._stored[level][1] > 1 and level < self.levels - 1:
            level += 1
        return level

    def getNativeMagnification(self) -> dict[str, float | None]:
        """Return the objective's power, and the width and height of a pixel in mm."""
        down, across = self._slide.pixel_spacings[0]
        item = self._slide.levels[0].image.channels[0].item
        power = dicom.number(item, "ObjectiveLensPower")
        return {"magnification": power or 0.01 / across, "mm_x": across, "mm_y": down}

    def getMetadata(self) -> dict[str, Any]:
        """Return the metadata that clients of `large_image` use."""
        metadata: dict[str, Any] = super().getMetadata()
        if self._num_frames > 1:
            metadata["frames"] = [
                {"IndexC": channel, "IndexZ": plane}
                for plane in range(self._slide.num_focal_planes)
                for channel in range(len(self._channels))
            ]
            shown = [self._slide.channels[index] for index in self._channels]
            names = [channel.description or channel.identifier for channel in shown]
            self._addMetadataFrameInformation(metadata, names)
        return metadata

    def getInternalMetadata(self, **kwargs: Any) -> dict[str, Any]:
        """Return the elements of the base level's header by keyword, without binary values."""
        header = self._slide.levels[0].image.metadata
        return {
            "dicom": {
                element.keyword: str(element.value)
                for element in header
                if element.keyword and element.VR not in {"SQ", "OB", "OW", "OF", "OD", "UN"}
            }
        }

    def _associated(self) -> dict[str, TiledImage]:
        found = {
            "label": self._slide.label_images,
            "macro": self._slide.overview_images,
            "thumbnail": self._slide.thumbnail_images,
        }
        return {name: images[0] for name, images in found.items() if images}

    def getAssociatedImagesList(self) -> list[str]:
        """Return the names of label, macro image and thumbnail, if there are any."""
        return sorted(self._associated())

    def _getAssociatedImage(self, imageKey: str) -> Image.Image | None:
        image = self._associated().get(imageKey)
        if image is None:
            return None
        pixels = image.get_total_pixel_matrix()[...]
        return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _served(tile_shape: tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns of the tiles to be served for those that are stored."""
    small, large = sorted(tile_shape)
    fits = small >= SMALLEST and large <= LARGEST and large < MOST_OBLONG * small
    return tile_shape if fits else (256, 256)


def _by_area(pixels: NDArray[Any], ratio: float, size: tuple[int, int]) -> NDArray[Any]:
    """Return pixels of another size, each the mean of those that it covers.

    Parameters
    ----------
    pixels : numpy.ndarray
        Shape (rows, columns, samples).
    ratio : float
        Stored pixels along the edge of a new one.
    size : tuple of int
        (columns, rows) of the result.

    """
    if ratio == 1:
        return pixels
    box = (0.0, 0.0, size[0] * ratio, size[1] * ratio)
    samples = (
        Image.fromarray(pixels[:, :, i].astype(np.float32))  # of integers, each pass would round
        for i in range(pixels.shape[2])
    )
    resized = [np.asarray(each.resize(size, Image.Resampling.BOX, box)) for each in samples]
    means = np.stack(resized, axis=-1)
    if pixels.dtype.kind in "biu":
        means = np.floor(means + 0.5)
    return means.astype(pixels.dtype)
