"""Options of the writers that have a few values, and sizes of tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dicomslide.header.dicom import two_integers

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Organization", "check_choice", "tile_size_of"]

Organization = Literal["TILED_FULL", "TILED_SPARSE"]


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise a ValueError if an option has another value than one of a few."""
    if value not in choices:
        raise ValueError(f"{name} {value!r}: expected one of {list(choices)}")


def tile_size_of(given: Any) -> tuple[int, int] | None:
    """Return rows and columns of a frame, of one number or two; None where none is given."""
    if given is None:
        return None
    sizes: Any = (given, given) if isinstance(given, (int, np.integer)) else given
    rows, columns = two_integers(sizes, "tile_size", least=1)
    if max(rows, columns) > 2**16 - 1:
        raise ValueError(f"tile_size {given}: Rows and Columns are 65,535 at most")
    return rows, columns
