"""Slides as OME-Zarr 0.5."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import hashlib
import math
import uuid
import warnings
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from dicomslide._version import __version__
from dicomslide.export import ome_metadata
from dicomslide.export.images import ExportImage, blocks, images_of, shard_data
from dicomslide.export.target import HOW_TO_GO_ON, ShardedArray, Target, shards_of
from dicomslide.labelled.coordinates import restored
from dicomslide.options import check_memory
from dicomslide.slide.slide import Slide

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    import xarray as xr
    from numpy.typing import NDArray
    from zarr.abc.store import Store
    from zarr.storage import MemoryStore

__all__ = ["Compression", "to_ome_zarr"]

Compression = Literal["zstd", "blosc"]
LARGEST_WINDOW = 4096**2
"""Pixels of a channel that are looked at for the values which are shown darkest and brightest."""
COMMENT = (
    "for slices of mm: tree.slide.restore(), of dicomslide.accessor. x, y and z are mm of the"
    " slide, but files don't keep the index in which slices of them have no direction"
)
"""What one reads who opens the export with xarray; a representation shows its beginning."""
SHOWN = (0.5, 99.5)
"""Percentiles of these values."""


def to_ome_zarr(
    source: Slide | xr.DataTree,
    store: str | os.PathLike[str] | Store,
    *,
    overwrite: bool = False,
    resume: bool = False,
    shard_size: int = 2048,
    compression: Compression = "zstd",
    storage_options: Mapping[str, Any] | None = None,
) -> None:
    """Write a slide as OME-Zarr 0.5, which xarray opens with the same millimetres, too.

    The levels are those of the slide, pixel by pixel; each has its own spacing and origin. Pixels
    are streamed by dask, on whatever scheduler is current, a shard by a task.

    Parameters
    ----------
    source : Slide or xarray.DataTree
        A slide; or a tree as :meth:`Slide.to_datatree` returns it, whatever was done with it
        since. Of a slide each task reads its frames at once, which is faster, and pixels are what
        is stored; a tree has fractions and real world values, unless ``mask_and_scale=False``.
    store : path-like, str or zarr.abc.store.Store
        Folder, URL that fsspec knows, or store of zarr's.
    overwrite : bool, default: False
        Whether a zarr store that is there is deleted first.
    resume : bool, default: False
        Whether to go on where an interrupted export of the same pixels, with the same options,
        stopped: shards that are finished aren't read again. One that wasn't begun begins; one
        that is complete stays as it is.
    shard_size : int, default: 2048
        Pixels along the edge of a shard, which is one file or object; whole chunks, each of about
        a frame, come near to it. A task holds about three times as much.
    compression : {"zstd", "blosc"}, default: "zstd"
        How chunks are compressed, without loss. "blosc" (Zstandard with shuffled bits) is the
        smaller for 16 bits.
    storage_options : mapping, optional
        How a URL is reached: see :func:`register_storage_options`. Credentials don't travel: each
        worker of a cluster registers its own, or has them in its environment.

    Raises
    ------
    StoreExistsError
        When something is there already, or another export was begun there.
    ExportError
        When a server can't be reached, workers don't see what others write, or another export was
        begun at the same place meanwhile.
    FrameError
        When a frame can't be read or decoded. As after any interruption, no reader finds an image
        in the store then; `resume` goes on.
    MemoryLimitError
        When a shard would be too large.
    ValueError
        When a tree has no image, or one whose pixels aren't evenly spaced, whose focal planes don't
        ascend, or that has more dims; or when an option is wrong.

    Notes
    -----
    The upright image is the group at the root, its levels ``level_0/image``, ``level_1/image``,
    ..., with the axes c (the samples of a slide in colour), z and y, x. The y of OME-Zarr points
    down the raster: x and −y of the slide in mm, of the centre of the first pixel, are its
    translation; the attribute ``slide_coordinates`` has the matrix that leads back to (x, y) of
    the slide. The coordinates x, y (and z) beside each array are those of the slide, as in the
    tree; ``tree.slide.restore()`` gives the opened tree the index in which slices of them have no
    direction, as the attribute ``comment`` says.

    A segment, or mask of one's own, on all levels of the image is a label image in ``labels``;
    others, fractional segmentations, parametric maps, and images on grids of their own are groups
    beside it.

    Examples
    --------
    >>> slide = dicomslide.open_slide("slide/")
    >>> dicomslide.to_ome_zarr(slide, "slide.zarr")
    >>> tree = xr.open_datatree("slide.zarr", engine="zarr", chunks={})
    >>> tree.slide.restore()["level_0"].image.sel(x=slice(16, 16.5), y=slice(29, 29.5))

    """
    if overwrite and resume:
        raise ValueError("overwrite starts again, resume goes on: give one of them")
    if compression not in get_args(Compression):
        raise ValueError(f"compression must be one of {get_args(Compression)}: {compression!r}")
    if not isinstance(shard_size, int) or shard_size < 1:
        raise ValueError(f"shard_size must be a number of pixels, one or more: {shard_size!r}")
    _check_installed()
    target = Target.at(store, storage_options)
    tree = _tree(source, shard_size)
    export = _Export.of(tree, target, shard_size, compression)
    there = target.begin(export.identity, overwrite=overwrite, resume=resume)
    if there is None:
        return
    with _advice(target):
        try:
            export.write_pixels(there)
            export.complete()
        except Exception:
            target.leave(export.identity)  # if another one was begun, that is what is wrong
            raise


def _check_installed() -> None:
    try:
        import zarr  # noqa: F401
    except ImportError:
        raise ImportError(
            "OME-Zarr takes the package zarr: pip install 'dicomslide[zarr]'"
        ) from None


def _tree(source: Slide | xr.DataTree, shard_size: int) -> xr.DataTree:
    import xarray as xr

    from dicomslide.labelled.tree import slide_groups

    if isinstance(source, Slide):
        data = shard_data(shard_size)
        groups = slide_groups(source, data=data, squeeze=False, mask_and_scale=False)
        return xr.DataTree.from_dict(groups)
    if isinstance(source, xr.DataTree):
        return source
    raise TypeError(f"expected a Slide or an xarray.DataTree, not a {type(source).__name__}")


@contextlib.contextmanager
def _advice(target: Target) -> Iterator[None]:
    """Say with any error, an interruption too, what is left and how to go on."""
    try:
        yield
    except BaseException as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        room = "make room; " if full else ""
        error.add_note(
            f"{target}: incomplete, so that no reader takes it for an image; {room}{HOW_TO_GO_ON}"
        )
        raise


@dataclasses.dataclass(frozen=True)
class _Pixels:
    """An array of the export."""

    image: ExportImage
    sharded: ShardedArray
    data: Any
    """Dask array whose chunks are the shards."""

    @property
    def indices(self) -> set[tuple[int, ...]]:
        """Those of the shards."""
        return set(np.ndindex(*self.data.numblocks))


@dataclasses.dataclass(frozen=True)
class _Export:
    """What is written: pixels, and in memory all that makes them arrays and groups."""

    target: Target
    images: dict[str, ExportImage]
    """By path."""
    skeleton: MemoryStore
    pixels: tuple[_Pixels, ...]
    identity: dict[str, Any]
    """What tells this export from others; plain JSON values."""

    @classmethod
    def of(
        cls, tree: xr.DataTree, target: Target, shard_size: int, compression: Compression
    ) -> _Export:
        """Prepare the export of a tree; nothing is written or read."""
        import xarray as xr
        import zarr
        from zarr.storage import MemoryStore

        images = _by_path(images_of(tree, shard_size))
        groups: dict[str, xr.Dataset] = {"/": xr.Dataset(attrs=tree.attrs)}
        encoding: dict[str, dict[str, dict[str, Any]]] = {}
        data: dict[str, tuple[ExportImage, Any]] = {}
        for path, image in images.items():
            for level in image.levels:
                group = f"{path}/level_{level.number}"
                chunks, shards = _blocks(image, level.array, level.frame, shard_size)
                check_memory(
                    math.prod(shards) * level.array.dtype.itemsize, f"{group}: a shard of {shards}"
                )
                groups[group] = _described(level.array, image.variable)
                if path == "":
                    groups[group].attrs = dict(tree[group].attrs)
                if restored(level.array) is not None:
                    groups[group].attrs["comment"] = groups["/"].attrs["comment"] = COMMENT
                encoding[group] = {
                    image.variable: {
                        "chunks": chunks,
                        "shards": shards,
                        "compressors": _compressor(compression, level.array.dtype),
                        "_FillValue": None,
                    }
                }
                data[f"{group}/{image.variable}"[1:]] = image, level.array.data.rechunk(shards)
        skeleton = MemoryStore()
        xr.DataTree.from_dict(groups).to_zarr(
            skeleton, compute=False, consolidated=False, zarr_format=3, encoding=encoding
        )
        _describe(images, skeleton)
        identity = {
            "slide": tree.attrs.get("container_identifier"),
            "options": {"shard_size": shard_size, "compression": compression},
            "pixels": _digest(skeleton, [array.name for _, array in data.values()]),
        }
        pixels = tuple(
            _Pixels(
                image,
                ShardedArray(
                    target,
                    path,
                    zarr.open_array(skeleton, path=path).metadata,  # type: ignore[arg-type]
                    shards_of(identity),
                ),
                array,
            )
            for path, (image, array) in data.items()
        )
        return cls(target, images, skeleton, pixels, identity)

    def write_pixels(self, there: set[str]) -> None:
        """Write the shards that aren't there yet, with the scheduler that is current."""
        import dask.array
        from dask.base import compute_as_if_collection
        from dask.highlevelgraph import HighLevelGraph

        graphs, keys = [], []
        for each in self.pixels:
            pending = each.indices - each.sharded.finished(each.indices, there)
            written = each.data.map_blocks(
                functools.partial(_write, each.sharded, self.identity),
                name=f"write-{uuid.uuid4().hex}",  # its effect is wanted, whoever did it before
                chunks=tuple((1,) * n for n in each.data.numblocks),
                dtype=np.uint8,
                meta=np.empty((0,) * each.data.ndim, np.uint8),
            )
            graphs.append(written.dask)
            keys += [(written.name, *index) for index in sorted(pending)]
        compute_as_if_collection(dask.array.Array, HighLevelGraph.merge(*graphs), keys)  # type: ignore[no-untyped-call]

    def complete(self) -> None:
        """Make an image of what was written."""
        import zarr

        for path, image in self.images.items():
            if image.labels is None:
                attributes = zarr.open_group(self.skeleton, path=path[1:]).attrs
                shown = ome_metadata.channels(image, self._windows(image))
                ome: Any = attributes["ome"]
                attributes["ome"] = {**ome, "omero": {"channels": shown}}
        zarr.open_group(self.skeleton).attrs["dicomslide"] = {
            "version": __version__,
            "export": self.identity,
        }
        with warnings.catch_warnings():  # that not all libraries read it yet
            warnings.filterwarnings("ignore", "Consolidated metadata", UserWarning)
            zarr.consolidate_metadata(self.skeleton)
        shards = {each.sharded.key(index) for each in self.pixels for index in each.indices}
        self.target.complete(self.identity, self.skeleton, shards)

    def _windows(self, image: ExportImage) -> Sequence[tuple[float, float, float, float]]:
        """Return the values that channels may have, and of those of the smallest level most."""
        *_, smallest = (each for each in self.pixels if each.image is image)
        dtype = smallest.data.dtype
        count = smallest.data.shape[0]
        if image.in_color or math.prod(smallest.data.shape[1:]) > LARGEST_WINDOW:
            high = float(np.iinfo(dtype).max) if dtype.kind in "iu" else 1.0
            return [(0, high, 0, high)] * count
        return [_window(smallest.sharded.array[index], dtype) for index in range(count)]


def _window(channel: Any, dtype: np.dtype[Any]) -> tuple[float, float, float, float]:
    values = np.asarray(channel)
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0, 0.0, 1.0
    start, end = (float(value) for value in np.percentile(values, SHOWN))
    low, high = float(values.min()), float(values.max())
    if dtype.kind in "iu":
        low, high = 0.0, float(np.iinfo(dtype).max)
    if low == high:  # a constant
        high += 1
    return (low, high, start, end) if start < end else (low, high, low, high)


def _by_path(images: Sequence[ExportImage]) -> dict[str, ExportImage]:
    """Return images by where they go: what labels all levels of the first one beside it."""
    first, *others = images
    of_first = [level.number for level in first.levels] if first.name == "image" else None

    def path(image: ExportImage) -> str:
        is_beside = image.labels is not None and of_first == [each.number for each in image.levels]
        return f"/labels/{image.name}" if is_beside else f"/{image.name}"

    if of_first is None:
        return {path(image): image for image in images}
    return {"": first} | {path(image): image for image in others}


def _describe(images: dict[str, ExportImage], skeleton: MemoryStore) -> None:
    """Make images of groups, as far as it doesn't take their pixels."""
    import zarr

    labels = []
    for path, image in images.items():
        ome: dict[str, Any] = {
            "version": ome_metadata.VERSION,
            "multiscales": ome_metadata.multiscales(image),
        }
        is_beside = path.startswith("/labels/")
        if image.labels is not None:
            parent = ("../../" if is_beside else "../") if "" in images else None
            ome["image-label"] = ome_metadata.image_label(image.labels, parent)
        attributes: dict[str, Any] = {"ome": ome}
        to_slide = image.levels[0].raster.to_slide
        if to_slide is not None:
            attributes["slide_coordinates"] = {"matrix": to_slide, "unit": "millimeter"}
        zarr.open_group(skeleton, path=path[1:]).attrs.update(attributes)
        labels += [image.name] if is_beside else []
    if labels:
        zarr.open_group(skeleton, path="labels").attrs["ome"] = {
            "version": ome_metadata.VERSION,
            "labels": labels,
        }


def _digest(skeleton: MemoryStore, names: Sequence[str]) -> str:
    """Return what tells pixels, their arrays and coordinates from others."""
    digest = hashlib.sha256()
    for key, buffer in sorted(skeleton._store_dict.items()):
        digest.update(key.encode() + buffer.to_bytes())
    for name in names:
        digest.update(name.encode())
    return digest.hexdigest()


def _blocks(
    image: ExportImage, array: xr.DataArray, frame: tuple[int, int], shard_size: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shape of chunks and of shards: colours together, all else apart."""
    of_dim = {
        dim: blocks(edge, array.sizes[dim], shard_size)
        for dim, edge in zip(("y", "x"), frame, strict=True)
    }
    if image.in_color:
        of_dim["c"] = 3, 3
    both = [of_dim.get(str(dim), (1, 1)) for dim in array.dims]
    return tuple(chunk for chunk, _ in both), tuple(shard for _, shard in both)


def _compressor(compression: Compression, dtype: np.dtype[Any]) -> Any:
    from zarr.codecs import BloscCodec, ZstdCodec

    if compression == "zstd":
        return [ZstdCodec(level=1)]
    return [
        BloscCodec(
            cname="zstd", clevel=3, shuffle="bitshuffle" if dtype.itemsize > 1 else "noshuffle"
        )
    ]


def _described(array: xr.DataArray, name: str) -> xr.Dataset:
    """Return a dataset of which xarray writes what describes an array, without its pixels."""
    import dask.array

    never_made = dask.array.empty(array.shape, dtype=array.dtype, chunks=array.shape)
    texts = {  # as zarr's specification knows them
        key: coord.astype(object) for key, coord in array.coords.items() if coord.dtype.kind == "U"
    }
    return array.copy(data=never_made).assign_coords(texts).to_dataset(name=name)


def _write(
    sharded: ShardedArray,
    identity: dict[str, Any],
    pixels: NDArray[np.generic],
    *,
    block_id: tuple[int, ...],
) -> NDArray[np.uint8]:
    target = sharded.target
    target.check_begun(identity)
    try:
        sharded.write(block_id, pixels)
    finally:
        target.leave(identity)
    return np.ones((1,) * pixels.ndim, np.uint8)
