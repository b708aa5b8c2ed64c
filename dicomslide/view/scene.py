"""What a view shows, and its pixels: channels and overlays of a slide in a box of millimetres.

It knows no browser: settings in, colours out.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from dicomslide.display.blend import LABEL_COLORS, blend, laid_over, robust_limits
from dicomslide.errors import FrameError, MetadataError
from dicomslide.labelled.overlay import Labels, NumberMap, overlay_of
from dicomslide.slide.overlays import layers_of
from dicomslide.view.blocks import BlockCache, Levels, TooMuch, levels_of
from dicomslide.view.shapes import FEW, Shapes, shapes_of

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

    from dicomslide.labelled.overlay import Overlay
    from dicomslide.slide.slide import Slide
    from dicomslide.view.shapes import Box

__all__ = ["Channel", "Drawn", "Outlines", "Picture", "Scene"]

BAD = np.array([[230, 0, 120, 255], [60, 60, 60, 255]], np.uint8)
"""Colours of the stripes of frames that can't be decoded."""
STRIPE = 6
"""Width of stripes in pixels."""
REACH = 3
"""Pixels within which a shape is under the pointer."""
SMALL = 512
"""Longer edge, in pixels, of the picture of which robust limits are computed."""


@dataclasses.dataclass(slots=True)
class Channel:
    """How a channel of the image is shown."""

    name: str
    color: str
    limits: tuple[float, float]
    valid_range: tuple[float, float]
    """Ends of the slider of the limits."""
    visible: bool = True


@dataclasses.dataclass(slots=True, eq=False)
class Drawn:
    """An overlay, and how it is shown."""

    name: str
    levels: Levels | None = None
    """Its pixels; None for shapes."""
    look: Overlay | None = None
    shapes: Shapes | None = None
    color: str = "#FFFFFF"
    """Colour of shapes."""
    visible: bool = True
    opacity: float = 0.5

    @property
    def channels(self) -> list[int]:
        """Indices of what is drawn: all segments, or the first parameter."""
        assert self.levels is not None
        return list(range(self.levels.num_channels)) if isinstance(self.look, Labels) else [0]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Outlines:
    """Shapes of an overlay in a view."""

    color: str
    """``#RRGGBBAA``."""
    lines: NDArray[np.float64]
    """Lines, shape (points, 2), with NaN between them."""
    points: NDArray[np.float64]
    """Shapes that are points, shape (n, 2)."""


@dataclasses.dataclass(slots=True)
class Picture:
    """A rendered view."""

    pixels: NDArray[np.uint8]
    """Shape (rows, columns, 4), rows from the bottom up, as y ascends."""
    box: Box
    """(x_min, y_min, x_max, y_max) of the outer edges in mm."""
    spacing: float
    """Spacing in mm of the level of the image."""
    outlines: list[Outlines]
    """Shapes that aren't drawn into the pixels, by overlay."""
    notes: list[str]
    """What isn't shown, and why."""
    is_lasting: bool = True
    """False if another attempt may show more."""


class Scene:
    """Channels, focal plane and overlays of a slide, with their settings.

    Parameters
    ----------
    slide : Slide
        The slide.
    overlay : sequence or mapping, optional
        See :func:`~dicomslide.slide.overlays.layers_of`.
    variable : str
        Variable of the tree that is the image.

    Raises
    ------
    MetadataError
        When the slide has no upright arrays in mm.
    KeyError
        When there is no such variable.

    """

    def __init__(self, slide: Slide, overlay: Any = None, variable: str = "image") -> None:
        import xarray as xr

        self.slide = slide
        source: Any = slide
        self.tree: xr.DataTree = xr.open_datatree(
            source, engine="dicomslide", levels="virtual", associated=True, cache=False
        )
        self._cache = BlockCache()
        self._stored = [math.sqrt(math.prod(each)) for each in slide.pixel_spacings]
        arrays = self._arrays(variable)
        self.is_color = "sample" in arrays[0].dims
        self.image = levels_of(arrays, self._cache, self._stored, self._frames_of(variable))
        self.plane = self.image.num_planes // 2
        self.gamma = 1.0
        self.planes = (
            [float(z) * 1000 for z in arrays[0]["z"].values] if "z" in arrays[0].dims else [0.0]
        )
        self.bounds: Box = arrays[0].slide.extent
        self.channels = [] if self.is_color else self._channels(arrays[0])
        layers = layers_of(slide, self.tree, overlay)
        self.overlays = [self._drawn(number, layer) for number, layer in enumerate(layers)]
        if overlay is None:  # a map that wasn't asked for would hide the slide
            for drawn in self.overlays:
                drawn.visible = not isinstance(drawn.look, NumberMap)

    def _arrays(self, variable: str) -> list[xr.DataArray]:
        found = []
        for name, node in self.tree.children.items():
            if str(name).startswith("level_") and variable in node.data_vars:
                array = node[variable]
                if not {"y", "x"} <= {*array.dims}:
                    raise MetadataError(
                        f"{self.slide.name}: it can't be viewed, as it has no upright pixels in mm:"
                        " its headers don't place it (open_slide(spacing=...) gives a spacing), or"
                        " it lies obliquely"
                    )
                lead = [d for d in array.dims if d not in ("z", "y", "x", "sample")]
                found.append(array.transpose(*lead, "z", "y", "x", "sample", missing_dims="ignore"))
        if not found:
            there = sorted({str(v) for node in self.tree.children.values() for v in node.data_vars})
            raise KeyError(f"no variable {variable!r}; there are {there}")
        return found

    def _frames_of(self, variable: str) -> Any:
        """Return a function of a level that gives the chunks, along y and x, of frames."""
        chunked = functools.cache(lambda: self.slide.to_datatree(levels="virtual"))

        def chunks(number: int) -> tuple[Any, Any]:
            array = chunked()[f"level_{number}"][variable]
            return array.chunksizes["y"], array.chunksizes["x"]

        return chunks

    def _channels(self, array: xr.DataArray) -> list[Channel]:
        one = array.isel(z=0) if "z" in array.dims else array
        displays = one.slide.channel_displays()
        found = []
        for index, display in enumerate(displays):
            limits = display.window or self._robust(index)
            ends = display.valid_range or limits
            found.append(Channel(display.name, display.color, limits, ends, visible=index < 6))
        return found

    def _robust(self, index: int) -> tuple[float, float]:
        """Return robust limits of a channel in the whole slide."""
        x, y = positions(self.bounds, self._shape(self.bounds, SMALL))
        try:
            sampled = self.image.sample(x, y, [index], self.plane)
        except TooMuch:
            return self.image_range
        assert sampled is not None
        return robust_limits(sampled.values[0][sampled.inside])

    @property
    def image_range(self) -> tuple[float, float]:
        """Lowest and highest value of the data type."""
        if self.image.dtype.kind not in "iu":
            return 0.0, 1.0
        kind = np.iinfo(self.image.dtype)
        return float(kind.min), float(kind.max)

    def _drawn(self, number: int, layer: Any) -> Drawn:
        color = LABEL_COLORS[number % len(LABEL_COLORS)]
        if layer.shapes is not None:
            return Drawn(layer.name, shapes=shapes_of(layer.shapes), color=color, opacity=0.9)
        levels = levels_of(layer.arrays, self._cache, [layer.arrays[0].slide.spacing[0]])
        look: Overlay = overlay_of(layer.arrays[0])
        drawn = Drawn(layer.name, levels, look)
        if isinstance(look, NumberMap) and look.limits is None:
            box = layer.arrays[0].slide.extent
            try:
                sampled = levels.sample(*positions(box, self._shape(box, SMALL)), [0])
                assert sampled is not None
                drawn.look = look.within(sampled.values[0][sampled.inside])
            except (TooMuch, FrameError):
                drawn.look = dataclasses.replace(look, limits=(0.0, 1.0))
        return drawn

    @staticmethod
    def _shape(box: Box, size: int) -> tuple[int, int]:
        width, height = box[2] - box[0], box[3] - box[1]
        scale = size / max(width, height)
        return max(1, round(height * scale)), max(1, round(width * scale))

    # -- pixels --

    def whole(self, size: int = 1024) -> Picture:
        """Return the picture of the whole slide."""
        picture = self.render(self.bounds, self._shape(self.bounds, size), near=False)
        assert picture is not None
        return picture

    def render(
        self, box: Box, shape: tuple[int, int], *, cached: bool = False, near: bool = True
    ) -> Picture | None:
        """Return the picture of a box.

        Parameters
        ----------
        box : tuple of float
            (x_min, y_min, x_max, y_max) of the outer edges in mm.
        shape : tuple of int
            Rows and columns.
        cached : bool
            Whether nothing is read, but coarser levels used that were read before.
        near : bool
            Whether few shapes are returned as outlines, rather than drawn into pixels.

        Returns
        -------
        Picture or None
            None if nothing may be read, and no level of the image was read before.

        """
        x, y = positions(box, shape)
        picture = Picture(np.zeros((*shape, 4), np.uint8), box, 0.0, [], [])
        shown = [i for i, channel in enumerate(self.channels) if channel.visible]
        try:
            sampled = self.image.sample(
                x, y, [0] if self.is_color else shown, self.plane, cached=cached
            )
            if sampled is None:
                return None
        except TooMuch:
            picture.notes.append("zoom in: the slide has no level for this view")
        else:
            picture.spacing, picture.is_lasting = sampled.spacing, sampled.is_lasting
            colors = picture.pixels
            colors[..., 3] = sampled.inside * np.uint8(255)
            if self.is_color:
                pixels = _eight_bits(sampled.values[0])
                for sample in range(3):  # faster than all at once
                    colors[..., sample] = pixels[..., sample]
            elif shown:
                looks = [self.channels[i] for i in shown]
                colors[..., :3] = blend(
                    list(sampled.values),
                    [look.color for look in looks],
                    [look.limits for look in looks],
                    self.gamma,
                )
            if sampled.bad is not None and sampled.bad.any():
                rows, columns = np.nonzero(sampled.bad)
                colors[rows, columns] = BAD[(rows + columns) // STRIPE % 2]
                picture.notes.append("striped: frames that can't be read or decoded")
        for drawn in self.overlays:
            if drawn.visible and drawn.opacity > 0:
                if drawn.shapes is None:
                    self._draw(picture, drawn, x, y, cached)
                else:
                    self._draw_shapes(picture, drawn, near)
        return picture

    def _draw(
        self,
        picture: Picture,
        drawn: Drawn,
        x: NDArray[np.float64],
        y: NDArray[np.float64],
        cached: bool,
    ) -> None:
        assert drawn.levels is not None
        assert drawn.look is not None
        try:
            sampled = drawn.levels.sample(x, y, drawn.channels, cached=cached)
        except TooMuch:
            picture.notes.append(f"zoom in to see {drawn.name}")
            return
        except FrameError as error:  # the slide is shown without it
            picture.notes.append(f"{drawn.name}: {error}")
            picture.is_lasting = picture.is_lasting and not isinstance(error, OSError)
            return
        if sampled is None or not sampled.inside.any():
            return
        values = sampled.values
        rgba = drawn.look.rgba(
            values if drawn.levels.channel_dim and len(values) > 1 else values[0]
        )
        rgba[~sampled.inside] = 0
        laid_over(picture.pixels, rgba, drawn.opacity)

    def _draw_shapes(self, picture: Picture, drawn: Drawn, near: bool) -> None:
        assert drawn.shapes is not None
        chosen = drawn.shapes.within(picture.box)
        if not near or len(chosen) > FEW:
            rgba = drawn.shapes.rgba(picture.box, picture.pixels.shape[:2], drawn.color)
            laid_over(picture.pixels, rgba, drawn.opacity)
            return
        color = drawn.color + f"{round(drawn.opacity * 255):02X}"
        lines, indices = drawn.shapes.outlines(chosen)
        gap = np.full((1, 2), np.nan)  # one line with gaps is fast to send and to draw
        joined = np.concatenate([gap[:0], *(part for line in lines for part in (line, gap))])
        others = np.setdiff1d(chosen, indices)
        picture.outlines.append(Outlines(color, joined, drawn.shapes.points(others)))

    def needs_reading(self, box: Box, shape: tuple[int, int]) -> bool:
        """Whether some pixels of the image in a view weren't read before."""
        shown = [0] if self.is_color else [i for i, c in enumerate(self.channels) if c.visible]
        return self.image.needs_reading(*positions(box, shape), shown, self.plane)

    def describe(self, x: float, y: float, distance: float) -> str:
        """Return position and values at a point in mm, of what was read before."""
        parts = [f"x {x:.4f} mm, y {y:.4f} mm"]
        shown = [0] if self.is_color else [i for i, c in enumerate(self.channels) if c.visible]
        values = self.image.at(x, y, distance, shown, self.plane)
        if values is not None:
            if self.is_color:
                parts.append("rgb " + " ".join(f"{each:g}" for each in values[0]))
            else:
                parts += [
                    f"{self.channels[i].name} {value:g}"
                    for i, value in zip(shown, values, strict=True)
                ]
        for drawn in self.overlays:
            if not drawn.visible:
                continue
            if drawn.shapes is not None:
                index = drawn.shapes.at(x, y, REACH * distance)
                if index is not None:
                    parts.append(f"{drawn.name}: {drawn.shapes.describe(index)}")
            elif drawn.levels is not None and drawn.look is not None:
                found = drawn.levels.at(x, y, distance, drawn.channels, 0)
                if found is not None:
                    value = np.array(found) if drawn.levels.channel_dim else found[0]
                    text = drawn.look.describe(value)
                    if text:
                        parts.append(f"{drawn.name}: {text}")
        return " · ".join(parts)


def positions(box: Box, shape: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the x of columns and the y of rows, ascending: centres of pixels in a box in mm."""
    x_min, y_min, x_max, y_max = box
    rows, columns = shape
    x = x_min + (np.arange(columns) + 0.5) * (x_max - x_min) / columns
    y = y_min + (np.arange(rows) + 0.5) * (y_max - y_min) / rows
    return x, y


def _eight_bits(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Return colours of more than 8 bits as 8 bits."""
    if pixels.dtype == np.uint8:
        return pixels
    return (pixels >> 8 * (pixels.dtype.itemsize - 1)).astype(np.uint8)
