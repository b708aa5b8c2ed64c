"""Where an export goes: a store of zarr's, and what tells a finished export from a begun one.

Pixels are written straight to their shards. What makes arrays and groups of them, every
``zarr.json``, comes last, that of the root at the very end: until then no reader finds anything.
A file beside them says which export was begun.
"""

from __future__ import annotations

import dataclasses
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dicomslide.backends.storage import (
    harmless_for,
    is_url,
    options_for,
    register_storage_options,
    remembered,
)
from dicomslide.cache import Registry
from dicomslide.errors import ExportError, StoreExistsError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Mapping

    import numpy as np
    import zarr
    from numpy.typing import NDArray
    from zarr.abc.store import Store
    from zarr.core.metadata import ArrayV3Metadata
    from zarr.storage import MemoryStore

__all__ = ["HOW_TO_GO_ON", "ShardedArray", "Target"]

ROOT = "zarr.json"
BEGUN = "dicomslide-export.json"
"""Says which export was begun; it isn't there any more when it is complete."""
HOW_TO_GO_ON = (
    "resume=True (--resume) goes on with what is missing, overwrite=True (--overwrite) starts again"
)
IN_FLIGHT = 16
"""Shards that are looked at at once."""

_stores: Registry[tuple[str, str], Any] = Registry(32)


@dataclasses.dataclass(frozen=True)
class Target:
    """A store to write to. Thin: each process opens it by itself, with its own credentials."""

    place: str | Store
    """Absolute path, URL as it may be shown, or a store."""
    options: str = "{}"
    """Those for a URL that may travel, as JSON."""

    @classmethod
    def at(cls, store: Any, storage_options: Mapping[str, Any] | None = None) -> Target:
        """Return the target for a path, a URL, or a store of zarr's.

        Raises
        ------
        TypeError
            When it is none of these.
        ValueError
            When `storage_options` are given for what isn't a URL, or a store can't be used.

        """
        from zarr.abc.store import Store

        if is_url(store) and not store.startswith("file://"):
            if storage_options is not None:
                register_storage_options(store, storage_options)
            public = remembered(store)
            return cls(public, harmless_for(public))
        if storage_options is not None:
            raise ValueError("storage_options are for URLs")
        if isinstance(store, (str, os.PathLike)):
            return cls(os.path.abspath(os.fspath(store).removeprefix("file://")))
        if not isinstance(store, Store):
            raise TypeError(
                f"can't write to a {type(store).__name__}; expected a path, a URL or a store of"
                " zarr's"
            )
        if store.read_only or not (store.supports_deletes and store.supports_listing):
            raise ValueError(f"{store}: a store is needed that can be written, listed and cleared")
        return cls(store)

    def __str__(self) -> str:
        return str(self.place)

    @property
    def store(self) -> Store:
        """The store, as this process opened it."""
        if not isinstance(self.place, str):
            return self.place
        place = self.place

        def make() -> Store:
            from zarr.storage import FsspecStore, LocalStore

            if not is_url(place):
                return LocalStore(place)
            url, options = options_for(place, self.options)
            return FsspecStore.from_url(url, {**options, "skip_instance_cache": True})

        return _stores.get((place, self.options), make)

    # -- keys --

    def read(self, key: str) -> bytes | None:
        """Return what is stored by a name, or None."""
        from zarr.core.buffer import default_buffer_prototype

        found = _wait(self.store.get(key, default_buffer_prototype()))
        return None if found is None else found.to_bytes()

    def write(self, key: str, value: bytes) -> None:
        """Store something by a name."""
        from zarr.core.buffer import default_buffer_prototype

        _wait(self.store.set(key, default_buffer_prototype().buffer.from_bytes(value)))

    def keys(self) -> set[str]:
        """Return the names of all that is stored."""

        async def listed() -> set[str]:
            return {key async for key in self.store.list()}

        return _wait(listed())

    def delete(self, keys: Iterable[str]) -> None:
        """Delete what is stored by some names."""
        for key in keys:
            _wait(self.store.delete(key))

    # -- beginning and end --

    def begin(self, identity: dict[str, Any], *, overwrite: bool, resume: bool) -> bool:
        """Make the store ready for an export; return False where that is complete already.

        Parameters
        ----------
        identity : dict
            What tells this export from others; plain JSON values.
        overwrite : bool
            Whether what is there is deleted, if it is a zarr store.
        resume : bool
            Whether an export that was begun goes on.

        Raises
        ------
        StoreExistsError
            When something is there that mustn't be touched.

        """
        keys = self._first_keys()
        if keys and overwrite:
            self._clear()
        elif keys and not resume:
            raise StoreExistsError(
                f"{self}: an interrupted export is here: {HOW_TO_GO_ON}"
                if BEGUN in keys
                else f"{self}: exists; overwrite=True (--overwrite) replaces a zarr store"
            )
        elif keys:
            self._check_same(identity)
            if ROOT in keys:
                self.delete([BEGUN])
                return False
        self.write(BEGUN, json.dumps(identity).encode())
        return True

    def _first_keys(self) -> set[str]:
        """Return the names at the root, without what a write left that was killed at once."""

        async def listed() -> set[str]:
            return {key.rstrip("/") async for key in self.store.list_dir("")}

        if isinstance(self.place, str) and not is_url(self.place):
            path = Path(self.place)
            if path.exists() and not path.is_dir():
                raise StoreExistsError(f"{self}: exists, and isn't a folder")
        begun = BEGUN.removesuffix("json")
        return {
            name
            for name in _wait(listed())
            if not (name.startswith(begun) and name.endswith(".partial"))
        }

    def _clear(self) -> None:
        """Delete a zarr store: first of all what makes it look complete."""
        keys = self._first_keys()
        if not keys & {ROOT, BEGUN, ".zgroup", ".zarray"}:
            raise StoreExistsError(f"{self}: exists, and isn't a zarr store: it isn't overwritten")
        self.write(BEGUN, b"{}")
        self.delete([ROOT])
        self.delete(self.keys() - {BEGUN})

    def _check_same(self, identity: dict[str, Any]) -> None:
        """Raise unless it is the same export that was begun, or completed, here."""
        begun, root = self.read(BEGUN), self.read(ROOT)
        known: Any = None
        if root is not None:
            known = json.loads(root).get("attributes", {}).get("dicomslide", {}).get("export")
        elif begun is not None:
            known = json.loads(begun)
        if not isinstance(known, dict):
            raise StoreExistsError(
                f"{self}: exists, and isn't an export that was begun by dicomslide: there is"
                " nothing to resume"
            )
        if known == identity:
            return
        options, wanted = known.get("options", {}), identity["options"]
        differing = [
            f"{name} {options.get(name)!r}, not {value!r}"
            for name, value in wanted.items()
            if options.get(name) != value
        ]
        if known.get("slide") != identity["slide"]:
            differing.append(f"slide {known.get('slide')!r}, not {identity['slide']!r}")
        raise StoreExistsError(
            f"{self}: the export that was begun here is another one"
            f" ({', '.join(differing) or 'other pixels, or files that changed'}): it isn't"
            " resumed; overwrite=True (--overwrite) starts again"
        )

    def complete(self, skeleton: MemoryStore, shards: set[str]) -> None:
        """Make arrays and groups of the shards: what is written last is the root.

        Parameters
        ----------
        skeleton : zarr.storage.MemoryStore
            Coordinates, and every ``zarr.json``.
        shards : set of str
            Keys of all shards.

        Raises
        ------
        ExportError
            When a shard isn't there.

        """
        there = self.keys()
        if missing := shards - there:
            raise ExportError(
                f"{self}: {len(missing)} of {len(shards)} shards aren't there after they were"
                " written: do all workers write to the same place? A store in memory, or a disk"
                " that they don't share, won't do"
            )
        parts = {key: buffer.to_bytes() for key, buffer in skeleton._store_dict.items()}
        # what a process left behind that was killed while it wrote
        self.delete(there - shards - parts.keys() - {BEGUN})
        documents = [key for key in parts if key.rpartition("/")[2] == ROOT]
        for key in sorted(parts.keys() - set(documents)):
            self.write(key, parts[key])
        for key in sorted(documents, key=lambda key: (-key.count("/"), key)):
            self.write(key, parts[key])
        self.delete([BEGUN])


@dataclasses.dataclass(frozen=True)
class ShardedArray:
    """An array of a target that is written shard by shard. Thin."""

    target: Target
    path: str
    metadata: ArrayV3Metadata

    @property
    def array(self) -> zarr.Array[ArrayV3Metadata]:
        """The array; it can be used before anything says that it is there."""
        import zarr
        from zarr.core.array_spec import ArrayConfig
        from zarr.storage import StorePath

        return zarr.Array(
            zarr.AsyncArray(
                metadata=self.metadata,
                store_path=StorePath(self.target.store, self.path),
                # a shard that is there is one that was written
                config=ArrayConfig(order="C", write_empty_chunks=True),
            )
        )

    def key(self, index: tuple[int, ...]) -> str:
        """Return the name by which a shard is stored."""
        return f"{self.path}/{self.metadata.encode_chunk_key(index)}"

    def write(self, index: tuple[int, ...], pixels: NDArray[np.generic]) -> None:
        """Write a shard."""
        array = self.array
        corner = [i * edge for i, edge in zip(index, self._shard_shape, strict=True)]
        region = tuple(slice(a, a + n) for a, n in zip(corner, pixels.shape, strict=True))
        array[region] = pixels

    def finished(self, indices: Iterable[tuple[int, ...]], there: set[str]) -> set[tuple[int, ...]]:
        """Return which shards are whole, of those whose keys are there; others are deleted."""
        array = self.array

        def is_whole(index: tuple[int, ...]) -> bool:
            # the index of a shard, with its checksum, is at its end
            try:
                array[tuple(i * edge for i, edge in zip(index, self._shard_shape, strict=True))]
            except Exception:  # whatever is wrong with it, it is written anew
                return False
            return True

        candidates = [index for index in indices if self.key(index) in there]
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            are_whole = pool.map(is_whole, candidates)
            whole = {index for index, ok in zip(candidates, are_whole, strict=True) if ok}
        self.target.delete(self.key(index) for index in candidates if index not in whole)
        return whole

    @property
    def _shard_shape(self) -> tuple[int, ...]:
        return self.metadata.chunk_grid.chunk_shape  # type: ignore[attr-defined]


def _wait(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Return what a coroutine of a store gives, run by zarr's own event loop."""
    from zarr.core.sync import sync

    return sync(coroutine)
