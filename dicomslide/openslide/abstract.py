"""What a slide and an ordinary picture have in common, as openslide-python shows both."""

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

__all__ = ["AbstractSlide"]


class AbstractSlide(ABC):
    """A slide, or a picture that is shown as one.

    Sizes and places are (width, height) and (x, y) in pixels as stored.
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
        """Return the format of a file; None where it can't be opened."""

    @abstractmethod
    def close(self) -> None:
        """Close the slide: using it further raises a ValueError."""

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
        """What is known of the slide, by name."""

    @property
    @abstractmethod
    def associated_images(self) -> Mapping[str, Image.Image]:
        """Pictures that belong to the slide, by name."""

    @property
    def icc_profile(self) -> bytes | None:
        """ICC profile of level 0; None without one."""
        return None

    @property
    def color_profile(self) -> ImageCms.ImageCmsProfile | None:
        """ICC profile of level 0, as Pillow has it; None without one."""
        from PIL import ImageCms

        profile = self.icc_profile
        return None if profile is None else ImageCms.getOpenProfile(io.BytesIO(profile))

    @abstractmethod
    def get_best_level_for_downsample(self, downsample: float) -> int:
        """Return the level from which to make a picture of lower resolution."""

    @abstractmethod
    def read_region(
        self, location: tuple[int, int], level: int, size: tuple[int, int]
    ) -> Image.Image:
        """Read a region as an RGBA picture of exactly `size`, transparent outside."""

    def set_cache(self, cache: object) -> None:  # noqa: B027 - as there: a picture needs none
        """Keep decoded tiles in a cache, where tiles are decoded.

        Parameters
        ----------
        cache : OpenSlideCache
            Where they are kept.

        """

    def get_thumbnail(self, size: tuple[int, int]) -> Image.Image:
        """Make a picture of the whole slide, on white.

        Parameters
        ----------
        size : tuple of int
            Largest (width, height) in pixels; the ratio of edges is the slide's.

        Returns
        -------
        PIL.Image.Image
            RGB, with the profile in ``info["icc_profile"]``; no larger than the level that it is
            made of.

        Raises
        ------
        ValueError
            When a size is less than one.

        """
        from PIL import Image

        if min(size) < 1:
            raise RequestError(f"a thumbnail of {tuple(size)} pixels isn't possible")
        downsample = max(edge / wanted for edge, wanted in zip(self.dimensions, size, strict=True))
        level = self.get_best_level_for_downsample(downsample)
        region = self.read_region((0, 0), level, self.level_dimensions[level])
        thumbnail = Image.new("RGB", region.size, "white")
        thumbnail.paste(region, mask=region)
        thumbnail.thumbnail(size, Image.Resampling.LANCZOS)
        if "icc_profile" in region.info:
            thumbnail.info["icc_profile"] = region.info["icc_profile"]
        return thumbnail
