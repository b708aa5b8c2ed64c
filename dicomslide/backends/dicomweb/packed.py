"""Metadata from a server as bytes, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dicomslide.backends.dicomweb.dicom_json import BulkData
from dicomslide.backends.net.redaction import public_url
from dicomslide.backends.packing import (
    packed,
    packed_header,
    packed_positions,
    unpacked,
    unpacked_header,
    unpacked_positions,
)
from dicomslide.header.blobs import MemoryBlob

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

__all__ = ["pack", "unpack"]

UTF8 = "ISO_IR 192"
"""Specific Character Set of DICOM JSON (PS3.18 F.2)."""


def pack(header: Dataset, shared: dict[str, bytes]) -> bytes:
    """Return a header with its positions of frames, and the URIs of its bulk data.

    Parameters
    ----------
    header : pydicom.dataset.Dataset
        Metadata with the attribute `frame_positions`.
    shared : dict of str to bytes
        Receives ICC profiles by digest, which aren't in the result.

    """
    from pydicom.dataset import Dataset
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_dataset

    from dicomslide.header.lenient import no_validation

    copy = Dataset({tag: header.get_item(tag) for tag in header.keys()})  # noqa: SIM118
    implicit_vr, little_endian = header.original_encoding
    copy.set_original_encoding(implicit_vr, little_endian, header.original_character_set)
    copy.SpecificCharacterSet = UTF8
    # one with a query may hold a signature; without its URI, the profile is searched for anew
    uris = [(path, uri) for path, uri in _bulk_data(header) if public_url(uri) == uri]
    file = DicomBytesIO()
    file.is_little_endian, file.is_implicit_VR = True, False
    with no_validation():
        write_dataset(file, copy)
    cuts, head = packed_header(file.getvalue(), header, shared)
    values: dict[str, Any] = {"cuts": cuts, "uris": uris}
    arrays: dict[str, NDArray[Any]] = {"head": head}
    if header.frame_positions is not None:
        values["channels"], of_frames = packed_positions(header.frame_positions)
        arrays |= of_frames
    return packed(values, arrays)


def unpack(data: bytes, shared: Mapping[str, bytes], name: str) -> Dataset:
    """Return the header of :func:`pack`.

    Raises
    ------
    KeyError, TypeError, ValueError
        When it isn't such a result.

    """
    from dicomslide.header.lenient import LenientDataset, read_dataset

    values, arrays = unpacked(data)
    head = unpacked_header(values["cuts"], arrays["head"], shared)
    plain, _ = read_dataset(MemoryBlob(name, head), 0)
    header = LenientDataset(plain, name)
    for (*items, tag), uri in values["uris"]:
        item: Any = header
        for at in range(0, len(items), 2):
            item = item[items[at]].value[items[at + 1]]
        value = BulkData()
        value.uri = uri
        item[tag].value = value
    header.frame_positions = None
    if "rows" in arrays:
        header.frame_positions = unpacked_positions(values["channels"], arrays)
    return header


def _bulk_data(dataset: Dataset, path: tuple[int, ...] = ()) -> Iterator[tuple[list[int], str]]:
    """Yield the place of each bulk data, tags and indices of items, with its URI."""
    for tag in dataset.keys():  # noqa: SIM118 - without converting values
        element: Any = dataset.get_item(tag)
        if isinstance(element.value, BulkData):
            yield [*path, int(tag)], element.value.uri
        elif element.VR == "SQ" and not element.is_raw:
            for index, item in enumerate(element.value):
                yield from _bulk_data(item, (*path, int(tag), index))
