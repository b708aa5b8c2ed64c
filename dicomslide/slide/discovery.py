"""`find_slides`: search for the slides of a DICOMweb client or a store."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

from dicomslide.backends.base import is_store
from dicomslide.backends.criteria import Criteria, is_code, is_text, listed
from dicomslide.backends.dicomweb.client import ClientStore, is_client
from dicomslide.backends.search import StoreCatalog
from dicomslide.contents.collection import SlideGroup, group_by_slide
from dicomslide.contents.pyramids import pyramids_of
from dicomslide.errors import MetadataError, MetadataWarning
from dicomslide.header import dicom
from dicomslide.image import TiledImage
from dicomslide.process.warn import once, warn
from dicomslide.slide.batches import in_threads
from dicomslide.slide.slide import Slide

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pydicom.dataset import Dataset

    from dicomslide.backends.base import Series
    from dicomslide.backends.criteria import Dates
    from dicomslide.backends.search import Catalog

__all__ = ["find_slides"]


@once()
def find_slides(
    client: Any,
    study_instance_uid: str | None = None,
    patient_id: str | None = None,
    study_id: str | None = None,
    container_id: str | None = None,
    max_frame_cache_size: int | None = 6,
    pyramid_tolerance: float = 0.1,
    fail_on_error: bool = True,
    include_derived: bool = True,
    specimen_stains: Sequence[Any] | None = None,
    optical_path_ids: Sequence[str] | None = None,
    *,
    align_levels: bool = True,
    study_date: Dates | None = None,
    accession_number: str | None = None,
    modality: str | Iterable[str] | None = None,
) -> list[Slide]:
    """Find the slides of a DICOMweb server or a store.

    A server is asked for the studies, the container and the modality; what it finds is compared
    with the headers. In identifiers, ``*`` stands for any characters and ``?`` for one.

    Parameters
    ----------
    client : dicomweb_client.api.DICOMClient or FrameStore
        DICOMweb client, or a store (see ``dicomslide.backends``)
    study_instance_uid : str, optional
        Study Instance UID
    patient_id : str, optional
        Patient ID
    study_id : str, optional
        Study ID
    container_id : str, optional
        Container Identifier of the glass slide
    max_frame_cache_size : int or None, default: 6
        Upper bound on cached decoded frames per image; None bounds them by `frame_cache_bytes`
        only
    pyramid_tolerance : float, default: 0.1
        Upper bound in mm on the distance between the centres of levels; a pixel if that is larger
    fail_on_error : bool, default: True
        Whether to raise errors; else series, instances and slides that fail are left out, with a
        warning that gives the reason
    include_derived : bool, default: True
        Whether to include segmentations, parametric maps and annotations of the same study in the
        slides that they are derived from
    specimen_stains : sequence of pydicom.sr.coding.Code or highdicom.sr.CodedConcept, optional
        Images with none of these stains (Specimen Preparation Sequence) are left out
    optical_path_ids : sequence of str, optional
        Images with none of these Optical Path Identifiers are left out
    align_levels : bool, default: True
        Whether to align levels that repeat the origin of the base level: see :class:`Slide`
    study_date : datetime.date, str or tuple of two, optional
        Study Date, as a date or as text ``"2026-01-31"``; or the first and the last day, None for
        no bound
    accession_number : str, optional
        Accession Number
    modality : str or iterable of str, optional
        Modality of the series; by default ``"SM"``, and those of what is derived from slides

    Returns
    -------
    list of dicomslide.Slide
        Slides, ordered by container, frame of reference and SOP Instance UIDs; one for each
        pyramid if a glass slide has several, from the largest to the smallest

    Raises
    ------
    TypeError
        When `client` is neither a client nor a store, or a criterion is of another type; a single
        code or str as `specimen_stains` or `optical_path_ids` is refused
    ValueError
        When an identifier is empty, or `study_date` has no such date
    MetadataError
        When the server refuses a request, or a header lacks a required attribute
    AmbiguousSlideError
        When two images have the same channel, focal plane and level

    """
    from dicomslide.annotation.bulk import are_annotations_of

    stains = listed(specimen_stains, "specimen_stains", "codes", is_code)
    paths = listed(optical_path_ids, "optical_path_ids", "identifiers, which are text", is_text)
    criteria = Criteria(
        study_instance_uid=study_instance_uid,
        patient_id=patient_id,
        study_id=study_id,
        container_id=container_id,
        study_date=study_date,
        accession_number=accession_number,
        modality=modality,
        stains=stains,
    )
    store: Catalog
    if is_client(client):
        store = ClientStore(client, criteria)
    elif is_store(client):
        store = StoreCatalog(client, criteria)
    else:
        raise TypeError(
            f"client is a {type(client).__name__}; expected a dicomweb_client.api.DICOMClient or a"
            " FrameStore"
        )

    @contextlib.contextmanager
    def attempt(what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if fail_on_error:
                raise
            warn(f"left out: {what}: {error}", MetadataWarning)

    images: list[TiledImage] = []
    others: list[Dataset] = []

    def read(page: Sequence[Series]) -> list[Dataset]:
        metadata: list[Dataset] = []
        for series in page:
            with attempt(f"series {series.series_instance_uid}"):
                metadata += store.metadata_of(series)
        return metadata

    for page in store.pages(include_derived=include_derived, attempt=attempt):
        for each in itertools.chain(*in_threads(read, page, may_share=store.may_share)):
            if dicom.is_tiled_image(each):
                with attempt(dicom.name_of(each)):
                    images.append(TiledImage(store, each))
            elif lacking := dicom.lacking_of(each):
                with attempt(dicom.name_of(each)):
                    raise MetadataError(
                        f"{dicom.name_of(each)}: its header lacks {', '.join(lacking)}"
                    )
            else:
                others.append(each)

    slides: list[Slide] = []

    def is_wanted(image: TiledImage) -> bool:
        return criteria.has_stain(image.metadata) and _has_path(image, paths)

    for group in sorted(group_by_slide(images), key=_order):
        kept = dataclasses.replace(
            group,
            volumes=tuple(filter(is_wanted, group.volumes)),
            others=tuple(filter(is_wanted, group.others)),
        )
        if not kept.volumes or not criteria.matches("ContainerIdentifier", group.container):
            continue
        annotations = [
            each for each in others if are_annotations_of(each, group.images, group.frames)
        ]
        for pyramid in pyramids_of(kept, pyramid_tolerance):
            with attempt(f"slide {group.container or pyramid.name}"):
                slides.append(
                    Slide(
                        store,
                        [*(image.metadata for image in pyramid.images), *annotations],
                        max_frame_cache_size,
                        pyramid_tolerance,
                        align_levels=align_levels,
                    )
                )
    return slides


def _order(group: SlideGroup) -> tuple[str, ...]:
    names = sorted(image.name for image in group.images)
    return group.container or "", group.frame_of_reference_uid or "", *names


def _has_path(image: TiledImage, identifiers: Sequence[str] | None) -> bool:
    return identifiers is None or any(
        channel.identifier in identifiers for channel in image.channels
    )
