"""Series and metadata of a store."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol

from dicomslide.backends.base import FrameStore, Series, is_searchable
from dicomslide.backends.criteria import SLIDE_MODALITY, Criteria
from dicomslide.header import dicom

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from pydicom.dataset import Dataset

    from dicomslide.backends.base import FrameSource

__all__ = ["Catalog", "StoreCatalog", "selected"]


class Catalog(Protocol):
    """Instances of a store or server: slide images, derived images and annotations."""

    @property
    def may_share(self) -> bool:
        """Whether several threads may read metadata at once."""
        ...

    def source(self, metadata: Dataset) -> FrameSource:
        """Return the source of an instance."""
        ...

    def pages(
        self,
        *,
        include_derived: bool = True,
        attempt: Callable[[str], AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> Iterator[list[Series]]:
        """Yield the series of slides, and then series that may be derived from them.

        Each list is searched for when it is asked for.

        Parameters
        ----------
        include_derived : bool, default: True
            Whether derived images and annotations are included.
        attempt : callable, optional
            Given a description of a search, returns a context manager for it, which may suppress
            its errors; by default errors are raised.

        """
        ...

    def metadata_of(self, series: Series) -> list[Dataset]:
        """Return the metadata of a series, ordered by Instance Number and UID."""
        ...


class StoreCatalog:
    """Instances of a :class:`FrameStore`.

    The metadata of a :class:`SearchableStore` are read series by series, those of other stores
    together.

    Parameters
    ----------
    store : FrameStore
        Store.
    criteria : Criteria, optional
        Values that instances have; by default any.

    """

    def __init__(self, store: FrameStore, criteria: Criteria | None = None) -> None:
        self._store = store
        self._criteria = Criteria() if criteria is None else criteria
        self._modalities = self._criteria.modalities()
        self._listed: dict[Series, list[Dataset]] = {}

    @property
    def may_share(self) -> bool:
        """True: stores are used by several threads."""
        return True

    def source(self, metadata: Dataset) -> FrameSource:
        """Return the source of an instance."""
        return self._store.source(metadata)

    def pages(
        self,
        *,
        include_derived: bool = True,
        attempt: Callable[[str], AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> Iterator[list[Series]]:
        """Yield the series: see :meth:`Catalog.pages`."""
        self._modalities = self._criteria.modalities(include_derived=include_derived)
        store = self._store
        found: Iterable[Series] = ()
        with attempt(f"the series of a {type(store).__name__}"):
            if is_searchable(store):
                found = store.series(self._criteria.study_instance_uid)
            else:
                self._listed = {}
                for each in store.metadata:
                    keywords = ("StudyInstanceUID", "SeriesInstanceUID")
                    series = Series(*(dicom.text(each, keyword) or "" for keyword in keywords))
                    self._listed.setdefault(series, []).append(each)
                found = self._listed
            found = sorted(set(found))
        yield list(found)

    def metadata_of(self, series: Series) -> list[Dataset]:
        """Return the metadata of a series: see :meth:`Catalog.metadata_of`."""
        store = self._store
        found = store.metadata_of(series) if is_searchable(store) else self._listed[series]
        return [
            each
            for each in selected(found, self._criteria)
            if (dicom.text(each, "Modality") or SLIDE_MODALITY) in self._modalities
        ]


def selected(metadata: Iterable[Dataset], criteria: Criteria) -> list[Dataset]:
    """Return the metadata that fulfil criteria, ordered by Instance Number and UID."""
    return sorted(filter(criteria.keeps, metadata), key=_order)


def _order(metadata: Dataset) -> tuple[float, str]:
    number = dicom.number(metadata, "InstanceNumber")
    return (
        float("inf") if number is None else number,
        dicom.text(metadata, "SOPInstanceUID") or "",
    )
