"""Series and metadata of a store."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol

from dicomslide.backends.base import FrameStore, Series, is_searchable
from dicomslide.header import dicom

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    from pydicom.dataset import Dataset

    from dicomslide.backends.base import FrameSource

__all__ = ["DERIVED_MODALITIES", "SLIDE_MODALITY", "Catalog", "StoreCatalog", "selected"]

SLIDE_MODALITY = "SM"
DERIVED_MODALITIES = ("SEG", "OT", "ANN")
"""Modality of segmentations, parametric maps (which have no value of their own) and annotations."""


class Catalog(Protocol):
    """Instances of a store or server: slide images, derived images and annotations."""

    def source(self, metadata: Dataset) -> FrameSource:
        """Return the source of an instance."""
        ...

    def series(
        self,
        *,
        include_derived: bool = True,
        attempt: Callable[[str], AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> list[Series]:
        """Return the series of slides, and series that may be derived from them.

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
    study_instance_uid, patient_id, study_id : str, optional
        Values that the studies have; by default any.

    """

    def __init__(
        self,
        store: FrameStore,
        study_instance_uid: str | None = None,
        patient_id: str | None = None,
        study_id: str | None = None,
    ) -> None:
        self._store = store
        self._wanted = {
            "StudyInstanceUID": study_instance_uid,
            "PatientID": patient_id,
            "StudyID": study_id,
        }
        self._modalities: tuple[str, ...] = (SLIDE_MODALITY, *DERIVED_MODALITIES)
        self._listed: dict[Series, list[Dataset]] = {}

    def source(self, metadata: Dataset) -> FrameSource:
        """Return the source of an instance."""
        return self._store.source(metadata)

    def series(
        self,
        *,
        include_derived: bool = True,
        attempt: Callable[[str], AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> list[Series]:
        """Return the series: see :meth:`Catalog.series`."""
        if not include_derived:
            self._modalities = (SLIDE_MODALITY,)
        store = self._store
        with attempt(f"the series of a {type(store).__name__}"):
            if is_searchable(store):
                return sorted(set(store.series(self._wanted["StudyInstanceUID"])))
            self._listed = {}
            for each in store.metadata:
                uids = (dicom.text(each, "StudyInstanceUID"), dicom.text(each, "SeriesInstanceUID"))
                series = Series(*(uid or "" for uid in uids))
                self._listed.setdefault(series, []).append(each)
        return sorted(self._listed)

    def metadata_of(self, series: Series) -> list[Dataset]:
        """Return the metadata of a series: see :meth:`Catalog.metadata_of`."""
        store = self._store
        found = store.metadata_of(series) if is_searchable(store) else self._listed[series]
        return [
            each
            for each in selected(found, self._wanted)
            if (dicom.text(each, "Modality") or SLIDE_MODALITY) in self._modalities
        ]


def selected(metadata: Iterable[Dataset], wanted: dict[str, str | None]) -> list[Dataset]:
    """Return the metadata with the given values, ordered by Instance Number and UID.

    Parameters
    ----------
    metadata : iterable of pydicom.dataset.Dataset
        Metadata of instances.
    wanted : dict of str to str or None
        Values by keyword; None for any.

    """
    kept = [
        each
        for each in metadata
        if all(value in (None, dicom.text(each, key)) for key, value in wanted.items())
    ]
    return sorted(kept, key=_order)


def _order(metadata: Dataset) -> tuple[float, str]:
    number = dicom.number(metadata, "InstanceNumber")
    return (
        float("inf") if number is None else number,
        dicom.text(metadata, "SOPInstanceUID") or "",
    )
