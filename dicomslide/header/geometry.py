"""Affine transform between pixels of a total pixel matrix and millimetres on the slide.

In the slide coordinate system (PS3.3 C.8.12.2.1) the slide stands upright: X runs along its short
side, Y along its long side, both in millimetres. The coordinates of a pixel are those of its
centre, and the Total Pixel Matrix Origin is the centre of pixel (0, 0).

The module takes numbers only; :mod:`dicomslide.header.placement` reads them from headers.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from dicomslide.options import check_memory
from dicomslide.process.warn import renamed_argument

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["AS_STORED", "AXIS_TOLERANCE", "ROUNDING_NOISE", "Orientation", "OrientationName",
           "SlideGeometry", "SlideGrid", "nearest_index", "renamed_frame"]  # fmt: skip

AXIS_TOLERANCE = 1e-4
"""Tolerance of axis alignment: direction cosines differ from 0 or ±1 by at most this."""

NOISE_OF_SPACING = 1e-6
"""Tolerance for rounding of decimal strings, as a fraction of a pixel spacing."""

ROUNDING_NOISE = 1e-9
"""Tolerance for rounding of floating-point arithmetic, as a fraction of a pixel."""

OrientationName: TypeAlias = Literal["upright", "stored"]
"""Orientation of labelled arrays: upright on the slide, or as the matrix is stored."""

renamed_frame = renamed_argument(
    "frame", "orientation", {"slide": "upright", "matrix": "stored"}, until="0.9"
)
"""Decorator of functions whose `orientation` was called `frame`."""


def nearest_index(t: ArrayLike) -> NDArray[np.int64]:
    """Return the index of the pixel that contains a real-valued index.

    Pixel i contains [i − 0.5, i + 0.5): halves are rounded up, also where rounding errors of up
    to 1e-9 pixel make them slightly smaller.
    """
    return np.floor(np.asarray(t, dtype=np.float64) + 0.5 + ROUNDING_NOISE).astype(np.int64)


@dataclasses.dataclass(frozen=True, slots=True)
class Orientation:
    """Orientation of an axis-aligned matrix on the slide.

    The upright array has y descending with its row index and x ascending with its column index. It
    is the matrix, first transposed if `transpose`, then flipped.
    """

    transpose: bool
    """Whether the column index of the matrix runs along Y."""

    flip_y: bool
    """Whether the first axis is reversed (after the transposition)."""

    flip_x: bool
    """Whether the second axis is reversed (after the transposition)."""

    def apply(self, matrix: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return a matrix (rows, columns, ...) as an upright view (y, x, ...)."""
        upright = matrix.swapaxes(0, 1) if self.transpose else matrix
        return upright[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]

    def then(self, other: Orientation) -> Orientation:
        """Return the orientation that applies this one, then `other`."""
        flip_y, flip_x = self.flip_y, self.flip_x
        if other.transpose:
            flip_y, flip_x = flip_x, flip_y
        return Orientation(
            self.transpose != other.transpose, flip_y != other.flip_y, flip_x != other.flip_x
        )


AS_STORED = Orientation(transpose=False, flip_y=False, flip_x=False)
"""The orientation that leaves a matrix unchanged."""


@dataclasses.dataclass(frozen=True, slots=True)
class SlideGrid:
    """Pixel indices of a region in a matrix; indices may lie outside the matrix."""

    rows: NDArray[np.int64]
    """Row indices: one-dimensional, or of the region's shape where the matrix lies obliquely."""

    columns: NDArray[np.int64]
    """Column indices, with the same number of dimensions."""

    transpose: bool = False
    """Whether the region's rows are the matrix' columns (one-dimensional indices only)."""

    @classmethod
    def box(cls, offset: tuple[int, int], size: tuple[int, int]) -> SlideGrid:
        """Return the pixel indices of a box.

        Parameters
        ----------
        offset : tuple of int
            (row, column) of its first pixel.
        size : tuple of int
            Number of rows and columns.

        Raises
        ------
        MemoryLimitError
            When the box has more pixels than the memory limit allows.

        """
        # one byte per pixel at least, eight bytes per index
        check_memory(size[0] * size[1] + 8 * sum(size), f"a region of {size[0]} × {size[1]} pixels")
        rows, columns = (
            start + np.arange(length) for start, length in zip(offset, size, strict=True)
        )
        return cls(rows, columns)

    def of_turned(self, orientation: Orientation, shape: tuple[int, int]) -> SlideGrid:
        """Convert indices into an oriented view of a matrix to indices into the matrix.

        Parameters
        ----------
        orientation : Orientation
            Orientation of the view.
        shape : tuple of int
            Rows and columns of the matrix, as stored.

        """
        height, width = shape[::-1] if orientation.transpose else shape
        rows = height - 1 - self.rows if orientation.flip_y else self.rows
        columns = width - 1 - self.columns if orientation.flip_x else self.columns
        if orientation.transpose:
            return SlideGrid(columns, rows, transpose=True)
        return SlideGrid(rows, columns)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the region."""
        if self.rows.ndim == 2:
            return self.rows.shape[0], self.rows.shape[1]
        shape = len(self.rows), len(self.columns)
        return shape[::-1] if self.transpose else shape


@dataclasses.dataclass(frozen=True, slots=True)
class SlideGeometry:
    """Affine transform between a total pixel matrix and the slide.

    Raises
    ------
    ValueError
        When a value isn't finite, the directions aren't unit vectors at a right angle, or a
        spacing isn't above zero.

    """

    origin: tuple[float, float]
    """(x, y) of the centre of pixel (0, 0) in mm: Total Pixel Matrix Origin Sequence."""

    row_direction: tuple[float, float]
    """u, direction in which the column index grows: Image Orientation (Slide), values 1, 2."""

    column_direction: tuple[float, float]
    """v, direction in which the row index grows: Image Orientation (Slide), values 4, 5."""

    spacing: tuple[float, float]
    """(between rows, between columns) in mm: Pixel Spacing."""

    shape: tuple[int, int]
    """(Total Pixel Matrix Rows, Total Pixel Matrix Columns)"""

    def __post_init__(self) -> None:
        u, v = self.row_direction, self.column_direction
        numbers = (*self.origin, *u, *v, *self.spacing)
        if not all(math.isfinite(value) for value in numbers):
            raise ValueError(f"geometry has a value that isn't finite: {self}")
        # the tolerance allows cosines with few digits, but neither shear nor a third dimension
        if (
            abs(math.hypot(*u) - 1) > 1e-3
            or abs(math.hypot(*v) - 1) > 1e-3
            or abs(u[0] * v[0] + u[1] * v[1]) > 1e-3
        ):
            raise ValueError(f"orientation {u}, {v} isn't two unit vectors at a right angle")
        if min(self.spacing) <= 0:
            raise ValueError(f"pixel spacing {self.spacing} mm isn't above zero")

    @property
    def matrix(self) -> NDArray[np.float64]:
        """2 × 3 affine matrix: (x, y) in mm = matrix @ (row, column, 1)."""
        (ux, uy), (vx, vy) = self.row_direction, self.column_direction
        between_rows, between_columns = self.spacing
        return np.array(
            [
                [vx * between_rows, ux * between_columns, self.origin[0]],
                [vy * between_rows, uy * between_columns, self.origin[1]],
            ]
        )

    def to_slide(self, indices: ArrayLike) -> NDArray[np.float64]:
        """Map (row, column) indices, shape (..., 2), to (x, y) in mm, shape (..., 2).

        Indices may be real-valued: pixel i extends from i − 0.5 to i + 0.5.
        """
        affine = self.matrix
        mapped: NDArray[np.float64] = np.asarray(indices, dtype=np.float64) @ affine[:, :2].T
        return mapped + affine[:, 2]

    def to_matrix(self, coordinates: ArrayLike) -> NDArray[np.float64]:
        """Map (x, y) in mm to real-valued (row, column) indices, both of shape (..., 2)."""
        (ux, uy), (vx, vy) = self.row_direction, self.column_direction
        offset = np.asarray(coordinates, dtype=np.float64) - np.asarray(self.origin)
        row = (offset @ np.array([vx, vy])) / self.spacing[0]
        column = (offset @ np.array([ux, uy])) / self.spacing[1]
        return np.stack([row, column], axis=-1)

    def indices(self, coordinates: ArrayLike) -> NDArray[np.int64]:
        """Map (x, y) in mm to the (row, column) of the pixel there, perhaps outside the matrix."""
        return nearest_index(self.to_matrix(coordinates))

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(x_min, y_min, x_max, y_max) of the outer edges of the pixels, in mm."""
        rows, columns = self.shape
        corners = self.to_slide([(r, c) for r in (-0.5, rows - 0.5) for c in (-0.5, columns - 0.5)])
        (x_min, y_min), (x_max, y_max) = corners.min(axis=0), corners.max(axis=0)
        return float(x_min), float(y_min), float(x_max), float(y_max)

    @property
    def physical_size(self) -> tuple[float, float]:
        """Extent along X and Y in mm, from outer edge to outer edge."""
        (ux, uy), (vx, vy) = self.row_direction, self.column_direction
        height = self.shape[0] * self.spacing[0]
        width = self.shape[1] * self.spacing[1]
        return abs(ux) * width + abs(vx) * height, abs(uy) * width + abs(vy) * height

    @property
    def center(self) -> tuple[float, float]:
        """(x, y) of the centre of the matrix in mm."""
        rows, columns = self.shape
        x, y = self.to_slide(((rows - 1) / 2, (columns - 1) / 2))
        return float(x), float(y)

    def on_corner_of(self, finer: SlideGeometry, tolerance: float) -> SlideGeometry | None:
        """Return this geometry, moved so that its corner coincides with that of a finer one.

        Parameters
        ----------
        finer : SlideGeometry
            Geometry with smaller pixels.
        tolerance : float
            Tolerance of equal origins, as a fraction of a pixel of `finer`.

        Returns
        -------
        SlideGeometry or None
            Geometry whose pixel (0, 0) has its outer corner where that of `finer` has it. None
            where this geometry isn't coarser, or has another origin or other axes.

        """
        factors = np.divide(self.spacing, finer.spacing)
        axes = (*self.row_direction, *self.column_direction)
        if (
            factors.min() < 1 - NOISE_OF_SPACING
            or factors.max() <= 1 + NOISE_OF_SPACING
            or math.dist(self.origin, finer.origin) > tolerance * min(finer.spacing)
            or not np.allclose(
                axes, (*finer.row_direction, *finer.column_direction), rtol=0, atol=AXIS_TOLERANCE
            )
        ):
            return None
        x, y = finer.to_slide((factors - 1) / 2).tolist()
        return dataclasses.replace(self, origin=(x, y))

    def shares_lattice(self, other: SlideGeometry, tolerance: float) -> bool:
        """Whether both geometries are on one lattice of pixel centres, beyond their edges.

        Parameters
        ----------
        other : SlideGeometry
            Geometry whose axes may be rotated by right angles, or mirrored.
        tolerance : float
            Tolerance of equal centres, as a fraction of a pixel.

        """
        first, *steps = other.to_matrix(self.to_slide([(0, 0), (1, 0), (0, 1)]))
        steps = np.subtract(steps, first)
        return bool(
            np.abs(first - np.rint(first)).max() <= tolerance
            and np.abs(steps - np.rint(steps)).max() <= AXIS_TOLERANCE
            and np.abs(np.rint(steps)).sum() == 2
        )

    def pixels_of(self, other: SlideGeometry) -> NDArray[np.float64]:
        """Return the 2 × 3 affine from (row, column, 1) of `other` to real-valued indices here."""
        first, down, across = self.to_matrix(other.to_slide([(0, 0), (1, 0), (0, 1)]))
        return np.column_stack([down - first, across - first, first])

    @property
    def handedness(self) -> int:
        """−1 for the usual view, from the coverslip; +1 for a mirrored image."""
        (ux, uy), (vx, vy) = self.row_direction, self.column_direction
        return 1 if ux * vy - uy * vx > 0 else -1

    @property
    def rotation(self) -> float:
        """Counterclockwise angle from X to the direction of a row, degrees in (−360, 0]."""
        angle = math.degrees(math.atan2(self.row_direction[1], self.row_direction[0]))
        angle = angle - 360 if angle > ROUNDING_NOISE else angle
        return 0.0 if abs(angle) <= ROUNDING_NOISE else angle

    @property
    def orientation(self) -> Orientation | None:
        """Orientation of the matrix on the slide; None where its axes are oblique."""
        (ux, uy), (vx, vy) = self.row_direction, self.column_direction
        cosines = (ux, uy, vx, vy)
        if any(min(abs(c), abs(abs(c) - 1)) > AXIS_TOLERANCE for c in cosines):
            return None
        if abs(ux) > 0.5:
            return Orientation(transpose=False, flip_y=vy > 0, flip_x=ux < 0)
        return Orientation(transpose=True, flip_y=uy > 0, flip_x=vx < 0)

    @property
    def upright_shape(self) -> tuple[int, int]:
        """(ny, nx) of the upright array.

        Raises
        ------
        ValueError
            When the matrix lies obliquely.

        """
        orientation = self._aligned()
        return self.shape[::-1] if orientation.transpose else self.shape

    def upright_coordinates(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Coordinates in mm of the upright array: y descending, x ascending.

        Raises
        ------
        ValueError
            When the matrix lies obliquely.

        """
        orientation = self._aligned()
        axes: list[NDArray[np.float64]] = []
        for axis, length in enumerate(self.shape):
            direction = (self.column_direction, self.row_direction)[axis]
            along = 1 if (axis == 0) != orientation.transpose else 0  # rows run along Y
            step = math.copysign(self.spacing[axis], direction[along])
            axes.append(self.origin[along] + step * np.arange(length, dtype=np.float64))
        y, x = axes[::-1] if orientation.transpose else axes
        return (y[::-1] if orientation.flip_y else y), (x[::-1] if orientation.flip_x else x)

    def _aligned(self) -> Orientation:
        orientation = self.orientation
        if orientation is None:
            raise ValueError(
                f"the image lies obliquely on the slide (rotation {self.rotation:.3f} degrees):"
                " it has no upright array of its own pixels"
            )
        return orientation

    def _snapped(self) -> SlideGeometry:
        """Return the same geometry with cosines of exactly 0 and ±1."""
        (ux, uy), (vx, vy) = self.row_direction, self.column_direction
        return dataclasses.replace(
            self,
            row_direction=(float(round(ux)), float(round(uy))),
            column_direction=(float(round(vx)), float(round(vy))),
        )

    @property
    def slide_spacing(self) -> tuple[float, float]:
        """Sample spacing (along X, along Y) of an upright region, in mm."""
        (ux, uy), (vx, vy) = self.row_direction, self.column_direction
        between_rows, between_columns = self.spacing
        along_x = (abs(ux) * between_columns + abs(vx) * between_rows) / (abs(ux) + abs(vx))
        along_y = (abs(uy) * between_columns + abs(vy) * between_rows) / (abs(uy) + abs(vy))
        return along_x, along_y

    def region_shape(self, size: tuple[float, float]) -> tuple[int, int]:
        """Return (rows, columns) of an upright region of `size` (width, height) in mm.

        The shape depends on the size only, not on the offset of the region.
        """
        along_x, along_y = self.slide_spacing
        # rounded twice, so that 0.0105 / 0.001 is exactly 10.5 before it is rounded to an integer
        columns = int(np.rint(round(size[0] / along_x, 6)))
        rows = int(np.rint(round(size[1] / along_y, 6)))
        return rows, columns

    def region(self, offset: tuple[float, float], size: tuple[float, float]) -> SlideGrid:
        """Return the pixel indices of the box [x, x+w] × [y, y+h] in mm, nearest neighbours.

        Columns of the region run along +X, its rows along −Y. Indices may lie outside the matrix.

        Parameters
        ----------
        offset : tuple of float
            (x, y) of the corner with the lowest coordinates, in mm.
        size : tuple of float
            (width, height) in mm.

        """
        (x, y), (_, height) = offset, size
        rows, columns = self.region_shape(size)
        along_x, along_y = self.slide_spacing
        xs = x + (np.arange(columns) + 0.5) * along_x
        ys = y + height - (np.arange(rows) + 0.5) * along_y
        orientation = self.orientation
        if orientation is None:
            indices = self.indices(np.stack(np.meshgrid(xs, ys), axis=-1))
            return SlideGrid(indices[..., 0], indices[..., 1])
        # axis-aligned: one index depends on x only, the other on y only
        aligned = self._snapped()
        on_x = aligned.indices(np.stack([xs, np.full(columns, y)], axis=-1))
        on_y = aligned.indices(np.stack([np.full(rows, x), ys], axis=-1))
        if orientation.transpose:
            return SlideGrid(on_x[:, 0], on_y[:, 1], transpose=True)
        return SlideGrid(on_y[:, 0], on_x[:, 1])
