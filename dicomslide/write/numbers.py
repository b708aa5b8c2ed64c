"""How numbers are stored: as floating-point pixels, or as integers with a linear mapping."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.errors import PixelValueError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LARGEST", "NumberForm"]

DTYPES = ("float32", "float64", "uint16")
LARGEST = 2**16 - 2
"""Largest stored integer that is mapped to a real value."""
MISSING = 2**16 - 1
"""Stored integer of pixels without a value: it is beyond the mapped range."""
BEYOND = 1e-6
"""Rounding errors of numbers that are let pass beyond a range, as a fraction of its width."""
DEFAULT_WINDOW = (0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class NumberForm:
    """How the numbers of a map are stored. Called with a block, it checks and converts it."""

    dtype: np.dtype[Any]
    """Data type of stored pixels."""
    slope: float
    intercept: float
    value_range: tuple[float, float] | None
    """Lowest and highest number; None if any finite number is allowed."""
    allows_missing: bool
    """Whether NaN is a pixel without a value, rather than an error."""

    @classmethod
    def of(
        cls,
        given: np.dtype[Any],
        dtype: str | None,
        value_range: Any,
        mapping: tuple[float, float],
        allows_missing: bool,
    ) -> NumberForm:
        """Return the form of an array of a data type.

        Raises
        ------
        PixelValueError
            When the array has a data type that a map can't hold.
        ValueError
            When options don't fit together.

        """
        if given.kind not in "uf":
            raise PixelValueError(
                f"an array of {given}; expected floating-point numbers or unsigned integers:"
                " array.astype('float32')"
            )
        if given.kind == "u" and given.itemsize > 2:
            raise PixelValueError(f"an array of {given}; expected uint8, uint16 or float64")
        natural = "uint16" if given.kind == "u" else "float64" if given.itemsize > 4 else "float32"
        stored = natural if dtype is None else str(np.dtype(dtype))
        if stored not in DTYPES:
            raise ValueError(f"dtype {dtype!r}: expected one of {list(DTYPES)}")
        limits = None if value_range is None else _range_of(value_range)
        slope, intercept = map(float, mapping)
        if not (math.isfinite(slope) and math.isfinite(intercept)) or slope == 0:
            raise ValueError(f"slope {slope} and intercept {intercept}: expected finite, not 0")
        is_mapped = (slope, intercept) != (1.0, 0.0)
        if is_mapped and (given.kind == "f" or stored != "uint16"):
            raise ValueError(
                "slope and intercept are for arrays of integers that are stored as uint16; for"
                ' floating-point numbers, dtype="uint16" with value_range=... finds them'
            )
        if stored == "uint16" and given.kind == "f":
            if limits is None:
                raise ValueError(
                    'dtype="uint16" needs value_range=(lowest, highest): numbers are stored in'
                    f" {LARGEST:,} steps between these"
                )
            slope, intercept = (limits[1] - limits[0]) / LARGEST, limits[0]
        return cls(np.dtype(stored), slope, intercept, limits, allows_missing)

    @property
    def is_integer(self) -> bool:
        """Whether stored pixels are integers."""
        return self.dtype.kind == "u"

    @property
    def fill(self) -> float:
        """Stored value of pixels without a value."""
        return float(MISSING) if self.is_integer else math.nan

    @property
    def mapped(self) -> tuple[float, float]:
        """Lowest and highest stored value that has a real value."""
        if self.is_integer:
            return 0, LARGEST
        if self.value_range is not None:
            return self.value_range
        limits = np.finfo(self.dtype)
        return float(limits.min), float(limits.max)

    @property
    def window(self) -> tuple[float, float]:
        """Stored values that viewers show as black and as white."""
        if not self.is_integer:
            return self.value_range or DEFAULT_WINDOW
        if self.value_range is None:
            return 0, LARGEST
        low, high = sorted((v - self.intercept) / self.slope for v in self.value_range)
        return low, high

    def __call__(self, block: NDArray[Any], where: str) -> NDArray[Any]:
        """Return the stored pixels of a block.

        Raises
        ------
        PixelValueError
            When it has numbers that aren't allowed.

        """
        if not block.size:
            return block.astype(self.dtype)
        if block.dtype.kind == "u":
            return self._of_integers(block, where)
        if block.dtype.kind != "f":
            raise PixelValueError(f"{where}: computed values are {block.dtype}; expected numbers")
        return self._of_floats(block, where)

    def _of_integers(self, block: NDArray[Any], where: str) -> NDArray[Any]:
        values = block
        if self.is_integer and int(values.max()) > LARGEST:
            raise PixelValueError(
                f"{where}: {int(values.max())} is larger than {LARGEST}: 65,535 is stored for"
                " pixels without a value; write floating-point numbers"
            )
        if self.value_range is not None:
            real = values.astype(np.float64) * self.slope + self.intercept
            self._check_range(float(real.min()), float(real.max()), where)
        return values.astype(self.dtype, copy=False)

    def _of_floats(self, block: NDArray[Any], where: str) -> NDArray[Any]:
        gone = np.isnan(block)
        if gone.any() and not self.allows_missing:
            raise PixelValueError(
                f'{where}: {int(gone.sum())} numbers are NaN; missing="allow" writes them as pixels'
                " without a value, array.fillna(0) gives them one"
            )
        known = block if not gone.any() else block[~gone]
        if known.size:
            low, high = float(known.min()), float(known.max())
            if not (math.isfinite(low) and math.isfinite(high)):
                raise PixelValueError(f"{where}: numbers are {low:g} to {high:g}; expected finite")
            self._check_range(low, high, where)
        if not self.is_integer:
            with np.errstate(over="ignore"):
                stored = block.astype(self.dtype, copy=False)
            if np.isinf(stored).any():
                raise PixelValueError(
                    f'{where}: numbers are too large for {self.dtype}; expected dtype="float64"'
                )
            return stored
        steps = (block.astype(np.float64) - self.intercept) / self.slope
        steps[gone] = MISSING
        inside = np.clip(np.rint(steps), 0, LARGEST)
        return np.where(gone, MISSING, inside).astype(self.dtype)

    def _check_range(self, low: float, high: float, where: str) -> None:
        if self.value_range is None:
            return
        slack = BEYOND * (self.value_range[1] - self.value_range[0])
        if low < self.value_range[0] - slack or high > self.value_range[1] + slack:
            raise PixelValueError(
                f"{where}: numbers are {low:g} to {high:g}; value_range is"
                f" {self.value_range[0]:g} to {self.value_range[1]:g}: array.clip(*value_range)"
            )


def _range_of(given: Any) -> tuple[float, float]:
    try:
        low, high = map(float, given)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"value_range {given!r}: expected (lowest, highest), two finite numbers")
    return low, high
