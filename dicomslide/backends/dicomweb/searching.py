"""Searches of a DICOMweb server (QIDO-RS) for series, and what servers make of their filters."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from dicomslide.backends.base import Series
from dicomslide.backends.criteria import SLIDE_MODALITY, Criteria, has_wildcard
from dicomslide.backends.dicomweb.failures import status_of
from dicomslide.errors import MetadataError, MetadataWarning
from dicomslide.header import dicom
from dicomslide.process.parallel import together
from dicomslide.process.registry import Registry
from dicomslide.process.warn import warn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from pydicom.dataset import Dataset

    from dicomslide.backends.dicomweb.connection import Connection
    from dicomslide.backends.dicomweb.protocol import Answering, Json

__all__ = ["Search", "pages_of", "value_of"]

PAGE = 200
"""Results per page of a search: the number that the strictest servers allow."""
MOST_RESULTS = 10**6
"""Upper bound on the results of a search, which ends searches that repeat forever."""
AT_ONCE = 8
"""Upper bound on concurrent searches."""
CONTAINER = "ContainerIdentifier"
UNKNOWN = frozenset({400, 404, 405, 406, 415, 422, 501})
"""HTTP status of servers that don't know a resource or a filter."""

NO_SUCH_SEARCH = (AttributeError, NotImplementedError, TypeError, ValueError)
"""Errors of clients without a method, a parameter or a filter."""

_applied: Registry[tuple[str, str, str], bool | None] = Registry(4096, "filters of servers")
"""Whether a server applies a filter to a resource, by address, resource and filter; None where
that isn't known."""


_KEYS = {
    "studies": "StudyInstanceUID",
    "series": "SeriesInstanceUID",
    "instances": "SOPInstanceUID",
}
Attempt: TypeAlias = "Callable[[str], AbstractContextManager[object]]"
T = TypeVar("T")
R = TypeVar("R")


class _UnknownFilterError(Exception):
    """A server refuses a filter, or answers as though it weren't there."""


class _RefusedError(Exception):
    """A server or client refuses a search that another one may answer."""

    def __init__(self, error: MetadataError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclasses.dataclass(frozen=True)
class Search:
    """A search for the series of slides, and those derived from them.

    Filters are sent to the server: the Container Identifier with a search for instances, values of
    studies with a search for series (PS3.18 10.6). A server that refuses or ignores one is
    remembered: then studies are searched for, and their series; or all series, whose metadata are
    compared when they are read.

    Parameters
    ----------
    connection : Connection
        Connection to the server.
    criteria : Criteria
        What is searched for.
    is_folder : bool
        Whether it isn't a server, but files of a ``DICOMfileClient``, which knows few filters.
    metadata_of : callable
        Returns the metadata of all instances of a series, which it keeps.

    """

    connection: Connection
    criteria: Criteria
    is_folder: bool
    metadata_of: Callable[[Series], Sequence[Dataset]]

    def pages(self, wanted: tuple[str, ...], attempt: Attempt) -> Iterator[list[Series]]:
        """Yield the series of slides, then those derived from them.

        Parameters
        ----------
        wanted : tuple of str
            Modalities. If slides are among them, the others are those of studies with slides.
        attempt : callable
            See :meth:`Catalog.pages <dicomslide.backends.search.Catalog.pages>`.

        """
        first = (SLIDE_MODALITY,) if SLIDE_MODALITY in wanted else wanted
        derived = tuple(each for each in wanted if each not in first)
        filters, container = self.criteria.of_study, self.criteria.container_id
        ways = []
        if not self.is_folder and container is not None and SLIDE_MODALITY in first:
            ways.append(self._by_container(container.strip(), derived, attempt))
        if self.criteria.study_instance_uid is None and not (self.is_folder and filters):
            ways.append(self._by_series(filters, first, derived, attempt))
        ways.append(self._by_studies(first, derived, attempt))
        seen: set[Series] = set()
        for way in ways:
            try:
                for page in way:
                    yield [each for each in page if each not in seen]
                    seen.update(page)
            except _UnknownFilterError:
                continue
            return

    # -- ways to search --

    def _by_container(
        self, container: str, derived: tuple[str, ...], attempt: Attempt
    ) -> Iterator[list[Series]]:
        """Search for instances by their container, and in their studies for what is derived."""
        study = self.criteria.study_instance_uid
        where = {} if study is None else {"study_instance_uid": study}
        what = "the search for instances"
        filters = {**self.criteria.of_study, CONTAINER: container}
        studies: set[str] = set()
        for page in self._filtered("instances", filters, SLIDE_MODALITY, attempt, what, **where):
            studies.update(each.study_instance_uid for each in page)
            yield sorted(page)
        if derived:
            yield from self._each(
                lambda each: self._of_study(each, (), derived, attempt), sorted(studies)
            )

    def _by_series(
        self,
        filters: dict[str, str],
        first: tuple[str, ...],
        derived: tuple[str, ...],
        attempt: Attempt,
    ) -> Iterator[list[Series]]:
        """Search for series by modality, with values of their studies."""

        def of(modality: str) -> Iterator[list[Series]]:
            what = f"the series of modality {modality}"
            for page in self._filtered("series", filters, modality, attempt, what):
                yield sorted(page)

        def derived_of(modality: str) -> list[Series]:
            return [
                each for page in of(modality) for each in page if each.study_instance_uid in studies
            ]

        studies: set[str] = set()
        for modality in first:
            for page in of(modality):
                studies.update(each.study_instance_uid for each in page)
                yield page
        if studies:
            yield from self._each(derived_of, derived)

    def _by_studies(
        self, first: tuple[str, ...], derived: tuple[str, ...], attempt: Attempt
    ) -> Iterator[list[Series]]:
        """Search for studies, and for the series of each; for all series, where that fails."""

        def series_of(study: str) -> list[Series]:
            return self._of_study(study, first, derived, attempt)

        if self.criteria.study_instance_uid is not None:
            yield series_of(self.criteria.study_instance_uid)
            return
        try:
            for page in self._studies(attempt):
                yield from self._each(series_of, page)
        except _UnknownFilterError:
            yield from self._by_series({}, first, derived, attempt)

    def _each(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Return the results of a function for each item; at once, unless files are searched."""
        if self.is_folder or len(items) < 2:
            return [function(each) for each in items]
        return together(function, items, AT_ONCE)

    # -- searches --

    def _filtered(
        self,
        resource: str,
        filters: dict[str, str],
        modality: str,
        attempt: Attempt,
        what: str,
        **where: str,
    ) -> Iterator[list[Series]]:
        """Search for series or instances of a modality; yield the series page by page.

        Parameters
        ----------
        resource : str
            ``"instances"`` or ``"series"``.
        filters : dict of str to str
            Matching keys besides the modality.
        modality : str
            Modality of the series.
        attempt : callable
            Context manager of a request.
        what : str
            Name of the search.
        **where
            The study.

        Raises
        ------
        _UnknownFilterError
            When the server refuses or ignores a filter, or that can't be told.

        """
        if self._applies(resource, filters) is False:
            raise _UnknownFilterError
        key = (self._server, resource, _label(filters))
        pages = self._asked(resource, {**filters, "Modality": modality}, where)
        is_empty = True
        for page in self._attempted(pages, filters, resource, attempt, what):
            if page is None:  # it failed, and the caller goes on
                return
            is_empty = False
            ignored = self._ignored(page, filters, attempt, what)
            for keyword in ignored:
                for each in ("", "*"):  # with wildcards and without
                    _applied.put((self._server, resource, keyword + each), False)
            if ignored:
                raise _UnknownFilterError
            _applied.put(key, True)
            yield list(self._series_in(page, (modality,), **where))
        if is_empty and filters and not self._applies(resource, filters):
            if resource == "series" or not self._finds_containers(filters[CONTAINER], **where):
                raise _UnknownFilterError
            _applied.put(key, True)

    def _attempted(
        self,
        pages: Iterator[list[Json]],
        filters: dict[str, str],
        resource: str,
        attempt: Attempt,
        what: str,
    ) -> Iterator[list[Json] | None]:
        """Yield pages, or None last where a request fails.

        Raises
        ------
        _UnknownFilterError
            When the server refuses a search with filters.

        """
        while True:
            page: list[Json] | None = None
            is_refused = False
            with attempt(what):
                try:
                    page = next(pages, [])
                except _RefusedError as refused:
                    if not filters:
                        raise refused.error from None
                    is_refused = True
            if is_refused:
                _applied.put((self._server, resource, _label(filters)), False)
                raise _UnknownFilterError
            if page == []:
                return
            yield page
            if page is None:
                return

    def _ignored(
        self, page: list[Json], filters: dict[str, str], attempt: Attempt, what: str
    ) -> list[str]:
        """Return the filters that the results don't fulfil, so that the server ignores them.

        A filter whose values the results don't show is compared with the metadata of the first.
        """
        headers: Sequence[Dataset] | None = None
        found = []
        for keyword in filters:
            fits = functools.partial(self.criteria.matches, keyword, ignoring_case=True)
            shown = [value for each in page if (value := value_of(each, keyword)) is not None]
            if not shown:
                if headers is None:
                    headers = ()
                    with attempt(what):
                        headers = next(
                            (self.metadata_of(each) for each in self._series_in(page, ())), ()
                        )
                shown = [dicom.text(each, keyword) or "" for each in headers]
                if shown and not any(map(fits, shown)):
                    found.append(keyword)
            elif not all(map(fits, shown)):
                found.append(keyword)
        return found

    def _finds_containers(self, wanted: str, **where: str) -> bool:
        """Whether the server finds a slide that it has by the container in its header.

        Else it isn't known whether a container is absent, or the server doesn't know the filter.
        """
        slides = {"Modality": SLIDE_MODALITY}
        try:
            page = next(self._asked("series", slides, where, 1), [])
            every = dataclasses.replace(self, criteria=Criteria())
            for series in every._series_in(page, (SLIDE_MODALITY,), **where):
                for header in self.metadata_of(series):
                    value = dicom.text(header, CONTAINER)
                    if value is not None:
                        probe = f"{value[:-1]}*" if has_wildcard(wanted) else value
                        return any(self._asked("instances", {CONTAINER: probe}, where, 1))
            return not page  # there are no slides, or none that has a container
        except (_RefusedError, MetadataError):
            return False

    def _of_study(
        self, study: str, first: tuple[str, ...], derived: tuple[str, ...], attempt: Attempt
    ) -> list[Series]:
        """Return the series of a study; none if it has no slides, unless `first` is empty."""
        found: dict[Series, str] = {}
        with attempt(f"the series of study {study}"):
            for page in self._asked("series", {}, {"study_instance_uid": study}):
                found |= self._series_in(page, (*first, *derived), study_instance_uid=study)
        if first and not any(its in first for its in found.values()):
            return []
        return sorted(found)

    def _studies(self, attempt: Attempt) -> Iterator[list[str]]:
        """Yield the studies page by page.

        Raises
        ------
        _UnknownFilterError
            When the server refuses a filter.

        """
        filters = self.criteria.of_study
        if not filters or self._applies("studies", filters) is False:
            raise _UnknownFilterError
        pages = self._asked("studies", filters, {})
        for page in self._attempted(pages, filters, "studies", attempt, "the search for studies"):
            uids = {value_of(each, "StudyInstanceUID") for each in page or () if self._fits(each)}
            yield sorted(uid for uid in uids if uid)

    # -- requests --

    def _asked(
        self,
        resource: str,
        filters: dict[str, str],
        where: dict[str, str],
        limit: int | None = None,
    ) -> Iterator[list[Json]]:
        """Yield pages of results that are new; a refused search with filters is a _RefusedError."""
        where_and_what: dict[str, Any] = {
            **where,
            **({"search_filters": filters} if filters else {}),
        }
        is_refused = False

        def search(offset: int, asked: Answering) -> Sequence[Json]:
            nonlocal is_refused
            try:
                method: Any = getattr(asked, f"search_for_{resource}")
                return method(limit=limit or PAGE, offset=offset, **where_and_what)
            except Exception as error:
                status = status_of(error)
                is_refused = status in UNKNOWN or (
                    status is None and isinstance(error, NO_SUCH_SEARCH)
                )
                raise

        try:
            yield from pages_of(self.connection, resource, _KEYS[resource], search)
        except MetadataError as error:
            if not (is_refused and filters):  # no other search asks for less
                raise
            raise _RefusedError(error) from None

    def _series_in(
        self, page: list[Json], modalities: tuple[str, ...], study_instance_uid: str | None = None
    ) -> dict[Series, str]:
        """Return the series of results of these modalities (any if none is given), and theirs.

        Results that name no series, or show other values than those searched for, are left out:
        some servers ignore filters.
        """
        found = {}
        for each in page:
            study = value_of(each, "StudyInstanceUID") or study_instance_uid
            series = value_of(each, "SeriesInstanceUID")
            alone = modalities[0] if len(modalities) == 1 else SLIDE_MODALITY
            modality = value_of(each, "Modality") or alone
            if study and series and modality in (modalities or (modality,)) and self._fits(each):
                found[Series(study, series)] = modality
        return found

    def _fits(self, result: Json) -> bool:
        """Whether no value that a result shows is another one than searched for."""
        shown = {
            keyword: value
            for keyword in (*self.criteria.of_study, CONTAINER)
            if (value := value_of(result, keyword)) is not None
        }
        return all(self.criteria.matches(keyword, value) for keyword, value in shown.items())

    # -- what servers do --

    @property
    def _server(self) -> str:
        connection = self.connection
        return connection.address.url if "://" in connection.address.url else connection.scope

    def _applies(self, resource: str, filters: dict[str, str]) -> bool | None:
        """Whether the server applies filters; None if that isn't known."""
        single = [_label({keyword: value}) for keyword, value in filters.items()]
        known = [
            _applied.get((self._server, resource, each), lambda: None)
            for each in (_label(filters), *single)
        ]
        return False if False in known else known[0]


def _label(filters: dict[str, str]) -> str:
    """Return the name of a combination of filters, whatever their values."""
    return ", ".join(
        f"{keyword}*" if has_wildcard(value) else keyword
        for keyword, value in sorted(filters.items())
    )


def pages_of(
    connection: Connection,
    kind: str,
    key: str,
    search: Callable[[int, Answering], Sequence[Json]],
) -> Iterator[list[Json]]:
    """Search page by page, until a page has no new result; yield the new results of each.

    Servers that ignore the offset repeat the first page; if it is full, there is a warning that
    results may be missing.

    Parameters
    ----------
    connection : Connection
        Connection to the server.
    kind : str
        Name of the results, in the plural.
    key : str
        Keyword of the UID that identifies a result.
    search : callable
        Given an offset and a client, searches for :data:`PAGE` results from this offset.

    Raises
    ------
    MetadataError
        When a search fails, or has no end.

    """
    seen: set[str | None] = set()
    received = 0
    what = f"the results of a search for {kind}"
    while True:
        page = connection.ask(what, functools.partial(search, received)) or ()
        new = {uid: each for each in page if (uid := value_of(each, key)) not in seen}
        if not new:
            if len(page) >= PAGE:
                warn(
                    f"{connection.address.url} gives the same page of {what} again: there may"
                    f" be more than these {len(seen)}",
                    MetadataWarning,
                )
            return
        seen |= new.keys()
        received += len(page)
        if received > MOST_RESULTS:
            raise MetadataError(f"{connection.address.url}: {what} have no end")
        yield list(new.values())


def value_of(found: Json, keyword: str) -> str | None:
    """Return a value of a search result, DICOM JSON, as text."""
    from pydicom.datadict import tag_for_keyword

    element = found.get(f"{tag_for_keyword(keyword):08X}")
    values = element.get("Value") if isinstance(element, dict) else None
    return None if not isinstance(values, list) or values[:1] in ([], [None]) else str(values[0])
