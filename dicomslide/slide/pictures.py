"""A slide as pictures for people: thumbnails, plots, and an interactive view."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

from dicomslide.enum import ChannelTypes
from dicomslide.errors import MetadataError
from dicomslide.header.palette import palette_of
from dicomslide.header.resolution import spacing_in_mm
from dicomslide.slide.arrays import SlideArrays

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from dicomslide.display.progress import Report
    from dicomslide.header.resolution import Spacing
    from dicomslide.image import TiledImage
    from dicomslide.labelled.presentation import ChannelDisplay

__all__ = ["SlidePictures"]


class SlidePictures(SlideArrays):
    """Contents of a slide as arrays, and methods that show it."""

    def thumbnail(
        self,
        size: int = 1024,
        *,
        channel_index: int = 0,
        focal_plane_index: int = 0,
        spacing: Spacing | None = None,
        progress: bool | Report = False,
        composite: bool = False,
        palette: bool = False,
    ) -> NDArray[np.uint8]:
        """Return an upright picture of the whole slide in 8 bits, for display.

        Frames may be decoded at reduced size where that takes less time, so that pixels approximate
        means of stored pixels.

        Parameters
        ----------
        size : int, default: 1024
            Pixels along the longer edge, at most those of the base level
        channel_index, focal_plane_index : int, default: 0
            Zero-based indices into channels and focal planes
        spacing : float or str, optional
            Spacing instead of a size: a number in mm, or text such as ``"10 um"``
        progress : bool or callable, default: False
            Whether standard error says how many frames are read; or a function that is called with
            that number and the number of all frames. Without it, a
            :class:`~dicomslide.PerformanceWarning` estimates how long a picture takes, after three
            seconds, if that is long: where no smaller level is stored, all frames are decoded
        composite : bool, default: False
            Whether all channels of fluorescence are blended in their colours instead, each between
            the limits that the header recommends, or else robust ones of its pixels: see
            :func:`dicomslide.recipes.composite`
        palette : bool, default: False
            Whether the Palette Color Lookup Table of the optical path, where it has one, gives the
            colours of its values, dark to bright: false colours that the header recommends

        Returns
        -------
        numpy.ndarray
            Shape (rows, columns, 3), or (rows, columns) for a slide without colour, uint8

        Raises
        ------
        ValueError
            When there is no such channel or focal plane, `size` is less than one, or a slide of
            colours is to be blended

        """
        if spacing is not None:
            size = max(1, round(max(self.physical_size) / spacing_in_mm(spacing)))
        image, *options = self._picture_source(size, channel_index, focal_plane_index)
        if composite or (palette and self._palette(channel_index) is not None):
            channels = None if composite else [channel_index]
            return self._blended(size, channels, focal_plane_index, palette, progress)
        return image._picture(*options, progress=progress)

    def _picture_source(
        self, size: int, channel_index: int, focal_plane_index: int
    ) -> tuple[TiledImage, int, int, int]:
        """Return the smallest image that is large enough, with size, channel and focal plane."""
        if operator.index(size) < 1:
            raise ValueError(f"a picture of {size} pixels along its longer edge isn't possible")
        place = (channel_index, focal_plane_index)
        levels = [i for i, level in enumerate(self.levels) if place in level._places]
        enough = [level for level in levels if max(self.levels[level].size) >= size]
        level = max(enough, default=min(levels, default=0))
        image, channel, plane = self._place(level, channel_index, focal_plane_index)
        return image, size, channel, plane

    def _palette(self, channel_index: int) -> NDArray[np.uint8] | None:
        """Return the Palette Color Lookup Table of an optical path, or None."""
        channel = self.channels[channel_index]
        is_path = channel.type is ChannelTypes.OPTICAL_PATH
        return palette_of(channel.item) if is_path else None

    def _displays(self) -> dict[int, ChannelDisplay]:
        """Return names, colours and windows of the optical paths that have one sample, by index."""
        found: dict[int, ChannelDisplay] = {}
        datasets = [self.to_dataset(level) for level in range(self.num_levels)]
        for group in self._groups:
            array = next((each[group.name] for each in datasets if group.name in each), None)
            if group.is_image and array is not None and "sample" not in array.dims:
                array = array.isel(z=0) if "z" in array.dims else array
                displays = array.slide.channel_displays()
                if len(displays) == len(group.indices):
                    found |= dict(zip(group.indices, displays, strict=True))
        return found

    def _blended(
        self,
        size: int,
        channels: Sequence[int] | None,
        plane: int,
        palette: bool,
        progress: bool | Report,
    ) -> NDArray[np.uint8]:
        """Return channels, by default all optical paths of one sample, in their colours."""
        from dicomslide.display.blend import blend, robust_limits
        from dicomslide.display.picture import values_of

        displays = self._displays()
        there = [each for each in displays if self._has_picture(each, plane)]
        if not there:
            raise ValueError(
                f"{self.name}: it has no channels to blend: its pixels are colours, or focal plane"
                f" {plane} has none"
            )
        pixels: list[NDArray[np.float32]] = []
        colors: list[str | NDArray[np.uint8]] = []
        limits = []
        for index in there if channels is None else channels:
            image, _, channel, own_plane = self._picture_source(size, index, plane)
            try:
                geometry = image.geometry
            except MetadataError:
                geometry = None
            reader = image.get_total_pixel_matrix(channel, own_plane)._reader
            values = values_of(reader, geometry, size, progress)
            if pixels and values.shape != pixels[0].shape:  # registered to a pixel of a level
                values = _of_shape(values, pixels[0].shape)
            table = self._palette(index) if palette else None
            pixels.append(values)
            colors.append(displays[index].color if table is None else table)
            limits.append(displays[index].window or robust_limits(values))
        return blend(pixels, colors, limits)

    def _has_picture(self, channel: int, plane: int) -> bool:
        return any((channel, plane) in level._places for level in self.levels)

    def plot(
        self,
        *,
        size: int = 1024,
        channel_index: int = 0,
        focal_plane_index: int = 0,
        scale_bar: bool = True,
        ax: Axes | None = None,
        composite: bool = False,
        palette: bool = False,
        overlay: Any = (),
        opacity: float = 0.5,
    ) -> Axes:
        """Plot an upright picture of the whole slide, with axes in mm.

        The title names the slide, what is shown of it, and the distance of the picture's pixels.

        Parameters
        ----------
        size : int, default: 1024
            Pixels of the picture along its longer edge, at most those of the base level.
        channel_index, focal_plane_index : int, default: 0
            Zero-based indices into channels and focal planes.
        scale_bar : bool, default: True
            Whether to draw a scale bar of a round length.
        ax : matplotlib.axes.Axes, optional
            Axes to plot into; by default the current ones.
        composite, palette : bool, default: False
            See :meth:`thumbnail`. A composite has a legend of its channels.
        overlay : sequence or mapping, optional
            What is drawn over the picture: names of variables of the tree, such as
            ``"segmentation"``; labels of annotation groups, or ``"annotations"`` for all of them;
            :class:`xarray.DataArray` with y and x in mm; :class:`~dicomslide.AnnotationGroup`; or
            geopandas.GeoDataFrame in mm. A mapping gives each a name. Segments are in the legend,
            numbers have a colour bar with their unit.
        opacity : float, default: 0.5
            Opacity of segmentations and maps, from 0 to 1.

        Returns
        -------
        matplotlib.axes.Axes
            Axes with the limits of the slide in mm.

        Raises
        ------
        ImportError
            When matplotlib isn't installed.
        MetadataError
            When the header doesn't place the image on the slide.
        ValueError
            When there is no such channel or focal plane, `size` is less than one, or an array has
            no place in mm.
        KeyError
            When the slide has no overlay of a name.
        GridError
            When an array is in another frame of reference.

        """
        from dicomslide.display.plots import (
            add_scale_bar,
            current_axes,
            show_legend,
            show_picture,
            title_of,
        )

        image, *_ = self._picture_source(size, channel_index, focal_plane_index)
        bounds = image.physical_bounds
        picture = self.thumbnail(
            size,
            channel_index=channel_index,
            focal_plane_index=focal_plane_index,
            composite=composite,
            palette=palette,
        )
        axes = current_axes(ax)
        show_picture(axes, picture, bounds)
        edges = (bounds[2] - bounds[0], bounds[3] - bounds[1])
        spacing = max(edges) / max(picture.shape[:2])
        legend: list[tuple[str, str]] = []
        if composite:
            displays = self._displays().items()
            legend = [(d.name, d.color) for i, d in displays
                      if self._has_picture(i, focal_plane_index)]  # fmt: skip
        legend += self._plot_overlay(axes, overlay, spacing, opacity)
        show_legend(axes, legend)
        axes.set(xlim=(bounds[0], bounds[2]), ylim=(bounds[1], bounds[3]))
        if scale_bar:
            add_scale_bar(axes)
        shown = "composite" if composite else self._channel_name(channel_index)
        plane = None
        if self.num_focal_planes > 1:
            plane = f"focal plane {self.focal_plane_offsets[focal_plane_index]:g} µm"
        axes.set_title(
            title_of(self.container_identifier or "slide", shown, plane, spacing=spacing)
        )
        return axes

    def _picture_for_sheet(self, size: int) -> NDArray[np.uint8]:
        """Return a picture among those of other slides: in false colours if pixels have none."""
        place = next(iter(sorted(self.levels[0]._places)))
        is_grey = self.levels[0]._places[place][0]._layout.pixel_format.samples == 1
        is_path = self.channels[place[0]].type is ChannelTypes.OPTICAL_PATH
        return self.thumbnail(
            size, channel_index=place[0], focal_plane_index=place[1], composite=is_grey and is_path
        )

    def _channel_name(self, channel_index: int) -> str | None:
        """Return what a channel is called; None if it is the only optical path."""
        channel = self.channels[channel_index]
        is_path = channel.type is ChannelTypes.OPTICAL_PATH
        if is_path and sum(each.type is channel.type for each in self.channels) == 1:
            return None
        return channel.description or f"channel {channel.identifier}"

    def _plot_overlay(
        self, axes: Axes, overlay: Any, spacing: float, opacity: float
    ) -> list[tuple[str, str]]:
        """Draw overlays; return names and colours for the legend."""
        from dicomslide.labelled.plots import plot_array, plot_shapes
        from dicomslide.slide.overlays import layers_of

        legend: list[tuple[str, str]] = []
        if overlay is None or (isinstance(overlay, (list, tuple)) and not overlay):
            return legend
        for number, layer in enumerate(layers_of(self, self.to_datatree(), overlay)):
            if layer.arrays:
                legend += plot_array(axes, layer.at(spacing), layer.name, opacity)
            else:
                legend += plot_shapes(axes, layer.shapes, layer.name, number)
        return legend


def _of_shape(values: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return values at another number of rows and columns."""
    import numpy as np
    from PIL import Image

    return np.array(Image.fromarray(values).resize(shape[::-1], Image.Resampling.BILINEAR))
