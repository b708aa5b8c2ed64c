"""Xarray index of coordinates in millimetres."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from xarray.indexes import PandasIndex

from dicomslide.errors import GridError

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping, Sequence

    import xarray as xr
    from numpy.typing import NDArray

__all__ = ["FRAME_OF_REFERENCE", "SlideIndex", "spacing_of"]

FRAME_OF_REFERENCE = "frame_of_reference_uid"
"""Attribute of a coordinate: Frame of Reference UID of its millimetres."""
NOISE = 1e-9
"""Tolerance between a bound and the centre of a pixel, as a fraction of a pixel."""
SAME = 1e-6
"""Tolerance of equal positions, as a fraction of a pixel, and relative tolerance of spacings."""


class SlideIndex(PandasIndex):
    """Index of a coordinate in mm whose pixels have an extent.

    A slice is an interval without direction: ``slice(20, 22)`` and ``slice(22, 20)`` select
    the pixels whose centres lie in it, whether the coordinate ascends or descends. A number
    selects the pixel that contains it: the nearest one, within half a pixel of its centre.

    Arrays are aligned by position on their grid: centres within 1e-6 of a pixel are the same pixel.
    Alignment raises a :class:`GridError` for arrays that differ in spacing, in phase (their pixels
    overlap in part) or in frame of reference. ``reindex_like(other, method="nearest")`` returns,
    for each pixel of the other grid, the pixel that contains its centre.
    """

    __slots__ = ("frame_of_reference_uid", "is_even", "spacing")

    spacing: float
    """Extent of a pixel in mm, also where pixels have been left out; infinite if unknown."""
    frame_of_reference_uid: str | None
    """Frame of Reference UID of the coordinate; None if unknown."""
    is_even: bool
    """Whether distances between pixels are multiples of the spacing; those of planes may not be."""

    def __init__(
        self,
        array: Any,
        dim: Hashable,
        coord_dtype: Any = None,
        *,
        spacing: float | None = None,
        frame_of_reference_uid: str | None = None,
        is_even: bool | None = None,
    ) -> None:
        super().__init__(array, dim, coord_dtype)
        values = self._values
        if spacing is None:
            spacing = spacing_of(values)
        if is_even is None:
            is_even = not len(values) or _are_multiples(values - values[0], spacing)
        self.spacing = spacing
        self.frame_of_reference_uid = frame_of_reference_uid
        self.is_even = is_even

    @property
    def _values(self) -> NDArray[np.float64]:
        return self.index.to_numpy(dtype=np.float64)

    def _replace(
        self, index: Any, dim: Hashable | None = None, coord_dtype: Any = None
    ) -> SlideIndex:
        return type(self)(
            index,
            self.dim if dim is None else dim,
            self.coord_dtype if coord_dtype is None else coord_dtype,
            spacing=self.spacing,
            frame_of_reference_uid=self.frame_of_reference_uid,
            is_even=self.is_even,
        )

    @classmethod
    def from_variables(
        cls, variables: Mapping[Any, xr.Variable], *, options: Mapping[str, Any]
    ) -> SlideIndex:
        """Make the index of a one-dimensional coordinate.

        Parameters
        ----------
        variables : mapping
            The coordinate, by name.
        options : mapping
            ``spacing``: extent of a pixel in mm, by default the distance between centres.
            ``frame_of_reference_uid``: by default the attribute of the coordinate of this name.

        """
        plain = PandasIndex.from_variables(variables, options={})
        (variable,) = variables.values()
        return cls(
            plain.index,
            plain.dim,
            plain.coord_dtype,
            spacing=options.get("spacing"),
            frame_of_reference_uid=options.get(
                FRAME_OF_REFERENCE, variable.attrs.get(FRAME_OF_REFERENCE)
            ),
        )

    # -- alignment --

    @classmethod
    def concat(
        cls,
        indexes: Sequence[PandasIndex],
        dim: Hashable,
        positions: Iterable[Iterable[int]] | None = None,
    ) -> SlideIndex:
        """Concatenate indexes of one grid.

        Raises
        ------
        GridError
            When they differ in spacing, phase or frame of reference.

        """
        joined = PandasIndex.concat(indexes, dim, positions)
        known = [index for index in indexes if isinstance(index, SlideIndex)]
        first = known[0]
        for other in known[1:]:
            first._check_grid(other)
        return cls(
            joined.index,
            dim,
            joined.coord_dtype,
            spacing=min(index.spacing for index in known),
            frame_of_reference_uid=_first(index.frame_of_reference_uid for index in known),
            is_even=all(index.is_even for index in known),
        )

    def equals(self, other: Any, *, exclude: frozenset[Hashable] | None = None) -> bool:
        """Whether an index has the same pixels: centres within 1e-6 of a pixel."""
        if not isinstance(other, SlideIndex):
            return super().equals(other)
        if self.dim != other.dim or len(self.index) != len(other.index):
            return False
        if self._differs_in_frame(other) or (
            len(self.index) == 1 and self._differs_in_spacing(other)
        ):
            return False
        apart = np.abs(self._values - other._values)
        return bool((apart <= SAME * self._step(other)).all())

    def join(self, other: PandasIndex, how: str = "inner") -> SlideIndex:
        """Join with an index of the same grid, for alignment.

        Pixels keep their order; those of an outer join are sorted, in the direction of the longer
        index.

        Raises
        ------
        GridError
            When they differ in spacing, phase or frame of reference.

        """
        assert isinstance(other, SlideIndex)  # alignment joins indexes of one type
        self._check_grid(other)
        reach = min(self._half_extent, other._half_extent)
        _, apart = other._nearest(self._values)
        shared = apart < reach
        dtype = np.result_type(self.coord_dtype, other.coord_dtype)
        if how == "inner":
            return self._joined(other, self.index[shared], dtype)
        _, apart = self._nearest(other._values)
        more = other.index[apart >= reach]
        both = self.index.append(more)
        if len(more) and len(self.index):
            longer = self.index if len(self.index) > 1 else other.index
            if longer.is_monotonic_increasing:
                both = both.sort_values()
            elif longer.is_monotonic_decreasing:
                both = both.sort_values(ascending=False)
        return self._joined(other, both, dtype)

    def _joined(self, other: SlideIndex, index: Any, dtype: Any) -> SlideIndex:
        return type(self)(
            index,
            self.dim,
            dtype,
            spacing=min(self.spacing, other.spacing),
            frame_of_reference_uid=self.frame_of_reference_uid or other.frame_of_reference_uid,
            is_even=self.is_even and other.is_even,
        )

    def reindex_like(
        self, other: PandasIndex, method: Any = None, tolerance: Any = None
    ) -> dict[Hashable, Any]:
        """Return the positions of the pixels of another index; −1 where there are none.

        Parameters
        ----------
        other : SlideIndex
            Index of the same grid; of any grid if `method` is given.
        method : {None, "nearest", "pad", "backfill"}
            "nearest" selects the pixel that contains the centre of the other pixel; at the border
            of two pixels, the later one. "pad" and "backfill" are those of pandas.
        tolerance : float, optional
            Largest distance between centres in mm; by default half a pixel.

        Returns
        -------
        dict
            Zero-based positions in this index, by dim.

        Raises
        ------
        GridError
            When the frames of reference differ; without `method`, also when spacing or phase do.
        ValueError
            When two pixels of this index have one position.

        """
        if not isinstance(other, SlideIndex) or method not in (None, "nearest"):
            return super().reindex_like(other, method, tolerance)  # type: ignore[arg-type]
        if not self.index.is_unique:
            raise ValueError(f"{self.dim}: an index with equal positions can't be reindexed")
        if method is None:
            self._check_grid(other)
            reach: Any = min(self._half_extent, other._half_extent)
        else:
            self.check_frame(other)
            reach = self._half_extent if tolerance is None else np.asarray(tolerance, np.float64)
        found, apart = self._nearest(other._values)
        return {self.dim: np.where(apart <= reach, found, -1)}

    def _nearest(
        self, centres: NDArray[np.float64]
    ) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Return the index of the pixel nearest to each centre, and its distance in mm.

        Halfway between two pixels it is the later one. Without pixels, the index is −1 and the
        distance is infinite.
        """
        values = self._values
        if not len(values):
            return np.full(len(centres), -1), np.full(len(centres), math.inf)
        order = np.argsort(values, kind="stable")
        ascending = values[order]
        right = np.searchsorted(ascending, centres).clip(0, len(values) - 1)
        left = (right - 1).clip(0)
        to_left, to_right = np.abs(centres - ascending[left]), np.abs(centres - ascending[right])
        halfway = np.abs(to_left - to_right) <= NOISE * self._step(self)
        takes_right = np.where(halfway, order[right] > order[left], to_right < to_left)
        return np.where(takes_right, order[right], order[left]), np.minimum(to_left, to_right)

    def _step(self, other: SlideIndex) -> float:
        """Return the smaller extent of a pixel of two indexes in mm; 1 if both are unknown."""
        step = min(self.spacing, other.spacing)
        return step if math.isfinite(step) else 1.0

    def _differs_in_frame(self, other: SlideIndex) -> bool:
        uids = {self.frame_of_reference_uid, other.frame_of_reference_uid} - {None}
        return len(uids) > 1

    def _differs_in_spacing(self, other: SlideIndex) -> bool:
        known = math.isfinite(self.spacing) and math.isfinite(other.spacing)
        return known and not math.isclose(self.spacing, other.spacing, rel_tol=SAME)

    def _differs_in_phase(self, other: SlideIndex) -> bool:
        """Whether the grids of two indexes, continued beyond their ends, overlap in part."""
        if not (len(self.index) and len(other.index)):
            return False
        if not (math.isfinite(self.spacing) or math.isfinite(other.spacing)):
            return False
        step = self._step(other)
        if self.is_even and other.is_even:
            return not _are_multiples(other._values - self._values[0], step)
        _, apart = self._nearest(other._values)
        return bool(((apart > SAME * step) & (apart < (1 - SAME) * step)).any())

    def check_frame(self, other: SlideIndex) -> None:
        """Raise a GridError if an index has another frame of reference."""
        if self._differs_in_frame(other):
            raise GridError(
                f"{self.index.name}: the arrays differ in frame of reference,"
                f" {self.frame_of_reference_uid} and {other.frame_of_reference_uid}: equal"
                " coordinates aren't equal positions. Register one array onto the other, then set"
                " its frame of reference: array.slide.restore(frame_of_reference_uid=...)"
            )

    def _check_grid(self, other: SlideIndex) -> None:
        """Raise a GridError unless an index has the same grid."""
        self.check_frame(other)
        if self._differs_in_spacing(other):
            differ = "spacing"
        elif self._differs_in_phase(other):
            differ = "phase (their pixels overlap in part)"
        else:
            return
        raise GridError(
            f"{self.index.name}: the arrays differ in {differ}: {self._grid_text()}, and"
            f" {other._grid_text()}. Resample one onto the grid of the other first:"
            " b.slide.match(a) has, for each pixel of a, the mean of b's pixels that it covers (or"
            ' method="nearest", "majority", "linear")'
        )

    def _grid_text(self) -> str:
        return f"{len(self.index)} pixels of {self.spacing:.9g} mm from {self._range_text()} mm"

    def _range_text(self) -> str:
        values = self.index
        return f"{values.min():.9g} to {values.max():.9g}" if len(values) else "no pixel to none"

    # -- selection --

    def sel(self, labels: dict[Any, Any], method: Any = None, tolerance: Any = None) -> Any:
        """Select by coordinates in mm: see the class.

        Raises
        ------
        KeyError
            When no pixel contains a number, or a slice lies outside all pixels.

        """
        if not (self.index.is_monotonic_increasing or self.index.is_monotonic_decreasing):
            return self._sel_in_order(labels, method, tolerance)
        (name, label), *_ = labels.items()
        if isinstance(label, slice):
            return super().sel({name: self._interval(name, label)})
        if method is None and tolerance is None and _is_numeric(label):
            with contextlib.suppress(KeyError):
                return super().sel(labels)
            try:
                return super().sel(labels, method="nearest", tolerance=self._half_extent)
            except (KeyError, ValueError):  # ValueError: several pixels have one position
                raise KeyError(self._missing_message(f"{name} = {label!r}")) from None
        return super().sel(labels, method, tolerance)

    def _sel_in_order(self, labels: dict[Any, Any], method: Any, tolerance: Any) -> Any:
        """Select from pixels that aren't sorted, as after a concatenation.

        The pixels of a slice keep their order.
        """
        order = np.argsort(self._values, kind="stable")
        found = self._replace(self.index[order]).sel(labels, method, tolerance)
        at = found.dim_indexers[self.dim]
        if isinstance(at, slice):
            taken: Any = np.sort(order[at.start : at.stop])[:: at.step]
        elif hasattr(at, "copy") and hasattr(at, "dims"):
            taken = at.copy(data=order[at.values])
        else:
            taken = order[at]
        return dataclasses.replace(found, dim_indexers={self.dim: taken})

    @property
    def _half_extent(self) -> float:
        """Half the extent of a pixel in mm, with a tolerance for rounding."""
        return self.spacing / 2 * (1 + SAME) if math.isfinite(self.spacing) else SAME

    def _missing_message(self, wanted: str) -> str:
        known = f"pixels of {self.spacing:g} mm" if math.isfinite(self.spacing) else "one pixel"
        return (
            f"no pixel at {wanted} mm; the coordinate goes from {self._range_text()} mm, in {known}"
        )

    def _interval(self, name: Hashable, label: slice) -> slice:
        bounds = [bound for bound in (label.start, label.stop) if bound is not None]
        bounds = [float(bound) for bound in bounds]
        values = self.index
        ascending = len(values) < 2 or values[0] < values[-1]
        if len(bounds) == 2:
            low, high = min(bounds), max(bounds)
        else:  # an open bound is the end of the array, as with any slice
            open_start = label.start is None
            low, high = -math.inf, math.inf
            if bounds:
                low, high = (low, bounds[0]) if open_start == ascending else (bounds[0], high)
        if len(values) and not (
            low <= values.max() + self._half_extent and high >= values.min() - self._half_extent
        ):
            raise KeyError(self._missing_message(f"{name} = {label.start} … {label.stop}"))
        noise = NOISE * self._step(self)
        low, high = low - noise, high + noise
        return slice(low, high, label.step) if ascending else slice(high, low, label.step)


def spacing_of(values: NDArray[np.float64]) -> float:
    """Return the distance between neighbouring pixels in mm; infinite for fewer than two pixels.

    It is the number with the fewest digits that agrees with the rounded coordinates.

    Parameters
    ----------
    values : numpy.ndarray
        Centres of the pixels in mm, in any order.

    """
    ascending = np.unique(values)
    if len(ascending) < 2:
        return math.inf
    step = float(np.diff(ascending).min())
    whole = float(ascending[-1] - ascending[0])
    # from the whole extent, since the last digits of one step are rounding errors
    count = max(1, round(whole / step))
    if math.isclose(whole / count, step, rel_tol=SAME):
        step = whole / count
    else:
        count = 1
    off = 2 * float(np.spacing(np.abs(ascending).max())) / count
    shorter = (float(f"{step:.{digits}g}") for digits in range(1, 17))
    return next((each for each in shorter if abs(each - step) <= off), step)


def _are_multiples(offsets: NDArray[np.float64], spacing: float) -> bool:
    """Whether offsets are multiples of the spacing, within 1e-6 of it."""
    steps = offsets / spacing
    return bool((np.abs(steps - np.rint(steps)) <= SAME).all())


def _first(values: Iterable[str | None]) -> str | None:
    return next((value for value in values if value is not None), None)


def _is_numeric(label: Any) -> bool:
    return np.asarray(getattr(label, "values", label)).dtype.kind in "iuf"
