"""Methods of a slide that rooms above it serve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dicomslide.process.above import served_by
from dicomslide.slide.pictures import SlidePictures

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dicomslide.header.geometry import OrientationName

__all__ = ["SlideViews"]


class SlideViews(SlidePictures):
    """Contents of a slide, its pictures, and an interactive view."""

    def view(
        self,
        overlay: Sequence[Any] | Mapping[str, Any] | None = None,
        *,
        variable: str = "image",
        height: int = 600,
    ) -> Any:
        """Show the slide to zoom and pan in a notebook, with what lies on it.

        Only what is seen is read, from the level that fits the zoom; a coarser level stands in
        meanwhile. Axes are in mm; position and value under the pointer are below the figure.
        Channels of fluorescence are blended, with colours, limits and gamma beside the figure, as
        are focal planes, the label, and an overview with the box of the view.

        Parameters
        ----------
        overlay : sequence or mapping, optional
            What is drawn over the image, to be switched and faded: see :meth:`plot`. By default all
            segmentations, maps and annotations of the slide; maps are hidden at first. ``()`` for
            none.
        variable : str, default: "image"
            Variable of the tree that is the image, such as ``"image_2"``.
        height : int, default: 600
            Height in pixels.

        Returns
        -------
        dicomslide.view.view.SlideView
            A view, which a notebook shows where it is the value of a cell. Its ``selection`` is the
            box or polygon that was drawn last, ``region`` the lazy array there, and ``panel()`` an
            object of Panel, to be placed beside others.

        Raises
        ------
        ImportError
            When Panel isn't installed; the message says what to install.
        MetadataError
            When the slide has no upright pixels in mm.
        KeyError
            When there is no such variable or overlay.
        GridError
            When an array is in another frame of reference.

        Examples
        --------
        >>> view = slide.view(["segmentation", my_heat_map])
        >>> view  # draw a box
        >>> view.region.mean(("y", "x")).compute()

        """
        return served_by("view_of")(self, overlay, variable=variable, height=height)

    def to_zarr_store(self, *, orientation: OrientationName = "upright") -> Any:
        """Return the slide as a live store of OME-Zarr 0.5, without a copy.

        The store is laid out as that of :func:`~dicomslide.to_ome_zarr`: levels, label images,
        coordinates, metadata of channels. Its chunks, a frame each, are decoded when they are asked
        for, so that whatever reads zarr in Python reads the slide.

        Parameters
        ----------
        orientation : {"upright", "stored"}, default: "upright"
            Upright, with y and x in mm; or rows and columns as stored. Upright, chunks may overlap
            several frames, where rows or columns are reversed and no whole number of frames.

        Returns
        -------
        zarr.abc.store.Store
            Read-only and picklable.

        Raises
        ------
        ImportError
            When zarr isn't installed.
        ValueError
            When `orientation` has another value.

        Examples
        --------
        >>> root = zarr.open_group(slide.to_zarr_store(), mode="r")
        >>> root["level_0/image"][:, 0, :256, :256]
        >>> xr.open_datatree(slide.to_zarr_store(), engine="zarr", consolidated=False)

        """
        return served_by("store_of")(self, orientation)
