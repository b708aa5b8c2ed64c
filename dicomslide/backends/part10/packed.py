"""A parsed file as bytes: its header as stored, and where its frames lie, without the file."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.backends.packing import (
    packed,
    packed_header,
    packed_positions,
    unpacked,
    unpacked_header,
    unpacked_positions,
)
from dicomslide.backends.part10 import frame_index as pixel_data
from dicomslide.backends.part10 import header as part10
from dicomslide.backends.part10.parsed import ParsedFile
from dicomslide.errors import DicomSlideError
from dicomslide.header import dicom
from dicomslide.header.blobs import MemoryBlob

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from dicomslide.backends.part10.local import ChangingBlob

__all__ = ["pack", "unpack"]

ELEMENT_HEADER = 12
"""Bytes of the longest header of an element."""


def pack(parsed: ParsedFile, shared: dict[str, bytes]) -> bytes | None:
    """Return the header of a file, positions and byte ranges of its frames.

    Parameters
    ----------
    parsed : ParsedFile
        The file; of an image without an offset table, the pixel data are scanned.
    shared : dict of str to bytes
        Receives the ICC profiles, by digest, which aren't in the result.

    Returns
    -------
    bytes or None
        None for a deflated data set, whose frames have no byte ranges.

    """
    header = parsed.header
    if header.decoder.deflated:
        return None
    stop = header.per_frame.start if header.per_frame else header.rest + ELEMENT_HEADER
    cuts, head = packed_header(header.blob.read(0, stop), header.dataset, shared)
    values: dict[str, Any] = {"cuts": cuts}
    arrays: dict[str, NDArray[Any]] = {"head": head}
    if dicom.is_tiled_image(header.dataset):
        positions = parsed.positions()
        if positions is not None:
            values["channels"], of_frames = packed_positions(positions)
            arrays |= of_frames
        values["rest"] = parsed.rest
        try:
            frames = parsed.frames()
        except (DicomSlideError, OSError):  # reading a frame raises it, as of the file
            pass
        else:
            pixels = parsed.pixels
            place = [pixels.tag, pixels.start, pixels.length, pixels.vr.decode("latin-1")]
            values["pixels"] = place
            values["frames"], of_frames = _packed_frames(frames)
            arrays |= of_frames
    return packed(values, arrays)


def unpack(
    data: bytes,
    shared: Mapping[str, bytes],
    file: ChangingBlob,
    grown: Callable[[ParsedFile], None],
) -> ParsedFile:
    """Return a parsed file from the result of :func:`pack`; nothing is read of the file.

    Raises
    ------
    KeyError, TypeError, ValueError
        When it isn't such a result.

    """
    values, arrays = unpacked(data)
    head = unpacked_header(values["cuts"], arrays["head"], shared)
    header = part10.read_header(MemoryBlob(file.name, head, file.version))
    parsed = ParsedFile(file, grown, dataclasses.replace(header, blob=file))
    if "rest" in values:
        positions = None
        if "rows" in arrays:
            positions = unpacked_positions(values["channels"], arrays)
        pixels = frames = None
        if "frames" in values:
            tag, start, length, vr = values["pixels"]
            pixels = pixel_data.PixelData(tag, start, length, vr.encode("latin-1"), None, None)
            frames = _unpacked_frames(values["frames"], arrays)
        parsed.fill(positions, values["rest"], pixels, frames)
    return parsed


def _packed_frames(frames: pixel_data.Frames) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    if isinstance(frames, pixel_data.NativeFrames):
        return dataclasses.asdict(frames), {}
    assert isinstance(frames, pixel_data.EncapsulatedFrames)
    arrays = {
        "starts": np.diff(frames.starts, prepend=0),
        "lengths": frames.ends - frames.starts,
    }
    return {"limit": frames.limit, "single": frames.single}, arrays


def _unpacked_frames(
    values: dict[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> pixel_data.Frames:
    if "starts" not in arrays:
        return pixel_data.NativeFrames(**values)
    starts = np.cumsum(arrays["starts"])
    return pixel_data.EncapsulatedFrames(starts, starts + arrays["lengths"], **values)
