"""Xarray index of the identifiers of channels, segments and parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xarray.indexes import PandasIndex

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping, Sequence

__all__ = ["ChannelIndex"]

MOST_NAMED = 20
"""Upper bound on the channels that an error message lists."""


class ChannelIndex(PandasIndex):
    """Index of identifiers whose errors list the identifiers that exist.

    In other respects it is xarray's ``PandasIndex``.
    """

    __slots__ = ("names",)

    names: Mapping[str, str]
    """Description of each identifier, also of identifiers that were removed by a selection."""

    def __init__(
        self,
        array: Any,
        dim: Hashable,
        coord_dtype: Any = None,
        *,
        names: Mapping[str, str] | None = None,
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
        try:
            return super().sel(labels, method, tolerance)
        except KeyError:
            ((name, label),) = labels.items()
            raise KeyError(f"no {name} {_shown(label)}; {self._known_identifiers(label)}") from None

    def _known_identifiers(self, label: Any) -> str:
        """Return a list of the identifiers as text, and those whose description is the label."""
        there = [str(identifier) for identifier in self.index]
        named = [
            repr(identifier) + (f" ({self.names[identifier]})" if identifier in self.names else "")
            for identifier in there[:MOST_NAMED]
        ]
        more = f" and {len(there) - MOST_NAMED} more" if len(there) > MOST_NAMED else ""
        wanted = str(label).casefold()
        meant = [each for each in there if self.names.get(each, "").casefold() == wanted]
        hint = f"; {label!r} is the description of {', '.join(map(repr, meant))}" if meant else ""
        return f"identifiers are {', '.join(named) or 'none'}{more}{hint}"


def _shown(label: Any) -> str:
    values = getattr(label, "values", label)
    return repr(values.tolist() if hasattr(values, "tolist") else values)
