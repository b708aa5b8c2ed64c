"""Instances, such as cells, that a model finds tile by tile, as one label map of the slide."""

from __future__ import annotations

import dataclasses
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.recipes.grid import coords_of
from dicomslide.recipes.tile_checks import checked_image, checked_integer
from dicomslide.recipes.tiles import image_of, map_tiles

if TYPE_CHECKING:
    from collections.abc import Callable

    import xarray as xr
    from numpy.typing import NDArray

    from dicomslide.header.resolution import Spacing
    from dicomslide.slide.slide import Slide

__all__ = ["map_instances"]

LABEL_MAP = {"long_name": "instance", "segmentation_type": "LABELMAP"}
"""Attributes of the result."""
FAST = 1
"""Level of compression of label maps that wait to be numbered."""


def map_instances(
    image: xr.DataArray | Slide,
    model: Callable[[NDArray[Any]], Any],
    *,
    halo: int,
    tile: int = 1024,
    min_overlap: float = 0.5,
    where: xr.DataArray | None = None,
    spacing: Spacing | None = None,
    level: int | None = None,
    batch: int | None = None,
) -> xr.DataArray:
    """Apply a model that finds instances to a slide, and stitch them across tiles.

    Neighbouring tiles overlap by twice the halo. Instances of two tiles are one where their pixels
    in that overlap agree; an instance may cross any number of tiles. Each pixel is that of the tile
    in which it lies without its halo.

    Parameters
    ----------
    image, where, spacing, level
        See :func:`map_tiles`.
    model : callable
        Takes a tile with its halo, a NumPy array with the dims of the image; or, with a `batch`,
        several along a first dim. Returns a label map ``(y, x)`` of integers, halo included, with 0
        for the background; with a `batch`, the same with a first dim of tiles.
    halo : int
        Pixels to add on each side, one or more: best the diameter of an instance, or more.
    tile : int, default: 1024
        Pixels along the edges of a tile, without its halo.
    min_overlap : float, default: 0.5
        Intersection over union, in the overlap of two tiles, from which instances are one.
    batch : int, optional
        Most tiles of a call of the model.

    Returns
    -------
    xarray.DataArray
        int32, dims (y, x), with the coordinates of the image: 0, and the numbers of instances from
        1 on, unique over the slide, in the order of tiles, with gaps. Lazy; a chunk for each tile.
        Label maps of tiles are kept, compressed, until those of all tiles are there. The attribute
        ``segmentation_type``, ``"LABELMAP"``, makes it a label image in
        :func:`dicomslide.to_ome_zarr`.

    Raises
    ------
    TypeError, ValueError, GridError, MemoryLimitError
        See :func:`map_tiles`. On computation also when the model returns other data than integers
        of zero and more.

    Examples
    --------
    >>> cells = map_instances(slide, model, spacing="0.5 um", halo=64)
    >>> cells.to_zarr("cells.zarr")

    """
    import dask.array as da
    import xarray as xr
    from dask.delayed import Delayed, delayed

    halo = checked_integer(halo, "halo")
    tile = checked_integer(tile, "tile")
    if not 0 < min_overlap <= 1:
        raise ValueError(f"min_overlap {min_overlap}: expected a number above 0, up to 1")
    pixels = image_of(checked_image(image), spacing, level)
    wrapped: Any = _Compressing(model, halo, batch is not None)
    if isinstance(model, Delayed):
        wrapped = delayed(_Compressing)(model, halo, batch is not None)
    elif hasattr(model, "key"):
        raise TypeError("a model that lies with the workers can't be wrapped: pass it as Delayed")
    found = map_tiles(
        pixels, wrapped, halo=halo, tile=tile, factor=None, where=where, dtype=object, batch=batch
    )
    parts = found.data.rechunk((1, 1)).to_delayed()
    down, across = parts.shape
    match = delayed(_matches)
    matches = []
    for row, column in np.ndindex(down, across):
        for axis, (below, right) in enumerate(((row + 1, column), (row, column + 1))):
            if below < down and right < across:
                pair = row * across + column, below * across + right
                several = parts[row, column], parts[below, right]
                matches.append(match(*several, pair, axis, halo, min_overlap))
    counts = [delayed(_count)(part) for part in parts.ravel()]
    numbers = delayed(_numbered)(counts, matches)
    size = pixels.sizes["y"], pixels.sizes["x"]
    core = delayed(_core)
    blocks = []
    for row in range(down):
        rows = min(tile, size[0] - row * tile)
        line = []
        for column in range(across):
            shape = rows, min(tile, size[1] - column * tile)
            made = core(parts[row, column], numbers, row * across + column, halo, shape)
            line.append(da.from_delayed(made, shape, np.int32))  # type: ignore[no-untyped-call]
        blocks.append(line)
    data = da.block(blocks)  # type: ignore[no-untyped-call]
    found = xr.DataArray(data, dims=("y", "x"), name="instances", attrs=LABEL_MAP)
    return found.assign_coords(coords_of(pixels, ("y", "x")))


@dataclasses.dataclass(frozen=True, slots=True)
class _TileLabels:
    """Label map of a tile with its halo: numbers from 1 on."""

    data: bytes
    """int32, compressed."""
    shape: tuple[int, int]
    count: int
    """Number of instances."""

    def pixels(self) -> NDArray[np.int32]:
        return np.frombuffer(zlib.decompress(self.data), np.int32).reshape(self.shape)


class _Compressing:
    """Model whose label maps become objects: :func:`map_tiles` would cut their halo off."""

    def __init__(self, model: Callable[[NDArray[Any]], Any], halo: int, is_batch: bool) -> None:
        self.model, self.halo, self.is_batch = model, halo, is_batch

    def __call__(self, pixels: NDArray[Any]) -> NDArray[Any]:
        returned = np.asarray(self.model(pixels))
        if self.is_batch and (returned.ndim != 3 or len(returned) != len(pixels)):
            raise ValueError(
                f"the model returned an array of shape {returned.shape} for {len(pixels)} tiles;"
                f" expected ({len(pixels)}, y, x)"
            )
        maps = list(returned) if self.is_batch else [returned]
        found = np.empty(len(maps), object)
        for at, labels in enumerate(maps):
            found[at] = self._compressed(labels, pixels.shape)
        return found if self.is_batch else found.reshape(())

    def _compressed(self, labels: NDArray[Any], given: tuple[int, ...]) -> _TileLabels:
        if labels.dtype.kind not in "uib" or labels.ndim != 2 or labels.min(initial=0) < 0:
            raise ValueError(
                f"the model returned {labels.dtype} of shape {labels.shape}; expected a label map"
                " (y, x) of integers, with 0 for the background and positive numbers"
            )
        if any(length not in given for length in labels.shape):
            raise ValueError(
                f"the model returned a label map of shape {labels.shape} for pixels of shape"
                f" {given}; expected that of the tile with its halo"
            )
        there, which = np.unique(labels, return_inverse=True)
        numbers = np.cumsum(there != 0)
        numbers[there == 0] = 0
        numbered = numbers[which].astype(np.int32).reshape(labels.shape)
        return _TileLabels(
            zlib.compress(numbered.tobytes(), FAST), labels.shape, int(np.count_nonzero(there))
        )


def _count(box: NDArray[Any]) -> int:
    """Return the number of instances of a tile; 0 where it wasn't processed."""
    part = box.item()
    return part.count if isinstance(part, _TileLabels) else 0


def _matches(
    first: NDArray[Any],
    second: NDArray[Any],
    tiles: tuple[int, int],
    axis: int,
    halo: int,
    min_overlap: float,
) -> NDArray[np.int64]:
    """Return which instances of two neighbouring tiles are one.

    Returns
    -------
    numpy.ndarray
        Shape (matches, 4): tile and number of one instance, tile and number of the other.

    """
    if not _count(first) or not _count(second):
        return np.zeros((0, 4), np.int64)
    here, there = first.item().pixels(), second.item().pixels()
    here = here.take(range(here.shape[axis] - 2 * halo, here.shape[axis]), axis)
    there = there.take(range(2 * halo), axis)
    both = (here > 0) & (there > 0)
    pairs, common = np.unique(
        np.stack([here[both], there[both]], axis=1), axis=0, return_counts=True
    )
    sizes = np.bincount(here.ravel()), np.bincount(there.ravel())
    union = sizes[0][pairs[:, 0]] + sizes[1][pairs[:, 1]] - common
    pairs = pairs[common >= min_overlap * union]
    of_tiles = np.broadcast_to(tiles, pairs.shape)
    return np.stack([of_tiles[:, 0], pairs[:, 0], of_tiles[:, 1], pairs[:, 1]], axis=1)


@dataclasses.dataclass(frozen=True, slots=True)
class _Numbers:
    """Numbers of the instances of all tiles."""

    offsets: NDArray[np.int64]
    """Place of the background of each tile among `numbers`; its instances follow."""
    numbers: NDArray[np.int32]


def _numbered(counts: list[int], matches: list[NDArray[np.int64]]) -> _Numbers:
    """Return numbers of instances over the slide: those that are one have one number."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    lengths = np.array(counts, np.int64) + 1
    offsets = np.cumsum(lengths) - lengths
    total = int(lengths.sum())
    pairs = np.concatenate([np.zeros((0, 4), np.int64), *matches])
    ends = offsets[pairs[:, 0]] + pairs[:, 1], offsets[pairs[:, 2]] + pairs[:, 3]
    graph = coo_array((np.ones(len(pairs), np.bool_), ends), shape=(total, total))
    _, group = connected_components(graph, directed=False)
    is_instance = np.ones(total, np.bool_)
    is_instance[offsets] = False
    _, first, which = np.unique(group[is_instance], return_index=True, return_inverse=True)
    numbers = np.zeros(total, np.int32)
    numbers[is_instance] = np.argsort(np.argsort(first))[which] + 1
    return _Numbers(offsets, numbers)


def _core(
    box: NDArray[Any], numbers: _Numbers, tile: int, halo: int, shape: tuple[int, int]
) -> NDArray[np.int32]:
    """Return the label map of a tile without its halo, with the numbers of the slide."""
    if not _count(box):
        return np.zeros(shape, np.int32)
    labels = box.item().pixels()[halo : halo + shape[0], halo : halo + shape[1]]
    return numbers.numbers[numbers.offsets[tile] + labels]
