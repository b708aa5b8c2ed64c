"""What a labelled dataset consists of, before it is one."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import xarray as xr

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

__all__ = ["Parts", "datasets_of"]


@dataclasses.dataclass(slots=True)
class Parts:
    """Variables, coordinates and attributes of a dataset in the making.

    xarray compares, aligns and copies what a dataset has whenever something is assigned to it: a
    dataset is made once of all its parts instead.
    """

    variables: dict[Hashable, xr.Variable] = dataclasses.field(default_factory=dict)
    """Data variables by name."""
    coords: dict[Hashable, xr.Variable] = dataclasses.field(default_factory=dict)
    """Coordinates by name."""
    indexes: dict[Hashable, xr.Index] = dataclasses.field(default_factory=dict)
    """Indexes by the name of their coordinate."""
    attrs: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Attributes of the dataset."""

    def add(self, coords: xr.Coordinates) -> None:
        """Add coordinates with their indexes."""
        self.coords |= coords.variables
        self.indexes |= coords.xindexes

    def all(self) -> dict[Hashable, xr.Variable]:
        """Return coordinates and data variables by name."""
        return {**self.coords, **self.variables}

    def dataset(self) -> xr.Dataset:
        """Return the dataset."""
        return xr.Dataset(self.variables, xr.Coordinates(self.coords, self.indexes), self.attrs)


def datasets_of(groups: Mapping[str, Parts]) -> dict[str, xr.Dataset]:
    """Return the datasets of groups by path."""
    return {path: parts.dataset() for path, parts in groups.items()}
