"""Colour as stored to colour as seen: ICC profiles, and the colour of absent tiles."""

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

__all__ = ["WHITE", "ColorTransform", "cielab_to_srgb", "color_transform"]

WHITE = (255, 255, 255)

PIECE = 1 << 14
"""Pixels that are transformed at a time: what that needs stays in the processor's cache."""

TABLES = 4
"""Number of profiles whose colours a process remembers."""

WARM_UP = 1 << 20
"""Pixels of a profile that come before a table is worth its memory."""

PACKED = np.dtype("<u4")
"""Four bytes: red, green, blue, and 255 where the colour is known."""

KNOWN = np.uint32(0xFF << 24)
"""What a packed colour that is known is not less than."""

DIFFERENCES = np.uint32(0xFF << 8)
"""Times a packed colour: differences of neighbouring samples in the upper three bytes, other
ones for each colour (the factor is odd), whatever the fourth byte was.

Stained tissue has few such differences: half the memory is touched that the samples would."""


class ColorTransform:
    """From the colour space of an ICC profile to sRGB, relative colorimetric (PS3.3 C.11.15).

    LittleCMS sees a colour once; what it becomes is remembered, and equal to the last bit.
    The first million pixels, and images that don't repeat their colours (noise), go to
    LittleCMS as they are.

    A process remembers the colours of four profiles at a time. Each takes 64 MiB of address
    space, and memory where there are colours: 2 to 20 MiB for stained tissue. Transforms may
    be called from several threads at once.

    Parameters
    ----------
    profile : bytes
        ICC input profile of an RGB image.

    Attributes
    ----------
    is_identity : bool
        Whether it leaves all colours as they are, as from sRGB itself.

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
        self._warm_up = WARM_UP  # pixels to come that aren't looked up
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
            Shape (rows, columns, 3), uint8, of any layout.
        out : numpy.ndarray, optional
            Takes the result: same shape and type, any layout; may be `pixels` itself.

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
            seen = self._see(_pack(pixels[top : top + step]))
            samples = seen.view(np.uint8).reshape(*piece.shape[:2], 4)
            for sample in range(3):  # faster than three bytes at a time
                piece[..., sample] = samples[..., sample]
        return out

    def _see(self, colors: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Look packed colours up, and learn those that aren't known."""
        if self._warm_up > 0:
            self._warm_up -= len(colors)
            return self._compute(colors)
        if self._is_learning and _are_scattered(colors):
            return self._compute(colors)
        places = _places(colors)
        table = _tables.get(self, _make_table)
        seen = table.take(places, mode="clip")  # all are within; the fastest mode
        if seen.min(initial=KNOWN) == KNOWN:
            self._is_learning = False
            return seen
        unknown = np.flatnonzero(seen < KNOWN)
        self._is_learning = len(unknown) > len(colors) // 4
        # threads that learn the same colour at once write the same
        table[places[unknown]] = seen[unknown] = self._compute(colors[unknown])
        return seen

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
        """Whether each value of a sample stays as it is beside the extremes of the others.

        Of curves and a matrix, a sample of the result is a function of the sum of a function of
        each sample, and rises or falls with each. Where it is the same at the others'
        extremes, it is the same between them.
        """
        every, ends = range(256), (0, 255)
        axes = ((every, ends, ends), (ends, every, ends), (ends, ends, every))
        colors = [np.stack(np.meshgrid(*axis), axis=-1).reshape(1, -1, 3) for axis in axes]
        pixels = np.concatenate(colors, axis=1).astype(np.uint8)
        return np.array_equal(self._compute(_pack(pixels)), _pack(pixels) | KNOWN)


def _has_table(profile: bytes) -> bool:
    """Whether a profile has tables, which go before its curves and matrix (ICC.1, tag usage)."""
    (count,) = struct.unpack_from(">I", profile, 128)
    tags = {profile[at : at + 3] for at in range(132, 132 + 12 * count, 12)}
    return bool(tags & {b"A2B", b"D2B"})


def _pack(pixels: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Pack pixels; the fourth byte of each is the first of the next pixel's."""
    count = pixels.shape[0] * pixels.shape[1]
    samples = np.empty(3 * count + 1, np.uint8)
    samples[:-1].reshape(pixels.shape)[...] = pixels
    return np.ndarray((count,), PACKED, samples, strides=(3,))


def _places(colors: NDArray[np.uint32]) -> NDArray[np.intp]:
    """Return where packed colours are in a table."""
    differences = colors * DIFFERENCES
    differences >>= 8
    return differences.astype(np.intp)


def _are_scattered(colors: NDArray[np.uint32]) -> bool:
    """Whether hardly two pixels of a sample have their places on one page of a table.

    So it is in noise, whose colours don't come again soon: it would fill the table in vain.
    """
    sample = colors[::61]  # a prime, lest all are of the same columns
    pages = np.sort((sample * DIFFERENCES) >> 18)
    return bool(np.count_nonzero(np.diff(pages)) > 0.75 * len(pages))


def _make_table() -> NDArray[np.uint32]:
    """Make room for what each colour becomes; 0 is of those that aren't known.

    Of mapped memory, the pages are used that are touched; NumPy asks for huge ones, which
    a few colours would use up all.
    """
    return np.frombuffer(mmap.mmap(-1, PACKED.itemsize << 24), PACKED)


_tables: Registry[ColorTransform, NDArray[np.uint32]] = Registry(
    TABLES, "colour tables", lambda table: table.nbytes
)
_transforms: Registry[bytes, ColorTransform | None] = Registry(32, "colour transforms")


def color_transform(profile: bytes, source: str) -> ColorTransform | None:
    """Return this process's transform for a profile.

    None where there is nothing to do: colours are sRGB already, or, with one warning, the
    profile isn't usable.

    Parameters
    ----------
    profile : bytes
        ICC profile of an optical path; looked up fastest where it is the same object each time.
    source : str
        What has the profile, for the warning.

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
