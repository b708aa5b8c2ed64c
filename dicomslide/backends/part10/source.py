"""Base class of the sources of DICOM Part 10 files, on disk and elsewhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from dicomslide.backends.part10 import header as part10
from dicomslide.backends.part10.packed import pack
from dicomslide.errors import DicomSlideError
from dicomslide.header import dicom

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

    from dicomslide.backends.part10.parsed import ParsedFile
    from dicomslide.header.tiling import FramePositions
    from dicomslide.pixels.pixel_format import Buffer

__all__ = ["Part10Source"]

_STORAGES_OF_IMAGES = dicom.SEGMENTATION_STORAGES | {
    dicom.VL_WHOLE_SLIDE_MICROSCOPY_IMAGE_STORAGE,
    dicom.PARAMETRIC_MAP_STORAGE,
}


class Part10Source(ABC):
    """A source that reads from a parsed file, which this process caches.

    A subclass defines where the bytes are, by its identity and its parsed file.
    """

    __slots__ = ()

    path: str
    """Absolute path, or URL without credentials."""
    sop_instance_uid: str
    size: int
    """Bytes of the file."""

    @abstractmethod
    def _instance(self) -> ParsedFile:
        """Return the parsed file, from the cache of this process."""

    @property
    @abstractmethod
    def identity(self) -> tuple[Hashable, ...]:
        """Name of these bytes: equal in every process that reads them."""

    @property
    def name(self) -> str:
        """Path or URL of the file."""
        return self.path

    @property
    def metadata(self) -> Dataset:
        """The header, without pixel data and per-frame functional groups."""
        return self._instance().header.dataset

    @property
    def transfer_syntax_uid(self) -> str:
        """Transfer syntax of the frames."""
        return self._instance().header.transfer_syntax_uid

    @property
    def frames_per_request(self) -> int | None:
        """None: frames are read without requests."""
        return None

    def frame_positions(self) -> FramePositions | None:
        """Return frame positions by the per-frame functional groups; None where there are none."""
        instance = self._instance()
        instance.check_num_frames()
        return instance.positions()

    def frame_groups(self, indices: Sequence[int]) -> list[Dataset]:
        """Read the per-frame functional groups of some frames; none where there are none."""
        instance = self._instance()
        return part10.read_per_frame_groups(instance.header, instance.num_frames, indices)

    def icc_profile(self, item: Dataset) -> bytes | None:
        """Return the ICC Profile of an item of the header."""
        profile = item.get("ICCProfile")
        return profile if profile and isinstance(profile, bytes) else None

    def check_complete(self) -> None:
        """Raise a MetadataError where the header lacks what the image of a slide needs to be one.

        A file that was cut within its header would otherwise be taken for no slide image.
        """
        part10.check_complete(self._instance().header, self.name, self.size)

    def read_instance(self) -> Dataset:
        """Read the whole data set, whatever its size.

        Raises
        ------
        MetadataError
            When it can't be read.

        """
        instance = self._instance()
        instance.file.check_unchanged()
        return part10.read_instance(instance.file)

    @property
    def is_whole(self) -> bool:
        """Whether the last frame of an image, or else the whole data set, can be read."""
        try:
            if dicom.text(self.metadata, "SOPClassUID") in _STORAGES_OF_IMAGES:
                self.read_frames([self._instance().num_frames - 1])
            else:
                self.read_instance()
        except (DicomSlideError, OSError):
            return False
        return True

    def read_frames(self, indices: Sequence[int]) -> list[Buffer]:
        """Read frames, in the order of the file, without a lock."""
        return self._instance().read_frames(indices)

    def pack_header(self, shared: dict[str, bytes]) -> bytes | None:
        """Return the header with what else a read needs: see :func:`.packed.pack`."""
        return pack(self._instance(), shared)

    def byte_ranges(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return where the bytes of each frame lie: the first one of each, and their number.

        Raises
        ------
        FrameReadError
            When a frame isn't one range of whole bytes of the file: it has several fragments,
            begins within a byte, or belongs to a deflated data set.

        """
        return self._instance().byte_ranges()

    def read_heads(self, offsets: Sequence[int], length: int) -> list[Buffer]:
        """Read the first bytes of frames, without decoding or caching them.

        Parameters
        ----------
        offsets : sequence of int
            Offset of the first byte of each.
        length : int
            Bytes of each; fewer come at the end of the file.

        """
        return self._instance().header.blob.read_spans([(at, at + length) for at in offsets])
