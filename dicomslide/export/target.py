"""The zarr store that an export writes to, and the transaction of an export.

1. A marker file with the identity of the export is written (`BEGUN`).
2. Shards are written to a temporary folder of the export.
3. When all shards exist, they are moved to their keys.
4. Every ``zarr.json`` is written, that of the root last. Until then, readers find no zarr group.

Steps 1, 3 and 4 hold an exclusive lock or claim on the store. An export that is replaced by another
one, at any time, has written to its own temporary folder only.
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

from dicomslide.backends.net.storage_options import (
    harmless_for,
    options_for,
    register_storage_options,
    remembered,
)
from dicomslide.backends.objects.storage import ObjectReach, is_url
from dicomslide.errors import ExportError, StoreExistsError
from dicomslide.export.exclusive import CLAIMS, LOCK, claimed, locked
from dicomslide.process.parallel import together
from dicomslide.process.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
    from pathlib import Path

    import numpy as np
    import zarr
    from numpy.typing import NDArray
    from zarr.abc.store import Store
    from zarr.core.metadata import ArrayV3Metadata
    from zarr.storage import MemoryStore

__all__ = ["RESUME_HINT", "ShardedArray", "Target", "shards_of"]

ROOT = "zarr.json"
BEGUN = "dicomslide-export.json"
"""Marker of an incomplete export: its identity as JSON, or ``{}`` while a store is deleted."""
SHARDS = "dicomslide-export.shards"
"""Folder of the temporary folders of exports."""
TEMPORARY_NAMES = {LOCK, CLAIMS, SHARDS}
"""Names at the root that aren't content of a zarr store."""
METADATA_NAMES = {ROOT, ".zgroup", ".zarray", ".zmetadata"}
"""Metadata documents of zarr's formats 3 and 2."""
PARTIAL = ".partial"
"""Suffix of a file that zarr is writing."""
RESUME_HINT = (
    "resume=True (--resume) writes the missing shards, overwrite=True (--overwrite) starts again"
)
CONCURRENCY = 16
"""Upper bound on shards that are checked or moved at once."""
ATTEMPTS = 20
"""Attempts at a step on a folder that another export writes to or deletes."""

SHARED_STORE_HINT = (
    "do all workers write to the same place? A store in memory or a disk that isn't shared can't be"
    " used"
)

T = TypeVar("T")

_stores: Registry[str, Any] = Registry(8, "exported stores")
"""Stores by run, so that a later run may use newer credentials."""


@dataclasses.dataclass(frozen=True)
class Target:
    """A store to write to. Pickles as its name: each process opens it with its own credentials."""

    place: str | Store
    """Absolute path, URL without credentials, or a store."""
    options: str = "{}"
    """Storage options of a URL that aren't secret, as JSON."""
    run: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
    """Unique identifier of one call of an export."""

    @classmethod
    def at(cls, store: Any, storage_options: Mapping[str, Any] | None = None) -> Target:
        """Return the target for a path, a URL, or a store of zarr's.

        Raises
        ------
        TypeError
            When it is none of these.
        ValueError
            When `storage_options` are given without a URL, or the store is read-only or can't
            list or delete.

        """
        from zarr.abc.store import Store

        if is_url(store) and not store.startswith("file://"):
            if storage_options is not None:
                register_storage_options(store, storage_options)
            public = remembered(store)
            return cls(public, harmless_for(public))
        if storage_options is not None:
            raise ValueError(
                f"storage_options are given with a {type(store).__name__}; expected a URL that"
                " isn't file://"
            )
        if isinstance(store, (str, os.PathLike)):
            return cls(os.path.abspath(os.fspath(store).removeprefix("file://")))
        if not isinstance(store, Store):
            raise TypeError(
                f"can't write to a {type(store).__name__}; expected a path, a URL or a store of"
                " zarr's"
            )
        if store.read_only or not (store.supports_deletes and store.supports_listing):
            raise ValueError(
                f"{store}: can't be used; expected a store that can write, list, delete"
            )
        return cls(store)

    def __str__(self) -> str:
        return str(self.place)

    @property
    def store(self) -> Store:
        """The store, opened once per run and process."""
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
        """Run a coroutine of the store on zarr's event loop, and return its result."""
        from zarr.core.sync import sync

        with self.reached():
            return sync(coroutine)

    @contextlib.contextmanager
    def reached(self) -> Iterator[None]:
        """Convert exceptions of server clients to an ExportError without credentials."""
        try:
            yield
        except (OSError, ImportError, MemoryError):
            raise
        except Exception as error:
            text = shown = f"{type(error).__name__}: {error}"
            if is_url(self.place):
                shown = ObjectReach(str(self.place), self.options).public(text)
            cause = error if shown == text else None  # a traceback would show the credentials
            raise ExportError(f"{self}: {shown}") from cause

    # -- keys --

    def read(self, key: str) -> bytes | None:
        """Return the value of a key, or None if absent."""
        from zarr.core.buffer import default_buffer_prototype

        found = self.wait(self.store.get(key, default_buffer_prototype()))
        return None if found is None else found.to_bytes()

    def write(self, key: str, value: bytes) -> None:
        """Set the value of a key."""
        from zarr.core.buffer import default_buffer_prototype

        self.wait(self.store.set(key, default_buffer_prototype().buffer.from_bytes(value)))

    def keys(self) -> set[str]:
        """Return all keys, without caching."""

        async def listed() -> set[str]:
            return {key async for key in self._fresh().list()}

        for _ in range(ATTEMPTS):
            with contextlib.suppress(FileNotFoundError):  # a folder that is being deleted
                return self.wait(listed())
        raise ExportError(f"{self}: can't be listed: another process keeps deleting folders in it")

    def names_in(self, folder: str) -> set[str]:
        """Return the names in a folder, without caching."""

        async def listed() -> set[str]:
            return {key.rstrip("/") async for key in self._fresh().list_dir(folder)}

        return self.wait(listed())

    def _root(self) -> Path | None:
        """Return the folder of a local store; None for another store."""
        from zarr.storage import LocalStore

        return self.store.root if isinstance(self.store, LocalStore) else None

    def _fresh(self) -> Store:
        """Return the store, with its cache of listings cleared."""
        fs = getattr(self.store, "fs", None)
        if fs is not None:
            fs.invalidate_cache()
        return self.store

    def delete(self, keys: Iterable[str]) -> None:
        """Delete keys."""
        for key in keys:
            self.wait(self.store.delete(key))

    def delete_folder(self, folder: str) -> None:
        """Delete a folder and its content, also while another process writes there."""
        for attempt in range(ATTEMPTS):
            try:
                self.wait(self._fresh().delete_dir(folder))
            except OSError as error:  # another process has written to it, or renamed a file
                failed = error
            else:
                return
            time.sleep(0.01 * attempt)
        if not isinstance(failed, FileNotFoundError):
            raise failed
        raise ExportError(
            f"{self}: {folder} can't be deleted: another process keeps writing to it"
        ) from failed

    def move(self, key: str, new: str) -> None:
        """Rename a key; on a server, by a copy on the server."""
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
        """Hold the store exclusively: no other process begins or completes an export meanwhile."""
        root = self._root()
        if root is not None and root.exists() and not root.is_dir():
            raise StoreExistsError(f"{self}: exists, and isn't a folder: choose another path")
        with contextlib.ExitStack() as stack:
            if root is None or not stack.enter_context(locked(str(root))):
                stack.enter_context(claimed(self))
            yield

    # -- begin, complete, abandon --

    def begin(self, identity: dict[str, Any], *, overwrite: bool, resume: bool) -> set[str] | None:
        """Prepare the store, and mark the export as begun.

        Parameters
        ----------
        identity : dict
            Slide, options and digest of the pixels, as plain JSON values.
        overwrite : bool
            Whether to delete an existing zarr store.
        resume : bool
            Whether to resume an interrupted export of the same identity.

        Returns
        -------
        set of str or None
            Keys of the shards that an earlier run has written; None if the export is complete.

        Raises
        ------
        StoreExistsError
            When the store has content that neither option applies to.

        """
        with self.alone():
            return self._begin(identity, overwrite=overwrite, resume=resume)

    def _begin(self, identity: dict[str, Any], *, overwrite: bool, resume: bool) -> set[str] | None:
        names = self._first_names()
        if names and overwrite:
            self._clear(names)
        elif names and not resume:
            raise StoreExistsError(
                f"{self}: holds an incomplete export: {RESUME_HINT}"
                if BEGUN in names
                else f"{self}: exists; overwrite=True (--overwrite) replaces a zarr store"
            )
        elif names:
            self._check_same(identity)
            if ROOT not in names:
                return self._collect_shards(identity)
            self._delete_temporary()
            return None
        self.write(BEGUN, json.dumps(identity).encode())
        return set()

    def check_begun(self, identity: dict[str, Any]) -> None:
        """Check that the store holds this export, as seen by this process.

        Raises
        ------
        ExportError
            When the store holds no export (workers see another store), or another one.

        """
        known = self._identity()
        if known is None:
            raise ExportError(f"{self}: the export isn't there: {SHARED_STORE_HINT}")
        if known != identity:
            raise ExportError(
                f"{self}: another export was begun here meanwhile; this one is abandoned"
            )

    def _identity(self) -> Any:
        """Return the identity of the incomplete or complete export in the store, or None."""
        if (begun := self.read(BEGUN)) is not None:
            return json.loads(begun)
        root = json.loads(self.read(ROOT) or b"{}")
        return root.get("attributes", {}).get("dicomslide", {}).get("export")

    def _first_names(self) -> set[str]:
        """Return the names at the root, without temporary files of exports."""
        begun = BEGUN.removesuffix("json")
        return {
            name
            for name in self.names_in("")
            if name not in TEMPORARY_NAMES
            and not (name.startswith(begun) and name.endswith(PARTIAL))
        }

    def _collect_shards(self, identity: dict[str, Any]) -> set[str]:
        """Move the shards of an interrupted export to its temporary folder; return their keys.

        An export that was killed in step 3 has moved some of them to their keys.
        """
        folder = shards_of(identity)
        keys = self.keys()
        existing = {key.removeprefix(folder) for key in keys if key.startswith(folder)}
        placed = [
            key
            for key in keys
            if "/c/" in key
            and key.partition("/")[0] not in TEMPORARY_NAMES
            and not key.endswith(PARTIAL)
        ]
        together(lambda key: self.move(key, folder + key), placed, CONCURRENCY)
        return existing.union(placed)

    def _delete_temporary(self) -> None:
        """Delete the temporary folders, and the marker last."""
        self.delete_folder(SHARDS)
        self.delete([BEGUN])

    def _clear(self, names: set[str]) -> None:
        """Delete a zarr store, its metadata documents first."""
        if not names & {BEGUN, *METADATA_NAMES}:
            raise StoreExistsError(
                f"{self}: exists, and isn't a zarr store: it isn't overwritten; choose another"
                " place, or delete it"
            )
        self.write(BEGUN, b"{}")
        keys = {
            key for key in self.keys() - {BEGUN} if key.partition("/")[0] not in TEMPORARY_NAMES
        }
        documents = [key for key in keys if key.rpartition("/")[2] in METADATA_NAMES]
        self.delete(sorted(documents, key=lambda key: (key.count("/"), key)))
        self.delete(keys & names)
        for folder in names - keys - {BEGUN} | {SHARDS}:
            self.delete_folder(folder)

    def _check_same(self, identity: dict[str, Any]) -> None:
        """Raise a StoreExistsError unless the store holds the export to resume."""
        known = self._identity()
        if known == identity:
            return
        if known == {}:
            raise StoreExistsError(
                f"{self}: the store was being replaced when the export was interrupted:"
                " overwrite=True (--overwrite) replaces it"
            )
        if not isinstance(known, dict):
            raise StoreExistsError(
                f"{self}: exists, and isn't an export of dicomslide that can be resumed: choose"
                " another place, or overwrite=True (--overwrite) if it is a zarr store"
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
            f"{self}: holds another export"
            f" ({', '.join(differing) or 'other pixels, or files that changed'}), which can't be"
            " resumed: overwrite=True (--overwrite) starts again"
        )

    def write_temporary(self, identity: dict[str, Any], write: Callable[[], None]) -> None:
        """Write to the temporary folder of an export, which other exports may delete meanwhile.

        Parameters
        ----------
        identity : dict
            Identity of the export, as for :meth:`begin`.
        write : callable
            Writes the same each time it is called.

        Raises
        ------
        ExportError
            When another export was begun, or the folder is deleted again and again.

        """
        self.check_begun(identity)
        for _ in range(ATTEMPTS):
            try:
                write()
            except FileNotFoundError as error:  # a folder or file is deleted between two steps
                failed = error
            else:
                return
            finally:
                self.leave(identity)
            if self.read(BEGUN) is None:  # another process has completed the same export
                return
        raise ExportError(
            f"{self}: another process keeps deleting what is written: {failed}"
        ) from failed

    def complete(self, identity: dict[str, Any], skeleton: MemoryStore, shards: set[str]) -> None:
        """Move the shards to their keys, and write the metadata documents, the root's last.

        Parameters
        ----------
        identity : dict
            Identity of the export, as for :meth:`begin`.
        skeleton : zarr.storage.MemoryStore
            Coordinates, and every ``zarr.json``.
        shards : set of str
            Keys of all shards.

        Raises
        ------
        ExportError
            When a shard is missing, or another export was begun.

        """
        with self.alone():
            self.check_begun(identity)
            if self.read(BEGUN) is None:  # another process has completed the same export
                self._delete_temporary()
                return
            folder = shards_of(identity)
            keys = self.keys()
            existing = {key.removeprefix(folder) for key in keys if key.startswith(folder)}
            if missing := shards - existing:
                raise ExportError(
                    f"{self}: {len(missing)} of {len(shards)} shards aren't there after they were"
                    f" written: {SHARED_STORE_HINT}"
                )
            # files of processes that were killed while writing
            self.delete(key for key in keys if key.endswith(PARTIAL))
            together(lambda key: self.move(folder + key, key), sorted(shards), CONCURRENCY)
            parts = {key: buffer.to_bytes() for key, buffer in skeleton._store_dict.items()}
            documents = [key for key in parts if key.rpartition("/")[2] == ROOT]
            for key in sorted(parts.keys() - set(documents)):
                self.write(key, parts[key])
            for key in sorted(documents, key=lambda key: (-key.count("/"), key)):
                self.write(key, parts[key])
            self._delete_temporary()

    def leave(self, identity: dict[str, Any]) -> None:
        """Delete the temporary folder of this export if another export has replaced it.

        Raises
        ------
        ExportError
            When another one was begun.

        """
        try:
            self.check_begun(identity)
        except ExportError:
            root = self._root()
            with contextlib.suppress(OSError, ExportError):  # that another was begun matters more
                if root is None or root.is_dir():
                    with self.alone():
                        if self._identity() != identity:  # the same export may be begun again
                            self.delete_folder(shards_of(identity).rstrip("/"))
                            # if empty; an export that is under way may just have created it
                            if root is not None and self.read(BEGUN) is None:
                                (root / SHARDS).rmdir()
            raise


def shards_of(identity: dict[str, Any]) -> str:
    """Return the key prefix of an export's temporary folder, with its final slash."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return f"{SHARDS}/{digest[:32]}/"


@dataclasses.dataclass(frozen=True)
class ShardedArray:
    """An array of a target that is written shard by shard. Pickles as a name and metadata."""

    target: Target
    path: str
    """Path of the array in the store."""
    metadata: ArrayV3Metadata
    """Metadata of the array, which the store gets last."""
    folder: str = ""
    """Key prefix of the temporary folder of its shards."""

    @property
    def array(self) -> zarr.Array[ArrayV3Metadata]:
        """The array in the temporary folder, which can be used without its ``zarr.json``."""
        import zarr
        from zarr.core.array_spec import ArrayConfig
        from zarr.storage import StorePath

        return zarr.Array(
            zarr.AsyncArray(
                metadata=self.metadata,
                store_path=StorePath(self.target.store, self.folder + self.path),
                # write empty shards too: a missing key always means an unwritten shard
                config=ArrayConfig(order="C", write_empty_chunks=True),
            )
        )

    def key(self, index: tuple[int, ...]) -> str:
        """Return the key of a shard."""
        return f"{self.path}/{self.metadata.encode_chunk_key(index)}"

    def write(self, index: tuple[int, ...], pixels: NDArray[np.generic]) -> None:
        """Write the pixels of the shard at an index, in the temporary folder."""
        array = self.array
        corner = [i * edge for i, edge in zip(index, self._shard_shape, strict=True)]
        region = tuple(slice(a, a + n) for a, n in zip(corner, pixels.shape, strict=True))
        with self.target.reached():
            array[region] = pixels

    def finished(
        self, indices: Iterable[tuple[int, ...]], existing: set[str]
    ) -> set[tuple[int, ...]]:
        """Return the indices of intact shards; damaged ones are deleted.

        Parameters
        ----------
        indices : iterable of tuple of int
            Indices of shards.
        existing : set of str
            Keys of shards that an earlier run has written.

        """
        array = self.array

        def is_whole(index: tuple[int, ...]) -> bool:
            # reading a pixel checks the index at the end of the shard, which has a checksum
            try:
                array[tuple(i * edge for i, edge in zip(index, self._shard_shape, strict=True))]
            except Exception:  # any damage: the shard is written again
                return False
            return True

        candidates = [index for index in indices if self.key(index) in existing]
        are_whole = together(is_whole, candidates, CONCURRENCY)
        whole = {index for index, ok in zip(candidates, are_whole, strict=True) if ok}
        damaged = (index for index in candidates if index not in whole)
        self.target.delete(self.folder + self.key(index) for index in damaged)
        return whole

    @property
    def _shard_shape(self) -> tuple[int, ...]:
        return self.metadata.chunk_grid.chunk_shape  # type: ignore[attr-defined]
