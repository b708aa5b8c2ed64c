"""Part 10 files around frames: preamble, header, groups of each frame, and offset tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dicomslide._version import __version__
from dicomslide.header.elements import ElementEncoder
from dicomslide.header.per_frame import UNDEFINED

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydicom.dataset import Dataset

    from dicomslide.write.frames import FrameForm

__all__ = ["ENCODER", "PREAMBLE", "encapsulated_head", "encapsulated_tail", "encoded", "file_head",
           "native_head", "per_frame_groups"]  # fmt: skip

PREAMBLE = bytes(128) + b"DICM"
"""Beginning of a file, by which readers know it (PS3.10 7.1)."""
IMPLEMENTATION_UID = "2.25.225671395389331217190152826211464061721"
"""Implementation Class UID: a random UUID of this package."""
ENCODER = ElementEncoder()
"""Explicit VR Little Endian, as the data set of every transfer syntax that is written."""
PIXEL_DATA, FLOAT_PIXEL_DATA, DOUBLE_FLOAT_PIXEL_DATA = 0x7FE00010, 0x7FE00008, 0x7FE00009
OFFSET_TABLE, OFFSET_TABLE_LENGTHS = 0x7FE00001, 0x7FE00002
PER_FRAME_GROUPS = 0x52009230


def file_head(header: Dataset, transfer_syntax_uid: str) -> bytes:
    """Return a file up to its last element before the groups of each frame and the pixels."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_file_meta_info
    from pydicom.uid import UID

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = header.SOPClassUID
    meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    meta.TransferSyntaxUID = UID(transfer_syntax_uid)
    meta.ImplementationClassUID = UID(IMPLEMENTATION_UID)
    meta.ImplementationVersionName = f"dicomslide {__version__}"[:16]
    group_2 = DicomBytesIO()
    write_file_meta_info(group_2, meta, enforce_standard=True)
    return PREAMBLE + bytes(group_2.getvalue()) + encoded(header)


def encoded(dataset: Dataset) -> bytes:
    """Return the elements of a data set or item, in Explicit VR Little Endian."""
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_dataset

    body = DicomBytesIO()
    body.is_little_endian, body.is_implicit_VR = True, False
    write_dataset(body, dataset)
    return bytes(body.getvalue())


def native_head(form: FrameForm, nbytes: int) -> bytes:
    """Return the beginning of the element of native pixels; `nbytes` includes padding."""
    if form.dtype.kind == "f":
        is_double = form.dtype.itemsize == 8
        tag = DOUBLE_FLOAT_PIXEL_DATA if is_double else FLOAT_PIXEL_DATA
        return ENCODER.element(tag, "OD" if is_double else "OF", b"", nbytes)
    vr = "OB" if form.bits_allocated <= 8 else "OW"
    return ENCODER.element(PIXEL_DATA, vr, b"", nbytes)


def encapsulated_head(lengths: Sequence[int]) -> bytes:
    """Return offset table and beginning of encapsulated pixels (PS3.3 C.7.6.3.1.8).

    Parameters
    ----------
    lengths : sequence of int
        Bytes of each frame, which are even; each is one fragment.

    """
    sizes = np.asarray(lengths, "<u8")
    offsets = np.zeros(len(sizes), "<u8")
    np.cumsum(sizes[:-1] + 8, out=offsets[1:])  # from the item of the first frame
    return (
        ENCODER.element(OFFSET_TABLE, "OV", offsets.tobytes())
        + ENCODER.element(OFFSET_TABLE_LENGTHS, "OV", sizes.tobytes())
        + ENCODER.element(PIXEL_DATA, "OB", b"", UNDEFINED)
        + ENCODER.fragment(b"")
    )


def encapsulated_tail() -> bytes:
    """Return the end of encapsulated pixels."""
    return ENCODER.end_of_sequence()


def per_frame_groups(groups: Iterable[bytes]) -> Iterable[bytes]:
    """Yield the Per-frame Functional Groups Sequence, given the content of each item."""
    yield ENCODER.element(PER_FRAME_GROUPS, "SQ", b"", UNDEFINED)
    for content in groups:
        yield ENCODER.item(content)
    yield ENCODER.end_of_sequence()
