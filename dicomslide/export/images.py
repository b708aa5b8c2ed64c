"""Images and label images of a slide's tree, with the axes of OME-Zarr and SpatialData."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from dicomslide.errors import MetadataWarning
from dicomslide.labelled.coordinates import step_of
from dicomslide.labelled.variables import is_mask_of
from dicomslide.process.warn import warn
from dicomslide.readers.arrays import dask_array
from dicomslide.readers.chunks import frame_lengths

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

    from dicomslide.readers.stacked_reader import Data, StackedReader

__all__ = ["ExportImage", "ExportLevel", "Raster", "blocks", "images_of", "shard_data"]

MAX_CHUNK = 1024
"""Upper bound in pixels on the edge of a chunk; for images of one large frame."""
DEFAULT_CHUNK = 512
"""Edge of a chunk in pixels, if the size of frames is unknown."""

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
        Pixels of a shard along the axis, rounded to whole chunks, at most those of the axis.

    Returns
    -------
    tuple of int
        Pixels of a chunk and of a shard.

    """
    chunk = min(edge, MAX_CHUNK, length)
    return chunk, chunk * min(max(1, round(shard_size / chunk)), math.ceil(length / chunk))


def shard_data(shard_size: int) -> Data:
    """Return a function that makes a dask array of a reader, with shards as chunks."""

    def make(reader: StackedReader, dims: Sequence[str]) -> Any:
        frames = reader.unit_lengths()
        plane = slice(sum(reader.kept[:2]), sum(reader.kept[:2]) + 2)
        shards = [
            frame_lengths(length, blocks(max(edges), length, shard_size)[1])
            for edges, length in zip(frames[plane], reader.plane_shape, strict=True)
        ]
        return dask_array(reader, (*frames[: plane.start], *shards, *frames[plane.stop :]))

    return make


@dataclasses.dataclass(frozen=True, slots=True)
class Raster:
    """Spacing and origin of a level along its own axes.

    The axis y of the raster is the direction of increasing row index, x that of increasing column
    index; both have the origin of the slide coordinate system. For an upright raster they are −y
    and x of the slide.
    """

    spacing: tuple[float, float]
    """(between rows, between columns) in mm, or in pixels of the base level."""
    start: tuple[float, float]
    """(y, x) of the centre of the first pixel, in the same unit."""
    to_slide: tuple[tuple[float, float], tuple[float, float]] | None
    """2 × 2 matrix from (y, x) of the raster to (x, y) of the slide; None if the unit is pixels."""

    @classmethod
    def of(cls, array: xr.DataArray, base: xr.DataArray) -> Raster:
        """Return the raster of a level from its coordinates, or from its attribute ``affine``.

        Raises
        ------
        ValueError
            When coordinates aren't evenly spaced, x doesn't ascend, or y doesn't descend.

        """
        dims = _plane_dims(array)
        (y, step_y), (x, step_x) = (_first_and_step(array, dim) for dim in dims)
        if dims == ("y", "x"):
            return cls((step_y, step_x), (-y, x), ((0.0, 1.0), (-1.0, 0.0)))
        if "affine" in array.attrs:
            affine = np.array(array.attrs["affine"], dtype=float)
            spacing = np.hypot(*affine[:, :2])
            axes = affine[:, :2] / spacing  # unit vectors of increasing row and column index
            start = axes.T @ affine[:, 2] + spacing * (y, x)
            (xy, xx), (yy, yx) = axes.tolist()
            spacing *= (step_y, step_x)
            return cls(tuple(spacing.tolist()), tuple(start.tolist()), ((xy, xx), (yy, yx)))
        factors = [base.sizes[dim] / array.sizes[dim] for dim in dims]
        start_y, start_x = ((factor - 1) / 2 for factor in factors)
        return cls((factors[0], factors[1]), (start_y, start_x), None)


def _first_and_step(array: xr.DataArray, dim: str) -> tuple[float, float]:
    """Return a dim's first coordinate, and the spacing along the axis of the raster."""
    if not array.sizes[dim]:
        raise ValueError(f"{array.name}: {dim} has no pixels; expected one or more")
    first = float(array[dim][0])
    counts = dim in ("row", "column") and (array.sizes[dim] == 1 or dim not in array.coords)
    upwards = -1 if dim == "y" else 1
    try:
        step = 1.0 if counts else upwards * step_of(array, dim)
        if step > 0:
            return first, step
        reason = ""
    except ValueError as error:
        reason = f": {error}"
    raise ValueError(
        f"{array.name}: {dim} must {'descend' if dim == 'y' else 'ascend'} in even steps{reason}"
    )


@dataclasses.dataclass(frozen=True, slots=True)
class ExportLevel:
    """Pixels of an image at one resolution."""

    number: int
    """Of the node ``level_N``."""
    array: xr.DataArray
    """Lazy; dims (c, z, y, x), of which c and z may be absent."""
    frame: tuple[int, int]
    """(height, width) of a frame in pixels, along y and x of the array."""
    raster: Raster
    """Spacing and origin."""


@dataclasses.dataclass(frozen=True, slots=True)
class ExportImage:
    """An image or label image at one or more resolutions."""

    name: str
    """Name of the variable; followed by the segment number for the label image of a segment."""
    variable: str
    """Name of the arrays of its levels."""
    levels: tuple[ExportLevel, ...]
    """From the largest to the smallest."""
    labels: dict[int, dict[str, str]] | None = None
    """Properties (label, category, type, algorithm, color) of each label value; None if it isn't a
    label image."""
    samples: str = ""
    """"r", "g" or "b" for each channel, in one string; empty if channels aren't colours."""
    own_grid: bool = False
    """Whether the image is of a node of its own, beside the levels of the tree."""

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the axes."""
        return tuple(map(str, self.levels[0].array.dims))

    @property
    def in_color(self) -> bool:
        """Whether channels are red, green and blue of each optical path in turn."""
        return self.samples.startswith("rgb")


@dataclasses.dataclass(frozen=True, slots=True)
class _Variable:
    """A variable of a node of the tree."""

    number: int
    """Of the node ``level_N``; 0 for another node."""
    array: xr.DataArray
    """Lazy."""
    frame: tuple[int, int]
    """(height, width) of a frame in pixels."""
    own_grid: bool
    """Whether it is of another node than ``level_N``."""


def images_of(tree: xr.DataTree, shard_size: int) -> tuple[ExportImage, ...]:
    """Return the images of a tree, beginning with ``image`` of its levels.

    Parameters
    ----------
    tree : xarray.DataTree
        Tree of :meth:`Slide.to_datatree`, or one derived from it.
    shard_size : int
        Edge in pixels of the chunks of variables that aren't dask arrays.

    Returns
    -------
    tuple of ExportImage
        A segmentation of type bool gives an image per segment.

    Raises
    ------
    ValueError
        When no node has an image, or an image has more dims than c, z, y, x.

    """
    images: dict[str, list[_Variable]] = {}
    # levels first: a node with its own grid may have the name of a variable of the levels
    for name, node in sorted(tree.children.items(), key=lambda child: not _LEVEL.match(child[0])):
        level = _LEVEL.match(name)
        arrays = {
            str(variable): array
            for variable, array in node.to_dataset().data_vars.items()
            if _is_image(array) and not is_mask_of(str(variable), node.data_vars)
        }
        for variable, array in arrays.items():
            image = variable
            if not level:
                image = name if len(arrays) == 1 else f"{name}_{variable}"
                image += "_apart" if image in ("image", *images) else ""
            number = int(level[1]) if level else 0
            found = _Variable(number, *_chunked(array, shard_size), own_grid=not level)
            images.setdefault(image, []).append(found)
    if not images:
        raise ValueError(
            "the tree has no image; expected nodes such as level_0 with variables such as image, as"
            " those of Slide.to_datatree()"
        )
    if "labels" in images:
        raise ValueError(
            "an image is named 'labels', which is the group of label images in OME-Zarr: rename it"
        )
    deeper = [
        node.path
        for node in tree.descendants
        if node.parent is not tree and any(map(_is_image, node.data_vars.values()))
    ]
    if deeper:
        warn(
            f"images of nodes below the first level of the tree are left out: {', '.join(deeper)}",
            MetadataWarning,
        )
    found_images = [
        image
        for name, levels in images.items()
        for image in _split(name, sorted(levels, key=lambda found: found.number))
    ]
    return tuple(sorted(found_images, key=lambda image: image.name != "image"))


def _plane_dims(array: xr.DataArray) -> tuple[str, str]:
    return ("y", "x") if "y" in array.dims else ("row", "column")


def _is_image(array: xr.DataArray) -> bool:
    return set(_plane_dims(array)) <= set(array.dims)


def _chunked(array: xr.DataArray, shard_size: int) -> tuple[xr.DataArray, tuple[int, int]]:
    """Return an array as a dask array, and the (height, width) of its frames."""
    dims = _plane_dims(array)
    preferred = array.encoding.get("preferred_chunks", {})
    height, width = (int(np.max(preferred.get(dim, DEFAULT_CHUNK))) for dim in dims)
    if array.chunks is None:
        edges = zip(dims, (height, width), strict=True)
        array = array.chunk({d: blocks(edge, array.sizes[d], shard_size)[1] for d, edge in edges})
    return array, (height, width)


def _split(name: str, levels: list[_Variable]) -> Iterable[ExportImage]:
    """Yield the image or label image of a variable; for segments, one label image each.

    Segments may overlap, which one label image can't represent.
    """
    first = levels[0].array
    if first.dtype != np.bool_:
        yield _image(name, levels, _flags(first.attrs))
        return
    dim = _lead_dim(first) or str(first.name).replace("segmentation", "segment", 1)
    if dim not in {*first.dims, *first.coords}:
        yield _image(name, [_labelled(found, 1) for found in levels], {1: {}})
        return
    segments: dict[str, list[_Variable]] = {}
    for found in levels:
        for index, identifier in enumerate(np.atleast_1d(found.array[dim].values)):
            array = found.array.isel({dim: index}) if dim in found.array.dims else found.array
            segment = dataclasses.replace(found, array=array)
            segments.setdefault(str(identifier), []).append(segment)
    are_numbers = all(each.isdecimal() and int(each) for each in segments)  # Segment Number
    for position, (identifier, of_segment) in enumerate(segments.items(), 1):
        number = int(identifier) if are_numbers else position
        coords = of_segment[0].array.coords
        properties = {} if are_numbers else {"label": identifier}
        properties |= {
            key: str(coords[f"{dim}_{key}"].item())
            for key in ("label", "category", "type", "algorithm", "color")
            if f"{dim}_{key}" in coords and coords[f"{dim}_{key}"].item() != ""
        }
        labelled = [_labelled(found, number) for found in of_segment]
        yield _image(f"{name}_segment_{number}", labelled, {number: properties})


def _labelled(found: _Variable, number: int) -> _Variable:
    """Return a mask as a label image whose True pixels have the value `number`."""
    dtype = np.min_scalar_type(number)
    array = found.array.astype(dtype) * dtype.type(number)
    return dataclasses.replace(found, array=array.assign_attrs(found.array.attrs))


def _flags(attrs: dict[Any, Any]) -> dict[int, dict[str, str]] | None:
    """Return what is known of each value of a label map; None for other images."""
    if "flag_values" not in attrs:
        return {} if attrs.get("segmentation_type") == "LABELMAP" else None
    names = attrs.get("segment_labels") or str(attrs.get("flag_meanings", "")).split()
    unknown = [""] * len(names)
    types, colors = (attrs.get(f"segment_{what}") or unknown for what in ("types", "colors"))
    return {
        int(value): {"label": label}
        | ({"type": kind} if kind else {})
        | ({"color": color} if color else {})
        for value, label, kind, color in zip(
            attrs["flag_values"], names, types, colors, strict=True
        )
    }


def _image(
    name: str,
    levels: Sequence[_Variable],
    labels: dict[int, dict[str, str]] | None,
) -> ExportImage:
    """Return levels as one image, without those that differ in channels, planes or data type."""
    base = levels[0].array
    kept: list[ExportLevel] = []
    for found in levels:
        array = _with_axes(found.array, is_label=labels is not None)
        if kept and _stack(array) != _stack(kept[0].array):
            warn(
                f"{name}: level {found.number} is left out: it has {_stack(array)}; expected"
                f" {_stack(kept[0].array)}, as the largest level",
                MetadataWarning,
            )
            continue
        raster = Raster.of(found.array, base)
        kept.append(ExportLevel(found.number, array, found.frame, raster))
    channels = kept[0].array.sizes.get("c", 0)
    samples = _samples(base)
    samples *= channels // max(1, len(samples))
    own_grid = levels[0].own_grid
    return ExportImage(name, str(base.name), tuple(kept), labels, samples, own_grid)


def _samples(array: xr.DataArray) -> str:
    """Return "r", "g" or "b" for each sample, in one string; empty if they aren't colours."""
    dim = "sample" if "sample" in array.dims else "c"
    if dim not in array.coords:
        return "rgb" if array.sizes.get("sample") == 3 else ""
    names = "".join(map(str, np.atleast_1d(array[dim].values)))
    return names if set(names) <= set("rgb") else ""


def _stack(array: xr.DataArray) -> dict[Hashable, Any]:
    """Return sizes other than y and x, and the data type, which all levels must share."""
    sizes = {dim: size for dim, size in array.sizes.items() if dim not in ("y", "x")}
    return sizes | {"dtype": str(array.dtype)}


def _lead_dim(array: xr.DataArray) -> str | None:
    """Return the dim of the channels, segments or parameters."""
    others = {"z", "sample", *_plane_dims(array)}
    found = [str(dim) for dim in array.dims if dim not in others]
    if len(found) > 1:
        raise ValueError(
            f"{array.name}: has the dims {', '.join(found)}; expected one dim of channels besides"
            " z, y, x and sample"
        )
    return found[0] if found else None


def _with_axes(array: xr.DataArray, *, is_label: bool) -> xr.DataArray:
    """Return an array with the axes c, z, y, x; without z if its size is one.

    The samples red, green and blue of each optical path are channels.
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
    """Return an array whose optical paths in colour are three channels each."""
    array = array.transpose(lead, "sample", ...)
    names = [f"{path} {sample}" for path in array[lead].values for sample in "rgb"]
    coords = {
        name: coord for name, coord in array.coords.items() if not {lead, "sample"} & {*coord.dims}
    }
    dims = ("c", *array.dims[2:])
    data = array.data.reshape((-1, *array.shape[2:]))
    return xr.DataArray(data, {**coords, "c": names}, dims, array.name, array.attrs)
