"""Colour conversion to sRGB: from ICC profiles, and from the CIELab colour of absent tiles."""

from __future__ import annotations

import io
import mmap
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.errors import MetadataWarning
from dicomslide.process.registry import Registry
from dicomslide.process.warn import warn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["WHITE", "ColorTransform", "cielab_to_srgb", "color_transform",
           "srgb_to_cielab"]  # fmt: skip

WHITE = (255, 255, 255)

PIECE = 1 << 14
"""Pixels that are transformed at a time, so that the temporary arrays fit the processor's cache."""

TABLES = 4
"""Upper bound on colour tables in a process: one per profile."""

WARM_UP = 1 << 20
"""Pixels of a profile that are transformed without a table: a table of few pixels isn't worth its
memory."""

PACKED = np.dtype("<u4")
"""Packed colour: red, green, blue, and a fourth byte, 255 in the set entries of a table."""

KNOWN = np.uint32(0xFF << 24)
"""Lowest packed colour whose fourth byte is 255: lower entries of a table aren't set yet."""

DIFFERENCES = np.uint32(0xFF << 8)
"""Factor that makes a table index of a packed colour.

The upper three bytes of the product hold differences of neighbouring samples, distinct for each
colour (the factor 255 is odd) and independent of the fourth byte. Stained tissue has few distinct
differences: they touch half as many pages of the table as the samples would.
"""


class ColorTransform:
    """Transform from the RGB of an ICC profile to sRGB, relative colorimetric (PS3.3 C.11.15).

    LittleCMS transforms each distinct colour once; a table holds the results, which are identical
    to those of LittleCMS. The first million pixels, and images of which few colours repeat (noise),
    are transformed without the table.

    A process has tables of four profiles at a time. Each takes 64 MiB of address space, of which
    only the pages that hold colours take memory: 2 to 20 MiB for stained tissue. Transforms may be
    called from several threads at once.

    Parameters
    ----------
    profile : bytes
        ICC input profile of an RGB image.

    Attributes
    ----------
    is_identity : bool
        Whether the transform changes no colour, as with a profile of sRGB.

    Raises
    ------
    ValueError
        When the profile can't be read, or isn't one for RGB input.

    """

    def __init__(self, profile: bytes) -> None:
        from PIL import ImageCms

        try:
            opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            self._transform = ImageCms.buildTransform(
                inputProfile=opened,
                outputProfile=ImageCms.createProfile("sRGB"),
                inMode="RGB",
                outMode="RGB",
                renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            )
        except (OSError, TypeError, ImageCms.PyCMSError) as error:
            raise ValueError(
                f"ICC profile of {len(profile)} bytes isn't usable: {error}"
            ) from error
        self._warm_up = WARM_UP  # pixels still to be transformed without the table
        self._is_learning = True
        curves_and_matrix = opened.profile.is_matrix_shaper and not _has_table(profile)
        self.is_identity = curves_and_matrix and self._keeps_extremes()

    def __call__(
        self, pixels: NDArray[np.uint8], out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Transform pixels.

        Parameters
        ----------
        pixels : numpy.ndarray
            Shape (rows, columns, 3), uint8, any strides.
        out : numpy.ndarray, optional
            Array for the result: same shape and dtype, any strides; may be `pixels` itself.

        Returns
        -------
        numpy.ndarray
            `out`, or a new array.

        """
        if out is None:
            out = np.empty(pixels.shape, np.uint8)
        step = max(1, PIECE // max(1, pixels.shape[1]))
        for top in range(0, len(pixels), step):
            piece = out[top : top + step]
            transformed = self._look_up(_pack(pixels[top : top + step]))
            samples = transformed.view(np.uint8).reshape(*piece.shape[:2], 4)
            for sample in range(3):  # faster than one copy of all three
                piece[..., sample] = samples[..., sample]
        return out

    def _look_up(self, colors: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Transform packed colours by the table, and add to it those that it lacks."""
        if self._warm_up > 0:
            self._warm_up -= len(colors)
            return self._compute(colors)
        if self._is_learning and _are_scattered(colors):
            return self._compute(colors)
        places = _places(colors)
        table = _tables.get(self, _make_table)
        found = table.take(places, mode="clip")  # the fastest mode; all indices are within bounds
        if found.min(initial=KNOWN) == KNOWN:
            self._is_learning = False
            return found
        unknown = np.flatnonzero(found < KNOWN)
        self._is_learning = len(unknown) > len(colors) // 4
        # two threads that add one colour write equal values
        table[places[unknown]] = found[unknown] = self._compute(colors[unknown])
        return found

    def _compute(self, colors: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Transform packed colours by LittleCMS."""
        from PIL import Image, ImageCms

        if not len(colors):
            return colors.copy()
        opaque = (colors | KNOWN).tobytes()
        image = Image.frombytes("RGB", (len(colors), 1), opaque, "raw", "RGBX")
        ImageCms.applyTransform(image, self._transform, inPlace=True)
        return np.frombuffer(image.tobytes("raw", "RGBX"), PACKED)

    def _keeps_extremes(self) -> bool:
        """Whether colours with two samples at 0 or 255, and any third, stay as they are.

        With curves and a matrix, a sample of the result is monotonic in each sample: a function
        of a sum of one function per sample. If it is unchanged with the other two at their
        extremes, it is unchanged between them: the transform is the identity.
        """
        every, ends = range(256), (0, 255)
        axes = ((every, ends, ends), (ends, every, ends), (ends, ends, every))
        colors = [np.stack(np.meshgrid(*axis), axis=-1).reshape(1, -1, 3) for axis in axes]
        pixels = np.concatenate(colors, axis=1).astype(np.uint8)
        return np.array_equal(self._compute(_pack(pixels)), _pack(pixels) | KNOWN)


def _has_table(profile: bytes) -> bool:
    """Whether a profile has lookup tables, which override its curves and matrix (ICC.1)."""
    (count,) = struct.unpack_from(">I", profile, 128)
    tags = {profile[at : at + 3] for at in range(132, 132 + 12 * count, 12)}
    return bool(tags & {b"A2B", b"D2B"})


def _pack(pixels: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Return packed colours as overlapping views: the fourth byte is the next pixel's first."""
    count = pixels.shape[0] * pixels.shape[1]
    samples = np.empty(3 * count + 1, np.uint8)
    samples[:-1].reshape(pixels.shape)[...] = pixels
    return np.ndarray((count,), PACKED, samples, strides=(3,))


def _places(colors: NDArray[np.uint32]) -> NDArray[np.intp]:
    """Return the table index of each packed colour."""
    differences = colors * DIFFERENCES
    differences >>= 8
    return differences.astype(np.intp)


def _are_scattered(colors: NDArray[np.uint32]) -> bool:
    """Whether few of some sampled pixels share a page of the table.

    This holds for noise, whose colours rarely repeat: it would fill the table without reuse.
    """
    sample = colors[::61]  # a prime step, so that samples come from different columns
    pages = np.sort((sample * DIFFERENCES) >> 18)
    return bool(np.count_nonzero(np.diff(pages)) > 0.75 * len(pages))


def _make_table() -> NDArray[np.uint32]:
    """Return a table of all 2**24 colours, in which 0 marks entries that aren't set.

    Mapped memory is committed page by page as entries are written. NumPy's allocator asks for huge
    pages, which a few colours would commit entirely.
    """
    return np.frombuffer(mmap.mmap(-1, PACKED.itemsize << 24), PACKED)


_tables: Registry[ColorTransform, NDArray[np.uint32]] = Registry(
    TABLES, "colour tables", lambda table: table.nbytes
)
_transforms: Registry[bytes, ColorTransform | None] = Registry(32, "colour transforms")


def color_transform(profile: bytes, source: str) -> ColorTransform | None:
    """Return the process's transform for a profile.

    Parameters
    ----------
    profile : bytes
        ICC Profile of an optical path. The same bytes object each time is looked up fastest.
    source : str
        File name or UID of the image, for the warning.

    Returns
    -------
    ColorTransform or None
        None where colours are sRGB already, or the profile isn't usable (with one warning).

    Warns
    -----
    MetadataWarning
        When the profile isn't usable: colours stay as stored.

    """

    def make() -> ColorTransform | None:
        try:
            transform = ColorTransform(profile)
        except ValueError as error:
            warn(f"{source}: {error}; colours stay as stored", MetadataWarning)
            return None
        return None if transform.is_identity else transform

    return _transforms.get(profile, make)


def cielab_to_srgb(encoded: Sequence[int]) -> tuple[int, int, int]:
    """Convert CIELab (D50), as encoded in DICOM, to 8-bit sRGB.

    Parameters
    ----------
    encoded : sequence of int
        L*, a*, b*, each scaled to 0 … 65535 (PS3.3 C.10.7.1.1).

    Returns
    -------
    tuple of int
        Red, green and blue, 0 … 255; colours outside sRGB are clipped.

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


def srgb_to_cielab(color: Sequence[int]) -> tuple[int, int, int]:
    """Convert 8-bit sRGB to CIELab (D50), as encoded in DICOM; see :func:`cielab_to_srgb`."""
    encoded = np.asarray(color, np.float64) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    # linear sRGB to XYZ (D50), Bradford-adapted: the sRGB profile's colorants
    xyz = np.array(
        (
            (0.4360747, 0.3850649, 0.1430804),
            (0.2225045, 0.7168786, 0.0606169),
            (0.0139322, 0.0971045, 0.7141733),
        )
    ) @ linear / (0.9642, 1.0, 0.8249)  # fmt: skip
    x, y, z = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    shares = (116 * y - 16) / 100, (500 * (x - y) + 128) / 255, (200 * (y - z) + 128) / 255
    lightness, a, b = (round(float(share) * 65535) for share in np.clip(shares, 0, 1))
    return lightness, a, b
