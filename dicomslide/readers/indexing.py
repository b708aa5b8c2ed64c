"""Keys of NumPy, resolved for an array that is stored in tiles."""

from __future__ import annotations

import dataclasses
import operator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeAlias

    from numpy.typing import NDArray

    Part: TypeAlias = slice | NDArray[np.int64]

__all__ = ["Axis", "Piece", "expand_key", "plain_key", "points"]


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """Part of one axis of the result that lies in one tile."""

    tile: int
    """Index of the tile along the axis."""
    source: Part
    """Indices of the pixels in the tile."""
    target: Part
    """Their indices in the result."""


@dataclasses.dataclass(frozen=True, slots=True)
class Axis:
    """Key of one axis, checked against its length."""

    indices: range | NDArray[np.int64]
    """The wanted indices, ascending if a range."""
    reverse: bool = False
    """Whether the order is reversed after reading."""
    drop: bool = False
    """Whether the key was an integer, which removes the axis."""

    @classmethod
    def of(cls, key: Any, length: int) -> Axis:
        """Check an integer, slice, or one-dimensional integer or boolean array.

        Raises
        ------
        IndexError
            When the key reaches outside the axis, or is of another kind.

        """
        if isinstance(key, slice):
            wanted = range(*key.indices(length))
            return cls(wanted[::-1], reverse=True) if wanted.step < 0 else cls(wanted)
        if isinstance(key, np.ndarray) and key.ndim:
            return cls(_check_array(key, length))
        try:
            index = operator.index(key)
        except TypeError:
            raise IndexError(
                f"{key!r} isn't an index; expected an integer, a slice, or an array of integers"
                " or booleans"
            ) from None
        if not -length <= index < length:
            raise IndexError(f"index {index} is out of bounds for an axis of length {length}")
        index %= length
        return cls(range(index, index + 1), drop=True)

    def __len__(self) -> int:
        return len(self.indices)

    def pieces(self, size: int) -> Iterator[Piece]:
        """Split the indices at the borders of tiles of `size` pixels."""
        wanted = self.indices
        if isinstance(wanted, range):
            if not len(wanted):
                return
            for tile in range(wanted[0] // size, wanted[-1] // size + 1):
                first = max(0, -((wanted.start - tile * size) // wanted.step))
                last = min(len(wanted), -((wanted.start - (tile + 1) * size) // wanted.step))
                if first < last:
                    start = wanted[first] - tile * size
                    stop = wanted[last - 1] - tile * size + 1
                    yield Piece(tile, slice(start, stop, wanted.step), slice(first, last))
        else:
            tiles = wanted // size
            for tile in np.unique(tiles).tolist():
                target = np.flatnonzero(tiles == tile)
                yield Piece(tile, wanted[target] - tile * size, target)


def _check_array(key: NDArray[Any], length: int) -> NDArray[np.int64]:
    if key.ndim != 1:
        raise IndexError(f"an index array of shape {key.shape}; expected one dimension")
    if key.dtype == np.bool_:
        if key.shape != (length,):
            raise IndexError(
                f"boolean index of shape {key.shape} doesn't fit an axis of length {length}"
            )
        return np.flatnonzero(key)
    if key.size and key.dtype.kind not in "iu":
        raise IndexError(f"an index array must hold integers or booleans, not {key.dtype}")
    indices = key.astype(np.int64)
    outside = (indices < -length) | (indices >= length)
    if outside.any():
        raise IndexError(
            f"index {indices[outside].flat[0]} is out of bounds for an axis of length {length}"
        )
    return np.where(indices < 0, indices + length, indices)


def expand_key(key: tuple[Any, ...], ndim: int) -> list[Any]:
    """Return one key for each axis: without Ellipsis, and with sequences as arrays.

    Raises
    ------
    IndexError
        When there are too many indices, two Ellipses, or a new axis.

    """
    parts = [plain_key(part) for part in key]
    if any(part is None for part in parts):
        raise IndexError("a new axis can't be made by indexing; use to_dask() or NumPy's own")
    if any(isinstance(part, (bool, np.bool_)) for part in parts):
        raise IndexError("a single boolean isn't an index here; expected one for each pixel")
    for part in parts:
        if isinstance(part, np.ndarray) and part.dtype == np.bool_ and part.ndim > 1:
            raise IndexError(
                f"a boolean index of shape {part.shape} spans several axes; expected one for each"
                " axis: use those that numpy.nonzero() returns"
            )
    dots = [i for i, part in enumerate(parts) if part is Ellipsis]
    if len(dots) > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    if len(parts) - len(dots) > ndim:
        raise IndexError(f"too many indices: {len(parts) - len(dots)} for {ndim} dimensions")
    missing = [slice(None)] * (ndim - len(parts) + len(dots))
    at = dots[0] if dots else len(parts)
    return [*parts[:at], *missing, *parts[at + len(dots) :]]


def plain_key(part: Any) -> Any:
    """Return a sequence as an array, an array without dimensions as a number, else the same."""
    if isinstance(part, (list, tuple, range)):
        part = np.asarray(part) if len(part) else np.empty(0, np.int64)
    return part.item() if isinstance(part, np.ndarray) and not part.ndim else part


def points(key: list[Any], shape: tuple[int, ...]) -> list[NDArray[np.int64]]:
    """Return the index along each axis of every element that NumPy would select.

    The key is applied by NumPy to broadcast views, which hold each element's index and take no
    memory.
    """
    return [
        np.broadcast_to(
            np.arange(length).reshape([-1 if i == axis else 1 for i in range(len(shape))]), shape
        )[tuple(key)]
        for axis, length in enumerate(shape)
    ]
