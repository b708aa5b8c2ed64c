"""What a slide is, in plain values: for the command line, and for what notebooks show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dicomslide import utils
from dicomslide.codec import DECODERS
from dicomslide.errors import MetadataError
from dicomslide.labelled.attributes import slide_attrs
from dicomslide.layout import num_frames_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dicomslide.image import TiledImage
    from dicomslide.slide.derived import ChannelGroup
    from dicomslide.slide.slide import Slide

__all__ = ["cohort_table", "describe", "describe_image", "summary_of", "table_of"]


def describe(slide: Slide) -> dict[str, Any]:
    """Return what a slide consists of; reads headers only."""
    factors = slide.downsampling_factors
    levels = [
        {"level": i, "downsampling_factor": round(factors[i], 4)} | describe_image(level.image)
        for i, level in enumerate(slide.levels)
    ]
    others = (*slide.label_images, *slide.overview_images, *slide.thumbnail_images)
    return slide_attrs(slide) | {
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
        "derived_series": [
            _describe_group(group) for group in slide.channel_groups if group.name != "image"
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
        keys = ("um_per_pixel", "field_of_view_mm", "rotation", "mirrored")
        return described | dict.fromkeys((*keys, "image_orientation_slide"))
    return described | {
        "um_per_pixel": [spacing * 1000 for spacing in geometry.spacing],
        "field_of_view_mm": list(geometry.physical_size),
        "rotation": geometry.rotation,
        "mirrored": geometry.handedness > 0,
        "image_orientation_slide": [float(value) for value in image.metadata.ImageOrientationSlide],
    }


def table_of(images: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return a table of images that were described: its head, then one row an image."""
    head = ("", "rows × columns", "µm/pixel", "mm × mm", "tile", "frames", "transfer syntax")
    rows: list[tuple[str, ...]] = [head]
    for image in images:
        spacing, view = image["um_per_pixel"], image["field_of_view_mm"]
        name = image["flavor"].lower().replace("_", " ")
        encoding = (image["transfer_syntax"], image["photometric_interpretation"])
        rows.append(
            (
                f"level {image['level']}" if "level" in image else name,
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
