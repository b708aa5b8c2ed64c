"""Writes tiled TIFF files, which libopenslide opens and DICOM readers don't."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SHORT, LONG = 3, 4
EDGE = 64
"""Rows and columns of a tile."""


def write_tiff(path: Path, pixels: NDArray[np.uint8]) -> Path:
    """Write pixels of shape (rows, columns, 3) without compression; return the path."""
    rows, columns, samples = pixels.shape
    down, across = -(-rows // EDGE), -(-columns // EDGE)
    padded = np.zeros((down * EDGE, across * EDGE, samples), np.uint8)
    padded[:rows, :columns] = pixels
    tiles = padded.reshape(down, EDGE, across, EDGE, samples).swapaxes(1, 2)
    size = EDGE * EDGE * samples
    tags = (
        (256, LONG, [columns]),
        (257, LONG, [rows]),
        (258, SHORT, [8] * samples),
        (259, SHORT, [1]),  # no compression
        (262, SHORT, [2]),  # RGB
        (277, SHORT, [samples]),
        (284, SHORT, [1]),  # samples lie together
        (322, LONG, [EDGE]),
        (323, LONG, [EDGE]),
        (324, LONG, [8 + tile * size for tile in range(down * across)]),
        (325, LONG, [size] * (down * across)),
    )
    directory = 8 + tiles.nbytes
    values_at = directory + 2 + 12 * len(tags) + 4
    entries, further = b"", b""
    for tag, kind, values in tags:
        data = struct.pack(f"<{len(values)}{'H' if kind == SHORT else 'I'}", *values)
        entries += struct.pack("<HHI", tag, kind, len(values))
        if len(data) > 4:
            entries += struct.pack("<I", values_at + len(further))
            further += data
        else:
            entries += data.ljust(4, b"\0")
    head = struct.pack("<2sHI", b"II", 42, directory)
    path.write_bytes(
        head + tiles.tobytes() + struct.pack("<H", len(tags)) + entries + bytes(4) + further
    )
    return path
