"""Regions of one size at any resolution, by their millimetres: a map-style data set."""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from dicomslide.header import dicom
from dicomslide.labelled.patches import centers_of, patch_grid
from dicomslide.labelled.resolution import wanted_spacing
from dicomslide.options import check_memory
from dicomslide.readers.indexing import Axis, plain_key

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from dicomslide.header.resolution import Spacing
    from dicomslide.slide.slide import Slide

BYTES_PER_REGION = 64
"""Bytes of the centres of a region and of what is computed from them."""

__all__ = ["SlideSampler"]


class SlideSampler(Sequence["NDArray[Any]"]):
    """Samples regions of a slide by millimetres, at the resolution of a level or at any other.

    The sibling of :class:`TotalPixelMatrixSampler`: a sequence of regions of one size, upright,
    around given centres or side by side. Each is read when it is asked for, the frames that it
    touches and no others; a slice, a list or an array of integers or booleans is a sampler of fewer
    regions, and :meth:`read` reads several at once, whose frames are decoded once. It pickles, and
    serves as a map-style data set to PyTorch's ``DataLoader``.

    Parameters
    ----------
    slide : Slide
        The slide.
    region_dimensions : tuple of int
        Height (rows) and width (columns) of a region in pixels of that resolution.
    spacing : float or str, optional
        Distance of pixels: a number in mm, or text such as ``"0.5 um"`` or ``"10x"`` (which is
        1 µm). Either this or a level is given.
    level : int, optional
        Zero-based index into pyramid levels.
    centers : array-like, AnnotationGroup or GeoDataFrame, optional
        (x, y) of the middle of each region in mm, shape (n, 2); or what has ``bounds`` in mm. By
        default regions lie side by side, in row-major order, from the upper left corner of
        `bounds` on.
    bounds : tuple of float, optional
        (x_min, y_min, x_max, y_max) in mm of the box that regions side by side cover, the last ones
        in part; by default all of the slide.
    channel_index, focal_plane_index : int, default: 0
        Zero-based indices into channels and focal planes.
    fast : bool, default: False
        Whether the decoder may leave out detail: see :meth:`Slide.to_dataset`.

    Raises
    ------
    TypeError
        When not exactly one of `spacing` and `level` is given.
    ValueError
        When regions would hold nothing, or there is no such channel or focal plane.
    LevelNotFoundError
        When there is no such level.
    MetadataError
        When the header doesn't say where the image lies on the slide.

    Notes
    -----
    Regions begin with a whole pixel of the grid, so that their centres, :attr:`centers`, are up to
    half a pixel off those that were given; regions of one spacing share that grid. What reaches out
    of the matrix is background.

    Examples
    --------
    >>> sampler = dicomslide.SlideSampler(slide, (224, 224), spacing="0.5 um")
    >>> sampler[0].shape
    (224, 224, 3)

    """

    def __init__(
        self,
        slide: Slide,
        region_dimensions: tuple[int, int],
        *,
        spacing: Spacing | None = None,
        level: int | None = None,
        centers: ArrayLike | Any | None = None,
        bounds: tuple[float, float, float, float] | None = None,
        channel_index: int = 0,
        focal_plane_index: int = 0,
        fast: bool = False,
    ) -> None:
        if centers is not None and bounds is not None:
            raise TypeError("centers say where regions are: bounds are for those side by side")
        size = dicom.two_integers(region_dimensions, "region_dimensions", least=1)
        grid = patch_grid(
            slide,
            spacing=spacing,
            level=level,
            channel_index=channel_index,
            focal_plane_index=focal_plane_index,
            fast=fast,
        )
        if centers is not None:
            middles = centers_of(centers)
        else:
            box = slide.physical_bounds if bounds is None else bounds
            middles = _side_by_side(box, _pixel_of(slide, spacing, level), size)
        self._patches = grid.patches(middles, size)
        self._wanted = np.arange(len(middles))

    @property
    def region_shape(self) -> tuple[int, int, int]:
        """Rows, columns and samples of a region."""
        return self._patches.reader.shape[1:]

    @property
    def centers(self) -> NDArray[np.float64]:
        """(x, y) of the middle of each region in mm, shape (n, 2)."""
        return self._patches.centers[self._wanted]

    def __repr__(self) -> str:
        rows, columns, samples = self.region_shape
        return f"<SlideSampler of {len(self)} regions of {rows} × {columns} × {samples}>"

    def __len__(self) -> int:
        return len(self._wanted)

    @overload
    def __getitem__(self, index: int) -> NDArray[Any]: ...

    @overload
    def __getitem__(self, index: slice | Sequence[int] | NDArray[Any]) -> SlideSampler: ...

    def __getitem__(
        self, index: int | slice | Sequence[int] | NDArray[Any]
    ) -> NDArray[Any] | SlideSampler:
        key = plain_key(index)
        if isinstance(key, (slice, np.ndarray)):
            fewer = copy.copy(self)
            fewer._wanted = self._wanted[self._checked(key)]
            return fewer
        at = Axis.of(operator.index(key), len(self)).indices[0]
        return self._patches.reader.read((int(self._wanted[at]), *_WHOLE))

    def _checked(self, key: Any) -> Any:
        return key if isinstance(key, slice) else Axis.of(key, len(self)).indices

    def read(self, indices: Sequence[int] | NDArray[Any]) -> NDArray[Any]:
        """Read several regions at once; each of their frames is decoded once.

        Parameters
        ----------
        indices : sequence of int
            Zero-based indices of regions, in any order.

        Returns
        -------
        numpy.ndarray
            Shape (regions, rows, columns, samples).

        Raises
        ------
        IndexError
            When there is no such region.

        """
        wanted = self._wanted[self._checked(plain_key(indices))]
        return self._patches.reader.read((wanted, *_WHOLE))

    __getitems__ = read


_WHOLE = (slice(None),) * 3


def _pixel_of(slide: Slide, spacing: Spacing | None, level: int | None) -> tuple[float, float]:
    """Return the distance of pixels in mm along y and along x."""
    wanted = wanted_spacing(spacing, level)
    if wanted is not None:
        return wanted, wanted
    assert level is not None
    return slide.level(level).image.geometry.slide_spacing


def _side_by_side(
    bounds: tuple[float, float, float, float], spacing: tuple[float, float], size: tuple[int, int]
) -> NDArray[np.float64]:
    """Return the (x, y) of the middles of regions that cover a box, row by row from above."""
    edges = np.asarray(bounds, np.float64)
    if edges.shape != (4,) or not np.isfinite(edges).all():
        raise ValueError(f"bounds {bounds}: expected four finite numbers in mm")
    (x_min, y_min), (x_max, y_max) = np.sort(edges.reshape(2, 2), axis=0).tolist()
    width, height = (length * each for length, each in zip(size[::-1], spacing, strict=True))
    across, down = (
        max(1, int(np.ceil(round((high - low) / extent, 6))))
        for low, high, extent in ((x_min, x_max, width), (y_min, y_max, height))
    )
    check_memory(BYTES_PER_REGION * across * down, f"centres of {across * down} regions")
    x = x_min + (np.arange(across) + 0.5) * width
    y = y_max - (np.arange(down) + 0.5) * height
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
