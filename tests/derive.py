"""Segmentations of synthetic slides, as highdicom writes them."""

from __future__ import annotations

import highdicom as hd
import pydicom
from pydicom.sr.codedict import codes


def segment(number, label, kind=codes.SCT.Tumor):
    return hd.seg.SegmentDescription(
        number,
        label,
        codes.SCT.MorphologicallyAbnormalStructure,
        kind,
        hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        hd.AlgorithmIdentificationSequence("net", codes.DCM.ArtificialIntelligence, "1"),
    )


SEGMENTS = (segment(1, "tumour"), segment(2, "stroma", codes.SCT.ConnectiveTissue))


def write_segmentation(path, source, pixels, kind, *, segments=SEGMENTS, series=None, **options):
    """Let highdicom write a segmentation of an image; pixels (rows, columns[, segments])."""
    segmentation = hd.seg.Segmentation(
        source_images=[pydicom.dcmread(source)],
        pixel_array=pixels[None],
        segmentation_type=kind,
        segment_descriptions=list(segments),
        series_instance_uid=series or hd.UID(),
        series_number=5,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="m",
        manufacturer_model_name="mm",
        software_versions="1",
        device_serial_number="s",
        tile_pixel_array=True,
        **options,
    )
    segmentation.save_as(path)
    return path
