"""Sources of bytes: the contract of sources and stores, and the implementations of this package.

``base``
    The contract: `FrameSource` (one instance), `FrameStore` (many), and optional protocols.
``open``
    Sources of paths and URLs.
``concatenation``
    The instances of a concatenation as one source.
``search``
    Series and metadata of a store.
``part10``
    DICOM Part 10 files on disk and in memory: header, offset tables, index cache.
``objects``
    Part 10 files in buckets, on HTTP servers and in archives, by fsspec; storages of icechunk.
``dicomweb``
    DICOMweb servers: metadata, search, negotiation of media types, transport.
``batching``
    Joining of requests of several threads, prefetch, and the cache of encoded frames.
``net``
    Retries, credentials and addresses, for objects and DICOMweb servers.
``records``
    Sources as plain values, for the index of a cohort; ``packing``: their headers as bytes.
``coalesce``
    Joining of neighbouring spans to one read.

A store of another package implements `FrameStore`, and its sources `FrameSource`;
`dicomslide.testing.conformance` tests both.
"""

from __future__ import annotations

from dicomslide.backends.base import (
    DistantSource,
    FrameSource,
    FrameStore,
    HeaderedSource,
    ReadAheadSource,
    RereadableSource,
    ScopedSource,
    SearchableStore,
    Series,
)
from dicomslide.header.per_frame import positions_of_dataset
from dicomslide.header.tiling import FramePositions

__all__ = [
    "DistantSource",
    "FramePositions",
    "FrameSource",
    "FrameStore",
    "HeaderedSource",
    "ReadAheadSource",
    "RereadableSource",
    "ScopedSource",
    "SearchableStore",
    "Series",
    "positions_of_dataset",
]
