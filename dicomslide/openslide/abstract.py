"""The base class `AbstractSlide` of slides and ordinary images, as in openslide-python."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from dicomslide.openslide.errors import RequestError

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self, TypeAlias

    from PIL import Image, ImageCms

    Filename: TypeAlias = str | bytes | os.PathLike[str]

__all__ = ["AbstractSlide", "flattened", "shrunk"]


class AbstractSlide(ABC):
    """A slide, or an ordinary image with the interface of a slide.

    Sizes are (width, height) and locations (x, y), in pixels as stored.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @classmethod
    @abstractmethod
    def detect_format(cls, filename: Filename) -> str | None:
        """Return the format of a file; None if it can't be opened."""

    @abstractmethod
    def close(self) -> None:
        """Close the slide; later use raises a ValueError."""

    @property
    @abstractmethod
    def level_count(self) -> int:
        """Number of levels."""

    @property
    def dimensions(self) -> tuple[int, int]:
        """(width, height) of level 0 in pixels."""
        return self.level_dimensions[0]

    @property
    @abstractmethod
    def level_dimensions(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of each level in pixels."""

    @property
    @abstractmethod
    def level_downsamples(self) -> tuple[float, ...]:
        """Factor of each level relative to level 0."""

    @property
    @abstractmethod
    def properties(self) -> Mapping[str, str]:
        """Metadata of the slide, by name."""

    @property
    @abstractmethod
    def associated_images(self) -> Mapping[str, Image.Image]:
        """Label, overview and other images of the slide, by name."""

    @property
    def icc_profile(self) -> bytes | None:
        """ICC profile of level 0; None without one."""
        return None

    @property
    def color_profile(self) -> ImageCms.ImageCmsProfile | None:
        """ICC profile of level 0 as an object of Pillow; None without one."""
        from PIL import ImageCms

        profile = self.icc_profile
        return None if profile is None else ImageCms.getOpenProfile(io.BytesIO(profile))

    @abstractmethod
    def get_best_level_for_downsample(self, downsample: float) -> int:
        """Return the level to read for an image that is smaller by a factor."""

    @abstractmethod
    def read_region(
        self, location: tuple[int, int], level: int, size: tuple[int, int]
    ) -> Image.Image:
        """Read a region as an RGBA image of exactly `size`, transparent outside of the slide."""

    def set_cache(self, cache: object) -> None:  # noqa: B027 - optional, as in openslide-python
        """Use a cache for decoded tiles; no effect for ordinary images.

        Parameters
        ----------
        cache : OpenSlideCache
            The cache.

        """

    def get_thumbnail(self, size: tuple[int, int]) -> Image.Image:
        """Return an image of the whole slide on a white background.

        Parameters
        ----------
        size : tuple of int
            Upper bound on (width, height) in pixels; the aspect ratio is that of the slide.

        Returns
        -------
        PIL.Image.Image
            RGB, with the ICC profile in ``info["icc_profile"]``; no larger than the level that it
            is made from.

        Raises
        ------
        ValueError
            When width or height is less than one.

        """
        level = self._level_of_thumbnail(size)
        return shrunk(self.read_region((0, 0), level, self.level_dimensions[level]), size)

    def _level_of_thumbnail(self, size: tuple[int, int]) -> int:
        if min(size) < 1:
            raise RequestError(
                f"a thumbnail of {tuple(size)} pixels isn't possible; expected one pixel or more"
            )
        downsample = max(edge / wanted for edge, wanted in zip(self.dimensions, size, strict=True))
        return self.get_best_level_for_downsample(downsample)


def flattened(picture: Image.Image, color: str = "white") -> Image.Image:
    """Return an RGBA image on a colour, as RGB with its ICC profile."""
    from PIL import Image

    flat = Image.new("RGB", picture.size, color)
    flat.paste(picture, mask=picture)
    if "icc_profile" in picture.info:
        flat.info["icc_profile"] = picture.info["icc_profile"]
    return flat


def shrunk(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return an RGBA image on white, shrunk to at most (width, height), with its ICC profile."""
    from PIL import Image

    thumbnail = flattened(picture)
    thumbnail.thumbnail(size, Image.Resampling.LANCZOS)
    return thumbnail
