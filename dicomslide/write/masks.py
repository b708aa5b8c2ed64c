"""Arrays of masks, probabilities and labels: their segments, data types and values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dicomslide.errors import PixelValueError

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

    from dicomslide.write.grids import Placed

__all__ = ["Kind", "Masks", "labels_along", "masks_of", "values_of", "with_channels"]

Kind = Literal["BINARY", "FRACTIONAL", "LABELMAP"]
KINDS = {"BINARY": "b", "FRACTIONAL": "f", "LABELMAP": "ui"}
"""Kinds of data type of each Segmentation Type."""
EXPECTED = {
    "BINARY": "bool for BINARY: compare with a threshold (array > 0.5), or write labels by"
    ' kind="LABELMAP" and probabilities by kind="FRACTIONAL"',
    "FRACTIONAL": "floating-point numbers from 0 to 1 for FRACTIONAL: array.astype('float32')",
    "LABELMAP": "integers for LABELMAP: array.astype('uint8')",
}
PLANES = ({"y", "x"}, {"row", "column"})
LARGEST_LABEL = 2**16 - 1
STEPS = 255
"""Maximum Fractional Value: fractions are stored in steps of 1/255."""
BEYOND = 1e-6
"""Rounding errors of fractions that are let pass below 0 and above 1."""


@dataclasses.dataclass(frozen=True)
class Masks:
    """Pixels of segments."""

    array: xr.DataArray
    """Dims (segment, y, x) or (segment, row, column); a label image has one of them."""
    kind: Kind
    described: tuple[Any, ...]
    """Description of each segment."""
    numbers: tuple[int, ...]
    """Segment Numbers; values of the pixels of a label image."""

    @property
    def labels(self) -> list[str]:
        """Label of each segment."""
        return [_label_of(each) for each in self.described]

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """Data type of the stored pixels."""
        if self.kind == "BINARY":
            return np.dtype(np.bool_)
        is_wide = self.kind == "LABELMAP" and max(self.numbers) > np.iinfo(np.uint8).max
        return np.dtype(np.uint16 if is_wide else np.uint8)


def _label_of(described: Any) -> str:
    described = getattr(described, "item", described)
    if isinstance(described, Mapping):
        return str(described.get("label"))
    return str(getattr(described, "SegmentLabel", described))


def masks_of(segmentation: Any, segments: Any, kind: Kind) -> Masks:
    """Return the segments of an array or dataset.

    Raises
    ------
    TypeError
        When it is neither.
    PixelValueError
        When it has another data type than `kind` needs.
    ValueError
        When dims or descriptions don't fit.

    """
    import xarray as xr

    if isinstance(segmentation, xr.Dataset):
        segmentation = _of_dataset(segmentation, kind)
    if not isinstance(segmentation, xr.DataArray):
        raise TypeError(
            f"a segmentation is an xarray.DataArray or Dataset with coordinates in mm, not a"
            f" {type(segmentation).__name__}: xr.DataArray(values, coords={{'y': image.y, 'x':"
            " image.x}, dims=('y', 'x'))"
        )
    if segmentation.dtype.kind not in KINDS[kind]:
        raise PixelValueError(f"an array of {segmentation.dtype}; expected {EXPECTED[kind]}")
    array, dim = with_channels(segmentation, "segment")
    if kind == "LABELMAP":
        if array.sizes[dim] > 1:
            raise ValueError(
                f"{dim}: a label image has no dim of segments; the dims are"
                f" {dict(segmentation.sizes)}"
            )
        numbers, described = _of_labels(array, segments)
    else:
        described = _of_channels(array, dim, segments)
        numbers = tuple(range(1, len(described) + 1))
        if len(described) != array.sizes[dim]:
            raise ValueError(
                f"{len(described)} descriptions for {array.sizes[dim]} segments (dims"
                f" {dict(segmentation.sizes)}); expected one for each"
            )
    return Masks(array, kind, tuple(described), numbers)


def _of_dataset(dataset: xr.Dataset, kind: Kind) -> xr.DataArray:
    """Return the only variable with the data type of a kind, or several as segments."""
    import pandas as pd
    import xarray as xr

    found = {
        str(name): each
        for name, each in dataset.data_vars.items()
        if each.dtype.kind in KINDS[kind] and any(p <= set(map(str, each.dims)) for p in PLANES)
        and "sample" not in each.dims
    }  # fmt: skip
    if len(found) == 1:
        (array,) = found.values()
        return array
    flat = all(each.ndim == 2 for each in found.values())
    if not found or not flat or kind == "LABELMAP":
        types = {str(name): f"{each.dtype} {each.dims}" for name, each in dataset.data_vars.items()}
        raise ValueError(
            f"{len(found)} variables could be the segmentation, of {types}; expected"
            f" {EXPECTED[kind]}: one variable, or several of two dims; choose: dataset[name]"
        )
    names = pd.Index(list(found), name="segment")
    return xr.concat(
        [each.rename("segmentation") for each in found.values()],
        names, join="exact", coords="minimal", compat="override", combine_attrs="override",
    )  # fmt: skip


def with_channels(array: xr.DataArray, what: str) -> tuple[xr.DataArray, str]:
    """Return an array with one dim before those of its plane, and the name of that dim.

    Parameters
    ----------
    array : xarray.DataArray
        Array with y and x, or row and column, and a further dim at most.
    what : str
        Name of that dim if it has none: "segment" or "parameter".

    Raises
    ------
    ValueError
        When it has other dims.

    """
    dims = set(map(str, array.dims))
    plane = next((each for each in PLANES if each <= dims), None)
    if plane is None:
        raise ValueError(
            f"dims {dict(array.sizes)}: expected y and x in mm, or row and column as stored, and"
            f" one more for several {what}s"
        )
    # a dim of one pixel is no dim of channels, unless it is the only one
    others = [str(dim) for dim in array.dims if str(dim) not in plane]
    for dim in [dim for dim in others if array.sizes[dim] == 1]:
        if len(others) > 1:
            array = array.squeeze(dim)
            others.remove(dim)
    if len(others) > 1:
        raise ValueError(
            f"dims {dict(array.sizes)}: {others} are more than one dim of {what}s; write each"
            " focal plane by itself: array.isel(z=0)"
        )
    if "z" in others and array.sizes["z"] == 1:
        array, others = array.squeeze("z"), []
    elif "z" in others:
        raise ValueError(
            f"z: {array.sizes['z']} focal planes; write each by itself: array.isel(z=0)"
        )
    if not others:
        dim = what if what not in array.coords else f"_{what}"
        return array.expand_dims(dim), dim
    return array.transpose(others[0], ...), others[0]


def labels_along(array: xr.DataArray, dim: str, *, or_numbers: bool = False) -> list[str] | None:
    """Return the labels of channels by their coordinates; None where there are none.

    Parameters
    ----------
    array, dim
        Array with one dim of channels: see :func:`with_channels`.
    or_numbers : bool, default: False
        Whether integers are labels, too.

    """
    of_dim = dim.lstrip("_")
    for name in (f"{of_dim}_label", of_dim):
        if name in array.coords and array[name].dtype.kind in ("UTOiu" if or_numbers else "UTO"):
            values = np.atleast_1d(array[name].values)
            if len(values) == array.sizes[dim]:
                return [str(value) for value in values]
    return None


# -- descriptions ------------------------------------------------------------------------------


def _of_channels(array: xr.DataArray, dim: str, segments: Any) -> list[Any]:
    """Return the description of each channel; by its coordinates where none is given."""
    if segments is not None:
        if isinstance(segments, (str, Mapping)) or hasattr(segments, "SegmentLabel"):
            return [segments]
        return list(segments)
    labels = labels_along(array, dim)
    if labels is not None:
        return labels
    if array.sizes[dim] == 1:
        # what is computed from an image keeps its name
        return [str(array.name) if array.name and array.name != "image" else "region"]
    return [f"segment {number}" for number in range(1, array.sizes[dim] + 1)]


def _of_labels(array: xr.DataArray, segments: Any) -> tuple[tuple[int, ...], list[Any]]:
    """Return the numbers and descriptions of the labels of a label image."""
    if segments is None:
        values, names = array.attrs.get("flag_values"), array.attrs.get("segment_labels")
        names = names or str(array.attrs.get("flag_meanings", "")).split()
        if values is None or len(values) != len(names):
            raise ValueError(
                "segments is missing: a label image needs the meaning of each label, such as"
                ' segments={1: "stroma", 2: "tumour"}'
            )
        segments = dict(zip(values, names, strict=True))
    if isinstance(segments, Mapping) and "label" not in segments:
        given = dict(segments)
    elif isinstance(segments, Sequence) and not isinstance(segments, str):
        given = dict(enumerate(segments, 1))
    else:
        given = {1: segments}
    background = given.pop(0, None)  # a segment has a number from one
    if background is not None and _label_of(background).lower() not in ("background", "0"):
        raise ValueError(f"label 0 is the background, not {_label_of(background)!r}; number from 1")
    numbers = tuple(sorted(given))
    if not numbers or not all(
        isinstance(n, (int, np.integer)) and 1 <= n <= LARGEST_LABEL for n in numbers
    ):
        raise ValueError(
            f"labels {list(given)}: expected integers from 1 to {LARGEST_LABEL}, one at least"
        )
    return tuple(map(int, numbers)), [given[number] for number in numbers]


# -- values ------------------------------------------------------------------------------------


def values_of(masks: Masks, placed: Placed) -> Any:
    """Return what checks and converts the values of a block."""
    if masks.kind == "BINARY":
        return _halves if placed.in_fractions else _bits
    if masks.kind == "FRACTIONAL":
        return _fractions
    return _Labels(masks.numbers, masks.stored_dtype)


def _bits(block: NDArray[Any], where: str) -> NDArray[Any]:
    if block.dtype.kind != "b":
        raise PixelValueError(f"{where}: computed values are {block.dtype}; expected bool")
    return block


def _halves(block: NDArray[Any], where: str) -> NDArray[Any]:
    """Return where at least half of what a pixel covers is True."""
    return block >= HALF


HALF = 128
"""Half of 255, which fractions are rounded to."""


def _fractions(block: NDArray[Any], where: str) -> NDArray[Any]:
    if block.size:
        low, high = block.min(), block.max()
        if not (low >= -BEYOND and high <= 1 + BEYOND):
            found = "NaN" if np.isnan(low) or np.isnan(high) else f"{low:g} to {high:g}"
            raise PixelValueError(
                f"{where}: fractions are {found}; expected 0 to 1: array.fillna(0).clip(0, 1)"
            )
    scaled = block * block.dtype.type(STEPS)
    return np.clip(np.rint(scaled, out=scaled), 0, STEPS, out=scaled).astype(np.uint8)


@dataclasses.dataclass(frozen=True, slots=True)
class _Labels:
    """Checks that each label has a segment."""

    numbers: tuple[int, ...]
    dtype: np.dtype[Any]

    def __call__(self, block: NDArray[Any], where: str) -> NDArray[Any]:
        if not block.size:
            return block.astype(self.dtype)
        most = self.numbers[-1]
        low, high = int(block.min()), int(block.max())
        if low >= 0 and high <= most:
            if len(self.numbers) == most:  # all from one on
                return block.astype(self.dtype, copy=False)
            known = np.zeros(most + 1, np.bool_)
            known[[0, *self.numbers]] = True
            if known[block].all():
                return block.astype(self.dtype, copy=False)
        unknown = sorted(set(np.unique(block).tolist()) - {0, *self.numbers})
        shown = ", ".join(map(str, unknown[:10])) + (", ..." if len(unknown) > 10 else "")
        raise PixelValueError(
            f"{where}: labels {shown} have no segment; described are {list(self.numbers)[:20]}, and"
            " 0 is the background"
        )
