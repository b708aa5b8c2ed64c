"""`open_slides`: all slides of a folder, a bucket or a server as a cohort."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from dicomslide.backends.base import is_store
from dicomslide.backends.criteria import Criteria
from dicomslide.backends.dicomweb.client import (
    ClientStore,
    check_access,
    is_client,
    is_dicomweb_url,
    store_at,
)
from dicomslide.backends.net.redaction import public_url
from dicomslide.backends.net.storage_options import register_for_all
from dicomslide.backends.objects.repositories import is_repository
from dicomslide.backends.objects.storage import is_url
from dicomslide.backends.open import paths_and_streams
from dicomslide.backends.records import folder_of
from dicomslide.backends.search import StoreCatalog
from dicomslide.contents.options import SlideOptions
from dicomslide.errors import NotDicomError, NotSlideError
from dicomslide.process.warn import once
from dicomslide.slide.batches import Batch, Failures, attempt, in_threads, on_cluster
from dicomslide.slide.cohort import Cohort
from dicomslide.slide.cohort_index import CohortIndex, IndexedMembers, hint_at_index, is_index
from dicomslide.slide.reading import paths_of, read_files, read_series, read_streams
from dicomslide.slide.sorting import Instance, Member, sort_instances, split

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

    from dicomslide.backends.base import FrameStore
    from dicomslide.backends.criteria import Dates
    from dicomslide.backends.search import Catalog
    from dicomslide.readers.matrix_reader import OnError

__all__ = ["open_slides"]

FILES_PER_TASK = 16
"""Batch size of tasks on a cluster."""


@once()
def open_slides(
    source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | FrameStore | Any,
    *,
    study_instance_uid: str | None = None,
    patient_id: str | None = None,
    study_id: str | None = None,
    container_id: str | None = None,
    study_date: Dates | None = None,
    accession_number: str | None = None,
    modality: str | Iterable[str] | None = None,
    stains: Iterable[Any] | None = None,
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
        or fsspec URLs (whose patterns have ``*`` only), and other inputs of :func:`open_slide`;
        an index that :meth:`Cohort.save` wrote, by its path or URL (``.parquet``); a repository
        that :func:`dicomslide.virtual.to_icechunk` wrote, by its path, URL (``.icechunk``) or
        storage, whose slides are opened by the files that they were made from; or
        a ``dicomweb_client.api.DICOMClient``, the URL of a DICOMweb service or study,
        ``"dicomweb+https://host/.../studies/..."``, or a store (see ``dicomslide.backends``).
    study_instance_uid, patient_id, study_id, container_id, accession_number : str, optional
        Study Instance UID, Patient ID, Study ID, Container Identifier and Accession Number of the
        slides of a server or a store; ``*`` stands for any characters and ``?`` for one. A server
        is asked for them, and what it finds is compared with the headers.
    study_date : datetime.date, str or tuple of two, optional
        Study Date, as a date or as text ``"2026-01-31"``; or the first and the last day, None for
        no bound.
    modality : str or iterable of str, optional
        Modality of the series; by default ``"SM"``, and those of what is derived from slides.
    stains : iterable of str, pydicom.sr.coding.Code or highdicom.sr.CodedConcept, optional
        Stains, of which a volume image of the slide has at least one (Specimen Preparation
        Sequence), as codes or as their meaning, without regard to case. Headers are compared; the
        server isn't asked.
    max_frame_cache_size, pyramid_tolerance, correct_color, on_error, align_levels, storage_options
        Options of each slide: see :func:`open_slide`. The storage options of an index are also
        those of slides below its folder.
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
    CohortIndexError
        When an index is damaged, or of another version.
    TypeError
        When `study_instance_uid` or another criterion is given for files, or is of another type.
    ValueError
        When an option or a criterion has another value.

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
    if criteria.given and (is_index(source) or is_repository(source)):
        raise TypeError(f"{', '.join(criteria.given)} is given with an index; see Cohort.select")
    if is_index(source):
        return Cohort(IndexedMembers(CohortIndex.open(source, storage_options)), options, {})
    if is_repository(source):
        return _of_repository(source, options, storage_options)
    failures: Failures = {}
    stained: set[Hashable] = set()
    given: list[Any]
    store: Catalog | None = None
    if is_client(source):
        store = ClientStore(source, criteria)
    elif isinstance(source, str) and is_dicomweb_url(source):
        store = store_at(source, session, criteria)
    elif is_store(source):
        store = StoreCatalog(source, criteria)
    elif criteria.given:
        raise TypeError(
            f"{', '.join(criteria.given)} is given with a {type(source).__name__}; expected a"
            " client or a store"
        )
    if store is not None:
        given = [source if isinstance(source, str) else type(source).__name__]
        pages = store.pages(attempt=functools.partial(attempt, failures))
        read = functools.partial(read_series, store, criteria, stained)
        batches = [
            batch for page in pages for batch in in_threads(read, page, may_share=store.may_share)
        ]
    else:
        given, streams = paths_and_streams(source)
        paths = paths_of(given, storage_options, failures)
        batches = on_cluster(read_files, paths, size=FILES_PER_TASK)
        batches += in_threads(read_streams, streams)
        given += streams
    for batch in batches:
        failures |= batch.failures
    instances = [each for batch in batches for each in batch.found]

    def is_wanted(member: Member) -> bool:
        has_stain = stains is None or any(each.identity in stained for each in member.sources)
        return has_stain and criteria.matches("ContainerIdentifier", member.container)

    cohort = _sorted(instances, options, failures, is_wanted)
    if cohort:
        return cohort
    if cohort.failures:
        raise next(iter(cohort.failures.values()))
    what = ", ".join(public_url(str(each)) for each in given) or "an empty list"
    if instances and not criteria.given:
        raise NotSlideError(f"{what}: none of {len(instances)} instances is a slide image")
    if criteria.given:
        raise NotSlideError(f"{what}: no slide with this {', '.join(criteria.given)} is there")
    kind = "file" if store is None else "slide image"
    error = NotDicomError(f"{what}: no DICOM {kind} is there")
    for each in given:
        hint_at_index(error, each)
    raise error


def _of_repository(source: Any, options: SlideOptions, storage_options: Any) -> Cohort:
    from dicomslide.virtual.origins import origins_in
    from dicomslide.virtual.tree import check_installed

    check_installed("icechunk", "zarr")
    if storage_options is not None:
        if not is_url(source):
            raise ValueError("storage_options are for URLs, and there is none")
        register_for_all([source, folder_of(source.rstrip("/"))], storage_options)
    origins, failures = origins_in(source)
    if not origins:
        where = public_url(str(source))
        raise next(iter(failures.values()), NotSlideError(f"{where}: no slide is there"))
    members = {
        name: Member(None, None, sources, later=later)
        for name, (sources, later) in sorted(origins.items())
    }
    return Cohort(members, options, failures)


def _sorted(
    instances: Iterable[Instance],
    options: SlideOptions,
    failures: Failures,
    is_wanted: Callable[[Member], bool],
) -> Cohort:
    """Sort instances into slides, and name the wanted ones."""
    found: list[Member] = []
    separate = functools.partial(_split, options.pyramid_tolerance)
    # in this process: few groups need their headers again
    with once() as warned:
        batches = in_threads(separate, sort_instances(instances))
    for batch in batches:
        found += batch.found
        failures |= batch.failures
    frames: dict[str | None, set[str | None]] = {}
    found = list(filter(is_wanted, found))
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
    return Cohort(dict(sorted(members.items())), options, failures, warned)


def _split(tolerance: float, groups: Sequence[Sequence[Instance]]) -> Batch[list[Member]]:
    found: list[Member] = []
    failures: Failures = {}
    for group in groups:
        known = (each.container for each in group if each.container)
        with attempt(failures, next(known, group[0].source.name)):
            found += split(group, tolerance)
    return Batch(found, failures)
