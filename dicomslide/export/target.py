"""Where an export goes: a store of zarr's, and what tells a finished export from a begun one.

A file says which export was begun. Its shards are written to a folder of its own, and moved to
their places when all are there. What makes arrays and groups of them, every ``zarr.json``, comes
last, that of the root at the very end: until then no reader finds anything.

Who begins, and who moves, has the store to itself meanwhile: an export that another one replaces,
at whatever moment, writes to nothing but its own folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import time
import uuid
from typing import TYPE_CHECKING, Any, TypeVar

from dicomslide.backends.objects.storage import (
    ObjectReach,
    harmless_for,
    is_url,
    options_for,
    register_storage_options,
    remembered,
)
from dicomslide.errors import ExportError, StoreExistsError
from dicomslide.export.exclusive import CLAIMS, LOCK, alone, locked
from dicomslide.process.parallel import together
from dicomslide.process.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Iterator, Mapping
    from pathlib import Path

    import numpy as np
    import zarr
    from numpy.typing import NDArray
    from zarr.abc.store import Store
    from zarr.core.metadata import ArrayV3Metadata
    from zarr.storage import MemoryStore

__all__ = ["HOW_TO_GO_ON", "ShardedArray", "Target"]

ROOT = "zarr.json"
BEGUN = "dicomslide-export.json"
"""Says which export was begun, or that a store is being deleted; not there when all is done."""
SHARDS = "dicomslide-export.shards"
"""Where shards are written: to a folder of their export."""
OF_EXPORTS = {LOCK, CLAIMS, SHARDS}
"""Names that say nothing of what is in a store."""
DOCUMENTS = {ROOT, ".zgroup", ".zarray", ".zmetadata"}
"""What makes groups and arrays of what is stored, also in zarr's format 2."""
PARTIAL = ".partial"
"""End of the name that zarr gives a file while it writes it."""
HOW_TO_GO_ON = (
    "resume=True (--resume) goes on with what is missing, overwrite=True (--overwrite) starts again"
)
IN_FLIGHT = 16
"""Shards that are looked at, or moved, at once."""
ATTEMPTS = 20
"""How often a folder is deleted that an export fills which was replaced, and doesn't know yet."""

ELSEWHERE = (
    "do all workers write to the same place? A store in memory, or a disk that they don't share,"
    " won't do"
)

T = TypeVar("T")

_stores: Registry[str, Any] = Registry(8, "exported stores")
"""By run of an export: another one may have newer credentials."""


@dataclasses.dataclass(frozen=True)
class Target:
    """A store to write to. Thin: each process opens it by itself, with its own credentials."""

    place: str | Store
    """Absolute path, URL as it may be shown, or a store."""
    options: str = "{}"
    """Those for a URL that may travel, as JSON."""
    run: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
    """Names one call of an export."""

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
            with self.reached():
                return FsspecStore.from_url(url, {**options, "skip_instance_cache": True})

        return _stores.get(self.run, make)

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Return what a coroutine of the store gives, run by zarr's own event loop."""
        from zarr.core.sync import sync

        with self.reached():
            return sync(coroutine)

    @contextlib.contextmanager
    def reached(self) -> Iterator[None]:
        """Let what the clients of servers raise be errors of the system, as of any store."""
        try:
            yield
        except (OSError, ImportError, MemoryError):
            raise
        except Exception as error:
            text = shown = f"{type(error).__name__}: {error}"
            if is_url(self.place):
                shown = ObjectReach(str(self.place), self.options).public(text)
            cause = error if shown == text else None  # a traceback would show what is hidden
            raise ExportError(f"{self}: {shown}") from cause

    # -- keys --

    def read(self, key: str) -> bytes | None:
        """Return what is stored by a name, or None."""
        from zarr.core.buffer import default_buffer_prototype

        found = self.wait(self.store.get(key, default_buffer_prototype()))
        return None if found is None else found.to_bytes()

    def write(self, key: str, value: bytes) -> None:
        """Store something by a name."""
        from zarr.core.buffer import default_buffer_prototype

        self.wait(self.store.set(key, default_buffer_prototype().buffer.from_bytes(value)))

    def keys(self) -> set[str]:
        """Return the names of all that is stored."""

        async def listed() -> set[str]:
            return {key async for key in self._fresh().list()}

        for _ in range(ATTEMPTS):
            with contextlib.suppress(FileNotFoundError):  # of a folder that is being deleted
                return self.wait(listed())
        return self.wait(listed())

    def names_in(self, folder: str) -> set[str]:
        """Return the names in a folder, as they are now."""

        async def listed() -> set[str]:
            return {key.rstrip("/") async for key in self._fresh().list_dir(folder)}

        return self.wait(listed())

    def _root(self) -> Path | None:
        """Return the folder that the store is, if it is one."""
        from zarr.storage import LocalStore

        return self.store.root if isinstance(self.store, LocalStore) else None

    def _fresh(self) -> Store:
        """Return the store, which forgets what others may have changed."""
        fs = getattr(self.store, "fs", None)
        if fs is not None:
            fs.invalidate_cache()
        return self.store

    def delete(self, keys: Iterable[str]) -> None:
        """Delete what is stored by some names."""
        for key in keys:
            self.wait(self.store.delete(key))

    def delete_folder(self, folder: str) -> None:
        """Delete a folder and all in it, though others may still write there."""
        for attempt in range(ATTEMPTS):
            try:
                self.wait(self._fresh().delete_dir(folder))
            except FileNotFoundError:
                pass
            except OSError:  # not empty any more
                if attempt == ATTEMPTS - 1:
                    raise
            else:
                return
            time.sleep(0.01 * attempt)

    def move(self, key: str, new: str) -> None:
        """Store by another name what is stored, in the store itself where it can."""
        from zarr.storage import FsspecStore

        store = self.store
        if (root := self._root()) is not None:
            (root / new).parent.mkdir(parents=True, exist_ok=True)
            os.replace(root / key, root / new)
            return
        if isinstance(store, FsspecStore):
            old, copy = ("/".join(filter(None, (store.path, name))) for name in (key, new))
            self.wait(store.fs._cp_file(old, copy))
        elif (value := self.read(key)) is not None:
            self.write(new, value)
        self.delete([key])

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Have the store for oneself: nobody else begins an export here, or completes one."""
        root = self._root()
        if root is not None and root.exists() and not root.is_dir():
            raise StoreExistsError(f"{self}: exists, and isn't a folder")
        with contextlib.ExitStack() as stack:
            if root is None or not stack.enter_context(locked(str(root))):
                stack.enter_context(alone(self))
            yield

    # -- beginning and end --

    def begin(self, identity: dict[str, Any], *, overwrite: bool, resume: bool) -> set[str] | None:
        """Make the store ready for an export.

        Parameters
        ----------
        identity : dict
            What tells this export from others; plain JSON values.
        overwrite : bool
            Whether what is there is deleted, if it is a zarr store.
        resume : bool
            Whether an export that was begun goes on.

        Returns
        -------
        set of str or None
            Keys that an earlier run left; None where the export is complete already.

        Raises
        ------
        StoreExistsError
            When something is there that mustn't be touched.

        """
        with self.alone():
            return self._begin(identity, overwrite=overwrite, resume=resume)

    def _begin(self, identity: dict[str, Any], *, overwrite: bool, resume: bool) -> set[str] | None:
        names = self._first_names()
        if names and overwrite:
            self._clear(names)
        elif names and not resume:
            raise StoreExistsError(
                f"{self}: an export that was begun is here: {HOW_TO_GO_ON}"
                if BEGUN in names
                else f"{self}: exists; overwrite=True (--overwrite) replaces a zarr store"
            )
        elif names:
            self._check_same(identity)
            if ROOT not in names:
                return self._take_back(identity)
            self._tidy()
            return None
        self.write(BEGUN, json.dumps(identity).encode())
        return set()

    def check_begun(self, identity: dict[str, Any]) -> None:
        """Raise unless this process sees the export, and nobody began another one since.

        Raises
        ------
        ExportError
            When it doesn't see it, or another one was begun.

        """
        known = self._known()
        if known is None:
            raise ExportError(f"{self}: the export that was begun isn't there: {ELSEWHERE}")
        if known != identity:
            raise ExportError(f"{self}: another export was begun here meanwhile")

    def _known(self) -> Any:
        """Return what tells which export was begun, or is complete, here; None where none is."""
        if (begun := self.read(BEGUN)) is not None:
            return json.loads(begun)
        root = json.loads(self.read(ROOT) or b"{}")
        return root.get("attributes", {}).get("dicomslide", {}).get("export")

    def _first_names(self) -> set[str]:
        """Return the names at the root, without what exports leave that are killed."""
        begun = BEGUN.removesuffix("json")
        return {
            name
            for name in self.names_in("")
            if name not in OF_EXPORTS and not (name.startswith(begun) and name.endswith(PARTIAL))
        }

    def _take_back(self, identity: dict[str, Any]) -> set[str]:
        """Return the shards that are there, all in the folder of their export.

        Some are in their places where the export was killed while it moved them.
        """
        folder = shards_of(identity)
        keys = self.keys()
        there = {key.removeprefix(folder) for key in keys if key.startswith(folder)}
        placed = [
            key
            for key in keys
            if "/c/" in key
            and key.partition("/")[0] not in OF_EXPORTS
            and not key.endswith(PARTIAL)
        ]
        together(lambda key: self.move(key, folder + key), placed, IN_FLIGHT)
        return there.union(placed)

    def _tidy(self) -> None:
        """Delete what was needed to come to an end."""
        self.delete_folder(SHARDS)
        self.delete([BEGUN])

    def _clear(self, names: set[str]) -> None:
        """Delete a zarr store: first of all what makes arrays and groups of it."""
        if not names & {BEGUN, *DOCUMENTS}:
            raise StoreExistsError(f"{self}: exists, and isn't a zarr store: it isn't overwritten")
        self.write(BEGUN, b"{}")
        keys = {key for key in self.keys() - {BEGUN} if key.partition("/")[0] not in OF_EXPORTS}
        documents = [key for key in keys if key.rpartition("/")[2] in DOCUMENTS]
        self.delete(sorted(documents, key=lambda key: (key.count("/"), key)))
        self.delete(keys & names)
        for folder in names - keys - {BEGUN} | {SHARDS}:
            self.delete_folder(folder)

    def _check_same(self, identity: dict[str, Any]) -> None:
        """Raise unless it is the same export that was begun, or completed, here."""
        known = self._known()
        if known == identity:
            return
        if known == {}:
            raise StoreExistsError(
                f"{self}: what was here was being replaced: overwrite=True (--overwrite) goes on"
            )
        if not isinstance(known, dict):
            raise StoreExistsError(
                f"{self}: exists, and isn't an export that was begun by dicomslide: there is"
                " nothing to resume"
            )
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

    def complete(self, identity: dict[str, Any], skeleton: MemoryStore, shards: set[str]) -> None:
        """Make arrays and groups of the shards: what is written last is the root.

        Parameters
        ----------
        identity : dict
            What tells this export from others.
        skeleton : zarr.storage.MemoryStore
            Coordinates, and every ``zarr.json``.
        shards : set of str
            Keys of all shards.

        Raises
        ------
        ExportError
            When a shard isn't there, or another export was begun.

        """
        with self.alone():
            self.check_begun(identity)
            if self.read(BEGUN) is None:  # somebody else has completed the same
                self._tidy()
                return
            folder = shards_of(identity)
            keys = self.keys()
            there = {key.removeprefix(folder) for key in keys if key.startswith(folder)}
            if missing := shards - there:
                raise ExportError(
                    f"{self}: {len(missing)} of {len(shards)} shards aren't there after they were"
                    f" written: {ELSEWHERE}"
                )
            # what processes left behind that were killed while they wrote
            self.delete(key for key in keys if key.endswith(PARTIAL))
            together(lambda key: self.move(folder + key, key), sorted(shards), IN_FLIGHT)
            parts = {key: buffer.to_bytes() for key, buffer in skeleton._store_dict.items()}
            documents = [key for key in parts if key.rpartition("/")[2] == ROOT]
            for key in sorted(parts.keys() - set(documents)):
                self.write(key, parts[key])
            for key in sorted(documents, key=lambda key: (-key.count("/"), key)):
                self.write(key, parts[key])
            self._tidy()

    def leave(self, identity: dict[str, Any]) -> None:
        """Delete what this export has written, if another one was begun.

        Raises
        ------
        ExportError
            When another one was begun.

        """
        try:
            self.check_begun(identity)
        except ExportError:
            with contextlib.suppress(OSError):
                self.delete_folder(shards_of(identity).rstrip("/"))
                if (root := self._root()) is not None:
                    (root / SHARDS).rmdir()  # if nobody else has anything there
            raise


def shards_of(identity: dict[str, Any]) -> str:
    """Return what the names of an export's shards begin with, until they are in their places."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return f"{SHARDS}/{digest[:32]}/"


@dataclasses.dataclass(frozen=True)
class ShardedArray:
    """An array of a target that is written shard by shard. Thin."""

    target: Target
    path: str
    metadata: ArrayV3Metadata
    folder: str = ""
    """What the names of its shards begin with, until they are in their places."""

    @property
    def array(self) -> zarr.Array[ArrayV3Metadata]:
        """The array; it can be used before anything says that it is there."""
        import zarr
        from zarr.core.array_spec import ArrayConfig
        from zarr.storage import StorePath

        return zarr.Array(
            zarr.AsyncArray(
                metadata=self.metadata,
                store_path=StorePath(self.target.store, self.folder + self.path),
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
        with self.target.reached():
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
        are_whole = together(is_whole, candidates, IN_FLIGHT)
        whole = {index for index, ok in zip(candidates, are_whole, strict=True) if ok}
        damaged = (index for index in candidates if index not in whole)
        self.target.delete(self.folder + self.key(index) for index in damaged)
        return whole

    @property
    def _shard_shape(self) -> tuple[int, ...]:
        return self.metadata.chunk_grid.chunk_shape  # type: ignore[attr-defined]
