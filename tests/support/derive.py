"""What is derived of synthetic slides, as highdicom writes it: segmentations, maps, annotations."""

from __future__ import annotations

import pydicom
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code


def segment(number, label, kind=codes.SCT.Tumor):
    import highdicom as hd

    return hd.seg.SegmentDescription(
        number,
        label,
        codes.SCT.MorphologicallyAbnormalStructure,
        kind,
        hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        hd.AlgorithmIdentificationSequence("net", codes.DCM.ArtificialIntelligence, "1"),
    )


def tumour():
    return segment(1, "tumour")


def tumour_and_stroma():
    return tumour(), segment(2, "stroma", codes.SCT.ConnectiveTissue)


def write_segmentation(path, source, pixels, kind, *, segments=None, series=None, **options):
    """Let highdicom write a segmentation of an image; pixels (rows, columns[, segments]).

    Its segments are a tumour and stroma, unless others are given.
    """
    import highdicom as hd

    segmentation = hd.seg.Segmentation(
        source_images=[pydicom.dcmread(source)],
        pixel_array=pixels[None],
        segmentation_type=kind,
        segment_descriptions=list(segments or tumour_and_stroma()),
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


def mapping(label, slope=1.0, *, kind=float):
    """Return a mapping of 0 to 1000 to percent."""
    import highdicom as hd

    return hd.pm.RealWorldValueMapping(
        lut_label=label,
        lut_explanation=f"map {label}",
        unit=Code("%", "UCUM", "percent"),
        value_range=(kind(0), kind(1000)),
        slope=slope,
        intercept=-5.0,
        quantity_definition=Code("130401", "DCM", "Class activation"),
    )


def write_map(path, source, pixels, mappings, *, tile_size=(32, 48)):
    """Let highdicom write a parametric map; pixels (rows, columns, parameters)."""
    import highdicom as hd

    dataset = hd.pm.ParametricMap(
        [pydicom.dcmread(source)],
        pixels[None],
        hd.UID(),
        6,
        hd.UID(),
        1,
        "m",
        "mm",
        "1",
        "s",
        contains_recognizable_visual_features=False,
        real_world_value_mappings=mappings,
        voi_lut_transformations=[hd.VOILUTTransformation(500, 500)],
        tile_pixel_array=True,
        tile_size=tile_size,
    )
    dataset.save_as(path)
    return path


def group_of(graphics, graphic_type="POLYGON", *, number=1, measurements=None, **options):
    """Describe graphics: an array (points, 2 or 3) for each annotation."""
    import highdicom as hd

    return hd.ann.AnnotationGroup(
        number=number,
        uid=hd.UID(),
        label="nuclei",
        annotated_property_category=codes.SCT.BodyStructure,
        annotated_property_type=codes.SCT.Nucleus,
        graphic_type=graphic_type,
        graphic_data=graphics,
        algorithm_type="MANUAL",
        measurements=measurements,
        **options,
    )


def annotations_of(path, groups, kind="2D"):
    """Let highdicom make bulk annotations of an image."""
    import highdicom as hd

    return hd.ann.MicroscopyBulkSimpleAnnotations(
        source_images=[pydicom.dcmread(path)],
        annotation_coordinate_type=kind,
        annotation_groups=groups,
        series_instance_uid=hd.UID(),
        series_number=2,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="M",
        manufacturer_model_name="M",
        software_versions="1",
        device_serial_number="1",
    )
