"""Slides in an icechunk repository: a group each, of virtual arrays and their coordinates."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from dicomslide.backends.concatenation import ConcatenatedSource
from dicomslide.backends.net.redaction import public_url
from dicomslide.backends.objects.remote import OF_HEAD, RemoteSource
from dicomslide.backends.objects.repositories import reason_of
from dicomslide.backends.part10.file import FileSource
from dicomslide.contents.contents import SlideContents
from dicomslide.errors import DicomSlideError, ExportError, MetadataWarning, NotVirtualError
from dicomslide.process.parallel import together
from dicomslide.process.warn import warn
from dicomslide.virtual.commit import Built, write_slides
from dicomslide.virtual.containers import opened
from dicomslide.virtual.origins import ATTRIBUTE, origin_of
from dicomslide.virtual.references import checked, url_of
from dicomslide.virtual.tree import check_installed, virtual_parts

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    import icechunk

    from dicomslide.backends.base import FrameSource
    from dicomslide.virtual.references import CheckFrames

__all__ = ["to_icechunk"]

AT_ONCE = 8
"""Slides whose headers are read at once, where the slides aren't a cohort."""
_ETAG = re.compile(r'(W/)?"?[^\s"]+"?')


def to_icechunk(
    slides: SlideContents | Mapping[str, SlideContents] | Iterable[SlideContents],
    storage: str | os.PathLike[str] | icechunk.Storage,
    *,
    overwrite: bool = False,
    on_error: Literal["raise", "skip"] = "raise",
    associated: bool = False,
    include_patient: bool = False,
    check_frames: CheckFrames = None,
    containers: Sequence[icechunk.VirtualChunkContainer] = (),
    credentials: Mapping[str, Any] | None = None,
) -> icechunk.Repository:
    """Write slides to an icechunk repository, as virtual arrays on the files as they are.

    Each slide is a group by its name, with the groups of :meth:`dicomslide.Slide.to_virtual`. All
    slides are one commit on the branch ``main``; further calls add slides. The headers of a cohort
    are read in parallel, by the workers of a dask cluster if there is one.

    Parameters
    ----------
    slides : Slide, Cohort, mapping of str to Slide, or iterable of Slide
        Slides by name; without names, their Container Identifier is the name.
    storage : path-like or icechunk.Storage
        Folder of the repository, its URL (``s3://``), or its storage. It is created if it doesn't
        exist. Storage options for the URL are those of
        :func:`dicomslide.register_storage_options`.
    overwrite : bool, default: False
        Whether a slide replaces one of the same name that is there.
    on_error : {"raise", "skip"}, default: "raise"
        Whether a slide that can't be opened or virtual raises, and nothing is committed; or is left
        out with a warning.
    associated, include_patient
        See :meth:`dicomslide.Slide.to_datatree`.
    check_frames : {"all", "sample"}, optional
        Frames of JPEG, JPEG-LS and JPEG 2000 whose headers are examined before imagecodecs' codec,
        which doesn't need dicomslide, is chosen for all of an image: each, or a sample by place
        and length. A frame beyond the sample that differs from it would be decoded in wrong colours
        without an error. By default, each frame of files on this machine is; of others, which
        would have to be transferred, a few are, and dicomslide's codec is chosen, which examines
        each frame as it is read.
    containers : sequence of icechunk.VirtualChunkContainer, default: ()
        Where icechunk reads the files, by prefix of their URLs. Without one for a prefix: the local
        disk; the HTTP server; a public or by its environment accessible bucket of S3.
    credentials : mapping, optional
        Credentials of icechunk by the prefix of containers. They aren't stored.

    Returns
    -------
    icechunk.Repository
        The repository, with access to the files.

    Raises
    ------
    StoreExistsError
        When a slide of that name is there, unless it is to be overwritten.
    NotVirtualError
        When frames can't be chunks: see :meth:`dicomslide.Slide.to_virtual`.
    ExportError, OSError
        When icechunk can't write there: a folder with other files, no permission; or another
        process has written slides of the same names meanwhile.
    ImportError
        When icechunk or VirtualiZarr isn't installed: the extra ``virtual``.

    Notes
    -----
    Each chunk has the ETag of its file: icechunk raises an error for chunks of a file that has
    changed since. Of a local file the ETag consists of inode, size and time of change.

    The group of a slide has the attribute ``dicomslide_sources``, which says what files it was made
    from: :func:`dicomslide.open_slides` opens these, by the path of the repository.

    Examples
    --------
    >>> repository = to_icechunk(dicomslide.open_slides("cohort/"), "cohort.icechunk")
    >>> store = repository.readonly_session("main").store
    >>> xr.open_datatree(store, group="S23-1", engine="zarr", consolidated=False, chunks={})
    >>> slides = dicomslide.open_slides("cohort.icechunk")

    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f'on_error must be "raise" or "skip", not {on_error!r}')
    check_installed("icechunk", "virtualizarr")
    import icechunk

    build = _Build(
        associated=associated, include_patient=include_patient, check_frames=checked(check_frames)
    )
    found, failures = _built(slides, build)
    for name, error in failures.items():
        if on_error == "raise":
            raise error
        warn(f"left out: {name}: {error}", MetadataWarning)
    if not found:
        raise NotVirtualError("no slide to write")
    urls = {url for _, checksums in found.values() for url in checksums}
    with _errors(storage):
        repository = opened(storage, sorted(urls), containers, credentials or {})
        session = repository.writable_session("main")
        write_slides(session.store, found, overwrite)
        # slides that another process has added meanwhile stay
        session.commit(f"slides: {', '.join(found)}", rebase_with=icechunk.ConflictDetector())
    return repository


@contextlib.contextmanager
def _errors(storage: Any) -> Iterator[None]:
    """Convert errors of icechunk to those of the package."""
    import icechunk

    name = public_url(str(storage))
    try:
        yield
    except (icechunk.ConflictError, icechunk.RebaseFailedError) as error:
        raise ExportError(
            f"{name}: nothing is committed, since another process has begun the repository, or"
            " written slides of the same names, meanwhile; write them again"
        ) from error
    except icechunk.IcechunkError as error:
        raise ExportError(
            f"{name}: icechunk can't write to the repository: {reason_of(error)}"
        ) from error


class _Build:
    """Picklable function that returns the parts of the virtual datasets of a slide."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def __call__(self, slide: SlideContents) -> Built:
        groups = virtual_parts(slide, **self.options)
        groups["/"].attrs[ATTRIBUTE] = origin_of(slide)
        return groups, dict(_checksums(slide._sources))


def _built(slides: Any, build: _Build) -> tuple[dict[str, Built], dict[str, Exception]]:
    """Return what slides consist of by name, and the errors of others."""
    if isinstance(slides, SlideContents):
        slides = [slides]
    if isinstance(slides, Mapping) and hasattr(slides, "map"):  # a cohort, on a cluster maybe
        cohort: Any = slides
        results = cohort.map(build)
        failures = {name: error.error or error for name, error in results.failures.items()}
        return _grouped(results), {**cohort.failures, **failures}
    named = dict(slides) if isinstance(slides, Mapping) else _by_name(slides)
    for name, slide in named.items():
        if not (isinstance(name, str) and isinstance(slide, SlideContents)):
            raise TypeError(f"expected slides by name, not a {type(slide).__name__} by {name!r}")
    built: dict[str, Built] = {}
    failed: dict[str, Exception] = {}

    def one(item: tuple[str, SlideContents]) -> None:
        name, slide = item
        try:
            built[name] = build(slide)
        except (DicomSlideError, OSError) as error:
            failed[name] = error

    together(one, list(named.items()), AT_ONCE)
    return _grouped({name: built[name] for name in named if name in built}), failed


def _by_name(slides: Iterable[SlideContents]) -> dict[str, SlideContents]:
    named: dict[str, SlideContents] = {}
    for slide in slides:
        if not isinstance(slide, SlideContents):
            raise TypeError(f"expected slides, not a {type(slide).__name__}")
        name = slide.container_identifier or slide.name
        if name in named:
            raise NotVirtualError(f"two slides have the name {name!r}; give a mapping of names")
        named[name] = slide
    return named


def _grouped(built: Mapping[str, Built]) -> dict[str, Built]:
    """Return slides by the names of their groups: one part of a path each."""
    found: dict[str, Built] = {}
    for name, each in built.items():
        group = re.sub(r"[/\\]", "_", name).strip("._")  # zarr separates groups by either
        if group in ("", "zarr.json"):  # the latter is the name of metadata
            group = "slide"
        if group in found:
            raise NotVirtualError(f"{name!r}: the group {group!r} is that of another slide")
        found[group] = each
    return found


def _checksums(sources: Iterable[FrameSource]) -> Iterator[tuple[str, str]]:
    """Yield the URL of each file, and its ETag; an empty one where the server has none."""
    for source in sources:
        if isinstance(source, ConcatenatedSource):
            yield from _checksums(source.parts)
        elif isinstance(source, FileSource):  # as the crate object_store, which icechunk reads by
            inode, microseconds = source.node[1], source.mtime_ns // 1000
            yield url_of(source), f"{inode:x}-{microseconds:x}-{source.size:x}"
        elif isinstance(source, RemoteSource):
            is_etag = source.path.startswith(("s3://", "http://", "https://"))
            is_etag &= not source.version.startswith(OF_HEAD)
            is_etag &= _ETAG.fullmatch(source.version) is not None
            yield url_of(source), source.version if is_etag else ""
