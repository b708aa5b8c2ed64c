"""Clients that a caller gives, and searches with them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dicomslide.backends.base import Series, is_source, is_store
from dicomslide.backends.criteria import Criteria
from dicomslide.backends.dicomweb.protocol import is_client
from dicomslide.backends.dicomweb.searching import PAGE, Search, pages_of, value_of
from dicomslide.backends.net.addresses import URL_SCHEME, is_dicomweb_url, parse_web_url
from dicomslide.backends.part10.file import FileSource, files_of, is_dicom_file
from dicomslide.backends.search import selected
from dicomslide.errors import MetadataError, NotDicomError, NotSlideError
from dicomslide.header import dicom
from dicomslide.process.forks import ForkLock
from dicomslide.process.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from pydicom.dataset import Dataset

    from dicomslide.backends.base import FrameSource
    from dicomslide.backends.dicomweb.connection import Address, Connection
    from dicomslide.backends.dicomweb.protocol import DicomWebClient

__all__ = ["ClientStore", "check_access", "frame_source", "is_client", "is_dicomweb_url",
           "store_at"]  # fmt: skip

SOP_INSTANCE_UID = 0x00080018
ANY = Criteria()


def frame_source(client: Any, metadata: Dataset) -> FrameSource:
    """Return the source of an instance, by the client that a caller gave.

    Parameters
    ----------
    client : dicomweb_client.api.DICOMClient, FrameStore or FrameSource
        Client or store of the instance. Files of a ``DICOMfileClient`` are read directly.
    metadata : pydicom.dataset.Dataset
        Metadata of the instance.

    Raises
    ------
    TypeError
        When the client is of another type.
    MetadataError
        When it doesn't have the instance, or the metadata lack UIDs.

    """
    if is_source(client):
        return client
    if is_store(client):
        return client.source(metadata)
    if not is_client(client):
        raise TypeError(
            f"client is a {type(client).__name__}; expected a dicomweb_client.api.DICOMClient, or"
            " a FrameStore or FrameSource of dicomslide"
        )
    folder = _folder_of(client)
    if folder is None:
        from dicomslide.backends.dicomweb.source import (
            DicomWebSource,  # imported here, because files don't need it
        )

        return DicomWebSource.of(client, metadata)
    return folder.source(dicom.text(metadata, "SOPInstanceUID") or "")


# -- URLs ------------------------------------------------------------------------------------


def check_access(source: Any, storage_options: Any, session: Any) -> None:
    """Raise a ValueError for a session or storage options that don't apply to the source."""
    is_web = isinstance(source, str) and is_dicomweb_url(source)
    if session is not None and not is_web:
        raise ValueError(
            "a session is for the URL of a DICOMweb service, study or series; a client has its"
            " own, and URLs of objects and folders are reached as storage_options say"
        )
    if storage_options is not None and (is_web or is_client(source) or is_store(source)):
        raise ValueError(
            "storage_options are for URLs of objects and folders; a DICOMweb server is reached as"
            " register_credentials says, or by a session"
        )


def store_at(url: str, session: Any = None, criteria: Criteria | None = None) -> ClientStore:
    """Return the instances at ``dicomweb+https://host/.../studies/.../series/...``.

    Parameters
    ----------
    url : str
        URL of a service, a study or a series.
    session : requests.Session or callable, optional
        Session for all requests; by default what is registered for the server.
    criteria : Criteria, optional
        Values that instances have; by default any.

    Raises
    ------
    NotDicomError
        When it isn't such a URL, or contains credentials.
    NotSlideError
        When it is the URL of another study than the requested one.

    """
    from dicomslide.backends.dicomweb.connection import Address, connection_at, connection_with
    from dicomslide.backends.net.redaction import public

    if public(url) != url:
        raise NotDicomError(
            f"{public(url)}: a URL may hold no user, password or query, for it is kept and shown;"
            " see dicomslide.register_credentials"
        )
    found = parse_web_url(url)
    if found is None:
        raise NotDicomError(f"{url} isn't like {URL_SCHEME}https://host/studies/1.2.3/series/4.5.6")
    address = Address("DICOMwebClient", found.service, None)
    own = None if session is None else connection_with(address, session)
    client = connection_at(address).client if own is None else own.client
    wanted = Criteria() if criteria is None else criteria
    if found.study is not None:
        if wanted.study_instance_uid not in (None, found.study):
            raise NotSlideError(f"no instance of study {wanted.study_instance_uid}: it is {url}")
        wanted = wanted.of(found.study)
    return ClientStore(client, wanted, found.series, own or address)


# -- clients of files ------------------------------------------------------------------------


class _Folder:
    """Files of a folder by SOP Instance UID, examined as far as needed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = ForkLock()
        self._files: dict[str, str] = {}
        self._seen: set[str] = set()

    def source(self, uid: str) -> FileSource:
        """Return the file of an instance.

        Raises
        ------
        MetadataError
            When no file has its SOP Instance UID.

        """
        with self._lock:
            for _ in range(2):
                file = self._files.get(uid) or self._look_for(uid)
                if file is not None:
                    with contextlib.suppress(FileNotFoundError, NotDicomError):
                        source = FileSource.open(file)
                        if source.sop_instance_uid == uid:
                            return source
                self._files.clear()  # files may have changed since they were examined
                self._seen.clear()
        raise MetadataError(f"{self._path}: no file holds the instance {uid or 'without UID'}")

    def _look_for(self, uid: str) -> str | None:
        for file in files_of(Path(self._path)):
            if file not in self._seen:
                self._seen.add(file)
                found = _uid_in(file)
                if found is not None:
                    self._files.setdefault(found, file)
                if found == uid:
                    return file
        return None


_folders: Registry[str, _Folder] = Registry(16, "folders of clients")


def _folder_of(client: Any) -> _Folder | None:
    """Return the folder of a ``DICOMfileClient``; None for other clients."""
    if getattr(client, "scheme", None) != "file":
        return None
    path = os.path.abspath(client.url_prefix)
    return _folders.get(path, lambda: _Folder(path))


def _uid_in(file: str) -> str | None:
    """Read the SOP Instance UID of a file, and nothing after it."""
    from pydicom.errors import InvalidDicomError
    from pydicom.filereader import read_partial

    if not is_dicom_file(file):
        return None
    try:
        with open(file, "rb") as opened:
            start = read_partial(opened, lambda tag, vr, length: tag > SOP_INSTANCE_UID)
            return dicom.text(start, "SOPInstanceUID")
    except (InvalidDicomError, OSError, ValueError, AttributeError, EOFError):
        return None


# -- searching -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ClientStore:
    """Instances that a client finds: slide images, derived images and annotations.

    Parameters
    ----------
    client : dicomweb_client.api.DICOMClient
        Client.
    criteria : Criteria, optional
        Values that instances have; by default any.
    series_instance_uid : str, optional
        Restricts the store to one series of the study.
    link : Connection or Address, optional
        Connection to read through instead of the client; or an address, for sources that are read
        with what is registered for it.

    """

    client: DicomWebClient
    criteria: Criteria = ANY
    series_instance_uid: str | None = None
    link: Connection | Address | None = None
    _read: dict[Series, list[Dataset]] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """Metadata that a search has read, until they are asked for."""

    def source(self, metadata: Dataset) -> FrameSource:
        """Return the source of an instance."""
        if self.link is None:
            return frame_source(self.client, metadata)
        from dicomslide.backends.dicomweb.source import DicomWebSource

        return DicomWebSource.through(self.link, metadata)

    @property
    def _connection(self) -> Connection:
        from dicomslide.backends.dicomweb.connection import Connection, connection_at, connection_of

        if self.link is None:
            return connection_of(self.client)
        return self.link if isinstance(self.link, Connection) else connection_at(self.link)

    @property
    def metadata(self) -> list[Dataset]:
        """Metadata of all instances, ordered by series, Instance Number and UID."""
        return [
            each for page in self.pages() for series in page for each in self.metadata_of(series)
        ]

    @property
    def may_share(self) -> bool:
        """Whether threads may use the client: a database of files is its thread's own."""
        return _folder_of(self.client) is None

    def pages(
        self,
        *,
        include_derived: bool = True,
        attempt: Callable[[str], AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> Iterator[list[Series]]:
        """Search for series of slides, and in their studies for series derived from them.

        Parameters
        ----------
        include_derived, attempt
            See :meth:`Catalog.pages <dicomslide.backends.search.Catalog.pages>`.

        Raises
        ------
        MetadataError
            When a search fails.

        """
        study, series = self.criteria.study_instance_uid, self.series_instance_uid
        if study is not None and series is not None:
            return iter([[Series(study, series)]])
        wanted = self.criteria.modalities(include_derived=include_derived)
        search = Search(self._connection, self.criteria, not self.may_share, self._peek)
        return search.pages(wanted, attempt)

    def metadata_of(self, series: Series) -> list[Dataset]:
        """Retrieve the metadata of a series in one request, ordered by Instance Number and UID.

        Instances with other values than requested are left out, because some servers ignore
        filters.

        Raises
        ------
        MetadataError
            When they can't be retrieved.

        """
        found = self._read.pop(series, None)
        return selected(self._all_of(series) if found is None else found, self.criteria)

    def _peek(self, series: Series) -> list[Dataset]:
        """Return the metadata of all instances of a series, which aren't retrieved again."""
        found = self._read[series] = self._all_of(series)
        return found

    def _all_of(self, series: Series) -> list[Dataset]:
        uids = dataclasses.astuple(series)
        folder = _folder_of(self.client)
        if folder is None:
            return self._connection.series_metadata(*uids)
        pages = pages_of(
            self._connection,
            "instances",
            "SOPInstanceUID",
            lambda offset, _: self.client.search_for_instances(
                study_instance_uid=uids[0],
                series_instance_uid=uids[1],
                limit=PAGE,
                offset=offset,
            ),
        )
        return [
            folder.source(value_of(each, "SOPInstanceUID") or "").metadata
            for page in pages
            for each in page
        ]
