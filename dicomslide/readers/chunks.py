"""Chunks of arrays: how many whole frames, channels and focal planes make one."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["Chunks", "chunk_lengths", "frame_lengths"]

Chunks: TypeAlias = Literal["frames", "auto"] | int | Mapping[Any, Any]

AUTO_EDGE = 2048
"""Upper bound on the edge of an automatic chunk, in pixels, which is rounded to whole frames."""
AUTO_BYTES = 3 * AUTO_EDGE**2
"""Bytes of an automatic chunk of several channels or focal planes, rounded to whole frames."""
MOST_BYTES = 64 * 2**20
"""Upper bound on the bytes of one frame of all channels and focal planes in a chunk."""

_PLANE = frozenset({"y", "x", "row", "column"})
"""Dims along which chunks consist of whole frames."""
_DIM = re.compile(r"z|sample|(channel|segment|parameter)(_\d+)?")
"""Names of dims that some variables of a dataset have, and others haven't."""


def chunk_lengths(
    chunks: Chunks,
    dims: Sequence[Hashable],
    units: Sequence[tuple[int, ...]],
    itemsize: int,
    flipped: Sequence[bool],
) -> tuple[tuple[int, ...], ...]:
    """Return the lengths of chunks along each dim.

    Parameters
    ----------
    chunks : {"frames", "auto"}, int or mapping
        ``"frames"``: one frame of one channel and focal plane. ``"auto"``: whole frames of all
        channels and focal planes, as large as computes well. A number: whole frames of at least so
        many pixels along both edges, of one channel and focal plane; −1: everything. A mapping has
        such a value for each dim: a number of pixels, channels or focal planes; −1 for all;
        ``"auto"``; None for one frame, channel or focal plane, like a dim that isn't named; or the
        lengths of all chunks, which have to end where frames end.
    dims : sequence of hashable
        Names of the dims.
    units : sequence of tuple of int
        Lengths of frames, or ones, along each dim.
    itemsize : int
        Bytes of an element.
    flipped : sequence of bool
        Whether frames are counted from the end of a dim.

    Raises
    ------
    ValueError
        When `chunks` is none of these.

    """
    wanted = _by_dim(chunks, dims)
    counts = [_count(dim, wanted.get(dim), unit) for dim, unit in zip(dims, units, strict=True)]
    _set_automatic(counts, dims, units, itemsize)
    return tuple(
        count if isinstance(count, tuple) else _grouped(unit, count, from_end)
        for count, unit, from_end in zip(counts, units, flipped, strict=True)
    )


def frame_lengths(length: int, step: int) -> tuple[int, ...]:
    """Return the lengths of frames of `step` pixels along an axis; the last one may be cut."""
    whole, rest = divmod(length, step)
    return (step,) * whole + ((rest,) if rest else ())


def _by_dim(chunks: Chunks, dims: Sequence[Hashable]) -> Mapping[Any, Any]:
    if isinstance(chunks, Mapping):
        unknown = [key for key in chunks if key not in dims and not _DIM.fullmatch(str(key))]
        if unknown:
            raise ValueError(f"chunks of {unknown}; the dims are {tuple(dims)}")
        return chunks
    if chunks == "frames":
        return {}
    if chunks == "auto" or (_is_integer(chunks) and chunks == -1):
        return dict.fromkeys(dims, chunks)
    if _is_integer(chunks) and chunks > 0:
        return dict.fromkeys(_PLANE, chunks)
    raise ValueError(
        'chunks must be "frames", "auto", a number of pixels, or a mapping of these by dim, not'
        f" {chunks!r}"
    )


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _count(dim: Hashable, wanted: Any, units: tuple[int, ...]) -> Any:
    """Return how many units make a chunk; "auto", or the lengths of chunks, if they are given."""
    if wanted is None:
        return 1
    if isinstance(wanted, str) and wanted in ("auto", "frames"):
        return "auto" if wanted == "auto" else 1
    if _is_integer(wanted) and (wanted > 0 or wanted == -1):
        return len(units) if wanted == -1 else -(-int(wanted) // max(units, default=1))
    is_sequence = isinstance(wanted, (Sequence, np.ndarray)) and len(wanted) > 0
    if is_sequence and all(map(_is_integer, wanted)):
        lengths = tuple(map(int, wanted))
        ends, frames = (list(itertools.accumulate(each)) for each in (lengths, units))
        if min(lengths) > 0 and ends[-1] == sum(units) and set(ends) <= set(frames):
            return lengths
        raise ValueError(
            f"chunks of {lengths} along {dim!r} don't end where frames end, or add up to its length"
            f" of {sum(units)}; frames have the lengths {_shown(units)}"
        )
    raise ValueError(f'chunks along {dim!r} must be a number, "auto", lengths or None: {wanted!r}')


def _set_automatic(
    counts: list[Any], dims: Sequence[Hashable], units: Sequence[tuple[int, ...]], itemsize: int
) -> None:
    """Replace each "auto": all channels and planes, unless they are too many, then frames."""
    automatic = [at for at, count in enumerate(counts) if isinstance(count, str)]
    plane = [at for at in automatic if dims[at] in _PLANE]
    stack = [at for at in automatic if at not in plane]
    for at in automatic:
        counts[at] = 1 if at in plane else len(units[at])

    def nbytes() -> int:
        return itemsize * math.prod(map(_length, counts, units))

    for at in sorted(stack, key=lambda at: dims[at] != "z"):  # planes are split before channels
        if nbytes() > MOST_BYTES:
            fit = max(1, counts[at] * MOST_BYTES // nbytes())
            counts[at] = -(-len(units[at]) // -(-len(units[at]) // fit))  # of equal lengths
    of_stack = math.prod(
        _length(counts[at], units[at])
        for at, dim in enumerate(dims)
        if dim not in _PLANE and dim != "sample"
    )
    edge = float(AUTO_EDGE)
    if of_stack > 1:
        pixels = AUTO_BYTES / (itemsize * math.prod(
            _length(counts[at], units[at]) for at, dim in enumerate(dims) if dim not in _PLANE
        ))  # fmt: skip
        edge = min(edge, math.sqrt(pixels))
    for at in plane:
        counts[at] = max(1, round(edge / max(units[at], default=1)))


def _shown(units: tuple[int, ...]) -> str:
    shown = [str(each) for each in units]
    return ", ".join(shown if len(shown) <= 6 else [*shown[:3], "...", *shown[-2:]])


def _length(count: Any, units: tuple[int, ...]) -> int:
    """Return the length of the largest chunk of so many units."""
    if isinstance(count, tuple):
        return max(count)
    return min(count * max(units, default=1), sum(units))


def _grouped(units: tuple[int, ...], count: int, from_end: bool) -> tuple[int, ...]:
    """Return the lengths of chunks of so many units each; the last one may have fewer."""
    ordered = units[::-1] if from_end else units
    lengths = [sum(ordered[at : at + count]) for at in range(0, len(ordered), count)]
    return tuple(lengths[::-1] if from_end else lengths)
