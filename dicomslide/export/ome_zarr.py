"""Export of slides to OME-Zarr 0.5."""

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
from dicomslide.export.label_images import on_levels_of
from dicomslide.export.target import RESUME_HINT, ShardedArray, Target, shards_of
from dicomslide.labelled.coordinates import restored
from dicomslide.labelled.presentation import channel_displays
from dicomslide.options import check_memory
from dicomslide.slide.slide import Slide

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import xarray as xr
    from numpy.typing import NDArray
    from zarr.abc.store import Store
    from zarr.storage import MemoryStore

    from dicomslide.labelled.presentation import ChannelDisplay

__all__ = ["Compression", "to_ome_zarr"]

Compression = Literal["zstd", "blosc"]
MAX_WINDOW_PIXELS = 4096**2
"""Upper bound on the pixels of a channel whose display window is computed from its values."""
COMMENT = (
    "for slices of mm: tree.slide.restore(), of dicomslide.accessor. x, y and z are mm of the"
    " slide; files don't store the index for which slices of them have no direction"
)
"""Attribute ``comment`` of exported groups; xarray's representation shows its beginning."""
WINDOW_PERCENTILES = (0.5, 99.5)
"""Percentiles of a channel's values that are displayed darkest and brightest."""


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
    """Write a slide as OME-Zarr 0.5, which xarray opens with the same coordinates in mm.

    All levels of the slide are written without resampling; each has its own spacing and origin.
    The current dask scheduler writes the pixels, one shard per task.

    Parameters
    ----------
    source : Slide or xarray.DataTree
        A slide; or a tree of :meth:`Slide.to_datatree`, or one derived from it. A slide is written
        faster, since each task reads its frames at once, and with stored values. A tree has
        fractions and real world values, unless it was made with ``mask_and_scale=False``.
    store : path-like, str or zarr.abc.store.Store
        Folder, fsspec URL, or zarr store.
    overwrite : bool, default: False
        Whether to delete an existing zarr store first.
    resume : bool, default: False
        Whether to resume an interrupted export of the same pixels with the same options: only
        missing shards are read and written. If the store is empty, the export begins; if the
        export is complete, nothing is done.
    shard_size : int, default: 2048
        Edge of a shard in pixels, rounded to whole chunks of about a frame. A shard is one file or
        object. A task needs about three times the memory of a shard.
    compression : {"zstd", "blosc"}, default: "zstd"
        Lossless codec of chunks. "blosc" (Zstandard with bit shuffling) gives smaller files for
        16 bits.
    storage_options : mapping, optional
        fsspec options of a URL: see :func:`register_storage_options`. Credentials aren't sent to
        workers: each worker of a cluster registers its own, or has them in its environment.

    Raises
    ------
    StoreExistsError
        When the store isn't empty and neither `overwrite` nor `resume` applies.
    ExportError
        When a server can't be reached, workers don't write to the same store, or another export
        was begun in the same store meanwhile.
    FrameError
        When a frame can't be read or decoded.
    MemoryLimitError
        When a shard exceeds the memory limit.
    ValueError
        When a tree has no image, or an image that isn't evenly spaced, whose focal planes don't
        ascend, or that has other dims; or when an option is invalid.

    Notes
    -----
    After an error or interruption, readers find no image in the store; `resume` completes it.

    The upright image is the root group. Its levels are ``level_0/image``, ``level_1/image``, ...,
    with the axes c (the samples, for a slide in colour), z, y and x. The axis y of OME-Zarr points
    down: the translation is (−y, x) of the slide in mm of the centre of the first pixel. The
    attribute ``slide_coordinates`` has the matrix from (y, x) of OME-Zarr to (x, y) of the slide.
    The coordinates x, y (and z) beside each array are those of the slide, as in the tree;
    ``tree.slide.restore()`` restores the index for which slices of them have no direction.

    Masks, segments and label maps are label images in the group ``labels``, with all levels of the
    image, so that viewers show them at each zoom. A level that they don't have is made by nearest
    neighbour, of the next larger level, or of the largest one; the attribute ``resampled`` of its
    array says so. If their own pixels aren't on the grid of a level, these are also written, as a
    group beside the image. Fractional segmentations, parametric maps, and other images with their
    own grid are groups beside the image.

    Channels have the names, colours and windows of
    ``array.slide.channel_displays()``, and segments their
    recommended colours. Where the header recommends no window, it is that from the 0.5th to the
    99.5th percentile of the smallest level; of brightfield, the range of Bits Stored.

    Examples
    --------
    >>> slide = dicomslide.open_slide("slide/")
    >>> dicomslide.to_ome_zarr(slide, "slide.zarr")
    >>> tree = xr.open_datatree("slide.zarr", engine="zarr", chunks={})
    >>> tree.slide.restore()["level_0"].image.sel(x=slice(16, 16.5), y=slice(29, 29.5))

    """
    if overwrite and resume:
        raise ValueError("overwrite and resume are both True; expected one of them at most")
    if compression not in get_args(Compression):
        raise ValueError(f"compression is {compression!r}; expected one of {get_args(Compression)}")
    if not isinstance(shard_size, int) or shard_size < 1:
        raise ValueError(f"shard_size is {shard_size!r}; expected a number of pixels, one or more")
    check_installed()
    target = Target.at(store, storage_options)
    tree = _tree(source, shard_size)
    export = _Export.of(tree, target, shard_size, compression)
    existing = target.begin(export.identity, overwrite=overwrite, resume=resume)
    if existing is None:
        return
    with _noting_how_to_resume(target):
        try:
            export.write_pixels(existing)
            export.complete()
        except Exception:
            target.leave(export.identity)  # raises if another export has replaced this one
            raise


def check_installed() -> None:
    try:
        import zarr  # noqa: F401
    except ImportError:
        raise ImportError(
            "OME-Zarr needs the package zarr: pip install 'dicomslide[zarr]'"
        ) from None


def _tree(source: Slide | xr.DataTree, shard_size: int) -> xr.DataTree:
    import xarray as xr

    from dicomslide.labelled.parts import datasets_of
    from dicomslide.labelled.tree import slide_parts

    if isinstance(source, Slide):
        data = shard_data(shard_size)
        groups = slide_parts(source, data=data, squeeze=False, mask_and_scale=False)
        return xr.DataTree.from_dict(datasets_of(groups))
    if isinstance(source, xr.DataTree):
        return source
    raise TypeError(f"expected a Slide or an xarray.DataTree, not a {type(source).__name__}")


@contextlib.contextmanager
def _noting_how_to_resume(target: Target) -> Iterator[None]:
    """Add a note to any exception: the state of the store, and how to resume."""
    try:
        yield
    except BaseException as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        room = "make room; " if full else ""
        error.add_note(f"{target}: incomplete; readers find no image in it; {room}{RESUME_HINT}")
        raise


@dataclasses.dataclass(frozen=True)
class _Pixels:
    """An array of the export."""

    sharded: ShardedArray
    data: Any
    """Dask array with shards as chunks."""

    @property
    def indices(self) -> set[tuple[int, ...]]:
        """Indices of the shards."""
        return set(np.ndindex(*self.data.numblocks))


@dataclasses.dataclass(frozen=True)
class _Export:
    """An export: its pixels, lazily, and its metadata and coordinates, in memory."""

    target: Target
    images: dict[str, ExportImage]
    """Images by the path of their group."""
    skeleton: MemoryStore
    """The zarr store without the pixels: metadata documents and coordinates."""
    pixels: tuple[_Pixels, ...]
    """Arrays of pixels: each level of each image."""
    identity: dict[str, Any]
    """Slide, options and digest of the pixels, as plain JSON values."""

    @classmethod
    def of(
        cls, tree: xr.DataTree, target: Target, shard_size: int, compression: Compression
    ) -> _Export:
        """Prepare the export of a tree; nothing is written or read."""
        import xarray as xr
        import zarr
        from zarr.storage import MemoryStore

        images = by_path(images_of(tree, shard_size))
        groups: dict[str, xr.Dataset] = {"/": xr.Dataset(attrs=tree.attrs)}
        encoding: dict[str, dict[str, dict[str, Any]]] = {}
        data: dict[str, Any] = {}
        for path, image in images.items():
            for level in image.levels:
                group = f"{path}/level_{level.number}"
                chunks, shards = block_shapes(image, level.array, level.frame, shard_size)
                check_memory(
                    math.prod(shards) * level.array.dtype.itemsize, f"{group}: a shard of {shards}"
                )
                groups[group] = described(level.array, image.variable)
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
                data[f"{group}/{image.variable}"[1:]] = level.array.data.rechunk(shards)
        skeleton = MemoryStore()
        xr.DataTree.from_dict(groups).to_zarr(
            skeleton, compute=False, consolidated=False, zarr_format=3, encoding=encoding
        )
        describe(images, skeleton)
        identity = {
            "slide": tree.attrs.get("container_identifier"),
            "options": {"shard_size": shard_size, "compression": compression},
            "pixels": _digest(skeleton, [array.name for array in data.values()]),
        }
        pixels = tuple(
            _Pixels(
                ShardedArray(
                    target,
                    path,
                    zarr.open_array(skeleton, path=path).metadata,  # type: ignore[arg-type]
                    shards_of(identity),
                ),
                array,
            )
            for path, array in data.items()
        )
        return cls(target, images, skeleton, pixels, identity)

    def write_pixels(self, existing: set[str]) -> None:
        """Write the shards whose keys aren't in `existing`, with the current dask scheduler."""
        import dask.array
        from dask.base import compute_as_if_collection
        from dask.highlevelgraph import HighLevelGraph

        graphs, keys = [], []
        for each in self.pixels:
            pending = each.indices - each.sharded.finished(each.indices, existing)
            written = each.data.map_blocks(
                functools.partial(_write, each.sharded, self.identity),
                name=f"write-{uuid.uuid4().hex}",  # unique: a scheduler must not reuse a result
                chunks=tuple((1,) * n for n in each.data.numblocks),
                dtype=np.uint8,
                meta=np.empty((0,) * each.data.ndim, np.uint8),
            )
            graphs.append(written.dask)
            keys += [(written.name, *index) for index in sorted(pending)]
        compute_as_if_collection(dask.array.Array, HighLevelGraph.merge(*graphs), keys)  # type: ignore[no-untyped-call]

    def complete(self) -> None:
        """Write the metadata documents, which make the shards a readable image."""
        import zarr

        describe_channels(self.images, self.skeleton, self._written)
        zarr.open_group(self.skeleton).attrs["dicomslide"] = {
            "version": __version__,
            "export": self.identity,
        }
        with warnings.catch_warnings():  # zarr warns that other libraries may not read it
            warnings.filterwarnings("ignore", "Consolidated metadata", UserWarning)
            zarr.consolidate_metadata(self.skeleton)
        shards = {each.sharded.key(index) for each in self.pixels for index in each.indices}
        self.target.complete(self.identity, self.skeleton, shards)

    def _written(self, path: str, index: int) -> Any:
        """Return a channel of an array, of the shards that are written."""
        (written,) = (each.sharded for each in self.pixels if each.sharded.path == path)
        with self.target.reached():
            return written.array[index]


def by_path(images: Sequence[ExportImage]) -> dict[str, ExportImage]:
    """Return images by the path of their group: "" is the root, label images are in "/labels/".

    A label image whose pixels are on another grid than all levels of the image is there twice: in
    "/labels/", resampled to them, and as it is.
    """
    first, *others = images
    if first.name != "image":
        return {f"/{image.name}": image for image in images}
    paths = {"": first}
    for image in others:
        below, is_kept = (None, False) if image.labels is None else on_levels_of(image, first)
        if below is not None:
            paths[f"/labels/{image.name}"] = below
        if not is_kept:
            paths[f"/{image.name}"] = image
    return paths


def describe(images: dict[str, ExportImage], skeleton: MemoryStore) -> None:
    """Write the OME-Zarr attributes of groups that don't depend on pixels."""
    import zarr

    labels = []
    for path, image in images.items():
        ome: dict[str, Any] = {
            "version": ome_metadata.VERSION,
            "multiscales": ome_metadata.multiscales(image),
        }
        is_label = path.startswith("/labels/")
        if image.labels is not None:
            parent = ("../../" if is_label else "../") if "" in images else None
            ome["image-label"] = ome_metadata.image_label(image.labels, parent)
        attributes: dict[str, Any] = {"ome": ome}
        to_slide = image.levels[0].raster.to_slide
        if to_slide is not None:
            attributes["slide_coordinates"] = {"matrix": to_slide, "unit": "millimeter"}
        zarr.open_group(skeleton, path=path[1:]).attrs.update(attributes)
        labels += [image.name] if is_label else []
    if labels:
        zarr.open_group(skeleton, path="labels").attrs["ome"] = {
            "version": ome_metadata.VERSION,
            "labels": labels,
        }


def describe_channels(
    images: dict[str, ExportImage],
    skeleton: MemoryStore,
    pixels: Callable[[str, int], Any],
) -> None:
    """Write the OME-Zarr attributes of channels: names, colours and windows.

    Parameters
    ----------
    images : dict of str to ExportImage
        See :func:`by_path`.
    skeleton : zarr.storage.MemoryStore
        Metadata documents, described by :func:`describe`.
    pixels : callable
        Given the path of an array and the index of a channel, returns its pixels.

    """
    import zarr

    for path, image in images.items():
        if image.labels is None:
            attributes = zarr.open_group(skeleton, path=path[1:]).attrs
            displays = channel_displays(image.levels[0].array)
            smallest = f"{path}/level_{image.levels[-1].number}/{image.variable}"[1:]
            windows = _windows(image, displays, functools.partial(pixels, smallest))
            shown = ome_metadata.channels(image, displays, windows)
            ome: Any = attributes["ome"]
            attributes["ome"] = {**ome, "omero": {"channels": shown}}


def _windows(
    image: ExportImage,
    displays: Sequence[ChannelDisplay],
    pixels: Callable[[int], Any],
) -> list[tuple[float, float, float, float]]:
    """Return (min, max, start, end) of each channel.

    Minimum and maximum are those of Bits Stored. Start and end are recommended by the header, or
    else percentiles of the smallest level; for samples and for a large level, the range.
    """
    is_large = math.prod(image.levels[-1].array.shape[1:]) > MAX_WINDOW_PIXELS
    windows = []
    for index, display in enumerate(displays):
        if display.window is not None and not image.samples:
            limits = display.valid_range or display.window
            windows.append((*limits, *display.window))
        elif image.in_color or is_large:
            limits = display.valid_range or (0.0, 1.0)
            windows.append((*limits, *limits))
        else:
            windows.append(_display_window(pixels(index), display.valid_range))
    return windows


def _display_window(
    channel: Any, valid_range: tuple[float, float] | None
) -> tuple[float, float, float, float]:
    values = np.asarray(channel)
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0, 0.0, 1.0
    start, end = (float(value) for value in np.percentile(values, WINDOW_PERCENTILES))
    low, high = valid_range or (float(values.min()), float(values.max()))
    if low == high:  # a constant
        high += 1
    return (low, high, start, end) if start < end else (low, high, low, high)


def _digest(skeleton: MemoryStore, names: Sequence[str]) -> str:
    """Return a digest of metadata, coordinates, and the dask names of the pixels."""
    digest = hashlib.sha256()
    for key, buffer in sorted(skeleton._store_dict.items()):
        digest.update(key.encode() + buffer.to_bytes())
    for name in names:
        digest.update(name.encode())
    return digest.hexdigest()


def block_shapes(
    image: ExportImage, array: xr.DataArray, frame: tuple[int, int], shard_size: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of chunks and shards: three for colours, one for channels and planes."""
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


def described(array: xr.DataArray, name: str) -> xr.Dataset:
    """Return a dataset of an array's coordinates and attributes, with a placeholder as pixels."""
    import dask.array

    placeholder = dask.array.empty(array.shape, dtype=array.dtype, chunks=array.shape)
    texts = {  # variable-length strings, which zarr's specification has
        key: coord.astype(object) for key, coord in array.coords.items() if coord.dtype.kind == "U"
    }
    return array.copy(data=placeholder).assign_coords(texts).to_dataset(name=name)


def _write(
    sharded: ShardedArray,
    identity: dict[str, Any],
    pixels: NDArray[np.generic],
    *,
    block_id: tuple[int, ...],
) -> NDArray[np.uint8]:
    sharded.target.write_temporary(identity, lambda: sharded.write(block_id, pixels))
    return np.ones((1,) * pixels.ndim, np.uint8)
