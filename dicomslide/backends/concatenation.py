"""Images in several instances, read as one image (PS3.3 C.7.6.16.2.2.4)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.backends.base import (
    drop_frame,
    kept_as,
    may_read_ahead,
    may_read_anew,
    read_anew,
    unread_headers,
)
from dicomslide.errors import FrameReadError, MetadataError
from dicomslide.header import dicom
from dicomslide.header.tiling import FramePositions
from dicomslide.process.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from pydicom.dataset import Dataset

    from dicomslide.backends.base import FrameSource
    from dicomslide.pixels.pixel_format import Buffer

__all__ = ["ConcatenatedSource", "parts_of"]

_joined: Registry[tuple[Hashable, ...], Dataset] = Registry(1024, "headers", dicom.nbytes)
"""Metadata of concatenations."""


@dataclasses.dataclass(frozen=True)
class ConcatenatedSource:
    """The parts of a concatenation as one image (PS3.3 C.7.6.16.2.2.4)."""

    parts: tuple[FrameSource, ...]
    """Parts, in the order of their frames."""
    firsts: tuple[int, ...]
    """Concatenation Frame Offset Number of each part."""
    counts: tuple[int, ...]
    """Number of Frames of each part."""

    @classmethod
    def of(cls, parts: Sequence[FrameSource]) -> ConcatenatedSource:
        """Return the source of the given parts, in any order.

        Raises
        ------
        MetadataError
            When two parts claim the same frames.

        """

        def first(part: FrameSource) -> int:
            return int(dicom.number(part.metadata, "ConcatenationFrameOffsetNumber") or 0)

        ordered = sorted(parts, key=first)
        firsts = tuple(first(part) for part in ordered)
        counts = tuple(int(dicom.number(part.metadata, "NumberOfFrames") or 1) for part in ordered)
        for i in range(1, len(ordered)):
            if firsts[i] < firsts[i - 1] + counts[i - 1]:
                raise MetadataError(
                    f"{ordered[i].name}: it starts at frame {firsts[i] + 1} of its concatenation,"
                    f" but {ordered[i - 1].name} holds frames {firsts[i - 1] + 1} to"
                    f" {firsts[i - 1] + counts[i - 1]}"
                )
        return cls(tuple(ordered), firsts, counts)

    @property
    def identity(self) -> tuple[Hashable, ...]:
        """Name of these bytes."""
        return ("concatenation", *(part.identity for part in self.parts))

    def kept_as(self) -> tuple[Hashable, ...]:
        """Key of its values in the caches of this process."""
        return ("concatenation", *map(kept_as, self.parts))

    def unread_headers(self) -> list[FrameSource]:
        """Return the parts whose headers take a round trip."""
        return unread_headers(self.parts)

    @property
    def name(self) -> str:
        """Name in messages: that of the first part."""
        return self.parts[0].name

    @property
    def metadata(self) -> Dataset:
        """Header of the first part, with the Number of Frames of all parts."""
        return _joined.get(self.kept_as(), self._joined_metadata)

    def _joined_metadata(self) -> Dataset:
        from pydicom.dataset import Dataset

        from dicomslide.header.lenient import LenientDataset

        first = self.parts[0].metadata
        # unconverted: a broken element that isn't needed must not fail
        elements = Dataset({tag: first.get_item(tag) for tag in first.keys()})  # noqa: SIM118
        implicit_vr, little_endian = first.original_encoding
        elements.set_original_encoding(implicit_vr, little_endian, first.original_character_set)
        joined = LenientDataset(elements, self.name)
        if hasattr(first, "file_meta"):
            joined.file_meta = first.file_meta
        # new elements, because those of the part are shared
        joined.add_new("NumberOfFrames", "IS", self.firsts[-1] + self.counts[-1])
        joined.add_new("ConcatenationFrameOffsetNumber", "UL", 0)
        return joined

    @property
    def transfer_syntax_uid(self) -> str | None:
        """Transfer syntax of the frames; None if parts differ, so that it is detected per frame."""
        uids = {part.transfer_syntax_uid for part in self.parts}
        return uids.pop() if len(uids) == 1 else None

    @property
    def frames_per_request(self) -> int | None:
        """Upper bound on frames per request, for all parts; None without requests."""
        each = [part.frames_per_request for part in self.parts]
        return min((most for most in each if most is not None), default=None)

    @property
    def keeps_frames(self) -> bool:
        """Whether all parts keep received frames for a while."""
        return all(getattr(part, "keeps_frames", False) for part in self.parts)

    def frame_positions(self) -> FramePositions | None:
        """Return the positions of the frames of all parts."""
        found = [part.frame_positions() for part in self.parts]
        given = [each for each in found if each is not None]
        if len(given) < len(found):
            return None
        if sum(self.counts) != self.firsts[-1] + self.counts[-1]:
            raise MetadataError(
                f"{self.name}: the parts of its concatenation hold {sum(self.counts)} frames of"
                f" {self.firsts[-1] + self.counts[-1]}"
            )

        def joined(values: list[Any]) -> Any:
            return None if any(value is None for value in values) else np.concatenate(values)

        return FramePositions(
            rows=joined([each.rows for each in given]),
            columns=joined([each.columns for each in given]),
            z=joined([each.z for each in given]),
            channels=joined([each.channels for each in given]),
        )

    def frame_groups(self, indices: Sequence[int]) -> list[Dataset]:
        """Read the per-frame functional groups of some frames; none if there are none."""
        found: dict[int, Dataset] = {}
        for part, places in self._places(indices).items():
            local = [indices[at] - self.firsts[part] for at in places]
            found |= zip(places, self.parts[part].frame_groups(local), strict=False)
        return [found[at] for at in sorted(found)]

    def icc_profile(self, item: Dataset) -> bytes | None:
        """Return the ICC Profile of an item of the first part's metadata."""
        return self.parts[0].icc_profile(item)

    def read_instance(self) -> Dataset:
        """Read the whole data set of the first part."""
        return self.parts[0].read_instance()

    def read_frames(self, indices: Sequence[int]) -> list[Buffer]:
        """Read frames, in one batch per part."""
        frames: list[Buffer] = [b""] * len(indices)
        for part, places in self._places(indices).items():
            local = [indices[at] - self.firsts[part] for at in places]
            for at, frame in zip(places, self.parts[part].read_frames(local), strict=True):
                frames[at] = frame
        return frames

    def may_read_ahead(self) -> bool:
        """Whether frames of every part may be read before they are asked for."""
        return all(map(may_read_ahead, self.parts))

    def may_read_anew(self) -> bool:
        """Whether reading a frame of any part again may give other bytes."""
        return any(map(may_read_anew, self.parts))

    def drop_frame(self, index: int) -> None:
        """Drop a frame from the caches of its part."""
        part = self._part_of(index)
        drop_frame(self.parts[part], index - self.firsts[part])

    def read_anew(self, index: int) -> Buffer | None:
        """Read a frame again from its origin; None for sources that are always read directly."""
        part = self._part_of(index)
        return read_anew(self.parts[part], index - self.firsts[part])

    def _places(self, indices: Sequence[int]) -> dict[int, list[int]]:
        """Return the positions of the indices by part."""
        places: dict[int, list[int]] = {}
        for at, index in enumerate(indices):
            places.setdefault(self._part_of(index), []).append(at)
        return places

    def _part_of(self, index: int) -> int:
        part = int(np.searchsorted(self.firsts, index, "right")) - 1
        if part < 0 or index >= self.firsts[part] + self.counts[part]:
            raise FrameReadError(
                "it belongs to a part of the concatenation that isn't here", self.name, index
            )
        return part


def parts_of(source: FrameSource) -> tuple[FrameSource, ...]:
    """Return the sources of the instances of an image: the parts of a concatenation, or itself."""
    return source.parts if isinstance(source, ConcatenatedSource) else (source,)
