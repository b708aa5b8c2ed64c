"""Encoder of elements and items, for parts of a file that pydicom would write too slowly."""

from __future__ import annotations

import dataclasses
import struct
from typing import Any

from dicomslide.header.per_frame import LONG_VRS, UNDEFINED

__all__ = ["ElementEncoder", "decimal"]


@dataclasses.dataclass(frozen=True, slots=True)
class ElementEncoder:
    """Encoder of elements in a transfer syntax."""

    little_endian: bool = True
    implicit_vr: bool = False
    undefined_lengths: bool = False
    """Whether sequences and items end with delimiters, and have no length."""

    def pack(self, layout: str, *values: Any) -> bytes:
        """Return numbers in the byte order of the syntax, by a format of :mod:`struct`."""
        return struct.pack(("<" if self.little_endian else ">") + layout, *values)

    def element(self, tag: int, vr: str, value: bytes, length: int | None = None) -> bytes:
        """Return an element; `length` if it isn't that of `value`, which may follow later."""
        head = self.pack("HH", tag >> 16, tag & 0xFFFF)
        size = len(value) if length is None else length
        if self.implicit_vr:
            return head + self.pack("I", size) + value
        if vr.encode() in LONG_VRS:
            return head + vr.encode() + bytes(2) + self.pack("I", size) + value
        return head + vr.encode() + self.pack("H", size) + value

    def text(self, tag: int, vr: str, value: str) -> bytes:
        """Return an element of text, padded to an even length."""
        return self.element(tag, vr, (value + " " * (len(value) % 2)).encode())

    def item(self, content: bytes) -> bytes:
        """Return an item of a sequence."""
        head = self.pack("HH", 0xFFFE, 0xE000)
        if not self.undefined_lengths:
            return head + self.pack("I", len(content)) + content
        return head + self.pack("I", UNDEFINED) + content + self.pack("HHI", 0xFFFE, 0xE00D, 0)

    def fragment(self, content: bytes) -> bytes:
        """Return an item of encapsulated pixel data, or an offset table (PS3.5 A.4)."""
        return self.pack("HHI", 0xFFFE, 0xE000, len(content)) + content

    def end_of_sequence(self) -> bytes:
        """Return the delimiter of a sequence, or of encapsulated pixel data."""
        return self.pack("HHI", 0xFFFE, 0xE0DD, 0)

    def sequence(self, tag: int, items: bytes) -> bytes:
        """Return a sequence of encoded items."""
        if not self.undefined_lengths:
            return self.element(tag, "SQ", items)
        return self.element(tag, "SQ", items, UNDEFINED) + self.end_of_sequence()


def decimal(value: float) -> str:
    """Format a number as a Decimal String (DS) of at most 16 characters."""
    for digits in range(16, 0, -1):
        text = f"{value:.{digits}g}"
        if len(text) <= 16:
            return text
    raise ValueError(value)
