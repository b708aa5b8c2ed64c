"""Attributes of the variables of a tree, from the headers of their images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.enum import ChannelTypes
from dicomslide.header import dicom
from dicomslide.header.optics import recommended_color
from dicomslide.header.placement import pixel_spacing_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dicomslide.header.channels import Channel
    from dicomslide.header.geometry import Orientation, SlideGeometry
    from dicomslide.image import TiledImage

__all__ = ["LongList", "derived_attrs", "image_attrs"]

MOST_SHOWN = 5
"""Upper bound on the first values that the repr of a long list has."""
MOST_FLAGS = 256
"""Upper bound on the segments whose labels are one text."""


class LongList(list[Any]):
    """List whose repr has the first and the last values only, if it is long.

    Xarray shows attributes whole in notebooks: those of many segments would be megabytes.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        if len(self) <= 2 * MOST_SHOWN:
            return super().__repr__()
        first, last = (", ".join(map(repr, each)) for each in (self[:MOST_SHOWN], self[-1:]))
        return f"[{first}, ..., {last}] ({len(self):,} values)"


def image_attrs(
    image: TiledImage, geometry: SlideGeometry | None, orientation: Orientation | None
) -> dict[str, Any]:
    """Return the identifiers, the encoding and the position of an image as attributes.

    Parameters
    ----------
    image : TiledImage
        The image.
    geometry : SlideGeometry or None
        Geometry of the image on the slide; None if unknown.
    orientation : Orientation or None
        Orientation that turned it upright. None for pixels as stored: then ``affine`` is the
        transform from (row, column, 1) to (x, y) in mm.

    """
    metadata = image.metadata
    attrs: dict[str, Any] = {
        "long_name": "pixel value",  # the label of colour bars
        "image_flavor": image.flavor.lower(),
        "sop_instance_uid": dicom.text(metadata, "SOPInstanceUID"),
        "series_instance_uid": dicom.text(metadata, "SeriesInstanceUID"),
        "series_description": dicom.text(metadata, "SeriesDescription"),
        "transfer_syntax_uid": image.transfer_syntax_uid,
        "photometric_interpretation": dicom.text(metadata, "PhotometricInterpretation"),
    }
    if image._given is not None:
        attrs["pixel_spacing_given"] = list(image._given.spacing)
        attrs["pixel_spacing_stated"] = pixel_spacing_of(image._source.metadata)
    if geometry is not None:
        attrs |= {
            "image_orientation_slide": [
                *geometry.row_direction,
                0.0,
                *geometry.column_direction,
                0.0,
            ],
            "total_pixel_matrix_origin": list(geometry.origin),
            "registration": image._placement.registration,
        }
        if any(image._placement.shift) and image._placement.origin is None:
            stated = np.subtract(geometry.origin, image._placement.shift)
            attrs["total_pixel_matrix_origin_stated"] = stated.tolist()
        if orientation is None:
            attrs["affine"] = geometry.matrix.tolist()  # (x, y) = affine @ (row, column, 1)
    return _present(attrs)


def derived_attrs(
    image: TiledImage, channels: Sequence[Channel], *, scaled: bool
) -> dict[str, Any]:
    """Return the meaning of the pixels of a segmentation or parametric map as attributes.

    Segments of a label map are flags of the CF conventions: ``flag_meanings`` are words separated
    by blanks. ``segment_colors`` are recommended display colours, if there are any. Both are left
    out where there are more than 256 segments, whose items would all be parsed for them.

    Parameters
    ----------
    image : TiledImage
        The image.
    channels : sequence of Channel
        Channels of the variable.
    scaled : bool
        Whether pixels are converted to fractions or real world values; else they are as stored.

    """
    metadata = image.metadata
    attrs: dict[str, Any] = {
        "long_name": "segmentation",
        "segmentation_type": dicom.text(metadata, "SegmentationType"),
        "content_label": dicom.text(metadata, "ContentLabel"),
    }
    if attrs["segmentation_type"] == "FRACTIONAL":
        attrs |= {
            "segmentation_fractional_type": dicom.text(metadata, "SegmentationFractionalType"),
            "maximum_fractional_value": dicom.number(metadata, "MaximumFractionalValue"),
        }
        if scaled:
            attrs["units"] = "1"
    if image._layout.label_values is not None:
        names = [channel.description or channel.identifier for channel in channels]
        attrs |= {
            "flag_values": LongList(int(channel.identifier) for channel in channels),
            "segment_labels": LongList(names),
            "segment_types": LongList(channel.property_type or "" for channel in channels),
        }
        if len(names) <= MOST_FLAGS:
            attrs["flag_meanings"] = " ".join("_".join(name.split()) for name in names)
            colors = [recommended_color(channel) or "" for channel in channels]
            attrs["segment_colors"] = LongList(colors) if any(colors) else None
    if channels[0].type is ChannelTypes.PARAMETER:
        attrs["long_name"] = "parametric map"
        quantities = {channel.quantity for channel in channels}
        if len(quantities) == 1 and None not in quantities:
            attrs["long_name"] = quantities.pop()
        units = {channel.unit for channel in channels}
        are_real = scaled or all(
            channel.mapping in (None, (1, 0)) and channel.mapping_table is None
            for channel in channels
        )
        if len(units) == 1 and are_real:
            attrs["units"] = units.pop()
    return _present(attrs)


def _present(attrs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attrs.items() if value is not None}
