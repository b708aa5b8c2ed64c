"""The parts of a DICOM Part 10 file, each parsed at the first access."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, TypeVar

from dicomslide.backends.part10 import frame_index as pixel_data
from dicomslide.backends.part10 import header as part10
from dicomslide.errors import FrameReadError, MetadataError
from dicomslide.header.blobs import errors_of_headers
from dicomslide.header.layout import num_frames_of, pixel_format_of
from dicomslide.header.per_frame import UNDEFINED, scan_per_frame_groups
from dicomslide.process.forks import ForkLock
from dicomslide.process.lazy import lazy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from dicomslide.backends.part10.local import ChangingBlob
    from dicomslide.header.blobs import Blob
    from dicomslide.header.tiling import FramePositions
    from dicomslide.pixels.pixel_format import Buffer, PixelFormat

__all__ = ["ParsedFile"]

logger = logging.getLogger(__name__)

R = TypeVar("R")


class ParsedFile:
    """Header, positions and frame index of a file, each parsed once per process.

    Parameters
    ----------
    file : ChangingBlob
        Bytes of the file.
    grown : callable, optional
        Called with this object after its `nbytes` has increased.
    header : Header, optional
        Header, if it was read before.

    """

    def __init__(
        self,
        file: ChangingBlob,
        grown: Callable[[ParsedFile], None] = lambda parsed: None,
        header: part10.Header | None = None,
    ) -> None:
        self.file = file
        self._grown = grown
        self.header = part10.read_header(file) if header is None else header
        self._lock = ForkLock()

    @property
    def nbytes(self) -> int:
        """Bytes in memory, approximately: of the header, and of positions and offsets so far."""
        made = vars(self)
        positions, _ = made.get("_positions_and_rest", (None, 0))
        arrays = (positions, made.get("_frames"), made.get("_scanned"))
        return self.header.nbytes + sum(each.nbytes for each in arrays if each is not None)

    @lazy
    def num_frames(self) -> int:
        """Number of Frames, computed where TILED_FULL lacks it."""
        return num_frames_of(self.header.dataset)

    @property
    def has_positions(self) -> bool:
        """Whether :meth:`positions` returns without reading."""
        return self.header.per_frame is None or "_positions_and_rest" in vars(self)

    def check_num_frames(self) -> None:
        """Raise a MetadataError where the file has fewer bytes than its frames need."""
        blob = self.header.blob
        least = 8 * pixel_data.ITEM_HEADER if self.header.decoder.encapsulated else 1
        if self.num_frames * least > 8 * blob.size:
            raise MetadataError(
                f"{blob.name}: the header declares {self.num_frames:,} frames; a file of"
                f" {blob.size:,} bytes can't hold as many"
            )

    @lazy
    def pixel_format(self) -> PixelFormat:
        """Pixel format, by the header."""
        return pixel_format_of(self.header.dataset)

    @lazy
    def _positions_and_rest(self) -> tuple[FramePositions | None, int]:
        span, blob = self.header.per_frame, self.header.blob
        if span is None:
            return None, self.header.rest
        self.file.check_unchanged()
        with errors_of_headers(blob.name):
            try:
                return scan_per_frame_groups(blob.read, blob.size, span, self.num_frames)
            except MetadataError as error:
                raise MetadataError(f"{blob.name}: {error}") from error

    @lazy
    def _pixel_data(self) -> pixel_data.PixelData:
        span = self.header.per_frame
        rest = self.header.rest
        self.file.check_unchanged()  # else offsets would be those of another file
        if span is not None and span.length == UNDEFINED:
            _, rest = self._positions_and_rest
        with errors_of_headers(self.header.blob.name):
            return pixel_data.locate_pixel_data(self.header, rest, self.num_frames)

    @lazy
    def _frames(self) -> pixel_data.Frames:
        pixels, count, described = self._pixel_data, self.num_frames, self.pixel_format
        with errors_of_headers(self.header.blob.name):
            frames = pixel_data.locate_frames(self.header, pixels, count, described)
        vars(self)["_pixel_data"] = pixels.without_tables()
        return frames

    @lazy
    def _scanned(self) -> pixel_data.Frames | None:
        """Frame index by a scan, where the offset table is wrong; None where the scan fails."""
        if not isinstance(self._frames, pixel_data.EncapsulatedFrames):
            return None
        found = pixel_data.scan_frames(self.header, self._pixel_data, self.num_frames, self._frames)
        if found is not None:
            logger.info("%s: its offset table is wrong; a scan found the frames", self.file.name)
        return found

    def positions(self) -> FramePositions | None:
        """Return frame positions by the per-frame functional groups; None where there are none."""
        with self._growing("_positions_and_rest"):  # one thread scans, the others wait for it
            return self._positions_and_rest[0]

    def frames(self) -> pixel_data.Frames:
        """Return the frame index: by the offset table, or by a scan without one."""
        frames: pixel_data.Frames | None = vars(self).get("_frames")
        if frames is None:
            with self._growing("_frames"):
                frames = self._frames
        return frames

    @property
    def rest(self) -> int:
        """Offset of the first byte after the per-frame functional groups."""
        return self._positions_and_rest[1]

    @property
    def pixels(self) -> pixel_data.PixelData:
        """Place of the Pixel Data element, without tables."""
        return self._pixel_data.without_tables()

    def fill(
        self,
        positions: FramePositions | None,
        rest: int,
        pixels: pixel_data.PixelData | None,
        frames: pixel_data.Frames | None,
    ) -> None:
        """Set what was read of the file before; frames that are None are read when needed."""
        vars(self)["_positions_and_rest"] = positions, rest
        if pixels is not None and frames is not None:
            vars(self)["_pixel_data"] = pixels
            vars(self)["_frames"] = frames

    @contextlib.contextmanager
    def _growing(self, name: str) -> Iterator[None]:
        """Lock this file while a lazy attribute is made; call `grown` where it is new."""
        with self._lock:
            was_made = name in vars(self)
            yield
        if not was_made:
            self._grown(self)

    def read_frames(self, indices: Sequence[int]) -> list[Buffer]:
        """Read frames, by a scan where their offset table is wrong.

        Raises
        ------
        FrameReadError
            Naming the file and the frame.

        """
        for index in indices:
            if not 0 <= index < self.num_frames:
                raise FrameReadError(
                    f"the image has {self.num_frames} frames", self.file.name, index
                )
        return self._by_index(lambda frames, blob: pixel_data.read_frames(frames, blob, indices))

    def byte_ranges(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return where the bytes of each frame lie in the file: the first one, and their number.

        Raises
        ------
        FrameReadError
            Naming the file and a frame that isn't one range of whole bytes.

        """
        decoder = self.header.decoder
        if decoder.deflated:
            raise FrameReadError(f"its data set is deflated ({decoder.name})", self.file.name)
        try:
            return self._by_index(lambda frames, blob: frames.byte_ranges(self.num_frames, blob))
        except FrameReadError as error:
            raise error.located(self.file.name) from error

    def _by_index(self, use: Callable[[pixel_data.Frames, Blob], R]) -> R:
        """Call `use` with the frame index; with that of a scan where the offset table is wrong."""
        frames = self.frames()
        self.file.check_unchanged()
        try:
            return use(frames, self.header.blob)
        except pixel_data.OffsetTableError as error:
            with self._growing("_scanned"):
                scanned = self._scanned
            if scanned is None:
                raise FrameReadError(error.reason, error.source, error.frame) from error
        return use(scanned, self.header.blob)
