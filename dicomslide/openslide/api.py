"""`OpenSlide` and `open_slide`, with the interface of openslide-python."""

from __future__ import annotations

import functools
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from dicomslide.backends.objects.storage import is_url
from dicomslide.errors import DicomSlideError
from dicomslide.openslide.abstract import AbstractSlide, shrunk
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
from dicomslide.openslide.rgba import Box, read_array, read_picture
from dicomslide.slide.slide import Slide

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from dicomslide.backends.base import FrameStore
    from dicomslide.openslide.abstract import Filename
    from dicomslide.readers.matrix_reader import MatrixReader

__all__ = ["OpenSlide", "open_slide"]


def _also_by_filename(function: Callable[..., None]) -> Callable[..., None]:
    """Let `slide` be given by the name that it has in openslide-python, too."""

    @functools.wraps(function)
    def renamed(self: OpenSlide, *args: Any, **kwargs: Any) -> None:
        if "filename" in kwargs:
            if args or "slide" in kwargs:
                raise TypeError("either slide or filename must be given, not both")
            kwargs["slide"] = kwargs.pop("filename")
        function(self, *args, **kwargs)

    return renamed


class OpenSlide(AbstractSlide):
    """A slide with the interface of openslide-python.

    ``dicomslide.OpenSlide(path)`` replaces ``openslide.OpenSlide(path)``: same names, same images,
    same properties. Unlike :class:`dicomslide.Slide`, it returns :class:`PIL.Image.Image`; sizes
    are (width, height) and locations (x, y), in pixels as stored, neither turned upright nor
    colour-corrected.

    Parameters
    ----------
    slide : path-like, list of path-like, FrameStore or Slide
        A file, with which the files of its series in the same folder are opened (if the series has
        several pyramids, that of the file is selected); or anything that
        :func:`dicomslide.open_slide` takes.
    channel_index : int, default: 0
        Zero-based index into the slide's channels.
    focal_plane_index : int, default: 0
        Zero-based index into the slide's focal planes.
    thumbnail_levels : bool, optional
        Whether a THUMBNAIL image can be a level; by default True if `slide` is a Slide. If False,
        levels are VOLUME images, as in libopenslide, and the THUMBNAIL is an associated image,
        unless the slide has no VOLUME image.
    filename : path-like, optional
        Name of the first parameter in openslide-python: ``OpenSlide(filename=path)``.

    Raises
    ------
    TypeError
        When both `slide` and `filename` are given, or neither.
    FileNotFoundError
        When a path doesn't exist.
    NotDicomError, NotSlideError, AmbiguousSlideError, MetadataError
        When the files hold no slide or several slides, or a header is invalid.
    ValueError
        When an index is out of range, or the pixels are floating-point numbers.

    Notes
    -----
    Images, properties and associated images equal those of libopenslide 4.0.1 for the same files,
    byte for byte, with these exceptions:

    * A location between two pixels of a level is rounded to the nearest stored pixel,
      floor(x / ``level_downsamples[level]`` + ½), and likewise for y. libopenslide interpolates,
      which mixes colours and makes outer edges half transparent, and drops the fraction of a
      negative location.
    * If the markers of a JPEG contradict Photometric Interpretation, the markers are used.
    * Greyscale, more than 8 bits, further transfer syntaxes and Image Types, several channels and
      several focal planes are supported; libopenslide refuses them. Greyscale is converted to RGB.
      More than 8 bits are reduced to the 8 most significant of Bits Stored, with the same scale in
      all regions and levels. In a segment, False is black and True white. A greyscale image has no
      colour profile.
    * If a series has several pyramids, the levels are those of the file's pyramid. libopenslide
      mixes the levels of all pyramids.
    * In the properties ``dicom.*`` and ``openslide.barcode``, padding is removed, text is decoded
      by its Specific Character Set, and private elements are left out. ``openslide.mpp-*`` is also
      given if Pixel Spacing is absent but can be derived; ``openslide.objective-power`` is left
      out if it is 0.
    * `associated_images` has the keys LABEL, OVERVIEW and THUMBNAIL of DICOM, and also accepts
      label, macro and thumbnail.
    * A folder can be opened. A slide can be closed twice. Errors are those of
      :mod:`dicomslide.errors`, which ``except dicomslide.openslide.OpenSlideError`` catches, except
      FileNotFoundError for a path that doesn't exist. A slide can be used after an error.

    Examples
    --------
    >>> slide = dicomslide.OpenSlide("slide/level-0.dcm")
    >>> slide.read_region((1000, 2000), 0, (512, 512))
    >>> slide.get_thumbnail((256, 256)).save("thumbnail.png")

    """

    @_also_by_filename
    def __init__(
        self,
        slide: Filename | Iterable[str | os.PathLike[str]] | FrameStore | Slide,
        *,
        channel_index: int = 0,
        focal_plane_index: int = 0,
        thumbnail_levels: bool | None = None,
    ) -> None:
        self._given = repr(slide)
        # as in openslide-python: MONAI reads it
        self._filename = slide if isinstance(slide, (str, bytes, os.PathLike)) else None
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
            A file, a folder, or a URL, whose headers are read.

        Returns
        -------
        str or None
            "dicom" for a DICOM Part 10 file of SOP Class VL Whole Slide Microscopy Image, or a
            folder that contains one, or a URL that can be opened; None for anything else, and for
            a path that doesn't exist.

        """
        name = os.fsdecode(filename)
        if is_url(name):
            try:
                cls(name)
            except (DicomSlideError, OSError):
                return None
            return VENDOR
        path = Path(name)
        files = path.rglob("*") if path.is_dir() else [path]
        return VENDOR if any(is_slide_image(file) for file in files) else None

    def close(self) -> None:
        """Close the slide; later use raises a ValueError."""
        self._slide = self._contents = None

    def _open_contents(self) -> Contents:
        contents = self._contents  # read once: another thread may close the slide
        if contents is None:
            raise RequestError(f"{self!r} is closed; open the slide again")
        return contents

    # -- metadata --

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
        """Factor of each level relative to level 0: the mean of the factors of width and height."""
        return self._open_contents().downsamples

    @property
    def properties(self) -> Mapping[str, str]:
        """Metadata of the slide from the header of level 0, by name; read-only.

        ``openslide.*`` are sizes; ``mpp-x`` and ``mpp-y``, the µm per pixel between columns and
        between rows as stored; ``objective-power``; and ``quickhash-1``, a hash of the Series
        Instance UID. ``dicom.*`` are elements by keyword, those of the patient included, without
        per-frame functional groups and bulk data.
        """
        return self._open_contents().properties

    @property
    def associated_images(self) -> Mapping[str, Image.Image]:
        """Label, overview and thumbnail as RGBA images, decoded on lookup; read-only.

        Keys are LABEL, OVERVIEW and THUMBNAIL (value 3 of Image Type), as far as the slide has
        them; the names label, macro and thumbnail of OpenSlide are accepted too. A THUMBNAIL that
        is a level is not included.
        """
        return _AssociatedImages(self._open_contents().associated)

    @property
    def icc_profile(self) -> bytes | None:
        """ICC profile of the optical path at level 0; None without one, and for greyscale."""
        return self._open_contents().icc_profile

    def get_best_level_for_downsample(self, downsample: float) -> int:
        """Return the level to read for an image that is smaller than level 0 by a factor.

        Parameters
        ----------
        downsample : float
            Factor of the image relative to level 0.

        Returns
        -------
        int
            Zero-based index of the smallest level that is at least as large as the image, or 0.

        """
        beyond = [i for i, factor in enumerate(self.level_downsamples) if factor > downsample]
        return max(0, beyond[0] - 1) if beyond else self.level_count - 1

    # -- pixels --

    @overload
    def read_region(
        self,
        location: tuple[int, int],
        level: int,
        size: tuple[int, int],
        *,
        as_array: Literal[False] = False,
        padding: bool = True,
    ) -> Image.Image: ...

    @overload
    def read_region(
        self,
        location: tuple[int, int],
        level: int,
        size: tuple[int, int],
        *,
        as_array: Literal[True],
        padding: bool = True,
    ) -> NDArray[Any]: ...

    def read_region(
        self,
        location: tuple[int, int],
        level: int,
        size: tuple[int, int],
        *,
        as_array: bool = False,
        padding: bool = True,
    ) -> Image.Image | NDArray[Any]:
        """Read a region.

        Parameters
        ----------
        location : tuple of int
            (x, y) of its top left pixel in pixels of level 0, for any `level`; may be outside of
            the slide.
        level : int
            Zero-based index of the level to read.
        size : tuple of int
            (width, height) of the region in pixels of `level`.
        as_array : bool, default: False
            Whether to return an array of the stored samples, as tiffslide does: without the cost
            of an RGBA image, and with all bits.
        padding : bool, default: True
            Whether the result has exactly `size`; else it ends where the slide ends, as in
            tiffslide.

        Returns
        -------
        PIL.Image.Image or numpy.ndarray
            RGBA, with the ICC profile in ``info["icc_profile"]``. Pixels outside of the slide, of
            absent tiles, and of a level that doesn't exist are transparent: (0, 0, 0, 0). An array
            has the shape (rows, columns, samples) and the data type of the stored pixels, RGB if
            they are in colour; it is 0 where the image is transparent.

        Raises
        ------
        ValueError
            When width or height is negative.
        IndexError
            When the level doesn't exist, without `padding`.
        FrameError
            When a frame can't be read or decoded.
        MemoryLimitError
            When the region exceeds the memory limit.

        """
        contents = self._open_contents()
        (x, y), (width, height) = map(operator.index, location), map(operator.index, size)
        level = operator.index(level)
        if min(width, height) < 0:
            raise RequestError(f"size {(width, height)} is negative; expected zero or more pixels")
        exists = 0 <= level < len(contents.levels)
        if not (exists or padding):
            raise IndexError(f"no level {level}; there are {len(contents.levels)}, from 0 on")
        reader = contents.levels[level if exists else 0]
        if exists:
            left, top = pixel_at((x, y), contents.downsamples[level])
        else:
            left, top = reader.shape[1::-1]  # nothing is there
        box = Box(left, top, width, height)
        if not padding:
            box = box.within(reader)
        if as_array:
            return read_array(reader, box)
        return read_picture(reader, box, contents.icc_profile)

    def get_thumbnail(self, size: tuple[int, int], *, use_embedded: bool = False) -> Image.Image:
        """Return an image of the whole slide on a white background.

        Parameters
        ----------
        size : tuple of int
            Upper bound on (width, height) in pixels; the aspect ratio is that of the slide.
        use_embedded : bool, default: False
            Whether to make it from the associated THUMBNAIL, as tiffslide does: where that is at
            least as large as `size` and has fewer pixels than the level that is read otherwise.

        Returns
        -------
        PIL.Image.Image
            RGB, with the ICC profile in ``info["icc_profile"]``; no larger than the image that it
            is made from.

        Raises
        ------
        ValueError
            When width or height is less than one.
        FrameError
            When a frame can't be read or decoded.

        """
        embedded = self._open_contents().associated.get("THUMBNAIL") if use_embedded else None
        if embedded is None:
            return super().get_thumbnail(size)
        width, height = self.level_dimensions[self._level_of_thumbnail(size)]
        rows, columns, _ = embedded.shape
        is_large = columns >= size[0] and rows >= size[1]
        if not is_large or rows * columns >= width * height:
            return super().get_thumbnail(size)
        return shrunk(self.associated_images["THUMBNAIL"], size)

    def set_cache(self, cache: object) -> None:
        """Use a cache for decoded tiles, for this slide alone or shared by several slides.

        Parameters
        ----------
        cache : OpenSlideCache
            The cache to use from now on. An ``openslide.OpenSlideCache`` of openslide-python is
            accepted without effect, since it caches tiles of libopenslide only: tiles stay in the
            cache of the process, bounded by ``frame_cache_bytes``
            (:func:`dicomslide.set_options`).

        Raises
        ------
        TypeError
            When `cache` is another object.

        """
        contents = self._open_contents()
        if isinstance(cache, OpenSlideCache):
            self._contents = contents.kept_in(cache.frames)
        elif not hasattr(cache, "_openslide_cache"):
            raise TypeError(f"cache is {cache!r}; expected an OpenSlideCache")


def open_slide(filename: Filename) -> OpenSlide | ImageSlide:
    """Open a slide, or an ordinary image.

    Parameters
    ----------
    filename : path-like
        Anything that :class:`dicomslide.OpenSlide` takes; or an image file that Pillow reads.

    Returns
    -------
    OpenSlide or ImageSlide
        A slide, or an image with the interface of a slide of one level.

    Raises
    ------
    FileNotFoundError
        When a path doesn't exist.
    NotDicomError, NotSlideError
        When the file is neither.

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
    """Associated images by flavor, decoded at each lookup."""

    def __init__(self, readers: Mapping[str, MatrixReader]) -> None:
        self._readers = readers

    def _reader(self, key: object) -> MatrixReader | None:
        flavors = {OPENSLIDE_NAMES[flavor]: flavor for flavor in self._readers}
        return self._readers.get(flavors.get(key, key))  # type: ignore[call-overload]

    def __getitem__(self, key: str) -> Image.Image:
        reader = self._reader(key)
        if reader is None:
            raise KeyError(f"no associated image {key!r}; expected one of {list(self)}")
        rows, columns, _ = reader.shape
        return read_picture(reader, Box(0, 0, columns, rows), reader.icc_profile)

    def __contains__(self, key: object) -> bool:
        return self._reader(key) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def __repr__(self) -> str:
        sizes = {flavor: reader.shape[1::-1] for flavor, reader in self._readers.items()}
        return f"<associated images, (width, height): {sizes}>"
