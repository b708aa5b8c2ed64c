"""Data sets whose values are taken as they are, whether they keep the rules or not."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from pydicom import filereader
from pydicom.config import disable_value_validation, settings
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_sequence

from dicomslide.header.blobs import MemoryBlob, errors_of_headers, file_of
from dicomslide.process.forks import ForkLock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pydicom.tag import BaseTag

    from dicomslide.header.blobs import Blob

__all__ = ["LenientDataset", "LoadedBlob", "no_validation", "read_dataset"]

AT_ONCE = 2**16
"""Bytes of a header that are read at first: most headers have fewer."""


class _Switch(ForkLock):
    """Guards pydicom's switch; a child that is forked while it is turned has it as it was."""

    def __init__(self) -> None:
        self.before: dict[str, Any] = {}
        super().__init__()

    def _start(self) -> None:
        super()._start()
        vars(settings).update(self.before)
        self.before = {}


_reading = _Switch()


@contextlib.contextmanager
def no_validation() -> Iterator[None]:
    """Let pydicom read values that break the rules: a reader takes files as they are."""
    with _reading:
        before = _reading.before  # which isn't empty where this thread turned it already
        _reading.before = before or dict(vars(settings))
        try:
            with disable_value_validation():
                yield
        finally:
            _reading.before = before


class _BeyondError(Exception):
    """pydicom wants bytes that aren't loaded.

    Parameters
    ----------
    stop : int
        First byte behind those.

    """

    def __init__(self, stop: int) -> None:
        super().__init__(stop)
        self.stop = stop


class LoadedBlob:
    """The bytes of a blob from a place on, as far as they are loaded.

    Parameters
    ----------
    blob : Blob
        The bytes.
    start : int
        The first of them.

    """

    def __init__(self, blob: Blob, start: int) -> None:
        self.name, self.size = blob.name, blob.size
        self._blob = blob
        self._start = start
        self._data = b""

    def load(self, stop: int) -> None:
        """Load bytes up to a place at least, or to the end."""
        at = self._start + len(self._data)
        if stop <= at:
            return
        data = self._blob.read(at, min(stop, self.size) - at)
        self._data += data
        if at + len(data) < stop:
            self.size = at + len(data)

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes that are loaded; there is one at least, except at the end."""
        at, stop = offset - self._start, offset - self._start + length
        if at >= len(self._data) and offset < self.size:
            raise _BeyondError(offset + length)
        return self._data[at:stop]


def read_dataset(
    blob: Blob | LoadedBlob,
    at: int,
    *,
    implicit_vr: bool = False,
    little_endian: bool = True,
    stop_when: Callable[[BaseTag, str | None, int], bool] | None = None,
    most_bytes: int | None = None,
) -> tuple[Dataset, int]:
    """Read a data set as it is, and return it with the place where it ends.

    Bytes are loaded while pydicom's switch is as it was: what doesn't suffice is parsed again, with
    twice as many bytes or more.

    Parameters
    ----------
    blob : Blob or LoadedBlob
        The bytes.
    at : int
        First byte of the data set.
    implicit_vr, little_endian : bool
        Encoding of the data set.
    stop_when : callable, optional
        Tells by (tag, VR, length) at which element to stop.
    most_bytes : int, optional
        Upper bound on the bytes that are read; by default, that of headers.

    """
    loaded = blob if isinstance(blob, LoadedBlob) else LoadedBlob(blob, at)
    stop = at + AT_ONCE
    while True:
        loaded.load(stop)
        file = file_of(loaded, at, most_bytes=most_bytes)
        try:
            with no_validation():
                dataset = filereader.read_dataset(
                    file, implicit_vr, little_endian, stop_when=stop_when
                )
            return dataset, file.tell()
        except _BeyondError as beyond:
            stop = max(beyond.stop, 2 * stop - at)


_OF_ITEMS = frozenset({"is_undefined_length_sequence_item", "is_implicit_VR", "is_little_endian"})


def _has_plain_items(element: Any) -> bool:
    """Whether pydicom has parsed a sequence by itself: one of undefined length, as it was read."""
    return element.VR == "SQ" and any(type(item) is Dataset for item in element.value or ())


class LenientDataset(Dataset):
    """A data set that converts a value when it is first asked for, without validation.

    pydicom does so, too, but validates then: by a switch of the process, which is turned for
    no longer than one value needs. Of a header, few values are ever asked for.

    Parameters
    ----------
    dataset : pydicom.dataset.Dataset
        As it was read, its values not converted yet.
    filename : str
        Where it was read from.

    Raises
    ------
    MetadataError
        When a value that is asked for can't be converted.

    """

    def __init__(self, dataset: Dataset, filename: str) -> None:
        super().__init__(dataset)
        self.__dict__ |= {key: dataset.__dict__[key] for key in _OF_ITEMS & vars(dataset).keys()}
        self.filename = filename
        implicit_vr, little_endian = dataset.original_encoding
        self.set_original_encoding(implicit_vr, little_endian, dataset.original_character_set)

    _is_converting = False

    def __eq__(self, other: object) -> bool:
        """Whether another data set, of any of pydicom's classes, has equal elements."""
        return other is self or self[:].__eq__(other)

    def __getitem__(self, key: Any) -> Any:
        """Return an element, or the data set of a slice of tags."""
        if isinstance(key, slice):
            for _ in self:  # the data set of a slice is a plain one, which would validate
                pass
            return super().__getitem__(key)
        element: Any = None
        with contextlib.suppress(OverflowError, TypeError, ValueError):  # of what is no tag
            element = self.get_item(key, keep_deferred=True)
        if element is not None and (element.is_raw or _has_plain_items(element)):
            with errors_of_headers(str(self.filename)), no_validation():
                self._convert(key)
        elif self._is_converting:  # maybe this one, in another thread that isn't done with it
            with _reading:
                pass
        return super().__getitem__(key)

    def _convert(self, key: Any) -> None:
        was_converting, self._is_converting = self._is_converting, True
        try:
            self._parse_sequence(key)
            element = super().__getitem__(key)
            if element.VR == "SQ":
                for at, item in enumerate(element.value):  # plain data sets, too
                    if not isinstance(item, LenientDataset):
                        element.value[at] = LenientDataset(item, str(self.filename))
        finally:
            self._is_converting = was_converting

    def _parse_sequence(self, key: Any) -> None:
        """Parse the items of a sequence as pydicom does, but no more than are bearable."""
        raw: Any = self.get_item(key, keep_deferred=True)
        if not raw.is_raw:  # another thread was here
            return
        vr = raw.VR
        if vr in (None, "UN"):
            vr = dictionary_VR(raw.tag) if dictionary_has_tag(raw.tag) else vr
        if vr == "SQ" and raw.value:
            self[raw.tag] = DataElement(
                raw.tag,
                vr,
                read_sequence(
                    file_of(MemoryBlob(str(self.filename), raw.value), 0),
                    raw.is_implicit_VR,
                    raw.is_little_endian,
                    len(raw.value),
                    self.original_character_set,
                    raw.value_tell,
                ),
                raw.value_tell,
            )
