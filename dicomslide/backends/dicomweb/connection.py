"""A DICOMweb client and its server: what it is asked, and what was learnt of it."""

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

import numpy as np

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
from dicomslide.backends.dicomweb.service import FAILURES, REFUSALS, WebService, web_client_class
from dicomslide.backends.dicomweb.transport import TransportError
from dicomslide.backends.net import credentials
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
    from dicomslide.backends.dicomweb.multipart import Part
    from dicomslide.backends.dicomweb.protocol import Answering, DicomWebClient
    from dicomslide.pixels import PixelFormat

__all__ = ["Address", "Connection", "connection_at", "connection_of", "connection_with",
           "register_client"]  # fmt: skip

T = TypeVar("T")

BIG_ENDIAN = "1.2.840.10008.1.2.2"
NOT_SERVED = REFUSALS | {HTTPStatus.OK, HTTPStatus.NOT_FOUND, HTTPStatus.NOT_IMPLEMENTED}
"""HTTP status of what a server doesn't do, or of a reply that nobody can read."""
TOO_MUCH = frozenset({413, 414})
"""HTTP status of servers that are asked for too many frames at once."""
MOST_CLIENTS = 32
MOST_INSTANCES = 1024
MOST_SEEN = 2**17


# -- clients ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Address:
    """Where a client's server is, without credentials: the same in every process."""

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
    """One who is known to a server in some way, and what was learnt of the server.

    There is one for each client of a process, one for each server of which slides are opened by
    URL or arrive pickled, and one for each slide that was opened with a session of its own.

    Parameters
    ----------
    client : dicomweb_client.api.DICOMClient
        Any object with the methods of the protocol that are used. Nothing of it is changed.
    credentials : Credentials, optional
        What its session came of, where it was made here: these are renewed when the server refuses
        them. A client of the caller's has its own, for better or worse.

    """

    def __init__(self, client: DicomWebClient, credentials: Credentials | None = None) -> None:
        self._client: Any = client  # that of one whose session is renewed has it, too
        self._credentials = credentials
        self.address = Address.of(client)
        self.scope = secrets.token_hex(8)
        """Part of the name of whatever is kept in memory of what came this way."""
        self._seen: OrderedDict[str, None] = OrderedDict()
        self.most_frames = MOST_FRAMES
        """Frames a request: fewer once the server has found a request too long."""
        self.serves_float_frames = True
        """False once the server has refused a frame of Float Pixel Data."""
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
        """What asks in the client's stead; None where the client answers in a way of its own."""

    def _renew(self, refused: Any, auth: Any) -> bool:
        """Get another session or token, unless another thread has done so.

        False where they don't come of a function.
        """
        if self._credentials is None or not self._credentials.is_renewable:
            return False
        with self._lock:
            if self._client._session is refused and self._credentials.auth is auth:
                self._client._session = self._credentials.renewed(refused)
        return True

    def sees(self, uid: str) -> bool:
        """Whether the server has let this one see an instance, in this process."""
        return uid in self._seen

    def saw(self, uid: str) -> None:
        """Note that the server has let this one see an instance."""
        with self._lock:
            self._seen[uid] = None
            self._seen.move_to_end(uid)
            if len(self._seen) > MOST_SEEN:
                self._seen.popitem(last=False)

    def saw_nothing(self, uid: str) -> None:
        """Note that the server doesn't let this one see an instance, or not any more."""
        with self._lock:
            self._seen.pop(uid, None)

    def forget(self) -> None:
        """Use nothing any more of what was kept; hang up, where the session is our own."""
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
            # a forked child must not talk through sockets that the parent talks through
            with self._lock:
                if self._process != os.getpid():
                    close = getattr(getattr(self._client, "_session", None), "close", None)
                    if close is not None:
                        close()
                    self._process = os.getpid()
        return self._client

    def deadline(self) -> float | None:
        """Return when that ends which begins now; None for a client with ways of its own."""
        return None if self.service is None else self.service.transport.deadline()

    def gatherer(self, uid: str, make: Callable[[], ReadAhead | None]) -> Gatherer:
        """Return what joins the requests for frames of an instance."""
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
        """Retrieve frames in one request, as what was agreed on before, else as what will do.

        Parameters
        ----------
        uids : tuple of str
            Study, Series and SOP Instance UID.
        indices : sequence of int
            Zero-based frames.
        pixel_format : PixelFormat
            What the header says of them.
        lossy : bool
            Whether they may come in a lossy compression.
        deadline : float, optional
            When to give up; from now on, what is usual, if not given.

        Raises
        ------
        NotServedError
            When the server doesn't give them as anything that it was asked for.
        FrameReadError
            Naming the frames.

        """
        agreed = self._negotiation.agreed_on(uids[2])  # before: other threads may agree meanwhile
        refused: set[MediaTypes] = set()
        statuses: set[int | None] = set()
        first_error: Exception | None = None
        if deadline is None:
            deadline = self.deadline()  # one, whatever has to be tried
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
        if pixel_format.floating and statuses <= NOT_SERVED:  # else it may have been a bad moment
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
        deadline: float | None,
        *,
        agreed: bool,
    ) -> Callable[[MediaTypes], list[bytes]]:
        """Return what retrieves frames as a media type."""
        numbers = [index + 1 for index in indices]
        service = self.service
        if service is None or deadline is None:

            def of_client(media_types: MediaTypes) -> list[bytes]:
                options = {} if media_types is None else {"media_types": media_types}
                for _ in range(2):  # what is empty may be a fault, and is asked for once more
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
                # before anything is agreed on, a failure may be that of a media type
                retried=TEMPORARY if agreed else TEMPORARY - FAILURES,
            )
            return [_little_endian(part, pixel_format) for part in parts]

        return of_service

    def metadata(self, uids: tuple[str, str, str]) -> Dataset:
        """Retrieve the metadata of an instance."""
        return dataset_of_json(self._metadata(uids))

    def frame_groups(self, uids: tuple[str, str, str], indices: Sequence[int]) -> list[Dataset]:
        """Retrieve the per-frame functional groups of some frames; none where there are none."""
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
        """Note what a request says of whether an instance may be seen."""
        try:
            yield
        except (SourceDeniedError, SourceNotFoundError):
            self.saw_nothing(uid)
            raise
        self.saw(uid)

    def bulk_data(self, uri: str) -> bytes:
        """Retrieve what a BulkDataURI leads to.

        Servers behind a proxy give URIs that only they can reach, and a client's credentials
        are for its own server: what lies among the studies is looked for there.
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
            if self.service is not None:  # it has tried what there is
                raise
            parts = self.ask(what, lambda asked: asked.retrieve_bulkdata(uri))
        data = b"".join(bytes(part) for part in parts)
        if not data:
            raise MetadataError(f"{self.address.url} gives nothing as {what}")
        return data

    def ask(self, what: str, question: Callable[[Answering], T]) -> T:
        """Ask the client, or the service in its stead, with errors that say what it was for.

        Parameters
        ----------
        what : str
            What is asked for.
        question : callable
            Calls a method of what it is given.

        Raises
        ------
        MetadataError
            When it fails.

        """
        try:
            return question(self.client if self.service is None else self.service)
        except Exception as error:  # each client has error types of its own
            reason, cause, kind = reason_of(error), cause_of(error), kind_of(error)
        # not in the handler, for the error, whatever it holds, would be this one's context
        raise kind(f"{reason}: {self.address.url} doesn't give {what}{hint_for(kind)}") from cause


def _session_of(client: Any) -> Any:
    """Return the session of a ``DICOMwebClient``."""
    return client._session


class _Connections:
    """The connections that this process has used last."""

    def __init__(self) -> None:
        self._lock = ForkLock()
        # none is forgotten in a forked child: it goes on with the parent's clients
        self._of_clients: OrderedDict[int, Connection] = OrderedDict()
        """By the id of the client, which each holds: of callers' clients."""
        self._by_address: OrderedDict[Address, Connection] = OrderedDict()
        """What slides are read through that are opened by URL, or arrive pickled."""
        self._clients: dict[Address, Connection] = {}
        """The same, of clients that were registered: they stay until they are forgotten."""
        self._by_scope: weakref.WeakValueDictionary[str, Connection] = weakref.WeakValueDictionary()
        """All of those through which slides may have been opened."""

    def of(self, client: DicomWebClient) -> Connection:
        """Return the connection of a caller's client: the same each time."""
        with self._lock:
            found = self._of_clients.get(id(client))
            if found is None:
                found = Connection(client)
            _keep(self._of_clients, id(client), found)
            self._by_scope[found.scope] = found
            return found

    def using(self, address: Address, session: Any) -> Connection:
        """Return a new connection with a session of its own."""
        found = _connection(address, Credentials(address.url, session))
        with self._lock:
            self._by_scope[found.scope] = found
        return found

    def at(self, address: Address, scope: str | None = None) -> Connection:
        """Return the connection that is registered for an address, else a plain one.

        Where nothing is registered, what was pickled in this process goes on as it was opened.
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
        """Let slides at the address of a client be read through it."""
        found = self.of(client)
        with self._lock:
            before = self._by_address.pop(found.address, None)
            before = self._clients.get(found.address, before)
            self._clients[found.address] = found
        if before is not None and before is not found:
            before.forget()

    def forget(self, url: str) -> None:
        """Drop the connections of a service, and of all what was kept in memory."""
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
    """Let slides of a server that are opened by URL, or arrive pickled, be read through a client.

    What is pickled names a server, but holds neither a client nor its credentials. A worker
    process that got it reads through the client that was registered for that server last, else
    with the credentials that :func:`register_credentials` knows. Where nothing is registered, the
    process that has pickled it reads it through the client or session that it was opened with, and
    any other through a plain session.

    Whichever of this and :func:`register_credentials` is called last counts; :func:`forget` undoes
    both.

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
    """Return what this process reads through what is opened by URL, or arrives pickled.

    Parameters
    ----------
    address : Address
        Where the server is.
    scope : str, optional
        Scope of the connection that it was opened through, where it arrived pickled.

    """
    return _connections.at(address, scope)


def connection_with(address: Address, session: Any) -> Connection:
    """Return a connection to a server, with a session, or what gives one, of its own."""
    return _connections.using(address, session)


class _LossyError(TransportError):
    """Frames came in a lossy compression, and the image isn't lossy."""


def _check_lossless(frames: Sequence[bytes], pixel_format: PixelFormat) -> None:
    """Refuse what a server has compressed with loss: the pixels wouldn't be those of the image."""
    for frame in frames:
        if len(frame) != pixel_format.native_bytes and is_lossy(memoryview(frame)):
            raise _LossyError(
                "they come in a lossy compression, but the header doesn't say that the image is"
                " lossy (LossyImageCompression)",
                HTTPStatus.NOT_ACCEPTABLE,
            )


def _little_endian(part: Part, pixel_format: PixelFormat) -> bytes:
    """Return the bytes of a frame, little endian: the only thing that its header is believed for.

    Bytes tell all else of themselves; in which order those of a native frame are, they can't.
    """
    is_native = len(part.data) == pixel_format.native_bytes
    if part.transfer_syntax_uid != BIG_ENDIAN or not is_native or pixel_format.bits_allocated <= 8:
        return part.data
    width = pixel_format.bits_allocated // 8
    return np.frombuffer(part.data, f">u{width}").astype(f"<u{width}").tobytes()
