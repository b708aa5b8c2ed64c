"""Instances on a DICOMweb server: metadata, frames and colour profiles."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from dicomslide.backends.batching import encoded_frames, gather
from dicomslide.backends.batching.prefetch import ReadAhead
from dicomslide.backends.dicomweb.connection import (
    Address,
    Connection,
    connection_at,
    connection_of,
)
from dicomslide.backends.dicomweb.dicom_json import BulkData
from dicomslide.backends.dicomweb.failures import NotServedError, listed, read_error
from dicomslide.backends.dicomweb.packed import pack, unpack
from dicomslide.backends.part10.frame_index import NativeFrames, read_frames
from dicomslide.errors import FrameReadError, MetadataError, MetadataWarning
from dicomslide.header import dicom
from dicomslide.header.blobs import MemoryBlob
from dicomslide.header.layout import num_frames_of, pixel_format_of
from dicomslide.header.per_frame import positions_of_dataset
from dicomslide.options import check_memory
from dicomslide.pixels import DECODERS, NATIVE, PixelFormat
from dicomslide.process.registry import Registry
from dicomslide.process.warn import warn

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from pydicom.dataset import Dataset

    from dicomslide.header.tiling import FramePositions
    from dicomslide.pixels.pixel_format import Buffer

__all__ = ["DicomWebSource"]

PER_FRAME_GROUPS = 0x52009230
PIXEL_DATA_GROUP = 0x7FE0
PIXEL_DATA = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def _header_of(image: Dataset) -> Dataset:
    """Return metadata without pixel data and per-frame functional groups.

    Positions of the groups become the attribute `frame_positions` of the header, so that the header
    can be passed as metadata again.
    """
    from pydicom.dataset import Dataset

    if hasattr(image, "frame_positions"):
        return image
    header = Dataset()
    implicit_vr, little_endian = image.original_encoding
    header.set_original_encoding(implicit_vr, little_endian, image.original_character_set)
    tags = list(image.keys())
    for tag in tags:
        if tag.group != PIXEL_DATA_GROUP and tag != PER_FRAME_GROUPS:
            header[tag] = image.get_item(tag)
    try:
        header.frame_positions = positions_of_dataset(image)
    except MetadataError as error:
        raise MetadataError(f"{dicom.name_of(image)}: {error}") from None
    return header


def _uids_of(image: Dataset) -> tuple[str, str, str]:
    keywords = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    study, series, instance = (dicom.text(image, keyword) for keyword in keywords)
    if study is None or series is None or instance is None:
        said = ", ".join(f"{keyword} {image.get(keyword)}" for keyword in keywords)
        raise MetadataError(f"an instance that a client can't be asked for: {said}")
    return study, series, instance


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Here:
    """Values of a source that aren't part of its name."""

    connection: Connection | None = None
    """Connection with which it was opened; None to use what is registered for its address."""
    header: Dataset | None = None
    """Metadata with which it was opened; None to retrieve them."""
    scope: str | None = None
    """For an unpickled source, the scope of the connection with which it was opened."""


_headers: Registry[tuple[Hashable, ...], Dataset] = Registry(16_384, "headers", dicom.nbytes)
_profiles: Registry[tuple[Hashable, ...], bytes | None] = Registry(
    256, "ICC profiles", lambda profile: len(profile or b"")
)
_wholes: Registry[tuple[Hashable, ...], _WholeFrames] = Registry(
    2, "whole instances", lambda frames: frames.nbytes
)


@dataclasses.dataclass(frozen=True)
class DicomWebSource:
    """An instance on a DICOMweb server.

    Its pickle holds the address of the server (class of the client, URL and WADO-RS prefix), the
    UIDs, and the scope of its connection (a random name, valid in the process that pickled it); but
    neither metadata nor a client. If opened with a client or session, it is read with that one. If
    opened by URL or unpickled, it is read with what is registered for the server at the time.
    """

    address: Address
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    _here: _Here = dataclasses.field(default=_Here(), repr=False, compare=False)

    @classmethod
    def of(cls, client: Any, metadata: Dataset) -> DicomWebSource:
        """Return the source of an instance from its metadata, read with a caller's client."""
        return cls.through(connection_of(client), metadata)

    @classmethod
    def through(cls, link: Connection | Address, metadata: Dataset) -> DicomWebSource:
        """Return the source of an instance from its metadata.

        Parameters
        ----------
        link : Connection or Address
            Connection to read with; or an address, to read with what is registered for it.
        metadata : pydicom.dataset.Dataset
            Metadata of the instance.

        Raises
        ------
        MetadataError
            When the metadata lack UIDs, or positions of some frames.

        """
        connection = link if isinstance(link, Connection) else None
        here = _Here(connection=connection, header=_header_of(metadata))
        address = link.address if isinstance(link, Connection) else link
        return cls(address, *_uids_of(metadata), here)

    def __reduce__(self) -> tuple[Any, ...]:
        if not self.address.can_be_remade:
            raise TypeError(
                f"{self.name} is read through a {self.address.kind}, which can't be made again in"
                " another process; use threads, open the slide where it is read, or give a"
                " dicomweb_client.api.DICOMwebClient"
            )
        here = self._here
        scope = here.scope if here.connection is None else here.connection.scope
        return _arrived, (self.address, *self.uids, scope)

    def __copy__(self) -> DicomWebSource:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> DicomWebSource:
        return self

    def without_header(self) -> DicomWebSource:
        """Return the same source without the header.

        This process keeps the header within its budget; it is retrieved when it is needed again.
        """
        if self._here.header is not None:
            _headers.put(self.kept_as(), self._here.header)
        return dataclasses.replace(self, _here=dataclasses.replace(self._here, header=None))

    def pack_header(self, shared: dict[str, bytes]) -> bytes:
        """Return the header with what else a read needs: see :func:`.packed.pack`."""
        return pack(self.metadata, shared)

    def restore_header(self, data: bytes, shared: Mapping[str, bytes]) -> None:
        """Have the process keep what :meth:`pack_header` returned, unless it keeps the header."""
        _headers.get(self.kept_as(), lambda: unpack(data, shared, self.name))

    @property
    def identity(self) -> tuple[Hashable, ...]:
        """Name of these bytes: the same in every process, without credentials."""
        return ("dicomweb", *dataclasses.astuple(self.address), self.sop_instance_uid)

    def kept_as(self) -> tuple[Hashable, ...]:
        """Key of its values in the caches of this process, for one connection only."""
        return self._kept_as(self._connection)

    def _kept_as(self, connection: Connection) -> tuple[Hashable, ...]:
        return (connection.scope, *self.identity)

    @property
    def name(self) -> str:
        """SOP Instance UID."""
        return self.sop_instance_uid

    @property
    def uids(self) -> tuple[str, str, str]:
        """Study, Series and SOP Instance UID."""
        return self.study_instance_uid, self.series_instance_uid, self.sop_instance_uid

    @property
    def _connection(self) -> Connection:
        # looked up each time, because another client may have been registered
        if self._here.connection is not None:
            return self._here.connection
        return connection_at(self.address, self._here.scope)

    def unread_headers(self) -> tuple[DicomWebSource, ...]:
        """Return this source, unless it has its header, or this process keeps it."""
        has_it = self._here.header is not None or self.kept_as() in _headers
        return () if has_it else (self,)

    @property
    def metadata(self) -> Dataset:
        """Metadata, without pixel data and per-frame functional groups."""
        if self._here.header is not None:
            return self._here.header
        connection = self._connection
        return _headers.get(
            self._kept_as(connection), lambda: _header_of(connection.metadata(self.uids))
        )

    @property
    def transfer_syntax_uid(self) -> None:
        """None: servers transcode, and metadata lack it; it is detected from each frame."""
        return None

    def frame_positions(self) -> FramePositions | None:
        """Return the positions of frames by the per-frame functional groups; None without any."""
        return self.metadata.frame_positions

    def frame_groups(self, indices: Sequence[int]) -> list[Dataset]:
        """Retrieve the per-frame functional groups of some frames; none if there are none."""
        return self._connection.frame_groups(self.uids, indices)

    def icc_profile(self, item: Dataset) -> bytes | None:
        """Return the ICC Profile of an item of the metadata, retrieved if it is bulk data."""
        if "ICCProfile" not in item:
            return None
        if item.ICCProfile:
            return bytes(item.ICCProfile)
        path = dicom.text(item, "OpticalPathIdentifier")
        try:
            # a failure isn't cached, because it may be temporary
            return _profiles.get((self.kept_as(), path), lambda: self._retrieve_profile(item, path))
        except MetadataError as error:
            warn(
                f"colours stay as stored, for the ICC profile can't be had: {error}",
                MetadataWarning,
            )
            return None

    def _retrieve_profile(self, item: Dataset, path: str | None) -> bytes | None:
        connection = self._connection
        value = item.ICCProfile
        if not isinstance(value, BulkData):  # the caller's metadata lack the URI
            metadata = connection.metadata(self.uids)
            candidates = (*dicom.items(metadata, "OpticalPathSequence"), metadata)
            value = next(
                (
                    candidate.get("ICCProfile")
                    for candidate in candidates
                    if dicom.text(candidate, "OpticalPathIdentifier") == path
                ),
                None,
            )
        if isinstance(value, BulkData):
            value = connection.bulk_data(value.uri)
        return value or None

    def read_instance(self) -> Dataset:
        """Retrieve the whole data set, whatever its size.

        Raises
        ------
        MetadataError
            When the server doesn't send it.

        """
        return self._connection.instance(self.uids)

    @property
    def keeps_frames(self) -> bool:
        """Return True: received frames are cached."""
        return True

    @property
    def frames_per_request(self) -> int:
        """Upper bound on frames per request."""
        wished = encoded_frames.frames_per_request(pixel_format_of(self.metadata))
        return min(wished, self._connection.most_frames)

    def read_frames(self, indices: Sequence[int]) -> list[Buffer]:
        """Retrieve frames that aren't cached, in few requests.

        One request holds the frames that several threads need within milliseconds. When frames are
        read one after the other, their neighbours are prefetched.
        """
        header = self.metadata
        count = num_frames_of(header)
        for index in indices:
            if not 0 <= index < count:
                raise FrameReadError(f"the image has {count} frames", self.name, index)
        most = self.frames_per_request
        frames_ahead = encoded_frames.frames_ahead(pixel_format_of(header).native_bytes)
        connection = self._connection
        return gather.read_frames(
            connection.gatherer(self.sop_instance_uid, lambda: ReadAhead.of(self)),
            self.identity,
            indices,
            self._fetch,
            begin=connection.deadline,
            most=most,
            most_ahead=min(most, frames_ahead),
            scope=connection.scope,
            may_see=lambda: connection.sees(self.sop_instance_uid),
        )

    def may_read_anew(self) -> bool:
        """Return True: frames come over a network."""
        return True

    def drop_frame(self, index: int) -> None:
        """Drop a frame from the caches."""
        _wholes.discard(self.kept_as())
        encoded_frames.drop(self.identity, [index], scope=self._connection.scope)

    def read_anew(self, index: int) -> Buffer:
        """Retrieve a frame again, without caches and requests under way."""
        scope = self._connection.scope
        self.drop_frame(index)
        (frame,) = self._fetch([index])
        encoded_frames.drop(self.identity, [index], scope=scope)  # of slower requests
        encoded_frames.keep(self.identity, {index: frame}, scope=scope)
        return frame

    def _fetch(self, wanted: list[int], deadline: float | None = None) -> list[bytes]:
        """Retrieve some frames in one request.

        They are ascending, because some servers sort them.

        Parameters
        ----------
        wanted : list of int
            Zero-based frames.
        deadline : float, optional
            When to give up, see :meth:`Connection.deadline`.

        """
        header, connection = self.metadata, self._connection
        pixel_format = pixel_format_of(header)
        # Bit-packed frames may begin within a byte. Servers may shift their bits to the start of a
        # byte or not, and replies don't show which.
        whole = pixel_format.native_bits % 8 != 0
        if pixel_format.floating and not whole:
            whole = not connection.serves_float_frames or self.kept_as() in _wholes
        frames: list[bytes] = []
        if not whole:
            try:
                lossy = dicom.text(header, "LossyImageCompression") == "01"
                frames += connection.frames(
                    self.uids, wanted, pixel_format=pixel_format, lossy=lossy, deadline=deadline
                )
            except NotServedError:
                if not pixel_format.floating:
                    raise
                whole = True
        if whole:
            count = num_frames_of(header)
            frames = [bytes(frame) for frame in self._whole(pixel_format, count).read(wanted)]
        if len(frames) != len(wanted):
            raise read_error(
                f"{len(frames)} frames came for {len(wanted)}: {listed(wanted)}", self.name, wanted
            )
        return frames

    def _whole(self, pixel_format: PixelFormat, count: int) -> _WholeFrames:
        check_memory(count * pixel_format.native_bytes, f"{self.name} as a whole")
        return _wholes.get(
            self.kept_as(), lambda: _WholeFrames(self.read_instance(), pixel_format, count)
        )


def _arrived(
    address: Address, study: str, series: str, instance: str, scope: str | None
) -> DicomWebSource:
    """Return an unpickled source."""
    return DicomWebSource(address, study, series, instance, _Here(scope=scope))


class _WholeFrames:
    """Frames of an instance that was retrieved as a whole."""

    def __init__(self, dataset: Dataset, pixel_format: PixelFormat, count: int) -> None:
        from pydicom.encaps import generate_frames

        values = (dataset.get(keyword) for keyword in PIXEL_DATA)
        data = next((bytes(value) for value in values if value), b"")
        name = dicom.name_of(dataset)
        meta = getattr(dataset, "file_meta", {})
        uid = str(meta.get("TransferSyntaxUID") or NATIVE)
        decoder = DECODERS.get(uid)
        if decoder is None or not decoder.little_endian:
            raise FrameReadError(f"the whole of it comes in transfer syntax {uid}", name)
        self._encapsulated: list[Buffer] | None = None
        if decoder.encapsulated:
            try:
                self._encapsulated = list(generate_frames(data, number_of_frames=count))
            except ValueError as error:
                raise FrameReadError(f"its pixel data are damaged: {error}", name) from error
        self._blob = MemoryBlob(name, data)
        self.nbytes: int = len(data) * (2 if decoder.encapsulated else 1)
        self._native = NativeFrames(0, len(data), pixel_format.native_bits, swapped=False)

    def read(self, indices: Sequence[int]) -> list[Buffer]:
        """Return frames, each from its first bit."""
        if self._encapsulated is not None:
            return [self._encapsulated[index] for index in indices]
        return read_frames(self._native, self._blob, indices)
