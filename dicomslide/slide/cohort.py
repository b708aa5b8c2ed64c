"""`open_slides` and `Cohort`: a mapping of names to slides, opened on lookup."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import glob
import itertools
import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dicomslide.backends.base import is_store
from dicomslide.backends.dicomweb.client import (
    ClientStore,
    check_access,
    is_client,
    is_dicomweb_url,
    store_at,
)
from dicomslide.backends.net.redaction import public_url
from dicomslide.backends.net.storage_options import remembered
from dicomslide.backends.open import (
    local_paths_and_urls,
    objects_at,
    open_source,
    paths_and_streams,
)
from dicomslide.backends.part10.file import files_of
from dicomslide.backends.part10.streams import StreamSource
from dicomslide.backends.search import StoreCatalog
from dicomslide.contents.description import summary_of
from dicomslide.contents.options import SlideOptions
from dicomslide.errors import NotDicomError, NotSlideError
from dicomslide.header import dicom
from dicomslide.process.identity import Identified
from dicomslide.process.parallel import together
from dicomslide.process.warn import once
from dicomslide.slide.slide import Slide
from dicomslide.slide.sorting import Instance, Member, open_members, sort_instances, split

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

    import pandas as pd

    from dicomslide.backends.base import FrameSource, FrameStore, Series
    from dicomslide.backends.search import Catalog
    from dicomslide.readers.matrix_reader import OnError

__all__ = ["Cohort", "open_slides"]

MAX_THREADS = 16
"""Upper bound on files, series or slides that threads of this process open at once."""
MIN_WAIT = 0.05
"""Seconds that items are processed one by one before threads are considered."""
FILES_PER_TASK, SLIDES_PER_TASK = 16, 8
"""Batch sizes of tasks on a cluster."""
MAX_NAMES_SHOWN = 5
"""Upper bound on names in the representation of a cohort."""

Failures = dict[str, Exception]
T = TypeVar("T")
F = TypeVar("F")


class Cohort(Identified, Mapping[str, Slide]):
    """Mapping of names to slides, with the errors of files that couldn't be read.

    Returned by :func:`open_slides`. The name of a slide is its Container Identifier. If several
    slides have the same one, the Frame of Reference UID follows after a slash:
    ``"S-1/1.2.3"``. A slide without Container Identifier has the name of one of its files. Each
    pyramid of a glass slide is a slide; if there are several, a number follows, from 0 (the
    largest): ``"S-1/pyramid-0"``. Slides are ordered by name.

    A cohort is picklable and holds one or two kilobytes per slide. Each lookup opens a slide: its
    headers are read unless the process has them cached, and errors are those of
    :func:`open_slide`. :meth:`opened` skips slides that don't open.

    Parameters
    ----------
    members : mapping of str to Member
        Sources of each slide, by its name.
    options : SlideOptions
        Options of each slide.
    failures : mapping of str to Exception
        See :attr:`failures`.
    warned : iterable of str
        Warnings that were given during the search, which lookups don't repeat.

    Examples
    --------
    >>> slides = dicomslide.open_slides("cohort/")
    >>> slides["S23-1"].thumbnail()
    >>> slides.to_pandas().groupby("manufacturer").size()
    >>> {name: slide.num_levels for name, slide in slides.opened()}
    >>> slides.failures

    """

    def __init__(
        self,
        members: Mapping[str, Member],
        options: SlideOptions,
        failures: Mapping[str, Exception],
        warned: Iterable[str] = (),
    ) -> None:
        self._members = dict(sorted(members.items()))
        self._options = options
        self._failures = dict(failures)
        self._warned = set(warned)

    @property
    def failures(self) -> Mapping[str, Exception]:
        """Errors by the name of a file, object, series or slide.

        Files that couldn't be read or sorted are listed first; a slide that lacks such a file is
        in the cohort nevertheless. Slides follow that couldn't be opened by :meth:`summaries`,
        :meth:`to_pandas`, :meth:`opened` or a lookup.
        """
        return MappingProxyType(self._failures)

    def __getitem__(self, name: str) -> Slide:
        member = self._members[name]
        try:
            with once(self._warned):
                return open_members(member.sources, self._options)
        except Exception as error:
            self._failures[name] = _bare(copy.copy(error))
            raise

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, name: object) -> bool:
        return name in self._members  # without opening the slide

    def __dask_tokenize__(self) -> tuple[Hashable, ...]:
        options = self._options
        slides = tuple(
            (name, *(source.identity for source in member.sources))
            for name, member in self._members.items()
        )
        return (
            "dicomslide.Cohort",
            slides,
            options.correct_color,
            options.on_error,
            options.pyramid_tolerance,
            options.align_levels,
        )

    def _ipython_key_completions_(self) -> list[str]:
        return list(self)

    def __repr__(self) -> str:
        names = ", ".join(itertools.islice(self, MAX_NAMES_SHOWN))
        more = ", ..." if len(self) > MAX_NAMES_SHOWN else ""
        failed = f"; {dicom.counted(len(self._failures), 'failure')}" if self._failures else ""
        return f"<Cohort of {dicom.counted(len(self), 'slide')}: {names}{more}{failed}>"

    def _repr_html_(self) -> str:
        from dicomslide.display.html import MOST_SLIDES, cohort_html

        # in this process: tasks of a cluster may be queued for hours
        shown = self._summaries(itertools.islice(self, MOST_SLIDES), _in_threads)
        return cohort_html(shown, len(self), self._failures)

    def opened(self) -> Iterator[tuple[str, Slide]]:
        """Iterate over open slides, one at a time; slides that don't open are skipped.

        Yields
        ------
        tuple of str and Slide
            Name and slide. Errors of skipped slides are in :attr:`failures`.

        """
        for name in self:
            try:
                slide = self[name]
            except Exception:  # the lookup has added it to the failures
                continue
            yield name, slide

    def summaries(self) -> dict[str, dict[str, Any]]:
        """Return the main properties of each slide.

        Slides are opened in parallel, by the workers of a dask cluster if there is one.

        Returns
        -------
        dict of str to dict
            Plain values by the name of the slide: see :meth:`to_pandas`. Slides that don't open
            are left out; their errors are in :attr:`failures`.

        """
        return self._summaries(self, functools.partial(_on_cluster, size=SLIDES_PER_TASK))

    def _summaries(
        self, names: Iterable[str], do: Callable[..., list[_Batch[Any]]]
    ) -> dict[str, dict[str, Any]]:
        items = [(name, self._members[name].sources) for name in names]
        found: dict[str, dict[str, Any]] = {}
        for batch in do(functools.partial(_summarize, self._options), items):
            found |= batch.found
            self._failures |= batch.failures
        return found

    def to_pandas(self) -> pd.DataFrame:
        """Return the :meth:`summaries` as a table with a row per slide, indexed by name.

        Returns
        -------
        pandas.DataFrame
            Rows and columns of the base level, µm per pixel, numbers of levels, channels and focal
            planes, stains, scanner, UIDs, and file of the base level.

        Raises
        ------
        ImportError
            When pandas isn't installed.

        """
        import pandas as pd

        table = pd.DataFrame.from_dict(self.summaries(), orient="index")
        return table.rename_axis(index="slide")


@once()
def open_slides(
    source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | FrameStore | Any,
    *,
    study_instance_uid: str | None = None,
    max_frame_cache_size: int | None = None,
    pyramid_tolerance: float = 0.1,
    correct_color: bool = True,
    on_error: OnError = "raise",
    align_levels: bool = True,
    storage_options: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
    session: Any = None,
) -> Cohort:
    """Open all slides of a folder, a bucket or a server.

    Files are sorted into slides by their headers, regardless of folders. Headers are read in
    parallel, by the workers of a dask cluster if a client is active; files that workers can't
    reach are read by this process. Errors are collected in :attr:`Cohort.failures`.

    Parameters
    ----------
    source : path-like, bytes, file object, iterable of these, DICOMClient or FrameStore
        Folders (searched recursively), files and patterns such as ``"cohort/*/*.dcm"``, as paths
        or fsspec URLs (whose patterns have ``*`` only), and other inputs of :func:`open_slide`; or
        a ``dicomweb_client.api.DICOMClient``, the URL of a DICOMweb service or study,
        ``"dicomweb+https://host/.../studies/..."``, or a store (see ``dicomslide.backends``).
    study_instance_uid : str, optional
        Study Instance UID that limits the search of a client or a store.
    max_frame_cache_size, pyramid_tolerance, correct_color, on_error, align_levels, storage_options
        Options of each slide: see :func:`open_slide`.
    session : requests.Session or callable, optional
        Session for the URL of a DICOMweb service: see :func:`open_slide`.

    Returns
    -------
    Cohort
        Slides by name; no pixels are read.

    Raises
    ------
    DicomSlideError, OSError
        When no slide is found: the first error, or an error that names the source.
    TypeError
        When `study_instance_uid` is given for files.

    Examples
    --------
    >>> slides = dicomslide.open_slides("cohort/")
    >>> slides["S23-1"].plot()

    """
    check_access(source, storage_options, session)
    options = SlideOptions(
        max_frame_cache_size=max_frame_cache_size,
        pyramid_tolerance=pyramid_tolerance,
        correct_color=correct_color,
        on_error=on_error,
        align_levels=align_levels,
    )
    failures: Failures = {}
    given: list[Any]
    store: Catalog | None = None
    if is_client(source):
        store = ClientStore(source, study_instance_uid)
    elif isinstance(source, str) and is_dicomweb_url(source):
        store = store_at(source, session)
    elif is_store(source):
        store = StoreCatalog(source, study_instance_uid)
    elif study_instance_uid is not None:
        raise TypeError(
            f"study_instance_uid is given with a {type(source).__name__}; expected a client or a"
            " store"
        )
    if store is not None:
        given = [source if isinstance(source, str) else type(source).__name__]
        series = store.series(attempt=functools.partial(_attempt, failures))
        batches = _in_threads(functools.partial(_read_series, store), series)
    else:
        given, streams = paths_and_streams(source)
        paths = _paths_of(given, storage_options, failures)
        batches = _on_cluster(_read_files, paths, size=FILES_PER_TASK)
        batches += _in_threads(_read_streams, streams)
        given += streams
    for batch in batches:
        failures |= batch.failures
    instances = [each for batch in batches for each in batch.found]
    cohort = _sorted(instances, options, failures)
    if cohort:
        return cohort
    if cohort.failures:
        raise next(iter(cohort.failures.values()))
    what = ", ".join(public_url(str(each)) for each in given) or "an empty list"
    if instances:
        raise NotSlideError(f"{what}: none of {len(instances)} instances is a slide image")
    kind = "file" if store is None else "slide image"
    raise NotDicomError(f"{what}: no DICOM {kind} is there")


# -- list of files ---------------------------------------------------------------------------


Named = tuple[str, bool]
"""Path or URL, and whether the caller named it: if so, a file that isn't DICOM is an error."""


def _paths_of(given: list[Any], storage_options: Any, failures: Failures) -> list[Named]:
    local, urls = local_paths_and_urls(given, storage_options)
    found: dict[str, bool] = {}

    def add(paths: Iterable[str], is_named: bool) -> None:
        for path in paths:
            found[path] = is_named or found.get(path, False)

    for each in local:
        path = Path(each).expanduser().absolute()  # workers may have another working directory
        if path.is_dir():
            add(files_of(path), False)
            continue
        matching = [] if path.exists() else sorted(glob.glob(str(path), recursive=True))
        for match in map(Path, matching):
            if match.is_dir():
                add(files_of(match), False)
        add((match for match in matching if not os.path.isdir(match)), False)
        if not matching:  # a file, or a path that doesn't exist, which is an error later
            add([str(path)], True)
    for batch in _in_threads(_list_objects, urls):
        failures |= batch.failures
        for url, is_named in batch.found:
            add([url], is_named)
    return list(found.items())


# -- parallel processing in threads and on workers ------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class _Batch(Generic[F]):
    """Results and errors of a batch of items."""

    found: F
    failures: Failures

    @property
    def has_unreached(self) -> bool:
        """Whether an error is an OSError, which this process may not have."""
        return any(isinstance(error, OSError) for error in self.failures.values())


def _list_objects(urls: Sequence[str]) -> _Batch[list[Named]]:
    found: list[Named] = []
    failures: Failures = {}
    for url in urls:
        with _attempt(failures, public_url(url)):
            # without credentials, which aren't sent to workers
            found += [(remembered(each), is_given) for each, is_given in objects_at(url)]
    return _Batch(found, failures)


def _read_files(paths: Sequence[Named]) -> _Batch[list[Instance]]:
    found: list[Instance] = []
    failures: Failures = {}
    for path, is_named in paths:
        with _attempt(failures, path):
            try:
                found.append(Instance.of(open_source(path)))
            except NotDicomError:
                if is_named:
                    raise
    return _Batch(found, failures)


def _read_streams(streams: Sequence[Any]) -> _Batch[list[Instance]]:
    found: list[Instance] = []
    failures: Failures = {}
    for each in streams:
        with _attempt(failures, f"{type(each).__name__} at {id(each):#x}"):
            found.append(Instance.of(StreamSource.open(each)))
    return _Batch(found, failures)


def _read_series(store: Catalog, series: Sequence[Series]) -> _Batch[list[Instance]]:
    found: list[Instance] = []
    failures: Failures = {}
    for each in series:
        with _attempt(failures, f"series {each.series_instance_uid}"):
            for metadata in store.metadata_of(each):
                with _attempt(failures, dicom.name_of(metadata)):
                    found.append(Instance.of(store.source(metadata)))
    return _Batch(found, failures)


def _split(tolerance: float, groups: Sequence[Sequence[Instance]]) -> _Batch[list[Member]]:
    found: list[Member] = []
    failures: Failures = {}
    for group in groups:
        known = (each.container for each in group if each.container)
        with _attempt(failures, next(known, group[0].source.name)):
            found += split(group, tolerance)
    return _Batch(found, failures)


def _summarize(
    options: SlideOptions, items: Sequence[tuple[str, tuple[FrameSource, ...]]]
) -> _Batch[dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, Any]] = {}
    failures: Failures = {}
    for name, sources in items:
        with _attempt(failures, name):
            found[name] = summary_of(open_members(sources, options))
    return _Batch(found, failures)


@contextlib.contextmanager
def _attempt(failures: Failures, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        failures[what] = _bare(error)


def _bare(error: Exception) -> Exception:
    """Remove traceback, cause and context of an error, which hold references to headers."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def _on_cluster(
    function: Callable[[list[T]], _Batch[F]], items: Sequence[T], *, size: int
) -> list[_Batch[F]]:
    """Apply a function to batches of items on the dask cluster, if any, else in threads."""
    client = _cluster() if len(items) > size else None
    if client is None:
        return _in_threads(function, items)
    batches = [list(items[i : i + size]) for i in range(0, len(items), size)]
    done: list[_Batch[F] | None] = []
    for future in client.map(function, batches, pure=False):
        try:
            batch = future.result()
        except Exception:  # an error of the cluster; errors of files are in the batch
            done.append(None)
        else:  # files that a worker can't reach are tried again in this process
            done.append(None if batch.has_unreached else batch)
    missed = [each for b, d in zip(batches, done, strict=True) if d is None for each in b]
    here = iter(_in_threads(function, missed))
    return [
        each
        for batch, there in zip(batches, done, strict=True)
        for each in ([there] if there is not None else itertools.islice(here, len(batch)))
    ]


def _cluster() -> Any:
    """Return the current client of a dask cluster; None without one, and within a task."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        distributed.get_worker()
    except ValueError:
        pass
    else:
        return None  # a task that waits for other tasks can deadlock
    try:
        client = distributed.default_client()
    except ValueError:
        return None
    return None if client.asynchronous or not client.nthreads() else client


def _in_threads(function: Callable[[list[T]], _Batch[F]], items: Sequence[T]) -> list[_Batch[F]]:
    """Apply a function to each item; in threads, once processing turns out to be I/O-bound.

    Threads speed up waiting for a server or a disk, and slow down the parsing of headers. Items
    are processed one by one until more than half of the elapsed time was spent waiting.
    """
    done: list[_Batch[F]] = []
    began, worked = time.perf_counter(), time.thread_time()
    for at, item in enumerate(items):
        elapsed = time.perf_counter() - began
        if elapsed > max(MIN_WAIT, 2 * (time.thread_time() - worked)):
            return done + together(lambda each: function([each]), items[at:], MAX_THREADS)
        done.append(function([item]))
    return done


# -- sorting and naming ----------------------------------------------------------------------


def _sorted(instances: Iterable[Instance], options: SlideOptions, failures: Failures) -> Cohort:
    """Sort instances into slides, and name the slides."""
    found: list[Member] = []
    separate = functools.partial(_split, options.pyramid_tolerance)
    # in this process: few groups need their headers again
    with once() as warned:
        batches = _in_threads(separate, sort_instances(instances))
    for batch in batches:
        found += batch.found
        failures |= batch.failures
    frames: dict[str | None, set[str | None]] = {}
    for member in found:
        frames.setdefault(member.container, set()).add(member.frame_of_reference_uid)
    members: dict[str, Member] = {}
    for member in found:
        file = member.sources[0].name
        name = member.container or file
        if len(frames[member.container]) > 1 and member.container is not None:
            name = f"{member.container}/{member.frame_of_reference_uid or file}"
        if member.pyramid is not None:
            name = f"{name}/pyramid-{member.pyramid}"
        members[file if name in members else name] = member
    return Cohort(members, options, failures, warned)
