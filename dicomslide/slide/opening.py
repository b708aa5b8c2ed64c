"""Opening of a slide from a path, a URL, a client or a store."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

from dicomslide.backends.base import is_store
from dicomslide.backends.criteria import Criteria, has_wildcard
from dicomslide.backends.dicomweb.client import (
    ClientStore,
    check_access,
    is_client,
    is_dicomweb_url,
    store_at,
)
from dicomslide.contents.collection import SlideGroup, group_by_slide
from dicomslide.contents.options import SlideOptions
from dicomslide.errors import NotDicomError, NotSlideError
from dicomslide.header import dicom
from dicomslide.header.resolution import Spacing, spacing_in_mm
from dicomslide.image import TiledImage
from dicomslide.process.warn import once
from dicomslide.slide.slide import Slide

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pydicom.dataset import Dataset

    from dicomslide.backends.base import FrameStore
    from dicomslide.readers.matrix_reader import OnError

__all__ = ["open_slide"]


@once()
def open_slide(
    source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | FrameStore | Slide | Any,
    *,
    study_instance_uid: str | None = None,
    container_id: str | None = None,
    frame_of_reference_uid: str | None = None,
    pyramid: int | str | os.PathLike[str] | None = None,
    max_frame_cache_size: int | None = None,
    pyramid_tolerance: float | None = None,
    correct_color: bool | None = None,
    on_error: OnError | None = None,
    align_levels: bool | None = None,
    spacing: Spacing | None = None,
    storage_options: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
    session: Any = None,
) -> Slide:
    """Open a slide.

    Parameters
    ----------
    source : path-like, bytes, file object, list of these, DICOMClient, FrameStore or Slide
        One of these:

        * a DICOM file, a folder, or a list of both, on disk or as URLs of fsspec (``s3://``,
          ``gs://``, ``https://``, ``zip://…::…``); a zip or tar file is read as a folder, a
          DICOMDIR as the files that it lists;
        * the content of files, as bytes or as seekable binary file objects, which must stay open
          and must not be used otherwise;
        * the URL of a series or study on a DICOMweb server,
          ``"dicomweb+https://host/.../studies/.../series/..."`` (``dicomweb+`` is optional), or of
          a service, ``"dicomweb+https://host/..."``, without credentials: see `session` and
          :func:`register_credentials`;
        * a ``dicomweb_client.api.DICOMClient``, of which all slides are examined unless a study is
          given: see :func:`find_slides`;
        * a :class:`~dicomslide.backends.FrameStore`, or a :class:`Slide` to be opened with other
          options.
    study_instance_uid : str, optional
        Study Instance UID of the slide, to choose among several studies.
    container_id : str, optional
        Container Identifier of the slide, to choose among several slides.
    frame_of_reference_uid : str, optional
        Frame of Reference UID of the slide, to choose among several slides.
    pyramid : int, str or path-like, optional
        Pyramid to read if the glass has several: see :class:`Slide`.
    max_frame_cache_size : int, optional
        Upper bound on the decoded frames of each image that the process caches; by default they
        are bounded by the option `frame_cache_bytes` only.
    pyramid_tolerance, correct_color, on_error, align_levels, spacing
        See :class:`Slide`, also for the defaults. If `source` is a Slide, options that aren't given
        are those of this slide; the returned slide has the same instances.
    storage_options : mapping or callable, optional
        Options of fsspec for URLs, including credentials, which never leave the process: see
        :func:`register_storage_options`.
    session : requests.Session or callable, optional
        For the URL of a DICOMweb server, a session to use instead of what is registered, or a
        function that returns one when called with the URL of the service, as in
        :func:`register_credentials`. It is used for this slide only, and isn't pickled.

    Returns
    -------
    dicomslide.Slide
        The slide; no pixels are read.

    Raises
    ------
    FileNotFoundError
        When a path or an object doesn't exist.
    SourceDeniedError
        When a server denies access with these credentials, or without any.
    SourceReadError
        When a server can't be reached, or fails to send data.
    NotDicomError, NotSlideError
        When there is no DICOM file, or none with a slide image; when a URL is invalid, or there is
        no such slide or pyramid.
    ValueError
        When `storage_options` or a `session` are given, but no URL to which they apply.
    AmbiguousSlideError
        When there are several slides; the message lists them.

    """
    check_access(source, storage_options, session)
    given = dict(
        pyramid=os.fspath(pyramid) if isinstance(pyramid, os.PathLike) else pyramid,
        max_frame_cache_size=max_frame_cache_size,
        pyramid_tolerance=pyramid_tolerance,
        correct_color=correct_color,
        on_error=on_error,
        align_levels=align_levels,
        spacing=None if spacing is None else spacing_in_mm(spacing),
    )
    if isinstance(source, Slide):
        if storage_options is not None:
            raise ValueError("storage_options are for URLs of objects and folders, not for a Slide")
        _check_is(source, study_instance_uid, container_id, frame_of_reference_uid)
        return source._reopened(**given)
    store: Any
    web = source if isinstance(source, str) and is_dicomweb_url(source) else None
    criteria = Criteria(study_instance_uid=study_instance_uid)
    if container_id is not None and not has_wildcard(container_id):
        criteria = dataclasses.replace(criteria, container_id=container_id)
    if is_client(source):
        store = ClientStore(source, criteria)
    elif web is not None:
        store = store_at(web, session, criteria)
    elif is_store(source):
        store = source
    else:
        from dicomslide.backends.open import open_store

        try:
            store = open_store(source, storage_options)
        except NotDicomError as error:
            from dicomslide.slide.cohort_index import hint_at_index

            hint_at_index(error, source)
            raise
    metadata = store.metadata
    if study_instance_uid is not None:
        metadata = [
            each for each in metadata if dicom.text(each, "StudyInstanceUID") == study_instance_uid
        ]
    if not metadata:
        study = f"no instance of study {study_instance_uid}"
        where = web or type(source).__name__
        container = "" if container_id is None else f" with container {container_id!r}"
        raise NotSlideError(
            study if study_instance_uid else f"{where}: no slide image{container} is there"
        )
    if container_id is not None or frame_of_reference_uid is not None:
        metadata = _choose(store, metadata, container_id, frame_of_reference_uid)
    options = SlideOptions().changed(**given)
    return Slide(store, metadata, **dataclasses.asdict(options))


def _check_is(slide: Slide, study: str | None, container: str | None, frame: str | None) -> None:
    """Raise a NotSlideError if an open slide isn't the requested one."""
    for keyword, wanted in (
        ("StudyInstanceUID", study),
        ("ContainerIdentifier", container),
        ("FrameOfReferenceUID", frame),
    ):
        if wanted is not None and wanted != slide._said(keyword):
            raise NotSlideError(
                f"{slide.name}: its {keyword} is {slide._said(keyword)!r}; wanted is {wanted!r}"
            )


def _choose(
    store: FrameStore, metadata: Sequence[Dataset], container: str | None, frame: str | None
) -> list[Dataset]:
    """Return the metadata of one slide of several, without annotations of other slides."""
    from dicomslide.annotation.bulk import are_annotations_of

    images = [TiledImage(store, each) for each in metadata if dicom.is_tiled_image(each)]
    others = [each for each in metadata if not dicom.is_tiled_image(each)]
    slides = group_by_slide(images)
    kept = [
        slide
        for slide in slides
        if container in (None, slide.container) and frame in (None, *slide.frames)
    ]
    if not kept:
        there = sorted(str(slide.container) for slide in slides)
        raise NotSlideError(
            f"no slide with container {container!r}"
            + (f" and frame of reference {frame}" if frame else "")
            + f"; there are {there}"
        )

    def are_of(header: Dataset, slides: Sequence[SlideGroup]) -> bool:
        return any(are_annotations_of(header, each.images, each.frames) for each in slides)

    others = [each for each in others if are_of(each, kept) or not are_of(each, slides)]
    return [*(image.metadata for slide in kept for image in slide.images), *others]
