"""`Cohort`: a mapping of names to slides, opened on lookup."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from dicomslide.contents.description import COLUMNS, row_of
from dicomslide.display.progress import report_of
from dicomslide.errors import NotSlideError
from dicomslide.header import dicom
from dicomslide.process.identity import Identified
from dicomslide.process.warn import once
from dicomslide.slide.ahead import fetching_ahead
from dicomslide.slide.batches import Batch, Failures, attempt, in_threads, on_cluster
from dicomslide.slide.calls import (
    Call,
    SlideResults,
    bare,
    failure_of,
    may_pass,
    outcomes,
)
from dicomslide.slide.cohort_index import IndexedMembers
from dicomslide.slide.contact_sheet import ContactSheet
from dicomslide.slide.selection import tests_of
from dicomslide.slide.slide import Slide

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Hashable, Iterator, Sequence

    import pandas as pd

    from dicomslide.contents.options import SlideOptions
    from dicomslide.display.progress import Report
    from dicomslide.errors import SlideTaskError
    from dicomslide.slide.calls import Place
    from dicomslide.slide.cohort_writer import Row
    from dicomslide.slide.sorting import Openable

__all__ = ["Cohort"]

SLIDES_PER_TASK = 8
"""Batch size of tasks on a cluster."""
SLIDES_AT_ONCE = 256
"""Slides whose headers are packed before they are written."""
MAX_NAMES_SHOWN = 5
"""Upper bound on names in the representation of a cohort."""

R = TypeVar("R")


class Cohort(Identified, ContactSheet, Mapping[str, Slide]):
    """Mapping of names to slides, with the errors of files that couldn't be read.

    Returned by :func:`open_slides`. The name of a slide is its Container Identifier. If several
    slides have the same one, the Frame of Reference UID follows after a slash:
    ``"S-1/1.2.3"``. A slide without Container Identifier has the name of one of its files. Each
    pyramid of a glass slide is a slide; if there are several, a number follows, from 0 (the
    largest): ``"S-1/pyramid-0"``. Slides are ordered by name.

    A cohort is picklable and holds one or two kilobytes per slide; one that was opened from an
    index, which :meth:`save` writes, has the path of that. Each lookup opens a slide: its headers
    are read unless the process has them cached, and errors are those of :func:`open_slide`.
    :meth:`opened` skips slides that don't open.

    Parameters
    ----------
    members : mapping of str to Openable
        Sources of each slide, by its name, in the order of names; or the slides of an index.
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
    >>> slides.plot()
    >>> slides.failures

    """

    def __init__(
        self,
        members: Mapping[str, Openable],
        options: SlideOptions,
        failures: Mapping[str, Exception],
        warned: Iterable[str] = (),
    ) -> None:
        self._members = members
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
                return member.open(self._options)
        except Exception as error:
            self._failures[name] = bare(copy.copy(error))
            raise

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, name: object) -> bool:
        return name in self._members  # without opening the slide

    def __dask_tokenize__(self) -> tuple[Hashable, ...]:
        options, members = self._options, self._members
        slides: Hashable
        if isinstance(members, IndexedMembers):
            slides = members.identity
        else:
            slides = tuple(
                (name, *(source.identity for source in member.sources))
                for name, member in members.items()
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
        names = f": {names}" if names else ""
        more = ", ..." if len(self) > MAX_NAMES_SHOWN else ""
        failed = f"; {dicom.counted(len(self._failures), 'failure')}" if self._failures else ""
        return f"<Cohort of {dicom.counted(len(self), 'slide')}{names}{more}{failed}>"

    def _repr_html_(self) -> str:
        from dicomslide.display.html import MOST_SLIDES, cohort_html

        # in this process: tasks of a cluster may be queued for hours
        shown = self._summaries(itertools.islice(self, MOST_SLIDES), in_threads)
        return cohort_html(shown, len(self), self._failures)

    def opened(self, *, ahead: int = 16) -> Iterator[tuple[str, Slide]]:
        """Iterate over open slides, one at a time; slides that don't open are skipped.

        Parameters
        ----------
        ahead : int, default: 16
            Number of the next slides whose headers are fetched meanwhile, where they are on a
            server or in a bucket and this process doesn't keep them; 0 for none.

        Yields
        ------
        tuple of str and Slide
            Name and slide. Errors of skipped slides are in :attr:`failures`.

        Raises
        ------
        TypeError
            When `ahead` isn't an integer.
        ValueError
            When `ahead` is negative.

        """
        return self._opened(dicom.integer(ahead, "ahead", least=0))

    def _opened(self, ahead: int) -> Iterator[tuple[str, Slide]]:
        needed = (member.needed for member in self._members.values())
        with fetching_ahead(needed, ahead) as fetch:
            for name in self:
                fetch()
                try:
                    slide = self[name]
                except Exception:  # the lookup has added it to the failures
                    continue
                yield name, slide

    def map(
        self,
        function: Callable[[Slide], R],
        *,
        on: Place | None = None,
        workers: int | None = None,
        retries: int = 1,
        progress: bool | Report = False,
    ) -> SlideResults[R]:
        """Call a function with each slide, several at once.

        The slide is opened where the function runs, and dropped when it returns.

        Parameters
        ----------
        function : callable
            Called with a :class:`Slide`. In another process, its result is pickled.
        on : {"threads", "processes", "cluster"}, Executor or Client, optional
            Where it runs: in threads of this process; in processes of this machine, which start
            without the modules, credentials and storage options of this one, but with its options;
            on the workers of a dask cluster; on a ``concurrent.futures.Executor``; or on the
            cluster of a ``distributed.Client``. By default on the cluster of the current client,
            or in threads if there is none.
        workers : int, optional
            Upper bound on slides that are open at once. By default 16 threads where slides are on a
            server, else the option `num_threads`; one process per processor; two tasks per thread
            of a cluster.
        retries : int, default: 1
            Number of further attempts after an error that may pass: an OSError of a server or a
            disk, or a process that died; not where something doesn't exist, was changed, or access
            is denied. Attempts follow when all other slides were tried.
        progress : bool or callable, default: False
            Whether standard error says how many slides are done; or a function that is called with
            that number and the number of all slides.

        Returns
        -------
        SlideResults
            Mapping of names to results, in the order of the slides. Its ``failures`` are the
            errors of other slides, which stop nothing.

        Raises
        ------
        ValueError
            When an argument has another value; when there is no cluster.
        TypeError
            When an argument is of another type, or the function can't be pickled for other
            processes.

        Examples
        --------
        >>> areas = slides.map(tissue_area, on="processes", progress=True)
        >>> areas["S23-1"]
        >>> for name, error in areas.failures.items():
        ...     print(error, error.traceback)

        """
        retries = dicom.integer(retries, "retries", least=0)
        report = report_of(progress, "slides")
        call, total = Call(function, self._options), len(self)
        found: dict[str, R] = {}
        failed: dict[str, SlideTaskError] = {}
        waiting = list(self)
        for count in range(1, retries + 2):
            again = []
            running = outcomes(call, [self._members[name] for name in waiting], on, workers)
            with once(self._warned), contextlib.closing(running):  # type: ignore[type-var]
                for at, outcome in running:
                    name = waiting[at]
                    if outcome.error is None:
                        found[name] = outcome.result
                    elif count <= retries and may_pass(outcome.error):
                        again.append(name)
                        continue
                    else:
                        failed[name] = failure_of(name, outcome, count)
                        if not outcome.is_open:
                            self._failures[name] = outcome.error
                    report(len(found) + len(failed), total)
            waiting = sorted(again)
            if not waiting:
                break
        return SlideResults(
            {name: found[name] for name in self if name in found},
            {name: failed[name] for name in self if name in failed},
        )

    def summaries(self) -> dict[str, dict[str, Any]]:
        """Return the main properties of each slide.

        Slides are opened in parallel, by the workers of a dask cluster if there is one; those of an
        index aren't opened.

        Returns
        -------
        dict of str to dict
            Plain values by the name of the slide: see :meth:`to_pandas`. Slides that don't open
            are left out; their errors are in :attr:`failures`.

        """
        return self._summaries(self, _on_cluster)

    def _summaries(
        self, names: Iterable[str], do: Callable[..., list[Batch[Any]]]
    ) -> dict[str, dict[str, Any]]:
        members = self._members
        if isinstance(members, IndexedMembers):
            some = members.only(names)
            values = zip(*some.columns(COLUMNS).values(), strict=True)
            return {
                name: dict(zip(COLUMNS, each, strict=True))
                for name, each in zip(some, values, strict=True)
            }
        rows = self._rows({name: members[name] for name in names}, do)
        return {name: {key: row[key] for key in COLUMNS} for name, row in rows.items()}

    def _rows(
        self, members: Mapping[str, Openable], do: Callable[..., list[Batch[Any]]]
    ) -> dict[str, dict[str, Any]]:
        """Open slides and return their rows; errors are added to the failures."""
        found: dict[str, dict[str, Any]] = {}
        for batch in do(functools.partial(_read_rows, self._options), list(members.items())):
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

        if isinstance(self._members, IndexedMembers):
            table = pd.DataFrame(self._members.columns(COLUMNS), index=list(self))
        else:
            table = pd.DataFrame.from_dict(self.summaries(), orient="index", columns=list(COLUMNS))
        return table.rename_axis(index="slide")

    def select(
        self,
        names: Iterable[str] | None = None,
        *,
        stain: str | Iterable[str] | None = None,
        um_per_pixel: float | tuple[float | None, float | None] | None = None,
        **columns: Any,
    ) -> Cohort:
        """Return the slides with some names, and some values in the table of :meth:`to_pandas`.

        Slides of an index aren't opened for it; other slides are, as by :meth:`summaries`.

        Parameters
        ----------
        names : iterable of str, optional
            Names of slides.
        stain : str or iterable of str, optional
            Stains, of which a slide has at least one: see `columns`.
        um_per_pixel : float or tuple of two, optional
            µm per pixel of the base level: see `columns`.
        **columns
            Values by column. Texts are compared without regard to case, and ``*`` stands for any
            characters, ``?`` for one; of several texts, one has to match. Numbers are equal up to
            a millionth; a tuple is the lowest and the highest one, None for no bound.

        Returns
        -------
        Cohort
            The slides that have all of these, which may be none.

        Raises
        ------
        KeyError
            When there is no slide of a name.
        TypeError
            When there is no such column, or a value is of another type.

        Examples
        --------
        >>> slides.select(stain="*eosin*", um_per_pixel=(0.2, 0.3))
        >>> slides.select(manufacturer=["Leica*", "Hamamatsu*"], levels=(3, None))
        >>> table = slides.to_pandas()
        >>> slides.select(table.index[table["rows"] > table["columns"]])

        """
        if isinstance(names, str):
            raise TypeError(f"names is {names!r}; expected several names")
        tests = tests_of({"stain": stain, "um_per_pixel": um_per_pixel, **columns})
        members = self._members
        if isinstance(members, IndexedMembers):
            members = members if names is None else members.only(names)
            return self._of(members.having(tests) if tests else members)
        kept = members if names is None else {name: members[name] for name in sorted(set(names))}
        if tests:
            rows = self._rows(kept, _on_cluster)
            kept = {
                name: kept[name]
                for name, row in rows.items()
                if all(is_wanted(row[column]) for column, is_wanted in tests.items())
            }
        return self._of(kept)

    def _of(self, members: Mapping[str, Openable]) -> Cohort:
        return Cohort(members, self._options, {}, self._warned)

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        progress: bool | Report = False,
    ) -> None:
        """Write an index of the slides, from which :func:`open_slides` opens them without a search.

        The index is a Parquet file with a row per slide: the columns of :meth:`to_pandas`, the
        headers as stored, and where frames lie. Opening it sends no request to where slides are,
        and a first tile takes one; a slide that has changed since raises a
        :class:`SourceChangedError` when it is read. Slides are opened in parallel, by the workers
        of a dask cluster if there is one. Those that don't open, or can't be in an index (bytes,
        own stores and clients, signed URLs), are left out, and their errors are in
        :attr:`failures`.

        Parameters
        ----------
        path : path-like
            Path or URL, which ends with ``.parquet``. Files and objects below its folder are named
            relative to it, so that they can be moved together.
        overwrite : bool, default: False
            Whether to replace a file that is there.
        progress : bool or callable, default: False
            See :meth:`map`.

        Raises
        ------
        StoreExistsError
            When the file exists, unless `overwrite` is True.
        DicomSlideError, OSError
            When no slide can be in the index: the first error; when the file can't be written.
        ValueError
            When the path ends with something else.
        ImportError
            When pyarrow isn't installed: the extra ``parquet``.

        Notes
        -----
        Headers contain whatever identifies patients: give access to the index to those who have it
        to the slides. No credentials are written. Of files without an offset table, all pixel data
        are searched for frames once.

        Examples
        --------
        >>> dicomslide.open_slides("cohort/").save("cohort/index.parquet")
        >>> slides = dicomslide.open_slides("cohort/index.parquet")

        """
        from dicomslide.slide.cohort_writer import packed_slides, writing

        report, total, done, saved = report_of(progress, "slides"), len(self), 0, 0
        names = iter(sorted(self))
        with writing(path, overwrite=overwrite) as (writer, folder):
            pack = functools.partial(packed_slides, self._options, folder)
            while some := list(itertools.islice(names, SLIDES_AT_ONCE)):
                items = [(name, self._members[name]) for name in some]
                rows: dict[str, Row] = {}
                for batch in _on_cluster(pack, items):
                    rows |= batch.found
                    self._failures |= batch.failures
                for name in sorted(rows):
                    writer.add(name, rows[name])
                done, saved = done + len(some), saved + len(rows)
                report(done, total)
            if not saved:
                raise next(iter(self._failures.values()), NotSlideError("a cohort without slides"))


def _on_cluster(function: Callable[..., Batch[R]], items: Sequence[Any]) -> list[Batch[R]]:
    return on_cluster(function, items, size=SLIDES_PER_TASK)


def _read_rows(
    options: SlideOptions, items: Sequence[tuple[str, Openable]]
) -> Batch[dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, Any]] = {}
    failures: Failures = {}
    for name, member in items:
        with attempt(failures, name):
            found[name] = row_of(member.open(options))
    return Batch(found, failures)
