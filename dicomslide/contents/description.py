"""Description of a slide as plain values, for attributes, the command line and notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dicomslide.display.tables import MOST_LABELS, listed
from dicomslide.enum import ChannelTypes
from dicomslide.errors import DicomSlideError, MetadataError
from dicomslide.header import dicom

if TYPE_CHECKING:
    from dicomslide.contents.contents import SlideContents
    from dicomslide.contents.places import ChannelGroup

_NOUNS = {
    ChannelTypes.OPTICAL_PATH: "channel",
    ChannelTypes.SEGMENT: "segment",
    ChannelTypes.PARAMETER: "parameter",
}

__all__ = ["counted_channels", "describe", "in_words", "slide_attrs", "summary_of"]


def in_words(slide: SlideContents) -> str:
    """Return one line of text: the name of a slide, its size, and counts of its parts."""
    rows, columns = slide.size
    smaller = " and less" if slide.num_levels > 1 else ""
    annotations = annotation_labels(slide)
    return (
        f"{slide.container_identifier or slide.name}: {dicom.counted(slide.num_levels, 'level')}"
        f" of {rows} × {columns} pixels{smaller}, {counted_channels(slide)},"
        f" {dicom.counted(slide.num_focal_planes, 'focal plane')}"
        + (f", annotations {listed(annotations)}" if annotations else "")
    )


def counted_channels(slide: SlideContents) -> str:
    """Return counts of a slide's channels, its segments and its parameters, with their labels.

    For example ``4 channels, 2 segments ('tumour', 'stroma')``.
    """
    counts = []
    for kind, noun in _NOUNS.items():
        found = [channel for channel in slide.channels if channel.type is kind]
        if found or kind is ChannelTypes.OPTICAL_PATH:
            first = [channel.description or channel.identifier for channel in found[:MOST_LABELS]]
            labels = "" if noun == "channel" else f" ({listed(first, len(found))})"
            counts.append(dicom.counted(len(found), noun) + labels)
    return ", ".join(counts)


def segment_labels(slide: SlideContents) -> list[str]:
    """Return the Segment Labels of a slide, or Segment Numbers where they are absent."""
    return [
        channel.description or channel.identifier
        for channel in slide.channels
        if channel.type is ChannelTypes.SEGMENT
    ]


def annotation_labels(slide: SlideContents) -> list[str]:
    """Return the labels of a slide's annotations; ``["?"]`` where they can't be read."""
    try:
        return list(slide.annotation_labels)
    except (DicomSlideError, OSError, ValueError):  # reading the annotations raises it
        return ["?"]


def describe(slide: SlideContents) -> dict[str, Any]:
    """Return the description of a slide, from its headers: see :meth:`Slide.describe`."""
    factors = slide.downsampling_factors
    levels = [
        {"level": i, "downsampling_factor": round(factors[i], 4)} | level.image.describe()
        for i, level in enumerate(slide.levels)
    ]
    others = (*slide.label_images, *slide.overview_images, *slide.thumbnail_images)
    return slide_attrs(slide) | {
        "pyramid_index": slide.pyramid_index,
        "pyramids": [
            {
                "rows": each.size[0],
                "columns": each.size[1],
                "levels": each.num_levels,
                "pyramid_uid": each.uid,
                "extended_depth_of_field": each.has_extended_depth_of_field,
                "file": each.name,
                "in_words": str(each),
            }
            for each in slide.pyramids
        ],
        "levels": levels,
        "associated_images": [image.describe() for image in others],
        "channels": [
            {
                "type": channel.type.value,
                "identifier": channel.identifier,
                "description": channel.description,
                "wavelength_nm": channel.wavelength,
            }
            for channel in slide.channels
        ],
        "focal_planes_um": list(slide.focal_plane_offsets),
        "segments": segment_labels(slide),
        "annotations": annotation_labels(slide),
        "derived_series": [_describe_group(group) for group in slide._groups if not group.is_image],
    }


def _describe_group(group: ChannelGroup) -> dict[str, Any]:
    images = [image for image, _ in group.images]
    described = [image.describe() | {"flavor": group.name} for image in images]
    return {
        "name": group.name,
        "series_description": dicom.text(images[0].metadata, "SeriesDescription"),
        "segmentation_type": dicom.text(images[0].metadata, "SegmentationType"),
        "channel_indices": list(group.indices),
        "levels": [level for _, level in group.images],
        "images": described,
    }


STAIN = "stain"
"""Name of the list of stains: see :func:`row_of`."""
COLUMNS: dict[str, type] = {
    "rows": int,
    "columns": int,
    "um_per_pixel": float,
    "levels": int,
    "channels": int,
    "focal_planes": int,
    "stains": str,
    "objective_lens_power": float,
    "manufacturer": str,
    "manufacturer_model_name": str,
    "container_identifier": str,
    "frame_of_reference_uid": str,
    "study_instance_uid": str,
    "series_instance_uid": str,
    "file": str,
}
"""Names of the values of :func:`summary_of`, and their type where they aren't None."""


def summary_of(slide: SlideContents) -> dict[str, Any]:
    """Return a summary of a slide: one value per column, the same columns for all slides."""
    attrs = slide_attrs(slide)
    try:
        spacing = slide.levels[0].image.geometry.spacing
    except MetadataError:
        um_per_pixel = None
    else:
        um_per_pixel = 1000 * sum(spacing) / 2
    return {
        "rows": slide.size[0],
        "columns": slide.size[1],
        "um_per_pixel": um_per_pixel,
        "levels": slide.num_levels,
        "channels": slide.num_channels,
        "focal_planes": slide.num_focal_planes,
        "stains": ", ".join(attrs.get("stains", ())) or None,
        **{
            name: attrs.get(name)
            for name in (
                "objective_lens_power", "manufacturer", "manufacturer_model_name",
                "container_identifier", "frame_of_reference_uid", "study_instance_uid",
                "series_instance_uid",
            )
        },
        "file": slide.name,
    }  # fmt: skip


def row_of(slide: SlideContents) -> dict[str, Any]:
    """Return the summary of a slide, with the list of its stains, by which slides are selected."""
    return summary_of(slide) | {STAIN: dicom.stains_of(slide.metadata)}


def slide_attrs(slide: SlideContents, *, include_patient: bool = False) -> dict[str, Any]:
    """Return identifiers and attributes of a slide from its headers; absent ones are left out.

    Parameters
    ----------
    slide : SlideContents
        The slide.
    include_patient : bool, default: False
        Whether attributes that identify the patient are included.

    """
    metadata = slide.metadata
    keywords = {
        "container_identifier": "ContainerIdentifier",
        "frame_of_reference_uid": "FrameOfReferenceUID",
        "study_instance_uid": "StudyInstanceUID",
        "series_instance_uid": "SeriesInstanceUID",
        "manufacturer": "Manufacturer",
        "manufacturer_model_name": "ManufacturerModelName",
        "acquisition_datetime": "AcquisitionDateTime",
    }
    if include_patient:
        keywords |= {
            "patient_id": "PatientID",
            "patient_name": "PatientName",
            "patient_birth_date": "PatientBirthDate",
            "patient_sex": "PatientSex",
            "accession_number": "AccessionNumber",
        }
    attrs: dict[str, Any] = {name: slide._said(keyword) for name, keyword in keywords.items()}
    attrs["objective_lens_power"] = next(
        (
            power
            for item in dicom.items(metadata, "OpticalPathSequence")
            if (power := dicom.number(item, "ObjectiveLensPower"))
        ),
        None,
    )
    attrs["stains"] = dicom.stains_of(metadata) or None
    return {name: value for name, value in attrs.items() if value is not None}
