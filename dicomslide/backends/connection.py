"""A DICOMweb client and its server: what it is asked, and what was learnt of it."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections import OrderedDict
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

import numpy as np

from dicomslide.backends.credentials import new_session, renewed_session
from dicomslide.backends.dicom_json import dataset_of_json, frame_groups_of_json
from dicomslide.backends.encoded_frames import MOST_FRAMES
from dicomslide.backends.gather import Gatherer
from dicomslide.backends.service import FAILURES, REFUSALS, WebService, web_client_class
from dicomslide.backends.transport import (
    RETRIED,
    TransportError,
    is_at_home,
    public,
    said,
)
from dicomslide.cache import ForkLock, Registry
from dicomslide.codec.codestream import is_lossy
from dicomslide.errors import FrameReadError, MetadataError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pydicom.dataset import Dataset

    from dicomslide.backends.multipart import Part
    from dicomslide.backends.read_ahead import ReadAhead
    from dicomslide.codec import PixelFormat

__all__ = ["Address", "Connection", "NotServedError", "connection_at", "connection_of", "listed",
           "read_error", "register_client"]  # fmt: skip

MediaTypes: TypeAlias = tuple[str | tuple[str, str], ...] | None

_UID = "1.2.840.10008.1.2"
AS_STORED: MediaTypes = (("application/octet-stream", "*"),)  # byte for byte
MEDIA_TYPES: tuple[MediaTypes, ...] = (
    AS_STORED,
    (("*/*", "*"),),
    ("application/octet-stream",),  # decoded by the server
    (("image/jls", f"{_UID}.4.80"),),
    (("image/jp2", f"{_UID}.4.90"),),
    (("image/jpeg", f"{_UID}.4.70"),),
    (("image/dicom-rle", f"{_UID}.5"),),
)
"""What frames are asked for as, one after the other, until a server agrees: nothing lossy."""
LOSSY_MEDIA_TYPES: tuple[MediaTypes, ...] = (("image/jpeg",), ("image/jls",), ("image/jp2",))
"""What frames of images that are lossy anyway are asked for as."""
DEFAULT: tuple[MediaTypes, ...] = (("*/*",), None)
"""At last, what server and client like best, unless they like to lose something."""
BIG_ENDIAN = f"{_UID}.2"
NOT_SERVED = REFUSALS | {HTTPStatus.OK, HTTPStatus.NOT_FOUND, HTTPStatus.NOT_IMPLEMENTED}
"""HTTP status of what a server doesn't do, or of a reply that nobody can read."""
TOO_MUCH = frozenset({413, 414})
"""HTTP status of servers that are asked for too many frames at once."""
LONGEST_DOUBT = 12
"""Failures after which the pause isn't doubled any more until it is tried whether they passed."""
MOST_CLIENTS = 32
MOST_INSTANCES = 1024


class NotServedError(FrameReadError):
    """A server doesn't give frames as anything that it was asked for."""


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


@dataclasses.dataclass(frozen=True, slots=True)
class _Agreement:
    """What frames of an instance are asked for as."""

    media_types: MediaTypes
    doubts: int
    """How often something better was refused only by a failure, which may have passed."""
    until: float
    """When the better is tried again, by a clock that runs."""


class Connection:
    """A client and what was learnt of its server; one for each client of a process.

    Parameters
    ----------
    client : dicomweb_client.api.DICOMClient
        Any object with the methods of the protocol that are used.

    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self.address = Address.of(client)
        self.most_frames = MOST_FRAMES
        """Frames a request: fewer once the server has found a request too long."""
        self.serves_float_frames = True
        """False once the server has refused a frame of Float Pixel Data."""
        self._agreed: OrderedDict[str, _Agreement] = OrderedDict()  # by SOP Instance UID
        self._refused: set[MediaTypes] = set()  # by a server that has accepted another
        self._process = os.getpid()
        self._lock = ForkLock()
        self._gatherers: Registry[str, Gatherer] = Registry(MOST_INSTANCES)
        self.service = WebService.of(client, lambda: self.client._session, self._renew)
        """What asks in the client's stead; None where the client answers in a way of its own."""

    def _renew(self, refused: Any, auth: Any) -> None:
        """Get another session or `auth`, unless another thread has done so."""
        with self._lock:
            if self._client._session is refused and refused.auth is auth:
                self._client._session = renewed_session(self.address.url, refused)

    @property
    def client(self) -> Any:
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

        Raises
        ------
        NotServedError
            When the server doesn't give them as anything that it was asked for.
        FrameReadError
            Naming the frames.

        """
        agreed = self._agreed_on(uids[2])  # before: other threads may agree meanwhile
        refused: set[MediaTypes] = set()
        statuses: set[int | None] = set()
        first_error: Exception | None = None
        retrieve = self._retriever(uids, indices, pixel_format, agreed=agreed is not None)
        for media_types in self._media_types(agreed, lossy=lossy):
            try:
                frames = retrieve(media_types)
                if not lossy and media_types != AS_STORED:
                    _check_lossless(frames, pixel_format)
            except Exception as error:  # each client has error types of its own
                if first_error is None or isinstance(error, _LossyError):
                    first_error = error
                is_refusal, status = _is_refusal(error), _status(error)
                statuses.add(HTTPStatus.NOT_ACCEPTABLE if is_refusal else status)
                if agreed and status not in REFUSALS:
                    break
                if is_refusal:
                    refused.add(media_types)
                elif status not in FAILURES:
                    break
            else:
                self._agree(uids[2], media_types, refused, failed=bool(statuses & RETRIED))
                return frames
        assert first_error is not None
        if _status(first_error) in TOO_MUCH and len(indices) > 1:
            half = len(indices) // 2
            self.most_frames = min(self.most_frames, half)
            parts = (indices[:half], indices[half:])
            options: dict[str, Any] = dict(pixel_format=pixel_format, lossy=lossy)
            return [frame for each in parts for frame in self.frames(uids, each, **options)]
        if pixel_format.floating and statuses <= NOT_SERVED:  # else it may have been a bad moment
            self.serves_float_frames = False
        kind = NotServedError if statuses <= NOT_SERVED | FAILURES else FrameReadError
        reason = f"{self.address.url} doesn't give {listed(indices)}: {_reason(first_error)}"
        raise read_error(reason, uids[2], indices, kind) from _cause(first_error)

    def _retriever(
        self,
        uids: tuple[str, str, str],
        indices: Sequence[int],
        pixel_format: PixelFormat,
        *,
        agreed: bool,
    ) -> Callable[[MediaTypes], list[bytes]]:
        """Return what retrieves frames as a media type."""
        numbers = [index + 1 for index in indices]
        service = self.service
        if service is None:

            def of_client(media_types: MediaTypes) -> list[bytes]:
                options = {} if media_types is None else {"media_types": media_types}
                found = self.client.retrieve_instance_frames(*uids, numbers, **options)
                return [bytes(frame) for frame in found]

            return of_client
        deadline = service.transport.deadline()  # one, whatever has to be tried

        def of_service(media_types: MediaTypes) -> list[bytes]:
            parts = service.retrieve_instance_frames(
                *uids,
                numbers,
                media_types,
                frame_bytes=2 * pixel_format.native_bytes,
                deadline=deadline,
                # before anything is agreed on, a failure may be that of a media type
                retried=RETRIED if agreed else RETRIED - FAILURES,
            )
            return [_little_endian(part, pixel_format) for part in parts]

        return of_service

    def _agreed_on(self, uid: str) -> _Agreement | None:
        with self._lock:
            found = self._agreed.get(uid)
            return None if found is None or time.monotonic() >= found.until else found

    def _media_types(self, agreed: _Agreement | None, *, lossy: bool) -> list[MediaTypes]:
        """Return what to ask for, what is most likely to be given first."""
        known = (*MEDIA_TYPES, *(LOSSY_MEDIA_TYPES if lossy else ()), *DEFAULT)
        with self._lock:
            hopeful = [each for each in known if each not in self._refused]
        first = [] if agreed is None else [agreed.media_types]
        return list(dict.fromkeys((*first, *hopeful, *known)))

    def _agree(
        self, uid: str, media_types: MediaTypes, refused: set[MediaTypes], *, failed: bool
    ) -> None:
        """Agree on a media type: for a while only, if the server `failed` to give a better one."""
        with self._lock:
            known = self._agreed.get(uid, _Agreement(media_types, 0, math.inf))
            if failed:  # the better is tried again with the next request, then after 1, 3, 7 ... s
                doubts = min(known.doubts + 1, LONGEST_DOUBT)
                until = time.monotonic() + 2 ** (doubts - 1) - 1
                known = _Agreement(media_types, doubts, until)
            elif known.media_types != media_types:
                known = _Agreement(media_types, 0, math.inf)
            self._agreed[uid] = known
            self._agreed.move_to_end(uid)
            if len(self._agreed) > MOST_INSTANCES:
                self._agreed.popitem(last=False)
            good = {each.media_types for each in self._agreed.values()}
            self._refused = (self._refused | refused) - good

    def metadata(self, uids: tuple[str, str, str]) -> Dataset:
        """Retrieve the metadata of an instance."""
        return dataset_of_json(self._metadata(uids))

    def frame_groups(self, uids: tuple[str, str, str], indices: Sequence[int]) -> list[Dataset]:
        """Retrieve the per-frame functional groups of some frames; none where there are none."""
        return frame_groups_of_json(self._metadata(uids), indices)

    def _metadata(self, uids: tuple[str, str, str]) -> Mapping[str, Any]:
        what = f"the metadata of {uids[2]}"
        found = self.ask(what, "retrieve_instance_metadata", *uids)
        if isinstance(found, list) and not found:
            raise MetadataError(f"{self.address.url} gives nothing as {what}")
        return found[0] if isinstance(found, list) else found

    def instance(self, uids: tuple[str, str, str]) -> Dataset:
        """Retrieve the whole data set of an instance."""
        return self.ask(f"the data set {uids[2]}", "retrieve_instance", *uids)

    def bulk_data(self, uri: str) -> bytes:
        """Retrieve what a BulkDataURI leads to.

        Servers behind a proxy give URIs that only they can reach, and a client's credentials
        are for its own server: what lies among the studies is looked for there.
        """
        place = uri.find("/studies/")
        if place >= 0:
            uri = (self.address.root if self.service is None else self.service.wado) + uri[place:]
        elif not is_at_home(uri, self.address.url):
            raise MetadataError(f"bulk data are at {public(uri)}, not at {self.address.url}")
        what = f"the bulk data {public(uri)}"
        wanted = (("application/octet-stream", "*"),)
        try:
            parts = self.ask(what, "retrieve_bulkdata", uri, media_types=wanted)
        except MetadataError:
            if self.service is not None:  # it has tried what there is
                raise
            parts = self.ask(what, "retrieve_bulkdata", uri)
        data = b"".join(bytes(part) for part in parts)
        if not data:
            raise MetadataError(f"{self.address.url} gives nothing as {what}")
        return data

    def ask(self, what: str, method: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of the client, with errors that say what it was for.

        Raises
        ------
        MetadataError
            When it fails.

        """
        try:
            asked = self.client if self.service is None else self.service
            return getattr(asked, method)(*arguments, **options)
        except Exception as error:  # each client has error types of its own
            reason, cause = _reason(error), _cause(error)
        # not in the handler, for the error, whatever it holds, would be this one's context
        raise MetadataError(f"{self.address.url} doesn't give {what}: {reason}") from cause


class _Connections:
    """The clients that this process has used last, one for each address."""

    def __init__(self) -> None:
        self._lock = ForkLock()
        # not forgotten in a forked child: it goes on with the parent's clients
        self._by_address: OrderedDict[Address, Connection] = OrderedDict()

    def of(self, client: Any) -> Connection:
        address = Address.of(client)
        with self._lock:
            found = self._by_address.get(address)
            if found is None or found.client is not client:
                found = Connection(client)
            self._keep(address, found)
            return found

    def at(self, address: Address) -> Connection:
        """Return the connection that was registered last, else a new one."""
        with self._lock:
            found = self._by_address.get(address)
            if found is None:
                try:
                    from dicomweb_client.api import DICOMwebClient
                except ImportError:
                    raise ImportError(
                        f"reading from {address.url} takes the package dicomweb-client:"
                        " pip install 'dicomslide[dicomweb]'"
                    ) from None
                client = DICOMwebClient(
                    address.url, new_session(address.url), wado_url_prefix=address.prefix
                )
                found = Connection(client)
            self._keep(address, found)
            return found

    def _keep(self, address: Address, connection: Connection) -> None:
        self._by_address[address] = connection
        self._by_address.move_to_end(address)
        while len(self._by_address) > MOST_CLIENTS:
            self._by_address.popitem(last=False)


_connections = _Connections()


def register_client(client: Any) -> None:
    """Let what was unpickled in this process read through a client.

    What is pickled names a server, but holds neither a client nor its credentials. A worker
    process that got it reads through the client that was last used or registered for that
    server, else through a new ``DICOMwebClient(url)``, whose session has the credentials that
    :func:`register_credentials` knows.

    Parameters
    ----------
    client : dicomweb_client.api.DICOMwebClient
        Client for a server, with its session.

    """
    _connections.of(client)


def connection_of(client: Any) -> Connection:
    """Return this process's connection of a client."""
    return _connections.of(client)


def connection_at(address: Address) -> Connection:
    """Return this process's connection to a server: the last one, else a new one."""
    return _connections.at(address)


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


def _status(error: Exception) -> int | None:
    if isinstance(error, TransportError):
        return error.status
    return getattr(getattr(error, "response", None), "status_code", None)


def _is_refusal(error: Exception) -> bool:
    """Whether an error is about the media type; clients check it too, and some take none."""
    if _status(error) is None:  # TransportError isn't among these
        return isinstance(error, (NotImplementedError, TypeError, ValueError))
    return _status(error) in REFUSALS


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, TransportError) else said(error)


def _cause(error: BaseException) -> BaseException | None:
    """Return an error where it may be shown and sent: neither it nor its causes hold credentials.

    Errors of requests hold the request, with its headers, and dask pickles the causes of errors.
    """
    each: BaseException | None = error
    while each is not None:
        if getattr(each, "request", None) or not said(each).endswith(str(each)):
            return None
        each = each.__cause__ or each.__context__
    return error


def listed(indices: Sequence[int]) -> str:
    """Name frames by number."""
    numbers = ", ".join(str(index + 1) for index in indices)
    return f"frame{'s' if len(indices) > 1 else ''} {numbers}"


def read_error(
    reason: str, name: str, indices: Sequence[int], kind: type[FrameReadError] = FrameReadError
) -> FrameReadError:
    """Return an error of one or more frames."""
    return kind(reason, name, indices[0] if len(indices) == 1 else None)


def _little_endian(part: Part, pixel_format: PixelFormat) -> bytes:
    """Return the bytes of a frame, little endian: the only thing that its header is believed for.

    Bytes tell all else of themselves; in which order those of a native frame are, they can't.
    """
    is_native = len(part.data) == pixel_format.native_bytes
    if part.transfer_syntax_uid != BIG_ENDIAN or not is_native or pixel_format.bits_allocated <= 8:
        return part.data
    width = pixel_format.bits_allocated // 8
    return np.frombuffer(part.data, f">u{width}").astype(f"<u{width}").tobytes()
