"""The images and label images that a slide's tree holds, with the axes that others expect."""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from dicomslide.errors import MetadataWarning
from dicomslide.stack import dask_array

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

    from dicomslide.stack import Data, StackedReader

__all__ = ["ExportImage", "ExportLevel", "Raster", "blocks", "images_of", "shard_data"]

LARGEST_CHUNK = 1024
"""Pixels along the edge of a chunk; frames are smaller, but a few images are one frame."""
USUAL_CHUNK = 512
"""Likewise, where nothing says how large the frames are."""

_LEVEL = re.compile(r"level_(\d+)$")


def blocks(edge: int, length: int, shard_size: int) -> tuple[int, int]:
    """Return the lengths of a chunk and of a shard along an axis.

    Parameters
    ----------
    edge : int
        Pixels of a frame along the axis.
    length : int
        Pixels of the axis.
    shard_size : int
        Pixels that a shard comes near to: it is whole chunks, and no more than the axis has.

    """
    chunk = min(edge, LARGEST_CHUNK, length)
    return chunk, chunk * min(max(1, round(shard_size / chunk)), math.ceil(length / chunk))


def shard_data(shard_size: int) -> Data:
    """Return what makes a dask array of a reader whose chunks are shards."""

    def make(reader: StackedReader) -> Any:
        frames = reader.chunk_lengths()
        plane = slice(sum(reader.kept[:2]), sum(reader.kept[:2]) + 2)
        shards = [
            _regular(length, blocks(max(edges), length, shard_size)[1])
            for edges, length in zip(frames[plane], reader.plane_shape, strict=True)
        ]
        return dask_array(reader, (*frames[: plane.start], *shards, *frames[plane.stop :]))

    return make


def _regular(length: int, step: int) -> tuple[int, ...]:
    whole, rest = divmod(length, step)
    return (step,) * whole + ((rest,) if rest else ())


@dataclasses.dataclass(frozen=True, slots=True)
class Raster:
    """Where the pixels of a level lie, along the axes of its own raster.

    Both axes begin at the origin of the slide coordinate system: the x of the raster runs with its
    columns, its y with its rows. Of an upright raster they are x and −y of the slide.
    """

    spacing: tuple[float, float]
    """(between rows, between columns): in mm, or in pixels of the base level."""
    start: tuple[float, float]
    """(y, x) of the centre of the first pixel, likewise."""
    to_slide: tuple[tuple[float, float], tuple[float, float]] | None
    """(x, y) of the slide are this matrix by (y, x) of the raster, in mm; None for pixels."""

    @classmethod
    def of(cls, array: xr.DataArray, base: xr.DataArray) -> Raster:
        """Return the raster of a level, by its coordinates or its affine."""
        y_dim, x_dim = _plane_dims(array)
        y, x = (np.asarray(array[dim], dtype=float) for dim in (y_dim, x_dim))
        if y_dim == "y":
            spacing = _step(array, "y"), _step(array, "x")
            return cls(spacing, (-float(y[0]), float(x[0])), ((0.0, 1.0), (-1.0, 0.0)))
        if "affine" in array.attrs:
            affine = np.array(array.attrs["affine"], dtype=float)
            steps = np.hypot(*affine[:, :2])
            axes = affine[:, :2] / steps  # unit vectors along rows' and columns' indices
            start = axes.T @ affine[:, 2] + steps * (y[0], x[0])
            (xy, xx), (yy, yx) = axes.tolist()
            return cls(tuple(steps.tolist()), tuple(start.tolist()), ((xy, xx), (yy, yx)))
        factors = [base.sizes[dim] / array.sizes[dim] for dim in (y_dim, x_dim)]
        start_y, start_x = ((factor - 1) / 2 for factor in factors)
        return cls((factors[0], factors[1]), (start_y, start_x), None)


def _step(array: xr.DataArray, dim: str) -> float:
    """Return the distance of pixels in mm: as the header has it, unless pixels were left out."""
    values = np.asarray(array[dim], dtype=float)
    said = float(array[dim].attrs.get("pixel_size", math.nan))
    if len(values) < 2:
        return said if math.isfinite(said) else 1.0
    found = abs(float(values[-1] - values[0])) / (len(values) - 1)
    return said if math.isclose(said, found, rel_tol=1e-6) else found


@dataclasses.dataclass(frozen=True, slots=True)
class ExportLevel:
    """Pixels of an image at one resolution."""

    number: int
    array: xr.DataArray
    """Lazy; dims (c, z, y, x), where there are c and z."""
    frame: tuple[int, int]
    """(height, width) of a frame as it lies in the array."""
    raster: Raster


@dataclasses.dataclass(frozen=True, slots=True)
class ExportImage:
    """An image, or label image, at one or more resolutions."""

    name: str
    """That of the variable; label images of a segment have its number, too."""
    variable: str
    """That of the arrays."""
    levels: tuple[ExportLevel, ...]
    """From the largest to the smallest."""
    labels: dict[int, dict[str, str]] | None = None
    """What each value but 0 means; None where pixels aren't labels."""
    in_color: bool = False
    """Whether each three channels are the red, green and blue of an optical path."""

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the axes."""
        return tuple(map(str, self.levels[0].array.dims))


@dataclasses.dataclass(frozen=True, slots=True)
class _Found:
    """A variable of a node."""

    number: int
    array: xr.DataArray
    frame: tuple[int, int]


def images_of(tree: xr.DataTree, shard_size: int) -> tuple[ExportImage, ...]:
    """Return the images of a tree: that of its levels first, by name ``image``.

    Parameters
    ----------
    tree : xarray.DataTree
        As :meth:`Slide.to_datatree` returns it, whatever was done with it since.
    shard_size : int
        Pixels of a chunk of what isn't a dask array yet.

    Raises
    ------
    ValueError
        When no node has an image.

    """
    by_name: dict[str, list[_Found]] = {}
    apart: dict[str, list[_Found]] = {}
    for name, node in tree.children.items():
        level = _LEVEL.match(name)
        for variable, array in node.to_dataset().data_vars.items():
            if not _is_image(array):
                continue
            found = _Found(int(level[1]) if level else 0, *_chunked(array, shard_size))
            (by_name if level else apart).setdefault(str(variable) if level else name, []).append(
                found
            )
    if not by_name and not apart:
        raise ValueError(
            "there is no image in this tree; expected nodes such as level_0, with variables such"
            " as image, as Slide.to_datatree() has them"
        )
    images = [
        image
        for name, levels in [*by_name.items(), *apart.items()]
        for image in _split(name, sorted(levels, key=lambda found: found.number))
    ]
    return tuple(sorted(images, key=lambda image: image.name != "image"))


def _plane_dims(array: xr.DataArray) -> tuple[str, str]:
    return ("y", "x") if "y" in array.dims else ("row", "column")


def _is_image(array: xr.DataArray) -> bool:
    return set(_plane_dims(array)) <= set(array.dims)


def _chunked(array: xr.DataArray, shard_size: int) -> tuple[xr.DataArray, tuple[int, int]]:
    """Return an array as a lazy one, and the size of its frames."""
    dims = _plane_dims(array)
    preferred = array.encoding.get("preferred_chunks", {})
    height, width = (int(np.max(preferred.get(dim, USUAL_CHUNK))) for dim in dims)
    if array.chunks is None:
        edges = zip(dims, (height, width), strict=True)
        array = array.chunk({d: blocks(edge, array.sizes[d], shard_size)[1] for d, edge in edges})
    return array, (height, width)


def _split(name: str, levels: list[_Found]) -> Iterable[ExportImage]:
    """Return what a variable is: an image, a label image, or a label image a segment.

    Segments may share pixels, which one label image can't show.
    """
    first = levels[0].array
    if first.dtype != np.bool_:
        yield _image(name, levels, _flags(first.attrs))
        return
    dim = _lead_dim(first) or str(first.name).replace("segmentation", "segment", 1)
    segments: dict[int, list[_Found]] = {}
    for found in levels:
        numbers = np.atleast_1d(found.array[dim].values) if dim in found.array.coords else ["1"]
        for index, number in enumerate(map(int, numbers)):
            array = found.array.isel({dim: index}) if dim in found.array.dims else found.array
            dtype = np.min_scalar_type(number)
            array = (array.astype(dtype) * dtype.type(number)).assign_attrs(found.array.attrs)
            kept = dataclasses.replace(found, array=array)
            segments.setdefault(number, []).append(kept)
    for number, of_segment in segments.items():
        coords = of_segment[0].array.coords
        properties = {
            key: str(coords[f"{dim}_{key}"].item())
            for key in ("label", "category", "type")
            if f"{dim}_{key}" in coords
        }
        yield _image(f"{name}_segment_{number}", of_segment, {number: properties}, name)


def _flags(attrs: dict[Any, Any]) -> dict[int, dict[str, str]] | None:
    """Return what the values of a label map mean; None for any other image."""
    if "flag_values" not in attrs:
        return None
    names = attrs.get("segment_labels") or str(attrs.get("flag_meanings", "")).split()
    types = attrs.get("segment_types") or [""] * len(names)
    return {
        int(value): {"label": label} | ({"type": kind} if kind else {})
        for value, label, kind in zip(attrs["flag_values"], names, types, strict=True)
    }


def _image(
    name: str,
    levels: Sequence[_Found],
    labels: dict[int, dict[str, str]] | None,
    variable: str | None = None,
) -> ExportImage:
    """Return levels as one image, without those that don't fit."""
    base = levels[0].array
    kept: list[ExportLevel] = []
    for found in levels:
        array = _with_axes(found.array, is_label=labels is not None)
        if kept and _stack(array) != _stack(kept[0].array):
            warnings.warn(
                f"{name}: level {found.number} is left out: it has {_stack(array)}, the largest"
                f" level {_stack(kept[0].array)}",
                MetadataWarning,
                stacklevel=4,
            )
            continue
        raster = Raster.of(found.array, base)
        kept.append(ExportLevel(found.number, array, found.frame, raster))
    in_color = base.sizes.get("sample") == 3
    return ExportImage(name, variable or str(base.name), tuple(kept), labels, in_color)


def _stack(array: xr.DataArray) -> dict[Hashable, Any]:
    """Return what the levels of an image must have in common."""
    sizes = {dim: size for dim, size in array.sizes.items() if dim not in ("y", "x")}
    return sizes | {"dtype": str(array.dtype)}


def _lead_dim(array: xr.DataArray) -> str | None:
    """Return the dim of the channels, segments or parameters."""
    others = {"z", "sample", *_plane_dims(array)}
    return next((str(dim) for dim in array.dims if dim not in others), None)


def _with_axes(array: xr.DataArray, *, is_label: bool) -> xr.DataArray:
    """Return an array with the axes c, z, y, x; without z where it is of size one.

    Samples are channels, red, green and blue, of each optical path.
    """
    array = array.isel({dim: 0 for dim in ("z", "sample") if array.sizes.get(dim) == 1})
    lead = _lead_dim(array)
    if lead is not None and array.sizes[lead] == 1 and ("sample" in array.dims or is_label):
        array, lead = array.isel({lead: 0}), None
    if "sample" in array.dims and lead is not None:
        array = _joined(array, lead)
    elif "sample" in array.dims or lead is not None:
        array = array.rename({lead or "sample": "c"})
    elif not is_label:
        array = array.expand_dims("c")
    if "row" in array.dims:
        array = array.rename(row="y", column="x")
    return array.transpose(*(dim for dim in ("c", "z", "y", "x") if dim in array.dims))


def _joined(array: xr.DataArray, lead: str) -> xr.DataArray:
    """Return optical paths in colour as three channels each."""
    array = array.transpose(lead, "sample", ...)
    names = [f"{path} {sample}" for path in array[lead].values for sample in "rgb"]
    coords = {
        name: coord for name, coord in array.coords.items() if not {lead, "sample"} & {*coord.dims}
    }
    dims = ("c", *array.dims[2:])
    data = array.data.reshape((-1, *array.shape[2:]))
    return xr.DataArray(data, {**coords, "c": names}, dims, array.name, array.attrs)
