"""Palette Color Lookup Tables of optical paths: recommended false colours (PS3.3 C.7.9)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.errors import MetadataWarning
from dicomslide.header import dicom
from dicomslide.process.warn import warn

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

__all__ = ["hex_color", "palette_of", "strongest"]

SAMPLES = ("Red", "Green", "Blue")
MOST_ENTRIES = 1 << 16
"""Number of entries that a descriptor writes as 0 (PS3.3 C.7.6.3.1.5)."""
DISCRETE, LINEAR = range(2)
"""Opcodes of segments (PS3.3 C.7.9.2); indirect ones, 2, aren't read."""


def palette_of(path: Dataset) -> NDArray[np.uint8] | None:
    """Return the Palette Color Lookup Table of an optical path: colours from dark to bright.

    Parameters
    ----------
    path : pydicom.dataset.Dataset
        Item of the Optical Path Sequence.

    Returns
    -------
    numpy.ndarray or None
        Red, green and blue, shape (entries, 3), uint8; None where there is no table, or, with a
        warning, where it can't be read.

    """
    for item in dicom.items(path, "PaletteColorLookupTableSequence"):
        try:
            tables = [_table(item, sample) for sample in SAMPLES]
            if all(table is None for table in tables):
                return None  # a reply of a server without bulk data
            entries: NDArray[np.integer[Any]] = np.stack(tables, axis=-1)  # type: ignore[arg-type]
            # some writers declare 16 bits, but fill 8
            return (entries >> (8 if entries.max() > 255 else 0)).astype(np.uint8)
        except (ValueError, TypeError, IndexError, AttributeError) as error:
            warn(
                f"optical path {dicom.text(path, 'OpticalPathIdentifier')}: its Palette Color"
                f" Lookup Table can't be read, and isn't used: {error}",
                MetadataWarning,
            )
    return None


def _table(item: Dataset, sample: str) -> NDArray[np.integer[Any]] | None:
    """Return the entries of one sample; None where they are absent."""
    plain: Any = item.get(f"{sample}PaletteColorLookupTableData")
    segmented: Any = item.get(f"Segmented{sample}PaletteColorLookupTableData")
    if not plain and not segmented:
        return None
    described = dicom.numbers(item, f"{sample}PaletteColorLookupTableDescriptor", 3)
    if described is None:
        raise ValueError(f"there is no descriptor of three numbers for {sample.lower()}")
    entries, bits = int(described[0]) or MOST_ENTRIES, int(described[2])
    if bits not in (8, 16):
        raise ValueError(f"entries of {bits} bits; expected 8 or 16")
    encoding = getattr(item, "original_encoding", (None, True))
    # OW: 16-bit words in the byte order of the file (PS3.5 A.3), entries of 8 bits in pairs
    words = np.frombuffer(plain or segmented, ">u2" if encoding[1] is False else "<u2")
    # entries of 8 bits may take 16 bits each
    is_wide = bits == 16 or bool(plain and len(plain) >= 2 * entries)
    values = words if is_wide else words.astype("<u2").view(np.uint8)
    if not plain:
        values = np.array(_expanded(values))
    if len(values) < entries:
        raise ValueError(f"{len(values)} entries for {sample.lower()}; expected {entries}")
    return values[:entries]


def _expanded(words: NDArray[Any]) -> list[int]:
    """Expand a segmented table: runs of values, and straight lines to a value."""
    numbers = words.tolist()
    found: list[int] = []
    at = 0
    while at + 1 < len(numbers):
        opcode, length = numbers[at : at + 2]
        if opcode == DISCRETE:
            found += numbers[at + 2 : at + 2 + length]
            at += 2 + length
        elif opcode == LINEAR and found:
            line = np.linspace(found[-1], numbers[at + 2], length + 1)[1:]
            found += np.floor(line + 0.5).astype(int).tolist()
            at += 3
        else:
            raise ValueError(f"a segment of opcode {opcode}; expected 0, or 1 after values")
        if len(found) > MOST_ENTRIES:
            raise ValueError(f"more than {MOST_ENTRIES} entries")
    return found


def strongest(palette: NDArray[np.uint8]) -> str:
    """Return the colour of a palette that stands for it: the brightest, as ``#RRGGBB``."""
    brightest = palette[int(palette.sum(axis=1, dtype=np.int64).argmax())]
    return hex_color(brightest.tolist())


def hex_color(rgb: Any) -> str:
    """Return red, green and blue, 0 to 255, as ``#RRGGBB``."""
    return "#" + "".join(f"{int(part):02X}" for part in rgb)
