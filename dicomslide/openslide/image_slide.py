"""`ImageSlide`: an ordinary image with the interface of a slide of one level."""

from __future__ import annotations

import operator
import os
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, overload

from dicomslide.openslide.abstract import AbstractSlide
from dicomslide.openslide.errors import RequestError
from dicomslide.options import check_memory

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from dicomslide.openslide.abstract import Filename

__all__ = ["ImageSlide"]


class ImageSlide(AbstractSlide):
    """An image of Pillow with the interface of a slide of one level.

    It has no properties and no associated images. Pillow holds all pixels in memory, so that a
    cache has no effect.

    Parameters
    ----------
    file : path-like or PIL.Image.Image
        A file of any format that Pillow reads, which is closed with the slide; or an image, which
        stays open.

    Raises
    ------
    FileNotFoundError
        When the path doesn't exist.
    PIL.UnidentifiedImageError
        When Pillow can't identify the format; a subclass of OSError.

    """

    def __init__(self, file: Filename | Image.Image) -> None:
        from PIL import Image

        self._given = repr(file)
        self._is_own = not isinstance(file, Image.Image)
        self._image: Image.Image | None = (
            file if isinstance(file, Image.Image) else Image.open(os.fsdecode(file))
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._given})"

    @classmethod
    def detect_format(cls, filename: Filename) -> str | None:
        """Return Pillow's name of a file's format; None if Pillow can't open it.

        Parameters
        ----------
        filename : path-like
            A file.

        """
        from PIL import Image

        try:
            with Image.open(os.fsdecode(filename)) as image:
                return image.format
        except OSError:
            return None

    def close(self) -> None:
        """Close the slide; later use raises a ValueError."""
        if self._image is not None and self._is_own:
            self._image.close()
        self._image = None

    def _picture(self) -> Image.Image:
        if self._image is None:
            raise RequestError(f"{self!r} is closed; open the image again")
        return self._image

    @property
    def level_count(self) -> Literal[1]:
        """Number of levels: 1."""
        return 1

    @property
    def level_dimensions(self) -> tuple[tuple[int, int]]:
        """(width, height) of the image in pixels."""
        return (self._picture().size,)

    @property
    def level_downsamples(self) -> tuple[float]:
        """Factor of the only level: 1.0."""
        return (1.0,)

    @property
    def properties(self) -> Mapping[str, str]:
        """Empty mapping."""
        return MappingProxyType({})

    @property
    def associated_images(self) -> Mapping[str, Image.Image]:
        """Empty mapping."""
        return MappingProxyType({})

    @property
    def icc_profile(self) -> bytes | None:
        """ICC profile of the image; None without one."""
        return self._picture().info.get("icc_profile")

    def get_best_level_for_downsample(self, downsample: float) -> Literal[0]:
        """Return 0, the only level."""
        return 0

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
    ) -> NDArray[np.uint8]: ...

    def read_region(
        self,
        location: tuple[int, int],
        level: int,
        size: tuple[int, int],
        *,
        as_array: bool = False,
        padding: bool = True,
    ) -> Image.Image | NDArray[np.uint8]:
        """Read a region.

        Parameters
        ----------
        location : tuple of int
            (x, y) of its top left pixel; may be outside of the image.
        level : int
            0.
        size : tuple of int
            (width, height) of the region in pixels.
        as_array : bool, default: False
            Whether to return an array.
        padding : bool, default: True
            Whether the result has exactly `size`; else it ends where the image ends.

        Returns
        -------
        PIL.Image.Image or numpy.ndarray
            RGBA, transparent outside of the image, with its ICC profile in
            ``info["icc_profile"]``. An array has the shape (rows, columns, 4) and the type uint8.

        Raises
        ------
        ValueError
            When width or height is negative, or `level` isn't 0.
        MemoryLimitError
            When the region exceeds the memory limit.

        """
        import numpy as np
        from PIL import Image

        image = self._picture()
        (x, y), (width, height) = map(operator.index, location), map(operator.index, size)
        if level != 0:
            raise RequestError(f"there is no level {level}; an image has level 0 only")
        if min(width, height) < 0:
            raise RequestError(f"size {(width, height)} is negative; expected zero or more pixels")
        left, top = min(max(x, 0), image.width), min(max(y, 0), image.height)
        right = max(left, min(x + width, image.width))
        bottom = max(top, min(y + height, image.height))
        if not padding:
            x, y, width, height = left, top, right - left, bottom - top
        check_memory(4 * width * height, f"an image of {width} × {height} pixels")
        region = Image.new("RGBA", (width, height))
        if left < right and top < bottom:
            region.paste(image.crop((left, top, right, bottom)), (left - x, top - y))
        profile = image.info.get("icc_profile")
        if profile is not None:
            region.info["icc_profile"] = profile
        return np.array(region) if as_array else region
