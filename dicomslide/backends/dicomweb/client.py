"""Clients that a caller gives, and searches with them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dicomslide.backends.base import Series, is_source, is_store
from dicomslide.backends.dicomweb.protocol import is_client
from dicomslide.backends.net.addresses import URL_SCHEME, is_dicomweb_url, parse_web_url
from dicomslide.backends.part10.file import FileSource, files_of, is_dicom_file
from dicomslide.backends.search import DERIVED_MODALITIES, SLIDE_MODALITY, selected
from dicomslide.errors import MetadataError, MetadataWarning, NotDicomError
from dicomslide.header import dicom
from dicomslide.process.forks import ForkLock
from dicomslide.process.registry import Registry
from dicomslide.process.warn import warn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from pydicom.dataset import Dataset

    from dicomslide.backends.base import FrameSource
    from dicomslide.backends.dicomweb.connection import Address, Connection
    from dicomslide.backends.dicomweb.protocol import Answering, DicomWebClient, Json

__all__ = ["ClientStore", "check_access", "frame_source", "is_client", "is_dicomweb_url",
           "store_at"]  # fmt: skip

SOP_INSTANCE_UID = 0x00080018
PAGE = 200
"""Results per page of a search: the number that the strictest servers allow."""
MOST_RESULTS = 10**6
"""Upper bound on the results of a search, which ends searches that repeat forever."""


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


def store_at(url: str, session: Any = None) -> ClientStore:
    """Return the instances at ``dicomweb+https://host/.../studies/.../series/...``.

    Parameters
    ----------
    url : str
        URL of a service, a study or a series.
    session : requests.Session or callable, optional
        Session for all requests; by default what is registered for the server.

    Raises
    ------
    NotDicomError
        When it isn't such a URL, or contains credentials.

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
    return ClientStore(client, found.study, series_instance_uid=found.series, link=own or address)


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
    study_instance_uid, patient_id, study_id : str, optional
        Values that the studies have; by default any.
    series_instance_uid : str, optional
        Restricts the store to one series of the study.
    link : Connection or Address, optional
        Connection to read through instead of the client; or an address, for sources that are read
        with what is registered for it.

    """

    client: DicomWebClient
    study_instance_uid: str | None = None
    patient_id: str | None = None
    study_id: str | None = None
    series_instance_uid: str | None = None
    link: Connection | Address | None = None

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
        return [each for series in self.series() for each in self.metadata_of(series)]

    def series(
        self,
        *,
        include_derived: bool = True,
        attempt: Callable[[str], AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> list[Series]:
        """Search for series of slides, and in their studies for series derived from them.

        Parameters
        ----------
        include_derived, attempt
            See :meth:`Catalog.series <dicomslide.backends.search.Catalog.series>`.

        Raises
        ------
        MetadataError
            When a search fails.

        """
        study, series = self.study_instance_uid, self.series_instance_uid
        if study is not None and series is not None:
            return [Series(study, series)]
        wanted = (SLIDE_MODALITY, *(DERIVED_MODALITIES if include_derived else ()))
        found: set[Series] = set()
        studies: list[str | None] = []
        with attempt("the search for studies"):
            studies = self._studies()
        for study in studies:
            by_modality: dict[str, set[Series]] = {}
            where = "" if study is None else f" of study {study}"
            # one search finds all series of a given study
            for modality in wanted if self.study_instance_uid is None else (None,):
                what = "" if modality is None else f" of modality {modality}"
                with attempt(f"the series{what}{where}"):
                    for each, its in self._search(study, modality):
                        by_modality.setdefault(its, set()).add(each)
                if not by_modality.get(SLIDE_MODALITY):
                    break
            slides = by_modality.pop(SLIDE_MODALITY, set())
            having_slides = {each.study_instance_uid for each in slides}
            found |= slides
            for modality in by_modality.keys() & set(wanted):
                found |= {
                    each
                    for each in by_modality[modality]
                    if each.study_instance_uid in having_slides
                }
        return sorted(found)

    def metadata_of(self, series: Series) -> list[Dataset]:
        """Retrieve the metadata of a series in one request, ordered by Instance Number and UID.

        Instances with another PatientID or StudyID than requested are left out, because some
        servers ignore filters.

        Raises
        ------
        MetadataError
            When they can't be retrieved.

        """
        uids = dataclasses.astuple(series)
        folder = _folder_of(self.client)
        if folder is None:
            metadata = self._connection.series_metadata(*uids)
        else:
            instances = self._pages(
                "instances",
                "SOPInstanceUID",
                lambda offset, _: self.client.search_for_instances(
                    study_instance_uid=uids[0],
                    series_instance_uid=uids[1],
                    limit=PAGE,
                    offset=offset,
                ),
            )
            metadata = [
                folder.source(_value(each, "SOPInstanceUID") or "").metadata for each in instances
            ]
        return selected(metadata, {"PatientID": self.patient_id, "StudyID": self.study_id})

    def _studies(self) -> list[str | None]:
        if self.study_instance_uid is not None:
            return [self.study_instance_uid]
        filters = {"PatientID": self.patient_id, "StudyID": self.study_id}
        given = {key: value for key, value in filters.items() if value is not None}
        if not given:
            return [None]
        found = self._pages(
            "studies",
            "StudyInstanceUID",
            lambda offset, asked: asked.search_for_studies(
                limit=PAGE, offset=offset, search_filters=given
            ),
        )
        uids = {_value(study, "StudyInstanceUID") for study in found}
        return [*sorted(uid for uid in uids if uid)]

    def _search(self, study: str | None, modality: str | None) -> Iterator[tuple[Series, str]]:
        """Search for series; yield each with its modality, which defaults to that of slides."""
        where: dict[str, Any] = {} if study is None else {"study_instance_uid": study}
        if modality is not None:
            where["search_filters"] = {"Modality": modality}
        for found in self._pages(
            "series",
            "SeriesInstanceUID",
            lambda offset, asked: asked.search_for_series(limit=PAGE, offset=offset, **where),
        ):
            uids = (
                _value(found, "StudyInstanceUID") or study,
                _value(found, "SeriesInstanceUID"),
            )
            its = _value(found, "Modality") or modality or SLIDE_MODALITY
            # some servers ignore the filter
            if None not in uids and modality in (None, its):
                yield Series(str(uids[0]), str(uids[1])), its

    def _pages(
        self, kind: str, key: str, search: Callable[[int, Answering], Sequence[Json]]
    ) -> list[Json]:
        """Search page by page, until a page has no new result.

        Servers that ignore the offset repeat the first page; if it is full, there is a warning that
        results may be missing.

        Parameters
        ----------
        kind : str
            Name of the results, in the plural.
        key : str
            Keyword of the UID that identifies a result.
        search : callable
            Given an offset and a client, searches for :data:`PAGE` results from this offset.

        """
        connection = self._connection
        found: dict[str | None, Json] = {}
        received = 0
        what = f"the results of a search for {kind}"
        while True:
            page = connection.ask(what, functools.partial(search, received))
            new = {_value(each, key): each for each in page or ()}
            if new.keys() <= found.keys():
                if len(page or ()) >= PAGE:
                    warn(
                        f"{connection.address.url} gives the same page of {what} again: there may"
                        f" be more than these {len(found)}",
                        MetadataWarning,
                    )
                return list(found.values())
            found |= new
            received += len(page)
            if received > MOST_RESULTS:
                raise MetadataError(f"{connection.address.url}: {what} have no end")


def _value(found: Json, keyword: str) -> str | None:
    """Return a value of a search result, DICOM JSON, as text."""
    from pydicom.datadict import tag_for_keyword

    element = found.get(f"{tag_for_keyword(keyword):08X}")
    values = element.get("Value") if isinstance(element, dict) else None
    return None if not isinstance(values, list) or values[:1] in ([], [None]) else str(values[0])
