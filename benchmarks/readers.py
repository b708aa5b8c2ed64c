"""Readers by name: dicomslide, other readers and the bare decoder, all with the same files.

Each imports its packages in :meth:`Reader.load`, so that a process contains only one of them.
Colours are as stored for all.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from benchmarks.limit import (
    DaskAlone,
    Decoder,
    DecoderInProcesses,
    PlacingDecoder,
    PlacingDecoderInProcesses,
    Python,
)
from benchmarks.pairs import InTwoProcesses
from benchmarks.peers import (
    Fastslide,
    Highdicom,
    OpenSlide,
    OpenSlideOfDicomslide,
    Wsidicom,
    WsidicomByPillow,
    WsidicomOnServer,
)
from benchmarks.stacks import StackDecoder, StackedDicomslide
from benchmarks.subject import (
    CorrectedDicomslide,
    Dicomslide,
    DicomslideByMatrix,
    DicomslideFarAway,
    DicomslideNearby,
    DicomslideOnServer,
    DicomslideWithoutCache,
    DicomslideWithoutDecoder,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.reader import Reader

__all__ = ["READERS"]

READERS: dict[str, Callable[[str], Reader]] = {
    "dicomslide": Dicomslide,
    "dicomslide, 1 thread": functools.partial(Dicomslide, threads=1),
    "dicomslide, 2 threads": functools.partial(Dicomslide, threads=2),
    "dicomslide, corrected, 1 thread": functools.partial(CorrectedDicomslide, threads=1),
    "dicomslide, no cache": DicomslideWithoutCache,
    "dicomslide, no cache, 1 thread": functools.partial(DicomslideWithoutCache, threads=1),
    "dicomslide, no decoder, 1 thread": functools.partial(DicomslideWithoutDecoder, threads=1),
    "dicomslide, matrix": DicomslideByMatrix,
    "dicomslide, OpenSlide": OpenSlideOfDicomslide,
    "dicomslide, server": DicomslideOnServer,
    "dicomslide, server nearby": DicomslideNearby,
    "dicomslide, server far away": DicomslideFarAway,
    "dicomslide, stacks": StackedDicomslide,
    "wsidicom": Wsidicom,
    "wsidicom, 2 threads": functools.partial(Wsidicom, threads=2),
    "wsidicom, Pillow": WsidicomByPillow,
    "wsidicom, server": WsidicomOnServer,
    "wsidicom, server, 2 threads": functools.partial(WsidicomOnServer, threads=2),
    "openslide": OpenSlide,
    "fastslide": Fastslide,
    "highdicom": Highdicom,
    "decoder": Decoder,
    "decoder, 2 threads": functools.partial(Decoder, threads=2),
    "decoder, 2 processes": DecoderInProcesses,
    "decoder, placing, 2 threads": functools.partial(PlacingDecoder, threads=2),
    "decoder, placing, 2 processes": PlacingDecoderInProcesses,
    "decoder, stacks, 2 threads": functools.partial(StackDecoder, threads=2),
    "dask alone": DaskAlone,
    "Python": Python,
    **{
        f"{reader}, 2 processes": functools.partial(InTwoProcesses, reader=reader)
        for reader in ("dicomslide", "dicomslide, 1 thread", "wsidicom", "openslide", "fastslide")
    },
}
"""Functions that make the reader of a folder; None for its default number of threads."""
