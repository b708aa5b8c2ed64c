"""Export of slides to other formats: OME-Zarr and SpatialData."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dicomslide.header.geometry import OrientationName
    from dicomslide.slide.slide import Slide

__all__ = ["store_of"]


def store_of(slide: Slide, orientation: OrientationName) -> Any:
    """Return a slide as a store of zarr; see :meth:`dicomslide.Slide.to_zarr_store`."""
    from dicomslide.export.ome_zarr import check_installed

    check_installed()
    from dicomslide.export.live_store import LiveStore

    return LiveStore(slide, orientation)
