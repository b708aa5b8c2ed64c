"""Where bytes come from: the contract of sources and stores, and the sources of this package.

``base``
    The contract: `FrameSource` (one instance), `FrameStore` (many), and what is optional of both.
``open``
    What paths and URLs stand for.
``concatenation``
    Several instances as one source.
``search``
    What a store holds, series by series.
``part10``
    DICOM Part 10 files on disk and in memory: header, offset tables, index cache.
``objects``
    The same in buckets, on HTTP servers and in archives, by fsspec.
``dicomweb``
    Servers: metadata, search, negotiation of media types, transport.
``batching``
    Requests of several threads joined, prefetch, and the cache of encoded frames.
``net``
    Retries, credentials and addresses, for objects and servers alike.
``coalesce``
    Spans that are read together.

A store of one's own has the methods of `FrameStore`, and its sources those of `FrameSource`;
`dicomslide.testing.conformance` tests both.
"""

from __future__ import annotations

from dicomslide.backends.base import (
    FrameSource,
    FrameStore,
    HeaderedSource,
    RereadableSource,
    ScopedSource,
    SearchableStore,
    Series,
)
from dicomslide.header.per_frame import positions_of_dataset
from dicomslide.header.tiling import FramePositions

__all__ = [
    "FramePositions",
    "FrameSource",
    "FrameStore",
    "HeaderedSource",
    "RereadableSource",
    "ScopedSource",
    "SearchableStore",
    "Series",
    "positions_of_dataset",
]
