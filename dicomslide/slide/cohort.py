"""`Cohort`: a mapping of names to slides, opened on lookup."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from dicomslide.contents.description import summary_of
from dicomslide.display.progress import report_of
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
from dicomslide.slide.contact_sheet import ContactSheet
from dicomslide.slide.slide import Slide

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

    import pandas as pd

    from dicomslide.contents.options import SlideOptions
    from dicomslide.display.progress import Report
    from dicomslide.errors import SlideTaskError
    from dicomslide.slide.calls import Place
    from dicomslide.slide.sorting import Member

__all__ = ["Cohort"]

SLIDES_PER_TASK = 8
"""Batch size of tasks on a cluster."""
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
    >>> slides.plot()
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

        Slides are opened in parallel, by the workers of a dask cluster if there is one.

        Returns
        -------
        dict of str to dict
            Plain values by the name of the slide: see :meth:`to_pandas`. Slides that don't open
            are left out; their errors are in :attr:`failures`.

        """
        return self._summaries(self, functools.partial(on_cluster, size=SLIDES_PER_TASK))

    def _summaries(
        self, names: Iterable[str], do: Callable[..., list[Batch[Any]]]
    ) -> dict[str, dict[str, Any]]:
        items = [(name, self._members[name]) for name in names]
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


def _summarize(
    options: SlideOptions, items: Sequence[tuple[str, Member]]
) -> Batch[dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, Any]] = {}
    failures: Failures = {}
    for name, member in items:
        with attempt(failures, name):
            found[name] = summary_of(member.open(options))
    return Batch(found, failures)
