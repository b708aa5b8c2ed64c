"""Synthetic files that do what real ones do, for the tests of quirks."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pydicom

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
BASELINE, JPEG_LS = f"{ROOT}.4.50", f"{ROOT}.4.80"
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


def pixels_of_image(image: dicomslide.TiledImage) -> np.ndarray:
    return image.get_total_pixel_matrix()[...]
