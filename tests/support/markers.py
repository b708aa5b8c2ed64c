"""Synthetic slides of several channels, with headers of one's own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from dicomslide.header.geometry import SlideGeometry
from dicomslide.pixels import PixelFormat
from dicomslide.testing.drawing import PositionDrawing
from dicomslide.testing.image import SyntheticImage
from dicomslide.testing.write import write_image

GEOMETRY = SlideGeometry((18.0, 32.0), (0.0, -1.0), (-1.0, 0.0), (0.0005, 0.0005), (70, 100))


def item(**elements):
    """Return a data set of elements."""
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def code(value, scheme, meaning):
    """Return an item of a code sequence."""
    return item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


@dataclasses.dataclass(frozen=True)
class SignedDrawing(PositionDrawing):
    """Positions as signed values of few bits."""

    bits: int = 12

    def tile(self, rows, columns, channel, plane):
        values = super().tile(rows, columns, channel, plane).astype(np.int64)
        return (values % (1 << self.bits) - (1 << self.bits - 1)).astype(self.dtype)


def write_markers(
    path,
    paths,
    *,
    bits=16,
    geometry=GEOMETRY,
    tile=(32, 32),
    change=None,
    number=1,
    series=None,
    **options,
):
    """Write an image whose optical paths are described by data sets.

    Parameters
    ----------
    path : path-like
        File to write.
    paths : sequence of dict
        Elements of the items of the Optical Path Sequence, without defaults.
    series : str, optional
        Series Instance UID.
    change : callable, optional
        Modifies the header in the end.

    Returns
    -------
    pathlib.Path
        The file.

    """
    described = [item(**{"OpticalPathIdentifier": str(i + 1), **each}) for i, each in
                 enumerate(paths)]  # fmt: skip
    pixels = PixelFormat(
        rows=tile[0], columns=tile[1], bits_allocated=8 if bits <= 8 else 16, bits_stored=bits
    )
    image = SyntheticImage(
        geometry=geometry,
        drawing=options.pop("drawing", PositionDrawing(1, pixels.dtype)),
        pixel_format=pixels,
        optical_paths=tuple(each.OpticalPathIdentifier for each in described),
        instance_number=number,
        **options,
    )

    def changed(header):
        header.OpticalPathSequence = described
        if series is not None:
            header.SeriesInstanceUID = series
        if change is not None:
            change(header)

    return write_image(Path(path), image, change=changed)


def palette(entries, *, bits=16, first=0, segmented=False, order="<"):
    """Return a Palette Color Lookup Table Sequence of entries of red, green and blue, 0 to 255."""
    entries = np.asarray(entries)
    table = Dataset()
    for sample, name in enumerate(("Red", "Green", "Blue")):
        values = entries[:, sample].astype(f"<u{bits // 8}") * (257 if bits == 16 else 1)
        table.add_new(0x00281101 + sample, "US", [len(entries) % 65536, first, bits])
        if segmented:  # one value, and a line to the last one
            values = np.array([0, 1, values[0], 1, len(values) - 1, values[-1]], values.dtype)
        keyword = f"{'Segmented' if segmented else ''}{name}PaletteColorLookupTableData"
        setattr(table, keyword, values.view("<u2").astype(f"{order}u2").tobytes())
    return [table]
