"""Writer of synthetic images as Part 10 files."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.header.elements import ElementEncoder, decimal
from dicomslide.pixels import DECODERS
from dicomslide.testing.encode import encode_frame
from dicomslide.testing.image import UID_ROOT, SyntheticImage, header_of

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from pydicom.dataset import Dataset

__all__ = ["write_image"]


def _per_frame_groups(image: SyntheticImage, writer: ElementEncoder) -> bytes:
    grid, geometry = image.grid, image.geometry
    several_paths = len(image.optical_paths) > 1
    groups = []
    for channel, plane, tile in image.places():
        row, column = grid.position(tile)
        first = row * grid.tile_rows, column * grid.tile_columns
        x, y = geometry.to_slide(first).tolist()
        index = writer.pack("3I", row + 1, column + 1, plane + 1)
        content = writer.sequence(0x00209111, writer.item(writer.element(0x00209157, "UL", index)))
        if several_paths:
            identifier = writer.text(0x00480106, "SH", image.optical_paths[channel])
            content += writer.sequence(0x00480207, writer.item(identifier))
        content += writer.sequence(
            0x0048021A,
            writer.item(
                writer.text(0x0040072A, "DS", decimal(x))
                + writer.text(0x0040073A, "DS", decimal(y))
                + writer.text(0x0040074A, "DS", decimal(image.planes[plane]))
                + writer.element(0x0048021E, "SL", writer.pack("i", first[1] + 1))
                + writer.element(0x0048021F, "SL", writer.pack("i", first[0] + 1))
            ),
        )
        groups.append(writer.item(content))
    return writer.sequence(0x52009230, b"".join(groups))


def _write_frames(file: Any, image: SyntheticImage, writer: ElementEncoder) -> None:
    """Write offset tables and frames; the tables are filled in after the frames."""
    places = image.places()
    count = len(places)
    extended = image.offset_table == "extended"
    table_at = file.tell()
    if extended:
        for tag in (0x7FE00001, 0x7FE00002):
            file.write(writer.element(tag, "OV", bytes(8 * count)))
    file.write(writer.element(0x7FE00010, "OB", b"", 0xFFFFFFFF))
    basic = image.offset_table == "basic"
    file.write(writer.fragment(bytes(4 * count if basic else 0)))
    base = file.tell()
    offsets: list[int] = []
    lengths: list[int] = []
    written: dict[bytes, int] = {}
    for place in places:
        if image.encoded is not None:
            frame = image.encoded(*place)
        else:
            frame = encode_frame(image.tile(*place), image.pixel_format, image.transfer_syntax_uid)
        frame += b"\0" * (len(frame) % 2)
        lengths.append(len(frame))
        if image.share_frames and frame in written:
            offsets.append(written[frame])
            continue
        offsets.append(file.tell() - base)
        written[frame if image.share_frames else b""] = offsets[-1]
        size = -(-len(frame) // (2 * image.fragments)) * 2
        for at in range(0, max(len(frame), 1), max(size, 1)):
            file.write(writer.fragment(frame[at : at + size]))
    file.write(writer.end_of_sequence())
    if extended:
        file.seek(table_at)
        for tag, values in ((0x7FE00001, offsets), (0x7FE00002, lengths)):
            file.write(writer.element(tag, "OV", struct.pack(f"<{count}Q", *values)))
    elif basic:
        file.seek(base - 4 * count)
        file.write(struct.pack(f"<{count}I", *offsets))


def _write_native(file: Any, image: SyntheticImage, writer: ElementEncoder) -> None:
    fmt = image.pixel_format
    tiles = [image.tile(*place) for place in image.places()]
    if fmt.bits_allocated == 1:  # frames aren't padded to whole bytes
        data = np.packbits(np.concatenate([t.ravel() for t in tiles]), bitorder="little").tobytes()
    else:
        data = b"".join(encode_frame(t, fmt, image.transfer_syntax_uid) for t in tiles)
    data += b"\0" * (len(data) % 2)
    tag = {False: 0x7FE00010, True: 0x7FE00008 if fmt.bits_allocated == 32 else 0x7FE00009}
    vr = {32: "OF", 64: "OD"}[fmt.bits_allocated] if fmt.floating else "OW"
    if not writer.little_endian and fmt.bits_allocated in (1, 8):
        # PS3.5 A.3: OW is a string of 16-bit words in the transfer syntax' byte order
        data = np.frombuffer(data, np.uint8).reshape(-1, 2)[:, ::-1].tobytes()
    file.write(writer.element(tag[fmt.floating], vr, data))


def write_image(
    path: str | os.PathLike[str],
    image: SyntheticImage,
    *,
    change: Callable[[Dataset], None] | None = None,
) -> Path:
    """Write a synthetic image as a Part 10 file.

    Parameters
    ----------
    path : path-like
        File to write.
    image : SyntheticImage
        Description of the image.
    change : callable, optional
        Modifies the header, a pydicom data set, before it is written, such as to an invalid one.

    Returns
    -------
    pathlib.Path
        The file.

    """
    from pydicom.dataset import FileMetaDataset
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_dataset, write_file_meta_info
    from pydicom.uid import UID

    decoder = DECODERS[image.transfer_syntax_uid]
    dataset = header_of(image)
    if change is not None:
        change(dataset)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = UID(image.transfer_syntax_uid)
    meta.ImplementationClassUID = UID(UID_ROOT + "1")
    writer = ElementEncoder(decoder.little_endian, decoder.implicit_vr, image.undefined_lengths)
    head = DicomBytesIO()
    head.is_little_endian, head.is_implicit_VR = decoder.little_endian, decoder.implicit_vr
    write_dataset(head, dataset)
    path = Path(path)
    with open(path, "wb") as file:
        group_2 = DicomBytesIO()
        write_file_meta_info(group_2, meta, enforce_standard=True)
        file.write(bytes(128) + b"DICM" + group_2.getvalue())
        body = io.BytesIO() if decoder.deflated else file
        body.write(head.getvalue())
        if image.sparse:
            body.write(_per_frame_groups(image, writer))
        (_write_frames if decoder.encapsulated else _write_native)(body, image, writer)
        if isinstance(body, io.BytesIO):
            data = zlib.compress(body.getvalue(), wbits=-15)
            file.write(data + b"\0" * (len(data) % 2))
    return path
