"""The contract between the arrays and where their bytes come from.

`FrameSource` and `FrameStore` are what a source and a store must have. The other protocols are
optional: a source or store has their methods where what they are for applies to it.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from dicomslide.errors import SourceReadError
from dicomslide.header.layout import ImageLayout, read_layout
from dicomslide.process.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence
    from typing import TypeGuard

    from pydicom.dataset import Dataset

    from dicomslide.header.tiling import FramePositions
    from dicomslide.pixels.pixel_format import Buffer

__all__ = ["FrameSource", "FrameStore", "HeaderedSource", "RangeError", "RereadableSource",
           "ScopedSource", "SearchableStore", "Series", "drop_frame", "is_searchable", "is_source",
           "is_store", "kept_as", "layout_of", "may_read_anew", "provides", "read_anew",
           "without_header"]  # fmt: skip

_layouts: Registry[tuple[Hashable, ...], ImageLayout] = Registry(
    1024, "layouts", lambda layout: layout.nbytes
)


# -- sources ---------------------------------------------------------------------------------


@runtime_checkable
class FrameSource(Protocol):
    """One DICOM instance (or concatenation) whose frames can be read, by any number of threads.

    A source is a name: its pickle holds where the bytes are and what else another process needs to
    find them, never pixels, offset tables, handles, sessions or tokens. Keep what is expensive once
    per process, by :attr:`identity`: sources are made, copied, compared and pickled often. All
    attributes but the identity and the name may read, and raise a :class:`DicomSlideError
    <dicomslide.DicomSlideError>` or an :class:`OSError` where that fails.
    """

    @property
    def identity(self) -> tuple[Hashable, ...]:
        """Name of these bytes: hashable, and the same in every process.

        Other bytes have another identity, also those that replace these in the same place: what is
        kept in memory and on disk, and dask's names of tasks, go by it. It reads nothing, and holds
        nothing secret.
        """
        ...

    @property
    def name(self) -> str:
        """Name in messages: of a file, an URL without credentials, or the SOP Instance UID."""
        ...

    @property
    def metadata(self) -> Dataset:
        """The header, without pixel data and per-frame functional groups.

        Asked for often: keep it. Number of Frames is that of :meth:`read_frames`.
        """
        ...

    @property
    def transfer_syntax_uid(self) -> str | None:
        """Transfer Syntax UID of the frames; None where each frame's own bytes tell."""
        ...

    @property
    def frames_per_request(self) -> int | None:
        """Upper bound on frames per call of :meth:`read_frames`, where a call costs a round trip.

        Callers then collect as many frames for each call. None where reading takes no requests: few
        frames per call cost no more for each.
        """
        ...

    def frame_positions(self) -> FramePositions | None:
        """Return what the per-frame functional groups say of where frames lie.

        Returns
        -------
        FramePositions or None
            :func:`dicomslide.backends.positions_of_dataset` makes them of a data set; None where
            there are no such groups, as in TILED_FULL, or they have no positions.

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
            An item of the Per-Frame Functional Groups Sequence for each, in the same order; an
            empty list where there is no such sequence.

        """
        ...

    def icc_profile(self, item: Dataset) -> bytes | None:
        """Return the ICC Profile of an item of the metadata, which may hold it elsewhere.

        Parameters
        ----------
        item : pydicom.dataset.Dataset
            Item of the Optical Path Sequence, or the metadata themselves.

        Returns
        -------
        bytes or None
            None where there is none, or, with a warning, where it can't be had.

        """
        ...

    def read_instance(self) -> Dataset:
        """Read the whole data set, whatever its size: for what isn't pixels, like annotations."""
        ...

    def read_frames(self, indices: Sequence[int]) -> list[Buffer]:
        """Read frames, in one batch.

        Parameters
        ----------
        indices : sequence of int
            Zero-based frames, in any order, any of them more than once; may be empty.

        Returns
        -------
        list of bytes-like
            One buffer for each index, in the same order, from the frame's first bit; empty where an
            empty frame is stored. Encapsulated frames come as their codestream, without items;
            native ones as Rows × Columns × Samples per Pixel × Bits Allocated say (PS3.5 8.1.1).

        Raises
        ------
        FrameReadError
            Naming the source and the frame: where it can't be read, or isn't one of the image's.

        """
        ...


@runtime_checkable
class RereadableSource(Protocol):
    """Optional: a source whose frames come over a network, or are kept on their way.

    A frame that doesn't decode is dropped, and read once more from where it is stored, before it is
    an error.
    """

    def may_read_anew(self) -> bool:
        """Whether a frame may come otherwise the next time; where not, none is read anew."""
        ...

    def drop_frame(self, index: int) -> None:
        """Drop what this process, or a cache on disk, keeps of a frame (zero-based)."""
        ...

    def read_anew(self, index: int) -> Buffer | None:
        """Read a frame from where it is stored, whatever is kept of it or is under way.

        None where :meth:`may_read_anew` is false of it.
        """
        ...


@runtime_checkable
class ScopedSource(Protocol):
    """Optional: a source of which one user may see what another may not."""

    def kept_as(self) -> tuple[Hashable, ...]:
        """Name of what this process keeps of it, instead of the identity.

        It tells apart the credentials by which the source is read, holds none of them, and needn't
        be the same in other processes.
        """
        ...


@runtime_checkable
class HeaderedSource(Protocol):
    """Optional: a source that holds the header that it was made with."""

    def without_header(self) -> FrameSource:
        """Return the same source without it, to be kept among many; it is read when wanted."""
        ...


# -- stores ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, order=True, slots=True)
class Series:
    """A series that a search has found."""

    study_instance_uid: str
    series_instance_uid: str


@runtime_checkable
class FrameStore(Protocol):
    """Where several instances are: what stands in for paths or a DICOMweb client.

    It needs to pickle only where a caller pickles it: slides hold sources.
    """

    @property
    def metadata(self) -> Sequence[Dataset]:
        """The metadata of all instances, each as :attr:`FrameSource.metadata` has them.

        Those of images, and of what is derived from them, like segmentations and annotations; the
        package sorts them into slides.
        """
        ...

    def source(self, metadata: Dataset) -> FrameSource:
        """Return the source of the instance that the metadata describe.

        Raises
        ------
        MetadataError
            When the instance isn't there, as far as the store can tell without a request.

        """
        ...


@runtime_checkable
class SearchableStore(Protocol):
    """Optional: a store that is looked through series by series.

    :func:`dicomslide.find_slides` and :func:`dicomslide.open_slides` then read no more metadata at
    once than those of a series, and an error is that of one series. Of another store they read all
    metadata.
    """

    def series(self, study_instance_uid: str | None = None) -> Iterable[Series]:
        """Return the series that are there, of a study or of all."""
        ...

    def metadata_of(self, series: Series) -> Sequence[Dataset]:
        """Return the metadata of the instances of a series."""
        ...


# -- which of these an object is --------------------------------------------------------------


def provides(value: object, *methods: Callable[..., Any]) -> bool:
    """Whether an object has methods of a protocol, its own or those that it passes on.

    Not by isinstance: with a Protocol it asks, before Python 3.12, for properties too, and the
    metadata of a store may be a thousand requests; since then it passes over ``__getattr__``, by
    which proxies are made.
    """
    return all(callable(getattr(value, method.__name__, None)) for method in methods)


def is_source(value: object) -> TypeGuard[FrameSource]:
    """Whether something is a source: whether it reads frames."""
    return provides(value, FrameSource.read_frames)


def is_store(value: object) -> TypeGuard[FrameStore]:
    """Whether something is a store: whether it has sources."""
    return provides(value, FrameStore.source)


def is_searchable(store: object) -> TypeGuard[SearchableStore]:
    """Whether a store is looked through series by series."""
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


# -- what holds for every source --------------------------------------------------------------


def layout_of(source: FrameSource) -> ImageLayout:
    """Return this process's layout of an image, worked out once."""

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
    """Return by what this process keeps what it has read of a source.

    Its identity; of a :class:`ScopedSource`, its own name of it.
    """
    return source.kept_as() if _is_scoped(source) else source.identity


def drop_frame(source: FrameSource, index: int) -> None:
    """Drop what was kept of a frame that doesn't decode, where frames are kept of a source."""
    if _is_rereadable(source):
        source.drop_frame(index)


def may_read_anew(source: FrameSource) -> bool:
    """Whether frames of a source come over a network, and may come otherwise the next time."""
    return _is_rereadable(source) and source.may_read_anew()


def read_anew(source: FrameSource, index: int) -> Buffer | None:
    """Read a frame that doesn't decode from where it is, whatever was kept or is under way.

    What came over a network may come whole the next time. None for other sources.
    """
    return source.read_anew(index) if _is_rereadable(source) else None


def without_header(source: FrameSource) -> FrameSource:
    """Return a source that holds no header, to be kept among many."""
    return source.without_header() if _has_header(source) else source


class RangeError(SourceReadError):
    """A range that can't be had.

    Parameters
    ----------
    reason : str
        What happened; without credentials.
    item : int
        Which of the ranges asked for.
    status : int, optional
        HTTP status, or the one that means the same.
    source : str, optional
        URL of the object, as it may be shown.

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
