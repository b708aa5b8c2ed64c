"""Index of a cohort: a Parquet file with a row per slide, from which slides open without a search.

Columns are those of the table of a cohort, and what opening needs: sources, headers as stored, and
where frames lie. The latter are read by row groups, when a slide is opened. The file holds values
only: nothing of it is executed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.backends.net.storage_options import (
    harmless_for,
    register_for_all,
    remembered,
    scope_of,
)
from dicomslide.backends.objects.remote import RemoteFile
from dicomslide.backends.objects.repositories import is_repository
from dicomslide.backends.objects.storage import is_url
from dicomslide.backends.open import local_paths_and_urls
from dicomslide.backends.part10.local import LocalFile
from dicomslide.backends.records import folder_of, resolved, restored
from dicomslide.contents.description import COLUMNS, STAIN
from dicomslide.errors import CohortIndexError, DicomSlideError, NotDicomError
from dicomslide.header.blobs import raw_file_of
from dicomslide.options import check_memory
from dicomslide.process.forks import ForkLock
from dicomslide.process.lazy import lazy
from dicomslide.process.registry import Registry
from dicomslide.slide.sorting import open_members

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Sequence
    from typing import TypeGuard

    from numpy.typing import NDArray

    from dicomslide.backends.base import FrameSource
    from dicomslide.backends.net.storage_options import StorageOptions
    from dicomslide.contents.options import SlideOptions
    from dicomslide.header.blobs import Span
    from dicomslide.pixels.pixel_format import Buffer
    from dicomslide.slide.selection import Test
    from dicomslide.slide.slide import Slide

__all__ = ["TRAILER", "CohortIndex", "IndexedMembers", "check_installed", "hint_at_index",
           "is_index", "schema", "seal_of"]  # fmt: skip

KEY, VERSION = b"dicomslide", 1
"""Key of the file's metadata that makes it an index, and the version that this package writes."""
CONTENT = ("instances", "shared")
"""Columns that are read when a slide is opened."""
PER_SLIDE = 256
"""Approximate memory of a name with its place, in bytes."""
MOST_GROUPS = 4
"""Upper bound on row groups that the process caches."""

SEAL = b"dicomslide footer"
"""Precedes the SHA-256 digest of the footer."""
TRAILER = 8
"""Bytes after the footer: its length, and ``PAR1``."""
LAST = 2**16
"""Bytes that pyarrow reads first."""


def check_installed() -> None:
    """Raise an ImportError that names the extra if pyarrow isn't installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise ImportError(
            "an index of a cohort needs the package pyarrow: pip install 'dicomslide[parquet]'"
        ) from None


def schema() -> Any:
    """Return the columns of an index, as a schema of pyarrow."""
    import pyarrow as pa

    types = {int: pa.int64(), float: pa.float64(), str: pa.string()}
    instance = pa.struct([("source", pa.string()), ("later", pa.bool_()), ("header", pa.binary())])
    value = pa.struct([("digest", pa.string()), ("value", pa.binary())])
    return pa.schema(
        [
            ("name", pa.string()),
            *((name, types[kind]) for name, kind in COLUMNS.items() if name != "stains"),
            (STAIN, pa.list_(pa.string())),
            ("instances", pa.list_(instance)),
            ("shared", pa.list_(value)),
        ],
        {KEY: json.dumps({"version": VERSION})},
    )


def seal_of(footer: bytes) -> bytes:
    """Return what lies between pages and footer: pages have checksums in Parquet, a footer none."""
    return SEAL + hashlib.sha256(footer).digest()


def is_index(source: object) -> TypeGuard[str | os.PathLike[str]]:
    """Whether something is the path or URL of an index, by its suffix."""
    if not isinstance(source, (str, os.PathLike)):
        return False
    path = str(os.fspath(source))
    return path.partition("?")[0].lower().endswith(".parquet") and not os.path.isdir(path)


def hint_at_index(error: NotDicomError, source: object) -> None:
    """Add a note to an error about a source, if that is an index or a repository of slides."""
    if is_index(source) or is_repository(source):
        error.add_note(
            "open_slides opens an index of slides, or a repository of them, given by itself"
        )


class _Fetched:
    """A blob, of which some ranges were read together."""

    def __init__(self, blob: LocalFile | RemoteFile) -> None:
        self.name, self.size = blob.name, blob.size
        self._blob = blob
        self._parts: dict[int, Buffer] = {}
        self._end = self.size, b""
        """Offset of the end of the file that is kept, and its bytes."""

    @contextlib.contextmanager
    def footer(self) -> Iterator[tuple[bytes, bytes]]:
        """Read the bytes before the footer, as many as a seal has, and the footer.

        They are kept for a ``with`` block, and empty where there can be no such bytes.
        """
        sealed = len(seal_of(b""))
        at = max(0, self.size - LAST)
        end = self._blob.read(at, LAST)
        start = self.size - TRAILER - int.from_bytes(end[-TRAILER:-4], "little")
        if sealed <= start < at + sealed:
            at = start - sealed
            check_memory(self.size - at, f"{self.name}: the footer")
            end = self._blob.read(at, self.size - at)
        self._end = at, end
        try:
            before = start - sealed - at
            found = end[before:-TRAILER] if start >= sealed else b""
            yield found[:sealed], found[sealed:]
        finally:
            self._end = self.size, b""

    @contextlib.contextmanager
    def fetching(self, spans: Sequence[Span]) -> Iterator[None]:
        """Read ranges, several requests at once, and keep them for a ``with`` block."""
        parts = self._blob.read_spans(spans)
        self._parts = {at: part for (at, _), part in zip(spans, parts, strict=True)}
        try:
            yield
        finally:
            self._parts = {}

    def read(self, offset: int, length: int) -> bytes:
        """Read bytes."""
        part = self._parts.get(offset, b"")
        if len(part) == length:
            return bytes(part)
        at, end = self._end
        return end[offset - at :][:length] if at <= offset else self._blob.read(offset, length)


@dataclasses.dataclass(frozen=True, slots=True)
class _Group:
    """Rows of a row group."""

    instances: Any
    """Arrow's column of lists of instances."""
    shared: dict[str, bytes]
    """Values that headers have in common, by digest."""
    nbytes: int


class _Table:
    """An open index.

    Parameters
    ----------
    blob : LocalFile or RemoteFile
        The file.

    Raises
    ------
    CohortIndexError
        When it isn't an index, or one of another version, or damaged.

    """

    def __init__(self, blob: LocalFile | RemoteFile) -> None:
        from pyarrow.parquet import ParquetFile

        self._blob = _Fetched(blob)
        self._lock = ForkLock()
        with self._blob.footer() as (seal, footer), self._errors():
            if seal.startswith(SEAL) and seal != seal_of(footer):
                raise CohortIndexError(f"{blob.name}: it is damaged: its footer isn't as written")
            self._parquet = ParquetFile(raw_file_of(self._blob), page_checksum_verification=True)
            said = json.loads((self._parquet.metadata.metadata or {}).get(KEY, b"null"))
        version = said.get("version") if isinstance(said, dict) else None
        if version is None:
            raise CohortIndexError(f"{blob.name}: a Parquet file, but not an index of a cohort")
        if version != VERSION:
            raise CohortIndexError(
                f"{blob.name}: an index of version {version!r}; this package reads version"
                f" {VERSION}: make it anew by Cohort.save"
            )
        metadata = self._parquet.metadata
        with self._errors():
            self._check_columns()
        self._places: dict[str, list[int]] = {}
        for at in range(len(self._parquet.schema)):
            name = self._parquet.schema.column(at).path.partition(".")[0]
            self._places.setdefault(name, []).append(at)
        counts = [metadata.row_group(at).num_rows for at in range(metadata.num_row_groups)]
        self.firsts = np.cumsum([0, *counts])
        self.nbytes: int = metadata.serialized_size + PER_SLIDE * self.num_rows

    def _check_columns(self) -> None:
        found, expected = self._parquet.schema_arrow, schema()
        if missing := set(expected.names) - set(found.names):
            names = ", ".join(sorted(missing))
            raise CohortIndexError(f"{self._blob.name}: it lacks the columns {names}")
        for column in expected:
            if (kind := found.field(column.name).type) != column.type:
                raise CohortIndexError(
                    f"{self._blob.name}: its column {column.name} is {kind}; expected {column.type}"
                )

    @property
    def num_rows(self) -> int:
        """Number of slides."""
        return int(self.firsts[-1])

    @lazy
    def rows(self) -> dict[str, int]:
        """Row of each slide by name, in the order of rows."""
        return {name: row for row, name in enumerate(self.columns(["name"])["name"])}

    def groups_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of the row group of each row."""
        return np.searchsorted(self.firsts, rows, "right") - 1

    def columns(
        self, names: Sequence[str], rows: NDArray[np.int64] | None = None
    ) -> dict[str, list[Any]]:
        """Read whole columns, or some rows of them; of the row groups that have these."""
        rows = np.arange(self.num_rows) if rows is None else rows
        of_rows = self.groups_of(rows)
        groups, at = np.unique(of_rows, return_inverse=True)
        counts = np.diff(self.firsts)[groups]
        places = (np.cumsum(counts) - counts)[at] + rows - self.firsts[of_rows]
        with self._reading(groups.tolist(), names):
            table = self._parquet.read_row_groups(
                groups.tolist(), columns=list(names), use_threads=False
            ).take(places)
            return {name: table[name].to_pylist() for name in names}

    def group(self, number: int) -> _Group:
        """Read a row group, except for the columns of the table."""
        with self._reading([number], CONTENT):
            table = self._parquet.read_row_group(number, columns=CONTENT, use_threads=False)
            lists = table["shared"].to_pylist()
        shared = {each["digest"]: each["value"] for values in lists for each in values}
        return _Group(table["instances"], shared, table.nbytes)

    @contextlib.contextmanager
    def _reading(self, groups: Iterable[int], names: Sequence[str]) -> Iterator[None]:
        spans, nbytes = [], 0
        for number in groups:
            group = self._parquet.metadata.row_group(number)
            for place in (place for name in names for place in self._places[name]):
                chunk = group.column(place)
                first = chunk.data_page_offset
                if chunk.has_dictionary_page:
                    first = min(first, chunk.dictionary_page_offset)
                spans.append((first, first + chunk.total_compressed_size))
                nbytes += max(chunk.total_compressed_size, chunk.total_uncompressed_size)
        check_memory(nbytes, f"{self._blob.name}: {', '.join(names)}")
        with self._lock, self._errors(), self._blob.fetching(spans):
            yield

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        from pyarrow import ArrowException

        try:
            yield
        except (DicomSlideError, MemoryError):
            raise
        except (ArrowException, OSError, ValueError, TypeError) as error:
            raise CohortIndexError(f"{self._blob.name}: it is damaged: {error}") from error


_tables: Registry[tuple[Hashable, ...], _Table] = Registry(
    16, "indices of cohorts", lambda table: table.nbytes
)
_groups: Registry[tuple[Hashable, ...], _Group] = Registry(
    MOST_GROUPS, "row groups of indices", lambda group: group.nbytes
)


@dataclasses.dataclass(frozen=True, slots=True)
class CohortIndex:
    """An index of a cohort: its pickle holds path and version."""

    path: str
    """Absolute path, or URL without credentials."""
    size: int
    version: str
    """Time of change of a file, in nanoseconds; version of an object."""
    options: str = "{}"
    """Storage options that hold no credentials, as JSON."""

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], storage_options: StorageOptions | None = None
    ) -> CohortIndex:
        """Open an index.

        Parameters
        ----------
        path : path-like
            Path or URL.
        storage_options : mapping or callable, optional
            Storage options of its URL, and of slides below its folder.

        Raises
        ------
        CohortIndexError
            When it isn't an index of a cohort, or one of another version.
        ImportError
            When pyarrow isn't installed.

        """
        check_installed()
        local, urls = local_paths_and_urls(path, storage_options)
        if urls:
            if storage_options is not None:
                register_for_all([folder_of(urls[0])], storage_options)
            options = harmless_for(urls[0])
            file = RemoteFile.open(remembered(urls[0]), options)
            index = cls(file.name, file.size, file.version, options)
        else:
            where = os.path.abspath(os.path.expanduser(os.fspath(local[0])))
            found = LocalFile(where)
            index = cls(where, found.size, str(found.mtime_ns))
        index.table()
        return index

    @property
    def identity(self) -> tuple[Hashable, ...]:
        """Name of these bytes: the same in every process."""
        return self.path, self.size, self.version

    @property
    def _key(self) -> tuple[Hashable, ...]:
        return (scope_of(self.path) if is_url(self.path) else "", *self.identity)

    def table(self) -> _Table:
        """Return the open index, which the process caches."""
        return _tables.get(self._key, lambda: _Table(self._file()))

    def _file(self) -> LocalFile | RemoteFile:
        if is_url(self.path):
            return RemoteFile.known(self.path, self.options, self.size, self.version)
        return LocalFile.known(self.path, self.size, int(self.version))

    def columns(self, names: Iterable[str], rows: NDArray[np.int64] | None) -> dict[str, list[Any]]:
        """Return columns of the table of slides, and the lists of stains: of all or some rows."""
        names = list(names)
        stored = {STAIN if name == "stains" else name for name in names}
        found = self.table().columns(sorted(stored), rows)
        if "stains" in names:
            found["stains"] = [", ".join(each) or None for each in found[STAIN]]
        if "file" in names:
            folder = folder_of(self.path)
            found["file"] = [resolved(each, folder) for each in found["file"]]
        return {name: found[name] for name in names}

    def instances(self, row: int) -> Iterator[tuple[str, bool, bytes | None, dict[str, bytes]]]:
        """Yield of each instance of a slide: record, whether it isn't needed, header, shared."""
        table = self.table()
        number = int(table.groups_of(np.array(row)))
        group = _groups.get((*self._key, number), lambda: table.group(number))
        for each in group.instances[row - int(table.firsts[number])].as_py():
            yield each["source"], each["later"], each["header"], group.shared


@dataclasses.dataclass(frozen=True, slots=True)
class IndexedMember:
    """A slide of an index."""

    index: CohortIndex
    name: str
    row: int

    @property
    def needed(self) -> tuple[FrameSource, ...]:
        """No sources: the index has the headers."""
        return ()

    @property
    def sources(self) -> tuple[FrameSource, ...]:
        """Sources of the instances; the process keeps their headers."""
        return self._restored()[0]

    @property
    def later(self) -> tuple[int, ...]:
        """Indices of sources that aren't needed to open the slide."""
        return self._restored()[1]

    def open(self, options: SlideOptions) -> Slide:
        """Open the slide, by the headers of the index."""
        sources, later = self._restored()
        return open_members(sources, options, later)

    def _restored(self) -> tuple[tuple[FrameSource, ...], tuple[int, ...]]:
        folder, name = folder_of(self.index.path), f"{self.index.path}: slide {self.name}"
        sources, later = [], []
        for at, (record, is_later, header, shared) in enumerate(self.index.instances(self.row)):
            sources.append(restored(record, header, shared, folder=folder, name=name))
            if is_later:
                later.append(at)
        return tuple(sources), tuple(later)


class IndexedMembers(Mapping[str, IndexedMember]):
    """Slides of an index by name: all of them, or those of some rows.

    Parameters
    ----------
    index : CohortIndex
        The index.
    rows : numpy.ndarray, optional
        Rows of the slides, ascending.

    """

    def __init__(self, index: CohortIndex, rows: NDArray[np.int64] | None = None) -> None:
        self._index = index
        self._rows = rows

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._index, self._rows)

    @property
    def identity(self) -> tuple[Hashable, ...]:
        """Name of these slides: the same in every process."""
        rows = None if self._rows is None else hashlib.sha256(self._rows.tobytes()).hexdigest()
        return (*self._index.identity, rows)

    @lazy
    def _places(self) -> dict[str, int]:
        places = self._index.table().rows
        if self._rows is None:
            return places
        names = list(places)
        return {names[row]: row for row in self._rows.tolist()}

    def __getitem__(self, name: str) -> IndexedMember:
        return IndexedMember(self._index, name, self._places[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return self._index.table().num_rows if self._rows is None else len(self._rows)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def only(self, names: Iterable[str]) -> IndexedMembers:
        """Return the slides with some names."""
        rows = sorted({self._places[name] for name in names})
        return IndexedMembers(self._index, np.array(rows, np.int64))

    def having(self, tests: Mapping[str, Test]) -> IndexedMembers:
        """Return the slides whose values pass tests, by column."""
        rows = np.fromiter(self._places.values(), np.int64)
        is_kept = np.ones(len(rows), bool)
        for name, values in self.columns(tests).items():
            is_kept &= np.fromiter(map(tests[name], values), bool, len(rows))
        return IndexedMembers(self._index, rows[is_kept])

    def columns(self, names: Iterable[str]) -> dict[str, list[Any]]:
        """Return columns of the table of these slides."""
        return self._index.columns(names, self._rows)
