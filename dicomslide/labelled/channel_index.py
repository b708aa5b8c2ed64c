"""Xarray index of the identifiers of channels and parameters, and of the numbers of segments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from xarray.indexes import PandasIndex

from dicomslide.process.warn import warn

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping, Sequence

__all__ = ["ChannelIndex"]

MOST_NAMED = 20
"""Upper bound on the channels that an error message lists."""


class ChannelIndex(PandasIndex):
    """Index of identifiers whose errors list the identifiers that exist.

    Numbers, of segments, are selected by text as well, with a FutureWarning. In other respects it
    is xarray's ``PandasIndex``.
    """

    __slots__ = ("names",)

    names: Mapping[Any, str]
    """Description of each identifier, also of identifiers that were removed by a selection."""

    def __init__(
        self,
        array: Any,
        dim: Hashable,
        coord_dtype: Any = None,
        *,
        names: Mapping[Any, str] | None = None,
    ) -> None:
        super().__init__(array, dim, coord_dtype)
        self.names = {} if names is None else names

    def _replace(
        self, index: Any, dim: Hashable | None = None, coord_dtype: Any = None
    ) -> ChannelIndex:
        return type(self)(
            index,
            self.dim if dim is None else dim,
            self.coord_dtype if coord_dtype is None else coord_dtype,
            names=self.names,
        )

    @classmethod
    def concat(
        cls,
        indexes: Sequence[PandasIndex],
        dim: Hashable,
        positions: Iterable[Iterable[int]] | None = None,
    ) -> ChannelIndex:
        """Concatenate indexes."""
        joined = PandasIndex.concat(indexes, dim, positions)
        names = {
            identifier: name
            for index in reversed(indexes)
            for identifier, name in getattr(index, "names", {}).items()
        }
        return cls(joined.index, dim, joined.coord_dtype, names=names)

    def join(self, other: PandasIndex, how: str = "inner") -> ChannelIndex:
        """Join with another index, for alignment."""
        joined = super().join(other, how)  # type: ignore[arg-type]
        names = {**getattr(other, "names", {}), **self.names}
        return type(self)(joined.index, self.dim, joined.coord_dtype, names=names)

    def sel(self, labels: dict[Any, Any], method: Any = None, tolerance: Any = None) -> Any:
        """Select by identifier.

        Raises
        ------
        KeyError
            When there is no such identifier; the message lists the identifiers with their
            descriptions.

        """
        ((name, label),) = labels.items()
        try:
            if self.index.dtype.kind in "iu":
                labels = {name: _as_numbers(label, str(name))}
            return super().sel(labels, method, tolerance)
        except KeyError:
            raise KeyError(f"no {name} {_shown(label)}; {self._known_identifiers(label)}") from None

    def _known_identifiers(self, label: Any) -> str:
        """Return a list of the identifiers as text, and those whose description is the label."""
        there = self.index.tolist()
        named = [
            repr(identifier) + (f" ({self.names[identifier]})" if identifier in self.names else "")
            for identifier in there[:MOST_NAMED]
        ]
        more = f" and {len(there) - MOST_NAMED} more" if len(there) > MOST_NAMED else ""
        wanted = str(label).casefold()
        meant = [each for each in there if self.names.get(each, "").casefold() == wanted]
        hint = (
            f"; {label!r} is the description of {', '.join(map(repr, meant[:MOST_NAMED]))}"
            if meant
            else ""
        )
        return f"identifiers are {', '.join(named) or 'none'}{more}{hint}"


def _as_numbers(label: Any, name: str) -> Any:
    """Return a label of an index of numbers, in which text became numbers.

    Raises
    ------
    KeyError
        When a text is no integer.

    """
    if isinstance(label, slice):
        start, stop = (_as_numbers(end, name) for end in (label.start, label.stop))
        return slice(start, stop, label.step)
    values = np.asarray(getattr(label, "values", label))
    if values.dtype.kind not in "UTO" or not any(isinstance(each, str) for each in values.flat):
        return label
    try:
        numbers = values.astype(np.int64)
    except ValueError:
        raise KeyError(label) from None
    warn(
        f"{name} has numbers: select by them, such as sel({name}={numbers.flat[0]}) instead of"
        f" sel({name}={str(values.flat[0])!r})",
        FutureWarning,
    )
    if hasattr(label, "copy") and hasattr(label, "values"):  # a labelled array
        return label.copy(data=numbers)
    return numbers if numbers.ndim else int(numbers)


def _shown(label: Any) -> str:
    values = getattr(label, "values", label)
    return repr(values.tolist() if hasattr(values, "tolist") else values)
