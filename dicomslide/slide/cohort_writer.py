"""Writing of the index of a cohort, row group by row group."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
import uuid
from typing import TYPE_CHECKING, Any

from dicomslide.backends.net.redaction import public_url
from dicomslide.backends.net.storage_options import harmless_for, remembered
from dicomslide.backends.objects.storage import ObjectReach
from dicomslide.backends.open import local_paths_and_urls
from dicomslide.backends.records import folder_of, packed_source, relative
from dicomslide.contents.description import COLUMNS, STAIN, row_of
from dicomslide.errors import ExportError, StoreExistsError
from dicomslide.process import shared_folder
from dicomslide.slide.batches import Batch, Failures, attempt
from dicomslide.slide.cohort_index import TRAILER, check_installed, is_index, schema, seal_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dicomslide.contents.options import SlideOptions
    from dicomslide.slide.sorting import Openable

__all__ = ["IndexWriter", "Row", "check_writable", "packed_slides", "writing"]

GROUP_BYTES = 16 * 2**20
"""Bytes of headers after which a row group ends: all of it is read for one slide."""
GROUP_ROWS = 4096
"""Upper bound on the rows of a row group."""
PAGE = 2**30
"""Upper bound on the bytes of a page: one for each column, since headers have much in common."""
LEVEL = 3
"""Level of zstd from which on its window holds the headers of several slides."""
FEW = ("manufacturer", "manufacturer_model_name", f"{STAIN}.list.element")
"""Columns of few different values, which are stored as a dictionary."""


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A slide of the index."""

    summary: dict[str, Any]
    """Values of the columns of the table, and the list of stains."""
    instances: list[dict[str, Any]]
    """Record, whether it isn't needed to open the slide, and header of each instance."""
    shared: dict[str, bytes]
    """Values that headers have in common, by digest."""

    @property
    def nbytes(self) -> int:
        """Bytes of the headers."""
        return sum(len(each["header"] or b"") for each in self.instances)


def packed_slides(
    options: SlideOptions, folder: str, items: Sequence[tuple[str, Openable]]
) -> Batch[dict[str, Row]]:
    """Return the rows of slides by name, and the errors of those that can't be in the index.

    Parameters
    ----------
    options : SlideOptions
        Options with which they are opened.
    folder : str
        Folder of the index: see :func:`.records.folder_of`.
    items : sequence of tuple
        Name and member of each slide.

    """
    found: dict[str, Row] = {}
    failures: Failures = {}
    for name, member in items:
        with attempt(failures, name):
            slide = member.open(options)
            summary = row_of(slide)
            summary["file"] = relative(summary["file"], folder)
            shared: dict[str, bytes] = {}
            instances = []
            sources, later = member.sources, member.later
            for at, source in enumerate(sources):
                record, header = packed_source(source, folder, shared)
                instances.append({"source": record, "later": at in later, "header": header})
            found[name] = Row(summary, instances, shared)
    return Batch(found, failures)


class IndexWriter:
    """Writer of the rows of an index.

    Parameters
    ----------
    path : str
        Path of the file.

    """

    def __init__(self, path: str) -> None:
        from pyarrow.parquet import ParquetWriter

        self._path = path
        self._schema = schema()
        self._writer = ParquetWriter(
            path,
            self._schema,
            compression="zstd",
            compression_level=LEVEL,
            use_dictionary=list(FEW),
            data_page_size=PAGE,
            write_page_checksum=True,
            write_statistics=["name", *(name for name in COLUMNS if name != "stains")],
        )
        self._rows: list[dict[str, Any]] = []
        self._nbytes = 0
        self._known: set[str] = set()

    def add(self, name: str, row: Row) -> None:
        """Add a slide."""
        new = row.shared.keys() - self._known
        self._known |= new
        shared = [{"digest": digest, "value": row.shared[digest]} for digest in sorted(new)]
        content = {"name": name, "instances": row.instances, "shared": shared}
        self._rows.append(row.summary | content)
        self._nbytes += row.nbytes
        if self._nbytes >= GROUP_BYTES or len(self._rows) >= GROUP_ROWS:
            self._end_group()

    def _end_group(self) -> None:
        import pyarrow as pa

        if self._rows:
            table = pa.Table.from_pylist(self._rows, self._schema)
            self._writer.write_table(table, row_group_size=len(self._rows))
        self._rows, self._nbytes, self._known = [], 0, set()

    def close(self, *, is_whole: bool) -> None:
        """Write what is left, unless there was an error, and close the file."""
        if is_whole:
            self._end_group()
        self._writer.close()
        if is_whole:
            self._seal()

    def _seal(self) -> None:
        """Write the digest of the footer in front of it: see :func:`.cohort_index.seal_of`."""
        with open(self._path, "r+b") as file:
            file.seek(-TRAILER, os.SEEK_END)
            length = int.from_bytes(file.read(4), "little")
            start = file.seek(-TRAILER - length, os.SEEK_END)
            rest = file.read()
            file.seek(start)
            file.write(seal_of(rest[:length]) + rest)


def check_writable(path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Check what can be known before slides are searched for.

    Raises
    ------
    ValueError
        When the path has another suffix than that of an index.
    ImportError
        When pyarrow isn't installed.
    StoreExistsError
        When something is there, unless it is to be overwritten.
    ExportError
        When a server doesn't say whether an object is there.

    """
    if not is_index(path):
        raise ValueError(f"{public_url(str(path))}: expected a path that ends with .parquet")
    check_installed()
    if overwrite:
        return
    place = _place_of(path)
    is_there = os.path.lexists(place) if isinstance(place, str) else _do(place, "exists")
    if is_there:
        where = place if isinstance(place, str) else place.url
        raise StoreExistsError(f"{where} exists; overwrite=True (--overwrite) replaces it")


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], *, overwrite: bool) -> Iterator[tuple[IndexWriter, str]]:
    """Yield a writer, and the folder of the index; it is there once the ``with`` block ends.

    Raises
    ------
    ValueError, ImportError, StoreExistsError
        See :func:`check_writable`.
    ExportError
        When an object can't be written.

    """
    check_writable(path, overwrite=overwrite)
    place = _place_of(path)
    if not isinstance(place, str):
        with tempfile.TemporaryDirectory() as folder:
            partial = os.path.join(folder, "index.parquet")
            with _closing(IndexWriter(partial)) as writer:
                yield writer, folder_of(place.url)
            _do(place, "put_file", partial)
        return
    partial = f"{place}.{uuid.uuid4().hex}.partial"
    os.close(shared_folder.create(partial, exclusive=True))
    try:
        with _closing(IndexWriter(partial)) as writer:
            yield writer, folder_of(place)
        os.replace(partial, place)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)


def _place_of(path: str | os.PathLike[str]) -> ObjectReach | str:
    """Return how an object is reached by its URL, or the absolute path of a file."""
    local, urls = local_paths_and_urls(path)
    if urls:
        return ObjectReach(remembered(urls[0]), harmless_for(urls[0]))
    return os.path.abspath(os.path.expanduser(os.fspath(local[0])))


@contextlib.contextmanager
def _closing(writer: IndexWriter) -> Iterator[IndexWriter]:
    is_whole = False
    try:
        yield writer
        is_whole = True
    finally:
        writer.close(is_whole=is_whole)


def _do(reach: ObjectReach, method: str, *arguments: Any) -> Any:
    """Call a method of the file system of an object, whose errors show no credentials."""
    place = reach.place()
    try:
        return getattr(place.filesystem, method)(*arguments, place.path)
    except Exception as error:  # each file system has error types of its own
        reason = reach.public(f"{type(error).__name__}: {error}")
        raise ExportError(f"{reach.url}: can't be written: {reason}") from None
