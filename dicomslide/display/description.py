"""What a slide is, in plain values: for the command line, and for what notebooks show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dicomslide import utils
from dicomslide.enum import ChannelTypes, ImageFlavors
from dicomslide.errors import DicomSlideError, MetadataError
from dicomslide.header.layout import num_frames_of
from dicomslide.labelled.attributes import slide_attrs
from dicomslide.pixels import DECODERS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dicomslide.contents.places import ChannelGroup
    from dicomslide.image import TiledImage
    from dicomslide.slide.slide import Slide

__all__ = [
    "annotation_labels", "channel_label", "cohort_table", "describe", "describe_image", "in_words",
    "listed", "segment_labels", "summary_of", "table_of",
]  # fmt: skip

MOST_LABELS = 5
"""Labels of segments or annotations that are listed: there may be thousands."""


def in_words(slide: Slide) -> str:
    """Return a line on a slide: its name, how large it is, what was found in it."""
    rows, columns = slide.size
    smaller = " and less" if slide.num_levels > 1 else ""
    labels = {"segments": segment_labels(slide), "annotations": annotation_labels(slide)}
    return (
        f"{slide.container_identifier or slide.name}: {utils.counted(slide.num_levels, 'level')}"
        f" of {rows} × {columns} pixels{smaller}, {utils.counted(slide.num_channels, 'channel')},"
        f" {utils.counted(slide.num_focal_planes, 'focal plane')}"
        + "".join(f", {what} {listed(found)}" for what, found in labels.items() if found)
    )


def segment_labels(slide: Slide) -> list[str]:
    """Return what people call the segments of a slide."""
    return [
        channel.description or channel.identifier
        for channel in slide.channels
        if channel.type is ChannelTypes.SEGMENT
    ]


def annotation_labels(slide: Slide) -> list[str]:
    """Return the labels of a slide's annotations; whatever is wrong with them, no error."""
    try:
        return list(slide.annotation_labels)
    except (DicomSlideError, OSError, ValueError):  # reading them says why
        return ["?"]


def listed(labels: Sequence[str]) -> str:
    """Write labels beside each other, the first few of many."""
    more = f" and {len(labels) - MOST_LABELS:,} more" if len(labels) > MOST_LABELS else ""
    return ", ".join(map(repr, labels[:MOST_LABELS])) + more


def channel_label(slide: Slide | TiledImage, channel_index: int, focal_plane_index: int) -> str:
    """Return which channel and focal plane a picture shows; nothing where there is but one."""
    parts = []
    if len(slide.channels) > 1:
        channel = slide.channels[channel_index]
        called = f" ({channel.description})" if channel.description else ""
        kind = channel.type.value.replace("_", " ").lower()
        parts.append(f"channel {channel_index}: {kind} {channel.identifier}{called}")
    if len(slide.focal_plane_offsets) > 1:
        offset = slide.focal_plane_offsets[focal_plane_index]
        parts.append(f"focal plane {focal_plane_index}: {offset:g} µm")
    return ", ".join(parts)


def describe(slide: Slide) -> dict[str, Any]:
    """Return what a slide consists of; reads headers only."""
    factors = slide.downsampling_factors
    levels = [
        {"level": i, "downsampling_factor": round(factors[i], 4)} | describe_image(level.image)
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
        "associated_images": [describe_image(image) for image in others],
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
        "annotations": annotation_labels(slide),
        "derived_series": [
            _describe_group(group) for group in slide.channel_groups if not group.is_image
        ],
    }


def _describe_group(group: ChannelGroup) -> dict[str, Any]:
    images = [image for image, _ in group.images]
    described = [describe_image(image) | {"flavor": group.name} for image in images]
    return {
        "name": group.name,
        "series_description": utils.text(images[0].metadata, "SeriesDescription"),
        "segmentation_type": utils.text(images[0].metadata, "SegmentationType"),
        "channel_indices": list(group.indices),
        "levels": [level for _, level in group.images],
        "images": described,
    }


def summary_of(slide: Slide) -> dict[str, Any]:
    """Return what a slide is like, a value a column, the same columns for all slides."""
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


def cohort_table(summaries: Mapping[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return a table of slides by name: its head, then one row a slide."""
    head = ("", "rows × columns", "µm/pixel", "levels", "channels", "planes", "stains", "scanner")
    return [
        head,
        *(
            (
                name,
                f"{each['rows']:,} × {each['columns']:,}",
                "-" if each["um_per_pixel"] is None else f"{each['um_per_pixel']:.4g}",
                *(f"{each[count]:,}" for count in ("levels", "channels", "focal_planes")),
                each["stains"] or "-",
                " ".join(filter(None, (each["manufacturer"], each["manufacturer_model_name"]))),
            )
            for name, each in summaries.items()
        ),
    ]


def describe_image(image: TiledImage) -> dict[str, Any]:
    """Return what an image is like; reads its header only."""
    decoder = DECODERS.get(image.transfer_syntax_uid or "")  # a server doesn't say
    described: dict[str, Any] = {
        "flavor": image.flavor if image.kind == "image" else image.kind,
        "rows": image.size[0],
        "columns": image.size[1],
        "tile_rows": int(image.metadata.Rows),
        "tile_columns": int(image.metadata.Columns),
        "frames": num_frames_of(image.metadata),
        "transfer_syntax_uid": image.transfer_syntax_uid,
        "transfer_syntax": None if decoder is None else decoder.name,
        "photometric_interpretation": str(image.metadata.get("PhotometricInterpretation")),
        "file": image.name,
    }
    try:
        geometry = image.geometry
    except MetadataError:
        keys = ("um_per_pixel", "field_of_view_mm", "rotation", "mirrored",
                "total_pixel_matrix_origin", "registration")  # fmt: skip
        return described | dict.fromkeys((*keys, "image_orientation_slide"))
    return described | {
        "um_per_pixel": [spacing * 1000 for spacing in geometry.spacing],
        "field_of_view_mm": list(geometry.physical_size),
        "rotation": geometry.rotation,
        "mirrored": geometry.handedness > 0,
        "total_pixel_matrix_origin": list(geometry.origin),
        "registration": image.placement.registration,
        "image_orientation_slide": [float(value) for value in image.metadata.ImageOrientationSlide],
    }


def table_of(images: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return a table of images that were described: its head, then one row an image."""
    head = ("", "rows × columns", "µm/pixel", "mm × mm", "tile", "frames", "transfer syntax")
    rows: list[tuple[str, ...]] = [head]
    for image in images:
        spacing, view = image["um_per_pixel"], image["field_of_view_mm"]
        name = image["flavor"].lower().replace("_", " ")
        if "level" in image:
            is_thumbnail = image["flavor"] == ImageFlavors.THUMBNAIL.value
            name = f"level {image['level']}" + (", thumbnail" if is_thumbnail else "")
        encoding = (image["transfer_syntax"], image["photometric_interpretation"])
        rows.append(
            (
                name,
                f"{image['rows']:,} × {image['columns']:,}",
                "-" if spacing is None else _either(spacing),
                "-" if view is None else f"{view[0]:.3g} × {view[1]:.3g}",
                f"{image['tile_rows']} × {image['tile_columns']}",
                f"{image['frames']:,}",
                ", ".join(filter(None, encoding)),
            )
        )
    return rows


def _either(spacing: list[float]) -> str:
    if abs(spacing[0] - spacing[1]) <= 1e-6 * spacing[0]:
        return f"{spacing[0]:.4g}"
    return f"{spacing[0]:.4g} × {spacing[1]:.4g}"
