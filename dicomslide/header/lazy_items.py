"""Items of a sequence that are parsed one by one, as they are asked for.

A segmentation may describe tens of thousands of segments: to parse all of them by pydicom takes
seconds. Values of all items are found by NumPy instead, which steps through the elements of all
items side by side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom.charset import convert_encodings
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.sequence import Sequence

from dicomslide.header import dicom
from dicomslide.header.per_frame import LONG_VRS, UNDEFINED, end_of_sequence, item_spans

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

__all__ = ["LazySequence"]

HEAD = 12
"""Bytes of the longest header of an element."""
PER_ITEM = 300
"""Approximate memory of the position and of the values of an item, in bytes."""
_TEXTS = frozenset({"CS", "LO", "LT", "SH", "ST", "UT"})
_LONG = np.frombuffer(b"".join(sorted(LONG_VRS)), "<u2")


class LazySequence(Sequence):
    """Sequence of pydicom whose items are parsed as they are asked for.

    An operation other than `len`, an index or a loop parses all of them.

    Parameters
    ----------
    data : bytes
        The value of the sequence.
    implicit_vr, little_endian : bool
        Its encoding.
    charset : str or sequence of str
        Specific Character Set of the data set.
    parse : callable
        Function of bytes that returns the data set that they encode.

    Raises
    ------
    MetadataError
        When the bytes aren't those of items.

    """

    is_lazy = True

    def __init__(
        self,
        data: bytes,
        implicit_vr: bool,
        little_endian: bool,
        charset: Any,
        parse: Callable[[bytes], Dataset],
    ) -> None:
        self._all: list[Dataset] | None = None
        super().__init__()
        self._data = data
        self._implicit_vr = implicit_vr
        self._little_endian = little_endian
        self._encodings = convert_encodings(charset)
        self._parse = parse
        spans = item_spans(data, implicit_vr=implicit_vr, little_endian=little_endian)
        self._spans = np.array(spans, np.int64).reshape(-1, 2)
        self._parsed: list[Dataset | None] = [None] * len(spans)
        self._values: dict[str, list[Any]] = {}
        self._ends: dict[int, int] = {}
        self._all = None

    @property
    def _list(self) -> list[Dataset]:
        """All items: what pydicom's operations work on."""
        if self._all is None:
            self._all = list(self)
        return self._all

    @_list.setter
    def _list(self, items: list[Dataset]) -> None:
        self._all = items

    @property
    def nbytes(self) -> int:
        """Bytes in memory, approximately."""
        return len(self._data) + PER_ITEM * len(self)

    def __len__(self) -> int:
        return len(self._parsed) if self._all is None else len(self._all)

    def __getitem__(self, at: Any) -> Any:
        if self._all is not None:
            return self._all[at]
        if isinstance(at, slice):
            return [self[index] for index in range(*at.indices(len(self)))]
        item = self._parsed[at]
        if item is None:
            start, stop = self._spans[at].tolist()
            item = self._parsed[at] = self._parse(self._data[start:stop])
        return item

    def __iter__(self) -> Iterator[Dataset]:
        return (self[at] for at in range(len(self)))

    def values(self, keyword: str) -> list[Any]:
        """Return the value of an element of each item; None where it is absent.

        Values that are equal bytes are converted once.
        """
        if self._all is not None:
            return [item.get(keyword) for item in self._all]
        found = self._values.get(keyword)
        if found is None:
            found = self._values[keyword] = self._values_of(keyword)
        return found

    def meanings(self, keyword: str) -> list[str | None]:
        """Return the Code Meaning of the first code of an element of each item, else None.

        Codes that are equal bytes are read once.
        """
        if self._all is not None:
            return [dicom.meaning_of(item.get(keyword)) for item in self._all]
        found = self._values.get(f"{keyword}: meaning")
        if found is None:
            codes = self.values(keyword)
            by_object = {id(each): each for each in codes}
            meanings = {at: dicom.meaning_of(each) for at, each in by_object.items()}
            found = self._values[f"{keyword}: meaning"] = [meanings[id(each)] for each in codes]
        return found

    def _values_of(self, keyword: str) -> list[Any]:
        tag = tag_for_keyword(keyword)
        assert tag is not None
        first, start, stop, unclear = self._find(tag)
        found: list[Any] = [None] * len(self)
        if dictionary_VR(tag) == "US" and np.all(stop - start == 2):
            order = "<u2" if self._little_endian else ">u2"
            return self._bytes[start[:, None] + (0, 1)].view(order)[:, 0].tolist()
        text = dictionary_VR(tag) in _TEXTS and len(self._encodings) == 1
        converted: dict[bytes, Any] = {}
        spans = zip(first.tolist(), start.tolist(), stop.tolist(), unclear.tolist(), strict=True)
        for at, (begin, value, end, is_unclear) in enumerate(spans):
            if is_unclear or self._parsed[at] is not None:  # perhaps it was changed
                found[at] = self[at].get(keyword)
                continue
            if end < 0:
                continue
            data = self._data[begin:end]
            if data not in converted:
                plain = self._data[value:end]
                converted[data] = (
                    plain.decode(self._encodings[0], "replace").rstrip("\0 ")
                    if text and b"\\" not in plain
                    else self._parse(data).get(keyword)
                )
            found[at] = converted[data]
        return found

    @property
    def _bytes(self) -> NDArray[np.uint8]:
        return np.frombuffer(self._data + bytes(HEAD), np.uint8)  # so that heads can be read

    def _find(self, tag: int) -> tuple[NDArray[Any], ...]:
        """Find an element of each item.

        Returns
        -------
        first, start, stop : numpy.ndarray
            Offsets of the element, its value and its end; -1 where it is absent.
        unclear : numpy.ndarray
            Whether the item has to be parsed to find out.

        """
        count = len(self)
        data = self._bytes
        first, start, stop = (np.full(count, -1, np.int64) for _ in range(3))
        unclear = np.zeros(count, np.bool_)
        at, end = self._spans[:, 0].copy(), self._spans[:, 1]
        left = np.arange(count)
        while left.size:
            here, last = at[left], end[left]
            unclear[left[(here < last) & (here + 8 > last)]] = True
            left = left[here + 8 <= last]
            here, last = at[left], end[left]
            tags = self._number(data, here, 2) << 16 | self._number(data, here + 2, 2)
            if self._implicit_vr:
                head, length = np.full(len(left), 8), self._number(data, here + 4, 4)
            else:
                is_long = np.isin(data[here[:, None] + (4, 5)].view("<u2")[:, 0], _LONG)
                head = np.where(is_long, 12, 8)
                length = np.where(
                    is_long, self._number(data, here + 8, 4), self._number(data, here + 6, 2)
                )
            value = here + head
            ends = value + length
            for index in np.flatnonzero((length == UNDEFINED) & (tags <= tag)).tolist():
                ends[index] = self._end_of_sequence(int(value[index]))
            is_odd = (tags <= tag) & (ends > last)
            unclear[left[is_odd]] = True
            is_found = (tags == tag) & ~is_odd
            place = left[is_found]
            first[place], start[place], stop[place] = (
                each[is_found] for each in (here, value, ends)
            )
            goes_on = (tags < tag) & ~is_odd
            at[left[goes_on]] = ends[goes_on]
            left = left[goes_on]
        return first, start, stop, unclear

    def _end_of_sequence(self, at: int) -> int:
        """Return the end of a sequence of undefined length whose items begin at `at`."""
        end = self._ends.get(at)
        if end is None:
            end = self._ends[at] = end_of_sequence(
                self._data,
                at,
                implicit_vr=self._implicit_vr,
                little_endian=self._little_endian,
            )
        return end

    def _number(
        self, data: NDArray[np.uint8], at: NDArray[np.int64], size: int
    ) -> NDArray[np.int64]:
        shifts = range(size) if self._little_endian else reversed(range(size))
        found = np.zeros(len(at), np.int64)
        for offset, shift in enumerate(shifts):
            found |= data[at + offset].astype(np.int64) << 8 * shift
        return found
