"""An ordinary picture as a slide of one level."""

from __future__ import annotations

import operator
import os
from types import MappingProxyType
from typing import TYPE_CHECKING

from dicomslide.openslide.abstract import AbstractSlide
from dicomslide.openslide.errors import RequestError
from dicomslide.options import check_memory

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Literal

    from PIL import Image

    from dicomslide.openslide.abstract import Filename

__all__ = ["ImageSlide"]


class ImageSlide(AbstractSlide):
    """A picture of Pillow as a slide of one level, without properties and associated images.

    Pillow holds the whole picture: a cache that it is given isn't used.

    Parameters
    ----------
    file : path-like or PIL.Image.Image
        A file of any format that Pillow reads, which is closed with the slide; or a picture,
        which stays open.

    Raises
    ------
    FileNotFoundError
        When the path doesn't exist.
    PIL.UnidentifiedImageError
        When Pillow doesn't know the format, an OSError.

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
        """Return Pillow's name of a file's format; None where it knows none.

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
        """Close the slide: using it further raises a ValueError."""
        if self._image is not None and self._is_own:
            self._image.close()
        self._image = None

    def _picture(self) -> Image.Image:
        if self._image is None:
            raise RequestError(f"{self!r} is closed; open the picture again")
        return self._image

    @property
    def level_count(self) -> Literal[1]:
        """One."""
        return 1

    @property
    def level_dimensions(self) -> tuple[tuple[int, int]]:
        """(width, height) of the picture in pixels."""
        return (self._picture().size,)

    @property
    def level_downsamples(self) -> tuple[float]:
        """One."""
        return (1.0,)

    @property
    def properties(self) -> Mapping[str, str]:
        """None are known."""
        return MappingProxyType({})

    @property
    def associated_images(self) -> Mapping[str, Image.Image]:
        """There are none."""
        return MappingProxyType({})

    @property
    def icc_profile(self) -> bytes | None:
        """ICC profile of the picture; None without one."""
        return self._picture().info.get("icc_profile")

    def get_best_level_for_downsample(self, downsample: float) -> Literal[0]:
        """Return 0, whatever the factor."""
        return 0

    def read_region(
        self, location: tuple[int, int], level: int, size: tuple[int, int]
    ) -> Image.Image:
        """Read a region.

        Parameters
        ----------
        location : tuple of int
            (x, y) of its top left pixel; may lie outside.
        level : int
            0.
        size : tuple of int
            (width, height) of the region in pixels.

        Returns
        -------
        PIL.Image.Image
            RGBA of exactly `size`, transparent outside of the picture, with its profile in
            ``info["icc_profile"]``.

        Raises
        ------
        ValueError
            When a size is negative, or the level isn't 0.
        MemoryLimitError
            When the region would be too large.

        """
        from PIL import Image

        image = self._picture()
        (x, y), (width, height) = map(operator.index, location), map(operator.index, size)
        if level != 0:
            raise RequestError(f"there is no level {level} of a picture, which has level 0 only")
        if min(width, height) < 0:
            raise RequestError(f"size {(width, height)} is negative")
        check_memory(4 * width * height, f"a picture of {width} × {height} pixels")
        region = Image.new("RGBA", (width, height))
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + width, image.width), min(y + height, image.height)
        if left < right and top < bottom:
            region.paste(image.crop((left, top, right, bottom)), (left - x, top - y))
        profile = image.info.get("icc_profile")
        if profile is not None:
            region.info["icc_profile"] = profile
        return region
