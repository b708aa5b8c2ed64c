"""Connections of this process to DICOMweb servers: requests, access, and supported media types."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import time
import weakref
from collections import OrderedDict
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from dicomslide.backends.batching.encoded_frames import MOST_FRAMES
from dicomslide.backends.batching.gather import Gatherer
from dicomslide.backends.dicomweb.dicom_json import dataset_of_json, frame_groups_of_json
from dicomslide.backends.dicomweb.failures import (
    NotServedError,
    hint_for,
    is_refusal,
    kind_of,
    listed,
    read_error,
    reason_of,
    status_of,
)
from dicomslide.backends.dicomweb.multipart import WHETHER_STORED
from dicomslide.backends.dicomweb.negotiation import AS_STORED, MediaTypes, Negotiation
from dicomslide.backends.dicomweb.service import (
    FAILURES,
    REFUSALS,
    WebService,
    little_endian,
    web_client_class,
)
from dicomslide.backends.dicomweb.transport import TransportError
from dicomslide.backends.net import credentials
from dicomslide.backends.net import policy as policies
from dicomslide.backends.net.addresses import is_same_origin, is_within
from dicomslide.backends.net.credentials import Credentials
from dicomslide.backends.net.policy import DENIED, MISSING, TEMPORARY
from dicomslide.backends.net.redaction import cause_of, public
from dicomslide.errors import (
    FrameReadError,
    MetadataError,
    SourceDeniedError,
    SourceNotFoundError,
)
from dicomslide.header import dicom
from dicomslide.pixels.codestream import is_lossy
from dicomslide.process import budget as cache
from dicomslide.process.forks import ForkLock
from dicomslide.process.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pydicom.dataset import Dataset

    from dicomslide.backends.batching.prefetch import ReadAhead
    from dicomslide.backends.dicomweb.protocol import Answering, DicomWebClient
    from dicomslide.pixels import PixelFormat

__all__ = ["Address", "Connection", "connection_at", "connection_of", "connection_with",
           "register_client"]  # fmt: skip

T = TypeVar("T")

NOT_SERVED = REFUSALS | {HTTPStatus.OK, HTTPStatus.NOT_FOUND, HTTPStatus.NOT_IMPLEMENTED}
"""HTTP status of an unsupported request, or of a reply that can't be used."""
TOO_MUCH = frozenset({413, 414})
"""HTTP status of a request for too many frames."""
MOST_CLIENTS = 32
MOST_INSTANCES = 1024
MOST_SEEN = 2**17


# -- clients ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Address:
    """Address of a client's server, without credentials: the same in every process."""

    kind: str
    """Class of the client."""
    url: str
    prefix: str | None
    """URL path prefix of WADO-RS."""

    @classmethod
    def of(cls, client: Any) -> Address:
        """Return the address of a client."""
        parts = urlsplit(str(getattr(client, "base_url", "")))
        host = parts.netloc.rpartition("@")[2]
        known = web_client_class()
        kind = (
            "DICOMwebClient"
            if known is not None and isinstance(client, known)
            else f"{type(client).__module__}.{type(client).__qualname__}"
        )
        url = f"{parts.scheme}://{host}{parts.path.rstrip('/')}" if parts.scheme else kind
        return cls(kind, url, getattr(client, "wado_url_prefix", None))

    @property
    def can_be_remade(self) -> bool:
        """Whether another process can make the client from its address."""
        return self.kind == "DICOMwebClient"

    @property
    def root(self) -> str:
        """URL of the WADO-RS service."""
        return f"{self.url}/{self.prefix}" if self.prefix else self.url


class Connection:
    """Access to a server with one client, and what is known about the server.

    There is one for each client of a process, one for each server whose slides are opened by URL or
    unpickled, and one for each slide that was opened with its own session.

    A plain ``DICOMwebClient`` is replaced by a :class:`WebService`, which sends requests with its
    session by the policy of the package. Other clients are called: their requests have their own
    timeouts, and aren't repeated after failures. Only further attempts to get frames, with other
    media types, fewer frames or after empty ones, end at the deadline of the policy.

    Parameters
    ----------
    client : dicomweb_client.api.DICOMClient
        Any object with the methods of :class:`DicomWebClient`. It isn't modified.
    credentials : Credentials, optional
        Credentials from which the session was made in this package; they are renewed when the
        server refuses them. None for a client of the caller.

    """

    def __init__(self, client: DicomWebClient, credentials: Credentials | None = None) -> None:
        self._client: Any = client  # its session is replaced when credentials are renewed
        self._credentials = credentials
        self.address = Address.of(client)
        self.scope = secrets.token_hex(8)
        """Part of the keys of all values that this process caches of this connection."""
        self._seen: OrderedDict[str, None] = OrderedDict()
        self.most_frames = MOST_FRAMES
        """Upper bound on frames per request, reduced when the server refuses a longer request."""
        self.serves_float_frames = True
        """False after the server has refused frames of Float Pixel Data."""
        self._negotiation = Negotiation(lambda: time.monotonic())
        self._process = os.getpid()
        self._lock = ForkLock()
        self._gatherers: Registry[str, Gatherer] = Registry(
            MOST_INSTANCES, "request batchers", lambda gatherer: gatherer.nbytes
        )
        self.service = WebService.of(
            client,
            lambda: _session_of(self.client),
            None if credentials is None else self._renew,
            lambda: None if self._credentials is None else self._credentials.auth,
        )
        """Sends requests instead of the client; None for a client with its own methods."""

    def _renew(self, refused: Any, auth: Any) -> bool:
        """Get a new session or token, unless another thread has done so.

        Returns False if no function returns them.
        """
        if self._credentials is None or not self._credentials.is_renewable:
            return False
        with self._lock:
            if self._client._session is refused and self._credentials.auth is auth:
                self._client._session = self._credentials.renewed(refused)
        return True

    def sees(self, uid: str) -> bool:
        """Whether the server has granted access to an instance, in this process."""
        return uid in self._seen

    def saw(self, uid: str) -> None:
        """Record that the server has granted access to an instance."""
        with self._lock:
            self._seen[uid] = None
            self._seen.move_to_end(uid)
            if len(self._seen) > MOST_SEEN:
                self._seen.popitem(last=False)

    def saw_nothing(self, uid: str) -> None:
        """Record that the server has denied access to an instance."""
        with self._lock:
            self._seen.pop(uid, None)

    def forget(self) -> None:
        """Drop all cached values of this connection; close the session if it was made here."""
        if self._credentials is not None and self._credentials.makes_session:
            self._client._session.close()
        before, self.scope = self.scope, secrets.token_hex(8)
        with self._lock:
            self._seen.clear()
        cache.forget(before)

    @property
    def client(self) -> DicomWebClient:
        """The client, safe to use in this process."""
        if self._process != os.getpid():
            # a forked child must not use the sockets of its parent
            with self._lock:
                if self._process != os.getpid():
                    close = getattr(getattr(self._client, "_session", None), "close", None)
                    if close is not None:
                        close()
                    self._process = os.getpid()
        return self._client

    def deadline(self) -> float:
        """Return the deadline, by the clock of the policy, of a read that begins now."""
        service = self.service
        return policies.POLICY.begin() if service is None else service.transport.deadline()

    def gatherer(self, uid: str, make: Callable[[], ReadAhead | None]) -> Gatherer:
        """Return the object that joins the requests for frames of an instance."""
        return self._gatherers.get(uid, lambda: Gatherer(make()))

    def frames(
        self,
        uids: tuple[str, str, str],
        indices: Sequence[int],
        *,
        pixel_format: PixelFormat,
        lossy: bool,
        deadline: float | None = None,
    ) -> list[bytes]:
        """Retrieve frames in one request, in the media type that the server accepted before.

        If there is none, media types are requested one after the other. If the server refuses the
        number of frames, each half of them is requested.

        Parameters
        ----------
        uids : tuple of str
            Study, Series and SOP Instance UID.
        indices : sequence of int
            Zero-based frames.
        pixel_format : PixelFormat
            Pixel format by the header.
        lossy : bool
            Whether a lossy compression is accepted.
        deadline : float, optional
            When to give up, by the clock of the policy; by default :meth:`deadline`.

        Raises
        ------
        NotServedError
            When the server doesn't send them in any requested media type.
        FrameReadError
            When they can't be retrieved for another reason; it names the frames.

        """
        agreed = self._negotiation.agreed_on(uids[2])  # other threads may change it meanwhile
        refused: set[MediaTypes] = set()
        statuses: set[int | None] = set()
        first_error: Exception | None = None
        if deadline is None:
            deadline = self.deadline()  # of all attempts together
        is_agreed = agreed is not None
        retrieve = self._retriever(uids, indices, pixel_format, deadline, agreed=is_agreed)
        for media_types in self._negotiation.media_types(agreed, lossy=lossy):
            try:
                frames = retrieve(media_types)
                if not lossy and media_types != AS_STORED:
                    _check_lossless(frames, pixel_format)
            except Exception as error:  # each client has error types of its own
                if first_error is None or isinstance(error, _LossyError):
                    first_error = error
                refuses, status = is_refusal(error), status_of(error)
                statuses.add(HTTPStatus.NOT_ACCEPTABLE if refuses else status)
                if agreed and status not in REFUSALS:
                    break
                if refuses:
                    refused.add(media_types)
                elif status not in FAILURES:
                    break
            else:
                failed = bool(statuses & TEMPORARY)
                self._negotiation.agree(uids[2], media_types, refused, failed=failed)
                self.saw(uids[2])
                return frames
        assert first_error is not None
        if status_of(first_error) in TOO_MUCH and len(indices) > 1:
            half = len(indices) // 2
            self.most_frames = min(self.most_frames, half)
            parts = (indices[:half], indices[half:])
            options: dict[str, Any] = dict(
                pixel_format=pixel_format, lossy=lossy, deadline=deadline
            )
            return [frame for each in parts for frame in self.frames(uids, each, **options)]
        if pixel_format.floating and statuses <= NOT_SERVED:  # else it may be temporary
            self.serves_float_frames = False
        kind = NotServedError if statuses <= NOT_SERVED | FAILURES else FrameReadError
        reason = f"{reason_of(first_error)}: {self.address.url} doesn't give {listed(indices)}"
        if status_of(first_error) in DENIED | MISSING:
            self.saw_nothing(uids[2])
        raise read_error(reason, uids[2], indices, kind) from cause_of(first_error)

    def _retriever(
        self,
        uids: tuple[str, str, str],
        indices: Sequence[int],
        pixel_format: PixelFormat,
        deadline: float,
        *,
        agreed: bool,
    ) -> Callable[[MediaTypes], list[bytes]]:
        """Return a function that retrieves frames in a media type."""
        numbers = [index + 1 for index in indices]
        service = self.service
        if service is None:

            def of_client(media_types: MediaTypes) -> list[bytes]:
                options = {} if media_types is None else {"media_types": media_types}
                for _ in range(2):  # an empty frame may be a fault, and is requested again
                    if policies.POLICY.left(deadline) <= 0:
                        raise TransportError("no time is left for another request")
                    found = self.client.retrieve_instance_frames(*uids, numbers, **options)
                    frames = [bytes(frame) for frame in found]
                    if all(frames):
                        return frames
                empty = listed([i for i, frame in zip(indices, frames, strict=False) if not frame])
                raise TransportError(f"{empty} came empty twice: {WHETHER_STORED}", HTTPStatus.OK)

            return of_client

        def of_service(media_types: MediaTypes) -> list[bytes]:
            parts = service.retrieve_instance_frames(
                *uids,
                numbers,
                media_types,
                frame_bytes=2 * pixel_format.native_bytes,
                deadline=deadline,
                # without an agreement, the media type may be the cause of a failure
                retried=TEMPORARY if agreed else TEMPORARY - FAILURES,
            )
            return [little_endian(part, pixel_format) for part in parts]

        return of_service

    def metadata(self, uids: tuple[str, str, str]) -> Dataset:
        """Retrieve the metadata of an instance."""
        return dataset_of_json(self._metadata(uids))

    def frame_groups(self, uids: tuple[str, str, str], indices: Sequence[int]) -> list[Dataset]:
        """Retrieve the per-frame functional groups of some frames; none if there are none."""
        return frame_groups_of_json(self._metadata(uids), indices)

    def _metadata(self, uids: tuple[str, str, str]) -> Mapping[str, Any]:
        what = f"the metadata of {uids[2]}"
        with self._seeing(uids[2]):
            found = self.ask(what, lambda asked: asked.retrieve_instance_metadata(*uids))
            if isinstance(found, list) and not found:
                raise MetadataError(f"{self.address.url} gives nothing as {what}")
        return found[0] if isinstance(found, list) else found

    def series_metadata(self, study: str, series: str) -> list[Dataset]:
        """Retrieve the metadata of all instances of a series."""
        what = f"the metadata of series {series}"
        answer = self.ask(what, lambda asked: asked.retrieve_series_metadata(study, series))
        if not answer:
            raise MetadataError(f"{self.address.url} gives nothing as {what}")
        found = [dataset_of_json(each) for each in answer]
        for each in found:
            self.saw(dicom.text(each, "SOPInstanceUID") or "")
        return found

    def instance(self, uids: tuple[str, str, str]) -> Dataset:
        """Retrieve the whole data set of an instance."""
        with self._seeing(uids[2]):
            what = f"the data set {uids[2]}"
            return self.ask(what, lambda asked: asked.retrieve_instance(*uids))

    @contextlib.contextmanager
    def _seeing(self, uid: str) -> Iterator[None]:
        """Record whether a request for an instance was granted or denied."""
        try:
            yield
        except (SourceDeniedError, SourceNotFoundError):
            self.saw_nothing(uid)
            raise
        self.saw(uid)

    def bulk_data(self, uri: str) -> bytes:
        """Retrieve the bulk data of a BulkDataURI.

        A server behind a proxy may give URIs with its internal host. Therefore a URI with a path of
        studies is resolved against the address of this connection. Other URIs must have the same
        origin, because credentials are for this origin only.
        """
        place = uri.find("/studies/")
        if place >= 0:
            uri = (self.address.root if self.service is None else self.service.wado) + uri[place:]
        elif not is_same_origin(uri, self.address.url):
            raise MetadataError(f"bulk data are at {public(uri)}, not at {self.address.url}")
        what = f"the bulk data {public(uri)}"
        wanted = (("application/octet-stream", "*"),)
        try:
            parts = self.ask(what, lambda asked: asked.retrieve_bulkdata(uri, media_types=wanted))
        except MetadataError:
            if self.service is not None:  # it has tried all media types
                raise
            parts = self.ask(what, lambda asked: asked.retrieve_bulkdata(uri))
        data = b"".join(bytes(part) for part in parts)
        if not data:
            raise MetadataError(f"{self.address.url} gives nothing as {what}")
        return data

    def ask(self, what: str, question: Callable[[Answering], T]) -> T:
        """Call the service or, without one, the client; errors name the request.

        Parameters
        ----------
        what : str
            Name of the requested data, for messages.
        question : callable
            Calls a method of its argument.

        Raises
        ------
        MetadataError
            When the request fails.

        """
        try:
            return question(self.client if self.service is None else self.service)
        except Exception as error:  # each client has error types of its own
            reason, cause, kind = reason_of(error), cause_of(error), kind_of(error)
        # outside the handler: otherwise the error, with its request, would be the context
        raise kind(f"{reason}: {self.address.url} doesn't give {what}{hint_for(kind)}") from cause


def _session_of(client: Any) -> Any:
    """Return the session of a ``DICOMwebClient``."""
    return client._session


class _Connections:
    """Connections of this process."""

    def __init__(self) -> None:
        self._lock = ForkLock()
        # also used in forked children, which continue with their parent's clients
        self._of_clients: OrderedDict[int, Connection] = OrderedDict()
        """Connections of callers' clients, by the id of the client, which each holds."""
        self._by_address: OrderedDict[Address, Connection] = OrderedDict()
        """Connections of slides that are opened by URL or unpickled."""
        self._clients: dict[Address, Connection] = {}
        """Connections of registered clients, which stay until they are forgotten."""
        self._by_scope: weakref.WeakValueDictionary[str, Connection] = weakref.WeakValueDictionary()
        """All connections with which slides may have been opened."""

    def of(self, client: DicomWebClient) -> Connection:
        """Return the connection of a caller's client, one for each client."""
        with self._lock:
            found = self._of_clients.get(id(client))
            if found is None:
                found = Connection(client)
            _keep(self._of_clients, id(client), found)
            self._by_scope[found.scope] = found
            return found

    def using(self, address: Address, session: Any) -> Connection:
        """Return a new connection with the given session."""
        found = _connection(address, Credentials(address.url, session))
        with self._lock:
            self._by_scope[found.scope] = found
        return found

    def at(self, address: Address, scope: str | None = None) -> Connection:
        """Return the connection that is registered for an address, else a plain one.

        If nothing is registered, a source that was pickled in this process is read with the
        connection with which it was opened.
        """
        with self._lock:
            if address in self._clients:
                return self._clients[address]
            known = self._by_address.get(address)
            own = None if scope is None else self._by_scope.get(scope)
            if known is None or own is not None:
                registered = credentials.registered(address.url)
                if registered is None and own is not None:
                    return own
                if known is None:
                    known = _connection(address, registered or Credentials(address.url))
            _keep(self._by_address, address, known)
            return known

    def register(self, client: DicomWebClient) -> None:
        """Use a client for slides at its address."""
        found = self.of(client)
        with self._lock:
            before = self._by_address.pop(found.address, None)
            before = self._clients.get(found.address, before)
            self._clients[found.address] = found
        if before is not None and before is not found:
            before.forget()

    def forget(self, url: str) -> None:
        """Drop the connections of a service, and all their cached values in memory."""
        with self._lock:
            for connections in (self._by_address, self._clients):
                for address in [each for each in connections if is_within(each.url, url)]:
                    connections.pop(address).forget()
            for scope, each in list(self._by_scope.items()):
                if is_within(each.address.url, url):
                    del self._by_scope[scope]
                    each.forget()


def _keep(connections: OrderedDict[Any, Connection], key: Any, connection: Connection) -> None:
    connections[key] = connection
    connections.move_to_end(key)
    while len(connections) > MOST_CLIENTS:
        connections.popitem(last=False)


def _connection(address: Address, known_by: Credentials) -> Connection:
    try:
        from dicomweb_client.api import DICOMwebClient
    except ImportError:
        raise ImportError(
            f"reading from {address.url} takes the package dicomweb-client:"
            " pip install 'dicomslide[dicomweb]'"
        ) from None
    client = DICOMwebClient(address.url, known_by.session(), wado_url_prefix=address.prefix)
    return Connection(client, known_by)


_connections = _Connections()
credentials.on_change(_connections.forget)


def register_client(client: Any) -> None:
    """Use a client for slides of its server that are opened by URL or unpickled.

    A pickled slide names a server, but holds neither a client nor credentials. A worker process
    that unpickles it uses the client that was registered last for this server, else the credentials
    of :func:`register_credentials`. If nothing is registered, the process that pickled it uses the
    client or session with which it was opened, and other processes use a plain session.

    The last call of this function or :func:`register_credentials` applies; :func:`forget` removes
    the registrations of both.

    Parameters
    ----------
    client : dicomweb_client.api.DICOMwebClient
        Client for a server, with its session.

    """
    _connections.register(client)


def connection_of(client: DicomWebClient) -> Connection:
    """Return this process's connection of a caller's client."""
    return _connections.of(client)


def connection_at(address: Address, scope: str | None = None) -> Connection:
    """Return this process's connection for sources that are opened by URL or unpickled.

    Parameters
    ----------
    address : Address
        Address of the server.
    scope : str, optional
        For an unpickled source, the scope of the connection with which it was opened.

    """
    return _connections.at(address, scope)


def connection_with(address: Address, session: Any) -> Connection:
    """Return a new connection to a server, with a session or a function that returns one."""
    return _connections.using(address, session)


class _LossyError(TransportError):
    """Frames in a lossy compression were received for an image that isn't lossy."""


def _check_lossless(frames: Sequence[bytes], pixel_format: PixelFormat) -> None:
    """Raise an error for frames that a server has compressed with loss, which changes pixels."""
    for frame in frames:
        if len(frame) != pixel_format.native_bytes and is_lossy(memoryview(frame)):
            raise _LossyError(
                "they come in a lossy compression, but the header doesn't say that the image is"
                " lossy (LossyImageCompression)",
                HTTPStatus.NOT_ACCEPTABLE,
            )
