"""Synthetic files that do what real ones do, for the tests of quirks."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pydicom
from pydicom.uid import UID, generate_uid

import dicomslide
from dicomslide.header.geometry import SlideGeometry
from dicomslide.pixels import PixelFormat
from dicomslide.testing import (
    PositionDrawing,
    SyntheticImage,
    position_values,
    write_image,
    write_slide,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROOT = "1.2.840.10008.1.2"
NATIVE, BIG_ENDIAN, RLE = f"{ROOT}.1", f"{ROOT}.2", f"{ROOT}.5"
BASELINE, EXTENDED = f"{ROOT}.4.50", f"{ROOT}.4.51"
JPEG_LS, J2K = f"{ROOT}.4.80", f"{ROOT}.4.90"
SHAPE, TILE = (50, 70), (16, 32)  # 4 × 3 tiles
TYPICAL = (0.0, -1.0, 0.0, -1.0, 0.0, 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arranged(SyntheticImage):
    """An image of which some frames are written, in some order."""

    arrange: Callable[[list[tuple[int, int, int]]], list[tuple[int, int, int]]] = list

    def places(self) -> list[tuple[int, int, int]]:
        """Return (channel, plane, tile) of each frame."""
        return self.arrange(super().places())


def write(
    path: Path,
    uid: str = NATIVE,
    *,
    shape: tuple[int, int] = SHAPE,
    tile: tuple[int, int] = TILE,
    samples: int = 3,
    bits: int = 8,
    orientation: tuple[float, ...] = TYPICAL,
    change: Callable[[pydicom.Dataset], None] | None = None,
    **options: Any,
) -> Path:
    """An image whose pixels tell where they are."""
    allocated = max(8, -(-bits // 8) * 8) if bits > 1 else 1
    pixel_format = PixelFormat(
        rows=tile[0], columns=tile[1], samples=samples, bits_allocated=allocated, bits_stored=bits
    )
    geometry = SlideGeometry((10.0, 20.0), orientation[:2], orientation[3:5], (0.001, 0.001), shape)
    image = Arranged(
        **dict(
            geometry=geometry,
            drawing=PositionDrawing(samples, pixel_format.dtype),
            pixel_format=pixel_format,
            transfer_syntax_uid=uid,
        )
        | options
    )
    with pydicom.config.disable_value_validation():
        return write_image(path, image, change=change)


def setting(**values: Any) -> Callable[[pydicom.Dataset], None]:
    """Sets elements, and removes those whose value is ``...``."""

    def change(dataset: pydicom.Dataset) -> None:
        for keyword, value in values.items():
            if value is not ...:
                setattr(dataset, keyword, value)
            elif keyword in dataset:
                delattr(dataset, keyword)

    return change


def measures(dataset: pydicom.Dataset) -> pydicom.Dataset:
    """Item of the Pixel Measures Sequence in the shared groups."""
    return dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]


def changed(path: Path, change: Callable[[pydicom.Dataset], None]) -> None:
    """Rewrite a file with its data set changed."""
    with pydicom.config.disable_value_validation():
        dataset = pydicom.dcmread(path)
        change(dataset)
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(path)


def open_stored(source: Any) -> dicomslide.Slide:
    """A slide in the colours that are stored."""
    return dicomslide.open_slide(source, correct_color=False)


def expected(shape: tuple[int, int] = SHAPE, *place: int, **kind: Any) -> np.ndarray:
    """The pixels of an image."""
    return position_values(np.arange(shape[0]), np.arange(shape[1]), *place, **kind)


def pixels_of(slide: dicomslide.Slide, level: int = 0, **index: int) -> np.ndarray:
    """The whole matrix of a level."""
    return slide.get_image_region((0, 0), level, slide.levels[level].size, **index)


def pyramid(folder: Path, **options: Any) -> list[Path]:
    """A slide of two levels, native."""
    kept = dict(
        shape=(60, 80),
        downsamples=(1, 2),
        tile_shape=(32, 32),
        drawing="position",
        transfer_syntax_uid=NATIVE,
        associated=False,
    )
    return write_slide(folder, **kept | options)


def split_in_two(path: Path) -> None:
    """Make a concatenation of an image of native frames."""
    whole = pydicom.dcmread(path)
    count, size = int(whole.NumberOfFrames), len(whole.PixelData) // int(whole.NumberOfFrames)
    for number, (first, last) in enumerate([(0, 1), (1, count)], 1):
        part = copy.deepcopy(whole)
        part.NumberOfFrames = last - first
        part.ConcatenationUID = "2.25.7"
        part.InConcatenationNumber, part.ConcatenationFrameOffsetNumber = number, first
        part.SOPInstanceUID = part.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        part.SOPInstanceUIDOfConcatenationSource = whole.SOPInstanceUID
        part.PixelData = whole.PixelData[first * size : last * size]
        part.save_as(path.with_name(f"part-{number}.dcm"))
    path.unlink()


def pixels_of_image(image: dicomslide.TiledImage) -> np.ndarray:
    return image.get_total_pixel_matrix()[...]


class Ramp:
    """Something to draw in 12 bits."""

    def tile(self, rows, columns, channel, plane):
        return (rows[:, None] * 31 + columns * 23)[:, :, None].astype(np.uint16)


def twelve_bits():
    return SyntheticImage(
        geometry=SlideGeometry((10.0, 20.0), (0.0, -1.0), (-1.0, 0.0), (0.001, 0.001), (60, 70)),
        drawing=Ramp(),
        pixel_format=PixelFormat(rows=32, columns=32, bits_allocated=16, bits_stored=12),
        transfer_syntax_uid=EXTENDED,
    )


def bit_packed(folder, rows=10, columns=10, count=5):
    """Write a segmentation whose frames don't begin with a byte; return its pixels."""
    write_slide(folder, shape=(rows, columns * count), downsamples=(1,),
                tile_shape=(rows, columns), samples=1, transfer_syntax_uid=NATIVE,
                drawing="position", associated=False)  # fmt: skip
    path = folder / "level-0.dcm"
    dataset = pydicom.dcmread(path)
    bits = np.random.default_rng(3).integers(0, 2, (count, rows, columns), np.uint8)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = UID(
        "1.2.840.10008.5.1.4.1.1.66.4"
    )
    dataset.SegmentationType = "BINARY"
    segment = pydicom.Dataset()
    segment.SegmentNumber, segment.SegmentLabel = 1, "Nuclei"
    dataset.SegmentSequence = [segment]
    dataset.BitsAllocated = dataset.BitsStored = 1
    dataset.HighBit = 0
    dataset.PixelData = np.packbits(bits.ravel(), bitorder="little").tobytes()
    dataset.PixelData += b"\0" * (len(dataset.PixelData) % 2)
    dataset.save_as(path)
    return np.concatenate(list(bits), axis=1)[:, :, None].astype(bool)
