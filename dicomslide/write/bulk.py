"""Files of bulk annotations: small elements by pydicom, bulky ones from arrays, piece by piece."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.errors import AnnotationError
from dicomslide.header.per_frame import UNDEFINED
from dicomslide.pixels.decode import NATIVE
from dicomslide.write.part10 import ENCODER, PREAMBLE, encoded, file_head
from dicomslide.write.stream import Finished

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

__all__ = ["Bulk", "write_bulk"]

GROUPS = 0x006A0002
"""Annotation Group Sequence"""
PIECE = 2**17
"""Rows of an array that are converted and written at a time."""
LONGEST = 2**32 - 2


@dataclasses.dataclass(frozen=True, eq=False)
class Bulk:
    """An element whose value is an array."""

    tag: int
    vr: str
    values: NDArray[Any]
    stored: np.dtype[Any]
    """Data type as stored, little-endian."""

    def parts(self) -> Iterator[bytes | memoryview]:
        """Yield the element, without a copy of the whole array."""
        nbytes = self.values.size * self.stored.itemsize
        if nbytes > LONGEST:
            raise AnnotationError(
                f"{nbytes:,} bytes of coordinates don't fit into an element, of {LONGEST:,} bytes"
                " at most: write several groups"
            )
        yield ENCODER.element(self.tag, self.vr, b"", nbytes)
        for start in range(0, len(self.values), PIECE):
            part = np.ascontiguousarray(self.values[start : start + PIECE], self.stored)
            yield part.data.cast("B")


def write_bulk(
    header: Dataset, groups: Sequence[tuple[Dataset, Sequence[Bulk]]], folder: str, name: str
) -> Finished:
    """Write a file of annotations.

    Parameters
    ----------
    header : pydicom.dataset.Dataset
        Data set without groups.
    groups : sequence
        Item of each group without its bulky elements, and these, by ascending tag.
    folder, name : str
        Folder, and name in it.

    """
    path = os.path.join(folder, name)
    with open(path, "xb") as file:
        head = file_head(header[:GROUPS], NATIVE)
        file.write(bytes(len(PREAMBLE)) + head[len(PREAMBLE) :])
        file.write(ENCODER.element(GROUPS, "SQ", b"", UNDEFINED))
        for group, bulks in groups:
            file.write(ENCODER.pack("HHI", 0xFFFE, 0xE000, UNDEFINED))
            first, last = bulks[0].tag, bulks[-1].tag
            file.write(encoded(group[:first]))
            for bulk in bulks:
                for part in bulk.parts():
                    file.write(part)
            file.write(encoded(group[last + 1 :]))
            file.write(ENCODER.pack("HHI", 0xFFFE, 0xE00D, 0))
        file.write(ENCODER.end_of_sequence() + encoded(header[GROUPS:]))
        file.flush()
        os.fsync(file.fileno())  # the preamble makes it a file: never before its content
        file.seek(0)
        file.write(PREAMBLE)
    return Finished(path, name, str(header.SOPInstanceUID))
