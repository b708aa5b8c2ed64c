"""Which files the slides of a repository were made from: an attribute of each slide's group."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, TypeAlias

from dicomslide.backends.concatenation import parts_of
from dicomslide.backends.net.redaction import public_url
from dicomslide.backends.objects.repositories import reason_of, storage_of
from dicomslide.backends.records import record_of, source_of
from dicomslide.errors import CohortIndexError, NotSlideError, SourceReadError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dicomslide.backends.base import FrameSource
    from dicomslide.contents.contents import SlideContents

__all__ = ["ATTRIBUTE", "origin_of", "origins_in"]

ATTRIBUTE = "dicomslide_sources"
VERSION = 1
AT_ONCE = 256
"""Groups whose attributes are read at once."""

Origin: TypeAlias = "tuple[tuple[FrameSource, ...], tuple[int, ...]]"
"""Sources of a slide, and the indices of those that aren't needed to open it."""


def origin_of(slide: SlideContents) -> str:
    """Return the sources of a slide as JSON."""
    sources = [
        record_of(part) | {"later": at in slide._beside}
        for at, source in enumerate(slide._sources)
        for part in parts_of(source)
    ]
    return json.dumps({"version": VERSION, "sources": sources})


def origins_in(repository: Any) -> tuple[dict[str, Origin], dict[str, Exception]]:
    """Return the sources of the slides of a repository, and errors, by the names of groups.

    Parameters
    ----------
    repository : path-like, icechunk.Storage or icechunk.Repository
        The repository, of which the newest commit of the branch ``main`` is read.

    Raises
    ------
    SourceReadError
        When it can't be read.

    """
    import icechunk
    from zarr.core.sync import sync

    try:
        if not isinstance(repository, icechunk.Repository):
            repository = icechunk.Repository.open(storage_of(repository))
        documents = sync(_documents(repository.readonly_session("main").store))
    except icechunk.IcechunkError as error:
        name = public_url(str(repository))
        raise SourceReadError(
            f"{name}: icechunk can't read the repository: {reason_of(error)}"
        ) from error
    found: dict[str, Origin] = {}
    failures: dict[str, Exception] = {}
    for name, document in sorted(documents.items()):
        try:
            found[name] = _origin(name, document.get("attributes", {}).get(ATTRIBUTE))
        except (CohortIndexError, NotSlideError) as error:
            failures[name] = error
    return found, failures


def _origin(name: str, said: Any) -> Origin:
    if said is None:
        raise NotSlideError(
            f"{name}: the group doesn't say which files it was made from; write it again by"
            " dicomslide.virtual.to_icechunk"
        )
    try:
        values = json.loads(said)
        version, records = values["version"], values["sources"]
        if version == VERSION:
            later = tuple(at for at, record in enumerate(records) if record["later"])
            return tuple(map(source_of, records)), later
    except (CohortIndexError, KeyError, TypeError, ValueError) as error:
        raise CohortIndexError(f"{name}: its attribute {ATTRIBUTE} is damaged: {error}") from error
    raise CohortIndexError(
        f"{name}: its attribute {ATTRIBUTE} is of version {version!r}; this package reads"
        f" version {VERSION}"
    )


async def _documents(store: Any) -> dict[str, dict[str, Any]]:
    """Return the metadata of the groups of a store by name, without those in them."""
    from zarr.core.buffer import default_buffer_prototype

    prototype = default_buffer_prototype()
    names = [name async for name in store.list_dir("") if name != "zarr.json"]

    async def read(some: Iterable[str]) -> list[Any]:
        return await asyncio.gather(*(store.get(f"{each}/zarr.json", prototype) for each in some))

    found: dict[str, dict[str, Any]] = {}
    for start in range(0, len(names), AT_ONCE):
        some = names[start : start + AT_ONCE]
        documents = zip(some, await read(some), strict=True)
        found |= {name: json.loads(each.to_bytes()) for name, each in documents if each}
    return found
