"""Data sets that are read and converted without validation of their values."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

from pydicom import filereader
from pydicom.config import disable_value_validation, settings
from pydicom.datadict import dictionary_has_tag, dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_sequence
from pydicom.tag import BaseTag

from dicomslide.header.blobs import MemoryBlob, errors_of_headers, file_of
from dicomslide.header.lazy_items import LazySequence
from dicomslide.process.forks import ForkLock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pydicom.sequence import Sequence

    from dicomslide.header.blobs import Blob

__all__ = ["LenientDataset", "LoadedBlob", "no_validation", "read_dataset"]

AT_ONCE = 2**16
"""Bytes of a header that are loaded first: most headers have fewer."""
SEGMENTS = 0x00620002
"""Segment Sequence."""
LARGE = 2**16
"""Bytes of a Segment Sequence above which its items are parsed as they are asked for."""


class _Switch(ForkLock):
    """Lock of pydicom's validation settings, with the values to restore in a forked child."""

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
    """Turn off pydicom's validation of values, a setting of the process, for a ``with`` block."""
    with _reading:
        before = _reading.before  # not empty in a nested block
        _reading.before = before or dict(vars(settings))
        try:
            with disable_value_validation():
                yield
        finally:
            _reading.before = before


class _BeyondError(Exception):
    """pydicom reads beyond the loaded bytes.

    Parameters
    ----------
    stop : int
        Offset after the last byte of that read.

    """

    def __init__(self, stop: int) -> None:
        super().__init__(stop)
        self.stop = stop


class LoadedBlob:
    """Bytes of a blob that are in memory, from an offset on.

    Parameters
    ----------
    blob : Blob
        The bytes.
    start : int
        Offset of the first byte that is loaded.

    """

    def __init__(self, blob: Blob, start: int) -> None:
        self.name, self.size = blob.name, blob.size
        self._blob = blob
        self._start = start
        self._data = b""

    def load(self, stop: int) -> None:
        """Load the bytes before the offset `stop`, or to the end of the blob."""
        at = self._start + len(self._data)
        if stop <= at:
            return
        data = self._blob.read(at, min(stop, self.size) - at)
        self._data += data
        if at + len(data) < stop:
            self.size = at + len(data)

    def read(self, offset: int, length: int) -> bytes:
        """Return those of the bytes that are loaded: at least one, except at the end of the blob.

        Raises
        ------
        _BeyondError
            When none of them is loaded.

        """
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
    """Read a data set without validation, and return it with the offset of its end.

    pydicom parses loaded bytes, without validation. Where these don't suffice, more are loaded, at
    least twice as many, while validation is as it was before, and the data set is parsed again.

    Parameters
    ----------
    blob : Blob or LoadedBlob
        The bytes.
    at : int
        First byte of the data set.
    implicit_vr, little_endian : bool
        Encoding of the data set.
    stop_when : callable, optional
        Function of (tag, VR, length) that is true for the element to stop at.
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
    """Whether items of a sequence are pydicom's: it parses sequences of undefined length itself."""
    if element.VR != "SQ" or isinstance(element.value, LazySequence):
        return False
    return any(type(item) is Dataset for item in element.value or ())


class LenientDataset(Dataset):
    """Data set that converts each value on first access, without validation.

    pydicom's own data sets convert on access too, but validate unless a setting of the process is
    changed. Here that setting is changed only while one value is converted. Few values of a header
    are ever accessed.

    Parameters
    ----------
    dataset : pydicom.dataset.Dataset
        Data set as read, with values that aren't converted.
    filename : str
        Name of the file, for messages.

    Raises
    ------
    MetadataError
        On access, when a value can't be converted.

    """

    def __init__(self, dataset: Dataset, filename: str) -> None:
        super().__init__(dataset)
        self.__dict__ |= {key: dataset.__dict__[key] for key in _OF_ITEMS & vars(dataset).keys()}
        self.filename = filename
        implicit_vr, little_endian = dataset.original_encoding
        self.set_original_encoding(implicit_vr, little_endian, dataset.original_character_set)

    _is_converting = False

    def __eq__(self, other: object) -> bool:
        """Whether another data set, of any class of pydicom, has equal elements."""
        return other is self or self[:].__eq__(other)

    def get(self, key: Any, default: Any = None) -> Any:
        """Return a value by its keyword, or an element by its tag, as pydicom does.

        Headers are asked for values by keyword some thousand times per slide: what has been
        converted is found by one look-up.
        """
        tag = tag_for_keyword(key) if isinstance(key, str) else None
        if tag is not None and not self._is_converting:
            element = self._dict.get(BaseTag(tag))
            if element is None:
                return default
            if not (element.is_raw or _has_plain_items(element)):
                return element.value
        return super().get(key, default)

    def __getitem__(self, key: Any) -> Any:
        """Return an element, or the data set of a slice of tags."""
        if isinstance(key, slice):
            for (
                _
            ) in self:  # convert all values: the slice is a plain data set, which would validate
                pass
            return super().__getitem__(key)
        element: Any = None
        with contextlib.suppress(OverflowError, TypeError, ValueError):  # `key` is no tag
            element = self.get_item(key, keep_deferred=True)
        if element is not None and (element.is_raw or _has_plain_items(element)):
            with errors_of_headers(str(self.filename)), no_validation():
                self._convert(key)
        elif self._is_converting:  # perhaps this element, in another thread: wait until it is done
            with _reading:
                pass
        return super().__getitem__(key)

    def _convert(self, key: Any) -> None:
        was_converting, self._is_converting = self._is_converting, True
        try:
            self._parse_sequence(key)
            element = super().__getitem__(key)
            if element.VR == "SQ" and not isinstance(element.value, LazySequence):
                for at, item in enumerate(element.value):  # items are plain data sets
                    if not isinstance(item, LenientDataset):
                        element.value[at] = LenientDataset(item, str(self.filename))
        finally:
            self._is_converting = was_converting

    def _parse_sequence(self, key: Any) -> None:
        """Parse the items of a sequence by pydicom, with bounds on bytes and reads."""
        raw: Any = self.get_item(key, keep_deferred=True)
        if not raw.is_raw:  # another thread has parsed it
            return
        vr = raw.VR
        if vr in (None, "UN"):
            vr = dictionary_VR(raw.tag) if dictionary_has_tag(raw.tag) else vr
        if vr == "SQ" and raw.value:
            self[raw.tag] = DataElement(raw.tag, vr, self._items_of(raw), raw.value_tell)

    def _set_pixel_representation(self, elem: DataElement) -> None:
        # pydicom tells all items whether pixels are signed; segments have no value to which it
        # matters, and they would all be parsed
        if not isinstance(elem.value, LazySequence):
            super()._set_pixel_representation(elem)

    def _items_of(self, raw: Any) -> Sequence:
        if raw.tag == SEGMENTS and raw.VR != "UN" and len(raw.value) > LARGE:
            return self._lazy_items(raw.value, raw.is_implicit_VR, raw.is_little_endian)
        return read_sequence(
            file_of(MemoryBlob(str(self.filename), raw.value), 0),
            raw.is_implicit_VR,
            raw.is_little_endian,
            len(raw.value),
            self.original_character_set,
            raw.value_tell,
        )

    def add_lazy(self, tag: int, data: bytes, implicit_vr: bool, little_endian: bool) -> None:
        """Add a sequence whose items are parsed as they are asked for.

        Parameters
        ----------
        tag : int
            Tag of the sequence.
        data : bytes
            Its items.
        implicit_vr, little_endian : bool
            Their encoding.

        """
        items = self._lazy_items(data, implicit_vr, little_endian)
        items.is_undefined_length = True
        self[tag] = DataElement(tag, "SQ", items)

    def _lazy_items(self, data: bytes, implicit_vr: bool, little_endian: bool) -> LazySequence:
        charset = self.original_character_set
        parse = partial(_parsed_item, str(self.filename), implicit_vr, little_endian, charset)
        return LazySequence(data, implicit_vr, little_endian, charset, parse)


def _parsed_item(
    name: str, implicit_vr: bool, little_endian: bool, charset: Any, item: bytes
) -> LenientDataset:
    with errors_of_headers(name):
        plain, _ = read_dataset(
            MemoryBlob(name, item), 0, implicit_vr=implicit_vr, little_endian=little_endian
        )
        plain.set_original_encoding(implicit_vr, little_endian, charset)
        return LenientDataset(plain, name)
