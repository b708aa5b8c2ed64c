"""Options of a slide."""

from __future__ import annotations

import dataclasses
import numbers
from typing import TYPE_CHECKING, Any

from dicomslide.readers.matrix_reader import check_on_error

if TYPE_CHECKING:
    from dicomslide.readers.matrix_reader import OnError

__all__ = ["SlideOptions"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SlideOptions:
    """Options of a slide: see the arguments of :class:`dicomslide.Slide`."""

    max_frame_cache_size: int | None = None
    pyramid_tolerance: float = 0.1
    correct_color: bool = True
    on_error: OnError = "raise"
    align_levels: bool = True
    pyramid: int | str | None = None
    spacing: float | None = None
    """Pixel spacing of the base level in mm, instead of that of the headers."""

    def __post_init__(self) -> None:
        check_on_error(self.on_error)
        _check_from_zero(self.pyramid_tolerance, numbers.Real, "pyramid_tolerance", "mm")
        if self.max_frame_cache_size is not None:
            _check_from_zero(
                self.max_frame_cache_size, numbers.Integral, "max_frame_cache_size", "frames"
            )

    def changed(self, **given: Any) -> SlideOptions:
        """Return these options, with those replaced that are given and not None."""
        return dataclasses.replace(
            self, **{name: value for name, value in given.items() if value is not None}
        )


def _check_from_zero(value: Any, kind: type, name: str, unit: str) -> None:
    if not isinstance(value, kind) or not value >= 0:  # type: ignore[operator]
        raise ValueError(f"{name} {value!r}: expected {unit}, zero or more")
