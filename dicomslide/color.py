"""Colour as stored to colour as seen: ICC profiles, and the colour of absent tiles."""

from __future__ import annotations

import hashlib
import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.cache import Registry
from dicomslide.errors import MetadataWarning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["WHITE", "ColorTransform", "cielab_to_srgb", "color_transform"]

WHITE = (255, 255, 255)


class ColorTransform:
    """From the colour space of an ICC profile to sRGB, relative colorimetric (PS3.3 C.11.15).

    Parameters
    ----------
    profile : bytes
        ICC input profile of an RGB image.

    Raises
    ------
    ValueError
        When the profile can't be read, or isn't one for RGB input.

    """

    def __init__(self, profile: bytes) -> None:
        from PIL import ImageCms

        try:
            self._transform = ImageCms.buildTransform(
                inputProfile=ImageCms.ImageCmsProfile(io.BytesIO(profile)),
                outputProfile=ImageCms.createProfile("sRGB"),
                inMode="RGB",
                outMode="RGB",
                renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            )
        except (OSError, TypeError, ImageCms.PyCMSError) as error:
            raise ValueError(
                f"ICC profile of {len(profile)} bytes isn't usable: {error}"
            ) from error

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Transform pixels of shape (rows, columns, 3)."""
        from PIL import Image, ImageCms

        if not pixels.size:
            return pixels
        image = Image.fromarray(np.ascontiguousarray(pixels))
        ImageCms.applyTransform(image, self._transform, inPlace=True)
        return np.asarray(image)


_transforms: Registry[bytes, ColorTransform | None] = Registry(32)


def color_transform(profile: bytes, source: str) -> ColorTransform | None:
    """Return this process's transform for a profile; None, with one warning, where unusable.

    Parameters
    ----------
    profile : bytes
        ICC profile of an optical path.
    source : str
        What has the profile, for the warning.

    """

    def make() -> ColorTransform | None:
        try:
            return ColorTransform(profile)
        except ValueError as error:
            warnings.warn(
                f"{source}: {error}; colours stay as stored", MetadataWarning, stacklevel=2
            )
            return None

    return _transforms.get(hashlib.sha256(profile).digest(), make)


def cielab_to_srgb(encoded: Sequence[int]) -> tuple[int, int, int]:
    """Convert CIELab (D50) as DICOM encodes it to 8-bit sRGB.

    Parameters
    ----------
    encoded : sequence of int
        L*, a*, b* scaled to 0 … 65535 (PS3.3 C.10.7.1.1).

    """
    lightness = encoded[0] * 100 / 65535
    a, b = (value * 255 / 65535 - 128 for value in encoded[1:3])
    fy = (lightness + 16) / 116
    f = np.array([fy + a / 500, fy, fy - b / 200])
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    xyz *= (0.9642, 1.0, 0.8249)  # white point D50
    # XYZ (D50) to linear sRGB, Bradford-adapted: inverse of the sRGB profile's colorants
    linear: NDArray[Any] = np.clip(
        np.array(
            [
                [3.1338561, -1.6168667, -0.4906146],
                [-0.9787684, 1.9161415, 0.0334540],
                [0.0719453, -0.2289914, 1.4052427],
            ]
        )
        @ xyz,
        0,
        1,
    )
    gamma = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = (int(value) for value in np.rint(gamma * 255))
    return red, green, blue
