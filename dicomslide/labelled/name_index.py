"""Xarray index of what channels are called, or of their wavelengths, beside their identifiers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from xarray.core.indexing import IndexSelResult
from xarray.indexes import PandasIndex

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["NameIndex"]

SAME = 1e-6
"""Relative tolerance of equal numbers: headers store wavelengths in single precision."""
MOST_NAMED = 20
"""Upper bound on the values that an error message lists."""


class NameIndex(PandasIndex):
    """Index of a coordinate along channels, which needn't be unique, sorted or complete.

    ``sel`` returns the channel of a value without its dim, or all channels of a value that several
    have. ``method="nearest"`` and slices of numbers need no order; slices of numbers are intervals
    without direction.

    Arrays are aligned by the identifiers of their channels, never by their names: a channel that
    two arrays call differently has an empty name, or NaN, afterwards.
    """

    __slots__ = ("identifiers",)

    identifiers: pd.Index[Any]
    """Identifier of each channel."""

    def __init__(
        self, array: Any, dim: Hashable, coord_dtype: Any = None, *, identifiers: Any = None
    ) -> None:
        super().__init__(array, dim, coord_dtype)
        self.identifiers = self.index if identifiers is None else pd.Index(identifiers)

    @classmethod
    def from_variables(
        cls, variables: Mapping[Any, xr.Variable], *, options: Mapping[str, Any]
    ) -> NameIndex:
        """Make the index of a one-dimensional coordinate.

        Parameters
        ----------
        variables : mapping
            The coordinate, by name.
        options : mapping
            ``identifiers``: identifier of each channel, by default the values of the coordinate.

        """
        plain = PandasIndex.from_variables(variables, options={})
        identifiers = options.get("identifiers")
        return cls(plain.index, plain.dim, plain.coord_dtype, identifiers=identifiers)

    def create_variables(
        self, variables: Mapping[Any, xr.Variable] | None = None
    ) -> dict[Any, xr.Variable]:
        """Return the coordinate: a variable that dask may chunk, as ``xr.map_blocks`` needs."""
        name = self.index.name
        given = None if variables is None else variables.get(name)
        values = self.index.to_numpy(dtype=self.coord_dtype)
        if given is None:
            return {name: xr.Variable(self.dim, values)}
        return {name: xr.Variable(self.dim, values, given.attrs, given.encoding)}

    # -- parts --

    def _with(self, index: Any, identifiers: Any, dim: Hashable | None = None) -> NameIndex:
        dim = self.dim if dim is None else dim
        return type(self)(index, dim, self.coord_dtype, identifiers=identifiers)

    def __getitem__(self, indexer: Any) -> NameIndex:
        return self._with(self.index[indexer], self.identifiers[indexer])

    def isel(self, indexers: Mapping[Any, Any]) -> NameIndex | None:
        """Return the index of some channels; None for one of them."""
        (indexer,) = indexers.values()  # by another name where dims were swapped
        (dim,) = indexers
        if isinstance(indexer, xr.Variable):
            if indexer.dims != (dim,):
                return None
            indexer = indexer.data
        if not isinstance(indexer, slice) and np.ndim(indexer) == 0:
            return None
        return self._with(self.index[indexer], self.identifiers[indexer], dim)

    def roll(self, shifts: Mapping[Any, int]) -> NameIndex:
        """Return the index with its channels shifted, those at the end to the beginning."""
        (shift,) = shifts.values()
        return self[np.roll(np.arange(len(self.index)), shift)]

    def rename(
        self, name_dict: Mapping[Any, Hashable], dims_dict: Mapping[Any, Hashable]
    ) -> NameIndex:
        """Return the index with another name of the coordinate or of its dim."""
        name = self.index.name
        index = self.index.rename(name_dict.get(name, name))
        return self._with(index, self.identifiers, dims_dict.get(self.dim, self.dim))

    def _copy(self, deep: bool = True, memo: dict[int, Any] | None = None) -> NameIndex:
        return self._with(self.index.copy(deep=deep), self.identifiers.copy(deep=deep))

    # -- alignment --

    def equals(self, other: Any, *, exclude: frozenset[Hashable] | None = None) -> bool:
        """Whether an index has the same channels with the same values."""
        if not super().equals(other):
            return False
        return not isinstance(other, NameIndex) or self.identifiers.equals(other.identifiers)

    @classmethod
    def concat(
        cls,
        indexes: Sequence[PandasIndex],
        dim: Hashable,
        positions: Iterable[Iterable[int]] | None = None,
    ) -> NameIndex:
        """Concatenate indexes."""
        joined = PandasIndex.concat(indexes, dim, positions)
        of_each = [PandasIndex(_identifiers_of(index), dim) for index in indexes]
        identifiers = PandasIndex.concat(of_each, dim, positions).index
        return cls(joined.index, dim, joined.coord_dtype, identifiers=identifiers)

    def join(self, other: PandasIndex, how: str = "inner") -> NameIndex:
        """Join with another index by identifiers, for alignment."""
        theirs = _identifiers_of(other)
        mine = PandasIndex(self.identifiers, self.dim)
        identifiers = mine.join(PandasIndex(theirs, self.dim), how).index
        dtype = np.result_type(self.coord_dtype, other.coord_dtype)
        missing: Any = np.nan if dtype.kind == "f" else ""
        values = []
        for identifier in identifiers:
            found = [
                index.index[of.get_loc(identifier)]
                for index, of in ((self, self.identifiers), (other, theirs))
                if identifier in of
            ]
            is_one = all(value == found[0] or _are_nan(value, found[0]) for value in found)
            values.append(found[0] if is_one else missing)
        index = pd.Index(np.array(values, dtype), name=self.index.name)
        return type(self)(index, self.dim, dtype, identifiers=identifiers)

    def reindex_like(
        self, other: PandasIndex, method: Any = None, tolerance: Any = None
    ) -> dict[Hashable, Any]:
        """Return the positions of the channels of another index, by identifier."""
        theirs = _identifiers_of(other)
        mine = PandasIndex(self.identifiers, self.dim)
        return mine.reindex_like(PandasIndex(theirs, self.dim), method, tolerance)

    # -- selection --

    def sel(self, labels: dict[Any, Any], method: Any = None, tolerance: Any = None) -> Any:
        """Select channels by value: see the class.

        Raises
        ------
        KeyError
            When no channel has a value; the message lists those that there are.
        ValueError
            When `method` isn't "nearest", or values aren't numbers.

        """
        ((name, label),) = labels.items()
        if method not in (None, "nearest"):
            raise ValueError(f'{name}: method {method!r}; expected "nearest"')
        if method is not None and not self._has_numbers:
            raise ValueError(f"{name}: names have no order; {method!r} needs numbers")
        if isinstance(label, slice):
            return IndexSelResult({self.dim: self._interval(name, label)})
        values = np.asarray(getattr(label, "values", label))
        if values.dtype.kind == "b":
            return IndexSelResult({self.dim: values})
        found = [self._positions(name, value, method, tolerance) for value in values.flat]
        if not isinstance(label, (xr.Variable, xr.DataArray)) or not values.ndim:
            taken = np.concatenate(found) if found else np.array([], np.intp)
            one = values.ndim == 0 and len(taken) == 1
            return IndexSelResult({self.dim: int(taken[0]) if one else taken})
        if any(len(each) > 1 for each in found):
            raise KeyError(f"several channels have the same {name}; {self._known()}")
        at = np.array(found, np.intp).reshape(values.shape)
        indexer: Any = xr.Variable(label.dims, at)
        if isinstance(label, xr.DataArray):
            indexer = xr.DataArray(indexer, coords=label.coords)
        return IndexSelResult({self.dim: indexer})

    @property
    def _has_numbers(self) -> bool:
        return np.dtype(self.coord_dtype).kind in "iuf"

    def _positions(self, name: Any, value: Any, method: Any, tolerance: Any) -> NDArray[np.intp]:
        """Return the positions of a value, one or more."""
        if not self._has_numbers:
            taken = np.flatnonzero(np.array([each == value for each in self.index], bool))
        else:
            numbers = self.index.to_numpy(np.float64)
            try:
                apart = np.abs(numbers - float(value))
            except (TypeError, ValueError):
                apart = np.full(len(numbers), np.nan)
            reach: Any = SAME * np.abs(numbers)
            if method is not None:
                reach = np.inf if tolerance is None else float(tolerance)
            near = np.where(apart <= reach, apart, np.nan)
            taken = np.array([], np.intp)
            if np.isfinite(near).any():
                taken = np.flatnonzero(numbers == numbers[np.nanargmin(near)])
        if not len(taken):
            raise KeyError(
                f"no {name} {getattr(value, 'item', lambda: value)()!r}; {self._known()}"
            )
        return taken

    def _interval(self, name: Any, label: slice) -> NDArray[np.intp]:
        """Return the positions of the numbers in an interval, or from one name to another."""
        if not self._has_numbers:
            count = len(self.index)
            ends = [
                end if bound is None else self._positions(name, bound, None, None)
                for bound, end in ((label.start, [0]), (label.stop, [count - 1]))
            ]
            if any(len(end) > 1 for end in ends):
                raise KeyError(f"several channels have the same {name}; {self._known()}")
            return np.arange(ends[0][0], ends[1][0] + 1)[:: label.step]
        numbers = self.index.to_numpy(np.float64)
        bounds = sorted(float(b) for b in (label.start, label.stop) if b is not None)
        if not bounds:
            return np.arange(len(numbers))[:: label.step]
        low, high = -np.inf, np.inf
        if len(bounds) == 2:
            low, high = bounds
        else:
            low, high = (low, bounds[0]) if label.start is None else (bounds[0], high)
        inside = (numbers >= low * (1 - SAME)) & (numbers <= high * (1 + SAME))
        return np.flatnonzero(inside)[:: label.step]

    def _known(self) -> str:
        """Return the values that there are, as text."""
        there = [repr(_plain(value)) for value in self.index]
        more = f" and {len(there) - MOST_NAMED} more" if len(there) > MOST_NAMED else ""
        hint = '; method="nearest" selects the nearest' if self._has_numbers else ""
        return f"there are {', '.join(there[:MOST_NAMED]) or 'none'}{more}{hint}"


def _identifiers_of(index: PandasIndex) -> pd.Index[Any]:
    return index.identifiers if isinstance(index, NameIndex) else index.index


def _plain(value: Any) -> Any:
    """Return a scalar of NumPy as one of Python."""
    return value.item() if hasattr(value, "item") else value


def _are_nan(a: Any, b: Any) -> bool:
    return bool(a != a and b != b)
