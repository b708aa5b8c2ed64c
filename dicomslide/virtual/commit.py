"""Writing of virtual datasets to the store of an icechunk session."""

from __future__ import annotations

import asyncio
import datetime
import json
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

import numpy as np

from dicomslide.errors import NotVirtualError, StoreExistsError
from dicomslide.labelled.parts import Parts
from dicomslide.virtual.documents import array_document, chunk_of, group_document

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Built", "write_slides"]

Built: TypeAlias = tuple[dict[str, Parts], dict[str, str]]
"""Parts of a slide's datasets by path, and the ETag of each file by URL; empty if it has none."""
FORMS = ("{}", '"{}"', '""{}""')
"""Forms of an ETag, which icechunk compares with quotes or without: its versions differ."""


def write_slides(store: Any, slides: Mapping[str, Built], overwrite: bool) -> None:
    """Write groups, coordinates and references of slides to the store of a session."""
    import zarr
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.sync import sync

    root = zarr.open_group(store, mode="a", zarr_format=3)
    existing = [name for name in slides if name in root]
    if existing and not overwrite:
        raise StoreExistsError(
            f"the repository has {', '.join(existing)} already; see `overwrite`, or give other"
            " names"
        )
    for name in existing:
        del root[name]
    references = _References(store)
    make = default_buffer_prototype().buffer.from_bytes
    for name, (groups, checksums) in slides.items():
        documents: dict[str, bytes] = {}
        virtual = []
        for path, parts in groups.items():
            group = f"{name}{path}".rstrip("/")
            documents[f"{group}/zarr.json"] = _encoded(group_document(parts))
            for key, variable in parts.all().items():
                array = f"{group}/{key}"
                documents[f"{array}/zarr.json"] = _encoded(array_document(variable, "/"))
                if hasattr(variable.data, "manifest"):
                    virtual.append((array, variable.data.manifest))
                else:
                    chunk = "".join("/0" for _ in variable.dims)
                    documents[f"{array}/c{chunk}"] = chunk_of(variable)

        async def set_all(values: dict[str, bytes]) -> None:
            await asyncio.gather(*(store.set(key, make(value)) for key, value in values.items()))

        metadata = {k: v for k, v in documents.items() if k.endswith("zarr.json")}
        sync(set_all(metadata))  # before chunks, whose arrays have to be there
        sync(set_all({k: v for k, v in documents.items() if k not in metadata}))
        for array, manifest in virtual:
            references.write(array, manifest, checksums)


def _encoded(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()


class _References:
    """Writer of references, each with the checksum of its file.

    Parameters
    ----------
    store : icechunk.IcechunkStore
        Store of a writable session.

    """

    def __init__(self, store: Any) -> None:
        self._store = store
        self._forms: dict[str, str | None] = {}
        # icechunk has whole seconds
        self._now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=1)

    def write(self, array: str, manifest: Any, checksums: Mapping[str, str]) -> None:
        """Write the references of an array."""
        paths, offsets, lengths = manifest._paths, manifest._offsets, manifest._lengths
        for url in np.unique(paths[paths != ""]).tolist():
            here = paths == url
            etag = checksums[url]
            first = tuple(np.argwhere(here)[0].tolist())
            checksum = self._checksum(array, first, url, int(offsets[first]), etag)
            if hasattr(self._store, "set_virtual_refs_arr"):  # icechunk 2
                locations = np.where(here, paths, "").ravel().tolist()
                refused = self._store.set_virtual_refs_arr(
                    array,
                    paths.shape,
                    locations,
                    offsets.ravel(),
                    lengths.ravel(),
                    checksum=checksum,
                )
            else:
                places = np.argwhere(here).tolist()
                of = zip(places, offsets[here].tolist(), lengths[here].tolist(), strict=True)
                specs = [_spec(place, url, at, length, checksum) for place, at, length in of]
                refused = self._store.set_virtual_refs(array, specs)
            if refused:
                raise _no_container(url)

    def _checksum(
        self, array: str, index: tuple[int, ...], url: str, offset: int, etag: str
    ) -> str | datetime.datetime:
        """Return the ETag in the form in which icechunk compares it, or else the time.

        For the first file of a server, one byte is read by means of each form.
        """
        server = "/".join(url.split("/")[:3])
        if not etag:
            self._try(array, index, url, offset, self._now)
            return self._now
        if server not in self._forms:
            for form in FORMS:
                if self._try(array, index, url, offset, form.format(etag.strip('"'))) is None:
                    self._forms[server] = form
                    break
            else:
                failure = self._try(array, index, url, offset, self._now)
                if failure is not None:
                    raise NotVirtualError(f"{url}: icechunk can't read it: {failure}") from failure
                self._forms[server] = None  # the server has other ETags for icechunk
        form_of = self._forms[server]
        return self._now if form_of is None else form_of.format(etag.strip('"'))

    def _try(
        self, array: str, index: tuple[int, ...], url: str, offset: int, checksum: Any
    ) -> Exception | None:
        """Read a byte of a file by a reference with a checksum; return the error, or None."""
        import icechunk
        from zarr.abc.store import RangeByteRequest
        from zarr.core.buffer import default_buffer_prototype
        from zarr.core.sync import sync

        spec = _spec(list(index), url, offset, 1, checksum)
        if self._store.set_virtual_refs(array, [spec]):
            raise _no_container(url)
        key = "/".join([array, "c", *map(str, index)])
        try:
            found = sync(self._store.get(key, default_buffer_prototype(), RangeByteRequest(0, 1)))
        except icechunk.IcechunkError as error:
            return error
        return NotVirtualError("it has no bytes there") if found is None else None


def _no_container(url: str) -> NotVirtualError:
    has_port = url.startswith(("http://", "https://")) and urlsplit(url).port is not None
    why = "; icechunk reads from servers with a port from version 2 on" if has_port else ""
    return NotVirtualError(f"{url}: no container of the repository has this URL{why}")


def _spec(index: list[int], url: str, offset: int, length: int, checksum: Any) -> Any:
    import icechunk

    name = "etag_checksum" if isinstance(checksum, str) else "last_updated_at_checksum"
    return icechunk.VirtualChunkSpec(index, url, offset, length, **{name: checksum})
