"""The whole contract between the arrays and where their bytes come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from dicomslide.errors import SourceReadError
from dicomslide.header.layout import ImageLayout, read_layout
from dicomslide.process.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from pydicom.dataset import Dataset

    from dicomslide.header.tiling import FramePositions
    from dicomslide.pixels.pixel_format import Buffer

__all__ = ["FrameSource", "FrameStore", "RangeError", "drop_frame", "kept_as", "layout_of",
           "may_read_anew", "read_anew"]  # fmt: skip

_layouts: Registry[tuple[Hashable, ...], ImageLayout] = Registry(1024)


@runtime_checkable
class FrameSource(Protocol):
    """One DICOM instance (or concatenation) whose frames can be read.

    A source is thin: its pickle holds a name and options, never an offset table, a handle, a
    session or a token. What is expensive is made once per process and kept by `identity`.
    """

    @property
    def identity(self) -> tuple[Hashable, ...]:
        """Name of these bytes: hashable, and the same in every process."""
        ...

    @property
    def name(self) -> str:
        """What messages call it: a file name, URL or SOP Instance UID."""
        ...

    @property
    def metadata(self) -> Dataset:
        """The header, without pixel data and per-frame functional groups."""
        ...

    @property
    def transfer_syntax_uid(self) -> str | None:
        """Transfer syntax of the frames; None where each frame's bytes tell."""
        ...

    @property
    def frames_per_request(self) -> int | None:
        """Most frames that a request asks for: as many as that should, for it costs much in itself.

        None where there are no requests, and a few frames cost no more than many each.
        """
        ...

    def frame_positions(self) -> FramePositions | None:
        """Return what the per-frame functional groups say; None where they say nothing."""
        ...

    def frame_groups(self, indices: Sequence[int]) -> list[Dataset]:
        """Read the per-frame functional groups of some frames; none where there are none."""
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
            Zero-based frames, in any order.

        Returns
        -------
        list of bytes-like
            One buffer a frame, in the same order, from the frame's first bit; empty where an
            empty frame is stored.

        Raises
        ------
        FrameReadError
            Naming the source and the frame.

        """
        ...


@runtime_checkable
class FrameStore(Protocol):
    """Where several instances are: what stands in for a DICOMweb client."""

    def source(self, metadata: Dataset) -> FrameSource:
        """Return the source of the instance that the metadata describe."""
        ...


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

    Its identity; and of a server's, who read it: what one was shown, another may not be.
    """
    own: tuple[Hashable, ...] | None = getattr(source, "kept_as", None)
    return source.identity if own is None else own


def drop_frame(source: FrameSource, index: int) -> None:
    """Drop what was kept of a frame that doesn't decode, where frames are kept of a source."""
    drop = getattr(source, "drop_frame", None)
    if drop is not None:
        drop(index)


def may_read_anew(source: FrameSource) -> bool:
    """Whether frames of a source come over a network, and may come otherwise the next time."""
    parts = getattr(source, "parts", (source,))  # of a concatenation
    return any(hasattr(part, "read_anew") for part in parts)


def read_anew(source: FrameSource, index: int) -> Buffer | None:
    """Read a frame that doesn't decode from where it is, whatever was kept or is under way.

    What came over a network may come whole the next time. None for other sources.
    """
    read = getattr(source, "read_anew", None)
    return None if read is None else read(index)
