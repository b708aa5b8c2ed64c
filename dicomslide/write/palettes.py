"""Colours of the stored values of a map: Palette Color Lookup Tables (PS3.3 C.7.9)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.write.headers import item

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

__all__ = ["colors_of", "palette_of"]

COLORS = 256
"""Entries of a lookup table."""


def colors_of(palette: Any) -> NDArray[np.float64]:
    """Return colours from the lowest to the highest value, shape (n, 3), from 0 to 255.

    Raises
    ------
    ImportError
        When it is a name, and matplotlib isn't installed.
    ValueError
        When it is no colour map of matplotlib, or no array of colours.

    """
    if isinstance(palette, str):
        try:
            import matplotlib
        except ImportError as error:
            raise ImportError(
                "a palette by name needs matplotlib: pip install 'dicomslide[plot]'"
            ) from error
        try:
            found = matplotlib.colormaps[palette]
        except KeyError:
            raise ValueError(
                f"palette {palette!r}: matplotlib has no colour map of this name"
            ) from None
        return np.rint(found(np.linspace(0, 1, COLORS))[:, :3] * 255)
    colors = np.asarray(palette)
    if (
        colors.ndim != 2 or colors.shape[1] != 3 or len(colors) < 2
        or colors.dtype.kind not in "ui" or colors.min() < 0 or colors.max() > 255
    ):  # fmt: skip
        raise ValueError(
            f"palette of shape {colors.shape} and {colors.dtype}; expected two colours at least,"
            " shape (n, 3), integers from 0 to 255, or the name of a colour map of matplotlib"
        )
    return colors.astype(np.float64)


def palette_of(palette: Any) -> Dataset:
    """Return the lookup tables of a palette, and the ICC profile (sRGB) of its colours.

    Parameters
    ----------
    palette
        See :func:`colors_of`.

    """
    colors = colors_of(palette)
    at = np.linspace(0, len(colors) - 1, COLORS)
    made = item(ICCProfile=_srgb_profile(), ColorSpace="SRGB")
    for name, of_samples in zip(("Red", "Green", "Blue"), colors.T, strict=True):
        table = np.rint(np.interp(at, np.arange(len(colors)), of_samples) * 257)  # 255 is 65,535
        made.update(
            item(**{
                f"{name}PaletteColorLookupTableDescriptor": [COLORS, 0, 16],
                f"{name}PaletteColorLookupTableData": table.astype("<u2").tobytes(),
            })
        )  # fmt: skip
    return made


def _srgb_profile() -> bytes:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile + bytes(len(profile) % 2)
