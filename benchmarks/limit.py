"""Lower bounds of times: the bare decoder on bytes in memory, and dask with it."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import struct
from collections import deque
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from benchmarks.reader import BLOCK, Reader, blocks, summary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["DaskAlone", "Decoder", "DecoderInProcesses", "PlacingDecoder",
           "PlacingDecoderInProcesses", "Python"]  # fmt: skip

PIXEL_DATA = b"\xe0\x7f\x10\x00OB\x00\x00\xff\xff\xff\xff"
ITEM = int.from_bytes(b"\xfe\xff\x00\xe0", "little")
AT_ONCE = 16
"""Frames per part that a thread decodes."""


def item_places(path: str) -> Iterator[tuple[int, int]]:
    """Yield the (start, length) of each frame's bytes, by reading each item header once."""
    unpack = struct.Struct("<II").unpack
    pread = os.pread
    with open(path, "rb") as file:
        number = file.fileno()
        header = pread(number, 2**22, 0)  # with tables of 152,881 frames in it
        at = header.index(PIXEL_DATA) + len(PIXEL_DATA)
        tag, length = unpack(pread(number, 8, at))
        at += 8 + length  # the basic offset table
        while True:
            tag, length = unpack(pread(number, 8, at))
            if tag != ITEM:
                return
            yield at + 8, length
            at += 8 + length


def decoder_of(transfer_syntax_uid: str) -> Callable[[Any], Any]:
    """Return the fastest decoder with correct pixels."""
    if transfer_syntax_uid == "1.2.840.10008.1.2.4.50":
        import simplejpeg

        return functools.partial(simplejpeg.decode_jpeg, colorspace="RGB")
    import imagecodecs

    return {
        "1.2.840.10008.1.2.4.80": imagecodecs.jpegls_decode,
        "1.2.840.10008.1.2.4.91": imagecodecs.jpeg2k_decode,
        "1.2.840.10008.1.2.4.201": imagecodecs.htj2k_decode,
        # OpenJPH wraps where a lossy codestream overshoots (255 becomes 0): OpenJPEG
        "1.2.840.10008.1.2.4.203": imagecodecs.jpeg2k_decode,
    }[transfer_syntax_uid]


class Decoder(Reader):
    """A loop over the frames of the base level, with their bytes in memory."""

    def load(self) -> None:
        import pydicom

        self.read_header = pydicom.dcmread

    def open(self) -> None:
        header = self.read_header(self.base, stop_before_pixels=True)
        self.decode = decoder_of(header.file_meta.TransferSyntaxUID)
        self.tile = header.Rows
        self.across = -(-header.TotalPixelMatrixColumns // self.tile)
        self.samples = header.SamplesPerPixel
        if "ExtendedOffsetTable" in header:  # whose frames may share bytes
            places: Iterable[tuple[int, int]] = self._extended(header)
        else:
            places = item_places(self.base)
        with open(self.base, "rb") as file:
            self.frames = [os.pread(file.fileno(), length, at) for at, length in places]
        self.pool = ThreadPoolExecutor(self.threads or 1)

    def _extended(self, header: Any) -> list[tuple[int, int]]:
        first, _ = next(item_places(self.base))
        count = int(header.NumberOfFrames)
        offsets, lengths = (
            struct.unpack(f"<{count}Q", table)
            for table in (header.ExtendedOffsetTable, header.ExtendedOffsetTableLengths)
        )
        return [(first + offset, length) for offset, length in zip(offsets, lengths, strict=True)]

    def _run(self, items: list[Any], do: Callable[[Any], Any]) -> None:
        if self.threads is None:
            for item in items:
                do(item)
            return

        def run(batch: list[Any]) -> None:
            for item in batch:
                do(item)

        batches = [items[i : i + AT_ONCE] for i in range(0, len(items), AT_ONCE)]
        for _ in self.pool.map(run, batches):
            pass

    def _touched(self, start: int, size: int) -> range:
        return range(start // self.tile, (start + size - 1) // self.tile + 1)

    def regions(self, at: list[list[int]], size: int) -> None:
        """Decode the frames of each region, one by one."""
        for row, column in at:
            columns = self._touched(column, size)
            frames = [
                self.frames[r * self.across + c] for r in self._touched(row, size) for c in columns
            ]
            self._run(frames, self.decode)

    def frames_once(self, at: list[list[int]], size: int) -> None:
        """Decode each frame that regions touch, once."""
        touched = dict.fromkeys(
            r * self.across + c
            for row, column in at
            for r in self._touched(row, size)
            for c in self._touched(column, size)
        )
        self._run([self.frames[index] for index in touched], self.decode)

    def region(self, row: int, column: int, size: int) -> Any:
        """Return the pixels of a region, the reference for other readers."""
        import numpy as np

        rows, columns = self._touched(row, size), self._touched(column, size)
        found = np.concatenate(
            [
                np.concatenate(
                    [self.decode(self.frames[r * self.across + c]) for c in columns], axis=1
                )
                for r in rows
            ]
        )
        found = found.reshape(*found.shape[:2], -1)
        top, left = row - rows[0] * self.tile, column - columns[0] * self.tile
        return found[top : top + size, left : left + size]

    def tiles(self, start: int, stop: int) -> None:
        """Decode frames one by one."""
        self._run(self.frames[start:stop], self.decode)

    def all_tiles(self) -> None:
        """Decode all frames one by one."""
        self._run(self.frames, self.decode)

    def level(self) -> None:
        """Decode each frame of the level, and find tissue and the sum of its colours."""
        self._run(self.frames, lambda frame: summary(self.decode(frame)))

    def walk(self) -> None:
        """Find all frames of the base level by their item headers."""
        deque(item_places(self.base), maxlen=0)


class PlacingDecoder(Decoder):
    """The same, with pixels copied into a new array, as in readers that return one."""

    def regions(self, at: list[list[int]], size: int) -> None:
        """Decode the frames of each region, and copy their parts into an array."""
        import numpy as np

        for row, column in at:
            out = np.empty((size, size, self.samples), np.uint8)
            columns = self._touched(column, size)
            frames = [(r, c) for r in self._touched(row, size) for c in columns]
            self._run(frames, functools.partial(self._place, out, row, column))

    def level(self) -> None:
        """Process the level block by block, each in one thread, with the sums of all readers."""
        deque(self.pool.map(self.part, self.parts()), maxlen=0)

    def parts(self) -> Iterator[tuple[int, int]]:
        """Yield the (row, column) of each block."""
        return blocks(self.across * self.tile)

    def part(self, at: tuple[int, int]) -> None:
        """Sum up a block."""
        import numpy as np

        out = np.empty((BLOCK, BLOCK, self.samples), np.uint8)
        touched = (self._touched(start, BLOCK) for start in at)
        for frame in itertools.product(*touched):
            self._place(out, *at, frame)
        summary(out)

    def _place(self, out: Any, row: int, column: int, at: tuple[int, int]) -> None:
        frame = self.decode(self.frames[at[0] * self.across + at[1]])
        (down, top), (right, left) = (
            self._overlap(place * self.tile - start, len(out))
            for place, start in zip(at, (row, column), strict=True)
        )
        out[down, right] = frame[top, left]

    def _overlap(self, start: int, size: int) -> tuple[slice, slice]:
        """Return the part of an axis that a frame covers, and that part of the frame."""
        first, last = max(start, 0), min(start + self.tile, size)
        return slice(first, last), slice(first - start, last - start)


class DecoderInProcesses(Decoder):
    """The same in two processes, which share the bytes of the frames."""

    def open(self) -> None:
        super().open()
        self.processes = ProcessPoolExecutor(
            2,
            mp_context=multiprocessing.get_context("fork"),  # nothing is sent
            initializer=_inherit,
            initargs=(self,),
        )
        self.level()

    def level(self) -> None:
        """Find tissue and the sum of the level's colours."""
        deque(self.processes.map(_part, self.parts()), maxlen=0)

    def parts(self) -> Iterable[Any]:
        """Return the starts of runs of frames."""
        return range(0, len(self.frames), AT_ONCE)

    def part(self, at: Any) -> None:
        """Sum up a run of frames, one by one."""
        for frame in self.frames[at : at + AT_ONCE]:
            summary(self.decode(frame))


class PlacingDecoderInProcesses(PlacingDecoder, DecoderInProcesses):
    """The same, block by block."""

    level = DecoderInProcesses.level


_inherited: list[DecoderInProcesses] = []


def _inherit(decoder: DecoderInProcesses) -> None:
    _inherited[:] = [decoder]


def _part(at: Any) -> None:
    _inherited[0].part(at)


class DaskAlone(Decoder):
    """dask with a function that locates and decodes a frame."""

    def load(self) -> None:
        super().load()
        import dask.array

        self.from_array = dask.array.from_array

    def open(self) -> None:
        super().open()
        self.array = self.from_array(
            _Frames(self),
            chunks=(self.tile, self.tile, 3),
            name="frames",
            asarray=False,
            inline_array=True,
        )

    def dask_regions(self, at: list[list[int]], size: int, scheduler: str) -> None:
        """Read regions, with one frame per chunk."""
        for row, column in at:
            region = self.array[row : row + size, column : column + size]
            region.compute(scheduler=scheduler)


class _Frames:
    """Array for dask; each key is within one frame."""

    ndim = 3

    def __init__(self, decoder: Decoder) -> None:
        import numpy as np

        self.decoder = decoder
        down = -(-len(decoder.frames) // decoder.across)
        self.shape = down * decoder.tile, decoder.across * decoder.tile, 3
        self.dtype = np.dtype(np.uint8)

    def __getitem__(self, key: tuple[slice, slice, slice]) -> Any:
        tile = self.decoder.tile
        rows, columns, samples = key
        row, column = rows.start // tile, columns.start // tile
        frame = self.decoder.decode(self.decoder.frames[row * self.decoder.across + column])
        return frame[
            rows.start - row * tile : rows.stop - row * tile,
            columns.start - column * tile : columns.stop - column * tile,
            samples,
        ]


class Python(Reader):
    """Imports that every reader of DICOM needs."""

    def load(self) -> None:
        import numpy
        import pydicom

        assert numpy
        self.read_header = pydicom.dcmread

    def open_cohort(self) -> None:
        """Read the headers of all files below a folder."""
        for parent, _, files in os.walk(self.folder):
            for file in files:
                self.read_header(os.path.join(parent, file), stop_before_pixels=True)
