"""Selection of levels and associated images of a slide by the rules of libopenslide."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dicomslide import utils
from dicomslide.backends.part10.file import FileSource, FileStore, is_dicom_file
from dicomslide.enum import ImageFlavors
from dicomslide.errors import (
    AmbiguousSlideError,
    DicomSlideError,
    MetadataWarning,
    NotDicomError,
)
from dicomslide.header import dicom
from dicomslide.openslide.errors import RequestError
from dicomslide.openslide.properties import properties_of
from dicomslide.process.lazy import lazy
from dicomslide.process.warn import warn
from dicomslide.slide.opening import open_slide

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from dicomslide.image import TiledImage
    from dicomslide.process.frame_cache import FrameCache
    from dicomslide.readers.matrix_reader import MatrixReader
    from dicomslide.slide.slide import Slide

__all__ = ["Contents", "contents_of", "downsamples_of", "is_slide_image", "open_any", "pixel_at"]

HOW_TO_CHOOSE = (
    "OpenSlide takes the path of one slide's file, or dicomslide.open_slide(..., container_id=...)"
)


def downsamples_of(dimensions: Sequence[tuple[int, int]]) -> tuple[float, ...]:
    """Return the factor of each level from (width, height) of all: the mean of both axes."""
    width, height = dimensions[0]
    return tuple((width / w + height / h) / 2 for w, h in dimensions)


def pixel_at(location: tuple[int, int], downsample: float) -> tuple[int, int]:
    """Return the (x, y) of the level's pixel that is nearest to a location.

    Parameters
    ----------
    location : tuple of int
        (x, y) in pixels of level 0.
    downsample : float
        Factor of the level, the same for both axes, as in libopenslide.

    """
    x, y = (math.floor(place / downsample + 0.5) for place in location)
    return x, y


@dataclasses.dataclass(frozen=True)
class Contents:
    """Levels, associated images and properties of an open slide."""

    base: TiledImage
    """Image of level 0."""
    levels: tuple[MatrixReader, ...]
    """From the largest to the smallest."""
    associated: dict[str, MatrixReader]
    """Readers of associated images by flavor, in the order of :data:`OPENSLIDE_NAMES`."""

    @lazy
    def dimensions(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of each level."""
        return tuple((reader.shape[1], reader.shape[0]) for reader in self.levels)

    @lazy
    def downsamples(self) -> tuple[float, ...]:
        """Factor of each level."""
        return downsamples_of(self.dimensions)

    @lazy
    def icc_profile(self) -> bytes | None:
        """ICC profile of the optical path at level 0; None without one, and for greyscale."""
        return self.levels[0].icc_profile

    def kept_in(self, frames: FrameCache[np.ndarray]) -> Contents:
        """Return a copy whose levels cache decoded tiles in `frames`."""
        levels = tuple(
            dataclasses.replace(
                reader,
                # a bound on frames lets them be cached at once: this cache was asked for
                max_frame_cache_size=frames.max_bytes // _frame_bytes(reader),
                frame_cache=frames,
            )
            for reader in self.levels
        )
        return dataclasses.replace(self, levels=levels)

    @lazy
    def properties(self) -> Mapping[str, str]:
        """Properties by name, read-only."""
        found = properties_of(self.base, self.levels, self.downsamples, self.associated)
        return MappingProxyType(found)


def _frame_bytes(reader: MatrixReader) -> int:
    pixel_format = reader.layout.pixel_format
    return math.prod(pixel_format.shape) * pixel_format.dtype.itemsize


def open_any(slide: Any) -> Slide:
    """Open any argument of :class:`dicomslide.OpenSlide`; a file with the pyramid it belongs to."""
    if isinstance(slide, bytes):
        slide = os.fsdecode(slide)
    if not (isinstance(slide, (str, os.PathLike)) and os.path.isfile(slide)):
        try:
            return open_slide(slide)
        except AmbiguousSlideError as error:
            raise AmbiguousSlideError(f"{error}\n{HOW_TO_CHOOSE}") from None
    try:
        named = FileSource.open(slide)
    except NotDicomError as error:
        raise NotDicomError(f"{error}; slides in other formats need openslide-python") from None
    named.check_complete()
    is_level = utils.is_volume_image(named.metadata)
    return open_slide(_series_of(named), pyramid=named.sop_instance_uid if is_level else None)


def _series_of(named: FileSource) -> FileStore:
    """Open the files in a file's folder that have its Series Instance UID, as libopenslide does."""
    uid = dicom.text(named.metadata, "SeriesInstanceUID")
    sources = {named.sop_instance_uid: named}
    for other in sorted(Path(named.path).parent.iterdir()):
        if str(other) == named.path or not (other.is_file() and is_dicom_file(other)):
            continue
        try:
            source = FileSource.open(other)
            series = dicom.text(source.metadata, "SeriesInstanceUID")
            if series in (None, uid):
                source.check_complete()
        except DicomSlideError as error:
            warn(f"left out: {error}", MetadataWarning)
            continue
        if uid is not None and series == uid:
            sources.setdefault(source.sop_instance_uid, source)
    return FileStore(tuple(sources.values()))


def is_slide_image(path: Path) -> bool:
    """Whether a path is a DICOM file of SOP Class VL Whole Slide Microscopy Image."""
    if not is_dicom_file(path):
        return False
    try:
        metadata = FileSource.open(path).metadata
    except (DicomSlideError, OSError):
        return False
    sop_class = dicom.text(metadata, "SOPClassUID")
    return sop_class == dicom.VL_WHOLE_SLIDE_MICROSCOPY_IMAGE_STORAGE


def contents_of(
    slide: Slide, channel_index: int, focal_plane_index: int, *, thumbnail_levels: bool
) -> Contents:
    """Return the levels and associated images of a slide.

    Parameters
    ----------
    slide : Slide
        An open slide.
    channel_index, focal_plane_index : int
        Zero-based indices into its channels and focal planes.
    thumbnail_levels : bool
        Whether a THUMBNAIL can be a level; else it is an associated image, unless the slide has no
        VOLUME image.

    Raises
    ------
    ValueError
        When an index is out of range, or the pixels are floating-point numbers.

    """
    slide.get_volume_images(channel_index, focal_plane_index)  # raises if an index is out of range
    key = channel_index, focal_plane_index
    places = [level._places[key] for level in slide.levels if key in level._places]
    volumes = [place for place in places if place[0].flavor != ImageFlavors.THUMBNAIL.value]
    thumbnails = []
    if volumes and not thumbnail_levels:
        thumbnails = [place for place in places if place not in volumes]
        places = volumes
    if not places:
        raise RequestError(
            f"{slide.name}: the images of channel {channel_index} aren't on the grid of any level;"
            " read them with Slide.get_volume_images"
        )
    readers = tuple(_as_stored(*place) for place in places)
    if readers[0].dtype.kind == "f":
        raise RequestError(
            f"{slide.name}: the pixels of channel {channel_index} are floating-point numbers;"
            " expected integers; read them with Slide.get_image_region"
        )
    found = {
        ImageFlavors.LABEL: [(image, 0, 0) for image in slide.label_images],
        ImageFlavors.OVERVIEW: [(image, 0, 0) for image in slide.overview_images],
        ImageFlavors.THUMBNAIL: [
            *((image, 0, 0) for image in slide.thumbnail_images),
            *thumbnails,
        ],
    }
    associated = {
        flavor.value: _as_stored(*images[0]) for flavor, images in found.items() if images
    }
    return Contents(places[0][0], readers, associated)


def _as_stored(image: TiledImage, channel_index: int, focal_plane_index: int) -> MatrixReader:
    """Return the reader of an image's pixels without colour correction."""
    matrix = image.get_total_pixel_matrix(channel_index, focal_plane_index)
    return dataclasses.replace(matrix._reader, correct_color=False)
