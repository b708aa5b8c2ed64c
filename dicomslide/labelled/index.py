"""The index of coordinates in millimetres."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from xarray.indexes import PandasIndex

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping, Sequence

    import xarray as xr

__all__ = ["SlideIndex"]

NOISE = 1e-9
"""Fraction of a pixel by which a bound may be off and still meet a pixel's centre."""


class SlideIndex(PandasIndex):
    """Index of a coordinate in mm, in which every pixel has an extent.

    A slice is an interval without direction: ``slice(20, 22)`` and ``slice(22, 20)`` select
    the pixels whose centres lie in it, whether the coordinate ascends or descends. A number
    selects the nearest pixel, within half a pixel of its centre.
    """

    __slots__ = ("spacing",)

    spacing: float
    """Extent of a pixel in mm; it stays when pixels are left out."""

    def __init__(
        self, array: Any, dim: Hashable, coord_dtype: Any = None, *, spacing: float | None = None
    ) -> None:
        super().__init__(array, dim, coord_dtype)
        if spacing is None:  # that of pixels side by side
            values = self.index.to_numpy()
            spacing = float(np.min(np.abs(np.diff(values)))) if len(values) > 1 else math.inf
        self.spacing = spacing

    def _replace(
        self, index: Any, dim: Hashable | None = None, coord_dtype: Any = None
    ) -> SlideIndex:
        return type(self)(
            index,
            self.dim if dim is None else dim,
            self.coord_dtype if coord_dtype is None else coord_dtype,
            spacing=self.spacing,
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
            ``spacing``, the extent of a pixel in mm; by default the distance between centres.

        """
        plain = PandasIndex.from_variables(variables, options={})
        return cls(plain.index, plain.dim, plain.coord_dtype, spacing=options.get("spacing"))

    @classmethod
    def concat(
        cls,
        indexes: Sequence[PandasIndex],
        dim: Hashable,
        positions: Iterable[Iterable[int]] | None = None,
    ) -> SlideIndex:
        """Join indexes; the extent of a pixel is that of the first."""
        joined = PandasIndex.concat(indexes, dim, positions)
        spacing = getattr(indexes[0], "spacing", None)
        return cls(joined.index, dim, joined.coord_dtype, spacing=spacing)

    def join(self, other: PandasIndex, how: str = "inner") -> SlideIndex:
        """Join with an index of the same kind, as alignment does."""
        joined = super().join(other, how)  # type: ignore[arg-type]
        return self._replace(joined.index, coord_dtype=joined.coord_dtype)

    def sel(self, labels: dict[Any, Any], method: Any = None, tolerance: Any = None) -> Any:
        """Select by mm: see the class.

        Raises
        ------
        KeyError
            When no pixel's extent holds a number.

        """
        (name, label), *_ = labels.items()
        if isinstance(label, slice):
            return super().sel({name: self._interval(label)})
        if method is None and tolerance is None and _is_numeric(label):
            with contextlib.suppress(KeyError):
                return super().sel(labels)
            try:
                return super().sel(
                    labels, method="nearest", tolerance=self.spacing / 2 * (1 + 1e-6)
                )
            except (KeyError, ValueError):  # ValueError: there is no order to search in
                values = self.index
                raise KeyError(
                    f"no pixel at {name} = {label!r} mm; the coordinate goes from"
                    f" {values.min():g} to {values.max():g} mm, in pixels of {self.spacing:g} mm"
                ) from None
        return super().sel(labels, method, tolerance)

    def _interval(self, label: slice) -> slice:
        bounds = [bound for bound in (label.start, label.stop) if bound is not None]
        bounds = [float(bound) for bound in bounds]
        ascending = len(self.index) < 2 or self.index[0] < self.index[-1]
        if len(bounds) == 2:
            low, high = min(bounds), max(bounds)
        else:  # an open end is that of the array, as with any slice
            open_start = label.start is None
            low, high = -math.inf, math.inf
            if bounds:
                low, high = (low, bounds[0]) if open_start == ascending else (bounds[0], high)
        noise = NOISE * (self.spacing if math.isfinite(self.spacing) else 1)
        low, high = low - noise, high + noise
        return slice(low, high, label.step) if ascending else slice(high, low, label.step)


def _is_numeric(label: Any) -> bool:
    return np.asarray(getattr(label, "values", label)).dtype.kind in "iuf"
