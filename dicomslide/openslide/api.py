"""A slide as openslide-python shows one: `OpenSlide`, for programs written for that library."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dicomslide.openslide.abstract import AbstractSlide
from dicomslide.openslide.cache import OpenSlideCache
from dicomslide.openslide.contents import (
    Contents,
    contents_of,
    is_slide_image,
    open_any,
    pixel_at,
)
from dicomslide.openslide.errors import OpenSlideUnsupportedFormatError, RequestError
from dicomslide.openslide.image_slide import ImageSlide
from dicomslide.openslide.properties import (
    OPENSLIDE_NAMES,
    VENDOR,
)
from dicomslide.openslide.rgba import as_picture, read_rgba, transparent
from dicomslide.slide.slide import Slide

if TYPE_CHECKING:
    from PIL import Image

    from dicomslide.backends.base import FrameStore
    from dicomslide.openslide.abstract import Filename
    from dicomslide.readers.matrix_reader import MatrixReader

__all__ = ["OpenSlide", "open_slide"]


class OpenSlide(AbstractSlide):
    """A slide as openslide-python shows one.

    ``dicomslide.OpenSlide(path)`` takes the place of ``openslide.OpenSlide(path)``: same names,
    same pictures, same properties. Unlike in :class:`dicomslide.Slide`, pictures are
    :class:`PIL.Image.Image`, and sizes and places are (width, height) and (x, y), in pixels as
    stored: nothing is turned upright, and no colour is corrected.

    Parameters
    ----------
    slide : path-like, list of path-like, FrameStore or Slide
        A file, which brings the files of its series in its folder with it, and shows its own
        pyramid where there are several; or anything that :func:`dicomslide.open_slide` takes.
    channel_index : int, default: 0
        Zero-based index into the slide's channels.
    focal_plane_index : int, default: 0
        Zero-based index into the slide's focal planes.
    thumbnail_levels : bool, optional
        Whether a THUMBNAIL image may be a level. By default, of a Slide all levels are shown,
        a THUMBNAIL among them; of all else the VOLUME images, as libopenslide has it, and the
        THUMBNAIL is an associated image, unless there is nothing else.

    Raises
    ------
    FileNotFoundError
        When a path doesn't exist.
    NotDicomError, NotSlideError, AmbiguousSlideError, MetadataError
        When there is no slide, there are several, or a header can't be understood.
    ValueError
        When there is no such channel or focal plane, or its pixels are floating-point numbers.

    Notes
    -----
    Measured against libopenslide 4.0.1 on the same files: pictures, properties and associated
    images are equal, byte for byte, with these exceptions.

    * A location between two pixels of a level is the stored pixel that is nearest,
      floor(x / ``level_downsamples[level]`` + ½), rows likewise. libopenslide interpolates there,
      so that colours are mixed and outer edges half transparent; of a negative location it drops
      the fraction.
    * Where a JPEG's own markers contradict Photometric Interpretation, they are believed.
    * Greyscale, more than 8 bits, other transfer syntaxes and Image Types, several channels or
      focal planes: libopenslide refuses them. Here grey becomes RGB; of more than 8 bits the 8
      most significant of Bits Stored are shown, so that regions and levels match, and of a
      segment False is black and True white. A greyscale image has no colour profile.
    * Of several pyramids in one series, that of the file is shown, in which libopenslide has the
      levels of all, one among the other.
    * Properties ``dicom.*`` and ``openslide.barcode``: values are without padding, text is decoded
      by its Specific Character Set, private elements are left out. ``openslide.mpp-*`` is there
      too where Pixel Spacing is absent but can be derived, and ``openslide.objective-power`` isn't
      where it is 0.
    * `associated_images` has DICOM's names LABEL, OVERVIEW and THUMBNAIL, and answers to label,
      macro and thumbnail as well.
    * A folder can be opened. Closing twice is allowed. What openslide-python reports as
      OpenSlideError is one of :mod:`dicomslide.errors` here, all of which
      ``except dicomslide.openslide.OpenSlideError`` catches, but for that of a path that doesn't
      exist, a FileNotFoundError; no error keeps the slide from being used further.

    Examples
    --------
    >>> slide = dicomslide.OpenSlide("slide/level-0.dcm")
    >>> slide.read_region((1000, 2000), 0, (512, 512))
    >>> slide.get_thumbnail((256, 256)).save("thumbnail.png")

    """

    def __init__(
        self,
        slide: Filename | Iterable[str | os.PathLike[str]] | FrameStore | Slide,
        *,
        channel_index: int = 0,
        focal_plane_index: int = 0,
        thumbnail_levels: bool | None = None,
    ) -> None:
        self._given = repr(slide)
        self._choice: dict[str, Any] = {
            "channel_index": operator.index(channel_index),
            "focal_plane_index": operator.index(focal_plane_index),
            "thumbnail_levels": isinstance(slide, Slide)
            if thumbnail_levels is None
            else bool(thumbnail_levels),
        }
        self._slide: Slide | None = open_any(slide)
        self._contents: Contents | None = contents_of(self._slide, **self._choice)

    def __reduce__(self) -> tuple[Any, ...]:
        self._open_contents()
        return _rebuild, (type(self), self._slide, self._choice)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._given})"

    @classmethod
    def detect_format(cls, filename: Filename) -> str | None:
        """Return the format of a file.

        Parameters
        ----------
        filename : path-like
            A file, or a folder.

        Returns
        -------
        str or None
            "dicom" for a DICOM Part 10 file of SOP Class VL Whole Slide Microscopy Image, or a
            folder that holds one; None for all else, also where nothing is.

        """
        path = Path(os.fsdecode(filename))
        files = path.rglob("*") if path.is_dir() else [path]
        return VENDOR if any(is_slide_image(file) for file in files) else None

    def close(self) -> None:
        """Close the slide: using it further raises a ValueError."""
        self._slide = self._contents = None

    def _open_contents(self) -> Contents:
        contents = self._contents  # another thread may close it meanwhile
        if contents is None:
            raise RequestError(f"{self!r} is closed; open the slide again")
        return contents

    # -- what it is --

    @property
    def level_count(self) -> int:
        """Number of levels."""
        return len(self._open_contents().levels)

    @property
    def level_dimensions(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of each level in pixels: Total Pixel Matrix Columns and Rows."""
        return self._open_contents().dimensions

    @property
    def level_downsamples(self) -> tuple[float, ...]:
        """Factor of each level relative to level 0: the mean of those of width and height."""
        return self._open_contents().downsamples

    @property
    def properties(self) -> Mapping[str, str]:
        """What the header of level 0 says, by name; read-only.

        ``openslide.*`` with sizes, ``mpp-x`` and ``mpp-y`` in µm per pixel along the columns
        and rows as stored, ``objective-power``, and ``quickhash-1``, which names the series; and
        ``dicom.*``, each element by its keyword, patient's included, but neither the per-frame
        functional groups nor bulk data.
        """
        return self._open_contents().properties

    @property
    def associated_images(self) -> Mapping[str, Image.Image]:
        """Label, overview and thumbnail as RGBA pictures, decoded when asked for; read-only.

        Its keys are LABEL, OVERVIEW and THUMBNAIL, where the slide has them (value 3 of Image
        Type); openslide's names label, macro and thumbnail work as well. A THUMBNAIL that is a
        level isn't among them.
        """
        return _AssociatedImages(self._open_contents().associated)

    @property
    def icc_profile(self) -> bytes | None:
        """ICC profile of the optical path at level 0; None without one, and for greyscale."""
        return self._open_contents().levels[0].icc_profile

    def get_best_level_for_downsample(self, downsample: float) -> int:
        """Return the level from which to make a picture of lower resolution.

        Parameters
        ----------
        downsample : float
            Factor of the picture relative to level 0.

        Returns
        -------
        int
            Zero-based index of the smallest level that is no smaller than the picture, or 0.

        """
        beyond = [i for i, factor in enumerate(self.level_downsamples) if factor > downsample]
        return max(0, beyond[0] - 1) if beyond else self.level_count - 1

    # -- pictures --

    def read_region(
        self, location: tuple[int, int], level: int, size: tuple[int, int]
    ) -> Image.Image:
        """Read a region.

        Parameters
        ----------
        location : tuple of int
            (x, y) of its top left pixel in pixels of level 0, whatever `level`; may lie outside.
        level : int
            Zero-based level that is read.
        size : tuple of int
            (width, height) of the region in pixels of `level`.

        Returns
        -------
        PIL.Image.Image
            RGBA of exactly `size`, with the profile in ``info["icc_profile"]``. Outside of the
            slide, where a tile is absent, and at a level that isn't there, it is transparent:
            (0, 0, 0, 0).

        Raises
        ------
        ValueError
            When a size is negative.
        FrameError
            When a frame can't be read or decoded.
        MemoryLimitError
            When the picture would be too large.

        """
        contents = self._open_contents()
        (x, y), (width, height) = map(operator.index, location), map(operator.index, size)
        level = operator.index(level)
        if min(width, height) < 0:
            raise RequestError(f"size {(width, height)} is negative")
        profile = self.icc_profile
        if not 0 <= level < len(contents.levels):
            return as_picture(transparent(width, height), profile)
        left, top = pixel_at((x, y), contents.downsamples[level])
        return as_picture(read_rgba(contents.levels[level], left, top, width, height), profile)

    def set_cache(self, cache: object) -> None:
        """Keep decoded tiles in a cache of this slide's, or of several slides.

        Parameters
        ----------
        cache : OpenSlideCache
            Where tiles are kept from now on, as many as its capacity holds. One of
            openslide-python's, which holds tiles of libopenslide only, is accepted and changes
            nothing: tiles stay in the cache of the process, of ``frame_cache_bytes``
            (:func:`dicomslide.set_options`).

        Raises
        ------
        TypeError
            When it is no such cache.

        """
        contents = self._open_contents()
        if isinstance(cache, OpenSlideCache):
            self._contents = contents.kept_in(cache.frames)
        elif not hasattr(cache, "_openslide_cache"):
            raise TypeError(f"{cache!r} is no OpenSlideCache")


def open_slide(filename: Filename) -> OpenSlide | ImageSlide:
    """Open a slide, or an ordinary picture.

    Parameters
    ----------
    filename : path-like
        Anything that :class:`dicomslide.OpenSlide` takes; or a file that Pillow reads.

    Returns
    -------
    OpenSlide or ImageSlide
        A slide, or a picture as a slide of one level.

    Raises
    ------
    FileNotFoundError
        When a path doesn't exist.
    NotDicomError, NotSlideError
        When it is neither.

    """
    try:
        return OpenSlide(filename)
    except OpenSlideUnsupportedFormatError:
        is_path = isinstance(filename, (str, bytes, os.PathLike))
        if not is_path or ImageSlide.detect_format(filename) is None:
            raise
        return ImageSlide(filename)


def _rebuild(cls: type[OpenSlide], slide: Slide, choice: dict[str, Any]) -> OpenSlide:
    return cls(slide, **choice)


# -- associated images -------------------------------------------------------------------------


class _AssociatedImages(Mapping[str, "Image.Image"]):
    """Pictures by flavor, decoded each time that one is asked for."""

    def __init__(self, readers: Mapping[str, MatrixReader]) -> None:
        self._readers = readers

    def _reader(self, key: object) -> MatrixReader | None:
        flavors = {OPENSLIDE_NAMES[flavor]: flavor for flavor in self._readers}
        return self._readers.get(flavors.get(key, key))  # type: ignore[call-overload]

    def __getitem__(self, key: str) -> Image.Image:
        reader = self._reader(key)
        if reader is None:
            raise KeyError(f"no associated image {key!r}; there are {list(self)}")
        rows, columns, _ = reader.shape
        return as_picture(read_rgba(reader, 0, 0, columns, rows), reader.icc_profile)

    def __contains__(self, key: object) -> bool:
        return self._reader(key) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def __repr__(self) -> str:
        sizes = {flavor: reader.shape[1::-1] for flavor, reader in self._readers.items()}
        return f"<associated images, (width, height): {sizes}>"
