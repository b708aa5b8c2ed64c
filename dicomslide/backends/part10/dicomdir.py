"""Files that the directory of a file-set lists (DICOMDIR, PS3.10 section 8)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from dicomslide.backends.part10.file import FileSource, is_dicom_file
from dicomslide.errors import MetadataError, MetadataWarning, SourceNotFoundError
from dicomslide.header import dicom
from dicomslide.process.warn import warn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydicom.dataset import Dataset

__all__ = ["file_ids", "files_listed_by", "is_dicomdir"]

NAME = "DICOMDIR"
MOST_NAMED = 5
"""Upper bound on files that an error names."""


def is_dicomdir(path: str) -> bool:
    """Whether the last part of a path or URL is DICOMDIR, in any case."""
    return os.path.basename(path).upper() == NAME


def file_ids(directory: Dataset) -> Iterator[tuple[str, ...]]:
    """Yield the Referenced File ID of each record: folders and a file name, relative to it.

    Raises
    ------
    MetadataError
        When one leads outside the folder of the file-set.

    """
    for record in dicom.items(directory, "DirectoryRecordSequence"):
        value = record.get("ReferencedFileID")
        if not value:
            continue
        parts = (value,) if isinstance(value, str) else tuple(map(str, value))
        if any(part in ("", ".", "..") or set(part) & set(r":/\*?") for part in parts):
            raise MetadataError(
                f"{dicom.name_of(directory)}: it lists {parts}, which is no file below it"
            )
        yield parts


def files_listed_by(path: str) -> list[str]:
    """Return the existing files that a DICOMDIR lists, with a warning for each missing one.

    Raises
    ------
    SourceNotFoundError
        When none of the listed files exists.
    NotDicomError, MetadataError
        When the DICOMDIR can't be read.

    """
    folder = os.path.dirname(path)
    found, missing = [], []
    for parts in file_ids(FileSource.open(path).metadata):
        file = _below(folder, parts)
        if is_dicom_file(file):
            found.append(file)
        else:
            missing.append(os.path.join(*parts))
    if not found:
        listed = ", ".join(missing[:MOST_NAMED]) + (", ..." if len(missing) > MOST_NAMED else "")
        raise SourceNotFoundError(f"{path}: no file is there of those that it lists: {listed}")
    for name in missing:
        warn(
            f"left out: {path} lists {name}, which isn't there, or isn't DICOM",
            MetadataWarning,
        )
    return found


def _below(folder: str, parts: tuple[str, ...]) -> str:
    """Return the path of a file, in the case of its name on disk: copies of media change it."""
    path = folder
    for part in parts:
        exact = os.path.join(path, part)
        if not os.path.exists(exact) and os.path.isdir(path or os.curdir):
            names = sorted(os.listdir(path or os.curdir))
            alike = (name for name in names if name.upper().partition(";")[0] == part.upper())
            exact = os.path.join(path, next(alike, part))
        path = exact
    return path
