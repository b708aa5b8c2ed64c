"""Interface of DICOMweb clients: the methods that are called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from dicomslide.backends.base import provides

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import TypeGuard

    from pydicom.dataset import Dataset

    from dicomslide.pixels.pixel_format import Buffer

__all__ = ["Answering", "DicomWebClient", "Json", "is_client"]

Json: TypeAlias = "Mapping[str, Any]"
"""DICOM JSON (PS3.18 annex F)."""


class Answering(Protocol):
    """Searches, and retrieval of everything except frames; of a client or of `WebService`.

    Signatures contain the parameters of ``dicomweb_client.api.DICOMClient`` that are used.
    """

    def search_for_studies(
        self, *, limit: int, offset: int, search_filters: dict[str, Any] | None = None
    ) -> Sequence[Json]:
        """Search for studies."""
        ...

    def search_for_series(
        self,
        *,
        limit: int,
        offset: int,
        study_instance_uid: str | None = None,
        search_filters: dict[str, Any] | None = None,
    ) -> Sequence[Json]:
        """Search for series, of a study if it is given."""
        ...

    def search_for_instances(
        self,
        *,
        limit: int,
        offset: int,
        study_instance_uid: str | None = None,
        series_instance_uid: str | None = None,
        search_filters: dict[str, Any] | None = None,
    ) -> Sequence[Json]:
        """Search for instances, of a study or a series if they are given.

        Optional: without it, containers are found by the metadata of all series.
        """
        ...

    def retrieve_series_metadata(self, study: str, series: str, /) -> Sequence[Json]:
        """Retrieve the metadata of all instances of a series."""
        ...

    def retrieve_instance_metadata(
        self, study: str, series: str, instance: str, /
    ) -> Json | list[Json]:
        """Retrieve the metadata of an instance; some clients return a list with one item."""
        ...

    def retrieve_instance(self, study: str, series: str, instance: str, /) -> Dataset:
        """Retrieve the whole data set of an instance."""
        ...

    def retrieve_bulkdata(
        self, url: str, /, media_types: tuple[str | tuple[str, str], ...] = ...
    ) -> Iterable[Buffer]:
        """Retrieve bulk data, in parts."""
        ...


class DicomWebClient(Answering, Protocol):
    """A client: ``dicomweb_client.api.DICOMClient``, or another with these methods.

    The attributes ``base_url``, ``wado_url_prefix``, ``scheme`` and ``url_prefix`` are used if the
    client has them.
    """

    def retrieve_instance_frames(
        self,
        study: str,
        series: str,
        instance: str,
        frame_numbers: Sequence[int],
        /,
        media_types: tuple[str | tuple[str, str], ...] = ...,
    ) -> Iterable[Buffer]:
        """Retrieve frames by their one-based numbers."""
        ...


def is_client(value: object) -> TypeGuard[DicomWebClient]:
    """Whether an object is a DICOMweb client, by its method `retrieve_instance_frames`."""
    return provides(value, DicomWebClient.retrieve_instance_frames)
