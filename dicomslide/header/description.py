"""Description of an image by its header, as a dict of plain values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dicomslide.errors import MetadataError
from dicomslide.header.layout import num_frames_of, size_of
from dicomslide.header.placement import Placement, geometry_of
from dicomslide.pixels import DECODERS

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["describe_image"]


def describe_image(
    header: Dataset, placement: Placement, *, transfer_syntax_uid: str | None
) -> dict[str, Any]:
    """Return the size, encoding and placement of an image.

    Parameters
    ----------
    header : pydicom.dataset.Dataset
        Header of a tiled image.
    placement : Placement
        Corrections of the header's spacing and origin by the image's pyramid.
    transfer_syntax_uid : str or None
        Transfer Syntax UID of the frames; None where it is derived from their bytes.

    Returns
    -------
    dict
        Values by name, such as ``rows`` and ``um_per_pixel``. Those of the placement are None
        where the header lacks them.

    Raises
    ------
    MetadataError
        When the image isn't tiled.

    """
    decoder = DECODERS.get(transfer_syntax_uid or "")  # None: a server may not declare it
    rows, columns = size_of(header)
    described: dict[str, Any] = {
        "rows": rows,
        "columns": columns,
        "tile_rows": int(header.Rows),
        "tile_columns": int(header.Columns),
        "frames": num_frames_of(header),
        "transfer_syntax_uid": transfer_syntax_uid,
        "transfer_syntax": None if decoder is None else decoder.name,
        "photometric_interpretation": str(header.get("PhotometricInterpretation")),
    }
    try:
        geometry = geometry_of(header, placement)
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
        "registration": placement.registration,
        "image_orientation_slide": [float(value) for value in header.ImageOrientationSlide],
    }
