"""What the slides of a cohort are read from: lists of files, and batches of instances."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dicomslide.backends.net.redaction import public_url
from dicomslide.backends.net.storage_options import remembered
from dicomslide.backends.open import local_paths_and_urls, objects_at, open_source
from dicomslide.backends.part10.file import files_of
from dicomslide.backends.part10.streams import StreamSource
from dicomslide.errors import NotDicomError
from dicomslide.header import dicom
from dicomslide.slide.batches import Batch, Failures, attempt, in_threads
from dicomslide.slide.cohort_index import hint_at_index
from dicomslide.slide.sorting import Instance

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

    from dicomslide.backends.base import Series
    from dicomslide.backends.criteria import Criteria
    from dicomslide.backends.search import Catalog

__all__ = ["paths_of", "read_files", "read_series", "read_streams"]

# -- list of files ---------------------------------------------------------------------------


Named = tuple[str, bool]
"""Path or URL, and whether the caller named it: if so, a file that isn't DICOM is an error."""


def paths_of(given: list[Any], storage_options: Any, failures: Failures) -> list[Named]:
    """Return the files of folders, patterns and URLs, each once."""
    local, urls = local_paths_and_urls(given, storage_options)
    found: dict[str, bool] = {}

    def add(paths: Iterable[str], is_named: bool) -> None:
        for path in paths:
            found[path] = is_named or found.get(path, False)

    for each in local:
        path = Path(each).expanduser().absolute()  # workers may have another working directory
        if path.is_dir():
            add(files_of(path), False)
            continue
        matching = [] if path.exists() else sorted(glob.glob(str(path), recursive=True))
        for match in map(Path, matching):
            if match.is_dir():
                add(files_of(match), False)
        add((match for match in matching if not os.path.isdir(match)), False)
        if not matching:  # a file, or a path that doesn't exist, which is an error later
            add([str(path)], True)
    for batch in in_threads(_list_objects, urls):
        failures |= batch.failures
        for url, is_named in batch.found:
            add([url], is_named)
    return list(found.items())


# -- batches of items -----------------------------------------------------------------------


def _list_objects(urls: Sequence[str]) -> Batch[list[Named]]:
    found: list[Named] = []
    failures: Failures = {}
    for url in urls:
        with attempt(failures, public_url(url)):
            # without credentials, which aren't sent to workers
            found += [(remembered(each), is_given) for each, is_given in objects_at(url)]
    return Batch(found, failures)


def read_files(paths: Sequence[Named]) -> Batch[list[Instance]]:
    """Read the headers of files; those that aren't DICOM are left out, unless they are named."""
    found: list[Instance] = []
    failures: Failures = {}
    for path, is_named in paths:
        with attempt(failures, path):
            try:
                found.append(Instance.of(open_source(path)))
            except NotDicomError as error:
                if is_named:
                    hint_at_index(error, path)
                    raise
    return Batch(found, failures)


def read_streams(streams: Sequence[Any]) -> Batch[list[Instance]]:
    """Read the headers of binary file objects."""
    found: list[Instance] = []
    failures: Failures = {}
    for each in streams:
        with attempt(failures, f"{type(each).__name__} at {id(each):#x}"):
            found.append(Instance.of(StreamSource.open(each)))
    return Batch(found, failures)


def read_series(
    store: Catalog, criteria: Criteria, stained: set[Hashable], series: Sequence[Series]
) -> Batch[list[Instance]]:
    """Read the metadata of series; add to `stained` the identity of images that have a stain."""
    found: list[Instance] = []
    failures: Failures = {}
    for each in series:
        with attempt(failures, f"series {each.series_instance_uid}"):
            for metadata in store.metadata_of(each):
                with attempt(failures, dicom.name_of(metadata)):
                    instance = Instance.of(store.source(metadata))
                    found.append(instance)
                    if instance.rank == 2 and criteria.has_stain(metadata):
                        stained.add(instance.source.identity)
    return Batch(found, failures)
