"""A slide as a store of OME-Zarr that holds nothing: chunks are decoded when they are asked for."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from zarr.abc.store import ByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from dicomslide.export.images import ExportImage, images_of
from dicomslide.export.ome_zarr import (
    block_shapes,
    by_path,
    describe,
    describe_channels,
    described,
)
from dicomslide.labelled.parts import datasets_of
from dicomslide.labelled.tree import slide_parts
from dicomslide.readers.arrays import dask_data

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    from numpy.typing import NDArray
    from zarr.core.buffer import Buffer, BufferPrototype

    from dicomslide.header.geometry import OrientationName
    from dicomslide.readers.stacked_reader import StackedReader
    from dicomslide.slide.slide import Slide

    Read = Callable[[tuple[slice, ...]], NDArray[Any]]
    """Returns the pixels of a box of an array."""

__all__ = ["LiveStore"]


class LiveStore(Store):
    """A slide as a read-only store of zarr, laid out as an export to OME-Zarr 0.5.

    Metadata and coordinates are in memory, and chunks, a frame each and not compressed, are decoded
    when they are asked for. It pickles as the slide does.

    Parameters
    ----------
    slide : Slide
        The slide.
    orientation : {"upright", "stored"}
        Upright, or rows and columns as stored.

    """

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, slide: Slide, orientation: OrientationName) -> None:
        super().__init__(read_only=True)
        self._slide, self._orientation = slide, orientation
        readers: dict[str, tuple[StackedReader, tuple[str, ...]]] = {}

        def data(reader: StackedReader, dims: Sequence[str]) -> Any:
            array = dask_data("frames")(reader, dims)
            readers[array.name] = reader, tuple(dims)
            return array

        groups = slide_parts(
            slide, data=data, orientation=orientation, squeeze=False, mask_and_scale=False
        )
        tree = xr.DataTree.from_dict(datasets_of(groups))
        images = by_path(images_of(tree, 1))
        self._arrays: dict[str, _LiveArray] = {}
        self._skeleton = self._described(tree, images, readers)
        describe(images, self._skeleton)
        describe_channels(images, self._skeleton, self._channel)

    def _described(
        self,
        tree: xr.DataTree,
        images: dict[str, ExportImage],
        readers: dict[str, tuple[StackedReader, tuple[str, ...]]],
    ) -> MemoryStore:
        """Return the documents of groups and arrays and the coordinates, and note the arrays."""
        groups: dict[str, xr.Dataset] = {"/": xr.Dataset(attrs=tree.attrs)}
        encoding: dict[str, Any] = {}
        for path, image in images.items():
            for level in image.levels:
                group = f"{path}/level_{level.number}"
                chunks, _ = block_shapes(image, level.array, level.frame, 1)
                groups[group] = described(level.array, image.variable)
                encoding[group] = {
                    image.variable: {"chunks": chunks, "compressors": None, "_FillValue": None}
                }
                node = tree.children.get(f"level_{level.number}")
                own = None if node is None else node.data_vars.get(image.variable)
                read: Read = _by_dask(level.array)
                if path == "" and own is not None and own.data.name in readers:
                    read = _by_reader(*readers[own.data.name], dims=level.array.dims)
                name = f"{group}/{image.variable}"[1:]
                self._arrays[name] = _LiveArray(level.array.shape, chunks, level.array.dtype, read)
        skeleton = MemoryStore()
        xr.DataTree.from_dict(groups).to_zarr(
            skeleton, compute=False, consolidated=False, zarr_format=3, encoding=encoding
        )
        return skeleton

    def _channel(self, name: str, index: int) -> NDArray[Any]:
        array = self._arrays[name]
        return array.read((slice(index, index + 1), *(slice(0, n) for n in array.shape[1:])))

    def __reduce__(self) -> Any:
        return LiveStore, (self._slide, self._orientation)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, LiveStore)
            and other._slide.__dask_tokenize__() == self._slide.__dask_tokenize__()
            and other._orientation == self._orientation
        )

    __hash__ = None  # type: ignore[assignment]  # as of other stores

    def __repr__(self) -> str:
        return f"<LiveStore of {self._slide!r}>"

    # -- reading --

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Return the value of a key, or a part of it; None if there is no such key."""
        found = self._chunk_of(key)
        if found is None:
            prototype = prototype or default_buffer_prototype()
            return await self._skeleton.get(key, prototype, byte_range)
        return await asyncio.to_thread(_value, *found, prototype, byte_range)

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Return what :meth:`get` does, from this thread: for zarr's ``FusedCodecPipeline``."""
        found = self._chunk_of(key)
        if found is None:
            return self._skeleton.get_sync(key, prototype=prototype, byte_range=byte_range)
        return _value(*found, prototype, byte_range)

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        """Return parts of the values of keys."""
        return list(
            await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges))
        )

    async def exists(self, key: str) -> bool:
        """Whether there is a key."""
        return self._chunk_of(key) is not None or await self._skeleton.exists(key)

    def _chunk_of(self, key: str) -> tuple[_LiveArray, tuple[int, ...]] | None:
        """Return array and index of a chunk, by a key such as ``level_0/image/c/0/3/4``."""
        name, found, rest = key.rpartition("/c/")
        array = self._arrays.get(name)
        if not found or array is None:
            return None
        parts = rest.split("/")
        if len(parts) != len(array.shape) or not all(part.isdecimal() for part in parts):
            return None
        index = tuple(map(int, parts))
        is_inside = all(i < n for i, n in zip(index, array.num_chunks, strict=True))
        return (array, index) if is_inside else None

    async def list(self) -> AsyncIterator[str]:
        """Yield all keys."""
        async for key in self._skeleton.list():
            yield key
        for name, array in self._arrays.items():
            for index in itertools.product(*map(range, array.num_chunks)):
                yield f"{name}/c/{'/'.join(map(str, index))}"

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Yield the keys that begin with a prefix."""
        async for key in self.list():
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield what is directly beneath a path."""
        prefix = prefix.strip("/")
        name, _, rest = f"{prefix}/".partition("/c/")
        name = name.rstrip("/")
        array = self._arrays.get(name)
        if array is not None and prefix != name:
            depth = len([part for part in rest.split("/") if part])
            for number in range(array.num_chunks[depth]) if depth < len(array.shape) else ():
                yield str(number)
            return
        async for entry in self._skeleton.list_dir(prefix):
            yield entry
        if array is not None:
            yield "c"

    async def set(self, key: str, value: Buffer) -> None:
        """Raise: the store is read-only."""
        self._check_writable()

    async def delete(self, key: str) -> None:
        """Raise: the store is read-only."""
        self._check_writable()

    def set_sync(self, key: str, value: Buffer) -> None:
        """Raise: the store is read-only."""
        self._check_writable()

    def delete_sync(self, key: str) -> None:
        """Raise: the store is read-only."""
        self._check_writable()


class _LiveArray:
    """An array of the store."""

    def __init__(
        self, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: np.dtype[Any], read: Read
    ) -> None:
        self.shape, self.read = shape, read
        self._chunks, self._dtype = chunks, dtype.newbyteorder("<")
        self.num_chunks = tuple(-(-n // c) for n, c in zip(shape, chunks, strict=True))

    def chunk(self, index: tuple[int, ...]) -> NDArray[Any]:
        """Return the pixels of a chunk, which 0 completes beyond the array."""
        box = tuple(
            slice(i * c, min((i + 1) * c, n))
            for i, c, n in zip(index, self._chunks, self.shape, strict=True)
        )
        pixels = self.read(box)
        if pixels.shape == self._chunks:
            return np.ascontiguousarray(pixels, self._dtype)
        whole = np.zeros(self._chunks, self._dtype)
        whole[tuple(slice(0, n) for n in pixels.shape)] = pixels
        return whole


def _value(
    array: _LiveArray,
    index: tuple[int, ...],
    prototype: BufferPrototype | None,
    byte_range: ByteRequest | None,
) -> Buffer:
    """Return the bytes of a chunk, or a part of them, without a copy."""
    prototype = prototype or default_buffer_prototype()
    value = prototype.buffer.from_array_like(array.chunk(index).reshape(-1).view(np.uint8))
    if byte_range is None:
        return value
    if isinstance(byte_range, RangeByteRequest):
        return value[byte_range.start : byte_range.end]
    if isinstance(byte_range, SuffixByteRequest):
        return value[max(0, len(value) - byte_range.suffix) :]
    return value[byte_range.offset :]


def _by_dask(array: xr.DataArray) -> Read:
    """Return a function that reads a box through dask, as of labels, which are computed."""
    data = array.data
    return lambda box: np.asarray(data[box].compute(scheduler="sync"))


def _by_reader(reader: StackedReader, own: tuple[str, ...], dims: Sequence[Any]) -> Read:
    """Return a function that reads a box with the dims c, z, y, x of a reader with other dims.

    c counts the samples of each channel in turn.
    """
    own = tuple({"row": "y", "column": "x"}.get(dim, dim) for dim in own)
    channels = next((dim for dim in own if dim.startswith("channel")), None)
    samples = reader.shape[own.index("sample")] if "sample" in own else 1

    def read(box: tuple[slice, ...]) -> NDArray[Any]:
        asked = dict(zip(map(str, dims), box, strict=True))
        c = asked.pop("c", slice(0, samples))
        first, last = c.start // samples, -(-c.stop // samples)
        if channels is not None:
            asked[channels] = slice(first, last)
        if "sample" in own:
            asked["sample"] = slice(0, samples)
        key = [asked.get(dim, slice(0, 1)) for dim in own]
        pixels = reader.read(key, contiguous=False)
        order = [own.index(d) for d in (channels, "sample") if d in own]
        rest = [i for i in range(len(own)) if i not in order]
        turned = pixels.transpose(*order, *rest)
        merged = turned.reshape(-1, *turned.shape[len(order) :])
        part = merged[c.start - first * samples : c.stop - first * samples]
        shape = tuple(each.stop - each.start for each in box)
        return part.reshape(shape)

    return read
