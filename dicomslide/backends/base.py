"""Contract between arrays and the sources of their bytes.

Each source implements `FrameSource`, each store `FrameStore`. The other protocols are optional: a
source or store implements those that apply to it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from dicomslide.errors import SourceReadError
from dicomslide.header import dicom
from dicomslide.header.layout import ImageLayout, read_layout
from dicomslide.process.parallel import together
from dicomslide.process.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence
    from typing import TypeGuard

    from pydicom.dataset import Dataset

    from dicomslide.header.tiling import FramePositions
    from dicomslide.pixels.pixel_format import Buffer

__all__ = ["DistantSource", "FrameSource", "FrameStore", "HeaderedSource", "RangeError",
           "RereadableSource", "ScopedSource", "SearchableStore", "Series", "drop_frame",
           "fetch_header", "fetch_headers", "is_distant", "is_searchable", "is_source", "is_store",
           "kept_as", "layout_of", "may_read_anew", "provides", "read_anew", "unread_headers",
           "without_header"]  # fmt: skip

HEADERS_AT_ONCE = 16
"""Upper bound on headers that are fetched at once."""

_layouts: Registry[tuple[Hashable, ...], ImageLayout] = Registry(
    1024, "layouts", lambda layout: layout.nbytes
)


# -- sources ---------------------------------------------------------------------------------


@runtime_checkable
class FrameSource(Protocol):
    """One DICOM instance (or concatenation) whose frames any number of threads can read.

    A source is a name: its pickle holds the location of the bytes and whatever another process
    needs to find them, but no pixels, offset tables, handles, sessions or tokens. Sources are made,
    copied, compared and pickled often; cache expensive values once per process, by
    :attr:`identity`. All members except `identity` and `name` may read, and raise a
    :class:`DicomSlideError <dicomslide.DicomSlideError>` or an :class:`OSError` on failure.
    """

    @property
    def identity(self) -> tuple[Hashable, ...]:
        """Name of these bytes: hashable, and the same in every process.

        Other bytes have another identity, also if they replace these at the same location. It is
        the key of caches in memory and on disk, and part of the names of dask tasks. It is known
        without reading, and holds no secrets.
        """
        ...

    @property
    def name(self) -> str:
        """Name in messages: a path, a URL without credentials, or the SOP Instance UID."""
        ...

    @property
    def metadata(self) -> Dataset:
        """The header, without pixel data and per-frame functional groups.

        Used often, so implementations cache it. Number of Frames is that of :meth:`read_frames`.
        """
        ...

    @property
    def transfer_syntax_uid(self) -> str | None:
        """Transfer Syntax UID of the frames; None if each frame's bytes are examined for it."""
        ...

    @property
    def frames_per_request(self) -> int | None:
        """Upper bound on frames per call of :meth:`read_frames`, if a call costs a round trip.

        Callers then collect this number of frames for a call. None for sources without requests,
        where the time per frame doesn't depend on the number of frames in a call.
        """
        ...

    def frame_positions(self) -> FramePositions | None:
        """Return the positions of frames, by the per-frame functional groups.

        Returns
        -------
        FramePositions or None
            Made of a data set by :func:`dicomslide.backends.positions_of_dataset`; None if there
            are no such groups, as in TILED_FULL, or they hold no positions.

        """
        ...

    def frame_groups(self, indices: Sequence[int]) -> list[Dataset]:
        """Read the per-frame functional groups of some frames.

        Parameters
        ----------
        indices : sequence of int
            Zero-based frames.

        Returns
        -------
        list of pydicom.dataset.Dataset
            One item of the Per-Frame Functional Groups Sequence per frame, in the same order; an
            empty list without this sequence.

        """
        ...

    def icc_profile(self, item: Dataset) -> bytes | None:
        """Return the ICC Profile of an item of the metadata, retrieved if it is bulk data.

        Parameters
        ----------
        item : pydicom.dataset.Dataset
            Item of the Optical Path Sequence, or the whole metadata.

        Returns
        -------
        bytes or None
            None without a profile or, with a warning, if it can't be retrieved.

        """
        ...

    def read_instance(self) -> Dataset:
        """Read the whole data set; used for annotations and other data that aren't pixels."""
        ...

    def read_frames(self, indices: Sequence[int]) -> list[Buffer]:
        """Read frames, in one batch.

        Parameters
        ----------
        indices : sequence of int
            Zero-based frames, in any order, also repeated; may be empty.

        Returns
        -------
        list of bytes-like
            One buffer for each index, in the same order, which begins with the first bit of the
            frame; empty if an empty frame is stored. For encapsulated frames it is the codestream
            without items; for native frames it has Rows × Columns × Samples per Pixel × Bits
            Allocated bits (PS3.5 8.1.1).

        Raises
        ------
        FrameReadError
            When a frame can't be read or doesn't exist; it names source and frame.

        """
        ...


@runtime_checkable
class RereadableSource(Protocol):
    """Optional: a source whose frames come over a network, or are cached as received.

    A frame that fails to decode is dropped from caches and read once more; a second failure is an
    error.
    """

    def may_read_anew(self) -> bool:
        """Whether reading a frame again may give other bytes; if not, none is read again."""
        ...

    def drop_frame(self, index: int) -> None:
        """Drop a zero-based frame from the caches in memory and on disk."""
        ...

    def read_anew(self, index: int) -> Buffer | None:
        """Read a frame from its origin, without caches and without requests under way.

        None if :meth:`may_read_anew` returns False for it.
        """
        ...


@runtime_checkable
class ScopedSource(Protocol):
    """Optional: a source to which users have different access rights."""

    def kept_as(self) -> tuple[Hashable, ...]:
        """Key of its values in the caches of this process, used instead of the identity.

        Keys differ between credentials, and contain none. A key need not be the same in other
        processes.
        """
        ...


@runtime_checkable
class HeaderedSource(Protocol):
    """Optional: a source that holds the header with which it was made."""

    def without_header(self) -> FrameSource:
        """Return the same source without the header, which is read again when it is needed."""
        ...


@runtime_checkable
class DistantSource(Protocol):
    """Optional: a source whose header takes a round trip, unless this process keeps it.

    The headers of a slide are then fetched at once, and those of a cohort ahead of the loop over
    its slides.
    """

    def unread_headers(self) -> Sequence[FrameSource]:
        """Return the sources whose headers this process doesn't keep: itself, or its parts.

        :attr:`FrameSource.metadata` and :meth:`FrameSource.frame_positions` of such a source send
        requests, and keep what comes.
        """
        ...


@runtime_checkable
class ReadAheadSource(Protocol):
    """Optional: a source whose frames may be read before they are asked for.

    While a caller reads tiles row by row, other threads read and decode the next frames, one at a
    time, also between the calls.
    """

    def may_read_ahead(self) -> bool:
        """Whether :meth:`FrameSource.read_frames` may be called at any time, by any thread."""
        ...


# -- stores ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, order=True, slots=True)
class Series:
    """Series found by a search."""

    study_instance_uid: str
    series_instance_uid: str


@runtime_checkable
class FrameStore(Protocol):
    """Collection of instances, given to the package instead of paths or a DICOMweb client.

    It need not be picklable, because slides hold sources only.
    """

    @property
    def metadata(self) -> Sequence[Dataset]:
        """Metadata of all instances, in the form of :attr:`FrameSource.metadata`.

        They describe images, segmentations, parametric maps and annotations; the package sorts them
        into slides.
        """
        ...

    def source(self, metadata: Dataset) -> FrameSource:
        """Return the source of the instance with the given metadata.

        Raises
        ------
        MetadataError
            When the store knows, without a request, that it doesn't hold the instance.

        """
        ...


@runtime_checkable
class SearchableStore(Protocol):
    """Optional: a store that is searched series by series.

    :func:`dicomslide.find_slides` and :func:`dicomslide.open_slides` then read the metadata of one
    series at a time, and an error affects one series. Of other stores they read all metadata.
    """

    def series(self, study_instance_uid: str | None = None) -> Iterable[Series]:
        """Return the series of a study, or of all studies."""
        ...

    def metadata_of(self, series: Series) -> Sequence[Dataset]:
        """Return the metadata of the instances of a series."""
        ...


# -- which of these an object is --------------------------------------------------------------


def provides(value: object, *methods: Callable[..., Any]) -> bool:
    """Whether an object has methods of a protocol, also by ``__getattr__``.

    `isinstance` with a Protocol isn't used: before Python 3.12 it evaluates properties, and the
    metadata of a store may take a thousand requests; since 3.12 it ignores ``__getattr__``, which
    proxies use.
    """
    return all(callable(getattr(value, method.__name__, None)) for method in methods)


def is_source(value: object) -> TypeGuard[FrameSource]:
    """Whether an object is a source, by its method `read_frames`."""
    return provides(value, FrameSource.read_frames)


def is_store(value: object) -> TypeGuard[FrameStore]:
    """Whether an object is a store, by its method `source`."""
    return provides(value, FrameStore.source)


def is_searchable(store: object) -> TypeGuard[SearchableStore]:
    """Whether a store is searched series by series."""
    return provides(store, SearchableStore.series, SearchableStore.metadata_of)


def _is_rereadable(source: object) -> TypeGuard[RereadableSource]:
    return provides(
        source,
        RereadableSource.may_read_anew,
        RereadableSource.drop_frame,
        RereadableSource.read_anew,
    )


def _is_scoped(source: object) -> TypeGuard[ScopedSource]:
    return provides(source, ScopedSource.kept_as)


def _has_header(source: object) -> TypeGuard[HeaderedSource]:
    return provides(source, HeaderedSource.without_header)


def is_distant(source: object) -> TypeGuard[DistantSource]:
    """Whether the header of a source takes a round trip, unless this process keeps it."""
    return provides(source, DistantSource.unread_headers)


def _is_read_ahead(source: object) -> TypeGuard[ReadAheadSource]:
    return provides(source, ReadAheadSource.may_read_ahead)


# -- functions for all sources ----------------------------------------------------------------


def unread_headers(sources: Iterable[FrameSource]) -> list[FrameSource]:
    """Return the sources whose headers take a round trip, since this process doesn't keep them."""
    return [each for source in sources if is_distant(source) for each in source.unread_headers()]


def fetch_headers(sources: Iterable[FrameSource]) -> None:
    """Fetch at once the headers that take a round trip each.

    Nothing is raised: whoever accesses the metadata of a source gets the error.
    """
    unread = unread_headers(sources)
    if len(unread) > 1:
        together(fetch_header, unread, HEADERS_AT_ONCE)


def fetch_header(source: FrameSource) -> None:
    """Have the process keep a header, and positions of frames; nothing is raised."""
    with contextlib.suppress(Exception):
        if dicom.is_tiled_image(source.metadata):
            source.frame_positions()


def layout_of(source: FrameSource) -> ImageLayout:
    """Return the layout of an image, computed once per process."""

    def read() -> ImageLayout:
        return read_layout(
            source.metadata,
            source.transfer_syntax_uid,
            source.frame_positions(),
            source.name,
            source.frame_groups,
        )

    return _layouts.get(kept_as(source), read)


def kept_as(source: FrameSource) -> tuple[Hashable, ...]:
    """Return the key of a source in the caches of this process.

    The identity; for a :class:`ScopedSource`, the result of its method.
    """
    return source.kept_as() if _is_scoped(source) else source.identity


def drop_frame(source: FrameSource, index: int) -> None:
    """Drop a frame that fails to decode from the caches of a source, if it has any."""
    if _is_rereadable(source):
        source.drop_frame(index)


def may_read_anew(source: FrameSource) -> bool:
    """Whether reading a frame of a source again may give other bytes."""
    return _is_rereadable(source) and source.may_read_anew()


def may_read_ahead(source: FrameSource) -> bool:
    """Whether frames of a source may be read before they are asked for."""
    return _is_read_ahead(source) and source.may_read_ahead()


def read_anew(source: FrameSource, index: int) -> Buffer | None:
    """Read a frame that fails to decode again from its origin, without caches.

    None for sources that aren't a :class:`RereadableSource`.
    """
    return source.read_anew(index) if _is_rereadable(source) else None


def without_header(source: FrameSource) -> FrameSource:
    """Return a source that holds no header."""
    return source.without_header() if _has_header(source) else source


class RangeError(SourceReadError):
    """A range that can't be read.

    Parameters
    ----------
    reason : str
        Cause, without credentials.
    item : int
        Index of the range among those requested.
    status : int, optional
        HTTP status, or an equivalent one.
    source : str, optional
        URL of the object, without credentials.

    """

    def __init__(
        self, reason: str, item: int, status: int | None, source: str | None = None
    ) -> None:
        super().__init__(reason, item, status, source)  # what pickle rebuilds the error from
        self.reason = reason
        self.item = item
        self.status = status
        self.source = source

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}" if self.source else self.reason
