"""What is called of a DICOMweb client."""

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
    """Searches, and retrieval of all but frames: what a client is asked, or a service in its stead.

    Of what ``dicomweb_client.api.DICOMClient`` has, the parameters that are given.
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

    def retrieve_series_metadata(self, study: str, series: str, /) -> Sequence[Json]:
        """Retrieve the metadata of all instances of a series."""
        ...

    def retrieve_instance_metadata(
        self, study: str, series: str, instance: str, /
    ) -> Json | list[Json]:
        """Retrieve the metadata of an instance: some give a list of one."""
        ...

    def retrieve_instance(self, study: str, series: str, instance: str, /) -> Dataset:
        """Retrieve an instance as a whole."""
        ...

    def retrieve_bulkdata(
        self, url: str, /, media_types: tuple[str | tuple[str, str], ...] = ...
    ) -> Iterable[Buffer]:
        """Retrieve bulk data, in parts."""
        ...


class DicomWebClient(Answering, Protocol):
    """What is called of a client: ``dicomweb_client.api.DICOMClient``, or one like it.

    Beside these methods, its ``base_url``, ``wado_url_prefix``, ``scheme`` and ``url_prefix`` are
    looked at where it has them.
    """

    def search_for_instances(
        self, *, study_instance_uid: str, series_instance_uid: str, limit: int, offset: int
    ) -> Sequence[Json]:
        """Search for the instances of a series; a client of files alone is asked for them."""
        ...

    def retrieve_instance_frames(
        self,
        study: str,
        series: str,
        instance: str,
        frame_numbers: Sequence[int],
        /,
        media_types: tuple[str | tuple[str, str], ...] = ...,
    ) -> Iterable[Buffer]:
        """Retrieve frames by their numbers, which count from 1."""
        ...


def is_client(value: object) -> TypeGuard[DicomWebClient]:
    """Whether something is a DICOMweb client: whether it retrieves frames."""
    return provides(value, DicomWebClient.retrieve_instance_frames)
