"""Requests to a DICOMweb service through a session of requests, with checks of replies."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode

import numpy as np

from dicomslide.backends.dicomweb.dicom_json import MOST_NESTED, nesting_of
from dicomslide.backends.dicomweb.multipart import (
    WHETHER_STORED,
    Part,
    ReplyError,
    WrongTypeError,
    parts_of,
)
from dicomslide.backends.dicomweb.protocol import DicomWebClient
from dicomslide.backends.dicomweb.transport import Transport, TransportError
from dicomslide.backends.net import policy as policies
from dicomslide.backends.net.policy import TEMPORARY
from dicomslide.options import get_options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pydicom.dataset import Dataset

    from dicomslide.backends.dicomweb.transport import Read
    from dicomslide.pixels import PixelFormat

__all__ = ["FAILURES", "REFUSALS", "WebService", "little_endian", "web_client_class"]

T = TypeVar("T")

BIG_ENDIAN = "1.2.840.10008.1.2.2"
ANSWERED = tuple(
    method.__name__
    for method in (
        DicomWebClient.retrieve_bulkdata,
        DicomWebClient.retrieve_instance,
        DicomWebClient.retrieve_instance_frames,
        DicomWebClient.retrieve_instance_metadata,
        DicomWebClient.retrieve_series_metadata,
        DicomWebClient.search_for_instances,
        DicomWebClient.search_for_series,
        DicomWebClient.search_for_studies,
    )
)
"""Methods of a client that `WebService` replaces."""
JSON_TYPES = ("application/dicom+json", "application/json")
FRAME_TYPES = ("application/octet-stream", "image/")
DICOM_TYPES = (
    'multipart/related; type="application/dicom"; transfer-syntax=*',
    'multipart/related; type="application/dicom"',
)
REFUSALS = frozenset({400, 406, 415})
"""HTTP status that may mean that a server doesn't support this media type."""
FAILURES = frozenset({500, 501})
"""HTTP status of servers that can't convert an instance to this media type."""
MOST_RESULT_BYTES = 16 * 2**20
"""Upper bound on a page of search results."""
MOST_JSON_BYTES = 256 * 2**20
"""Upper bound on metadata of an instance or series: 200,000 frames with 1.2 kB of groups each."""
MOST_BULK_BYTES = 64 * 2**20
"""Upper bound on bulk data, which are ICC profiles."""
MOST_INSTANCE_BYTES = 2 * 2**30
"""Upper bound on an instance that is retrieved as a whole, such as annotations."""
HEADERS = 2**16
"""Upper bound on the bytes around a frame in a reply."""


class WebService:
    """Sends the requests of a ``DICOMwebClient``, with the policy of this package.

    Parameters
    ----------
    wado, qido, stow : str
        URLs of the service, for retrieval, for searches and for storage.
    transport : Transport
        Sender of the requests.

    """

    def __init__(self, wado: str, qido: str, stow: str, transport: Transport) -> None:
        self.wado = wado
        """URL for retrieval, which may contain a user and a password."""
        self._qido = qido
        self.stow = stow
        """URL for storage, likewise."""
        self.transport = transport

    @classmethod
    def of(
        cls,
        client: Any,
        session: Callable[[], Any],
        refresh: Callable[[Any, Any], bool] | None,
        auth: Callable[[], Any],
    ) -> WebService | None:
        """Return the service of a client; None for a client with its own methods.

        Parameters
        ----------
        client : dicomweb_client.api.DICOMClient
            Client.
        session : callable
            Returns the session.
        refresh, auth : callable
            See :class:`Transport`.

        """
        if not _is_plain(client):
            return None
        url = str(client.base_url).rstrip("/")
        prefixes = (client.wado_url_prefix, client.qido_url_prefix, client.stow_url_prefix)
        wado, qido, stow = (f"{url}/{prefix}" if prefix else url for prefix in prefixes)
        timeout = getattr(client, "_timeout", None)
        policy = policies.POLICY
        if timeout is not None:
            connect, silence = timeout if isinstance(timeout, tuple) else (timeout, timeout)
            policy = dataclasses.replace(
                policy, connect=connect or policy.connect, silence=silence or policy.silence
            )
        return cls(wado, qido, stow, Transport(session, refresh=refresh, auth=auth, policy=policy))

    # -- searching --

    def search_for_studies(
        self,
        *,
        limit: int,
        offset: int,
        search_filters: dict[str, Any] | None = None,
    ) -> list[Mapping[str, Any]]:
        """Search for studies."""
        return self._search("/studies", limit, offset, search_filters)

    def search_for_series(
        self,
        *,
        limit: int,
        offset: int,
        study_instance_uid: str | None = None,
        search_filters: dict[str, Any] | None = None,
    ) -> list[Mapping[str, Any]]:
        """Search for series, of a study if it is given."""
        where = f"/studies/{study_instance_uid}" if study_instance_uid else ""
        return self._search(f"{where}/series", limit, offset, search_filters)

    def search_for_instances(
        self,
        *,
        limit: int,
        offset: int,
        study_instance_uid: str | None = None,
        series_instance_uid: str | None = None,
        search_filters: dict[str, Any] | None = None,
    ) -> list[Mapping[str, Any]]:
        """Search for instances, of a study or a series if they are given."""
        where = f"/studies/{study_instance_uid}" if study_instance_uid else ""
        where += f"/series/{series_instance_uid}" if series_instance_uid else ""
        return self._search(f"{where}/instances", limit, offset, search_filters)

    def _search(
        self, path: str, limit: int, offset: int, filters: dict[str, Any] | None
    ) -> list[Mapping[str, Any]]:
        # wildcards as they are: some servers take encoded ones literally
        query = urlencode({**(filters or {}), "limit": limit, "offset": offset}, safe="*?")
        return self._json(f"{self._qido}{path}?{query}", MOST_RESULT_BYTES)

    # -- metadata --

    def retrieve_series_metadata(self, study: str, series: str) -> list[Mapping[str, Any]]:
        """Retrieve the metadata of the instances of a series, as DICOM JSON."""
        return self._json(f"{self.wado}/studies/{study}/series/{series}/metadata", _most_json())

    def retrieve_instance_metadata(
        self, study: str, series: str, instance: str
    ) -> list[Mapping[str, Any]]:
        """Retrieve the metadata of an instance, as DICOM JSON."""
        return self._json(f"{self._instance(study, series, instance)}/metadata", _most_json())

    def _json(self, url: str, most_bytes: int) -> list[Mapping[str, Any]]:
        refusals = REFUSALS - {400}
        return self._get(url, JSON_TYPES, _read_json, most_bytes, refusals=refusals, nothing=[])

    def _get(
        self,
        url: str,
        media_types: Sequence[str],
        read: Read[T],
        most_bytes: int,
        *,
        refusals: frozenset[int] = REFUSALS,
        nothing: T | None = None,
    ) -> T:
        """Get the reply in the first media type that the server doesn't refuse."""
        deadline = self.transport.deadline()  # of all attempts together
        *others, last = media_types
        get = functools.partial(
            self.transport.get, read=read, most_bytes=most_bytes, deadline=deadline, nothing=nothing
        )
        for accept in others:
            try:
                return get(url, accept)
            except TransportError as error:
                if error.status not in refusals:
                    raise
        return get(url, last)

    # -- bytes --

    def retrieve_instance(
        self, study: str, series: str, instance: str, *, most_bytes: int | None = None
    ) -> Dataset:
        """Retrieve a whole instance, in the stored transfer syntax if the server supports that."""
        from io import BytesIO

        from pydicom import dcmread

        (part,) = self._get(
            self._instance(study, series, instance),
            DICOM_TYPES,
            lambda kind, chunks: _read_parts(kind, chunks, 1, "application/dicom"),
            MOST_INSTANCE_BYTES if most_bytes is None else most_bytes,
        )
        return dcmread(BytesIO(part.data))

    def retrieve_bulkdata(
        self, url: str, media_types: tuple[str | tuple[str, str], ...] = ("*/*",)
    ) -> list[bytes]:
        """Retrieve bulk data; in any media type if the server refuses the given one."""
        parts = self._get(
            url,
            (_accept(media_types[0]), "*/*"),
            lambda kind, chunks: _read_parts(kind, chunks, 1, "application/octet-stream"),
            MOST_BULK_BYTES,
        )
        return [part.data for part in parts]

    def retrieve_instance_frames(
        self,
        study: str,
        series: str,
        instance: str,
        frame_numbers: Sequence[int],
        media_types: tuple[str | tuple[str, str], ...] | None = None,
        *,
        frame_bytes: int,
        deadline: float,
        retried: frozenset[int] = TEMPORARY,
    ) -> list[Part]:
        """Retrieve frames.

        Parameters
        ----------
        study, series, instance : str
            UIDs.
        frame_numbers : sequence of int
            One-based numbers.
        media_types : tuple, optional
            One media type, with a transfer syntax or without.
        frame_bytes : int
            Upper bound on the bytes of a frame.
        deadline : float
            When to give up; see :meth:`Transport.deadline`.
        retried : frozenset of int
            HTTP status that is followed by another attempt.

        Returns
        -------
        list of Part
            One part per frame, in the order of `frame_numbers`.

        """
        url = self._instance(study, series, instance)
        numbers = list(frame_numbers)

        def read(kind: str, chunks: Iterator[bytes]) -> list[Part]:
            return _in_order(_read_parts(kind, chunks, len(numbers), *FRAME_TYPES), numbers)

        return self.transport.get(
            f"{url}/frames/{','.join(map(str, numbers))}",
            "*/*" if media_types is None else _accept(media_types[0]),
            read,
            most_bytes=len(numbers) * (frame_bytes + HEADERS),
            retried=retried,
            deadline=deadline,
        )

    def _instance(self, study: str, series: str, instance: str) -> str:
        return f"{self.wado}/studies/{study}/series/{series}/instances/{instance}"


def web_client_class() -> type | None:
    """Return the class ``DICOMwebClient`` if it is imported, else None."""
    module = sys.modules.get("dicomweb_client.api")
    return getattr(module, "DICOMwebClient", None)


def _is_plain(client: Any) -> bool:
    """Whether a client is a ``DICOMwebClient`` without overridden methods."""
    known = web_client_class()
    if known is None or not isinstance(client, known):
        return False
    import requests

    return (
        isinstance(getattr(client, "_session", None), requests.Session)
        and not any(name in vars(client) for name in (*ANSWERED, "_http_get"))
        and all(
            getattr(type(client), name) is getattr(known, name) for name in (*ANSWERED, "_http_get")
        )
    )


def _accept(media_type: str | tuple[str, str]) -> str:
    """Return an Accept header with one media type, because some servers use only the last."""
    kind, syntax = (media_type, None) if isinstance(media_type, str) else media_type
    return f'multipart/related; type="{kind}"' + (f"; transfer-syntax={syntax}" if syntax else "")


def _most_json() -> int:
    return min(MOST_JSON_BYTES, get_options().memory_limit_bytes)


def _read_json(kind: str, chunks: Iterator[bytes]) -> list[Mapping[str, Any]]:
    data = bytearray()
    for chunk in chunks:  # not joined at the end, which would double the memory
        data += chunk
    if not data:  # a result without items has status 204
        raise ReplyError("the reply is empty")
    if "json" not in kind:
        raise WrongTypeError(f"the reply is {kind or 'of no type'}, not DICOM JSON")
    if (depth := nesting_of(data)) > MOST_NESTED:
        raise ReplyError(
            f"the reply isn't DICOM JSON: {depth:,} levels deep; expected {MOST_NESTED} at most"
        )
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ReplyError(f"the reply isn't JSON: {error}") from None
    found = [found] if isinstance(found, dict) else found
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise WrongTypeError("the reply is JSON, but not DICOM JSON")
    return found


def _read_parts(kind: str, chunks: Iterator[bytes], count: int, *media_types: str) -> list[Part]:
    """Read the requested number of parts; check their number and media types."""
    parts: list[Part] = []
    for part in parts_of(kind, chunks):
        if part.media_type and not part.media_type.startswith(media_types):
            raise WrongTypeError(f"part {len(parts) + 1} is {part.media_type}")
        parts.append(part)
        if len(parts) > count:
            raise ReplyError(f"more parts came than the {count} that were asked for")
        if not part.data:  # it would be background
            raise ReplyError(f"part {len(parts)} is empty: {WHETHER_STORED}")
    if len(parts) < count:
        raise ReplyError(f"{len(parts)} parts came for {count}")
    return parts


def _in_order(parts: list[Part], numbers: list[int]) -> list[Part]:
    """Return parts in the order of frames, if they declare frame numbers."""
    found = {part.frame_number: part for part in parts}
    if found.keys() == set(numbers):
        return [found[number] for number in numbers]
    # parts without a number are in order if all declared numbers are at their positions
    said = [part.frame_number for part in parts]
    if any(each not in (None, number) for each, number in zip(said, numbers, strict=True)):
        strange = sorted(each for each in found if each is not None and each not in numbers)
        raise ReplyError(f"parts came that say they are frames {strange or said}")
    return parts


def little_endian(part: Part, pixel_format: PixelFormat) -> bytes:
    """Return the bytes of a frame in little-endian order.

    The transfer syntax in the header of the part is used for byte order only, which the bytes of a
    native frame don't show. Everything else is detected from the bytes.
    """
    is_native = len(part.data) == pixel_format.native_bytes
    if part.transfer_syntax_uid != BIG_ENDIAN or not is_native or pixel_format.bits_allocated <= 8:
        return part.data
    width = pixel_format.bits_allocated // 8
    return np.frombuffer(part.data, f">u{width}").astype(f"<u{width}").tobytes()
