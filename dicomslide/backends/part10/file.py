"""DICOM Part 10 files on disk, and stores of files from anywhere."""

from __future__ import annotations

import dataclasses
import os
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from dicomslide.backends.part10 import header as part10
from dicomslide.backends.part10.local import (
    ChangingBlob,
    LocalFile,
    check_is_file,
)
from dicomslide.backends.part10.packed import unpack
from dicomslide.backends.part10.parsed import ParsedFile
from dicomslide.backends.part10.source import Part10Source
from dicomslide.enum import ImageFlavors
from dicomslide.errors import (
    DicomSlideError,
    MetadataError,
    MetadataWarning,
    NotDicomError,
)
from dicomslide.header import dicom
from dicomslide.process.registry import Registry
from dicomslide.process.warn import warn

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
    from typing import TypeAlias

    from pydicom.dataset import Dataset

    Key: TypeAlias = tuple[str, int, Hashable]

__all__ = ["FileSource", "FileStore", "check_opens", "files_of", "is_dicom_file"]

_instances: Registry[Key, ParsedFile] = Registry(1024, "parsed files", lambda parsed: parsed.nbytes)
"""By path, size, and what tells versions apart: a file that is opened again isn't parsed again."""


def _parsed(
    key: Key,
    open_file: Callable[[], ChangingBlob],
    parse: Callable[[ChangingBlob, Callable[[ParsedFile], None]], ParsedFile] = ParsedFile,
) -> ParsedFile:
    return _instances.get(key, lambda: parse(open_file(), partial(_instances.reweigh, key)))


@dataclasses.dataclass(frozen=True, slots=True)
class FileSource(Part10Source):
    """A DICOM Part 10 file.

    Holds what a process needs to open the file again, and to detect that it was changed.
    """

    path: str
    """Absolute path."""
    sop_instance_uid: str
    size: int
    mtime_ns: int
    node: tuple[int, int] = (0, 0)
    """Device and inode on the machine that opened it."""
    ctime_ns: int = 0
    """Time of its last change of content or status: another one where its old time of change of
    content was restored."""

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> FileSource:
        """Open a file and read its header, unless this process has done so.

        Raises
        ------
        FileNotFoundError, PermissionError, IsADirectoryError
            When the system raises it.
        NotDicomError
            When it isn't a DICOM Part 10 file.
        MetadataError
            When its header can't be read.

        """
        absolute = os.path.abspath(os.fspath(path))
        file = LocalFile(absolute)
        found = file.signature
        key = absolute, found.size, (found.mtime_ns, found.node, found.ctime_ns)
        dataset = _parsed(key, lambda: file).header.dataset
        uid = dicom.text(dataset, "SOPInstanceUID") or dicom.text(
            dataset.file_meta, "MediaStorageSOPInstanceUID"
        )
        uid = uid or absolute
        return cls(absolute, uid, found.size, found.mtime_ns, found.node, found.ctime_ns)

    @property
    def identity(self) -> tuple[Hashable, ...]:
        """Name of these bytes: the same in every process that sees the same file."""
        changed = self.mtime_ns, *self.node, self.ctime_ns
        return ("file", self.path, self.sop_instance_uid, self.size, *changed)

    @property
    def _key(self) -> Key:
        return self.path, self.size, (self.mtime_ns, self.node, self.ctime_ns)

    def may_read_ahead(self) -> bool:
        """Whether frames may be read before they are asked for: the file is opened here."""
        return True

    def restore_header(self, data: bytes, shared: Mapping[str, bytes]) -> None:
        """Have the process keep what :meth:`pack_header` returned, unless it keeps the header.

        The file is opened, and compared, but not read.

        Raises
        ------
        SourceNotFoundError, SourceChangedError
            See :meth:`.LocalFile.known`.
        KeyError, TypeError, ValueError
            When it isn't such a result.

        """
        _parsed(self._key, self._file, partial(unpack, data, shared))

    def _instance(self) -> ParsedFile:
        return _parsed(self._key, self._file)

    def _file(self) -> ChangingBlob:
        return LocalFile.known(self.path, self.size, self.mtime_ns)


def is_dicom_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file has the DICM prefix of Part 10; False too where it can't be read."""
    try:
        check_is_file(os.fspath(path))
        with open(path, "rb") as file:
            return file.read(part10.PREAMBLE)[128:] == b"DICM"
    except (OSError, ValueError):  # NotDicomError is a ValueError
        return False


@dataclasses.dataclass(frozen=True, slots=True)
class FileStore:
    """A store of DICOM Part 10 files, on disk and elsewhere."""

    sources: tuple[Part10Source, ...]

    @classmethod
    def open(cls, paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> FileStore:
        """Open a file, the files of a folder (and its folders), or a list of both.

        Files that aren't DICOM are skipped in a folder, and an error where they are named. A DICOM
        file of a folder that can't be read is left out with a warning.

        Raises
        ------
        FileNotFoundError
            When a path doesn't exist.
        NotDicomError
            When there is no DICOM file, or a named file isn't one.
        MetadataError
            When the header of a named file can't be read, or lacks what makes it an image.

        """
        if isinstance(paths, (str, os.PathLike)):
            paths = [paths]
        sources: dict[str, list[Part10Source]] = {}
        names = []
        for given in paths:
            if "://" in str(given):
                raise NotDicomError(
                    f"{given}: a URL, but only local files are read by path; see"
                    " dicomslide.open_slide for URLs"
                )
            path = Path(given).expanduser()
            names.append(str(path))
            if path.is_dir():
                for file in files_of(path):
                    if is_dicom_file(file):
                        try:
                            source = FileSource.open(file)
                            check_opens(source.metadata)
                            source.check_complete()
                            _add(sources, source)
                        except DicomSlideError as error:
                            warn(f"left out: {error}", MetadataWarning)
            else:
                _add(sources, FileSource.open(path))
        if not sources:
            raise NotDicomError(f"{', '.join(names) or 'an empty list'}: no DICOM file is there")
        store = cls(tuple(source for same in sources.values() for source in same))
        store.check_complete()
        return store

    @classmethod
    def of(cls, sources: Iterable[Part10Source]) -> FileStore:
        """Return a store with one source per instance, with a warning for each copy."""
        kept: dict[str, list[Part10Source]] = {}
        for source in sources:
            _add(kept, source)
        return cls(tuple(source for same in kept.values() for source in same))

    def check_complete(self) -> None:
        """Raise a MetadataError where the header of a file lacks what makes it an image.

        To be called without copies: one that was cut doesn't matter beside a complete one.
        """
        for source in self.sources:
            source.check_complete()

    @property
    def metadata(self) -> list[Dataset]:
        """The headers of all files."""
        return [source.metadata for source in self.sources]

    def source(self, metadata: Dataset) -> Part10Source:
        """Return the file of an instance.

        Raises
        ------
        MetadataError
            When no file has its SOP Instance UID, or several have it and none is its `filename`.

        """
        uid = dicom.text(metadata, "SOPInstanceUID")
        found = [source for source in self.sources if uid in (None, source.sop_instance_uid)]
        if uid is None or len(found) > 1:  # the UID doesn't tell: the file does
            path = getattr(metadata, "filename", None)
            found = [source for source in found if source.path == path]
        if found:
            return found[0]
        raise MetadataError(f"no file holds the instance {dicom.name_of(metadata)}")


def files_of(folder: Path) -> Iterator[str]:
    """Yield the files of a folder and its folders, in order; warn of folders without access."""

    def on_error(error: OSError) -> None:
        warn(f"left out: {error}", MetadataWarning)

    for parent, folders, files in os.walk(folder, onerror=on_error):
        folders.sort()
        for path in (os.path.join(parent, file) for file in sorted(files)):
            if os.path.isfile(path) or not os.path.exists(path):  # a pipe would be waited for
                yield path


_SORTING = (
    "SOPClassUID", "ImageType", "FrameOfReferenceUID", "ContainerIdentifier", "ConcatenationUID",
    "Rows", "Columns", "TotalPixelMatrixRows", "TotalPixelMatrixColumns",
)  # fmt: skip
"""Attributes by which images are sorted into slides and levels."""

_PLACING = (
    "NumberOfFrames", "ConcatenationFrameOffsetNumber", "DimensionOrganizationType",
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "BitsAllocated",
    "BitsStored", "PixelRepresentation", "TotalPixelMatrixFocalPlanes", "ImagedVolumeWidth",
    "ImagedVolumeHeight", "ImageOrientationSlide", "TotalPixelMatrixOriginSequence",
    "OpticalPathSequence", "SegmentSequence", "SharedFunctionalGroupsSequence",
)  # fmt: skip
"""Attributes that describe and place the pixels of a level."""

_NESTED = (
    "PixelMeasuresSequence", "PixelSpacing", "SpacingBetweenSlices",
    "TotalPixelMatrixOriginSequence", "XOffsetInSlideCoordinateSystem",
    "YOffsetInSlideCoordinateSystem", "ZOffsetInSlideCoordinateSystem", "OpticalPathIdentifier",
    "SegmentNumber",
)  # fmt: skip
"""Attributes of the items of these sequences."""

_ASSOCIATED = (ImageFlavors.LABEL.value, ImageFlavors.OVERVIEW.value)


def check_opens(header: Dataset) -> None:
    """Raise a MetadataError where a value that opening a slide uses can't be converted."""
    is_associated = dicom.image_flavor(header) in _ASSOCIATED
    _convert(header, _tags_of(_SORTING if is_associated else _SORTING + _PLACING))


def _convert(dataset: Dataset, wanted: frozenset[int | None]) -> None:
    for tag in tuple(dataset.keys()):
        if tag in wanted:
            element = dataset[tag]
            if dicom.is_lazy(element.value):
                dicom.texts(element.value, "SegmentNumber")
                continue
            for item in element.value or () if element.VR == "SQ" else ():
                _convert(item, _tags_of(_NESTED))


@cache
def _tags_of(keywords: tuple[str, ...]) -> frozenset[int | None]:
    from pydicom.datadict import tag_for_keyword

    return frozenset(map(tag_for_keyword, keywords))


_TELLING = (
    "InstanceNumber", "ImageType", "TotalPixelMatrixRows", "TotalPixelMatrixColumns",
    "NumberOfFrames", "ConcatenationFrameOffsetNumber",
)  # fmt: skip
"""Attributes that are equal in two copies of one instance."""


def _add(sources: dict[str, list[Part10Source]], source: Part10Source) -> None:
    """Add a source, unless the same file or a copy was added.

    Of copies of one instance, the first complete one stays. Images with equal UIDs but different
    headers are all added: some writers give all images of a series one UID.
    """
    others = sources.setdefault(source.sop_instance_uid, [])
    if any(other.path == source.path for other in others):
        return
    for at, other in enumerate(others):
        kept, left = (other, source) if _is_preferred(other, source) else (source, other)
        if _are_copies(kept, left):
            others[at] = kept
            what = f"left out: {left.path} has the SOP Instance UID of {kept.path}"
            break
    else:
        others.append(source)
        if len(others) == 1:
            return
        what = (
            f"{source.path} has the SOP Instance UID of {others[0].path}, but is another image:"
            " both are used"
        )
    warn(what, MetadataWarning)


def _is_preferred(first: Part10Source, second: Part10Source) -> bool:
    """Whether the first of two files is the one to use: complete, or larger if neither is."""
    return first.is_whole or (not second.is_whole and first.size >= second.size)


def _are_copies(kept: Part10Source, left: Part10Source) -> bool:
    """Whether two files of one UID have equal headers, except for attributes lost by truncation."""
    here, there = kept.metadata, left.metadata
    is_broken = not left.is_whole  # truncation may have removed what it lacks
    return all(
        here.get(keyword) == there.get(keyword) or (is_broken and keyword not in there)
        for keyword in _TELLING
    )
