"""Tables and captions as text, from descriptions of slides and images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dicomslide.enum import ImageFlavors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dicomslide.header.channels import Channel

__all__ = ["MOST_LABELS", "channel_label", "cohort_table", "listed", "table_of"]

MOST_LABELS = 5
"""Upper bound on the labels of segments or annotations in a list: there may be thousands."""


def listed(labels: Sequence[str], total: int | None = None) -> str:
    """Join the first labels to a text, with the number of those left out.

    Parameters
    ----------
    labels : sequence of str
        All labels, or the first ones.
    total : int, optional
        Number of all labels; by default those given.

    """
    total = len(labels) if total is None else total
    more = f" and {total - MOST_LABELS:,} more" if total > MOST_LABELS else ""
    return ", ".join(map(repr, labels[:MOST_LABELS])) + more


def channel_label(
    channels: Sequence[Channel],
    focal_plane_offsets: Sequence[float],
    channel_index: int,
    focal_plane_index: int,
) -> str:
    """Return a caption of the channel and the focal plane; without those that have no choice."""
    parts = []
    if len(channels) > 1:
        channel = channels[channel_index]
        called = f" ({channel.description})" if channel.description else ""
        kind = channel.type.value.replace("_", " ").lower()
        parts.append(f"channel {channel_index}: {kind} {channel.identifier}{called}")
    if len(focal_plane_offsets) > 1:
        offset = focal_plane_offsets[focal_plane_index]
        parts.append(f"focal plane {focal_plane_index}: {offset:g} µm")
    return ", ".join(parts)


def cohort_table(summaries: Mapping[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return a table of slides: a header row, then one row per slide."""
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


def table_of(images: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return a table of images, from their descriptions: a header row, then one row per image."""
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
