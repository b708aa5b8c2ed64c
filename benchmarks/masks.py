"""A mask of the base level: computed and packed, or written as a DICOM Segmentation."""

from __future__ import annotations

import shutil
import tempfile
from typing import TYPE_CHECKING, Any

from benchmarks.reader import PALE

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["packed", "written", "written_by_highdicom"]

TILE = 256
"""Rows and columns of a frame."""


def mask_of(slide: Any, orientation: str = "upright") -> Any:
    """Return where the base level is tissue, lazily."""
    image = slide.to_dataset(chunks="auto", orientation=orientation).image
    return image.isel(sample=1) < PALE


def packed(slide: Any) -> None:
    """Compute the mask and pack its bits, in the order in which they lie in memory."""
    import numpy as np

    def first_bits(block: Any) -> Any:
        return np.packbits(block.ravel(order="K"))[:1].reshape(1, 1).copy()

    data = mask_of(slide).data
    ones = tuple((1,) * count for count in data.numblocks)
    data.map_blocks(first_bits, chunks=ones, dtype=np.uint8).compute()


def written(slide: Any) -> None:
    """Compute the mask and write it."""
    import dicomslide

    folder = tempfile.mkdtemp()
    try:
        dicomslide.write_segmentation(mask_of(slide), slide, folder, segments="tissue")
    finally:
        shutil.rmtree(folder)


def written_by_highdicom(slide: Any, base: Path | str) -> None:
    """Compute the mask and let highdicom write it, in the same form."""
    import highdicom as hd
    import pydicom
    from pydicom.sr.codedict import codes

    mask = mask_of(slide, "stored").values
    source = pydicom.dcmread(base, defer_size=2**20)
    description = hd.seg.SegmentDescription(
        1, "tissue", codes.SCT.Tissue, codes.SCT.Tissue, hd.seg.SegmentAlgorithmTypeValues.MANUAL
    )
    segmentation = hd.seg.Segmentation(
        source_images=[source],
        pixel_array=mask[None],
        segmentation_type="BINARY",
        segment_descriptions=[description],
        series_instance_uid=hd.UID(),
        series_number=1,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="-",
        manufacturer_model_name="-",
        software_versions="-",
        device_serial_number="-",
        tile_pixel_array=True,
        tile_size=(TILE, TILE),
        dimension_organization_type="TILED_FULL",
        omit_empty_frames=False,
    )
    folder = tempfile.mkdtemp()
    try:
        segmentation.save_as(f"{folder}/mask.dcm")
    finally:
        shutil.rmtree(folder)
